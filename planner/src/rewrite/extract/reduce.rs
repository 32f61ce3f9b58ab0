//! Makes an extraction problem smaller without losing its optimum.
//!
//! Forms that cannot be built from leaves go: no choice without cycles takes
//! them. A form goes if another of its class is no dearer even after building anew
//! all that only the other reads; classes that are needed in any case need not be
//! built. What is built anew must not lead back: it has to lie in another strongly
//! connected component. A class that only one other class reads is written into its
//! readers, where that makes no more forms of them. What the roots no longer reach
//! goes as well. All this is repeated until nothing changes.

use petgraph::algo::kosaraju_scc;
use petgraph::graph::{DiGraph, NodeIndex};

use super::{ClassIx, Extraction, Form, forms_needed};

/// A form that is left.
#[derive(Clone, Debug)]
pub(super) struct Left {
    /// The forms it stands for, by class: its own and those written into it.
    pub stands_for: Vec<(usize, usize)>,
    pub cost: f64,
    /// Sorted, without repetitions.
    pub reads: Vec<usize>,
}

impl Left {
    fn reads(&self, class: usize) -> bool {
        self.reads.binary_search(&class).is_ok()
    }
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
    let left = |class: usize, form: usize, f: &Form| {
        let mut reads: Vec<usize> = f.reads.iter().map(|c| c.ix()).collect();
        reads.sort_unstable();
        reads.dedup();
        Left {
            stands_for: vec![(class, form)],
            cost: f.cost,
            reads,
        }
    };
    let classes: Vec<Vec<Left>> = (problem.classes.iter().enumerate())
        .map(|(class, forms)| {
            let forms = forms.iter().enumerate();
            forms.map(|(form, f)| left(class, form, f)).collect()
        })
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
        let fewer = reduced.drop_dominated();
        let shorter = reduced.write_in();
        if !fewer && !shorter {
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

    /// What building each class anew costs at most: the sum over a tree, without
    /// what is needed in any case.
    fn rebuild_costs(&self, order: &[usize]) -> Vec<f64> {
        let start = |&needed: &bool| if needed { 0.0 } else { f64::INFINITY };
        let mut costs: Vec<f64> = self.is_needed.iter().map(start).collect();
        loop {
            let mut falls = false;
            for &c in order {
                for f in &self.classes[c] {
                    let sum = f.cost + f.reads.iter().map(|&r| costs[r]).sum::<f64>();
                    if sum < costs[c] {
                        costs[c] = sum;
                        falls = true;
                    }
                }
            }
            if !falls {
                return costs;
            }
        }
    }

    /// Goes from what is read to its readers: a form is dropped on the strength of
    /// classes below it, of which the best forms are still there.
    fn drop_dominated(&mut self) -> bool {
        let mut order: Vec<usize> = (0..self.classes.len()).collect();
        order.sort_by_key(|&c| (self.component[c], c));
        let rebuild = self.rebuild_costs(&order);
        let mut any = false;
        for &c in &order {
            // From the last to the first, so that of equals the first stays: in
            // an e-graph it is the form that was there from the beginning.
            for at in (0..self.classes[c].len()).rev() {
                let forms = &self.classes[c];
                let beats = |a: &Left, b: &Left| {
                    let extra = a.reads.iter().filter(|&&r| !b.reads(r));
                    let anew = extra.map(|&r| {
                        let leads_back = self.component[r] == self.component[c];
                        if leads_back {
                            f64::INFINITY
                        } else {
                            rebuild[r]
                        }
                    });
                    a.cost + anew.sum::<f64>() <= b.cost
                };
                if (0..forms.len()).any(|a| a != at && beats(&forms[a], &forms[at])) {
                    self.classes[c].remove(at);
                    any = true;
                }
            }
        }
        any
    }

    /// Writes classes that one other class alone reads into the forms that read
    /// them.
    fn write_in(&mut self) -> bool {
        let mut reader: Vec<Option<usize>> = vec![None; self.classes.len()];
        let mut is_shared = self.is_needed.clone();
        for (c, forms) in self.classes.iter().enumerate() {
            for &read in forms.iter().flat_map(|f| &f.reads) {
                is_shared[read] |= reader[read].replace(c).is_some_and(|other| other != c);
            }
        }
        let mut any = false;
        for d in 0..self.classes.len() {
            let Some(c) = reader[d].filter(|&c| c != d && !is_shared[d]) else {
                continue;
            };
            let readers = self.classes[c].iter().filter(|f| f.reads(d)).count();
            let made = readers * self.classes[d].len();
            if readers == 0 || made > readers + self.classes[d].len() {
                continue;
            }
            let written = std::mem::take(&mut self.classes[d]);
            let mut forms = Vec::with_capacity(self.classes[c].len() + made);
            for f in std::mem::take(&mut self.classes[c]) {
                if !f.reads(d) {
                    forms.push(f);
                    continue;
                }
                // What would then read itself is a cycle.
                let parts = written.iter().filter(|w| !w.reads(c));
                forms.extend(parts.map(|w| joined(&f, d, w)));
            }
            // What was written in is gone: its reads are now those of this class.
            for w in &written {
                for &read in &w.reads {
                    reader[read] = Some(c);
                }
            }
            self.classes[c] = forms;
            any = true;
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
        let mut named = vec![None; self.classes.len()];
        for (form, forms) in choice.iter().zip(&self.classes) {
            let stands_for = form.map_or(&[][..], |f| &forms[f].stands_for);
            for &(class, form) in stands_for {
                named[class] = Some(form);
            }
        }
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

/// A form with one of class `d` written into it.
fn joined(form: &Left, d: usize, written: &Left) -> Left {
    let mut reads: Vec<usize> = form.reads.iter().copied().filter(|&r| r != d).collect();
    reads.extend(&written.reads);
    reads.sort_unstable();
    reads.dedup();
    Left {
        stands_for: [&form.stands_for[..], &written.stands_for[..]].concat(),
        cost: form.cost + written.cost,
        reads,
    }
}
