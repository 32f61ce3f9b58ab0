//! Upsampling by integer factors and its adjoint, one axis at a time.
//!
//! Both modes are the same sum: an output takes one or two neighbours per axis
//! with fixed weights. The adjoint gathers, per input, the outputs that took
//! it, so that nothing is scattered and every tile is complete in itself.

use std::ops::Range;

use sstep_autodiff::{AxisRead, Span, UpsampleAttrs, UpsampleMode};

use super::lanes::{update1, wide};
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

    /// Elements that no output moved from beyond an edge takes.
    fn inner(&self) -> Range<usize> {
        match self.mode {
            UpsampleMode::Nearest => 0..self.extent,
            UpsampleMode::Linear => 1..self.extent.saturating_sub(1).max(1),
        }
    }

    /// The outputs that take any element of `elements`, perhaps a few more.
    fn taking(&self, elements: &Range<usize>) -> Range<usize> {
        let read = match self.mode {
            UpsampleMode::Nearest => AxisRead::NearestAdjoint(self.factor),
            UpsampleMode::Linear => AxisRead::LinearAdjoint(self.factor),
        };
        let span = read.apply(Span::from(elements.clone()), self.extent * self.factor);
        span.lo..span.hi
    }

    /// The outputs that take element `j`, with their weights.
    fn takers(&self, j: usize) -> Takers {
        let weight = |i: usize| {
            let s = self.sample(i);
            f64::from(s.lo == j) * (1.0 - s.t) + f64::from(s.hi == j) * s.t
        };
        // They are neighbours; a few on either side have no weight.
        let mut span = self.taking(&(j..j + 1));
        while !span.is_empty() && weight(span.start) == 0.0 {
            span.start += 1;
        }
        while !span.is_empty() && weight(span.end - 1) == 0.0 {
            span.end -= 1;
        }
        Takers {
            first: span.start,
            weights: span.map(weight).collect(),
        }
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
const TOGETHER: usize = 1024;

/// `(x)` → upsampled.
pub(super) fn upsample<T: Real>(a: &UpsampleAttrs, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let x = &job.inputs[0];
    let axes = axes(a, out.layout().shape.spatial().len(), x.dims());
    let w = job.region.s(2);
    // The two neighbours of each output of a piece always fit.
    let step = (TOGETHER - 2) * axes[2].factor;
    each_row(out, &job.region, |n, c, d, h, y| {
        let (sd, sh) = (axes[0].sample(d), axes[1].sample(h));
        let mut row = [T::ZERO; TOGETHER];
        for start in w.clone().step_by(step) {
            let piece = start..(start + step).min(w.end);
            let read = axes[2].taken(&piece);
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
            let y = &mut y[piece.start - w.start..piece.end - w.start];
            stretch(&axes[2], row, read.start, y, piece.start);
        }
    });
}

/// Outputs `first…` along one axis from `row`, whose first element has index
/// `origin`.
fn stretch<T: Real>(axis: &Axis, row: &[T], origin: usize, y: &mut [T], first: usize) {
    let f = axis.factor;
    let one = |i: usize| {
        let s = axis.sample(i);
        let (lo, hi) = (row[s.lo - origin], row[s.hi - origin]);
        if s.t == 0.0 {
            lo
        } else {
            T::from_f64(1.0 - s.t) * lo + T::from_f64(s.t) * hi
        }
    };
    // Whole multiples of the factor, away from the edges, by a fixed pattern.
    let inner = axis.inner();
    let lo = first.div_ceil(f).max(inner.start);
    let hi = ((first + y.len()) / f).min(inner.end);
    let steady = matches!(f, 2 | 4) && lo < hi;
    let (lo, hi) = if steady {
        (lo * f - first, hi * f - first)
    } else {
        (y.len(), y.len())
    };
    for i in (0..lo).chain(hi..y.len()) {
        y[i] = one(first + i);
    }
    if lo < hi {
        let q = (first + lo) / f - origin;
        match axis.mode {
            UpsampleMode::Nearest => repeat(&row[q..], &mut y[lo..hi], f),
            UpsampleMode::Linear => blend(&row[q - 1..], &mut y[lo..hi], f),
        }
    }
}

wide! {
    /// `y[q F + phase] = x[q]` for `F` of 2 or 4.
    fn repeat[T: Real](x: &[T], y: &mut [T], factor: usize) {
        #[inline(always)]
        fn fixed<T: Real, const F: usize>(x: &[T], y: &mut [T]) {
            for (y, &x) in y.chunks_exact_mut(F).zip(x) {
                y.fill(x);
            }
        }
        if factor == 2 { fixed::<T, 2>(x, y) } else { fixed::<T, 4>(x, y) }
    }
}

wide! {
    /// Linear interpolation for `F` of 2 or 4: the outputs of `x[1 + q]` lie
    /// between it and `x[q]` in their first half, `x[2 + q]` in their second.
    fn blend[T: Real](x: &[T], y: &mut [T], factor: usize) {
        #[inline(always)]
        fn fixed<T: Real, const F: usize>(x: &[T], y: &mut [T]) {
            let t: [f64; F] = std::array::from_fn(|phase| {
                ((2 * phase + 1 + F) % (2 * F)) as f64 / (2 * F) as f64
            });
            let (of_lo, of_hi) = (t.map(|t| T::from_f64(1.0 - t)), t.map(T::from_f64));
            let neighbours = x.iter().zip(&x[1..]).zip(&x[2..]);
            for (y, ((&before, &here), &after)) in y.chunks_exact_mut(F).zip(neighbours) {
                for phase in 0..F {
                    let (lo, hi) = if 2 * phase < F { (before, here) } else { (here, after) };
                    y[phase] = of_lo[phase] * lo + of_hi[phase] * hi;
                }
            }
        }
        if factor == 2 { fixed::<T, 2>(x, y) } else { fixed::<T, 4>(x, y) }
    }
}

/// `(ȳ)` → `x̄` of upsampling.
pub(super) fn upsample_grad<T: Real>(a: &UpsampleAttrs, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let g = &job.inputs[0];
    let axes = axes(a, out.layout().shape.spatial().len(), out.dims());
    let lists = |s: usize| -> Vec<Takers> { job.region.s(s).map(|j| axes[s].takers(j)).collect() };
    let (depths, rows) = (lists(0), lists(1));
    let (d0, h0, w) = (
        job.region.s(0).start,
        job.region.s(1).start,
        job.region.s(2),
    );
    let columns = &axes[2];
    let pattern = Pattern::of(columns);
    // An element is taken by outputs up to a factor away on either side, and
    // `taking` may name a few more.
    let step = (TOGETHER / columns.factor).saturating_sub(2).max(1);
    each_row(out, &job.region, |n, c, d, h, x| {
        let mut row = vec![T::ZERO; TOGETHER.max(3 * columns.factor) + 4];
        for start in w.clone().step_by(step) {
            let piece = start..(start + step).min(w.end);
            let read = columns.taking(&piece);
            let row = &mut row[..read.len()];
            row.fill(T::ZERO);
            for (id, wd) in depths[d - d0].each() {
                for (ih, wh) in rows[h - h0].each() {
                    let weight = T::from_f64(wd * wh);
                    let g = g.row(n, c, id, ih, read.clone());
                    update1(row, g, |sum, g| sum + weight * g);
                }
            }
            let x = &mut x[piece.start - w.start..piece.end - w.start];
            gather(columns, &pattern, row, read.start, x, piece.start);
        }
    });
}

/// The outputs that take an element, with their weights.
struct Takers {
    first: usize,
    weights: Vec<f64>,
}

impl Takers {
    fn each(&self) -> impl Iterator<Item = (usize, f64)> + '_ {
        self.weights
            .iter()
            .enumerate()
            .map(|(i, &w)| (self.first + i, w))
    }
}

/// What all elements away from the edges have in common: element `j` is taken
/// by outputs `j F − back…` with these weights.
struct Pattern<T> {
    back: usize,
    weights: Vec<T>,
}

impl<T: Real> Pattern<T> {
    fn of(axis: &Axis) -> Self {
        let inner = axis.inner();
        if inner.is_empty() {
            return Pattern {
                back: 0,
                weights: Vec::new(),
            };
        }
        let takers = axis.takers(inner.start);
        let back = inner.start * axis.factor - takers.first;
        Pattern {
            back,
            weights: takers.weights.iter().map(|&w| T::from_f64(w)).collect(),
        }
    }
}

/// Elements `first…` along one axis from the gradients of outputs `origin…`.
fn gather<T: Real>(
    axis: &Axis,
    pattern: &Pattern<T>,
    row: &[T],
    origin: usize,
    x: &mut [T],
    first: usize,
) {
    let inner = axis.inner();
    let lo = inner.start.clamp(first, first + x.len()) - first;
    let hi = inner.end.clamp(first + lo, first + x.len()) - first;
    for j in (0..lo).chain(hi..x.len()) {
        let mut sum = T::ZERO;
        for (i, weight) in axis.takers(first + j).each() {
            sum += T::from_f64(weight) * row[i - origin];
        }
        x[j] = sum;
    }
    if lo < hi {
        let row = &row[(first + lo) * axis.factor - pattern.back - origin..];
        weighted(row, &pattern.weights, axis.factor, &mut x[lo..hi]);
    }
}

wide! {
    /// `y[j] = Σ_k weights[k] x[j F + k]`, `k` ascending.
    fn weighted[T: Real](x: &[T], weights: &[T], factor: usize, y: &mut [T]) {
        assert!(y.is_empty() || x.len() >= (y.len() - 1) * factor + weights.len());
        #[inline(always)]
        fn fixed<T: Real, const K: usize, const F: usize>(x: &[T], weights: &[T], y: &mut [T]) {
            let weights: [T; K] = std::array::from_fn(|k| weights[k]);
            for (j, y) in y.iter_mut().enumerate() {
                let mut sum = T::ZERO;
                for (k, &weight) in weights.iter().enumerate() {
                    // SAFETY: `x` reaches to the last output's last term.
                    sum += weight * unsafe { *x.get_unchecked(j * F + k) };
                }
                *y = sum;
            }
        }
        match (weights.len(), factor) {
            (2, 2) => fixed::<T, 2, 2>(x, weights, y),
            (4, 2) => fixed::<T, 4, 2>(x, weights, y),
            (4, 4) => fixed::<T, 4, 4>(x, weights, y),
            (8, 4) => fixed::<T, 8, 4>(x, weights, y),
            _ => {
                for (j, y) in y.iter_mut().enumerate() {
                    let terms = x[j * factor..].iter().zip(weights);
                    *y = terms.fold(T::ZERO, |sum, (&x, &weight)| sum + weight * x);
                }
            }
        }
    }
}
