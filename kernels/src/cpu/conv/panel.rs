//! The packed input of one block: a zero-padded copy in which every tap of
//! every output is found at a fixed offset, whatever stride, dilation and
//! padding are.
//!
//! Along each axis a tap reads, for the `n` outputs of a block, a *window* of
//! `n` equally spaced source positions. Windows with the same spacing and
//! residue that overlap are merged into a *run*; runs lie one after another.
//! With stride 1 there is one run, with stride 2 the even and the odd columns
//! are two. A tap is then the offset of its window, and neighbouring outputs
//! are neighbours in memory: every convolution has become one of stride 1.
//!
//! Copying also frees the kernels from the strides of the tensor, which are
//! often powers of two and would then compete for the same few cache sets.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::ops::Range;

use super::plain::{inside, valid};
use super::vector::Vector;
use crate::view::In;

/// Floats in the widest vector register.
const LANES: usize = 16;

/// Floats of a cache line.
const LINE: usize = 16;

/// Consecutive equally spaced source positions.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// The first one; negative in the padding.
    first: isize,
    len: usize,
    /// Where they lie in the panel.
    at: usize,
}

/// One axis of a panel.
#[derive(Clone, Debug)]
pub(super) struct Axis {
    step: usize,
    runs: Vec<Run>,
    len: usize,
}

impl Axis {
    /// The axis that holds the given windows (first source position, number of
    /// positions), each of positions `step` apart.
    pub(super) fn cover(step: usize, windows: &mut [(isize, usize)]) -> Self {
        let residue = |first: isize| first.rem_euclid(step as isize);
        windows.sort_unstable_by_key(|&(first, _)| (residue(first), first));
        let mut axis = Axis {
            step,
            runs: Vec::with_capacity(step.min(4)),
            len: 0,
        };
        for &(first, len) in windows.iter() {
            if let Some(last) = axis.runs.last_mut() {
                let after = (first - last.first) / step as isize;
                if residue(last.first) == residue(first) && after <= last.len as isize {
                    let len = last.len.max(after as usize + len);
                    axis.len += len - last.len;
                    last.len = len;
                    continue;
                }
            }
            axis.runs.push(Run {
                first,
                len,
                at: axis.len,
            });
            axis.len += len;
        }
        axis
    }

    /// Where a covered window begins.
    pub(super) fn locate(&self, first: isize) -> usize {
        let step = self.step as isize;
        let at = self.runs.iter().find_map(|run| {
            let after = first - run.first;
            let within = after >= 0 && after < run.len as isize * step && after % step == 0;
            within.then(|| run.at + (after / step) as usize)
        });
        at.expect("the axis covers its windows")
    }

    /// Number of positions held.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Copies row `(d, h)` of channel `c` of sample `n`, zeros in the padding and in
    /// what is left of `row`. Asks for the same row of channel `ahead`.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[inline(always)]
    pub(super) unsafe fn fill<V: Vector>(
        &self,
        row: &mut [f32],
        x: &In<f32>,
        n: usize,
        c: usize,
        [d, h]: [isize; 2],
        ahead: Option<usize>,
    ) {
        let [_, _, x_d, x_h, x_w] = x.dims();
        let (Some(d), Some(h)) = (inside(d, x_d), inside(h, x_h)) else {
            row.fill(0.0);
            return;
        };
        for run in &self.runs {
            let to = &mut row[run.at..run.at + run.len];
            let ok = valid(run.first, self.step, run.len, x_w);
            to[..ok.start].fill(0.0);
            to[ok.end..].fill(0.0);
            if !ok.is_empty() {
                let lo = (run.first + (ok.start * self.step) as isize) as usize;
                let hi = lo + (ok.len() - 1) * self.step + 1;
                if let Some(ahead) = ahead {
                    prefetch(x.row(n, ahead, d, h, lo..hi));
                }
                // SAFETY: as promised to this function.
                unsafe { gather::<V>(&mut to[ok], x.row(n, c, d, h, lo..hi), self.step) };
            }
        }
        row[self.len..].fill(0.0);
    }
}

/// Floats of a row of so many that stands alone: whole vectors may be read from
/// anywhere in it.
pub(super) fn padded(len: usize) -> usize {
    len.next_multiple_of(LANES) + LANES
}

/// The extents of a panel.
#[derive(Clone, Copy, Debug)]
pub(super) struct Extents {
    /// Floats between rows.
    pub(super) row: usize,
    /// Floats between slices along the first axis.
    pub(super) slice: usize,
    /// Floats between channels.
    pub(super) channel: usize,
}

impl Extents {
    pub(super) fn new(len: [usize; 3]) -> Self {
        // Vector loads of the first tap stay within cache lines, unless that would
        // double a narrow row.
        let row = len[2].next_multiple_of(if len[2] > LANES { LANES } else { LANES / 2 });
        let slice = row * len[1];
        // An odd number of lines, so that channels spread over the cache sets.
        let channel = ((slice * len[0]).div_ceil(16) | 1) * 16;
        Extents {
            row,
            slice,
            channel,
        }
    }

    /// Floats that so many channels take; a vector may be read beyond the end
    /// of the last row.
    pub(super) fn floats(&self, channels: usize) -> usize {
        self.channel * channels + 2 * LANES
    }

    /// Offset of panel coordinates.
    pub(super) fn at(&self, at: [usize; 3]) -> usize {
        at[0] * self.slice + at[1] * self.row + at[2]
    }
}

/// How the rows of a channel are copied: the same for all channels of a sample.
pub(super) struct Rows {
    /// By row and run.
    pieces: Vec<Piece>,
    step: usize,
    /// Floats between channels of the source.
    channel: usize,
    /// Channels between asking for a row and copying it: far enough for memory to answer,
    /// near enough to stay in the cache although channels often lie a power of two apart.
    ahead: usize,
}

/// Part of a row: zeros, then what is copied, then zeros.
struct Piece {
    /// Where it goes in a channel.
    to: usize,
    lo: usize,
    hi: usize,
    end: usize,
    /// The first source in the first channel, and floats to the last one's.
    from: *const f32,
    floats: usize,
}

impl Rows {
    /// All rows of the axes, `row` floats from one to the next.
    pub(super) fn new(axes: &[Axis; 3], row: usize, x: &In<f32>, n: usize) -> Self {
        let [_, channels, x_d, x_h, x_w] = x.dims();
        let step = axes[2].step;
        let mut pieces = Vec::with_capacity(axes[0].len * axes[1].len * axes[2].runs.len());
        let mut start = 0;
        for d in positions(&axes[0]) {
            for h in positions(&axes[1]) {
                let at = inside(d, x_d).zip(inside(h, x_h));
                for (index, run) in axes[2].runs.iter().enumerate() {
                    let is_last = index + 1 == axes[2].runs.len();
                    let mut piece = Piece {
                        to: start + run.at,
                        lo: 0,
                        hi: 0,
                        end: if is_last { row - run.at } else { run.len },
                        from: std::ptr::null(),
                        floats: 0,
                    };
                    let ok = valid(run.first, step, run.len, x_w);
                    if let (Some((d, h)), false) = (at, ok.is_empty()) {
                        let first = (run.first + (ok.start * step) as isize) as usize;
                        piece.floats = (ok.len() - 1) * step + 1;
                        let row = |c| x.row(n, c, d, h, first..first + piece.floats);
                        // The last channel's is found only to be checked.
                        (piece.from, _) = (row(0).as_ptr(), row(channels - 1));
                        (piece.lo, piece.hi) = (ok.start, ok.end);
                    }
                    pieces.push(piece);
                }
                start += row;
            }
        }
        Rows {
            step,
            channel: x.layout().strides[1],
            ahead: (12 / pieces.len().max(1)).clamp(1, 4),
            pieces,
        }
    }

    /// Copies channel `c`, after which others below `end` are copied.
    ///
    /// # Safety
    /// The machine has the instructions, and the source has those channels.
    #[inline(always)]
    pub(super) unsafe fn copy<V: Vector>(&self, c: usize, end: usize, channel: &mut [f32]) {
        for piece in &self.pieces {
            let to = &mut channel[piece.to..piece.to + piece.end];
            // SAFETY: as promised to this function.
            unsafe { self.copy_piece::<V>(piece, c, end, to) };
        }
    }

    /// Copies row `index` of channel `c` of axes with one run along rows.
    ///
    /// # Safety
    /// As [`Rows::copy`].
    #[inline(always)]
    pub(super) unsafe fn copy_row<V: Vector>(
        &self,
        index: usize,
        c: usize,
        end: usize,
        row: &mut [f32],
    ) {
        // SAFETY: as promised to this function.
        unsafe { self.copy_piece::<V>(&self.pieces[index], c, end, row) };
    }

    /// Asks for the rows of channel `c`.
    #[inline(always)]
    pub(super) fn prefetch(&self, c: usize) {
        for index in 0..self.pieces.len() {
            self.prefetch_row(index, c);
        }
    }

    /// Asks for row `index` of channel `c`, as [`Rows::copy_row`] copies it.
    #[inline(always)]
    pub(super) fn prefetch_row(&self, index: usize, c: usize) {
        let piece = &self.pieces[index];
        let from = piece.from.wrapping_add(c * self.channel);
        for at in (0..piece.floats).step_by(LINE) {
            // SAFETY: prefetching has no effect on memory.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(from.wrapping_add(at).cast()) };
        }
    }

    /// # Safety
    /// As [`Rows::copy`].
    #[inline(always)]
    unsafe fn copy_piece<V: Vector>(&self, piece: &Piece, c: usize, end: usize, to: &mut [f32]) {
        let from = piece.from.wrapping_add(c * self.channel);
        if c + self.ahead < end {
            let next = from.wrapping_add(self.ahead * self.channel);
            for at in (0..piece.floats).step_by(LINE) {
                // SAFETY: prefetching has no effect on memory.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(next.wrapping_add(at).cast()) };
            }
        }
        if piece.lo > 0 {
            to[..piece.lo].fill(0.0);
        }
        if piece.hi > piece.lo {
            // SAFETY: `new` found these floats in the first channel and in the last.
            let from = unsafe { std::slice::from_raw_parts(from, piece.floats) };
            // SAFETY: as promised to this function.
            unsafe { gather::<V>(&mut to[piece.lo..piece.hi], from, self.step) };
        }
        if piece.hi < piece.end {
            to[piece.hi..].fill(0.0);
        }
    }
}

/// Copies `channels` of sample `n` into `panel`, zeros in the padding.
///
/// # Safety
/// The machine has the instructions.
#[inline(always)]
pub(super) unsafe fn fill<V: Vector>(
    panel: &mut [f32],
    extents: &Extents,
    axes: &[Axis; 3],
    x: &In<f32>,
    n: usize,
    channels: Range<usize>,
) {
    let (n_channels, end) = (channels.len(), channels.end);
    assert!(end <= x.dims()[1], "the map has these channels");
    let rows = Rows::new(axes, extents.row, x, n);
    let rows_end = extents.slice * axes[0].len;
    for (c, channel) in channels.zip(panel.chunks_exact_mut(extents.channel)) {
        // SAFETY: as promised to this function; the channel exists.
        unsafe { rows.copy::<V>(c, end, channel) };
        // What is left of the last lines.
        channel[rows_end..].fill(0.0);
    }
    let used = extents.channel * n_channels;
    panel[used..used + 2 * LANES].fill(0.0);
}

/// Asks for a row that is copied a channel or a few later. Rows of a block are short and
/// far apart, so the processor's own prefetching does not see them coming.
#[inline(always)]
pub(super) fn prefetch(row: &[f32]) {
    for line in row.chunks(16) {
        // SAFETY: prefetching has no effect on memory.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

fn positions(axis: &Axis) -> impl Iterator<Item = isize> + '_ {
    axis.runs
        .iter()
        .flat_map(|run| (0..run.len).map(|i| run.first + (i * axis.step) as isize))
}

/// `to[i] = from[i·step]`; `from` ends with the last of these. The usual steps as
/// constants, so that they vectorise.
///
/// # Safety
/// The machine has the instructions.
#[inline(always)]
pub(super) unsafe fn gather<V: Vector>(to: &mut [f32], from: &[f32], step: usize) {
    match step {
        // SAFETY: as promised to this function.
        1 => unsafe { copy::<V>(to, from) },
        // SAFETY: as promised to this function.
        2 => unsafe { every_second::<V>(to, from) },
        3 => gather_by::<3>(to, from),
        4 => gather_by::<4>(to, from),
        _ => {
            for (to, &from) in to.iter_mut().zip(from.iter().step_by(step)) {
                *to = from;
            }
        }
    }
}

/// `to[i] = from[i]`, in place: rows are short against a call.
///
/// # Safety
/// The machine has the instructions.
#[inline(always)]
pub(super) unsafe fn copy<V: Vector>(to: &mut [f32], from: &[f32]) {
    assert_eq!(to.len(), from.len(), "a copy has one length");
    let whole = to.len() / V::LANES * V::LANES;
    let (to_end, from_end) = (&mut to[whole..], &from[whole..]);
    let lanes = to_end.len();
    if lanes > 0 {
        // SAFETY: as promised to this function; the lanes exist.
        unsafe { V::load_some(from_end.as_ptr(), lanes).store_some(to_end.as_mut_ptr(), lanes) };
    }
    let (to, from) = (to.as_mut_ptr(), from.as_ptr());
    for at in (0..whole).step_by(V::LANES) {
        // SAFETY: as promised to this function; `at` is below `whole`.
        unsafe { V::load(from.add(at)).store(to.add(at)) };
    }
}

/// `to[i] = from[2·i]`.
///
/// # Safety
/// The machine has the instructions.
#[inline(always)]
unsafe fn every_second<V: Vector>(to: &mut [f32], from: &[f32]) {
    assert!(
        to.is_empty() || from.len() == 2 * to.len() - 1,
        "every second float is asked for"
    );
    // The last vector of a row has no float behind it, even if it is full.
    let whole = to.len().saturating_sub(1) / V::LANES * V::LANES;
    let (to_end, from_end) = (&mut to[whole..], &from[(2 * whole).min(from.len())..]);
    let lanes = from_end.len().min(V::LANES);
    // SAFETY: as promised to this function; the lanes exist, and `at` is below `whole`.
    unsafe {
        let rest = V::load_some(from_end[lanes..].as_ptr(), from_end.len() - lanes);
        let (even, _) = V::split(V::load_some(from_end.as_ptr(), lanes), rest);
        even.store_some(to_end.as_mut_ptr(), to_end.len());
        let (to, from) = (to.as_mut_ptr(), from.as_ptr());
        for at in (0..whole).step_by(V::LANES) {
            let first = V::load(from.add(2 * at));
            let (even, _) = V::split(first, V::load(from.add(2 * at + V::LANES)));
            even.store(to.add(at));
        }
    }
}

#[inline(always)]
fn gather_by<const STEP: usize>(to: &mut [f32], from: &[f32]) {
    let mut blocks = to.chunks_exact_mut(LANES);
    let mut rest = from;
    for block in &mut blocks {
        // The last element has no gap behind it.
        let Some(these) = rest.get(..LANES * STEP - STEP + 1) else {
            break;
        };
        for (i, to) in block.iter_mut().enumerate() {
            *to = these[i * STEP];
        }
        rest = rest.get(LANES * STEP..).unwrap_or(&[]);
    }
    for (to, &from) in blocks
        .into_remainder()
        .iter_mut()
        .zip(rest.iter().step_by(STEP))
    {
        *to = from;
    }
}
