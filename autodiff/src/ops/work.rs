//! How much an op computes.

use crate::op::Op;
use crate::ty::Ty;

use super::check::unit;
use super::{dense, elementwise, loss, norm, pool, reduce, upsample, window};

impl Op {
    /// Work per position: of the output map, all channels together; of the
    /// domain ([`Op::domain`]) for a reduction. An op on flat tensors alone
    /// counts whole, as one position.
    ///
    /// The unit is one addition, multiplication or comparison; an exponential
    /// counts as ten. It ranks plans, and is exact for convolutions and dense
    /// layers.
    pub fn flops_per_point(&self, inputs: &[Ty], out: &Ty) -> f64 {
        match self {
            Op::Input { .. } | Op::Param { .. } | Op::Constant { .. } => 0.0,
            Op::Conv(_) => window::conv_flops(inputs, out),
            Op::ConvTranspose(_) => window::transpose_flops(inputs, out),
            Op::ConvWeightGrad(_) => window::weight_grad_flops(out),
            Op::MaxPool(a) | Op::AvgPool(a) => pool::flops(a, out),
            Op::MaxPoolGrad(a) => pool::grad_flops(a, &inputs[1], out),
            Op::AvgPoolGrad { pool, .. } => pool::grad_flops(pool, &inputs[0], out),
            Op::Upsample(a) => upsample::flops(a, out),
            Op::UpsampleGrad(a) => upsample::grad_flops(a, &inputs[0]),
            Op::Unary(kind) => elementwise::unary_flops(kind, out),
            Op::UnaryGrad { kind, saved } => elementwise::unary_grad_flops(kind, *saved, out),
            Op::Add | Op::Mul | Op::Scale { .. } => unit(out),
            Op::Dropout { .. } => elementwise::dropout_flops(out),
            Op::Softmax => elementwise::softmax_flops(out),
            Op::SoftmaxGrad => 4.0 * unit(out),
            Op::Cast { .. } | Op::Concat | Op::Slice(_) | Op::Pad(_) | Op::Broadcast { .. } => {
                unit(out)
            }
            Op::ChannelSum | Op::SumMap { .. } | Op::GlobalMax => unit(&inputs[0]),
            Op::GlobalMaxGrad { .. } => unit(out),
            Op::SpatialLse => reduce::lse_flops(&inputs[0]),
            Op::Moments(_) => norm::flops(&inputs[0], 4.0),
            Op::PackMoments | Op::NormParamGrad(_) => unit(&inputs[0]),
            Op::Normalise(_) => norm::flops(out, 2.0),
            Op::NormSums(_) => norm::flops(&inputs[2], 5.0),
            Op::NormGrad(a) => norm::flops(out, if a.frozen { 1.0 } else { 6.0 }),
            Op::Linear => dense::flops(out.shape.batch(), out.shape.dim(1), inputs[1].shape.dim(1)),
            Op::LinearInputGrad => {
                dense::flops(out.shape.batch(), out.shape.dim(1), inputs[1].shape.dim(0))
            }
            Op::LinearWeightGrad => {
                dense::flops(inputs[0].shape.batch(), out.shape.dim(0), out.shape.dim(1))
            }
            Op::CrossEntropy | Op::CrossEntropyGrad | Op::Bce | Op::BceGrad => {
                loss::log_flops(&inputs[0])
            }
            Op::Mse | Op::MseGrad => 3.0 * unit(&inputs[0]),
            Op::DiceSums => 4.0 * unit(&inputs[0]),
            Op::DiceSumsGrad => 2.0 * unit(out),
            Op::DiceLoss { .. } | Op::DiceLossGrad { .. } => 4.0 * unit(&inputs[0]),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::testing::parse;

    /// Work per position, and for flat ops in all.
    #[test]
    fn convolutions_and_dense_layers_are_counted_exactly() {
        for (lines, expected) in [
            (
                "x = input [1, 16, 8, 8]\nw = param [32, 16, 3, 3]\ny = conv(x, w)",
                2.0 * 32.0 * 16.0 * 9.0,
            ),
            (
                "x = input [1, 16, 8, 8]\nw = param [16, 1, 3, 3]\ny = conv(x, w) groups=16",
                2.0 * 16.0 * 9.0,
            ),
            (
                "x = input [1, 32, 4, 4]\nw = param [32, 16, 2, 2]\ny = conv_transpose(x, w) stride=2 out=8",
                2.0 * 32.0 * 16.0,
            ),
            (
                "x = input [1, 16, 8]\ng = input [1, 32, 6]\nw = conv_weight_grad(x, g) kernel=3",
                2.0 * 32.0 * 16.0 * 3.0,
            ),
            (
                "x = input [4, 100]\nw = param [10, 100]\ny = linear(x, w)",
                2.0 * 4.0 * 1000.0,
            ),
            (
                "x = input [4, 10]\nw = param [10, 100]\ny = linear_input_grad(x, w)",
                2.0 * 4.0 * 1000.0,
            ),
            (
                "x = input [4, 100]\ng = input [4, 10]\ny = linear_weight_grad(x, g)",
                2.0 * 4.0 * 1000.0,
            ),
            ("x = input [4, 16, 8]\ny = relu(x)", 16.0),
            ("x = input [4, 16]\ny = relu(x)", 64.0),
            ("x = input [4, 16, 8]\ny = sum_map(x)", 16.0),
        ] {
            let tape = parse(lines).unwrap();
            let last = *tape.order().last().unwrap();
            let flops = tape
                .node(last)
                .op
                .flops_per_point(&tape.input_tys(last), &tape.ty(last));
            assert_eq!(flops, expected, "{lines}");
        }
    }
}
