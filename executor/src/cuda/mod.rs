//! A CUDA device.
//!
//! The arena is one allocation of exactly the cap; tensors, parameters,
//! optimiser state and partial results lie in it at the plan's offsets, and
//! nothing else is allocated on the device. Ops run what [`sstep_kernels::cuda`]
//! lists: kernels of ours, or cuDNN and cuBLASLt where they are there and take the
//! call (`library`). Kernels and copies either way have a stream each;
//! calls that touch the same bytes keep their order by events (`schedule`), all
//! others overlap. Kernels are given in batches (`queue`), as graphs, if these are
//! asked for, where the device would wait for the host (`graphs`). cudarc loads the
//! driver when a device is opened, so that a program with this backend starts on any
//! machine.
//!
//! All `unsafe` of the backend stands in this folder, at the calls of the driver.

mod algorithms;
mod arena;
mod calls;
mod copies;
mod cublaslt;
mod cudnn;
mod driver;
mod graphs;
mod images;
mod launches;
mod library;
mod marks;
mod module;
mod pinned;
mod queue;
mod schedule;
mod spill;
mod staging;

pub use driver::devices;
pub use module::{Image, compile};

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaStream, result};
use sstep_autodiff::Ty;
use sstep_kernels::cuda::{self as kernels, Module, Placed, Scratch, Task};
use sstep_kernels::{Box4, Layout, Real};

use crate::backend::{Launch, Partial, Place};
use crate::device::{DeviceError, Missing};
use crate::error::ExecError;

use arena::Arena;
use driver::failed;
use graphs::Graphs;
use library::Libraries;
use marks::Marks;
use queue::Queue;
use schedule::{Bytes, Given, Lane, Schedule};
use spill::Writer;
use staging::Staging;

/// The arena on a CUDA device, and the kernels for elements of type `T`.
pub struct Cuda<T> {
    context: Arc<CudaContext>,
    /// By [`Lane`].
    streams: [Arc<CudaStream>; 3],
    schedule: Schedule,
    marks: Marks,
    queue: Queue,
    graphs: Graphs,
    kernels: BTreeMap<&'static str, CudaFunction>,
    libraries: Libraries,
    arena: Arena,
    n_processors: u64,
    /// Whether the kernels take narrow tensors.
    narrow: bool,
    /// Regions read from a source, on their way to the device.
    staging: Staging,
    /// Pieces of the spill file, on their way to the device.
    unspilling: Staging,
    /// On their way from it.
    writer: Writer,
    elements: PhantomData<T>,
}

impl<T: Real> Cuda<T> {
    /// Opens device `ordinal` with an arena of exactly `bytes`.
    ///
    /// Kernels are compiled by NVRTC for the device at hand, once: later runs find
    /// them in the cache, see [`compile`]. With `narrow` they take tensors that are
    /// stored in 16 bits.
    ///
    /// # Errors
    /// [`DeviceError`] without a driver, a device, NVRTC or the memory.
    pub fn new(ordinal: usize, bytes: u64, narrow: bool) -> Result<Self, DeviceError> {
        let context = driver::open(ordinal)?;
        let (major, minor) = driver::capability(&context)?;
        let module = Module {
            dtype: T::DTYPE,
            narrow,
        };
        let image = compile(module, 10 * major + minor)?;
        Self::with_image(context, bytes, image, narrow)
    }

    /// Opens device `ordinal` with kernels compiled elsewhere from
    /// [`sstep_kernels::cuda::source`]: for machines without NVRTC.
    ///
    /// # Errors
    /// As [`Cuda::new`]; [`DeviceError::Failed`] if the driver cannot load `image`.
    pub fn from_image(
        ordinal: usize,
        bytes: u64,
        image: Image,
        narrow: bool,
    ) -> Result<Self, DeviceError> {
        Self::with_image(driver::open(ordinal)?, bytes, image, narrow)
    }

    fn with_image(
        context: Arc<CudaContext>,
        bytes: u64,
        image: Image,
        narrow: bool,
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
        let libraries = Libraries::open(&streams[Lane::Compute as usize], T::DTYPE);
        let arena = Arena::new(&context, bytes)?;
        let n_processors = driver::n_processors(&context)?;
        let mut this = Cuda {
            staging: Staging::new(&context),
            unspilling: Staging::new(&context),
            writer: Writer::new(),
            marks: Marks::new(&context),
            queue: Queue::default(),
            graphs: Graphs::new(false),
            context,
            streams,
            schedule: Schedule::default(),
            kernels,
            libraries,
            arena,
            n_processors,
            narrow,
            elements: PhantomData,
        };
        this.clear()?;
        Ok(this)
    }

    /// The same with sstep's own kernels for everything, also where a library is there.
    #[must_use]
    pub fn without_libraries(mut self) -> Self {
        self.libraries = Libraries::default();
        self
    }

    /// The same with kernels that steps repeat replayed as CUDA graphs where the device
    /// would wait for the host otherwise: as [`DeviceOptions::graphs`] asks for.
    ///
    /// [`DeviceOptions::graphs`]: crate::DeviceOptions::graphs
    #[must_use]
    pub fn with_graphs(mut self) -> Self {
        self.graphs = Graphs::new(true);
        self
    }

    /// Libraries that would compute some calls faster, but are not there.
    pub fn missing(&self) -> &[Missing] {
        self.libraries.missing()
    }

    /// Optimiser state starts as zeros.
    fn clear(&mut self) -> Result<(), DeviceError> {
        let (base, bytes) = (self.arena.base, self.arena.bytes as usize);
        let all: Bytes = base..base + self.arena.bytes;
        self.schedule.give(Lane::Compute, &[], &[all]);
        let stream = self.stream(Lane::Compute);
        // SAFETY: all of the arena, and nothing else.
        unsafe { result::memset_d8_async(base, 0, bytes, stream.cu_stream()) }
            .map_err(failed("clearing the arena"))
    }

    fn stream(&self, lane: Lane) -> &Arc<CudaStream> {
        &self.streams[lane as usize]
    }

    /// Makes the copy that `lane` is given next wait for what it must.
    fn order_copy(
        &mut self,
        lane: Lane,
        reads: &[Bytes],
        writes: &[Bytes],
    ) -> Result<(), ExecError> {
        self.flush()?;
        // All of the stream's last call has been given: this is where it ends.
        let last = self.schedule.last(lane);
        let stream = self.stream(lane).clone();
        self.marks.mark(lane, last, &stream)?;
        let waits = self.schedule.give(lane, reads, writes);
        self.wait_for(lane, &waits)?;
        Ok(())
    }

    /// Makes the kernels that are queued next wait for what they must. Their number.
    fn order_kernels(&mut self, reads: &[Bytes], writes: &[Bytes]) -> Result<u64, ExecError> {
        let waits = self.schedule.give(Lane::Compute, reads, writes);
        if !waits.is_empty() {
            // What came before need not wait.
            self.flush()?;
        }
        self.wait_for(Lane::Compute, &waits)?;
        Ok(self.schedule.last(Lane::Compute))
    }

    fn wait_for(&mut self, lane: Lane, calls: &[Given]) -> Result<(), DeviceError> {
        for &before in calls {
            let stream = self.stream(before.lane).clone();
            let last = self.schedule.last(before.lane);
            let end = self.marks.end(before, last, &stream)?;
            let waits = self.streams[lane as usize].wait(end);
            waits.map_err(failed("ordering streams"))?;
        }
        for lane in Lane::ALL {
            self.marks.forget(lane, self.schedule.oldest_open(lane));
        }
        Ok(())
    }

    /// Waits for all of a stream.
    fn drain(&mut self, lane: Lane) -> Result<(), ExecError> {
        self.flush()?;
        let done = self.stream(lane).synchronize();
        done.map_err(failed("waiting"))?;
        self.schedule.drained(lane);
        Ok(())
    }

    /// Bytes of a tensor or a window.
    fn bytes(&self, place: &Place) -> Bytes {
        let bytes = (place.layout.len * place.layout.dtype.bytes()) as u64;
        let base = self.arena.at(place.offset, bytes);
        base..base + bytes
    }

    /// Bytes of a partial result.
    fn partial_bytes(&self, partial: &Partial) -> Bytes {
        match *partial {
            Partial::InPlace(ref place) => self.bytes(place),
            Partial::F64 { offset, len } => {
                let bytes = 8 * len as u64;
                let base = self.arena.at(offset, bytes);
                base..base + bytes
            }
        }
    }

    /// Orders kernels that read the inputs of `launch` and write `out`, with scratch.
    fn order_launch(&mut self, launch: &Launch<'_>, out: Bytes) -> Result<u64, ExecError> {
        let reads: Vec<Bytes> = launch.inputs.iter().map(|p| self.bytes(p)).collect();
        let scratch = launch.workspace.map(|(offset, bytes)| {
            let base = self.arena.at(offset, bytes);
            base..base + bytes
        });
        let writes: Vec<Bytes> = [out].into_iter().chain(scratch).collect();
        self.order_kernels(&reads, &writes)
    }

    fn placed(&self, place: &Place) -> Placed {
        let bytes = place.layout.len * place.layout.dtype.bytes();
        Placed {
            address: self.arena.at(place.offset, bytes as u64),
            layout: place.layout,
        }
    }

    fn with_task<R>(&self, launch: &Launch<'_>, run: impl FnOnce(&Task<'_>) -> R) -> R {
        let inputs: Vec<Placed> = launch.inputs.iter().map(|p| self.placed(p)).collect();
        run(&Task {
            op: launch.op,
            region: Box4::lift(&launch.region),
            inputs: &inputs,
            step: launch.step,
            seed: launch.seed,
            scratch: launch.workspace.map(|(offset, bytes)| Scratch {
                address: self.arena.at(offset, bytes),
                bytes,
            }),
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

impl<T> Drop for Cuda<T> {
    fn drop(&mut self) {
        // The arena must not be freed under a kernel; a failed device has none.
        let _ = self.context.bind_to_thread();
        for stream in &self.streams {
            let _ = stream.synchronize();
        }
    }
}
