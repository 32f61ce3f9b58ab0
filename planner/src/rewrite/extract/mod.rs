//! One form of every class that is needed, together the cheapest.
//!
//! The problem is plain data and knows nothing of programs: classes of
//! interchangeable nodes, each with a cost and the classes it reads; roots that are
//! needed. A choice takes one node of each needed class such that nothing reads
//! itself; a class that is read twice is paid once. Finding the cheapest choice is
//! NP-hard, but e-graphs shrink a great deal before it comes to that:
//!
//! 1. `reduce` drops what no choice can use and what no cheapest choice needs;
//! 2. `greedy` grows forms from the leaves, sharing what they share: always a
//!    choice, often the best;
//! 3. `exact` solves the rest as an integer program, whose relaxation `ground` makes
//!    whole or nearly so: sets of classes that read only one another are no choice.
//!
//! The cost of the answer is summed up anew from the choice itself, on the problem
//! as it was given, and comes with the bound that the solver has proved.

mod exact;
mod greedy;
mod ground;
mod reduce;

use crate::error::PlanError;
use crate::solve::Effort;

/// A class of interchangeable nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClassIx(pub u32);

impl ClassIx {
    /// As an index into per-class tables.
    pub fn ix(self) -> usize {
        self.0 as usize
    }
}

/// One form of a class.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    /// What it costs by itself: at least 0, in any one unit.
    pub cost: f64,
    /// Classes it reads; repetitions mean nothing.
    pub reads: Vec<ClassIx>,
}

/// What to extract from: see the [module](self).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Extraction {
    /// Forms of each class.
    pub classes: Vec<Vec<Form>>,
    /// Classes that are needed.
    pub roots: Vec<ClassIx>,
}

/// A choice and what it is worth.
#[derive(Clone, Debug, PartialEq)]
pub struct Extracted {
    /// Form taken of each class; `None` where the class is not needed.
    pub choice: Vec<Option<usize>>,
    /// Cost of all forms taken.
    pub cost: f64,
    /// No choice costs less.
    pub bound: f64,
}

/// Effort of an extraction for its own sake.
const EFFORT: Effort = Effort {
    gap: 0.0,
    nodes: 100_000,
    secs: f64::INFINITY,
};

/// The cheapest choice, or the cheapest found together with a bound. `None` if a
/// root has no form that can be built from leaves.
///
/// # Errors
/// [`PlanError::Solver`] if the solver fails.
///
/// ```
/// use sstep_planner::rewrite::extract::{ClassIx, Extraction, Form, extract};
///
/// // The root is a sum of two that share a leaf, or one dearer form.
/// let form = |cost, reads: &[u32]| Form {
///     cost,
///     reads: reads.iter().map(|&c| ClassIx(c)).collect(),
/// };
/// let problem = Extraction {
///     classes: vec![
///         vec![form(9.0, &[]), form(1.0, &[1, 2])],
///         vec![form(1.0, &[3])],
///         vec![form(1.0, &[3])],
///         vec![form(5.0, &[])],
///     ],
///     roots: vec![ClassIx(0)],
/// };
/// let found = extract(&problem)?.expect("the root has a form");
/// assert_eq!((found.choice[0], found.cost), (Some(1), 8.0));
/// # Ok::<(), sstep_planner::PlanError>(())
/// ```
pub fn extract(problem: &Extraction) -> Result<Option<Extracted>, PlanError> {
    extract_with(problem, EFFORT)
}

/// As [`extract`], with a given effort for each integer program.
pub(crate) fn extract_with(
    problem: &Extraction,
    effort: Effort,
) -> Result<Option<Extracted>, PlanError> {
    let reduced = reduce::reduce(problem);
    let Some(mut choice) = greedy::greedy(&reduced) else {
        return Ok(None);
    };
    let upper = reduced.cost(&choice);
    let answer = exact::exact(&reduced, upper, effort)?;
    if let Some(better) = answer.choice.filter(|c| reduced.cost(c) < upper) {
        choice = better;
    }
    let choice = reduced.name(problem, &choice);
    let cost = cost(problem, &choice);
    let bound = answer.bound.min(cost);
    Ok(Some(Extracted {
        choice,
        cost,
        bound,
    }))
}

/// Cost of a choice: of each form that the roots need, once.
///
/// # Panics
/// If a needed class has no form chosen, or reads itself: that is a bug here.
fn cost(problem: &Extraction, choice: &[Option<usize>]) -> f64 {
    let forms = forms_needed(problem, choice).expect("a choice covers what is needed, acyclically");
    forms.iter().map(|f| f.cost).sum()
}

/// The forms that the roots need under a choice, readers after what they read.
/// `None` if a needed class has no form or reads itself.
fn forms_needed<'a>(problem: &'a Extraction, choice: &[Option<usize>]) -> Option<Vec<&'a Form>> {
    #[derive(Clone, Copy, PartialEq)]
    enum Seen {
        Not,
        Open,
        Done,
    }
    let mut seen = vec![Seen::Not; problem.classes.len()];
    let mut forms = Vec::new();
    let mut stack: Vec<(ClassIx, usize)> = Vec::new();
    for &root in &problem.roots {
        if seen[root.ix()] == Seen::Not {
            seen[root.ix()] = Seen::Open;
            stack.push((root, 0));
        }
        while let Some((class, next)) = stack.pop() {
            let form = &problem.classes[class.ix()][choice[class.ix()]?];
            let Some(&read) = form.reads.get(next) else {
                seen[class.ix()] = Seen::Done;
                forms.push(form);
                continue;
            };
            stack.push((class, next + 1));
            match seen[read.ix()] {
                Seen::Done => {}
                Seen::Open => return None,
                Seen::Not => {
                    seen[read.ix()] = Seen::Open;
                    stack.push((read, 0));
                }
            }
        }
    }
    Some(forms)
}
