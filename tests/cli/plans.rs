//! What plans are told to be, and budgets that do not do.

use crate::common::{answer, refuse, sstep};

#[test]
fn bad_arguments_and_budgets() {
    let plan = |more: &[&'static str]| {
        let mut args = vec!["plan", "--model", "streaming-cnn", "--size", "256x256"];
        args.extend(more);
        args
    };
    refuse(&["plan"], 2, &["--budget"]);
    refuse(&["plan", "--budget", "1GiB"], 2, &["--model", "--tape"]);
    refuse(&plan(&["--budget", "lots"]), 2, &["lots", "512MiB"]);
    refuse(
        &plan(&["--budget", "0"]),
        2,
        &["a device budget of 0 holds nothing"],
    );
    refuse(
        &plan(&["--budget", "1MiB", "--strategy", "magic"]),
        2,
        &["magic", "recompute-all"],
    );
    refuse(
        &plan(&["--budget", "1MiB", "--norm", "group"]),
        2,
        &["no option `norm`"],
    );
    refuse(
        &[
            "plan", "--model", "resnet19", "--size", "64x64", "--budget", "1GiB",
        ],
        2,
        &["resnet19", "resnet18"],
    );
    refuse(
        &[
            "plan", "--model", "unet2d", "--size", "8x64", "--budget", "1GiB",
        ],
        2,
        &["an extent of 8", "16"],
    );
    refuse(
        &["plan", "--tape", "/no/such.tape", "--budget", "1GiB"],
        2,
        &["/no/such.tape"],
    );
}

#[test]
fn a_budget_below_the_minimum_names_what_would_do() {
    let args = [
        "plan",
        "--model",
        "streaming-cnn",
        "--size",
        "256x256",
        "--budget",
        "20KiB",
    ];
    refuse(
        &args,
        3,
        &["the smallest device budget found is", "forced by"],
    );
    let stderr = String::from_utf8(sstep(&args).stderr).expect("text");
    let bytes = stderr.split('(').find_map(|part| {
        part.strip_suffix(" bytes)")
            .or_else(|| part.split_once(" bytes)").map(|(bytes, _)| bytes))
    });
    let bytes = bytes.expect("the number of bytes");
    // What the message promises is kept.
    let args = [
        "plan",
        "--model",
        "streaming-cnn",
        "--size",
        "256x256",
        "--budget",
        bytes,
    ];
    assert!(answer(&args).contains("verified"));
}

#[test]
fn plans_in_words_and_json() {
    let base = [
        "plan", "--model", "resnet10", "--width", "8", "--norm", "group", "--head",
    ];
    let more = [
        "attention",
        "--size",
        "300x200",
        "--budget",
        "16MiB",
        "--host",
        "64MiB",
    ];
    let args = [&base[..], &more].concat();
    let text = answer(&args);
    for word in [
        "resnet10 on 300x200",
        "predicted of 16.0 MiB allowed",
        "stage 0",
        "verified",
    ] {
        assert!(text.contains(word), "{text}");
    }
    let json = answer(&[&args[..], &["--json"]].concat());
    let json: serde_json::Value = serde_json::from_str(&json).expect("one JSON value");
    let peak = json["plan"]["predicted"]["peak_bytes"]
        .as_u64()
        .expect("a peak");
    assert!(peak > 0 && peak <= 16 << 20, "{peak}");
    assert!(
        json["plan"]["stages"]
            .as_array()
            .is_some_and(|s| !s.is_empty())
    );
}
