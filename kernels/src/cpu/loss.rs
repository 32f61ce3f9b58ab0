//! Losses and their gradients.
//!
//! Each is written so that no intermediate overflows. A class label is a real
//! number that must be a whole one from 0 up to the number of classes; any
//! other makes the loss, and the gradient at its position, `NaN` rather than
//! read what is not there.

use std::ops::Range;

use super::channels::{TOGETHER, pieces};
use super::lanes::{larger, map1, map2, sum1, sum2, update1, update2, wide};
use super::parts::{Channels, STREAM, each_part, each_row, reduce, region};
use super::pointwise::sigmoid;
use crate::Job;
use crate::real::Real;
use crate::view::{Box4, In, Out};

/// The largest logit of each position of a piece of a row.
fn largest<T: Real>(x: &In<'_, T>, [n, d, h]: [usize; 3], w: &Range<usize>) -> [T; TOGETHER] {
    let mut most = [T::NEG_INFINITY; TOGETHER];
    for c in 0..x.dims()[1] {
        update1(&mut most, x.row(n, c, d, h, w.clone()), larger);
    }
    most
}

/// `e^(x − most)`.
#[inline(always)]
fn exponential<T: Real>(x: T, most: T) -> T {
    (x - most).exp()
}

/// The class that a label names.
fn class<T: Real>(label: T, classes: usize) -> Option<usize> {
    let label = label.to_f64();
    let whole = label >= 0.0 && label < classes as f64 && label.fract() == 0.0;
    whole.then_some(label as usize)
}

/// Adds `Σ −log softmax(logits)[label]` over `region` to `state`.
pub(super) fn cross_entropy<T: Real>(inputs: &[In<'_, T>], region: &Box4, state: &mut [f64]) {
    let (x, labels) = (&inputs[0], &inputs[1]);
    let classes = x.dims()[1];
    reduce(
        region,
        classes,
        Channels::All,
        |b| {
            let mut loss = 0.0;
            for (d, h) in b.rows() {
                for w in pieces(&b.w) {
                    let most = largest(x, [b.n, d, h], &w);
                    let (mut e, mut total) = ([T::ZERO; TOGETHER], [T::ZERO; TOGETHER]);
                    for c in 0..classes {
                        map2(x.row(b.n, c, d, h, w.clone()), &most, &mut e, exponential);
                        update1(&mut total, &e, |t, e| t + e);
                    }
                    let labels = labels.row(b.n, 0, d, h, w.clone());
                    for (i, &label) in labels.iter().enumerate() {
                        loss += class(label, classes).map_or(f64::NAN, |c| {
                            let x = x.row(b.n, c, d, h, w.start + i..w.start + i + 1)[0];
                            total[i].to_f64().ln() + (most[i].to_f64() - x.to_f64())
                        });
                    }
                }
            }
            loss
        },
        |_, loss| state[0] += loss,
    );
}

/// `(logits, labels, ḡ)` → `(softmax − onehot) ḡ / count`.
pub(super) fn cross_entropy_grad<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let (x, labels) = (&job.inputs[0], &job.inputs[1]);
    let [batch, classes, spatial @ ..] = x.dims();
    let count = (batch * spatial.iter().product::<usize>()) as f64;
    let share = T::from_f64(job.inputs[2].flat()[0].to_f64() / count);
    let region = region(&job.region, out.layout());
    each_part(out, &region, Channels::All, STREAM, |mut part| {
        let (n, d) = (part.n, part.d);
        for h in part.h.clone() {
            for w in pieces(&part.w) {
                let at = w.start - part.w.start..w.end - part.w.start;
                let most = largest(x, [n, d, h], &w);
                let mut scale = [T::ZERO; TOGETHER];
                for c in 0..classes {
                    let y = &mut part.row(c, h)[at.clone()];
                    map2(x.row(n, c, d, h, w.clone()), &most, y, exponential);
                    update1(&mut scale, y, |total, y| total + y);
                }
                // A label that names no class spoils every channel.
                let labels = labels.row(n, 0, d, h, w.clone());
                for (s, &label) in scale.iter_mut().zip(labels) {
                    let known = class(label, classes).is_some();
                    *s = if known {
                        share / *s
                    } else {
                        T::from_f64(f64::NAN)
                    };
                }
                for c in 0..classes {
                    let y = &mut part.row(c, h)[at.clone()];
                    let this = T::from_f64(c as f64);
                    update2(y, &scale, labels, |y, scale, label| {
                        let p = y * scale;
                        if label == this { p - share } else { p }
                    });
                }
            }
        }
    });
}

/// Adds the sum of `f` of each pair of rows of `region` to `state`.
fn sum_pairs<T: Real>(
    inputs: &[In<'_, T>],
    region: &Box4,
    state: &mut [f64],
    f: impl Fn(&[T], &[T]) -> f64 + Sync,
) {
    let (x, t) = (&inputs[0], &inputs[1]);
    reduce(
        region,
        x.dims()[1],
        Channels::Each,
        |b| {
            let row = |(d, h)| {
                let x = x.row(b.n, b.c.start, d, h, b.w.clone());
                f(x, t.row(b.n, b.c.start, d, h, b.w.clone()))
            };
            b.rows().map(row).sum::<f64>()
        },
        |_, sum| state[0] += sum,
    );
}

/// `x̄ = f(x, target) · ḡ / count`.
fn grad_of_pairs<T: Real>(
    job: &Job<'_, T>,
    out: &mut Out<'_, T>,
    f: impl Fn(T, T) -> T + Copy + Sync,
) {
    let (x, t) = (&job.inputs[0], &job.inputs[1]);
    let count: usize = x.dims().iter().product();
    let share = T::from_f64(job.inputs[2].flat()[0].to_f64() / count as f64);
    let region = region(&job.region, out.layout());
    each_row(out, &region, |n, c, d, h, y| {
        let w = region.s(2);
        let (x, t) = (x.row(n, c, d, h, w.clone()), t.row(n, c, d, h, w));
        map2(x, t, y, |x, t| f(x, t) * share);
    });
}

/// Adds `Σ max(x, 0) − x t + ln(1 + e^−|x|)` over `region` to `state`.
pub(super) fn bce<T: Real>(inputs: &[In<'_, T>], region: &Box4, state: &mut [f64]) {
    sum_pairs(inputs, region, state, |x, t| {
        // The terms of a piece, then their sum: together they would not be
        // vectorised.
        let mut terms = [T::ZERO; TOGETHER];
        let mut sum = 0.0;
        for (x, t) in x.chunks(TOGETHER).zip(t.chunks(TOGETHER)) {
            let terms = &mut terms[..x.len()];
            bce_terms(x, t, terms);
            sum += sum1(terms, T::to_f64);
        }
        sum
    });
}

wide! {
    /// A loop of its own, because a closure of this length would be called for
    /// each element.
    fn bce_terms[T: Real](x: &[T], t: &[T], terms: &mut [T]) {
        for ((term, &x), &t) in terms.iter_mut().zip(x).zip(t) {
            let positive = if x <= T::ZERO { T::ZERO } else { x };
            let magnitude = if x <= T::ZERO { -x } else { x };
            *term = (positive - x * t) + (-magnitude).exp().ln_1p();
        }
    }
}

/// `(logits, targets, ḡ)` → `(σ(x) − t) ḡ / count`.
pub(super) fn bce_grad<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>) {
    grad_of_pairs(job, out, |x, t| sigmoid(x) - t);
}

/// Adds `Σ (x − t)²` over `region` to `state`.
pub(super) fn mse<T: Real>(inputs: &[In<'_, T>], region: &Box4, state: &mut [f64]) {
    sum_pairs(inputs, region, state, |x, t| {
        sum2(x, t, |x, t| {
            let off = x.to_f64() - t.to_f64();
            off * off
        })
    });
}

/// `(x, target, ḡ)` → `2 (x − t) ḡ / count`.
pub(super) fn mse_grad<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>) {
    grad_of_pairs(job, out, |x, t| (x - t) + (x - t));
}

/// Adds `Σ p t`, `Σ p`, `Σ t` over `region` to `state`, three doubles per
/// channel of a sample.
pub(super) fn dice_sums<T: Real>(inputs: &[In<'_, T>], region: &Box4, state: &mut [f64]) {
    let (p, t) = (&inputs[0], &inputs[1]);
    let channels = p.dims()[1];
    reduce(
        region,
        channels,
        Channels::Each,
        |b| {
            let mut sums = [0.0; 3];
            for (d, h) in b.rows() {
                let p = p.row(b.n, b.c.start, d, h, b.w.clone());
                let t = t.row(b.n, b.c.start, d, h, b.w.clone());
                sums[0] += sum2(p, t, |p, t| p.to_f64() * t.to_f64());
                sums[1] += sum1(p, T::to_f64);
                sums[2] += sum1(t, T::to_f64);
            }
            sums
        },
        |b, sums| {
            let all = &mut state[3 * (b.n * channels + b.c.start)..][..3];
            all.iter_mut().zip(sums).for_each(|(all, sum)| *all += sum);
        },
    );
}

/// `(t, sums_grad)` → `p̄ = t · grad of Σpt + grad of Σp`.
pub(super) fn dice_sums_grad<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let (t, grad) = (&job.inputs[0], job.inputs[1].flat());
    let channels = t.dims()[1];
    let region = region(&job.region, out.layout());
    each_row(out, &region, |n, c, d, h, p| {
        let i = 3 * (n * channels + c);
        let (of_product, of_sum) = (grad[i], grad[i + 1]);
        map1(t.row(n, c, d, h, region.s(2)), p, |t| {
            t * of_product + of_sum
        });
    });
}

/// Numerator and denominator of one soft Dice coefficient.
fn dice<T: Real>(sums: &[T], smooth: f64) -> (f64, f64) {
    let [both, p, t] = [sums[0], sums[1], sums[2]].map(T::to_f64);
    (2.0 * both + smooth, p + t + smooth)
}

/// `(sums[N, C, 3])` → `1 − mean of (2 Σpt + s) / (Σp + Σt + s)`. With `s = 0`
/// an empty channel is `NaN`.
pub(super) fn dice_loss<T: Real>(smooth: f64, sums: &In<'_, T>, out: &mut [T]) {
    let each = sums.flat().chunks_exact(3).map(|sums| {
        let (above, below) = dice(sums, smooth);
        above / below
    });
    let count = each.len() as f64;
    out[0] = T::from_f64(1.0 - each.sum::<f64>() / count);
}

/// `(sums, ḡ)` → gradient of the sums.
pub(super) fn dice_loss_grad<T: Real>(smooth: f64, inputs: &[In<'_, T>], out: &mut [T]) {
    let sums = inputs[0].flat();
    let share = inputs[1].flat()[0].to_f64() / (sums.len() / 3) as f64;
    for (grad, sums) in out.chunks_exact_mut(3).zip(sums.chunks_exact(3)) {
        let (above, below) = dice(sums, smooth);
        let of_sums = T::from_f64(share * above / (below * below));
        grad[0] = T::from_f64(-2.0 * share / below);
        grad[1] = of_sums;
        grad[2] = of_sums;
    }
}
