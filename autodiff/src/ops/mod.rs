//! What there is to know of each op, one file per family.
//!
//! A family file holds the attributes, the shape rule, the gradient and the work
//! of its ops. Here types and gradients are dispatched, in `reads` regions, in
//! `work` costs. What holds for every op is checked once: the number of inputs
//! and one element type.

mod algo;
mod check;
mod decoding;
mod dense;
mod elementwise;
mod loss;
mod norm;
mod pool;
mod precision;
mod reads;
mod reduce;
mod structure;
mod upsample;
mod window;
mod work;

pub use algo::{ConvAlgo, WINOGRAD_TILE};
pub(crate) use check::ty as checked_ty;
pub use elementwise::{Saved, UnaryKind};
pub use norm::{NormAttrs, NormKind, NormParam};
pub use pool::PoolAttrs;
pub use reads::ReductionState;
pub use structure::{PadAttrs, SliceAttrs};
pub use upsample::{UpsampleAttrs, UpsampleMode};
pub use window::{ConvAttrs, ConvTransposeAttrs};

use std::collections::HashSet;

use crate::error::{ShapeReason, TapeError};
use crate::grad::Vjp;
use crate::op::Op;
use crate::tape::{NodeId, Tape};
use crate::ty::{DType, Form, Ty};

use check::{Checked, ensure};

/// Fewest and most inputs of an op, and what they are.
fn signature(op: &Op) -> (usize, usize, &'static str) {
    match op {
        Op::Input { .. } | Op::Param { .. } | Op::Constant { .. } => (0, 0, ""),
        Op::Conv(_) | Op::ConvTranspose(_) | Op::Linear => (2, 3, "x, w[, b]"),
        Op::ConvWeightGrad(_) | Op::MaxPoolGrad(_) | Op::LinearWeightGrad => {
            (2, 2, "x, output gradient")
        }
        Op::LinearInputGrad => (2, 2, "output gradient, w"),
        Op::MaxPool(_)
        | Op::AvgPool(_)
        | Op::Upsample(_)
        | Op::Unary(_)
        | Op::Scale { .. }
        | Op::Dropout { .. }
        | Op::Softmax
        | Op::ChannelSum
        | Op::Cast { .. }
        | Op::Slice(_)
        | Op::Pad(_)
        | Op::Broadcast { .. }
        | Op::SumMap { .. }
        | Op::GlobalMax
        | Op::SpatialLse
        | Op::Moments(_) => (1, 1, "x"),
        Op::AvgPoolGrad { .. } | Op::UpsampleGrad(_) => (1, 1, "output gradient"),
        Op::UnaryGrad { .. } => (2, 2, "saved, output gradient"),
        Op::Add | Op::Mul => (2, 2, "a, b"),
        Op::SoftmaxGrad => (2, 2, "y, output gradient"),
        Op::Concat => (1, usize::MAX, "a, b, …"),
        Op::GlobalMaxGrad { .. } => (2, 2, "packed maxima, their gradient"),
        Op::PackMoments => (2, 2, "mean, variance"),
        Op::Normalise(_) => (4, 4, "x, moments, gamma, beta"),
        Op::NormSums(_) => (3, 3, "x, moments, output gradient"),
        Op::NormGrad(a) if a.frozen => (3, 3, "moments, output gradient, gamma"),
        Op::NormGrad(_) => (5, 5, "x, moments, output gradient, gamma, sums"),
        Op::NormParamGrad(_) | Op::DiceLoss { .. } => (1, 1, "sums"),
        Op::CrossEntropy => (2, 2, "logits, labels"),
        Op::CrossEntropyGrad => (3, 3, "logits, labels, loss gradient"),
        Op::Bce => (2, 2, "logits, targets"),
        Op::BceGrad => (3, 3, "logits, targets, loss gradient"),
        Op::Mse => (2, 2, "x, target"),
        Op::MseGrad => (3, 3, "x, target, loss gradient"),
        Op::DiceSums => (2, 2, "prediction, target"),
        Op::DiceSumsGrad => (2, 2, "target, gradient of the sums"),
        Op::DiceLossGrad { .. } => (2, 2, "sums, loss gradient"),
    }
}

/// Type of an op's result.
///
/// # Errors
/// A sentence with the values and what would do, if the op does not accept
/// inputs of these types. Leaves have no inputs to infer from and are refused.
pub fn infer(op: &Op, inputs: &[Ty]) -> Result<Ty, ShapeReason> {
    let (least, most, names) = signature(op);
    ensure!(!op.is_leaf(), "a leaf has a shape of its own");
    ensure!(
        (least..=most).contains(&inputs.len()),
        "its inputs are ({names}), but {} are given",
        inputs.len()
    );
    precision::check(op, inputs)?;
    let extents = infer_extents(op, inputs)?;
    Ok(extents.with_dtype(precision::of_result(op, inputs, &extents)))
}

/// Shape and form of an op's result.
fn infer_extents(op: &Op, inputs: &[Ty]) -> Checked<Ty> {
    let x = &inputs[0];
    match op {
        Op::Input { .. } | Op::Param { .. } | Op::Constant { .. } | Op::Cast { .. } => Ok(*x),
        Op::Conv(a) => window::infer_conv(a, inputs),
        Op::ConvTranspose(a) => window::infer_transpose(a, inputs),
        Op::ConvWeightGrad(a) => window::infer_weight_grad(a, inputs),
        Op::MaxPool(a) | Op::AvgPool(a) => pool::infer(a, x),
        Op::MaxPoolGrad(a) => pool::infer_max_grad(a, x, &inputs[1]),
        Op::AvgPoolGrad { pool, in_spatial } => pool::infer_avg_grad(pool, in_spatial, x),
        Op::Upsample(a) => upsample::infer(a, x),
        Op::UpsampleGrad(a) => upsample::infer_grad(a, x),
        Op::Unary(kind) => elementwise::infer_unary(kind, x),
        Op::UnaryGrad { kind, saved } => elementwise::infer_unary_grad(kind, *saved, x, &inputs[1]),
        Op::Add | Op::Mul => elementwise::infer_binary(x, &inputs[1]),
        Op::Scale { factor } => elementwise::infer_scale(*factor, x),
        Op::Dropout { p, key: _ } => elementwise::infer_dropout(*p, x),
        Op::Softmax => elementwise::infer_softmax(x),
        Op::SoftmaxGrad => elementwise::infer_softmax_grad(x, &inputs[1]),
        Op::ChannelSum => elementwise::infer_channel_sum(x),
        Op::Concat => structure::infer_concat(inputs),
        Op::Slice(a) => structure::infer_slice(a, x),
        Op::Pad(a) => structure::infer_pad(a, x),
        Op::Broadcast { spatial, n_spatial } => structure::infer_broadcast(spatial, *n_spatial, x),
        Op::SumMap { keep_batch } => reduce::infer_sum(*keep_batch, x),
        Op::GlobalMax => reduce::infer_global_max(x),
        Op::GlobalMaxGrad { spatial, n_spatial } => {
            reduce::infer_global_max_grad(spatial, *n_spatial, x, &inputs[1])
        }
        Op::SpatialLse => reduce::infer_lse(x),
        Op::Moments(kind) => norm::infer_moments(*kind, x),
        Op::PackMoments => norm::infer_pack(x, &inputs[1]),
        Op::Normalise(a) => norm::infer_normalise(a, inputs),
        Op::NormSums(a) => norm::infer_sums(a, inputs),
        Op::NormGrad(a) => norm::infer_grad(a, inputs),
        Op::NormParamGrad(_) => norm::infer_param_grad(x),
        Op::Linear => dense::infer_linear(inputs),
        Op::LinearInputGrad => dense::infer_input_grad(x, &inputs[1]),
        Op::LinearWeightGrad => dense::infer_weight_grad(x, &inputs[1]),
        Op::CrossEntropy => loss::infer_cross_entropy(x, &inputs[1]),
        Op::CrossEntropyGrad => loss::infer_cross_entropy_grad(x, &inputs[1], &inputs[2]),
        Op::Bce | Op::Mse => loss::infer_paired(x, &inputs[1]),
        Op::BceGrad | Op::MseGrad => loss::infer_paired_grad(x, &inputs[1], &inputs[2]),
        Op::DiceSums => loss::infer_dice_sums(x, &inputs[1]),
        Op::DiceSumsGrad => loss::infer_dice_sums_grad(x, &inputs[1]),
        Op::DiceLoss { smooth } => loss::infer_dice_loss(*smooth, x),
        Op::DiceLossGrad { smooth } => loss::infer_dice_loss_grad(*smooth, x, &inputs[1]),
    }
}

/// Appends the gradients of a node's wanted inputs, given that of its result.
///
/// # Errors
/// [`TapeError::NoGradient`] if one that is wanted is not defined.
pub(crate) fn vjp(v: &mut Vjp) -> Result<(), TapeError> {
    match v.op() {
        // A leaf has no inputs.
        Op::Input { .. } | Op::Param { .. } | Op::Constant { .. } => Ok(()),
        Op::Conv(a) => window::vjp_conv(v, &a),
        Op::ConvTranspose(a) => window::vjp_transpose(v, &a),
        Op::MaxPool(a) => pool::vjp_max(v, &a),
        Op::AvgPool(a) => pool::vjp_avg(v, &a),
        Op::Upsample(a) => upsample::vjp(v, &a),
        Op::Unary(kind) => elementwise::vjp_unary(v, kind),
        Op::Add => elementwise::vjp_add(v),
        Op::Mul => elementwise::vjp_mul(v),
        Op::Scale { .. } | Op::Dropout { .. } => elementwise::vjp_self_adjoint(v),
        Op::Softmax => elementwise::vjp_softmax(v),
        Op::ChannelSum => elementwise::vjp_channel_sum(v),
        Op::Cast { .. } => precision::vjp_cast(v),
        Op::Concat => structure::vjp_concat(v),
        Op::Slice(a) => structure::vjp_slice(v, &a),
        Op::Pad(a) => structure::vjp_pad(v, &a),
        Op::Broadcast { .. } => structure::vjp_broadcast(v),
        Op::SumMap { keep_batch } => reduce::vjp_sum(v, keep_batch),
        Op::GlobalMax => reduce::vjp_global_max(v),
        Op::SpatialLse => reduce::vjp_lse(v),
        Op::Normalise(a) => norm::vjp_normalise(v, &a),
        Op::Linear => dense::vjp_linear(v),
        Op::CrossEntropy => loss::vjp_paired(v, Op::CrossEntropyGrad),
        Op::Bce => loss::vjp_paired(v, Op::BceGrad),
        Op::Mse => loss::vjp_paired(v, Op::MseGrad),
        Op::DiceSums => loss::vjp_dice_sums(v),
        Op::DiceLoss { smooth } => loss::vjp_dice_loss(v, smooth),
        // Moments reach a loss only through the norm that goes through them
        // itself; the others are gradients already.
        Op::Moments(_)
        | Op::PackMoments
        | Op::ConvWeightGrad(_)
        | Op::MaxPoolGrad(_)
        | Op::AvgPoolGrad { .. }
        | Op::UpsampleGrad(_)
        | Op::UnaryGrad { .. }
        | Op::SoftmaxGrad
        | Op::GlobalMaxGrad { .. }
        | Op::NormSums(_)
        | Op::NormGrad(_)
        | Op::NormParamGrad(_)
        | Op::LinearInputGrad
        | Op::LinearWeightGrad
        | Op::CrossEntropyGrad
        | Op::BceGrad
        | Op::MseGrad
        | Op::DiceSumsGrad
        | Op::DiceLossGrad { .. } => (0..v.inputs.len()).try_for_each(|i| v.refuse(i)),
    }
}

/// What types cannot say: which nodes an op must be applied to.
///
/// # Errors
/// If a norm that is not frozen is given moments of anything but its input.
pub(crate) fn check_links(tape: &Tape, op: &Op, inputs: &[NodeId]) -> Checked {
    if let Op::Normalise(a) | Op::NormSums(a) | Op::NormGrad(a) = op
        && !a.frozen
    {
        norm::check_moments(tape, a, inputs[0], inputs[1])?;
    }
    Ok(())
}

/// Checks a finished node against its inputs, all of which must be in `seen`.
pub(crate) fn check_node(tape: &Tape, id: NodeId, seen: &HashSet<NodeId>) -> Checked {
    let node = tape.node(id);
    ensure!(
        node.inputs.iter().all(|i| seen.contains(i)),
        "its inputs must come before it"
    );
    let ty = infer(&node.op, &tape.input_tys(id))?;
    ensure!(ty == node.ty, "its type is {ty}, not {}", node.ty);
    check_links(tape, &node.op, &node.inputs)
}

/// Checks the type of a leaf. The text form writes no forms, so they follow
/// from the kind of leaf: inputs of rank 3 and more are maps, all else is flat.
pub(crate) fn check_leaf(op: &Op, t: &Ty, dtype: DType) -> Checked {
    ensure!(
        op.is_leaf(),
        "it computes from inputs, so it is no leaf: use `push`"
    );
    ensure!(
        t.dtype == dtype,
        "every tensor of this tape is {dtype}, not {}",
        t.dtype
    );
    ensure!(
        !t.dtype.is_narrow(),
        "leaves are f32 or f64, not {}: use `cast` on them",
        t.dtype
    );
    check::ty(t.dtype, t.form, t.shape.dims())?;
    let form = leaf_form(op, t.shape.rank());
    ensure!(
        t.form == form,
        "parameters, constants and inputs of rank 1 or 2 are flat, inputs of rank 3 and more are \
         maps; {} is declared otherwise",
        t.shape
    );
    if let Op::Constant { value } = op {
        check::expect_num("the value", *value, |_| true, "a finite number")?;
    }
    Ok(())
}

/// Form of a leaf.
pub(crate) fn leaf_form(op: &Op, rank: usize) -> Form {
    if matches!(op, Op::Input { .. }) && rank >= 3 {
        Form::Map
    } else {
        Form::Flat
    }
}
