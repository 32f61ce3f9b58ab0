//! What a step stores its maps as.
//!
//! Maps are nearly all that a step keeps and moves, so 16 bits for each element are
//! half the memory and half the traffic. Sums are taken in single precision all the
//! same; parameters, their gradients, optimiser state, statistics and losses are stored
//! so, too (Micikevicius et al., arXiv:1710.03740).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sstep_autodiff::{DType, Tape, TapeError, narrow};

/// What maps are stored as.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// As they are computed: `f32`, or `f64` where a network computes in that.
    #[default]
    F32,
    /// 8 bits of precision and the range of `f32`: what most networks are trained in.
    Bf16,
    /// 11 bits of precision; small gradients vanish unless the loss is scaled.
    F16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Precision; 3] = [Precision::F32, Precision::Bf16, Precision::F16];

    /// Name on the command line and in configuration files.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
            Precision::F16 => "f16",
        }
    }

    /// The tape with its maps stored so.
    ///
    /// # Errors
    /// [`TapeError::Precision`] if it computes in `f64`, or stores something in 16 bits
    /// already.
    pub fn apply(self, tape: Tape) -> Result<Tape, TapeError> {
        match self.narrow() {
            None => Ok(tape),
            Some(to) => narrow(&tape, to),
        }
    }

    /// The element type of maps, if it is narrow.
    pub fn narrow(self) -> Option<DType> {
        match self {
            Precision::F32 => None,
            Precision::Bf16 => Some(DType::Bf16),
            Precision::F16 => Some(DType::F16),
        }
    }

    /// By what the loss is scaled unless somebody says otherwise: so that gradients of
    /// maps are about as large as activations, where their range is small.
    pub fn loss_scale(self) -> f64 {
        match self {
            Precision::F32 | Precision::Bf16 => 1.0,
            Precision::F16 => 1024.0,
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Precision::ALL.into_iter().find(|p| p.name() == text);
        known.ok_or_else(|| format!("`{text}` is no precision; there are f32, bf16 and f16"))
    }
}
