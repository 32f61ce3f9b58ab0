//! Sixteen tiles at a time between a map and registers.
//!
//! Tiles are numbered along rows, then down, then over depth and samples, and
//! taken sixteen by sixteen. Where sixteen lie in one row, their patches are one
//! run of 66 floats per row, read in place; elsewhere (narrow maps, the ends of
//! rows, borders) a small buffer is filled with pieces of several rows first.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::ops::Range;

use super::shuffle::{PATCH_ROW, ROW, gather, spread};
use super::transform::{LANES, Lanes, Lines, PATCH, TILE, input};
use crate::real::Real;
use crate::view::{Box4, In, Out};

/// The tiles that make up a region.
pub(super) struct Grid {
    /// Row and column of the first tile's first output.
    origin: [usize; 2],
    n: Range<usize>,
    d: Range<usize>,
    /// Tiles down and along, from the origin.
    down: Range<usize>,
    along: Range<usize>,
}

impl Grid {
    /// The tiles that `region` touches, on the grid from the map's first element.
    pub(super) fn aligned(region: &Box4) -> Self {
        let tiles = |s: usize| region.s(s).start / TILE..region.s(s).end.div_ceil(TILE);
        Grid {
            origin: [0; 2],
            n: region.n(),
            d: region.s(0),
            down: tiles(1),
            along: tiles(2),
        }
    }

    /// The fewest tiles that hold `region`.
    pub(super) fn around(region: &Box4) -> Self {
        let tiles = |s: usize| 0..region.s(s).len().div_ceil(TILE);
        Grid {
            origin: [region.s(1).start, region.s(2).start],
            n: region.n(),
            d: region.s(0),
            down: tiles(1),
            along: tiles(2),
        }
    }

    /// Number of vectors of sixteen tiles; the last may have fewer.
    pub(super) fn n_vectors(&self) -> usize {
        self.n_tiles().div_ceil(LANES)
    }

    /// Number of tiles.
    fn n_tiles(&self) -> usize {
        self.n.len() * self.d.len() * self.down.len() * self.along.len()
    }

    /// The runs of neighbouring tiles of a vector. One beyond the last has none.
    pub(super) fn vector(&self, vector: usize) -> Vec<Segment> {
        let mut segments = Vec::with_capacity(2);
        let first = vector * LANES;
        let end = (first + LANES).min(self.n_tiles());
        let mut tile = first;
        while tile < end {
            let (row, x) = (tile / self.along.len(), tile % self.along.len());
            let (plane, y) = (row / self.down.len(), row % self.down.len());
            let (n, d) = (plane / self.d.len(), plane % self.d.len());
            let len = (self.along.len() - x).min(end - tile);
            segments.push(Segment {
                lane: tile - first,
                len,
                n: self.n.start + n,
                d: self.d.start + d,
                h: self.origin[0] + (self.down.start + y) * TILE,
                w: self.origin[1] + (self.along.start + x) * TILE,
            });
            tile += len;
        }
        segments
    }
}

/// Tiles of a vector that lie in one row.
#[derive(Clone, Copy, Debug)]
pub(super) struct Segment {
    /// Lane of the first of them.
    lane: usize,
    /// How many they are.
    len: usize,
    n: usize,
    d: usize,
    /// Position of the first one's first output.
    h: usize,
    w: usize,
}

/// Half-transformed patches, `[column][row]`.
pub(super) type Columns<T> = Lines<[[Lanes<T>; PATCH]; PATCH]>;

/// No patches.
pub(super) fn no_columns<T: Real>() -> Columns<T> {
    Lines([[[T::ZERO; LANES]; PATCH]; PATCH])
}

/// Where patches are read.
pub(super) struct Patches<'a, T> {
    /// The map.
    pub(super) x: In<'a, T>,
    /// How far before an output its patch begins; negative: after it.
    pub(super) pad: [isize; 3],
    /// What may be read; zeros elsewhere.
    pub(super) readable: [Range<usize>; 3],
}

impl<T: Real> Patches<'_, T> {
    /// Transformed patches, [`shuffle`](super::shuffle)d at some `WIDTH`, of channel `c`, depth tap `t`: calls `put(p, lanes)`
    /// for each of the 36 points.
    #[inline(always)]
    pub(super) fn transform<const WIDTH: usize>(
        &self,
        columns: &mut Columns<T>,
        segments: &[Segment],
        c: usize,
        t: usize,
        mut put: impl FnMut(usize, &Lanes<T>),
    ) {
        // Along the rows of the patch first.
        for i in 0..PATCH {
            let mut row = Lines([[T::ZERO; LANES]; PATCH]);
            self.row::<WIDTH>(segments, c, t, i, &mut row.0);
            for l in 0..LANES {
                let u = input(std::array::from_fn(|j| row.0[j][l]));
                for j in 0..PATCH {
                    columns.0[j][i][l] = u[j];
                }
            }
        }
        for (j, column) in columns.0.iter().enumerate() {
            let mut points = Lines([[T::ZERO; LANES]; PATCH]);
            for l in 0..LANES {
                let u = input(std::array::from_fn(|i| column[i][l]));
                for i in 0..PATCH {
                    points.0[i][l] = u[i];
                }
            }
            for (i, lanes) in points.0.iter().enumerate() {
                put(i * PATCH + j, lanes);
            }
        }
    }

    /// Asks for the patches of a channel that is transformed a little later:
    /// channels lie far apart, so the processor does not see them coming.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn prefetch(&self, segments: &[Segment], c: usize, t: usize) {
        for i in 0..PATCH {
            self.prefetch_row::<_MM_HINT_T0>(segments, c, t, i);
        }
    }

    /// Asks for row `i` of the patches of a channel.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn prefetch_row<const HINT: i32>(
        &self,
        segments: &[Segment],
        c: usize,
        t: usize,
        i: usize,
    ) {
        for s in segments {
            let first = (s.w as isize - self.pad[2]).max(self.readable[2].start as isize) as usize;
            let len = (s.len * TILE + PATCH - TILE).min(self.readable[2].end.saturating_sub(first));
            if let Some((d, h)) = self.line(s, t, i) {
                prefetch_line::<HINT, T>(self.x.address([s.n, c, d, h, first]), len);
            }
        }
    }

    /// Row `i` of every patch.
    #[inline(always)]
    fn row<const WIDTH: usize>(
        &self,
        segments: &[Segment],
        c: usize,
        t: usize,
        i: usize,
        into: &mut [Lanes<T>; PATCH],
    ) {
        let [_, _, readable] = &self.readable;
        if let [one] = segments {
            let Some((d, h)) = self.line(one, t, i) else {
                return;
            };
            let first = one.w as isize - self.pad[2];
            let inside = first >= readable.start as isize
                && first as usize + PATCH_ROW <= readable.end
                && one.len == LANES;
            if inside {
                let from = first as usize;
                let row = self.x.row(one.n, c, d, h, from..from + PATCH_ROW);
                if let Ok(row) = row.try_into() {
                    return spread::<T, WIDTH>(row, into);
                }
            }
        }
        let mut buffer = Lines([T::ZERO; PATCH_ROW]);
        for s in segments {
            let Some((d, h)) = self.line(s, t, i) else {
                continue;
            };
            let len = s.len * TILE
                + if s.lane + s.len == LANES {
                    PATCH - TILE
                } else {
                    0
                };
            let at = s.lane * TILE;
            let first = s.w as isize - self.pad[2];
            self.copy([s.n, c, d, h], first, &mut buffer.0[at..at + len]);
        }
        spread::<T, WIDTH>(&buffer.0, into);
        // The patches of a run's last tile go on where the next run's begin.
        for s in segments {
            let last = s.lane + s.len - 1;
            if last + 1 == LANES {
                continue;
            }
            let mut ends = [T::ZERO; PATCH - TILE];
            if let Some((d, h)) = self.line(s, t, i) {
                let first = (s.w + s.len * TILE) as isize - self.pad[2];
                self.copy([s.n, c, d, h], first, &mut ends);
            }
            for (j, end) in ends.into_iter().enumerate() {
                into[TILE + j][last] = end;
            }
        }
    }

    /// Depth and row that row `i` of the patches reads, if there is one.
    #[inline(always)]
    fn line(&self, s: &Segment, t: usize, i: usize) -> Option<(usize, usize)> {
        let within = |at: isize, range: &Range<usize>| {
            let at = usize::try_from(at).ok()?;
            range.contains(&at).then_some(at)
        };
        let d = within((s.d + t) as isize - self.pad[0], &self.readable[0])?;
        let h = within((s.h + i) as isize - self.pad[1], &self.readable[1])?;
        Some((d, h))
    }

    /// Fills `into` from column `first` on; what cannot be read stays.
    #[inline(always)]
    fn copy(&self, [n, c, d, h]: [usize; 4], first: isize, into: &mut [T]) {
        let readable = &self.readable[2];
        let lo = first.max(readable.start as isize);
        let hi = (first + into.len() as isize).min(readable.end as isize);
        if lo < hi {
            let row = self.x.row(n, c, d, h, lo as usize..hi as usize);
            let at = (lo - first) as usize;
            into[at..at + row.len()].copy_from_slice(row);
        }
    }
}

/// Asks for row `i` of the tiles that [`store`] will write, or that [`fill`] will
/// read.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub(super) fn prefetch_tiles<const HINT: i32, T>(
    address: impl Fn([usize; 5]) -> *const T,
    region: &Box4,
    segments: &[Segment],
    k: usize,
    i: usize,
) {
    let (rows, cols) = (region.s(1), region.s(2));
    for s in segments {
        let (lo, hi) = (s.w.max(cols.start), (s.w + s.len * TILE).min(cols.end));
        if lo < hi && rows.contains(&(s.h + i)) {
            prefetch_line::<HINT, T>(address([s.n, k, s.d, s.h + i, lo]), hi - lo);
        }
    }
}

/// Asks for the lines of `len` elements.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn prefetch_line<const HINT: i32, T>(from: *const T, len: usize) {
    for at in (0..len).step_by(64 / size_of::<T>()) {
        // SAFETY: prefetching has no effect on memory, wherever it points. (Some
        // compilers know that and find nothing unsafe.)
        #[allow(unused_unsafe)]
        unsafe {
            _mm_prefetch::<HINT>(from.wrapping_add(at).cast());
        }
    }
}

/// Stores tiles of channel `k`, as far as they lie in `region`.
///
/// # Safety
/// No other live slice overlaps these elements.
#[inline(always)]
pub(super) unsafe fn store<T: Real, const WIDTH: usize>(
    out: &Out<T>,
    region: &Box4,
    segments: &[Segment],
    k: usize,
    tiles: &[[Lanes<T>; TILE]; TILE],
) {
    let (rows, cols) = (region.s(1), region.s(2));
    for (i, tiles) in tiles.iter().enumerate() {
        let buffer = gather::<T, WIDTH>(tiles).0;
        for s in segments {
            let h = s.h + i;
            let (lo, hi) = (s.w.max(cols.start), (s.w + s.len * TILE).min(cols.end));
            if rows.contains(&h) && lo < hi {
                let from = s.lane * TILE + (lo - s.w);
                // SAFETY: as promised to this function.
                let row = unsafe { out.row_mut(s.n, k, s.d, h, lo..hi) };
                // The usual whole row in a few registers, without a call.
                match <&mut [T; ROW]>::try_from(&mut *row) {
                    Ok(row) => *row = buffer,
                    Err(_) => row.copy_from_slice(&buffer[from..from + (hi - lo)]),
                }
            }
        }
    }
}

/// Rows of sixteen tiles, of sixteen channels.
pub(super) type Slab<T> = Lines<[[[T; ROW]; TILE]; LANES]>;

/// Fills a slab from channels `k` on, zeros outside `region` and beyond the last.
#[inline(always)]
pub(super) fn fill<T: Real>(
    y: &In<T>,
    region: &Box4,
    segments: &[Segment],
    k: Range<usize>,
    slab: &mut Slab<T>,
) {
    let (rows, cols) = (region.s(1), region.s(2));
    let mut channels = k.map(Some).chain(std::iter::repeat(None));
    for channel in &mut slab.0 {
        let k = channels.next().flatten();
        for (i, row) in channel.iter_mut().enumerate() {
            if let (Some(k), [s]) = (k, segments)
                && s.len == LANES
                && s.w + ROW <= cols.end
                && s.h + i < rows.end
            {
                let from = y.row(s.n, k, s.d, s.h + i, s.w..s.w + ROW);
                // The usual whole row, without a call.
                if let Ok(from) = <&[T; ROW]>::try_from(from) {
                    *row = *from;
                    continue;
                }
            }
            row.fill(T::ZERO);
            for s in segments {
                let hi = (s.w + s.len * TILE).min(cols.end);
                if let (Some(k), true) = (k, s.h + i < rows.end) {
                    let from = y.row(s.n, k, s.d, s.h + i, s.w..hi);
                    row[s.lane * TILE..][..from.len()].copy_from_slice(from);
                }
            }
        }
    }
}
