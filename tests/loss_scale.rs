//! A scale of the loss that follows the gradients: a step whose gradients overflow
//! changes nothing, the next is what it would have been without, and a checkpoint holds
//! the scale.

mod common;

use std::path::Path;
use std::sync::Arc;

use common::Rng;
use sstep::data::Sample;
use sstep::nn::ModelSpec;
use sstep::optim::{self, UpdateRule};
use sstep::source::ArraySource;
use sstep::{
    Budget, DynamicScale, Error, Feed, LossScale, Precision, Session, SessionOptions, Shape,
    TrainEvent, TrainOptions, Trainer,
};

/// A factor with which gradients of `f16` maps overflow.
const LARGE: f64 = (1u64 << 40) as f64;

fn session(rule: UpdateRule, scale: LossScale) -> Session<f32> {
    let budget = Budget {
        device_bytes: 3 << 20,
        host_bytes: 16 << 20,
        disk_bytes: 0,
    };
    let options = SessionOptions {
        precision: Precision::F16,
        loss_scale: Some(scale),
        seed: 4,
        ..SessionOptions::new(budget).training(rule)
    };
    let model = ModelSpec {
        width: Some(8),
        ..ModelSpec::new("streaming-cnn")
    };
    Session::new(model, options).expect("a session")
}

fn sample(class: usize) -> Sample<f32> {
    let shape = Shape::map(1, 3, &[64, 64]);
    let mut rng = Rng(class as u64 + 1);
    let data = (0..shape.elems()).map(|_| rng.unit() as f32 + class as f32);
    Sample {
        name: format!("image {class}"),
        image: Arc::new(ArraySource::new(shape, data.collect()).expect("an image")),
        label: Feed::Flat(vec![class as f32]),
    }
}

/// Bits of all parameters and of the optimiser's state.
fn bits(session: &mut Session<f32>) -> Vec<Vec<u32>> {
    let of = |data: &[f32]| data.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
    let params = session.params().expect("parameters");
    let mut all: Vec<Vec<u32>> = params.values().map(|t| of(&t.data)).collect();
    let state = session.optimiser_state().expect("state");
    all.extend(state.values().map(|t| of(&t.data)));
    all
}

#[test]
fn a_step_that_overflows_changes_nothing_and_the_next_is_right() {
    for rule in [optim::adamw(), optim::sgd()] {
        let mut dynamic = session(rule, LossScale::Dynamic);
        let mut fixed = session(rule, LossScale::Fixed(1024.0));
        let step = |session: &mut Session<f32>, class: usize| {
            let Sample { image, label, .. } = sample(class);
            session
                .step(image, label, 1e-2, &mut |_| {})
                .expect("a step")
        };
        let scale = |factor| DynamicScale {
            factor,
            ..DynamicScale::default()
        };
        // Both move once, so that there is state to keep.
        dynamic.set_dynamic_scale(scale(1024.0));
        let [ours, usual] = [&mut dynamic, &mut fixed].map(|session| step(session, 0));
        assert!(!ours.report.measured.update_skipped && ours.loss_scale == 1024.0);
        assert_eq!(ours.loss.to_bits(), usual.loss.to_bits());
        let before = bits(&mut dynamic);
        assert!(before == bits(&mut fixed), "a first step differs");

        dynamic.set_dynamic_scale(scale(LARGE));
        let skipped = step(&mut dynamic, 1);
        assert!(skipped.report.measured.update_skipped && skipped.loss.is_finite());
        assert!(bits(&mut dynamic) == before, "an overflow moved something");
        let after = dynamic.dynamic_scale().expect("it is dynamic");
        assert_eq!(
            (after.factor, after.n_good, after.n_skipped),
            (LARGE / 2.0, 0, 1)
        );

        // The optimiser has not counted it, so the next step is the other session's second.
        dynamic.set_dynamic_scale(DynamicScale {
            factor: 1024.0,
            ..after
        });
        let [ours, usual] = [&mut dynamic, &mut fixed].map(|session| step(session, 1));
        assert!(!ours.report.measured.update_skipped);
        assert_eq!(ours.loss.to_bits(), usual.loss.to_bits());
        let (ours, usual) = (bits(&mut dynamic), bits(&mut fixed));
        assert!(
            ours == usual && ours != before,
            "the step after an overflow differs"
        );
    }
}

/// Steps that updated nothing with the factor of the next, the scale at the end, and all
/// bits.
type Trained = (Vec<(u64, f64)>, DynamicScale, Vec<Vec<u32>>);

/// Trains to step `steps` from a scale that is halved again and again at first, or from a
/// checkpoint.
fn train(checkpoint: &Path, steps: u64, resume: bool) -> Trained {
    let options = TrainOptions {
        checkpoint: Some(checkpoint.to_path_buf()),
        ..TrainOptions::new(steps, 1e-2)
    };
    let samples = vec![sample(0), sample(1)];
    let session = session(optim::adamw(), LossScale::Dynamic);
    let mut trainer = Trainer::new(session, samples, options).expect("a trainer");
    if resume {
        trainer.resume(checkpoint).expect("a checkpoint");
    } else {
        trainer.session().set_dynamic_scale(DynamicScale {
            factor: LARGE,
            ..DynamicScale::default()
        });
    }
    let mut lowered = Vec::new();
    let ran = trainer.run(&mut |event| {
        if let TrainEvent::Step(step) = event {
            lowered.extend(step.lowered_to.map(|factor| (step.step, factor)));
        }
    });
    ran.expect("a run");
    let scale = trainer.session().dynamic_scale().expect("it is dynamic");
    (lowered, scale, bits(trainer.session()))
}

#[test]
fn a_run_goes_on_with_the_scale_of_its_checkpoint() {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let [a, b] = ["a", "b"].map(|name| dir.join(format!("loss_scale.{name}.safetensors")));
    let (lowered, scale, whole) = train(&a, 40, false);
    let n = lowered.len();
    // It overflows at first, and then hardly any more.
    assert!((4..36).contains(&n), "{lowered:?}");
    for (i, &(step, factor)) in lowered.iter().enumerate() {
        assert_eq!(factor, LARGE / 2f64.powi(i as i32 + 1));
        assert!(step == i as u64 + 1 || i > 4, "{lowered:?}");
    }
    let last = lowered[n - 1].0;
    assert_eq!((scale.n_skipped, scale.n_good), (n as u64, 40 - last));

    let (first, between, _) = train(&b, 3, false);
    assert_eq!((first.len(), between.n_skipped), (3, 3));
    let (rest, end, resumed) = train(&b, 40, true);
    assert_eq!(rest, lowered[3..]);
    assert_eq!(end, scale);
    assert!(resumed == whole, "a resumed run differs");
}

#[test]
fn gradients_that_overflow_at_any_scale_end_a_run() {
    let mut bad = sample(0);
    let shape = Shape::map(1, 3, &[64, 64]);
    // Too large for f16 at once.
    let data = vec![1e30f32; shape.elems()];
    bad.image = Arc::new(ArraySource::new(shape, data).expect("an image"));
    let session = session(optim::adamw(), LossScale::Dynamic);
    let trainer = Trainer::new(session, vec![bad], TrainOptions::new(200, 1e-2));
    let ended = trainer.expect("a trainer").run(&mut |_| {});
    assert!(matches!(ended, Err(Error::Diverged { .. })), "{ended:?}");
}

/// What cannot be left out is not scaled so.
#[test]
fn a_dynamic_scale_needs_an_update() {
    let mut without = session(optim::adamw(), LossScale::Dynamic);
    let options = SessionOptions {
        rule: None,
        ..without.options().clone()
    };
    without = Session::new(ModelSpec::new("streaming-cnn"), options).expect("a session");
    let said = without
        .plan(&[1, 3, 64, 64])
        .expect_err("no rule")
        .to_string();
    assert!(said.contains("needs an update"), "{said}");
}
