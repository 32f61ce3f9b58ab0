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
//! 6. [`mod@place`]: which of them run and where stored maps live, by integer
//!    programming;
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

use algorithms::choose_algorithms;
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
    let mut chosen = program.clone();
    if choose_algorithms(&mut chosen, machine) {
        match plan_program(&chosen, machine, budget, strategy) {
            // Whole tiles of Winograd's algorithm read a little more than direct sums.
            Err(PlanError::Infeasible { .. }) => {}
            planned => return planned,
        }
    }
    plan_program(&program, machine, budget, strategy)
}

/// Plans a program as it is.
fn plan_program(
    program: &Program,
    machine: &Machine,
    budget: Budget,
    strategy: Strategy,
) -> Result<Plan, PlanError> {
    let planner = Planner {
        program,
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
/// How often the smallest plan may still be undercut.
const SHRINKS: usize = 24;

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
        let quick = |cap| self.fastest(cap, Fineness::Coarse, grids, self.workspace_bytes(cap));
        let cap = self.budget.device_bytes;
        if let Some(plan) = quick(cap)? {
            return Ok(plan);
        }
        let least = self.least(self.smallest(smallest)?, &quick)?;
        for grids in [grids, smallest] {
            if let Some(plan) = self.fastest(cap, Fineness::Fine, grids, 0)? {
                return Ok(plan);
            }
        }
        Ok(least)
    }

    /// One overlapped tile size for all: the one predicted fastest that fits.
    fn streaming(&self) -> Result<Plan, PlanError> {
        let maps = self.program.nodes.iter().filter(|n| n.ty.is_map());
        let largest = maps
            .flat_map(|n| n.ty.shape.spatial().to_vec())
            .max()
            .unwrap_or(1);
        let mut sizes = vec![largest];
        sizes.extend(tile::ladder(largest, (largest / 256).max(2)));
        let quick = |cap| {
            let mut best: Option<Plan> = None;
            for &t in &sizes {
                let workspace = self.workspace_bytes(cap);
                let plan = self.fastest(cap, Fineness::Coarse, Grids::Fixed(t), workspace)?;
                let secs = |p: &Plan| p.predicted.secs;
                match (plan, &best) {
                    (Some(plan), Some(b)) if secs(&plan) >= secs(b) => break,
                    (Some(plan), _) => best = Some(plan),
                    // Smaller tiles only waste more halo.
                    (None, Some(_)) => break,
                    (None, None) => {}
                }
            }
            Ok(best)
        };
        if let Some(plan) = quick(self.budget.device_bytes)? {
            return Ok(plan);
        }
        let mut least = self.smallest(Grids::Fixed(largest))?;
        for &t in sizes.iter().filter(|t| **t <= 64) {
            let plan = self.smallest(Grids::Fixed(t))?;
            if plan.predicted.peak_bytes < least.predicted.peak_bytes {
                least = plan;
            }
        }
        self.least(least, &quick)
    }

    /// Scratch that kernels get under a cap: it helps them, but not at the price
    /// of the plan.
    fn workspace_bytes(&self, cap: u64) -> u64 {
        self.machine.workspace_bytes.min(cap / 16) / 64 * 64
    }

    /// The smallest plan known: `least`, or what `quick` still finds below it.
    ///
    /// # Errors
    /// [`PlanError::Infeasible`] if that is above the cap. It does not depend on
    /// the cap, so whoever then gives what the error names gets a plan.
    fn least(
        &self,
        mut least: Plan,
        quick: &impl Fn(u64) -> Result<Option<Plan>, PlanError>,
    ) -> Result<Plan, PlanError> {
        for _ in 0..SHRINKS {
            match quick(least.predicted.peak_bytes - 1)? {
                Some(plan) => least = plan,
                None => break,
            }
        }
        if least.predicted.peak_bytes > self.budget.device_bytes {
            return Err(self.infeasible(&least));
        }
        least.budget = self.budget;
        Ok(least)
    }

    /// The fastest plan found within the cap.
    fn fastest(
        &self,
        cap: u64,
        fineness: Fineness,
        grids: Grids,
        workspace_bytes: u64,
    ) -> Result<Option<Plan>, PlanError> {
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
