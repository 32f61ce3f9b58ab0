//! Loads and stores of outputs: whole vectors, the end of a row, outputs a
//! stride apart, and two phases side by side.

use std::arch::x86_64::*;

use super::panel::LANES;

/// Asks for the lines of a vector of outputs while its sums are computed, lest
/// stores wait for them.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) fn prefetch_to_write(to: *mut f32, step: usize) {
    // SAFETY: prefetching has no effect on memory, wherever it points. (Some
    // compilers know that and find nothing unsafe.)
    #[allow(unused_unsafe)]
    unsafe {
        _mm_prefetch::<_MM_HINT_ET0>(to.cast());
        if step > 1 {
            _mm_prefetch::<_MM_HINT_ET0>(to.wrapping_add(2 * LANES - 1).cast());
        }
    }
}

/// The mask that selects the first `lanes` lanes.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn mask(lanes: usize) -> __m256i {
    let index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes as i32), index)
}

/// # Safety
/// `from` is valid for reads of `lanes` floats, `step` apart.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn load(from: *const f32, step: usize, lanes: usize) -> __m256 {
    // SAFETY: as promised; a masked load does not touch the other lanes.
    unsafe {
        if step == 1 {
            if lanes == LANES {
                _mm256_loadu_ps(from)
            } else {
                _mm256_maskload_ps(from, mask(lanes))
            }
        } else {
            let mut held = [0.0; LANES];
            for (i, held) in held.iter_mut().enumerate().take(lanes) {
                *held = *from.add(i * step);
            }
            _mm256_loadu_ps(held.as_ptr())
        }
    }
}

/// # Safety
/// `to` is valid for writes of `lanes` floats, `step` apart.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn store(to: *mut f32, step: usize, lanes: usize, value: __m256) {
    // SAFETY: as promised; a masked store does not touch the other lanes.
    unsafe {
        if step == 1 {
            if lanes == LANES {
                _mm256_storeu_ps(to, value);
            } else {
                _mm256_maskstore_ps(to, mask(lanes), value);
            }
        } else {
            let mut held = [0.0; LANES];
            _mm256_storeu_ps(held.as_mut_ptr(), value);
            for (i, &held) in held.iter().enumerate().take(lanes) {
                *to.add(i * step) = held;
            }
        }
    }
}

/// Sixteen floats as the even and the odd ones, of which `lanes` exist.
///
/// # Safety
/// `from` is valid for reads of `lanes` floats.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn load_two(from: *const f32, lanes: usize) -> (__m256, __m256) {
    let rest = lanes.saturating_sub(LANES);
    // SAFETY: as promised; a masked load does not touch the other lanes.
    let (a, b) = unsafe {
        (
            load(from, 1, lanes.min(LANES)),
            load(from.wrapping_add(LANES), 1, rest),
        )
    };
    let even = _mm256_castps_pd(_mm256_shuffle_ps::<0x88>(a, b));
    let odd = _mm256_castps_pd(_mm256_shuffle_ps::<0xdd>(a, b));
    (
        _mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(even)),
        _mm256_castpd_ps(_mm256_permute4x64_pd::<0xd8>(odd)),
    )
}

/// Stores eight even and eight odd floats alternately, of which `lanes` exist.
///
/// # Safety
/// `to` is valid for writes of `lanes` floats.
#[inline]
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn store_two(to: *mut f32, lanes: usize, even: __m256, odd: __m256) {
    let (lo, hi) = (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
    let rest = lanes.saturating_sub(LANES);
    // SAFETY: as promised; a masked store does not touch the other lanes.
    unsafe {
        store(
            to,
            1,
            lanes.min(LANES),
            _mm256_permute2f128_ps::<0x20>(lo, hi),
        );
        store(
            to.wrapping_add(LANES),
            1,
            rest,
            _mm256_permute2f128_ps::<0x31>(lo, hi),
        );
    }
}
