//! Every op that is not a convolution, against textbook loops, against itself
//! in tiles, and at its edges.

// A test reads better when every input is written alike.
#![allow(clippy::cloned_ref_to_slice_refs)]

mod cases;
mod common;
mod edges;
mod gradients;
mod regions;
mod stored;
mod textbook;
