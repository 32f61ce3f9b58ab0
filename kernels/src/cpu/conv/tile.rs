//! The register kernel of forward and transposed convolution.
//!
//! A tile is up to four output channels by a few vectors of eight neighbouring
//! outputs, at most twelve accumulators. For every (channel, tap) it loads the
//! vectors from the panel, broadcasts one weight per output channel, and
//! multiplies: seven loads for twelve fused multiply-adds, which leaves the two
//! FMA ports of an AVX2 core the bottleneck. Vectors of a tile may lie anywhere
//! in the block, so narrow and odd maps fill their tiles as well as wide ones.

use std::arch::x86_64::*;

use super::panel::LANES;
use super::stores::{load, load_two, prefetch_to_write, store, store_two};

/// Vectors of a tile of so many output channels: with the accumulators, as many
/// inputs and one weight fit the sixteen registers.
const VECTORS: [usize; 5] = [0, 7, 5, 3, 3];

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

/// Eight neighbouring outputs, or sixteen where two phases are stored side by
/// side; fewer at the end of a row.
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
    /// Added in the end, one per output channel of the tile.
    pub(super) bias: Option<&'a [f32]>,
}

/// Computes `n_out ≤ 4` output channels at all `positions`.
///
/// # Safety
/// The machine has AVX2 and FMA. `out` is valid for reads and writes at every
/// existing lane of every position of every channel, and nobody else uses those
/// elements meanwhile.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn tiles(n_out: usize, sums: &Sums, positions: &[Pos]) {
    if positions.is_empty() {
        return;
    }
    check(n_out, sums, sums.taps, sums.w, positions);
    if let Some((taps, w)) = sums.between {
        check(n_out, sums, taps, w, positions);
    }
    assert!(
        sums.bias.is_none_or(|b| b.len() >= n_out),
        "each output channel has a bias"
    );
    // SAFETY: as promised to this function and checked above.
    unsafe {
        match (n_out, sums.between.is_some()) {
            (1, false) => rows::<1, false>(sums, positions),
            (2, false) => rows::<2, false>(sums, positions),
            (3, false) => rows::<3, false>(sums, positions),
            (_, false) => rows::<4, false>(sums, positions),
            (1, true) => rows::<1, true>(sums, positions),
            (2, true) => rows::<2, true>(sums, positions),
            (3, true) => rows::<3, true>(sums, positions),
            (_, true) => rows::<4, true>(sums, positions),
        }
    }
}

/// The kernels do not check bounds, so this is checked for all tiles at once.
fn check(n_out: usize, sums: &Sums, taps: &[usize], w: &[f32], positions: &[Pos]) {
    let pairs = sums.channels * taps.len();
    if pairs > 0 {
        let x = positions.iter().map(|p| p.x).max().unwrap_or(0);
        let tap = taps.iter().max().copied().unwrap_or(0);
        let x_end = x + tap + (sums.channels - 1) * sums.x_channel + LANES;
        assert!(x_end <= sums.panel.len(), "tiles read within the panel");
        let w_end = (n_out - 1) * sums.w_out + (pairs - 1) * sums.w_step;
        assert!(w_end < w.len(), "tiles read within the weights");
    }
}

/// # Safety
/// As [`tiles`], for `K` output channels and `TWO` phases; reads of panel and weights in bounds.
#[target_feature(enable = "avx2,fma")]
unsafe fn rows<const K: usize, const TWO: bool>(sums: &Sums, mut positions: &[Pos]) {
    let most = VECTORS[K];
    while !positions.is_empty() {
        let left = positions.len();
        let n = if left <= most {
            left
        } else if left < 2 * most {
            left.div_ceil(2)
        } else {
            most
        };
        let (these, rest) = positions.split_at(n);
        positions = rest;
        // SAFETY: as promised to this function.
        unsafe {
            match n {
                1 => tile::<K, 1, TWO>(sums, these),
                2 => tile::<K, 2, TWO>(sums, these),
                3 => tile::<K, 3, TWO>(sums, these),
                4 if K < 3 => tile::<K, 4, TWO>(sums, these),
                5 if K < 3 => tile::<K, 5, TWO>(sums, these),
                6 if K < 2 => tile::<K, 6, TWO>(sums, these),
                7 if K < 2 => tile::<K, 7, TWO>(sums, these),
                _ => unreachable!("no tile has more vectors than VECTORS"),
            }
        }
    }
}

/// # Safety
/// As [`rows`]; `positions` has `V` entries.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const K: usize, const V: usize, const TWO: bool>(sums: &Sums, positions: &[Pos]) {
    debug_assert_eq!(positions.len(), V);
    let at = |k: usize, pos: &Pos| sums.out.wrapping_add(k * sums.out_channel + pos.out);
    for k in 0..K {
        for pos in positions {
            prefetch_to_write(at(k, pos), if TWO { 2 } else { sums.out_step });
        }
    }
    let mut acc = [[_mm256_setzero_ps(); V]; K];
    // SAFETY: bounds as promised to this function.
    unsafe {
        if !TWO {
            if !sums.first {
                for (k, acc) in acc.iter_mut().enumerate() {
                    for (acc, pos) in acc.iter_mut().zip(positions) {
                        *acc = load(at(k, pos), sums.out_step, pos.lanes);
                    }
                }
            }
            accumulate(&mut acc, sums, sums.taps, sums.w, positions);
            for (k, acc) in acc.iter_mut().enumerate() {
                let bias = sums.bias.map(|bias| _mm256_set1_ps(bias[k]));
                for (acc, pos) in acc.iter_mut().zip(positions) {
                    if let Some(bias) = bias {
                        *acc = _mm256_add_ps(*acc, bias);
                    }
                    store(at(k, pos), sums.out_step, pos.lanes, *acc);
                }
            }
            return;
        }
        // The first phase waits in memory for the second: each fills the registers.
        let mut between = [[_mm256_setzero_ps(); V]; K];
        if !sums.first {
            for k in 0..K {
                for (i, pos) in positions.iter().enumerate() {
                    (acc[k][i], between[k][i]) = load_two(at(k, pos), pos.lanes);
                }
            }
        }
        accumulate(&mut acc, sums, sums.taps, sums.w, positions);
        if let Some((taps, w)) = sums.between {
            accumulate(&mut between, sums, taps, w, positions);
        }
        for k in 0..K {
            let bias = sums.bias.map(|bias| _mm256_set1_ps(bias[k]));
            for (i, pos) in positions.iter().enumerate() {
                if let Some(bias) = bias {
                    acc[k][i] = _mm256_add_ps(acc[k][i], bias);
                    between[k][i] = _mm256_add_ps(between[k][i], bias);
                }
                store_two(at(k, pos), pos.lanes, acc[k][i], between[k][i]);
            }
        }
    }
}

/// Adds all (channel, tap) pairs.
///
/// # Safety
/// As [`tile`].
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn accumulate<const K: usize, const V: usize>(
    acc: &mut [[__m256; V]; K],
    sums: &Sums,
    taps: &[usize],
    w: &[f32],
    positions: &[Pos],
) {
    let mut x = [sums.panel.as_ptr(); V];
    for (x, pos) in x.iter_mut().zip(positions) {
        *x = x.wrapping_add(pos.x);
    }
    let mut w = w.as_ptr();
    for c in 0..sums.channels {
        let channel = c * sums.x_channel;
        for &tap in taps {
            // SAFETY: bounds as promised to this function.
            unsafe {
                if K == 4 && V == 3 {
                    step_4_by_3(acc, &x, channel + tap, w, sums.w_out);
                } else {
                    step(acc, &x, channel + tap, w, sums.w_out);
                }
            }
            w = w.wrapping_add(sums.w_step);
        }
    }
}

/// One (channel, tap): `acc[k][i] += x[i][at…] · w[k·w_out]`.
///
/// # Safety
/// The eight floats from `x[i] + at` and the weights are readable.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn step<const K: usize, const V: usize>(
    acc: &mut [[__m256; V]; K],
    x: &[*const f32; V],
    at: usize,
    w: *const f32,
    w_out: usize,
) {
    let mut v = [_mm256_setzero_ps(); V];
    // SAFETY: as promised to this function.
    unsafe {
        for (v, x) in v.iter_mut().zip(x) {
            *v = _mm256_loadu_ps(x.add(at));
        }
        for (k, acc) in acc.iter_mut().enumerate() {
            let weight = _mm256_broadcast_ss(&*w.add(k * w_out));
            for (acc, &v) in acc.iter_mut().zip(&v) {
                *acc = _mm256_fmadd_ps(v, weight, *acc);
            }
        }
    }
}

/// [`step`] for the full tile, which takes exactly all sixteen registers: the
/// compiler's scheduler would overlap two weights and spill, so the order of
/// instructions is given.
///
/// # Safety
/// As [`step`], and `K = 4`, `V = 3`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn step_4_by_3<const K: usize, const V: usize>(
    acc: &mut [[__m256; V]; K],
    x: &[*const f32; V],
    at: usize,
    w: *const f32,
    w_out: usize,
) {
    // SAFETY: reads what `step` reads; touches nothing else.
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
