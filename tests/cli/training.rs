//! Training runs: checkpoints, what they print, folders and configurations.

use std::path::Path;

use sstep::params::{self, TensorFile, Tensors};

use crate::common::{SLIDE, Scratch, answer, refuse, train};

#[test]
fn training_saves_and_goes_on() {
    let scratch = Scratch::new("train");
    let (a, b) = (scratch.path("a"), scratch.path("b"));
    let text = answer(&train(&["--steps", "4", "--out", &a]));
    for word in [
        "step    4/4",
        "predicted    measured",
        "device peak",
        "process RSS",
    ] {
        assert!(
            text.contains(word) || cfg!(not(target_os = "linux")),
            "{text}"
        );
    }
    // Two steps, then two more, are the same four steps.
    answer(&train(&["--steps", "2", "--out", &b]));
    answer(&train(&["--steps", "4", "--out", &b, "--resume"]));
    let read = |dir: &str| std::fs::read(format!("{dir}/model.safetensors")).expect("a model");
    assert!(read(&a) == read(&b), "a resumed run differs");
    refuse(&train(&["--out", &a]), 2, &["exists", "--resume"]);
    refuse(
        &train(&["--out", &a, "--resume", "--seed", "5"]),
        2,
        &["another run"],
    );
    // The trained weights serve as a start; a network of another shape refuses them.
    let model = format!("{a}/model.safetensors");
    answer(&train(&["--init", &model, "--steps", "1"]));
    refuse(
        &train(&["--init", &model, "--classes", "3"]),
        2,
        &["fc.", "[3"],
    );
}

#[test]
fn json_lines_while_training() {
    let text = answer(&train(&["--json"]));
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|l| serde_json::from_str(l).expect("JSON"))
        .collect();
    let events: Vec<&str> = lines.iter().filter_map(|l| l["event"].as_str()).collect();
    assert_eq!(events, ["plan", "step", "step", "step", "done"]);
    let report = &lines[1]["report"];
    let bytes = |key: &str| report["peak_bytes"][key].as_u64().expect("bytes");
    assert!(bytes("measured") <= bytes("predicted") && bytes("predicted") <= 8 << 20);
}

#[test]
fn a_diverging_run_keeps_its_last_good_checkpoint() {
    let scratch = Scratch::new("nan");
    let out = scratch.path("out");
    refuse(
        &train(&["--lr", "1e30", "--out", &out]),
        1,
        &["loss of step", "diverged"],
    );
    assert!(scratch.contents().is_empty(), "{:?}", scratch.contents());
    answer(&train(&["--steps", "2", "--out", &out]));
    let before = std::fs::read(format!("{out}/checkpoint.safetensors")).expect("a checkpoint");
    let args = train(&["--steps", "9", "--lr", "1e30", "--out", &out, "--resume"]);
    refuse(&args, 1, &["diverged", "checkpoint.safetensors"]);
    let after = std::fs::read(format!("{out}/checkpoint.safetensors")).expect("a checkpoint");
    assert!(before == after, "the checkpoint was overwritten");
}

#[test]
fn folders_and_configurations() {
    let scratch = Scratch::new("config");
    let config = "data = 'slides'
steps = 2
[model]
name = 'streaming-cnn'
width = 4
[memory]
budget = '8MiB'
[image]
size = '128x96'
[schedule]
kind = 'cosine'
warmup = 1
";
    let path = scratch.write("run.toml", config);
    refuse(&["train", &path], 2, &["slides"]);
    std::fs::create_dir(scratch.path("slides")).expect("a folder");
    refuse(&["train", &path], 2, &["labels.csv"]);
    scratch.write("slides/labels.csv", "name,class\na.svs,0\n");
    refuse(&["train", &path], 2, &["labels.csv", "file,label"]);
    scratch.write("slides/labels.csv", "file,label\na.svs,7\n");
    refuse(&["train", &path], 2, &["labels.csv", "label 7"]);
    scratch.write(
        "slides/labels.csv",
        format!("file,label\n{SLIDE},0\n{SLIDE}, 1\n"),
    );
    let text = answer(&["train", &path]);
    assert!(text.contains("step    2/2"), "{text}");
    // Both slides in every step.
    let text = answer(&["train", &path, "--batch", "2", "--json"]);
    assert!(
        text.contains("CMU-1-Small-Region.svs + CMU-1-Small-Region.svs"),
        "{text}"
    );

    let typo = scratch.write("typo.toml", config.replace("warmup", "warm_up"));
    refuse(&["train", &typo], 2, &["typo.toml", "warm_up"]);
    let typo = scratch.write("typo.toml", config.replace("steps = 2", "stepz = 2"));
    refuse(&["train", &typo], 2, &["typo.toml", "line 2", "stepz"]);
    let none = scratch.write("none.toml", config.replace("'8MiB'", "'0'"));
    refuse(
        &["train", &none],
        2,
        &["a device budget of 0 holds nothing"],
    );
    refuse(
        &["train", &path, "--budget", "9KiB"],
        3,
        &["the smallest device budget found"],
    );
}

#[test]
fn a_dynamic_loss_scale_is_told_of_and_kept() {
    let scratch = Scratch::new("scale");
    let out = scratch.path("out");
    let with = [
        "--precision",
        "f16",
        "--loss-scale",
        "dynamic",
        "--out",
        &out,
    ];
    let first = [&["--steps", "1", "--json"], &with[..]].concat();
    let text = answer(&train(&first));
    let lines = text.lines().map(|l| serde_json::from_str(l).expect("JSON"));
    let step: Vec<serde_json::Value> = lines
        .filter(|l: &serde_json::Value| l["event"] == "step")
        .collect();
    assert_eq!(step[0]["loss_scale"], 65536.0);
    assert_eq!(step[0]["update_skipped"], false);

    // As if it had been doubled too often.
    let path = format!("{out}/checkpoint.safetensors");
    let file = TensorFile::open(Path::new(&path)).expect("a checkpoint");
    let mut metadata = file.metadata().clone();
    let scale = (1u64 << 60) as f64;
    assert_eq!(
        metadata.insert("loss_scale".to_owned(), scale.to_string()),
        Some("65536".to_owned())
    );
    let tensors: Tensors<f32> = (file.names())
        .map(|name| (name.to_owned(), file.tensor_as_is(name).expect(name)))
        .collect();
    let tensors = tensors.iter().map(|(name, t)| (name.clone(), t));
    params::save(Path::new(&path), tensors, &metadata).expect("a checkpoint");
    let second = [&["--steps", "2", "--resume"], &with[..]].concat();
    let text = answer(&train(&second));
    let line = format!(
        "nothing updated: a gradient overflowed with the loss scaled by {scale}; next by {}",
        scale / 2.0
    );
    assert!(text.contains(&line), "{text}");

    refuse(
        &train(&["--loss-scale", "large"]),
        2,
        &["give a number or `dynamic`"],
    );
}
