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

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use common::nets::{NetSpec, build, net_specs};
use common::{AMPLE, HOW, Tensors, cast, config, differences, leaves, oracle, ready_on, roundings};
use proptest::prelude::*;
use sstep_autodiff::DType;
use sstep_executor::cuda::{Cuda, Image};
use sstep_executor::{Backend, Cpu, Executor, StepHow};
use sstep_kernels::{Real, UpdateRule};
use sstep_planner::{Budget, Plan, PlanError, Strategy as Planning};

/// Compiles C++ to a shared library in the folder of the tests' temporary files.
fn library(name: &str, text: &str, soname: Option<&str>) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda");
    std::fs::create_dir_all(&dir).unwrap();
    let aside = std::process::id();
    let (source, made) = (
        dir.join(format!("{name}.{aside}.cpp")),
        dir.join(format!("{name}.{aside}.so")),
    );
    std::fs::write(&source, text).unwrap();
    let mut compiler = Command::new(std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned()));
    compiler.args(["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC"]);
    if let Some(soname) = soname {
        compiler.arg(format!("-Wl,-soname,{soname}"));
    }
    let done = compiler
        .arg(&source)
        .arg("-o")
        .arg(&made)
        .arg("-ldl")
        .output();
    let done = done.expect("a C++ compiler, as the build needs one");
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{}: {errors}", source.display());
    made
}

/// The stand-in, where the backend looks for the driver: a library of that name
/// is in the process already.
fn driver() -> &'static libloading::os::unix::Library {
    static DRIVER: OnceLock<libloading::os::unix::Library> = OnceLock::new();
    DRIVER.get_or_init(|| {
        let text = include_str!("cuda/driver.cpp");
        // Not libcuda.so.1: NVRTC loads that by itself.
        let made = library("driver", text, Some("libcuda64_13.so"));
        let flags = libloading::os::unix::RTLD_NOW | libloading::os::unix::RTLD_GLOBAL;
        // SAFETY: the library's start does nothing.
        unsafe { libloading::os::unix::Library::open(Some(made), flags) }.unwrap()
    })
}

/// A number that the stand-in counts.
fn counted(name: &str) -> usize {
    // SAFETY: both counters are functions without arguments.
    unsafe {
        let f = driver().get::<extern "C" fn() -> usize>(name.as_bytes());
        f.unwrap()()
    }
}

/// The kernels for `T` as a library for the CPU, named by an image.
fn image<T: Real>() -> Image {
    static IMAGES: [OnceLock<PathBuf>; 2] = [const { OnceLock::new() }; 2];
    let (which, name) = match T::DTYPE {
        DType::F32 => (0, "f32"),
        DType::F64 => (1, "f64"),
    };
    let made = IMAGES[which].get_or_init(|| {
        let kernels = with_fault(sstep_kernels::cuda::source(T::DTYPE));
        let (before, after) = (include_str!("cuda/before.h"), include_str!("cuda/after.h"));
        let made = library(name, &format!("{before}\n{kernels}\n{after}"), None);
        // SAFETY: a function without arguments of a library whose start does nothing.
        let bytes = unsafe {
            let library = libloading::Library::new(&made).unwrap();
            let f = library.get::<extern "C" fn() -> usize>(b"sstep_args_bytes");
            f.unwrap()()
        };
        assert_eq!(bytes, size_of::<sstep_kernels::cuda::Args>());
        made
    });
    Image::from_ptx(&format!("// host module {}", made.display()))
}

/// Faults to put into the kernels: what is replaced, and by what.
const FAULTS: [(&str, &str, &str); 4] = [
    (
        "a barrier of a sum",
        "sums[threadIdx.x + half];\n        __syncthreads();",
        "sums[threadIdx.x + half];",
    ),
    (
        "the barrier of a slide",
        "c, p.d, p.h, p.w);\n            __syncthreads();",
        "c, p.d, p.h, p.w);",
    ),
    ("a border of a convolution", "row && col >= 0 &&", "row &&"),
    (
        "a barrier that some threads miss",
        "if (threadIdx.x == 0) {\n            if (a.state) a.state[e] += sum;",
        "if (threadIdx.x == 0) {\n            __syncthreads();\n            if (a.state) a.state[e] += sum;",
    ),
];

/// Puts the fault in that this process is asked to have.
fn with_fault(kernels: String) -> String {
    let Ok(asked) = std::env::var("SSTEP_FAULT") else {
        return kernels;
    };
    let Some((_, sound, faulty)) = FAULTS.iter().find(|f| f.0 == asked) else {
        return kernels;
    };
    assert!(
        kernels.contains(sound),
        "`{asked}` is not in the kernels any more"
    );
    kernels.replace(sound, faulty)
}

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
            let apart = differences(&execute(plan, &values), &oracle(&net, &values));
            assert!(apart.values().all(|&e| e <= 1e-12), "{apart:?}");
        }
        return;
    }
    let run = |fault: &str| {
        let done = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "a_fault_in_a_kernel_is_found"])
            .env("SSTEP_FAULT", fault)
            .output()
            .unwrap();
        let said = [done.stdout, done.stderr].concat();
        (
            done.status.success(),
            String::from_utf8_lossy(&said).into_owned(),
        )
    };
    let (sound, said) = run("none");
    assert!(sound, "{said}");
    let of_kernels = FAULTS.iter().map(|f| f.0);
    // The last is one of the stand-in's.
    for fault in of_kernels.chain(["waits that are not made"]) {
        let (passed, _) = run(fault);
        assert!(!passed, "{fault} was not found");
    }
}

/// A plan's executor on the stand-in.
fn on_cuda<T: Real>(plan: Plan) -> Executor<T> {
    driver();
    let bytes = plan.budget.device_bytes;
    let cuda = Cuda::<T>::from_image(0, bytes, image::<T>()).expect("the stand-in");
    Executor::with_backend(plan, Box::new(cuda)).expect("an executor")
}

/// Carries a plan out and holds what it took against what was promised.
fn execute<T: Real>(plan: Plan, leaves: &Tensors<T>) -> Tensors<T> {
    let promised = plan.predicted;
    let (mut executor, feeds) = ready_on(on_cuda::<T>(plan), leaves);
    let report = executor.step(&feeds, &HOW, &mut |_| {}).expect("a step");
    assert!(report.measured.peak_bytes <= promised.peak_bytes);
    assert_eq!(report.measured.h2d_bytes, promised.h2d_bytes);
    assert_eq!(report.measured.d2h_bytes, promised.d2h_bytes);
    report.outputs
}

/// A net's plan under a cap between the least and all that can be used; `None`
/// where the strategy has none.
fn plan_of(net: &common::Net, strategy: Planning, squeeze: f64, host: bool) -> Option<Plan> {
    let host_bytes = if host { AMPLE } else { 0 };
    let least = net.least(host_bytes, strategy)?;
    let device_bytes = least + (net.all_bytes().saturating_sub(least) as f64 * squeeze) as u64;
    let budget = Budget {
        device_bytes,
        host_bytes,
        disk_bytes: 0,
    };
    match net.plan(budget, strategy) {
        Ok(plan) => Some(plan),
        Err(PlanError::HostTooSmall { .. }) if !host => None,
        Err(e) => panic!("{strategy} at {device_bytes}: {e}"),
    }
}

#[derive(Clone, Copy, Debug)]
struct Setting {
    strategy: Planning,
    squeeze: f64,
    host: bool,
}

fn settings() -> impl Strategy<Value = Setting> {
    let strategy = prop::sample::select(Planning::ALL.to_vec());
    let squeeze = prop_oneof![1 => Just(0.0), 2 => 0.0..1.0f64];
    (strategy, squeeze, any::<bool>()).prop_map(|(strategy, squeeze, host)| Setting {
        strategy,
        squeeze,
        host,
    })
}

fn check<T: Real>(spec: &NetSpec, setting: &Setting, accuracy: f64) {
    let net = build(spec, T::DTYPE, spec.seed.is_multiple_of(4));
    let values = leaves::<T>(&net.tape, spec.seed);
    let Some(plan) = plan_of(&net, setting.strategy, setting.squeeze, setting.host) else {
        return;
    };
    let (got, want) = (execute(plan, &values), oracle(&net, &values));
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
    #![proptest_config(config(40))]

    #[test]
    fn plans_on_cuda_equal_the_untiled_run_in_f64(spec in net_specs(), setting in settings()) {
        check::<f64>(&spec, &setting, 1e-12);
    }

    #[test]
    fn plans_on_cuda_equal_the_untiled_run_in_f32(spec in net_specs(), setting in settings()) {
        check::<f32>(&spec, &setting, 1e-5);
    }
}

/// Runs a test in a process of its own: the stand-in's clock and counters are one per
/// process. `None` in the process that started it.
fn alone(test: &str) -> Option<()> {
    driver();
    if std::env::var_os("SSTEP_ALONE").is_some() {
        return Some(());
    }
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env("SSTEP_ALONE", "1")
        .output()
        .unwrap();
    let said = [done.stdout, done.stderr].concat();
    let said = String::from_utf8_lossy(&said);
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    None
}

/// Maps that go to the host, tile by tile, and come back.
fn ahead(rows: usize) -> (common::Net, Plan) {
    let text = format!(
        "x = input [1, 2, {rows}, 32]
         w1 = param [6, 2, 3, 3]
         g1 = param [6]
         b1 = param [6]
         w2 = param [6, 6, 3, 3]
         g2 = param [6]
         b2 = param [6]
         c1 = conv(x, w1) pad=1
         m1 = moments(c1) groups=2
         n1 = normalise(c1, m1, g1, b1) groups=2 eps=1e-5
         r1 = relu(n1)
         c2 = conv(r1, w2) pad=1
         m2 = moments(c2) groups=2
         n2 = normalise(c2, m2, g2, b2) groups=2 eps=1e-5
         r2 = relu(n2)
         s = sum_map(r2)"
    );
    let net = common::Net::parse("f64", &text).with_overlap();
    let budget = Budget {
        device_bytes: 96 << 10,
        host_bytes: AMPLE,
        disk_bytes: 0,
    };
    let plan = net.plan(budget, Planning::OffloadAll).expect("a plan");
    (net, plan)
}

/// The same plan with every copy made when it is needed.
fn in_turn(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    for item in plan.stages.iter_mut().flat_map(|s| &mut s.items) {
        item.staging = None;
    }
    sstep_planner::verify(&plan).expect("staging is no more than faster");
    plan
}

/// Seconds of a step by the stand-in's clock: of kernels, of copies either way, and
/// of all when streams run side by side.
fn clocked(plan: &Plan, values: &Tensors<f64>, rates: [f64; 3]) -> ([f64; 3], f64) {
    let (mut executor, feeds) = ready_on(on_cuda::<f64>(plan.clone()), values);
    // SAFETY: functions of the stand-in with these arguments.
    unsafe {
        let start = driver().get::<extern "C" fn(f64, f64, f64)>(b"standin_start_clock");
        start.unwrap()(rates[0], rates[1], rates[2]);
        executor.step(&feeds, &HOW, &mut |_| {}).expect("a step");
        let busy = driver().get::<extern "C" fn(i32) -> f64>(b"standin_busy_secs");
        let busy = busy.unwrap();
        let end = driver().get::<extern "C" fn() -> f64>(b"standin_end_secs");
        ([0, 1, 2].map(|kind| busy(kind)), end.unwrap()())
    }
}

/// While kernels compute a tile, the regions that the next one fetches are copied.
#[test]
fn copies_run_beside_kernels() {
    let Some(()) = alone("copies_run_beside_kernels") else {
        return;
    };
    let (net, plan) = ahead(64);
    let values = leaves::<f64>(&net.tape, 1);
    let apart = in_turn(&plan);
    // Rates by which kernels take a second in all, copies to the device half of one,
    // and those to the host nothing.
    let (busy, _) = clocked(&plan, &values, [1.0; 3]);
    let rates = [1.0 / busy[0], 0.5 / busy[1], 0.0];
    let hidden = |plan: &Plan| {
        let ([kernels, to_device, _], secs) = clocked(plan, &values, rates);
        assert!((to_device - 0.5).abs() < 1e-6, "{to_device}");
        (kernels + to_device - secs) / to_device
    };
    // Beside the first tile of a stage nothing runs.
    let (ahead, in_turn) = (hidden(&plan), hidden(&apart));
    assert!(
        ahead > 0.65 && in_turn < 0.2,
        "{ahead} ahead, {in_turn} in turn"
    );
}

/// Every wait of a plan that fetches ahead is needed: where what is waited for is slow,
/// and what ought to have waited is done first, the results are others.
#[test]
fn a_wait_that_is_not_made_is_found() {
    let Some(()) = alone("a_wait_that_is_not_made_is_found") else {
        return;
    };
    let (net, plan) = ahead(40);
    let values = leaves::<f64>(&net.tape, 1);
    let want = oracle(&net, &values);
    let step = |dropped: usize, slow: usize| {
        let (mut executor, feeds) = ready_on(on_cuda::<f64>(plan.clone()), &values);
        // SAFETY: a function of the stand-in with these arguments.
        unsafe {
            let drop = driver().get::<extern "C" fn(usize, usize)>(b"standin_drop_wait");
            drop.unwrap()(dropped, slow);
        }
        let report = executor.step(&feeds, &HOW, &mut |_| {}).expect("a step");
        let apart = differences(&report.outputs, &want);
        let is_right = apart.values().all(|&e| e <= 1e-12);
        let (waits, lanes) = (counted("standin_waits"), counted("standin_dropped"));
        (waits, (lanes / 3, lanes % 3), is_right)
    };
    // Lanes: kernels, copies to the device, copies to the host.
    let mut found = [[0; 3]; 3];
    for slow in [0, 1] {
        let (waits, _, is_right) = step(0, slow);
        assert!(is_right && waits > 20, "{waits}");
        for k in 1..=waits {
            let (_, (who, for_whom), is_right) = step(k, slow);
            if who < 3 && for_whom == slow {
                assert!(!is_right, "wait {k} of {who} for {for_whom} was not missed");
                found[who][for_whom] += 1;
            }
        }
    }
    assert!(
        found[0][1] > 10 && found[1][0] > 10 && found[2][0] > 5,
        "{found:?}"
    );
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
        let ran = [cpu, on_cuda(plan)].map(|executor| {
            let (mut executor, feeds) = ready_on(executor, &values);
            for step in 0..3 {
                let how = StepHow {
                    step,
                    seed: 1,
                    update: Some((rule, 0.05)),
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

/// One allocation of the cap and nothing else, given back at the end.
#[test]
fn the_cap_is_all_that_is_allocated() {
    let Some(()) = alone("the_cap_is_all_that_is_allocated") else {
        return;
    };
    let net = common::Net::parse(
        "f32",
        "x = input [1, 3, 32, 32]\nw = param [8, 3, 3, 3]\ny = conv(x, w) pad=1\n\
         r = relu(y)\np = max_pool(r) kernel=2",
    );
    let plan = plan_of(&net, Planning::Optimal, 0.2, true).expect("a plan");
    let cap = plan.budget.device_bytes as usize;
    execute(plan, &leaves::<f32>(&net.tape, 1));
    assert_eq!(counted("standin_peak_bytes"), cap);
    assert_eq!(counted("standin_live_bytes"), 0);
}

/// What the stand-in cannot give is said in a sentence.
#[test]
fn failures_are_sentences() {
    driver();
    let Err(error) = Cuda::<f32>::from_image(3, 1 << 20, image::<f32>()) else {
        panic!("there is one device");
    };
    assert!(
        error
            .to_string()
            .contains("there is no device cuda:3: the driver shows 1")
    );
    let Err(error) = Cuda::<f32>::from_image(0, 1 << 40, image::<f32>()) else {
        panic!("there are 8 GiB");
    };
    assert!(
        error
            .to_string()
            .contains("could not allocate the arena of 1099511627776 bytes")
    );
    let Err(error) = Cuda::<f32>::from_image(0, 1 << 20, Image::from_ptx("nothing")) else {
        panic!("that is no module");
    };
    assert!(error.to_string().contains("loading kernels failed"));
}
