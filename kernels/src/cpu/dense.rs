//! Fully connected layers on flat tensors. Sums run in double precision.

use rayon::prelude::*;

use super::lanes::{sum2, update1};
use crate::real::Real;
use crate::view::{In, Out};

/// Rows of a result, in parallel if `work` products are worth it.
fn each_row<T: Real>(y: &mut [T], len: usize, work: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if len == 0 {
        return;
    }
    if work < 1 << 16 {
        y.chunks_mut(len).enumerate().for_each(|(i, row)| f(i, row));
    } else {
        y.par_chunks_mut(len)
            .enumerate()
            .for_each(|(i, row)| f(i, row));
    }
}

/// `y += Σ_k weight(k) · rows[k]`, where row `k` is `rows[k · len..]`.
fn combine<T: Real>(y: &mut [T], rows: &[T], n_rows: usize, weight: impl Fn(usize) -> T) {
    let mut sum = vec![0.0; y.len()];
    for (k, row) in rows.chunks_exact(y.len()).take(n_rows).enumerate() {
        let weight = weight(k).to_f64();
        update1(&mut sum, row, |sum: f64, x: T| sum + weight * x.to_f64());
    }
    for (y, &sum) in y.iter_mut().zip(&sum) {
        *y = T::from_f64(sum);
    }
}

/// `(x[N, F], w[O, F][, b[O]])` → `[N, O]`.
pub(super) fn linear<T: Real>(inputs: &[In<'_, T>], out: &mut Out<'_, T>) {
    let (x, w) = (inputs[0].flat(), inputs[1].flat());
    let bias = inputs.get(2).map(|b| b.flat());
    let [outputs, features, ..] = inputs[1].dims();
    // One row per output of a sample, so that one sample is shared as well.
    each_row(out.flat(), 1, x.len() * outputs, |i, y| {
        let (n, o) = (i / outputs, i % outputs);
        let (x, w) = (
            &x[n * features..][..features],
            &w[o * features..][..features],
        );
        let bias = bias.map_or(0.0, |b| b[o].to_f64());
        y[0] = T::from_f64(sum2(x, w, |x, w| x.to_f64() * w.to_f64()) + bias);
    });
}

/// `(ȳ[N, O], w[O, F])` → `x̄[N, F] = ȳ w`.
pub(super) fn input_grad<T: Real>(inputs: &[In<'_, T>], out: &mut Out<'_, T>) {
    let (g, w) = (inputs[0].flat(), inputs[1].flat());
    let [outputs, features, ..] = inputs[1].dims();
    each_row(out.flat(), features, g.len() * features, |n, x| {
        combine(x, w, outputs, |o| g[n * outputs + o]);
    });
}

/// `(x[N, F], ȳ[N, O])` → `w̄[O, F] = ȳᵀ x`.
pub(super) fn weight_grad<T: Real>(inputs: &[In<'_, T>], out: &mut Out<'_, T>) {
    let (x, g) = (inputs[0].flat(), inputs[1].flat());
    let [batch, features, ..] = inputs[0].dims();
    let outputs = inputs[1].dims()[1];
    each_row(out.flat(), features, g.len() * features, |o, w| {
        combine(w, x, batch, |n| g[n * outputs + o]);
    });
}
