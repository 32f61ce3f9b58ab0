//! Windowed maxima and means, and their gradients.
//!
//! The gradient of max-pool reads the input again instead of stored indices:
//! each window's first maximum is found anew, which costs a comparison per tap
//! and no memory. Padding is never a maximum; NaN always is, as in PyTorch.

mod maximum;
mod mean;
mod rows;

pub(super) use maximum::{max_pool, max_pool_grad};
pub(super) use mean::{avg_pool, avg_pool_grad};

use std::ops::Range;

use sstep_autodiff::{PoolAttrs, Span, Window};

use super::parts::lift;
use crate::real::Real;
use crate::view::In;

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

    /// Elements under windows `j`.
    fn read(&self, j: &Range<usize>) -> Range<usize> {
        let span = self.window.reads(Span::from(j.clone()), self.extent);
        span.lo..span.hi.max(span.lo)
    }

    /// Windows that have an element of `span` under them.
    fn covering(&self, span: Range<usize>) -> Range<usize> {
        let readers = self.window.readers(Span::from(span), self.n_windows);
        readers.lo..readers.hi.max(readers.lo)
    }

    /// Windows among `j` that have nothing but elements under them.
    fn inner(&self, j: &Range<usize>) -> Range<usize> {
        let Window {
            kernel,
            stride,
            pad,
            ..
        } = self.window;
        let last = (self.extent + pad)
            .checked_sub(kernel)
            .map_or(0, |room| room / stride + 1);
        let lo = pad.div_ceil(stride).clamp(j.start, j.end);
        lo..last.clamp(lo, j.end)
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

/// Folds what lies under each window of row `(jd, jh, w)` into `y`, in
/// row-major order.
fn fold_taps<T: Real>(
    axes: &[Axis; 3],
    x: &In<'_, T>,
    [n, c, jd, jh]: [usize; 4],
    w: &Range<usize>,
    y: &mut [T],
    f: impl Fn(T, T) -> T + Copy,
) {
    let [depth, rows, columns] = axes;
    let Window { kernel, stride, .. } = columns.window;
    let (read, inner) = (columns.read(w), columns.inner(w));
    if read.is_empty() {
        return;
    }
    for td in depth.taps(jd) {
        for th in rows.taps(jh) {
            let (d, h) = (depth.under(jd, td), rows.under(jh, th));
            let x = x.row(n, c, d, h, read.clone());
            for j in (w.start..inner.start).chain(inner.end..w.end) {
                let y = &mut y[j - w.start];
                for t in columns.taps(j) {
                    *y = f(*y, x[columns.under(j, t) - read.start]);
                }
            }
            if !inner.is_empty() {
                let x = &x[columns.under(inner.start, 0) - read.start..];
                let y = &mut y[inner.start - w.start..inner.end - w.start];
                rows::fold(y, x, kernel, stride, f);
            }
        }
    }
}
