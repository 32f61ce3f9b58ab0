//! Measuring a machine: how fast its kernels, copies and disk are.
//!
//! Every family of kernels is run on a grid of widths and sizes ([`cases`]), as a
//! plan's tiles would run it, in several rounds over the whole grid: what else the
//! machine does meanwhile then hits single rounds, and the fastest one counts. Calls
//! that would take too long are left out; the rate of the next smaller one holds for
//! them. A CUDA device is measured by the same calls, larger and more of them, and copies
//! both ways at once and beside kernels besides.

mod cases;
mod links;
mod measure;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use sstep_executor::{Backend, Device, DeviceOptions, open};
use sstep_planner::machine::{ConvClass, Family, Machine, RateTable, Unit};

use crate::Error;
use cases::Case;
use measure::{Operands, Subject};

/// How thoroughly to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibrateOptions {
    /// Turns over the whole grid.
    pub rounds: usize,
    /// Seconds that a turn spends on one entry.
    pub secs_per_entry: f64,
    /// Seconds of the bundles that calls are timed in.
    pub bundle_secs: f64,
    /// Bytes of the operands that the calls of an entry go round: more than caches
    /// hold, or large maps seem faster than they are.
    pub sets_bytes: u64,
    /// Calls of more FLOPs are left out.
    pub most_flops: f64,
    /// Calls that touch more memory are left out.
    pub most_bytes: u64,
    /// Scratch that kernels are measured with and plans then give them.
    pub workspace_bytes: u64,
    /// Bytes copied between host and device, each way.
    pub link_bytes: u64,
    /// Whether it is a CUDA device: calls may return before they are done, copies may run
    /// beside kernels, and Winograd's algorithm has no kernels of its own.
    pub is_cuda: bool,
    /// Folder on the disk that is measured.
    pub disk: PathBuf,
    /// Bytes written to and read from it.
    pub disk_bytes: u64,
}

impl CalibrateOptions {
    /// Two minutes or so.
    pub fn thorough() -> Self {
        CalibrateOptions {
            rounds: 4,
            secs_per_entry: 0.02,
            bundle_secs: 2e-4,
            sets_bytes: 192 << 20,
            most_flops: 6e9,
            most_bytes: 256 << 20,
            workspace_bytes: 8 << 20,
            link_bytes: 128 << 20,
            is_cuda: false,
            disk: std::env::temp_dir(),
            disk_bytes: 256 << 20,
        }
    }

    /// A few seconds, and less to be trusted.
    pub fn quick() -> Self {
        CalibrateOptions {
            rounds: 1,
            secs_per_entry: 0.001,
            sets_bytes: 8 << 20,
            most_flops: 1e8,
            link_bytes: 32 << 20,
            disk_bytes: 32 << 20,
            ..CalibrateOptions::thorough()
        }
    }

    /// The same for a CUDA device, of which calls must be larger to fill it.
    #[must_use]
    pub fn for_cuda(self) -> Self {
        CalibrateOptions {
            bundle_secs: 5e-3,
            sets_bytes: self.sets_bytes.saturating_mul(4),
            most_flops: self.most_flops * 500.0,
            most_bytes: 2 << 30,
            workspace_bytes: 64 << 20,
            link_bytes: self.link_bytes.saturating_mul(2),
            is_cuda: true,
            ..self
        }
    }
}

/// One entry of a family's table.
struct Entry {
    case: Case,
    family: Family,
    row: usize,
    column: usize,
    secs: f64,
}

/// Measures this machine with the threads of the current pool. `progress` is told how
/// many of how many measurements are done.
///
/// # Errors
/// [`Error::Io`] if the disk cannot be written; [`Error::Exec`] if there is no memory.
pub fn calibrate(
    options: &CalibrateOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Machine, Error> {
    calibrate_device(&Device::Cpu, processor(), options, progress)
}

/// Measures a device, which is called `name` in the profile; options of a CUDA device are
/// had from [`CalibrateOptions::for_cuda`].
///
/// # Errors
/// [`Error::Exec`] if the device cannot be had, has too little memory free
/// ([`calibration_bytes`]), or fails; [`Error::Io`] if the disk cannot be written.
pub fn calibrate_device(
    device: &Device,
    name: String,
    options: &CalibrateOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Machine, Error> {
    let mut backend = open::<f32>(
        device,
        &DeviceOptions::default(),
        calibration_bytes(options),
    )?;
    let began = Instant::now();
    let clock = || began.elapsed().as_secs_f64();
    calibrate_backend(backend.as_mut(), &clock, name, options, progress)
}

/// Measures a backend whose arena has at least [`calibration_bytes`], by a clock that
/// tells seconds.
///
/// # Errors
/// [`Error::Exec`] if it fails, [`Error::Io`] if the disk cannot be written.
pub fn calibrate_backend(
    backend: &mut dyn Backend<f32>,
    clock: &dyn Fn() -> f64,
    name: String,
    options: &CalibrateOptions,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<Machine, Error> {
    let mut entries = all_entries(options);
    let total = options.rounds * (entries.len() + 1);
    let mut done = 0;
    let mut links = links::Best::default();
    let mut subject = Subject {
        backend,
        clock,
        options,
    };
    for round in 0..options.rounds {
        for entry in &mut entries {
            let secs = subject.call_secs(&entry.case)?;
            entry.secs = entry.secs.min(secs);
            done += 1;
            progress(done, total);
        }
        links.measure(&mut subject, round == 0)?;
        done += 1;
        progress(done, total);
    }
    let links = links.links();
    if options.is_cuda {
        // Kernels that take less are hidden behind the giving of the next, and a plan's
        // seconds count that besides.
        for entry in &mut entries {
            entry.secs = (entry.secs - links.launch_secs).max(entry.secs / 4.0);
        }
    }
    let tables = Family::all()
        .map(|f| (f, table(stand_in(f, options), &entries)))
        .collect();
    let machine = Machine::new(
        name,
        rayon::current_num_threads(),
        links,
        options.workspace_bytes,
        tables,
    )?;
    Ok(machine)
}

/// Bytes of the arena that measuring takes.
pub fn calibration_bytes(options: &CalibrateOptions) -> u64 {
    let of_entry = |e: &Entry| Operands::of(&e.case, options).end();
    let most = all_entries(options).iter().map(of_entry).max();
    most.unwrap_or(0).max(links::arena_bytes(options))
}

fn all_entries(options: &CalibrateOptions) -> Vec<Entry> {
    Family::all()
        .filter(|&family| stand_in(family, options) == family)
        .flat_map(|family| entries(family, options))
        .collect()
}

/// The family by whose kernels a device computes another.
fn stand_in(family: Family, options: &CalibrateOptions) -> Family {
    match family {
        Family::Conv(ConvClass::Winograd, role) if options.is_cuda => {
            Family::Conv(ConvClass::Direct, role)
        }
        _ => family,
    }
}

/// What is measured of a family.
fn entries(family: Family, options: &CalibrateOptions) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (row, &width) in cases::widths(family).iter().enumerate() {
        for (column, &positions) in cases::POSITIONS.iter().enumerate() {
            let case = cases::case(family, width, positions);
            let bytes = Operands::one(&case, options, 0).end();
            let is_small = case.flops() <= options.most_flops && bytes <= options.most_bytes;
            if is_small || (row, column) == (0, 0) {
                entries.push(Entry {
                    case,
                    family,
                    row,
                    column,
                    secs: f64::INFINITY,
                });
            }
        }
    }
    entries
}

/// Puts a family's measurements in order.
fn table(family: Family, entries: &[Entry]) -> RateTable {
    let mut found: BTreeMap<(usize, usize), (f64, f64)> = BTreeMap::new();
    let mut widths = Vec::new();
    for e in entries.iter().filter(|e| e.family == family) {
        let (work, size) = match family.unit() {
            Unit::Flops => (e.case.flops(), e.case.positions()),
            Unit::Bytes => (e.case.bytes(), e.case.bytes()),
        };
        found.insert((e.row, e.column), (size, rounded(work / e.secs)));
        if e.column == 0 {
            widths.push(e.case.width());
        }
    }
    let columns = found.keys().map(|k| k.1 + 1).max().unwrap_or(0);
    // The first row is the one with the smallest calls, so it has every column.
    let size = |column| found.get(&(0, column)).map_or(f64::NAN, |f| f.0);
    let sizes = (0..columns).map(size).collect();
    let per_sec = (0..widths.len())
        .map(|row| {
            let mut rate = f64::NAN;
            let mut next = |column| {
                rate = found.get(&(row, column)).map_or(rate, |f| f.1);
                rate
            };
            (0..columns).map(&mut next).collect()
        })
        .collect();
    RateTable {
        widths,
        sizes,
        per_sec,
    }
}

/// To the three digits that a measurement has at most.
fn rounded(value: f64) -> f64 {
    let unit = 10f64.powf(value.abs().log10().floor() - 2.0);
    let digits = (value / unit).round();
    // A division by a power of ten rounds to the decimal itself.
    if unit < 1.0 {
        digits / (1.0 / unit).round()
    } else {
        digits * unit
    }
}

/// What the processor calls itself, and how many threads of it were used.
fn processor() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = info.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == "model name").then(|| value.trim().to_owned())
    });
    let threads = rayon::current_num_threads();
    let model = model.unwrap_or_else(|| std::env::consts::ARCH.to_owned());
    format!("{model}, {threads} threads")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measured in no time, but with every family, through the same code.
    #[test]
    fn a_measured_machine_is_a_profile() {
        let options = CalibrateOptions {
            rounds: 1,
            secs_per_entry: 0.0,
            most_flops: 1e6,
            disk_bytes: 1 << 20,
            ..CalibrateOptions::quick()
        };
        let mut seen = (0, 0);
        let machine = calibrate(&options, &mut |done, total| seen = (done, total));
        let machine = machine.expect("it can be measured");
        assert_eq!(seen.0, seen.1);
        let again = Machine::from_json(&machine.to_json()).expect("a profile");
        assert_eq!(again, machine);
    }
}
