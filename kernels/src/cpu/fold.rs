//! Sums over space that look at one position at a time, as functions of rows.
//!
//! Rows of a block of the domain are folded into three doubles in their order, and
//! blocks are merged into a reduction's state in theirs: [`super::chain`] does both, for
//! rows of memory and for rows that other ops have just computed.

use sstep_autodiff::{NormKind, Op};

use super::lanes::{sum1, sum2};
use super::norm::{Spread, group_of, stats};
use super::pointwise::PerChannel;
use crate::real::Real;
use crate::view::In;

/// What the rows of a block come to.
pub(super) type Folded = [f64; 3];

/// A reduction at work on one call.
pub(super) enum Fold<'a> {
    /// `(x)` → count, mean and centred squares per channel, or per group of a sample.
    Moments(&'a NormKind),
    /// `(x, moments, ȳ)` → `Σ ȳ` and `Σ ȳ x̂` per channel of a sample.
    NormSums(PerChannel<(f64, f64)>),
    /// `(x)` → sums: `[N, C]` or `[C]`.
    Sum {
        /// Whether each sample has its own.
        keep_batch: bool,
    },
}

impl<'a> Fold<'a> {
    /// `op` at work on `inputs`, if it is such a reduction.
    pub(super) fn new<T: Real>(op: &'a Op, inputs: &[In<'_, T>]) -> Option<Self> {
        Some(match op {
            Op::Moments(kind) => Fold::Moments(kind),
            Op::NormSums(a) => Fold::NormSums(stats(a, &inputs[1], inputs[0].dims())),
            Op::SumMap { keep_batch } => Fold::Sum {
                keep_batch: *keep_batch,
            },
            _ => return None,
        })
    }

    /// Which inputs are read position by position.
    pub(super) fn maps(&self) -> &'static [usize] {
        match self {
            Fold::Moments(_) | Fold::Sum { .. } => &[0],
            Fold::NormSums(_) => &[0, 2],
        }
    }

    /// Adds a row of channel `c` of sample `n`; where one map is read, `b` is not looked
    /// at.
    pub(super) fn row<T: Real>(&self, n: usize, c: usize, a: &[T], b: &[T], to: &mut Folded) {
        match self {
            Fold::Moments(_) => *to = Spread::from(*to).join(Spread::of(a)).into(),
            Fold::NormSums(stats) => {
                let (mean, _) = stats.at(n, c);
                to[0] += sum1(b, T::to_f64);
                to[1] += sum2(b, a, |g, x| g.to_f64() * (x.to_f64() - mean));
            }
            Fold::Sum { .. } => to[0] += sum1(a, T::to_f64),
        }
    }

    /// Merges a block of channel `c` of sample `n`, out of `channels`.
    pub(super) fn merge(
        &self,
        n: usize,
        c: usize,
        channels: usize,
        block: Folded,
        state: &mut [f64],
    ) {
        match self {
            Fold::Moments(kind) => {
                let group = group_of(kind, channels, n, c);
                let s = &mut state[3 * group..][..3];
                let old = Spread::from([s[0], s[1], s[2]]);
                s.copy_from_slice(&Folded::from(old.join(block.into())));
            }
            Fold::NormSums(stats) => {
                let (_, rstd) = stats.at(n, c);
                let pair = &mut state[2 * (n * channels + c)..][..2];
                pair[0] += block[0];
                pair[1] += block[1] * rstd;
            }
            Fold::Sum { keep_batch } => {
                let n = if *keep_batch { n } else { 0 };
                state[n * channels + c] += block[0];
            }
        }
    }
}
