//! The cheapest choice, as an integer program.
//!
//! `x[f] ∈ {0, 1}` says that a form is taken. A root takes one; where class `c`
//! takes one that reads `d`, class `d` takes one:
//! `Σ x[forms of c that read d] ≤ Σ x[forms of d] ≤ 1`. Cycles can only run inside a
//! strongly connected component, and most programs forbid none of them: they are
//! left out at first. The relaxation, in which forms are taken in part, is solved
//! again and again, each time with those cycles forbidden that it takes more of than
//! any choice may: of a cycle of `n` classes, `n − 1` arcs. Then the integer program
//! is solved, and cycles that its solution still has are forbidden for the next. Every
//! choice without cycles stays a solution throughout, so each bound holds for the
//! problem. All limits are counts, so the answer is a function of the problem.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use super::reduce::Reduced;
use crate::error::PlanError;
use crate::solve::{Effort, Model, Outcome, Relaxation, Relaxed, Solution, Var};

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

/// Relaxations solved at most, each with the cycles of the last forbidden.
const CUT_ROUNDS: usize = 60;
/// Simplex iterations times rows that relaxations may take in all.
const CUT_WORK: u64 = 2_000_000_000;
/// Integer programs solved, at least and at most, each with the cycles of the last
/// forbidden: the more the fewer arcs from class to class there are.
const ROUNDS: (usize, usize) = (2, 40);
/// Rounds times arcs.
const ARC_ROUNDS: usize = 4000;
/// Branch-and-bound nodes of a round times arcs.
const ARC_NODES: usize = 200_000;
/// By how much a cycle must be taken too much of, to be forbidden.
const VIOLATED: f64 = 1e-3;

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
    bound = bound.max(cut(problem, &forms, &mut model)? / scale);
    if bound >= upper * (1.0 - effort.gap.max(1e-9)) {
        return Ok(Answer {
            choice: None,
            bound,
        });
    }
    let n_arcs: usize = problem
        .classes
        .iter()
        .flatten()
        .map(|f| f.reads.len())
        .sum();
    let effort = Effort {
        nodes: effort.nodes.min((ARC_NODES / n_arcs.max(1)) as i32 + 1),
        ..effort
    };
    for _ in 0..(ARC_ROUNDS / n_arcs.max(1)).clamp(ROUNDS.0, ROUNDS.1) {
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

/// Forbids cycles that the relaxation takes too much of, until it takes too much of
/// none. The value of the last relaxation: no choice costs less.
fn cut(problem: &Reduced, forms: &[Vec<Var>], model: &mut Model) -> Result<f64, PlanError> {
    let mut relaxation = Relaxation::new()?;
    let (mut value, mut work) = (0.0f64, 0);
    for _ in 0..CUT_ROUNDS {
        let Some(relaxed) = relaxation.solve(model)? else {
            break;
        };
        value = value.max(relaxed.value);
        work += relaxed.work;
        let cycles = violated(problem, forms, &relaxed);
        if cycles.is_empty() || work > CUT_WORK {
            break;
        }
        for cycle in &cycles {
            forbid(problem, forms, model, cycle);
        }
    }
    Ok(value)
}

/// Cycles that a relaxation takes too much of, at most one through each class it finds
/// first: shortest ones, where an arc is as long as what is missing to taking it whole.
fn violated(problem: &Reduced, forms: &[Vec<Var>], relaxed: &Relaxed) -> Vec<Vec<usize>> {
    let arcs: Vec<Vec<(usize, f64)>> = (0..problem.classes.len())
        .map(|c| {
            let mut taken: BTreeMap<usize, f64> = BTreeMap::new();
            for (form, &x) in problem.classes[c].iter().zip(&forms[c]) {
                let inside = form.reads.iter();
                for &r in inside.filter(|&&r| problem.component[r] == problem.component[c]) {
                    *taken.entry(r).or_default() += relaxed.value_of(x);
                }
            }
            let long = taken
                .into_iter()
                .map(|(r, part)| (r, (1.0 - part).max(0.0)));
            long.filter(|(_, length)| *length < 1.0 - VIOLATED)
                .collect()
        })
        .collect();
    let mut is_used = vec![false; arcs.len()];
    let mut found = Vec::new();
    for start in 0..arcs.len() {
        if is_used[start] {
            continue;
        }
        if let Some(cycle) = shortest(&arcs, start) {
            for &c in &cycle {
                is_used[c] = true;
            }
            found.push(cycle);
        }
    }
    found
}

/// The shortest cycle through a class, if it is shorter than one.
fn shortest(arcs: &[Vec<(usize, f64)>], start: usize) -> Option<Vec<usize>> {
    // Lengths lie in [0, 1), where the bits of numbers are ordered as they are.
    let key = |length: f64| length.to_bits();
    let mut length: BTreeMap<usize, f64> = BTreeMap::new();
    let mut before: BTreeMap<usize, usize> = BTreeMap::new();
    let mut open = BinaryHeap::from([(Reverse(key(0.0)), start)]);
    let mut is_first = true;
    while let Some((Reverse(bits), c)) = open.pop() {
        let here = f64::from_bits(bits);
        if c == start && !is_first {
            let mut cycle = vec![before[&start]];
            while let Some(&last) = cycle.last().filter(|&&last| last != start) {
                cycle.push(before[&last]);
            }
            cycle.reverse();
            return Some(cycle);
        }
        if !is_first && length.get(&c).is_some_and(|&l| l < here) {
            continue;
        }
        is_first = false;
        for &(next, more) in &arcs[c] {
            let there = here + more;
            let is_shorter = length.get(&next).is_none_or(|&l| there < l);
            if there < 1.0 - VIOLATED && is_shorter {
                length.insert(next, there);
                before.insert(next, c);
                open.push((Reverse(key(there)), next));
            }
        }
    }
    None
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
