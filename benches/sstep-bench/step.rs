//! One training step, forward and backward, at shrinking caps and against PyTorch, on
//! the CPU or another device.
//!
//! Caps are fractions of what storing everything takes. All contenders take
//! turns, round by round; medians are compared. "Host" is memory of this machine
//! as well, so a fair account of a plan's memory is the sum of both columns. Images
//! are computed where they are read and take none.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use serde_json::json;
use sstep::nn::{ModelSpec, Norm};
use sstep::source::{ComputedSource, Position, TileSource};
use sstep::{
    Budget, ByteSize, Device, Feed, Measured, Precision, Profile, Session, SessionOptions, Shape,
    Strategy,
};

use crate::Outcome;
use crate::breakdown;
use crate::table::{Cell, Table};
use crate::torch::Torch;

/// Measures whole training steps.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The network.
    #[arg(value_enum)]
    net: Net,
    /// Extent of the square image.
    size: usize,
    /// Caps, as parts of what storing everything takes, which is measured first: 1/2 …
    /// [default: 2,4,10,50, without --budget].
    #[arg(long, value_delimiter = ',')]
    parts: Vec<u64>,
    /// Caps as they are: 512MiB … Without --parts nothing is stored whole.
    #[arg(long, value_delimiter = ',', value_name = "BYTES")]
    budget: Vec<ByteSize>,
    /// The network's norm.
    #[arg(long, value_enum, default_value_t = NetNorm::Group)]
    norm: NetNorm,
    /// What maps are stored as: f32, bf16 or f16.
    #[arg(long, default_value_t = Precision::F32)]
    precision: Precision,
    /// cpu, or cuda:N in a build with CUDA.
    #[arg(long, default_value_t = Device::Cpu)]
    device: Device,
    /// Host memory that plans may use.
    #[arg(long, default_value = "8GiB")]
    host: ByteSize,
    /// Disk space that plans may use.
    #[arg(long, default_value = "0")]
    disk: ByteSize,
    /// Folder of the spill file; by default the system's for temporary files.
    #[arg(long, value_name = "DIR")]
    disk_dir: Option<PathBuf>,
    /// Python with PyTorch, to be polled in turn.
    #[arg(long, value_name = "PYTHON")]
    torch: Option<PathBuf>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Turns of every contender.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Also prints where each contender's last step spent its time.
    #[arg(long)]
    profile: bool,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// A network that both sides build alike.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Net {
    /// ResNet-18.
    Resnet18,
    /// ResNet-34.
    Resnet34,
    /// A U-Net of 32 channels that halves the image three times.
    Unet32,
}

/// A norm that both sides have.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum NetNorm {
    /// Group norm.
    Group,
    /// Batch norm with given statistics; ours alone, PyTorch's server has group norm.
    Frozen,
}

impl Net {
    /// As PyTorch's side and the tables call it.
    pub fn name(self) -> &'static str {
        match self {
            Net::Resnet18 => "resnet18",
            Net::Resnet34 => "resnet34",
            Net::Unet32 => "unet32",
        }
    }

    fn spec(self, norm: NetNorm) -> ModelSpec {
        let norm = Some(match norm {
            NetNorm::Group => Norm::Group,
            NetNorm::Frozen => Norm::FrozenBatch,
        });
        match self {
            Net::Resnet18 | Net::Resnet34 => ModelSpec {
                norm,
                ..ModelSpec::new(self.name())
            },
            Net::Unet32 => ModelSpec {
                norm,
                width: Some(32),
                levels: Some(3),
                ..ModelSpec::new("unet2d")
            },
        }
    }

    /// Trains it.
    pub fn session(
        self,
        norm: NetNorm,
        options: SessionOptions,
    ) -> Result<Session<f32>, Box<dyn std::error::Error>> {
        Ok(Session::new(self.spec(norm), options)?)
    }

    /// What a step on a square image is trained towards.
    pub fn label(self, size: usize) -> Result<Feed<f32>, Box<dyn std::error::Error>> {
        Ok(match self {
            Net::Resnet18 | Net::Resnet34 => Feed::Flat(vec![1.0]),
            Net::Unet32 => {
                let shape = Shape::map(1, 1, &[size, size]);
                Feed::Source(Arc::new(ComputedSource::new(shape, |_| 0.0)?))
            }
        })
    }
}

/// One of ours, with the seconds of each step.
struct Contender {
    name: String,
    session: Session<f32>,
    secs: Vec<f64>,
    measured: Measured,
    profile: Option<Table>,
}

/// The contender that the others are held against.
const STORE_ALL: &str = "store-all";

/// Runs the subcommand.
pub fn run(args: &Args) -> Outcome {
    rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads)
        .build_global()?;
    let image = image(args.size)?;
    let shape = image.shape();

    let parts: &[u64] = match (args.parts.as_slice(), args.budget.is_empty()) {
        ([], true) => &[2, 4, 10, 50],
        (parts, _) => parts,
    };
    let mut wanted = Vec::new();
    if !parts.is_empty() {
        let mut all = session(args, Strategy::StoreAll, 1 << 40)?;
        let whole = all.plan(shape.dims())?.predicted.peak_bytes;
        wanted.push((STORE_ALL.to_owned(), Strategy::StoreAll, whole));
        let parts = parts.iter().filter(|&&part| part > 1);
        wanted.extend(parts.map(|part| (format!("1/{part}"), Strategy::Optimal, whole / part)));
    }
    let caps = args.budget.iter();
    wanted.extend(caps.map(|cap| (cap.to_string(), Strategy::Optimal, cap.0)));
    let mut ours = Vec::new();
    for (name, strategy, cap) in wanted {
        let mut session = session(args, strategy, cap)?;
        let started = Instant::now();
        match session.plan(shape.dims()) {
            Ok(_) => ours.push(Contender {
                name,
                session,
                secs: Vec::new(),
                measured: Measured::default(),
                profile: None,
            }),
            Err(error) => eprintln!("{name}: {error}"),
        }
        eprintln!("planned in {:.1} s", started.elapsed().as_secs_f64());
    }
    let mut torch = match &args.torch {
        Some(python) => Some(Torch::start(python, args.threads)?),
        None => None,
    };
    let mut theirs: [(&str, Vec<f64>, f64); 2] =
        ["nchw", "nhwc"].map(|layout| (layout, Vec::new(), 0.0));
    for round in 0..=args.rounds {
        for c in &mut ours {
            let label = args.net.label(args.size)?;
            let step = c.session.step(image.clone(), label, 0.0, &mut |_| {})?;
            let measured = &step.report.measured;
            eprintln!("{}: {:.2} s, loss {}", c.name, measured.secs, step.loss);
            // The first step also touches the memory for the first time.
            if round > 0 {
                c.secs.push(measured.secs);
            }
            c.measured = *measured;
            c.profile = (args.profile).then(|| breakdown::table(&step.plan, &step.report.timings));
        }
        for (layout, secs, rss) in &mut theirs {
            let (Some(torch), true) = (&mut torch, round > 0) else {
                continue;
            };
            let request = json!({
                "kind": "step", "net": args.net.name(), "size": args.size,
                "layout": layout, "repeats": 1,
            });
            let answer = torch.ask(&request)?;
            eprintln!("{layout}: {answer}");
            secs.push(answer["secs"].as_f64().ok_or("no seconds")?);
            *rss = rss.max(answer["rss_bytes"].as_f64().ok_or("no bytes")?);
        }
    }
    print(args, ours, theirs);
    Ok(())
}

fn session(
    args: &Args,
    strategy: Strategy,
    device_bytes: u64,
) -> Result<Session<f32>, Box<dyn std::error::Error>> {
    let budget = Budget {
        device_bytes,
        host_bytes: args.host.0,
        disk_bytes: args.disk.0,
    };
    let mut options = SessionOptions {
        strategy,
        precision: args.precision,
        device: args.device,
        ..SessionOptions::new(budget)
    };
    // On the CPU every run has the same profile, so that plans can be compared.
    if let Some(found) = args.device.find()? {
        options.machine = Profile::find(None, Some(&found))?.machine;
    }
    if let Some(dir) = &args.disk_dir {
        options.disk_dir.clone_from(dir);
    }
    args.net.session(args.norm, options)
}

/// A square image of three channels, computed where it is read: it takes no
/// memory of its own, at any size.
pub fn image(size: usize) -> Result<Arc<dyn TileSource<f32>>, Box<dyn std::error::Error>> {
    let shape = Shape::map(1, 3, &[size, size]);
    Ok(Arc::new(ComputedSource::new(shape, pixel)?))
}

/// Noise in `[0, 1)`: 24 bits of the position's hash, as many as an `f32` holds.
pub fn pixel([_, c, z, y, x]: Position) -> f32 {
    let plane = (c as u64) << 62 ^ (z as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut z = (plane ^ (y as u64) << 31 ^ x as u64).wrapping_add(1);
    z = (z ^ z >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    z = (z ^ z >> 32).wrapping_mul(0xd6e8_feb8_6659_fd93);
    (z >> 40) as f32 / (1 << 24) as f32
}

fn print(args: &Args, ours: Vec<Contender>, theirs: [(&str, Vec<f64>, f64); 2]) {
    let whole = ours.first().filter(|c| c.name == STORE_ALL);
    let untiled = whole.and_then(|c| median(&c.secs));
    let best = theirs.iter().filter_map(|(_, s, _)| median(s));
    let best = best.reduce(f64::min);
    let mut table = Table::new(&[
        "step",
        "secs",
        "device",
        "host",
        "disk",
        "to_device",
        "to_host",
        "of_untiled",
        "of_torch",
    ]);
    let ratio = |of: Option<f64>, secs: f64| match of {
        Some(of) => Cell::number(of / secs, 2),
        None => Cell::none(),
    };
    let bytes = |n: u64| Cell::new(ByteSize(n).to_string(), n);
    for c in &ours {
        let Some(secs) = median(&c.secs) else {
            continue;
        };
        table.row(vec![
            c.name.as_str().into(),
            Cell::number(secs, 3),
            bytes(c.measured.peak_bytes),
            bytes(c.measured.host_peak_bytes),
            bytes(c.measured.disk_peak_bytes),
            bytes(c.measured.h2d_bytes),
            bytes(c.measured.d2h_bytes),
            ratio(untiled, secs),
            ratio(best, secs),
        ]);
    }
    for c in &ours {
        if let Some(profile) = &c.profile {
            if !args.json {
                println!("{}", c.name);
            }
            profile.print(args.json);
        }
    }
    for (layout, secs, rss) in &theirs {
        let Some(secs) = median(secs) else { continue };
        table.row(vec![
            format!("PyTorch {layout}").into(),
            Cell::number(secs, 3),
            bytes(*rss as u64),
            bytes(0),
            bytes(0),
            bytes(0),
            bytes(0),
            ratio(untiled, secs),
            ratio(best, secs),
        ]);
    }
    if !args.json {
        println!(
            "{} at {}² on {}, {} threads",
            args.net.name(),
            args.size,
            args.device,
            args.threads
        );
    }
    table.print(args.json);
}

/// The middle one, if there is any.
pub fn median(secs: &[f64]) -> Option<f64> {
    let mut secs = secs.to_vec();
    secs.sort_by(f64::total_cmp);
    secs.get(secs.len() / 2).copied()
}
