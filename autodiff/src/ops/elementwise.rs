//! Functions of one element, sums and products, dropout, softmax.

use serde::{Deserialize, Serialize};

use crate::error::TapeError;
use crate::grad::Vjp;
use crate::op::{Num, Op};
use crate::tape::NodeId;
use crate::ty::{Form, Shape, Ty};

use super::check::{self, Checked, ensure, unit};
use super::structure::spatial_of;

/// A function of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum UnaryKind {
    /// `max(x, 0)`.
    Relu,
    /// `x` where positive, `slope · x` elsewhere; `slope > 0`.
    LeakyRelu(Num),
    /// `x Φ(x)`, exact (erf).
    Gelu,
    /// `x σ(x)`.
    Silu,
    /// `1 / (1 + e⁻ˣ)`.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `eˣ`.
    Exp,
}

/// What a gradient is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Saved {
    /// The function's argument.
    Input,
    /// Its value.
    Output,
}

/// Work of an exponential and its like, in multiplications.
pub(super) const EXP_FLOPS: f64 = 10.0;

impl UnaryKind {
    /// Whether the gradient can be computed from the function's value as well
    /// as from its argument: `relu`, `leaky_relu`, `sigmoid`, `tanh`, `exp`.
    /// The reverse sweep always saves the argument; a planner may switch these.
    pub fn grad_from_output(&self) -> bool {
        match self {
            UnaryKind::Relu
            | UnaryKind::LeakyRelu(_)
            | UnaryKind::Sigmoid
            | UnaryKind::Tanh
            | UnaryKind::Exp => true,
            UnaryKind::Gelu | UnaryKind::Silu => false,
        }
    }

    fn check(&self) -> Checked {
        match self {
            UnaryKind::LeakyRelu(slope) => {
                check::expect_num("the slope", *slope, |v| v > 0.0, "a number above 0")
            }
            UnaryKind::Relu
            | UnaryKind::Gelu
            | UnaryKind::Silu
            | UnaryKind::Sigmoid
            | UnaryKind::Tanh
            | UnaryKind::Exp => Ok(()),
        }
    }

    fn flops(&self) -> f64 {
        match self {
            UnaryKind::Relu => 1.0,
            UnaryKind::LeakyRelu(_) => 2.0,
            UnaryKind::Gelu => 2.0 * EXP_FLOPS,
            UnaryKind::Silu | UnaryKind::Sigmoid | UnaryKind::Tanh => EXP_FLOPS + 2.0,
            UnaryKind::Exp => EXP_FLOPS,
        }
    }

    fn grad_flops(&self, saved: Saved) -> f64 {
        match saved {
            Saved::Output => 3.0,
            Saved::Input => self.flops() + 3.0,
        }
    }
}

pub(super) fn infer_unary(kind: &UnaryKind, x: &Ty) -> Checked<Ty> {
    kind.check()?;
    Ok(*x)
}

pub(super) fn infer_unary_grad(kind: &UnaryKind, saved: Saved, x: &Ty, g: &Ty) -> Checked<Ty> {
    kind.check()?;
    ensure!(
        saved == Saved::Input || kind.grad_from_output(),
        "the gradient of {kind:?} cannot be computed from its output; save its input"
    );
    check::expect_same("the output gradient", g, "the saved value", x)?;
    Ok(*x)
}

/// How `b` of [`crate::Op::Add`] and [`crate::Op::Mul`] meets `a`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Repeat {
    /// Element by element.
    None,
    /// Flat `[N, C]`, the same everywhere in space.
    Space,
    /// One channel, the same for all channels.
    Channels,
}

pub(super) fn repeat(a: &Ty, b: &Ty) -> Checked<Repeat> {
    let (n, c) = (a.shape.batch(), a.shape.channels());
    if a.shape == b.shape && a.form == b.form {
        return Ok(Repeat::None);
    }
    ensure!(
        a.is_map(),
        "flat operands must have one shape, not {} and {}; to repeat a flat [N, C] over a map, give the map first",
        a.shape,
        b.shape
    );
    if b.is_map() {
        ensure!(
            b.shape == a.shape.with_channels(1),
            "the second operand must have the shape {} of the first, or {} to be repeated over \
             its channels, or be flat [{n}, {c}] to be repeated over space; not {}",
            a.shape,
            a.shape.with_channels(1),
            b.shape
        );
        return Ok(Repeat::Channels);
    }
    ensure!(
        b.shape.dims() == [n, c],
        "a flat second operand is repeated over space and must then have shape [{n}, {c}], not {}",
        b.shape
    );
    Ok(Repeat::Space)
}

pub(super) fn infer_binary(a: &Ty, b: &Ty) -> Checked<Ty> {
    repeat(a, b)?;
    Ok(*a)
}

pub(super) fn infer_scale(factor: Num, x: &Ty) -> Checked<Ty> {
    check::expect_num("the factor", factor, |_| true, "a finite number")?;
    Ok(*x)
}

pub(super) fn infer_dropout(p: Num, x: &Ty) -> Checked<Ty> {
    check::expect_num(
        "the drop probability",
        p,
        |p| (0.0..1.0).contains(&p),
        "at least 0 and less than 1",
    )?;
    check::expect_channels("the input", x)?;
    Ok(*x)
}

pub(super) fn infer_softmax(x: &Ty) -> Checked<Ty> {
    check::expect_channels("the input", x)?;
    Ok(*x)
}

pub(super) fn infer_softmax_grad(y: &Ty, g: &Ty) -> Checked<Ty> {
    check::expect_channels("the softmax", y)?;
    check::expect_same("the output gradient", g, "the softmax", y)?;
    Ok(*y)
}

pub(super) fn infer_channel_sum(x: &Ty) -> Checked<Ty> {
    check::expect_map("the input", x)?;
    check::map(x.dtype, x.shape.batch(), 1, x.shape.spatial())
}

pub(super) fn unary_flops(kind: &UnaryKind, out: &Ty) -> f64 {
    kind.flops() * unit(out)
}

pub(super) fn unary_grad_flops(kind: &UnaryKind, saved: Saved, out: &Ty) -> f64 {
    kind.grad_flops(saved) * unit(out)
}

/// The hash of the coordinate is most of it.
pub(super) fn dropout_flops(out: &Ty) -> f64 {
    8.0 * unit(out)
}

pub(super) fn softmax_flops(out: &Ty) -> f64 {
    (EXP_FLOPS + 4.0) * unit(out)
}

/// From the argument, for every function; see [`UnaryKind::grad_from_output`].
pub(super) fn vjp_unary(v: &mut Vjp, kind: UnaryKind) -> Result<(), TapeError> {
    v.give_op(
        0,
        Op::UnaryGrad {
            kind,
            saved: Saved::Input,
        },
        &[v.inputs[0], v.cotangent],
    )
}

/// How the operands of the node differentiated through meet.
fn repeat_of(v: &Vjp) -> Repeat {
    repeat(&v.ty(v.inputs[0]), &v.ty(v.inputs[1])).expect("the node was accepted by the same rule")
}

/// Sums `g` over what the second operand was repeated over.
fn unrepeat(v: &mut Vjp, how: Repeat, g: NodeId) -> Result<NodeId, TapeError> {
    match how {
        Repeat::None => Ok(g),
        Repeat::Space => v.push(Op::SumMap { keep_batch: true }, &[g]),
        Repeat::Channels => v.push(Op::ChannelSum, &[g]),
    }
}

/// `ȳ` for both, summed where the second was repeated. Saves nothing.
pub(super) fn vjp_add(v: &mut Vjp) -> Result<(), TapeError> {
    if v.wants(1) {
        let gradient = unrepeat(v, repeat_of(v), v.cotangent)?;
        v.give(1, gradient);
    }
    if v.wants(0) {
        v.give(0, v.cotangent);
    }
    Ok(())
}

/// `ȳ` times the other, summed where the second was repeated.
pub(super) fn vjp_mul(v: &mut Vjp) -> Result<(), TapeError> {
    let (a, b, g) = (v.inputs[0], v.inputs[1], v.cotangent);
    if v.wants(1) {
        let product = v.push(Op::Mul, &[g, a])?;
        let gradient = unrepeat(v, repeat_of(v), product)?;
        v.give(1, gradient);
    }
    v.give_op(0, Op::Mul, &[g, b])
}

/// The op is linear and its own adjoint: scaling, dropout.
pub(super) fn vjp_self_adjoint(v: &mut Vjp) -> Result<(), TapeError> {
    v.give_op(0, v.op(), &[v.cotangent])
}

/// `y (ȳ − Σ y ȳ)`: saves `y`, never `x`.
pub(super) fn vjp_softmax(v: &mut Vjp) -> Result<(), TapeError> {
    v.give_op(0, Op::SoftmaxGrad, &[v.node, v.cotangent])
}

/// `ȳ` repeated over the channels: a map of ones times it.
pub(super) fn vjp_channel_sum(v: &mut Vjp) -> Result<(), TapeError> {
    if !v.wants(0) {
        return Ok(());
    }
    let x = v.ty(v.inputs[0]);
    if x.shape.channels() == 1 {
        v.give(0, v.cotangent);
        return Ok(());
    }
    let dims = [x.shape.batch(), x.shape.channels()];
    let one = v.constant(
        1.0,
        Ty {
            shape: Shape::new(&dims),
            form: Form::Flat,
            ..x
        },
    )?;
    let (spatial, n_spatial) = spatial_of(&x.shape);
    let ones = v.push(Op::Broadcast { spatial, n_spatial }, &[one])?;
    v.give_op(0, Op::Mul, &[ones, v.cotangent])
}
