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

/// Tile extents for an axis, largest first, the whole excluded.
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
