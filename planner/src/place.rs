//! The placement: which candidates run, and where each stored map lives.
//!
//! [`place`] searches ([`crate::search`]); a [`Prover`] asks the integer program
//! (`master`) how far from the best that can be, and whether it knows
//! better; [`decide`] turns what was found into a [`Decision`].
//!
//! Bytes here ignore fragmentation and estimate scratch; the finished plan is
//! packed exactly, and the caller lowers the cap by any shortfall and asks again.

use std::collections::{BTreeMap, BTreeSet};

use crate::candidates::Candidate;
use crate::machine::Machine;
use crate::master::{Best, Effort, Solver};
use crate::plan::Tier;
use crate::program::{NodeIx, Program};
use crate::schedule::{Decision, HomeDecision, StageDecision};
use crate::search::{Found, Prices, Space};
use crate::segment::Segments;
use crate::stage::Body;
use crate::strategy::Strategy;

/// What to minimise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// Seconds, within this many device bytes.
    Seconds {
        /// The cap.
        device_bytes: u64,
        /// Only fewer than this many matter.
        below_secs: f64,
    },
    /// Device bytes.
    Memory,
}

/// How placing ended.
#[derive(Clone, Debug)]
pub enum Placed {
    /// With a placement.
    Found(Found),
    /// Nothing takes fewer seconds than this, which is too many.
    Slower(f64),
    /// Everything found needs more device memory.
    TooLarge,
    /// Everything found needs more host memory or disk, whatever the device has.
    Impossible,
}

/// Everything the model is made from.
pub struct Problem<'a> {
    /// The program.
    pub program: &'a Program,
    /// Rates of copies.
    pub machine: &'a Machine,
    /// Restrictions on homes.
    pub strategy: Strategy,
    /// The path's steps.
    pub segments: &'a Segments,
    /// What may run.
    pub candidates: &'a [Candidate],
    /// Host cap in bytes.
    pub host_bytes: u64,
    /// Disk cap in bytes.
    pub disk_bytes: u64,
    /// Scratch of kernels in bytes.
    pub workspace_bytes: u64,
}

impl Problem<'_> {
    /// Cap of a tier in bytes.
    pub fn tier_bytes(&self, tier: Tier) -> u64 {
        match tier {
            Tier::Host => self.host_bytes,
            Tier::Disk => self.disk_bytes,
        }
    }

    /// Whether a map of `bytes` may be stored in a tier.
    pub fn may_store(&self, tier: Tier, bytes: u64) -> bool {
        self.strategy.may_offload() && bytes <= self.tier_bytes(tier)
    }
}

/// Of a strategy that is only compared with.
const ONCE: Effort = Effort {
    gap: f64::INFINITY,
    work: 0,
};
/// Of the strategy that is to be the best there is.
const THOROUGH: Effort = Effort {
    gap: 0.01,
    work: 250_000_000,
};

/// Searches a placement, from `start` if given.
pub fn place(space: &Space<'_>, goal: Goal, start: Option<&Found>) -> Placed {
    let device_bytes = match goal {
        Goal::Seconds {
            device_bytes,
            below_secs,
        } => {
            let least_secs = space.least_secs();
            if least_secs >= below_secs {
                return Placed::Slower(least_secs);
            }
            device_bytes
        }
        Goal::Memory => 0,
    };
    match space.search(device_bytes, start) {
        None => Placed::TooLarge,
        Some(found) if found.score.beyond_over > 0.0 => Placed::Impossible,
        Some(found) if goal != Goal::Memory && !found.score.fits() => Placed::TooLarge,
        Some(found) => Placed::Found(found),
    }
}

/// What the integer program knows of a placement.
#[derive(Clone, Debug)]
pub struct Proof {
    /// No placement of the problem's candidates within the cap takes fewer
    /// seconds; infinite if there is none.
    pub bound_secs: f64,
    /// A better placement than the one asked about.
    pub better: Option<Found>,
    /// What memory is worth, if that was found out.
    pub prices: Option<Prices>,
    /// Yes-or-no decisions that the integer program was asked.
    pub n_binaries: usize,
}

/// The integer program of a problem, asked about one placement after the other.
pub struct Prover<'a> {
    solver: Option<Solver<'a>>,
}

impl<'a> Prover<'a> {
    /// Knows nothing yet but a placement, which need not fit.
    pub fn new(problem: &'a Problem<'a>, space: &Space<'_>, found: &Found, cap_bytes: u64) -> Self {
        let solver = (!found.is_least).then(|| {
            let first = space.starters(found, cap_bytes);
            Solver::new(problem, cap_bytes, first).ok()
        });
        Prover {
            solver: solver.flatten(),
        }
    }

    /// Bounds the seconds of every placement within `cap_bytes` and, if told to improve,
    /// looks for one that takes less than `below` seconds and is better than `found`,
    /// which need not fit. The bound is then one of all that take less.
    /// If the solver fails it is that of stages alone, whatever memory they have.
    pub fn prove(
        &mut self,
        space: &Space<'_>,
        found: &Found,
        cap_bytes: u64,
        below: Option<f64>,
    ) -> Proof {
        let plain = |bound_secs: f64| Proof {
            bound_secs,
            better: None,
            prices: None,
            n_binaries: 0,
        };
        if found.is_least {
            return plain(found.score.secs);
        }
        let Some(solver) = &mut self.solver else {
            return plain(space.least_secs());
        };
        let mut better: Option<Found> = None;
        let improve = below.is_some();
        let below = match below {
            Some(below) => below.min(found.score.fitting_secs()),
            None => f64::INFINITY,
        };
        let effort = if improve { THOROUGH } else { ONCE };
        // What memory is worth, the relaxation knows best; near what it mixes is
        // often something that is whole.
        let look = |prices: &Prices, mixed: &[usize]| {
            if improve {
                let near = better.as_ref().unwrap_or(found).path.clone();
                for start in [near.as_slice(), mixed] {
                    let other = space.refine(start, prices, cap_bytes);
                    if other.is_better(better.as_ref().unwrap_or(found)) {
                        better = Some(other);
                    }
                }
            }
            let best = better.as_ref().unwrap_or(found);
            Best {
                secs: best.score.fitting_secs().min(below),
                path: best.path.clone(),
            }
        };
        // If the solver failed, what was found stands; only less is known of it.
        match solver.bound(effort, below, look) {
            Ok(known) => Proof {
                bound_secs: known.bound_secs,
                better,
                prices: known.prices,
                n_binaries: known.n_binaries,
            },
            Err(_) => Proof {
                better,
                ..plain(space.least_secs())
            },
        }
    }

    /// A placement near what is best once less memory is left than `found` needs, or its
    /// candidates are known to take more of it.
    pub fn again(&mut self, space: &Space<'_>, found: &Found, cap_bytes: u64) -> Option<Found> {
        let solver = self.solver.as_mut()?;
        let answer = solver.again(space.scratch(), cap_bytes, &found.path);
        let (prices, near) = answer.ok().flatten()?;
        let starts = [found.path.as_slice(), &near];
        let all = starts.map(|start| space.refine(start, &prices, cap_bytes));
        all.into_iter().reduce(Found::better)
    }
}

/// The chosen path, with only what somebody really reads stored.
pub fn decide(p: &Problem<'_>, found: &Found) -> Decision {
    let program = p.program;
    let is_map = |n: &NodeIx| program.node(*n).ty.is_map();
    let home = |t: NodeIx| found.homes.get(&t).copied().unwrap_or((None, None));
    // From the last stage back: keep the targets that a later stage reads.
    let outputs = program.outputs.iter().copied().filter(is_map);
    let mut wanted: BTreeSet<NodeIx> = outputs.clone().collect();
    let mut stages: Vec<(usize, BTreeSet<NodeIx>, BTreeSet<NodeIx>)> = Vec::new();
    for &candidate in found.path.iter().rev() {
        let c: &Candidate = &p.candidates[candidate];
        let targets: BTreeSet<NodeIx> = (c.targets.iter().copied())
            .filter(|t| !is_map(t) || wanted.contains(t))
            .collect();
        if targets.is_empty() {
            continue;
        }
        let body = Body::close(program, &targets, |n| c.supplied.contains(&n));
        let reads: BTreeSet<NodeIx> = body.supplies().filter(|n| !program.is_source(*n)).collect();
        wanted.extend(&reads);
        stages.push((candidate, targets, reads));
    }
    stages.reverse();
    let mut homes: BTreeMap<NodeIx, HomeDecision> = BTreeMap::new();
    for (at, (c, targets, reads)) in stages.iter().enumerate() {
        for t in targets.iter().filter(|t| is_map(t)) {
            homes.entry(*t).or_default();
        }
        for &t in reads {
            let decided = homes.entry(t).or_default();
            if home(t)
                .0
                .is_some_and(|until| until >= p.candidates[*c].to - 1)
            {
                decided.device_until = Some(at);
            } else {
                decided.beyond = home(t).1.or(Some(Tier::Host));
            }
        }
    }
    for o in outputs {
        if let Some(decided) = homes.get_mut(&o) {
            if let Some(tier) = home(o).1 {
                decided.beyond = Some(tier);
            } else {
                decided.device_until = Some(stages.len() - 1);
            }
        }
    }
    let stages = stages
        .into_iter()
        .map(|(candidate, targets, supplied)| {
            let c = &p.candidates[candidate];
            StageDecision {
                candidate,
                level: p.segments.pieces[c.from].level,
                targets,
                supplied,
                grid: c.grid.clone(),
                prefetches: c.prefetches,
                why: format!("recomputes back to {}", c.frontier),
            }
        })
        .collect();
    Decision {
        stages,
        homes,
        workspace_bytes: p.workspace_bytes,
    }
}

/// Bytes of leaves, optimiser state, flat results and workspace per level.
pub(crate) fn fixed_bytes(p: &Problem<'_>) -> Vec<u64> {
    let program = p.program;
    let n_levels = program
        .nodes
        .iter()
        .map(|n| n.level as usize + 1)
        .max()
        .unwrap_or(1);
    let always = program.persistent_bytes() + p.workspace_bytes;
    let mut fixed = vec![always; n_levels];
    for n in program.indices() {
        let node = program.node(n);
        if node.ty.is_map() || node.op.is_leaf() {
            continue;
        }
        let kept = program.outputs.contains(&n) || program.updates.iter().any(|u| u.grad == n);
        let last = if kept {
            n_levels - 1
        } else {
            let users = program.consumers(n).iter().map(|c| program.node(*c).level);
            users.max().unwrap_or(node.level) as usize
        };
        for bytes in &mut fixed[node.level as usize..=last.max(node.level as usize)] {
            *bytes += node.ty.bytes().next_multiple_of(crate::pack::ALIGN);
        }
    }
    fixed
}
