//! Carrying a plan out, step after step.
//!
//! An [`Executor`] owns a plan and the arena. Parameters and optimiser state
//! stay in the arena between steps: they count towards the cap like everything
//! else.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use sstep_autodiff::{Op, Shape};
use sstep_kernels::{Element, Layout, Real, with_element};
use sstep_planner::{BufferIx, Home, NodeIx, Plan};

use crate::backend::{Backend, Place};
use crate::device::{Device, DeviceOptions};
use crate::disk::SpillFile;
use crate::error::ExecError;
use crate::host::HostPool;
use crate::interpret::{Interpreter, Measured, Progress, StepHow, Timings, inconsistent, is_fed};
use crate::source::TileSource;
use crate::tensor::Tensor;

/// A value for an input of the network.
#[derive(Clone)]
pub enum Feed<T> {
    /// A flat tensor's elements, in row-major order.
    Flat(Vec<T>),
    /// Where a map's regions come from.
    Source(Arc<dyn TileSource<T>>),
}

/// Values by name of the leaf.
pub type Feeds<T> = BTreeMap<String, Feed<T>>;

/// What a step gave and took.
#[derive(Clone, Debug)]
pub struct StepReport<T> {
    /// The program's outputs by node name.
    pub outputs: BTreeMap<String, Tensor<T>>,
    /// What it took.
    pub measured: Measured,
    /// Where its time went.
    pub timings: Timings,
}

/// A plan, its arena, and the parameters in it.
pub struct Executor<T: Real> {
    plan: Plan,
    backend: Box<dyn Backend<T> + Send>,
    host: HostPool,
    /// Made for the first step, if the plan keeps tensors on disk.
    spill: Option<Arc<SpillFile>>,
    unset: BTreeSet<NodeIx>,
}

impl<T: Real> Executor<T> {
    /// On the CPU. Allocates the arena, of exactly the plan's device budget.
    ///
    /// # Errors
    /// [`ExecError::DType`] if the plan computes in another type,
    /// [`ExecError::Arena`] if the memory cannot be had.
    pub fn new(plan: Plan) -> Result<Self, ExecError> {
        Self::on(plan, &Device::Cpu, &DeviceOptions::default())
    }

    /// On a device. Allocates the arena, of exactly the plan's device budget.
    ///
    /// # Errors
    /// As [`Executor::new`], and [`ExecError::Device`] if the device cannot be had.
    pub fn on(plan: Plan, device: &Device, options: &DeviceOptions) -> Result<Self, ExecError> {
        let bytes = plan.budget.device_bytes;
        let options = DeviceOptions {
            narrow: plan.program.narrow().is_some(),
            ..*options
        };
        let backend = crate::device::open(device, &options, bytes)?;
        Self::with_backend(plan, backend)
    }

    /// On a backend whose arena has at least the plan's device budget.
    ///
    /// # Errors
    /// [`ExecError::DType`] if the plan computes in another type, [`ExecError::Storage`]
    /// if it stores tensors as one that the backend does not know, and what the backend
    /// says of writing the plan's constants.
    pub fn with_backend(
        plan: Plan,
        backend: Box<dyn Backend<T> + Send>,
    ) -> Result<Self, ExecError> {
        if plan.program.dtype != T::DTYPE {
            return Err(ExecError::DType {
                plan: plan.program.dtype,
                asked: T::DTYPE,
            });
        }
        if let Some(dtype) = plan.program.narrow()
            && !backend.stores(dtype)
        {
            return Err(ExecError::Storage { dtype });
        }
        let is_param = |n: &NodeIx| matches!(plan.program.node(*n).op, Op::Param { .. });
        let unset = plan.program.indices().filter(is_param).collect();
        let host = HostPool::new(plan.host.len(), plan.predicted.host_peak_bytes);
        let mut this = Executor {
            plan,
            backend,
            host,
            spill: None,
            unset,
        };
        let program = this.plan.program.clone();
        for n in program.indices() {
            if let Op::Constant { value } = program.node(n).op {
                let place = this.flat(n)?;
                let data = vec![T::from_f64(value.get()); place.layout.len];
                this.backend.write(&place, &data)?;
            }
        }
        Ok(this)
    }

    /// Makes the spill file in `dir`, if the plan keeps tensors on disk, and reserves
    /// its space. Without this call the first step makes it in the system's folder
    /// for temporary files.
    ///
    /// # Errors
    /// [`ExecError::SpillFolder`] if no file can be made there,
    /// [`ExecError::SpillFull`] if there is not enough space.
    pub fn spilling_to(mut self, dir: &Path) -> Result<Self, ExecError> {
        self.make_spill(dir)?;
        Ok(self)
    }

    fn make_spill(&mut self, dir: &Path) -> Result<(), ExecError> {
        if !self.plan.disk.is_empty() {
            let ends = self.plan.disk.iter().map(|d| d.offset + d.bytes);
            let bytes = ends.max().unwrap_or(0);
            self.spill = Some(Arc::new(SpillFile::new(dir, bytes)?));
        }
        Ok(())
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Names and shapes of all parameters, frozen ones too, in tape order.
    pub fn params(&self) -> Vec<(String, Shape)> {
        let program = &self.plan.program;
        (program.nodes.iter())
            .filter(|n| matches!(n.op, Op::Param { .. }))
            .map(|n| (n.name.clone(), n.ty.shape))
            .collect()
    }

    /// Sets a parameter.
    ///
    /// # Errors
    /// [`ExecError::UnknownParam`], or [`ExecError::Shape`] if the number of
    /// elements differs.
    pub fn set_param(&mut self, name: &str, values: &[T]) -> Result<(), ExecError> {
        let n = self.find(name)?;
        let place = self.flat(n)?;
        self.check_len(n, values.len())?;
        self.backend.write(&place, values)?;
        self.unset.remove(&n);
        Ok(())
    }

    /// Reads a parameter.
    ///
    /// # Errors
    /// [`ExecError::UnknownParam`], or [`ExecError::Device`] if the device has failed.
    pub fn param(&mut self, name: &str) -> Result<Tensor<T>, ExecError> {
        let n = self.find(name)?;
        let place = self.flat(n)?;
        Ok(Tensor::new(
            self.plan.program.node(n).ty.shape,
            self.backend.read(&place)?,
        ))
    }

    /// All optimiser state: parameter, slot, tensor.
    ///
    /// # Errors
    /// [`ExecError::Device`] if the device has failed.
    pub fn optimiser_state(&mut self) -> Result<Vec<(String, usize, Tensor<T>)>, ExecError> {
        let mut out = Vec::new();
        for (u, slots) in self.plan.states.clone().into_iter().enumerate() {
            let n = self.plan.program.updates[u].param;
            for (slot, b) in slots.into_iter().enumerate() {
                let place = self.place(b, n);
                let node = self.plan.program.node(n);
                let tensor = Tensor::new(node.ty.shape, self.backend.read(&place)?);
                out.push((node.name.clone(), slot, tensor));
            }
        }
        Ok(out)
    }

    /// Sets a tensor of optimiser state. State starts as zeros.
    ///
    /// # Errors
    /// [`ExecError::UnknownParam`] if the parameter has no such slot,
    /// [`ExecError::Shape`] if the number of elements differs.
    pub fn set_optimiser_state(
        &mut self,
        name: &str,
        slot: usize,
        values: &[T],
    ) -> Result<(), ExecError> {
        let n = self.find(name)?;
        let update = self.plan.program.updates.iter().position(|u| u.param == n);
        let buffer = update.and_then(|u| self.plan.states[u].get(slot).copied());
        let unknown = || ExecError::UnknownParam {
            name: format!("{name} (slot {slot})"),
        };
        let place = self.place(buffer.ok_or_else(unknown)?, n);
        self.check_len(n, values.len())?;
        self.backend.write(&place, values)?;
        Ok(())
    }

    /// Carries the plan out once.
    ///
    /// # Errors
    /// A missing or misshapen feed, an unset parameter, a source that cannot be
    /// read, a disk that is full or fails. Parameters are then as before unless the updates had begun, which
    /// come last and cannot fail.
    pub fn step(
        &mut self,
        feeds: &Feeds<T>,
        how: &StepHow,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<StepReport<T>, ExecError> {
        if let Some(n) = self.unset.first() {
            let name = self.plan.program.node(*n).name.clone();
            return Err(ExecError::UnsetParam { name });
        }
        if !self.plan.program.updates.is_empty() {
            let (rule, _) = how.update.ok_or(ExecError::NoRule)?;
            let (planned, needed) = (self.plan.program.state_slots, rule.n_slots());
            if planned != needed {
                return Err(ExecError::StateSlots { planned, needed });
            }
        }
        if self.spill.is_none() {
            self.make_spill(&std::env::temp_dir())?;
        }
        let sources = self.take_feeds(feeds)?;
        let (plan, host) = (&self.plan, &mut self.host);
        let backend = self.backend.as_mut();
        let mut interpreter =
            Interpreter::new(plan, backend, &sources, host, self.spill.as_ref(), how);
        interpreter.run(progress)?;
        let (measured, timings) = (interpreter.measured, interpreter.timings);
        Ok(StepReport {
            outputs: self.outputs(&sources)?,
            measured,
            timings,
        })
    }

    /// Copies flat feeds into the arena and collects the sources.
    fn take_feeds(
        &mut self,
        feeds: &Feeds<T>,
    ) -> Result<BTreeMap<NodeIx, Arc<dyn TileSource<T>>>, ExecError> {
        let mut sources: BTreeMap<NodeIx, Arc<dyn TileSource<T>>> = BTreeMap::new();
        for n in self.plan.program.indices() {
            let node = self.plan.program.node(n);
            if !is_fed(&node.op) {
                continue;
            }
            let (name, ty) = (node.name.clone(), node.ty);
            match feeds.get(&name) {
                None => {
                    return Err(ExecError::MissingFeed {
                        name,
                        shape: ty.shape,
                    });
                }
                Some(Feed::Flat(values)) if !ty.is_map() => {
                    self.check_len(n, values.len())?;
                    let place = self.flat(n)?;
                    self.backend.write(&place, values)?;
                }
                Some(Feed::Source(source)) if ty.is_map() => {
                    if source.shape() != ty.shape {
                        return Err(ExecError::Shape {
                            name,
                            expected: ty.shape,
                            found: source.shape().to_string(),
                        });
                    }
                    sources.insert(n, Arc::clone(source));
                }
                Some(_) => {
                    let expected = if ty.is_map() {
                        "a map, read from a source"
                    } else {
                        "a flat tensor"
                    };
                    return Err(ExecError::FeedKind { name, expected });
                }
            }
        }
        Ok(sources)
    }

    fn outputs(
        &mut self,
        sources: &BTreeMap<NodeIx, Arc<dyn TileSource<T>>>,
    ) -> Result<BTreeMap<String, Tensor<T>>, ExecError> {
        let mut out = BTreeMap::new();
        for n in self.plan.program.outputs.clone() {
            let node = self.plan.program.node(n);
            let (name, ty) = (node.name.clone(), node.ty);
            let home = self
                .plan
                .map_outputs
                .iter()
                .find(|(m, _)| *m == n)
                .map(|(_, h)| *h);
            let data = match home {
                None => {
                    let place = self.flat(n)?;
                    self.backend.read(&place)?
                }
                Some(Home::Device(b)) => {
                    let place = self.place(b, n);
                    self.backend.read(&place)?
                }
                Some(Home::Host(h)) => {
                    let data = self.host.get(h);
                    let data = data.ok_or_else(|| inconsistent("an output was released"))?;
                    with_element!(ty.dtype, E => values::<E, T>(bytemuck::cast_slice(data)))
                }
                Some(Home::Disk(d)) => {
                    let tensor = self.plan.disk.get(d.0 as usize);
                    let (spill, tensor) = (self.spill.as_ref().zip(tensor))
                        .ok_or_else(|| inconsistent("an output is not on disk"))?;
                    let map = spill.map(tensor.offset, &ty);
                    with_element!(map.dtype(), E => values::<E, T>(&map.read_all()?))
                }
                Some(Home::Source) => {
                    let source = sources.get(&n);
                    let source = source.ok_or_else(|| inconsistent("an output was never made"))?;
                    let mut data = vec![T::ZERO; ty.shape.elems()];
                    let mut view = sstep_kernels::Out::new(Layout::whole(&ty), &mut data);
                    source
                        .read(&sstep_autodiff::Region::whole(&ty), &mut view)
                        .map_err(ExecError::reading(&name))?;
                    data
                }
            };
            out.insert(name, Tensor::new(ty.shape, data));
        }
        Ok(out)
    }

    fn find(&self, name: &str) -> Result<NodeIx, ExecError> {
        let program = &self.plan.program;
        let is_it = |n: &NodeIx| {
            program.node(*n).name == name && matches!(program.node(*n).op, Op::Param { .. })
        };
        program
            .indices()
            .find(is_it)
            .ok_or_else(|| ExecError::UnknownParam {
                name: name.to_owned(),
            })
    }

    fn check_len(&self, n: NodeIx, len: usize) -> Result<(), ExecError> {
        let node = self.plan.program.node(n);
        if node.ty.shape.elems() == len {
            return Ok(());
        }
        Err(ExecError::Shape {
            name: node.name.clone(),
            expected: node.ty.shape,
            found: format!("{len} elements"),
        })
    }

    fn place(&self, b: BufferIx, n: NodeIx) -> Place {
        let layout = Layout::whole(&self.plan.program.node(n).ty);
        Place {
            offset: self.plan.buffer(b).offset,
            layout,
        }
    }

    fn flat(&self, n: NodeIx) -> Result<Place, ExecError> {
        let home = self.plan.flat_home[n.ix()];
        Ok(self.place(home.ok_or_else(|| inconsistent("a leaf has no buffer"))?, n))
    }
}

/// Elements as those that are computed with; exact.
fn values<E: Element, T: Real>(stored: &[E]) -> Vec<T> {
    stored.iter().map(|x| T::from_f64(x.value())).collect()
}
