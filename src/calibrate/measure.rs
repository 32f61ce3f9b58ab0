//! How long a call takes.

use std::time::Instant;

use sstep_autodiff::{DType, Form, Op, ReductionState, Region, Shape, Ty};
use sstep_executor::{Backend, Cpu, Place};
use sstep_kernels::{Box4, In, Job, Layout, Out, State, UpdateRule, cpu, optim};

use super::CalibrateOptions;
use super::cases::Case;

/// Seconds of one call, out of calls for a while; the first ones, which also touch
/// memory for the first time, do not count. Short calls are timed together.
pub fn call_secs(case: &Case, options: &CalibrateOptions) -> f64 {
    let secs = options.secs_per_entry;
    let sets_bytes = options.sets_bytes as usize;
    match case {
        Case::Kernel { op, inputs, out } => kernel_secs(op, inputs, out, secs, sets_bytes),
        Case::Update(n) => {
            let rule = crate::optim::adamw();
            let mut values: Vec<Vec<f32>> = (0..4).map(|i| numbers(*n, i)).collect();
            repeat(secs, 1, || update(&rule, &mut values))
        }
        Case::Copy(n) => copy_secs(*n, secs, sets_bytes),
    }
}

fn update(rule: &UpdateRule, values: &mut [Vec<f32>]) {
    if let [param, grad, mean, square] = values {
        optim::update(rule, 1e-3, 1, param, grad, &mut [mean, square]);
    }
}

/// Sets of operands that calls go round: about as many maps lie between two uses of
/// one in a step, so small tiles are found in the caches and large maps are not.
const MOST_SETS: usize = 24;
/// FLOPs from which on memory makes no difference.
const SETS_FLOPS: f64 = 1e9;

/// Operands of a call.
#[derive(Clone)]
struct Operands {
    inputs: Vec<Vec<f32>>,
    result: Vec<f32>,
}

impl Operands {
    /// As many equal sets as are gone round, of about `sets_bytes` in all.
    fn sets(op: &Op, inputs: &[Ty], out: &Ty, sets_bytes: usize) -> Vec<Operands> {
        let labels = matches!(op, Op::CrossEntropyGrad);
        let values = |(i, ty): (usize, &Ty)| match (labels, i) {
            (true, 1) => vec![1.0; ty.shape.elems()],
            _ => numbers(ty.shape.elems(), i),
        };
        let one = Operands {
            inputs: inputs.iter().enumerate().map(values).collect(),
            result: vec![0.0; out.shape.elems()],
        };
        let elements: usize = one.inputs.iter().map(Vec::len).sum::<usize>() + one.result.len();
        let points = Region::whole(out).points() as f64;
        let flops = op.flops_per_point(inputs, out) * points;
        let by_flops = (SETS_FLOPS / flops.max(1.0)) as usize;
        let by_bytes = sets_bytes / (4 * elements);
        vec![one; by_flops.min(by_bytes).clamp(1, MOST_SETS)]
    }
}

fn kernel_secs(op: &Op, inputs: &[Ty], out: &Ty, secs: f64, sets_bytes: usize) -> f64 {
    let mut sets = Operands::sets(op, inputs, out, sets_bytes);
    let n_sets = sets.len();
    let mut workspace = vec![0; super::WORKSPACE_BYTES as usize];
    let domain = op.domain(inputs, out).filter(|_| !out.is_map());
    let region = Box4::lift(&Region::whole(domain.map_or(out, |d| &inputs[d])));
    let mut doubles = match op.reduction_state(out) {
        ReductionState::F64(n) if domain.is_some() => vec![0.0; n],
        _ => Vec::new(),
    };
    let mut turn = 0;
    let call = || {
        turn = (turn + 1) % n_sets;
        let set = &mut sets[turn];
        let views: Vec<In<'_, f32>> = (inputs.iter().zip(&set.inputs))
            .map(|(ty, values)| In::new(Layout::whole(ty), values))
            .collect();
        let job = Job {
            op,
            region,
            inputs: &views,
            step: 0,
            seed: 0,
            plain: false,
        };
        if domain.is_none() {
            let mut view = Out::new(Layout::whole(out), &mut set.result);
            cpu::run(&job, &mut view, &mut workspace);
        } else {
            let mut state = if doubles.is_empty() {
                State::InPlace(&mut set.result)
            } else {
                State::F64(&mut doubles)
            };
            cpu::accumulate(&job, &mut state, out, &mut workspace);
        }
    };
    repeat(secs, n_sets, call)
}

/// Copies between two maps of `n` elements in the arena.
fn copy_secs(n: usize, secs: f64, sets_bytes: usize) -> f64 {
    let (map, place) = map_of(n);
    let bytes = map.bytes().next_multiple_of(64);
    let n_sets = (sets_bytes / (2 * bytes as usize)).clamp(1, MOST_SETS);
    let Ok(mut device) = Cpu::new(2 * bytes * n_sets as u64) else {
        return f64::INFINITY;
    };
    let region = Region::whole(&map);
    let mut turn = 0;
    let mut outcome = Ok(());
    let secs = repeat(secs, n_sets, || {
        turn = (turn + 1) % n_sets as u64;
        let from = 2 * bytes * turn;
        if outcome.is_ok() {
            outcome =
                Backend::<f32>::copy(&mut device, &place(from), &region, &place(from + bytes));
        }
    });
    if outcome.is_ok() { secs } else { f64::INFINITY }
}

/// A map of about `n` elements, and where it lies from an offset in bytes.
pub fn map_of(n: usize) -> (Ty, impl Fn(u64) -> Place) {
    let channels = 16.min(n);
    let points = n / channels;
    let width = points.min(256);
    let map = Ty {
        dtype: DType::F32,
        shape: Shape::map(1, channels, &[points / width, width]),
        form: Form::Map,
    };
    let layout = Layout::whole(&map);
    (map, move |offset| Place { offset, layout })
}

/// Seconds of one of many calls, which go round `n_sets` sets of operands.
pub fn repeat(secs: f64, n_sets: usize, mut call: impl FnMut()) -> f64 {
    for _ in 0..n_sets {
        call();
    }
    let timed = Instant::now();
    call();
    let one = timed.elapsed().as_secs_f64();
    // Short calls are timed in bundles that the clock can tell apart.
    let bundle = (2e-4 / one.max(1e-9)).clamp(1.0, 1000.0) as usize;
    let mut best = one;
    let began = Instant::now();
    while began.elapsed().as_secs_f64() < secs {
        let timed = Instant::now();
        for _ in 0..bundle {
            call();
        }
        best = best.min(timed.elapsed().as_secs_f64() / bundle as f64);
    }
    best
}

/// Reproducible numbers in (0, 1).
fn numbers(n: usize, salt: usize) -> Vec<f32> {
    let value = |i: usize| {
        let hash = ((i + salt) as u32).wrapping_mul(2_654_435_761) >> 8;
        (hash as f32 + 1.0) / (1 << 24) as f32 * 0.99
    };
    (0..n).map(value).collect()
}
