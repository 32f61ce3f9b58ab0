//! Equal programs that move less, by equality saturation.
//!
//! The whole step, forward and backward, becomes an e-graph with many roots
//! (`lang`); named rules add equal forms ([`RULES`]); saturation is bounded by
//! nodes and iterations, never by time, so that it is a function of the program
//! (`saturate`); extraction takes the form that is cheapest in seconds and in
//! bytes that the backward half needs of the forward half (`extract`).
//!
//! Hash-consing alone already merges what is computed twice. Roots are tagged,
//! so two outputs that happen to be equal stay two outputs.

mod extract;
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

/// Rewrites a program.
///
/// # Errors
/// [`PlanError::Solver`] if extraction fails.
pub fn rewrite(
    program: &Program,
    machine: &Machine,
) -> Result<(Program, RewriteReport), PlanError> {
    let mut graph = lang::to_egraph(program);
    let saturated = saturate::saturate(std::mem::take(&mut graph.egraph));
    graph.egraph = saturated.egraph;
    let rewritten = extract::extract(program, &graph, machine)?;
    let report = RewriteReport {
        nodes: (program.nodes.len(), rewritten.nodes.len()),
        applied: saturated.applied,
        stop: saturated.stop,
    };
    Ok((rewritten, report))
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
        let from_input = |o: &Op| {
            matches!(
                o,
                Op::UnaryGrad {
                    saved: Saved::Input,
                    ..
                }
            )
        };
        assert_eq!(count(&after, &from_input), 0, "{report:?}");
        assert_eq!(after.outputs.len(), program.outputs.len());
        for (a, b) in after.outputs.iter().zip(&program.outputs) {
            assert_eq!(after.node(*a).name, program.node(*b).name);
        }
    }
}
