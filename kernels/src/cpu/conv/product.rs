//! The register kernel of convolutions as a matrix product.
//!
//! A tile is eight output channels by three vectors of columns with AVX-512, four by
//! three with AVX2. Both operands are packed in the order in which they are read: a
//! step loads the vectors, broadcasts one weight per channel, and multiplies. On the
//! way it asks for lines of memory that will be packed soon.

use std::arch::x86_64::*;

use super::columns::VECTORS;
use super::stores::{prefetch_to_write, store, store_two};
use super::tile::step_4_by_3;
use super::vector::{Held, Kernel, Vector};

/// Steps between requests for lines.
const STRIP: usize = 32;

/// How the sums of a tile's channels lie in the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Weave {
    /// A vector is neighbouring outputs.
    No,
    /// Every other output is a sum; those between have no terms.
    Gaps,
    /// Two sums, of the even and of the odd outputs, lie side by side.
    Pairs,
}

/// Where a vector of a tile is stored.
#[derive(Clone, Copy, Debug)]
pub(super) struct Spot {
    /// Where its first float would lie, from the tile's base.
    pub(super) offset: isize,
    /// Floats of it, woven if it is, that exist.
    pub(super) lo: usize,
    pub(super) hi: usize,
}

/// One register tile.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    /// Terms of each sum.
    pub(super) n_rows: usize,
    /// `[row][V::OUTS]`.
    pub(super) w: &'a [f32],
    /// `[row][VECTORS]`.
    pub(super) x: &'a [f32],
    /// The tile's vectors.
    pub(super) spots: &'a [Spot],
    pub(super) weave: Weave,
    /// Output channels that exist.
    pub(super) n_outs: usize,
    /// The first of them.
    pub(super) out: *mut f32,
    /// Floats between them.
    pub(super) out_channel: usize,
    /// One for each.
    pub(super) bias: Option<&'a [f32]>,
    /// Whether outputs are stored past the cache; what is stored is fenced before
    /// others rely on it.
    pub(super) past: bool,
    /// Lines to ask for.
    pub(super) lines: &'a [*const f32],
}

/// Computes a tile. A sum starts from zero, takes its terms in ascending order by one
/// fused multiply-add each, and the bias last.
///
/// # Safety
/// The machine has the instructions. `out` is valid for writes at every spot of every
/// channel, and nobody else uses those elements meanwhile.
#[inline(always)]
pub(super) unsafe fn multiply<V: Vector>(product: &Product) {
    let p = product;
    assert!(
        p.w.len() >= p.n_rows * V::OUTS && p.x.len() >= p.n_rows * VECTORS * V::LANES,
        "packed operands"
    );
    assert!(p.bias.is_none_or(|b| b.len() >= p.n_outs), "biases");
    // SAFETY: as promised to this function and checked above.
    unsafe {
        match (V::OUTS, p.spots.len()) {
            (8, 1) => V::call(Tile::<8, 1>(p)),
            (8, 2) => V::call(Tile::<8, 2>(p)),
            (8, 3) => V::call(Tile::<8, 3>(p)),
            (4, 1) => V::call(Tile::<4, 1>(p)),
            (4, 2) => V::call(Tile::<4, 2>(p)),
            (4, 3) => V::call(Tile::<4, 3>(p)),
            (outs, vectors) => unreachable!("no tile is {outs} by {vectors}"),
        }
    }
}

struct Tile<'a, const K: usize, const N: usize>(&'a Product<'a>);

impl<const K: usize, const N: usize> Kernel for Tile<'_, K, N> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let p = self.0;
        let at = |channel: usize, spot: &Spot| {
            let base = p.out.wrapping_add(channel * p.out_channel);
            base.wrapping_offset(spot.offset)
        };
        if !p.past {
            for k in 0..p.n_outs {
                for spot in p.spots {
                    let step = if p.weave == Weave::No { 1 } else { 2 };
                    prefetch_to_write::<V>(at(k, spot), step);
                }
            }
        }
        // SAFETY: operands as `multiply` checked; outputs as promised to it.
        unsafe {
            let mut acc = Held::<K, N>::zero::<V>();
            let (mut w, mut x) = (p.w.as_ptr(), p.x.as_ptr());
            let mut lines = p.lines.iter();
            let per_strip = p.lines.len().div_ceil(p.n_rows.div_ceil(STRIP).max(1));
            let mut left = p.n_rows;
            while left > 0 {
                for &line in lines.by_ref().take(per_strip) {
                    _mm_prefetch::<_MM_HINT_T0>(line.cast());
                }
                let steps = left.min(STRIP);
                left -= steps;
                for _ in 0..steps {
                    let mut vectors = [x; N];
                    for (v, vector) in vectors.iter_mut().enumerate() {
                        *vector = x.wrapping_add(v * V::LANES);
                    }
                    if V::LANES == 8 && K == 4 && N == 3 {
                        let acc = &mut *(&raw mut acc).cast::<[[__m256; 3]; 4]>();
                        step_4_by_3(acc, &vectors, 0, w, 1);
                    } else {
                        V::broadcast_step(&mut acc, &vectors, 0, w, 1);
                    }
                    w = w.wrapping_add(K);
                    x = x.wrapping_add(VECTORS * V::LANES);
                }
            }
            if self.is_whole(V::LANES) {
                let to = |channel: usize, i: usize| at(channel, p.spots.get_unchecked(i));
                match p.weave {
                    Weave::No => {
                        for (k, acc) in acc.iter().enumerate() {
                            for (i, &sum) in acc.iter().enumerate() {
                                put(to(k, i), sum, p.past);
                            }
                        }
                    }
                    Weave::Gaps => {
                        for (k, acc) in acc.iter().enumerate() {
                            for (i, &sum) in acc.iter().enumerate() {
                                put_woven(to(k, i), sum, V::zero(), p.past);
                            }
                        }
                    }
                    Weave::Pairs => {
                        for (k, two) in acc.chunks_exact(2).enumerate() {
                            for (i, (&even, &odd)) in two[0].iter().zip(&two[1]).enumerate() {
                                put_woven(to(k, i), even, odd, p.past);
                            }
                        }
                    }
                }
                return;
            }
            let mut held = Held::<K, N>::new();
            held.store(&acc);
            let mut sum = |sum: usize, i: usize, channel: usize| {
                let sum = V::load(held.at(sum, i));
                match p.bias {
                    Some(bias) => sum.add(V::splat(bias[channel])),
                    None => sum,
                }
            };
            for k in 0..p.n_outs {
                let gap = p.bias.map_or(0.0, |bias| 0.0 + bias[k]);
                for (i, spot) in p.spots.iter().enumerate() {
                    let to = at(k, spot);
                    match p.weave {
                        Weave::No => store(to, 1, spot.hi, sum(k, i, k), p.past),
                        Weave::Gaps => {
                            store_woven(to, spot, sum(k, i, k), V::splat(gap), p.past);
                        }
                        Weave::Pairs => {
                            let (even, odd) = (sum(2 * k, i, k), sum(2 * k + 1, i, k));
                            store_woven(to, spot, even, odd, p.past);
                        }
                    }
                }
            }
        }
    }
}

impl<const K: usize, const N: usize> Tile<'_, K, N> {
    /// Whether all sums are stored as they are, in whole vectors, aligned if past the
    /// cache.
    #[inline(always)]
    fn is_whole(&self, lanes: usize) -> bool {
        let p = self.0;
        let (channels, floats) = match p.weave {
            Weave::No => (K, lanes),
            Weave::Gaps => (K, 2 * lanes),
            Weave::Pairs => (K / 2, 2 * lanes),
        };
        let whole = |spot: &Spot| {
            let to = p.out.wrapping_offset(spot.offset).addr() | (p.out_channel * 4);
            spot.lo == 0 && spot.hi == floats && (!p.past || to.is_multiple_of(lanes * 4))
        };
        p.n_outs == channels && p.bias.is_none() && p.spots.iter().all(whole)
    }
}

/// Stores a vector, aligned if past the cache.
///
/// # Safety
/// The machine has the instructions; `to` is valid for writes of it.
#[inline(always)]
unsafe fn put<V: Vector>(to: *mut f32, value: V, past: bool) {
    // SAFETY: as promised to this function.
    unsafe {
        if past {
            value.store_past(to);
        } else {
            value.store(to);
        }
    }
}

/// Stores even and odd floats alternately, as [`put`].
///
/// # Safety
/// As [`put`], for two vectors.
#[inline(always)]
unsafe fn put_woven<V: Vector>(to: *mut f32, even: V, odd: V, past: bool) {
    // SAFETY: as promised to this function.
    unsafe {
        let (first, second) = V::weave(even, odd);
        put(to, first, past);
        put(to.wrapping_add(V::LANES), second, past);
    }
}

/// Stores even and odd floats alternately, where they exist.
///
/// # Safety
/// The machine has the instructions; `to` is valid for writes of the spot's floats.
#[inline(always)]
unsafe fn store_woven<V: Vector>(to: *mut f32, spot: &Spot, even: V, odd: V, past: bool) {
    // SAFETY: as promised to this function.
    unsafe {
        if spot.lo == 0 {
            return store_two(to, spot.hi, even, odd, past);
        }
        // The left end of a region cuts a pair: rare.
        let mut held = [0.0; 32];
        let (first, second) = V::weave(even, odd);
        first.store(held.as_mut_ptr());
        second.store(held.as_mut_ptr().add(V::LANES));
        for (i, &value) in held.iter().enumerate().take(spot.hi).skip(spot.lo) {
            *to.wrapping_add(i) = value;
        }
    }
}
