//! Writing slides: tiled, pyramidal TIFF files of any size in bounded memory.
//!
//! [`SlideWriter`] takes rows of pixels from the top and keeps one row of tiles
//! per level; [`compose`] uses it to make slides as large as one likes from the
//! tissue of a small real one, with a planted pattern that alone decides the
//! label. What is written here, [`sstep_executor::source::SlideSource`] reads,
//! and so do OpenSlide, libvips and QuPath.

mod compose;
mod directory;
mod encode;
mod noise;
mod pattern;
#[cfg(test)]
mod tests;
mod tissue;
mod writer;

use std::path::PathBuf;

use sstep_executor::source::SourceError;

pub use compose::{ComposeSpec, Composition, compose};
pub use pattern::{Control, PatternSpec};
pub use writer::{Encoding, SlideSpec, SlideWriter, Written};

/// Why a slide could not be written.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SlideError {
    /// The system failed to create, write or rename a file. The temporary file
    /// is removed; a slide of that name from before is untouched.
    #[error("{path}: {what} failed: {reason}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system says.
        reason: String,
    },
    /// A specification that cannot be met.
    #[error("no such slide can be written: {reason}")]
    Spec {
        /// Which value, and what would do.
        reason: String,
    },
    /// Rows that do not make up the slide.
    #[error("a slide of {width} × {height} pixels takes rows of {row_bytes} bytes: after {n_rows} rows {found}", row_bytes = 3 * .width)]
    Rows {
        /// Width of the slide in pixels.
        width: usize,
        /// Height of the slide in pixels.
        height: usize,
        /// Rows taken so far.
        n_rows: usize,
        /// What came instead of the next.
        found: String,
    },
    /// A tile that the encoder refused.
    #[error("a tile could not be encoded: {reason}")]
    Encode {
        /// What the encoder says.
        reason: String,
    },
    /// The real slide could not be read.
    #[error(transparent)]
    Source(#[from] SourceError),
}
