//! Bytes per second of the ops whose speed is that of memory.
//!
//! `cargo bench -p sstep-kernels --bench pointwise [name]`; the throughput
//! counts each element read and written once. `copy` is what memory gives.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sstep_autodiff::{
    DType, Form, NormAttrs, NormKind, Num, Op, PoolAttrs, ReductionState, Region, Saved, Shape, Ty,
    UnaryKind, UpsampleAttrs, UpsampleMode, infer,
};
use sstep_kernels::{Box4, In, Job, Layout, Out, State, cpu};

/// A tile of the first layers of a network: 16 channels, 256 rows of 4096.
const TILE: [usize; 4] = [1, 16, 256, 4096];

fn map(dims: &[usize]) -> (Ty, Vec<f32>) {
    let ty = Ty {
        dtype: DType::F32,
        shape: Shape::new(dims),
        form: Form::Map,
    };
    // Whole numbers from 0 to 7, in no order: labels, and values with ties.
    let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 29) as f32;
    (ty, (0..ty.shape.elems()).map(value).collect())
}

fn flat(dims: &[usize], value: f32) -> (Ty, Vec<f32>) {
    let ty = Ty {
        dtype: DType::F32,
        shape: Shape::new(dims),
        form: Form::Flat,
    };
    (ty, vec![value; ty.shape.elems()])
}

fn measure(c: &mut Criterion, name: &str, op: Op, inputs: &[&(Ty, Vec<f32>)]) {
    let tys: Vec<Ty> = inputs.iter().map(|(ty, _)| *ty).collect();
    let views: Vec<In<f32>> = inputs
        .iter()
        .map(|(t, x)| In::new(Layout::whole(t), x))
        .collect();
    let ty = infer(&op, &tys).expect("the bench is well-typed");
    let mut data = vec![0.0; ty.shape.elems()];
    let mut out = Out::new(Layout::whole(&ty), &mut data);
    let bytes = ty.bytes() + tys.iter().map(Ty::bytes).sum::<u64>();
    let mut group = c.benchmark_group(name);
    group.throughput(Throughput::Bytes(bytes));
    let domain = op.domain(&tys, &ty);
    let region = Box4::lift(&Region::whole(&domain.map_or(ty, |i| tys[i])));
    let job = Job {
        op: &op,
        region,
        inputs: &views,
        step: 0,
        seed: 0,
        plain: false,
    };
    if domain.is_none() {
        group.bench_function("run", |b| b.iter(|| cpu::run(&job, &mut out, &mut [])));
    } else if let ReductionState::F64(n) = op.reduction_state(&ty) {
        let mut doubles = vec![0.0; n];
        let mut state = State::F64(&mut doubles);
        cpu::begin(&op, &mut state, &ty);
        group.bench_function("accumulate", |b| {
            b.iter(|| cpu::accumulate(&job, &mut state, &ty, &mut []));
        });
    }
    group.finish();
}

fn pool(kernel: usize, pad: usize) -> PoolAttrs {
    PoolAttrs {
        kernel: [kernel, kernel, 1],
        stride: [2, 2, 1],
        pad_lo: [pad, pad, 0],
        pad_hi: [pad, pad, 0],
        count_pad: false,
    }
}

fn pointwise(c: &mut Criterion) {
    let [n, channels, h, w] = TILE;
    let (x, g, half) = (map(&TILE), map(&TILE), map(&[n, channels, h / 2, w / 2]));
    let (one, labels) = (flat(&[channels], 1.0), map(&[n, 1, h, w]));
    let (scalar, per_channel) = (flat(&[1], 1.0), flat(&[n, channels], 1.0));
    let relu = UnaryKind::Relu;

    measure(c, "copy", Op::Concat, &[&x]);
    measure(c, "add", Op::Add, &[&x, &g]);
    measure(c, "relu", Op::Unary(relu), &[&x]);
    measure(
        c,
        "relu_grad",
        Op::UnaryGrad {
            kind: relu,
            saved: Saved::Input,
        },
        &[&x, &g],
    );
    for (name, kind) in [
        ("silu", UnaryKind::Silu),
        ("tanh", UnaryKind::Tanh),
        ("gelu", UnaryKind::Gelu),
    ] {
        measure(c, name, Op::Unary(kind), &[&x]);
    }
    measure(
        c,
        "gelu_grad",
        Op::UnaryGrad {
            kind: UnaryKind::Gelu,
            saved: Saved::Input,
        },
        &[&x, &g],
    );
    measure(c, "mul_flat", Op::Mul, &[&x, &per_channel]);
    measure(
        c,
        "dropout",
        Op::Dropout {
            p: Num::new(0.5),
            key: 1,
        },
        &[&x],
    );
    measure(c, "softmax", Op::Softmax, &[&x]);
    measure(c, "softmax_grad", Op::SoftmaxGrad, &[&x, &g]);

    for (name, kernel, pad) in [("2", 2, 0), ("3", 3, 1)] {
        let a = self::pool(kernel, pad);
        measure(c, &format!("max_pool_{name}"), Op::MaxPool(a), &[&x]);
        measure(
            c,
            &format!("max_pool_grad_{name}"),
            Op::MaxPoolGrad(a),
            &[&x, &half],
        );
        measure(c, &format!("avg_pool_{name}"), Op::AvgPool(a), &[&x]);
        let grad = Op::AvgPoolGrad {
            pool: a,
            in_spatial: [h, w, 1],
        };
        measure(c, &format!("avg_pool_grad_{name}"), grad, &[&half]);
    }
    for (name, mode) in [
        ("nearest", UpsampleMode::Nearest),
        ("linear", UpsampleMode::Linear),
    ] {
        let a = UpsampleAttrs {
            mode,
            factor: [2, 2, 1],
        };
        measure(c, &format!("upsample_{name}"), Op::Upsample(a), &[&half]);
        measure(
            c,
            &format!("upsample_grad_{name}"),
            Op::UpsampleGrad(a),
            &[&x],
        );
    }

    let norm = NormAttrs {
        kind: NormKind::Batch,
        eps: Num::new(1e-5),
        frozen: false,
    };
    let (moments, sums) = (flat(&[1, channels, 2], 1.0), flat(&[n, channels, 2], 1.0));
    measure(c, "moments", Op::Moments(norm.kind), &[&x]);
    measure(
        c,
        "normalise",
        Op::Normalise(norm),
        &[&x, &moments, &one, &one],
    );
    measure(c, "norm_sums", Op::NormSums(norm), &[&x, &moments, &g]);
    measure(
        c,
        "norm_grad",
        Op::NormGrad(norm),
        &[&x, &moments, &g, &one, &sums],
    );

    measure(c, "sum", Op::SumMap { keep_batch: true }, &[&x]);
    measure(c, "global_max", Op::GlobalMax, &[&x]);
    measure(c, "lse", Op::SpatialLse, &[&x]);
    measure(c, "dice_sums", Op::DiceSums, &[&x, &g]);
    measure(c, "bce", Op::Bce, &[&x, &g]);
    measure(c, "bce_grad", Op::BceGrad, &[&x, &g, &scalar]);
    measure(c, "cross_entropy", Op::CrossEntropy, &[&x, &labels]);
    measure(
        c,
        "cross_entropy_grad",
        Op::CrossEntropyGrad,
        &[&x, &labels, &scalar],
    );
}

fn short() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(300))
        .without_plots()
}

criterion_group! { name = benches; config = short(); targets = pointwise }
criterion_main!(benches);
