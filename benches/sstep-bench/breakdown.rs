//! Where a step's time went, by family of kernels.

use std::collections::BTreeMap;

use sstep::{Plan, Spent, Timings};
use sstep_autodiff::{ConvAttrs, Op};
use sstep_planner::NodeIx;

use crate::table::{Cell, Table};

/// What a family took.
#[derive(Default)]
struct Family {
    calls: u64,
    secs: f64,
    flops: f64,
    bytes: f64,
}

/// One row per family of kernels or copies, the dearest first. FLOPs are those
/// of direct sums; bytes are what a kernel must read and write at least.
pub fn table(plan: &Plan, timings: &Timings) -> Table {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for n in plan.program.indices() {
        let spent = &timings.nodes[n.ix()];
        if spent.secs == 0.0 {
            continue;
        }
        let node = plan.program.node(n);
        let family = families.entry(name(&node.op)).or_default();
        family.calls += spent.calls;
        family.secs += spent.secs;
        family.flops += plan.program.flops(n, spent.amount);
        family.bytes += touched(plan, n, spent.amount);
    }
    let copies: [(&str, &Spent); 8] = [
        ("(source)", &timings.source),
        ("(upload)", &timings.upload),
        ("(download)", &timings.download),
        ("(disk read)", &timings.disk_read),
        ("(disk write)", &timings.disk_write),
        ("(store)", &timings.store),
        ("(staging)", &timings.staging),
        ("(slide)", &timings.slide),
    ];
    for (name, spent) in copies.into_iter().filter(|(_, s)| s.calls > 0) {
        let family = families.entry(name.to_owned()).or_default();
        family.calls = spent.calls;
        family.secs = spent.secs;
        // Read and written.
        family.bytes = 2.0 * spent.amount as f64;
    }
    let total: f64 = families.values().map(|f| f.secs).sum();
    let mut families: Vec<_> = families.into_iter().collect();
    families.sort_by(|a, b| b.1.secs.total_cmp(&a.1.secs));
    let mut table = Table::new(&["family", "calls", "secs", "share", "gflops", "gb_per_s"]);
    for (name, f) in families {
        table.row(vec![
            name.into(),
            f.calls.into(),
            Cell::number(f.secs, 4),
            Cell::number(f.secs / total, 3),
            Cell::number(f.flops / f.secs / 1e9, 1),
            Cell::number(f.bytes / f.secs / 1e9, 1),
        ]);
    }
    table
}

/// An op's name; of a convolution also its kernel, stride and algorithm.
fn name(op: &Op) -> String {
    let conv = |a: &ConvAttrs| {
        format!(
            "{} {}x{} /{} {:?}",
            op.name(),
            a.kernel[0],
            a.kernel[1],
            a.stride[0],
            a.algo
        )
    };
    match op {
        Op::Conv(a) | Op::ConvWeightGrad(a) => conv(a),
        Op::ConvTranspose(a) => conv(&a.conv),
        op => op.name().to_owned(),
    }
}

/// Bytes of a node's maps over the part of its positions that was computed.
fn touched(plan: &Plan, n: NodeIx, points: u64) -> f64 {
    let part = points as f64 / plan.program.points(n) as f64;
    let node = plan.program.node(n);
    let inputs = plan.program.input_tys(n);
    let maps = inputs.iter().chain([&node.ty]).filter(|ty| ty.is_map());
    part * maps.map(|ty| ty.bytes()).sum::<u64>() as f64
}
