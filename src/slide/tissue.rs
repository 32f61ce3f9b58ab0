//! Tissue without end, from a small piece of it.
//!
//! The plane is divided into cells around scattered points. Each cell shows a
//! piece of the real slide, turned or mirrored, and cells meet along rough
//! lines, so that no straight seam gives the composition away. Which piece a
//! cell shows follows a slowly varying field over pieces sorted by colour:
//! neighbours look alike, and regions of stroma and epithelium form. Around and
//! within the tissue lies white background, as on a real slide.

use super::noise::{Draws, Grain, rough};

/// Distance between cell centres, in pixels.
const CELL: usize = 320;
/// Cells on either side of a pixel's own that may be nearest to it.
const MARGIN: usize = 2;
/// How far a seam strays, in pixels.
const STRAY: f32 = 26.0;
/// Width over which neighbouring pieces are blended, in pixels.
const BLEND: f32 = 5.0;
/// Side of the blocks that are looked at as a whole first, in pixels.
const BLOCK: usize = 16;
/// A pixel is tissue if its darkest channel is below this.
const WHITE: u8 = 215;

/// A real slide, or a window of it, in memory.
pub(super) struct Real {
    pub(super) width: usize,
    pub(super) height: usize,
    /// Interleaved RGB.
    pub(super) rgb: Vec<u8>,
}

impl Real {
    /// The pixel at a place, mirrored at the borders.
    #[inline]
    fn pixel(&self, x: i64, y: i64) -> [u8; 3] {
        let fold = |i: i64, n: usize| {
            let n = n as i64;
            if (0..n).contains(&i) {
                return i as usize;
            }
            let i = i.rem_euclid(2 * n);
            (if i < n { i } else { 2 * n - 1 - i }) as usize
        };
        let at = (fold(y, self.height) * self.width + fold(x, self.width)) * 3;
        [self.rgb[at], self.rgb[at + 1], self.rgb[at + 2]]
    }
}

/// A composition: what colour it has where.
pub(super) struct Tissue {
    real: Real,
    size: usize,
    seed: u64,
    /// Centres of pieces full of tissue, from pink to purple.
    pieces: Vec<(i64, i64)>,
    background: [f32; 3],
    /// Noise above this is tissue.
    threshold: f64,
    seams: [Grain; 2],
    /// All cells that any pixel may see, [`MARGIN`] around the slide included,
    /// row by row.
    cells: Vec<Cell>,
    cells_across: usize,
}

/// One cell of the plane.
#[derive(Clone, Copy)]
struct Cell {
    x: f32,
    y: f32,
    piece: (i64, i64),
    /// One of eight turns and mirrorings.
    turn: u8,
}

impl Tissue {
    /// A square of `size` pixels, about `coverage` of it tissue.
    pub(super) fn new(real: Real, size: usize, seed: u64, coverage: f64) -> Self {
        let pieces = pieces(&real);
        let background = background(&real);
        let seams = [Grain::new(seed ^ 11, 24.0), Grain::new(seed ^ 12, 24.0)];
        let cells_across = size.div_ceil(CELL) + 2 * MARGIN;
        let mut tissue = Tissue {
            real,
            size,
            seed,
            pieces,
            background,
            threshold: 0.0,
            seams,
            cells: Vec::new(),
            cells_across,
        };
        tissue.cells = (0..cells_across * cells_across)
            .map(|k| tissue.cell(k % cells_across, k / cells_across))
            .collect();
        // The field's level that leaves the wanted part above it.
        const SAMPLES: usize = 96;
        let step = size as f64 / SAMPLES as f64;
        let mut levels: Vec<f64> = (0..SAMPLES * SAMPLES)
            .map(|i| {
                let (x, y) = ((i % SAMPLES) as f64 + 0.5, (i / SAMPLES) as f64 + 0.5);
                tissue.density(x * step, y * step)
            })
            .collect();
        levels.sort_by(f64::total_cmp);
        let rank = ((1.0 - coverage) * levels.len() as f64) as usize;
        tissue.threshold = levels[rank.min(levels.len() - 1)];
        tissue
    }

    /// How far inside the tissue a place lies: positive inside; 0.02 is about
    /// a hundredth of the slide's side from its edge.
    pub(super) fn depth(&self, x: f64, y: f64) -> f64 {
        self.density(x, y) - self.threshold
    }

    /// A field whose high ground is tissue. It falls towards the border, as
    /// sections lie within their slide.
    fn density(&self, x: f64, y: f64) -> f64 {
        let size = self.size as f64;
        let (u, v) = (x / size, y / size);
        let wavelengths = (size / 2048.0).clamp(2.5, 6.0);
        let edge = |t: f64| ((0.5 - (t - 0.5).abs()) / 0.12).clamp(0.0, 1.0);
        rough(self.seed ^ 21, u * wavelengths, v * wavelengths) + 0.6 * edge(u).min(edge(v))
    }

    /// Draws the cell of a column and row of cells, margin included.
    fn cell(&self, column: usize, row: usize) -> Cell {
        let mut draws = Draws::new(self.seed ^ 31, (column as u64) << 32 | row as u64);
        let side = CELL as f64;
        let x = (column as f64 - MARGIN as f64 + draws.between(0.1, 0.9)) * side;
        let y = (row as f64 - MARGIN as f64 + draws.between(0.1, 0.9)) * side;
        // Noise is rarely near 0 or 1: stretched, so that all pieces serve.
        let kind = (rough(self.seed ^ 41, x / 2400.0, y / 2400.0) - 0.5) * 1.8 + 0.5;
        let spread = draws.between(-0.08, 0.08);
        let rank = ((kind + spread).clamp(0.0, 0.999_999) * self.pieces.len() as f64) as usize;
        Cell {
            x: x as f32,
            y: y as f32,
            piece: self.pieces[rank],
            turn: (draws.bits() & 7) as u8,
        }
    }

    /// What a cell shows at a pixel.
    #[inline]
    fn show(&self, cell: &Cell, x: usize, y: usize) -> [u8; 3] {
        let (dx, dy) = (x as i64 - cell.x as i64, y as i64 - cell.y as i64);
        let dx = if cell.turn & 1 == 0 { dx } else { -dx };
        let dy = if cell.turn & 2 == 0 { dy } else { -dy };
        let (dx, dy) = if cell.turn & 4 == 0 {
            (dx, dy)
        } else {
            (dy, dx)
        };
        self.real.pixel(cell.piece.0 + dx, cell.piece.1 + dy)
    }

    /// Rows `y0…` of the slide: interleaved RGB into `out`, a multiple of
    /// [`Tissue::BAND`] rows except at the end.
    pub(super) fn paint(&self, y0: usize, out: &mut [u8]) {
        use rayon::prelude::*;
        let row_bytes = self.size * 3;
        out.par_chunks_mut(row_bytes * BLOCK)
            .enumerate()
            .for_each(|(i, rows)| {
                for x0 in (0..self.size).step_by(BLOCK) {
                    self.paint_block(x0, y0 + i * BLOCK, rows, row_bytes);
                }
            });
    }

    /// Rows to paint at a time.
    pub(super) const BAND: usize = BLOCK;

    fn paint_block(&self, x0: usize, y0: usize, rows: &mut [u8], row_bytes: usize) {
        let n_rows = rows.len() / row_bytes;
        let n_cols = BLOCK.min(self.size - x0);
        let (far_x, far_y) = ((x0 + BLOCK) as f64, (y0 + BLOCK) as f64);
        let corners = [
            self.depth(x0 as f64, y0 as f64) as f32,
            self.depth(far_x, y0 as f64) as f32,
            self.depth(x0 as f64, far_y) as f32,
            self.depth(far_x, far_y) as f32,
        ];
        // The edge strays by at most `ragged`; beyond it blocks are plain.
        let ragged = 0.02f32;
        let plain = corners.iter().all(|&d| d < -2.0 * ragged);
        let full = corners.iter().all(|&d| d > 2.0 * ragged);
        let cells = if plain { Vec::new() } else { self.near(x0, y0) };
        for r in 0..n_rows {
            let y = y0 + r;
            let row = &mut rows[r * row_bytes + x0 * 3..r * row_bytes + (x0 + n_cols) * 3];
            for (c, out) in row.chunks_exact_mut(3).enumerate() {
                let x = x0 + c;
                if plain {
                    out.copy_from_slice(&self.blank(x, y));
                    continue;
                }
                let (u, v) = (c as f32 / BLOCK as f32, r as f32 / BLOCK as f32);
                let top = corners[0] * (1.0 - u) + corners[1] * u;
                let bottom = corners[2] * (1.0 - u) + corners[3] * u;
                let depth = top * (1.0 - v) + bottom * v;
                let inside = if full {
                    1.0
                } else {
                    let edge = depth + ragged * self.seams[0].at(x / 2, y / 2);
                    (edge / ragged * 12.0).clamp(0.0, 1.0)
                };
                let tissue = self.blend(&cells, x, y);
                if inside >= 1.0 {
                    out.copy_from_slice(&tissue);
                } else {
                    let blank = self.blank(x, y);
                    for ((out, t), b) in out.iter_mut().zip(tissue).zip(blank) {
                        *out = (f32::from(t) * inside + f32::from(b) * (1.0 - inside)) as u8;
                    }
                }
            }
        }
    }

    /// The cells that may show within a block.
    fn near(&self, x0: usize, y0: usize) -> Vec<Cell> {
        let half = BLOCK as f32 / 2.0;
        let (x, y) = (x0 as f32 + half, y0 as f32 + half);
        let (column, row) = (x0 / CELL, y0 / CELL);
        let mut cells: Vec<(f32, Cell)> = (row..=row + 2 * MARGIN)
            .flat_map(|r| (column..=column + 2 * MARGIN).map(move |c| r * self.cells_across + c))
            .map(|k| {
                let cell = self.cells[k];
                ((cell.x - x).hypot(cell.y - y), cell)
            })
            .collect();
        cells.sort_by(|a, b| a.0.total_cmp(&b.0));
        // A pixel is at most a block's half diagonal and the seam's stray from
        // the centre, which changes each of two distances by as much.
        let reach = 2.0 * (half * 1.5 + STRAY * 1.5) + BLEND;
        let nearest = cells[0].0;
        cells
            .iter()
            .take_while(|(d, _)| *d <= nearest + reach)
            .map(|(_, cell)| *cell)
            .collect()
    }

    #[inline]
    fn blend(&self, cells: &[Cell], x: usize, y: usize) -> [u8; 3] {
        if let [only] = cells {
            return self.show(only, x, y);
        }
        let px = x as f32 + STRAY * self.seams[0].at(x, y);
        let py = y as f32 + STRAY * self.seams[1].at(x, y);
        let (mut first, mut second) = ((f32::MAX, 0), (f32::MAX, 0));
        for (k, cell) in cells.iter().enumerate() {
            let d = (cell.x - px).powi(2) + (cell.y - py).powi(2);
            if d < first.0 {
                second = first;
                first = (d, k);
            } else if d < second.0 {
                second = (d, k);
            }
        }
        let near = self.show(&cells[first.1], x, y);
        let gap = second.0.sqrt() - first.0.sqrt();
        if gap >= BLEND {
            return near;
        }
        let other = self.show(&cells[second.1], x, y);
        let share = 0.5 + 0.5 * gap / BLEND;
        std::array::from_fn(|c| {
            (f32::from(near[c]) * share + f32::from(other[c]) * (1.0 - share)) as u8
        })
    }

    #[inline]
    fn blank(&self, x: usize, y: usize) -> [u8; 3] {
        let shade = self.seams[1].at(x / 8, y / 8);
        self.background
            .map(|level| (level + shade).clamp(0.0, 255.0) as u8)
    }
}

/// Mean colour of what is not tissue; nearly white if everything is.
fn background(real: &Real) -> [f32; 3] {
    let mut sums = [0u64; 3];
    let mut n = 0u64;
    for pixel in real.rgb.chunks_exact(3).step_by(7) {
        if pixel.iter().all(|&v| v > 235) {
            n += 1;
            sums.iter_mut()
                .zip(pixel)
                .for_each(|(sum, &v)| *sum += u64::from(v));
        }
    }
    if n == 0 {
        [243.0; 3]
    } else {
        sums.map(|sum| sum as f32 / n as f32)
    }
}

/// Places whose surroundings are tissue, from pink to purple.
fn pieces(real: &Real) -> Vec<(i64, i64)> {
    const STEP: usize = 32;
    let (w, h) = (real.width, real.height);
    // A cell reaches about this far; nearer to the border it would show its
    // own mirror image.
    let inside = |n: usize| {
        if n > 4 * CELL {
            CELL / 2 + 40..n - CELL / 2 - 40
        } else {
            0..n
        }
    };
    // Every fourth pixel within `CELL / 2` tells.
    let half = (CELL / 2) as i64;
    let mut found: Vec<(f64, f64, (i64, i64))> = Vec::new();
    for y in inside(h).step_by(STEP) {
        for x in inside(w).step_by(STEP) {
            let (mut n_tissue, mut n, mut hue) = (0u32, 0u32, 0i64);
            for dy in (-half..half).step_by(8) {
                for dx in (-half..half).step_by(8) {
                    let [r, g, b] = real.pixel(x as i64 + dx, y as i64 + dy);
                    n += 1;
                    if r.min(g).min(b) < WHITE {
                        n_tissue += 1;
                        hue += i64::from(b) - i64::from(r);
                    }
                }
            }
            let hue = hue as f64 / f64::from(n_tissue.max(1));
            found.push((
                f64::from(n_tissue) / f64::from(n),
                hue,
                (x as i64, y as i64),
            ));
        }
    }
    // Full of tissue if there are enough such places, else the fullest.
    found.sort_by(|a, b| b.0.total_cmp(&a.0));
    let full = found.iter().take_while(|piece| piece.0 >= 0.93).count();
    found.truncate(full.max(found.len().div_ceil(12)));
    found.sort_by(|a, b| a.1.total_cmp(&b.1));
    found.into_iter().map(|(_, _, place)| place).collect()
}
