//! What is written is read back, and a label is where it should be.

use std::path::{Path, PathBuf};

use sstep_autodiff::{DType, Form, Region, Ty};
use sstep_executor::source::{SlideFile, SlideOptions, SlideSource, TileSource};
use sstep_kernels::{Layout, Out};

use super::encode::shrink;
use super::*;

const REAL: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/examples/data/CMU-1-Small-Region.svs"
);

/// A path in the temporary directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        Scratch(std::env::temp_dir().join(format!("sstep-{}-{name}", std::process::id())))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}

/// A level as interleaved RGB, with its width and height.
fn read(path: &Path, level: usize) -> (Vec<u8>, usize, usize) {
    let options = SlideOptions {
        level,
        ..SlideOptions::default()
    };
    let source = SlideSource::open(path, options).unwrap();
    let ty = Ty {
        dtype: DType::F32,
        shape: source.shape(),
        form: Form::Map,
    };
    let mut values = vec![0f32; ty.shape.elems()];
    let mut out = Out::new(Layout::whole(&ty), &mut values);
    source.read(&Region::whole(&ty), &mut out).unwrap();
    let n = values.len() / 3;
    let rgb = (0..3 * n)
        .map(|i| (values[i % 3 * n + i / 3] * 255.0).round() as u8)
        .collect();
    (rgb, source.crop().w, source.crop().h)
}

/// Smooth colours with a few sharp edges.
fn picture(w: usize, h: usize) -> Vec<u8> {
    (0..w * h)
        .flat_map(|i| {
            let (x, y) = (i % w, i / w);
            let edge = if (x / 50 + y / 40) % 2 == 0 { 0 } else { 40 };
            [
                (x * 200 / w + edge) as u8,
                (y * 200 / h + edge) as u8,
                ((x + y) % 256) as u8 / 2 + 60,
            ]
        })
        .collect()
}

fn write(path: &Path, spec: SlideSpec, rgb: &[u8], rows_at_once: usize) -> Written {
    let chunk = rows_at_once * spec.size.0 * 3;
    let mut writer = SlideWriter::create(path, spec).unwrap();
    rgb.chunks(chunk)
        .for_each(|rows| writer.push_rows(rows).unwrap());
    writer.finish().unwrap()
}

#[test]
fn lossless_slides_come_back_exactly_at_every_level() {
    let file = Scratch::new("lossless.tif");
    let sizes = [(300, 210), (64, 64), (65, 1), (1, 130), (257, 511)];
    for encoding in [Encoding::None, Encoding::Lzw, Encoding::Deflate] {
        for (size, step) in sizes.into_iter().zip([2, 4, 2, 16, 2]) {
            for big_tiff in [None, Some(true)] {
                let spec = SlideSpec {
                    tile: 64,
                    step,
                    encoding,
                    big_tiff,
                    ..SlideSpec::new(size.0, size.1)
                };
                let rgb = picture(size.0, size.1);
                let written = write(&file.0, spec, &rgb, 37);
                assert_eq!(written.big_tiff, big_tiff.is_some());
                assert_eq!(written.bytes, std::fs::metadata(&file.0).unwrap().len());
                let mut expected = (rgb, size.0, size.1);
                for (level, &stated) in written.levels.iter().enumerate() {
                    assert_eq!((expected.1, expected.2), stated);
                    assert!(
                        read(&file.0, level) == expected,
                        "{encoding:?} {size:?} {level}"
                    );
                    let (rgb, w, h) = expected;
                    expected = (shrink(&rgb, w, h, step), w.div_ceil(step), h.div_ceil(step));
                }
            }
        }
    }
}

#[test]
fn jpeg_comes_back_nearly() {
    let file = Scratch::new("jpeg.tif");
    // Whole levels that tiles of JPEG with shared tables make up.
    let (w, h) = (700, 530);
    let rgb = picture(w, h);
    let mut before = f64::INFINITY;
    for quality in [50, 85, 98] {
        let spec = SlideSpec {
            encoding: Encoding::Jpeg { quality },
            ..SlideSpec::new(w, h)
        };
        write(&file.0, spec, &rgb, h);
        let (found, ..) = read(&file.0, 0);
        let off: u64 = found
            .iter()
            .zip(&rgb)
            .map(|(a, b)| u64::from(a.abs_diff(*b)))
            .sum();
        let mean = off as f64 / rgb.len() as f64;
        assert!(
            mean < before && mean < 3.0,
            "quality {quality} is {mean} off on average"
        );
        before = mean;
    }
    // Chroma stays at half resolution however good the quality.
    assert!(before < 1.5, "{before}");
}

#[test]
fn a_slide_says_what_it_was_told_to() {
    let file = Scratch::new("told.tif");
    let description = Some("something|AppMag = 20".to_string());
    let spec = SlideSpec {
        description,
        mpp: Some(0.5),
        ..SlideSpec::new(600, 400)
    };
    let written = write(&file.0, spec, &picture(600, 400), 400);
    assert_eq!(written.levels, [(600, 400), (300, 200), (150, 100)]);
    let slide = SlideFile::open(&file.0).unwrap();
    let info = slide.info();
    assert_eq!(info.description.as_deref(), Some("something|AppMag = 20"));
    assert_eq!(
        (info.mpp, info.magnification),
        (Some((0.5, 0.5)), Some(20.0))
    );
    assert!(info.vendor.as_deref().unwrap().starts_with("sstep"));
    assert_eq!(
        info.levels.iter().map(|l| l.downsample).collect::<Vec<_>>(),
        [1.0, 2.0, 4.0]
    );
}

#[test]
fn how_rows_are_cut_changes_nothing() {
    let (one, other) = (Scratch::new("rows-a.tif"), Scratch::new("rows-b.tif"));
    let rgb = picture(500, 300);
    write(&one.0, SlideSpec::new(500, 300), &rgb, 1);
    write(&other.0, SlideSpec::new(500, 300), &rgb, 299);
    assert!(std::fs::read(&one.0).unwrap() == std::fs::read(&other.0).unwrap());
}

#[test]
fn nothing_is_left_of_an_unfinished_slide() {
    let file = Scratch::new("unfinished.tif");
    std::fs::write(&file.0, "precious").unwrap();
    let beside = file.0.with_file_name(format!(
        "{}.sstep.tmp",
        file.0.file_name().unwrap().to_str().unwrap()
    ));
    let mut writer = SlideWriter::create(&file.0, SlideSpec::new(100, 50)).unwrap();
    assert!(beside.exists());
    let odd = writer.push_rows(&[0; 299]).unwrap_err();
    assert!(odd.to_string().contains("299 bytes"), "{odd}");
    writer.push_rows(&[0; 300 * 49]).unwrap();
    let many = writer.push_rows(&[0; 600]).unwrap_err();
    assert!(
        many.to_string().contains("after 49 rows came 2 more"),
        "{many}"
    );
    let early = writer.finish().unwrap_err();
    assert!(
        matches!(early, SlideError::Rows { n_rows: 49, .. }),
        "{early}"
    );
    assert!(!beside.exists());
    assert_eq!(std::fs::read(&file.0).unwrap(), b"precious");
}

#[test]
fn specifications_that_cannot_be_met_are_refused() {
    let out = Scratch::new("refused.tif");
    let good = SlideSpec::new(100, 100);
    for spec in [
        SlideSpec {
            size: (0, 5),
            ..good.clone()
        },
        SlideSpec {
            size: (5, 1 << 31),
            ..good.clone()
        },
        SlideSpec {
            tile: 100,
            ..good.clone()
        },
        SlideSpec {
            tile: 0,
            ..good.clone()
        },
        SlideSpec {
            step: 3,
            ..good.clone()
        },
        SlideSpec {
            encoding: Encoding::Jpeg { quality: 0 },
            ..good.clone()
        },
        SlideSpec {
            description: Some("µm".to_string()),
            ..good.clone()
        },
        SlideSpec {
            mpp: Some(0.0),
            ..good.clone()
        },
    ] {
        let error = SlideWriter::create(&out.0, spec).err().unwrap();
        assert!(matches!(error, SlideError::Spec { .. }), "{error}");
    }
    let nowhere = Path::new("/no/such/folder/slide.tif");
    assert!(matches!(
        SlideWriter::create(nowhere, good),
        Err(SlideError::Io { .. })
    ));

    let good = ComposeSpec::new(1024, true, 1);
    let pattern = |ring_radius, n_clusters| PatternSpec {
        ring_radius,
        n_clusters,
        ..PatternSpec::default()
    };
    for spec in [
        ComposeSpec {
            size: 100,
            ..good.clone()
        },
        ComposeSpec {
            coverage: 1.5,
            ..good.clone()
        },
        ComposeSpec {
            pattern: pattern(5000.0, 3),
            ..good.clone()
        },
        ComposeSpec {
            pattern: pattern(f64::NAN, 3),
            ..good.clone()
        },
        ComposeSpec {
            pattern: pattern(80.0, 0),
            ..good.clone()
        },
    ] {
        let error = compose(Path::new(REAL), &out.0, &spec, |_, _| {}).unwrap_err();
        assert!(matches!(error, SlideError::Spec { .. }), "{error}");
    }
    let missing = compose(Path::new("/no/real.svs"), &out.0, &good, |_, _| {}).unwrap_err();
    assert!(matches!(missing, SlideError::Source(_)), "{missing}");
    assert!(!out.0.exists());
}

/// A small composition, lossless so that pixels can be compared.
fn composition(label: bool, control: Control, path: &Path) -> Composition {
    let pattern = PatternSpec {
        control,
        n_clusters: 4,
        ..PatternSpec::default()
    };
    let spec = ComposeSpec {
        encoding: Encoding::Deflate,
        pattern,
        ..ComposeSpec::new(1500, label, 42)
    };
    let mut last = 0;
    let composed = compose(Path::new(REAL), path, &spec, |done, total| {
        assert!(done > last && total == 1500);
        last = done;
    });
    assert_eq!(last, 1500);
    composed.unwrap()
}

#[test]
fn a_composition_repeats_bit_for_bit() {
    let (one, other) = (Scratch::new("seed-a.tif"), Scratch::new("seed-b.tif"));
    assert_eq!(
        composition(true, Control::Scattered, &one.0),
        composition(true, Control::Scattered, &other.0)
    );
    assert!(std::fs::read(&one.0).unwrap() == std::fs::read(&other.0).unwrap());
}

#[test]
fn labels_differ_in_the_arrangement_of_the_same_discs_and_nowhere_else() {
    let (zero, one, none) = (
        Scratch::new("zero.tif"),
        Scratch::new("one.tif"),
        Scratch::new("none.tif"),
    );
    let composed = composition(false, Control::Scattered, &zero.0);
    assert_eq!(
        composed.clusters,
        composition(true, Control::Scattered, &one.0).clusters
    );
    assert_eq!(
        composed.clusters,
        composition(false, Control::Absent, &none.0).clusters
    );
    assert_eq!(composed.clusters.len(), 4);

    let reach = 80.0 * 1.04 + 11.0 * 1.5 + 2.0;
    let (zero, one, none) = (read(&zero.0, 0).0, read(&one.0, 0).0, read(&none.0, 0).0);
    let (mut discs_0, mut discs_1) = (0i64, 0i64);
    for i in 0..1500 * 1500 {
        let (x, y) = ((i % 1500) as f64, (i / 1500) as f64);
        let near = composed
            .clusters
            .iter()
            .any(|c| (c.0 - x).hypot(c.1 - y) <= reach);
        let [a, b, n] = [&zero, &one, &none].map(|rgb| &rgb[3 * i..3 * i + 3]);
        assert!(
            near || (a == b && b == n),
            "({x}, {y}) is far from every cluster"
        );
        discs_0 += i64::from(a != n);
        discs_1 += i64::from(b != n);
    }
    // 4 clusters of 14 discs of π · 11² pixels, but for grid and overlap.
    assert!((19_000..26_000).contains(&discs_1), "{discs_1}");
    assert!(
        (discs_0 - discs_1).abs() < discs_1 / 20,
        "{discs_0} against {discs_1}"
    );
}

#[test]
fn a_composition_is_about_as_much_tissue_as_asked_for() {
    let file = Scratch::new("coverage.tif");
    for coverage in [0.3, 0.7] {
        let spec = ComposeSpec {
            coverage,
            pattern: PatternSpec {
                control: Control::Absent,
                ..PatternSpec::default()
            },
            ..ComposeSpec::new(2048, false, 5)
        };
        compose(Path::new(REAL), &file.0, &spec, |_, _| {}).unwrap();
        let (rgb, w, h) = read(&file.0, 3);
        let tissue = rgb.chunks(3).filter(|p| p.iter().any(|&v| v < 215)).count();
        let share = tissue as f64 / (w * h) as f64;
        assert!(
            (share - coverage).abs() < 0.12,
            "{share} instead of {coverage}"
        );
    }
}
