//! Kernels replayed as CUDA graphs, on the driver's stand-in: the bits are those of kernels
//! given one by one, whatever changes between steps.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
mod cuda;

use common::nets::{NetSpec, build, net_specs};
use common::{AMPLE, Net, Tensors, config, leaves, ready_on};
use cuda::{alone, counted, driver, image, plan_of};
use proptest::prelude::*;
use sstep_autodiff::{DType, Tape};
use sstep_executor::cuda::Cuda;
use sstep_executor::{Executor, Feeds, StepHow};
use sstep_kernels::UpdateRule;
use sstep_planner::{Budget, Plan, Strategy as Planning};

const RULE: UpdateRule = UpdateRule::Adam {
    beta1: 0.9,
    beta2: 0.99,
    eps: 1e-8,
    weight_decay: 0.01,
};

fn on(plan: &Plan, graphs: bool, values: &Tensors<f64>) -> (Executor<f64>, Feeds<f64>) {
    driver();
    let bytes = plan.budget.device_bytes;
    let mut cuda = Cuda::<f64>::from_image(0, bytes, image::<f64>(false), false).unwrap();
    if !graphs {
        cuda = cuda.without_graphs();
    }
    ready_on(
        Executor::with_backend(plan.clone(), Box::new(cuda)).unwrap(),
        values,
    )
}

/// Steps with dropout, an update and a learning rate that changes; between some of them
/// all parameters are read, or one is set, as for a checkpoint. All outputs, then all
/// parameters, as bits.
fn trained(plan: &Plan, graphs: bool, values: &Tensors<f64>, n_steps: u64) -> Vec<Vec<u64>> {
    let (mut executor, feeds) = on(plan, graphs, values);
    let updates = !plan.program.updates.is_empty();
    let mut seen = Vec::new();
    for step in 0..n_steps {
        let how = StepHow {
            step,
            seed: 3,
            update: updates.then_some((RULE, 0.05 / (step + 1) as f64)),
        };
        let report = executor.step(&feeds, &how, &mut |_| {}).unwrap();
        seen.extend(report.outputs.into_values().map(|t| t.data));
        let names: Vec<String> = executor.params().into_iter().map(|p| p.0).collect();
        if step == 3 || step + 1 == n_steps {
            for name in &names {
                seen.push(executor.param(name).unwrap().data);
            }
        }
        if step == 4 {
            executor
                .set_param(&names[0], &values[&names[0]].data)
                .unwrap();
        }
    }
    let bits = |values: Vec<f64>| values.into_iter().map(f64::to_bits).collect();
    seen.into_iter().map(bits).collect()
}

/// A net that trains, with dropout, in a plan that moves maps to the host and back.
fn training() -> (Net, Plan) {
    let text = "tape v1 f64\nx = input [1, 2, 24, 8]\nlabels = input [1, 1]\n\
                w1 = param [4, 2, 3, 3]\ny1 = conv(x, w1) pad=1\nr1 = relu(y1)\n\
                d = dropout(r1) p=0.5\nw2 = param [4, 4, 3, 3]\ny2 = conv(d, w2) pad=1\n\
                r2 = relu(y2)\ng = sum_map(r2)\nf = param [3, 4]\nz = linear(g, f)\n\
                l = cross_entropy(z, labels)";
    let net = Net::training(Tape::parse(text).unwrap(), RULE.n_slots()).with_overlap();
    let least = net.least(AMPLE, Planning::OffloadAll).unwrap();
    let budget = Budget {
        device_bytes: least,
        host_bytes: AMPLE,
        disk_bytes: 0,
    };
    let plan = net.plan(budget, Planning::OffloadAll).unwrap();
    assert!(plan.predicted.h2d_bytes > 0);
    (net, plan)
}

/// Runs a test alone, with a fault of the stand-in.
fn passes_alone(name: &str, fault: &str) {
    let (passed, said) = alone(name, &[("SSTEP_ALONE", "1"), ("SSTEP_FAULT", fault)]);
    assert!(passed, "{fault}: {said}");
}

#[test]
fn steps_are_replayed_and_give_the_same_bits() {
    let name = "steps_are_replayed_and_give_the_same_bits";
    if std::env::var_os("SSTEP_ALONE").is_none() {
        passes_alone(name, "none");
        passes_alone(name, "a capture that fails");
        return;
    }
    let (net, plan) = training();
    let values = leaves::<f64>(&net.tape, 7);
    let launches = || counted(driver(), "standin_graph_launches");
    let want = trained(&plan, false, &values, 8);
    assert_eq!(launches(), 0);
    let got = trained(&plan, true, &values, 8);
    assert_eq!(got, want);
    match std::env::var("SSTEP_FAULT").unwrap().as_str() {
        // A library that cannot be captured is called as ever.
        "a capture that fails" => assert_eq!(launches(), 0),
        // In every step from the second on, whatever is read or set in between.
        _ => assert!(launches() >= 7, "{}", launches()),
    }
    assert_eq!(counted(driver(), "standin_live_graphs"), 0);
}

/// A wait that a replayed step needs and does not make is found, as in a given one.
#[test]
fn a_wait_around_a_graph_that_is_not_made_is_found() {
    let name = "a_wait_around_a_graph_that_is_not_made_is_found";
    if std::env::var_os("SSTEP_ALONE").is_none() {
        passes_alone(name, "none");
        return;
    }
    let (net, plan) = training();
    let values = leaves::<f64>(&net.tape, 7);
    // Another image in the step that counts, or what the step before has left in memory
    // would do as well where only its sign is asked for.
    let (_, other) = on(&plan, true, &leaves::<f64>(&net.tape, 8));
    // The outputs of the fifth step, which is replayed.
    let fifth = |dropped: usize, slow: usize| {
        let (mut executor, feeds) = on(&plan, true, &values);
        let mut outputs = Vec::new();
        for step in 0..5 {
            if step == 4 {
                // SAFETY: a function of the stand-in with these arguments.
                unsafe {
                    let drop = driver().get::<extern "C" fn(usize, usize)>(b"standin_drop_wait");
                    drop.unwrap()(dropped, slow);
                }
            }
            let how = StepHow {
                step,
                seed: 3,
                update: Some((RULE, 0.05)),
            };
            let feeds = if step == 4 { &other } else { &feeds };
            let report = executor.step(feeds, &how, &mut |_| {}).unwrap();
            outputs = report.outputs.into_values().map(|t| t.data).collect();
            let names: Vec<String> = executor.params().into_iter().map(|p| p.0).collect();
            if step == 4 {
                outputs.extend(names.iter().map(|n| executor.param(n).unwrap().data));
            }
        }
        let waits = counted(driver(), "standin_waits");
        let of = counted(driver(), "standin_dropped");
        (waits, (of / 3, of % 3), outputs)
    };
    let mut found = [[0; 3]; 3];
    for slow in [0, 1, 2] {
        let before = counted(driver(), "standin_graph_launches");
        let (waits, _, want) = fifth(0, slow);
        assert!(counted(driver(), "standin_graph_launches") >= before + 4);
        for k in 1..=waits {
            let (_, (who, for_whom), got) = fifth(k, slow);
            if who < 3 && for_whom == slow {
                assert!(
                    got != want,
                    "wait {k} of {who} for {for_whom} was not missed"
                );
                found[who][for_whom] += 1;
            }
        }
    }
    for (who, for_whom) in [(0, 1), (2, 0)] {
        assert!(found[who][for_whom] > 0, "{found:?}");
    }
}

fn same_bits(spec: &NetSpec, strategy: Planning, squeeze: f64, overlap: bool) {
    let mut net = build(spec, DType::F64, false);
    net.machine.copies_overlap = overlap;
    let values = leaves::<f64>(&net.tape, spec.seed);
    if let Some(plan) = plan_of(&net, strategy, squeeze, true) {
        let [given, replayed] = [false, true].map(|graphs| trained(&plan, graphs, &values, 4));
        assert_eq!(given, replayed);
    }
}

proptest! {
    #![proptest_config(config(10))]

    #[test]
    fn any_plan_gives_the_same_bits_replayed(
        spec in net_specs(),
        strategy in prop::sample::select(Planning::ALL.to_vec()),
        squeeze in prop_oneof![Just(0.0), 0.0..1.0f64],
        overlap in any::<bool>(),
    ) {
        same_bits(&spec, strategy, squeeze, overlap);
    }
}
