//! The register kernel of weight gradients of many channels: outer products.
//!
//! Lanes are channels of one map, whose positions were packed channel by channel; a
//! step is a position: it loads a few vectors of channels, broadcasts a few columns of
//! the other map, and multiplies each with each. No lanes are to be added up, and a sum
//! of 64 products goes straight to where sums are kept in doubles.

use super::vector::{Held, Kernel, Vector};

/// Most products that are summed in single precision. Gradients cancel, most of all
/// where a softmax over space is above, and what a longer sum loses would be all of the
/// result.
const PRODUCTS: usize = 64;

/// Most vectors of channels of a register tile: few, because all columns stream past
/// those of a block, which then stay in the first-level cache.
pub(super) const VECTORS: usize = 2;

/// Most columns of a tile: as many accumulators as registers are left.
const fn most_columns<V: Vector>() -> usize {
    if V::LANES == 16 { 12 } else { 6 }
}

/// What the tiles of a block share.
pub(super) struct Block<'a> {
    /// Packed channels: `[group of vectors][position][vector]`, groups of
    /// [`VECTORS`].
    pub(super) lanes: &'a [f32],
    /// Vectors of channels.
    pub(super) vectors: usize,
    /// The other map's panel.
    pub(super) panel: &'a [f32],
    /// Where each column begins in it.
    pub(super) columns: &'a [usize],
    /// Where each row of positions begins in a column.
    pub(super) rows: &'a [usize],
    /// Positions of a row.
    pub(super) row: usize,
}

/// Tiles of a block, in order.
#[derive(Clone, Copy, Default)]
pub(super) struct Cursor {
    vector: usize,
    column: usize,
}

impl Block<'_> {
    /// Number of tiles.
    pub(super) fn n_tiles<V: Vector>(&self) -> usize {
        let mut cursor = Cursor::default();
        let mut n_tiles = 0;
        while self.next::<V>(&mut cursor).is_some() {
            n_tiles += 1;
        }
        n_tiles
    }

    /// The next tile: its first vector and column, and how many of each.
    fn next<V: Vector>(&self, cursor: &mut Cursor) -> Option<[usize; 4]> {
        let Cursor { vector, column } = *cursor;
        if vector >= self.vectors {
            return None;
        }
        let vectors = VECTORS.min(self.vectors - vector);
        let left = self.columns.len() - column;
        let columns = match left {
            _ if left >= most_columns::<V>() => most_columns::<V>(),
            8.. => 8,
            4.. => 4,
            few => few,
        };
        cursor.column += columns;
        if cursor.column == self.columns.len() {
            *cursor = Cursor {
                vector: vector + vectors,
                column: 0,
            };
        }
        Some([vector, column, vectors, columns])
    }

    /// Adds the next tile to `sums`, `[group of vectors][column][vector]` as the channels
    /// are packed.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[inline(always)]
    pub(super) unsafe fn add_tile<V: Vector>(&self, cursor: &mut Cursor, sums: &mut [f64]) {
        let Some([vector, column, vectors, columns]) = self.next::<V>(cursor) else {
            return;
        };
        let positions = self.rows.len() * self.row;
        let lanes = &self.lanes[vector * V::LANES * positions..];
        let from = (vector * self.columns.len() + column * vectors) * V::LANES;
        let sums = &mut sums[from..][..vectors * columns * V::LANES];
        // The kernels do not check bounds.
        assert!(
            lanes.len() >= vectors * V::LANES * positions,
            "packed channels"
        );
        let columns_of = &self.columns[column..column + columns];
        let last = columns_of.iter().max().copied().unwrap_or(0);
        let row = self.rows.iter().max().copied().unwrap_or(0);
        assert!(
            last + row + self.row <= self.panel.len(),
            "columns lie in the panel"
        );
        macro_rules! tile {
            ($m:literal, $n:literal) => {{
                let mut from = [std::ptr::null(); $m];
                for (from, &column) in from.iter_mut().zip(columns_of) {
                    *from = self.panel[column..].as_ptr();
                }
                let (lanes, sums) = (lanes.as_ptr(), sums.as_mut_ptr());
                // SAFETY: as promised to this function; bounds as checked above.
                unsafe {
                    V::call(Tile::<$m, $n> {
                        block: self,
                        from,
                        lanes,
                        sums,
                    })
                }
            }};
        }
        match (columns, vectors) {
            (12, 2) if const { V::LANES == 16 } => tile!(12, 2),
            (12, 1) if const { V::LANES == 16 } => tile!(12, 1),
            (8, 2) if const { V::LANES == 16 } => tile!(8, 2),
            (8, 1) if const { V::LANES == 16 } => tile!(8, 1),
            (6, 2) if const { V::LANES == 8 } => tile!(6, 2),
            (6, 1) if const { V::LANES == 8 } => tile!(6, 1),
            (4, 2) => tile!(4, 2),
            (4, 1) => tile!(4, 1),
            (3, 2) => tile!(3, 2),
            (3, 1) => tile!(3, 1),
            (2, 2) => tile!(2, 2),
            (2, 1) => tile!(2, 1),
            (1, 2) => tile!(1, 2),
            (1, 1) => tile!(1, 1),
            _ => unreachable!("no tile is {columns} by {vectors}"),
        }
    }
}

/// One register tile: `M` columns by `N` vectors.
struct Tile<'a, const M: usize, const N: usize> {
    block: &'a Block<'a>,
    from: [*const f32; M],
    lanes: *const f32,
    sums: *mut f64,
}

impl<const M: usize, const N: usize> Kernel for Tile<'_, M, N> {
    #[inline(always)]
    unsafe fn run<V: Vector>(self) {
        let Tile {
            block,
            from,
            mut lanes,
            sums,
        } = self;
        // Rows are cut, and short rows taken together, into sums of so many products.
        let (mut rows, mut row, mut at) = (block.rows.iter(), 0, block.row);
        let mut left = block.rows.len() * block.row;
        // SAFETY: bounds as `add_tile` checked.
        unsafe {
            while left > 0 {
                let mut acc = Held::<M, N>::zero::<V>();
                let mut room = PRODUCTS.min(left);
                left -= room;
                while room > 0 {
                    if at == block.row {
                        (row, at) = (rows.next().copied().unwrap_or(0), 0);
                    }
                    let n = room.min(block.row - at);
                    for p in row + at..row + at + n {
                        let mut vectors = [lanes; N];
                        for (v, vector) in vectors.iter_mut().enumerate() {
                            *vector = lanes.wrapping_add(v * V::LANES);
                        }
                        V::outer_step(&mut acc, &vectors, &from, p);
                        lanes = lanes.wrapping_add(N * V::LANES);
                    }
                    (room, at) = (room - n, at + n);
                }
                for (m, acc) in acc.iter().enumerate() {
                    for (v, acc) in acc.iter().enumerate() {
                        acc.add_to(sums.add((m * N + v) * V::LANES));
                    }
                }
            }
        }
    }
}
