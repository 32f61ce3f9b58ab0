//! The reverse-mode tape of sstep: what a network computes, forward and
//! backward, as one program that can be cut into tiles.
//!
//! Training a network on an image larger than memory is a compilation problem,
//! and this crate is its source language. A [`Tape`] is a list of typed nodes.
//! Image-like tensors are maps, `[N, C, spatial…]` with one to three spatial
//! axes, and are never held whole; parameters, statistics and losses are flat
//! and small. Every [`Op`] answers four questions, and nothing else about it is
//! known to a planner:
//!
//! - which type its result has ([`infer`]);
//! - how gradients flow through it ([`backward`] appends them as ordinary nodes,
//!   so that forward and backward are planned together, and recomputing is
//!   merely running a node twice);
//! - which region of each input a region of its result reads ([`Op::read`], per
//!   axis, exact), and for a reduction over maps, what it is accumulated over
//!   ([`Op::domain`]);
//! - how much it computes ([`Op::flops_per_point`]).
//!
//! There are no tensor values here and no unsafe code.
//!
//! # Example
//!
//! A network by its layers, its gradients, what a tile reads, and the text form:
//!
//! ```
//! use sstep_autodiff::{AxisRead, ConvSpec, DType, PoolSpec, Region, Span, Tape, backward};
//!
//! let mut tape = Tape::new(DType::F32);
//! let image = tape.input("image", &[1, 3, 65_536, 65_536])?;
//! let label = tape.input("label", &[1, 1])?;
//!
//! let w = tape.param("conv.weight", &[16, 3, 3, 3])?;
//! let b = tape.param("conv.bias", &[16])?;
//! let y = tape.conv(image, w, Some(b), ConvSpec::padded(1).strided(2))?;
//! let y = tape.relu(y)?;
//! let y = tape.max_pool(y, PoolSpec::new(2))?;
//! let features = tape.global_mean(y)?;
//! let head = tape.param("head.weight", &[2, 16])?;
//! let logits = tape.linear(features, head, None)?;
//! let loss = tape.cross_entropy(logits, label)?;
//! tape.rename(loss, "loss")?;
//!
//! // Gradients are nodes of the same tape, named after their leaves.
//! let gradients = backward(&mut tape, loss)?;
//! assert_eq!(gradients.len(), 3);
//! let dw = gradients.get(w).expect("the loss depends on the weight");
//! assert_eq!(tape.node(dw).name, "grad/conv.weight");
//!
//! // Rows 100..200 of the pooled map read rows 200..400 of what was pooled.
//! let pool = tape.node(y);
//! let read = pool.op.read(0, 1, &tape.input_tys(y), &pool.ty);
//! assert_eq!(read.apply(Span::new(100, 200), 32_768), Span::new(200, 400));
//! assert_eq!(Region::whole(&tape.ty(y)).points(), 16_384 * 16_384);
//!
//! // The weight's gradient is a reduction over the gradient of the convolution:
//! // tiles that partition it sum to the whole.
//! let node = tape.node(dw);
//! let inputs = tape.input_tys(dw);
//! assert_eq!(node.op.domain(&inputs, &node.ty), Some(1));
//! assert_eq!(node.op.read(1, 1, &inputs, &node.ty), AxisRead::Point);
//!
//! // Text, one node per line, reads back to the same program.
//! let text = tape.to_string();
//! assert!(text.contains("conv(image, conv.weight, conv.bias) stride=[2, 2] pad=[1, 1]"));
//! assert_eq!(Tape::parse(&text)?.to_string(), text);
//! # Ok::<(), sstep_autodiff::TapeError>(())
//! ```

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod build;
mod error;
mod grad;
mod narrow;
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
pub use grad::{Gradients, backward, backward_scaled};
pub use narrow::narrow;
pub use op::{Num, Op, PerAxis};
pub use ops::{
    ConvAlgo, ConvAttrs, ConvTransposeAttrs, NormAttrs, NormKind, NormParam, PadAttrs, PoolAttrs,
    ReductionState, Saved, SliceAttrs, UnaryKind, UpsampleAttrs, UpsampleMode, WINOGRAD_TILE,
    infer,
};
pub use region::{AxisRead, MAX_AXES, Region, Span, Window};
pub use tape::{Node, NodeId, Tape};
pub use ty::{DType, Form, MAX_RANK, MAX_SPATIAL, Shape, Ty};
