//! Page-locked memory of the host, for tensors that a plan moves off the device.
//!
//! The device copies to and from it by itself while kernels run, so that a copy is
//! given to a stream and not waited for. Which later copy must wait for which earlier
//! one is known from the bytes that both touch, as within the arena. Locking pages
//! takes time: the executor's host pool keeps the memory from step to step.

use std::sync::Arc;

use cudarc::driver::{CudaContext, result};

use crate::device::DeviceError;

use super::driver::reason;

/// Page-locked elements.
pub(super) struct Pinned<T> {
    base: *mut T,
    len: usize,
    context: Arc<CudaContext>,
}

// SAFETY: memory that this value owns, as of a `Vec`.
unsafe impl<T: Send> Send for Pinned<T> {}

impl<T: bytemuck::Pod> Pinned<T> {
    /// Locks memory for `len` elements, of any value at first.
    ///
    /// # Errors
    /// [`DeviceError::HostMemory`] if the system does not lock so much.
    pub(super) fn new(context: &Arc<CudaContext>, len: usize) -> Result<Self, DeviceError> {
        let bytes = len * size_of::<T>();
        let bound = context.bind_to_thread();
        // Not write-combined: a result is read by the CPU.
        // SAFETY: the memory is owned by the value returned.
        let base = bound.and_then(|()| unsafe { result::malloc_host(bytes.max(64), 0) });
        let base = base.map_err(|e| DeviceError::HostMemory {
            bytes: bytes as u64,
            reason: reason(e),
        })?;
        Ok(Pinned {
            base: base.cast(),
            len,
            context: Arc::clone(context),
        })
    }
}

impl<T> AsRef<[T]> for Pinned<T> {
    fn as_ref(&self) -> &[T] {
        // SAFETY: as many elements, at the start of a page, and any bits are a number.
        unsafe { std::slice::from_raw_parts(self.base, self.len) }
    }
}

impl<T> AsMut<[T]> for Pinned<T> {
    fn as_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `&mut self` keeps the slice the only one.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.len) }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        // The device may yet copy from or to it. One that has failed does not, and
        // what it keeps goes with the process.
        let idle = self.context.bind_to_thread();
        if idle.and_then(|()| self.context.synchronize()).is_ok() {
            // SAFETY: allocated by `new`, freed once; no copy is under way.
            let _ = unsafe { result::free_host(self.base.cast()) };
        }
    }
}
