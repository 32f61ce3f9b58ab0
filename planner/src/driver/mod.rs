//! Which searches are tried, and in what order, until a plan fits.
//!
//! Of one program: a quick search within the cap; if nothing fits, the smallest
//! plan there is, undercut as long as a quick search can; if even that is too
//! large, the error that names it. Which of several equal programs is planned, and
//! how, is decided by who asks (`compare`).

mod packed;
#[cfg(test)]
mod tests;
mod tight;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::budget::Budget;
use crate::candidates::{Candidate, candidates};
use crate::cost::least_secs;
use crate::grids::Grids;
use crate::machine::Machine;
use crate::made::{Made, Quick, Start};
use crate::memo::Memo;
use crate::place::{Goal, Placed, Problem, Proof, Prover, decide, place};
use crate::plan::Plan;
use crate::program::Program;
use crate::schedule::{self, Decision};
use crate::search::{Found, Prices, Space};
use crate::segment::{Fineness, Segments, segment, storable};
use crate::strategy::Strategy;
use crate::tile;

/// How often a placement is asked again with a cap lowered by what packing
/// lacked.
const REPACKS: usize = 12;
/// Where candidates come from.
pub type Source = (Strategy, Fineness, Grids);

/// What may run.
pub struct Pool {
    segments: Segments,
    candidates: Vec<Candidate>,
}

/// Where the best strategy looks for plans.
const LARGE: Source = (Strategy::Optimal, Fineness::Nested, Grids::Ladder);

/// Plans one program.
pub struct Planner<'a> {
    program: &'a Program,
    machine: &'a Machine,
    memo: &'a Memo,
    budget: Budget,
    pools: Mutex<BTreeMap<Source, Arc<Pool>>>,
}

impl<'a> Planner<'a> {
    /// A planner that has not looked yet.
    pub fn new(program: &'a Program, machine: &'a Machine, memo: &'a Memo, budget: Budget) -> Self {
        Planner {
            program,
            machine,
            memo,
            budget,
            pools: Mutex::default(),
        }
    }

    /// Seconds that no plan goes below.
    pub fn least_secs(&self) -> f64 {
        least_secs(self.program, self.machine)
    }

    /// What a quick search finds in the large space that only the best strategy
    /// searches. `None` if that has too little memory whatever is chosen.
    pub fn start(&self) -> Option<Start> {
        let cap = self.budget.device_bytes;
        let pool = self.pool(LARGE);
        let problem = self.problem(LARGE, &pool, self.workspace_bytes(cap));
        let found = Space::new(&problem).search(cap, None)?;
        Some(Start { pool, found })
    }

    /// What else is found from a start where memory is worth so much, if that is better;
    /// prices of a program with other segments tell nothing.
    pub fn look(&self, start: Start, prices: &Prices) -> Start {
        let cap = self.budget.device_bytes;
        let Start { pool, found } = start;
        let problem = self.problem(LARGE, &pool, self.workspace_bytes(cap));
        let found = if prices.n_segments() == pool.segments.pieces.len() {
            let near = Space::new(&problem).refine(&found.path, prices, cap);
            found.better(near)
        } else {
            found
        };
        Start { pool, found }
    }

    /// The best that the integer program finds from a start, if it takes less than
    /// `below` seconds; and what it knows of those that do.
    pub fn improve(&self, start: Start, below: f64) -> (Option<Made>, Proof) {
        let cap = self.budget.device_bytes;
        let Start { pool, found } = start;
        let problem = self.problem(LARGE, &pool, self.workspace_bytes(cap));
        let mut space = Space::new(&problem);
        let mut prover = Prover::new(&problem, &space, &found, cap);
        let mut proof = prover.prove(&space, &found, cap, Some(below));
        let found = proof.better.take().unwrap_or(found);
        if !found.score.fits() {
            return (None, proof);
        }
        let packed = self.packed(
            LARGE,
            cap,
            (&problem, &mut space),
            found,
            (below, Some(prover)),
        );
        (packed.made(), proof)
    }

    /// The plan, as it is on the real machine, with its distance to what nothing
    /// takes less than on the planner's.
    pub fn finish(&self, made: Made, machine: &Machine, proof: &Proof) -> Plan {
        let secs = made.found.score.secs;
        let mut plan = if machine == self.machine {
            made.plan
        } else {
            let pool = self.pool(made.source);
            let problem = self.problem(made.source, &pool, made.workspace_bytes);
            self.schedule_on(machine, &problem, &made.found).1
        };
        // Updates come after the last stage and cost every plan the same.
        let program = self.program;
        let updates = (program.updates.iter())
            .map(|u| machine.update_secs(program.node(u.param).ty.bytes(), program.state_slots));
        plan.predicted.secs += updates.sum::<f64>();
        plan.gap = ((secs - proof.bound_secs) / secs.max(1e-12)).max(0.0);
        plan.n_binaries = proof.n_binaries;
        plan
    }

    /// What no placement of those that a plan was chosen from takes less than.
    pub fn prove(&self, made: &Made) -> Proof {
        let pool = self.pool(made.source);
        let problem = self.problem(made.source, &pool, made.workspace_bytes);
        let space = Space::new(&problem);
        let cap = self.budget.device_bytes;
        Prover::new(&problem, &space, &made.found, cap).prove(&space, &made.found, cap, None)
    }

    fn tile_sizes(&self) -> Vec<usize> {
        let maps = self.program.nodes.iter().filter(|n| n.ty.is_map());
        let extents = maps.flat_map(|n| n.ty.shape.spatial().to_vec());
        let largest = extents.max().unwrap_or(1);
        let mut sizes = vec![largest];
        sizes.extend(tile::ladder(largest, (largest / 256).max(2)));
        sizes
    }

    /// The fastest plan of a strategy that a search of seconds finds, if it takes
    /// less than `below` seconds.
    pub fn quick(&self, strategy: Strategy, cap: u64, below: f64) -> Quick {
        let workspace = self.workspace_bytes(cap);
        let one = |fineness, grids| {
            let source = (strategy, fineness, grids);
            self.fastest(source, cap, workspace, below)
        };
        match strategy {
            Strategy::StoreAll => one(Fineness::Coarse, Grids::Whole),
            Strategy::Checkpoint => one(Fineness::Roots, Grids::Whole),
            Strategy::Paging => one(Fineness::Nodes, Grids::Whole),
            Strategy::RematIlp | Strategy::RematPageIlp => one(Fineness::Fine, Grids::Whole),
            Strategy::Optimal => one(Fineness::Nested, Grids::Ladder),
            Strategy::RecomputeAll | Strategy::OffloadAll => one(Fineness::Coarse, Grids::Ladder),
            Strategy::Streaming | Strategy::TileCheckpoint => {
                let mut best = Quick::TooLarge;
                for t in self.tile_sizes() {
                    let next = one(Fineness::Coarse, Grids::Fixed(t));
                    // Smaller tiles only waste more halo.
                    if best.secs().is_finite() && next.secs() >= best.secs() {
                        break;
                    }
                    best = next;
                }
                best
            }
        }
    }

    /// Scratch that kernels get under a cap: what they need, and what helps them, but
    /// that not at the price of the plan.
    fn workspace_bytes(&self, cap: u64) -> u64 {
        self.machine.workspace_bytes.min(cap / 16) / 64 * 64 + self.least_workspace_bytes()
    }

    /// Scratch without which kernels of narrow tensors cannot run.
    fn least_workspace_bytes(&self) -> u64 {
        self.program.decoded_bytes().next_multiple_of(64)
    }

    /// The fastest plan found within the cap, if it takes less than `below`
    /// seconds.
    fn fastest(&self, source: Source, cap: u64, workspace_bytes: u64, below: f64) -> Quick {
        let pool = self.pool(source);
        let problem = self.problem(source, &pool, workspace_bytes);
        let mut space = Space::new(&problem);
        let goal = Goal::Seconds {
            device_bytes: cap,
            below_secs: below,
        };
        match place(&space, goal, None) {
            Placed::Found(found) => {
                self.packed(source, cap, (&problem, &mut space), found, (below, None))
            }
            Placed::Slower(secs) => Quick::Slower(secs),
            Placed::TooLarge | Placed::Impossible => Quick::TooLarge,
        }
    }

    /// By how much the gaps between its tensors make a plan's spill file too large.
    fn disk_over(&self, plan: &Plan) -> u64 {
        (plan.predicted.disk_peak_bytes).saturating_sub(self.budget.disk_bytes)
    }

    fn pool(&self, source: Source) -> Arc<Pool> {
        let pools = || self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools().get(&source) {
            return Arc::clone(pool);
        }
        let (strategy, fineness, grids) = source;
        let storable = storable(self.program, strategy, fineness);
        let segments = segment(self.program, &storable, fineness);
        let costs = (self.program, self.machine, self.memo);
        let candidates = candidates(costs, strategy, &segments, &storable, grids);
        let pool = Arc::new(Pool {
            segments,
            candidates,
        });
        pools().insert(source, Arc::clone(&pool));
        pool
    }

    fn problem<'p>(&'p self, source: Source, pool: &'p Pool, workspace_bytes: u64) -> Problem<'p> {
        Problem {
            program: self.program,
            machine: self.machine,
            strategy: source.0,
            segments: &pool.segments,
            candidates: &pool.candidates,
            host_bytes: self.budget.host_bytes,
            disk_bytes: self.budget.disk_bytes,
            workspace_bytes,
        }
    }

    fn schedule(&self, problem: &Problem<'_>, found: &Found) -> (Decision, Plan) {
        self.schedule_on(self.machine, problem, found)
    }

    fn schedule_on(
        &self,
        machine: &Machine,
        problem: &Problem<'_>,
        found: &Found,
    ) -> (Decision, Plan) {
        let decision = decide(problem, found);
        let (budget, strategy) = (self.budget, problem.strategy);
        let plan = schedule::schedule(self.program, machine, budget, strategy, &decision);
        (decision, plan)
    }
}
