//! From decisions to a plan: who lives where, and when.
//!
//! Reads which stages run, on which grids, and where each stored map lives;
//! writes the complete plan with packed buffers. Decides nothing about cost:
//! the same decisions always give the same plan. Its timeline has one tick per
//! item of a stage, plus one before and one after.

use std::collections::{BTreeMap, BTreeSet};

use sstep_autodiff::{Op, ReductionState};

use crate::budget::Budget;
use crate::cost::{AxisSums, BodyCost, BodyRates, Staged};
use crate::machine::Machine;
use crate::objective::Objective;
use crate::overlap::{Channels, Moved};
use crate::pack::{ALIGN, Request, pack};
use crate::plan::{
    Buffer, BufferIx, DiskIx, DiskTensor, Home, HostIx, HostTensor, ItemRole, Plan, Predicted,
    Purpose, Stage, StageCost, StageItem, Tier, Value,
};
use crate::program::{NodeIx, Program};
use crate::stage::{Body, Role};
use crate::strategy::Strategy;
use crate::sweep::{AxisGrid, Sweeper};

/// A tile loop, decided.
#[derive(Clone, Debug)]
pub struct StageDecision {
    /// Level of the program it belongs to.
    pub level: u32,
    /// Maps stored and reductions finished.
    pub targets: BTreeSet<NodeIx>,
    /// Stored maps it may read instead of computing them.
    pub supplied: BTreeSet<NodeIx>,
    /// How it is cut.
    pub grid: Vec<AxisGrid>,
    /// Whether it copies from and to the host beside its kernels.
    pub prefetches: bool,
    /// Why.
    pub why: String,
}

/// Where a stored map lives, decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HomeDecision {
    /// Last decided stage that finds it on the device, from its own on.
    pub device_until: Option<usize>,
    /// Where a copy goes beyond the device, if one does.
    pub beyond: Option<Tier>,
}

/// All that the planner decides.
#[derive(Clone, Debug)]
pub struct Decision {
    /// Tile loops, levels ascending.
    pub stages: Vec<StageDecision>,
    /// Stored maps.
    pub homes: BTreeMap<NodeIx, HomeDecision>,
    /// Scratch of kernels in bytes.
    pub workspace_bytes: u64,
}

/// Turns decisions into a plan. Its peak may pass the cap: the caller looks.
pub fn schedule(
    program: &Program,
    machine: &Machine,
    budget: Budget,
    strategy: Strategy,
    decision: &Decision,
) -> Plan {
    let mut s = Scheduler::new(program, machine, decision);
    s.lay_out();
    s.place_persistent();
    s.place_stored();
    for at in 0..s.order.len() {
        s.stage(at);
    }
    s.place_flat();
    s.finish(budget, strategy)
}

/// A stage in its final order: flat nodes, or a decided tile loop.
enum Slot {
    Flat { level: u32, nodes: Vec<NodeIx> },
    Loop { decided: usize },
}

struct Scheduler<'a> {
    program: &'a Program,
    machine: &'a Machine,
    decision: &'a Decision,
    order: Vec<Slot>,
    bodies: Vec<Body>,
    /// First and last tick of each stage.
    ticks: Vec<(u32, u32)>,
    end: u32,
    buffers: Vec<Buffer>,
    host: Vec<HostTensor>,
    disk: Vec<DiskTensor>,
    device_home: BTreeMap<NodeIx, (BufferIx, usize)>,
    /// Homes on the host and on disk.
    beyond_home: BTreeMap<NodeIx, Home>,
    flat_home: Vec<Option<BufferIx>>,
    states: Vec<Vec<BufferIx>>,
    workspace: Option<BufferIx>,
    stages: Vec<Stage>,
}

impl<'a> Scheduler<'a> {
    fn new(program: &'a Program, machine: &'a Machine, decision: &'a Decision) -> Self {
        Scheduler {
            program,
            machine,
            decision,
            order: Vec::new(),
            bodies: Vec::new(),
            ticks: Vec::new(),
            end: 0,
            buffers: Vec::new(),
            host: Vec::new(),
            disk: Vec::new(),
            device_home: BTreeMap::new(),
            beyond_home: BTreeMap::new(),
            flat_home: vec![None; program.nodes.len()],
            states: Vec::new(),
            workspace: None,
            stages: Vec::new(),
        }
    }

    /// Puts flat nodes before the tile loops of their level and numbers ticks.
    fn lay_out(&mut self) {
        let program = self.program;
        let mut flat: BTreeMap<u32, Vec<NodeIx>> = BTreeMap::new();
        for n in program.indices() {
            let node = program.node(n);
            if !node.ty.is_map() && !node.op.is_leaf() && !program.is_reduction(n) {
                flat.entry(node.level).or_default().push(n);
            }
        }
        for (decided, stage) in self.decision.stages.iter().enumerate() {
            while let Some(entry) = flat.first_entry().filter(|e| *e.key() <= stage.level) {
                let (level, nodes) = entry.remove_entry();
                self.order.push(Slot::Flat { level, nodes });
            }
            self.order.push(Slot::Loop { decided });
        }
        self.order.extend(
            flat.into_iter()
                .map(|(level, nodes)| Slot::Flat { level, nodes }),
        );
        let mut tick = 1;
        for slot in &self.order {
            let body = match slot {
                Slot::Flat { nodes, .. } => {
                    Body::close(program, &nodes.iter().copied().collect(), |_| false)
                }
                Slot::Loop { decided } => {
                    let stage = &self.decision.stages[*decided];
                    Body::close(program, &stage.targets, |n| stage.supplied.contains(&n))
                }
            };
            let last = tick + body.items.len() as u32 + 1;
            self.ticks.push((tick, last));
            self.bodies.push(body);
            tick = last + 1;
        }
        self.end = tick;
    }

    fn buffer(
        &mut self,
        node: Option<NodeIx>,
        purpose: Purpose,
        bytes: u64,
        live: (u32, u32),
    ) -> BufferIx {
        self.buffers.push(Buffer {
            node,
            purpose,
            bytes,
            offset: 0,
            live,
        });
        BufferIx(self.buffers.len() as u32 - 1)
    }

    fn place_persistent(&mut self) {
        let program = self.program;
        let always = (0, self.end);
        for n in program.indices() {
            let node = program.node(n);
            if node.op.is_leaf() && !node.ty.is_map() {
                let b = self.buffer(Some(n), Purpose::Leaf, node.ty.bytes(), always);
                self.flat_home[n.ix()] = Some(b);
            }
        }
        for update in &program.updates {
            let bytes = program.node(update.param).ty.bytes();
            let slots = (0..program.state_slots)
                .map(|_| self.buffer(Some(update.param), Purpose::OptimiserState, bytes, always))
                .collect();
            self.states.push(slots);
        }
        if self.decision.workspace_bytes > 0 {
            let bytes = self.decision.workspace_bytes;
            self.workspace = Some(self.buffer(None, Purpose::Workspace, bytes, always));
        }
    }

    /// Plan stage of a decided one.
    fn slot_of(&self, decided: usize) -> usize {
        self.order
            .iter()
            .position(|s| matches!(s, Slot::Loop { decided: d } if *d == decided))
            .expect("every decided stage has a slot")
    }

    fn place_stored(&mut self) {
        let program = self.program;
        for (&n, home) in &self.decision.homes {
            let bytes = program.node(n).ty.bytes();
            let maker = (self.decision.stages.iter())
                .position(|s| s.targets.contains(&n))
                .expect("a stored map is the target of a stage");
            let from = self.slot_of(maker);
            let is_output = program.outputs.contains(&n);
            if let Some(until) = home.device_until {
                let until = self.slot_of(until);
                let last = if is_output && home.beyond.is_none() {
                    self.end
                } else {
                    self.ticks[until].1
                };
                let b = self.buffer(Some(n), Purpose::Stored, bytes, (self.ticks[from].0, last));
                self.device_home.insert(n, (b, until));
            }
            if let Some(tier) = home.beyond {
                let on_device = self.device_home.get(&n).map(|(_, until)| *until);
                let reads = |at: &usize| {
                    self.bodies[*at].supplies().any(|s| s == n) && on_device.is_none_or(|u| u < *at)
                };
                let last = (0..self.bodies.len()).rev().find(reads).unwrap_or(from);
                // Outputs are taken out after the step: they are never released.
                let last = if is_output { u32::MAX } else { last as u32 };
                let live = (from as u32, last);
                let home = match tier {
                    Tier::Host => {
                        self.host.push(HostTensor {
                            node: n,
                            bytes,
                            live,
                        });
                        Home::Host(HostIx(self.host.len() as u32 - 1))
                    }
                    Tier::Disk => {
                        self.disk.push(DiskTensor {
                            node: n,
                            bytes,
                            offset: 0,
                            live,
                        });
                        Home::Disk(DiskIx(self.disk.len() as u32 - 1))
                    }
                };
                self.beyond_home.insert(n, home);
            }
        }
    }

    fn stage(&mut self, at: usize) {
        let (program, machine) = (self.program, self.machine);
        let body = self.bodies[at].clone();
        let (level, grid, prefetches, why) = match &self.order[at] {
            Slot::Flat { level, .. } => (*level, Vec::new(), false, "flat tensors".to_owned()),
            Slot::Loop { decided } => {
                let d = &self.decision.stages[*decided];
                (d.level, d.grid.clone(), d.prefetches, d.why.clone())
            }
        };
        let sums: Vec<AxisSums> = (grid.iter().enumerate())
            .map(|(axis, g)| AxisSums::new(&Sweeper::new(program, &body, axis), g))
            .collect();
        let rates = BodyRates::new(program, machine, &body);
        let cost = BodyCost::new(&rates, &body, &sums.iter().collect::<Vec<_>>());
        let mut channels = Channels::new(machine, cost.secs);
        let (mut disk_read_bytes, mut disk_write_bytes) = (0, 0);
        let first = self.ticks[at].0;
        let mut items = Vec::with_capacity(body.items.len());
        for (i, item) in body.items.iter().enumerate() {
            let n = item.node;
            let resident = self
                .device_home
                .get(&n)
                .filter(|(_, until)| *until >= at)
                .map(|h| h.0);
            let tick = first + 1 + i as u32;
            let mut accumulator = None;
            let mut staging = None;
            let mut stores = Vec::new();
            let (role, value) = match item.role {
                Role::Flat => (ItemRole::Flat, Value::Flat(self.flat(n, tick))),
                Role::Reduce => {
                    let ty = program.node(n).ty;
                    let (from, to) = self.ticks[at];
                    let result = match program.node(n).op.reduction_state(&ty) {
                        ReductionState::InPlace => self.flat(n, from),
                        ReductionState::F64(count) => {
                            let bytes = 8 * count as u64;
                            accumulator =
                                Some(self.buffer(Some(n), Purpose::Accumulator, bytes, (from, to)));
                            self.flat(n, to)
                        }
                    };
                    (ItemRole::Reduce, Value::Flat(result))
                }
                Role::Supply => match (resident, self.beyond_home.get(&n)) {
                    (Some(b), _) => (ItemRole::Supply(Home::Device(b)), Value::Whole(b)),
                    (None, beyond) => {
                        let home = beyond.copied().unwrap_or(Home::Source);
                        match home {
                            Home::Host(_) => {
                                let moved;
                                (staging, moved) = self.staging(at, n, &cost, i, prefetches);
                                channels.fetch(machine, moved);
                            }
                            Home::Disk(_) => disk_read_bytes += cost.copy_bytes[i],
                            Home::Device(_) | Home::Source => {}
                        }
                        (ItemRole::Supply(home), self.window(at, &body, i, &cost))
                    }
                },
                Role::Compute => {
                    let value = match resident.filter(|_| item.target && cost.totals[i].direct) {
                        Some(b) => Value::Whole(b),
                        None => self.window(at, &body, i, &cost),
                    };
                    if item.target {
                        if let (Some(&(b, _)), Value::Window { .. }) =
                            (self.device_home.get(&n), value)
                        {
                            stores.push(Home::Device(b));
                        }
                        if let Some(&home) = self.beyond_home.get(&n) {
                            stores.push(home);
                            if let Home::Disk(_) = home {
                                disk_write_bytes += cost.copy_bytes[i];
                            } else {
                                let moved;
                                (staging, moved) = self.staging(at, n, &cost, i, prefetches);
                                channels.store(machine, moved);
                            }
                        }
                    }
                    (ItemRole::Compute, value)
                }
            };
            items.push(StageItem {
                node: n,
                role,
                value,
                stores,
                accumulator,
                staging,
            });
        }
        let overlaps = items.iter().any(|i: &StageItem| i.staging.is_some());
        let n_tiles = grid.iter().map(|g| g.n_tiles() as u64).product();
        let secs = if overlaps {
            channels.overlapped_secs(n_tiles)
        } else {
            channels.in_turn_secs()
        };
        let disk_secs = machine.fetch_secs(Tier::Disk, disk_read_bytes)
            + machine.store_secs(Tier::Disk, disk_write_bytes);
        let total = StageCost {
            secs: secs + disk_secs,
            compute_secs: channels.compute_secs,
            h2d_secs: channels.h2d.secs(),
            d2h_secs: channels.d2h.secs(),
            disk_secs,
            flops: cost.flops,
            source_bytes: cost.source_bytes,
            h2d_bytes: channels.h2d.bytes(),
            d2h_bytes: channels.d2h.bytes(),
            disk_read_bytes,
            disk_write_bytes,
            high_water_bytes: 0,
        };
        self.stages.push(Stage {
            level,
            items,
            grid,
            cost: total,
            why,
        });
    }

    fn flat(&mut self, n: NodeIx, from: u32) -> BufferIx {
        let bytes = self.program.node(n).ty.bytes();
        let b = self.buffer(Some(n), Purpose::Flat, bytes, (from, from));
        self.flat_home[n.ix()] = Some(b);
        b
    }

    /// The buffer that an item passes on its way from or to the host, throughout the
    /// stage, if its copies run beside kernels; and what is copied.
    fn staging(
        &mut self,
        at: usize,
        node: NodeIx,
        cost: &BodyCost,
        item: usize,
        prefetches: bool,
    ) -> (Option<BufferIx>, Moved) {
        let Staged {
            buffer_bytes,
            exposed_bytes,
        } = cost.staged[item];
        let is_staged = prefetches && buffer_bytes > 0;
        let live = self.ticks[at];
        let buffer =
            is_staged.then(|| self.buffer(Some(node), Purpose::Staging, buffer_bytes, live));
        let moved = Moved {
            bytes: cost.copy_bytes[item],
            exposed_bytes,
            n_staged: if is_staged {
                cost.totals[item].launches
            } else {
                0
            },
        };
        (buffer, moved)
    }

    fn window(&mut self, at: usize, body: &Body, item: usize, cost: &BodyCost) -> Value {
        let (first, last) = self.ticks[at];
        let tick = |i: usize| first + 1 + i as u32;
        let live = if cost.totals[item].kept {
            (first, last)
        } else {
            let readers = body.items[item].readers.iter().map(|e| e.reader);
            (tick(item), tick(readers.max().unwrap_or(item)))
        };
        let node = Some(body.items[item].node);
        let buffer = self.buffer(node, Purpose::Window, cost.window_bytes[item], live);
        Value::Window {
            buffer,
            capacity: cost.totals[item].capacity,
        }
    }

    /// Flat results live until the end of the last stage that reads them.
    fn place_flat(&mut self) {
        let program = self.program;
        let mut last = vec![0; program.nodes.len()];
        for (at, body) in self.bodies.iter().enumerate() {
            for item in body.items.iter().filter(|i| i.role != Role::Supply) {
                last[item.node.ix()] = last[item.node.ix()].max(self.ticks[at].1);
                for input in &program.node(item.node).inputs {
                    last[input.ix()] = last[input.ix()].max(self.ticks[at].1);
                }
            }
        }
        for n in program
            .outputs
            .iter()
            .chain(program.updates.iter().map(|u| &u.grad))
        {
            last[n.ix()] = self.end;
        }
        for n in program.indices() {
            if let Some(b) = self.flat_home[n.ix()] {
                let live = &mut self.buffers[b.0 as usize].live;
                live.1 = live.1.max(last[n.ix()]);
            }
        }
    }

    /// Gives the tensors on disk their places in the spill file; the file's size.
    fn pack_disk(&mut self) -> u64 {
        let end = self.order.len() as u32;
        let requests = self.disk.iter().map(|d| Request {
            bytes: d.bytes,
            live: (d.live.0, d.live.1.min(end)),
        });
        let packing = pack(&requests.collect::<Vec<_>>());
        for (tensor, offset) in self.disk.iter_mut().zip(&packing.offsets) {
            tensor.offset = *offset;
        }
        packing.peak_bytes
    }

    fn finish(mut self, budget: Budget, strategy: Strategy) -> Plan {
        let requests: Vec<Request> = self
            .buffers
            .iter()
            .map(|b| Request {
                bytes: b.bytes,
                live: b.live,
            })
            .collect();
        let packing = pack(&requests);
        for (buffer, offset) in self.buffers.iter_mut().zip(&packing.offsets) {
            buffer.offset = *offset;
        }
        let disk_peak_bytes = self.pack_disk();
        for (stage, ticks) in self.stages.iter_mut().zip(&self.ticks) {
            let live = self
                .buffers
                .iter()
                .filter(|b| b.live.0 <= ticks.1 && ticks.0 <= b.live.1);
            stage.cost.high_water_bytes = live
                .map(|b| b.offset + b.bytes.next_multiple_of(ALIGN))
                .max()
                .unwrap_or(0);
        }
        let sum = |f: fn(&StageCost) -> f64| self.stages.iter().map(|s| f(&s.cost)).sum();
        let total = |f: fn(&StageCost) -> u64| self.stages.iter().map(|s| f(&s.cost)).sum();
        let program = self.program;
        let predicted = Predicted {
            peak_bytes: packing.peak_bytes,
            host_peak_bytes: host_peak(&self.host, self.stages.len()),
            disk_peak_bytes,
            secs: sum(|c| c.secs),
            flops: sum(|c| c.flops),
            flops_once: program
                .indices()
                .map(|n| program.flops(n, program.points(n)))
                .sum(),
            source_bytes: total(|c| c.source_bytes),
            h2d_bytes: total(|c| c.h2d_bytes),
            d2h_bytes: total(|c| c.d2h_bytes),
            disk_read_bytes: total(|c| c.disk_read_bytes),
            disk_write_bytes: total(|c| c.disk_write_bytes),
            untiled_bytes: untiled_bytes(program),
        };
        let map_outputs = (program
            .outputs
            .iter()
            .filter(|o| program.node(**o).ty.is_map()))
        .map(|&o| {
            let beyond = self.beyond_home.get(&o).copied();
            let device = self.device_home.get(&o).map(|&(b, _)| Home::Device(b));
            (o, beyond.or(device).unwrap_or(Home::Source))
        })
        .collect();
        Plan {
            program: program.clone(),
            strategy,
            budget,
            machine: self.machine.name.clone(),
            buffers: self.buffers,
            host: self.host,
            disk: self.disk,
            flat_home: self.flat_home,
            states: self.states,
            workspace: self.workspace,
            stages: self.stages,
            map_outputs,
            predicted,
            rewrites: String::new(),
            gap: 0.0,
            objective: Objective::Seconds,
        }
    }
}

/// Largest sum of host tensors live in one stage.
fn host_peak(host: &[HostTensor], n_stages: usize) -> u64 {
    let at = |s: u32| {
        host.iter()
            .filter(|h| h.live.0 <= s && s <= h.live.1)
            .map(|h| h.bytes)
            .sum::<u64>()
    };
    (0..n_stages as u32).map(at).max().unwrap_or(0)
}

/// Peak of running node after node with every map whole, freed after its last
/// reader.
pub(crate) fn untiled_bytes(program: &Program) -> u64 {
    let n = program.nodes.len() as u32;
    let requests: Vec<Request> = (program.indices())
        .map(|i| {
            let leaf = matches!(program.node(i).op, Op::Input { .. } | Op::Param { .. });
            let kept = program.outputs.contains(&i) || program.updates.iter().any(|u| u.grad == i);
            let last = program.consumers(i).last().map_or(i.0, |c| c.0);
            let live = (
                if leaf { 0 } else { i.0 },
                if leaf || kept { n } else { last },
            );
            Request {
                bytes: program.node(i).ty.bytes(),
                live,
            }
        })
        .collect();
    let states: u64 = program
        .updates
        .iter()
        .map(|u| program.node(u.param).ty.bytes())
        .sum();
    crate::pack::load(&requests, ALIGN) + states * program.state_slots as u64
}
