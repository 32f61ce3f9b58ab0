//! One tile of RGB pixels to compressed bytes, and rows to half their size.

use std::io::Write;

use jpeg_encoder::{ColorType, Encoder, SamplingFactor};
use rayon::prelude::*;

use super::SlideError;
use super::writer::Encoding;

/// Cuts tile `column` out of a band of rows, `size` pixels square. Beyond the
/// right and lower border the last pixel is repeated, which JPEG compresses
/// without ringing into the image.
pub(super) fn cut(band: &[u8], width: usize, n_rows: usize, size: usize, column: usize) -> Vec<u8> {
    let x = column * size;
    let present = size.min(width - x);
    let mut tile = Vec::with_capacity(size * size * 3);
    for row in 0..size {
        let row = row.min(n_rows - 1);
        let pixels = &band[(row * width + x) * 3..(row * width + x + present) * 3];
        tile.extend_from_slice(pixels);
        let last = [
            pixels[pixels.len() - 3],
            pixels[pixels.len() - 2],
            pixels[pixels.len() - 1],
        ];
        for _ in present..size {
            tile.extend_from_slice(&last);
        }
    }
    tile
}

/// Compresses one tile, `size` pixels square.
pub(super) fn encode(
    mut tile: Vec<u8>,
    size: usize,
    encoding: Encoding,
) -> Result<Vec<u8>, SlideError> {
    let refused = |reason: String| SlideError::Encode { reason };
    match encoding {
        Encoding::None => Ok(tile),
        Encoding::Lzw => {
            differentiate(&mut tile, size);
            weezl::encode::Encoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8)
                .encode(&tile)
                .map_err(|error| refused(error.to_string()))
        }
        Encoding::Deflate => {
            differentiate(&mut tile, size);
            let mut encoder =
                flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::new(6));
            encoder
                .write_all(&tile)
                .and_then(|()| encoder.finish())
                .map_err(|error| refused(error.to_string()))
        }
        Encoding::Jpeg { quality } => {
            let mut jpeg = Vec::with_capacity(tile.len() / 8);
            let mut encoder = Encoder::new(&mut jpeg, quality);
            encoder.set_sampling_factor(SamplingFactor::F_2_2);
            let side = u16::try_from(size).map_err(|error| refused(error.to_string()))?;
            encoder
                .encode(&tile, side, side, ColorType::Rgb)
                .map_err(|error| refused(error.to_string()))?;
            Ok(jpeg)
        }
    }
}

/// Each sample becomes the difference to its left neighbour (TIFF predictor 2).
fn differentiate(tile: &mut [u8], size: usize) {
    for row in tile.chunks_exact_mut(size * 3) {
        for i in (3..row.len()).rev() {
            row[i] = row[i].wrapping_sub(row[i - 3]);
        }
    }
}

/// A JPEG stream in two: the tables, as a stream of their own for the
/// directory, and the stream without tables and without its JFIF header, which
/// TIFF does not want (Technical Note 2).
pub(super) fn split_jpeg(jpeg: &[u8]) -> Result<(Vec<u8>, Vec<u8>), SlideError> {
    let malformed = || SlideError::Encode {
        reason: "the JPEG encoder wrote no JPEG".to_string(),
    };
    const START: [u8; 2] = [0xff, 0xd8];
    let (mut tables, mut image) = (START.to_vec(), START.to_vec());
    let mut at = 2;
    loop {
        let [0xff, marker, hi, lo] = *jpeg.get(at..at + 4).ok_or_else(malformed)? else {
            return Err(malformed());
        };
        let end = at + 2 + usize::from(u16::from_be_bytes([hi, lo]));
        let segment = jpeg.get(at..end).ok_or_else(malformed)?;
        match marker {
            0xdb | 0xc4 => tables.extend_from_slice(segment),
            0xe0 => {}
            0xda => {
                image.extend_from_slice(&jpeg[at..]);
                tables.extend_from_slice(&[0xff, 0xd9]);
                return Ok((tables, image));
            }
            _ => image.extend_from_slice(segment),
        }
        at = end;
    }
}

/// Rows of `width` pixels averaged over boxes of `step × step`. Boxes that reach
/// over the border average what is there.
pub(super) fn shrink(rows: &[u8], width: usize, n_rows: usize, step: usize) -> Vec<u8> {
    let small_w = width.div_ceil(step);
    let small_h = n_rows.div_ceil(step);
    let mut out = vec![0; small_w * small_h * 3];
    out.par_chunks_exact_mut(small_w * 3)
        .enumerate()
        .for_each(|(y, out)| {
            let rows_in = y * step..((y + 1) * step).min(n_rows);
            let mut sums = vec![0u32; small_w * 3];
            for row in rows_in.clone() {
                let row = &rows[row * width * 3..(row + 1) * width * 3];
                for (sum, pixels) in sums.chunks_exact_mut(3).zip(row.chunks(step * 3)) {
                    for pixel in pixels.chunks_exact(3) {
                        sum[0] += u32::from(pixel[0]);
                        sum[1] += u32::from(pixel[1]);
                        sum[2] += u32::from(pixel[2]);
                    }
                }
            }
            for (x, (out, sum)) in out
                .chunks_exact_mut(3)
                .zip(sums.chunks_exact(3))
                .enumerate()
            {
                let n = (rows_in.len() * step.min(width - x * step)) as u32;
                for (out, &sum) in out.iter_mut().zip(sum) {
                    *out = ((sum + n / 2) / n) as u8;
                }
            }
        });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boxes_are_averaged_and_borders_average_what_is_there() {
        // Three columns, three rows, one value per pixel.
        let pixels: Vec<u8> = [0, 2, 9, 4, 6, 11, 20, 22, 30]
            .iter()
            .flat_map(|&v| [v; 3])
            .collect();
        let small = shrink(&pixels, 3, 3, 2);
        let values: Vec<u8> = small.chunks(3).map(|p| p[0]).collect();
        assert_eq!(values, [3, 10, 21, 30]);
    }

    #[test]
    fn a_border_tile_repeats_its_last_pixel() {
        let band: Vec<u8> = [1, 2, 3, 4, 5, 6].iter().flat_map(|&v| [v; 3]).collect();
        let tile = cut(&band, 3, 2, 2, 1);
        assert_eq!(
            tile.chunks(3).map(|p| p[0]).collect::<Vec<_>>(),
            [3, 3, 6, 6]
        );
    }

    #[test]
    fn jpeg_tables_are_the_same_for_every_tile_and_leave_it() {
        let tile = |seed: u32| {
            (0..16 * 16 * 3)
                .map(|i| (i * seed) as u8)
                .collect::<Vec<u8>>()
        };
        let jpeg = |seed| encode(tile(seed), 16, Encoding::Jpeg { quality: 80 }).unwrap();
        let (tables, image) = split_jpeg(&jpeg(3)).unwrap();
        assert_eq!(split_jpeg(&jpeg(7)).unwrap().0, tables);
        assert!(tables.len() + image.len() <= jpeg(3).len() + 4);
        assert_eq!(image[..4], [0xff, 0xd8, 0xff, 0xc0]);
        assert!(split_jpeg(&[0xff, 0xd8, 0xff]).is_err());
    }
}
