//! The plan as text: a summary, and one paragraph per stage.

use std::fmt::Write;

use crate::budget::ByteSize;
use crate::objective::Objective;
use crate::plan::{Plan, Stage};

impl Plan {
    /// The plan in a few lines: caps, promises, traffic.
    pub fn summary(&self) -> String {
        let p = &self.predicted;
        let mut out = String::new();
        let size = |b: u64| ByteSize(b).to_string();
        let _ = writeln!(
            out,
            "{} plan: {} stages, {} tiles, gap to the model's bound {:.1} %{}",
            self.strategy,
            self.stages.len(),
            self.stages.iter().map(Stage::n_tiles).sum::<u64>(),
            100.0 * self.gap,
            match self.objective {
                Objective::Seconds => "",
                Objective::Bytes => " of what is moved",
            }
        );
        let _ = writeln!(
            out,
            "device    {} predicted of {} allowed; untiled it would take {}",
            size(p.peak_bytes),
            size(self.budget.device_bytes),
            size(p.untiled_bytes)
        );
        let _ = writeln!(
            out,
            "host      {} predicted of {} allowed",
            size(p.host_peak_bytes),
            size(self.budget.host_bytes)
        );
        // Of a disk only those who have allowed one want to read.
        let has_disk = self.budget.disk_bytes > 0;
        if has_disk {
            let _ = writeln!(
                out,
                "disk      {} predicted of {} allowed",
                size(p.disk_peak_bytes),
                size(self.budget.disk_bytes)
            );
        }
        let _ = write!(
            out,
            "traffic   {} to the device, {} to the host, ",
            size(p.h2d_bytes),
            size(p.d2h_bytes)
        );
        if has_disk {
            let (read, written) = (size(p.disk_read_bytes), size(p.disk_write_bytes));
            let _ = write!(out, "{read} from disk, {written} to disk, ");
        }
        let _ = writeln!(out, "{} read from images", size(p.source_bytes));
        let _ = writeln!(
            out,
            "work      {:.3} TFLOP, {:.2} x that of computing everything once; about {:.1} s",
            p.flops / 1e12,
            p.flops / p.flops_once.max(1.0),
            p.secs
        );
        let scope = if self.gap > 0.0 && self.n_binaries == 0 {
            "of stages alone, whatever memory they have: the solver failed"
        } else {
            "over all stages, grids and homes considered for this program, by this profile"
        };
        let _ = writeln!(out, "bound     {scope}");
        if !self.rewrites.is_empty() {
            let _ = writeln!(out, "rewrites  {}", self.rewrites);
        }
        out
    }

    /// The whole plan in words, one paragraph per stage.
    pub fn explain(&self) -> String {
        let mut out = self.summary();
        for s in self.explained().stages {
            let list = |v: &[String]| {
                let shown = v.iter().take(6).cloned().collect::<Vec<_>>().join(", ");
                if v.len() > 6 {
                    format!("{shown} and {} more", v.len() - 6)
                } else {
                    shown
                }
            };
            let _ = writeln!(out, "\nstage {} makes {}", s.index, list(&s.makes));
            if s.grid.is_empty() {
                continue;
            }
            let _ = writeln!(out, "  grid    {} ({} tiles)", s.grid.join(", "), s.n_tiles);
            let _ = writeln!(out, "  reads   {}", list(&s.reads));
            let _ = writeln!(
                out,
                "  runs    {} nodes, {} of them again; {}",
                s.nodes, s.recomputes, s.why
            );
            let _ = writeln!(
                out,
                "  cost    {:.3} s, {:.3} TFLOP, in {}, out {}, arena up to {}",
                s.cost.secs,
                s.cost.flops / 1e12,
                ByteSize(s.cost.in_bytes()),
                ByteSize(s.cost.out_bytes()),
                ByteSize(s.cost.high_water_bytes)
            );
            if self.stages[s.index].overlaps() {
                let c = &s.cost;
                let _ = writeln!(
                    out,
                    "  beside  {:.3} s of compute, {:.3} s in, {:.3} s out: bound by {}",
                    c.compute_secs,
                    c.h2d_secs,
                    c.d2h_secs,
                    c.bound_by()
                );
            }
        }
        out
    }
}
