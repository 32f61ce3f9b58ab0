//! What a device must be able to do.
//!
//! The interpreter speaks of places in the arena and of regions; a backend
//! turns them into addresses and launches. There is one arena, of exactly the
//! cap. Host memory and the spill file are the interpreter's.

use sstep_autodiff::{DType, Op, Region, Ty};
use sstep_kernels::{AnyIn, AnyOut, Layout, Pace, Real, UpdateRule};

use crate::disk::DiskMap;
use crate::error::ExecError;
use crate::source::TileSource;

/// A tensor, or a box of one, in the arena.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Offset of its buffer in bytes.
    pub offset: u64,
    /// How it lies there.
    pub layout: Layout,
}

/// Bytes of a region's elements.
pub(crate) fn elements_bytes(of: &Place, region: &Region) -> u64 {
    region.points() * (of.layout.dims[1] * of.layout.dtype.bytes()) as u64
}

/// One kernel call.
pub struct Launch<'a> {
    /// What to compute.
    pub op: &'a Op,
    /// Positions of the output, or of the domain.
    pub region: Region,
    /// Where the inputs are.
    pub inputs: &'a [Place],
    /// Step number, for counter-based randomness.
    pub step: u64,
    /// Seed of the run.
    pub seed: u64,
    /// Offset and bytes of kernel scratch.
    pub workspace: Option<(u64, u64)>,
}

/// A reduction's partial result in the arena.
#[derive(Clone, Copy, Debug)]
pub enum Partial {
    /// In the output tensor.
    InPlace(Place),
    /// This many doubles from this offset.
    F64 {
        /// Offset in bytes.
        offset: u64,
        /// Number of doubles.
        len: usize,
    },
}

/// One call of several that follow one another over the same region, position by
/// position: see [`Backend::chain`].
pub struct Link<'a> {
    /// The call.
    pub launch: Launch<'a>,
    /// For each input, the earlier call that computes it, if one of them does.
    pub from: &'a [Option<usize>],
    /// Where the result goes.
    pub to: Target,
    /// The last call that reads the result, if nothing but these calls ever does.
    pub last_reader: Option<usize>,
}

/// Where the result of a call goes.
#[derive(Clone, Copy, Debug)]
pub enum Target {
    /// To a map.
    Map(Place),
    /// Adds to a reduction whose result has this type.
    Reduction(Partial, Ty),
}

/// Memory of the host that a device copies to and from.
pub type HostMemory = Box<dyn HostSlice>;

/// Bytes in memory of the host, aligned to any element.
pub trait HostSlice: AsRef<[u8]> + AsMut<[u8]> + Send {}

impl<M: AsRef<[u8]> + AsMut<[u8]> + Send> HostSlice for M {}

/// Memory that the system gives, aligned to eight bytes.
struct Pageable {
    words: Vec<u64>,
    bytes: usize,
}

impl AsRef<[u8]> for Pageable {
    fn as_ref(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.bytes]
    }
}

impl AsMut<[u8]> for Pageable {
    fn as_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[..self.bytes]
    }
}

/// So many bytes that any device copies to and from; zeros.
pub(crate) fn pageable(bytes: usize) -> HostMemory {
    let words = vec![0; bytes.div_ceil(8)];
    Box::new(Pageable { words, bytes })
}

/// A device: one arena, regions in and out, kernel launches.
///
/// Calls take effect in their order. A device may be behind when a call
/// returns; [`Backend::read`] and [`Backend::wait`] wait for all that came before.
/// Until then [`HostMemory`] that [`Backend::upload`] or [`Backend::download`] was
/// given belongs to the device: only further such calls may be given it. Any other
/// memory is free to be used when a call returns.
///
/// # Errors
/// Every method fails if the device does, with [`ExecError::Device`]. The step is
/// then abandoned.
#[allow(clippy::missing_errors_doc, reason = "said once, for all methods")]
pub trait Backend<T: Real> {
    /// Whether tensors of a plan may have elements of this type.
    fn stores(&self, dtype: DType) -> bool {
        dtype == T::DTYPE
    }

    /// A step begins: until [`Backend::wait`] calls are those of a plan, which the next
    /// step repeats.
    fn begin_step(&mut self) {}

    /// Computes a region of a map, or a flat tensor.
    fn compute(&mut self, launch: &Launch<'_>, out: &Place) -> Result<(), ExecError>;

    /// Clears a reduction with result type `out`.
    fn begin(&mut self, op: &Op, partial: &Partial, out: &Ty) -> Result<(), ExecError>;

    /// Adds a region of the domain to a reduction.
    fn accumulate(
        &mut self,
        launch: &Launch<'_>,
        partial: &Partial,
        out: &Ty,
    ) -> Result<(), ExecError>;

    /// Carries out calls over one region, each [computing](Backend::compute) a map or
    /// [adding](Backend::accumulate) to a reduction, as if one after the other. A result whose
    /// last reader is among them need not be stored.
    fn chain(&mut self, links: &[Link<'_>]) -> Result<(), ExecError> {
        for link in links {
            match &link.to {
                Target::Map(out) => self.compute(&link.launch, out)?,
                Target::Reduction(partial, ty) => self.accumulate(&link.launch, partial, ty)?,
            }
        }
        Ok(())
    }

    /// Turns a partial result into the result.
    fn finish(
        &mut self,
        op: &Op,
        inputs: &[Ty],
        partial: &Partial,
        out: &Place,
    ) -> Result<(), ExecError>;

    /// Moves `keep` to the front of a window that now holds `from`; afterwards
    /// it holds `to`, the same buffer at its new origin.
    fn slide(&mut self, from: &Place, to: &Place, keep: &Region) -> Result<(), ExecError>;

    /// Host memory for a tensor moved off the device, of any content.
    fn host_memory(&mut self, bytes: usize) -> Result<HostMemory, ExecError> {
        Ok(pageable(bytes))
    }

    /// Device memory in use beside the arena, in bytes; other programs' too, where a
    /// device cannot tell.
    fn beside_arena_bytes(&self) -> u64 {
        0
    }

    /// Copies a region of a host tensor to the device.
    fn upload(&mut self, host: &AnyIn<'_>, region: &Region, dst: &Place) -> Result<(), ExecError>;

    /// Copies a region of a device tensor to the host, into [`HostMemory`].
    fn download(&mut self, src: &Place, region: &Region, host: AnyOut<'_>)
    -> Result<(), ExecError>;

    /// Copies a region of a device tensor to the spill file.
    ///
    /// # Errors
    /// Also [`ExecError::Spill`] if the disk fails; of an earlier call, or only at
    /// [`Backend::wait`], where the device is behind.
    fn spill(&mut self, src: &Place, region: &Region, disk: &DiskMap) -> Result<(), ExecError>;

    /// Copies a region from the spill file to the device.
    ///
    /// # Errors
    /// Also [`ExecError::Spill`] if the disk fails.
    fn unspill(&mut self, disk: &DiskMap, region: &Region, dst: &Place) -> Result<(), ExecError>;

    /// Copies a region within the arena.
    fn copy(&mut self, src: &Place, region: &Region, dst: &Place) -> Result<(), ExecError>;

    /// Reads a region of a source to the device. The bytes that came: fewer than the
    /// elements' where a source has bytes and the device makes elements of them.
    ///
    /// # Errors
    /// [`ExecError::Source`] with what the source says of input `name`.
    fn read_source(
        &mut self,
        name: &str,
        source: &dyn TileSource<T>,
        region: &Region,
        dst: &Place,
    ) -> Result<u64, ExecError>;

    /// Updates a parameter.
    fn update(
        &mut self,
        rule: &UpdateRule,
        pace: &Pace,
        param: &Place,
        grad: &Place,
        slots: &[Place],
    ) -> Result<(), ExecError>;

    /// Whether all elements of dense tensors of elements `T` are finite. `scratch` is what
    /// the plan gives kernels for themselves: offset and bytes.
    fn are_finite(
        &mut self,
        tensors: &[Place],
        scratch: Option<(u64, u64)>,
    ) -> Result<bool, ExecError>;

    /// Copies a whole dense tensor of elements `T` to the device.
    fn write(&mut self, place: &Place, data: &[T]) -> Result<(), ExecError>;

    /// Copies a whole dense tensor from the device, as elements `T` whatever it is
    /// stored as.
    fn read(&mut self, place: &Place) -> Result<Vec<T>, ExecError>;

    /// Waits until everything has been done.
    fn wait(&mut self) -> Result<(), ExecError>;
}
