//! What a device must be able to do.
//!
//! The interpreter speaks of places in the arena and of regions; a backend
//! turns them into addresses and launches. There is one arena, of exactly the
//! cap. Host memory is the interpreter's.

use sstep_autodiff::{Op, Region, Ty};
use sstep_kernels::{In, Layout, Out, Real, UpdateRule};

use crate::source::{SourceError, TileSource};

/// A tensor, or a box of one, in the arena.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// Offset of its buffer in bytes.
    pub offset: u64,
    /// How it lies there.
    pub layout: Layout,
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

/// A device: one arena, regions in and out, kernel launches.
pub trait Backend<T: Real> {
    /// Computes a region of a map, or a flat tensor.
    fn compute(&mut self, launch: &Launch<'_>, out: &Place);

    /// Clears a reduction with result type `out`.
    fn begin(&mut self, op: &Op, partial: &Partial, out: &Ty);

    /// Adds a region of the domain to a reduction.
    fn accumulate(&mut self, launch: &Launch<'_>, partial: &Partial, out: &Ty);

    /// Turns a partial result into the result.
    fn finish(&mut self, op: &Op, inputs: &[Ty], partial: &Partial, out: &Place);

    /// Moves `keep` to the front of a window that now holds `from`; afterwards
    /// it holds `to`, the same buffer at its new origin.
    fn slide(&mut self, from: &Place, to: &Place, keep: &Region);

    /// Copies a region of a host tensor to the device.
    fn upload(&mut self, host: &In<'_, T>, region: &Region, dst: &Place);

    /// Copies a region of a device tensor to the host.
    fn download(&mut self, src: &Place, region: &Region, host: &Out<'_, T>);

    /// Copies a region within the arena.
    fn copy(&mut self, src: &Place, region: &Region, dst: &Place);

    /// Reads a region of a source to the device.
    ///
    /// # Errors
    /// What the source says.
    fn read_source(
        &mut self,
        source: &dyn TileSource<T>,
        region: &Region,
        dst: &Place,
    ) -> Result<(), SourceError>;

    /// Updates a parameter. `t` counts from 1.
    fn update(
        &mut self,
        rule: &UpdateRule,
        lr: f64,
        t: u64,
        param: &Place,
        grad: &Place,
        slots: &[Place],
    );

    /// Copies a whole dense tensor to the device.
    fn write(&mut self, place: &Place, data: &[T]);

    /// Copies a whole dense tensor from the device.
    fn read(&mut self, place: &Place) -> Vec<T>;
}
