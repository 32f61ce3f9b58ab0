//! Pooling over all of space.

#[cfg(doc)]
use crate::error::TapeError;
use crate::op::Op;
use crate::tape::{NodeId, Tape};

use super::{Built, ConvSpec};

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
