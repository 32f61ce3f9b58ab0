//! What can go wrong with an input: whose file, which tile, which numbers.

use std::path::{Path, PathBuf};

use sstep_autodiff::Shape;

/// Why a source could not be opened or read. Every variant names the file or
/// the values at fault, so that the sentence alone is enough to act on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum SourceError {
    /// No file of that name.
    #[error("{path}: no such file", path = .path.display())]
    NotFound {
        /// The file.
        path: PathBuf,
    },
    /// The file exists but cannot be opened.
    #[error("{path}: cannot be opened: {reason}", path = .path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system says.
        reason: String,
    },
    /// The first bytes are not those of a TIFF.
    #[error("{path}: not a TIFF file: it begins with the bytes {found}, a TIFF with `II*` or `MM*` (BigTIFF: `II+`, `MM+`)", path = .path.display())]
    NotTiff {
        /// The file.
        path: PathBuf,
        /// Its first bytes, in hexadecimal.
        found: String,
    },
    /// The directories cannot be read.
    #[error("{path}: malformed TIFF directory at byte {offset} of {file_bytes}: {reason}", path = .path.display())]
    Directory {
        /// The file.
        path: PathBuf,
        /// Where the directory lies.
        offset: u64,
        /// Size of the file.
        file_bytes: u64,
        /// What is wrong.
        reason: String,
    },
    /// Only stripped images, which cannot be read by region.
    #[error("{path}: none of its {n_images} images is tiled; reading by region needs a tiled TIFF (for instance `vips tiffsave in.tif out.tif --tile --pyramid`)", path = .path.display())]
    NotTiled {
        /// The file.
        path: PathBuf,
        /// How many images it holds.
        n_images: usize,
    },
    /// Tiles are compressed in a way that is not read here.
    #[error("{path}: level {level} is compressed with {found}; supported are none, LZW, deflate and JPEG", path = .path.display())]
    UnsupportedCompression {
        /// The file.
        path: PathBuf,
        /// The level.
        level: usize,
        /// The compression's name and number.
        found: String,
    },
    /// Pixels are stored in a way that is not read here.
    #[error("{path}: level {level} has {found}; supported are 8-bit interleaved RGB, RGBA, YCbCr (JPEG) and gray", path = .path.display())]
    UnsupportedPixels {
        /// The file.
        path: PathBuf,
        /// The level.
        level: usize,
        /// What was found.
        found: String,
    },
    /// A tile lies beyond the end of the file.
    #[error("{path}: truncated: tile {tile} of level {level} lies at bytes {offset}..{end} but the file has {file_bytes}", end = .offset.saturating_add(*.bytes), path = .path.display())]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The level.
        level: usize,
        /// Index of the tile, row by row.
        tile: u64,
        /// First byte of the tile.
        offset: u64,
        /// Its length in bytes.
        bytes: u64,
        /// Size of the file.
        file_bytes: u64,
    },
    /// A tile's bytes do not decode.
    #[error("{path}: tile {tile} of level {level} (bytes {offset}..{end}) is corrupt: {reason}", end = .offset.saturating_add(*.bytes), path = .path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// The level.
        level: usize,
        /// Index of the tile, row by row.
        tile: u64,
        /// First byte of the tile.
        offset: u64,
        /// Its length in bytes.
        bytes: u64,
        /// What the decoder says.
        reason: String,
    },
    /// The system failed to read.
    #[error("{path}: reading {bytes} bytes at {offset} failed: {reason}", path = .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// First byte asked for.
        offset: u64,
        /// Number of bytes asked for.
        bytes: u64,
        /// What the system says.
        reason: String,
    },
    /// The file is not the one that was opened.
    #[error("{path}: changed since it was opened (then {then_bytes} bytes, now {now_bytes}); open it again", path = .path.display())]
    Changed {
        /// The file.
        path: PathBuf,
        /// Its size when opened.
        then_bytes: u64,
        /// Its size now.
        now_bytes: u64,
    },
    /// A level that the slide does not have.
    #[error("{path}: no level {level}; it has {n_levels}, level 0 being the largest", path = .path.display())]
    BadLevel {
        /// The file.
        path: PathBuf,
        /// The level asked for.
        level: usize,
        /// How many there are.
        n_levels: usize,
    },
    /// A crop that does not lie within its level.
    #[error("{path}: the crop of {w} × {h} pixels at ({x}, {y}) does not lie within level {level} of {level_w} × {level_h} pixels", path = .path.display())]
    BadCrop {
        /// The file.
        path: PathBuf,
        /// The level.
        level: usize,
        /// Left edge of the crop.
        x: usize,
        /// Upper edge of the crop.
        y: usize,
        /// Width of the crop.
        w: usize,
        /// Height of the crop.
        h: usize,
        /// Width of the level.
        level_w: usize,
        /// Height of the level.
        level_h: usize,
    },
    /// A normalisation that would divide by nothing.
    #[error(
        "channel {channel} cannot be normalised with mean {mean} and standard deviation {std}: both must be finite and the latter positive"
    )]
    BadNormalisation {
        /// The channel.
        channel: usize,
        /// Its mean.
        mean: f64,
        /// Its standard deviation.
        std: f64,
    },
    /// Not one scale for each channel of an array of bytes.
    #[error(
        "an array of bytes of shape {shape} needs a scale for each of its channels; {found} were given"
    )]
    Scales {
        /// The shape given.
        shape: Shape,
        /// Number of scales given.
        found: usize,
    },
    /// An array whose shape is no map or does not match its data.
    #[error(
        "an array of shape {shape} needs one to three spatial axes after [N, C], and one element per position; {found} elements were given"
    )]
    BadArray {
        /// The shape given.
        shape: Shape,
        /// Number of elements given.
        found: usize,
    },
    /// Images of different shapes in one batch.
    #[error(
        "a batch holds images of one shape, but its first has {first} and number {index} has {found}"
    )]
    Stack {
        /// Shape of the first.
        first: Shape,
        /// Which one differs, from 0.
        index: usize,
        /// Its shape.
        found: String,
    },
    /// A region that the source does not have.
    #[error("region {region} lies outside the source of shape {shape}")]
    Outside {
        /// Batch and spatial spans asked for.
        region: String,
        /// Shape of the source.
        shape: Shape,
    },
    /// A destination that cannot hold the region.
    #[error(
        "region {region} of a source of shape {shape} does not fit a destination that holds {holds}"
    )]
    Destination {
        /// Batch and spatial spans asked for.
        region: String,
        /// Shape of the source.
        shape: Shape,
        /// Lifted spans that the destination holds, and its shape.
        holds: String,
    },
}

impl SourceError {
    /// The error for a failed open.
    pub(super) fn open(path: &Path, error: &std::io::Error) -> Self {
        let path = path.to_path_buf();
        if error.kind() == std::io::ErrorKind::NotFound {
            SourceError::NotFound { path }
        } else {
            SourceError::Open {
                path,
                reason: error.to_string(),
            }
        }
    }
}
