//! Whether bounds hold: what the integer program proves when it is told of no placement
//! must be below every placement that is found.

use sstep_autodiff::{ConvSpec, DType, Tape, backward};

use super::*;
use crate::master::{Best, Effort, Solver};
use crate::program::StepSpec;
use crate::schedule::untiled_bytes;

/// A chain of convolutions with a sum now and then, so that maps live long and short.
fn program(depth: usize, size: usize) -> Program {
    let mut t = Tape::new(DType::F32);
    let mut h = t.input("x", &[1, 4, size, size]).expect("input");
    let mut skip = h;
    for layer in 0..depth {
        let w = t.param(&format!("w{layer}"), &[4, 4, 3, 3]).expect("param");
        h = t.conv(h, w, None, ConvSpec::padded(1)).expect("conv");
        h = t.relu(h).expect("relu");
        if layer % 3 == 2 {
            h = t.add(h, skip).expect("add");
            skip = h;
        }
    }
    let target = t.input("t", &[1, 4, size, size]).expect("input");
    let loss = t.mse(h, target).expect("loss");
    let gradients = backward(&mut t, loss).expect("differentiable");
    let outputs = std::iter::once(loss).chain(gradients.iter().map(|(_, g)| g));
    let outputs = outputs.collect();
    let spec = StepSpec {
        outputs,
        ..StepSpec::default()
    };
    Program::new(&t, &spec).expect("a program")
}

#[test]
fn no_bound_is_above_a_placement_that_is_found() {
    let machine = Machine::cpu_default();
    let (mut n_bounds, mut n_cuts) = (0, 0);
    for (depth, size) in [(4, 64), (7, 96)] {
        let program = program(depth, size);
        let whole = untiled_bytes(&program);
        for part in [2, 3, 5, 9] {
            for host in [0, whole / 8, whole] {
                let memo = Memo::default();
                let budget = Budget {
                    device_bytes: whole / part,
                    host_bytes: host,
                    disk_bytes: 0,
                };
                let planner = Planner::new(&program, &machine, &memo, budget);
                let Some(Start { pool, found }) = planner.start() else {
                    continue;
                };
                let cap = budget.device_bytes;
                let problem = planner.problem(LARGE, &pool, planner.workspace_bytes(cap));
                let space = Space::new(&problem);
                if found.is_least {
                    continue;
                }
                let mut prover = Prover::new(&problem, &space, &found, cap);
                let proof = prover.prove(&space, &found, cap, Some(f64::INFINITY));
                let best = proof.better.as_ref().unwrap_or(&found).clone();
                let first = space.starters(&found, cap);
                let mut solver = Solver::new(&problem, cap, first).expect("HiGHS");
                let effort = Effort {
                    gap: 0.0,
                    work: 100_000_000,
                };
                let path = best.path.clone();
                let nothing = |_: &Prices, _: &[usize]| Best {
                    secs: f64::INFINITY,
                    path: path.clone(),
                };
                let known = solver.bound(effort, f64::INFINITY, nothing).expect("HiGHS");
                let (bound, secs) = (known.bound_secs, best.score.fitting_secs());
                assert!(
                    bound <= secs * (1.0 + 1e-6),
                    "{depth} layers of {size}, 1/{part}, host {host}: {bound} s is above {secs} s"
                );
                n_bounds += usize::from(secs.is_finite());
                n_cuts += solver.n_cuts();
            }
        }
    }
    assert!(
        n_bounds >= 5 && n_cuts > 0,
        "{n_bounds} bounds, {n_cuts} cuts"
    );
}
