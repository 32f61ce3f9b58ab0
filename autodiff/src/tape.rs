//! The tape: one program, forward and backward, as a list of typed nodes.
//!
//! Nodes live in an arena and are only ever added, each after its inputs, so
//! the order of creation is a topological order. Gradients are ordinary nodes
//! that the reverse sweep appends ([`crate::backward`]); nothing downstream
//! needs to know which half a node belongs to.

use std::collections::HashMap;

use slotmap::{SlotMap, new_key_type};

use crate::error::TapeError;
use crate::op::Op;
use crate::ty::{DType, Ty};

new_key_type! {
    /// A node of a [`Tape`].
    pub struct NodeId;
}

/// One operation and the type of its result.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What it does.
    pub op: Op,
    /// To what, in the order the op states.
    pub inputs: Vec<NodeId>,
    /// Type of the result.
    pub ty: Ty,
    /// Name, unique on the tape.
    pub name: String,
}

/// A program over tensors: typed nodes, each after its inputs, and which of them
/// are outputs. Built by the layer methods, by [`Tape::push`] or from text.
#[derive(Clone, Debug)]
pub struct Tape {
    dtype: DType,
    nodes: SlotMap<NodeId, Node>,
    order: Vec<NodeId>,
    names: HashMap<String, NodeId>,
    outputs: Vec<NodeId>,
}

impl Tape {
    /// An empty tape whose tensors all have element type `dtype`.
    pub fn new(dtype: DType) -> Self {
        Tape {
            dtype,
            nodes: SlotMap::with_key(),
            order: Vec::new(),
            names: HashMap::new(),
            outputs: Vec::new(),
        }
    }

    /// Element type of every tensor.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// All nodes, each after its inputs.
    pub fn order(&self) -> &[NodeId] {
        &self.order
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Whether there are no nodes.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// A node of this tape.
    ///
    /// # Panics
    /// If `id` belongs to another tape.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id]
    }

    /// Type of a node's result.
    pub fn ty(&self, id: NodeId) -> Ty {
        self.nodes[id].ty
    }

    /// Types of a node's inputs.
    pub fn input_tys(&self, id: NodeId) -> Vec<Ty> {
        self.nodes[id].inputs.iter().map(|&i| self.ty(i)).collect()
    }

    /// The node of that name.
    pub fn by_name(&self, name: &str) -> Option<NodeId> {
        self.names.get(name).copied()
    }

    /// What the program is run for: the loss first, then anything else wanted.
    pub fn outputs(&self) -> &[NodeId] {
        &self.outputs
    }

    /// Declares `id` an output, once.
    pub fn output(&mut self, id: NodeId) {
        if !self.outputs.contains(&id) {
            self.outputs.push(id);
        }
    }

    /// Appends a leaf of the given type.
    ///
    /// # Errors
    /// [`TapeError::DuplicateName`] if the name is taken, [`TapeError::BadName`]
    /// if the text form could not hold it, [`TapeError::Shape`] if `op` is no
    /// leaf, the type is none that such a leaf can have, or the element type is
    /// not the tape's.
    pub fn leaf(&mut self, name: &str, op: Op, ty: Ty) -> Result<NodeId, TapeError> {
        crate::ops::check_leaf(&op, &ty, self.dtype)
            .map_err(|reason| reason.at(name, &op, &[ty]))?;
        self.insert(Node {
            op,
            inputs: Vec::new(),
            ty,
            name: name.to_owned(),
        })
    }

    /// Appends `op` applied to `inputs`, under a name made from its position.
    ///
    /// # Errors
    /// [`TapeError::Shape`] and its kin if the op does not accept the inputs.
    pub fn push(&mut self, op: Op, inputs: &[NodeId]) -> Result<NodeId, TapeError> {
        let name = self.free_name("t");
        self.push_named(&name, op, inputs)
    }

    /// Appends `op` applied to `inputs`, under the given name.
    ///
    /// # Errors
    /// As [`Tape::push`] and [`Tape::leaf`].
    pub fn push_named(
        &mut self,
        name: &str,
        op: Op,
        inputs: &[NodeId],
    ) -> Result<NodeId, TapeError> {
        let tys: Vec<Ty> = inputs.iter().map(|&i| self.ty(i)).collect();
        let ty = crate::ops::infer(&op, &tys).map_err(|reason| reason.at(name, &op, &tys))?;
        crate::ops::check_links(self, &op, inputs).map_err(|reason| reason.at(name, &op, &tys))?;
        self.insert(Node {
            op,
            inputs: inputs.to_vec(),
            ty,
            name: name.to_owned(),
        })
    }

    /// Gives a node another name.
    ///
    /// # Errors
    /// [`TapeError::DuplicateName`] or [`TapeError::BadName`], as [`Tape::leaf`].
    pub fn rename(&mut self, id: NodeId, name: &str) -> Result<(), TapeError> {
        if self.nodes[id].name == name {
            return Ok(());
        }
        self.check_name(name)?;
        let old = std::mem::replace(&mut self.nodes[id].name, name.to_owned());
        self.names.remove(&old);
        self.names.insert(name.to_owned(), id);
        Ok(())
    }

    /// `prefix` and the number of the next node, or a later one if that is
    /// taken.
    pub(crate) fn free_name(&self, prefix: &str) -> String {
        (self.order.len()..)
            .map(|n| format!("{prefix}{n}"))
            .find(|name| !self.names.contains_key(name))
            .expect("there are fewer names than numbers")
    }

    fn check_name(&self, name: &str) -> Result<(), TapeError> {
        let plain = |c: char| c.is_alphanumeric() || "._-/".contains(c);
        if name.is_empty() || !name.chars().all(plain) {
            return Err(TapeError::BadName {
                name: name.to_owned(),
            });
        }
        if self.names.contains_key(name) {
            return Err(TapeError::DuplicateName {
                name: name.to_owned(),
            });
        }
        Ok(())
    }

    fn insert(&mut self, node: Node) -> Result<NodeId, TapeError> {
        self.check_name(&node.name)?;
        let name = node.name.clone();
        let id = self.nodes.insert(node);
        self.names.insert(name, id);
        self.order.push(id);
        Ok(id)
    }
}
