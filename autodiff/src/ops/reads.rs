//! Which part of its inputs an op reads for a part of its result.
//!
//! Per axis and exactly: a planner's cost of a tile and an executor's halo are
//! both this. Every tile of a map op depends on what is read here alone.

use crate::op::Op;
use crate::region::AxisRead;
use crate::ty::{DType, Ty};

use super::upsample::UpsampleMode;

/// How a reduction is accumulated between tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReductionState {
    /// Directly into the output tensor.
    InPlace,
    /// Into this many doubles, turned into the output after the last tile.
    F64(usize),
}

/// Elements up to which a weight's gradient is accumulated in doubles.
const FEW_WEIGHTS: usize = 1 << 14;

impl Op {
    /// For a reduction that turns a map into a flat tensor: the input over
    /// whose region it is accumulated. `None` for map ops and flat ops.
    pub fn domain(&self, inputs: &[Ty], out: &Ty) -> Option<usize> {
        if out.is_map() {
            return None;
        }
        match self {
            Op::ConvWeightGrad(_) => Some(1),
            Op::NormSums(_) => Some(2),
            _ => inputs.iter().position(Ty::is_map),
        }
    }

    /// How a reduction over maps keeps its partial result between tiles: in
    /// doubles, so that it does not matter how many tiles there are. Weights of
    /// many elements are the exception, where three times the memory would cost
    /// more than it gains: they belong to deep layers with small maps, or to
    /// large tiles, and so to few sums.
    pub fn reduction_state(&self, out: &Ty) -> ReductionState {
        let n = out.shape.elems();
        match self {
            // Doubles add nothing to doubles.
            Op::ConvWeightGrad(_) if out.dtype == DType::F64 || n > FEW_WEIGHTS => {
                ReductionState::InPlace
            }
            // Sums, and room for the part of one tile in single precision.
            Op::ConvWeightGrad(_) => ReductionState::F64(n + n.div_ceil(2)),
            Op::SpatialLse => ReductionState::F64(2 * n),
            // Count, mean and centred sum of squares per group.
            Op::Moments(_) => ReductionState::F64(n / 2 * 3),
            _ => ReductionState::F64(n),
        }
    }

    /// What the node reads of map input `input` along cuttable axis `axis`
    /// (0 is the batch), for an interval of its output, or of its domain if it
    /// is a reduction. Flat inputs are always read whole.
    pub fn read(&self, input: usize, axis: usize, inputs: &[Ty], _out: &Ty) -> AxisRead {
        if axis == 0 {
            return AxisRead::Point;
        }
        let s = axis - 1;
        match self {
            Op::Conv(a) => a.reads(s, inputs[0].shape.spatial().len()),
            Op::ConvTranspose(a) => a.conv.adjoint_reads(s, inputs[0].shape.spatial().len()),
            Op::ConvWeightGrad(a) if input == 0 => AxisRead::Window(a.window(s)),
            Op::MaxPool(a) | Op::AvgPool(a) => AxisRead::Window(a.window(s)),
            Op::AvgPoolGrad { pool, .. } => AxisRead::Adjoint(pool.window(s)),
            Op::MaxPoolGrad(a) => {
                let window = a.window(s);
                let n_windows = inputs[1].axis_extent(axis);
                match input {
                    0 => AxisRead::AdjointWindow { window, n_windows },
                    _ => AxisRead::Adjoint(window),
                }
            }
            Op::Upsample(a) => match a.mode {
                UpsampleMode::Nearest => AxisRead::Nearest(a.factor[s]),
                UpsampleMode::Linear => AxisRead::Linear(a.factor[s]),
            },
            Op::UpsampleGrad(a) => match a.mode {
                UpsampleMode::Nearest => AxisRead::NearestAdjoint(a.factor[s]),
                UpsampleMode::Linear => AxisRead::LinearAdjoint(a.factor[s]),
            },
            Op::Slice(a) => AxisRead::Shift(a.start[axis] as isize),
            Op::Pad(a) => AxisRead::Shift(-(a.lo[axis] as isize)),
            Op::Input { .. }
            | Op::Param { .. }
            | Op::Constant { .. }
            | Op::ConvWeightGrad(_)
            | Op::Unary(_)
            | Op::UnaryGrad { .. }
            | Op::Add
            | Op::Mul
            | Op::Scale { .. }
            | Op::Dropout { .. }
            | Op::Softmax
            | Op::SoftmaxGrad
            | Op::ChannelSum
            | Op::Cast { .. }
            | Op::Concat
            | Op::Broadcast { .. }
            | Op::SumMap { .. }
            | Op::GlobalMax
            | Op::GlobalMaxGrad { .. }
            | Op::SpatialLse
            | Op::Moments(_)
            | Op::PackMoments
            | Op::Normalise(_)
            | Op::NormSums(_)
            | Op::NormGrad(_)
            | Op::NormParamGrad(_)
            | Op::Linear
            | Op::LinearInputGrad
            | Op::LinearWeightGrad
            | Op::CrossEntropy
            | Op::CrossEntropyGrad
            | Op::Bce
            | Op::BceGrad
            | Op::Mse
            | Op::MseGrad
            | Op::DiceSums
            | Op::DiceSumsGrad
            | Op::DiceLoss { .. }
            | Op::DiceLossGrad { .. } => AxisRead::Point,
        }
    }
}
