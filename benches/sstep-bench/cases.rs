//! Training steps of built-in networks, as cases to plan.

use sstep::nn::{ModelSpec, Norm, build};
use sstep::{StepSpec, Tape, backward};

/// A step on a tape.
pub struct Case {
    /// Forward and backward pass.
    pub tape: Tape,
    /// What it is run for.
    pub spec: StepSpec,
}

/// The step of a network on an image of extent `size` along each axis, with two
/// tensors of optimiser state per parameter, as Adam has.
///
/// # Errors
/// If there is no such network, or its loss cannot be differentiated.
pub fn case(name: &str, norm: Norm, size: usize) -> Result<Case, Box<dyn std::error::Error>> {
    let model = ModelSpec {
        norm: Some(norm),
        ..ModelSpec::new(name)
    };
    let axes = if name.ends_with("3d") { 3 } else { 2 };
    let mut net = build(&model, 1, &vec![size; axes])?;
    let gradients = backward(&mut net.tape, net.loss)?;
    let spec = StepSpec {
        outputs: vec![net.loss],
        updates: gradients.iter().collect(),
        state_slots: 2,
    };
    Ok(Case {
        tape: net.tape,
        spec,
    })
}

/// How a norm is called in tables.
pub fn norm_name(norm: Norm) -> &'static str {
    match norm {
        Norm::Group => "group",
        Norm::FrozenBatch => "frozen",
        Norm::None => "none",
    }
}

/// An extent with its axes: `4096²`, `256³`.
pub fn extent(name: &str, size: usize) -> String {
    let power = if name.ends_with("3d") { '³' } else { '²' };
    format!("{size}{power}")
}
