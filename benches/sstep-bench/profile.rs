//! Whole training steps, predicted and measured, by family of kernels.
//!
//! What a plan predicts is the sum of its stages; here it is spelled out instruction
//! by instruction and added up by family, beside the seconds that the executor booked
//! for the same nodes. Of several steps the fastest counts, as in the profile.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use sstep::config::Size;
use sstep::nn::{ModelSpec, Norm};
use sstep::source::ArraySource;
use sstep::{
    ByteSize, Feed, Machine, Plan, Profile, Session, SessionOptions, Shape, Strategy, Timings,
    optim,
};
use sstep_planner::{Home, Instr, ItemRole, Kernel, Tier};

use crate::Outcome;
use crate::table::{Cell, Table};

/// Compares predicted with measured seconds of a step, by family of kernels.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The network.
    model: String,
    /// Size of the image.
    size: Size,
    /// Cap, as a part of what storing everything takes; 1 stores everything.
    #[arg(long, default_value_t = 1)]
    part: u64,
    /// Host memory that the plan may use.
    #[arg(long, default_value = "0")]
    host: ByteSize,
    /// Disk space that plans may use.
    #[arg(long, default_value = "0")]
    disk: ByteSize,
    /// Norm of the network.
    #[arg(long, default_value = "group")]
    norm: Norm,
    /// Channels of the first layer.
    #[arg(long)]
    width: Option<usize>,
    /// Machine profile; by default as for `sstep plan`.
    #[arg(long, value_name = "FILE")]
    machine: Option<String>,
    /// Steps.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Outcome {
    let profile = Profile::find(args.machine.as_deref(), None)?;
    let spec = ModelSpec {
        norm: Some(args.norm),
        width: args.width,
        ..ModelSpec::new(&args.model)
    };
    let spatial = args.size.spatial();
    let shape = Shape::map(1, spec.in_channels, &spatial);
    let session = |strategy, device_bytes| {
        let budget = sstep::Budget {
            device_bytes,
            host_bytes: args.host.0,
            disk_bytes: args.disk.0,
        };
        let options = SessionOptions {
            strategy,
            machine: profile.machine.clone(),
            ..SessionOptions::new(budget).training(optim::adamw())
        };
        Session::<f32>::new(spec.clone(), options)
    };
    let mut all = session(Strategy::StoreAll, 1 << 45)?;
    let whole = all.plan(shape.dims())?.predicted.peak_bytes;
    let strategy = if args.part == 1 {
        Strategy::StoreAll
    } else {
        Strategy::Optimal
    };
    let mut session = session(strategy, whole / args.part)?;
    let pixels = (0..shape.elems()).map(|i| (i % 251) as f32 / 251.0);
    let image = Arc::new(ArraySource::new(shape, pixels.collect())?);
    let mut best: Option<(f64, Timings)> = None;
    let mut plan = session.plan(shape.dims())?;
    // The first step also touches the memory for the first time.
    for round in 0..=args.rounds {
        let label = if args.model.starts_with("unet") {
            let shape = Shape::map(1, 1, &spatial);
            Feed::Source(Arc::new(ArraySource::new(shape, vec![0.0; shape.elems()])?))
        } else {
            Feed::Flat(vec![1.0])
        };
        let step = session.step(image.clone(), label, 0.0, &mut |_| {})?;
        let secs = step.report.measured.secs;
        eprintln!("{secs:.3} s");
        plan = step.plan;
        if round > 0 && best.as_ref().is_none_or(|(b, _)| secs < *b) {
            best = Some((secs, step.report.timings));
        }
    }
    let Some((secs, timings)) = best else {
        return Err("at least one round must be run".into());
    };
    print(args, &plan, &profile.machine, secs, &timings);
    Ok(())
}

/// Work of a node or a kind of copy.
#[derive(Clone, Copy, Default)]
struct Sum {
    calls: u64,
    points: u64,
    bytes: u64,
}

/// Seconds of a family or a kind of copy.
#[derive(Clone, Copy, Default)]
struct Line {
    calls: u64,
    predicted: f64,
    measured: f64,
}

fn print(args: &Args, plan: &Plan, machine: &Machine, secs: f64, timings: &Timings) {
    let lines = lines(plan, machine, timings);
    let mut table = Table::new(&["family", "calls", "predicted", "measured", "ratio"]);
    let mut row = |name: &str, calls: u64, predicted: f64, measured: f64| {
        table.row(vec![
            name.into(),
            Cell::number(calls as f64, 0),
            Cell::number(predicted, 4),
            Cell::number(measured, 4),
            Cell::number(predicted / measured.max(1e-9), 2),
        ]);
    };
    let (mut predicted, mut measured) = (0.0, 0.0);
    for (name, l) in &lines {
        row(name, l.calls, l.predicted, l.measured);
        predicted += l.predicted;
        measured += l.measured;
    }
    row("sum", 0, predicted, measured);
    row("step", 0, plan.predicted.secs, secs);
    if !args.json {
        let (net, size, plan) = (&args.model, &args.size, plan.strategy);
        println!("{net} on {size}, 1/{} of store-all, {plan}", args.part);
    }
    table.print(args.json);
}

/// By family and kind of copy.
fn lines(plan: &Plan, machine: &Machine, timings: &Timings) -> BTreeMap<String, Line> {
    let program = &plan.program;
    let mut out: BTreeMap<String, Line> = BTreeMap::new();
    let mut add = |name: &str, calls, predicted, measured| {
        let line = out.entry(name.to_owned()).or_default();
        line.calls += calls;
        line.predicted += predicted;
        line.measured += measured;
    };
    let mut copies: BTreeMap<&str, Sum> = BTreeMap::new();
    let mut booked = vec![false; program.nodes.len()];
    for stage in 0..plan.stages.len() {
        let mut nodes: BTreeMap<sstep_planner::NodeIx, Sum> = BTreeMap::new();
        let items = &plan.stages[stage].items;
        let _ = plan.stage_instructions(stage, &mut |instr| {
            let mut copy = |name, at: sstep_planner::At, points: u64| {
                let ty = program.node(items[at.item as usize].node).ty;
                let sum = copies.entry(name).or_default();
                sum.calls += 1;
                sum.bytes += points * (ty.shape.channels() * ty.dtype.bytes()) as u64;
            };
            match instr {
                Instr::Compute { at, region, .. } | Instr::Accumulate { at, region } => {
                    let sum = nodes.entry(items[at.item as usize].node).or_default();
                    sum.calls += 1;
                    sum.points += region.points();
                }
                Instr::Flat { at } => {
                    let sum = nodes.entry(items[at.item as usize].node).or_default();
                    sum.calls += 1;
                    sum.points += 1;
                }
                Instr::Slide { at, keep } => copy("slide", at, keep.points()),
                Instr::Store { at, region, home } => match home {
                    Home::Host(_) => copy("to host", at, region.points()),
                    Home::Disk(_) => copy("to disk", at, region.points()),
                    Home::Device(_) | Home::Source => copy("store", at, region.points()),
                },
                Instr::Prefetch { at, region } => copy("to device", at, region.points()),
                Instr::Fetch { at, region, .. } => match items[at.item as usize].role {
                    ItemRole::Supply(Home::Source) => copy("source", at, region.points()),
                    ItemRole::Supply(Home::Disk(_)) => copy("from disk", at, region.points()),
                    _ if items[at.item as usize].staged_fetch().is_some() => {
                        copy("staging", at, region.points());
                    }
                    _ => copy("to device", at, region.points()),
                },
                Instr::Begin { .. } | Instr::Finish { .. } => {}
                Instr::Release { .. } | Instr::Update { .. } => {}
            }
            ControlFlow::<()>::Continue(())
        });
        for (n, sum) in nodes {
            let node = program.node(n);
            let inputs = program.input_tys(n);
            let kernel = Kernel {
                op: &node.op,
                inputs: &inputs,
                out: &node.ty,
            };
            // A node that several stages compute is timed as a whole.
            let measured = if std::mem::replace(&mut booked[n.ix()], true) {
                0.0
            } else {
                timings.nodes[n.ix()].secs
            };
            let predicted = machine.kernel_secs(&kernel, sum.points, sum.calls);
            add(&kernel.family().name(), sum.calls, predicted, measured);
        }
    }
    for (name, rate, measured) in [
        ("slide", None, timings.slide.secs),
        ("staging", None, timings.staging.secs),
        ("store", None, timings.store.secs),
        (
            "source",
            Some(machine.source_bytes_per_sec),
            timings.source.secs,
        ),
        (
            "to device",
            Some(machine.h2d_bytes_per_sec),
            timings.upload.secs,
        ),
        (
            "to host",
            Some(machine.d2h_bytes_per_sec),
            timings.download.secs,
        ),
        (
            "from disk",
            Some(1.0 / machine.fetch_secs(Tier::Disk, 1)),
            timings.disk_read.secs,
        ),
        (
            "to disk",
            Some(1.0 / machine.store_secs(Tier::Disk, 1)),
            timings.disk_write.secs,
        ),
    ] {
        let sum = copies.get(name).copied().unwrap_or_default();
        let predicted = match rate {
            Some(rate) => sum.bytes as f64 / rate,
            None => machine.copy_secs(sum.bytes, sum.calls),
        };
        add(name, sum.calls, predicted, measured);
    }
    let updates = program.updates.iter().map(|u| {
        let bytes = program.node(u.param).ty.bytes();
        machine.update_secs(bytes, program.state_slots)
    });
    let n = program.updates.len() as u64;
    add("optimiser", n, updates.sum(), timings.update.secs);
    out
}
