//! When each buffer of a plan is read and written: a second opinion on
//! lifetimes, from the instructions alone.

use std::collections::{BTreeSet, HashMap};
use std::ops::ControlFlow;

use sstep_planner::{At, BufferIx, DiskIx, Home, Instr, ItemRole, NodeIx, Plan, StageItem, Value};

/// Reads and writes of one buffer, or of a tensor on disk, as instruction numbers, ascending. The state
/// before the first instruction is number 0, the end comes after the last.
#[derive(Clone, Debug, Default)]
struct Uses {
    reads: Vec<u64>,
    writes: Vec<u64>,
}

impl Uses {
    /// Whether sharing bytes loses a value: something is written to `other` while
    /// this holds what will still be read, or by what reads it.
    fn is_clobbered_by(&self, other: &Uses) -> bool {
        self.reads.iter().any(|&read| {
            let before = self.writes.partition_point(|&w| w < read);
            let Some(&written) = before.checked_sub(1).and_then(|i| self.writes.get(i)) else {
                return false;
            };
            let next = other.writes.partition_point(|&w| w < written);
            other.writes.get(next).is_some_and(|&w| w <= read)
        })
    }
}

/// All uses of all buffers, and of host tensors.
pub struct Events {
    uses: Vec<Uses>,
    /// First store and release of each host tensor.
    host: Vec<(Option<u64>, u64)>,
    disk: Vec<Uses>,
    /// Per stage: flat tensors and stored maps that some instruction reads.
    pub reads: Vec<BTreeSet<NodeIx>>,
}

impl Events {
    pub fn new(plan: &Plan) -> Events {
        let mut walk = Walk {
            plan,
            uses: vec![Uses::default(); plan.buffers.len()],
            host: vec![(None, u64::MAX); plan.host.len()],
            disk: vec![Uses::default(); plan.disk.len()],
            reads: vec![BTreeSet::new(); plan.stages.len()],
            now: 0,
            stage: None,
            values: HashMap::new(),
        };
        walk.start();
        let _ = plan.instructions(|instr| {
            walk.now += 1;
            walk.step(&instr);
            ControlFlow::<()>::Continue(())
        });
        walk.now += 1;
        walk.end();
        Events {
            uses: walk.uses,
            host: walk.host,
            disk: walk.disk,
            reads: walk.reads,
        }
    }

    /// Whether the buffer is ever written, other than before the first
    /// instruction, or read.
    pub fn is_used(&self, b: BufferIx) -> bool {
        let uses = &self.uses[b.0 as usize];
        !uses.reads.is_empty() || uses.writes.iter().any(|&w| w > 0)
    }

    /// Whether sharing bytes loses a value: something is written to `b` while
    /// `a` holds what will still be read, or by what reads it.
    pub fn clobbers(&self, a: BufferIx, b: BufferIx) -> bool {
        self.uses[a.0 as usize].is_clobbered_by(&self.uses[b.0 as usize])
    }

    /// The same for two tensors on disk.
    pub fn clobbers_on_disk(&self, a: usize, b: usize) -> bool {
        self.disk[a].is_clobbered_by(&self.disk[b])
    }

    /// Whether a tensor on disk is ever written.
    pub fn is_spilled(&self, disk: usize) -> bool {
        !self.disk[disk].writes.is_empty()
    }

    /// Whether a host tensor is ever written.
    pub fn is_stored(&self, host: usize) -> bool {
        self.host[host].0.is_some()
    }

    /// Most host bytes held at once.
    pub fn host_peak_bytes(&self, plan: &Plan) -> u64 {
        let from = self.host.iter().filter_map(|(from, _)| *from);
        let held = |now: u64| {
            let held = self.host.iter().zip(&plan.host);
            let held = held.filter(|((from, to), _)| from.is_some_and(|f| f <= now) && now < *to);
            held.map(|(_, h)| h.bytes).sum()
        };
        from.map(held).max().unwrap_or(0)
    }
}

struct Walk<'a> {
    plan: &'a Plan,
    uses: Vec<Uses>,
    host: Vec<(Option<u64>, u64)>,
    disk: Vec<Uses>,
    reads: Vec<BTreeSet<NodeIx>>,
    now: u64,
    stage: Option<u32>,
    /// Buffer of each node in the running stage, and whether it is supplied.
    values: HashMap<NodeIx, (BufferIx, bool)>,
}

impl Walk<'_> {
    fn read(&mut self, b: BufferIx) {
        self.uses[b.0 as usize].reads.push(self.now);
    }

    fn write(&mut self, b: BufferIx) {
        self.uses[b.0 as usize].writes.push(self.now);
    }

    /// Adds to what is there.
    fn extend(&mut self, b: BufferIx) {
        if self.uses[b.0 as usize].writes.iter().any(|&w| w > 0) {
            self.read(b);
        }
        self.write(b);
    }

    /// Adds to what is on disk.
    fn spill(&mut self, d: DiskIx) {
        let uses = &mut self.disk[d.0 as usize];
        if !uses.writes.is_empty() {
            uses.reads.push(self.now);
        }
        uses.writes.push(self.now);
    }

    fn start(&mut self) {
        let plan = self.plan;
        for n in self.leaves() {
            self.write(self.flat(n));
        }
        for &b in plan.states.iter().flatten() {
            self.write(b);
        }
    }

    /// Outputs are handed back; leaves and optimiser state serve the next step.
    fn end(&mut self) {
        let plan = self.plan;
        let outputs = plan.program.outputs.iter().copied();
        let flat = outputs.filter(|&o| !plan.program.node(o).ty.is_map());
        for n in self.leaves().into_iter().chain(flat) {
            self.read(self.flat(n));
        }
        for &b in plan.states.iter().flatten() {
            self.read(b);
        }
        for (_, home) in &plan.map_outputs {
            match *home {
                Home::Device(b) => self.read(b),
                Home::Disk(d) => self.disk[d.0 as usize].reads.push(self.now),
                Home::Host(_) | Home::Source => {}
            }
        }
    }

    fn leaves(&self) -> Vec<NodeIx> {
        let program = &self.plan.program;
        let flat = |n: &NodeIx| program.node(*n).op.is_leaf() && !program.node(*n).ty.is_map();
        program.indices().filter(flat).collect()
    }

    fn flat(&self, n: NodeIx) -> BufferIx {
        self.plan.flat_home[n.ix()].expect("a flat tensor has a buffer")
    }

    fn own(&mut self, at: At) -> BufferIx {
        let items = &self.plan.stages[at.stage as usize].items;
        if self.stage != Some(at.stage) {
            self.stage = Some(at.stage);
            let value = |i: &StageItem| {
                let supplied = matches!(i.role, ItemRole::Supply(_));
                (i.node, (buffer_of(&i.value), supplied))
            };
            self.values = items.iter().map(value).collect();
        }
        buffer_of(&items[at.item as usize].value)
    }

    fn inputs(&mut self, at: At) {
        self.own(at);
        let n = self.plan.stages[at.stage as usize].items[at.item as usize].node;
        for &input in &self.plan.program.node(n).inputs {
            let (b, supplied) = if self.plan.program.node(input).ty.is_map() {
                self.values[&input]
            } else {
                (self.flat(input), true)
            };
            self.read(b);
            if supplied {
                self.reads[at.stage as usize].insert(input);
            }
        }
    }

    fn scratch(&mut self) {
        if let Some(b) = self.plan.workspace {
            self.write(b);
        }
    }

    fn step(&mut self, instr: &Instr) {
        let plan = self.plan;
        let item = |at: At| &plan.stages[at.stage as usize].items[at.item as usize];
        match *instr {
            Instr::Begin { at } => {
                let own = self.own(at);
                self.write(item(at).accumulator.unwrap_or(own));
            }
            Instr::Slide { at, .. } => {
                let own = self.own(at);
                self.read(own);
                self.write(own);
            }
            Instr::Prefetch { at, .. } => {
                let staging = item(at).staged_fetch();
                self.write(staging.expect("a prefetch has a staging buffer"));
            }
            Instr::Fetch {
                at,
                region,
                present,
            }
            | Instr::Compute {
                at,
                region,
                present,
            } => {
                if matches!(instr, Instr::Compute { .. }) {
                    self.inputs(at);
                    self.scratch();
                }
                let own = self.own(at);
                if matches!(instr, Instr::Fetch { .. }) {
                    if let Some(staging) = item(at).staged_fetch() {
                        self.read(staging);
                    }
                    self.reads[at.stage as usize].insert(item(at).node);
                    if let ItemRole::Supply(Home::Disk(d)) = item(at).role {
                        self.disk[d.0 as usize].reads.push(self.now);
                    }
                }
                let whole = matches!(item(at).value, Value::Whole(_));
                if whole || region != present {
                    self.extend(own);
                } else {
                    self.write(own);
                }
            }
            Instr::Store { at, home, .. } => {
                let own = self.own(at);
                self.read(own);
                match home {
                    Home::Device(b) => self.extend(b),
                    Home::Host(h) => {
                        if let Some(staging) = item(at).staged_store(home) {
                            self.write(staging);
                        }
                        self.host[h.0 as usize].0.get_or_insert(self.now);
                    }
                    Home::Disk(d) => self.spill(d),
                    Home::Source => {}
                }
            }
            Instr::Accumulate { at, .. } => {
                self.inputs(at);
                self.scratch();
                let own = self.own(at);
                self.extend(item(at).accumulator.unwrap_or(own));
            }
            Instr::Finish { at } => {
                let own = self.own(at);
                self.read(item(at).accumulator.unwrap_or(own));
                self.write(own);
            }
            Instr::Flat { at } => {
                self.inputs(at);
                self.scratch();
                let own = self.own(at);
                self.write(own);
            }
            Instr::Release { tensor } => self.host[tensor.0 as usize].1 = self.now,
            Instr::Update { update } => {
                let u = plan.program.updates[update as usize];
                self.read(self.flat(u.grad));
                let param = self.flat(u.param);
                for &b in [param].iter().chain(&plan.states[update as usize]) {
                    self.extend(b);
                }
            }
        }
    }
}

/// Where a value is.
pub fn buffer_of(value: &Value) -> BufferIx {
    match *value {
        Value::Window { buffer, .. } => buffer,
        Value::Whole(b) | Value::Flat(b) => b,
    }
}
