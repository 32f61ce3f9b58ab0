//! Packing in one pass: each buffer at the lowest offset that is free
//! throughout its life, in a given order.

use std::cmp::Reverse;

use super::{Packing, Request, aligned, length};

/// The best of a few orders: largest first, largest area first, longest life
/// first. Stops at one that needs no more than `bound` bytes.
pub(super) fn greedy(requests: &[Request], align: u64, bound: u64) -> Packing {
    let mut best: Option<Packing> = None;
    for key in [by_size, by_area, by_length] {
        let mut order: Vec<usize> = (0..requests.len()).collect();
        order.sort_by_key(|&i| (Reverse(key(&requests[i])), i));
        let packing = place(requests, align, &order);
        if (best.as_ref()).is_none_or(|b| packing.peak_bytes < b.peak_bytes) {
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

fn by_size(r: &Request) -> (u64, u64) {
    (r.bytes, length(r))
}

fn by_area(r: &Request) -> (u64, u64) {
    (r.bytes.saturating_mul(length(r)), r.bytes)
}

fn by_length(r: &Request) -> (u64, u64) {
    (length(r), r.bytes)
}

fn place(requests: &[Request], align: u64, order: &[usize]) -> Packing {
    let mut offsets = vec![0; requests.len()];
    // Placed requests by ascending offset.
    let mut placed: Vec<usize> = Vec::with_capacity(order.len());
    let mut peak_bytes = 0;
    for &i in order {
        let r = &requests[i];
        let bytes = aligned(r.bytes, align);
        let mut at = 0;
        for &j in &placed {
            let other = &requests[j];
            if !r.meets(other) || other.bytes == 0 {
                continue;
            }
            if at + bytes <= offsets[j] {
                break;
            }
            at = at.max(offsets[j] + aligned(other.bytes, align));
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
