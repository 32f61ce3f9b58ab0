//! Kernels replayed as CUDA graphs, on the driver's stand-in: the bits are those of kernels
//! given one by one, whatever changes between steps.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
mod cuda;

use common::nets::{NetSpec, build, net_specs};
use common::{AMPLE, Net, Tensors, config, leaves, ready_on};
use cuda::{alone, counted, driver, drop_wait, image, plan_of, wait_of};
use proptest::prelude::*;
use sstep_autodiff::{DType, Tape};
use sstep_executor::cuda::Cuda;
use sstep_executor::{Executor, Feeds, StepHow, Tensor};
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
    if graphs {
        cuda = cuda.with_graphs();
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
            scaled: None,
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

/// Every element of every map counts, by its value: behind a ReLU a tile may be all zeros,
/// whatever it was copied from.
const TEXT: &str = "x = input [1, 2, 24, 8]
    labels = input [1, 1]
    w1 = param [4, 2, 3, 3]
    y1 = conv(x, w1) pad=1
    r1 = gelu(y1)
    d = dropout(r1) p=0.125
    w2 = param [4, 4, 3, 3]
    y2 = conv(d, w2) pad=1
    r2 = gelu(y2)
    g = sum_map(r2)
    f = param [3, 4]
    z = linear(g, f)
    l = cross_entropy(z, labels)";

/// A net that trains, with dropout, in a plan that moves maps to the host and back.
fn training() -> (Net, Plan) {
    let tape = Tape::parse(&format!("tape v1 f64\n{TEXT}")).unwrap();
    let net = Net::training(tape, RULE.n_slots()).with_overlap();
    let plan = moving(&net);
    (net, plan)
}

/// The same net asked for gradients, which no step passes on to the next.
fn differentiating() -> (Net, Plan) {
    let net = Net::parse("f64", TEXT).with_overlap();
    let plan = moving(&net);
    (net, plan)
}

/// Under little memory, with all maps on the host.
fn moving(net: &Net) -> Plan {
    let least = net.least(AMPLE, Planning::OffloadAll).unwrap();
    let budget = Budget {
        // Of the least, tiles are so small that dropout may drop all of one.
        device_bytes: least * 3,
        host_bytes: AMPLE,
        disk_bytes: 0,
    };
    let plan = net.plan(budget, Planning::OffloadAll).unwrap();
    assert!(plan.predicted.h2d_bytes > 0);
    plan
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
    assert_eq!(launches(), 0, "graphs are made only if they are asked for");
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
    let (net, plan) = differentiating();
    let values = leaves::<f64>(&net.tape, 7);
    let (mut executor, feeds) = on(&plan, true, &values);
    // Another image in the steps that count, or what the step before has left in memory
    // would do as well where only its sign is asked for.
    let (_, other) = on(&plan, true, &leaves::<f64>(&net.tape, 8));
    // Gradients alone: whatever a step has spoilt, the next does not see.
    let how = StepHow {
        seed: 3,
        ..StepHow::default()
    };
    let mut step = |feeds: &Feeds<f64>| {
        let report = executor.step(feeds, &how, &mut |_| {}).unwrap();
        let bits = |t: Tensor<f64>| t.data.into_iter().map(f64::to_bits).collect::<Vec<_>>();
        report.outputs.into_values().map(bits).collect::<Vec<_>>()
    };
    let launches = || counted(driver(), "standin_graph_launches");
    for _ in 0..3 {
        step(&feeds);
    }
    let mut found = [[0; 3]; 3];
    for slow in [0, 1, 2] {
        step(&feeds);
        let before = launches();
        drop_wait(0, slow);
        let want = step(&other);
        assert!(launches() > before);
        let waits: Vec<_> = (1..=counted(driver(), "standin_waits"))
            .map(wait_of)
            .collect();
        for (at, &(who, for_whom)) in waits.iter().enumerate().filter(|w| w.1.1 == slow) {
            drop_wait(0, slow);
            step(&feeds);
            drop_wait(at + 1, slow);
            let got = step(&other);
            assert_eq!(wait_of(at + 1), (who, for_whom));
            assert!(
                got != want,
                "wait {} of {who} for {for_whom} was not missed",
                at + 1
            );
            found[who][for_whom] += 1;
        }
    }
    for (who, for_whom) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0)] {
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
