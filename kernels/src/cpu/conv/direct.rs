//! Forward convolution in `f32`: blocks of outputs, each from a packed panel.

use super::blocks::{self, Blocks};
use super::panel::{self, Axis, Extents};
use super::tile::{Pos, Sums, list_taps, tiles};
use super::vector::{Kernel, Vector, Width};
use super::{Geom, tasks};
use crate::Job;
use crate::cpu::stream;
use crate::view::{In, Out};

/// First source position of tap `t` for output `j`.
pub(super) fn source(g: &Geom, s: usize, j: usize, t: usize) -> isize {
    (j * g.stride[s] + t * g.dilation[s]) as isize - g.pad[s] as isize
}

/// The panel axis of outputs `lo..lo + n`.
pub(super) fn axis(g: &Geom, s: usize, lo: usize, n: usize) -> Axis {
    let mut windows: Vec<_> = (0..g.kernel[s]).map(|t| (source(g, s, lo, t), n)).collect();
    Axis::cover(g.stride[s], &mut windows)
}

/// Offsets of the taps, in row-major order, in the panel of a block at `lo`.
pub(super) fn tap_offsets(
    g: &Geom,
    lo: [usize; 3],
    axes: &[Axis; 3],
    extents: &Extents,
) -> Vec<usize> {
    let along = |s: usize| -> Vec<usize> {
        (0..g.kernel[s])
            .map(|t| axes[s].locate(source(g, s, lo[s], t)))
            .collect()
    };
    let (ds, hs, ws) = (along(0), along(1), along(2));
    let mut taps = Vec::with_capacity(g.taps());
    for &d in &ds {
        for &h in &hs {
            taps.extend(ws.iter().map(|&w| extents.at([d, h, w])));
        }
    }
    taps
}

/// Computes the job if there is scratch for it; tells whether it did.
pub(super) fn conv(g: &Geom, job: &Job<f32>, out: &Out<f32>, scratch: &mut [f32]) -> bool {
    let x = &job.inputs[0];
    let in_group = x.dims()[1] / g.groups;
    let out_group = out.dims()[1] / g.groups;
    let region = &job.region;
    let extent = [0, 1, 2].map(|s| region.s(s).len());
    let sets = region.n().len() * g.groups;
    let macs = region.points() * g.taps() * in_group * out.dims()[1];
    let wanted = tasks::n_workers(usize::MAX, macs);
    let width = Width::best(extent[2]);
    let tile = width.outs();
    let to_cut = blocks::Job {
        extent,
        channels: in_group,
        macs: out_group * g.taps(),
        tile,
        outputs: out_group,
        extra: 0,
        taps: g.taps(),
        sets,
        workers: wanted,
        budget: tasks::share(scratch.len(), wanted).min(blocks::PANEL_FLOATS),
        positions: usize::MAX,
        lanes: width.lanes(),
    };
    let Some(cut) = Blocks::choose(&to_cut, |s, n| axis(g, s, 0, n).len()) else {
        return false;
    };
    // Deep layers of small maps have fewer blocks than threads; then their
    // output channels are shared out as well.
    let n_blocks = cut.n_blocks() * sets;
    let parts = wanted.div_ceil(n_blocks).min(out_group.div_ceil(tile));
    let part = out_group.div_ceil(parts).next_multiple_of(tile);
    let parts = out_group.div_ceil(part);
    let n_tasks = n_blocks * parts;
    let layer = Layer {
        g,
        x,
        w: job.inputs[1].flat(),
        bias: job.inputs.get(2).map(In::flat),
        out,
        // Sums that are taken up again stay in the cache.
        past: cut.channels == in_group
            && width.fills_lines()
            && stream::worthwhile::<f32>(region.points() * out.dims()[1]),
    };
    tasks::run(n_tasks, wanted.min(n_tasks), scratch, |index, scratch| {
        let (index, first) = (index / parts, index % parts * part);
        let (set, block) = (index / cut.n_blocks(), index % cut.n_blocks());
        let (n, group) = (region.n().start + set / g.groups, set % g.groups);
        let (lo, size) = cut.block(region, block);
        let outputs = first..(first + part).min(out_group);
        let block = Block {
            layer: &layer,
            scratch,
            n,
            group,
            lo,
            size,
            outputs,
            channels: cut.channels,
        };
        // SAFETY: the caller checked the machine, and that the output holds the
        // region; tasks write disjoint parts of it.
        unsafe { width.run(block) };
        if layer.past {
            stream::fence();
        }
    });
    true
}

struct Layer<'a> {
    g: &'a Geom,
    x: &'a In<'a, f32>,
    w: &'a [f32],
    bias: Option<&'a [f32]>,
    out: &'a Out<'a, f32>,
    /// Whether the output goes past the cache.
    past: bool,
}

/// What one task computes.
struct Block<'a> {
    layer: &'a Layer<'a>,
    scratch: &'a mut [f32],
    n: usize,
    group: usize,
    lo: [usize; 3],
    size: [usize; 3],
    /// Output channels, within the group.
    outputs: std::ops::Range<usize>,
    /// Channels summed at a time.
    channels: usize,
}

impl Kernel for Block<'_> {
    /// The block lies in the output view, and nobody else uses it meanwhile.
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let block = self;
        let Layer {
            g,
            x,
            w,
            bias,
            out,
            past,
        } = block.layer;
        let axes = [0, 1, 2].map(|s| axis(g, s, block.lo[s], block.size[s]));
        let extents = Extents::new([axes[0].len(), axes[1].len(), axes[2].len()]);
        let taps = tap_offsets(g, block.lo, &axes, &extents);
        let positions = positions::<V>(block.size, &extents, out);
        let in_group = x.dims()[1] / g.groups;
        let out_group = out.dims()[1] / g.groups;
        let channels = block.channels;
        let filter = in_group * taps.len();
        for c in (0..in_group).step_by(channels) {
            let n_channels = channels.min(in_group - c);
            let at = block.group * in_group + c;
            let panel = &mut block.scratch[..extents.floats(n_channels)];
            // SAFETY: as promised to this function.
            unsafe { panel::fill::<V>(panel, &extents, &axes, x, block.n, at..at + n_channels) };
            let mut taps = taps.clone();
            let listed = list_taps(n_channels, extents.channel, [&mut taps, &mut vec![]]);
            for k in block.outputs.clone().step_by(V::OUTS) {
                let n_out = (block.outputs.end - k).min(V::OUTS);
                let channel = block.group * out_group + k;
                let last = c + n_channels == in_group;
                let sums = Sums {
                    panel,
                    x_channel: extents.channel,
                    channels: listed,
                    taps: &taps,
                    w: &w[channel * filter + c * g.taps()..],
                    w_out: filter,
                    w_step: 1,
                    out: base(out, block.n, channel, block.lo),
                    out_channel: out.layout().strides[1],
                    out_step: 1,
                    between: None,
                    first: c == 0,
                    past: *past,
                    bias: bias.filter(|_| last).map(|b| &b[channel..channel + n_out]),
                };
                // SAFETY: as promised to this function.
                unsafe { tiles::<V>(n_out, &sums, &positions) };
            }
        }
    }
}

/// Address of an output; computing it is safe, using it is not.
pub(super) fn base(out: &Out<f32>, n: usize, channel: usize, at: [usize; 3]) -> *mut f32 {
    let layout = out.layout();
    let [sn, sc, sd, sh] = layout.strides;
    let p = &layout.present.0;
    let offset = (n - p[0].lo) * sn
        + channel * sc
        + (at[0] - p[1].lo) * sd
        + (at[1] - p[2].lo) * sh
        + (at[2] - p[3].lo);
    out.as_mut_ptr().wrapping_add(offset)
}

/// The vectors of a block of `size` outputs.
fn positions<V: Vector>(size: [usize; 3], extents: &Extents, out: &Out<f32>) -> Vec<Pos> {
    let [_, _, sd, sh] = out.layout().strides;
    let mut all = Vec::with_capacity(size[0] * size[1] * size[2].div_ceil(V::LANES));
    for d in 0..size[0] {
        for h in 0..size[1] {
            for w in (0..size[2]).step_by(V::LANES) {
                let x = extents.at([d, h, w]);
                let out = d * sd + h * sh + w;
                all.push(Pos {
                    x,
                    out,
                    lanes: V::LANES.min(size[2] - w),
                });
            }
        }
    }
    all
}
