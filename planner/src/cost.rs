//! What a body costs on a grid, exactly, from its sweeps.
//!
//! Regions are products of per-axis spans, so sums over tiles factor into
//! products of per-axis sums ([`AxisSums`]): a grid's FLOPs, traffic and window
//! sizes follow without visiting a tile.

use crate::machine::{Kernel, Machine};
use crate::program::Program;
use crate::stage::{Body, Role};
use crate::sweep::AxisSweep;

/// One item along one axis, summed over that axis's tiles.
#[derive(Clone, Copy, Debug)]
struct ItemSums {
    computed: u64,
    emitted: u64,
    slid: u64,
    active: u64,
    capacity: usize,
    kept: bool,
    direct: bool,
}

/// All items of a body along one axis.
#[derive(Clone, Debug)]
pub struct AxisSums {
    items: Vec<ItemSums>,
}

impl AxisSums {
    /// Sums a sweep.
    pub fn new(sweep: &AxisSweep, n_items: usize) -> Self {
        let items = (0..n_items)
            .map(|item| {
                let mut sums = ItemSums {
                    computed: 0,
                    emitted: 0,
                    slid: 0,
                    active: 0,
                    capacity: 0,
                    kept: false,
                    direct: true,
                };
                for s in sweep.item(item) {
                    let kept = s.window.len().saturating_sub(s.compute.len());
                    sums.computed += s.compute.len() as u64;
                    sums.emitted += s.emit.len() as u64;
                    sums.active += u64::from(!s.compute.is_empty());
                    if !s.compute.is_empty() {
                        sums.slid += kept as u64;
                    }
                    sums.capacity = sums.capacity.max(s.window.len());
                    sums.kept |= kept > 0;
                    sums.direct &= s.compute.is_empty() || s.compute == s.emit;
                }
                sums
            })
            .collect();
        AxisSums { items }
    }
}

/// One item over all tiles.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ItemTotals {
    /// Positions computed or fetched, halo included.
    pub points: u64,
    /// Positions stored or accumulated.
    pub emitted: u64,
    /// Positions moved to the front of windows.
    pub slid: u64,
    /// Tiles in which it does something.
    pub launches: u64,
    /// Largest window, in positions per axis.
    pub capacity: [usize; 4],
    /// Whether its window must outlive a tile.
    pub kept: bool,
    /// Whether it computes exactly what it emits, so that it can be computed
    /// in place in the stored map.
    pub direct: bool,
}

/// Combines axes into totals per item.
pub fn totals(axes: &[&AxisSums], item: usize) -> ItemTotals {
    let mut t = ItemTotals {
        points: 1,
        emitted: 1,
        slid: 0,
        launches: 1,
        capacity: [1; 4],
        kept: false,
        direct: true,
    };
    for (a, axis) in axes.iter().enumerate() {
        let s = &axis.items[item];
        t.slid = t.slid * s.computed + s.slid * t.points;
        t.points *= s.computed;
        t.emitted *= s.emitted;
        t.launches *= s.active;
        t.capacity[a] = s.capacity;
        t.kept |= s.kept;
        t.direct &= s.direct;
    }
    t
}

/// Cost of a body on a grid, with supplies and stores not yet placed.
#[derive(Clone, Debug)]
pub struct BodyCost {
    /// Seconds of all kernels, sources and slides; host copies not included.
    pub secs: f64,
    /// FLOPs of all kernels.
    pub flops: f64,
    /// Bytes read from sources.
    pub source_bytes: u64,
    /// Per item: bytes of its window; 0 if it has none.
    pub window_bytes: Vec<u64>,
    /// Per item: bytes copied if it is fetched from, or stored to, the host.
    pub copy_bytes: Vec<u64>,
    /// Per item: what the axes add up to.
    pub totals: Vec<ItemTotals>,
}

impl BodyCost {
    /// Costs `body` with the given axis sums.
    pub fn new(program: &Program, machine: &Machine, body: &Body, axes: &[&AxisSums]) -> Self {
        let n = body.items.len();
        let mut cost = BodyCost {
            secs: 0.0,
            flops: 0.0,
            source_bytes: 0,
            window_bytes: vec![0; n],
            copy_bytes: vec![0; n],
            totals: (0..n).map(|i| totals(axes, i)).collect(),
        };
        for (i, item) in body.items.iter().enumerate() {
            let node = program.node(item.node);
            let t = cost.totals[i];
            let elem = program.dtype.bytes() as u64;
            let point_bytes = elem * node.ty.shape.channels() as u64;
            if node.ty.is_map() {
                let held: u64 = t.capacity[..node.ty.n_axes()]
                    .iter()
                    .map(|&c| c as u64)
                    .product();
                cost.window_bytes[i] = held * point_bytes;
                cost.secs += machine.copy_secs(t.slid * point_bytes, t.launches);
            }
            let inputs = program.input_tys(item.node);
            let kernel = Kernel {
                op: &node.op,
                inputs: &inputs,
                out: &node.ty,
            };
            match item.role {
                Role::Flat => {
                    cost.flops += kernel.flops(1);
                    cost.secs += machine.kernel_secs(&kernel, 1, 1);
                }
                Role::Supply => {
                    cost.copy_bytes[i] = t.points * point_bytes;
                    if program.is_source(item.node) {
                        cost.source_bytes += cost.copy_bytes[i];
                        cost.secs += cost.copy_bytes[i] as f64 / machine.source_bytes_per_sec;
                    }
                }
                Role::Compute | Role::Reduce => {
                    cost.copy_bytes[i] = t.emitted * point_bytes;
                    let points = if item.role == Role::Reduce {
                        t.emitted
                    } else {
                        t.points
                    };
                    cost.flops += kernel.flops(points);
                    cost.secs += machine.kernel_secs(&kernel, points, t.launches);
                }
            }
        }
        cost
    }

    /// Largest sum of windows live together in a tile, where `resident` items
    /// have none. Kept windows live throughout.
    pub fn scratch_bytes(&self, body: &Body, resident: impl Fn(usize) -> bool) -> u64 {
        let n = body.items.len();
        let mut change = vec![0i64; n + 1];
        let mut always = 0u64;
        for (i, item) in body.items.iter().enumerate() {
            let bytes = if resident(i) {
                0
            } else {
                self.window_bytes[i].next_multiple_of(64)
            };
            if self.totals[i].kept {
                always += bytes;
            } else {
                let last = item.readers.iter().map(|e| e.reader).max().unwrap_or(i);
                change[i] += bytes as i64;
                change[last + 1] -= bytes as i64;
            }
        }
        let mut live = 0i64;
        let peak = change.iter().map(|c| {
            live += c;
            live
        });
        always + peak.max().unwrap_or(0) as u64
    }
}
