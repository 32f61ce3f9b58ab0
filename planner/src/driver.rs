//! Which searches are tried, and in what order, until a plan fits.
//!
//! Of one program: a quick search within the cap; if nothing fits, the smallest
//! plan there is, undercut as long as a quick search can; if even that is too
//! large, the error that names it. Which of several equal programs is planned, and
//! how, is decided by who asks (`compare`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::budget::{Budget, ByteSize};
use crate::candidates::{Candidate, candidates};
use crate::cost::least_secs;
use crate::error::{Beyond, ForcingBuffer, PlanError};
use crate::grids::Grids;
use crate::machine::Machine;
use crate::made::{Made, Quick, Start};
use crate::memo::Memo;
use crate::place::{Goal, Placed, Problem, Proof, decide, place, prove};
use crate::plan::{Buffer, Plan};
use crate::program::Program;
use crate::schedule::{self, Decision};
use crate::search::{Found, Prices, Space};
use crate::segment::{Fineness, Segments, segment, storable};
use crate::strategy::Strategy;
use crate::unforeseen::unforeseen;
use crate::{explain, tile};

/// How often a placement is asked again with a cap lowered by what packing
/// lacked.
const REPACKS: usize = 12;
/// By what factors the smallest plan is undercut, one after the other, each as
/// often as a quick search can; a byte less than the last is too little.
const SHRINKS: [f64; 4] = [0.85, 0.96, 0.99, 1.0];

/// A placement near another is taken if it is slower by less than this factor.
const NEAR: f64 = 1.001;

/// Steps of each factor.
const SHRINK_STEPS: usize = 24;

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

    /// The fastest plan that a search for the smallest one comes by; failing that
    /// the smallest; failing that the error that names it.
    ///
    /// # Errors
    /// [`PlanError::Infeasible`], [`PlanError::HostTooSmall`] and
    /// [`PlanError::Solver`].
    pub fn tightly(&self, strategy: Strategy) -> Result<Made, PlanError> {
        self.tight(strategy, self.budget.device_bytes)
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
    ///
    /// # Errors
    /// [`PlanError::Solver`].
    pub fn improve(&self, start: Start, below: f64) -> Result<(Option<Made>, Proof), PlanError> {
        let cap = self.budget.device_bytes;
        let Start { pool, found } = start;
        let problem = self.problem(LARGE, &pool, self.workspace_bytes(cap));
        let mut space = Space::new(&problem);
        let mut proof = prove(&problem, &space, &found, cap, Some(below))?;
        let found = proof.better.take().unwrap_or(found);
        if !found.score.fits() {
            return Ok((None, proof));
        }
        let prices = proof.prices.as_ref();
        let packed = self.packed(LARGE, cap, (&problem, &mut space), found, (below, prices));
        Ok((packed.made(), proof))
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
    ///
    /// # Errors
    /// [`PlanError::Solver`].
    pub fn prove(&self, made: &Made) -> Result<Proof, PlanError> {
        let pool = self.pool(made.source);
        let problem = self.problem(made.source, &pool, made.workspace_bytes);
        let space = Space::new(&problem);
        let cap = self.budget.device_bytes;
        prove(&problem, &space, &made.found, cap, None)
    }

    /// A plan where a quick search finds none.
    fn tight(&self, strategy: Strategy, cap: u64) -> Result<Made, PlanError> {
        let (grids, smallest) = if strategy.may_tile() {
            (Grids::Ladder, Grids::Smallest)
        } else {
            (Grids::Whole, Grids::Whole)
        };
        let mut least = match self.sizes(strategy) {
            Some(sizes) => self.smallest_fixed(strategy, &sizes)?,
            None => self.smallest((strategy, fine(strategy), smallest))?,
        };
        // It does not depend on the cap, so whoever then gives what the error
        // names gets a plan.
        for less in SHRINKS {
            let aim = |least: &Made| {
                let peak = least.peak_bytes();
                ((peak as f64 * less) as u64).min(peak - 1)
            };
            for _ in 0..SHRINK_STEPS {
                match self.quick(strategy, aim(&least), f64::INFINITY).made() {
                    Some(made) => least = made,
                    None => break,
                }
            }
        }
        if least.peak_bytes() > cap {
            return Err(self.infeasible(strategy, &least.plan));
        }
        if self.sizes(strategy).is_none() {
            for grids in [grids, smallest] {
                let source = (strategy, fine(strategy), grids);
                if let Some(made) = self
                    .fastest(source, cap, self.least_workspace_bytes(), f64::INFINITY)
                    .made()
                    .filter(|m| m.secs() < least.secs())
                {
                    return Ok(made);
                }
            }
        }
        Ok(least)
    }

    /// Tile extents of the strategies that have but one, largest first.
    fn sizes(&self, strategy: Strategy) -> Option<Vec<usize>> {
        let fixed = [Strategy::Streaming, Strategy::TileCheckpoint];
        fixed.contains(&strategy).then(|| self.tile_sizes())
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

    /// The plan of a placement; if packing needs more than the caps, of another one
    /// for as much less: near it, or where `prices` lead, or of a search anew.
    fn packed(
        &self,
        source: Source,
        cap: u64,
        (problem, space): (&Problem<'_>, &mut Space<'_>),
        mut found: Found,
        (below, prices): (f64, Option<&Prices>),
    ) -> Quick {
        let mut aim_bytes = cap;
        for _ in 0..REPACKS {
            if found.score.secs >= below {
                return Quick::Slower(found.score.secs);
            }
            let (decision, plan) = self.schedule(problem, &found);
            let peak = plan.predicted.peak_bytes;
            let disk_over = self.disk_over(&plan);
            if peak <= cap && disk_over == 0 {
                return Quick::Made(Box::new(Made {
                    plan,
                    found,
                    source,
                    workspace_bytes: problem.workspace_bytes,
                }));
            }
            if peak > cap {
                let lessons = unforeseen(problem, &found, &decision, &plan);
                for &(candidate, bytes) in &lessons {
                    space.charge(candidate, bytes);
                }
                // Else there is room but for gaps between buffers.
                if lessons.is_empty() || plan.most_live_bytes() <= cap {
                    let Some(aim) = aim_bytes.checked_sub((peak - cap).max(cap / 200)) else {
                        return Quick::TooLarge;
                    };
                    aim_bytes = aim;
                }
            }
            space.shrink_disk(disk_over);
            // What packing lacks is little: near what was found is often enough.
            let secs = found.score.secs;
            let mut next = space.near(&found.path, aim_bytes);
            let is_enough =
                |n: &Option<Found>| n.as_ref().is_some_and(|n| n.score.secs <= secs * NEAR);
            if let (false, Some(prices)) = (is_enough(&next), prices) {
                let priced = space.refine(&found.path, prices, aim_bytes);
                next = next.into_iter().chain([priced]).reduce(Found::better);
            }
            if !is_enough(&next) {
                let goal = Goal::Seconds {
                    device_bytes: aim_bytes,
                    below_secs: below,
                };
                if let Placed::Found(anew) = place(space, goal, Some(&found)) {
                    next = next.into_iter().chain([anew]).reduce(Found::better);
                }
            }
            found = match next.filter(|n| n.score.fits()) {
                Some(next) => next,
                None => return Quick::TooLarge,
            };
        }
        Quick::TooLarge
    }

    /// The plan that needs least device memory, as far as found.
    fn smallest(&self, source: Source) -> Result<Made, PlanError> {
        let pool = self.pool(source);
        let problem = self.problem(source, &pool, self.least_workspace_bytes());
        let mut space = Space::new(&problem);
        for _ in 0..REPACKS {
            let Placed::Found(found) = place(&space, Goal::Memory, None) else {
                break;
            };
            let (_, plan) = self.schedule(&problem, &found);
            match self.disk_over(&plan) {
                0 => {
                    return Ok(Made {
                        plan,
                        found,
                        source,
                        workspace_bytes: problem.workspace_bytes,
                    });
                }
                over => space.shrink_disk(over),
            }
        }
        Err(PlanError::HostTooSmall {
            strategy: source.0.name(),
            beyond: Beyond::of(&self.budget),
        })
    }

    /// By how much the gaps between its tensors make a plan's spill file too large.
    fn disk_over(&self, plan: &Plan) -> u64 {
        (plan.predicted.disk_peak_bytes).saturating_sub(self.budget.disk_bytes)
    }

    /// The same where all tiles have one size.
    fn smallest_fixed(&self, strategy: Strategy, sizes: &[usize]) -> Result<Made, PlanError> {
        let source = |t| (strategy, Fineness::Fine, Grids::Fixed(t));
        let mut least = self.smallest(source(sizes[0]))?;
        for &t in sizes[1..].iter().filter(|t| **t <= 64) {
            let made = self.smallest(source(t))?;
            if made.peak_bytes() < least.peak_bytes() {
                least = made;
            }
        }
        Ok(least)
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

    fn infeasible(&self, strategy: Strategy, least: &Plan) -> PlanError {
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
            strategy: strategy.name(),
            device: ByteSize(self.budget.device_bytes),
            beyond: Beyond::of(&self.budget),
            smallest: ByteSize(peak),
            smallest_bytes: peak,
            forcing,
        }
    }
}

/// How levels are cut where memory is all that counts.
fn fine(strategy: Strategy) -> Fineness {
    match strategy {
        Strategy::Paging => Fineness::Nodes,
        Strategy::Checkpoint => Fineness::Roots,
        Strategy::Optimal
        | Strategy::StoreAll
        | Strategy::RecomputeAll
        | Strategy::OffloadAll
        | Strategy::Streaming
        | Strategy::TileCheckpoint
        | Strategy::RematIlp
        | Strategy::RematPageIlp => Fineness::Fine,
    }
}
