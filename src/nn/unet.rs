//! U-Net (Ronneberger et al., arXiv:1505.04597; 3-D: arXiv:1606.06650) with
//! padded convolutions, for images of any size.
//!
//! Halving rounds down, so a doubled map can be one short of the map it joins;
//! it is then padded with zeros, as PyTorch users do.

use sstep_autodiff::{NodeId, PoolSpec};

use super::Net;
use super::layers::Layers;
use super::spec::{Loss, ModelSpec, Norm, Upsample};
use crate::error::Error;

/// How often it halves the image if nothing is said.
const LEVELS: usize = 4;
/// Smoothing of the Dice loss.
const SMOOTH: f64 = 1.0;

/// The network for images of `n_spatial` axes.
pub(super) fn build(
    spec: &ModelSpec,
    n_spatial: usize,
    batch: usize,
    size: &[usize],
) -> Result<Net, Error> {
    spec.check(&["head"])?;
    spec.check_size(n_spatial..=n_spatial, batch, size)?;
    let width = spec.width.unwrap_or(if n_spatial == 2 { 64 } else { 32 });
    let levels = spec.levels.unwrap_or(LEVELS);
    if let Some(short) = size.iter().find(|e| **e >> levels == 0) {
        let least = 1 << levels;
        return Err(spec.error(format!(
            "an extent of {short} cannot be halved {levels} times; {least} is the least"
        )));
    }
    let mut net = Layers::new(spec, spec.norm.unwrap_or(Norm::Group), n_spatial)?;
    let mut x = net.image(batch, size)?;
    let mut skips = Vec::new();
    for level in 0..levels {
        x = double_conv(&mut net, &format!("enc{}", level + 1), x, width << level)?;
        skips.push(x);
        x = net.max_pool(&format!("pool{}", level + 1), x, PoolSpec::new(2))?;
    }
    x = double_conv(&mut net, "bottom", x, width << levels)?;
    for (level, skip) in skips.into_iter().enumerate().rev() {
        let channels = width << level;
        let name = format!("up{}", level + 1);
        let up = match spec.upsample.unwrap_or(Upsample::Transposed) {
            Upsample::Transposed => net.up_transposed(&name, x, channels)?,
            Upsample::Linear => net.up_linear(&name, x, channels)?,
        };
        let up = net.fit(up, skip)?;
        let joined = net.tape.concat(&[skip, up])?;
        x = double_conv(&mut net, &format!("dec{}", level + 1), joined, channels)?;
    }
    let logits = net.conv("head", x, spec.classes, [1, 1], true)?;
    net.tape.rename(logits, "logits")?;
    segment(net, spec, logits)
}

/// Twice convolution, norm, ReLU.
fn double_conv(
    net: &mut Layers<'_>,
    name: &str,
    x: NodeId,
    channels: usize,
) -> Result<NodeId, Error> {
    let mut y = x;
    for i in 1..=2 {
        let (conv, norm) = (format!("{name}.conv{i}"), format!("{name}.norm{i}"));
        y = net.conv_norm(&conv, &norm, y, channels, [3, 1])?;
        y = net.relu(y)?;
    }
    net.tape.rename(y, name)?;
    Ok(y)
}

/// The loss against per-pixel labels.
fn segment(mut net: Layers<'_>, spec: &ModelSpec, logits: NodeId) -> Result<Net, Error> {
    let shape = net.ty(logits).shape;
    let loss = match spec.loss.unwrap_or(Loss::CrossEntropy) {
        Loss::CrossEntropy => {
            let labels = net.tape.input("labels", shape.with_channels(1).dims())?;
            net.tape.cross_entropy(logits, labels)?
        }
        Loss::DiceCrossEntropy => {
            let labels = net.tape.input("labels", shape.dims())?;
            let indices = class_indices(&mut net, labels, shape.channels())?;
            let entropy = net.tape.cross_entropy(logits, indices)?;
            let p = net.tape.softmax(logits)?;
            let dice = net.tape.soft_dice(p, labels, SMOOTH)?;
            net.tape.add(entropy, dice)?
        }
    };
    net.finish(logits, loss)
}

/// `Σ k · onehot[k]`: the class index of each position.
fn class_indices(net: &mut Layers<'_>, onehot: NodeId, classes: usize) -> Result<NodeId, Error> {
    let first = net.tape.slice_channels(onehot, 0, 1)?;
    let mut sum = net.tape.scale(first, 0.0)?;
    for class in 1..classes {
        let channel = net.tape.slice_channels(onehot, class, 1)?;
        let term = net.tape.scale(channel, class as f64)?;
        sum = net.tape.add(sum, term)?;
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::*;

    #[test]
    fn any_size_and_option() -> Result<(), Error> {
        let sizes: [(&str, &[usize]); 4] = [
            ("unet2d", &[64, 64]),
            ("unet2d", &[37, 53]),
            ("unet3d", &[17, 20, 23]),
            ("unet3d", &[16, 16, 16]),
        ];
        for (name, size) in sizes {
            for &upsample in Upsample::ALL {
                for &loss in Loss::ALL {
                    let spec = ModelSpec {
                        width: Some(8),
                        classes: 3,
                        in_channels: 1,
                        upsample: Some(upsample),
                        loss: Some(loss),
                        ..ModelSpec::new(name)
                    };
                    let mut net = build(&spec, 2, size)?;
                    let wanted = [&[2, 3], size].concat();
                    assert_eq!(net.tape.ty(net.logits).shape.dims(), wanted);
                    sstep_autodiff::backward(&mut net.tape, net.loss)?;
                }
            }
        }
        Ok(())
    }

    #[test]
    fn too_small_an_image() {
        let error = build(&ModelSpec::new("unet2d"), 1, &[15, 64]).expect_err("15 < 16");
        assert!(error.to_string().contains("an extent of 15"), "{error}");
    }
}
