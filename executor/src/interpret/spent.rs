//! What a step is told, and what it tells.

use sstep_kernels::UpdateRule;

/// What a step really took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Measured {
    /// Highest arena byte touched.
    pub peak_bytes: u64,
    /// Most host bytes held.
    pub host_peak_bytes: u64,
    /// Highest byte of the spill file touched.
    pub disk_peak_bytes: u64,
    /// Bytes copied from host to device.
    pub h2d_bytes: u64,
    /// Bytes copied from device to host.
    pub d2h_bytes: u64,
    /// Bytes read from the spill file to the device.
    pub disk_read_bytes: u64,
    /// Bytes written from the device to the spill file.
    pub disk_write_bytes: u64,
    /// Bytes that came from sources: of one that has bytes these, where the device makes
    /// elements of them, which a plan does not know of.
    pub source_bytes: u64,
    /// Whether parameters were left as they were, for a gradient was not finite; see
    /// [`Scaled`].
    pub update_skipped: bool,
    /// Device memory in use beside the arena after the step: the context, kernels and
    /// libraries; other programs' memory too. 0 on the CPU.
    pub beside_arena_bytes: u64,
    /// Kernel launches.
    pub launches: u64,
    /// Seconds of the step.
    pub secs: f64,
}

/// What some instructions took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spent {
    /// How often they ran.
    pub calls: u64,
    /// Positions they computed, of all channels each; bytes of a copy.
    pub amount: u64,
    /// Seconds in all.
    pub secs: f64,
}

impl Spent {
    pub(super) fn add(&mut self, amount: u64, secs: f64) {
        self.calls += 1;
        self.amount += amount;
        self.secs += secs;
    }
}

/// Where a step's time went.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Timings {
    /// Kernels by the node that they compute, in the program's order.
    pub nodes: Vec<Spent>,
    /// Regions read from sources.
    pub source: Spent,
    /// Regions copied from the host.
    pub upload: Spent,
    /// Regions copied to the host.
    pub download: Spent,
    /// Regions read from the spill file.
    pub disk_read: Spent,
    /// Regions written to the spill file.
    pub disk_write: Spent,
    /// Regions copied from windows to whole maps.
    pub store: Spent,
    /// Regions copied to windows from where they waited on their way from the host.
    pub staging: Spent,
    /// Rows that windows kept.
    pub slide: Spent,
    /// Parameter updates; the amount is in elements.
    pub update: Spent,
}

/// How far a step is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Progress {
    /// Predicted seconds of what is done.
    pub done_secs: f64,
    /// Predicted seconds of the step.
    pub total_secs: f64,
    /// Stage being run.
    pub stage: usize,
    /// Number of stages.
    pub n_stages: usize,
}

/// How to run a step.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct StepHow {
    /// Number of the step, from 0.
    pub step: u64,
    /// Seed of counter-based randomness.
    pub seed: u64,
    /// Update rule and learning rate, if the plan updates parameters.
    pub update: Option<(UpdateRule, f64)>,
    /// Set if the loss was multiplied by a number that may prove too large.
    pub scaled: Option<Scaled>,
}

/// A step whose gradients are those of a multiple of the loss. If one of them is not
/// finite, no parameter is updated.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Scaled {
    /// What the loss was multiplied by.
    pub by: f64,
    /// Steps so far whose updates were left out: an optimiser counts its updates.
    pub n_skipped: u64,
}
