//! Batch, group, instance and layer norm, over maps of any size.
//!
//! Statistics are a reduction: each row gives its mean and centred sum of
//! squares in two exact passes, and rows, blocks and tiles are merged after
//! Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for
//! computing sample variances" (1979). What uses them is [pointwise](super::pointwise).

use sstep_autodiff::{NormAttrs, NormKind, NormParam};

use super::lanes::sum1;
use super::pointwise::PerChannel;
use crate::real::Real;
use crate::view::In;

/// Number, mean and centred sum of squares of some values.
#[derive(Clone, Copy)]
pub(super) struct Spread {
    count: f64,
    mean: f64,
    squares: f64,
}

impl Spread {
    pub(super) fn of<T: Real>(row: &[T]) -> Self {
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

    /// Of the values of both.
    pub(super) fn join(self, other: Self) -> Self {
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

impl From<[f64; 3]> for Spread {
    fn from([count, mean, squares]: [f64; 3]) -> Self {
        Spread {
            count,
            mean,
            squares,
        }
    }
}

impl From<Spread> for [f64; 3] {
    fn from(s: Spread) -> Self {
        [s.count, s.mean, s.squares]
    }
}

/// Which statistic, in a state of so many per sample, channel `c` of sample `n` adds to.
pub(super) fn group_of(kind: &NormKind, channels: usize, n: usize, c: usize) -> usize {
    match kind {
        NormKind::Batch => c,
        NormKind::Group(groups) => n * groups + c / (channels / groups),
    }
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

/// Mean, and one over the standard deviation, that a norm over a map of these lifted
/// extents uses.
pub(super) fn stats<T: Real>(
    a: &NormAttrs,
    moments: &In<'_, T>,
    dims: [usize; 5],
) -> PerChannel<(f64, f64)> {
    let stats = Stats::new(a, moments, dims[1]);
    PerChannel::new(dims, |(n, c)| stats.at(n, c))
}

/// Mean, factor and offset of `(x, moments, γ, β)` → `γ (x − mean) / √(var + eps) + β`.
pub(super) fn factors<T: Real>(a: &NormAttrs, inputs: &[In<'_, T>]) -> PerChannel<[T; 3]> {
    let (x, gamma, beta) = (&inputs[0], inputs[2].flat(), inputs[3].flat());
    let stats = Stats::new(a, &inputs[1], x.dims()[1]);
    PerChannel::new(x.dims(), |(n, c)| {
        let (mean, rstd) = stats.at(n, c);
        let factor = rstd * gamma[c].to_f64();
        [T::from_f64(mean), T::from_f64(factor), beta[c]]
    })
}

/// Factors of `(moments, ȳ, γ)` → `x̄ = γ ȳ / σ`, the statistics being given.
pub(super) fn frozen_factors<T: Real>(a: &NormAttrs, inputs: &[In<'_, T>]) -> PerChannel<T> {
    let (g, gamma) = (&inputs[1], inputs[2].flat());
    let stats = Stats::new(a, &inputs[0], g.dims()[1]);
    let factor = |(n, c): (usize, usize)| stats.at(n, c).1 * gamma[c].to_f64();
    PerChannel::new(g.dims(), |at| T::from_f64(factor(at)))
}

/// `(x, moments, ȳ, γ, sums)` → `x̄` of a norm whose statistics are those of its input:
/// the mean, and the factors of `ȳ`, of 1 and of `x − mean` in it.
///
/// With `m` elements per statistic, `x̄ = (γ ȳ − (S₁ + x̂ S₂) / m) / σ`, where
/// `S₁ = Σ γ ȳ` and `S₂ = Σ γ ȳ x̂` run over all that share the statistic: Ioffe and
/// Szegedy, arXiv:1502.03167.
pub(super) fn terms<T: Real>(a: &NormAttrs, inputs: &[In<'_, T>]) -> PerChannel<[T; 4]> {
    let (gamma, sums) = (inputs[3].flat(), inputs[4].flat());
    let dims @ [batch, channels, spatial @ ..] = inputs[0].dims();
    let stats = Stats::new(a, &inputs[1], channels);
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
    // Channels of a group are neighbours: sum them once.
    let mut last = None;
    PerChannel::new(dims, |(n, c)| {
        let group = (n, c / stats.group_len);
        let ([s1, s2], count) = match last {
            Some((g, shared)) if g == group => shared,
            _ => shared(n, c),
        };
        last = Some((group, ([s1, s2], count)));
        let (mean, rstd) = stats.at(n, c);
        let each = rstd / count as f64;
        [mean, rstd * gamma[c].to_f64(), s1 * each, s2 * each * rstd].map(T::from_f64)
    })
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
