//! A disk as the third tier, and one that is full.

use std::process::Command;

use crate::common::{SLIDE, Scratch, answer, refuse, train};

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
