//! Candidates as columns: adding them, and pricing those that are not there.
//!
//! A candidate has a column `x` and, for every stored map that it may find on
//! the device or not, a column `r`; where it may read the map from disk, a column
//! `q`; `r + q ≤ x`. Its *reduced cost* at given duals is that of `x` plus, for
//! every map, that of the one of `r` and `q` that is worth setting; a path's is the sum
//! over its candidates, and no placement costs less than the relaxation's value
//! plus the cheapest path's.

use std::collections::BTreeMap;

use crate::candidates::Touch;
use crate::plan::Tier;
use crate::solve::{Relaxed, Row};

use super::rows::{Master, Use};

/// A candidate's columns, in the program or not.
pub(super) struct Columns {
    cost: f64,
    pub(super) terms: Vec<(Row, f64)>,
    /// For each map, where else than on the host it may be found.
    finds: Vec<Vec<Find>>,
}

/// What finding a map elsewhere changes: cost and terms.
type Find = (f64, Vec<(Row, f64)>);

impl Master<'_> {
    /// Columns that are 0 or 1: of candidates, and of homes until a use.
    pub fn n_binaries(&self) -> usize {
        let homes = |u: &Use| 1 + u.beyond.iter().flatten().count();
        let uses = self.maps.values().flat_map(|m| &m.uses);
        self.runs.iter().flatten().count() + uses.map(homes).sum::<usize>()
    }

    /// Whether a candidate has a column.
    pub fn has(&self, c: usize) -> bool {
        self.runs[c].is_some()
    }

    /// Adds a candidate's columns.
    pub fn add(&mut self, c: usize) {
        if self.has(c) {
            return;
        }
        let columns = &self.columns[c];
        // The flow keeps it at most 1: with a bound of its own its reduced cost
        // would not tell what a path saves.
        let x = self.model.real(0.0, f64::INFINITY, columns.cost);
        for &(row, factor) in &columns.terms {
            self.model.extend(row, x, factor);
        }
        for finds in &columns.finds {
            let mut at_most_one = vec![(x, 1.0)];
            for (cost, terms) in finds {
                let r = self.model.real(0.0, f64::INFINITY, *cost);
                for &(row, factor) in terms {
                    self.model.extend(row, r, factor);
                }
                at_most_one.push((r, -1.0));
            }
            self.model.at_least(at_most_one, 0.0);
        }
        self.runs[c] = Some(x);
    }

    /// Takes candidates to need so many bytes of scratch; those that need more than
    /// before get new columns. Rows of cuts stay as they are: with less scratch more fits.
    pub fn charge(&mut self, scratch: &[f64]) {
        for (c, &bytes) in scratch.iter().enumerate() {
            if bytes <= self.scratch[c] {
                continue;
            }
            let more = (bytes - self.scratch[c]) / self.unit;
            self.scratch[c] = bytes;
            self.fits[c] = self.may_fit(c);
            let candidate = &self.p.candidates[c];
            let rows = &self.device[candidate.from..candidate.to];
            let terms = rows.iter().map(|&row| (row, more));
            self.columns[c].terms = merged(self.columns[c].terms.iter().copied().chain(terms));
            if let Some(old) = self.runs[c].take() {
                self.model.restrict(old, 0.0, 0.0);
                self.add(c);
            }
        }
    }

    /// Seconds of reading a map from a tier, in units of the objective.
    fn read_cost(&self, tier: Tier, t: &Touch) -> f64 {
        if t.reads {
            self.p.machine.fetch_secs(tier, t.copy_bytes) / self.tick
        } else {
            0.0
        }
    }

    /// What a candidate's columns are, once all rows are there.
    pub(super) fn columns_of(&self, c: usize) -> Columns {
        let scratch = self.scratch[c];
        let c = &self.p.candidates[c];
        let reads = c.touches.iter().map(|t| self.read_cost(Tier::Host, t));
        let secs = c.secs / self.tick;
        // What is read from the host, unless it is found on the device.
        let mut host_secs = reads.sum::<f64>();
        let mut terms = vec![(self.flow[c.from], 1.0)];
        // Where copies run beside kernels, seconds count in the rows of their channels.
        let beside = |host_secs: f64| match self.channels {
            None => (host_secs, None),
            Some([_, h2d, _]) => (0.0, Some((h2d, host_secs))),
        };
        if let Some(&next) = self.flow.get(c.to) {
            terms.push((next, -1.0));
        }
        // What `x` holds in each of its segments, and what a map on the device
        // changes there.
        let mut held = vec![scratch / self.unit; c.to - c.from];
        let mut finds = Vec::new();
        for t in &c.touches {
            let Some(map) = self.maps.get(&t.node) else {
                continue;
            };
            if !t.reads {
                terms.extend(map.stored.iter().map(|&row| (row, -1.0)));
            }
            let uses = map.used_in(c.from, c.to);
            let supply = |factor: f64| uses.iter().map(move |u| (u.supply, factor));
            let residency = uses.iter().map(|u| (u.residency, 1.0));
            let host_cost = self.read_cost(Tier::Host, t);
            let spilled: Option<Vec<(Row, f64)>> = (uses.iter())
                .map(|u| u.spilled.map(|row| (row, 1.0)))
                .collect();
            let from_disk = spilled.filter(|_| t.reads).map(|mut q| {
                q.extend(supply(-1.0));
                let (cost, h2d) = beside(-host_cost);
                q.extend(h2d);
                (self.read_cost(Tier::Disk, t) + cost, q)
            });
            if !map.on_device {
                if t.reads {
                    terms.extend(supply(1.0));
                }
                finds.extend(from_disk.map(|q| vec![q]));
                continue;
            }
            let mut found = vec![-(t.credit_bytes as f64) / self.unit; c.to - c.from];
            if !t.reads {
                // It is there from the start of its stage.
                for f in &mut found[..map.made.max(c.from) - c.from] {
                    *f += map.bytes / self.unit;
                }
            }
            if t.reads && !map.may_leave {
                // It can only be found there.
                host_secs -= host_cost;
                terms.extend(residency);
                for (h, f) in held.iter_mut().zip(found) {
                    *h += f;
                }
                continue;
            }
            let mut r: Vec<(Row, f64)> = residency.collect();
            if t.reads {
                terms.extend(supply(1.0));
                r.extend(supply(-1.0));
            }
            let rows = self.device[c.from..c.to].iter().copied().zip(found);
            r.extend(rows.filter(|(_, f)| *f != 0.0));
            let (saved, h2d) = beside(-host_cost);
            r.extend(h2d);
            finds.push([(saved, r)].into_iter().chain(from_disk).collect());
        }
        let rows = self.device[c.from..c.to].iter().copied().zip(held);
        terms.extend(rows.filter(|(_, h)| *h != 0.0));
        let (mut cost, h2d) = beside(host_secs);
        terms.extend(h2d);
        match self.channels {
            None => cost += secs,
            Some([compute, _, _]) => terms.push((compute, secs)),
        }
        Columns { cost, terms, finds }
    }

    /// Reduced cost of a candidate in units of the objective.
    fn reduced(&self, c: usize, relaxed: &Relaxed) -> f64 {
        let columns = &self.columns[c];
        let priced = |cost: f64, terms: &[(Row, f64)]| {
            cost - terms
                .iter()
                .map(|&(row, factor)| relaxed.dual(row) * factor)
                .sum::<f64>()
        };
        let finds = columns.finds.iter().map(|finds| {
            let each = finds.iter().map(|(cost, t)| priced(*cost, t));
            each.fold(0.0, f64::min)
        });
        priced(columns.cost, &columns.terms) + finds.sum::<f64>()
    }

    /// Per candidate the reduced cost of the cheapest path through it.
    pub fn detours(&self, relaxed: &Relaxed) -> Vec<f64> {
        let costs: Vec<f64> = (0..self.p.candidates.len())
            .map(|c| {
                if self.may_run[c] {
                    self.reduced(c, relaxed)
                } else {
                    f64::INFINITY
                }
            })
            .collect();
        let (ahead, _) = self.ahead(&costs);
        let mut behind = vec![f64::INFINITY; ahead.len()];
        behind[0] = 0.0;
        // Candidates lie in the order of their first segment.
        for (c, cost) in self.p.candidates.iter().zip(&costs) {
            behind[c.to] = behind[c.to].min(behind[c.from] + cost);
        }
        (self.p.candidates.iter().zip(&costs))
            .map(|(c, cost)| behind[c.from] + cost + ahead[c.to])
            .collect()
    }

    /// The cheapest path at given costs of candidates.
    pub fn shortest(&self, costs: &[f64]) -> Vec<usize> {
        let (_, step) = self.ahead(costs);
        let mut path = Vec::new();
        let mut at = 0;
        while let Some(&Some(c)) = step.get(at) {
            path.push(c);
            at = self.p.candidates[c].to;
        }
        path
    }

    /// Cost from each segment to the end, and the first candidate of that way.
    fn ahead(&self, costs: &[f64]) -> (Vec<f64>, Vec<Option<usize>>) {
        let n = self.p.segments.pieces.len();
        let mut ahead = vec![f64::INFINITY; n + 1];
        let mut step = vec![None; n];
        ahead[n] = 0.0;
        for (at, c) in self.p.candidates.iter().enumerate().rev() {
            let cost = costs[at] + ahead[c.to];
            if cost < ahead[c.from] {
                ahead[c.from] = cost;
                step[c.from] = Some(at);
            }
        }
        (ahead, step)
    }
}

/// One term per row.
fn merged(terms: impl Iterator<Item = (Row, f64)>) -> Vec<(Row, f64)> {
    let mut sums: BTreeMap<Row, f64> = BTreeMap::new();
    for (row, factor) in terms {
        *sums.entry(row).or_default() += factor;
    }
    sums.into_iter().collect()
}
