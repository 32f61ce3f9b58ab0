//! What a plan is to be best at.
//!
//! Seconds by the machine profile, or bytes moved. Plans of fewest bytes are made by
//! the same search on a machine whose links are so slow that what moves decides, and
//! seconds of kernels only between equals; the plan that comes out is then costed on
//! the real machine.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::PlanError;
use crate::machine::Machine;
use crate::strategy::Strategy;

/// What to minimise.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Objective {
    /// Predicted seconds of a step.
    #[default]
    Seconds,
    /// Bytes that cross to the device or from it: between it and the host, the disk
    /// and images. Each counts by how long its link takes for it. For machines whose
    /// links are shared or whose disks wear.
    Bytes,
}

/// By how much links are slowed where bytes decide: far more than kernels can save
/// by moving, and little enough for the solver's digits.
const SLOWED: f64 = 1e4;

impl Objective {
    /// Both.
    pub const ALL: [Objective; 2] = [Objective::Seconds, Objective::Bytes];

    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Objective::Seconds => "seconds",
            Objective::Bytes => "bytes",
        }
    }

    /// The machine on which the fastest plan is the best one.
    pub(crate) fn machine(self, machine: &Machine) -> Machine {
        let mut priced = machine.clone();
        match self {
            Objective::Seconds => {}
            Objective::Bytes => {
                for rate in [
                    &mut priced.h2d_bytes_per_sec,
                    &mut priced.d2h_bytes_per_sec,
                    &mut priced.disk_read_bytes_per_sec,
                    &mut priced.disk_write_bytes_per_sec,
                    &mut priced.source_bytes_per_sec,
                ] {
                    *rate /= SLOWED;
                }
            }
        }
        priced
    }
}

impl fmt::Display for Objective {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Objective {
    type Err = PlanError;

    fn from_str(text: &str) -> Result<Self, PlanError> {
        let found = Objective::ALL.into_iter().find(|o| o.name() == text);
        found.ok_or_else(|| PlanError::UnknownObjective {
            text: text.to_owned(),
        })
    }
}

/// How to plan, and for what. A [`Strategy`] alone minimises seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Aim {
    /// Which plans are considered.
    pub strategy: Strategy,
    /// Which of them is best.
    pub objective: Objective,
}

impl From<Strategy> for Aim {
    fn from(strategy: Strategy) -> Aim {
        Aim {
            strategy,
            objective: Objective::Seconds,
        }
    }
}
