//! Ops that look at one position at a time, as functions of rows.
//!
//! What such an op needs beside its maps (statistics, factors, a value per channel) is
//! found once for a call; then any run of neighbouring elements of one channel can be
//! computed alone. [`super::chain`] feeds them rows, of one op or of several in turn.

use sstep_autodiff::{Form, NormAttrs, Op, Saved, UnaryKind};

use super::lanes::{map1, map2, wide};
use super::norm;
use super::parts::repeated;
use crate::real::Real;
use crate::view::In;

/// An op at work on one call.
pub(super) enum Pointwise<'a, T> {
    /// `(x)` → function of each element. `NaN` stays `NaN`.
    Unary(&'a UnaryKind),
    /// `(saved, ȳ)` → `x̄`.
    UnaryGrad(&'a UnaryKind, &'a Saved),
    /// `(a, b)` → sum.
    Add,
    /// `(a, b)` → product.
    Mul,
    /// `(a, b)` → sum, `b` being flat and repeated.
    AddFlat(In<'a, T>),
    /// `(a, b)` → product, `b` being flat and repeated.
    MulFlat(In<'a, T>),
    /// `(x)` → `factor · x`.
    Scale(T),
    /// `(x, moments, γ, β)` → `γ (x − mean) / √(var + eps) + β`.
    Normalise(PerChannel<[T; 3]>),
    /// `x̄` of a norm with given statistics.
    FrozenGrad(PerChannel<T>),
    /// `x̄` of a norm: see [`norm::terms`].
    NormGrad(PerChannel<[T; 4]>),
}

/// Something for each channel of each sample.
pub(super) struct PerChannel<V> {
    channels: usize,
    values: Vec<V>,
}

impl<V: Copy> PerChannel<V> {
    /// What `f` gives for each.
    pub(super) fn new(dims: [usize; 5], f: impl FnMut((usize, usize)) -> V) -> Self {
        let [batch, channels, ..] = dims;
        let each = (0..batch).flat_map(|n| (0..channels).map(move |c| (n, c)));
        let values = each.map(f).collect();
        PerChannel { channels, values }
    }

    /// That of channel `c` of sample `n`.
    pub(super) fn at(&self, n: usize, c: usize) -> V {
        self.values[n * self.channels + c]
    }
}

impl<'a, T: Real> Pointwise<'a, T> {
    /// `op` at work on `inputs`, if it is such an op.
    pub(super) fn new(op: &'a Op, inputs: &[In<'a, T>]) -> Option<Self> {
        let repeats = |b: &In<'a, T>| {
            let (a, b) = (inputs[0].layout(), b.layout());
            b.form == Form::Flat && (a.form == Form::Map || a.shape != b.shape)
        };
        Some(match op {
            Op::Unary(kind) => Pointwise::Unary(kind),
            Op::UnaryGrad { kind, saved } => Pointwise::UnaryGrad(kind, saved),
            Op::Add if repeats(&inputs[1]) => Pointwise::AddFlat(inputs[1]),
            Op::Mul if repeats(&inputs[1]) => Pointwise::MulFlat(inputs[1]),
            Op::Add => Pointwise::Add,
            Op::Mul => Pointwise::Mul,
            Op::Scale { factor } => Pointwise::Scale(T::from_f64(factor.get())),
            Op::Normalise(a) => Pointwise::Normalise(norm::factors(a, inputs)),
            Op::NormGrad(a @ NormAttrs { frozen: true, .. }) => {
                Pointwise::FrozenGrad(norm::frozen_factors(a, inputs))
            }
            Op::NormGrad(a) => Pointwise::NormGrad(norm::terms(a, inputs)),
            _ => return None,
        })
    }

    /// Which inputs are read position by position.
    pub(super) fn maps(&self) -> &'static [usize] {
        match self {
            Pointwise::Unary(_)
            | Pointwise::AddFlat(_)
            | Pointwise::MulFlat(_)
            | Pointwise::Scale(_)
            | Pointwise::Normalise(_) => &[0],
            Pointwise::FrozenGrad(_) => &[1],
            Pointwise::UnaryGrad(..) | Pointwise::Add | Pointwise::Mul => &[0, 1],
            Pointwise::NormGrad(_) => &[0, 2],
        }
    }

    /// Elements of channel `c` of sample `n` from those of the maps it reads; where it
    /// reads one, `b` is not looked at.
    pub(super) fn apply(&self, n: usize, c: usize, a: &[T], b: &[T], y: &mut [T]) {
        match self {
            Pointwise::Unary(kind) => unary(kind, a, y),
            Pointwise::UnaryGrad(kind, saved) => unary_grad(kind, saved, a, b, y),
            Pointwise::Add => map2(a, b, y, |a, b| a + b),
            Pointwise::Mul => map2(a, b, y, |a, b| a * b),
            Pointwise::AddFlat(b) => {
                let b = repeated(b, n, c);
                map1(a, y, |a| a + b);
            }
            Pointwise::MulFlat(b) => {
                let b = repeated(b, n, c);
                map1(a, y, |a| a * b);
            }
            &Pointwise::Scale(factor) => map1(a, y, |x| factor * x),
            Pointwise::Normalise(factors) => {
                let [mean, factor, offset] = factors.at(n, c);
                map1(a, y, |x| (x - mean) * factor + offset);
            }
            Pointwise::FrozenGrad(factors) => {
                let factor = factors.at(n, c);
                map1(a, y, |g| factor * g);
            }
            Pointwise::NormGrad(terms) => {
                let [mean, of_g, constant, of_x] = terms.at(n, c);
                map2(a, b, y, |x, g| of_g * g - (constant + of_x * (x - mean)));
            }
        }
    }
}

fn unary<T: Real>(kind: &UnaryKind, x: &[T], y: &mut [T]) {
    match kind {
        UnaryKind::Relu => map1(x, y, |x| if x <= T::ZERO { T::ZERO } else { x }),
        UnaryKind::LeakyRelu(slope) => {
            let slope = T::from_f64(slope.get());
            map1(x, y, move |x| if x > T::ZERO { x } else { slope * x });
        }
        UnaryKind::Gelu => gelu(x, y),
        UnaryKind::Silu => map1(x, y, |x| x * sigmoid(x)),
        UnaryKind::Sigmoid => map1(x, y, sigmoid),
        UnaryKind::Tanh => map1(x, y, T::tanh),
        UnaryKind::Exp => map1(x, y, T::exp),
    }
}

/// ReLU and its leaky form take the slope at 0 from the left, as PyTorch does;
/// both are then the same from input and output. GELU and SiLU cannot be
/// inverted: asked for from their output, which no tape does, they give `NaN`.
fn unary_grad<T: Real>(kind: &UnaryKind, saved: &Saved, s: &[T], g: &[T], x: &mut [T]) {
    match (kind, saved) {
        (UnaryKind::Relu, Saved::Input | Saved::Output) => {
            map2(s, g, x, |s, g| if s <= T::ZERO { T::ZERO } else { g });
        }
        (UnaryKind::LeakyRelu(slope), Saved::Input | Saved::Output) => {
            let slope = T::from_f64(slope.get());
            map2(s, g, x, move |s, g| if s > T::ZERO { g } else { slope * g });
        }
        (UnaryKind::Gelu, Saved::Input) => gelu_grad(s, g, x),
        (UnaryKind::Silu, Saved::Input) => map2(s, g, x, |x, g| {
            let s = sigmoid(x);
            g * (s * (T::ONE + x * (T::ONE - s)))
        }),
        (UnaryKind::Gelu | UnaryKind::Silu, Saved::Output) => x.fill(T::from_f64(f64::NAN)),
        (UnaryKind::Sigmoid, Saved::Input) => map2(s, g, x, |x, g| {
            let s = sigmoid(x);
            g * (s * (T::ONE - s))
        }),
        (UnaryKind::Sigmoid, Saved::Output) => map2(s, g, x, |s, g| g * (s * (T::ONE - s))),
        (UnaryKind::Tanh, Saved::Input) => map2(s, g, x, |x, g| {
            let y = x.tanh();
            g * (T::ONE - y * y)
        }),
        (UnaryKind::Tanh, Saved::Output) => map2(s, g, x, |y, g| g * (T::ONE - y * y)),
        (UnaryKind::Exp, Saved::Input) => map2(s, g, x, |x, g| g * x.exp()),
        (UnaryKind::Exp, Saved::Output) => map2(s, g, x, |y, g| g * y),
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
