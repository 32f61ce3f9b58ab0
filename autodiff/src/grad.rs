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
    cotangents.insert(loss, seed(tape, ty)?);
    let mut pairs = Vec::new();
    for &id in forward.iter().rev() {
        let Some(&cotangent) = cotangents.get(id) else {
            continue;
        };
        if tape.node(id).op.is_leaf() {
            pairs.push((id, finish(tape, &pairs, id, cotangent)?));
            continue;
        }
        let mut step = Vjp::new(tape, id, cotangent, &needs);
        ops::vjp(&mut step)?;
        let Vjp { inputs, given, .. } = step;
        for (input, gradient) in given {
            let source = inputs[input];
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

/// The gradient of the loss by itself.
fn seed(tape: &mut Tape, ty: Ty) -> Result<NodeId, TapeError> {
    let name = tape.free_name("seed");
    let ty = Ty {
        form: Form::Flat,
        ..ty
    };
    tape.leaf(
        &name,
        Op::Constant {
            value: Num::new(1.0),
        },
        ty,
    )
}

/// Gives a leaf's gradient its name; a copy of it, if it already is that of
/// another leaf.
fn finish(
    tape: &mut Tape,
    pairs: &[(NodeId, NodeId)],
    leaf: NodeId,
    gradient: NodeId,
) -> Result<NodeId, TapeError> {
    let name = gradient_name(&tape.node(leaf).name);
    if pairs.iter().any(|&(_, taken)| taken == gradient) {
        return tape.push_named(
            &name,
            Op::Scale {
                factor: Num::new(1.0),
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
        debug_assert_eq!(self.ty(gradient), self.ty(self.inputs[input]));
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
