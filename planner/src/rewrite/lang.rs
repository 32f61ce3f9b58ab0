//! The program as an e-graph.
//!
//! An e-node is an op applied to classes. Leaves and roots carry their node as
//! a tag: a leaf because two inputs are never equal, a root because it must
//! keep its name. The analysis knows each class's type, the value of those that hold
//! one value everywhere, and whether any of its forms belongs to the forward half.

use egg::{Analysis, DidMerge, EGraph, Id, Language};
use sstep_autodiff::{Num, Op, Ty};

use crate::program::{NodeIx, Program};
use crate::segment::forward_nodes;

/// An op, tagged if it is a leaf or a root.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Head {
    /// What it does.
    pub op: Op,
    /// Node of the program that it must stay.
    pub tag: Option<NodeIx>,
}

/// An e-node.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Expr {
    /// Op and tag.
    pub head: Head,
    /// Classes of its inputs.
    pub children: Vec<Id>,
}

impl Language for Expr {
    type Discriminant = Head;

    fn discriminant(&self) -> Head {
        self.head
    }

    fn matches(&self, other: &Self) -> bool {
        self.head == other.head && self.children.len() == other.children.len()
    }

    fn children(&self) -> &[Id] {
        &self.children
    }

    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.children
    }
}

/// What is known of a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Type of all its forms. `None` only until a leaf has been given its type.
    pub ty: Option<Ty>,
    /// Whether it is computed in the forward half anyway.
    pub forward: bool,
    /// The value of all its elements, if it is known to be one.
    pub uniform: Option<Num>,
}

/// Types of leaves and the forward half, by tag; the analysis of the e-graph.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// Type of each node of the program.
    tys: Vec<Ty>,
}

impl Analysis<Expr> for Facts {
    type Data = Fact;

    fn make(egraph: &mut EGraph<Expr, Self>, enode: &Expr, _id: Id) -> Fact {
        let tagged = enode.head.tag.map(|tag| egraph.analysis.tys[tag.ix()]);
        let inputs: Option<Vec<Ty>> = enode.children.iter().map(|&c| egraph[c].data.ty).collect();
        let infer = |tys: Vec<Ty>| sstep_autodiff::infer(&enode.head.op, &tys).ok();
        Fact {
            ty: tagged.or_else(|| inputs.and_then(infer)),
            forward: false,
            uniform: uniform(egraph, enode),
        }
    }

    fn merge(&mut self, a: &mut Fact, b: Fact) -> DidMerge {
        let merged = Fact {
            ty: a.ty.or(b.ty),
            forward: a.forward || b.forward,
            uniform: a.uniform.or(b.uniform),
        };
        let did = DidMerge(*a != merged, b != merged);
        *a = merged;
        did
    }
}

/// The one value of a form's elements, where that is plain to see.
fn uniform(egraph: &EGraph<Expr, Facts>, enode: &Expr) -> Option<Num> {
    let of_input = || egraph[*enode.children.first()?].data.uniform;
    match enode.head.op {
        Op::Constant { value } => Some(value),
        Op::Broadcast { .. } | Op::Slice(_) => of_input(),
        Op::Scale { factor } => {
            let value = of_input()?.get() * factor.get();
            value.is_finite().then(|| Num::new(value))
        }
        _ => None,
    }
}

/// A program's e-graph, and where each node is in it.
pub struct Graph {
    /// The e-graph.
    pub egraph: EGraph<Expr, Facts>,
    /// Class of each node.
    pub class: Vec<Id>,
    /// Roots: outputs, parameters and their gradients.
    pub roots: Vec<NodeIx>,
}

/// Puts a program into an e-graph.
pub fn to_egraph(program: &Program) -> Graph {
    let mut roots: Vec<NodeIx> = program.outputs.clone();
    roots.extend(program.updates.iter().flat_map(|u| [u.param, u.grad]));
    roots.sort_unstable();
    roots.dedup();
    let forward = forward_nodes(program);
    let tys = program.nodes.iter().map(|n| n.ty).collect();
    let mut egraph = EGraph::new(Facts { tys });
    let mut class: Vec<Id> = Vec::with_capacity(program.nodes.len());
    for n in program.indices() {
        let node = program.node(n);
        let tag = (node.op.is_leaf() || roots.contains(&n)).then_some(n);
        let children = node.inputs.iter().map(|i| class[i.ix()]).collect();
        let id = egraph.add(Expr {
            head: Head { op: node.op, tag },
            children,
        });
        egraph[id].data.forward |= forward[n.ix()];
        class.push(id);
    }
    egraph.rebuild();
    Graph {
        egraph,
        class,
        roots,
    }
}
