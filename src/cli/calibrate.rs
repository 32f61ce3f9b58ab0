//! `sstep calibrate`: measure this machine for the planner.

use std::path::{Path, PathBuf};

use serde_json::json;
use sstep::{
    CalibrateOptions, Error, Family, Machine, Progress, calibrate, calibrate_device, profile_path,
};

use super::args::{DeviceArgs, on};
use super::progress::Bar;

/// Measure this machine, so that plans fit it and predict its seconds.
///
/// Runs every family of kernels on tiles of several widths and sizes, copies between
/// device and host memory, and the disk; two minutes or so on two cores. Leave the machine
/// alone meanwhile. The profile is kept in the user's cache, where every later plan
/// finds it; plan, train and grad take another by --machine. A CUDA device has a profile
/// of its own, kept under its name; measuring one takes some 5 GiB of its memory.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true)]
pub struct Args {
    /// Write the profile to this file instead of the user's cache.
    #[arg(long, value_name = "FILE.json")]
    out: Option<PathBuf>,
    /// Seconds instead of minutes, and less to be trusted.
    #[arg(long)]
    quick: bool,
    #[command(flatten)]
    on: DeviceArgs,
    /// Folder on the disk that tensors would be moved to.
    #[arg(long, value_name = "DIR")]
    disk: Option<PathBuf>,
    /// Print the profile as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    let device = args.on.find()?;
    let path = match &args.out {
        Some(path) => path.clone(),
        None => profile_path(device.as_ref()).ok_or_else(|| Error::Usage {
            reason: "neither XDG_CACHE_HOME nor HOME says where to keep the profile; give --out"
                .to_owned(),
        })?,
    };
    make_room(&path)?;
    let mut options = if args.quick {
        CalibrateOptions::quick()
    } else {
        CalibrateOptions::thorough()
    };
    if let Some(disk) = &args.disk {
        options.disk.clone_from(disk);
    }
    let bar = Bar::new(1, 0, args.json);
    bar.message("measuring".to_owned());
    let mut tell = |done, total| {
        let progress = Progress {
            done_secs: done as f64,
            total_secs: total as f64,
            stage: 0,
            n_stages: 1,
        };
        bar.at(0, progress);
    };
    let measured = match &device {
        None => calibrate(&options, &mut tell),
        Some(found) => {
            let (options, name) = (options.for_cuda(), found.name.clone());
            calibrate_device(&on(Some(found)), name, &options, &mut tell)
        }
    };
    bar.finish();
    let machine = measured?;
    // Whole or not at all: a later plan must not find half a profile.
    let part = path.with_extension("part");
    let written =
        std::fs::write(&part, machine.to_json()).and_then(|()| std::fs::rename(&part, &path));
    written.map_err(|error| io(&path, &error))?;
    if args.json {
        super::say_json(&json!({ "out": path, "machine": machine }));
    } else {
        super::say(&table(&machine));
        super::say(&format!("wrote {}", path.display()));
    }
    Ok(())
}

/// Fails before anything is measured if the profile could not be written.
fn make_room(path: &Path) -> Result<(), Error> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    if let Some(dir) = parent {
        std::fs::create_dir_all(dir).map_err(|error| io(dir, &error))?;
    }
    sstep::params::check_writable(path)
}

fn io(path: &Path, error: &std::io::Error) -> Error {
    Error::Io {
        path: path.to_path_buf(),
        what: "writing",
        reason: error.to_string(),
    }
}

/// The fastest and the slowest rate of every family.
fn table(machine: &Machine) -> String {
    let mut out = format!("{}\n", machine.name);
    let mut line = |what: &str, lo: f64, hi: f64, unit: &str| {
        out.push_str(&format!(
            "{what:<28}{:>9.2} to {:>8.2} {unit}\n",
            lo / 1e9,
            hi / 1e9
        ));
    };
    for family in Family::all() {
        let rates = machine.rates(family).per_sec.iter().flatten().copied();
        let (lo, hi) = (
            rates.clone().fold(f64::INFINITY, f64::min),
            rates.fold(0.0, f64::max),
        );
        let unit = match family.unit() {
            sstep::Unit::Flops => "GFLOP/s",
            sstep::Unit::Bytes => "GB/s",
        };
        line(&family.name(), lo, hi, unit);
    }
    for (what, rate) in [
        ("host to device", machine.h2d_bytes_per_sec),
        ("device to host", machine.d2h_bytes_per_sec),
        ("read from disk", machine.disk_read_bytes_per_sec),
        ("written to disk", machine.disk_write_bytes_per_sec),
    ] {
        out.push_str(&format!("{what:<28}{:>9.2} GB/s\n", rate / 1e9));
    }
    let us = 1e6 * machine.launch_secs;
    out.push_str(&format!(
        "{:<28}{us:>9.2} µs\n",
        "an instruction beyond that"
    ));
    if machine.copies_overlap {
        out.push_str("copies run beside kernels\n");
    }
    out
}
