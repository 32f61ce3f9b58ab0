//! What can be judged before the first instruction: buffers, tables, stages,
//! and what the arena holds when a step begins.

use std::collections::HashMap;

use super::boxes::Boxes;
use super::judge::{Content, Judge};
use crate::plan::{BufferIx, Plan};
use crate::stage::Role;

/// What every buffer is aligned to, in bytes: kernels load whole vectors.
const ALIGN: u64 = 64;

impl<'a> Judge<'a> {
    /// The state before the first instruction.
    ///
    /// # Errors
    /// What is wrong with the plan's layout.
    pub(super) fn new(plan: &'a Plan) -> Result<Self, String> {
        let n = plan.buffers.len();
        let cap = plan.budget.device_bytes;
        let mut by_offset: Vec<usize> = (0..n).collect();
        by_offset.sort_by_key(|&i| plan.buffers[i].offset);
        let mut clashes = vec![Vec::new(); n];
        for (k, &i) in by_offset.iter().enumerate() {
            let a = &plan.buffers[i];
            let end = a.offset.checked_add(a.bytes).ok_or("an offset overflows")?;
            if !a.offset.is_multiple_of(ALIGN) {
                return Err(format!(
                    "buffer {i} at {} is not aligned to {ALIGN}",
                    a.offset
                ));
            }
            if end > cap {
                return Err(format!(
                    "buffer {i} ends at {end}, beyond the cap of {cap} bytes"
                ));
            }
            for &j in &by_offset[k + 1..] {
                let b = &plan.buffers[j];
                if b.offset >= end {
                    break;
                }
                if b.bytes > 0 && a.bytes > 0 {
                    clashes[i].push(BufferIx(j as u32));
                    clashes[j].push(BufferIx(i as u32));
                }
            }
        }
        for list in &mut clashes {
            list.sort_unstable();
        }
        let mut judge = Judge {
            plan,
            content: vec![Content::Nothing; n],
            clashes,
            host: vec![None; plan.host.len()],
            disk: vec![None; plan.disk.len()],
            disk_clashes: disk_clashes(plan)?,
            released: vec![false; plan.host.len()],
            host_bytes: 0,
            stage: None,
            at: HashMap::new(),
            domain: HashMap::<_, Boxes>::new(),
            read: Vec::new(),
            updated: vec![false; plan.program.updates.len()],
        };
        judge.check_shape()?;
        for node in plan.program.indices() {
            let this = plan.program.node(node);
            if this.op.is_leaf() && !this.ty.is_map() {
                let b = judge.flat_home(node)?;
                judge.write(b)?;
                judge.content[b.0 as usize] = Content::Flat(node);
            }
        }
        for (update, slots) in plan.program.updates.iter().zip(&plan.states) {
            for &b in slots {
                judge.roomy(b, plan.program.node(update.param).ty.bytes())?;
                judge.write(b)?;
                judge.content[b.0 as usize] = Content::Flat(update.param);
            }
        }
        Ok(judge)
    }

    /// The plan's own structure: indices in range, stages that close over what
    /// they supply.
    fn check_shape(&self) -> Result<(), String> {
        let plan = self.plan;
        let n = plan.program.nodes.len();
        if plan.flat_home.len() != n
            || plan.states.len() != plan.program.updates.len()
            || plan
                .states
                .iter()
                .any(|s| s.len() != plan.program.state_slots)
        {
            return Err("a table of the plan has the wrong length".to_owned());
        }
        for (s, stage) in plan.stages.iter().enumerate() {
            if stage.items.iter().any(|i| i.node.ix() >= n) {
                return Err(format!("stage {s} names a node that does not exist"));
            }
            if !stage.grid.is_empty() && stage.grid.len() != plan.program.n_axes() {
                return Err(format!("stage {s} cuts {} axes", stage.grid.len()));
            }
            let carried = stage
                .grid
                .iter()
                .filter(|g| g.policy == crate::AxisPolicy::Carry);
            if carried.count() > 1 || stage.grid.iter().any(|g| g.tile == 0 || g.extent == 0) {
                return Err(format!("stage {s} has no valid grid"));
            }
            let body = stage.body(&plan.program);
            let same = body.items.len() == stage.items.len()
                && body
                    .items
                    .iter()
                    .zip(&stage.items)
                    .all(|(a, b)| a.node == b.node && a.role == Role::from(b.role));
            if !same {
                return Err(format!(
                    "stage {s} is not closed: an item is missing or idle"
                ));
            }
            let any_map = body.items.iter().any(|i| i.role != Role::Flat);
            if any_map == stage.grid.is_empty() {
                return Err(format!(
                    "stage {s} has maps but no grid, or a grid but no maps"
                ));
            }
        }
        Ok(())
    }
}

/// Other tensors that share bytes of the spill file with each tensor on disk.
///
/// # Errors
/// If one lies beyond the cap.
fn disk_clashes(plan: &Plan) -> Result<Vec<Vec<usize>>, String> {
    let cap = plan.budget.disk_bytes;
    for (i, tensor) in plan.disk.iter().enumerate() {
        let end = (tensor.offset.checked_add(tensor.bytes)).ok_or("an offset overflows")?;
        if end > cap {
            return Err(format!(
                "disk tensor {i} ends at {end}, beyond the cap of {cap} bytes"
            ));
        }
    }
    let clash = |i: usize, j: usize| {
        let (a, b) = (&plan.disk[i], &plan.disk[j]);
        i != j && a.offset < b.offset + b.bytes && b.offset < a.offset + a.bytes
    };
    let n = plan.disk.len();
    Ok((0..n)
        .map(|i| (0..n).filter(|&j| clash(i, j)).collect())
        .collect())
}
