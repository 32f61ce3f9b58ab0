//! Which nodes share one tile loop.
//!
//! A stage is asked for *targets*: maps to be stored and reductions to be
//! finished. Its body is the closure of the targets back to what is *supplied*
//! from outside: image sources and stored maps. A node that is not supplied is
//! computed in the stage, even if an earlier stage has computed it before: that
//! is all that recomputation is.

use std::collections::{BTreeMap, BTreeSet};

use crate::program::{NodeIx, Program};

/// What a stage does with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Reads it from where it is stored: a source, the host, the device.
    Supply,
    /// Computes a map.
    Compute,
    /// Accumulates a reduction.
    Reduce,
    /// Computes a flat node, once.
    Flat,
}

/// A read of one map by another node of the body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Edge {
    /// Position of the reader in the body.
    pub reader: usize,
    /// Which of the reader's inputs this is.
    pub input: usize,
}

/// A node of a body.
#[derive(Clone, Debug)]
pub struct Item {
    /// The node.
    pub node: NodeIx,
    /// What the stage does with it.
    pub role: Role,
    /// Whether the map is to be stored for others.
    pub target: bool,
    /// Who in the body reads it.
    pub readers: Vec<Edge>,
    /// For a reduction: position of its domain in the body, and whether all its
    /// other maps come before the domain, so that under *carry* it may be
    /// accumulated as soon as the domain's rows exist.
    pub domain: Option<(usize, bool)>,
}

/// The nodes of a stage in execution order.
#[derive(Clone, Debug)]
pub struct Body {
    /// Nodes, each after those it reads.
    pub items: Vec<Item>,
}

impl Body {
    /// The closure of `targets` back to what `supplied` says is stored.
    pub fn close(
        program: &Program,
        targets: &BTreeSet<NodeIx>,
        supplied: impl Fn(NodeIx) -> bool,
    ) -> Body {
        let mut roles: BTreeMap<NodeIx, Role> = BTreeMap::new();
        let mut stack: Vec<NodeIx> = targets.iter().copied().collect();
        while let Some(n) = stack.pop() {
            if roles.contains_key(&n) {
                continue;
            }
            let outside = program.is_source(n) || (supplied(n) && !targets.contains(&n));
            let role = if !program.node(n).ty.is_map() {
                if program.is_reduction(n) {
                    Role::Reduce
                } else {
                    Role::Flat
                }
            } else if outside {
                Role::Supply
            } else {
                Role::Compute
            };
            roles.insert(n, role);
            if role == Role::Compute || role == Role::Reduce {
                let inputs = &program.node(n).inputs;
                stack.extend(inputs.iter().filter(|i| program.node(**i).ty.is_map()));
            }
        }
        let position: BTreeMap<NodeIx, usize> =
            roles.keys().enumerate().map(|(i, &n)| (n, i)).collect();
        let mut items: Vec<Item> = (roles.iter())
            .map(|(&node, &role)| Item {
                node,
                role,
                target: role == Role::Compute && targets.contains(&node),
                readers: Vec::new(),
                domain: None,
            })
            .collect();
        for reader in 0..items.len() {
            if !matches!(items[reader].role, Role::Compute | Role::Reduce) {
                continue;
            }
            let node = items[reader].node;
            for (input, n) in program.node(node).inputs.iter().enumerate() {
                if let Some(&at) = position.get(n).filter(|_| program.node(*n).ty.is_map()) {
                    items[at].readers.push(Edge { reader, input });
                }
            }
            if let Some(d) = program.domain(node) {
                let inputs = &program.node(node).inputs;
                let at = position[&inputs[d]];
                let eager = (inputs.iter())
                    .filter(|i| program.node(**i).ty.is_map())
                    .all(|i| position[i] <= at);
                items[reader].domain = Some((at, eager));
            }
        }
        Body { items }
    }

    /// Stored maps that the body reads.
    pub fn supplies(&self) -> impl Iterator<Item = NodeIx> + '_ {
        self.items
            .iter()
            .filter(|i| i.role == Role::Supply)
            .map(|i| i.node)
    }

    /// Whether it has no map at all.
    pub fn is_flat(&self) -> bool {
        self.items.iter().all(|i| i.role == Role::Flat)
    }

    /// Extents of the stage's axes: the largest of any map in it.
    pub fn anchor(&self, program: &Program) -> Vec<usize> {
        let mut anchor = vec![1; program.n_axes()];
        for item in &self.items {
            let ty = program.node(item.node).ty;
            for (axis, extent) in anchor.iter_mut().enumerate().take(ty.n_axes()) {
                *extent = (*extent).max(ty.axis_extent(axis));
            }
        }
        anchor
    }
}
