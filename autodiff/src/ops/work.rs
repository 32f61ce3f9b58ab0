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
            Op::Concat | Op::Slice(_) | Op::Pad(_) | Op::Broadcast { .. } => unit(out),
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
