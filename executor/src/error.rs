//! What can go wrong while a plan is carried out.

use std::path::PathBuf;

use sstep_autodiff::{DType, Shape};
use sstep_planner::ByteSize;

use crate::device::DeviceError;
use crate::source::SourceError;

/// Why a step could not be carried out. Nothing is retried: a plan has no slack
/// to retry in.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// The arena could not be allocated.
    #[error("could not allocate the device arena of {bytes} bytes; lower the budget")]
    Arena {
        /// Its size.
        bytes: u64,
    },
    /// The device cannot be had, or has failed.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// No spill file can be made.
    #[error(
        "no spill file can be made in {}: {reason}; name a folder on a disk by --disk-dir",
        dir.display()
    )]
    SpillFolder {
        /// The folder.
        dir: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// There is no space for the spill file.
    #[error(
        "the plan needs a spill file of {} in {}{}: {reason}; free some space, name another \
         folder by --disk-dir, or lower --disk",
        ByteSize(*bytes), dir.display(),
        free_bytes.map_or(String::new(), |free| format!(", where {} are free", ByteSize(free)))
    )]
    SpillFull {
        /// The folder.
        dir: PathBuf,
        /// Size of the file.
        bytes: u64,
        /// Free there, if the system tells.
        free_bytes: Option<u64>,
        /// What the system says.
        reason: String,
    },
    /// The disk failed in the middle of a step.
    #[error(
        "{doing} {} of the spill file of {} in {} failed: {reason}; the step is lost, \
         checkpoints are not",
        ByteSize(*bytes), ByteSize(*file_bytes), dir.display()
    )]
    Spill {
        /// Reading or writing.
        doing: &'static str,
        /// So much at once.
        bytes: u64,
        /// Size of the file.
        file_bytes: u64,
        /// The folder it was made in.
        dir: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The plan is for another element type.
    #[error("the plan computes in {plan}, but {asked} was asked for")]
    DType {
        /// Of the plan.
        plan: DType,
        /// Of the executor.
        asked: DType,
    },
    /// The device cannot store tensors so.
    #[error("this device does not store tensors as {dtype}: use --precision f32, or --device cpu")]
    Storage {
        /// The type.
        dtype: DType,
    },
    /// An input that nobody gave.
    #[error("input `{name}` of shape {shape} was not given")]
    MissingFeed {
        /// Name of the leaf.
        name: String,
        /// Its shape.
        shape: Shape,
    },
    /// A value of another shape.
    #[error("`{name}` has shape {expected}, but {found} was given")]
    Shape {
        /// Name of the leaf.
        name: String,
        /// On the tape.
        expected: Shape,
        /// What was given.
        found: String,
    },
    /// A map was given flat, or a flat tensor as a source.
    #[error("`{name}` is {expected}: give it as such")]
    FeedKind {
        /// Name of the leaf.
        name: String,
        /// What it is.
        expected: &'static str,
    },
    /// No parameter of that name.
    #[error("the plan has no parameter `{name}`")]
    UnknownParam {
        /// The name.
        name: String,
    },
    /// A parameter without a value.
    #[error("parameter `{name}` was never set")]
    UnsetParam {
        /// The name.
        name: String,
    },
    /// An image could not be read.
    #[error("reading input `{name}`: {source}")]
    Source {
        /// Name of the leaf.
        name: String,
        /// Why.
        source: SourceError,
    },
    /// The plan asks for an update, but no rule was given.
    #[error("the plan updates parameters, but the step was given no update rule")]
    NoRule,
    /// The rule needs other state than was planned.
    #[error(
        "the plan has {planned} tensors of optimiser state per parameter, the rule needs {needed}"
    )]
    StateSlots {
        /// Planned.
        planned: usize,
        /// Needed.
        needed: usize,
    },
    /// An instruction that the plan's own tables do not support.
    #[error("the plan is inconsistent: {reason}; verify it before running")]
    Plan {
        /// What does not fit.
        reason: String,
    },
}

impl ExecError {
    /// Says which input a source failed to give.
    pub(crate) fn reading(name: &str) -> impl FnOnce(SourceError) -> ExecError {
        let name = name.to_owned();
        move |source| ExecError::Source { name, source }
    }
}
