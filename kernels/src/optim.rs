//! One step of an optimiser on one parameter.
//!
//! The formulas, defaults and the order of their terms are PyTorch's
//! (`torch.optim.SGD`, `Adam`, `AdamW`), so that a run can be compared with one
//! there. Every element is computed in double precision and rounded once.

use serde::{Deserialize, Serialize};

use crate::real::Real;

/// How a parameter follows its gradient. All numbers are without unit.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UpdateRule {
    /// Stochastic gradient descent.
    Sgd {
        /// How much of the last step is repeated; 0 keeps no state.
        momentum: f64,
        /// Look ahead along the momentum (Nesterov).
        nesterov: bool,
        /// `weight_decay · θ` is added to the gradient.
        weight_decay: f64,
    },
    /// Kingma and Ba, arXiv:1412.6980.
    Adam {
        /// Decay of the mean of gradients.
        beta1: f64,
        /// Decay of the mean of their squares.
        beta2: f64,
        /// Added to the root.
        eps: f64,
        /// `weight_decay · θ` is added to the gradient.
        weight_decay: f64,
    },
    /// Adam whose decay acts on the parameter, not on the gradient: Loshchilov
    /// and Hutter, arXiv:1711.05101.
    AdamW {
        /// Decay of the mean of gradients.
        beta1: f64,
        /// Decay of the mean of their squares.
        beta2: f64,
        /// Added to the root.
        eps: f64,
        /// The parameter is first multiplied by `1 − lr · weight_decay`.
        weight_decay: f64,
    },
}

impl UpdateRule {
    /// How many tensors of the parameter's shape it keeps between steps. They
    /// start as zeros.
    pub fn n_slots(&self) -> usize {
        match *self {
            UpdateRule::Sgd { momentum, .. } => usize::from(momentum != 0.0),
            UpdateRule::Adam { .. } | UpdateRule::AdamW { .. } => 2,
        }
    }
}

/// When an update is, and how far it goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pace {
    /// Learning rate.
    pub lr: f64,
    /// Number of the update; 1 is the first.
    pub t: u64,
    /// What the loss was multiplied by: the gradient is divided by it.
    pub loss_scale: f64,
}

/// Applies an update to `param`. `slots` are the [`UpdateRule::n_slots`] tensors kept from the step before:
/// the momentum, or the two means of Adam.
///
/// # Panics
/// If the slices differ in length or slots are missing.
pub fn update<T: Real>(
    rule: &UpdateRule,
    pace: &Pace,
    param: &mut [T],
    grad: &[T],
    slots: &mut [&mut [T]],
) {
    let lr = pace.lr;
    let unscaled = |g: &T| g.to_f64() / pace.loss_scale;
    assert_eq!(
        param.len(),
        grad.len(),
        "a gradient has its parameter's shape"
    );
    assert_eq!(
        slots.len(),
        rule.n_slots(),
        "a rule gets the state it asks for"
    );
    assert!(
        slots.iter().all(|s| s.len() == param.len()),
        "state has its parameter's shape"
    );
    match *rule {
        UpdateRule::Sgd {
            momentum,
            nesterov,
            weight_decay,
        } => {
            let step = |p: &mut T, g: f64| *p = T::from_f64(p.to_f64() - lr * g);
            let decayed = |p: &T, g: &T| unscaled(g) + weight_decay * p.to_f64();
            match slots {
                [velocity] => {
                    for ((p, g), v) in param.iter_mut().zip(grad).zip(velocity.iter_mut()) {
                        let g = decayed(p, g);
                        let next = momentum * v.to_f64() + g;
                        *v = T::from_f64(next);
                        step(p, if nesterov { g + momentum * next } else { next });
                    }
                }
                _ => {
                    for (p, g) in param.iter_mut().zip(grad) {
                        let g = decayed(p, g);
                        step(p, g);
                    }
                }
            }
        }
        UpdateRule::Adam {
            beta1,
            beta2,
            eps,
            weight_decay,
        } => {
            let decay = |p: f64, g: f64| (p, g + weight_decay * p);
            adam([beta1, beta2, eps], pace, param, grad, slots, decay);
        }
        UpdateRule::AdamW {
            beta1,
            beta2,
            eps,
            weight_decay,
        } => {
            let decay = |p: f64, g: f64| (p * (1.0 - lr * weight_decay), g);
            adam([beta1, beta2, eps], pace, param, grad, slots, decay);
        }
    }
}

/// The part that Adam and AdamW share; `decay` turns (parameter, gradient) into
/// the pair that the moments are then applied to.
fn adam<T: Real>(
    [beta1, beta2, eps]: [f64; 3],
    pace: &Pace,
    param: &mut [T],
    grad: &[T],
    slots: &mut [&mut [T]],
    decay: impl Fn(f64, f64) -> (f64, f64),
) {
    let [first, second] = slots else {
        unreachable!("the number of slots was checked");
    };
    let steps = pace.t.max(1) as f64;
    let step = pace.lr / (1.0 - beta1.powf(steps));
    let root = (1.0 - beta2.powf(steps)).sqrt();
    let moments = first.iter_mut().zip(second.iter_mut());
    for ((p, g), (m, v)) in param.iter_mut().zip(grad).zip(moments) {
        let (theta, g) = decay(p.to_f64(), g.to_f64() / pace.loss_scale);
        let mean = beta1 * m.to_f64() + (1.0 - beta1) * g;
        let square = beta2 * v.to_f64() + (1.0 - beta2) * g * g;
        *m = T::from_f64(mean);
        *v = T::from_f64(square);
        *p = T::from_f64(theta - step * mean / (square.sqrt() / root + eps));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs `grads` through the rule from `start` and returns all parameters.
    fn run(rule: UpdateRule, lr: f64, start: f64, grads: &[f64]) -> Vec<f64> {
        let mut p = [start];
        let mut state = vec![vec![0.0; 1]; rule.n_slots()];
        let mut seen = Vec::new();
        for (i, &g) in grads.iter().enumerate() {
            let mut slots: Vec<&mut [f64]> = state.iter_mut().map(|s| &mut s[..]).collect();
            // Scaled by a power of two and back, a gradient is the same.
            let pace = Pace {
                lr,
                t: i as u64 + 1,
                loss_scale: 1024.0,
            };
            update(&rule, &pace, &mut p, &[1024.0 * g], &mut slots);
            seen.push(p[0]);
        }
        seen
    }

    fn check(got: &[f64], want: &[f64]) {
        for (g, w) in got.iter().zip(want) {
            assert!((g - w).abs() < 1e-12, "{got:?} is not {want:?}");
        }
        assert_eq!(got.len(), want.len());
    }

    #[test]
    fn sgd_by_hand() {
        let rule = UpdateRule::Sgd {
            momentum: 0.0,
            nesterov: false,
            weight_decay: 0.0,
        };
        check(&run(rule, 0.1, 1.0, &[2.0, -1.0]), &[0.8, 0.9]);
        let rule = UpdateRule::Sgd {
            momentum: 0.0,
            nesterov: false,
            weight_decay: 0.5,
        };
        // 1 − 0.1 (2 + 0.5) = 0.75
        check(&run(rule, 0.1, 1.0, &[2.0]), &[0.75]);
    }

    #[test]
    fn sgd_with_momentum_by_hand() {
        let rule = UpdateRule::Sgd {
            momentum: 0.9,
            nesterov: false,
            weight_decay: 0.0,
        };
        // v = 2, 1.8 + 1 = 2.8
        check(&run(rule, 0.1, 1.0, &[2.0, 1.0]), &[0.8, 0.52]);
        let rule = UpdateRule::Sgd {
            momentum: 0.9,
            nesterov: true,
            weight_decay: 0.0,
        };
        // steps: 2 + 0.9 · 2 = 3.8, then 1 + 0.9 · 2.8 = 3.52
        check(&run(rule, 0.1, 1.0, &[2.0, 1.0]), &[0.62, 0.268]);
    }

    #[test]
    fn adam_by_hand() {
        let rule = UpdateRule::Adam {
            beta1: 0.9,
            beta2: 0.99,
            eps: 0.5,
            weight_decay: 0.0,
        };
        // t = 1: m̂ = 2, v̂ = 4. t = 2: m = 0.28, m̂ = 0.28 / 0.19; v = 0.0496,
        // v̂ = 0.0496 / 0.0199.
        let one = 1.0 - 0.1 * 2.0 / 2.5;
        let two = one - 0.1 * (0.28 / 0.19) / ((0.0496f64 / 0.0199).sqrt() + 0.5);
        check(&run(rule, 0.1, 1.0, &[2.0, 1.0]), &[one, two]);
        let rule = UpdateRule::Adam {
            beta1: 0.9,
            beta2: 0.99,
            eps: 0.5,
            weight_decay: 1.0,
        };
        check(&run(rule, 0.1, 1.0, &[2.0]), &[1.0 - 0.1 * 3.0 / 3.5]);
    }

    #[test]
    fn adamw_decays_the_parameter() {
        let rule = UpdateRule::AdamW {
            beta1: 0.9,
            beta2: 0.99,
            eps: 0.5,
            weight_decay: 1.0,
        };
        check(&run(rule, 0.1, 1.0, &[2.0]), &[0.9 - 0.1 * 2.0 / 2.5]);
    }

    #[test]
    fn single_precision_rounds_once() {
        let rule = UpdateRule::Sgd {
            momentum: 0.0,
            nesterov: false,
            weight_decay: 0.0,
        };
        let mut p = [0.3f32];
        let pace = Pace {
            lr: 0.1,
            t: 1,
            loss_scale: 1.0,
        };
        update(&rule, &pace, &mut p, &[0.7f32], &mut []);
        assert_eq!(p[0], (f64::from(0.3f32) - 0.1 * f64::from(0.7f32)) as f32);
    }
}
