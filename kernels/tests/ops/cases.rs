//! Random instances of every op: geometry, shapes and values.

use sstep_autodiff::{
    Form, NormAttrs, NormKind, NormParam, Num, Op, PadAttrs, PerAxis, PoolAttrs, Saved, SliceAttrs,
    UnaryKind, UpsampleAttrs, UpsampleMode,
};

use crate::common::{Rng, Tensor, run};

pub(crate) struct Case {
    pub(crate) op: Op,
    pub(crate) inputs: Vec<Tensor>,
}

fn case(op: Op, inputs: Vec<Tensor>) -> Case {
    Case { op, inputs }
}

/// Extents of a random map with one to three spatial axes.
pub(crate) fn random_dims(rng: &mut Rng) -> Vec<usize> {
    let n_spatial = rng.int(1, 3);
    let most = [41, 13, 6][n_spatial - 1];
    let mut dims = vec![rng.int(1, 2), rng.int(1, 5)];
    dims.extend((0..n_spatial).map(|_| rng.int(1, most)));
    dims
}

fn per_axis(neutral: usize, n: usize, mut f: impl FnMut(usize) -> usize) -> PerAxis {
    let mut all = [neutral; 3];
    (0..n).for_each(|s| all[s] = f(s));
    all
}

/// A pool that fits a map of these extents; its pads are smaller than its
/// kernel, so that each window has a real element.
pub(crate) fn random_pool(dims: &[usize], rng: &mut Rng) -> PoolAttrs {
    let n = dims.len() - 2;
    let kernel = per_axis(1, n, |s| rng.int(1, 4.min(dims[2 + s])));
    PoolAttrs {
        kernel,
        stride: per_axis(1, n, |_| rng.int(1, 3)),
        pad_lo: per_axis(0, n, |s| rng.int(0, kernel[s] / 2)),
        pad_hi: per_axis(0, n, |s| rng.int(0, kernel[s] / 2)),
        count_pad: rng.chance(50),
    }
}

pub(crate) fn pooled(a: &PoolAttrs, dims: &[usize]) -> Vec<usize> {
    let mut out = dims.to_vec();
    for s in 0..dims.len() - 2 {
        out[2 + s] = a.out_extent(s, dims[2 + s]).expect("fits");
    }
    out
}

pub(crate) fn upsampled(a: &UpsampleAttrs, dims: &[usize]) -> Vec<usize> {
    let mut out = dims.to_vec();
    (0..dims.len() - 2).for_each(|s| out[2 + s] *= a.factor[s]);
    out
}

pub(crate) const KINDS: [UnaryKind; 6] = [
    UnaryKind::Relu,
    UnaryKind::Gelu,
    UnaryKind::Silu,
    UnaryKind::Sigmoid,
    UnaryKind::Tanh,
    UnaryKind::Exp,
];

pub(crate) fn leaky() -> UnaryKind {
    UnaryKind::LeakyRelu(Num::new(0.1))
}

/// Whole numbers below `classes`.
pub(crate) fn labels(form: Form, dims: &[usize], classes: usize, rng: &mut Rng) -> Tensor {
    let mut dims = dims.to_vec();
    dims[1] = 1;
    let n = dims.iter().product();
    Tensor::new(
        form,
        &dims,
        (0..n).map(|_| rng.int(0, classes - 1) as f64).collect(),
    )
}

pub(crate) fn random_norm(channels: usize, rng: &mut Rng) -> NormAttrs {
    let divisors: Vec<usize> = (1..=channels)
        .filter(|d| channels.is_multiple_of(*d))
        .collect();
    let kind = if rng.chance(40) {
        NormKind::Batch
    } else {
        NormKind::Group(divisors[rng.int(0, divisors.len() - 1)])
    };
    let frozen = kind == NormKind::Batch && rng.chance(40);
    NormAttrs {
        kind,
        eps: Num::new(1e-3),
        frozen,
    }
}

/// Moments of `x`, or made-up ones for a frozen norm.
pub(crate) fn moments_of(a: &NormAttrs, x: &Tensor, rng: &mut Rng) -> Tensor {
    if !a.frozen {
        return run(&Op::Moments(a.kind), std::slice::from_ref(x));
    }
    let channels = x.ty.shape.channels();
    let made_up = (0..2 * channels).map(|i| {
        if i % 2 == 0 {
            rng.real()
        } else {
            1.5 + rng.real()
        }
    });
    Tensor::flat(&[1, channels, 2], made_up.collect())
}

/// Every map op once, with random shapes and values.
pub(crate) fn map_ops(rng: &mut Rng) -> Vec<Case> {
    let dims = random_dims(rng);
    map_ops_of(&dims, rng)
}

/// Every map op once, on maps of these extents.
pub(crate) fn map_ops_of(dims: &[usize], rng: &mut Rng) -> Vec<Case> {
    let (n, c, n_spatial) = (dims[0], dims[1], dims.len() - 2);
    let mut spatial = [1; 3];
    spatial[..n_spatial].copy_from_slice(&dims[2..]);
    let count = n_spatial as u8;
    let x = Tensor::random_map(dims, rng);
    let same = Tensor::random_map(dims, rng);
    let one_channel = {
        let mut dims = dims.to_vec();
        dims[1] = 1;
        Tensor::random_map(&dims, rng)
    };
    let per_channel = Tensor::random_flat(&[n, c], rng);
    let scalar = Tensor::flat(&[1], vec![0.7]);
    let mut cases = Vec::new();

    let pool = random_pool(dims, rng);
    // Few different values, for ties.
    let coarse = Tensor {
        data: x.data.iter().map(|x| (2.0 * x).round()).collect(),
        ..x.clone()
    };
    let pooled_grad = Tensor::random_map(&pooled(&pool, dims), rng);
    cases.push(case(Op::MaxPool(pool), vec![coarse.clone()]));
    cases.push(case(
        Op::MaxPoolGrad(pool),
        vec![coarse, pooled_grad.clone()],
    ));
    cases.push(case(Op::AvgPool(pool), vec![x.clone()]));
    cases.push(case(
        Op::AvgPoolGrad {
            pool,
            in_spatial: spatial,
        },
        vec![pooled_grad],
    ));
    for mode in [UpsampleMode::Nearest, UpsampleMode::Linear] {
        let up = UpsampleAttrs {
            mode,
            factor: per_axis(1, n_spatial, |_| rng.int(1, 4)),
        };
        let large = Tensor::random_map(&upsampled(&up, dims), rng);
        cases.push(case(Op::Upsample(up), vec![x.clone()]));
        cases.push(case(Op::UpsampleGrad(up), vec![large]));
    }

    for kind in KINDS.into_iter().chain([leaky()]) {
        cases.push(case(Op::Unary(kind), vec![x.clone()]));
        cases.push(case(
            Op::UnaryGrad {
                kind,
                saved: Saved::Input,
            },
            vec![x.clone(), same.clone()],
        ));
        if kind.grad_from_output() {
            cases.push(case(
                Op::UnaryGrad {
                    kind,
                    saved: Saved::Output,
                },
                vec![x.clone(), same.clone()],
            ));
        }
    }
    for b in [&same, &one_channel, &per_channel] {
        cases.push(case(Op::Add, vec![x.clone(), b.clone()]));
        cases.push(case(Op::Mul, vec![x.clone(), b.clone()]));
    }
    cases.push(case(
        Op::Scale {
            factor: Num::new(-1.7),
        },
        vec![x.clone()],
    ));
    cases.push(case(
        Op::Dropout {
            p: Num::new(0.3),
            key: 5,
        },
        vec![x.clone()],
    ));
    cases.push(case(Op::Softmax, vec![x.clone()]));
    cases.push(case(Op::SoftmaxGrad, vec![x.clone(), same.clone()]));
    cases.push(case(Op::ChannelSum, vec![x.clone()]));

    cases.push(case(
        Op::Concat,
        vec![x.clone(), one_channel.clone(), same.clone()],
    ));
    let (mut slice, mut pad) = (
        SliceAttrs {
            start: [0; 4],
            len: [1; 4],
        },
        PadAttrs {
            lo: [0; 4],
            hi: [0; 4],
        },
    );
    for i in 0..=n_spatial {
        let start = rng.int(0, dims[1 + i] - 1);
        (slice.start[i], slice.len[i]) = (start, rng.int(1, dims[1 + i] - start));
        (pad.lo[i], pad.hi[i]) = (rng.int(0, 3), rng.int(0, 3));
    }
    cases.push(case(Op::Slice(slice), vec![x.clone()]));
    cases.push(case(Op::Pad(pad), vec![x.clone()]));
    cases.push(case(
        Op::Broadcast {
            spatial,
            n_spatial: count,
        },
        vec![per_channel.clone()],
    ));

    let packed = run(&Op::GlobalMax, std::slice::from_ref(&x));
    let packed_grad = Tensor::random_flat(&[n, c * (1 + n_spatial)], rng);
    cases.push(case(
        Op::GlobalMaxGrad {
            spatial,
            n_spatial: count,
        },
        vec![packed, packed_grad],
    ));

    let norm = random_norm(c, rng);
    let moments = moments_of(&norm, &x, rng);
    let (gamma, beta) = (
        Tensor::random_flat(&[c], rng),
        Tensor::random_flat(&[c], rng),
    );
    cases.push(case(
        Op::Normalise(norm),
        vec![x.clone(), moments.clone(), gamma.clone(), beta],
    ));
    if norm.frozen {
        cases.push(case(Op::NormGrad(norm), vec![moments, same.clone(), gamma]));
    } else {
        let sums = run(
            &Op::NormSums(norm),
            &[x.clone(), moments.clone(), same.clone()],
        );
        let inputs = vec![x.clone(), moments, same.clone(), gamma, sums];
        cases.push(case(Op::NormGrad(norm), inputs));
    }

    let target = labels(Form::Map, dims, c, rng);
    cases.push(case(
        Op::CrossEntropyGrad,
        vec![x.clone(), target, scalar.clone()],
    ));
    cases.push(case(
        Op::BceGrad,
        vec![x.clone(), same.clone(), scalar.clone()],
    ));
    cases.push(case(Op::MseGrad, vec![x.clone(), same.clone(), scalar]));
    let sums_grad = Tensor::random_flat(&[n, c, 3], rng);
    cases.push(case(Op::DiceSumsGrad, vec![same, sums_grad]));
    cases
}

/// Every reduction over maps once.
pub(crate) fn reductions(rng: &mut Rng) -> Vec<Case> {
    let dims = random_dims(rng);
    reductions_of(&dims, rng)
}

/// Every reduction once, over maps of these extents.
pub(crate) fn reductions_of(dims: &[usize], rng: &mut Rng) -> Vec<Case> {
    let c = dims[1];
    let x = Tensor::random_map(dims, rng);
    let same = Tensor::random_map(dims, rng);
    let coarse = Tensor {
        data: x.data.iter().map(|x| (2.0 * x).round()).collect(),
        ..x.clone()
    };
    let norm = random_norm(c, rng);
    let moments = moments_of(&norm, &x, rng);
    vec![
        case(Op::SumMap { keep_batch: true }, vec![x.clone()]),
        case(Op::SumMap { keep_batch: false }, vec![x.clone()]),
        case(Op::GlobalMax, vec![coarse]),
        case(Op::SpatialLse, vec![x.clone()]),
        case(Op::Moments(norm.kind), vec![x.clone()]),
        case(Op::NormSums(norm), vec![x.clone(), moments, same.clone()]),
        case(
            Op::CrossEntropy,
            vec![x.clone(), labels(Form::Map, dims, c, rng)],
        ),
        case(Op::Bce, vec![x.clone(), same.clone()]),
        case(Op::Mse, vec![x.clone(), same.clone()]),
        case(Op::DiceSums, vec![x, same]),
    ]
}

/// Ops on flat tensors.
pub(crate) fn flat_ops(rng: &mut Rng) -> Vec<Case> {
    let (n, c) = (rng.int(1, 3), rng.int(1, 6));
    let x = Tensor::random_flat(&[n, c], rng);
    let same = Tensor::random_flat(&[n, c], rng);
    let weights = Tensor::random_flat(&[3, 2, 3, 2], rng);
    let features = rng.int(1, 9);
    let f = Tensor::random_flat(&[n, features], rng);
    let w = Tensor::random_flat(&[c, features], rng);
    let b = Tensor::random_flat(&[c], rng);
    let scalar = Tensor::flat(&[1], vec![0.7]);
    let target = labels(Form::Flat, &[n, c], c, rng);
    let start = rng.int(0, c - 1);
    let slice = SliceAttrs {
        start: [start, 0, 0, 0],
        len: [rng.int(1, c - start), 1, 1, 1],
    };
    let pair = Tensor::random_flat(&[n, c, 2], rng);
    let triple = Tensor {
        data: (0..3 * n * c).map(|_| 1.0 + rng.real()).collect(),
        ..Tensor::random_flat(&[n, c, 3], &mut Rng::new(1))
    };
    vec![
        case(
            Op::Constant {
                value: Num::new(1.5),
            },
            vec![],
        ),
        case(Op::Unary(UnaryKind::Silu), vec![x.clone()]),
        case(
            Op::UnaryGrad {
                kind: UnaryKind::Tanh,
                saved: Saved::Input,
            },
            vec![x.clone(), same.clone()],
        ),
        case(Op::Add, vec![x.clone(), same.clone()]),
        case(Op::Add, vec![weights.clone(), weights.clone()]),
        case(Op::Mul, vec![x.clone(), same.clone()]),
        case(Op::Mul, vec![b.clone(), b.clone()]),
        case(
            Op::Scale {
                factor: Num::new(2.5),
            },
            vec![weights.clone()],
        ),
        case(
            Op::Dropout {
                p: Num::new(0.5),
                key: 1,
            },
            vec![x.clone()],
        ),
        case(Op::Softmax, vec![x.clone()]),
        case(Op::SoftmaxGrad, vec![x.clone(), same.clone()]),
        case(Op::Concat, vec![x.clone(), same.clone(), x.clone()]),
        case(Op::Slice(slice), vec![x.clone()]),
        case(
            Op::Pad(PadAttrs {
                lo: [2, 0, 0, 0],
                hi: [1, 0, 0, 0],
            }),
            vec![x.clone()],
        ),
        case(Op::SumMap { keep_batch: false }, vec![x.clone()]),
        case(Op::PackMoments, vec![b.clone(), b.clone()]),
        case(Op::NormParamGrad(NormParam::Gamma), vec![pair.clone()]),
        case(Op::NormParamGrad(NormParam::Beta), vec![pair]),
        case(Op::Linear, vec![f.clone(), w.clone(), b]),
        case(Op::Linear, vec![f.clone(), w.clone()]),
        case(Op::LinearInputGrad, vec![x.clone(), w]),
        case(Op::LinearWeightGrad, vec![f, x.clone()]),
        case(Op::CrossEntropy, vec![x.clone(), target.clone()]),
        case(
            Op::CrossEntropyGrad,
            vec![x.clone(), target, scalar.clone()],
        ),
        case(Op::Bce, vec![x.clone(), same.clone()]),
        case(Op::BceGrad, vec![x.clone(), same.clone(), scalar.clone()]),
        case(Op::Mse, vec![x.clone(), same.clone()]),
        case(Op::MseGrad, vec![x, same, scalar.clone()]),
        case(
            Op::DiceLoss {
                smooth: Num::new(0.5),
            },
            vec![triple.clone()],
        ),
        case(
            Op::DiceLossGrad {
                smooth: Num::new(0.5),
            },
            vec![triple, scalar],
        ),
    ]
}
