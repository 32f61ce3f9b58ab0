//! Pooling along one row: the loops that must be fast.
//!
//! Kernel and stride of the usual pools are constants for the compiler, which
//! then loads whole vectors and shuffles; any other takes the same steps one
//! tap at a time. In all of them an element meets its taps, or its windows, in
//! ascending order.

use std::ops::Range;

use crate::cpu::lanes::wide;
use crate::real::Real;

/// Calls `$fixed::<…, K, S>(…)` if kernel and stride are usual, else `$other`.
macro_rules! usual {
    ($kernel:expr, $stride:expr, $fixed:ident::<$($g:ty),*>($($arg:expr),*), $other:expr) => {
        match ($kernel, $stride) {
            (2, 1) => $fixed::<$($g,)* 2, 1>($($arg),*),
            (2, 2) => $fixed::<$($g,)* 2, 2>($($arg),*),
            (3, 1) => $fixed::<$($g,)* 3, 1>($($arg),*),
            (3, 2) => $fixed::<$($g,)* 3, 2>($($arg),*),
            _ => $other,
        }
    };
}

wide! {
    /// `y[j] = f(… f(f(y[j], x[j S]), x[j S + 1]) …, x[j S + K − 1])`.
    ///
    /// # Panics
    /// If `x` ends before the last window.
    pub(super) fn fold[T: Real, F: Fn(T, T) -> T](
        y: &mut [T], x: &[T], kernel: usize, stride: usize, f: F,
    ) {
        assert!(y.is_empty() || x.len() >= (y.len() - 1) * stride + kernel);
        #[inline(always)]
        fn fixed<T: Real, F: Fn(T, T) -> T, const K: usize, const S: usize>(
            y: &mut [T], x: &[T], f: F,
        ) {
            for (j, y) in y.iter_mut().enumerate() {
                for t in 0..K {
                    // SAFETY: `x` reaches to the last tap of the last window.
                    *y = f(*y, unsafe { *x.get_unchecked(j * S + t) });
                }
            }
        }
        usual!(kernel, stride, fixed::<T, F>(y, x, f), {
            for (j, y) in y.iter_mut().enumerate() {
                *y = x[j * stride..j * stride + kernel].iter().fold(*y, |y, &x| f(y, x));
            }
        });
    }
}

/// Whether `x` is larger than the maximum `most` of what came before.
#[inline(always)]
pub(super) fn exceeds<T: Real>(x: T, most: T) -> bool {
    // Without short circuits, which would be branches.
    ((x > most) | x.is_nan()) & !most.is_nan()
}

wide! {
    /// Where an element under window `j` exceeds `most[j]`, notes it, and its
    /// tap in `first[j]`; the row's first tap has number `tap`.
    ///
    /// # Panics
    /// If `x` ends before the last window, or there are fewer taps than windows.
    pub(super) fn note[T: Real](
        most: &mut [T], first: &mut [u32], x: &[T], kernel: usize, stride: usize, tap: u32,
    ) {
        assert!(most.is_empty() || x.len() >= (most.len() - 1) * stride + kernel);
        let first = &mut first[..most.len()];
        #[inline(always)]
        fn fixed<T: Real, const K: usize, const S: usize>(
            most: &mut [T], first: &mut [u32], x: &[T], tap: u32,
        ) {
            for (j, (most, first)) in most.iter_mut().zip(first).enumerate() {
                let (mut largest, mut at) = (*most, *first);
                for t in 0..K {
                    // SAFETY: `x` reaches to the last tap of the last window.
                    let x = unsafe { *x.get_unchecked(j * S + t) };
                    let new = exceeds(x, largest);
                    largest = if new { x } else { largest };
                    at = if new { tap + t as u32 } else { at };
                }
                (*most, *first) = (largest, at);
            }
        }
        usual!(kernel, stride, fixed::<T>(most, first, x, tap), {
            for (j, (most, first)) in most.iter_mut().zip(first).enumerate() {
                for (t, &x) in x[j * stride..j * stride + kernel].iter().enumerate() {
                    if exceeds(x, *most) {
                        *most = x;
                        *first = tap + t as u32;
                    }
                }
            }
        });
    }
}

/// What windows give back to the elements under them.
pub(super) trait Share<T>: Copy {
    /// What window `j` gives to the element under its tap `t`.
    ///
    /// # Safety
    /// `j` is less than the number of windows.
    unsafe fn to(&self, j: usize, t: usize) -> T;
    /// Number of windows.
    fn len(&self) -> usize;
}

/// Each element the same.
#[derive(Clone, Copy)]
pub(super) struct Even<'a, T>(pub(super) &'a [T]);

impl<T: Real> Share<T> for Even<'_, T> {
    #[inline(always)]
    unsafe fn to(&self, j: usize, _: usize) -> T {
        // SAFETY: promised by the caller.
        unsafe { *self.0.get_unchecked(j) }
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// All to the tap noted in `first`; the row's first tap has number `tap`.
#[derive(Clone, Copy)]
pub(super) struct Winner<'a, T> {
    share: &'a [T],
    first: &'a [u32],
    tap: u32,
}

impl<'a, T: Real> Winner<'a, T> {
    pub(super) fn new(share: &'a [T], first: &'a [u32], tap: u32) -> Self {
        Winner {
            share,
            first: &first[..share.len()],
            tap,
        }
    }
}

impl<T: Real> Share<T> for Winner<'_, T> {
    #[inline(always)]
    unsafe fn to(&self, j: usize, t: usize) -> T {
        // SAFETY: promised by the caller; both slices have that length.
        let (share, first) =
            unsafe { (*self.share.get_unchecked(j), *self.first.get_unchecked(j)) };
        if first == self.tap + t as u32 {
            share
        } else {
            T::ZERO
        }
    }

    fn len(&self) -> usize {
        self.share.len()
    }
}

/// Adds what the windows give to row `x`. Elements are counted from tap 0 of
/// window 0, and `x` starts with number `offset`: number `u` gets the shares of
/// all `(j, t)` with `j S + t = u`, `j` ascending.
pub(super) fn spread<T: Real, W: Share<T>>(
    x: &mut [T],
    offset: usize,
    windows: W,
    kernel: usize,
    stride: usize,
) {
    let inside = offset..offset + x.len();
    // Strides' worth of elements all of whose windows are here.
    let usual = matches!((kernel, stride), (2 | 3, 1 | 2));
    let before = (kernel - 1) / stride;
    let lo = offset.div_ceil(stride).max(before);
    let hi = (inside.end / stride).min(windows.len());
    let whole = if usual && lo < hi { lo..hi } else { 0..0 };
    if !whole.is_empty() {
        let x = &mut x[whole.start * stride - offset..whole.end * stride - offset];
        spread_whole(x, whole.start, windows, kernel, stride);
    }
    // The rest, one by one; a descending tap is an ascending window.
    let done = whole.start * stride..whole.end * stride;
    for t in (0..kernel).rev() {
        let first = |u: usize| u.saturating_sub(t).div_ceil(stride).min(windows.len());
        let (start, end) = (first(inside.start), first(inside.end));
        let skip = if done.is_empty() {
            end..end
        } else {
            first(done.start)..first(done.end)
        };
        let (left, right): (Range<usize>, Range<usize>) =
            (start..skip.start.min(end), skip.end.max(start)..end);
        for j in left.chain(right) {
            // SAFETY: `first` clips to the number of windows.
            x[j * stride + t - offset] += unsafe { windows.to(j, t) };
        }
    }
}

wide! {
    /// [`spread`] where `x` starts under tap 0 of window `q`, and all windows
    /// that reach an element exist.
    fn spread_whole[T: Real, W: Share<T>](
        x: &mut [T], q: usize, windows: W, kernel: usize, stride: usize,
    ) {
        let n = x.len() / stride;
        assert!(x.len() == n * stride && q >= (kernel - 1) / stride && q + n <= windows.len());
        #[inline(always)]
        fn fixed<T: Real, W: Share<T>, const K: usize, const S: usize>(
            x: &mut [T], q: usize, windows: W,
        ) {
            for (i, x) in x.chunks_exact_mut(S).enumerate() {
                for (phase, x) in x.iter_mut().enumerate() {
                    for back in (0..=(K - 1) / S).rev() {
                        let t = phase + back * S;
                        if t < K {
                            // SAFETY: `q − back ≥ 0` and `q + i` is a window.
                            *x += unsafe { windows.to(q + i - back, t) };
                        }
                    }
                }
            }
        }
        usual!(kernel, stride, fixed::<T, W>(x, q, windows), unreachable!("only usual pools come here"));
    }
}
