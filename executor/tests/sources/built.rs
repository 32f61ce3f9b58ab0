//! Slides built here: byte orders, compressions, pyramids, odd directories.

use sstep_executor::source::{SlideFile, SlideOptions, SlideSource, SourceError};

use crate::common::{SLIDE, Scratch, open, pixels, read_all, rect, whole};
use crate::tiff::{Dir, Kind, build, expected, sample};

#[test]
fn every_byte_order_offset_width_and_lossless_compression_reads_the_same() {
    let expected = expected(&Dir::rgb(40, 24, 16));
    for compression in [1, 5, 8, 32946] {
        let file = Scratch::new("lossless.tif", &sample(compression));
        assert_eq!(
            read_all(&file.0).unwrap(),
            expected,
            "compression {compression}"
        );
    }
    for form in [Kind::BigEndian, Kind::BigTiff] {
        let file = Scratch::new("form.tif", &build(&[Dir::rgb(40, 24, 16)], form, false));
        let slide = SlideFile::open(&file.0).unwrap();
        assert_eq!(slide.info().big_tiff, form == Kind::BigTiff);
        assert_eq!(read_all(&file.0).unwrap(), expected);
    }
}

#[test]
fn a_jpeg_tile_reads_as_on_its_slide() {
    let file = Scratch::new("jpeg.tif", &sample(7));
    let slide = open(SLIDE).unwrap();
    assert_eq!(
        read_all(&file.0).unwrap(),
        pixels(&slide, &rect(0, 0, 240, 240)).unwrap()
    );
}

#[test]
fn sub_images_are_levels_and_labels_are_not() {
    let mut full = Dir::rgb(100, 60, 16);
    full.subs = vec![Dir::rgb(50, 30, 16), Dir::rgb(25, 15, 16)];
    let mut macro_image = Dir::rgb(64, 32, 64);
    macro_image.tiled = false;
    // Tiled as well, but in other proportions than the slide.
    let label = Dir::rgb(32, 32, 16);
    let dirs = [macro_image, Dir::rgb(13, 8, 16), full, label];
    let file = Scratch::new("pyramid.tif", &build(&dirs, Kind::Classic, false));
    let slide = SlideFile::open(&file.0).unwrap();
    let sizes: Vec<_> = slide.info().levels.iter().map(|level| level.size).collect();
    assert_eq!(sizes, [(100, 60), (50, 30), (25, 15), (13, 8)]);
    assert_eq!(slide.info().n_other_images, 2);
    assert_eq!(slide.info().levels[1].downsample, 2.0);
    let options = SlideOptions {
        level: 1,
        ..SlideOptions::default()
    };
    let half = SlideSource::open(&file.0, options).unwrap();
    assert_eq!(
        pixels(&half, &whole(&half)).unwrap(),
        expected(&Dir::rgb(50, 30, 16))
    );
}

#[test]
fn a_tile_that_was_never_written_is_white() {
    let mut dir = Dir::rgb(32, 16, 16);
    dir.tiles[1].clear();
    let file = Scratch::new("sparse.tif", &build(&[dir], Kind::Classic, false));
    let source = open(&file.0).unwrap();
    assert_eq!(
        pixels(&source, &rect(16, 0, 16, 16)).unwrap(),
        vec![255; 3 * 16 * 16]
    );
}

#[test]
fn a_circle_of_directories_ends() {
    let mut bytes = build(&[Dir::rgb(16, 16, 16)], Kind::Classic, false);
    let n = bytes.len();
    let first: [u8; 4] = bytes[4..8].try_into().unwrap();
    bytes[n - 4..].copy_from_slice(&first);
    let file = Scratch::new("circle.tif", &bytes);
    assert!(open(&file.0).err().unwrap().to_string().contains("circle"));
}

#[test]
fn a_directory_that_promises_too_much_is_refused() {
    let mut huge = Dir::rgb(16, 16, 16);
    huge.tile = 1 << 20;
    let mut many = Dir::rgb(16, 16, 16);
    many.size = (1 << 30, 1 << 30);
    for dir in [huge, many] {
        let file = Scratch::new("huge.tif", &build(&[dir], Kind::Classic, false));
        assert!(matches!(open(&file.0), Err(SourceError::Directory { .. })));
    }
}
