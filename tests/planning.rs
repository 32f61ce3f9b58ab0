//! What planning promises whatever the network: the same plan every time, fewer
//! bytes where bytes are what counts, and no worse a plan for more memory.

mod common;

use common::nets::normed;
use common::{AMPLE, Net};
use sstep_planner::{Aim, Budget, Machine, Objective, Plan, Strategy, plan, verify};

/// What is kept competes in it.
fn net() -> Net {
    Net::parse("f32", &normed([256, 256], 16, 1))
}

/// A small net, for what is done often.
const SMALL: &str = "
x = input [1, 3, 96, 96]
w1 = param [8, 3, 3, 3]
g1 = param [8]
b1 = param [8]
w2 = param [8, 8, 3, 3]
c1 = conv(x, w1) pad=1
m1 = moments(c1) groups=4
n1 = normalise(c1, m1, g1, b1) groups=4 eps=1e-5
c2 = conv(n1, w2) pad=1
target = input [1, 8, 96, 96]
l = mse(c2, target)
";

fn planned(net: &Net, (device_bytes, host_bytes): (u64, u64), aim: impl Into<Aim>) -> Plan {
    let budget = Budget {
        device_bytes,
        host_bytes,
        disk_bytes: 0,
    };
    plan(&net.tape, &net.spec, &Machine::default(), budget, aim).expect("a plan")
}

/// The built-in machine with slow links, and whether copies run beside kernels.
fn slow_links(copies_overlap: bool) -> Machine {
    let mut machine = Machine::default();
    machine.h2d_bytes_per_sec = 1e9;
    machine.d2h_bytes_per_sec = 1e9;
    machine.copies_overlap = copies_overlap;
    machine
}

/// What running everything untiled takes.
fn untiled_bytes(net: &Net) -> u64 {
    planned(net, (AMPLE, 0), Strategy::StoreAll)
        .predicted
        .untiled_bytes
}

#[test]
fn a_hundred_plans_are_the_same_byte_for_byte() {
    let net = Net::parse("f32", SMALL);
    let budget = (untiled_bytes(&net) / 6, 1 << 30);
    let bytes = || serde_json::to_vec(&planned(&net, budget, Strategy::Optimal)).expect("JSON");
    let first = bytes();
    for run in 1..100 {
        assert!(bytes() == first, "run {run} differs");
    }
}

#[test]
fn fewest_bytes_are_no_more_than_fastest_ones() {
    let net = net();
    let whole = untiled_bytes(&net);
    let moved = |p: &Plan| {
        let p = &p.predicted;
        p.h2d_bytes + p.d2h_bytes + p.source_bytes
    };
    let mut fewer = 0;
    for fraction in [3, 6, 12] {
        let budget = (whole / fraction, 1 << 30);
        let fastest = planned(&net, budget, Strategy::Optimal);
        let aim = Aim {
            strategy: Strategy::Optimal,
            objective: Objective::Bytes,
        };
        let fewest = planned(&net, budget, aim);
        verify(&fewest).expect("verified");
        assert_eq!(fewest.objective, Objective::Bytes);
        assert!(fewest.predicted.peak_bytes <= budget.0);
        assert!(moved(&fewest) <= moved(&fastest), "1/{fraction}");
        assert!(fastest.predicted.secs <= fewest.predicted.secs * 1.001);
        fewer += u32::from(moved(&fewest) < moved(&fastest));
    }
    assert!(fewer > 0, "bytes never mattered");
}

#[test]
fn more_memory_is_never_slower_and_less_never_needs_more() {
    let net = net();
    let whole = untiled_bytes(&net);
    for host in [0, 1 << 30] {
        let mut before: Option<Plan> = None;
        for fraction in [2, 3, 4, 6, 9, 14, 20] {
            let now = planned(&net, (whole / fraction, host), Strategy::Optimal);
            if let Some(before) = before {
                let (more, less) = (&before.predicted, &now.predicted);
                assert!(less.peak_bytes <= more.peak_bytes, "1/{fraction}");
                // The proven gap is what it may be off by.
                let lowest = more.secs * (1.0 - before.gap);
                assert!(
                    less.secs >= lowest,
                    "1/{fraction}: {} {}",
                    less.secs,
                    more.secs
                );
                assert!(less.secs >= more.secs * 0.99, "1/{fraction}");
            }
            before = Some(now);
        }
    }
}

#[test]
fn copies_beside_kernels_are_paid_for_once() {
    let net = net();
    let whole = untiled_bytes(&net);
    let mut faster = 0;
    for fraction in [3, 6, 12] {
        let budget = Budget {
            device_bytes: whole / fraction,
            host_bytes: 1 << 30,
            disk_bytes: 0,
        };
        let secs = [false, true].map(|beside| {
            let machine = slow_links(beside);
            let strategy = Strategy::Optimal;
            let plan = plan(&net.tape, &net.spec, &machine, budget, strategy).expect("a plan");
            verify(&plan).expect("verified");
            assert!((0.0..1.0).contains(&plan.gap), "{}", plan.gap);
            plan.predicted.secs
        });
        assert!(secs[1] <= secs[0] * 1.001, "1/{fraction}: {secs:?}");
        faster += u32::from(secs[1] < 0.95 * secs[0]);
    }
    assert!(faster > 0, "nothing overlapped");
}
