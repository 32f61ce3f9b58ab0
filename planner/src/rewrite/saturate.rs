//! Running the rules until nothing is new, within bounds.
//!
//! Bounded by nodes and iterations: a limit in time would make plans depend on
//! how busy the machine is.

use std::time::Duration;

use egg::{EGraph, Runner, SimpleScheduler, StopReason};

use super::lang::{Expr, Facts};
use super::rules::rewrites;

/// Most iterations.
const ITERATIONS: usize = 12;
/// Most e-nodes.
const NODES: usize = 50_000;

/// A saturated e-graph.
pub struct Saturated {
    /// The e-graph.
    pub egraph: EGraph<Expr, Facts>,
    /// Rules that changed something, with how often.
    pub applied: Vec<(String, usize)>,
    /// Why it stopped.
    pub stop: String,
}

/// Applies all rules, or only that of the given name.
pub fn saturate(egraph: EGraph<Expr, Facts>, only: Option<&str>) -> Saturated {
    let runner: Runner<Expr, Facts> = Runner::new(Facts::default())
        .with_egraph(egraph)
        .with_scheduler(SimpleScheduler)
        .with_iter_limit(ITERATIONS)
        .with_node_limit(NODES)
        .with_time_limit(Duration::MAX)
        .run(&rewrites(only));
    let mut applied: std::collections::BTreeMap<String, usize> = Default::default();
    for iteration in &runner.iterations {
        for (rule, n) in &iteration.applied {
            *applied.entry(rule.to_string()).or_default() += n;
        }
    }
    Saturated {
        applied: applied.into_iter().collect(),
        stop: runner
            .stop_reason
            .map_or_else(|| "it was not run".to_owned(), |reason| in_words(&reason)),
        egraph: runner.egraph,
    }
}

/// Why saturation stopped.
fn in_words(reason: &StopReason) -> String {
    match reason {
        StopReason::Saturated => "nothing new was found".to_owned(),
        StopReason::IterationLimit(n) => format!("the limit of {n} iterations"),
        StopReason::NodeLimit(n) => format!("the limit of {n} forms"),
        StopReason::TimeLimit(secs) => format!("{secs} s, which are not limited"),
        StopReason::Other(other) => other.clone(),
    }
}
