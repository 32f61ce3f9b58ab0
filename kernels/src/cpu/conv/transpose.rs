//! Transposed convolution in `f32`, which is also the data gradient.
//!
//! With stride `s`, output `i` is reached only by taps `t` for which
//! `(i + p − t·d)` is a multiple of `s`. Outputs of one residue (a *phase*)
//! share their taps and read neighbouring inputs: each phase is a convolution
//! of stride 1 over the same packed panel, with a few of the taps, whose
//! results are stored `s` apart. Weights are repacked once per call, so that
//! the tiles stream through those of their phase.

use super::blocks::{self, Blocks};
use super::direct::base;
use super::panel::{self, Axis, Extents};
use super::phases::{Packed, Phase, axis, phase_taps, phases, tap_orders};
use super::tile::{Pos, Sums, list_taps, tiles};
use super::vector::{Kernel, Vector, Width};
use super::{Geom, tasks};
use crate::Job;
use crate::cpu::stream;
use crate::view::{In, Out};

/// Computes the job if there is scratch for it; tells whether it did.
pub(super) fn transpose(g: &Geom, job: &Job<f32>, out: &Out<f32>, scratch: &mut [f32]) -> bool {
    let x = &job.inputs[0];
    let in_group = x.dims()[1] / g.groups;
    let out_group = out.dims()[1] / g.groups;
    let region = &job.region;
    let extent = [0, 1, 2].map(|s| region.s(s).len());
    let sets = region.n().len() * g.groups;
    let strides: usize = g.stride.iter().product();
    let taps_met = g.taps().div_ceil(strides);
    let macs = region.points() * taps_met * in_group * out.dims()[1];
    let wanted = tasks::n_workers(usize::MAX, macs);
    // Outputs of one phase fill a vector.
    let width = Width::best(extent[2].div_ceil(g.stride[2]));
    let tile = width.outs();
    // Weights of as many output channels as a third of the scratch holds; the
    // panels are packed again for each such part.
    let per_tile = tile * g.groups * in_group * g.taps();
    let tiles_fit = scratch.len() / 3 / per_tile;
    if tiles_fit == 0 {
        return false;
    }
    let part = (tiles_fit * tile).min(out_group.next_multiple_of(tile));
    let parts = out_group.div_ceil(part);
    let part = out_group.div_ceil(parts).next_multiple_of(tile);
    let (weights, scratch) = scratch.split_at_mut(tasks::whole_lines(part / tile * per_tile));
    let to_cut = blocks::Job {
        extent,
        channels: in_group,
        macs: part * taps_met,
        tile,
        outputs: part,
        extra: 0,
        taps: taps_met,
        sets,
        workers: wanted,
        budget: tasks::share(scratch.len(), wanted).min(blocks::PANEL_FLOATS),
        positions: usize::MAX,
        lanes: width.lanes() * g.stride[2],
    };
    // Where a block begins decides how many sources its phases span.
    let longest = |s: usize, n: usize| {
        let starts = region.s(s).start..region.s(s).start + g.stride[s];
        starts
            .map(|lo| axis(&phases(g, s, lo, n)).len())
            .max()
            .unwrap_or(0)
    };
    let Some(cut) = Blocks::choose(&to_cut, longest) else {
        return false;
    };
    let n_tasks = cut.n_blocks() * sets;
    let orders = [0, 1, 2].map(|s| tap_orders(g, s));
    for first in (0..out_group).step_by(part) {
        let outputs = first..(first + part).min(out_group);
        let w = job.inputs[1].flat();
        let packed = Packed {
            tile,
            in_group,
            out_group,
            outputs: outputs.clone(),
        };
        packed.fill(g, w, weights, &orders);
        let bias = job.inputs.get(2).map(In::flat);
        let layer = Layer {
            g,
            x,
            weights,
            bias,
            out,
            // Sums that are taken up again stay in the cache.
            past: cut.channels == in_group
                && width.fills_lines()
                && stream::worthwhile::<f32>(region.points() * out.dims()[1]),
            outputs,
            channels: cut.channels,
        };
        tasks::run(n_tasks, wanted.min(n_tasks), scratch, |index, scratch| {
            let (set, block) = (index / cut.n_blocks(), index % cut.n_blocks());
            let (n, group) = (region.n().start + set / g.groups, set % g.groups);
            let (lo, size) = cut.block(region, block);
            let block = Block {
                layer: &layer,
                n,
                group,
                lo,
                size,
                scratch,
            };
            // SAFETY: the caller checked the machine, and that the output holds
            // the region; tasks write disjoint parts of it.
            unsafe { width.run(block) };
            if layer.past {
                stream::fence();
            }
        });
    }
    true
}

struct Layer<'a> {
    g: &'a Geom,
    x: &'a In<'a, f32>,
    /// See [`Packed`].
    weights: &'a [f32],
    bias: Option<&'a [f32]>,
    out: &'a Out<'a, f32>,
    /// Whether the output goes past the cache.
    past: bool,
    /// Output channels, within each group.
    outputs: std::ops::Range<usize>,
    /// Channels summed at a time.
    channels: usize,
}

/// What one task computes.
struct Block<'a> {
    layer: &'a Layer<'a>,
    n: usize,
    group: usize,
    lo: [usize; 3],
    size: [usize; 3],
    scratch: &'a mut [f32],
}

impl Kernel for Block<'_> {
    /// The block lies in the output view, and nobody else uses it meanwhile.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Block {
            layer,
            n,
            group,
            lo,
            size,
            scratch,
        } = self;
        let Layer {
            g, x, bias, out, ..
        } = layer;
        let along = [0, 1, 2].map(|s| phases(g, s, lo[s], size[s]));
        let axes = [0, 1, 2].map(|s| axis(&along[s]));
        let extents = Extents::new([axes[0].len(), axes[1].len(), axes[2].len()]);
        let in_group = x.dims()[1] / g.groups;
        let out_group = out.dims()[1] / g.groups;
        let subs = subs::<V>(layer, &along, &axes, &extents, lo);
        let tile_floats = V::OUTS * in_group * g.taps();
        let n_tiles = layer.outputs.len().div_ceil(V::OUTS);
        for k in (0..in_group).step_by(layer.channels) {
            let n_channels = layer.channels.min(in_group - k);
            let from = group * in_group + k;
            let panel = &mut scratch[..extents.floats(n_channels)];
            // SAFETY: as promised to this function.
            unsafe { panel::fill::<V>(panel, &extents, &axes, x, n, from..from + n_channels) };
            let mut listed = Vec::with_capacity(subs.len());
            for sub in &subs {
                let mut taps = sub.taps.clone();
                let mut between = sub
                    .between
                    .as_ref()
                    .map_or(vec![], |(taps, _)| taps.clone());
                let both = [&mut taps, &mut between];
                let channels = list_taps(n_channels, extents.channel, both);
                listed.push((channels, taps, between));
            }
            for (tile, c) in layer.outputs.clone().step_by(V::OUTS).enumerate() {
                let n_out = (layer.outputs.end - c).min(V::OUTS);
                let channel = group * out_group + c;
                let last = k + n_channels == in_group;
                for (sub, (channels, taps, between)) in subs.iter().zip(&listed) {
                    let weights = |before: usize, n_taps: usize| {
                        let within = (before * in_group + k * n_taps) * V::OUTS;
                        &layer.weights[(group * n_tiles + tile) * tile_floats + within..]
                    };
                    let second = sub.between.as_ref();
                    let sums = Sums {
                        panel,
                        x_channel: extents.channel,
                        channels: *channels,
                        taps,
                        w: weights(sub.before, sub.taps.len()),
                        w_out: 1,
                        w_step: V::OUTS,
                        out: base(out, n, channel, sub.at),
                        out_channel: out.layout().strides[1],
                        out_step: g.stride[2],
                        between: second
                            .map(|(t, before)| (&between[..], weights(*before, t.len()))),
                        first: k == 0,
                        past: layer.past,
                        bias: bias.filter(|_| last).map(|b| &b[channel..channel + n_out]),
                    };
                    // SAFETY: as promised to this function.
                    unsafe { tiles::<V>(n_out, &sums, &sub.positions) };
                }
            }
        }
    }
}

/// The outputs of a block that are of one phase along every axis; with stride 2
/// along rows, of both phases there.
struct Sub {
    /// The first of them.
    at: [usize; 3],
    /// Offsets of its taps in the panel.
    taps: Vec<usize>,
    /// Number of taps of the phases packed before it.
    before: usize,
    /// The same of the second phase along rows.
    between: Option<(Vec<usize>, usize)>,
    positions: Vec<Pos>,
}

fn subs<V: Vector>(
    layer: &Layer,
    along: &[Vec<Phase>; 3],
    axes: &[Axis; 3],
    extents: &Extents,
    lo: [usize; 3],
) -> Vec<Sub> {
    let g = layer.g;
    let orders = [0, 1, 2].map(|s| tap_orders(g, s));
    // Where each phase's weights begin, in taps.
    let mut begin = vec![0];
    for taps in phase_taps(g, &orders) {
        begin.push(begin[begin.len() - 1] + taps.len());
    }
    let residue = |s: usize, phase: &Phase| (lo[s] + phase.at + g.pad[s]) % g.stride[s];
    let offsets = |s: usize, phase: &Phase| -> Vec<usize> {
        phase
            .taps
            .iter()
            .map(|&(_, first)| axes[s].locate(first))
            .collect()
    };
    let mut subs = Vec::with_capacity(begin.len());
    for d in &along[0] {
        let d_taps = offsets(0, d);
        for h in &along[1] {
            let h_taps = offsets(1, h);
            let index = (residue(0, d) * g.stride[1] + residue(1, h)) * g.stride[2];
            let phase = |w: &Phase| {
                let w_taps = offsets(2, w);
                let mut taps = Vec::with_capacity(d_taps.len() * h_taps.len() * w_taps.len());
                for &d in &d_taps {
                    for &h in &h_taps {
                        taps.extend(w_taps.iter().map(|&w| extents.at([d, h, w])));
                    }
                }
                (taps, begin[index + residue(2, w)])
            };
            let mut sub = |w: &Phase, second: Option<&Phase>| {
                let (taps, before) = phase(w);
                subs.push(Sub {
                    at: [lo[0] + d.at, lo[1] + h.at, lo[2] + w.at],
                    taps,
                    before,
                    between: second.map(phase),
                    positions: positions::<V>(layer, extents, [d, h, w], second),
                });
            };
            match &along[2][..] {
                [even, odd] if g.stride[2] == 2 => sub(even, Some(odd)),
                all => all.iter().for_each(|w| sub(w, None)),
            }
        }
    }
    subs
}

/// The vectors of the outputs of one phase per axis; with a second phase along
/// rows, of both together.
fn positions<V: Vector>(
    layer: &Layer,
    extents: &Extents,
    [d, h, w]: [&Phase; 3],
    second: Option<&Phase>,
) -> Vec<Pos> {
    let [_, _, sd, sh] = layer.out.layout().strides;
    let stride = layer.g.stride;
    // The first phase has as many outputs as the second, or one more.
    let (phases, n) = second.map_or((1, w.n), |second| (2, w.n + second.n));
    let mut all = Vec::with_capacity(d.n * h.n * w.n.div_ceil(V::LANES));
    for j in 0..d.n {
        for i in 0..h.n {
            for v in (0..w.n).step_by(V::LANES) {
                let out = j * stride[0] * sd + i * stride[1] * sh + v * stride[2];
                let lanes = (phases * V::LANES).min(n - phases * v);
                all.push(Pos {
                    x: extents.at([j, i, v]),
                    out,
                    lanes,
                });
            }
        }
    }
    all
}
