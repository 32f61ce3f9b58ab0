//! The planner of sstep: from a tape, a machine and a budget to a verified plan.
//!
//! A training step over an image that does not fit is a compilation problem.
//! [`plan`] runs the passes below, in this order, and each hands a new value to
//! the next:
//!
//! 1. [`Program::new`]: the part of the tape that is needed, densely numbered,
//!    with barriers ([`program`]);
//! 2. [`rewrite`]: equal programs that move less, by equality saturation;
//! 3. [`mod@segment`]: where tile loops may begin and end, what may be stored;
//! 4. [`mod@candidates`]: stages × recomputation × grids, with exact costs from
//!    region propagation ([`sweep`], [`cost`]);
//! 5. [`mod@place`]: which of them run and where stored maps live, by integer
//!    programming;
//! 6. [`schedule`]: the complete plan, its buffers packed into one arena
//!    ([`pack`]);
//! 7. [`mod@verify`]: an independent judge, always.
//!
//! **Invariants.** The planner never touches tensor data nor a device; costs
//! arrive as data ([`Machine`]). The same tape, budget and machine give the
//! same plan. A plan that is handed out has passed the verifier.

#![forbid(unsafe_code)]

mod budget;
pub mod candidates;
pub mod cost;
mod error;
mod explain;
mod instr;
mod machine;
pub mod pack;
pub mod place;
mod plan;
pub mod program;
pub mod rewrite;
pub mod schedule;
pub mod segment;
mod solve;
pub mod stage;
mod strategy;
pub mod sweep;
mod tile;
pub mod verify;

use sstep_autodiff::Tape;

pub use budget::{Budget, ByteSize};
pub use error::{ForcingBuffer, PlanError};
pub use explain::explain_stage;
pub use instr::{At, Instr};
pub use machine::Machine;
pub use plan::{
    Buffer, BufferIx, Home, HostIx, HostTensor, ItemRole, Plan, Predicted, Purpose, Stage,
    StageCost, StageItem, Value,
};
pub use program::{NodeIx, Program, StepSpec, Update};
pub use strategy::Strategy;
pub use sweep::{AxisGrid, AxisPolicy};
pub use verify::{Violation, verify};

use candidates::{Grids, candidates};
use place::{Goal, Placed, Problem, place};
use segment::{Fineness, segment, storable};
use solve::Effort;

/// Plans one training step of `tape` under `budget`.
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
    strategy: Strategy,
) -> Result<Plan, PlanError> {
    if budget.device_bytes == 0 {
        return Err(PlanError::ZeroBudget);
    }
    let program = Program::new(tape, spec)?;
    let (program, _) = rewrite::rewrite(&program, machine)?;
    let planner = Planner {
        program: &program,
        machine,
        budget,
        strategy,
    };
    let plan = match strategy {
        Strategy::Streaming => planner.streaming()?,
        Strategy::StoreAll => planner.search(Grids::Whole, Grids::Whole)?,
        Strategy::Optimal | Strategy::RecomputeAll | Strategy::OffloadAll => {
            planner.search(Grids::Ladder, Grids::Smallest)?
        }
    };
    verify(&plan)?;
    Ok(plan)
}

/// Effort of a placement for speed.
const FAST: Effort = Effort {
    gap: 0.01,
    nodes: 200,
    secs: 15.0,
};
/// Effort of a placement for memory.
const SMALL: Effort = Effort {
    gap: 0.02,
    nodes: 200,
    secs: 25.0,
};
/// How often a placement is asked again with a cap lowered by what packing
/// lacked.
const REPACKS: usize = 6;

struct Planner<'a> {
    program: &'a Program,
    machine: &'a Machine,
    budget: Budget,
    strategy: Strategy,
}

impl Planner<'_> {
    /// The fastest plan that fits; failing that the smallest one; failing that
    /// the error that names it.
    fn search(&self, grids: Grids, smallest: Grids) -> Result<Plan, PlanError> {
        // Scratch helps kernels, but not at the price of the plan.
        let workspace = self
            .machine
            .workspace_bytes
            .min(self.budget.device_bytes / 16)
            / 64
            * 64;
        if let Some(plan) = self.fastest(Fineness::Coarse, grids, workspace)? {
            return Ok(plan);
        }
        let least = self.smallest(smallest)?;
        if least.predicted.peak_bytes > self.budget.device_bytes {
            return Err(self.infeasible(&least));
        }
        for grids in [grids, smallest] {
            if let Some(plan) = self.fastest(Fineness::Fine, grids, 0)? {
                return Ok(plan);
            }
        }
        Ok(least)
    }

    /// One overlapped tile size for all: the one predicted fastest that fits.
    fn streaming(&self) -> Result<Plan, PlanError> {
        let extents = self.program.nodes.iter().filter(|n| n.ty.is_map());
        let largest = extents
            .flat_map(|n| n.ty.shape.spatial().to_vec())
            .max()
            .unwrap_or(1);
        let mut best: Option<Plan> = None;
        let mut sizes = vec![largest];
        sizes.extend(tile::ladder(largest, (largest / 256).max(2)));
        let mut least: Option<Plan> = None;
        for t in sizes {
            let workspace = self
                .machine
                .workspace_bytes
                .min(self.budget.device_bytes / 16)
                / 64
                * 64;
            if let Some(plan) = self.fastest(Fineness::Coarse, Grids::Fixed(t), workspace)? {
                if best
                    .as_ref()
                    .is_none_or(|b| plan.predicted.secs < b.predicted.secs)
                {
                    best = Some(plan);
                } else {
                    // Smaller tiles only waste more halo.
                    break;
                }
            } else if best.is_none() && t <= 64 {
                let plan = self.smallest(Grids::Fixed(t))?;
                let peak = |p: &Plan| p.predicted.peak_bytes;
                if least.as_ref().is_none_or(|l| peak(&plan) < peak(l)) {
                    least = Some(plan);
                }
            }
        }
        let fits = |p: &Plan| p.predicted.peak_bytes <= self.budget.device_bytes;
        match (best, least) {
            (Some(plan), _) => Ok(plan),
            (None, Some(plan)) if fits(&plan) => Ok(plan),
            (None, Some(plan)) => Err(self.infeasible(&plan)),
            (None, None) => Err(self.infeasible(&self.smallest(Grids::Fixed(largest))?)),
        }
    }

    /// The fastest plan found within the cap.
    fn fastest(
        &self,
        fineness: Fineness,
        grids: Grids,
        workspace_bytes: u64,
    ) -> Result<Option<Plan>, PlanError> {
        let cap = self.budget.device_bytes;
        let mut aim = cap;
        self.with_problem(fineness, grids, workspace_bytes, |problem| {
            for _ in 0..REPACKS {
                let goal = Goal::Seconds { device_bytes: aim };
                let Placed::Found(placement) = place(problem, goal, FAST)? else {
                    return Ok(None);
                };
                let plan = self.schedule(&placement);
                if plan.predicted.peak_bytes <= cap {
                    return Ok(Some(plan));
                }
                let short = (plan.predicted.peak_bytes - cap).max(cap / 100);
                if short >= aim {
                    return Ok(None);
                }
                aim -= short;
            }
            Ok(None)
        })
    }

    /// The plan that needs least device memory, as far as found.
    ///
    /// # Errors
    /// [`PlanError::HostTooSmall`] if there is none at any device budget,
    /// [`PlanError::GaveUp`] if the solver found none.
    fn smallest(&self, grids: Grids) -> Result<Plan, PlanError> {
        let strategy = self.strategy.name();
        self.with_problem(Fineness::Fine, grids, 0, |problem| {
            match place(problem, Goal::Memory, SMALL)? {
                Placed::Found(placement) => Ok(self.schedule(&placement)),
                Placed::Impossible => {
                    let host = ByteSize(self.budget.host_bytes);
                    Err(PlanError::HostTooSmall { strategy, host })
                }
                Placed::GaveUp => Err(PlanError::GaveUp { strategy }),
            }
        })
    }

    fn with_problem<R>(
        &self,
        fineness: Fineness,
        grids: Grids,
        workspace_bytes: u64,
        solve: impl FnOnce(&Problem<'_>) -> Result<R, PlanError>,
    ) -> Result<R, PlanError> {
        let storable = storable(self.program, self.strategy);
        let segments = segment(self.program, &storable, fineness);
        let found = candidates(
            self.program,
            self.machine,
            self.strategy,
            &segments,
            &storable,
            grids,
        );
        solve(&Problem {
            program: self.program,
            machine: self.machine,
            strategy: self.strategy,
            segments: &segments,
            candidates: &found,
            host_bytes: self.budget.host_bytes,
            workspace_bytes,
        })
    }

    fn schedule(&self, placement: &place::Placement) -> Plan {
        let (machine, budget) = (self.machine, self.budget);
        let decision = &placement.decision;
        let mut plan = schedule::schedule(self.program, machine, budget, self.strategy, decision);
        plan.gap = placement.gap;
        plan
    }

    fn infeasible(&self, least: &Plan) -> PlanError {
        let peak = least.predicted.peak_bytes;
        let top = least
            .buffers
            .iter()
            .find(|b| b.offset + b.bytes > peak.saturating_sub(64));
        let at = top.map_or(0, |b| b.live.0);
        let mut live: Vec<&Buffer> = least
            .buffers
            .iter()
            .filter(|b| b.live.0 <= at && at <= b.live.1)
            .collect();
        live.sort_by_key(|b| (std::cmp::Reverse(b.bytes), b.offset));
        let forcing = live
            .into_iter()
            .take(4)
            .map(|b| ForcingBuffer {
                name: b.node.map_or("kernel scratch".to_owned(), |n| {
                    self.program.node(n).name.clone()
                }),
                reason: explain::purpose(b.purpose).to_owned(),
                bytes: b.bytes,
            })
            .collect();
        PlanError::Infeasible {
            strategy: self.strategy.name(),
            device: ByteSize(self.budget.device_bytes),
            host: ByteSize(self.budget.host_bytes),
            smallest: ByteSize(peak),
            smallest_bytes: peak,
            forcing,
        }
    }
}
