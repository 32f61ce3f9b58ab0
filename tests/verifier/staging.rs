//! Regions that are fetched ahead: each is there, whole, when it is fetched.

use std::ops::ControlFlow;

use sstep_planner::{BufferIx, Instr, Plan, Purpose, Violation, verify, verify_sequence};

use crate::common::events::Events;
use crate::common::{Net, leaves, oracle, worst};
use crate::two_steps;

/// The verdict on other instructions than the plan's own.
fn judge(plan: &Plan, instrs: &[Instr]) -> Result<(), Violation> {
    verify_sequence(plan, |visit| {
        for instr in instrs {
            visit(*instr)?;
        }
        ControlFlow::Continue(())
    })
}

#[test]
fn a_fetch_finds_what_was_prefetched_or_is_named() {
    let (_, plan) = Net::ahead(96);
    let mut instrs = Vec::new();
    let _ = plan.instructions(|instr| {
        instrs.push(instr);
        ControlFlow::<()>::Continue(())
    });
    assert_eq!(judge(&plan, &instrs), Ok(()));
    let prefetches: Vec<usize> = (0..instrs.len())
        .filter(|&k| matches!(instrs[k], Instr::Prefetch { .. }))
        .collect();
    assert!(prefetches.len() >= 20, "{}", plan.explain());
    let item = |k: usize| match instrs[k] {
        Instr::Prefetch { at, .. } | Instr::Fetch { at, .. } => Some(at),
        _ => None,
    };
    let is_fetch = |k: &usize| matches!(instrs[*k], Instr::Fetch { .. });
    let refuse = |instrs: &[Instr], index: usize, named: &str, why: &str| {
        let violation = judge(&plan, instrs).expect_err(why);
        assert_eq!(violation.index, index as u64, "{why}: {violation}");
        assert!(violation.instr.starts_with(named), "{why}: {violation}");
    };
    for &k in &prefetches {
        let of_item = |j: &usize| item(*j) == item(k) && is_fetch(j);
        let fetched = (k..instrs.len()).find(of_item).expect("it is fetched");
        let mut fewer = instrs.clone();
        fewer.remove(k);
        refuse(&fewer, fetched - 1, "fetch", "it is missing");
        let mut late = fewer.clone();
        late.insert(fetched, instrs[k]);
        refuse(&late, fetched - 1, "fetch", "it comes late");
        if let Some(last) = (0..k).rfind(of_item) {
            let mut early = fewer.clone();
            early.insert(last, instrs[k]);
            refuse(
                &early,
                last + 1,
                "fetch",
                "it comes before the last is fetched",
            );
        }
        let Instr::Prefetch { at, region } = instrs[k] else {
            unreachable!("a prefetch");
        };
        let mut other = region;
        let rows = region.span(1);
        other.set(1, sstep_autodiff::Span::new(rows.lo, rows.hi - 1));
        let mut wrong = instrs.clone();
        wrong[k] = Instr::Prefetch { at, region: other };
        refuse(&wrong, fetched, "fetch", "a row of it is missing");
        other.set(1, sstep_autodiff::Span::new(rows.lo, rows.hi + 1000));
        wrong[k] = Instr::Prefetch { at, region: other };
        refuse(&wrong, k, "prefetch", "it passes the staging buffer");
    }
    // A buffer that is a byte short is that for some prefetch.
    for (s, stage) in plan.stages.iter().enumerate() {
        for item in &stage.items {
            let Some(staging) = item.staging else {
                continue;
            };
            let mut short = plan.clone();
            short.buffers[staging.0 as usize].bytes -= 1;
            let violation = verify(&short).expect_err("it is short");
            let (prefetch, store) = (format!("prefetch stage {s} "), format!("store stage {s} "));
            let named =
                violation.instr.starts_with(&prefetch) || violation.instr.starts_with(&store);
            assert!(named, "{violation}");
        }
    }
}

#[test]
fn what_is_staged_is_not_overwritten() {
    let (net, plan) = Net::ahead(96);
    let values = leaves::<f64>(&net.tape, 1);
    let want = oracle(&net, &values);
    let staging = |b: &&BufferIx| plan.buffer(**b).purpose == Purpose::Staging;
    let all: Vec<BufferIx> = (0..plan.buffers.len() as u32).map(BufferIx).collect();
    let events = Events::new(&plan);
    let (mut refused, mut accepted) = (0, 0);
    for &b in all.iter().filter(staging) {
        for &other in all.iter().filter(|o| **o != b) {
            let mut moved = plan.clone();
            moved.buffers[b.0 as usize].offset = plan.buffer(other).offset;
            let certain = events.clobbers(b, other) || events.clobbers(other, b);
            match verify(&moved) {
                Err(_) => refused += 1,
                Ok(()) => {
                    assert!(!certain, "{b:?} moved onto {other:?}");
                    let (error, name) = worst(&two_steps(moved, &values).expect("steps"), &want);
                    assert!(error <= 1e-9, "{name} is off by {error:e}");
                    accepted += 1;
                }
            }
        }
    }
    assert!(refused > 0 && accepted > 0, "{refused}, {accepted}");
}
