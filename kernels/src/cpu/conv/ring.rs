//! Input rows of one channel, copied once each and kept while outputs read them.

use std::ops::Range;

use super::direct::source;
use super::panel::Axis;
use super::vector::Vector;
use super::{Geom, panel, tasks};
use crate::view::In;

/// Where the taps of a convolution, or of an adjoint of stride 1, lie.
pub(super) struct Taps {
    stride: [usize; 3],
    /// Source position of each tap along each axis, for the first output.
    offsets: [Vec<isize>; 3],
}

impl Taps {
    pub(super) fn conv(g: &Geom) -> Self {
        Taps {
            stride: g.stride,
            offsets: [0, 1, 2].map(|s| (0..g.kernel[s]).map(|t| source(g, s, 0, t)).collect()),
        }
    }

    pub(super) fn adjoint(g: &Geom) -> Self {
        let mut taps = Taps::conv(g);
        for offset in taps.offsets.iter_mut().flatten() {
            *offset = -*offset;
        }
        taps
    }

    fn source(&self, s: usize, j: usize, t: usize) -> isize {
        (j * self.stride[s]) as isize + self.offsets[s][t]
    }

    pub(super) fn len(&self) -> usize {
        self.offsets.iter().map(Vec::len).product()
    }

    /// Rows that the taps of one output span.
    fn rows(&self) -> usize {
        let first = self.offsets[1].iter().min().copied().unwrap_or(0);
        let last = self.offsets[1].iter().max().copied().unwrap_or(0);
        (last - first) as usize + 1
    }

    /// The copied columns that outputs `w` read.
    fn columns(&self, w: &Range<usize>) -> Axis {
        let mut windows: Vec<_> = (0..self.offsets[2].len())
            .map(|t| (self.source(2, w.start, t), w.len()))
            .collect();
        Axis::cover(self.stride[2], &mut windows)
    }

    /// Floats of a ring for so many columns.
    pub(super) fn floats(&self, columns: usize) -> usize {
        let row = panel::padded(self.columns(&(0..columns)).len());
        tasks::whole_lines(self.offsets[0].len() * self.rows() * row)
    }
}

/// Input rows of one channel.
pub(super) struct Ring<'a> {
    pub(super) taps: &'a Taps,
    x: &'a In<'a, f32>,
    columns: Axis,
    /// Floats between rows.
    row: usize,
    /// Which row each place holds, by depth tap; none at first.
    held: Vec<Option<isize>>,
    pub(super) floats: &'a mut [f32],
    /// Where each tap of the current output row finds its first column.
    pub(super) at: Vec<usize>,
    /// The same within a row.
    at_column: Vec<usize>,
}

impl<'a> Ring<'a> {
    pub(super) fn new(
        taps: &'a Taps,
        x: &'a In<'a, f32>,
        w: &Range<usize>,
        floats: &'a mut [f32],
    ) -> Self {
        let columns = taps.columns(w);
        let at_column =
            (0..taps.offsets[2].len()).map(|t| columns.locate(taps.source(2, w.start, t)));
        Ring {
            taps,
            x,
            row: panel::padded(columns.len()),
            held: vec![None; taps.offsets[0].len() * taps.rows()],
            floats,
            at: Vec::with_capacity(taps.len()),
            at_column: at_column.collect(),
            columns,
        }
    }

    /// Copies what output row `(d, h)` of channel `c` reads and is not held, and
    /// finds its taps. [`Ring::forget`] comes before another channel or depth.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[inline(always)]
    pub(super) unsafe fn advance<V: Vector>(&mut self, n: usize, c: usize, d: usize, h: usize) {
        let rows = self.taps.rows();
        self.at.clear();
        for td in 0..self.taps.offsets[0].len() {
            let from_d = self.taps.source(0, d, td);
            for th in 0..self.taps.offsets[1].len() {
                let from_h = self.taps.source(1, h, th);
                let place = td * rows + from_h.rem_euclid(rows as isize) as usize;
                let first = place * self.row;
                if self.held[place] != Some(from_h) {
                    self.held[place] = Some(from_h);
                    let row = &mut self.floats[first..first + self.row];
                    let from = [from_d, from_h];
                    // SAFETY: as promised to this function.
                    unsafe { self.columns.fill::<V>(row, self.x, n, c, from, None) };
                }
                self.at.extend(self.at_column.iter().map(|at| first + at));
            }
        }
    }

    pub(super) fn forget(&mut self) {
        self.held.fill(None);
    }
}
