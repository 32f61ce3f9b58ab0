//! `sstep grad`: loss and gradients of any network on given tensors.
//!
//! This is how an outsider checks any network, budget and strategy against
//! another framework: tensors in, tensors out, both as safetensors.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde_json::json;
use sstep::nn::{self, Init, init_values, inits_of};
use sstep::params::{self, Element, TensorFile, Tensors};
use sstep::source::ArraySource;
use sstep::{
    DType, DeviceInfo, Error, Feed, Feeds, LossScale, Op, Program, REPORT_HEADING, Report, Session,
    SessionOptions, Tape, differentiate, reference,
};

use super::args::{DeviceArgs, MachineArgs, MemoryArgs, ModelArgs, PrecisionArgs, SizeArgs, on};
use super::plan::read_tape;
use super::progress::{Bar, spin};

/// Run one forward and backward pass on given tensors.
///
/// Reads inputs and parameters by name from a safetensors file and writes the
/// loss (`loss`), the gradients (`grad/<name>`) and the other outputs of the
/// network by name. Parameters that the file lacks are drawn from the seed. See
/// docs/tape.md for the text form of a network and the names.
#[derive(Debug, clap::Args)]
#[command(args_override_self = true)]
pub struct Args {
    /// A network as text: see docs/tape.md. Or name a built-in one by --model
    /// and --size; its inputs are `image` and `labels`.
    #[arg(conflicts_with_all = ["model", "size"])]
    tape: Option<PathBuf>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    size: SizeArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    /// Inputs and parameters, by name of the tape's leaves.
    #[arg(long, value_name = "FILE")]
    tensors: PathBuf,
    /// Where to write loss, gradients and other outputs.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    #[command(flatten)]
    machine: MachineArgs,
    #[command(flatten)]
    memory: MemoryArgs,
    #[command(flatten)]
    on: DeviceArgs,
    /// Compute untiled, node by node, without a plan: the oracle that every plan
    /// is held against. Ignores budget and strategy.
    #[arg(long)]
    reference: bool,
    /// Compute 3 x 3 convolutions by Winograd's algorithm where that is faster, as
    /// training does; without, every convolution is summed tap by tap.
    #[arg(long)]
    winograd: bool,
    /// Number of the step, from 0: with the seed it decides dropout.
    #[arg(long, value_name = "N", default_value_t = 0)]
    step: u64,
    /// Seed of dropout and of parameters that are not given.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> Result<(), Error> {
    params::check_writable(&args.out)?;
    let device = args.on.find()?;
    let tape = match (&args.tape, args.model.spec(), &args.size.size) {
        (Some(path), None, _) => read_tape(path)?,
        (None, Some(spec), Some(size)) => {
            let mut net = nn::build(&spec, args.size.batch, &size.spatial())?;
            net.tape.output(net.logits);
            net.tape
        }
        _ => {
            return Err(Error::Usage {
                reason: "give a .tape file, or --model and --size".to_owned(),
            });
        }
    };
    match tape.dtype() {
        DType::F64 => run_as::<f64>(args, tape, device.as_ref()),
        DType::F32 | DType::Bf16 | DType::F16 => run_as::<f32>(args, tape, device.as_ref()),
    }
}

fn run_as<T: Element>(args: &Args, tape: Tape, device: Option<&DeviceInfo>) -> Result<(), Error> {
    let Leaves { inputs, params } = read_leaves::<T>(args, &tape)?;
    let loss_name = match tape.outputs().first() {
        Some(&id) => tape.node(id).name.clone(),
        None => {
            return Err(Error::Usage {
                reason: "the tape declares no output; end it with `output <name of the loss>`"
                    .to_owned(),
            });
        }
    };
    let (outputs, report) = if args.reference {
        let precision = args.precision.precision.unwrap_or_default();
        let mut joint = precision.apply(tape)?;
        let usual = LossScale::Fixed(precision.loss_scale());
        let scale = args.precision.loss_scale.unwrap_or(usual);
        let spec = differentiate(&mut joint, None, scale)?;
        let program = Program::new(&joint, &spec)?;
        let leaves: Tensors<T> = inputs.into_iter().chain(params).collect();
        let outputs = spin("computing untiled", args.json, || {
            reference(&program, &leaves, args.step, args.seed)
        })?;
        (outputs, None)
    } else {
        let (outputs, report) = planned(args, tape, device, inputs, params)?;
        (outputs, Some(report))
    };
    let loss = outputs
        .get(&loss_name)
        .map_or(f64::NAN, |t| t.data[0].to_f64());
    let shapes: BTreeMap<String, Vec<usize>> = (outputs.iter())
        .map(|(name, t)| (result_name(name, &loss_name), t.shape.dims().to_vec()))
        .collect();
    let named = outputs
        .iter()
        .map(|(name, t)| (result_name(name, &loss_name), t));
    params::save(&args.out, named, &BTreeMap::new())?;
    if args.json {
        super::say_json(&json!({
            "loss": loss,
            "outputs": shapes,
            "out": args.out,
            "report": report,
        }));
    } else {
        let table = report.map_or(String::new(), |r| format!("{REPORT_HEADING}\n{r}"));
        let (n, out) = (shapes.len(), args.out.display());
        super::say(&format!(
            "loss {loss:.9}\n{table}wrote {n} tensors to {out}"
        ));
    }
    Ok(())
}

/// What the file calls an output.
fn result_name(name: &str, loss: &str) -> String {
    if name == loss {
        "loss".to_owned()
    } else {
        name.to_owned()
    }
}

/// Values of all leaves.
struct Leaves<T> {
    inputs: Tensors<T>,
    params: Tensors<T>,
}

fn read_leaves<T: Element>(args: &Args, tape: &Tape) -> Result<Leaves<T>, Error> {
    let file = TensorFile::open(&args.tensors)?;
    let mut leaves = Leaves {
        inputs: Tensors::new(),
        params: Tensors::new(),
    };
    let inits = inits_of(tape);
    let (mut missing, mut drawn) = (Vec::new(), Vec::new());
    let mut known = BTreeSet::new();
    for &id in tape.order() {
        let node = tape.node(id);
        let is_input = matches!(node.op, Op::Input { .. });
        if !is_input && !matches!(node.op, Op::Param { .. }) {
            continue;
        }
        let (name, shape) = (node.name.clone(), node.ty.shape);
        known.insert(name.clone());
        if file.contains(&name) {
            let tensor = file.tensor(&name, shape)?;
            let into = if is_input {
                &mut leaves.inputs
            } else {
                &mut leaves.params
            };
            into.insert(name, tensor);
        } else if is_input {
            missing.push(name);
        } else {
            let init = inits.get(&name).copied().unwrap_or(Init::Zeros);
            let data = init_values(init, &name, shape, args.seed);
            leaves
                .params
                .insert(name.clone(), sstep::Tensor { shape, data });
            drawn.push(name);
        }
    }
    // A mistyped parameter would otherwise silently be drawn instead.
    let unknown: Vec<String> = file
        .names()
        .filter(|n| !known.contains(*n))
        .map(str::to_owned)
        .collect();
    if !missing.is_empty() || !unknown.is_empty() {
        return Err(Error::TensorNames {
            path: args.tensors.clone(),
            missing,
            unknown,
        });
    }
    if !drawn.is_empty() {
        let first = drawn.iter().take(4).cloned().collect::<Vec<_>>().join(", ");
        let more = if drawn.len() > 4 { ", …" } else { "" };
        super::notice(&format!(
            "{} parameters drawn from seed {}: {first}{more}",
            drawn.len(),
            args.seed
        ));
    }
    Ok(leaves)
}

/// Plans and carries the plan out.
fn planned<T: Element>(
    args: &Args,
    tape: Tape,
    device: Option<&DeviceInfo>,
    inputs: Tensors<T>,
    params: Tensors<T>,
) -> Result<(Tensors<T>, Report), Error> {
    let mut feeds = Feeds::new();
    for (name, tensor) in inputs {
        let id = tape.by_name(&name);
        let feed = if id.is_some_and(|id| tape.ty(id).is_map()) {
            Feed::Source(Arc::new(ArraySource::new(tensor.shape, tensor.data)?))
        } else {
            Feed::Flat(tensor.data)
        };
        feeds.insert(name, feed);
    }
    let budget = args.memory.budget()?;
    let options = SessionOptions {
        disk_dir: args.memory.disk_dir(&budget)?,
        device: on(device),
        device_options: args.on.options(),
        strategy: args.memory.strategy,
        objective: args.memory.objective,
        // What is held against another framework sums as that does.
        machine: args.machine.profile(args.winograd, device)?.machine,
        precision: args.precision.precision.unwrap_or_default(),
        loss_scale: args.precision.loss_scale,
        seed: args.seed,
        ..SessionOptions::new(budget)
    };
    let mut session = Session::<T>::from_tape(tape, options)?;
    let plan = spin("planning", args.json, || session.plan(&[]))?;
    session.set_params(params)?;
    session.set_n_steps(args.step);
    let bar = Bar::new(1, 0, args.json);
    bar.message("running".to_owned());
    let step = session.run(&[], &feeds, 0.0, &mut |progress| bar.at(0, progress));
    bar.finish();
    let step = step?;
    Ok((
        step.report.outputs,
        Report::new(&plan, &step.report.measured),
    ))
}
