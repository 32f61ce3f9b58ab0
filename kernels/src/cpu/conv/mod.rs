//! Convolution, its data gradient and its weight gradient on the CPU.
//!
//! All three are the same sum over (channel, tap), so one lifted geometry
//! ([`Geom`]) and one zero-padded copy of the needed rows serve them all. A
//! textbook version for any element type lives in `plain`; `f32` on machines
//! with AVX2 and FMA takes register-blocked kernels that give the same bits.
//!
//! **Order.** An output element starts from zero; then come the input channels
//! of its group in ascending order and for each its taps in row-major order,
//! one fused multiply-add apiece; the bias is added last. Taps in the zero
//! padding take part with the value zero. This order does not depend on region,
//! threads or scratch, and neither do the bits.
//!
//! A weight gradient is a sum over positions instead, so its bits do depend on
//! the region (and on how much scratch there is), never on the threads' timing.

#[cfg(target_arch = "x86_64")]
mod blocks;
#[cfg(target_arch = "x86_64")]
mod columns;
#[cfg(target_arch = "x86_64")]
mod correlate;
#[cfg(target_arch = "x86_64")]
mod depthwise;
#[cfg(target_arch = "x86_64")]
mod direct;
#[cfg(target_arch = "x86_64")]
mod dots;
#[cfg(target_arch = "x86_64")]
mod lowered;
#[cfg(target_arch = "x86_64")]
mod outer;
#[cfg(target_arch = "x86_64")]
mod panel;
#[cfg(target_arch = "x86_64")]
mod phases;
mod plain;
#[cfg(target_arch = "x86_64")]
mod product;
#[cfg(target_arch = "x86_64")]
mod ring;
#[cfg(target_arch = "x86_64")]
mod stores;
mod tasks;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tile;
#[cfg(target_arch = "x86_64")]
mod transpose;
#[cfg(target_arch = "x86_64")]
mod vector;
#[cfg(target_arch = "x86_64")]
mod wgrad;
mod winograd;

#[cfg(target_arch = "x86_64")]
use std::any::TypeId;

use sstep_autodiff::{ConvAlgo, ConvAttrs, ConvTransposeAttrs};

use crate::Job;
use crate::real::Real;
use crate::view::Out;

/// Scratch that convolutions like to have, in bytes, for the threads of the
/// current rayon pool. Less is slower, never wrong.
pub fn workspace_bytes() -> usize {
    tasks::BYTES_PER_THREAD * rayon::current_num_threads()
}

/// Geometry lifted to three spatial axes, like the views.
#[derive(Clone, Copy, Debug)]
struct Geom {
    kernel: [usize; 3],
    stride: [usize; 3],
    dilation: [usize; 3],
    pad: [usize; 3],
    groups: usize,
}

impl Geom {
    fn new(a: &ConvAttrs, n_spatial: usize) -> Self {
        let first = 3 - n_spatial;
        let mut g = Geom {
            kernel: [1; 3],
            stride: [1; 3],
            dilation: [1; 3],
            pad: [0; 3],
            groups: a.groups,
        };
        for s in 0..n_spatial {
            g.kernel[first + s] = a.kernel[s];
            g.stride[first + s] = a.stride[s];
            g.dilation[first + s] = a.dilation[s];
            g.pad[first + s] = a.pad_lo[s];
        }
        g
    }

    fn taps(&self) -> usize {
        self.kernel.iter().product()
    }
}

/// Convolution: inputs `(x, w[, b])`, all output channels of the job's region.
pub(crate) fn conv<T: Real>(a: &ConvAttrs, job: &Job<T>, out: &mut Out<T>, ws: &mut [u8]) {
    if job.region.points() == 0 {
        return;
    }
    let geom = Geom::new(a, out.layout().shape.rank() - 2);
    match algo(a, job) {
        ConvAlgo::Direct => {}
        ConvAlgo::Winograd => return winograd(&winograd::Problem::conv(&geom, job, out), job, ws),
    }
    #[cfg(target_arch = "x86_64")]
    if fast(job) {
        check(job, out);
        // SAFETY: `fast` found that `T` is `f32`.
        let (job, out) = unsafe { (same(job), same(&*out)) };
        let scratch = tasks::floats(ws);
        if depthwise::conv(&geom, job, out, scratch)
            || lowered::conv(&geom, job, out, scratch)
            || direct::conv(&geom, job, out, scratch)
        {
            return;
        }
    }
    // Only the fast kernels have a use for scratch.
    let _ = ws;
    plain::conv(&geom, job, out);
}

/// Transposed convolution: inputs `(x, w[, b])` with `w: [K, C/g, kernel…]`,
/// where `x` has `K` channels and the output `C`.
pub(crate) fn transpose<T: Real>(
    a: &ConvTransposeAttrs,
    job: &Job<T>,
    out: &mut Out<T>,
    ws: &mut [u8],
) {
    if job.region.points() == 0 {
        return;
    }
    let geom = Geom::new(&a.conv, out.layout().shape.rank() - 2);
    match algo(&a.conv, job) {
        ConvAlgo::Direct => {}
        ConvAlgo::Winograd => {
            return winograd(&winograd::Problem::adjoint(&geom, job, out), job, ws);
        }
    }
    #[cfg(target_arch = "x86_64")]
    if fast(job) {
        check(job, out);
        // SAFETY: `fast` found that `T` is `f32`.
        let (job, out) = unsafe { (same(job), same(&*out)) };
        let scratch = tasks::floats(ws);
        if depthwise::adjoint(&geom, job, out, scratch)
            || lowered::adjoint(&geom, job, out, scratch)
            || transpose::transpose(&geom, job, out, scratch)
        {
            return;
        }
    }
    // Only the fast kernels have a use for scratch.
    let _ = ws;
    plain::transpose(&geom, job, out);
}

/// Weight gradient: inputs `(x, ȳ)`; adds the sum over the job's region, a box
/// of `ȳ`, to `w: [K, C/g, kernel…]`.
pub(crate) fn weight_grad<T: Real>(a: &ConvAttrs, job: &Job<T>, w: &mut [T], ws: &mut [u8]) {
    if job.region.points() == 0 {
        return;
    }
    let geom = Geom::new(a, job.inputs[1].layout().shape.rank() - 2);
    #[cfg(target_arch = "x86_64")]
    if fast(job) {
        // SAFETY: `fast` found that `T` is `f32`.
        let (job, w) = unsafe { (same(job), same_mut(w)) };
        let floats = tasks::floats(ws);
        // A sum over positions may be split in any way, so either may compute it.
        let done = match a.algo {
            ConvAlgo::Direct => false,
            ConvAlgo::Winograd => winograd::weight_grad(&geom, job, w, floats),
        };
        if done
            || depthwise::weight_grad(&geom, job, w, floats)
            || correlate::weight_grad(&geom, job, w, floats)
            || wgrad::weight_grad(&geom, job, w, floats)
        {
            return;
        }
    }
    // Only the fast kernels have a use for scratch.
    let _ = ws;
    plain::weight_grad(&geom, job, w);
}

/// The algorithm to use: the reference's straightforward loops are direct.
fn algo<T: Real>(a: &ConvAttrs, job: &Job<T>) -> ConvAlgo {
    if job.plain { ConvAlgo::Direct } else { a.algo }
}

/// Computes a convolution or an adjoint by Winograd's algorithm.
fn winograd<T: Real>(problem: &winograd::Problem<T>, job: &Job<T>, ws: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    if fast(job) {
        // SAFETY: `fast` found that `T` is `f32`.
        let problem = unsafe { same(problem) };
        if winograd::compute(problem, tasks::floats(ws)) {
            return;
        }
    }
    // Only the fast kernels have a use for scratch.
    let _ = (job, ws);
    winograd::plain(problem);
}

/// Kernels that store through raw pointers rely on the view to hold the region.
#[cfg(target_arch = "x86_64")]
fn check<T: Real>(job: &Job<T>, out: &Out<T>) {
    let present = &out.layout().present.0;
    let region = &job.region;
    let inside = present.iter().zip(&region.0).all(|(p, r)| p.contains(*r));
    assert!(inside, "the output view holds the region {region:?}");
    let [n, d, h] = [region.n(), region.s(0), region.s(1)].map(|span| span.end - 1);
    // SAFETY: dropped at once. The view checks that its last row, and with it
    // all before, lies in its buffer.
    let _ = unsafe { out.row_mut(n, out.dims()[1] - 1, d, h, region.s(2)) };
}

/// Whether hand-written kernels may run: `f32`, the instructions, and nobody
/// asked for the plain loops.
#[cfg(target_arch = "x86_64")]
fn fast<T: Real>(job: &Job<T>) -> bool {
    TypeId::of::<T>() == TypeId::of::<f32>() && !job.plain && plain::has_fma()
}

/// Runs `f` with the vectors of a machine without AVX-512; for tests.
#[cfg(test)]
fn narrowly<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    return vector::narrowly(f);
    #[cfg(not(target_arch = "x86_64"))]
    f()
}

/// A slice as the type that it is.
///
/// # Safety
/// `A` and `B` are the same type.
#[cfg(target_arch = "x86_64")]
unsafe fn same_mut<A, B>(values: &mut [A]) -> &mut [B] {
    // SAFETY: the borrow of the same elements, passed on.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), values.len()) }
}

/// A value as the type that it is.
///
/// # Safety
/// `A` and `B` are the same type up to lifetimes.
#[cfg(target_arch = "x86_64")]
unsafe fn same<A, B>(value: &A) -> &B {
    // SAFETY: a shared borrow of the same type; the lifetimes inside are covered
    // by the borrow's own, and kernels keep neither.
    unsafe { &*(&raw const *value).cast::<B>() }
}
