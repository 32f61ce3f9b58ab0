//! Weight gradient in `f32`: many long dot products at once.
//!
//! A weight's gradient is the dot product of one channel of `ȳ` with one
//! shifted channel of `x`. In the packed panel of a block the shift is an
//! offset, so a few channels of `ȳ` by three (channel, tap) columns are
//! accumulators that stay in registers while the rows of the block stream by.
//!
//! **Accuracy.** A register lane sums a block, at most 32 products;
//! the blocks are added up in doubles where the scratch has room for them, and
//! each task adds its part to `w` once per call. Tasks own ranges of weights and all
//! walk the positions in one order, which depends on the region and on the scratch
//! if that is short, not on the number or the timing of threads.

use std::ops::Range;

use super::Geom;
use super::blocks::{self, Blocks};
use super::direct::{axis, tap_offsets};
use super::dots::Streams;
use super::panel::{self, Extents};
use super::tasks::{self, DisjointMut};
use super::vector::{Kernel, Vector, Width};
use crate::Job;
use crate::view::In;

/// Most channels of `x` and of `ȳ` in one task: few, so that both panels fit the
/// cache with long rows, because a dot product should be long against adding it
/// up; but more where few taps share the cost of packing them.
fn most_channels(g: &Geom) -> (usize, usize) {
    let ins = (288 / g.taps()).clamp(1, 64);
    (ins, if g.taps() <= 2 { 128 } else { 64 })
}

/// Most floats of both panels. They are streamed through, and may be larger than
/// those that tiles jump around in.
const PANEL_FLOATS: usize = 80 << 10;

/// Most products summed in a lane. Gradients cancel, most of all where a softmax
/// over space is above, and what a longer sum loses would be all of the result.
const PRODUCTS: usize = 32;

/// So many blocks are added to `w` one by one.
const FEW_BLOCKS: usize = 4;

/// Computes the job if there is scratch for it; tells whether it did.
pub(super) fn weight_grad(g: &Geom, job: &Job<f32>, w: &mut [f32], scratch: &mut [f32]) -> bool {
    let (x, y) = (&job.inputs[0], &job.inputs[1]);
    let in_group = x.dims()[1] / g.groups;
    let out_group = y.dims()[1] / g.groups;
    let region = &job.region;
    let macs = w.len() * region.points();
    let wanted = tasks::n_workers(usize::MAX, macs);
    let most = most_channels(g);
    let width = Width::best(region.s(2).len());
    let (lanes, tile) = (width.lanes(), width.outs());
    let [ins, outs] = parts(
        g,
        [in_group, out_group],
        wanted,
        [most.0, most.1],
        [1, tile],
    );
    let n_outs = out_group.div_ceil(outs);
    let n_ins = in_group.div_ceil(ins);
    let n_tasks = g.groups * n_outs * n_ins;
    // What a task may use does not depend on how many there are at once.
    let share = tasks::share(scratch.len(), 1).min(tasks::BYTES_PER_THREAD / 4);
    let workers = wanted.min(n_tasks).min(scratch.len() / share.max(1)).max(1);

    // Each task has sums in doubles, if they leave it half of its scratch.
    let (max_ins, max_outs) = (in_group.min(most.0), out_group.min(most.1));
    let n_sums = max_outs.next_multiple_of(tile) * max_ins * g.taps();
    let n_sums = Some(n_sums).filter(|n| tasks::whole_lines(2 * n) <= share / 2);
    let sums_floats = tasks::whole_lines(2 * n_sums.unwrap_or(0));
    let dots_floats = tasks::whole_lines(tile * max_ins * g.taps());

    // Cut for the largest parts whatever the threads need, and with no thought
    // of balance: the order of addition is then the same for any number of them.
    let to_cut = blocks::Job {
        extent: [0, 1, 2].map(|s| region.s(s).len()),
        channels: max_ins,
        macs: max_outs * g.taps(),
        tile,
        outputs: 0,
        extra: max_outs,
        taps: 1,
        sets: 1,
        workers: 1,
        budget: share
            .saturating_sub(sums_floats + dots_floats)
            .min(PANEL_FLOATS),
        positions: PRODUCTS * lanes,
        lanes,
    };
    let Some(cut) = Blocks::choose(&to_cut, |s, n| axis(g, s, 0, n).len()) else {
        return false;
    };
    // A handful of additions loses nothing in single precision.
    let summing = n_sums.is_some() && region.n().len() * cut.n_blocks() > FEW_BLOCKS;
    let layer = Layer {
        g,
        job,
        cut,
        w: DisjointMut::new(w),
    };
    tasks::run(n_tasks, workers, scratch, |index, scratch| {
        let (index, c) = (index / n_ins, index % n_ins * ins);
        let (group, k) = (index / n_outs, index % n_outs * outs);
        let part = Part {
            group,
            k: k..(k + outs).min(out_group),
            c: c..(c + ins).min(in_group),
            out_group,
            in_group,
        };
        let (dots, scratch) = scratch.split_at_mut(dots_floats);
        let (sums, scratch) = scratch.split_at_mut(if summing { sums_floats } else { 0 });
        let task = Task {
            layer: &layer,
            part: &part,
            sums: summing.then_some(sums),
            dots,
            scratch,
        };
        // SAFETY: the caller checked the machine; parts do not overlap.
        unsafe { width.run(task) };
    });
    true
}

/// Channels of `x` and of `ȳ` per task, at most so many of each and multiples of
/// `steps`: enough tasks for the threads, and as little packing of the same channels by
/// several tasks as possible.
pub(super) fn parts(
    g: &Geom,
    [in_group, out_group]: [usize; 2],
    workers: usize,
    most: [usize; 2],
    steps: [usize; 2],
) -> [usize; 2] {
    let wanted = workers.div_ceil(g.groups);
    let cuts = |channels: usize, most: usize, step: usize| {
        let least = channels.div_ceil(most);
        (least..=channels.div_ceil(step).min(least + 2 * workers).max(least))
            .map(move |n| channels.div_ceil(n).next_multiple_of(step))
    };
    let best = cuts(out_group, most[1], steps[1])
        .flat_map(|k| cuts(in_group, most[0], steps[0]).map(move |c| (k, c)))
        .map(|(k, c)| {
            let tasks = out_group.div_ceil(k) * in_group.div_ceil(c);
            // Work of the busiest thread in multiply-adds, and copies at ten each.
            let rounds = (tasks * g.groups).div_ceil(workers);
            let work = rounds * (k * c * g.taps() + 10 * (k + 2 * c));
            (tasks < wanted, work, [c, k])
        })
        .min();
    best.expect("at least one cut was tried").2
}

struct Layer<'a> {
    g: &'a Geom,
    job: &'a Job<'a, f32>,
    cut: Blocks,
    w: DisjointMut<'a, f32>,
}

/// The weights of one task.
pub(super) struct Part {
    pub(super) group: usize,
    /// Output channels, within the group.
    pub(super) k: Range<usize>,
    /// Input channels, within the group.
    pub(super) c: Range<usize>,
    pub(super) out_group: usize,
    pub(super) in_group: usize,
}

impl Part {
    /// Where the weights of output channel `k` of this part lie in `w`.
    pub(super) fn at(&self, k: usize, taps: usize) -> usize {
        ((self.group * self.out_group + k) * self.in_group + self.c.start) * taps
    }
}

/// What one task does.
struct Task<'a> {
    layer: &'a Layer<'a>,
    part: &'a Part,
    /// Room for sums in doubles, if the part is to be added to `w` by way of them
    /// rather than block by block.
    sums: Option<&'a mut [f32]>,
    /// Room for the dot products of a block with a tile of channels of `ȳ`.
    dots: &'a mut [f32],
    scratch: &'a mut [f32],
}

impl Kernel for Task<'_> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Task {
            layer,
            part,
            sums,
            dots,
            scratch,
        } = self;
        let taps = layer.g.taps();
        let columns = part.c.len() * taps;
        let w = |k: usize| {
            // SAFETY: this task alone has these weights.
            unsafe { layer.w.part(part.at(part.k.start + k, taps), columns) }
        };
        let Some(sums) = sums else {
            // SAFETY: as promised to this function.
            return unsafe {
                compute::<V>(layer, part, dots, scratch, |k, dots| {
                    for (i, k) in (k..part.k.len()).take(V::OUTS).enumerate() {
                        for (w, dots) in w(k).iter_mut().zip(dots.chunks_exact(V::OUTS)) {
                            *w += dots[i];
                        }
                    }
                })
            };
        };
        // SAFETY: any bytes are a valid `f64`; scratch begins at a cache line.
        let (before, sums, _) = unsafe { sums.align_to_mut::<f64>() };
        assert!(before.is_empty(), "scratch is aligned");
        // One tile of channels of `ȳ` after another, each `[column][V::OUTS]`.
        let tile = columns * V::OUTS;
        sums[..part.k.len().div_ceil(V::OUTS) * tile].fill(0.0);
        // SAFETY: as promised to this function.
        unsafe {
            compute::<V>(layer, part, dots, scratch, |k, dots| {
                let sums = &mut sums[k / V::OUTS * tile..][..tile];
                for (sum, &dot) in sums.iter_mut().zip(dots) {
                    *sum += f64::from(dot);
                }
            });
        }
        for k in 0..part.k.len() {
            let sums = sums[k / V::OUTS * tile..].iter();
            for (w, &sum) in w(k).iter_mut().zip(sums.skip(k % V::OUTS).step_by(V::OUTS)) {
                *w += sum as f32;
            }
        }
    }
}

/// Calls `add(k, dots)` for every block and tile of channels of `ȳ` from `k` on,
/// with `V::OUTS` dot products of each column; those beyond the last channel are zero.
///
/// # Safety
/// The machine has the instructions.
#[inline(always)]
unsafe fn compute<V: Vector>(
    layer: &Layer,
    part: &Part,
    dots: &mut [f32],
    scratch: &mut [f32],
    mut add: impl FnMut(usize, &[f32]),
) {
    let Layer { g, job, cut, .. } = layer;
    let (x, y) = (&job.inputs[0], &job.inputs[1]);
    let dots = &mut dots[..part.c.len() * g.taps() * V::OUTS];
    for n in job.region.n() {
        for block in 0..cut.n_blocks() {
            let (lo, size) = cut.block(&job.region, block);
            let axes = [0, 1, 2].map(|s| axis(g, s, lo[s], size[s]));
            let extents = Extents::new([axes[0].len(), axes[1].len(), axes[2].len()]);
            let taps = tap_offsets(g, lo, &axes, &extents);
            let channels = (0..part.c.len()).map(|c| c * extents.channel);
            let columns: Vec<_> = channels
                .flat_map(|c| taps.iter().map(move |tap| c + tap))
                .collect();
            let x_from = part.group * part.in_group + part.c.start;
            let (x_panel, rest) = scratch.split_at_mut(extents.floats(part.c.len()));
            let x_channels = x_from..x_from + part.c.len();
            let y_from = part.group * part.out_group + part.k.start;
            let y_channels = y_from..y_from + part.k.len();
            let row = size[2].next_multiple_of(V::LANES);
            let y_panel = &mut rest[..part.k.len() * size[0] * size[1] * row];
            // SAFETY: as promised to this function.
            unsafe {
                panel::fill::<V>(x_panel, &extents, &axes, x, n, x_channels);
                fill_rows::<V>(y_panel, row, y, n, y_channels, lo, size);
            }
            let streams = Streams {
                x: x_panel,
                columns: &columns,
                y: y_panel,
                y_channel: size[0] * size[1] * row,
                rows: &rows(size, &extents),
                vectors: row / V::LANES,
            };
            for k in (0..part.k.len()).step_by(V::OUTS) {
                let n_out = (part.k.len() - k).min(V::OUTS);
                // SAFETY: as promised to this function.
                unsafe { streams.correlate::<V>(k, n_out, dots) };
                add(k, dots);
            }
        }
    }
}

/// Copies rows of `ȳ`, each filled up with zeros to `row` floats.
///
/// # Safety
/// The machine has the instructions.
#[inline(always)]
unsafe fn fill_rows<V: Vector>(
    to: &mut [f32],
    row: usize,
    y: &In<f32>,
    n: usize,
    channels: Range<usize>,
    lo: [usize; 3],
    size: [usize; 3],
) {
    let mut rows = to.chunks_exact_mut(row);
    // As far ahead as the panel of `x` is: see there.
    let ahead = (12 / (size[0] * size[1])).clamp(1, 4);
    for k in channels.clone() {
        for d in lo[0]..lo[0] + size[0] {
            for h in lo[1]..lo[1] + size[1] {
                let row = rows.next().expect("the panel holds the rows");
                if k + ahead < channels.end {
                    panel::prefetch(y.row(n, k + ahead, d, h, lo[2]..lo[2] + size[2]));
                }
                let from = y.row(n, k, d, h, lo[2]..lo[2] + size[2]);
                // SAFETY: as promised to this function.
                unsafe { panel::copy::<V>(&mut row[..size[2]], from) };
                row[size[2]..].fill(0.0);
            }
        }
    }
}

/// Offsets in the panel of `x` of the rows of a block.
fn rows(size: [usize; 3], extents: &Extents) -> Vec<usize> {
    let rows = (0..size[0]).flat_map(|d| (0..size[1]).map(move |h| [d, h, 0]));
    rows.map(|at| extents.at(at)).collect()
}
