//! The plan: everything that will happen, as data.
//!
//! A plan owns its program, the buffers of the one arena with their offsets,
//! the tensors on the host and on disk, and the stages in order. It says where each value
//! of each stage lives; [`Plan::instructions`](crate::instr) spells it out tile
//! by tile. The executor carries that out and decides nothing.

use serde::{Deserialize, Serialize};

use crate::budget::Budget;
use crate::objective::Objective;
use crate::pack::{self, Request};
use crate::program::{NodeIx, Program};
use crate::stage::{Body, Role};
use crate::strategy::Strategy;
use crate::sweep::{AxisGrid, AxisPolicy, AxisSweep};

/// A buffer of the device arena.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BufferIx(pub u32);

/// A tensor in host memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HostIx(pub u32);

/// A tensor on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct DiskIx(pub u32);

/// What a buffer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Purpose {
    /// A parameter, a flat input or a constant: there throughout.
    Leaf,
    /// Optimiser state of a parameter: there throughout.
    OptimiserState,
    /// A flat result, such as a gradient or moments.
    Flat,
    /// A whole stored map.
    Stored,
    /// A tile of a map, with its halo.
    Window,
    /// Doubles of a reduction in progress.
    Accumulator,
    /// Scratch of kernels.
    Workspace,
    /// A region of a map on its way between host and device.
    Staging,
}

/// A buffer of the arena, at its final offset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Buffer {
    /// The tensor it holds.
    pub node: Option<NodeIx>,
    /// What it is for.
    pub purpose: Purpose,
    /// Size in bytes.
    pub bytes: u64,
    /// Offset in the arena in bytes.
    pub offset: u64,
    /// First and last tick of the plan's timeline at which it is needed.
    pub live: (u32, u32),
}

/// A tensor in host memory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostTensor {
    /// The tensor.
    pub node: NodeIx,
    /// Size in bytes.
    pub bytes: u64,
    /// Stage that writes it, and the last that reads it.
    pub live: (u32, u32),
}

/// A tensor in the one spill file, at its final offset.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskTensor {
    /// The tensor.
    pub node: NodeIx,
    /// Size in bytes.
    pub bytes: u64,
    /// Offset in the file in bytes.
    pub offset: u64,
    /// Stage that writes it, and the last that reads it.
    pub live: (u32, u32),
}

/// Memory beyond the device, from the fastest to the slowest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tier {
    /// Host memory.
    Host,
    /// A file on disk, by way of the host.
    Disk,
}

impl Tier {
    /// How many there are.
    pub const COUNT: usize = 2;
    /// All of them.
    pub const ALL: [Tier; Tier::COUNT] = [Tier::Host, Tier::Disk];

    /// As an index into tables by tier.
    pub fn ix(self) -> usize {
        self as usize
    }
}

/// Where a stored map lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Home {
    /// Whole, in the arena.
    Device(BufferIx),
    /// Whole, in host memory.
    Host(HostIx),
    /// Whole, in the spill file.
    Disk(DiskIx),
    /// In a source outside.
    Source,
}

/// Where a stage finds or makes a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Value {
    /// In a window that follows the tile; extents are positions per axis.
    Window {
        /// The buffer.
        buffer: BufferIx,
        /// Positions it can hold, per cuttable axis.
        capacity: [usize; 4],
    },
    /// Directly in the whole map's buffer.
    Whole(BufferIx),
    /// In a flat tensor's buffer.
    Flat(BufferIx),
}

/// A node of a stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StageItem {
    /// The node.
    pub node: NodeIx,
    /// What is done with it.
    pub role: ItemRole,
    /// Where its value is while the stage runs.
    pub value: Value,
    /// Where to it is copied, tile by tile.
    pub stores: Vec<Home>,
    /// Doubles in which a reduction accumulates, unless in place.
    pub accumulator: Option<BufferIx>,
    /// Where a region waits on its way from or to the host, so that the copy runs
    /// beside the kernels: the next one of a map that is fetched, the last one of a
    /// map that is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub staging: Option<BufferIx>,
}

impl StageItem {
    /// Where what it fetches from the host was put before, if anywhere.
    pub fn staged_fetch(&self) -> Option<BufferIx> {
        match self.role {
            ItemRole::Supply(Home::Host(_)) => self.staging,
            ItemRole::Supply(Home::Device(_) | Home::Disk(_) | Home::Source)
            | ItemRole::Compute
            | ItemRole::Reduce
            | ItemRole::Flat => None,
        }
    }

    /// Where what it stores to `home` is put first, if anywhere.
    pub fn staged_store(&self, home: Home) -> Option<BufferIx> {
        match home {
            Home::Host(_) => self.staging,
            Home::Device(_) | Home::Disk(_) | Home::Source => None,
        }
    }
}

/// What a stage does with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ItemRole {
    /// Fetches tiles of a stored map, or reads it in place on the device.
    Supply(Home),
    /// Computes a map.
    Compute,
    /// Accumulates a reduction.
    Reduce,
    /// Computes a flat node.
    Flat,
}

/// A tile loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Stage {
    /// Level of the program: see [`crate::program`].
    pub level: u32,
    /// Nodes in execution order.
    pub items: Vec<StageItem>,
    /// One grid per cuttable axis; empty for a stage of flat nodes.
    pub grid: Vec<AxisGrid>,
    /// Predicted cost.
    pub cost: StageCost,
    /// Why this one: what the planner weighed.
    pub why: String,
}

/// Predicted cost of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StageCost {
    /// Seconds. Where copies run beside kernels, less than those below add up to.
    pub secs: f64,
    /// Seconds of kernels, of copies within the device and of reading sources.
    pub compute_secs: f64,
    /// Seconds of copies from host to device.
    pub h2d_secs: f64,
    /// Seconds of copies from device to host.
    pub d2h_secs: f64,
    /// Seconds of reading from disk and writing there; nothing runs beside them.
    pub disk_secs: f64,
    /// Work, halo and recomputation included, in FLOPs.
    pub flops: f64,
    /// Bytes read from sources.
    pub source_bytes: u64,
    /// Bytes copied from host to device.
    pub h2d_bytes: u64,
    /// Bytes copied from device to host.
    pub d2h_bytes: u64,
    /// Bytes read from the spill file to the device.
    pub disk_read_bytes: u64,
    /// Bytes written from the device to the spill file.
    pub disk_write_bytes: u64,
    /// Arena high-water while it runs, in bytes.
    pub high_water_bytes: u64,
}

impl StageCost {
    /// The channel that takes longest, in words.
    pub fn bound_by(&self) -> &'static str {
        let copies_secs = self.h2d_secs.max(self.d2h_secs);
        if self.compute_secs >= copies_secs {
            "compute"
        } else if self.h2d_secs >= self.d2h_secs {
            "copies to the device"
        } else {
            "copies to the host"
        }
    }
}

/// What a plan promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Predicted {
    /// Arena bytes used at most: the largest end offset of any buffer.
    pub peak_bytes: u64,
    /// Host bytes held at most.
    pub host_peak_bytes: u64,
    /// Size of the spill file: the largest end offset of any tensor on disk.
    pub disk_peak_bytes: u64,
    /// Seconds of a step.
    pub secs: f64,
    /// FLOPs of a step.
    pub flops: f64,
    /// FLOPs if every node were computed exactly once.
    pub flops_once: f64,
    /// Bytes read from sources.
    pub source_bytes: u64,
    /// Bytes copied from host to device.
    pub h2d_bytes: u64,
    /// Bytes copied from device to host.
    pub d2h_bytes: u64,
    /// Bytes read from the spill file to the device.
    pub disk_read_bytes: u64,
    /// Bytes written from the device to the spill file.
    pub disk_write_bytes: u64,
    /// Peak of the same step with every map whole and kept: what running it
    /// untiled would take, in bytes.
    pub untiled_bytes: u64,
}

/// A verified plan of one training step.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    /// What is computed.
    pub program: Program,
    /// How it was asked to plan.
    pub strategy: Strategy,
    /// The caps.
    pub budget: Budget,
    /// Name of the machine profile.
    pub machine: String,
    /// Buffers of the arena.
    pub buffers: Vec<Buffer>,
    /// Tensors in host memory.
    pub host: Vec<HostTensor>,
    /// Tensors on disk.
    pub disk: Vec<DiskTensor>,
    /// Buffer of each flat node, by node index.
    pub flat_home: Vec<Option<BufferIx>>,
    /// Optimiser state buffers, per update.
    pub states: Vec<Vec<BufferIx>>,
    /// Scratch of kernels, if there was room for any.
    pub workspace: Option<BufferIx>,
    /// Tile loops in order.
    pub stages: Vec<Stage>,
    /// Where map outputs lie when the step is done.
    pub map_outputs: Vec<(NodeIx, Home)>,
    /// What it promises.
    pub predicted: Predicted,
    /// What the rewrites did to the program, and why they stopped.
    pub rewrites: String,
    /// Relative distance of the placement to the best bound of its model: no choice of
    /// the stages, grids and homes considered for this program takes less time than
    /// that bound, by the machine profile. Other cuts and equal programs are beyond it.
    pub gap: f64,
    /// Yes-or-no decisions of the integer program that gave that bound, as far as its
    /// columns were needed: 0 where nothing beats the plan whatever the caps.
    #[serde(default)]
    pub n_binaries: usize,
    /// What it is to be best at, which is what the gap is of.
    pub objective: Objective,
}

impl StageCost {
    /// Bytes copied to the device: from images, the host and disk.
    pub fn in_bytes(&self) -> u64 {
        self.source_bytes + self.h2d_bytes + self.disk_read_bytes
    }

    /// Bytes copied from the device: to the host and to disk.
    pub fn out_bytes(&self) -> u64 {
        self.d2h_bytes + self.disk_write_bytes
    }
}

impl Plan {
    /// A buffer.
    pub fn buffer(&self, b: BufferIx) -> &Buffer {
        &self.buffers[b.0 as usize]
    }

    /// Most bytes of buffers live at one tick: the peak but for gaps between them.
    pub fn most_live_bytes(&self) -> u64 {
        most_live_bytes(&self.buffers)
    }
}

/// Most bytes of buffers live at one tick.
pub(crate) fn most_live_bytes<'b>(buffers: impl IntoIterator<Item = &'b Buffer>) -> u64 {
    let requests = buffers.into_iter().map(|b| Request {
        bytes: b.bytes,
        live: b.live,
    });
    pack::load(&requests.collect::<Vec<_>>(), pack::ALIGN)
}

impl Stage {
    /// The nodes and who reads whom, as region propagation wants them.
    pub fn body(&self, program: &Program) -> Body {
        let targets = (self.items.iter())
            .filter(|i| {
                !i.stores.is_empty()
                    || matches!(i.role, ItemRole::Reduce | ItemRole::Flat)
                    || (i.role == ItemRole::Compute && matches!(i.value, Value::Whole(_)))
            })
            .map(|i| i.node)
            .collect();
        let supplied: std::collections::BTreeSet<NodeIx> = (self.items.iter())
            .filter(|i| matches!(i.role, ItemRole::Supply(_)))
            .map(|i| i.node)
            .collect();
        Body::close(program, &targets, |n| supplied.contains(&n))
    }

    /// Region propagation along every axis.
    pub fn sweeps(&self, program: &Program) -> Vec<AxisSweep> {
        let body = self.body(program);
        debug_assert_eq!(body.items.len(), self.items.len());
        let grids = self.grid.iter().enumerate();
        grids
            .map(|(axis, grid)| AxisSweep::new(program, &body, axis, grid))
            .collect()
    }

    /// The axis that is walked with carry, if any.
    pub fn carry_axis(&self) -> Option<usize> {
        self.grid.iter().position(|g| g.policy == AxisPolicy::Carry)
    }

    /// Number of tiles.
    pub fn n_tiles(&self) -> u64 {
        self.grid.iter().map(|g| g.n_tiles() as u64).product()
    }

    /// Whether copies from or to the host run beside its kernels.
    pub fn overlaps(&self) -> bool {
        self.items.iter().any(|i| i.staging.is_some())
    }
}

impl From<ItemRole> for Role {
    fn from(role: ItemRole) -> Role {
        match role {
            ItemRole::Supply(_) => Role::Supply,
            ItemRole::Compute => Role::Compute,
            ItemRole::Reduce => Role::Reduce,
            ItemRole::Flat => Role::Flat,
        }
    }
}
