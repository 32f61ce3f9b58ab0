//! A CUDA device.
//!
//! The arena is one allocation of exactly the cap; tensors, parameters,
//! optimiser state and partial results lie in it at the plan's offsets, and
//! nothing else is allocated on the device. Ops run the kernels that
//! [`sstep_kernels::cuda`] lists. Kernels and copies either way have a stream each;
//! calls that touch the same bytes keep their order by events (`schedule`), all
//! others overlap. cudarc loads the driver when a device is opened, so that a program
//! with this backend starts on any machine.
//!
//! All `unsafe` of the backend stands in this folder, at the calls of the driver.

mod copies;
mod driver;
mod module;
mod schedule;
mod staging;

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
use schedule::{Bytes, Lane, Schedule};
use staging::Staging;

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
    /// By [`Lane`].
    streams: [Arc<CudaStream>; 3],
    schedule: Schedule,
    kernels: BTreeMap<&'static str, CudaFunction>,
    arena: Arena,
    most_blocks: u64,
    /// Regions read from a source, on their way to the device.
    staging: Staging,
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
        let stream = || context.new_stream().map_err(failed("making a stream"));
        let streams = [stream()?, stream()?, stream()?];
        let arena = Arena::new(&context, bytes)?;
        let most_blocks = BLOCKS_PER_PROCESSOR * driver::n_processors(&context)?;
        let mut this = Cuda {
            staging: Staging::new(&context),
            context,
            streams,
            schedule: Schedule::default(),
            kernels,
            arena,
            most_blocks,
            elements: PhantomData,
        };
        this.clear()?;
        Ok(this)
    }

    /// Optimiser state starts as zeros.
    fn clear(&mut self) -> Result<(), DeviceError> {
        let (base, bytes) = (self.arena.base, self.arena.bytes as usize);
        let all: Bytes = 0..self.arena.bytes;
        self.order(Lane::Compute, &[], &[all])?;
        let stream = self.stream(Lane::Compute);
        // SAFETY: all of the arena, and nothing else.
        unsafe { result::memset_d8_async(base, 0, bytes, stream.cu_stream()) }
            .map_err(failed("clearing the arena"))
    }

    fn stream(&self, lane: Lane) -> &Arc<CudaStream> {
        &self.streams[lane as usize]
    }

    /// Makes what `lane` is given next wait for what it must.
    fn order(&mut self, lane: Lane, reads: &[Bytes], writes: &[Bytes]) -> Result<(), DeviceError> {
        for other in self.schedule.give(lane, reads, writes) {
            let event = self.stream(other).record_event(None);
            event
                .and_then(|event| self.stream(lane).wait(&event))
                .map_err(failed("ordering streams"))?;
        }
        Ok(())
    }

    /// Waits for all of a stream.
    fn drain(&mut self, lane: Lane) -> Result<(), DeviceError> {
        let done = self.stream(lane).synchronize();
        done.map_err(failed("waiting"))?;
        self.schedule.drained(lane);
        Ok(())
    }

    /// Bytes of a tensor or a window.
    fn bytes(place: &Place) -> Bytes {
        place.offset..place.offset + (place.layout.len * size_of::<T>()) as u64
    }

    /// Bytes of a partial result.
    fn partial_bytes(partial: &Partial) -> Bytes {
        match partial {
            Partial::InPlace(place) => Self::bytes(place),
            Partial::F64 { offset, len } => *offset..*offset + 8 * *len as u64,
        }
    }

    /// Orders kernels that read the inputs of `launch` and write `out`.
    fn order_launch(&mut self, launch: &Launch<'_>, out: Bytes) -> Result<(), DeviceError> {
        let reads: Vec<Bytes> = launch.inputs.iter().map(Self::bytes).collect();
        self.order(Lane::Compute, &reads, &[out])
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
        let mut launch = self.stream(Lane::Compute).launch_builder(function);
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
        self.order_launch(launch, Self::bytes(out))?;
        let out = self.placed(out);
        let calls = self.with_task(launch, |task| kernels::compute(task, &out));
        calls.iter().try_for_each(|call| self.run(call))
    }

    fn begin(&mut self, op: &Op, partial: &Partial, out: &Ty) -> Result<(), ExecError> {
        self.order(Lane::Compute, &[], &[Self::partial_bytes(partial)])?;
        let (_, at) = self.partial(partial, out);
        self.run(&kernels::begin(op, at.address, out))
    }

    fn accumulate(
        &mut self,
        launch: &Launch<'_>,
        partial: &Partial,
        out: &Ty,
    ) -> Result<(), ExecError> {
        self.order_launch(launch, Self::partial_bytes(partial))?;
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
                let read = Self::partial_bytes(partial);
                self.order(Lane::Compute, &[read], &[Self::bytes(out)])?;
                let (_, state) = self.partial(partial, &ty);
                let out = self.placed(out);
                self.run(&kernels::finish(op, inputs, state.address, &out))
            }
        }
    }

    fn slide(&mut self, from: &Place, to: &Place, keep: &Region) -> Result<(), ExecError> {
        self.order(Lane::Compute, &[Self::bytes(from)], &[Self::bytes(to)])?;
        let (from, to) = (self.placed(from), self.placed(to));
        self.run(&kernels::slide(&from, &to, &Box4::lift(keep)))
    }

    fn upload(&mut self, host: &In<'_, T>, region: &Region, dst: &Place) -> Result<(), ExecError> {
        self.order(Lane::ToDevice, &[], &[Self::bytes(dst)])?;
        let region = Box4::lift(region);
        let dst = self.placed(dst);
        copies::upload(self.stream(Lane::ToDevice), host, &region, &dst)?;
        Ok(())
    }

    fn download(
        &mut self,
        src: &Place,
        region: &Region,
        host: &Out<'_, T>,
    ) -> Result<(), ExecError> {
        self.order(Lane::ToHost, &[Self::bytes(src)], &[])?;
        let region = Box4::lift(region);
        let placed = self.placed(src);
        copies::download(self.stream(Lane::ToHost), &placed, &region, host)?;
        // The caller may read the host's memory at once.
        self.drain(Lane::ToHost)?;
        Ok(())
    }

    fn copy(&mut self, src: &Place, region: &Region, dst: &Place) -> Result<(), ExecError> {
        self.order(Lane::Compute, &[Self::bytes(src)], &[Self::bytes(dst)])?;
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
        let mut slot = self.staging.take::<T>(layout.len)?;
        let read = source.read(region, &mut Out::new(layout, slot.elements()));
        let copied = read
            .map_err(ExecError::reading(name))
            .and_then(|()| self.upload(&In::new(layout, slot.elements()), region, dst));
        let stream = Arc::clone(self.stream(Lane::ToDevice));
        self.staging.give_back(slot, &stream)?;
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
        let reads = [Self::bytes(grad)];
        let writes: Vec<Bytes> = [param].into_iter().chain(slots).map(Self::bytes).collect();
        self.order(Lane::Compute, &reads, &writes)?;
        let slots: Vec<Placed> = slots.iter().map(|p| self.placed(p)).collect();
        let (param, grad) = (self.placed(param), self.placed(grad));
        self.run(&kernels::update(rule, lr, t, &param, &grad, &slots))
    }

    fn write(&mut self, place: &Place, data: &[T]) -> Result<(), ExecError> {
        self.order(Lane::ToDevice, &[], &[Self::bytes(place)])?;
        let to = self.placed(place);
        copies::write(
            self.stream(Lane::ToDevice),
            to.address,
            &data[..place.layout.len],
        )?;
        Ok(())
    }

    fn read(&mut self, place: &Place) -> Result<Vec<T>, ExecError> {
        self.order(Lane::ToHost, &[Self::bytes(place)], &[])?;
        let from = self.placed(place);
        let mut data = vec![T::ZERO; place.layout.len];
        copies::read(self.stream(Lane::ToHost), from.address, &mut data)?;
        Ok(data)
    }

    fn wait(&mut self) -> Result<(), ExecError> {
        for lane in Lane::ALL {
            self.drain(lane)?;
        }
        Ok(())
    }
}

impl<T> Drop for Cuda<T> {
    fn drop(&mut self) {
        // The arena must not be freed under a kernel; a failed device has none.
        let _ = self.context.bind_to_thread();
        for stream in &self.streams {
            let _ = stream.synchronize();
        }
    }
}
