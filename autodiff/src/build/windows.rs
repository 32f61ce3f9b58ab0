//! Convolution, pooling, upsampling.

#[cfg(doc)]
use crate::error::TapeError;
use crate::op::{Op, PerAxis};
use crate::ops::{ConvAlgo, ConvAttrs, ConvTransposeAttrs, PoolAttrs, UpsampleAttrs, UpsampleMode};
use crate::tape::{NodeId, Tape};
use crate::ty::{MAX_SPATIAL, Ty};

use super::{Built, extend, first, n_spatial, with_bias};

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
            algo: ConvAlgo::Direct,
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
}
