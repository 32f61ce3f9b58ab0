//! Windowed maximum and mean.

use serde::{Deserialize, Serialize};

use crate::error::{ShapeReason, TapeError};
use crate::grad::Vjp;
use crate::op::{Op, PerAxis};
use crate::region::Window;
use crate::ty::Ty;

use super::check::{self, Checked, ensure, volume};
use super::structure::spatial_of;

/// Geometry of a pooling window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PoolAttrs {
    /// Window extent per axis.
    pub kernel: PerAxis,
    /// Step between windows.
    pub stride: PerAxis,
    /// Padding before: never a maximum; zeros of an average.
    pub pad_lo: PerAxis,
    /// Padding after.
    pub pad_hi: PerAxis,
    /// Whether an average divides by the full window also where padding
    /// enters it. Ignored by max-pool.
    pub count_pad: bool,
}

impl PoolAttrs {
    /// The sliding window along spatial axis `s`.
    pub fn window(&self, s: usize) -> Window {
        Window {
            kernel: self.kernel[s],
            stride: self.stride[s],
            dilation: 1,
            pad: self.pad_lo[s],
        }
    }

    /// Output extent along spatial axis `s`, if the padded input holds a window.
    pub fn out_extent(&self, s: usize, extent: usize) -> Option<usize> {
        let padded = extent + self.pad_lo[s] + self.pad_hi[s];
        Some(padded.checked_sub(self.kernel[s])? / self.stride[s] + 1)
    }
}

/// Bounds the attributes for maps of `n` spatial axes. Every window must hold a
/// real element: otherwise a maximum has no value and a mean no divisor.
fn check_attrs(a: &PoolAttrs, n: usize) -> Checked {
    check::expect_axes("the kernel", &a.kernel, n, 1)?;
    check::expect_axes("the stride", &a.stride, n, 1)?;
    check::expect_axes("the padding", &a.pad_lo, n, 0)?;
    check::expect_axes("the padding", &a.pad_hi, n, 0)?;
    for s in 0..n {
        let pad = a.pad_lo[s].max(a.pad_hi[s]);
        ensure!(
            pad < a.kernel[s],
            "on spatial axis {s} the padding {pad} must be less than the kernel {}, so that no \
             window lies wholly in it",
            a.kernel[s]
        );
    }
    Ok(())
}

fn out_spatial(a: &PoolAttrs, spatial: &[usize]) -> Checked<Vec<usize>> {
    let mut out = Vec::with_capacity(spatial.len());
    for (s, &extent) in spatial.iter().enumerate() {
        let Some(n) = a.out_extent(s, extent) else {
            return Err(ShapeReason(format!(
                "on spatial axis {s} the window spans {} but the padded input only {}: use a \
                 smaller window or more padding",
                a.kernel[s],
                extent + a.pad_lo[s] + a.pad_hi[s]
            )));
        };
        out.push(n);
    }
    Ok(out)
}

pub(super) fn infer(a: &PoolAttrs, x: &Ty) -> Checked<Ty> {
    let n = check::expect_map("the input", x)?;
    check_attrs(a, n)?;
    let out = out_spatial(a, x.shape.spatial())?;
    check::map(x.dtype, x.shape.batch(), x.shape.channels(), &out)
}

pub(super) fn infer_max_grad(a: &PoolAttrs, x: &Ty, g: &Ty) -> Checked<Ty> {
    check::expect_same("the output gradient", g, "the pooled map", &infer(a, x)?)?;
    Ok(*x)
}

pub(super) fn infer_avg_grad(a: &PoolAttrs, in_spatial: &PerAxis, g: &Ty) -> Checked<Ty> {
    let n = check::expect_map("the output gradient", g)?;
    check::expect_axes("the input extent", in_spatial, n, 1)?;
    let x = check::map(
        g.dtype,
        g.shape.batch(),
        g.shape.channels(),
        &in_spatial[..n],
    )?;
    check::expect_same("the output gradient", g, "the pooled map", &infer(a, &x)?)?;
    Ok(x)
}

/// One step per element of the window.
pub(super) fn flops(a: &PoolAttrs, out: &Ty) -> f64 {
    out.shape.channels() as f64 * volume(&a.kernel)
}

/// The windows' work again, spread over the input's positions.
pub(super) fn grad_flops(a: &PoolAttrs, g: &Ty, out: &Ty) -> f64 {
    flops(a, g) * volume(g.shape.spatial()) / volume(out.shape.spatial())
        + out.shape.channels() as f64
}

/// Reads `x` to find each window's maximum again; never the pooled map.
pub(super) fn vjp_max(v: &mut Vjp, a: &PoolAttrs) -> Result<(), TapeError> {
    v.give_op(0, Op::MaxPoolGrad(*a), &[v.inputs[0], v.cotangent])
}

/// Linear, so nothing is saved.
pub(super) fn vjp_avg(v: &mut Vjp, a: &PoolAttrs) -> Result<(), TapeError> {
    let (in_spatial, _) = spatial_of(&v.ty(v.inputs[0]).shape);
    v.give_op(
        0,
        Op::AvgPoolGrad {
            pool: *a,
            in_spatial,
        },
        &[v.cotangent],
    )
}

#[cfg(test)]
mod tests {
    use crate::region::Span;
    use crate::testing::{check, check_grad, reads};

    #[test]
    fn shapes() {
        let y = |op: &str| format!("x = input [2, 3, 9, 8]\ny = {op}");
        check(&[
            (&y("max_pool(x) kernel=2 stride=2"), "f32[2, 3, 4, 4]"),
            (&y("max_pool(x) kernel=3 stride=2 pad=1"), "f32[2, 3, 5, 4]"),
            (
                &y("avg_pool(x) kernel=[1, 3] pad_hi=[0, 1] count_pad"),
                "f32[2, 3, 9, 7]",
            ),
            (&y("max_pool(x) kernel=0"), "the kernel must be at least 1"),
            (
                &y("max_pool(x) kernel=2 stride=0"),
                "the stride must be at least 1",
            ),
            (
                &y("max_pool(x) kernel=2 pad=2"),
                "on spatial axis 0 the padding 2 must be less than the kernel 2",
            ),
            (
                &y("avg_pool(x) kernel=[9, 9]"),
                "on spatial axis 1 the window spans 9 but the padded input only 8",
            ),
            (
                "x = input [2, 3, 9]\ng = input [2, 3, 4]\ny = max_pool_grad(x, g) kernel=2 stride=2",
                "f32[2, 3, 9]",
            ),
            (
                "x = input [2, 3, 9]\ng = input [2, 3, 5]\ny = max_pool_grad(x, g) kernel=2 stride=2",
                "the output gradient must have the shape [2, 3, 4] of the pooled map, not [2, 3, 5]",
            ),
            (
                "g = input [2, 3, 4]\ny = avg_pool_grad(g) kernel=2 stride=2 in=9",
                "f32[2, 3, 9]",
            ),
            (
                "g = input [2, 3, 4]\ny = avg_pool_grad(g) kernel=2 stride=2 in=10",
                "the output gradient must have the shape [2, 3, 5] of the pooled map",
            ),
            (
                "x = input [2, 3]\ny = max_pool(x) kernel=2",
                "the input must be a map",
            ),
        ]);
    }

    #[test]
    fn regions() {
        let pool = "x = input [1, 1, 16]\ny = max_pool(x) kernel=3 stride=2 pad=1";
        assert_eq!(reads(pool, 0, 1, 2..4), Span::new(3, 8));
        let grad = "x = input [1, 1, 16]\ng = input [1, 1, 8]\n\
                    y = max_pool_grad(x, g) kernel=3 stride=2 pad=1";
        // Inputs 4..6 lie in the windows around 4 and 6.
        assert_eq!(reads(grad, 1, 1, 4..6), Span::new(2, 4));
        assert_eq!(reads(grad, 0, 1, 4..6), Span::new(3, 8));
        let avg = "g = input [1, 1, 8]\ny = avg_pool_grad(g) kernel=2 stride=2 in=16";
        assert_eq!(reads(avg, 0, 1, 4..7), Span::new(2, 4));
    }

    #[test]
    fn gradients() {
        check_grad(
            "x = input [1, 2, 9] grad\nt = input [1, 2, 2]\nm = max_pool(x) kernel=3 stride=2\n\
             a = avg_pool(m) kernel=2 stride=2\nl = mse(a, t)",
            "seed5 = constant [1] value=1
             t6 = mse_grad(a, t, seed5)
             t7 = avg_pool_grad(t6) kernel=[2] stride=[2] in=[4]
             grad/x = max_pool_grad(x, t7) kernel=[3] stride=[2]",
        );
    }
}
