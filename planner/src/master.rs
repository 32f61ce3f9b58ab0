//! The placement as one integer program: the bound, and what it can improve.
//!
//! `x[c]` says that candidate `c` runs; the chosen ones form a path through the
//! segments. A stored map `t` has `D[t,u]` and `H[t,u]`, indexed only at its
//! uses `u`: it is on the device until then, and its copy on the host is needed
//! until then; both fall in `u`. `r[c,t] ≤ x[c]` says that `c` finds `t` on the
//! device; otherwise it keeps a window of `t`, and a read copies from the host.
//! Candidates that cover one segment exclude each other, so rows are summed
//! over them, which makes the relaxation tight:
//!
//! - residency: `Σ_c r[c,t] ≤ D[t,u]`; supply: `Σ_c (x[c] − r[c,t]) ≤ H[t,u]`
//!   over the candidates that end in `u` and read `t`;
//! - device memory, per segment: `Σ size·D + Σ scratch·x − Σ credit·r ≤ M`;
//!   exactly one candidate covers a segment, so no big-M;
//! - host memory, per segment: `Σ size·H ≤ host`.
//!
//! Where only one home is allowed `r` is `x` or 0 and needs no column. The
//! relaxation's value bounds every placement of these candidates. Columns whose
//! reduced cost exceeds the gap cannot be part of a better one: what is left is
//! solved as an integer program if it is small.

use std::collections::{BTreeMap, BTreeSet};

use crate::candidates::{Candidate, Touch};
use crate::error::PlanError;
use crate::place::{Problem, fixed_bytes};
use crate::program::NodeIx;
use crate::search::Prices;
use crate::solve::{Effort, Model, Outcome, Row, Var};

/// Most candidates that an integer program is given.
const MOST_BINARIES: usize = 400;
/// Limits of the integer program: nodes, so that it is a function of the model.
const EFFORT: Effort = Effort {
    gap: 0.002,
    nodes: 20,
    secs: 600.0,
};

/// What the relaxation proves.
pub struct Bound {
    /// No placement of these candidates takes fewer seconds.
    pub secs: f64,
    /// What memory is worth in each segment.
    pub prices: Prices,
    /// Seconds that running each candidate would add at least.
    reduced_secs: Vec<f64>,
}

/// Bounds the seconds of every placement within `device_bytes`. `None` if the
/// relaxation has no solution.
///
/// # Errors
/// [`PlanError::Solver`] if the solver fails.
pub fn bound(problem: &Problem<'_>, device_bytes: u64) -> Result<Option<Bound>, PlanError> {
    let all = vec![true; problem.candidates.len()];
    let builder = Builder::build(problem, device_bytes, &all);
    let Some(relaxed) = builder.model.relax()? else {
        return Ok(None);
    };
    let reduced = builder
        .runs
        .iter()
        .map(|x| relaxed.reduced_cost(*x) * builder.tick);
    let price = |row: &Option<Row>, unit: f64| {
        let worth = row.map_or(0.0, |r| -relaxed.dual(r) * builder.tick / unit);
        worth.max(0.0)
    };
    let device = builder.device_rows.iter().map(|r| price(r, builder.unit));
    let host_unit = problem.host_bytes.max(1) as f64 / 100.0;
    let host = builder.host_rows.iter().map(|r| price(r, host_unit));
    Ok(Some(Bound {
        secs: relaxed.value * builder.tick,
        prices: Prices::new(device.collect(), host.collect()),
        reduced_secs: reduced.collect(),
    }))
}

/// What the integer program found: a path, which need not be better, and the
/// bound as it stands then.
pub struct Improved {
    /// Candidates in order.
    pub path: Vec<usize>,
    /// No placement takes fewer seconds than this.
    pub bound_secs: f64,
}

/// Solves the integer program over the candidates that a placement of fewer
/// than `best_secs` may contain.
///
/// # Errors
/// [`PlanError::Solver`] if the solver fails.
pub fn improve(
    problem: &Problem<'_>,
    device_bytes: u64,
    bound: &Bound,
    best_secs: f64,
) -> Result<Option<Improved>, PlanError> {
    let slack = best_secs - bound.secs;
    let mut open: Vec<usize> = (0..problem.candidates.len())
        .filter(|&c| bound.reduced_secs[c] <= slack * (1.0 + 1e-6))
        .collect();
    let all_open = open.len() <= MOST_BINARIES;
    open.sort_by(|&a, &b| {
        (bound.reduced_secs[a].total_cmp(&bound.reduced_secs[b])).then(a.cmp(&b))
    });
    open.truncate(MOST_BINARIES);
    let mut chosen = vec![false; problem.candidates.len()];
    for c in open {
        chosen[c] = true;
    }
    let builder = Builder::build(problem, device_bytes, &chosen);
    let Outcome::Found(solution) = builder.model.solve(EFFORT)? else {
        return Ok(None);
    };
    let used = builder.open.iter().zip(&builder.runs);
    let mut path: Vec<usize> = used
        .filter(|(_, x)| solution.is_set(**x))
        .map(|(&c, _)| c)
        .collect();
    path.sort_by_key(|&c| problem.candidates[c].from);
    // What is not open cannot be below `best_secs`; what is, not below the
    // program's own bound.
    let proved = if all_open {
        (solution.bound * builder.tick).min(best_secs)
    } else {
        0.0
    };
    Ok(Some(Improved {
        path,
        bound_secs: bound.secs.max(proved),
    }))
}

/// Columns of one stored map.
struct MapVars {
    size: f64,
    /// Segment that makes it.
    made: usize,
    /// Use segments, ascending: on the device until then, on the host until
    /// then.
    uses: Vec<(usize, Var, Var)>,
}

impl MapVars {
    /// The variables that say where it is at `segment`.
    fn at(&self, segment: usize) -> Option<(Var, Var)> {
        let i = self.uses.partition_point(|(s, ..)| *s < segment);
        self.uses.get(i).map(|u| (u.1, u.2))
    }
}

struct Builder<'a> {
    p: &'a Problem<'a>,
    device_bytes: u64,
    model: Model,
    /// Bytes per unit of memory rows.
    unit: f64,
    /// Seconds per unit of the objective.
    tick: f64,
    /// Candidates with a column.
    open: Vec<usize>,
    runs: Vec<Var>,
    maps: BTreeMap<NodeIx, MapVars>,
    /// Memory terms per segment.
    rows: Vec<Vec<(Var, f64)>>,
    device_rows: Vec<Option<Row>>,
    host_rows: Vec<Option<Row>>,
}

impl<'a> Builder<'a> {
    fn build(p: &'a Problem<'a>, device_bytes: u64, open: &[bool]) -> Builder<'a> {
        let n = p.segments.pieces.len();
        let mut least = vec![f64::INFINITY; n];
        for c in p.candidates {
            for b in &mut least[c.from..c.to] {
                *b = b.min(c.secs / (c.to - c.from) as f64);
            }
        }
        let secs: f64 = least.into_iter().filter(|b| b.is_finite()).sum();
        let mut builder = Builder {
            p,
            device_bytes,
            model: Model::default(),
            unit: (device_bytes as f64 / 1000.0).max(1.0),
            tick: (secs / 1000.0).max(1e-12),
            open: (0..open.len()).filter(|&c| open[c]).collect(),
            runs: Vec::new(),
            maps: BTreeMap::new(),
            rows: vec![Vec::new(); n],
            device_rows: vec![None; n],
            host_rows: vec![None; n],
        };
        builder.maps();
        builder.paths();
        builder.touches();
        builder.memory();
        builder
    }

    fn candidates(&self) -> impl Iterator<Item = &'a Candidate> + '_ {
        self.open.iter().map(|&c| &self.p.candidates[c])
    }

    /// Columns of every map that some candidate reads, or that is an output.
    fn maps(&mut self) {
        let mut uses: BTreeMap<NodeIx, BTreeSet<usize>> = BTreeMap::new();
        for c in self.candidates() {
            for t in c.touches.iter().filter(|t| t.reads) {
                uses.entry(t.node).or_default().insert(c.to - 1);
            }
        }
        let end = self.p.segments.pieces.len().saturating_sub(1);
        for &o in &self.p.program.outputs {
            if self.p.program.node(o).ty.is_map() && self.p.segments.of[o.ix()].is_some() {
                uses.entry(o).or_default().insert(end);
            }
        }
        for c in self.candidates() {
            for t in c.touches.iter().filter(|t| !t.reads) {
                if let Some(uses) = uses.get_mut(&t.node) {
                    uses.insert(c.to - 1);
                }
            }
        }
        for (t, uses) in uses {
            let made = self.p.segments.of[t.ix()].unwrap_or(0);
            let bytes = self.p.program.node(t).ty.bytes();
            let d2h_secs = bytes as f64 / self.p.machine.d2h_bytes_per_sec;
            let (device, host) = (self.may_keep(), self.may_offload(bytes));
            let most = |allowed: bool| if allowed { 1.0 } else { 0.0 };
            let uses: Vec<(usize, Var, Var)> = (uses.into_iter().enumerate())
                .map(|(i, u)| {
                    let cost = if i == 0 { d2h_secs / self.tick } else { 0.0 };
                    let d = self.model.real(0.0, most(device), 0.0);
                    let h = self.model.real(0.0, most(host), cost);
                    (u, d, h)
                })
                .collect();
            for pair in uses.windows(2) {
                for (early, late) in [(pair[0].1, pair[1].1), (pair[0].2, pair[1].2)] {
                    self.model.at_least(vec![(early, 1.0), (late, -1.0)], 0.0);
                }
            }
            if let (true, Some(last)) = (self.p.program.outputs.contains(&t), uses.last()) {
                self.model.at_least(vec![(last.1, 1.0), (last.2, 1.0)], 1.0);
            }
            let size = bytes as f64;
            self.maps.insert(t, MapVars { size, made, uses });
        }
    }

    fn may_keep(&self) -> bool {
        self.p.strategy.may_keep_on_device()
    }

    fn may_offload(&self, bytes: u64) -> bool {
        self.p.strategy.may_offload() && bytes <= self.p.host_bytes
    }

    /// One path of candidates through the segments. Levels follow each other
    /// without a gap, so this is one flow from the first segment to the last.
    fn paths(&mut self) {
        let n = self.p.segments.pieces.len();
        let mut out: Vec<Vec<(Var, f64)>> = vec![Vec::new(); n + 1];
        for c in self.open.clone() {
            let c = &self.p.candidates[c];
            let x = self
                .model
                .binary((c.secs + self.h2d_secs(&c.touches)) / self.tick);
            self.runs.push(x);
            out[c.from].push((x, 1.0));
            out[c.to].push((x, -1.0));
        }
        for (k, mut terms) in out.into_iter().enumerate().take(n) {
            terms.sort_unstable_by_key(|t| t.0);
            self.model.equal(terms, if k == 0 { 1.0 } else { 0.0 });
        }
    }

    /// Seconds of reading everything from the host.
    fn h2d_secs(&self, touches: &[Touch]) -> f64 {
        let reads = touches.iter().filter(|t| t.reads);
        let bytes: u64 = reads.map(|t| t.copy_bytes).sum();
        bytes as f64 / self.p.machine.h2d_bytes_per_sec
    }

    /// Windows, copies and supply of every candidate's stored maps.
    fn touches(&mut self) {
        let mut resident: BTreeMap<(NodeIx, usize), Vec<(Var, f64)>> = BTreeMap::new();
        let mut supplied: BTreeMap<(NodeIx, usize), Vec<(Var, f64)>> = BTreeMap::new();
        for (at, &x) in self.runs.clone().iter().enumerate() {
            let c = &self.p.candidates[self.open[at]];
            for row in &mut self.rows[c.from..c.to] {
                row.push((x, c.scratch_bytes as f64 / self.unit));
            }
            for t in &c.touches {
                let Some(map) = self.maps.get(&t.node) else {
                    continue;
                };
                let saved = if t.reads { self.h2d_secs(&[*t]) } else { 0.0 } / self.tick;
                let r = if !self.may_keep() {
                    None
                } else if t.reads && !self.may_offload(map.size as u64) {
                    self.model.add_cost(x, -saved);
                    Some(x)
                } else {
                    let r = self.model.real(0.0, 1.0, -saved);
                    self.model.at_least(vec![(x, 1.0), (r, -1.0)], 0.0);
                    Some(r)
                };
                if t.reads {
                    let row = supplied.entry((t.node, c.to - 1)).or_default();
                    if r != Some(x) {
                        row.push((x, 1.0));
                        row.extend(r.map(|r| (r, -1.0)));
                    }
                }
                let Some(r) = r else { continue };
                resident
                    .entry((t.node, c.to - 1))
                    .or_default()
                    .push((r, 1.0));
                for row in &mut self.rows[c.from..c.to] {
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
        for (rows, pick) in [(resident, 0), (supplied, 1)] {
            for ((t, segment), mut terms) in rows {
                let Some((device, host)) = self.maps[&t].at(segment) else {
                    continue;
                };
                terms.push((if pick == 0 { device } else { host }, -1.0));
                self.model.at_most(terms, 0.0);
            }
        }
    }

    /// Device and host rows, one per segment.
    fn memory(&mut self) {
        let fixed = fixed_bytes(self.p);
        let cap = self.device_bytes as f64 / self.unit;
        for (k, mut row) in std::mem::take(&mut self.rows).into_iter().enumerate() {
            let mut host = Vec::new();
            for map in self.maps.values().filter(|map| k >= map.made) {
                if let Some((d, h)) = map.at(k) {
                    row.push((d, map.size / self.unit));
                    host.push((h, map.size));
                }
            }
            let held = fixed[self.p.segments.pieces[k].level as usize] as f64 / self.unit;
            row.sort_unstable_by_key(|t| t.0);
            row.dedup_by(|b, a| {
                let same = a.0 == b.0;
                if same {
                    a.1 += b.1;
                }
                same
            });
            self.device_rows[k] = Some(self.model.at_most(row, cap - held));
            let total: f64 = host.iter().map(|(_, size)| size).sum();
            if total > self.p.host_bytes as f64 {
                let cap = self.p.host_bytes.max(1) as f64;
                let share = |(v, size): (Var, f64)| (v, size / cap * 100.0);
                let most = if self.p.host_bytes == 0 { 0.0 } else { 100.0 };
                let row = self
                    .model
                    .at_most(host.into_iter().map(share).collect(), most);
                self.host_rows[k] = Some(row);
            }
        }
    }
}
