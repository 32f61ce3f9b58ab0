//! Batch, group, instance and layer norm, over maps of any size.
//!
//! Statistics are a reduction: each row gives its mean and centred sum of
//! squares in two exact passes, and rows, blocks and tiles are merged after
//! Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
//! computing sample variances" (1979). What uses them is pointwise.

use sstep_autodiff::{NormAttrs, NormKind, NormParam};

use super::lanes::{map1, map2, sum1, sum2};
use super::parts::{Channels, each_row, reduce, region};
use crate::Job;
use crate::real::Real;
use crate::view::{Box4, In, Out};

/// Number, mean and centred sum of squares of some values.
#[derive(Clone, Copy)]
struct Spread {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Spread {
    const NONE: Self = Spread {
        count: 0.0,
        mean: 0.0,
        squares: 0.0,
    };

    fn of<T: Real>(row: &[T]) -> Self {
        let count = row.len() as f64;
        let mean = sum1(row, T::to_f64) / count;
        let squares = sum1(row, |x| {
            let off = x.to_f64() - mean;
            off * off
        });
        Spread {
            count,
            mean,
            squares,
        }
    }

    fn join(self, other: Self) -> Self {
        if self.count == 0.0 {
            return other;
        }
        if other.count == 0.0 {
            return self;
        }
        let count = self.count + other.count;
        let off = other.mean - self.mean;
        let share = other.count / count;
        Spread {
            count,
            mean: self.mean + off * share,
            squares: self.squares + other.squares + off * off * self.count * share,
        }
    }
}

/// Merges the moments of `x` over `region` into `state`: three doubles per
/// channel, or per group of a sample.
pub(super) fn moments<T: Real>(kind: &NormKind, x: &In<'_, T>, region: &Box4, state: &mut [f64]) {
    let channels = x.dims()[1];
    reduce(
        region,
        channels,
        Channels::Each,
        |b| {
            let rows = b
                .rows()
                .map(|(d, h)| x.row(b.n, b.c.start, d, h, b.w.clone()));
            rows.map(Spread::of).fold(Spread::NONE, Spread::join)
        },
        |b, new| {
            let c = b.c.start;
            let group = match kind {
                NormKind::Batch => c,
                NormKind::Group(groups) => b.n * groups + c / (channels / groups),
            };
            let s = &mut state[3 * group..][..3];
            let old = Spread {
                count: s[0],
                mean: s[1],
                squares: s[2],
            };
            let joined = old.join(new);
            s.copy_from_slice(&[joined.count, joined.mean, joined.squares]);
        },
    );
}

/// Mean and biased variance per group.
pub(super) fn moments_finish<T: Real>(state: &[f64], out: &mut [T]) {
    for (pair, s) in out.chunks_exact_mut(2).zip(state.chunks_exact(3)) {
        pair[0] = T::from_f64(s[1]);
        pair[1] = T::from_f64(s[2] / s[0]);
    }
}

/// `(mean, var)`, each `[C]` → `[1, C, 2]`.
pub(super) fn pack_moments<T: Real>(inputs: &[In<'_, T>], out: &mut [T]) {
    let given = inputs[0].flat().iter().zip(inputs[1].flat());
    for (pair, (&mean, &var)) in out.chunks_exact_mut(2).zip(given) {
        pair[0] = mean;
        pair[1] = var;
    }
}

/// Moments `[N or 1, G, 2]` as a norm over `channels` channels reads them.
struct Stats<'a, T> {
    moments: &'a [T],
    per_sample: bool,
    groups: usize,
    group_len: usize,
    eps: f64,
}

impl<'a, T: Real> Stats<'a, T> {
    fn new(a: &NormAttrs, moments: &In<'a, T>, channels: usize) -> Self {
        let shape = moments.layout().shape;
        let groups = shape.dim(1);
        let group_len = channels / groups;
        let eps = a.eps.get();
        Stats {
            moments: moments.flat(),
            per_sample: shape.dim(0) > 1,
            groups,
            group_len,
            eps,
        }
    }

    /// Mean, and one over the standard deviation.
    fn at(&self, n: usize, c: usize) -> (f64, f64) {
        let n = if self.per_sample { n } else { 0 };
        let i = n * self.groups + c / self.group_len;
        let (mean, var) = (
            self.moments[2 * i].to_f64(),
            self.moments[2 * i + 1].to_f64(),
        );
        (mean, 1.0 / (var + self.eps).sqrt())
    }
}

/// `(x, moments, γ, β)` → `γ (x − mean) / √(var + eps) + β`.
pub(super) fn normalise<T: Real>(a: &NormAttrs, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let (x, gamma, beta) = (&job.inputs[0], job.inputs[2].flat(), job.inputs[3].flat());
    let stats = Stats::new(a, &job.inputs[1], x.dims()[1]);
    let region = region(&job.region, out.layout());
    each_row(out, &region, |n, c, d, h, y| {
        let (mean, rstd) = stats.at(n, c);
        let (mean, factor) = (T::from_f64(mean), T::from_f64(rstd * gamma[c].to_f64()));
        let offset = beta[c];
        map1(x.row(n, c, d, h, region.s(2)), y, |x| {
            (x - mean) * factor + offset
        });
    });
}

/// Adds `Σ ȳ` and `Σ ȳ x̂` over `region` to `state`, two doubles per channel of
/// a sample.
pub(super) fn sums<T: Real>(a: &NormAttrs, inputs: &[In<'_, T>], region: &Box4, state: &mut [f64]) {
    let (x, g) = (&inputs[0], &inputs[2]);
    let channels = x.dims()[1];
    let stats = Stats::new(a, &inputs[1], channels);
    reduce(
        region,
        channels,
        Channels::Each,
        |b| {
            let c = b.c.start;
            let (mean, rstd) = stats.at(b.n, c);
            let (mut plain, mut with_x) = (0.0, 0.0);
            for (d, h) in b.rows() {
                let g = g.row(b.n, c, d, h, b.w.clone());
                let x = x.row(b.n, c, d, h, b.w.clone());
                plain += sum1(g, T::to_f64);
                with_x += sum2(g, x, |g, x| g.to_f64() * (x.to_f64() - mean));
            }
            [plain, with_x * rstd]
        },
        |b, [plain, with_x]| {
            let pair = &mut state[2 * (b.n * channels + b.c.start)..][..2];
            pair[0] += plain;
            pair[1] += with_x;
        },
    );
}

/// `x̄` of a norm.
///
/// Frozen, `x̄ = γ ȳ / σ`. Else, with `m` elements per statistic,
/// `x̄ = (γ ȳ − (S₁ + x̂ S₂) / m) / σ`, where `S₁ = Σ γ ȳ` and `S₂ = Σ γ ȳ x̂` run
/// over all that share the statistic: Ioffe and Szegedy, arXiv:1502.03167.
pub(super) fn grad<T: Real>(a: &NormAttrs, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let region = region(&job.region, out.layout());
    let channels = out.dims()[1];
    if a.frozen {
        let (g, gamma) = (&job.inputs[1], job.inputs[2].flat());
        let stats = Stats::new(a, &job.inputs[0], channels);
        return each_row(out, &region, |n, c, d, h, x| {
            let factor = T::from_f64(stats.at(n, c).1 * gamma[c].to_f64());
            map1(g.row(n, c, d, h, region.s(2)), x, |g| factor * g);
        });
    }
    let (x, g, gamma) = (&job.inputs[0], &job.inputs[2], job.inputs[3].flat());
    let stats = Stats::new(a, &job.inputs[1], channels);
    let terms = terms(a, &stats, x.dims(), gamma, job.inputs[4].flat());
    each_row(out, &region, |n, c, d, h, out| {
        let [mean, of_g, constant, of_x] = terms[n * channels + c].map(T::from_f64);
        let (x, g) = (
            x.row(n, c, d, h, region.s(2)),
            g.row(n, c, d, h, region.s(2)),
        );
        map2(x, g, out, |x, g| of_g * g - (constant + of_x * (x - mean)));
    });
}

/// Per channel of each sample: the mean, and the factors of `ȳ`, of 1 and of
/// `x − mean` in the gradient.
fn terms<T: Real>(
    a: &NormAttrs,
    stats: &Stats<'_, T>,
    dims: [usize; 5],
    gamma: &[T],
    sums: &[T],
) -> Vec<[f64; 4]> {
    let [batch, channels, spatial @ ..] = dims;
    let points: usize = spatial.iter().product();
    let sum = |n: usize, c: usize| {
        let i = 2 * (n * channels + c);
        let gamma = gamma[c].to_f64();
        [gamma * sums[i].to_f64(), gamma * sums[i + 1].to_f64()]
    };
    let add = |a: [f64; 2], b: [f64; 2]| [a[0] + b[0], a[1] + b[1]];
    // Everything that shares the statistic of (n, c).
    let shared = |n: usize, c: usize| match a.kind {
        NormKind::Batch => {
            let total = (0..batch).map(|n| sum(n, c)).fold([0.0; 2], add);
            (total, batch * points)
        }
        NormKind::Group(_) => {
            let first = c / stats.group_len * stats.group_len;
            let total = (first..first + stats.group_len)
                .map(|c| sum(n, c))
                .fold([0.0; 2], add);
            (total, stats.group_len * points)
        }
    };
    let mut terms = Vec::with_capacity(batch * channels);
    for n in 0..batch {
        let mut last = None;
        for (c, gamma) in gamma.iter().enumerate() {
            // Channels of a group are neighbours: sum them once.
            let group = c / stats.group_len;
            let ([s1, s2], count) = match last {
                Some((g, shared)) if g == group => shared,
                _ => shared(n, c),
            };
            last = Some((group, ([s1, s2], count)));
            let (mean, rstd) = stats.at(n, c);
            let each = rstd / count as f64;
            terms.push([mean, rstd * gamma.to_f64(), s1 * each, s2 * each * rstd]);
        }
    }
    terms
}

/// `(sums)` → gradient of `γ` or `β`, `[C]`: the sums over the batch.
pub(super) fn param_grad<T: Real>(which: &NormParam, sums: &In<'_, T>, out: &mut [T]) {
    let offset = match which {
        NormParam::Gamma => 1,
        NormParam::Beta => 0,
    };
    let channels = out.len();
    for (c, y) in out.iter_mut().enumerate() {
        let of_channel = sums
            .flat()
            .iter()
            .skip(2 * c + offset)
            .step_by(2 * channels);
        *y = T::from_f64(of_channel.map(|s| s.to_f64()).sum());
    }
}
