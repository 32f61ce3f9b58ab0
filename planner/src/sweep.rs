//! Region propagation: what every tile of a stage computes, axis by axis.
//!
//! Tiles cut the stage's anchor extents; a map of another resolution is cut at
//! the same fractions. From what a tile must *emit* (its part of each stored map
//! and of each reduction's domain) needs are propagated backwards through
//! [`AxisRead`](sstep_autodiff::AxisRead). All rules act per axis, so each axis
//! is swept alone and regions are products: exact costs of a grid take time
//! linear in cuts, not in tiles.
//!
//! - *whole* and *overlap*: a tile computes the hull of all needs, halo
//!   included, and emits its own cut;
//! - *carry*: a tile computes only what is fresh, `need(i) \ need(0..i)`, and a
//!   window keeps what later tiles still read. What is fresh partitions the
//!   axis, so it is also what is emitted: a reduction may run ahead with its
//!   domain instead of making windows wait.

use serde::{Deserialize, Serialize};
use sstep_autodiff::Span;

use crate::program::Program;
use crate::stage::{Body, Role};

/// How a stage advances along an axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum AxisPolicy {
    /// Not cut.
    Whole,
    /// Each tile recomputes its halo.
    Overlap,
    /// Tiles keep the halo of the tile before in windows. At most one axis of a
    /// stage; it is walked innermost.
    Carry,
}

/// Cuts of one axis.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct AxisGrid {
    /// How the axis is walked.
    pub policy: AxisPolicy,
    /// Anchor extent in positions.
    pub extent: usize,
    /// Tile extent in positions of the anchor; the last tile may be smaller.
    pub tile: usize,
}

impl AxisGrid {
    /// An axis in one piece.
    pub fn whole(extent: usize) -> Self {
        AxisGrid {
            policy: AxisPolicy::Whole,
            extent,
            tile: extent,
        }
    }

    /// Number of tiles.
    pub fn n_tiles(&self) -> usize {
        self.extent.div_ceil(self.tile.max(1)).max(1)
    }

    /// Tile `i`'s part of an axis of extent `extent`.
    pub fn cut(&self, i: usize, extent: usize) -> Span {
        let at = |i: usize| {
            let anchor = (i * self.tile).min(self.extent);
            (anchor as u128 * extent as u128 / self.extent.max(1) as u128) as usize
        };
        Span::new(at(i), at(i + 1))
    }
}

/// What one tile does with one item of a body, along one axis.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spans {
    /// What is computed (or fetched, or accumulated).
    pub compute: Span,
    /// What is present afterwards, kept rows included.
    pub window: Span,
    /// What is stored or accumulated for good.
    pub emit: Span,
}

/// All tiles of an axis.
#[derive(Clone, Debug)]
pub struct AxisSweep {
    n_items: usize,
    n_tiles: usize,
    spans: Vec<Spans>,
}

impl AxisSweep {
    /// Number of tiles.
    pub fn n_tiles(&self) -> usize {
        self.n_tiles
    }

    /// What tile `tile` does with item `item`.
    pub fn get(&self, tile: usize, item: usize) -> &Spans {
        &self.spans[tile * self.n_items + item]
    }

    /// All tiles of one item.
    pub fn item(&self, item: usize) -> impl Iterator<Item = &Spans> + '_ {
        (0..self.n_tiles).map(move |t| self.get(t, item))
    }

    /// Sweeps `body` along `axis`.
    pub fn new(program: &Program, body: &Body, axis: usize, grid: &AxisGrid) -> AxisSweep {
        let (n_items, n_tiles) = (body.items.len(), grid.n_tiles());
        let mut spans = vec![Spans::default(); n_items * n_tiles];
        Sweeper::new(program, body, axis).walk(grid, |tile, row| {
            spans[tile * n_items..(tile + 1) * n_items].copy_from_slice(row);
        });
        AxisSweep {
            n_items,
            n_tiles,
            spans,
        }
    }
}

/// The reads of a body along one axis, resolved once for all grids. Axes along which
/// a body reads alike are equal, and so are their sums.
#[derive(Clone, Debug, PartialEq)]
pub struct Sweeper {
    /// Per item: extent of the map, or of the domain of a reduction.
    extent: Vec<usize>,
    /// Per item: whether its cut must be emitted.
    emits: Vec<bool>,
    /// Per item: readers and how they read it.
    reads: Vec<Vec<(usize, sstep_autodiff::AxisRead)>>,
    /// Per item: reductions that run as far ahead as this item, their domain.
    eager: Vec<Vec<usize>>,
    is_eager: Vec<bool>,
    is_flat: Vec<bool>,
}

impl Sweeper {
    /// The reads of `body` along `axis`.
    pub fn new(program: &Program, body: &Body, axis: usize) -> Self {
        let n = body.items.len();
        let mut s = Sweeper {
            extent: vec![0; n],
            emits: vec![false; n],
            reads: vec![Vec::new(); n],
            eager: vec![Vec::new(); n],
            is_eager: vec![false; n],
            is_flat: vec![false; n],
        };
        for (i, item) in body.items.iter().enumerate() {
            let domain = item.domain.map_or(item.node, |(d, _)| body.items[d].node);
            s.is_flat[i] = item.role == Role::Flat;
            s.extent[i] = program.node(domain).ty.axis_extent(axis);
            s.emits[i] = item.target || item.role == Role::Reduce;
            if let Some((d, true)) = item.domain {
                s.eager[d].push(i);
                s.is_eager[i] = true;
            }
            for edge in &item.readers {
                let reader = body.items[edge.reader].node;
                let tys = program.input_tys(reader);
                let node = program.node(reader);
                s.reads[i].push((edge.reader, node.op.read(edge.input, axis, &tys, &node.ty)));
            }
        }
        s
    }

    /// Number of items of the body.
    pub fn n_items(&self) -> usize {
        self.extent.len()
    }

    /// Shows every tile's items once, tiles in any order.
    pub fn walk(&self, grid: &AxisGrid, visit: impl FnMut(usize, &[Spans])) {
        match grid.policy {
            AxisPolicy::Whole | AxisPolicy::Overlap => self.overlap(grid, visit),
            AxisPolicy::Carry => self.carry(grid, visit),
        }
    }

    fn overlap(&self, grid: &AxisGrid, mut visit: impl FnMut(usize, &[Spans])) {
        let mut row = vec![Spans::default(); self.extent.len()];
        for tile in 0..grid.n_tiles() {
            for i in (0..row.len()).rev() {
                if self.is_flat[i] {
                    continue;
                }
                let mut need = Span::default();
                if self.emits[i] {
                    need = grid.cut(tile, self.extent[i]);
                    row[i].emit = need;
                }
                for &(reader, read) in &self.reads[i] {
                    need = need.hull(read.apply(row[reader].compute, self.extent[i]));
                }
                row[i].compute = need;
                row[i].window = need;
            }
            visit(tile, &row);
        }
    }

    fn carry(&self, grid: &AxisGrid, mut visit: impl FnMut(usize, &[Spans])) {
        let (n_items, n_tiles) = (self.extent.len(), grid.n_tiles());
        // Where each item starts is where it starts when nothing is cut.
        let mut done = vec![0; n_items];
        self.overlap(&AxisGrid::whole(grid.extent), |_, row| {
            for (done, spans) in done.iter_mut().zip(row) {
                *done = spans.compute.lo;
            }
        });
        let mut fresh = vec![Span::default(); n_items * n_tiles];
        for tile in 0..n_tiles {
            let row = &mut fresh[tile * n_items..(tile + 1) * n_items];
            for i in (0..n_items).rev() {
                if self.is_flat[i] || self.is_eager[i] {
                    continue;
                }
                let mut hi = done[i];
                if self.emits[i] || !self.eager[i].is_empty() {
                    hi = hi.max(grid.cut(tile, self.extent[i]).hi);
                }
                for &(reader, read) in &self.reads[i] {
                    let need = read.apply(row[reader], self.extent[i]);
                    if !need.is_empty() {
                        hi = hi.max(need.hi);
                    }
                }
                for &r in std::iter::once(&i).chain(&self.eager[i]) {
                    row[r] = Span::new(done[i], hi);
                }
                done[i] = hi;
            }
        }
        // A window reaches back to the first position that this or a later
        // tile still reads, so the last tile comes first.
        let mut keep = vec![usize::MAX; n_items];
        let mut row = vec![Spans::default(); n_items];
        for tile in (0..n_tiles).rev() {
            let fresh = &fresh[tile * n_items..(tile + 1) * n_items];
            for i in 0..n_items {
                for &(reader, read) in &self.reads[i] {
                    let need = read.apply(fresh[reader], self.extent[i]);
                    if !need.is_empty() {
                        keep[i] = keep[i].min(need.lo);
                    }
                }
                row[i] = Spans {
                    compute: fresh[i],
                    window: Span::new(keep[i].min(fresh[i].lo), fresh[i].hi),
                    emit: if self.emits[i] {
                        fresh[i]
                    } else {
                        Span::default()
                    },
                };
            }
            visit(tile, &row);
        }
    }
}
