//! Whole plans through the CUDA backend, without a GPU.
//!
//! The backend's own code runs unchanged against a stand-in for the driver's
//! library (`tests/cuda/driver.cpp`), and the kernels' own text, compiled as C++,
//! runs on it: threads of a block as fibers in shuffled order, shared memory
//! poisoned, every access checked against its view. Launch arguments, windows,
//! arena offsets, copies and kernels are thus held against the untiled reference.
//! What is given to streams is done as late as possible and in a random order, so
//! that a wait that is missing shows.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
mod cuda;

use common::narrow::{judge, of_spec};
use common::nets::{NetSpec, build, net_specs};
use common::{AMPLE, Tensors, cast, config, differences, leaves, oracle, ready_on, roundings};
use cuda::{
    BYTES_OUT_OF_ORDER, FAULTS, OUT_OF_BOUNDS, TURNED_TOO_SOON, alone, execute, on_cuda,
    plan_beyond, plan_of,
};
use proptest::prelude::*;
use sstep_autodiff::DType;
use sstep_executor::cuda::Cuda;
use sstep_executor::{Backend, Cpu, Executor, Scaled, StepHow};
use sstep_kernels::{Real, UpdateRule};
use sstep_planner::{Budget, Strategy as Planning};

/// These tests can fail: the same net with a fault in a kernel
/// fails, without one it does not.
#[test]
fn a_fault_in_a_kernel_is_found() {
    if std::env::var_os("SSTEP_FAULT").is_some() {
        let net = common::Net::parse(
            "f64",
            "x = input [1, 2, 48, 12]\nw1 = param [3, 2, 3, 3]\ny1 = conv(x, w1) pad=1\n\
             r1 = relu(y1)\np = max_pool(r1) kernel=2\nw2 = param [3, 3, 3, 3]\n\
             y2 = conv(p, w2) pad=1",
        );
        let values = leaves::<f64>(&net.tape, 3);
        // Tiles of a few positions, which slide, and larger ones.
        for squeeze in [0.0, 0.2, 1.0] {
            let plan = plan_of(&net, Planning::Optimal, squeeze, true).expect("a plan");
            let apart = differences(&execute(plan, &values, false), &oracle(&net, &values));
            assert!(apart.values().all(|&e| e <= 1e-12), "{apart:?}");
        }
        return;
    }
    let run = |fault| alone("a_fault_in_a_kernel_is_found", &[("SSTEP_FAULT", fault)]);
    let (sound, said) = run("none");
    assert!(sound, "{said}");
    let of_kernels = FAULTS.iter().map(|f| f.0);
    // Others have tests of their own.
    let of_kernels =
        of_kernels.filter(|f| ![OUT_OF_BOUNDS, BYTES_OUT_OF_ORDER, TURNED_TOO_SOON].contains(f));
    // The last is one of the driver's.
    for fault in of_kernels.chain(["waits of kernels that are not made"]) {
        let (passed, _) = run(fault);
        assert!(!passed, "{fault} was not found");
    }
}

#[derive(Clone, Copy, Debug)]
struct Setting {
    strategy: Planning,
    squeeze: f64,
    /// Bytes of host memory and of disk.
    beyond: [u64; 2],
    /// Tiles are fetched ahead.
    overlap: bool,
    libraries: bool,
}

fn settings() -> impl Strategy<Value = Setting> {
    let strategy = prop::sample::select(Planning::ALL.to_vec());
    let squeeze = prop_oneof![1 => Just(0.0), 2 => 0.0..1.0f64];
    // Little host memory has some tensors there and others on disk.
    let beyond = prop::sample::select(vec![[0, 0], [AMPLE, 0], [0, AMPLE], [4096, AMPLE]]);
    (strategy, squeeze, beyond, any::<[bool; 2]>()).prop_map(
        |(strategy, squeeze, beyond, which)| {
            let [overlap, libraries] = which;
            Setting {
                strategy,
                squeeze,
                beyond,
                overlap,
                libraries,
            }
        },
    )
}

fn check<T: Real>(spec: &NetSpec, setting: &Setting, accuracy: f64) {
    let mut net = build(spec, T::DTYPE, spec.seed.is_multiple_of(4));
    net.machine.copies_overlap = setting.overlap;
    let values = leaves::<T>(&net.tape, spec.seed);
    let Some(plan) = plan_beyond(&net, setting.strategy, setting.squeeze, setting.beyond) else {
        return;
    };
    let (got, want) = (
        execute(plan, &values, setting.libraries),
        oracle(&net, &values),
    );
    let roundings = roundings(&want);
    let mut apart = differences(&got, &want);
    apart.retain(|name, e| *e > accuracy.max(roundings[name]));
    if apart.is_empty() {
        return;
    }
    // What rounding alone moves that far from the truth, a plan may as well.
    let exact = oracle(
        &build(spec, DType::F64, spec.seed.is_multiple_of(4)),
        &cast::<T, f64>(&values),
    );
    let (ours, untiled) = (differences(&got, &exact), differences(&want, &exact));
    for (name, e) in apart {
        let (ours, untiled) = (ours[&name], untiled[&name]);
        assert!(
            ours <= accuracy || e <= 4.0 * untiled,
            "{name} differs by {e:e}; from f64, CUDA {ours:e}, untiled {untiled:e}"
        );
    }
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn plans_on_cuda_equal_the_untiled_run_in_f64(spec in net_specs(), setting in settings()) {
        check::<f64>(&spec, &setting, 1e-12);
    }

    #[test]
    fn plans_on_cuda_equal_the_untiled_run_in_f32(spec in net_specs(), setting in settings()) {
        check::<f32>(&spec, &setting, 1e-5);
    }
}

/// The same with maps stored in 16 bits.
fn check_narrow(spec: &NetSpec, setting: &Setting, to: DType) {
    let mut net = of_spec(spec, to);
    net.machine.copies_overlap = setting.overlap;
    let values = leaves::<f32>(&net.tape, spec.seed);
    let Some(plan) = plan_beyond(&net, setting.strategy, setting.squeeze, setting.beyond) else {
        return;
    };
    let got = execute(plan, &values, setting.libraries);
    judge(spec, &net, &values, &got, to);
}

proptest! {
    #![proptest_config(config(24))]

    #[test]
    fn narrow_plans_on_cuda_equal_the_untiled_run(
        spec in net_specs(), setting in settings(), brain in any::<bool>(),
    ) {
        check_narrow(&spec, &setting, if brain { DType::Bf16 } else { DType::F16 });
    }
}

/// Rounding is the CPU's, bit for bit: a network that only stores and moves.
#[test]
fn elements_are_rounded_as_on_the_cpu() {
    for to in ["bf16", "f16"] {
        let text = format!(
            "tape v1 f32\nx = input [1, 2, 16, 64]\nh = cast(x) to={to}\n\
             m = max_pool(h) kernel=2 stride=2\ny = cast(m) to=f32\noutput y"
        );
        let tape = sstep_autodiff::Tape::parse(&text).unwrap();
        let spec = sstep_planner::StepSpec {
            outputs: tape.outputs().to_vec(),
            ..sstep_planner::StepSpec::default()
        };
        let net = common::Net {
            loss: tape.outputs()[0],
            tape,
            spec,
            machine: sstep_planner::Machine::cpu_default(),
        };
        let mut values = leaves::<f32>(&net.tape, 9);
        // From the least that is not rounded to nothing to what is beyond all range.
        let image = values.get_mut("x").unwrap();
        for (i, x) in image.data.iter_mut().enumerate() {
            *x *= 2f32.powi(i as i32 % 150 - 75);
        }
        let budget = Budget {
            device_bytes: 1 << 20,
            host_bytes: 0,
            disk_bytes: 0,
        };
        let plan = net.plan(budget, Planning::Optimal).unwrap();
        let got = execute(plan, &values, false);
        assert_eq!(got, oracle(&net, &values), "{to}");
    }
}

/// A device whose kernels were made for single precision alone says so.
#[test]
fn a_plan_that_stores_otherwise_is_refused() {
    let net = of_spec(
        &NetSpec {
            batch: 1,
            channels: 1,
            spatial: vec![8, 8],
            layers: vec![],
            head: 0,
            seed: 0,
        },
        DType::Bf16,
    );
    let plan = plan_of(&net, Planning::Optimal, 1.0, true).unwrap();
    cuda::driver();
    let image = cuda::image::<f32>(false);
    let cuda = Cuda::<f32>::from_image(0, plan.budget.device_bytes, image, false).unwrap();
    let said = Executor::with_backend(plan, Box::new(cuda)).err().unwrap();
    assert!(said.to_string().contains("bf16"), "{said}");
}

/// Three steps of every rule move the parameters as the CPU moves them.
#[test]
fn optimisers_move_parameters_as_on_the_cpu() {
    let text = "x = input [2, 3, 8, 9]\nlabels = input [2, 1]\nw = param [4, 3, 3, 3]\n\
                y = conv(x, w) pad=1\nr = relu(y)\ng = sum_map(r)\nf = param [3, 4]\n\
                z = linear(g, f)\nl = cross_entropy(z, labels)";
    let rules = [
        (0.0, false, None),
        (0.9, false, None),
        (0.9, true, None),
        (0.0, false, Some(false)),
        (0.0, false, Some(true)),
    ]
    .map(|(momentum, nesterov, adam)| match adam {
        None => UpdateRule::Sgd {
            momentum,
            nesterov,
            weight_decay: 0.01,
        },
        Some(false) => UpdateRule::Adam {
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.01,
        },
        Some(true) => UpdateRule::AdamW {
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.01,
        },
    });
    for rule in rules {
        let tape = sstep_autodiff::Tape::parse(&format!("tape v1 f64\n{text}")).unwrap();
        let net = common::Net::training(tape, rule.n_slots());
        let values = leaves::<f64>(&net.tape, 5);
        let budget = Budget {
            device_bytes: net.all_bytes() * 2,
            host_bytes: 0,
            disk_bytes: 0,
        };
        let plan = net.plan(budget, Planning::Optimal).unwrap();
        let cpu: Box<dyn Backend<f64> + Send> =
            Box::new(Cpu::new(plan.budget.device_bytes).unwrap());
        let cpu = Executor::with_backend(plan.clone(), cpu).unwrap();
        let ran = [cpu, on_cuda(plan, false)].map(|executor| {
            let (mut executor, feeds) = ready_on(executor, &values);
            for step in 0..3 {
                let how = StepHow {
                    step,
                    seed: 1,
                    update: Some((rule, 0.05)),
                    // As after an overflow in the first step, of four times the loss.
                    scaled: (step > 1).then_some(Scaled {
                        by: 4.0,
                        n_skipped: 1,
                    }),
                };
                executor.step(&feeds, &how, &mut |_| {}).unwrap();
            }
            let names: Vec<String> = executor.params().into_iter().map(|p| p.0).collect();
            names
                .into_iter()
                .map(|n| (n.clone(), executor.param(&n).unwrap()))
                .collect::<Tensors<f64>>()
        });
        for (name, e) in differences(&ran[1], &ran[0]) {
            assert!(e <= 1e-12, "{rule:?}: {name} differs by {e:e}");
        }
        let moved = differences(
            &ran[0],
            &ran[0]
                .keys()
                .map(|n| (n.clone(), values[n].clone()))
                .collect::<Tensors<f64>>(),
        );
        assert!(moved.values().all(|&e| e > 1e-6), "{rule:?}: {moved:?}");
    }
}

/// A gradient that is not finite leaves all parameters and state as they are.
#[test]
fn an_overflow_skips_the_update() {
    let text = "x = input [1, 2, 8, 9]\nw = param [4, 2, 3, 3]\nv = param [4, 4, 1, 1]\n\
                y = conv(x, w) pad=1\nz = conv(y, v)\ns = sum_map(z)\nt = input [1, 4]\n\
                l = mse(s, t)";
    let tape = sstep_autodiff::Tape::parse(&format!("tape v1 f32\n{text}")).unwrap();
    let rule = sstep_kernels::UpdateRule::Sgd {
        momentum: 0.9,
        nesterov: false,
        weight_decay: 0.1,
    };
    let net = common::Net::training(tape, rule.n_slots());
    // Without scratch to count in, and with.
    for (more, value) in [
        (0, 1.0),
        (0, f32::NAN),
        (1 << 20, 1.0),
        (1 << 20, f32::INFINITY),
        (1 << 20, f32::NAN),
    ] {
        let budget = Budget {
            device_bytes: net.all_bytes() * 2 + more,
            host_bytes: 0,
            disk_bytes: 0,
        };
        let mut values = leaves::<f32>(&net.tape, 5);
        values.get_mut("x").unwrap().data[20] = value;
        let plan = net.plan(budget, Planning::Optimal).unwrap();
        let scratch = plan.workspace.map_or(0, |b| plan.buffer(b).bytes);
        assert_eq!(scratch >= 8 << 10, more > 0);
        let (mut executor, feeds) = ready_on(on_cuda::<f32>(plan, false), &values);
        let how = StepHow {
            update: Some((rule, 0.05)),
            scaled: Some(Scaled {
                by: 1.0,
                n_skipped: 0,
            }),
            ..StepHow::default()
        };
        let report = executor.step(&feeds, &how, &mut |_| {}).unwrap();
        let is_finite = value == 1.0;
        assert_eq!(report.measured.update_skipped, !is_finite);
        for name in ["w", "v"] {
            let kept = executor.param(name).unwrap().data == values[name].data;
            assert_eq!(kept, !is_finite, "{name} with {value}");
        }
        let state = executor.optimiser_state().unwrap();
        assert!(
            state
                .iter()
                .all(|(_, _, t)| t.data.iter().all(|x| *x == 0.0) != is_finite)
        );
    }
}
