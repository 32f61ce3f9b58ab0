//! Every op there is, as one closed enum.
//!
//! An op answers four questions and nothing else about it is known to the
//! planner: its output type, its gradient, which region of each input a region
//! of its output reads, and what that costs. The answers live by family in
//! `ops/`, behind exhaustive matches, so that a new op cannot be half added.
//!
//! Two kinds of op matter to tiling. A *map op* computes a region of its output
//! from regions of its inputs. A *reduction* ([`Op::domain`]) turns maps into a
//! flat tensor: it is accumulated over tiles that partition its domain exactly
//! once, and whatever reads the result must wait for the last tile.

use serde::{Deserialize, Serialize};

use crate::ops::{
    ConvAttrs, ConvTransposeAttrs, NormAttrs, NormKind, NormParam, PadAttrs, PoolAttrs, Saved,
    SliceAttrs, UnaryKind, UpsampleAttrs,
};
use crate::ty::{DType, MAX_SPATIAL};

/// A real number that can be compared and hashed, by its bits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Num(u64);

impl Num {
    /// Wraps `value`.
    pub fn new(value: f64) -> Self {
        Num(value.to_bits())
    }

    /// The number.
    pub fn get(self) -> f64 {
        f64::from_bits(self.0)
    }
}

impl std::fmt::Debug for Num {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Debug::fmt(&self.get(), f)
    }
}

/// One number per spatial axis, in the order of the tensor's axes; entries
/// beyond its spatial rank are neutral (1 for extents and steps, 0 for pads).
pub type PerAxis = [usize; MAX_SPATIAL];

/// An operation of the tape. Argument order is the order of a node's inputs.
///
/// Below, `N` is the batch, `C` the channels, `S` the spatial extents of a map
/// (one to three axes); a shape without `S` is flat. `ȳ` is the gradient of a
/// result, `x̄` that of an input. Where nothing is said of **regions**, a map op
/// reads the positions it computes, a reduction the positions it covers, and
/// flat inputs whole. An op without a **VJP** is a gradient itself and is not
/// differentiated.
///
/// Maps that an op reads have one element type, and so has the map it computes; with a
/// narrow type ([`DType::is_narrow`]) it computes in `f32` and rounds each element once.
/// Flat tensors are `f32` then, statistics and gradients included, except weights of
/// convolutions, which may also have the type of the map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Op {
    // --- leaves -----------------------------------------------------------
    /// Data given at every step, labels included.
    Input {
        /// Whether its gradient is wanted.
        grad: bool,
    },
    /// A parameter; one without `grad` is frozen (running statistics).
    Param {
        /// Whether it is trained.
        grad: bool,
    },
    /// A flat tensor of one repeated value.
    Constant {
        /// The value.
        value: Num,
    },

    // --- windows ----------------------------------------------------------
    /// `(x, w[, b])` → convolution, zero-padded:
    /// `y[n, k, j] = b[k] + Σ x[n, c, j·s − p + t·d] · w[k, c, t]` over the
    /// channels `c` of `k`'s group and the taps `t`.
    ///
    /// `x: [N, C, S]`, `w: [K, C/groups, kernel]`, `b: [K]` → `[N, K, S']`,
    /// `S' = ⌊(S + p_lo + p_hi − (kernel − 1)·d − 1)/s⌋ + 1`.
    ///
    /// **VJP.** `x̄` is [`Op::ConvTranspose`] of `ȳ` by `w`, `w̄` is
    /// [`Op::ConvWeightGrad`] of `x` and `ȳ`, `b̄` sums `ȳ`. Saves `x` and `w`.
    ///
    /// **Regions.** Outputs `[a, b)` read inputs
    /// `[a·s − p, (b − 1)·s − p + (kernel − 1)·d + 1)`, clipped to the map. Only
    /// what lies outside the map is zero; a tile's edge reads its neighbour's.
    Conv(ConvAttrs),
    /// `(x, w[, b])` → transposed convolution, the adjoint of the convolution
    /// that maps the output's extents to the input's; also its data gradient.
    ///
    /// `x: [N, K, S]`, `w: [K, C/groups, kernel]`, `b: [C]` → `[N, C, S']`.
    ///
    /// **VJP.** `x̄` is [`Op::Conv`] of `ȳ` by `w`, `w̄` is [`Op::ConvWeightGrad`]
    /// of `ȳ` and `x`, `b̄` sums `ȳ`. Saves `x` and `w`.
    ///
    /// **Regions.** Outputs read the inputs whose windows hold them, so that
    /// tiles are gathered whole and never added to each other.
    ConvTranspose(ConvTransposeAttrs),
    /// `(x, ȳ)` → gradient of a convolution's weight,
    /// `w̄[k, c, t] = Σ x[n, c, j·s − p + t·d] · ȳ[n, k, j]`.
    ///
    /// `[N, C, S]`, `[N, K, S']` → `[K, C/groups, kernel]`. A reduction over `ȳ`.
    ///
    /// **Regions.** Of `x` as [`Op::Conv`]. Tiles partition `ȳ`, so their terms
    /// sum to the whole; the halo of `x` is read twice, never added twice.
    ConvWeightGrad(ConvAttrs),
    /// `(x)` → windowed maximum; padding is never one. `[N, C, S]` → `[N, C, S']`.
    ///
    /// **VJP.** [`Op::MaxPoolGrad`]. Saves `x`, never `y`.
    ///
    /// **Regions.** As [`Op::Conv`].
    MaxPool(PoolAttrs),
    /// `(x, ȳ)` → `x̄` of max-pool: each window's first maximum (row-major) gets
    /// its `ȳ`.
    ///
    /// **Regions.** The `ȳ` of every window that touches the region, and of `x`
    /// all elements of those windows, to find their maxima again.
    MaxPoolGrad(PoolAttrs),
    /// `(x)` → windowed mean. `[N, C, S]` → `[N, C, S']`.
    ///
    /// **VJP.** [`Op::AvgPoolGrad`]. Saves nothing. **Regions.** As [`Op::Conv`].
    AvgPool(PoolAttrs),
    /// `(ȳ)` → `x̄` of average pool, of the given spatial extents.
    ///
    /// **Regions.** The `ȳ` of every window that touches the region.
    AvgPoolGrad {
        /// The pool.
        pool: PoolAttrs,
        /// Extents of `x`.
        in_spatial: PerAxis,
    },
    /// `(x)` → upsampled. `[N, C, S]` → `[N, C, factor·S]`.
    ///
    /// Linear: output `i` samples `x` at `(i + ½)/factor − ½`, per axis, the
    /// outermost elements continued.
    ///
    /// **VJP.** [`Op::UpsampleGrad`]. Saves nothing.
    ///
    /// **Regions.** The elements repeated, or the two neighbours of each sample.
    Upsample(UpsampleAttrs),
    /// `(ȳ)` → `x̄` of upsampling: each element sums what it was repeated or
    /// mixed into.
    ///
    /// **Regions.** The outputs that read any element of the region.
    UpsampleGrad(UpsampleAttrs),

    // --- elementwise ------------------------------------------------------
    /// `(x)` → function of each element, of any shape.
    ///
    /// **VJP.** [`Op::UnaryGrad`] from the argument. Saves `x`.
    Unary(UnaryKind),
    /// `(saved, ȳ)` → `x̄ = f'(x) ȳ`. At 0, `relu` has slope 0 and `leaky_relu`
    /// its own. From the output only where [`UnaryKind::grad_from_output`].
    UnaryGrad {
        /// The function.
        kind: UnaryKind,
        /// What `saved` is.
        saved: Saved,
    },
    /// `(a, b)` → sum. `b` has the shape of `a`; over a map it may also be flat
    /// `[N, C]` or a map of one channel, and is then repeated.
    ///
    /// **VJP.** `ȳ` for both, summed over what `b` was repeated over. Saves nothing.
    Add,
    /// `(a, b)` → product, repeated like [`Op::Add`].
    ///
    /// **VJP.** `ā = ȳ b`, `b̄ = ȳ a`, summed over what `b` was repeated over.
    /// Saves both.
    Mul,
    /// `(x)` → `factor · x`, of any shape.
    ///
    /// **VJP.** The same op on `ȳ`. Saves nothing.
    Scale {
        /// The factor.
        factor: Num,
    },
    /// `(x)` → elements dropped with probability `p`, the rest divided by
    /// `1 − p`; a map or flat `[N, C]`. The mask is a hash of (seed, step, key,
    /// absolute coordinate): the same wherever and however often it is computed.
    ///
    /// **VJP.** The same op on `ȳ`. Saves nothing.
    Dropout {
        /// Drop probability.
        p: Num,
        /// Distinguishes dropouts of one tape.
        key: u64,
    },
    /// `(x)` → softmax over channels, of a map or flat `[N, C]`.
    ///
    /// **VJP.** [`Op::SoftmaxGrad`]. Saves `y`, never `x`.
    Softmax,
    /// `(y, ȳ)` → `x̄ = y (ȳ − Σ y ȳ)` of softmax, the sum over channels.
    SoftmaxGrad,
    /// `(x)` → sum over channels, `[N, C, S]` → `[N, 1, S]`.
    ///
    /// **VJP.** `ȳ` times a map of ones. Saves nothing.
    ChannelSum,

    /// `(x)` → the same values as elements of type `to`, rounded to nearest, ties to
    /// even. From `f32` to a narrow type and back; of any shape.
    ///
    /// **VJP.** `ȳ` as elements of `x`'s type; of a flat `x` it is `f32` already. Saves
    /// nothing.
    Cast {
        /// Element type of the result.
        to: DType,
    },

    // --- structure --------------------------------------------------------
    /// `(a, b, …)` → channels one after another; maps or flat `[N, C, …]` such as
    /// weights, alike in all else.
    ///
    /// **VJP.** A [`Op::Slice`] of `ȳ` for each. Saves nothing.
    Concat,
    /// `(x)` → a box of channels and space; a map or flat `[N, C, …]`.
    ///
    /// **VJP.** [`Op::Pad`]. Saves nothing. **Regions.** Shifted by the start.
    Slice(SliceAttrs),
    /// `(x)` → zeros around channels and space; a map or flat `[N, C, …]`.
    ///
    /// **VJP.** [`Op::Slice`]. Saves nothing. **Regions.** Shifted back, clipped.
    Pad(PadAttrs),
    /// `(v)` → `[N, C]` repeated over space, `[N, C, S]`.
    ///
    /// **VJP.** [`Op::SumMap`] keeping the batch. Saves nothing.
    Broadcast {
        /// Extents of the map.
        spatial: PerAxis,
        /// How many of them count.
        n_spatial: u8,
    },

    // --- reductions over space ---------------------------------------------
    /// `(x)` → sum over space: `[N, C]`, or `[C]` if the batch is summed too.
    /// Also sums a flat `[N, C]` over its batch.
    ///
    /// **VJP.** [`Op::Broadcast`], if the batch is kept. The sum over the batch
    /// is the gradient of biases and has none. Saves nothing.
    SumMap {
        /// Whether the batch axis stays.
        keep_batch: bool,
    },
    /// `(x)` → `[N, C·(1 + d)]`: the `C` maxima over space, then for each of the
    /// `d` spatial axes the `C` coordinates of the first maximum (row-major).
    ///
    /// **VJP.** [`Op::GlobalMaxGrad`]. Saves the result, never `x`.
    GlobalMax,
    /// `(packed, packed_grad)` → `x̄` of [`Op::GlobalMax`]: the gradient of each
    /// maximum at its coordinates, zero elsewhere.
    GlobalMaxGrad {
        /// Extents of the map.
        spatial: PerAxis,
        /// How many of them count.
        n_spatial: u8,
    },
    /// `(x)` → `[N, C]`, log of the sum over space of `eˣ`, accumulated as
    /// (maximum, scaled sum) so that it never overflows.
    ///
    /// **VJP.** `exp(x − y) ȳ`, in four nodes. Saves `x` and `y`.
    SpatialLse,

    // --- norms --------------------------------------------------------------
    /// `(x)` → `[1, C, 2]` (batch) or `[N, G, 2]` (groups): mean and biased
    /// variance, merged between tiles stably (Chan, Golub, LeVeque 1983).
    ///
    /// **VJP.** None: a norm's gradient goes through its statistics itself.
    Moments(NormKind),
    /// `(mean, var)`, each `[C]` → `[1, C, 2]`: given moments for a frozen norm.
    ///
    /// **VJP.** None: given statistics are constants.
    PackMoments,
    /// `(x, moments, γ, β)` → `γ x̂ + β`, `x̂ = (x − mean) / √(var + eps)`. `γ`
    /// and `β` are `[C]`. The moments are those of this very `x`
    /// ([`Op::Moments`] of the same kind) unless the norm is frozen.
    ///
    /// **VJP.** `γ̄` and `β̄` from [`Op::NormSums`], `x̄` by [`Op::NormGrad`].
    /// Saves `x` and the moments, never `y`. Frozen, `x̄` needs no `x`.
    ///
    /// Source: Ioffe and Szegedy, arXiv:1502.03167; Wu and He, arXiv:1803.08494.
    Normalise(NormAttrs),
    /// `(x, moments, ȳ)` → `[N, C, 2]`: `Σ ȳ` and `Σ ȳ x̂` over space. A
    /// reduction over `ȳ`.
    NormSums(NormAttrs),
    /// `x̄` of a norm. Live, `(x, moments, ȳ, γ, sums)`:
    /// `(γ ȳ − (S₁ + x̂ S₂)/m) / √(var + eps)`, where `S₁ = Σ γ ȳ` and
    /// `S₂ = Σ γ ȳ x̂` over the `m` elements that share statistics. Frozen,
    /// `(moments, ȳ, γ)`: `γ ȳ / √(var + eps)`.
    NormGrad(NormAttrs),
    /// `(sums)` → gradient of `γ` or `β`, `[C]`: the sums over the batch.
    NormParamGrad(NormParam),

    // --- dense --------------------------------------------------------------
    /// `(x, w[, b])` → `x wᵀ + b`: `[N, F]`, `[O, F]`, `[O]` → `[N, O]`.
    ///
    /// **VJP.** [`Op::LinearInputGrad`], [`Op::LinearWeightGrad`], and `b̄` sums
    /// `ȳ`. Saves `x` and `w`.
    Linear,
    /// `(ȳ, w)` → `x̄ = ȳ w`.
    LinearInputGrad,
    /// `(x, ȳ)` → `w̄ = ȳᵀ x`.
    LinearWeightGrad,

    // --- losses -------------------------------------------------------------
    /// `(logits, labels)` → `[1]`, mean over samples (and positions) of
    /// `−log softmax(logits)[label]`. Logits are flat `[N, K]` or a map; labels
    /// have one channel, of class indices from 0.
    ///
    /// **VJP.** [`Op::CrossEntropyGrad`]; none for labels. Saves the logits.
    CrossEntropy,
    /// `(logits, labels, ḡ)` → `ḡ (softmax(logits) − [label]) / count`.
    CrossEntropyGrad,
    /// `(logits, targets)` → `[1]`, mean over elements of
    /// `−t log σ(x) − (1 − t) log σ(−x)`; any shape.
    ///
    /// **VJP.** [`Op::BceGrad`]; none for targets. Saves the logits.
    Bce,
    /// `(logits, targets, ḡ)` → `ḡ (σ(x) − t) / count`.
    BceGrad,
    /// `(x, target)` → `[1]`, mean over elements of `(x − t)²`; any shape.
    ///
    /// **VJP.** [`Op::MseGrad`]; none for targets. Saves `x`.
    Mse,
    /// `(x, target, ḡ)` → `2 ḡ (x − t) / count`.
    MseGrad,
    /// `(p, t)`, maps → `[N, C, 3]`: `Σ p t`, `Σ p`, `Σ t` over space.
    ///
    /// **VJP.** [`Op::DiceSumsGrad`]; none for targets. Saves `t` only.
    DiceSums,
    /// `(t, sums_grad)` → `p̄ = t ḡ₀ + ḡ₁`, where `ḡ` is the gradient of the sums.
    DiceSumsGrad,
    /// `(sums)` → `[1]`: `1 − mean over N and C of (2 Σpt + s) / (Σp + Σt + s)`.
    ///
    /// **VJP.** [`Op::DiceLossGrad`]. Saves the sums.
    DiceLoss {
        /// Smoothing `s`, added above and below.
        smooth: Num,
    },
    /// `(sums, ḡ)` → gradient of the sums.
    DiceLossGrad {
        /// Smoothing `s`.
        smooth: Num,
    },
}

impl Op {
    /// Whether this is a leaf: a value that comes from outside.
    pub fn is_leaf(&self) -> bool {
        matches!(
            self,
            Op::Input { .. } | Op::Param { .. } | Op::Constant { .. }
        )
    }
}
