//! The placement as one integer program: its bound, and what it can improve.
//!
//! `x[c]` says that candidate `c` runs; the chosen ones form a path through the
//! segments. A stored map `t` has `D[t,u]`, `H[t,u]` and `S[t,u]`, indexed only at
//! its uses `u`: it is on the device until then, and its copy on the host, or on
//! disk, is needed until then; all fall in `u`. `r[c,t]` says that `c` finds `t` on
//! the device; otherwise it keeps a window of `t`, and a read copies from the host,
//! or if `q[c,t]` from disk; `r[c,t] + q[c,t] ≤ x[c]`. Candidates that cover one
//! segment exclude each other, so rows are summed
//! over them, which makes the relaxation tight:
//!
//! - residency: `Σ_c r[c,t] ≤ D[t,u]` and `Σ_c q[c,t] ≤ S[t,u]`; supply:
//!   `Σ_c (x[c] − r[c,t] − q[c,t]) ≤ H[t,u]` over the candidates that cover `u` and
//!   touch `t`: what is there until a later use is there until this one;
//! - device memory, per segment: `Σ size·D + Σ scratch·x − Σ credit·r ≤ M`;
//!   exactly one candidate covers a segment, so no big-M;
//! - host memory and disk, per segment: `Σ size·H ≤ host`, `Σ size·S ≤ disk`.
//!
//! Where only one home is allowed `r` is `x` or 0 and needs no column; without a
//! disk there is no `S` and no `q`.
//!
//! Where copies run beside kernels ([`crate::overlap`]) the objective is the step's
//! seconds, at least those of each channel: stages overlap in themselves only, so that
//! is a bound, and what is found is scored stage by stage.
//!
//! **Columns come as needed.** Rows exist for all candidates from the start,
//! columns only for those that matter: the relaxation is solved over a few, its
//! duals price all others (`columns`), and those on cheap paths come in, until
//! no path costs less. At any time the value less what the best path would save
//! bounds every placement of all candidates.
//!
//! **Branches.** What the relaxation mixes is split where memory makes it mix
//! (`branch`): a segment runs with less scratch than now on average, or with
//! more; a map stays on the device until a use, or not. The lowest bound of all
//! parts is the bound of the whole; what each part mixes is where a better
//! placement is looked for.

mod branch;
mod columns;
mod cuts;
mod near;
mod rows;

use crate::error::PlanError;
use crate::place::Problem;
use crate::search::Prices;
use crate::solve::{Relaxation, Relaxed};

use branch::Branch;
use rows::Master;

/// How often columns may be added to one relaxation.
const ROUNDS: usize = 40;
/// Most columns that one round adds.
const ROUND_COLUMNS: usize = 120;
/// How often rows may be added to one relaxation.
const CUT_ROUNDS: usize = 8;
/// Rows that close less of what is open than this share were the last.
const HELPS: f64 = 0.05;
/// A bound is good enough this close to what the relaxation would reach.
const TIGHT: f64 = 1e-3;

/// A part of the work that is worth a better bound than asked for.
const CHEAP: u64 = 8;

/// Placements this much above the bound are worth a small integer program.
const FAR: f64 = 0.08;
/// What solving again may take.
const AGAIN_WORK: u64 = 150_000_000;

/// What one relaxation counts at least, so that there are not too many.
const LEAST_WORK: u64 = 10_000_000;

/// How hard to try.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Stop within this relative distance.
    pub gap: f64,
    /// Stop splitting after this many simplex iterations times rows, so that it
    /// is a function of the problem.
    pub work: u64,
}

/// A part of the problem: some decisions made.
struct Part {
    decisions: Vec<Branch>,
    /// No placement in it costs less, in units of the objective.
    bound: f64,
}

/// A relaxation, settled.
struct Settled {
    relaxed: Relaxed,
    bound: f64,
}

/// The best placement found so far.
pub struct Best {
    /// Seconds that count: only fewer matter.
    pub secs: f64,
    /// Its candidates, in order.
    pub path: Vec<usize>,
}

/// What is known of every placement.
pub struct Known {
    /// None takes fewer seconds; infinite if there is none.
    pub bound_secs: f64,
    /// What memory is worth, if that was found out.
    pub prices: Option<Prices>,
    /// Decisions of the program as far as it was written down: candidates that run or
    /// do not, maps that are kept until a use or are not.
    pub n_binaries: usize,
}

/// The integer program of a problem, and the relaxation as far as it has been solved.
pub struct Solver<'a> {
    master: Master<'a>,
    lp: Relaxation,
    /// Done so far.
    work: u64,
    /// Whether what was found first was far above the bound.
    is_far: bool,
}

impl<'a> Solver<'a> {
    /// Of the placements within `device_bytes`, starting with the candidates `first`.
    ///
    /// # Errors
    /// [`PlanError::Solver`] if the solver fails.
    pub fn new(
        problem: &'a Problem<'a>,
        device_bytes: u64,
        first: impl IntoIterator<Item = usize>,
    ) -> Result<Self, PlanError> {
        let mut solver = Solver {
            master: Master::new(problem, device_bytes),
            lp: Relaxation::new()?,
            work: 0,
            is_far: false,
        };
        for c in first {
            solver.master.add(c);
        }
        Ok(solver)
    }

    /// Bounds the seconds of every placement. `look` is shown what memory is worth and a
    /// path near what each relaxation mixes, and answers with the best that is known. Only
    /// placements below `below` seconds matter.
    ///
    /// # Errors
    /// [`PlanError::Solver`] if the solver fails.
    pub fn bound(
        &mut self,
        effort: Effort,
        below: f64,
        mut look: impl FnMut(&Prices, &[usize]) -> Best,
    ) -> Result<Known, PlanError> {
        let tick = self.master.tick;
        let mut parts = vec![Part {
            decisions: Vec::new(),
            bound: 0.0,
        }];
        // What is left aside is not below this.
        let mut aside = f64::INFINITY;
        let mut known = below / tick;
        let mut first_prices: Option<Prices> = None;
        let mut is_first = true;
        loop {
            let lowest =
                (0..parts.len()).min_by(|&a, &b| parts[a].bound.total_cmp(&parts[b].bound));
            let Some(lowest) = lowest else { break };
            let lowest_bound = parts[lowest].bound.min(aside);
            // Where it costs little, go beyond what was asked for.
            let gap = if self.work < effort.work / CHEAP {
                effort.gap / 2.0
            } else {
                effort.gap
            };
            if !is_first && (self.work >= effort.work || lowest_bound >= known * (1.0 - gap)) {
                aside = aside.min(parts[lowest].bound);
                break;
            }
            let most_work = if is_first { u64::MAX } else { effort.work };
            let part = parts.swap_remove(lowest);
            self.master.decide(&part.decisions);
            let Some(settled) = self.settle(known, most_work)? else {
                is_first = false;
                continue;
            };
            let bound = settled.bound.max(part.bound);
            let prices = self.master.prices(&settled.relaxed);
            first_prices.get_or_insert_with(|| prices.clone());
            if bound >= known * (1.0 - gap) {
                is_first = false;
                aside = aside.min(bound);
                continue;
            }
            let best = look(&prices, &self.master.mixed(&settled.relaxed));
            known = best.secs / tick;
            let Some(settled) = self.tighten(settled, known, effort)? else {
                is_first = false;
                continue;
            };
            let bound = settled.bound.max(bound);
            if is_first && bound < known * (1.0 - FAR) {
                // Once, for it takes longer than a relaxation.
                self.is_far = true;
                if let Some(near) = self.master.near(&best.path, &settled.relaxed) {
                    let prices = self.master.prices(&settled.relaxed);
                    known = look(&prices, &near).secs / tick;
                }
            }
            is_first = false;
            match self.master.branch(&settled.relaxed) {
                Some(branches) => parts.extend(branches.into_iter().map(|b| Part {
                    decisions: part.decisions.iter().cloned().chain([b]).collect(),
                    bound,
                })),
                None => aside = aside.min(bound),
            }
        }
        Ok(Known {
            bound_secs: aside.min(known) * tick,
            prices: first_prices,
            n_binaries: self.master.n_binaries(),
        })
    }

    /// Rows that were added because only mixtures break them.
    #[cfg(test)]
    pub fn n_cuts(&self) -> usize {
        self.master.cuts.len()
    }

    /// What memory is worth, and a path to look near, once candidates are known to take as
    /// many bytes as `scratch` says and the cap is `device_bytes`; `path` is one that
    /// nearly fits. `None` where the first answer was near the bound.
    ///
    /// # Errors
    /// [`PlanError::Solver`] if the solver fails.
    pub fn again(
        &mut self,
        scratch: &[f64],
        device_bytes: u64,
        path: &[usize],
    ) -> Result<Option<(Prices, Vec<usize>)>, PlanError> {
        if !self.is_far {
            return Ok(None);
        }
        self.master.lower(device_bytes);
        self.master.charge(scratch);
        self.master.decide(&[]);
        let most_work = self.work + AGAIN_WORK;
        let Some(settled) = self.settle(f64::INFINITY, most_work)? else {
            return Ok(None);
        };
        let prices = self.master.prices(&settled.relaxed);
        let near = self.master.near(path, &settled.relaxed);
        let near = near.unwrap_or_else(|| self.master.mixed(&settled.relaxed));
        Ok(Some((prices, near)))
    }

    /// Solves the relaxation under the decisions made, adding the columns that
    /// it lacks while `most_work` is not passed. `None` if there is no placement,
    /// or none below `known`.
    fn settle(&mut self, known: f64, most_work: u64) -> Result<Option<Settled>, PlanError> {
        let mut bound = f64::NEG_INFINITY;
        for round in 0.. {
            let Some(relaxed) = self.lp.solve(&self.master.model)? else {
                return Ok(None);
            };
            self.work += relaxed.work + LEAST_WORK;
            let detours = self.master.detours(&relaxed);
            let least = detours.iter().copied().fold(0.0, f64::min);
            bound = f64::max(bound, relaxed.value + least);
            if bound >= known {
                return Ok(None);
            }
            let is_tight = relaxed.value - bound <= TIGHT * relaxed.value.abs();
            let is_over = round == ROUNDS || self.work >= most_work;
            if is_tight || is_over || self.enter(&detours) == 0 {
                let is_lost = Master::is_lost(&relaxed);
                return Ok((!is_lost).then_some(Settled { relaxed, bound }));
            }
        }
        Ok(None)
    }

    /// Adds rows that the relaxation breaks as long as that helps. `None` if there is
    /// no placement below `known`.
    fn tighten(
        &mut self,
        mut settled: Settled,
        known: f64,
        effort: Effort,
    ) -> Result<Option<Settled>, PlanError> {
        // The first relaxation may have taken all that there is.
        let most_work = effort.work.max(self.work + effort.work / 2);
        for _ in 0..CUT_ROUNDS {
            if settled.bound >= known * (1.0 - effort.gap / 2.0)
                || self.work >= most_work
                || self.master.cut(&settled.relaxed) == 0
            {
                break;
            }
            let before = settled.bound;
            match self.settle(known, most_work)? {
                Some(next) => settled = next,
                None => return Ok(None),
            }
            settled.bound = settled.bound.max(before);
            if settled.bound - before < HELPS * (known - before) {
                break;
            }
        }
        Ok(Some(settled))
    }

    /// Adds the columns on the cheapest paths; tells how many.
    fn enter(&mut self, detours: &[f64]) -> usize {
        let mut cheap: Vec<usize> = (0..detours.len())
            .filter(|&c| detours[c] < -1e-7 && !self.master.has(c))
            .collect();
        cheap.sort_by(|&a, &b| detours[a].total_cmp(&detours[b]).then(a.cmp(&b)));
        cheap.truncate(ROUND_COLUMNS);
        for &c in &cheap {
            self.master.add(c);
        }
        cheap.len()
    }
}
