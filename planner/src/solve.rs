//! The only place that touches the solver.
//!
//! Models are stated through good_lp and solved by HiGHS. One thread, a fixed
//! seed and limits in nodes keep the answer a function of the model; binaries
//! are read at one half and never trusted beyond that: whoever asks checks what
//! the decoded solution really costs.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use good_lp::{Expression, ProblemVariables, SolverModel, Variable, constraint, variable};
use highs::{HighsModelStatus, HighsSolutionStatus};

use crate::error::PlanError;

/// A column of a [`Model`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Var(usize);

/// A row of a [`Model`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Row(usize);

/// A mixed-integer linear model, minimised.
#[derive(Clone, Debug, Default)]
pub struct Model {
    columns: Vec<Column>,
    rows: Vec<Inequality>,
}

#[derive(Clone, Debug)]
struct Column {
    lo: f64,
    hi: f64,
    binary: bool,
    cost: f64,
}

/// `lo ≤ Σ terms ≤ hi`.
#[derive(Clone, Debug)]
struct Inequality {
    terms: Vec<(Var, f64)>,
    lo: f64,
    hi: f64,
}

/// The optimum with every binary allowed any value between 0 and 1.
#[derive(Clone, Debug)]
pub struct Relaxed {
    /// Objective: no solution of the model is below it.
    pub value: f64,
    /// Simplex iterations times rows: what it took.
    pub work: u64,
    primal: Vec<f64>,
    reduced: Vec<f64>,
    duals: Vec<f64>,
}

impl Relaxed {
    /// Value of a column.
    pub fn value_of(&self, v: Var) -> f64 {
        self.primal[v.0]
    }

    /// By how much the objective rises at least if a column at its lower bound rises
    /// by one.
    pub fn reduced_cost(&self, v: Var) -> f64 {
        self.reduced[v.0]
    }

    /// By how much the objective rises if a row's bound rises by one.
    pub fn dual(&self, r: Row) -> f64 {
        self.duals[r.0]
    }
}

/// How hard to try.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Stop within this relative distance of the bound.
    pub gap: f64,
    /// Branch-and-bound nodes at most.
    pub nodes: i32,
    /// Seconds at most: a last resort on an overloaded machine.
    pub secs: f64,
}

/// How a solve ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// With a solution.
    Found(Solution),
    /// No solution exists.
    Impossible,
    /// The limits ran out before any solution was found: no proof of anything.
    GaveUp,
}

/// A solution that satisfies every row.
#[derive(Clone, Debug)]
pub struct Solution {
    values: Vec<f64>,
    /// Relative distance to what no solution is below.
    pub gap: f64,
}

impl Solution {
    /// Whether a binary is set.
    pub fn is_set(&self, v: Var) -> bool {
        self.values[v.0] > 0.5
    }
}

impl Model {
    /// Adds a binary column.
    pub fn binary(&mut self, cost: f64) -> Var {
        self.column(Column {
            lo: 0.0,
            hi: 1.0,
            binary: true,
            cost,
        })
    }

    /// Adds a continuous column in `[lo, hi]`.
    pub fn real(&mut self, lo: f64, hi: f64, cost: f64) -> Var {
        self.column(Column {
            lo,
            hi,
            binary: false,
            cost,
        })
    }

    fn column(&mut self, column: Column) -> Var {
        self.columns.push(column);
        Var(self.columns.len() - 1)
    }

    /// `Σ terms ≤ bound`.
    pub fn at_most(&mut self, terms: Vec<(Var, f64)>, bound: f64) -> Row {
        self.row(terms, f64::NEG_INFINITY, bound)
    }

    /// `Σ terms ≥ bound`.
    pub fn at_least(&mut self, terms: Vec<(Var, f64)>, bound: f64) -> Row {
        self.row(terms, bound, f64::INFINITY)
    }

    /// `Σ terms = bound`.
    pub fn equal(&mut self, terms: Vec<(Var, f64)>, bound: f64) -> Row {
        self.row(terms, bound, bound)
    }

    fn row(&mut self, terms: Vec<(Var, f64)>, lo: f64, hi: f64) -> Row {
        self.rows.push(Inequality { terms, lo, hi });
        Row(self.rows.len() - 1)
    }

    /// Adds a term to a row, for a column that came after it.
    pub fn extend(&mut self, r: Row, v: Var, factor: f64) {
        self.rows[r.0].terms.push((v, factor));
    }

    /// Gives a column other bounds.
    pub fn restrict(&mut self, v: Var, lo: f64, hi: f64) {
        (self.columns[v.0].lo, self.columns[v.0].hi) = (lo, hi);
    }

    /// Minimises.
    ///
    /// HiGHS looks at its own limits between phases only, some of which last. So it
    /// works on a thread that is left to itself, and to its end, when far more than its
    /// time is over.
    ///
    /// # Errors
    /// [`PlanError::Solver`] if HiGHS fails on the model.
    pub fn solve(&self, effort: Effort) -> Result<Outcome, PlanError> {
        let (tell, told) = channel();
        let model = self.clone();
        let work = move || {
            // Nobody listens any more if it took too long.
            let _ = tell.send(model.solve_here(effort));
        };
        let thread = std::thread::Builder::new().name("sstep-solver".to_owned());
        thread.spawn(work).map_err(|e| failed(&e))?;
        let patience = Duration::try_from_secs_f64(PATIENCE * effort.secs + LEAST_SECS);
        match told.recv_timeout(patience.unwrap_or(Duration::MAX)) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => Ok(Outcome::GaveUp),
            Err(RecvTimeoutError::Disconnected) => Err(failed(&"HiGHS ended without an answer")),
        }
    }

    /// The same, on this thread.
    fn solve_here(&self, effort: Effort) -> Result<Outcome, PlanError> {
        let mut vars = ProblemVariables::new();
        let columns: Vec<Variable> = (self.columns.iter())
            .map(|c| {
                let definition = variable().min(c.lo).max(c.hi);
                vars.add(if c.binary {
                    definition.integer()
                } else {
                    definition
                })
            })
            .collect();
        let sum = |terms: &[(Var, f64)]| -> Expression {
            terms.iter().map(|&(v, factor)| factor * columns[v.0]).sum()
        };
        let objective: Expression = self
            .columns
            .iter()
            .zip(&columns)
            .map(|(c, &v)| c.cost * v)
            .sum();
        let mut problem = vars
            .minimise(objective)
            .using(good_lp::solvers::highs::highs);
        for row in &self.rows {
            let left = sum(&row.terms);
            problem.add_constraint(if row.lo == row.hi {
                constraint!(left == row.hi)
            } else if row.hi.is_infinite() {
                constraint!(left >= row.lo)
            } else {
                constraint!(left <= row.hi)
            });
        }
        // Options set through good_lp would be lost here: they belong to its
        // own solve, which reports neither bound nor gap.
        let mut model = problem.try_into_inner().map_err(|e| failed(&e))?;
        model.make_quiet();
        for (key, value) in [
            ("threads", 1),
            ("random_seed", 0),
            ("mip_max_nodes", effort.nodes),
        ] {
            model.try_set_option(key, value).map_err(|e| failed(&e))?;
        }
        model
            .try_set_option("mip_rel_gap", effort.gap)
            .map_err(|e| failed(&e))?;
        model
            .try_set_option("time_limit", effort.secs)
            .map_err(|e| failed(&e))?;
        let solved = match model.try_solve() {
            Ok(solved) => solved,
            Err(status) => return Err(failed(&status)),
        };
        match solved.status() {
            HighsModelStatus::Infeasible | HighsModelStatus::UnboundedOrInfeasible => {
                Ok(Outcome::Impossible)
            }
            _ if solved.primal_solution_status() == HighsSolutionStatus::Feasible => {
                Ok(Outcome::Found(Solution {
                    values: solved.get_solution().columns().to_vec(),
                    gap: solved.mip_gap(),
                }))
            }
            HighsModelStatus::ReachedTimeLimit
            | HighsModelStatus::ReachedSolutionLimit
            | HighsModelStatus::ReachedIterationLimit
            | HighsModelStatus::ReachedInterrupt => Ok(Outcome::GaveUp),
            other => Err(failed(&other)),
        }
    }
}

/// Of its time, so much is given to HiGHS before it is left alone, and at least a few
/// seconds more.
const PATIENCE: f64 = 2.0;
const LEAST_SECS: f64 = 5.0;

fn failed(what: &dyn std::fmt::Debug) -> PlanError {
    PlanError::Solver {
        status: format!("{what:?}"),
    }
}

/// Simplex iterations at most: per row and column, and at least. Solving takes about one
/// per row; whoever needs so many goes in circles.
const ITERATIONS: usize = 20;
const LEAST_ITERATIONS: usize = 50_000;

/// HiGHS's names of its simplex methods.
const DUAL: i32 = 1;
const PRIMAL: i32 = 4;

/// The relaxation of a [`Model`] that grows: solved again from where it stood.
pub struct Relaxation {
    /// Taken out while it is solved.
    highs: Option<highs::Model>,
    columns: Vec<highs::Col>,
    bounds: Vec<(f64, f64)>,
    rows: Vec<highs::Row>,
    /// Terms of each row that are known.
    terms: Vec<usize>,
}

impl Relaxation {
    /// Of a model without columns yet.
    ///
    /// # Errors
    /// [`PlanError::Solver`] if HiGHS fails.
    pub fn new() -> Result<Relaxation, PlanError> {
        let mut highs = highs::RowProblem::default()
            .try_optimise(highs::Sense::Minimise)
            .map_err(|e| failed(&e))?;
        highs.make_quiet();
        for (key, value) in [("threads", 1), ("random_seed", 0)] {
            highs.try_set_option(key, value).map_err(|e| failed(&e))?;
        }
        Ok(Relaxation {
            highs: Some(highs),
            columns: Vec::new(),
            bounds: Vec::new(),
            rows: Vec::new(),
            terms: Vec::new(),
        })
    }

    /// Minimises the model with every binary allowed any value between 0 and 1.
    /// `None` if even that has no solution. Since the last call the model may
    /// have got columns and rows, old rows terms of new columns, and old columns
    /// other bounds.
    ///
    /// # Errors
    /// [`PlanError::Solver`] if HiGHS fails on the model.
    pub fn solve(&mut self, model: &Model) -> Result<Option<Relaxed>, PlanError> {
        if let Ok(answer) = self.go_on(model) {
            return Ok(answer);
        }
        // From where it stood the simplex method may lose itself in rounding; from
        // the beginning, with presolve, it does not.
        *self = Relaxation::new()?;
        self.go_on(model)
    }

    /// Solves from where it stands.
    fn go_on(&mut self, model: &Model) -> Result<Option<Relaxed>, PlanError> {
        let Some(mut highs) = self.highs.take() else {
            return Err(failed(&"an earlier failure"));
        };
        let old = self.columns.len();
        // Rows first, without their new columns: a row with terms costs HiGHS a
        // pass over the whole matrix, a column only its own terms.
        for row in &model.rows[self.rows.len()..] {
            let olds = row.terms.iter().filter(|(v, _)| v.0 < old);
            let terms = olds.map(|&(v, f)| (self.columns[v.0], f));
            let added = highs.try_add_row(row.lo..=row.hi, terms);
            self.rows.push(added.map_err(|e| failed(&e))?);
            self.terms.push(0);
        }
        let mut news: Vec<Vec<(highs::Row, f64)>> = vec![Vec::new(); model.columns.len() - old];
        for (at, known) in self.terms.iter_mut().enumerate() {
            let terms = &model.rows[at].terms;
            for &(v, factor) in terms[*known..].iter().filter(|(v, _)| v.0 >= old) {
                news[v.0 - old].push((self.rows[at], factor));
            }
            *known = terms.len();
        }
        let changed = (self.bounds.iter_mut().zip(&model.columns)).zip(&self.columns);
        let mut only_grows = old > 0;
        for ((bounds, c), &column) in changed.filter(|((b, c), _)| **b != (c.lo, c.hi)) {
            *bounds = (c.lo, c.hi);
            highs.change_column_bounds(column, c.lo..=c.hi);
            only_grows = false;
        }
        // After new columns the last solution is still one, after new bounds the
        // last duals are.
        let strategy = if only_grows { PRIMAL } else { DUAL };
        (highs.try_set_option("simplex_strategy", strategy)).map_err(|e| failed(&e))?;
        for (c, terms) in model.columns[old..].iter().zip(news) {
            let column = highs.try_add_column(c.cost, c.lo..=c.hi, terms);
            self.columns.push(column.map_err(|e| failed(&e))?);
            self.bounds.push((c.lo, c.hi));
        }
        let size = model.rows.len() + model.columns.len();
        let most = i32::try_from(ITERATIONS * size + LEAST_ITERATIONS).unwrap_or(i32::MAX);
        (highs.try_set_option("simplex_iteration_limit", most)).map_err(|e| failed(&e))?;
        let solved = highs.try_solve().map_err(|e| failed(&e))?;
        let answer = match solved.status() {
            HighsModelStatus::Optimal => Some(Relaxed {
                value: solved.objective_value(),
                work: solved.simplex_iteration_count().max(0) as u64 * self.rows.len() as u64,
                primal: solved.get_solution().columns().to_vec(),
                reduced: solved.get_solution().dual_columns().to_vec(),
                duals: solved.get_solution().dual_rows().to_vec(),
            }),
            HighsModelStatus::Infeasible | HighsModelStatus::UnboundedOrInfeasible => None,
            other => return Err(failed(&other)),
        };
        self.highs = Some(solved.into());
        Ok(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EFFORT: Effort = Effort {
        gap: 0.0,
        nodes: 1000,
        secs: 10.0,
    };

    #[test]
    fn a_knapsack_is_solved_and_an_impossible_row_is_no_solution() {
        let mut m = Model::default();
        let items: Vec<Var> = [-6.0, -5.0, -4.0].iter().map(|&c| m.binary(c)).collect();
        let weights = [4.0, 3.0, 2.0];
        m.at_most(items.iter().copied().zip(weights).collect(), 5.0);
        let Outcome::Found(s) = m.solve(EFFORT).expect("solves") else {
            panic!("the knapsack has a solution");
        };
        assert_eq!(
            items.iter().map(|&v| s.is_set(v)).collect::<Vec<_>>(),
            [false, true, true]
        );
        m.at_least(vec![(items[0], 1.0)], 2.0);
        assert!(matches!(m.solve(EFFORT), Ok(Outcome::Impossible)));
    }
}
