//! Which grids a stage may be cut by, and which of the costed ones are worth keeping.

use std::collections::BTreeSet;

use crate::candidates::Candidate;
use crate::sweep::{AxisGrid, AxisPolicy};
use crate::tile;

/// Which grids to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Grids {
    /// Everything on the ladder.
    Ladder,
    /// Down to the smallest tiles; keep those that need least memory.
    Smallest,
    /// Nothing cut.
    Whole,
    /// Overlapped tiles of this extent on all spatial axes.
    Fixed(usize),
}

/// Two grids whose scratch differs by less than this factor are one choice.
const ALIKE: f64 = 1.12;

/// The grids to try for a stage of the given anchor extents.
pub fn enumerate(anchor: &[usize], grids: Grids) -> Vec<Vec<AxisGrid>> {
    let whole: Vec<AxisGrid> = anchor.iter().map(|&e| AxisGrid::whole(e)).collect();
    let spatial = &anchor[1..];
    let batch = tile::axis(AxisPolicy::Overlap, anchor[0], 1);
    let cut = |tiles: &[(AxisPolicy, usize)]| -> Vec<AxisGrid> {
        let axes = spatial
            .iter()
            .zip(tiles)
            .map(|(&e, &(policy, t))| tile::axis(policy, e, t));
        std::iter::once(batch.clone()).chain(axes).collect()
    };
    let finest = |extent: usize| match grids {
        Grids::Smallest => (extent / tile::MAX_TILES).max(1),
        _ => (extent / tile::MAX_TILES).max(tile::MIN_TILE),
    };
    let mut out = Vec::new();
    match grids {
        Grids::Whole => return vec![whole],
        Grids::Fixed(t) => return vec![cut(&vec![(AxisPolicy::Overlap, t); spatial.len()])],
        Grids::Ladder | Grids::Smallest => {}
    }
    out.push(whole);
    if anchor[0] > 1 {
        out.push(cut(&vec![(AxisPolicy::Whole, usize::MAX); spatial.len()]));
    }
    let rest = spatial.len() - 1;
    for h in tile::ladder(spatial[0], finest(spatial[0])) {
        // Other axes whole, then cut ever finer together.
        let mut widths = vec![usize::MAX];
        if rest > 0 {
            widths.extend(tile::strips(spatial[1], finest(spatial[1])));
        }
        for w in widths {
            let mut tiles = vec![(AxisPolicy::Overlap, w); rest + 1];
            tiles[0] = (AxisPolicy::Carry, h);
            out.push(cut(&tiles));
            if rest > 1 && w != usize::MAX {
                tiles[2].1 = usize::MAX;
                out.push(cut(&tiles));
            }
        }
    }
    let largest = spatial.iter().copied().max().unwrap_or(1);
    let smallest = if grids == Grids::Smallest { 256 } else { 64 };
    for t in tile::ladder(largest, (largest / smallest).max(finest(1))) {
        out.push(cut(&vec![(AxisPolicy::Overlap, t); spatial.len()]));
    }
    out
}

/// The candidates that nothing else beats in both `secs` and scratch, thinned
/// to `keep` that span the front evenly (or are its smallest).
pub fn pareto(
    mut found: Vec<Candidate>,
    secs: impl Fn(&Candidate) -> f64,
    keep: usize,
    smallest: bool,
) -> Vec<Candidate> {
    found.sort_by(|a, b| {
        secs(a)
            .total_cmp(&secs(b))
            .then(a.scratch_bytes.cmp(&b.scratch_bytes))
    });
    let mut front: Vec<Candidate> = Vec::new();
    for c in found {
        if front
            .last()
            .is_none_or(|f| c.scratch_bytes < f.scratch_bytes)
        {
            front.push(c);
        }
    }
    if front.len() <= keep {
        return front;
    }
    if smallest {
        return front.split_off(front.len() - keep);
    }
    // Of grids alike in memory the fastest; the front's last needs least.
    let least = front.last().map_or(0, |c| c.scratch_bytes);
    let mut kept_bytes = f64::INFINITY;
    front.retain(|c| {
        let bytes = c.scratch_bytes as f64;
        let differs = bytes * ALIKE <= kept_bytes || c.scratch_bytes == least;
        if differs {
            kept_bytes = bytes;
        }
        differs
    });
    if front.len() <= keep {
        return front;
    }
    let last = front.len() - 1;
    let picks: BTreeSet<usize> = (0..keep).map(|k| k * last / (keep - 1)).collect();
    let mut index = 0;
    front.retain(|_| {
        index += 1;
        picks.contains(&(index - 1))
    });
    front
}
