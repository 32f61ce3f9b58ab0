//! From text to tape.

use crate::error::TapeError;
use crate::op::{Op, PerAxis};
use crate::ops::{
    self, ConvAlgo, ConvAttrs, ConvTransposeAttrs, NormAttrs, NormKind, NormParam, PadAttrs,
    PoolAttrs, Saved, SliceAttrs, UnaryKind, UpsampleAttrs, UpsampleMode,
};
use crate::tape::{NodeId, Tape};
use crate::ty::{DType, MAX_SPATIAL, Ty};

use super::names::OPS;
use super::near;
use super::scan::{Attributes, Line, Scanned, undefined};

impl Tape {
    /// Reads the text form; `docs/tape.md` describes it by example.
    ///
    /// ```
    /// use sstep_autodiff::Tape;
    ///
    /// let tape = Tape::parse(
    ///     "tape v1 f32
    ///      x = input [1, 3, 64, 64]
    ///      w = param [16, 3, 3, 3]
    ///      y = conv(x, w) stride=2 pad=1
    ///      output y",
    /// )?;
    /// let y = tape.by_name("y").expect("just defined");
    /// assert_eq!(tape.ty(y).to_string(), "f32[1, 16, 32, 32]");
    /// assert_eq!(Tape::parse(&tape.to_string())?.to_string(), tape.to_string());
    ///
    /// let error = Tape::parse("tape v1 f32\nx = input [2, 8]\ny = rely(x)").unwrap_err();
    /// assert_eq!(error.to_string(), "line 3: there is no op `rely`; did you mean `relu`?");
    /// # Ok::<(), sstep_autodiff::TapeError>(())
    /// ```
    ///
    /// # Errors
    /// [`TapeError::Parse`] with the line, what is wrong with it and what is
    /// allowed; an op that does not accept its inputs is reported so, too.
    pub fn parse(text: &str) -> Result<Tape, TapeError> {
        let mut tape = None;
        for (i, text) in text.trim_start_matches('\u{feff}').lines().enumerate() {
            let mut line = Line::new(text);
            if line.is_done() {
                continue;
            }
            let done = match &mut tape {
                None => header(&mut line).map(|dtype| tape = Some(Tape::new(dtype))),
                Some(tape) => statement(tape, &mut line),
            };
            done.map_err(|reason| TapeError::Parse {
                line: i + 1,
                reason,
            })?;
        }
        tape.ok_or_else(|| TapeError::Parse {
            line: 1,
            reason: "the text is empty; a tape begins with `tape v1 f32`".to_owned(),
        })
    }
}

impl std::str::FromStr for Tape {
    type Err = TapeError;

    fn from_str(text: &str) -> Result<Self, TapeError> {
        Tape::parse(text)
    }
}

fn header(line: &mut Line) -> Scanned<DType> {
    let words = [line.word(), line.word(), line.word()];
    match words {
        ["tape", "v1", "f32"] if line.is_done() => Ok(DType::F32),
        ["tape", "v1", "f64"] if line.is_done() => Ok(DType::F64),
        ["tape", version, _] if version != "v1" => Err(format!(
            "this is version `{version}` of the text form; only `v1` can be read: begin with `tape v1 f32`"
        )),
        _ => Err("a tape begins with `tape v1 f32` or `tape v1 f64`".to_owned()),
    }
}

fn statement(tape: &mut Tape, line: &mut Line) -> Scanned {
    let name = line.name("a line `name = op(inputs)`")?;
    if line.eat('=') {
        return definition(tape, name, line);
    }
    if name != "output" {
        return Err(format!("expected `{name} = op(inputs)` or `output {name}`"));
    }
    let id = lookup(tape, line.name("the name of a node")?)?;
    if !line.is_done() {
        return Err("one output per line: `output name`".to_owned());
    }
    tape.output(id);
    Ok(())
}

fn lookup(tape: &Tape, name: &str) -> Scanned<NodeId> {
    tape.by_name(name).ok_or_else(|| {
        undefined(
            name,
            tape.order().iter().map(|&id| tape.node(id).name.as_str()),
        )
    })
}

fn definition(tape: &mut Tape, name: &str, line: &mut Line) -> Scanned {
    let kind = line.name("an op such as `conv(x, w)`, or `input`, `param`, `constant`")?;
    if ["input", "param", "constant"].contains(&kind) {
        let dims = line.list(&format!("`{kind}`"))?;
        let mut at = line.attributes(kind)?;
        let op = match kind {
            "input" => Op::Input {
                grad: at.flag("grad")?,
            },
            "param" => Op::Param {
                grad: !at.flag("frozen")?,
            },
            _ => Op::Constant {
                value: at.real("value")?,
            },
        };
        at.finish()?;
        let ty = ops::checked_ty(tape.dtype(), ops::leaf_form(&op, dims.len()), &dims)
            .map_err(|reason| reason.0)?;
        return tape.leaf(name, op, ty).map(drop).map_err(|e| e.to_string());
    }
    if !OPS.contains(&kind) {
        return Err(format!(
            "there is no op `{kind}`{}",
            near::hint(kind, OPS.iter().copied(), true)
        ));
    }
    line.expect('(', &format!("`{kind}`"))?;
    let mut inputs = Vec::new();
    while !line.eat(')') {
        if !inputs.is_empty() {
            line.expect(',', "an input")?;
        }
        inputs.push(lookup(tape, line.name("the name of an input, or `)`")?)?);
    }
    let tys: Vec<Ty> = inputs.iter().map(|&id| tape.ty(id)).collect();
    let mut at = line.attributes(kind)?;
    let op = read_op(kind, &mut at, &tys)?;
    at.finish()?;
    tape.push_named(name, op, &inputs)
        .map(drop)
        .map_err(|e| e.to_string())
}

/// The op of that name, with its attributes. What the inputs' types imply (the
/// number of axes, a kernel) is taken from them; whether they fit is left to
/// the shape rules.
fn read_op(name: &str, at: &mut Attributes, tys: &[Ty]) -> Scanned<Op> {
    if let Some(kind) = read_unary(name, at)? {
        return Ok(Op::Unary(kind));
    }
    if let Some(kind) = name.strip_suffix("_grad")
        && let Some(kind) = read_unary(kind, at)?
    {
        let choices = [("input", Saved::Input), ("output", Saved::Output)];
        let saved = at.choice("from", &choices, Some(Saved::Input))?;
        return Ok(Op::UnaryGrad { kind, saved });
    }
    let n = tys
        .iter()
        .find(|t| t.is_map())
        .map(|t| t.shape.spatial().len());
    // Channels and space; a tensor of rank 1 is refused later.
    let boxed = tys.first().map(|t| t.shape.rank() - 1);
    Ok(match name {
        "conv" => Op::Conv(read_conv(at, n, weight_kernel(tys, n))?),
        "conv_transpose" => Op::ConvTranspose(ConvTransposeAttrs {
            conv: read_conv(at, n, weight_kernel(tys, n))?,
            out_spatial: at.required_axes("out", n, 1)?.0,
        }),
        "conv_weight_grad" => {
            let kernel = at.required_axes("kernel", n, 1)?.0;
            Op::ConvWeightGrad(read_conv(at, n, kernel)?)
        }
        "max_pool" => Op::MaxPool(read_pool(at, n)?),
        "max_pool_grad" => Op::MaxPoolGrad(read_pool(at, n)?),
        "avg_pool" => Op::AvgPool(read_pool(at, n)?),
        "avg_pool_grad" => Op::AvgPoolGrad {
            pool: read_pool(at, n)?,
            in_spatial: at.required_axes("in", n, 1)?.0,
        },
        "upsample" => Op::Upsample(read_upsample(at, n)?),
        "upsample_grad" => Op::UpsampleGrad(read_upsample(at, n)?),
        "add" => Op::Add,
        "mul" => Op::Mul,
        "scale" => Op::Scale {
            factor: at.real("factor")?,
        },
        "dropout" => Op::Dropout {
            p: at.real("p")?,
            key: at.whole("key")?.unwrap_or(0),
        },
        "softmax" => Op::Softmax,
        "softmax_grad" => Op::SoftmaxGrad,
        "channel_sum" => Op::ChannelSum,
        "cast" => {
            let choices = [DType::F32, DType::Bf16, DType::F16].map(|t| (t, t.to_string()));
            let choices = [0, 1, 2].map(|i| (choices[i].1.as_str(), choices[i].0));
            Op::Cast {
                to: at.choice("to", &choices, None)?,
            }
        }
        "concat" => Op::Concat,
        "slice" => Op::Slice(SliceAttrs {
            start: at.required_axes("start", boxed, 0)?.0,
            len: at.required_axes("len", boxed, 1)?.0,
        }),
        "pad" => Op::Pad(PadAttrs {
            lo: at.required_axes("lo", boxed, 0)?.0,
            hi: at.required_axes("hi", boxed, 0)?.0,
        }),
        "broadcast" => {
            let (spatial, n_spatial) = read_spatial(at)?;
            Op::Broadcast { spatial, n_spatial }
        }
        "sum_map" => {
            let choices = [("true", true), ("false", false)];
            Op::SumMap {
                keep_batch: at.choice("keep_batch", &choices, Some(true))?,
            }
        }
        "global_max" => Op::GlobalMax,
        "global_max_grad" => {
            let (spatial, n_spatial) = read_spatial(at)?;
            Op::GlobalMaxGrad { spatial, n_spatial }
        }
        "spatial_lse" => Op::SpatialLse,
        "moments" => Op::Moments(read_kind(name, at)?),
        "pack_moments" => Op::PackMoments,
        "normalise" => Op::Normalise(read_norm(name, at)?),
        "norm_sums" => Op::NormSums(read_norm(name, at)?),
        "norm_grad" => Op::NormGrad(read_norm(name, at)?),
        "norm_param_grad" => {
            let choices = [("gamma", NormParam::Gamma), ("beta", NormParam::Beta)];
            Op::NormParamGrad(at.choice("of", &choices, None)?)
        }
        "linear" => Op::Linear,
        "linear_input_grad" => Op::LinearInputGrad,
        "linear_weight_grad" => Op::LinearWeightGrad,
        "cross_entropy" => Op::CrossEntropy,
        "cross_entropy_grad" => Op::CrossEntropyGrad,
        "bce" => Op::Bce,
        "bce_grad" => Op::BceGrad,
        "mse" => Op::Mse,
        "mse_grad" => Op::MseGrad,
        "dice_sums" => Op::DiceSums,
        "dice_sums_grad" => Op::DiceSumsGrad,
        "dice_loss" => Op::DiceLoss {
            smooth: at.real("smooth")?,
        },
        "dice_loss_grad" => Op::DiceLossGrad {
            smooth: at.real("smooth")?,
        },
        _ => return Err(format!("there is no op `{name}`")),
    })
}

fn read_unary(name: &str, at: &mut Attributes) -> Scanned<Option<UnaryKind>> {
    Ok(Some(match name {
        "relu" => UnaryKind::Relu,
        "leaky_relu" => UnaryKind::LeakyRelu(at.real("slope")?),
        "gelu" => UnaryKind::Gelu,
        "silu" => UnaryKind::Silu,
        "sigmoid" => UnaryKind::Sigmoid,
        "tanh" => UnaryKind::Tanh,
        "exp" => UnaryKind::Exp,
        _ => return Ok(None),
    }))
}

fn weight_kernel(tys: &[Ty], n: Option<usize>) -> PerAxis {
    let mut kernel = [1; MAX_SPATIAL];
    if let (Some(w), Some(n)) = (tys.get(1), n) {
        for (k, &extent) in kernel.iter_mut().zip(w.shape.spatial()).take(n) {
            *k = extent;
        }
    }
    kernel
}

fn read_conv(at: &mut Attributes, n: Option<usize>, kernel: PerAxis) -> Scanned<ConvAttrs> {
    let stride = at.axes("stride", n, 1)?;
    let dilation = at.axes("dilation", n, 1)?;
    let (pad_lo, pad_hi) = at.pads(n)?;
    let groups = at.whole("groups")?.unwrap_or(1);
    Ok(ConvAttrs {
        kernel,
        stride,
        dilation,
        pad_lo,
        pad_hi,
        groups,
        algo: ConvAlgo::Direct,
    })
}

fn read_pool(at: &mut Attributes, n: Option<usize>) -> Scanned<PoolAttrs> {
    let kernel = at.required_axes("kernel", n, 1)?.0;
    let stride = at.axes("stride", n, 1)?;
    let (pad_lo, pad_hi) = at.pads(n)?;
    Ok(PoolAttrs {
        kernel,
        stride,
        pad_lo,
        pad_hi,
        count_pad: at.flag("count_pad")?,
    })
}

fn read_upsample(at: &mut Attributes, n: Option<usize>) -> Scanned<UpsampleAttrs> {
    let factor = at.required_axes("factor", n, 1)?.0;
    let choices = [
        ("nearest", UpsampleMode::Nearest),
        ("linear", UpsampleMode::Linear),
    ];
    let mode = at.choice("mode", &choices, Some(UpsampleMode::Nearest))?;
    Ok(UpsampleAttrs { mode, factor })
}

fn read_spatial(at: &mut Attributes) -> Scanned<(PerAxis, u8)> {
    let (spatial, n) = at.required_axes("spatial", None, 1)?;
    Ok((spatial, n as u8))
}

fn read_kind(name: &str, at: &mut Attributes) -> Scanned<NormKind> {
    match (at.flag("batch")?, at.whole("groups")?) {
        (true, None) => Ok(NormKind::Batch),
        (false, Some(groups)) => Ok(NormKind::Group(groups)),
        _ => Err(format!(
            "`{name}` needs either `batch` (statistics over batch and space) or `groups=…` (per \
             sample; 1 for layer norm, as many as channels for instance norm)"
        )),
    }
}

fn read_norm(name: &str, at: &mut Attributes) -> Scanned<NormAttrs> {
    let kind = read_kind(name, at)?;
    Ok(NormAttrs {
        kind,
        eps: at.real("eps")?,
        frozen: at.flag("frozen")?,
    })
}
