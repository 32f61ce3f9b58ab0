//! A slide file: its levels, and any tile of them.
//!
//! Pyramidal slides (Aperio SVS, generic tiled TIFF, OME-TIFF with sub-images)
//! are TIFF files with one directory per level, each cut into tiles that are
//! compressed one by one. The directories are parsed once; then any thread
//! reads any tile through the one open file, by offset, and decodes it.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Serialize, Serializer};

use super::codec::{self, Pixels, TileFormat};
use super::{SourceError, directory};

/// How tiles are compressed. Shown and serialised by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Compression {
    /// Not at all.
    None,
    /// Lempel-Ziv-Welch (5).
    Lzw,
    /// zlib (8, and 32946 in old files).
    Deflate,
    /// Baseline or progressive JPEG (7).
    Jpeg,
    /// Any other TIFF compression, by number: not read here.
    Other(u16),
}

impl Compression {
    /// The compression of a TIFF `Compression` tag.
    pub(super) fn from_tag(tag: u16) -> Self {
        match tag {
            1 => Compression::None,
            5 => Compression::Lzw,
            7 => Compression::Jpeg,
            8 | 32946 => Compression::Deflate,
            other => Compression::Other(other),
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, tag) = match *self {
            Compression::None => return f.write_str("none"),
            Compression::Lzw => return f.write_str("LZW"),
            Compression::Deflate => return f.write_str("deflate"),
            Compression::Jpeg => return f.write_str("JPEG"),
            Compression::Other(tag @ 2..=4) => ("CCITT fax", tag),
            Compression::Other(tag @ 6) => ("old-style JPEG", tag),
            Compression::Other(tag @ (33003..=33005 | 34712)) => ("JPEG 2000", tag),
            Compression::Other(tag @ 32773) => ("PackBits", tag),
            Compression::Other(tag @ 34887) => ("LERC", tag),
            Compression::Other(tag @ 34925) => ("LZMA", tag),
            Compression::Other(tag @ (34926 | 50000)) => ("Zstandard", tag),
            Compression::Other(tag @ (34927 | 50001)) => ("WebP", tag),
            Compression::Other(tag @ (34933 | 34934)) => ("PNG or JPEG XR", tag),
            Compression::Other(tag @ 50002) => ("JPEG XL", tag),
            Compression::Other(tag) => ("an unknown compression", tag),
        };
        write!(f, "{name} ({tag})")
    }
}

impl Serialize for Compression {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// One level of a pyramid.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LevelInfo {
    /// Width and height in pixels.
    pub size: (usize, usize),
    /// Width and height of a tile in pixels.
    pub tile: (usize, usize),
    /// How tiles are compressed.
    pub compression: Compression,
    /// Pixels of level 0 per pixel of this level, along one axis.
    pub downsample: f64,
    /// Number of tiles.
    pub n_tiles: u64,
    /// Compressed size of all tiles in bytes.
    pub bytes: u64,
}

/// What a slide file says of itself.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SlideInfo {
    /// Where it lies.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Whether offsets have 64 bits.
    pub big_tiff: bool,
    /// `aperio`, or what the file names as its scanner or software, if anything.
    pub vendor: Option<String>,
    /// The image description, as it stands in the file.
    pub description: Option<String>,
    /// Micrometres per pixel of level 0 along x and y.
    pub mpp: Option<(f64, f64)>,
    /// Magnification of the objective: 20 for 20×.
    pub magnification: Option<f64>,
    /// The pyramid, largest first.
    pub levels: Vec<LevelInfo>,
    /// Images that are no level: label, macro, thumbnail.
    pub n_other_images: usize,
}

/// A level as the directory describes it.
pub(super) struct Level {
    pub(super) info: LevelInfo,
    /// First byte of every tile, row by row.
    pub(super) offsets: Vec<u64>,
    /// Bytes of every tile; zero for one that was never written.
    pub(super) lengths: Vec<u64>,
    /// How to decode a tile, or what about it is not supported.
    pub(super) format: Result<TileFormat, Unsupported>,
}

/// Why a level cannot be decoded.
#[derive(Clone, Debug)]
pub(super) enum Unsupported {
    Compression(Compression),
    Pixels(String),
}

impl Level {
    /// Tiles from left to right.
    pub(super) fn tiles_across(&self) -> usize {
        self.info.size.0.div_ceil(self.info.tile.0)
    }
}

/// An open slide file.
///
/// ```no_run
/// let slide = sstep_executor::source::SlideFile::open("slide.svs")?;
/// for level in &slide.info().levels {
///     println!("{:?} in tiles of {:?}, {}", level.size, level.tile, level.compression);
/// }
/// # Ok::<(), sstep_executor::source::SourceError>(())
/// ```
pub struct SlideFile {
    file: File,
    modified: Option<SystemTime>,
    info: SlideInfo,
    levels: Vec<Level>,
}

impl SlideFile {
    /// Opens a slide and reads its directories, no pixels. A level that cannot
    /// be decoded is listed all the same; reading it is the error.
    ///
    /// # Errors
    /// A missing file, one that is no TIFF or has malformed directories, or one
    /// without a tiled image.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, SourceError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|error| SourceError::open(path, &error))?;
        let meta = file
            .metadata()
            .map_err(|error| SourceError::open(path, &error))?;
        if meta.is_dir() {
            let reason = "it is a directory".to_string();
            return Err(SourceError::Open {
                path: path.to_path_buf(),
                reason,
            });
        }
        let (info, levels) = directory::parse(path, &file, meta.len())?;
        Ok(SlideFile {
            file,
            modified: meta.modified().ok(),
            info,
            levels,
        })
    }

    /// What the file says of itself.
    pub fn info(&self) -> &SlideInfo {
        &self.info
    }

    /// The level of that number.
    pub(super) fn level(&self, level: usize) -> Result<&Level, SourceError> {
        self.levels.get(level).ok_or_else(|| SourceError::BadLevel {
            path: self.info.path.clone(),
            level,
            n_levels: self.levels.len(),
        })
    }

    /// How the tiles of a level are stored.
    ///
    /// # Errors
    /// [`SourceError::UnsupportedCompression`], [`SourceError::UnsupportedPixels`].
    pub(super) fn format(&self, level: usize) -> Result<&TileFormat, SourceError> {
        let path = || self.info.path.clone();
        self.level(level)?
            .format
            .as_ref()
            .map_err(|unsupported| match unsupported {
                Unsupported::Compression(found) => SourceError::UnsupportedCompression {
                    path: path(),
                    level,
                    found: found.to_string(),
                },
                Unsupported::Pixels(found) => SourceError::UnsupportedPixels {
                    path: path(),
                    level,
                    found: found.clone(),
                },
            })
    }

    /// Whether a tile lies within the file.
    ///
    /// # Errors
    /// [`SourceError::Truncated`].
    pub(super) fn check_extent(&self, level: usize, tile: u64) -> Result<(), SourceError> {
        let (offset, bytes) = self.extent(level, tile)?;
        if offset
            .checked_add(bytes)
            .is_some_and(|end| end <= self.info.bytes)
        {
            return Ok(());
        }
        let (path, file_bytes) = (self.info.path.clone(), self.info.bytes);
        Err(SourceError::Truncated {
            path,
            level,
            tile,
            offset,
            bytes,
            file_bytes,
        })
    }

    /// Reads and decodes one tile: interleaved RGB, row by row, of the full
    /// tile size even at the border. Tiles that were never written are white,
    /// as the background of a slide is.
    ///
    /// # Errors
    /// A tile beyond the end of the file, corrupt or unsupported, a failed
    /// read, or a file that was written to since it was opened.
    pub(super) fn tile(&self, level: usize, tile: u64) -> Result<Vec<u8>, SourceError> {
        let format = self.format(level)?;
        let (offset, bytes) = self.extent(level, tile)?;
        if bytes == 0 {
            return Ok(vec![255; format.rgb_bytes()]);
        }
        self.check_unchanged()?;
        self.check_extent(level, tile)?;
        let path = || self.info.path.clone();
        let mut raw = vec![0; bytes as usize];
        read_at(&self.file, &mut raw, offset).map_err(|error| SourceError::Read {
            path: path(),
            offset,
            bytes,
            reason: error.to_string(),
        })?;
        codec::decode(format, &raw).map_err(|reason| SourceError::Corrupt {
            path: path(),
            level,
            tile,
            offset,
            bytes,
            reason,
        })
    }

    /// First byte and length of a tile.
    fn extent(&self, level: usize, tile: u64) -> Result<(u64, u64), SourceError> {
        let found = self.level(level)?;
        let at = tile as usize;
        // Tiles are numbered by the caller's own geometry, which `parse` has
        // checked against the number of tiles.
        Ok((found.offsets[at], found.lengths[at]))
    }

    fn check_unchanged(&self) -> Result<(), SourceError> {
        // A file system that cannot say is taken at its word when it reads.
        let Ok(meta) = self.file.metadata() else {
            return Ok(());
        };
        if meta.len() == self.info.bytes && meta.modified().ok() == self.modified {
            return Ok(());
        }
        Err(SourceError::Changed {
            path: self.info.path.clone(),
            then_bytes: self.info.bytes,
            now_bytes: meta.len(),
        })
    }
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !buffer.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_read(file, buffer, offset)?;
        if n == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        buffer = &mut buffer[n..];
        offset += n as u64;
    }
    Ok(())
}

/// The meaning of a TIFF `PhotometricInterpretation` with its samples, or what
/// is not supported.
pub(super) fn pixels(photometric: u16, samples: u16) -> Result<Pixels, Unsupported> {
    match (photometric, samples) {
        (0, 1..=2) => Ok(Pixels::InvertedGray),
        (1, 1..=2) => Ok(Pixels::Gray),
        (2, 3..=4) => Ok(Pixels::Rgb),
        (6, 3) => Ok(Pixels::YCbCr),
        _ => Err(Unsupported::Pixels(format!(
            "photometric interpretation {photometric} with {samples} samples per pixel"
        ))),
    }
}
