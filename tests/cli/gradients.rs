//! Gradients of tapes, and files that cannot be read or written.

use std::path::Path;

use sstep::params::TensorFile;

use crate::common::{Scratch, TAPE, answer, leaves, refuse, save, tensor, train};

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
