//! Training: parameters follow the reference's gradients by the book, whatever
//! the plan, and an image is an image whether it lies in memory or in a file.

mod common;

use std::path::PathBuf;
use std::sync::Arc;

use common::{AMPLE, Net, Rng, Tensors, leaves};
use sstep::nn::{ModelSpec, Norm};
use sstep::optim::UpdateRule;
use sstep::slide::{Encoding, SlideSpec, SlideWriter};
use sstep::source::{ArraySource, SlideOptions, SlideSource, TileSource};
use sstep::{Budget, Feed, Feeds, Session, SessionOptions, Shape, Strategy, Tape, reference};

/// A net with a norm, dropout, and parameters of several shapes.
const NET: &str = "\
x = input [2, 3, 20, 18]
w1 = param [4, 3, 3, 3]
b1 = param [4]
g = param [4]
b = param [4]
w2 = param [3, 4]
c = conv(x, w1, b1) pad=1 stride=2
m = moments(c) groups=2
n = normalise(c, m, g, b) groups=2 eps=1e-3
r = silu(n)
d = dropout(r) p=0.2
s = sum_map(d)
f = scale(s) factor=0.0111
y = linear(f, w2)
labels = input [2, 1]
l = cross_entropy(y, labels)
";

/// The book's formulas, on vectors of state per parameter.
fn by_hand(rule: &UpdateRule, lr: f64, t: i32, p: &mut f64, g: f64, state: &mut [f64; 2]) {
    match *rule {
        UpdateRule::Sgd {
            momentum,
            nesterov,
            weight_decay,
        } => {
            let g = g + weight_decay * *p;
            state[0] = momentum * state[0] + g;
            *p -= lr
                * if nesterov {
                    g + momentum * state[0]
                } else {
                    state[0]
                };
        }
        UpdateRule::Adam {
            beta1,
            beta2,
            eps,
            weight_decay,
        } => {
            let g = g + weight_decay * *p;
            *p -= lr * adam(beta1, beta2, eps, t, g, state);
        }
        UpdateRule::AdamW {
            beta1,
            beta2,
            eps,
            weight_decay,
        } => {
            *p -= lr * weight_decay * *p;
            *p -= lr * adam(beta1, beta2, eps, t, g, state);
        }
    }
}

fn adam(beta1: f64, beta2: f64, eps: f64, t: i32, g: f64, [m, v]: &mut [f64; 2]) -> f64 {
    *m = beta1 * *m + (1.0 - beta1) * g;
    *v = beta2 * *v + (1.0 - beta2) * g * g;
    (*m / (1.0 - beta1.powi(t))) / ((*v / (1.0 - beta2.powi(t))).sqrt() + eps)
}

#[test]
fn parameters_follow_the_references_gradients() {
    let net = Net::parse("f64", NET);
    let text = format!("tape v1 f64\n{NET}output l\n");
    let rules = [
        UpdateRule::Sgd {
            momentum: 0.0,
            nesterov: false,
            weight_decay: 0.0,
        },
        UpdateRule::Sgd {
            momentum: 0.9,
            nesterov: false,
            weight_decay: 0.01,
        },
        UpdateRule::Sgd {
            momentum: 0.8,
            nesterov: true,
            weight_decay: 0.0,
        },
        UpdateRule::Adam {
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.1,
        },
        UpdateRule::AdamW {
            beta1: 0.8,
            beta2: 0.999,
            eps: 1e-6,
            weight_decay: 0.1,
        },
    ];
    for (rule, strategy) in rules.iter().zip(Strategy::ALL) {
        let seed = 3;
        let mut values = leaves::<f64>(&net.tape, 1);
        let options = SessionOptions {
            strategy,
            seed,
            ..SessionOptions::new(Budget {
                device_bytes: 96 << 10,
                host_bytes: AMPLE,
                disk_bytes: 0,
            })
        };
        let tape = Tape::parse(&text).expect("a tape");
        let mut session = Session::from_tape(tape, options.training(*rule)).expect("a session");
        let is_input = |name: &str| ["x", "labels"].contains(&name);
        let params = values.iter().filter(|(name, _)| !is_input(name));
        session
            .set_params(params.map(|(n, t)| (n.clone(), t.clone())).collect())
            .expect("set");
        let image = ArraySource::new(values["x"].shape, values["x"].data.clone()).expect("image");
        let feeds = Feeds::from([
            (
                "x".to_owned(),
                Feed::Source(Arc::new(image) as Arc<dyn TileSource<f64>>),
            ),
            (
                "labels".to_owned(),
                Feed::Flat(values["labels"].data.clone()),
            ),
        ]);
        let mut states: std::collections::BTreeMap<String, Vec<[f64; 2]>> = Default::default();
        for step in 0..4 {
            let lr = 0.05 / (step + 1) as f64;
            let want = reference(&net.program(), &values, step, seed).expect("a reference");
            let got = session.run(&[], &feeds, lr, &mut |_| {}).expect("a step");
            assert!((got.loss - want["l"].data[0]).abs() <= 1e-10, "step {step}");
            for (name, grad) in &want {
                let Some(name) = name.strip_prefix("grad/") else {
                    continue;
                };
                let param = values.get_mut(name).expect("a parameter");
                let state = states.entry(name.to_owned()).or_default();
                state.resize(grad.data.len(), [0.0; 2]);
                for ((p, &g), s) in param.data.iter_mut().zip(&grad.data).zip(state) {
                    by_hand(rule, lr, step as i32 + 1, p, g, s);
                }
            }
            for (name, tensor) in session.params().expect("parameters") {
                for (a, b) in tensor.data.iter().zip(&values[name].data) {
                    assert!(
                        (a - b).abs() <= 1e-9,
                        "{rule:?} step {step}: {name}: {a} for {b}"
                    );
                }
            }
        }
    }
}

/// A file that goes with the test.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

/// Writes random interleaved pixels without loss.
fn slide(name: &str, (w, h): (usize, usize), rgb: &[u8]) -> Scratch {
    let path = std::env::temp_dir().join(format!("sstep-{}-{name}.tif", std::process::id()));
    let spec = SlideSpec {
        tile: 64,
        encoding: Encoding::Deflate,
        ..SlideSpec::new(w, h)
    };
    let mut writer = SlideWriter::create(&path, spec).expect("a writer");
    writer.push_rows(rgb).expect("rows");
    writer.finish().expect("a slide");
    Scratch(path)
}

/// Three steps of training; the losses and the parameters afterwards.
fn train(image: Arc<dyn TileSource<f32>>, device_bytes: u64) -> (Vec<f64>, Tensors<f32>) {
    let model = ModelSpec {
        width: Some(8),
        norm: Some(Norm::Group),
        ..ModelSpec::new("resnet10")
    };
    let options = SessionOptions::new(Budget {
        device_bytes,
        host_bytes: 0,
        disk_bytes: 0,
    });
    let mut session =
        Session::<f32>::new(model, options.training(sstep::optim::adam())).expect("a session");
    let mut losses = Vec::new();
    for _ in 0..3 {
        let label = Feed::Flat(vec![1.0]);
        let step = session
            .step(Arc::clone(&image), label, 1e-2, &mut |_| {})
            .expect("a step");
        assert!(step.report.measured.peak_bytes <= device_bytes);
        losses.push(step.loss);
    }
    (losses, session.params().expect("parameters").clone())
}

#[test]
fn a_file_trains_like_the_array_of_its_pixels() {
    let (w, h) = (150, 130);
    let mut rng = Rng(4);
    let rgb: Vec<u8> = (0..w * h * 3).map(|_| rng.bits() as u8).collect();
    let file = slide("train", (w, h), &rgb);
    let options = SlideOptions {
        cache_bytes: 40_000,
        ..SlideOptions::default()
    };
    let from_file = SlideSource::open(&file.0, options).expect("a slide");
    let planar = (0..3).flat_map(|c| rgb.iter().skip(c).step_by(3));
    let planar = planar.map(|&v| (f64::from(v) / 255.0) as f32).collect();
    let from_array = ArraySource::new(Shape::map(1, 3, &[h, w]), planar).expect("an array");
    let cap = 4 << 20;
    let (losses, params) = train(Arc::new(from_file), cap);
    let (same_losses, same_params) = train(Arc::new(from_array), cap);
    // The same plan and the same pixels: the same bits.
    assert_eq!(losses, same_losses);
    assert_eq!(params, same_params);
    assert!(losses[2] < losses[0], "{losses:?}");
}

#[test]
fn training_does_not_depend_on_the_cap() {
    let (w, h) = (96, 112);
    let mut rng = Rng(8);
    let data: Vec<f32> = (0..w * h * 3).map(|_| rng.unit() as f32).collect();
    let image = ArraySource::new(Shape::map(1, 3, &[h, w]), data).expect("an array");
    let image: Arc<dyn TileSource<f32>> = Arc::new(image);
    let (tight, _) = train(Arc::clone(&image), 2 << 20);
    let (ample, _) = train(image, 1 << 30);
    for (a, b) in tight.iter().zip(&ample) {
        assert!((a - b).abs() <= 1e-4 * b.abs(), "{tight:?} {ample:?}");
    }
}
