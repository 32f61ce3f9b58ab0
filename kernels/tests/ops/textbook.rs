//! Each op from its definition, in one loop over its output, on whole tensors.

use proptest::prelude::*;
use sstep_autodiff::{NormKind, NormParam, Op, PerAxis, PoolAttrs, Saved, UnaryKind, UpsampleMode};

use crate::cases::{Case, flat_ops, map_ops, reductions};
use crate::common::{Rng, Tensor, close, out_ty, random, run};

/// Places of `[D, H, W]` boxes.
fn places(extent: [usize; 3]) -> impl Iterator<Item = [usize; 3]> {
    let [d, h, w] = extent;
    (0..d * h * w).map(move |i| [i / (h * w), i / w % h, i % w])
}

fn spatial(x: &Tensor) -> [usize; 3] {
    let [_, _, d, h, w] = x.dims5();
    [d, h, w]
}

/// Attributes of `n` axes, moved to the right.
fn lifted(a: &PerAxis, n: usize, neutral: usize) -> [usize; 3] {
    match n {
        0 => [neutral; 3],
        1 => [neutral, neutral, a[0]],
        2 => [neutral, a[0], a[1]],
        _ => *a,
    }
}

/// Places under window `j`, in row-major order; `None` in the padding.
fn under(a: &PoolAttrs, x: &Tensor, j: [usize; 3]) -> Vec<Option<[usize; 3]>> {
    let n = x.ty.shape.rank() - 2;
    let (k, s, p) = (
        lifted(&a.kernel, n, 1),
        lifted(&a.stride, n, 1),
        lifted(&a.pad_lo, n, 0),
    );
    let extent = spatial(x);
    let tap = |t: [usize; 3]| {
        let mut at = [0; 3];
        for i in 0..3 {
            at[i] = (j[i] * s[i] + t[i])
                .checked_sub(p[i])
                .filter(|&a| a < extent[i])?;
        }
        Some(at)
    };
    places(k).map(tap).collect()
}

/// Weight of element `j` in output `i`, as PyTorch defines it.
fn upsample_weight(mode: UpsampleMode, f: usize, extent: usize, i: usize, j: usize) -> f64 {
    match mode {
        UpsampleMode::Nearest => f64::from(i / f == j),
        UpsampleMode::Linear => {
            let at = ((i as f64 + 0.5) / f as f64 - 0.5).max(0.0);
            let lo = (at.floor() as usize).min(extent - 1);
            let hi = (lo + 1).min(extent - 1);
            let t = at - lo as f64;
            f64::from(j == lo) * (1.0 - t) + f64::from(j == hi) * t
        }
    }
}

/// `Φ(x)` by Simpson's rule.
fn normal_below(x: f64) -> f64 {
    let density = |t: f64| (-0.5 * t * t).exp() / (2.0 * std::f64::consts::PI).sqrt();
    let n = 4000;
    let h = x / n as f64;
    let inner: f64 = (1..n)
        .map(|i| density(i as f64 * h) * if i % 2 == 1 { 4.0 } else { 2.0 })
        .sum();
    0.5 + (density(0.0) + inner + density(x)) * h / 3.0
}

fn unary(kind: UnaryKind, x: f64) -> f64 {
    match kind {
        UnaryKind::Relu => x.max(0.0),
        UnaryKind::LeakyRelu(slope) => {
            if x > 0.0 {
                x
            } else {
                slope.get() * x
            }
        }
        UnaryKind::Gelu => x * normal_below(x),
        UnaryKind::Silu => x / (1.0 + (-x).exp()),
        UnaryKind::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        UnaryKind::Tanh => (x.exp() - (-x).exp()) / (x.exp() + (-x).exp()),
        UnaryKind::Exp => std::f64::consts::E.powf(x),
    }
}

/// Derivative at input `x`.
fn slope(kind: UnaryKind, x: f64) -> f64 {
    match kind {
        UnaryKind::Relu => f64::from(x > 0.0),
        UnaryKind::LeakyRelu(slope) => {
            if x > 0.0 {
                1.0
            } else {
                slope.get()
            }
        }
        UnaryKind::Gelu => {
            let density = (-0.5 * x * x).exp() / (2.0 * std::f64::consts::PI).sqrt();
            normal_below(x) + x * density
        }
        UnaryKind::Silu => {
            let s = unary(UnaryKind::Sigmoid, x);
            s + x * s * (1.0 - s)
        }
        UnaryKind::Sigmoid => 1.0 / (2.0 + x.exp() + (-x).exp()),
        UnaryKind::Tanh => 4.0 / (x.exp() + (-x).exp()).powi(2),
        UnaryKind::Exp => x.exp(),
    }
}

/// Derivative where the value is `y`.
fn slope_at_value(kind: UnaryKind, y: f64) -> f64 {
    match kind {
        UnaryKind::Relu => f64::from(y > 0.0),
        UnaryKind::LeakyRelu(slope) => {
            if y > 0.0 {
                1.0
            } else {
                slope.get()
            }
        }
        UnaryKind::Sigmoid => y - y * y,
        UnaryKind::Tanh => (1.0 + y) * (1.0 - y),
        UnaryKind::Exp => y,
        UnaryKind::Gelu | UnaryKind::Silu => f64::NAN,
    }
}

/// `b` where `a` has `at`: repeated over space or channels if it must be.
fn operand(a: &Tensor, b: &Tensor, at: [usize; 5]) -> f64 {
    let [n, c, d, h, w] = at;
    if a.ty == b.ty {
        b.at(at)
    } else if b.ty.is_map() {
        b.at([n, 0, d, h, w])
    } else {
        b.at([n, c, 0, 0, 0])
    }
}

fn channel(x: &Tensor, [n, _, d, h, w]: [usize; 5]) -> Vec<f64> {
    (0..x.dims5()[1]).map(|c| x.at([n, c, d, h, w])).collect()
}

fn softmax(x: &[f64]) -> Vec<f64> {
    let total: f64 = x.iter().map(|x| x.exp()).sum();
    x.iter().map(|x| x.exp() / total).collect()
}

/// Everything of `x` that shares a statistic with channel `c` of sample `n`.
fn sharing(kind: NormKind, x: &Tensor, n: usize, c: usize) -> Vec<[usize; 5]> {
    let [batch, channels, d, h, w] = x.dims5();
    let (ns, cs) = match kind {
        NormKind::Batch => (0..batch, c..c + 1),
        NormKind::Group(g) => {
            let len = channels / g;
            (n..n + 1, c / len * len..c / len * len + len)
        }
    };
    let mut all = Vec::new();
    for n in ns {
        for c in cs.clone() {
            all.extend(places([d, h, w]).map(|[d, h, w]| [n, c, d, h, w]));
        }
    }
    all
}

/// Mean and variance that a norm uses for channel `c` of sample `n`.
fn stats(kind: NormKind, moments: &Tensor, channels: usize, n: usize, c: usize) -> (f64, f64) {
    let [nm, groups] = [moments.ty.shape.dim(0), moments.ty.shape.dim(1)];
    assert!(kind == NormKind::Batch || nm * groups == moments.data.len() / 2);
    let i = if nm > 1 { n * groups } else { 0 } + c / (channels / groups);
    (moments.data[2 * i], moments.data[2 * i + 1])
}

/// The textbook's answer, except for dropout.
fn textbook(op: &Op, x: &[Tensor]) -> Tensor {
    let ty = out_ty::<f64>(op, x);
    let build = |f: &dyn Fn([usize; 5]) -> f64| Tensor::build(ty, f);
    let all = |x: &Tensor| spatial(x);
    match op {
        Op::MaxPool(a) => build(&|[n, c, d, h, w]| {
            let taps = under(a, &x[0], [d, h, w]).into_iter().flatten();
            taps.map(|[d, h, w]| x[0].at([n, c, d, h, w]))
                .fold(f64::NEG_INFINITY, f64::max)
        }),
        Op::MaxPoolGrad(a) => {
            let mut out = build(&|_| 0.0);
            let [batch, channels, d, h, w] = x[1].dims5();
            for n in 0..batch {
                for c in 0..channels {
                    for j in places([d, h, w]) {
                        let mut best: Option<([usize; 3], f64)> = None;
                        for p in under(a, &x[0], j).into_iter().flatten() {
                            let v = x[0].at([n, c, p[0], p[1], p[2]]);
                            if best.is_none_or(|(_, b)| v > b) {
                                best = Some((p, v));
                            }
                        }
                        let [pd, ph, pw] = best.expect("a window has an element").0;
                        let [_, _, ed, eh, ew] = x[0].dims5();
                        let i = (((n * channels + c) * ed + pd) * eh + ph) * ew + pw;
                        out.data[i] += x[1].at([n, c, j[0], j[1], j[2]]);
                    }
                }
            }
            out
        }
        Op::AvgPool(a) => build(&|[n, c, d, h, w]| {
            let taps = under(a, &x[0], [d, h, w]);
            let real: Vec<f64> = taps
                .iter()
                .flatten()
                .map(|&[d, h, w]| x[0].at([n, c, d, h, w]))
                .collect();
            // Windows end within the padding, so they count in full.
            let count = if a.count_pad { taps.len() } else { real.len() };
            real.iter().sum::<f64>() / count as f64
        }),
        Op::AvgPoolGrad { pool, .. } => {
            let mut out = build(&|_| 0.0);
            let [batch, channels, d, h, w] = x[0].dims5();
            for n in 0..batch {
                for c in 0..channels {
                    for j in places([d, h, w]) {
                        let taps = under(pool, &out, j);
                        let real = taps.iter().flatten().count();
                        let count = if pool.count_pad { taps.len() } else { real };
                        let [_, _, ed, eh, ew] = out.dims5();
                        for [pd, ph, pw] in taps.into_iter().flatten() {
                            let i = (((n * channels + c) * ed + pd) * eh + ph) * ew + pw;
                            out.data[i] += x[0].at([n, c, j[0], j[1], j[2]]) / count as f64;
                        }
                    }
                }
            }
            out
        }
        Op::Upsample(a) | Op::UpsampleGrad(a) => {
            let forward = matches!(op, Op::Upsample(_));
            let small = if forward {
                all(&x[0])
            } else {
                all(&build(&|_| 0.0))
            };
            let f = lifted(&a.factor, ty.shape.rank() - 2, 1);
            let there = all(&x[0]);
            build(&|[n, c, d, h, w]| {
                // Along each axis, what has a weight at all.
                let here = [d, h, w];
                let axis = |s: usize| -> Vec<(usize, f64)> {
                    let weight = |j: usize| {
                        let (i, j) = if forward { (here[s], j) } else { (j, here[s]) };
                        upsample_weight(a.mode, f[s], small[s], i, j)
                    };
                    (0..there[s])
                        .map(|j| (j, weight(j)))
                        .filter(|&(_, w)| w != 0.0)
                        .collect()
                };
                let (ds, hs, ws) = (axis(0), axis(1), axis(2));
                let mut sum = 0.0;
                for &(d, wd) in &ds {
                    for &(h, wh) in &hs {
                        for &(w, ww) in &ws {
                            sum += wd * wh * ww * x[0].at([n, c, d, h, w]);
                        }
                    }
                }
                sum
            })
        }
        Op::Unary(kind) => build(&|at| unary(*kind, x[0].at(at))),
        Op::UnaryGrad {
            kind,
            saved: Saved::Input,
        } => build(&|at| slope(*kind, x[0].at(at)) * x[1].at(at)),
        Op::UnaryGrad {
            kind,
            saved: Saved::Output,
        } => build(&|at| slope_at_value(*kind, x[0].at(at)) * x[1].at(at)),
        Op::Add => build(&|at| x[0].at(at) + operand(&x[0], &x[1], at)),
        Op::Mul => build(&|at| x[0].at(at) * operand(&x[0], &x[1], at)),
        Op::Scale { factor } => build(&|at| factor.get() * x[0].at(at)),
        Op::Softmax => build(&|at| softmax(&channel(&x[0], at))[at[1]]),
        Op::SoftmaxGrad => build(&|at| {
            let (y, g) = (channel(&x[0], at), channel(&x[1], at));
            // A row of the Jacobian, y_i (δ_ij − y_j).
            let row = |j: usize| y[at[1]] * (f64::from(at[1] == j) - y[j]);
            (0..y.len()).map(|j| row(j) * g[j]).sum()
        }),
        Op::ChannelSum => build(&|at| channel(&x[0], at).iter().sum()),
        Op::Concat => build(&|[n, c, d, h, w]| {
            let stacked: Vec<(usize, usize)> = (0..x.len())
                .flat_map(|i| (0..x[i].dims5()[1]).map(move |c| (i, c)))
                .collect();
            let (i, c) = stacked[c];
            x[i].at([n, c, d, h, w])
        }),
        Op::Slice(a) => build(&|[n, c, d, h, w]| {
            let [c0, s @ ..] = a.start;
            let s = lifted(&s, ty.shape.rank() - 2, 0);
            x[0].at([n, c + c0, d + s[0], h + s[1], w + s[2]])
        }),
        Op::Pad(a) => build(&|at| {
            let [c0, s @ ..] = a.lo;
            let s = lifted(&s, ty.shape.rank() - 2, 0);
            let off = [0, c0, s[0], s[1], s[2]];
            let mut from = [0; 5];
            (0..5).for_each(|i| from[i] = at[i] as isize - off[i] as isize);
            x[0].get(from).unwrap_or(0.0)
        }),
        Op::Broadcast { .. } => build(&|[n, c, ..]| x[0].at([n, c, 0, 0, 0])),
        Op::SumMap { keep_batch } => build(&|at| {
            // `[C]` stands along the first of the five extents.
            let c = if *keep_batch { at[1] } else { at[0] };
            let batch = if *keep_batch {
                at[0]..at[0] + 1
            } else {
                0..x[0].dims5()[0]
            };
            let value = |n| places(all(&x[0])).map(move |[d, h, w]| [n, c, d, h, w]);
            batch.flat_map(value).map(|at| x[0].at(at)).sum()
        }),
        Op::GlobalMax => build(&|[n, packed, ..]| {
            let (channels, n_spatial) = (x[0].dims5()[1], x[0].ty.shape.rank() - 2);
            let (part, c) = (packed / channels, packed % channels);
            let mut best: Option<([usize; 3], f64)> = None;
            for p in places(all(&x[0])) {
                let v = x[0].at([n, c, p[0], p[1], p[2]]);
                if best.is_none_or(|(_, b)| v > b) {
                    best = Some((p, v));
                }
            }
            let (p, v) = best.expect("a map has an element");
            if part == 0 {
                v
            } else {
                p[3 - n_spatial + part - 1] as f64
            }
        }),
        Op::GlobalMaxGrad { n_spatial, .. } => build(&|[n, c, d, h, w]| {
            let (n_spatial, channels) = (usize::from(*n_spatial), ty.shape.channels());
            let here = [d, h, w];
            let is_peak = (0..n_spatial).all(|a| {
                let coordinate = x[0].at([n, (1 + a) * channels + c, 0, 0, 0]);
                here[3 - n_spatial + a] as f64 == coordinate
            });
            if is_peak {
                x[1].at([n, c, 0, 0, 0])
            } else {
                0.0
            }
        }),
        Op::SpatialLse => build(&|[n, c, ..]| {
            let value = |[d, h, w]: [usize; 3]| x[0].at([n, c, d, h, w]).exp();
            places(all(&x[0])).map(value).sum::<f64>().ln()
        }),
        Op::Moments(kind) => {
            let mut data = Vec::new();
            for n in 0..ty.shape.dim(0) {
                for g in 0..ty.shape.dim(1) {
                    let c = g * (x[0].dims5()[1] / ty.shape.dim(1));
                    let set = sharing(*kind, &x[0], n, c);
                    let mean = set.iter().map(|&at| x[0].at(at)).sum::<f64>() / set.len() as f64;
                    let off = |&at: &[usize; 5]| (x[0].at(at) - mean).powi(2);
                    data.extend([mean, set.iter().map(off).sum::<f64>() / set.len() as f64]);
                }
            }
            Tensor { ty, data }
        }
        Op::PackMoments => {
            let pairs = x[0].data.iter().zip(&x[1].data).flat_map(|(&a, &b)| [a, b]);
            Tensor {
                ty,
                data: pairs.collect(),
            }
        }
        Op::Normalise(a) => build(&|at| {
            let (mean, var) = stats(a.kind, &x[1], ty.shape.channels(), at[0], at[1]);
            let hat = (x[0].at(at) - mean) / (var + a.eps.get()).sqrt();
            hat * x[2].data[at[1]] + x[3].data[at[1]]
        }),
        Op::NormSums(a) => {
            let mut data = Vec::new();
            let [batch, channels, ..] = x[0].dims5();
            for n in 0..batch {
                for c in 0..channels {
                    let (mean, var) = stats(a.kind, &x[1], channels, n, c);
                    let mut sums = [0.0; 2];
                    for [d, h, w] in places(all(&x[0])) {
                        let at = [n, c, d, h, w];
                        sums[0] += x[2].at(at);
                        sums[1] += x[2].at(at) * (x[0].at(at) - mean) / (var + a.eps.get()).sqrt();
                    }
                    data.extend(sums);
                }
            }
            Tensor { ty, data }
        }
        Op::NormGrad(a) if a.frozen => build(&|at| {
            let (_, var) = stats(a.kind, &x[0], ty.shape.channels(), at[0], at[1]);
            x[1].at(at) * x[2].data[at[1]] / (var + a.eps.get()).sqrt()
        }),
        Op::NormGrad(a) => build(&|at| {
            let (mean, var) = stats(a.kind, &x[1], ty.shape.channels(), at[0], at[1]);
            let sd = (var + a.eps.get()).sqrt();
            let hat = |at| (x[0].at(at) - mean) / sd;
            let g = |at: [usize; 5]| x[2].at(at) * x[3].data[at[1]];
            let set = sharing(a.kind, &x[0], at[0], at[1]);
            let m = set.len() as f64;
            let s1: f64 = set.iter().map(|&at| g(at)).sum();
            let s2: f64 = set.iter().map(|&at| g(at) * hat(at)).sum();
            (g(at) - s1 / m - hat(at) * s2 / m) / sd
        }),
        Op::NormParamGrad(which) => build(&|[c, ..]| {
            let part = if *which == NormParam::Gamma { 1 } else { 0 };
            let [n, channels] = [x[0].ty.shape.dim(0), x[0].ty.shape.dim(1)];
            (0..n)
                .map(|n| x[0].data[(n * channels + c) * 2 + part])
                .sum()
        }),
        Op::Linear => build(&|[n, o, ..]| {
            let dot: f64 = (0..x[0].dims5()[1])
                .map(|f| x[0].at([n, f, 0, 0, 0]) * x[1].at([o, f, 0, 0, 0]))
                .sum();
            dot + x.get(2).map_or(0.0, |b| b.data[o])
        }),
        Op::LinearInputGrad => build(&|[n, f, ..]| {
            let term = |o| x[0].at([n, o, 0, 0, 0]) * x[1].at([o, f, 0, 0, 0]);
            (0..x[0].dims5()[1]).map(term).sum()
        }),
        Op::LinearWeightGrad => build(&|[o, f, ..]| {
            let term = |n| x[0].at([n, f, 0, 0, 0]) * x[1].at([n, o, 0, 0, 0]);
            (0..x[0].dims5()[0]).map(term).sum()
        }),
        Op::CrossEntropy => {
            let count = (x[1].data.len()) as f64;
            let mut loss = 0.0;
            let _ = Tensor::build(x[1].ty, |at| {
                loss -= softmax(&channel(&x[0], at))[x[1].at(at) as usize].ln();
                0.0
            });
            Tensor {
                ty,
                data: vec![loss / count],
            }
        }
        Op::CrossEntropyGrad => build(&|at| {
            let label = x[1].at([at[0], 0, at[2], at[3], at[4]]) as usize;
            let p = softmax(&channel(&x[0], at))[at[1]] - f64::from(at[1] == label);
            p * x[2].data[0] / x[1].data.len() as f64
        }),
        Op::Bce => {
            let term = |(&x, &t): (&f64, &f64)| {
                let p = 1.0 / (1.0 + (-x).exp());
                -(t * p.ln() + (1.0 - t) * (1.0 - p).ln())
            };
            let sum: f64 = x[0].data.iter().zip(&x[1].data).map(term).sum();
            Tensor {
                ty,
                data: vec![sum / x[0].data.len() as f64],
            }
        }
        Op::BceGrad => build(&|at| {
            let p = 1.0 / (1.0 + (-x[0].at(at)).exp());
            (p - x[1].at(at)) * x[2].data[0] / x[0].data.len() as f64
        }),
        Op::Mse => {
            let sum: f64 = x[0]
                .data
                .iter()
                .zip(&x[1].data)
                .map(|(a, b)| (a - b).powi(2))
                .sum();
            Tensor {
                ty,
                data: vec![sum / x[0].data.len() as f64],
            }
        }
        Op::MseGrad => {
            build(&|at| 2.0 * (x[0].at(at) - x[1].at(at)) * x[2].data[0] / x[0].data.len() as f64)
        }
        Op::DiceSums => {
            let mut data = Vec::new();
            let [batch, channels, ..] = x[0].dims5();
            for n in 0..batch {
                for c in 0..channels {
                    let mut sums = [0.0; 3];
                    for [d, h, w] in places(all(&x[0])) {
                        let (p, t) = (x[0].at([n, c, d, h, w]), x[1].at([n, c, d, h, w]));
                        sums = [sums[0] + p * t, sums[1] + p, sums[2] + t];
                    }
                    data.extend(sums);
                }
            }
            Tensor { ty, data }
        }
        Op::DiceSumsGrad => build(&|at| {
            let sums = &x[1].data[3 * (at[0] * ty.shape.channels() + at[1])..];
            x[0].at(at) * sums[0] + sums[1]
        }),
        Op::DiceLoss { smooth } => {
            let s = smooth.get();
            let coefficients: Vec<f64> = x[0]
                .data
                .chunks(3)
                .map(|v| (2.0 * v[0] + s) / (v[1] + v[2] + s))
                .collect();
            let mean = coefficients.iter().sum::<f64>() / coefficients.len() as f64;
            Tensor {
                ty,
                data: vec![1.0 - mean],
            }
        }
        Op::DiceLossGrad { smooth } => {
            let s = smooth.get();
            let share = x[1].data[0] / (x[0].data.len() / 3) as f64;
            let each = x[0].data.chunks(3).flat_map(|v| {
                let (a, b) = (2.0 * v[0] + s, v[1] + v[2] + s);
                [-2.0 / b * share, a / (b * b) * share, a / (b * b) * share]
            });
            Tensor {
                ty,
                data: each.collect(),
            }
        }
        Op::Input { .. }
        | Op::Param { .. }
        | Op::Constant { .. }
        | Op::Dropout { .. }
        | Op::Cast { .. }
        | Op::Conv(_)
        | Op::ConvTranspose(_)
        | Op::ConvWeightGrad(_) => panic!("{op:?} is tested elsewhere"),
    }
}

pub(crate) fn check(case: &Case) {
    if matches!(case.op, Op::Constant { .. } | Op::Dropout { .. }) {
        return;
    }
    // A loss takes probabilities for targets.
    let mut inputs = case.inputs.clone();
    if let Op::Bce = case.op {
        inputs[1]
            .data
            .iter_mut()
            .for_each(|t| *t = 0.5 + t.clamp(-1.0, 1.0) / 2.0);
    }
    let dims: Vec<_> = inputs.iter().map(|x| x.ty.shape).collect();
    let what = format!("{:?} of {dims:?}", case.op);
    close(
        &run(&case.op, &inputs).data,
        &textbook(&case.op, &inputs).data,
        2e-12,
        &what,
    );
}

proptest! {
    #![proptest_config(random(150))]

    #[test]
    fn every_op_is_what_the_textbook_says(seed: u64) {
        let mut rng = Rng::new(seed);
        map_ops(&mut rng).iter().for_each(check);
        reductions(&mut rng).iter().for_each(check);
        flat_ops(&mut rng).iter().for_each(check);
    }
}
