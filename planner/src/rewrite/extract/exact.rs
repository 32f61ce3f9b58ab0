//! The cheapest choice, as an integer program.
//!
//! `x[f] ∈ {0, 1}` says that a form is taken. A root takes one; where class `c`
//! takes one that reads `d`, class `d` takes one:
//! `Σ x[forms of c that read d] ≤ Σ x[forms of d] ≤ 1`. Cycles can only run inside a
//! strongly connected component, and most programs forbid none of them: they are
//! left out, and those that a solution turns out to have are forbidden for the next.
//! Each such program has fewer solutions than the last, and all of them have every
//! choice without cycles: so each bound holds for the problem.

use std::collections::BTreeSet;

use super::ROUNDS;
use super::reduce::Reduced;
use crate::error::PlanError;
use crate::solve::{Effort, Model, Outcome, Solution, Var};

/// What the solver found out.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    /// A choice without cycles, among the forms left.
    pub choice: Option<Vec<Option<usize>>>,
    /// No choice costs less.
    pub bound: f64,
}

/// Costs are scaled so that the greedy choice costs this: the solver's absolute
/// tolerances then are far below what tells two choices apart.
const SCALE: f64 = 1e4;

/// Solves what is left of a problem of which a choice of cost `upper` is known.
pub(super) fn exact(problem: &Reduced, upper: f64, effort: Effort) -> Result<Answer, PlanError> {
    let mut bound = needed_cost(problem);
    if problem.classes.iter().all(|forms| forms.len() <= 1) || bound >= upper {
        return Ok(Answer {
            choice: None,
            bound: if bound >= upper { bound } else { upper },
        });
    }
    let scale = SCALE / upper;
    let (mut model, forms) = state(problem, scale);
    for _ in 0..ROUNDS {
        let (solution, proved) = match model.solve(effort)? {
            Outcome::Found(solution) => {
                let value = value(problem, &forms, &solution);
                let proved = value - solution.gap.max(0.0) * value.abs();
                (solution, proved)
            }
            Outcome::Impossible | Outcome::GaveUp => break,
        };
        bound = bound.max(proved);
        let choice = read(&forms, &solution);
        let cycles = cycles(problem, &choice);
        if cycles.is_empty() {
            return Ok(Answer {
                choice: Some(choice),
                bound,
            });
        }
        for cycle in &cycles {
            forbid(problem, &forms, &mut model, cycle);
        }
    }
    Ok(Answer {
        choice: None,
        bound,
    })
}

/// Cost of the cheapest form of every class that is needed in any case.
fn needed_cost(problem: &Reduced) -> f64 {
    let needed = (problem.classes.iter().zip(&problem.is_needed)).filter(|(_, needed)| **needed);
    needed
        .map(|(forms, _)| {
            let costs = forms.iter().map(|f| f.cost);
            costs.fold(f64::INFINITY, f64::min)
        })
        .filter(|cost| cost.is_finite())
        .sum()
}

/// The program without a word on cycles, and the variables of all forms.
fn state(problem: &Reduced, scale: f64) -> (Model, Vec<Vec<Var>>) {
    let mut model = Model::default();
    let forms: Vec<Vec<Var>> = (problem.classes.iter())
        .map(|forms| forms.iter().map(|f| model.binary(scale * f.cost)).collect())
        .collect();
    let all = |c: usize| forms[c].iter().map(|&x| (x, 1.0)).collect::<Vec<_>>();
    for (c, of_class) in problem.classes.iter().enumerate() {
        if of_class.is_empty() {
            continue;
        }
        if problem.is_needed[c] {
            model.equal(all(c), 1.0);
        } else if of_class.len() > 1 {
            model.at_most(all(c), 1.0);
        }
        let reads: BTreeSet<usize> = of_class.iter().flat_map(|f| f.reads.clone()).collect();
        for read in reads {
            if problem.is_needed[read] {
                continue;
            }
            let mut terms = all(read);
            terms.extend(readers(problem, &forms, c, read).map(|x| (x, -1.0)));
            model.at_least(terms, 0.0);
        }
    }
    (model, forms)
}

/// Variables of the forms of `class` that read `read`.
fn readers<'a>(
    problem: &'a Reduced,
    forms: &'a [Vec<Var>],
    class: usize,
    read: usize,
) -> impl Iterator<Item = Var> + 'a {
    let of_class = problem.classes[class].iter().zip(&forms[class]);
    of_class.filter_map(move |(f, &x)| f.reads.binary_search(&read).is_ok().then_some(x))
}

/// The form taken of each class, also of some that nothing needs.
fn read(forms: &[Vec<Var>], solution: &Solution) -> Vec<Option<usize>> {
    let taken = |xs: &Vec<Var>| xs.iter().position(|&x| solution.is_set(x));
    forms.iter().map(taken).collect()
}

fn value(problem: &Reduced, forms: &[Vec<Var>], solution: &Solution) -> f64 {
    let pairs = problem.classes.iter().zip(forms);
    let taken = pairs.flat_map(|(fs, xs)| fs.iter().zip(xs));
    taken
        .filter(|&(_, &x)| solution.is_set(x))
        .map(|(f, _)| f.cost)
        .sum()
}

/// Forbids that every class of a cycle reads the next.
fn forbid(problem: &Reduced, forms: &[Vec<Var>], model: &mut Model, cycle: &[usize]) {
    let mut terms = Vec::new();
    for (at, &class) in cycle.iter().enumerate() {
        let next = cycle[(at + 1) % cycle.len()];
        terms.extend(readers(problem, forms, class, next).map(|x| (x, 1.0)));
    }
    model.at_most(terms, cycle.len() as f64 - 1.0);
}

/// Disjoint cycles of a choice, none if it has none: what the roots need is
/// walked again and again, without the classes of the cycles already found.
fn cycles(problem: &Reduced, choice: &[Option<usize>]) -> Vec<Vec<usize>> {
    let mut broken = vec![false; choice.len()];
    let mut found = Vec::new();
    while let Some(cycle) = cycle(problem, choice, &broken) {
        for &c in &cycle {
            broken[c] = true;
        }
        found.push(cycle);
    }
    found
}

/// One cycle among the classes that the roots need, as classes of which each
/// reads the next. Does not enter `broken` classes.
fn cycle(problem: &Reduced, choice: &[Option<usize>], broken: &[bool]) -> Option<Vec<usize>> {
    let mut is_done = broken.to_vec();
    let mut is_open = vec![false; choice.len()];
    for &root in &problem.roots {
        let mut path: Vec<(usize, usize)> = Vec::new();
        if !is_done[root] {
            is_open[root] = true;
            path.push((root, 0));
        }
        while let Some((class, next)) = path.pop() {
            let reads = choice[class].map_or(&[][..], |f| &problem.classes[class][f].reads);
            let Some(&read) = reads.get(next) else {
                is_open[class] = false;
                is_done[class] = true;
                continue;
            };
            path.push((class, next + 1));
            if is_open[read] {
                let from = path.iter().position(|p| p.0 == read)?;
                return Some(path[from..].iter().map(|p| p.0).collect());
            }
            if !is_done[read] {
                is_open[read] = true;
                path.push((read, 0));
            }
        }
    }
    None
}
