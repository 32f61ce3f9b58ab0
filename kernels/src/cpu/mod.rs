//! The kernels on the CPU.
//!
//! [`run`] computes a region of a map op, or all of a flat op. A reduction over
//! maps is [`begin`], then [`accumulate`] for tiles that partition its domain,
//! then [`finish`]. Which code an op runs is listed here and nowhere else.
//!
//! Reductions add in double precision, in an order that depends on the tiles
//! but not on the number of threads.

mod chain;
mod channels;
pub(crate) mod conv;
mod dense;
mod fold;
mod lanes;
mod loss;
mod norm;
mod parts;
mod peak;
mod pointwise;
mod pool;
mod random;
mod reduce;
mod stored;
mod stream;
mod structure;
mod upsample;

pub use chain::{Link, Target, chains};
pub use peak::peak_flops_per_sec;
pub(crate) use random::threshold as dropout_threshold;
pub use stored::{accumulate_stored, round_to, run_stored};

use sstep_autodiff::{ConvAttrs, Op, ReductionState, Ty};

use crate::real::Real;
use crate::view::Out;
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
    T::run(job, out, workspace);
}

/// Carries out position-wise ops as one: see [`Link`].
///
/// # Panics
/// As [`run`]; and if there are no links, an op [may not](chains) be one, or a link reads a later
/// one.
pub fn run_chain<T: Real>(links: &mut [Link<'_, T>]) {
    T::run_chain(links);
}

/// The kernels, compiled here once per element type. Generic code is otherwise
/// compiled again in every crate that uses it, which for this much of it takes
/// minutes.
pub trait Compiled: Sized {
    /// [`run`].
    fn run(job: &Job<'_, Self>, out: &mut Out<'_, Self>, workspace: &mut [u8]);
    /// [`run_chain`].
    fn run_chain(links: &mut [Link<'_, Self>]);
    /// [`accumulate`].
    fn accumulate(
        job: &Job<'_, Self>,
        state: &mut State<'_, Self>,
        out_ty: &Ty,
        workspace: &mut [u8],
    );
    /// [`finish`].
    fn finish(op: &Op, inputs: &[Ty], state: &mut State<'_, Self>, out: &mut Out<'_, Self>);
}

macro_rules! compiled {
    ($t:ty) => {
        impl Compiled for $t {
            fn run(job: &Job<'_, Self>, out: &mut Out<'_, Self>, workspace: &mut [u8]) {
                run_of(job, out, workspace);
            }

            fn run_chain(links: &mut [Link<'_, Self>]) {
                chain::run(links);
            }

            fn accumulate(
                job: &Job<'_, Self>,
                state: &mut State<'_, Self>,
                out_ty: &Ty,
                workspace: &mut [u8],
            ) {
                accumulate_of(job, state, out_ty, workspace);
            }

            fn finish(
                op: &Op,
                inputs: &[Ty],
                state: &mut State<'_, Self>,
                out: &mut Out<'_, Self>,
            ) {
                finish_of(op, inputs, state, out);
            }
        }
    };
}

compiled!(f32);
compiled!(f64);

fn run_of<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>, workspace: &mut [u8]) {
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

        Op::Unary(_)
        | Op::UnaryGrad { .. }
        | Op::Add
        | Op::Mul
        | Op::Scale { .. }
        | Op::Normalise(_)
        | Op::NormGrad(_) => chain::map(job, out),
        Op::Dropout { p, key } => random::dropout(p.get(), *key, job, out),
        Op::Softmax => channels::softmax(job, out),
        Op::SoftmaxGrad => channels::softmax_grad(job, out),
        Op::ChannelSum => channels::channel_sum(job, out),

        Op::Cast { .. } => structure::copy(job, out),
        Op::Concat => structure::concat(job, out),
        Op::Slice(a) => structure::slice(a, job, out),
        Op::Pad(a) => structure::pad(a, job, out),
        Op::Broadcast { .. } => structure::broadcast(job, out),

        Op::GlobalMaxGrad { n_spatial, .. } => {
            reduce::global_max_grad(usize::from(*n_spatial), inputs, &job.region, out);
        }

        Op::PackMoments => norm::pack_moments(inputs, out.flat()),
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

/// The ops that accumulate over tiles.
enum Reduction<'o> {
    ConvWeightGrad(&'o ConvAttrs),
    Sum,
    GlobalMax,
    Lse,
    Moments,
    NormSums,
    CrossEntropy,
    Bce,
    Mse,
    DiceSums,
}

impl<'o> Reduction<'o> {
    /// # Panics
    /// If `op` is not one.
    fn of(op: &'o Op) -> Self {
        match op {
            Op::ConvWeightGrad(a) => Reduction::ConvWeightGrad(a),
            Op::SumMap { .. } => Reduction::Sum,
            Op::GlobalMax => Reduction::GlobalMax,
            Op::SpatialLse => Reduction::Lse,
            Op::Moments(_) => Reduction::Moments,
            Op::NormSums(_) => Reduction::NormSums,
            Op::CrossEntropy => Reduction::CrossEntropy,
            Op::Bce => Reduction::Bce,
            Op::Mse => Reduction::Mse,
            Op::DiceSums => Reduction::DiceSums,
            Op::Input { .. }
            | Op::Param { .. }
            | Op::Constant { .. }
            | Op::Conv(_)
            | Op::ConvTranspose(_)
            | Op::MaxPool(_)
            | Op::MaxPoolGrad(_)
            | Op::AvgPool(_)
            | Op::AvgPoolGrad { .. }
            | Op::Upsample(_)
            | Op::UpsampleGrad(_)
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
            | Op::Slice(_)
            | Op::Pad(_)
            | Op::Broadcast { .. }
            | Op::GlobalMaxGrad { .. }
            | Op::PackMoments
            | Op::Normalise(_)
            | Op::NormGrad(_)
            | Op::NormParamGrad(_)
            | Op::Linear
            | Op::LinearInputGrad
            | Op::LinearWeightGrad
            | Op::CrossEntropyGrad
            | Op::BceGrad
            | Op::MseGrad
            | Op::DiceSumsGrad
            | Op::DiceLoss { .. }
            | Op::DiceLossGrad { .. } => panic!("{op:?} is not a reduction"),
        }
    }

    /// Which input's regions it is accumulated over.
    fn domain(&self) -> usize {
        match self {
            Reduction::ConvWeightGrad(_) => 1,
            Reduction::NormSums => 2,
            Reduction::Sum
            | Reduction::GlobalMax
            | Reduction::Lse
            | Reduction::Moments
            | Reduction::CrossEntropy
            | Reduction::Bce
            | Reduction::Mse
            | Reduction::DiceSums => 0,
        }
    }
}

/// All three steps of a reduction at once, over the whole domain.
fn run_reduction<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>, workspace: &mut [u8]) {
    let out_ty = out.layout().ty();
    let domain = job.inputs[Reduction::of(job.op).domain()].layout();
    let job = Job {
        region: domain.everything(),
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
            let inputs: Vec<Ty> = job.inputs.iter().map(|i| i.layout().ty()).collect();
            finish(job.op, &inputs, &mut state, out);
        }
    }
}

/// Starts a reduction whose output has type `out_ty`.
///
/// # Panics
/// If the op is not a reduction.
pub fn begin<T: Real>(op: &Op, state: &mut State<'_, T>, _out_ty: &Ty) {
    match (Reduction::of(op), state) {
        (_, State::InPlace(sums)) => sums.fill(T::ZERO),
        (Reduction::GlobalMax, State::F64(s)) => reduce::global_max_begin(s),
        (Reduction::Lse, State::F64(s)) => reduce::lse_begin(s),
        (
            Reduction::ConvWeightGrad(_)
            | Reduction::Sum
            | Reduction::Moments
            | Reduction::NormSums
            | Reduction::CrossEntropy
            | Reduction::Bce
            | Reduction::Mse
            | Reduction::DiceSums,
            State::F64(s),
        ) => s.fill(0.0),
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
    out_ty: &Ty,
    workspace: &mut [u8],
) {
    T::accumulate(job, state, out_ty, workspace);
}

fn accumulate_of<T: Real>(
    job: &Job<'_, T>,
    state: &mut State<'_, T>,
    out_ty: &Ty,
    workspace: &mut [u8],
) {
    let inputs = job.inputs;
    let reduction = Reduction::of(job.op);
    let region = &parts::region(&job.region, inputs[reduction.domain()].layout());
    let s = match (&reduction, state) {
        (Reduction::ConvWeightGrad(a), State::InPlace(w)) => {
            return conv::weight_grad(a, job, w, workspace);
        }
        (Reduction::ConvWeightGrad(a), State::F64(state)) => {
            // Sums, and behind them room for what one tile adds.
            let (sums, rest) = state.split_at_mut(out_ty.shape.elems());
            // SAFETY: plain numbers, of which any bits are valid.
            let (_, tile, _) = unsafe { rest.align_to_mut::<T>() };
            let tile = &mut tile[..sums.len()];
            tile.fill(T::ZERO);
            conv::weight_grad(a, job, tile, workspace);
            for (sum, w) in sums.iter_mut().zip(&*tile) {
                *sum += w.to_f64();
            }
            return;
        }
        (_, State::F64(s)) => s,
        (_, State::InPlace(_)) => panic!("{:?} accumulates into doubles", job.op),
    };
    match reduction {
        Reduction::ConvWeightGrad(_) => unreachable!("weight gradients returned above"),
        Reduction::Sum | Reduction::Moments | Reduction::NormSums => {
            chain::fold(job.op, inputs, region, s);
        }
        Reduction::GlobalMax => reduce::global_max(&inputs[0], region, s),
        Reduction::Lse => reduce::lse(&inputs[0], region, s),
        Reduction::CrossEntropy => loss::cross_entropy(inputs, region, s),
        Reduction::Bce => loss::bce(inputs, region, s),
        Reduction::Mse => loss::mse(inputs, region, s),
        Reduction::DiceSums => loss::dice_sums(inputs, region, s),
    }
}

/// Turns the state into the result once every tile is in. `inputs` are the
/// types of the whole inputs. An in-place state is the result already.
///
/// # Panics
/// If the op is not a reduction.
pub fn finish<T: Real>(op: &Op, inputs: &[Ty], state: &mut State<'_, T>, out: &mut Out<'_, T>) {
    T::finish(op, inputs, state, out);
}

fn finish_of<T: Real>(op: &Op, inputs: &[Ty], state: &mut State<'_, T>, out: &mut Out<'_, T>) {
    let State::F64(state) = state else { return };
    let mean_over = |count: usize| T::from_f64(state[0] / count as f64);
    match Reduction::of(op) {
        Reduction::Lse => reduce::lse_finish(state, out.flat()),
        Reduction::Moments => norm::moments_finish(state, out.flat()),
        Reduction::CrossEntropy => {
            let logits = inputs[0].shape;
            out.flat()[0] = mean_over(logits.elems() / logits.channels());
        }
        Reduction::Bce | Reduction::Mse => out.flat()[0] = mean_over(inputs[0].shape.elems()),
        Reduction::ConvWeightGrad(_)
        | Reduction::Sum
        | Reduction::GlobalMax
        | Reduction::NormSums
        | Reduction::DiceSums => {
            for (y, &sum) in out.flat().iter_mut().zip(&**state) {
                *y = T::from_f64(sum);
            }
        }
    }
}
