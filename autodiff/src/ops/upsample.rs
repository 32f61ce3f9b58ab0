//! Upsampling by integer factors.

use serde::{Deserialize, Serialize};

use crate::error::TapeError;
use crate::grad::Vjp;
use crate::op::{Op, PerAxis};
use crate::ty::{MAX_SPATIAL, Ty};

use super::check::{self, Checked, ensure};

/// How upsampling fills in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum UpsampleMode {
    /// Repeat.
    Nearest,
    /// Interpolate linearly per axis, corners not aligned (PyTorch's default).
    Linear,
}

/// Upsampling by an integer factor per axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UpsampleAttrs {
    /// Repeat or interpolate.
    pub mode: UpsampleMode,
    /// Factor per axis.
    pub factor: PerAxis,
}

pub(super) fn infer(a: &UpsampleAttrs, x: &Ty) -> Checked<Ty> {
    let n = check::expect_map("the input", x)?;
    check::expect_axes("the factor", &a.factor, n, 1)?;
    let mut out = [1; MAX_SPATIAL];
    for (s, &extent) in x.shape.spatial().iter().enumerate() {
        // Both are below 2³¹; `check::map` bounds the product.
        out[s] = extent * a.factor[s];
    }
    check::map(x.dtype, x.shape.batch(), x.shape.channels(), &out[..n])
}

pub(super) fn infer_grad(a: &UpsampleAttrs, g: &Ty) -> Checked<Ty> {
    let n = check::expect_map("the output gradient", g)?;
    check::expect_axes("the factor", &a.factor, n, 1)?;
    let mut out = [1; MAX_SPATIAL];
    for (s, &extent) in g.shape.spatial().iter().enumerate() {
        ensure!(
            extent.is_multiple_of(a.factor[s]),
            "extent {extent} of spatial axis {s} is not a multiple of the factor {}",
            a.factor[s]
        );
        out[s] = extent / a.factor[s];
    }
    check::map(g.dtype, g.shape.batch(), g.shape.channels(), &out[..n])
}

/// Linear interpolation mixes two neighbours per axis.
pub(super) fn flops(a: &UpsampleAttrs, out: &Ty) -> f64 {
    let n = out.shape.spatial().len() as i32;
    out.shape.channels() as f64
        * match a.mode {
            UpsampleMode::Nearest => 1.0,
            UpsampleMode::Linear => 2.0 * 2f64.powi(n),
        }
}

/// The same work, spread over the fewer positions of the result.
pub(super) fn grad_flops(a: &UpsampleAttrs, g: &Ty) -> f64 {
    flops(a, g) * check::volume(&a.factor)
}

/// Linear, so nothing is saved.
pub(super) fn vjp(v: &mut Vjp, a: &UpsampleAttrs) -> Result<(), TapeError> {
    v.give_op(0, Op::UpsampleGrad(*a), &[v.cotangent])
}

#[cfg(test)]
mod tests {
    use crate::region::Span;
    use crate::testing::{check, check_grad, reads};

    #[test]
    fn shapes() {
        let y = |op: &str| format!("x = input [2, 3, 4, 6]\ny = {op}");
        check(&[
            (&y("upsample(x) factor=2"), "f32[2, 3, 8, 12]"),
            (
                &y("upsample(x) factor=[1, 3] mode=linear"),
                "f32[2, 3, 4, 18]",
            ),
            (&y("upsample(x) factor=0"), "the factor must be at least 1"),
            (&y("upsample(x) factor=2147483648"), "above the limit"),
            (&y("upsample_grad(x) factor=2"), "f32[2, 3, 2, 3]"),
            (
                &y("upsample_grad(x) factor=4"),
                "extent 6 of spatial axis 1 is not a multiple of the factor 4",
            ),
        ]);
    }

    #[test]
    fn regions() {
        let nearest = "x = input [1, 1, 8]\ny = upsample(x) factor=2";
        assert_eq!(reads(nearest, 0, 1, 3..6), Span::new(1, 3));
        let linear = "x = input [1, 1, 8]\ny = upsample(x) factor=2 mode=linear";
        assert_eq!(reads(linear, 0, 1, 0..2), Span::new(0, 2));
        assert_eq!(reads(linear, 0, 1, 6..8), Span::new(2, 5));
        let grad = "g = input [1, 1, 16]\ny = upsample_grad(g) factor=2";
        assert_eq!(reads(grad, 0, 1, 3..6), Span::new(6, 12));
    }

    #[test]
    fn gradients() {
        check_grad(
            "x = input [1, 2, 3] grad\nt = input [1, 2, 6]\ny = upsample(x) factor=2 mode=linear\n\
             l = mse(y, t)",
            "seed4 = constant [1] value=1
             t5 = mse_grad(y, t, seed4)
             grad/x = upsample_grad(t5) factor=[2] mode=linear",
        );
    }
}
