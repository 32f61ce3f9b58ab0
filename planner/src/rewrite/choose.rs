//! Which equal program is the cheapest, at a price of memory.
//!
//! A form costs its seconds. A class of the forward half that a form of the
//! backward half reads has to be kept or brought back: that costs its bytes times
//! a price, once, however many read it. As an extraction problem: such forms read a
//! class *kept* of their own, whose one form costs that much and reads the class
//! itself. A high price gives programs that keep little, a low one programs that
//! compute little; which is better, only the placement can tell.

use std::collections::{BTreeMap, BTreeSet};

use egg::{Id, Language};
use sstep_autodiff::{DType, Op};

use super::extract::{ClassIx, Extraction, Form, extract_with};
use super::lang::{Expr, Graph};
use crate::algorithms::by_winograd;
use crate::error::PlanError;
use crate::machine::{Kernel, Machine};
use crate::program::{NodeIx, Program, ProgramNode};
use crate::solve::Effort;

/// Programs have few alternatives: this is solved at once or not worth more. Never
/// limited in seconds, so that a program is a function of what it is made from.
const EFFORT: Effort = Effort {
    gap: 1e-4,
    nodes: 200,
    secs: f64::INFINITY,
};

/// Being there at all, so that of equal forms the shorter wins.
const SMALL_SECS: f64 = 1e-9;

/// Positions of a call that a form is costed by: about a tile.
const TILE_POINTS: u64 = 1 << 15;

/// The cheapest equal program, if a byte kept for the backward half costs
/// `secs_per_kept_byte`.
///
/// # Errors
/// [`PlanError::Solver`] if the solver fails.
pub fn choose(
    program: &Program,
    graph: &Graph,
    machine: &Machine,
    secs_per_kept_byte: f64,
) -> Result<Program, PlanError> {
    let ids = ids(graph);
    let problem = problem(graph, machine, secs_per_kept_byte, &ids);
    taken(program, graph, &ids, &problem)
}

/// The equal program that takes new forms wherever it can. `before` are the forms
/// that were there before the rules.
///
/// # Errors
/// [`PlanError::Solver`] if the solver fails.
pub fn choose_new(
    program: &Program,
    graph: &Graph,
    before: Vec<Expr>,
) -> Result<Program, PlanError> {
    let egraph = &graph.egraph;
    let canonical = |e: Expr| e.map_children(|c| egraph.find(c));
    let old: BTreeSet<Expr> = before.into_iter().map(canonical).collect();
    let ids = ids(graph);
    let place = places(&ids);
    let form = |e: &Expr| Form {
        cost: f64::from(u8::from(old.contains(e))),
        reads: e.children.iter().map(|&c| place[&egraph.find(c)]).collect(),
    };
    let problem = Extraction {
        classes: (ids.iter())
            .map(|&id| egraph[id].nodes.iter().map(form).collect())
            .collect(),
        roots: roots(graph, &place),
    };
    taken(program, graph, &ids, &problem)
}

/// All classes, in the order of their numbers.
fn ids(graph: &Graph) -> Vec<Id> {
    let mut ids: Vec<Id> = graph.egraph.classes().map(|c| c.id).collect();
    ids.sort_unstable();
    ids
}

fn places(ids: &[Id]) -> BTreeMap<Id, ClassIx> {
    let number = |(i, &id): (usize, &Id)| (id, ClassIx(i as u32));
    ids.iter().enumerate().map(number).collect()
}

fn roots(graph: &Graph, place: &BTreeMap<Id, ClassIx>) -> Vec<ClassIx> {
    let of = |r: &NodeIx| place[&graph.egraph.find(graph.class[r.ix()])];
    graph.roots.iter().map(of).collect()
}

/// The program of the cheapest choice.
fn taken(
    program: &Program,
    graph: &Graph,
    ids: &[Id],
    problem: &Extraction,
) -> Result<Program, PlanError> {
    // The program itself is one of the choices, so there always is one; nothing is
    // chosen wrongly if not, as first forms are then taken.
    let choice: BTreeMap<Id, usize> = match extract_with(problem, EFFORT)? {
        Some(found) => (ids.iter().zip(found.choice))
            .filter_map(|(&id, form)| Some((id, form?)))
            .collect(),
        None => BTreeMap::new(),
    };
    emit(program, graph, &choice)
}

/// The classes `ids`, followed by those of what is kept.
fn problem(graph: &Graph, machine: &Machine, secs_per_kept_byte: f64, ids: &[Id]) -> Extraction {
    let egraph = &graph.egraph;
    let place = places(ids);
    let bytes = |id: Id| egraph[id].data.ty.map_or(0.0, |ty| ty.bytes() as f64);
    let mut kept: BTreeMap<Id, ClassIx> = BTreeMap::new();
    let mut kept_forms: Vec<Vec<Form>> = Vec::new();
    let mut classes: Vec<Vec<Form>> = Vec::with_capacity(ids.len());
    for &id in ids {
        let here = &egraph[id].data;
        let mut forms = Vec::with_capacity(egraph[id].nodes.len());
        for e in &egraph[id].nodes {
            let mut reads = Vec::with_capacity(e.children.len());
            for &child in &e.children {
                let child = egraph.find(child);
                let there = &egraph[child].data;
                let crosses = there.forward && !here.forward;
                reads.push(if crosses && there.ty.is_some_and(|ty| ty.is_map()) {
                    *kept.entry(child).or_insert_with(|| {
                        kept_forms.push(vec![Form {
                            cost: secs_per_kept_byte * bytes(child),
                            reads: vec![place[&child]],
                        }]);
                        ClassIx((ids.len() + kept_forms.len() - 1) as u32)
                    })
                } else {
                    place[&child]
                });
            }
            let cost = secs(graph, machine, e, id);
            forms.push(Form { cost, reads });
        }
        classes.push(forms);
    }
    classes.extend(kept_forms);
    let roots = roots(graph, &place);
    Extraction { classes, roots }
}

/// Seconds of computing a form of class `id` whole, tile by tile.
fn secs(graph: &Graph, machine: &Machine, e: &Expr, id: Id) -> f64 {
    let class = |id: Id| graph.egraph[id].data.ty;
    let tys: Option<Vec<_>> = e.children.iter().map(|&c| class(c)).collect();
    let (Some(inputs), Some(out)) = (tys, class(id)) else {
        return SMALL_SECS;
    };
    if e.head.op.is_leaf() {
        return SMALL_SECS;
    }
    let secs = |op: &Op| {
        let kernel = Kernel {
            op,
            inputs: &inputs,
            out: &out,
        };
        let points = kernel.whole_points();
        machine.kernel_secs(&kernel, points, points.div_ceil(TILE_POINTS))
    };
    // Which way a convolution is computed is decided later, and for the better.
    let may_winograd = machine.winograd && out.dtype.wide() == DType::F32;
    let other = by_winograd(&e.head.op, &inputs, &out).filter(|_| may_winograd);
    let best = other.map_or(f64::INFINITY, |op| secs(&op));
    best.min(secs(&e.head.op)) + SMALL_SECS
}

/// Writes the chosen forms out as a program, in the order of the old one.
fn emit(
    program: &Program,
    graph: &Graph,
    choice: &BTreeMap<Id, usize>,
) -> Result<Program, PlanError> {
    let egraph = &graph.egraph;
    let mut name: BTreeMap<Id, &str> = BTreeMap::new();
    for n in program.indices() {
        name.entry(egraph.find(graph.class[n.ix()]))
            .or_insert(&program.node(n).name);
    }
    let mut done: BTreeMap<Id, NodeIx> = BTreeMap::new();
    let mut nodes: Vec<ProgramNode> = Vec::new();
    // Classes that only exist for classes nobody takes are left out: start from
    // the roots, oldest first, and visit inputs before users.
    let wanted = wanted(graph, choice);
    let mut starts: Vec<Id> = Vec::new();
    for n in program.indices() {
        let id = egraph.find(graph.class[n.ix()]);
        if wanted.contains(&id) {
            starts.push(id);
        }
    }
    for start in starts {
        let mut stack = vec![start];
        while let Some(&id) = stack.last() {
            if done.contains_key(&id) {
                stack.pop();
                continue;
            }
            let form = &egraph[id].nodes[choice.get(&id).copied().unwrap_or(0)];
            let inputs: Vec<Id> = form.children.iter().map(|&c| egraph.find(c)).collect();
            let missing: Vec<Id> = inputs
                .iter()
                .copied()
                .filter(|c| !done.contains_key(c))
                .collect();
            if !missing.is_empty() {
                stack.extend(missing.into_iter().rev());
                continue;
            }
            stack.pop();
            let ty = match (form.head.tag, egraph[id].data.ty) {
                (Some(tag), _) => program.node(tag).ty,
                (None, ty) => ty.expect("every form in the e-graph has a type"),
            };
            done.insert(id, NodeIx(nodes.len() as u32));
            nodes.push(ProgramNode {
                op: form.head.op,
                inputs: inputs.iter().map(|c| done[c]).collect(),
                ty,
                name: name
                    .get(&id)
                    .map_or_else(|| format!("rw{id}"), |n| (*n).to_owned()),
                level: 0,
            });
        }
    }
    let renumber = |n: &NodeIx| done[&egraph.find(graph.class[n.ix()])];
    let outputs = program.outputs.iter().map(renumber).collect();
    let updates = (program.updates.iter())
        .map(|u| crate::program::Update {
            param: renumber(&u.param),
            grad: renumber(&u.grad),
        })
        .collect();
    Program::from_nodes(program.dtype, nodes, outputs, updates, program.state_slots)
}

/// Classes that the roots need, given the choice.
fn wanted(graph: &Graph, choice: &BTreeMap<Id, usize>) -> BTreeSet<Id> {
    let egraph = &graph.egraph;
    let mut wanted = BTreeSet::new();
    let mut stack: Vec<Id> = graph
        .roots
        .iter()
        .map(|r| egraph.find(graph.class[r.ix()]))
        .collect();
    while let Some(id) = stack.pop() {
        if wanted.insert(id) {
            let form = &egraph[id].nodes[choice.get(&id).copied().unwrap_or(0)];
            stack.extend(form.children.iter().map(|&c| egraph.find(c)));
        }
    }
    wanted
}
