//! Finding the driver and its devices.
//!
//! cudarc panics if it calls a library that is not there, so that the library is
//! probed for before anything else.

use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute;
use cudarc::driver::{CudaContext, DriverError, result, sys};

use crate::device::{DeviceError, DeviceInfo};

/// Oldest compute capability that the kernels run on.
const LEAST_CAPABILITY: (i32, i32) = (7, 0);

/// Turns the driver's error into ours.
pub(super) fn failed(doing: &'static str) -> impl FnOnce(DriverError) -> DeviceError {
    move |error| DeviceError::Failed {
        doing,
        reason: match error.error_string() {
            Ok(text) => text.to_string_lossy().into_owned(),
            Err(_) => format!("{:?}", error.0),
        },
    }
}

/// Number of devices.
fn count() -> Result<usize, DeviceError> {
    // SAFETY: loads the driver's library, which is made to be loaded.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoDriver);
    }
    result::init().map_err(failed("starting the driver"))?;
    let n = result::device::get_count().map_err(failed("counting devices"))?;
    Ok(usize::try_from(n).unwrap_or(0))
}

/// A context on device `ordinal`, without cudarc's own tracking of events: what
/// must wait for what is known here.
pub(super) fn open(ordinal: usize) -> Result<Arc<CudaContext>, DeviceError> {
    let n_devices = count()?;
    if ordinal >= n_devices {
        return Err(DeviceError::NoDevice { ordinal, n_devices });
    }
    let context = CudaContext::new(ordinal).map_err(failed("opening a context"))?;
    // SAFETY: no memory of this context is managed by cudarc.
    unsafe { context.disable_event_tracking() };
    let capability = capability(&context)?;
    if capability < LEAST_CAPABILITY {
        return Err(DeviceError::Capability {
            name: context.name().unwrap_or_default(),
            capability,
            least: LEAST_CAPABILITY,
        });
    }
    Ok(context)
}

pub(super) fn capability(context: &CudaContext) -> Result<(i32, i32), DeviceError> {
    context
        .compute_capability()
        .map_err(failed("asking for the compute capability"))
}

/// Number of multiprocessors.
pub(super) fn n_processors(context: &CudaContext) -> Result<u64, DeviceError> {
    let which = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
    let n = context
        .attribute(which)
        .map_err(failed("counting multiprocessors"))?;
    Ok(u64::try_from(n).unwrap_or(1).max(1))
}

/// The CUDA devices there are.
///
/// # Errors
/// [`DeviceError::NoDriver`], or [`DeviceError::Failed`] with what the driver says.
pub fn devices() -> Result<Vec<DeviceInfo>, DeviceError> {
    let one = |ordinal| {
        let context = CudaContext::new(ordinal).map_err(failed("opening a context"))?;
        let (free, total) = context
            .mem_get_info()
            .map_err(failed("asking for the memory"))?;
        Ok(DeviceInfo {
            ordinal,
            name: context.name().map_err(failed("asking for the name"))?,
            capability: capability(&context)?,
            total_bytes: total as u64,
            free_bytes: free as u64,
        })
    };
    (0..count()?).map(one).collect()
}
