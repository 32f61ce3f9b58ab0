//! Images that are bytes, on the driver's stand-in: they are copied as bytes, and what a
//! kernel makes of them are the CPU's elements bit for bit.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
mod cuda;

use std::sync::Arc;

use common::nets::{NetSpec, build, net_specs};
use common::{AMPLE, HOW, Net, Rng, Tensors, config, leaves, ready_on};
use cuda::{BYTES_OUT_OF_ORDER, alone, bytes_to_device, driver, image, on_cuda, plan_of};
use proptest::prelude::*;
use sstep_autodiff::{Form, Region, Shape, Span, Ty};
use sstep_executor::cuda::Cuda;
use sstep_executor::source::{
    ByteArraySource, Crop, SlideOptions, SlideSource, StackSource, TileSource,
};
use sstep_executor::{Backend, Feed, Place, Tensor};
use sstep_kernels::{ByteScale, Layout, Out, Real};
use sstep_planner::{Budget, Plan, Strategy as Planning};

const SLIDE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/examples/data/CMU-1-Small-Region.svs"
);

/// An image of random bytes, with a scale of its own for every channel.
fn bytes_of(shape: Shape, seed: u64) -> ByteArraySource {
    let mut rng = Rng(seed);
    let data = (0..shape.elems()).map(|_| rng.bits() as u8).collect();
    let scale = |_| ByteScale {
        mean: rng.unit(),
        std: 1.01 + rng.unit(),
    };
    let scales = (0..shape.channels()).map(scale).collect();
    ByteArraySource::new(shape, data, scales).unwrap()
}

/// A map, a window of it, and regions of the window.
#[derive(Clone, Debug)]
struct Case {
    shape: Shape,
    capacity: Vec<usize>,
    present: Region,
    regions: Vec<Region>,
}

/// Part of `0..extent` by two numbers.
fn part(extent: usize, (a, b): (usize, usize)) -> Span {
    let lo = a % extent;
    Span::new(lo, lo + 1 + b % (extent - lo))
}

fn cases() -> impl Strategy<Value = Case> {
    let pair = || (0usize..1000, 0usize..1000);
    let axis = (1usize..12, pair(), 0usize..3, [pair(), pair(), pair()]);
    // Rows longer than what a block takes at a time.
    let row = (1usize..700, pair(), 0usize..9, [pair(), pair(), pair()]);
    let axes = prop::collection::vec(axis, 1..=3);
    (1usize..5, axes, row).prop_map(|(channels, mut axes, row)| {
        axes.push(row);
        let extents: Vec<usize> = axes.iter().map(|a| a.0).collect();
        let present: Vec<Span> = axes.iter().map(|a| part(a.0, a.1)).collect();
        let capacity = axes.iter().zip(&present).map(|(a, p)| p.len() + a.2);
        let region = |i: usize| {
            let inner = axes.iter().zip(&present).map(|(a, p)| {
                let inner = part(p.len(), a.3[i]);
                Span::new(p.lo + inner.lo, p.lo + inner.hi)
            });
            Region::new(&inner.collect::<Vec<_>>())
        };
        Case {
            shape: Shape::map(extents[0], channels, &extents[1..]),
            capacity: capacity.collect(),
            present: Region::new(&present),
            regions: (0..3).map(region).collect(),
        }
    })
}

/// Reads regions one after another into a window on the device and one on the CPU, and
/// holds all of the windows against each other.
fn reads_alike<T: Real>(case: &Case, seed: u64) {
    let ty = Ty {
        dtype: T::DTYPE,
        shape: case.shape,
        form: Form::Map,
    };
    let layout = Layout::window(&ty, &case.capacity, &case.present);
    let source = bytes_of(case.shape, seed);
    let place = Place {
        offset: 192,
        layout,
    };
    let mut rng = Rng(!seed);
    let mut want: Vec<T> = (0..layout.len).map(|_| T::from_f64(rng.unit())).collect();
    driver();
    let bytes = 192 + (layout.len * size_of::<T>()) as u64;
    let mut cuda = Cuda::<T>::from_image(0, bytes, image::<T>(false), false).unwrap();
    cuda.write(&place, &want).unwrap();
    for region in &case.regions {
        cuda.read_source("image", &source, region, &place).unwrap();
        source
            .read(region, &mut Out::new(layout, &mut want))
            .unwrap();
    }
    let got = cuda.read(&place).unwrap();
    // Every value is a number, so that equal values are equal bits but for zeros.
    let bits = |v: &[T]| v.iter().map(|v| v.to_f64().to_bits()).collect::<Vec<_>>();
    assert_eq!(bits(&got), bits(&want));
}

/// A plan's outputs, the bytes that were copied to the device for them, and those that
/// the report says came from sources.
fn outputs<T: Real>(plan: &Plan, leaves: &Tensors<T>, feed: Feed<T>) -> (Vec<Vec<u64>>, [u64; 2]) {
    let (mut executor, mut feeds) = ready_on(on_cuda::<T>(plan.clone(), false), leaves);
    feeds.insert("image".to_owned(), feed);
    let before = bytes_to_device();
    let report = executor.step(&feeds, &HOW, &mut |_| {}).unwrap();
    let bits = |t: Tensor<T>| t.data.iter().map(|v| v.to_f64().to_bits()).collect();
    let copied = bytes_to_device() - before;
    let counts = [copied, report.measured.source_bytes];
    (report.outputs.into_values().map(bits).collect(), counts)
}

/// Elements of a source, whole.
fn elements<T: Real>(source: &dyn TileSource<T>) -> Tensor<T> {
    let ty = Ty {
        dtype: T::DTYPE,
        shape: source.shape(),
        form: Form::Map,
    };
    let mut data = vec![T::ZERO; ty.shape.elems()];
    let mut out = Out::new(Layout::whole(&ty), &mut data);
    source.read(&Region::whole(&ty), &mut out).unwrap();
    Tensor::new(ty.shape, data)
}

/// A plan fed with bytes gives the bits of one fed with elements. The bytes that each
/// copied to the device, a count of the process's, and those that each says it read.
fn steps_alike<T: Real>(
    plan: &Plan,
    mut values: Tensors<T>,
    source: Arc<dyn TileSource<T>>,
) -> [[u64; 2]; 2] {
    values.insert("image".to_owned(), elements(source.as_ref()));
    let (_, feeds) = ready_on(on_cuda::<T>(plan.clone(), false), &values);
    let (want, of_elements) = outputs(plan, &values, feeds["image"].clone());
    let (got, of_bytes) = outputs(plan, &values, Feed::Source(source));
    assert_eq!(got, want);
    // A plan does not know what an image is made of.
    assert_eq!(of_elements[1], plan.predicted.source_bytes);
    assert!(of_bytes[1] < of_elements[1]);
    [of_elements, of_bytes]
}

fn any_net<T: Real>(spec: &NetSpec, strategy: Planning, squeeze: f64) {
    let net = build(spec, T::DTYPE, false);
    let Some(plan) = plan_of(&net, strategy, squeeze, true) else {
        return;
    };
    let x = net.tape.ty(net.tape.by_name("image").unwrap()).shape;
    let values = leaves::<T>(&net.tape, spec.seed);
    steps_alike(&plan, values, Arc::new(bytes_of(x, spec.seed)));
}

proptest! {
    #![proptest_config(config(60))]

    #[test]
    fn a_window_holds_the_elements_of_the_bytes(case in cases(), seed in any::<u64>()) {
        reads_alike::<f32>(&case, seed);
        reads_alike::<f64>(&case, seed);
    }
}

proptest! {
    #![proptest_config(config(12))]

    #[test]
    fn any_plan_gives_the_same_bits_from_bytes(
        spec in net_specs(),
        strategy in prop::sample::select(Planning::ALL.to_vec()),
        squeeze in prop_oneof![Just(0.0), 0.0..1.0f64],
        double in any::<bool>(),
    ) {
        if double {
            any_net::<f64>(&spec, strategy, squeeze);
        } else {
            any_net::<f32>(&spec, strategy, squeeze);
        }
    }
}

/// Two windows of a slide as a batch, decoded ahead by other threads.
#[test]
fn a_slide_is_copied_as_the_bytes_that_were_decoded() {
    let name = "a_slide_is_copied_as_the_bytes_that_were_decoded";
    if std::env::var_os("SSTEP_ALONE").is_none() {
        let (passed, said) = alone(name, &[("SSTEP_ALONE", "1")]);
        assert!(passed, "{said}");
        return;
    }
    let crop = |x, y| -> Arc<dyn TileSource<f32>> {
        let (w, h) = (150, 90);
        let options = SlideOptions {
            crop: Some(Crop { x, y, w, h }),
            mean: [0.7, 0.55, 0.7],
            std: [0.2, 0.25, 0.2],
            ..SlideOptions::default()
        };
        Arc::new(SlideSource::open(SLIDE, options).unwrap())
    };
    let batch = StackSource::new(vec![crop(200, 180), crop(500, 700)]).unwrap();
    let net = Net::parse(
        "f32",
        "image = input [2, 3, 90, 150]\nw1 = param [4, 3, 3, 3]\ny1 = conv(image, w1) pad=1 stride=2\n\
         r1 = relu(y1)\nw2 = param [4, 4, 3, 3]\ny2 = conv(r1, w2) pad=1\ns = sum_map(y2)",
    );
    let least = net.least(AMPLE, Planning::Optimal).unwrap();
    let budget = Budget {
        device_bytes: 2 * least,
        host_bytes: AMPLE,
        disk_bytes: 0,
    };
    let plan = net.plan(budget, Planning::Optimal).unwrap();
    assert!(plan.stages[0].n_tiles() > 1);
    let [of_elements, of_bytes] = steps_alike(&plan, leaves(&net.tape, 5), Arc::new(batch));
    let (read, from_host) = (plan.predicted.source_bytes, plan.predicted.h2d_bytes);
    assert_eq!(of_elements, [from_host + read, read]);
    assert_eq!(of_bytes, [from_host + read / 4, read / 4]);
}

/// These tests can fail: where bytes are overwritten before they are read, they do.
#[test]
fn a_barrier_that_is_missing_is_found() {
    if std::env::var_os("SSTEP_FAULT").is_none() {
        let run = |fault| {
            alone(
                "a_barrier_that_is_missing_is_found",
                &[("SSTEP_FAULT", fault)],
            )
        };
        let (passed, said) = run("none");
        assert!(passed, "{said}");
        assert!(!run(BYTES_OUT_OF_ORDER).0);
        return;
    }
    let spans = [Span::new(0, 1), Span::new(0, 4), Span::new(0, 300)];
    let case = Case {
        shape: Shape::map(1, 2, &[4, 300]),
        capacity: vec![1, 4, 300],
        present: Region::new(&spans),
        regions: vec![Region::new(&spans)],
    };
    reads_alike::<f32>(&case, 1);
}
