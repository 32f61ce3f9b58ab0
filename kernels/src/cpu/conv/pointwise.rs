//! 1 × 1 convolution and its adjoint in `f32` with AVX-512: a matrix product.
//!
//! Columns of a row are packed `[48 columns][channel][48]`, weights
//! `[8 outputs][channel][8]`. A register tile of 8 × 48 then reads both operands
//! as they lie, and its 24 accumulators keep the FMA units busy. What it will
//! store is asked for before it begins.

use std::arch::x86_64::*;

use super::direct::base;
use super::tasks::{self, DisjointMut};
use super::{Geom, panel};
use crate::Job;
use crate::cpu::stream;
use crate::view::{In, Out};

/// Output channels of a register tile.
const OUTS: usize = 8;

/// Columns of a vector.
const LANES: usize = 16;

/// Vectors of a register tile.
const VECTORS: usize = 3;

/// Columns of a register tile.
const TILE: usize = VECTORS * LANES;

/// Columns of a task: each channel's are one run of memory.
const COLUMNS: usize = 4 * TILE;

/// Shorter rows fill too little of a tile.
const SHORTEST_ROW: usize = 24;

/// Channels between asking for a row and packing it.
const AHEAD: usize = 4;

/// A 1 × 1 convolution, or an adjoint as one.
struct Layer<'a> {
    job: &'a Job<'a, f32>,
    out: &'a Out<'a, f32>,
    ins: usize,
    outs: usize,
    /// Elements of the weight between output channels and between input channels.
    w_steps: [usize; 2],
    /// Whether the output goes past the cache.
    past: bool,
}

/// Computes the job if it is a 1 × 1 convolution that this is good for.
pub(super) fn conv(g: &Geom, job: &Job<f32>, out: &Out<f32>, scratch: &mut [f32]) -> bool {
    let ins = job.inputs[0].dims()[1];
    fits(g, job, out) && compute(job, out, [ins, 1], scratch)
}

/// [`conv`] of the adjoint.
pub(super) fn adjoint(g: &Geom, job: &Job<f32>, out: &Out<f32>, scratch: &mut [f32]) -> bool {
    let outs = out.dims()[1];
    fits(g, job, out) && compute(job, out, [1, outs], scratch)
}

fn fits(g: &Geom, job: &Job<f32>, out: &Out<f32>) -> bool {
    let (x, y) = (job.inputs[0].dims(), out.dims());
    g.groups == 1
        && [g.kernel, g.stride] == [[1; 3]; 2]
        && g.pad == [0; 3]
        && x[2..] == y[2..]
        && x[1].min(y[1]) >= OUTS
        && job.region.s(2).len() >= SHORTEST_ROW
        && is_x86_feature_detected!("avx512f")
}

fn compute(job: &Job<f32>, out: &Out<f32>, w_steps: [usize; 2], scratch: &mut [f32]) -> bool {
    let layer = Layer {
        job,
        out,
        ins: job.inputs[0].dims()[1],
        outs: out.dims()[1],
        w_steps,
        past: stream::worthwhile::<f32>(job.region.points() * out.dims()[1]),
    };
    let Layer { ins, outs, .. } = layer;
    let (region, groups) = (&job.region, outs.div_ceil(OUTS));
    let packed = tasks::whole_lines(groups * ins * OUTS);
    let panel = ins * COLUMNS;
    let wanted = tasks::n_workers(usize::MAX, region.points() * ins * outs);
    let workers = wanted.min(scratch.len().saturating_sub(packed) / panel);
    if workers == 0 {
        return false;
    }
    let (weights, scratch) = scratch.split_at_mut(packed);
    let whole = DisjointMut::new(weights);
    tasks::run(groups, workers, &mut [], |group, _| {
        // SAFETY: every group is packed by one task.
        let to = unsafe { whole.part(group * ins * OUTS, ins * OUTS) };
        layer.pack_weights(group, to);
    });
    let weights = &*weights;
    let (n, d, h, w) = (region.n(), region.s(0), region.s(1), region.s(2));
    let along = w.len().div_ceil(COLUMNS);
    let n_tasks = n.len() * d.len() * h.len() * along;
    tasks::run(n_tasks, workers.min(n_tasks), scratch, |index, scratch| {
        let (row, at) = (index / along, w.start + index % along * COLUMNS);
        let (plane, y) = (row / h.len(), row % h.len());
        let (sample, z) = (plane / d.len(), plane % d.len());
        let block = Block {
            n: n.start + sample,
            d: d.start + z,
            h: h.start + y,
            w: at..(at + COLUMNS).min(w.end),
        };
        let panel = &mut scratch[..panel];
        layer.pack_columns(&block, panel);
        // SAFETY: the machine has AVX-512F; the caller checked that the output
        // holds the region, and tasks write disjoint parts of it.
        unsafe { layer.multiply(&block, weights, panel) };
        if layer.past {
            stream::fence();
        }
    });
    true
}

/// Columns of one row.
struct Block {
    n: usize,
    d: usize,
    h: usize,
    w: std::ops::Range<usize>,
}

impl Layer<'_> {
    /// Weights of eight output channels, zeros beyond the last.
    fn pack_weights(&self, group: usize, to: &mut [f32]) {
        let w = self.job.inputs[1].flat();
        for (c, to) in to.chunks_exact_mut(OUTS).enumerate() {
            for (k, to) in (group * OUTS..).zip(to) {
                let exists = k < self.outs;
                *to = if exists {
                    w[k * self.w_steps[0] + c * self.w_steps[1]]
                } else {
                    0.0
                };
            }
        }
    }

    /// Packs the columns, zeros beyond the last in its vector.
    fn pack_columns(&self, block: &Block, panel: &mut [f32]) {
        let x = &self.job.inputs[0];
        let row = |c| x.row(block.n, c, block.d, block.h, block.w.clone());
        for c in 0..self.ins {
            if c + AHEAD < self.ins {
                panel::prefetch(row(c + AHEAD));
            }
            for (tile, from) in row(c).chunks(TILE).enumerate() {
                let to = &mut panel[(tile * self.ins + c) * TILE..][..TILE];
                match <&[f32; TILE]>::try_from(from) {
                    Ok(from) => to.copy_from_slice(from),
                    Err(_) => {
                        to[..from.len()].copy_from_slice(from);
                        to[from.len()..].fill(0.0);
                    }
                }
            }
        }
    }

    /// # Safety
    /// The machine has AVX-512F; the output view holds the block, and nobody
    /// else uses it meanwhile.
    #[target_feature(enable = "avx512f")]
    unsafe fn multiply(&self, block: &Block, weights: &[f32], panel: &[f32]) {
        let bias = self.job.inputs.get(2).map(In::flat);
        let step = self.out.layout().strides[1];
        for (group, w) in weights.chunks_exact(self.ins * OUTS).enumerate() {
            let first = group * OUTS;
            let n_outs = OUTS.min(self.outs - first);
            let mut biases = [0.0; OUTS];
            if let Some(bias) = bias {
                biases[..n_outs].copy_from_slice(&bias[first..first + n_outs]);
            }
            let tiles = block
                .w
                .clone()
                .step_by(TILE)
                .zip(panel.chunks_exact(self.ins * TILE));
            for (at, x) in tiles {
                let columns = TILE.min(block.w.end - at);
                let to = Target {
                    base: base(self.out, block.n, first, [block.d, block.h, at]),
                    step,
                    n_outs,
                    columns,
                    bias: bias.is_some().then_some(&biases),
                    past: self.past,
                };
                // SAFETY: as promised to this function.
                unsafe {
                    match columns.div_ceil(LANES) {
                        1 => tile::<1>(self.ins, w, x, &to),
                        2 => tile::<2>(self.ins, w, x, &to),
                        _ => tile::<3>(self.ins, w, x, &to),
                    }
                }
            }
        }
    }
}

/// Where a tile is stored.
struct Target<'a> {
    base: *mut f32,
    /// Elements between channels.
    step: usize,
    n_outs: usize,
    columns: usize,
    bias: Option<&'a [f32; OUTS]>,
    past: bool,
}

/// `V` vectors of a tile. An output starts from zero, takes the channels in
/// ascending order by one fused multiply-add each, and the bias last.
///
/// # Safety
/// The machine has AVX-512F, and `to` may be written.
#[target_feature(enable = "avx512f")]
unsafe fn tile<const V: usize>(ins: usize, w: &[f32], x: &[f32], to: &Target) {
    assert!(
        w.len() >= ins * OUTS && x.len() >= ins * TILE,
        "packed operands"
    );
    for k in (0..to.n_outs).filter(|_| !to.past) {
        for v in 0..V {
            let line = to.base.wrapping_add(k * to.step + v * LANES);
            _mm_prefetch::<_MM_HINT_ET0>(line.cast_const().cast());
        }
    }
    let mut acc = [[_mm512_setzero_ps(); V]; OUTS];
    let (mut w, mut x) = (w.as_ptr(), x.as_ptr());
    for _ in 0..ins {
        // SAFETY: in bounds as checked; pointers past the end are not read.
        unsafe {
            let mut columns = [_mm512_setzero_ps(); V];
            for (v, column) in columns.iter_mut().enumerate() {
                *column = _mm512_loadu_ps(x.add(v * LANES));
            }
            for (k, acc) in acc.iter_mut().enumerate() {
                let weight = _mm512_set1_ps(*w.add(k));
                for (acc, &column) in acc.iter_mut().zip(&columns) {
                    *acc = _mm512_fmadd_ps(column, weight, *acc);
                }
            }
        }
        w = w.wrapping_add(OUTS);
        x = x.wrapping_add(TILE);
    }
    for (k, acc) in acc.iter().enumerate().take(to.n_outs) {
        for (v, &sum) in acc.iter().enumerate() {
            let lanes = LANES.min(to.columns - v * LANES);
            let mask = (u32::MAX >> (32 - lanes)) as __mmask16;
            let sum = match to.bias {
                Some(bias) => _mm512_add_ps(sum, _mm512_set1_ps(bias[k])),
                None => sum,
            };
            let at = to.base.wrapping_add(k * to.step + v * LANES);
            // SAFETY: the lanes of the mask are among the target's columns.
            unsafe {
                if to.past && lanes == LANES && at.cast::<__m512>().is_aligned() {
                    _mm512_stream_ps(at, sum);
                } else {
                    _mm512_mask_storeu_ps(at, mask, sum);
                }
            }
        }
    }
}
