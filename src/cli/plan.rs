//! `sstep plan`: what a training step would take, without taking it.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use sstep::config::{OptimizerConfig, OptimizerName};
use sstep::{DType, Error, Plan, Session, SessionOptions, Tape};

use super::args::{ConvArgs, MemoryArgs, ModelArgs, SizeArgs};
use super::progress::spin;

/// Plan one training step and explain the plan.
///
/// Prints, for a network, an image size and a budget, each tile loop of the
/// step with its tiles, what it reads and stores, and why; and the predicted
/// peak, time and traffic. The plan has passed the verifier. Nothing is
/// computed, so any image size will do on any machine.
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
    memory: MemoryArgs,
    /// Optimiser, whose state is part of the budget: sgd, adam or adamw.
    #[arg(long, default_value = "adamw")]
    optimizer: OptimizerName,
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
    let options = SessionOptions {
        budget: args.memory.budget()?,
        strategy: args.memory.strategy,
        machine: args.conv.machine(),
        seed: 0,
        rule: Some(rule),
    };
    let begin = Instant::now();
    let (subject, plan) = match &args.tape {
        Some(path) => {
            let tape = read_tape(path)?;
            let subject = path.display().to_string();
            let plan = spin("planning", args.json, || match tape.dtype() {
                DType::F32 => Session::<f32>::from_tape(tape, options)?.plan(&[]),
                DType::F64 => Session::<f64>::from_tape(tape, options)?.plan(&[]),
            })?;
            (subject, plan)
        }
        None => {
            let (Some(spec), Some(size)) = (args.model.spec(), &args.size.size) else {
                return Err(Error::Usage {
                    reason: "give --model and --size, or --tape".to_owned(),
                });
            };
            let image = [&[args.size.batch, spec.in_channels], &size.spatial()[..]].concat();
            let subject = format!("{} on {size}", spec.name);
            let plan = spin("planning", args.json, || match spec.dtype {
                DType::F32 => Session::<f32>::new(spec, options)?.plan(&image),
                DType::F64 => Session::<f64>::new(spec, options)?.plan(&image),
            })?;
            (subject, plan)
        }
    };
    let secs = begin.elapsed().as_secs_f64();
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
        "{subject}\n{}\n\nverified; planned in {secs:.1} s",
        text.trim_end()
    ));
    Ok(())
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
