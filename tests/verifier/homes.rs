//! Damage to where values are: roles and targets, flat results, accumulators, state.

use sstep_autodiff::ReductionState;
use sstep_planner::{BufferIx, DiskIx, Home, HostIx, ItemRole, Plan, Purpose, Value};

use crate::common::Rng;
use crate::common::events::{Events, buffer_of};
use crate::damage::{Damage, damage, is_read_from, item, pick};

pub fn change_role(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |_| true)?;
    let to = match rng.below(7) {
        0 => ItemRole::Compute,
        1 => ItemRole::Reduce,
        2 => ItemRole::Flat,
        3 => ItemRole::Supply(Home::Source),
        4 => ItemRole::Supply(Home::Device(BufferIx(rng.below(plan.buffers.len()) as u32))),
        5 => ItemRole::Supply(Home::Host(HostIx(rng.below(plan.host.len() + 1) as u32))),
        _ => ItemRole::Supply(Home::Disk(DiskIx(rng.below(plan.disk.len() + 1) as u32))),
    };
    let item = &mut plan.stages[s].items[i];
    let from = std::mem::replace(&mut item.role, to);
    damage(
        format!("item {s}/{i} made {to:?} instead of {from:?}"),
        false,
    )
}

pub fn retarget_supply(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |i| matches!(i.role, ItemRole::Supply(_)))?;
    let (n, from) = (plan.stages[s].items[i].node, plan.stages[s].items[i].role);
    let to = match rng.below(3) {
        0 => Home::Source,
        1 => Home::Host(HostIx(rng.below(plan.host.len() + 1) as u32)),
        _ => Home::Disk(DiskIx(rng.below(plan.disk.len() + 1) as u32)),
    };
    plan.stages[s].items[i].role = ItemRole::Supply(to);
    let other = match to {
        Home::Source => !plan.program.is_source(n),
        Home::Host(h) => plan.host.get(h.0 as usize).is_none_or(|t| t.node != n),
        Home::Disk(d) => plan.disk.get(d.0 as usize).is_none_or(|t| t.node != n),
        Home::Device(_) => false,
    };
    // From the device a map is read in place, wherever it says it is.
    let windowed = matches!(plan.stages[s].items[i].value, Value::Window { .. });
    damage(
        format!("supply {s}/{i} from {to:?} instead of {from:?}"),
        other && windowed && events.reads[s].contains(&n),
    )
}

pub fn retarget_store(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |i| !i.stores.is_empty())?;
    let to = match rng.below(4) {
        0 => Home::Source,
        1 => Home::Host(HostIx(rng.below(plan.host.len() + 1) as u32)),
        2 => Home::Disk(DiskIx(rng.below(plan.disk.len() + 1) as u32)),
        _ => Home::Device(BufferIx(rng.below(plan.buffers.len()) as u32)),
    };
    let n = plan.stages[s].items[i].node;
    let from = std::mem::replace(&mut plan.stages[s].items[i].stores[0], to);
    let certain = to == Home::Source || (from != to && is_read_from(plan, events, n, from));
    damage(
        format!("store {s}/{i} to {to:?} instead of {from:?}"),
        certain,
    )
}

pub fn retarget_value(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |_| true)?;
    let to = BufferIx(rng.below(plan.buffers.len() + 1) as u32);
    let item = &mut plan.stages[s].items[i];
    let from = buffer_of(&item.value);
    item.value = match (rng.below(4), item.value) {
        (0, _) => Value::Whole(to),
        (1, _) => Value::Flat(to),
        (_, Value::Window { capacity, .. }) => Value::Window {
            buffer: to,
            capacity,
        },
        (_, Value::Whole(_)) => Value::Whole(to),
        (_, Value::Flat(_)) => Value::Flat(to),
    };
    let certain = to.0 as usize == plan.buffers.len();
    damage(
        format!("value {s}/{i} in buffer {} instead of {}", to.0, from.0),
        certain,
    )
}

pub fn swap_values(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |_| true)?;
    let j = rng.below(plan.stages[s].items.len());
    let (a, b) = (plan.stages[s].items[i].value, plan.stages[s].items[j].value);
    (plan.stages[s].items[i].value, plan.stages[s].items[j].value) = (b, a);
    damage(format!("values {s}/{i} and {s}/{j} swapped"), false)
}

pub fn lose_flat_home(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let flat: Vec<usize> = (0..plan.flat_home.len())
        .filter(|&n| plan.flat_home[n].is_some())
        .collect();
    let n = *pick(&flat, rng)?;
    plan.flat_home[n] = None;
    damage(format!("flat node {n} has no home"), true)
}

pub fn wrong_flat_home(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let flat: Vec<usize> = (0..plan.flat_home.len())
        .filter(|&n| plan.flat_home[n].is_some())
        .collect();
    let n = *pick(&flat, rng)?;
    let to = BufferIx(rng.below(plan.buffers.len() + 1) as u32);
    let is_leaf = plan.program.nodes[n].op.is_leaf();
    let certain = plan.flat_home[n] != Some(to) && !is_leaf;
    plan.flat_home[n] = Some(to);
    damage(
        format!("flat node {n} has its home in buffer {}", to.0),
        certain,
    )
}

/// A reduction that accumulates in doubles.
fn in_doubles(plan: &Plan, rng: &mut Rng) -> Option<(usize, usize)> {
    item(plan, rng, |i| {
        let node = plan.program.node(i.node);
        i.role == ItemRole::Reduce
            && matches!(node.op.reduction_state(&node.ty), ReductionState::F64(_))
    })
}

pub fn lose_accumulator(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = in_doubles(plan, rng)?;
    plan.stages[s].items[i].accumulator = None;
    damage(format!("reduction {s}/{i} has no accumulator"), true)
}

pub fn wrong_accumulator(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |i| i.role == ItemRole::Reduce)?;
    let to = BufferIx(rng.below(plan.buffers.len() + 1) as u32);
    plan.stages[s].items[i].accumulator = Some(to);
    let certain = to.0 as usize == plan.buffers.len();
    damage(
        format!("reduction {s}/{i} accumulates in buffer {}", to.0),
        certain,
    )
}

pub fn wrong_workspace(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let to = BufferIx(rng.below(plan.buffers.len() + 1) as u32);
    plan.workspace = Some(to);
    // Kernels use it throughout, so it can be no parameter.
    let past = to.0 as usize == plan.buffers.len();
    let certain = past || plan.buffer(to).purpose == Purpose::Leaf;
    damage(format!("workspace in buffer {}", to.0), certain)
}

pub fn lose_staging(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |i| i.staging.is_some())?;
    plan.stages[s].items[i].staging = None;
    // Then it is copied when it is needed: slower, and right.
    damage(format!("item {s}/{i} has no staging buffer"), false)
}

pub fn wrong_staging(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |_| true)?;
    let to = BufferIx(rng.below(plan.buffers.len() + 1) as u32);
    let item = &mut plan.stages[s].items[i];
    let certain = item.staging.is_some() && to.0 as usize == plan.buffers.len();
    item.staging = Some(to);
    damage(format!("item {s}/{i} staged in buffer {}", to.0), certain)
}

pub fn lose_state(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let u = rng.below(plan.states.len().max(1));
    plan.states.get_mut(u)?.pop()?;
    damage(format!("update {u} has a state less"), true)
}

pub fn wrong_state(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let u = rng.below(plan.states.len().max(1));
    let to = BufferIx(rng.below(plan.buffers.len() + 1) as u32);
    let slot = plan.states.get_mut(u)?.first_mut()?;
    let certain = *slot != to;
    *slot = to;
    damage(format!("state of update {u} in buffer {}", to.0), certain)
}

pub fn lose_map_output(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    if plan.map_outputs.is_empty() {
        return None;
    }
    let at = rng.below(plan.map_outputs.len());
    plan.map_outputs.remove(at);
    damage(format!("map output {at} lost"), true)
}

pub fn wrong_map_output(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let at = rng.below(plan.map_outputs.len().max(1));
    let to = match rng.below(4) {
        0 => Home::Source,
        1 => Home::Host(HostIx(rng.below(plan.host.len() + 1) as u32)),
        2 => Home::Disk(DiskIx(rng.below(plan.disk.len() + 1) as u32)),
        _ => Home::Device(BufferIx(rng.below(plan.buffers.len() + 1) as u32)),
    };
    let (n, home) = plan.map_outputs.get_mut(at)?;
    let (n, from) = (*n, std::mem::replace(home, to));
    let certain = match to {
        Home::Source => !plan.program.is_source(n),
        Home::Host(h) => plan.host.get(h.0 as usize).is_none_or(|t| t.node != n),
        Home::Disk(d) => plan.disk.get(d.0 as usize).is_none_or(|t| t.node != n),
        Home::Device(b) => plan
            .buffers
            .get(b.0 as usize)
            .is_none_or(|b| b.node != Some(n)),
    };
    damage(
        format!("map output {at} in {to:?} instead of {from:?}"),
        certain,
    )
}
