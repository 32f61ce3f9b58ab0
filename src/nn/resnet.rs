//! Residual networks (He et al., arXiv:1512.03385), parameters named and shaped
//! as torchvision has them, with a choice of norm and of pooling head.
//!
//! Strides sit on the 3×3 convolution of a bottleneck, as in torchvision.

use sstep_autodiff::{NodeId, PoolSpec};

use super::Net;
use super::layers::Layers;
use super::spec::{Head, ModelSpec, Norm};
use crate::error::Error;

/// Channels of the stem if nothing is said.
const WIDTH: usize = 64;

/// Which residual network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Depth {
    R10,
    R18,
    R34,
    R50,
}

impl Depth {
    /// Blocks in each of the four layers.
    fn blocks(self) -> [usize; 4] {
        match self {
            Depth::R10 => [1, 1, 1, 1],
            Depth::R18 => [2, 2, 2, 2],
            Depth::R34 | Depth::R50 => [3, 4, 6, 3],
        }
    }

    /// Channels that a block ends with, per channel it works in.
    fn expansion(self) -> usize {
        match self {
            Depth::R10 | Depth::R18 | Depth::R34 => 1,
            Depth::R50 => 4,
        }
    }
}

/// The network for images of one to three axes.
pub(super) fn build(
    spec: &ModelSpec,
    depth: Depth,
    batch: usize,
    size: &[usize],
) -> Result<Net, Error> {
    spec.check(&["levels", "upsample", "loss"])?;
    spec.check_size(1..=3, batch, size)?;
    let width = spec.width.unwrap_or(WIDTH);
    let mut net = Layers::new(spec, spec.norm.unwrap_or(Norm::FrozenBatch), size.len())?;
    let image = net.image(batch, size)?;
    let x = net.conv_norm("conv1", "bn1", image, width, [7, 2])?;
    let x = net.relu(x)?;
    let mut x = net.max_pool("maxpool", x, PoolSpec::new(3).strided(2).padded(1))?;
    for (layer, n_blocks) in depth.blocks().into_iter().enumerate() {
        for index in 0..n_blocks {
            let stride = if index == 0 && layer > 0 { 2 } else { 1 };
            let name = format!("layer{}.{index}", layer + 1);
            let inner = width << layer;
            x = block(&mut net, depth, &name, x, inner, stride)?;
        }
    }
    let pooled = net.head(spec.head.unwrap_or(Head::Mean), x)?;
    net.classify(pooled)
}

/// One residual block, with a 1×1 convolution on the skip if shapes differ.
fn block(
    net: &mut Layers<'_>,
    depth: Depth,
    name: &str,
    x: NodeId,
    inner: usize,
    stride: usize,
) -> Result<NodeId, Error> {
    let out = inner * depth.expansion();
    let at = |part: &str| format!("{name}.{part}");
    let windows: &[[usize; 2]] = match depth {
        Depth::R10 | Depth::R18 | Depth::R34 => &[[3, stride], [3, 1]],
        Depth::R50 => &[[1, 1], [3, stride], [1, 1]],
    };
    let mut y = x;
    for (i, &window) in windows.iter().enumerate() {
        let last = i + 1 == windows.len();
        let (conv, norm) = (at(&format!("conv{}", i + 1)), at(&format!("bn{}", i + 1)));
        y = net.conv_norm(&conv, &norm, y, if last { out } else { inner }, window)?;
        if !last {
            y = net.relu(y)?;
        }
    }
    let skip = if stride != 1 || net.ty(x).shape.channels() != out {
        net.conv_norm(
            &at("downsample.0"),
            &at("downsample.1"),
            x,
            out,
            [1, stride],
        )?
    } else {
        x
    };
    let sum = net.tape.add(y, skip)?;
    let y = net.relu(sum)?;
    net.tape.rename(y, name)?;
    Ok(y)
}

#[cfg(test)]
mod tests {
    use super::super::build;
    use super::*;
    use sstep_autodiff::Op;

    /// Trained parameters of a network, in elements.
    fn n_params(spec: &ModelSpec) -> usize {
        let net = build(spec, 1, &[224, 224]).expect("it builds");
        let trained = net.tape.order().iter().map(|&id| net.tape.node(id));
        let trained = trained.filter(|n| matches!(n.op, Op::Param { grad: true }));
        trained.map(|n| n.ty.shape.elems()).sum()
    }

    #[test]
    fn as_many_parameters_as_torchvision() {
        let models = [
            ("resnet18", 11_689_512),
            ("resnet34", 21_797_672),
            ("resnet50", 25_557_032),
        ];
        for (name, wanted) in models {
            let spec = ModelSpec {
                classes: 1000,
                ..ModelSpec::new(name)
            };
            assert_eq!(n_params(&spec), wanted, "{name}");
        }
    }

    #[test]
    fn torchvision_names() -> Result<(), Error> {
        let net = build(&ModelSpec::new("resnet50"), 2, &[65, 71])?;
        for (name, dims) in [
            ("conv1.weight", &[64, 3, 7, 7][..]),
            ("bn1.running_var", &[64]),
            ("layer1.0.downsample.0.weight", &[256, 64, 1, 1]),
            ("layer1.0.downsample.1.bias", &[256]),
            ("layer4.2.conv3.weight", &[2048, 512, 1, 1]),
            ("fc.weight", &[2, 2048]),
            ("fc.bias", &[2]),
        ] {
            let id = net.tape.by_name(name).unwrap_or_else(|| panic!("{name}"));
            assert_eq!(net.tape.ty(id).shape.dims(), dims, "{name}");
        }
        assert_eq!(
            net.tape
                .ty(net.tape.by_name("layer4.2").expect("a node"))
                .shape
                .dims(),
            [2, 2048, 3, 3]
        );
        Ok(())
    }

    #[test]
    fn every_norm_and_head() -> Result<(), Error> {
        for &norm in Norm::ALL {
            for &head in Head::ALL {
                for size in [&[40, 33][..], &[20, 9, 17], &[100]] {
                    let spec = ModelSpec {
                        width: Some(16),
                        norm: Some(norm),
                        head: Some(head),
                        ..ModelSpec::new("resnet10")
                    };
                    let mut net = build(&spec, 1, size)?;
                    let gradients = sstep_autodiff::backward(&mut net.tape, net.loss)?;
                    assert!(!gradients.is_empty());
                }
            }
        }
        Ok(())
    }

    #[test]
    fn refuses_what_it_does_not_have() {
        let cases = [
            (
                ModelSpec {
                    levels: Some(3),
                    ..ModelSpec::new("resnet18")
                },
                "`levels`",
            ),
            (
                ModelSpec {
                    groups: Some(3),
                    ..ModelSpec::new("resnet18")
                },
                "group norm",
            ),
            (
                ModelSpec {
                    groups: Some(5),
                    norm: Some(Norm::Group),
                    ..ModelSpec::new("resnet18")
                },
                "5 groups do not divide the 64 channels of bn1",
            ),
            (
                ModelSpec {
                    width: Some(0),
                    ..ModelSpec::new("resnet18")
                },
                "width = 0",
            ),
            (ModelSpec::new("resnet19"), "resnet18"),
        ];
        for (spec, wanted) in cases {
            let error = build(&spec, 1, &[64, 64]).expect_err(wanted).to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
