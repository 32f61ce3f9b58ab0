//! Candidate stages: an interval, a frontier, a grid, and its exact cost.
//!
//! For every run of segments of one level and every frontier, the body follows
//! ([`Body::close`]); for every grid of the ladder its cost follows
//! ([`BodyCost`]). Of these the Pareto front in seconds and scratch bytes is
//! kept. Recomputation is thus a property of a candidate, not a mechanism of
//! its own.

use std::collections::{BTreeMap, BTreeSet};

use rayon::prelude::*;

use crate::cost::{AxisSums, BodyCost, BodyRates};
use crate::grids::{Grids, enumerate, pareto};
use crate::machine::Machine;
use crate::memo::Memo;
use crate::program::{NodeIx, Program};
use crate::segment::{Segments, frontiers};
use crate::stage::{Body, Role};
use crate::strategy::Strategy;
use crate::sweep::{AxisGrid, AxisPolicy, Sweeper};

/// A stored map that a candidate reads or makes.
#[derive(Clone, Copy, Debug)]
pub struct Touch {
    /// The map.
    pub node: NodeIx,
    /// Whether it is read; else it is made.
    pub reads: bool,
    /// Bytes copied from or to the host if it lives there.
    pub copy_bytes: u64,
    /// Scratch saved if it lives on the device.
    pub credit_bytes: u64,
}

/// A possible stage.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// First segment covered.
    pub from: usize,
    /// First segment beyond.
    pub to: usize,
    /// Maps it can store and reductions it finishes. Empty: nothing to run.
    pub targets: BTreeSet<NodeIx>,
    /// Stored maps it reads.
    pub supplied: BTreeSet<NodeIx>,
    /// How it is cut.
    pub grid: Vec<AxisGrid>,
    /// Seconds without host copies.
    pub secs: f64,
    /// Scratch bytes with all its stored maps on the host.
    pub scratch_bytes: u64,
    /// Stored maps it reads or makes.
    pub touches: Vec<Touch>,
    /// Whether it copies from and to the host beside its kernels; its scratch and
    /// credits then include what that takes.
    pub prefetches: bool,
    /// Which frontier recomputation stops at.
    pub frontier: &'static str,
}

/// Most grids kept per body.
const KEEP_GRIDS: usize = 14;
/// Bodies larger than this are not tried beyond the finest frontier.
const MAX_BODY: usize = 900;
/// Most tiles of a stage that a plan may have.
const MAX_STAGE_TILES: usize = 1 << 17;

/// All candidates of a program on a machine; what equal bodies cost is looked up.
pub fn candidates(
    (program, machine, memo): (&Program, &Machine, &Memo),
    strategy: Strategy,
    segments: &Segments,
    storable: &BTreeSet<NodeIx>,
    grids: Grids,
) -> Vec<Candidate> {
    let frontiers = frontiers(program, storable, strategy);
    let kinds = memo.kinds(program);
    let mut intervals = Vec::new();
    for from in 0..segments.pieces.len() {
        let level = segments.pieces[from].level;
        for to in from + 1..=segments.pieces.len() {
            // Paging runs one op after the other.
            let too_long = strategy == Strategy::Paging && to > from + 1;
            if segments.pieces[to - 1].level != level || too_long {
                break;
            }
            intervals.push((from, to));
        }
    }
    let of = |&(from, to): &(usize, usize)| {
        let grids = if segments.may_tile(from, to) {
            grids
        } else {
            Grids::Whole
        };
        let mut seen = BTreeSet::new();
        let mut out = Vec::new();
        for frontier in &frontiers {
            let targets = targets(program, segments, &frontier.stores, from, to);
            let before = |n: NodeIx| {
                frontier.stops.contains(&n) && segments.of[n.ix()].is_some_and(|s| s < from)
            };
            let body = Body::close(program, &targets, before);
            if !seen.is_empty() && body.items.len() > MAX_BODY {
                continue;
            }
            let supplied: BTreeSet<NodeIx> =
                body.supplies().filter(|&n| !program.is_source(n)).collect();
            if !seen.insert((supplied.clone(), targets.clone())) {
                continue;
            }
            let shell = Candidate {
                from,
                to,
                targets,
                supplied,
                grid: Vec::new(),
                secs: 0.0,
                scratch_bytes: 0,
                touches: Vec::new(),
                // Where memory is all that counts, nothing waits on the device.
                prefetches: machine.copies_overlap && grids != Grids::Smallest,
                frontier: frontier.name,
            };
            if shell.targets.is_empty() {
                out.push(shell);
            } else {
                out.extend(memo.candidates((&kinds, &body, grids), &shell, || {
                    grid_candidates(program, machine, &body, &shell, grids)
                }));
            }
        }
        out
    };
    // In order, whatever the number of threads.
    let found: Vec<Vec<Candidate>> = intervals.par_iter().map(of).collect();
    found.into_iter().flatten().collect()
}

/// Reductions of the interval, and storable maps that something beyond reads.
fn targets(
    program: &Program,
    segments: &Segments,
    storable: &BTreeSet<NodeIx>,
    from: usize,
    to: usize,
) -> BTreeSet<NodeIx> {
    let inside = |n: &NodeIx| segments.of[n.ix()].is_some_and(|s| (from..to).contains(&s));
    let nodes = segments.pieces[from..to]
        .iter()
        .flat_map(|s| s.nodes.iter().copied());
    nodes
        .filter(|n| {
            program.is_reduction(*n)
                || program.outputs.contains(n)
                || (storable.contains(n) && escapes(program, *n, &inside))
        })
        .collect()
}

/// Whether something outside reads the map, directly or through maps inside
/// that are cheap to recompute there.
fn escapes(program: &Program, n: NodeIx, inside: &impl Fn(&NodeIx) -> bool) -> bool {
    let mut stack = vec![n];
    let mut seen = BTreeSet::new();
    while let Some(n) = stack.pop() {
        for c in program.consumers(n) {
            if !inside(c) {
                return true;
            }
            if program.node(*c).ty.is_map() && seen.insert(*c) {
                stack.push(*c);
            }
        }
    }
    false
}

/// Grids of one body, costed; the Pareto front.
fn grid_candidates(
    program: &Program,
    machine: &Machine,
    body: &Body,
    shell: &Candidate,
    grids: Grids,
) -> Vec<Candidate> {
    let anchor = body.anchor(program);
    let rates = BodyRates::new(program, machine, body);
    let sweepers: Vec<Sweeper> = (0..anchor.len())
        .map(|axis| Sweeper::new(program, body, axis))
        .collect();
    // Axes along which everything reads alike share their sums.
    let alike = |axis: usize| {
        let same =
            |other: &usize| anchor[*other] == anchor[axis] && sweepers[*other] == sweepers[axis];
        (0..axis).find(same).unwrap_or(axis)
    };
    let shared: Vec<usize> = (0..anchor.len()).map(alike).collect();
    let mut sums: BTreeMap<(usize, bool, usize), AxisSums> = BTreeMap::new();
    let mut found = Vec::new();
    for grid in enumerate(&anchor, grids) {
        let tiles = grid
            .iter()
            .map(AxisGrid::n_tiles)
            .try_fold(1usize, |a, b| a.checked_mul(b));
        if tiles.is_none_or(|t| t > MAX_STAGE_TILES) {
            continue;
        }
        let key = |axis: usize, g: &AxisGrid| (shared[axis], g.policy == AxisPolicy::Carry, g.tile);
        for (axis, g) in grid.iter().enumerate() {
            sums.entry(key(axis, g))
                .or_insert_with(|| AxisSums::new(&sweepers[axis], g));
        }
        let axes: Vec<&AxisSums> = grid
            .iter()
            .enumerate()
            .map(|(axis, g)| &sums[&key(axis, g)])
            .collect();
        let cost = BodyCost::new(&rates, body, &axes);
        found.push(finish(program, body, shell, grid.clone(), &cost));
    }
    let copies = |c: &Candidate| {
        let bytes: u64 = c
            .touches
            .iter()
            .filter(|t| t.reads)
            .map(|t| t.copy_bytes)
            .sum();
        bytes as f64 / machine.h2d_bytes_per_sec
    };
    let keep = if grids == Grids::Smallest {
        3
    } else {
        KEEP_GRIDS
    };
    pareto(
        found,
        |c| c.secs + copies(c),
        keep,
        grids == Grids::Smallest,
    )
}

fn finish(
    program: &Program,
    body: &Body,
    shell: &Candidate,
    grid: Vec<AxisGrid>,
    cost: &BodyCost,
) -> Candidate {
    let is_touch = |i: usize| {
        let item = &body.items[i];
        item.target || (item.role == Role::Supply && !program.is_source(item.node))
    };
    let saves =
        |i: usize| is_touch(i) && (body.items[i].role == Role::Supply || cost.totals[i].direct);
    let states: u64 = (body.items.iter())
        .filter(|i| i.role == Role::Reduce)
        .map(|i| {
            let node = program.node(i.node);
            match node.op.reduction_state(&node.ty) {
                sstep_autodiff::ReductionState::F64(n) => 8 * n as u64,
                sstep_autodiff::ReductionState::InPlace => 0,
            }
        })
        .sum();
    let full = cost.scratch_bytes(body, |_| false);
    let least = cost.scratch_bytes(body, saves);
    let windows: u64 = (0..body.items.len())
        .filter(|&i| saves(i))
        .map(|i| cost.window_bytes[i])
        .sum();
    let staging_bytes = |i: usize| {
        let staged = shell.prefetches && is_touch(i);
        let bytes = if staged {
            cost.staged[i].buffer_bytes
        } else {
            0
        };
        bytes.next_multiple_of(64)
    };
    let staging: u64 = (0..body.items.len()).map(staging_bytes).sum();
    let touches = (0..body.items.len())
        .filter(|&i| is_touch(i))
        .map(|i| Touch {
            node: body.items[i].node,
            reads: body.items[i].role == Role::Supply,
            copy_bytes: cost.copy_bytes[i],
            credit_bytes: staging_bytes(i)
                + if saves(i) && windows > 0 {
                    let share = cost.window_bytes[i] as f64 / windows as f64;
                    ((full - least) as f64 * share) as u64
                } else {
                    0
                },
        })
        .collect();
    Candidate {
        grid,
        secs: cost.secs,
        scratch_bytes: full + staging + states,
        touches,
        ..shell.clone()
    }
}
