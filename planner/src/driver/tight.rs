//! Plans where memory is all that counts: the smallest there is, and the error that
//! names it.

use std::cmp::Reverse;

use crate::budget::ByteSize;
use crate::error::{Beyond, ForcingBuffer, PlanError};
use crate::explain;
use crate::grids::Grids;
use crate::made::Made;
use crate::place::{Goal, Placed, place};
use crate::plan::{Buffer, Plan};
use crate::search::Space;
use crate::segment::Fineness;
use crate::strategy::Strategy;

use super::{Planner, REPACKS, Source};

/// By what factors the smallest plan is undercut, one after the other, each as
/// often as a quick search can; a byte less than the last is too little.
const SHRINKS: [f64; 4] = [0.85, 0.96, 0.99, 1.0];
/// Steps of each factor.
const SHRINK_STEPS: usize = 24;

impl Planner<'_> {
    /// The fastest plan that a search for the smallest one comes by; failing that
    /// the smallest; failing that the error that names it.
    ///
    /// # Errors
    /// [`PlanError::Infeasible`], [`PlanError::HostTooSmall`] and
    /// [`PlanError::Solver`].
    pub fn tightly(&self, strategy: Strategy) -> Result<Made, PlanError> {
        self.tight(strategy, self.budget.device_bytes)
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
        live.sort_by_key(|b| (Reverse(b.bytes), b.offset));
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
