//! The transforms of F(4×4, 3×3), each a matrix applied along both axes.
//!
//! With interpolation points 0, ±1, ±2 and ∞, a tile of 4 × 4 outputs is
//! `Y = Aᵀ [(G g Gᵀ) ⊙ (Bᵀ d B)] A` of its 6 × 6 patch `d` and the 3 × 3 taps `g`.
//! The gradient of the taps is the adjoint of that map in `g`:
//! `ḡ = Gᵀ [(A ȳ Aᵀ) ⊙ (Bᵀ d B)] G`.
//!
//! Everything works on lanes: sixteen tiles, or eight or sixteen channels, side
//! by side. Operations and their order are spelled out, so that every lane of
//! every instruction set gives the same bits.
//!
//! Source: Lavin and Gray, arXiv:1509.09308, section 4.3.

use std::array::from_fn;

use crate::real::Real;

/// Tiles side by side.
pub(super) const LANES: usize = 16;

/// Outputs of a tile along an axis.
pub(super) const TILE: usize = sstep_autodiff::WINOGRAD_TILE;

/// Inputs of a tile along an axis.
pub(super) const PATCH: usize = 6;

/// Products per tile and pair of channels.
pub(super) const POINTS: usize = PATCH * PATCH;

/// One number of sixteen tiles or channels.
pub(super) type Lanes<T> = [T; LANES];

/// Numbers on the stack that begin at a cache line. A vector of sixteen that
/// crosses a line costs two accesses, and cannot be read back from the store
/// buffer.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
pub(super) struct Lines<A>(pub(super) A);

/// `Bᵀ d`.
#[inline(always)]
pub(super) fn input<T: Real>(d: [T; PATCH]) -> [T; PATCH] {
    let [two, four, five] = [2.0, 4.0, 5.0].map(T::from_f64);
    let a = d[2].fma(-four, d[4]);
    let b = d[1].fma(-four, d[3]);
    let e = d[4] - d[2];
    let f = (d[3] - d[1]) * two;
    [
        d[0].fma(four, d[2].fma(-five, d[4])),
        a + b,
        a - b,
        e + f,
        e - f,
        d[1].fma(four, d[3].fma(-five, d[5])),
    ]
}

/// `G g`.
#[inline(always)]
fn taps<T: Real>(g: [T; 3]) -> [T; PATCH] {
    let [quarter, sixth, twelfth, small] =
        [1.0 / 4.0, 1.0 / 6.0, 1.0 / 12.0, 1.0 / 24.0].map(T::from_f64);
    let even = (g[0] + g[2]) * -sixth;
    let odd = g[1] * sixth;
    let far_even = g[0].fma(small, g[2] * sixth);
    let far_odd = g[1] * twelfth;
    [
        g[0] * quarter,
        even - odd,
        even + odd,
        far_even + far_odd,
        far_even - far_odd,
        g[2],
    ]
}

/// `Aᵀ m`.
#[inline(always)]
pub(super) fn output<T: Real>(m: [T; PATCH]) -> [T; TILE] {
    let [two, four, eight] = [2.0, 4.0, 8.0].map(T::from_f64);
    let (p, q) = (m[1] + m[2], m[1] - m[2]);
    let (r, s) = (m[3] + m[4], m[3] - m[4]);
    [
        m[0] + p + r,
        s.fma(two, q),
        r.fma(four, p),
        s.fma(eight, q) + m[5],
    ]
}

/// `A ȳ`.
#[inline(always)]
pub(super) fn output_grad<T: Real>(y: [T; TILE]) -> [T; PATCH] {
    let [two, four, eight] = [2.0, 4.0, 8.0].map(T::from_f64);
    let (e, o) = (y[0] + y[2], y[1] + y[3]);
    let (far_e, far_o) = (y[2].fma(four, y[0]), y[3].fma(eight, y[1] * two));
    [y[0], e + o, e - o, far_e + far_o, far_e - far_o, y[3]]
}

/// `Gᵀ m`.
#[inline(always)]
fn taps_grad<T: Real>(m: [T; PATCH]) -> [T; 3] {
    let [quarter, sixth, twelfth, small] =
        [1.0 / 4.0, 1.0 / 6.0, 1.0 / 12.0, 1.0 / 24.0].map(T::from_f64);
    let (p, q) = ((m[1] + m[2]) * sixth, (m[2] - m[1]) * sixth);
    let (r, s) = (m[3] + m[4], m[3] - m[4]);
    [
        m[0].fma(quarter, r.fma(small, -p)),
        s.fma(twelfth, q),
        r.fma(sixth, -p) + m[5],
    ]
}

/// `G g Gᵀ` of `L` pairs of channels; taps row-major.
#[inline(always)]
pub(super) fn taps_2d<T: Real, const L: usize>(g: &[[T; L]; 9], into: &mut [[T; L]; POINTS]) {
    for l in 0..L {
        let rows: [[T; PATCH]; 3] = from_fn(|i| taps(from_fn(|j| g[3 * i + j][l])));
        for j in 0..PATCH {
            let column = taps(from_fn(|i| rows[i][j]));
            for i in 0..PATCH {
                into[i * PATCH + j][l] = column[i];
            }
        }
    }
}

/// `Gᵀ m G` of sixteen pairs of channels; taps row-major.
#[inline(always)]
pub(super) fn taps_grad_2d<T: Real>(m: &[Lanes<T>; POINTS], into: &mut [Lanes<T>; 9]) {
    for l in 0..LANES {
        let rows: [[T; 3]; PATCH] = from_fn(|i| taps_grad(from_fn(|j| m[i * PATCH + j][l])));
        for j in 0..3 {
            let column = taps_grad(from_fn(|i| rows[i][j]));
            for i in 0..3 {
                into[3 * i + j][l] = column[i];
            }
        }
    }
}

/// `Aᵀ m A` of sixteen tiles; `[row][column]`.
#[inline(always)]
pub(super) fn output_2d<T: Real>(
    m: impl Fn(usize) -> Lanes<T>,
    into: &mut [[Lanes<T>; TILE]; TILE],
) {
    // Row by row: the rows of the patch that is gone, the columns of the tile.
    let mut rows = Lines([[[T::ZERO; LANES]; PATCH]; TILE]);
    for i in 0..PATCH {
        let row: [Lanes<T>; PATCH] = from_fn(|j| m(i * PATCH + j));
        for l in 0..LANES {
            let y = output(from_fn(|j| row[j][l]));
            for j in 0..TILE {
                rows.0[j][i][l] = y[j];
            }
        }
    }
    for (j, rows) in rows.0.iter().enumerate() {
        for l in 0..LANES {
            let y = output(from_fn(|i| rows[i][l]));
            for i in 0..TILE {
                into[i][j][l] = y[i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A tile by its definition, and the adjoint of it.
    #[test]
    fn a_tile_is_its_convolution_and_the_gradient_its_adjoint() {
        let d: [f64; POINTS] = from_fn(|i| ((i * 37 + 11) % 23) as f64 - 11.0);
        let g: [[f64; 1]; 9] = from_fn(|i| [((i * 7 + 3) % 11) as f64 - 5.0]);
        let y: [[f64; TILE]; TILE] = from_fn(|i| from_fn(|j| ((i * 5 + j * 3) % 7) as f64 - 3.0));

        let rows: [[f64; PATCH]; PATCH] = from_fn(|i| input(from_fn(|j| d[i * PATCH + j])));
        let columns: [[f64; PATCH]; PATCH] = from_fn(|j| input(from_fn(|i| rows[i][j])));
        let u = |p: usize| columns[p % PATCH][p / PATCH];
        let mut w = [[0.0; 1]; POINTS];
        taps_2d(&g, &mut w);

        let mut out = [[[0.0; LANES]; TILE]; TILE];
        output_2d(|p| [u(p) * w[p][0]; LANES], &mut out);
        for i in 0..TILE {
            for j in 0..TILE {
                let sum: f64 = (0..9)
                    .map(|t| g[t][0] * d[(i + t / 3) * PATCH + j + t % 3])
                    .sum();
                assert!((out[i][j][0] - sum).abs() < 1e-9, "({i}, {j})");
            }
        }

        let rows: [[f64; PATCH]; TILE] = from_fn(|i| output_grad(y[i]));
        let columns: [[f64; PATCH]; PATCH] = from_fn(|j| output_grad(from_fn(|i| rows[i][j])));
        let m: [Lanes<f64>; POINTS] = from_fn(|p| [u(p) * columns[p % PATCH][p / PATCH]; LANES]);
        let mut grad = [[0.0; LANES]; 9];
        taps_grad_2d(&m, &mut grad);
        for t in 0..9 {
            let sum: f64 = (0..TILE * TILE)
                .map(|p| {
                    let (i, j) = (p / TILE, p % TILE);
                    y[i][j] * d[(i + t / 3) * PATCH + j + t % 3]
                })
                .sum();
            assert!((grad[t][0] - sum).abs() < 1e-9, "tap {t}");
        }
    }
}
