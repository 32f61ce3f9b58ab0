//! Good placements, by prices and local search.
//!
//! A *path* says which candidates run; given a path, each stored map has few
//! homes: on the device up to one of its uses, on the host from then on. So a
//! path is judged exactly and quickly ([`Space::judge`]), and the search only
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

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::ops::Range;

use crate::candidates::Candidate;
use crate::place::{Problem, fixed_bytes};
use crate::program::NodeIx;
use crate::strategy::Strategy;

/// Rounds of price changes.
const ROUNDS: usize = 36;
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
    copy_secs: f64,
    credit: f64,
}

/// A map that may be stored.
#[derive(Clone, Debug)]
struct StoredMap {
    node: NodeIx,
    bytes: f64,
    /// Segment that makes it.
    made: usize,
    d2h_secs: f64,
    is_output: bool,
    on_device: bool,
    on_host: bool,
}

/// One use of a map on a path.
#[derive(Clone, Copy, Debug)]
struct Use {
    from: usize,
    /// Last segment of the stage that reads it.
    at: usize,
    copy_secs: f64,
    credit: f64,
}

/// The stage that makes a map on a path.
#[derive(Clone, Copy, Debug, Default)]
struct Maker {
    from: usize,
    to: usize,
    credit: f64,
}

/// Everything about a problem that judging paths needs.
pub struct Space<'a> {
    candidates: &'a [Candidate],
    accesses: Vec<Vec<Access>>,
    maps: Vec<StoredMap>,
    /// Segments of each level.
    levels: Vec<Range<usize>>,
    /// Candidates of each level, by first segment.
    of_level: Vec<Vec<usize>>,
    /// Bytes held whatever is chosen, per segment.
    held: Vec<f64>,
    host_bytes: f64,
    is_paged: bool,
}

/// How good a path is: less is better, the first entry first.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Score {
    /// Bytes beyond the host cap.
    pub host_over: f64,
    /// Bytes beyond the device cap, more where more segments lack them.
    pub device_over: f64,
    /// Seconds, copies included.
    pub secs: f64,
}

impl Score {
    fn order(&self, other: &Score) -> Ordering {
        (self.host_over.total_cmp(&other.host_over))
            .then(self.device_over.total_cmp(&other.device_over))
            .then(self.secs.total_cmp(&other.secs))
    }

    /// Whether both caps hold.
    pub fn fits(&self) -> bool {
        self.host_over <= 0.0 && self.device_over <= 0.0
    }
}

/// A path with the homes of its maps.
#[derive(Clone, Debug)]
pub struct Found {
    /// Candidates in order.
    pub path: Vec<usize>,
    /// Per used map: last segment that finds it on the device, and whether a
    /// copy is on the host.
    pub homes: BTreeMap<NodeIx, (Option<usize>, bool)>,
    /// How good it is.
    pub score: Score,
    /// Whether no placement at all takes fewer seconds, whatever the caps.
    pub is_least: bool,
}

/// Seconds per byte of device and host memory, per segment.
pub struct Prices {
    device: Vec<f64>,
    host: Vec<f64>,
    /// Running sums of both.
    device_until: Vec<f64>,
    host_until: Vec<f64>,
}

impl Prices {
    /// Prices per segment.
    pub fn new(device: Vec<f64>, host: Vec<f64>) -> Prices {
        let sums = |prices: &[f64]| {
            let mut until = Vec::with_capacity(prices.len() + 1);
            let mut sum = 0.0;
            until.push(sum);
            for p in prices {
                sum += p;
                until.push(sum);
            }
            until
        };
        Prices {
            device_until: sums(&device),
            host_until: sums(&host),
            device,
            host,
        }
    }

    /// The same price everywhere on the device, none on the host.
    fn flat(n: usize, device: f64) -> Prices {
        Prices::new(vec![device; n], vec![0.0; n])
    }

    /// Price of a device byte during segments `from..to`.
    fn over(&self, from: usize, to: usize) -> f64 {
        self.device_until[to.max(from)] - self.device_until[from]
    }

    /// Price of a host byte during segments `from..to`.
    fn host_over(&self, from: usize, to: usize) -> f64 {
        self.host_until[to.max(from)] - self.host_until[from]
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
                        d2h_secs: bytes as f64 / p.machine.d2h_bytes_per_sec,
                        is_output: program.outputs.contains(&t.node),
                        on_device: p.strategy.may_keep_on_device(),
                        on_host: p.strategy.may_offload() && bytes <= p.host_bytes,
                    });
                    maps.len() - 1
                });
                Access {
                    map,
                    reads: t.reads,
                    copy_secs: if t.reads {
                        t.copy_bytes as f64 / p.machine.h2d_bytes_per_sec
                    } else {
                        0.0
                    },
                    credit: t.credit_bytes as f64,
                }
            });
            accesses.push(list.collect());
        }
        let pieces = &p.segments.pieces;
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
            maps,
            levels,
            of_level,
            held: (pieces.iter())
                .map(|s| fixed[s.level as usize] as f64)
                .collect(),
            host_bytes: p.host_bytes as f64,
            is_paged: p.strategy == Strategy::Paging,
        }
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
        let free = Prices::flat(self.held.len(), 0.0);
        let mut path = self.cheapest(&free, None)?;
        let mut best = self.judge(&path, &free, cap);
        let keeps_all = best.homes.values().all(|(_, host)| !host);
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
        let dear = Prices::flat(self.held.len(), 1e6 * scale);
        if let Some(least) = self.cheapest(&dear, None) {
            better(&mut best, self.judge(&least, &dear, cap));
        }
        let rounds = if device_bytes == 0 { 0 } else { ROUNDS };
        for first in [0.02, 1.0] {
            let mut prices = Prices::flat(self.held.len(), first * scale);
            for _ in 0..rounds {
                path = self.cheapest(&prices, Some(&path))?;
                let uses = self.uses(&path);
                let kept = self.priced_homes(&uses, &prices);
                let (device, host) = self.loads(&path, &uses, &kept);
                better(&mut best, self.judge(&path, &prices, cap));
                let next = (prices.device.iter().zip(&device))
                    .map(|(p, used)| p * (1.5 * (used / cap - 1.0)).clamp(-0.7, 0.7).exp())
                    .map(|p| p.clamp(1e-5 * scale, 1e7 * scale));
                let room = self.host_bytes.max(1.0);
                let host_next = (prices.host.iter().zip(&host)).map(|(p, used)| {
                    let floor = if *used > room { 1e-3 * scale } else { 0.0 };
                    (p * (1.5 * (used / room - 1.0)).clamp(-0.7, 0.7).exp()).max(floor)
                });
                prices = Prices::new(next.collect(), host_next.collect());
            }
        }
        let cheap = Prices::flat(self.held.len(), 0.3 * scale);
        let dear = Prices::flat(self.held.len(), 30.0 * scale);
        Some(self.descend(best, cap, [&cheap, &dear]))
    }

    /// Seconds that no placement undercuts, whatever the caps.
    pub fn least_secs(&self) -> Option<f64> {
        let free = Prices::flat(self.held.len(), 0.0);
        let path = self.cheapest(&free, None)?;
        Some(path.iter().map(|&c| self.candidates[c].secs).sum())
    }

    /// The best that is found near `path`, or near what `prices` suggest.
    pub fn refine(&self, path: &[usize], prices: &Prices, device_bytes: u64) -> Found {
        let cap = device_bytes as f64;
        let mut best = self.judge(path, prices, cap);
        for start in [None, Some(path)] {
            if let Some(priced) = self.cheapest(prices, start) {
                better(&mut best, self.judge(&priced, prices, cap));
            }
        }
        let half = prices.device.iter().map(|p| p * 0.5).collect();
        let cheap = Prices::new(half, prices.host.clone());
        self.descend(best, cap, [prices, &cheap])
    }

    /// A placement near `path` that fits, if there is one.
    pub fn near(&self, path: &[usize], device_bytes: u64) -> Option<Found> {
        let cap = device_bytes as f64;
        let found = self.judge(path, &Prices::flat(self.held.len(), 0.0), cap);
        let scale = found.score.secs.max(1e-9) / cap.max(1.0) / self.held.len() as f64;
        let cheap = Prices::flat(self.held.len(), 0.3 * scale);
        let dear = Prices::flat(self.held.len(), 30.0 * scale);
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

    /// The path that is cheapest at the given prices, as far as re-planning one
    /// level after the other finds it.
    fn cheapest(&self, prices: &Prices, start: Option<&[usize]>) -> Option<Vec<usize>> {
        let mut path: Vec<usize> = start.map(<[usize]>::to_vec).unwrap_or_default();
        for _ in 0..PASSES {
            let before = path.clone();
            for level in (0..self.levels.len()).rev() {
                let uses = self.uses_beside(&path, level);
                let costs = self.level_costs(level, prices, &uses);
                let way = self.shortest(level, &costs)?;
                path = self.spliced(&path, level, &way);
            }
            if path == before {
                break;
            }
        }
        Some(path)
    }

    /// `path` with what covers `level` replaced.
    fn spliced(&self, path: &[usize], level: usize, way: &[usize]) -> Vec<usize> {
        let range = &self.levels[level];
        let starts = |c: usize| self.candidates[c].from;
        let head = path
            .iter()
            .copied()
            .take_while(|&c| starts(c) < range.start);
        let tail = path.iter().copied().skip_while(|&c| starts(c) < range.end);
        head.chain(way.iter().copied()).chain(tail).collect()
    }

    /// Cost of each candidate of a level, given how the rest uses maps.
    fn level_costs(&self, level: usize, prices: &Prices, uses: &Uses) -> Vec<f64> {
        let mut alone: BTreeMap<usize, f64> = BTreeMap::new();
        let mut list = Vec::new();
        (self.of_level[level].iter())
            .map(|&c| {
                let candidate = &self.candidates[c];
                let (from, to) = (candidate.from, candidate.to);
                let mut cost =
                    candidate.secs + candidate.scratch_bytes as f64 * prices.over(from, to);
                for a in self.accesses[c].iter().filter(|a| a.reads) {
                    let others = &uses.of[a.map];
                    let maker = uses.maker[a.map];
                    let without = *alone
                        .entry(a.map)
                        .or_insert_with(|| self.cheapest_home(a.map, others, maker, prices).1);
                    list.clear();
                    list.extend(others.iter().copied().filter(|u| u.at < to - 1));
                    list.push(Use {
                        from,
                        at: to - 1,
                        copy_secs: a.copy_secs,
                        credit: a.credit,
                    });
                    list.extend(others.iter().copied().filter(|u| u.at >= to - 1));
                    cost += self.cheapest_home(a.map, &list, maker, prices).1 - without;
                }
                cost
            })
            .collect()
    }

    /// Shortest path through a level.
    fn shortest(&self, level: usize, costs: &[f64]) -> Option<Vec<usize>> {
        let (ahead, step) = self.distances(level, costs);
        ahead[0].is_finite().then(|| self.walk(level, &step, 0))
    }

    /// Distance of each segment to the end of a level, and the first step.
    fn distances(&self, level: usize, costs: &[f64]) -> (Vec<f64>, Vec<usize>) {
        let range = &self.levels[level];
        let mut ahead = vec![f64::INFINITY; range.len() + 1];
        let mut step = vec![usize::MAX; range.len()];
        ahead[range.len()] = 0.0;
        for (i, &c) in self.of_level[level].iter().enumerate().rev() {
            let (from, to) = (self.candidates[c].from, self.candidates[c].to);
            let cost = costs[i] + ahead[to - range.start];
            if cost < ahead[from - range.start] {
                ahead[from - range.start] = cost;
                step[from - range.start] = c;
            }
        }
        (ahead, step)
    }

    fn walk(&self, level: usize, step: &[usize], at: usize) -> Vec<usize> {
        let range = &self.levels[level];
        let mut at = at;
        let mut way = Vec::new();
        while at < range.len() {
            let c = step[at];
            way.push(c);
            at = self.candidates[c].to - range.start;
        }
        way
    }

    /// For each candidate of a level the cheapest way through it.
    fn ways(&self, level: usize, costs: &[f64]) -> Vec<Vec<usize>> {
        let range = &self.levels[level];
        let (ahead, step) = self.distances(level, costs);
        // Best way from the start to each segment.
        let mut so_far = vec![f64::INFINITY; range.len() + 1];
        let mut last = vec![usize::MAX; range.len() + 1];
        so_far[0] = 0.0;
        for (i, &c) in self.of_level[level].iter().enumerate() {
            let (from, to) = (self.candidates[c].from, self.candidates[c].to);
            let cost = so_far[from - range.start] + costs[i];
            if cost < so_far[to - range.start] {
                so_far[to - range.start] = cost;
                last[to - range.start] = c;
            }
        }
        let mut ways: Vec<(f64, Vec<usize>)> = Vec::new();
        for (i, &c) in self.of_level[level].iter().enumerate() {
            let (from, to) = (self.candidates[c].from, self.candidates[c].to);
            let (head, tail) = (so_far[from - range.start], ahead[to - range.start]);
            if !head.is_finite() || !tail.is_finite() {
                continue;
            }
            let mut way = Vec::new();
            let mut at = from - range.start;
            while at > 0 {
                way.push(last[at]);
                at = self.candidates[last[at]].from - range.start;
            }
            way.reverse();
            way.push(c);
            way.extend(self.walk(level, &step, to - range.start));
            ways.push((head + costs[i] + tail, way));
        }
        ways.sort_by(|a, b| a.0.total_cmp(&b.0).then_with(|| a.1.cmp(&b.1)));
        ways.dedup_by(|a, b| a.1 == b.1);
        ways.into_iter().map(|w| w.1).collect()
    }

    fn uses(&self, path: &[usize]) -> Uses {
        self.uses_where(path, |_| true)
    }

    /// Uses of a path without the stages of one level.
    fn uses_beside(&self, path: &[usize], level: usize) -> Uses {
        let range = self.levels[level].clone();
        self.uses_where(path, |c| !range.contains(&self.candidates[c].from))
    }

    fn uses_where(&self, path: &[usize], counts: impl Fn(usize) -> bool) -> Uses {
        let mut uses = Uses {
            of: vec![Vec::new(); self.maps.len()],
            maker: (self.maps.iter())
                .map(|m| Maker {
                    from: m.made,
                    to: m.made + 1,
                    credit: 0.0,
                })
                .collect(),
        };
        for &c in path {
            let (from, to) = (self.candidates[c].from, self.candidates[c].to);
            for a in &self.accesses[c] {
                if !a.reads {
                    uses.maker[a.map] = Maker {
                        from,
                        to,
                        credit: a.credit,
                    };
                } else if counts(c) {
                    uses.of[a.map].push(Use {
                        from,
                        at: to - 1,
                        copy_secs: a.copy_secs,
                        credit: a.credit,
                    });
                }
            }
        }
        let end = self.held.len().saturating_sub(1);
        for (m, map) in self.maps.iter().enumerate() {
            if map.is_output {
                uses.of[m].push(Use {
                    from: end,
                    at: end,
                    copy_secs: 0.0,
                    credit: 0.0,
                });
            }
        }
        uses
    }

    /// Seconds of copies if the first `kept` uses find a map on the device.
    fn home_secs(&self, map: usize, uses: &[Use], kept: usize) -> f64 {
        let m = &self.maps[map];
        let allowed = (kept == 0 || m.on_device) && (kept == uses.len() || m.on_host);
        if !allowed {
            return f64::INFINITY;
        }
        if kept == uses.len() {
            return 0.0;
        }
        m.d2h_secs + uses[kept..].iter().map(|u| u.copy_secs).sum::<f64>()
    }

    /// How many uses find a map on the device where that is cheapest, and the
    /// cost.
    fn cheapest_home(
        &self,
        map: usize,
        uses: &[Use],
        maker: Maker,
        prices: &Prices,
    ) -> (usize, f64) {
        if uses.is_empty() {
            return (0, 0.0);
        }
        let bytes = self.maps[map].bytes;
        let mut best = (uses.len(), f64::INFINITY);
        for kept in (0..=uses.len()).rev() {
            let mut cost = self.home_secs(map, uses, kept);
            if kept > 0 {
                cost += bytes * prices.over(maker.from, uses[kept - 1].at + 1)
                    - maker.credit * prices.over(maker.from, maker.to);
                for u in &uses[..kept] {
                    cost -= u.credit * prices.over(u.from, u.at + 1);
                }
            }
            if kept < uses.len() {
                cost += bytes * prices.host_over(maker.from, uses[uses.len() - 1].at + 1);
            }
            if cost < best.1 {
                best = (kept, cost);
            }
        }
        if best.1.is_finite() {
            best
        } else {
            // Neither home is allowed: a reader had better compute it.
            (uses.len(), 1e15)
        }
    }

    fn priced_homes(&self, uses: &Uses, prices: &Prices) -> Vec<usize> {
        (0..self.maps.len())
            .map(|m| self.cheapest_home(m, &uses.of[m], uses.maker[m], prices).0)
            .collect()
    }

    /// Device and host bytes per segment.
    fn loads(&self, path: &[usize], uses: &Uses, kept: &[usize]) -> (Vec<f64>, Vec<f64>) {
        let mut device = self.held.clone();
        let mut host = vec![0.0; device.len()];
        for &c in path {
            let candidate = &self.candidates[c];
            for d in &mut device[candidate.from..candidate.to] {
                *d += candidate.scratch_bytes as f64;
            }
        }
        for (m, &kept) in kept.iter().enumerate() {
            self.load(m, uses, kept, 1.0, &mut device, &mut host);
        }
        (device, host)
    }

    /// Adds (or with `sign` −1 takes away) what one map's home holds.
    fn load(
        &self,
        map: usize,
        uses: &Uses,
        kept: usize,
        sign: f64,
        device: &mut [f64],
        host: &mut [f64],
    ) {
        let (list, maker) = (&uses.of[map], uses.maker[map]);
        let bytes = self.maps[map].bytes * sign;
        if kept > 0 {
            for d in &mut device[maker.from..=list[kept - 1].at] {
                *d += bytes;
            }
            for d in &mut device[maker.from..maker.to] {
                *d -= maker.credit * sign;
            }
            for u in &list[..kept] {
                for d in &mut device[u.from..=u.at] {
                    *d -= u.credit * sign;
                }
            }
        }
        if kept < list.len() {
            for h in &mut host[maker.from..=list[list.len() - 1].at] {
                *h += bytes;
            }
        }
    }

    /// The best homes found for the maps of a path, and what it is worth.
    fn judge(&self, path: &[usize], prices: &Prices, cap: f64) -> Found {
        let uses = self.uses(path);
        let mut kept = self.priced_homes(&uses, prices);
        let (mut device, mut host) = self.loads(path, &uses, &kept);
        let mut change = |kept: &mut [usize], m: usize, to: usize, d: &mut [f64], h: &mut [f64]| {
            self.load(m, &uses, kept[m], -1.0, d, h);
            kept[m] = to;
            self.load(m, &uses, to, 1.0, d, h);
        };
        self.relieve_host(&uses, &mut kept, &mut device, &mut host, &mut change);
        self.relieve_device(&uses, cap, &mut kept, &mut device, &mut host, &mut change);
        // Keep on the device what still fits, the most useful bytes first.
        let mut gains: Vec<(f64, usize)> = Vec::new();
        for (m, &k) in kept.iter().enumerate() {
            let list = &uses.of[m];
            if k < list.len() && self.maps[m].on_device {
                let span = (list[list.len() - 1].at + 1 - uses.maker[m].from) as f64;
                let secs = self.home_secs(m, list, k) / (self.maps[m].bytes * span).max(1.0);
                gains.push((secs, m));
            }
        }
        gains.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        for (_, m) in gains {
            for to in (kept[m] + 1..=uses.of[m].len()).rev() {
                let was = kept[m];
                change(&mut kept, m, to, &mut device, &mut host);
                let span = uses.maker[m].from..=uses.of[m][to - 1].at;
                if device[span].iter().all(|d| *d <= cap) {
                    break;
                }
                change(&mut kept, m, was, &mut device, &mut host);
            }
        }
        self.found(path, &uses, &kept, cap)
    }

    /// A path with the given homes, scored.
    fn found(&self, path: &[usize], uses: &Uses, kept: &[usize], cap: f64) -> Found {
        let (device, host) = self.loads(path, uses, kept);
        let mut secs: f64 = path.iter().map(|&c| self.candidates[c].secs).sum();
        let mut homes = BTreeMap::new();
        for (m, map) in self.maps.iter().enumerate() {
            let list = &uses.of[m];
            if list.is_empty() {
                continue;
            }
            let copies = self.home_secs(m, list, kept[m]);
            secs += if copies.is_finite() { copies } else { 0.0 };
            let until = kept[m].checked_sub(1).map(|last| list[last].at);
            homes.insert(map.node, (until, kept[m] < list.len()));
        }
        let over = |used: &f64| (used - cap).max(0.0) / cap.max(1.0);
        let device_over: f64 = device.iter().map(|d| over(d).powi(8)).sum();
        let forbidden = (0..self.maps.len())
            .filter(|&m| !self.home_secs(m, &uses.of[m], kept[m]).is_finite())
            .map(|m| self.maps[m].bytes);
        let host_over = host
            .iter()
            .map(|h| (h - self.host_bytes).max(0.0))
            .sum::<f64>()
            + forbidden.sum::<f64>();
        Found {
            path: path.to_vec(),
            homes,
            score: Score {
                host_over,
                device_over,
                secs,
            },
            is_least: false,
        }
    }

    /// The only path of a strategy that pages: each map stays on the device
    /// until it is the one used longest ago when room is needed.
    fn paged(&self, device_bytes: u64) -> Option<Found> {
        let cap = device_bytes as f64;
        let free = Prices::flat(self.held.len(), 0.0);
        let path = self.cheapest(&free, None)?;
        let uses = self.uses(&path);
        let mut kept: Vec<usize> = uses.of.iter().map(Vec::len).collect();
        // Maps on the device, the one used longest ago first.
        let mut resident: Vec<usize> = Vec::new();
        for &c in &path {
            let (from, to) = (self.candidates[c].from, self.candidates[c].to);
            let touched = |m: usize| self.accesses[c].iter().any(|a| a.map == m);
            let past = |m: usize| uses.of[m].partition_point(|u| u.at < from);
            resident.retain(|&m| past(m) < uses.of[m].len());
            resident.sort_by_key(|&m| touched(m));
            for a in &self.accesses[c] {
                let is_new = !a.reads && !uses.of[a.map].is_empty();
                if is_new && self.maps[a.map].on_device {
                    resident.push(a.map);
                }
            }
            loop {
                let mut used = self.held[from] + self.candidates[c].scratch_bytes as f64;
                used += resident.iter().map(|&m| self.maps[m].bytes).sum::<f64>();
                let there = self.accesses[c]
                    .iter()
                    .filter(|a| resident.contains(&a.map));
                used -= there.map(|a| a.credit).sum::<f64>();
                let oldest = resident.iter().position(|&m| self.maps[m].on_host);
                match oldest.filter(|_| used > cap) {
                    Some(oldest) => {
                        let m = resident.remove(oldest);
                        kept[m] = past(m);
                    }
                    None => break,
                }
            }
            debug_assert!(to > from);
        }
        Some(self.found(&path, &uses, &kept, cap))
    }

    /// Moves maps off the host, where more is there than allowed.
    fn relieve_host(
        &self,
        uses: &Uses,
        kept: &mut [usize],
        device: &mut [f64],
        host: &mut [f64],
        change: &mut impl FnMut(&mut [usize], usize, usize, &mut [f64], &mut [f64]),
    ) {
        while let Some((at, used)) = largest(host).filter(|(_, used)| *used > self.host_bytes) {
            let need = used - self.host_bytes;
            let there = (0..self.maps.len()).filter(|&m| {
                let list = &uses.of[m];
                kept[m] < list.len()
                    && self.maps[m].on_device
                    && (uses.maker[m].from..=list[list.len() - 1].at).contains(&at)
            });
            // The one that is on the device for the fewest byte-segments more.
            let cost = |m: usize| {
                let list = &uses.of[m];
                let start = kept[m]
                    .checked_sub(1)
                    .map_or(uses.maker[m].from, |k| list[k].at);
                let span = (list[list.len() - 1].at + 1 - start) as f64;
                span * (self.maps[m].bytes / need).max(1.0)
            };
            let Some(m) = there.min_by(|&a, &b| cost(a).total_cmp(&cost(b)).then(a.cmp(&b))) else {
                break;
            };
            change(kept, m, uses.of[m].len(), device, host);
        }
    }

    /// Moves maps to the host, where the device holds more than `cap`.
    fn relieve_device(
        &self,
        uses: &Uses,
        cap: f64,
        kept: &mut [usize],
        device: &mut [f64],
        host: &mut [f64],
        change: &mut impl FnMut(&mut [usize], usize, usize, &mut [f64], &mut [f64]),
    ) {
        let mut stuck = vec![false; device.len()];
        loop {
            let worst = (device.iter().enumerate())
                .filter(|(k, used)| !stuck[*k] && **used > cap)
                .max_by(|a, b| a.1.total_cmp(b.1));
            let Some((at, &used)) = worst else { break };
            let need = used - cap;
            let mut best: Option<(f64, usize, usize)> = None;
            for (m, &k) in kept.iter().enumerate() {
                let list = &uses.of[m];
                if k == 0 || !self.maps[m].on_host {
                    continue;
                }
                if !(uses.maker[m].from..=list[k - 1].at).contains(&at) {
                    continue;
                }
                let to = list[..k].partition_point(|u| u.at < at);
                let on_host_already = k < list.len();
                let span = uses.maker[m].from..=list[list.len() - 1].at;
                let room = on_host_already
                    || (host[span].iter()).all(|h| h + self.maps[m].bytes <= self.host_bytes);
                if !room {
                    continue;
                }
                let secs = self.home_secs(m, list, to) - self.home_secs(m, list, k);
                let worth = secs / self.maps[m].bytes.min(need).max(1.0);
                if secs.is_finite() && best.is_none_or(|b| worth < b.0) {
                    best = Some((worth, m, to));
                }
            }
            match best {
                Some((_, m, to)) => change(kept, m, to, device, host),
                None => stuck[at] = true,
            }
        }
    }
}

/// Replaces `best` by `found` if that is better.
fn better(best: &mut Found, found: Found) {
    if found.score.order(&best.score) == Ordering::Less {
        *best = found;
    }
}

/// Position and value of the largest entry.
fn largest(values: &[f64]) -> Option<(usize, f64)> {
    let found = values.iter().copied().enumerate();
    found.max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
}
