//! Lifetimes to offsets in one arena: dynamic storage allocation.
//!
//! Reads sizes and live intervals; writes offsets. Buffers that are live
//! together never overlap. The sum of what is live at one tick is a bound that no
//! packing undercuts. [`pack`] tries a few greedy orders and, where they miss the
//! bound, a little exact search; [`fit`] searches for a given capacity as long as
//! it is told to. Neither depends on time, so the same requests always give the
//! same offsets. [`check`] judges a packing and shares nothing with what made it.

mod check;
mod greedy;
mod restarts;
mod search;
mod sections;

pub use check::{Flaw, check};

use search::End;
use sections::Sections;

/// Alignment of every buffer in bytes: a cache line, and enough for any SIMD.
pub const ALIGN: u64 = 64;

/// A buffer to place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// Size in bytes.
    pub bytes: u64,
    /// First and last tick at which it is live, inclusive.
    pub live: (u32, u32),
}

impl Request {
    /// Whether both are live at some tick.
    fn meets(&self, other: &Request) -> bool {
        self.live.0 <= other.live.1 && other.live.0 <= self.live.1
    }
}

/// Offsets for each request, and the largest end offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Offset of each request in bytes.
    pub offsets: Vec<u64>,
    /// Arena bytes needed.
    pub peak_bytes: u64,
}

/// How [`fit`] ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fit {
    /// With a packing within the capacity.
    Packed(Packing),
    /// No packing exists within the capacity.
    Impossible,
    /// The nodes ran out: no proof of anything.
    GaveUp,
}

/// Work of the exact search inside [`pack`], in members of sections looked at.
const WORK: u64 = 4_000_000;
/// How often [`pack`] halves the distance between what it has and the bound.
const HALVINGS: usize = 4;

/// Packs `requests` at [`ALIGN`], in time fit for planning.
///
/// Where greedy orders miss the bound, an exact search with few nodes tries the
/// bound itself and then capacities above it.
pub fn pack(requests: &[Request]) -> Packing {
    let bound = load(requests, ALIGN);
    let mut best = greedy::greedy(requests, ALIGN, bound);
    if best.peak_bytes <= bound {
        return best;
    }
    let rest = Rest::new(requests, ALIGN);
    let members: usize = rest.sections.members.iter().map(Vec::len).sum();
    let nodes = WORK / (members as u64).max(1);
    let mut low = bound;
    let mut aim = bound;
    for _ in 0..HALVINGS {
        match rest.fit(requests, aim, nodes) {
            Fit::Packed(packing) => best = packing,
            Fit::Impossible | Fit::GaveUp => low = aim + ALIGN,
        }
        if best.peak_bytes <= low {
            break;
        }
        aim = low + (best.peak_bytes - low) / 2 / ALIGN * ALIGN;
    }
    best
}

/// Packs `requests` at `align` within `capacity` bytes, if it can be done with
/// `nodes` placements tried.
///
/// ```
/// use sstep_planner::pack::{Fit, Request, check, fit};
///
/// // Three buffers of which any two meet: they need the sum of their sizes.
/// let live = [(0, 2), (1, 4), (2, 3)];
/// let requests = live.map(|live| Request { bytes: 4, live });
/// let Fit::Packed(packing) = fit(&requests, 1, 12, 100) else {
///     panic!("they fit side by side");
/// };
/// assert_eq!(check(&requests, 1, &packing), Ok(()));
/// assert_eq!(fit(&requests, 1, 11, 100), Fit::Impossible);
/// ```
pub fn fit(requests: &[Request], align: u64, capacity: u64, nodes: u64) -> Fit {
    if load(requests, align) > capacity {
        return Fit::Impossible;
    }
    let packing = greedy::greedy(requests, align, capacity);
    if packing.peak_bytes <= capacity {
        return Fit::Packed(packing);
    }
    Rest::new(requests, align).fit(requests, capacity, nodes)
}

/// Largest sum of sizes live at one tick, each up to `align`: no packing needs
/// less.
pub fn load(requests: &[Request], align: u64) -> u64 {
    let mut events: Vec<(u64, i128)> = Vec::with_capacity(requests.len() * 2);
    for r in requests {
        let bytes = i128::from(aligned(r.bytes, align));
        events.push((u64::from(r.live.0), bytes));
        events.push((u64::from(r.live.1) + 1, -bytes));
    }
    events.sort_unstable();
    let mut live = 0;
    let mut peak = 0;
    for (_, change) in events {
        live += change;
        peak = peak.max(live);
    }
    peak as u64
}

fn length(r: &Request) -> u64 {
    u64::from(r.live.1 - r.live.0) + 1
}

fn aligned(bytes: u64, align: u64) -> u64 {
    bytes.next_multiple_of(align)
}

/// What is left to search for once the obvious is placed: what is live
/// throughout lies at the bottom, what has no size anywhere.
struct Rest {
    /// Offset of each request that is already placed.
    settled: Vec<Option<u64>>,
    /// Bytes at the bottom that are taken.
    base: u64,
    /// Positions of the others.
    open: Vec<usize>,
    requests: Vec<Request>,
    sections: Sections,
    /// What all sizes are multiples of, in bytes.
    unit: u64,
    align: u64,
}

impl Rest {
    fn new(requests: &[Request], align: u64) -> Rest {
        let sized = || requests.iter().filter(|r| r.bytes > 0);
        let always = (
            sized().map(|r| r.live.0).min().unwrap_or(0),
            sized().map(|r| r.live.1).max().unwrap_or(0),
        );
        let mut base = 0;
        let mut settled = vec![None; requests.len()];
        let mut open = Vec::new();
        for (i, r) in requests.iter().enumerate() {
            if r.bytes == 0 {
                settled[i] = Some(0);
            } else if r.live == always {
                settled[i] = Some(base);
                base += aligned(r.bytes, align);
            } else {
                open.push(i);
            }
        }
        let requests: Vec<Request> = open.iter().map(|&i| requests[i]).collect();
        let sections = Sections::new(&requests, align);
        let unit = sections.bytes.iter().fold(0, |a, &b| divisor(a, b)).max(1);
        Rest {
            settled,
            base,
            open,
            requests,
            sections,
            unit,
            align,
        }
    }

    /// `all` are the requests that this was made of.
    fn fit(&self, all: &[Request], capacity: u64, nodes: u64) -> Fit {
        let Some(room) = capacity.checked_sub(self.base) else {
            return Fit::Impossible;
        };
        let room = room / self.unit * self.unit;
        let offsets = match restarts::search(&self.requests, &self.sections, room, nodes) {
            Ok(offsets) => offsets,
            Err((End::Impossible, _)) => return Fit::Impossible,
            Err(_) => return Fit::GaveUp,
        };
        let mut all_offsets: Vec<u64> = self.settled.iter().map(|s| s.unwrap_or(0)).collect();
        for (&i, offset) in self.open.iter().zip(offsets) {
            all_offsets[i] = self.base + offset;
        }
        let ends = all_offsets.iter().zip(all);
        let peak_bytes = (ends.map(|(o, r)| o + aligned(r.bytes, self.align)).max()).unwrap_or(0);
        Fit::Packed(Packing {
            offsets: all_offsets,
            peak_bytes,
        })
    }
}

/// Greatest common divisor.
fn divisor(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { divisor(b, a % b) }
}
