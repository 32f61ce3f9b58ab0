//! Maps stored in 16 bits: every plan gives what the untiled run of the same tape gives,
//! gradients are those of the network up to the storage's rounding, and memory and
//! traffic of maps are half.

mod common;

use std::sync::Arc;

use common::narrow::{judge, narrowed, of_spec, scaled, unit};
use common::nets::{NetSpec, net_specs, normed};
use common::{
    AMPLE, Net, Tensors, Tiers, cast, config, differences, execute_as_promised, leaves, oracle,
    tiers,
};
use proptest::prelude::*;
use sstep::source::ArraySource;
use sstep::{Feed, Precision, Session, SessionOptions, nn::ModelSpec, optim};
use sstep_autodiff::{DType, Tape};
use sstep_planner::{Budget, PlanError, Strategy as Planning, verify};

#[derive(Clone, Debug)]
struct Setting {
    to: DType,
    strategy: Planning,
    /// Cap, from the least (0) to ample memory (1).
    squeeze: f64,
    tiers: Tiers,
    overlap: bool,
}

fn settings() -> impl Strategy<Value = Setting> {
    let to = prop::sample::select(vec![DType::Bf16, DType::F16]);
    let strategy = prop::sample::select(Planning::ALL.to_vec());
    let squeeze = prop_oneof![2 => Just(0.0), 1 => Just(1.0), 3 => 0.0..0.3f64, 2 => 0.0..1.0f64];
    (to, strategy, squeeze, tiers(), any::<bool>()).prop_map(
        |(to, strategy, squeeze, tiers, overlap)| Setting {
            to,
            strategy,
            squeeze,
            tiers,
            overlap,
        },
    )
}

/// Plans and runs a net under a setting; `None` if the host is too small.
fn run(net: &Net, values: &Tensors<f32>, setting: &Setting) -> Option<Tensors<f32>> {
    let beyond = setting.tiers.budget(net);
    let least = net.least_in(beyond, setting.strategy)?;
    let room = net.all_bytes().saturating_sub(least) as f64;
    let device_bytes = least + (room * setting.squeeze) as u64;
    let budget = Budget {
        device_bytes,
        ..beyond
    };
    match net.plan(budget, setting.strategy) {
        Ok(plan) => Some(execute_as_promised(plan, values)),
        Err(PlanError::HostTooSmall { .. }) if setting.tiers != Tiers::Host => None,
        Err(e) => panic!("{} at {device_bytes}: {e}", setting.strategy),
    }
}

fn check(spec: &NetSpec, setting: &Setting) {
    let mut net = of_spec(spec, setting.to);
    net.machine.copies_overlap = setting.overlap;
    let values = leaves::<f32>(&net.tape, spec.seed);
    if let Some(got) = run(&net, &values, setting) {
        judge(spec, &net, &values, &got, setting.to);
    }
}

proptest! {
    #![proptest_config(config(300))]

    #[test]
    fn plans_equal_the_untiled_run(spec in net_specs(), setting in settings()) {
        check(&spec, &setting);
    }
}

/// A classifier whose norms are over all of the image, and one without norms.
fn texts() -> [String; 2] {
    let plain = "x = input [2, 3, 40, 36]\nw1 = param [8, 3, 3, 3]\nb1 = param [8]\n\
                 w2 = param [16, 8, 3, 3]\nw3 = param [16, 16, 3, 3]\nfc = param [3, 16]\n\
                 c1 = conv(x, w1, b1) pad=1\nr1 = relu(c1)\np1 = max_pool(r1) kernel=2 stride=2\n\
                 c2 = conv(p1, w2) pad=1\nr2 = relu(c2)\nc3 = conv(r2, w3) pad=1\n\
                 a = add(c3, r2)\nr3 = relu(a)\ns = sum_map(r3)\nh = scale(s) factor=0.003\n\
                 y = linear(h, fc)\nlabels = input [2, 1]\nl = cross_entropy(y, labels)";
    [normed([41, 37], 16, 2), plain.to_owned()]
}

/// Kernels give the same bits in any region, so plans of one tape differ only where sums
/// over tiles, in doubles, round differently: hardly ever.
#[test]
fn plans_of_one_tape_agree_far_below_the_storages_rounding() {
    for text in texts() {
        let tape = Tape::parse(&format!("tape v1 f32\n{text}")).expect("a tape");
        for to in [DType::Bf16, DType::F16] {
            let net = narrowed(&tape, "l", to);
            let values = leaves::<f32>(&net.tape, 11);
            let whole = run(
                &net,
                &values,
                &Setting {
                    to,
                    strategy: Planning::StoreAll,
                    squeeze: 1.0,
                    tiers: Tiers::Nothing,
                    overlap: false,
                },
            )
            .expect("a plan");
            for strategy in [Planning::Optimal, Planning::Streaming, Planning::OffloadAll] {
                for squeeze in [0.0, 0.1, 0.4] {
                    let setting = Setting {
                        to,
                        strategy,
                        squeeze,
                        tiers: Tiers::Host,
                        overlap: false,
                    };
                    let got = run(&net, &values, &setting).expect("a plan");
                    for (name, e) in differences(&got, &whole) {
                        assert!(
                            e <= unit(to) / 8.0,
                            "{to} {strategy} {squeeze}: {name}: {e:e}"
                        );
                    }
                }
            }
        }
    }
}

/// Largest error of a gradient in 16-bit storage, relative to the gradient's norm, and
/// the least. Doubles are held against finite differences by `gradients.rs`.
fn errors(text: &str, to: DType, scale: f64) -> [f64; 2] {
    let single = Tape::parse(&format!("tape v1 f32\n{text}")).expect("a tape");
    let net = scaled(&single, "l", to, scale);
    let values = leaves::<f32>(&net.tape, 5);
    let got = oracle(&net, &values);
    let want = oracle(&Net::parse("f64", text), &cast::<f32, f64>(&values));
    let norm = |xs: Vec<f64>| xs.iter().map(|x| x * x).sum::<f64>().sqrt();
    let gradients = want.iter().filter(|(name, _)| *name != "l");
    let errors: Vec<f64> = gradients
        .map(|(name, t)| {
            let pairs = got[name].data.iter().zip(&t.data);
            norm(pairs.map(|(a, b)| f64::from(*a) - b).collect()) / norm(t.data.clone())
        })
        .collect();
    [
        errors.iter().copied().fold(0.0, f64::max),
        errors.iter().copied().fold(f64::INFINITY, f64::min),
    ]
}

/// What rounding explains: it moves a share of about one unit of the values across zero,
/// or past another maximum, and their gradients are then another's altogether. In norm
/// that is the root.
fn expected(to: DType) -> f64 {
    0.6 * unit(to).sqrt()
}

#[test]
fn gradients_err_by_the_storages_rounding() {
    for text in texts() {
        for (to, scale) in [(DType::Bf16, 1.0), (DType::F16, 1024.0)] {
            let [most, least] = errors(&text, to, scale);
            assert!(most <= expected(to), "{to}: {most:e}");
            // It is not the wide run that is looked at.
            assert!(least >= unit(to) / 1000.0, "{to}: {least:e}");
        }
    }
}

/// Small gradients of maps are multiples of the least `f16` there is, or nothing.
#[test]
fn the_scale_of_the_loss_keeps_small_gradients_in_f16() {
    let text = texts()[1].replace("factor=0.003", "factor=0.000003");
    let [plain, scaled] = [1.0, 65536.0].map(|scale| errors(&text, DType::F16, scale)[0]);
    let allowed = expected(DType::F16);
    assert!(plain > 0.1 && scaled <= allowed, "{plain:e} {scaled:e}");
}

#[test]
fn the_verifier_asks_for_scratch_to_decode_in() {
    let tape = Tape::parse(&format!("tape v1 f32\n{}", texts()[1])).expect("a tape");
    let net = narrowed(&tape, "l", DType::Bf16);
    let budget = Budget {
        device_bytes: 8 << 20,
        ..Budget::default()
    };
    let mut plan = net.plan(budget, Planning::Optimal).expect("a plan");
    let scratch = plan.workspace.expect("kernels decode").0 as usize;
    plan.buffers[scratch].bytes = 64;
    let said = verify(&plan).expect_err("too little").to_string();
    assert!(
        said.contains(&format!("buffer {scratch} has 64 of")),
        "{said}"
    );
    plan.workspace = None;
    let said = verify(&plan).expect_err("none").to_string();
    assert!(said.contains("there is no scratch"), "{said}");
}

/// What a plan of a built-in network takes, by precision.
fn planned(precision: Precision, strategy: Planning) -> sstep::Plan {
    let budget = Budget {
        device_bytes: AMPLE,
        host_bytes: AMPLE,
        disk_bytes: 0,
    };
    let options = SessionOptions {
        precision,
        strategy,
        ..SessionOptions::new(budget).training(optim::adamw())
    };
    let model = ModelSpec {
        width: Some(16),
        ..ModelSpec::new("resnet18")
    };
    let mut session = Session::<f32>::new(model, options).expect("a session");
    (*session.plan(&[1, 3, 1536, 1536]).expect("a plan")).clone()
}

#[test]
fn memory_and_traffic_of_maps_are_half() {
    let [wide, narrow] =
        [Precision::F32, Precision::Bf16].map(|p| planned(p, Planning::StoreAll).predicted);
    let ratio = narrow.peak_bytes as f64 / wide.peak_bytes as f64;
    assert!((0.5..0.62).contains(&ratio), "{ratio}");
    // With the image, which is f32 either way.
    let ratio = narrow.untiled_bytes as f64 / wide.untiled_bytes as f64;
    assert!((0.5..0.66).contains(&ratio), "{ratio}");
    let [wide, narrow] =
        [Precision::F32, Precision::Bf16].map(|p| planned(p, Planning::OffloadAll).predicted);
    let ratio =
        (narrow.h2d_bytes + narrow.d2h_bytes) as f64 / (wide.h2d_bytes + wide.d2h_bytes) as f64;
    assert!((0.45..0.55).contains(&ratio), "{ratio}");
}

/// Losses of a short training run on two images.
fn losses(precision: Precision) -> Vec<f64> {
    let budget = Budget {
        device_bytes: 3 << 20,
        host_bytes: 16 << 20,
        disk_bytes: 0,
    };
    let options = SessionOptions {
        precision,
        seed: 2,
        ..SessionOptions::new(budget).training(optim::adamw())
    };
    let model = ModelSpec {
        width: Some(8),
        ..ModelSpec::new("streaming-cnn")
    };
    let mut session = Session::<f32>::new(model, options).expect("a session");
    let shape = sstep::Shape::map(1, 3, &[96, 96]);
    let image = |class: usize| {
        let mut rng = common::Rng(class as u64 + 1);
        let data = (0..shape.elems()).map(|i| {
            let stripe = if class == 0 { i % 96 / 8 } else { i / 96 / 8 };
            (stripe % 2) as f32 + 0.1 * rng.unit() as f32
        });
        Arc::new(ArraySource::new(shape, data.collect()).expect("an image"))
    };
    let images = [image(0), image(1)];
    (0..24)
        .map(|step| {
            let class = step % 2;
            let label = Feed::Flat(vec![class as f32]);
            let image = Arc::clone(&images[class]);
            let step = session.step(image, label, 3e-3, &mut |_| {});
            step.expect("a step").loss
        })
        .collect()
}

#[test]
fn training_lowers_the_loss_as_in_single_precision() {
    let [wide, brain, half] = Precision::ALL.map(losses);
    let last = |losses: &[f64]| losses[20..].iter().sum::<f64>() / 4.0;
    let first = wide[..2].iter().sum::<f64>() / 2.0;
    assert!(last(&wide) < 0.5 * first, "{wide:?}");
    for narrow in [brain, half] {
        assert!(narrow != wide);
        let apart = (last(&narrow) - last(&wide)).abs();
        assert!(apart < 0.1 * first, "{narrow:?}\n{wide:?}");
    }
}
