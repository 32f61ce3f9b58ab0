//! Upsampling by integer factors and its adjoint, one axis at a time.
//!
//! Both modes are the same sum: an output takes one or two neighbours per axis
//! with fixed weights. The adjoint gathers, per input, the outputs that took
//! it, so that nothing is scattered and every tile is complete in itself.

use std::ops::Range;

use sstep_autodiff::{AxisRead, Span, UpsampleAttrs, UpsampleMode};

use super::lanes::update1;
use super::parts::{each_row, lift};
use crate::Job;
use crate::real::Real;
use crate::view::Out;

/// What one output takes along one axis: `(1 − t) x[lo] + t x[hi]`; just
/// `x[lo]` if `t` is 0.
#[derive(Clone, Copy)]
struct Sample {
    lo: usize,
    hi: usize,
    t: f64,
}

/// One lifted axis.
#[derive(Clone, Copy)]
struct Axis {
    mode: UpsampleMode,
    factor: usize,
    /// Extent of the small side.
    extent: usize,
}

impl Axis {
    fn sample(&self, i: usize) -> Sample {
        match self.mode {
            UpsampleMode::Nearest => Sample {
                lo: i / self.factor,
                hi: i / self.factor,
                t: 0.0,
            },
            UpsampleMode::Linear => {
                // Output i stands at (i + ½)/f − ½, moved onto the first or last
                // element where it lies beyond.
                let f = self.factor as isize;
                let twice = 2 * i as isize + 1 - f;
                let floor = twice.div_euclid(2 * f);
                let last = self.extent as isize - 1;
                if floor < 0 || floor >= last {
                    let edge = floor.clamp(0, last) as usize;
                    return Sample {
                        lo: edge,
                        hi: edge,
                        t: 0.0,
                    };
                }
                let t = twice.rem_euclid(2 * f) as f64 / (2 * f) as f64;
                Sample {
                    lo: floor as usize,
                    hi: floor as usize + 1,
                    t,
                }
            }
        }
    }

    /// The elements that outputs `out` take.
    fn taken(&self, out: &Range<usize>) -> Range<usize> {
        self.sample(out.start).lo..self.sample(out.end - 1).hi + 1
    }

    /// The outputs that take element `j`, with their weights.
    fn takers(&self, j: usize) -> Vec<(usize, f64)> {
        let read = match self.mode {
            UpsampleMode::Nearest => AxisRead::NearestAdjoint(self.factor),
            UpsampleMode::Linear => AxisRead::LinearAdjoint(self.factor),
        };
        let span = read.apply(Span::new(j, j + 1), self.extent * self.factor);
        let weight = |i: usize| {
            let s = self.sample(i);
            f64::from(s.lo == j) * (1.0 - s.t) + f64::from(s.hi == j) * s.t
        };
        (span.lo..span.hi)
            .map(|i| (i, weight(i)))
            .filter(|&(_, w)| w != 0.0)
            .collect()
    }
}

/// The three lifted axes; `small` are the lifted extents of the small side.
fn axes(a: &UpsampleAttrs, n_spatial: usize, small: [usize; 5]) -> [Axis; 3] {
    let factor = lift(&a.factor, n_spatial, 1);
    [0, 1, 2].map(|s| Axis {
        mode: a.mode,
        factor: factor[s],
        extent: small[2 + s],
    })
}

/// Columns that are combined over depth and rows before they are over columns,
/// in an array that stays in the first-level cache.
const TOGETHER: usize = 512;

/// `(x)` → upsampled.
pub(super) fn upsample<T: Real>(a: &UpsampleAttrs, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let x = &job.inputs[0];
    let axes = axes(a, out.layout().shape.spatial().len(), x.dims());
    let w = job.region.s(2);
    // `hi − lo` is 0 or 1: as an offset it needs no second list.
    let samples: Vec<Sample> = w.clone().map(|i| axes[2].sample(i)).collect();
    each_row(out, &job.region, |n, c, d, h, y| {
        let (sd, sh) = (axes[0].sample(d), axes[1].sample(h));
        // At least one output per piece: its two neighbours always fit.
        let step = ((TOGETHER - 2) * axes[2].factor).max(1);
        let mut row = [T::ZERO; TOGETHER];
        for start in w.clone().step_by(step) {
            let piece = start..(start + step).min(w.end);
            let read = axes[2].taken(&piece);
            let (y, samples) = {
                let at = piece.start - w.start..piece.end - w.start;
                (&mut y[at.clone()], &samples[at])
            };
            let row = &mut row[..read.len()];
            row.fill(T::ZERO);
            for (d, wd) in [(sd.lo, 1.0 - sd.t), (sd.hi, sd.t)] {
                for (h, wh) in [(sh.lo, 1.0 - sh.t), (sh.hi, sh.t)] {
                    let weight = wd * wh;
                    if weight != 0.0 {
                        let weight = T::from_f64(weight);
                        let x = x.row(n, c, d, h, read.clone());
                        update1(row, x, |sum, x| sum + weight * x);
                    }
                }
            }
            for (y, s) in y.iter_mut().zip(samples) {
                let (lo, hi) = (row[s.lo - read.start], row[s.hi - read.start]);
                *y = if s.t == 0.0 {
                    lo
                } else {
                    T::from_f64(1.0 - s.t) * lo + T::from_f64(s.t) * hi
                };
            }
        }
    });
}

/// `(ȳ)` → `x̄` of upsampling.
pub(super) fn upsample_grad<T: Real>(a: &UpsampleAttrs, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let g = &job.inputs[0];
    let axes = axes(a, out.layout().shape.spatial().len(), out.dims());
    let w = job.region.s(2);
    let columns: Vec<Vec<(usize, f64)>> = w.clone().map(|j| axes[2].takers(j)).collect();
    let lists = |s: usize| -> Vec<Vec<(usize, f64)>> {
        job.region.s(s).map(|j| axes[s].takers(j)).collect()
    };
    let (depths, rows) = (lists(0), lists(1));
    let (d0, h0) = (job.region.s(0).start, job.region.s(1).start);
    each_row(out, &job.region, |n, c, d, h, x| {
        x.fill(T::ZERO);
        for &(id, wd) in &depths[d - d0] {
            for &(ih, wh) in &rows[h - h0] {
                let outer = wd * wh;
                for (x, takers) in x.iter_mut().zip(&columns) {
                    let (Some(first), Some(last)) = (takers.first(), takers.last()) else {
                        continue;
                    };
                    let g = g.row(n, c, id, ih, first.0..last.0 + 1);
                    let mut sum = T::ZERO;
                    for (&g, &(_, weight)) in g.iter().zip(takers) {
                        sum += T::from_f64(weight * outer) * g;
                    }
                    *x += sum;
                }
            }
        }
    });
}
