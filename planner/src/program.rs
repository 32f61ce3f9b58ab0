//! The program to plan: a dense snapshot of a tape, without what nobody needs.
//!
//! The tape is grown; a program is looked up, a thousand times per plan, so its
//! nodes are dense indices in topological order. It also knows what the step is
//! for: the outputs to hand back and the parameters to update.
//!
//! Every node has a *level*. Level `l + 1` starts where something needs the
//! finished result of a reduction of level `l` (the moments of a norm, the
//! loss): that is a barrier which no tile loop can cross. Flat nodes of a level
//! run before its maps.

use serde::{Deserialize, Serialize};
use sstep_autodiff::{DType, NodeId, Op, Region, Tape, Ty};

use crate::error::PlanError;

/// Bytes of decoded maps that make a kernel's call on narrow tensors worth its while.
const DECODED_BYTES: u64 = 2 << 20;

/// Index of a node of a [`Program`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NodeIx(pub u32);

impl NodeIx {
    /// As an index into per-node tables.
    pub fn ix(self) -> usize {
        self.0 as usize
    }
}

/// A node of a program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProgramNode {
    /// What it does.
    pub op: Op,
    /// To what.
    pub inputs: Vec<NodeIx>,
    /// Type of the result.
    pub ty: Ty,
    /// Name on the tape.
    pub name: String,
    /// Barriers before it: see the [module](self).
    pub level: u32,
}

/// A parameter and the gradient it is updated by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Update {
    /// The parameter.
    pub param: NodeIx,
    /// Its gradient.
    pub grad: NodeIx,
}

/// What a step is run for.
#[derive(Clone, Debug, Default)]
pub struct StepSpec {
    /// Nodes to hand back after the step.
    pub outputs: Vec<NodeId>,
    /// `(parameter, gradient)` to update after the backward pass.
    pub updates: Vec<(NodeId, NodeId)>,
    /// Tensors of optimiser state per parameter (0 for SGD, 2 for Adam).
    pub state_slots: usize,
}

/// A program: see the [module](self).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Program {
    /// Element type of leaves, and of all that is computed; some of it may be stored as
    /// a narrow type.
    pub dtype: DType,
    /// Nodes in topological order.
    pub nodes: Vec<ProgramNode>,
    /// Nodes to hand back.
    pub outputs: Vec<NodeIx>,
    /// Parameters to update at the end.
    pub updates: Vec<Update>,
    /// Tensors of optimiser state per updated parameter.
    pub state_slots: usize,
    /// Readers of each node, ascending.
    consumers: Vec<Vec<NodeIx>>,
    /// Cuttable axes of every map: the batch and the spatial ones.
    n_axes: usize,
}

impl Program {
    /// The part of `tape` that `spec` needs.
    ///
    /// # Errors
    /// [`PlanError::MixedRank`] if maps have different numbers of spatial axes.
    pub fn new(tape: &Tape, spec: &StepSpec) -> Result<Program, PlanError> {
        let mut index = std::collections::HashMap::new();
        let mut nodes = Vec::with_capacity(tape.len());
        for &id in tape.order() {
            let node = tape.node(id);
            index.insert(id, NodeIx(nodes.len() as u32));
            nodes.push(ProgramNode {
                op: node.op,
                inputs: node.inputs.iter().map(|i| index[i]).collect(),
                ty: node.ty,
                name: node.name.clone(),
                level: 0,
            });
        }
        let outputs = spec.outputs.iter().map(|i| index[i]).collect();
        let updates = (spec.updates.iter())
            .map(|(p, g)| Update {
                param: index[p],
                grad: index[g],
            })
            .collect();
        Program::from_nodes(tape.dtype(), nodes, outputs, updates, spec.state_slots)
    }

    /// Builds a program from nodes in topological order, dropping dead ones.
    ///
    /// # Errors
    /// As [`Program::new`].
    pub(crate) fn from_nodes(
        dtype: DType,
        nodes: Vec<ProgramNode>,
        outputs: Vec<NodeIx>,
        updates: Vec<Update>,
        state_slots: usize,
    ) -> Result<Program, PlanError> {
        let mut live = vec![false; nodes.len()];
        for &o in &outputs {
            live[o.ix()] = true;
        }
        for u in &updates {
            live[u.param.ix()] = true;
            live[u.grad.ix()] = true;
        }
        for i in (0..nodes.len()).rev() {
            if live[i] {
                for input in &nodes[i].inputs {
                    live[input.ix()] = true;
                }
            }
        }
        let mut renumber = vec![NodeIx(u32::MAX); nodes.len()];
        let mut kept: Vec<ProgramNode> = Vec::new();
        for (i, mut node) in nodes.into_iter().enumerate() {
            if live[i] {
                renumber[i] = NodeIx(kept.len() as u32);
                for input in &mut node.inputs {
                    *input = renumber[input.ix()];
                }
                kept.push(node);
            }
        }
        let mut program = Program {
            dtype,
            consumers: vec![Vec::new(); kept.len()],
            outputs: outputs.into_iter().map(|o| renumber[o.ix()]).collect(),
            updates: (updates.into_iter())
                .map(|u| Update {
                    param: renumber[u.param.ix()],
                    grad: renumber[u.grad.ix()],
                })
                .collect(),
            state_slots,
            n_axes: 0,
            nodes: kept,
        };
        program.index()?;
        Ok(program)
    }

    /// Fills in consumers, levels and the number of axes.
    fn index(&mut self) -> Result<(), PlanError> {
        let mut first_map: Option<usize> = None;
        for i in 0..self.nodes.len() {
            let node = &self.nodes[i];
            let mut level = 0;
            for &input in &node.inputs {
                let barrier = u32::from(self.is_reduction(input));
                level = level.max(self.node(input).level + barrier);
            }
            if node.ty.is_map() {
                let first = *first_map.get_or_insert(i);
                let expected = self.nodes[first].ty.n_axes();
                if node.ty.n_axes() != expected {
                    return Err(PlanError::MixedRank {
                        node: node.name.clone(),
                        found: node.ty.n_axes() - 1,
                        other: self.nodes[first].name.clone(),
                        expected: expected - 1,
                    });
                }
                self.n_axes = expected;
            }
            self.nodes[i].level = level;
            for input in self.nodes[i].inputs.clone() {
                let users = &mut self.consumers[input.ix()];
                if users.last() != Some(&NodeIx(i as u32)) {
                    users.push(NodeIx(i as u32));
                }
            }
        }
        Ok(())
    }

    /// A node.
    pub fn node(&self, n: NodeIx) -> &ProgramNode {
        &self.nodes[n.ix()]
    }

    /// All node indices, in topological order.
    pub fn indices(&self) -> impl DoubleEndedIterator<Item = NodeIx> + use<> {
        (0..self.nodes.len() as u32).map(NodeIx)
    }

    /// Readers of a node, ascending.
    pub fn consumers(&self, n: NodeIx) -> &[NodeIx] {
        &self.consumers[n.ix()]
    }

    /// Types of a node's inputs.
    pub fn input_tys(&self, n: NodeIx) -> Vec<Ty> {
        self.node(n)
            .inputs
            .iter()
            .map(|&i| self.node(i).ty)
            .collect()
    }

    /// Cuttable axes of every map of the program (batch and spatial).
    pub fn n_axes(&self) -> usize {
        self.n_axes
    }

    /// The narrow type that something is stored as, if anything is.
    pub fn narrow(&self) -> Option<DType> {
        let mut dtypes = self.nodes.iter().map(|n| n.ty.dtype);
        dtypes.find(|dtype| dtype.is_narrow())
    }

    /// Scratch that kernels of narrow tensors need, in bytes: for the weights of the
    /// largest one, and for so much of its maps that a call is more than its overhead.
    pub fn decoded_bytes(&self) -> u64 {
        let of = |n: NodeIx| {
            let node = self.node(n);
            let inputs = self.input_tys(n);
            let least = node.op.least_decoded_bytes(&inputs, &node.ty);
            let whole = match self.domain(n) {
                Some(d) => Region::whole(&inputs[d]),
                None => Region::whole(&node.ty),
            };
            let most = node.op.decoded_bytes(&inputs, &node.ty, &whole);
            (least + DECODED_BYTES).min(most).max(least)
        };
        self.indices().map(of).max().unwrap_or(0)
    }

    /// Whether a node turns maps into a flat tensor.
    pub fn is_reduction(&self, n: NodeIx) -> bool {
        self.domain(n).is_some()
    }

    /// For a reduction: the position, among its inputs, of its domain.
    pub fn domain(&self, n: NodeIx) -> Option<usize> {
        let node = self.node(n);
        if node.ty.is_map() || node.op.is_leaf() {
            return None;
        }
        node.op.domain(&self.input_tys(n), &node.ty)
    }

    /// Whether a node's values come from outside by region.
    pub fn is_source(&self, n: NodeIx) -> bool {
        let node = self.node(n);
        node.op.is_leaf() && node.ty.is_map()
    }

    /// Work of a node over `points` positions, in FLOPs.
    pub fn flops(&self, n: NodeIx, points: u64) -> f64 {
        let node = self.node(n);
        node.op.flops_per_point(&self.input_tys(n), &node.ty) * points as f64
    }

    /// Positions a node is computed over when run whole: of its output, of its
    /// domain for a reduction, one for a flat op.
    pub fn points(&self, n: NodeIx) -> u64 {
        match self.domain(n) {
            Some(d) => Region::whole(&self.node(self.node(n).inputs[d]).ty).points(),
            None => Region::whole(&self.node(n).ty).points(),
        }
    }

    /// Bytes of all parameters, gradients and optimiser state that live on the
    /// device throughout.
    pub fn persistent_bytes(&self) -> u64 {
        let state: u64 = self
            .updates
            .iter()
            .map(|u| self.node(u.param).ty.bytes())
            .sum();
        let leaves: u64 = (self.nodes.iter())
            .filter(|n| n.op.is_leaf() && !n.ty.is_map())
            .map(|n| n.ty.bytes())
            .sum();
        leaves + state * self.state_slots as u64
    }
}
