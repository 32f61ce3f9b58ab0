//! The command line as people meet it: what it answers, and how it refuses.
//!
//! Bad input is a table: each line breaks one thing and says what the message
//! must name and what the exit code is. Nothing half-written may stay behind.

mod common;
mod disk;
mod gradients;
mod machines;
mod plans;
mod slides;
mod training;
