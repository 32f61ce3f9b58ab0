//! Damage to memory: buffers and windows, the host, the disk, the caps.

use sstep_planner::{BufferIx, Home, HostIx, NodeIx, Plan, Purpose, Value};

use crate::common::Rng;
use crate::common::events::Events;
use crate::damage::{Damage, buffer, damage, item, reads_from};

pub fn move_buffer_onto_another(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
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

pub fn move_buffer_out_of_the_arena(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let b = buffer(plan, rng)?;
    let to = [plan.budget.device_bytes, u64::MAX - 63, u64::MAX, 1 << 60][rng.below(4)];
    plan.buffers[b.0 as usize].offset = to;
    damage(format!("buffer {} moved to {to}", b.0), true)
}

pub fn misalign_buffer(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let b = buffer(plan, rng)?;
    plan.buffers[b.0 as usize].offset += 1;
    damage(format!("buffer {} moved by a byte", b.0), events.is_used(b))
}

pub fn shrink_buffer(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
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

pub fn shrink_window(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
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

pub fn widen_window(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
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

pub fn release_host_early(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
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

pub fn retarget_host_tensor(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let h = rng.below(plan.host.len().max(1));
    let n = NodeIx(rng.below(plan.program.nodes.len() + 1) as u32);
    let tensor = plan.host.get_mut(h)?;
    let certain = tensor.node != n && events.is_stored(h);
    tensor.node = n;
    damage(format!("host tensor {h} is of node {}", n.0), certain)
}

pub fn lower_the_cap(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let used = (0..plan.buffers.len() as u32).filter(|&b| events.is_used(BufferIx(b)));
    let ends = used.map(|b| plan.buffers[b as usize].offset + plan.buffers[b as usize].bytes);
    plan.budget.device_bytes = ends.max()?.saturating_sub(1 + rng.bits() % 100);
    damage("device cap lowered below use", true)
}

pub fn lower_the_host_cap(plan: &mut Plan, events: &Events, _: &mut Rng) -> Option<Damage> {
    plan.budget.host_bytes = events.host_peak_bytes(plan).checked_sub(1)?;
    damage("host cap lowered below use", true)
}

pub fn move_on_disk(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
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

pub fn move_off_the_disk(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let cap = plan.budget.disk_bytes;
    let d = rng.below(plan.disk.len().max(1));
    let tensor = plan.disk.get_mut(d)?;
    tensor.offset = [cap, cap - tensor.bytes + 1, u64::MAX - 7][rng.below(3)];
    damage(format!("disk tensor {d} moved to {}", tensor.offset), true)
}

pub fn shrink_on_disk(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let d = rng.below(plan.disk.len().max(1));
    let tensor = plan.disk.get_mut(d)?;
    let by = 1 + rng.bits() % tensor.bytes;
    tensor.bytes -= by;
    damage(
        format!("disk tensor {d} shrunk by {by}"),
        events.is_spilled(d),
    )
}

pub fn retarget_disk_tensor(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let d = rng.below(plan.disk.len().max(1));
    let n = NodeIx(rng.below(plan.program.nodes.len() + 1) as u32);
    let tensor = plan.disk.get_mut(d)?;
    let certain = tensor.node != n && events.is_spilled(d);
    tensor.node = n;
    damage(format!("disk tensor {d} is of node {}", n.0), certain)
}

pub fn lower_the_disk_cap(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let ends = plan.disk.iter().map(|d| d.offset + d.bytes);
    plan.budget.disk_bytes = ends.max()?.saturating_sub(1 + rng.bits() % 100);
    damage("disk cap lowered below use", true)
}
