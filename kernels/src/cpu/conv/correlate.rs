//! Weight gradient in `f32` of first layers, and of 1 × 1 convolutions on eight lanes:
//! outer products over positions.
//!
//! The channels of `ȳ` become lanes, by transposing a block of positions; columns
//! (channel, tap) of `x` are broadcast from a panel in which a tap is an offset. Register
//! tiles add to sums in doubles. Where `x` has few channels there is little to pack, and
//! dot products would be short against adding up their lanes; where it has many, those are
//! faster.
//!
//! A task owns a range of weights and walks all blocks of positions in one order, which
//! depends on the region and on the scratch if that is short, not on the number or the
//! timing of threads. It packs the next block piece by piece, between tiles of the
//! present one, so that memory is not waited for.

mod block;

use std::ops::Range;

use super::Geom;
use super::blocks::Blocks;
use super::direct::{axis, tap_offsets};
use super::outer::{Cursor, VECTORS};
use super::panel::{Axis, Extents};
use super::tasks::{self, DisjointMut};
use super::vector::{Kernel, Vector, Width};
use super::wgrad::{Part, parts};
use crate::Job;
use block::{Block, Side};

/// Fewer channels of `ȳ` would leave lanes idle.
const LEAST_OUTS: usize = 16;

/// With more channels of `x` and several taps, dot products are better.
const MOST_INS: usize = 8;

/// With fewer taps they are better, too, unless lanes are few: a tap that is not shared
/// is then read from the second-level cache for four channels of `ȳ` at a time.
const LEAST_TAPS: usize = 4;

/// Most floats of a block's panels, of which there are two.
const PANEL_FLOATS: usize = 40 << 10;

/// Most positions of a block.
const POSITIONS: usize = 256;

/// Rows of blocks begin at multiples of so many positions.
const LINE: usize = 16;

/// Work of a block besides copying, in floats copied.
const BLOCK_COST: usize = 20_000;

/// The same of a row of one channel.
const ROW_COST: usize = 16;

/// Most weights of an output channel, and most output channels, in one task: its sums and
/// both panels are to stay in the second-level cache.
const MOST_COLUMNS: usize = 288;
const MOST_OUTS: usize = 64;

/// Where each of few columns is used by more output channels, so many sums in one task.
const MOST_SUMS: usize = 16 << 10;

/// Computes the job if it is one that this is good for and there is scratch for it;
/// tells whether it did.
pub(super) fn weight_grad(g: &Geom, job: &Job<f32>, w: &mut [f32], scratch: &mut [f32]) -> bool {
    let (x, y) = (&job.inputs[0], &job.inputs[1]);
    let ins = x.dims()[1] / g.groups;
    let outs = y.dims()[1] / g.groups;
    let width = Width::best(outs);
    let good = if g.taps() == 1 {
        // With a stride, packing weighs more than what is gained.
        width == Width::Eight && g.stride == [1; 3] && ins >= LEAST_OUTS
    } else {
        ins <= MOST_INS && g.taps() >= LEAST_TAPS
    };
    if !good || outs < LEAST_OUTS {
        return false;
    }
    let region = &job.region;
    let lanes = width.lanes();
    let wanted = tasks::n_workers(usize::MAX, w.len() * region.points());
    // What a task may use does not depend on how many there are at once.
    let share = tasks::share(scratch.len(), 1).min(tasks::BYTES_PER_THREAD / 4);
    let steps = [1, lanes];
    // Fewer channels at once where scratch is short.
    let most_ins = (MOST_COLUMNS / g.taps()).max(1);
    let most_outs = if g.taps() == 1 {
        (MOST_SUMS / most_ins.min(ins)).clamp(MOST_OUTS, 4 * MOST_OUTS)
    } else {
        MOST_OUTS
    };
    let mut most = [most_ins, most_outs];
    let sums_floats = loop {
        let [c, k] = [most[0].min(ins), most[1].min(outs)];
        let sums = c.next_multiple_of(steps[0]) * k.next_multiple_of(steps[1]) * g.taps();
        let floats = tasks::whole_lines(2 * sums);
        if floats <= share / 2 {
            break floats;
        }
        let larger = usize::from(k > c);
        if most[larger] <= steps[larger] {
            return false;
        }
        most[larger] = (most[larger] / 2).max(steps[larger]);
    };
    let sizes = parts(g, [ins, outs], wanted, most, steps);
    let n_parts = [ins.div_ceil(sizes[0]), outs.div_ceil(sizes[1])];
    let n_tasks = g.groups * n_parts[0] * n_parts[1];
    let workers = wanted.min(n_tasks).min(scratch.len() / share.max(1)).max(1);

    // Cut for the largest parts whatever the threads need, and with no thought of balance:
    // the order of addition is then the same for any number of them.
    let [max_ins, max_outs] = [most[0].min(ins), most[1].min(outs)];
    let staged = tasks::whole_lines(lanes * (POSITIONS + LINE));
    let to_cut = ToCut {
        extent: [0, 1, 2].map(|s| region.s(s).len()),
        columns: max_ins,
        lanes: max_outs.next_multiple_of(lanes),
        budget: (share.saturating_sub(sums_floats + staged) / 2).min(PANEL_FLOATS),
    };
    let len = |s: usize, n: usize| axis(g, s, 0, n).len();
    let Some(cut) = to_cut.choose(len) else {
        return false;
    };
    let layer = Layer {
        g,
        job,
        cut,
        w: DisjointMut::new(w),
    };
    tasks::run(n_tasks, workers, scratch, |index, scratch| {
        let (index, c) = (index / n_parts[0], index % n_parts[0] * sizes[0]);
        let (group, k) = (index / n_parts[1], index % n_parts[1] * sizes[1]);
        let part = Part {
            group,
            k: k..(k + sizes[1]).min(outs),
            c: c..(c + sizes[0]).min(ins),
            out_group: outs,
            in_group: ins,
        };
        let (sums, scratch) = scratch.split_at_mut(sums_floats);
        let (staged, scratch) = scratch.split_at_mut(staged);
        let task = Task {
            layer: &layer,
            part: &part,
            sums,
            staged,
            panels: scratch.split_at_mut(scratch.len() / 2),
        };
        // SAFETY: the caller checked the machine; parts do not overlap.
        unsafe { width.run(task) };
    });
    true
}

/// What is to be cut into blocks of positions.
struct ToCut {
    extent: [usize; 3],
    /// Channels of both maps.
    columns: usize,
    lanes: usize,
    /// Most floats of a panel.
    budget: usize,
}

impl ToCut {
    /// The cut that takes least packing. `len(s, n)` is the most panel positions that `n`
    /// outputs need along axis `s`.
    fn choose(&self, len: impl Fn(usize, usize) -> usize) -> Option<Blocks> {
        let [ds, hs, ws] = self.extent;
        let even = |extent: usize, parts: usize, step: usize| {
            (extent.div_ceil(parts).next_multiple_of(step)).min(extent)
        };
        let mut best: Option<(usize, Blocks)> = None;
        for n_w in 1..=ws.div_ceil(LINE) {
            let w = even(ws, n_w, LINE);
            let most_h = (POSITIONS / w).min(hs);
            for h in 1..=most_h {
                let h = even(hs, hs.div_ceil(h), 1);
                let d = (POSITIONS / (w * h)).min(ds);
                for d in [1, d].into_iter().filter(|&d| d > 0) {
                    let d = even(ds, ds.div_ceil(d), 1);
                    let extents = Extents::new([len(0, d), len(1, h), len(2, w)]);
                    let floats = extents.floats(self.columns) + self.lanes * d * h * w;
                    if floats > self.budget {
                        continue;
                    }
                    let count = [ds.div_ceil(d), hs.div_ceil(h), ws.div_ceil(w)];
                    let block =
                        BLOCK_COST + floats + (d * h) * ROW_COST * (self.columns + self.lanes);
                    let cost = block * count.iter().product::<usize>();
                    if best.is_none_or(|(least, _)| cost < least) {
                        let cut = Blocks {
                            size: [d, h, w],
                            channels: self.columns,
                            count,
                        };
                        best = Some((cost, cut));
                    }
                }
            }
        }
        best.map(|(_, cut)| cut)
    }
}

struct Layer<'a> {
    g: &'a Geom,
    job: &'a Job<'a, f32>,
    cut: Blocks,
    w: DisjointMut<'a, f32>,
}

/// What one task does.
struct Task<'a> {
    layer: &'a Layer<'a>,
    part: &'a Part,
    /// Room for doubles.
    sums: &'a mut [f32],
    /// Room for rows of as many channels as lanes.
    staged: &'a mut [f32],
    panels: (&'a mut [f32], &'a mut [f32]),
}

impl Kernel for Task<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Task {
            layer,
            part,
            sums,
            staged,
            panels: (mut now, mut next),
        } = self;
        let n_blocks = layer.job.region.n().len() * layer.cut.n_blocks();
        // SAFETY: any bytes are a valid `f64`; scratch begins at a cache line.
        let (before, sums, _) = unsafe { sums.align_to_mut::<f64>() };
        assert!(before.is_empty(), "scratch is aligned");
        let mut block = layer.block::<V>(part, 0);
        let sums = &mut sums[..block.vectors * V::LANES * block.columns.len()];
        sums.fill(0.0);
        // SAFETY: as promised to this function.
        unsafe { block.pack::<V>(0..block.n_units::<V>(), staged, now) };
        for index in 0..n_blocks {
            let after = (index + 1 < n_blocks).then(|| layer.block::<V>(part, index + 1));
            let tiles = block.tiles(now);
            let n_tiles = tiles.n_tiles::<V>();
            let (mut cursor, mut packed) = (Cursor::default(), 0);
            for tile in 0..n_tiles {
                // SAFETY: as promised to this function.
                unsafe {
                    if let Some(after) = &after {
                        let [units, then] = [1, 2].map(|ahead| {
                            let units = after.n_units::<V>() * (tile + ahead) / n_tiles;
                            units.min(after.n_units::<V>())
                        });
                        V::call(Pack {
                            block: after,
                            units: packed..units,
                            then: units..then,
                            staged,
                            panel: next,
                        });
                        packed = units;
                    }
                    tiles.add_tile::<V>(&mut cursor, sums);
                }
            }
            let Some(after) = after else { break };
            block = after;
            std::mem::swap(&mut now, &mut next);
        }
        layer.add_to_weights::<V>(part, sums);
    }
}

/// Packs some units of a block, and asks for what others are packed from.
struct Pack<'a> {
    block: &'a Block,
    units: Range<usize>,
    then: Range<usize>,
    staged: &'a mut [f32],
    panel: &'a mut [f32],
}

impl Kernel for Pack<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        // SAFETY: as promised to this function.
        unsafe { self.block.pack::<V>(self.units, self.staged, self.panel) };
        self.block.prefetch::<V>(self.then);
    }
}

impl Layer<'_> {
    /// Block `index` of the positions of all samples, for the channels of a part.
    fn block<V: Vector>(&self, part: &Part, index: usize) -> Block {
        let (g, n_blocks) = (self.g, self.cut.n_blocks());
        let (lo, size) = self.cut.block(&self.job.region, index % n_blocks);
        let x_axes = [0, 1, 2].map(|s| axis(g, s, lo[s], size[s]));
        let y_axes = [0, 1, 2].map(|s| Axis::cover(1, &mut [(lo[s] as isize, size[s])]));
        let within =
            |channels: &Range<usize>, first: usize| first + channels.start..first + channels.end;
        let x_channels = within(&part.c, part.group * part.in_group);
        let y_channels = within(&part.k, part.group * part.out_group);
        let x = Side {
            map: &self.job.inputs[0],
            channels: x_channels,
            axes: x_axes,
        };
        let y = Side {
            map: &self.job.inputs[1],
            channels: y_channels,
            axes: y_axes,
        };
        let extents = Extents::new([0, 1, 2].map(|s| x.axes[s].len()));
        let taps = tap_offsets(g, lo, &x.axes, &extents);
        let n = self.job.region.n().start + index / n_blocks;
        let columns = (0..x.channels.len()).map(|c| c * extents.channel);
        let rows = (0..size[0]).flat_map(|d| (0..size[1]).map(move |h| [d, h, 0]));
        let staged = size[2].next_multiple_of(V::LANES);
        let vectors = y.channels.len().div_ceil(V::LANES);
        Block {
            positions: size[2],
            lane_rows: y.rows(staged, n),
            lane_channels: y.channels,
            staged,
            vectors,
            column_rows: x.rows(extents.row, n),
            column_channels: x.channels,
            rows_end: extents.slice * x.axes[0].len(),
            columns: columns
                .flat_map(|c| taps.iter().map(move |tap| c + tap))
                .collect(),
            rows: rows.map(|at| extents.at(at)).collect(),
            extents,
        }
    }

    /// Adds the sums of a part.
    fn add_to_weights<V: Vector>(&self, part: &Part, sums: &[f64]) {
        let taps = self.g.taps();
        let (n_lanes, n_columns) = (part.k.len(), part.c.len() * taps);
        let vectors = n_lanes.div_ceil(V::LANES);
        let place = |lane: usize, column: usize| {
            let (vector, lane) = (lane / V::LANES, lane % V::LANES);
            let first = vector / VECTORS * VECTORS;
            let group = VECTORS.min(vectors - first);
            (first * n_columns + column * group + vector - first) * V::LANES + lane
        };
        for k in 0..part.k.len() {
            let first = part.at(part.k.start + k, taps);
            // SAFETY: this task alone has these weights.
            let w = unsafe { self.w.part(first, part.c.len() * taps) };
            for (column, w) in w.iter_mut().enumerate() {
                *w += sums[place(k, column)] as f32;
            }
        }
    }
}
