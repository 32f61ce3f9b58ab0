//! `sstep plan`: what a training step would take, without taking it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use sstep::config::{OptimizerConfig, OptimizerName};
use sstep::{
    ByteSize, CapPoint, Comparison, DType, Error, Plan, Session, SessionOptions, Strategy,
    StrategyLine, Tape,
};

use super::args::{
    ConvArgs, DeviceArgs, MachineArgs, MemoryArgs, ModelArgs, PrecisionArgs, SizeArgs,
};
use super::progress::spin;

/// Plan one training step and explain the plan.
///
/// Prints, for a network, an image size and a budget, each tile loop of the
/// step with its tiles, what it reads and stores, and why; and the predicted
/// peak, time and traffic. The plan has passed the verifier. Nothing is
/// computed, so any image size will do on any machine; --device takes the profile
/// of a device that is there, --machine h200 that of one that is not. --html, --dot and --trace
/// draw the same plan: see docs/plan.md.
///
///   sstep plan --model resnet34 --size 65536x65536 --budget 8GiB --host 64GiB
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, args_override_self = true)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    size: SizeArgs,
    /// A network as text instead of a built-in one: see docs/tape.md.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["model", "size"])]
    tape: Option<PathBuf>,
    #[command(flatten)]
    conv: ConvArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    on: DeviceArgs,
    #[command(flatten)]
    memory: MemoryArgs,
    /// Optimiser, whose state is part of the budget: sgd, adam or adamw.
    #[arg(long, default_value = "adamw")]
    optimizer: OptimizerName,
    /// Write the plan as a page for a browser: memory against the cap, transfers,
    /// stages with their reasons, other strategies and caps. See docs/plan.md.
    #[arg(long, value_name = "FILE.html", help_heading = "Views")]
    html: Option<PathBuf>,
    /// With --html: leave out other strategies and caps, each of which is another
    /// planning.
    #[arg(long, requires = "html", help_heading = "Views")]
    no_comparison: bool,
    /// Write the plan as a graph of stages, for graphviz.
    #[arg(long, value_name = "FILE.dot", help_heading = "Views")]
    dot: Option<PathBuf>,
    /// Write the predicted timeline as a trace, for Perfetto or chrome://tracing.
    #[arg(long, value_name = "FILE.json", help_heading = "Views")]
    trace: Option<PathBuf>,
    /// Print the summary only.
    #[arg(long)]
    summary: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    let rule = OptimizerConfig {
        name: args.optimizer,
        ..OptimizerConfig::default()
    }
    .rule()?;
    let device = args.on.find()?;
    let winograd = !args.conv.no_winograd;
    let profile = args.machine.profile(winograd, device.as_ref())?;
    let budget = args.memory.budget()?;
    let options = SessionOptions {
        disk_dir: args.memory.disk_dir(&budget)?,
        strategy: args.memory.strategy,
        objective: args.memory.objective,
        machine: profile.machine.clone(),
        precision: args.precision.precision.unwrap_or_default(),
        loss_scale: args.precision.loss_scale,
        ..SessionOptions::new(budget).training(rule)
    };
    let begin = Instant::now();
    let subject = subject(args)?;
    let plan = spin("planning", args.json, || plan_with(args, options.clone()))?;
    let secs = begin.elapsed().as_secs_f64();
    write_views(args, &subject, &plan, &options)?;
    if args.json {
        super::say_json(&describe(&subject, &plan, secs));
        return Ok(());
    }
    let text = if args.summary {
        plan.summary()
    } else {
        plan.explain()
    };
    super::say(&format!(
        "{subject}\n{}\n\nverified; planned in {secs:.1} s for {profile}",
        text.trim_end()
    ));
    Ok(())
}

/// What is planned, in words.
fn subject(args: &Args) -> Result<String, Error> {
    match (&args.tape, args.model.spec(), &args.size.size) {
        (Some(path), _, _) => Ok(path.display().to_string()),
        (None, Some(spec), Some(size)) => Ok(format!("{} on {size}", spec.name)),
        (None, _, _) => Err(Error::Usage {
            reason: "give --model and --size, or --tape".to_owned(),
        }),
    }
}

/// Plans what the arguments name.
fn plan_with(args: &Args, options: SessionOptions) -> Result<Arc<Plan>, Error> {
    if let Some(path) = &args.tape {
        let tape = read_tape(path)?;
        return match tape.dtype() {
            DType::F64 => Session::<f64>::from_tape(tape, options)?.plan(&[]),
            DType::F32 | DType::Bf16 | DType::F16 => {
                Session::<f32>::from_tape(tape, options)?.plan(&[])
            }
        };
    }
    let (Some(spec), Some(size)) = (args.model.spec(), &args.size.size) else {
        return Err(Error::Usage {
            reason: "give --model and --size, or --tape".to_owned(),
        });
    };
    let image = [&[args.size.batch, spec.in_channels], &size.spatial()[..]].concat();
    match spec.dtype {
        DType::F64 => Session::<f64>::new(spec, options)?.plan(&image),
        DType::F32 | DType::Bf16 | DType::F16 => Session::<f32>::new(spec, options)?.plan(&image),
    }
}

/// Device caps of the cap-time curve, as parts of the given one.
const CAPS: [(u64, u64); 6] = [(1, 2), (3, 4), (1, 1), (3, 2), (2, 1), (4, 1)];

/// Writes the files that were asked for.
fn write_views(
    args: &Args,
    subject: &str,
    plan: &Plan,
    options: &SessionOptions,
) -> Result<(), Error> {
    let write = |path: &Path, text: &str| {
        std::fs::write(path, text).map_err(|error| Error::Io {
            path: path.to_path_buf(),
            what: "writing",
            reason: error.to_string(),
        })
    };
    if let Some(path) = &args.dot {
        write(path, &plan.dot())?;
    }
    if let Some(path) = &args.trace {
        write(path, &plan.trace().to_string())?;
    }
    if let Some(path) = &args.html {
        let comparison = if args.no_comparison {
            Comparison::default()
        } else {
            compare(args, plan, options)?
        };
        write(path, &plan.html(subject, &comparison))?;
    }
    Ok(())
}

/// Plans with all strategies, and at other caps. That there is no plan is an
/// answer, too.
///
/// # Errors
/// What keeps the step from being planned at all.
fn compare(args: &Args, plan: &Plan, options: &SessionOptions) -> Result<Comparison, Error> {
    let again = |what: String, options: SessionOptions| match spin(&what, args.json, || {
        plan_with(args, options)
    }) {
        Ok(plan) => Ok(Ok(plan.predicted)),
        Err(Error::Plan(none)) => Ok(Err(none.to_string())),
        Err(error) => Err(error),
    };
    let mut comparison = Comparison::default();
    for strategy in Strategy::ALL {
        let outcome = if strategy == plan.strategy {
            Ok(plan.predicted)
        } else {
            let options = SessionOptions {
                strategy,
                ..options.clone()
            };
            again(format!("planning {strategy}"), options)?
        };
        comparison.strategies.push(StrategyLine {
            name: strategy.to_string(),
            outcome,
        });
    }
    for (times, over) in CAPS {
        let device_bytes = (options.budget.device_bytes / over).saturating_mul(times);
        let outcome = if times == over {
            Ok(plan.predicted)
        } else {
            let mut options = options.clone();
            options.budget.device_bytes = device_bytes;
            let cap = ByteSize(device_bytes);
            again(format!("planning for {cap}"), options)?
        };
        comparison.caps.push(CapPoint {
            device_bytes: if times == over {
                options.budget.device_bytes
            } else {
                device_bytes
            },
            secs: outcome.ok().map(|p| p.secs),
        });
    }
    Ok(comparison)
}

/// A plan for machines to read.
fn describe(subject: &str, plan: &Plan, secs: f64) -> serde_json::Value {
    json!({
        "subject": subject,
        "verified": true,
        "planning_secs": secs,
        "plan": plan.explained(),
    })
}

/// Reads a network as text.
///
/// # Errors
/// [`Error::Io`] or [`Error::File`] with the line that is wrong.
pub fn read_tape(path: &Path) -> Result<Tape, Error> {
    let text = std::fs::read_to_string(path).map_err(|error| Error::Io {
        path: path.to_path_buf(),
        what: "reading",
        reason: error.to_string(),
    })?;
    Tape::parse(&text).map_err(|error| Error::File {
        path: path.to_path_buf(),
        reason: error.to_string(),
    })
}
