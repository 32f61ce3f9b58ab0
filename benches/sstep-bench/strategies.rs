//! All strategies side by side, at the same caps.

use std::path::PathBuf;

use sstep::nn::Norm;
use sstep::{Budget, ByteSize, Machine, PlanError, Strategy, plan};

use crate::Outcome;
use crate::cases::{case, extent, norm_name};
use crate::chart::{Line, chart};
use crate::table::{Cell, Table};

/// Plan one network's step with every strategy under several caps.
///
/// Prints what each promises, and the smallest cap of those that have no plan.
/// Fails if any strategy is predicted faster than `optimal`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Network.
    #[arg(long, default_value = "resnet34")]
    net: String,
    /// Norm: frozen-batch or group.
    #[arg(long, default_value = "frozen-batch")]
    norm: Norm,
    /// Extent of each axis of the image.
    #[arg(long, default_value_t = 4096)]
    size: usize,
    /// Caps, as fractions 1/N of store-all.
    #[arg(long, value_delimiter = ',', default_value = "1,2,5,10,20,50,100")]
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
    /// Write `strategies-NET-NORM-SIZE.md` and `.svg` into this folder.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Outcome {
    let case = case(&args.net, args.norm, args.size)?;
    let machine = Machine::default();
    let ask = |device_bytes: u64, strategy: Strategy| {
        let budget = Budget {
            device_bytes,
            host_bytes: args.host.0,
            disk_bytes: args.disk.0,
        };
        plan(&case.tape, &case.spec, &machine, budget, strategy)
    };
    let stored = ask(1 << 50, Strategy::StoreAll)?;
    let untiled = stored.predicted.peak_bytes;
    let mut table = Table::new(&[
        "cap",
        "of store-all",
        "strategy",
        "step secs",
        "flops x",
        "traffic",
        "peak",
        "host",
    ]);
    let mut lines: Vec<Line> = Vec::new();
    let mut beaten = Vec::new();
    for &fraction in &args.fractions {
        let cap = untiled / fraction;
        let mut best = f64::INFINITY;
        for strategy in Strategy::ALL {
            let start = [
                ByteSize(cap).to_string().into(),
                format!("1/{fraction}").into(),
                strategy.name().into(),
            ];
            let rest = match ask(cap, strategy) {
                Ok(plan) => {
                    let p = &plan.predicted;
                    if strategy == Strategy::Optimal {
                        best = p.secs;
                    } else if p.secs < best * (1.0 - 1e-9) {
                        beaten.push(format!("{strategy} at 1/{fraction}"));
                    }
                    match lines.iter_mut().find(|l| l.name == strategy.name()) {
                        Some(line) => line.points.push((cap as f64, p.secs)),
                        None => lines.push(Line {
                            name: strategy.name().to_owned(),
                            points: vec![(cap as f64, p.secs)],
                        }),
                    }
                    vec![
                        Cell::number(p.secs, 2),
                        Cell::number(p.flops / p.flops_once, 2),
                        ByteSize(p.h2d_bytes + p.d2h_bytes).to_string().into(),
                        ByteSize(p.peak_bytes).to_string().into(),
                        ByteSize(p.host_peak_bytes).to_string().into(),
                    ]
                }
                Err(PlanError::Infeasible { smallest, .. }) => {
                    let mut cells = vec![Cell::none(); 5];
                    cells[3] = format!("needs {smallest}").into();
                    cells
                }
                Err(PlanError::HostTooSmall { .. }) => {
                    let mut cells = vec![Cell::none(); 5];
                    cells[4] = "too small".into();
                    cells
                }
                Err(error) => return Err(error.into()),
            };
            table.row(start.into_iter().chain(rest).collect());
        }
    }
    table.print(args.json);
    if let Some(folder) = &args.out {
        let norm = norm_name(args.norm);
        let name = format!("strategies-{}-{norm}-{}", args.net, args.size);
        let title = format!(
            "{}, {norm} norm, {}",
            args.net,
            extent(&args.net, args.size)
        );
        std::fs::create_dir_all(folder)?;
        let text = format!(
            "# {title}: strategies at the same caps\n\n{} of host memory; seconds as predicted by \
             the profile `{}`.\n\n![]({name}.svg)\n\n{}",
            args.host,
            machine.name,
            table.markdown()
        );
        std::fs::write(folder.join(format!("{name}.md")), text)?;
        std::fs::write(folder.join(format!("{name}.svg")), chart(&title, &lines))?;
    }
    if beaten.is_empty() {
        Ok(())
    } else {
        Err(format!("predicted faster than optimal: {}", beaten.join(", ")).into())
    }
}
