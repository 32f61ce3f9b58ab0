//! The verifier against damaged plans.
//!
//! Plans of random networks are damaged in all ways we can think of. A damage
//! that is known to be one, by its construction and by lifetimes that
//! [`common::events`] computes from the instructions alone, must be rejected
//! and the instruction be named. Of all others it is asked that whatever the
//! verifier accepts still computes the gradients, twice in a row; and nothing
//! may make it panic.

#[path = "../common/mod.rs"]
mod common;
mod damage;
mod homes;
mod memory;
mod stages;
mod staging;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::events::Events;
use common::nets::{build, net_specs};
use common::{HOW, Net, Rng, Tensors, config, leaves, oracle, ready, tiers, worst};
use damage::{Damage, MUTATIONS};
use proptest::prelude::*;
use sstep_autodiff::{DType, Op};
use sstep_executor::StepHow;
use sstep_kernels::UpdateRule;
use sstep_planner::{Plan, Strategy as Planning, verify};

/// Damaged plans per plan.
const MUTANTS: usize = 40;

/// Two steps; outputs of the second, and the parameters then.
fn two_steps(plan: Plan, values: &Tensors<f64>) -> Result<Tensors<f64>, String> {
    let slots = plan.program.state_slots;
    let trained: Vec<String> = (plan.program.updates.iter())
        .map(|u| plan.program.node(u.param).name.clone())
        .collect();
    let rule = if slots == 2 {
        UpdateRule::Adam {
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.0,
        }
    } else {
        UpdateRule::Sgd {
            momentum: 0.0,
            nesterov: false,
            weight_decay: 0.0,
        }
    };
    let how = StepHow {
        update: (!trained.is_empty()).then_some((rule, 0.0)),
        ..HOW
    };
    let (mut executor, feeds) = ready(plan, values);
    let mut outputs = Tensors::new();
    for _ in 0..2 {
        outputs = executor
            .step(&feeds, &how, &mut |_| {})
            .map_err(|e| e.to_string())?
            .outputs;
    }
    for name in trained {
        outputs.insert(
            format!("after/{name}"),
            executor.param(&name).map_err(|e| e.to_string())?,
        );
    }
    Ok(outputs)
}

/// Damages a plan many times and judges the verifier's verdicts.
fn check(plan: &Plan, values: &Tensors<f64>, want: &Tensors<f64>, seed: u64) {
    verify(plan).expect("a plan is valid before it is damaged");
    let events = Events::new(plan);
    let mut rng = Rng(seed);
    for _ in 0..MUTANTS {
        let mut mutant = plan.clone();
        let mutation = MUTATIONS[rng.below(MUTATIONS.len())];
        let Some(Damage { what, certain }) = mutation(&mut mutant, &events, &mut rng) else {
            continue;
        };
        let verdict = catch_unwind(AssertUnwindSafe(|| verify(&mutant)))
            .unwrap_or_else(|_| panic!("{what}: the verifier panicked"));
        match verdict {
            Err(violation) => assert!(!violation.instr.is_empty() && !violation.reason.is_empty()),
            Ok(()) if certain => panic!("{what}: accepted"),
            Ok(()) => {
                let got = catch_unwind(AssertUnwindSafe(|| two_steps(mutant, values)));
                match got.unwrap_or_else(|_| panic!("{what}: accepted, but the executor panicked"))
                {
                    Err(e) => panic!("{what}: accepted, but the executor says: {e}"),
                    Ok(got) => {
                        // A lost tile is off by far more than any rounding.
                        let (error, name) = worst(&got, want);
                        assert!(
                            error <= 1e-9,
                            "{what}: accepted, but {name} is off by {error:e}"
                        );
                    }
                }
            }
        }
    }
}

/// A net that also updates its parameters, for every other seed.
fn with_updates(mut net: Net, seed: u64) -> Net {
    if seed.is_multiple_of(2) {
        let leaf = |n: &str| net.tape.by_name(n.strip_prefix("grad/")?);
        let grads = net.spec.outputs.iter().filter_map(|&g| {
            let param = leaf(&net.tape.node(g).name)?;
            matches!(net.tape.node(param).op, Op::Param { .. }).then_some((param, g))
        });
        net.spec.updates = grads.collect();
        net.spec.state_slots = if seed.is_multiple_of(4) { 2 } else { 0 };
    }
    net
}

proptest! {
    #![proptest_config(config(50))]

    /// At least a thousand damaged plans: fifty networks, forty each, of which
    /// some have nothing to damage.
    #[test]
    fn damaged_plans_are_rejected_or_still_right(
        spec in net_specs(),
        strategy in prop::sample::select(Planning::ALL.to_vec()),
        tiers in tiers(),
        squeeze in prop_oneof![Just(0.0), 0.0..0.5f64],
        overlap in any::<bool>(),
    ) {
        let mut net = with_updates(build(&spec, DType::F64, spec.seed % 3 == 0), spec.seed);
        net.machine.copies_overlap = overlap;
        let beyond = tiers.budget(&net);
        if let Some(plan) = net.plan_beyond(beyond, strategy, squeeze) {
            let values = leaves::<f64>(&net.tape, spec.seed);
            let mut want = oracle(&net, &values);
            for (param, _) in &net.spec.updates {
                let name = &net.tape.node(*param).name;
                want.insert(format!("after/{name}"), values[name].clone());
            }
            check(&plan, &values, &want, spec.seed);
        }
    }
}
