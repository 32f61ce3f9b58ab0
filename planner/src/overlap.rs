//! Copies beside kernels: what a tile loop takes where it has both.
//!
//! While a tile is computed, the regions that the next one fetches come from the
//! host, and what the last one stored goes there. Each channel (kernels, host to
//! device, device to host) works through its tiles in order and waits for the one
//! before it only where it must, so a loop takes as long as its busiest channel, and
//! besides what that channel cannot run beside: before it can begin, the first region
//! that it needs; after it has ended, what comes of its last.
//!
//! A region passes a *staging buffer* on the device: the link fills or empties it
//! beside the kernels, a copy within the device takes it from or to its window.
//! Meanwhile the link cannot use it, so that copy counts to both channels.

use crate::candidates::Candidate;
use crate::machine::Machine;
use crate::plan::Tier;

/// A map on its way between host and device, region by region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moved {
    /// Bytes of all its regions.
    pub bytes: u64,
    /// Bytes of the first if they are fetched, of the last if they are stored.
    pub exposed_bytes: u64,
    /// Regions that pass a staging buffer: all or none.
    pub n_staged: u64,
}

/// What a tile loop copies in one direction.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    bytes_per_sec: f64,
    bytes: u64,
    exposed_bytes: u64,
    staging_secs: f64,
}

/// What a tile loop does, by channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Channels {
    /// Seconds of kernels and of copies within the device.
    pub compute_secs: f64,
    /// From host to device.
    pub h2d: Link,
    /// From device to host.
    pub d2h: Link,
}

impl Link {
    fn new(bytes_per_sec: f64) -> Self {
        Link {
            bytes_per_sec,
            bytes: 0,
            exposed_bytes: 0,
            staging_secs: 0.0,
        }
    }

    /// Bytes of all copies.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Seconds of all copies.
    pub fn secs(&self) -> f64 {
        self.bytes as f64 / self.bytes_per_sec
    }

    /// Of these, what no kernel can run beside: of the first regions fetched, or the
    /// last stored.
    fn exposed_secs(&self) -> f64 {
        self.exposed_bytes as f64 / self.bytes_per_sec
    }
}

impl Channels {
    /// A loop that computes for `compute_secs` and copies nothing yet.
    pub fn new(machine: &Machine, compute_secs: f64) -> Self {
        Channels {
            compute_secs,
            h2d: Link::new(machine.h2d_bytes_per_sec),
            d2h: Link::new(machine.d2h_bytes_per_sec),
        }
    }

    /// Adds a map that is fetched from the host.
    pub fn fetch(&mut self, machine: &Machine, moved: Moved) {
        self.compute_secs += self.h2d.add(machine, moved);
    }

    /// Adds a map that is stored to the host.
    pub fn store(&mut self, machine: &Machine, moved: Moved) {
        self.compute_secs += self.d2h.add(machine, moved);
    }

    /// Seconds one after the other.
    pub fn in_turn_secs(&self) -> f64 {
        self.compute_secs + (self.h2d.secs() + self.d2h.secs())
    }

    /// Seconds beside each other, in `n_tiles` tiles: any channel may be the one that
    /// never waits. Never more than in turn, and the same for a single tile.
    pub fn overlapped_secs(&self, n_tiles: u64) -> f64 {
        let a_tile = self.compute_secs / n_tiles.max(1) as f64;
        let (first, last) = (self.h2d.exposed_secs(), self.d2h.exposed_secs());
        let by_compute = first + self.compute_secs + last;
        let by_h2d = self.h2d.secs() + self.h2d.staging_secs + a_tile + last;
        let by_d2h = first + a_tile + self.d2h.staging_secs + self.d2h.secs();
        by_compute.max(by_h2d).max(by_d2h).min(self.in_turn_secs())
    }
}

/// What a candidate takes by channel, as the search knows it: tiles alike, and without
/// the copies between staging buffers and windows, so never more than the schedule
/// finds.
#[derive(Clone, Copy, Debug)]
pub struct StageSecs {
    /// Of kernels, and of the disk: nothing runs beside that.
    in_turn: f64,
    compute: f64,
    h2d: f64,
    d2h: f64,
    /// If copies run beside its kernels; one otherwise.
    n_tiles: u64,
}

impl StageSecs {
    /// A candidate that copies nothing yet.
    pub fn new(candidate: &Candidate) -> Self {
        let tiles = candidate.grid.iter().map(|g| g.n_tiles() as u64);
        StageSecs {
            in_turn: 0.0,
            compute: candidate.secs,
            h2d: 0.0,
            d2h: 0.0,
            n_tiles: if candidate.prefetches {
                tiles.product()
            } else {
                1
            },
        }
    }

    /// Adds a map that is fetched from a tier.
    pub fn fetch(&mut self, tier: Tier, secs: f64) {
        match tier {
            Tier::Host => self.h2d += secs,
            Tier::Disk => self.in_turn += secs,
        }
    }

    /// Adds a map that is stored in a tier.
    pub fn store(&mut self, tier: Tier, secs: f64) {
        match tier {
            Tier::Host => self.d2h += secs,
            Tier::Disk => self.in_turn += secs,
        }
    }

    /// Seconds of all of it.
    pub fn secs(&self) -> f64 {
        let all = self.compute + self.h2d + self.d2h;
        let busiest = self.compute.max(self.h2d).max(self.d2h);
        // Of the others a tile's part is before or after.
        self.in_turn + busiest + (all - busiest) / self.n_tiles.max(1) as f64
    }
}

impl Link {
    /// Adds a map; the seconds of its copies between staging buffer and window.
    fn add(&mut self, machine: &Machine, moved: Moved) -> f64 {
        self.bytes += moved.bytes;
        self.exposed_bytes += moved.exposed_bytes;
        let secs = if moved.n_staged > 0 {
            machine.copy_secs(moved.bytes, moved.n_staged)
        } else {
            0.0
        };
        self.staging_secs += secs;
        secs
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9 * b.abs().max(1.0), "{a} is not {b}");
    }

    /// Seconds of a loop whose channels take as long as given, in equal parts.
    fn secs((compute_secs, h2d_secs, d2h_secs): (f64, u64, u64), n_tiles: u64) -> (f64, f64) {
        let link = |secs: u64| Link {
            bytes: 1000 * secs,
            exposed_bytes: 1000 * secs / n_tiles,
            ..Link::new(1000.0)
        };
        let channels = Channels {
            compute_secs,
            h2d: link(h2d_secs),
            d2h: link(d2h_secs),
        };
        (channels.overlapped_secs(n_tiles), channels.in_turn_secs())
    }

    #[test]
    fn the_busiest_channel_sets_the_pace() {
        // The first tile's copy, ten tiles of kernels, the last tile's copy.
        near(secs((10.0, 3, 2), 10).0, 0.3 + 10.0 + 0.2);
        // Ten tiles' copies, then the last tile's kernels and copy.
        near(secs((3.0, 10, 2), 10).0, 10.0 + 0.3 + 0.2);
        near(secs((3.0, 2, 10), 10).0, 0.2 + 0.3 + 10.0);
        near(secs((3.0, 0, 0), 10).0, 3.0);
    }

    #[test]
    fn a_single_tile_hides_nothing() {
        assert_eq!(secs((10.0, 3, 2), 1), (15.0, 15.0));
    }

    #[test]
    fn beside_each_other_is_never_slower_than_in_turn() {
        for n_tiles in [1, 2, 4, 100] {
            for (compute, h2d, d2h) in [(0.1, 10, 3), (5.0, 5, 5), (9.0, 1, 0), (0.0, 4, 8)] {
                let (beside, in_turn) = secs((compute, h2d, d2h), n_tiles);
                assert!(beside <= in_turn);
                assert!(beside >= compute && beside >= h2d as f64 && beside >= d2h as f64);
            }
        }
    }

    #[test]
    fn a_staging_buffer_is_busy_while_it_is_emptied() {
        let machine = Machine::cpu_default();
        let moved = Moved {
            bytes: 1 << 30,
            exposed_bytes: 1 << 20,
            n_staged: 1024,
        };
        let mut channels = Channels::new(&machine, 0.0);
        channels.fetch(&machine, moved);
        let link = moved.bytes as f64 / machine.h2d_bytes_per_sec;
        let within = machine.copy_secs(moved.bytes, moved.n_staged);
        near(channels.h2d.secs(), link);
        near(channels.compute_secs, within);
        // With nothing else to do, what cannot run beside each other adds up.
        near(channels.overlapped_secs(1024), link + within);
        let direct = Moved {
            n_staged: 0,
            ..moved
        };
        let mut channels = Channels::new(&machine, 1.0);
        channels.store(&machine, direct);
        near(channels.compute_secs, 1.0);
        near(
            channels.d2h.secs(),
            moved.bytes as f64 / machine.d2h_bytes_per_sec,
        );
    }
}
