//! Seconds that planning takes, and what it promises, for networks and caps of
//! everyday size. Before criterion measures, each case prints its plan's
//! promises, so that a change in speed can be held against one in quality.

use criterion::{Criterion, criterion_group, criterion_main};
use sstep::nn::{ModelSpec, Norm, build};
use sstep::{Budget, ByteSize, Machine, StepSpec, Strategy, Tape, backward, plan};

/// Name, norm, image extent, device and host caps in bytes.
const CASES: [(&str, Norm, usize, u64, u64); 4] = [
    ("resnet18", Norm::FrozenBatch, 16384, 1 << 30, 0),
    ("resnet34", Norm::FrozenBatch, 65536, 8 << 30, 64 << 30),
    ("resnet10", Norm::Group, 16384, 256 << 20, 8 << 30),
    ("unet2d", Norm::Group, 2048, 512 << 20, 16 << 30),
];

fn step_of(name: &str, norm: Norm, size: usize) -> (Tape, StepSpec) {
    let width = (name == "resnet10").then_some(16);
    let model = ModelSpec {
        norm: Some(norm),
        width,
        ..ModelSpec::new(name)
    };
    let mut net = build(&model, 1, &[size, size]).expect("a built-in network");
    let gradients = backward(&mut net.tape, net.loss).expect("differentiable");
    let spec = StepSpec {
        outputs: vec![net.loss],
        updates: gradients.iter().collect(),
        state_slots: 2,
    };
    (net.tape, spec)
}

fn planning(c: &mut Criterion) {
    let mut group = c.benchmark_group("planning");
    group.sample_size(10);
    for (name, norm, size, device_bytes, host_bytes) in CASES {
        let (tape, spec) = step_of(name, norm, size);
        let budget = Budget {
            device_bytes,
            host_bytes,
            disk_bytes: 0,
        };
        let machine = Machine::default();
        let go = || plan(&tape, &spec, &machine, budget, Strategy::Optimal).expect("a plan");
        let made = go();
        println!(
            "{name} {size}²: {} nodes, {} stages, gap {:.1} %, {:.2} x FLOPs, peak {}, traffic {}",
            tape.len(),
            made.stages.len(),
            100.0 * made.gap,
            made.predicted.flops / made.predicted.flops_once,
            ByteSize(made.predicted.peak_bytes),
            ByteSize(made.predicted.h2d_bytes + made.predicted.d2h_bytes),
        );
        group.bench_function(format!("{name} {size}"), |b| b.iter(go));
    }
    group.finish();
}

criterion_group!(benches, planning);
criterion_main!(benches);
