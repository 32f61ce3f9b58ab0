//! Multiply-adds per second of convolutions and both of their gradients.
//!
//! `cargo bench -p sstep-kernels --bench conv [name]`. The throughput counts the
//! multiply-adds of a direct convolution: twice as many FLOPs. The first layers
//! are those of ResNet-34 on a strip of a slide, the others those on which other
//! libraries are usually compared.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sstep_autodiff::{ConvAlgo, ConvAttrs, ConvTransposeAttrs, DType, Form, Op, Region, Shape, Ty};
use sstep_kernels::{Box4, In, Job, Layout, Out, State, cpu, workspace_bytes};

/// A square convolution, padded to keep the extents at stride 1.
struct Layer {
    name: &'static str,
    channels: [usize; 2],
    spatial: &'static [usize],
    kernel: usize,
    stride: usize,
    groups: usize,
}

const fn layer(
    name: &'static str,
    channels: [usize; 2],
    spatial: &'static [usize],
    kernel: usize,
    stride: usize,
) -> Layer {
    Layer {
        name,
        channels,
        spatial,
        kernel,
        stride,
        groups: 1,
    }
}

const LAYERS: [Layer; 14] = [
    layer("strip_7x7_s2_3_16", [3, 16], &[64, 8192], 7, 2),
    layer("strip_3x3_16_16", [16, 16], &[32, 4096], 3, 1),
    layer("strip_3x3_s2_16_32", [16, 32], &[32, 4096], 3, 2),
    layer("strip_1x1_s2_16_32", [16, 32], &[32, 4096], 1, 2),
    layer("strip_3x3_32_32", [32, 32], &[32, 2048], 3, 1),
    layer("7x7_s2_3_64_at_512", [3, 64], &[512, 512], 7, 2),
    layer("3x3_64_64_at_256", [64, 64], &[256, 256], 3, 1),
    layer("3x3_128_128_at_128", [128, 128], &[128, 128], 3, 1),
    layer("3x3_512_512_at_32", [512, 512], &[32, 32], 3, 1),
    layer("3x3_s2_64_128_at_256", [64, 128], &[256, 256], 3, 2),
    layer("1x1_64_256_at_256", [64, 256], &[256, 256], 1, 1),
    layer("1x1_256_64_at_256", [256, 64], &[256, 256], 1, 1),
    Layer {
        groups: 96,
        ..layer("depthwise_3x3_96_at_256", [96, 96], &[256, 256], 3, 1)
    },
    layer("3x3x3_32_32_at_32", [32, 32], &[32, 32, 32], 3, 1),
];

fn numbers(ty: &Ty) -> Vec<f32> {
    let value = |i: usize| ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / 8e6 - 1.0;
    (0..ty.shape.elems()).map(value).collect()
}

fn measure(c: &mut Criterion, layer: &Layer) {
    let n_axes = layer.spatial.len();
    let mut a = ConvAttrs {
        kernel: [1; 3],
        stride: [1; 3],
        dilation: [1; 3],
        pad_lo: [0; 3],
        pad_hi: [0; 3],
        groups: layer.groups,
        algo: ConvAlgo::Direct,
    };
    let mut in_spatial = [1; 3];
    in_spatial[..n_axes].copy_from_slice(layer.spatial);
    a.kernel[..n_axes].fill(layer.kernel);
    a.stride[..n_axes].fill(layer.stride);
    a.pad_lo[..n_axes].fill(layer.kernel / 2);
    a.pad_hi[..n_axes].fill(layer.kernel / 2);
    let out = |s| {
        a.out_extent(s, in_spatial[s])
            .expect("the input holds the kernel")
    };
    let out_spatial: Vec<usize> = (0..n_axes).map(out).collect();
    let [channels, filters] = layer.channels;
    let ty = |shape, form| Ty {
        dtype: DType::F32,
        shape,
        form,
    };
    let x_ty = ty(Shape::map(1, channels, layer.spatial), Form::Map);
    let y_ty = ty(Shape::map(1, filters, &out_spatial), Form::Map);
    let mut w_dims = vec![filters, channels / layer.groups];
    w_dims.extend(&a.kernel[..n_axes]);
    let w_ty = ty(Shape::new(&w_dims), Form::Flat);

    let (mut x, mut y, mut w) = (numbers(&x_ty), numbers(&y_ty), numbers(&w_ty));
    let mut workspace = vec![0; workspace_bytes()];
    let macs = w_ty.shape.elems() as u64 * out_spatial.iter().product::<usize>() as u64;
    let layouts = [&x_ty, &y_ty, &w_ty].map(Layout::whole);
    let whole = |ty| Box4::lift(&Region::whole(ty));

    let mut group = c.benchmark_group(layer.name);
    group.throughput(Throughput::Elements(macs));
    {
        let op = Op::Conv(a);
        let inputs = [In::new(layouts[0], &x), In::new(layouts[2], &w)];
        let job = job(&op, whole(&y_ty), &inputs);
        let mut out = Out::new(layouts[1], &mut y);
        group.bench_function("forward", |b| {
            b.iter(|| cpu::run(&job, &mut out, &mut workspace))
        });
    }
    {
        let op = Op::ConvTranspose(ConvTransposeAttrs {
            conv: a,
            out_spatial: in_spatial,
        });
        let inputs = [In::new(layouts[1], &y), In::new(layouts[2], &w)];
        let job = job(&op, whole(&x_ty), &inputs);
        let mut out = Out::new(layouts[0], &mut x);
        group.bench_function("data", |b| {
            b.iter(|| cpu::run(&job, &mut out, &mut workspace))
        });
    }
    {
        let op = Op::ConvWeightGrad(a);
        let inputs = [In::new(layouts[0], &x), In::new(layouts[1], &y)];
        let job = job(&op, whole(&y_ty), &inputs);
        let mut state = State::InPlace(&mut w);
        group.bench_function("weight", |b| {
            b.iter(|| cpu::accumulate(&job, &mut state, &w_ty, &mut workspace));
        });
    }
    group.finish();
}

fn job<'a>(op: &'a Op, region: Box4, inputs: &'a [In<'a, f32>]) -> Job<'a, f32> {
    Job {
        op,
        region,
        inputs,
        step: 0,
        seed: 0,
        plain: false,
    }
}

fn conv(c: &mut Criterion) {
    for layer in &LAYERS {
        measure(c, layer);
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(300));
    targets = conv
}
criterion_main!(benches);
