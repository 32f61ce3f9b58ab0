//! Caps: kept to the byte, named when too small, never a reason to fail above
//! the smallest.

mod common;

use std::process::Command;

use common::{AMPLE, Net, execute_as_promised, leaves, oracle, worst};
use sstep_planner::{Budget, ByteSize, Machine, Plan, PlanError, Strategy, plan};

/// Small networks that need different things of a planner.
const NETS: &[(&str, &str)] = &[
    (
        "chain",
        "x = input [1, 3, 48, 40]
         w1 = param [8, 3, 3, 3]
         w2 = param [8, 8, 3, 3]
         w3 = param [4, 8, 3, 3]
         a = conv(x, w1) pad=1
         b = relu(a)
         c = conv(b, w2) pad=1 stride=2
         d = relu(c)
         e = conv(d, w3) pad=1
         y = sum_map(e)",
    ),
    (
        "residual with group norm",
        "x = input [2, 2, 24, 28]
         w1 = param [4, 2, 3, 3]
         w2 = param [4, 4, 3, 3]
         g = param [4]
         b = param [4]
         a = conv(x, w1) pad=1
         c = conv(a, w2) pad=1
         m = moments(c) groups=2
         n = normalise(c, m, g, b) groups=2 eps=1e-5
         r = relu(n)
         s = add(r, a)
         y = sum_map(s)",
    ),
    (
        "u-net in 3-D",
        "x = input [1, 1, 8, 12, 8]
         w1 = param [3, 1, 3, 3, 3]
         w2 = param [6, 3, 3, 3, 3]
         w3 = param [2, 9, 1, 1, 1]
         a = conv(x, w1) pad=1
         r = relu(a)
         p = max_pool(r) kernel=2 stride=2
         b = conv(p, w2) pad=1
         q = relu(b)
         u = upsample(q) factor=2
         k = concat(r, u)
         y = conv(k, w3)",
    ),
];

fn each(mut check: impl FnMut(&Net, Strategy, u64)) {
    for (name, text) in NETS {
        let net = Net::parse("f64", text);
        for strategy in Strategy::ALL {
            for host_bytes in [0, AMPLE] {
                eprintln!("{name}, {strategy}, host {host_bytes}");
                check(&net, strategy, host_bytes);
            }
        }
    }
}

#[test]
fn the_smallest_cap_named_is_one_that_succeeds() {
    each(|net, strategy, host_bytes| {
        let tiny = Budget {
            device_bytes: 1,
            host_bytes,
            disk_bytes: 0,
        };
        let (smallest, forcing) = match net.plan(tiny, strategy) {
            Err(PlanError::Infeasible {
                smallest_bytes,
                forcing,
                ..
            }) => (smallest_bytes, forcing),
            Err(PlanError::HostTooSmall { .. }) if strategy == Strategy::OffloadAll => {
                assert_eq!(host_bytes, 0);
                return;
            }
            other => panic!("one byte gave {other:?}"),
        };
        assert!(!forcing.is_empty() && forcing.iter().all(|b| b.bytes <= smallest));
        let plan = net.plan(
            Budget {
                device_bytes: smallest,
                host_bytes,
                disk_bytes: 0,
            },
            strategy,
        );
        let plan = plan.unwrap_or_else(|e| panic!("{e}"));
        assert!(plan.predicted.peak_bytes <= smallest);
        // A byte less is too little, and the same cap is named again.
        match net.plan(
            Budget {
                device_bytes: smallest - 1,
                host_bytes,
                disk_bytes: 0,
            },
            strategy,
        ) {
            Err(e @ PlanError::Infeasible { smallest_bytes, .. }) => {
                assert_eq!(smallest_bytes, smallest);
                let text = e.to_string();
                assert!(text.contains(&smallest.to_string()), "{text}");
                assert!(text.contains(strategy.name()), "{text}");
            }
            Ok(plan) => panic!("{smallest} was said to be the least, but {} do", {
                plan.predicted.peak_bytes
            }),
            Err(e) => panic!("{e}"),
        }
    });
}

#[test]
fn nothing_fits_into_nothing() {
    let net = Net::parse("f32", NETS[0].1);
    for strategy in Strategy::ALL {
        let plan = net.plan(
            Budget {
                device_bytes: 0,
                host_bytes: AMPLE,
                disk_bytes: 0,
            },
            strategy,
        );
        assert!(matches!(plan, Err(PlanError::ZeroBudget)));
    }
}

#[test]
fn no_cap_above_the_smallest_fails_and_none_is_passed() {
    let values = |net: &Net| leaves::<f64>(&net.tape, 5);
    each(|net, strategy, host_bytes| {
        let Some(least) = net.least(host_bytes, strategy) else {
            return;
        };
        let values = values(net);
        let want = oracle(net, &values);
        let most = net.all_bytes();
        for k in 1..8 {
            let device_bytes = least + (most.saturating_sub(least)) * k * k / 64;
            let plan = net.plan(
                Budget {
                    device_bytes,
                    host_bytes,
                    disk_bytes: 0,
                },
                strategy,
            );
            let plan = plan.unwrap_or_else(|e| panic!("{device_bytes}: {e}"));
            assert_eq!(plan.budget.device_bytes, device_bytes);
            let (error, name) = worst(&execute_as_promised(plan, &values), &want);
            assert!(error <= 1e-12, "{name} differs by {error:e}");
        }
    });
}

#[test]
fn caps_below_the_largest_op_still_plan() {
    // One convolution's input and output together are 6.5 MiB.
    let net = Net::parse(
        "f32",
        "x = input [1, 8, 256, 256]
         w1 = param [16, 8, 3, 3]
         w2 = param [2, 16, 3, 3]
         a = conv(x, w1) pad=1
         b = relu(a)
         c = conv(b, w2) pad=1
         y = sum_map(c)",
    );
    for strategy in [
        Strategy::Optimal,
        Strategy::RecomputeAll,
        Strategy::Streaming,
    ] {
        let cap = Budget {
            device_bytes: 1 << 20,
            host_bytes: 0,
            disk_bytes: 0,
        };
        let plan = net.plan(cap, strategy).unwrap_or_else(|e| panic!("{e}"));
        assert!(plan.predicted.peak_bytes <= 1 << 20);
        assert!(plan.predicted.untiled_bytes > 6 << 20);
    }
}

#[test]
fn more_memory_is_never_slower() {
    for (name, text) in NETS {
        let net = Net::parse("f32", text);
        let least = net
            .least(AMPLE, Strategy::Optimal)
            .expect("the host is ample");
        let most = net.all_bytes();
        let mut before = f64::INFINITY;
        for k in 0..=8 {
            let device_bytes = least + most.saturating_sub(least) * k / 8;
            let budget = Budget {
                device_bytes,
                host_bytes: AMPLE,
                disk_bytes: 0,
            };
            let plan = net
                .plan(budget, Strategy::Optimal)
                .unwrap_or_else(|e| panic!("{e}"));
            let secs = plan.predicted.secs;
            // The solver stops within its gap of the best.
            assert!(
                secs <= before * (1.0 + plan.gap.max(0.03)),
                "{name} at {}: {secs} s after {before} s",
                ByteSize(device_bytes)
            );
            before = before.min(secs);
        }
    }
}

fn bytes_of(plan: &Plan) -> Vec<u8> {
    serde_json::to_vec(plan).expect("a plan is data")
}

#[test]
fn the_same_input_gives_the_same_plan_byte_for_byte() {
    for (_, text) in NETS {
        for strategy in Strategy::ALL {
            let net = Net::parse("f32", text);
            let again = Net::parse("f32", text);
            let least = net.least(AMPLE, strategy).expect("the host is ample");
            let budget = Budget {
                device_bytes: 2 * least,
                host_bytes: AMPLE,
                disk_bytes: 0,
            };
            let one = net.plan(budget, strategy).expect("a plan");
            let two = again.plan(budget, strategy).expect("a plan");
            assert!(bytes_of(&one) == bytes_of(&two), "{strategy}");
            let back: Plan = serde_json::from_slice(&bytes_of(&one)).expect("a plan");
            assert!(
                bytes_of(&back) == bytes_of(&one),
                "{strategy}: not read back as written"
            );
        }
    }
}

/// Hash maps are seeded per process: only another process can tell whether the
/// order of one shows in a plan.
#[test]
fn another_process_makes_the_same_plan() {
    let net = Net::parse("f32", NETS[1].1);
    let budget = Budget {
        device_bytes: 60_000,
        host_bytes: AMPLE,
        disk_bytes: 0,
    };
    let plan = plan(
        &net.tape,
        &net.spec,
        &Machine::cpu_default(),
        budget,
        Strategy::Optimal,
    );
    let text = String::from_utf8(bytes_of(&plan.expect("a plan"))).expect("JSON is text");
    if std::env::var_os("SSTEP_PRINT_PLAN").is_some() {
        println!("{text}");
        return;
    }
    let this = std::env::current_exe().expect("a test binary");
    let run = Command::new(this)
        .args([
            "--exact",
            "another_process_makes_the_same_plan",
            "--nocapture",
        ])
        .env("SSTEP_PRINT_PLAN", "1")
        .output()
        .expect("the test binary runs");
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(
        said.contains(&text),
        "the plan differs from process to process"
    );
}
