//! The multiplications: for each of the 36 points, sums over channels.
//!
//! A register tile is eight output channels by up to three vectors of sixteen
//! tiles, with AVX2 four by three of eight. Each step loads the vectors and multiplies them with eight broadcast
//! weights; 24 accumulators keep the FMA units busy, and both operands stream
//! from where they were packed in this very order.

use std::arch::x86_64::*;
use std::array::from_fn;

use super::super::tile::step_4_by_3;
use super::super::vector::Vector;
use super::OUTS;
use super::transform::LANES;

/// Lanes of a vector of AVX2.
const HALF: usize = LANES / 2;

/// `m[k][v] = Σ_r w[r][k] · u[r][v]` over `n_terms` terms `r`, eight channels `k`
/// and `vectors` vectors of sixteen lanes; every product is added by one fused
/// multiply-add, in ascending order.
///
/// # Safety
/// The machine has AVX-512F. `w` holds `n_terms · 8` floats, `u` and `m` hold
/// `n_terms · vectors · 16` and `8 · vectors · 16`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn by_512(
    vectors: usize,
    n_terms: usize,
    w: *const f32,
    u: *const f32,
    m: *mut f32,
) {
    // SAFETY: as promised to this function.
    unsafe {
        match vectors {
            1 => tile_512::<1>(n_terms, w, u, m),
            2 => tile_512::<2>(n_terms, w, u, m),
            _ => tile_512::<3>(n_terms, w, u, m),
        }
    }
}

/// # Safety
/// As [`by_512`].
#[target_feature(enable = "avx512f")]
unsafe fn tile_512<const V: usize>(n_terms: usize, w: *const f32, u: *const f32, m: *mut f32) {
    let mut acc = [[_mm512_setzero_ps(); V]; OUTS];
    let (mut w, mut u) = (w, u);
    for _ in 0..n_terms {
        // SAFETY: in bounds as promised; pointers past the end are not read.
        unsafe {
            let mut x = [_mm512_setzero_ps(); V];
            for (v, x) in x.iter_mut().enumerate() {
                *x = _mm512_loadu_ps(u.add(v * LANES));
            }
            for (k, acc) in acc.iter_mut().enumerate() {
                let weight = _mm512_set1_ps(*w.add(k));
                for (acc, &x) in acc.iter_mut().zip(&x) {
                    *acc = _mm512_fmadd_ps(x, weight, *acc);
                }
            }
        }
        w = w.wrapping_add(OUTS);
        u = u.wrapping_add(V * LANES);
    }
    for (k, acc) in acc.iter().enumerate() {
        for (v, &acc) in acc.iter().enumerate() {
            // SAFETY: in bounds as promised.
            unsafe { _mm512_storeu_ps(m.add((k * V + v) * LANES), acc) };
        }
    }
}

/// [`by_512`] in halves of eight lanes and four channels.
///
/// # Safety
/// As [`by_512`], but the machine has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn by_256(
    vectors: usize,
    n_terms: usize,
    w: *const f32,
    u: *const f32,
    m: *mut f32,
) {
    let row = vectors * LANES;
    for first in (0..OUTS).step_by(4) {
        let (w, m) = (w.wrapping_add(first), m.wrapping_add(first * row));
        let mut at = 0;
        while at < row {
            let (u, m) = (u.wrapping_add(at), m.wrapping_add(at));
            // Twelve accumulators keep the FMA units busier than eight.
            // SAFETY: as promised to this function.
            at += unsafe {
                if row.is_multiple_of(3 * HALF) {
                    tile_256::<3>(n_terms, w, u, m, row)
                } else {
                    tile_256::<2>(n_terms, w, u, m, row)
                }
            };
        }
    }
}

/// Four channels of `N` vectors of eight of the tiles of a `row`; returns those tiles.
///
/// # Safety
/// As [`by_256`].
#[target_feature(enable = "avx2,fma")]
unsafe fn tile_256<const N: usize>(
    n_terms: usize,
    w: *const f32,
    u: *const f32,
    m: *mut f32,
    row: usize,
) -> usize {
    let x: [_; N] = from_fn(|v| u.wrapping_add(v * HALF));
    // SAFETY: in bounds as promised.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); N]; 4];
        for r in 0..n_terms {
            let w = w.wrapping_add(r * OUTS);
            if N == 3 {
                let acc = &mut *(&raw mut acc).cast::<[[__m256; 3]; 4]>();
                step_4_by_3(acc, &x, r * row, w, 1);
            } else {
                __m256::broadcast_step(&mut acc, &x, r * row, w, 1);
            }
        }
        for (k, acc) in acc.iter().enumerate() {
            for (v, &acc) in acc.iter().enumerate() {
                _mm256_storeu_ps(m.add(k * row + v * HALF), acc);
            }
        }
    }
    N * HALF
}

/// Channels of `x` of a register tile of the weight gradient.
pub(super) const INS: usize = 16;

/// `m[c][k] += Σ_t u[c][t] · y[t][k]` over `tiles` tiles, sixteen channels `k`
/// side by side, and `n_ins` channels `c`.
///
/// # Safety
/// The machine has AVX-512F. `u` holds `n_ins · tiles` floats, `y` and `m` hold
/// `tiles · 16` and `n_ins · 16`.
#[target_feature(enable = "avx512f")]
pub(super) unsafe fn correlate_512(
    n_ins: usize,
    tiles: usize,
    u: *const f32,
    y: *const f32,
    m: *mut f32,
) {
    let mut c = 0;
    while c < n_ins {
        // SAFETY: as promised to this function.
        unsafe {
            let (u, m) = (u.add(c * tiles), m.add(c * LANES));
            c += match n_ins - c {
                INS.. => ins_512::<INS>(tiles, u, y, m),
                4.. => ins_512::<4>(tiles, u, y, m),
                _ => ins_512::<1>(tiles, u, y, m),
            };
        }
    }
}

/// # Safety
/// As [`correlate_512`], for `C` channels, which it returns.
#[target_feature(enable = "avx512f")]
unsafe fn ins_512<const C: usize>(
    tiles: usize,
    u: *const f32,
    y: *const f32,
    m: *mut f32,
) -> usize {
    // SAFETY: in bounds as promised.
    unsafe {
        let mut acc = [_mm512_setzero_ps(); C];
        for (c, acc) in acc.iter_mut().enumerate() {
            *acc = _mm512_loadu_ps(m.add(c * LANES));
        }
        for t in 0..tiles {
            let y = _mm512_loadu_ps(y.add(t * LANES));
            for (c, acc) in acc.iter_mut().enumerate() {
                *acc = _mm512_fmadd_ps(_mm512_set1_ps(*u.add(c * tiles + t)), y, *acc);
            }
        }
        for (c, &acc) in acc.iter().enumerate() {
            _mm512_storeu_ps(m.add(c * LANES), acc);
        }
    }
    C
}

/// [`correlate_512`] in halves of eight lanes.
///
/// # Safety
/// As [`correlate_512`], but the machine has AVX2 and FMA.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn correlate_256(
    n_ins: usize,
    tiles: usize,
    u: *const f32,
    y: *const f32,
    m: *mut f32,
) {
    let mut c = 0;
    while c < n_ins {
        // SAFETY: as promised to this function.
        unsafe {
            let (u, m) = (u.add(c * tiles), m.add(c * LANES));
            c += match n_ins - c {
                6.. => ins_256::<6>(tiles, u, y, m),
                4.. => ins_256::<4>(tiles, u, y, m),
                _ => ins_256::<1>(tiles, u, y, m),
            };
        }
    }
}

/// # Safety
/// As [`correlate_256`], for `C` channels, which it returns.
#[target_feature(enable = "avx2,fma")]
unsafe fn ins_256<const C: usize>(
    tiles: usize,
    u: *const f32,
    y: *const f32,
    m: *mut f32,
) -> usize {
    // SAFETY: in bounds as promised.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); 2]; C];
        for (c, acc) in acc.iter_mut().enumerate() {
            let from = m.add(c * LANES);
            *acc = [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(HALF))];
        }
        for t in 0..tiles {
            let from = y.add(t * LANES);
            let y = [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(HALF))];
            for (c, acc) in acc.iter_mut().enumerate() {
                let u = _mm256_set1_ps(*u.add(c * tiles + t));
                acc[0] = _mm256_fmadd_ps(u, y[0], acc[0]);
                acc[1] = _mm256_fmadd_ps(u, y[1], acc[1]);
            }
        }
        for (c, acc) in acc.iter().enumerate() {
            let to = m.add(c * LANES);
            _mm256_storeu_ps(to, acc[0]);
            _mm256_storeu_ps(to.add(HALF), acc[1]);
        }
    }
    C
}
