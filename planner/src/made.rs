//! What searches of one program come to.

use std::sync::Arc;

use crate::driver::{Pool, Source};
use crate::plan::Plan;
use crate::search::Found;

/// A finished plan, and how it came about.
pub struct Made {
    pub(crate) plan: Plan,
    pub(crate) found: Found,
    pub(crate) source: Source,
    pub(crate) workspace_bytes: u64,
}

/// What a quick search comes to.
pub enum Quick {
    /// A plan.
    Made(Box<Made>),
    /// What was found takes so many seconds: too many.
    Slower(f64),
    /// Nothing was found that fits.
    TooLarge,
}

impl Quick {
    /// The plan, if there is one.
    pub fn made(self) -> Option<Made> {
        match self {
            Quick::Made(made) => Some(*made),
            Quick::Slower(_) | Quick::TooLarge => None,
        }
    }

    /// Seconds of what was found; infinite if nothing fits.
    pub fn secs(&self) -> f64 {
        match self {
            Quick::Made(made) => made.secs(),
            Quick::Slower(secs) => *secs,
            Quick::TooLarge => f64::INFINITY,
        }
    }
}

/// Where the best strategy's search of one program stands: what is quick is done.
pub struct Start {
    pub(crate) pool: Arc<Pool>,
    pub(crate) found: Found,
}

impl Start {
    /// Seconds of what was found; infinite if it does not fit.
    pub fn secs(&self) -> f64 {
        self.found.score.fitting_secs()
    }
}

impl Made {
    /// Predicted seconds.
    pub fn secs(&self) -> f64 {
        self.plan.predicted.secs
    }

    /// Bytes of the arena.
    pub fn peak_bytes(&self) -> u64 {
        self.plan.predicted.peak_bytes
    }
}
