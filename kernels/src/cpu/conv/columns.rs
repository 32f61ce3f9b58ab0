//! The columns of a convolution as a matrix product (im2col), a block at a time.
//!
//! Neighbouring positions of a row are the lanes of a *vector*; a block is a few
//! vectors, of one row or of several. Its matrix has a row for every (channel, tap)
//! and is packed `[tile of 3 vectors][row][3 vectors]`, in the order in which register
//! tiles read it. Each row is copied from where its tap lies, with zeros in the
//! padding, so stride, dilation and borders concern nobody else.
//!
//! Copying costs one load and one store for as many multiplications as there are
//! output channels. It can be done row by row, while something else is computed:
//! then memory is waited for by nobody.

use std::ops::Range;

use super::panel;
use super::plain::{inside, valid};
use super::vector::Vector;
use crate::view::{Box4, In};

/// Floats of a cache line.
const LINE: usize = 16;

/// Vectors of a register tile.
pub(super) const VECTORS: usize = 3;

/// Positions cut into vectors, row after row.
pub(super) struct Grid {
    n: Range<usize>,
    /// Along the three axes.
    axes: [Range<usize>; 3],
    lanes: usize,
    /// Vectors per row.
    along: usize,
}

/// Neighbouring positions of a block in one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) n: usize,
    /// The first position.
    pub(super) at: [usize; 3],
    pub(super) len: usize,
    /// Its vector, counted from the block's first.
    pub(super) vector: usize,
}

impl Grid {
    pub(super) fn new(n: Range<usize>, axes: [Range<usize>; 3], lanes: usize) -> Self {
        let along = axes[2].len().div_ceil(lanes);
        Grid {
            n,
            axes,
            lanes,
            along,
        }
    }

    /// The positions of a region.
    pub(super) fn of(region: &Box4, lanes: usize) -> Self {
        Grid::new(region.n(), [0, 1, 2].map(|s| region.s(s)), lanes)
    }

    /// Positions of a vector.
    pub(super) fn lanes(&self) -> usize {
        self.lanes
    }

    pub(super) fn n_vectors(&self) -> usize {
        self.n.len() * self.axes[0].len() * self.axes[1].len() * self.along
    }

    /// The runs of a block of vectors.
    pub(super) fn runs(&self, block: Range<usize>) -> Vec<Run> {
        let mut runs = Vec::with_capacity(2 + block.len() / self.along);
        let mut vector = block.start;
        while vector < block.end {
            let (row, first) = (vector / self.along, vector % self.along);
            let n_vectors = (self.along - first).min(block.end - vector);
            let [d, h, w] = &self.axes;
            let (plane, y) = (row / h.len(), row % h.len());
            let start = w.start + first * self.lanes;
            runs.push(Run {
                n: self.n.start + plane / d.len(),
                at: [d.start + plane % d.len(), h.start + y, start],
                len: (n_vectors * self.lanes).min(w.end - start),
                vector: vector - block.start,
            });
            vector += n_vectors;
        }
        runs
    }
}

/// What the matrix's rows are copied from.
pub(super) struct Source<'a> {
    pub(super) x: &'a In<'a, f32>,
    /// Source positions between neighbouring positions.
    pub(super) stride: [usize; 3],
    /// Of each tap along each axis: where position zero finds its source.
    pub(super) offsets: [Vec<isize>; 3],
    /// Source positions that there are and that may be read; others are zeros.
    pub(super) within: [Range<usize>; 3],
}

impl Source<'_> {
    /// Taps of a channel.
    fn taps(&self) -> usize {
        self.offsets.iter().map(Vec::len).product()
    }

    /// Rows of the matrix: channels times taps.
    pub(super) fn n_rows(&self) -> usize {
        self.x.dims()[1] * self.taps()
    }

    /// Finds what the columns of a block are copied from.
    pub(super) fn block(&self, runs: Vec<Run>, lanes: usize) -> Block {
        let [ds, hs, ws] = [0, 1, 2].map(|s| 0..self.offsets[s].len());
        let mut pieces = Vec::with_capacity(self.taps() * runs.len());
        for d in ds {
            for h in hs.clone() {
                for w in ws.clone() {
                    pieces.extend(runs.iter().map(|run| self.piece([d, h, w], run, lanes)));
                }
            }
        }
        let n_vectors = runs
            .last()
            .map_or(0, |run| run.vector + run.len.div_ceil(lanes));
        let tile = self.n_rows() * VECTORS;
        let places = (0..n_vectors).map(|v| (v / VECTORS * tile + v % VECTORS) * lanes);
        Block {
            runs,
            pieces,
            places: places.collect(),
        }
    }

    /// What a tap's run is copied from.
    fn piece(&self, tap: [usize; 3], run: &Run, lanes: usize) -> Piece {
        let source = |s: usize| (run.at[s] * self.stride[s]) as isize + self.offsets[s][tap[s]];
        let exists = |s: usize| {
            inside(source(s), self.within[s].end).filter(|&at| at >= self.within[s].start)
        };
        let (first, step, within) = (source(2), self.stride[2], &self.within[2]);
        let mut piece = Piece {
            vector: run.vector,
            len: run.len,
            lo: 0,
            hi: 0,
            from: std::ptr::null(),
            floats: 0,
            first: 0,
            n_full: 0,
            skipped: 0,
        };
        if let (Some(d), Some(h)) = (exists(0), exists(1)) {
            let ok = valid(first - within.start as isize, step, run.len, within.len());
            if !ok.is_empty() {
                let start = (first + (ok.start * step) as isize) as usize;
                piece.floats = (ok.len() - 1) * step + 1;
                let row = |c| self.x.row(run.n, c, d, h, start..start + piece.floats);
                // The last channel's is found only to be checked.
                (piece.from, _) = (row(0).as_ptr(), row(self.x.dims()[1] - 1));
                (piece.lo, piece.hi) = (ok.start, ok.end);
                piece.first = ok.start.div_ceil(lanes);
                piece.n_full = (ok.end / lanes).saturating_sub(piece.first);
                piece.skipped = (piece.first * lanes).saturating_sub(ok.start) * step;
            }
        }
        piece
    }

    /// Packs some rows of a block's matrix.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[inline(always)]
    pub(super) unsafe fn pack<V: Vector>(
        &self,
        rows: Range<usize>,
        block: &Block,
        panel: &mut [f32],
    ) {
        // SAFETY: as promised to this function.
        unsafe {
            match self.stride[2] {
                1 => self.pack_by::<V, 1>(rows, block, panel),
                2 => self.pack_by::<V, 2>(rows, block, panel),
                _ => self.pack_by::<V, 0>(rows, block, panel),
            }
        }
    }

    /// [`Source::pack`] with a stride of one or two, or any.
    ///
    /// # Safety
    /// As there.
    #[inline(always)]
    unsafe fn pack_by<V: Vector, const STEP: usize>(
        &self,
        rows: Range<usize>,
        block: &Block,
        panel: &mut [f32],
    ) {
        let (n_runs, row_floats) = (block.runs.len(), VECTORS * V::LANES);
        let n_tiles = block.places.len().div_ceil(VECTORS);
        let floats = n_tiles * self.n_rows() * row_floats;
        assert!(rows.end <= self.n_rows() && floats <= panel.len());
        let channel = self.x.layout().strides[1];
        let (mut c, mut tap) = (rows.start / self.taps(), rows.start % self.taps());
        for row in rows {
            for piece in &block.pieces[tap * n_runs..][..n_runs] {
                let from = piece.from.wrapping_add(c * channel);
                let to = panel.as_mut_ptr().wrapping_add(row * row_floats);
                let places = &block.places[piece.vector..];
                // SAFETY: as promised to this function; the panel holds all places of the
                // block, and the channel has such a piece.
                unsafe { piece.copy::<V, STEP>(from, self.stride[2], to, places) };
            }
            tap += 1;
            if tap == self.taps() {
                (c, tap) = (c + 1, 0);
            }
        }
    }

    /// Lists the lines that [`Source::pack`] will read, to be asked for.
    #[inline(always)]
    pub(super) fn lines(&self, rows: Range<usize>, block: &Block, lines: &mut Vec<*const f32>) {
        lines.clear();
        let (n_runs, along) = (block.runs.len(), self.offsets[2].len());
        let channel = self.x.layout().strides[1];
        let (mut c, mut tap) = (rows.start / self.taps(), rows.start % self.taps());
        for _ in rows {
            // The taps of a row read much the same lines.
            if tap % along == 0 {
                for piece in &block.pieces[tap * n_runs..][..n_runs] {
                    let from = piece.from.wrapping_add(c * channel);
                    let n_lines = piece.floats.div_ceil(LINE);
                    lines.extend((0..n_lines).map(|line| from.wrapping_add(line * LINE)));
                }
            }
            tap += 1;
            if tap == self.taps() {
                (c, tap) = (c + 1, 0);
            }
        }
    }
}

/// Columns that are packed together.
pub(super) struct Block {
    pub(super) runs: Vec<Run>,
    /// By tap and run.
    pieces: Vec<Piece>,
    /// Where the vectors of the first matrix row lie.
    places: Vec<usize>,
}

impl Block {
    /// No columns.
    pub(super) fn empty() -> Self {
        Block {
            runs: vec![],
            pieces: vec![],
            places: vec![],
        }
    }

    /// Register tiles.
    pub(super) fn n_tiles(&self) -> usize {
        self.places.len().div_ceil(VECTORS)
    }
}

/// What a run of a matrix row is copied from, up to the channel.
struct Piece {
    /// The run's first vector in the block.
    vector: usize,
    /// Its positions.
    len: usize,
    /// Those of them that have a source.
    lo: usize,
    hi: usize,
    /// The first one's source in the first channel, and floats to the last one's.
    from: *const f32,
    floats: usize,
    /// The first vector all of whose lanes have a source, how many follow, and floats
    /// from the first source to its.
    first: usize,
    n_full: usize,
    skipped: usize,
}

impl Piece {
    /// Copies the run from `from` on, sources `step` apart, to `places` from `to` on; zeros
    /// where it has none.
    ///
    /// # Safety
    /// The machine has the instructions, the run's sources lie there, and its places are
    /// valid for writes of vectors. `STEP` is the step, or zero.
    #[inline(always)]
    unsafe fn copy<V: Vector, const STEP: usize>(
        &self,
        from: *const f32,
        step: usize,
        to: *mut f32,
        places: &[usize],
    ) {
        let n_vectors = self.len.div_ceil(V::LANES);
        let places = &places[..n_vectors];
        let full = if STEP == 0 {
            0..0
        } else {
            self.first..self.first + self.n_full
        };
        let mut next = from.wrapping_add(self.skipped);
        for &place in &places[full.clone()] {
            // SAFETY: as promised to this function; behind the last source there may be
            // nothing.
            unsafe {
                let mut vector = V::load(next);
                if STEP == 2 {
                    let rest = V::load_some(next.add(V::LANES), V::LANES - 1);
                    vector = V::split(vector, rest).0;
                }
                vector.store(to.add(place));
            }
            next = next.wrapping_add(V::LANES * STEP);
        }
        if full.len() == n_vectors {
            return;
        }
        for v in (0..full.start).chain(full.end..n_vectors) {
            // SAFETY: as promised to this function.
            let to = unsafe { std::slice::from_raw_parts_mut(to.add(places[v]), V::LANES) };
            // The lanes of this vector that have a source.
            let at = v * V::LANES;
            let lo = self.lo.saturating_sub(at).min(V::LANES);
            let hi = self.hi.saturating_sub(at).clamp(lo, V::LANES);
            to.fill(0.0);
            if hi > lo {
                let from = from.wrapping_add((at + lo - self.lo) * step);
                // SAFETY: as promised to this function; these lanes have a source.
                unsafe {
                    let from = std::slice::from_raw_parts(from, (hi - lo - 1) * step + 1);
                    panel::gather::<V>(&mut to[lo..hi], from, step);
                }
            }
        }
    }
}
