//! Calls that a backend may carry out as one.
//!
//! Position-wise calls that follow one another over the same region wait until something
//! else comes; then the backend is given all of them, in their order. It is also told
//! which results nothing will read afterwards, so that it need not store them: those of a
//! window that is not stored anywhere and whose readers in the stage are all among the
//! calls. Each of them reads, position by position, the region that was just computed. What
//! later tiles read of such a window they compute themselves: readers walk an axis of
//! tiles that carry over with the window, and none sees a position twice; on other axes
//! windows begin empty.

use std::time::Instant;

use sstep_autodiff::{Form, Region, Shape, Ty};
use sstep_kernels::{Real, cpu};
use sstep_planner::{At, Instr, ItemRole, Value};

use super::Interpreter;
use crate::backend::{Link, Place, Target};
use crate::error::ExecError;

/// As many calls as are handed over together at most.
const MOST: usize = 8;

/// A call that waits.
pub(super) struct Waiting {
    at: At,
    region: Region,
    /// Extents of the maps that it reads and writes.
    shape: Shape,
    inputs: Vec<Place>,
    /// For each input, the waiting call that computes it, if one does.
    from: Vec<Option<usize>>,
    to: Target,
}

impl<T: Real> Interpreter<'_, T> {
    /// Lets an instruction wait, if it is a call that may be handed over with others.
    /// What waits already and does not go together with it is run before.
    pub(super) fn waits(&mut self, instr: Instr) -> Result<bool, ExecError> {
        let (Instr::Compute { at, region, .. } | Instr::Accumulate { at, region }) = instr else {
            return Ok(false);
        };
        let node = self.node(at);
        let Some(shape) = self.shape(node, matches!(instr, Instr::Compute { .. })) else {
            return Ok(false);
        };
        let apart = |w: &Waiting| w.region != region || w.shape != shape;
        if self.waiting.len() == MOST || self.waiting.first().is_some_and(apart) {
            self.run_waiting()?;
        }
        self.enter(at.stage);
        let inputs = self.inputs(node)?;
        let made_by = |input| {
            let it = |w: &Waiting| self.node(w.at) == input;
            self.waiting.iter().position(it)
        };
        let from = (self.plan.program.node(node).inputs.iter())
            .map(|&input| made_by(input))
            .collect();
        let to = match instr {
            Instr::Compute { present, .. } => {
                self.present[at.item as usize] = present;
                Target::Map(self.item_place(at)?)
            }
            _ => Target::Reduction(self.partial(at)?.1, self.plan.program.node(node).ty),
        };
        self.waiting.push(Waiting {
            at,
            region,
            shape,
            inputs,
            from,
            to,
        });
        Ok(true)
    }

    /// The extents that all maps of a call have in common, if it may be handed over with
    /// others.
    fn shape(&self, node: sstep_planner::NodeIx, writes_map: bool) -> Option<Shape> {
        let this = self.plan.program.node(node);
        if !cpu::chains(&this.op) {
            return None;
        }
        let tys = self.plan.program.input_tys(node);
        let mut maps = (tys.iter())
            .chain(writes_map.then_some(&this.ty))
            .filter(|ty: &&Ty| ty.is_map());
        let shape = maps.next()?.shape;
        maps.all(|ty| ty.shape == shape).then_some(shape)
    }

    /// Hands over the calls that wait, and shares their time out by the maps that each
    /// touches.
    pub(super) fn run_waiting(&mut self) -> Result<(), ExecError> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let started = Instant::now();
        let waiting = std::mem::take(&mut self.waiting);
        let links: Vec<Link<'_>> = (waiting.iter())
            .map(|w| Link {
                launch: self.launch(self.node(w.at), w.region, &w.inputs),
                from: &w.from,
                to: w.to,
                last_reader: self.last_reader(w.at, &waiting),
            })
            .collect();
        self.backend.chain(&links)?;
        let secs = started.elapsed().as_secs_f64();
        let touched = |link: &Link<'_>| {
            let inputs = link.launch.inputs.iter().zip(link.from);
            let read = inputs.filter(|(p, from)| p.layout.form == Form::Map && from.is_none());
            1 + read.count() + usize::from(link.last_reader.is_none())
        };
        let shares: Vec<usize> = links.iter().map(touched).collect();
        let all = shares.iter().sum::<usize>() as f64;
        for (w, share) in waiting.iter().zip(shares) {
            let node = self.node(w.at).ix();
            self.timings.nodes[node].add(w.region.points(), secs * share as f64 / all);
        }
        self.measured.launches += waiting.len() as u64;
        Ok(())
    }

    /// The last of the waiting calls that reads a result, if nothing else ever does.
    fn last_reader(&self, at: At, waiting: &[Waiting]) -> Option<usize> {
        let item = self.item(at);
        let passes = item.role == ItemRole::Compute
            && matches!(item.value, Value::Window { .. })
            && item.stores.is_empty();
        if !passes {
            return None;
        }
        let place = |&reader: &u32| waiting.iter().position(|w| w.at.item == reader);
        let places: Option<Vec<usize>> = self.readers[at.item as usize].iter().map(place).collect();
        places?.into_iter().max()
    }
}
