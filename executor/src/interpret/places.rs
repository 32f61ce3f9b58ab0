//! Where the plan says that values lie.

use sstep_autodiff::{ReductionState, Region, Ty};
use sstep_kernels::{Layout, Real};
use sstep_planner::{At, BufferIx, DiskIx, ItemRole, NodeIx, Value};

use super::{ABSENT, Interpreter, inconsistent};
use crate::backend::{Launch, Partial, Place};
use crate::disk::DiskMap;
use crate::error::ExecError;

impl<'a, T: Real> Interpreter<'a, T> {
    /// A region of a map on its way from or to the host: nothing else is there.
    pub(super) fn staged(&mut self, b: BufferIx, node: NodeIx, region: &Region) -> Place {
        let ty = self.plan.program.node(node).ty;
        self.place(b, Layout::dense(&ty, region))
    }

    /// A tensor of the spill file.
    pub(super) fn disk(&mut self, d: DiskIx, node: NodeIx) -> Result<DiskMap, ExecError> {
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
    pub(super) fn region_bytes(&self, node: NodeIx, region: &Region) -> u64 {
        let ty = self.plan.program.node(node).ty;
        region.points() * (ty.shape.channels() * ty.dtype.bytes()) as u64
    }

    /// Forgets the last stage's windows on entering a new one.
    pub(super) fn enter(&mut self, stage: u32) {
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
        self.readers.clear();
        self.readers.resize(items.len(), Vec::new());
        for (i, item) in items.iter().enumerate() {
            if !matches!(item.role, ItemRole::Compute | ItemRole::Reduce) {
                continue;
            }
            for input in &self.plan.program.node(item.node).inputs {
                if let Some(readers) = self.readers.get_mut(self.item_of[input.ix()] as usize) {
                    readers.push(i as u32);
                }
            }
        }
    }

    pub(super) fn item(&self, at: At) -> &'a sstep_planner::StageItem {
        &self.plan.stages[at.stage as usize].items[at.item as usize]
    }

    pub(super) fn node(&self, at: At) -> NodeIx {
        self.item(at).node
    }

    pub(super) fn launch<'b>(&self, node: NodeIx, region: Region, inputs: &'b [Place]) -> Launch<'b>
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

    pub(super) fn place(&mut self, b: BufferIx, layout: Layout) -> Place {
        let buffer = self.plan.buffer(b);
        let end = buffer.offset + buffer.bytes;
        self.measured.peak_bytes = self.measured.peak_bytes.max(end);
        Place {
            offset: buffer.offset,
            layout,
        }
    }

    pub(super) fn whole(&mut self, b: BufferIx, node: NodeIx) -> Place {
        let layout = Layout::whole(&self.plan.program.node(node).ty);
        self.place(b, layout)
    }

    pub(super) fn flat(&mut self, node: NodeIx) -> Result<Place, ExecError> {
        let home = self.plan.flat_home[node.ix()];
        let b = home.ok_or_else(|| inconsistent("a flat tensor has no buffer"))?;
        Ok(self.whole(b, node))
    }

    /// Where an item's value is, as the running stage sees it.
    pub(super) fn item_place(&mut self, at: At) -> Result<Place, ExecError> {
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

    pub(super) fn inputs(&mut self, node: NodeIx) -> Result<Vec<Place>, ExecError> {
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

    pub(super) fn partial(&mut self, at: At) -> Result<(NodeIx, Partial), ExecError> {
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
