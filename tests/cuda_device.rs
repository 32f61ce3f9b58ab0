//! The CUDA backend and its device: what is allocated, what overlaps, how it fails.
//!
//! All on the driver's stand-in, `tests/cuda/driver.cpp`. Tests that set the process's
//! environment or count for the whole process run in one of their own.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
mod cuda;

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use common::narrow::{judge, of_spec};
use common::nets::NetSpec;
use common::{AMPLE, HOW, Net, Tensors, differences, leaves, oracle, ready_on};
use cuda::{
    OUT_OF_BOUNDS, alone, counted, driver, drop_wait, execute, image, on_cuda, plan_beyond,
    plan_of, wait_of,
};
use sstep::{CalibrateOptions, Family, Machine, calibrate_backend, calibration_bytes};
use sstep_autodiff::DType;
use sstep_executor::cuda::{Cuda, Image, devices};
use sstep_planner::{Plan, Strategy};

/// Whether this process is the one for a test.
fn is_alone() -> bool {
    std::env::var_os("SSTEP_ALONE").is_some()
}

/// Runs `name` alone with a fault, and holds it to what it should do then.
fn expect(name: &str, fault: &str, passes: bool) {
    let (passed, said) = alone(name, &[("SSTEP_ALONE", "1"), ("SSTEP_FAULT", fault)]);
    assert_eq!(passed, passes, "{fault}: {said}");
}

/// A net whose maps go to the host and come back while others are computed.
fn moving() -> (Net, Plan) {
    let net = Net::parse(
        "f64",
        "x = input [1, 2, 24, 8]\nw1 = param [4, 2, 3, 3]\ny1 = conv(x, w1) pad=1\n\
         r1 = relu(y1)\nw2 = param [4, 4, 3, 3]\ny2 = conv(r1, w2) pad=1",
    );
    let of = |(strategy, squeeze)| plan_of(&net, strategy, squeeze, true);
    // Where everything fits nothing moves.
    let moves = |p: &Plan| p.predicted.h2d_bytes > 0 && p.predicted.d2h_bytes > 0;
    let tight = [0.0, 0.1].map(|squeeze| (Strategy::Paging, squeeze));
    let all = tight.into_iter().chain([(Strategy::OffloadAll, 0.0)]);
    let plan = all.filter_map(of).find(moves);
    let plan = plan.expect("a plan that moves maps");
    (net, plan)
}

/// One allocation of the cap and nothing else, given back at the end with all
/// page-locked memory.
#[test]
fn the_cap_is_all_that_is_allocated() {
    if !is_alone() {
        expect("the_cap_is_all_that_is_allocated", "none", true);
        return;
    }
    let (net, plan) = moving();
    let cap = plan.budget.device_bytes as usize;
    execute(plan, &leaves::<f64>(&net.tape, 1), true);
    assert_eq!(counted(driver(), "standin_peak_bytes"), cap);
    assert_eq!(counted(driver(), "standin_live_bytes"), 0);
    assert_eq!(counted(driver(), "standin_pinned"), 0);
}

/// A stream that does not wait for the others is found.
#[test]
fn a_stream_that_waits_for_nothing_is_found() {
    let name = "a_stream_that_waits_for_nothing_is_found";
    if !is_alone() {
        expect(name, "none", true);
        for lane in ["kernels", "copies to the device", "copies to the host"] {
            expect(name, &format!("waits of {lane} that are not made"), false);
        }
        return;
    }
    let (net, plan) = moving();
    let values = leaves::<f64>(&net.tape, 3);
    let (mut executor, feeds) = ready_on(on_cuda::<f64>(plan, false), &values);
    let want = oracle(&net, &values);
    // The second step finds its memory on the host.
    for _ in 0..2 {
        let report = executor.step(&feeds, &HOW, &mut |_| {}).expect("a step");
        let apart = differences(&report.outputs, &want);
        assert!(apart.values().all(|&e| e <= 1e-12), "{apart:?}");
    }
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
    let (mut executor, feeds) = ready_on(on_cuda::<f64>(plan.clone(), false), values);
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

/// While kernels compute a tile, the regions that the next one fetches are copied, and
/// those that the last one stored.
#[test]
fn copies_run_beside_kernels() {
    if !is_alone() {
        expect("copies_run_beside_kernels", "none", true);
        return;
    }
    let (net, plan) = Net::ahead(64);
    let values = leaves::<f64>(&net.tape, 1);
    let apart = in_turn(&plan);
    // What part of the copies is hidden, where kernels take a second in all and copies
    // either way as many as asked.
    let (busy, _) = clocked(&plan, &values, [1.0; 3]);
    let hidden = |plan: &Plan, copies: [f64; 2]| {
        let rates = [1.0 / busy[0], copies[0] / busy[1], copies[1] / busy[2]];
        let (took, secs) = clocked(plan, &values, rates);
        let asked = copies[0] + copies[1];
        assert!((took[1] + took[2] - asked).abs() < 1e-6, "{took:?}");
        (took.iter().sum::<f64>() - secs) / asked
    };
    // Beside the first tile of a stage, and the last, nothing runs.
    for (copies, least) in [([0.5, 0.0], 0.65), ([0.0, 0.5], 0.4), ([0.25, 0.25], 0.65)] {
        let (ahead, in_turn) = (hidden(&plan, copies), hidden(&apart, copies));
        assert!(
            ahead > least && ahead > in_turn + 0.2,
            "{copies:?}: {ahead} ahead, {in_turn} in turn"
        );
    }
}

/// What goes to the disk passes page-locked pieces and is waited for no more often than
/// what goes to the host; a disk that is slow or wrong would show in the second step.
#[test]
fn spilled_pieces_are_not_waited_for() {
    if !is_alone() {
        expect("spilled_pieces_are_not_waited_for", "none", true);
        return;
    }
    let net = Net::parse(
        "f64",
        "x = input [1, 2, 96, 8]\nw1 = param [4, 2, 3, 3]\ny1 = conv(x, w1) pad=1\n\
         r1 = relu(y1)\nw2 = param [4, 4, 3, 3]\ny2 = conv(r1, w2) pad=1",
    );
    let values = leaves::<f64>(&net.tape, 5);
    let want = oracle(&net, &values);
    let plan = |beyond| {
        let plan = plan_beyond(&net, Strategy::OffloadAll, 0.0, beyond);
        plan.expect("a plan that moves maps")
    };
    let [to_host, to_disk] = [[AMPLE, 0], [0, AMPLE]].map(|beyond| {
        let plan = plan(beyond);
        let (mut executor, feeds) = ready_on(on_cuda::<f64>(plan, false), &values);
        let mut waits = 0;
        for _ in 0..2 {
            let before = counted(driver(), "standin_stream_waits");
            let report = executor.step(&feeds, &HOW, &mut |_| {}).expect("a step");
            let apart = differences(&report.outputs, &want);
            assert!(apart.values().all(|&e| e <= 1e-12), "{apart:?}");
            waits = counted(driver(), "standin_stream_waits") - before;
        }
        (executor.plan().predicted, waits)
    });
    assert!(to_disk.0.disk_write_bytes > 0 && to_disk.0.disk_read_bytes > 0);
    assert_eq!(to_disk.1, to_host.1);
}

/// A device is measured by the calls of a step: what comes of it are the rates of the
/// stand-in's clock, and whether its copies run beside kernels.
#[test]
fn a_device_is_measured_as_it_is() {
    if !is_alone() {
        expect("a_device_is_measured_as_it_is", "none", true);
        return;
    }
    let options = CalibrateOptions {
        rounds: 1,
        secs_per_entry: 0.0,
        sets_bytes: 1 << 16,
        most_flops: 1e6,
        most_bytes: 1 << 20,
        workspace_bytes: 1 << 16,
        link_bytes: 1 << 17,
        disk_bytes: 1 << 20,
        ..CalibrateOptions::quick().for_cuda()
    };
    driver();
    let bytes = calibration_bytes(&options);
    let mut cuda = Cuda::<f32>::from_image(0, bytes, image::<f32>(false), false).unwrap();
    // SAFETY: functions of the stand-in with these arguments.
    let mut measured = |in_turn: bool| unsafe {
        let start = driver().get::<extern "C" fn(f64, f64, f64)>(b"standin_start_clock");
        start.unwrap()(1e-6, 1e-9, 2e-9);
        let turn = driver().get::<extern "C" fn(bool)>(b"standin_in_turn");
        turn.unwrap()(in_turn);
        let end = driver().get::<extern "C" fn() -> f64>(b"standin_end_secs");
        let end = end.unwrap();
        let clock = || end();
        let name = "stand-in".to_owned();
        calibrate_backend(&mut cuda, &clock, name, &options, &mut |_, _| {}).unwrap()
    };
    let near = |found: f64, expected: f64| {
        assert!(
            (found / expected - 1.0).abs() < 6e-3,
            "{found} for {expected}"
        );
    };
    for in_turn in [false, true] {
        let machine = measured(in_turn);
        assert_eq!(machine.copies_overlap, !in_turn);
        near(machine.h2d_bytes_per_sec, 1e9);
        near(machine.d2h_bytes_per_sec, 0.5e9);
        near(machine.launch_secs, 1e-6);
        // 64 positions of 64 channels: sixteen blocks, of which a launch hides one.
        let copies = &machine.rates(Family::Copy).per_sec[0];
        near(copies[0], (64.0 * 64.0 * 8.0) / 15e-6);
        let again = Machine::from_json(&machine.to_json()).unwrap();
        assert_eq!(again, machine);
    }
}

/// Every wait of a plan that fetches ahead is needed: where what is waited for is slow,
/// and what ought to have waited is done first, the results are others.
#[test]
fn a_wait_that_is_not_made_is_found() {
    if !is_alone() {
        expect("a_wait_that_is_not_made_is_found", "none", true);
        return;
    }
    let (net, plan) = Net::ahead(24);
    let values = leaves::<f64>(&net.tape, 1);
    let want = oracle(&net, &values);
    let step = |dropped: usize, slow: usize| {
        let (mut executor, feeds) = ready_on(on_cuda::<f64>(plan.clone(), false), &values);
        drop_wait(dropped, slow);
        let report = executor.step(&feeds, &HOW, &mut |_| {}).expect("a step");
        let apart = differences(&report.outputs, &want);
        apart.values().all(|&e| e <= 1e-12)
    };
    let mut found = [[0; 3]; 3];
    for slow in [0, 1, 2] {
        assert!(step(0, slow));
        let n_waits = counted(driver(), "standin_waits");
        assert!(n_waits > 20, "{n_waits}");
        let waits: Vec<_> = (1..=n_waits).map(wait_of).collect();
        for (at, &(who, for_whom)) in waits.iter().enumerate().filter(|w| w.1.1 == slow) {
            let k = at + 1;
            assert!(
                !step(k, slow),
                "wait {k} of {who} for {for_whom} was not missed"
            );
            found[who][for_whom] += 1;
        }
    }
    // Nothing that was just fetched is stored again.
    for (who, for_whom) in [(0, 1), (0, 2), (1, 0), (1, 2), (2, 0)] {
        assert!(found[who][for_whom] > 0, "{found:?}");
    }
}

/// What cannot be had is said in a sentence.
#[test]
fn failures_are_sentences() {
    driver();
    let said = |cuda: Result<Cuda<f32>, _>| match cuda {
        Err(sstep_executor::DeviceError::NotBuilt) | Ok(_) => panic!("it was made"),
        Err(e) => e.to_string(),
    };
    let open = |ordinal, bytes| {
        said(Cuda::<f32>::from_image(
            ordinal,
            bytes,
            image::<f32>(false),
            false,
        ))
    };
    let contains = |said: String, part: &str| assert!(said.contains(part), "{said}");
    if is_alone() {
        match std::env::var("SSTEP_FAULT").unwrap().as_str() {
            "memory held elsewhere" => contains(
                open(0, 1 << 30),
                "could not allocate the arena of 1073741824 bytes on stand-in: 1048576 bytes of \
                 8589934592 are free; lower the budget, or free the memory that other processes hold",
            ),
            "an old device" => contains(
                open(0, 1 << 20),
                "stand-in has compute capability 6.0, the kernels need 7.0 or later",
            ),
            "a full device" => contains(open(0, 1 << 20), "no memory left for a context"),
            fault => panic!("{fault}"),
        }
        return;
    }
    for fault in ["memory held elsewhere", "an old device", "a full device"] {
        expect("failures_are_sentences", fault, true);
    }
    contains(
        open(3, 1 << 20),
        "there is no device cuda:3: the driver shows 1",
    );
    contains(
        open(0, 1 << 40),
        "could not allocate the arena of 1099511627776 bytes",
    );
    let nothing = Cuda::<f32>::from_image(0, 1 << 20, Image::from_ptx("nothing"), false);
    contains(said(nothing), "loading kernels failed");
}

/// A step that a device does not survive, or that is not given its memory, is an
/// error; what was allocated is let go without another.
#[test]
fn a_step_fails_in_a_sentence() {
    let name = "a_step_fails_in_a_sentence";
    if !is_alone() {
        for fault in ["a lost device", "pages that are not locked"] {
            expect(name, fault, true);
        }
        return;
    }
    let (net, plan) = moving();
    let values = leaves::<f64>(&net.tape, 3);
    let (mut executor, feeds) = ready_on(on_cuda::<f64>(plan, false), &values);
    let error = executor.step(&feeds, &HOW, &mut |_| {}).unwrap_err();
    let part = match std::env::var("SSTEP_FAULT").unwrap().as_str() {
        "a lost device" => {
            "the CUDA device was lost while launching a kernel: refused by the \
                            stand-in; the step is lost, checkpoints are not"
        }
        _ => "of the host's memory for copies",
    };
    assert!(error.to_string().contains(part), "{error}");
    drop(executor);
}

/// The list of devices says what the libraries take and which are missing.
#[test]
fn devices_are_listed_with_what_they_lack() {
    driver();
    let [device] = &devices().unwrap()[..] else {
        panic!("there is one device");
    };
    assert_eq!(
        (device.name.as_str(), device.capability),
        ("stand-in", (9, 0))
    );
    assert_eq!(device.libraries_bytes, 0);
    // Unless this machine has the real ones.
    assert!(device.missing.len() <= 2);
}

/// The sanitizer's library, which must be loaded before all others.
fn sanitizer() -> Option<PathBuf> {
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
    let done = Command::new(compiler)
        .arg("-print-file-name=libasan.so")
        .output()
        .ok()?;
    let path = PathBuf::from(String::from_utf8_lossy(&done.stdout).trim());
    // Without a path it is a file that the compiler does not have.
    (path.is_absolute() && path.exists()).then(|| path.canonicalize().unwrap_or(path))
}

/// Kernels touch their views and nothing else: under the address sanitizer the rest of
/// the arena is poisoned while one runs.
#[test]
fn kernels_stay_within_their_views() {
    let name = "kernels_stay_within_their_views";
    if is_alone() {
        let net = Net::parse(
            "f64",
            "x = input [2, 3, 20, 9]\nlabels = input [2, 1]\nw1 = param [4, 3, 3, 3]\n\
             y1 = conv(x, w1) pad=1\nr1 = relu(y1)\np = max_pool(r1) kernel=2\n\
             w2 = param [5, 4, 3, 3]\ny2 = conv(p, w2) pad=1\ng = sum_map(y2)\n\
             f = param [3, 5]\nz = linear(g, f)\nl = cross_entropy(z, labels)",
        );
        let values = leaves::<f64>(&net.tape, 3);
        for (squeeze, libraries) in [(0.0, false), (0.5, true)] {
            let plan = plan_of(&net, Strategy::Optimal, squeeze, true).expect("a plan");
            let got = execute(plan, &values, libraries);
            let apart = differences(&got, &oracle(&net, &values));
            assert!(apart.values().all(|&e| e <= 1e-12), "{apart:?}");
        }
        // Elements of 16 bits, in views half as large.
        let spec = NetSpec {
            batch: 2,
            channels: 3,
            spatial: vec![9, 12],
            layers: vec![(0, 20, 9), (4, 1, 1), (5, 35, 92), (0, 3, 1)],
            head: 0,
            seed: 3,
        };
        let net = of_spec(&spec, DType::Bf16);
        let values = leaves::<f32>(&net.tape, 3);
        let plan = plan_of(&net, Strategy::Optimal, 0.2, true).expect("a plan");
        let got = execute(plan, &values, false);
        judge(&spec, &net, &values, &got, DType::Bf16);
        return;
    }
    let Some(library) = sanitizer() else {
        // Not `eprintln`, which a passing test swallows.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: the C++ compiler has no libasan.so, so that no out-of-bounds access is looked for"
        );
        return;
    };
    let library = library.to_string_lossy().into_owned();
    let run = |fault| {
        let set = [
            ("SSTEP_ALONE", "1"),
            ("SSTEP_FAULT", fault),
            ("SSTEP_SANITIZE", "1"),
            ("LD_PRELOAD", &library),
            // Fibers have stacks of their own, and the stand-ins end with the process.
            (
                "ASAN_OPTIONS",
                "detect_leaks=0:detect_stack_use_after_return=0",
            ),
        ];
        alone(name, &set)
    };
    let (passed, said) = run("none");
    assert!(passed, "{said}");
    let (passed, said) = run(OUT_OF_BOUNDS);
    assert!(!passed && said.contains("AddressSanitizer"), "{said}");
}
