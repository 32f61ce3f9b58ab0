//! Concatenation, cutting, padding and repetition: values are moved, not made.

use serde::{Deserialize, Serialize};

use crate::error::TapeError;
use crate::grad::Vjp;
use crate::op::{Op, PerAxis};
use crate::ty::{MAX_RANK, MAX_SPATIAL, Shape, Ty};

use super::check::{self, Checked, MAX_EXTENT, ensure};

/// A box cut out of channels (index 0) and spatial axes (1…).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SliceAttrs {
    /// First index kept, per channel and spatial axis.
    pub start: [usize; 1 + MAX_SPATIAL],
    /// Number of indices kept.
    pub len: [usize; 1 + MAX_SPATIAL],
}

/// Zeros put around channels (index 0) and spatial axes (1…).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PadAttrs {
    /// Zeros before.
    pub lo: [usize; 1 + MAX_SPATIAL],
    /// Zeros after.
    pub hi: [usize; 1 + MAX_SPATIAL],
}

/// Names axis `i` of a slice or padding.
fn axis(i: usize) -> String {
    if i == 0 {
        "channels".to_owned()
    } else {
        format!("spatial axis {}", i - 1)
    }
}

pub(super) fn infer_concat(inputs: &[Ty]) -> Checked<Ty> {
    let first = &inputs[0];
    let mut channels = 0usize;
    for (i, t) in inputs.iter().enumerate() {
        check::expect_channels("every input", t)?;
        ensure!(
            t.form == first.form && t.shape.with_channels(1) == first.shape.with_channels(1),
            "inputs differ in channels only, but input 0 is {} and input {i} is {}",
            first.shape,
            t.shape
        );
        channels = channels.saturating_add(t.shape.channels());
    }
    let shape = first.shape.with_channels(channels);
    check::ty(first.dtype, first.form, shape.dims())
}

/// Number of sliceable axes: channels and space.
fn n_axes(t: &Ty) -> usize {
    t.shape.rank() - 1
}

pub(super) fn infer_slice(a: &SliceAttrs, x: &Ty) -> Checked<Ty> {
    check::expect_channels("the input", x)?;
    let n = n_axes(x);
    let mut dims = [1; MAX_RANK];
    dims[0] = x.shape.batch();
    for i in 0..1 + MAX_SPATIAL {
        let (start, len) = (a.start[i], a.len[i]);
        if i >= n {
            ensure!(
                start == 0 && len == 1,
                "a slice must start at 0 with length 1 beyond the axes of {}",
                x.shape
            );
            continue;
        }
        let extent = x.shape.dim(1 + i);
        ensure!(
            len >= 1,
            "a slice must keep at least one index of {}",
            axis(i)
        );
        ensure!(
            start.checked_add(len).is_some_and(|end| end <= extent),
            "indices {start} to {start} + {len} of {} reach beyond its extent {extent}",
            axis(i)
        );
        dims[1 + i] = len;
    }
    check::ty(x.dtype, x.form, &dims[..1 + n])
}

pub(super) fn infer_pad(a: &PadAttrs, x: &Ty) -> Checked<Ty> {
    check::expect_channels("the input", x)?;
    let n = n_axes(x);
    let mut dims = [1; MAX_RANK];
    dims[0] = x.shape.batch();
    for i in 0..1 + MAX_SPATIAL {
        let (lo, hi) = (a.lo[i], a.hi[i]);
        if i >= n {
            ensure!(
                lo == 0 && hi == 0,
                "padding must be 0 beyond the axes of {}",
                x.shape
            );
            continue;
        }
        let most = lo.max(hi);
        ensure!(
            most <= MAX_EXTENT,
            "the padding {most} of {} is above the limit of {MAX_EXTENT}",
            axis(i)
        );
        dims[1 + i] = x.shape.dim(1 + i) + lo + hi;
    }
    check::ty(x.dtype, x.form, &dims[..1 + n])
}

/// The map that `[N, C]` and the attributes of a broadcast describe.
pub(super) fn spread(n: usize, c: usize, spatial: &PerAxis, n_spatial: u8, v: &Ty) -> Checked<Ty> {
    let k = n_spatial as usize;
    ensure!(
        (1..=MAX_SPATIAL).contains(&k),
        "a map has 1 to {MAX_SPATIAL} spatial axes, not {k}"
    );
    check::expect_axes("the spatial extent", spatial, k, 1)?;
    check::map(v.dtype, n, c, &spatial[..k])
}

pub(super) fn infer_broadcast(spatial: &PerAxis, n_spatial: u8, v: &Ty) -> Checked<Ty> {
    check::expect_flat("the input", v)?;
    ensure!(
        v.shape.rank() == 2,
        "the input must have shape [N, C], not {}",
        v.shape
    );
    spread(v.shape.batch(), v.shape.channels(), spatial, n_spatial, v)
}

/// A map's spatial extents as per-axis attributes, and how many there are.
pub(super) fn spatial_of(shape: &Shape) -> (PerAxis, u8) {
    let mut spatial = [1; MAX_SPATIAL];
    spatial[..shape.spatial().len()].copy_from_slice(shape.spatial());
    (spatial, shape.spatial().len() as u8)
}

/// Each input gets its channels of `ȳ`.
pub(super) fn vjp_concat(v: &mut Vjp) -> Result<(), TapeError> {
    let mut first = 0;
    for i in 0..v.inputs.len() {
        let shape = v.ty(v.inputs[i]).shape;
        let mut slice = SliceAttrs {
            start: [0; 1 + MAX_SPATIAL],
            len: [1; 1 + MAX_SPATIAL],
        };
        slice.start[0] = first;
        slice.len[..shape.rank() - 1].copy_from_slice(&shape.dims()[1..]);
        first += shape.channels();
        v.give_op(i, Op::Slice(slice), &[v.cotangent])?;
    }
    Ok(())
}

/// Zeros where nothing was kept.
pub(super) fn vjp_slice(v: &mut Vjp, a: &SliceAttrs) -> Result<(), TapeError> {
    let shape = v.ty(v.inputs[0]).shape;
    let mut pad = PadAttrs {
        lo: a.start,
        hi: [0; 1 + MAX_SPATIAL],
    };
    for (i, hi) in pad.hi.iter_mut().enumerate().take(shape.rank() - 1) {
        *hi = shape.dim(1 + i) - a.start[i] - a.len[i];
    }
    v.give_op(0, Op::Pad(pad), &[v.cotangent])
}

/// What lay between the zeros.
pub(super) fn vjp_pad(v: &mut Vjp, a: &PadAttrs) -> Result<(), TapeError> {
    let shape = v.ty(v.inputs[0]).shape;
    let mut slice = SliceAttrs {
        start: a.lo,
        len: [1; 1 + MAX_SPATIAL],
    };
    slice.len[..shape.rank() - 1].copy_from_slice(&shape.dims()[1..]);
    v.give_op(0, Op::Slice(slice), &[v.cotangent])
}

/// The sum over the space that was filled.
pub(super) fn vjp_broadcast(v: &mut Vjp) -> Result<(), TapeError> {
    v.give_op(0, Op::SumMap { keep_batch: true }, &[v.cotangent])
}
