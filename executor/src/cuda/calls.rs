//! What the interpreter asks for, as calls on streams.

use std::sync::Arc;

use sstep_autodiff::{Op, ReductionState, Region, Ty};
use sstep_kernels::cuda::{self as kernels, Placed};
use sstep_kernels::{Box4, In, Layout, Out, Real, UpdateRule};

use crate::backend::{Backend, HostMemory, Launch, Partial, Place};
use crate::disk::DiskMap;
use crate::error::ExecError;
use crate::source::TileSource;

use super::pinned::Pinned;
use super::schedule::{Bytes, Lane};
use super::{Cuda, copies, driver};

impl<T: Real> Backend<T> for Cuda<T> {
    fn compute(&mut self, launch: &Launch<'_>, out: &Place) -> Result<(), ExecError> {
        self.order_launch(launch, self.bytes(out))?;
        let out = self.placed(out);
        let steps = self.with_task(launch, |task| kernels::compute(task, &out));
        self.carry_out(&steps)
    }

    fn begin(&mut self, op: &Op, partial: &Partial, out: &Ty) -> Result<(), ExecError> {
        self.order(Lane::Compute, &[], &[self.partial_bytes(partial)])?;
        let (_, at) = self.partial(partial, out);
        self.run(&kernels::begin(op, at.address, out))
    }

    fn accumulate(
        &mut self,
        launch: &Launch<'_>,
        partial: &Partial,
        out: &Ty,
    ) -> Result<(), ExecError> {
        self.order_launch(launch, self.partial_bytes(partial))?;
        let (state, at) = self.partial(partial, out);
        let steps = self.with_task(launch, |task| kernels::accumulate(task, state, &at));
        self.carry_out(&steps)
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
                let read = self.partial_bytes(partial);
                self.order(Lane::Compute, &[read], &[self.bytes(out)])?;
                let (_, state) = self.partial(partial, &ty);
                let out = self.placed(out);
                self.run(&kernels::finish(op, inputs, state.address, &out))
            }
        }
    }

    fn slide(&mut self, from: &Place, to: &Place, keep: &Region) -> Result<(), ExecError> {
        self.order(Lane::Compute, &[self.bytes(from)], &[self.bytes(to)])?;
        let (from, to) = (self.placed(from), self.placed(to));
        self.run(&kernels::slide(&from, &to, &Box4::lift(keep)))
    }

    fn host_memory(&mut self, elems: usize) -> Result<HostMemory<T>, ExecError> {
        Ok(Box::new(Pinned::<T>::new(&self.context, elems)?))
    }

    fn beside_arena_bytes(&self) -> u64 {
        // Asked anew: libraries load their kernels when they are first called.
        match driver::memory(&self.context) {
            Ok((free, total)) => total.saturating_sub(free + self.arena.bytes),
            Err(_) => 0,
        }
    }

    fn upload(&mut self, host: &In<'_, T>, region: &Region, dst: &Place) -> Result<(), ExecError> {
        let from = host.addresses();
        let to = self.bytes(dst);
        self.order(Lane::ToDevice, &[from], &[to])?;
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
        let from = self.bytes(src);
        let to = host.addresses();
        self.order(Lane::ToHost, &[from], &[to])?;
        let region = Box4::lift(region);
        let placed = self.placed(src);
        copies::download(self.stream(Lane::ToHost), &placed, &region, host)?;
        Ok(())
    }

    fn spill(&mut self, src: &Place, region: &Region, disk: &DiskMap<'_>) -> Result<(), ExecError> {
        disk.write_staged(region, |piece, host| {
            self.download(src, piece, host)?;
            // The disk's buffer is read as soon as this returns.
            Ok(self.drain(Lane::ToHost)?)
        })
    }

    fn copy(&mut self, src: &Place, region: &Region, dst: &Place) -> Result<(), ExecError> {
        self.order(Lane::Compute, &[self.bytes(src)], &[self.bytes(dst)])?;
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
        let reads = [self.bytes(grad)];
        let writes: Vec<Bytes> = [param]
            .into_iter()
            .chain(slots)
            .map(|p| self.bytes(p))
            .collect();
        self.order(Lane::Compute, &reads, &writes)?;
        let slots: Vec<Placed> = slots.iter().map(|p| self.placed(p)).collect();
        let (param, grad) = (self.placed(param), self.placed(grad));
        self.run(&kernels::update(rule, lr, t, &param, &grad, &slots))
    }

    fn write(&mut self, place: &Place, data: &[T]) -> Result<(), ExecError> {
        self.order(Lane::ToDevice, &[], &[self.bytes(place)])?;
        let to = self.placed(place);
        copies::write(
            self.stream(Lane::ToDevice),
            to.address,
            &data[..place.layout.len],
        )?;
        Ok(())
    }

    fn read(&mut self, place: &Place) -> Result<Vec<T>, ExecError> {
        self.order(Lane::ToHost, &[self.bytes(place)], &[])?;
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
