//! The ladder of tile sizes, and which axes are cut how.
//!
//! Sizes are geometric: between two rungs cost changes smoothly, so a finer
//! ladder buys little. Rungs with more than [`MAX_TILES`] cuts of one axis are
//! left out unless memory leaves nothing else: launches would dominate.

use crate::sweep::{AxisGrid, AxisPolicy};

/// Most cuts of one axis that are tried first.
pub const MAX_TILES: usize = 512;

/// Smallest tile extent ever tried, in positions of the anchor.
pub const MIN_TILE: usize = 4;

/// Tile extents for an axis, largest first, the whole excluded: halves of
/// halves.
pub fn ladder(extent: usize, finest: usize) -> Vec<usize> {
    let mut sizes = Vec::new();
    let mut tile = extent.next_power_of_two() / 2;
    while tile >= finest.max(1) && tile > 0 {
        if tile < extent {
            sizes.push(tile);
        }
        tile /= 2;
    }
    sizes
}

/// Extents of strips of an axis that is cut beside the carried one, widest
/// first, the whole excluded: the fewer the strips, the finer the choice of
/// their number, for halos between strips are computed twice.
pub fn strips(extent: usize, finest: usize) -> Vec<usize> {
    const COUNTS: [usize; 18] = [
        2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16, 20, 24, 32, 48, 64,
    ];
    let round = if extent >= 2048 { 32 } else { 1 };
    let mut sizes: Vec<usize> = COUNTS
        .iter()
        .map(|n| extent.div_ceil(*n).next_multiple_of(round))
        .filter(|&tile| tile >= finest.max(1) && tile < extent)
        .collect();
    sizes.dedup();
    sizes
}

/// One axis of a grid, cut into `tile`s, or whole if `tile` covers it.
pub fn axis(policy: AxisPolicy, extent: usize, tile: usize) -> AxisGrid {
    if tile >= extent {
        AxisGrid::whole(extent)
    } else {
        AxisGrid {
            policy,
            extent,
            tile,
        }
    }
}
