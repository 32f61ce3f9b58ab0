//! How a region is cut into blocks that are packed and computed at a time.
//!
//! A block should be large, because its halo is copied without use and its
//! weights are read once per block, and small, because its panel must stay in
//! the second-level cache and every thread wants work. All shapes of a short
//! ladder are tried against a rough cost; the choice affects speed, and how long
//! sums over positions get.

use super::panel::Extents;
use crate::view::Box4;

/// Most floats of a panel: most of a typical second-level cache.
pub(super) const PANEL_FLOATS: usize = 48 << 10;

/// Floats of weights that a tile's output channels may take of the first-level
/// cache, in its inner loop.
const WEIGHT_FLOATS: usize = 6 << 10;

/// Cost of one fused multiply-add against copying one float into a panel.
const FMA_COST: f64 = 0.1;

/// Cost of storing a partial sum and loading it again.
const PARTIAL_COST: f64 = 0.6;

/// Sizes to try, below the extent itself.
const LADDER: [&[usize]; 3] = [
    &[1, 2, 4, 8],
    &[1, 2, 4, 8, 12, 16, 24, 32],
    &[24, 48, 72, 96, 144, 192, 288, 384, 512],
];

/// What is to be cut.
pub(super) struct Job {
    /// Positions along the three axes.
    pub(super) extent: [usize; 3],
    /// Channels summed over.
    pub(super) channels: usize,
    /// Multiply-adds per output position and summed channel.
    pub(super) macs: usize,
    /// Output channels of a register tile.
    pub(super) tile: usize,
    /// Output channels computed from a panel.
    pub(super) outputs: usize,
    /// Floats kept per position besides the panel.
    pub(super) extra: usize,
    /// Taps.
    pub(super) taps: usize,
    /// Blocks come in so many independent sets (samples, groups).
    pub(super) sets: usize,
    /// Threads that want work.
    pub(super) workers: usize,
    /// Most floats of a panel and what is kept besides.
    pub(super) budget: usize,
    /// Most positions of a block.
    pub(super) positions: usize,
    /// Lanes of the vectors that positions are computed in.
    pub(super) lanes: usize,
}

/// The chosen cut.
#[derive(Clone, Copy, Debug)]
pub(super) struct Blocks {
    /// Positions per block.
    pub(super) size: [usize; 3],
    /// Channels summed at a time.
    pub(super) channels: usize,
    /// Number of blocks along each axis.
    pub(super) count: [usize; 3],
}

impl Blocks {
    /// The best cut whose panel fits, if any does. `len(s, n)` is the most panel
    /// positions that `n` outputs need along axis `s`.
    pub(super) fn choose(job: &Job, len: impl Fn(usize, usize) -> usize) -> Option<Self> {
        let sizes = [0, 1, 2].map(|s| {
            let extent = job.extent[s];
            let below = LADDER[s].iter().copied().filter(|&n| n < extent);
            let whole = (extent <= 2 * LADDER[s][LADDER[s].len() - 1]).then_some(extent);
            below
                .chain(whole)
                .map(|n| (n, len(s, n)))
                .collect::<Vec<_>>()
        });
        let mut best: Option<(f64, Blocks)> = None;
        for &(d, d_len) in &sizes[0] {
            for &(h, h_len) in &sizes[1] {
                for &(w, w_len) in &sizes[2] {
                    if d * h * w > job.positions {
                        continue;
                    }
                    let extents = Extents::new([d_len, h_len, w_len]);
                    let extra = job.extra * d * h * w.next_multiple_of(job.lanes);
                    let left = job.budget.saturating_sub(extra + extents.floats(0));
                    let fit = (left / extents.channel).min(job.channels);
                    if fit == 0 || (fit < job.channels && job.extra > 0) {
                        continue;
                    }
                    let fit = fit
                        .min((WEIGHT_FLOATS / (job.tile * job.taps)).max(8))
                        .max(1);
                    let chunks = job.channels.div_ceil(fit);
                    let channels = job.channels.div_ceil(chunks);
                    let count = [0, 1, 2].map(|s| job.extent[s].div_ceil([d, h, w][s]));
                    let size = [d, h, w];
                    let cut = Blocks {
                        size,
                        channels,
                        count,
                    };
                    let cost = cut.cost(job, &extents);
                    if best.is_none_or(|(least, _)| cost < least) {
                        best = Some((cost, cut));
                    }
                }
            }
        }
        best.map(|(_, cut)| cut)
    }

    /// Work per output position and summed channel, in copies of one float.
    fn cost(&self, job: &Job, extents: &Extents) -> f64 {
        let points = self.size.iter().product::<usize>() as f64;
        let vectors = (self.size[0] * self.size[1] * self.size[2].div_ceil(job.lanes)) as f64;
        let copy = extents.channel as f64 / points;
        let compute = FMA_COST * job.macs as f64 * (vectors * job.lanes as f64 / points);
        let chunks = job.channels.div_ceil(self.channels) as f64;
        let partial = PARTIAL_COST * (chunks - 1.0) * job.outputs as f64 / job.channels as f64;
        // Filling the table of positions and the fixed cost of a block.
        let fixed = 2000.0 / (points * job.channels as f64);
        let n_tasks = self.n_blocks() * job.sets;
        let rounds = n_tasks.div_ceil(job.workers);
        let balance = n_tasks as f64 / (rounds * job.workers) as f64;
        (copy + compute + partial + fixed) / balance
    }

    /// Number of blocks of one set.
    pub(super) fn n_blocks(&self) -> usize {
        self.count.iter().product()
    }

    /// Block `index` of a region: first position and extent along each axis.
    pub(super) fn block(&self, region: &Box4, index: usize) -> ([usize; 3], [usize; 3]) {
        let [_, h, w] = self.count;
        let at = [index / (h * w), index / w % h, index % w];
        let lo = [0, 1, 2].map(|s| region.s(s).start + at[s] * self.size[s]);
        let n = [0, 1, 2].map(|s| self.size[s].min(region.s(s).end - lo[s]));
        (lo, n)
    }
}
