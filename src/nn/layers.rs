//! Layers with parameters, named as PyTorch would name them.
//!
//! A layer `conv1` makes the parameters `conv1.weight` and `conv1.bias` and the
//! node `conv1`, so that plans read like the network's source and weights of
//! the same network elsewhere fit by name.

use std::collections::BTreeMap;

use sstep_autodiff::{
    Attention, ConvSpec, DType, NodeId, PoolSpec, Tape, TapeError, Ty, UpsampleMode,
};

use super::Net;
use super::init::{Init, inits_of};
use super::spec::{Head, ModelSpec, Norm};
use crate::error::Error;

/// Added to variances, as PyTorch does.
const EPS: f64 = 1e-5;
/// Groups of group norm if nothing is said.
const GROUPS: usize = 8;
/// Width of the attention head's hidden layer, as in its paper; narrower
/// features get a narrower one.
const ATTENTION_WIDTH: usize = 128;

type Built = Result<NodeId, Error>;

/// A tape under construction.
pub(super) struct Layers<'a> {
    pub(super) tape: Tape,
    spec: &'a ModelSpec,
    norm: Norm,
    n_spatial: usize,
    /// Starts other than a parameter's use suggests.
    inits: BTreeMap<String, Init>,
}

impl<'a> Layers<'a> {
    /// An empty tape for images of `n_spatial` axes.
    pub(super) fn new(spec: &'a ModelSpec, norm: Norm, n_spatial: usize) -> Result<Self, Error> {
        if norm != Norm::Group && spec.groups.is_some() {
            return Err(spec.error("groups are an option of group norm"));
        }
        Ok(Layers {
            tape: Tape::new(spec.dtype),
            spec,
            norm,
            n_spatial,
            inits: BTreeMap::new(),
        })
    }

    /// The image input.
    pub(super) fn image(&mut self, batch: usize, size: &[usize]) -> Built {
        let dims = [&[batch, self.spec.in_channels], size].concat();
        Ok(self.tape.input("image", &dims)?)
    }

    /// Type of a node.
    pub(super) fn ty(&self, id: NodeId) -> Ty {
        self.tape.ty(id)
    }

    fn named(&mut self, id: NodeId, name: &str) -> Built {
        self.tape.rename(id, name)?;
        Ok(id)
    }

    /// Shape of a kernel of `k` taps per axis.
    fn kernel(&self, out: usize, of: usize, k: usize) -> Vec<usize> {
        let mut dims = vec![out, of];
        dims.resize(2 + self.n_spatial, k);
        dims
    }

    fn bias(&mut self, name: &str, out: usize) -> Built {
        Ok(self.tape.param(&format!("{name}.bias"), &[out])?)
    }

    /// Convolution of `k` taps per axis, padded to keep the size at stride 1.
    pub(super) fn conv(
        &mut self,
        name: &str,
        x: NodeId,
        out: usize,
        [k, stride]: [usize; 2],
        bias: bool,
    ) -> Built {
        let kernel = self.kernel(out, self.ty(x).shape.channels(), k);
        let w = self.tape.param(&format!("{name}.weight"), &kernel)?;
        let b = if bias {
            Some(self.bias(name, out)?)
        } else {
            None
        };
        let y = self
            .tape
            .conv(x, w, b, ConvSpec::padded(k / 2).strided(stride))?;
        self.named(y, name)
    }

    /// Convolution followed by the network's norm; it has a bias only if there
    /// is no norm to undo it.
    pub(super) fn conv_norm(
        &mut self,
        conv: &str,
        norm: &str,
        x: NodeId,
        out: usize,
        window: [usize; 2],
    ) -> Built {
        let y = self.conv(conv, x, out, window, self.norm == Norm::None)?;
        self.norm(norm, y)
    }

    /// The network's norm.
    fn norm(&mut self, name: &str, x: NodeId) -> Built {
        let channels = self.ty(x).shape.channels();
        let affine = |tape: &mut Tape| -> Result<[NodeId; 2], TapeError> {
            let gamma = tape.param(&format!("{name}.weight"), &[channels])?;
            let beta = tape.param(&format!("{name}.bias"), &[channels])?;
            Ok([gamma, beta])
        };
        let y = match self.norm {
            Norm::None => return Ok(x),
            Norm::Group => {
                let groups = self.spec.groups.unwrap_or(GROUPS.min(channels));
                if !channels.is_multiple_of(groups) {
                    return Err(self.spec.error(format!(
                        "{groups} groups do not divide the {channels} channels of {name}"
                    )));
                }
                let [gamma, beta] = affine(&mut self.tape)?;
                self.tape.group_norm(x, groups, gamma, beta, EPS)?
            }
            Norm::FrozenBatch => {
                let [gamma, beta] = affine(&mut self.tape)?;
                let mean = self
                    .tape
                    .frozen_param(&format!("{name}.running_mean"), &[channels])?;
                let var = self
                    .tape
                    .frozen_param(&format!("{name}.running_var"), &[channels])?;
                self.tape.frozen_norm(x, [mean, var], gamma, beta, EPS)?
            }
        };
        self.named(y, name)
    }

    /// `max(x, 0)`.
    pub(super) fn relu(&mut self, x: NodeId) -> Built {
        Ok(self.tape.relu(x)?)
    }

    /// Maximum of `k` per axis.
    pub(super) fn max_pool(&mut self, name: &str, x: NodeId, pool: PoolSpec) -> Built {
        let y = self.tape.max_pool(x, pool)?;
        self.named(y, name)
    }

    /// Doubles the size by a transposed convolution to `out` channels.
    pub(super) fn up_transposed(&mut self, name: &str, x: NodeId, out: usize) -> Built {
        // A transposed weight's first axis is its input.
        let kernel = self.kernel(self.ty(x).shape.channels(), out, 2);
        let w = self.tape.param(&format!("{name}.weight"), &kernel)?;
        let b = self.bias(name, out)?;
        let y = self
            .tape
            .conv_transpose(x, w, Some(b), ConvSpec::default().strided(2))?;
        self.named(y, name)
    }

    /// Doubles the size by interpolation, then a 1×1 convolution to `out`
    /// channels.
    pub(super) fn up_linear(&mut self, name: &str, x: NodeId, out: usize) -> Built {
        // The convolution first: it commutes, on a fraction of the positions.
        let y = self.conv(name, x, out, [1, 1], true)?;
        Ok(self.tape.upsample(y, 2, UpsampleMode::Linear)?)
    }

    /// Pads (or cuts) `x` to the extents of `like`, half on each side.
    pub(super) fn fit(&mut self, x: NodeId, like: NodeId) -> Built {
        let (from, to) = (self.ty(x).shape, self.ty(like).shape);
        if from.spatial() == to.spatial() {
            return Ok(x);
        }
        let spatial = || from.spatial().iter().zip(to.spatial());
        let lo = spatial().map(|(f, t)| t.saturating_sub(*f) / 2);
        let hi = spatial().map(|(f, t)| t.saturating_sub(*f).div_ceil(2));
        let lo: Vec<usize> = std::iter::once(0).chain(lo).collect();
        let hi: Vec<usize> = std::iter::once(0).chain(hi).collect();
        let mut y = x;
        if lo.iter().chain(&hi).any(|&p| p > 0) {
            y = self.tape.pad(y, &lo, &hi)?;
        }
        if spatial().any(|(f, t)| f > t) {
            let start = spatial().map(|(f, t)| f.saturating_sub(*t) / 2);
            let start: Vec<usize> = std::iter::once(0).chain(start).collect();
            let len: Vec<usize> = std::iter::once(from.channels())
                .chain(to.spatial().iter().copied())
                .collect();
            y = self.tape.slice(y, &start, &len)?;
        }
        Ok(y)
    }

    /// Pools a map into `[N, C]`.
    pub(super) fn head(&mut self, head: Head, x: NodeId) -> Built {
        let y = match head {
            Head::Mean => self.tape.global_mean(x)?,
            Head::Max => self.tape.global_max(x)?,
            Head::Attention => {
                let channels = self.ty(x).shape.channels();
                let hidden = channels.min(ATTENTION_WIDTH);
                let wide = self.kernel(hidden, channels, 1);
                // V and U are linear layers over channels, and started as such.
                // The vector w starts of order one (Kaiming), so that attention is
                // selective from the first step: pooling that starts as a mean over
                // millions of positions hardly tells two slides apart.
                for layer in ["v", "u"] {
                    let bound = 1.0 / (channels as f64).sqrt();
                    for part in ["weight", "bias"] {
                        let name = format!("attention.{layer}.{part}");
                        self.inits.insert(name, Init::Uniform { bound });
                    }
                }
                let narrow = self.kernel(1, hidden, 1);
                let attention = Attention {
                    v: self.tape.param("attention.v.weight", &wide)?,
                    v_bias: Some(self.bias("attention.v", hidden)?),
                    u: self.tape.param("attention.u.weight", &wide)?,
                    u_bias: Some(self.bias("attention.u", hidden)?),
                    w: self.tape.param("attention.w.weight", &narrow)?,
                };
                self.tape.attention_pool(x, attention)?
            }
        };
        self.named(y, "pooled")
    }

    /// Linear layer to the classes and cross-entropy with `labels: [N, 1]`.
    pub(super) fn classify(mut self, pooled: NodeId) -> Result<Net, Error> {
        let shape = self.ty(pooled).shape;
        let classes = self.spec.classes;
        let w = self.tape.param("fc.weight", &[classes, shape.channels()])?;
        let b = self.bias("fc", classes)?;
        let logits = self.tape.linear(pooled, w, Some(b))?;
        self.named(logits, "logits")?;
        let labels = self.tape.input("labels", &[shape.batch(), 1])?;
        let loss = self.tape.cross_entropy(logits, labels)?;
        self.finish(logits, loss)
    }

    /// Names the loss and collects how parameters start.
    pub(super) fn finish(mut self, logits: NodeId, loss: NodeId) -> Result<Net, Error> {
        self.named(loss, "loss")?;
        self.tape.output(loss);
        debug_assert!(matches!(self.tape.dtype(), DType::F32 | DType::F64));
        let mut inits = inits_of(&self.tape);
        for (name, init) in self.inits {
            if let Some(slot) = inits.get_mut(&name) {
                *slot = init;
            }
        }
        Ok(Net {
            loss,
            logits,
            image: "image".to_owned(),
            labels: "labels".to_owned(),
            inits,
            tape: self.tape,
        })
    }
}
