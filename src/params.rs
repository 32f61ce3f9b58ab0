//! Tensors in safetensors files, by name.
//!
//! A file appears under its name only when it is complete: it is written beside
//! it, flushed to disk and renamed. Reading is strict, because a silently
//! skipped weight is the hardest of bugs to find: a shape that does not match is
//! an error, and so is a missing or unknown name unless the caller allows it.
//!
//! Stored element types are widened or rounded to the network's; integers are
//! read too, for labels.

use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sstep_autodiff::{MAX_RANK, Shape};
use sstep_executor::Tensor;
use sstep_kernels::Real;

use crate::error::Error;

/// An element type that files can hold.
pub trait Element: Real {
    /// Its name in a file.
    const STORED: Dtype;
    /// Appends the value, least significant byte first.
    fn put(self, out: &mut Vec<u8>);
}

impl Element for f32 {
    const STORED: Dtype = Dtype::F32;
    fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }
}

impl Element for f64 {
    const STORED: Dtype = Dtype::F64;
    fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.to_le_bytes());
    }
}

/// Tensors by name.
pub type Tensors<T> = BTreeMap<String, Tensor<T>>;

/// Writes tensors and text metadata to `path`, replacing what was there only
/// when everything is written.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written; nothing is left behind then.
pub fn save<'a, T: Element>(
    path: &Path,
    tensors: impl IntoIterator<Item = (String, &'a Tensor<T>)>,
    metadata: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let encoded: Vec<(String, Vec<usize>, Vec<u8>)> = tensors
        .into_iter()
        .map(|(name, tensor)| {
            let mut bytes = Vec::with_capacity(tensor.data.len() * size_of::<T>());
            tensor.data.iter().for_each(|v| v.put(&mut bytes));
            (name, tensor.shape.dims().to_vec(), bytes)
        })
        .collect();
    let refused = |error: safetensors::SafeTensorError| Error::file(path, error);
    let views = encoded
        .iter()
        .map(|(name, dims, bytes)| Ok((name, TensorView::new(T::STORED, dims.clone(), bytes)?)))
        .collect::<Result<Vec<_>, _>>()
        .map_err(refused)?;
    let metadata: HashMap<String, String> = metadata.clone().into_iter().collect();
    let bytes = safetensors::serialize(views, Some(metadata)).map_err(refused)?;
    write_whole(path, &bytes)
}

/// Writes a file beside `path`, flushes it to disk and renames it to `path`.
///
/// # Errors
/// [`Error::Io`]; nothing is left behind then.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let temporary = beside(path);
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .and_then(|()| std::fs::rename(&temporary, path));
    written.map_err(|error| {
        // Nobody to tell if even this fails; the write's own error matters.
        let _ = std::fs::remove_file(&temporary);
        Error::io(path, "writing", &error)
    })
}

/// Name of the temporary file for `path`.
fn beside(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".sstep.tmp");
    path.with_file_name(name)
}

/// Checks that `path` can be written, before hours of work for it.
///
/// # Errors
/// [`Error::Io`] if not, [`Error::File`] if it is a directory.
pub fn check_writable(path: &Path) -> Result<(), Error> {
    if path.is_dir() || path.file_name().is_none() {
        return Err(Error::file(path, "is a directory, not a file to write"));
    }
    let probe = beside(path);
    File::create(&probe)
        .and_then(|_| std::fs::remove_file(&probe))
        .map_err(|error| Error::io(path, "creating", &error))
}

/// A file of tensors, in memory.
#[derive(Clone, Debug)]
pub struct TensorFile {
    path: PathBuf,
    entries: BTreeMap<String, Entry>,
    metadata: BTreeMap<String, String>,
    bytes: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Entry {
    dtype: Dtype,
    dims: Vec<usize>,
    range: std::ops::Range<usize>,
}

impl TensorFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::File`] if it is no
    /// safetensors file.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(|e| Error::io(path, "reading", &e))?;
        let refused = |e: safetensors::SafeTensorError| {
            Error::file(path, format!("not a whole safetensors file: {e}"))
        };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(refused)?;
        let data_start = bytes.len() - header.data_len();
        let entries = header.tensors().into_iter().map(|(name, info)| {
            let (lo, hi) = info.data_offsets;
            let range = data_start + lo..data_start + hi;
            (
                name,
                Entry {
                    dtype: info.dtype,
                    dims: info.shape.clone(),
                    range,
                },
            )
        });
        let entries = entries.collect();
        let metadata = header
            .metadata()
            .clone()
            .unwrap_or_default()
            .into_iter()
            .collect();
        Ok(TensorFile {
            path: path.to_path_buf(),
            entries,
            metadata,
            bytes,
        })
    }

    /// Where it came from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Names of its tensors.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether it has a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// Text stored with the tensors.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.metadata
    }

    /// A tensor, which must have the given shape.
    ///
    /// # Errors
    /// [`Error::TensorNames`] if there is none, [`Error::TensorShape`] if it has
    /// another shape, [`Error::Tensor`] if its elements are no numbers.
    pub fn tensor<T: Element>(&self, name: &str, shape: Shape) -> Result<Tensor<T>, Error> {
        let Some(entry) = self.entries.get(name) else {
            return Err(Error::TensorNames {
                path: self.path.clone(),
                missing: vec![name.to_owned()],
                unknown: vec![],
            });
        };
        if entry.dims != shape.dims() {
            return Err(Error::TensorShape {
                path: self.path.clone(),
                name: name.to_owned(),
                expected: shape.dims().to_vec(),
                found: entry.dims.clone(),
            });
        }
        let data = elements(entry.dtype, &self.bytes[entry.range.clone()]).ok_or_else(|| {
            let found = entry.dtype;
            Error::Tensor {
                name: name.to_owned(),
                reason: format!(
                    "elements of type {found:?} cannot be read; F16, BF16, F32, F64, integers and \
                     BOOL can"
                ),
            }
        })?;
        Ok(Tensor::new(shape, data))
    }

    /// A tensor in the shape that the file gives it.
    ///
    /// # Errors
    /// As [`TensorFile::tensor`]; also above the most dimensions a tensor has.
    pub fn tensor_as_is<T: Element>(&self, name: &str) -> Result<Tensor<T>, Error> {
        let dims = self.entries.get(name).map_or(&[][..], |e| &e.dims);
        let shape = Shape::try_new(dims).ok_or_else(|| Error::Tensor {
            name: name.to_owned(),
            reason: format!("has {} dimensions; the most is {MAX_RANK}", dims.len()),
        })?;
        self.tensor(name, shape)
    }

    /// The tensors of these names and shapes. Names the file lacks and names
    /// that nobody asked for come back in [`Matched`].
    ///
    /// # Errors
    /// [`Error::TensorShape`] and [`Error::Tensor`], as [`TensorFile::tensor`].
    pub fn matching<T: Element>(
        &self,
        wanted: impl IntoIterator<Item = (String, Shape)>,
    ) -> Result<Matched<T>, Error> {
        let mut matched = Matched {
            tensors: BTreeMap::new(),
            missing: Vec::new(),
            unknown: Vec::new(),
        };
        for (name, shape) in wanted {
            if self.contains(&name) {
                let tensor = self.tensor(&name, shape)?;
                matched.tensors.insert(name, tensor);
            } else {
                matched.missing.push(name);
            }
        }
        // PyTorch counts batches in every batch norm; nothing here needs it.
        let counts = |name: &&str| !name.ends_with("num_batches_tracked");
        let unknown = self
            .names()
            .filter(counts)
            .filter(|n| !matched.tensors.contains_key(*n));
        matched.unknown = unknown.map(str::to_owned).collect();
        Ok(matched)
    }

    /// The tensors of exactly these names and shapes.
    ///
    /// # Errors
    /// [`Error::TensorNames`] with all names that are missing or unknown;
    /// otherwise as [`TensorFile::matching`].
    pub fn exactly<T: Element>(
        &self,
        wanted: impl IntoIterator<Item = (String, Shape)>,
    ) -> Result<Tensors<T>, Error> {
        let Matched {
            tensors,
            missing,
            unknown,
        } = self.matching(wanted)?;
        if missing.is_empty() && unknown.is_empty() {
            return Ok(tensors);
        }
        Err(Error::TensorNames {
            path: self.path.clone(),
            missing,
            unknown,
        })
    }
}

/// What a file has of what was wanted.
#[derive(Clone, Debug)]
pub struct Matched<T> {
    /// What it has.
    pub tensors: Tensors<T>,
    /// What it lacks.
    pub missing: Vec<String>,
    /// What it has besides.
    pub unknown: Vec<String>,
}

/// Decodes stored elements; `None` for a type that is no number here.
fn elements<T: Real>(dtype: Dtype, bytes: &[u8]) -> Option<Vec<T>> {
    fn decode<const N: usize, T: Real>(bytes: &[u8], f: impl Fn([u8; N]) -> f64) -> Vec<T> {
        let (chunks, _) = bytes.as_chunks::<N>();
        chunks.iter().map(|&chunk| T::from_f64(f(chunk))).collect()
    }
    Some(match dtype {
        Dtype::F64 => decode(bytes, f64::from_le_bytes),
        Dtype::F32 => decode(bytes, |b| f64::from(f32::from_le_bytes(b))),
        Dtype::F16 => decode(bytes, |b| half(u16::from_le_bytes(b))),
        Dtype::BF16 => decode(bytes, |b: [u8; 2]| {
            f64::from(f32::from_le_bytes([0, 0, b[0], b[1]]))
        }),
        Dtype::I64 => decode(bytes, |b| i64::from_le_bytes(b) as f64),
        Dtype::U64 => decode(bytes, |b| u64::from_le_bytes(b) as f64),
        Dtype::I32 => decode(bytes, |b| f64::from(i32::from_le_bytes(b))),
        Dtype::U32 => decode(bytes, |b| f64::from(u32::from_le_bytes(b))),
        Dtype::I16 => decode(bytes, |b| f64::from(i16::from_le_bytes(b))),
        Dtype::U16 => decode(bytes, |b| f64::from(u16::from_le_bytes(b))),
        Dtype::I8 => decode(bytes, |b| f64::from(i8::from_le_bytes(b))),
        Dtype::U8 | Dtype::BOOL => decode(bytes, |[b]| f64::from(b)),
        _ => return None,
    })
}

/// An IEEE half, widened.
fn half(bits: u16) -> f64 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from((bits >> 10) & 31), f64::from(bits & 1023));
    sign * match exponent {
        0 => fraction * 2f64.powi(-24),
        31 if fraction == 0.0 => f64::INFINITY,
        31 => f64::NAN,
        e => (1.0 + fraction / 1024.0) * 2f64.powi(e - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("sstep-params-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&dir).expect("a scratch directory");
        dir
    }

    #[test]
    fn written_and_read_back() {
        let dir = scratch("round");
        let path = dir.join("a.safetensors");
        let a = Tensor::new(Shape::new(&[2, 3]), vec![0.1f32, -1., 2., 3., 4., f32::MAX]);
        let b = Tensor::new(Shape::new(&[1]), vec![7f32]);
        let metadata = BTreeMap::from([("step".to_owned(), "3".to_owned())]);
        save(
            &path,
            [("a".to_owned(), &a), ("b".to_owned(), &b)],
            &metadata,
        )
        .expect("it is saved");
        let file = TensorFile::open(&path).expect("it is read");
        assert_eq!(file.metadata(), &metadata);
        let wanted = || [("a".to_owned(), a.shape), ("b".to_owned(), b.shape)];
        let read = file.exactly::<f32>(wanted()).expect("it has both");
        assert_eq!(
            read,
            BTreeMap::from([("a".to_owned(), a.clone()), ("b".to_owned(), b)])
        );
        let wide = file.tensor::<f64>("a", a.shape).expect("it widens");
        assert_eq!(wide.data[0], f64::from(0.1f32));
        // Nothing but the file itself.
        assert_eq!(std::fs::read_dir(&dir).expect("the directory").count(), 1);
        std::fs::remove_dir_all(dir).expect("the scratch directory goes");
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let dir = scratch("names");
        let path = dir.join("a.safetensors");
        let a = Tensor::new(Shape::new(&[2]), vec![1f32, 2.]);
        save(
            &path,
            [("a".to_owned(), &a), ("extra".to_owned(), &a)],
            &BTreeMap::new(),
        )
        .expect("it is saved");
        let file = TensorFile::open(&path).expect("it is read");
        let shape = file
            .tensor::<f32>("a", Shape::new(&[3]))
            .expect_err("another shape");
        assert!(
            shape
                .to_string()
                .ends_with("tensor `a` has shape [2], the network needs [3]")
        );
        let wanted = [("a".to_owned(), a.shape), ("b".to_owned(), a.shape)];
        let names = file
            .exactly::<f32>(wanted)
            .expect_err("another name")
            .to_string();
        assert!(
            names.ends_with("it lacks b; the network does not know extra"),
            "{names}"
        );
        std::fs::write(&path, &std::fs::read(&path).expect("bytes")[..40]).expect("a stump");
        let stump = TensorFile::open(&path).expect_err("it is cut").to_string();
        assert!(stump.contains("not a whole safetensors file"), "{stump}");
        std::fs::remove_dir_all(dir).expect("the scratch directory goes");
    }

    #[test]
    fn halves_widen() {
        let cases = [
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x3555, 0.333251953125),
            (0x0001, 2f64.powi(-24)),
            (0x7c00, f64::INFINITY),
        ];
        for (bits, value) in cases {
            assert_eq!(half(bits), value);
        }
        assert!(half(0x7e00).is_nan());
    }

    #[test]
    fn unwritable_places_are_found_out() {
        let dir = scratch("unwritable");
        let file = dir.join("file");
        std::fs::write(&file, "x").expect("a file");
        for path in [dir.clone(), file.join("below"), dir.join("no/such/place")] {
            assert!(check_writable(&path).is_err(), "{}", path.display());
        }
        assert!(check_writable(&dir.join("new")).is_ok());
        assert_eq!(std::fs::read_dir(&dir).expect("the directory").count(), 1);
        std::fs::remove_dir_all(dir).expect("the scratch directory goes");
    }
}
