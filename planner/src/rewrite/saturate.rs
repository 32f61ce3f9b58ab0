//! Running the rules until nothing is new, within bounds.
//!
//! Bounded by nodes and iterations: a limit in time would make plans depend on
//! how busy the machine is.

use std::time::Duration;

use egg::{EGraph, Runner, SimpleScheduler};

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

/// Applies all rules.
pub fn saturate(egraph: EGraph<Expr, Facts>) -> Saturated {
    let runner: Runner<Expr, Facts> = Runner::new(Facts::default())
        .with_egraph(egraph)
        .with_scheduler(SimpleScheduler)
        .with_iter_limit(ITERATIONS)
        .with_node_limit(NODES)
        .with_time_limit(Duration::from_secs(3600))
        .run(&rewrites());
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
            .map_or_else(|| "not run".to_owned(), |r| format!("{r:?}")),
        egraph: runner.egraph,
    }
}
