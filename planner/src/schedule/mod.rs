//! From decisions to a plan: who lives where, and when.
//!
//! Reads which stages run, on which grids, and where each stored map lives;
//! writes the complete plan with packed buffers. Decides nothing about cost:
//! the same decisions always give the same plan. Its timeline has one tick per
//! item of a stage, plus one before and one after.

mod stage;

use std::collections::{BTreeMap, BTreeSet};

use sstep_autodiff::Op;

use crate::budget::Budget;
use crate::machine::Machine;
use crate::objective::Objective;
use crate::pack::{ALIGN, Request, pack};
use crate::plan::{
    Buffer, BufferIx, DiskIx, DiskTensor, Home, HostIx, HostTensor, Plan, Predicted, Purpose,
    Stage, StageCost, Tier,
};
use crate::program::{NodeIx, Program};
use crate::stage::{Body, Role};
use crate::strategy::Strategy;
use crate::sweep::AxisGrid;

/// A tile loop, decided.
#[derive(Clone, Debug)]
pub struct StageDecision {
    /// The candidate that it comes from.
    pub candidate: usize,
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
            n_binaries: 0,
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
