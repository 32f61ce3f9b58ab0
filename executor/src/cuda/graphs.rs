//! Batches of kernels as CUDA graphs, replayed when a step gives them again.
//!
//! The host needs some microseconds to give a kernel, a graph of many but little more
//! than one. In a tile loop of small kernels the device waits for the host; there a graph
//! pays. Steps of one plan give the same batches in the same order, so the batches of a
//! step are counted, and the second time one is captured while it is given. From then on
//! it is replayed, but only where every kernel of it is the same with all its arguments:
//! a graph takes nothing on trust. What differs from step to step by its nature (updates,
//! which depend on the learning rate and the count of steps; dropout, which does on the
//! latter) is never collected with others and never in a graph.

use cudarc::driver::CudaGraph;

use super::queue::Piece;

/// Kernels that all graphs hold together at most: each takes some KiB of the driver's
/// memory, beside the arena.
const MOST_KERNELS: usize = 1 << 14;

/// Kernels below which a batch is not worth a graph.
const LEAST_KERNELS: usize = 4;

/// How often a batch may turn out to be another before it is given up.
const MOST_MISSES: u8 = 3;

/// A graph that its owner hands from thread to thread.
struct Owned(CudaGraph);

// SAFETY: a graph may be used by any thread, one at a time, and is used through the
// backend that owns it alone.
unsafe impl Send for Owned {}

/// What is known of a batch.
enum Known {
    /// It was given, so that libraries have made what they need for it, and was another
    /// so many times before.
    Given(u8),
    /// It was captured.
    Held {
        pieces: Vec<Piece>,
        graph: Owned,
        misses: u8,
    },
    /// It is given kernel by kernel.
    Plain,
}

/// How a batch is to be given.
pub(super) enum How<'a> {
    /// Kernel by kernel.
    Direct,
    /// By capturing it and launching that; [`Graphs::hold`] then takes what came of it.
    Captured,
    /// By launching its graph.
    Replayed(&'a CudaGraph),
}

/// The graphs of a plan's batches.
pub(super) struct Graphs {
    is_on: bool,
    /// By the number of the batch in a step.
    known: Vec<Known>,
    /// The number of the next batch; `None` outside of a step.
    next: Option<usize>,
    n_kernels: usize,
}

impl Graphs {
    /// None yet, and none ever unless `is_on`.
    pub(super) fn new(is_on: bool) -> Self {
        Graphs {
            is_on,
            known: Vec::new(),
            next: None,
            n_kernels: 0,
        }
    }

    /// Batches are those of a step from now on.
    pub(super) fn begin_step(&mut self) {
        self.next = self.is_on.then_some(0);
    }

    /// The step is over.
    pub(super) fn end_step(&mut self) {
        self.next = None;
    }

    /// Says how the next batch is to be given; `pays` if a graph would be worth it.
    pub(super) fn next(&mut self, pieces: &[Piece], pays: bool) -> How<'_> {
        let Some(at) = self.next.as_mut() else {
            return How::Direct;
        };
        let this = *at;
        *at += 1;
        if this == self.known.len() {
            self.known.push(Known::Given(0));
            return How::Direct;
        }
        let known = &mut self.known[this];
        if let Known::Held {
            pieces: held,
            misses,
            ..
        } = known
            && held != pieces
        {
            self.n_kernels -= held.len();
            *known = match *misses + 1 {
                MOST_MISSES.. => Known::Plain,
                misses => Known::Given(misses),
            };
            return How::Direct;
        }
        match known {
            Known::Held { graph, .. } => How::Replayed(&graph.0),
            Known::Given(_) if pays && pieces.len() >= LEAST_KERNELS => {
                if self.n_kernels + pieces.len() <= MOST_KERNELS {
                    How::Captured
                } else {
                    How::Direct
                }
            }
            Known::Given(_) | Known::Plain => How::Direct,
        }
    }

    /// Takes what was captured of the batch that [`Graphs::next`] spoke of; without a
    /// graph, it is not tried again.
    pub(super) fn hold(&mut self, pieces: Vec<Piece>, graph: Option<CudaGraph>) {
        let at = self.next.and_then(|next| next.checked_sub(1));
        let Some(known) = at.and_then(|at| self.known.get_mut(at)) else {
            return;
        };
        let misses = match known {
            Known::Given(misses) => *misses,
            Known::Held { .. } | Known::Plain => 0,
        };
        *known = match graph {
            None => Known::Plain,
            Some(graph) => {
                self.n_kernels += pieces.len();
                Known::Held {
                    pieces,
                    graph: Owned(graph),
                    misses,
                }
            }
        };
    }
}
