//! Between rows as they lie in memory and columns of sixteen tiles.
//!
//! A row of sixteen tiles is 64 numbers; column `j` of a tile is every fourth of
//! them. Compilers make scalar moves of this, so for vectors it is spelled out.
//! `WIDTH` tells for which: of 16 lanes (AVX-512), of 8 (AVX2), or of 1, that is not
//! at all. With more than one the caller promises the machine and that `T` is `f32`.

use super::transform::{LANES, Lanes, Lines, PATCH, TILE};
use crate::real::Real;

/// Numbers of a row of sixteen tiles.
pub(super) const ROW: usize = LANES * TILE;

/// Numbers of a row of their patches.
pub(super) const PATCH_ROW: usize = ROW + PATCH - TILE;

/// `into[j][l] = row[4 l + j]` for the six columns of patches.
#[inline(always)]
pub(super) fn spread<T: Real, const WIDTH: usize>(
    row: &[T; PATCH_ROW],
    into: &mut [Lanes<T>; PATCH],
) {
    #[cfg(target_arch = "x86_64")]
    if WIDTH > 1 {
        let (from, to) = (row.as_ptr().cast(), into.as_mut_ptr().cast());
        // SAFETY: `T` is `f32` and the machine has the instructions, as the caller
        // promises with `WIDTH`; both arrays are as large as what is read and written.
        unsafe {
            match WIDTH {
                16 => sixteen::spread_patches(from, to),
                _ => eight::spread_patches(from, to),
            }
        }
        return;
    }
    for l in 0..LANES {
        for j in 0..PATCH {
            into[j][l] = row[l * TILE + j];
        }
    }
}

/// `into[j][c] = rows[c · step + j]` for the four columns of a tile, sixteen
/// channels `c`.
///
/// # Panics
/// If `rows` is shorter than that.
#[inline(always)]
pub(super) fn spread_channels<T: Real, const WIDTH: usize>(
    rows: &[T],
    step: usize,
    into: &mut [Lanes<T>; TILE],
) {
    assert!(rows.len() >= (LANES - 1) * step + TILE, "sixteen channels");
    #[cfg(target_arch = "x86_64")]
    if WIDTH > 1 {
        let (from, to) = (rows.as_ptr().cast(), into.as_mut_ptr().cast());
        // SAFETY: `T` is `f32` and the machine has the instructions, as the caller
        // promises with `WIDTH`; both arrays are as large as what is read and written.
        unsafe {
            match WIDTH {
                16 => sixteen::spread_channels(from, step, to),
                _ => eight::spread_channels(from, step, to),
            }
        }
        return;
    }
    for c in 0..LANES {
        for j in 0..TILE {
            into[j][c] = rows[c * step + j];
        }
    }
}

/// A row of the columns of sixteen tiles.
#[inline(always)]
pub(super) fn gather<T: Real, const WIDTH: usize>(columns: &[Lanes<T>; TILE]) -> Lines<[T; ROW]> {
    let mut row = Lines([T::ZERO; ROW]);
    #[cfg(target_arch = "x86_64")]
    if WIDTH > 1 {
        let (from, to) = (columns.as_ptr().cast(), row.0.as_mut_ptr().cast());
        // SAFETY: `T` is `f32` and the machine has the instructions, as the caller
        // promises with `WIDTH`; both arrays are as large as what is read and written.
        unsafe {
            match WIDTH {
                16 => sixteen::gather(from, to),
                _ => eight::gather(from, to),
            }
        }
        return row;
    }
    for l in 0..LANES {
        for j in 0..TILE {
            row.0[l * TILE + j] = columns[j][l];
        }
    }
    row
}

#[cfg(target_arch = "x86_64")]
mod eight {
    use std::arch::x86_64::*;

    use super::{LANES, PATCH, ROW, TILE};

    /// Tiles of a vector.
    const HALF: usize = LANES / 2;

    /// Quadruples `i` and `i + 4`, for the four `i`.
    ///
    /// # Safety
    /// Each of the eight is valid for reads of four floats.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn quadruples(from: *const f32, step: usize) -> [__m256; 4] {
        let mut all = [_mm256_setzero_ps(); 4];
        for (i, both) in all.iter_mut().enumerate() {
            let at = |i: usize| from.wrapping_add(i * step);
            // SAFETY: as promised.
            *both = unsafe {
                let low = _mm256_castps128_ps256(_mm_loadu_ps(at(i)));
                _mm256_insertf128_ps::<1>(low, _mm_loadu_ps(at(i + 4)))
            };
        }
        all
    }

    /// The first and the second numbers of four pairs, both halves on their own.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn pairs([a, b, c, d]: [__m256; 4]) -> [__m256; 2] {
        let (ab, cd) = (_mm256_unpacklo_ps(a, b), _mm256_unpacklo_ps(c, d));
        [
            _mm256_shuffle_ps::<0x44>(ab, cd),
            _mm256_shuffle_ps::<0xee>(ab, cd),
        ]
    }

    /// Rows as columns, both halves on their own.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn transpose([a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
        let (ab, cd) = (_mm256_unpackhi_ps(a, b), _mm256_unpackhi_ps(c, d));
        let [first, second] = pairs([a, b, c, d]);
        [
            first,
            second,
            _mm256_shuffle_ps::<0x44>(ab, cd),
            _mm256_shuffle_ps::<0xee>(ab, cd),
        ]
    }

    /// # Safety
    /// `rows` is valid for reads of four floats every `step`, sixteen times, and
    /// `into` for writes of 4 × 16.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn spread_channels(rows: *const f32, step: usize, into: *mut f32) {
        for half in [0, HALF] {
            // SAFETY: as promised.
            unsafe {
                let columns = transpose(quadruples(rows.add(half * step), step));
                for (j, column) in columns.into_iter().enumerate() {
                    _mm256_storeu_ps(into.add(j * LANES + half), column);
                }
            }
        }
    }

    /// # Safety
    /// `row` is valid for reads of 66 floats, `into` for writes of 6 × 16.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn spread_patches(row: *const f32, into: *mut f32) {
        for half in [0, HALF] {
            // SAFETY: as promised; behind the last quadruple are two floats.
            unsafe {
                let row = row.add(half * TILE);
                let tiles = quadruples(row, TILE);
                for (j, column) in transpose(tiles).into_iter().enumerate() {
                    _mm256_storeu_ps(into.add(j * LANES + half), column);
                }
                // The last two columns of a patch are the first two of the next one.
                let ninth = _mm_castpd_ps(_mm_load_sd(row.add(HALF * TILE).cast()));
                let fifth = _mm256_castps128_ps256(_mm_loadu_ps(row.add(4 * TILE)));
                let last = _mm256_insertf128_ps::<1>(fifth, ninth);
                let next = pairs([tiles[1], tiles[2], tiles[3], last]);
                for (j, column) in next.into_iter().enumerate() {
                    _mm256_storeu_ps(into.add((TILE + j) * LANES + half), column);
                }
            }
        }
        const { assert!(PATCH == TILE + 2 && ROW == LANES * TILE) };
    }

    /// # Safety
    /// `columns` is valid for reads of 4 × 16 floats, `row` for writes of 64.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn gather(columns: *const f32, row: *mut f32) {
        for half in [0, HALF] {
            // SAFETY: as promised.
            unsafe {
                let column = |j: usize| _mm256_loadu_ps(columns.add(j * LANES + half));
                let tiles = transpose([column(0), column(1), column(2), column(3)]);
                let row = row.add(half * TILE);
                for (i, &both) in tiles.iter().enumerate() {
                    _mm_storeu_ps(row.add(i * TILE), _mm256_castps256_ps128(both));
                    let high = _mm256_extractf128_ps::<1>(both);
                    _mm_storeu_ps(row.add((i + 4) * TILE), high);
                }
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod sixteen {
    use std::arch::x86_64::*;

    use super::{LANES, ROW};

    /// Lanes of two vectors that are even, odd; the first halves and the second
    /// halves, alternately.
    const EVEN: [i32; LANES] = [0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30];
    const ODD: [i32; LANES] = [1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31];
    const LOW: [i32; LANES] = [0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23];
    const HIGH: [i32; LANES] = [8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31];

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn pick(a: __m512, lanes: &[i32; LANES], b: __m512) -> __m512 {
        // SAFETY: an array of sixteen is read whole.
        let lanes = unsafe { _mm512_loadu_epi32(lanes.as_ptr()) };
        _mm512_permutex2var_ps(a, lanes, b)
    }

    /// The four columns of a row of sixteen quadruples.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn columns([a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
        let (even, more_even) = (pick(a, &EVEN, b), pick(c, &EVEN, d));
        let (odd, more_odd) = (pick(a, &ODD, b), pick(c, &ODD, d));
        [
            pick(even, &EVEN, more_even),
            pick(odd, &EVEN, more_odd),
            pick(even, &ODD, more_even),
            pick(odd, &ODD, more_odd),
        ]
    }

    /// # Safety
    /// `rows` is valid for reads of four floats every `step`, sixteen times, and
    /// `into` for writes of 4 × 16.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn spread_channels(rows: *const f32, step: usize, into: *mut f32) {
        // SAFETY: as promised.
        unsafe {
            let mut row = [_mm512_setzero_ps(); 4];
            for (i, row) in row.iter_mut().enumerate() {
                let at = |c: usize| _mm_loadu_ps(rows.add((4 * i + c) * step));
                let four = _mm512_castps128_ps512(at(0));
                let four = _mm512_insertf32x4::<1>(four, at(1));
                let four = _mm512_insertf32x4::<2>(four, at(2));
                *row = _mm512_insertf32x4::<3>(four, at(3));
            }
            for (j, column) in columns(row).into_iter().enumerate() {
                _mm512_storeu_ps(into.add(j * LANES), column);
            }
        }
    }

    /// # Safety
    /// `row` is valid for reads of 66 floats, `into` for writes of 6 × 16.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn spread_patches(row: *const f32, into: *mut f32) {
        // SAFETY: as promised.
        unsafe {
            let columns = columns([
                _mm512_loadu_ps(row),
                _mm512_loadu_ps(row.add(LANES)),
                _mm512_loadu_ps(row.add(2 * LANES)),
                _mm512_loadu_ps(row.add(3 * LANES)),
            ]);
            for (j, &column) in columns.iter().enumerate() {
                _mm512_storeu_ps(into.add(j * LANES), column);
            }
            // The last two columns of a patch are the first two of the next one.
            for (j, &column) in columns.iter().take(2).enumerate() {
                let next = _mm512_set1_epi32((*row.add(ROW + j)).to_bits() as i32);
                let shifted = _mm512_alignr_epi32::<1>(next, _mm512_castps_si512(column));
                _mm512_storeu_ps(into.add((4 + j) * LANES), _mm512_castsi512_ps(shifted));
            }
        }
    }

    /// # Safety
    /// `columns` is valid for reads of 4 × 16 floats, `row` for writes of 64.
    #[inline]
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn gather(columns: *const f32, row: *mut f32) {
        // SAFETY: as promised.
        unsafe {
            let [a, b, c, d] = [
                _mm512_loadu_ps(columns),
                _mm512_loadu_ps(columns.add(LANES)),
                _mm512_loadu_ps(columns.add(2 * LANES)),
                _mm512_loadu_ps(columns.add(3 * LANES)),
            ];
            let (ac, more_ac) = (pick(a, &LOW, c), pick(a, &HIGH, c));
            let (bd, more_bd) = (pick(b, &LOW, d), pick(b, &HIGH, d));
            _mm512_storeu_ps(row, pick(ac, &LOW, bd));
            _mm512_storeu_ps(row.add(LANES), pick(ac, &HIGH, bd));
            _mm512_storeu_ps(row.add(2 * LANES), pick(more_ac, &LOW, more_bd));
            _mm512_storeu_ps(row.add(3 * LANES), pick(more_ac, &HIGH, more_bd));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check<const WIDTH: usize>() {
        let row: [f32; PATCH_ROW] = std::array::from_fn(|i| i as f32);
        let mut columns = [[0.0; LANES]; PATCH];
        spread::<f32, WIDTH>(&row, &mut columns);
        for (j, column) in columns.iter().enumerate() {
            for (l, &found) in column.iter().enumerate() {
                assert_eq!(found, (4 * l + j) as f32);
            }
        }
        let tiles: [f32; ROW] = std::array::from_fn(|i| i as f32);
        let mut columns = [[0.0; LANES]; TILE];
        spread_channels::<f32, WIDTH>(&tiles, TILE, &mut columns);
        for (j, column) in columns.iter().enumerate() {
            for (l, &found) in column.iter().enumerate() {
                assert_eq!(found, (4 * l + j) as f32);
            }
        }
        assert_eq!(gather::<f32, WIDTH>(&columns).0, tiles);
    }

    #[test]
    fn columns_are_every_fourth_number() {
        check::<1>();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx2") {
                check::<8>();
            }
            if is_x86_feature_detected!("avx512f") {
                check::<16>();
            }
        }
    }
}
