//! Every strategy × random network × random budget: the gradients are those of
//! the untiled run, and the measured peak ≤ the predicted peak ≤ the cap.

mod common;

use common::{NetSpec, build, cases, execute, leaves, net_specs, oracle, worst};
use proptest::prelude::*;
use sstep_autodiff::DType;
use sstep_kernels::Real;
use sstep_planner::{Budget, Machine, PlanError, Strategy as Planning, plan};

fn check<T: Real>(spec: &NetSpec, tolerance: f64, strategy: Planning, squeeze: f64, host: bool) {
    let net = build(spec, T::DTYPE, spec.seed % 4 == 0);
    let values = leaves::<T>(&net.tape, spec.seed);
    let want = oracle(&net, &values);
    let machine = Machine::cpu_default();
    let budget = |device_bytes| Budget { device_bytes, host_bytes: if host { 1 << 40 } else { 0 } };
    let go = |device| plan(&net.tape, &net.spec, &machine, budget(device), strategy);
    // Between the smallest cap found and what the whole would take.
    let least = match go(1) {
        Err(PlanError::Infeasible { smallest_bytes, .. }) => smallest_bytes,
        Err(PlanError::HostTooSmall { .. }) if !host => return,
        other => panic!("a cap of one byte gave {other:?}"),
    };
    let whole = match go(1 << 40) {
        Ok(p) => p.predicted.peak_bytes.max(least),
        Err(e) => panic!("a boundless cap gave {e}"),
    };
    let cap = least + ((whole - least) as f64 * squeeze) as u64;
    let plan = go(cap).unwrap_or_else(|e| panic!("{strategy} at {cap} (least {least}): {e}"));
    let predicted = plan.predicted;
    assert!(predicted.peak_bytes <= cap);
    let (got, measured) = execute(plan, &values);
    assert!(measured.peak_bytes <= predicted.peak_bytes);
    assert!(measured.host_peak_bytes <= predicted.host_peak_bytes);
    assert_eq!(measured.h2d_bytes, predicted.h2d_bytes);
    assert_eq!(measured.d2h_bytes, predicted.d2h_bytes);
    assert_eq!(measured.source_bytes, predicted.source_bytes);
    let (error, name) = worst(&got, &want);
    assert!(error <= tolerance, "{strategy} at {cap}: {name} differs by {error:e}");
}

fn settings() -> impl Strategy<Value = (Planning, f64, bool)> {
    let strategy = prop::sample::select(Planning::ALL.to_vec());
    (strategy, prop_oneof![Just(0.0), Just(1.0), 0.0..0.3f64, 0.0..1.0f64], any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(500), max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn plans_equal_the_untiled_run_in_f64(spec in net_specs(), (strategy, squeeze, host) in settings()) {
        check::<f64>(&spec, 1e-12, strategy, squeeze, host);
    }

    #[test]
    fn plans_equal_the_untiled_run_in_f32(spec in net_specs(), (strategy, squeeze, host) in settings()) {
        check::<f32>(&spec, 1e-5, strategy, squeeze, host);
    }
}
