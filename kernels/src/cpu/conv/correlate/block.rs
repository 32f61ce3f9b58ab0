//! A block of positions of both maps, packed piece by piece.

use std::ops::Range;

use super::super::outer::{self, VECTORS};
use super::super::panel::{Axis, Extents, Rows};
use super::super::vector::Vector;
use crate::view::In;

/// Channels of a map at the positions of a block.
pub(super) struct Side<'a> {
    pub(super) map: &'a In<'a, f32>,
    pub(super) channels: Range<usize>,
    pub(super) axes: [Axis; 3],
}

impl Side<'_> {
    /// How its rows are copied, so many floats apart.
    pub(super) fn rows(&self, row: usize, n: usize) -> Rows {
        assert!(
            self.channels.end <= self.map.dims()[1],
            "the map has these channels"
        );
        Rows::new(&self.axes, row, self.map, n)
    }
}

/// What a block is packed from, and how.
pub(super) struct Block {
    /// Positions of a row.
    pub(super) positions: usize,
    /// The map whose channels become lanes: their rows, floats of a row that is about to be
    /// transposed, and vectors of channels.
    pub(super) lane_rows: Rows,
    pub(super) lane_channels: Range<usize>,
    pub(super) staged: usize,
    pub(super) vectors: usize,
    /// The other one, its panel, floats of a channel there that rows take, and where
    /// columns and rows begin.
    pub(super) column_rows: Rows,
    pub(super) column_channels: Range<usize>,
    pub(super) extents: Extents,
    pub(super) rows_end: usize,
    pub(super) columns: Vec<usize>,
    pub(super) rows: Vec<usize>,
}

/// A piece of packing.
enum Unit {
    /// A channel, counted from the block's first, of the map whose columns are broadcast.
    Column(usize),
    /// A row of a channel of the other one, put where it waits for its neighbours.
    Lane {
        channel: usize,
        lane: usize,
        row: usize,
    },
    /// A row of as many channels as lanes.
    Transpose { vector: usize, row: usize },
}

impl Block {
    /// Units of packing: all channels of one map; of the other, for every row of every
    /// vector, its channels and then their transposition.
    pub(super) fn n_units<V: Vector>(&self) -> usize {
        self.column_channels.len() + self.vectors * self.rows.len() * (V::LANES + 1)
    }

    #[inline(always)]
    fn unit<V: Vector>(&self, index: usize) -> Unit {
        let Some(index) = index.checked_sub(self.column_channels.len()) else {
            return Unit::Column(index);
        };
        let (row, lane) = (index / (V::LANES + 1), index % (V::LANES + 1));
        let (vector, row) = (row / self.rows.len(), row % self.rows.len());
        if lane == V::LANES {
            return Unit::Transpose { vector, row };
        }
        let channel = self.lane_channels.start + vector * V::LANES + lane;
        Unit::Lane { channel, lane, row }
    }

    /// Packs some of the units, in ascending order.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[inline(always)]
    pub(super) unsafe fn pack<V: Vector>(
        &self,
        units: Range<usize>,
        staged: &mut [f32],
        panel: &mut [f32],
    ) {
        let n_channels = self.column_channels.len();
        let (columns, lanes) = panel.split_at_mut(self.extents.floats(n_channels));
        for unit in units {
            // SAFETY: as promised to this function; the channels exist.
            unsafe {
                match self.unit::<V>(unit) {
                    Unit::Column(index) => {
                        let to = &mut columns[index * self.extents.channel..];
                        let to = &mut to[..self.extents.channel];
                        let c = self.column_channels.start + index;
                        self.column_rows.copy::<V>(c, c, to);
                        to[self.rows_end..].fill(0.0);
                    }
                    Unit::Lane { channel, lane, row } => {
                        let to = &mut staged[lane * self.staged..][..self.staged];
                        if channel < self.lane_channels.end {
                            self.lane_rows.copy_row::<V>(row, channel, channel, to);
                        } else {
                            to.fill(0.0);
                        }
                    }
                    Unit::Transpose { vector, row } => {
                        self.transpose_row::<V>(vector, row, staged, lanes);
                    }
                }
            }
        }
    }

    /// Asks for what some of the units are packed from.
    #[inline(always)]
    pub(super) fn prefetch<V: Vector>(&self, units: Range<usize>) {
        for unit in units {
            match self.unit::<V>(unit) {
                Unit::Column(index) => {
                    self.column_rows
                        .prefetch(self.column_channels.start + index);
                }
                Unit::Lane { channel, row, .. } if channel < self.lane_channels.end => {
                    self.lane_rows.prefetch_row(row, channel);
                }
                Unit::Lane { .. } | Unit::Transpose { .. } => {}
            }
        }
    }

    /// Transposes what is staged: a row of as many channels as lanes.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[inline(always)]
    unsafe fn transpose_row<V: Vector>(
        &self,
        vector: usize,
        row: usize,
        staged: &[f32],
        lanes: &mut [f32],
    ) {
        let (step, positions) = (self.staged, self.positions);
        // The vectors of a tile lie side by side.
        let tile = vector / VECTORS * VECTORS;
        let width = VECTORS.min(self.vectors - tile) * V::LANES;
        let all = self.rows.len() * positions;
        let to = tile * V::LANES * all + row * positions * width + (vector - tile) * V::LANES;
        let to = &mut lanes[to..][..(positions - 1) * width + V::LANES];
        let staged = &staged[..V::LANES * step];
        for p in (0..positions).step_by(V::LANES) {
            let left = positions - p;
            let from = staged[p..].as_ptr();
            if left >= V::LANES {
                let to = to[p * width..].as_mut_ptr();
                // SAFETY: as promised to this function; there are as many rows and positions.
                unsafe { V::transpose(from, step, to, width) };
                continue;
            }
            let mut held = [0.0; 16 * 16];
            // SAFETY: as promised to this function; staged rows are whole vectors.
            unsafe { V::transpose(from, step, held.as_mut_ptr(), V::LANES) };
            for (held, to) in held
                .chunks(V::LANES)
                .zip(to[p * width..].chunks_mut(width))
                .take(left)
            {
                to[..V::LANES].copy_from_slice(held);
            }
        }
    }

    /// The block's tiles, when it is packed.
    pub(super) fn tiles<'p>(&'p self, panel: &'p [f32]) -> outer::Block<'p> {
        let (panel, lanes) = panel.split_at(self.extents.floats(self.column_channels.len()));
        outer::Block {
            lanes,
            vectors: self.vectors,
            panel,
            columns: &self.columns,
            rows: &self.rows,
            row: self.positions,
        }
    }
}
