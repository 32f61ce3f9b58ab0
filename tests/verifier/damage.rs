//! Everything that is done to plans: the table, and what to do it to.

use sstep_planner::{BufferIx, Home, ItemRole, NodeIx, Plan, StageItem};

use crate::common::Rng;
use crate::common::events::Events;
use crate::{homes, memory, stages};

/// What was done to a plan, and whether it is certainly wrong now.
pub struct Damage {
    pub what: String,
    pub certain: bool,
}

pub fn damage(what: impl Into<String>, certain: bool) -> Option<Damage> {
    Some(Damage {
        what: what.into(),
        certain,
    })
}

/// Something to do to a plan; `None` if there is nothing to do it to.
pub type Mutation = fn(&mut Plan, &Events, &mut Rng) -> Option<Damage>;

pub const MUTATIONS: &[Mutation] = &[
    memory::move_buffer_onto_another,
    memory::move_buffer_onto_another,
    memory::move_buffer_onto_another,
    memory::move_buffer_out_of_the_arena,
    memory::misalign_buffer,
    memory::shrink_buffer,
    memory::shrink_window,
    memory::widen_window,
    stages::swap_stages,
    stages::drop_stage,
    stages::duplicate_stage,
    stages::drop_store,
    stages::duplicate_store,
    stages::drop_item,
    stages::duplicate_item,
    stages::swap_items,
    homes::change_role,
    homes::retarget_supply,
    homes::retarget_store,
    homes::retarget_value,
    homes::swap_values,
    memory::release_host_early,
    memory::retarget_host_tensor,
    memory::lower_the_cap,
    memory::lower_the_host_cap,
    memory::move_on_disk,
    memory::move_off_the_disk,
    memory::shrink_on_disk,
    memory::retarget_disk_tensor,
    memory::lower_the_disk_cap,
    stages::change_tile,
    stages::cut_no_axis,
    stages::change_policy,
    stages::change_extent,
    homes::lose_flat_home,
    homes::wrong_flat_home,
    homes::lose_accumulator,
    homes::wrong_accumulator,
    homes::wrong_workspace,
    homes::lose_staging,
    homes::wrong_staging,
    homes::lose_state,
    homes::wrong_state,
    homes::lose_map_output,
    homes::wrong_map_output,
];

pub fn pick<'a, T>(from: &'a [T], rng: &mut Rng) -> Option<&'a T> {
    if from.is_empty() {
        None
    } else {
        Some(&from[rng.below(from.len())])
    }
}

pub fn buffer(plan: &Plan, rng: &mut Rng) -> Option<BufferIx> {
    let real: Vec<u32> = (0..plan.buffers.len() as u32)
        .filter(|&b| plan.buffers[b as usize].bytes > 0)
        .collect();
    pick(&real, rng).map(|&b| BufferIx(b))
}

/// Positions of an item that satisfies `want`.
pub fn item(
    plan: &Plan,
    rng: &mut Rng,
    want: impl Fn(&StageItem) -> bool,
) -> Option<(usize, usize)> {
    let mut all = Vec::new();
    for (s, stage) in plan.stages.iter().enumerate() {
        all.extend(
            (0..stage.items.len())
                .filter(|&i| want(&stage.items[i]))
                .map(|i| (s, i)),
        );
    }
    pick(&all, rng).copied()
}

/// Whether a stage reads a stored map from this home.
pub fn reads_from(plan: &Plan, events: &Events, s: usize, n: NodeIx, home: Home) -> bool {
    events.reads[s].contains(&n)
        && plan.stages[s]
            .items
            .iter()
            .any(|i| i.node == n && i.role == ItemRole::Supply(home))
}

/// Whether anybody reads a stored map from this home.
pub fn is_read_from(plan: &Plan, events: &Events, n: NodeIx, home: Home) -> bool {
    (0..plan.stages.len()).any(|s| reads_from(plan, events, s, n, home))
        || plan.map_outputs.contains(&(n, home))
}
