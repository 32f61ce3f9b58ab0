//! The CPU as a device.
//!
//! The arena is one allocation of exactly the cap; "host" is other memory, so
//! copies, caps and counters are real and every plan runs without a GPU. Kernels
//! use threads inside a tile: at the tile sizes plans choose that is level with
//! a tile per thread and needs half the windows.
//!
//! All `unsafe` of the crate is here: views into the arena are raw because a
//! kernel reads and writes different buffers of one allocation. That they do
//! not overlap while live is what the plan's verifier has checked.

mod chain;

use memmap2::MmapMut;
use rayon::prelude::*;
use sstep_autodiff::{DType, Op, ReductionState, Region, Ty};
use sstep_kernels::{
    AnyIn, AnyOut, Box4, Element, In, Job, Layout, Out, Pace, Real, State, StoredJob, UpdateRule,
    cpu, optim, with_element,
};

use crate::backend::{Backend, Launch, Link, Partial, Place, elements_bytes};
use crate::disk::DiskMap;
use crate::error::ExecError;
use crate::source::TileSource;

/// Elements from which on a copy is split over threads.
const PARALLEL_COPY: usize = 1 << 16;

/// The CPU's arena.
pub struct Cpu {
    /// Touched through raw views only.
    memory: MmapMut,
    bytes: usize,
}

impl Cpu {
    fn with_stored<R>(&self, launch: &Launch<'_>, run: impl FnOnce(&StoredJob<'_>) -> R) -> R {
        let inputs: Vec<AnyIn<'_>> = launch.inputs.iter().map(|p| self.any_input(p)).collect();
        run(&StoredJob {
            op: launch.op,
            region: launch.region,
            inputs: &inputs,
            step: launch.step,
            seed: launch.seed,
        })
    }

    /// Maps an arena of exactly `bytes`.
    ///
    /// # Errors
    /// [`ExecError::Arena`] if that much cannot be had.
    pub fn new(bytes: u64) -> Result<Self, ExecError> {
        let failed = || ExecError::Arena { bytes };
        let size = usize::try_from(bytes).map_err(|_| failed())?;
        // A mapping of nothing is refused.
        let memory = MmapMut::map_anon(size.max(1)).map_err(|_| failed())?;
        // Channels of a large map lie megabytes apart, so that a kernel walks
        // over more small pages than a processor keeps translations of. That a
        // system has no huge pages costs time and nothing else.
        #[cfg(target_os = "linux")]
        let _ = memory.advise(memmap2::Advice::HugePage);
        Ok(Cpu {
            memory,
            bytes: size,
        })
    }

    fn at<U>(&self, offset: u64, len: usize) -> *mut U {
        let end = offset as usize + len * std::mem::size_of::<U>();
        assert!(end <= self.bytes, "a buffer lies within the arena");
        assert!(
            (offset as usize).is_multiple_of(std::mem::align_of::<U>()),
            "buffers are aligned"
        );
        // SAFETY: in bounds as just checked.
        unsafe { self.memory.as_ptr().add(offset as usize).cast_mut().cast() }
    }

    fn input<'a, T: Element>(&self, place: &Place) -> In<'a, T> {
        let base = self.at::<T>(place.offset, place.layout.len);
        // SAFETY: in bounds; the verified plan has nobody write it meanwhile.
        unsafe { In::from_raw(place.layout, base) }
    }

    fn output<'a, T: Element>(&self, place: &Place) -> Out<'a, T> {
        let base = self.at::<T>(place.offset, place.layout.len);
        // SAFETY: in bounds; the verified plan has nobody else use it meanwhile.
        unsafe { Out::from_raw(place.layout, base) }
    }

    fn any_input<'a>(&self, place: &Place) -> AnyIn<'a> {
        with_element!(place.layout.dtype, E => self.input::<E>(place).into())
    }

    fn any_output<'a>(&self, place: &Place) -> AnyOut<'a> {
        with_element!(place.layout.dtype, E => self.output::<E>(place).into())
    }

    fn slice<'a, U>(&self, offset: u64, len: usize) -> &'a mut [U] {
        // SAFETY: as in `output`; the memory is initialised since it was zeroed.
        unsafe { std::slice::from_raw_parts_mut(self.at(offset, len), len) }
    }

    fn workspace<'a>(&self, launch: &Launch<'_>) -> &'a mut [u8] {
        match launch.workspace {
            Some((offset, bytes)) => self.slice(offset, bytes as usize),
            None => &mut [],
        }
    }

    fn state<'a, T: Real>(&self, partial: &Partial) -> State<'a, T> {
        match *partial {
            Partial::InPlace(place) => State::InPlace(self.slice(place.offset, place.layout.len)),
            Partial::F64 { offset, len } => State::F64(self.slice(offset, len)),
        }
    }

    fn with_job<T: Real, R>(&self, launch: &Launch<'_>, run: impl FnOnce(&Job<'_, T>) -> R) -> R {
        let inputs: Vec<In<'_, T>> = launch.inputs.iter().map(|p| self.input(p)).collect();
        run(&Job {
            op: launch.op,
            region: Box4::lift(&launch.region),
            inputs: &inputs,
            step: launch.step,
            seed: launch.seed,
            plain: false,
        })
    }
}

/// Whether a call reads or writes narrow tensors.
fn is_narrow(launch: &Launch<'_>, out: DType) -> bool {
    out.is_narrow() || launch.inputs.iter().any(|p| p.layout.dtype.is_narrow())
}

impl<T: Real> Backend<T> for Cpu {
    fn stores(&self, dtype: DType) -> bool {
        dtype.wide() == T::DTYPE
    }

    fn compute(&mut self, launch: &Launch<'_>, out: &Place) -> Result<(), ExecError> {
        let workspace = self.workspace(launch);
        if is_narrow(launch, out.layout.dtype) {
            let out = self.any_output(out);
            self.with_stored(launch, |job| cpu::run_stored(job, out, workspace));
            return Ok(());
        }
        let mut out = self.output::<T>(out);
        self.with_job(launch, |job| cpu::run(job, &mut out, workspace));
        Ok(())
    }

    fn begin(&mut self, op: &Op, partial: &Partial, out: &Ty) -> Result<(), ExecError> {
        cpu::begin::<T>(op, &mut self.state(partial), out);
        Ok(())
    }

    fn accumulate(
        &mut self,
        launch: &Launch<'_>,
        partial: &Partial,
        out: &Ty,
    ) -> Result<(), ExecError> {
        let workspace = self.workspace(launch);
        if is_narrow(launch, out.dtype) {
            let mut state = self.state::<f32>(partial);
            self.with_stored(launch, |job| {
                cpu::accumulate_stored(job, &mut state, out, workspace);
            });
            return Ok(());
        }
        let mut state = self.state::<T>(partial);
        self.with_job(launch, |job| {
            cpu::accumulate(job, &mut state, out, workspace)
        });
        Ok(())
    }

    fn chain(&mut self, links: &[Link<'_>]) -> Result<(), ExecError> {
        self.run_chain::<T>(links)
    }

    fn finish(
        &mut self,
        op: &Op,
        inputs: &[Ty],
        partial: &Partial,
        out: &Place,
    ) -> Result<(), ExecError> {
        debug_assert!(
            matches!(partial, Partial::InPlace(_))
                == (op.reduction_state(&out.layout.ty()) == ReductionState::InPlace)
        );
        cpu::finish::<T>(op, inputs, &mut self.state(partial), &mut self.output(out));
        Ok(())
    }

    fn slide(&mut self, from: &Place, to: &Place, keep: &Region) -> Result<(), ExecError> {
        with_element!(from.layout.dtype, E => {
            slide::<E>(&self.input(from), &self.output(to), keep);
        });
        Ok(())
    }

    fn upload(&mut self, host: &AnyIn<'_>, region: &Region, dst: &Place) -> Result<(), ExecError> {
        copy_any(host, region, self.any_output(dst));
        Ok(())
    }

    fn download(
        &mut self,
        src: &Place,
        region: &Region,
        host: AnyOut<'_>,
    ) -> Result<(), ExecError> {
        copy_any(&self.any_input(src), region, host);
        Ok(())
    }

    fn spill(&mut self, src: &Place, region: &Region, disk: &DiskMap) -> Result<(), ExecError> {
        with_element!(src.layout.dtype, E => disk.write(region, &self.input::<E>(src)))
    }

    fn unspill(&mut self, disk: &DiskMap, region: &Region, dst: &Place) -> Result<(), ExecError> {
        with_element!(dst.layout.dtype, E => {
            let dst = self.output::<E>(dst);
            let width = Box4::lift(region).s(2).len();
            disk.each_row(region, |at @ ([n, c, d, h], w)| {
                // SAFETY: every row is read once, by one task.
                disk.read_row(at, unsafe { dst.row_mut(n, c, d, h, w..w + width) })
            })
        })
    }

    fn copy(&mut self, src: &Place, region: &Region, dst: &Place) -> Result<(), ExecError> {
        copy_any(&self.any_input(src), region, self.any_output(dst));
        Ok(())
    }

    fn read_source(
        &mut self,
        name: &str,
        source: &dyn TileSource<T>,
        region: &Region,
        dst: &Place,
    ) -> Result<u64, ExecError> {
        let read = source.read(region, &mut self.output(dst));
        read.map_err(ExecError::reading(name))?;
        Ok(elements_bytes(dst, region))
    }

    fn update(
        &mut self,
        rule: &UpdateRule,
        pace: &Pace,
        param: &Place,
        grad: &Place,
        slots: &[Place],
    ) -> Result<(), ExecError> {
        let whole = |p: &Place| self.slice::<T>(p.offset, p.layout.len);
        let mut slots: Vec<&mut [T]> = slots.iter().map(whole).collect();
        optim::update(rule, pace, whole(param), whole(grad), &mut slots);
        Ok(())
    }

    fn are_finite(
        &mut self,
        tensors: &[Place],
        _scratch: Option<(u64, u64)>,
    ) -> Result<bool, ExecError> {
        let is_finite = |place: &Place| {
            let values = self.slice::<T>(place.offset, place.layout.len);
            values.par_iter().all(|x| x.to_f64().is_finite())
        };
        Ok(tensors.iter().all(is_finite))
    }

    fn write(&mut self, place: &Place, data: &[T]) -> Result<(), ExecError> {
        self.slice(place.offset, place.layout.len)
            .copy_from_slice(data);
        Ok(())
    }

    fn read(&mut self, place: &Place) -> Result<Vec<T>, ExecError> {
        let (offset, len) = (place.offset, place.layout.len);
        if place.layout.dtype == T::DTYPE {
            return Ok(self.slice::<T>(offset, len).to_vec());
        }
        Ok(with_element!(place.layout.dtype, E => {
            let stored = self.slice::<E>(offset, len).iter();
            stored.map(|x| T::from_f64(x.value())).collect()
        }))
    }

    fn wait(&mut self) -> Result<(), ExecError> {
        Ok(())
    }
}

/// Moves what is kept to where it lies in the new view of one buffer.
fn slide<E: Element>(old: &In<'_, E>, new: &Out<'_, E>, keep: &Region) {
    let keep = Box4::lift(keep);
    // Rows move towards the front in ascending order, so no row is
    // overwritten before it has been read; channels do not touch each other.
    let one = |c: usize| {
        for n in keep.n() {
            for d in keep.s(0) {
                for h in keep.s(1) {
                    let src = old.row(n, c, d, h, keep.s(2)).as_ptr();
                    // SAFETY: both rows are in bounds; they may overlap, so
                    // the copy is a move; no slice of either is alive.
                    unsafe {
                        let dst = new.row_mut(n, c, d, h, keep.s(2)).as_mut_ptr();
                        std::ptr::copy(src, dst, keep.s(2).len());
                    }
                }
            }
        }
    };
    let channels = old.dims()[1];
    // With several samples a channel's new rows may reach into another
    // channel's old ones: samples lie outermost.
    if keep.n().len() == 1 && keep.points() * channels >= PARALLEL_COPY {
        (0..channels).into_par_iter().for_each(one);
    } else {
        (0..channels).for_each(one);
    }
}

/// Copies a region of all channels between two views of one map, whatever it is stored
/// as.
fn copy_any(src: &AnyIn<'_>, region: &Region, dst: AnyOut<'_>) {
    with_element!(src.layout().dtype, E => copy_box::<E>(&src.typed(), region, &dst.typed()));
}

/// Copies a region of all channels between two views of one map.
fn copy_box<T: Element>(src: &In<'_, T>, region: &Region, dst: &Out<'_, T>) {
    let region = Box4::lift(region);
    let channels = src.dims()[1];
    let plane = |(n, c): (usize, usize)| {
        for d in region.s(0) {
            for h in region.s(1) {
                // SAFETY: every plane is copied by one task, every row once, and
                // source and destination are different buffers.
                let to = unsafe { dst.row_mut(n, c, d, h, region.s(2)) };
                to.copy_from_slice(src.row(n, c, d, h, region.s(2)));
            }
        }
    };
    let planes: Vec<(usize, usize)> = region
        .n()
        .flat_map(|n| (0..channels).map(move |c| (n, c)))
        .collect();
    if region.points() * channels >= PARALLEL_COPY {
        planes.into_par_iter().for_each(plane);
    } else {
        planes.into_iter().for_each(plane);
    }
}

/// The layout of a whole host tensor.
pub(crate) fn host_layout(ty: &Ty) -> Layout {
    Layout::whole(ty)
}
