//! Training steps of built-in networks, as cases to plan and to run.

use std::collections::BTreeMap;
use std::sync::Arc;

use sstep::nn::{Init, ModelSpec, Norm, build};
use sstep::source::ComputedSource;
use sstep::{Feed, Feeds, Shape, StepSpec, Tape, backward};

use crate::step::pixel;

/// A step on a tape.
pub struct Case {
    /// Forward and backward pass.
    pub tape: Tape,
    /// What it is run for.
    pub spec: StepSpec,
    /// How each parameter starts, by its name.
    pub inits: BTreeMap<String, Init>,
    image: (String, Shape),
    /// A class per image, or a map of them.
    labels: (String, Shape),
}

impl Case {
    /// An image and labels that are the same in every run, and take no memory where
    /// they are maps.
    ///
    /// # Errors
    /// If a source cannot be made of them.
    pub fn feeds(&self) -> Result<Feeds<f32>, Box<dyn std::error::Error>> {
        let (image, shape) = &self.image;
        let pixels = ComputedSource::new(*shape, pixel)?;
        let (labels, shape) = &self.labels;
        let label = if shape.dims().len() > 2 {
            Feed::Source(Arc::new(ComputedSource::new(*shape, |_| 0.0)?))
        } else {
            Feed::Flat(vec![1.0; shape.elems()])
        };
        Ok(Feeds::from([
            (image.clone(), Feed::Source(Arc::new(pixels))),
            (labels.clone(), label),
        ]))
    }
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
    let shape_of = |name: &str| {
        let leaf = net.tape.by_name(name);
        let id = leaf.ok_or_else(|| format!("the network has no input `{name}`"))?;
        Ok::<Shape, String>(net.tape.ty(id).shape)
    };
    let (image, labels) = (shape_of(&net.image)?, shape_of(&net.labels)?);
    Ok(Case {
        spec,
        inits: net.inits,
        image: (net.image, image),
        labels: (net.labels, labels),
        tape: net.tape,
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
