//! Which device carries a plan out, and why one cannot be had.

use std::fmt;
use std::str::FromStr;

use sstep_kernels::Real;

use crate::backend::Backend;
use crate::cpu::Cpu;
use crate::error::ExecError;

/// A device to run on. As text `cpu`, `cuda:N` (`cuda` is the first) or `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The CPU; the arena is memory of the process.
    #[default]
    Cpu,
    /// A CUDA device by its number.
    Cuda(usize),
    /// The CUDA device with the most free memory, or the CPU if there is none.
    Auto,
}

impl Device {
    /// The CUDA device that is meant, `None` for the CPU.
    ///
    /// # Errors
    /// [`DeviceError::NoDevice`], and those of [`devices`] if a CUDA device is named.
    pub fn find(self) -> Result<Option<DeviceInfo>, DeviceError> {
        match self {
            Device::Cpu => Ok(None),
            Device::Auto => Ok(freest(devices().unwrap_or_default())),
            Device::Cuda(ordinal) => {
                let all = devices()?;
                let n_devices = all.len();
                let found = all.into_iter().find(|d| d.ordinal == ordinal);
                let missing = DeviceError::NoDevice { ordinal, n_devices };
                found.map(Some).ok_or(missing)
            }
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Device::Auto => f.write_str("auto"),
        }
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let unknown = || format!("`{s}` is no device: say cpu, cuda, cuda:N or auto");
        match s {
            "cpu" => Ok(Device::Cpu),
            "cuda" => Ok(Device::Cuda(0)),
            "auto" => Ok(Device::Auto),
            _ => {
                let number = s.strip_prefix("cuda:").ok_or_else(unknown)?;
                Ok(Device::Cuda(number.parse().map_err(|_| unknown())?))
            }
        }
    }
}

/// How a CUDA device is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceOptions {
    /// Whether kernels that steps repeat may be replayed as CUDA graphs, where the device
    /// would wait for the host otherwise. Not by default: no device has run them yet.
    pub graphs: bool,
    /// Whether kernels take tensors that are stored in 16 bits. An executor asks for it
    /// where its plan has any.
    pub narrow: bool,
}

/// A CUDA device that there is.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct DeviceInfo {
    /// Its number: N of `cuda:N`.
    pub ordinal: usize,
    /// As the driver calls it.
    pub name: String,
    /// Compute capability, major and minor.
    pub capability: (i32, i32),
    /// Its memory.
    pub total_bytes: u64,
    /// What is free of it, with a context of ours and the libraries open.
    pub free_bytes: u64,
    /// What the libraries and a stream took of it.
    pub libraries_bytes: u64,
    /// Libraries that are not there.
    pub missing: Vec<Missing>,
}

/// A library of the vendor that is not there: the kernels of sstep do its work.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, serde::Serialize)]
#[error(
    "{name} is not used ({file}: {reason}): {what} run on sstep's own kernels, which is slower; it \
     comes with the PyPI package {package}, whose lib folder belongs on LD_LIBRARY_PATH"
)]
pub struct Missing {
    /// What it is called.
    pub name: &'static str,
    /// What it would compute.
    pub what: &'static str,
    /// File that the loader looks for.
    pub file: &'static str,
    /// Where it can be had.
    pub package: &'static str,
    /// Why it is not used.
    pub reason: String,
}

/// Why a device cannot be had, or how it failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceError {
    /// The program was built without the feature.
    #[error(
        "this sstep was built without CUDA: build it with `--features cuda`, or use --device cpu"
    )]
    NotBuilt,
    /// No driver library.
    #[error(
        "no CUDA driver was found (libcuda.so.1): install NVIDIA's driver, or use --device cpu"
    )]
    NoDriver,
    /// The driver has no such device.
    #[error(
        "there is no device cuda:{ordinal}: the driver shows {n_devices}; \
         `sstep info --devices` lists them, CUDA_VISIBLE_DEVICES may hide some"
    )]
    NoDevice {
        /// Asked for.
        ordinal: usize,
        /// How many there are.
        n_devices: usize,
    },
    /// A device too old for the kernels.
    #[error("{name} has compute capability {}.{}, the kernels need {}.{} or later", capability.0, capability.1, least.0, least.1)]
    Capability {
        /// The device.
        name: String,
        /// What it has.
        capability: (i32, i32),
        /// What is needed.
        least: (i32, i32),
    },
    /// No library to compile kernels with.
    #[error(
        "NVRTC was not found (libnvrtc.so.13 or .12): it comes with the CUDA toolkit, and with the \
         PyPI package nvidia-cuda-nvrtc, whose lib folder belongs on LD_LIBRARY_PATH"
    )]
    NoNvrtc,
    /// The kernels did not compile.
    #[error("NVRTC could not compile the kernels for compute_{arch}: {log}")]
    Compile {
        /// Compute capability, as 90 for 9.0.
        arch: i32,
        /// What it says.
        log: String,
    },
    /// The arena could not be allocated.
    #[error(
        "could not allocate the arena of {bytes} bytes on {name}: {free_bytes} bytes of \
         {total_bytes} are free; lower the budget, or free the memory that other processes hold"
    )]
    OutOfMemory {
        /// The device.
        name: String,
        /// Asked for.
        bytes: u64,
        /// Free.
        free_bytes: u64,
        /// Of the device.
        total_bytes: u64,
    },
    /// Not even a context fits.
    #[error(
        "cuda:{ordinal} has no memory left for a context: other processes hold it, nvidia-smi \
         shows which; end them or use another device"
    )]
    Full {
        /// The device.
        ordinal: usize,
    },
    /// Pages could not be locked.
    #[error(
        "could not lock {bytes} bytes of the host's memory for copies: {reason}; lower --host, or \
         raise what may be locked (ulimit -l)"
    )]
    HostMemory {
        /// Asked for.
        bytes: u64,
        /// The driver's words.
        reason: String,
    },
    /// The device failed and takes no more calls of this process.
    #[error(
        "the CUDA device was lost while {doing}: {reason}; the step is lost, checkpoints are not: \
         start again from the last one. nvidia-smi and the system's log may say why"
    )]
    Lost {
        /// What was asked of it.
        doing: &'static str,
        /// The driver's words.
        reason: String,
    },
    /// The driver refused a call. Nothing of the step counts.
    #[error("{doing} failed on the CUDA device: {reason}; the step is lost, checkpoints are not")]
    Failed {
        /// What was asked of it.
        doing: &'static str,
        /// The driver's words.
        reason: String,
    },
}

/// The CUDA devices there are.
///
/// # Errors
/// [`DeviceError::NotBuilt`], [`DeviceError::NoDriver`], or what the driver says.
pub fn devices() -> Result<Vec<DeviceInfo>, DeviceError> {
    #[cfg(feature = "cuda")]
    return crate::cuda::devices();
    #[cfg(not(feature = "cuda"))]
    Err(DeviceError::NotBuilt)
}

/// The device with the most free memory: what `auto` takes.
pub fn freest(devices: Vec<DeviceInfo>) -> Option<DeviceInfo> {
    devices.into_iter().max_by_key(|d| d.free_bytes)
}

/// Opens a device with an arena of `bytes`.
///
/// # Errors
/// [`ExecError::Arena`] and [`ExecError::Device`] if it cannot be had.
pub fn open<T: Real>(
    device: &Device,
    options: &DeviceOptions,
    bytes: u64,
) -> Result<Box<dyn Backend<T> + Send>, ExecError> {
    match device {
        Device::Cuda(ordinal) => cuda(*ordinal, options, bytes),
        Device::Cpu | Device::Auto => match device.find()? {
            Some(found) => cuda(found.ordinal, options, bytes),
            None => Ok(Box::new(Cpu::new(bytes)?)),
        },
    }
}

#[cfg(feature = "cuda")]
fn cuda<T: Real>(
    ordinal: usize,
    options: &DeviceOptions,
    bytes: u64,
) -> Result<Box<dyn Backend<T> + Send>, ExecError> {
    let opened = crate::cuda::Cuda::<T>::new(ordinal, bytes, options.narrow)?;
    Ok(Box::new(if options.graphs {
        opened.with_graphs()
    } else {
        opened
    }))
}

#[cfg(not(feature = "cuda"))]
fn cuda<T: Real>(
    _ordinal: usize,
    _options: &DeviceOptions,
    _bytes: u64,
) -> Result<Box<dyn Backend<T> + Send>, ExecError> {
    Err(DeviceError::NotBuilt.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_they_are_written() {
        for (text, device) in [
            ("cpu", Device::Cpu),
            ("cuda:3", Device::Cuda(3)),
            ("auto", Device::Auto),
        ] {
            assert_eq!(text.parse(), Ok(device));
            assert_eq!(device.to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(Device::Cuda(0)));
        for wrong in ["gpu", "cuda:", "cuda:-1", "cuda:x", ""] {
            assert!(wrong.parse::<Device>().is_err(), "{wrong}");
        }
    }
}
