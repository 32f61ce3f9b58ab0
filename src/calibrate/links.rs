//! How fast bytes move between device, host and disk.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use sstep_autodiff::{DType, Form, Region, Shape, Span, Ty};
use sstep_executor::{Backend, HostMemory, Place};
use sstep_kernels::{AnyIn, AnyOut, Layout};
use sstep_planner::Machine;
use sstep_planner::machine::{ConvClass, ConvRole, Family, Links};

use super::cases::{self, Case};
use super::measure::{Operands, Subject, map_of};
use super::{CalibrateOptions, rounded};
use crate::Error;

/// Channels of the host tensor that tiles are copied from and to.
const CHANNELS: usize = 128;
/// Tiles that it has.
const TILES: usize = 16;
/// Bytes of one write to disk.
const BLOCK_BYTES: usize = 4 << 20;
/// Of what could be hidden of copies beside kernels, how much must be for a plan to count
/// on it.
const HIDDEN: f64 = 0.5;

/// The fastest of all rounds, in seconds of everything that is copied; the disk in seconds
/// per byte.
#[derive(Clone, Copy, Debug)]
pub struct Best {
    bytes: f64,
    h2d: f64,
    d2h: f64,
    /// Both ways at once.
    both: f64,
    /// Kernels for about as long as both ways take, and these beside them.
    kernels: f64,
    beside: f64,
    disk_read: f64,
    disk_write: f64,
    launch_secs: f64,
}

impl Default for Best {
    fn default() -> Self {
        let never = f64::INFINITY;
        Best {
            bytes: 0.0,
            h2d: never,
            d2h: never,
            both: never,
            kernels: never,
            beside: never,
            disk_read: never,
            disk_write: never,
            launch_secs: never,
        }
    }
}

/// What is copied: a tensor of the host, in tiles, each of which has a place of its own
/// on the device. Neither side is in the caches.
struct Tiles {
    map: Ty,
    tiles: Vec<(Region, Place)>,
}

impl Tiles {
    /// Of about `bytes`, on the device from `offset` on.
    fn new(bytes: u64, offset: u64) -> Self {
        let extent = ((bytes / (4 * CHANNELS as u64)) as usize).isqrt();
        let extent = extent.next_multiple_of(TILES);
        let map = Ty {
            dtype: DType::F32,
            shape: Shape::map(1, CHANNELS, &[extent; 2]),
            form: Form::Map,
        };
        let rows = extent / TILES;
        let tile = |at: usize| {
            let span = Span::new(at * rows, (at + 1) * rows);
            let region = Region::new(&[Span::full(1), span, Span::full(extent)]);
            let place = Place {
                offset: offset + at as u64 * (map.bytes() / TILES as u64),
                layout: Layout::window(&map, &[1, rows, extent], &region),
            };
            (region, place)
        };
        Tiles {
            map,
            tiles: (0..TILES).map(tile).collect(),
        }
    }

    fn upload(
        &self,
        backend: &mut dyn Backend<f32>,
        host: &HostMemory,
        at: usize,
    ) -> Result<(), Error> {
        let (region, place) = &self.tiles[at];
        let view = AnyIn::new(Layout::whole(&self.map), (**host).as_ref());
        Ok(backend.upload(&view, region, place)?)
    }

    fn download(
        &self,
        backend: &mut dyn Backend<f32>,
        host: &mut HostMemory,
        at: usize,
    ) -> Result<(), Error> {
        let (region, place) = &self.tiles[at];
        let view = AnyOut::new(Layout::whole(&self.map), (**host).as_mut());
        Ok(backend.download(place, region, view)?)
    }
}

/// Bytes of the arena that the links are measured in.
pub fn arena_bytes(options: &CalibrateOptions) -> u64 {
    let busy = Operands::one(&busy(options), options, tiles_end(options));
    busy.end()
}

/// What goes to the device and what comes from it: behind the kernels' scratch.
fn tiles(options: &CalibrateOptions) -> [Tiles; 2] {
    let up = Tiles::new(options.link_bytes, options.workspace_bytes);
    let behind = options.workspace_bytes + up.map.bytes();
    [up, Tiles::new(options.link_bytes, behind)]
}

fn tiles_end(options: &CalibrateOptions) -> u64 {
    let [up, down] = tiles(options);
    options.workspace_bytes + up.map.bytes() + down.map.bytes()
}

impl Best {
    /// One more round. The disk is measured in the first only, whether copies run beside
    /// kernels only where calls may return before they are done.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Exec`].
    pub fn measure(&mut self, subject: &mut Subject<'_>, disk: bool) -> Result<(), Error> {
        let options = subject.options;
        let [up, down] = tiles(options);
        let bytes = up.map.bytes() as usize;
        let mut from = subject.backend.host_memory(bytes)?;
        let mut to = subject.backend.host_memory(bytes)?;
        // Memory that was never written is not there yet.
        (*from).as_mut().fill(1);
        (*to).as_mut().fill(1);
        self.bytes = up.map.bytes() as f64;
        let every = || 0..TILES;
        let secs = subject.repeat(1, |device, _| {
            every().try_for_each(|at| down.download(device, &mut to, at))
        })?;
        self.d2h = self.d2h.min(secs);
        let secs = subject.repeat(1, |device, _| {
            every().try_for_each(|at| up.upload(device, &from, at))
        })?;
        self.h2d = self.h2d.min(secs);
        let mut both = |device: &mut dyn Backend<f32>| {
            every().try_for_each(|at| {
                up.upload(device, &from, at)?;
                down.download(device, &mut to, at)
            })
        };
        let secs = subject.repeat(1, |device, _| both(device))?;
        self.both = self.both.min(secs);
        // What a plan's instruction costs beyond its kernel: a copy of next to nothing.
        let (tiny, at) = map_of(16);
        let region = Region::whole(&tiny);
        let secs = subject.repeat(1, |device, _| {
            Ok(device.copy(&at(0), &region, &at(4096))?)
        })?;
        self.launch_secs = self.launch_secs.min(secs);
        if options.is_cuda {
            // Behind the tiles, for about as long as these take.
            let case = busy(options);
            let operands = Operands::one(&case, options, tiles_end(options));
            operands.fill(&case, subject.backend)?;
            let region = operands.region(&case);
            let one = subject.repeat(1, |device, turn| {
                operands.call(&case, &region, device, turn)
            })?;
            let n = (self.both / one).ceil().clamp(1.0, 1000.0) as u64;
            let kernels = |device: &mut dyn Backend<f32>| {
                (0..n).try_for_each(|_| operands.call(&case, &region, device, 0))
            };
            let secs = subject.repeat(1, |device, _| kernels(device))?;
            self.kernels = self.kernels.min(secs);
            let secs = subject.repeat(1, |device, _| {
                kernels(device)?;
                both(device)
            })?;
            self.beside = self.beside.min(secs);
        }
        subject.backend.wait()?;
        if disk {
            let (write, read) = disk_secs(&options.disk, options.disk_bytes)?;
            self.disk_write = write / options.disk_bytes as f64;
            self.disk_read = read / options.disk_bytes as f64;
        }
        Ok(())
    }

    /// As rates. How fast images are read depends on their format and is not measured.
    pub fn links(self) -> Links {
        let copies_overlap = self.copies_overlap();
        // A plan takes both ways to be as fast at once as alone.
        let slower = if copies_overlap {
            (self.both / self.h2d.max(self.d2h)).max(1.0)
        } else {
            1.0
        };
        Links {
            h2d_bytes_per_sec: rounded(self.bytes / (self.h2d * slower)),
            d2h_bytes_per_sec: rounded(self.bytes / (self.d2h * slower)),
            disk_read_bytes_per_sec: rounded(1.0 / self.disk_read),
            disk_write_bytes_per_sec: rounded(1.0 / self.disk_write),
            source_bytes_per_sec: Machine::cpu_default().source_bytes_per_sec,
            launch_secs: rounded(self.launch_secs),
            copies_overlap,
        }
    }

    /// Whether copies run beside kernels. Never where that was not measured.
    fn copies_overlap(&self) -> bool {
        let hidden = self.kernels + self.both - self.beside;
        hidden > HIDDEN * self.kernels.min(self.both)
    }
}

/// A kernel that keeps a device busy and touches little memory.
fn busy(options: &CalibrateOptions) -> Case {
    let family = Family::Conv(ConvClass::Direct, ConvRole::Forward);
    let of = |positions| cases::case(family, 64, positions);
    let fits = |case: &Case| case.flops() <= options.most_flops;
    let mut sizes = cases::POSITIONS.into_iter().take(3).map(of);
    let largest = sizes.rfind(fits);
    largest.unwrap_or_else(|| of(cases::POSITIONS[0]))
}

/// Seconds of writing a file until it is on the disk, and of reading it back from
/// there: the system is told to forget what it still holds of it.
fn disk_secs(dir: &Path, bytes: u64) -> Result<(f64, f64), Error> {
    let path = dir.join(format!("sstep-calibrate-{}.tmp", std::process::id()));
    let measured = write_and_read(&path, bytes);
    // Whatever happened, the file is of no use to anyone.
    let _ = std::fs::remove_file(&path);
    measured.map_err(|e| Error::io(&path, "writing", &e))
}

fn write_and_read(path: &Path, bytes: u64) -> std::io::Result<(f64, f64)> {
    let mut block = vec![0x5a; BLOCK_BYTES];
    let n_blocks = bytes.div_ceil(BLOCK_BYTES as u64);
    let began = Instant::now();
    let mut file = File::create(path)?;
    for _ in 0..n_blocks {
        file.write_all(&block)?;
    }
    file.sync_all()?;
    let write = began.elapsed().as_secs_f64();
    forget(&file)?;
    let began = Instant::now();
    let mut file = File::open(path)?;
    for _ in 0..n_blocks {
        file.read_exact(&mut block)?;
    }
    let read = began.elapsed().as_secs_f64();
    let part = bytes as f64 / (n_blocks * BLOCK_BYTES as u64) as f64;
    Ok((write * part, read * part))
}

/// Has the system drop its copies of a file that is on the disk, where it can.
fn forget(file: &File) -> std::io::Result<()> {
    #[cfg(target_os = "linux")]
    rustix::fs::fadvise(file, 0, None, rustix::fs::Advice::DontNeed)?;
    let _ = file;
    Ok(())
}
