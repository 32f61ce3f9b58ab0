//! Linear relaxations that grow, solved from where they stand.

use std::time::Instant;

use highs::HighsModelStatus;

use crate::error::PlanError;

use super::{Model, Row, Var, failed};

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
    /// Value of a column; 0 if it came later.
    pub fn value_of(&self, v: Var) -> f64 {
        self.primal.get(v.0).copied().unwrap_or(0.0)
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

/// Seconds that one solve may take at most: at least, and per row and column. About a
/// hundred times what it takes: now and then the dual simplex method proves the same
/// infeasibility again and again, and counts no iteration for it.
const LEAST_SECS: f64 = 2.0;
const SECS: f64 = 4e-4;

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
    /// What solving has taken so far.
    secs: f64,
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
            secs: 0.0,
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
        let has_rows = model.rows.len() > self.rows.len();
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
        let mut only_grows = old > 0 && !has_rows;
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
        // HiGHS counts the seconds of all solves together.
        let most = self.secs + LEAST_SECS + SECS * size as f64;
        (highs.try_set_option("time_limit", most)).map_err(|e| failed(&e))?;
        let begin = Instant::now();
        let solved = highs.try_solve().map_err(|e| failed(&e))?;
        self.secs += begin.elapsed().as_secs_f64();
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
