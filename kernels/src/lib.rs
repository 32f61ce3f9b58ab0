//! What computes one tile.
//!
//! One catalogue serves every backend: a [`Job`] names the op, the region to
//! compute and the views it reads and writes; nothing here knows of plans,
//! arenas or networks. Reductions are three calls, [`cpu::begin`],
//! [`cpu::accumulate`] per tile and [`cpu::finish`].
//!
//! **Invariant.** A map op's value at a position does not depend on the region
//! it is computed in, bit for bit: each output element is summed in one fixed
//! order. A recomputed tile therefore repeats its bits, and a mask taken from
//! it (ReLU, max-pool) is the same in every plan.

mod bytes;
pub mod cpu;
pub mod cuda;
mod math;
pub mod optim;
mod real;
mod view;

pub use bytes::ByteScale;
pub use cpu::conv::workspace_bytes;
pub use half::{bf16, f16};
pub use optim::{Pace, UpdateRule};
pub use real::{Element, Real};
pub use sstep_autodiff::DType;
pub use view::{AnyIn, AnyOut, Box4, In, Layout, Out};

use sstep_autodiff::{Op, Region};

/// One call of a kernel.
#[derive(Clone, Copy)]
pub struct Job<'a, T> {
    /// What to compute.
    pub op: &'a Op,
    /// Which positions of the output; of the domain, for a reduction. A flat
    /// op computes all of its output whatever stands here.
    pub region: Box4,
    /// The op's inputs, in its order.
    pub inputs: &'a [In<'a, T>],
    /// Training step, for counter-based randomness.
    pub step: u64,
    /// Seed of the run, for counter-based randomness.
    pub seed: u64,
    /// Straightforward loops instead of the fast ones: for the reference.
    pub plain: bool,
}

/// One call of a kernel whose operands may be narrow, see [`cpu::run_stored`].
#[derive(Clone, Copy)]
pub struct StoredJob<'a> {
    /// As [`Job::op`].
    pub op: &'a Op,
    /// As [`Job::region`], of the axes that the maps have.
    pub region: Region,
    /// As [`Job::inputs`].
    pub inputs: &'a [AnyIn<'a>],
    /// As [`Job::step`].
    pub step: u64,
    /// As [`Job::seed`].
    pub seed: u64,
}

/// Where a reduction accumulates: see [`sstep_autodiff::ReductionState`].
pub enum State<'a, T> {
    /// In the output tensor itself.
    InPlace(&'a mut [T]),
    /// In doubles.
    F64(&'a mut [f64]),
}
