//! Writing a tape from Rust: one method per layer.
//!
//! Every method appends one node or a short idiom and returns the result's id.
//! Nodes get names from their position; [`Tape::rename`] gives better ones.
//! What has no op of its own is composed here from those that have, so that it
//! is planned and differentiated like everything else: `a − b` is
//! `a + (−1)·b`, a mean is a scaled sum, a softmax over space is
//! `exp(a − log Σ exp a)`.

use crate::error::{ShapeReason, TapeError};
use crate::op::{
    ConvAttrs, ConvTransposeAttrs, NormAttrs, NormKind, Num, Op, PadAttrs, PerAxis, PoolAttrs,
    SliceAttrs, UnaryKind, UpsampleAttrs, UpsampleMode,
};
use crate::ops;
use crate::tape::{NodeId, Tape};
use crate::ty::{MAX_SPATIAL, Ty};

/// The id of the new node.
type Built = Result<NodeId, TapeError>;

/// How a convolution slides; entries beyond the map's axes are ignored.
///
/// ```
/// # use sstep_autodiff::ConvSpec;
/// let halving = ConvSpec { stride: [2; 3], ..ConvSpec::padded(1) };
/// assert_eq!(halving, ConvSpec::padded(1).strided(2));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvSpec {
    /// Step between outputs.
    pub stride: PerAxis,
    /// Step between taps.
    pub dilation: PerAxis,
    /// Zeros before the first element.
    pub pad_lo: PerAxis,
    /// Zeros after the last element.
    pub pad_hi: PerAxis,
    /// Channel groups.
    pub groups: usize,
}

impl Default for ConvSpec {
    /// Stride 1, dilation 1, no padding, one group.
    fn default() -> Self {
        ConvSpec {
            stride: [1; MAX_SPATIAL],
            dilation: [1; MAX_SPATIAL],
            pad_lo: [0; MAX_SPATIAL],
            pad_hi: [0; MAX_SPATIAL],
            groups: 1,
        }
    }
}

impl ConvSpec {
    /// `pad` zeros on every side, otherwise the default.
    pub fn padded(pad: usize) -> Self {
        ConvSpec {
            pad_lo: [pad; MAX_SPATIAL],
            pad_hi: [pad; MAX_SPATIAL],
            ..Self::default()
        }
    }

    /// The same with one stride on all axes.
    pub fn strided(self, stride: usize) -> Self {
        ConvSpec {
            stride: [stride; MAX_SPATIAL],
            ..self
        }
    }

    /// The same with one dilation on all axes.
    pub fn dilated(self, dilation: usize) -> Self {
        ConvSpec {
            dilation: [dilation; MAX_SPATIAL],
            ..self
        }
    }

    /// The same with channel groups.
    pub fn grouped(self, groups: usize) -> Self {
        ConvSpec { groups, ..self }
    }

    /// Attributes over the axes of `x`, with the kernel of the weight `w`.
    fn attrs(&self, x: Ty, w: Ty) -> ConvAttrs {
        let n = n_spatial(&x);
        let mut kernel = [1; MAX_SPATIAL];
        for (k, &extent) in kernel.iter_mut().zip(w.shape.spatial()).take(n) {
            *k = extent;
        }
        ConvAttrs {
            kernel,
            stride: first(self.stride, n, 1),
            dilation: first(self.dilation, n, 1),
            pad_lo: first(self.pad_lo, n, 0),
            pad_hi: first(self.pad_hi, n, 0),
            groups: self.groups,
        }
    }
}

/// How a pooling window slides; entries beyond the map's axes are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// Window extent.
    pub kernel: PerAxis,
    /// Step between windows.
    pub stride: PerAxis,
    /// Padding before.
    pub pad_lo: PerAxis,
    /// Padding after.
    pub pad_hi: PerAxis,
    /// Whether an average counts padding in its divisor.
    pub count_pad: bool,
}

impl PoolSpec {
    /// Windows of `kernel` side by side, no padding; averages count padding.
    pub fn new(kernel: usize) -> Self {
        PoolSpec {
            kernel: [kernel; MAX_SPATIAL],
            stride: [kernel; MAX_SPATIAL],
            pad_lo: [0; MAX_SPATIAL],
            pad_hi: [0; MAX_SPATIAL],
            count_pad: true,
        }
    }

    /// The same with one stride on all axes.
    pub fn strided(self, stride: usize) -> Self {
        PoolSpec {
            stride: [stride; MAX_SPATIAL],
            ..self
        }
    }

    /// The same with padding on every side.
    pub fn padded(self, pad: usize) -> Self {
        PoolSpec {
            pad_lo: [pad; MAX_SPATIAL],
            pad_hi: [pad; MAX_SPATIAL],
            ..self
        }
    }

    fn attrs(&self, x: Ty) -> PoolAttrs {
        let n = n_spatial(&x);
        PoolAttrs {
            kernel: first(self.kernel, n, 1),
            stride: first(self.stride, n, 1),
            pad_lo: first(self.pad_lo, n, 0),
            pad_hi: first(self.pad_hi, n, 0),
            count_pad: self.count_pad,
        }
    }
}

/// Parameters of gated attention pooling ([`Tape::attention_pool`]): weights of
/// 1×1 convolutions with optional biases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attention {
    /// `[L, C, 1…]`, through a hyperbolic tangent.
    pub v: NodeId,
    /// `[L]`.
    pub v_bias: Option<NodeId>,
    /// `[L, C, 1…]`, through a sigmoid: the gate.
    pub u: NodeId,
    /// `[L]`.
    pub u_bias: Option<NodeId>,
    /// `[1, L, 1…]`, to the logit of each position. A bias would cancel.
    pub w: NodeId,
}

fn n_spatial(x: &Ty) -> usize {
    if x.is_map() {
        x.shape.spatial().len()
    } else {
        0
    }
}

/// The first `n` entries, the rest neutral.
fn first(values: PerAxis, n: usize, neutral: usize) -> PerAxis {
    std::array::from_fn(|s| if s < n { values[s] } else { neutral })
}

/// `values` continued with `neutral`; too many are cut off after `K`, where
/// their number has been checked by the caller.
fn extend<const K: usize>(values: &[usize], neutral: usize) -> [usize; K] {
    std::array::from_fn(|i| values.get(i).copied().unwrap_or(neutral))
}

/// Leaves.
impl Tape {
    fn leaf_of(&mut self, name: &str, op: Op, dims: &[usize]) -> Built {
        let form = ops::leaf_form(&op, dims.len());
        let ty = ops::checked_ty(self.dtype(), form, dims)
            .map_err(|reason| reason.at(name, &op, &[]))?;
        self.leaf(name, op, ty)
    }

    /// Data given at every step: a map `[N, C, spatial…]` if it has three
    /// dimensions or more, else flat. Labels are inputs too.
    ///
    /// # Errors
    /// As [`Tape::leaf`].
    pub fn input(&mut self, name: &str, dims: &[usize]) -> Built {
        self.leaf_of(name, Op::Input { grad: false }, dims)
    }

    /// An input whose gradient is wanted.
    ///
    /// # Errors
    /// As [`Tape::leaf`].
    pub fn input_with_grad(&mut self, name: &str, dims: &[usize]) -> Built {
        self.leaf_of(name, Op::Input { grad: true }, dims)
    }

    /// A trained parameter.
    ///
    /// # Errors
    /// As [`Tape::leaf`].
    pub fn param(&mut self, name: &str, dims: &[usize]) -> Built {
        self.leaf_of(name, Op::Param { grad: true }, dims)
    }

    /// A parameter that is not trained, such as a running mean.
    ///
    /// # Errors
    /// As [`Tape::leaf`].
    pub fn frozen_param(&mut self, name: &str, dims: &[usize]) -> Built {
        self.leaf_of(name, Op::Param { grad: false }, dims)
    }

    /// A flat tensor of one value.
    ///
    /// # Errors
    /// [`TapeError::Shape`] if the value is not finite or the shape is none.
    pub fn constant(&mut self, value: f64, dims: &[usize]) -> Built {
        let name = self.free_name("t");
        self.leaf_of(
            &name,
            Op::Constant {
                value: Num::new(value),
            },
            dims,
        )
    }
}

/// Windows: convolution, pooling, resampling.
///
/// Every method returns [`TapeError::Shape`] if the op does not accept its
/// inputs.
impl Tape {
    /// Convolution of `x: [N, C, spatial…]` by `w: [K, C/groups, kernel…]`, plus
    /// `b: [K]`.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn conv(&mut self, x: NodeId, w: NodeId, b: Option<NodeId>, spec: ConvSpec) -> Built {
        let attrs = spec.attrs(self.ty(x), self.ty(w));
        self.push(Op::Conv(attrs), &with_bias(x, w, b))
    }

    /// Transposed convolution of `x: [N, K, spatial…]` by `w: [K, C/groups,
    /// kernel…]` to the least extents possible, `(in − 1)·stride − padding + span`.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn conv_transpose(
        &mut self,
        x: NodeId,
        w: NodeId,
        b: Option<NodeId>,
        spec: ConvSpec,
    ) -> Built {
        let a = spec.attrs(self.ty(x), self.ty(w));
        let mut out = [1; MAX_SPATIAL];
        for (s, &extent) in self
            .ty(x)
            .shape
            .spatial()
            .iter()
            .enumerate()
            .take(MAX_SPATIAL)
        {
            // Saturating, since the attributes are not bounded yet.
            let span = (a.kernel[s] - 1)
                .saturating_mul(a.dilation[s])
                .saturating_add(1);
            out[s] = (extent - 1)
                .saturating_mul(a.stride[s])
                .saturating_add(span)
                .saturating_sub(a.pad_lo[s].saturating_add(a.pad_hi[s]));
        }
        let n = n_spatial(&self.ty(x));
        self.conv_transpose_to(x, w, b, spec, &out[..n])
    }

    /// Transposed convolution to given extents, each less than a stride above
    /// the least.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn conv_transpose_to(
        &mut self,
        x: NodeId,
        w: NodeId,
        b: Option<NodeId>,
        spec: ConvSpec,
        out_spatial: &[usize],
    ) -> Built {
        let conv = spec.attrs(self.ty(x), self.ty(w));
        let op = Op::ConvTranspose(ConvTransposeAttrs {
            conv,
            out_spatial: extend(out_spatial, 1),
        });
        let inputs = with_bias(x, w, b);
        self.expect_len(
            "output extents",
            out_spatial,
            n_spatial(&self.ty(x)),
            &op,
            &inputs,
        )?;
        self.push(op, &inputs)
    }

    /// Windowed maximum.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn max_pool(&mut self, x: NodeId, spec: PoolSpec) -> Built {
        let attrs = PoolSpec {
            count_pad: false,
            ..spec
        }
        .attrs(self.ty(x));
        self.push(Op::MaxPool(attrs), &[x])
    }

    /// Windowed mean.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn avg_pool(&mut self, x: NodeId, spec: PoolSpec) -> Built {
        let attrs = spec.attrs(self.ty(x));
        self.push(Op::AvgPool(attrs), &[x])
    }

    /// Upsampling by one factor on all axes.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn upsample(&mut self, x: NodeId, factor: usize, mode: UpsampleMode) -> Built {
        let factor = first([factor; MAX_SPATIAL], n_spatial(&self.ty(x)), 1);
        self.push(Op::Upsample(UpsampleAttrs { mode, factor }), &[x])
    }

    fn expect_len(
        &self,
        what: &str,
        values: &[usize],
        n: usize,
        op: &Op,
        inputs: &[NodeId],
    ) -> Result<(), TapeError> {
        if values.len() == n {
            return Ok(());
        }
        let tys: Vec<Ty> = inputs.iter().map(|&i| self.ty(i)).collect();
        let reason = format!("{n} {what} are needed, not {}", values.len());
        Err(ShapeReason(reason).at(&self.free_name("t"), op, &tys))
    }
}

fn with_bias(x: NodeId, w: NodeId, b: Option<NodeId>) -> Vec<NodeId> {
    [x, w].into_iter().chain(b).collect()
}

/// Functions of elements.
impl Tape {
    /// A function of each element.
    ///
    /// # Errors
    /// [`TapeError::Shape`] if a parameter of the function is out of range.
    pub fn unary(&mut self, kind: UnaryKind, x: NodeId) -> Built {
        self.push(Op::Unary(kind), &[x])
    }

    /// `max(x, 0)`.
    ///
    /// # Errors
    /// None for nodes of this tape.
    pub fn relu(&mut self, x: NodeId) -> Built {
        self.unary(UnaryKind::Relu, x)
    }

    /// `x` where positive, `slope · x` elsewhere.
    ///
    /// # Errors
    /// [`TapeError::Shape`] unless `slope > 0`.
    pub fn leaky_relu(&mut self, x: NodeId, slope: f64) -> Built {
        self.unary(UnaryKind::LeakyRelu(Num::new(slope)), x)
    }

    /// `x Φ(x)`.
    ///
    /// # Errors
    /// None for nodes of this tape.
    pub fn gelu(&mut self, x: NodeId) -> Built {
        self.unary(UnaryKind::Gelu, x)
    }

    /// `x σ(x)`.
    ///
    /// # Errors
    /// None for nodes of this tape.
    pub fn silu(&mut self, x: NodeId) -> Built {
        self.unary(UnaryKind::Silu, x)
    }

    /// `1 / (1 + e⁻ˣ)`.
    ///
    /// # Errors
    /// None for nodes of this tape.
    pub fn sigmoid(&mut self, x: NodeId) -> Built {
        self.unary(UnaryKind::Sigmoid, x)
    }

    /// Hyperbolic tangent.
    ///
    /// # Errors
    /// None for nodes of this tape.
    pub fn tanh(&mut self, x: NodeId) -> Built {
        self.unary(UnaryKind::Tanh, x)
    }

    /// `eˣ`.
    ///
    /// # Errors
    /// None for nodes of this tape.
    pub fn exp(&mut self, x: NodeId) -> Built {
        self.unary(UnaryKind::Exp, x)
    }

    /// `a + b`; over a map `a`, a flat `b: [N, C]` or a one-channel `b` repeats.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn add(&mut self, a: NodeId, b: NodeId) -> Built {
        self.push(Op::Add, &[a, b])
    }

    /// `a − b`, as `a + (−1)·b`.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn sub(&mut self, a: NodeId, b: NodeId) -> Built {
        let minus = self.scale(b, -1.0)?;
        self.add(a, minus)
    }

    /// `a · b`, repeated like [`Tape::add`]. With a flat `b` this is the
    /// excitation of squeeze-and-excite.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn mul(&mut self, a: NodeId, b: NodeId) -> Built {
        self.push(Op::Mul, &[a, b])
    }

    /// `factor · x`.
    ///
    /// # Errors
    /// [`TapeError::Shape`] unless `factor` is finite.
    pub fn scale(&mut self, x: NodeId, factor: f64) -> Built {
        self.push(
            Op::Scale {
                factor: Num::new(factor),
            },
            &[x],
        )
    }

    /// Dropout with probability `p`; each call draws masks of its own.
    ///
    /// # Errors
    /// [`TapeError::Shape`] unless `0 ≤ p < 1`.
    pub fn dropout(&mut self, x: NodeId, p: f64) -> Built {
        let keys = self
            .order()
            .iter()
            .filter_map(|&id| match self.node(id).op {
                Op::Dropout { key, .. } => Some(key),
                _ => None,
            });
        let key = keys.max().map_or(0, |last| last.wrapping_add(1));
        self.push(
            Op::Dropout {
                p: Num::new(p),
                key,
            },
            &[x],
        )
    }

    /// Softmax over channels.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn softmax(&mut self, x: NodeId) -> Built {
        self.push(Op::Softmax, &[x])
    }
}

/// Structure.
impl Tape {
    /// Channels one after another.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn concat(&mut self, inputs: &[NodeId]) -> Built {
        self.push(Op::Concat, inputs)
    }

    /// A box, by first index and length of the channels and each spatial axis.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn slice(&mut self, x: NodeId, start: &[usize], len: &[usize]) -> Built {
        let op = Op::Slice(SliceAttrs {
            start: extend(start, 0),
            len: extend(len, 1),
        });
        let n = self.ty(x).shape.rank() - 1;
        self.expect_len("starts (channels, then space)", start, n, &op, &[x])?;
        self.expect_len("lengths (channels, then space)", len, n, &op, &[x])?;
        self.push(op, &[x])
    }

    /// Channels `first..first + len`, all of space.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn slice_channels(&mut self, x: NodeId, first: usize, len: usize) -> Built {
        let shape = self.ty(x).shape;
        let mut start = vec![0; shape.rank() - 1];
        let mut lens = shape.dims()[1..].to_vec();
        if let (Some(s), Some(l)) = (start.first_mut(), lens.first_mut()) {
            (*s, *l) = (first, len);
        }
        self.slice(x, &start, &lens)
    }

    /// Zeros before and after the channels and each spatial axis.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn pad(&mut self, x: NodeId, lo: &[usize], hi: &[usize]) -> Built {
        let op = Op::Pad(PadAttrs {
            lo: extend(lo, 0),
            hi: extend(hi, 0),
        });
        let n = self.ty(x).shape.rank() - 1;
        self.expect_len("paddings before (channels, then space)", lo, n, &op, &[x])?;
        self.expect_len("paddings after (channels, then space)", hi, n, &op, &[x])?;
        self.push(op, &[x])
    }

    /// Flat `[N, C]` repeated over space.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn broadcast(&mut self, v: NodeId, spatial: &[usize]) -> Built {
        let n_spatial = spatial.len().min(u8::MAX as usize) as u8;
        self.push(
            Op::Broadcast {
                spatial: extend(spatial, 1),
                n_spatial,
            },
            &[v],
        )
    }
}

/// Pooling over all of space, from a map to flat `[N, C]`.
impl Tape {
    /// Positions of one sample's map.
    fn n_positions(&self, x: NodeId) -> f64 {
        self.ty(x)
            .shape
            .spatial()
            .iter()
            .map(|&e| e as f64)
            .product()
    }

    /// Sum over space.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn global_sum(&mut self, x: NodeId) -> Built {
        self.push(Op::SumMap { keep_batch: true }, &[x])
    }

    /// Mean over space.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn global_mean(&mut self, x: NodeId) -> Built {
        let sum = self.global_sum(x)?;
        self.scale(sum, 1.0 / self.n_positions(x))
    }

    /// Maximum over space.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn global_max(&mut self, x: NodeId) -> Built {
        let packed = self.push(Op::GlobalMax, &[x])?;
        self.slice_channels(packed, 0, self.ty(x).shape.channels())
    }

    /// `(1/r) · log mean exp(r x)`: the mean as `r → 0`, the maximum as
    /// `r → ∞` (Pinheiro and Collobert, arXiv:1411.6228).
    ///
    /// # Errors
    /// [`TapeError::Shape`], also if `r` or `1/r` is not finite.
    pub fn lse_pool(&mut self, x: NodeId, r: f64) -> Built {
        let scaled = self.scale(x, r)?;
        let lse = self.push(Op::SpatialLse, &[scaled])?;
        let shape = self.ty(lse).shape;
        let minus_log_n = self.constant(-self.n_positions(x).ln(), shape.dims())?;
        let log_mean = self.add(lse, minus_log_n)?;
        self.scale(log_mean, 1.0 / r)
    }

    /// Softmax over space, per channel: `exp(a − log Σ exp a)`.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn spatial_softmax(&mut self, a: NodeId) -> Built {
        let lse = self.push(Op::SpatialLse, &[a])?;
        let shifted = self.sub(a, lse)?;
        self.exp(shifted)
    }

    /// Gated attention pooling: `Σ p(i) x(i)` with weights `p` the softmax over
    /// space of `w · (tanh(V x) ⊙ σ(U x))` (Ilse et al., arXiv:1802.04712).
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn attention_pool(&mut self, x: NodeId, attention: Attention) -> Built {
        let v = self.conv(x, attention.v, attention.v_bias, ConvSpec::default())?;
        let v = self.tanh(v)?;
        let u = self.conv(x, attention.u, attention.u_bias, ConvSpec::default())?;
        let u = self.sigmoid(u)?;
        let gated = self.mul(v, u)?;
        let logits = self.conv(gated, attention.w, None, ConvSpec::default())?;
        let p = self.spatial_softmax(logits)?;
        let weighted = self.mul(x, p)?;
        self.global_sum(weighted)
    }
}

/// Normalisation; `gamma` and `beta` have shape `[C]`.
impl Tape {
    fn live_norm(&mut self, x: NodeId, kind: NormKind, affine: [NodeId; 2], eps: f64) -> Built {
        let moments = self.push(Op::Moments(kind), &[x])?;
        let attrs = NormAttrs {
            kind,
            eps: Num::new(eps),
            frozen: false,
        };
        self.push(Op::Normalise(attrs), &[x, moments, affine[0], affine[1]])
    }

    /// Batch norm, statistics over batch and space. They are input 1 of the
    /// result, for running averages.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn batch_norm(&mut self, x: NodeId, gamma: NodeId, beta: NodeId, eps: f64) -> Built {
        self.live_norm(x, NormKind::Batch, [gamma, beta], eps)
    }

    /// Group norm, statistics per sample over space and the channels of a group.
    ///
    /// # Errors
    /// [`TapeError::Shape`], also if `groups` does not divide the channels.
    pub fn group_norm(
        &mut self,
        x: NodeId,
        groups: usize,
        gamma: NodeId,
        beta: NodeId,
        eps: f64,
    ) -> Built {
        self.live_norm(x, NormKind::Group(groups), [gamma, beta], eps)
    }

    /// Instance norm: group norm of one channel per group.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn instance_norm(&mut self, x: NodeId, gamma: NodeId, beta: NodeId, eps: f64) -> Built {
        let channels = self.ty(x).shape.channels();
        self.group_norm(x, channels, gamma, beta, eps)
    }

    /// Layer norm: group norm of one group, over space and all channels.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn layer_norm(&mut self, x: NodeId, gamma: NodeId, beta: NodeId, eps: f64) -> Built {
        self.group_norm(x, 1, gamma, beta, eps)
    }

    /// Norm with given statistics, each `[C]`, that get no gradient.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn frozen_norm(
        &mut self,
        x: NodeId,
        [mean, var]: [NodeId; 2],
        gamma: NodeId,
        beta: NodeId,
        eps: f64,
    ) -> Built {
        let moments = self.push(Op::PackMoments, &[mean, var])?;
        let attrs = NormAttrs {
            kind: NormKind::Batch,
            eps: Num::new(eps),
            frozen: true,
        };
        self.push(Op::Normalise(attrs), &[x, moments, gamma, beta])
    }
}

/// Dense layers and losses.
impl Tape {
    /// `x wᵀ + b` of `x: [N, F]`, `w: [O, F]`, `b: [O]`.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn linear(&mut self, x: NodeId, w: NodeId, b: Option<NodeId>) -> Built {
        self.push(Op::Linear, &with_bias(x, w, b))
    }

    /// Mean of `−log softmax(logits)[label]`; labels hold class indices in one
    /// channel.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn cross_entropy(&mut self, logits: NodeId, labels: NodeId) -> Built {
        self.push(Op::CrossEntropy, &[logits, labels])
    }

    /// Mean binary cross-entropy of logits and targets in `[0, 1]`.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn bce(&mut self, logits: NodeId, targets: NodeId) -> Built {
        self.push(Op::Bce, &[logits, targets])
    }

    /// Mean of squared differences.
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn mse(&mut self, x: NodeId, target: NodeId) -> Built {
        self.push(Op::Mse, &[x, target])
    }

    /// Soft Dice loss of probabilities `p` and targets `t`: one minus the mean
    /// over samples and channels of `(2 Σ p t + s) / (Σ p + Σ t + s)`
    /// (Milletari et al., arXiv:1606.04797, with sums instead of squares).
    ///
    /// # Errors
    /// [`TapeError::Shape`].
    pub fn soft_dice(&mut self, p: NodeId, t: NodeId, smooth: f64) -> Built {
        let sums = self.push(Op::DiceSums, &[p, t])?;
        self.push(
            Op::DiceLoss {
                smooth: Num::new(smooth),
            },
            &[sums],
        )
    }
}
