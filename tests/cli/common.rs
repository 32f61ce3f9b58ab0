//! Running the program, in a folder of the test's own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use sstep::params::{self, Tensors};
use sstep::{Shape, Tensor};

pub const SLIDE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/examples/data/CMU-1-Small-Region.svs"
);

/// A network as text: a convolution, its mean, a linear layer.
pub const TAPE: &str = "tape v1 f32
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
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("sstep-cli-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a scratch folder");
        Scratch(dir)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_string_lossy().into_owned()
    }

    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        std::fs::write(self.0.join(name), contents).expect("a scratch file");
        self.path(name)
    }

    /// Names of everything in it, also below.
    pub fn contents(&self) -> Vec<String> {
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
pub fn sstep(args: &[&str]) -> Output {
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
pub fn answer(args: &[&str]) -> String {
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
pub fn refuse(args: &[&str], code: i32, names: &[&str]) {
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
pub fn train<'a>(more: &[&'a str]) -> Vec<&'a str> {
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

pub fn tensor(dims: &[usize], value: impl Fn(usize) -> f32) -> Tensor<f32> {
    let shape = Shape::new(dims);
    Tensor::new(shape, (0..shape.elems()).map(value).collect())
}

/// Values for the leaves of [`TAPE`].
pub fn leaves() -> Tensors<f32> {
    let wave = |k: f32| move |i: usize| ((i as f32 + 1.0) * k).sin() * 0.5;
    Tensors::from([
        ("x".to_owned(), tensor(&[1, 3, 40, 36], wave(0.37))),
        ("w".to_owned(), tensor(&[4, 3, 3, 3], wave(1.3))),
        ("b".to_owned(), tensor(&[4], wave(0.7))),
        ("fc".to_owned(), tensor(&[2, 4], wave(2.1))),
        ("labels".to_owned(), tensor(&[1, 1], |_| 1.0)),
    ])
}

pub fn save(scratch: &Scratch, name: &str, tensors: &Tensors<f32>) -> String {
    let path = scratch.path(name);
    let named = tensors.iter().map(|(name, t)| (name.clone(), t));
    params::save(Path::new(&path), named, &Default::default()).expect("tensors are written");
    path
}
