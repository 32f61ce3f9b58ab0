//! Packs buffers that somebody else's compiler left: static allocation
//! instances in the format of minimalloc.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Deserialize;
use sstep_planner::pack::{Request, load, pack};

use crate::Outcome;
use crate::table::{Cell, Table};

/// Pack the buffers of a CSV file into a given capacity.
///
/// The file has the columns `id,lower,upper,size`: a buffer of `size` bytes is
/// live from tick `lower` until before tick `upper`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Instances.
    #[arg(required = true, value_name = "FILE.csv")]
    files: Vec<PathBuf>,
    /// Bytes of the arena.
    #[arg(value_name = "CAPACITY")]
    capacity_bytes: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A line of the file.
#[derive(Debug, Deserialize)]
struct Line {
    lower: u32,
    upper: u32,
    size: u64,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Outcome {
    let mut table = Table::new(&[
        "file", "buffers", "load", "capacity", "peak", "fits", "secs",
    ]);
    let mut all_fit = true;
    for path in &args.files {
        let requests = read(path)?;
        let begin = Instant::now();
        let packing = pack(&requests);
        let secs = begin.elapsed().as_secs_f64();
        let fits = packing.peak_bytes <= args.capacity_bytes;
        all_fit &= fits;
        let name = path
            .file_name()
            .map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        table.row(vec![
            name.into(),
            requests.len().into(),
            load(&requests).into(),
            args.capacity_bytes.into(),
            packing.peak_bytes.into(),
            fits.into(),
            Cell::number(secs, 3),
        ]);
    }
    table.print(args.json);
    if all_fit {
        Ok(())
    } else {
        Err("not every instance was packed".into())
    }
}

/// Reads an instance.
fn read(path: &Path) -> Result<Vec<Request>, Box<dyn std::error::Error>> {
    let at = |error: csv::Error| format!("{}: {error}", path.display());
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_path(path)
        .map_err(at)?;
    let mut requests = Vec::new();
    for line in reader.deserialize() {
        let Line { lower, upper, size } = line.map_err(at)?;
        if lower >= upper {
            let reason = format!("{}: a buffer lives from {lower} to {upper}", path.display());
            return Err(reason.into());
        }
        requests.push(Request {
            bytes: size,
            live: (lower, upper - 1),
        });
    }
    Ok(requests)
}
