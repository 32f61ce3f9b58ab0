//! Narrow storage: maps between ops in 16 bits.
//!
//! What a step moves and keeps is nearly all maps, so half the bytes of a map is half
//! the memory and half the traffic. [`narrow`] decides, once for the whole program,
//! which maps are stored so; casts say it on the tape, and everything after it plans,
//! rewrites and executes what stands there.
//!
//! The choice is that of mixed-precision training (Micikevicius et al.,
//! arXiv:1710.03740): parameters stay `f32` and a convolution's weight is cast where it
//! is used; convolutions, norms, pools and activations work on narrow maps;
//! exponentials, softmaxes and losses on `f32`, and so does what only they read. Ops
//! that take a map as it comes (sums, products, slices) stay `f32` where one of their
//! maps is `f32` for such a reason.

use std::collections::{HashMap, HashSet};

use crate::error::TapeError;
use crate::op::Op;
use crate::ops::UnaryKind;
use crate::tape::{NodeId, Tape};
use crate::ty::DType;

/// The same program with its maps stored as `to`, before or after the reverse sweep.
/// Names and outputs stay; casts are named after what they cast.
///
/// ```
/// use sstep_autodiff::{DType, Tape, narrow};
///
/// let tape = Tape::parse(
///     "tape v1 f32
///      x = input [1, 3, 64, 64]
///      w = param [8, 3, 3, 3]
///      y = conv(x, w) pad=1
///      z = relu(y)
///      s = sum_map(z)
///      output s",
/// )?;
/// let narrow = narrow(&tape, DType::Bf16)?;
/// let ty = |name| narrow.ty(narrow.by_name(name).expect("a node")).to_string();
/// assert_eq!(ty("z"), "bf16[1, 8, 64, 64]");
/// assert_eq!(ty("w"), "f32[8, 3, 3, 3]");
/// assert_eq!(ty("s"), "f32[1, 8]");
/// assert!(narrow.to_string().contains("w.bf16 = cast(w) to=bf16"));
/// # Ok::<(), sstep_autodiff::TapeError>(())
/// ```
///
/// # Errors
/// [`TapeError::Precision`] if `to` is not narrow, if the tape computes in `f64`, or if it
/// stores something in 16 bits already.
pub fn narrow(tape: &Tape, to: DType) -> Result<Tape, TapeError> {
    check(tape, to)?;
    let wide = wide_nodes(tape);
    let mut pass = Pass {
        old: tape,
        new: Tape::new(tape.dtype()),
        to,
        at: HashMap::new(),
        casts: HashMap::new(),
        is_free: HashMap::new(),
    };
    for &id in tape.order() {
        pass.node(id, wide.contains(&id))?;
    }
    for id in tape.outputs() {
        let output = pass.at[id];
        pass.new.output(output);
    }
    Ok(pass.new)
}

fn check(tape: &Tape, to: DType) -> Result<(), TapeError> {
    let refuse = |reason: String| Err(TapeError::Precision { reason });
    if !to.is_narrow() {
        return refuse(format!("maps are stored as bf16 or f16, not {to}"));
    }
    if tape.dtype() != to.wide() {
        let dtype = tape.dtype();
        return refuse(format!(
            "maps of a tape of {dtype} are not stored as {to}: write it in f32"
        ));
    }
    let stored = |id: &&NodeId| tape.ty(**id).dtype.is_narrow();
    if let Some(id) = tape.order().iter().find(stored) {
        let (name, dtype) = (&tape.node(*id).name, tape.ty(*id).dtype);
        return refuse(format!(
            "the tape says already what is stored in 16 bits: node `{name}` as {dtype}"
        ));
    }
    Ok(())
}

/// How an op takes its maps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Taste {
    /// Narrow: it tolerates rounding, and its maps are what is large.
    Narrow,
    /// As they come.
    Any,
    /// `f32`: rounding its argument changes its result by more than a rounding.
    Wide,
}

fn taste(op: &Op) -> Taste {
    match op {
        Op::Conv(_)
        | Op::ConvTranspose(_)
        | Op::ConvWeightGrad(_)
        | Op::MaxPool(_)
        | Op::MaxPoolGrad(_)
        | Op::AvgPool(_)
        | Op::AvgPoolGrad { .. }
        | Op::Upsample(_)
        | Op::UpsampleGrad(_)
        | Op::Moments(_)
        | Op::Normalise(_)
        | Op::NormSums(_)
        | Op::NormGrad(_) => Taste::Narrow,
        Op::Unary(kind) | Op::UnaryGrad { kind, saved: _ } => match kind {
            UnaryKind::Exp => Taste::Wide,
            UnaryKind::Relu
            | UnaryKind::LeakyRelu(_)
            | UnaryKind::Gelu
            | UnaryKind::Silu
            | UnaryKind::Sigmoid
            | UnaryKind::Tanh => Taste::Narrow,
        },
        Op::Softmax
        | Op::SoftmaxGrad
        | Op::SpatialLse
        | Op::CrossEntropy
        | Op::CrossEntropyGrad
        | Op::Bce
        | Op::BceGrad
        | Op::Mse
        | Op::MseGrad
        | Op::DiceSums
        | Op::DiceSumsGrad
        | Op::DiceLoss { .. }
        | Op::DiceLossGrad { .. } => Taste::Wide,
        Op::Input { .. }
        | Op::Param { .. }
        | Op::Constant { .. }
        | Op::Add
        | Op::Mul
        | Op::Scale { .. }
        | Op::Dropout { .. }
        | Op::ChannelSum
        | Op::Cast { .. }
        | Op::Concat
        | Op::Slice(_)
        | Op::Pad(_)
        | Op::Broadcast { .. }
        | Op::SumMap { .. }
        | Op::GlobalMax
        | Op::GlobalMaxGrad { .. }
        | Op::PackMoments
        | Op::NormParamGrad(_)
        | Op::Linear
        | Op::LinearInputGrad
        | Op::LinearWeightGrad => Taste::Any,
    }
}

/// Nodes whose maps are `f32`: of ops that want it, and of ops that take any map and
/// are read by such nodes alone.
fn wide_nodes(tape: &Tape) -> HashSet<NodeId> {
    // Readers of a node so far that want `f32`, and that do not.
    let mut readers: HashMap<NodeId, (usize, usize)> = HashMap::new();
    let mut wide = HashSet::new();
    for &id in tape.order().iter().rev() {
        let op = &tape.node(id).op;
        let (for_it, against) = readers.get(&id).copied().unwrap_or_default();
        let is_wide = match taste(op) {
            Taste::Wide => true,
            Taste::Narrow => false,
            // Somebody looks at an output, so its map may well be stored.
            Taste::Any => {
                let is_inner = tape.ty(id).is_map() && !tape.outputs().contains(&id);
                is_inner && for_it > 0 && against == 0
            }
        };
        if is_wide {
            wide.insert(id);
        }
        for &input in &tape.node(id).inputs {
            let (for_it, against) = readers.entry(input).or_default();
            *(if is_wide { for_it } else { against }) += 1;
        }
    }
    wide
}

struct Pass<'a> {
    old: &'a Tape,
    new: Tape,
    to: DType,
    /// New node of each old one.
    at: HashMap<NodeId, NodeId>,
    /// What a new node is as another type.
    casts: HashMap<(NodeId, DType), NodeId>,
    /// New maps that are `f32` for no reason of their own: leaves, and vectors that are
    /// repeated over space.
    is_free: HashMap<NodeId, bool>,
}

impl Pass<'_> {
    fn node(&mut self, id: NodeId, is_wide: bool) -> Result<(), TapeError> {
        let node = self.old.node(id);
        if node.op.is_leaf() {
            let new = self.new.leaf(&node.name, node.op, node.ty)?;
            self.is_free.insert(new, true);
            self.at.insert(id, new);
            return Ok(());
        }
        let mut inputs: Vec<NodeId> = node.inputs.iter().map(|i| self.at[i]).collect();
        let any_map = inputs.iter().any(|&i| self.new.ty(i).is_map());
        if any_map {
            let is_bound = |i: &NodeId| {
                let ty = self.new.ty(*i);
                ty.is_map() && !ty.dtype.is_narrow() && !self.is_free[i]
            };
            let stays = match taste(&node.op) {
                Taste::Wide => true,
                Taste::Narrow => false,
                Taste::Any => is_wide || inputs.iter().any(is_bound),
            };
            let dtype = if stays { self.new.dtype() } else { self.to };
            let is_conv = matches!(node.op, Op::Conv(_) | Op::ConvTranspose(_));
            for (i, input) in inputs.iter_mut().enumerate() {
                if self.new.ty(*input).is_map() || (is_conv && i == 1) {
                    *input = self.cast(*input, dtype)?;
                }
            }
        }
        let new = self.new.push_named(&node.name, node.op, &inputs)?;
        self.is_free.insert(new, !any_map);
        self.at.insert(id, new);
        Ok(())
    }

    /// A new node as elements of another type.
    fn cast(&mut self, id: NodeId, to: DType) -> Result<NodeId, TapeError> {
        if self.new.ty(id).dtype == to {
            return Ok(id);
        }
        if let Some(&done) = self.casts.get(&(id, to)) {
            return Ok(done);
        }
        let taken = |name: &str| self.old.by_name(name).or(self.new.by_name(name)).is_some();
        let mut name = format!("{}.{to}", self.new.node(id).name);
        while taken(&name) {
            name.push('_');
        }
        let new = self.new.push_named(&name, Op::Cast { to }, &[id])?;
        self.casts.insert((id, to), new);
        Ok(new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::grad::{backward, backward_scaled};
    use crate::testing::{parse, random_tape};

    /// The lines of a narrowed tape after the leaves, without comments.
    fn lines(text: &str) -> Vec<String> {
        let tape = narrow(&parse(text).unwrap(), DType::Bf16).unwrap();
        tape.check().unwrap();
        let text = tape.to_string();
        let body = text.lines().filter(|l| l.contains('('));
        body.map(|l| l.split("  #").next().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn weights_and_images_are_cast_once_and_losses_are_f32() {
        let found = lines(
            "x = input [1, 3, 8, 8]\nw = param [3, 3, 1, 1]\nb = param [3]\n\
             t = input [1, 3, 8, 8]\na = conv(x, w, b)\nc = conv(a, w)\nd = add(c, a)\n\
             m = moments(d) batch\ny = normalise(d, m, b, b) batch eps=1e-5\nl = mse(y, t)",
        );
        assert_eq!(
            found,
            [
                "x.bf16 = cast(x) to=bf16",
                "w.bf16 = cast(w) to=bf16",
                "a = conv(x.bf16, w.bf16, b)",
                "c = conv(a, w.bf16)",
                "d = add(c, a)",
                "m = moments(d) batch",
                "y = normalise(d, m, b, b) batch eps=1e-5",
                "y.f32 = cast(y) to=f32",
                "l = mse(y.f32, t)",
            ]
        );
    }

    #[test]
    fn a_softmax_over_space_is_f32_until_it_weighs_maps() {
        let found = lines(
            "x = input [1, 4, 8]\nw = param [1, 4, 1]\na = conv(x, w)\n\
             lse = spatial_lse(a)\nminus = scale(lse) factor=-1\nd = add(a, minus)\n\
             p = exp(d)\ng = relu(x)\nq = mul(g, p)\ns = sum_map(q)",
        );
        assert_eq!(
            found,
            [
                "x.bf16 = cast(x) to=bf16",
                "w.bf16 = cast(w) to=bf16",
                "a = conv(x.bf16, w.bf16)",
                "a.f32 = cast(a) to=f32",
                "lse = spatial_lse(a.f32)",
                "minus = scale(lse) factor=-1",
                "d = add(a.f32, minus)",
                "p = exp(d)",
                "g = relu(x.bf16)",
                "g.f32 = cast(g) to=f32",
                "q = mul(g.f32, p)",
                "s = sum_map(q)",
            ]
        );
    }

    #[test]
    fn gradients_of_leaves_are_f32_and_those_of_maps_are_stored_like_maps() {
        let text = "x = input [1, 3, 8, 8] grad\nw = param [2, 3, 3, 3]\nb = param [2]\n\
                    t = input [1, 2]\ny = conv(x, w, b)\nz = relu(y)\ns = sum_map(z)\n\
                    l = mse(s, t)";
        let mut tape = narrow(&parse(text).unwrap(), DType::F16).unwrap();
        let loss = tape.by_name("l").unwrap();
        backward_scaled(&mut tape, loss, 1024.0).unwrap();
        tape.check().unwrap();
        let text = tape.to_string();
        for line in [
            " = constant [1] value=1024",
            " = relu_grad(y, t13)  # f16[1, 2, 6, 6]",
            "grad/w = scale(t15) factor=0.0009765625  # f32[2, 3, 3, 3]",
            "grad/b = scale(t16) factor=0.0009765625  # f32[2]",
            "grad/x = scale(t18) factor=0.0009765625  # f32[1, 3, 8, 8]",
        ] {
            assert!(text.contains(line), "{line}\n{text}");
        }
    }

    #[test]
    fn random_programs_stay_well_typed_and_are_read_back() {
        let mut n_narrow = 0;
        for seed in 0..300 {
            let tape = random_tape(seed, 10);
            if tape.dtype() == DType::F64 {
                assert!(narrow(&tape, DType::Bf16).is_err());
                continue;
            }
            // After the sweep, and before it.
            let forward = format!("tape v1 f32\n{}", forward_lines(&tape));
            let mut forward = narrow(&Tape::parse(&forward).unwrap(), DType::F16).unwrap();
            let loss = forward.outputs()[0];
            backward(&mut forward, loss).unwrap();
            let joint = narrow(&tape, DType::Bf16).unwrap();
            for (narrowed, after) in [(joint, true), (forward, false)] {
                narrowed.check().unwrap();
                let text = narrowed.to_string();
                assert_eq!(Tape::parse(&text).unwrap().to_string(), text, "seed {seed}");
                for &id in narrowed.order() {
                    let ty = narrowed.ty(id);
                    n_narrow += usize::from(ty.is_map() && ty.dtype.is_narrow());
                    if let Some(g) = narrowed.by_name(&format!("grad/{}", narrowed.node(id).name)) {
                        let found = narrowed.ty(g);
                        assert!(found == ty || after && ty.is_map(), "seed {seed}");
                    }
                }
            }
        }
        assert!(n_narrow > 1000, "{n_narrow}");
    }

    /// The lines of a tape up to its loss, which becomes its output.
    fn forward_lines(tape: &Tape) -> String {
        let is_loss = |id: &&NodeId| tape.ty(**id).shape.dims() == [1];
        let loss = tape.outputs().iter().find(is_loss).unwrap();
        let loss = &tape.node(*loss).name;
        let text = tape.to_string();
        let mut lines = Vec::new();
        for line in text.lines().skip(2) {
            lines.push(line);
            if line.starts_with(&format!("{loss} = ")) {
                break;
            }
        }
        format!("{}\noutput {loss}", lines.join("\n"))
    }

    #[test]
    fn what_cannot_be_narrowed_is_refused_with_a_reason() {
        let tape = |text: &str| Tape::parse(text).unwrap();
        let single = tape("tape v1 f32\nx = input [1, 2, 4]\ny = relu(x)");
        let double = tape("tape v1 f64\nx = input [1, 2, 4]\ny = relu(x)");
        let narrowed = narrow(&single, DType::Bf16).unwrap();
        for (tape, to, expected) in [
            (
                &single,
                DType::F32,
                "maps are stored as bf16 or f16, not f32",
            ),
            (
                &double,
                DType::F16,
                "maps of a tape of f64 are not stored as f16",
            ),
            (&narrowed, DType::F16, "the tape says already"),
        ] {
            let error = narrow(tape, to).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }
}
