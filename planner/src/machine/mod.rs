//! What the machine can do, as data.
//!
//! The planner compares plans by predicted seconds; every rate it uses is here, so
//! the same tape, machine and budget give the same plan. A profile is measured by
//! `sstep calibrate` and kept as JSON with a version. Two are built in and serve until
//! then: one measured so, on two cores with AVX2, and one of a GPU, from what its vendor
//! publishes (`peaks`).

mod family;
mod peaks;
mod rates;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::error::PlanError;
use crate::plan::Tier;

pub use family::{ConvClass, ConvRole, Family, Kernel, Unit};
pub use rates::{RateTable, SizeRates};

/// Version of the profiles that this planner reads.
pub const PROFILE_VERSION: u32 = 1;

/// Rates of a machine.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(into = "Stored")]
pub struct Machine {
    /// Shown by `explain`.
    pub name: String,
    /// Threads that it was measured with.
    pub threads: usize,
    /// Whether convolutions may be computed by Winograd's algorithm.
    pub winograd: bool,
    /// Whether copies between host and device run beside kernels, either way, and
    /// slow nothing down. Those of a CPU take the cores that compute.
    pub copies_overlap: bool,
    /// Host to device copies, in bytes/s.
    pub h2d_bytes_per_sec: f64,
    /// Device to host copies, in bytes/s.
    pub d2h_bytes_per_sec: f64,
    /// Reading spilled tensors from disk, in bytes/s.
    pub disk_read_bytes_per_sec: f64,
    /// Writing them, in bytes/s.
    pub disk_write_bytes_per_sec: f64,
    /// Reading and decoding image sources, in bytes/s of decoded elements.
    pub source_bytes_per_sec: f64,
    /// Cost of one instruction of a plan beyond its kernel, in seconds.
    pub launch_secs: f64,
    /// Scratch that kernels work best with, in bytes; part of the cap.
    pub workspace_bytes: u64,
    /// By [`Family::ix`].
    kernels: Vec<RateTable>,
}

/// A profile as it is kept.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    name: String,
    threads: usize,
    #[serde(default)]
    copies_overlap: bool,
    h2d_bytes_per_sec: f64,
    d2h_bytes_per_sec: f64,
    disk_read_bytes_per_sec: f64,
    disk_write_bytes_per_sec: f64,
    source_bytes_per_sec: f64,
    launch_secs: f64,
    workspace_bytes: u64,
    kernels: BTreeMap<String, RateTable>,
}

/// Rates that are no table.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Links {
    /// See [`Machine::h2d_bytes_per_sec`].
    pub h2d_bytes_per_sec: f64,
    /// See [`Machine::d2h_bytes_per_sec`].
    pub d2h_bytes_per_sec: f64,
    /// See [`Machine::disk_read_bytes_per_sec`].
    pub disk_read_bytes_per_sec: f64,
    /// See [`Machine::disk_write_bytes_per_sec`].
    pub disk_write_bytes_per_sec: f64,
    /// See [`Machine::source_bytes_per_sec`].
    pub source_bytes_per_sec: f64,
    /// See [`Machine::launch_secs`].
    pub launch_secs: f64,
    /// See [`Machine::copies_overlap`].
    pub copies_overlap: bool,
}

static BUILT_IN: LazyLock<Machine> = LazyLock::new(|| {
    Machine::from_json(include_str!("builtin.json")).expect("the built-in profile is one")
});

impl Machine {
    /// The built-in profile: two cores with AVX2.
    pub fn cpu_default() -> Self {
        BUILT_IN.clone()
    }

    /// The built-in profile of a GPU of the H200's class, from what is published of it:
    /// nobody has measured it.
    pub fn gpu_default() -> Self {
        peaks::h200()
    }

    /// A built-in profile by name: `cpu` or `h200`.
    pub fn built_in(name: &str) -> Option<Self> {
        match name {
            "cpu" => Some(Machine::cpu_default()),
            "h200" => Some(Machine::gpu_default()),
            _ => None,
        }
    }

    /// A profile from what was measured. `kernels` holds a table for every family.
    ///
    /// # Errors
    /// [`PlanError::Profile`] if a family or a usable number is missing.
    pub fn new(
        name: String,
        threads: usize,
        links: Links,
        workspace_bytes: u64,
        kernels: BTreeMap<Family, RateTable>,
    ) -> Result<Self, PlanError> {
        let kernels = kernels.into_iter().map(|(f, t)| (f.name(), t)).collect();
        Stored {
            version: PROFILE_VERSION,
            name,
            threads,
            copies_overlap: links.copies_overlap,
            h2d_bytes_per_sec: links.h2d_bytes_per_sec,
            d2h_bytes_per_sec: links.d2h_bytes_per_sec,
            disk_read_bytes_per_sec: links.disk_read_bytes_per_sec,
            disk_write_bytes_per_sec: links.disk_write_bytes_per_sec,
            source_bytes_per_sec: links.source_bytes_per_sec,
            launch_secs: links.launch_secs,
            workspace_bytes,
            kernels,
        }
        .check()
    }

    /// Reads a profile.
    ///
    /// # Errors
    /// [`PlanError::ProfileVersion`] if another version of sstep wrote it,
    /// [`PlanError::Profile`] if it is none or lacks something.
    pub fn from_json(text: &str) -> Result<Self, PlanError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let not_one = |e: serde_json::Error| PlanError::Profile {
            reason: e.to_string(),
        };
        // The version first: whatever else another version says is not for us.
        let Version { version } = serde_json::from_str(text).map_err(not_one)?;
        if version != PROFILE_VERSION {
            return Err(PlanError::ProfileVersion {
                found: version,
                expected: PROFILE_VERSION,
            });
        }
        let stored: Stored = serde_json::from_str(text).map_err(not_one)?;
        stored.check()
    }

    /// The profile as JSON, for [`Machine::from_json`].
    pub fn to_json(&self) -> String {
        serde_json::to_string(&Stored::from(self.clone()))
            .expect("finite numbers and text are JSON")
    }

    /// The same machine with every convolution summed tap by tap, as the untiled
    /// reference does.
    pub fn without_winograd(mut self) -> Self {
        self.winograd = false;
        self
    }

    /// The table of a family.
    pub fn rates(&self, family: Family) -> &RateTable {
        &self.kernels[family.ix()]
    }

    /// Seconds of a kernel over `points` positions in `launches` calls.
    pub fn kernel_secs(&self, kernel: &Kernel<'_>, points: u64, launches: u64) -> f64 {
        self.timer(kernel).secs(points, launches)
    }

    /// What tells the seconds of a kernel: who asks for many sizes asks this.
    pub fn timer(&self, kernel: &Kernel<'_>) -> Timer {
        let family = kernel.family();
        let rates = self.rates(family).at(kernel.width());
        let is_flat = kernel.bytes(1) == kernel.bytes(2);
        let (work_per_point, bytes) = match family.unit() {
            Unit::Flops => (kernel.flops(1), None),
            Unit::Bytes if is_flat => (0.0, Some(kernel.bytes(1))),
            Unit::Bytes => (kernel.bytes(1), None),
        };
        Timer {
            rates,
            work_per_point,
            flat_bytes: bytes,
            is_by_points: family.unit() == Unit::Flops,
            launch_secs: self.launch_secs,
        }
    }

    /// Seconds of copying `bytes` from beyond the device to it. From disk they
    /// come by way of the host.
    pub fn fetch_secs(&self, from: Tier, bytes: u64) -> f64 {
        let bytes = bytes as f64;
        match from {
            Tier::Host => bytes / self.h2d_bytes_per_sec,
            Tier::Disk => bytes / self.h2d_bytes_per_sec + bytes / self.disk_read_bytes_per_sec,
        }
    }

    /// Seconds of copying `bytes` from the device to beyond it.
    pub fn store_secs(&self, to: Tier, bytes: u64) -> f64 {
        let bytes = bytes as f64;
        match to {
            Tier::Host => bytes / self.d2h_bytes_per_sec,
            Tier::Disk => bytes / self.d2h_bytes_per_sec + bytes / self.disk_write_bytes_per_sec,
        }
    }

    /// Seconds of moving `bytes` within the device in `calls` calls.
    pub fn copy_secs(&self, bytes: u64, calls: u64) -> f64 {
        self.streamed_secs(Family::Copy, 2 * bytes, calls)
    }

    /// Seconds of updating a parameter of `bytes` with `state_slots` tensors of state.
    pub fn update_secs(&self, bytes: u64, state_slots: usize) -> f64 {
        let touched = bytes * (3 + 2 * state_slots as u64);
        self.streamed_secs(Family::Optimiser, touched, 1)
    }

    fn streamed_secs(&self, family: Family, bytes: u64, calls: u64) -> f64 {
        self.stream_timer(family).secs(bytes, calls)
    }

    /// What tells the seconds of a family that only streams: its positions are bytes.
    fn stream_timer(&self, family: Family) -> Timer {
        Timer {
            rates: self.rates(family).at(1.0),
            work_per_point: 1.0,
            flat_bytes: None,
            is_by_points: true,
            launch_secs: self.launch_secs,
        }
    }

    /// What tells the seconds of moves within the device, of the bytes that they touch:
    /// each is read and written.
    pub fn copy_timer(&self) -> Timer {
        self.stream_timer(Family::Copy)
    }
}

/// Seconds of one kernel on one machine.
#[derive(Clone, Debug)]
pub struct Timer {
    rates: SizeRates,
    work_per_point: f64,
    /// Of a kernel that touches no map.
    flat_bytes: Option<f64>,
    /// Whether the size of a call is its positions; else the bytes it touches.
    is_by_points: bool,
    launch_secs: f64,
}

impl Timer {
    /// Seconds over `points` positions that no division into calls goes below.
    pub fn least_secs(&self, points: u64) -> f64 {
        let work = self
            .flat_bytes
            .unwrap_or(self.work_per_point * points as f64);
        work / self.rates.most_per_sec() + self.launch_secs
    }

    /// Seconds over `points` positions in `launches` calls.
    pub fn secs(&self, points: u64, launches: u64) -> f64 {
        if points == 0 || launches == 0 {
            return 0.0;
        }
        let work = self
            .flat_bytes
            .unwrap_or(self.work_per_point * points as f64);
        let size = if self.is_by_points {
            points as f64
        } else {
            work
        };
        let launches = launches as f64;
        work / self.rates.per_sec(size / launches) + launches * self.launch_secs
    }
}

impl Default for Machine {
    fn default() -> Self {
        Machine::cpu_default()
    }
}

impl Stored {
    fn check(self) -> Result<Machine, PlanError> {
        let fault = |reason: String| Err(PlanError::Profile { reason });
        let numbers = [
            ("h2d_bytes_per_sec", self.h2d_bytes_per_sec),
            ("d2h_bytes_per_sec", self.d2h_bytes_per_sec),
            ("disk_read_bytes_per_sec", self.disk_read_bytes_per_sec),
            ("disk_write_bytes_per_sec", self.disk_write_bytes_per_sec),
            ("source_bytes_per_sec", self.source_bytes_per_sec),
            ("launch_secs", self.launch_secs),
        ];
        for (name, value) in numbers {
            if !(value.is_finite() && value > 0.0) {
                return fault(format!("{name} must be a positive number, not {value}"));
            }
        }
        if let Some(name) = self.kernels.keys().find(|n| Family::by_name(n).is_none()) {
            return fault(format!("`{name}` is no family of kernels"));
        }
        let mut kernels = Vec::with_capacity(Family::COUNT);
        for family in Family::all() {
            let Some(table) = self.kernels.get(&family.name()) else {
                return fault(format!("the rates of {family} are missing"));
            };
            if let Some(what) = table.fault() {
                return fault(format!("the rates of {family}: {what}"));
            }
            kernels.push(table.clone());
        }
        Ok(Machine {
            name: self.name,
            threads: self.threads,
            winograd: true,
            copies_overlap: self.copies_overlap,
            h2d_bytes_per_sec: self.h2d_bytes_per_sec,
            d2h_bytes_per_sec: self.d2h_bytes_per_sec,
            disk_read_bytes_per_sec: self.disk_read_bytes_per_sec,
            disk_write_bytes_per_sec: self.disk_write_bytes_per_sec,
            source_bytes_per_sec: self.source_bytes_per_sec,
            launch_secs: self.launch_secs,
            workspace_bytes: self.workspace_bytes,
            kernels,
        })
    }
}

impl From<Machine> for Stored {
    fn from(m: Machine) -> Self {
        let kernels = Family::all().map(Family::name).zip(m.kernels).collect();
        Stored {
            version: PROFILE_VERSION,
            name: m.name,
            threads: m.threads,
            copies_overlap: m.copies_overlap,
            h2d_bytes_per_sec: m.h2d_bytes_per_sec,
            d2h_bytes_per_sec: m.d2h_bytes_per_sec,
            disk_read_bytes_per_sec: m.disk_read_bytes_per_sec,
            disk_write_bytes_per_sec: m.disk_write_bytes_per_sec,
            source_bytes_per_sec: m.source_bytes_per_sec,
            launch_secs: m.launch_secs,
            workspace_bytes: m.workspace_bytes,
            kernels,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_read_as_it_was_written() {
        let machine = Machine::cpu_default();
        let again = Machine::from_json(&machine.to_json()).expect("a profile");
        assert_eq!(again, machine);
    }

    #[test]
    fn a_built_in_gpu_is_a_profile_of_one() {
        let gpu = Machine::built_in("h200").expect("there is one");
        assert_eq!(Machine::from_json(&gpu.to_json()).expect("a profile"), gpu);
        assert!(gpu.copies_overlap && gpu.name.contains("not measured"));
        assert!(Machine::built_in("abacus").is_none());
        // No family is faster than the device can be, none slower than a CPU on large
        // calls, and larger calls are never slower per unit of work.
        let cpu = Machine::cpu_default();
        for family in Family::all() {
            let (table, most) = match family.unit() {
                Unit::Flops => (gpu.rates(family), 67e12),
                Unit::Bytes => (gpu.rates(family), 4.8e12),
            };
            for (row, &width) in table.per_sec.iter().zip(&table.widths) {
                assert!(row.windows(2).all(|pair| pair[0] <= pair[1]), "{family}");
                let largest = row[row.len() - 1];
                let of_cpu = cpu.rates(family).per_sec(width, f64::MAX);
                assert!(of_cpu < largest && largest < most, "{family} at {width}");
            }
        }
    }

    #[test]
    fn copies_overlap_where_a_profile_says_so() {
        let mut machine = Machine::cpu_default();
        assert!(!machine.copies_overlap);
        machine.copies_overlap = true;
        let text = machine.to_json();
        assert_eq!(Machine::from_json(&text).expect("a profile"), machine);
        // Profiles measured before there was such a word are of CPUs.
        let silent = text.replace("\"copies_overlap\":true,", "");
        assert_ne!(silent, text);
        let machine = Machine::from_json(&silent).expect("a profile");
        assert!(!machine.copies_overlap);
    }

    #[test]
    fn what_is_no_profile_is_said() {
        let text = Machine::cpu_default().to_json();
        let refuse = |text: &str, expected: &str| {
            let error = Machine::from_json(text).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        };
        refuse("{", "EOF");
        refuse("{\"version\":0}", "version 0");
        refuse(&text.replace("\"version\":1", "\"version\":7"), "version 7");
        refuse(&text.replace("norm-grad", "nrom-grad"), "`nrom-grad`");
        refuse(
            &text.replace("\"launch_secs\":", "\"launch_secs\":-"),
            "launch_secs",
        );
        refuse(&text.replace("launch_secs", "launch"), "launch");
    }
}
