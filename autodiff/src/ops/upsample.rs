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
