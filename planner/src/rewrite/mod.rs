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

/// Rewrites a program, at the price of bringing kept bytes back from the host.
///
/// # Errors
/// [`PlanError::Solver`] if extraction fails.
pub fn rewrite(
    program: &Program,
    machine: &Machine,
) -> Result<(Program, RewriteReport), PlanError> {
    let price = 1.0 / machine.h2d_bytes_per_sec;
    let first = rewrite_at(program, machine, &[price])?.into_iter().next();
    Ok(first.unwrap_or_else(|| (program.clone(), RewriteReport::default())))
}

/// Rewrites a program at several prices of memory, each in seconds per byte that
/// the backward half needs of the forward half. The distinct results, in the order
/// of the prices.
///
/// # Errors
/// [`PlanError::Solver`] if extraction fails.
pub fn rewrite_at(
    program: &Program,
    machine: &Machine,
    secs_per_kept_byte: &[f64],
) -> Result<Vec<(Program, RewriteReport)>, PlanError> {
    let mut graph = lang::to_egraph(program);
    let saturated = saturate::saturate(std::mem::take(&mut graph.egraph));
    graph.egraph = saturated.egraph;
    let mut found: Vec<(Program, RewriteReport)> = Vec::new();
    for &price in secs_per_kept_byte {
        let rewritten = choose::choose(program, &graph, machine, price)?;
        if found.iter().any(|(other, _)| is_same(other, &rewritten)) {
            continue;
        }
        let report = RewriteReport {
            nodes: (program.nodes.len(), rewritten.nodes.len()),
            applied: saturated.applied.clone(),
            stop: saturated.stop.clone(),
        };
        found.push((rewritten, report));
    }
    Ok(found)
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
        let from_output = |o: &Op| {
            matches!(
                o,
                Op::UnaryGrad {
                    saved: Saved::Output,
                    ..
                }
            )
        };
        assert!(count(&after, &from_output) >= 1, "{report:?}");
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
