//! A window of a slide as a network's input.

use std::sync::Arc;

use rayon::prelude::*;
use sstep_autodiff::{Region, Shape, Span};
use sstep_kernels::{ByteScale, Out, Real};

use super::bytes::check_scales;
use super::cache::{Asker, TileCache};
use super::readahead::ReadAhead;
use super::{ByteSource, SlideFile, SlideInfo, SourceError, TileSource, check_read};

/// A rectangle of a level, in that level's pixels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crop {
    /// Left edge.
    pub x: usize,
    /// Upper edge.
    pub y: usize,
    /// Width.
    pub w: usize,
    /// Height.
    pub h: usize,
}

/// Which part of a slide to show to a network, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct SlideOptions {
    /// Level of the pyramid; 0 is the largest.
    pub level: usize,
    /// Part of the level; all of it if `None`.
    pub crop: Option<Crop>,
    /// Subtracted from red, green and blue after these are scaled to 0…1.
    pub mean: [f64; 3],
    /// What the difference is divided by.
    pub std: [f64; 3],
    /// Most bytes of decoded tiles to keep. Read-ahead fills at most half.
    pub cache_bytes: u64,
    /// Threads that decode announced regions; 0 ignores announcements.
    pub readahead_threads: usize,
}

impl Default for SlideOptions {
    /// All of level 0 as values from 0 to 1, 64 MiB of cache, two threads.
    fn default() -> Self {
        SlideOptions {
            level: 0,
            crop: None,
            mean: [0.0; 3],
            std: [1.0; 3],
            cache_bytes: 64 << 20,
            readahead_threads: 2,
        }
    }
}

/// A slide, or a window of one of its levels, of shape `[1, 3, height, width]`.
///
/// A byte `v` becomes `(v / 255 − mean) / std` of its channel; gray slides show
/// the same value in all three. Pixels are in the crop's coordinates. Any
/// number of threads may read; a read of many tiles decodes them in parallel.
/// Besides the cache each thread holds one tile.
///
/// ```no_run
/// use sstep_executor::source::{SlideOptions, SlideSource, TileSource};
///
/// let source = SlideSource::open("slide.svs", SlideOptions::default())?;
/// let [_, channels, height, width] = source.shape().dims() else { unreachable!() };
/// # Ok::<(), sstep_executor::source::SourceError>(())
/// ```
pub struct SlideSource {
    // Declared first, so dropped first: its threads use the rest.
    ahead: ReadAhead,
    tiles: Arc<Tiles>,
    crop: Crop,
    scales: [ByteScale; 3],
}

/// The decoded tiles of one level.
pub(super) struct Tiles {
    file: SlideFile,
    level: usize,
    across: usize,
    tile: (usize, usize),
    cache: TileCache,
}

impl SlideSource {
    /// Opens a slide and checks that every tile of the window lies within the
    /// file, so that a truncated slide is found now and not hours later.
    ///
    /// # Errors
    /// Those of [`SlideFile::open`], and a level, crop, compression or
    /// normalisation that will not do.
    pub fn open(
        path: impl AsRef<std::path::Path>,
        options: SlideOptions,
    ) -> Result<Self, SourceError> {
        Self::from_file(SlideFile::open(path)?, options)
    }

    /// The same from a file that is already open.
    ///
    /// # Errors
    /// As for [`SlideSource::open`].
    pub fn from_file(file: SlideFile, options: SlideOptions) -> Result<Self, SourceError> {
        let (mean, std) = (options.mean, options.std);
        let scales = std::array::from_fn(|c| ByteScale {
            mean: mean[c],
            std: std[c],
        });
        check_scales(&scales)?;
        let index = options.level;
        let level = file.level(index)?;
        let (level_w, level_h) = level.info.size;
        let crop = options.crop.unwrap_or(Crop {
            x: 0,
            y: 0,
            w: level_w,
            h: level_h,
        });
        let Crop { x, y, w, h } = crop;
        let fits = |lo: usize, len: usize, extent| {
            len > 0 && lo.checked_add(len).is_some_and(|hi| hi <= extent)
        };
        if !(fits(x, w, level_w) && fits(y, h, level_h)) {
            let path = file.info().path.clone();
            return Err(SourceError::BadCrop {
                path,
                level: index,
                x,
                y,
                w,
                h,
                level_w,
                level_h,
            });
        }
        file.format(index)?;
        let (across, tile) = (level.tiles_across(), level.info.tile);
        let tiles = Arc::new(Tiles {
            level: index,
            across,
            tile,
            cache: TileCache::new(options.cache_bytes),
            file,
        });
        for tile in tiles.inside(crop) {
            tiles.file.check_extent(index, tile)?;
        }
        let ahead = ReadAhead::new(Arc::clone(&tiles), options.readahead_threads);
        Ok(SlideSource {
            ahead,
            tiles,
            crop,
            scales,
        })
    }

    /// What the file says of itself.
    pub fn info(&self) -> &SlideInfo {
        self.tiles.file.info()
    }

    /// The window that is shown.
    pub fn crop(&self) -> Crop {
        self.crop
    }

    /// `[1, 3, height, width]`.
    pub fn shape(&self) -> Shape {
        Shape::map(1, 3, &[self.crop.h, self.crop.w])
    }

    /// A region of the window as a rectangle of the level.
    fn on_level(&self, region: &Region) -> Crop {
        let (rows, cols) = (region.span(1), region.span(2));
        Crop {
            x: self.crop.x + cols.lo,
            y: self.crop.y + rows.lo,
            w: cols.len(),
            h: rows.len(),
        }
    }

    /// Reads a region, each byte as `value` of it and its channel.
    fn read_as<E: Copy + Send>(
        &self,
        region: &Region,
        dst: &mut Out<'_, E>,
        value: impl Fn(usize, u8) -> E + Sync,
    ) -> Result<(), SourceError> {
        check_read(&self.shape(), region, dst)?;
        if region.is_empty() {
            return Ok(());
        }
        let wanted = self.on_level(region);
        self.tiles
            .cache
            .withdraw(|tile| self.tiles.overlap(tile, wanted).is_some());
        let dst = &*dst;
        let copy = |tile: u64| -> Result<(), SourceError> {
            let Some(part) = self.tiles.overlap(tile, wanted) else {
                return Ok(());
            };
            let rgb = self.tiles.tile(tile, Asker::Reader)?;
            let (tile_x, tile_y) = self.tiles.origin(tile);
            let tile_w = self.tiles.tile.0;
            for y in part.y..part.y + part.h {
                let first = (y - tile_y) * tile_w + (part.x - tile_x);
                let pixels = &rgb[first * 3..(first + part.w) * 3];
                let x = part.x - self.crop.x;
                for c in 0..3 {
                    // SAFETY: tiles do not overlap, so nobody else holds these
                    // elements; the caller holds `dst` alone.
                    let row = unsafe { dst.row_mut(0, c, 0, y - self.crop.y, x..x + part.w) };
                    for (out, pixel) in row.iter_mut().zip(pixels.chunks_exact(3)) {
                        *out = value(c, pixel[c]);
                    }
                }
            }
            Ok(())
        };
        let tiles: Vec<u64> = self.tiles.inside(wanted).collect();
        let failed = match tiles.as_slice() {
            [tile] => copy(*tile).err(),
            // The first in order, so that the same file gives the same error.
            many => many.par_iter().find_map_first(|&tile| copy(tile).err()),
        };
        failed.map_or(Ok(()), Err)
    }
}

impl<T: Real> TileSource<T> for SlideSource {
    fn shape(&self) -> Shape {
        SlideSource::shape(self)
    }

    fn read(&self, region: &Region, dst: &mut Out<'_, T>) -> Result<(), SourceError> {
        let tables: [[T; 256]; 3] = self.scales.map(|scale| scale.table());
        self.read_as(region, dst, |c, v| tables[c][usize::from(v)])
    }

    fn bytes(&self) -> Option<&dyn ByteSource> {
        Some(self)
    }

    fn prefetch(&self, region: &Region) {
        let (rows, cols) = (Span::full(self.crop.h), Span::full(self.crop.w));
        if region.n_axes() != 3 {
            return;
        }
        let mut inside = *region;
        inside.set(1, region.span(1).intersect(rows));
        inside.set(2, region.span(2).intersect(cols));
        if !inside.is_empty() {
            self.ahead
                .announce(self.tiles.inside(self.on_level(&inside)));
        }
    }

    fn cache_bytes(&self) -> u64 {
        self.tiles.cache.held_bytes()
    }

    fn cache_limit_bytes(&self) -> u64 {
        self.tiles.cache.limit_bytes()
    }
}

impl ByteSource for SlideSource {
    fn scales(&self) -> &[ByteScale] {
        &self.scales
    }

    fn read_bytes(&self, region: &Region, dst: &mut Out<'_, u8>) -> Result<(), SourceError> {
        self.read_as(region, dst, |_, v| v)
    }
}

impl Tiles {
    /// The cache.
    pub(super) fn cache(&self) -> &TileCache {
        &self.cache
    }

    /// Bytes of a decoded tile.
    pub(super) fn tile_bytes(&self) -> u64 {
        (self.tile.0 * self.tile.1 * 3) as u64
    }

    /// A decoded tile: interleaved RGB.
    pub(super) fn tile(&self, tile: u64, asker: Asker) -> Result<Arc<Vec<u8>>, SourceError> {
        self.cache
            .get_or_decode(tile, asker, || self.file.tile(self.level, tile))
    }

    /// Tiles that overlap a rectangle, row by row.
    fn inside(&self, rect: Crop) -> impl Iterator<Item = u64> + use<> {
        let (tw, th, across) = (self.tile.0, self.tile.1, self.across);
        let (cols, rows) = (
            rect.x / tw..(rect.x + rect.w).div_ceil(tw),
            rect.y / th..(rect.y + rect.h).div_ceil(th),
        );
        rows.flat_map(move |row| cols.clone().map(move |col| (row * across + col) as u64))
    }

    /// Upper left pixel of a tile.
    fn origin(&self, tile: u64) -> (usize, usize) {
        let tile = tile as usize;
        (
            tile % self.across * self.tile.0,
            tile / self.across * self.tile.1,
        )
    }

    /// The part of a rectangle that lies in a tile.
    fn overlap(&self, tile: u64, rect: Crop) -> Option<Crop> {
        let (x, y) = self.origin(tile);
        let cols = Span::new(x, x + self.tile.0).intersect(Span::new(rect.x, rect.x + rect.w));
        let rows = Span::new(y, y + self.tile.1).intersect(Span::new(rect.y, rect.y + rect.h));
        if cols.is_empty() || rows.is_empty() {
            return None;
        }
        Some(Crop {
            x: cols.lo,
            y: rows.lo,
            w: cols.len(),
            h: rows.len(),
        })
    }
}
