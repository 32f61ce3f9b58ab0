//! The definition, as loops: any element type, no scratch.
//!
//! Rows are summed in chunks that stay on the stack, so that the inner loop
//! runs along a row and vectorises. Everything is compiled twice, with and
//! without FMA instructions, because a fused multiply-add without them is a
//! slow library call; the results are the same.

use std::ops::Range;

use super::{Geom, tasks};
use crate::Job;
use crate::real::Real;
use crate::view::{In, Out};

/// Columns summed at a time: 2 KiB of doubles.
const CHUNK: usize = 256;

/// Partial sums of a dot product.
const LANES: usize = 8;

/// Compiles `$body` with FMA where the machine has it, and without elsewhere.
macro_rules! with_fma {
    ($fast:ident, $body:ident, ($($arg:ident: $ty:ty),*)) => {
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = "avx2,fma")]
        fn $fast<T: Real>($($arg: $ty),*) {
            $body($($arg),*)
        }

        #[cfg(not(target_arch = "x86_64"))]
        fn $fast<T: Real>($($arg: $ty),*) {
            $body($($arg),*)
        }
    };
}

/// Whether the machine has the instructions of the fast kernels.
#[cfg(target_arch = "x86_64")]
pub(super) fn has_fma() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")
}

/// Whether the machine has the instructions of the fast kernels.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn has_fma() -> bool {
    false
}

/// What forward and transposed rows need to know.
struct Rows<'a, T> {
    geom: &'a Geom,
    x: In<'a, T>,
    w: &'a [T],
    bias: Option<&'a [T]>,
    out: Out<'a, T>,
}

/// One output row, cut to at most [`CHUNK`] columns.
struct Row {
    n: usize,
    channel: usize,
    d: usize,
    h: usize,
    cols: Range<usize>,
}

with_fma!(conv_row_fma, conv_row, (rows: &Rows<T>, row: &Row));
with_fma!(transpose_row_fma, transpose_row, (rows: &Rows<T>, row: &Row));
with_fma!(filter_fma, filter, (sum: &Correlate<T>, k: usize, c: usize, into: &mut [T]));

/// See [`super::conv`].
pub(super) fn conv<T: Real>(geom: &Geom, job: &Job<T>, out: &Out<T>) {
    let taps = geom.taps() * job.inputs[0].dims()[1] / geom.groups;
    each_row(geom, job, out, taps, |rows, row| {
        if has_fma() {
            // SAFETY: the machine has the features it is compiled for.
            #[allow(unused_unsafe)]
            unsafe {
                conv_row_fma(rows, row)
            }
        } else {
            conv_row(rows, row)
        }
    });
}

/// See [`super::transpose()`].
pub(super) fn transpose<T: Real>(geom: &Geom, job: &Job<T>, out: &Out<T>) {
    let taps = geom.taps() * job.inputs[0].dims()[1] / geom.groups;
    each_row(geom, job, out, taps, |rows, row| {
        if has_fma() {
            // SAFETY: the machine has the features it is compiled for.
            #[allow(unused_unsafe)]
            unsafe {
                transpose_row_fma(rows, row)
            }
        } else {
            transpose_row(rows, row)
        }
    });
}

/// Calls `f` on every row of the job's region, all channels.
fn each_row<'a, T: Real>(
    geom: &Geom,
    job: &Job<'a, T>,
    out: &Out<'a, T>,
    macs_per_element: usize,
    f: impl Fn(&Rows<T>, &Row) + Sync,
) {
    let rows = Rows {
        geom,
        x: job.inputs[0],
        w: job.inputs[1].flat(),
        bias: job.inputs.get(2).map(|b| b.flat()),
        out: *out,
    };
    let region = &job.region;
    let channels = out.dims()[1];
    let (ds, hs, ws) = (region.s(0), region.s(1), region.s(2));
    let n_tasks = region.n().len() * channels * ds.len() * hs.len();
    let n_workers = tasks::n_workers(n_tasks, n_tasks * ws.len() * macs_per_element);
    tasks::run(n_tasks, n_workers, &mut [], |index, _| {
        let (index, h) = (index / hs.len(), hs.start + index % hs.len());
        let (index, d) = (index / ds.len(), ds.start + index % ds.len());
        let (n, channel) = (region.n().start + index / channels, index % channels);
        for lo in ws.clone().step_by(CHUNK) {
            let cols = lo..(lo + CHUNK).min(ws.end);
            f(
                &rows,
                &Row {
                    n,
                    channel,
                    d,
                    h,
                    cols,
                },
            );
        }
    });
}

/// `index` as a position within `extent`, unless it lies in the padding.
#[inline(always)]
pub(super) fn inside(index: isize, extent: usize) -> Option<usize> {
    usize::try_from(index).ok().filter(|&i| i < extent)
}

/// The part of `0..len` whose positions `first + i·step` lie in `0..extent`.
#[inline(always)]
pub(super) fn valid(first: isize, step: usize, len: usize, extent: usize) -> Range<usize> {
    let ceil = |v: isize| {
        if v <= 0 {
            0
        } else {
            (v as usize).div_ceil(step)
        }
    };
    let hi = ceil(extent as isize - first).min(len);
    ceil(-first).min(hi)..hi
}

/// `acc[i·step] += w · xs[i]`, or zero instead of `xs` in the padding: the sum
/// then has the same terms everywhere.
#[inline(always)]
fn axpy<T: Real>(acc: &mut [T], w: T, xs: &[T], acc_step: usize, x_step: usize, len: usize) {
    if acc_step == 1 && x_step == 1 {
        for (a, &x) in acc[..len].iter_mut().zip(&xs[..len]) {
            *a = x.fma(w, *a);
        }
    } else {
        for i in 0..len {
            let a = &mut acc[i * acc_step];
            *a = xs[i * x_step].fma(w, *a);
        }
    }
}

#[inline(always)]
fn axpy_zero<T: Real>(acc: &mut [T], w: T, step: usize, range: Range<usize>) {
    for i in range {
        acc[i * step] = T::ZERO.fma(w, acc[i * step]);
    }
}

#[inline(always)]
fn conv_row<T: Real>(rows: &Rows<T>, row: &Row) {
    let Rows {
        geom: g,
        x,
        w,
        bias,
        ..
    } = rows;
    let [_, channels, x_d, x_h, x_w] = x.dims();
    let in_group = channels / g.groups;
    let group = row.channel / (rows.out.dims()[1] / g.groups);
    let taps = g.taps();
    let len = row.cols.len();
    let start = |s: usize, j: usize, t: usize| {
        (j * g.stride[s] + t * g.dilation[s]) as isize - g.pad[s] as isize
    };
    let mut acc = [T::ZERO; CHUNK];
    for c in 0..in_group {
        let filter = &w[(row.channel * in_group + c) * taps..][..taps];
        let c = group * in_group + c;
        let mut t = 0;
        for td in 0..g.kernel[0] {
            for th in 0..g.kernel[1] {
                let d = inside(start(0, row.d, td), x_d);
                let h = inside(start(1, row.h, th), x_h);
                for tw in 0..g.kernel[2] {
                    let weight = filter[t];
                    t += 1;
                    let first = start(2, row.cols.start, tw);
                    let (Some(d), Some(h)) = (d, h) else {
                        axpy_zero(&mut acc, weight, 1, 0..len);
                        continue;
                    };
                    let ok = valid(first, g.stride[2], len, x_w);
                    axpy_zero(&mut acc, weight, 1, 0..ok.start);
                    axpy_zero(&mut acc, weight, 1, ok.end..len);
                    if !ok.is_empty() {
                        let lo = (first + (ok.start * g.stride[2]) as isize) as usize;
                        let hi = lo + (ok.len() - 1) * g.stride[2] + 1;
                        let xs = x.row(row.n, c, d, h, lo..hi);
                        axpy(&mut acc[ok.start..], weight, xs, 1, g.stride[2], ok.len());
                    }
                }
            }
        }
    }
    store(rows, row, &acc, *bias);
}

#[inline(always)]
fn transpose_row<T: Real>(rows: &Rows<T>, row: &Row) {
    let Rows {
        geom: g,
        x,
        w,
        bias,
        ..
    } = rows;
    let [_, channels, x_d, x_h, x_w] = x.dims();
    let in_group = channels / g.groups;
    let out_group = rows.out.dims()[1] / g.groups;
    let (group, c) = (row.channel / out_group, row.channel % out_group);
    let taps = g.taps();
    // Position `i` is reached by tap `t` from `(i + p − t·d) / s`, if whole.
    let source = |s: usize, i: usize, t: usize| {
        let at = (i + g.pad[s]) as isize - (t * g.dilation[s]) as isize;
        let step = g.stride[s] as isize;
        (at.rem_euclid(step) == 0).then(|| at.div_euclid(step))
    };
    let step = g.stride[2];
    let mut acc = [T::ZERO; CHUNK];
    for k in group * in_group..(group + 1) * in_group {
        let filter = &w[(k * out_group + c) * taps..][..taps];
        for td in 0..g.kernel[0] {
            let Some(d) = source(0, row.d, td) else {
                continue;
            };
            for th in 0..g.kernel[1] {
                let Some(h) = source(1, row.h, th) else {
                    continue;
                };
                for tw in 0..g.kernel[2] {
                    let weight = filter[(td * g.kernel[1] + th) * g.kernel[2] + tw];
                    // The first column of the chunk that this tap reaches.
                    let at = (row.cols.start + g.pad[2]) as isize - (tw * g.dilation[2]) as isize;
                    let skip = (-at).rem_euclid(step as isize) as usize;
                    let len = row.cols.len().saturating_sub(skip).div_ceil(step);
                    if len == 0 {
                        continue;
                    }
                    let first = (at + skip as isize) / step as isize;
                    let acc = &mut acc[skip..];
                    let (Some(d), Some(h)) = (inside(d, x_d), inside(h, x_h)) else {
                        axpy_zero(acc, weight, step, 0..len);
                        continue;
                    };
                    let ok = valid(first, 1, len, x_w);
                    axpy_zero(acc, weight, step, 0..ok.start);
                    axpy_zero(acc, weight, step, ok.end..len);
                    if !ok.is_empty() {
                        let lo = (first + ok.start as isize) as usize;
                        let xs = x.row(row.n, k, d, h, lo..lo + ok.len());
                        axpy(&mut acc[ok.start * step..], weight, xs, step, 1, ok.len());
                    }
                }
            }
        }
    }
    store(rows, row, &acc, *bias);
}

#[inline(always)]
fn store<T: Real>(rows: &Rows<T>, row: &Row, acc: &[T; CHUNK], bias: Option<&[T]>) {
    // SAFETY: every (row, chunk) is visited by one task only.
    let out = unsafe {
        rows.out
            .row_mut(row.n, row.channel, row.d, row.h, row.cols.clone())
    };
    match bias {
        Some(bias) => {
            for (o, &a) in out.iter_mut().zip(acc) {
                *o = a + bias[row.channel];
            }
        }
        None => out.copy_from_slice(&acc[..row.cols.len()]),
    }
}

/// What the weight gradient of one filter needs to know.
struct Correlate<'a, T> {
    geom: &'a Geom,
    job: &'a Job<'a, T>,
}

/// See [`super::weight_grad`].
pub(super) fn weight_grad<T: Real>(geom: &Geom, job: &Job<T>, w: &mut [T]) {
    let sum = Correlate { geom, job };
    let taps = geom.taps();
    let in_group = job.inputs[0].dims()[1] / geom.groups;
    let n_tasks = w.len() / taps;
    let n_workers = tasks::n_workers(n_tasks, w.len() * job.region.points());
    let cell = tasks::DisjointMut::new(w);
    tasks::run(n_tasks, n_workers, &mut [], |index, _| {
        // SAFETY: each filter is visited by one task only.
        let into = unsafe { cell.part(index * taps, taps) };
        let (k, c) = (index / in_group, index % in_group);
        if has_fma() {
            // SAFETY: the machine has the features it is compiled for.
            #[allow(unused_unsafe)]
            unsafe {
                filter_fma(&sum, k, c, into)
            }
        } else {
            filter(&sum, k, c, into)
        }
    });
}

/// Adds the gradient of filter `(k, c)`: rows are summed in the element type,
/// the rows' sums in doubles.
#[inline(always)]
fn filter<T: Real>(sum: &Correlate<T>, k: usize, c: usize, into: &mut [T]) {
    let Correlate { geom: g, job } = sum;
    let (x, y) = (&job.inputs[0], &job.inputs[1]);
    let [_, channels, x_d, x_h, x_w] = x.dims();
    let c = k / (y.dims()[1] / g.groups) * (channels / g.groups) + c;
    let region = &job.region;
    let cols = region.s(2);
    let start = |s: usize, j: usize, t: usize| {
        (j * g.stride[s] + t * g.dilation[s]) as isize - g.pad[s] as isize
    };
    let mut t = 0;
    for td in 0..g.kernel[0] {
        for th in 0..g.kernel[1] {
            for tw in 0..g.kernel[2] {
                let first = start(2, cols.start, tw);
                let ok = valid(first, g.stride[2], cols.len(), x_w);
                let mut total = 0.0;
                for n in region.n() {
                    for d in region.s(0) {
                        for h in region.s(1) {
                            let (Some(xd), Some(xh)) =
                                (inside(start(0, d, td), x_d), inside(start(1, h, th), x_h))
                            else {
                                continue;
                            };
                            if ok.is_empty() {
                                continue;
                            }
                            let lo = (first + (ok.start * g.stride[2]) as isize) as usize;
                            let hi = lo + (ok.len() - 1) * g.stride[2] + 1;
                            let xs = x.row(n, c, xd, xh, lo..hi);
                            let ys = y.row(n, k, d, h, cols.start + ok.start..cols.start + ok.end);
                            total += dot(xs, g.stride[2], ys).to_f64();
                        }
                    }
                }
                into[t] += T::from_f64(total);
                t += 1;
            }
        }
    }
}

/// `Σ xs[i·step] · ys[i]`.
#[inline(always)]
fn dot<T: Real>(xs: &[T], step: usize, ys: &[T]) -> T {
    let mut lanes = [T::ZERO; LANES];
    if step == 1 {
        let (xs, ys) = (xs.chunks(LANES), ys.chunks(LANES));
        for (x, y) in xs.zip(ys) {
            if let (Ok(x), Ok(y)) = (<&[T; LANES]>::try_from(x), <&[T; LANES]>::try_from(y)) {
                for i in 0..LANES {
                    lanes[i] = x[i].fma(y[i], lanes[i]);
                }
            } else {
                for ((a, &x), &y) in lanes.iter_mut().zip(x).zip(y) {
                    *a = x.fma(y, *a);
                }
            }
        }
    } else {
        for (i, &y) in ys.iter().enumerate() {
            lanes[i % LANES] = xs[i * step].fma(y, lanes[i % LANES]);
        }
    }
    lanes.iter().fold(T::ZERO, |a, &b| a + b)
}
