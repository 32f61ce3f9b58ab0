//! From a placement to a plan that packs within the caps.

use crate::made::{Made, Quick};
use crate::place::{Goal, Placed, Problem, Prover, place};
use crate::search::{Found, Space};
use crate::unforeseen::unforeseen;

use super::{Planner, REPACKS, Source};

/// A placement near another is taken if it is slower by less than this factor.
const NEAR: f64 = 1.001;

/// How often the integer program is asked again: that takes about as long as all else.
const AGAIN: usize = 1;
/// From this time on the cap is lowered by all that packing lacks.
const WHOLLY: u64 = 4;

impl Planner<'_> {
    /// The plan of a placement; if packing needs more than the caps, of another one
    /// for as much less: near it, or where the integer program leads, or of a search anew.
    pub(super) fn packed(
        &self,
        source: Source,
        cap: u64,
        (problem, space): (&Problem<'_>, &mut Space<'_>),
        mut found: Found,
        (below, mut prover): (f64, Option<Prover<'_>>),
    ) -> Quick {
        let mut aim_bytes = cap;
        let mut n_lowered = 1;
        let mut n_again = 0;
        for _ in 0..REPACKS {
            if found.score.secs >= below {
                return Quick::Slower(found.score.secs);
            }
            let (decision, plan) = self.schedule(problem, &found);
            let peak = plan.predicted.peak_bytes;
            let disk_over = self.disk_over(&plan);
            if peak <= cap && disk_over == 0 {
                return Quick::Made(Box::new(Made {
                    plan,
                    found,
                    source,
                    workspace_bytes: problem.workspace_bytes,
                }));
            }
            if peak > cap {
                // What is beyond the cap first; what is not may be so in another placement.
                let mut has_learnt = false;
                for above_bytes in [cap, 0] {
                    if has_learnt {
                        break;
                    }
                    let taken = unforeseen(problem, &found, &decision, &plan, above_bytes);
                    for (candidate, bytes) in taken {
                        has_learnt |= space.charge(candidate, bytes);
                    }
                }
                // Else there is room but for gaps between buffers.
                if !has_learnt || plan.most_live_bytes() <= cap {
                    // Another placement has other gaps: ask for less than they took first.
                    let lowered = (peak - cap) * n_lowered.min(WHOLLY) / WHOLLY;
                    let Some(aim) = aim_bytes.checked_sub(lowered.max(cap / 200)) else {
                        return Quick::TooLarge;
                    };
                    aim_bytes = aim;
                    n_lowered += 1;
                }
            }
            space.shrink_disk(disk_over);
            // What packing lacks is little: near what was found is often enough.
            let secs = found.score.secs;
            let mut next = space.near(&found.path, aim_bytes);
            let is_enough =
                |n: &Option<Found>| n.as_ref().is_some_and(|n| n.score.secs <= secs * NEAR);
            if let (false, true, Some(prover)) = (is_enough(&next), n_again < AGAIN, &mut prover) {
                n_again += 1;
                let again = prover.again(space, &found, aim_bytes);
                next = next.into_iter().chain(again).reduce(Found::better);
            }
            if !is_enough(&next) {
                let goal = Goal::Seconds {
                    device_bytes: aim_bytes,
                    below_secs: below,
                };
                if let Placed::Found(anew) = place(space, goal, Some(&found)) {
                    next = next.into_iter().chain([anew]).reduce(Found::better);
                }
            }
            found = match next.filter(|n| n.score.fits()) {
                Some(next) => next,
                None => return Quick::TooLarge,
            };
        }
        Quick::TooLarge
    }
}
