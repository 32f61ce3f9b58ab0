//! The executor of sstep: carries a plan out on a backend.
//!
//! One [interpreter loop](Executor::step) serves every [`Backend`]; the executor
//! decides nothing, and what it does not find in the plan is an error. It counts
//! what really happened, [`Measured`], to be held against what the plan
//! predicted. Network inputs come region by region from a
//! [`source::TileSource`]; tensors that the plan sends away live in a separate,
//! counted host pool, or in one unnamed file on disk.
//!
//! [`reference()`] runs the same program untiled: the oracle of the tests.

mod backend;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod device;
mod disk;
mod error;
mod host;
mod interpret;
mod reference;
mod run;
pub mod source;
mod tensor;

pub use backend::{Backend, HostMemory, HostSlice, Launch, Link, Partial, Place, Target};
pub use cpu::Cpu;
pub use device::{Device, DeviceError, DeviceInfo, DeviceOptions, Missing, devices, freest, open};
pub use disk::{DiskMap, RowAt, check_spill_dir};
pub use error::ExecError;
pub use interpret::{Measured, Progress, Scaled, Spent, StepHow, Timings};
pub use reference::reference;
pub use run::{Executor, Feed, Feeds, StepReport};
pub use tensor::Tensor;
