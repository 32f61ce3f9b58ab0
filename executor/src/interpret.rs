//! The only loop: instruction after instruction, on any backend.
//!
//! The interpreter decides nothing. It looks up where the plan says a value
//! lives, hands that to the backend, and counts: the highest arena byte
//! touched, bytes over each link, host bytes held, bytes of the spill file. While one instruction runs,
//! image regions that the next ones fetch are announced to their sources.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use sstep_autodiff::{Op, ReductionState, Region, Ty};
use sstep_kernels::{AnyIn, AnyOut, Layout, Pace, Real, UpdateRule};
use sstep_planner::{At, BufferIx, DiskIx, Home, HostIx, Instr, ItemRole, NodeIx, Plan, Value};

use crate::backend::{Backend, Launch, Partial, Place};
use crate::cpu::host_layout;
use crate::disk::{DiskMap, SpillFile};
use crate::error::ExecError;
use crate::host::HostPool;
use crate::source::TileSource;

/// What a step really took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Highest arena byte touched.
    pub peak_bytes: u64,
    /// Most host bytes held.
    pub host_peak_bytes: u64,
    /// Highest byte of the spill file touched.
    pub disk_peak_bytes: u64,
    /// Bytes copied from host to device.
    pub h2d_bytes: u64,
    /// Bytes copied from device to host.
    pub d2h_bytes: u64,
    /// Bytes read from the spill file to the device.
    pub disk_read_bytes: u64,
    /// Bytes written from the device to the spill file.
    pub disk_write_bytes: u64,
    /// Bytes that came from sources: of one that has bytes these, where the device makes
    /// elements of them, which a plan does not know of.
    pub source_bytes: u64,
    /// Whether parameters were left as they were, for a gradient was not finite; see
    /// [`Scaled`].
    pub update_skipped: bool,
    /// Device memory in use beside the arena after the step: the context, kernels and
    /// libraries; other programs' memory too. 0 on the CPU.
    pub beside_arena_bytes: u64,
    /// Kernel launches.
    pub launches: u64,
    /// Seconds of the step.
    pub secs: f64,
}

/// What some instructions took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// How often they ran.
    pub calls: u64,
    /// Positions they computed, of all channels each; bytes of a copy.
    pub amount: u64,
    /// Seconds in all.
    pub secs: f64,
}

impl Spent {
    fn add(&mut self, amount: u64, since: Instant) {
        self.calls += 1;
        self.amount += amount;
        self.secs += since.elapsed().as_secs_f64();
    }
}

/// Where a step's time went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timings {
    /// Kernels by the node that they compute, in the program's order.
    pub nodes: Vec<Spent>,
    /// Regions read from sources.
    pub source: Spent,
    /// Regions copied from the host.
    pub upload: Spent,
    /// Regions copied to the host.
    pub download: Spent,
    /// Regions read from the spill file.
    pub disk_read: Spent,
    /// Regions written to the spill file.
    pub disk_write: Spent,
    /// Regions copied from windows to whole maps.
    pub store: Spent,
    /// Regions copied to windows from where they waited on their way from the host.
    pub staging: Spent,
    /// Rows that windows kept.
    pub slide: Spent,
    /// Parameter updates; the amount is in elements.
    pub update: Spent,
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Predicted seconds of what is done.
    pub done_secs: f64,
    /// Predicted seconds of the step.
    pub total_secs: f64,
    /// Stage being run.
    pub stage: usize,
    /// Number of stages.
    pub n_stages: usize,
}

/// How to run a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepHow {
    /// Number of the step, from 0.
    pub step: u64,
    /// Seed of counter-based randomness.
    pub seed: u64,
    /// Update rule and learning rate, if the plan updates parameters.
    pub update: Option<(UpdateRule, f64)>,
    /// Set if the loss was multiplied by a number that may prove too large.
    pub scaled: Option<Scaled>,
}

/// A step whose gradients are those of a multiple of the loss. If one of them is not
/// finite, no parameter is updated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaled {
    /// What the loss was multiplied by.
    pub by: f64,
    /// Steps so far whose updates were left out: an optimiser counts its updates.
    pub n_skipped: u64,
}

/// Instructions that may wait between the generator and the loop: this far
/// ahead images are announced.
const LOOKAHEAD: usize = 48;

/// A step being carried out.
pub(crate) struct Interpreter<'a, T: Real> {
    pub plan: &'a Plan,
    pub backend: &'a mut dyn Backend<T>,
    pub sources: &'a BTreeMap<NodeIx, Arc<dyn TileSource<T>>>,
    pub how: &'a StepHow,
    pub host: &'a mut HostPool,
    pub spill: Option<&'a Arc<SpillFile>>,
    pub measured: Measured,
    pub timings: Timings,
    /// What each item's window holds, in the running stage.
    present: Vec<Region>,
    /// Position of each node in the running stage.
    item_of: Vec<u32>,
    stage: Option<u32>,
}

/// Marks a node that is not in the stage.
const ABSENT: u32 = u32::MAX;

impl<'a, T: Real> Interpreter<'a, T> {
    pub(crate) fn new(
        plan: &'a Plan,
        backend: &'a mut dyn Backend<T>,
        sources: &'a BTreeMap<NodeIx, Arc<dyn TileSource<T>>>,
        host: &'a mut HostPool,
        spill: Option<&'a Arc<SpillFile>>,
        how: &'a StepHow,
    ) -> Self {
        host.begin_step();
        Interpreter {
            plan,
            backend,
            sources,
            how,
            host,
            spill,
            measured: Measured::default(),
            timings: Timings {
                nodes: vec![Spent::default(); plan.program.nodes.len()],
                ..Timings::default()
            },
            present: Vec::new(),
            item_of: vec![ABSENT; plan.program.nodes.len()],
            stage: None,
        }
    }

    /// Runs all instructions.
    pub(crate) fn run(&mut self, progress: &mut dyn FnMut(Progress)) -> Result<(), ExecError> {
        let started = Instant::now();
        let plan = self.plan;
        let total_secs: f64 = plan.stages.iter().map(|s| s.cost.secs).sum();
        let mut done_secs = 0.0;
        self.backend.begin_step();
        for (index, stage) in plan.stages.iter().enumerate() {
            let tell = |done_secs| Progress {
                done_secs,
                total_secs,
                stage: index,
                n_stages: plan.stages.len(),
            };
            progress(tell(done_secs));
            // The last item of a stage runs once per tile: it marks progress.
            let n_tiles = stage.n_tiles().max(1) as f64;
            let mut tiles = 0.0;
            let last = stage.items.len().saturating_sub(1) as u32;
            self.stage(index, |instr| {
                let at = match instr {
                    Instr::Compute { at, .. } | Instr::Accumulate { at, .. } => at,
                    _ => return,
                };
                if at.item == last {
                    tiles += 1.0;
                    progress(tell(
                        done_secs + stage.cost.secs * (tiles / n_tiles).min(1.0),
                    ));
                }
            })?;
            done_secs += stage.cost.secs;
        }
        self.measured.update_skipped = self.how.scaled.is_some() && !self.is_finite()?;
        let n_updates = match self.measured.update_skipped {
            true => 0,
            false => plan.program.updates.len(),
        };
        for update in 0..n_updates {
            self.step(Instr::Update {
                update: update as u32,
            })?;
        }
        self.backend.wait()?;
        self.measured.secs = started.elapsed().as_secs_f64();
        self.measured.beside_arena_bytes = self.backend.beside_arena_bytes();
        Ok(())
    }

    /// Runs one stage. Where it reads images, a second thread spells the
    /// instructions out a little ahead and announces what they fetch.
    fn stage(&mut self, index: usize, mut done: impl FnMut(Instr)) -> Result<(), ExecError> {
        let plan = self.plan;
        let stage = &plan.stages[index];
        let reads = |i: &sstep_planner::StageItem| i.role == ItemRole::Supply(Home::Source);
        if stage.n_tiles() <= 1 || !stage.items.iter().any(reads) {
            let flow = plan.stage_instructions(index, &mut |instr| match self.step(instr) {
                Ok(()) => {
                    done(instr);
                    ControlFlow::Continue(())
                }
                Err(e) => ControlFlow::Break(e),
            });
            return match flow {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(e) => Err(e),
            };
        }
        let sources = self.sources;
        std::thread::scope(|scope| {
            let (send, receive) = sync_channel(LOOKAHEAD);
            scope.spawn(move || {
                let _ = plan.stage_instructions(index, &mut |instr| {
                    if let Instr::Fetch { at, region, .. } = instr {
                        let node = stage.items[at.item as usize].node;
                        if let Some(source) = sources.get(&node) {
                            source.prefetch(&region);
                        }
                    }
                    // The receiver is gone once a step has failed.
                    match send.send(instr) {
                        Ok(()) => ControlFlow::Continue(()),
                        Err(_) => ControlFlow::Break(()),
                    }
                });
            });
            for instr in receive {
                self.step(instr)?;
                done(instr);
            }
            Ok(())
        })
    }

    /// Runs one instruction and notes what it took.
    fn step(&mut self, instr: Instr) -> Result<(), ExecError> {
        let started = Instant::now();
        self.carry_out(instr)?;
        let program = &self.plan.program;
        match instr {
            Instr::Begin { at } | Instr::Finish { at } => {
                // Part of the reduction, but no call of its own.
                let node = self.node(at).ix();
                self.timings.nodes[node].secs += started.elapsed().as_secs_f64();
            }
            Instr::Compute { at, region, .. } | Instr::Accumulate { at, region } => {
                let node = self.node(at).ix();
                self.timings.nodes[node].add(region.points(), started);
            }
            Instr::Flat { at } => {
                let node = self.node(at).ix();
                self.timings.nodes[node].add(1, started);
            }
            Instr::Slide { at, keep } => {
                let amount = self.region_bytes(self.node(at), &keep);
                self.timings.slide.add(amount, started);
            }
            Instr::Prefetch { at, region } => {
                let amount = self.region_bytes(self.node(at), &region);
                self.timings.upload.add(amount, started);
            }
            Instr::Fetch { at, region, .. } => {
                let amount = self.region_bytes(self.node(at), &region);
                let item = self.item(at);
                let spent = match item.role {
                    ItemRole::Supply(Home::Source) => &mut self.timings.source,
                    ItemRole::Supply(Home::Disk(_)) => &mut self.timings.disk_read,
                    _ if item.staged_fetch().is_some() => &mut self.timings.staging,
                    _ => &mut self.timings.upload,
                };
                spent.add(amount, started);
            }
            Instr::Store { at, region, home } => {
                let amount = self.region_bytes(self.node(at), &region);
                let spent = match home {
                    Home::Host(_) => &mut self.timings.download,
                    Home::Disk(_) => &mut self.timings.disk_write,
                    Home::Device(_) | Home::Source => &mut self.timings.store,
                };
                spent.add(amount, started);
            }
            Instr::Update { update } => {
                let param = program.updates[update as usize].param;
                let elems = program.node(param).ty.shape.elems() as u64;
                self.timings.update.add(elems, started);
            }
            Instr::Release { .. } => {}
        }
        Ok(())
    }

    fn carry_out(&mut self, instr: Instr) -> Result<(), ExecError> {
        match instr {
            Instr::Begin { at } => {
                let (node, partial) = self.partial(at)?;
                let this = self.plan.program.node(node);
                self.backend.begin(&this.op, &partial, &this.ty)?;
            }
            Instr::Slide { at, keep } => {
                let from = self.item_place(at)?;
                self.present[at.item as usize] = keep;
                let to = self.item_place(at)?;
                self.backend.slide(&from, &to, &keep)?;
            }
            Instr::Prefetch { at, region } => {
                self.enter(at.stage);
                let staging = self.item(at).staged_fetch();
                let staging =
                    staging.ok_or_else(|| inconsistent("something is prefetched to nowhere"))?;
                let dst = self.staged(staging, self.node(at), &region);
                self.upload(at, region, &dst)?;
            }
            Instr::Fetch {
                at,
                region,
                present,
            } => self.fetch(at, region, present)?,
            Instr::Compute {
                at,
                region,
                present,
            } => {
                self.enter(at.stage);
                let node = self.node(at);
                let inputs = self.inputs(node)?;
                self.present[at.item as usize] = present;
                let out = self.item_place(at)?;
                let launch = self.launch(node, region, &inputs);
                self.backend.compute(&launch, &out)?;
                self.measured.launches += 1;
            }
            Instr::Store { at, region, home } => {
                let src = self.item_place(at)?;
                let node = self.node(at);
                match home {
                    Home::Device(b) => {
                        let dst = self.whole(b, node);
                        self.backend.copy(&src, &region, &dst)?;
                    }
                    Home::Host(h) => match self.item(at).staged_store(home) {
                        None => self.offload(h, node, &src, &region)?,
                        Some(b) => {
                            let staging = self.staged(b, node, &region);
                            self.backend.copy(&src, &region, &staging)?;
                            self.offload(h, node, &staging, &region)?;
                        }
                    },
                    Home::Disk(d) => {
                        let disk = self.disk(d, node)?;
                        self.backend.spill(&src, &region, &disk)?;
                        self.measured.disk_write_bytes += self.region_bytes(node, &region);
                    }
                    Home::Source => return Err(inconsistent("a source is written")),
                }
            }
            Instr::Accumulate { at, region } => {
                let (node, partial) = self.partial(at)?;
                let inputs = self.inputs(node)?;
                let launch = self.launch(node, region, &inputs);
                let ty = self.plan.program.node(node).ty;
                self.backend.accumulate(&launch, &partial, &ty)?;
                self.measured.launches += 1;
            }
            Instr::Finish { at } => {
                let (node, partial) = self.partial(at)?;
                let out = self.flat(node)?;
                let tys = self.plan.program.input_tys(node);
                self.backend
                    .finish(&self.plan.program.node(node).op, &tys, &partial, &out)?;
            }
            Instr::Flat { at } => {
                self.enter(at.stage);
                let node = self.node(at);
                let inputs = self.inputs(node)?;
                let out = self.flat(node)?;
                let launch = self.launch(node, Region::new(&[]), &inputs);
                self.backend.compute(&launch, &out)?;
                self.measured.launches += 1;
            }
            Instr::Release { tensor } => self.host.release(tensor),
            Instr::Update { update } => self.update(update as usize)?,
        }
        Ok(())
    }

    fn fetch(&mut self, at: At, region: Region, present: Region) -> Result<(), ExecError> {
        self.enter(at.stage);
        let node = self.node(at);
        self.present[at.item as usize] = present;
        let dst = self.item_place(at)?;
        if let Some(b) = self.item(at).staged_fetch() {
            let staging = self.staged(b, node, &region);
            return self.backend.copy(&staging, &region, &dst);
        }
        match self.item(at).role {
            ItemRole::Supply(Home::Source) => {
                let source = self.sources.get(&node);
                let source = source.ok_or_else(|| inconsistent("a source is missing"))?;
                let name = &self.plan.program.node(node).name;
                let read = (self.backend).read_source(name, source.as_ref(), &region, &dst);
                self.measured.source_bytes += read?;
                Ok(())
            }
            ItemRole::Supply(Home::Disk(d)) => {
                let disk = self.disk(d, node)?;
                self.backend.unspill(&disk, &region, &dst)?;
                self.measured.disk_read_bytes += self.region_bytes(node, &region);
                Ok(())
            }
            _ => self.upload(at, region, &dst),
        }
    }

    /// Copies a region of what an item reads from the host to the device.
    fn upload(&mut self, at: At, region: Region, dst: &Place) -> Result<(), ExecError> {
        let ItemRole::Supply(Home::Host(h)) = self.item(at).role else {
            return Err(inconsistent("something is fetched from nowhere"));
        };
        let node = self.node(at);
        let data = self.host.get(h);
        let data = data.ok_or_else(|| inconsistent("a host tensor is not there"))?;
        let host = AnyIn::new(host_layout(&self.plan.program.node(node).ty), data);
        self.backend.upload(&host, &region, dst)?;
        self.measured.h2d_bytes += self.region_bytes(node, &region);
        Ok(())
    }

    /// A region of a map on its way from or to the host: nothing else is there.
    fn staged(&mut self, b: BufferIx, node: NodeIx, region: &Region) -> Place {
        let ty = self.plan.program.node(node).ty;
        self.place(b, Layout::dense(&ty, region))
    }

    fn offload(
        &mut self,
        h: HostIx,
        node: NodeIx,
        src: &Place,
        region: &Region,
    ) -> Result<(), ExecError> {
        let ty = self.plan.program.node(node).ty;
        let make = |bytes| self.backend.host_memory(bytes);
        let data = self.host.get_mut(h, ty.bytes() as usize, make)?;
        self.backend
            .download(src, region, AnyOut::new(host_layout(&ty), data))?;
        self.measured.host_peak_bytes = self.host.peak_bytes();
        self.measured.d2h_bytes += self.region_bytes(node, region);
        Ok(())
    }

    /// A tensor of the spill file.
    fn disk(&mut self, d: DiskIx, node: NodeIx) -> Result<DiskMap, ExecError> {
        let spill = self
            .spill
            .ok_or_else(|| inconsistent("there is no spill file"))?;
        let tensor = self.plan.disk.get(d.0 as usize);
        let tensor = tensor.ok_or_else(|| inconsistent("a tensor on disk is not there"))?;
        let end = tensor.offset + tensor.bytes;
        self.measured.disk_peak_bytes = self.measured.disk_peak_bytes.max(end);
        Ok(spill.map(tensor.offset, &self.plan.program.node(node).ty))
    }

    /// Bytes of a region of a map.
    fn region_bytes(&self, node: NodeIx, region: &Region) -> u64 {
        let ty = self.plan.program.node(node).ty;
        region.points() * (ty.shape.channels() * ty.dtype.bytes()) as u64
    }

    fn update(&mut self, index: usize) -> Result<(), ExecError> {
        let update = self.plan.program.updates[index];
        let (rule, lr) = self.how.update.ok_or(ExecError::NoRule)?;
        let (param, grad) = (self.flat(update.param)?, self.flat(update.grad)?);
        let slots: Vec<Place> = self.plan.states[index]
            .iter()
            .map(|&b| self.whole(b, update.param))
            .collect();
        let scaled = self.how.scaled;
        let pace = Pace {
            lr,
            t: self.how.step + 1 - scaled.map_or(0, |s| s.n_skipped),
            loss_scale: scaled.map_or(1.0, |s| s.by),
        };
        self.backend.update(&rule, &pace, &param, &grad, &slots)
    }

    /// Whether all gradients that parameters are updated by are.
    fn is_finite(&mut self) -> Result<bool, ExecError> {
        let updates = self.plan.program.updates.iter();
        let gradients: Result<Vec<Place>, ExecError> = updates.map(|u| self.flat(u.grad)).collect();
        let scratch = self.plan.workspace.map(|b| self.plan.buffer(b));
        let scratch = scratch.map(|b| (b.offset, b.bytes));
        self.backend.are_finite(&gradients?, scratch)
    }

    /// Forgets the last stage's windows on entering a new one.
    fn enter(&mut self, stage: u32) {
        if self.stage == Some(stage) {
            return;
        }
        self.stage = Some(stage);
        self.item_of.fill(ABSENT);
        let items = &self.plan.stages[stage as usize].items;
        self.present.clear();
        self.present.resize(items.len(), Region::new(&[]));
        for (i, item) in items.iter().enumerate() {
            self.item_of[item.node.ix()] = i as u32;
        }
    }

    fn item(&self, at: At) -> &'a sstep_planner::StageItem {
        &self.plan.stages[at.stage as usize].items[at.item as usize]
    }

    fn node(&self, at: At) -> NodeIx {
        self.item(at).node
    }

    fn launch<'b>(&self, node: NodeIx, region: Region, inputs: &'b [Place]) -> Launch<'b>
    where
        'a: 'b,
    {
        let buffer = self.plan.workspace.map(|b| self.plan.buffer(b));
        Launch {
            op: &self.plan.program.node(node).op,
            region,
            inputs,
            step: self.how.step,
            seed: self.how.seed,
            workspace: buffer.map(|b| (b.offset, b.bytes)),
        }
    }

    fn place(&mut self, b: BufferIx, layout: Layout) -> Place {
        let buffer = self.plan.buffer(b);
        let end = buffer.offset + buffer.bytes;
        self.measured.peak_bytes = self.measured.peak_bytes.max(end);
        Place {
            offset: buffer.offset,
            layout,
        }
    }

    fn whole(&mut self, b: BufferIx, node: NodeIx) -> Place {
        let layout = Layout::whole(&self.plan.program.node(node).ty);
        self.place(b, layout)
    }

    fn flat(&mut self, node: NodeIx) -> Result<Place, ExecError> {
        let home = self.plan.flat_home[node.ix()];
        let b = home.ok_or_else(|| inconsistent("a flat tensor has no buffer"))?;
        Ok(self.whole(b, node))
    }

    /// Where an item's value is, as the running stage sees it.
    fn item_place(&mut self, at: At) -> Result<Place, ExecError> {
        self.enter(at.stage);
        let item = self.item(at);
        match item.value {
            Value::Window { buffer, capacity } => {
                let ty: Ty = self.plan.program.node(item.node).ty;
                let present = self.present[at.item as usize];
                let layout = Layout::window(&ty, &capacity[..ty.n_axes()], &present);
                Ok(self.place(buffer, layout))
            }
            Value::Whole(b) => Ok(self.whole(b, item.node)),
            Value::Flat(_) => self.flat(item.node),
        }
    }

    fn inputs(&mut self, node: NodeIx) -> Result<Vec<Place>, ExecError> {
        let plan = self.plan;
        let stage = self.stage.ok_or_else(|| inconsistent("no stage runs"))?;
        let one = |&input: &NodeIx| {
            if !plan.program.node(input).ty.is_map() {
                return self.flat(input);
            }
            match self.item_of[input.ix()] {
                ABSENT => Err(inconsistent("a stage reads a map that it does not have")),
                item => self.item_place(At { stage, item }),
            }
        };
        plan.program.node(node).inputs.iter().map(one).collect()
    }

    fn partial(&mut self, at: At) -> Result<(NodeIx, Partial), ExecError> {
        self.enter(at.stage);
        let item = self.item(at);
        let node = self.plan.program.node(item.node);
        let partial = match (item.accumulator, node.op.reduction_state(&node.ty)) {
            (Some(b), ReductionState::F64(len)) => {
                let place = self.place(b, Layout::whole(&node.ty));
                Partial::F64 {
                    offset: place.offset,
                    len,
                }
            }
            (None, ReductionState::InPlace) => Partial::InPlace(self.flat(item.node)?),
            _ => return Err(inconsistent("a reduction has the wrong accumulator")),
        };
        Ok((item.node, partial))
    }
}

/// Whether a leaf is given by the caller at every step.
pub(crate) fn is_fed(op: &Op) -> bool {
    matches!(op, Op::Input { .. })
}

pub(crate) fn inconsistent(reason: &str) -> ExecError {
    ExecError::Plan {
        reason: reason.to_owned(),
    }
}
