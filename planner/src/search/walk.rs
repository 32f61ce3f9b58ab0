//! Through paths: by prices that follow what memory is used, then by trying every
//! candidate of every level.

use std::collections::BTreeSet;

use super::{ChannelPrices, Found, Prices, Space};
use crate::plan::Tier;

/// Factors on the relaxation's prices.
const DEARER: [f64; 5] = [1.0, 1.1, 1.3, 1.7, 3.0];
/// Factors on prices where nothing fits.
const DEAR: [f64; 4] = [0.1, 1.0, 10.0, 100.0];
/// Rounds of price changes.
const ROUNDS: usize = 36;
/// The same from what the relaxation says memory is worth.
const NEAR_ROUNDS: usize = 12;
/// How strongly prices follow what is used of the memory there is.
const BOLD: f64 = 1.5;
/// The same near the prices of the relaxation.
const MILD: f64 = 0.5;
/// By how much less they follow in the end, so that they settle.
const CALM: f64 = 0.5;
/// Passes of the descent over all levels.
const DESCENTS: usize = 6;
/// Paths that a descent may judge, times the maps and segments of each.
const JUDGE_WORK: usize = 4_000_000;

impl Space<'_> {
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
    pub(super) fn flat(&self, device: f64) -> Prices {
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
        let factor = |used: f64, round: usize| {
            let boldness = boldness * (1.0 - CALM * round as f64 / rounds as f64);
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
                .map(|(p, used)| p * factor(used / cap, round))
                .map(|p| p.clamp(1e-5 * scale, 1e7 * scale));
            let beyond_next = Tier::ALL.map(|tier| {
                let room = self.tier_bytes[tier.ix()].max(1.0);
                let now = (prices.beyond[tier.ix()].iter()).zip(&loads.beyond[tier.ix()]);
                let next = now.map(|(p, used)| {
                    let floor = if *used > room { 1e-3 * scale } else { 0.0 };
                    (p * factor(used / room, round)).max(floor)
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
        let secs = found.score.secs.max(1e-9) / self.held.len() as f64;
        let scale = secs / device_bytes.max(1) as f64;
        let mut add = |prices: &Prices, start: Option<&[usize]>, frugal: bool| {
            let path = self.cheapest_of(prices, start, frugal);
            starters.extend(path.into_iter().flatten());
        };
        for dear in [0.0, 0.02, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0] {
            add(&self.flat(dear * scale), Some(&found.path), false);
        }
        if !found.score.fits() {
            // What is short of everything: maps are stored nowhere for nothing.
            for dear in DEAR {
                for beyond in DEAR {
                    let mut prices = self.flat(dear * scale);
                    let each = self.tier_bytes.map(|cap| secs / cap.max(1.0) * beyond);
                    prices.set_beyond(each);
                    for frugal in [false, true] {
                        add(&prices, None, frugal);
                    }
                }
            }
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
                let mut prices = prices.clone();
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
        let mut path = self.path(best.path.clone());
        for pass in 0..DESCENTS {
            let before = best.score;
            let prices = prices[pass % 2];
            for level in (0..self.levels.len()).rev() {
                if self.of_level[level].len() < 2 {
                    continue;
                }
                let costs = self.level_costs(level, prices, &path.uses);
                for way in self.ways(level, &costs) {
                    if left == 0 {
                        return best;
                    }
                    left -= 1;
                    let old = self.replace(&mut path, level, &way);
                    if old == way {
                        continue;
                    }
                    match self.judge_better(&path, prices, cap, &best.score) {
                        Some(found) => better(&mut best, found),
                        None => {
                            self.replace(&mut path, level, &old);
                        }
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
            let bytes = self.scratch[c] - credits;
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
