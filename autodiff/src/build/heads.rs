//! Norms, dense layers and losses.

#[cfg(doc)]
use crate::error::TapeError;
use crate::op::{Num, Op};
use crate::ops::{NormAttrs, NormKind};
use crate::tape::{NodeId, Tape};

use super::{Built, with_bias};

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
