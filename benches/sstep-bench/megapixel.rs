//! What a megapixel costs as images grow and the cap does not.
//!
//! A step that stores everything of a small image is the measure; larger ones
//! are planned under one fixed cap. Images are computed where they are read, so
//! that they take no memory beside the plan's.

use std::path::PathBuf;
use std::time::Instant;

use sstep::{Budget, ByteSize, Session, SessionOptions, Strategy};

use crate::Outcome;
use crate::step::{Net, NetNorm, image, median};
use crate::table::{Cell, Table};

/// Measures seconds per megapixel of growing images under one cap.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The network.
    #[arg(value_enum)]
    net: Net,
    /// Extents of the square images.
    #[arg(long, value_delimiter = ',', default_values_t = [4096, 8192, 16384])]
    sizes: Vec<usize>,
    /// Extent of the image whose step stores everything.
    #[arg(long, default_value_t = 1024)]
    untiled: usize,
    /// The cap.
    #[arg(long, default_value = "512MiB")]
    budget: ByteSize,
    /// The network's norm.
    #[arg(long, value_enum, default_value_t = NetNorm::Group)]
    norm: NetNorm,
    /// Host memory that plans may use.
    #[arg(long, default_value = "0B")]
    host: ByteSize,
    /// Disk space that plans may use.
    #[arg(long, default_value = "0B")]
    disk: ByteSize,
    /// Folder of the spill file; by default the system's for temporary files.
    #[arg(long, value_name = "DIR")]
    disk_dir: Option<PathBuf>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Steps of each size, of which the median counts; one more, untimed, comes
    /// before them where everything is stored.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Outcome {
    rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads)
        .build_global()?;
    let mut table = Table::new(&[
        "size",
        "plan",
        "plan_secs",
        "secs",
        "per_megapixel",
        "of_untiled",
        "predicted",
        "device",
        "host",
        "disk",
    ]);
    let mut untiled = None;
    let wanted = std::iter::once((args.untiled, Strategy::StoreAll, args.rounds + 1));
    let capped = |&size| (size, Strategy::Optimal, args.rounds);
    for (size, strategy, steps) in wanted.chain(args.sizes.iter().map(capped)) {
        let image = image(size)?;
        let device_bytes = match strategy {
            // The arena is as large as the budget: no larger than what is used.
            Strategy::StoreAll => {
                let mut all = session(args, strategy, 1 << 40)?;
                all.plan(image.shape().dims())?.predicted.peak_bytes
            }
            _ => args.budget.0,
        };
        let mut session = session(args, strategy, device_bytes)?;
        let started = Instant::now();
        let predicted = match session.plan(image.shape().dims()) {
            Ok(plan) => plan.predicted,
            Err(error) => {
                eprintln!("{size}: {error}");
                continue;
            }
        };
        let plan_secs = started.elapsed().as_secs_f64();
        let (mut secs, mut bytes) = (Vec::new(), [0; 3]);
        for round in 0..steps {
            let label = args.net.label(size)?;
            let step = session.step(image.clone(), label, 0.0, &mut |_| {})?;
            let measured = &step.report.measured;
            eprintln!("{size}: {:.2} s, loss {}", measured.secs, step.loss);
            // The first step of several also touches the memory for the first time.
            if round > 0 || steps == 1 {
                secs.push(measured.secs);
            }
            bytes = [
                measured.peak_bytes,
                measured.host_peak_bytes,
                measured.disk_peak_bytes,
            ];
        }
        let Some(secs) = median(&secs) else { continue };
        let per_megapixel = secs / (size * size) as f64 * 1e6;
        let untiled = *untiled.get_or_insert(per_megapixel);
        let name = match strategy {
            Strategy::StoreAll => "store-all".to_owned(),
            _ => args.budget.to_string(),
        };
        table.row(vec![
            size.to_string().into(),
            name.into(),
            Cell::number(plan_secs, 1),
            Cell::number(secs, 2),
            Cell::number(per_megapixel, 4),
            Cell::number(per_megapixel / untiled, 2),
            Cell::number(predicted.secs, 2),
            Cell::new(ByteSize(bytes[0]).to_string(), bytes[0]),
            Cell::new(ByteSize(bytes[1]).to_string(), bytes[1]),
            Cell::new(ByteSize(bytes[2]).to_string(), bytes[2]),
        ]);
    }
    if !args.json {
        println!("{}, {} threads", args.net.name(), args.threads);
    }
    table.print(args.json);
    Ok(())
}

fn session(
    args: &Args,
    strategy: Strategy,
    device_bytes: u64,
) -> Result<Session<f32>, Box<dyn std::error::Error>> {
    let budget = Budget {
        device_bytes,
        host_bytes: args.host.0,
        disk_bytes: args.disk.0,
    };
    let mut options = SessionOptions {
        strategy,
        ..SessionOptions::new(budget)
    };
    if let Some(dir) = &args.disk_dir {
        options.disk_dir.clone_from(dir);
    }
    args.net.session(args.norm, options)
}
