//! The only place that touches the solver.
//!
//! Models are stated through good_lp and solved by HiGHS. One thread, a fixed
//! seed and limits in nodes keep the answer a function of the model; binaries
//! are read at one half and never trusted beyond that: whoever asks checks what
//! the decoded solution really costs.

mod relaxation;

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use good_lp::{Expression, ProblemVariables, SolverModel, Variable, constraint, variable};
use highs::{HighsModelStatus, HighsSolutionStatus};

use crate::error::PlanError;

pub use relaxation::{Relaxation, Relaxed};

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

    /// Lets a column be 0 or 1 only.
    pub fn make_binary(&mut self, v: Var) {
        let column = &mut self.columns[v.0];
        (column.binary, column.hi) = (true, column.hi.min(1.0));
    }

    /// The most that a row may be.
    pub fn most(&self, r: Row) -> f64 {
        self.rows[r.0].hi
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
