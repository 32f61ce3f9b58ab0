//! Winograd's algorithm inside plans: tiles that are cut anywhere, kept in windows
//! or recomputed repeat the bits of the untiled run, so that masks (ReLU,
//! max-pool) agree and gradients equal those of the untiled plan.

mod common;

use common::{AMPLE, Net, differences, execute_as_promised, leaves, oracle};
use serde_json::Value;
use sstep_autodiff::{ConvAlgo, Op};
use sstep_planner::{Budget, Machine, Plan, PlanError, Strategy};

const FLAT: &str = "x = input [1, 3, 75, 66]\ns = param [32, 3, 3, 3]\nc = conv(x, s) pad=1\n\
    r = relu(c)\nw1 = param [32, 32, 3, 3]\nb1 = param [32]\na = conv(r, w1, b1) pad=1\nd = relu(a)\n\
    w2 = param [32, 32, 3, 3]\ne = conv(d, w2) pad=1\nf = add(e, r)\ng = relu(f)\n\
    p = max_pool(g) kernel=3 stride=2 pad=1\nw3 = param [48, 32, 3, 3]\nh = conv(p, w3) pad=1\n\
    i = relu(h)\nw4 = param [2, 48, 1, 1]\ny = conv(i, w4)";

const VOLUME: &str = "x = input [1, 1, 12, 26, 21]\ns = param [32, 1, 3, 3, 3]\nc = conv(x, s) pad=1\n\
    r = relu(c)\nw1 = param [32, 32, 3, 3, 3]\na = conv(r, w1) pad=1\nd = relu(a)\n\
    w2 = param [32, 32, 3, 3, 3]\ne = conv(d, w2) pad=1\nf = relu(e)\n\
    w3 = param [2, 32, 1, 1, 1]\ny = conv(f, w3)";

fn n_winograd(plan: &Plan) -> usize {
    let is = |op: &Op| match op {
        Op::Conv(a) | Op::ConvWeightGrad(a) => a.algo == ConvAlgo::Winograd,
        Op::ConvTranspose(a) => a.conv.algo == ConvAlgo::Winograd,
        _ => false,
    };
    plan.program.nodes.iter().filter(|n| is(&n.op)).count()
}

/// The built-in machine, but that Winograd's algorithm always wins on it.
fn machine() -> Machine {
    let mut profile: Value = serde_json::from_str(&Machine::default().to_json()).expect("JSON");
    let kernels = profile["kernels"].as_object_mut().expect("families");
    for (_, table) in (kernels.iter_mut()).filter(|(name, _)| name.starts_with("conv-winograd")) {
        let rows = table["per_sec"].as_array_mut().expect("rows");
        for rate in rows
            .iter_mut()
            .flat_map(|row| row.as_array_mut().expect("rates"))
        {
            *rate = (100.0 * rate.as_f64().expect("a rate")).into();
        }
    }
    Machine::from_json(&profile.to_string()).expect("a profile")
}

fn check(text: &str, convolutions: usize) {
    let mut net = Net::parse("f32", text);
    net.machine = machine();
    let values = leaves::<f32>(&net.tape, 5);
    let plan = |device_bytes, strategy| {
        let budget = Budget {
            device_bytes,
            host_bytes: AMPLE,
            disk_bytes: 0,
        };
        net.plan(budget, strategy)
    };
    let mut untiled = plan(AMPLE, Strategy::StoreAll).expect("a plan");
    untiled.budget.device_bytes = untiled.predicted.peak_bytes;
    // Forward, data and weight gradient of each.
    assert_eq!(n_winograd(&untiled), 3 * convolutions);
    let whole = untiled.predicted.peak_bytes;
    let want = execute_as_promised(untiled, &values);
    // A different algorithm than the reference's: only about the same. A mask
    // may turn where a value is within rounding of zero.
    for (name, e) in differences(&want, &oracle(&net, &values)) {
        assert!(e <= 1e-3, "{name} differs from a direct run by {e:e}");
    }
    let mut tiled = 0;
    let parts = [2, 3, 4, 6, 8];
    let strategies = [Strategy::Optimal, Strategy::Streaming, Strategy::OffloadAll];
    for (part, strategy) in parts.into_iter().flat_map(|p| strategies.map(|s| (p, s))) {
        let plan = match plan(whole / part, strategy) {
            Err(PlanError::Infeasible { .. }) => continue,
            plan => plan.expect("a plan"),
        };
        // Under the smallest caps some or all are direct sums.
        if n_winograd(&plan) < 3 * convolutions {
            for (name, e) in differences(&execute_as_promised(plan, &values), &want) {
                assert!(
                    e <= 1e-3,
                    "{name} of a mixed plan differs by {e:e} at 1/{part}"
                );
            }
            continue;
        }
        tiled += usize::from(plan.stages.iter().any(|s| s.n_tiles() > 1));
        for (name, e) in differences(&execute_as_promised(plan, &values), &want) {
            assert!(e <= 1e-5, "{name} differs by {e:e} at 1/{part}");
        }
    }
    assert!(tiled > 0, "some plan cuts the maps");
}

#[test]
fn tiled_gradients_equal_untiled_ones_in_two_dimensions() {
    check(FLAT, 3);
}

#[test]
fn tiled_gradients_equal_untiled_ones_in_three_dimensions() {
    check(VOLUME, 2);
}
