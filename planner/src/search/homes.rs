//! Where the maps of a path live, and what the path is then worth.

use std::collections::{BTreeMap, BTreeSet};

use super::{FORBIDDEN_SECS, Found, Maker, Prices, Score, Space, Use, Uses};

impl Space<'_> {
    pub(super) fn uses(&self, path: &[usize]) -> Uses {
        self.uses_where(path, |_| true)
    }

    /// Uses of a path without the stages of one level.
    pub(super) fn uses_beside(&self, path: &[usize], level: usize) -> Uses {
        let range = self.levels[level].clone();
        self.uses_where(path, |c| !range.contains(&self.candidates[c].from))
    }

    pub(super) fn uses_where(&self, path: &[usize], counts: impl Fn(usize) -> bool) -> Uses {
        let mut uses = Uses {
            of: vec![Vec::new(); self.maps.len()],
            maker: (self.maps.iter())
                .map(|m| Maker {
                    from: m.made,
                    to: m.made + 1,
                    credit: 0.0,
                    stores: true,
                })
                .collect(),
        };
        for &c in path {
            let (from, to) = (self.candidates[c].from, self.candidates[c].to);
            for &m in &self.unstored[c] {
                uses.maker[m].stores = false;
            }
            for a in &self.accesses[c] {
                if !a.reads {
                    uses.maker[a.map] = Maker {
                        from,
                        to,
                        credit: a.credit,
                        stores: true,
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
    pub(super) fn home_secs(&self, map: usize, uses: &[Use], kept: usize) -> f64 {
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
    pub(super) fn cheapest_home(
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
        if best.1.is_finite() && maker.stores {
            best
        } else {
            // Neither home is allowed: a reader had better compute it.
            (uses.len(), FORBIDDEN_SECS)
        }
    }

    pub(super) fn priced_homes(&self, uses: &Uses, prices: &Prices) -> Vec<usize> {
        (0..self.maps.len())
            .map(|m| self.cheapest_home(m, &uses.of[m], uses.maker[m], prices).0)
            .collect()
    }

    /// Device and host bytes per segment.
    pub(super) fn loads(
        &self,
        path: &[usize],
        uses: &Uses,
        kept: &[usize],
    ) -> (Vec<f64>, Vec<f64>) {
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
    pub(super) fn load(
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
    pub(super) fn judge(&self, path: &[usize], prices: &Prices, cap: f64) -> Found {
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
    pub(super) fn found(&self, path: &[usize], uses: &Uses, kept: &[usize], cap: f64) -> Found {
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
            .filter(|&m| {
                let is_made = uses.of[m].is_empty() || uses.maker[m].stores;
                !is_made || !self.home_secs(m, &uses.of[m], kept[m]).is_finite()
            })
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
            tried: BTreeSet::new(),
        }
    }

    /// The only path of a strategy that pages: each map stays on the device
    /// until it is the one used longest ago when room is needed.
    pub(super) fn paged(&self, device_bytes: u64) -> Option<Found> {
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
    pub(super) fn relieve_host(
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
    pub(super) fn relieve_device(
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

/// Position and value of the largest entry.
fn largest(values: &[f64]) -> Option<(usize, f64)> {
    let found = values.iter().copied().enumerate();
    found.max_by(|a, b| a.1.total_cmp(&b.1).then(b.0.cmp(&a.0)))
}
