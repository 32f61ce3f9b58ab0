//! `sstep train`: training on slides, from a configuration file or flags.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::json;
use sstep::config::{ImageConfig, Memory, OptimizerConfig, OptimizerName, Size, TrainConfig};
use sstep::data::{Dataset, Slides};
use sstep::nn::ModelSpec;
use sstep::optim::Schedule;
use sstep::params::{self, Element, TensorFile};
use sstep::{
    ByteSize, DType, DeviceInfo, Error, Objective, Precision, REPORT_HEADING, Report, Session,
    SessionOptions, Strategy, TrainEvent, TrainOptions, TrainStep, Trainer,
};

use super::args::{
    ConvArgs, DeviceArgs, MachineArgs, ModelArgs, PrecisionArgs, SpillArgs, on, spill_dir,
};
use super::progress::Bar;

/// Name of the checkpoint in the output folder.
const CHECKPOINT: &str = "checkpoint.safetensors";
/// Name of the final parameters in the output folder.
const MODEL: &str = "model.safetensors";

/// Train a network on slides.
///
/// Takes a configuration file (see docs/train.md), flags, or both: flags win.
/// Needed are data, a model and a budget.
///
///   sstep train --data slide.svs --label 1 --model resnet18 --budget 512MiB
///   sstep train --data slides/ --model resnet34 --budget 8GiB --host 64GiB \
///               --steps 1000 --out runs/a
///   sstep train run.toml --resume
///
/// A folder of slides has a file labels.csv: a line `file,label`, then one slide
/// per line. With --out, a checkpoint is kept in that folder, and the final
/// parameters are written as model.safetensors.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment, args_override_self = true)]
pub struct Args {
    /// Configuration file.
    config: Option<PathBuf>,
    /// A slide, or a folder of slides with labels.csv.
    #[arg(long, value_name = "PATH")]
    data: Option<PathBuf>,
    /// Class of a single slide.
    #[arg(long, value_name = "N")]
    label: Option<usize>,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    conv: ConvArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    machine: MachineArgs,
    /// Take the middle of each slide, of this width x height.
    #[arg(long, value_name = "WxH", help_heading = "Image")]
    size: Option<Size>,
    /// Level of the slides' pyramids [default: 0, the largest].
    #[arg(long, value_name = "N", help_heading = "Image")]
    level: Option<usize>,
    /// Device memory that a step may use, parameters and optimiser state
    /// included.
    #[arg(long, value_name = "BYTES", help_heading = "Memory")]
    budget: Option<ByteSize>,
    /// Host memory for tensors moved off the device [default: 0, forbidden].
    #[arg(long, value_name = "BYTES", help_heading = "Memory")]
    host: Option<ByteSize>,
    /// Disk space for tensors that the host has no room for [default: 0, forbidden].
    #[arg(long, value_name = "BYTES", help_heading = "Memory")]
    disk: Option<ByteSize>,
    #[command(flatten)]
    spill: SpillArgs,
    /// How to plan: optimal, store-all, checkpoint, recompute-all, offload-all,
    /// paging, streaming, tile-checkpoint, remat-ilp or remat-page-ilp.
    #[arg(long, help_heading = "Memory")]
    strategy: Option<Strategy>,
    /// What to be best at: predicted seconds, or bytes moved [default: seconds].
    #[arg(long, help_heading = "Memory")]
    objective: Option<Objective>,
    #[command(flatten)]
    on: DeviceArgs,
    /// Steps in all [default: 10].
    #[arg(long, value_name = "N", help_heading = "Training")]
    steps: Option<u64>,
    /// Slides per step, all of one size [default: 1].
    #[arg(long, value_name = "N", help_heading = "Training")]
    batch: Option<usize>,
    /// Learning rate [default: 0.001].
    #[arg(long, help_heading = "Training", allow_negative_numbers = true)]
    lr: Option<f64>,
    /// sgd, adam or adamw [default: adamw].
    #[arg(long, help_heading = "Training")]
    optimizer: Option<OptimizerName>,
    /// Seed of parameters, order of slides and dropout [default: 0].
    #[arg(long, help_heading = "Training")]
    seed: Option<u64>,
    /// Weights to start from, as safetensors.
    #[arg(long, value_name = "FILE", help_heading = "Training")]
    init: Option<PathBuf>,
    /// Folder for checkpoint and final parameters.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Go on from the checkpoint in the output folder.
    #[arg(long)]
    resume: bool,
    /// Print JSON: one object per line, as things happen.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
pub fn run(args: Args) -> Result<(), Error> {
    let device = args.on.find()?;
    let config = configure(&args)?;
    match config.model.dtype {
        DType::F64 => train::<f64>(&args, &config, device.as_ref()),
        DType::F32 | DType::Bf16 | DType::F16 => train::<f32>(&args, &config, device.as_ref()),
    }
}

/// The file with the flags applied, or the flags alone.
fn configure(args: &Args) -> Result<TrainConfig, Error> {
    let mut config = match &args.config {
        Some(path) => TrainConfig::open(path)?,
        None => {
            let (Some(data), Some(model), Some(budget)) =
                (args.data.clone(), args.model.spec(), args.budget)
            else {
                return Err(Error::Usage {
                    reason: "give --data, --model and --budget, or a configuration file".to_owned(),
                });
            };
            from_flags(data, model, budget)
        }
    };
    args.model.apply(&mut config.model);
    config.winograd &= !args.conv.no_winograd;
    if let Some(name) = args.optimizer.filter(|name| *name != config.optimizer.name) {
        // The other optimiser's options do not apply to this one.
        config.optimizer = OptimizerConfig {
            name,
            lr: config.optimizer.lr,
            ..OptimizerConfig::default()
        };
    }
    fn over<V: Clone>(slot: &mut V, given: &Option<V>) {
        if let Some(value) = given {
            *slot = value.clone();
        }
    }
    over(&mut config.precision, &args.precision.precision);
    if args.precision.loss_scale.is_some() {
        config.loss_scale = args.precision.loss_scale;
    }
    over(&mut config.data, &args.data);
    over(&mut config.memory.budget, &args.budget.map(|b| b.0));
    over(&mut config.memory.host, &args.host.map(|b| b.0));
    over(&mut config.memory.disk, &args.disk.map(|b| b.0));
    over(&mut config.memory.strategy, &args.strategy);
    over(&mut config.memory.objective, &args.objective);
    over(&mut config.image.level, &args.level);
    over(&mut config.steps, &args.steps);
    over(&mut config.batch, &args.batch);
    over(&mut config.optimizer.lr, &args.lr);
    over(&mut config.seed, &args.seed);
    let disk_dir = &args.spill.disk_dir;
    for (slot, given) in [
        (&mut config.out, &args.out),
        (&mut config.init, &args.init),
        (&mut config.memory.disk_dir, disk_dir),
    ] {
        if given.is_some() {
            slot.clone_from(given);
        }
    }
    if args.size.is_some() {
        config.image.size.clone_from(&args.size);
    }
    if args.label.is_some() || args.data.is_some() {
        config.label = args.label;
    }
    Ok(config)
}

fn from_flags(data: PathBuf, model: ModelSpec, budget: ByteSize) -> TrainConfig {
    TrainConfig {
        data,
        label: None,
        out: None,
        steps: 10,
        batch: 1,
        seed: 0,
        checkpoint_every: 10,
        init: None,
        winograd: true,
        precision: Precision::default(),
        loss_scale: None,
        model,
        memory: Memory {
            budget: budget.0,
            host: 0,
            disk: 0,
            disk_dir: None,
            strategy: Strategy::default(),
            objective: Objective::default(),
        },
        image: ImageConfig::default(),
        optimizer: OptimizerConfig::default(),
        schedule: Schedule::default(),
    }
}

/// The folder a run writes to. What a failed run would leave empty goes again.
struct OutDir {
    path: PathBuf,
    made: bool,
}

impl OutDir {
    /// Checks that the folder can be written to, and that nothing in it would be
    /// overwritten unless the run goes on from there.
    fn new(path: &Path, resume: bool) -> Result<Self, Error> {
        let checkpoint = path.join(CHECKPOINT);
        if !resume && checkpoint.exists() {
            return Err(Error::File {
                path: checkpoint,
                reason: "exists; --resume goes on from it, another --out begins anew".to_owned(),
            });
        }
        let made = !path.exists();
        std::fs::create_dir_all(path).map_err(|error| Error::Io {
            path: path.to_path_buf(),
            what: "creating",
            reason: error.to_string(),
        })?;
        let dir = OutDir {
            path: path.to_path_buf(),
            made,
        };
        params::check_writable(&checkpoint)?;
        Ok(dir)
    }
}

impl Drop for OutDir {
    fn drop(&mut self) {
        if self.made {
            // Succeeds only if it is empty, which is what is wanted.
            let _ = std::fs::remove_dir(&self.path);
        }
    }
}

fn train<T: Element>(
    args: &Args,
    config: &TrainConfig,
    device: Option<&DeviceInfo>,
) -> Result<(), Error> {
    if config.model.name.starts_with("unet") {
        return Err(Error::Usage {
            reason: format!(
                "{} wants a label per pixel, and labels.csv has one per slide: train it from Rust, \
                 with a sstep::Trainer",
                config.model.name
            ),
        });
    }
    let rule = config.optimizer.rule()?;
    let slides = config.slides()?;
    // A truncated slide is found now and not hours later.
    for index in 0..slides.entries().len() {
        Dataset::<T>::open(&slides, index)?;
    }
    let budget = config.memory.budget();
    let disk_dir = spill_dir(config.memory.disk_dir.clone(), &budget)?;
    if args.resume && config.out.is_none() {
        return Err(Error::Usage {
            reason: "--resume needs the --out of the run to go on with".to_owned(),
        });
    }
    let out = config
        .out
        .as_deref()
        .map(|dir| OutDir::new(dir, args.resume))
        .transpose()?;
    let checkpoint = out.as_ref().map(|dir| dir.path.join(CHECKPOINT));
    let profile = args.machine.profile(config.winograd, device)?;
    if !args.json {
        super::notice(&format!("machine: {profile}"));
    }
    let options = SessionOptions {
        budget,
        disk_dir,
        device: on(device),
        device_options: args.on.options(),
        strategy: config.memory.strategy,
        objective: config.memory.objective,
        machine: profile.machine.clone(),
        precision: config.precision,
        loss_scale: config.loss_scale,
        seed: config.seed,
        rule: Some(rule),
    };
    let mut session = Session::<T>::new(config.model.clone(), options)?;
    if let Some(path) = config.init.as_ref().filter(|_| !args.resume) {
        load_init(&mut session, path, &slides, config.batch)?;
    }
    let about = json!({
        "model": config.model,
        "optimizer": rule,
        "seed": config.seed,
        "batch": config.batch,
        "precision": config.precision,
    });
    let options = TrainOptions {
        steps: config.steps,
        batch: config.batch,
        lr: config.optimizer.lr,
        schedule: config.schedule,
        seed: config.seed,
        checkpoint: checkpoint.clone(),
        checkpoint_every: config.checkpoint_every,
        about: about.to_string(),
    };
    let mut trainer = Trainer::new(session, slides, options)?;
    if let Some(path) = checkpoint.filter(|_| args.resume) {
        trainer.resume(&path)?;
        let done = trainer.session().n_steps();
        super::notice(&format!("going on after step {done} of {}", config.steps));
    }
    let last = watch(&mut trainer, config.steps, args.json)?;
    if let Some(out) = &out {
        let path = out.path.join(MODEL);
        let tensors = trainer.session().params()?;
        if !tensors.is_empty() {
            let tensors = tensors.iter().map(|(name, t)| (name.clone(), t));
            params::save(&path, tensors, &BTreeMap::new())?;
            if args.json {
                super::say_json(&json!({ "event": "saved", "path": path }));
            } else {
                super::say(&format!("wrote {}", path.display()));
            }
        }
    }
    match last {
        Some(last) => finish(&last, args.json),
        None => super::notice(&format!("nothing to do: {} steps are done", config.steps)),
    }
    Ok(())
}

/// Starts from given weights; what the file lacks is drawn from the seed.
fn load_init<T: Element>(
    session: &mut Session<T>,
    path: &Path,
    slides: &Slides,
    batch: usize,
) -> Result<(), Error> {
    let file = TensorFile::open(path)?;
    let mut image = Dataset::<T>::open(slides, 0)?.image.shape().dims().to_vec();
    // The plan made here for the names is the one that training needs.
    image[0] = batch.max(1);
    let matched = file.matching(session.param_shapes(&image)?)?;
    if matched.tensors.is_empty() {
        return Err(Error::TensorNames {
            path: path.to_path_buf(),
            missing: matched.missing,
            unknown: matched.unknown,
        });
    }
    let lists = [
        ("drawn from the seed", &matched.missing),
        ("not used", &matched.unknown),
    ];
    for (what, names) in lists {
        if !names.is_empty() {
            super::notice(&format!("{}: {what}: {}", path.display(), names.join(", ")));
        }
    }
    session.set_params(matched.tensors)
}

/// Trains, telling what happens. Returns the last step.
fn watch<T: Element>(
    trainer: &mut Trainer<T>,
    steps: u64,
    json: bool,
) -> Result<Option<TrainStep>, Error> {
    let bar = Bar::new(steps, trainer.session().n_steps(), json);
    let last = RefCell::new(None);
    let result = trainer.run(&mut |event| match event {
        TrainEvent::Planning { sample, .. } => bar.message(format!("planning {sample}")),
        TrainEvent::Planned(plan) => {
            bar.message("running".to_owned());
            if json {
                super::say_json(&json!({ "event": "plan", "plan": plan.explained() }));
            } else {
                bar.print(|| super::say(&plan.summary()));
            }
        }
        TrainEvent::Progress { step, progress } => {
            bar.message(format!("step {step}/{steps}"));
            bar.at(step - 1, progress);
        }
        TrainEvent::Step(step) => {
            if json {
                super::say_json(&step_json(step));
            } else {
                bar.print(|| super::say(&step_line(step)));
                if let Some(line) = skipped_line(step) {
                    bar.print(|| super::say(&line));
                }
            }
            *last.borrow_mut() = Some(step.clone());
        }
        TrainEvent::Saved(path) => {
            if json {
                super::say_json(&json!({ "event": "saved", "path": path }));
            }
        }
    });
    bar.finish();
    result.map(|()| last.into_inner())
}

fn step_line(step: &TrainStep) -> String {
    format!(
        "step {:>4}/{}  loss {:<10.6}  lr {:<9.2e}  {:>7.1} s (predicted {:.1})  peak {}  {}",
        step.step,
        step.steps,
        step.loss,
        step.lr,
        step.measured.secs,
        step.plan.predicted.secs,
        ByteSize(step.measured.peak_bytes),
        step.sample,
    )
}

/// What is said of a step that updated nothing.
fn skipped_line(step: &TrainStep) -> Option<String> {
    let next = step.lowered_to?;
    Some(format!(
        "          nothing updated: a gradient overflowed with the loss scaled by {}; next by {next}",
        step.loss_scale
    ))
}

fn step_json(step: &TrainStep) -> serde_json::Value {
    json!({
        "event": "step",
        "step": step.step,
        "loss": step.loss,
        "loss_scale": step.loss_scale,
        "update_skipped": step.lowered_to.is_some(),
        "lr": step.lr,
        "sample": step.sample,
        "classes": step.classes,
        "report": Report::new(&step.plan, &step.measured),
    })
}

fn finish(last: &TrainStep, json: bool) {
    let report = Report::new(&last.plan, &last.measured);
    if json {
        super::say_json(&json!({
            "event": "done",
            "steps": last.step,
            "loss": last.loss,
            "report": report,
        }));
    } else {
        super::say(&format!("last step:\n{REPORT_HEADING}\n{report}"));
    }
}
