//! What has been written of a map so far.

use sstep_autodiff::Region;

/// Disjoint boxes of a map, with their volume.
#[derive(Clone, Debug, Default)]
pub(super) struct Boxes {
    boxes: Vec<Region>,
    /// Their volume in positions.
    pub(super) points: u64,
}

impl Boxes {
    /// Adds a box.
    ///
    /// # Errors
    /// If some of it is there already.
    pub(super) fn add(&mut self, region: Region) -> Result<(), String> {
        for b in self.boxes.iter().rev() {
            if !b.intersect(&region).is_empty() {
                return Err(format!("{region:?} was written before, in {b:?}"));
            }
        }
        self.points += region.points();
        self.boxes.push(region);
        Ok(())
    }

    /// Whether all of `region` is there; `total` is the volume of the whole map.
    pub(super) fn covers(&self, region: &Region, total: u64) -> bool {
        if self.points == total {
            return true;
        }
        let want = region.points();
        let mut have = 0;
        for b in self.boxes.iter().rev() {
            have += b.intersect(region).points();
            if have >= want {
                return true;
            }
        }
        have >= want
    }
}
