//! The register kernel of forward and transposed convolution.
//!
//! A tile is a few output channels by a few vectors of neighbouring outputs: at
//! most 8 by 3 with AVX-512, 4 by 3 with AVX2. For every (channel, tap) it loads
//! the vectors from the panel, broadcasts one weight per output channel, and
//! multiplies: eleven loads for 24 fused multiply-adds, or seven for twelve, which
//! leaves the FMA units the bottleneck. Vectors of a tile may lie anywhere
//! in the block, so narrow and odd maps fill their tiles as well as wide ones.

use std::arch::x86_64::*;

use super::stores::{load, load_two, prefetch_to_write, store, store_two};
use super::vector::{Held, Kernel, Vector, piece};

/// Up to so many taps are listed for every channel.
const FEW_TAPS: usize = 2;

/// With one tap or two, a loop over them would cost as much as what it does:
/// then the taps of all channels are listed as those of one. Returns the number
/// of channels that are left.
pub(super) fn list_taps(channels: usize, x_channel: usize, taps: [&mut Vec<usize>; 2]) -> usize {
    if taps.iter().any(|taps| taps.len() > FEW_TAPS) {
        return channels;
    }
    for taps in taps {
        let one = std::mem::take(taps);
        taps.reserve(channels * one.len());
        for c in 0..channels {
            for tap in &one {
                taps.push(c * x_channel + tap);
            }
        }
    }
    1
}

/// A vector of neighbouring outputs, or two where two phases are stored side by
/// side; fewer lanes at the end of a row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pos {
    /// Offset of the first tap in the panel, less the tap's own offset.
    pub(super) x: usize,
    /// Offset of the first output from the first output channel's base.
    pub(super) out: usize,
    /// How many of them exist.
    pub(super) lanes: usize,
}

/// What the tiles of one block and one range of summed channels share.
#[derive(Clone, Copy)]
pub(super) struct Sums<'a> {
    /// The packed inputs.
    pub(super) panel: &'a [f32],
    /// Floats between channels of the panel.
    pub(super) x_channel: usize,
    /// Number of channels summed.
    pub(super) channels: usize,
    /// Offset of each tap in the panel.
    pub(super) taps: &'a [usize],
    /// Weights, from the first summed channel on.
    pub(super) w: &'a [f32],
    /// Floats between the weights of neighbouring output channels of a tile.
    pub(super) w_out: usize,
    /// Floats between the weights of neighbouring (channel, tap) pairs.
    pub(super) w_step: usize,
    /// First output of the first output channel.
    pub(super) out: *mut f32,
    /// Floats between output channels.
    pub(super) out_channel: usize,
    /// Floats between neighbouring outputs of a vector.
    pub(super) out_step: usize,
    /// With `out_step` 2, the taps and weights of the outputs between: both are
    /// then computed, and stored side by side.
    pub(super) between: Option<(&'a [usize], &'a [f32])>,
    /// Whether the sums begin here rather than with what `out` holds.
    pub(super) first: bool,
    /// Whether outputs are stored past the cache; what is stored is fenced before
    /// others rely on it.
    pub(super) past: bool,
    /// Added in the end, one per output channel of the tile.
    pub(super) bias: Option<&'a [f32]>,
}

/// Computes `n_out ≤ V::OUTS` output channels at all `positions`.
///
/// # Safety
/// The machine has the instructions. `out` is valid for reads and writes at every
/// existing lane of every position of every channel, and nobody else uses those
/// elements meanwhile.
#[inline(always)]
pub(super) unsafe fn tiles<V: Vector>(n_out: usize, sums: &Sums, positions: &[Pos]) {
    if positions.is_empty() {
        return;
    }
    check::<V>(n_out, sums, sums.taps, sums.w, positions);
    if let Some((taps, w)) = sums.between {
        check::<V>(n_out, sums, taps, w, positions);
    }
    assert!(
        sums.bias.is_none_or(|b| b.len() >= n_out),
        "each output channel has a bias"
    );
    let mut k = 0;
    while k < n_out {
        let n = piece::<V>(n_out - k);
        let these = sums.from(k);
        // SAFETY: as promised to this function and checked above.
        unsafe {
            match (n, sums.between.is_some()) {
                (1, false) => rows::<V, 1, false>(&these, positions),
                (2, false) => rows::<V, 2, false>(&these, positions),
                (4, false) => rows::<V, 4, false>(&these, positions),
                (_, false) if const { V::OUTS == 8 } => rows::<V, 8, false>(&these, positions),
                (1, true) => rows::<V, 1, true>(&these, positions),
                (2, true) => rows::<V, 2, true>(&these, positions),
                (4, true) => rows::<V, 4, true>(&these, positions),
                (_, true) if const { V::OUTS == 8 } => rows::<V, 8, true>(&these, positions),
                _ => unreachable!("no tile has more outputs than a full one"),
            }
        }
        k += n;
    }
}

impl Sums<'_> {
    /// The same from output channel `k` of the tile on.
    #[inline(always)]
    fn from(&self, k: usize) -> Self {
        Sums {
            w: &self.w[(k * self.w_out).min(self.w.len())..],
            out: self.out.wrapping_add(k * self.out_channel),
            between: self
                .between
                .map(|(taps, w)| (taps, &w[(k * self.w_out).min(w.len())..])),
            bias: self.bias.map(|bias| &bias[k..]),
            ..*self
        }
    }
}

/// The kernels do not check bounds, so this is checked for all tiles at once.
fn check<V: Vector>(n_out: usize, sums: &Sums, taps: &[usize], w: &[f32], positions: &[Pos]) {
    let pairs = sums.channels * taps.len();
    if pairs > 0 {
        let x = positions.iter().map(|p| p.x).max().unwrap_or(0);
        let tap = taps.iter().max().copied().unwrap_or(0);
        let x_end = x + tap + (sums.channels - 1) * sums.x_channel + V::LANES;
        assert!(x_end <= sums.panel.len(), "tiles read within the panel");
        let w_end = (n_out - 1) * sums.w_out + (pairs - 1) * sums.w_step;
        assert!(w_end < w.len(), "tiles read within the weights");
    }
}

/// # Safety
/// As [`tiles`], for `K` output channels and `TWO` phases; reads of panel and weights in bounds.
#[inline(always)]
unsafe fn rows<V: Vector, const K: usize, const TWO: bool>(sums: &Sums, mut positions: &[Pos]) {
    let most = V::VECTORS[K];
    while !positions.is_empty() {
        let left = positions.len();
        let n = if left <= most {
            left
        } else if left < 2 * most {
            left.div_ceil(2)
        } else {
            most
        };
        let (positions_now, rest) = positions.split_at(n);
        positions = rest;
        // SAFETY: as promised to this function.
        unsafe {
            macro_rules! tile {
                ($n:literal) => {
                    V::call(Tile::<K, $n, TWO> {
                        sums,
                        positions: positions_now,
                    })
                };
            }
            match n {
                // What is constant here keeps others from being compiled.
                1 => tile!(1),
                2 => tile!(2),
                3 => tile!(3),
                4 if const { V::VECTORS[K] > 3 } => tile!(4),
                5 if const { V::VECTORS[K] > 4 } => tile!(5),
                6 if const { V::VECTORS[K] > 5 } => tile!(6),
                7 if const { V::VECTORS[K] > 6 } => tile!(7),
                _ => unreachable!("no tile has more vectors than its registers hold"),
            }
        }
    }
}

/// One register tile: `K` output channels of the `N` vectors at `positions`, of
/// `TWO` phases.
struct Tile<'a, const K: usize, const N: usize, const TWO: bool> {
    sums: &'a Sums<'a>,
    positions: &'a [Pos],
}

impl<const K: usize, const N: usize, const TWO: bool> Kernel for Tile<'_, K, N, TWO> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Tile { sums, positions } = self;
        debug_assert_eq!(positions.len(), N);
        let at = |k: usize, pos: &Pos| sums.out.wrapping_add(k * sums.out_channel + pos.out);
        if !sums.past {
            for k in 0..K {
                for pos in positions {
                    prefetch_to_write::<V>(at(k, pos), if TWO { 2 } else { sums.out_step });
                }
            }
        }
        // The first phase waits in memory for the second: each fills the registers.
        let (mut held, mut between) = (Held::<K, N>::new(), Held::<K, N>::new());
        // SAFETY: bounds as promised to `tiles`.
        unsafe {
            if !sums.first {
                for k in 0..K {
                    for (i, pos) in positions.iter().enumerate() {
                        if TWO {
                            let (even, odd) = load_two::<V>(at(k, pos), pos.lanes);
                            even.store(held.at(k, i));
                            odd.store(between.at(k, i));
                        } else {
                            let sum = load::<V>(at(k, pos), sums.out_step, pos.lanes);
                            sum.store(held.at(k, i));
                        }
                    }
                }
            }
            accumulate::<V, K, N>(&mut held, sums, sums.taps, sums.w, positions);
            if let Some((taps, w)) = sums.between.filter(|_| TWO) {
                accumulate::<V, K, N>(&mut between, sums, taps, w, positions);
            }
            for k in 0..K {
                let bias = sums.bias.map(|bias| V::splat(bias[k]));
                let sum = |held: *mut f32| {
                    let sum = V::load(held);
                    bias.map_or(sum, |bias| sum.add(bias))
                };
                for (i, pos) in positions.iter().enumerate() {
                    let first = sum(held.at(k, i));
                    if TWO {
                        let second = sum(between.at(k, i));
                        store_two(at(k, pos), pos.lanes, first, second, sums.past);
                    } else {
                        store(at(k, pos), sums.out_step, pos.lanes, first, sums.past);
                    }
                }
            }
        }
    }
}

/// Adds all (channel, tap) pairs to what is held, or to zero.
///
/// # Safety
/// As [`tiles`].
#[inline(always)]
unsafe fn accumulate<V: Vector, const K: usize, const N: usize>(
    held: &mut Held<K, N>,
    sums: &Sums,
    taps: &[usize],
    w: &[f32],
    positions: &[Pos],
) {
    let mut x = [sums.panel.as_ptr(); N];
    for (x, pos) in x.iter_mut().zip(positions) {
        *x = x.wrapping_add(pos.x);
    }
    let mut w = w.as_ptr();
    // SAFETY: bounds as promised to this function.
    unsafe {
        let mut acc = if sums.first {
            Held::<K, N>::zero::<V>()
        } else {
            held.load::<V>()
        };
        for c in 0..sums.channels {
            let channel = c * sums.x_channel;
            for &tap in taps {
                if V::LANES == 8 && K == 4 && N == 3 {
                    let acc = &mut *(&raw mut acc).cast::<[[__m256; 3]; 4]>();
                    step_4_by_3(acc, &x, channel + tap, w, sums.w_out);
                } else {
                    V::broadcast_step(&mut acc, &x, channel + tap, w, sums.w_out);
                }
                w = w.wrapping_add(sums.w_step);
            }
        }
        held.store(&acc);
    }
}

/// [`Vector::broadcast_step`] for the full tile of AVX2, which takes exactly all sixteen registers: the
/// compiler's scheduler would overlap two weights and spill, so the order of
/// instructions is given.
///
/// # Safety
/// As [`Vector::broadcast_step`], and `N = 3`.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn step_4_by_3<const N: usize>(
    acc: &mut [[__m256; 3]; 4],
    x: &[*const f32; N],
    at: usize,
    w: *const f32,
    w_out: usize,
) {
    // SAFETY: reads what a step reads; touches nothing else.
    unsafe {
        std::arch::asm!(
            "vmovups {x0}, [{p0} + {at} * 4]",
            "vmovups {x1}, [{p1} + {at} * 4]",
            "vmovups {x2}, [{p2} + {at} * 4]",
            "vbroadcastss {w}, [{q}]",
            "vfmadd231ps {a0}, {x0}, {w}",
            "vfmadd231ps {a1}, {x1}, {w}",
            "vfmadd231ps {a2}, {x2}, {w}",
            "vbroadcastss {w}, [{q} + {o} * 4]",
            "vfmadd231ps {b0}, {x0}, {w}",
            "vfmadd231ps {b1}, {x1}, {w}",
            "vfmadd231ps {b2}, {x2}, {w}",
            "vbroadcastss {w}, [{q} + {o} * 8]",
            "vfmadd231ps {c0}, {x0}, {w}",
            "vfmadd231ps {c1}, {x1}, {w}",
            "vfmadd231ps {c2}, {x2}, {w}",
            "vbroadcastss {w}, [{q3} + {o} * 4]",
            "vfmadd231ps {d0}, {x0}, {w}",
            "vfmadd231ps {d1}, {x1}, {w}",
            "vfmadd231ps {d2}, {x2}, {w}",
            p0 = in(reg) x[0],
            p1 = in(reg) x[1],
            p2 = in(reg) x[2],
            at = in(reg) at,
            q = in(reg) w,
            q3 = in(reg) w.wrapping_add(2 * w_out),
            o = in(reg) w_out,
            x0 = out(ymm_reg) _,
            x1 = out(ymm_reg) _,
            x2 = out(ymm_reg) _,
            w = out(ymm_reg) _,
            a0 = inout(ymm_reg) acc[0][0],
            a1 = inout(ymm_reg) acc[0][1],
            a2 = inout(ymm_reg) acc[0][2],
            b0 = inout(ymm_reg) acc[1][0],
            b1 = inout(ymm_reg) acc[1][1],
            b2 = inout(ymm_reg) acc[1][2],
            c0 = inout(ymm_reg) acc[2][0],
            c1 = inout(ymm_reg) acc[2][1],
            c2 = inout(ymm_reg) acc[2][2],
            d0 = inout(ymm_reg) acc[3][0],
            d1 = inout(ymm_reg) acc[3][1],
            d2 = inout(ymm_reg) acc[3][2],
            options(pure, readonly, nostack, preserves_flags),
        );
    }
}
