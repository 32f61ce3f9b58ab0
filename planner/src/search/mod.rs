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

/// Factors on the relaxation's prices.
const DEARER: [f64; 5] = [1.0, 1.1, 1.3, 1.7, 3.0];
/// What it costs to read what is nowhere: more than anything at any price.
const FORBIDDEN_SECS: f64 = 1e30;
/// Rounds of price changes.
const ROUNDS: usize = 36;
/// The same from what the relaxation says memory is worth.
const NEAR_ROUNDS: usize = 12;
/// How strongly prices follow what is used of the memory there is.
const BOLD: f64 = 1.5;
/// The same near the prices of the relaxation.
const MILD: f64 = 0.5;
/// Passes over all levels at fixed prices.
const PASSES: usize = 5;
/// Passes of the descent over all levels.
const DESCENTS: usize = 6;
/// Paths that a descent may judge, times the maps and segments of each.
const JUDGE_WORK: usize = 4_000_000;

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

/// One use of a map on a path.
#[derive(Clone, Copy, Debug)]
struct Use {
    from: usize,
    /// Last segment of the stage that reads it.
    at: usize,
    copy_secs: TierSecs,
    credit: f64,
}

/// The stage that makes a map on a path.
#[derive(Clone, Copy, Debug, Default)]
struct Maker {
    from: usize,
    to: usize,
    credit: f64,
    /// Whether it stores the map; who reads it had better not otherwise.
    stores: bool,
}

/// Everything about a problem that judging paths needs.
pub struct Space<'a> {
    candidates: &'a [Candidate],
    accesses: Vec<Vec<Access>>,
    /// Maps that each candidate computes but does not store.
    unstored: Vec<Vec<usize>>,
    maps: Vec<StoredMap>,
    /// Segments of each level.
    levels: Vec<Range<usize>>,
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
}

/// Uses of every map on a path.
struct Uses {
    of: Vec<Vec<Use>>,
    maker: Vec<Maker>,
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
        let unstored = (p.candidates.iter().zip(&accesses))
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
        let of_level = (levels.iter())
            .map(|range| {
                let inside = |c: &usize| range.contains(&p.candidates[*c].from);
                let mut inside: Vec<usize> = (0..p.candidates.len()).filter(inside).collect();
                inside.sort_by_key(|&c| (p.candidates[c].from, c));
                inside
            })
            .collect();
        let fixed = fixed_bytes(p);
        Space {
            candidates: p.candidates,
            accesses,
            unstored,
            maps,
            levels,
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

    /// Takes `bytes` of the disk away: what its tensors lose to gaps in the file.
    pub fn shrink_disk(&mut self, bytes: u64) {
        let disk = &mut self.tier_bytes[Tier::Disk.ix()];
        *disk = (*disk - bytes as f64).max(0.0);
    }

    /// The best path found within `device_bytes`; with 0, the one that needs
    /// least. `None` if there is no path at all.
    pub fn search(&self, device_bytes: u64, start: Option<&Found>) -> Option<Found> {
        if self.is_paged {
            return self.paged(device_bytes);
        }
        if device_bytes > 0 && self.is_hopeless(device_bytes as f64) {
            return None;
        }
        let cap = device_bytes as f64;
        let free = self.flat(0.0);
        let path = self.cheapest(&free, None)?;
        let mut best = self.judge(&path, &free, cap);
        let keeps_all = best.homes.values().all(|(_, beyond)| beyond.is_none());
        if best.score.fits() && keeps_all {
            // Without prices levels are independent and shortest paths exact.
            best.is_least = true;
            return Some(best);
        }
        if let Some(start) = start {
            better(&mut best, self.judge(&start.path, &free, cap));
        }
        // A path for which memory is all that counts.
        let scale = best.score.secs.max(1e-9) / cap.max(1.0) / self.held.len() as f64;
        let dear = self.flat(1e6 * scale);
        if let Some(least) = self.cheapest(&dear, None) {
            better(&mut best, self.judge(&least, &dear, cap));
        }
        let rounds = if device_bytes == 0 { 0 } else { ROUNDS };
        for (first, frugal) in [(0.02, false), (1.0, false), (1.0, true)] {
            let mut prices = self.flat(first * scale);
            let Some(mut path) = self.cheapest_of(&free, None, frugal) else {
                continue;
            };
            self.adjust(
                &mut best,
                &mut prices,
                &mut path,
                cap,
                (rounds, BOLD, frugal),
            );
        }
        let cheap = self.flat(0.3 * scale);
        let dear = self.flat(30.0 * scale);
        Some(self.descend(best, cap, [&cheap, &dear]))
    }

    /// The same price everywhere on the device.
    fn flat(&self, device: f64) -> Prices {
        let channels = if self.overlaps {
            ChannelPrices::BESIDE
        } else {
            ChannelPrices::IN_TURN
        };
        Prices::flat(self.held.len(), device, channels)
    }

    /// Lets prices rise where memory is short and fall where it is not, and keeps the
    /// best path that is cheapest at any of them.
    fn adjust(
        &self,
        best: &mut Found,
        prices: &mut Prices,
        path: &mut Vec<usize>,
        cap: f64,
        (rounds, boldness, frugal): (usize, f64, bool),
    ) {
        let scale = best.score.secs.max(1e-9) / cap.max(1.0) / self.held.len() as f64;
        let factor = |used: f64| {
            let most = 0.5 * boldness;
            (boldness * (used - 1.0)).clamp(-most, most).exp()
        };
        let mut tried = BTreeSet::new();
        for round in 0..rounds {
            let Some(next) = self.cheapest_of(prices, Some(path), frugal) else {
                break;
            };
            *path = next;
            // The first prices are far from any that matter.
            if 2 * round >= rounds {
                tried.extend(path.iter().copied());
            }
            let uses = self.uses(path);
            let stays = self.priced_homes(&uses, prices);
            let loads = self.loads(path, &uses, &stays);
            better(best, self.judge(path, prices, cap));
            let next = (prices.device.iter().zip(&loads.device))
                .map(|(p, used)| p * factor(used / cap))
                .map(|p| p.clamp(1e-5 * scale, 1e7 * scale));
            let beyond_next = Tier::ALL.map(|tier| {
                let room = self.tier_bytes[tier.ix()].max(1.0);
                let now = (prices.beyond[tier.ix()].iter()).zip(&loads.beyond[tier.ix()]);
                let next = now.map(|(p, used)| {
                    let floor = if *used > room { 1e-3 * scale } else { 0.0 };
                    (p * factor(used / room)).max(floor)
                });
                next.collect()
            });
            *prices = Prices::new(next.collect(), beyond_next, prices.channels);
        }
        best.tried.append(&mut tried);
    }

    /// Candidates that are likely to matter: those of `found` and of the cheapest
    /// paths at some prices.
    pub fn starters(&self, found: &Found, device_bytes: u64) -> BTreeSet<usize> {
        let mut starters: BTreeSet<usize> = found.tried.clone();
        starters.extend(&found.path);
        let cap = device_bytes.max(1) as f64;
        let scale = found.score.secs.max(1e-9) / cap / self.held.len() as f64;
        for dear in [0.0, 0.02, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0] {
            let prices = self.flat(dear * scale);
            starters.extend(
                self.cheapest(&prices, Some(&found.path))
                    .into_iter()
                    .flatten(),
            );
        }
        starters
    }

    /// The best that is found near `path`, or near what `prices` suggest.
    pub fn refine(&self, path: &[usize], prices: &Prices, device_bytes: u64) -> Found {
        let cap = device_bytes as f64;
        let mut best = self.judge(path, prices, cap);
        // At its own prices the relaxation mixes a path that fits with one that
        // does not; a little dearer, the one that fits is cheapest.
        for frugal in [false, true] {
            let mut near = (!frugal).then(|| path.to_vec());
            for dearer in DEARER {
                let dear = prices.times(dearer);
                if let Some(priced) = self.cheapest_of(&dear, near.as_deref(), frugal) {
                    better(&mut best, self.judge(&priced, &dear, cap));
                    near = Some(priced);
                }
            }
            if let Some(mut near) = near {
                let mut prices = prices.times(1.0);
                self.adjust(
                    &mut best,
                    &mut prices,
                    &mut near,
                    cap,
                    (NEAR_ROUNDS, MILD, frugal),
                );
            }
        }
        let half = prices.device.iter().map(|p| p * 0.5).collect();
        let cheap = Prices::new(half, prices.beyond.clone(), prices.channels);
        self.descend(best, cap, [prices, &cheap])
    }

    /// A placement near `path` that fits, if there is one.
    pub fn near(&self, path: &[usize], device_bytes: u64) -> Option<Found> {
        let cap = device_bytes as f64;
        let found = self.judge(path, &self.flat(0.0), cap);
        let scale = found.score.secs.max(1e-9) / cap.max(1.0) / self.held.len() as f64;
        let cheap = self.flat(0.3 * scale);
        let dear = self.flat(30.0 * scale);
        let found = self.descend(found, cap, [&cheap, &dear]);
        found.score.fits().then_some(found)
    }

    /// Tries every candidate of every level until nothing helps, with ways to
    /// it that are cheapest at one of the prices in turn.
    fn descend(&self, mut best: Found, cap: f64, prices: [&Prices; 2]) -> Found {
        let mut left = JUDGE_WORK / (self.maps.len() + self.held.len()).max(1);
        if !best.score.fits() {
            left /= 4;
        }
        let mut still = 0;
        for pass in 0..DESCENTS {
            let before = best.score;
            let prices = prices[pass % 2];
            for level in (0..self.levels.len()).rev() {
                if self.of_level[level].len() < 2 {
                    continue;
                }
                let uses = self.uses_beside(&best.path, level);
                let costs = self.level_costs(level, prices, &uses);
                for path in self.ways(level, &costs) {
                    if left == 0 {
                        return best;
                    }
                    left -= 1;
                    let all = self.spliced(&best.path, level, &path);
                    if all != best.path {
                        better(&mut best, self.judge(&all, prices, cap));
                    }
                }
            }
            still = if best.score == before { still + 1 } else { 0 };
            if still == 2 {
                break;
            }
        }
        best
    }

    /// Whether some segment alone needs more than `cap`, whatever runs in it.
    fn is_hopeless(&self, cap: f64) -> bool {
        let mut least = vec![f64::INFINITY; self.held.len()];
        for (c, candidate) in self.candidates.iter().enumerate() {
            let credits: f64 = self.accesses[c].iter().map(|a| a.credit).sum();
            let bytes = candidate.scratch_bytes as f64 - credits;
            for b in &mut least[candidate.from..candidate.to] {
                *b = b.min(bytes);
            }
        }
        let needs = least
            .iter()
            .zip(&self.held)
            .map(|(scratch, held)| scratch + held);
        needs.fold(0.0, f64::max) > cap
    }
}

/// Replaces `best` by `found` if that is better.
fn better(best: &mut Found, found: Found) {
    if found.is_better(best) {
        let tried = std::mem::take(&mut best.tried);
        *best = found;
        best.tried.extend(tried);
    }
}
