//! Giving kernels to the compute stream: queued, by themselves, or as a graph.

use cudarc::driver::{CudaGraph, DeviceRepr, LaunchConfig, PushKernelArg, sys};
use sstep_kernels::Real;
use sstep_kernels::cuda::{self as kernels, Args, Call, Step, Work};

use crate::device::DeviceError;
use crate::error::ExecError;

use super::Cuda;
use super::driver::failed;
use super::graphs::How;
use super::queue::{self, Piece};
use super::schedule::Lane;

/// Blocks of a launch per multiprocessor; what is beyond is done in turns.
const BLOCKS_PER_PROCESSOR: u64 = 16;

/// A parameter block, to be passed by value.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct Block(Args);

// SAFETY: plain numbers in the layout that the kernels declare.
unsafe impl DeviceRepr for Block {}

impl<T: Real> Cuda<T> {
    /// Gives the compute stream what is queued for it.
    pub(super) fn flush(&mut self) -> Result<(), ExecError> {
        let Some((pieces, last)) = self.queue.take() else {
            return Ok(());
        };
        let pays = queue::is_launch_bound(&pieces, self.n_processors);
        match self.graphs.next(&pieces, pays) {
            How::Direct => self.give(&pieces)?,
            How::Replayed(graph) => graph.launch().map_err(failed("launching a graph"))?,
            How::Captured => {
                let graph = self.capture(&pieces)?;
                match &graph {
                    Some(graph) => graph.launch().map_err(failed("launching a graph"))?,
                    None => self.give(&pieces)?,
                }
                self.graphs.hold(pieces, graph);
            }
        }
        let stream = self.stream(Lane::Compute).clone();
        self.marks.mark(Lane::Compute, last, &stream)?;
        Ok(())
    }

    /// Captures what giving these would do; `None` if a library does what cannot be.
    fn capture(&mut self, pieces: &[Piece]) -> Result<Option<CudaGraph>, DeviceError> {
        let stream = self.stream(Lane::Compute).clone();
        // Of this thread alone: others may have devices of their own.
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        let begun = stream.begin_capture(mode);
        begun.map_err(failed("beginning a graph"))?;
        let given = self.give(pieces);
        // The stream takes calls again only after this, whatever came before.
        let graph = stream.end_capture(sys::CUgraphInstantiate_flags(0));
        Ok(given.ok().and(graph.ok()).flatten())
    }

    fn give(&mut self, pieces: &[Piece]) -> Result<(), ExecError> {
        pieces.iter().try_for_each(|piece| match piece {
            Piece::Kernel(call) => self.run(Lane::Compute, call),
            Piece::Library(offer, taker) => {
                // Libraries ask for the thread's context; launches see to it themselves.
                let bound = self.context.bind_to_thread();
                bound.map_err(failed("binding the context"))?;
                let run = |call: &Call| self.run(Lane::Compute, call);
                offer.before.iter().try_for_each(run)?;
                if self.libraries.run(*taker, &offer.call, offer.scratch)? {
                    let run = |call: &Call| self.run(Lane::Compute, call);
                    offer.after.iter().try_for_each(run)
                } else {
                    self.run(Lane::Compute, &offer.instead)
                }
            }
        })
    }

    /// Launches a kernel.
    fn run(&self, lane: Lane, call: &Call) -> Result<(), ExecError> {
        let function = &self.kernels[call.kernel];
        let threads = u64::from(kernels::BLOCK_THREADS);
        let blocks = match call.work {
            Work::Items(n) => n.div_ceil(threads),
            Work::Blocks(n) => n,
        };
        if blocks == 0 {
            return Ok(());
        }
        let most_blocks = BLOCKS_PER_PROCESSOR * self.n_processors;
        let config = LaunchConfig {
            grid_dim: (blocks.min(most_blocks) as u32, 1, 1),
            block_dim: (kernels::BLOCK_THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        let block = Block(call.args);
        let mut launch = self.stream(lane).launch_builder(function);
        // SAFETY: every kernel takes one block; its views lie within the arena, as
        // `placed` checked, and hold what the verified plan says.
        let launched = unsafe { launch.arg(&block).launch(config) };
        launched.map_err(failed("launching a kernel"))?;
        Ok(())
    }

    /// Who does a step: a library what it takes, and our kernels the rest.
    fn piece(&mut self, step: Step) -> Piece {
        match step {
            Step::Kernel(call) => Piece::Kernel(call),
            Step::Offer(offer) => match self.libraries.taker(&offer.call, offer.scratch) {
                Some(taker) => Piece::Library(offer, taker),
                None => Piece::Kernel(offer.instead),
            },
        }
    }

    /// Queues kernels of call `number`.
    pub(super) fn queue(
        &mut self,
        steps: impl IntoIterator<Item = Step>,
        number: u64,
    ) -> Result<(), ExecError> {
        for step in steps {
            let piece = self.piece(step);
            self.queue.push(piece, number);
        }
        if self.queue.is_full() {
            self.flush()?;
        }
        Ok(())
    }

    /// Gives kernels that another step would give other arguments: by themselves.
    pub(super) fn give_alone(
        &mut self,
        steps: impl IntoIterator<Item = Step>,
        number: u64,
    ) -> Result<(), ExecError> {
        self.flush()?;
        for step in steps {
            let piece = self.piece(step);
            self.give(&[piece])?;
        }
        let stream = self.stream(Lane::Compute).clone();
        self.marks.mark(Lane::Compute, number, &stream)?;
        Ok(())
    }
}
