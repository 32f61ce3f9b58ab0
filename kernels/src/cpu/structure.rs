//! Ops that move elements and compute nothing.

use sstep_autodiff::{Form, PadAttrs, SliceAttrs};

use super::parts::{each_row, lift, region, repeated};
use crate::Job;
use crate::real::Real;
use crate::view::{Layout, Out};

/// Offsets of channels and of the three lifted axes.
fn offsets(attr: &[usize; 4], layout: &Layout) -> (usize, [usize; 3]) {
    let [channel, spatial @ ..] = *attr;
    (channel, lift(&spatial, layout.shape.spatial().len(), 0))
}

/// `(a, b, …)` → channels one after another.
pub(super) fn concat<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let region = region(&job.region, out.layout());
    each_row(out, &region, |n, mut c, d, h, y| {
        for x in job.inputs {
            let channels = x.dims()[1];
            if c < channels {
                return y.copy_from_slice(x.row(n, c, d, h, region.s(2)));
            }
            c -= channels;
        }
    });
}

/// `(x)` → a box of channels and space.
pub(super) fn slice<T: Real>(a: &SliceAttrs, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let x = &job.inputs[0];
    let (c0, s0) = offsets(&a.start, out.layout());
    let region = region(&job.region, out.layout());
    let w = region.s(2).start + s0[2]..region.s(2).end + s0[2];
    each_row(out, &region, |n, c, d, h, y| {
        y.copy_from_slice(x.row(n, c + c0, d + s0[0], h + s0[1], w.clone()));
    });
}

/// `(x)` → zeros around channels and space.
pub(super) fn pad<T: Real>(a: &PadAttrs, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let x = &job.inputs[0];
    let (c0, s0) = offsets(&a.lo, out.layout());
    let region = region(&job.region, out.layout());
    let [_, channels, depth, rows, columns] = x.dims();
    // The part of the region's columns that lies over `x`.
    let w = region.s(2);
    let inside = w.start.max(s0[2])..w.end.min(s0[2] + columns);
    let over = |i: usize, lo: usize, extent: usize| i >= lo && i < lo + extent;
    each_row(out, &region, |n, c, d, h, y| {
        y.fill(T::ZERO);
        let covered = over(c, c0, channels) && over(d, s0[0], depth) && over(h, s0[1], rows);
        if covered && !inside.is_empty() {
            let source = inside.start - s0[2]..inside.end - s0[2];
            y[inside.start - w.start..inside.end - w.start].copy_from_slice(x.row(
                n,
                c - c0,
                d - s0[0],
                h - s0[1],
                source,
            ));
        }
    });
}

/// `(x)` → the same values.
pub(super) fn copy<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let x = &job.inputs[0];
    if out.layout().form == Form::Flat {
        return out.flat().copy_from_slice(x.flat());
    }
    each_row(out, &job.region, |n, c, d, h, y| {
        y.copy_from_slice(x.row(n, c, d, h, job.region.s(2)));
    });
}

/// `(v)` → flat `[N, C]` repeated over space.
pub(super) fn broadcast<T: Real>(job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let v = &job.inputs[0];
    each_row(out, &job.region, |n, c, _, _, y| y.fill(repeated(v, n, c)));
}

/// One value everywhere.
pub(super) fn constant<T: Real>(value: f64, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let value = T::from_f64(value);
    match out.layout().form {
        Form::Flat => out.flat().fill(value),
        Form::Map => each_row(out, &job.region, |_, _, _, _, y| y.fill(value)),
    }
}
