//! Where to split what a relaxation mixes.
//!
//! Short of memory, a relaxation runs a segment partly whole and partly in
//! tiles, and keeps a part of a map on the device. The split that removes most
//! of that is taken: where the mixed scratch, or the part of a map, is worth
//! most at the present price of memory.

use crate::plan::Tier;
use crate::program::NodeIx;
use crate::solve::{Relaxed, Var};

use super::rows::Master;

/// A decision that a part of the problem has made.
#[derive(Clone, Debug)]
pub enum Branch {
    /// What covers a segment has more than so many bytes of scratch, or not.
    Scratch {
        /// The segment.
        segment: usize,
        /// The bytes.
        bytes: u64,
        /// Whether more.
        more: bool,
    },
    /// A map is on the device, or a copy of it on a tier beyond, until a use, or not.
    Kept {
        /// The tier; none is the device.
        tier: Option<Tier>,
        /// The map.
        map: NodeIx,
        /// Which of its uses.
        at: usize,
        /// Whether it is.
        kept: bool,
    },
}

/// Less than this is worth no split, in units of the objective.
const WORTHLESS: f64 = 1e-3;

impl Master<'_> {
    /// Makes these decisions, and no others.
    pub fn decide(&mut self, decisions: &[Branch]) {
        self.may_run.copy_from_slice(&self.fits);
        for map in self.maps.values() {
            let most = if map.on_device { 1.0 } else { 0.0 };
            for used in &map.uses {
                self.model.restrict(used.device, 0.0, most);
                for home in used.beyond.into_iter().flatten() {
                    self.model.restrict(home, 0.0, 1.0);
                }
            }
        }
        for decision in decisions {
            match *decision {
                Branch::Scratch {
                    segment,
                    bytes,
                    more,
                } => {
                    for (may, c) in self.may_run.iter_mut().zip(self.p.candidates) {
                        let covers = (c.from..c.to).contains(&segment);
                        *may &= !covers || (c.scratch_bytes > bytes) == more;
                    }
                }
                Branch::Kept {
                    tier,
                    map,
                    at,
                    kept,
                } => {
                    let used = &self.maps[&map].uses[at];
                    let home = tier.map_or(Some(used.device), |t| used.beyond[t.ix()]);
                    let Some(home) = home else { continue };
                    let value = if kept { 1.0 } else { 0.0 };
                    self.model.restrict(home, value, value);
                }
            }
        }
        for (x, &may) in self.runs.iter().zip(&self.may_run) {
            if let Some(x) = *x {
                self.model
                    .restrict(x, 0.0, if may { f64::INFINITY } else { 0.0 });
            }
        }
    }

    /// The two halves of the most valuable split, if any is worth it.
    pub fn branch(&self, relaxed: &Relaxed) -> Option<[Branch; 2]> {
        let worth = self.device_worth(relaxed);
        let mut best = (WORTHLESS, None);
        let mut offer = |score: f64, halves: [Branch; 2]| {
            if score > best.0 {
                best = (score, Some(halves));
            }
        };
        let mut mean = vec![0.0; worth.len()];
        let mut mixed = Vec::new();
        for (c, x) in self.p.candidates.iter().zip(&self.runs) {
            let share = x.map_or(0.0, |x| relaxed.value_of(x));
            if share > 1e-7 {
                mixed.push((c, share));
                for m in &mut mean[c.from..c.to] {
                    *m += share * c.scratch_bytes as f64;
                }
            }
        }
        let mut spread = vec![0.0; worth.len()];
        for (c, share) in &mixed {
            for (s, m) in spread[c.from..c.to].iter_mut().zip(&mean[c.from..c.to]) {
                *s += share * (c.scratch_bytes as f64 - m).abs();
            }
        }
        for (segment, worth) in worth.iter().enumerate() {
            let halves = [false, true].map(|more| Branch::Scratch {
                segment,
                bytes: mean[segment] as u64,
                more,
            });
            offer(spread[segment] / self.unit * worth, halves);
        }
        let beyond = Tier::ALL.map(|tier| self.beyond_worth(tier, relaxed));
        for (&map, rows) in &self.maps {
            let mut from = rows.made;
            for (at, used) in rows.uses.iter().enumerate() {
                let span = from.min(used.segment)..=used.segment;
                let mut split = |tier: Option<Tier>, home: Var, worth: &[f64], unit: f64| {
                    let share = relaxed.value_of(home);
                    let worth: f64 = worth[span.clone()].iter().sum();
                    let halves = [true, false].map(|kept| Branch::Kept {
                        tier,
                        map,
                        at,
                        kept,
                    });
                    offer(share.min(1.0 - share) * rows.bytes / unit * worth, halves);
                };
                split(None, used.device, &worth, self.unit);
                for tier in Tier::ALL {
                    if let Some(home) = used.beyond[tier.ix()] {
                        split(Some(tier), home, &beyond[tier.ix()], self.tier_unit(tier));
                    }
                }
                from = used.segment + 1;
            }
        }
        best.1
    }

    /// A path along the candidates that the relaxation has most of.
    pub fn mixed(&self, relaxed: &Relaxed) -> Vec<usize> {
        let costs: Vec<f64> = (self.p.candidates.iter().zip(&self.runs))
            .map(|(c, x)| {
                let share = x.map_or(0.0, |x| relaxed.value_of(x));
                // Long candidates stand for several short ones.
                (1.0 - share) * (c.to - c.from) as f64
            })
            .collect();
        self.shortest(&costs)
    }
}
