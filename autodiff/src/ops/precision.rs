//! Element types: which may meet, and what they make.
//!
//! Narrow types halve the bytes of maps and are for storage alone. Whatever an op
//! computes it computes in `f32`; a map that it makes of narrow maps is rounded to
//! their type, once per element. Sums over maps are flat and stay `f32`: statistics,
//! losses and gradients of parameters lose nothing to storage.

use crate::error::TapeError;
use crate::grad::Vjp;
use crate::op::Op;
use crate::ty::{DType, Ty};

use super::check::{Checked, ensure};

/// Element type of the maps that an op reads; of its first input, if it reads none.
fn of_maps(inputs: &[Ty]) -> DType {
    inputs
        .iter()
        .find(|t| t.is_map())
        .unwrap_or(&inputs[0])
        .dtype
}

/// Whether the element types of an op's inputs may meet in it.
pub(super) fn check(op: &Op, inputs: &[Ty]) -> Checked {
    if let Op::Cast { to } = op {
        let from = inputs[0].dtype;
        ensure!(
            from.is_narrow() != to.is_narrow() && from.wide() == to.wide(),
            "a cast goes from f32 to bf16 or f16, or from one of these to f32; not from {from} \
             to {to}"
        );
        return Ok(());
    }
    let dtype = of_maps(inputs);
    let any_map = inputs.iter().any(Ty::is_map);
    for (i, t) in inputs.iter().enumerate() {
        let is_beside_maps = any_map && !t.is_map();
        ensure!(
            t.dtype == dtype || (is_beside_maps && t.dtype == dtype.wide()),
            "all inputs must have one element type, {dtype}, except that flat ones may be f32 \
             beside narrow maps; input {i} is {}: use `cast`",
            t.dtype
        );
        ensure!(
            t.is_map() || !t.dtype.is_narrow() || may_be_narrow(op, i),
            "input {i} is flat and must be f32, not {}: use `cast`",
            t.dtype
        );
    }
    ensure!(
        !dtype.is_narrow() || !is_loss(op),
        "a loss and its gradient are computed on f32, not {dtype}: use `cast`"
    );
    Ok(())
}

/// Element type of an op's result, whose shape and form are known.
pub(super) fn of_result(op: &Op, inputs: &[Ty], extents: &Ty) -> DType {
    if let Op::Cast { to } = op {
        return *to;
    }
    let is_sum = inputs.iter().any(Ty::is_map) && !extents.is_map();
    let dtype = of_maps(inputs);
    if is_sum { dtype.wide() } else { dtype }
}

/// Whether flat input `i` may be narrow: a weight beside maps, or what is only moved.
fn may_be_narrow(op: &Op, i: usize) -> bool {
    match op {
        Op::Conv(_) | Op::ConvTranspose(_) => i == 1,
        Op::Concat | Op::Slice(_) | Op::Pad(_) => true,
        _ => false,
    }
}

fn is_loss(op: &Op) -> bool {
    matches!(
        op,
        Op::CrossEntropy
            | Op::CrossEntropyGrad
            | Op::Bce
            | Op::BceGrad
            | Op::Mse
            | Op::MseGrad
            | Op::DiceSums
            | Op::DiceSumsGrad
    )
}

/// `ȳ` itself: the sweep gives every gradient the type of what it belongs to.
pub(super) fn vjp_cast(v: &mut Vjp) -> Result<(), TapeError> {
    if v.wants(0) {
        v.give(0, v.cotangent);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::testing::check;

    #[test]
    fn types() {
        let y = |ops: &str| {
            format!(
                "x = input [1, 4, 8]\nw = param [2, 4, 3]\nb = param [2]\nt = input [1, 4, 8]\n\
                 v = input [1, 4]\nh = cast(x) to=bf16\ng = cast(x) to=f16\nk = cast(w) to=bf16\n\
                 j = cast(w) to=f16\n{ops}"
            )
        };
        check(&[
            (&y("y = cast(h) to=f32"), "f32[1, 4, 8]"),
            (&y("y = conv(h, k, b)"), "bf16[1, 2, 6]"),
            (&y("y = conv(h, w, b)"), "bf16[1, 2, 6]"),
            (&y("y = conv(x, k)"), "input 1 is bf16: use `cast`"),
            (&y("y = conv(h, j)"), "one element type, bf16"),
            (
                &y("y = conv(h, k)\nz = conv_weight_grad(h, y) kernel=3"),
                "f32[2, 4, 3]",
            ),
            (&y("y = add(h, v)"), "bf16[1, 4, 8]"),
            (&y("y = add(h, x)"), "input 1 is f32: use `cast`"),
            (&y("y = add(h, g)"), "input 1 is f16: use `cast`"),
            (&y("y = moments(h) batch"), "f32[1, 4, 2]"),
            (&y("y = sum_map(g)"), "f32[1, 4]"),
            (&y("y = slice(k) start=0 len=[1, 3]"), "bf16[2, 1, 3]"),
            (&y("y = add(k, k)"), "input 0 is flat and must be f32"),
            (
                &y("y = mse(h, h)"),
                "a loss and its gradient are computed on f32",
            ),
            (
                &y("y = cast(x) to=f32"),
                "a cast goes from f32 to bf16 or f16",
            ),
            (&y("y = cast(h) to=f16"), "not from bf16 to f16"),
            (
                &y("y = cast(x) to=f64"),
                "`to` is one of f32, bf16, f16; found `f64`",
            ),
        ]);
    }
}
