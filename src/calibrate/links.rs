//! How fast bytes move between device, host and disk.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;
use std::time::Instant;

use sstep_autodiff::{DType, Form, Region, Shape, Span, Ty};
use sstep_executor::{Backend, Cpu, Place};
use sstep_kernels::{In, Layout, Out};
use sstep_planner::Machine;
use sstep_planner::machine::Links;

use super::CalibrateOptions;
use super::measure::{map_of, repeat};
use super::rounded;
use crate::Error;

/// Channels and extent of the host tensor that tiles are copied from and to: more than
/// caches hold.
const HOST: [usize; 2] = [128, 512];
/// Rows of a tile.
const TILE_ROWS: usize = 32;
/// Bytes of one write to disk.
const BLOCK_BYTES: usize = 4 << 20;

/// The fastest of all rounds, in seconds per byte; the disk in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Best {
    h2d: f64,
    d2h: f64,
    disk_read: f64,
    disk_write: f64,
    launch_secs: f64,
}

impl Default for Best {
    fn default() -> Self {
        let never = f64::INFINITY;
        Best {
            h2d: never,
            d2h: never,
            disk_read: never,
            disk_write: never,
            launch_secs: never,
        }
    }
}

impl Best {
    /// One more round. The disk is measured in the first only.
    ///
    /// # Errors
    /// [`Error::Io`] and [`Error::Exec`].
    pub fn measure(&mut self, options: &CalibrateOptions, disk: bool) -> Result<(), Error> {
        let secs = options.secs_per_entry;
        let [channels, extent] = HOST;
        let map = Ty {
            dtype: DType::F32,
            shape: Shape::map(1, channels, &[extent; 2]),
            form: Form::Map,
        };
        let tiles: Vec<Region> = (0..extent / TILE_ROWS)
            .map(|tile| {
                let rows = Span::new(tile * TILE_ROWS, (tile + 1) * TILE_ROWS);
                Region::new(&[Span::full(1), rows, Span::full(extent)])
            })
            .collect();
        // Every tile in a place of its own: neither side of a copy is in the caches.
        let tile_bytes = map.bytes() / tiles.len() as u64;
        let windows: Vec<Place> = (tiles.iter().enumerate())
            .map(|(at, tile)| Place {
                offset: at as u64 * tile_bytes,
                layout: Layout::window(&map, &[1, TILE_ROWS, extent], tile),
            })
            .collect();
        let mut device = Cpu::new(map.bytes())?;
        let mut host = vec![0.0f32; map.shape.elems()];
        let (layout, bytes) = (Layout::whole(&map), map.bytes() as f64);
        let mut outcome = Ok(());
        let down = repeat(secs, 1, || {
            let view = Out::new(layout, &mut host);
            for (tile, window) in tiles.iter().zip(&windows) {
                if outcome.is_ok() {
                    outcome = device.download(window, tile, &view);
                }
            }
        });
        self.d2h = self.d2h.min(down / bytes);
        let up = repeat(secs, 1, || {
            let view = In::new(layout, &host);
            for (tile, window) in tiles.iter().zip(&windows) {
                if outcome.is_ok() {
                    outcome = device.upload(&view, tile, window);
                }
            }
        });
        self.h2d = self.h2d.min(up / bytes);
        // What a plan's instruction costs beyond its kernel: a copy of next to nothing.
        let (tiny, at) = map_of(16);
        let region = Region::whole(&tiny);
        let call = repeat(secs, 1, || {
            if outcome.is_ok() {
                outcome = Backend::<f32>::copy(&mut device, &at(0), &region, &at(4096));
            }
        });
        outcome?;
        self.launch_secs = self.launch_secs.min(call);
        if disk {
            let (write, read) = disk_secs(&options.disk, options.disk_bytes)?;
            self.disk_write = write / options.disk_bytes as f64;
            self.disk_read = read / options.disk_bytes as f64;
        }
        Ok(())
    }

    /// As rates. How fast images are read depends on their format and is not measured.
    pub fn links(self) -> Links {
        Links {
            h2d_bytes_per_sec: rounded(1.0 / self.h2d),
            d2h_bytes_per_sec: rounded(1.0 / self.d2h),
            disk_read_bytes_per_sec: rounded(1.0 / self.disk_read),
            disk_write_bytes_per_sec: rounded(1.0 / self.disk_write),
            source_bytes_per_sec: Machine::cpu_default().source_bytes_per_sec,
            launch_secs: rounded(self.launch_secs),
        }
    }
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
