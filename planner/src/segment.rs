//! Where tile loops may begin and end, and what may be stored between them.
//!
//! Within a level of the program (see [`crate::program`]) any run of nodes can
//! share a loop. *Segments* are the pieces between the positions where a level
//! may be cut; a candidate stage covers consecutive segments of one level. Long
//! levels are cut where few bytes cross.
//!
//! *Storable* maps are those worth keeping: results of windows and sums.
//! Pointwise results are recomputed from them on the fly. A *frontier* is a
//! subset of the storable maps at which recomputation stops; coarser frontiers
//! store less and recompute more.
//!
//! Cuts may be *nested*: tile loops over coarse pieces, and whole maps over the
//! fine pieces inside them, so that one search weighs both.

use std::collections::BTreeSet;

use sstep_autodiff::Op;

use crate::program::{NodeIx, Program};
use crate::strategy::Strategy;

/// A piece of a level.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Its level.
    pub level: u32,
    /// Map nodes and reductions in it, ascending.
    pub nodes: Vec<NodeIx>,
}

/// The program, cut.
#[derive(Clone, Debug)]
pub struct Segments {
    /// All pieces, levels ascending.
    pub pieces: Vec<Segment>,
    /// Segment of each node that has one.
    pub of: Vec<Option<usize>>,
    /// Whether a tile loop may begin at each piece; the others are only fine
    /// enough for whole maps.
    pub may_tile: Vec<bool>,
}

impl Segments {
    /// Whether a tile loop may cover the pieces `from..to`.
    pub fn may_tile(&self, from: usize, to: usize) -> bool {
        let begins = |k: usize| self.may_tile.get(k).copied().unwrap_or(true);
        begins(from) && begins(to)
    }
}

/// How finely levels are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fineness {
    /// Only long levels, at a few narrow places.
    Coarse,
    /// After every storable map, up to a number.
    Fine,
    /// Coarsely for tile loops, finely inside for whole maps.
    Nested,
    /// Into about √n pieces.
    Roots,
    /// After every node.
    Nodes,
}

/// Most pieces of a long level when cut coarsely.
const COARSE_PIECES: usize = 6;
/// Most pieces of a level when cut finely.
const FINE_PIECES: usize = 12;
/// Nodes from which on a level counts as long.
const LONG_LEVEL: usize = 24;

/// Cuts a program.
pub fn segment(program: &Program, storable: &BTreeSet<NodeIx>, fineness: Fineness) -> Segments {
    let n_levels = program.nodes.iter().map(|n| n.level + 1).max().unwrap_or(0);
    let mut levels: Vec<Vec<NodeIx>> = vec![Vec::new(); n_levels as usize];
    for n in program.indices() {
        let node = program.node(n);
        let is_work = (node.ty.is_map() && !node.op.is_leaf()) || program.is_reduction(n);
        if is_work {
            levels[node.level as usize].push(n);
        }
    }
    let mut pieces = Vec::new();
    let mut of = vec![None; program.nodes.len()];
    let mut may_tile = Vec::new();
    for (level, nodes) in levels.into_iter().enumerate() {
        let coarse = |storable: &BTreeSet<NodeIx>| {
            if nodes.len() < LONG_LEVEL {
                Vec::new()
            } else {
                narrow_cuts(program, storable, &nodes, COARSE_PIECES)
            }
        };
        let fine = || narrow_cuts(program, storable, &nodes, FINE_PIECES);
        let mut tiled_cuts = None;
        let cuts = match fineness {
            Fineness::Coarse => coarse(storable),
            Fineness::Fine => fine(),
            Fineness::Nested => {
                let costly = storable.iter().copied().filter(|&n| is_costly(program, n));
                let cuts = tiled_cuts.insert(coarse(&costly.collect()));
                let both: BTreeSet<usize> = cuts.iter().copied().chain(fine()).collect();
                both.into_iter().collect()
            }
            Fineness::Roots => narrow_cuts(program, storable, &nodes, nodes.len().isqrt().max(2)),
            Fineness::Nodes => (1..nodes.len()).collect(),
        };
        let mut from = 0;
        for to in cuts.into_iter().chain([nodes.len()]) {
            if to > from {
                for n in &nodes[from..to] {
                    of[n.ix()] = Some(pieces.len());
                }
                let begins = |cuts: &Vec<usize>| from == 0 || cuts.contains(&from);
                may_tile.push(tiled_cuts.as_ref().is_none_or(begins));
                pieces.push(Segment {
                    level: level as u32,
                    nodes: nodes[from..to].to_vec(),
                });
                from = to;
            }
        }
    }
    Segments {
        pieces,
        of,
        may_tile,
    }
}

/// Positions to cut `nodes` at, at most `pieces - 1`: in each stretch of equal
/// work the one behind a storable map that the fewest bytes cross.
fn narrow_cuts(
    program: &Program,
    storable: &BTreeSet<NodeIx>,
    nodes: &[NodeIx],
    pieces: usize,
) -> Vec<usize> {
    let inside: BTreeSet<NodeIx> = nodes.iter().copied().collect();
    let last_use = |n: NodeIx| {
        let users = program.consumers(n).iter().filter(|c| inside.contains(c));
        users.max().copied().unwrap_or(n)
    };
    let choices: Vec<usize> = (1..nodes.len())
        .filter(|&p| storable.contains(&nodes[p - 1]))
        .collect();
    if choices.len() < pieces {
        return choices;
    }
    let mut crossing = vec![0u64; nodes.len() + 1];
    for (p, &n) in nodes.iter().enumerate() {
        if program.node(n).ty.is_map() {
            let last = last_use(n);
            let end = nodes.partition_point(|&m| m < last);
            for bytes in &mut crossing[p + 1..=end.max(p)] {
                *bytes += program.node(n).ty.bytes();
            }
        }
    }
    let mut work = vec![0.0];
    for &n in nodes {
        let whole = program.flops(n, program.points(n));
        work.push(work.last().copied().unwrap_or(0.0) + whole + 1.0);
    }
    let total = work[nodes.len()];
    let mut cuts = Vec::new();
    for k in 1..pieces {
        let near = total * k as f64 / pieces as f64;
        let half = total / (2 * pieces) as f64;
        let best = (choices.iter().copied())
            .filter(|&p| (work[p] - near).abs() <= half)
            .min_by_key(|&p| (crossing[p], p));
        cuts.extend(best);
    }
    cuts.sort_unstable();
    cuts.dedup();
    cuts
}

/// Maps worth storing under a strategy, where levels are cut so.
pub fn storable(program: &Program, strategy: Strategy, fineness: Fineness) -> BTreeSet<NodeIx> {
    let maps = program.indices().filter(|&n| {
        let node = program.node(n);
        node.ty.is_map() && !node.op.is_leaf()
    });
    let checkpoints = if strategy == Strategy::Checkpoint {
        checkpoints(program)
    } else {
        BTreeSet::new()
    };
    let kept = |n: &NodeIx| match strategy {
        Strategy::StoreAll | Strategy::Paging | Strategy::RematIlp | Strategy::RematPageIlp => true,
        Strategy::Checkpoint => checkpoints.contains(n) || program.outputs.contains(n),
        Strategy::RecomputeAll => program.outputs.contains(n),
        Strategy::Optimal if fineness == Fineness::Nested => true,
        Strategy::Optimal
        | Strategy::OffloadAll
        | Strategy::Streaming
        | Strategy::TileCheckpoint => is_costly(program, *n) || program.outputs.contains(n),
    };
    maps.filter(kept).collect()
}

/// About √n forward maps where little crosses, and every backward map.
fn checkpoints(program: &Program) -> BTreeSet<NodeIx> {
    let forward = forward_nodes(program);
    let is_map = |n: &NodeIx| program.node(*n).ty.is_map() && !program.node(*n).op.is_leaf();
    let (ahead, mut kept): (Vec<NodeIx>, BTreeSet<NodeIx>) = {
        let (ahead, behind): (Vec<NodeIx>, Vec<NodeIx>) = program
            .indices()
            .filter(is_map)
            .partition(|n| forward[n.ix()]);
        (ahead, behind.into_iter().collect())
    };
    let all: BTreeSet<NodeIx> = ahead.iter().copied().collect();
    for cut in narrow_cuts(program, &all, &ahead, ahead.len().isqrt().max(1)) {
        let beyond = |c: &NodeIx| all.contains(c) && *c >= ahead[cut];
        let crosses = |n: &NodeIx| program.consumers(*n).iter().any(beyond);
        kept.extend(ahead[..cut].iter().copied().filter(crosses));
    }
    kept
}

/// Whether a map is dearer to compute again than to read.
pub fn is_costly(program: &Program, n: NodeIx) -> bool {
    let node = program.node(n);
    match node.op {
        Op::Conv(_)
        | Op::ConvTranspose(_)
        | Op::MaxPool(_)
        | Op::MaxPoolGrad(_)
        | Op::AvgPool(_)
        | Op::AvgPoolGrad { .. }
        | Op::UpsampleGrad(_) => true,
        Op::Add => node.inputs.iter().all(|&i| program.node(i).ty == node.ty),
        _ => false,
    }
}

/// Where recomputation stops, and what is stored by who recomputes so.
#[derive(Clone, Debug)]
pub struct Frontier {
    /// As `explain` says it.
    pub name: &'static str,
    /// Maps that are read if they are there.
    pub stops: BTreeSet<NodeIx>,
    /// Maps that are stored for later stages. A tile loop that stores a map
    /// computes it in tiles of its own, halo or not, so fewer are better.
    pub stores: BTreeSet<NodeIx>,
}

/// Frontiers from the finest to the coarsest; equal ones left out.
pub fn frontiers(
    program: &Program,
    storable: &BTreeSet<NodeIx>,
    strategy: Strategy,
) -> Vec<Frontier> {
    let forward = forward_nodes(program);
    let keep = |what: &dyn Fn(NodeIx) -> bool| -> BTreeSet<NodeIx> {
        storable.iter().copied().filter(|&n| what(n)).collect()
    };
    let is_add = |n: NodeIx| matches!(program.node(n).op, Op::Add);
    let resizes = |n: NodeIx| {
        let node = program.node(n);
        let maps = node
            .inputs
            .iter()
            .map(|&i| program.node(i).ty)
            .filter(|ty| ty.is_map());
        maps.map(|ty| ty.shape.spatial().iter().product::<usize>())
            .any(|points| points != node.ty.shape.spatial().iter().product::<usize>())
    };
    let costly = |n: NodeIx| is_costly(program, n) || program.outputs.contains(&n);
    let of = |(name, stops): (&'static str, BTreeSet<NodeIx>)| Frontier {
        name,
        stops,
        stores: storable.clone(),
    };
    let all = ("every map", storable.clone());
    match strategy {
        Strategy::StoreAll
        | Strategy::Checkpoint
        | Strategy::RecomputeAll
        | Strategy::OffloadAll
        | Strategy::Paging => return vec![of(all)],
        Strategy::TileCheckpoint => {
            return vec![of(("no forward map", keep(&|n| !forward[n.ix()])))];
        }
        Strategy::Optimal | Strategy::Streaming | Strategy::RematIlp | Strategy::RematPageIlp => {}
    }
    let behind = |n: NodeIx| !forward[n.ix()];
    let mut out = vec![
        all,
        ("every costly map", keep(&costly)),
        (
            "no forward sum",
            keep(&|n| costly(n) && (behind(n) || !is_add(n))),
        ),
        (
            "sums and resized maps",
            keep(&|n| costly(n) && (behind(n) || is_add(n) || resizes(n))),
        ),
        (
            "resized maps",
            keep(&|n| costly(n) && (behind(n) || resizes(n))),
        ),
        ("no forward map", keep(&|n| costly(n) && behind(n))),
        ("nothing", keep(&|n| program.outputs.contains(&n))),
    ];
    let mut seen = BTreeSet::new();
    out.retain(|(_, set)| seen.insert(set.clone()));
    let mut out: Vec<Frontier> = out.into_iter().map(of).collect();
    if strategy == Strategy::Optimal {
        for frontier in &mut out[1..] {
            frontier.stores.retain(|&n| costly(n));
        }
    }
    out
}

/// Whether each node is an ancestor of the first output, the loss.
pub fn forward_nodes(program: &Program) -> Vec<bool> {
    let mut forward = vec![false; program.nodes.len()];
    if let Some(loss) = program.outputs.first() {
        forward[loss.ix()] = true;
    }
    for n in program.indices().rev() {
        if forward[n.ix()] {
            for i in &program.node(n).inputs {
                forward[i.ix()] = true;
            }
        }
    }
    forward
}
