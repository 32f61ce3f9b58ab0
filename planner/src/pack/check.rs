//! An independent judge of packings: every pair of buffers, looked at plainly.

use super::{Packing, Request};

/// What is wrong with a packing. Requests are positions in the input.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Flaw {
    /// Another number of offsets than of requests.
    #[error("there are {offsets} offsets for {requests} requests")]
    Count {
        /// Offsets given.
        offsets: usize,
        /// Requests to place.
        requests: usize,
    },
    /// An offset off the alignment.
    #[error("request {request} lies at {offset}, which is no multiple of {align}")]
    Misaligned {
        /// The request.
        request: usize,
        /// Its offset in bytes.
        offset: u64,
        /// The alignment in bytes.
        align: u64,
    },
    /// A request that ends above the peak that the packing claims.
    #[error("request {request} ends at {end}, above the peak of {peak_bytes} bytes")]
    Beyond {
        /// The request.
        request: usize,
        /// Where it ends, in bytes.
        end: u128,
        /// The claimed peak in bytes.
        peak_bytes: u64,
    },
    /// Two requests that are live together and share a byte.
    #[error("requests {a} and {b} are live together and overlap")]
    Overlap {
        /// The earlier one in the input.
        a: usize,
        /// The later one.
        b: usize,
    },
}

/// Checks that a packing is one.
///
/// # Errors
/// The first [`Flaw`] found.
pub fn check(requests: &[Request], align: u64, packing: &Packing) -> Result<(), Flaw> {
    if requests.len() != packing.offsets.len() {
        return Err(Flaw::Count {
            offsets: packing.offsets.len(),
            requests: requests.len(),
        });
    }
    let end = |i: usize| u128::from(packing.offsets[i]) + u128::from(requests[i].bytes);
    for (i, &offset) in packing.offsets.iter().enumerate() {
        if offset % align != 0 {
            return Err(Flaw::Misaligned {
                request: i,
                offset,
                align,
            });
        }
        if end(i) > u128::from(packing.peak_bytes) {
            return Err(Flaw::Beyond {
                request: i,
                end: end(i),
                peak_bytes: packing.peak_bytes,
            });
        }
    }
    for b in 0..requests.len() {
        for a in 0..b {
            let (first, second) = (&requests[a], &requests[b]);
            let together = first.live.0 <= second.live.1 && second.live.0 <= first.live.1;
            let sized = first.bytes > 0 && second.bytes > 0;
            let below = end(a) <= u128::from(packing.offsets[b]);
            let above = end(b) <= u128::from(packing.offsets[a]);
            if together && sized && !below && !above {
                return Err(Flaw::Overlap { a, b });
            }
        }
    }
    Ok(())
}
