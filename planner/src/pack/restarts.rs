//! Exact packing in many short searches.
//!
//! How long a search takes depends wildly on the order in which buffers are
//! tried: most packings are found within a few nodes per buffer, or not for
//! ages. So the search starts over again and again, with the buffers ordered by
//! size, by area or by lifetime under a noise that a fixed seed decides, and
//! with node limits in Luby's sequence (Luby, Sinclair and Zuckerman, 1993), which
//! is within a logarithmic factor of the best limits that one could have chosen.
//! What one search has proved impossible the next ones know.

use std::cmp::Ordering;

use super::search::{End, Search};
use super::sections::Sections;
use super::{Request, length};

/// Nodes of the shortest search, per request.
const NODES_PER_REQUEST: u64 = 2;
/// Noise of the logarithm of a request's size, area or lifetime, once every
/// order has been tried without.
const NOISE: f64 = 1.5;

/// Offsets for `requests`, which `sections` describes, below `capacity` bytes;
/// `Err` says how the search ended instead, and after how many nodes.
pub(super) fn search(
    requests: &[Request],
    sections: &Sections,
    capacity: u64,
    nodes: u64,
) -> Result<Vec<u64>, (End, u64)> {
    let orders: [fn(&Request) -> f64; 3] = [
        |r| (r.bytes as f64).ln(),
        |r| (r.bytes as f64).ln() + (length(r) as f64).ln(),
        |r| (length(r) as f64).ln(),
    ];
    let mut search = Search::new(sections, capacity);
    let mut noise = Noise(1);
    let mut used = 0;
    for round in 0.. {
        let limit = NODES_PER_REQUEST * requests.len() as u64 * luby(round + 1);
        for order in orders {
            let spread = if round == 0 { 0.0 } else { NOISE };
            let worth = |r: &Request| order(r) + 1e-9 * r.bytes as f64;
            let worths: Vec<f64> = (requests.iter())
                .map(|r| worth(r) + spread * noise.next())
                .collect();
            let limit = limit.min(nodes - used);
            let end = search.run(ranks(&worths), limit);
            used += limit - search.nodes_left();
            match end {
                End::Packed => return Ok(search.offsets().to_vec()),
                End::Impossible => return Err((end, used)),
                End::OutOfNodes if used == nodes => return Err((end, used)),
                // Stuck for another reason than nodes: another try gets no further.
                End::OutOfNodes if search.nodes_left() > 0 => return Err((end, used)),
                End::OutOfNodes => {}
            }
        }
    }
    Err((End::OutOfNodes, used))
}

/// Position of each request when the worthiest come first.
fn ranks(worths: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..worths.len()).collect();
    order.sort_by(|&a, &b| match worths[b].total_cmp(&worths[a]) {
        Ordering::Equal => a.cmp(&b),
        unequal => unequal,
    });
    let mut ranks = vec![0; worths.len()];
    for (rank, &i) in order.iter().enumerate() {
        ranks[i] = rank;
    }
    ranks
}

/// Luby's sequence from its first element on: 1 1 2 1 1 2 4 1 1 2 …
fn luby(mut i: u64) -> u64 {
    loop {
        let bits = u64::BITS - i.leading_zeros();
        if i == (1 << bits) - 1 {
            return 1 << (bits - 1);
        }
        i -= (1 << (bits - 1)) - 1;
    }
}

/// Numbers in (-1, 1), triangular about 0, from splitmix64.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.uniform() + self.uniform() - 1.0
    }

    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ z >> 31) as f64 / 2f64.powi(64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_follow_luby() {
        let first: Vec<u64> = (1..=15).map(luby).collect();
        assert_eq!(first, [1, 1, 2, 1, 1, 2, 4, 1, 1, 2, 1, 1, 2, 4, 8]);
    }
}
