//! The traps that peers fall into, by name.
//!
//! Each is a small fixed net, planned by every strategy at caps from the least
//! possible (tiles as small as they get) to plenty. Gradients must be those of
//! the untiled run to 1e-12; where a few lines of textbook compute them, they
//! must be those too.

mod common;

use common::{AMPLE, Net, Tensors, execute_as_promised, leaves, oracle, worst};
use sstep_planner::{AxisPolicy, Budget, Plan, Strategy};

/// Plans and runs `text` in every way; returns the untiled outputs and all
/// plans.
fn trap(text: &str) -> (Net, Tensors<f64>, Tensors<f64>, Vec<Plan>) {
    trap_net(Net::parse("f64", text))
}

fn trap_net(net: Net) -> (Net, Tensors<f64>, Tensors<f64>, Vec<Plan>) {
    let values = leaves::<f64>(&net.tape, 11);
    let want = oracle(&net, &values);
    let mut plans = Vec::new();
    for strategy in Strategy::ALL {
        for host_bytes in [0, AMPLE] {
            let Some(least) = net.least(host_bytes, strategy) else {
                continue;
            };
            let most = net.all_bytes().max(least);
            for device_bytes in [least, least + (most - least) / 5, most] {
                let plan = net.plan(
                    Budget {
                        device_bytes,
                        host_bytes,
                        disk_bytes: 0,
                    },
                    strategy,
                );
                let plan = plan.unwrap_or_else(|e| panic!("{strategy} at {device_bytes}: {e}"));
                let got = execute_as_promised(plan.clone(), &values);
                let (error, name) = worst(&got, &want);
                assert!(
                    error <= 1e-12,
                    "{strategy} at {device_bytes}: {name} differs by {error:e}\n{}",
                    plan.explain()
                );
                plans.push(plan);
            }
        }
    }
    assert!(plans.len() >= 20);
    (net, values, want, plans)
}

/// Most tiles of any stage of any plan: a trap must have been cut.
fn most_tiles(plans: &[Plan]) -> u64 {
    plans
        .iter()
        .flat_map(|p| &p.stages)
        .map(|s| s.n_tiles())
        .max()
        .unwrap_or(0)
}

fn close(got: &[f64], want: &[f64]) {
    assert_eq!(got.len(), want.len());
    for (g, w) in got.iter().zip(want) {
        assert!(
            (g - w).abs() <= 1e-12 * w.abs().max(1e-3),
            "{got:?} is not {want:?}"
        );
    }
}

/// Gradient of the mean squared difference.
fn mse_grad(y: &[f64], target: &[f64]) -> Vec<f64> {
    let n = y.len() as f64;
    y.iter()
        .zip(target)
        .map(|(y, t)| 2.0 * (y - t) / n)
        .collect()
}

#[test]
fn batch_greater_than_one_bias_gradient() {
    let net = Net::parse(
        "f64",
        "x = input [3, 2, 17, 13]
         w = param [4, 2, 3, 3]
         b = param [4]
         y = conv(x, w, b) pad=1",
    );
    let (_, values, out, plans) = trap_net(net.and("y"));
    assert!(most_tiles(&plans) > 3);
    // The sum over the batch, not its mean, and not the first sample's.
    let gy = mse_grad(&out["y"].data, &values["target"].data);
    let mut bias = [0.0; 4];
    for (plane, gy) in gy.chunks(17 * 13).enumerate() {
        bias[plane % 4] += gy.iter().sum::<f64>();
    }
    close(&out["grad/b"].data, &bias);
}

#[test]
fn image_not_a_multiple_of_the_stride() {
    let (_, _, _, plans) = trap(
        "x = input [1, 3, 37, 41] grad
         w1 = param [4, 3, 7, 7]
         w2 = param [4, 4, 3, 3]
         w3 = param [4, 4, 1, 1]
         a = conv(x, w1) stride=2 pad=3
         b = relu(a)
         c = max_pool(b) kernel=3 stride=2 pad=1
         d = conv(c, w2) stride=2 pad=1
         e = conv(c, w3) stride=2
         f = add(d, e)
         y = avg_pool(f) kernel=2 stride=2",
    );
    assert!(most_tiles(&plans) > 8);
}

#[test]
fn instance_norm_over_tiles() {
    let net = Net::parse(
        "f64",
        "x = input [2, 3, 19, 23]
         w = param [3, 3, 3, 3]
         g = param [3]
         b = param [3]
         c = conv(x, w) pad=1
         m = moments(c) groups=3
         y = normalise(c, m, g, b) groups=3 eps=1e-5",
    );
    let (_, values, out, plans) = trap_net(net.and("y").and("c"));
    assert!(most_tiles(&plans) > 8);
    // Statistics of the whole image: each normalised channel has mean beta.
    let area = 19 * 23;
    for (plane, y) in out["y"].data.chunks(area).enumerate() {
        let mean = y.iter().sum::<f64>() / area as f64;
        close(&[mean], &[values["b"].data[plane % 3]]);
    }
    let gy = mse_grad(&out["y"].data, &values["target"].data);
    let mut gamma = [0.0; 3];
    for (plane, c) in out["c"].data.chunks(area).enumerate() {
        let mean = c.iter().sum::<f64>() / area as f64;
        let var = c.iter().map(|c| (c - mean).powi(2)).sum::<f64>() / area as f64;
        let gy = &gy[plane * area..(plane + 1) * area];
        let dot: f64 = c.iter().zip(gy).map(|(c, g)| (c - mean) * g).sum();
        gamma[plane % 3] += dot / (var + 1e-5).sqrt();
    }
    close(&out["grad/g"].data, &gamma);
}

#[test]
fn group_norm_over_tiles() {
    let (_, _, _, plans) = trap(
        "x = input [2, 2, 21, 18]
         w1 = param [4, 2, 3, 3]
         w2 = param [4, 4, 3, 3]
         g1 = param [4]
         b1 = param [4]
         g2 = param [4]
         b2 = param [4]
         c = conv(x, w1) pad=1
         mc = moments(c) groups=2
         n = normalise(c, mc, g1, b1) groups=2 eps=1e-3
         r = relu(n)
         d = conv(r, w2) pad=1
         md = moments(d) groups=1
         y = normalise(d, md, g2, b2) groups=1 eps=1e-3",
    );
    assert!(most_tiles(&plans) > 8);
}

#[test]
fn batch_norm_over_tiles_and_batch() {
    let net = Net::parse(
        "f64",
        "x = input [3, 2, 16, 15]
         w = param [3, 2, 3, 3]
         g = param [3]
         b = param [3]
         c = conv(x, w) stride=[2, 1] pad=1
         m = moments(c) batch
         y = normalise(c, m, g, b) batch eps=1e-3",
    );
    let (_, values, out, plans) = trap_net(net.and("y"));
    // Cut between samples too, where one statistic spans them.
    assert!(plans.iter().flat_map(|p| &p.stages).any(|s| {
        s.grid
            .first()
            .is_some_and(|g| g.policy != AxisPolicy::Whole)
    }));
    let gy = mse_grad(&out["y"].data, &values["target"].data);
    let area = out["y"].shape.spatial().iter().product();
    let mut beta = [0.0; 3];
    for (plane, gy) in gy.chunks(area).enumerate() {
        beta[plane % 3] += gy.iter().sum::<f64>();
    }
    close(&out["grad/b"].data, &beta);
}

#[test]
fn dilated_conv() {
    let (_, _, _, plans) = trap(
        "x = input [1, 2, 31, 29] grad
         w1 = param [3, 2, 3, 3]
         w2 = param [3, 3, 3, 3]
         w3 = param [2, 3, 2, 3]
         a = conv(x, w1) dilation=4 pad=4
         b = relu(a)
         c = conv(b, w2) dilation=[2, 3] pad=[2, 3] stride=2
         y = conv(c, w3) dilation=[3, 1]",
    );
    assert!(most_tiles(&plans) > 8);
}

#[test]
fn kernel_1x5() {
    let (_, _, _, plans) = trap(
        "x = input [1, 2, 18, 27] grad
         w1 = param [3, 2, 1, 5]
         w2 = param [3, 3, 5, 1]
         a = conv(x, w1) pad=[0, 2]
         b = tanh(a)
         y = conv(b, w2) pad=[2, 0] stride=[1, 2]",
    );
    assert!(most_tiles(&plans) > 8);
}

#[test]
fn transposed_conv() {
    let (_, _, _, plans) = trap(
        "x = input [2, 2, 9, 11] grad
         w1 = param [2, 3, 2, 2]
         w2 = param [3, 2, 3, 4]
         b1 = param [3]
         b2 = param [2]
         a = conv_transpose(x, w1, b1) stride=2 out=[18, 22]
         b = relu(a)
         y = conv_transpose(b, w2, b2) stride=[1, 3] pad=[1, 0] dilation=[1, 2] out=[18, 70]",
    );
    assert!(most_tiles(&plans) > 8);
}

#[test]
fn unet_concat_and_upsample() {
    let (_, _, _, plans) = trap(
        "x = input [1, 1, 24, 32]
         w1 = param [4, 1, 3, 3]
         w2 = param [8, 4, 3, 3]
         w3 = param [8, 8, 3, 3]
         w4 = param [4, 12, 3, 3]
         w5 = param [1, 4, 1, 1]
         c1 = conv(x, w1) pad=1
         r1 = relu(c1)
         p1 = max_pool(r1) kernel=2 stride=2
         c2 = conv(p1, w2) pad=1
         r2 = relu(c2)
         p2 = max_pool(r2) kernel=2 stride=2
         c3 = conv(p2, w3) pad=1
         r3 = relu(c3)
         u2 = upsample(r3) factor=2 mode=linear
         s2 = add(u2, r2)
         u1 = upsample(s2) factor=2
         k1 = concat(r1, u1)
         c4 = conv(k1, w4) pad=1
         r4 = relu(c4)
         y = conv(r4, w5)
         target = input [1, 1, 24, 32]
         l = bce(y, target)",
    );
    assert!(most_tiles(&plans) > 8);
}

#[test]
fn squeeze_excite() {
    let (_, _, _, plans) = trap(
        "x = input [2, 3, 22, 17]
         w = param [4, 3, 3, 3]
         f1 = param [2, 4]
         e1 = param [2]
         f2 = param [4, 2]
         c = conv(x, w) pad=1 stride=2
         s = sum_map(c)
         m = scale(s) factor=0.0101010101
         h = linear(m, f1, e1)
         r = relu(h)
         k = linear(r, f2)
         g = sigmoid(k)
         q = mul(c, g)
         y = add(q, c)",
    );
    assert!(most_tiles(&plans) > 8);
}

#[test]
fn tile_smaller_than_the_halo() {
    let (_, _, _, plans) = trap(
        "x = input [1, 1, 40, 33] grad
         w1 = param [2, 1, 9, 9]
         w2 = param [2, 2, 7, 7]
         w3 = param [1, 2, 5, 5]
         a = conv(x, w1) pad=4
         b = relu(a)
         c = conv(b, w2) pad=3
         d = silu(c)
         y = conv(d, w3) pad=2",
    );
    // The halo above the input is 9 on either side.
    let below = |s: &sstep_planner::Stage| {
        s.items.len() > 3 && s.grid.iter().skip(1).all(|g| g.tile <= 4 || g.extent <= 4)
    };
    assert!(plans.iter().flat_map(|p| &p.stages).any(below));
}

#[test]
fn stride_larger_than_the_kernel() {
    let (_, _, _, plans) = trap(
        "x = input [2, 2, 29, 31] grad
         w1 = param [3, 2, 2, 1]
         w2 = param [2, 3, 1, 1]
         a = conv(x, w1) stride=[3, 2]
         b = avg_pool(a) kernel=1 stride=2
         c = max_pool(a) kernel=1 stride=2
         d = add(b, c)
         y = conv(d, w2) stride=2",
    );
    assert!(most_tiles(&plans) > 4);
}

#[test]
fn odd_sizes_in_3d() {
    let (_, _, _, plans) = trap(
        "x = input [2, 1, 7, 11, 9] grad
         w1 = param [2, 1, 3, 3, 3]
         w2 = param [3, 2, 1, 2, 3]
         b2 = param [3]
         a = conv(x, w1) pad=1 stride=[1, 2, 1]
         b = relu(a)
         c = max_pool(b) kernel=[2, 2, 3] stride=[2, 1, 2] pad=[0, 1, 1]
         y = conv(c, w2, b2) pad=[0, 1, 1]",
    );
    assert!(most_tiles(&plans) > 8);
}

#[test]
fn global_max_pool_with_ties() {
    // Constant rows: every position of a row of tiles holds the same maximum.
    // The first in row-major order gets the gradient, however tiles fall.
    let net = Net::parse(
        "f64",
        "x = input [2, 2, 16, 16] grad
         z = scale(x) factor=0
         h = relu(z)
         p = global_max(h)
         y = slice(p) start=[0] len=[2]",
    );
    let (net, values, out, _) = trap_net(net.and("y"));
    assert!(out["grad/x"].data.iter().all(|&g| g == 0.0));
    drop((net, values));
    let net = Net::parse(
        "f64",
        "x = input [2, 2, 16, 16] grad
         r = relu(x)
         s = max_pool(r) kernel=5 stride=1 pad=2
         p = global_max(s)
         y = slice(p) start=[0] len=[2]",
    );
    // Overlapping windows repeat each maximum up to 25 times.
    let (_, values, out, plans) = trap_net(net.and("y"));
    assert!(most_tiles(&plans) > 4);
    let gy = mse_grad(&out["y"].data, &values["target"].data);
    for (plane, x) in values["x"].data.chunks(256).enumerate() {
        let top = x.iter().copied().fold(f64::MIN, f64::max);
        let at = x.iter().position(|&v| v == top).expect("a maximum");
        let mut want = vec![0.0; 256];
        want[at] = gy[plane];
        close(&out["grad/x"].data[plane * 256..(plane + 1) * 256], &want);
    }
}

#[test]
fn dropout_repeats_its_mask_when_recomputed() {
    let net = Net::parse(
        "f64",
        "x = input [2, 3, 20, 18] grad
         w = param [3, 3, 3, 3]
         d1 = dropout(x) p=0.3 key=1
         c = conv(d1, w) pad=1
         r = tanh(c)
         y = dropout(r) p=0.5 key=2",
    );
    let (_, values, out, plans) = trap_net(net.and("y").and("d1"));
    // The gradient is dropped where the value was.
    assert!(most_tiles(&plans) > 8);
    let dropped = out["d1"].data.iter().zip(&out["grad/x"].data);
    assert!(
        dropped
            .clone()
            .filter(|(d, _)| **d == 0.0)
            .all(|(_, g)| *g == 0.0)
    );
    let n = values["x"].data.len();
    let share = dropped.filter(|(d, _)| **d == 0.0).count() as f64 / n as f64;
    assert!((0.2..0.4).contains(&share), "{share}");
}
