//! How long planning takes and how good the plans are, over networks and caps.

use std::time::Instant;

use sstep::nn::Norm;
use sstep::{Budget, ByteSize, Machine, Strategy, plan};

use crate::Outcome;
use crate::cases::{case, extent, norm_name};
use crate::table::{Cell, Table};

/// Plan steps of several networks under several caps.
///
/// Caps are fractions of what running the step untiled would take. Prints, for
/// each, the seconds of planning, the proven gap, and what the plan promises.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Networks.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "resnet18,resnet34,resnet50,unet2d"
    )]
    nets: Vec<String>,
    /// Norms: frozen-batch or group.
    #[arg(long, value_delimiter = ',', default_value = "frozen-batch,group")]
    norms: Vec<Norm>,
    /// Extent of each axis of the image.
    #[arg(long, default_value_t = 16384)]
    size: usize,
    /// Caps, as fractions 1/N of store-all.
    #[arg(long, value_delimiter = ',', default_value = "2,5,10,20,50,100")]
    fractions: Vec<u64>,
    /// Host memory.
    #[arg(long, default_value = "64GiB")]
    host: ByteSize,
    /// Disk space that plans may use.
    #[arg(long, default_value = "0")]
    disk: ByteSize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Print Markdown.
    #[arg(long, conflicts_with = "json")]
    markdown: bool,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Outcome {
    let mut table = Table::new(&[
        "net",
        "norm",
        "size",
        "nodes",
        "cap",
        "of store-all",
        "plan secs",
        "binaries",
        "gap %",
        "stages",
        "peak",
        "host",
        "flops x",
        "traffic",
        "step secs",
    ]);
    for name in &args.nets {
        for &norm in &args.norms {
            let case = case(name, norm, args.size)?;
            let mut untiled = None;
            for &fraction in &args.fractions {
                // The first plan says what store-all would take.
                let whole = match untiled {
                    Some(bytes) => bytes,
                    None => {
                        let ample = Budget {
                            device_bytes: 1 << 50,
                            host_bytes: 0,
                            disk_bytes: 0,
                        };
                        let machine = Machine::default();
                        let made =
                            plan(&case.tape, &case.spec, &machine, ample, Strategy::StoreAll)?;
                        *untiled.insert(made.predicted.untiled_bytes)
                    }
                };
                let budget = Budget {
                    device_bytes: whole / fraction,
                    host_bytes: args.host.0,
                    disk_bytes: args.disk.0,
                };
                let begin = Instant::now();
                let machine = Machine::default();
                let planned = plan(&case.tape, &case.spec, &machine, budget, Strategy::Optimal);
                let secs = begin.elapsed().as_secs_f64();
                // The table comes at the end; this is for who waits.
                eprintln!("{name} {} 1/{fraction}: {secs:.1} s", norm_name(norm));
                let start = [
                    name.as_str().into(),
                    norm_name(norm).into(),
                    extent(name, args.size).into(),
                    case.tape.len().into(),
                    ByteSize(budget.device_bytes).to_string().into(),
                    format!("1/{fraction}").into(),
                    Cell::number(secs, 1),
                ];
                let rest = match planned {
                    Ok(plan) => {
                        let p = &plan.predicted;
                        vec![
                            plan.n_binaries.into(),
                            Cell::number(100.0 * plan.gap, 1),
                            plan.stages.len().into(),
                            ByteSize(p.peak_bytes).to_string().into(),
                            ByteSize(p.host_peak_bytes).to_string().into(),
                            Cell::number(p.flops / p.flops_once, 2),
                            ByteSize(p.h2d_bytes + p.d2h_bytes).to_string().into(),
                            Cell::number(p.secs, 1),
                        ]
                    }
                    Err(error) => {
                        eprintln!("{name} at 1/{fraction}: {error}");
                        vec![Cell::none(); 8]
                    }
                };
                table.row(start.into_iter().chain(rest).collect());
            }
        }
    }
    if args.markdown {
        print!("{}", table.markdown());
    } else {
        table.print(args.json);
    }
    Ok(())
}
