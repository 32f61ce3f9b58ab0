//! The only loop: instruction after instruction, on any backend.
//!
//! The interpreter decides nothing. It looks up where the plan says a value
//! lives, hands that to the backend, and counts: the highest arena byte
//! touched, bytes over each link, host bytes held, bytes of the spill file. While one instruction runs,
//! image regions that the next ones fetch are announced to their sources. Calls that follow one
//! another over one region, position by position, are handed over together: see [`chain`].

mod chain;
mod places;
mod spent;
mod transfers;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::time::Instant;

use sstep_autodiff::{Op, Region};
use sstep_kernels::{Pace, Real};
use sstep_planner::{Home, Instr, ItemRole, NodeIx, Plan};

use self::chain::Waiting;
pub use self::spent::{Measured, Progress, Scaled, Spent, StepHow, Timings};
use crate::backend::{Backend, Place};
use crate::disk::SpillFile;
use crate::error::ExecError;
use crate::host::HostPool;
use crate::source::TileSource;

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
    /// Which items of the running stage read each of its items.
    readers: Vec<Vec<u32>>,
    stage: Option<u32>,
    /// Calls that have come and not run yet, all over one region.
    waiting: Vec<Waiting>,
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
            readers: Vec::new(),
            stage: None,
            waiting: Vec::new(),
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

    /// Runs one stage.
    fn stage(&mut self, index: usize, done: impl FnMut(Instr)) -> Result<(), ExecError> {
        self.instructions(index, done)?;
        self.run_waiting()
    }

    /// Runs the instructions of a stage. Where it reads images, a second thread spells them
    /// out a little ahead and announces what they fetch.
    fn instructions(&mut self, index: usize, mut done: impl FnMut(Instr)) -> Result<(), ExecError> {
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

    /// Runs one instruction and notes what it took, or lets it wait for those after it.
    fn step(&mut self, instr: Instr) -> Result<(), ExecError> {
        if self.waits(instr)? {
            return Ok(());
        }
        self.run_waiting()?;
        let started = Instant::now();
        self.carry_out(instr)?;
        let secs = started.elapsed().as_secs_f64();
        let program = &self.plan.program;
        match instr {
            Instr::Begin { at } | Instr::Finish { at } => {
                // Part of the reduction, but no call of its own.
                let node = self.node(at).ix();
                self.timings.nodes[node].secs += secs;
            }
            Instr::Compute { at, region, .. } | Instr::Accumulate { at, region } => {
                let node = self.node(at).ix();
                self.timings.nodes[node].add(region.points(), secs);
            }
            Instr::Flat { at } => {
                let node = self.node(at).ix();
                self.timings.nodes[node].add(1, secs);
            }
            Instr::Slide { at, keep } => {
                let amount = self.region_bytes(self.node(at), &keep);
                self.timings.slide.add(amount, secs);
            }
            Instr::Prefetch { at, region } => {
                let amount = self.region_bytes(self.node(at), &region);
                self.timings.upload.add(amount, secs);
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
                spent.add(amount, secs);
            }
            Instr::Store { at, region, home } => {
                let amount = self.region_bytes(self.node(at), &region);
                let spent = match home {
                    Home::Host(_) => &mut self.timings.download,
                    Home::Disk(_) => &mut self.timings.disk_write,
                    Home::Device(_) | Home::Source => &mut self.timings.store,
                };
                spent.add(amount, secs);
            }
            Instr::Update { update } => {
                let param = program.updates[update as usize].param;
                let elems = program.node(param).ty.shape.elems() as u64;
                self.timings.update.add(elems, secs);
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
            Instr::Store { at, region, home } => self.store(at, region, home)?,
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
