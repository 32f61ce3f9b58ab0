//! What can go wrong while a plan is carried out.

use sstep_autodiff::{DType, Shape};

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
    /// The plan is for another element type.
    #[error("the plan computes in {plan}, but {asked} was asked for")]
    DType {
        /// Of the plan.
        plan: DType,
        /// Of the executor.
        asked: DType,
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
