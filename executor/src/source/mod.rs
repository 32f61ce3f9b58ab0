//! Where a network's input comes from: read by region, never held whole.
//!
//! A slide of 100 000 × 100 000 pixels is 30 GB decoded. The executor asks for
//! the box that the next tile needs; a [`TileSource`] fetches it, from an array
//! ([`ArraySource`], [`ByteArraySource`]), from a function of the position ([`ComputedSource`]) or
//! from a tiled, pyramidal TIFF ([`SlideSource`]). What a
//! plan reads is known in advance, so the executor also announces boxes with
//! [`TileSource::prefetch`], and read-ahead threads decode them while the
//! network computes.
//!
//! Files are other people's: a malformed one is an answer ([`SourceError`],
//! with the values that explain it), never a panic.

mod array;
mod bytes;
mod cache;
mod codec;
mod computed;
mod directory;
mod error;
mod file;
mod readahead;
mod slide;
mod stack;

use sstep_autodiff::{Region, Shape};
use sstep_kernels::{Out, Real};

pub use array::ArraySource;
pub use bytes::{ByteArraySource, ByteSource};
pub use computed::{ComputedSource, Position};
pub use error::SourceError;
pub use file::{Compression, LevelInfo, SlideFile, SlideInfo};
pub use slide::{Crop, SlideOptions, SlideSource};
pub use stack::StackSource;

pub use sstep_kernels::ByteScale;

/// Where a network's map input comes from: read by region, never held whole.
pub trait TileSource<T: Real>: Send + Sync {
    /// `[N, C, spatial…]`.
    fn shape(&self) -> Shape;

    /// Reads `region` (batch and spatial spans) of all channels into `dst`,
    /// in absolute coordinates. Whoever calls holds `dst` alone.
    ///
    /// # Errors
    /// A region outside [`TileSource::shape`] or outside what `dst` holds, and
    /// whatever keeps a file from being read. `dst` is then partly written.
    fn read(&self, region: &Region, dst: &mut Out<'_, T>) -> Result<(), SourceError>;

    /// Announces that `region` will be read soon; returns at once. A hint: what
    /// goes wrong on the way is told by the read itself.
    fn prefetch(&self, _region: &Region) {}

    /// The same source as bytes, if it has them: a device to which copies cost time is
    /// given these, and makes the same elements of them.
    fn bytes(&self) -> Option<&dyn ByteSource> {
        None
    }

    /// Bytes of host memory that caches hold now.
    fn cache_bytes(&self) -> u64 {
        0
    }

    /// Bytes of host memory that caches ever hold: what to count in the host
    /// budget.
    fn cache_limit_bytes(&self) -> u64 {
        0
    }
}

/// Checks that `region` lies within a map of `shape` and within what `dst`
/// holds of a map of that very shape.
fn check_read<T: Copy>(
    shape: &Shape,
    region: &Region,
    dst: &Out<'_, T>,
) -> Result<(), SourceError> {
    let spatial = shape.spatial();
    let inside = region.n_axes() == 1 + spatial.len()
        && region.span(0).hi <= shape.batch()
        && region.spans()[1..]
            .iter()
            .zip(spatial)
            .all(|(s, &e)| s.hi <= e);
    if !inside {
        return Err(SourceError::Outside {
            region: format!("{region:?}"),
            shape: *shape,
        });
    }
    let layout = dst.layout();
    let wanted = sstep_kernels::Box4::lift(region);
    let holds = layout.shape == *shape
        && wanted
            .0
            .iter()
            .zip(&layout.present.0)
            .all(|(w, p)| p.contains(*w));
    if !holds {
        return Err(SourceError::Destination {
            region: format!("{region:?}"),
            shape: *shape,
            holds: format!("{:?} of shape {}", layout.present.0, layout.shape),
        });
    }
    Ok(())
}
