//! Image sources against a real slide, against files built here byte by byte,
//! and against files that are broken in every way that comes to mind.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot open its file has failed"
)]

mod arrays;
mod broken;
mod built;
mod bytes;
mod common;
mod real;
mod tiff;
