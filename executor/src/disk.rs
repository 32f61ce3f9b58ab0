//! The spill file: tensors that neither the device nor the host has room for.
//!
//! One file of exactly the size that the plan promises. It has no name, so that it
//! is gone with the process however that ends, and its space is reserved before
//! the first step, so that a disk that is too full is found then and not hours
//! later. Each tensor lies at the plan's offset, dense, row after row as on the
//! host; reads and writes name their position, so that threads share the file.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;
use sstep_autodiff::{DType, Region, Span, Ty};
use sstep_kernels::{Box4, Element, In, Layout};

use crate::error::ExecError;

/// Bytes at most of the pieces that a region is cut into on its way by the host.
#[cfg(any(feature = "cuda", test))]
pub(crate) const PIECE_BYTES: usize = 4 << 20;

/// Says whether a folder can hold a spill file, before minutes of planning.
///
/// # Errors
/// [`ExecError::SpillFolder`] if not.
pub fn check_spill_dir(dir: &Path) -> Result<(), ExecError> {
    unnamed(dir).map(|_| ())
}

fn unnamed(dir: &Path) -> Result<File, ExecError> {
    tempfile::tempfile_in(dir).map_err(|e| ExecError::SpillFolder {
        dir: dir.to_path_buf(),
        reason: e.to_string(),
    })
}

/// An unnamed file, its space reserved.
pub(crate) struct SpillFile {
    file: File,
    dir: PathBuf,
    bytes: u64,
}

impl SpillFile {
    /// In folder `dir`, of exactly `bytes`.
    ///
    /// # Errors
    /// [`ExecError::SpillFolder`] if no file can be made there,
    /// [`ExecError::SpillFull`] if there is not enough space.
    pub(crate) fn new(dir: &Path, bytes: u64) -> Result<Self, ExecError> {
        let file = unnamed(dir)?;
        reserve(&file, bytes).map_err(|e| ExecError::SpillFull {
            dir: dir.to_path_buf(),
            bytes,
            free_bytes: free_bytes(&file),
            reason: e.to_string(),
        })?;
        Ok(SpillFile {
            file,
            dir: dir.to_path_buf(),
            bytes,
        })
    }

    /// One that always turns out to be full.
    #[cfg(test)]
    pub(crate) fn full(bytes: u64) -> Self {
        SpillFile {
            file: File::options()
                .write(true)
                .open("/dev/full")
                .expect("a device"),
            dir: PathBuf::from("/dev/full"),
            bytes,
        }
    }

    /// The tensor of type `ty` at `offset`.
    pub(crate) fn map(self: &Arc<Self>, offset: u64, ty: &Ty) -> DiskMap {
        DiskMap {
            spill: Arc::clone(self),
            offset,
            layout: Layout::whole(ty),
        }
    }
}

/// Reserves space, where the file system can; elsewhere only sets the size.
fn reserve(file: &File, bytes: u64) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{FallocateFlags, fallocate};
        use rustix::io::Errno;
        if bytes == 0 {
            return Ok(());
        }
        match fallocate(file, FallocateFlags::empty(), 0, bytes) {
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {}
            reserved => return Ok(reserved?),
        }
    }
    file.set_len(bytes)
}

/// Free space where a file lies, if the system tells.
fn free_bytes(file: &File) -> Option<u64> {
    let found = rustix::fs::fstatvfs(file).ok()?;
    Some(found.f_bavail.saturating_mul(found.f_frsize))
}

/// A whole map in the spill file.
#[derive(Clone)]
pub struct DiskMap {
    spill: Arc<SpillFile>,
    offset: u64,
    layout: Layout,
}

/// A row of a map: `[n, c, d, h]`, and its first position.
pub type RowAt = ([usize; 4], usize);

impl DiskMap {
    /// Reads a part of a row.
    ///
    /// # Errors
    /// [`ExecError::Spill`] if the disk fails.
    ///
    /// # Panics
    /// If the file ends before the row does.
    pub fn read_row<T: Element>(&self, at: RowAt, row: &mut [T]) -> Result<(), ExecError> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(row);
        let position = self.position::<T>(at, bytes.len());
        let read = self.spill.file.read_exact_at(bytes, position);
        read.map_err(|e| self.failed("reading", bytes.len(), &e))
    }

    /// Writes a part of a row.
    ///
    /// # Errors
    /// [`ExecError::Spill`] if the disk fails.
    ///
    /// # Panics
    /// If the file ends before the row does.
    pub fn write_row<T: Element>(&self, at: RowAt, row: &[T]) -> Result<(), ExecError> {
        let bytes: &[u8] = bytemuck::cast_slice(row);
        let position = self.position::<T>(at, bytes.len());
        let written = self.spill.file.write_all_at(bytes, position);
        written.map_err(|e| self.failed("writing", bytes.len(), &e))
    }

    /// Calls `one` for every row of all channels of a region, on several threads;
    /// no row twice.
    ///
    /// # Errors
    /// The first of `one`.
    pub fn each_row(
        &self,
        region: &Region,
        one: impl Fn(RowAt) -> Result<(), ExecError> + Sync,
    ) -> Result<(), ExecError> {
        let region = Box4::lift(region);
        rows(&region, self.layout.dims[1])
            .into_par_iter()
            .try_for_each(|row| one((row, region.s(2).start)))
    }

    /// Writes what a view holds of a region.
    ///
    /// # Errors
    /// [`ExecError::Spill`] if the disk fails.
    pub fn write<T: Element>(&self, region: &Region, from: &In<'_, T>) -> Result<(), ExecError> {
        let width = Box4::lift(region).s(2).len();
        self.each_row(region, |at @ ([n, c, d, h], w)| {
            self.write_row(at, from.row(n, c, d, h, w..w + width))
        })
    }

    /// Its element type.
    pub(crate) fn dtype(&self) -> DType {
        self.layout.dtype
    }

    /// All of it.
    ///
    /// # Errors
    /// [`ExecError::Spill`] if the disk fails.
    pub(crate) fn read_all<T: Element>(&self) -> Result<Vec<T>, ExecError> {
        let mut data = vec![T::default(); self.layout.len];
        let whole: Vec<Span> = (self.layout.shape.dims().iter().enumerate())
            .filter(|(axis, _)| *axis != 1)
            .map(|(_, &extent)| Span::full(extent))
            .collect();
        self.read_dense(&Region::new(&whole), &mut data)?;
        Ok(data)
    }

    /// Where in the file it lies: what tells tensors apart that are there at one time.
    #[cfg(feature = "cuda")]
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    /// Reads a region into a dense buffer, laid out as [`DiskMap::staged`] says.
    pub(crate) fn read_dense<T: Element>(
        &self,
        region: &Region,
        to: &mut [T],
    ) -> Result<(), ExecError> {
        let lifted = Box4::lift(region);
        (to.par_chunks_mut(lifted.s(2).len()))
            .zip(rows(&lifted, self.layout.dims[1]))
            .try_for_each(|(row, at)| self.read_row((at, lifted.s(2).start), row))
    }

    /// A dense buffer for all channels of a region.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn staged(&self, region: &Region) -> Layout {
        Layout::dense(&self.layout.ty(), region)
    }

    /// A region in pieces of [`PIECE_BYTES`] at most, cut along its first axes so
    /// that rows stay long.
    #[cfg(any(feature = "cuda", test))]
    pub(crate) fn pieces(&self, region: &Region) -> Vec<Region> {
        let point_bytes = self.layout.dims[1] * self.layout.dtype.bytes();
        let mut pieces = Vec::new();
        let mut left = vec![*region];
        while let Some(piece) = left.pop() {
            let axis = piece.spans().iter().position(|s| s.len() > 1);
            match axis.filter(|_| piece.points() as usize * point_bytes > PIECE_BYTES) {
                Some(axis) => {
                    let mut span = piece.span(axis);
                    let middle = span.lo + span.len() / 2;
                    let (mut head, mut tail) = (piece, piece);
                    span.hi = middle;
                    head.set(axis, span);
                    span = piece.span(axis);
                    span.lo = middle;
                    tail.set(axis, span);
                    left.extend([tail, head]);
                }
                None => pieces.push(piece),
            }
        }
        pieces
    }

    fn position<T>(&self, ([n, c, d, h], w): RowAt, len_bytes: usize) -> u64 {
        let [_, channels, depth, height, width] = self.layout.dims;
        let row = ((n * channels + c) * depth + d) * height + h;
        let position = self.offset + ((row * width + w) * size_of::<T>()) as u64;
        assert!(
            position + len_bytes as u64 <= self.spill.bytes,
            "a tensor on disk lies within the spill file"
        );
        position
    }

    fn failed(&self, doing: &'static str, bytes: usize, error: &io::Error) -> ExecError {
        ExecError::Spill {
            doing,
            bytes: bytes as u64,
            file_bytes: self.spill.bytes,
            dir: self.spill.dir.clone(),
            reason: error.to_string(),
        }
    }
}

/// Rows of all channels of a region, `[n, c, d, h]`, in the order of a dense copy.
fn rows(region: &Box4, channels: usize) -> Vec<[usize; 4]> {
    let mut rows =
        Vec::with_capacity(region.n().len() * channels * region.s(0).len() * region.s(1).len());
    for n in region.n() {
        for c in 0..channels {
            for d in region.s(0) {
                rows.extend(region.s(1).map(|h| [n, c, d, h]));
            }
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;
    use sstep_autodiff::{Form, Shape};

    fn map_ty(channels: usize, extents: &[usize]) -> Ty {
        Ty {
            dtype: DType::F32,
            shape: Shape::map(2, channels, extents),
            form: Form::Map,
        }
    }

    #[test]
    fn regions_are_read_as_they_were_written_in_whatever_pieces() {
        let ty = map_ty(3, &[700, 900]);
        let spill = SpillFile::new(&std::env::temp_dir(), 64 + ty.bytes()).expect("a file");
        let map = Arc::new(spill).map(64, &ty);
        let whole: Vec<f32> = (0..ty.shape.elems()).map(|i| i as f32).collect();
        let source = In::new(Layout::whole(&ty), &whole);
        // The two halves meet inside.
        for (lo, hi) in [(0, 410), (410, 700)] {
            let half = Region::new(&[Span::full(2), Span::new(lo, hi), Span::full(900)]);
            let pieces = map.pieces(&half);
            assert!(pieces.len() > 1);
            for piece in &pieces {
                assert!(map.staged(piece).len * 4 <= PIECE_BYTES);
                map.write(piece, &source).expect("written");
            }
        }
        assert_eq!(map.read_all::<f32>().expect("read"), whole);
        let part = Region::new(&[Span::new(1, 2), Span::new(3, 690), Span::new(7, 800)]);
        let mut seen = 0;
        for piece in map.pieces(&part) {
            let layout = map.staged(&piece);
            let mut data = vec![0.0; layout.len];
            map.read_dense(&piece, &mut data).expect("read");
            let (view, b) = (In::new(layout, &data), Box4::lift(&piece));
            for [n, c, d, h] in rows(&b, 3) {
                assert_eq!(view.row(n, c, d, h, b.s(2)), source.row(n, c, d, h, b.s(2)));
                seen += b.s(2).len();
            }
        }
        assert_eq!(seen, part.points() as usize * 3);
    }

    #[test]
    fn a_full_disk_and_a_folder_that_is_none_are_told_with_their_values() {
        let error = SpillFile::new(Path::new("/nowhere/at/all"), 64).err();
        let text = error.expect("no folder").to_string();
        assert!(
            text.contains("/nowhere/at/all") && text.contains("--disk-dir"),
            "{text}"
        );
        // More than any disk has.
        let error = SpillFile::new(&std::env::temp_dir(), 1 << 60).err();
        let text = error.expect("no room").to_string();
        assert!(
            text.contains("1073741824 GiB") && text.contains("--disk"),
            "{text}"
        );
        // The device that is always full stands for a disk that others have filled
        // on the way.
        let ty = map_ty(1, &[1, 8]);
        let full = Arc::new(SpillFile::full(ty.bytes()));
        let error = full.map(0, &ty).write_row(([1, 0, 0, 0], 4), &[0f32; 4]);
        let text = error.expect_err("no room").to_string();
        assert!(
            text.contains("writing 16 B") && text.contains("of 64 B"),
            "{text}"
        );
    }
}
