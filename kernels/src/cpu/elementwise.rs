//! Ops that look at one position at a time.

use sstep_autodiff::{Form, Saved, UnaryKind};

use super::lanes::{self, map1, map2, update1, update2, wide};
use super::parts::{Channels, STREAM, each_part, each_row, region, repeated, row_of};
use crate::Job;
use crate::real::Real;
use crate::view::Out;

/// `y = f(x)` for each row.
fn unary_rows<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>, f: impl Fn(&[T], &mut [T]) + Sync) {
    let x = &job.inputs[0];
    if out.layout().form == Form::Flat {
        return f(x.flat(), out.flat());
    }
    each_row(out, &job.region, |n, c, d, h, y| {
        f(x.row(n, c, d, h, job.region.s(2)), y)
    });
}

/// `y = f(x)` for each element.
fn unary_with<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>, f: impl Fn(T) -> T + Copy + Sync) {
    unary_rows(job, out, |x, y| map1(x, y, f));
}

/// `y = f(a, b)` for each element; `b` may be flat or of one channel, and is
/// then repeated.
fn binary_with<T: Real>(
    job: &Job<'_, T>,
    out: &mut Out<'_, T>,
    f: impl Fn(T, T) -> T + Copy + Sync,
) {
    let (a, b) = (&job.inputs[0], &job.inputs[1]);
    if out.layout().form == Form::Flat && a.layout().shape == b.layout().shape {
        return map2(a.flat(), b.flat(), out.flat(), f);
    }
    let region = region(&job.region, out.layout());
    each_row(out, &region, |n, c, d, h, y| {
        let a = a.row(n, c, d, h, region.s(2));
        if b.layout().form == Form::Flat {
            let b = repeated(b, n, c);
            map1(a, y, |a| f(a, b));
        } else {
            map2(a, row_of(b, [n, c, d, h], &region.s(2)), y, f);
        }
    });
}

/// `(x)` → function of each element. `NaN` stays `NaN`.
pub(super) fn unary<T: Real>(kind: &UnaryKind, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    match kind {
        UnaryKind::Relu => unary_with(job, out, |x| if x <= T::ZERO { T::ZERO } else { x }),
        UnaryKind::LeakyRelu(slope) => {
            let slope = T::from_f64(slope.get());
            unary_with(job, out, move |x| if x > T::ZERO { x } else { slope * x });
        }
        UnaryKind::Gelu => unary_rows(job, out, gelu),
        UnaryKind::Silu => unary_with(job, out, |x| x * sigmoid(x)),
        UnaryKind::Sigmoid => unary_with(job, out, sigmoid),
        UnaryKind::Tanh => unary_with(job, out, T::tanh),
        UnaryKind::Exp => unary_with(job, out, T::exp),
    }
}

/// `x̄ = f(saved, ȳ)` for each row.
fn grad_rows<T: Real>(
    job: &Job<'_, T>,
    out: &mut Out<'_, T>,
    f: impl Fn(&[T], &[T], &mut [T]) + Sync,
) {
    let (s, g) = (&job.inputs[0], &job.inputs[1]);
    if out.layout().form == Form::Flat {
        return f(s.flat(), g.flat(), out.flat());
    }
    each_row(out, &job.region, |n, c, d, h, x| {
        let w = job.region.s(2);
        f(s.row(n, c, d, h, w.clone()), g.row(n, c, d, h, w), x);
    });
}

/// `x̄ = f(saved, ȳ)` for each element.
fn grad_with<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>, f: impl Fn(T, T) -> T + Copy + Sync) {
    grad_rows(job, out, |s, g, x| map2(s, g, x, f));
}

/// `(saved, ȳ)` → `x̄`.
///
/// ReLU and its leaky form take the slope at 0 from the left, as PyTorch does;
/// both are then the same from input and output. GELU and SiLU cannot be
/// inverted: asked for from their output, which no tape does, they give `NaN`.
pub(super) fn unary_grad<T: Real>(
    kind: &UnaryKind,
    saved: &Saved,
    job: &Job<'_, T>,
    out: &mut Out<'_, T>,
) {
    let nan = T::from_f64(f64::NAN);
    match (kind, saved) {
        (UnaryKind::Relu, Saved::Input | Saved::Output) => {
            grad_with(job, out, |s, g| if s <= T::ZERO { T::ZERO } else { g });
        }
        (UnaryKind::LeakyRelu(slope), Saved::Input | Saved::Output) => {
            let slope = T::from_f64(slope.get());
            binary_with(
                job,
                out,
                move |s, g| if s > T::ZERO { g } else { slope * g },
            );
        }
        (UnaryKind::Gelu, Saved::Input) => grad_rows(job, out, gelu_grad),
        (UnaryKind::Silu, Saved::Input) => grad_with(job, out, |x, g| {
            let s = sigmoid(x);
            g * (s * (T::ONE + x * (T::ONE - s)))
        }),
        (UnaryKind::Gelu | UnaryKind::Silu, Saved::Output) => grad_with(job, out, |_, _| nan),
        (UnaryKind::Sigmoid, Saved::Input) => grad_with(job, out, |x, g| {
            let s = sigmoid(x);
            g * (s * (T::ONE - s))
        }),
        (UnaryKind::Sigmoid, Saved::Output) => {
            grad_with(job, out, |s, g| g * (s * (T::ONE - s)));
        }
        (UnaryKind::Tanh, Saved::Input) => grad_with(job, out, |x, g| {
            let y = x.tanh();
            g * (T::ONE - y * y)
        }),
        (UnaryKind::Tanh, Saved::Output) => grad_with(job, out, |y, g| g * (T::ONE - y * y)),
        (UnaryKind::Exp, Saved::Input) => grad_with(job, out, |x, g| g * x.exp()),
        (UnaryKind::Exp, Saved::Output) => grad_with(job, out, |y, g| g * y),
    }
}

/// `1 / (1 + e⁻ˣ)`; the exponential may overflow, its reciprocal is then 0.
#[inline(always)]
pub(super) fn sigmoid<T: Real>(x: T) -> T {
    T::ONE / (T::ONE + (-x).exp())
}

// A closure as long as these two would be called for each element; as loops of
// their own they are vectorised.

wide! {
    /// `x Φ(x)`.
    fn gelu[T: Real](x: &[T], y: &mut [T]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = x * x.normal_below();
        }
    }
}

wide! {
    /// `ȳ (Φ(x) + x φ(x))`, `φ` being the normal density.
    fn gelu_grad[T: Real](x: &[T], g: &[T], out: &mut [T]) {
        let scale = 0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2;
        let (scale, half) = (T::from_f64(scale), T::from_f64(0.5));
        for ((out, &x), &g) in out.iter_mut().zip(x).zip(g) {
            let density = scale * (-(half * x * x)).exp();
            *out = g * (x.normal_below() + x * density);
        }
    }
}

/// `(a, b)` → sum.
pub(super) fn add<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>) {
    binary_with(job, out, |a, b| a + b);
}

/// `(a, b)` → product.
pub(super) fn mul<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>) {
    binary_with(job, out, |a, b| a * b);
}

/// `(x)` → `factor · x`.
pub(super) fn scale<T: Real>(factor: f64, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let factor = T::from_f64(factor);
    unary_with(job, out, move |x| factor * x);
}

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
