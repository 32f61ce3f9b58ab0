//! What was predicted beside what was measured.
//!
//! A plan promises peak, traffic and seconds; the executor measures them. Both
//! always appear together, so that a wrong prediction is seen at once.

use serde::Serialize;
use sstep_executor::Measured;
use sstep_planner::{ByteSize, Plan};

/// A plan's promises and what became of them, as `--json` prints it. Bytes and
/// seconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Device cap.
    pub device_cap_bytes: u64,
    /// Host cap.
    pub host_cap_bytes: u64,
    /// Disk cap.
    pub disk_cap_bytes: u64,
    /// What the step would take untiled.
    pub untiled_bytes: u64,
    /// Arena bytes.
    pub peak_bytes: Pair<u64>,
    /// Device memory in use beside the arena after the step: the context, kernels and
    /// libraries, and what other programs hold. 0 on the CPU.
    pub beside_arena_bytes: u64,
    /// Host bytes.
    pub host_peak_bytes: Pair<u64>,
    /// Bytes of the spill file.
    pub disk_peak_bytes: Pair<u64>,
    /// Copied from host to device.
    pub h2d_bytes: Pair<u64>,
    /// Copied from device to host.
    pub d2h_bytes: Pair<u64>,
    /// Read from the spill file.
    pub disk_read_bytes: Pair<u64>,
    /// Written to the spill file.
    pub disk_write_bytes: Pair<u64>,
    /// Read from images.
    pub source_bytes: Pair<u64>,
    /// Time of a step.
    pub secs: Pair<f64>,
    /// Peak of the whole process's resident memory, where the system tells.
    pub process_peak_rss_bytes: Option<u64>,
}

/// Predicted and measured.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Pair<V> {
    /// By the plan.
    pub predicted: V,
    /// By the executor.
    pub measured: V,
}

impl Report {
    /// The report of a step.
    pub fn new(plan: &Plan, measured: &Measured) -> Self {
        let p = &plan.predicted;
        let pair = |predicted, measured| Pair {
            predicted,
            measured,
        };
        Report {
            device_cap_bytes: plan.budget.device_bytes,
            host_cap_bytes: plan.budget.host_bytes,
            disk_cap_bytes: plan.budget.disk_bytes,
            untiled_bytes: p.untiled_bytes,
            peak_bytes: pair(p.peak_bytes, measured.peak_bytes),
            beside_arena_bytes: measured.beside_arena_bytes,
            host_peak_bytes: pair(p.host_peak_bytes, measured.host_peak_bytes),
            disk_peak_bytes: pair(p.disk_peak_bytes, measured.disk_peak_bytes),
            h2d_bytes: pair(p.h2d_bytes, measured.h2d_bytes),
            d2h_bytes: pair(p.d2h_bytes, measured.d2h_bytes),
            disk_read_bytes: pair(p.disk_read_bytes, measured.disk_read_bytes),
            disk_write_bytes: pair(p.disk_write_bytes, measured.disk_write_bytes),
            source_bytes: pair(p.source_bytes, measured.source_bytes),
            secs: Pair {
                predicted: p.secs,
                measured: measured.secs,
            },
            process_peak_rss_bytes: peak_rss_bytes(),
        }
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let size = |bytes: u64| ByteSize(bytes).to_string();
        let line = |f: &mut std::fmt::Formatter<'_>, what: &str, pair: Pair<u64>, note: String| {
            let (p, m) = (size(pair.predicted), size(pair.measured));
            writeln!(
                f,
                "{}",
                format!("{what:<13}{p:>11}{m:>12}   {note}").trim_end()
            )
        };
        line(
            f,
            "device peak",
            self.peak_bytes,
            format!("cap {}", size(self.device_cap_bytes)),
        )?;
        if self.beside_arena_bytes > 0 {
            writeln!(
                f,
                "{:<13}{:>11}{:>12}   context, kernels, libraries; other programs",
                "beside it",
                "",
                size(self.beside_arena_bytes)
            )?;
        }
        line(
            f,
            "host peak",
            self.host_peak_bytes,
            format!("cap {}", size(self.host_cap_bytes)),
        )?;
        let has_disk = self.disk_cap_bytes > 0;
        if has_disk {
            let cap = format!("cap {}", size(self.disk_cap_bytes));
            line(f, "disk peak", self.disk_peak_bytes, cap)?;
        }
        line(f, "to device", self.h2d_bytes, String::new())?;
        line(f, "to host", self.d2h_bytes, String::new())?;
        if has_disk {
            line(f, "from disk", self.disk_read_bytes, String::new())?;
            line(f, "to disk", self.disk_write_bytes, String::new())?;
        }
        line(f, "from images", self.source_bytes, String::new())?;
        let (p, m) = (self.secs.predicted, self.secs.measured);
        writeln!(f, "{:<13}{p:>9.2} s{m:>10.2} s", "time")?;
        if let Some(rss) = self.process_peak_rss_bytes {
            writeln!(
                f,
                "{:<13}{:>11}{:>12}   peak, all of it",
                "process RSS",
                "",
                size(rss)
            )?;
        }
        Ok(())
    }
}

/// Heading of the columns of a [`Report`].
pub const REPORT_HEADING: &str = "               predicted    measured";

/// Peak resident memory of this process in bytes, where the system tells.
pub fn peak_rss_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kib * 1024)
}
