//! Rows that every placement satisfies and a mixture breaks.
//!
//! Short of memory, the relaxation runs a segment partly with much scratch and partly
//! with little, and keeps on average as many maps beside it as fit on average. But
//! exactly one candidate covers a segment, and beside it only whole maps are kept. So
//! for any weights `w` of maps that may be kept there,
//!
//! `Σ w[t]·D[t] ≤ Σ K[c]·x[c]` over the candidates `c` that cover the segment,
//!
//! where `K[c]` is the most weight that fits beside `c` alone: a disjunction over the
//! candidates, each side of it a knapsack. With `w` the bytes and `K` what is left this is
//! the row of memory; here `w` counts maps, or bytes in whole units of one map. On a tier
//! beyond the device no candidate takes room, and `Σ w[t]·H[t] ≤ K`.

use crate::plan::Tier;
use crate::program::NodeIx;
use crate::solve::{Relaxed, Row, Var};

use super::rows::{MapRows, Master};

/// Rows added at once.
const ROUND_CUTS: usize = 300;
/// By how much a row has to be broken, in units of its smallest weight.
const BROKEN: f64 = 0.02;
/// Less of a column than this is none.
const NONE: f64 = 1e-7;

/// A map that the relaxation keeps somewhere in a segment, at least in part.
#[derive(Clone, Copy)]
struct Kept {
    map: NodeIx,
    bytes: f64,
    home: Var,
    share: f64,
}

/// A row that was added.
pub(super) struct CutRow {
    pub segment: usize,
    /// Where; none is the device.
    pub tier: Option<Tier>,
    pub row: Row,
    /// Weight that a byte of memory holds, on average.
    pub weight_per_byte: f64,
}

/// A row to come.
struct Cut {
    segment: usize,
    /// Where; none is the device.
    tier: Option<Tier>,
    weights: Vec<(Kept, f64)>,
    /// By how much the relaxation breaks it.
    broken: f64,
}

impl Master<'_> {
    /// Adds rows that the relaxation breaks; tells how many.
    pub fn cut(&mut self, relaxed: &Relaxed) -> usize {
        let running: Vec<(usize, f64)> = (self.runs.iter().enumerate())
            .filter_map(|(c, x)| Some((c, relaxed.value_of((*x)?))))
            .filter(|(_, share)| *share > NONE)
            .collect();
        let mut cuts: Vec<Cut> = Vec::new();
        for segment in 0..self.device.len() {
            let mut here = running.clone();
            here.retain(|(c, _)| self.covers(*c, segment));
            for tier in [None, Some(Tier::Host), Some(Tier::Disk)] {
                if tier.is_some_and(|tier| !self.is_scarce(tier, segment)) {
                    continue;
                }
                let kept = self.kept(tier, segment, relaxed);
                let most = |weights: &[(Kept, f64)]| match tier {
                    Some(tier) => self.fits_beyond(tier, weights),
                    None => (here.iter())
                        .map(|&(c, share)| share * self.fits_beside(c, segment, weights))
                        .sum(),
                };
                if let Some((weights, broken)) = most_broken(kept, most) {
                    cuts.push(Cut {
                        segment,
                        tier,
                        weights,
                        broken,
                    });
                }
            }
        }
        cuts.sort_by(|a, b| (b.broken.total_cmp(&a.broken)).then(a.segment.cmp(&b.segment)));
        cuts.truncate(ROUND_CUTS);
        for cut in &cuts {
            self.add_cut(cut);
        }
        cuts.len()
    }

    fn covers(&self, c: usize, segment: usize) -> bool {
        let c = &self.p.candidates[c];
        (c.from..c.to).contains(&segment)
    }

    fn kept(&self, tier: Option<Tier>, segment: usize, relaxed: &Relaxed) -> Vec<Kept> {
        let of = |(&map, rows): (&NodeIx, &MapRows)| {
            let at = rows.uses.partition_point(|u| u.segment < segment);
            let used = rows.uses.get(at).filter(|_| segment >= rows.made)?;
            let home = tier.map_or(Some(used.device), |tier| used.beyond[tier.ix()])?;
            let share = relaxed.value_of(home);
            (share > NONE).then_some(Kept {
                map,
                bytes: rows.bytes,
                home,
                share,
            })
        };
        self.maps.iter().filter_map(of).collect()
    }

    /// The most weight that a tier has room for; at least that.
    fn fits_beyond(&self, tier: Tier, weights: &[(Kept, f64)]) -> f64 {
        let items = weights.iter().map(|(k, w)| (k.bytes, *w)).collect();
        most_weight(self.p.tier_bytes(tier) as f64, items)
    }

    /// The most weight that fits beside a candidate in a segment; at least that.
    fn fits_beside(&self, c: usize, segment: usize, weights: &[(Kept, f64)]) -> f64 {
        let candidate = &self.p.candidates[c];
        let mut room = self.model.most(self.device[segment]) * self.unit;
        room -= self.scratch[c];
        let mut items: Vec<(f64, f64)> = weights.iter().map(|(k, w)| (k.bytes, *w)).collect();
        for t in &candidate.touches {
            let Some(map) = self.maps.get(&t.node).filter(|m| m.on_device) else {
                continue;
            };
            // Found there it saves its window.
            let bytes = map.bytes - t.credit_bytes as f64;
            match weights.iter().position(|(k, _)| k.map == t.node) {
                Some(at) => items[at].0 = bytes,
                None => room -= bytes.min(0.0),
            }
        }
        most_weight(room, items)
    }

    fn add_cut(&mut self, cut: &Cut) {
        let most = match cut.tier {
            Some(tier) => self.fits_beyond(tier, &cut.weights),
            None => 0.0,
        };
        let kept = cut.weights.iter().map(|(k, w)| (k.home, *w)).collect();
        let row = self.model.at_most(kept, most);
        let (bytes, weight) =
            (cut.weights.iter()).fold((0.0, 0.0), |(b, w), (k, weight)| (b + k.bytes, w + weight));
        self.cuts.push(CutRow {
            segment: cut.segment,
            tier: cut.tier,
            row,
            weight_per_byte: weight / bytes,
        });
        if cut.tier.is_some() {
            return;
        }
        for c in 0..self.p.candidates.len() {
            if !self.covers(c, cut.segment) {
                continue;
            }
            let most = self.fits_beside(c, cut.segment, &cut.weights);
            if most > 0.0 {
                self.columns[c].terms.push((row, -most));
                if let Some(x) = self.runs[c] {
                    self.model.extend(row, x, -most);
                }
            }
        }
    }
}

/// The weights of maps that pass by most what is there in place of them.
fn most_broken(
    mut kept: Vec<Kept>,
    most: impl Fn(&[(Kept, f64)]) -> f64,
) -> Option<(Vec<(Kept, f64)>, f64)> {
    kept.sort_by(|a, b| b.bytes.total_cmp(&a.bytes).then(a.map.cmp(&b.map)));
    let mut best: Option<(Vec<(Kept, f64)>, f64)> = None;
    let mut offer = |weights: Vec<(Kept, f64)>| {
        let kept: f64 = weights.iter().map(|(m, w)| m.share * w).sum();
        let least = weights.iter().map(|w| w.1).fold(f64::INFINITY, f64::min);
        let broken = (kept - most(&weights)) / least;
        if broken > best.as_ref().map_or(BROKEN, |b| b.1) {
            best = Some((weights, broken));
        }
    };
    let mut sizes: Vec<f64> = kept.iter().map(|k| k.bytes).collect();
    sizes.dedup();
    for &size in &sizes {
        // One counts as much as another, or in units of the smallest; all of that size,
        // or those that are mostly there.
        for threshold in THRESHOLDS {
            let large = (kept.iter()).filter(|k| k.bytes >= size && k.share > threshold);
            let large: Vec<Kept> = large.copied().collect();
            if !large.is_empty() {
                offer(large.iter().map(|k| (*k, 1.0)).collect());
                offer(
                    large
                        .iter()
                        .map(|k| (*k, (k.bytes / size).floor()))
                        .collect(),
                );
            }
        }
    }
    best
}

/// Shares of maps that are looked at together.
const THRESHOLDS: [f64; 5] = [0.0, 0.25, 0.5, 0.75, 0.95];

/// The most weight of items of some bytes that fit a room; weights are whole numbers.
/// At least that: the last item is taken in part.
fn most_weight(mut room: f64, mut items: Vec<(f64, f64)>) -> f64 {
    let mut most = 0.0;
    items.retain(|&(bytes, weight)| {
        if bytes <= 0.0 {
            room -= bytes;
            most += weight;
        }
        bytes > 0.0
    });
    if room < 0.0 {
        return 0.0;
    }
    items.sort_by(|a, b| (b.1 * a.0).total_cmp(&(a.1 * b.0)));
    for (bytes, weight) in items {
        if bytes > room {
            most += weight * room / bytes;
            break;
        }
        room -= bytes;
        most += weight;
    }
    // Bytes are sums of some thousands of roundings.
    (most + 1e-6).floor()
}
