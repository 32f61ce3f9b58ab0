//! Convolution in `f32` as a matrix product, for layers whose columns are worth
//! packing: 1 × 1, and strided ones of many channels; and the adjoint of those whose
//! taps do not overlap.
//!
//! Forward, the product's columns are the output positions. With taps that do not
//! overlap an output of the adjoint has at most one source position, so there the
//! columns are those, a sum has a term per channel, and every tap is a product of
//! its own, whose results lie a stride apart; taps side by side are stored woven.
//! Outputs between taps have no terms.
//!
//! Each worker packs the columns of its next block a few rows at a time, between
//! register tiles of the present one, having asked for their lines a tile earlier.

mod outputs;

use std::ops::Range;

use super::Geom;
use super::columns::{Block, Grid, Source, VECTORS};
use super::direct::source;
use super::product::{Product, Weave, multiply};
use super::tasks::{self, DisjointMut, Draw};
use super::vector::{Kernel, Vector, Width};
use crate::Job;
use crate::cpu::stream;
use crate::view::{In, Out};

/// Fewer output channels would idle in a tile.
const LEAST_OUTS: usize = 8;

/// With fewer channels, columns of several taps cost more to pack than they save.
const MANY_INS: usize = 16;

/// The same of output channels.
const MANY_OUTS: usize = 64;

/// Fewer positions do not pay for packing the weights.
const LEAST_POINTS: usize = 256;

/// Most vectors of a block: each channel's are one run of memory.
const MOST_VECTORS: usize = 4 * VECTORS;

/// Most floats of a panel, if a single tile's take no more.
const PANEL_FLOATS: usize = 64 << 10;

/// Most floats of a tile's panel: two stay in the second-level cache.
const TILE_FLOATS: usize = PANEL_FLOATS / 2;

/// A convolution, or an adjoint, as a matrix product.
struct Layer<'a> {
    job: &'a Job<'a, f32>,
    out: &'a Out<'a, f32>,
    source: Source<'a>,
    grid: Grid,
    /// Position `j` of the grid is stored from `j·stride − pad` on.
    stride: [usize; 3],
    pad: [usize; 3],
    /// Taps along depth and rows, each computed by a product of its own.
    phases: Vec<[usize; 2]>,
    /// Outputs of a position along depth and rows that no tap reaches.
    gaps: Vec<[usize; 2]>,
    weave: Weave,
    /// Where the weight of an output channel, tap (along depth, rows and columns) and
    /// matrix row lies.
    weight: WeightAt,
    /// Vectors of a block.
    block: usize,
    /// Whether the output goes past the cache.
    past: bool,
}

/// How weights lie.
#[derive(Clone, Copy)]
enum WeightAt {
    /// `[output channel][row]`.
    Forward,
    /// `[row][output channel][tap]`.
    Adjoint { kernel: [usize; 3] },
}

/// Computes the convolution if it is one that this is good for and there is scratch.
pub(super) fn conv(g: &Geom, job: &Job<f32>, out: &Out<f32>, scratch: &mut [f32]) -> bool {
    let (x, outs) = (&job.inputs[0], out.dims()[1]);
    let [_, ins, dims @ ..] = x.dims();
    let (taps, n_rows) = (g.taps(), ins * g.taps());
    let strided = g.stride != [1; 3];
    let good = taps == 1 || strided && ins >= MANY_INS && outs >= MANY_OUTS;
    if !good || !fits(g, job, n_rows, outs) {
        return false;
    }
    let width = Width::best(job.region.s(2).len());
    let offsets = [0, 1, 2].map(|s| (0..g.kernel[s]).map(|t| source(g, s, 0, t)).collect());
    let layer = Layer {
        job,
        out,
        source: Source {
            x,
            stride: g.stride,
            offsets,
            within: dims.map(|extent| 0..extent),
        },
        grid: Grid::of(&job.region, width.lanes()),
        stride: [1; 3],
        pad: [0; 3],
        phases: vec![[0; 2]],
        gaps: vec![],
        weave: Weave::No,
        weight: WeightAt::Forward,
        block: 0,
        past: width.fills_lines() && stream::worthwhile::<f32>(job.region.points() * outs),
    };
    compute(layer, width, scratch)
}

/// [`conv`] of the adjoint.
pub(super) fn adjoint(g: &Geom, job: &Job<f32>, out: &Out<f32>, scratch: &mut [f32]) -> bool {
    let (x, outs) = (&job.inputs[0], out.dims()[1]);
    let [_, ins, dims @ ..] = x.dims();
    let apart =
        (0..3).all(|s| g.kernel[s] <= g.stride[s] && (g.kernel[s] == 1 || g.dilation[s] == 1));
    if !apart || g.stride[2] > 2 || !fits(g, job, ins, outs * g.kernel[2]) {
        return false;
    }
    let weave = match (g.stride[2], g.kernel[2]) {
        (1, _) => Weave::No,
        (_, 1) => Weave::Gaps,
        _ => Weave::Pairs,
    };
    let region = &job.region;
    // Positions that have outputs in the region, and those that taps read for it.
    let reach = |s: usize| {
        let (first, end) = (region.s(s).start + g.pad[s], region.s(s).end + g.pad[s]);
        (first, (end - 1) / g.stride[s] + 1)
    };
    let axes = [0, 1, 2].map(|s| reach(s).0 / g.stride[s]..reach(s).1);
    let within = [0, 1, 2].map(|s| {
        let (first, end) = reach(s);
        let first = (first + 1).saturating_sub(g.kernel[s]);
        first.div_ceil(g.stride[s])..end.min(dims[s])
    });
    let width = Width::best(axes[2].len());
    let pairs = |of: [Range<usize>; 2]| -> Vec<[usize; 2]> {
        let [ds, hs] = of;
        ds.flat_map(|d| hs.clone().map(move |h| [d, h])).collect()
    };
    let phases = pairs([0, 1].map(|s| 0..g.kernel[s]));
    let all = pairs([0, 1].map(|s| 0..g.stride[s]));
    let layer = Layer {
        job,
        out,
        source: Source {
            x,
            stride: [1; 3],
            offsets: [0, 1, 2].map(|_| vec![0]),
            within,
        },
        grid: Grid::new(region.n(), axes, width.lanes()),
        stride: g.stride,
        pad: g.pad,
        gaps: all.into_iter().filter(|at| !phases.contains(at)).collect(),
        phases,
        weave,
        weight: WeightAt::Adjoint { kernel: g.kernel },
        block: 0,
        past: width.fills_lines() && stream::worthwhile::<f32>(region.points() * outs),
    };
    compute(layer, width, scratch)
}

fn fits(g: &Geom, job: &Job<f32>, n_rows: usize, outs: usize) -> bool {
    let tile = n_rows * VECTORS * Width::best(job.region.s(2).len()).lanes();
    g.groups == 1
        && n_rows >= LEAST_OUTS
        && outs >= LEAST_OUTS
        && tile <= TILE_FLOATS
        && job.region.points() >= LEAST_POINTS
}

fn compute(mut layer: Layer, width: Width, scratch: &mut [f32]) -> bool {
    let (n_rows, n_groups) = (layer.source.n_rows(), layer.n_groups(width.outs()));
    let outs = layer.out.dims()[1];
    let n_weights = layer.phases.len() * n_groups * n_rows * width.outs();
    let packed = tasks::whole_lines(n_weights);
    let tile = n_rows * VECTORS * width.lanes();
    let macs = layer.job.region.points() * n_rows * outs;
    let wanted = tasks::n_workers(usize::MAX, macs);
    let share = tasks::share(scratch.len().saturating_sub(packed), wanted);
    // Blocks small enough for two panels in the cache, and for every worker to get some.
    let most = (PANEL_FLOATS / tile).min(share / 2 / tile);
    let n_vectors = layer.grid.n_vectors();
    let even = n_vectors.div_ceil(2 * wanted).div_ceil(VECTORS);
    let n_tiles = most.min(even).clamp(1, MOST_VECTORS / VECTORS);
    layer.block = n_tiles * VECTORS;
    let panels = 2 * n_tiles * tile;
    let n_blocks = n_vectors.div_ceil(layer.block);
    let workers = wanted
        .min(n_blocks)
        .min(scratch.len().saturating_sub(packed) / panels);
    if workers == 0 {
        return false;
    }
    let (weights, scratch) = scratch.split_at_mut(packed);
    layer.pack_weights(width.outs(), workers, &mut weights[..n_weights]);
    let (layer, weights) = (&layer, &weights[..n_weights]);
    tasks::work(n_blocks, workers, scratch, |draw, scratch| {
        let worker = Worker {
            layer,
            weights,
            draw,
            panels: scratch[..panels].split_at_mut(panels / 2),
        };
        // SAFETY: the caller checked the machine, and that the output holds the
        // region; blocks write disjoint parts of it.
        unsafe { width.run(worker) };
    });
    true
}

impl Layer<'_> {
    /// Outputs of a channel that a product computes at a position.
    fn woven(&self) -> usize {
        if self.weave == Weave::Pairs { 2 } else { 1 }
    }

    /// Groups of output channels that tiles of `outs` sums compute.
    fn n_groups(&self, outs: usize) -> usize {
        (self.out.dims()[1] * self.woven()).div_ceil(outs)
    }

    /// Packs the weights as `[phase][group of channels][row][outs]`, where a channel is
    /// one sum or two; zeros beyond the last.
    fn pack_weights(&self, outs: usize, workers: usize, to: &mut [f32]) {
        let w = self.job.inputs[1].flat();
        let (n_rows, n_groups) = (self.source.n_rows(), self.n_groups(outs));
        let (channels, woven) = (self.out.dims()[1], self.woven());
        let size = n_rows * outs;
        let whole = DisjointMut::new(to);
        tasks::run(
            self.phases.len() * n_groups,
            workers,
            &mut [],
            |index, _| {
                // SAFETY: every group is packed by one task.
                let to = unsafe { whole.part(index * size, size) };
                let ([td, th], group) = (self.phases[index / n_groups], index % n_groups);
                for sum in 0..outs {
                    let (channel, tw) = ((group * outs + sum) / woven, sum % woven);
                    let to = to[sum..].iter_mut().step_by(outs);
                    if channel >= channels {
                        to.for_each(|to| *to = 0.0);
                        continue;
                    }
                    let (first, step) = match self.weight {
                        WeightAt::Forward => (channel * n_rows, 1),
                        WeightAt::Adjoint {
                            kernel: [kd, kh, kw],
                        } => {
                            let tap = (td * kh + th) * kw + tw;
                            (channel * kd * kh * kw + tap, channels * kd * kh * kw)
                        }
                    };
                    let from = w[first..].iter().step_by(step);
                    to.zip(from).for_each(|(to, &from)| *to = from);
                }
            },
        );
    }

    fn block(&self, index: usize) -> Block {
        let first = index * self.block;
        let end = (first + self.block).min(self.grid.n_vectors());
        self.source
            .block(self.grid.runs(first..end), self.grid.lanes())
    }
}

/// What one thread does: it packs a block's columns while it computes another's.
struct Worker<'a> {
    layer: &'a Layer<'a>,
    weights: &'a [f32],
    draw: &'a Draw,
    panels: (&'a mut [f32], &'a mut [f32]),
}

impl Kernel for Worker<'_> {
    /// Blocks lie in the output view, and nobody else uses them meanwhile.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Worker {
            layer,
            weights,
            draw,
            panels: (mut now, mut next),
        } = self;
        let source = &layer.source;
        let Some(first) = draw.next() else { return };
        let mut block = layer.block(first);
        // SAFETY: as promised to this function.
        unsafe { source.pack::<V>(0..source.n_rows(), &block, now) };
        loop {
            let then = draw.next();
            let after = then.map_or_else(Block::empty, |index| layer.block(index));
            // SAFETY: as promised to this function.
            unsafe { compute_block::<V>(layer, weights, &block, now, &after, next) };
            if layer.past {
                stream::fence();
            }
            if then.is_none() {
                return;
            }
            block = after;
            std::mem::swap(&mut now, &mut next);
        }
    }
}

/// Computes a block from its packed columns, and packs those of the next one.
///
/// # Safety
/// The machine has the instructions; the block lies in the output view, and nobody else
/// uses it meanwhile.
#[inline(always)]
unsafe fn compute_block<V: Vector>(
    layer: &Layer,
    weights: &[f32],
    now: &Block,
    panel: &[f32],
    after: &Block,
    next: &mut [f32],
) {
    let Layer { source, out, .. } = layer;
    let (n_rows, n_groups) = (source.n_rows(), layer.n_groups(V::OUTS));
    let (channels, per_tile) = (out.dims()[1], V::OUTS / layer.woven());
    let bias = layer.job.inputs.get(2).map(In::flat);
    let (n_tiles, n_products) = (now.n_tiles(), layer.phases.len() * n_groups);
    let n_calls = n_products * n_tiles;
    let mut spots = Vec::with_capacity(layer.phases.len() * n_tiles * VECTORS);
    for &phase in &layer.phases {
        layer.spots::<V>(&now.runs, phase, &mut spots);
    }
    let n_vectors = spots.len() / layer.phases.len();
    let mut lines = Vec::new();
    let mut packed = 0;
    for call in 0..n_calls {
        // A tile's columns stay in the first-level cache while the weights stream past;
        // where lanes are many and outputs may bypass the cache, those of neighbouring
        // tiles are better stored in turn.
        let (product, tile) = if V::LANES == 8 {
            (call % n_products, call / n_products)
        } else {
            (call / n_tiles, call % n_tiles)
        };
        let (phase, group) = (product / n_groups, product % n_groups);
        let first = group * per_tile;
        let n_outs = per_tile.min(channels - first);
        let w = &weights[product * n_rows * V::OUTS..][..n_rows * V::OUTS];
        let x = &panel[tile * n_rows * VECTORS * V::LANES..];
        let spots = &spots[phase * n_vectors..][..n_vectors];
        let spots = &spots[tile * VECTORS..n_vectors.min((tile + 1) * VECTORS)];
        let [packing, asking] = [1, 2].map(|next| (n_rows * (call + next) / n_calls).min(n_rows));
        // SAFETY: as promised to this function.
        unsafe {
            source.pack::<V>(packed..packing, after, next);
            source.lines(packing..asking, after, &mut lines);
            packed = packing;
            if spots.iter().all(|spot| spot.hi == 0) {
                continue;
            }
            let base = out.as_mut_ptr();
            multiply::<V>(&Product {
                n_rows,
                w,
                x,
                spots,
                weave: layer.weave,
                n_outs,
                out: base.wrapping_add(first * out.layout().strides[1]),
                out_channel: out.layout().strides[1],
                bias: bias.map(|bias| &bias[first..first + n_outs]),
                past: layer.past,
                lines: &lines,
            });
        }
    }
    for run in now.runs.iter().filter(|_| !layer.gaps.is_empty()) {
        // SAFETY: as promised to this function.
        unsafe { layer.fill_gaps(run) };
    }
}
