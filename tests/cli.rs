//! The command line as people meet it: what it answers, and how it refuses.
//!
//! Bad input is a table: each line breaks one thing and says what the message
//! must name and what the exit code is. Nothing half-written may stay behind.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sstep::params::{self, TensorFile, Tensors};
use sstep::{Shape, Tensor};

const SLIDE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/examples/data/CMU-1-Small-Region.svs"
);

/// A network as text: a convolution, its mean, a linear layer.
const TAPE: &str = "tape v1 f32
x = input [1, 3, 40, 36]
w = param [4, 3, 3, 3]
b = param [4]
c = conv(x, w, b) stride=[2, 2] pad=[1, 1]
r = relu(c)
s = sum_map(r) keep_batch=true
fc = param [2, 4]
y = linear(s, fc)
labels = input [1, 1]
l = cross_entropy(y, labels)
output l
";

/// A folder of its own for each test, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("sstep-cli-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a scratch folder");
        Scratch(dir)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        std::fs::write(self.0.join(name), contents).expect("a scratch file");
        self.path(name)
    }

    /// Names of everything in it, also below.
    fn contents(&self) -> Vec<String> {
        fn walk(dir: &Path, names: &mut Vec<String>) {
            for entry in std::fs::read_dir(dir).expect("a folder").flatten() {
                names.push(entry.file_name().to_string_lossy().into_owned());
                if entry.path().is_dir() {
                    walk(&entry.path(), names);
                }
            }
        }
        let mut names = Vec::new();
        walk(&self.0, &mut names);
        names.sort();
        names
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs a command without whatever profile this machine's user may have measured.
fn sstep(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sstep"))
        .args(args)
        .env(
            "XDG_CACHE_HOME",
            std::env::temp_dir().join("sstep-no-cache"),
        )
        .output()
        .expect("sstep runs")
}

/// Runs a command that must succeed; its standard output.
fn answer(args: &[&str]) -> String {
    let Output {
        status,
        stdout,
        stderr,
    } = sstep(args);
    let stderr = String::from_utf8_lossy(&stderr);
    assert!(status.success(), "{args:?}: {status}\n{stderr}");
    String::from_utf8(stdout).expect("text")
}

/// Runs a command that must fail so, with a message that has all of `names`.
fn refuse(args: &[&str], code: i32, names: &[&str]) {
    let Output {
        status,
        stdout,
        stderr,
    } = sstep(args);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&stdout),
        String::from_utf8_lossy(&stderr),
    );
    assert_eq!(status.code(), Some(code), "{args:?}\n{stdout}\n{stderr}");
    for name in names {
        assert!(stderr.contains(name), "{args:?}: no `{name}` in\n{stderr}");
    }
    assert!(!stderr.contains("panicked"), "{stderr}");
}

/// Arguments of a small training run, then some more.
fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut args = vec![
        "train",
        "--data",
        SLIDE,
        "--label",
        "1",
        "--model",
        "streaming-cnn",
    ];
    args.extend([
        "--width", "4", "--size", "128x96", "--budget", "8MiB", "--steps", "3",
    ]);
    args.extend(more);
    args
}

fn tensor(dims: &[usize], value: impl Fn(usize) -> f32) -> Tensor<f32> {
    let shape = Shape::new(dims);
    Tensor::new(shape, (0..shape.elems()).map(value).collect())
}

/// Values for the leaves of [`TAPE`].
fn leaves() -> Tensors<f32> {
    let wave = |k: f32| move |i: usize| ((i as f32 + 1.0) * k).sin() * 0.5;
    Tensors::from([
        ("x".to_owned(), tensor(&[1, 3, 40, 36], wave(0.37))),
        ("w".to_owned(), tensor(&[4, 3, 3, 3], wave(1.3))),
        ("b".to_owned(), tensor(&[4], wave(0.7))),
        ("fc".to_owned(), tensor(&[2, 4], wave(2.1))),
        ("labels".to_owned(), tensor(&[1, 1], |_| 1.0)),
    ])
}

fn save(scratch: &Scratch, name: &str, tensors: &Tensors<f32>) -> String {
    let path = scratch.path(name);
    let named = tensors.iter().map(|(name, t)| (name.clone(), t));
    params::save(Path::new(&path), named, &Default::default()).expect("tensors are written");
    path
}

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

#[test]
fn info_shows_levels() {
    let text = answer(&["info", SLIDE]);
    assert!(
        text.contains("2220x2967") && text.contains("240x240"),
        "{text}"
    );
    let json: serde_json::Value =
        serde_json::from_str(&answer(&["info", SLIDE, "--json"])).expect("one JSON value");
    assert_eq!(json["levels"][0]["size"], serde_json::json!([2220, 2967]));
    refuse(
        &["info", "/no/such.svs"],
        2,
        &["/no/such.svs", "no such file"],
    );
    refuse(
        &["info", concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml")],
        2,
        &["not a TIFF"],
    );
}

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
fn gradients_equal_the_reference() {
    let scratch = Scratch::new("grad");
    let tape = scratch.write("net.tape", TAPE);
    let tensors = save(&scratch, "in.safetensors", &leaves());
    let expected = scratch.path("reference.safetensors");
    answer(&[
        "grad",
        &tape,
        "--tensors",
        &tensors,
        "--out",
        &expected,
        "--reference",
    ]);
    let expected = TensorFile::open(Path::new(&expected)).expect("the reference");
    let names: Vec<&str> = expected.names().collect();
    assert_eq!(names, ["grad/b", "grad/fc", "grad/w", "loss"]);
    for (i, strategy) in ["optimal", "store-all", "recompute-all", "streaming"]
        .iter()
        .enumerate()
    {
        let out = scratch.path(&format!("{i}.safetensors"));
        let budget = ["200KiB", "1MiB", "64KiB", "300KiB"][i];
        let args = [
            "grad",
            &tape,
            "--tensors",
            &tensors,
            "--out",
            &out,
            "--budget",
            budget,
        ];
        answer(
            &[
                &args[..],
                &["--host", "1MiB", "--strategy", strategy, "--json"],
            ]
            .concat(),
        );
        let got = TensorFile::open(Path::new(&out)).expect("the gradients");
        for &name in &names {
            let want = expected.tensor_as_is::<f64>(name).expect("a tensor");
            let have = got
                .tensor::<f64>(name, want.shape)
                .expect("the same tensor");
            let scale = want.data.iter().fold(0f64, |m, v| m.max(v.abs()));
            for (h, w) in have.data.iter().zip(&want.data) {
                assert!(
                    (h - w).abs() <= 1e-5 * scale,
                    "{strategy}, {name}: {h} is not {w}"
                );
            }
        }
    }
}

#[test]
fn bad_tensors_and_tapes() {
    let scratch = Scratch::new("bad-grad");
    let tape = scratch.write("net.tape", TAPE);
    let out = scratch.path("out.safetensors");
    let grad = |tape: &str, tensors: &str, code, names: &[&str]| {
        let args = [
            "grad",
            tape,
            "--tensors",
            tensors,
            "--out",
            &out,
            "--budget",
            "1MiB",
        ];
        refuse(&args, code, names);
        assert!(!Path::new(&out).exists());
    };
    let good = save(&scratch, "good.safetensors", &leaves());

    let mut other = leaves();
    other.insert("w".to_owned(), tensor(&[4, 3, 3, 2], |_| 0.0));
    let other = save(&scratch, "shape.safetensors", &other);
    grad(&tape, &other, 2, &["`w`", "[4, 3, 3, 2]", "[4, 3, 3, 3]"]);

    let mut other = leaves();
    let x = other.remove("x").expect("it is there");
    other.insert("ecks".to_owned(), x);
    let other = save(&scratch, "names.safetensors", &other);
    grad(&tape, &other, 2, &["it lacks x", "does not know ecks"]);

    let stump = &std::fs::read(&good).expect("bytes")[..500];
    let stump = scratch.write("stump.safetensors", stump);
    grad(
        &tape,
        &stump,
        2,
        &["stump.safetensors", "not a whole safetensors file"],
    );

    let wrong = scratch.write("wrong.tape", TAPE.replace("relu(c)", "rleu(c)"));
    grad(&wrong, &good, 2, &["wrong.tape", "line 6", "rleu"]);
    let silent = scratch.write("silent.tape", TAPE.replace("output l\n", ""));
    grad(&silent, &good, 2, &["declares no output"]);
    grad(&tape, "/no/such.safetensors", 2, &["/no/such.safetensors"]);
    let leftover = |n: &String| n.ends_with(".tmp");
    assert!(
        !scratch.contents().iter().any(leftover),
        "{:?}",
        scratch.contents()
    );
}

#[test]
fn unwritable_outputs_are_found_before_the_work() {
    let scratch = Scratch::new("unwritable");
    let file = scratch.write("file", "x");
    let below = format!("{file}/out");
    refuse(&train(&["--out", &below]), 2, &["file/out"]);
    let tape = scratch.write("net.tape", TAPE);
    let tensors = save(&scratch, "in.safetensors", &leaves());
    for out in [
        &below,
        &scratch.path("no/such/folder/out"),
        &scratch.path(""),
    ] {
        let args = [
            "grad",
            &tape,
            "--tensors",
            &tensors,
            "--out",
            out,
            "--budget",
            "1MiB",
        ];
        refuse(&args, 2, &[out.trim_end_matches('/')]);
    }
    assert_eq!(scratch.contents(), ["file", "in.safetensors", "net.tape"]);
}

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
fn bad_slides() {
    let scratch = Scratch::new("slides");
    let whole = std::fs::read(SLIDE).expect("the slide");
    let with = |data: &str, code, names: &[&str]| {
        let args = [
            "train",
            "--data",
            data,
            "--label",
            "0",
            "--model",
            "streaming-cnn",
        ];
        refuse(&[&args[..], &["--budget", "64MiB"]].concat(), code, names);
    };
    let cut = scratch.write("cut.svs", &whole[..whole.len() / 2]);
    with(&cut, 2, &["cut.svs"]);
    let other = scratch.write("webp.tif", unsupported_tiff());
    with(&other, 2, &["webp.tif", "WebP", "supported are"]);
    with("/no/such.svs", 2, &["/no/such.svs"]);
    refuse(&train(&["--size", "4000x4000"]), 2, &["4000", "2220"]);
    refuse(&train(&["--level", "3"]), 2, &["no level 3"]);
    refuse(&train(&["--label", "2"]), 2, &["label 2"]);
    refuse(&train(&["--model", "unet2d"]), 2, &["a label per pixel"]);
}

/// A tiled TIFF of one WebP tile.
fn unsupported_tiff() -> Vec<u8> {
    let tags: [(u16, u16, u32); 10] = [
        (256, 4, 256),
        (257, 4, 256),
        (258, 3, 8),
        (259, 3, 50001),
        (262, 3, 2),
        (277, 3, 3),
        (322, 4, 256),
        (323, 4, 256),
        (324, 4, 200),
        (325, 4, 16),
    ];
    let mut bytes = b"II*\0\x08\0\0\0".to_vec();
    bytes.extend((tags.len() as u16).to_le_bytes());
    for (tag, kind, value) in tags {
        bytes.extend(tag.to_le_bytes());
        bytes.extend(kind.to_le_bytes());
        bytes.extend(1u32.to_le_bytes());
        bytes.extend(value.to_le_bytes());
    }
    bytes.extend([0; 4]);
    bytes.resize(216, 0);
    bytes
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

/// A training run that keeps most maps on disk: of group norms, with a tiny host.
fn train_on_disk<'a>(more: &[&'a str]) -> Vec<&'a str> {
    let mut args = train(&[
        "--model",
        "resnet10",
        "--width",
        "8",
        "--norm",
        "group",
        "--size",
        "256x192",
        "--budget",
        "16MiB",
        "--host",
        "100KiB",
        "--strategy",
        "offload-all",
    ]);
    args.extend(more);
    args
}

#[test]
fn a_disk_takes_what_the_host_has_no_room_for() {
    let scratch = Scratch::new("disk");
    refuse(
        &train_on_disk(&[]),
        3,
        &["100 KiB of host memory", "a disk"],
    );
    let spill = scratch.path("spill");
    refuse(
        &train_on_disk(&["--disk", "1GiB", "--disk-dir", &spill]),
        2,
        &[&spill, "--disk-dir"],
    );
    std::fs::create_dir(&spill).expect("a folder");
    let disk = ["--disk", "1GiB", "--disk-dir", &spill];
    let lines = answer(&[&train_on_disk(&disk)[..], &["--json"]].concat());
    let step = (lines.lines())
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .find(|event| event["report"]["disk_peak_bytes"].is_object())
        .expect("a step");
    let of = |what: &str, who: &str| step["report"][what][who].as_u64().expect("bytes");
    assert!(of("disk_peak_bytes", "measured") > 1 << 20, "{step}");
    for what in ["disk_peak_bytes", "disk_read_bytes", "disk_write_bytes"] {
        assert_eq!(of(what, "measured"), of(what, "predicted"), "{what}");
    }
    assert_eq!(scratch.contents(), ["spill"]);
    let text = answer(&train_on_disk(&disk));
    assert!(
        text.contains("disk peak") && text.contains("from disk"),
        "{text}"
    );
    // The same from a configuration file, whose paths are relative to it.
    let config = format!(
        "data = '{SLIDE}'\nlabel = 1\nsteps = 1\n[model]\nname = 'resnet10'\nwidth = 8\n\
         norm = 'group'\n[image]\nsize = '256x192'\n[memory]\nbudget = '16MiB'\nhost = '100KiB'\n\
         strategy = 'offload-all'\ndisk = '1GiB'\ndisk_dir = 'spill'\n"
    );
    let path = scratch.write("run.toml", &config);
    assert!(answer(&["train", &path]).contains("disk peak"));
    let path = scratch.write("lost.toml", config.replace("'spill'", "'lost'"));
    refuse(&["train", &path], 2, &["lost", "--disk-dir"]);
}

/// A limit on the size of files stands for a disk that is full: the run ends with a
/// sentence, and the checkpoint of the run before is as it was.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_ends_a_run_and_harms_no_checkpoint() {
    let scratch = Scratch::new("full-disk");
    let out = scratch.path("run");
    let spill = scratch.path("");
    let disk = ["--disk", "1GiB", "--disk-dir", &spill, "--out", &out];
    answer(&train_on_disk(&disk));
    let checkpoint = scratch.0.join("run/checkpoint.safetensors");
    let before = std::fs::read(&checkpoint).expect("a checkpoint");
    let names = scratch.contents();
    let args = train_on_disk(&disk);
    let command: Vec<String> = (args.iter().chain(&["--resume", "--steps", "5"]))
        .map(|arg| format!("'{arg}'"))
        .collect();
    // In blocks of 512 bytes: room for the checkpoint, not for the spill file. The
    // signal that would end the process is how nobody's disk is full.
    let blocks = before.len() / 512 + 2;
    let script = format!(
        "trap '' XFSZ; ulimit -f {blocks}; exec '{}' {}",
        env!("CARGO_BIN_EXE_sstep"),
        command.join(" ")
    );
    let output = Command::new("sh")
        .args(["-c", &script])
        .output()
        .expect("a shell");
    let words = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{words}");
    for word in ["needs a spill file of", "are free", "--disk-dir", &*spill] {
        assert!(words.contains(word), "no `{word}` in\n{words}");
    }
    assert_eq!(std::fs::read(&checkpoint).expect("a checkpoint"), before);
    assert_eq!(scratch.contents(), names);
}
