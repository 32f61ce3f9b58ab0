//! What a megapixel costs as images grow and the cap does not.
//!
//! A step that stores everything of a small image is the measure; larger ones
//! are planned under one fixed cap. Images lie in memory, twelve bytes a pixel.

use std::time::Instant;

use sstep::{Budget, ByteSize, SessionOptions, Strategy};

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
    /// Host memory that plans may use.
    #[arg(long, default_value = "0B")]
    host: ByteSize,
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
    ]);
    let mut untiled = None;
    let wanted = std::iter::once((args.untiled, Strategy::StoreAll, 1 << 40, args.rounds + 1));
    let capped = |&size| (size, Strategy::Optimal, args.budget.0, args.rounds);
    for (size, strategy, device_bytes, steps) in wanted.chain(args.sizes.iter().map(capped)) {
        let budget = Budget {
            device_bytes,
            host_bytes: args.host.0,
            disk_bytes: 0,
        };
        let options = SessionOptions {
            strategy,
            ..SessionOptions::new(budget)
        };
        let mut session = args.net.session(NetNorm::Group, options)?;
        let image = image(size)?;
        let started = Instant::now();
        let predicted = match session.plan(image.shape().dims()) {
            Ok(plan) => plan.predicted,
            Err(error) => {
                eprintln!("{size}: {error}");
                continue;
            }
        };
        let plan_secs = started.elapsed().as_secs_f64();
        let (mut secs, mut bytes) = (Vec::new(), [0, 0]);
        for round in 0..steps {
            let label = args.net.label(size)?;
            let step = session.step(image.clone(), label, 0.0, &mut |_| {})?;
            let measured = &step.report.measured;
            eprintln!("{size}: {:.2} s, loss {}", measured.secs, step.loss);
            // The first step of several also touches the memory for the first time.
            if round > 0 || steps == 1 {
                secs.push(measured.secs);
            }
            bytes = [measured.peak_bytes, measured.host_peak_bytes];
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
        ]);
    }
    if !args.json {
        println!("{}, {} threads", args.net.name(), args.threads);
    }
    table.print(args.json);
    Ok(())
}
