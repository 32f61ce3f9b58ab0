//! A tiled pyramid, written from top to bottom in bounded memory.
//!
//! Each level keeps one band: the rows of one row of tiles. A full band is cut,
//! its tiles are compressed in parallel and written, and its pixels, averaged
//! over boxes, become rows of the next level. So a slide of width `w` takes
//! about `4 · w · tile` bytes, whatever its height.

use std::fs::File;
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::SlideError;
use super::directory::{self, HEADER_BYTES, Level};
use super::encode::{cut, encode, shrink, split_jpeg};

/// How tiles are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    None,
    /// Lempel-Ziv-Welch of horizontal differences: lossless.
    Lzw,
    /// zlib of horizontal differences: lossless, smaller than LZW.
    Deflate,
    /// JPEG with chroma at half resolution, as scanners write.
    Jpeg {
        /// From 1 to 100; 85 shows no artefacts at a glance.
        quality: u8,
    },
}

impl Encoding {
    fn tag(self) -> u16 {
        match self {
            Encoding::None => 1,
            Encoding::Lzw => 5,
            Encoding::Jpeg { .. } => 7,
            Encoding::Deflate => 8,
        }
    }
}

/// What to write.
#[derive(Clone, Debug, PartialEq)]
pub struct SlideSpec {
    /// Width and height of level 0 in pixels.
    pub size: (usize, usize),
    /// Side of a tile in pixels: a multiple of 16, usually 256 or 512.
    pub tile: usize,
    /// How tiles are compressed.
    pub encoding: Encoding,
    /// By how much each level is smaller than the one before, along one axis:
    /// 2, 4, 8 or 16. Levels go on until one fits into a tile.
    pub step: usize,
    /// Image description of level 0: ASCII, `key = value` fields divided by `|`.
    pub description: Option<String>,
    /// Micrometres per pixel of level 0.
    pub mpp: Option<f64>,
    /// Whether to use 64-bit offsets; `None` uses them when 4 GiB are exceeded.
    pub big_tiff: Option<bool>,
}

impl SlideSpec {
    /// JPEG of quality 85 in tiles of 256, levels by 2.
    pub fn new(width: usize, height: usize) -> Self {
        SlideSpec {
            size: (width, height),
            tile: 256,
            encoding: Encoding::Jpeg { quality: 85 },
            step: 2,
            description: None,
            mpp: None,
            big_tiff: None,
        }
    }

    fn check(&self) -> Result<(), SlideError> {
        let (w, h) = self.size;
        let no = |reason: String| Err(SlideError::Spec { reason });
        if !(1..1 << 31).contains(&w) || !(1..1 << 31).contains(&h) {
            return no(format!("{w} × {h} pixels; each side may have 1 to 2³¹ − 1"));
        }
        if self.tile == 0 || !self.tile.is_multiple_of(16) || self.tile > 8192 {
            return no(format!(
                "tiles of {}; a multiple of 16 up to 8192 will do",
                self.tile
            ));
        }
        if ![2, 4, 8, 16].contains(&self.step) {
            return no(format!("levels by {}; 2, 4, 8 and 16 will do", self.step));
        }
        if let Encoding::Jpeg { quality } = self.encoding
            && !(1..=100).contains(&quality)
        {
            return no(format!("JPEG quality {quality}; it goes from 1 to 100"));
        }
        if self
            .description
            .as_ref()
            .is_some_and(|text| !text.is_ascii() || text.contains('\0'))
        {
            return no("a description with other than ASCII characters".to_string());
        }
        if self.mpp.is_some_and(|mpp| !(mpp.is_finite() && mpp > 0.0)) {
            return no(format!("{:?} µm per pixel", self.mpp));
        }
        Ok(())
    }
}

/// What has been written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Width and height of every level, largest first.
    pub levels: Vec<(usize, usize)>,
    /// Whether offsets have 64 bits.
    pub big_tiff: bool,
}

/// Writes a tiled pyramid from rows of pixels.
///
/// The slide appears under its name with [`SlideWriter::finish`]; until then,
/// and if the writer is dropped, there is only a temporary file beside it.
///
/// ```
/// use sstep::slide::{SlideSpec, SlideWriter};
///
/// let path = std::env::temp_dir().join("sstep-doc-writer.tif");
/// let mut writer = SlideWriter::create(&path, SlideSpec::new(600, 400))?;
/// for _ in 0..400 {
///     writer.push_rows(&[200; 600 * 3])?;
/// }
/// assert_eq!(writer.finish()?.levels, [(600, 400), (300, 200), (150, 100)]);
/// # std::fs::remove_file(path).ok();
/// # Ok::<(), sstep::slide::SlideError>(())
/// ```
pub struct SlideWriter {
    spec: SlideSpec,
    path: PathBuf,
    temporary: PathBuf,
    file: BufWriter<File>,
    at: u64,
    n_rows: usize,
    levels: Vec<Band>,
    jpeg_tables: Option<Vec<u8>>,
    finished: bool,
}

/// One level: the rows of its present row of tiles, and the tiles written.
struct Band {
    size: (usize, usize),
    pixels: Vec<u8>,
    offsets: Vec<u64>,
    lengths: Vec<u64>,
}

impl SlideWriter {
    /// Begins a slide.
    ///
    /// # Errors
    /// A specification that cannot be met, or a file that cannot be created.
    pub fn create(path: impl AsRef<Path>, spec: SlideSpec) -> Result<Self, SlideError> {
        spec.check()?;
        let path = path.as_ref().to_path_buf();
        let mut name = path.file_name().unwrap_or_default().to_os_string();
        name.push(".sstep.tmp");
        let temporary = path.with_file_name(name);
        let mut levels = Vec::new();
        let mut size = spec.size;
        loop {
            levels.push(Band {
                size,
                pixels: vec![],
                offsets: vec![],
                lengths: vec![],
            });
            if size.0.max(size.1) <= spec.tile {
                break;
            }
            size = (size.0.div_ceil(spec.step), size.1.div_ceil(spec.step));
        }
        let file = File::create(&temporary).map_err(io(&temporary, "creating it"))?;
        let mut writer = SlideWriter {
            spec,
            path,
            temporary,
            file: BufWriter::with_capacity(1 << 20, file),
            at: 0,
            n_rows: 0,
            levels,
            jpeg_tables: None,
            finished: false,
        };
        writer.write(&[0; HEADER_BYTES as usize])?;
        Ok(writer)
    }

    /// Takes any number of whole rows, top to bottom: interleaved RGB bytes.
    ///
    /// # Errors
    /// Bytes that are no whole rows, more rows than the slide has, or a failed
    /// write.
    pub fn push_rows(&mut self, rgb: &[u8]) -> Result<(), SlideError> {
        let (width, height) = self.spec.size;
        if !rgb.len().is_multiple_of(width * 3) {
            return Err(self.wrong_rows(format!("came {} bytes, no whole rows", rgb.len())));
        }
        let n_rows = rgb.len() / (width * 3);
        if n_rows > height - self.n_rows {
            return Err(self.wrong_rows(format!("came {n_rows} more")));
        }
        self.n_rows += n_rows;
        let band_bytes = width * 3 * self.spec.tile;
        let mut rest = rgb;
        while !rest.is_empty() {
            let room = band_bytes - self.levels[0].pixels.len();
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.levels[0].pixels.extend_from_slice(now);
            rest = later;
            self.pass_down(false)?;
        }
        Ok(())
    }

    /// Writes what is left and the directories, and gives the file its name.
    ///
    /// # Errors
    /// Missing rows, or a failed write or rename.
    pub fn finish(mut self) -> Result<Written, SlideError> {
        if self.n_rows != self.spec.size.1 {
            return Err(self.wrong_rows("it was finished".to_string()));
        }
        self.pass_down(true)?;
        let pad = self.at.next_multiple_of(8) - self.at;
        self.write(&[0; 8][..pad as usize])?;

        let levels: Vec<Level<'_>> = self
            .levels
            .iter()
            .enumerate()
            .map(|(i, b)| self.level(i, b))
            .collect();
        let end = self.at + directory::bound_bytes(&levels);
        let needs_big = end > u64::from(u32::MAX);
        let big_tiff = self.spec.big_tiff.unwrap_or(needs_big) || needs_big;
        let (directories, header) = directory::encode(&levels, self.at, big_tiff);
        let sizes = self.levels.iter().map(|band| band.size).collect();
        self.write(&directories)?;
        self.file
            .seek(SeekFrom::Start(0))
            .and_then(|_| self.file.write_all(&header))
            .and_then(|()| self.file.flush())
            .and_then(|()| self.file.get_ref().sync_all())
            .map_err(io(&self.temporary, "writing it"))?;
        std::fs::rename(&self.temporary, &self.path).map_err(io(&self.path, "renaming to it"))?;
        self.finished = true;
        Ok(Written {
            bytes: self.at,
            levels: sizes,
            big_tiff,
        })
    }

    /// Writes the full bands, or with `all` every band, from the largest level
    /// down: a band that is written adds rows to the next.
    fn pass_down(&mut self, all: bool) -> Result<(), SlideError> {
        for index in 0..self.levels.len() {
            let (width, _) = self.levels[index].size;
            let n_rows = self.levels[index].pixels.len() / (width * 3);
            if n_rows == 0 {
                continue;
            }
            if n_rows < self.spec.tile && !all {
                return Ok(());
            }
            let pixels = std::mem::take(&mut self.levels[index].pixels);
            self.write_band(index, &pixels, n_rows)?;
            if let Some(next) = self.levels.get_mut(index + 1) {
                // A band has `tile / step` rows for the next level, which
                // divides its band: no band ever overflows.
                next.pixels
                    .append(&mut shrink(&pixels, width, n_rows, self.spec.step));
            }
            let mut pixels = pixels;
            pixels.clear();
            self.levels[index].pixels = pixels;
        }
        Ok(())
    }

    fn write_band(&mut self, index: usize, pixels: &[u8], n_rows: usize) -> Result<(), SlideError> {
        let (size, encoding) = (self.spec.tile, self.spec.encoding);
        let width = self.levels[index].size.0;
        let tiles = (0..width.div_ceil(size))
            .into_par_iter()
            .map(|column| encode(cut(pixels, width, n_rows, size, column), size, encoding))
            .collect::<Result<Vec<_>, _>>()?;
        for tile in tiles {
            let tile = match encoding {
                Encoding::Jpeg { .. } => {
                    // All tiles are written with one quality and the standard
                    // Huffman codes, so the first one's tables are everyone's.
                    let (tables, image) = split_jpeg(&tile)?;
                    self.jpeg_tables.get_or_insert(tables);
                    image
                }
                Encoding::None | Encoding::Lzw | Encoding::Deflate => tile,
            };
            let at = self.at;
            self.write(&tile)?;
            self.levels[index].offsets.push(at);
            self.levels[index].lengths.push(tile.len() as u64);
        }
        Ok(())
    }

    fn level<'a>(&'a self, index: usize, band: &'a Band) -> Level<'a> {
        let encoding = self.spec.encoding;
        let scale = self.spec.size.0 as f64 / band.size.0 as f64;
        Level {
            size: band.size,
            tile: self.spec.tile,
            compression: encoding.tag(),
            // JPEG tiles hold luma and chroma (6), the others RGB (2).
            photometric: if matches!(encoding, Encoding::Jpeg { .. }) {
                6
            } else {
                2
            },
            differences: matches!(encoding, Encoding::Lzw | Encoding::Deflate),
            description: self.spec.description.as_deref().filter(|_| index == 0),
            mpp: self.spec.mpp.map(|mpp| mpp * scale),
            jpeg_tables: self.jpeg_tables.as_deref(),
            offsets: &band.offsets,
            lengths: &band.lengths,
        }
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), SlideError> {
        self.file
            .write_all(bytes)
            .map_err(io(&self.temporary, "writing it"))?;
        self.at += bytes.len() as u64;
        Ok(())
    }

    fn wrong_rows(&self, found: String) -> SlideError {
        let ((width, height), n_rows) = (self.spec.size, self.n_rows);
        SlideError::Rows {
            width,
            height,
            n_rows,
            found,
        }
    }
}

impl Drop for SlideWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Nobody to tell, and nothing is lost: it was unfinished.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

fn io<'a>(path: &'a Path, what: &'static str) -> impl FnOnce(std::io::Error) -> SlideError + 'a {
    move |error| SlideError::Io {
        path: path.to_path_buf(),
        what,
        reason: error.to_string(),
    }
}
