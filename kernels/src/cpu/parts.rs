//! How the work of one call is divided.
//!
//! A map op's region is cut into [`Part`]s that write disjoint rows; since a
//! value does not depend on the region it is computed in, parts may run in any
//! order on any number of threads. A reduction is cut into [`Block`]s by its
//! region alone; their partial results are merged in order, so that the number
//! of threads does not show in the bits either.

use std::ops::Range;

use rayon::prelude::*;
use sstep_autodiff::Form;

use super::stream;
use crate::real::{Element, Real};
use crate::view::{Box4, In, Layout, Out};

/// Below this many elements, starting threads costs more than it gains.
const SERIAL: usize = 1 << 16;

/// Elements of a part that streams through memory once.
pub(super) const STREAM: usize = 1 << 15;

/// Which channels a part has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Channels {
    /// One: nothing couples them.
    Each,
    /// All of them.
    All,
}

/// Rows that one task writes, and nobody else.
pub(super) struct Part<'p, T> {
    out: &'p Out<'p, T>,
    /// Sample.
    pub(super) n: usize,
    /// Channels.
    pub(super) c: Range<usize>,
    /// Depth.
    pub(super) d: usize,
    /// Rows.
    pub(super) h: Range<usize>,
    /// Columns.
    pub(super) w: Range<usize>,
}

impl<T: Element> Part<'_, T> {
    /// Row `(c, h)` of the part.
    pub(super) fn row(&mut self, c: usize, h: usize) -> &mut [T] {
        assert!(
            self.c.contains(&c) && self.h.contains(&h),
            "a part writes its own rows"
        );
        // SAFETY: parts are disjoint, and the borrow of `self` keeps this row
        // the only one handed out.
        unsafe { self.out.row_mut(self.n, c, self.d, h, self.w.clone()) }
    }

    /// All rows of channel `c` as one slice, if nothing lies between them.
    pub(super) fn rows(&mut self, c: usize) -> Option<&mut [T]> {
        assert!(self.c.contains(&c), "a part writes its own rows");
        // SAFETY: as in `row`.
        unsafe { (self.out).rows_mut([self.n, c, self.d], &self.h, &self.w) }
    }
}

/// Positions a call computes: those asked for of a map, all of a flat tensor.
pub(super) fn region(asked: &Box4, layout: &Layout) -> Box4 {
    match layout.form {
        Form::Map => *asked,
        Form::Flat => layout.everything(),
    }
}

/// Some rows of some channels of one sample.
pub(super) struct Rows {
    /// Sample.
    pub(super) n: usize,
    /// Channels.
    pub(super) c: Range<usize>,
    /// Depth.
    pub(super) d: usize,
    /// Rows.
    pub(super) h: Range<usize>,
    /// Columns.
    pub(super) w: Range<usize>,
}

/// Calls `f` for boxes of about `grain` elements that make up `region`, perhaps at once.
pub(super) fn each_box(
    region: &Box4,
    n_channels: usize,
    channels: Channels,
    grain: usize,
    f: impl Fn(Rows) + Sync,
) {
    let (c_parts, c_len) = match channels {
        Channels::Each => (n_channels, 1),
        Channels::All => (1, n_channels),
    };
    let elems = region.points() * n_channels;
    if elems == 0 {
        return;
    }
    let (samples, depth, rows, w) = (region.n(), region.s(0), region.s(1), region.s(2));
    let h_len = (grain / (w.len() * c_len)).clamp(1, rows.len());
    let h_parts = rows.len().div_ceil(h_len);
    let total = samples.len() * c_parts * depth.len() * h_parts;
    let call = |i: usize| {
        let (i, h) = (i / h_parts, i % h_parts);
        let (i, d) = (i / depth.len(), i % depth.len());
        let (n, c) = (i / c_parts, i % c_parts);
        let h = rows.start + h * h_len;
        f(Rows {
            n: samples.start + n,
            c: c * c_len..(c + 1) * c_len,
            d: depth.start + d,
            h: h..(h + h_len).min(rows.end),
            w: w.clone(),
        });
    };
    if elems < SERIAL {
        (0..total).for_each(call);
    } else {
        (0..total).into_par_iter().for_each(call);
    }
}

/// Calls `f` for parts of about `grain` elements that make up `region` of `out`.
pub(super) fn each_part<T: Element>(
    out: &mut Out<'_, T>,
    region: &Box4,
    channels: Channels,
    grain: usize,
    f: impl Fn(Part<'_, T>) + Sync,
) {
    let out = &*out;
    each_box(region, out.dims()[1], channels, grain, |rows| {
        let Rows { n, c, d, h, w } = rows;
        f(Part { out, n, c, d, h, w });
    });
}

/// Calls `f(n, c, d, h, row)` for each row of `region`, to be filled with no
/// regard to what it holds.
pub(super) fn each_row<T: Real>(
    out: &mut Out<'_, T>,
    region: &Box4,
    f: impl Fn(usize, usize, usize, usize, &mut [T]) + Sync,
) {
    let large = stream::worthwhile::<T>(region.points() * out.dims()[1]);
    each_part(out, region, Channels::Each, STREAM, |mut part| {
        let (n, c, d) = (part.n, part.c.start, part.d);
        if large {
            let mut row = vec![T::ZERO; part.w.len()];
            for h in part.h.clone() {
                f(n, c, d, h, &mut row);
                stream::copy(&row, part.row(c, h));
            }
            stream::fence();
        } else {
            for h in part.h.clone() {
                f(n, c, d, h, part.row(c, h));
            }
        }
    });
}

/// Rows of a reduction's domain that are summed together.
pub(super) struct Block {
    /// Sample.
    pub(super) n: usize,
    /// Channels.
    pub(super) c: Range<usize>,
    rows: Range<usize>,
    d: Range<usize>,
    h: Range<usize>,
    /// Columns.
    pub(super) w: Range<usize>,
}

impl Block {
    /// Depth and row of each row, in row-major order.
    pub(super) fn rows(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let h_len = self.h.len();
        self.rows
            .clone()
            .map(move |i| (self.d.start + i / h_len, self.h.start + i % h_len))
    }

    /// The same rows by depth: those of one depth are neighbours.
    pub(super) fn runs(&self) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let (h_len, mut at) = (self.h.len(), self.rows.start);
        std::iter::from_fn(move || {
            (at < self.rows.end).then(|| {
                let (d, h) = (at / h_len, at % h_len);
                let len = (h_len - h).min(self.rows.end - at);
                at += len;
                let h = self.h.start + h;
                (self.d.start + d, h..h + len)
            })
        })
    }
}

/// Calls `f` for the blocks that make up `region` of a domain with `channels`
/// channels, perhaps at once, and then `merge` with each result in order.
pub(super) fn reduce<P: Send>(
    region: &Box4,
    n_channels: usize,
    channels: Channels,
    f: impl Fn(&Block) -> P + Sync,
    mut merge: impl FnMut(&Block, P),
) {
    /// Blocks per channel of a sample: enough for a few threads, and few
    /// enough that merging them is nothing.
    const MOST_BLOCKS: usize = 16;
    let (c_parts, c_len) = match channels {
        Channels::Each => (n_channels, 1),
        Channels::All => (1, n_channels),
    };
    let elems = region.points() * n_channels;
    if elems == 0 {
        return;
    }
    let (samples, d, h, w) = (region.n(), region.s(0), region.s(1), region.s(2));
    let n_rows = d.len() * h.len();
    let least = (STREAM / (w.len() * c_len)).max(1);
    let per_block = n_rows.div_ceil(MOST_BLOCKS).max(least);
    let row_parts = n_rows.div_ceil(per_block);
    let total = samples.len() * c_parts * row_parts;
    let block = |i: usize| {
        let (i, r) = (i / row_parts, i % row_parts);
        let (n, c) = (i / c_parts, i % c_parts);
        Block {
            n: samples.start + n,
            c: c * c_len..(c + 1) * c_len,
            rows: r * per_block..((r + 1) * per_block).min(n_rows),
            d: d.clone(),
            h: h.clone(),
            w: w.clone(),
        }
    };
    if elems < SERIAL {
        (0..total).map(block).for_each(|b| merge(&b, f(&b)));
    } else {
        let partial: Vec<P> = (0..total).into_par_iter().map(|i| f(&block(i))).collect();
        for (i, p) in partial.into_iter().enumerate() {
            merge(&block(i), p);
        }
    }
}

/// The value that a flat `[N, C]` tensor, either extent perhaps one, repeats
/// over channel `c` of sample `n`.
pub(super) fn repeated<T: Real>(flat: &In<'_, T>, n: usize, c: usize) -> T {
    let [batch, channels, ..] = flat.dims();
    let n = if batch == 1 { 0 } else { n };
    let c = if channels == 1 { 0 } else { c };
    flat.flat()[n * channels + c]
}

/// Attributes of a tensor with `n_spatial` spatial axes, right-aligned to the
/// three axes of views.
pub(super) fn lift(attr: &[usize; 3], n_spatial: usize, neutral: usize) -> [usize; 3] {
    let mut lifted = [neutral; 3];
    lifted[3 - n_spatial..].copy_from_slice(&attr[..n_spatial]);
    lifted
}
