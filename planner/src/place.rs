//! The placement: which candidates run, and where each stored map lives.
//!
//! One integer program over the whole step. `x[c]` says that candidate `c`
//! runs; the chosen ones form a path through each level's segments. A stored
//! map `t` has `D[t,u]`, indexed only at its uses `u`: it is on the device until
//! then (falling in `u`), and `H[t]`: a copy is on the host. `r[c,t] ≤ x[c]`
//! says that `c` runs and finds `t` on the device; otherwise it keeps a window
//! of `t`, and a read copies from the host. Candidates that cover one segment
//! exclude each other, so rows are summed over them, which makes the relaxation
//! tight:
//!
//! - residency: `Σ_c r[c,t] ≤ D[t,u]`; supply: `Σ_c (x[c] − r[c,t]) ≤ H[t]` over
//!   the candidates that end in `u` and read `t`;
//! - device memory, per segment: `Σ size·D + Σ scratch·x − Σ credit·r ≤ M`;
//!   exactly one candidate covers a segment, so no big-M;
//! - host memory, per segment: `Σ size·H ≤ host`;
//! - minimise seconds of candidates and copies; or `M` itself, to find the
//!   smallest device cap.
//!
//! Bytes here ignore fragmentation and estimate scratch; the finished plan is
//! packed exactly, and the caller lowers `M` by any shortfall and asks again.

use std::collections::{BTreeMap, BTreeSet};

use crate::candidates::{Candidate, Touch};
use crate::error::PlanError;
use crate::machine::Machine;
use crate::program::{NodeIx, Program};
use crate::schedule::{Decision, HomeDecision, StageDecision};
use crate::segment::Segments;
use crate::solve::{Effort, Model, Outcome, Solution, Var};
use crate::stage::Body;
use crate::strategy::Strategy;

/// What to minimise.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// Seconds, within this many device bytes.
    Seconds {
        /// The cap.
        device_bytes: u64,
    },
    /// Device bytes.
    Memory,
}

/// How placing ended.
#[derive(Clone, Debug)]
pub enum Placed {
    /// With a placement.
    Found(Placement),
    /// No placement exists among these candidates.
    Impossible,
    /// The solver's limits ran out first.
    GaveUp,
}

/// A placement.
#[derive(Clone, Debug)]
pub struct Placement {
    /// The decisions.
    pub decision: Decision,
    /// Relative distance to the best bound of the model.
    pub gap: f64,
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
    /// Scratch of kernels in bytes.
    pub workspace_bytes: u64,
}

/// Columns of one stored map.
struct MapVars {
    size: f64,
    /// Segment that makes it.
    made: usize,
    /// Use segments, ascending, and whether it is on the device until then.
    device: Vec<(usize, Var)>,
    host: Var,
}

impl MapVars {
    /// The variable that says whether it is on the device at `segment`.
    fn at(&self, segment: usize) -> Option<Var> {
        let i = self.device.partition_point(|(s, _)| *s < segment);
        self.device.get(i).map(|(_, v)| *v)
    }
}

/// Solves the placement.
///
/// # Errors
/// [`PlanError::Solver`] if the solver fails.
pub fn place(problem: &Problem<'_>, goal: Goal, effort: Effort) -> Result<Placed, PlanError> {
    let mut builder = Builder::new(problem, goal);
    builder.maps();
    builder.paths();
    builder.touches();
    builder.memory();
    Ok(match builder.model.solve(effort)? {
        Outcome::Found(solution) => {
            let decision = builder.decode(&solution);
            Placed::Found(Placement {
                decision,
                gap: solution.gap,
            })
        }
        Outcome::Impossible => Placed::Impossible,
        Outcome::GaveUp => Placed::GaveUp,
    })
}

struct Builder<'a> {
    p: &'a Problem<'a>,
    goal: Goal,
    model: Model,
    /// Bytes per unit of memory rows.
    unit: f64,
    /// Seconds per unit of the objective.
    tick: f64,
    runs: Vec<Var>,
    maps: BTreeMap<NodeIx, MapVars>,
    /// Memory terms per segment.
    rows: Vec<Vec<(Var, f64)>>,
}

impl<'a> Builder<'a> {
    fn new(p: &'a Problem<'a>, goal: Goal) -> Self {
        let n = p.segments.pieces.len();
        let least = |f: &dyn Fn(&Candidate) -> f64| -> Vec<f64> {
            let mut best = vec![f64::INFINITY; n];
            for c in p.candidates {
                for b in &mut best[c.from..c.to] {
                    *b = b.min(f(c));
                }
            }
            best.into_iter().filter(|b| b.is_finite()).collect()
        };
        let secs: f64 = least(&|c| c.secs / (c.to - c.from) as f64).iter().sum();
        let scratch = least(&|c| c.scratch_bytes as f64)
            .into_iter()
            .fold(0.0, f64::max);
        let unit = match goal {
            Goal::Seconds { device_bytes } => device_bytes as f64 / 1000.0,
            Goal::Memory => scratch / 1000.0,
        };
        Builder {
            p,
            goal,
            model: Model::default(),
            unit: unit.max(1.0),
            tick: (secs / 1000.0).max(1e-12),
            runs: Vec::new(),
            maps: BTreeMap::new(),
            rows: vec![Vec::new(); n],
        }
    }

    /// Columns of every map that some candidate reads, or that is an output.
    fn maps(&mut self) {
        let mut uses: BTreeMap<NodeIx, BTreeSet<usize>> = BTreeMap::new();
        for c in self.p.candidates {
            for t in c.touches.iter().filter(|t| t.reads) {
                uses.entry(t.node).or_default().insert(c.to - 1);
            }
        }
        let n_segments = self.p.segments.pieces.len();
        for &o in &self.p.program.outputs {
            if self.p.program.node(o).ty.is_map() && self.p.segments.of[o.ix()].is_some() {
                uses.entry(o).or_default().insert(n_segments - 1);
            }
        }
        for c in self.p.candidates {
            for t in c.touches.iter().filter(|t| !t.reads) {
                if let Some(uses) = uses.get_mut(&t.node) {
                    uses.insert(c.to - 1);
                }
            }
        }
        for (t, uses) in uses {
            let made = self.p.segments.of[t.ix()].expect("a stored map is made in a segment");
            let bytes = self.p.program.node(t).ty.bytes();
            let d2h_secs = bytes as f64 / self.p.machine.d2h_bytes_per_sec;
            let host = self.model.binary(d2h_secs / self.tick);
            let device: Vec<(usize, Var)> = uses
                .into_iter()
                .map(|u| (u, self.model.binary(0.0)))
                .collect();
            for pair in device.windows(2) {
                self.model
                    .at_least(vec![(pair[0].1, 1.0), (pair[1].1, -1.0)], 0.0);
            }
            let (on_device, on_host) = match self.p.strategy {
                Strategy::StoreAll => (Some(1.0), Some(0.0)),
                Strategy::OffloadAll => (Some(0.0), None),
                Strategy::Optimal | Strategy::RecomputeAll | Strategy::Streaming => (None, None),
            };
            let on_host = if self.p.host_bytes < bytes {
                Some(0.0)
            } else {
                on_host
            };
            if let Some(fixed) = on_device {
                for (_, v) in &device {
                    self.model.equal(vec![(*v, 1.0)], fixed);
                }
            }
            if let Some(fixed) = on_host {
                self.model.equal(vec![(host, 1.0)], fixed);
            }
            if self.p.program.outputs.contains(&t) {
                let last = device.last().expect("an output has a last use").1;
                self.model.at_least(vec![(last, 1.0), (host, 1.0)], 1.0);
            }
            self.maps.insert(
                t,
                MapVars {
                    size: bytes as f64,
                    made,
                    device,
                    host,
                },
            );
        }
    }

    /// One path of candidates through the segments of each level.
    fn paths(&mut self) {
        let n = self.p.segments.pieces.len();
        let mut out: Vec<Vec<(Var, f64)>> = vec![Vec::new(); n + 1];
        for c in self.p.candidates {
            let x = self
                .model
                .binary((c.secs + self.h2d_secs(&c.touches)) / self.tick);
            self.runs.push(x);
            out[c.from].push((x, 1.0));
            out[c.to].push((x, -1.0));
        }
        // Levels follow each other without a gap, so this is one flow from the
        // first segment to the last.
        for (k, mut terms) in out.into_iter().enumerate().take(n) {
            terms.sort_unstable_by_key(|t| t.0);
            self.model.equal(terms, if k == 0 { 1.0 } else { 0.0 });
        }
    }

    /// Seconds of reading everything from the host.
    fn h2d_secs(&self, touches: &[Touch]) -> f64 {
        let bytes: u64 = touches
            .iter()
            .filter(|t| t.reads)
            .map(|t| t.copy_bytes)
            .sum();
        bytes as f64 / self.p.machine.h2d_bytes_per_sec
    }

    /// Windows, copies and supply of every candidate's stored maps.
    fn touches(&mut self) {
        let mut resident: BTreeMap<(NodeIx, usize), Vec<(Var, f64)>> = BTreeMap::new();
        let mut supplied: BTreeMap<(NodeIx, usize), Vec<(Var, f64)>> = BTreeMap::new();
        for (c, &x) in self.p.candidates.iter().zip(&self.runs) {
            let covered = c.from..c.to;
            for row in &mut self.rows[covered.clone()] {
                row.push((x, c.scratch_bytes as f64 / self.unit));
            }
            for t in &c.touches {
                let Some(map) = self.maps.get(&t.node) else {
                    continue;
                };
                let saved_secs = if t.reads { self.h2d_secs(&[*t]) } else { 0.0 };
                let r = self.model.real(0.0, 1.0, -saved_secs / self.tick);
                self.model.at_least(vec![(x, 1.0), (r, -1.0)], 0.0);
                resident
                    .entry((t.node, c.to - 1))
                    .or_default()
                    .push((r, 1.0));
                if t.reads {
                    let rows = supplied.entry((t.node, c.to - 1)).or_default();
                    rows.extend([(x, 1.0), (r, -1.0)]);
                }
                for row in &mut self.rows[covered.clone()] {
                    row.push((r, -(t.credit_bytes as f64) / self.unit));
                }
                if !t.reads {
                    // It is there from the start of its stage.
                    for row in &mut self.rows[c.from..map.made.max(c.from)] {
                        row.push((r, map.size / self.unit));
                    }
                }
            }
        }
        for ((t, segment), mut terms) in resident {
            let device = self.maps[&t]
                .at(segment)
                .expect("every use of a map has a column");
            terms.push((device, -1.0));
            self.model.at_most(terms, 0.0);
        }
        for ((t, _), mut terms) in supplied {
            terms.push((self.maps[&t].host, -1.0));
            self.model.at_most(terms, 0.0);
        }
    }

    /// Device and host rows, one per segment.
    fn memory(&mut self) {
        let fixed = fixed_bytes(self.p);
        let peak = match self.goal {
            Goal::Seconds { .. } => None,
            // Seconds still break ties, far below any byte.
            Goal::Memory => Some(self.model.real(0.0, f64::INFINITY, 1e6)),
        };
        let n = self.rows.len();
        for (k, mut row) in std::mem::take(&mut self.rows).into_iter().enumerate() {
            let mut host = Vec::new();
            for map in self.maps.values() {
                if k >= map.made && map.at(k).is_some() {
                    row.extend(map.at(k).map(|v| (v, map.size / self.unit)));
                    host.push((map.host, map.size));
                }
            }
            let level = self.p.segments.pieces[k].level as usize;
            let held = fixed[level] as f64 / self.unit;
            row.sort_unstable_by_key(|t| t.0);
            let mut merged: Vec<(Var, f64)> = Vec::with_capacity(row.len());
            for (v, factor) in row {
                match merged.last_mut() {
                    Some(last) if last.0 == v => last.1 += factor,
                    _ => merged.push((v, factor)),
                }
            }
            match (self.goal, peak) {
                (Goal::Seconds { device_bytes }, _) => {
                    self.model
                        .at_most(merged, device_bytes as f64 / self.unit - held);
                }
                (Goal::Memory, peak) => {
                    merged.extend(peak.map(|p| (p, -1.0)));
                    self.model.at_most(merged, -held);
                }
            }
            let total: f64 = host.iter().map(|(_, size)| size).sum();
            if total > self.p.host_bytes as f64 {
                let cap = self.p.host_bytes.max(1) as f64;
                let terms = host
                    .into_iter()
                    .map(|(v, size)| (v, size / cap * 100.0))
                    .collect();
                self.model
                    .at_most(terms, if self.p.host_bytes == 0 { 0.0 } else { 100.0 });
            }
        }
        debug_assert_eq!(n, self.p.segments.pieces.len());
    }

    /// The chosen path, with only what somebody really reads stored.
    fn decode(&self, solution: &Solution) -> Decision {
        let program = self.p.program;
        let mut chosen: Vec<&Candidate> = (self.p.candidates.iter().zip(&self.runs))
            .filter(|(_, x)| solution.is_set(**x))
            .map(|(c, _)| c)
            .collect();
        chosen.sort_by_key(|c| c.from);
        // From the last stage back: keep the targets that a later stage reads.
        let mut wanted: BTreeSet<NodeIx> = program
            .outputs
            .iter()
            .copied()
            .filter(|o| program.node(*o).ty.is_map())
            .collect();
        let mut stages: Vec<(&Candidate, BTreeSet<NodeIx>, BTreeSet<NodeIx>)> = Vec::new();
        for c in chosen.into_iter().rev() {
            let targets: BTreeSet<NodeIx> = (c.targets.iter().copied())
                .filter(|t| !program.node(*t).ty.is_map() || wanted.contains(t))
                .collect();
            if targets.is_empty() {
                continue;
            }
            let body = Body::close(program, &targets, |n| c.supplied.contains(&n));
            let reads: BTreeSet<NodeIx> =
                body.supplies().filter(|n| !program.is_source(*n)).collect();
            wanted.extend(&reads);
            stages.push((c, targets, reads));
        }
        stages.reverse();
        let mut homes: BTreeMap<NodeIx, HomeDecision> = BTreeMap::new();
        for (at, (c, targets, reads)) in stages.iter().enumerate() {
            for t in targets.iter().filter(|t| program.node(**t).ty.is_map()) {
                homes.entry(*t).or_default();
            }
            for t in reads {
                let map = &self.maps[t];
                let home = homes.entry(*t).or_default();
                if map.at(c.to - 1).is_some_and(|v| solution.is_set(v)) {
                    home.device_until = Some(at);
                } else {
                    home.host = true;
                }
            }
        }
        for &o in program
            .outputs
            .iter()
            .filter(|o| program.node(**o).ty.is_map())
        {
            if let Some(home) = homes.get_mut(&o) {
                let map = &self.maps[&o];
                if solution.is_set(map.host) {
                    home.host = true;
                } else {
                    home.device_until = Some(stages.len() - 1);
                }
            }
        }
        let stages = stages
            .into_iter()
            .map(|(c, targets, supplied)| StageDecision {
                level: self.p.segments.pieces[c.from].level,
                targets,
                supplied,
                grid: c.grid.clone(),
                why: format!("recomputes back to {}", c.frontier),
            })
            .collect();
        Decision {
            stages,
            homes,
            workspace_bytes: self.p.workspace_bytes,
        }
    }
}

/// Bytes of leaves, optimiser state, flat results and workspace per level.
fn fixed_bytes(p: &Problem<'_>) -> Vec<u64> {
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
