//! The planner of sstep: from a tape, a machine and a budget to a verified plan.
//!
//! A training step over an image that does not fit is a compilation problem.
//! [`plan`] runs the passes below, in this order, and each hands a new value to
//! the next:
//!
//! 1. [`Program::new`]: the part of the tape that is needed, densely numbered,
//!    with barriers ([`program`]);
//! 2. [`rewrite`]: equal programs that move less, by equality saturation;
//! 3. [`algorithms`]: how each convolution is computed;
//! 4. [`mod@segment`]: where tile loops may begin and end, what may be stored;
//! 5. [`mod@candidates`]: stages × recomputation × grids, with exact costs from
//!    region propagation ([`sweep`], [`cost`]);
//! 6. [`mod@place`]: which of them run and where stored maps live, by search
//!    ([`search`]) and integer programming;
//! 7. [`schedule`]: the complete plan, its buffers packed into one arena
//!    ([`pack`]);
//! 8. [`mod@verify`]: an independent judge, always.
//!
//! **Invariants.** The planner never touches tensor data nor a device; costs
//! arrive as data ([`Machine`]). The same tape, budget and machine give the
//! same plan. A plan that is handed out has passed the verifier.

#![forbid(unsafe_code)]

pub mod algorithms;
mod budget;
pub mod candidates;
mod compare;
pub mod cost;
mod driver;
mod error;
mod explain;
pub mod grids;
mod instr;
pub mod machine;
mod made;
mod master;
mod memo;
mod objective;
pub mod overlap;
pub mod pack;
pub mod place;
mod plan;
pub mod program;
pub mod rewrite;
pub mod schedule;
pub mod search;
pub mod segment;
mod solve;
pub mod stage;
mod strategy;
pub mod sweep;
mod tile;
mod unforeseen;
pub mod verify;

use sstep_autodiff::Tape;

pub use budget::{Budget, ByteSize};
pub use error::{Beyond, ForcingBuffer, PlanError};
pub use explain::{BufferSpan, CapPoint, Comparison, Link, Picture, StrategyLine, explain_stage};
pub use instr::{At, Instr};
pub use machine::{Family, Kernel, Machine, Unit};
pub use objective::{Aim, Objective};
pub use plan::{
    Buffer, BufferIx, DiskIx, DiskTensor, Home, HostIx, HostTensor, ItemRole, Plan, Predicted,
    Purpose, Stage, StageCost, StageItem, Tier, Value,
};
pub use program::{NodeIx, Program, StepSpec, Update};
pub use strategy::Strategy;
pub use sweep::{AxisGrid, AxisPolicy};
pub use verify::{Violation, verify, verify_sequence};

use compare::compare;

/// Plans one training step of `tape` under `budget`, with a [`Strategy`] or an [`Aim`].
///
/// # Errors
/// [`PlanError::Infeasible`] with the smallest device budget that would do, if
/// none fits; [`PlanError::ZeroBudget`] and [`PlanError::MixedRank`] on input
/// that no budget helps.
pub fn plan(
    tape: &Tape,
    spec: &StepSpec,
    machine: &Machine,
    budget: Budget,
    aim: impl Into<Aim>,
) -> Result<Plan, PlanError> {
    let aim = aim.into();
    if budget.device_bytes == 0 {
        return Err(PlanError::ZeroBudget);
    }
    let program = Program::new(tape, spec)?;
    let priced = aim.objective.machine(machine);
    let mut prices = rewrite::prices(&priced);
    // Only the best strategy weighs programs that keep more or less.
    prices.truncate(if aim.strategy == Strategy::Optimal {
        prices.len()
    } else {
        1
    });
    let variants = rewrite::variants(&program, &priced, &prices)?;
    let plan = compare(&variants, (machine, &priced), budget, aim)?;
    verify(&plan)?;
    Ok(plan)
}
