//! Maxima and log-sum-exp over space.
//!
//! Each tile's part is found by blocks and merged into doubles. The maximum
//! compares coordinates on a tie, so that the first of the whole map wins in
//! whatever order tiles come; log-sum-exp carries its own maximum.

use super::channels::TOGETHER;
use super::lanes::{larger, map1, max, sum1};
use super::parts::{Channels, each_row, reduce};
use crate::real::Real;
use crate::view::{Box4, In, Out};

/// A maximum and where it is, in lifted coordinates.
#[derive(Clone, Copy)]
struct Peak {
    value: f64,
    /// `None` before anything was seen.
    at: Option<[usize; 3]>,
}

impl Peak {
    /// Whether `self` is the first maximum rather than `other`.
    fn beats(&self, other: &Peak) -> bool {
        match (self.at, other.at) {
            (None, _) => false,
            (_, None) => true,
            (Some(a), Some(b)) => {
                let (mine, theirs) = (self.value.is_nan(), other.value.is_nan());
                if mine || theirs {
                    mine && (!theirs || a < b)
                } else {
                    self.value > other.value || (self.value == other.value && a < b)
                }
            }
        }
    }
}

/// Where channel `c` of sample `n` stands in `[N, C·(1 + d)]`: its maximum,
/// then its coordinates.
fn packed(n: usize, c: usize, channels: usize, n_spatial: usize) -> impl Fn(usize) -> usize {
    move |part| n * channels * (1 + n_spatial) + part * channels + c
}

/// Before any tile: no coordinates yet.
pub(super) fn global_max_begin(state: &mut [f64]) {
    state.fill(-1.0);
}

/// Merges the maxima of `x` over `region` into `state`.
pub(super) fn global_max<T: Real>(x: &In<'_, T>, region: &Box4, state: &mut [f64]) {
    let channels = x.dims()[1];
    let n_spatial = x.layout().shape.spatial().len();
    reduce(
        region,
        channels,
        Channels::Each,
        |b| {
            let mut best = Peak {
                value: f64::NEG_INFINITY,
                at: None,
            };
            for (d, h) in b.rows() {
                let row = x.row(b.n, b.c.start, d, h, b.w.clone());
                let value = max(row).to_f64();
                let better = value > best.value || value.is_nan() || best.at.is_none();
                if better && !best.value.is_nan() {
                    let same = |x: &T| x.to_f64() == value || (value.is_nan() && x.is_nan());
                    let w = row.iter().position(same).map(|i| [d, h, b.w.start + i]);
                    best = Peak { value, at: w };
                }
            }
            best
        },
        |b, new| {
            let at = packed(b.n, b.c.start, channels, n_spatial);
            let mut old = Peak {
                value: state[at(0)],
                at: Some([0; 3]),
            };
            for a in 0..n_spatial {
                let coordinate = state[at(1 + a)];
                match &mut old.at {
                    Some(place) if coordinate >= 0.0 => {
                        place[3 - n_spatial + a] = coordinate as usize;
                    }
                    _ => old.at = None,
                }
            }
            // Without spatial axes there is one element, and no coordinate
            // that could tell whether it was seen.
            if n_spatial == 0 || new.beats(&old) {
                state[at(0)] = new.value;
                if let Some(place) = new.at {
                    for a in 0..n_spatial {
                        state[at(1 + a)] = place[3 - n_spatial + a] as f64;
                    }
                }
            }
        },
    );
}

/// `(packed, packed_grad)` → `x̄`: the gradient of a maximum at its coordinates.
pub(super) fn global_max_grad<T: Real>(
    n_spatial: usize,
    inputs: &[In<'_, T>],
    region: &Box4,
    out: &mut Out<'_, T>,
) {
    let (place, grad) = (inputs[0].flat(), inputs[1].flat());
    let channels = out.dims()[1];
    each_row(out, region, |n, c, d, h, x| {
        x.fill(T::ZERO);
        let at = packed(n, c, channels, n_spatial);
        let mut peak = [0; 3];
        for a in 0..n_spatial {
            peak[3 - n_spatial + a] = place[at(1 + a)].to_f64() as usize;
        }
        let w = region.s(2);
        if peak[0] == d && peak[1] == h && w.contains(&peak[2]) {
            x[peak[2] - w.start] = grad[at(0)];
        }
    });
}

/// A sum of exponentials, `e^most · total`.
#[derive(Clone, Copy)]
struct Exponentials {
    most: f64,
    total: f64,
}

impl Exponentials {
    const NONE: Self = Exponentials {
        most: f64::NEG_INFINITY,
        total: 0.0,
    };

    /// Both together, scaled by the larger maximum.
    fn join(self, other: Self) -> Self {
        let most = larger(self.most, other.most);
        let scaled = |s: Self| {
            if s.most == most {
                s.total
            } else {
                s.total * (s.most - most).exp()
            }
        };
        Exponentials {
            most,
            total: scaled(self) + scaled(other),
        }
    }
}

/// Before any tile.
pub(super) fn lse_begin(state: &mut [f64]) {
    for pair in state.chunks_exact_mut(2) {
        pair[0] = f64::NEG_INFINITY;
        pair[1] = 0.0;
    }
}

/// Merges the exponentials of `x` over `region` into `state`, (maximum, sum)
/// per channel of a sample.
pub(super) fn lse<T: Real>(x: &In<'_, T>, region: &Box4, state: &mut [f64]) {
    let channels = x.dims()[1];
    reduce(
        region,
        channels,
        Channels::Each,
        |b| {
            let mut all = Exponentials::NONE;
            for (d, h) in b.rows() {
                let row = x.row(b.n, b.c.start, d, h, b.w.clone());
                let most = max(row);
                // A row of −∞ adds nothing, and would subtract it from itself.
                if most != T::NEG_INFINITY {
                    let mut total = 0.0;
                    let mut e = [T::ZERO; TOGETHER];
                    for row in row.chunks(TOGETHER) {
                        let e = &mut e[..row.len()];
                        map1(row, e, |x| (x - most).exp());
                        total += sum1(e, T::to_f64);
                    }
                    all = all.join(Exponentials {
                        most: most.to_f64(),
                        total,
                    });
                }
            }
            all
        },
        |b, new| {
            let pair = &mut state[2 * (b.n * channels + b.c.start)..][..2];
            let joined = Exponentials {
                most: pair[0],
                total: pair[1],
            }
            .join(new);
            pair[0] = joined.most;
            pair[1] = joined.total;
        },
    );
}

/// `most + ln total`; an infinite or missing maximum is the answer itself.
pub(super) fn lse_finish<T: Real>(state: &[f64], out: &mut [T]) {
    for (y, pair) in out.iter_mut().zip(state.chunks_exact(2)) {
        let most = pair[0];
        *y = T::from_f64(if most.is_finite() {
            most + pair[1].ln()
        } else {
            most
        });
    }
}
