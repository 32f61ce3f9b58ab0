//! Every strategy × random network × random budget: the gradients are those of
//! the untiled run, and the measured peak ≤ the predicted peak ≤ the cap.

mod common;

use common::nets::{NetSpec, build, net_specs};
use common::{AMPLE, Tensors, cases, cast, differences, execute_as_promised, leaves, oracle};
use proptest::prelude::*;
use sstep_autodiff::DType;
use sstep_kernels::Real;
use sstep_planner::{Budget, PlanError, Strategy as Planning};

/// How a case is planned.
#[derive(Clone, Debug)]
struct Setting {
    strategy: Planning,
    /// Cap, from the least (0) to ample memory (1).
    squeeze: f64,
    /// Whether maps may go to the host.
    host: bool,
}

fn settings() -> impl Strategy<Value = Setting> {
    let strategy = prop::sample::select(Planning::ALL.to_vec());
    // Most differences between strategies lie near the smallest cap.
    let squeeze = prop_oneof![2 => Just(0.0), 1 => Just(1.0), 3 => 0.0..0.3f64, 2 => 0.0..1.0f64];
    (strategy, squeeze, any::<bool>()).prop_map(|(strategy, squeeze, host)| Setting {
        strategy,
        squeeze,
        host,
    })
}

/// Plans and runs a case; `judge` gets the plan's outputs and the reference's.
fn check<T: Real>(
    spec: &NetSpec,
    setting: &Setting,
    judge: impl Fn(&Tensors<T>, &Tensors<T>, &dyn Fn() -> Tensors<f64>),
) {
    let &Setting {
        strategy,
        squeeze,
        host,
    } = setting;
    let net = build(spec, T::DTYPE, spec.seed.is_multiple_of(4));
    let values = leaves::<T>(&net.tape, spec.seed);
    let host_bytes = if host { AMPLE } else { 0 };
    let device_bytes = if squeeze == 1.0 {
        AMPLE
    } else {
        let Some(least) = net.least(host_bytes, strategy) else {
            return;
        };
        least + (net.all_bytes().saturating_sub(least) as f64 * squeeze) as u64
    };
    let plan = match net.plan(
        Budget {
            device_bytes,
            host_bytes,
        },
        strategy,
    ) {
        Ok(plan) => plan,
        Err(PlanError::HostTooSmall { .. }) if !host => return,
        Err(e) => panic!("{strategy} at {device_bytes}: {e}"),
    };
    // The smallest caps are smaller than any kernel needs; no arena of 1 TiB.
    let plan = if squeeze == 1.0 {
        let mut plan = plan;
        plan.budget.device_bytes = plan.predicted.peak_bytes;
        plan
    } else {
        plan
    };
    let got = execute_as_promised(plan, &values);
    let exact = || {
        let net = build(spec, DType::F64, spec.seed.is_multiple_of(4));
        oracle(&net, &cast::<T, f64>(&values))
    };
    judge(&got, &oracle(&net, &values), &exact);
}

fn check_f64(spec: &NetSpec, setting: &Setting) {
    check::<f64>(spec, setting, |got, want, _| {
        for (name, error) in differences(got, want) {
            assert!(error <= 1e-12, "{name} differs by {error:e}");
        }
    });
}

fn check_f32(spec: &NetSpec, setting: &Setting) {
    check::<f32>(spec, setting, |got, want, exact| {
        let apart = differences(got, want);
        if apart.values().all(|&e| e <= 1e-5) {
            return;
        }
        let exact = exact();
        let (plan, untiled) = (differences(got, &exact), differences(want, &exact));
        for (name, e) in apart {
            let (plan, untiled) = (plan[&name], untiled[&name]);
            eprintln!("{name}: apart {e:.2e}, plan {plan:.2e}, untiled {untiled:.2e}");
            assert!(e <= 1e-5f64.max(4.0 * untiled), "{name} differs by {e:e}");
        }
    });
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(500),
        max_shrink_iters: 400,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn plans_equal_the_untiled_run_in_f64(spec in net_specs(), setting in settings()) {
        check_f64(&spec, &setting);
    }

    #[test]
    fn plans_equal_the_untiled_run_in_f32(spec in net_specs(), setting in settings()) {
        check_f32(&spec, &setting);
    }
}
