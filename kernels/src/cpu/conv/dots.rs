//! The register kernel of weight gradients: many dot products at a time.
//!
//! Every step loads a vector of positions of up to eight channels of `ȳ` and of
//! a few shifted channels of `x`, and multiplies each with each: eleven loads for
//! 24 fused multiply-adds with AVX-512, seven for twelve with AVX2. Only after a
//! whole block are lanes added to one another.

use std::arch::x86_64::*;

use super::vector::{Held, Kernel, Vector, piece};

/// Columns of a tile of so many channels of `ȳ`.
const fn columns<V: Vector>(outs: usize) -> usize {
    if outs == V::OUTS { 3 } else { 6 }
}

/// A block's operands.
pub(super) struct Streams<'a> {
    pub(super) x: &'a [f32],
    /// Offset of each column (channel, tap).
    pub(super) columns: &'a [usize],
    pub(super) y: &'a [f32],
    pub(super) y_channel: usize,
    /// Offset of each row in a channel of `x`; those of `ȳ` lie side by side.
    pub(super) rows: &'a [usize],
    /// Vectors per row.
    pub(super) vectors: usize,
}

impl Streams<'_> {
    /// Correlates `n_out ≤ V::OUTS` channels of `ȳ` from `k` on with as many
    /// columns (channel, tap) as there are `dots`, `V::OUTS` for each; those
    /// beyond `n_out` become zero.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[inline(always)]
    pub(super) unsafe fn correlate<V: Vector>(&self, k: usize, n_out: usize, dots: &mut [f32]) {
        let n_columns = self.columns.len();
        assert_eq!(
            dots.len(),
            n_columns * V::OUTS,
            "each column has its places"
        );
        // The kernels do not check bounds, so this is checked for all at once.
        let column = self.columns.iter().max().copied().unwrap_or(0);
        let row = self.rows.iter().max().copied().unwrap_or(0);
        let row_floats = self.vectors * V::LANES;
        let x_end = column + row + row_floats;
        assert!(x_end <= self.x.len(), "dot products read within the panel");
        let y_end = (k + n_out) * self.y_channel;
        assert!(y_end <= self.y.len(), "dot products read within the rows");
        assert!(self.rows.len() * row_floats <= self.y_channel);
        if n_out < V::OUTS {
            dots.fill(0.0);
        }
        let mut first = 0;
        while first < n_out {
            let outs = piece::<V>(n_out - first);
            let mut column = 0;
            while column < n_columns {
                // SAFETY: bounds as checked above.
                unsafe {
                    macro_rules! tile {
                        ($k:literal, $q:literal) => {{
                            let mut from = [0; $q];
                            from.copy_from_slice(&self.columns[column..column + $q]);
                            V::call(Tile::<$k, $q> {
                                streams: self,
                                k: k + first,
                                from,
                                to: &mut dots[column * V::OUTS + first..],
                            });
                            column += $q;
                        }};
                    }
                    match (outs, columns::<V>(outs).min(n_columns - column)) {
                        (1, 6) => tile!(1, 6),
                        (1, 3..) => tile!(1, 3),
                        (1, _) => tile!(1, 1),
                        (2, 6) => tile!(2, 6),
                        (2, 3..) => tile!(2, 3),
                        (2, _) => tile!(2, 1),
                        (4, 6) if const { V::OUTS > 4 } => tile!(4, 6),
                        (4, 3..) => tile!(4, 3),
                        (4, 2) => tile!(4, 2),
                        (4, _) => tile!(4, 1),
                        (_, 3..) if const { V::OUTS == 8 } => tile!(8, 3),
                        (_, 2) if const { V::OUTS == 8 } => tile!(8, 2),
                        _ if const { V::OUTS == 8 } => tile!(8, 1),
                        _ => unreachable!("no tile has more channels than a full one"),
                    }
                }
            }
            first += outs;
        }
    }
}

/// Dot products of each of the columns at `from` with channels `k..k + K` of
/// `ȳ`; those of a column go to `V::OUTS` places of `to`.
struct Tile<'a, const K: usize, const Q: usize> {
    streams: &'a Streams<'a>,
    k: usize,
    from: [usize; Q],
    to: &'a mut [f32],
}

impl<const K: usize, const Q: usize> Kernel for Tile<'_, K, Q> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let s = self.streams;
        // SAFETY: all rows lie within the panels, as `correlate` checked.
        unsafe {
            let mut acc = Held::<K, Q>::zero::<V>();
            let mut y = s.y.as_ptr().wrapping_add(self.k * s.y_channel);
            for &row in s.rows {
                let mut x = [s.x.as_ptr(); Q];
                for (x, from) in x.iter_mut().zip(self.from) {
                    *x = x.wrapping_add(from + row);
                }
                for v in 0..s.vectors {
                    let at = v * V::LANES;
                    if V::LANES == 8 && K == 4 && Q == 3 {
                        let acc = &mut *(&raw mut acc).cast::<[[__m256; 3]; 4]>();
                        step_4_by_3(acc, &x, at, y, s.y_channel);
                    } else {
                        V::correlate_step(&mut acc, &x, at, y, s.y_channel);
                    }
                    y = y.wrapping_add(V::LANES);
                }
            }
            let mut held = Held::<K, Q>::new();
            held.store(&acc);
            for (q, to) in self.to.chunks_mut(V::OUTS).enumerate().take(Q) {
                let mut eight = [V::zero(); 8];
                for (k, eight) in eight.iter_mut().enumerate().take(K) {
                    *eight = V::load(held.at(k, q));
                }
                let sums = V::lane_sums(eight);
                to[..K].copy_from_slice(&sums[..K]);
            }
        }
    }
}

/// [`Vector::correlate_step`] for the full tile of AVX2, which takes exactly all sixteen registers: the
/// compiler's scheduler would overlap two vectors of `ȳ` and spill, so the order of
/// instructions is given.
///
/// # Safety
/// As [`Vector::correlate_step`], and `Q = 3`.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn step_4_by_3<const Q: usize>(
    acc: &mut [[__m256; 3]; 4],
    x: &[*const f32; Q],
    at: usize,
    y: *const f32,
    y_channel: usize,
) {
    // SAFETY: reads what a step reads; touches nothing else.
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
