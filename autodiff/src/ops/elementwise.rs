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
            dtype: x.dtype.wide(),
        },
    )?;
    let (spatial, n_spatial) = spatial_of(&x.shape);
    let mut ones = v.push(Op::Broadcast { spatial, n_spatial }, &[one])?;
    if x.dtype.is_narrow() {
        ones = v.push(Op::Cast { to: x.dtype }, &[ones])?;
    }
    v.give_op(0, Op::Mul, &[ones, v.cotangent])
}

#[cfg(test)]
mod tests {
    use crate::region::Span;
    use crate::testing::{check, check_grad, reads};

    #[test]
    fn shapes() {
        let y = |op: &str| {
            format!(
                "x = input [2, 3, 4, 6]\none = input [2, 1, 4, 6]\nv = input [2, 3]\nc = param [3]\ny = {op}"
            )
        };
        check(&[
            (&y("relu(x)"), "f32[2, 3, 4, 6]"),
            (&y("gelu(c)"), "f32[3]"),
            (
                &y("leaky_relu(x) slope=0"),
                "the slope must be a number above 0, not 0",
            ),
            (
                &y("leaky_relu(x) slope=nan"),
                "the slope must be a number above 0, not NaN",
            ),
            (&y("sigmoid_grad(x, x) from=output"), "f32[2, 3, 4, 6]"),
            (
                &y("gelu_grad(x, x) from=output"),
                "the gradient of Gelu cannot be computed from its output",
            ),
            (
                &y("relu_grad(x, one)"),
                "the output gradient must have the shape [2, 3, 4, 6] of the saved value",
            ),
            (&y("add(x, x)"), "f32[2, 3, 4, 6]"),
            (&y("add(x, v)"), "f32[2, 3, 4, 6]"),
            (&y("mul(x, one)"), "f32[2, 3, 4, 6]"),
            (&y("mul(v, v)"), "f32[2, 3]"),
            (
                &y("add(v, x)"),
                "to repeat a flat [N, C] over a map, give the map first",
            ),
            (
                &y("add(one, x)"),
                "the second operand must have the shape [2, 1, 4, 6] of the first",
            ),
            (
                &y("add(x, c)"),
                "a flat second operand is repeated over space and must then have shape [2, 3], not [3]",
            ),
            (&y("scale(x) factor=-1e-3"), "f32[2, 3, 4, 6]"),
            (&y("dropout(v) p=0"), "f32[2, 3]"),
            (
                &y("dropout(x) p=1"),
                "the drop probability must be at least 0 and less than 1, not 1",
            ),
            (
                &y("dropout(x) p=-0.5"),
                "the drop probability must be at least 0 and less than 1",
            ),
            (
                &y("dropout(c) p=0.5"),
                "the input must be a map or flat [N, C], not flat [3]",
            ),
            (&y("softmax(x)"), "f32[2, 3, 4, 6]"),
            (&y("softmax(v)"), "f32[2, 3]"),
            (&y("channel_sum(x)"), "f32[2, 1, 4, 6]"),
            (&y("channel_sum(v)"), "the input must be a map"),
        ]);
    }

    #[test]
    fn regions() {
        let add = "x = input [4, 3, 8]\none = input [4, 1, 8]\ny = add(x, one)";
        for input in 0..2 {
            assert_eq!(reads(add, input, 1, 3..6), Span::new(3, 6));
            assert_eq!(reads(add, input, 0, 1..2), Span::new(1, 2));
        }
    }

    #[test]
    fn every_repetition_is_summed_back() {
        let leaves = "a = input [2, 3, 8] grad\none = input [2, 1, 8] grad\nv = input [2, 3] grad\n\
                      t = input [2, 3, 8]\n";
        check_grad(
            &format!("{leaves}y = mul(a, one)\nz = add(y, v)\nl = mse(z, t)"),
            "seed7 = constant [1] value=1
             t8 = mse_grad(z, t, seed7)
             grad/v = sum_map(t8)
             t10 = mul(t8, a)
             grad/one = channel_sum(t10)
             grad/a = mul(t8, one)",
        );
        check_grad(
            &format!("{leaves}y = mul(a, v)\nz = add(y, one)\nl = mse(z, t)"),
            "seed7 = constant [1] value=1
             t8 = mse_grad(z, t, seed7)
             grad/one = channel_sum(t8)
             t10 = mul(t8, a)
             grad/v = sum_map(t10)
             grad/a = mul(t8, v)",
        );
    }

    #[test]
    fn a_square_gets_both_its_halves() {
        check_grad(
            "a = input [2, 3] grad\nt = input [2, 3]\ny = mul(a, a)\nl = mse(y, t)",
            "seed4 = constant [1] value=1
             t5 = mse_grad(y, t, seed4)
             t6 = mul(t5, a)
             t7 = mul(t5, a)
             grad/a = add(t6, t7)",
        );
    }

    #[test]
    fn gradients_of_functions() {
        check_grad(
            "x = input [2, 3, 8] grad\nt = input [2, 1, 8]\na = leaky_relu(x) slope=0.1\n\
             b = dropout(a) p=0.5 key=7\nc = softmax(b)\nd = scale(c) factor=3\n\
             e = channel_sum(d)\nl = mse(e, t)",
            "seed8 = constant [1] value=1
             t9 = mse_grad(e, t, seed8)
             t10 = constant [2, 3] value=1
             t11 = broadcast(t10) spatial=[8]
             t12 = mul(t11, t9)
             t13 = scale(t12) factor=3
             t14 = softmax_grad(c, t13)
             t15 = dropout(t14) p=0.5 key=7
             grad/x = leaky_relu_grad(x, t15) slope=0.1",
        );
    }
}
