//! Which of several equal programs is planned, and whose plan is taken.
//!
//! Rewrites at several prices of memory and choices of algorithms give a handful
//! of equal programs. [`Strategy::Optimal`] searches all of them quickly, then lets
//! the integer program improve the most promising one; what that reaches cuts short
//! whatever cannot be better. It also looks at what every other strategy finds, so
//! it is never predicted slower than one of them. The others take the first choice
//! of algorithms that fits.

use rayon::prelude::*;

use crate::algorithms::with_algorithms;
use crate::budget::Budget;
use crate::driver::Planner;
use crate::error::PlanError;
use crate::machine::Machine;
use crate::made::{Made, Quick, Start};
use crate::memo::Memo;
use crate::objective::Aim;
use crate::place::Proof;
use crate::plan::Plan;
use crate::program::Program;
use crate::rewrite::Variant;
use crate::schedule::untiled_bytes;
use crate::search::Prices;
use crate::strategy::Strategy;

/// The plan of the variant, and choice of algorithms, that is predicted fastest on
/// the machine `priced`, costed on `machine`.
/// The first variant is the one that is written down where nothing else is said.
///
/// # Errors
/// [`PlanError::Infeasible`] and [`PlanError::HostTooSmall`] if none fits;
/// [`PlanError::Solver`].
pub fn compare(
    variants: &[Variant],
    (machine, priced): (&Machine, &Machine),
    budget: Budget,
    aim: Aim,
) -> Result<Plan, PlanError> {
    let strategy = aim.strategy;
    let mut programs: Vec<(usize, Program)> = Vec::new();
    for (at, variant) in variants.iter().enumerate() {
        // Whole tiles of Winograd's algorithm read a little more than direct sums,
        // so where memory is short fewer convolutions use it.
        let choices = with_algorithms(&variant.program, priced);
        let direct = std::iter::once(variant.program.clone());
        programs.extend(choices.into_iter().chain(direct).map(|p| (at, p)));
    }
    let memo = Memo::default();
    let planners: Vec<Planner<'_>> = (programs.iter())
        .map(|(_, program)| Planner::new(program, priced, &memo, budget))
        .collect();
    let least_secs: Vec<f64> = planners.iter().map(Planner::least_secs).collect();
    // The choices of the first variant, in order: each later one needs less.
    let first = || (0..planners.len()).filter(|at| programs[*at].0 == 0);
    let cap = budget.device_bytes;
    let quick = |strategy: Strategy, below: f64| {
        for at in first().filter(|at| least_secs[*at] < below) {
            match planners[at].quick(strategy, cap, below) {
                Quick::Made(made) => return Some((at, *made)),
                Quick::Slower(_) => return None,
                Quick::TooLarge => {}
            }
        }
        None
    };
    // In order, whatever the number of threads.
    let rivals = |below: f64| -> Vec<(usize, Made)> {
        (Strategy::ALL.par_iter())
            .filter(|rival| **rival != Strategy::Optimal)
            .filter_map(|&rival| quick(rival, below))
            .collect()
    };
    // What they found, and below what.
    let mut others: Option<(f64, Vec<(usize, Made)>)> = None;
    let (mut best, mut proof) = match strategy {
        Strategy::Optimal => {
            let starts = starts(&planners, &least_secs);
            let known = starts.first().map_or(f64::INFINITY, |(_, s)| s.secs());
            if known.is_finite() {
                // Solving is the work of one thread, looking at the others of another.
                let (improved, found) =
                    rayon::join(|| optimal(&planners, starts), || rivals(known));
                others = Some((known, found));
                improved
            } else {
                optimal(&planners, starts)
            }
        }
        _ => (quick(strategy, f64::INFINITY), None),
    };
    if best.is_none()
        && let Some(direct) = first().next_back()
    {
        best = Some((direct, planners[direct].tightly(strategy)?));
        proof = None;
    }
    let Some((mut at, mut made)) = best else {
        let status = "no program to plan".to_owned();
        return Err(PlanError::Solver { status });
    };
    if strategy == Strategy::Optimal {
        // Packing may have made it slower than it began.
        let others = match others {
            Some((known, found)) if made.secs() <= known => found,
            _ => rivals(made.secs()),
        };
        for (of, other) in others {
            if other.secs() < made.secs() {
                (at, made) = (of, other);
            }
        }
    }
    let proof = match proof {
        Some(proof) => proof,
        None => planners[at].prove(&made),
    };
    let mut plan = planners[at].finish(made, machine, &proof);
    plan.rewrites = variants[programs[at].0].report.to_string();
    // The same whatever is planned, so that plans can be compared by it.
    if let Some(first) = variants.first() {
        plan.predicted.untiled_bytes = untiled_bytes(&first.program);
    }
    plan.budget = budget;
    plan.strategy = strategy;
    plan.objective = aim.objective;
    Ok(plan)
}

/// Programs whose quick search came to more than this times the best are left alone.
const WORTH: f64 = 1.1;

/// A plan, and which planner made it.
type Best = Option<(usize, Made)>;

/// How many programs are worked on at once while nothing is known that could cut
/// others short.
const AT_ONCE: usize = 2;

/// What quick searches of the promising programs come to, the fastest first.
fn starts(planners: &[Planner<'_>], least_secs: &[f64]) -> Vec<(usize, Start)> {
    let mut order: Vec<usize> = (0..planners.len()).collect();
    order.sort_by(|&a, &b| least_secs[a].total_cmp(&least_secs[b]).then(a.cmp(&b)));
    // What is known to be possible; a program that cannot beat it is not looked at.
    let mut known = f64::INFINITY;
    let mut starts: Vec<(usize, Start)> = Vec::new();
    for group in order.chunks(AT_ONCE) {
        let found: Vec<(usize, Start)> = (group.par_iter())
            .filter(|at| least_secs[**at] < known)
            .filter_map(|&at| Some((at, planners[at].start()?)))
            .collect();
        for (at, start) in found {
            known = known.min(start.secs());
            starts.push((at, start));
        }
    }
    // Where memory is short the first choices may only just not fit.
    starts.retain(|(_, s)| s.secs() <= known * WORTH || s.secs().is_infinite());
    starts.sort_by(|(_, a), (_, b)| a.secs().total_cmp(&b.secs()));
    starts
}

/// The best plan in the large space of any program, and what is known of all of that
/// program.
fn optimal(planners: &[Planner<'_>], starts: Vec<(usize, Start)>) -> (Best, Option<Proof>) {
    let mut best: Best = None;
    let mut proof: Option<Proof> = None;
    // What memory is worth is much the same in all of them: once that is known, a look
    // tells which of the others are worth a proof.
    let mut prices: Option<Prices> = None;
    for (at, start) in starts {
        let below = (best.as_ref()).map_or(f64::INFINITY, |(_, made)| made.secs());
        let start = match &prices {
            Some(prices) => planners[at].look(start, prices),
            None => start,
        };
        if prices.is_some() && start.secs() >= below {
            continue;
        }
        let (made, known) = planners[at].improve(start, below);
        prices = prices.or_else(|| known.prices.clone());
        if let Some(made) = made
            && (best.as_ref()).is_none_or(|(_, b)| made.secs() < b.secs())
        {
            best = Some((at, made));
            proof = Some(known);
        }
    }
    (best, proof)
}
