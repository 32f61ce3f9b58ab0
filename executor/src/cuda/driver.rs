//! Finding the driver and its devices.
//!
//! cudarc panics if it calls a library that is not there, so that the library is
//! probed for before anything else.

use std::sync::Arc;

use cudarc::driver::sys::CUdevice_attribute;
use cudarc::driver::{CudaContext, DriverError, result, sys};

use sstep_autodiff::DType;

use crate::device::{DeviceError, DeviceInfo};

use super::library::Libraries;

/// Oldest compute capability that the kernels run on.
const LEAST_CAPABILITY: (i32, i32) = (7, 0);

/// Turns the driver's error into ours.
pub(super) fn failed(doing: &'static str) -> impl FnOnce(DriverError) -> DeviceError {
    move |error| {
        let reason = reason(error);
        if is_lost(error) {
            DeviceError::Lost { doing, reason }
        } else {
            DeviceError::Failed { doing, reason }
        }
    }
}

/// The driver's words.
pub(super) fn reason(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("{:?}", error.0),
    }
}

/// Whether the context is gone with all that it held: nothing can be done with the
/// device by this process any more.
fn is_lost(DriverError(code): DriverError) -> bool {
    use sys::CUresult as Code;
    matches!(
        code,
        Code::CUDA_ERROR_DEVICE_UNAVAILABLE
            | Code::CUDA_ERROR_DEINITIALIZED
            | Code::CUDA_ERROR_ECC_UNCORRECTABLE
            | Code::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | Code::CUDA_ERROR_ILLEGAL_ADDRESS
            | Code::CUDA_ERROR_LAUNCH_TIMEOUT
            | Code::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | Code::CUDA_ERROR_ASSERT
            | Code::CUDA_ERROR_HARDWARE_STACK_ERROR
            | Code::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | Code::CUDA_ERROR_MISALIGNED_ADDRESS
            | Code::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | Code::CUDA_ERROR_INVALID_PC
            | Code::CUDA_ERROR_LAUNCH_FAILED
            | Code::CUDA_ERROR_UNKNOWN
    )
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
    let context = context(ordinal)?;
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

/// A context, which takes memory of the device itself.
fn context(ordinal: usize) -> Result<Arc<CudaContext>, DeviceError> {
    CudaContext::new(ordinal).map_err(|error| match error.0 {
        sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY => DeviceError::Full { ordinal },
        _ => failed("opening a context")(error),
    })
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

/// Free bytes of the device, and all of it.
pub(super) fn memory(context: &CudaContext) -> Result<(u64, u64), DeviceError> {
    let (free, total) = (context.mem_get_info()).map_err(failed("asking for the memory"))?;
    Ok((free as u64, total as u64))
}

/// The CUDA devices there are. Opens a context and the libraries on each, as a run
/// would, to see what that takes.
///
/// # Errors
/// [`DeviceError::NoDriver`], [`DeviceError::Full`], or [`DeviceError::Failed`] with what
/// the driver says.
pub fn devices() -> Result<Vec<DeviceInfo>, DeviceError> {
    let one = |ordinal| {
        let context = context(ordinal)?;
        let (at_first, total_bytes) = memory(&context)?;
        let stream = context.new_stream().map_err(failed("making a stream"))?;
        let libraries = Libraries::open(&stream, DType::F32);
        let (free_bytes, _) = memory(&context)?;
        Ok(DeviceInfo {
            ordinal,
            name: context.name().map_err(failed("asking for the name"))?,
            capability: capability(&context)?,
            total_bytes,
            free_bytes,
            libraries_bytes: at_first.saturating_sub(free_bytes),
            missing: libraries.missing().to_vec(),
        })
    };
    (0..count()?).map(one).collect()
}
