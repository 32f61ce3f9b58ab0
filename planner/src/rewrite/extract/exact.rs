//! The cheapest choice, as an integer program.
//!
//! `x[f] ∈ {0, 1}` says that a form is taken. A root takes one; where class `c`
//! takes one that reads `d`, class `d` takes one:
//! `Σ x[forms of c that read d] ≤ Σ x[forms of d] ≤ 1`. That alone allows circles,
//! and its relaxation is far from whole. So the relaxation, in which forms are taken
//! in part, is solved again and again, each time with rows for sets of classes that it
//! should leave and does not (`ground`); near each a choice is looked for. Where the
//! two do not meet, forms that are too dear by their reduced cost go, and the
//! integer program decides among the others; circles that its solution still has give
//! more rows. Every choice without cycles stays a solution throughout, so each bound
//! holds for the problem. All limits are counts, so the answer is a function of the
//! problem.

use std::collections::{BTreeMap, BTreeSet};

use super::greedy::greedy_by;
use super::ground::{self, Closed};
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

/// Relaxations solved at most, each with rows for the sets that the last breaks.
const CUT_ROUNDS: usize = 150;
/// Sets of a round.
const ROUND_SETS: usize = 60;
/// Simplex iterations times rows that relaxations may take in all.
const CUT_WORK: u64 = 2_000_000_000;
/// Integer programs solved, at least and at most, each with rows for the circles of
/// the last: the more the fewer arcs from class to class there are.
const ROUNDS: (usize, usize) = (2, 20);
/// Rounds times arcs.
const ARC_ROUNDS: usize = 20_000;
/// Branch-and-bound nodes of a round times arcs.
const ARC_NODES: usize = 2_000_000;
/// Relative distance of two choices of one cost.
const SAME: f64 = 1e-9;

/// Solves what is left of a problem of which a choice of cost `upper` is known.
pub(super) fn exact(problem: &Reduced, upper: f64, effort: Effort) -> Result<Answer, PlanError> {
    let bound = needed_cost(problem);
    if problem.classes.iter().all(|forms| forms.len() <= 1) || bound >= upper {
        return Ok(Answer {
            choice: None,
            bound: if bound >= upper { bound } else { upper },
        });
    }
    let scale = SCALE / upper;
    let (model, forms) = state(problem, scale);
    let mut solver = Solver {
        problem,
        model,
        forms,
        scale,
        upper,
        bound,
        best: None,
    };
    let aim = 1.0 - effort.gap.max(SAME);
    solver.relax(aim)?;
    if solver.bound < solver.upper * aim {
        solver.branch(effort)?;
    }
    Ok(Answer {
        choice: solver.best,
        bound: solver.bound,
    })
}

struct Solver<'a> {
    problem: &'a Reduced,
    model: Model,
    forms: Vec<Vec<Var>>,
    scale: f64,
    /// Cost of the best choice known.
    upper: f64,
    /// No choice costs less.
    bound: f64,
    /// The best choice, if it is better than the one known before.
    best: Option<Vec<Option<usize>>>,
}

impl Solver<'_> {
    /// Notes a choice without circles.
    fn offer(&mut self, choice: Vec<Option<usize>>) {
        let cost = self.problem.cost(&choice);
        if cost < self.upper {
            (self.upper, self.best) = (cost, Some(choice));
        }
    }

    /// Looks for a choice near a relaxation: what that takes is cheap, the rest as
    /// dear as it is.
    fn look_near(&mut self, taken: &[Vec<f64>]) {
        let costs = |c: usize, f: usize| {
            let left = 1.0 - taken[c][f].clamp(0.0, 1.0);
            self.problem.classes[c][f].cost * left
        };
        if let Some(choice) = greedy_by(self.problem, costs) {
            self.offer(choice);
        }
    }

    /// Solves relaxations until one breaks no set that is found, or costs as much as
    /// the best choice times `aim`.
    fn relax(&mut self, aim: f64) -> Result<(), PlanError> {
        let mut relaxation = Relaxation::new()?;
        let mut work = 0;
        for round in 0..CUT_ROUNDS {
            let Some(relaxed) = relaxation.solve(&self.model)? else {
                break;
            };
            self.bound = self.bound.max(relaxed.value / self.scale);
            work += relaxed.work;
            let taken: Vec<Vec<f64>> = (self.forms.iter())
                .map(|xs| xs.iter().map(|&x| relaxed.value_of(x)).collect())
                .collect();
            let sets = ground::broken(self.problem, &taken, ROUND_SETS);
            let is_last = sets.is_empty() || work > CUT_WORK || round + 1 == CUT_ROUNDS;
            if is_last || round == 0 || round.is_power_of_two() {
                self.look_near(&taken);
            }
            if self.bound >= self.upper * aim {
                return Ok(());
            }
            if is_last {
                self.drop_dear(&relaxed);
                break;
            }
            for set in &sets {
                self.leave(set);
            }
        }
        Ok(())
    }

    /// Leaves forms out that no choice better than the best takes: those whose
    /// reduced cost alone makes up for the difference.
    fn drop_dear(&mut self, relaxed: &Relaxed) {
        let room = self.upper * self.scale - relaxed.value;
        for &x in self.forms.iter().flatten() {
            if relaxed.reduced_cost(x) > room + 1e-6 * SCALE {
                self.model.restrict(x, 0.0, 0.0);
            }
        }
    }

    /// Has a set left as much as its class is taken.
    fn leave(&mut self, set: &Closed) {
        let mut factors = BTreeMap::new();
        for (c, form) in set.ways_out(self.problem) {
            *factors.entry(self.forms[c][form]).or_insert(0.0) += 1.0;
        }
        let is_needed = self.problem.is_needed[set.class];
        if !is_needed {
            for &x in &self.forms[set.class] {
                *factors.entry(x).or_insert(0.0) -= 1.0;
            }
        }
        let terms = factors.into_iter().filter(|(_, f)| *f != 0.0).collect();
        self.model
            .at_least(terms, if is_needed { 1.0 } else { 0.0 });
    }

    /// Solves integer programs until the solution of one has no circle.
    fn branch(&mut self, effort: Effort) -> Result<(), PlanError> {
        let forms = self.problem.classes.iter().flatten();
        let n_arcs: usize = forms.map(|f| f.reads.len()).sum();
        let effort = Effort {
            nodes: effort.nodes.min((ARC_NODES / n_arcs.max(1)) as i32 + 1),
            ..effort
        };
        for _ in 0..(ARC_ROUNDS / n_arcs.max(1)).clamp(ROUNDS.0, ROUNDS.1) {
            let solution = match self.model.solve(effort)? {
                Outcome::Found(solution) => solution,
                // Among the forms left there is none better than the best.
                Outcome::Impossible => {
                    self.bound = self.upper;
                    break;
                }
                Outcome::GaveUp => break,
            };
            let value = value(self.problem, &self.forms, &solution);
            let proved = value - solution.gap.max(0.0) * value.abs();
            // What was left out costs as much as the best.
            self.bound = self.bound.max(proved.min(self.upper));
            let choice = read(&self.forms, &solution);
            let sets = ground::broken_by_choice(self.problem, &choice);
            if sets.is_empty() {
                self.offer(choice);
                break;
            }
            for set in &sets {
                self.leave(set);
            }
        }
        Ok(())
    }
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
