//! Regions on their way to the stage's windows and from them.

use sstep_autodiff::Region;
use sstep_kernels::{AnyIn, AnyOut, Real};
use sstep_planner::{At, Home, HostIx, ItemRole, NodeIx};

use super::{Interpreter, inconsistent};
use crate::backend::Place;
use crate::cpu::host_layout;
use crate::error::ExecError;

impl<T: Real> Interpreter<'_, T> {
    /// Copies a region of what an item computed to where it is kept.
    pub(super) fn store(&mut self, at: At, region: Region, home: Home) -> Result<(), ExecError> {
        let src = self.item_place(at)?;
        let node = self.node(at);
        match home {
            Home::Device(b) => {
                let dst = self.whole(b, node);
                self.backend.copy(&src, &region, &dst)?;
            }
            Home::Host(h) => match self.item(at).staged_store(home) {
                None => self.offload(h, node, &src, &region)?,
                Some(b) => {
                    let staging = self.staged(b, node, &region);
                    self.backend.copy(&src, &region, &staging)?;
                    self.offload(h, node, &staging, &region)?;
                }
            },
            Home::Disk(d) => {
                let disk = self.disk(d, node)?;
                self.backend.spill(&src, &region, &disk)?;
                self.measured.disk_write_bytes += self.region_bytes(node, &region);
            }
            Home::Source => return Err(inconsistent("a source is written")),
        }
        Ok(())
    }

    pub(super) fn fetch(
        &mut self,
        at: At,
        region: Region,
        present: Region,
    ) -> Result<(), ExecError> {
        self.enter(at.stage);
        let node = self.node(at);
        self.present[at.item as usize] = present;
        let dst = self.item_place(at)?;
        if let Some(b) = self.item(at).staged_fetch() {
            let staging = self.staged(b, node, &region);
            return self.backend.copy(&staging, &region, &dst);
        }
        match self.item(at).role {
            ItemRole::Supply(Home::Source) => {
                let source = self.sources.get(&node);
                let source = source.ok_or_else(|| inconsistent("a source is missing"))?;
                let name = &self.plan.program.node(node).name;
                let read = (self.backend).read_source(name, source.as_ref(), &region, &dst);
                self.measured.source_bytes += read?;
                Ok(())
            }
            ItemRole::Supply(Home::Disk(d)) => {
                let disk = self.disk(d, node)?;
                self.backend.unspill(&disk, &region, &dst)?;
                self.measured.disk_read_bytes += self.region_bytes(node, &region);
                Ok(())
            }
            _ => self.upload(at, region, &dst),
        }
    }

    /// Copies a region of what an item reads from the host to the device.
    pub(super) fn upload(&mut self, at: At, region: Region, dst: &Place) -> Result<(), ExecError> {
        let ItemRole::Supply(Home::Host(h)) = self.item(at).role else {
            return Err(inconsistent("something is fetched from nowhere"));
        };
        let node = self.node(at);
        let data = self.host.get(h);
        let data = data.ok_or_else(|| inconsistent("a host tensor is not there"))?;
        let host = AnyIn::new(host_layout(&self.plan.program.node(node).ty), data);
        self.backend.upload(&host, &region, dst)?;
        self.measured.h2d_bytes += self.region_bytes(node, &region);
        Ok(())
    }

    pub(super) fn offload(
        &mut self,
        h: HostIx,
        node: NodeIx,
        src: &Place,
        region: &Region,
    ) -> Result<(), ExecError> {
        let ty = self.plan.program.node(node).ty;
        let make = |bytes| self.backend.host_memory(bytes);
        let data = self.host.get_mut(h, ty.bytes() as usize, make)?;
        self.backend
            .download(src, region, AnyOut::new(host_layout(&ty), data))?;
        self.measured.host_peak_bytes = self.host.peak_bytes();
        self.measured.d2h_bytes += self.region_bytes(node, region);
        Ok(())
    }
}
