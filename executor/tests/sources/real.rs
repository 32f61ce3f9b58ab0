//! A real slide: what it says, its pixels, reads side by side.

use proptest::prelude::*;
use sstep_autodiff::Shape;
use sstep_executor::source::{Compression, Crop, SlideFile, SlideOptions, SlideSource, TileSource};

use crate::common::{SLIDE, open, pixels, read, rect, whole};

#[test]
fn a_real_slide_says_what_it_is() {
    let file = SlideFile::open(SLIDE).unwrap();
    let info = file.info();
    assert_eq!(info.vendor.as_deref(), Some("aperio"));
    assert_eq!(
        (info.mpp, info.magnification),
        (Some((0.499, 0.499)), Some(20.0))
    );
    assert_eq!(
        (info.levels.len(), info.n_other_images, info.big_tiff),
        (1, 3, false)
    );
    let level = &info.levels[0];
    assert_eq!(
        (level.size, level.tile, level.n_tiles),
        ((2220, 2967), (240, 240), 130)
    );
    assert_eq!(
        (level.compression, level.bytes),
        (Compression::Jpeg, 1_275_934)
    );
}

#[test]
fn pixels_of_a_real_slide_are_those_libjpeg_decodes() {
    // Values by tifffile 2026.3.3 with imagecodecs; OpenSlide 4.0.1 gives the
    // same. Decoders may differ by one in the inverse transform's rounding.
    let known = [
        ((0, 0), [221, 182, 221]),
        ((1100, 1500), [130, 68, 116]),
        ((2219, 2966), [248, 248, 248]),
        ((1111, 900), [118, 97, 135]),
        ((1500, 1200), [65, 19, 68]),
        ((240, 239), [246, 246, 243]),
    ];
    let source = open(SLIDE).unwrap();
    for ((x, y), rgb) in known {
        let found = pixels(&source, &rect(x, y, 1, 1)).unwrap();
        assert!(
            found.iter().zip(rgb).all(|(&a, b)| a.abs_diff(b) <= 1),
            "{x}, {y}: {found:?}"
        );
    }
}

#[test]
fn a_crop_is_the_same_pixels_from_another_origin() {
    let full = open(SLIDE).unwrap();
    let crop = Crop {
        x: 333,
        y: 1777,
        w: 500,
        h: 301,
    };
    let options = SlideOptions {
        crop: Some(crop),
        ..SlideOptions::default()
    };
    let cropped = SlideSource::open(SLIDE, options).unwrap();
    assert_eq!(cropped.shape(), Shape::map(1, 3, &[301, 500]));
    assert_eq!(
        pixels(&cropped, &whole(&cropped)).unwrap(),
        pixels(&full, &rect(333, 1777, 500, 301)).unwrap()
    );
}

#[test]
fn values_are_normalised_per_channel_in_either_precision() {
    let (mean, std) = ([0.7, 0.5, 0.6], [0.2, 0.25, 0.1]);
    let options = SlideOptions {
        mean,
        std,
        ..SlideOptions::default()
    };
    let source = SlideSource::open(SLIDE, options).unwrap();
    let region = rect(1000, 1400, 37, 21);
    let raw = pixels(&open(SLIDE).unwrap(), &region).unwrap();
    let doubles = read::<f64>(&source, &region).unwrap();
    let floats = read::<f32>(&source, &region).unwrap();
    for (i, &byte) in raw.iter().enumerate() {
        let c = i / (37 * 21);
        let expected = (f64::from(byte) / 255.0 - mean[c]) / std[c];
        assert_eq!(doubles[i], expected);
        assert_eq!(floats[i], expected as f32);
    }
}

#[test]
fn concurrent_reads_with_read_ahead_equal_a_serial_one() {
    let serial = SlideOptions {
        cache_bytes: 0,
        readahead_threads: 0,
        ..SlideOptions::default()
    };
    let serial = SlideSource::open(SLIDE, serial).unwrap();
    let expected = pixels(&serial, &whole(&serial)).unwrap();
    let at = |c: usize, y: usize, x: usize| expected[(c * 2967 + y) * 2220 + x];
    // Room for eight tiles, so that threads keep evicting each other's.
    let limit = 8 * 240 * 240 * 3;
    let options = SlideOptions {
        cache_bytes: limit,
        ..SlideOptions::default()
    };
    let shared = SlideSource::open(SLIDE, options).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4usize {
            let (shared, at) = (&shared, &at);
            scope.spawn(move || {
                for step in 0..12 {
                    let k = thread * 977 + step * 389;
                    let region = rect(k * 7 % 1700, k * 5 % 2500, 500, 400);
                    let next = (k + 389) * 7 % 1700;
                    TileSource::<f32>::prefetch(shared, &rect(next, k * 5 % 2500, 500, 400));
                    let found = pixels(shared, &region).unwrap();
                    assert!(TileSource::<f32>::cache_bytes(shared) <= limit);
                    let (y0, x0) = (region.span(1).lo, region.span(2).lo);
                    for (i, &byte) in found.iter().enumerate() {
                        let (c, y, x) = (i / 200_000, i / 500 % 400, i % 500);
                        assert_eq!(byte, at(c, y0 + y, x0 + x));
                    }
                }
            });
        }
    });
}

#[test]
fn read_ahead_decodes_and_stops_with_its_source() {
    let source = open(SLIDE).unwrap();
    let held = || TileSource::<f32>::cache_bytes(&source);
    assert_eq!(held(), 0);
    TileSource::<f32>::prefetch(&source, &rect(0, 0, 480, 480));
    let since = std::time::Instant::now();
    while held() < 4 * 240 * 240 * 3 {
        assert!(
            since.elapsed().as_secs() < 60,
            "four tiles are not decoded in a minute"
        );
        std::thread::yield_now();
    }
    assert!(pixels(&source, &rect(0, 0, 480, 480)).is_ok());
    assert_eq!(held(), 4 * 240 * 240 * 3, "the read found them all");
    // Beyond the slide, and with much left to do: neither may hang the drop.
    TileSource::<f32>::prefetch(&source, &rect(2000, 2900, 5000, 5000));
    TileSource::<f32>::prefetch(&source, &whole(&source));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_region_is_a_part_of_a_larger_one(
        x in 0usize..2219, y in 0usize..2966, w in 1usize..600, h in 1usize..600,
        dx in 0usize..100, dy in 0usize..100,
    ) {
        let source = open(SLIDE).unwrap();
        let (w, h) = (w.min(2220 - x), h.min(2967 - y));
        let (x0, y0) = (x.saturating_sub(dx), y.saturating_sub(dy));
        let (bw, bh) = (x + w - x0, y + h - y0);
        let inner = pixels(&source, &rect(x, y, w, h)).unwrap();
        let outer = pixels(&source, &rect(x0, y0, bw, bh)).unwrap();
        for c in 0..3 {
            for row in 0..h {
                let a = (c * h + row) * w;
                let b = (c * bh + row + y - y0) * bw + x - x0;
                prop_assert_eq!(&inner[a..a + w], &outer[b..b + w]);
            }
        }
    }
}
