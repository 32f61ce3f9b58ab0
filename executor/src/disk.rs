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

use rayon::prelude::*;
use sstep_autodiff::{Region, Ty};
use sstep_kernels::{Box4, In, Layout, Out, Real};

use crate::error::ExecError;

/// Host bytes at most that a backend without a way of its own stages copies in.
const STAGING_BYTES: usize = 4 << 20;

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

    /// The tensor of type `ty` at `offset`.
    pub(crate) fn map(&self, offset: u64, ty: &Ty) -> DiskMap<'_> {
        DiskMap {
            spill: self,
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
#[derive(Clone, Copy)]
pub struct DiskMap<'a> {
    spill: &'a SpillFile,
    offset: u64,
    layout: Layout,
}

/// A row of a map: `[n, c, d, h]`, and its first position.
pub type RowAt = ([usize; 4], usize);

impl DiskMap<'_> {
    /// Reads a part of a row.
    ///
    /// # Errors
    /// [`ExecError::Spill`] if the disk fails.
    ///
    /// # Panics
    /// If the file ends before the row does.
    pub fn read_row<T: Real>(&self, at: RowAt, row: &mut [T]) -> Result<(), ExecError> {
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
    pub fn write_row<T: Real>(&self, at: RowAt, row: &[T]) -> Result<(), ExecError> {
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

    /// Copies a region from a device by way of the host, a piece at a time: `get`
    /// copies a piece to the host.
    pub(crate) fn write_staged<T: Real>(
        &self,
        region: &Region,
        mut get: impl FnMut(&Region, &Out<'_, T>) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        let mut staging: Vec<T> = Vec::new();
        self.pieces::<T>(region).into_iter().try_for_each(|piece| {
            let layout = self.staged::<T>(&piece);
            staging.resize(layout.len, T::ZERO);
            get(&piece, &Out::new(layout, &mut staging))?;
            let view = In::new(layout, &staging);
            let width = Box4::lift(&piece).s(2).len();
            self.each_row(&piece, |at @ ([n, c, d, h], w)| {
                self.write_row(at, view.row(n, c, d, h, w..w + width))
            })
        })
    }

    /// Copies a region to a device by way of the host, a piece at a time: `put`
    /// copies a piece from the host.
    pub(crate) fn read_staged<T: Real>(
        &self,
        region: &Region,
        mut put: impl FnMut(&Region, &In<'_, T>) -> Result<(), ExecError>,
    ) -> Result<(), ExecError> {
        let mut staging: Vec<T> = Vec::new();
        self.pieces::<T>(region).into_iter().try_for_each(|piece| {
            let layout = self.staged::<T>(&piece);
            staging.resize(layout.len, T::ZERO);
            let lifted = Box4::lift(&piece);
            // A dense copy of the piece has its rows in the order of `rows`.
            (staging.par_chunks_mut(lifted.s(2).len()))
                .zip(rows(&lifted, self.layout.dims[1]))
                .try_for_each(|(row, at)| self.read_row((at, lifted.s(2).start), row))?;
            put(&piece, &In::new(layout, &staging))
        })
    }

    /// All of it.
    ///
    /// # Errors
    /// [`ExecError::Spill`] if the disk fails.
    pub(crate) fn read_all<T: Real>(&self) -> Result<Vec<T>, ExecError> {
        let mut data = vec![T::ZERO; self.layout.len];
        let everything = self.layout.everything();
        (data.par_chunks_mut(everything.s(2).len()))
            .zip(rows(&everything, self.layout.dims[1]))
            .try_for_each(|(row, at)| self.read_row((at, 0), row))?;
        Ok(data)
    }

    /// A dense buffer for all channels of a region.
    fn staged<T: Real>(&self, region: &Region) -> Layout {
        let capacity: Vec<usize> = region.spans().iter().map(|s| s.len()).collect();
        Layout::window(&self.layout.ty::<T>(), &capacity, region)
    }

    /// A region in pieces that staging has room for, cut along its first axes so
    /// that rows stay long.
    fn pieces<T: Real>(&self, region: &Region) -> Vec<Region> {
        let point_bytes = self.layout.dims[1] * size_of::<T>();
        let mut pieces = Vec::new();
        let mut left = vec![*region];
        while let Some(piece) = left.pop() {
            let axis = piece.spans().iter().position(|s| s.len() > 1);
            match axis.filter(|_| piece.points() as usize * point_bytes > STAGING_BYTES) {
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
    use sstep_autodiff::{DType, Form, Shape, Span};

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
        let map = spill.map(64, &ty);
        let whole: Vec<f32> = (0..ty.shape.elems()).map(|i| i as f32).collect();
        let source = In::new(Layout::whole(&ty), &whole);
        let copy = |region: &Region, out: &Out<'_, f32>| {
            let b = Box4::lift(region);
            for [n, c, d, h] in rows(&b, 3) {
                // SAFETY: `out` is dense and no other slice of it is alive.
                let row = unsafe { out.row_mut(n, c, d, h, b.s(2)) };
                row.copy_from_slice(source.row(n, c, d, h, b.s(2)));
            }
            Ok(())
        };
        // The two halves meet inside: pieces of both, each several times too large
        // for the staging.
        for (lo, hi) in [(0, 410), (410, 700)] {
            let half = Region::new(&[Span::full(2), Span::new(lo, hi), Span::full(900)]);
            assert!(map.pieces::<f32>(&half).len() > 1);
            map.write_staged(&half, copy).expect("written");
        }
        assert_eq!(map.read_all::<f32>().expect("read"), whole);
        let part = Region::new(&[Span::new(1, 2), Span::new(3, 690), Span::new(7, 800)]);
        let mut seen = 0;
        map.read_staged(&part, |piece, view: &In<'_, f32>| {
            let b = Box4::lift(piece);
            for [n, c, d, h] in rows(&b, 3) {
                assert_eq!(view.row(n, c, d, h, b.s(2)), source.row(n, c, d, h, b.s(2)));
                seen += b.s(2).len();
            }
            Ok(())
        })
        .expect("read");
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
        let full = SpillFile {
            file: File::options()
                .write(true)
                .open("/dev/full")
                .expect("a device"),
            dir: PathBuf::from("/dev/full"),
            bytes: ty.bytes(),
        };
        let error = full.map(0, &ty).write_row(([1, 0, 0, 0], 4), &[0f32; 4]);
        let text = error.expect_err("no room").to_string();
        assert!(
            text.contains("writing 16 B") && text.contains("of 64 B"),
            "{text}"
        );
    }
}
