//! The one allocation of the device: exactly the cap.

use std::sync::Arc;

use cudarc::driver::{CudaContext, result};

use crate::device::DeviceError;

use super::driver;

/// The one allocation.
pub(super) struct Arena {
    pub(super) base: u64,
    pub(super) bytes: u64,
    context: Arc<CudaContext>,
}

impl Drop for Arena {
    fn drop(&mut self) {
        // A device that has failed frees nothing; its context is gone with the
        // process, and there is nobody left to tell.
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: allocated by `Arena::new`, freed once; the streams that used
            // it were waited for by their owner.
            let _ = unsafe { result::free_sync(self.base) };
        }
    }
}

impl Arena {
    /// Allocates exactly `bytes`.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`] with what is free.
    pub(super) fn new(context: &Arc<CudaContext>, bytes: u64) -> Result<Self, DeviceError> {
        let out_of_memory = || {
            let (free_bytes, total_bytes) = driver::memory(context).unwrap_or_default();
            DeviceError::OutOfMemory {
                name: context.name().unwrap_or_default(),
                bytes,
                free_bytes,
                total_bytes,
            }
        };
        let size = usize::try_from(bytes).map_err(|_| out_of_memory())?.max(64);
        // SAFETY: the context is current in this thread; the memory is owned by
        // the value returned.
        let base = unsafe { result::malloc_sync(size) }.map_err(|_| out_of_memory())?;
        let context = Arc::clone(context);
        Ok(Arena {
            base,
            bytes: size as u64,
            context,
        })
    }

    /// Address of `bytes` from `offset`.
    pub(super) fn at(&self, offset: u64, bytes: u64) -> u64 {
        assert!(
            offset
                .checked_add(bytes)
                .is_some_and(|end| end <= self.bytes),
            "a buffer lies within the arena"
        );
        self.base + offset
    }
}
