//! Measuring a machine: how fast its kernels, copies and disk are.
//!
//! Every family of kernels is run on a grid of widths and sizes ([`cases`]), as a
//! plan's tiles would run it, in several rounds over the whole grid: what else the
//! machine does meanwhile then hits single rounds, and the fastest one counts. Calls
//! that would take too long are left out; the rate of the next smaller one holds for
//! them.

mod cases;
mod links;
mod measure;

use std::collections::BTreeMap;
use std::path::PathBuf;

use sstep_planner::machine::{Family, Machine, RateTable, Unit};

use crate::Error;
use cases::Case;

/// Scratch that kernels are measured with and plans then give them.
const WORKSPACE_BYTES: u64 = 8 << 20;

/// How thoroughly to measure.
#[derive(Clone, Debug, PartialEq)]
pub struct CalibrateOptions {
    /// Turns over the whole grid.
    pub rounds: usize,
    /// Seconds that a turn spends on one entry.
    pub secs_per_entry: f64,
    /// Bytes of the operands that the calls of an entry go round: more than caches
    /// hold, or large maps seem faster than they are.
    pub sets_bytes: u64,
    /// Calls of more FLOPs are left out.
    pub most_flops: f64,
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
            sets_bytes: 192 << 20,
            most_flops: 6e9,
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
            disk_bytes: 32 << 20,
            ..CalibrateOptions::thorough()
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
    let mut entries: Vec<Entry> = Family::all()
        .flat_map(|family| entries(family, options.most_flops))
        .collect();
    let total = options.rounds * (entries.len() + 1);
    let mut done = 0;
    let mut links = links::Best::default();
    for round in 0..options.rounds {
        for entry in &mut entries {
            let secs = measure::call_secs(&entry.case, options);
            entry.secs = entry.secs.min(secs);
            done += 1;
            progress(done, total);
        }
        links.measure(options, round == 0)?;
        done += 1;
        progress(done, total);
    }
    let tables = Family::all().map(|f| (f, table(f, &entries))).collect();
    let machine = Machine::new(
        name(),
        rayon::current_num_threads(),
        links.links(),
        WORKSPACE_BYTES,
        tables,
    )?;
    Ok(machine)
}

/// What is measured of a family.
fn entries(family: Family, most_flops: f64) -> Vec<Entry> {
    let mut entries = Vec::new();
    for (row, &width) in cases::widths(family).iter().enumerate() {
        for (column, &positions) in cases::POSITIONS.iter().enumerate() {
            let case = cases::case(family, width, positions);
            if case.flops() <= most_flops || column == 0 {
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
fn name() -> String {
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
