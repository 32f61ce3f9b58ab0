//! Regions that come from elsewhere, on their way to the device: of images, and of
//! the spill file.
//!
//! They pass page-locked memory (`staging`). An image of bytes is copied as bytes, each
//! row to the end of the room that its elements will take, and a kernel makes elements of
//! them in place: a quarter of the copy, or an eighth, and no memory of the device for it.

use std::sync::Arc;

use bytemuck::Pod;
use sstep_autodiff::Region;
use sstep_kernels::cuda::{self as kernels, Step};
use sstep_kernels::{Box4, In, Layout, Out, Real};

use crate::backend::Place;
use crate::error::ExecError;
use crate::source::{ByteSource, TileSource};

use super::schedule::Lane;
use super::staging::Staging;
use super::{Cuda, copies};

impl<T: Real> Cuda<T> {
    /// Reads a region of an image as elements.
    pub(super) fn read_elements(
        &mut self,
        name: &str,
        source: &dyn TileSource<T>,
        region: &Region,
        dst: &Place,
    ) -> Result<(), ExecError> {
        let layout = Layout::dense(&dst.layout.ty(), region);
        let read = |to: &mut [T]| {
            let read = source.read(region, &mut Out::new(layout, to));
            read.map_err(ExecError::reading(name))
        };
        self.upload_by(|this| &mut this.staging, layout, region, dst, read)
    }

    /// Reads a region of an image as bytes, and has the device make elements of them.
    pub(super) fn read_bytes(
        &mut self,
        name: &str,
        source: &dyn ByteSource,
        region: &Region,
        dst: &Place,
    ) -> Result<(), ExecError> {
        let layout = Layout::dense(&dst.layout.ty(), region);
        let read = |to: &mut [u8]| {
            let read = source.read_bytes(region, &mut Out::new(layout, to));
            read.map_err(ExecError::reading(name))
        };
        self.upload_by(|this| &mut this.staging, layout, region, dst, read)?;
        let number = self.order_kernels(&[], &[self.bytes(dst)])?;
        let calls = kernels::from_bytes(&self.placed(dst), &Box4::lift(region), source.scales());
        self.queue(calls.into_iter().map(Step::Kernel), number)
    }

    /// Copies to the device what `read` puts into a buffer of `staging`.
    pub(super) fn upload_by<S: Pod>(
        &mut self,
        staging: impl Fn(&mut Self) -> &mut Staging,
        layout: Layout,
        region: &Region,
        dst: &Place,
        read: impl FnOnce(&mut [S]) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        let mut slot = staging(self).take::<S>(layout.len)?;
        let copied = read(slot.elements())
            .and_then(|()| self.copy_to_device(&In::new(layout, slot.elements()), region, dst));
        // Whatever came of it, the buffer serves the next.
        let stream = Arc::clone(self.stream(Lane::ToDevice));
        staging(self).give_back(slot, &stream)?;
        copied
    }

    /// Gives the copy of a region to its stream, in its turn.
    pub(super) fn copy_to_device<S: Copy>(
        &mut self,
        host: &In<'_, S>,
        region: &Region,
        dst: &Place,
    ) -> Result<(), ExecError> {
        let from = host.addresses();
        let to = self.bytes(dst);
        self.order_copy(Lane::ToDevice, &[from], &[to])?;
        let region = Box4::lift(region);
        let dst = self.placed(dst);
        copies::upload(self.stream(Lane::ToDevice), host, &region, &dst)?;
        Ok(())
    }
}
