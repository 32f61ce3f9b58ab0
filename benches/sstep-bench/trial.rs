//! Carrying a plan out on this machine, where it fits.
//!
//! What a plan holds at once is known before it runs: arena and host tensors; images
//! are computed where they are read. A plan that needs more than the machine has free, or
//! longer than anybody waits, is left out instead of tried.

use sstep::nn::{Init, init_values};
use sstep::{Executor, Measured, Plan, StepHow, optim};

use crate::cases::Case;

/// Part of the free memory that a step may fill: the rest is the program's own.
const FREE_PART: f64 = 0.8;

/// Whether `plan` fits the machine's free memory and is predicted to take at most
/// `most_secs`. Never on a machine that does not tell its free memory.
pub fn fits(plan: &Plan, most_secs: f64) -> bool {
    let p = &plan.predicted;
    let needed = plan.budget.device_bytes + p.host_peak_bytes;
    let fits = free_bytes().is_some_and(|free| needed as f64 <= FREE_PART * free as f64);
    fits && p.secs <= most_secs
}

/// Carries `plan` out twice on the CPU, and tells of the second step: the first also
/// touches the memory for the first time.
///
/// # Errors
/// If the executor fails, or a step touches more memory than the plan promises.
pub fn measure(case: &Case, plan: &Plan) -> Result<Measured, Box<dyn std::error::Error>> {
    let mut executor = Executor::<f32>::new(plan.clone())?;
    for (name, shape) in executor.params() {
        let init = case.inits.get(&name).copied().unwrap_or(Init::Zeros);
        executor.set_param(&name, &init_values(init, &name, shape, 0))?;
    }
    let feeds = case.feeds()?;
    let mut measured = Measured::default();
    for step in 0..2 {
        let how = StepHow {
            step,
            seed: 0,
            update: Some((optim::adamw(), 0.0)),
            scaled: None,
        };
        measured = executor.step(&feeds, &how, &mut |_| {})?.measured;
    }
    let (promised, touched) = (plan.predicted.peak_bytes, measured.peak_bytes);
    if touched > promised {
        let strategy = plan.strategy;
        return Err(format!("{strategy} touched {touched} bytes of {promised} promised").into());
    }
    Ok(measured)
}

/// Bytes that can be had without swapping.
fn free_bytes() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("MemAvailable:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
