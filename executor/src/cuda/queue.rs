//! Kernels on their way to the compute stream.
//!
//! Calls are collected and given together: when they are many, when another stream is to
//! be ordered with them, or when one of them must wait for another stream. So a batch is
//! a run of kernels with nothing between them, and where the next step has the same
//! batch, one launch of a graph does for all of it (`graphs`).

use sstep_kernels::cuda::{BLOCK_THREADS, Call, LibraryCall, Offer, Work};

use super::library::Taker;

/// Kernels that are collected at most: the device is to begin before the host has thought
/// of everything.
const MOST: usize = 256;

/// Threads of a multiprocessor at once.
const PROCESSOR_THREADS: u64 = 2048;

/// Multiply-adds of a library that a multiprocessor does in about the time of a launch.
const PROCESSOR_MULTIPLY_ADDS: u64 = 1 << 20;

/// A kernel of ours, or what a library takes.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "nearly all are kernels")]
pub(super) enum Piece {
    Kernel(Call),
    Library(Box<Offer>, Taker),
}

impl Piece {
    /// How often it fills a device of `n_processors`.
    fn waves(&self, n_processors: u64) -> f64 {
        let threads = BLOCK_THREADS as u64;
        let (work, at_once) = match self {
            Piece::Kernel(call) => {
                let blocks = match call.work {
                    Work::Items(n) => n.div_ceil(threads),
                    Work::Blocks(n) => n,
                };
                (blocks, PROCESSOR_THREADS / threads)
            }
            Piece::Library(offer, _) => (multiply_adds(&offer.call), PROCESSOR_MULTIPLY_ADDS),
        };
        work as f64 / (at_once * n_processors) as f64
    }
}

fn multiply_adds(call: &LibraryCall) -> u64 {
    match call {
        LibraryCall::Convolution(c) => {
            let product = |dims: &[i32]| dims.iter().map(|&n| n as u64).product::<u64>();
            let map = &c.shapes.map.dims;
            // Of every element of the map one per tap and channel of a group.
            product(map) * product(&c.shapes.filter[1..])
        }
        LibraryCall::Matmul(m) => m.shapes.m * m.shapes.n * m.shapes.k,
    }
}

/// Whether giving these takes about as long as doing them: most leave a part of the
/// device idle.
pub(super) fn is_launch_bound(pieces: &[Piece], n_processors: u64) -> bool {
    let waves: f64 = pieces.iter().map(|p| p.waves(n_processors)).sum();
    waves <= pieces.len() as f64
}

/// Kernels that are yet to be given, in order.
#[derive(Default)]
pub(super) struct Queue {
    pieces: Vec<Piece>,
    /// Number of the call that the last belongs to, as the schedule counts.
    last: u64,
}

impl Queue {
    /// Adds a piece of call `number`.
    pub(super) fn push(&mut self, piece: Piece, number: u64) {
        self.pieces.push(piece);
        self.last = number;
    }

    /// Whether it is time to give what there is.
    pub(super) fn is_full(&self) -> bool {
        self.pieces.len() >= MOST
    }

    /// All of it, and the number of the last call; `None` if there is nothing.
    pub(super) fn take(&mut self) -> Option<(Vec<Piece>, u64)> {
        if self.pieces.is_empty() {
            return None;
        }
        Some((std::mem::take(&mut self.pieces), self.last))
    }
}
