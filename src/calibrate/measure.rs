//! How long a call takes on a device, timed around many of them.
//!
//! All goes through the executor's [`Backend`], as a step's calls do. A device may return
//! before it has computed: every bundle of calls ends with a wait, and is long enough for
//! that not to matter.

use rayon::prelude::*;
use sstep_autodiff::{DType, Form, Op, ReductionState, Region, Shape, Ty};
use sstep_executor::{Backend, Launch, Partial, Place};
use sstep_kernels::{Layout, Pace};

use super::CalibrateOptions;
use super::cases::Case;
use crate::Error;

/// Sets of operands that calls go round: about as many maps lie between two uses of
/// one in a step, so small tiles are found in the caches and large maps are not.
const MOST_SETS: u64 = 24;
/// FLOPs from which on memory makes no difference.
const SETS_FLOPS: f64 = 1e9;
/// Of every buffer.
const ALIGN_BYTES: u64 = 256;

/// A device to be measured, and the clock that it is measured by.
pub struct Subject<'a> {
    pub backend: &'a mut dyn Backend<f32>,
    /// Seconds since some moment.
    pub clock: &'a dyn Fn() -> f64,
    pub options: &'a CalibrateOptions,
}

impl Subject<'_> {
    /// Seconds of one call of a case, out of calls for a while; the first ones, which also
    /// touch memory for the first time, do not count.
    ///
    /// # Errors
    /// [`Error::Exec`] if the device fails.
    pub fn call_secs(&mut self, case: &Case) -> Result<f64, Error> {
        let operands = Operands::of(case, self.options);
        operands.fill(case, self.backend)?;
        let region = operands.region(case);
        self.repeat(operands.n_sets, |backend, turn| {
            operands.call(case, &region, backend, turn)
        })
    }

    /// Seconds of one of many calls, which go round `n_sets` sets of operands.
    ///
    /// # Errors
    /// Those of `call`, and of waiting.
    pub fn repeat(
        &mut self,
        n_sets: u64,
        mut call: impl FnMut(&mut dyn Backend<f32>, u64) -> Result<(), Error>,
    ) -> Result<f64, Error> {
        let mut turn = 0;
        let mut bundle = |this: &mut Self, n: u64| {
            let began = (this.clock)();
            for _ in 0..n {
                turn = (turn + 1) % n_sets;
                call(this.backend, turn)?;
            }
            this.backend.wait()?;
            Ok::<f64, Error>(((this.clock)() - began) / n as f64)
        };
        bundle(self, n_sets)?;
        let one = bundle(self, 1)?;
        // Short calls are timed in bundles that the clock can tell apart.
        let n = (self.options.bundle_secs / one.max(1e-9)).clamp(1.0, 1000.0) as u64;
        let mut best = one;
        let began = (self.clock)();
        while (self.clock)() - began < self.options.secs_per_entry {
            best = best.min(bundle(self, n)?);
        }
        Ok(best)
    }
}

/// Where the operands of a case lie in the arena: sets of them, one after the other.
pub struct Operands {
    base: u64,
    /// Of one set: inputs, result, and a reduction's doubles.
    offsets: Vec<u64>,
    set_bytes: u64,
    n_sets: u64,
    workspace_bytes: u64,
}

impl Operands {
    /// As many sets as calls go round, behind the scratch.
    pub fn of(case: &Case, options: &CalibrateOptions) -> Self {
        let one = Operands::one(case, options, options.workspace_bytes);
        let by_flops = (SETS_FLOPS / case.flops().max(1.0)) as u64;
        let by_bytes = options.sets_bytes / one.set_bytes.max(1);
        let most = match case {
            Case::Update(_) => 1,
            Case::Kernel { .. } | Case::Copy(_) => MOST_SETS,
        };
        Operands {
            n_sets: by_flops.min(by_bytes).clamp(1, most),
            ..one
        }
    }

    /// One set from an offset on.
    pub fn one(case: &Case, options: &CalibrateOptions, base: u64) -> Self {
        let sizes: Vec<u64> = match case {
            Case::Kernel { op, inputs, out } => {
                let state = match op.reduction_state(out) {
                    ReductionState::F64(n) => 8 * n as u64,
                    ReductionState::InPlace => 0,
                };
                let tys = inputs.iter().chain([out]);
                tys.map(Ty::bytes).chain([state]).collect()
            }
            // Parameter, gradient and two tensors of state.
            Case::Update(n) => vec![4 * *n as u64; 4],
            Case::Copy(n) => vec![map_of(*n).0.bytes(); 2],
        };
        let mut set_bytes = 0;
        let place = |bytes: u64| {
            let at = set_bytes;
            set_bytes += bytes.next_multiple_of(ALIGN_BYTES);
            at
        };
        let offsets = sizes.into_iter().map(place).collect();
        Operands {
            base: base.next_multiple_of(ALIGN_BYTES),
            offsets,
            set_bytes,
            n_sets: 1,
            workspace_bytes: options.workspace_bytes,
        }
    }

    /// Where the last set ends.
    pub fn end(&self) -> u64 {
        self.base + self.n_sets * self.set_bytes
    }

    fn place(&self, turn: u64, which: usize, ty: &Ty) -> Place {
        Place {
            offset: self.base + turn * self.set_bytes + self.offsets[which],
            layout: Layout::whole(ty),
        }
    }

    /// Writes numbers that no kernel is slow for to all inputs, and begins reductions.
    pub fn fill(&self, case: &Case, backend: &mut dyn Backend<f32>) -> Result<(), Error> {
        let tys: Vec<Ty> = match case {
            Case::Kernel { inputs, .. } => inputs.clone(),
            Case::Update(n) => vec![flat(*n); 4],
            Case::Copy(n) => vec![map_of(*n).0],
        };
        let labels = matches!(case, Case::Kernel { op, .. } if **op == Op::CrossEntropyGrad);
        for (i, ty) in tys.iter().enumerate() {
            let values = match (labels, i) {
                (true, 1) => vec![1.0; ty.shape.elems()],
                _ => numbers(ty.shape.elems(), i),
            };
            for turn in 0..self.n_sets {
                backend.write(&self.place(turn, i, ty), &values)?;
            }
        }
        if let Case::Kernel { op, inputs, out } = case
            && is_reduction(op, inputs, out)
        {
            for turn in 0..self.n_sets {
                backend.begin(op, &self.partial(turn, op, inputs, out), out)?;
            }
        }
        Ok(())
    }

    /// Where a reduction adds up.
    fn partial(&self, turn: u64, op: &Op, inputs: &[Ty], out: &Ty) -> Partial {
        match op.reduction_state(out) {
            ReductionState::InPlace => Partial::InPlace(self.place(turn, inputs.len(), out)),
            ReductionState::F64(len) => Partial::F64 {
                offset: self.place(turn, inputs.len() + 1, out).offset,
                len,
            },
        }
    }

    /// What a kernel is computed over.
    pub fn region(&self, case: &Case) -> Region {
        match case {
            Case::Kernel { op, inputs, out } => {
                let domain = op.domain(inputs, out).filter(|_| !out.is_map());
                Region::whole(domain.map_or(out, |d| &inputs[d]))
            }
            Case::Update(n) => Region::whole(&flat(*n)),
            Case::Copy(n) => Region::whole(&map_of(*n).0),
        }
    }

    pub fn call(
        &self,
        case: &Case,
        region: &Region,
        backend: &mut dyn Backend<f32>,
        turn: u64,
    ) -> Result<(), Error> {
        match case {
            Case::Kernel { op, inputs, out } => {
                let places: Vec<Place> = (inputs.iter().enumerate())
                    .map(|(i, ty)| self.place(turn, i, ty))
                    .collect();
                let launch = Launch {
                    op,
                    region: *region,
                    inputs: &places,
                    step: 0,
                    seed: 0,
                    workspace: Some((0, self.workspace_bytes)),
                };
                if is_reduction(op, inputs, out) {
                    let partial = self.partial(turn, op, inputs, out);
                    backend.accumulate(&launch, &partial, out)?;
                } else {
                    backend.compute(&launch, &self.place(turn, inputs.len(), out))?;
                }
            }
            Case::Update(n) => {
                let [param, grad, mean, square] = [0, 1, 2, 3].map(|i| self.place(0, i, &flat(*n)));
                let rule = crate::optim::adamw();
                let pace = Pace {
                    lr: 1e-3,
                    t: 1,
                    loss_scale: 1.0,
                };
                backend.update(&rule, &pace, &param, &grad, &[mean, square])?;
            }
            Case::Copy(n) => {
                let (map, _) = map_of(*n);
                let [from, to] = [0, 1].map(|i| self.place(turn, i, &map));
                backend.copy(&from, region, &to)?;
            }
        }
        Ok(())
    }
}

/// Whether an op is added up over its domain, tile by tile.
fn is_reduction(op: &Op, inputs: &[Ty], out: &Ty) -> bool {
    !out.is_map() && op.domain(inputs, out).is_some()
}

fn flat(n: usize) -> Ty {
    Ty {
        dtype: DType::F32,
        shape: Shape::new(&[n]),
        form: Form::Flat,
    }
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

/// Reproducible numbers in (0, 1).
fn numbers(n: usize, salt: usize) -> Vec<f32> {
    let value = |i: usize| {
        let hash = ((i + salt) as u32).wrapping_mul(2_654_435_761) >> 8;
        (hash as f32 + 1.0) / (1 << 24) as f32 * 0.99
    };
    (0..n).into_par_iter().map(value).collect()
}
