//! Cheapest paths at given prices: one level after the other, each by a
//! shortest path in which a read pays what it adds to the cost of storing its
//! map.

use super::uses::{Use, Uses};
use super::{FORBIDDEN_SECS, PASSES, Prices, Space};

impl Space<'_> {
    /// The path that is cheapest at the given prices, as far as re-planning one
    /// level after the other finds it.
    pub(super) fn cheapest(&self, prices: &Prices, start: Option<&[usize]>) -> Option<Vec<usize>> {
        self.cheapest_of(prices, start, false)
    }

    /// The same; if `frugal`, of candidates that read only maps that are dear to
    /// compute again, which leave fewer bytes to be stored.
    pub(super) fn cheapest_of(
        &self,
        prices: &Prices,
        start: Option<&[usize]>,
        frugal: bool,
    ) -> Option<Vec<usize>> {
        let mut path = self.path(start.map(<[usize]>::to_vec).unwrap_or_default());
        // When each level was planned last.
        let mut planned: Vec<Option<u64>> = vec![None; self.levels.len()];
        for _ in 0..PASSES {
            let before = path.mark();
            for level in (0..self.levels.len()).rev() {
                let is_same = |mark: u64| {
                    let mut maps = self.maps_of_level[level].iter();
                    maps.all(|&m| path.is_same(m, mark))
                };
                if planned[level].is_some_and(is_same) {
                    continue;
                }
                planned[level] = Some(path.mark());
                let mut costs = self.level_costs(level, prices, &path.uses);
                if frugal {
                    for (cost, &c) in costs.iter_mut().zip(&self.of_level[level]) {
                        if !self.is_frugal[c] {
                            *cost = f64::INFINITY;
                        }
                    }
                }
                let way = self.shortest(level, &costs)?;
                self.replace(&mut path, level, &way);
            }
            if path.mark() == before {
                break;
            }
        }
        Some(path.stages)
    }

    /// Cost of each candidate of a level, given how the rest uses maps.
    /// Of the uses given, those of the level itself do not count.
    pub(super) fn level_costs(&self, level: usize, prices: &Prices, uses: &Uses) -> Vec<f64> {
        let range = &self.levels[level];
        // Uses of each map beside the level's, and what they cost alone.
        let mut beside: Vec<Option<(Vec<Use>, f64)>> = vec![None; self.maps.len()];
        let mut list = Vec::new();
        (self.of_level[level].iter())
            .map(|&c| {
                let candidate = &self.candidates[c];
                let (from, to) = (candidate.from, candidate.to);
                let mut cost = candidate.secs * prices.channels.compute
                    + self.scratch[c] * prices.over(from, to);
                let is_read = |m: &usize| uses.of[*m].iter().any(|u| !u.is_in(range));
                if self.unstored[c].iter().any(is_read) {
                    cost += FORBIDDEN_SECS;
                }
                for a in self.accesses[c].iter().filter(|a| a.reads) {
                    let maker = uses.maker[a.map];
                    let (others, without) = beside[a.map].get_or_insert_with(|| {
                        let others = uses.of[a.map].iter().filter(|u| !u.is_in(range));
                        let others: Vec<Use> = others.copied().collect();
                        let cost = self.cheapest_home(a.map, &others, maker, prices).1;
                        (others, cost)
                    });
                    let at = others.partition_point(|u| u.at < to - 1);
                    list.clear();
                    list.extend_from_slice(&others[..at]);
                    list.push(Use::new(a, from, to));
                    list.extend_from_slice(&others[at..]);
                    cost += self.cheapest_home(a.map, &list, maker, prices).1 - *without;
                }
                cost
            })
            .collect()
    }

    /// Seconds of the stages of any path at least, whatever is stored where.
    pub fn least_secs(&self) -> f64 {
        let of_level = |level: usize| {
            let inside = self.of_level[level].iter();
            let costs: Vec<f64> = inside.map(|&c| self.candidates[c].secs).collect();
            self.distances(level, &costs).0[0]
        };
        (0..self.levels.len()).map(of_level).sum()
    }

    /// Shortest path through a level.
    pub(super) fn shortest(&self, level: usize, costs: &[f64]) -> Option<Vec<usize>> {
        let (ahead, step) = self.distances(level, costs);
        ahead[0].is_finite().then(|| self.walk(level, &step, 0))
    }

    /// Distance of each segment to the end of a level, and the first step.
    pub(super) fn distances(&self, level: usize, costs: &[f64]) -> (Vec<f64>, Vec<usize>) {
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

    pub(super) fn walk(&self, level: usize, step: &[usize], at: usize) -> Vec<usize> {
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
    pub(super) fn ways(&self, level: usize, costs: &[f64]) -> Vec<Vec<usize>> {
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
}
