//! The reverse sweep: gradients as ordinary nodes.
//!
//! From the loss backwards, each node turns the gradient of its result (its
//! cotangent) into gradients of its inputs by appending nodes to the same tape.
//! What follows, plans, verifies or prints the tape need not know which half a
//! node belongs to, and recomputing an activation is merely running its node
//! once more.
//!
//! The sweep appends in an order that is good to execute as it stands: reverse
//! topological, a weight's gradient beside the data gradient of the same node
//! (both read the same cotangent), and a sum of contributions as soon as its
//! second term exists.

use slotmap::SecondaryMap;

use crate::error::TapeError;
use crate::op::{Num, Op};
use crate::ops;
use crate::tape::{Node, NodeId, Tape};
use crate::ty::{Form, Ty};

/// Which node is the gradient of which leaf, in the order of the leaves.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients {
    pairs: Vec<(NodeId, NodeId)>,
}

impl Gradients {
    /// The gradient of `leaf`; `None` if none was asked for or the loss does
    /// not depend on it.
    pub fn get(&self, leaf: NodeId) -> Option<NodeId> {
        self.pairs.iter().find(|(l, _)| *l == leaf).map(|(_, g)| *g)
    }

    /// Pairs of leaf and gradient.
    pub fn iter(&self) -> impl Iterator<Item = (NodeId, NodeId)> + '_ {
        self.pairs.iter().copied()
    }

    /// Number of gradients.
    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }
}

/// Appends the gradient of `loss` with respect to every leaf that asks for one
/// (`grad: true`) and that `loss` depends on. The gradient of leaf `w` is named
/// `grad/w` and has the shape of `w`. The loss and then the gradients become
/// outputs of the tape.
///
/// ```
/// use sstep_autodiff::{DType, Tape, backward};
///
/// let mut tape = Tape::new(DType::F32);
/// let x = tape.input("x", &[8, 3])?;
/// let w = tape.param("w", &[2, 3])?;
/// let y = tape.linear(x, w, None)?;
/// let target = tape.input("target", &[8, 2])?;
/// let loss = tape.mse(y, target)?;
///
/// let gradients = backward(&mut tape, loss)?;
/// let dw = gradients.get(w).expect("the loss depends on w");
/// assert_eq!(tape.node(dw).name, "grad/w");
/// assert_eq!(tape.ty(dw), tape.ty(w));
/// assert_eq!(gradients.get(x), None);
/// # Ok::<(), sstep_autodiff::TapeError>(())
/// ```
///
/// # Errors
/// [`TapeError::NotALoss`] unless `loss` has shape `[1]`;
/// [`TapeError::NoGradient`] if a wanted gradient leads through an op without
/// one (a target of a loss, a gradient op); [`TapeError::DuplicateName`] if a
/// name `grad/…` is taken, as after a first sweep. After `NoGradient` the tape
/// is still valid but holds part of a backward pass.
pub fn backward(tape: &mut Tape, loss: NodeId) -> Result<Gradients, TapeError> {
    backward_scaled(tape, loss, 1.0)
}

/// [`backward`] from `scale` times the loss, so that gradients of maps that are stored
/// as `f16` do not vanish (Micikevicius et al., arXiv:1710.03740). Gradients of leaves
/// are divided by it again, in `f32`; by a power of two that loses nothing.
///
/// # Errors
/// As [`backward`], and [`TapeError::Shape`] unless `scale` and its inverse are finite.
pub fn backward_scaled(tape: &mut Tape, loss: NodeId, scale: f64) -> Result<Gradients, TapeError> {
    let ty = tape.ty(loss);
    if ty.is_map() || ty.shape.dims() != [1] {
        let node = tape.node(loss);
        return Err(TapeError::NotALoss {
            node: node.name.clone(),
            shape: ty.shape.to_string(),
        });
    }
    let forward = tape.order().to_vec();
    let needs = needs_gradient(tape, &forward);
    tape.output(loss);
    if !needs[loss] {
        return Ok(Gradients::default());
    }
    check_names(tape, &forward, &needs, loss)?;

    let mut cotangents: SecondaryMap<NodeId, NodeId> = SecondaryMap::new();
    cotangents.insert(loss, seed(tape, ty, scale)?);
    let mut pairs = Vec::new();
    for &id in forward.iter().rev() {
        let Some(&cotangent) = cotangents.get(id) else {
            continue;
        };
        if tape.node(id).op.is_leaf() {
            pairs.push((id, finish(tape, &pairs, id, cotangent, 1.0 / scale)?));
            continue;
        }
        let mut step = Vjp::new(tape, id, cotangent, &needs);
        ops::vjp(&mut step)?;
        let Vjp { inputs, given, .. } = step;
        for (input, gradient) in given {
            let source = inputs[input];
            let gradient = as_cotangent(tape, gradient, source)?;
            let sum = match cotangents.get(source) {
                Some(&before) => tape.push(Op::Add, &[before, gradient])?,
                None => gradient,
            };
            cotangents.insert(source, sum);
        }
    }
    pairs.reverse();
    for &(_, gradient) in &pairs {
        tape.output(gradient);
    }
    Ok(Gradients { pairs })
}

/// Whether a gradient could flow from a node to one of its inputs. It never
/// flows into the moments of a norm: the gradient of a live norm goes through
/// its statistics in one formula, and frozen statistics are constants.
fn flows(op: &Op, input: usize) -> bool {
    !(matches!(op, Op::Normalise(_)) && input == 1)
}

/// Marks the nodes that a leaf with `grad` influences.
fn needs_gradient(tape: &Tape, order: &[NodeId]) -> SecondaryMap<NodeId, bool> {
    let mut needs = SecondaryMap::new();
    for &id in order {
        let node = tape.node(id);
        let need = match node.op {
            Op::Input { grad } | Op::Param { grad } => grad,
            _ => node
                .inputs
                .iter()
                .enumerate()
                .any(|(i, &x)| flows(&node.op, i) && needs[x]),
        };
        needs.insert(id, need);
    }
    needs
}

/// Refuses taken names before anything is appended.
fn check_names(
    tape: &Tape,
    order: &[NodeId],
    needs: &SecondaryMap<NodeId, bool>,
    loss: NodeId,
) -> Result<(), TapeError> {
    let mut reached: SecondaryMap<NodeId, ()> = SecondaryMap::new();
    reached.insert(loss, ());
    for &id in order.iter().rev() {
        if !reached.contains_key(id) || !needs[id] {
            continue;
        }
        let node = tape.node(id);
        let name = gradient_name(&node.name);
        if node.op.is_leaf() && tape.by_name(&name).is_some() {
            return Err(TapeError::DuplicateName { name });
        }
        for (i, &x) in node.inputs.iter().enumerate() {
            if flows(&node.op, i) {
                reached.insert(x, ());
            }
        }
    }
    Ok(())
}

fn gradient_name(leaf: &str) -> String {
    format!("grad/{leaf}")
}

/// A gradient in the element type that gradients of `source` have: that of a map, and
/// `f32` of a narrow flat tensor, because its gradient is a sum over maps.
fn as_cotangent(tape: &mut Tape, gradient: NodeId, source: NodeId) -> Result<NodeId, TapeError> {
    let ty = tape.ty(source);
    let to = if ty.is_map() {
        ty.dtype
    } else {
        ty.dtype.wide()
    };
    if tape.ty(gradient).dtype == to {
        return Ok(gradient);
    }
    tape.push(Op::Cast { to }, &[gradient])
}

/// The gradient of so many times the loss by the loss.
fn seed(tape: &mut Tape, ty: Ty, scale: f64) -> Result<NodeId, TapeError> {
    let name = tape.free_name("seed");
    let ty = Ty {
        form: Form::Flat,
        ..ty
    };
    tape.leaf(
        &name,
        Op::Constant {
            value: Num::new(scale),
        },
        ty,
    )
}

/// Gives a leaf's gradient its name; a copy of it, if it already is that of
/// another leaf or has to be scaled back.
fn finish(
    tape: &mut Tape,
    pairs: &[(NodeId, NodeId)],
    leaf: NodeId,
    gradient: NodeId,
    factor: f64,
) -> Result<NodeId, TapeError> {
    let name = gradient_name(&tape.node(leaf).name);
    if factor != 1.0 || pairs.iter().any(|&(_, taken)| taken == gradient) {
        return tape.push_named(
            &name,
            Op::Scale {
                factor: Num::new(factor),
            },
            &[gradient],
        );
    }
    tape.rename(gradient, &name)?;
    Ok(gradient)
}

/// One step of the sweep, as the gradient rule of an op sees it.
pub(crate) struct Vjp<'a> {
    tape: &'a mut Tape,
    /// The node differentiated through.
    pub(crate) node: NodeId,
    /// Its inputs.
    pub(crate) inputs: Vec<NodeId>,
    /// The gradient of its result.
    pub(crate) cotangent: NodeId,
    wanted: Vec<bool>,
    given: Vec<(usize, NodeId)>,
}

impl<'a> Vjp<'a> {
    fn new(
        tape: &'a mut Tape,
        node: NodeId,
        cotangent: NodeId,
        needs: &SecondaryMap<NodeId, bool>,
    ) -> Self {
        let Node { op, inputs, .. } = tape.node(node).clone();
        let wanted = inputs
            .iter()
            .enumerate()
            .map(|(i, &x)| flows(&op, i) && needs[x])
            .collect();
        Vjp {
            tape,
            node,
            inputs,
            cotangent,
            wanted,
            given: Vec::new(),
        }
    }

    /// The op differentiated through.
    pub(crate) fn op(&self) -> Op {
        self.tape.node(self.node).op
    }

    /// Whether the gradient of that input is wanted; of an input that is not
    /// there, it is not.
    pub(crate) fn wants(&self, input: usize) -> bool {
        self.wanted.get(input).copied().unwrap_or(false)
    }

    /// Type of a node.
    pub(crate) fn ty(&self, id: NodeId) -> Ty {
        self.tape.ty(id)
    }

    /// Appends a node.
    pub(crate) fn push(&mut self, op: Op, inputs: &[NodeId]) -> Result<NodeId, TapeError> {
        self.tape.push(op, inputs)
    }

    /// Appends a constant.
    pub(crate) fn constant(&mut self, value: f64, like: Ty) -> Result<NodeId, TapeError> {
        let name = self.tape.free_name("t");
        self.tape.leaf(
            &name,
            Op::Constant {
                value: Num::new(value),
            },
            like,
        )
    }

    /// Contributes `gradient` to an input.
    pub(crate) fn give(&mut self, input: usize, gradient: NodeId) {
        let source = self.ty(self.inputs[input]);
        debug_assert_eq!(self.ty(gradient).with_dtype(source.dtype), source);
        self.given.push((input, gradient));
    }

    /// Contributes a new node to an input, if that is wanted.
    pub(crate) fn give_op(
        &mut self,
        input: usize,
        op: Op,
        inputs: &[NodeId],
    ) -> Result<(), TapeError> {
        if self.wants(input) {
            let gradient = self.push(op, inputs)?;
            self.give(input, gradient);
        }
        Ok(())
    }

    /// Refuses if a gradient of that input is wanted.
    pub(crate) fn refuse(&self, input: usize) -> Result<(), TapeError> {
        if !self.wants(input) {
            return Ok(());
        }
        let node = self.tape.node(self.node);
        Err(TapeError::NoGradient {
            node: node.name.clone(),
            op: node.op.name().to_owned(),
            input,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{check_grad, parse, random_tape};

    fn sweep(lines: &str) -> Result<(Tape, Gradients), TapeError> {
        let mut tape = parse(lines)?;
        let loss = tape.order().last().copied().unwrap();
        let gradients = backward(&mut tape, loss)?;
        Ok((tape, gradients))
    }

    #[test]
    fn only_what_asks_for_a_gradient_gets_one() {
        let (tape, gradients) = sweep(
            "x = input [2, 4]\nw = param [3, 4]\nf = param [3, 4] frozen\nunused = param [5]\n\
             t = input [2, 3]\na = linear(x, w)\nb = linear(x, f)\nc = mul(a, b)\nl = mse(c, t)",
        )
        .unwrap();
        let named: Vec<_> = gradients
            .iter()
            .map(|(leaf, g)| (tape.node(leaf).name.as_str(), tape.node(g).name.as_str()))
            .collect();
        assert_eq!(named, [("w", "grad/w")]);
        assert_eq!(gradients.get(tape.by_name("unused").unwrap()), None);
        assert!(
            tape.order()
                .iter()
                .all(|&id| tape.node(id).op != Op::LinearInputGrad)
        );
        let outputs: Vec<_> = tape
            .outputs()
            .iter()
            .map(|&id| tape.node(id).name.as_str())
            .collect();
        assert_eq!(outputs, ["l", "grad/w"]);
    }

    #[test]
    fn without_a_leaf_to_ask_nothing_is_appended() {
        let (tape, gradients) = sweep("x = input [2, 4]\nt = input [2, 4]\nl = mse(x, t)").unwrap();
        assert!(gradients.is_empty());
        assert_eq!(tape.len(), 3);
    }

    #[test]
    fn fan_out_is_summed_as_soon_as_it_can_be() {
        // A residual block: the two ways meet in an Add of gradients.
        check_grad(
            "x = input [1, 2, 8] grad\nw = param [2, 2, 3]\nt = input [1, 2, 8]\n\
             a = relu(x)\nb = conv(a, w) pad=1\nc = sigmoid(a)\nd = add(a, b)\ne = add(d, c)\nl = mse(e, t)",
            "seed9 = constant [1] value=1
             t10 = mse_grad(e, t, seed9)
             t11 = sigmoid_grad(a, t10)
             t12 = add(t10, t11)
             grad/w = conv_weight_grad(a, t10) kernel=[3] pad=[1]
             t14 = conv_transpose(t10, w) pad=[1] out=[8]
             t15 = add(t12, t14)
             grad/x = relu_grad(x, t15)",
        );
    }

    #[test]
    fn two_leaves_of_one_gradient_get_one_each() {
        check_grad(
            "a = input [2, 3] grad\nb = input [2, 3] grad\nt = input [2, 3]\ny = add(a, b)\nl = mse(y, t)",
            "seed5 = constant [1] value=1
             grad/b = mse_grad(y, t, seed5)
             grad/a = scale(grad/b) factor=1",
        );
    }

    #[test]
    fn a_shared_weight_sums_over_its_uses() {
        check_grad(
            "x = input [2, 3]\nw = param [3, 3]\nt = input [2, 3]\na = linear(x, w)\nb = linear(a, w)\nl = mse(b, t)",
            "seed6 = constant [1] value=1
             t7 = mse_grad(b, t, seed6)
             t8 = linear_weight_grad(a, t7)
             t9 = linear_input_grad(t7, w)
             t10 = linear_weight_grad(x, t9)
             grad/w = add(t8, t10)",
        );
    }

    #[test]
    fn a_leaf_that_is_the_loss_has_gradient_one() {
        check_grad("x = param [1]", "grad/x = constant [1] value=1");
    }

    #[test]
    fn errors() {
        for (lines, expected) in [
            (
                "x = input [2, 3] grad",
                "node `x` of shape [2, 3] is no loss: a loss has shape [1]",
            ),
            (
                "x = input [2, 3] grad\nt = input [2, 3] grad\nl = mse(x, t)",
                "node `l`: no gradient is defined through mse to its input 1",
            ),
            (
                "x = input [2, 3] grad\nt = input [2, 1] grad\nl = cross_entropy(x, t)",
                "node `l`: no gradient is defined through cross_entropy to its input 1",
            ),
            (
                "x = input [2, 3, 4] grad\nt = input [3]\ns = sum_map(x) keep_batch=false\nl = mse(s, t)",
                "node `s`: no gradient is defined through sum_map to its input 0",
            ),
            (
                "x = input [2, 3, 4] grad\nt = param [1, 3, 2] frozen\nm = moments(x) batch\nl = mse(m, t)",
                "node `m`: no gradient is defined through moments to its input 0",
            ),
            (
                "x = input [2, 3] grad\nt = input [2, 3]\nr = relu_grad(x, x)\nl = mse(r, t)",
                "node `r`: no gradient is defined through relu_grad to its input 0",
            ),
            (
                "x = param [1]\ngrad/x = scale(x) factor=2\nl = relu(x)",
                "the name `grad/x` is already taken",
            ),
        ] {
            let error = sweep(lines).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{lines}: {error}");
        }
    }

    #[test]
    fn a_second_sweep_is_refused_before_it_appends() {
        let (mut tape, _) = sweep("x = param [2, 3]\nt = input [2, 3]\nl = mse(x, t)").unwrap();
        let (n, loss) = (tape.len(), tape.by_name("l").unwrap());
        let error = backward(&mut tape, loss).unwrap_err();
        assert_eq!(
            error,
            TapeError::DuplicateName {
                name: "grad/x".to_owned()
            }
        );
        assert_eq!(tape.len(), n);
    }

    #[test]
    fn gradients_have_the_type_of_their_leaf() {
        for seed in 0..200 {
            let tape = random_tape(seed, 10);
            for &id in tape.order() {
                if let Some(g) = tape.by_name(&format!("grad/{}", tape.node(id).name)) {
                    assert_eq!(tape.ty(g), tape.ty(id), "seed {seed}");
                }
            }
        }
    }
}
