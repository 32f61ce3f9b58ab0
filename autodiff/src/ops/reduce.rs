//! Sums, maxima and log-sum-exps over space.

use crate::error::TapeError;
use crate::grad::Vjp;
use crate::op::{Num, Op, PerAxis};
use crate::ty::Ty;

use super::check::{self, Checked, ensure, unit};
use super::elementwise::{EXP_FLOPS, UnaryKind};
use super::structure::{self, spatial_of};

pub(super) fn infer_sum(keep_batch: bool, x: &Ty) -> Checked<Ty> {
    let (n, c) = (x.shape.batch(), x.shape.channels());
    if !x.is_map() {
        ensure!(
            !keep_batch,
            "a flat input has no space to sum over; without keep_batch its batch is summed"
        );
        ensure!(
            x.shape.rank() == 2,
            "a flat input must have shape [N, C], not {}",
            x.shape
        );
    }
    if keep_batch {
        check::flat(x.dtype, &[n, c])
    } else {
        check::flat(x.dtype, &[c])
    }
}

pub(super) fn infer_global_max(x: &Ty) -> Checked<Ty> {
    let n = check::expect_map("the input", x)?;
    check::flat(x.dtype, &[x.shape.batch(), x.shape.channels() * (1 + n)])
}

pub(super) fn infer_global_max_grad(
    spatial: &PerAxis,
    n_spatial: u8,
    packed: &Ty,
    g: &Ty,
) -> Checked<Ty> {
    let each = 1 + n_spatial as usize;
    check::expect_flat("the packed maxima", packed)?;
    ensure!(
        packed.shape.rank() == 2 && packed.shape.channels().is_multiple_of(each),
        "the packed maxima must have shape [N, {each}·C], not {}",
        packed.shape
    );
    check::expect_same("the output gradient", g, "the packed maxima", packed)?;
    let c = packed.shape.channels() / each;
    structure::spread(packed.shape.batch(), c, spatial, n_spatial, packed)
}

pub(super) fn infer_lse(x: &Ty) -> Checked<Ty> {
    check::expect_map("the input", x)?;
    check::flat(x.dtype, &[x.shape.batch(), x.shape.channels()])
}

pub(super) fn lse_flops(x: &Ty) -> f64 {
    (EXP_FLOPS + 2.0) * unit(x)
}

/// `ȳ` repeated over space. A sum over the batch too is made for gradients of
/// biases and has none of its own.
pub(super) fn vjp_sum(v: &mut Vjp, keep_batch: bool) -> Result<(), TapeError> {
    if !keep_batch {
        return v.refuse(0);
    }
    let (spatial, n_spatial) = spatial_of(&v.ty(v.inputs[0]).shape);
    v.give_op(0, Op::Broadcast { spatial, n_spatial }, &[v.cotangent])
}

/// The packed coordinates say where the maxima were, so `x` is not read again.
pub(super) fn vjp_global_max(v: &mut Vjp) -> Result<(), TapeError> {
    let (spatial, n_spatial) = spatial_of(&v.ty(v.inputs[0]).shape);
    v.give_op(
        0,
        Op::GlobalMaxGrad { spatial, n_spatial },
        &[v.node, v.cotangent],
    )
}

/// `exp(x − lse) · ȳ`: a softmax over space, from `x` and the result.
pub(super) fn vjp_lse(v: &mut Vjp) -> Result<(), TapeError> {
    if !v.wants(0) {
        return Ok(());
    }
    let minus = v.push(
        Op::Scale {
            factor: Num::new(-1.0),
        },
        &[v.node],
    )?;
    let shifted = v.push(Op::Add, &[v.inputs[0], minus])?;
    let softmax = v.push(Op::Unary(UnaryKind::Exp), &[shifted])?;
    v.give_op(0, Op::Mul, &[softmax, v.cotangent])
}
