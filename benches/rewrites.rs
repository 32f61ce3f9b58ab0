//! Seconds of saturation, and of extraction at every price, for the steps of built-in
//! networks; and of extraction from e-graphs with many circles, grown from a seed.
//! Before criterion measures, each case prints what was found.

use std::collections::BTreeSet;

use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sstep::nn::{ModelSpec, Norm, build};
use sstep::{Machine, Program, StepSpec, backward};
use sstep_planner::rewrite::extract::{ClassIx, Extraction, Form, extract};
use sstep_planner::rewrite::{prices, variants};

const NETS: [(&str, Norm); 4] = [
    ("resnet18", Norm::FrozenBatch),
    ("resnet34", Norm::Group),
    ("resnet50", Norm::FrozenBatch),
    ("unet2d", Norm::Group),
];

fn program(name: &str, norm: Norm) -> Program {
    let model = ModelSpec {
        norm: Some(norm),
        ..ModelSpec::new(name)
    };
    let mut net = build(&model, 1, &[4096, 4096]).expect("a built-in network");
    let gradients = backward(&mut net.tape, net.loss).expect("differentiable");
    let spec = StepSpec {
        outputs: vec![net.loss],
        updates: gradients.iter().collect(),
        state_slots: 2,
    };
    Program::new(&net.tape, &spec).expect("a program")
}

fn steps(c: &mut Criterion) {
    let machine = Machine::default();
    let mut group = c.benchmark_group("rewrites");
    group.sample_size(10);
    for (name, norm) in NETS {
        let program = program(name, norm);
        let all = prices(&machine);
        let found = variants(&program, &machine, &all).expect("programs");
        for v in &found {
            println!(
                "{name} from {:.1e} s a byte: {}",
                v.secs_per_kept_byte, v.report
            );
        }
        // At no price nothing is extracted.
        for (what, prices) in [("saturated", &[][..]), ("and extracted", &all[..])] {
            group.bench_function(BenchmarkId::new(what, name), |b| {
                b.iter(|| variants(&program, &machine, prices).expect("programs"));
            });
        }
    }
    group.finish();
}

/// `classes` classes of 1 to 4 forms of 1 to 3 reads, any class by any: most choices
/// have circles. The last form of each reads only classes before it, so that there is one.
fn circles(classes: u32, seed: u64) -> Extraction {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut form = |below: u32| {
        let n_reads = if below == 0 {
            0
        } else {
            rng.random_range(1..=3)
        };
        let reads: BTreeSet<u32> = (0..n_reads).map(|_| rng.random_range(0..below)).collect();
        Form {
            cost: f64::from(rng.random_range(1..=100)),
            reads: reads.into_iter().map(ClassIx).collect(),
        }
    };
    let classes: Vec<Vec<Form>> = (0..classes)
        .map(|class| {
            let mut forms: Vec<Form> = (0..class % 4).map(|_| form(classes)).collect();
            forms.push(form(class));
            forms
        })
        .collect();
    let last = ClassIx(classes.len() as u32 - 1);
    Extraction {
        classes,
        roots: vec![last],
    }
}

fn extraction(c: &mut Criterion) {
    let mut group = c.benchmark_group("extraction");
    group.sample_size(10);
    for n_classes in [50, 100, 200] {
        let problem = circles(n_classes, 1);
        let found = extract(&problem).expect("solves").expect("a choice");
        println!(
            "{n_classes} classes: cost {} of at least {:.3}",
            found.cost, found.bound
        );
        group.bench_function(BenchmarkId::from_parameter(n_classes), |b| {
            b.iter(|| extract(&problem).expect("solves"));
        });
    }
    group.finish();
}

criterion_group!(benches, steps, extraction);
criterion_main!(benches);
