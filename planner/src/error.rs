//! Why there is no plan, with what would help.

use crate::budget::{Budget, ByteSize};
use crate::verify::Violation;

/// A buffer that forces a plan's memory up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForcingBuffer {
    /// Name of the tensor.
    pub name: String,
    /// Why it is there.
    pub reason: String,
    /// Its size in bytes.
    pub bytes: u64,
}

impl std::fmt::Display for ForcingBuffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} ({}, {})",
            self.name,
            self.reason,
            ByteSize(self.bytes)
        )
    }
}

fn list(buffers: &[ForcingBuffer]) -> String {
    buffers
        .iter()
        .map(ForcingBuffer::to_string)
        .collect::<Vec<_>>()
        .join(", ")
}

/// Memory beyond the device, as errors name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beyond {
    /// The host cap.
    pub host: ByteSize,
    /// The disk cap.
    pub disk: ByteSize,
}

impl Beyond {
    /// That of a budget.
    pub fn of(budget: &Budget) -> Beyond {
        Beyond {
            host: ByteSize(budget.host_bytes),
            disk: ByteSize(budget.disk_bytes),
        }
    }
}

impl std::fmt::Display for Beyond {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} of host memory", self.host)?;
        if self.disk.0 > 0 {
            write!(f, " and {} of disk", self.disk)?;
        }
        Ok(())
    }
}

/// Why there is no plan.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PlanError {
    /// A size that is not one.
    #[error("`{text}` is not an amount of memory; write for example 512MiB, 8GiB or 1000000")]
    BadSize {
        /// What was written.
        text: String,
    },
    /// A cap of nothing.
    #[error("a device budget of 0 holds nothing; give for example --budget 512MiB")]
    ZeroBudget,
    /// Maps of different dimensionality.
    #[error(
        "node `{node}` has {found} spatial axes but `{other}` has {expected}; \
         all maps of a tape must have the same number"
    )]
    MixedRank {
        /// The node.
        node: String,
        /// Its spatial axes.
        found: usize,
        /// An earlier map.
        other: String,
        /// Its spatial axes.
        expected: usize,
    },
    /// No plan of this strategy fits.
    #[error(
        "no {strategy} plan fits {device} of device and {beyond}; \
         the smallest device budget found is {smallest} ({smallest_bytes} bytes){}{}",
        if forcing.is_empty() { "" } else { ", forced by " }, list(forcing)
    )]
    Infeasible {
        /// Name of the strategy.
        strategy: &'static str,
        /// The device cap.
        device: ByteSize,
        /// The caps beyond it.
        beyond: Beyond,
        /// Smallest device cap with a plan, at these caps.
        smallest: ByteSize,
        /// The same in bytes.
        smallest_bytes: u64,
        /// What is live where that plan peaks, largest first.
        forcing: Vec<ForcingBuffer>,
    },
    /// No plan of this strategy fits any device cap.
    #[error(
        "no {strategy} plan fits {beyond} at any device budget; \
         give more host memory, a disk or another strategy"
    )]
    HostTooSmall {
        /// Name of the strategy.
        strategy: &'static str,
        /// The caps beyond the device.
        beyond: Beyond,
    },
    /// The solver ran out of effort before it found any plan.
    #[error(
        "no {strategy} plan was found within the solver's limits, which proves nothing; \
         give more device or host memory, or another strategy"
    )]
    GaveUp {
        /// Name of the strategy.
        strategy: &'static str,
    },
    /// The solver failed: a bug or an exhausted machine, not a property of the input.
    #[error("the solver answered {status}; please report this tape and budget")]
    Solver {
        /// What it said.
        status: String,
    },
    /// A finished plan did not pass the verifier: a bug in the planner.
    #[error("the plan was rejected by its verifier: {0}; please report this tape and budget")]
    Rejected(#[from] Violation),
    /// A machine profile of another version.
    #[error(
        "the machine profile is of version {found}, this sstep reads version {expected}: \
         measure it anew with `sstep calibrate`"
    )]
    ProfileVersion {
        /// Its version.
        found: u32,
        /// Ours.
        expected: u32,
    },
    /// A machine profile that is none, or lacks something.
    #[error("no machine profile: {reason}; measure one with `sstep calibrate`")]
    Profile {
        /// What is wrong with it.
        reason: String,
    },
    /// A name that is no objective.
    #[error("`{text}` is not an objective; there are seconds and bytes")]
    UnknownObjective {
        /// What was written.
        text: String,
    },
    /// A name that is no strategy.
    #[error("`{name}` is not a strategy; there are {known}")]
    UnknownStrategy {
        /// What was written.
        name: String,
        /// All names.
        known: String,
    },
}
