//! Equal programs that move less, by equality saturation.
//!
//! The whole step, forward and backward, becomes an e-graph with many roots
//! (`lang`); named rules add equal forms ([`RULES`]); saturation is bounded by
//! nodes and iterations, never by time, so that it is a function of the program
//! (`saturate`); then each class takes the form that makes the whole cheapest in
//! seconds and in bytes that the backward half needs of the forward half (`choose`),
//! which is a matter of numbers alone ([`mod@extract`]).
//!
//! Hash-consing alone already merges what is computed twice. Roots are tagged,
//! so two outputs that happen to be equal stay two outputs.

mod choose;
pub mod extract;
mod lang;
mod rules;
mod saturate;

use crate::error::PlanError;
use crate::machine::Machine;
use crate::program::Program;

pub use rules::RULES;

/// What rewriting did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RewriteReport {
    /// Nodes before and after.
    pub nodes: (usize, usize),
    /// Rules that found something, with how often.
    pub applied: Vec<(String, usize)>,
    /// Why saturation stopped.
    pub stop: String,
}

impl std::fmt::Display for RewriteReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (before, after) = self.nodes;
        write!(f, "{before} nodes became {after}")?;
        for (at, (rule, times)) in self.applied.iter().enumerate() {
            let lead = if at == 0 { " by" } else { "," };
            write!(f, "{lead} {rule} ({times})")?;
        }
        write!(f, "; rules stopped: {}", self.stop)
    }
}

/// An equal program, the best at some price of memory.
#[derive(Clone, Debug)]
pub struct Variant {
    /// The program.
    pub program: Program,
    /// What was done to get it.
    pub report: RewriteReport,
    /// The first price that it is the best at, in seconds per byte that the backward
    /// half needs of the forward half.
    pub secs_per_kept_byte: f64,
}

/// The price of bringing a kept byte back from the host.
fn host_price(machine: &Machine) -> f64 {
    1.0 / machine.h2d_bytes_per_sec
}

/// Prices at which programs are worth comparing: what a byte costs to bring back
/// from the host, then around it by factors of eight, and memory for nothing.
pub fn prices(machine: &Machine) -> Vec<f64> {
    let host = host_price(machine);
    vec![host, host / 8.0, host * 8.0, 0.0]
}

/// Rewrites a program, at the price of bringing kept bytes back from the host.
///
/// # Errors
/// [`PlanError::Solver`] if extraction fails.
pub fn rewrite(
    program: &Program,
    machine: &Machine,
) -> Result<(Program, RewriteReport), PlanError> {
    let first = variants(program, machine, &[host_price(machine)])?
        .into_iter()
        .next();
    Ok(first.map_or_else(
        || (program.clone(), RewriteReport::default()),
        |v| (v.program, v.report),
    ))
}

/// The cheapest equal programs at several prices of memory, each in seconds per byte
/// that the backward half needs of the forward half. Distinct programs only, in the
/// order of the prices; a function of its arguments alone.
///
/// # Errors
/// [`PlanError::Solver`] if extraction fails.
///
/// ```
/// use sstep_autodiff::Tape;
/// use sstep_planner::{Machine, Program, StepSpec, rewrite};
///
/// // One relu is enough at any price.
/// let tape = Tape::parse("tape v1 f32\nx = input [1, 2, 8, 8]\na = relu(x)\nb = relu(a)\n\
///                          c = add(b, x)")?;
/// let outputs = vec![tape.by_name("c").expect("it is there")];
/// let program = Program::new(&tape, &StepSpec { outputs, ..StepSpec::default() })?;
/// let machine = Machine::cpu_default();
/// let found = rewrite::variants(&program, &machine, &rewrite::prices(&machine))?;
/// assert_eq!(found.len(), 1);
/// assert_eq!(found[0].program.nodes.len(), 3);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn variants(
    program: &Program,
    machine: &Machine,
    secs_per_kept_byte: &[f64],
) -> Result<Vec<Variant>, PlanError> {
    let mut graph = lang::to_egraph(program);
    let saturated = saturate::saturate(std::mem::take(&mut graph.egraph), None);
    graph.egraph = saturated.egraph;
    let mut found: Vec<Variant> = Vec::new();
    for &price in secs_per_kept_byte {
        let rewritten = choose::choose(program, &graph, machine, price)?;
        if found.iter().any(|v| is_same(&v.program, &rewritten)) {
            continue;
        }
        found.push(Variant {
            report: RewriteReport {
                nodes: (program.nodes.len(), rewritten.nodes.len()),
                applied: saturated.applied.clone(),
                stop: saturated.stop.clone(),
            },
            program: rewritten,
            secs_per_kept_byte: price,
        });
    }
    Ok(found)
}

/// A program with one rule applied wherever it applies, whether that pays or not; how
/// rules are tested. `None` if it applies nowhere, or there is no such rule.
///
/// # Errors
/// [`PlanError::Solver`] if extraction fails.
pub fn apply(program: &Program, rule: &str) -> Result<Option<Program>, PlanError> {
    if !RULES.iter().any(|(name, _)| *name == rule) {
        return Ok(None);
    }
    let mut graph = lang::to_egraph(program);
    let before: Vec<lang::Expr> = (graph.egraph.classes())
        .flat_map(|c| c.nodes.iter().cloned())
        .collect();
    let saturated = saturate::saturate(std::mem::take(&mut graph.egraph), Some(rule));
    graph.egraph = saturated.egraph;
    let rewritten = choose::choose_new(program, &graph, before)?;
    Ok((!is_same(program, &rewritten)).then_some(rewritten))
}

/// Whether two programs compute the same in the same way; names do not matter.
fn is_same(a: &Program, b: &Program) -> bool {
    let plain = |p: &Program| -> Vec<_> {
        let nodes = p.nodes.iter();
        nodes.map(|n| (n.op, n.inputs.clone())).collect()
    };
    plain(a) == plain(b) && a.outputs == b.outputs && a.updates == b.updates
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::StepSpec;
    use sstep_autodiff::{ConvSpec, DType, Op, Saved, Tape, backward};

    fn net() -> (Tape, StepSpec) {
        let mut t = Tape::new(DType::F32);
        let x = t.input("x", &[1, 2, 8, 8]).expect("input");
        let w = t.param("w", &[3, 2, 3, 3]).expect("param");
        let v = t.param("v", &[2, 3, 3, 3]).expect("param");
        let h = t.conv(x, w, None, ConvSpec::padded(1)).expect("conv");
        let h = t.relu(h).expect("relu");
        let h = t.relu(h).expect("relu");
        let h = t.conv(h, v, None, ConvSpec::padded(1)).expect("conv");
        let target = t.input("t", &[1, 2, 8, 8]).expect("input");
        let loss = t.mse(h, target).expect("loss");
        let grads = backward(&mut t, loss).expect("gradients");
        let mut outputs = vec![loss];
        outputs.extend(grads.iter().map(|(_, g)| g));
        (
            t,
            StepSpec {
                outputs,
                ..StepSpec::default()
            },
        )
    }

    #[test]
    fn masks_come_from_what_is_needed_anyway_and_double_relus_go() {
        let (tape, spec) = net();
        let program = Program::new(&tape, &spec).expect("program");
        let (after, report) = rewrite(&program, &Machine::cpu_default()).expect("rewrites");
        let count =
            |p: &Program, f: &dyn Fn(&Op) -> bool| p.nodes.iter().filter(|n| f(&n.op)).count();
        assert_eq!(count(&program, &|o| matches!(o, Op::Unary(_))), 2);
        assert_eq!(count(&after, &|o| matches!(o, Op::Unary(_))), 1);
        // Both masks are the same, so one is enough.
        let is_mask = |o: &Op| matches!(o, Op::UnaryGrad { .. });
        assert_eq!(count(&program, &is_mask), 2);
        assert_eq!(count(&after, &is_mask), 1, "{report:?}");
        let said = report.to_string();
        assert!(said.starts_with("16 nodes became 14 by "), "{said}");
        assert!(
            said.ends_with("rules stopped: nothing new was found"),
            "{said}"
        );
        // None reads what only it needs: an argument that is a relu itself is kept
        // for the next weight gradient anyway.
        for n in &after.nodes {
            if let Op::UnaryGrad {
                saved: Saved::Input,
                ..
            } = n.op
            {
                let argument = after.node(n.inputs[0]);
                assert!(matches!(argument.op, Op::Unary(_)), "{report:?}");
            }
        }
        assert_eq!(after.outputs.len(), program.outputs.len());
        for (a, b) in after.outputs.iter().zip(&program.outputs) {
            assert_eq!(after.node(*a).name, program.node(*b).name);
        }
    }
}
