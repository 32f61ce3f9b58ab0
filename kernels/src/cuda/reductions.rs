//! The calls of a reduction: begin, add a region of the domain, finish.

use sstep_autodiff::{ConvAttrs, Op, ReductionState, Ty};

use super::args::{Args, Placed, View, signed};
use super::attrs::{groups, n_spatial, region, views, with_conv, with_norm};
use super::convolution::Conv;
use super::library::Pass;
use super::lower::{Call, Step, Task, Work};
use crate::view::{Box4, Layout};

/// Which input's regions a reduction is accumulated over.
pub(super) fn domain(op: &Op) -> usize {
    match op {
        Op::ConvWeightGrad(_) => 1,
        Op::NormSums(_) => 2,
        _ => 0,
    }
}

/// A region of a reduction's domain: added to `state`, or reduced at once into
/// `out` if there is none.
pub(super) fn reduction(task: &Task<'_>, region: &Box4, state: Option<u64>, out: &Placed) -> Call {
    let inputs = task.inputs;
    let layout = &inputs[domain(task.op)].layout;
    let mut args = Args::over(region, layout.dims[1]);
    args.out = View::from(out);
    args.inputs = views(inputs);
    args.state = state.unwrap_or(0);
    let slots = (args.len[0] * args.channels) as u64;
    let elements = layout.shape.elems() as f64;
    let (kernel, results) = match task.op {
        Op::ConvWeightGrad(a) => {
            with_conv(&mut args, a, n_spatial(layout));
            args.count = signed(out.layout.shape.elems());
            ("conv_weight_grad", args.count as u64)
        }
        Op::SumMap { keep_batch } => {
            args.flag = i64::from(*keep_batch);
            ("sum_map", slots)
        }
        Op::GlobalMax => {
            args.code = signed(n_spatial(layout));
            ("global_max", slots)
        }
        Op::SpatialLse => ("spatial_lse", slots),
        Op::Moments(kind) => {
            args.groups = groups(kind);
            ("moments", slots)
        }
        Op::NormSums(a) => {
            with_norm(&mut args, a);
            ("norm_sums", slots)
        }
        Op::CrossEntropy => {
            args.num[0] = elements / layout.dims[1] as f64;
            ("cross_entropy", 1)
        }
        Op::Bce => {
            args.num[0] = elements;
            ("bce", 1)
        }
        Op::Mse => {
            args.num[0] = elements;
            ("mse", 1)
        }
        Op::DiceSums => ("dice_sums", slots),
        op => panic!("{op:?} is not a reduction"),
    };
    let work = Work::Blocks(results);
    Call { kernel, args, work }
}

/// Doubles that [`not_finite`] counts in.
pub const FINITE_SLOTS: usize = 1024;

/// Elements that a block of it looks at before there is another block.
const FINITE_PIECE: usize = 1 << 12;

/// Counts the elements of dense tensors that are not finite, in [`FINITE_SLOTS`] doubles
/// at `state`: of all finite tensors, all of these are zero.
pub fn not_finite(tensors: &[Placed], state: u64) -> Vec<Call> {
    let begin = Call {
        kernel: "fill_state",
        args: Args {
            state,
            count: signed(FINITE_SLOTS),
            ..Args::default()
        },
        work: Work::Items(FINITE_SLOTS as u64),
    };
    let one = |tensor: &Placed| {
        let n = tensor.layout.shape.elems();
        let mut args = Args {
            state,
            count: signed(n),
            ..Args::default()
        };
        args.inputs[0] = View::from(tensor);
        let blocks = n.div_ceil(FINITE_PIECE).min(FINITE_SLOTS);
        Call {
            kernel: "not_finite",
            args,
            work: Work::Blocks(blocks as u64),
        }
    };
    [begin].into_iter().chain(tensors.iter().map(one)).collect()
}

/// Starts a reduction whose output has type `out` at `address`: of its state, or
/// of the output itself.
pub fn begin(op: &Op, address: u64, out: &Ty) -> Call {
    let fill = |n: usize, first: f64, second: f64| {
        let mut args = Args {
            state: address,
            count: signed(n),
            ..Args::default()
        };
        args.num[..2].copy_from_slice(&[first, second]);
        let work = Work::Items(n as u64);
        Call {
            kernel: "fill_state",
            args,
            work,
        }
    };
    match op.reduction_state(out) {
        ReductionState::InPlace => {
            let layout = Layout::whole(out);
            let mut args = Args::over(&layout.everything(), layout.dims[1]);
            args.out = View::from(&Placed { address, layout });
            let work = Work::Items(args.elements());
            Call {
                kernel: "constant",
                args,
                work,
            }
        }
        ReductionState::F64(n) => match op {
            Op::GlobalMax => fill(n, -1.0, -1.0),
            Op::SpatialLse => fill(n, f64::NEG_INFINITY, 0.0),
            _ => fill(n, 0.0, 0.0),
        },
    }
}

/// Adds a region of the domain to a state, or to the output `out` in place.
pub fn accumulate(task: &Task<'_>, state: Option<u64>, out: &Placed) -> Vec<Step> {
    let domain = &task.inputs[domain(task.op)].layout;
    let region = region(&task.region, domain);
    match task.op {
        Op::ConvWeightGrad(a) => weight_grad(task, a, region, state, out),
        _ => vec![Step::Kernel(reduction(task, &region, state, out))],
    }
}

/// A weight gradient's region.
fn weight_grad(
    task: &Task<'_>,
    attrs: &ConvAttrs,
    region: Box4,
    state: Option<u64>,
    out: &Placed,
) -> Vec<Step> {
    let offered = Conv {
        pass: Pass::Filter,
        attrs,
        image: &task.inputs[0],
        map: &task.inputs[1],
        filter: out,
        region,
        bias: None,
        state,
    };
    offered.steps(task, &|region| reduction(task, region, state, out))
}

/// Turns a state into the result. `inputs` are the types of the whole inputs.
pub fn finish(op: &Op, inputs: &[Ty], state: u64, out: &Placed) -> Call {
    let n = out.layout.shape.elems();
    let mut args = Args {
        state,
        count: signed(n),
        out: View::from(out),
        ..Args::default()
    };
    let mut mean_over = |count: usize| {
        args.num[0] = count as f64;
        1
    };
    args.code = match op {
        Op::CrossEntropy => {
            let logits = inputs[0].shape;
            mean_over(logits.elems() / logits.channels())
        }
        Op::Bce | Op::Mse => mean_over(inputs[0].shape.elems()),
        Op::SpatialLse => 2,
        Op::Moments(_) => 3,
        _ => 0,
    };
    let work = Work::Items(n as u64);
    Call {
        kernel: "finish",
        args,
        work,
    }
}
