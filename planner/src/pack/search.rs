//! Exact packing: a depth-first search that fills the arena from below.
//!
//! Every packing can be pushed down until each buffer rests on the ground or on
//! another one, so it is enough to look for such packings. In each section the
//! space below its *floor* is settled. The search takes a niche, a run of
//! sections whose floor is lower than that of both neighbours, and in it the
//! section with the fewest choices: one of its buffers lies right on the floor,
//! or none does and the floor rises to where the lowest of them could rest.
//!
//! A branch ends where some section cannot hold what is still to come: its
//! buffers, each not below its lower bound, end above the capacity when stacked
//! in the order of these bounds. Bounds follow floors and floors follow bounds,
//! until nothing moves. States that failed are remembered, so that another order
//! of the same placements is not tried. Once no open buffer joins two parts of the
//! timeline they are solved apart.
//!
//! The idea of settling space from below, of inferring per section and of
//! solving parts apart is from MiniMalloc (Moffitt, ASPLOS 2023) and TelaMalloc
//! (Maas et al., ASPLOS 2023); branching on the section with the fewest choices
//! and the memory of failures are ours.

use std::cmp::Reverse;

use super::sections::Sections;

/// How a search ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// With a packing.
    Packed,
    /// No packing exists.
    Impossible,
    /// The nodes ran out.
    OutOfNodes,
}

/// A search for one capacity: see the [module](self).
pub(super) struct Search<'a> {
    sections: &'a Sections,
    capacity: u64,
    /// Height below which all is settled, per section.
    floor: Vec<u64>,
    /// Bytes still to come, per section.
    open_bytes: Vec<u64>,
    /// Members of each section; the first `n_open` are still to come.
    members: Vec<Vec<usize>>,
    n_open: Vec<usize>,
    /// Least offset of each request; its offset once placed.
    least: Vec<u64>,
    trail: Vec<Undo>,
    /// Open members of each section whose lower bound is its floor.
    at_floor: Vec<usize>,
    /// Sections whose floor has risen, or that no open member may lie on.
    queue: Vec<usize>,
    is_queued: Vec<bool>,
    /// Sections in which something has moved since they were checked.
    touched: Vec<usize>,
    is_touched: Vec<bool>,
    /// Whether a floor is so high that its section cannot hold the rest.
    overfull: bool,
    /// Open requests that join a section and the next.
    joins: Vec<usize>,
    /// States without a packing.
    failed: Vec<u128>,
    /// Rank of each request: smaller is tried first.
    rank: Vec<usize>,
    nodes_left: u64,
    /// Decisions on the way to the present state.
    depth: usize,
    /// Sum of the keys of open requests, by their first section.
    keys: Vec<u128>,
    scratch: Vec<(u64, u64)>,
}

#[derive(Clone, Copy, Debug)]
enum Undo {
    Floor {
        section: usize,
        old: u64,
        old_at_floor: usize,
    },
    Least {
        request: usize,
        old: u64,
    },
    Place {
        request: usize,
    },
}

/// States remembered, a power of two. The table forgets by overwriting.
const MEMORY: usize = 1 << 18;
/// Most decisions on one path: they are nested calls, and stacks are finite.
const DEPTH: usize = 3000;

impl<'a> Search<'a> {
    /// Nothing placed yet.
    pub fn new(sections: &'a Sections, capacity: u64) -> Self {
        let (n, n_sections) = (sections.bytes.len(), sections.members.len());
        Search {
            sections,
            capacity,
            floor: vec![0; n_sections],
            open_bytes: vec![0; n_sections],
            members: Vec::new(),
            n_open: Vec::new(),
            least: vec![0; n],
            trail: Vec::new(),
            at_floor: vec![0; n_sections],
            queue: Vec::new(),
            is_queued: vec![false; n_sections],
            touched: Vec::new(),
            is_touched: vec![false; n_sections],
            overfull: false,
            joins: vec![0; n_sections],
            failed: vec![0; MEMORY],
            rank: Vec::new(),
            nodes_left: 0,
            depth: 0,
            keys: vec![0; n_sections],
            scratch: Vec::new(),
        }
    }

    /// Searches with at most `nodes` placements, trying requests of smaller
    /// `rank` first. What earlier runs have proved impossible stays known.
    pub fn run(&mut self, rank: Vec<usize>, nodes: u64) -> End {
        self.floor.fill(0);
        self.least.fill(0);
        self.trail.clear();
        self.members.clone_from(&self.sections.members);
        self.n_open = self.members.iter().map(Vec::len).collect();
        self.joins.fill(0);
        for &(first, last) in &self.sections.span {
            for s in first..last {
                self.joins[s] += 1;
            }
        }
        for s in 0..self.members.len() {
            self.open_bytes[s] = self.members[s]
                .iter()
                .map(|&b| self.sections.bytes[b])
                .sum();
            self.at_floor[s] = self.n_open[s];
            self.touch(s);
        }
        self.keys.fill(0);
        for b in 0..self.least.len() {
            self.count(b);
        }
        self.rank = rank;
        self.nodes_left = nodes;
        self.depth = 0;
        if !self.propagate() {
            return End::Impossible;
        }
        match self.members.len() {
            0 => End::Packed,
            n => self.solve(0, n - 1),
        }
    }

    /// Nodes that the last run has left over.
    pub fn nodes_left(&self) -> u64 {
        self.nodes_left
    }

    /// Offsets, after a run that packed.
    pub fn offsets(&self) -> &[u64] {
        &self.least
    }

    /// Solves the parts of sections `first..=last` that no open request joins.
    fn solve(&mut self, first: usize, last: usize) -> End {
        let mut from = first;
        for s in first..=last {
            if s < last && self.joins[s] > 0 {
                continue;
            }
            let begin = std::mem::replace(&mut from, s + 1);
            if self.n_open[begin] > 0 {
                let end = self.part(begin, s);
                if end != End::Packed {
                    return end;
                }
            }
        }
        End::Packed
    }

    /// Solves sections that open requests join.
    fn part(&mut self, first: usize, last: usize) -> End {
        if self.nodes_left == 0 {
            return End::OutOfNodes;
        }
        let state = self.state(first, last);
        let slot = (state as usize) % MEMORY;
        if self.failed[slot] == state {
            return End::Impossible;
        }
        let section = self.narrowest(first, last);
        let height = self.floor[section];
        let mark = self.trail.len();
        for request in self.candidates(section) {
            if self.nodes_left == 0 || self.depth == DEPTH {
                return End::OutOfNodes;
            }
            self.nodes_left -= 1;
            self.place(request, height);
            let end = self.descend(first, last);
            if end != End::Impossible {
                return end;
            }
            self.undo(mark);
        }
        if self.leave_gap(section) {
            let end = self.descend(first, last);
            if end != End::Impossible {
                return end;
            }
            self.undo(mark);
        }
        self.failed[slot] = state;
        End::Impossible
    }

    /// What follows from the decision just taken, and all further ones.
    fn descend(&mut self, first: usize, last: usize) -> End {
        if !self.propagate() {
            return End::Impossible;
        }
        self.depth += 1;
        let end = self.solve(first, last);
        self.depth -= 1;
        end
    }

    /// The section of a niche with the fewest choices; of those the highest, then
    /// the one with the least room.
    fn narrowest(&self, first: usize, last: usize) -> usize {
        let mut best = (usize::MAX, Reverse(0), u64::MAX, first);
        let mut from = first;
        while from <= last {
            let height = self.floor[from];
            let mut to = from;
            while to < last && self.floor[to + 1] == height {
                to += 1;
            }
            let walled = (from == first || self.floor[from - 1] > height)
                && (to == last || self.floor[to + 1] > height);
            if walled {
                for s in from..=to {
                    let room = self.capacity - height - self.open_bytes[s];
                    let choices = self.at_floor[s] + usize::from(room > 0);
                    best = best.min((choices, Reverse(height), room, s));
                }
            }
            from = to + 1;
        }
        best.3
    }

    fn open(&self, section: usize) -> &[usize] {
        &self.members[section][..self.n_open[section]]
    }

    /// Requests that may lie on the floor of a section, most promising first. Of
    /// equal ones only one.
    fn candidates(&self, section: usize) -> Vec<usize> {
        let height = self.floor[section];
        let mut found: Vec<usize> = (self.open(section).iter().copied())
            .filter(|&b| self.least[b] == height)
            .collect();
        found.sort_unstable_by_key(|&b| self.rank[b]);
        let kind = |b: usize| (self.sections.span[b], self.sections.bytes[b]);
        let all = found.clone();
        let mut at = 0;
        found.retain(|&b| {
            at += 1;
            all[..at - 1].iter().all(|&a| kind(a) != kind(b))
        });
        found
    }

    fn place(&mut self, request: usize, offset: u64) {
        self.set_least(request, offset);
        self.discount(request);
        self.trail.push(Undo::Place { request });
        let bytes = self.sections.bytes[request];
        let (first, last) = self.sections.span[request];
        for s in first..=last {
            let at = self.open(s).iter().position(|&b| b == request);
            let at = at.expect("an open request is a member of its sections");
            self.n_open[s] -= 1;
            let back = self.n_open[s];
            self.members[s].swap(at, back);
            self.open_bytes[s] -= bytes;
            self.at_floor[s] -= 1;
            self.set_floor(s, offset + bytes);
            if s < last {
                self.joins[s] -= 1;
            }
        }
    }

    /// Decides that no request lies on the floor of a section: raises the floor
    /// to where the lowest could rest. `false` if there is no room for that.
    fn leave_gap(&mut self, section: usize) -> bool {
        let height = self.floor[section];
        let room = self.capacity - height - self.open_bytes[section];
        if room == 0 {
            return false;
        }
        // Where each could rest on a request that is not in this section.
        let rest = |b: usize| {
            if self.least[b] > height {
                return self.least[b];
            }
            let (first, last) = self.sections.span[b];
            let mut lowest = u64::MAX;
            for s in first..=last {
                for &c in self.open(s) {
                    let (from, to) = self.sections.span[c];
                    if !(from..=to).contains(&section) {
                        lowest = lowest.min(self.least[c] + self.sections.bytes[c]);
                    }
                }
            }
            lowest
        };
        let rests: Vec<(usize, u64)> = self.open(section).iter().map(|&b| (b, rest(b))).collect();
        let lowest = rests.iter().map(|r| r.1).min().unwrap_or(u64::MAX);
        if lowest > height + room {
            return false;
        }
        let bytes = |b: usize| self.sections.bytes[b];
        let sizes = rests.iter().map(|r| bytes(r.0));
        let smallest = sizes.min().unwrap_or(0);
        for &(b, rest) in &rests {
            let bound = rest.min(lowest + smallest).max(self.least[b]);
            self.set_least(b, bound);
        }
        self.set_floor(section, lowest);
        true
    }

    fn set_floor(&mut self, section: usize, height: u64) {
        let old = std::mem::replace(&mut self.floor[section], height);
        let old_at_floor = self.at_floor[section];
        self.trail.push(Undo::Floor {
            section,
            old,
            old_at_floor,
        });
        let at_floor = (self.open(section).iter()).filter(|&&b| self.least[b] == height);
        self.at_floor[section] = at_floor.count();
        self.overfull |= height + self.open_bytes[section] > self.capacity;
        self.enqueue(section);
        self.touch(section);
    }

    fn set_least(&mut self, request: usize, offset: u64) {
        if self.least[request] == offset {
            return;
        }
        let old = self.least[request];
        self.trail.push(Undo::Least { request, old });
        self.move_least(request, offset);
        let (first, last) = self.sections.span[request];
        for s in first..=last {
            self.touch(s);
            if self.at_floor[s] == 0 {
                self.enqueue(s);
            }
        }
    }

    /// Moves a lower bound, and what is counted by it.
    fn move_least(&mut self, request: usize, offset: u64) {
        self.discount(request);
        let old = std::mem::replace(&mut self.least[request], offset);
        self.count(request);
        let (first, last) = self.sections.span[request];
        for s in first..=last {
            self.at_floor[s] -= usize::from(old == self.floor[s]);
            self.at_floor[s] += usize::from(offset == self.floor[s]);
        }
    }

    /// Notes that a section is to be lifted.
    fn enqueue(&mut self, section: usize) {
        if !std::mem::replace(&mut self.is_queued[section], true) {
            self.queue.push(section);
        }
    }

    /// Notes that a section is to be checked.
    fn touch(&mut self, section: usize) {
        if !std::mem::replace(&mut self.is_touched[section], true) {
            self.touched.push(section);
        }
    }

    /// Lets floors and lower bounds follow one another. `false` if a section
    /// cannot hold what is still to come.
    fn propagate(&mut self) -> bool {
        while let Some(s) = self.queue.pop() {
            self.is_queued[s] = false;
            if !self.overfull {
                self.lift(s);
            }
        }
        let mut holds = !std::mem::take(&mut self.overfull);
        while let Some(s) = self.touched.pop() {
            self.is_touched[s] = false;
            holds = holds && self.stacks(s);
        }
        holds
    }

    /// Lifts the members of a section to its floor, and the floor to the lowest.
    fn lift(&mut self, section: usize) {
        let height = self.floor[section];
        let mut lowest = u64::MAX;
        for at in 0..self.n_open[section] {
            let b = self.members[section][at];
            if self.least[b] < height {
                self.set_least(b, height);
            }
            lowest = lowest.min(self.least[b]);
        }
        if lowest > height && self.n_open[section] > 0 {
            self.set_floor(section, lowest);
        }
    }

    /// Whether the open members of a section can be stacked below the capacity:
    /// in the order of their bounds, which is best.
    fn stacks(&mut self, section: usize) -> bool {
        // Those at the bottom leave no gap; above them no gap is longer in all
        // than what the highest bound sticks out.
        let lowest = self.floor[section];
        let (mut ground, mut highest) = (lowest, lowest);
        for &b in self.open(section) {
            let least = self.least[b];
            if least == lowest {
                ground += self.sections.bytes[b];
            }
            highest = highest.max(least);
        }
        let gap = highest.saturating_sub(ground);
        if lowest + self.open_bytes[section] + gap <= self.capacity {
            return true;
        }
        let mut stack = std::mem::take(&mut self.scratch);
        stack.clear();
        let open = self.open(section).iter();
        stack.extend(open.map(|&b| (self.least[b], self.sections.bytes[b])));
        stack.sort_unstable();
        let top = (stack.iter()).fold(0, |top: u64, &(least, bytes)| top.max(least) + bytes);
        self.scratch = stack;
        top <= self.capacity
    }

    fn undo(&mut self, mark: usize) {
        while self.trail.len() > mark {
            match self.trail.pop().expect("longer than the mark") {
                Undo::Floor {
                    section,
                    old,
                    old_at_floor,
                } => {
                    self.floor[section] = old;
                    self.at_floor[section] = old_at_floor;
                }
                Undo::Least { request, old } => self.move_least(request, old),
                Undo::Place { request } => {
                    self.count(request);
                    let (first, last) = self.sections.span[request];
                    for s in first..=last {
                        self.n_open[s] += 1;
                        self.at_floor[s] += 1;
                        self.open_bytes[s] += self.sections.bytes[request];
                        if s < last {
                            self.joins[s] += 1;
                        }
                    }
                }
            }
        }
    }

    /// What is open between two sections and how low it may lie: all that
    /// decides whether it can be packed, as a sum of keys.
    fn state(&self, first: usize, last: usize) -> u128 {
        let keys = self.keys[first..=last].iter();
        keys.fold(0, |sum, &key| sum.wrapping_add(key))
    }

    /// Counts an open request into the state.
    fn count(&mut self, request: usize) {
        let sum = &mut self.keys[self.sections.span[request].0];
        *sum = sum.wrapping_add(key(request, self.least[request]));
    }

    fn discount(&mut self, request: usize) {
        let sum = &mut self.keys[self.sections.span[request].0];
        *sum = sum.wrapping_sub(key(request, self.least[request]));
    }
}

/// A well-spread key of a request and its lower bound (splitmix64, twice).
fn key(request: usize, least: u64) -> u128 {
    let mix = |key: u64| {
        let key = (key ^ key >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let key = (key ^ key >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        key ^ key >> 31
    };
    let seed = (request as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ least;
    u128::from(mix(seed)) | u128::from(mix(seed ^ 0x6a09_e667_f3bc_c909)) << 64
}
