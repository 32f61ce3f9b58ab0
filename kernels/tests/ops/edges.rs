//! Ties, infinities, NaN, labels that are none, and very large numbers.

use sstep_autodiff::{NormKind, Num, Op, PoolAttrs, UnaryKind};

use crate::common::{Rng, Tensor, close, run, run_typed};

const INF: f64 = f64::INFINITY;

fn pool(kernel: usize, stride: usize, pad: usize) -> PoolAttrs {
    PoolAttrs {
        kernel: [kernel, 1, 1],
        stride: [stride, 1, 1],
        pad_lo: [pad, 0, 0],
        pad_hi: [pad, 0, 0],
        count_pad: false,
    }
}

fn line(values: &[f64]) -> Tensor {
    Tensor::map(&[1, 1, values.len()], values.to_vec())
}

#[test]
fn padding_is_never_a_maximum() {
    let x = line(&[-3.0, -2.0, -5.0, -4.0]);
    let y = run(&Op::MaxPool(pool(3, 2, 1)), &[x.clone()]);
    assert_eq!(y.data, [-2.0, -2.0]);
    let x = line(&[-INF, -INF, -INF]);
    assert_eq!(
        run(&Op::MaxPool(pool(3, 1, 1)), &[x.clone()]).data,
        [-INF; 3]
    );
    // The first element of a window of equals gets its gradient.
    let g = run(
        &Op::MaxPoolGrad(pool(3, 1, 1)),
        &[x, line(&[1.0, 2.0, 4.0])],
    );
    assert_eq!(g.data, [3.0, 4.0, 0.0]);
}

#[test]
fn the_first_of_equals_is_the_maximum() {
    let x = Tensor::map(&[1, 1, 2, 2], vec![1.0, 7.0, 7.0, 7.0]);
    let a = PoolAttrs {
        kernel: [2, 2, 1],
        stride: [2, 2, 1],
        pad_lo: [0; 3],
        pad_hi: [0; 3],
        count_pad: false,
    };
    let g = Tensor::map(&[1, 1, 1, 1], vec![5.0]);
    assert_eq!(
        run(&Op::MaxPoolGrad(a), &[x.clone(), g]).data,
        [0.0, 5.0, 0.0, 0.0]
    );
    assert_eq!(run(&Op::GlobalMax, &[x]).data, [7.0, 0.0, 1.0]);
}

#[test]
fn nan_is_a_maximum() {
    for at in 0..9 {
        let mut values: Vec<f64> = (0..9).map(|i| i as f64).collect();
        values[at] = f64::NAN;
        let x = line(&values);
        let y = run(&Op::MaxPool(pool(9, 1, 0)), &[x.clone()]);
        assert!(y.data[0].is_nan(), "{at}");
        let g = run(&Op::MaxPoolGrad(pool(9, 1, 0)), &[x.clone(), line(&[1.0])]);
        assert_eq!(g.data[at], 1.0);
        let max = run(&Op::GlobalMax, &[x.clone()]);
        assert!(max.data[0].is_nan());
        assert_eq!(max.data[1], at as f64);
        assert!(run(&Op::SpatialLse, &[x.clone()]).data[0].is_nan());
        let relu = run(&Op::Unary(UnaryKind::Relu), &[x]);
        assert!(relu.data[at].is_nan());
    }
}

#[test]
fn log_sum_exp_of_huge_and_infinite_numbers() {
    let lse = |values: &[f64]| run(&Op::SpatialLse, &[line(values)]).data[0];
    close(
        &[lse(&[1000.0, 1000.0])],
        &[1000.0 + 2f64.ln()],
        1e-15,
        "huge",
    );
    close(
        &[lse(&[-1000.0, -1000.0])],
        &[-1000.0 + 2f64.ln()],
        1e-15,
        "tiny",
    );
    assert_eq!(lse(&[-INF, -INF]), -INF);
    assert_eq!(lse(&[-INF, 3.0]), 3.0);
    assert_eq!(lse(&[INF, 3.0]), INF);
}

#[test]
fn an_empty_looking_maximum() {
    let x = line(&[-INF, -INF]);
    assert_eq!(run(&Op::GlobalMax, &[x]).data, [-INF, 0.0]);
}

#[test]
fn losses_of_huge_logits_are_finite() {
    let x = line(&[800.0, -800.0]);
    let t = line(&[0.0, 1.0]);
    assert_eq!(run(&Op::Bce, &[x.clone(), t.clone()]).data, [800.0]);
    assert_eq!(run(&Op::Bce, &[x.clone(), line(&[1.0, 0.0])]).data, [0.0]);
    let g = Tensor::flat(&[1], vec![2.0]);
    assert_eq!(run(&Op::BceGrad, &[x, t, g.clone()]).data, [1.0, -1.0]);
    let x = Tensor::flat(&[1, 2], vec![1e4, -1e4]);
    let label = Tensor::flat(&[1, 1], vec![1.0]);
    assert_eq!(
        run(&Op::CrossEntropy, &[x.clone(), label.clone()]).data,
        [2e4]
    );
    assert_eq!(
        run(&Op::CrossEntropyGrad, &[x.clone(), label, g]).data,
        [2.0, -2.0]
    );
    assert_eq!(run(&Op::Softmax, &[x]).data, [1.0, 0.0]);
}

#[test]
fn a_label_that_is_none_gives_nan_where_it_stands() {
    let x = Tensor::map(&[1, 2, 3], vec![0.0; 6]);
    let g = Tensor::flat(&[1], vec![1.0]);
    for bad in [-1.0, 2.0, 0.5, 1e30, INF, -INF, f64::NAN] {
        let labels = Tensor::map(&[1, 1, 3], vec![0.0, bad, 1.0]);
        let loss = run(&Op::CrossEntropy, &[x.clone(), labels.clone()]);
        assert!(loss.data[0].is_nan(), "{bad}");
        let grad = run(&Op::CrossEntropyGrad, &[x.clone(), labels, g.clone()]).data;
        for (i, v) in grad.iter().enumerate() {
            assert_eq!(v.is_nan(), i % 3 == 1, "{bad}: {grad:?}");
        }
    }
}

#[test]
fn moments_of_numbers_far_from_zero() {
    // A sum of squares would lose every digit here.
    let n = 70_000;
    let values: Vec<f64> = (0..n).map(|i| 1e6 + (i % 7) as f64).collect();
    let x = Tensor::map(&[1, 1, 70, 1000], values);
    let moments = run(&Op::Moments(NormKind::Batch), &[x.clone()]);
    close(&moments.data, &[1e6 + 3.0, 4.0], 1e-12, "double");
    let single: Vec<f32> = run_typed(&Op::Moments(NormKind::Batch), &[x]);
    assert_eq!(single, [1_000_003.0, 4.0]);
}

#[test]
fn dropout_scales_what_it_keeps() {
    let mut rng = Rng::new(8);
    let x = Tensor::random_map(&[2, 3, 40, 50], &mut rng);
    let drop = |key| {
        run(
            &Op::Dropout {
                p: Num::new(0.25),
                key,
            },
            std::slice::from_ref(&x),
        )
        .data
    };
    let y = drop(1);
    for (x, y) in x.data.iter().zip(&y) {
        assert!(*y == 0.0 || (y - x / 0.75).abs() < 1e-15);
    }
    let kept = y.iter().filter(|&&y| y != 0.0).count() as f64 / y.len() as f64;
    assert!((kept - 0.75).abs() < 0.02, "{kept}");
    assert_ne!(y, drop(2));
    assert_eq!(y, drop(1));
    let all = run(
        &Op::Dropout {
            p: Num::new(0.0),
            key: 1,
        },
        std::slice::from_ref(&x),
    );
    assert_eq!(all.data, x.data);
}

#[test]
fn averages_with_and_without_their_padding() {
    let x = line(&[3.0, 6.0, 9.0]);
    let mut a = pool(3, 2, 1);
    assert_eq!(run(&Op::AvgPool(a), &[x.clone()]).data, [4.5, 7.5]);
    a.count_pad = true;
    assert_eq!(run(&Op::AvgPool(a), &[x]).data, [3.0, 5.0]);
}
