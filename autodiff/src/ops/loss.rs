//! Losses: one number from predictions and targets.

use crate::error::TapeError;
use crate::grad::Vjp;
use crate::op::{Num, Op};
use crate::ty::Ty;

use super::check::{self, Checked, ensure, unit};
use super::elementwise::EXP_FLOPS;

pub(super) fn infer_cross_entropy(logits: &Ty, labels: &Ty) -> Checked<Ty> {
    check::expect_channels("the logits", logits)?;
    ensure!(
        labels.form == logits.form && labels.shape == logits.shape.with_channels(1),
        "the labels must hold one class index per position, shape {}, not {}",
        logits.shape.with_channels(1),
        labels.shape
    );
    check::flat(logits.dtype, &[1])
}

pub(super) fn infer_paired(x: &Ty, target: &Ty) -> Checked<Ty> {
    check::expect_same("the target", target, "the prediction", x)?;
    check::flat(x.dtype, &[1])
}

fn expect_scalar(g: &Ty) -> Checked {
    check::expect_dims("the loss gradient", g, &[1])
}

pub(super) fn infer_cross_entropy_grad(logits: &Ty, labels: &Ty, g: &Ty) -> Checked<Ty> {
    infer_cross_entropy(logits, labels)?;
    expect_scalar(g)?;
    Ok(*logits)
}

pub(super) fn infer_paired_grad(x: &Ty, target: &Ty, g: &Ty) -> Checked<Ty> {
    infer_paired(x, target)?;
    expect_scalar(g)?;
    Ok(*x)
}

pub(super) fn infer_dice_sums(p: &Ty, t: &Ty) -> Checked<Ty> {
    check::expect_map("the prediction", p)?;
    check::expect_same("the target", t, "the prediction", p)?;
    check::flat(p.dtype, &[p.shape.batch(), p.shape.channels(), 3])
}

pub(super) fn infer_dice_sums_grad(t: &Ty, g: &Ty) -> Checked<Ty> {
    check::expect_map("the target", t)?;
    check::expect_dims(
        "the sums' gradient",
        g,
        &[t.shape.batch(), t.shape.channels(), 3],
    )?;
    Ok(*t)
}

pub(super) fn infer_dice_loss(smooth: Num, sums: &Ty) -> Checked<Ty> {
    check::expect_num(
        "the smoothing",
        smooth,
        |v| v >= 0.0,
        "a number not below 0",
    )?;
    check::expect_flat("the sums", sums)?;
    ensure!(
        sums.shape.rank() == 3 && sums.shape.dim(2) == 3,
        "the sums must have shape [N, C, 3], not {}",
        sums.shape
    );
    check::flat(sums.dtype, &[1])
}

pub(super) fn infer_dice_loss_grad(smooth: Num, sums: &Ty, g: &Ty) -> Checked<Ty> {
    infer_dice_loss(smooth, sums)?;
    expect_scalar(g)?;
    Ok(*sums)
}

/// An exponential and a few steps per logit.
pub(super) fn log_flops(x: &Ty) -> f64 {
    (EXP_FLOPS + 4.0) * unit(x)
}

/// A loss of a prediction and a target, whose gradient op takes both and the
/// gradient of the loss. Targets are data and have no gradient.
pub(super) fn vjp_paired(v: &mut Vjp, grad: Op) -> Result<(), TapeError> {
    v.refuse(1)?;
    v.give_op(0, grad, &[v.inputs[0], v.inputs[1], v.cotangent])
}

/// `p̄ = t·ḡ₀ + ḡ₁`: saves `t` only, the sums being linear in `p`.
pub(super) fn vjp_dice_sums(v: &mut Vjp) -> Result<(), TapeError> {
    v.refuse(1)?;
    v.give_op(0, Op::DiceSumsGrad, &[v.inputs[1], v.cotangent])
}

/// From the sums alone.
pub(super) fn vjp_dice_loss(v: &mut Vjp, smooth: Num) -> Result<(), TapeError> {
    v.give_op(0, Op::DiceLossGrad { smooth }, &[v.inputs[0], v.cotangent])
}

#[cfg(test)]
mod tests {
    use crate::testing::{check, check_grad};

    #[test]
    fn shapes() {
        let y = |ops: &str| {
            format!(
                "x = input [2, 8]\nn = input [2, 1]\nm = input [2, 8, 4]\nk = input [2, 1, 4]\n{ops}"
            )
        };
        check(&[
            (&y("l = cross_entropy(x, n)"), "f32[1]"),
            (&y("l = cross_entropy(m, k)"), "f32[1]"),
            (
                &y("l = cross_entropy(x, x)"),
                "the labels must hold one class index per position, shape [2, 1], not [2, 8]",
            ),
            (&y("l = bce(m, m)"), "f32[1]"),
            (
                &y("l = mse(x, n)"),
                "the target must have the shape [2, 8] of the prediction, not [2, 1]",
            ),
            (&y("s = dice_sums(m, m)"), "f32[2, 8, 3]"),
            (&y("s = dice_sums(x, x)"), "the prediction must be a map"),
            (
                &y("s = dice_sums(m, m)\nl = dice_loss(s) smooth=1"),
                "f32[1]",
            ),
            (
                &y("s = dice_sums(m, m)\nl = dice_loss(s) smooth=-1"),
                "the smoothing must be a number not below 0",
            ),
            (
                &y("l = dice_loss(x) smooth=1"),
                "the sums must have shape [N, C, 3], not [2, 8]",
            ),
        ]);
    }

    #[test]
    fn gradients() {
        check_grad(
            "x = input [2, 8] grad\nn = input [2, 1]\nl = cross_entropy(x, n)",
            "seed3 = constant [1] value=1
             grad/x = cross_entropy_grad(x, n, seed3)",
        );
        check_grad(
            "x = input [2, 8, 4] grad\nt = input [2, 8, 4]\nb = bce(x, t)\ns = dice_sums(x, t)\n\
             d = dice_loss(s) smooth=1\nl = add(b, d)",
            "seed6 = constant [1] value=1
             t7 = dice_loss_grad(s, seed6) smooth=1
             t8 = dice_sums_grad(t, t7)
             t9 = bce_grad(x, t, seed6)
             grad/x = add(t8, t9)",
        );
    }
}
