//! The register kernel of weight gradients: twelve dot products at a time.
//!
//! Every step loads eight positions of up to four channels of `ȳ` and of a few
//! shifted channels of `x`, and multiplies each with each: seven loads for twelve
//! fused multiply-adds. Only after a whole block are lanes added to one another.

use std::arch::x86_64::*;

use super::panel::LANES;

/// Channels of `ȳ` of a tile.
pub(super) const TILE: usize = 4;

/// Columns of a tile of so many channels of `ȳ`: accumulators, as many columns
/// and one vector of `ȳ` fit the sixteen registers.
const COLUMNS: [usize; 5] = [0, 7, 5, 3, 3];

/// A block's operands.
pub(super) struct Streams<'a> {
    pub(super) x: &'a [f32],
    pub(super) x_channel: usize,
    /// Offsets of the taps.
    pub(super) taps: &'a [usize],
    pub(super) y: &'a [f32],
    pub(super) y_channel: usize,
    /// Offset of each row in a channel of `x`; those of `ȳ` lie side by side.
    pub(super) rows: &'a [usize],
    /// Vectors per row.
    pub(super) vectors: usize,
}

impl Streams<'_> {
    /// Correlates `n_out ≤ 4` channels of `ȳ` from `k` on with as many columns
    /// (channel, tap) as there are `dots`; those beyond `n_out` become zero.
    #[inline]
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn correlate(&self, k: usize, n_out: usize, dots: &mut [[f32; TILE]]) {
        let columns = dots.len();
        // The kernels do not check bounds, so this is checked for all at once.
        let n_taps = self.taps.len();
        let tap = self.taps.iter().max().copied().unwrap_or(0);
        let row = self.rows.iter().max().copied().unwrap_or(0);
        let x_end =
            (columns.div_ceil(n_taps) - 1) * self.x_channel + tap + row + self.vectors * LANES;
        assert!(x_end <= self.x.len(), "dot products read within the panel");
        let y_end = (k + n_out) * self.y_channel;
        assert!(y_end <= self.y.len(), "dot products read within the rows");
        assert!(self.rows.len() * self.vectors * LANES <= self.y_channel);
        let at = |column: usize| column / n_taps * self.x_channel + self.taps[column % n_taps];
        let mut column = 0;
        while column < columns {
            let n = COLUMNS[n_out].min(columns - column);
            // SAFETY: bounds as checked above.
            unsafe {
                macro_rules! tile {
                    ($k:literal, $q:literal) => {{
                        let mut from = [0; $q];
                        for (i, from) in from.iter_mut().enumerate() {
                            *from = at(column + i);
                        }
                        let these = self.dots::<$k, $q>(k, from);
                        dots[column..column + $q].copy_from_slice(&these);
                    }};
                }
                match (n_out, n) {
                    (1, 1) => tile!(1, 1),
                    (1, 2) => tile!(1, 2),
                    (1, 3) => tile!(1, 3),
                    (1, 4) => tile!(1, 4),
                    (1, 5) => tile!(1, 5),
                    (1, 6) => tile!(1, 6),
                    (1, _) => tile!(1, 7),
                    (2, 1) => tile!(2, 1),
                    (2, 2) => tile!(2, 2),
                    (2, 3) => tile!(2, 3),
                    (2, 4) => tile!(2, 4),
                    (2, _) => tile!(2, 5),
                    (3, 1) => tile!(3, 1),
                    (3, 2) => tile!(3, 2),
                    (3, _) => tile!(3, 3),
                    (_, 1) => tile!(4, 1),
                    (_, 2) => tile!(4, 2),
                    (_, _) => tile!(4, 3),
                }
            }
            column += n;
        }
    }

    /// Dot products of each of the columns at `from` with channels `k..k + K`
    /// of `ȳ`, zeros after them.
    ///
    /// # Safety
    /// The machine has AVX2 and FMA; all rows lie within the panels.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn dots<const K: usize, const Q: usize>(
        &self,
        k: usize,
        from: [usize; Q],
    ) -> [[f32; TILE]; Q] {
        let mut acc = [[_mm256_setzero_ps(); Q]; K];
        let mut y = self.y.as_ptr().wrapping_add(k * self.y_channel);
        for &row in self.rows {
            let mut x = [self.x.as_ptr(); Q];
            for (x, from) in x.iter_mut().zip(from) {
                *x = x.wrapping_add(from + row);
            }
            for v in 0..self.vectors {
                // SAFETY: as promised to this function.
                unsafe {
                    if K == 4 && Q == 3 {
                        step_4_by_3(&mut acc, &x, v * LANES, y, self.y_channel);
                    } else {
                        step(&mut acc, &x, v * LANES, y, self.y_channel);
                    }
                }
                y = y.wrapping_add(LANES);
            }
        }
        let mut dots = [[0.0; TILE]; Q];
        for (q, dots) in dots.iter_mut().enumerate() {
            let mut four = [_mm256_setzero_ps(); TILE];
            for (four, acc) in four.iter_mut().zip(&acc) {
                *four = acc[q];
            }
            *dots = sum(four);
        }
        dots
    }
}

/// The sum of the lanes of each of four vectors.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn sum([a, b, c, d]: [__m256; 4]) -> [f32; 4] {
    let pairs = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    let sums = _mm_add_ps(
        _mm256_castps256_ps128(pairs),
        _mm256_extractf128_ps::<1>(pairs),
    );
    let mut all = [0.0; 4];
    // SAFETY: four floats go where there are four.
    unsafe { _mm_storeu_ps(all.as_mut_ptr(), sums) };
    all
}

/// Eight positions: `acc[k][i] += x[i][at…] · y[k·y_channel…]`.
///
/// # Safety
/// The eight floats from each of the addresses are readable.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn step<const K: usize, const Q: usize>(
    acc: &mut [[__m256; Q]; K],
    x: &[*const f32; Q],
    at: usize,
    y: *const f32,
    y_channel: usize,
) {
    let mut v = [_mm256_setzero_ps(); Q];
    // SAFETY: as promised to this function.
    unsafe {
        for (v, x) in v.iter_mut().zip(x) {
            *v = _mm256_loadu_ps(x.add(at));
        }
        for (k, acc) in acc.iter_mut().enumerate() {
            let y = _mm256_loadu_ps(y.add(k * y_channel));
            for (acc, &v) in acc.iter_mut().zip(&v) {
                *acc = _mm256_fmadd_ps(v, y, *acc);
            }
        }
    }
}

/// [`step`] for the full tile, which takes exactly all sixteen registers: the
/// compiler's scheduler would overlap two vectors of `ȳ` and spill, so the order of
/// instructions is given.
///
/// # Safety
/// As [`step`], and `K = 4`, `Q = 3`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn step_4_by_3<const K: usize, const Q: usize>(
    acc: &mut [[__m256; Q]; K],
    x: &[*const f32; Q],
    at: usize,
    y: *const f32,
    y_channel: usize,
) {
    // SAFETY: reads what `step` reads; touches nothing else.
    unsafe {
        std::arch::asm!(
            "vmovups {x0}, [{p0} + {at} * 4]",
            "vmovups {x1}, [{p1} + {at} * 4]",
            "vmovups {x2}, [{p2} + {at} * 4]",
            "vmovups {w}, [{q}]",
            "vfmadd231ps {a0}, {x0}, {w}",
            "vfmadd231ps {a1}, {x1}, {w}",
            "vfmadd231ps {a2}, {x2}, {w}",
            "vmovups {w}, [{q} + {o} * 4]",
            "vfmadd231ps {b0}, {x0}, {w}",
            "vfmadd231ps {b1}, {x1}, {w}",
            "vfmadd231ps {b2}, {x2}, {w}",
            "vmovups {w}, [{q} + {o} * 8]",
            "vfmadd231ps {c0}, {x0}, {w}",
            "vfmadd231ps {c1}, {x1}, {w}",
            "vfmadd231ps {c2}, {x2}, {w}",
            "vmovups {w}, [{q3} + {o} * 4]",
            "vfmadd231ps {d0}, {x0}, {w}",
            "vfmadd231ps {d1}, {x1}, {w}",
            "vfmadd231ps {d2}, {x2}, {w}",
            p0 = in(reg) x[0],
            p1 = in(reg) x[1],
            p2 = in(reg) x[2],
            at = in(reg) at,
            q = in(reg) y,
            q3 = in(reg) y.wrapping_add(2 * y_channel),
            o = in(reg) y_channel,
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
