//! What the outputs of a strided adjoint share: phases, their taps, and weights
//! in the order in which tiles stream through those of a phase.

use std::ops::Range;

use rayon::prelude::*;

use super::Geom;
use super::panel::Axis;

/// Fewer weights are packed by one thread.
const LEAST_PACKED: usize = 1 << 14;

/// The outputs of a block along one axis that share their taps.
#[derive(Debug)]
pub(super) struct Phase {
    /// The first of them, from the block's start.
    pub(super) at: usize,
    /// How many; they lie a stride apart.
    pub(super) n: usize,
    /// Its taps with their first source positions.
    pub(super) taps: Vec<(usize, isize)>,
}

/// The phases of outputs `lo..lo + n` along an axis.
pub(super) fn phases(g: &Geom, s: usize, lo: usize, n: usize) -> Vec<Phase> {
    let stride = g.stride[s];
    (0..stride.min(n))
        .map(|at| {
            let taps = (0..g.kernel[s]).filter_map(|t| {
                let from = (lo + at + g.pad[s]) as isize - (t * g.dilation[s]) as isize;
                let hit = from.rem_euclid(stride as isize) == 0;
                hit.then(|| (t, from.div_euclid(stride as isize)))
            });
            Phase {
                at,
                n: (n - at).div_ceil(stride),
                taps: taps.collect(),
            }
        })
        .collect()
}

/// The panel axis that serves all phases.
pub(super) fn axis(phases: &[Phase]) -> Axis {
    let windows = phases
        .iter()
        .flat_map(|p| p.taps.iter().map(|&(_, first)| (first, p.n)));
    Axis::cover(1, &mut windows.collect::<Vec<_>>())
}

/// Taps of an axis by the residue `(i + p) mod s` of the outputs they reach.
pub(super) fn tap_orders(g: &Geom, s: usize) -> Vec<Vec<usize>> {
    let reaches = |residue: usize, t: usize| (t * g.dilation[s]) % g.stride[s] == residue;
    (0..g.stride[s])
        .map(|residue| (0..g.kernel[s]).filter(|&t| reaches(residue, t)).collect())
        .collect()
}

/// Which weights are packed, and how.
pub(super) struct Packed {
    /// Output channels of a register tile.
    pub(super) tile: usize,
    pub(super) in_group: usize,
    pub(super) out_group: usize,
    /// Output channels, within each group.
    pub(super) outputs: Range<usize>,
}

impl Packed {
    /// Packs the weights as `[group][outputs / tile][phase][k][tap][tile]`, phases
    /// in order of their residues, channels beyond the last as zeros.
    pub(super) fn fill(&self, g: &Geom, w: &[f32], to: &mut [f32], orders: &[Vec<Vec<usize>>; 3]) {
        let n_taps = g.taps();
        let phases: Vec<_> = phase_taps(g, orders).collect();
        let n_tiles = self.outputs.len().div_ceil(self.tile);
        let tile_floats = self.tile * self.in_group * n_taps;
        let to = &mut to[..g.groups * n_tiles * tile_floats];
        to.par_chunks_mut(tile_floats)
            .with_min_len(1 + LEAST_PACKED / tile_floats)
            .enumerate()
            .for_each(|(index, to)| {
                let (group, first) = (index / n_tiles, index % n_tiles * self.tile);
                let c = self.outputs.start + first;
                let mut to = to.chunks_exact_mut(self.tile);
                for taps in &phases {
                    for k in group * self.in_group..(group + 1) * self.in_group {
                        for &t in taps {
                            let to = to.next().expect("a tile holds its weights");
                            for (i, to) in to.iter_mut().enumerate() {
                                let exists = c + i < self.outputs.end;
                                let at = (k * self.out_group + c + i) * n_taps + t;
                                *to = if exists { w[at] } else { 0.0 };
                            }
                        }
                    }
                }
            });
    }
}

/// Row-major tap indices of every phase, phases in order of their residues.
pub(super) fn phase_taps<'a>(
    g: &'a Geom,
    orders: &'a [Vec<Vec<usize>>; 3],
) -> impl Iterator<Item = Vec<usize>> + 'a {
    let [ds, hs, ws] = orders;
    ds.iter().flat_map(move |d| {
        hs.iter().flat_map(move |h| {
            ws.iter().map(move |w| {
                let mut taps = Vec::with_capacity(d.len() * h.len() * w.len());
                for d in d {
                    for h in h {
                        taps.extend(w.iter().map(|w| (d * g.kernel[1] + h) * g.kernel[2] + w));
                    }
                }
                taps
            })
        })
    })
}
