//! Convolutions and both of their gradients, layer by layer, against the
//! machine's peak and against PyTorch.
//!
//! GFLOP/s count the multiplications of a direct sum, whatever the algorithm:
//! Winograd's may pass the peak. Contenders take turns, round by round, so that
//! what else the machine does hits all of them; medians are compared.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use memmap2::MmapMut;
use serde::Deserialize;
use serde_json::json;
use sstep_autodiff::{ConvAlgo, ConvAttrs, ConvTransposeAttrs, DType, Form, Op, Region, Shape, Ty};
use sstep_kernels::{Box4, In, Job, Layout, Out, State, cpu};

use crate::Outcome;
use crate::table::{Cell, Table};
use crate::torch::Torch;

/// Measures convolutions layer by layer.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Layers to measure, as CSV with a header; by default the sixteen that
    /// libraries are usually compared on.
    #[arg(long, value_name = "FILE")]
    layers: Option<PathBuf>,
    /// Only layers whose name contains this.
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// Python with PyTorch, to be polled in turn.
    #[arg(long, value_name = "PYTHON")]
    torch: Option<PathBuf>,
    /// Threads.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Scratch of the kernels.
    #[arg(long, value_name = "MIB", default_value_t = 16)]
    workspace_mib: usize,
    /// Turns of every contender.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds per turn.
    #[arg(long, default_value_t = 0.1)]
    secs: f64,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

/// A line of the list. `spatial` are the extents of the input.
#[derive(Clone, Debug, Deserialize)]
struct Layer {
    name: String,
    ins: usize,
    outs: usize,
    spatial: String,
    kernel: usize,
    stride: usize,
    pad: usize,
    groups: usize,
    transposed: bool,
}

/// What is measured of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
enum What {
    Forward,
    Data,
    Weight,
}

impl What {
    const ALL: [What; 3] = [What::Forward, What::Data, What::Weight];

    fn name(self) -> &'static str {
        match self {
            What::Forward => "forward",
            What::Data => "data",
            What::Weight => "weight",
        }
    }
}

/// Runs the subcommand.
pub fn run(args: &Args) -> Outcome {
    rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads)
        .build_global()?;
    let list = match &args.layers {
        Some(path) => std::fs::read_to_string(path)?,
        None => include_str!("layers.csv").to_owned(),
    };
    let layers: Vec<Layer> = csv::Reader::from_reader(list.as_bytes())
        .deserialize()
        .collect::<Result<_, _>>()?;
    let mut torch = match &args.torch {
        Some(python) => Some(Torch::start(python, args.threads)?),
        None => None,
    };
    let peak = cpu::peak_flops_per_sec();
    let mut table = Table::new(&[
        "layer", "op", "gflops", "direct", "of_peak", "winograd", "nchw", "nhwc", "ratio",
    ]);
    for layer in &layers {
        if args
            .only
            .as_ref()
            .is_some_and(|t| !layer.name.contains(t.as_str()))
        {
            continue;
        }
        let mut operands = Operands::new(layer, args.workspace_mib << 20)?;
        for what in What::ALL {
            eprintln!("{} {}", layer.name, what.name());
            table.row(measure(args, layer, what, &mut operands, &mut torch, peak)?);
        }
    }
    if !args.json {
        println!("peak {:.1} GFLOP/s on {} threads", peak / 1e9, args.threads);
    }
    table.print(args.json);
    Ok(())
}

/// One row: medians over the rounds.
fn measure(
    args: &Args,
    layer: &Layer,
    what: What,
    operands: &mut Operands,
    torch: &mut Option<Torch>,
    peak: f64,
) -> Result<Vec<Cell>, Box<dyn std::error::Error>> {
    let n = operands.x.shape.spatial().len();
    let can_winograd = operands.attrs.can_winograd(n);
    let mut secs: [Vec<f64>; 4] = Default::default();
    for _ in 0..args.rounds {
        secs[0].push(operands.time(layer, what, ConvAlgo::Direct, args.secs));
        if can_winograd {
            secs[1].push(operands.time(layer, what, ConvAlgo::Winograd, args.secs));
        }
        for (layout, secs) in ["nchw", "nhwc"].into_iter().zip(&mut secs[2..]) {
            let Some(torch) = torch else { continue };
            let request = json!({
                "kind": "layer", "ins": layer.ins, "outs": layer.outs,
                "spatial": extents(layer)?, "kernel": layer.kernel, "stride": layer.stride,
                "pad": layer.pad, "groups": layer.groups, "transposed": layer.transposed,
                "op": what.name(), "layout": layout, "secs": args.secs,
            });
            secs.push(torch.number(&request, "secs")?);
        }
    }
    let rate = secs.map(|secs| median(secs).map(|s| operands.flops / s));
    let gflops = |rate: Option<f64>| match rate {
        Some(rate) => Cell::number(rate / 1e9, 0),
        None => Cell::from("-"),
    };
    let best = |a: Option<f64>, b: Option<f64>| a.into_iter().chain(b).reduce(f64::max);
    let ratio = match (best(rate[0], rate[1]), best(rate[2], rate[3])) {
        (Some(ours), Some(theirs)) => Cell::number(ours / theirs, 2),
        _ => Cell::from("-"),
    };
    Ok(vec![
        layer.name.as_str().into(),
        what.name().into(),
        Cell::number(operands.flops / 1e9, 2),
        gflops(rate[0]),
        Cell::number(rate[0].unwrap_or(0.0) / peak, 2),
        gflops(rate[1]),
        gflops(rate[2]),
        gflops(rate[3]),
        ratio,
    ])
}

fn median(mut secs: Vec<f64>) -> Option<f64> {
    secs.sort_by(f64::total_cmp);
    secs.get(secs.len() / 2).copied()
}

fn extents(layer: &Layer) -> Result<Vec<usize>, std::num::ParseIntError> {
    layer.spatial.split('x').map(str::parse).collect()
}

/// A layer as the convolution that it is, or is the adjoint of: that one maps
/// `x` to `y`.
struct Operands {
    attrs: ConvAttrs,
    x: Ty,
    y: Ty,
    w: Ty,
    /// Those of `x`, `y` and `w`.
    values: [MmapMut; 3],
    workspace: MmapMut,
    flops: f64,
}

impl Operands {
    fn new(layer: &Layer, workspace_bytes: usize) -> Result<Self, Box<dyn std::error::Error>> {
        let input = extents(layer)?;
        let n = input.len();
        let first = |value: usize, none: usize| {
            let mut all = [none; 3];
            all[..n].fill(value);
            all
        };
        let attrs = ConvAttrs {
            kernel: first(layer.kernel, 1),
            stride: first(layer.stride, 1),
            dilation: [1; 3],
            pad_lo: first(layer.pad, 0),
            pad_hi: first(layer.pad, 0),
            groups: layer.groups,
            algo: ConvAlgo::Direct,
        };
        let (x_channels, y_channels, large) = if layer.transposed {
            let out = |i: usize| (i - 1) * layer.stride + layer.kernel - 2 * layer.pad;
            (
                layer.outs,
                layer.ins,
                input.iter().map(|&i| out(i)).collect(),
            )
        } else {
            (layer.ins, layer.outs, input)
        };
        let small: Option<Vec<usize>> = (0..n).map(|s| attrs.out_extent(s, large[s])).collect();
        let small = small.ok_or_else(|| format!("{}: no output", layer.name))?;
        let ty = |shape, form| Ty {
            dtype: DType::F32,
            shape,
            form,
        };
        let mut w_dims = vec![y_channels, x_channels / layer.groups];
        w_dims.extend(&attrs.kernel[..n]);
        let x = ty(Shape::map(1, x_channels, &large), Form::Map);
        let y = ty(Shape::map(1, y_channels, &small), Form::Map);
        let w = ty(Shape::new(&w_dims), Form::Flat);
        let points: usize = small.iter().product();
        Ok(Operands {
            attrs,
            x,
            y,
            w,
            values: [numbers(&x)?, numbers(&y)?, numbers(&w)?],
            workspace: memory(workspace_bytes)?,
            flops: 2.0 * w.shape.elems() as f64 * points as f64,
        })
    }

    /// Median seconds of a call, over about `secs`.
    fn time(&mut self, layer: &Layer, what: What, algo: ConvAlgo, secs: f64) -> f64 {
        let mut took = Vec::new();
        self.call(layer, what, algo);
        let end = Instant::now() + Duration::from_secs_f64(secs);
        while took.len() < 3 || (Instant::now() < end && took.len() < 500) {
            let started = Instant::now();
            self.call(layer, what, algo);
            took.push(started.elapsed().as_secs_f64());
        }
        median(took).unwrap_or(f64::NAN)
    }

    fn call(&mut self, layer: &Layer, what: What, algo: ConvAlgo) {
        let attrs = ConvAttrs { algo, ..self.attrs };
        let [x, y, w] = self.values.each_mut().map(floats);
        let [x_layout, y_layout, w_layout] = [&self.x, &self.y, &self.w].map(Layout::whole);
        let whole = |ty| Box4::lift(&Region::whole(ty));
        let job = |op, region, inputs| Job {
            op,
            region,
            inputs,
            step: 0,
            seed: 0,
            plain: false,
        };
        if what == What::Weight {
            let op = Op::ConvWeightGrad(attrs);
            let inputs = [In::new(x_layout, x), In::new(y_layout, y)];
            let job = job(&op, whole(&self.y), &inputs);
            cpu::accumulate(&job, &mut State::InPlace(w), &self.w, &mut self.workspace);
        } else if (what == What::Forward) != layer.transposed {
            let op = Op::Conv(attrs);
            let inputs = [In::new(x_layout, x), In::new(w_layout, w)];
            let job = job(&op, whole(&self.y), &inputs);
            cpu::run(&job, &mut Out::new(y_layout, y), &mut self.workspace);
        } else {
            let mut out_spatial = [1; 3];
            let spatial = self.x.shape.spatial();
            out_spatial[..spatial.len()].copy_from_slice(spatial);
            let op = Op::ConvTranspose(ConvTransposeAttrs {
                conv: attrs,
                out_spatial,
            });
            let inputs = [In::new(y_layout, y), In::new(w_layout, w)];
            let job = job(&op, whole(&self.x), &inputs);
            cpu::run(&job, &mut Out::new(x_layout, x), &mut self.workspace);
        }
    }
}

/// Reproducible numbers in (−1, 1).
fn numbers(ty: &Ty) -> std::io::Result<MmapMut> {
    let mut memory = memory(ty.shape.elems() * size_of::<f32>())?;
    for (i, value) in floats(&mut memory).iter_mut().enumerate() {
        *value = ((i as u32).wrapping_mul(2_654_435_761) >> 8) as f32 / 8e6 - 1.0;
    }
    Ok(memory)
}

/// Memory of the kind that a step's arena is made of.
fn memory(bytes: usize) -> std::io::Result<MmapMut> {
    let memory = MmapMut::map_anon(bytes)?;
    // A wish: where there are no huge pages, small ones do.
    #[cfg(target_os = "linux")]
    let _ = memory.advise(memmap2::Advice::HugePage);
    Ok(memory)
}

/// Memory as numbers; pages are aligned for any.
fn floats(memory: &mut MmapMut) -> &mut [f32] {
    bytemuck::cast_slice_mut(memory)
}
