//! Devices and what machines are measured to do.

use std::process::Command;

use crate::common::{Scratch, TAPE, answer, leaves, refuse, save};

#[test]
fn a_device_that_is_not_there_is_said_to_be() {
    // Built with the feature, on a machine without a driver, or without it.
    let why = if cfg!(feature = "cuda") {
        "no CUDA driver was found"
    } else {
        "built without CUDA"
    };
    let text = answer(&["info", "--devices"]);
    assert!(text.contains("cpu"), "{text}");
    if text.contains("cuda:0") {
        return;
    }
    let scratch = Scratch::new("device");
    let tape = scratch.write("net.tape", TAPE);
    let tensors = save(&scratch, "in.safetensors", &leaves());
    let out = scratch.path("out.safetensors");
    let grad = |device| {
        let files = ["--tensors", &tensors, "--out", &out];
        let mut args = vec!["grad", &tape, "--budget", "1MiB", "--device", device];
        args.extend(files);
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let refused = |device, needles: &[&str]| {
        let args = grad(device);
        refuse(
            &args.iter().map(String::as_str).collect::<Vec<_>>(),
            2,
            needles,
        );
    };
    refused("cuda:0", &[why, "--device cpu"]);
    refused(
        "gpu",
        &["`gpu` is no device: say cpu, cuda, cuda:N or auto"],
    );
    let auto = grad("auto");
    answer(&auto.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn a_machine_is_measured_once_and_found_again() {
    let scratch = Scratch::new("calibrate");
    let cache = scratch.path("cache");
    let run = |args: &[&str]| {
        let output = Command::new(env!("CARGO_BIN_EXE_sstep"))
            .args(args)
            .env("XDG_CACHE_HOME", &cache)
            .output()
            .expect("sstep runs");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{args:?}: {stderr}");
        String::from_utf8(output.stdout).expect("text")
    };
    let tape = scratch.write("net.tape", TAPE);
    let plan = ["plan", "--tape", &tape, "--budget", "8MiB"];
    assert!(run(&plan).contains("built-in profile"));

    let other = scratch.path("other.json");
    let disk = scratch.path("");
    let json = run(&[
        "calibrate",
        "--quick",
        "--json",
        "--out",
        &other,
        "--disk",
        &disk,
    ]);
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    let rates = &json["machine"]["kernels"]["conv-direct-forward"]["per_sec"][0];
    assert!(rates[0].as_f64().expect("a rate") > 0.0);
    assert!(run(&plan).contains("built-in profile"));
    let named = run(&[&plan[..], &["--machine", &other]].concat());
    assert!(named.contains("other.json"), "{named}");

    // What lies in the cache is found without being named.
    let kept = format!("{cache}/sstep/machine.json");
    std::fs::create_dir_all(format!("{cache}/sstep")).expect("a folder");
    std::fs::copy(&other, &kept).expect("a copy");
    let found = run(&plan);
    assert!(
        found.contains("measured") && found.contains("machine.json"),
        "{found}"
    );

    let old = std::fs::read_to_string(&other).expect("a profile");
    let old = scratch.write("old.json", old.replace("\"version\":1", "\"version\":0"));
    let bad = scratch.write("bad.json", "{\"version\":1}");
    refuse(
        &[&plan[..], &["--machine", &old]].concat(),
        2,
        &["old.json", "version 0", "sstep calibrate"],
    );
    refuse(
        &[&plan[..], &["--machine", &bad]].concat(),
        2,
        &["bad.json", "missing field", "sstep calibrate"],
    );
    refuse(
        &[&plan[..], &["--machine", "/nowhere/m.json"]].concat(),
        2,
        &["/nowhere/m.json", "reading"],
    );
}
