//! Ops that look at all channels of a position.

use super::lanes::{self, map2, update1, update2};
use super::parts::{Channels, STREAM, each_part, each_row, region};
use crate::Job;
use crate::real::Real;
use crate::view::Out;

/// Positions of a row whose channels are worked on together, in arrays that
/// stay in the first-level cache.
pub(super) const TOGETHER: usize = 256;

/// Splits the columns `w` into pieces of at most [`TOGETHER`].
pub(super) fn pieces(
    w: &std::ops::Range<usize>,
) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
    let (start, end) = (w.start, w.end);
    (start..end)
        .step_by(TOGETHER)
        .map(move |at| at..(at + TOGETHER).min(end))
}

/// `(x)` → softmax over channels: `e^(x − max) / Σ e^(x − max)`.
pub(super) fn softmax<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let x = &job.inputs[0];
    let region = region(&job.region, out.layout());
    each_part(out, &region, Channels::All, STREAM, |mut part| {
        let (n, d, channels) = (part.n, part.d, part.c.clone());
        for h in part.h.clone() {
            for w in pieces(&part.w) {
                let at = w.start - part.w.start..w.end - part.w.start;
                let (mut most, mut total) = ([T::NEG_INFINITY; TOGETHER], [T::ZERO; TOGETHER]);
                let (most, total) = (&mut most[..w.len()], &mut total[..w.len()]);
                for c in channels.clone() {
                    update1(most, x.row(n, c, d, h, w.clone()), lanes::larger);
                }
                for c in channels.clone() {
                    let y = &mut part.row(c, h)[at.clone()];
                    map2(x.row(n, c, d, h, w.clone()), most, y, |x, most| {
                        (x - most).exp()
                    });
                    update1(total, y, |t, y| t + y);
                }
                for c in channels.clone() {
                    let y = &mut part.row(c, h)[at.clone()];
                    update1(y, total, |y, total| y / total);
                }
            }
        }
    });
}

/// `(y, ȳ)` → `x̄ = y (ȳ − Σ_c y ȳ)`.
pub(super) fn softmax_grad<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let (y, g) = (&job.inputs[0], &job.inputs[1]);
    let region = region(&job.region, out.layout());
    each_part(out, &region, Channels::All, STREAM, |mut part| {
        let (n, d, channels) = (part.n, part.d, part.c.clone());
        for h in part.h.clone() {
            for w in pieces(&part.w) {
                let at = w.start - part.w.start..w.end - part.w.start;
                let mut mean = [T::ZERO; TOGETHER];
                let mean = &mut mean[..w.len()];
                for c in channels.clone() {
                    let (y, g) = (y.row(n, c, d, h, w.clone()), g.row(n, c, d, h, w.clone()));
                    update2(mean, y, g, |mean, y, g| mean + y * g);
                }
                for c in channels.clone() {
                    let (y, g) = (y.row(n, c, d, h, w.clone()), g.row(n, c, d, h, w.clone()));
                    let x = &mut part.row(c, h)[at.clone()];
                    x.copy_from_slice(mean);
                    update2(x, y, g, |mean, y, g| y * (g - mean));
                }
            }
        }
    });
}

/// `(x)` → sum over channels, in their order.
pub(super) fn channel_sum<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let x = &job.inputs[0];
    let region = region(&job.region, out.layout());
    each_row(out, &region, |n, _, d, h, y| {
        for (w, y) in pieces(&region.s(2)).zip(y.chunks_mut(TOGETHER)) {
            let mut total = [0.0; TOGETHER];
            let total = &mut total[..y.len()];
            for c in 0..x.dims()[1] {
                update1(total, x.row(n, c, d, h, w.clone()), |t: f64, x| {
                    t + x.to_f64()
                });
            }
            for (y, &t) in y.iter_mut().zip(&*total) {
                *y = T::from_f64(t);
            }
        }
    });
}
