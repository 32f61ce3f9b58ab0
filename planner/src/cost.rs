//! What a body costs on a grid, exactly, from its sweeps.
//!
//! Regions are products of per-axis spans, so sums over tiles factor into
//! products of per-axis sums ([`AxisSums`]): a grid's FLOPs, traffic and window
//! sizes follow without visiting a tile.

use crate::machine::{Kernel, Machine, Timer};
use crate::program::{NodeIx, Program};
use crate::stage::{Body, Item, Role};
use crate::sweep::{AxisGrid, Sweeper};

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
    /// Most that one tile computes, and that one emits.
    most_computed: usize,
    most_emitted: usize,
    /// What the first tile computes that computes anything, and the last emits.
    first_computed: usize,
    last_emitted: usize,
    /// Which tiles these are.
    first_tile: usize,
    last_tile: usize,
}

/// All items of a body along one axis.
#[derive(Clone, Debug)]
pub struct AxisSums {
    items: Vec<ItemSums>,
}

impl AxisSums {
    /// Sums the tiles of an axis as they are swept.
    pub fn new(sweeper: &Sweeper, grid: &AxisGrid) -> Self {
        let none = ItemSums {
            computed: 0,
            emitted: 0,
            slid: 0,
            active: 0,
            capacity: 0,
            kept: false,
            direct: true,
            most_computed: 0,
            most_emitted: 0,
            first_computed: 0,
            last_emitted: 0,
            first_tile: usize::MAX,
            last_tile: 0,
        };
        let mut items = vec![none; sweeper.n_items()];
        sweeper.walk(grid, |tile, row| {
            for (sums, s) in items.iter_mut().zip(row) {
                let kept = s.window.len().saturating_sub(s.compute.len());
                sums.computed += s.compute.len() as u64;
                sums.emitted += s.emit.len() as u64;
                sums.capacity = sums.capacity.max(s.window.len());
                sums.kept |= kept > 0;
                if !s.compute.is_empty() {
                    sums.active += 1;
                    sums.slid += kept as u64;
                    sums.direct &= s.compute == s.emit;
                    sums.most_computed = sums.most_computed.max(s.compute.len());
                    if tile < sums.first_tile {
                        (sums.first_tile, sums.first_computed) = (tile, s.compute.len());
                    }
                }
                if !s.emit.is_empty() {
                    sums.most_emitted = sums.most_emitted.max(s.emit.len());
                    if tile >= sums.last_tile {
                        (sums.last_tile, sums.last_emitted) = (tile, s.emit.len());
                    }
                }
            }
        });
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
    /// Most positions that one tile computes or fetches.
    pub most_points: u64,
    /// Most positions that one tile stores.
    pub most_emitted: u64,
    /// Positions of the first region that is computed or fetched.
    pub first_points: u64,
    /// Positions of the last region that is stored.
    pub last_emitted: u64,
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
        most_points: 1,
        most_emitted: 1,
        first_points: 1,
        last_emitted: 1,
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
        t.most_points *= s.most_computed as u64;
        t.most_emitted *= s.most_emitted as u64;
        t.first_points *= s.first_computed as u64;
        t.last_emitted *= s.last_emitted as u64;
    }
    t
}

/// What of an item's copies from or to the host can run beside kernels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Staged {
    /// Bytes of the buffer that this takes: the largest region copied at a time.
    /// 0 if all is copied at once, so that there is nothing to run beside.
    pub buffer_bytes: u64,
    /// Bytes that no kernel hides: of the first region fetched, or the last stored.
    pub exposed_bytes: u64,
}

impl Staged {
    fn new(n_regions: u64, point_bytes: u64, most_points: u64, exposed_points: u64) -> Self {
        let one_by_one = n_regions > 1;
        Staged {
            buffer_bytes: if one_by_one {
                most_points * point_bytes
            } else {
                0
            },
            exposed_bytes: exposed_points * point_bytes,
        }
    }
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
    /// Per item: how those bytes can be copied beside kernels.
    pub staged: Vec<Staged>,
    /// Per item: what the axes add up to.
    pub totals: Vec<ItemTotals>,
}

/// Seconds that no plan of a program goes below: every node once, at the best rate
/// there is.
pub fn least_secs(program: &Program, machine: &Machine) -> f64 {
    let of = |n: NodeIx| {
        let node = program.node(n);
        if program.is_source(n) {
            return node.ty.bytes() as f64 / machine.source_bytes_per_sec;
        }
        if node.op.is_leaf() {
            return 0.0;
        }
        timer(program, machine, n).least_secs(program.points(n))
    };
    program.indices().map(of).sum()
}

/// What tells the seconds of a node's kernel.
fn timer(program: &Program, machine: &Machine, n: NodeIx) -> Timer {
    let node = program.node(n);
    machine.timer(&Kernel {
        op: &node.op,
        inputs: &program.input_tys(n),
        out: &node.ty,
    })
}

/// What does not depend on the grid: the rates of a body's items.
#[derive(Clone, Debug)]
pub struct BodyRates {
    items: Vec<ItemRates>,
    source_bytes_per_sec: f64,
    /// Of moves within the device.
    copies: Timer,
}

#[derive(Clone, Debug)]
struct ItemRates {
    timer: Timer,
    flops_per_point: f64,
    /// Bytes of a position of the result.
    point_bytes: u64,
    /// Axes of a map; of anything else none is kept in a window.
    map_axes: Option<usize>,
    is_source: bool,
}

impl BodyRates {
    /// The rates of a body on a machine.
    pub fn new(program: &Program, machine: &Machine, body: &Body) -> Self {
        let of = |item: &Item| {
            let node = program.node(item.node);
            ItemRates {
                timer: timer(program, machine, item.node),
                flops_per_point: program.flops(item.node, 1),
                point_bytes: (node.ty.dtype.bytes() * node.ty.shape.channels()) as u64,
                map_axes: node.ty.is_map().then(|| node.ty.n_axes()),
                is_source: program.is_source(item.node),
            }
        };
        BodyRates {
            items: body.items.iter().map(of).collect(),
            source_bytes_per_sec: machine.source_bytes_per_sec,
            copies: machine.copy_timer(),
        }
    }
}

impl BodyCost {
    /// Costs `body`, whose rates are given, with the given axis sums.
    pub fn new(rates: &BodyRates, body: &Body, axes: &[&AxisSums]) -> Self {
        let n = body.items.len();
        let mut cost = BodyCost {
            secs: 0.0,
            flops: 0.0,
            source_bytes: 0,
            window_bytes: vec![0; n],
            copy_bytes: vec![0; n],
            staged: vec![Staged::default(); n],
            totals: (0..n).map(|i| totals(axes, i)).collect(),
        };
        for (i, (item, rate)) in body.items.iter().zip(&rates.items).enumerate() {
            let t = cost.totals[i];
            if let Some(n_axes) = rate.map_axes {
                let held: u64 = t.capacity[..n_axes].iter().map(|&c| c as u64).product();
                cost.window_bytes[i] = held * rate.point_bytes;
                cost.secs += rates.copies.secs(2 * t.slid * rate.point_bytes, t.launches);
            }
            let (points, launches) = match item.role {
                Role::Flat => (1, 1),
                Role::Supply => {
                    cost.copy_bytes[i] = t.points * rate.point_bytes;
                    if rate.is_source {
                        cost.source_bytes += cost.copy_bytes[i];
                        cost.secs += cost.copy_bytes[i] as f64 / rates.source_bytes_per_sec;
                    } else {
                        let (most, first) = (t.most_points, t.first_points);
                        cost.staged[i] = Staged::new(t.launches, rate.point_bytes, most, first);
                    }
                    continue;
                }
                Role::Compute => (t.points, t.launches),
                Role::Reduce => (t.emitted, t.launches),
            };
            if item.role != Role::Flat {
                cost.copy_bytes[i] = t.emitted * rate.point_bytes;
            }
            if item.target {
                let (most, last) = (t.most_emitted, t.last_emitted);
                cost.staged[i] = Staged::new(t.launches, rate.point_bytes, most, last);
            }
            cost.flops += rate.flops_per_point * points as f64;
            cost.secs += rate.timer.secs(points, launches);
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
