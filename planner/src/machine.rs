//! What the machine can do, as data.
//!
//! The planner compares plans by predicted seconds; every rate it uses is here,
//! so the same tape, machine and budget give the same plan.

use serde::{Deserialize, Serialize};
use sstep_autodiff::{ConvAlgo, ConvAttrs, Op};

/// Rates of a machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Shown by `explain`.
    pub name: String,
    /// Arithmetic of convolutions and dense layers, in FLOP/s.
    pub conv_flops_per_sec: f64,
    /// Arithmetic of convolutions by Winograd's algorithm, in FLOP/s of the direct
    /// sums that they replace.
    pub winograd_flops_per_sec: f64,
    /// Fewest input and output channels for which Winograd's algorithm is faster
    /// than a direct sum; `None`: never use it.
    pub winograd_channels: Option<usize>,
    /// Arithmetic of everything else, in FLOP/s.
    pub point_flops_per_sec: f64,
    /// Device memory traffic of kernels, in bytes/s.
    pub device_bytes_per_sec: f64,
    /// Host to device copies, in bytes/s.
    pub h2d_bytes_per_sec: f64,
    /// Device to host copies, in bytes/s.
    pub d2h_bytes_per_sec: f64,
    /// Reading and decoding image sources, in bytes/s of decoded elements.
    pub source_bytes_per_sec: f64,
    /// Cost of one kernel launch, in seconds.
    pub launch_secs: f64,
    /// Scratch that kernels work best with, in bytes; part of the cap.
    pub workspace_bytes: u64,
}

impl Machine {
    /// Two cores with AVX2: serves until a machine is measured.
    pub fn cpu_default() -> Self {
        Machine {
            name: "cpu (built-in profile)".to_owned(),
            conv_flops_per_sec: 80e9,
            winograd_flops_per_sec: 160e9,
            winograd_channels: Some(32),
            point_flops_per_sec: 8e9,
            device_bytes_per_sec: 16e9,
            h2d_bytes_per_sec: 8e9,
            d2h_bytes_per_sec: 6e9,
            source_bytes_per_sec: 1.2e9,
            launch_secs: 6e-6,
            workspace_bytes: 8 << 20,
        }
    }

    /// The same machine with every convolution summed tap by tap, as the untiled
    /// reference does.
    pub fn without_winograd(mut self) -> Self {
        self.winograd_channels = None;
        self
    }

    /// Seconds of a kernel that does `flops` and touches `bytes`.
    pub fn kernel_secs(&self, op: &Op, flops: f64, bytes: f64) -> f64 {
        let rate = match op {
            Op::Conv(a) | Op::ConvWeightGrad(a) => self.conv_rate(a),
            Op::ConvTranspose(a) => self.conv_rate(&a.conv),
            Op::Linear => self.conv_flops_per_sec,
            _ => self.point_flops_per_sec,
        };
        (flops / rate).max(bytes / self.device_bytes_per_sec)
    }

    fn conv_rate(&self, attrs: &ConvAttrs) -> f64 {
        match attrs.algo {
            ConvAlgo::Direct => self.conv_flops_per_sec,
            ConvAlgo::Winograd => self.winograd_flops_per_sec,
        }
    }
}

impl Default for Machine {
    fn default() -> Self {
        Machine::cpu_default()
    }
}
