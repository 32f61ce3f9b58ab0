//! Candidates as columns: adding them, and pricing those that are not there.
//!
//! A candidate has a column `x` and, for every stored map that it may find on
//! the device or not, a column `r ≤ x`. Its *reduced cost* at given duals is
//! that of `x` plus that of every `r` that is worth setting; a path's is the sum
//! over its candidates, and no placement costs less than the relaxation's value
//! plus the cheapest path's.

use crate::candidates::Touch;
use crate::solve::{Relaxed, Row};

use super::rows::Master;

/// A candidate's columns, in the program or not.
pub(super) struct Columns {
    cost: f64,
    terms: Vec<(Row, f64)>,
    /// One for each map that may be found on the device: cost and terms.
    finds: Vec<(f64, Vec<(Row, f64)>)>,
}

impl Master<'_> {
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
        for (cost, terms) in &columns.finds {
            let r = self.model.real(0.0, f64::INFINITY, *cost);
            for &(row, factor) in terms {
                self.model.extend(row, r, factor);
            }
            self.model.at_least(vec![(x, 1.0), (r, -1.0)], 0.0);
        }
        self.runs[c] = Some(x);
    }

    /// Seconds of reading a map from the host, in units of the objective.
    fn h2d(&self, t: &Touch) -> f64 {
        if t.reads {
            t.copy_bytes as f64 / self.p.machine.h2d_bytes_per_sec / self.tick
        } else {
            0.0
        }
    }

    /// What a candidate's columns are, once all rows are there.
    pub(super) fn columns_of(&self, c: usize) -> Columns {
        let c = &self.p.candidates[c];
        let mut cost = c.secs / self.tick + c.touches.iter().map(|t| self.h2d(t)).sum::<f64>();
        let mut terms = vec![(self.flow[c.from], 1.0)];
        if let Some(&next) = self.flow.get(c.to) {
            terms.push((next, -1.0));
        }
        // What `x` holds in each of its segments, and what a map on the device
        // changes there.
        let mut held = vec![c.scratch_bytes as f64 / self.unit; c.to - c.from];
        let mut finds = Vec::new();
        for t in &c.touches {
            let Some(map) = self.maps.get(&t.node) else {
                continue;
            };
            if let (false, Some(stored)) = (t.reads, map.stored) {
                terms.extend(stored.map(|row| (row, -1.0)));
            }
            let uses = map.used_in(c.from, c.to);
            let supply = |factor: f64| uses.iter().map(move |u| (u.supply, factor));
            let residency = uses.iter().map(|u| (u.residency, 1.0));
            if !map.on_device {
                if t.reads {
                    terms.extend(supply(1.0));
                }
                continue;
            }
            let mut found = vec![-(t.credit_bytes as f64) / self.unit; c.to - c.from];
            if !t.reads {
                // It is there from the start of its stage.
                for f in &mut found[..map.made.max(c.from) - c.from] {
                    *f += map.bytes / self.unit;
                }
            }
            if t.reads && !map.on_host {
                // It can only be found there.
                cost -= self.h2d(t);
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
            finds.push((-self.h2d(t), r));
        }
        let rows = self.device[c.from..c.to].iter().copied().zip(held);
        terms.extend(rows.filter(|(_, h)| *h != 0.0));
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
        let finds = columns
            .finds
            .iter()
            .map(|(cost, t)| priced(*cost, t).min(0.0));
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
