//! The network of the StreamingCNN paper's experiments (Pinckaers et al.,
//! arXiv:1911.04432): `[conv3 16, ReLU]×2, pool2`, three times, then one linear
//! layer. No norm: streaming methods do not have one over the image.

use sstep_autodiff::PoolSpec;

use super::Net;
use super::layers::Layers;
use super::spec::{Head, ModelSpec, Norm};
use crate::error::Error;

/// Channels of every layer if nothing is said.
const WIDTH: usize = 16;

/// The network for images of one to three axes.
pub(super) fn build(spec: &ModelSpec, batch: usize, size: &[usize]) -> Result<Net, Error> {
    spec.check(&["norm", "groups", "levels", "upsample", "loss"])?;
    spec.check_size(1..=3, batch, size)?;
    if let Some(short) = size.iter().find(|e| **e < 8) {
        return Err(spec.error(format!("an extent of {short}; three halvings need 8")));
    }
    let width = spec.width.unwrap_or(WIDTH);
    let mut net = Layers::new(spec, Norm::None, size.len())?;
    let mut x = net.image(batch, size)?;
    for block in 1..=3 {
        for conv in 1..=2 {
            x = net.conv(&format!("block{block}.conv{conv}"), x, width, [3, 1], true)?;
            x = net.relu(x)?;
        }
        x = net.max_pool(&format!("block{block}"), x, PoolSpec::new(2))?;
    }
    let pooled = net.head(spec.head.unwrap_or(Head::Mean), x)?;
    net.classify(pooled)
}

#[cfg(test)]
mod tests {
    use super::super::{ModelSpec, build};

    #[test]
    fn six_convolutions_and_a_linear_layer() {
        let net = build(&ModelSpec::new("streaming-cnn"), 1, &[100, 60]).expect("it builds");
        assert_eq!(net.inits.len(), 14);
        let last = net.tape.by_name("block3").expect("the last map");
        assert_eq!(net.tape.ty(last).shape.dims(), [1, 16, 12, 7]);
    }
}
