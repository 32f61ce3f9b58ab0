//! The walk: what every byte range holds, instruction by instruction.

use std::collections::HashMap;

use sstep_autodiff::{ReductionState, Region};

use super::boxes::Boxes;
use crate::instr::{At, Instr};
use crate::plan::{BufferIx, DiskIx, Home, HostIx, ItemRole, Plan, StageItem, Value};
use crate::program::NodeIx;

/// What a buffer holds.
#[derive(Clone, Debug)]
pub(super) enum Content {
    Nothing,
    /// A finished flat tensor.
    Flat(NodeIx),
    /// A reduction in progress.
    Partial(NodeIx),
    /// A box of a map.
    Window(NodeIx, Region),
    /// Parts of a whole map.
    Stored(NodeIx, Boxes),
    /// Exactly this box of a map, on its way from the host.
    Staged(NodeIx, Region),
}

/// A walk over a plan, at one instruction.
pub(super) struct Judge<'a> {
    pub(super) plan: &'a Plan,
    pub(super) content: Vec<Content>,
    /// Other buffers that share bytes with each buffer.
    pub(super) clashes: Vec<Vec<BufferIx>>,
    pub(super) host: Vec<Option<Boxes>>,
    /// What was written of each tensor on disk.
    pub(super) disk: Vec<Option<Boxes>>,
    /// Other tensors that share bytes of the spill file with each.
    pub(super) disk_clashes: Vec<Vec<usize>>,
    pub(super) released: Vec<bool>,
    pub(super) host_bytes: u64,
    /// Per stage being run: position of each node.
    pub(super) stage: Option<u32>,
    pub(super) at: HashMap<NodeIx, usize>,
    pub(super) domain: HashMap<NodeIx, Boxes>,
    /// Buffers that the instruction reads, or uses as scratch.
    pub(super) read: Vec<BufferIx>,
    pub(super) updated: Vec<bool>,
}

impl<'a> Judge<'a> {
    /// An instruction in words.
    pub(super) fn describe(&self, instr: &Instr) -> String {
        let name = |at: &At| {
            let items = &self.plan.stages[at.stage as usize].items;
            let node = self.plan.program.node(items[at.item as usize].node);
            format!("stage {} {}", at.stage, node.name)
        };
        match instr {
            Instr::Begin { at } => format!("begin {}", name(at)),
            Instr::Slide { at, keep } => format!("slide {} {keep:?}", name(at)),
            Instr::Prefetch { at, region } => format!("prefetch {} {region:?}", name(at)),
            Instr::Fetch { at, region, .. } => format!("fetch {} {region:?}", name(at)),
            Instr::Compute { at, region, .. } => format!("compute {} {region:?}", name(at)),
            Instr::Store { at, region, .. } => format!("store {} {region:?}", name(at)),
            Instr::Accumulate { at, region } => format!("accumulate {} {region:?}", name(at)),
            Instr::Finish { at } => format!("finish {}", name(at)),
            Instr::Flat { at } => format!("flat {}", name(at)),
            Instr::Release { tensor } => format!("release host tensor {}", tensor.0),
            Instr::Update { update } => format!("update {update}"),
        }
    }

    /// Carries one instruction out on the picture.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn step(&mut self, instr: &Instr) -> Result<(), String> {
        self.read.clear();
        match *instr {
            Instr::Begin { at } => {
                let item = self.enter(at);
                let b = self.partial_of(item)?;
                self.write(b)?;
                self.content[b.0 as usize] = Content::Partial(item.node);
                self.domain.insert(item.node, Boxes::default());
                Ok(())
            }
            Instr::Slide { at, keep } => {
                let item = self.enter(at);
                let Value::Window { buffer, .. } = item.value else {
                    return Err("only windows slide".to_owned());
                };
                match &self.content[buffer.0 as usize] {
                    Content::Window(n, held) if *n == item.node && held.contains(&keep) => {}
                    other => return Err(format!("keeps what is not there: {other:?}")),
                }
                self.write(buffer)?;
                self.content[buffer.0 as usize] = Content::Window(item.node, keep);
                Ok(())
            }
            Instr::Prefetch { at, region } => {
                let item = self.enter(at);
                let ItemRole::Supply(Home::Host(h)) = item.role else {
                    return Err("is prefetched from nowhere".to_owned());
                };
                self.host_has(h, item.node, &region)?;
                let staging = item.staging.ok_or("is prefetched to nowhere")?;
                self.stage_in(staging, item.node, &region)?;
                self.content[staging.0 as usize] = Content::Staged(item.node, region);
                Ok(())
            }
            Instr::Fetch {
                at,
                region,
                present,
            } => {
                let item = self.enter(at);
                match item.role {
                    ItemRole::Supply(Home::Host(h)) => match item.staging {
                        None => self.host_has(h, item.node, &region)?,
                        Some(b) => match self.content.get(b.0 as usize) {
                            Some(Content::Staged(n, held))
                                if *n == item.node && *held == region =>
                            {
                                self.read.push(b);
                            }
                            _ => return Err(format!("{region:?} was not prefetched")),
                        },
                    },
                    ItemRole::Supply(Home::Disk(d)) => self.disk_has(d, item.node, &region)?,
                    ItemRole::Supply(Home::Source) if self.plan.program.is_source(item.node) => {}
                    _ => return Err("is fetched from nowhere".to_owned()),
                }
                self.put(at, region, present)
            }
            Instr::Compute {
                at,
                region,
                present,
            } => {
                let item = self.enter(at);
                self.reads(item.node, &region)?;
                self.scratch(item.node)?;
                self.put(at, region, present)
            }
            Instr::Store { at, region, home } => {
                let item = self.enter(at);
                let from = self.holds(item.node, &region)?;
                self.read.push(from);
                if let (Home::Host(_), Some(staging)) = (home, item.staging) {
                    self.stage_in(staging, item.node, &region)?;
                    self.content[staging.0 as usize] = Content::Nothing;
                }
                self.store(item.node, region, home)
            }
            Instr::Accumulate { at, region } => {
                let item = self.enter(at);
                let n = item.node;
                let b = self.partial_of(item)?;
                self.has_partial(b, n)?;
                self.reads(n, &region)?;
                self.scratch(n)?;
                self.write(b)?;
                self.domain.entry(n).or_default().add(region)
            }
            Instr::Finish { at } => {
                let item = self.enter(at);
                let n = item.node;
                let total = self.plan.program.points(n);
                let seen = self.domain.get(&n).map_or(0, |d| d.points);
                if seen != total {
                    return Err(format!("accumulated {seen} of {total} positions"));
                }
                let Value::Flat(b) = item.value else {
                    return Err("a reduction has no flat result".to_owned());
                };
                let from = self.partial_of(item)?;
                self.has_partial(from, n)?;
                if from != b {
                    self.read.push(from);
                }
                self.finish_flat(n, b)
            }
            Instr::Flat { at } => {
                let item = self.enter(at);
                self.reads(item.node, &Region::new(&[]))?;
                self.scratch(item.node)?;
                match item.value {
                    Value::Flat(b) => self.finish_flat(item.node, b),
                    _ => Err("a flat node has no flat buffer".to_owned()),
                }
            }
            Instr::Release { tensor } => {
                let h = tensor.0 as usize;
                if self.host[h].is_some() {
                    self.host_bytes -= self.plan.host[h].bytes;
                }
                self.released[h] = true;
                Ok(())
            }
            Instr::Update { update } => {
                let u = self.plan.program.updates[update as usize];
                let grad = self.has_flat(u.grad)?;
                self.read.push(grad);
                let param = self.has_flat(u.param)?;
                let states = &self.plan.states[update as usize];
                for &b in states {
                    if !matches!(self.content[b.0 as usize], Content::Flat(n) if n == u.param) {
                        return Err("optimiser state was overwritten".to_owned());
                    }
                }
                for &b in std::iter::once(&param).chain(states) {
                    self.write(b)?;
                    self.read.push(b);
                }
                self.updated[update as usize] = true;
                Ok(())
            }
        }
    }

    /// What must hold after the last instruction.
    ///
    /// # Errors
    /// What does not.
    pub(super) fn end(&self) -> Result<(), String> {
        if let Some(u) = self.updated.iter().position(|done| !done) {
            return Err(format!("update {u} never ran"));
        }
        let program = &self.plan.program;
        for n in program.indices() {
            let node = program.node(n);
            if node.op.is_leaf() && !node.ty.is_map() {
                self.has_flat(n)
                    .map_err(|e| format!("{e}, for the next step"))?;
            }
        }
        for (update, slots) in program.updates.iter().zip(&self.plan.states) {
            let holds = |b: &BufferIx| matches!(self.content[b.0 as usize], Content::Flat(n) if n == update.param);
            if !slots.iter().all(holds) {
                let name = &program.node(update.param).name;
                return Err(format!(
                    "optimiser state of {name} is not there, for the next step"
                ));
            }
        }
        for &o in &self.plan.program.outputs {
            let node = self.plan.program.node(o);
            if !node.ty.is_map() {
                self.has_flat(o)
                    .map(|_| ())
                    .map_err(|e| format!("output {}: {e}", node.name))?;
                continue;
            }
            let home = self
                .plan
                .map_outputs
                .iter()
                .find(|(n, _)| *n == o)
                .map(|(_, h)| *h);
            let whole = Region::whole(&node.ty);
            let complete = match home {
                Some(Home::Host(h)) => self.host_has(h, o, &whole).is_ok(),
                Some(Home::Disk(d)) => self.disk_has(d, o, &whole).is_ok(),
                Some(Home::Device(b)) => self.stored_has(b, o, &whole),
                Some(Home::Source) => self.plan.program.is_source(o),
                None => false,
            };
            if !complete {
                return Err(format!("output {} is not complete", node.name));
            }
        }
        Ok(())
    }

    /// The item; on entering a new stage, forgets the last one's positions.
    fn enter(&mut self, at: At) -> &'a StageItem {
        let items = &self.plan.stages[at.stage as usize].items;
        if self.stage != Some(at.stage) {
            self.stage = Some(at.stage);
            self.at = items
                .iter()
                .enumerate()
                .map(|(i, item)| (item.node, i))
                .collect();
        }
        &items[at.item as usize]
    }

    /// The buffer that a reduction accumulates in: doubles, or its result.
    fn partial_of(&self, item: &StageItem) -> Result<BufferIx, String> {
        let node = self.plan.program.node(item.node);
        match (node.op.reduction_state(&node.ty), item.accumulator) {
            (ReductionState::F64(count), Some(b)) => {
                self.roomy(b, 8 * count as u64)?;
                Ok(b)
            }
            (ReductionState::F64(_), None) => Err("a reduction has no accumulator".to_owned()),
            (ReductionState::InPlace, Some(_)) => {
                Err("a reduction in place has an accumulator".to_owned())
            }
            (ReductionState::InPlace, None) => match item.value {
                Value::Flat(b) => {
                    self.roomy(b, node.ty.bytes())?;
                    Ok(b)
                }
                Value::Window { .. } | Value::Whole(_) => {
                    Err("a reduction has no flat result".to_owned())
                }
            },
        }
    }

    fn has_partial(&self, b: BufferIx, n: NodeIx) -> Result<(), String> {
        match self.content[b.0 as usize] {
            Content::Partial(m) if m == n => Ok(()),
            _ => Err("its accumulator was overwritten or never begun".to_owned()),
        }
    }

    /// Everything that shares bytes with `b` is lost, so nothing that the
    /// instruction also reads may.
    pub(super) fn write(&mut self, b: BufferIx) -> Result<(), String> {
        let clashes = self.clashes.get(b.0 as usize).ok_or("names no buffer")?;
        for r in &self.read {
            if *r == b || clashes.binary_search(r).is_ok() {
                return Err(format!(
                    "writes buffer {} while it uses buffer {}",
                    b.0, r.0
                ));
            }
        }
        for clash in clashes {
            self.content[clash.0 as usize] = Content::Nothing;
        }
        Ok(())
    }

    /// A region of a map, dense, is put into a staging buffer.
    fn stage_in(&mut self, b: BufferIx, n: NodeIx, region: &Region) -> Result<(), String> {
        let ty = self.plan.program.node(n).ty;
        if !Region::whole(&ty).contains(region) {
            return Err(format!("{region:?} lies outside {ty}"));
        }
        let point_bytes = (ty.shape.channels() * ty.dtype.bytes()) as u64;
        self.roomy(b, region.points().saturating_mul(point_bytes))?;
        self.write(b)
    }

    /// What a kernel may scribble in; for narrow tensors it needs room.
    fn scratch(&mut self, n: NodeIx) -> Result<(), String> {
        let program = &self.plan.program;
        let node = program.node(n);
        let needed = node.op.least_decoded_bytes(&program.input_tys(n), &node.ty);
        match self.plan.workspace {
            Some(b) => self.roomy(b, needed)?,
            None if needed > 0 => {
                return Err(format!(
                    "it decodes {needed} bytes, but there is no scratch"
                ));
            }
            None => {}
        }
        if let Some(b) = self.plan.workspace {
            self.write(b)?;
            self.content[b.0 as usize] = Content::Nothing;
            self.read.push(b);
        }
        Ok(())
    }

    /// # Errors
    /// If a buffer does not exist or is smaller.
    pub(super) fn roomy(&self, b: BufferIx, bytes: u64) -> Result<(), String> {
        let buffer = self
            .plan
            .buffers
            .get(b.0 as usize)
            .ok_or("names no buffer")?;
        if buffer.bytes < bytes {
            return Err(format!(
                "buffer {} has {} of {bytes} bytes",
                b.0, buffer.bytes
            ));
        }
        Ok(())
    }

    /// Where a flat tensor is.
    ///
    /// # Errors
    /// If that is nowhere, or too small.
    pub(super) fn flat_home(&self, n: NodeIx) -> Result<BufferIx, String> {
        let name = &self.plan.program.node(n).name;
        let b = self.plan.flat_home[n.ix()].ok_or_else(|| format!("{name} has no buffer"))?;
        self.roomy(b, self.plan.program.node(n).ty.bytes())?;
        Ok(b)
    }

    fn has_flat(&self, n: NodeIx) -> Result<BufferIx, String> {
        let b = self.flat_home(n)?;
        match self.content[b.0 as usize] {
            Content::Flat(m) if m == n => Ok(b),
            _ => Err(format!("{} is not there", self.plan.program.node(n).name)),
        }
    }

    fn finish_flat(&mut self, n: NodeIx, b: BufferIx) -> Result<(), String> {
        if self.flat_home(n)? != b {
            return Err("its result is not where others look for it".to_owned());
        }
        self.write(b)?;
        self.content[b.0 as usize] = Content::Flat(n);
        Ok(())
    }

    /// Notes what `n` reads for `region`.
    ///
    /// # Errors
    /// If some of that is not there.
    fn reads(&mut self, n: NodeIx, region: &Region) -> Result<(), String> {
        let program = &self.plan.program;
        let node = program.node(n);
        let tys = program.input_tys(n);
        for (i, &input) in node.inputs.iter().enumerate() {
            if !tys[i].is_map() {
                let b = self.has_flat(input)?;
                self.read.push(b);
                continue;
            }
            let mut need = *region;
            for axis in 0..tys[i].n_axes() {
                let read = node.op.read(i, axis, &tys, &node.ty);
                need.set(
                    axis,
                    read.apply(region.span(axis), tys[i].axis_extent(axis)),
                );
            }
            if !need.is_empty() {
                let b = self.holds(input, &need)?;
                self.read.push(b);
            }
        }
        Ok(())
    }

    /// Where the running stage has `region` of map `n`.
    fn holds(&self, n: NodeIx, region: &Region) -> Result<BufferIx, String> {
        let stage = &self.plan.stages[self.stage.ok_or("no stage runs")? as usize];
        let name = &self.plan.program.node(n).name;
        let item = self
            .at
            .get(&n)
            .ok_or_else(|| format!("{name} is not in the stage"))?;
        let (b, held) = match stage.items[*item].value {
            Value::Window { buffer, .. } => {
                let held = match self.content.get(buffer.0 as usize) {
                    Some(Content::Window(m, held)) if *m == n => held.contains(region),
                    _ => false,
                };
                (buffer, held)
            }
            Value::Whole(b) => (b, self.stored_has(b, n, region)),
            Value::Flat(b) => (b, false),
        };
        if held {
            Ok(b)
        } else {
            Err(format!("{region:?} of {name} is not there"))
        }
    }

    fn stored_has(&self, b: BufferIx, n: NodeIx, region: &Region) -> bool {
        let total = self.plan.program.points(n);
        match self.content.get(b.0 as usize) {
            Some(Content::Stored(m, boxes)) => *m == n && boxes.covers(region, total),
            _ => false,
        }
    }

    fn host_has(&self, h: HostIx, n: NodeIx, region: &Region) -> Result<(), String> {
        let tensor = self
            .plan
            .host
            .get(h.0 as usize)
            .ok_or("names no host tensor")?;
        let total = self.plan.program.points(n);
        let there = tensor.node == n
            && !self.released[h.0 as usize]
            && self.host[h.0 as usize]
                .as_ref()
                .is_some_and(|b| b.covers(region, total));
        if there {
            Ok(())
        } else {
            Err(format!("{region:?} is not on the host"))
        }
    }

    fn disk_has(&self, d: DiskIx, n: NodeIx, region: &Region) -> Result<(), String> {
        let i = d.0 as usize;
        let tensor = self.plan.disk.get(i).ok_or("names no disk tensor")?;
        let total = self.plan.program.points(n);
        let written = self.disk[i].as_ref();
        if tensor.node == n && written.is_some_and(|b| b.covers(region, total)) {
            Ok(())
        } else {
            Err(format!("{region:?} is not on disk"))
        }
    }

    /// The value of an item was made for `region`; its buffer now holds
    /// `present`.
    fn put(&mut self, at: At, region: Region, present: Region) -> Result<(), String> {
        let item = self.enter(at);
        let n = item.node;
        let ty = self.plan.program.node(n).ty;
        if !Region::whole(&ty).contains(&region) {
            return Err(format!("{region:?} lies outside {ty}"));
        }
        match item.value {
            Value::Window { buffer, capacity } => {
                let mut points = 1u64;
                for (axis, cap) in capacity.iter().enumerate().take(ty.n_axes()) {
                    points = points.saturating_mul(*cap as u64);
                    if present.span(axis).len() > *cap {
                        return Err(format!(
                            "{present:?} passes the window's extents {capacity:?}"
                        ));
                    }
                }
                let point_bytes = (ty.shape.channels() * ty.dtype.bytes()) as u64;
                self.roomy(buffer, points.saturating_mul(point_bytes))?;
                if present != region {
                    // What is not new must have been there, at the same place.
                    let old = match &self.content[buffer.0 as usize] {
                        Content::Window(m, held) if *m == n => *held,
                        _ => return Err("claims to keep what is not there".to_owned()),
                    };
                    let kept = old.intersect(&present);
                    let both = kept.intersect(&region).points();
                    let same_origin =
                        (0..ty.n_axes()).all(|a| old.span(a).lo == present.span(a).lo);
                    if !same_origin || kept.points() + region.points() - both != present.points() {
                        return Err(format!("{present:?} is not {old:?} and {region:?}"));
                    }
                }
                self.write(buffer)?;
                self.content[buffer.0 as usize] = Content::Window(n, present);
                Ok(())
            }
            Value::Whole(b) => self.store(n, region, Home::Device(b)),
            Value::Flat(_) => Err("a map has a flat buffer".to_owned()),
        }
    }

    fn store(&mut self, n: NodeIx, region: Region, home: Home) -> Result<(), String> {
        let ty = self.plan.program.node(n).ty;
        match home {
            Home::Device(b) => {
                self.roomy(b, ty.bytes())?;
                self.write(b)?;
                let content = &mut self.content[b.0 as usize];
                match content {
                    Content::Stored(m, boxes) if *m == n => boxes.add(region),
                    _ => {
                        let mut boxes = Boxes::default();
                        boxes.add(region)?;
                        *content = Content::Stored(n, boxes);
                        Ok(())
                    }
                }
            }
            Home::Host(h) => {
                let i = h.0 as usize;
                let tensor = self.plan.host.get(i).ok_or("names no host tensor")?;
                if tensor.node != n || tensor.bytes < ty.bytes() || self.released[i] {
                    return Err("the host tensor is not for this".to_owned());
                }
                if self.host[i].is_none() {
                    self.host_bytes += tensor.bytes;
                    let cap = self.plan.budget.host_bytes;
                    if self.host_bytes > cap {
                        return Err(format!("host holds {} of {cap} bytes", self.host_bytes));
                    }
                }
                self.host[i].get_or_insert_default().add(region)
            }
            Home::Disk(d) => {
                let i = d.0 as usize;
                let tensor = self.plan.disk.get(i).ok_or("names no disk tensor")?;
                if tensor.node != n || tensor.bytes < ty.bytes() {
                    return Err("the disk tensor is not for this".to_owned());
                }
                for &clash in &self.disk_clashes[i] {
                    self.disk[clash] = None;
                }
                self.disk[i].get_or_insert_default().add(region)
            }
            Home::Source => Err("a source cannot be written".to_owned()),
        }
    }
}
