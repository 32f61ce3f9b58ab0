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

mod plain;
mod tasks;
#[cfg(test)]
mod tests;

use sstep_autodiff::{ConvAttrs, ConvTransposeAttrs};

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
    let _ = ws;
    plain::weight_grad(&geom, job, w);
}
