//! Page-locked memory of the host, for tensors that a plan moves off the device.
//!
//! The device copies to and from it by itself while kernels run, so that a copy is
//! given to a stream and not waited for. Which later copy must wait for which earlier
//! one is known from the bytes that both touch, as within the arena. Locking pages
//! takes time: the executor's host pool keeps the memory from step to step.

use std::sync::Arc;

use cudarc::driver::{CudaContext, result};

use crate::backend::HostMemory;
use crate::device::DeviceError;

use super::driver::reason;

/// Page-locked bytes.
struct Pinned {
    base: *mut u8,
    bytes: usize,
    context: Arc<CudaContext>,
}

// SAFETY: memory that this value owns, as of a `Vec`.
unsafe impl Send for Pinned {}

/// Locks `bytes` of memory, of any content at first, at the start of a page.
///
/// # Errors
/// [`DeviceError::HostMemory`] if the system does not lock so much.
pub(super) fn memory(context: &Arc<CudaContext>, bytes: usize) -> Result<HostMemory, DeviceError> {
    let bound = context.bind_to_thread();
    // Not write-combined: a result is read by the CPU.
    // SAFETY: the memory is owned by the value returned.
    let base = bound.and_then(|()| unsafe { result::malloc_host(bytes.max(64), 0) });
    let base = base.map_err(|e| DeviceError::HostMemory {
        bytes: bytes as u64,
        reason: reason(e),
    })?;
    Ok(Box::new(Pinned {
        base: base.cast(),
        bytes,
        context: Arc::clone(context),
    }))
}

impl AsRef<[u8]> for Pinned {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as many bytes were allocated.
        unsafe { std::slice::from_raw_parts(self.base, self.bytes) }
    }
}

impl AsMut<[u8]> for Pinned {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` keeps the slice the only one.
        unsafe { std::slice::from_raw_parts_mut(self.base, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The device may yet copy from or to it. One that has failed does not, and
        // what it keeps goes with the process.
        let idle = self.context.bind_to_thread();
        if idle.and_then(|()| self.context.synchronize()).is_ok() {
            // SAFETY: allocated by `memory`, freed once; no copy is under way.
            let _ = unsafe { result::free_host(self.base.cast()) };
        }
    }
}
