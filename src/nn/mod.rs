//! Built-in networks: from a [`ModelSpec`] and an image size to a [`Net`].
//!
//! A network here is nothing but a tape with a few names attached: which input
//! is the image, which holds the labels, and how each parameter starts. It is
//! built anew for every image size, because a tape's shapes are fixed; its
//! parameters have the same names and shapes whatever the size, so they carry
//! over.

mod init;
mod layers;
mod resnet;
mod spec;
mod streaming_cnn;
mod unet;

use std::collections::BTreeMap;

use sstep_autodiff::{NodeId, Tape};

pub use init::{Init, init_values, inits_of};
pub use spec::{Head, Loss, ModelSpec, Norm, Upsample};

use crate::error::Error;

/// A network for one image size: the forward tape up to the loss.
#[derive(Clone, Debug)]
pub struct Net {
    /// The forward program; [`sstep_autodiff::backward`] adds the gradients.
    pub tape: Tape,
    /// The loss, shape `[1]`.
    pub loss: NodeId,
    /// What the loss judges: `[N, classes]`, or a map with that many channels.
    pub logits: NodeId,
    /// Name of the image input, `[N, C, spatial…]`.
    pub image: String,
    /// Name of the label input: `[N, 1]` class indices for a classifier, a map
    /// for a segmentation network (see [`Loss`]).
    pub labels: String,
    /// How each parameter starts, by its name.
    pub inits: BTreeMap<String, Init>,
}

/// Names of the built-in networks.
pub const MODELS: [&str; 7] = [
    "resnet10",
    "resnet18",
    "resnet34",
    "resnet50",
    "unet2d",
    "unet3d",
    "streaming-cnn",
];

/// Builds a network for images of the given spatial extents, outermost first
/// (height, width), `batch` at a time.
///
/// ```
/// use sstep::nn::{ModelSpec, build};
///
/// let net = build(&ModelSpec::new("resnet18"), 1, &[512, 768])?;
/// let logits = net.tape.ty(net.logits);
/// assert_eq!(logits.shape.dims(), [1, 2]);
/// assert!(net.tape.by_name("layer1.0.conv1.weight").is_some());
/// # Ok::<(), sstep::Error>(())
/// ```
///
/// # Errors
/// [`Error::Model`] for an unknown name or an option that the network does not
/// have; [`Error::Tape`] if the size does not suit it.
pub fn build(spec: &ModelSpec, batch: usize, size: &[usize]) -> Result<Net, Error> {
    match spec.name.as_str() {
        "resnet10" => resnet::build(spec, resnet::Depth::R10, batch, size),
        "resnet18" => resnet::build(spec, resnet::Depth::R18, batch, size),
        "resnet34" => resnet::build(spec, resnet::Depth::R34, batch, size),
        "resnet50" => resnet::build(spec, resnet::Depth::R50, batch, size),
        "unet2d" => unet::build(spec, 2, batch, size),
        "unet3d" => unet::build(spec, 3, batch, size),
        "streaming-cnn" => streaming_cnn::build(spec, batch, size),
        other => Err(Error::Model {
            model: other.to_owned(),
            reason: format!(
                "no built-in network has this name; there are {}",
                MODELS.join(", ")
            ),
        }),
    }
}
