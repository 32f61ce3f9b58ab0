//! Good placements, by prices and local search.
//!
//! A *path* says which candidates run; given a path, each stored map has few
//! homes: on the device up to one of its uses, on the host or on disk from then on. So a
//! path is judged exactly and quickly (`Space::judge`), and the search only
//! has to walk through paths:
//!
//! 1. *prices*: device memory costs seconds per byte in each segment; at given
//!    prices levels are re-planned one by one, each by a shortest path in which
//!    a read pays what it adds to the cost of storing its map. Prices rise
//!    where memory is short and fall where it is not;
//! 2. *descent*: from the best path found, every candidate of every level is
//!    tried with the cheapest way through it, until nothing helps.
//!
//! No randomness and no clock: the result is a function of the problem.

mod homes;
mod paths;
mod prices;
mod relief;
mod uses;
mod walk;

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

pub use prices::{ChannelPrices, Prices};

use crate::candidates::Candidate;
use crate::place::{Problem, fixed_bytes};
use crate::plan::Tier;
use crate::program::NodeIx;
use crate::segment::is_costly;
use crate::strategy::Strategy;

/// What it costs to read what is nowhere: more than anything at any price.
const FORBIDDEN_SECS: f64 = 1e30;
/// Passes over all levels at fixed prices.
const PASSES: usize = 5;

/// A read or a write of a stored map by a candidate.
#[derive(Clone, Copy, Debug)]
struct Access {
    map: usize,
    reads: bool,
    /// Seconds of reading it from each tier.
    copy_secs: TierSecs,
    credit: f64,
}

/// Seconds by [`Tier::ix`].
type TierSecs = [f64; Tier::COUNT];

/// A map that may be stored.
#[derive(Clone, Debug)]
struct StoredMap {
    node: NodeIx,
    bytes: f64,
    /// Segment that makes it.
    made: usize,
    /// Seconds of storing it in each tier.
    store_secs: TierSecs,
    is_output: bool,
    on_device: bool,
    /// Whether it may be stored in each tier.
    on_tier: [bool; Tier::COUNT],
}

impl StoredMap {
    /// Whether it may leave the device at all.
    fn may_leave(&self) -> bool {
        self.on_tier.contains(&true)
    }
}

/// Where a map of a path lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stay {
    /// So many of its uses find it on the device.
    kept: usize,
    /// The others find it there.
    tier: Tier,
}

/// Everything about a problem that judging paths needs.
pub struct Space<'a> {
    candidates: &'a [Candidate],
    /// Scratch bytes of each candidate with all its maps beyond the device.
    scratch: Vec<f64>,
    accesses: Vec<Vec<Access>>,
    /// Maps that each candidate computes but does not store.
    unstored: Vec<Vec<usize>>,
    maps: Vec<StoredMap>,
    /// Segments of each level.
    levels: Vec<Range<usize>>,
    /// Maps that some candidate of each level reads, makes or does not store.
    maps_of_level: Vec<Vec<usize>>,
    /// Candidates of each level, by first segment.
    of_level: Vec<Vec<usize>>,
    /// Bytes held whatever is chosen, per segment.
    held: Vec<f64>,
    /// Tiers that there is any of, the fastest first.
    tiers: Vec<Tier>,
    /// Cap of each tier.
    tier_bytes: [f64; Tier::COUNT],
    is_paged: bool,
    /// Whether copies run beside kernels.
    overlaps: bool,
    /// Whether each candidate covers whole coarse pieces and reads only maps that
    /// are dear to compute again: where memory is short the best are among these.
    is_frugal: Vec<bool>,
}

/// How good a path is: less is better, the first entry first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Bytes beyond the caps of host and disk.
    pub beyond_over: f64,
    /// Bytes beyond the device cap, more where more segments lack them.
    pub device_over: f64,
    /// Seconds, copies included.
    pub secs: f64,
}

impl Score {
    fn order(&self, other: &Score) -> Ordering {
        (self.beyond_over.total_cmp(&other.beyond_over))
            .then(self.device_over.total_cmp(&other.device_over))
            .then(self.secs.total_cmp(&other.secs))
    }

    /// Seconds; infinite where a cap does not hold.
    pub fn fitting_secs(&self) -> f64 {
        if self.fits() {
            self.secs
        } else {
            f64::INFINITY
        }
    }

    /// Whether all caps hold.
    pub fn fits(&self) -> bool {
        self.beyond_over <= 0.0 && self.device_over <= 0.0
    }
}

/// A path with the homes of its maps.
#[derive(Clone, Debug)]
pub struct Found {
    /// Candidates in order.
    pub path: Vec<usize>,
    /// Per used map: last segment that finds it on the device, and where a copy
    /// is beyond it, if there is one.
    pub homes: BTreeMap<NodeIx, (Option<usize>, Option<Tier>)>,
    /// How good it is.
    pub score: Score,
    /// Whether no placement at all takes fewer seconds, whatever the caps.
    pub is_least: bool,
    /// Candidates that were on a cheapest path at prices near those at which memory
    /// is used up: likely to matter.
    pub tried: BTreeSet<usize>,
}

impl Found {
    /// Whether it is better than another: caps first, then seconds.
    pub fn is_better(&self, other: &Found) -> bool {
        self.score.order(&other.score) == Ordering::Less
    }

    /// The better of two, the first if they are alike.
    pub fn better(self, other: Found) -> Found {
        if other.is_better(&self) { other } else { self }
    }
}

impl<'a> Space<'a> {
    /// Reads a problem.
    pub fn new(p: &Problem<'a>) -> Space<'a> {
        let program = p.program;
        let mut index: BTreeMap<NodeIx, usize> = BTreeMap::new();
        let mut maps = Vec::new();
        let mut accesses = Vec::with_capacity(p.candidates.len());
        for c in p.candidates {
            let list = (c.touches.iter()).map(|t| {
                let map = *index.entry(t.node).or_insert_with(|| {
                    let bytes = program.node(t.node).ty.bytes();
                    maps.push(StoredMap {
                        node: t.node,
                        bytes: bytes as f64,
                        made: p.segments.of[t.node.ix()].unwrap_or(0),
                        store_secs: Tier::ALL.map(|tier| p.machine.store_secs(tier, bytes)),
                        is_output: program.outputs.contains(&t.node),
                        on_device: p.strategy.may_keep_on_device(),
                        on_tier: Tier::ALL.map(|tier| p.may_store(tier, bytes)),
                    });
                    maps.len() - 1
                });
                Access {
                    map,
                    reads: t.reads,
                    copy_secs: Tier::ALL.map(|tier| {
                        if t.reads {
                            p.machine.fetch_secs(tier, t.copy_bytes)
                        } else {
                            0.0
                        }
                    }),
                    credit: t.credit_bytes as f64,
                }
            });
            accesses.push(list.collect());
        }
        let pieces = &p.segments.pieces;
        let mut made_in: Vec<Vec<usize>> = vec![Vec::new(); pieces.len()];
        for (m, map) in maps.iter().enumerate() {
            made_in[map.made].push(m);
        }
        let unstored: Vec<Vec<usize>> = (p.candidates.iter().zip(&accesses))
            .map(|(c, accesses): (&Candidate, &Vec<Access>)| {
                let stores = |m: &usize| accesses.iter().any(|a| !a.reads && a.map == *m);
                let made = made_in[c.from..c.to].iter().flatten();
                made.copied().filter(|m| !stores(m)).collect()
            })
            .collect();
        let mut levels: Vec<Range<usize>> = Vec::new();
        for k in 0..pieces.len() {
            match levels.last_mut() {
                Some(last) if pieces[last.start].level == pieces[k].level => last.end = k + 1,
                _ => levels.push(k..k + 1),
            }
        }
        let of_level: Vec<Vec<usize>> = (levels.iter())
            .map(|range| {
                let inside = |c: &usize| range.contains(&p.candidates[*c].from);
                let mut inside: Vec<usize> = (0..p.candidates.len()).filter(inside).collect();
                inside.sort_by_key(|&c| (p.candidates[c].from, c));
                inside
            })
            .collect();
        let maps_of_level = (of_level.iter())
            .map(|inside: &Vec<usize>| {
                let touched = inside.iter().flat_map(|&c| {
                    let accessed = accesses[c].iter().map(|a: &Access| a.map);
                    accessed.chain(unstored[c].iter().copied())
                });
                let touched: BTreeSet<usize> = touched.collect();
                touched.into_iter().collect()
            })
            .collect();
        let fixed = fixed_bytes(p);
        Space {
            candidates: p.candidates,
            scratch: (p.candidates.iter())
                .map(|c| c.scratch_bytes as f64)
                .collect(),
            accesses,
            unstored,
            maps,
            levels,
            maps_of_level,
            of_level,
            held: (pieces.iter())
                .map(|s| fixed[s.level as usize] as f64)
                .collect(),
            // Without a disk the host is all that there is to choose.
            tiers: (Tier::ALL.into_iter())
                .filter(|&tier| tier == Tier::Host || p.tier_bytes(tier) > 0)
                .collect(),
            tier_bytes: Tier::ALL.map(|tier| p.tier_bytes(tier) as f64),
            is_paged: p.strategy == Strategy::Paging,
            overlaps: p.machine.copies_overlap,
            is_frugal: (p.candidates.iter())
                .map(|c| {
                    let mut reads = c.touches.iter().filter(|t| t.reads);
                    p.segments.may_tile(c.from, c.to) && reads.all(|t| is_costly(program, t.node))
                })
                .collect(),
        }
    }

    /// Takes a candidate to need as many bytes more as a plan was found to; tells
    /// whether that was not known.
    pub fn charge(&mut self, candidate: usize, bytes: u64) -> bool {
        let taken = (self.candidates[candidate].scratch_bytes + bytes) as f64;
        let is_new = taken > self.scratch[candidate];
        self.scratch[candidate] = taken.max(self.scratch[candidate]);
        is_new
    }

    /// Scratch bytes of each candidate, by what is known now.
    pub fn scratch(&self) -> &[f64] {
        &self.scratch
    }

    /// Takes `bytes` of the disk away: what its tensors lose to gaps in the file.
    pub fn shrink_disk(&mut self, bytes: u64) {
        let disk = &mut self.tier_bytes[Tier::Disk.ix()];
        *disk = (*disk - bytes as f64).max(0.0);
    }
}
