//! Makes an extraction problem smaller without losing its optimum.
//!
//! Forms that cannot be built from leaves go: no choice without cycles takes
//! them. A form goes if another of its class costs no more and reads no more. Reads
//! of classes that are needed in any case cost nothing further, so they do not count
//! in that comparison, provided they cannot lead back (they are in another strongly
//! connected component). What the roots no longer reach goes as well. All this is
//! repeated until nothing goes.

use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use super::{ClassIx, Extraction, Form, forms_needed};

/// A form that is left.
#[derive(Clone, Debug)]
pub(super) struct Left {
    /// Which form of its class it was.
    pub form: usize,
    pub cost: f64,
    /// Sorted, without repetitions.
    pub reads: Vec<usize>,
}

/// What is left of a problem. Classes keep their indices; those that are not
/// reachable have no forms.
#[derive(Clone, Debug)]
pub(super) struct Reduced {
    pub classes: Vec<Vec<Left>>,
    pub roots: Vec<usize>,
    /// Strongly connected component of each class, numbered so that what is read
    /// has a number at most as high.
    pub component: Vec<usize>,
    /// Whether a class is needed by every choice.
    pub is_needed: Vec<bool>,
}

/// Reduces a problem.
pub(super) fn reduce(problem: &Extraction) -> Reduced {
    let left = |(form, f): (usize, &Form)| {
        let mut reads: Vec<usize> = f.reads.iter().map(|c| c.ix()).collect();
        reads.sort_unstable();
        reads.dedup();
        Left {
            form,
            cost: f.cost,
            reads,
        }
    };
    let classes: Vec<Vec<Left>> = (problem.classes.iter())
        .map(|forms| forms.iter().enumerate().map(left).collect())
        .collect();
    let mut roots: Vec<usize> = problem.roots.iter().map(|c| c.ix()).collect();
    roots.sort_unstable();
    roots.dedup();
    let mut reduced = Reduced {
        component: vec![0; classes.len()],
        is_needed: vec![false; classes.len()],
        classes,
        roots,
    };
    reduced.drop_ungrounded();
    loop {
        reduced.drop_unreachable();
        reduced.find_components();
        reduced.find_needed();
        if !reduced.drop_dominated() {
            return reduced;
        }
    }
}

impl Reduced {
    /// Keeps the forms that can be built up from leaves.
    fn drop_ungrounded(&mut self) {
        let mut readers: Vec<Vec<(usize, usize)>> = vec![Vec::new(); self.classes.len()];
        let mut missing: Vec<Vec<usize>> = Vec::with_capacity(self.classes.len());
        let mut grounded = vec![false; self.classes.len()];
        let mut ready: Vec<usize> = Vec::new();
        for (c, forms) in self.classes.iter_mut().enumerate() {
            forms.retain(|f| !f.reads.contains(&c));
            for (i, f) in forms.iter().enumerate() {
                for &read in &f.reads {
                    readers[read].push((c, i));
                }
                if f.reads.is_empty() && !std::mem::replace(&mut grounded[c], true) {
                    ready.push(c);
                }
            }
            missing.push(forms.iter().map(|f| f.reads.len()).collect());
        }
        while let Some(c) = ready.pop() {
            for &(reader, form) in &readers[c] {
                missing[reader][form] -= 1;
                if missing[reader][form] == 0 && !std::mem::replace(&mut grounded[reader], true) {
                    ready.push(reader);
                }
            }
        }
        for forms in &mut self.classes {
            forms.retain(|f| f.reads.iter().all(|&r| grounded[r]));
        }
    }

    fn drop_unreachable(&mut self) {
        let mut reached = vec![false; self.classes.len()];
        let mut stack = self.roots.clone();
        while let Some(c) = stack.pop() {
            if !std::mem::replace(&mut reached[c], true) {
                stack.extend(self.classes[c].iter().flat_map(|f| &f.reads));
            }
        }
        for (forms, reached) in self.classes.iter_mut().zip(reached) {
            if !reached {
                forms.clear();
            }
        }
    }

    fn find_components(&mut self) {
        let mut graph: DiGraph<(), ()> = DiGraph::new();
        let at: Vec<NodeIndex> = self.classes.iter().map(|_| graph.add_node(())).collect();
        for (c, forms) in self.classes.iter().enumerate() {
            for &read in forms.iter().flat_map(|f| &f.reads) {
                graph.update_edge(at[c], at[read], ());
            }
        }
        // Components come in reverse topological order: what is read first.
        for (number, members) in kosaraju_scc(&graph).into_iter().enumerate() {
            for member in members {
                self.component[member.index()] = number;
            }
        }
    }

    /// A class is needed if it is a root or all forms of a needed class read it.
    fn find_needed(&mut self) {
        self.is_needed.fill(false);
        let mut stack = self.roots.clone();
        while let Some(c) = stack.pop() {
            if std::mem::replace(&mut self.is_needed[c], true) {
                continue;
            }
            let Some((first, others)) = self.classes[c].split_first() else {
                continue;
            };
            let all = |r: &&usize| others.iter().all(|f| f.reads.binary_search(r).is_ok());
            stack.extend(first.reads.iter().filter(all));
        }
    }

    fn drop_dominated(&mut self) -> bool {
        let mut any = false;
        for c in 0..self.classes.len() {
            let free = |r: usize| self.is_needed[r] && self.component[r] != self.component[c];
            let forms = &self.classes[c];
            let beats = |a: &Left, b: &Left| {
                a.cost <= b.cost
                    && (a.reads.iter()).all(|r| free(*r) || b.reads.binary_search(r).is_ok())
            };
            // Of two that beat each other the first stays.
            let keep: Vec<bool> = (0..forms.len())
                .map(|b| {
                    !(0..forms.len()).any(|a| {
                        a != b
                            && beats(&forms[a], &forms[b])
                            && (a < b || !beats(&forms[b], &forms[a]))
                    })
                })
                .collect();
            any |= keep.contains(&false);
            let mut keep = keep.into_iter();
            self.classes[c].retain(|_| keep.next().unwrap_or(true));
        }
        any
    }

    /// Cost of a choice among the forms left.
    pub fn cost(&self, choice: &[Option<usize>]) -> f64 {
        let mut seen = vec![false; self.classes.len()];
        let mut stack = self.roots.clone();
        let mut cost = 0.0;
        while let Some(c) = stack.pop() {
            if std::mem::replace(&mut seen[c], true) {
                continue;
            }
            let Some(form) = choice[c].map(|f| &self.classes[c][f]) else {
                return f64::INFINITY;
            };
            cost += form.cost;
            stack.extend(&form.reads);
        }
        cost
    }

    /// A choice among the forms left, as one among all, for needed classes only.
    pub fn name(&self, problem: &Extraction, choice: &[Option<usize>]) -> Vec<Option<usize>> {
        let named = (choice.iter().zip(&self.classes))
            .map(|(form, forms)| form.map(|f| forms[f].form))
            .collect::<Vec<_>>();
        debug_assert!(forms_needed(problem, &named).is_some());
        let mut needed = vec![None; named.len()];
        let mut stack: Vec<ClassIx> = problem.roots.clone();
        while let Some(c) = stack.pop() {
            if let (None, Some(form)) = (needed[c.ix()], named[c.ix()]) {
                needed[c.ix()] = Some(form);
                stack.extend(&problem.classes[c.ix()][form].reads);
            }
        }
        needed
    }
}
