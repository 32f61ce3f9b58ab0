//! Max-pool and its gradient.

use std::ops::Range;

use sstep_autodiff::{PoolAttrs, Window};

use super::rows::{Winner, exceeds, note, spread};
use super::{Axis, axes, fold_taps};
use crate::Job;
use crate::cpu::lanes::larger;
use crate::cpu::parts::{Channels, Part, STREAM, each_part, each_row};
use crate::real::Real;
use crate::view::{In, Out};

/// `(x)` → windowed maximum.
pub(in crate::cpu) fn max_pool<T: Real>(a: &PoolAttrs, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let x = &job.inputs[0];
    let axes = axes(a, out.layout().shape.spatial().len(), x.dims(), out.dims());
    each_row(out, &job.region, |n, c, d, h, y| {
        y.fill(T::NEG_INFINITY);
        fold_taps(&axes, x, [n, c, d, h], &job.region.s(2), y, larger);
    });
}

/// Windows of a row whose maxima are sought together, in arrays that stay in
/// the first-level cache.
const TOGETHER: usize = 512;

/// `(x, ȳ)` → `x̄` of max-pool: each window's first maximum gets its `ȳ`, and an
/// element adds up its windows in row-major order.
pub(in crate::cpu) fn max_pool_grad<T: Real>(
    a: &PoolAttrs,
    job: &Job<'_, T>,
    out: &mut Out<'_, T>,
) {
    let (x, g) = (&job.inputs[0], &job.inputs[1]);
    let axes = axes(a, out.layout().shape.spatial().len(), out.dims(), g.dims());
    // A part seeks the maxima of windows across its edges again, so parts are
    // made larger than where nothing is repeated.
    each_part(out, &job.region, Channels::Each, 8 * STREAM, |mut part| {
        grad_of_part(&axes, x, g, &mut part);
    });
}

fn grad_of_part<T: Real>(axes: &[Axis; 3], x: &In<'_, T>, g: &In<'_, T>, part: &mut Part<'_, T>) {
    let [depth, rows, columns] = axes;
    let Window {
        kernel,
        stride,
        pad,
        ..
    } = columns.window;
    let (n, c, d) = (part.n, part.c.start, part.d);
    let (part_h, part_w) = (part.h.clone(), part.w.clone());
    for h in part_h.clone() {
        part.row(c, h).fill(T::ZERO);
    }
    let all = columns.covering(part_w.clone());
    let (mut most, mut first) = ([T::ZERO; TOGETHER], [0; TOGETHER]);
    for jd in depth.covering(d..d + 1) {
        let td = d + depth.window.pad - jd * depth.window.stride;
        for jh in rows.covering(part_h.clone()) {
            for start in all.clone().step_by(TOGETHER) {
                let j = start..(start + TOGETHER).min(all.end);
                first_maxima(axes, x, [n, c, jd, jh], &j, &mut most, &mut first);
                let g = g.row(n, c, jd, jh, j.clone());
                // The part's elements that these windows can reach, counted
                // from the padding on.
                let lo = (part_w.start + pad).max(j.start * stride);
                let hi = (part_w.end + pad).min((j.end - 1) * stride + kernel);
                for th in rows.taps(jh) {
                    let h = rows.under(jh, th);
                    if part_h.contains(&h) && lo < hi {
                        let row = &mut part.row(c, h)[lo - pad - part_w.start..][..hi - lo];
                        let tap = tap_number(axes, td, th, 0);
                        let winner = Winner::new(g, &first, tap);
                        spread(row, lo - j.start * stride, winner, kernel, stride);
                    }
                }
            }
        }
    }
}

/// Number of a tap within its window, in row-major order.
fn tap_number(axes: &[Axis; 3], td: usize, th: usize, tw: usize) -> u32 {
    ((td * axes[1].window.kernel + th) * axes[2].window.kernel + tw) as u32
}

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
    let Window { kernel, stride, .. } = columns.window;
    let (read, inner) = (columns.read(j), columns.inner(j));
    let edges = || (j.start..inner.start).chain(inner.end..j.end);
    let (depth_taps, row_taps) = (depth.taps(jd), rows.taps(jh));
    // A window of nothing but −∞ keeps the tap of its first element.
    most[..j.len()].fill(T::NEG_INFINITY);
    first[..j.len()].fill(tap_number(axes, depth_taps.start, row_taps.start, 0));
    for edge in edges() {
        let tw = columns.taps(edge).start;
        first[edge - j.start] = tap_number(axes, depth_taps.start, row_taps.start, tw);
    }
    for td in depth_taps {
        for th in row_taps.clone() {
            let (d, h) = (depth.under(jd, td), rows.under(jh, th));
            let x = x.row(n, c, d, h, read.clone());
            for edge in edges() {
                for t in columns.taps(edge) {
                    let x = x[columns.under(edge, t) - read.start];
                    if exceeds(x, most[edge - j.start]) {
                        most[edge - j.start] = x;
                        first[edge - j.start] = tap_number(axes, td, th, t);
                    }
                }
            }
            if !inner.is_empty() {
                let x = &x[columns.under(inner.start, 0) - read.start..];
                let at = inner.start - j.start..inner.end - j.start;
                let tap = tap_number(axes, td, th, 0);
                note(
                    &mut most[at.clone()],
                    &mut first[at],
                    x,
                    kernel,
                    stride,
                    tap,
                );
            }
        }
    }
}
