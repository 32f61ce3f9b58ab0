//! Train neural networks end to end on images of any size under a memory cap.
//!
//! A CNN on a slide of 65 536 × 65 536 pixels makes terabytes of activations.
//! sstep treats one training step as a program to be compiled: the forward and
//! backward pass are one [`Tape`]; a planner cuts it into tile loops and decides
//! for every tensor whether it is kept, recomputed or moved to the host; an
//! independent verifier checks the plan; an executor carries it out in one arena
//! of exactly the size that you allow. Loss and gradients are those of the
//! untiled network, up to rounding.
//!
//! - [`nn`] has built-in networks, [`Tape`] builds any other;
//! - [`Session`] plans once per image size and runs steps;
//! - [`Trainer`] adds data, a schedule and checkpoints;
//! - [`plan()`] alone tells what a step would take.
//!
//! ```
//! use sstep::{Budget, Machine, StepSpec, Strategy, nn};
//!
//! // What would one training step of ResNet-18 on 2048 × 2048 pixels take?
//! let mut net = nn::build(&nn::ModelSpec::new("resnet18"), 1, &[2048, 2048])?;
//! let gradients = sstep::backward(&mut net.tape, net.loss)?;
//! let spec = StepSpec {
//!     outputs: vec![net.loss],
//!     updates: gradients.iter().collect(),
//!     state_slots: 2, // Adam
//! };
//! let budget = Budget { device_bytes: 512 << 20, host_bytes: 2 << 30, disk_bytes: 0 };
//! let plan = sstep::plan(&net.tape, &spec, &Machine::default(), budget, Strategy::Optimal)?;
//! assert!(plan.predicted.peak_bytes <= 512 << 20);
//! assert!(plan.predicted.untiled_bytes > 1 << 30);
//! println!("{}", plan.summary());
//! # Ok::<(), sstep::Error>(())
//! ```

#![forbid(unsafe_code)]

mod calibrate;
pub mod config;
pub mod data;
mod error;
mod loss_scale;
pub mod nn;
pub mod optim;
pub mod params;
mod precision;
mod profile;
mod report;
mod session;
pub mod slide;
mod train;

pub use calibrate::{
    CalibrateOptions, calibrate, calibrate_backend, calibrate_device, calibration_bytes,
};
pub use error::Error;
pub use loss_scale::{DynamicScale, LossScale};
pub use precision::Precision;
pub use profile::{Profile, ProfileOrigin, profile_path};
pub use report::{Pair, REPORT_HEADING, Report, peak_rss_bytes};
pub use session::{LOSS_SCALE, OptimiserState, Session, SessionOptions, Step, differentiate};
pub use train::{TrainEvent, TrainOptions, TrainStep, Trainer};

pub use sstep_autodiff::{
    Attention, ConvSpec, DType, Gradients, NodeId, Op, PoolSpec, Shape, Tape, TapeError, backward,
    narrow,
};
pub use sstep_executor::source;
pub use sstep_executor::{
    Device, DeviceError, DeviceInfo, DeviceOptions, ExecError, Executor, Feed, Feeds, Measured,
    Progress, Scaled, Spent, StepHow, Tensor, Timings, check_spill_dir, devices, freest, reference,
};
pub use sstep_planner::{
    Aim, Budget, ByteSize, CapPoint, Comparison, Family, Machine, Objective, Plan, PlanError,
    Program, StepSpec, Strategy, StrategyLine, Unit, plan, verify,
};
