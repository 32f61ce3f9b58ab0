//! What the loss is multiplied by before the reverse sweep.
//!
//! Gradients of maps that are stored as `f16` vanish where they are small and overflow
//! where they are large. A factor moves them into range (Micikevicius et al.,
//! arXiv:1710.03740). Which one is right changes as training goes on: a dynamic scale
//! starts large and is halved whenever a gradient overflows; that step then updates
//! nothing. After many good steps it is doubled. Numbers and rule are those of PyTorch's
//! `GradScaler`. All factors are powers of two, so that scaling back loses nothing.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sstep_executor::Scaled;

/// Word for a dynamic scale on the command line and in configuration files.
const DYNAMIC: &str = "dynamic";

/// What the loss is multiplied by.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Written", into = "Written")]
pub enum LossScale {
    /// The same number in every step.
    Fixed(f64),
    /// What [`DynamicScale`] says.
    Dynamic,
}

/// A scale as configuration files have it.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Written {
    Factor(f64),
    Word(String),
}

impl TryFrom<Written> for LossScale {
    type Error = String;

    fn try_from(written: Written) -> Result<Self, String> {
        match written {
            Written::Factor(factor) => Ok(LossScale::Fixed(factor)),
            Written::Word(word) => word.parse(),
        }
    }
}

impl From<LossScale> for Written {
    fn from(scale: LossScale) -> Written {
        match scale {
            LossScale::Fixed(factor) => Written::Factor(factor),
            LossScale::Dynamic => Written::Word(DYNAMIC.to_owned()),
        }
    }
}

impl fmt::Display for LossScale {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LossScale::Fixed(factor) => write!(f, "{factor}"),
            LossScale::Dynamic => f.write_str(DYNAMIC),
        }
    }
}

impl FromStr for LossScale {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == DYNAMIC {
            return Ok(LossScale::Dynamic);
        }
        let factor = text.parse().map_err(|_| {
            format!("`{text}` is no scale of the loss; give a number or `{DYNAMIC}`")
        })?;
        Ok(LossScale::Fixed(factor))
    }
}

/// A scale that follows the gradients, between two steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DynamicScale {
    /// What the loss of the next step is multiplied by.
    pub factor: f64,
    /// Steps since the factor last changed.
    pub n_good: u64,
    /// Steps in all that updated nothing.
    pub n_skipped: u64,
}

impl Default for DynamicScale {
    fn default() -> Self {
        DynamicScale {
            factor: 65536.0,
            n_good: 0,
            n_skipped: 0,
        }
    }
}

impl DynamicScale {
    /// Good steps in a row after which the factor is doubled.
    pub const GROWTH_STEPS: u64 = 2000;

    /// A factor that is smaller is no cure: the gradients themselves overflow.
    pub const LEAST: f64 = 1.0 / 65536.0;

    /// How the next step is to be run.
    pub fn scaled(&self) -> Scaled {
        Scaled {
            by: self.factor,
            n_skipped: self.n_skipped,
        }
    }

    /// After a step that updated the parameters or, for a gradient was not finite, did
    /// not.
    #[must_use]
    pub fn after(self, skipped: bool) -> Self {
        if skipped {
            return DynamicScale {
                factor: self.factor / 2.0,
                n_good: 0,
                n_skipped: self.n_skipped + 1,
            };
        }
        let n_good = self.n_good + 1;
        // A factor beyond all range would make even small gradients overflow.
        if n_good < Self::GROWTH_STEPS || self.factor * 2.0 > f64::from(f32::MAX) {
            return DynamicScale { n_good, ..self };
        }
        DynamicScale {
            factor: self.factor * 2.0,
            n_good: 0,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_halved_at_once_and_doubled_after_many_good_steps() {
        let start = DynamicScale::default();
        let once = start.after(true);
        assert_eq!(once.factor, 32768.0);
        assert_eq!((once.n_good, once.n_skipped), (0, 1));
        let mut scale = once;
        for _ in 1..DynamicScale::GROWTH_STEPS {
            scale = scale.after(false);
        }
        assert_eq!(scale.factor, 32768.0);
        let grown = scale.after(false);
        assert_eq!(
            (grown.factor, grown.n_good, grown.n_skipped),
            (65536.0, 0, 1)
        );
        // An overflow begins the count anew.
        assert_eq!(scale.after(true).n_good, 0);
    }

    #[test]
    fn scales_are_written_as_numbers_or_a_word() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        struct Run {
            loss_scale: LossScale,
        }
        for (text, scale) in [
            ("loss_scale = 1024.0\n", LossScale::Fixed(1024.0)),
            ("loss_scale = \"dynamic\"\n", LossScale::Dynamic),
        ] {
            let run: Run = toml::from_str(text).expect(text);
            assert_eq!(run.loss_scale, scale);
            assert_eq!(toml::to_string(&run).expect(text), text);
            assert_eq!(scale.to_string().parse(), Ok(scale));
        }
        let whole: Run = toml::from_str("loss_scale = 1024").expect("a whole number");
        assert_eq!(whole.loss_scale, LossScale::Fixed(1024.0));
        let wrong = toml::from_str::<Run>("loss_scale = \"large\"").expect_err("no scale");
        assert!(
            wrong.to_string().contains("give a number or `dynamic`"),
            "{wrong}"
        );
    }
}
