//! From an op and its views to kernel calls. Which kernels an op runs is listed
//! here and nowhere else.

use sstep_autodiff::{ConvAttrs, Form, NormParam, Op, Saved};

use super::args::{Args, Placed, View, signed};
use super::attrs::{
    n_spatial, offsets, region, views, with_conv, with_norm, with_pool, with_unary, with_upsample,
};
use super::convolution::{Conv, add_per_channel, asked};
use super::library::{MatmulShapes, Offer, Pass, Scratch, matmul};
use super::reductions::{domain, reduction};
use crate::cpu::dropout_threshold;
use crate::view::{Box4, Layout};
use crate::{Pace, UpdateRule};

/// How much there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// So many independent items, one thread each or in turns.
    Items(u64),
    /// So many results, one block each or in turns.
    Blocks(u64),
}

/// One kernel launch.
#[derive(Clone, Debug, PartialEq)]
pub struct Call {
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Its parameter block.
    pub args: Args,
    /// Work for its grid.
    pub work: Work,
}

/// A part of an op, in order.
#[derive(Clone, Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "nearly all steps are kernels, and no step is kept"
)]
pub enum Step {
    /// A kernel of ours.
    Kernel(Call),
    /// A library's, if it takes it.
    Offer(Box<Offer>),
}

/// What to compute; see [`crate::Job`].
pub struct Task<'a> {
    /// The op.
    pub op: &'a Op,
    /// Positions of the output, or of a reduction's domain.
    pub region: Box4,
    /// The op's inputs, in its order.
    pub inputs: &'a [Placed],
    /// Training step, for counter-based randomness.
    pub step: u64,
    /// Seed of the run.
    pub seed: u64,
    /// What the plan gives a kernel for itself.
    pub scratch: Option<Scratch>,
}

/// Elements of one channel that a block of a norm's kernel works on.
const PIECE: i64 = 1 << 14;

/// Blocks of a norm's pointwise kernel.
fn pieces(args: &mut Args) -> Work {
    args.count = PIECE;
    let space: i64 = args.len[1..].iter().product();
    let slots = args.len[0] * args.channels;
    Work::Blocks((slots * ((space + PIECE - 1) / PIECE)) as u64)
}

/// A region of a map op's output, or all of a flat op's; also a reduction over
/// flat tensors, at once.
///
/// # Panics
/// If the inputs are not those of the op.
pub fn compute(task: &Task<'_>, out: &Placed) -> Vec<Step> {
    let layout = &out.layout;
    let n = n_spatial(layout);
    let inputs = task.inputs;
    let mut args = Args::over(&region(&task.region, layout), layout.dims[1]);
    args.out = View::from(out);
    args.inputs = views(inputs);
    let (elements, points) = (Work::Items(args.elements()), Work::Items(args.points()));
    let flat = Work::Items(layout.shape.elems() as u64);
    let count = |layout: &Layout| layout.shape.elems() as f64;
    let (kernel, work) = match task.op {
        Op::Input { .. } | Op::Param { .. } => return Vec::new(),
        Op::Constant { value } => {
            args.num[0] = value.get();
            ("constant", elements)
        }
        Op::Conv(a) => return conv(task, a, Pass::Forward, out),
        Op::ConvTranspose(a) => return conv(task, &a.conv, Pass::Data, out),
        Op::MaxPool(a) => {
            with_pool(&mut args, a, n);
            ("max_pool", elements)
        }
        Op::MaxPoolGrad(a) => {
            with_pool(&mut args, a, n);
            ("max_pool_grad", elements)
        }
        Op::AvgPool(a) => {
            with_pool(&mut args, a, n);
            ("avg_pool", elements)
        }
        Op::AvgPoolGrad { pool, .. } => {
            with_pool(&mut args, pool, n);
            ("avg_pool_grad", elements)
        }
        Op::Upsample(a) => {
            with_upsample(&mut args, a, n);
            ("upsample", elements)
        }
        Op::UpsampleGrad(a) => {
            with_upsample(&mut args, a, n);
            ("upsample_grad", elements)
        }
        Op::Unary(kind) => {
            with_unary(&mut args, kind);
            ("unary", elements)
        }
        Op::UnaryGrad { kind, saved } => {
            with_unary(&mut args, kind);
            args.flag = match saved {
                Saved::Input => 0,
                Saved::Output => 1,
            };
            ("unary_grad", elements)
        }
        Op::Add | Op::Mul => {
            let b = &inputs[1].layout;
            let same = layout.form == Form::Flat && inputs[0].layout.shape == b.shape;
            args.flag = i64::from(b.form == Form::Flat && !same);
            let is_add = matches!(task.op, Op::Add);
            (if is_add { "add" } else { "mul" }, elements)
        }
        Op::Scale { factor } => {
            args.num[0] = factor.get();
            ("scale", elements)
        }
        Op::Dropout { p, key } => {
            let p = p.get();
            args.key = [task.seed, task.step, *key, dropout_threshold(p)];
            args.num[0] = 1.0 / (1.0 - p);
            ("dropout", elements)
        }
        Op::Softmax => ("softmax", points),
        Op::SoftmaxGrad => ("softmax_grad", points),
        Op::ChannelSum => ("channel_sum", points),
        // Views say how elements are stored.
        Op::Cast { .. } => ("copy", elements),
        Op::Concat => {
            return concat(&args, inputs)
                .into_iter()
                .map(Step::Kernel)
                .collect();
        }
        Op::Slice(a) => {
            args.offset = offsets(&a.start, n);
            ("slice", elements)
        }
        Op::Pad(a) => {
            args.offset = offsets(&a.lo, n);
            ("pad", elements)
        }
        Op::Broadcast { .. } => ("broadcast", elements),
        Op::GlobalMaxGrad { n_spatial, .. } => {
            args.code = i64::from(*n_spatial);
            ("global_max_grad", elements)
        }
        Op::PackMoments => {
            args.count = signed(layout.shape.elems());
            ("pack_moments", flat)
        }
        Op::Normalise(a) => {
            with_norm(&mut args, a);
            let work = pieces(&mut args);
            ("normalise", work)
        }
        Op::NormGrad(a) => {
            with_norm(&mut args, a);
            let work = pieces(&mut args);
            let kernel = if a.frozen {
                "norm_grad_frozen"
            } else {
                "norm_grad"
            };
            (kernel, work)
        }
        Op::NormParamGrad(which) => {
            args.count = signed(layout.shape.elems());
            args.flag = match which {
                NormParam::Gamma => 1,
                NormParam::Beta => 0,
            };
            ("norm_param_grad", flat)
        }
        Op::Linear => {
            args.count = signed(layout.shape.elems());
            args.flag = i64::from(inputs.len() > 2);
            ("linear", flat)
        }
        Op::LinearInputGrad => {
            args.count = signed(layout.shape.elems());
            ("linear_input_grad", flat)
        }
        Op::LinearWeightGrad => {
            args.count = signed(layout.shape.elems());
            ("linear_weight_grad", flat)
        }
        Op::CrossEntropyGrad => {
            let logits = &inputs[0].layout;
            args.num[0] = count(logits) / logits.dims[1] as f64;
            ("cross_entropy_grad", points)
        }
        Op::BceGrad => {
            args.num[0] = count(&inputs[0].layout);
            ("bce_grad", elements)
        }
        Op::MseGrad => {
            args.num[0] = count(&inputs[0].layout);
            ("mse_grad", elements)
        }
        Op::DiceSumsGrad => ("dice_sums_grad", elements),
        Op::DiceLoss { smooth } => {
            args.num[0] = smooth.get();
            args.count = signed(inputs[0].layout.shape.elems() / 3);
            ("dice_loss", Work::Items(1))
        }
        Op::DiceLossGrad { smooth } => {
            args.num[0] = smooth.get();
            args.count = signed(inputs[0].layout.shape.elems() / 3);
            ("dice_loss_grad", Work::Items(args.count as u64))
        }
        Op::ConvWeightGrad(_)
        | Op::SumMap { .. }
        | Op::GlobalMax
        | Op::SpatialLse
        | Op::Moments(_)
        | Op::NormSums(_)
        | Op::CrossEntropy
        | Op::Bce
        | Op::Mse
        | Op::DiceSums => {
            let domain = inputs[domain(task.op)].layout.everything();
            return vec![Step::Kernel(reduction(task, &domain, None, out))];
        }
    };
    let call = Call { kernel, args, work };
    let is_dense = matches!(
        task.op,
        Op::Linear | Op::LinearInputGrad | Op::LinearWeightGrad
    );
    let step = if is_dense {
        dense(task, out, call)
    } else {
        Step::Kernel(call)
    };
    vec![step]
}

/// A convolution, forward or transposed.
fn conv(task: &Task<'_>, attrs: &ConvAttrs, pass: Pass, out: &Placed) -> Vec<Step> {
    let inputs = task.inputs;
    let n = n_spatial(&out.layout);
    let name = match pass {
        Pass::Data => "conv_transpose",
        Pass::Forward | Pass::Filter => "conv",
    };
    let kernel = |region: &Box4| {
        let mut args = Args::over(region, out.layout.dims[1]);
        args.out = View::from(out);
        args.inputs = views(inputs);
        with_conv(&mut args, attrs, n);
        args.flag = i64::from(inputs.len() > 2);
        let work = Work::Items(args.elements());
        Call {
            kernel: name,
            args,
            work,
        }
    };
    let (image, map) = match pass {
        Pass::Data => (out, &inputs[0]),
        Pass::Forward | Pass::Filter => (&inputs[0], out),
    };
    let offered = Conv {
        pass,
        attrs,
        image,
        map,
        filter: &inputs[1],
        region: asked(task, out),
        bias: inputs.get(2),
        state: None,
    };
    offered.steps(task, &kernel)
}

/// A dense layer or one of its gradients.
fn dense(task: &Task<'_>, out: &Placed, instead: Call) -> Step {
    let [first, second, ..] = task.inputs else {
        return Step::Kernel(instead);
    };
    let at = [second.address, first.address, out.address];
    let dims = |placed: &Placed| (placed.layout.dims[0] as u64, placed.layout.dims[1] as u64);
    let (rows, columns) = dims(out);
    let of = |k, transpose_a, transpose_b| MatmulShapes {
        m: columns,
        n: rows,
        k,
        transpose_a,
        transpose_b,
    };
    match task.op {
        // y[N, O] = x[N, F] · w[O, F]ᵀ.
        Op::Linear => {
            let after = task.inputs.get(2).map(|b| {
                let everything = out.layout.everything();
                add_per_channel(out, &everything, b)
            });
            matmul(task, of(dims(first).1, true, false), at, after, instead)
        }
        // x̄[N, F] = ȳ[N, O] · w[O, F].
        Op::LinearInputGrad => matmul(task, of(dims(first).1, false, false), at, None, instead),
        // w̄[O, F] = ȳ[N, O]ᵀ · x[N, F]; the inputs are x, ȳ.
        _ => {
            let at = [first.address, second.address, out.address];
            matmul(task, of(dims(first).0, false, true), at, None, instead)
        }
    }
}

/// Each input to its channels.
fn concat(args: &Args, inputs: &[Placed]) -> Vec<Call> {
    let mut first = 0;
    let one = |input: &Placed| {
        let mut args = *args;
        args.channels = signed(input.layout.dims[1]);
        args.offset[0] = first;
        args.inputs[0] = View::from(input);
        first += args.channels;
        let work = Work::Items(args.elements());
        Call {
            kernel: "concat",
            args,
            work,
        }
    };
    inputs.iter().map(one).collect()
}

/// Copies a region of all channels between two views of one map.
pub fn copy(src: &Placed, region: &Box4, dst: &Placed) -> Call {
    let mut args = Args::over(region, src.layout.dims[1]);
    args.inputs[0] = View::from(src);
    args.out = View::from(dst);
    let work = Work::Items(args.elements());
    Call {
        kernel: "copy",
        args,
        work,
    }
}

/// Moves `keep` to the front of a window that now holds `from`; afterwards it
/// holds `to`, the same buffer.
pub fn slide(from: &Placed, to: &Placed, keep: &Box4) -> Call {
    let call = copy(from, keep, to);
    Call {
        kernel: "slide",
        work: Work::Blocks(from.layout.dims[1] as u64),
        ..call
    }
}

/// One step of an optimiser.
///
/// # Panics
/// If `slots` are not those of the rule.
pub fn update(
    rule: &UpdateRule,
    pace: &Pace,
    param: &Placed,
    grad: &Placed,
    slots: &[Placed],
) -> Call {
    assert_eq!(
        slots.len(),
        rule.n_slots(),
        "a rule gets the state it asks for"
    );
    let lr = pace.lr;
    let n = param.layout.shape.elems();
    let mut args = Args {
        out: View::from(param),
        count: signed(n),
        ..Args::default()
    };
    args.inputs[0] = View::from(grad);
    for (view, slot) in args.inputs[1..].iter_mut().zip(slots) {
        *view = View::from(slot);
    }
    let kernel = match *rule {
        UpdateRule::Sgd {
            momentum,
            nesterov,
            weight_decay,
        } => {
            args.num[..3].copy_from_slice(&[lr, momentum, weight_decay]);
            args.flag = i64::from(!slots.is_empty());
            args.code = i64::from(nesterov);
            "sgd"
        }
        UpdateRule::Adam {
            beta1,
            beta2,
            eps,
            weight_decay,
        }
        | UpdateRule::AdamW {
            beta1,
            beta2,
            eps,
            weight_decay,
        } => {
            let steps = pace.t.max(1) as f64;
            let step = lr / (1.0 - beta1.powf(steps));
            let root = (1.0 - beta2.powf(steps)).sqrt();
            args.num[..7].copy_from_slice(&[lr, beta1, beta2, eps, weight_decay, step, root]);
            args.flag = i64::from(matches!(rule, UpdateRule::AdamW { .. }));
            "adam"
        }
    };
    args.num[7] = pace.loss_scale;
    let work = Work::Items(n as u64);
    Call { kernel, args, work }
}
