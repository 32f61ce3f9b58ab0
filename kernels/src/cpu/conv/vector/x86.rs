//! The two kinds of vectors in instructions.

use std::arch::x86_64::*;

use super::{Kernel, Vector};

/// What both kinds of vectors do by an instruction of the same meaning.
///
/// The steps of innermost loops are written in plain instructions: the compiler is
/// to see little more than these when it decides what lives in registers.
macro_rules! instructions {
    (
        $features:literal, $zero:ident, $splat:ident, $load:ident, $store:ident,
        $store_past:ident, $add:ident, $fma:ident
    ) => {
        #[inline(never)]
        #[target_feature(enable = $features)]
        unsafe fn call<K: Kernel>(kernel: K) {
            // SAFETY: as promised to this function.
            unsafe { kernel.run::<Self>() }
        }

        #[inline(always)]
        unsafe fn zero() -> Self {
            // SAFETY: as promised to this function.
            unsafe { $zero() }
        }

        #[inline(always)]
        unsafe fn splat(value: f32) -> Self {
            // SAFETY: as promised to this function.
            unsafe { $splat(value) }
        }

        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            // SAFETY: as promised to this function.
            unsafe { $load(from) }
        }

        #[inline(always)]
        unsafe fn store(self, to: *mut f32) {
            // SAFETY: as promised to this function.
            unsafe { $store(to, self) }
        }

        #[inline(always)]
        unsafe fn store_past(self, to: *mut f32) {
            // SAFETY: as promised to this function.
            unsafe { $store_past(to, self) }
        }

        #[inline(always)]
        unsafe fn add(self, other: Self) -> Self {
            // SAFETY: as promised to this function.
            unsafe { $add(self, other) }
        }

        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn broadcast_step<const K: usize, const N: usize>(
            acc: &mut [[Self; N]; K],
            x: &[*const f32; N],
            at: usize,
            w: *const f32,
            w_step: usize,
        ) {
            let thirds = thirds(w, w_step);
            // SAFETY: as promised to this function.
            unsafe {
                let mut v = [$zero(); N];
                for (v, x) in v.iter_mut().zip(x) {
                    *v = $load(x.add(at));
                }
                for (k, acc) in acc.iter_mut().enumerate() {
                    let w = $splat(*thirds[k / 3].wrapping_add(k % 3 * w_step));
                    for (acc, &v) in acc.iter_mut().zip(&v) {
                        *acc = $fma(v, w, *acc);
                    }
                }
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn outer_step<const M: usize, const N: usize>(
            acc: &mut [[Self; N]; M],
            lanes: &[*const f32; N],
            columns: &[*const f32; M],
            at: usize,
        ) {
            // SAFETY: as promised to this function.
            unsafe {
                let mut v = [$zero(); N];
                for (v, lanes) in v.iter_mut().zip(lanes) {
                    *v = $load(*lanes);
                }
                for (acc, column) in acc.iter_mut().zip(columns) {
                    let x = $splat(*column.add(at));
                    for (acc, &v) in acc.iter_mut().zip(&v) {
                        *acc = $fma(v, x, *acc);
                    }
                }
            }
        }

        #[inline]
        #[target_feature(enable = $features)]
        unsafe fn correlate_step<const K: usize, const N: usize>(
            acc: &mut [[Self; N]; K],
            x: &[*const f32; N],
            at: usize,
            y: *const f32,
            y_step: usize,
        ) {
            let thirds = thirds(y, y_step);
            // SAFETY: as promised to this function.
            unsafe {
                let mut v = [$zero(); N];
                for (v, x) in v.iter_mut().zip(x) {
                    *v = $load(x.add(at));
                }
                for (k, acc) in acc.iter_mut().enumerate() {
                    let y = $load(thirds[k / 3].wrapping_add(k % 3 * y_step));
                    for (acc, &v) in acc.iter_mut().zip(&v) {
                        *acc = $fma(v, y, *acc);
                    }
                }
            }
        }
    };
}

/// Few addresses from which all of eight are a multiple of the step away that an
/// instruction can express.
#[inline(always)]
fn thirds(first: *const f32, step: usize) -> [*const f32; 3] {
    [0, 3, 6].map(|k| first.wrapping_add(k * step))
}

impl Vector for __m512 {
    const LANES: usize = 16;
    const OUTS: usize = 8;
    const VECTORS: [usize; 9] = [0, 7, 7, 0, 6, 0, 0, 0, 3];

    instructions!(
        "avx512f,avx512vl,avx2,fma",
        _mm512_setzero_ps,
        _mm512_set1_ps,
        _mm512_loadu_ps,
        _mm512_storeu_ps,
        _mm512_stream_ps,
        _mm512_add_ps,
        _mm512_fmadd_ps
    );

    #[inline(always)]
    unsafe fn load_some(from: *const f32, lanes: usize) -> Self {
        // SAFETY: as promised to this function.
        unsafe { _mm512_maskz_loadu_ps(mask_512(lanes), from) }
    }

    #[inline(always)]
    unsafe fn store_some(self, to: *mut f32, lanes: usize) {
        // SAFETY: as promised to this function.
        unsafe { _mm512_mask_storeu_ps(to, mask_512(lanes), self) }
    }

    #[inline(always)]
    unsafe fn add_to(self, sums: *mut f64) {
        // SAFETY: as promised to this function.
        unsafe {
            let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(self)));
            let low = _mm512_cvtps_pd(_mm512_castps512_ps256(self));
            let high = _mm512_cvtps_pd(high);
            _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), low));
            let sums = sums.add(8);
            _mm512_storeu_pd(sums, _mm512_add_pd(_mm512_loadu_pd(sums), high));
        }
    }

    #[inline(never)]
    #[target_feature(enable = "avx512f")]
    unsafe fn transpose(from: *const f32, step: usize, to: *mut f32, to_step: usize) {
        // SAFETY: as promised to this function.
        unsafe {
            let mut rows = [_mm512_setzero_ps(); 16];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm512_loadu_ps(from.add(i * step));
            }
            let mut pairs = rows;
            for i in (0..16).step_by(2) {
                pairs[i] = _mm512_unpacklo_ps(rows[i], rows[i + 1]);
                pairs[i + 1] = _mm512_unpackhi_ps(rows[i], rows[i + 1]);
            }
            // Quarter `q` of `fours[4 i + j]` is column `4 q + j` of rows `4 i` to `4 i + 3`.
            let mut fours = pairs;
            for i in (0..16).step_by(4) {
                let [a, b, c, d] = [0, 1, 2, 3].map(|j| _mm512_castps_pd(pairs[i + j]));
                fours[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, c));
                fours[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, c));
                fours[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(b, d));
                fours[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(b, d));
            }
            for j in 0..4 {
                let [a, b, c, d] = [fours[j], fours[4 + j], fours[8 + j], fours[12 + j]];
                let even = _mm512_shuffle_f32x4::<0x88>(a, b);
                let more_even = _mm512_shuffle_f32x4::<0x88>(c, d);
                let odd = _mm512_shuffle_f32x4::<0xdd>(a, b);
                let more_odd = _mm512_shuffle_f32x4::<0xdd>(c, d);
                let columns = [
                    _mm512_shuffle_f32x4::<0x88>(even, more_even),
                    _mm512_shuffle_f32x4::<0x88>(odd, more_odd),
                    _mm512_shuffle_f32x4::<0xdd>(even, more_even),
                    _mm512_shuffle_f32x4::<0xdd>(odd, more_odd),
                ];
                for (q, &column) in columns.iter().enumerate() {
                    _mm512_storeu_ps(to.add((4 * q + j) * to_step), column);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn lane_sums([a, b, c, d, e, f, g, h]: [Self; 8]) -> [f32; 8] {
        // SAFETY: as promised to this function; eight floats go where there are eight.
        unsafe {
            // Each step adds neighbours in lanes and puts two vectors into one.
            let pairs = |a, b| _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
            let fours = |a, b| {
                let (a, b) = (_mm512_castps_pd(a), _mm512_castps_pd(b));
                let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
                _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high))
            };
            let (first, second) = (
                fours(pairs(a, b), pairs(c, d)),
                fours(pairs(e, f), pairs(g, h)),
            );
            // Quarters 0 and 2 of both, and 1 and 3.
            let sums = _mm512_add_ps(
                _mm512_shuffle_f32x4::<0x88>(first, second),
                _mm512_shuffle_f32x4::<0xdd>(first, second),
            );
            // Now quarters 0 and 1 are of the first four, 2 and 3 of the others.
            let low = _mm512_castps512_ps256(sums);
            let high = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(sums));
            let high = _mm256_castpd_ps(high);
            let sums = _mm256_add_ps(
                _mm256_permute2f128_ps::<0x20>(low, high),
                _mm256_permute2f128_ps::<0x31>(low, high),
            );
            let mut all = [0.0; 8];
            _mm256_storeu_ps(all.as_mut_ptr(), sums);
            all
        }
    }

    #[inline(always)]
    unsafe fn split(first: Self, second: Self) -> (Self, Self) {
        // SAFETY: as promised to this function.
        unsafe {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
            (
                _mm512_permutex2var_ps(first, even, second),
                _mm512_permutex2var_ps(first, odd, second),
            )
        }
    }

    #[inline(always)]
    unsafe fn weave(even: Self, odd: Self) -> (Self, Self) {
        // SAFETY: as promised to this function.
        unsafe {
            let low = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            let high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
            (
                _mm512_permutex2var_ps(even, low, odd),
                _mm512_permutex2var_ps(even, high, odd),
            )
        }
    }
}

impl Vector for __m256 {
    const LANES: usize = 8;
    const OUTS: usize = 4;
    const VECTORS: [usize; 9] = [0, 7, 5, 0, 3, 0, 0, 0, 0];

    instructions!(
        "avx2,fma",
        _mm256_setzero_ps,
        _mm256_set1_ps,
        _mm256_loadu_ps,
        _mm256_storeu_ps,
        _mm256_stream_ps,
        _mm256_add_ps,
        _mm256_fmadd_ps
    );

    #[inline(always)]
    unsafe fn load_some(from: *const f32, lanes: usize) -> Self {
        // SAFETY: as promised to this function.
        unsafe { _mm256_maskload_ps(from, mask_256(lanes)) }
    }

    #[inline(always)]
    unsafe fn store_some(self, to: *mut f32, lanes: usize) {
        // SAFETY: as promised to this function.
        unsafe { _mm256_maskstore_ps(to, mask_256(lanes), self) }
    }

    #[inline(always)]
    unsafe fn add_to(self, sums: *mut f64) {
        // SAFETY: as promised to this function.
        unsafe {
            let low = _mm256_cvtps_pd(_mm256_castps256_ps128(self));
            let high = _mm256_cvtps_pd(_mm256_extractf128_ps::<1>(self));
            _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), low));
            let sums = sums.add(4);
            _mm256_storeu_pd(sums, _mm256_add_pd(_mm256_loadu_pd(sums), high));
        }
    }

    #[inline(never)]
    #[target_feature(enable = "avx2")]
    unsafe fn transpose(from: *const f32, step: usize, to: *mut f32, to_step: usize) {
        // SAFETY: as promised to this function.
        unsafe {
            let mut rows = [_mm256_setzero_ps(); 8];
            for (i, row) in rows.iter_mut().enumerate() {
                *row = _mm256_loadu_ps(from.add(i * step));
            }
            let mut pairs = rows;
            for i in (0..8).step_by(2) {
                pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
                pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
            }
            // Half `h` of `fours[4 i + j]` is column `4 h + j` of rows `4 i` to `4 i + 3`.
            let mut fours = pairs;
            for i in (0..8).step_by(4) {
                let [a, b, c, d] = [0, 1, 2, 3].map(|j| _mm256_castps_pd(pairs[i + j]));
                fours[i] = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
                fours[i + 1] = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
                fours[i + 2] = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
                fours[i + 3] = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
            }
            for j in 0..4 {
                let (a, b) = (fours[j], fours[4 + j]);
                let (low, high) = (
                    _mm256_permute2f128_ps::<0x20>(a, b),
                    _mm256_permute2f128_ps::<0x31>(a, b),
                );
                _mm256_storeu_ps(to.add(j * to_step), low);
                _mm256_storeu_ps(to.add((4 + j) * to_step), high);
            }
        }
    }

    #[inline(always)]
    unsafe fn lane_sums([a, b, c, d, e, f, g, h]: [Self; 8]) -> [f32; 8] {
        // SAFETY: as promised to this function; eight floats go where there are eight.
        unsafe {
            let first = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
            let second = _mm256_hadd_ps(_mm256_hadd_ps(e, f), _mm256_hadd_ps(g, h));
            let sums = _mm256_add_ps(
                _mm256_permute2f128_ps::<0x20>(first, second),
                _mm256_permute2f128_ps::<0x31>(first, second),
            );
            let mut all = [0.0; 8];
            _mm256_storeu_ps(all.as_mut_ptr(), sums);
            all
        }
    }

    #[inline(always)]
    unsafe fn split(first: Self, second: Self) -> (Self, Self) {
        // SAFETY: as promised to this function.
        unsafe {
            let even = _mm256_castps_pd(_mm256_shuffle_ps::<0x88>(first, second));
            let odd = _mm256_castps_pd(_mm256_shuffle_ps::<0xdd>(first, second));
            (
                _mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(even)),
                _mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(odd)),
            )
        }
    }

    #[inline(always)]
    unsafe fn weave(even: Self, odd: Self) -> (Self, Self) {
        // SAFETY: as promised to this function.
        unsafe {
            let (low, high) = (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
            (
                _mm256_permute2f128_ps::<0x20>(low, high),
                _mm256_permute2f128_ps::<0x31>(low, high),
            )
        }
    }
}

/// Selects the first `lanes ≤ 16` lanes.
#[inline(always)]
fn mask_512(lanes: usize) -> __mmask16 {
    ((1_u32 << lanes) - 1) as __mmask16
}

/// Selects the first `lanes ≤ 8` lanes.
///
/// # Safety
/// The machine has AVX2.
#[inline(always)]
unsafe fn mask_256(lanes: usize) -> __m256i {
    // SAFETY: as promised to this function.
    unsafe {
        let index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
        _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes as i32), index)
    }
}
