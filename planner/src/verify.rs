//! The judge: accepts a plan only if carrying it out computes the program.
//!
//! It shares no code with the passes that made the plan. It walks the
//! instructions one by one with its own picture of what every byte range holds,
//! and knows of an op only what the tape says it reads. A plan is accepted if
//!
//! - every buffer is aligned, lies within the cap and is large enough for what
//!   it holds;
//! - every region an instruction reads is there: written before, and not
//!   overwritten since by any buffer that shares bytes with it;
//! - every element of a stored map is written exactly once before it is read
//!   elsewhere; every element of a reduction's domain is added exactly once
//!   before its result is read;
//! - host tensors stay within the host cap and are not read after release;
//! - in the end every output is complete and every parameter was updated once,
//!   after its last use.

use std::collections::HashMap;
use std::ops::ControlFlow;

use sstep_autodiff::Region;

use crate::instr::{At, Instr};
use crate::plan::{BufferIx, Home, HostIx, ItemRole, Plan, Value};
use crate::program::NodeIx;
use crate::stage::Role;

/// What every buffer is aligned to, in bytes: kernels load whole vectors.
const ALIGN: u64 = 64;

/// Why a plan was rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("instruction {index} ({instr}): {reason}")]
pub struct Violation {
    /// Number of the instruction, from 0.
    pub index: u64,
    /// The instruction.
    pub instr: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Accepts or rejects a plan.
///
/// # Errors
/// The first [`Violation`].
pub fn verify(plan: &Plan) -> Result<(), Violation> {
    let mut judge = Judge::new(plan).map_err(|reason| Violation {
        index: 0,
        instr: "layout".to_owned(),
        reason,
    })?;
    let mut index = 0;
    let flow = plan.instructions(|instr| {
        let verdict = judge.step(&instr).map_err(|reason| Violation {
            index,
            instr: judge.describe(&instr),
            reason,
        });
        index += 1;
        match verdict {
            Ok(()) => ControlFlow::Continue(()),
            Err(violation) => ControlFlow::Break(violation),
        }
    });
    if let ControlFlow::Break(violation) = flow {
        return Err(violation);
    }
    judge.end().map_err(|reason| Violation {
        index,
        instr: "end".to_owned(),
        reason,
    })
}

/// Disjoint boxes of a map, with their volume.
#[derive(Clone, Debug, Default)]
struct Boxes {
    boxes: Vec<Region>,
    points: u64,
}

impl Boxes {
    fn add(&mut self, region: Region) -> Result<(), String> {
        for b in self.boxes.iter().rev() {
            if !b.intersect(&region).is_empty() {
                return Err(format!("{region:?} was written before, in {b:?}"));
            }
        }
        self.points += region.points();
        self.boxes.push(region);
        Ok(())
    }

    fn covers(&self, region: &Region, total: u64) -> bool {
        if self.points == total {
            return true;
        }
        let want = region.points();
        let mut have = 0;
        for b in self.boxes.iter().rev() {
            have += b.intersect(region).points();
            if have >= want {
                return true;
            }
        }
        have >= want
    }
}

/// What a buffer holds.
#[derive(Clone, Debug)]
enum Content {
    Nothing,
    /// A finished flat tensor.
    Flat(NodeIx),
    /// A reduction in progress.
    Partial(NodeIx),
    /// A box of a map.
    Window(NodeIx, Region),
    /// Parts of a whole map.
    Stored(NodeIx, Boxes),
}

struct Judge<'a> {
    plan: &'a Plan,
    content: Vec<Content>,
    /// Other buffers that share bytes with each buffer.
    clashes: Vec<Vec<BufferIx>>,
    host: Vec<Option<Boxes>>,
    released: Vec<bool>,
    host_bytes: u64,
    /// Per stage being run: position of each node.
    stage: Option<u32>,
    at: HashMap<NodeIx, usize>,
    domain: HashMap<NodeIx, Boxes>,
    updated: Vec<bool>,
}

impl<'a> Judge<'a> {
    fn new(plan: &'a Plan) -> Result<Self, String> {
        let n = plan.buffers.len();
        let cap = plan.budget.device_bytes;
        let mut by_offset: Vec<usize> = (0..n).collect();
        by_offset.sort_by_key(|&i| plan.buffers[i].offset);
        let mut clashes = vec![Vec::new(); n];
        for (k, &i) in by_offset.iter().enumerate() {
            let a = &plan.buffers[i];
            let end = a.offset.checked_add(a.bytes).ok_or("an offset overflows")?;
            if !a.offset.is_multiple_of(ALIGN) {
                return Err(format!(
                    "buffer {i} at {} is not aligned to {ALIGN}",
                    a.offset
                ));
            }
            if end > cap {
                return Err(format!(
                    "buffer {i} ends at {end}, beyond the cap of {cap} bytes"
                ));
            }
            for &j in &by_offset[k + 1..] {
                let b = &plan.buffers[j];
                if b.offset >= end {
                    break;
                }
                if b.bytes > 0 && a.bytes > 0 {
                    clashes[i].push(BufferIx(j as u32));
                    clashes[j].push(BufferIx(i as u32));
                }
            }
        }
        let mut judge = Judge {
            plan,
            content: vec![Content::Nothing; n],
            clashes,
            host: vec![None; plan.host.len()],
            released: vec![false; plan.host.len()],
            host_bytes: 0,
            stage: None,
            at: HashMap::new(),
            domain: HashMap::new(),
            updated: vec![false; plan.program.updates.len()],
        };
        judge.check_shape()?;
        for node in plan.program.indices() {
            let this = plan.program.node(node);
            if this.op.is_leaf() && !this.ty.is_map() {
                let b = judge.flat_home(node)?;
                judge.write(b)?;
                judge.content[b.0 as usize] = Content::Flat(node);
            }
        }
        for (update, slots) in plan.program.updates.iter().zip(&plan.states) {
            for &b in slots {
                judge.roomy(b, plan.program.node(update.param).ty.bytes())?;
                judge.write(b)?;
                judge.content[b.0 as usize] = Content::Flat(update.param);
            }
        }
        Ok(judge)
    }

    /// The plan's own structure: indices in range, stages that close over what
    /// they supply.
    fn check_shape(&self) -> Result<(), String> {
        let plan = self.plan;
        let n = plan.program.nodes.len();
        if plan.flat_home.len() != n
            || plan.states.len() != plan.program.updates.len()
            || plan
                .states
                .iter()
                .any(|s| s.len() != plan.program.state_slots)
        {
            return Err("a table of the plan has the wrong length".to_owned());
        }
        for (s, stage) in plan.stages.iter().enumerate() {
            if stage.items.iter().any(|i| i.node.ix() >= n) {
                return Err(format!("stage {s} names a node that does not exist"));
            }
            if !stage.grid.is_empty() && stage.grid.len() != plan.program.n_axes() {
                return Err(format!("stage {s} cuts {} axes", stage.grid.len()));
            }
            let carried = stage
                .grid
                .iter()
                .filter(|g| g.policy == crate::AxisPolicy::Carry);
            if carried.count() > 1 || stage.grid.iter().any(|g| g.tile == 0 || g.extent == 0) {
                return Err(format!("stage {s} has no valid grid"));
            }
            let body = stage.body(&plan.program);
            let same = body.items.len() == stage.items.len()
                && body
                    .items
                    .iter()
                    .zip(&stage.items)
                    .all(|(a, b)| a.node == b.node && a.role == Role::from(b.role));
            if !same {
                return Err(format!(
                    "stage {s} is not closed: an item is missing or idle"
                ));
            }
            let any_map = body.items.iter().any(|i| i.role != Role::Flat);
            if any_map == stage.grid.is_empty() {
                return Err(format!(
                    "stage {s} has maps but no grid, or a grid but no maps"
                ));
            }
        }
        Ok(())
    }

    fn describe(&self, instr: &Instr) -> String {
        let name = |at: &At| {
            let items = &self.plan.stages[at.stage as usize].items;
            let node = self.plan.program.node(items[at.item as usize].node);
            format!("stage {} {}", at.stage, node.name)
        };
        match instr {
            Instr::Begin { at } => format!("begin {}", name(at)),
            Instr::Slide { at, keep } => format!("slide {} {keep:?}", name(at)),
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

    fn step(&mut self, instr: &Instr) -> Result<(), String> {
        match *instr {
            Instr::Begin { at } => {
                let item = self.enter(at);
                let n = item.node;
                let b = match (item.accumulator, item.value) {
                    (Some(b), _) => {
                        let node = self.plan.program.node(n);
                        if let sstep_autodiff::ReductionState::F64(count) =
                            node.op.reduction_state(&node.ty)
                        {
                            self.roomy(b, 8 * count as u64)?;
                        }
                        b
                    }
                    (None, Value::Flat(b)) => b,
                    _ => return Err("a reduction has nowhere to accumulate".to_owned()),
                };
                self.write(b)?;
                self.content[b.0 as usize] = Content::Partial(n);
                self.domain.insert(n, Boxes::default());
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
            Instr::Fetch {
                at,
                region,
                present,
            } => {
                let item = self.enter(at);
                match item.role {
                    ItemRole::Supply(Home::Host(h)) => self.host_has(h, item.node, &region)?,
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
                self.scratch()?;
                self.put(at, region, present)
            }
            Instr::Store { at, region, home } => {
                let item = self.enter(at);
                self.holds(item.node, &region)?;
                self.store(item.node, region, home)
            }
            Instr::Accumulate { at, region } => {
                let item = self.enter(at);
                let n = item.node;
                let b = match (item.accumulator, item.value) {
                    (Some(b), _) | (None, Value::Flat(b)) => b,
                    _ => return Err("a reduction has nowhere to accumulate".to_owned()),
                };
                if !matches!(self.content[b.0 as usize], Content::Partial(m) if m == n) {
                    return Err("its accumulator was overwritten or never begun".to_owned());
                }
                self.reads(n, &region)?;
                self.scratch()?;
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
                let from = item.accumulator.unwrap_or(b);
                if !matches!(self.content[from.0 as usize], Content::Partial(m) if m == n) {
                    return Err("its accumulator was overwritten".to_owned());
                }
                self.finish_flat(n, b)
            }
            Instr::Flat { at } => {
                let item = self.enter(at);
                self.reads(item.node, &Region::new(&[]))?;
                self.scratch()?;
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
                self.has_flat(u.param)?;
                self.has_flat(u.grad)?;
                for &b in &self.plan.states[update as usize] {
                    if !matches!(self.content[b.0 as usize], Content::Flat(n) if n == u.param) {
                        return Err("optimiser state was overwritten".to_owned());
                    }
                }
                self.updated[update as usize] = true;
                Ok(())
            }
        }
    }

    fn end(&self) -> Result<(), String> {
        if let Some(u) = self.updated.iter().position(|done| !done) {
            return Err(format!("update {u} never ran"));
        }
        for &o in &self.plan.program.outputs {
            let node = self.plan.program.node(o);
            if !node.ty.is_map() {
                self.has_flat(o)
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
    fn enter(&mut self, at: At) -> &'a crate::plan::StageItem {
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

    /// Everything that shares bytes with `b` is lost.
    fn write(&mut self, b: BufferIx) -> Result<(), String> {
        for clash in &self.clashes[b.0 as usize] {
            self.content[clash.0 as usize] = Content::Nothing;
        }
        Ok(())
    }

    fn scratch(&mut self) -> Result<(), String> {
        match self.plan.workspace {
            Some(b) => self.write(b),
            None => Ok(()),
        }
    }

    fn roomy(&self, b: BufferIx, bytes: u64) -> Result<(), String> {
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

    fn flat_home(&self, n: NodeIx) -> Result<BufferIx, String> {
        let name = &self.plan.program.node(n).name;
        let b = self.plan.flat_home[n.ix()].ok_or_else(|| format!("{name} has no buffer"))?;
        self.roomy(b, self.plan.program.node(n).ty.bytes())?;
        Ok(b)
    }

    fn has_flat(&self, n: NodeIx) -> Result<(), String> {
        let b = self.flat_home(n)?;
        match self.content[b.0 as usize] {
            Content::Flat(m) if m == n => Ok(()),
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

    /// Whether all that `n` reads for `region` is there.
    fn reads(&self, n: NodeIx, region: &Region) -> Result<(), String> {
        let program = &self.plan.program;
        let node = program.node(n);
        let tys = program.input_tys(n);
        for (i, &input) in node.inputs.iter().enumerate() {
            if !tys[i].is_map() {
                self.has_flat(input)?;
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
                self.holds(input, &need)?;
            }
        }
        Ok(())
    }

    /// Whether the running stage has `region` of map `n`.
    fn holds(&self, n: NodeIx, region: &Region) -> Result<(), String> {
        let stage = &self.plan.stages[self.stage.ok_or("no stage runs")? as usize];
        let name = &self.plan.program.node(n).name;
        let item = self
            .at
            .get(&n)
            .ok_or_else(|| format!("{name} is not in the stage"))?;
        let held = match stage.items[*item].value {
            Value::Window { buffer, .. } => match &self.content[buffer.0 as usize] {
                Content::Window(m, held) if *m == n => held.contains(region),
                _ => false,
            },
            Value::Whole(b) => self.stored_has(b, n, region),
            Value::Flat(_) => false,
        };
        if held {
            Ok(())
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
                let mut points = 1;
                for (axis, cap) in capacity.iter().enumerate().take(ty.n_axes()) {
                    points *= *cap as u64;
                    if present.span(axis).len() > *cap {
                        return Err(format!(
                            "{present:?} passes the window's extents {capacity:?}"
                        ));
                    }
                }
                let point_bytes = (ty.shape.channels() * ty.dtype.bytes()) as u64;
                self.roomy(buffer, points * point_bytes)?;
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
            Home::Source => Err("a source cannot be written".to_owned()),
        }
    }
}
