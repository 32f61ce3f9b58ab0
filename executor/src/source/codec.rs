//! One tile's bytes to interleaved 8-bit RGB.
//!
//! The `tiff` crate hands out JPEG tiles as raw YCbCr and one tile per
//! `&mut` decoder, so tiles are decoded here, each by a pure function of its
//! bytes that any thread may call. Every decoder writes into a buffer of the
//! size that the directory announces: a tile cannot claim more.

use std::panic::{AssertUnwindSafe, catch_unwind};

use zune_jpeg::JpegDecoder;
use zune_jpeg::zune_core::bytestream::ZCursor;
use zune_jpeg::zune_core::colorspace::ColorSpace;
use zune_jpeg::zune_core::options::DecoderOptions;

use super::file::Compression;

/// What a pixel's samples mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pixels {
    /// Luminance; an optional second sample is dropped.
    Gray,
    /// Luminance where 0 is white.
    InvertedGray,
    /// Red, green, blue; further samples are dropped.
    Rgb,
    /// Luma and chroma, as JPEG stores them.
    YCbCr,
}

/// How the tiles of one level are stored.
#[derive(Clone, Debug)]
pub(super) struct TileFormat {
    /// Width of every tile, border tiles included (they are padded).
    pub(super) width: usize,
    /// Height of every tile.
    pub(super) height: usize,
    /// How tiles are compressed.
    pub(super) compression: Compression,
    /// Samples per pixel, interleaved, of one byte each.
    pub(super) samples: usize,
    /// What the samples mean.
    pub(super) pixels: Pixels,
    /// Whether each sample is stored as the difference to its left neighbour.
    pub(super) differences: bool,
    /// Quantisation and Huffman tables that all JPEG tiles share.
    pub(super) jpeg_tables: Option<Vec<u8>>,
}

impl TileFormat {
    /// Bytes of a decoded tile: interleaved RGB.
    pub(super) fn rgb_bytes(&self) -> usize {
        self.width * self.height * 3
    }
}

/// Decodes one tile to `width × height` RGB pixels, row by row.
///
/// # Errors
/// What the decoder found wrong, in its words.
pub(super) fn decode(format: &TileFormat, raw: &[u8]) -> Result<Vec<u8>, String> {
    let bytes = format.width * format.height * format.samples;
    let mut samples = match format.compression {
        Compression::None => raw
            .get(..bytes)
            .ok_or_else(|| too_few(raw.len(), bytes))?
            .to_vec(),
        Compression::Lzw => lzw(raw, bytes)?,
        Compression::Deflate => deflate(raw, bytes)?,
        Compression::Jpeg => {
            // A corrupt stream must be an answer even where a decoder of
            // someone else's trips over it. Nothing is shared with the closure
            // that a panic could leave half-written.
            catch_unwind(AssertUnwindSafe(|| jpeg(format, raw)))
                .unwrap_or_else(|_| Err("the JPEG decoder gave up on it".to_string()))?
        }
        Compression::Other(_) => return Err(format!("{} is not supported", format.compression)),
    };
    if format.differences {
        integrate(&mut samples, format.width, format.samples);
    }
    Ok(to_rgb(samples, format))
}

fn too_few(found: usize, expected: usize) -> String {
    format!("it holds {found} bytes of samples where {expected} belong")
}

fn lzw(raw: &[u8], bytes: usize) -> Result<Vec<u8>, String> {
    let mut out = vec![0; bytes];
    let mut decoder = weezl::decode::Decoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8);
    let (mut read, mut written) = (0, 0);
    while written < bytes {
        let step = decoder.decode_bytes(&raw[read..], &mut out[written..]);
        read += step.consumed_in;
        written += step.consumed_out;
        match step.status {
            Ok(weezl::LzwStatus::Ok) if step.consumed_in + step.consumed_out > 0 => {}
            Ok(_) => break,
            Err(error) => return Err(format!("LZW: {error}")),
        }
    }
    if written < bytes {
        Err(too_few(written, bytes))
    } else {
        Ok(out)
    }
}

fn deflate(raw: &[u8], bytes: usize) -> Result<Vec<u8>, String> {
    let mut out = vec![0; bytes];
    let mut decoder = flate2::Decompress::new(true);
    let status = decoder
        .decompress(raw, &mut out, flate2::FlushDecompress::Finish)
        .map_err(|error| format!("deflate: {error}"))?;
    let written = decoder.total_out() as usize;
    if written < bytes {
        return Err(format!("{} ({status:?})", too_few(written, bytes)));
    }
    Ok(out)
}

fn jpeg(format: &TileFormat, raw: &[u8]) -> Result<Vec<u8>, String> {
    // Tables are a JPEG stream of their own: start, tables, end. Between
    // the tables' end and the tile's start two markers go (TIFF Technical
    // Note 2).
    let stream = match &format.jpeg_tables {
        Some(tables) if tables.len() >= 4 => {
            let image = raw
                .get(2..)
                .ok_or_else(|| "it has no JPEG header".to_string())?;
            [&tables[..tables.len() - 2], image].concat()
        }
        Some(_) | None => raw.to_vec(),
    };
    let options = DecoderOptions::default()
        .set_strict_mode(true)
        .set_max_width(format.width)
        .set_max_height(format.height);
    let mut decoder = JpegDecoder::new_with_options(ZCursor::new(stream), options);
    decoder
        .decode_headers()
        .map_err(|error| format!("JPEG: {error}"))?;
    let (found, stored) = match (decoder.info(), decoder.input_colorspace()) {
        (Some(info), Some(space)) => ((usize::from(info.width), usize::from(info.height)), space),
        (None, _) | (_, None) => return Err("JPEG: it has no header".to_string()),
    };
    if found != (format.width, format.height) || stored.num_components() != format.samples {
        return Err(format!(
            "its JPEG is {} × {} pixels of {} components, the directory says {} × {} of {}",
            found.0,
            found.1,
            stored.num_components(),
            format.width,
            format.height,
            format.samples
        ));
    }
    // The directory decides what the components mean, as in libtiff: JPEG
    // streams in TIFF files seldom carry markers of their own.
    let convert = format.pixels == Pixels::YCbCr && stored == ColorSpace::YCbCr;
    let out = if convert { ColorSpace::RGB } else { stored };
    decoder.set_options(options.jpeg_set_out_colorspace(out));
    let mut samples = decoder.decode().map_err(|error| format!("JPEG: {error}"))?;
    if format.pixels == Pixels::YCbCr && !convert && format.samples == 3 {
        samples.chunks_exact_mut(3).for_each(ycbcr_to_rgb);
    }
    let bytes = format.width * format.height * format.samples;
    if samples.len() != bytes {
        return Err(too_few(samples.len(), bytes));
    }
    Ok(samples)
}

/// JFIF's conversion, for streams whose own marker contradicts the directory.
fn ycbcr_to_rgb(pixel: &mut [u8]) {
    let [y, cb, cr] = [pixel[0], pixel[1], pixel[2]].map(f32::from);
    let (cb, cr) = (cb - 128.0, cr - 128.0);
    let rgb = [
        y + 1.402 * cr,
        y - 0.344_136 * cb - 0.714_136 * cr,
        y + 1.772 * cb,
    ];
    for (out, value) in pixel.iter_mut().zip(rgb) {
        *out = value.round().clamp(0.0, 255.0) as u8;
    }
}

/// Undoes horizontal differencing (TIFF predictor 2), row by row.
fn integrate(samples: &mut [u8], width: usize, per_pixel: usize) {
    for row in samples.chunks_exact_mut(width * per_pixel) {
        for i in per_pixel..row.len() {
            row[i] = row[i].wrapping_add(row[i - per_pixel]);
        }
    }
}

fn to_rgb(samples: Vec<u8>, format: &TileFormat) -> Vec<u8> {
    let n = format.samples;
    match format.pixels {
        Pixels::Rgb | Pixels::YCbCr if n == 3 => samples,
        Pixels::Rgb | Pixels::YCbCr => samples
            .chunks_exact(n)
            .flat_map(|p| [p[0], p[1], p[2]])
            .collect(),
        Pixels::Gray => samples.chunks_exact(n).flat_map(|p| [p[0]; 3]).collect(),
        Pixels::InvertedGray => samples
            .chunks_exact(n)
            .flat_map(|p| [255 - p[0]; 3])
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(compression: Compression, samples: usize, pixels: Pixels) -> TileFormat {
        TileFormat {
            width: 2,
            height: 2,
            compression,
            samples,
            pixels,
            differences: false,
            jpeg_tables: None,
        }
    }

    #[test]
    fn every_pixel_layout_becomes_rgb() {
        let none = Compression::None;
        let rgba = decode(&format(none, 4, Pixels::Rgb), &(0..16).collect::<Vec<u8>>());
        assert_eq!(rgba.unwrap(), [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14]);
        let gray = decode(&format(none, 1, Pixels::Gray), &[1, 2, 3, 4]);
        assert_eq!(gray.unwrap(), [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]);
        let inverted = decode(&format(none, 1, Pixels::InvertedGray), &[255, 0, 1, 2]);
        assert_eq!(inverted.unwrap()[..6], [0, 0, 0, 255, 255, 255]);
    }

    #[test]
    fn differences_are_summed_along_each_row_alone() {
        let mut difference = format(Compression::None, 1, Pixels::Gray);
        difference.differences = true;
        let rgb = decode(&difference, &[200, 100, 7, 1]).unwrap();
        assert_eq!([rgb[0], rgb[3], rgb[6], rgb[9]], [200, 44, 7, 8]);
    }

    #[test]
    fn a_tile_too_short_says_what_is_missing() {
        let error = decode(&format(Compression::None, 3, Pixels::Rgb), &[0; 11]).unwrap_err();
        assert!(error.contains("11") && error.contains("12"), "{error}");
        for compression in [Compression::Lzw, Compression::Deflate, Compression::Jpeg] {
            assert!(decode(&format(compression, 3, Pixels::Rgb), &[]).is_err());
            assert!(decode(&format(compression, 3, Pixels::Rgb), &[0xff; 40]).is_err());
        }
    }

    #[test]
    fn a_gray_jfif_pixel_keeps_its_value() {
        let mut pixel = [77, 128, 128];
        ycbcr_to_rgb(&mut pixel);
        assert_eq!(pixel, [77, 77, 77]);
    }
}
