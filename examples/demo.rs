//! Trains a small ResNet end to end on slides far larger than its memory cap.
//!
//! Two slides are composed from the tissue of a real one: the same but for a
//! pattern planted in one of them, which is what the network has to find. One
//! step sees a whole slide. Untiled it would take many times the memory that
//! the step is allowed; the plan makes it fit, and the report shows that it did.
//!
//! `make demo` runs it on 16 384 × 16 384 pixels within 256 MiB, `make
//! demo-fast` on 4 096 × 4 096; `--help` lists what can be changed.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use sstep::data::{SlideView, Slides};
use sstep::nn::{Head, ModelSpec, Norm};
use sstep::optim::UpdateRule;
use sstep::slide::{ComposeSpec, Control, PatternSpec, compose};
use sstep::source::SlideFile;
use sstep::{
    Budget, ByteSize, Error, REPORT_HEADING, Report, Session, SessionOptions, TrainEvent,
    TrainOptions, TrainStep, Trainer,
};

/// Train a small ResNet on slides larger than its memory cap.
#[derive(Debug, Parser)]
struct Args {
    /// Smaller slides, two a step: done in two minutes.
    #[arg(long)]
    fast: bool,
    /// Width and height of the slides [default: 16384; 4096 with --fast].
    #[arg(long)]
    size: Option<usize>,
    /// Device memory cap [default: 256MiB; 64MiB with --fast].
    #[arg(long)]
    budget: Option<ByteSize>,
    /// Host memory for tensors moved off the device.
    #[arg(long, default_value = "8GiB")]
    host: ByteSize,
    /// Steps [default: 6; 10 with --fast].
    #[arg(long)]
    steps: Option<u64>,
    /// Slides per step: 2 shows both labels to every step [default: 1; 2 with --fast].
    #[arg(long)]
    batch: Option<usize>,
    /// Learning rate.
    #[arg(long, default_value_t = 1e-4)]
    lr: f64,
    /// Built-in network.
    #[arg(long, default_value = "resnet10")]
    model: String,
    /// Channels of its first layer.
    #[arg(long, default_value_t = 16)]
    width: usize,
    /// Groups of its group norms.
    #[arg(long, default_value_t = 16)]
    groups: usize,
    /// Seed of slides and parameters.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Planted rings per 4096 x 4096 pixels.
    #[arg(long, default_value_t = 40)]
    rings: usize,
    /// Radius of a ring, in pixels.
    #[arg(long, default_value_t = 150.0)]
    ring_radius: f64,
    /// Folder with the real slide, and for the composed ones.
    #[arg(long, default_value = "examples/data")]
    data: PathBuf,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(args: &Args) -> Result<(), Error> {
    let size = args.size.unwrap_or(if args.fast { 4096 } else { 16384 });
    let cap = args
        .budget
        .unwrap_or(ByteSize(if args.fast { 64 << 20 } else { 256 << 20 }));
    let batch = args.batch.unwrap_or(if args.fast { 2 } else { 1 });
    let steps = args.steps.unwrap_or(if args.fast { 10 } else { 6 });

    let real = args.data.join("CMU-1-Small-Region.svs");
    let info = SlideFile::open(&real)?.info().clone();
    let (w, h) = info.levels[0].size;
    println!(
        "real slide   {}: {w} x {h} pixels, H&E stain",
        real.display()
    );
    let mut entries = Vec::new();
    for label in [0, 1] {
        entries.push((composed(args, &real, size, label)?, label));
    }

    // Over the whole image: what no patch can know.
    let model = ModelSpec {
        width: Some(args.width),
        norm: Some(Norm::Group),
        groups: Some(args.groups),
        head: Some(Head::Attention),
        ..ModelSpec::new(&args.model)
    };
    let slides = Slides::new(entries, model.classes, SlideView::default())?;
    let budget = Budget {
        device_bytes: cap.0,
        host_bytes: args.host.0,
        disk_bytes: 0,
    };
    let options = SessionOptions {
        seed: args.seed,
        ..SessionOptions::new(budget)
    };
    // A run of a few steps wants an optimiser that forgets soon.
    let rule = UpdateRule::AdamW {
        beta1: 0.5,
        beta2: 0.99,
        eps: 1e-8,
        weight_decay: 0.01,
    };
    let session = Session::<f32>::new(model, options.training(rule))?;
    let options = TrainOptions {
        seed: args.seed,
        batch,
        ..TrainOptions::new(steps, args.lr)
    };
    let mut trainer = Trainer::new(session, slides, options)?;

    let bar = bar(
        steps * 1000,
        "{msg} [{bar:32}] {percent:>3} %, ETA {eta_precise}",
    );
    let mut done: Vec<TrainStep> = Vec::new();
    trainer.run(&mut |event| match event {
        TrainEvent::Planning { .. } => {
            bar.set_message("planning");
            bar.tick();
        }
        TrainEvent::Planned(plan) => bar.suspend(|| {
            let (untiled, cap) = (plan.predicted.untiled_bytes, cap.0);
            let ratio = untiled as f64 / cap as f64;
            println!(
                "network      {} with group norm and attention, whole slides, {batch} a step",
                args.model
            );
            println!(
                "memory       untiled, a step would take {}: {ratio:.0} times the cap of {}\n",
                ByteSize(untiled),
                ByteSize(cap)
            );
            println!("{}", plan.summary());
        }),
        TrainEvent::Progress { step, progress } => {
            let part = progress.done_secs / progress.total_secs.max(f64::MIN_POSITIVE);
            bar.set_message(format!("step {step}/{steps}"));
            bar.set_position((step - 1) * 1000 + (part.clamp(0.0, 1.0) * 1000.0) as u64);
        }
        TrainEvent::Step(step) => {
            bar.suspend(|| {
                println!(
                    "step {:>2}/{steps}   loss {:.4}   {:>6.1} s   peak {}   {}",
                    step.step,
                    step.loss,
                    step.measured.secs,
                    ByteSize(step.measured.peak_bytes),
                    step.sample
                );
            });
            done.push(step.clone());
        }
        TrainEvent::Saved(_) => {}
    })?;
    bar.finish_and_clear();
    conclude(&done, cap, batch)
}

/// A slide of this label, composed unless it is there from the last time.
fn composed(args: &Args, real: &Path, size: usize, label: usize) -> Result<PathBuf, Error> {
    let dir = args.data.join("synthetic");
    let &Args {
        seed,
        rings,
        ring_radius,
        ..
    } = args;
    let pattern = PatternSpec {
        n_clusters: (rings * size * size / (4096 * 4096)).max(1),
        n_discs: 30,
        ring_radius,
        disc_radius: 0.15 * ring_radius,
        control: Control::Absent,
    };
    let path = dir.join(format!(
        "{size}-seed{seed}-{rings}x{ring_radius}-label{label}.tif"
    ));
    if !path.exists() {
        std::fs::create_dir_all(&dir).map_err(|error| Error::Io {
            path: dir.clone(),
            what: "creating",
            reason: error.to_string(),
        })?;
        let bar = bar(size as u64, "composing {msg} [{bar:32}] {percent:>3} %");
        bar.set_message(path.display().to_string());
        let spec = ComposeSpec {
            pattern,
            ..ComposeSpec::new(size, label == 1, seed)
        };
        compose(real, &path, &spec, |rows, _| bar.set_position(rows as u64))?;
        bar.finish_and_clear();
    }
    let bytes = std::fs::metadata(&path).map_or(0, |m| m.len());
    let what = if label == 1 { "with" } else { "without" };
    println!(
        "composed     {}: {size} x {size}, {what} pattern, {}",
        path.display(),
        ByteSize(bytes)
    );
    Ok(path)
}

fn bar(length: u64, template: &str) -> ProgressBar {
    let bar = ProgressBar::new(length);
    match ProgressStyle::with_template(template) {
        Ok(style) => bar.with_style(style.progress_chars("=> ")),
        Err(_) => bar,
    }
}

/// Predicted beside measured, and whether the promises were kept.
fn conclude(done: &[TrainStep], cap: ByteSize, batch: usize) -> Result<(), Error> {
    let Some(last) = done.last() else {
        return Ok(());
    };
    println!(
        "\nlast step:\n{REPORT_HEADING}\n{}",
        Report::new(&last.plan, &last.measured)
    );
    let peak = done
        .iter()
        .map(|s| s.measured.peak_bytes)
        .max()
        .unwrap_or(0);
    // Steps that see one slide alternate between the two: only a pair of them
    // tells how both are judged.
    let steps_per_look = if batch == 1 { 2 } else { 1 };
    let looks = done.chunks_exact(steps_per_look);
    let mean = |look: &[TrainStep]| look.iter().map(|s| s.loss).sum::<f64>() / look.len() as f64;
    let losses: Vec<f64> = looks.map(mean).collect();
    let curve: Vec<String> = losses.iter().map(|loss| format!("{loss:.3}")).collect();
    println!("loss, mean over both slides: {}", curve.join(" -> "));
    if peak > cap.0 {
        let reason = format!(
            "the measured peak of {} is above the cap of {cap}",
            ByteSize(peak)
        );
        return Err(Error::Usage { reason });
    }
    println!(
        "measured peak {} <= cap {cap}: kept in every step",
        ByteSize(peak)
    );
    Ok(())
}
