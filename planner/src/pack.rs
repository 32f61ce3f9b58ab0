//! Lifetimes to offsets in one arena: dynamic storage allocation.
//!
//! Reads sizes and live intervals; writes offsets. Buffers that are live
//! together never overlap. Best of a few greedy orders, each placing a buffer
//! at the lowest offset that is free throughout its life; none is optimal in
//! general, so the caller compares the result with the cap and asks for a
//! smaller plan if it does not fit.

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

/// Offsets for each request, and the largest end offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Offset of each request in bytes.
    pub offsets: Vec<u64>,
    /// Arena bytes needed.
    pub peak_bytes: u64,
}

/// Packs `requests`.
pub fn pack(requests: &[Request]) -> Packing {
    let bound = load(requests);
    let mut best: Option<Packing> = None;
    for key in [by_size, by_area, by_length] {
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(key(&requests[i])), i));
        let packing = place(requests, &order);
        if best
            .as_ref()
            .is_none_or(|b| packing.peak_bytes < b.peak_bytes)
        {
            best = Some(packing);
        }
        if best.as_ref().is_some_and(|b| b.peak_bytes <= bound) {
            break;
        }
    }
    best.unwrap_or(Packing {
        offsets: Vec::new(),
        peak_bytes: 0,
    })
}

/// Largest sum of sizes live at one tick: no packing needs less.
pub fn load(requests: &[Request]) -> u64 {
    let mut events: Vec<(u32, i64)> = Vec::with_capacity(requests.len() * 2);
    for r in requests {
        let bytes = r.bytes.next_multiple_of(ALIGN) as i64;
        events.push((r.live.0, bytes));
        events.push((r.live.1 + 1, -bytes));
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

fn by_size(r: &Request) -> (u64, u64) {
    (r.bytes, length(r))
}

fn by_area(r: &Request) -> (u64, u64) {
    (r.bytes.saturating_mul(length(r)), r.bytes)
}

fn by_length(r: &Request) -> (u64, u64) {
    (length(r), r.bytes)
}

fn place(requests: &[Request], order: &[usize]) -> Packing {
    let mut offsets = vec![0; requests.len()];
    // Placed requests by ascending offset.
    let mut placed: Vec<usize> = Vec::with_capacity(order.len());
    let mut peak_bytes = 0;
    for &i in order {
        let r = &requests[i];
        let bytes = r.bytes.next_multiple_of(ALIGN);
        let mut at = 0;
        for &j in &placed {
            let other = &requests[j];
            let meets = r.live.0 <= other.live.1 && other.live.0 <= r.live.1;
            if !meets || other.bytes == 0 {
                continue;
            }
            if at + bytes <= offsets[j] {
                break;
            }
            at = at.max(offsets[j] + other.bytes.next_multiple_of(ALIGN));
        }
        offsets[i] = at;
        peak_bytes = peak_bytes.max(at + bytes);
        let slot = placed.partition_point(|&j| offsets[j] <= at);
        placed.insert(slot, i);
    }
    Packing {
        offsets,
        peak_bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn packings_never_overlap(
            raw in prop::collection::vec((1u64..2000, 0u32..40, 0u32..20), 1..60)
        ) {
            let requests: Vec<Request> = raw
                .iter()
                .map(|&(bytes, from, len)| Request { bytes, live: (from, from + len) })
                .collect();
            let packing = pack(&requests);
            prop_assert!(packing.peak_bytes >= load(&requests));
            for i in 0..requests.len() {
                let end = packing.offsets[i] + requests[i].bytes;
                prop_assert!(end <= packing.peak_bytes);
                prop_assert_eq!(packing.offsets[i] % ALIGN, 0);
                for j in 0..i {
                    let (a, b) = (&requests[i], &requests[j]);
                    let together = a.live.0 <= b.live.1 && b.live.0 <= a.live.1;
                    let apart = end <= packing.offsets[j]
                        || packing.offsets[j] + b.bytes <= packing.offsets[i];
                    prop_assert!(!together || apart);
                }
            }
        }
    }
}
