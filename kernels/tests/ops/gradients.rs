//! Gradient ops against the ops they belong to.

use proptest::prelude::*;
use sstep_autodiff::{NormAttrs, NormKind, NormParam, Num, Op, PerAxis, Saved};

use crate::cases::{
    KINDS, labels, leaky, moments_of, pooled, random_dims, random_norm, random_pool, upsampled,
};
use crate::common::{Rng, Tensor, close, random, run};

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.data.len(), b.data.len());
    a.data.iter().zip(&b.data).map(|(a, b)| a * b).sum()
}

/// Compares `gradient` with central differences of `f` at `x`.
fn differences(x: &Tensor, gradient: &Tensor, what: &str, f: impl Fn(&Tensor) -> f64) {
    let h = 1e-5;
    let want: Vec<f64> = (0..x.data.len())
        .map(|i| {
            let moved = |by: f64| {
                let mut x = x.clone();
                x.data[i] += by;
                f(&x)
            };
            (moved(h) - moved(-h)) / (2.0 * h)
        })
        .collect();
    close(&gradient.data, &want, 2e-8, what);
}

fn spatial_of(dims: &[usize]) -> (PerAxis, u8) {
    let mut spatial = [1; 3];
    spatial[..dims.len() - 2].copy_from_slice(&dims[2..]);
    (spatial, dims.len() as u8 - 2)
}

/// `⟨A x, ȳ⟩ = ⟨x, Aᵀ ȳ⟩`.
fn adjoint(op: &Op, transposed: &Op, x: &Tensor, g: &Tensor) {
    let forward = dot(&run(op, std::slice::from_ref(x)), g);
    let back = dot(x, &run(transposed, std::slice::from_ref(g)));
    let off = (forward - back).abs();
    assert!(
        off <= 1e-11 * (1.0 + forward.abs()),
        "{op:?}: {forward} is not {back}"
    );
}

/// A norm of `x` and its gradients against differences.
fn check_norm(a: NormAttrs, dims: &[usize], rng: &mut Rng) {
    let (x, g) = (Tensor::random_map(dims, rng), Tensor::random_map(dims, rng));
    let (gamma, beta) = (
        Tensor::random_flat(&dims[1..2], rng),
        Tensor::random_flat(&dims[1..2], rng),
    );
    let moments = moments_of(&a, &x, rng);
    let value = |x: &Tensor, gamma: &Tensor, beta: &Tensor| {
        let moments = if a.frozen {
            moments.clone()
        } else {
            moments_of(&a, x, &mut Rng::new(0))
        };
        dot(
            &run(
                &Op::Normalise(a),
                &[x.clone(), moments, gamma.clone(), beta.clone()],
            ),
            &g,
        )
    };
    let sums = run(&Op::NormSums(a), &[x.clone(), moments.clone(), g.clone()]);
    let of_x = if a.frozen {
        run(
            &Op::NormGrad(a),
            &[moments.clone(), g.clone(), gamma.clone()],
        )
    } else {
        let inputs = [
            x.clone(),
            moments.clone(),
            g.clone(),
            gamma.clone(),
            sums.clone(),
        ];
        run(&Op::NormGrad(a), &inputs)
    };
    let what = format!("{a:?} of {dims:?}");
    differences(&x, &of_x, &what, |x| value(x, &gamma, &beta));
    let of_gamma = run(
        &Op::NormParamGrad(NormParam::Gamma),
        std::slice::from_ref(&sums),
    );
    differences(&gamma, &of_gamma, &what, |gamma| value(&x, gamma, &beta));
    let of_beta = run(&Op::NormParamGrad(NormParam::Beta), &[sums]);
    differences(&beta, &of_beta, &what, |beta| value(&x, &gamma, beta));
}

proptest! {
    #![proptest_config(random(40))]

    #[test]
    fn linear_ops_have_their_adjoints(seed: u64) {
        use sstep_autodiff::{UpsampleAttrs, UpsampleMode};
        let mut rng = Rng::new(seed);
        let dims = random_dims(&mut rng);
        let x = Tensor::random_map(&dims, &mut rng);
        let (spatial, n_spatial) = spatial_of(&dims);
        let pool = random_pool(&dims, &mut rng);
        let g = Tensor::random_map(&pooled(&pool, &dims), &mut rng);
        adjoint(&Op::AvgPool(pool), &Op::AvgPoolGrad { pool, in_spatial: spatial }, &x, &g);
        for mode in [UpsampleMode::Nearest, UpsampleMode::Linear] {
            let up = UpsampleAttrs { mode, factor: {
                let mut factor = [1; 3];
                factor[..n_spatial as usize].fill_with(|| rng.int(1, 5));
                factor
            } };
            let g = Tensor::random_map(&upsampled(&up, &dims), &mut rng);
            adjoint(&Op::Upsample(up), &Op::UpsampleGrad(up), &x, &g);
        }
        let v = Tensor::random_flat(&dims[..2], &mut rng);
        let sum = Op::SumMap { keep_batch: true };
        adjoint(&Op::Broadcast { spatial, n_spatial }, &sum, &v, &x);
        let drop = Op::Dropout { p: Num::new(0.4), key: seed };
        adjoint(&drop, &drop, &x, &Tensor::random_map(&dims, &mut rng));
    }

    #[test]
    fn max_pool_sends_the_gradient_to_the_maximum(seed: u64) {
        let mut rng = Rng::new(seed);
        let dims = random_dims(&mut rng);
        // All values differ by more than a difference moves them.
        let n: usize = dims.iter().product();
        let mut values: Vec<f64> = (0..n).map(|i| i as f64 * 0.01).collect();
        (1..n).rev().for_each(|i| values.swap(i, rng.int(0, i)));
        let x = Tensor::map(&dims, values);
        let pool = random_pool(&dims, &mut rng);
        let g = Tensor::random_map(&pooled(&pool, &dims), &mut rng);
        let gradient = run(&Op::MaxPoolGrad(pool), &[x.clone(), g.clone()]);
        let probes = Tensor::random_map(&dims, &mut rng);
        // One direction at a time instead of each element.
        let along = |t: f64| {
            let moved = x.data.iter().zip(&probes.data).map(|(x, p)| x + t * p).collect();
            dot(&run(&Op::MaxPool(pool), &[Tensor::map(&dims, moved)]), &g)
        };
        let want = (along(1e-4) - along(-1e-4)) / 2e-4;
        let got = dot(&gradient, &probes);
        prop_assert!((got - want).abs() <= 1e-6 * (1.0 + want.abs()), "{got} is not {want}");
        let spatial = spatial_of(&dims);
        let packed = run(&Op::GlobalMax, std::slice::from_ref(&x));
        let of_max = Tensor::random_flat(packed.ty.shape.dims(), &mut rng);
        let op = Op::GlobalMaxGrad { spatial: spatial.0, n_spatial: spatial.1 };
        let gradient = run(&op, &[packed, of_max.clone()]);
        let channels = dims[0] * dims[1];
        let along = |t: f64| {
            let moved = x.data.iter().zip(&probes.data).map(|(x, p)| x + t * p).collect();
            let packed = run(&Op::GlobalMax, &[Tensor::map(&dims, moved)]);
            let per_sample = packed.data.len() / dims[0];
            (0..channels).map(|i| {
                let at = i / dims[1] * per_sample + i % dims[1];
                packed.data[at] * of_max.data[at]
            }).sum::<f64>()
        };
        let want = (along(1e-4) - along(-1e-4)) / 2e-4;
        let got = dot(&gradient, &probes);
        prop_assert!((got - want).abs() <= 1e-6 * (1.0 + want.abs()), "{got} is not {want}");
    }

    #[test]
    fn norms_differentiate_through_their_statistics(seed: u64) {
        let mut rng = Rng::new(seed);
        let dims = [rng.int(1, 2), rng.int(1, 4), rng.int(2, 4), rng.int(1, 4)];
        check_norm(random_norm(dims[1], &mut rng), &dims, &mut rng);
    }
}

#[test]
fn every_norm_kind_at_least_once() {
    let mut rng = Rng::new(9);
    let eps = Num::new(1e-3);
    for (kind, frozen) in [
        (NormKind::Batch, false),
        (NormKind::Batch, true),
        (NormKind::Group(1), false),
        (NormKind::Group(2), false),
        (NormKind::Group(4), false),
    ] {
        check_norm(NormAttrs { kind, eps, frozen }, &[2, 4, 3, 3], &mut rng);
        check_norm(NormAttrs { kind, eps, frozen }, &[3, 4, 5], &mut rng);
        check_norm(NormAttrs { kind, eps, frozen }, &[1, 4, 2, 2, 3], &mut rng);
    }
}

#[test]
fn functions_of_one_element() {
    let n = 81;
    // From −8 to 8, never at a kink.
    let x = Tensor::flat(
        &[1, n],
        (0..n).map(|i| (i as f64 - 40.0) * 0.2 + 0.01).collect(),
    );
    let g = Tensor::flat(&[1, n], (0..n).map(|i| (i as f64).sin()).collect());
    for kind in KINDS.into_iter().chain([leaky()]) {
        let y = run(&Op::Unary(kind), std::slice::from_ref(&x));
        let grad =
            |saved, of: &Tensor| run(&Op::UnaryGrad { kind, saved }, &[of.clone(), g.clone()]);
        let from_input = grad(Saved::Input, &x);
        // The exponential is large here; compare it relative to itself.
        let scale = |t: &Tensor| Tensor {
            data: t
                .data
                .iter()
                .zip(&x.data)
                .map(|(v, x)| v / (1.0 + x.exp()))
                .collect(),
            ..t.clone()
        };
        let h = 1e-5;
        let moved = |by: f64| {
            let x = Tensor {
                data: x.data.iter().map(|x| x + by).collect(),
                ..x.clone()
            };
            run(&Op::Unary(kind), &[x])
        };
        let (up, down) = (moved(h), moved(-h));
        let differences = Tensor {
            data: (0..n)
                .map(|i| g.data[i] * (up.data[i] - down.data[i]) / (2.0 * h))
                .collect(),
            ..x.clone()
        };
        let what = format!("{kind:?}");
        close(
            &scale(&from_input).data,
            &scale(&differences).data,
            2e-9,
            &what,
        );
        if kind.grad_from_output() {
            close(
                &grad(Saved::Output, &y).data,
                &from_input.data,
                1e-13,
                &what,
            );
        }
    }
}

#[test]
fn losses() {
    let mut rng = Rng::new(5);
    let dims = [2, 3, 2, 3];
    let x = Tensor::random_map(&dims, &mut rng);
    let t = Tensor::map(&dims, (0..36).map(|_| 0.5 + 0.5 * rng.real()).collect());
    let g = Tensor::flat(&[1], vec![1.3]);
    let target = labels(sstep_autodiff::Form::Map, &dims, 3, &mut rng);
    for (op, grad, t) in [
        (Op::CrossEntropy, Op::CrossEntropyGrad, &target),
        (Op::Bce, Op::BceGrad, &t),
        (Op::Mse, Op::MseGrad, &t),
    ] {
        let gradient = run(&grad, &[x.clone(), t.clone(), g.clone()]);
        let value = |x: &Tensor| 1.3 * run(&op, &[x.clone(), t.clone()]).data[0];
        differences(&x, &gradient, &format!("{op:?}"), value);
    }
    // Soft Dice in its two halves.
    let smooth = Num::new(0.5);
    let sums = run(&Op::DiceSums, &[x.clone(), t.clone()]);
    let of_sums = run(&Op::DiceLossGrad { smooth }, &[sums, g]);
    let of_x = run(&Op::DiceSumsGrad, &[t.clone(), of_sums]);
    differences(&x, &of_x, "dice", |x| {
        let sums = run(&Op::DiceSums, &[x.clone(), t.clone()]);
        1.3 * run(&Op::DiceLoss { smooth }, &[sums]).data[0]
    });
}

#[test]
fn softmax_and_log_sum_exp() {
    let mut rng = Rng::new(6);
    let dims = [2, 4, 3];
    let (x, g) = (
        Tensor::random_map(&dims, &mut rng),
        Tensor::random_map(&dims, &mut rng),
    );
    let y = run(&Op::Softmax, std::slice::from_ref(&x));
    let gradient = run(&Op::SoftmaxGrad, &[y, g.clone()]);
    differences(&x, &gradient, "softmax", |x| {
        dot(&run(&Op::Softmax, std::slice::from_ref(x)), &g)
    });
}

#[test]
fn linear_layers() {
    let mut rng = Rng::new(7);
    let x = Tensor::random_flat(&[3, 5], &mut rng);
    let w = Tensor::random_flat(&[4, 5], &mut rng);
    let g = Tensor::random_flat(&[3, 4], &mut rng);
    let value = |x: &Tensor, w: &Tensor| dot(&run(&Op::Linear, &[x.clone(), w.clone()]), &g);
    let of_x = run(&Op::LinearInputGrad, &[g.clone(), w.clone()]);
    differences(&x, &of_x, "linear", |x| value(x, &w));
    let of_w = run(&Op::LinearWeightGrad, &[x.clone(), g.clone()]);
    differences(&w, &of_w, "linear", |w| value(&x, w));
}
