//! What plans look like: shapes that the design promises, and a few golden
//! explanations. `UPDATE_GOLDEN=1` writes the latter anew.

mod common;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;

use common::{AMPLE, Net};
use sstep_autodiff::{Op, Region};
use sstep_planner::{AxisPolicy, Budget, Instr, ItemRole, Plan, Purpose, Stage, Strategy};

/// Convolutions, frozen norms and pools down to a pooled vector.
const FROZEN: &str = "
x = input [1, 3, 1024, 1024]
w1 = param [16, 3, 3, 3]
g1 = param [16] frozen
b1 = param [16] frozen
mean1 = param [16] frozen
var1 = param [16] frozen
w2 = param [32, 16, 3, 3]
w3 = param [32, 32, 3, 3]
fc = param [3, 32]
c1 = conv(x, w1) stride=2 pad=1
m1 = pack_moments(mean1, var1)
n1 = normalise(c1, m1, g1, b1) batch eps=1e-5 frozen
r1 = relu(n1)
p1 = max_pool(r1) kernel=2 stride=2
c2 = conv(p1, w2) pad=1
r2 = relu(c2)
c3 = conv(r2, w3) stride=2 pad=1
r3 = relu(c3)
s = sum_map(r3)
h = scale(s) factor=6.1e-5
y = linear(h, fc)
labels = input [1, 1]
l = cross_entropy(y, labels)
";

/// Two convolutions with group norm over the whole image.
const GROUP_NORM: &str = "
x = input [1, 3, 512, 512]
w1 = param [8, 3, 3, 3]
g1 = param [8]
b1 = param [8]
w2 = param [8, 8, 3, 3]
g2 = param [8]
b2 = param [8]
fc = param [3, 8]
c1 = conv(x, w1) pad=1
m1 = moments(c1) groups=4
n1 = normalise(c1, m1, g1, b1) groups=4 eps=1e-5
r1 = relu(n1)
c2 = conv(r1, w2) pad=1
m2 = moments(c2) groups=4
n2 = normalise(c2, m2, g2, b2) groups=4 eps=1e-5
r2 = relu(n2)
s = sum_map(r2)
h = scale(s) factor=3.8e-6
y = linear(h, fc)
labels = input [1, 1]
l = cross_entropy(y, labels)
";

/// Two levels of a U-Net.
const UNET: &str = "
x = input [1, 1, 256, 256]
w1 = param [8, 1, 3, 3]
w2 = param [16, 8, 3, 3]
w3 = param [32, 16, 3, 3]
w4 = param [16, 48, 3, 3]
w5 = param [8, 24, 3, 3]
w6 = param [1, 8, 1, 1]
c1 = conv(x, w1) pad=1
r1 = relu(c1)
p1 = max_pool(r1) kernel=2 stride=2
c2 = conv(p1, w2) pad=1
r2 = relu(c2)
p2 = max_pool(r2) kernel=2 stride=2
c3 = conv(p2, w3) pad=1
r3 = relu(c3)
u2 = upsample(r3) factor=2
k2 = concat(r2, u2)
c4 = conv(k2, w4) pad=1
r4 = relu(c4)
u1 = upsample(r4) factor=2
k1 = concat(r1, u1)
c5 = conv(k1, w5) pad=1
r5 = relu(c5)
y = conv(r5, w6)
target = input [1, 1, 256, 256]
l = bce(y, target)
";

fn planned(text: &str, device_bytes: u64, host_bytes: u64, strategy: Strategy) -> Plan {
    let net = Net::parse("f32", text);
    let plan = net.plan(
        Budget {
            device_bytes,
            host_bytes,
            disk_bytes: 0,
        },
        strategy,
    );
    plan.unwrap_or_else(|e| panic!("{e}"))
}

/// Stages that loop over tiles of maps.
fn loops(plan: &Plan) -> Vec<&Stage> {
    plan.stages.iter().filter(|s| !s.grid.is_empty()).collect()
}

#[test]
fn a_chain_of_frozen_norms_is_one_forward_and_one_carried_backward_stage() {
    let plan = planned(FROZEN, 4 << 20, 0, Strategy::Optimal);
    let loops = loops(&plan);
    assert_eq!(loops.len(), 2, "{}", plan.explain());
    assert!(plan.host.is_empty());
    // All weight gradients come from the one backward loop, which re-runs the
    // forward pass just ahead of the gradient and computes no halo twice along
    // the rows.
    let weights = |s: &Stage| {
        let is = |i: &&sstep_planner::StageItem| {
            matches!(plan.program.node(i.node).op, Op::ConvWeightGrad(_))
        };
        s.items.iter().filter(is).count()
    };
    assert_eq!((weights(loops[0]), weights(loops[1])), (0, 3));
    assert_eq!(
        loops[1].grid[1].policy,
        AxisPolicy::Carry,
        "{}",
        plan.explain()
    );
    assert!(
        plan.predicted.flops < 1.6 * plan.predicted.flops_once,
        "{}",
        plan.summary()
    );
    assert!(plan.predicted.untiled_bytes > 4 * plan.predicted.peak_bytes);
}

#[test]
fn norms_over_the_image_are_barriers() {
    for strategy in Strategy::ALL {
        let plan = planned(GROUP_NORM, 64 << 20, AMPLE, strategy);
        let mut done: BTreeSet<_> = BTreeSet::new();
        for stage in &plan.stages {
            for item in &stage.items {
                for input in &plan.program.node(item.node).inputs {
                    let waits = plan.program.is_reduction(*input)
                        && !matches!(item.role, ItemRole::Supply(_));
                    let inside = stage.items.iter().any(|i| i.node == *input);
                    assert!(
                        !waits || (done.contains(input) && !inside),
                        "{}",
                        plan.explain()
                    );
                }
            }
            done.extend(stage.items.iter().map(|i| i.node));
        }
        // Two norms forward, the pooled vector, two norms backward.
        assert!(loops(&plan).len() >= 5, "{strategy}: {}", plan.explain());
    }
}

#[test]
fn without_barriers_a_u_net_is_one_loop() {
    // The loss is pointwise, so its gradient does not wait for its value. Where maps
    // may be stored, several loops can be faster.
    let plan = planned(UNET, 4 << 20, 0, Strategy::RecomputeAll);
    assert_eq!(loops(&plan).len(), 1, "{}", plan.explain());
    assert!(plan.predicted.untiled_bytes > 4 * plan.predicted.peak_bytes);
}

#[test]
fn the_skips_of_a_u_net_live_long() {
    let plan = planned(UNET, 1 << 30, 0, Strategy::StoreAll);
    // Buffers are live from a tick to a tick, one for each node of the loop.
    let life = |name: &str| {
        let is_it =
            |b: &&sstep_planner::Buffer| b.node.is_some_and(|n| plan.program.node(n).name == name);
        let all = plan
            .buffers
            .iter()
            .filter(is_it)
            .map(|b| b.live.1 - b.live.0);
        all.max().unwrap_or_else(|| panic!("{name} has no buffer"))
    };
    let (outer, inner, bottom) = (life("r1"), life("r2"), life("r3"));
    assert!(outer > inner && inner > bottom, "{outer} {inner} {bottom}");
}

#[test]
fn strategies_keep_their_word() {
    for (text, cap) in [(FROZEN, 1 << 30), (GROUP_NORM, 1 << 30), (UNET, 1 << 30)] {
        let store_all = planned(text, cap, AMPLE, Strategy::StoreAll);
        assert!(store_all.host.is_empty());
        assert!(store_all.stages.iter().all(|s| s.n_tiles() <= 1));
        let recomputes: usize = store_all
            .explained()
            .stages
            .iter()
            .map(|s| s.recomputes)
            .sum();
        assert_eq!(recomputes, 0, "{}", store_all.explain());

        let recompute_all = planned(text, 16 << 20, AMPLE, Strategy::RecomputeAll);
        assert!(recompute_all.host.is_empty());
        let stored = |b: &sstep_planner::Buffer| b.purpose == Purpose::Stored;
        assert!(!recompute_all.buffers.iter().any(stored));

        // Between barriers nothing needs to leave the loop.
        let offload_all = planned(text, 16 << 20, AMPLE, Strategy::OffloadAll);
        assert_eq!(offload_all.host.is_empty(), loops(&offload_all).len() == 1);
        assert!(!offload_all.buffers.iter().any(stored));

        let streaming = planned(text, 16 << 20, AMPLE, Strategy::Streaming);
        let policies = streaming
            .stages
            .iter()
            .flat_map(|s| s.grid.iter().map(|g| g.policy));
        assert!(policies.clone().all(|p| p != AxisPolicy::Carry));

        // Nobody is predicted faster than the one who may do everything.
        let optimal = planned(text, 16 << 20, AMPLE, Strategy::Optimal);
        for other in [&recompute_all, &offload_all, &streaming] {
            let slack = 1.0 + optimal.gap.max(0.03);
            assert!(
                optimal.predicted.secs <= other.predicted.secs * slack,
                "{}\n{}",
                optimal.summary(),
                other.summary()
            );
        }
    }
}

/// What an item does with its staging buffer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Step {
    Ahead(Region),
    Fetched(Region),
}

#[test]
fn what_a_tile_fetches_is_copied_while_the_one_before_is_computed() {
    let budget = Budget {
        device_bytes: 8 << 20,
        host_bytes: AMPLE,
        disk_bytes: 0,
    };
    let net = Net::parse("f32", GROUP_NORM).with_overlap();
    let plan = net.plan(budget, Strategy::OffloadAll).expect("a plan");
    let mut n_staged = 0;
    for (s, stage) in plan.stages.iter().enumerate() {
        let staged: Vec<usize> = (0..stage.items.len())
            .filter(|&i| stage.items[i].staged_fetch().is_some())
            .collect();
        n_staged += staged.len();
        let mut steps = vec![Vec::new(); stage.items.len()];
        let (mut computed, mut ahead_at) = (0, vec![0; stage.items.len()]);
        let _ = plan.stage_instructions(s, &mut |instr| {
            match instr {
                Instr::Prefetch { at, region } => {
                    steps[at.item as usize].push(Step::Ahead(region));
                    ahead_at[at.item as usize] = computed;
                }
                Instr::Fetch { at, region, .. } if staged.contains(&(at.item as usize)) => {
                    let item = &mut steps[at.item as usize];
                    // All but the first have kernels to run beside.
                    if item.len() > 1 {
                        assert!(ahead_at[at.item as usize] < computed, "{}", plan.explain());
                    }
                    item.push(Step::Fetched(region));
                }
                Instr::Compute { .. } | Instr::Accumulate { .. } => computed += 1,
                _ => {}
            }
            ControlFlow::<()>::Continue(())
        });
        for &i in &staged {
            let mut largest = 0;
            for pair in steps[i].chunks(2) {
                let [Step::Ahead(a), Step::Fetched(b)] = pair else {
                    panic!("{pair:?}");
                };
                assert_eq!(a, b);
                largest = largest.max(a.points());
            }
            let ty = plan.program.node(stage.items[i].node).ty;
            let bytes = largest * (ty.shape.channels() * ty.dtype.bytes()) as u64;
            let b = plan.buffer(stage.items[i].staging.expect("it is staged"));
            assert_eq!((b.purpose, b.bytes), (Purpose::Staging, bytes));
        }
        let c = &stage.cost;
        let in_turn_secs = c.compute_secs + c.h2d_secs + c.d2h_secs;
        let longest_secs = c.compute_secs.max(c.h2d_secs).max(c.d2h_secs);
        assert!(c.secs <= in_turn_secs && c.secs >= longest_secs);
        if stage.overlaps() {
            assert!(c.secs < in_turn_secs, "{}", plan.explain());
            assert!(plan.explain().contains("bound by"));
        }
    }
    assert!(n_staged >= 4, "{}", plan.explain());
}

#[test]
fn where_memory_is_short_nothing_is_fetched_ahead() {
    let least = |net: Net| net.least(AMPLE, Strategy::Optimal).expect("ample memory");
    let in_turn = least(Net::parse("f32", UNET));
    let net = Net::parse("f32", UNET).with_overlap();
    let device_bytes = least(net);
    assert!(
        device_bytes <= in_turn,
        "{device_bytes} bytes, in turn {in_turn}"
    );
}

/// Compares with `tests/golden/<name>.txt`.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/{name}.txt"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(&path, text).expect("a writable file");
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        text == expected,
        "{name} is now\n{text}\nnot\n{expected}\nset UPDATE_GOLDEN=1 if that is meant"
    );
}

#[test]
fn explanations_are_as_before() {
    let cases = [
        ("frozen-chain-6MiB", FROZEN, 6 << 20, 0, Strategy::Optimal),
        (
            "group-norm-8MiB-host",
            GROUP_NORM,
            8 << 20,
            AMPLE,
            Strategy::Optimal,
        ),
        (
            "group-norm-store-all",
            GROUP_NORM,
            1 << 30,
            0,
            Strategy::StoreAll,
        ),
        ("unet-2MiB-host", UNET, 2 << 20, AMPLE, Strategy::Optimal),
    ];
    for (name, text, device_bytes, host_bytes, strategy) in cases {
        golden(
            name,
            &planned(text, device_bytes, host_bytes, strategy).explain(),
        );
    }
}
