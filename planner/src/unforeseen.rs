//! What a plan takes that its placement did not foresee.
//!
//! A placement estimates a stage's scratch from that with none of its maps on the
//! device and that with all of them there. With some there the windows that are left
//! may meet at another moment, and the stage takes more. The plan knows; told so, the
//! next search of the same candidates avoids it where that is worth it.

use crate::pack::{ALIGN, Request, load};
use crate::place::Problem;
use crate::plan::{Buffer, Plan, Stage, StageItem, Value, most_live_bytes};
use crate::schedule::Decision;
use crate::search::Found;

/// Candidates of which a plan takes more scratch than its placement foresaw while
/// more than `above_bytes` are live in all, and by how many bytes.
pub fn unforeseen(
    problem: &Problem<'_>,
    found: &Found,
    decision: &Decision,
    plan: &Plan,
    above_bytes: u64,
) -> Vec<(usize, u64)> {
    // Stages of flat tensors have no grid and were not decided.
    let loops = plan.stages.iter().filter(|s| !s.grid.is_empty());
    (decision.stages.iter().zip(loops))
        .filter_map(|(decided, stage)| {
            let scratch: Vec<&Buffer> = scratch(plan, stage).collect();
            let foreseen = foreseen_bytes(problem, found, decided.candidate);
            let taken = most_live_bytes(scratch.iter().copied());
            let more = taken.saturating_sub(foreseen);
            let is_concerned = more > 0 && live_beside(plan, &scratch) > above_bytes;
            is_concerned.then_some((decided.candidate, more))
        })
        .collect()
}

/// Scratch of a candidate where its maps are as a placement has them.
fn foreseen_bytes(problem: &Problem<'_>, found: &Found, candidate: usize) -> u64 {
    let c = &problem.candidates[candidate];
    let is_there = |node, reads: bool| {
        let until = found.homes.get(node).and_then(|(until, _)| *until);
        until.is_some_and(|until| !reads || until >= c.to - 1)
    };
    let credits = c.touches.iter().filter(|t| is_there(&t.node, t.reads));
    let credits: u64 = credits.map(|t| t.credit_bytes).sum();
    c.scratch_bytes.saturating_sub(credits)
}

/// Windows, staging buffers and accumulators of a stage.
fn scratch<'p>(plan: &'p Plan, stage: &'p Stage) -> impl Iterator<Item = &'p Buffer> {
    let of_item = |item: &StageItem| {
        let window = match item.value {
            Value::Window { buffer, .. } => Some(buffer),
            Value::Whole(_) | Value::Flat(_) => None,
        };
        [window, item.staging, item.accumulator]
    };
    let buffers = stage.items.iter().flat_map(of_item).flatten();
    buffers.map(|b| plan.buffer(b))
}

/// Most bytes of all buffers that are live at one tick while some of `scratch` is.
fn live_beside(plan: &Plan, scratch: &[&Buffer]) -> u64 {
    let first = scratch.iter().map(|b| b.live.0).min();
    let last = scratch.iter().map(|b| b.live.1).max();
    let (Some(first), Some(last)) = (first, last) else {
        return 0;
    };
    let clipped = plan.buffers.iter().map(|b| Request {
        bytes: b.bytes,
        live: (b.live.0.max(first), b.live.1.min(last)),
    });
    let meets: Vec<Request> = clipped.filter(|r| r.live.0 <= r.live.1).collect();
    load(&meets, ALIGN)
}
