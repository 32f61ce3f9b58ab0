//! What the interpreter asks for, as calls on streams.

use sstep_autodiff::{DType, Form, Op, ReductionState, Region, Shape, Ty};
use sstep_kernels::cuda::{self as kernels, Placed, Step};
use sstep_kernels::{AnyIn, AnyOut, Box4, Element, Layout, Pace, Real, UpdateRule, with_element};

use crate::backend::{Backend, HostMemory, Launch, Partial, Place, elements_bytes};
use crate::disk::{DiskMap, PIECE_BYTES};
use crate::error::ExecError;
use crate::source::TileSource;

use super::driver::failed;
use super::queue::Queue;
use super::schedule::{Bytes, Lane};
use super::spill::Piece;
use super::{Cuda, copies, driver, pinned};

impl<T: Real> Backend<T> for Cuda<T> {
    fn stores(&self, dtype: DType) -> bool {
        dtype == T::DTYPE || (self.narrow && dtype.wide() == T::DTYPE)
    }

    fn compute(&mut self, launch: &Launch<'_>, out: &Place) -> Result<(), ExecError> {
        let number = self.order_launch(launch, self.bytes(out))?;
        let out = self.placed(out);
        let steps = self.with_task(launch, |task| kernels::compute(task, &out));
        match launch.op {
            // Its numbers depend on the step's.
            Op::Dropout { .. } => self.give_alone(steps, number),
            _ => self.queue(steps, number),
        }
    }

    fn begin_step(&mut self) {
        // What a step that failed has left.
        self.queue = Queue::default();
        let _ = self.writer.wait();
        self.graphs.begin_step();
    }

    fn begin(&mut self, op: &Op, partial: &Partial, out: &Ty) -> Result<(), ExecError> {
        let number = self.order_kernels(&[], &[self.partial_bytes(partial)])?;
        let (_, at) = self.partial(partial, out);
        self.queue([Step::Kernel(kernels::begin(op, at.address, out))], number)
    }

    fn accumulate(
        &mut self,
        launch: &Launch<'_>,
        partial: &Partial,
        out: &Ty,
    ) -> Result<(), ExecError> {
        let number = self.order_launch(launch, self.partial_bytes(partial))?;
        let (state, at) = self.partial(partial, out);
        let steps = self.with_task(launch, |task| kernels::accumulate(task, state, &at));
        self.queue(steps, number)
    }

    fn finish(
        &mut self,
        op: &Op,
        inputs: &[Ty],
        partial: &Partial,
        out: &Place,
    ) -> Result<(), ExecError> {
        let ty = out.layout.ty();
        match op.reduction_state(&ty) {
            ReductionState::InPlace => Ok(()),
            ReductionState::F64(_) => {
                let read = self.partial_bytes(partial);
                let number = self.order_kernels(&[read], &[self.bytes(out)])?;
                let (_, state) = self.partial(partial, &ty);
                let out = self.placed(out);
                let call = kernels::finish(op, inputs, state.address, &out);
                self.queue([Step::Kernel(call)], number)
            }
        }
    }

    fn slide(&mut self, from: &Place, to: &Place, keep: &Region) -> Result<(), ExecError> {
        let number = self.order_kernels(&[self.bytes(from)], &[self.bytes(to)])?;
        let (from, to) = (self.placed(from), self.placed(to));
        let call = kernels::slide(&from, &to, &Box4::lift(keep));
        self.queue([Step::Kernel(call)], number)
    }

    fn host_memory(&mut self, bytes: usize) -> Result<HostMemory, ExecError> {
        Ok(pinned::memory(&self.context, bytes)?)
    }

    fn beside_arena_bytes(&self) -> u64 {
        // Asked anew: libraries load their kernels when they are first called.
        match driver::memory(&self.context) {
            Ok((free, total)) => total.saturating_sub(free + self.arena.bytes),
            Err(_) => 0,
        }
    }

    fn upload(&mut self, host: &AnyIn<'_>, region: &Region, dst: &Place) -> Result<(), ExecError> {
        with_element!(host.layout().dtype, E => {
            self.copy_to_device(&host.typed::<E>(), region, dst)
        })
    }

    fn download(
        &mut self,
        src: &Place,
        region: &Region,
        host: AnyOut<'_>,
    ) -> Result<(), ExecError> {
        with_element!(host.layout().dtype, E => {
            let host = host.typed::<E>();
            let from = self.bytes(src);
            self.order_copy(Lane::ToHost, &[from], &[host.addresses()])?;
            let (region, src) = (Box4::lift(region), self.placed(src));
            copies::download(self.stream(Lane::ToHost), &src, &region, &host)?;
        });
        Ok(())
    }

    fn spill(&mut self, src: &Place, region: &Region, disk: &DiskMap) -> Result<(), ExecError> {
        for region in disk.pieces(region) {
            let layout = disk.staged(&region);
            // All of one size, so that memory serves every piece.
            let bytes = (layout.len * layout.dtype.bytes()).max(PIECE_BYTES);
            let context = &self.context;
            let make = |bytes| Ok(pinned::memory(context, bytes)?);
            let mut memory = self.writer.memory(bytes, make)?;
            self.download(src, &region, AnyOut::new(layout, (*memory).as_mut()))?;
            let marked = self.stream(Lane::ToHost).record_event(None);
            let copied = marked.map_err(failed("marking a copy"))?;
            self.writer.write(Piece {
                memory,
                layout,
                region,
                disk: disk.clone(),
                copied: Box::new(move || {
                    copied.synchronize().map_err(failed("waiting for a copy"))
                }),
            })?;
        }
        Ok(())
    }

    fn unspill(&mut self, disk: &DiskMap, region: &Region, dst: &Place) -> Result<(), ExecError> {
        self.flush()?;
        self.writer.wait_for(disk)?;
        with_element!(disk.dtype(), E => {
            for region in disk.pieces(region) {
                let layout = disk.staged(&region);
                let read = |to: &mut [E]| disk.read_dense(&region, to);
                self.upload_by(|this| &mut this.unspilling, layout, &region, dst, read)?;
            }
        });
        Ok(())
    }

    fn copy(&mut self, src: &Place, region: &Region, dst: &Place) -> Result<(), ExecError> {
        let number = self.order_kernels(&[self.bytes(src)], &[self.bytes(dst)])?;
        let (src, dst) = (self.placed(src), self.placed(dst));
        let call = kernels::copy(&src, &Box4::lift(region), &dst);
        self.queue([Step::Kernel(call)], number)
    }

    fn read_source(
        &mut self,
        name: &str,
        source: &dyn TileSource<T>,
        region: &Region,
        dst: &Place,
    ) -> Result<u64, ExecError> {
        // The device computes what it was given while this reads.
        self.flush()?;
        match source.bytes() {
            Some(bytes) => {
                self.read_bytes(name, bytes, region, dst)?;
                Ok(region.points() * dst.layout.dims[1] as u64)
            }
            None => {
                self.read_elements(name, source, region, dst)?;
                Ok(elements_bytes(dst, region))
            }
        }
    }

    fn update(
        &mut self,
        rule: &UpdateRule,
        pace: &Pace,
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
        let number = self.order_kernels(&reads, &writes)?;
        let slots: Vec<Placed> = slots.iter().map(|p| self.placed(p)).collect();
        let (param, grad) = (self.placed(param), self.placed(grad));
        let call = kernels::update(rule, pace, &param, &grad, &slots);
        self.give_alone([Step::Kernel(call)], number)
    }

    fn are_finite(
        &mut self,
        tensors: &[Place],
        scratch: Option<(u64, u64)>,
    ) -> Result<bool, ExecError> {
        let slots = Ty {
            dtype: DType::F64,
            shape: Shape::new(&[kernels::FINITE_SLOTS]),
            form: Form::Flat,
        };
        let Some((offset, _)) = scratch.filter(|s| s.1 >= slots.bytes()) else {
            for tensor in tensors {
                let values = self.read(tensor)?;
                if !values.iter().all(|x| x.to_f64().is_finite()) {
                    return Ok(false);
                }
            }
            return Ok(true);
        };
        let layout = Layout::whole(&slots);
        let counts = Place { offset, layout };
        let reads: Vec<Bytes> = tensors.iter().map(|p| self.bytes(p)).collect();
        let number = self.order_kernels(&reads, &[self.bytes(&counts)])?;
        let tensors: Vec<Placed> = tensors.iter().map(|p| self.placed(p)).collect();
        let calls = kernels::not_finite(&tensors, self.placed(&counts).address);
        self.queue(calls.into_iter().map(Step::Kernel), number)?;
        let counts = self.read(&counts)?;
        Ok(counts.iter().all(|&n| n == T::ZERO))
    }

    fn write(&mut self, place: &Place, data: &[T]) -> Result<(), ExecError> {
        self.order_copy(Lane::ToDevice, &[], &[self.bytes(place)])?;
        let to = self.placed(place);
        copies::write(
            self.stream(Lane::ToDevice),
            to.address,
            &data[..place.layout.len],
        )?;
        self.schedule.drained(Lane::ToDevice);
        Ok(())
    }

    fn read(&mut self, place: &Place) -> Result<Vec<T>, ExecError> {
        self.order_copy(Lane::ToHost, &[self.bytes(place)], &[])?;
        let from = self.placed(place);
        Ok(with_element!(place.layout.dtype, E => {
            let mut data = vec![E::default(); place.layout.len];
            copies::read(self.stream(Lane::ToHost), from.address, &mut data)?;
            self.schedule.drained(Lane::ToHost);
            data.iter().map(|x| T::from_f64(x.value())).collect()
        }))
    }

    fn wait(&mut self) -> Result<(), ExecError> {
        for lane in Lane::ALL {
            self.drain(lane)?;
        }
        self.graphs.end_step();
        self.writer.wait()
    }
}
