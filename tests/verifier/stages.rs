//! Damage to stages: their order, their items and stores, their tiles.

use std::collections::BTreeSet;

use sstep_planner::{AxisPolicy, ItemRole, NodeIx, Plan, StageItem, Value};

use crate::common::Rng;
use crate::common::events::Events;
use crate::damage::{Damage, damage, is_read_from, item, pick};

/// What a stage makes for others: flat results, and maps by their homes.
fn makes(plan: &Plan, s: usize) -> BTreeSet<NodeIx> {
    let made = plan.stages[s].items.iter().filter(|i| {
        let stored = !i.stores.is_empty()
            || (i.role == ItemRole::Compute && matches!(i.value, Value::Whole(_)));
        stored || matches!(i.role, ItemRole::Flat | ItemRole::Reduce)
    });
    made.map(|i| i.node).collect()
}

pub fn swap_stages(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
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

pub fn drop_stage(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let s = rng.below(plan.stages.len());
    let mut wanted: BTreeSet<NodeIx> = events.reads[s + 1..].iter().flatten().copied().collect();
    wanted.extend(&plan.program.outputs);
    wanted.extend(plan.program.updates.iter().map(|u| u.grad));
    let certain = !makes(plan, s).is_disjoint(&wanted);
    plan.stages.remove(s);
    damage(format!("stage {s} dropped"), certain)
}

pub fn duplicate_stage(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let s = rng.below(plan.stages.len());
    let stage = plan.stages[s].clone();
    let certain = stage.items.iter().any(|i| !i.stores.is_empty());
    plan.stages.insert(s, stage);
    damage(format!("stage {s} run twice"), certain)
}

pub fn drop_store(plan: &mut Plan, events: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |i| !i.stores.is_empty())?;
    let stores = &mut plan.stages[s].items[i].stores;
    let home = stores.remove(rng.below(stores.len()));
    let certain = is_read_from(plan, events, plan.stages[s].items[i].node, home);
    damage(format!("store {s}/{i} to {home:?} dropped"), certain)
}

pub fn duplicate_store(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |i| !i.stores.is_empty())?;
    let stores = &mut plan.stages[s].items[i].stores;
    stores.push(stores[0]);
    damage(format!("store {s}/{i} made twice"), true)
}

pub fn drop_item(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |_| true)?;
    plan.stages[s].items.remove(i);
    damage(format!("item {s}/{i} dropped"), true)
}

pub fn duplicate_item(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
    let (s, i) = item(plan, rng, |_| true)?;
    let copy = plan.stages[s].items[i].clone();
    plan.stages[s].items.insert(i, copy);
    damage(format!("item {s}/{i} listed twice"), true)
}

pub fn swap_items(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
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

pub fn change_tile(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
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

pub fn cut_no_axis(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
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

pub fn change_policy(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
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

pub fn change_extent(plan: &mut Plan, _: &Events, rng: &mut Rng) -> Option<Damage> {
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
