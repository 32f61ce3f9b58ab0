//! Holding a plan against the untiled reference, on any tape.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

pub mod events;
pub mod narrow;
pub mod nets;

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::ProptestConfig;
use proptest::test_runner::RngSeed;
use sstep_autodiff::{DType, NodeId, Op, Tape, backward, backward_scaled};
use sstep_executor::source::ArraySource;
use sstep_executor::{Executor, Feed, Feeds, Measured, StepHow, Tensor, reference};
use sstep_kernels::Real;
use sstep_planner::{Budget, Machine, Plan, PlanError, Program, StepSpec, Strategy, plan};

/// Tensors by name.
pub type Tensors<T> = BTreeMap<String, Tensor<T>>;

/// Host memory that never runs out.
pub const AMPLE: u64 = 1 << 40;

/// How a property is run: on so many cases that are the same in every run.
/// `SSTEP_CASES=2000` asks for as many, new ones each time.
pub fn config(cases: u32) -> ProptestConfig {
    let asked = std::env::var("SSTEP_CASES").ok();
    let default = ProptestConfig::default();
    ProptestConfig {
        cases: asked.as_deref().map_or(cases, |v| {
            v.parse().expect("SSTEP_CASES is a number of cases")
        }),
        rng_seed: match asked {
            Some(_) => default.rng_seed,
            None => RngSeed::Fixed(1),
        },
        max_shrink_iters: 400,
        failure_persistence: None,
        ..default
    }
}

/// A small deterministic generator: splitmix64 (Steele et al., 2014).
pub struct Rng(pub u64);

impl Rng {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.bits() % n as u64) as usize
    }

    /// Uniform in `[-1, 1)`.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// A net with its loss and gradients on one tape.
pub struct Net {
    pub tape: Tape,
    pub loss: NodeId,
    pub spec: StepSpec,
    pub machine: Machine,
}

impl Net {
    /// Appends gradients and asks for all of them.
    pub fn new(tape: Tape, loss: NodeId) -> Net {
        Net::scaled(tape, loss, 1.0)
    }

    /// The same from so many times the loss.
    pub fn scaled(mut tape: Tape, loss: NodeId, scale: f64) -> Net {
        let grads = backward_scaled(&mut tape, loss, scale).expect("differentiable");
        let mut spec = StepSpec {
            outputs: vec![loss],
            ..StepSpec::default()
        };
        spec.outputs.extend(grads.iter().map(|(_, g)| g));
        let machine = Machine::cpu_default();
        Net {
            tape,
            loss,
            spec,
            machine,
        }
    }

    /// Appends gradients and asks for updates of all parameters by a rule with
    /// `state_slots` tensors of state each. The loss comes last.
    pub fn training(mut tape: Tape, state_slots: usize) -> Net {
        let loss = *tape.order().last().expect("a tape with lines");
        let grads = backward(&mut tape, loss).expect("differentiable");
        let updates = grads.iter().collect();
        let spec = StepSpec {
            outputs: vec![loss],
            updates,
            state_slots,
        };
        let machine = Machine::cpu_default();
        Net {
            tape,
            loss,
            spec,
            machine,
        }
    }

    /// A net from the text form without its header. The last line defines the
    /// loss; if that is no single number, the mean squared difference of it and
    /// an input `target` is taken.
    pub fn parse(dtype: &str, text: &str) -> Net {
        let mut tape = Tape::parse(&format!("tape v1 {dtype}\n{text}")).expect(text);
        let mut loss = *tape.order().last().expect("a tape with lines");
        let shape = tape.ty(loss).shape;
        if shape.elems() != 1 || tape.ty(loss).is_map() {
            let target = tape.input("target", shape.dims()).unwrap();
            loss = tape.mse(loss, target).expect(text);
        }
        Net::new(tape, loss)
    }

    /// The same with another node handed back.
    pub fn and(mut self, name: &str) -> Net {
        self.spec.outputs.push(self.tape.by_name(name).expect(name));
        self
    }

    /// The same on a machine whose copies run beside its kernels.
    pub fn with_overlap(mut self) -> Net {
        self.machine.copies_overlap = true;
        self
    }

    /// A net of several stages that, in its plan, fetch maps of `rows` rows from the host
    /// tile by tile, ahead, and store them.
    pub fn ahead(rows: usize) -> (Net, Plan) {
        let text = format!(
            "x = input [1, 2, {rows}, 32]
             w1 = param [6, 2, 3, 3]
             g1 = param [6]
             b1 = param [6]
             w2 = param [6, 6, 3, 3]
             g2 = param [6]
             b2 = param [6]
             c1 = conv(x, w1) pad=1
             m1 = moments(c1) groups=2
             n1 = normalise(c1, m1, g1, b1) groups=2 eps=1e-5
             r1 = relu(n1)
             c2 = conv(r1, w2) pad=1
             m2 = moments(c2) groups=2
             n2 = normalise(c2, m2, g2, b2) groups=2 eps=1e-5
             r2 = relu(n2)
             s = sum_map(r2)"
        );
        let net = Net::parse("f64", &text).with_overlap();
        let budget = Budget {
            device_bytes: 96 << 10,
            host_bytes: AMPLE,
            disk_bytes: 0,
        };
        let plan = net.plan(budget, Strategy::OffloadAll).expect("a plan");
        (net, plan)
    }

    pub fn plan(&self, budget: Budget, strategy: Strategy) -> Result<Plan, PlanError> {
        plan(&self.tape, &self.spec, &self.machine, budget, strategy)
    }

    /// The smallest device cap found, `None` if the host is too small for any.
    pub fn least(&self, host_bytes: u64, strategy: Strategy) -> Option<u64> {
        let beyond = Budget {
            host_bytes,
            ..Budget::default()
        };
        self.least_in(beyond, strategy)
    }

    /// The same with these caps of host and disk.
    pub fn least_in(&self, beyond: Budget, strategy: Strategy) -> Option<u64> {
        let device_bytes = 1;
        match self.plan(
            Budget {
                device_bytes,
                ..beyond
            },
            strategy,
        ) {
            Err(PlanError::Infeasible { smallest_bytes, .. }) => Some(smallest_bytes),
            Err(PlanError::HostTooSmall { .. }) if beyond.host_bytes < AMPLE => None,
            other => panic!("{strategy}: a cap of one byte gave {other:?}"),
        }
    }

    /// A plan under a device cap between the least (`squeeze` 0) and all that can be used
    /// (1), with these caps of host and disk; `None` where the strategy has none.
    pub fn plan_beyond(&self, beyond: Budget, strategy: Strategy, squeeze: f64) -> Option<Plan> {
        let least = self.least_in(beyond, strategy)?;
        let room = self.all_bytes().saturating_sub(least);
        let device_bytes = least + (room as f64 * squeeze) as u64;
        match self.plan(
            Budget {
                device_bytes,
                ..beyond
            },
            strategy,
        ) {
            Ok(plan) => Some(plan),
            Err(PlanError::HostTooSmall { .. }) if beyond.host_bytes < AMPLE => None,
            Err(e) => panic!("{strategy} at {device_bytes}: {e}"),
        }
    }

    /// The program that the reference runs: as on the tape, not rewritten.
    pub fn program(&self) -> Program {
        Program::new(&self.tape, &self.spec).expect("a program")
    }

    /// Bytes of all tensors together: no plan needs more.
    pub fn all_bytes(&self) -> u64 {
        let each = self
            .program()
            .nodes
            .into_iter()
            .map(|n| n.ty.bytes().next_multiple_of(64));
        each.sum::<u64>() * 2
    }
}

/// What there is beyond the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tiers {
    Nothing,
    Host,
    /// No host, and a disk for everything.
    Disk,
    /// A host with too little room for most, and a disk for the rest.
    TinyHostAndDisk,
}

impl Tiers {
    /// The caps, the device's left open.
    pub fn budget(self, net: &Net) -> Budget {
        let (host_bytes, disk_bytes) = match self {
            Tiers::Nothing => (0, 0),
            Tiers::Host => (AMPLE, 0),
            Tiers::Disk => (0, net.all_bytes()),
            Tiers::TinyHostAndDisk => (net.all_bytes() / 40, net.all_bytes()),
        };
        Budget {
            device_bytes: 0,
            host_bytes,
            disk_bytes,
        }
    }
}

pub fn tiers() -> impl proptest::strategy::Strategy<Value = Tiers> {
    use Tiers::{Disk, Host, Nothing, TinyHostAndDisk};
    proptest::sample::select(vec![Nothing, Host, Disk, TinyHostAndDisk])
}

/// Random values for every leaf of a tape, told by name: `labels` are classes
/// below 3, a `target` lies in `[0, 1]`, a frozen parameter `v…` is a variance;
/// weights are scaled so that values neither grow nor vanish from layer to layer.
pub fn leaves<T: Real>(tape: &Tape, seed: u64) -> Tensors<T> {
    let mut rng = Rng(seed);
    let mut out = BTreeMap::new();
    for &id in tape.order() {
        let node = tape.node(id);
        let is_param = match node.op {
            Op::Input { .. } => false,
            Op::Param { .. } => true,
            _ => continue,
        };
        let n = node.ty.shape.elems();
        let fan: usize = node.ty.shape.dims().iter().skip(1).product();
        let is_vector = node.ty.shape.rank() == 1;
        let value = |u: f64| match node.name.as_str() {
            "labels" => ((u + 1.0) * 1.5).floor().clamp(0.0, 2.0),
            "target" => (u + 1.0) / 2.0,
            name if is_param && name.starts_with('v') && is_vector => 1.0 + 0.5 * u,
            _ if is_param && is_vector => u + 0.5,
            _ if is_param => u * (1.5 / fan as f64).sqrt(),
            _ => u,
        };
        let data = (0..n).map(|_| T::from_f64(value(rng.unit()))).collect();
        out.insert(node.name.clone(), Tensor::new(node.ty.shape, data));
    }
    out
}

/// The same tensors in another precision.
pub fn cast<T: Real, U: Real>(tensors: &Tensors<T>) -> Tensors<U> {
    let one = |t: &Tensor<T>| {
        Tensor::new(
            t.shape,
            t.data.iter().map(|v| U::from_f64(v.to_f64())).collect(),
        )
    };
    tensors
        .iter()
        .map(|(name, t)| (name.clone(), one(t)))
        .collect()
}

pub const HOW: StepHow = StepHow {
    step: 3,
    seed: 7,
    update: None,
};

/// An executor with its parameters set, and feeds for all inputs.
pub fn ready<T: Real>(plan: Plan, leaves: &Tensors<T>) -> (Executor<T>, Feeds<T>) {
    ready_on(Executor::new(plan).expect("an arena"), leaves)
}

/// The same for an executor on any device.
pub fn ready_on<T: Real>(
    mut executor: Executor<T>,
    leaves: &Tensors<T>,
) -> (Executor<T>, Feeds<T>) {
    let inputs: Vec<(String, bool)> = (executor.plan().program.nodes.iter())
        .filter(|n| matches!(n.op, Op::Input { .. }))
        .map(|n| (n.name.clone(), n.ty.is_map()))
        .collect();
    for (name, _) in executor.params() {
        executor
            .set_param(&name, &leaves[&name].data)
            .expect("a parameter");
    }
    let mut feeds = Feeds::new();
    for (name, is_map) in inputs {
        let t = &leaves[&name];
        let feed = if is_map {
            Feed::Source(Arc::new(
                ArraySource::new(t.shape, t.data.clone()).expect("an array"),
            ))
        } else {
            Feed::Flat(t.data.clone())
        };
        feeds.insert(name, feed);
    }
    (executor, feeds)
}

/// Carries a plan out on the given leaves.
pub fn execute<T: Real>(plan: Plan, leaves: &Tensors<T>) -> (Tensors<T>, Measured) {
    let (mut executor, feeds) = ready(plan, leaves);
    let report = executor.step(&feeds, &HOW, &mut |_| {}).expect("a step");
    (report.outputs, report.measured)
}

/// Carries a plan out and holds what it took against what was promised.
pub fn execute_as_promised<T: Real>(plan: Plan, leaves: &Tensors<T>) -> Tensors<T> {
    let (promised, cap) = (plan.predicted, plan.budget);
    assert!(promised.peak_bytes <= cap.device_bytes);
    assert!(promised.host_peak_bytes <= cap.host_bytes);
    assert!(promised.disk_peak_bytes <= cap.disk_bytes);
    let (outputs, measured) = execute(plan, leaves);
    assert!(measured.peak_bytes <= promised.peak_bytes);
    assert!(measured.host_peak_bytes <= promised.host_peak_bytes);
    assert!(measured.disk_peak_bytes <= promised.disk_peak_bytes);
    assert_eq!(measured.disk_read_bytes, promised.disk_read_bytes);
    assert_eq!(measured.disk_write_bytes, promised.disk_write_bytes);
    assert_eq!(measured.h2d_bytes, promised.h2d_bytes);
    assert_eq!(measured.d2h_bytes, promised.d2h_bytes);
    assert_eq!(measured.source_bytes, promised.source_bytes);
    outputs
}

/// Runs the untiled reference of a net.
pub fn oracle<T: Real>(net: &Net, leaves: &Tensors<T>) -> Tensors<T> {
    reference(&net.program(), leaves, HOW.step, HOW.seed).expect("a reference")
}

/// Largest element of a tensor.
fn largest<T: Real>(t: &Tensor<T>) -> f64 {
    t.data.iter().map(|v| v.to_f64().abs()).fold(0.0, f64::max)
}

/// What differences of each tensor are relative to: its largest element, or a
/// thousandth of the largest gradient, where the true one vanishes.
fn scales<T: Real>(want: &Tensors<T>) -> BTreeMap<String, f64> {
    let floor = 1e-3 * want.values().map(largest).fold(0.0, f64::max);
    let one = |(name, t): (&String, &Tensor<T>)| (name.clone(), largest(t).max(floor).max(1e-30));
    want.iter().map(one).collect()
}

/// Largest difference of each tensor, relative to its scale.
pub fn differences<T: Real, U: Real>(got: &Tensors<T>, want: &Tensors<U>) -> BTreeMap<String, f64> {
    assert_eq!(
        got.keys().collect::<Vec<_>>(),
        want.keys().collect::<Vec<_>>()
    );
    let scales = scales(want);
    let one = |(name, w): (&String, &Tensor<U>)| {
        let mut worst = 0.0f64;
        for (a, b) in got[name].data.iter().zip(&w.data) {
            let e = (a.to_f64() - b.to_f64()).abs() / scales[name];
            worst = if e.is_nan() {
                f64::INFINITY
            } else {
                worst.max(e)
            };
        }
        (name.clone(), worst)
    };
    want.iter().map(one).collect()
}

/// What rounding may do to each tensor, in the same terms: a gradient that
/// vanishes (of a bias before a norm, say) is a sum whose terms cancel, and is
/// known to a number of units in the last place of the terms, not of itself. The
/// terms are many and their sizes unknown, so the largest gradient stands for
/// them; doubles have digits to spare for that.
pub fn roundings<T: Real>(want: &Tensors<T>) -> BTreeMap<String, f64> {
    let known = match T::DTYPE {
        DType::F64 => 1024.0 * f64::EPSILON,
        DType::F32 | DType::Bf16 | DType::F16 => 64.0 * f64::from(f32::EPSILON),
    };
    let terms = want.values().map(largest).fold(0.0, f64::max);
    let one = |(name, scale)| (name, known * terms / scale);
    scales(want).into_iter().map(one).collect()
}

/// The largest of [`differences`], and where.
pub fn worst<T: Real>(got: &Tensors<T>, want: &Tensors<T>) -> (f64, String) {
    let all = differences(got, want)
        .into_iter()
        .map(|(name, e)| (e, name));
    all.max_by(|a, b| a.0.total_cmp(&b.0)).expect("an output")
}
