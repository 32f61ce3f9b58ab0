//! All strategies side by side, at the same caps.

use std::path::{Path, PathBuf};

use sstep::nn::Norm;
use sstep::{Budget, ByteSize, Machine, Plan, PlanError, Profile, Strategy, plan};

use crate::Outcome;
use crate::cases::{Case, case, extent, norm_name};
use crate::chart::{Line, chart};
use crate::table::{Cell, Table};
use crate::trial;

/// Plan steps of several networks with every strategy under several caps.
///
/// Prints what each promises, and the smallest cap of those that have no plan.
/// Fails if any strategy is predicted faster than `optimal`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Networks.
    #[arg(long, value_delimiter = ',', default_value = "resnet34")]
    nets: Vec<String>,
    /// Norms: frozen-batch or group.
    #[arg(long, value_delimiter = ',', default_value = "frozen-batch")]
    norms: Vec<Norm>,
    /// Extents of each axis of the image, for networks of two axes.
    #[arg(long, value_delimiter = ',', default_value = "4096")]
    sizes: Vec<usize>,
    /// Extents of each axis of the image, for networks of three axes.
    #[arg(long = "sizes-3d", value_delimiter = ',', default_value = "256")]
    sizes_3d: Vec<usize>,
    /// Caps, as fractions 1/N of store-all.
    #[arg(long, value_delimiter = ',', default_value = "1,2,5,10,20,50,100")]
    fractions: Vec<u64>,
    /// Host memory.
    #[arg(long, default_value = "64GiB")]
    host: ByteSize,
    /// Disk space that plans may use.
    #[arg(long, default_value = "0")]
    disk: ByteSize,
    /// Machine profile; by default the built-in one.
    #[arg(long, value_name = "FILE")]
    machine: Option<String>,
    /// Also carry out, on the CPU, the plans that fit this machine's free memory.
    #[arg(long)]
    measure: bool,
    /// With --measure: leave out plans predicted to take longer.
    #[arg(long, value_name = "SECS", default_value_t = 60.0)]
    most_secs: f64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Write `strategies-NET-NORM-SIZE.md` and `.svg` into this folder.
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Columns that tell cases apart, before [`COLUMNS`].
const CASE_COLUMNS: [&str; 3] = ["net", "norm", "size"];
const COLUMNS: [&str; 10] = [
    "cap",
    "of store-all",
    "strategy",
    "step secs",
    "flops x",
    "traffic",
    "peak",
    "host",
    "measured secs",
    "measured peak",
];
/// Those after the strategy.
const RESULTS: usize = COLUMNS.len() - 3;

/// Of [`COLUMNS`] those that are filled: without `--measure` the last two are not.
fn columns(args: &Args) -> &'static [&'static str] {
    if args.measure {
        &COLUMNS
    } else {
        &COLUMNS[..COLUMNS.len() - 2]
    }
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Outcome {
    let machine = match &args.machine {
        Some(file) => Profile::find(Some(file), None)?.machine,
        None => Machine::default(),
    };
    let columns = [&CASE_COLUMNS[..], columns(args)].concat();
    let mut table = Table::new(&columns);
    let mut beaten = Vec::new();
    for net in &args.nets {
        let is_3d = net.ends_with("3d");
        for &norm in &args.norms {
            for &size in if is_3d { &args.sizes_3d } else { &args.sizes } {
                let extent = extent(net, size);
                let title = format!("{net}, {} norm, {extent}", norm_name(norm));
                let found = compare(args, &machine, &case(net, norm, size)?, &title)?;
                for row in &found.rows {
                    let case: [Cell; 3] = [
                        net.as_str().into(),
                        norm_name(norm).into(),
                        extent.as_str().into(),
                    ];
                    table.row(case.into_iter().chain(row.iter().cloned()).collect());
                }
                if let Some(folder) = &args.out {
                    let name = format!("strategies-{net}-{}-{size}", norm_name(norm));
                    write(args, &machine, &found, folder, &name, &title)?;
                }
                beaten.extend(found.beaten.iter().map(|b| format!("{title}: {b}")));
            }
        }
    }
    table.print(args.json);
    if beaten.is_empty() {
        Ok(())
    } else {
        Err(format!("predicted faster than optimal: {}", beaten.join(", ")).into())
    }
}

/// All strategies at all caps, for one case.
#[derive(Default)]
struct Found {
    /// Cells of [`COLUMNS`].
    rows: Vec<Vec<Cell>>,
    lines: Vec<Line>,
    /// What is predicted faster than `optimal` at the same cap.
    beaten: Vec<String>,
}

fn compare(
    args: &Args,
    machine: &Machine,
    case: &Case,
    title: &str,
) -> Result<Found, Box<dyn std::error::Error>> {
    let ask = |device_bytes: u64, strategy: Strategy| {
        let budget = Budget {
            device_bytes,
            host_bytes: args.host.0,
            disk_bytes: args.disk.0,
        };
        plan(&case.tape, &case.spec, machine, budget, strategy)
    };
    let untiled = ask(1 << 50, Strategy::StoreAll)?.predicted.peak_bytes;
    let mut found = Found::default();
    for &fraction in &args.fractions {
        let cap = untiled / fraction.max(1);
        let mut predicted: Vec<(Strategy, f64)> = Vec::new();
        for strategy in Strategy::ALL {
            // The table comes at the end; this is for who waits.
            eprintln!("{title}: {strategy} at 1/{fraction}");
            let results = match ask(cap, strategy) {
                Ok(plan) => {
                    let secs = plan.predicted.secs;
                    predicted.push((strategy, secs));
                    let point = (cap as f64, secs);
                    let known = found.lines.iter_mut().find(|l| l.name == strategy.name());
                    match known {
                        Some(line) => line.points.push(point),
                        None => found.lines.push(Line {
                            name: strategy.name().to_owned(),
                            points: vec![point],
                        }),
                    }
                    results(args, case, &plan)?
                }
                Err(PlanError::Infeasible { smallest, .. }) => {
                    without(3, format!("needs {smallest}"))
                }
                Err(PlanError::HostTooSmall { .. }) => without(4, "too small".to_owned()),
                Err(PlanError::GaveUp { .. }) => without(0, "not found".to_owned()),
                Err(error) => return Err(error.into()),
            };
            let start: [Cell; 3] = [
                ByteSize(cap).to_string().into(),
                format!("1/{fraction}").into(),
                strategy.name().into(),
            ];
            let row = start.into_iter().chain(results);
            found.rows.push(row.take(columns(args).len()).collect());
        }
        let faster = faster_than_optimal(&predicted).into_iter();
        (found.beaten).extend(faster.map(|s| format!("{s} at 1/{fraction}")));
    }
    Ok(found)
}

/// What a plan promises, and what it took if it was carried out.
fn results(args: &Args, case: &Case, plan: &Plan) -> Result<Vec<Cell>, Box<dyn std::error::Error>> {
    let p = &plan.predicted;
    let mut cells: Vec<Cell> = vec![
        Cell::number(p.secs, 2),
        Cell::number(p.flops / p.flops_once, 2),
        ByteSize(p.h2d_bytes + p.d2h_bytes).to_string().into(),
        ByteSize(p.peak_bytes).to_string().into(),
        ByteSize(p.host_peak_bytes).to_string().into(),
    ];
    if args.measure && trial::fits(plan, args.most_secs) {
        let measured = trial::measure(case, plan)?;
        cells.push(Cell::number(measured.secs, 2));
        cells.push(ByteSize(measured.peak_bytes).to_string().into());
    }
    cells.resize(RESULTS, Cell::none());
    Ok(cells)
}

/// Nothing, for the reason that stands in the cell `at`.
fn without(at: usize, reason: String) -> Vec<Cell> {
    let mut cells = vec![Cell::none(); RESULTS];
    cells[at] = reason.into();
    cells
}

/// Strategies whose plan is predicted faster than that of `optimal`, beyond rounding;
/// all of them if `optimal` has none.
fn faster_than_optimal(predicted: &[(Strategy, f64)]) -> Vec<Strategy> {
    let optimal = predicted.iter().find(|(s, _)| *s == Strategy::Optimal);
    let best = optimal.map_or(f64::INFINITY, |(_, secs)| *secs);
    let faster = predicted.iter().filter(|(_, s)| *s < best * (1.0 - 1e-9));
    faster.map(|(strategy, _)| *strategy).collect()
}

/// Writes a case's table as Markdown, and its chart.
fn write(
    args: &Args,
    machine: &Machine,
    found: &Found,
    folder: &Path,
    name: &str,
    title: &str,
) -> Outcome {
    let mut table = Table::new(columns(args));
    for row in &found.rows {
        table.row(row.clone());
    }
    let measured = if args.measure {
        format!(
            "; measured on {} threads of the CPU, the second of two steps, where a plan fits the \
             free memory and is predicted to take at most {} s",
            rayon::current_num_threads(),
            args.most_secs
        )
    } else {
        String::new()
    };
    let text = format!(
        "# {title}: strategies at the same caps\n\n{} of host memory; seconds as predicted by \
         the profile `{}`{measured}.\n\n![]({name}.svg)\n\n{}",
        args.host,
        machine.name,
        table.markdown()
    );
    std::fs::create_dir_all(folder)?;
    std::fs::write(folder.join(format!("{name}.md")), text)?;
    std::fs::write(
        folder.join(format!("{name}.svg")),
        chart(title, &found.lines),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_beats_optimal_is_named() {
        use Strategy::{Checkpoint, Optimal, StoreAll};
        let even = [(StoreAll, 2.0), (Optimal, 2.0), (Checkpoint, 3.0)];
        assert!(faster_than_optimal(&even).is_empty());
        let beaten = [(Optimal, 2.0), (StoreAll, 1.9)];
        assert_eq!(faster_than_optimal(&beaten), [StoreAll]);
        assert_eq!(faster_than_optimal(&[(Checkpoint, 9.0)]), [Checkpoint]);
    }

    #[test]
    fn small_steps_run_as_promised() {
        let machine = Machine::default();
        let budget = Budget {
            device_bytes: 1 << 32,
            host_bytes: 1 << 32,
            disk_bytes: 0,
        };
        let runs = [
            ("resnet10", 32, Strategy::Optimal),
            ("unet3d", 16, Strategy::StoreAll),
        ];
        for (net, size, strategy) in runs {
            let case = case(net, Norm::Group, size).expect("a network");
            let plan = plan(&case.tape, &case.spec, &machine, budget, strategy).expect("a plan");
            assert!(!trial::fits(&plan, 0.0), "no step takes no time");
            let measured = trial::measure(&case, &plan).expect("it runs");
            assert!(measured.secs > 0.0 && measured.peak_bytes > 0);
        }
    }
}
