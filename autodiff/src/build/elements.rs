//! Functions of elements, and structure.

#[cfg(doc)]
use crate::error::TapeError;
use crate::op::{Num, Op};
use crate::ops::{PadAttrs, SliceAttrs, UnaryKind};
use crate::tape::{NodeId, Tape};

use super::{Built, extend};

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
