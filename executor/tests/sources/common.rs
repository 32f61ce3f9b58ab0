//! Reading sources, whole and by region.

use std::path::{Path, PathBuf};

use sstep_autodiff::{DType, Form, Region, Shape, Span, Ty};
use sstep_executor::source::{SlideFile, SlideOptions, SlideSource, SourceError, TileSource};
use sstep_kernels::{Layout, Out, Real};

/// A real slide.
pub const SLIDE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../examples/data/CMU-1-Small-Region.svs"
);

/// A file in the temporary directory that goes with the test.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new(name: &str, bytes: &[u8]) -> Self {
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

pub fn map(shape: Shape, dtype: DType) -> Ty {
    Ty {
        dtype,
        shape,
        form: Form::Map,
    }
}

/// Reads a region into a buffer that holds just that region: `[N, C, …]`.
pub fn read<T: Real>(source: &dyn TileSource<T>, region: &Region) -> Result<Vec<T>, SourceError> {
    let ty = map(source.shape(), T::DTYPE);
    let layout = Layout::dense(&ty, region);
    let mut data = vec![T::ZERO; layout.len];
    source.read(region, &mut Out::new(layout, &mut data))?;
    Ok(data)
}

pub fn rect(x: usize, y: usize, w: usize, h: usize) -> Region {
    Region::new(&[Span::new(0, 1), Span::new(y, y + h), Span::new(x, x + w)])
}

/// The bytes of a region of a slide read with default options: planar RGB.
pub fn pixels(source: &SlideSource, region: &Region) -> Result<Vec<u8>, SourceError> {
    Ok(read::<f32>(source, region)?
        .iter()
        .map(|v| (v * 255.0).round() as u8)
        .collect())
}

pub fn open(path: impl AsRef<Path>) -> Result<SlideSource, SourceError> {
    SlideSource::open(path, SlideOptions::default())
}

pub fn whole(source: &SlideSource) -> Region {
    Region::whole(&map(source.shape(), DType::F32))
}

/// Everything that can be read of a file, to see that errors are answers.
pub fn read_all(path: &Path) -> Result<Vec<u8>, SourceError> {
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
