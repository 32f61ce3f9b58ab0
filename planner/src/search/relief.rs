//! Where memory is short on a path: which maps move, and where to.

use super::homes::Loads;
use super::uses::Uses;
use super::{Space, Stay};
use crate::plan::Tier;

impl Space<'_> {
    /// Moves maps from a tier to another, where more is there than allowed.
    pub(super) fn relieve_tier(
        &self,
        tier: Tier,
        uses: &Uses,
        stays: &mut [Stay],
        loads: &mut Loads,
    ) {
        let Some(&other) = self.tiers.iter().find(|t| **t != tier) else {
            return;
        };
        let cap = self.tier_bytes[tier.ix()];
        loop {
            let over = largest(&loads.beyond[tier.ix()]).filter(|(_, used)| *used > cap);
            let Some((at, used)) = over else { break };
            let movable = self.there(tier, at, uses, stays).filter(|&m| {
                self.maps[m].on_tier[other.ix()] && self.has_room(other, m, uses, loads)
            });
            // The one whose bytes cost least to have elsewhere.
            let cost = |m: usize| {
                let moved = Stay {
                    tier: other,
                    ..stays[m]
                };
                let list = &uses.of[m];
                let secs = self.home_secs(m, list, moved) - self.home_secs(m, list, stays[m]);
                secs / self.maps[m].bytes.min(used - cap).max(1.0)
            };
            let Some(m) = movable.min_by(|&a, &b| cost(a).total_cmp(&cost(b)).then(a.cmp(&b)))
            else {
                break;
            };
            let to = Stay {
                tier: other,
                ..stays[m]
            };
            self.change(uses, stays, m, to, loads);
        }
    }

    /// Moves maps from a tier to the device, where more is there than allowed.
    pub(super) fn leave_tier(
        &self,
        tier: Tier,
        uses: &Uses,
        stays: &mut [Stay],
        loads: &mut Loads,
    ) {
        let cap = self.tier_bytes[tier.ix()];
        loop {
            let over = largest(&loads.beyond[tier.ix()]).filter(|(_, used)| *used > cap);
            let Some((at, used)) = over else { break };
            let there = self.there(tier, at, uses, stays);
            // The one that is on the device for the fewest byte-segments more.
            let cost = |m: usize| {
                let list = &uses.of[m];
                let start =
                    (stays[m].kept.checked_sub(1)).map_or(uses.maker[m].from, |k| list[k].at);
                let span = (list[list.len() - 1].at + 1 - start) as f64;
                span * (self.maps[m].bytes / (used - cap)).max(1.0)
            };
            let movable = there.filter(|&m| self.maps[m].on_device);
            let Some(m) = movable.min_by(|&a, &b| cost(a).total_cmp(&cost(b)).then(a.cmp(&b)))
            else {
                break;
            };
            let to = Stay {
                kept: uses.of[m].len(),
                ..stays[m]
            };
            self.change(uses, stays, m, to, loads);
        }
    }

    /// Maps that a tier holds in a segment.
    fn there<'u>(
        &self,
        tier: Tier,
        at: usize,
        uses: &'u Uses,
        stays: &'u [Stay],
    ) -> impl Iterator<Item = usize> + 'u {
        (0..stays.len()).filter(move |&m| {
            let list = &uses.of[m];
            stays[m].tier == tier
                && stays[m].kept < list.len()
                && (uses.maker[m].from..=list[list.len() - 1].at).contains(&at)
        })
    }

    /// Moves maps beyond the device, where that holds more than `cap`.
    pub(super) fn relieve_device(
        &self,
        uses: &Uses,
        cap: f64,
        stays: &mut [Stay],
        loads: &mut Loads,
    ) {
        let mut stuck = vec![false; loads.device.len()];
        loop {
            let worst = (loads.device.iter().enumerate())
                .filter(|(k, used)| !stuck[*k] && **used > cap)
                .max_by(|a, b| a.1.total_cmp(b.1));
            let Some((at, &used)) = worst else { break };
            let need = used - cap;
            let mut best: Option<(f64, usize, Stay)> = None;
            for (m, &stay) in stays.iter().enumerate() {
                let list = &uses.of[m];
                if stay.kept == 0 || !(uses.maker[m].from..=list[stay.kept - 1].at).contains(&at) {
                    continue;
                }
                let kept = list[..stay.kept].partition_point(|u| u.at < at);
                let is_beyond_already = stay.kept < list.len();
                for &tier in &self.tiers {
                    let to = Stay { kept, tier };
                    let secs = self.home_secs(m, list, to) - self.home_secs(m, list, stay);
                    let worth = secs / self.maps[m].bytes.min(need).max(1.0);
                    if !secs.is_finite() || best.is_some_and(|b| worth >= b.0) {
                        continue;
                    }
                    // Looked at last: it takes longest.
                    let has_room = if is_beyond_already {
                        tier == stay.tier
                    } else {
                        self.maps[m].on_tier[tier.ix()] && self.has_room(tier, m, uses, loads)
                    };
                    if has_room {
                        best = Some((worth, m, to));
                    }
                }
            }
            match best {
                Some((_, m, to)) => self.change(uses, stays, m, to, loads),
                None => stuck[at] = true,
            }
        }
    }
}

/// Position and value of the largest entry.
fn largest(values: &[f64]) -> Option<(usize, f64)> {
    let found = values.iter().copied().enumerate();
    found.max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
}
