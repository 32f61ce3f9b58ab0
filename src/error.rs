//! What can go wrong, in sentences that say what would do.

use std::path::{Path, PathBuf};

use sstep_autodiff::{DType, TapeError};
use sstep_executor::source::SourceError;
use sstep_executor::{DeviceError, ExecError};
use sstep_planner::PlanError;

use crate::slide::SlideError;

/// Why something could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A tape that cannot be built, differentiated or parsed.
    #[error(transparent)]
    Tape(#[from] TapeError),
    /// There is no plan.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A plan could not be carried out.
    #[error(transparent)]
    Exec(#[from] ExecError),
    /// An image could not be opened or read.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A slide could not be written.
    #[error(transparent)]
    Slide(#[from] SlideError),
    /// A built-in network that does not exist or has no such option.
    #[error("network `{model}`: {reason}")]
    Model {
        /// Its name.
        model: String,
        /// What is wrong and what would do.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{path}: {what} failed: {reason}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system says.
        reason: String,
    },
    /// A file whose contents make no sense: a configuration, labels, a tape.
    #[error("{path}: {reason}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong and what would do.
        reason: String,
    },
    /// Values that cannot be used together, or are out of range.
    #[error("{reason}")]
    Usage {
        /// What is wrong and what would do.
        reason: String,
    },
    /// A tensor in a file has another shape than the network's.
    #[error(
        "{path}: tensor `{name}` has shape {found:?}, the network needs {expected:?}",
        path = .path.display()
    )]
    TensorShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        name: String,
        /// What the network has.
        expected: Vec<usize>,
        /// What the file has.
        found: Vec<usize>,
    },
    /// Tensors that a file should have, or has without anyone to take them.
    #[error("{path}: {}", names(.missing, .unknown), path = .path.display())]
    TensorNames {
        /// The file.
        path: PathBuf,
        /// Needed and not there.
        missing: Vec<String>,
        /// There and not known.
        unknown: Vec<String>,
    },
    /// A tensor given by name does not fit.
    #[error("`{name}`: {reason}")]
    Tensor {
        /// The tensor.
        name: String,
        /// What is wrong and what would do.
        reason: String,
    },
    /// The network computes in another element type.
    #[error("the network computes in {net}, but {asked} was asked for")]
    DType {
        /// Of the network.
        net: DType,
        /// Of the caller.
        asked: DType,
    },
    /// The loss is not a number. Nothing was saved after the step before.
    #[error(
        "the loss of step {step} is {loss}: training has diverged; lower the learning rate, or \
         check images and labels. {}",
        saved(.checkpoint)
    )]
    Diverged {
        /// The step, from 1.
        step: u64,
        /// The loss.
        loss: f64,
        /// The last good checkpoint.
        checkpoint: Option<PathBuf>,
    },
}

fn names(missing: &[String], unknown: &[String]) -> String {
    let list = |what: &str, names: &[String]| {
        let shown: Vec<&str> = names.iter().take(8).map(String::as_str).collect();
        let more = names.len().saturating_sub(shown.len());
        let more = if more > 0 {
            format!(" and {more} more")
        } else {
            String::new()
        };
        format!("{what} {}{more}", shown.join(", "))
    };
    match (missing.is_empty(), unknown.is_empty()) {
        (false, true) => list("it lacks", missing),
        (true, _) => list("the network does not know", unknown),
        (false, false) => {
            format!(
                "{}; {}",
                list("it lacks", missing),
                list("the network does not know", unknown)
            )
        }
    }
}

fn saved(checkpoint: &Option<PathBuf>) -> String {
    match checkpoint {
        Some(path) => format!("The last good checkpoint is {}", path.display()),
        None => "There was no checkpoint yet".to_owned(),
    }
}

impl Error {
    /// An [`Error::Io`] about `path`.
    pub(crate) fn io(path: &Path, what: &'static str, error: &std::io::Error) -> Self {
        Error::Io {
            path: path.to_path_buf(),
            what,
            reason: error.to_string(),
        }
    }

    /// An [`Error::File`] about `path`.
    pub(crate) fn file(path: &Path, reason: impl std::fmt::Display) -> Self {
        Error::File {
            path: path.to_path_buf(),
            reason: reason.to_string(),
        }
    }

    /// An [`Error::Usage`].
    pub(crate) fn usage(reason: impl Into<String>) -> Self {
        Error::Usage {
            reason: reason.into(),
        }
    }

    /// What `sstep` exits with: 1 if something failed on the way, 2 if the input
    /// was wrong, 3 if no plan fits the budget.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Plan(
                PlanError::Infeasible { .. }
                | PlanError::HostTooSmall { .. }
                | PlanError::GaveUp { .. },
            ) => 3,
            Error::Plan(PlanError::Solver { .. } | PlanError::Rejected(_)) => 1,
            Error::Plan(
                PlanError::BadSize { .. }
                | PlanError::ZeroBudget
                | PlanError::MixedRank { .. }
                | PlanError::ProfileVersion { .. }
                | PlanError::Profile { .. }
                | PlanError::UnknownObjective { .. }
                | PlanError::UnknownStrategy { .. },
            ) => 2,
            Error::Exec(
                ExecError::MissingFeed { .. }
                | ExecError::Shape { .. }
                | ExecError::FeedKind { .. }
                | ExecError::UnknownParam { .. }
                | ExecError::UnsetParam { .. }
                | ExecError::SpillFolder { .. }
                | ExecError::Device(
                    DeviceError::NotBuilt
                    | DeviceError::NoDriver
                    | DeviceError::NoDevice { .. }
                    | DeviceError::Capability { .. }
                    | DeviceError::NoNvrtc,
                ),
            ) => 2,
            Error::Exec(ExecError::Source { source, .. }) | Error::Source(source) => match source {
                SourceError::Read { .. } | SourceError::Changed { .. } => 1,
                _ => 2,
            },
            Error::Exec(_) | Error::Slide(_) | Error::Diverged { .. } => 1,
            // A name that cannot be created is the caller's; a full disk is not.
            Error::Io {
                what: "writing", ..
            } => 1,
            Error::Tape(_)
            | Error::Model { .. }
            | Error::Io { .. }
            | Error::File { .. }
            | Error::Usage { .. }
            | Error::TensorShape { .. }
            | Error::TensorNames { .. }
            | Error::Tensor { .. }
            | Error::DType { .. } => 2,
        }
    }
}
