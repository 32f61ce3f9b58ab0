//! From tape to text.

use std::fmt::{self, Write};

use crate::op::{Num, Op, PerAxis};
use crate::ops::{
    ConvAttrs, NormAttrs, NormKind, NormParam, PoolAttrs, Saved, UnaryKind, UpsampleAttrs,
    UpsampleMode,
};
use crate::tape::{NodeId, Tape};
use crate::ty::Ty;

impl fmt::Display for Tape {
    /// The text form, which [`Tape::parse`] reads back.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "tape v1 {}", self.dtype())?;
        writeln!(f)?;
        for &id in self.order() {
            writeln!(f, "{}", line(self, id))?;
        }
        if !self.outputs().is_empty() {
            writeln!(f)?;
        }
        for &id in self.outputs() {
            writeln!(f, "output {}", self.node(id).name)?;
        }
        Ok(())
    }
}

/// One node's line. A leaf's type stands in it already.
fn line(tape: &Tape, id: NodeId) -> String {
    let node = tape.node(id);
    let mut line = Written(format!("{} = {}", node.name, node.op.name()));
    if node.op.is_leaf() {
        line.text(format_args!(" {}", node.ty.shape));
        line.attributes(&node.op, &[]);
        return line.0;
    }
    let inputs: Vec<&str> = node
        .inputs
        .iter()
        .map(|&i| tape.node(i).name.as_str())
        .collect();
    line.text(format_args!("({})", inputs.join(", ")));
    line.attributes(&node.op, &tape.input_tys(id));
    line.text(format_args!("  # {}", node.ty));
    line.0
}

/// A line being written.
struct Written(String);

impl Written {
    fn text(&mut self, text: fmt::Arguments<'_>) {
        self.0.write_fmt(text).expect("a string takes any text");
    }

    fn flag(&mut self, key: &str, set: bool) {
        if set {
            self.text(format_args!(" {key}"));
        }
    }

    fn list(&mut self, key: &str, values: &[usize]) {
        self.text(format_args!(" {key}={values:?}"));
    }

    /// A list, unless all of it is neutral.
    fn axes(&mut self, key: &str, values: &[usize], neutral: usize) {
        if values.iter().any(|&v| v != neutral) {
            self.list(key, values);
        }
    }

    /// The shortest text that reads back to the same bits.
    fn real(&mut self, key: &str, value: Num) {
        let text = format!("{value:?}");
        self.text(format_args!(
            " {key}={}",
            text.strip_suffix(".0").unwrap_or(&text)
        ));
    }

    fn pads(&mut self, lo: &[usize], hi: &[usize]) {
        if lo == hi {
            self.axes("pad", lo, 0);
        } else {
            self.axes("pad_lo", lo, 0);
            self.axes("pad_hi", hi, 0);
        }
    }

    fn conv(&mut self, a: &ConvAttrs, n: usize) {
        self.axes("stride", &a.stride[..n], 1);
        self.axes("dilation", &a.dilation[..n], 1);
        self.pads(&a.pad_lo[..n], &a.pad_hi[..n]);
        self.axes_of_one("groups", a.groups);
    }

    fn axes_of_one(&mut self, key: &str, value: usize) {
        if value != 1 {
            self.text(format_args!(" {key}={value}"));
        }
    }

    fn pool(&mut self, a: &PoolAttrs, n: usize) {
        self.list("kernel", &a.kernel[..n]);
        self.axes("stride", &a.stride[..n], 1);
        self.pads(&a.pad_lo[..n], &a.pad_hi[..n]);
        self.flag("count_pad", a.count_pad);
    }

    fn upsample(&mut self, a: &UpsampleAttrs, n: usize) {
        self.list("factor", &a.factor[..n]);
        self.0.push_str(match a.mode {
            UpsampleMode::Nearest => " mode=nearest",
            UpsampleMode::Linear => " mode=linear",
        });
    }

    fn spatial(&mut self, spatial: &PerAxis, n: u8) {
        self.list("spatial", &spatial[..n as usize]);
    }

    fn kind(&mut self, kind: NormKind) {
        match kind {
            NormKind::Batch => self.flag("batch", true),
            NormKind::Group(groups) => self.text(format_args!(" groups={groups}")),
        }
    }

    fn norm(&mut self, a: &NormAttrs) {
        self.kind(a.kind);
        self.real("eps", a.eps);
        self.flag("frozen", a.frozen);
    }

    fn unary(&mut self, kind: &UnaryKind) {
        match kind {
            UnaryKind::LeakyRelu(slope) => self.real("slope", *slope),
            UnaryKind::Relu
            | UnaryKind::Gelu
            | UnaryKind::Silu
            | UnaryKind::Sigmoid
            | UnaryKind::Tanh
            | UnaryKind::Exp => {}
        }
    }

    fn attributes(&mut self, op: &Op, inputs: &[Ty]) {
        // Spatial axes, and with the channels in front.
        let n = inputs.first().map_or(0, |t| t.shape.spatial().len());
        let boxed = inputs.first().map_or(0, |t| t.shape.rank() - 1);
        match op {
            Op::Input { grad } => self.flag("grad", *grad),
            Op::Param { grad } => self.flag("frozen", !grad),
            Op::Constant { value } => self.real("value", *value),
            Op::Conv(a) => self.conv(a, n),
            Op::ConvTranspose(a) => {
                self.conv(&a.conv, n);
                self.list("out", &a.out_spatial[..n]);
            }
            Op::ConvWeightGrad(a) => {
                self.list("kernel", &a.kernel[..n]);
                self.conv(a, n);
            }
            Op::MaxPool(a) | Op::MaxPoolGrad(a) | Op::AvgPool(a) => self.pool(a, n),
            Op::AvgPoolGrad { pool, in_spatial } => {
                self.pool(pool, n);
                self.list("in", &in_spatial[..n]);
            }
            Op::Upsample(a) | Op::UpsampleGrad(a) => self.upsample(a, n),
            Op::Unary(kind) => self.unary(kind),
            Op::UnaryGrad { kind, saved } => {
                self.unary(kind);
                if *saved == Saved::Output {
                    self.0.push_str(" from=output");
                }
            }
            Op::Scale { factor } => self.real("factor", *factor),
            Op::Cast { to } => self.text(format_args!(" to={to}")),
            Op::Dropout { p, key } => {
                self.real("p", *p);
                self.text(format_args!(" key={key}"));
            }
            Op::Slice(a) => {
                self.list("start", &a.start[..boxed]);
                self.list("len", &a.len[..boxed]);
            }
            Op::Pad(a) => {
                self.list("lo", &a.lo[..boxed]);
                self.list("hi", &a.hi[..boxed]);
            }
            Op::Broadcast { spatial, n_spatial } | Op::GlobalMaxGrad { spatial, n_spatial } => {
                self.spatial(spatial, *n_spatial);
            }
            Op::SumMap { keep_batch } => {
                if !keep_batch {
                    self.0.push_str(" keep_batch=false");
                }
            }
            Op::Moments(kind) => self.kind(*kind),
            Op::Normalise(a) | Op::NormSums(a) | Op::NormGrad(a) => self.norm(a),
            Op::NormParamGrad(NormParam::Gamma) => self.0.push_str(" of=gamma"),
            Op::NormParamGrad(NormParam::Beta) => self.0.push_str(" of=beta"),
            Op::DiceLoss { smooth } | Op::DiceLossGrad { smooth } => self.real("smooth", *smooth),
            Op::Add
            | Op::Mul
            | Op::Softmax
            | Op::SoftmaxGrad
            | Op::ChannelSum
            | Op::Concat
            | Op::GlobalMax
            | Op::SpatialLse
            | Op::PackMoments
            | Op::Linear
            | Op::LinearInputGrad
            | Op::LinearWeightGrad
            | Op::CrossEntropy
            | Op::CrossEntropyGrad
            | Op::Bce
            | Op::BceGrad
            | Op::Mse
            | Op::MseGrad
            | Op::DiceSums
            | Op::DiceSumsGrad => {}
        }
    }
}
