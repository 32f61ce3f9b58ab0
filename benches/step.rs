//! One training step, forward and backward, under shrinking caps and under
//! every strategy: what memory costs in time. The caps are fractions of what
//! the strategy that stores everything takes.

use std::sync::Arc;

use criterion::{Criterion, criterion_group, criterion_main};
use sstep::nn::{ModelSpec, Norm};
use sstep::source::ArraySource;
use sstep::{Budget, Feed, Session, SessionOptions, Shape, Strategy};

/// Image extent.
const SIZE: usize = 512;

fn session(strategy: Strategy, device_bytes: u64) -> Option<Session<f32>> {
    let budget = Budget {
        device_bytes,
        host_bytes: 4 << 30,
        disk_bytes: 0,
    };
    let options = SessionOptions {
        strategy,
        ..SessionOptions::new(budget)
    };
    let model = ModelSpec {
        width: Some(16),
        norm: Some(Norm::Group),
        ..ModelSpec::new("resnet18")
    };
    let mut session = Session::new(model, options).expect("a session");
    session.plan(&[1, 3, SIZE, SIZE]).ok().map(|_| session)
}

fn steps(c: &mut Criterion) {
    let data: Vec<f32> = (0..3 * SIZE * SIZE)
        .map(|i| (i % 251) as f32 / 251.0)
        .collect();
    let shape = Shape::map(1, 3, &[SIZE, SIZE]);
    let image = Arc::new(ArraySource::new(shape, data).expect("an image"));
    let whole = session(Strategy::StoreAll, 16 << 30)
        .and_then(|mut s| s.plan(&[1, 3, SIZE, SIZE]).ok())
        .expect("storing everything fits 16 GiB")
        .predicted
        .peak_bytes;
    let mut group = c.benchmark_group("step");
    group.sample_size(10);
    for strategy in Strategy::ALL {
        for part in [1, 4, 16] {
            let Some(mut session) = session(strategy, whole / part) else {
                println!("{strategy} has no plan at 1/{part} of store-all");
                continue;
            };
            group.bench_function(format!("{strategy}, 1/{part} of store-all"), |b| {
                b.iter(|| {
                    let label = Feed::Flat(vec![1.0]);
                    session
                        .step(image.clone(), label, 0.0, &mut |_| {})
                        .expect("a step")
                        .loss
                });
            });
        }
    }
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
