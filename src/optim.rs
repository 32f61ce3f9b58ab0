//! Optimisers and learning-rate schedules.
//!
//! An [`UpdateRule`] says how a parameter follows its gradient; its state lives
//! in the arena and counts towards the cap. A [`Schedule`] says what fraction of
//! the base learning rate a step gets.

use serde::{Deserialize, Serialize};

pub use sstep_kernels::UpdateRule;

/// The fraction of the base learning rate over the steps of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Schedule {
    /// Always 1.
    #[default]
    Constant,
    /// Times `factor` after every `every` steps.
    Step {
        /// Steps between changes.
        every: u64,
        /// What the rate is multiplied by.
        factor: f64,
    },
    /// Linearly up from 0 over `warmup` steps, then 1.
    Warmup {
        /// Steps of the rise.
        warmup: u64,
    },
    /// Linearly up over `warmup` steps, then along half a cosine down to `last`
    /// at the end of the run (Loshchilov and Hutter, arXiv:1608.03983).
    Cosine {
        /// Steps of the rise.
        #[serde(default)]
        warmup: u64,
        /// Fraction at the end.
        #[serde(default)]
        last: f64,
    },
    /// Half a cosine up from `first` over the fraction `rise` of the run, half a
    /// cosine down to `last` (Smith and Topin, arXiv:1708.07120).
    OneCycle {
        /// Part of the run that goes up.
        #[serde(default = "third")]
        rise: f64,
        /// Fraction at the start.
        #[serde(default = "twenty_fifth")]
        first: f64,
        /// Fraction at the end.
        #[serde(default)]
        last: f64,
    },
}

fn third() -> f64 {
    0.3
}

fn twenty_fifth() -> f64 {
    0.04
}

impl Schedule {
    /// The fraction for step `step` (from 0) of `steps`.
    ///
    /// ```
    /// use sstep::optim::Schedule;
    ///
    /// let cosine = Schedule::Cosine { warmup: 10, last: 0.0 };
    /// assert_eq!(cosine.factor(0, 110), 0.1);
    /// assert_eq!(cosine.factor(9, 110), 1.0);
    /// assert!((cosine.factor(60, 110) - 0.5).abs() < 1e-12);
    /// ```
    pub fn factor(&self, step: u64, steps: u64) -> f64 {
        let rise = |warmup: u64| (step + 1) as f64 / warmup as f64;
        match *self {
            Schedule::Constant => 1.0,
            Schedule::Step { every, factor } => {
                let changes = step / every.max(1);
                factor.powi(changes.min(i32::MAX as u64) as i32)
            }
            Schedule::Warmup { warmup } => {
                if step < warmup {
                    rise(warmup)
                } else {
                    1.0
                }
            }
            Schedule::Cosine { warmup, last } => {
                if step < warmup {
                    return rise(warmup);
                }
                let rest = steps.saturating_sub(warmup).max(1);
                half_cosine(1.0, last, (step - warmup) as f64 / rest as f64)
            }
            Schedule::OneCycle { rise, first, last } => {
                let at = step as f64 / steps.max(1) as f64;
                if at < rise {
                    half_cosine(first, 1.0, at / rise)
                } else {
                    half_cosine(1.0, last, (at - rise) / (1.0 - rise).max(f64::MIN_POSITIVE))
                }
            }
        }
    }
}

/// From `a` at 0 to `b` at 1.
fn half_cosine(a: f64, b: f64, at: f64) -> f64 {
    b + (a - b) * 0.5 * (1.0 + (std::f64::consts::PI * at.clamp(0.0, 1.0)).cos())
}

/// SGD with momentum 0.9, no decay.
pub fn sgd() -> UpdateRule {
    UpdateRule::Sgd {
        momentum: 0.9,
        nesterov: false,
        weight_decay: 0.0,
    }
}

/// Adam with PyTorch's defaults.
pub fn adam() -> UpdateRule {
    UpdateRule::Adam {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
    }
}

/// AdamW with PyTorch's defaults.
pub fn adamw() -> UpdateRule {
    UpdateRule::AdamW {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_by_example() {
        let steps = 100;
        let cases: [(Schedule, u64, f64); 9] = [
            (Schedule::Constant, 99, 1.0),
            (
                Schedule::Step {
                    every: 10,
                    factor: 0.5,
                },
                9,
                1.0,
            ),
            (
                Schedule::Step {
                    every: 10,
                    factor: 0.5,
                },
                20,
                0.25,
            ),
            (Schedule::Warmup { warmup: 4 }, 1, 0.5),
            (Schedule::Warmup { warmup: 4 }, 4, 1.0),
            (
                Schedule::Cosine {
                    warmup: 0,
                    last: 0.2,
                },
                50,
                0.6,
            ),
            (
                Schedule::OneCycle {
                    rise: 0.5,
                    first: 0.0,
                    last: 0.0,
                },
                25,
                0.5,
            ),
            (
                Schedule::OneCycle {
                    rise: 0.5,
                    first: 0.0,
                    last: 0.0,
                },
                50,
                1.0,
            ),
            (
                Schedule::OneCycle {
                    rise: 0.5,
                    first: 0.0,
                    last: 0.0,
                },
                75,
                0.5,
            ),
        ];
        for (schedule, step, wanted) in cases {
            let got = schedule.factor(step, steps);
            assert!(
                (got - wanted).abs() < 1e-12,
                "{schedule:?} at {step}: {got}"
            );
        }
    }

    #[test]
    fn no_schedule_divides_by_zero() {
        let all = [
            Schedule::Step {
                every: 0,
                factor: 0.5,
            },
            Schedule::Warmup { warmup: 0 },
            Schedule::Cosine {
                warmup: 5,
                last: 0.0,
            },
            Schedule::OneCycle {
                rise: 0.0,
                first: 0.0,
                last: 0.0,
            },
            Schedule::OneCycle {
                rise: 1.0,
                first: 0.0,
                last: 0.0,
            },
        ];
        for schedule in all {
            for steps in 0..3 {
                for step in 0..4 {
                    assert!(schedule.factor(step, steps).is_finite(), "{schedule:?}");
                }
            }
        }
    }
}
