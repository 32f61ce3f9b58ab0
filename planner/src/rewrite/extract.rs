//! One form of every class that is needed, together the cheapest.
//!
//! An integer program: a class that is needed takes one of its forms; a form
//! needs the classes it reads. The cost of a form is its seconds; a class of the
//! forward half that a form of the backward half reads costs, once, the seconds
//! of bringing its bytes back. Potentials keep the choice acyclic. Where every
//! class has one form there is nothing to solve.

use std::collections::BTreeMap;

use egg::{Id, Language};

use super::lang::{Expr, Graph};
use crate::error::PlanError;
use crate::machine::Machine;
use crate::program::{NodeIx, Program, ProgramNode};
use crate::solve::{Effort, Model, Outcome, Var};

/// The cheapest equal program.
///
/// # Errors
/// [`PlanError::Solver`] if the solver fails.
pub fn extract(program: &Program, graph: &Graph, machine: &Machine) -> Result<Program, PlanError> {
    let several = graph.egraph.classes().any(|c| c.nodes.len() > 1);
    let choice = if several {
        choose(graph, machine)?
    } else {
        BTreeMap::new()
    };
    emit(program, graph, &choice)
}

/// Which form each class takes, where it has several.
fn choose(graph: &Graph, machine: &Machine) -> Result<BTreeMap<Id, usize>, PlanError> {
    let egraph = &graph.egraph;
    let ids: Vec<Id> = {
        let mut ids: Vec<Id> = egraph.classes().map(|c| c.id).collect();
        ids.sort_unstable();
        ids
    };
    let place: BTreeMap<Id, usize> = ids.iter().enumerate().map(|(i, &id)| (id, i)).collect();
    let n = ids.len() as f64;
    // Microseconds keep coefficients near one.
    let micros = |e: &Expr, id: Id| {
        let bytes = |id: Id| egraph[id].data.ty.map_or(0.0, |ty| ty.bytes() as f64);
        let touched = bytes(id) + e.children.iter().map(|&c| bytes(c)).sum::<f64>();
        let tys: Option<Vec<_>> = e.children.iter().map(|&c| egraph[c].data.ty).collect();
        let flops = match (tys, egraph[id].data.ty) {
            (Some(tys), Some(ty)) => {
                let points = sstep_autodiff::Region::whole(&ty).points() as f64;
                e.head.op.flops_per_point(&tys, &ty) * points
            }
            _ => 0.0,
        };
        1e6 * machine.kernel_secs(&e.head.op, flops, touched) + 1e-3
    };
    let mut model = Model::default();
    let mut forms: Vec<Vec<Var>> = Vec::with_capacity(ids.len());
    let mut potential: Vec<Var> = Vec::with_capacity(ids.len());
    let mut kept: BTreeMap<Id, Var> = BTreeMap::new();
    for &id in &ids {
        forms.push(
            egraph[id]
                .nodes
                .iter()
                .map(|e| model.binary(micros(e, id)))
                .collect(),
        );
        potential.push(model.real(0.0, n, 0.0));
    }
    for (at, &id) in ids.iter().enumerate() {
        for (e, &x) in egraph[id].nodes.iter().zip(&forms[at]) {
            for &child in e.children() {
                let child = egraph.find(child);
                let below = place[&child];
                // Needed: one of the child's forms.
                let mut terms: Vec<(Var, f64)> = forms[below].iter().map(|&y| (y, 1.0)).collect();
                terms.push((x, -1.0));
                model.at_least(merge(terms), 0.0);
                // Acyclic: potentials fall along every chosen read.
                if below == at {
                    model.equal(vec![(x, 1.0)], 0.0);
                } else {
                    let terms = vec![
                        (potential[at], 1.0),
                        (potential[below], -1.0),
                        (x, -(n + 1.0)),
                    ];
                    model.at_least(terms, -n);
                }
                let (here, there) = (&egraph[id].data, &egraph[child].data);
                if there.forward && !here.forward && there.ty.is_some_and(|ty| ty.is_map()) {
                    let bytes = there.ty.map_or(0.0, |ty| ty.bytes() as f64);
                    let cost = 1e6 * bytes / machine.h2d_bytes_per_sec;
                    let k = *kept
                        .entry(child)
                        .or_insert_with(|| model.real(0.0, 1.0, cost));
                    model.at_least(vec![(k, 1.0), (x, -1.0)], 0.0);
                }
            }
        }
    }
    for root in &graph.roots {
        let at = place[&egraph.find(graph.class[root.ix()])];
        model.equal(forms[at].iter().map(|&x| (x, 1.0)).collect(), 1.0);
    }
    let effort = Effort {
        gap: 1e-4,
        nodes: 1000,
        secs: 10.0,
    };
    let Outcome::Found(solution) = model.solve(effort)? else {
        return Ok(BTreeMap::new());
    };
    let mut choice = BTreeMap::new();
    for (at, &id) in ids.iter().enumerate() {
        if let Some(form) = forms[at].iter().position(|&x| solution.is_set(x)) {
            choice.insert(id, form);
        }
    }
    Ok(choice)
}

/// Sums coefficients of equal variables.
fn merge(mut terms: Vec<(Var, f64)>) -> Vec<(Var, f64)> {
    terms.sort_unstable_by_key(|t| t.0);
    terms.dedup_by(|b, a| {
        let same = a.0 == b.0;
        if same {
            a.1 += b.1;
        }
        same
    });
    terms
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
fn wanted(graph: &Graph, choice: &BTreeMap<Id, usize>) -> std::collections::BTreeSet<Id> {
    let egraph = &graph.egraph;
    let mut wanted = std::collections::BTreeSet::new();
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
