//! A CUDA device.
//!
//! The arena is one allocation of exactly the cap; tensors, parameters,
//! optimiser state and partial results lie in it at the plan's offsets, and
//! nothing else is allocated on the device. Ops run the kernels that
//! [`sstep_kernels::cuda`] lists, one stream after another in the order of the
//! calls. cudarc loads the driver when a device is opened, so that a program
//! with this backend starts on any machine.
//!
//! All `unsafe` of the backend stands in this folder, at the calls of the driver.

mod copies;
mod driver;
mod module;

pub use driver::devices;
pub use module::{Image, compile};

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{
    CudaContext, CudaFunction, CudaStream, DeviceRepr, LaunchConfig, PushKernelArg, result,
};
use sstep_autodiff::{Op, ReductionState, Region, Ty};
use sstep_kernels::cuda::{self as kernels, Args, Call, Placed, Task, Work};
use sstep_kernels::{Box4, In, Layout, Out, Real, UpdateRule};

use crate::backend::{Backend, Launch, Partial, Place};
use crate::device::DeviceError;
use crate::error::ExecError;
use crate::source::TileSource;

use driver::failed;

/// Blocks of a launch per multiprocessor; what is beyond is done in turns.
const BLOCKS_PER_PROCESSOR: u64 = 16;

/// A parameter block, to be passed by value.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Block(Args);

// SAFETY: plain numbers in the layout that the kernels declare.
unsafe impl DeviceRepr for Block {}

/// The arena on a CUDA device, and the kernels for elements of type `T`.
pub struct Cuda<T> {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    kernels: BTreeMap<&'static str, CudaFunction>,
    arena: Arena,
    most_blocks: u64,
    /// A region read from a source, on its way to the device.
    staging: Vec<T>,
    elements: PhantomData<T>,
}

/// The one allocation.
struct Arena {
    base: u64,
    bytes: u64,
    context: Arc<CudaContext>,
}

impl Drop for Arena {
    fn drop(&mut self) {
        // A device that has failed frees nothing; its context is gone with the
        // process, and there is nobody left to tell.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `Arena::new`, freed once; the streams that used
            // it were waited for by their owner.
            let _ = unsafe { result::free_sync(self.base) };
        }
    }
}

impl Arena {
    fn new(context: &Arc<CudaContext>, bytes: u64) -> Result<Self, DeviceError> {
        let out_of_memory = || {
            let (free, total) = context.mem_get_info().unwrap_or_default();
            DeviceError::OutOfMemory {
                name: context.name().unwrap_or_default(),
                bytes,
                free_bytes: free as u64,
                total_bytes: total as u64,
            }
        };
        let size = usize::try_from(bytes).map_err(|_| out_of_memory())?.max(64);
        // SAFETY: the context is current in this thread; the memory is owned by
        // the value returned.
        let base = unsafe { result::malloc_sync(size) }.map_err(|_| out_of_memory())?;
        let context = Arc::clone(context);
        Ok(Arena {
            base,
            bytes: size as u64,
            context,
        })
    }

    /// Address of `bytes` from `offset`.
    fn at(&self, offset: u64, bytes: u64) -> u64 {
        assert!(
            offset
                .checked_add(bytes)
                .is_some_and(|end| end <= self.bytes),
            "a buffer lies within the arena"
        );
        self.base + offset
    }
}

impl<T: Real> Cuda<T> {
    /// Opens device `ordinal` with an arena of exactly `bytes`.
    ///
    /// Kernels are compiled by NVRTC for the device at hand, once: later runs find
    /// them in the cache, see [`compile`].
    ///
    /// # Errors
    /// [`DeviceError`] without a driver, a device, NVRTC or the memory.
    pub fn new(ordinal: usize, bytes: u64) -> Result<Self, DeviceError> {
        let context = driver::open(ordinal)?;
        let (major, minor) = driver::capability(&context)?;
        let image = compile(T::DTYPE, 10 * major + minor)?;
        Self::with_image(context, bytes, image)
    }

    /// Opens device `ordinal` with kernels compiled elsewhere from
    /// [`sstep_kernels::cuda::source`]: for machines without NVRTC.
    ///
    /// # Errors
    /// As [`Cuda::new`]; [`DeviceError::Failed`] if the driver cannot load `image`.
    pub fn from_image(ordinal: usize, bytes: u64, image: Image) -> Result<Self, DeviceError> {
        Self::with_image(driver::open(ordinal)?, bytes, image)
    }

    fn with_image(
        context: Arc<CudaContext>,
        bytes: u64,
        image: Image,
    ) -> Result<Self, DeviceError> {
        let module = context
            .load_module(image.0)
            .map_err(failed("loading kernels"))?;
        let load = |&name: &&'static str| {
            let function = module.load_function(name);
            Ok((name, function.map_err(failed("looking up a kernel"))?))
        };
        let kernels = kernels::kernel_names()
            .iter()
            .map(load)
            .collect::<Result<_, _>>()?;
        let stream = context.new_stream().map_err(failed("making a stream"))?;
        let arena = Arena::new(&context, bytes)?;
        let most_blocks = BLOCKS_PER_PROCESSOR * driver::n_processors(&context)?;
        let mut this = Cuda {
            context,
            stream,
            kernels,
            arena,
            most_blocks,
            staging: Vec::new(),
            elements: PhantomData,
        };
        this.clear()?;
        Ok(this)
    }

    /// Optimiser state starts as zeros.
    fn clear(&mut self) -> Result<(), DeviceError> {
        let (base, bytes) = (self.arena.base, self.arena.bytes as usize);
        // SAFETY: all of the arena, and nothing else.
        unsafe { result::memset_d8_async(base, 0, bytes, self.stream.cu_stream()) }
            .map_err(failed("clearing the arena"))
    }

    fn placed(&self, place: &Place) -> Placed {
        let bytes = place.layout.len * size_of::<T>();
        Placed {
            address: self.arena.at(place.offset, bytes as u64),
            layout: place.layout,
        }
    }

    fn run(&self, call: &Call) -> Result<(), ExecError> {
        let function = &self.kernels[call.kernel];
        let threads = u64::from(kernels::BLOCK_THREADS);
        let blocks = match call.work {
            Work::Items(n) => n.div_ceil(threads),
            Work::Blocks(n) => n,
        };
        if blocks == 0 {
            return Ok(());
        }
        let config = LaunchConfig {
            grid_dim: (blocks.min(self.most_blocks) as u32, 1, 1),
            block_dim: (kernels::BLOCK_THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        let block = Block(call.args);
        let mut launch = self.stream.launch_builder(function);
        // SAFETY: every kernel takes one block; its views lie within the arena, as
        // `placed` checked, and hold what the verified plan says.
        let launched = unsafe { launch.arg(&block).launch(config) };
        launched.map_err(failed("launching a kernel"))?;
        Ok(())
    }

    fn with_task<R>(&self, launch: &Launch<'_>, run: impl FnOnce(&Task<'_>) -> R) -> R {
        let inputs: Vec<Placed> = launch.inputs.iter().map(|p| self.placed(p)).collect();
        run(&Task {
            op: launch.op,
            region: Box4::lift(&launch.region),
            inputs: &inputs,
            step: launch.step,
            seed: launch.seed,
        })
    }

    /// Where a partial result is: its state, if it has one, and the output.
    fn partial(&self, partial: &Partial, out: &Ty) -> (Option<u64>, Placed) {
        let layout = Layout::whole(out);
        match *partial {
            Partial::InPlace(place) => (None, self.placed(&place)),
            Partial::F64 { offset, len } => {
                let address = self.arena.at(offset, 8 * len as u64);
                (Some(address), Placed { address, layout })
            }
        }
    }
}

impl<T: Real> Backend<T> for Cuda<T> {
    fn compute(&mut self, launch: &Launch<'_>, out: &Place) -> Result<(), ExecError> {
        let out = self.placed(out);
        let calls = self.with_task(launch, |task| kernels::compute(task, &out));
        calls.iter().try_for_each(|call| self.run(call))
    }

    fn begin(&mut self, op: &Op, partial: &Partial, out: &Ty) -> Result<(), ExecError> {
        let (_, at) = self.partial(partial, out);
        self.run(&kernels::begin(op, at.address, out))
    }

    fn accumulate(
        &mut self,
        launch: &Launch<'_>,
        partial: &Partial,
        out: &Ty,
    ) -> Result<(), ExecError> {
        let (state, at) = self.partial(partial, out);
        let calls = self.with_task(launch, |task| kernels::accumulate(task, state, &at));
        calls.iter().try_for_each(|call| self.run(call))
    }

    fn finish(
        &mut self,
        op: &Op,
        inputs: &[Ty],
        partial: &Partial,
        out: &Place,
    ) -> Result<(), ExecError> {
        let ty = out.layout.ty::<T>();
        match op.reduction_state(&ty) {
            ReductionState::InPlace => Ok(()),
            ReductionState::F64(_) => {
                let (_, state) = self.partial(partial, &ty);
                let out = self.placed(out);
                self.run(&kernels::finish(op, inputs, state.address, &out))
            }
        }
    }

    fn slide(&mut self, from: &Place, to: &Place, keep: &Region) -> Result<(), ExecError> {
        let (from, to) = (self.placed(from), self.placed(to));
        self.run(&kernels::slide(&from, &to, &Box4::lift(keep)))
    }

    fn upload(&mut self, host: &In<'_, T>, region: &Region, dst: &Place) -> Result<(), ExecError> {
        let region = Box4::lift(region);
        let dst = self.placed(dst);
        copies::upload(&self.stream, host, &region, &dst)?;
        Ok(())
    }

    fn download(
        &mut self,
        src: &Place,
        region: &Region,
        host: &Out<'_, T>,
    ) -> Result<(), ExecError> {
        let region = Box4::lift(region);
        let src = self.placed(src);
        copies::download(&self.stream, &src, &region, host)?;
        Ok(())
    }

    fn copy(&mut self, src: &Place, region: &Region, dst: &Place) -> Result<(), ExecError> {
        let (src, dst) = (self.placed(src), self.placed(dst));
        self.run(&kernels::copy(&src, &Box4::lift(region), &dst))
    }

    fn read_source(
        &mut self,
        name: &str,
        source: &dyn TileSource<T>,
        region: &Region,
        dst: &Place,
    ) -> Result<(), ExecError> {
        let ty = dst.layout.ty::<T>();
        let capacity: Vec<usize> = region.spans().iter().map(|s| s.len()).collect();
        let layout = Layout::window(&ty, &capacity, region);
        let mut staging = std::mem::take(&mut self.staging);
        staging.resize(staging.len().max(layout.len), T::ZERO);
        let read = source.read(region, &mut Out::new(layout, &mut staging));
        let copied = read
            .map_err(|source| ExecError::Source {
                name: name.to_owned(),
                source,
            })
            .and_then(|()| self.upload(&In::new(layout, &staging), region, dst));
        self.staging = staging;
        copied
    }

    fn update(
        &mut self,
        rule: &UpdateRule,
        lr: f64,
        t: u64,
        param: &Place,
        grad: &Place,
        slots: &[Place],
    ) -> Result<(), ExecError> {
        let slots: Vec<Placed> = slots.iter().map(|p| self.placed(p)).collect();
        let (param, grad) = (self.placed(param), self.placed(grad));
        self.run(&kernels::update(rule, lr, t, &param, &grad, &slots))
    }

    fn write(&mut self, place: &Place, data: &[T]) -> Result<(), ExecError> {
        let to = self.placed(place);
        copies::write(&self.stream, to.address, &data[..place.layout.len])?;
        Ok(())
    }

    fn read(&mut self, place: &Place) -> Result<Vec<T>, ExecError> {
        let from = self.placed(place);
        let mut data = vec![T::ZERO; place.layout.len];
        copies::read(&self.stream, from.address, &mut data)?;
        Ok(data)
    }

    fn wait(&mut self) -> Result<(), ExecError> {
        self.stream.synchronize().map_err(failed("waiting"))?;
        Ok(())
    }
}

impl<T> Drop for Cuda<T> {
    fn drop(&mut self) {
        // The arena must not be freed under a kernel; a failed device has none.
        let _ = self.context.bind_to_thread();
        let _ = self.stream.synchronize();
    }
}
