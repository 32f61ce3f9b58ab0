//! Who makes each map of a path, and who reads it when.
//!
//! A path is changed one level at a time, so its uses are kept beside it and only
//! what the level touches is written anew.

use std::ops::Range;

use super::{Access, Space, TierSecs};
use crate::plan::Tier;

/// One use of a map on a path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use {
    pub(super) from: usize,
    /// Last segment of the stage that reads it.
    pub(super) at: usize,
    pub(super) copy_secs: TierSecs,
    pub(super) credit: f64,
    /// Whether it is no stage's, but that of the one who asked for an output.
    pub(super) is_output: bool,
}

impl Use {
    /// Of a stage that covers the segments `from..to`.
    pub(super) fn new(access: &Access, from: usize, to: usize) -> Use {
        Use {
            from,
            at: to - 1,
            copy_secs: access.copy_secs,
            credit: access.credit,
            is_output: false,
        }
    }

    /// Whether it is one of a stage that begins in these segments.
    pub(super) fn is_in(&self, level: &Range<usize>) -> bool {
        !self.is_output && level.contains(&self.from)
    }
}

/// The stage that makes a map on a path.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Maker {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) credit: f64,
    /// Whether it stores the map; who reads it had better not otherwise.
    pub(super) stores: bool,
}

/// Uses of every map on a path.
pub(super) struct Uses {
    /// Of each map, in the order of the path.
    pub(super) of: Vec<Vec<Use>>,
    pub(super) maker: Vec<Maker>,
}

/// A path, and the uses of its maps.
pub(super) struct Path {
    /// Candidates in order.
    pub(super) stages: Vec<usize>,
    pub(super) uses: Uses,
    /// How often it has changed.
    changes: u64,
    /// At which change each map's uses or maker did last.
    changed: Vec<u64>,
}

impl Path {
    /// Counts a change; later ones are told from it by [`Path::is_same`].
    pub(super) fn mark(&self) -> u64 {
        self.changes
    }

    /// Whether nothing about a map has changed since a mark.
    pub(super) fn is_same(&self, map: usize, mark: u64) -> bool {
        self.changed[map] <= mark
    }
}

impl Space<'_> {
    /// The uses of a path's maps.
    pub(super) fn uses(&self, path: &[usize]) -> Uses {
        let mut uses = Uses {
            of: vec![Vec::new(); self.maps.len()],
            maker: (0..self.maps.len()).map(|m| self.no_maker(m)).collect(),
        };
        for &c in path {
            self.make(&mut uses, c);
            let (from, to) = (self.candidates[c].from, self.candidates[c].to);
            for a in self.accesses[c].iter().filter(|a| a.reads) {
                uses.of[a.map].push(Use::new(a, from, to));
            }
        }
        let end = self.held.len().saturating_sub(1);
        for (m, map) in self.maps.iter().enumerate() {
            if map.is_output {
                uses.of[m].push(Use {
                    from: end,
                    at: end,
                    copy_secs: [0.0; Tier::COUNT],
                    credit: 0.0,
                    is_output: true,
                });
            }
        }
        uses
    }

    /// A path with the uses of its maps.
    pub(super) fn path(&self, stages: Vec<usize>) -> Path {
        Path {
            uses: self.uses(&stages),
            stages,
            changes: 0,
            changed: vec![0; self.maps.len()],
        }
    }

    /// Replaces what covers a level; gives what covered it before.
    pub(super) fn replace(&self, path: &mut Path, level: usize, way: &[usize]) -> Vec<usize> {
        let range = &self.levels[level];
        let before = |end: usize| move |c: &usize| self.candidates[*c].from < end;
        let first = path.stages.partition_point(before(range.start));
        let last = path.stages.partition_point(before(range.end));
        if path.stages[first..last] == *way {
            return way.to_vec();
        }
        let old: Vec<usize> = path
            .stages
            .splice(first..last, way.iter().copied())
            .collect();
        path.changes += 1;
        let uses = &mut path.uses;
        for &c in &old {
            for a in &self.accesses[c] {
                path.changed[a.map] = path.changes;
                if a.reads {
                    uses.of[a.map].retain(|u| !u.is_in(range));
                } else {
                    uses.maker[a.map] = self.no_maker(a.map);
                }
            }
            for &m in &self.unstored[c] {
                path.changed[m] = path.changes;
                uses.maker[m] = self.no_maker(m);
            }
        }
        for &c in way {
            self.make(uses, c);
            let (from, to) = (self.candidates[c].from, self.candidates[c].to);
            for a in &self.accesses[c] {
                path.changed[a.map] = path.changes;
                if a.reads {
                    let of = &mut uses.of[a.map];
                    let at = of.partition_point(|u| !u.is_output && u.from < to);
                    of.insert(at, Use::new(a, from, to));
                }
            }
            for &m in &self.unstored[c] {
                path.changed[m] = path.changes;
            }
        }
        old
    }

    /// Notes what a candidate makes.
    fn make(&self, uses: &mut Uses, c: usize) {
        for &m in &self.unstored[c] {
            uses.maker[m].stores = false;
        }
        for a in self.accesses[c].iter().filter(|a| !a.reads) {
            uses.maker[a.map] = Maker {
                from: self.candidates[c].from,
                to: self.candidates[c].to,
                credit: a.credit,
                stores: true,
            };
        }
    }

    /// What is supposed of a map's maker while none is on the path.
    fn no_maker(&self, map: usize) -> Maker {
        let made = self.maps[map].made;
        Maker {
            from: made,
            to: made + 1,
            credit: 0.0,
            stores: true,
        }
    }
}
