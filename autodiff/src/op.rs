//! Every op there is, as one closed enum.
//!
//! An op answers four questions and nothing else about it is known to the
//! planner: its output type, its gradient, which region of each input a region
//! of its output reads, and what that costs. The answers live by family in
//! `ops/`; here they are only dispatched, exhaustively, so that a new op cannot
//! be half added.
//!
//! Two kinds of op matter to tiling. A *map op* computes a region of its output
//! from regions of its inputs. A *reduction* ([`Op::domain`]) turns maps into a
//! flat tensor: it is accumulated over tiles that partition its domain exactly
//! once, and whatever reads the result must wait for the last tile.

use serde::{Deserialize, Serialize};

use crate::region::{AxisRead, Window};
use crate::ty::{MAX_SPATIAL, Ty};

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

/// Geometry of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConvAttrs {
    /// Taps per axis.
    pub kernel: PerAxis,
    /// Step between outputs.
    pub stride: PerAxis,
    /// Step between taps.
    pub dilation: PerAxis,
    /// Zeros before the first element.
    pub pad_lo: PerAxis,
    /// Zeros after the last element.
    pub pad_hi: PerAxis,
    /// Channel groups; `C` for a depthwise convolution.
    pub groups: usize,
}

impl ConvAttrs {
    /// The sliding window along spatial axis `s`.
    pub fn window(&self, s: usize) -> Window {
        Window {
            kernel: self.kernel[s],
            stride: self.stride[s],
            dilation: self.dilation[s],
            pad: self.pad_lo[s],
        }
    }

    /// Output extent along spatial axis `s`, or `None` if the padded input is
    /// smaller than the kernel.
    pub fn out_extent(&self, s: usize, extent: usize) -> Option<usize> {
        let padded = extent + self.pad_lo[s] + self.pad_hi[s];
        let room = padded.checked_sub(self.window(s).reach() + 1)?;
        Some(room / self.stride[s] + 1)
    }
}

/// A transposed convolution: the adjoint of a convolution, with the extents
/// that the stride leaves open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ConvTransposeAttrs {
    /// The convolution that maps `out_spatial` onto the input's extents.
    pub conv: ConvAttrs,
    /// Spatial extents of the output.
    pub out_spatial: PerAxis,
}

/// Geometry of a pooling window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PoolAttrs {
    /// Window extent per axis.
    pub kernel: PerAxis,
    /// Step between windows.
    pub stride: PerAxis,
    /// Padding before: never a maximum; zeros of an average.
    pub pad_lo: PerAxis,
    /// Padding after.
    pub pad_hi: PerAxis,
    /// Whether an average divides by the full window also where padding
    /// enters it. Ignored by max-pool.
    pub count_pad: bool,
}

impl PoolAttrs {
    /// The sliding window along spatial axis `s`.
    pub fn window(&self, s: usize) -> Window {
        Window {
            kernel: self.kernel[s],
            stride: self.stride[s],
            dilation: 1,
            pad: self.pad_lo[s],
        }
    }

    /// Output extent along spatial axis `s`, if the padded input holds a window.
    pub fn out_extent(&self, s: usize, extent: usize) -> Option<usize> {
        let padded = extent + self.pad_lo[s] + self.pad_hi[s];
        Some(padded.checked_sub(self.kernel[s])? / self.stride[s] + 1)
    }
}

/// How upsampling fills in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum UpsampleMode {
    /// Repeat.
    Nearest,
    /// Interpolate linearly per axis, corners not aligned (PyTorch's default).
    Linear,
}

/// Upsampling by an integer factor per axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct UpsampleAttrs {
    /// Repeat or interpolate.
    pub mode: UpsampleMode,
    /// Factor per axis.
    pub factor: PerAxis,
}

/// A box cut out of channels (index 0) and spatial axes (1…).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SliceAttrs {
    /// First index kept, per channel and spatial axis.
    pub start: [usize; 1 + MAX_SPATIAL],
    /// Number of indices kept.
    pub len: [usize; 1 + MAX_SPATIAL],
}

/// Zeros put around channels (index 0) and spatial axes (1…).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PadAttrs {
    /// Zeros before.
    pub lo: [usize; 1 + MAX_SPATIAL],
    /// Zeros after.
    pub hi: [usize; 1 + MAX_SPATIAL],
}

/// A function of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum UnaryKind {
    /// `max(x, 0)`.
    Relu,
    /// `x` where positive, `slope · x` elsewhere; `slope > 0`.
    LeakyRelu(Num),
    /// `x Φ(x)`, exact (erf).
    Gelu,
    /// `x σ(x)`.
    Silu,
    /// `1 / (1 + e⁻ˣ)`.
    Sigmoid,
    /// Hyperbolic tangent.
    Tanh,
    /// `eˣ`.
    Exp,
}

/// What a gradient is computed from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Saved {
    /// The function's argument.
    Input,
    /// Its value.
    Output,
}

/// Over what a norm takes its statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NormKind {
    /// Batch and space, per channel.
    Batch,
    /// Space and the channels of a group, per sample. One group per channel is
    /// instance norm, one group in all is layer norm.
    Group(usize),
}

/// A normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NormAttrs {
    /// Over what statistics are taken.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: Num,
    /// Whether the statistics are given (running averages) and carry no
    /// gradient, instead of being the moments of the very input.
    pub frozen: bool,
}

/// Which parameter of a norm a gradient belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NormParam {
    /// The factor.
    Gamma,
    /// The offset.
    Beta,
}

/// How a reduction is accumulated between tiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReductionState {
    /// Directly into the output tensor.
    InPlace,
    /// Into this many doubles, turned into the output after the last tile.
    F64(usize),
}

/// An operation of the tape. Argument order is the order of a node's inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Op {
    // --- leaves -----------------------------------------------------------
    /// Data given at every step; `grad` asks for its gradient.
    Input {
        /// Whether a gradient is wanted.
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
    /// `(x, w[, b])` → convolution.
    Conv(ConvAttrs),
    /// `(x, w[, b])` → transposed convolution, also the data gradient of one.
    ConvTranspose(ConvTransposeAttrs),
    /// `(x, ȳ)` → gradient of a convolution's weight. Reduction over `ȳ`.
    ConvWeightGrad(ConvAttrs),
    /// `(x)` → windowed maximum.
    MaxPool(PoolAttrs),
    /// `(x, ȳ)` → `x̄` of max-pool: each window's first maximum gets its `ȳ`.
    MaxPoolGrad(PoolAttrs),
    /// `(x)` → windowed mean.
    AvgPool(PoolAttrs),
    /// `(ȳ)` → `x̄` of average pool, of the given spatial extents.
    AvgPoolGrad {
        /// The pool.
        pool: PoolAttrs,
        /// Extents of `x`.
        in_spatial: PerAxis,
    },
    /// `(x)` → upsampled.
    Upsample(UpsampleAttrs),
    /// `(ȳ)` → `x̄` of upsampling.
    UpsampleGrad(UpsampleAttrs),

    // --- elementwise ------------------------------------------------------
    /// `(x)` → function of each element.
    Unary(UnaryKind),
    /// `(saved, ȳ)` → `x̄`.
    UnaryGrad {
        /// The function.
        kind: UnaryKind,
        /// What `saved` is.
        saved: Saved,
    },
    /// `(a, b)` → sum; `b` may be flat `[N, C]` or a one-channel map, and is
    /// then repeated.
    Add,
    /// `(a, b)` → product, repeated like [`Op::Add`].
    Mul,
    /// `(x)` → `factor · x`.
    Scale {
        /// The factor.
        factor: Num,
    },
    /// `(x)` → elements dropped with probability `p`, the rest divided by
    /// `1 − p`. The mask is a hash of (seed, step, key, coordinate): its own
    /// adjoint, and the same wherever and however often it is recomputed.
    Dropout {
        /// Drop probability.
        p: Num,
        /// Distinguishes dropouts of one tape.
        key: u64,
    },
    /// `(x)` → softmax over channels.
    Softmax,
    /// `(y, ȳ)` → `x̄` of softmax.
    SoftmaxGrad,
    /// `(x)` → sum over channels, one channel left.
    ChannelSum,

    // --- structure --------------------------------------------------------
    /// `(a, b, …)` → channels one after another.
    Concat,
    /// `(x)` → a box of channels and space.
    Slice(SliceAttrs),
    /// `(x)` → zeros around channels and space; adjoint of a slice.
    Pad(PadAttrs),
    /// `(v)` → flat `[N, C]` repeated over space.
    Broadcast {
        /// Extents of the map.
        spatial: PerAxis,
        /// How many of them count.
        n_spatial: u8,
    },

    // --- reductions over space ---------------------------------------------
    /// `(x)` → sum over space: `[N, C]`, or `[C]` if the batch is summed too.
    /// Also sums a flat `[N, C]` over its batch.
    SumMap {
        /// Whether the batch axis stays.
        keep_batch: bool,
    },
    /// `(x)` → `[N, C·(1 + d)]`: the maxima over space, then for each of the `d`
    /// spatial axes the coordinates of the first maximum.
    GlobalMax,
    /// `(packed, packed_grad)` → `x̄` of [`Op::GlobalMax`].
    GlobalMaxGrad {
        /// Extents of the map.
        spatial: PerAxis,
        /// How many of them count.
        n_spatial: u8,
    },
    /// `(x)` → `[N, C]`, log of the sum over space of `eˣ`.
    SpatialLse,

    // --- norms --------------------------------------------------------------
    /// `(x)` → `[N or 1, G, 2]`: mean and biased variance.
    Moments(NormKind),
    /// `(mean, var)`, each `[C]` → `[1, C, 2]`: given moments for a frozen norm.
    PackMoments,
    /// `(x, moments, γ, β)` → `γ (x − mean) / √(var + eps) + β`.
    Normalise(NormAttrs),
    /// `(x, moments, ȳ)` → `[N, C, 2]`: `Σ ȳ` and `Σ ȳ x̂` over space.
    NormSums(NormAttrs),
    /// `x̄` of a norm. Frozen: `(moments, ȳ, γ)`. Else `(x, moments, ȳ, γ, sums)`,
    /// through the statistics too.
    NormGrad(NormAttrs),
    /// `(sums)` → gradient of `γ` or `β`, `[C]`.
    NormParamGrad(NormParam),

    // --- dense --------------------------------------------------------------
    /// `(x[N, F], w[O, F][, b[O]])` → `[N, O]`.
    Linear,
    /// `(ȳ, w)` → `x̄`.
    LinearInputGrad,
    /// `(x, ȳ)` → `w̄`.
    LinearWeightGrad,

    // --- losses -------------------------------------------------------------
    /// `(logits, labels)` → `[1]`, mean over samples (and pixels) of
    /// `−log softmax(logits)[label]`; labels have one channel.
    CrossEntropy,
    /// `(logits, labels, ḡ)` → gradient of the logits.
    CrossEntropyGrad,
    /// `(logits, targets)` → `[1]`, mean binary cross-entropy.
    Bce,
    /// `(logits, targets, ḡ)` → gradient of the logits.
    BceGrad,
    /// `(x, target)` → `[1]`, mean of squared differences.
    Mse,
    /// `(x, target, ḡ)` → gradient of `x`.
    MseGrad,
    /// `(p, t)` → `[N, C, 3]`: `Σ p t`, `Σ p`, `Σ t` over space.
    DiceSums,
    /// `(t, sums_grad)` → gradient of `p`.
    DiceSumsGrad,
    /// `(sums)` → `[1]`: `1 − mean of (2 Σpt + s) / (Σp + Σt + s)`.
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

    /// For a reduction that turns a map into a flat tensor: the input over
    /// whose region it is accumulated. `None` for map ops and flat ops.
    pub fn domain(&self, inputs: &[Ty], out: &Ty) -> Option<usize> {
        if out.is_map() {
            return None;
        }
        match self {
            Op::ConvWeightGrad(_) => Some(1),
            Op::NormSums(_) => Some(2),
            _ => inputs.iter().position(Ty::is_map),
        }
    }

    /// How a reduction over maps keeps its partial result between tiles.
    pub fn reduction_state(&self, out: &Ty) -> ReductionState {
        let n = out.shape.elems();
        match self {
            Op::ConvWeightGrad(_) => ReductionState::InPlace,
            Op::SpatialLse => ReductionState::F64(2 * n),
            // Count, mean and centred sum of squares per group.
            Op::Moments(_) => ReductionState::F64(n / 2 * 3),
            _ => ReductionState::F64(n),
        }
    }

    /// What the node reads of map input `input` along cuttable axis `axis`
    /// (0 is the batch), for an interval of its output, or of its domain if it
    /// is a reduction. Flat inputs are always read whole.
    pub fn read(&self, input: usize, axis: usize, inputs: &[Ty], _out: &Ty) -> AxisRead {
        if axis == 0 {
            return AxisRead::Point;
        }
        let s = axis - 1;
        match self {
            Op::Conv(a) => AxisRead::Window(a.window(s)),
            Op::ConvTranspose(a) => AxisRead::Adjoint(a.conv.window(s)),
            Op::ConvWeightGrad(a) if input == 0 => AxisRead::Window(a.window(s)),
            Op::MaxPool(a) | Op::AvgPool(a) => AxisRead::Window(a.window(s)),
            Op::AvgPoolGrad { pool, .. } => AxisRead::Adjoint(pool.window(s)),
            Op::MaxPoolGrad(a) => {
                let window = a.window(s);
                let n_windows = inputs[1].axis_extent(axis);
                match input {
                    0 => AxisRead::AdjointWindow { window, n_windows },
                    _ => AxisRead::Adjoint(window),
                }
            }
            Op::Upsample(a) => match a.mode {
                UpsampleMode::Nearest => AxisRead::Nearest(a.factor[s]),
                UpsampleMode::Linear => AxisRead::Linear(a.factor[s]),
            },
            Op::UpsampleGrad(a) => match a.mode {
                UpsampleMode::Nearest => AxisRead::NearestAdjoint(a.factor[s]),
                UpsampleMode::Linear => AxisRead::LinearAdjoint(a.factor[s]),
            },
            Op::Slice(a) => AxisRead::Shift(a.start[axis] as isize),
            Op::Pad(a) => AxisRead::Shift(-(a.lo[axis] as isize)),
            Op::Input { .. }
            | Op::Param { .. }
            | Op::Constant { .. }
            | Op::ConvWeightGrad(_)
            | Op::Unary(_)
            | Op::UnaryGrad { .. }
            | Op::Add
            | Op::Mul
            | Op::Scale { .. }
            | Op::Dropout { .. }
            | Op::Softmax
            | Op::SoftmaxGrad
            | Op::ChannelSum
            | Op::Concat
            | Op::Broadcast { .. }
            | Op::SumMap { .. }
            | Op::GlobalMax
            | Op::GlobalMaxGrad { .. }
            | Op::SpatialLse
            | Op::Moments(_)
            | Op::PackMoments
            | Op::Normalise(_)
            | Op::NormSums(_)
            | Op::NormGrad(_)
            | Op::NormParamGrad(_)
            | Op::Linear
            | Op::LinearInputGrad
            | Op::LinearWeightGrad
            | Op::CrossEntropy
            | Op::CrossEntropyGrad
            | Op::Bce
            | Op::BceGrad
            | Op::Mse
            | Op::MseGrad
            | Op::DiceSums
            | Op::DiceSumsGrad
            | Op::DiceLoss { .. }
            | Op::DiceLossGrad { .. } => AxisRead::Point,
        }
    }
}
