//! The kernels on the CPU.
//!
//! [`run`] computes a region of a map op, or all of a flat op. A reduction over
//! maps is [`begin`], then [`accumulate`] for tiles that partition its domain,
//! then [`finish`]. Which code an op runs is listed here and nowhere else.
//!
//! Reductions add in double precision, in an order that depends on the tiles
//! but not on the number of threads.

pub(crate) mod conv;
mod dense;
mod elementwise;
mod lanes;
mod loss;
mod norm;
mod parts;
mod pool;
mod random;
mod reduce;
mod structure;
mod upsample;

use sstep_autodiff::{Op, ReductionState, Ty};

use crate::real::Real;
use crate::view::{Layout, Out};
use crate::{Job, State};

/// Computes `job.region` of a map op's output, or all of a flat op's.
///
/// A reduction is also computed here, over its whole domain, if that is present:
/// the way of reductions over flat tensors, and of a reference that has
/// everything. Leaves other than constants come from outside; for them nothing
/// is done. `workspace` is scratch for convolutions, of any size.
///
/// # Panics
/// If a view lacks positions that the op reads or writes, or the inputs are not
/// those of the op: a fault of the plan, which its verifier finds.
pub fn run<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>, workspace: &mut [u8]) {
    let inputs = job.inputs;
    match job.op {
        Op::Input { .. } | Op::Param { .. } => {}
        Op::Constant { value } => structure::constant(value.get(), job, out),

        Op::Conv(a) => conv::conv(a, job, out, workspace),
        Op::ConvTranspose(a) => conv::transpose(a, job, out, workspace),
        Op::MaxPool(a) => pool::max_pool(a, job, out),
        Op::MaxPoolGrad(a) => pool::max_pool_grad(a, job, out),
        Op::AvgPool(a) => pool::avg_pool(a, job, out),
        Op::AvgPoolGrad { pool, .. } => pool::avg_pool_grad(pool, job, out),
        Op::Upsample(a) => upsample::upsample(a, job, out),
        Op::UpsampleGrad(a) => upsample::upsample_grad(a, job, out),

        Op::Unary(kind) => elementwise::unary(kind, job, out),
        Op::UnaryGrad { kind, saved } => elementwise::unary_grad(kind, saved, job, out),
        Op::Add => elementwise::add(job, out),
        Op::Mul => elementwise::mul(job, out),
        Op::Scale { factor } => elementwise::scale(factor.get(), job, out),
        Op::Dropout { p, key } => random::dropout(p.get(), *key, job, out),
        Op::Softmax => elementwise::softmax(job, out),
        Op::SoftmaxGrad => elementwise::softmax_grad(job, out),
        Op::ChannelSum => elementwise::channel_sum(job, out),

        Op::Concat => structure::concat(job, out),
        Op::Slice(a) => structure::slice(a, job, out),
        Op::Pad(a) => structure::pad(a, job, out),
        Op::Broadcast { .. } => structure::broadcast(job, out),

        Op::GlobalMaxGrad { n_spatial, .. } => {
            reduce::global_max_grad(usize::from(*n_spatial), inputs, &job.region, out);
        }

        Op::PackMoments => norm::pack_moments(inputs, out.flat()),
        Op::Normalise(a) => norm::normalise(a, job, out),
        Op::NormGrad(a) => norm::grad(a, job, out),
        Op::NormParamGrad(which) => norm::param_grad(which, &inputs[0], out.flat()),

        Op::Linear => dense::linear(inputs, out),
        Op::LinearInputGrad => dense::input_grad(inputs, out),
        Op::LinearWeightGrad => dense::weight_grad(inputs, out),

        Op::CrossEntropyGrad => loss::cross_entropy_grad(job, out),
        Op::BceGrad => loss::bce_grad(job, out),
        Op::MseGrad => loss::mse_grad(job, out),
        Op::DiceSumsGrad => loss::dice_sums_grad(job, out),
        Op::DiceLoss { smooth } => loss::dice_loss(smooth.get(), &inputs[0], out.flat()),
        Op::DiceLossGrad { smooth } => loss::dice_loss_grad(smooth.get(), inputs, out.flat()),

        Op::ConvWeightGrad(_)
        | Op::SumMap { .. }
        | Op::GlobalMax
        | Op::SpatialLse
        | Op::Moments(_)
        | Op::NormSums(_)
        | Op::CrossEntropy
        | Op::Bce
        | Op::Mse
        | Op::DiceSums => run_reduction(job, out, workspace),
    }
}

/// All three steps of a reduction at once, over the whole domain.
fn run_reduction<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>, workspace: &mut [u8]) {
    let out_ty = out.layout().ty::<T>();
    let job = Job {
        region: domain(job).everything(),
        ..*job
    };
    match job.op.reduction_state(&out_ty) {
        ReductionState::InPlace => {
            let mut state = State::InPlace(out.flat());
            begin(job.op, &mut state, &out_ty);
            accumulate(&job, &mut state, &out_ty, workspace);
        }
        ReductionState::F64(n) => {
            let mut doubles = vec![0.0; n];
            let mut state = State::F64(&mut doubles);
            begin(job.op, &mut state, &out_ty);
            accumulate(&job, &mut state, &out_ty, workspace);
            let inputs: Vec<Ty> = job.inputs.iter().map(|i| i.layout().ty::<T>()).collect();
            finish(job.op, &inputs, &mut state, out);
        }
    }
}

/// Layout of the input over whose region a reduction is accumulated.
fn domain<'j, T: Real>(job: &'j Job<'_, T>) -> &'j Layout {
    let input = match job.op {
        Op::ConvWeightGrad(_) => 1,
        Op::NormSums(_) => 2,
        _ => 0,
    };
    job.inputs[input].layout()
}

/// Starts a reduction whose output has type `out_ty`.
pub fn begin<T: Real>(op: &Op, state: &mut State<'_, T>, _out_ty: &Ty) {
    match state {
        State::InPlace(sums) => sums.fill(T::ZERO),
        State::F64(doubles) => match op {
            Op::GlobalMax => reduce::global_max_begin(doubles),
            Op::SpatialLse => reduce::lse_begin(doubles),
            _ => doubles.fill(0.0),
        },
    }
}

/// Adds what `job.region` of the domain contributes. Each position of the domain
/// must be in exactly one call between [`begin`] and [`finish`].
///
/// # Panics
/// As [`run`]; and if the op is not a reduction or the state is not the one it
/// asks for.
pub fn accumulate<T: Real>(
    job: &Job<'_, T>,
    state: &mut State<'_, T>,
    _out_ty: &Ty,
    workspace: &mut [u8],
) {
    let inputs = job.inputs;
    let region = &parts::region(&job.region, domain(job));
    match (job.op, state) {
        (Op::ConvWeightGrad(a), State::InPlace(w)) => conv::weight_grad(a, job, w, workspace),
        (Op::SumMap { keep_batch }, State::F64(s)) => {
            reduce::sum(&inputs[0], region, *keep_batch, s);
        }
        (Op::GlobalMax, State::F64(s)) => reduce::global_max(&inputs[0], region, s),
        (Op::SpatialLse, State::F64(s)) => reduce::lse(&inputs[0], region, s),
        (Op::Moments(kind), State::F64(s)) => norm::moments(kind, &inputs[0], region, s),
        (Op::NormSums(a), State::F64(s)) => norm::sums(a, inputs, region, s),
        (Op::CrossEntropy, State::F64(s)) => loss::cross_entropy(inputs, region, s),
        (Op::Bce, State::F64(s)) => loss::bce(inputs, region, s),
        (Op::Mse, State::F64(s)) => loss::mse(inputs, region, s),
        (Op::DiceSums, State::F64(s)) => loss::dice_sums(inputs, region, s),
        (op, _) => panic!("{op:?} does not accumulate into such a state"),
    }
}

/// Turns the state into the result once every tile is in. `inputs` are the
/// types of the whole inputs.
pub fn finish<T: Real>(op: &Op, inputs: &[Ty], state: &mut State<'_, T>, out: &mut Out<'_, T>) {
    let State::F64(state) = state else { return };
    let mean_over = |count: usize| T::from_f64(state[0] / count as f64);
    match op {
        Op::SpatialLse => reduce::lse_finish(state, out.flat()),
        Op::Moments(_) => norm::moments_finish(state, out.flat()),
        Op::CrossEntropy => {
            let logits = inputs[0].shape;
            out.flat()[0] = mean_over(logits.elems() / logits.channels());
        }
        Op::Bce | Op::Mse => out.flat()[0] = mean_over(inputs[0].shape.elems()),
        _ => {
            for (y, &sum) in out.flat().iter_mut().zip(&**state) {
                *y = T::from_f64(sum);
            }
        }
    }
}
