//! Image sources against a real slide, against files built here byte by byte,
//! and against files that are broken in every way that comes to mind.

#![allow(
    clippy::unwrap_used,
    reason = "a test that cannot open its file has failed"
)]

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use sstep_autodiff::{DType, Form, Region, Shape, Span, Ty};
use sstep_executor::source::{
    ArraySource, Compression, Crop, SlideFile, SlideOptions, SlideSource, SourceError, TileSource,
};
use sstep_kernels::{Layout, Out, Real};

const SLIDE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../examples/data/CMU-1-Small-Region.svs"
);

/// A file in the temporary directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = std::env::temp_dir().join(format!("sstep-{}-{name}", std::process::id()));
        std::fs::write(&path, bytes).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

fn map(shape: Shape, dtype: DType) -> Ty {
    Ty {
        dtype,
        shape,
        form: Form::Map,
    }
}

/// Reads a region into a buffer that holds just that region: `[N, C, …]`.
fn read<T: Real>(source: &dyn TileSource<T>, region: &Region) -> Result<Vec<T>, SourceError> {
    let ty = map(source.shape(), T::DTYPE);
    let capacity: Vec<usize> = region.spans().iter().map(|s| s.len()).collect();
    let layout = Layout::window(&ty, &capacity, region);
    let mut data = vec![T::ZERO; layout.len];
    source.read(region, &mut Out::new(layout, &mut data))?;
    Ok(data)
}

fn rect(x: usize, y: usize, w: usize, h: usize) -> Region {
    Region::new(&[Span::new(0, 1), Span::new(y, y + h), Span::new(x, x + w)])
}

/// The bytes of a region of a slide read with default options: planar RGB.
fn pixels(source: &SlideSource, region: &Region) -> Result<Vec<u8>, SourceError> {
    Ok(read::<f32>(source, region)?
        .iter()
        .map(|v| (v * 255.0).round() as u8)
        .collect())
}

fn open(path: impl AsRef<Path>) -> Result<SlideSource, SourceError> {
    SlideSource::open(path, SlideOptions::default())
}

fn whole(source: &SlideSource) -> Region {
    Region::whole(&map(source.shape(), DType::F32))
}

/// Everything that can be read of a file, to see that errors are answers.
fn read_all(path: &Path) -> Result<Vec<u8>, SourceError> {
    let file = SlideFile::open(path)?;
    let n_levels = file.info().levels.len();
    let mut all = Vec::new();
    for level in 0..n_levels {
        let options = SlideOptions {
            level,
            ..SlideOptions::default()
        };
        let source = SlideSource::open(path, options)?;
        if source.shape().elems() < 1 << 26 {
            all.append(&mut pixels(&source, &whole(&source))?);
        }
    }
    Ok(all)
}

// ---------------------------------------------------------------- real slide

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

// ------------------------------------------------------------- broken slides

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

// ------------------------------------------------------------- built slides

/// One image of a file built here.
#[derive(Clone)]
struct Dir {
    size: (u32, u32),
    tile: u32,
    compression: u16,
    photometric: u16,
    predictor: u16,
    samples: u16,
    bits: u16,
    planar: u16,
    tiled: bool,
    tiles: Vec<Vec<u8>>,
    tables: Vec<u8>,
    subs: Vec<Dir>,
}

impl Dir {
    /// Uncompressed RGB whose samples are counted from tile to tile.
    fn rgb(w: u32, h: u32, tile: u32) -> Self {
        let n = w.div_ceil(tile) * h.div_ceil(tile);
        let bytes = tile * tile * 3;
        let tiles = (0..n)
            .map(|t| (0..bytes).map(|i| (i + 31 * t) as u8).collect())
            .collect();
        Dir {
            size: (w, h),
            tile,
            compression: 1,
            photometric: 2,
            predictor: 1,
            samples: 3,
            bits: 8,
            planar: 1,
            tiled: true,
            tiles,
            tables: vec![],
            subs: vec![],
        }
    }
}

/// Byte order and width of offsets.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Classic,
    BigEndian,
    BigTiff,
}

struct Builder {
    form: Kind,
    out: Vec<u8>,
}

impl Builder {
    fn number(&self, value: u64, bytes: usize) -> Vec<u8> {
        let mut le = value.to_le_bytes()[..bytes].to_vec();
        if self.form == Kind::BigEndian {
            le.reverse();
        }
        le
    }

    fn wide(&self) -> usize {
        if self.form == Kind::BigTiff { 8 } else { 4 }
    }

    /// Writes tiles and directory; gives the directory's offset and where its
    /// link to the next lies.
    fn dir(&mut self, dir: &Dir, tiles_last: bool) -> (u64, usize) {
        let subs: Vec<u64> = dir.subs.iter().map(|sub| self.dir(sub, false).0).collect();
        let lengths: Vec<u64> = dir.tiles.iter().map(|t| t.len() as u64).collect();
        let mut offsets: Vec<u64> = Vec::new();
        // Tiles after the directory lie at a round distance.
        let mut at = if tiles_last {
            4096
        } else {
            self.out.len() as u64
        };
        for length in &lengths {
            offsets.push(at);
            at += length;
        }
        if !tiles_last {
            self.out.extend(dir.tiles.concat());
        }
        let one = |v: u32| vec![u64::from(v)];
        let mut tags: Vec<(u16, u16, Vec<u64>)> = vec![
            (256, 4, one(dir.size.0)),
            (257, 4, one(dir.size.1)),
            (258, 3, vec![u64::from(dir.bits); usize::from(dir.samples)]),
            (259, 3, one(dir.compression.into())),
            (262, 3, one(dir.photometric.into())),
        ];
        if !dir.tiled {
            tags.push((273, 4, offsets.clone()));
        }
        tags.push((277, 3, one(dir.samples.into())));
        if !dir.tiled {
            tags.push((278, 4, one(dir.size.1)));
            tags.push((279, 4, lengths.clone()));
        }
        tags.push((284, 3, one(dir.planar.into())));
        tags.push((317, 3, one(dir.predictor.into())));
        if dir.tiled {
            tags.push((322, 4, one(dir.tile)));
            tags.push((323, 4, one(dir.tile)));
            tags.push((
                324,
                if self.form == Kind::BigTiff { 16 } else { 4 },
                offsets,
            ));
            tags.push((325, 4, lengths));
        }
        if !subs.is_empty() {
            tags.push((330, 4, subs));
        }
        if !dir.tables.is_empty() {
            tags.push((347, 7, dir.tables.iter().map(|&b| u64::from(b)).collect()));
        }
        let wide = self.wide();
        let mut entries = Vec::new();
        for (tag, kind, values) in &tags {
            let width = match kind {
                3 => 2,
                7 => 1,
                16 => 8,
                _ => 4,
            };
            let mut bytes: Vec<u8> = values.iter().flat_map(|&v| self.number(v, width)).collect();
            if bytes.len() > wide {
                let at = self.out.len() as u64;
                self.out.extend(bytes);
                bytes = self.number(at, wide);
            }
            bytes.resize(wide, 0);
            entries.extend(self.number(u64::from(*tag), 2));
            entries.extend(self.number(u64::from(*kind), 2));
            entries.extend(self.number(values.len() as u64, wide));
            entries.extend(bytes);
        }
        let here = self.out.len() as u64;
        let count = self.number(tags.len() as u64, if wide == 8 { 8 } else { 2 });
        self.out.extend(count);
        self.out.extend(entries);
        let link = self.out.len();
        self.out.extend(vec![0; wide]);
        if tiles_last {
            self.out.resize(4096, 0);
            self.out.extend(dir.tiles.concat());
        }
        (here, link)
    }
}

/// A whole file. With `tiles_last` (one directory only), tiles end the file.
fn build(dirs: &[Dir], form: Kind, tiles_last: bool) -> Vec<u8> {
    let header: &[u8] = match form {
        Kind::Classic => b"II*\0",
        Kind::BigEndian => b"MM\0*",
        Kind::BigTiff => b"II+\0\x08\0\0\0",
    };
    let mut builder = Builder {
        form,
        out: header.to_vec(),
    };
    let wide = builder.wide();
    let mut link = builder.out.len();
    builder.out.extend(vec![0; wide]);
    for dir in dirs {
        let (here, next) = builder.dir(dir, tiles_last);
        let bytes = builder.number(here, wide);
        builder.out[link..link + wide].copy_from_slice(&bytes);
        link = next;
    }
    builder.out
}

/// A small file of that compression: 40 × 24 in tiles of 16, and for JPEG one
/// tile of the real slide.
fn sample(compression: u16) -> Vec<u8> {
    let mut dir = Dir::rgb(40, 24, 16);
    dir.compression = compression;
    match compression {
        5 => {
            for tile in &mut dir.tiles {
                *tile = weezl::encode::Encoder::with_tiff_size_switch(weezl::BitOrder::Msb, 8)
                    .encode(tile)
                    .unwrap();
            }
        }
        7 => {
            // The slide's first tile and its tables (their places in the file
            // are those of the slide's tags 324, 325 and 347).
            let slide = std::fs::read(SLIDE).unwrap();
            let start = slide
                .windows(4)
                .rposition(|w| w == [0xff, 0xd8, 0xff, 0xdb])
                .unwrap();
            let tables_at = slide[1_275_950..]
                .windows(4)
                .position(|w| w == [0xff, 0xd8, 0xff, 0xdb])
                .map(|at| at + 1_275_950)
                .unwrap();
            assert!(tables_at <= start);
            dir = Dir::rgb(240, 240, 240);
            dir.compression = 7;
            dir.tiles = vec![slide[16..16 + 3684].to_vec()];
            dir.tables = slide[tables_at..tables_at + 289].to_vec();
        }
        8 | 32946 => {
            for tile in &mut dir.tiles {
                use std::io::Write;
                let level = flate2::Compression::default();
                let mut encoder = flate2::write::ZlibEncoder::new(Vec::new(), level);
                encoder.write_all(tile).unwrap();
                *tile = encoder.finish().unwrap();
            }
        }
        _ => {}
    }
    build(&[dir], Kind::Classic, false)
}

/// What `Dir::rgb` holds at a place, planar.
fn expected(dir: &Dir) -> Vec<u8> {
    let (w, h, t) = (dir.size.0, dir.size.1, dir.tile);
    let value = |c: u32, y: u32, x: u32| {
        let tile = (y / t) * w.div_ceil(t) + x / t;
        ((y % t * t + x % t) * 3 + c + 31 * tile) as u8
    };
    (0..3)
        .flat_map(|c| (0..h).flat_map(move |y| (0..w).map(move |x| value(c, y, x))))
        .collect()
}

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

// ------------------------------------------------------------------- arrays

#[test]
fn arrays_of_any_rank_are_read_by_region() {
    let shapes: [&[usize]; 3] = [&[9], &[5, 7], &[3, 4, 6]];
    for spatial in shapes {
        let shape = Shape::map(2, 3, spatial);
        let data: Vec<f64> = (0..shape.elems()).map(|i| i as f64).collect();
        let source = ArraySource::new(shape, data.clone()).unwrap();
        let ty = map(shape, DType::F64);
        assert_eq!(read::<f64>(&source, &Region::whole(&ty)).unwrap(), data);
        // The last element of each axis: one value per channel.
        let mut last = Region::whole(&ty);
        for axis in 0..last.n_axes() {
            let hi = last.span(axis).hi;
            last.set(axis, Span::new(hi - 1, hi));
        }
        let points: usize = spatial.iter().product();
        let wanted: Vec<f64> = (4..=6).map(|k| (k * points - 1) as f64).collect();
        assert_eq!(read::<f64>(&source, &last).unwrap(), wanted);
        last.set(1, Span::new(0, spatial[0] + 1));
        assert!(matches!(
            read::<f64>(&source, &last),
            Err(SourceError::Outside { .. })
        ));
    }
}

#[test]
fn an_array_needs_a_map_and_all_its_elements() {
    for (shape, n) in [(Shape::map(1, 2, &[3]), 5), (Shape::new(&[2, 3]), 6)] {
        let error = ArraySource::new(shape, vec![0f32; n]).unwrap_err();
        assert!(error.to_string().contains(&n.to_string()), "{error}");
    }
}
