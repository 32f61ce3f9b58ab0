//! Page-locked memory between image sources and the device.
//!
//! Regions of images that are bytes travel as these, a quarter or an eighth of what
//! their elements take. There are two buffers: while the device copies from one, the next region is
//! read into the other. A buffer comes back with an event that says when the
//! device is done with it.

use std::marker::PhantomData;
use std::sync::Arc;

use bytemuck::Pod;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, PinnedHostSlice};

use crate::device::DeviceError;

use super::driver::{failed, reason};

/// The two buffers, the one used longest ago first.
pub(super) struct Staging {
    context: Arc<CudaContext>,
    slots: [Option<(PinnedHostSlice<u8>, CudaEvent)>; 2],
}

/// A buffer that the device does not use.
pub(super) struct Slot<T> {
    memory: PinnedHostSlice<u8>,
    len: usize,
    elements: PhantomData<T>,
}

impl<T: Pod> Slot<T> {
    /// The elements asked for, of any value at first.
    pub(super) fn elements(&mut self) -> &mut [T] {
        let memory = self
            .memory
            .as_mut_slice()
            .map_or(std::ptr::null_mut(), <[u8]>::as_mut_ptr);
        assert!(
            !memory.is_null(),
            "page-locked memory that nobody copies is there"
        );
        // SAFETY: the memory holds as many elements, starts at a page, and any
        // bits are a number; `&mut self` keeps the slice the only one.
        unsafe { std::slice::from_raw_parts_mut(memory.cast::<T>(), self.len) }
    }
}

impl Staging {
    /// No memory yet.
    pub(super) fn new(context: &Arc<CudaContext>) -> Self {
        Staging {
            context: Arc::clone(context),
            slots: [None, None],
        }
    }

    /// A buffer of `len` elements, once the device is done with it.
    pub(super) fn take<T: Pod>(&mut self, len: usize) -> Result<Slot<T>, DeviceError> {
        let bytes = len * size_of::<T>();
        self.slots.swap(0, 1);
        let old = self.slots[1].take();
        let memory = match old {
            Some((memory, done)) => {
                done.synchronize().map_err(failed("waiting for a copy"))?;
                Some(memory).filter(|m| m.num_bytes() >= bytes)
            }
            None => None,
        };
        let memory = match memory {
            Some(memory) => memory,
            // SAFETY: any bits are a number of bytes.
            None => unsafe { self.context.alloc_pinned_with_flags::<u8>(bytes.max(64), 0) }
                .map_err(|e| DeviceError::HostMemory {
                    bytes: bytes as u64,
                    reason: reason(e),
                })?,
        };
        Ok(Slot {
            memory,
            len,
            elements: PhantomData,
        })
    }

    /// Takes a buffer back that `stream` may still copy from.
    pub(super) fn give_back<T>(
        &mut self,
        slot: Slot<T>,
        stream: &CudaStream,
    ) -> Result<(), DeviceError> {
        let done = stream
            .record_event(None)
            .map_err(failed("marking a copy"))?;
        self.slots[1] = Some((slot.memory, done));
        Ok(())
    }
}
