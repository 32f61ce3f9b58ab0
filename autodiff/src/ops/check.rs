//! What shape rules have in common: limits, forms, agreement.
//!
//! Tapes are written by users, so every extent and attribute is bounded before
//! anything is computed from it; behind these checks plain arithmetic is safe.

use crate::error::ShapeReason;
use crate::op::{Num, PerAxis};
use crate::ty::{DType, Form, MAX_RANK, MAX_SPATIAL, Shape, Ty};

/// Largest extent, and largest stride, dilation or padding. With it, window
/// arithmetic stays far from the end of `usize`.
pub(crate) const MAX_EXTENT: usize = 1 << 31;

/// Most elements of one tensor, so that bytes and coordinates of whole
/// programs still add up in 64 bits.
pub(crate) const MAX_ELEMS: u64 = 1 << 48;

/// An answer, or why there is none.
pub(crate) type Checked<T = ()> = Result<T, ShapeReason>;

/// Leaves with a [`ShapeReason`] unless the condition holds.
macro_rules! ensure {
    ($cond:expr, $($arg:tt)*) => {
        if !$cond {
            return Err($crate::error::ShapeReason(format!($($arg)*)));
        }
    };
}
pub(crate) use ensure;

/// The sole constructor of result types: bounds every extent and the product.
pub(crate) fn ty(dtype: DType, form: Form, dims: &[usize]) -> Checked<Ty> {
    let Some(shape) = Shape::try_new(dims) else {
        return Err(ShapeReason(format!(
            "a tensor has at most {MAX_RANK} dimensions, not {}",
            dims.len()
        )));
    };
    ensure!(
        !dims.is_empty(),
        "a tensor has at least one dimension; a single number has shape [1]"
    );
    let spatial = dims.len().saturating_sub(2);
    ensure!(
        form == Form::Flat || (1..=MAX_SPATIAL).contains(&spatial),
        "a map has shape [N, C, spatial…] with 1 to {MAX_SPATIAL} spatial axes, not {shape}"
    );
    let mut elems = 1u64;
    for &d in dims {
        ensure!(d >= 1, "every extent of {shape} must be at least 1");
        ensure!(
            d <= MAX_EXTENT,
            "the extent {d} of {shape} is above the limit of {MAX_EXTENT}"
        );
        elems = elems.saturating_mul(d as u64);
    }
    ensure!(
        elems <= MAX_ELEMS,
        "{shape} has more than the limit of {MAX_ELEMS} elements"
    );
    Ok(Ty { dtype, shape, form })
}

/// A flat type.
pub(crate) fn flat(dtype: DType, dims: &[usize]) -> Checked<Ty> {
    ty(dtype, Form::Flat, dims)
}

/// A map type.
pub(crate) fn map(dtype: DType, n: usize, c: usize, spatial: &[usize]) -> Checked<Ty> {
    let mut dims = [1; MAX_RANK];
    dims[0] = n;
    dims[1] = c;
    ensure!(
        (1..=MAX_SPATIAL).contains(&spatial.len()),
        "a map has 1 to {MAX_SPATIAL} spatial axes, not {}",
        spatial.len()
    );
    dims[2..2 + spatial.len()].copy_from_slice(spatial);
    ty(dtype, Form::Map, &dims[..2 + spatial.len()])
}

/// Number of spatial axes of a map input.
pub(crate) fn expect_map(what: &str, t: &Ty) -> Checked<usize> {
    ensure!(
        t.is_map(),
        "{what} must be a map [N, C, spatial…]; {} is flat (parameters, results of reductions \
         and inputs of rank 1 or 2 are)",
        t.shape
    );
    Ok(t.shape.spatial().len())
}

/// Requires a flat input.
pub(crate) fn expect_flat(what: &str, t: &Ty) -> Checked {
    ensure!(
        !t.is_map(),
        "{what} must be flat (a parameter, or the result of a reduction); {} is a map",
        t.shape
    );
    Ok(())
}

/// Requires a map or a flat `[N, C]`.
pub(crate) fn expect_channels(what: &str, t: &Ty) -> Checked {
    ensure!(
        t.is_map() || t.shape.rank() == 2,
        "{what} must be a map or flat [N, C], not flat {}",
        t.shape
    );
    Ok(())
}

/// Requires a second axis: a map, flat `[N, C]`, or a weight `[K, C, kernel…]`.
pub(crate) fn expect_second_axis(what: &str, t: &Ty) -> Checked {
    ensure!(
        t.shape.rank() >= 2,
        "{what} must be a map or flat [N, C, …], not flat {}",
        t.shape
    );
    Ok(())
}

/// Requires a flat input of exactly these extents.
pub(crate) fn expect_dims(what: &str, t: &Ty, dims: &[usize]) -> Checked {
    expect_flat(what, t)?;
    ensure!(
        t.shape.dims() == dims,
        "{what} must have shape {}, not {}",
        Shape::new(dims),
        t.shape
    );
    Ok(())
}

/// Requires two inputs of one type.
pub(crate) fn expect_same(what: &str, t: &Ty, of: &str, like: &Ty) -> Checked {
    ensure!(
        t.shape == like.shape,
        "{what} must have the shape {} of {of}, not {}",
        like.shape,
        t.shape
    );
    ensure!(
        t.form == like.form,
        "{what} must be {} like {of}",
        if like.is_map() { "a map" } else { "flat" }
    );
    Ok(())
}

/// Requires maps over the same batch and space; channels are free.
pub(crate) fn expect_same_space(what: &str, t: &Ty, of: &str, like: &Ty) -> Checked {
    expect_map(what, t)?;
    ensure!(
        t.shape.batch() == like.shape.batch() && t.shape.spatial() == like.shape.spatial(),
        "{what} must have the batch and spatial extents of {of}, {}, not {}",
        like.shape,
        t.shape
    );
    Ok(())
}

/// Bounds a per-axis attribute on `n` axes and requires the neutral value
/// beyond them, so that equal ops are equal values.
pub(crate) fn expect_axes(what: &str, values: &PerAxis, n: usize, least: usize) -> Checked {
    for (s, &v) in values.iter().enumerate() {
        if s < n {
            ensure!(
                v >= least,
                "{what} must be at least {least} on every axis, not {v}"
            );
            ensure!(
                v <= MAX_EXTENT,
                "{what} {v} is above the limit of {MAX_EXTENT}"
            );
        } else {
            ensure!(
                v == least,
                "{what} must be {least} beyond the map's {n} spatial axes, not {v} on axis {s}"
            );
        }
    }
    Ok(())
}

/// Requires a finite number that satisfies `ok`.
pub(crate) fn expect_num(what: &str, v: Num, ok: impl Fn(f64) -> bool, range: &str) -> Checked {
    let v = v.get();
    ensure!(v.is_finite() && ok(v), "{what} must be {range}, not {v}");
    Ok(())
}

/// Elements at one position of a map, or all of a flat tensor: what the work of
/// an elementwise op is counted by.
pub(crate) fn unit(t: &Ty) -> f64 {
    if t.is_map() {
        t.shape.channels() as f64
    } else {
        t.shape.elems() as f64
    }
}

/// Product of extents, as a number of taps or positions.
pub(crate) fn volume(extents: &[usize]) -> f64 {
    extents.iter().map(|&e| e as f64).product()
}
