//! Windowed maxima and means, and their gradients.
//!
//! The gradient of max-pool reads the input again instead of stored indices:
//! each window's first maximum is found anew, which costs a comparison per tap
//! and no memory. Padding is never a maximum; NaN always is, as in PyTorch.

use std::ops::Range;

use sstep_autodiff::{PoolAttrs, Span, Window};

use super::lanes::{larger, wide};
use super::parts::{Channels, Part, STREAM, each_part, each_row, lift};
use crate::Job;
use crate::real::Real;
use crate::view::{In, Out};

/// A pooling window along one lifted axis.
#[derive(Clone, Copy)]
struct Axis {
    window: Window,
    /// Padding after.
    pad_hi: usize,
    /// Extent of the pooled input.
    extent: usize,
    /// Number of windows.
    n_windows: usize,
}

impl Axis {
    /// The taps of window `j` that lie over real elements.
    fn taps(&self, j: usize) -> Range<usize> {
        let Window {
            kernel,
            stride,
            pad,
            ..
        } = self.window;
        let lo = pad.saturating_sub(j * stride).min(kernel);
        let hi = (self.extent + pad).saturating_sub(j * stride).min(kernel);
        lo..hi.max(lo)
    }

    /// Element under tap `t` of window `j`.
    fn under(&self, j: usize, t: usize) -> usize {
        j * self.window.stride + t - self.window.pad
    }

    /// Windows that have an element of `span` under them.
    fn covering(&self, span: Range<usize>) -> Range<usize> {
        let readers = self.window.readers(Span::from(span), self.n_windows);
        readers.lo..readers.hi.max(readers.lo)
    }

    /// Windows among `j` whose tap `t` lies on an element of `inside`.
    fn touching(&self, t: usize, j: &Range<usize>, inside: &Range<usize>) -> Range<usize> {
        let Window { stride, pad, .. } = self.window;
        let lo = (inside.start + pad)
            .saturating_sub(t)
            .div_ceil(stride)
            .max(j.start);
        let hi = (inside.end + pad)
            .saturating_sub(t)
            .div_ceil(stride)
            .min(j.end);
        lo..hi.max(lo)
    }

    /// By how much an average over window `j` is divided along this axis.
    fn divisor(&self, j: usize, count_pad: bool) -> usize {
        if count_pad {
            let Window {
                kernel,
                stride,
                pad,
                ..
            } = self.window;
            kernel.min(self.extent + pad + self.pad_hi - j * stride)
        } else {
            self.taps(j).len()
        }
    }
}

/// The three lifted axes of a pool of `input` (lifted extents) into `output`.
fn axes(a: &PoolAttrs, n_spatial: usize, input: [usize; 5], output: [usize; 5]) -> [Axis; 3] {
    let (kernel, stride) = (lift(&a.kernel, n_spatial, 1), lift(&a.stride, n_spatial, 1));
    let (lo, hi) = (lift(&a.pad_lo, n_spatial, 0), lift(&a.pad_hi, n_spatial, 0));
    [0, 1, 2].map(|s| Axis {
        window: Window {
            kernel: kernel[s],
            stride: stride[s],
            dilation: 1,
            pad: lo[s],
        },
        pad_hi: hi[s],
        extent: input[2 + s],
        n_windows: output[2 + s],
    })
}

wide! {
    /// `y[i] = larger(y[i], x[i · stride])`.
    fn take_larger[T: Real](y: &mut [T], x: &[T], stride: usize) {
        each_strided(y, x, stride, larger);
    }
}

wide! {
    /// `y[i] += x[i · stride]`.
    fn add_strided[T: Real](y: &mut [T], x: &[T], stride: usize) {
        each_strided(y, x, stride, |y, x| y + x);
    }
}

/// `y[i] = f(y[i], x[i · stride])`; the usual strides are constants for the
/// compiler, which then loads whole vectors and shuffles.
#[inline(always)]
fn each_strided<T: Real>(y: &mut [T], x: &[T], stride: usize, f: impl Fn(T, T) -> T) {
    #[inline(always)]
    fn fixed<T: Real, const S: usize>(y: &mut [T], x: &[T], f: impl Fn(T, T) -> T) {
        let Some((last, first)) = y.split_last_mut() else {
            return;
        };
        for (y, x) in first.iter_mut().zip(x.chunks_exact(S)) {
            *y = f(*y, x[0]);
        }
        *last = f(*last, x[first.len() * S]);
    }
    match stride {
        1 => fixed::<T, 1>(y, x, f),
        2 => fixed::<T, 2>(y, x, f),
        _ => {
            for (y, x) in y.iter_mut().zip(x.iter().step_by(stride)) {
                *y = f(*y, *x);
            }
        }
    }
}

/// Row `y` of windows `(jd, jh, w)`: `f(y, x, stride)` for each tap, in
/// row-major order, with the windows that have an element under it.
fn over_taps<T: Real>(
    axes: &[Axis; 3],
    x: &In<'_, T>,
    [n, c, jd, jh]: [usize; 4],
    w: &Range<usize>,
    y: &mut [T],
    f: impl Fn(&mut [T], &[T], usize),
) {
    let [depth, rows, columns] = axes;
    let whole = 0..columns.extent;
    for td in depth.taps(jd) {
        for th in rows.taps(jh) {
            let (d, h) = (depth.under(jd, td), rows.under(jh, th));
            for tw in 0..columns.window.kernel {
                let j = columns.touching(tw, w, &whole);
                if !j.is_empty() {
                    let read = columns.under(j.start, tw)..columns.under(j.end - 1, tw) + 1;
                    let x = x.row(n, c, d, h, read);
                    f(
                        &mut y[j.start - w.start..j.end - w.start],
                        x,
                        columns.window.stride,
                    );
                }
            }
        }
    }
}

/// `(x)` → windowed maximum.
pub(super) fn max_pool<T: Real>(a: &PoolAttrs, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let x = &job.inputs[0];
    let axes = axes(a, out.layout().shape.spatial().len(), x.dims(), out.dims());
    each_row(out, &job.region, |n, c, d, h, y| {
        y.fill(T::NEG_INFINITY);
        over_taps(&axes, x, [n, c, d, h], &job.region.s(2), y, take_larger);
    });
}

/// `(x)` → windowed mean.
pub(super) fn avg_pool<T: Real>(a: &PoolAttrs, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let x = &job.inputs[0];
    let axes = axes(a, out.layout().shape.spatial().len(), x.dims(), out.dims());
    each_row(out, &job.region, |n, c, d, h, y| {
        y.fill(T::ZERO);
        let w = job.region.s(2);
        over_taps(&axes, x, [n, c, d, h], &w, y, add_strided);
        let outer = axes[0].divisor(d, a.count_pad) * axes[1].divisor(h, a.count_pad);
        for (y, j) in y.iter_mut().zip(w) {
            *y = *y / T::from_f64((outer * axes[2].divisor(j, a.count_pad)) as f64);
        }
    });
}

/// `(ȳ)` → `x̄` of average pool: each element sums, over the windows that cover
/// it in row-major order, `ȳ` divided by the window's divisor.
pub(super) fn avg_pool_grad<T: Real>(a: &PoolAttrs, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let g = &job.inputs[0];
    let axes = axes(a, out.layout().shape.spatial().len(), out.dims(), g.dims());
    let [depth, rows, columns] = &axes;
    let w = job.region.s(2);
    let windows = columns.covering(w.clone());
    each_row(out, &job.region, |n, c, d, h, x| {
        x.fill(T::ZERO);
        if windows.is_empty() {
            return;
        }
        for jd in depth.covering(d..d + 1) {
            for jh in rows.covering(h..h + 1) {
                let outer = depth.divisor(jd, a.count_pad) * rows.divisor(jh, a.count_pad);
                let g = g.row(n, c, jd, jh, windows.clone());
                for (j, &g) in windows.clone().zip(g) {
                    let divisor = (outer * columns.divisor(j, a.count_pad)) as f64;
                    let share = g / T::from_f64(divisor);
                    let taps = columns.taps(j);
                    let lo = columns.under(j, taps.start).max(w.start);
                    let hi = (columns.under(j, taps.start) + taps.len()).min(w.end);
                    for x in &mut x[lo.min(hi) - w.start..hi - w.start] {
                        *x += share;
                    }
                }
            }
        }
    });
}

/// Windows of a row whose maxima are sought together.
const TOGETHER: usize = 256;

/// `(x, ȳ)` → `x̄` of max-pool: each window's first maximum gets its `ȳ`, and an
/// element adds up its windows in row-major order.
pub(super) fn max_pool_grad<T: Real>(a: &PoolAttrs, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let axes = axes(
        a,
        out.layout().shape.spatial().len(),
        out.dims(),
        job.inputs[1].dims(),
    );
    // A part seeks the maxima of windows across its edges again, so parts are
    // made larger than where nothing is repeated.
    each_part(out, &job.region, Channels::Each, 8 * STREAM, |mut part| {
        max_pool_grad_part(&axes, &job.inputs[0], &job.inputs[1], &mut part);
    });
}

fn max_pool_grad_part<T: Real>(
    axes: &[Axis; 3],
    x: &In<'_, T>,
    g: &In<'_, T>,
    part: &mut Part<'_, T>,
) {
    let [depth, rows, columns] = axes;
    let (n, c, d) = (part.n, part.c.start, part.d);
    let (part_h, part_w) = (part.h.clone(), part.w.clone());
    for h in part_h.clone() {
        part.row(c, h).fill(T::ZERO);
    }
    let all = columns.covering(part_w.clone());
    let (mut most, mut first) = ([T::ZERO; TOGETHER], [0; TOGETHER]);
    for jd in depth.covering(d..d + 1) {
        for jh in rows.covering(part_h.clone()) {
            for start in all.clone().step_by(TOGETHER) {
                let j = start..(start + TOGETHER).min(all.end);
                first_maxima(axes, x, [n, c, jd, jh], &j, &mut most, &mut first);
                let g = g.row(n, c, jd, jh, j.clone());
                let td = d + depth.window.pad - jd * depth.window.stride;
                for th in rows.taps(jh) {
                    let h = rows.under(jh, th);
                    if !part_h.contains(&h) {
                        continue;
                    }
                    let row = part.row(c, h);
                    // Descending taps are ascending windows of one element.
                    for tw in (0..columns.window.kernel).rev() {
                        let tap = code(axes, td, th, tw);
                        for j in columns.touching(tw, &j, &part_w) {
                            if first[j - start] == tap {
                                row[columns.under(j, tw) - part_w.start] += g[j - start];
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Number of a tap within its window, in row-major order.
fn code(axes: &[Axis; 3], td: usize, th: usize, tw: usize) -> u32 {
    ((td * axes[1].window.kernel + th) * axes[2].window.kernel + tw) as u32
}

/// Stands for no tap.
const NONE: u32 = u32::MAX;

/// For windows `j` of row `(jd, jh)`: the tap of the first maximum.
fn first_maxima<T: Real>(
    axes: &[Axis; 3],
    x: &In<'_, T>,
    [n, c, jd, jh]: [usize; 4],
    j: &Range<usize>,
    most: &mut [T; TOGETHER],
    first: &mut [u32; TOGETHER],
) {
    let [depth, rows, columns] = axes;
    let whole = 0..columns.extent;
    let (most, first) = (&mut most[..j.len()], &mut first[..j.len()]);
    first.fill(NONE);
    for td in depth.taps(jd) {
        for th in rows.taps(jh) {
            let (d, h) = (depth.under(jd, td), rows.under(jh, th));
            for tw in 0..columns.window.kernel {
                let over = columns.touching(tw, j, &whole);
                if !over.is_empty() {
                    let read = columns.under(over.start, tw)..columns.under(over.end - 1, tw) + 1;
                    let at = over.start - j.start..over.end - j.start;
                    let (most, first) = (&mut most[at.clone()], &mut first[at]);
                    let tap = code(axes, td, th, tw);
                    note_larger(
                        most,
                        first,
                        x.row(n, c, d, h, read),
                        columns.window.stride,
                        tap,
                    );
                }
            }
        }
    }
}

wide! {
    /// Where `x[i · stride]` is the first element or exceeds `most[i]`, notes it
    /// and its tap.
    fn note_larger[T: Real](most: &mut [T], first: &mut [u32], x: &[T], stride: usize, tap: u32) {
        #[inline(always)]
        fn note<T: Real>(most: &mut T, first: &mut u32, x: T, tap: u32) {
            let new = *first == NONE || x > *most || (x.is_nan() && !most.is_nan());
            *most = if new { x } else { *most };
            *first = if new { tap } else { *first };
        }
        #[inline(always)]
        fn fixed<T: Real, const S: usize>(most: &mut [T], first: &mut [u32], x: &[T], tap: u32) {
            let Some((last, head)) = most.split_last_mut() else { return };
            for ((most, first), x) in head.iter_mut().zip(&mut *first).zip(x.chunks_exact(S)) {
                note(most, first, x[0], tap);
            }
            note(last, &mut first[head.len()], x[head.len() * S], tap);
        }
        match stride {
            1 => fixed::<T, 1>(most, first, x, tap),
            2 => fixed::<T, 2>(most, first, x, tap),
            _ => {
                for ((most, first), &x) in most.iter_mut().zip(first).zip(x.iter().step_by(stride)) {
                    note(most, first, x, tap);
                }
            }
        }
    }
}
