//! Where the maps of a path live, and what the path is then worth.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use super::uses::{Maker, Path, Use, Uses};
use super::{FORBIDDEN_SECS, Found, Prices, Score, Space, Stay};
use crate::overlap::StageSecs;
use crate::plan::Tier;

impl Space<'_> {
    /// Seconds of copies of a map that stays so.
    pub(super) fn home_secs(&self, map: usize, uses: &[Use], stay: Stay) -> f64 {
        let m = &self.maps[map];
        let leaves = stay.kept < uses.len();
        let tier = stay.tier.ix();
        let allowed = (stay.kept == 0 || m.on_device) && (!leaves || m.on_tier[tier]);
        if !allowed {
            return f64::INFINITY;
        }
        if !leaves {
            return 0.0;
        }
        let reads = uses[stay.kept..].iter().map(|u| u.copy_secs[tier]);
        m.store_secs[tier] + reads.sum::<f64>()
    }

    /// Where a map stays where that is cheapest, and the cost.
    pub(super) fn cheapest_home(
        &self,
        map: usize,
        uses: &[Use],
        maker: Maker,
        prices: &Prices,
    ) -> (Stay, f64) {
        let all = Stay {
            kept: uses.len(),
            tier: Tier::Host,
        };
        let Some(last) = uses.last() else {
            return (all, 0.0);
        };
        let m = &self.maps[map];
        let made = maker.credit * prices.over(maker.from, maker.to);
        // From all uses that find it on the device to none: of each, its credit is lost
        // and its copy is to be paid.
        let credit = |u: &Use| u.credit * prices.over(u.from, u.at + 1);
        let mut credits: f64 = uses.iter().map(credit).sum();
        let mut reads = [0.0; Tier::COUNT];
        let mut best = (all, f64::INFINITY);
        for kept in (0..=uses.len()).rev() {
            if let Some(u) = uses.get(kept) {
                credits -= credit(u);
                for (sum, secs) in reads.iter_mut().zip(u.copy_secs) {
                    *sum += secs;
                }
            }
            let held = match kept.checked_sub(1) {
                Some(_) if !m.on_device => continue,
                Some(last) => m.bytes * prices.over(maker.from, uses[last].at + 1) - made - credits,
                None => 0.0,
            };
            if kept == uses.len() {
                if held < best.1 {
                    best = (all, held);
                }
                continue;
            }
            for &tier in self.tiers.iter().filter(|tier| m.on_tier[tier.ix()]) {
                let (store, read) = prices.channels.of(tier);
                let cost = m.store_secs[tier.ix()] * store
                    + reads[tier.ix()] * read
                    + held
                    + m.bytes * prices.beyond_over(tier, maker.from, last.at + 1);
                if cost < best.1 {
                    best = (Stay { kept, tier }, cost);
                }
            }
        }
        if best.1.is_finite() && maker.stores {
            best
        } else {
            // No home is allowed: a reader had better compute it.
            (all, FORBIDDEN_SECS)
        }
    }

    pub(super) fn priced_homes(&self, uses: &Uses, prices: &Prices) -> Vec<Stay> {
        (0..self.maps.len())
            .map(|m| self.cheapest_home(m, &uses.of[m], uses.maker[m], prices).0)
            .collect()
    }

    /// Bytes per segment.
    pub(super) fn loads(&self, path: &[usize], uses: &Uses, stays: &[Stay]) -> Loads {
        let n = self.held.len();
        let mut loads = Loads {
            device: self.held.clone(),
            beyond: [vec![0.0; n], vec![0.0; n]],
        };
        for &c in path {
            let candidate = &self.candidates[c];
            for d in &mut loads.device[candidate.from..candidate.to] {
                *d += self.scratch[c];
            }
        }
        for (m, &stay) in stays.iter().enumerate() {
            self.load(m, uses, stay, 1.0, &mut loads);
        }
        loads
    }

    /// Adds (or with `sign` −1 takes away) what one map's home holds.
    fn load(&self, map: usize, uses: &Uses, stay: Stay, sign: f64, loads: &mut Loads) {
        let (list, maker) = (&uses.of[map], uses.maker[map]);
        let bytes = self.maps[map].bytes * sign;
        let Stay { kept, tier } = stay;
        if kept > 0 {
            for d in &mut loads.device[maker.from..=list[kept - 1].at] {
                *d += bytes;
            }
            for d in &mut loads.device[maker.from..maker.to] {
                *d -= maker.credit * sign;
            }
            for u in &list[..kept] {
                for d in &mut loads.device[u.from..=u.at] {
                    *d -= u.credit * sign;
                }
            }
        }
        if kept < list.len() {
            for b in &mut loads.beyond[tier.ix()][maker.from..=list[list.len() - 1].at] {
                *b += bytes;
            }
        }
    }

    /// Moves a map.
    pub(super) fn change(
        &self,
        uses: &Uses,
        stays: &mut [Stay],
        map: usize,
        to: Stay,
        loads: &mut Loads,
    ) {
        self.load(map, uses, stays[map], -1.0, loads);
        stays[map] = to;
        self.load(map, uses, to, 1.0, loads);
    }

    /// The best homes found for the maps of a path, and what it is worth.
    pub(super) fn judge(&self, path: &[usize], prices: &Prices, cap: f64) -> Found {
        let uses = self.uses(path);
        let stays = self.homes(path, &uses, prices, cap);
        self.found(path, &uses, &stays, cap)
    }

    /// The same, if it is better than `than`.
    pub(super) fn judge_better(
        &self,
        path: &Path,
        prices: &Prices,
        cap: f64,
        than: &Score,
    ) -> Option<Found> {
        if than.fits() {
            // Copies only add to it.
            let stages = path.stages.iter().map(|&c| &self.candidates[c]);
            let least: f64 = stages.map(|c| StageSecs::new(c).secs()).sum();
            if least >= than.secs {
                return None;
            }
        }
        let stays = self.homes(&path.stages, &path.uses, prices, cap);
        let score = self.score(&path.stages, &path.uses, &stays, cap);
        (score.order(than) == Ordering::Less)
            .then(|| self.found(&path.stages, &path.uses, &stays, cap))
    }

    /// Where the maps of a path had best live, as far as this finds it.
    fn homes(&self, path: &[usize], uses: &Uses, prices: &Prices, cap: f64) -> Vec<Stay> {
        let mut stays = self.priced_homes(uses, prices);
        let mut loads = self.loads(path, uses, &stays);
        for &tier in &self.tiers {
            self.relieve_tier(tier, uses, &mut stays, &mut loads);
            self.leave_tier(tier, uses, &mut stays, &mut loads);
        }
        self.relieve_device(uses, cap, &mut stays, &mut loads);
        // Keep on the device what still fits, the most useful bytes first.
        for m in self.dearest(uses, &stays, |m| self.maps[m].on_device) {
            for kept in (stays[m].kept + 1..=uses.of[m].len()).rev() {
                let was = stays[m];
                let to = Stay { kept, ..was };
                self.change(uses, &mut stays, m, to, &mut loads);
                let span = uses.maker[m].from..=uses.of[m][kept - 1].at;
                if loads.device[span].iter().all(|d| *d <= cap) {
                    break;
                }
                self.change(uses, &mut stays, m, was, &mut loads);
            }
        }
        // And on the host what still fits there.
        let on_disk =
            |m: usize| stays[m].tier == Tier::Disk && self.maps[m].on_tier[Tier::Host.ix()];
        for m in self.dearest(uses, &stays, on_disk) {
            if self.has_room(Tier::Host, m, uses, &loads) {
                let to = Stay {
                    tier: Tier::Host,
                    ..stays[m]
                };
                self.change(uses, &mut stays, m, to, &mut loads);
            }
        }
        stays
    }

    /// Maps that leave the device and satisfy `which`, those first whose copies take
    /// most seconds per byte and segment.
    fn dearest(&self, uses: &Uses, stays: &[Stay], which: impl Fn(usize) -> bool) -> Vec<usize> {
        let mut gains: Vec<(f64, usize)> = Vec::new();
        for (m, &stay) in stays.iter().enumerate() {
            let list = &uses.of[m];
            if stay.kept < list.len() && which(m) {
                let span = (list[list.len() - 1].at + 1 - uses.maker[m].from) as f64;
                let secs = self.home_secs(m, list, stay) / (self.maps[m].bytes * span).max(1.0);
                gains.push((secs, m));
            }
        }
        gains.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        gains.into_iter().map(|(_, m)| m).collect()
    }

    /// Whether a tier that does not hold a map has room for it.
    pub(super) fn has_room(&self, tier: Tier, map: usize, uses: &Uses, loads: &Loads) -> bool {
        let Some(last) = uses.of[map].last() else {
            return true;
        };
        let room = self.tier_bytes[tier.ix()] - self.maps[map].bytes;
        let span = uses.maker[map].from..=last.at;
        loads.beyond[tier.ix()][span].iter().all(|b| *b <= room)
    }

    /// A path with the given homes, scored.
    fn found(&self, path: &[usize], uses: &Uses, stays: &[Stay], cap: f64) -> Found {
        let mut homes = BTreeMap::new();
        for (m, map) in self.maps.iter().enumerate() {
            let (list, stay) = (&uses.of[m], stays[m]);
            if !list.is_empty() {
                let until = stay.kept.checked_sub(1).map(|last| list[last].at);
                let beyond = (stay.kept < list.len()).then_some(stay.tier);
                homes.insert(map.node, (until, beyond));
            }
        }
        Found {
            path: path.to_vec(),
            homes,
            score: self.score(path, uses, stays, cap),
            is_least: false,
            tried: BTreeSet::new(),
        }
    }

    /// What a path is worth with the given homes.
    fn score(&self, path: &[usize], uses: &Uses, stays: &[Stay], cap: f64) -> Score {
        let loads = self.loads(path, uses, stays);
        let mut stages: Vec<StageSecs> = (path.iter())
            .map(|&c| StageSecs::new(&self.candidates[c]))
            .collect();
        let stage_of = |segment: usize| path.partition_point(|&c| self.candidates[c].to <= segment);
        let mut forbidden_bytes = 0.0;
        for (m, map) in self.maps.iter().enumerate() {
            let (list, stay) = (&uses.of[m], stays[m]);
            let is_made = list.is_empty() || uses.maker[m].stores;
            let is_allowed = self.home_secs(m, list, stay).is_finite();
            if !is_made || !is_allowed {
                forbidden_bytes += map.bytes;
            }
            if stay.kept < list.len() && is_allowed {
                let tier = stay.tier;
                stages[stage_of(uses.maker[m].from)].store(tier, map.store_secs[tier.ix()]);
                for u in &list[stay.kept..] {
                    stages[stage_of(u.from)].fetch(tier, u.copy_secs[tier.ix()]);
                }
            }
        }
        let over = |used: &f64| (used - cap).max(0.0) / cap.max(1.0);
        let beyond = loads.beyond.iter().zip(self.tier_bytes);
        let beyond_over = beyond
            .map(|(load, cap)| load.iter().map(|b| (b - cap).max(0.0)).sum::<f64>())
            .sum::<f64>();
        Score {
            beyond_over: beyond_over + forbidden_bytes,
            device_over: loads.device.iter().map(|d| over(d).powi(8)).sum(),
            secs: stages.iter().map(StageSecs::secs).sum(),
        }
    }

    /// The only path of a strategy that pages: each map stays on the device
    /// until it is the one used longest ago when room is needed.
    pub(super) fn paged(&self, device_bytes: u64) -> Option<Found> {
        let cap = device_bytes as f64;
        let free = self.flat(0.0);
        let path = self.cheapest(&free, None)?;
        let uses = self.uses(&path);
        // Where it can, to the host.
        let mut stays: Vec<Stay> = (self.maps.iter().zip(&uses.of))
            .map(|(map, list)| Stay {
                kept: list.len(),
                tier: if map.on_tier[Tier::Host.ix()] || !map.may_leave() {
                    Tier::Host
                } else {
                    Tier::Disk
                },
            })
            .collect();
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
                let mut used = self.held[from] + self.scratch[c];
                used += resident.iter().map(|&m| self.maps[m].bytes).sum::<f64>();
                let there = self.accesses[c]
                    .iter()
                    .filter(|a| resident.contains(&a.map));
                used -= there.map(|a| a.credit).sum::<f64>();
                let oldest = resident.iter().position(|&m| self.maps[m].may_leave());
                match oldest.filter(|_| used > cap) {
                    Some(oldest) => {
                        let m = resident.remove(oldest);
                        stays[m].kept = past(m);
                    }
                    None => break,
                }
            }
            debug_assert!(to > from);
        }
        let mut loads = self.loads(&path, &uses, &stays);
        self.relieve_tier(Tier::Host, &uses, &mut stays, &mut loads);
        Some(self.found(&path, &uses, &stays, cap))
    }
}

/// Bytes per segment: on the device, and in each tier beyond it.
pub(super) struct Loads {
    pub(super) device: Vec<f64>,
    pub(super) beyond: [Vec<f64>; Tier::COUNT],
}
