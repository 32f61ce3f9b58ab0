//! The reverse-mode tape of sstep.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod build;
mod error;
mod grad;
mod op;
mod ops;
mod region;
mod tape;
#[cfg(test)]
mod testing;
mod text;
mod ty;
mod verify;

pub use build::{Attention, ConvSpec, PoolSpec};
pub use error::{ShapeReason, TapeError};
pub use grad::{Gradients, backward};
pub use op::{Num, Op, PerAxis};
pub use ops::{
    ConvAttrs, ConvTransposeAttrs, NormAttrs, NormKind, NormParam, PadAttrs, PoolAttrs,
    ReductionState, Saved, SliceAttrs, UnaryKind, UpsampleAttrs, UpsampleMode, infer,
};
pub use region::{AxisRead, MAX_AXES, Region, Span, Window};
pub use tape::{Node, NodeId, Tape};
pub use ty::{DType, Form, MAX_RANK, MAX_SPATIAL, Shape, Ty};
