//! A plan for people: why each stage is as it is, and what it costs.
//!
//! The plan is walked twice and nowhere else: once into words ([`Explained`]), once
//! into a picture over time ([`Picture`]). Every view is a leaf that writes one of
//! them down: text, JSON (`Explained` serialised), graphviz, a page, a trace.

mod dot;
mod drawing;
mod html;
mod picture;
mod text;
mod trace;

pub use html::{CapPoint, Comparison, StrategyLine};
pub use picture::{BufferSpan, Link, Picture};

use serde::Serialize;

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
        Purpose::Staging => "a region on its way from or to the host",
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
    /// Disk cap in bytes.
    pub disk_bytes: u64,
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
        Home::Disk(_) => "disk",
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
            disk_bytes: self.budget.disk_bytes,
            predicted: self.predicted,
            gap: self.gap,
            stages,
        }
    }
}
