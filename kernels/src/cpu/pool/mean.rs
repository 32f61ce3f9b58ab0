//! Average pool and its gradient.

use sstep_autodiff::{PoolAttrs, Window};

use super::rows::{Even, spread};
use super::{axes, fold_taps};
use crate::Job;
use crate::cpu::lanes::update1;
use crate::cpu::parts::each_row;
use crate::real::Real;
use crate::view::Out;

/// `(x)` → windowed mean.
pub(in crate::cpu) fn avg_pool<T: Real>(a: &PoolAttrs, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let x = &job.inputs[0];
    let axes = axes(a, out.layout().shape.spatial().len(), x.dims(), out.dims());
    let w = job.region.s(2);
    let columns: Vec<usize> = w.clone().map(|j| axes[2].divisor(j, a.count_pad)).collect();
    each_row(out, &job.region, |n, c, d, h, y| {
        y.fill(T::ZERO);
        fold_taps(&axes, x, [n, c, d, h], &w, y, |y, x| y + x);
        let outer = axes[0].divisor(d, a.count_pad) * axes[1].divisor(h, a.count_pad);
        for (y, column) in y.iter_mut().zip(&columns) {
            *y = *y / T::from_f64((outer * column) as f64);
        }
    });
}

/// Windows of a row that are divided together.
const TOGETHER: usize = 512;

/// `(ȳ)` → `x̄` of average pool: each element sums, over the windows that cover
/// it in row-major order, `ȳ` divided by the window's divisor.
pub(in crate::cpu) fn avg_pool_grad<T: Real>(
    a: &PoolAttrs,
    job: &Job<'_, T>,
    out: &mut Out<'_, T>,
) {
    let g = &job.inputs[0];
    let axes = axes(a, out.layout().shape.spatial().len(), out.dims(), g.dims());
    let [depth, rows, columns] = &axes;
    let Window {
        kernel,
        stride,
        pad,
        ..
    } = columns.window;
    let w = job.region.s(2);
    let windows = columns.covering(w.clone());
    let divisors: Vec<T> = windows
        .clone()
        .map(|j| T::from_f64(columns.divisor(j, a.count_pad) as f64))
        .collect();
    each_row(out, &job.region, |n, c, d, h, x| {
        x.fill(T::ZERO);
        let mut shares = [T::ZERO; TOGETHER];
        for jd in depth.covering(d..d + 1) {
            for jh in rows.covering(h..h + 1) {
                let outer = depth.divisor(jd, a.count_pad) * rows.divisor(jh, a.count_pad);
                let outer = T::from_f64(outer as f64);
                for start in windows.clone().step_by(TOGETHER) {
                    let j = start..(start + TOGETHER).min(windows.end);
                    let shares = &mut shares[..j.len()];
                    shares.copy_from_slice(g.row(n, c, jd, jh, j.clone()));
                    let divisors = &divisors[start - windows.start..][..j.len()];
                    update1(shares, divisors, |g, divisor| g / (outer * divisor));
                    let lo = (w.start + pad).max(j.start * stride);
                    let hi = (w.end + pad).min((j.end - 1) * stride + kernel);
                    if lo < hi {
                        let x = &mut x[lo - pad - w.start..][..hi - lo];
                        spread(x, lo - j.start * stride, Even(shares), kernel, stride);
                    }
                }
            }
        }
    });
}
