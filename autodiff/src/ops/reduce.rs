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

#[cfg(test)]
mod tests {
    use crate::testing::{check, check_grad, parse};

    #[test]
    fn shapes() {
        let y =
            |op: &str| format!("x = input [2, 3, 4, 6]\nv = input [2, 3]\nw = param [3]\ny = {op}");
        check(&[
            (&y("sum_map(x)"), "f32[2, 3]"),
            (&y("sum_map(x) keep_batch=false"), "f32[3]"),
            (&y("sum_map(v) keep_batch=false"), "f32[3]"),
            (&y("sum_map(v)"), "a flat input has no space to sum over"),
            (
                &y("sum_map(w) keep_batch=false"),
                "a flat input must have shape [N, C], not [3]",
            ),
            (&y("global_max(x)"), "f32[2, 9]"),
            (&y("spatial_lse(x)"), "f32[2, 3]"),
            (&y("spatial_lse(v)"), "the input must be a map"),
            (
                &y("global_max_grad(v, v) spatial=[5, 6]"),
                "f32[2, 1, 5, 6]",
            ),
            (
                &y("global_max_grad(v, v) spatial=[5]"),
                "the packed maxima must have shape [N, 2·C], not [2, 3]",
            ),
        ]);
    }

    #[test]
    fn a_reduction_has_a_domain() {
        for (lines, domain) in [
            ("y = sum_map(x)", Some(0)),
            ("y = conv_weight_grad(x, x) kernel=1", Some(1)),
            (
                "m = moments(x) batch\ny = norm_sums(x, m, x) batch eps=0",
                Some(2),
            ),
            ("y = mse(x, x)", Some(0)),
            ("y = relu(x)", None),
            ("s = sum_map(x)\ny = sum_map(s) keep_batch=false", None),
        ] {
            let tape = parse(&format!("x = input [2, 3, 4]\n{lines}")).unwrap();
            let last = *tape.order().last().unwrap();
            let found = tape
                .node(last)
                .op
                .domain(&tape.input_tys(last), &tape.ty(last));
            assert_eq!(found, domain, "{lines}");
        }
    }

    #[test]
    fn gradients() {
        check_grad(
            "x = input [2, 3, 8] grad\nt = input [2, 3]\ny = sum_map(x)\nl = mse(y, t)",
            "seed4 = constant [1] value=1
             t5 = mse_grad(y, t, seed4)
             grad/x = broadcast(t5) spatial=[8]",
        );
        check_grad(
            "x = input [2, 3, 8] grad\nt = input [2, 3]\ny = spatial_lse(x)\nl = mse(y, t)",
            "seed4 = constant [1] value=1
             t5 = mse_grad(y, t, seed4)
             t6 = scale(y) factor=-1
             t7 = add(x, t6)
             t8 = exp(t7)
             grad/x = mul(t8, t5)",
        );
        check_grad(
            "x = input [2, 3, 8] grad\nt = input [2, 3]\nm = global_max(x)\n\
             y = slice(m) start=[0] len=[3]\nl = mse(y, t)",
            "seed5 = constant [1] value=1
             t6 = mse_grad(y, t, seed5)
             t7 = pad(t6) lo=[0] hi=[3]
             grad/x = global_max_grad(m, t7) spatial=[8]",
        );
    }
}
