//! Where calls end on their streams: the events that other streams wait for.
//!
//! Every call is followed by an event, kept as long as a call may come that must wait
//! for it. Waiting for the call itself, and not for all that its stream was given since,
//! is what lets copies run beside kernels that were given before them.

use std::collections::VecDeque;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream};

use crate::device::DeviceError;

use super::driver::failed;
use super::schedule::{Given, Lane};

/// The events by stream, oldest first, and those to be used again.
pub(super) struct Marks {
    context: Arc<CudaContext>,
    ends: [VecDeque<(u64, CudaEvent)>; 3],
    spare: Vec<CudaEvent>,
}

impl Marks {
    /// None yet.
    pub(super) fn new(context: &Arc<CudaContext>) -> Self {
        Marks {
            context: Arc::clone(context),
            ends: Default::default(),
            spare: Vec::new(),
        }
    }

    /// Marks the end of call `number`, the last that `stream` of `lane` was given.
    pub(super) fn mark(
        &mut self,
        lane: Lane,
        number: u64,
        stream: &CudaStream,
    ) -> Result<(), DeviceError> {
        let ends = &mut self.ends[lane as usize];
        if number == 0 || ends.back().is_some_and(|last| last.0 == number) {
            return Ok(());
        }
        let event = match self.spare.pop() {
            Some(event) => event,
            // Without the time, which would take the device longer.
            None => (self.context.new_event(None)).map_err(failed("making an event"))?,
        };
        event.record(stream).map_err(failed("marking a call"))?;
        ends.push_back((number, event));
        Ok(())
    }

    /// The event at the end of a call; `last` is the last of its stream.
    pub(super) fn end(
        &mut self,
        call: Given,
        last: u64,
        stream: &CudaStream,
    ) -> Result<&CudaEvent, DeviceError> {
        self.mark(call.lane, last, stream)?;
        let ends = &self.ends[call.lane as usize];
        // A later end will do.
        let at = ends.partition_point(|end| end.0 < call.number);
        Ok(&ends[at].1)
    }

    /// Takes back the events of calls before `oldest`.
    pub(super) fn forget(&mut self, lane: Lane, oldest: u64) {
        let ends = &mut self.ends[lane as usize];
        while ends.front().is_some_and(|end| end.0 < oldest) {
            self.spare.extend(ends.pop_front().map(|end| end.1));
        }
    }
}
