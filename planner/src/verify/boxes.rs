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
        self.join(region);
        Ok(())
    }

    /// Keeps a box, as one with those that it makes a larger box with: tiles come in
    /// order, so that a row, and then a plane, of them is one.
    fn join(&mut self, mut region: Region) {
        let is_neighbour =
            |b: &Region, region: &Region| b.hull(region).points() == b.points() + region.points();
        while let Some(at) = self.boxes.iter().rposition(|b| is_neighbour(b, &region)) {
            region = self.boxes.swap_remove(at).hull(&region);
        }
        self.boxes.push(region);
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

#[cfg(test)]
mod tests {
    use sstep_autodiff::Span;

    use super::*;

    fn cube(at: [usize; 3], extent: usize) -> Region {
        let spans = at.map(|lo| Span::new(lo, lo + extent));
        Region::new(&[&[Span::full(1)], &spans[..]].concat())
    }

    #[test]
    fn tiles_in_order_stay_few_boxes_and_are_told_apart() {
        let mut boxes = Boxes::default();
        for z in 0..4 {
            for y in 0..4 {
                for x in 0..4 {
                    let tile = cube([5 * z, 5 * y, 5 * x], 5);
                    assert!(!boxes.covers(&tile, 8000));
                    boxes.add(tile).expect("new");
                    assert!(boxes.covers(&tile, 8000) && boxes.boxes.len() <= 3);
                    assert!(boxes.add(cube([5 * z, 5 * y, 5 * x], 1)).is_err());
                }
            }
        }
        assert_eq!((boxes.points, boxes.boxes.len()), (8000, 1));
        assert!(boxes.covers(&cube([3, 4, 2], 14), 8000));
    }
}
