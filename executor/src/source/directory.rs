//! A TIFF file's directories, as levels of a pyramid.
//!
//! Every directory of the chain and every sub-directory is one image. The tiled
//! ones in the proportions of the largest are its levels; the stripped ones are
//! label, macro photograph and thumbnail and are only counted.
//!
//! The `tiff` crate reads the entries. What they point at is believed only
//! after a check: sizes are bounded before anything is allocated by them.

use std::collections::HashSet;
use std::fs::File;
use std::io::BufReader;
use std::path::Path;

use tiff::TiffError;
use tiff::decoder::{Decoder, IfdDecoder};
use tiff::tags::{IfdPointer, Tag};

use super::SourceError;
use super::codec::TileFormat;
use super::file::{Compression, Level, LevelInfo, SlideInfo, Unsupported, pixels};

/// Most directories of a file; slides have about ten.
const MAX_DIRECTORIES: usize = 4096;
/// Most pixels of a tile; slides have 2¹⁶ to 2²⁰.
const MAX_TILE_PIXELS: usize = 1 << 26;

/// Reads what the file says of itself and where its tiles lie.
pub(super) fn parse(
    path: &Path,
    file: &File,
    file_bytes: u64,
) -> Result<(SlideInfo, Vec<Level>), SourceError> {
    let big_tiff = signature(path, file)?;
    let malformed = |offset: u64, reason: String| SourceError::Directory {
        path: path.to_path_buf(),
        offset,
        file_bytes,
        reason,
    };
    let mut decoder =
        Decoder::new(BufReader::new(file)).map_err(|error| malformed(0, sentence(&error)))?;

    let mut images = Vec::new();
    let mut todo: Vec<IfdPointer> = decoder.ifd_pointer().into_iter().collect();
    let mut seen = HashSet::new();
    while let Some(pointer) = todo.pop() {
        let at = pointer.0;
        if !seen.insert(at) {
            return Err(malformed(
                at,
                "the chain of directories runs in a circle".to_string(),
            ));
        }
        if seen.len() > MAX_DIRECTORIES {
            return Err(malformed(
                at,
                format!("more than {MAX_DIRECTORIES} directories"),
            ));
        }
        let fail = |error: TiffError| malformed(at, sentence(&error));
        let directory = decoder.read_directory(pointer).map_err(fail)?;
        let mut tags = decoder.read_directory_tags(&directory);
        let image = image(&mut tags).map_err(|reason| malformed(at, reason))?;
        // Depth first: sub-images belong to the directory that names them.
        todo.extend(directory.next());
        todo.extend(
            image
                .sub_images
                .iter()
                .rev()
                .map(|&offset| IfdPointer(offset)),
        );
        images.push(image);
    }

    let n_images = images.len();
    let description = images.iter().find_map(|image| image.description.clone());
    let vendor = vendor(&images, description.as_deref());
    let resolution = images.first().and_then(|image| image.mpp);
    let levels = pyramid(images);
    if levels.is_empty() {
        return Err(SourceError::NotTiled {
            path: path.to_path_buf(),
            n_images,
        });
    }
    let said = |key| description.as_deref().and_then(|text| stated(text, key));
    let info = SlideInfo {
        path: path.to_path_buf(),
        bytes: file_bytes,
        big_tiff,
        vendor,
        mpp: said("MPP").map(|mpp| (mpp, mpp)).or(resolution),
        magnification: said("AppMag"),
        description,
        levels: levels.iter().map(|level| level.info.clone()).collect(),
        n_other_images: n_images - levels.len(),
    };
    Ok((info, levels))
}

/// Whether the file is a BigTIFF; an error if it is no TIFF at all.
fn signature(path: &Path, file: &File) -> Result<bool, SourceError> {
    use std::io::{Read, Seek, SeekFrom};
    let mut first = Vec::with_capacity(4);
    let mut reader = file;
    reader
        .take(4)
        .read_to_end(&mut first)
        .and_then(|_| reader.seek(SeekFrom::Start(0)))
        .map_err(|error| SourceError::open(path, &error))?;
    match first.as_slice() {
        b"II*\0" | b"MM\0*" => Ok(false),
        b"II+\0" | b"MM\0+" => Ok(true),
        other => {
            let hex: Vec<String> = other.iter().map(|byte| format!("{byte:02x}")).collect();
            let found = if hex.is_empty() {
                "(none)".to_string()
            } else {
                hex.join(" ")
            };
            Err(SourceError::NotTiff {
                path: path.to_path_buf(),
                found,
            })
        }
    }
}

fn sentence(error: &TiffError) -> String {
    match error {
        TiffError::IoError(io) if io.kind() == std::io::ErrorKind::UnexpectedEof => {
            "the file ends before the directory or what it points at does".to_string()
        }
        TiffError::IoError(_)
        | TiffError::FormatError(_)
        | TiffError::UnsupportedError(_)
        | TiffError::LimitsExceeded
        | TiffError::IntSizeError
        | TiffError::UsageError(_) => error.to_string(),
    }
}

/// One directory.
struct Image {
    /// The image as a level, if it is tiled.
    level: Option<Level>,
    description: Option<String>,
    maker: Option<String>,
    mpp: Option<(f64, f64)>,
    sub_images: Vec<u64>,
}

fn image(tags: &mut IfdDecoder<'_>) -> Result<Image, String> {
    let level = match number(tags, Tag::TileWidth)? {
        Some(tile_width) => Some(level(tags, tile_width)?),
        None => None,
    };
    let sub_images = match tags.find_entry(Tag::SubIfd) {
        Some(entry) if entry.count() <= MAX_DIRECTORIES as u64 => numbers(tags, Tag::SubIfd)?,
        Some(entry) => return Err(format!("it names {} sub-images", entry.count())),
        None => Vec::new(),
    };
    Ok(Image {
        level,
        description: text(tags, Tag::ImageDescription),
        maker: text(tags, Tag::Make).or_else(|| text(tags, Tag::Software)),
        mpp: resolution(tags),
        sub_images,
    })
}

fn level(tags: &mut IfdDecoder<'_>, tile_width: u64) -> Result<Level, String> {
    let required = |tags: &mut IfdDecoder<'_>, tag| {
        number(tags, tag)?.ok_or_else(|| format!("it has tiles but no {tag:?}"))
    };
    let width = required(tags, Tag::ImageWidth)?;
    let height = required(tags, Tag::ImageLength)?;
    let tile_height = required(tags, Tag::TileLength)?;
    let side = |n: u64| {
        usize::try_from(n)
            .ok()
            .filter(|n| (1..=1 << 31).contains(n))
    };
    let (Some(w), Some(h), Some(tw), Some(th)) = (
        side(width),
        side(height),
        side(tile_width),
        side(tile_height),
    ) else {
        let sizes = format!("{width} × {height} in tiles of {tile_width} × {tile_height}");
        return Err(format!("an image of {sizes} pixels is not possible"));
    };
    if tw
        .checked_mul(th)
        .is_none_or(|pixels| pixels > MAX_TILE_PIXELS)
    {
        return Err(format!(
            "tiles of {tw} × {th} pixels are too large to decode"
        ));
    }

    let small = |tags: &mut IfdDecoder<'_>, tag, default: u16| {
        let value = number(tags, tag)?.unwrap_or(u64::from(default));
        u16::try_from(value).map_err(|_| format!("{tag:?} is {value}"))
    };
    let compression = Compression::from_tag(small(tags, Tag::Compression, 1)?);
    let samples = small(tags, Tag::SamplesPerPixel, 1)?;
    let photometric = small(tags, Tag::PhotometricInterpretation, 1)?;
    let planar = small(tags, Tag::PlanarConfiguration, 1)? == 2;
    let predictor = small(tags, Tag::Predictor, 1)?;
    let sample_format = small(tags, Tag::SampleFormat, 1)?;
    let bits = numbers(tags, Tag::BitsPerSample)?;

    // `planes · across · down`, which fits: each factor is below 2³².
    let planes = if planar { u128::from(samples) } else { 1 };
    let expected = planes * w.div_ceil(tw) as u128 * h.div_ceil(th) as u128;
    let list = |tags: &mut IfdDecoder<'_>, tag| {
        let found = tags.find_entry(tag).map_or(0, |entry| entry.count());
        if u128::from(found) != expected {
            return Err(format!(
                "{w} × {h} pixels in tiles of {tw} × {th} are {expected} tiles, but {tag:?} lists {found}"
            ));
        }
        numbers(tags, tag)
    };
    let offsets = list(tags, Tag::TileOffsets)?;
    let lengths = list(tags, Tag::TileByteCounts)?;
    let jpeg_tables = match compression {
        Compression::Jpeg => bytes(tags, Tag::JPEGTables)?,
        Compression::None | Compression::Lzw | Compression::Deflate | Compression::Other(_) => None,
    };

    let format = if let Compression::Other(_) = compression {
        Err(Unsupported::Compression(compression))
    } else if planar && samples > 1 {
        Err(Unsupported::Pixels("one plane per channel".to_string()))
    } else if bits.iter().any(|&b| b != 8) || bits.is_empty() || sample_format != 1 {
        let kind = match sample_format {
            2 => "signed ",
            3 => "floating-point ",
            _ => "",
        };
        let bits: Vec<String> = if bits.is_empty() {
            vec!["1".into()]
        } else {
            bits.iter().map(u64::to_string).collect()
        };
        Err(Unsupported::Pixels(format!(
            "{kind}samples of {} bits",
            bits.join(", ")
        )))
    } else if !(1..=2).contains(&predictor) {
        Err(Unsupported::Pixels(format!("predictor {predictor}")))
    } else {
        pixels(photometric, samples).map(|pixels| TileFormat {
            width: tw,
            height: th,
            compression,
            samples: usize::from(samples),
            pixels,
            // The predictor is defined for LZW and deflate alone.
            differences: predictor == 2
                && matches!(compression, Compression::Lzw | Compression::Deflate),
            jpeg_tables,
        })
    };
    let info = LevelInfo {
        size: (w, h),
        tile: (tw, th),
        compression,
        downsample: 1.0,
        n_tiles: lengths.len() as u64,
        bytes: lengths.iter().fold(0, |sum: u64, &n| sum.saturating_add(n)),
    };
    Ok(Level {
        info,
        offsets,
        lengths,
        format,
    })
}

/// The tiled images that are one picture at several scales, largest first.
fn pyramid(images: Vec<Image>) -> Vec<Level> {
    let mut levels: Vec<Level> = images.into_iter().filter_map(|image| image.level).collect();
    // Stable: of several images of one size (channels, focal planes), the
    // first in the file is the level.
    levels.sort_by_key(|level| {
        std::cmp::Reverse(level.info.size.0 as u128 * level.info.size.1 as u128)
    });
    let Some((full_w, full_h)) = levels.first().map(|level| level.info.size) else {
        return levels;
    };
    levels.dedup_by(|next, kept| next.info.size == kept.info.size);
    levels.retain_mut(|level| {
        let (w, h) = level.info.size;
        level.info.downsample = (full_w as f64 / w as f64 + full_h as f64 / h as f64) / 2.0;
        // Sides are rounded up or down, so each tells the factor only within
        // bounds. A level's overlap; a tiled label's or macro's do not.
        let bounds = |full: usize, side: usize| {
            let most = if side > 1 {
                full as f64 / (side - 1) as f64
            } else {
                f64::INFINITY
            };
            (0.99 * full as f64 / (side + 1) as f64, 1.01 * most)
        };
        let (x, y) = (bounds(full_w, w), bounds(full_h, h));
        x.0.max(y.0) <= x.1.min(y.1)
    });
    levels
}

fn vendor(images: &[Image], description: Option<&str>) -> Option<String> {
    if description.is_some_and(|text| text.starts_with("Aperio")) {
        return Some("aperio".to_string());
    }
    images.iter().find_map(|image| image.maker.clone())
}

/// The number after `key = ` in an Aperio description, whose fields `|` divides.
fn stated(description: &str, key: &str) -> Option<f64> {
    description
        .split('|')
        .filter_map(|field| field.split_once('='))
        .find(|(name, _)| name.trim() == key)
        .and_then(|(_, value)| value.trim().parse().ok())
        .filter(|&value: &f64| value.is_finite() && value > 0.0)
}

/// Micrometres per pixel from the resolution tags.
fn resolution(tags: &mut IfdDecoder<'_>) -> Option<(f64, f64)> {
    let unit = match number(tags, Tag::ResolutionUnit).ok().flatten()? {
        2 => 25_400.0,
        3 => 10_000.0,
        _ => return None,
    };
    let mut along = |tag| {
        let value = tags.find_tag(tag).ok().flatten()?;
        let per_unit = match value {
            tiff::decoder::ifd::Value::Rational(n, d) => f64::from(n) / f64::from(d),
            other => other.into_f64().ok()?,
        };
        // Writers that know nothing say 1 or 72 per inch: no microscope does.
        let mpp = unit / per_unit;
        (mpp.is_finite() && mpp > 0.0 && mpp < 100.0).then_some(mpp)
    };
    Some((along(Tag::XResolution)?, along(Tag::YResolution)?))
}

fn number(tags: &mut IfdDecoder<'_>, tag: Tag) -> Result<Option<u64>, String> {
    Ok(match tags.find_entry(tag).map(|entry| entry.count()) {
        None | Some(0) => None,
        Some(_) => numbers(tags, tag)?.first().copied(),
    })
}

fn numbers(tags: &mut IfdDecoder<'_>, tag: Tag) -> Result<Vec<u64>, String> {
    let values = tags
        .find_tag_unsigned_vec(tag)
        .map_err(|e| about(tag, &e))?;
    Ok(values.unwrap_or_default())
}

fn bytes(tags: &mut IfdDecoder<'_>, tag: Tag) -> Result<Option<Vec<u8>>, String> {
    let value = tags.find_tag(tag).map_err(|e| about(tag, &e))?;
    value
        .map(|value| value.into_u8_vec().map_err(|e| about(tag, &e)))
        .transpose()
}

/// Text is only told, so text that does not read is none.
fn text(tags: &mut IfdDecoder<'_>, tag: Tag) -> Option<String> {
    let value = tags.find_tag(tag).ok().flatten()?.into_string().ok()?;
    let value = value.trim_matches(['\0', ' ', '\r', '\n']);
    (!value.is_empty()).then(|| value.to_string())
}

fn about(tag: Tag, error: &TiffError) -> String {
    format!("{tag:?}: {}", sentence(error))
}
