//! Convolution, its adjoint, and the gradient of its weight.

use serde::{Deserialize, Serialize};

use crate::error::{ShapeReason, TapeError};
use crate::grad::Vjp;
use crate::op::{Op, PerAxis};
use crate::region::Window;
use crate::ty::{Form, MAX_RANK, Ty};

use super::algo::ConvAlgo;
use super::check::{self, Checked, ensure, volume};
use super::structure::spatial_of;

/// Geometry of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConvAttrs {
    /// Taps per axis.
    pub kernel: PerAxis,
    /// Step between outputs.
    pub stride: PerAxis,
    /// Step between taps.
    pub dilation: PerAxis,
    /// Zeros before the first element.
    pub pad_lo: PerAxis,
    /// Zeros after the last element.
    pub pad_hi: PerAxis,
    /// Channel groups; `C` for a depthwise convolution.
    pub groups: usize,
    /// How it is computed.
    pub algo: ConvAlgo,
}

impl ConvAttrs {
    /// The sliding window along spatial axis `s`.
    pub fn window(&self, s: usize) -> Window {
        Window {
            kernel: self.kernel[s],
            stride: self.stride[s],
            dilation: self.dilation[s],
            pad: self.pad_lo[s],
        }
    }

    /// Output extent along spatial axis `s`, or `None` if the padded input is
    /// smaller than the kernel.
    pub fn out_extent(&self, s: usize, extent: usize) -> Option<usize> {
        let padded = extent + self.pad_lo[s] + self.pad_hi[s];
        let room = padded.checked_sub(self.window(s).reach() + 1)?;
        Some(room / self.stride[s] + 1)
    }
}

/// A transposed convolution: the adjoint of a convolution, with the extents
/// that the stride leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConvTransposeAttrs {
    /// The convolution that maps `out_spatial` onto the input's extents.
    pub conv: ConvAttrs,
    /// Spatial extents of the output.
    pub out_spatial: PerAxis,
}

/// Bounds the attributes for maps of `n` spatial axes.
fn check_attrs(a: &ConvAttrs, n: usize) -> Checked {
    check::expect_axes("the kernel", &a.kernel, n, 1)?;
    check::expect_axes("the stride", &a.stride, n, 1)?;
    check::expect_axes("the dilation", &a.dilation, n, 1)?;
    check::expect_axes("the padding", &a.pad_lo, n, 0)?;
    check::expect_axes("the padding", &a.pad_hi, n, 0)?;
    ensure!(
        a.groups >= 1,
        "groups must be at least 1, not 0; an ordinary convolution has 1"
    );
    ensure!(
        a.algo == ConvAlgo::Direct || a.can_winograd(n),
        "Winograd's algorithm needs one group, 3 x 3 taps on the last two axes, stride and dilation \
         1 and less padding than taps: take the direct one"
    );
    Ok(())
}

/// Extents that the convolution makes of `spatial`.
fn out_spatial(a: &ConvAttrs, spatial: &[usize]) -> Checked<Vec<usize>> {
    let mut out = Vec::with_capacity(spatial.len());
    for (s, &extent) in spatial.iter().enumerate() {
        let Some(n) = a.out_extent(s, extent) else {
            return Err(ShapeReason(format!(
                "on spatial axis {s} the kernel spans {} but the padded input only {}: pad it by \
                 {} more or use a smaller kernel or dilation",
                a.window(s).reach() + 1,
                extent + a.pad_lo[s] + a.pad_hi[s],
                a.window(s).reach() + 1 - extent - a.pad_lo[s] - a.pad_hi[s],
            )));
        };
        out.push(n);
    }
    Ok(out)
}

fn check_groups(what: &str, channels: usize, groups: usize) -> Checked {
    ensure!(
        channels.is_multiple_of(groups),
        "the {channels} channels of {what} cannot be split into {groups} groups: {groups} must divide them"
    );
    Ok(())
}

/// Requires `w: [K, C/groups, kernel…]`.
fn check_weight(a: &ConvAttrs, w: &Ty, n: usize) -> Checked {
    check::expect_flat("the weight", w)?;
    ensure!(
        w.shape.rank() == n + 2,
        "over {n} spatial axes the weight has shape [K, C/groups, kernel…] of rank {}, not {}",
        n + 2,
        w.shape
    );
    ensure!(
        w.shape.spatial() == &a.kernel[..n],
        "the weight {} does not have the kernel {:?}",
        w.shape,
        &a.kernel[..n]
    );
    check_groups("the weight's first axis", w.shape.dim(0), a.groups)
}

pub(super) fn infer_conv(a: &ConvAttrs, inputs: &[Ty]) -> Checked<Ty> {
    let (x, w) = (&inputs[0], &inputs[1]);
    let n = check::expect_map("the input", x)?;
    check_attrs(a, n)?;
    check_weight(a, w, n)?;
    let (k, c) = (w.shape.dim(0), x.shape.channels());
    check_groups("the input", c, a.groups)?;
    ensure!(
        w.shape.dim(1) == c / a.groups,
        "the input has {c} channels in {} group(s), so the weight must be [{k}, {}, …], not {}",
        a.groups,
        c / a.groups,
        w.shape
    );
    if let Some(b) = inputs.get(2) {
        check::expect_dims("the bias", b, &[k])?;
    }
    check::map(
        x.dtype,
        x.shape.batch(),
        k,
        &out_spatial(a, x.shape.spatial())?,
    )
}

pub(super) fn infer_transpose(a: &ConvTransposeAttrs, inputs: &[Ty]) -> Checked<Ty> {
    let (x, w) = (&inputs[0], &inputs[1]);
    let n = check::expect_map("the input", x)?;
    check_attrs(&a.conv, n)?;
    check::expect_axes("the output extent", &a.out_spatial, n, 1)?;
    check_weight(&a.conv, w, n)?;
    ensure!(
        w.shape.dim(0) == x.shape.channels(),
        "the input has {} channels, so the weight of the transposed convolution must be [{}, …], not {}",
        x.shape.channels(),
        x.shape.channels(),
        w.shape
    );
    let c = w.shape.dim(1).saturating_mul(a.conv.groups);
    if let Some(b) = inputs.get(2) {
        check::expect_dims("the bias", b, &[c])?;
    }
    let out = &a.out_spatial[..n];
    let back = out_spatial(&a.conv, out)?;
    ensure!(
        back == x.shape.spatial(),
        "the convolution makes {back:?} of {out:?}, not the input's {:?}: the output extent must be \
         (input − 1)·stride − padding + the kernel's span, plus less than the stride",
        x.shape.spatial()
    );
    check::map(x.dtype, x.shape.batch(), c, out)
}

pub(super) fn infer_weight_grad(a: &ConvAttrs, inputs: &[Ty]) -> Checked<Ty> {
    let (x, y) = (&inputs[0], &inputs[1]);
    let n = check::expect_map("the input", x)?;
    check_attrs(a, n)?;
    check_groups("the input", x.shape.channels(), a.groups)?;
    check_groups("the output gradient", y.shape.channels(), a.groups)?;
    let like = check::map(
        x.dtype,
        x.shape.batch(),
        1,
        &out_spatial(a, x.shape.spatial())?,
    )?;
    check::expect_same_space("the output gradient", y, "the output", &like)?;
    let mut dims = [1; MAX_RANK];
    dims[0] = y.shape.channels();
    dims[1] = x.shape.channels() / a.groups;
    dims[2..2 + n].copy_from_slice(&a.kernel[..n]);
    check::ty(x.dtype, Form::Flat, &dims[..2 + n])
}

/// Per output position: a multiply and an add for each weight of each group.
pub(super) fn conv_flops(inputs: &[Ty], out: &Ty) -> f64 {
    let bias = if inputs.len() == 3 {
        out.shape.channels() as f64
    } else {
        0.0
    };
    2.0 * volume(inputs[1].shape.dims()) + bias
}

/// As many as the convolution it is the adjoint of, spread over the output.
pub(super) fn transpose_flops(inputs: &[Ty], out: &Ty) -> f64 {
    let ratio = volume(inputs[0].shape.spatial()) / volume(out.shape.spatial());
    let bias = if inputs.len() == 3 {
        out.shape.channels() as f64
    } else {
        0.0
    };
    2.0 * volume(inputs[1].shape.dims()) * ratio + bias
}

/// Per position of the output gradient, the same as the forward.
pub(super) fn weight_grad_flops(out: &Ty) -> f64 {
    2.0 * volume(out.shape.dims())
}

/// `x̄` is the adjoint applied to `ȳ`; `w̄` correlates `x` with `ȳ`; `b̄` sums `ȳ`.
pub(super) fn vjp_conv(v: &mut Vjp, a: &ConvAttrs) -> Result<(), TapeError> {
    let (x, w, g) = (v.inputs[0], v.inputs[1], v.cotangent);
    v.give_op(1, Op::ConvWeightGrad(*a), &[x, g])?;
    v.give_op(2, Op::SumMap { keep_batch: false }, &[g])?;
    let (out_spatial, _) = spatial_of(&v.ty(x).shape);
    v.give_op(
        0,
        Op::ConvTranspose(ConvTransposeAttrs {
            conv: *a,
            out_spatial,
        }),
        &[g, w],
    )
}

/// Conv and its adjoint change places: `x̄` is the convolution of `ȳ`, and in
/// `w̄` input and output gradient do too.
pub(super) fn vjp_transpose(v: &mut Vjp, a: &ConvTransposeAttrs) -> Result<(), TapeError> {
    let (x, w, g) = (v.inputs[0], v.inputs[1], v.cotangent);
    v.give_op(1, Op::ConvWeightGrad(a.conv), &[g, x])?;
    v.give_op(2, Op::SumMap { keep_batch: false }, &[g])?;
    v.give_op(0, Op::Conv(a.conv), &[g, w])
}

#[cfg(test)]
mod tests {
    use crate::region::Span;
    use crate::testing::{check, check_grad, reads};

    #[test]
    fn conv_shapes() {
        check(&[
            (
                "x = input [2, 3, 64]\nw = param [8, 3, 5]\ny = conv(x, w)",
                "f32[2, 8, 60]",
            ),
            (
                "x = input [1, 3, 64, 63]\nw = param [8, 3, 3, 3]\nb = param [8]\n\
                 y = conv(x, w, b) stride=2 pad=1",
                "f32[1, 8, 32, 32]",
            ),
            (
                "x = input [1, 4, 9, 9, 9]\nw = param [8, 2, 3, 1, 2]\n\
                 y = conv(x, w) groups=2 dilation=[2, 1, 3] pad_lo=[1, 0, 0] pad_hi=[0, 0, 2]",
                "f32[1, 8, 6, 9, 8]",
            ),
            (
                "x = input [1, 3, 8, 8]\nw = param [8, 4, 3, 3]\ny = conv(x, w)",
                "`y` = conv(f32[1, 3, 8, 8], f32[8, 4, 3, 3]): the input has 3 channels in 1 \
                 group(s), so the weight must be [8, 3, …], not [8, 4, 3, 3]",
            ),
            (
                "x = input [1, 3, 8, 8]\nw = param [8, 1, 3, 3]\ny = conv(x, w) groups=2",
                "the 3 channels of the input cannot be split into 2 groups",
            ),
            (
                "x = input [1, 4, 8, 8]\nw = param [5, 2, 3, 3]\ny = conv(x, w) groups=2",
                "the 5 channels of the weight's first axis cannot be split into 2 groups",
            ),
            (
                "x = input [1, 3, 8, 8]\nw = param [8, 3, 3]\ny = conv(x, w)",
                "over 2 spatial axes the weight has shape [K, C/groups, kernel…] of rank 4, not [8, 3, 3]",
            ),
            (
                "x = input [1, 3, 8, 2]\nw = param [8, 3, 3, 3]\ny = conv(x, w) dilation=2",
                "on spatial axis 1 the kernel spans 5 but the padded input only 2: pad it by 3 more",
            ),
            (
                "x = input [1, 3]\nw = param [8, 3]\ny = conv(x, w)",
                "the input must be a map [N, C, spatial…]; [1, 3] is flat",
            ),
            (
                "x = input [1, 3, 8]\nw = input [8, 3, 3]\ny = conv(x, w)",
                "the weight must be flat (a parameter, or the result of a reduction); [8, 3, 3] is a map",
            ),
            (
                "x = input [1, 3, 8]\nw = param [8, 3, 3]\nb = param [3]\ny = conv(x, w, b)",
                "the bias must have shape [8], not [3]",
            ),
            (
                "x = input [1, 3, 8]\nw = param [8, 3, 3]\ny = conv(x, w) stride=0",
                "the stride must be at least 1",
            ),
            (
                "x = input [1, 3, 8]\nw = param [8, 3, 3]\ny = conv(x, w) dilation=0",
                "the dilation must be at least 1",
            ),
            (
                "x = input [1, 3, 8]\nw = param [8, 3, 3]\ny = conv(x, w) groups=0",
                "groups must be at least 1",
            ),
            (
                "x = input [1, 3, 8]\nw = param [8, 3, 3]\ny = conv(x, w) pad=18446744073709551615",
                "above the limit",
            ),
            (
                "x = input [1, 3, 8]\ny = conv(x)",
                "its inputs are (x, w[, b]), but 1 are given",
            ),
        ]);
    }

    #[test]
    fn transposed_shapes() {
        let xw = "x = input [1, 8, 5]\nw = param [8, 2, 3]\n";
        let y = |attributes: &str| format!("{xw}y = conv_transpose(x, w) {attributes}");
        check(&[
            (&y("out=[7]"), "f32[1, 2, 7]"),
            (&y("stride=2 pad=1 out=[9]"), "f32[1, 2, 9]"),
            (&y("stride=2 pad=1 out=[10]"), "f32[1, 2, 10]"),
            (&y("stride=2 pad=1 out=[10] groups=2"), "f32[1, 4, 10]"),
            (
                &y("stride=2 pad=1 out=[11]"),
                "the convolution makes [6] of [11], not the input's [5]: the output extent must be",
            ),
            (&y("stride=2"), "`conv_transpose` needs `out=…`"),
            (&y("out=[0]"), "the output extent must be at least 1"),
            (
                "x = input [1, 4, 5]\nw = param [8, 2, 3]\ny = conv_transpose(x, w) out=[7]",
                "the input has 4 channels, so the weight of the transposed convolution must be [4, …]",
            ),
            (
                "x = input [1, 4, 8]\ng = input [1, 6, 6]\ny = conv_weight_grad(x, g) kernel=[3] groups=2",
                "f32[6, 2, 3]",
            ),
            (
                "x = input [1, 4, 8]\ng = input [1, 6, 7]\ny = conv_weight_grad(x, g) kernel=[3]",
                "the output gradient must have the batch and spatial extents of the output, [1, 1, 6], not [1, 6, 7]",
            ),
        ]);
    }

    #[test]
    fn regions() {
        let conv =
            "x = input [1, 3, 64, 64]\nw = param [8, 3, 3, 3]\ny = conv(x, w) stride=2 pad=1";
        assert_eq!(reads(conv, 0, 0, 0..1), Span::new(0, 1));
        assert_eq!(reads(conv, 0, 1, 0..8), Span::new(0, 16));
        assert_eq!(reads(conv, 0, 2, 8..16), Span::new(15, 32));
        let transpose = "x = input [1, 8, 32, 32]\nw = param [8, 3, 3, 3]\n\
                         y = conv_transpose(x, w) stride=2 pad=1 out=[64, 64]";
        assert_eq!(reads(transpose, 0, 1, 16..32), Span::new(8, 17));
        let weight = "x = input [1, 3, 64, 64]\ng = input [1, 8, 32, 32]\n\
                      w = conv_weight_grad(x, g) kernel=3 stride=2 pad=1";
        assert_eq!(reads(weight, 0, 1, 8..16), Span::new(15, 32));
        assert_eq!(reads(weight, 1, 1, 8..16), Span::new(8, 16));
    }

    #[test]
    fn gradients() {
        check_grad(
            "x = input [1, 3, 8, 8] grad\nw = param [4, 3, 3, 3]\nb = param [4]\n\
             t = input [1, 4, 4, 4]\ny = conv(x, w, b) stride=2 pad=1\nl = mse(y, t)",
            "seed6 = constant [1] value=1
             t7 = mse_grad(y, t, seed6)
             grad/w = conv_weight_grad(x, t7) kernel=[3, 3] stride=[2, 2] pad=[1, 1]
             grad/b = sum_map(t7) keep_batch=false
             grad/x = conv_transpose(t7, w) stride=[2, 2] pad=[1, 1] out=[8, 8]",
        );
        check_grad(
            "x = input [1, 3, 4] grad\nw = param [3, 4, 2]\nb = param [4]\nt = input [1, 4, 8]\n\
             y = conv_transpose(x, w, b) stride=2 out=8\nl = mse(y, t)",
            "seed6 = constant [1] value=1
             t7 = mse_grad(y, t, seed6)
             grad/w = conv_weight_grad(t7, x) kernel=[2] stride=[2]
             grad/b = sum_map(t7) keep_batch=false
             grad/x = conv(t7, w) stride=[2]",
        );
    }
}
