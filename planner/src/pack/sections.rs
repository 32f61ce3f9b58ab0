//! The cross-sections of a packing: which buffers must lie beside each other.
//!
//! Lifetimes are intervals, so the largest sets of buffers that are live
//! together (cliques) are few and follow one another in time, and each buffer
//! belongs to consecutive ones. A packing is right if it is right in each of
//! these *sections*: they replace time in the search.

use super::{Request, aligned};

/// Requests by sections: see the [module](self).
#[derive(Clone, Debug)]
pub(super) struct Sections {
    /// Size of each request in bytes, up to alignment.
    pub bytes: Vec<u64>,
    /// First and last section of each request.
    pub span: Vec<(usize, usize)>,
    /// Requests of each section, by index.
    pub members: Vec<Vec<usize>>,
}

impl Sections {
    /// The sections of `requests`, all of which have a size.
    pub fn new(requests: &[Request], align: u64) -> Sections {
        let mut starts: Vec<usize> = (0..requests.len()).collect();
        starts.sort_by_key(|&i| (requests[i].live.0, i));
        let mut span = vec![(0, 0); requests.len()];
        let mut members: Vec<Vec<usize>> = Vec::new();
        let mut live: Vec<usize> = Vec::new();
        let mut next = 0;
        // A section is full when the next event is an end after a start.
        while next < starts.len() {
            let start = requests[starts[next]].live.0;
            if live.iter().any(|&i| requests[i].live.1 < start) {
                close(&live, &mut span, &mut members);
                live.retain(|&i| requests[i].live.1 >= start);
            }
            while next < starts.len() && requests[starts[next]].live.0 == start {
                span[starts[next]].0 = members.len();
                live.push(starts[next]);
                next += 1;
            }
        }
        if !live.is_empty() {
            close(&live, &mut span, &mut members);
        }
        let bytes = requests.iter().map(|r| aligned(r.bytes, align)).collect();
        Sections {
            bytes,
            span,
            members,
        }
    }
}

fn close(live: &[usize], span: &mut [(usize, usize)], members: &mut Vec<Vec<usize>>) {
    let mut section = live.to_vec();
    section.sort_unstable();
    for &b in &section {
        span[b].1 = members.len();
    }
    members.push(section);
}
