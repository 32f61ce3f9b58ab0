//! The verifier against damaged plans.
//!
//! Plans of random networks are damaged in all ways we can think of. A damage
//! that is known to be one, by its construction and by lifetimes that
//! [`common::events`] computes from the instructions alone, must be rejected
//! and the instruction be named. Of all others it is asked that whatever the
//! verifier accepts still computes the gradients, twice in a row; and nothing
//! may make it panic.

mod common;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};

use common::events::{Events, buffer_of};
use common::nets::{build, net_specs};
use common::{AMPLE, HOW, Net, Rng, Tensors, config, leaves, oracle, ready, tiers, worst};
use proptest::prelude::*;
use sstep_autodiff::{DType, Op, ReductionState};
use sstep_executor::StepHow;
use sstep_kernels::UpdateRule;
use sstep_planner::{
    AxisPolicy, Budget, BufferIx, DiskIx, Home, HostIx, Instr, ItemRole, NodeIx, Plan, PlanError,
    Purpose, StageItem, Strategy as Planning, Value, Violation, verify, verify_sequence,
};

/// Damaged plans per plan.
const MUTANTS: usize = 40;

/// What was done to a plan, and whether it is certainly wrong now.
struct Damage {
    what: String,
    certain: bool,
}

fn damage(what: impl Into<String>, certain: bool) -> Option<Damage> {
    Some(Damage {
        what: what.into(),
        certain,
    })
}

/// Something to do to a plan; `None` if there is nothing to do it to.
type Mutation = fn(&mut Plan, &Events, &mut Rng) -> Option<Damage>;

const MUTATIONS: &[Mutation] = &[
    move_buffer_onto_another,
    move_buffer_onto_another,
    move_buffer_onto_another,
    move_buffer_out_of_the_arena,
    misalign_buffer,
    shrink_buffer,
    shrink_window,
    widen_window,
    swap_stages,
    drop_stage,
    duplicate_stage,
    drop_store,
    duplicate_store,
    drop_item,
    duplicate_item,
    swap_items,
    change_role,
    retarget_supply,
    retarget_store,
    retarget_value,
    swap_values,
    release_host_early,
    retarget_host_tensor,
    lower_the_cap,
    lower_the_host_cap,
    move_on_disk,
    move_off_the_disk,
    shrink_on_disk,
    retarget_disk_tensor,
    lower_the_disk_cap,
    change_tile,
    cut_no_axis,
    change_policy,
    change_extent,
    lose_flat_home,
    wrong_flat_home,
    lose_accumulator,
    wrong_accumulator,
    wrong_workspace,
    lose_staging,
    wrong_staging,
    lose_state,
    wrong_state,
    lose_map_output,
    wrong_map_output,
];

fn pick<'a, T>(from: &'a [T], rng: &mut Rng) -> Option<&'a T> {
    if from.is_empty() {
        None
    } else {
        Some(&from[rng.below(from.len())])
    }
}

fn buffer(plan: &Plan, rng: &mut Rng) -> Option<BufferIx> {
    let real: Vec<u32> = (0..plan.buffers.len() as u32)
        .filter(|&b| plan.buffers[b as usize].bytes > 0)
        .collect();
    pick(&real, rng).map(|&b| BufferIx(b))
}

/// Positions of an item that satisfies `want`.
fn item(plan: &Plan, rng: &mut Rng, want: impl Fn(&StageItem) -> bool) -> Option<(usize, usize)> {
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

fn move_buffer_onto_another(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let (a, b) = (buffer(plan, rng)?, buffer(plan, rng)?);
    if a == b {
        return None;
    }
    // Side by side or exactly there.
    let into = plan.buffer(a).bytes.saturating_sub(1) / 64 * 64 * (rng.bits() % 2);
    plan.buffers[b.0 as usize].offset = plan.buffer(a).offset + into;
    let certain = events.clobbers(a, b) || events.clobbers(b, a);
    let name = |b: BufferIx| {
        let buffer = plan.buffer(b);
        let node = buffer.node.map(|n| &plan.program.node(n).name);
        format!("buffer {} ({:?} of {node:?})", b.0, buffer.purpose)
    };
    damage(format!("{} moved onto {}", name(b), name(a)), certain)
}

fn move_buffer_out_of_the_arena(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let b = buffer(plan, rng)?;
    let to = [plan.budget.device_bytes, u64::MAX - 63, u64::MAX, 1 << 60][rng.below(4)];
    plan.buffers[b.0 as usize].offset = to;
    damage(format!("buffer {} moved to {to}", b.0), true)
}

fn misalign_buffer(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let b = buffer(plan, rng)?;
    plan.buffers[b.0 as usize].offset += 1;
    damage(format!("buffer {} moved by a byte", b.0), events.is_used(b))
}

fn shrink_buffer(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let b = buffer(plan, rng)?;
    let by = 1 + rng.bits() % plan.buffer(b).bytes;
    plan.buffers[b.0 as usize].bytes -= by;
    // Kernels make do with less scratch.
    let exact = plan.buffer(b).purpose != Purpose::Workspace;
    damage(
        format!("buffer {} shrunk by {by}", b.0),
        exact && events.is_used(b),
    )
}

fn shrink_window(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |i| matches!(i.value, Value::Window { .. }))?;
    let n_axes = plan.program.n_axes();
    let Value::Window { buffer, capacity } = &mut plan.stages[s].items[i].value else {
        return None;
    };
    let axis = rng.below(n_axes);
    // A capacity is the largest extent that the window ever has.
    capacity[axis] = capacity[axis].checked_sub(1)?;
    let certain = events.is_used(*buffer);
    damage(
        format!("window {s}/{i} narrowed along axis {axis}"),
        certain,
    )
}

fn widen_window(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |i| matches!(i.value, Value::Window { .. }))?;
    let axis = rng.below(plan.program.n_axes());
    let item = &mut plan.stages[s].items[i];
    let Value::Window { buffer, capacity } = &mut item.value else {
        return None;
    };
    let by = [1, 1000, usize::MAX / 2][rng.below(3)];
    let certain = events.is_used(*buffer);
    capacity[axis] = capacity[axis].saturating_add(by);
    damage(
        format!("window {s}/{i} widened along axis {axis} by {by}"),
        certain,
    )
}

/// What a stage makes for others: flat results, and maps by their homes.
fn makes(plan: &Plan, s: usize) -> BTreeSet<NodeIx> {
    let made = plan.stages[s].items.iter().filter(|i| {
        let stored = !i.stores.is_empty()
            || (i.role == ItemRole::Compute && matches!(i.value, Value::Whole(_)));
        stored || matches!(i.role, ItemRole::Flat | ItemRole::Reduce)
    });
    made.map(|i| i.node).collect()
}

fn swap_stages(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let n = plan.stages.len();
    let first = rng.below(n);
    let second = (first + 1 + rng.below(3)).min(n - 1);
    let read: BTreeSet<NodeIx> = events.reads[first..=second]
        .iter()
        .skip(1)
        .flatten()
        .copied()
        .collect();
    let made = makes(plan, first);
    plan.stages.swap(first, second);
    let certain = first != second && !made.is_disjoint(&read);
    damage(format!("stages {first} and {second} swapped"), certain)
}

fn drop_stage(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let s = rng.below(plan.stages.len());
    let mut wanted: BTreeSet<NodeIx> = events.reads[s + 1..].iter().flatten().copied().collect();
    wanted.extend(&plan.program.outputs);
    wanted.extend(plan.program.updates.iter().map(|u| u.grad));
    let certain = !makes(plan, s).is_disjoint(&wanted);
    plan.stages.remove(s);
    damage(format!("stage {s} dropped"), certain)
}

fn duplicate_stage(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let s = rng.below(plan.stages.len());
    let stage = plan.stages[s].clone();
    let certain = stage.items.iter().any(|i| !i.stores.is_empty());
    plan.stages.insert(s, stage);
    damage(format!("stage {s} run twice"), certain)
}

/// Whether a stage reads a stored map from this home.
fn reads_from(plan: &Plan, events: &Events, s: usize, n: NodeIx, home: Home) -> bool {
    events.reads[s].contains(&n)
        && plan.stages[s]
            .items
            .iter()
            .any(|i| i.node == n && i.role == ItemRole::Supply(home))
}

/// Whether anybody reads a stored map from this home.
fn is_read_from(plan: &Plan, events: &Events, n: NodeIx, home: Home) -> bool {
    (0..plan.stages.len()).any(|s| reads_from(plan, events, s, n, home))
        || plan.map_outputs.contains(&(n, home))
}

fn drop_store(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |i| !i.stores.is_empty())?;
    let stores = &mut plan.stages[s].items[i].stores;
    let home = stores.remove(rng.below(stores.len()));
    let certain = is_read_from(plan, events, plan.stages[s].items[i].node, home);
    damage(format!("store {s}/{i} to {home:?} dropped"), certain)
}

fn duplicate_store(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |i| !i.stores.is_empty())?;
    let stores = &mut plan.stages[s].items[i].stores;
    stores.push(stores[0]);
    damage(format!("store {s}/{i} made twice"), true)
}

fn drop_item(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |_| true)?;
    plan.stages[s].items.remove(i);
    damage(format!("item {s}/{i} dropped"), true)
}

fn duplicate_item(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |_| true)?;
    let copy = plan.stages[s].items[i].clone();
    plan.stages[s].items.insert(i, copy);
    damage(format!("item {s}/{i} listed twice"), true)
}

fn swap_items(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |_| true)?;
    let j = rng.below(plan.stages[s].items.len());
    let certain = {
        let items = &plan.stages[s].items;
        let (first, second) = (i.min(j), i.max(j));
        let made = items[first].node;
        let program = &plan.program;
        let reader = |k: &StageItem| {
            !matches!(k.role, ItemRole::Supply(_)) && program.node(k.node).inputs.contains(&made)
        };
        items[first + 1..=second.max(first)].iter().any(reader)
    };
    plan.stages[s].items.swap(i, j);
    damage(
        format!("items {s}/{i} and {s}/{j} swapped"),
        i != j && certain,
    )
}

fn change_role(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
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

fn retarget_supply(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
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

fn retarget_store(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
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

fn retarget_value(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
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

fn swap_values(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |_| true)?;
    let j = rng.below(plan.stages[s].items.len());
    let (a, b) = (plan.stages[s].items[i].value, plan.stages[s].items[j].value);
    (plan.stages[s].items[i].value, plan.stages[s].items[j].value) = (b, a);
    damage(format!("values {s}/{i} and {s}/{j} swapped"), false)
}

fn release_host_early(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let h = rng.below(plan.host.len().max(1));
    plan.host.get(h)?;
    let home = Home::Host(HostIx(h as u32));
    let n = plan.host[h].node;
    let last = (0..plan.stages.len())
        .rev()
        .find(|&s| reads_from(plan, events, s, n, home));
    let end = plan.map_outputs.iter().any(|(_, to)| *to == home);
    let last = if end { plan.stages.len() } else { last? };
    let to = rng.below(last.max(1));
    plan.host[h].live.1 = to as u32;
    damage(
        format!("host tensor {h} released after stage {to}, used in {last}"),
        to < last,
    )
}

fn retarget_host_tensor(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let h = rng.below(plan.host.len().max(1));
    let n = NodeIx(rng.below(plan.program.nodes.len() + 1) as u32);
    let tensor = plan.host.get_mut(h)?;
    let certain = tensor.node != n && events.is_stored(h);
    tensor.node = n;
    damage(format!("host tensor {h} is of node {}", n.0), certain)
}

fn lower_the_cap(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let used = (0..plan.buffers.len() as u32).filter(|&b| events.is_used(BufferIx(b)));
    let ends = used.map(|b| plan.buffers[b as usize].offset + plan.buffers[b as usize].bytes);
    plan.budget.device_bytes = ends.max()?.saturating_sub(1 + rng.bits() % 100);
    damage("device cap lowered below use", true)
}

fn lower_the_host_cap(plan: &mut Plan, events: &Events, _: &mut Rng) -> Option<Damage> {
    plan.budget.host_bytes = events.host_peak_bytes(plan).checked_sub(1)?;
    damage("host cap lowered below use", true)
}

fn move_on_disk(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let n = plan.disk.len();
    let (a, b) = (rng.below(n.max(1)), rng.below(n.max(1)));
    let onto = plan.disk.get(a).filter(|_| a != b)?;
    // Side by side with it, so that they share some bytes, or exactly there.
    plan.disk[b].offset = onto.offset + onto.bytes.saturating_sub(8) * (rng.bits() % 2);
    let end = plan.disk[b].offset + plan.disk[b].bytes;
    plan.budget.disk_bytes = plan.budget.disk_bytes.max(end);
    let certain = events.clobbers_on_disk(a, b) || events.clobbers_on_disk(b, a);
    damage(format!("disk tensor {b} moved onto {a}"), certain)
}

fn move_off_the_disk(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let cap = plan.budget.disk_bytes;
    let d = rng.below(plan.disk.len().max(1));
    let tensor = plan.disk.get_mut(d)?;
    tensor.offset = [cap, cap - tensor.bytes + 1, u64::MAX - 7][rng.below(3)];
    damage(format!("disk tensor {d} moved to {}", tensor.offset), true)
}

fn shrink_on_disk(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let d = rng.below(plan.disk.len().max(1));
    let tensor = plan.disk.get_mut(d)?;
    let by = 1 + rng.bits() % tensor.bytes;
    tensor.bytes -= by;
    damage(
        format!("disk tensor {d} shrunk by {by}"),
        events.is_spilled(d),
    )
}

fn retarget_disk_tensor(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let d = rng.below(plan.disk.len().max(1));
    let n = NodeIx(rng.below(plan.program.nodes.len() + 1) as u32);
    let tensor = plan.disk.get_mut(d)?;
    let certain = tensor.node != n && events.is_spilled(d);
    tensor.node = n;
    damage(format!("disk tensor {d} is of node {}", n.0), certain)
}

fn lower_the_disk_cap(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let ends = plan.disk.iter().map(|d| d.offset + d.bytes);
    plan.budget.disk_bytes = ends.max()?.saturating_sub(1 + rng.bits() % 100);
    damage("disk cap lowered below use", true)
}

/// A stage that is cut along some axis.
fn cut_axis(plan: &Plan, rng: &mut Rng) -> Option<(usize, usize)> {
    let mut all = Vec::new();
    for (s, stage) in plan.stages.iter().enumerate() {
        all.extend(
            (0..stage.grid.len())
                .filter(|&a| stage.grid[a].n_tiles() > 1)
                .map(|a| (s, a)),
        );
    }
    pick(&all, rng).copied()
}

fn change_tile(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, a) = cut_axis(plan, rng)?;
    let grid = &mut plan.stages[s].grid[a];
    let from = grid.tile;
    grid.tile = [0, 1, from / 2, from + 1, from * 2, usize::MAX][rng.below(6)];
    let (to, certain) = (grid.tile, grid.tile == 0);
    damage(
        format!("stage {s} axis {a} cut by {to} instead of {from}"),
        certain,
    )
}

fn cut_no_axis(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, a) = cut_axis(plan, rng)?;
    let stage = &mut plan.stages[s];
    let extent = stage.grid[a].extent;
    stage.grid[a].tile = extent;
    stage.grid[a].policy = AxisPolicy::Whole;
    // What is stored or reduced is now made whole: no smaller window holds it.
    let small = |item: &StageItem| match item.value {
        Value::Window { capacity, .. } => {
            capacity[a] < plan.program.node(item.node).ty.axis_extent(a)
        }
        Value::Whole(_) | Value::Flat(_) => false,
    };
    let stage = &plan.stages[s];
    let certain = stage.items.iter().any(|item| {
        let domain = match item.role {
            ItemRole::Reduce => {
                let d = plan
                    .program
                    .domain(item.node)
                    .expect("a reduction has a domain");
                plan.program.node(item.node).inputs[d]
            }
            _ if item.stores.is_empty() => return false,
            _ => item.node,
        };
        stage.items.iter().any(|i| i.node == domain && small(i))
    });
    damage(format!("stage {s} not cut along axis {a}"), certain)
}

fn change_policy(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, a) = cut_axis(plan, rng)?;
    let grid = &mut plan.stages[s].grid[a];
    let from = grid.policy;
    grid.policy = [AxisPolicy::Whole, AxisPolicy::Overlap, AxisPolicy::Carry][rng.below(3)];
    let to = grid.policy;
    damage(
        format!("stage {s} axis {a}: {to:?} instead of {from:?}"),
        false,
    )
}

fn change_extent(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, a) = cut_axis(plan, rng)?;
    let grid = &mut plan.stages[s].grid[a];
    let from = grid.extent;
    grid.extent = [0, 1, from - 1, from + 1, 2 * from][rng.below(5)];
    let (to, certain) = (grid.extent, grid.extent == 0);
    damage(
        format!("stage {s} axis {a} of extent {to} instead of {from}"),
        certain,
    )
}

fn lose_flat_home(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let flat: Vec<usize> = (0..plan.flat_home.len())
        .filter(|&n| plan.flat_home[n].is_some())
        .collect();
    let n = *pick(&flat, rng)?;
    plan.flat_home[n] = None;
    damage(format!("flat node {n} has no home"), true)
}

fn wrong_flat_home(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
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

fn lose_accumulator(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = in_doubles(plan, rng)?;
    plan.stages[s].items[i].accumulator = None;
    damage(format!("reduction {s}/{i} has no accumulator"), true)
}

fn wrong_accumulator(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |i| i.role == ItemRole::Reduce)?;
    let to = BufferIx(rng.below(plan.buffers.len() + 1) as u32);
    plan.stages[s].items[i].accumulator = Some(to);
    let certain = to.0 as usize == plan.buffers.len();
    damage(
        format!("reduction {s}/{i} accumulates in buffer {}", to.0),
        certain,
    )
}

fn wrong_workspace(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let to = BufferIx(rng.below(plan.buffers.len() + 1) as u32);
    plan.workspace = Some(to);
    // Kernels use it throughout, so it can be no parameter.
    let past = to.0 as usize == plan.buffers.len();
    let certain = past || plan.buffer(to).purpose == Purpose::Leaf;
    damage(format!("workspace in buffer {}", to.0), certain)
}

fn lose_staging(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |i| i.staging.is_some())?;
    plan.stages[s].items[i].staging = None;
    // Then it is copied when it is needed: slower, and right.
    damage(format!("item {s}/{i} has no staging buffer"), false)
}

fn wrong_staging(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |_| true)?;
    let to = BufferIx(rng.below(plan.buffers.len() + 1) as u32);
    let item = &mut plan.stages[s].items[i];
    let certain = item.staging.is_some() && to.0 as usize == plan.buffers.len();
    item.staging = Some(to);
    damage(format!("item {s}/{i} staged in buffer {}", to.0), certain)
}

fn lose_state(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let u = rng.below(plan.states.len().max(1));
    plan.states.get_mut(u)?.pop()?;
    damage(format!("update {u} has a state less"), true)
}

fn wrong_state(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let u = rng.below(plan.states.len().max(1));
    let to = BufferIx(rng.below(plan.buffers.len() + 1) as u32);
    let slot = plan.states.get_mut(u)?.first_mut()?;
    let certain = *slot != to;
    *slot = to;
    damage(format!("state of update {u} in buffer {}", to.0), certain)
}

fn lose_map_output(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    if plan.map_outputs.is_empty() {
        return None;
    }
    let at = rng.below(plan.map_outputs.len());
    plan.map_outputs.remove(at);
    damage(format!("map output {at} lost"), true)
}

fn wrong_map_output(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
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

/// Two steps; outputs of the second, and the parameters then.
fn two_steps(plan: Plan, values: &Tensors<f64>) -> Result<Tensors<f64>, String> {
    let slots = plan.program.state_slots;
    let trained: Vec<String> = (plan.program.updates.iter())
        .map(|u| plan.program.node(u.param).name.clone())
        .collect();
    let rule = if slots == 2 {
        UpdateRule::Adam {
            beta1: 0.9,
            beta2: 0.99,
            eps: 1e-8,
            weight_decay: 0.0,
        }
    } else {
        UpdateRule::Sgd {
            momentum: 0.0,
            nesterov: false,
            weight_decay: 0.0,
        }
    };
    let how = StepHow {
        update: (!trained.is_empty()).then_some((rule, 0.0)),
        ..HOW
    };
    let (mut executor, feeds) = ready(plan, values);
    let mut outputs = Tensors::new();
    for _ in 0..2 {
        outputs = executor
            .step(&feeds, &how, &mut |_| {})
            .map_err(|e| e.to_string())?
            .outputs;
    }
    for name in trained {
        outputs.insert(
            format!("after/{name}"),
            executor.param(&name).map_err(|e| e.to_string())?,
        );
    }
    Ok(outputs)
}

/// Damages a plan many times and judges the verifier's verdicts.
fn check(plan: &Plan, values: &Tensors<f64>, want: &Tensors<f64>, seed: u64) {
    verify(plan).expect("a plan is valid before it is damaged");
    let events = Events::new(plan);
    let mut rng = Rng(seed);
    for _ in 0..MUTANTS {
        let mut mutant = plan.clone();
        let mutation = MUTATIONS[rng.below(MUTATIONS.len())];
        let Some(Damage { what, certain }) = mutation(&mut mutant, &events, &mut rng) else {
            continue;
        };
        let verdict = catch_unwind(AssertUnwindSafe(|| verify(&mutant)))
            .unwrap_or_else(|_| panic!("{what}: the verifier panicked"));
        match verdict {
            Err(violation) => assert!(!violation.instr.is_empty() && !violation.reason.is_empty()),
            Ok(()) if certain => panic!("{what}: accepted"),
            Ok(()) => {
                let got = catch_unwind(AssertUnwindSafe(|| two_steps(mutant, values)));
                match got.unwrap_or_else(|_| panic!("{what}: accepted, but the executor panicked"))
                {
                    Err(e) => panic!("{what}: accepted, but the executor says: {e}"),
                    Ok(got) => {
                        // A lost tile is off by far more than any rounding.
                        let (error, name) = worst(&got, want);
                        assert!(
                            error <= 1e-9,
                            "{what}: accepted, but {name} is off by {error:e}"
                        );
                    }
                }
            }
        }
    }
}

/// A net that also updates its parameters, for every other seed.
fn with_updates(mut net: Net, seed: u64) -> Net {
    if seed.is_multiple_of(2) {
        let leaf = |n: &str| net.tape.by_name(n.strip_prefix("grad/")?);
        let grads = net.spec.outputs.iter().filter_map(|&g| {
            let param = leaf(&net.tape.node(g).name)?;
            matches!(net.tape.node(param).op, Op::Param { .. }).then_some((param, g))
        });
        net.spec.updates = grads.collect();
        net.spec.state_slots = if seed.is_multiple_of(4) { 2 } else { 0 };
    }
    net
}

proptest! {
    #![proptest_config(config(50))]

    /// At least a thousand damaged plans: fifty networks, forty each, of which
    /// some have nothing to damage.
    #[test]
    fn damaged_plans_are_rejected_or_still_right(
        spec in net_specs(),
        strategy in prop::sample::select(Planning::ALL.to_vec()),
        tiers in tiers(),
        squeeze in prop_oneof![Just(0.0), 0.0..0.5f64],
        overlap in any::<bool>(),
    ) {
        let mut net = with_updates(build(&spec, DType::F64, spec.seed % 3 == 0), spec.seed);
        net.machine.copies_overlap = overlap;
        let beyond = tiers.budget(&net);
        if let Some(least) = net.least_in(beyond, strategy) {
            let room = net.all_bytes().saturating_sub(least);
            let device_bytes = least + (room as f64 * squeeze) as u64;
            let plan = match net.plan(Budget { device_bytes, ..beyond }, strategy) {
                Ok(plan) => plan,
                Err(PlanError::HostTooSmall { .. }) => return Ok(()),
                Err(e) => panic!("{e}"),
            };
            let values = leaves::<f64>(&net.tape, spec.seed);
            let mut want = oracle(&net, &values);
            for (param, _) in &net.spec.updates {
                let name = &net.tape.node(*param).name;
                want.insert(format!("after/{name}"), values[name].clone());
            }
            check(&plan, &values, &want, spec.seed);
        }
    }
}

/// Several stages that fetch maps from the host tile by tile, ahead.
const AHEAD: &str = "
x = input [1, 2, 96, 32]
w1 = param [6, 2, 3, 3]
g1 = param [6]
b1 = param [6]
w2 = param [6, 6, 3, 3]
g2 = param [6]
b2 = param [6]
c1 = conv(x, w1) pad=1
m1 = moments(c1) groups=2
n1 = normalise(c1, m1, g1, b1) groups=2 eps=1e-5
r1 = relu(n1)
c2 = conv(r1, w2) pad=1
m2 = moments(c2) groups=2
n2 = normalise(c2, m2, g2, b2) groups=2 eps=1e-5
r2 = relu(n2)
s = sum_map(r2)
";

fn ahead() -> (Net, Plan) {
    let net = Net::parse("f64", AHEAD).with_overlap();
    let budget = Budget {
        device_bytes: 96 << 10,
        host_bytes: AMPLE,
        disk_bytes: 0,
    };
    let plan = net.plan(budget, Planning::OffloadAll).expect("a plan");
    (net, plan)
}

/// The verdict on other instructions than the plan's own.
fn judge(plan: &Plan, instrs: &[Instr]) -> Result<(), Violation> {
    verify_sequence(plan, |visit| {
        for instr in instrs {
            visit(*instr)?;
        }
        ControlFlow::Continue(())
    })
}

#[test]
fn a_fetch_finds_what_was_prefetched_or_is_named() {
    let (_, plan) = ahead();
    let mut instrs = Vec::new();
    let _ = plan.instructions(|instr| {
        instrs.push(instr);
        ControlFlow::<()>::Continue(())
    });
    assert_eq!(judge(&plan, &instrs), Ok(()));
    let prefetches: Vec<usize> = (0..instrs.len())
        .filter(|&k| matches!(instrs[k], Instr::Prefetch { .. }))
        .collect();
    assert!(prefetches.len() >= 20, "{}", plan.explain());
    let item = |k: usize| match instrs[k] {
        Instr::Prefetch { at, .. } | Instr::Fetch { at, .. } => Some(at),
        _ => None,
    };
    let is_fetch = |k: &usize| matches!(instrs[*k], Instr::Fetch { .. });
    let refuse = |instrs: &[Instr], index: usize, named: &str, why: &str| {
        let violation = judge(&plan, instrs).expect_err(why);
        assert_eq!(violation.index, index as u64, "{why}: {violation}");
        assert!(violation.instr.starts_with(named), "{why}: {violation}");
    };
    for &k in &prefetches {
        let of_item = |j: &usize| item(*j) == item(k) && is_fetch(j);
        let fetched = (k..instrs.len()).find(of_item).expect("it is fetched");
        let mut fewer = instrs.clone();
        fewer.remove(k);
        refuse(&fewer, fetched - 1, "fetch", "it is missing");
        let mut late = fewer.clone();
        late.insert(fetched, instrs[k]);
        refuse(&late, fetched - 1, "fetch", "it comes late");
        if let Some(last) = (0..k).rfind(of_item) {
            let mut early = fewer.clone();
            early.insert(last, instrs[k]);
            refuse(
                &early,
                last + 1,
                "fetch",
                "it comes before the last is fetched",
            );
        }
        let Instr::Prefetch { at, region } = instrs[k] else {
            unreachable!("a prefetch");
        };
        let mut other = region;
        let rows = region.span(1);
        other.set(1, sstep_autodiff::Span::new(rows.lo, rows.hi - 1));
        let mut wrong = instrs.clone();
        wrong[k] = Instr::Prefetch { at, region: other };
        refuse(&wrong, fetched, "fetch", "a row of it is missing");
        other.set(1, sstep_autodiff::Span::new(rows.lo, rows.hi + 1000));
        wrong[k] = Instr::Prefetch { at, region: other };
        refuse(&wrong, k, "prefetch", "it passes the staging buffer");
    }
    // A buffer that is a byte short is that for some prefetch.
    for (s, stage) in plan.stages.iter().enumerate() {
        for item in &stage.items {
            let Some(staging) = item.staging else {
                continue;
            };
            let mut short = plan.clone();
            short.buffers[staging.0 as usize].bytes -= 1;
            let violation = verify(&short).expect_err("it is short");
            let (prefetch, store) = (format!("prefetch stage {s} "), format!("store stage {s} "));
            let named =
                violation.instr.starts_with(&prefetch) || violation.instr.starts_with(&store);
            assert!(named, "{violation}");
        }
    }
}

#[test]
fn what_is_staged_is_not_overwritten() {
    let (net, plan) = ahead();
    let values = leaves::<f64>(&net.tape, 1);
    let want = oracle(&net, &values);
    let staging = |b: &&BufferIx| plan.buffer(**b).purpose == Purpose::Staging;
    let all: Vec<BufferIx> = (0..plan.buffers.len() as u32).map(BufferIx).collect();
    let events = Events::new(&plan);
    let (mut refused, mut accepted) = (0, 0);
    for &b in all.iter().filter(staging) {
        for &other in all.iter().filter(|o| **o != b) {
            let mut moved = plan.clone();
            moved.buffers[b.0 as usize].offset = plan.buffer(other).offset;
            let certain = events.clobbers(b, other) || events.clobbers(other, b);
            match verify(&moved) {
                Err(_) => refused += 1,
                Ok(()) => {
                    assert!(!certain, "{b:?} moved onto {other:?}");
                    let (error, name) = worst(&two_steps(moved, &values).expect("steps"), &want);
                    assert!(error <= 1e-9, "{name} is off by {error:e}");
                    accepted += 1;
                }
            }
        }
    }
    assert!(refused > 0 && accepted > 0, "{refused}, {accepted}");
}
