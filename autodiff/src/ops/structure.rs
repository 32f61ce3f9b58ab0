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
        check::expect_second_axis("every input", t)?;
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
    check::expect_second_axis("the input", x)?;
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
    check::expect_second_axis("the input", x)?;
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

#[cfg(test)]
mod tests {
    use crate::region::Span;
    use crate::testing::{check, check_grad, reads};

    #[test]
    fn shapes() {
        let y = |op: &str| {
            format!(
                "x = input [2, 3, 4, 6]\nz = input [2, 2, 4, 6]\nv = input [2, 3]\nw = param [3]\ny = {op}"
            )
        };
        check(&[
            (&y("concat(x, z, x)"), "f32[2, 8, 4, 6]"),
            (&y("concat(v, v)"), "f32[2, 6]"),
            (
                "w = param [4, 3, 5, 5]\ny = concat(w, w)",
                "f32[4, 6, 5, 5]",
            ),
            (
                "w = param [4, 3, 5, 5]\ny = slice(w) start=[1, 0, 2] len=[2, 5, 3]",
                "f32[4, 2, 5, 3]",
            ),
            (&y("concat()"), "its inputs are (a, b, …), but 0 are given"),
            (
                &y("concat(x, v)"),
                "inputs differ in channels only, but input 0 is [2, 3, 4, 6] and input 1 is [2, 3]",
            ),
            (
                &y("concat(w, w)"),
                "every input must be a map or flat [N, C, …], not flat [3]",
            ),
            (
                &y("slice(x) start=[1, 0, 2] len=[2, 4, 3]"),
                "f32[2, 2, 4, 3]",
            ),
            (&y("slice(v) start=[1] len=[2]"), "f32[2, 2]"),
            (
                &y("slice(x) start=[1, 0, 4] len=[2, 4, 3]"),
                "indices 4 to 4 + 3 of spatial axis 1 reach beyond its extent 6",
            ),
            (
                &y("slice(x) start=[18446744073709551615, 0, 0] len=[2, 4, 3]"),
                "of channels reach beyond its extent 3",
            ),
            (
                &y("slice(x) start=[1, 0, 0] len=[0, 4, 3]"),
                "at least one index of channels",
            ),
            (&y("pad(x) lo=[0, 1, 2] hi=[1, 0, 3]"), "f32[2, 4, 5, 11]"),
            (&y("pad(v) lo=[1] hi=[0]"), "f32[2, 4]"),
            (
                &y("pad(x) lo=[0, 1, 2] hi=[1, 0, 18446744073709551615]"),
                "is above the limit",
            ),
            (&y("broadcast(v) spatial=[5, 6, 7]"), "f32[2, 3, 5, 6, 7]"),
            (
                &y("broadcast(w) spatial=[5]"),
                "the input must have shape [N, C], not [3]",
            ),
            (
                &y("broadcast(v) spatial=[]"),
                "a map has 1 to 3 spatial axes, not 0",
            ),
            (
                &y("broadcast(v) spatial=[5, 0]"),
                "the spatial extent must be at least 1",
            ),
        ]);
    }

    #[test]
    fn regions() {
        let slice = "x = input [1, 1, 16, 16]\ny = slice(x) start=[0, 3, 0] len=[1, 8, 16]";
        assert_eq!(reads(slice, 0, 1, 2..5), Span::new(5, 8));
        assert_eq!(reads(slice, 0, 2, 2..5), Span::new(2, 5));
        let pad = "x = input [1, 1, 8]\ny = pad(x) lo=[0, 3] hi=[0, 2]";
        assert_eq!(reads(pad, 0, 1, 0..5), Span::new(0, 2));
        assert!(reads(pad, 0, 1, 0..2).is_empty());
        assert_eq!(reads(pad, 0, 1, 9..13), Span::new(6, 8));
    }

    #[test]
    fn gradients() {
        check_grad(
            "a = input [1, 2, 8] grad\nb = input [1, 3, 8] grad\nt = input [1, 3, 9]\n\
             c = concat(a, b)\ns = slice(c) start=[1, 2] len=[3, 5]\np = pad(s) lo=[0, 1] hi=[0, 3]\n\
             l = mse(p, t)",
            "seed7 = constant [1] value=1
             t8 = mse_grad(p, t, seed7)
             t9 = slice(t8) start=[0, 1] len=[3, 5]
             t10 = pad(t9) lo=[1, 2] hi=[1, 1]
             grad/a = slice(t10) start=[0, 0] len=[2, 8]
             grad/b = slice(t10) start=[2, 0] len=[3, 8]",
        );
        check_grad(
            "v = input [1, 2] grad\nt = input [1, 2, 8]\ny = broadcast(v) spatial=[8]\nl = mse(y, t)",
            "seed4 = constant [1] value=1
             t5 = mse_grad(y, t, seed4)
             grad/v = sum_map(t5)",
        );
    }
}
