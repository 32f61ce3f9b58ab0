//! Files that are broken in every way that comes to mind, and wishes that cannot be met.

use std::path::Path;

use sstep_autodiff::DType;
use sstep_executor::source::{Crop, SlideFile, SlideOptions, SlideSource, SourceError, TileSource};
use sstep_kernels::{Layout, Out};

use crate::common::{SLIDE, Scratch, map, open, pixels, read_all, rect, whole};
use crate::tiff::{Dir, Kind, build, sample};

#[test]
fn a_slide_truncated_anywhere_is_an_error() {
    let whole = std::fs::read(SLIDE).unwrap();
    let n = whole.len();
    let mut lengths: Vec<usize> = (0..64).map(|k| k * n / 64).collect();
    lengths.extend([
        1, 2, 3, 4, 7, 8, 15, 16, 17, 1_275_949, 1_275_950, 1_275_952, 1_938_300,
    ]);
    for length in lengths {
        let file = Scratch::new("truncated.svs", &whole[..length]);
        let error = open(&file.0)
            .err()
            .unwrap_or_else(|| panic!("{length} of {n} bytes open"));
        assert!(error.to_string().contains("truncated.svs"), "{error}");
    }
}

#[test]
fn a_missing_end_of_the_tiles_is_found_at_once_and_named() {
    // The directory first, then tiles: what a broken copy of such a file lacks.
    let mut dir = Dir::rgb(32, 32, 16);
    dir.tiles = vec![vec![9; 768]; 4];
    let bytes = build(&[dir], Kind::Classic, true);
    let file = Scratch::new("tail.tif", &bytes[..bytes.len() - 1]);
    let error = open(&file.0).err().unwrap();
    let SourceError::Truncated {
        level: 0,
        tile: 3,
        bytes: 768,
        offset,
        file_bytes,
        ..
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!(offset + 768, file_bytes + 1);
    // A window that does not need the tile can be read.
    let crop = Some(Crop {
        x: 0,
        y: 0,
        w: 32,
        h: 16,
    });
    let options = SlideOptions {
        crop,
        ..SlideOptions::default()
    };
    let source = SlideSource::open(&file.0, options).unwrap();
    assert_eq!(
        pixels(&source, &rect(0, 0, 32, 16)).unwrap(),
        vec![9; 3 * 32 * 16]
    );
}

#[test]
fn flipped_bytes_never_panic() {
    let slide = std::fs::read(SLIDE).unwrap();
    let mut state = 1u64;
    let mut draw = |n: usize| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % n
    };
    // Directories are where a byte can do harm; tiles only decode wrongly.
    for round in 0..150 {
        let mut bytes = slide.clone();
        let at = match round % 3 {
            0 => 1_275_950 + draw(220),
            1 => 1_275_950 + draw(2200),
            _ => draw(bytes.len()),
        };
        bytes[at] ^= 1 << draw(8);
        let file = Scratch::new("flipped.svs", &bytes);
        let _ = SlideFile::open(&file.0);
        if let Ok(source) = open(&file.0) {
            let x = draw(source.crop().w);
            let y = draw(source.crop().h);
            let region = rect(
                x,
                y,
                200.min(source.crop().w - x),
                200.min(source.crop().h - y),
            );
            let _ = pixels(&source, &region);
        }
    }
    for compression in [1, 5, 7, 8] {
        let clean = sample(compression);
        for _ in 0..400 {
            let mut bytes = clean.clone();
            for _ in 0..1 + draw(3) {
                let at = draw(bytes.len());
                bytes[at] = draw(256) as u8;
            }
            let file = Scratch::new("flipped.tif", &bytes);
            let _ = read_all(&file.0);
        }
        for length in (0..clean.len()).step_by(11) {
            let file = Scratch::new("cut.tif", &clean[..length]);
            assert!(
                read_all(&file.0).is_err(),
                "{length} bytes of compression {compression}"
            );
        }
    }
}

#[test]
fn a_file_that_changes_under_us_is_told() {
    let file = Scratch::new("changing.tif", &sample(1));
    let options = SlideOptions {
        cache_bytes: 0,
        ..SlideOptions::default()
    };
    let source = SlideSource::open(&file.0, options).unwrap();
    assert!(pixels(&source, &whole(&source)).is_ok());
    let mut longer = sample(1);
    longer.push(0);
    std::fs::write(&file.0, longer).unwrap();
    let error = pixels(&source, &whole(&source)).unwrap_err();
    assert!(matches!(error, SourceError::Changed { .. }), "{error}");
}

#[test]
fn what_is_not_supported_is_named() {
    let with = |change: &dyn Fn(&mut Dir)| {
        let mut dir = Dir::rgb(16, 16, 16);
        change(&mut dir);
        let file = Scratch::new("unsupported.tif", &build(&[dir], Kind::Classic, false));
        assert!(
            SlideFile::open(&file.0).is_ok(),
            "it can be described all the same"
        );
        open(&file.0).err().unwrap().to_string()
    };
    let check = |error: String, words: &[&str]| {
        assert!(words.iter().all(|word| error.contains(word)), "{error}");
    };
    check(
        with(&|d| d.compression = 33005),
        &["JPEG 2000 (33005)", "LZW, deflate and JPEG"],
    );
    check(with(&|d| d.compression = 50000), &["Zstandard (50000)"]);
    check(
        with(&|d| d.compression = 12345),
        &["unknown compression (12345)"],
    );
    check(with(&|d| d.bits = 16), &["16", "8-bit"]);
    check(
        with(&|d| d.photometric = 3),
        &["photometric interpretation 3", "supported"],
    );
    let planes = with(&|d| {
        d.planar = 2;
        d.tiles = vec![vec![0; 256]; 3];
    });
    check(planes, &["one plane per channel", "interleaved"]);
}

#[test]
fn wrong_files_and_wishes_are_told_apart() {
    let error = |path: &Path| open(path).err().unwrap();
    assert!(matches!(
        error(Path::new("/no/such.svs")),
        SourceError::NotFound { .. }
    ));
    assert!(matches!(
        error(&std::env::temp_dir()),
        SourceError::Open { .. }
    ));
    let text = Scratch::new("text.svs", b"hello, world");
    let told = error(&text.0).to_string();
    assert!(
        told.contains("68 65 6c 6c") && told.contains("not a TIFF"),
        "{told}"
    );
    let empty = Scratch::new("empty.svs", b"");
    assert!(matches!(error(&empty.0), SourceError::NotTiff { .. }));
    let mut strips = Dir::rgb(16, 16, 16);
    strips.tiled = false;
    let strips = Scratch::new("strips.tif", &build(&[strips], Kind::Classic, false));
    assert!(matches!(
        error(&strips.0),
        SourceError::NotTiled { n_images: 1, .. }
    ));

    let with = |options: SlideOptions| SlideSource::open(SLIDE, options).err().unwrap();
    let level = with(SlideOptions {
        level: 1,
        ..SlideOptions::default()
    });
    assert!(matches!(
        level,
        SourceError::BadLevel {
            level: 1,
            n_levels: 1,
            ..
        }
    ));
    for (x, y, w, h) in [
        (0, 0, 2221, 1),
        (2220, 0, 1, 1),
        (0, 0, 0, 5),
        (9, 9, usize::MAX, 9),
    ] {
        let crop = Some(Crop { x, y, w, h });
        let error = with(SlideOptions {
            crop,
            ..SlideOptions::default()
        });
        assert!(matches!(error, SourceError::BadCrop { level_w: 2220, .. }));
    }
    for std in [0.0, -1.0, f64::NAN] {
        let error = with(SlideOptions {
            std: [1.0, std, 1.0],
            ..SlideOptions::default()
        });
        assert!(matches!(
            error,
            SourceError::BadNormalisation { channel: 1, .. }
        ));
    }
    let source = open(SLIDE).unwrap();
    let outside = pixels(&source, &rect(2219, 0, 2, 1)).unwrap_err();
    assert!(outside.to_string().contains("2219..2221"), "{outside}");
    let ty = map(source.shape(), DType::F32);
    let layout = Layout::window(&ty, &[1, 4, 4], &rect(0, 0, 4, 4));
    let mut data = vec![0f32; layout.len];
    let mut dst = Out::new(layout, &mut data);
    let error = source.read(&rect(1, 1, 4, 4), &mut dst).unwrap_err();
    assert!(matches!(error, SourceError::Destination { .. }));
}
