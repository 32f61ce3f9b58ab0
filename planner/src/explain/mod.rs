//! A plan in words: why each stage is as it is, and what it costs.
//!
//! One renderer walks the plan; text and JSON differ only in leaves.

use std::fmt::Write;

use serde::Serialize;

use crate::budget::ByteSize;
use crate::plan::{Home, ItemRole, Plan, Purpose, Stage, Value};
use crate::sweep::AxisPolicy;

/// What a buffer is for, in words.
pub(crate) fn purpose(p: Purpose) -> &'static str {
    match p {
        Purpose::Leaf => "a parameter or flat input",
        Purpose::OptimiserState => "optimiser state",
        Purpose::Flat => "a flat result",
        Purpose::Stored => "a map stored whole",
        Purpose::Window => "a tile with its halo",
        Purpose::Accumulator => "a reduction in progress",
        Purpose::Workspace => "scratch of kernels",
    }
}

/// A plan as people read it.
#[derive(Clone, Debug, Serialize)]
pub struct Explained {
    /// Strategy.
    pub strategy: String,
    /// Machine profile.
    pub machine: String,
    /// Device cap in bytes.
    pub device_bytes: u64,
    /// Host cap in bytes.
    pub host_bytes: u64,
    /// What it promises.
    pub predicted: crate::plan::Predicted,
    /// Relative distance to the best bound of the placement model.
    pub gap: f64,
    /// One entry per stage.
    pub stages: Vec<ExplainedStage>,
}

/// A stage as people read it.
#[derive(Clone, Debug, Serialize)]
pub struct ExplainedStage {
    /// Position in the plan.
    pub index: usize,
    /// What it makes for later stages.
    pub makes: Vec<String>,
    /// What it reads, and from where.
    pub reads: Vec<String>,
    /// Nodes it computes although an earlier stage has done so before.
    pub recomputes: usize,
    /// Nodes it runs.
    pub nodes: usize,
    /// Policy and tile extent per axis.
    pub grid: Vec<String>,
    /// Number of tiles.
    pub n_tiles: u64,
    /// Predicted cost.
    pub cost: crate::plan::StageCost,
    /// Why.
    pub why: String,
}

/// One stage in words; `done` are the nodes that earlier stages have run.
pub fn explain_stage(plan: &Plan, index: usize, done: &[bool]) -> ExplainedStage {
    let stage = &plan.stages[index];
    let name = |n: crate::NodeIx| plan.program.node(n).name.clone();
    let place = |home: &Home| match home {
        Home::Device(_) => "device",
        Home::Host(_) => "host",
        Home::Source => "source",
    };
    let mut makes = Vec::new();
    let mut reads = Vec::new();
    let mut recomputes = 0;
    for item in &stage.items {
        match &item.role {
            ItemRole::Supply(home) => reads.push(format!("{} ({})", name(item.node), place(home))),
            ItemRole::Reduce | ItemRole::Flat => makes.push(name(item.node)),
            ItemRole::Compute => {
                recomputes += usize::from(done[item.node.ix()]);
                let mut to: Vec<&str> = item.stores.iter().map(place).collect();
                if matches!(item.value, Value::Whole(_)) {
                    to.push("device");
                }
                if !to.is_empty() {
                    makes.push(format!("{} ({})", name(item.node), to.join(" and ")));
                }
            }
        }
    }
    ExplainedStage {
        index,
        makes,
        reads,
        recomputes,
        nodes: stage.items.len(),
        grid: grid_words(stage),
        n_tiles: stage.n_tiles(),
        cost: stage.cost,
        why: stage.why.clone(),
    }
}

fn grid_words(stage: &Stage) -> Vec<String> {
    let axis = |(i, g): (usize, &crate::AxisGrid)| {
        let name = if i == 0 {
            "N".to_owned()
        } else {
            ["", "Y", "X", "Z"][i.min(3)].to_owned()
        };
        match g.policy {
            AxisPolicy::Whole => format!("{name} whole"),
            AxisPolicy::Overlap => format!("{name} overlap {}", g.tile),
            AxisPolicy::Carry => format!("{name} carry {}", g.tile),
        }
    };
    // The batch is worth a word only where it is cut.
    let cut = |(i, g): &(usize, &crate::AxisGrid)| *i > 0 || g.policy != AxisPolicy::Whole;
    stage
        .grid
        .iter()
        .enumerate()
        .filter(cut)
        .map(axis)
        .collect()
}

impl Plan {
    /// The plan for machines to read.
    pub fn explained(&self) -> Explained {
        let mut done = vec![false; self.program.nodes.len()];
        let mut stages = Vec::new();
        for index in 0..self.stages.len() {
            stages.push(explain_stage(self, index, &done));
            for item in &self.stages[index].items {
                done[item.node.ix()] |= !matches!(item.role, ItemRole::Supply(_));
            }
        }
        Explained {
            strategy: self.strategy.to_string(),
            machine: self.machine.clone(),
            device_bytes: self.budget.device_bytes,
            host_bytes: self.budget.host_bytes,
            predicted: self.predicted,
            gap: self.gap,
            stages,
        }
    }

    /// The plan in a few lines: caps, promises, traffic.
    pub fn summary(&self) -> String {
        let p = &self.predicted;
        let mut out = String::new();
        let size = |b: u64| ByteSize(b).to_string();
        let _ = writeln!(
            out,
            "{} plan: {} stages, {} tiles, gap to the model's bound {:.1} %",
            self.strategy,
            self.stages.len(),
            self.stages.iter().map(Stage::n_tiles).sum::<u64>(),
            100.0 * self.gap
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
        let _ = writeln!(
            out,
            "traffic   {} to the device, {} to the host, {} read from images",
            size(p.h2d_bytes),
            size(p.d2h_bytes),
            size(p.source_bytes)
        );
        let _ = writeln!(
            out,
            "work      {:.3} TFLOP, {:.2} x that of computing everything once; about {:.1} s",
            p.flops / 1e12,
            p.flops / p.flops_once.max(1.0),
            p.secs
        );
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
                ByteSize(s.cost.h2d_bytes + s.cost.source_bytes),
                ByteSize(s.cost.d2h_bytes),
                ByteSize(s.cost.high_water_bytes)
            );
        }
        out
    }
}
