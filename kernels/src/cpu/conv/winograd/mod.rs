//! Convolution and its adjoint by Winograd's minimal filtering F(4×4, 3×3).
//!
//! Every tile of 4 × 4 outputs is computed in a transformed space, where the
//! nine taps have become 36 products per pair of channels instead of 144. With
//! three axes, the slices that the depth taps reach are summed like channels.
//! The adjoint of a convolution of stride 1 is the convolution by the mirrored
//! taps, so both are the same code.
//!
//! **Order.** Tiles lie on one grid from the map's first element and are always
//! computed from their full patches; a point is summed over depth taps and
//! channels in ascending order, by fused multiply-adds. So a value does not
//! depend on the region, the threads, the scratch or the instruction set, bit
//! for bit. It does differ from the direct sum.
//!
//! **Error.** The transforms grow numbers before they cancel, so more is lost
//! than by direct sums. No bound is proven here; what is held by a test is that on
//! random data, with 16 and with 512 summed channels, outputs and both gradients
//! differ from exact ones by less than 6 · 10⁻⁶ of their root mean square in
//! `f32`. Measured: 4.5 · 10⁻⁶ for the outputs of 512 channels.
//!
//! With little scratch, or in `f64`, a slower loop gives the same bits (in `f32`).

// Matrices and lanes are written by index, as in the formulas.
#![allow(clippy::needless_range_loop)]

#[cfg(target_arch = "x86_64")]
mod gemm;
#[cfg(target_arch = "x86_64")]
mod grad;
#[cfg(target_arch = "x86_64")]
mod packed;
mod shuffle;
mod tiles;
mod transform;

use std::array::from_fn;

use super::plain::has_fma;
use super::{Geom, tasks};
use crate::Job;
use crate::real::Real;
use crate::view::{Box4, In, Out};

#[cfg(target_arch = "x86_64")]
pub(super) use grad::weight_grad;
#[cfg(target_arch = "x86_64")]
pub(super) use packed::compute;
use tiles::{Grid, Patches, Segment};
use transform::{LANES, Lanes, Lines, POINTS, TILE};

/// Output channels computed together.
const OUTS: usize = 8;

/// A convolution, or an adjoint as one.
pub(super) struct Problem<'a, T> {
    region: Box4,
    patches: Patches<'a, T>,
    /// Taps along depth.
    depth: usize,
    ins: usize,
    outs: usize,
    w: Taps<'a, T>,
    bias: Option<&'a [T]>,
    out: Out<'a, T>,
}

/// The weight, by output and input channel of the convolution that is computed.
struct Taps<'a, T> {
    w: &'a [T],
    out_step: usize,
    in_step: usize,
    taps: usize,
    mirrored: bool,
}

impl<T: Real> Taps<'_, T> {
    /// Nine taps of eight output channels from `k` on at depth tap `t`, zeros
    /// beyond the last of `outs`.
    #[inline(always)]
    fn nine(&self, k: usize, outs: usize, c: usize, t: usize) -> [[T; OUTS]; 9] {
        let mut g = [[T::ZERO; OUTS]; 9];
        for l in 0..OUTS.min(outs - k) {
            let at = (k + l) * self.out_step + c * self.in_step;
            let taps = &self.w[at..at + self.taps];
            for (i, g) in g.iter_mut().enumerate() {
                let tap = 9 * t + i;
                g[l] = taps[if self.mirrored {
                    self.taps - 1 - tap
                } else {
                    tap
                }];
            }
        }
        g
    }
}

impl<'a, T: Real> Problem<'a, T> {
    /// The convolution of a job.
    pub(super) fn conv(g: &Geom, job: &Job<'a, T>, out: &Out<'a, T>) -> Self {
        let taps = g.taps();
        let ins = job.inputs[0].dims()[1];
        let weights = |w| Taps {
            w,
            out_step: ins * taps,
            in_step: taps,
            taps,
            mirrored: false,
        };
        Problem::new(g, job, out, g.pad.map(|p| p as isize), weights)
    }

    /// The adjoint of a job.
    pub(super) fn adjoint(g: &Geom, job: &Job<'a, T>, out: &Out<'a, T>) -> Self {
        let taps = g.taps();
        let outs = out.dims()[1];
        let weights = |w| Taps {
            w,
            out_step: taps,
            in_step: outs * taps,
            taps,
            mirrored: true,
        };
        let pad = from_fn(|s| g.kernel[s] as isize - 1 - g.pad[s] as isize);
        Problem::new(g, job, out, pad, weights)
    }

    fn new(
        g: &Geom,
        job: &Job<'a, T>,
        out: &Out<'a, T>,
        pad: [isize; 3],
        weights: impl FnOnce(&'a [T]) -> Taps<'a, T>,
    ) -> Self {
        let x = job.inputs[0];
        let [_, ins, d, h, w] = x.dims();
        Problem {
            region: job.region,
            patches: Patches {
                x,
                pad,
                readable: [0..d, 0..h, 0..w],
            },
            depth: g.kernel[0],
            ins,
            outs: out.dims()[1],
            w: weights(job.inputs[1].flat()),
            bias: job.inputs.get(2).map(In::flat),
            out: *out,
        }
    }

    /// Depth tap and channel of each summed term, in order.
    fn terms(&self) -> impl Iterator<Item = (usize, usize)> + use<T> {
        let ins = self.ins;
        (0..self.depth).flat_map(move |t| (0..ins).map(move |c| (t, c)))
    }

    /// Number of terms.
    fn n_terms(&self) -> usize {
        self.depth * self.ins
    }

    /// Stores channel `k` of a vector of tiles, given its sums at the points.
    ///
    /// # Safety
    /// No other live slice overlaps the elements.
    #[inline(always)]
    unsafe fn store<const WIDTH: usize>(
        &self,
        segments: &[Segment],
        k: usize,
        sums: impl Fn(usize) -> Lanes<T>,
    ) {
        let mut y = Lines([[[T::ZERO; LANES]; TILE]; TILE]);
        transform::output_2d(sums, &mut y.0);
        if let Some(bias) = self.bias {
            for lane in y.0.as_flattened_mut().as_flattened_mut() {
                *lane += bias[k];
            }
        }
        // SAFETY: as promised to this function.
        unsafe { tiles::store::<T, WIDTH>(&self.out, &self.region, segments, k, &y.0) };
    }
}

/// Computes a problem in registers and on the stack.
pub(super) fn plain<T: Real>(problem: &Problem<T>) {
    let grid = Grid::aligned(&problem.region);
    let groups = problem.outs.div_ceil(OUTS);
    let n_tasks = grid.n_vectors() * groups;
    let macs = grid.n_vectors() * LANES * POINTS * problem.n_terms() * problem.outs;
    let n_workers = tasks::n_workers(n_tasks, macs);
    tasks::run(n_tasks, n_workers, &mut [], |index, _| {
        let segments = grid.vector(index / groups);
        let k = index % groups * OUTS;
        if has_fma() {
            // SAFETY: the machine has the features it is compiled for.
            #[allow(unused_unsafe)]
            unsafe {
                few_fma(problem, &segments, k)
            }
        } else {
            few(problem, &segments, k)
        }
    });
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn few_fma<T: Real>(problem: &Problem<T>, segments: &[Segment], k: usize) {
    few(problem, segments, k);
}

#[cfg(not(target_arch = "x86_64"))]
fn few_fma<T: Real>(problem: &Problem<T>, segments: &[Segment], k: usize) {
    few(problem, segments, k);
}

/// A few output channels, from `k` on, of a vector of tiles.
#[inline(always)]
fn few<T: Real>(problem: &Problem<T>, segments: &[Segment], k: usize) {
    let mut sums = [[[T::ZERO; LANES]; POINTS]; OUTS];
    let mut columns = tiles::no_columns();
    for (t, c) in problem.terms() {
        let mut w = [[T::ZERO; OUTS]; POINTS];
        transform::taps_2d(&problem.w.nine(k, problem.outs, c, t), &mut w);
        problem
            .patches
            .transform::<1>(&mut columns, segments, c, t, |p, u| {
                for (sums, &w) in sums.iter_mut().zip(&w[p]) {
                    for (sum, &u) in sums[p].iter_mut().zip(u) {
                        *sum = u.fma(w, *sum);
                    }
                }
            });
    }
    for (k, sums) in (k..problem.outs).zip(&sums) {
        // SAFETY: a vector and channel is stored by one task.
        unsafe { problem.store::<1>(segments, k, |p| sums[p]) };
    }
}
