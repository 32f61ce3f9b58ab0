//! The judge: accepts a plan only if carrying it out computes the program.
//!
//! It shares no code with the passes that made the plan. It walks the
//! instructions one by one with its own picture of what every byte range holds,
//! and knows of an op only what the tape says it reads. A plan is accepted if
//!
//! - every buffer is aligned, lies within the cap and is large enough for what
//!   it holds;
//! - every region an instruction reads is there: written before, and not
//!   overwritten since by any buffer that shares bytes with it; what is fetched by
//!   way of a staging buffer is the very region that was last put there;
//! - what an instruction writes, its scratch included, shares no byte with
//!   anything else it touches; kernels of narrow tensors have scratch to decode them;
//! - every element of a stored map is written exactly once before it is read
//!   elsewhere; every element of a reduction's domain is added exactly once
//!   before its result is read;
//! - host tensors stay within the host cap and are not read after release; tensors
//!   on disk lie within the disk cap, and what shares bytes with one is lost when it
//!   is written;
//! - in the end every output is complete, every parameter was updated once, after
//!   its last use, and leaves and optimiser state are there for the next step.

mod boxes;
mod judge;
mod layout;

use std::ops::ControlFlow;

use crate::instr::Instr;
use crate::plan::Plan;
use judge::Judge;

/// Why a plan was rejected.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("instruction {index} ({instr}): {reason}")]
pub struct Violation {
    /// Number of the instruction, from 0.
    pub index: u64,
    /// The instruction.
    pub instr: String,
    /// What is wrong with it.
    pub reason: String,
}

/// Accepts or rejects a plan.
///
/// # Errors
/// The first [`Violation`].
pub fn verify(plan: &Plan) -> Result<(), Violation> {
    verify_sequence(plan, |visit| plan.instructions(visit))
}

/// Accepts or rejects a sequence of instructions, whoever spells it out, as a way to
/// carry out a plan. `spell` hands each to its argument, until that breaks.
///
/// # Errors
/// The first [`Violation`].
pub fn verify_sequence(
    plan: &Plan,
    spell: impl FnOnce(&mut dyn FnMut(Instr) -> ControlFlow<Violation>) -> ControlFlow<Violation>,
) -> Result<(), Violation> {
    let mut judge = Judge::new(plan).map_err(|reason| Violation {
        index: 0,
        instr: "layout".to_owned(),
        reason,
    })?;
    let mut index = 0;
    let flow = spell(&mut |instr| {
        let verdict = judge.step(&instr).map_err(|reason| Violation {
            index,
            instr: judge.describe(&instr),
            reason,
        });
        index += 1;
        match verdict {
            Ok(()) => ControlFlow::Continue(()),
            Err(violation) => ControlFlow::Break(violation),
        }
    });
    if let ControlFlow::Break(violation) = flow {
        return Err(violation);
    }
    judge.end().map_err(|reason| Violation {
        index,
        instr: "end".to_owned(),
        reason,
    })
}
