//! Holding a plan against the untiled reference, on any tape.

#![allow(dead_code, reason = "each test binary uses its own part")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

pub mod events;
pub mod narrow;
mod net;
pub mod nets;

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::ProptestConfig;
use proptest::test_runner::RngSeed;
use sstep_autodiff::{DType, Op, Tape};
use sstep_executor::source::ArraySource;
use sstep_executor::{Executor, Feed, Feeds, Measured, StepHow, Tensor, reference};
use sstep_kernels::Real;
use sstep_planner::{Budget, Plan};

pub use net::Net;

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
    scaled: None,
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
