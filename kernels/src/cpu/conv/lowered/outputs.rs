//! Where the outputs of a layer's positions lie, and those that no tap reaches.

use super::super::columns::Run;
use super::super::product::Spot;
use super::super::vector::Vector;
use super::Layer;
use crate::cpu::stream;

impl Layer<'_> {
    /// Where output row `at` of a position's lies along depth and rows, if it is in the
    /// region.
    fn row(&self, run: &Run, at: [usize; 2]) -> Option<[usize; 2]> {
        let mut row = [0; 2];
        for (s, row) in row.iter_mut().enumerate() {
            *row = (run.at[s] * self.stride[s] + at[s]).checked_sub(self.pad[s])?;
            if !self.job.region.s(s).contains(row) {
                return None;
            }
        }
        Some(row)
    }

    /// First column of the outputs of position `j`, which may lie left of the region.
    fn column(&self, j: usize) -> isize {
        (j * self.stride[2]) as isize - self.pad[2] as isize
    }

    /// Appends where the vectors of a block are stored in phase `at`, from the output's
    /// first element on; nowhere, if that is outside of the region.
    pub(super) fn spots<V: Vector>(&self, runs: &[Run], at: [usize; 2], spots: &mut Vec<Spot>) {
        let [sn, _, sd, sh] = self.out.layout().strides;
        let p = &self.out.layout().present.0;
        let w = self.job.region.s(2);
        for run in runs {
            let row = self.row(run, at);
            for first in (0..run.len).step_by(V::LANES) {
                let Some([d, h]) = row else {
                    spots.push(Spot {
                        offset: 0,
                        lo: 0,
                        hi: 0,
                    });
                    continue;
                };
                let lanes = (run.len - first).min(V::LANES) * self.stride[2];
                let column = self.column(run.at[2] + first);
                let row = (run.n - p[0].lo) * sn + (d - p[1].lo) * sd + (h - p[2].lo) * sh;
                spots.push(Spot {
                    offset: row as isize + column - p[3].lo as isize,
                    lo: (w.start as isize - column).max(0) as usize,
                    hi: (w.end as isize - column).clamp(0, lanes as isize) as usize,
                });
            }
        }
    }

    /// Fills the rows of a run's outputs that no tap reaches.
    ///
    /// # Safety
    /// Nobody else uses these outputs meanwhile.
    pub(super) unsafe fn fill_gaps(&self, run: &Run) {
        let w = self.job.region.s(2);
        let start = self.column(run.at[2]).max(w.start as isize) as usize;
        let end = self.column(run.at[2] + run.len).min(w.end as isize) as usize;
        let rows = self.gaps.iter().filter_map(|&at| self.row(run, at));
        for [d, h] in rows {
            for channel in 0..self.out.dims()[1] {
                let bias = self
                    .job
                    .inputs
                    .get(2)
                    .map_or(0.0, |bias| bias.flat()[channel]);
                // SAFETY: as promised to this function.
                let row = unsafe { self.out.row_mut(run.n, channel, d, h, start..end) };
                if self.past {
                    stream::fill(row, 0.0 + bias);
                } else {
                    row.fill(0.0 + bias);
                }
            }
        }
    }
}
