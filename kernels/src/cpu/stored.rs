//! Kernels on narrow tensors: decoded, computed in `f32`, rounded.
//!
//! A call whose operands are stored as `bf16` or `f16` goes over its region in pieces
//! that fit the scratch it is given. Of each it decodes what is read, runs the kernel
//! for `f32`, and rounds what was computed, to nearest, ties to even. A map op's value
//! does not depend on the region it is computed in, so the result is that of the `f32`
//! kernel on decoded operands, rounded once, bit for bit and whatever the pieces.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use rayon::prelude::*;
use sstep_autodiff::{DType, Form, Op, Region, Span, Ty};

use super::lanes::wide;
use super::parts::{Channels, STREAM, each_part};
use super::{accumulate, run};
use crate::real::Element;
use crate::view::{AnyIn, AnyOut, Box4, In, Layout, Out};
use crate::{Job, State, StoredJob};

/// Part of the scratch beyond the least that decoded values leave to the kernel.
const FOR_KERNELS: u64 = 4;

/// What every decoded tensor is aligned to in scratch, in elements.
const ALIGN: usize = 16;

/// Pieces begin at multiples of this where they can: kernels that work on whole tiles
/// then compute none twice.
const TILE: usize = 8;

/// [`run`] on operands of any element types that the op takes. `scratch` has at least
/// [`Op::least_decoded_bytes`], is aligned to 64 bytes, and what is left of it serves the kernel.
///
/// # Panics
/// As [`run`], and if `scratch` is too small.
pub fn run_stored(job: &StoredJob<'_>, out: AnyOut<'_>, scratch: &mut [u8]) {
    let to = out.layout().dtype;
    if let Op::Cast { .. } = job.op {
        return cast(&job.inputs[0], out, &job.region);
    }
    let ty = out.layout().ty();
    let target = (!to.is_narrow()).then(|| out.typed::<f32>());
    pieces(job, &ty, scratch, |job, region, mut rest| match target {
        Some(mut out) => run(job, &mut out, bytemuck::cast_slice_mut(rest)),
        None => {
            let piece = window(&ty, region);
            let made = take(&mut rest, piece.len);
            run(
                job,
                &mut Out::new(piece, made),
                bytemuck::cast_slice_mut(rest),
            );
            encode(&In::new(piece, made), out, region);
        }
    });
}

/// [`accumulate`] on operands of any element types that the op takes; see
/// [`run_stored`].
///
/// # Panics
/// As [`accumulate`], and if `scratch` is too small.
pub fn accumulate_stored(
    job: &StoredJob<'_>,
    state: &mut State<'_, f32>,
    out_ty: &Ty,
    scratch: &mut [u8],
) {
    pieces(job, out_ty, scratch, |job, _, rest| {
        accumulate(job, state, out_ty, bytemuck::cast_slice_mut(rest));
    });
}

/// Rounds values to what a type can hold.
pub fn round_to(dtype: DType, values: &mut [f32]) {
    fn round<N: Narrow>(values: &mut [f32]) {
        let mut stored = vec![N::default(); values.len().min(1 << 12)];
        for values in values.chunks_mut(1 << 12) {
            N::from_wide(values, &mut stored[..values.len()]);
            N::to_wide(&stored[..values.len()], values);
        }
    }
    match dtype {
        DType::F32 | DType::F64 => {}
        DType::Bf16 => round::<bf16>(values),
        DType::F16 => round::<f16>(values),
    }
}

/// Calls `one` for pieces that make up the job's region, with the job in `f32` and
/// what is left of the scratch.
fn pieces(
    job: &StoredJob<'_>,
    out: &Ty,
    scratch: &mut [u8],
    mut one: impl FnMut(&Job<'_, f32>, &Region, &mut [f32]),
) {
    let tys: Vec<Ty> = job.inputs.iter().map(|i| i.layout().ty()).collect();
    // SAFETY: plain numbers, of which any bits are valid.
    let (_, scratch, _) = unsafe { scratch.align_to_mut::<f32>() };
    let all = size_of_val(scratch) as u64;
    let least = job.op.least_decoded_bytes(&tys, out);
    assert!(
        least <= all,
        "a plan has scratch for what its kernels decode"
    );
    let most = all - (all - least) / FOR_KERNELS;
    let mut scratch = scratch;
    // Flat tensors serve every piece.
    let wide = |ty: &Ty| ty.with_dtype(ty.dtype.wide());
    let flats: Vec<Option<&[f32]>> = (job.inputs.iter().zip(&tys))
        .map(|(input, ty)| {
            (ty.dtype.is_narrow() && !ty.is_map()).then(|| {
                let layout = Layout::whole(&wide(ty));
                let values = take(&mut scratch, layout.len);
                decode(input, &Out::new(layout, values), &Region::new(&[]));
                &*values
            })
        })
        .collect();
    let mut left = vec![job.region];
    while let Some(region) = left.pop() {
        if job.op.decoded_bytes(&tys, out, &region) > most
            && let Some((head, tail)) = halves(&region)
        {
            left.extend([tail, head]);
            continue;
        }
        let mut rest = &mut *scratch;
        let inputs: Vec<In<'_, f32>> = (job.inputs.iter().enumerate())
            .map(|(i, input)| {
                let ty = &tys[i];
                if let Some(values) = flats[i] {
                    return In::new(Layout::whole(&wide(ty)), values);
                }
                if !ty.dtype.is_narrow() {
                    return input.typed();
                }
                let read = read(job.op, i, &tys, out, &region);
                let layout = window(ty, &read);
                let values = take(&mut rest, layout.len);
                let to = Out::new(layout, values);
                decode(input, &to, &read);
                In::new(layout, values)
            })
            .collect();
        let wide = Job {
            op: job.op,
            region: Box4::lift(&region),
            inputs: &inputs,
            step: job.step,
            seed: job.seed,
            plain: false,
        };
        one(&wide, &region, rest);
    }
}

/// What an op reads of a map for a region.
fn read(op: &Op, input: usize, tys: &[Ty], out: &Ty, region: &Region) -> Region {
    let ty = &tys[input];
    let mut read = Region::whole(ty);
    for axis in 0..ty.n_axes() {
        let reads = op.read(input, axis, tys, out);
        read.set(axis, reads.apply(region.span(axis), ty.axis_extent(axis)));
    }
    read
}

/// A dense buffer of `f32` for a region of a map, or for all of a flat tensor.
fn window(ty: &Ty, region: &Region) -> Layout {
    let ty = ty.with_dtype(ty.dtype.wide());
    if !ty.is_map() {
        return Layout::whole(&ty);
    }
    let extents: Vec<usize> = region.spans().iter().map(|s| s.len()).collect();
    Layout::window(&ty, &extents, region)
}

/// Cuts `len` elements off the front.
fn take<'s>(scratch: &mut &'s mut [f32], len: usize) -> &'s mut [f32] {
    let whole = std::mem::take(scratch);
    let (front, rest) = whole.split_at_mut(len.next_multiple_of(ALIGN).min(whole.len()));
    *scratch = rest;
    &mut front[..len]
}

/// A region in two, `None` for a single position. Rows stay long: samples are parted
/// first, and columns only when they are much longer than everything else.
fn halves(region: &Region) -> Option<(Region, Region)> {
    let spans = region.spans();
    let last = spans.len().checked_sub(1)?;
    let weight = |axis: usize| match axis {
        0 => usize::MAX,
        _ if axis == last => spans[axis].len(),
        _ => spans[axis].len() * 4,
    };
    let cuttable = (0..spans.len()).filter(|&a| spans[a].len() > 1);
    let axis = cuttable.max_by_key(|&a| (weight(a), std::cmp::Reverse(a)))?;
    let span = spans[axis];
    let mut middle = span.lo + span.len() / 2;
    if span.len() >= 2 * TILE {
        middle = middle.next_multiple_of(TILE);
    }
    let (mut head, mut tail) = (*region, *region);
    head.set(axis, Span::new(span.lo, middle));
    tail.set(axis, Span::new(middle, span.hi));
    Some((head, tail))
}

/// Rounds or decodes a region, or all of a flat tensor.
fn cast(from: &AnyIn<'_>, to: AnyOut<'_>, region: &Region) {
    if from.layout().dtype.is_narrow() {
        decode(from, &to.typed(), region);
    } else {
        encode(&from.typed(), to, region);
    }
}

/// Decodes a region of a narrow tensor.
fn decode(from: &AnyIn<'_>, to: &Out<'_, f32>, region: &Region) {
    match from.layout().dtype {
        DType::Bf16 => convert(&from.typed(), to, region, bf16::to_wide),
        DType::F16 => convert(&from.typed(), to, region, f16::to_wide),
        wide @ (DType::F32 | DType::F64) => panic!("{wide} is not decoded"),
    }
}

/// Rounds a region to a narrow tensor.
fn encode(from: &In<'_, f32>, to: AnyOut<'_>, region: &Region) {
    match to.layout().dtype {
        DType::Bf16 => convert(from, &to.typed(), region, bf16::from_wide),
        DType::F16 => convert(from, &to.typed(), region, f16::from_wide),
        wide @ (DType::F32 | DType::F64) => panic!("nothing is rounded to {wide}"),
    }
}

/// Converts what two views hold of a region, row by row.
fn convert<A: Element, B: Element>(
    from: &In<'_, A>,
    to: &Out<'_, B>,
    region: &Region,
    row_to_row: impl Fn(&[A], &mut [B]) + Sync,
) {
    if to.layout().form == Form::Flat {
        // Rows of a weight are as short as its kernel.
        let mut to = *to;
        let (from, to) = (from.flat(), to.flat());
        if to.len() < 2 * STREAM {
            return row_to_row(from, to);
        }
        let pieces = to.par_chunks_mut(STREAM).zip(from.par_chunks(STREAM));
        return pieces.for_each(|(to, from)| row_to_row(from, to));
    }
    let region = Box4::lift(region);
    each_part(
        &mut to.clone(),
        &region,
        Channels::Each,
        STREAM,
        |mut part| {
            let (n, c, d) = (part.n, part.c.start, part.d);
            let rows = from.rows([n, c, d], &part.h, &part.w);
            if let Some((from, to)) = rows.zip(part.rows(c)) {
                // Rows of small maps are short.
                return row_to_row(from, to);
            }
            for h in part.h.clone() {
                let row = from.row(n, c, d, h, part.w.clone());
                row_to_row(row, part.row(c, h));
            }
        },
    );
}

/// A type that is stored and not computed with.
trait Narrow: Element {
    /// Exact.
    fn to_wide(from: &[Self], to: &mut [f32]);
    /// To nearest, ties to even; `NaN` stays `NaN`.
    fn from_wide(from: &[f32], to: &mut [Self]);
}

impl Narrow for bf16 {
    fn to_wide(from: &[bf16], to: &mut [f32]) {
        decode_bf16(bytemuck::cast_slice(from), to);
    }

    fn from_wide(from: &[f32], to: &mut [bf16]) {
        encode_bf16(from, bytemuck::cast_slice_mut(to));
    }
}

impl Narrow for f16 {
    fn to_wide(from: &[f16], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }

    fn from_wide(from: &[f32], to: &mut [f16]) {
        to.convert_from_f32_slice(from);
    }
}

wide! {
    /// The upper half of an `f32`, as one.
    fn decode_bf16[](from: &[u16], to: &mut [f32]) {
        for (to, &from) in to.iter_mut().zip(from) {
            *to = f32::from_bits(u32::from(from) << 16);
        }
    }
}

wide! {
    /// To nearest, ties to even, by adding half of what is cut off, less one bit where
    /// the last one kept is even. A `NaN` must not be carried into an infinity.
    fn encode_bf16[](from: &[f32], to: &mut [u16]) {
        for (to, &from) in to.iter_mut().zip(from) {
            let bits = from.to_bits();
            let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
            let quiet = (bits >> 16) | 0x40;
            *to = if from.is_nan() { quiet } else { rounded } as u16;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_round_as_the_formats_say() {
        // Every exponent, ties and what lies beside them, infinities and NaN.
        let bits = (0..=u16::MAX).flat_map(|upper| {
            [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff].map(|lower| (u32::from(upper) << 16) | lower)
        });
        let values: Vec<f32> = bits.map(f32::from_bits).collect();
        let mut brain = vec![bf16::ZERO; values.len()];
        bf16::from_wide(&values, &mut brain);
        let mut half = vec![f16::ZERO; values.len()];
        f16::from_wide(&values, &mut half);
        for (i, &x) in values.iter().enumerate() {
            assert_eq!(brain[i].to_bits(), bf16::from_f32(x).to_bits(), "{x:e}");
            let same = half[i].to_bits() == f16::from_f32_const(x).to_bits();
            assert!(same || x.is_nan() && half[i].is_nan(), "{x:e}");
        }
        let mut back = vec![0.0; values.len()];
        bf16::to_wide(&brain, &mut back);
        for (b, x) in brain.iter().zip(&back) {
            assert!(b.to_f32() == *x || b.is_nan() && x.is_nan());
        }
        let mut rounded = values.clone();
        round_to(DType::Bf16, &mut rounded);
        assert!((rounded.iter().zip(&back)).all(|(a, b)| a == b || a.is_nan() && b.is_nan()));
    }

    #[test]
    fn halves_are_disjoint_and_whole() {
        let region = Region::new(&[Span::new(1, 3), Span::new(5, 90), Span::new(7, 8)]);
        let (mut left, mut points) = (vec![region], 0);
        while let Some(region) = left.pop() {
            match halves(&region) {
                Some((a, b)) => {
                    assert!(!a.is_empty() && !b.is_empty() && a.intersect(&b).is_empty());
                    assert_eq!(a.points() + b.points(), region.points());
                    left.extend([a, b]);
                }
                None => points += 1,
            }
        }
        assert_eq!(points, region.points());
    }
}
