//! Fully connected layers on flat features.

use crate::error::TapeError;
use crate::grad::Vjp;
use crate::op::Op;
use crate::ty::Ty;

use super::check::{self, Checked, ensure};

fn expect_matrix(what: &str, t: &Ty) -> Checked {
    ensure!(
        !t.is_map(),
        "{what} must be flat features [N, F]; {} is a map: pool it first, or use a 1×1 convolution",
        t.shape
    );
    ensure!(
        t.shape.rank() == 2,
        "{what} must have two dimensions, not shape {}",
        t.shape
    );
    Ok(())
}

pub(super) fn infer_linear(inputs: &[Ty]) -> Checked<Ty> {
    let (x, w) = (&inputs[0], &inputs[1]);
    expect_matrix("the input", x)?;
    expect_matrix("the weight", w)?;
    let (o, f) = (w.shape.dim(0), w.shape.dim(1));
    ensure!(
        x.shape.dim(1) == f,
        "the input has {} features, so the weight must be [{o}, {}], not {}",
        x.shape.dim(1),
        x.shape.dim(1),
        w.shape
    );
    if let Some(b) = inputs.get(2) {
        check::expect_dims("the bias", b, &[o])?;
    }
    check::flat(x.dtype, &[x.shape.batch(), o])
}

pub(super) fn infer_input_grad(g: &Ty, w: &Ty) -> Checked<Ty> {
    expect_matrix("the output gradient", g)?;
    expect_matrix("the weight", w)?;
    ensure!(
        g.shape.dim(1) == w.shape.dim(0),
        "the output gradient has {} features, so the weight must be [{}, F], not {}",
        g.shape.dim(1),
        g.shape.dim(1),
        w.shape
    );
    check::flat(g.dtype, &[g.shape.batch(), w.shape.dim(1)])
}

pub(super) fn infer_weight_grad(x: &Ty, g: &Ty) -> Checked<Ty> {
    expect_matrix("the input", x)?;
    expect_matrix("the output gradient", g)?;
    ensure!(
        x.shape.batch() == g.shape.batch(),
        "input {} and output gradient {} must have one batch",
        x.shape,
        g.shape
    );
    check::flat(x.dtype, &[g.shape.dim(1), x.shape.dim(1)])
}

/// A multiply and an add per weight and sample.
pub(super) fn flops(n: usize, o: usize, f: usize) -> f64 {
    2.0 * n as f64 * o as f64 * f as f64
}

/// `x̄ = ȳ w`, `w̄ = ȳᵀ x`, `b̄` sums `ȳ` over the batch.
pub(super) fn vjp_linear(v: &mut Vjp) -> Result<(), TapeError> {
    let (x, w, g) = (v.inputs[0], v.inputs[1], v.cotangent);
    v.give_op(1, Op::LinearWeightGrad, &[x, g])?;
    v.give_op(2, Op::SumMap { keep_batch: false }, &[g])?;
    v.give_op(0, Op::LinearInputGrad, &[g, w])
}

#[cfg(test)]
mod tests {
    use crate::testing::{check, check_grad};

    #[test]
    fn shapes() {
        let y = |op: &str| {
            format!(
                "x = input [2, 8]\nw = param [3, 8]\nb = param [3]\nm = input [2, 8, 4]\ny = {op}"
            )
        };
        check(&[
            (&y("linear(x, w)"), "f32[2, 3]"),
            (&y("linear(x, w, b)"), "f32[2, 3]"),
            (&y("linear(x, x)"), "f32[2, 2]"),
            (
                &y("linear(w, b)"),
                "the weight must have two dimensions, not shape [3]",
            ),
            (
                &y("linear(m, w)"),
                "pool it first, or use a 1×1 convolution",
            ),
            (
                "x = input [2, 8]\nw = param [3, 7]\ny = linear(x, w)",
                "the input has 8 features, so the weight must be [3, 8], not [3, 7]",
            ),
        ]);
    }

    #[test]
    fn gradients() {
        check_grad(
            "x = input [2, 8] grad\nw = param [3, 8]\nb = param [3]\nt = input [2, 3]\n\
             y = linear(x, w, b)\nl = mse(y, t)",
            "seed6 = constant [1] value=1
             t7 = mse_grad(y, t, seed6)
             grad/w = linear_weight_grad(x, t7)
             grad/b = sum_map(t7) keep_batch=false
             grad/x = linear_input_grad(t7, w)",
        );
    }
}
