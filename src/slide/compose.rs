//! Slides of any size with a known label, from the tissue of a small real one.
//!
//! Training end to end on whole slides needs slides whose label is known to lie
//! in the pixels. A composed one has the texture, colours, borders and file
//! format of a real slide, and one planted pattern that decides its label.

use std::path::Path;

use serde::Serialize;
use sstep_autodiff::{DType, Form, Region, Span, Ty};
use sstep_executor::source::{Crop, SlideFile, SlideOptions, SlideSource, TileSource};
use sstep_kernels::{Layout, Out};

use super::SlideError;
use super::pattern::{self, PatternSpec};
use super::tissue::{Real, Tissue};
use super::writer::{Encoding, SlideSpec, SlideWriter};

/// Most pixels along one side that are taken from the real slide.
const MAX_REAL_SIDE: usize = 4096;

/// What to compose.
#[derive(Clone, Debug, PartialEq)]
pub struct ComposeSpec {
    /// Width and height of the slide in pixels; at least 512.
    pub size: usize,
    /// Whether its clusters are rings.
    pub label: bool,
    /// Decides all the rest: one seed is one slide per label.
    pub seed: u64,
    /// What is planted.
    pub pattern: PatternSpec,
    /// Part of the slide that is tissue, from 0.05 to 0.95.
    pub coverage: f64,
    /// How tiles are compressed.
    pub encoding: Encoding,
    /// Side of a tile in pixels.
    pub tile: usize,
}

impl ComposeSpec {
    /// A slide half covered, with the default pattern, as JPEG of quality 85.
    pub fn new(size: usize, label: bool, seed: u64) -> Self {
        ComposeSpec {
            size,
            label,
            seed,
            pattern: PatternSpec::default(),
            coverage: 0.5,
            encoding: Encoding::Jpeg { quality: 85 },
            tile: 256,
        }
    }

    fn check(&self) -> Result<(), SlideError> {
        let no = |reason: String| Err(SlideError::Spec { reason });
        if self.size < 512 {
            return no(format!(
                "{} pixels a side; a composition has at least 512",
                self.size
            ));
        }
        if !(0.05..=0.95).contains(&self.coverage) {
            return no(format!(
                "coverage {}; it goes from 0.05 to 0.95",
                self.coverage
            ));
        }
        let PatternSpec {
            n_clusters,
            n_discs,
            ring_radius,
            disc_radius,
            control: _,
        } = self.pattern;
        if n_clusters == 0 || n_discs == 0 || n_clusters > 10_000 || n_discs > 10_000 {
            return no(format!(
                "{n_clusters} clusters of {n_discs} discs; 1 to 10000 will do"
            ));
        }
        if !(disc_radius >= 1.0 && ring_radius >= disc_radius && ring_radius.is_finite()) {
            return no(format!(
                "rings of radius {ring_radius} of discs of radius {disc_radius}; \
                 the disc needs at least 1 pixel and the ring no less than the disc"
            ));
        }
        Ok(())
    }
}

/// What has been composed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Composition {
    /// Size of the file in bytes.
    pub bytes: u64,
    /// Width and height of every level, largest first.
    pub levels: Vec<(usize, usize)>,
    /// Centres of the planted clusters, in pixels of level 0.
    pub clusters: Vec<(f64, f64)>,
}

/// Composes a slide of `spec.size` pixels a side from the tissue of `real` and
/// writes it to `out`. The same specification gives the same bytes.
///
/// `progress` is called with the rows done and in all, once per row of tiles.
/// Takes about `14 · size · tile` bytes and the real slide's pixels.
///
/// # Errors
/// A specification that cannot be met (a slide too small for one cluster), a
/// real slide that cannot be read, a file that cannot be written.
pub fn compose(
    real: &Path,
    out: &Path,
    spec: &ComposeSpec,
    mut progress: impl FnMut(usize, usize),
) -> Result<Composition, SlideError> {
    spec.check()?;
    let size = spec.size;
    let (real, mpp) = load(real)?;
    let tissue = Tissue::new(real, size, spec.seed, spec.coverage);
    let clusters = pattern::place(&spec.pattern, &tissue, size, spec.seed);
    if clusters.is_empty() {
        let radius = spec.pattern.ring_radius;
        let reason =
            format!("no ring of radius {radius} fits the tissue of {size} × {size} pixels");
        return Err(SlideError::Spec { reason });
    }
    let discs = pattern::discs(&spec.pattern, &clusters, spec.label, spec.seed);

    let mut writer = SlideWriter::create(
        out,
        SlideSpec {
            tile: spec.tile,
            encoding: spec.encoding,
            description: Some(format!(
                "sstep composed slide|Seed = {}|Label = {}",
                spec.seed,
                u8::from(spec.label)
            )),
            mpp,
            ..SlideSpec::new(size, size)
        },
    )?;
    let band = spec.tile.next_multiple_of(Tissue::BAND);
    let mut rows = vec![0; band * size * 3];
    for y in (0..size).step_by(band) {
        let n_rows = band.min(size - y);
        let rows = &mut rows[..n_rows * size * 3];
        tissue.paint(y, rows);
        pattern::paint(&discs, y, size, rows);
        writer.push_rows(rows)?;
        progress(y + n_rows, size);
    }
    let written = writer.finish()?;
    Ok(Composition {
        bytes: written.bytes,
        levels: written.levels,
        clusters,
    })
}

/// The middle of a slide's level 0, and its micrometres per pixel.
fn load(path: &Path) -> Result<(Real, Option<f64>), SlideError> {
    let file = SlideFile::open(path)?;
    let mpp = file.info().mpp.map(|(x, _)| x);
    let (full_w, full_h) = file.info().levels[0].size;
    let (w, h) = (full_w.min(MAX_REAL_SIDE), full_h.min(MAX_REAL_SIDE));
    let crop = Crop {
        x: (full_w - w) / 2,
        y: (full_h - h) / 2,
        w,
        h,
    };
    let options = SlideOptions {
        crop: Some(crop),
        ..SlideOptions::default()
    };
    let source = SlideSource::from_file(file, options)?;

    // Strip by strip: the values come as numbers four times as large.
    let ty = Ty {
        dtype: DType::F32,
        shape: source.shape(),
        form: Form::Map,
    };
    let mut rgb = vec![0; w * h * 3];
    const STRIP: usize = 256;
    let mut values = vec![0f32; 3 * STRIP * w];
    for (y, rgb) in (0..h).step_by(STRIP).zip(rgb.chunks_mut(STRIP * w * 3)) {
        let rows = Span::new(y, (y + STRIP).min(h));
        let region = Region::new(&[Span::new(0, 1), rows, Span::full(w)]);
        let layout = Layout::window(&ty, &[1, STRIP, w], &region);
        TileSource::<f32>::read(&source, &region, &mut Out::new(layout, &mut values))?;
        for (i, pixel) in rgb.chunks_exact_mut(3).enumerate() {
            for (c, out) in pixel.iter_mut().enumerate() {
                *out = (values[c * STRIP * w + i] * 255.0).round() as u8;
            }
        }
    }
    Ok((
        Real {
            width: w,
            height: h,
            rgb,
        },
        mpp,
    ))
}
