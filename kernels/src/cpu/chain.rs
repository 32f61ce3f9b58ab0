//! Position-wise ops one after the other, while their rows are in cache.
//!
//! A map that one op writes and the next reads goes through memory twice if each op runs
//! over its whole region. Here every op of a [chain](Link) runs over a piece of a few
//! rows before any goes on to the next piece, and a map that nothing else reads is never
//! written at all. Nothing else changes: each element and each sum is computed from the
//! same operands in the same order as by the ops alone, so the bits are the same. An op
//! on its own is a chain of one.

mod steps;
#[cfg(test)]
mod tests;

use sstep_autodiff::{Form, Op};

use self::steps::{Step, Work, go, operands};
use super::fold::Fold;
use super::pointwise::Pointwise;
use super::stream;
use crate::Job;
use crate::real::Real;
use crate::view::{Box4, In, Out};

/// One op of a chain.
pub struct Link<'a, T> {
    /// The call. Its region is that of all others, and so are its maps' extents.
    pub job: Job<'a, T>,
    /// For each input, the earlier link that computes it, if one does. The input then
    /// has the layout of that link's output, or where that is [`Target::Nowhere`], any
    /// layout of its shape.
    pub from: &'a [Option<usize>],
    /// Where the result goes.
    pub to: Target<'a, T>,
}

/// Where a link's result goes.
pub enum Target<'a, T> {
    /// Only to later links.
    Nowhere,
    /// To a map. Later links may write what earlier ones read, but only where it lies
    /// alike; else nothing that is written overlaps anything else.
    Map(Out<'a, T>),
    /// Adds to the doubles of a reduction.
    State(&'a mut [f64]),
}

/// Whether an op may be a link of a chain, if all maps it reads or writes have the same
/// extents.
pub fn chains(op: &Op) -> bool {
    match op {
        Op::Unary(_)
        | Op::UnaryGrad { .. }
        | Op::Add
        | Op::Mul
        | Op::Scale { .. }
        | Op::Normalise(_)
        | Op::NormGrad(_)
        | Op::Moments(_)
        | Op::NormSums(_)
        | Op::SumMap { .. } => true,
        Op::Input { .. }
        | Op::Param { .. }
        | Op::Constant { .. }
        | Op::Conv(_)
        | Op::ConvTranspose(_)
        | Op::ConvWeightGrad(_)
        | Op::MaxPool(_)
        | Op::MaxPoolGrad(_)
        | Op::AvgPool(_)
        | Op::AvgPoolGrad { .. }
        | Op::Upsample(_)
        | Op::UpsampleGrad(_)
        | Op::Dropout { .. }
        | Op::Softmax
        | Op::SoftmaxGrad
        | Op::ChannelSum
        | Op::Cast { .. }
        | Op::Concat
        | Op::Slice(_)
        | Op::Pad(_)
        | Op::Broadcast { .. }
        | Op::GlobalMax
        | Op::GlobalMaxGrad { .. }
        | Op::SpatialLse
        | Op::PackMoments
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
        | Op::DiceLossGrad { .. } => false,
    }
}

/// A position-wise op alone; flat tensors of equal extents as one row.
pub(super) fn map<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let flat = out.layout().form == Form::Flat;
    let shape = out.layout().shape;
    let op = Pointwise::new(job.op, job.inputs).expect("a position-wise op");
    let maps = op.maps();
    let same = |&i: &usize| job.inputs[i].layout().shape == shape;
    if flat && maps.iter().all(same) {
        let (a, b) = (maps[0], maps[maps.len() - 1]);
        return op.apply(0, 0, job.inputs[a].flat(), job.inputs[b].flat(), out.flat());
    }
    let region = super::parts::region(&job.region, out.layout());
    let step = Step {
        work: Work::Map {
            op,
            out: Some(*out),
        },
        operands: operands(maps, job.inputs, &[], &[]),
        slot: stream::worthwhile::<T>(region.points() * out.dims()[1]).then_some(0),
    };
    go(&[step], &region, out.dims()[1], &mut []);
}

/// A reduction alone, over `region` of its domain.
pub(super) fn fold<T: Real>(op: &Op, inputs: &[In<'_, T>], region: &Box4, state: &mut [f64]) {
    let fold = Fold::new(op, inputs).expect("a reduction of rows");
    let step = Step {
        operands: operands(fold.maps(), inputs, &[], &[]),
        work: Work::Fold(fold),
        slot: None,
    };
    go(&[step], region, inputs[0].dims()[1], &mut [state]);
}

/// Carries out a chain.
///
/// # Panics
/// If it has no links, one [cannot be](chains) a link, a view lacks positions, or a link reads
/// a later one.
pub(super) fn run<T: Real>(links: &mut [Link<'_, T>]) {
    let region = links[0].job.region;
    let mut channels = 0;
    let mut states: Vec<&mut [f64]> = Vec::new();
    let mut slots: Vec<Option<usize>> = Vec::new();
    let mut n_slots = 0;
    let mut steps: Vec<Step<'_, T>> = Vec::new();
    for link in links {
        let (op, inputs) = (link.job.op, link.job.inputs);
        let (maps, work) = match &mut link.to {
            Target::State(state) => {
                let fold = Fold::new(op, inputs).expect("a reduction of rows");
                states.push(state);
                (fold.maps(), Work::Fold(fold))
            }
            to @ (Target::Map(_) | Target::Nowhere) => {
                let op = Pointwise::new(op, inputs).expect("a position-wise op");
                let out = match to {
                    Target::Map(out) => Some(*out),
                    Target::State(_) | Target::Nowhere => None,
                };
                (op.maps(), Work::Map { op, out })
            }
        };
        channels = inputs[maps[0]].dims()[1];
        // What is written past the cache, or not at all, is read from scratch.
        let scratch = match &work {
            Work::Map { out: None, .. } => true,
            Work::Map { out: Some(_), .. } => stream::worthwhile::<T>(region.points() * channels),
            Work::Fold(_) => false,
        };
        let operands = operands(maps, inputs, link.from, &slots);
        slots.push(scratch.then_some(n_slots));
        n_slots += usize::from(scratch);
        steps.push(Step {
            work,
            operands,
            slot: slots[slots.len() - 1],
        });
    }
    go(&steps, &region, channels, &mut states);
}
