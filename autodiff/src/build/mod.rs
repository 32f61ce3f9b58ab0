//! Writing a tape from Rust: one method per layer.
//!
//! Every method appends one node or a short idiom and returns the result's id.
//! Nodes get names from their position; [`Tape::rename`] gives better ones.
//! What has no op of its own is composed here from those that have, so that it
//! is planned and differentiated like everything else: `a − b` is
//! `a + (−1)·b`, a mean is a scaled sum, a softmax over space is
//! `exp(a − log Σ exp a)`.

mod elements;
mod global;
mod heads;
mod windows;

pub use global::Attention;
pub use windows::{ConvSpec, PoolSpec};

use crate::error::{ShapeReason, TapeError};
use crate::op::{Num, Op, PerAxis};
use crate::ops;
use crate::tape::{NodeId, Tape};
use crate::ty::Ty;

/// The id of the new node.
type Built = Result<NodeId, TapeError>;

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

impl Tape {
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

fn with_bias(x: NodeId, w: NodeId, b: Option<NodeId>) -> Vec<NodeId> {
    [x, w].into_iter().chain(b).collect()
}
