//! Images with labels, opened one at a time.
//!
//! A [`Dataset`] names its samples and opens one when its turn comes, so a
//! thousand slides cost no more memory than one. The order is a permutation
//! that depends on seed and epoch only: a run that was interrupted goes on with
//! the very sample that was next.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rand::SeedableRng;
use rand::seq::SliceRandom;
use rand_chacha::ChaCha8Rng;
use sstep_executor::Feed;
use sstep_executor::source::{Crop, SlideFile, SlideOptions, SlideSource, TileSource};
use sstep_kernels::Real;

use crate::error::Error;

/// An image and what is to be learnt of it.
pub struct Sample<T> {
    /// What it is called in reports.
    pub name: String,
    /// The image.
    pub image: Arc<dyn TileSource<T>>,
    /// The label: of a classifier one class index per image.
    pub label: Feed<T>,
}

/// Labelled images.
pub trait Dataset<T> {
    /// How many there are.
    fn len(&self) -> usize;

    /// Whether there are none.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Opens one of them.
    ///
    /// # Errors
    /// Whatever keeps it from being read.
    fn open(&self, index: usize) -> Result<Sample<T>, Error>;
}

impl<T> Dataset<T> for Vec<Sample<T>>
where
    T: Real,
{
    fn len(&self) -> usize {
        self.as_slice().len()
    }

    fn open(&self, index: usize) -> Result<Sample<T>, Error> {
        let Sample { name, image, label } = &self[index];
        Ok(Sample {
            name: name.clone(),
            image: Arc::clone(image),
            label: label.clone(),
        })
    }
}

/// Which sample step `step` takes, of `n`: every epoch is its own permutation.
pub fn sample_of(step: u64, n: usize, seed: u64) -> usize {
    let n_all = n.max(1) as u64;
    let (epoch, at) = (step / n_all, (step % n_all) as usize);
    let mut order: Vec<usize> = (0..n.max(1)).collect();
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&epoch.to_le_bytes());
    key[16..].copy_from_slice(b"order of samples");
    order.shuffle(&mut ChaCha8Rng::from_seed(key));
    order[at]
}

/// How slides become images.
#[derive(Clone, Debug, PartialEq)]
pub struct SlideView {
    /// Level of the pyramid.
    pub level: usize,
    /// Width and height of the part in the middle to take; all of it if `None`.
    pub size: Option<(usize, usize)>,
    /// Subtracted from red, green and blue in 0…1.
    pub mean: [f64; 3],
    /// What the difference is divided by.
    pub std: [f64; 3],
    /// Most bytes of decoded tiles to keep.
    pub cache_bytes: u64,
}

impl Default for SlideView {
    /// Level 0, whole, normalised by the statistics of ImageNet, which is what
    /// published weights expect.
    fn default() -> Self {
        SlideView {
            level: 0,
            size: None,
            mean: [0.485, 0.456, 0.406],
            std: [0.229, 0.224, 0.225],
            cache_bytes: 64 << 20,
        }
    }
}

impl SlideView {
    /// Opens a slide so.
    ///
    /// # Errors
    /// [`Error::Source`] if it cannot be read, or is smaller than the part.
    pub fn open(&self, path: &Path) -> Result<SlideSource, Error> {
        let file = SlideFile::open(path)?;
        let level = file.info().levels.get(self.level);
        let crop = self.size.zip(level).map(|((w, h), level)| Crop {
            x: level.size.0.saturating_sub(w) / 2,
            y: level.size.1.saturating_sub(h) / 2,
            w,
            h,
        });
        let options = SlideOptions {
            level: self.level,
            crop,
            mean: self.mean,
            std: self.std,
            cache_bytes: self.cache_bytes,
            ..SlideOptions::default()
        };
        Ok(SlideSource::from_file(file, options)?)
    }
}

/// Slide files with class labels.
#[derive(Clone, Debug)]
pub struct Slides {
    entries: Vec<(PathBuf, usize)>,
    view: SlideView,
}

impl Slides {
    /// Slides and their classes.
    ///
    /// # Errors
    /// [`Error::Usage`] if there are none or a label is no class.
    pub fn new(
        entries: Vec<(PathBuf, usize)>,
        classes: usize,
        view: SlideView,
    ) -> Result<Self, Error> {
        if entries.is_empty() {
            return Err(Error::usage("there is no slide to train on"));
        }
        if let Some((path, label)) = entries.iter().find(|(_, label)| *label >= classes) {
            return Err(Error::usage(format!(
                "{} has label {label}, but with {classes} classes labels go from 0 to {}",
                path.display(),
                classes - 1
            )));
        }
        Ok(Slides { entries, view })
    }

    /// The slides that `labels.csv` in a folder lists: a header line
    /// `file,label`, then one slide per line, relative to the folder.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`] if the list cannot be read; otherwise as
    /// [`Slides::new`].
    pub fn folder(dir: &Path, classes: usize, view: SlideView) -> Result<Self, Error> {
        let path = dir.join("labels.csv");
        let file = std::fs::File::open(&path).map_err(|e| Error::io(&path, "reading", &e))?;
        let mut reader = csv::ReaderBuilder::new()
            .trim(csv::Trim::All)
            .from_reader(file);
        let bad = |e: csv::Error| Error::file(&path, e);
        let header: Vec<String> = reader
            .headers()
            .map_err(bad)?
            .iter()
            .map(str::to_owned)
            .collect();
        if header != ["file", "label"] {
            let found = header.join(",");
            return Err(Error::file(
                &path,
                format!("the first line must be `file,label`, not `{found}`"),
            ));
        }
        let mut entries = Vec::new();
        for record in reader.deserialize::<(PathBuf, usize)>() {
            let (file, label) = record.map_err(bad)?;
            entries.push((dir.join(file), label));
        }
        Self::new(entries, classes, view).map_err(|e| Error::file(&path, e))
    }

    /// The slides and their classes.
    pub fn entries(&self) -> &[(PathBuf, usize)] {
        &self.entries
    }
}

impl<T: Real> Dataset<T> for Slides {
    fn len(&self) -> usize {
        self.entries.len()
    }

    fn open(&self, index: usize) -> Result<Sample<T>, Error> {
        let (path, label) = &self.entries[index];
        let name = path
            .file_name()
            .unwrap_or(path.as_os_str())
            .to_string_lossy()
            .into_owned();
        let image = Arc::new(self.view.open(path)?);
        Ok(Sample {
            name,
            image,
            label: Feed::Flat(vec![T::from_f64(*label as f64)]),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_epoch_sees_every_sample() {
        let epoch = |e: u64| (0..7).map(move |i| sample_of(e * 7 + i, 7, 3));
        for e in 0..5 {
            let mut seen: Vec<usize> = epoch(e).collect();
            seen.sort_unstable();
            assert_eq!(seen, (0..7).collect::<Vec<_>>());
        }
        assert_ne!(epoch(0).collect::<Vec<_>>(), epoch(1).collect::<Vec<_>>());
    }
}
