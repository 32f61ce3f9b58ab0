//! The text form of a tape: one node per line, readable and lossless.
//!
//! ```text
//! tape v1 f32                                   # header: version, element type
//!
//! x = input [1, 3, 64, 64]                      # `grad` after it asks for its gradient
//! w = param [16, 3, 3, 3]                       # `frozen` after it: not trained
//! y = conv(x, w) stride=[2, 2] pad=[1, 1]       # name = op(inputs) attributes
//! output y
//! ```
//!
//! Inputs of rank 3 and more are maps, all other leaves are flat. Whatever
//! follows a `#` is ignored; [`Tape`]'s `Display` writes each type there. Names
//! are defined before they are used, so the order of lines is the order of the
//! tape. An attribute at its neutral value (stride 1, dilation 1, padding 0, one
//! group) is left out, and one number may stand for the same on all axes.
//! Printing and parsing give back an equal tape, gradients included.

mod names;
mod near;
mod parse;
mod print;
mod scan;
#[cfg(test)]
mod tests;

#[cfg(doc)]
use crate::tape::Tape;
