//! From a placement to a plan that packs within the caps.

use crate::made::{Made, Quick};
use crate::place::{Goal, Placed, Problem, place};
use crate::search::{Found, Prices, Space};
use crate::unforeseen::unforeseen;

use super::{Planner, REPACKS, Source};

/// A placement near another is taken if it is slower by less than this factor.
const NEAR: f64 = 1.001;

impl Planner<'_> {
    /// The plan of a placement; if packing needs more than the caps, of another one
    /// for as much less: near it, or where `prices` lead, or of a search anew.
    pub(super) fn packed(
        &self,
        source: Source,
        cap: u64,
        (problem, space): (&Problem<'_>, &mut Space<'_>),
        mut found: Found,
        (below, prices): (f64, Option<&Prices>),
    ) -> Quick {
        let mut aim_bytes = cap;
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
                let mut has_learnt = false;
                for (candidate, bytes) in unforeseen(problem, &found, &decision, &plan) {
                    has_learnt |= space.charge(candidate, bytes);
                }
                // Else there is room but for gaps between buffers.
                if !has_learnt || plan.most_live_bytes() <= cap {
                    let Some(aim) = aim_bytes.checked_sub((peak - cap).max(cap / 200)) else {
                        return Quick::TooLarge;
                    };
                    aim_bytes = aim;
                }
            }
            space.shrink_disk(disk_over);
            // What packing lacks is little: near what was found is often enough.
            let secs = found.score.secs;
            let mut next = space.near(&found.path, aim_bytes);
            let is_enough =
                |n: &Option<Found>| n.as_ref().is_some_and(|n| n.score.secs <= secs * NEAR);
            if let (false, Some(prices)) = (is_enough(&next), prices) {
                let priced = space.refine(&found.path, prices, aim_bytes);
                next = next.into_iter().chain([priced]).reduce(Found::better);
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
