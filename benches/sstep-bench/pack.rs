//! Packs buffers that somebody else's compiler left: static allocation
//! instances in the format of minimalloc.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::Deserialize;
use sstep_planner::pack::{Fit, Request, check, fit, load};

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
    /// Placements tried at most, per file.
    #[arg(long, value_name = "N", default_value_t = 20_000_000)]
    nodes: u64,
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
    let columns = [
        "file", "buffers", "load", "capacity", "result", "peak", "secs",
    ];
    let mut table = Table::new(&columns);
    let mut all_fit = true;
    for path in &args.files {
        let requests = read(path)?;
        let begin = Instant::now();
        let found = fit(&requests, 1, args.capacity_bytes, args.nodes);
        let secs = begin.elapsed().as_secs_f64();
        let (result, peak): (&str, Cell) = match found {
            Fit::Packed(packing) => {
                check(&requests, 1, &packing)?;
                ("packed, checked", packing.peak_bytes.into())
            }
            Fit::Impossible => ("impossible", Cell::none()),
            Fit::GaveUp => ("gave up", Cell::none()),
        };
        all_fit &= result.starts_with("packed");
        let name = path.file_name().unwrap_or(path.as_os_str());
        table.row(vec![
            name.to_string_lossy().into_owned().into(),
            requests.len().into(),
            load(&requests, 1).into(),
            args.capacity_bytes.into(),
            result.into(),
            peak,
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
