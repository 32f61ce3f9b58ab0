//! Every gradient against central differences, in f64.
//!
//! The gradient is what the tape says, run by the untiled reference; the
//! difference is of two losses of the forward part alone. Both come from the
//! same forward kernels, which are held against the textbook in their own
//! crate; here it is the reverse sweep that is judged.

mod common;

use std::collections::BTreeSet;

use common::nets::{build, net_specs};
use common::{HOW, Net, Rng, Tensors, config, leaves, oracle};
use proptest::prelude::*;
use sstep_autodiff::{DType, Op};
use sstep_executor::reference;
use sstep_planner::{Program, StepSpec};

/// Step of the differences: their error, about `STEP²`, is far below the
/// tolerance, and so is that of rounding, about `1e-16 / STEP`.
const STEP: f64 = 1e-5;

/// Allowed difference, relative to the size of the gradient.
const TOLERANCE: f64 = 1e-6;

/// Allowed besides: `STEP²` times a third derivative of order ten, and rounding
/// of a loss of order one over `STEP`.
const NOISE: f64 = 1e-9;

/// Leaves of up to this many elements are checked element by element.
const FEW: usize = 40;

/// Random directions per net.
const DIRECTIONS: usize = 6;

/// A loss as a function of its leaves, and its gradients.
struct Checked {
    forward: Program,
    values: Tensors<f64>,
    grads: Tensors<f64>,
}

impl Checked {
    fn new(net: &Net, seed: u64) -> Self {
        let spec = StepSpec {
            outputs: vec![net.loss],
            ..StepSpec::default()
        };
        let values = leaves::<f64>(&net.tape, seed);
        let grads = oracle(net, &values).into_iter();
        let grads = grads.filter_map(|(n, t)| Some((n.strip_prefix("grad/")?.to_owned(), t)));
        let forward = Program::new(&net.tape, &spec).expect("a program");
        Checked {
            forward,
            grads: grads.collect(),
            values,
        }
    }

    /// `(L(x + hd) − L(x − hd)) / 2h`.
    fn slope(&self, direction: &Tensors<f64>, h: f64) -> f64 {
        let loss = |h: f64| {
            let mut moved = self.values.clone();
            for (name, d) in direction {
                let t = moved.get_mut(name).expect("a leaf");
                for (v, d) in t.data.iter_mut().zip(&d.data) {
                    *v += h * d;
                }
            }
            let out = reference(&self.forward, &moved, HOW.step, HOW.seed).expect("a reference");
            out.values().next().expect("a loss").data[0]
        };
        (loss(h) - loss(-h)) / (2.0 * h)
    }

    /// Whether differences could judge the gradient along `direction`; they
    /// cannot across a kink, where two steps disagree about the slope.
    fn along(&self, direction: &Tensors<f64>, scale: f64, what: &str) -> bool {
        let mut expected = 0.0;
        for (name, d) in direction {
            let pairs = self.grads[name].data.iter().zip(&d.data);
            expected += pairs.map(|(g, d)| g * d).sum::<f64>();
        }
        let found = self.slope(direction, STEP);
        let close = |a: f64, b: f64| (a - b).abs() <= TOLERANCE * scale + NOISE;
        if close(found, expected) {
            return true;
        }
        let again = self.slope(direction, STEP / 8.0);
        assert!(
            !close(found, again),
            "{what}: the gradient says {expected:e}, the difference {found:e}"
        );
        close(again, expected)
    }

    /// Checks along random directions, and element by element where there are
    /// few. Returns how many checks were made, and how many met a kink.
    fn check(&self, seed: u64) -> (usize, usize) {
        let mut rng = Rng(seed ^ 0x5eed);
        let (mut made, mut kinks) = (0, 0);
        let mut count = |ok: bool| {
            made += 1;
            kinks += usize::from(!ok);
        };
        let norm = |t: &Tensors<f64>| {
            t.values()
                .flat_map(|t| &t.data)
                .map(|g| g * g)
                .sum::<f64>()
                .sqrt()
        };
        for _ in 0..DIRECTIONS {
            let mut direction = self.grads.clone();
            for d in direction.values_mut().flat_map(|t| &mut t.data) {
                *d = if rng.bits().is_multiple_of(2) {
                    1.0
                } else {
                    -1.0
                };
            }
            count(self.along(&direction, norm(&self.grads), "all leaves"));
        }
        for (name, grad) in &self.grads {
            let largest = grad.data.iter().fold(0.0f64, |m, g| m.max(g.abs()));
            let n = grad.data.len();
            for i in (0..n).filter(|i| n <= FEW || i % (n / 4) == 0) {
                let mut unit = grad.clone();
                unit.data.fill(0.0);
                unit.data[i] = 1.0;
                let direction = Tensors::from([(name.clone(), unit)]);
                count(self.along(&direction, largest, &format!("{name}[{i}]")));
            }
        }
        (made, kinks)
    }
}

/// One small tape per op and variant; the last line is the loss, or is compared
/// with a target.
const TAPES: &[&str] = &[
    // --- convolutions -------------------------------------------------------
    "x = input [2, 2, 9] grad
     w = param [3, 2, 3]
     b = param [3]
     y = conv(x, w, b) stride=2 pad=1",
    "x = input [1, 3, 11] grad
     w = param [3, 1, 4]
     y = conv(x, w) dilation=2 pad_lo=[3] pad_hi=[1] groups=3",
    "x = input [2, 2, 7, 6] grad
     w = param [3, 2, 3, 2]
     b = param [3]
     y = conv(x, w, b) stride=[2, 1] pad_lo=[1, 0] pad_hi=[0, 2]",
    "x = input [1, 4, 8, 9] grad
     w = param [4, 2, 2, 3]
     y = conv(x, w) dilation=[3, 2] pad=[1, 2] groups=2",
    "x = input [1, 2, 9, 9] grad
     w = param [2, 2, 1, 2]
     y = conv(x, w) stride=[3, 4]",
    "x = input [1, 2, 6, 7] grad
     w = param [3, 2, 1, 5]
     y = conv(x, w) pad=[0, 2]",
    "x = input [1, 2, 3, 3] grad
     w = param [2, 2, 5, 5]
     y = conv(x, w) pad=2",
    "x = input [2, 2, 4, 5, 3] grad
     w = param [2, 2, 3, 2, 3]
     b = param [2]
     y = conv(x, w, b) stride=[2, 1, 1] pad_lo=[1, 0, 1] pad_hi=[1, 1, 0] dilation=[1, 2, 1]",
    "x = input [1, 4, 3, 4, 3] grad
     w = param [4, 1, 2, 2, 2]
     y = conv(x, w) groups=4 pad=1",
    // --- transposed convolutions ---------------------------------------------
    "x = input [2, 3, 5] grad
     w = param [3, 2, 3]
     b = param [2]
     y = conv_transpose(x, w, b) stride=2 out=[11]",
    "x = input [1, 4, 4, 3] grad
     w = param [4, 1, 3, 2]
     y = conv_transpose(x, w) stride=[2, 3] pad_lo=[1, 0] pad_hi=[0, 1] groups=2 out=[8, 7]",
    "x = input [2, 2, 4, 4] grad
     w = param [2, 3, 2, 2]
     b = param [3]
     y = conv_transpose(x, w, b) stride=2 out=[8, 8]",
    "x = input [1, 2, 5, 4] grad
     w = param [2, 2, 3, 2]
     y = conv_transpose(x, w) dilation=[2, 3] pad=[1, 0] out=[7, 7]",
    "x = input [1, 2, 2, 3, 2] grad
     w = param [2, 2, 2, 3, 2]
     b = param [2]
     y = conv_transpose(x, w, b) stride=[2, 1, 2] pad=[0, 1, 0] out=[4, 3, 5]",
    // --- pools ------------------------------------------------------------------
    "x = input [2, 2, 11] grad
     y = max_pool(x) kernel=3 stride=2 pad=1",
    "x = input [1, 2, 7, 8] grad
     y = max_pool(x) kernel=[3, 2] stride=[1, 2] pad_lo=[1, 0] pad_hi=[1, 1]",
    "x = input [1, 2, 9, 9] grad
     y = max_pool(x) kernel=2 stride=3",
    "x = input [1, 2, 4, 5, 4] grad
     y = max_pool(x) kernel=2 stride=1",
    "x = input [2, 2, 10] grad
     y = avg_pool(x) kernel=4 stride=3 pad=2",
    "x = input [1, 2, 7, 8] grad
     y = avg_pool(x) kernel=[3, 2] stride=[2, 1] pad_lo=[1, 0] pad_hi=[1, 1] count_pad",
    "x = input [1, 2, 9, 7] grad
     y = avg_pool(x) kernel=2 stride=[3, 1]",
    "x = input [2, 1, 4, 5, 3] grad
     y = avg_pool(x) kernel=3 stride=2 pad=1",
    // --- upsampling --------------------------------------------------------------
    "x = input [2, 2, 5] grad
     y = upsample(x) factor=3",
    "x = input [1, 2, 3, 4] grad
     y = upsample(x) factor=[2, 3] mode=nearest",
    "x = input [1, 2, 3, 4] grad
     y = upsample(x) factor=[2, 3] mode=linear",
    "x = input [1, 2, 1, 4] grad
     y = upsample(x) factor=[4, 1] mode=linear",
    "x = input [1, 1, 2, 3, 2] grad
     y = upsample(x) factor=2 mode=linear",
    "x = input [1, 1, 2, 3, 2] grad
     y = upsample(x) factor=[1, 2, 3]",
    // --- functions of one element ----------------------------------------------
    "x = input [2, 3, 5] grad\ny = relu(x)",
    "x = input [2, 3, 5] grad\ny = leaky_relu(x) slope=0.2",
    "x = input [2, 3, 5] grad\ny = gelu(x)",
    "x = input [2, 3, 5] grad\ny = silu(x)",
    "x = input [2, 3, 5] grad\ny = sigmoid(x)",
    "x = input [2, 3, 5] grad\ny = tanh(x)",
    "x = input [2, 3, 5] grad\ny = exp(x)",
    "x = input [2, 3, 5] grad\ny = scale(x) factor=-2.5",
    "x = input [2, 6] grad\ny = gelu(x)",
    "x = input [2, 3, 9, 5] grad\ny = dropout(x) p=0.4 key=5",
    "x = input [4, 9] grad\ny = dropout(x) p=0.4",
    // --- sums and products, with all repetitions ---------------------------------
    "a = input [2, 3, 4, 5] grad\nb = input [2, 3, 4, 5] grad\ny = add(a, b)",
    "a = input [2, 3, 4, 5] grad\nb = input [2, 3] grad\ny = add(a, b)",
    "a = input [2, 3, 4, 5] grad\nb = input [2, 1, 4, 5] grad\ny = add(a, b)",
    "a = input [2, 3] grad\nb = input [2, 3] grad\ny = add(a, b)",
    "a = input [2, 3, 4, 5] grad\nb = input [2, 3, 4, 5] grad\ny = mul(a, b)",
    "a = input [2, 3, 4, 5] grad\nb = input [2, 3] grad\ny = mul(a, b)",
    "a = input [2, 3, 4, 5] grad\nb = input [2, 1, 4, 5] grad\ny = mul(a, b)",
    "a = input [2, 3] grad\nb = input [2, 3] grad\ny = mul(a, b)",
    "a = input [2, 1, 4, 5] grad\nb = input [2, 1] grad\ny = mul(a, b)",
    "a = input [2, 3, 4] grad\ny = mul(a, a)",
    "a = input [2, 3, 4] grad\ny = add(a, a)",
    "a = input [2, 3, 4] grad\nb = tanh(a)\nc = mul(a, b)\nd = add(c, b)\ny = mul(d, b)",
    // --- structure ------------------------------------------------------------------
    "a = input [2, 3, 4] grad\nb = input [2, 1, 4] grad\ny = concat(a, b, a)",
    "a = input [2, 3] grad\nb = input [2, 2] grad\ny = concat(a, b)",
    "x = input [2, 4, 7, 6] grad\ny = slice(x) start=[1, 2, 0] len=[2, 4, 5]",
    "x = input [2, 5] grad\ny = slice(x) start=[2] len=[2]",
    "x = input [1, 2, 3, 4] grad\ny = pad(x) lo=[1, 0, 2] hi=[0, 3, 1]",
    "x = input [2, 3] grad\ny = pad(x) lo=[1] hi=[2]",
    "v = input [2, 3] grad\ny = broadcast(v) spatial=[4, 3]",
    "x = input [2, 3, 4] grad\ny = channel_sum(x)",
    // --- reductions -------------------------------------------------------------------
    "x = input [2, 3, 4, 5] grad\ny = sum_map(x)",
    "x = input [2, 3, 4, 5] grad\ny = global_max(x)\nz = slice(y) start=[0] len=[3]",
    "x = input [2, 3, 3, 2, 4] grad\ny = global_max(x)\nz = slice(y) start=[0] len=[3]",
    "x = input [2, 3, 4, 5] grad\ny = spatial_lse(x)",
    // Log-sum-exp pooling.
    "x = input [2, 3, 4, 5] grad
     s = scale(x) factor=3
     l = spatial_lse(s)
     n = constant [2, 3] value=-2.995732273553991
     m = add(l, n)
     y = scale(m) factor=0.3333333333333333",
    // Gated attention pooling.
    "x = input [2, 3, 4, 5] grad
     v = param [2, 3, 1, 1]
     vb = param [2]
     u = param [2, 3, 1, 1]
     ub = param [2]
     w = param [1, 2, 1, 1]
     a = conv(x, v, vb)
     b = tanh(a)
     c = conv(x, u, ub)
     d = sigmoid(c)
     e = mul(b, d)
     f = conv(e, w)
     g = spatial_lse(f)
     h = scale(g) factor=-1
     i = add(f, h)
     p = exp(i)
     q = mul(x, p)
     y = sum_map(q)",
    // --- norms ------------------------------------------------------------------------
    "x = input [3, 2, 5, 4] grad
     g = param [2]
     b = param [2]
     m = moments(x) batch
     y = normalise(x, m, g, b) batch eps=0.01",
    "x = input [2, 4, 5] grad
     g = param [4]
     b = param [4]
     m = moments(x) groups=4
     y = normalise(x, m, g, b) groups=4 eps=0.01",
    "x = input [2, 6, 3, 4] grad
     g = param [6]
     b = param [6]
     m = moments(x) groups=2
     y = normalise(x, m, g, b) groups=2 eps=0.01",
    "x = input [2, 3, 3, 2, 3] grad
     g = param [3]
     b = param [3]
     m = moments(x) groups=1
     y = normalise(x, m, g, b) groups=1 eps=0.01",
    "x = input [2, 3, 4, 3] grad
     g = param [3]
     b = param [3]
     mean = param [3] frozen
     var = param [3] frozen
     m = pack_moments(mean, var)
     y = normalise(x, m, g, b) batch eps=0.01 frozen",
    // Neither gamma nor beta is trained.
    "x = input [2, 2, 4, 3] grad
     g = param [2] frozen
     b = param [2] frozen
     m = moments(x) batch
     y = normalise(x, m, g, b) batch eps=0.01",
    "x = input [2, 2, 4, 3] grad
     g = param [2] frozen
     b = param [2]
     mean = param [2] frozen
     var = param [2] frozen
     m = pack_moments(mean, var)
     y = normalise(x, m, g, b) batch eps=0.01 frozen",
    // --- dense ------------------------------------------------------------------------
    "x = input [3, 4] grad\nw = param [2, 4]\nb = param [2]\ny = linear(x, w, b)",
    "x = input [1, 4] grad\nw = param [3, 4]\ny = linear(x, w)",
    "x = input [3, 4] grad\ny = softmax(x)",
    "x = input [2, 3, 4, 3] grad\ny = softmax(x)",
    // --- losses ------------------------------------------------------------------------
    "x = input [4, 3] grad\nlabels = input [4, 1]\nl = cross_entropy(x, labels)",
    "x = input [2, 3, 4, 5] grad\nlabels = input [2, 1, 4, 5]\nl = cross_entropy(x, labels)",
    "x = input [4, 3] grad\ntarget = input [4, 3]\nl = bce(x, target)",
    "x = input [2, 3, 4] grad\ntarget = input [2, 3, 4]\nl = bce(x, target)",
    "x = input [4, 3] grad\ntarget = input [4, 3]\nl = mse(x, target)",
    "x = input [2, 3, 4] grad\ntarget = input [2, 3, 4]\nl = mse(x, target)",
    "x = input [2, 3, 4, 5] grad
     p = sigmoid(x)
     target = input [2, 3, 4, 5]
     s = dice_sums(p, target)
     l = dice_loss(s) smooth=0.5",
];

/// Forward ops that are not leaves and not made of other ops by the builder:
/// each must be differentiated above.
const DIFFERENTIABLE: &[&str] = &[
    "add",
    "avg_pool",
    "bce",
    "broadcast",
    "channel_sum",
    "concat",
    "conv",
    "conv_transpose",
    "cross_entropy",
    "dice_loss",
    "dice_sums",
    "dropout",
    "exp",
    "gelu",
    "global_max",
    "leaky_relu",
    "linear",
    "max_pool",
    "mse",
    "mul",
    "normalise",
    "pad",
    "relu",
    "scale",
    "sigmoid",
    "silu",
    "slice",
    "softmax",
    "spatial_lse",
    "sum_map",
    "tanh",
    "upsample",
];

#[test]
fn every_op_and_variant_has_the_gradient_of_its_differences() {
    let mut seen = BTreeSet::new();
    for text in TAPES {
        let net = Net::parse("f64", text);
        for id in net.tape.order().iter().take_while(|&&id| id != net.loss) {
            seen.insert(net.tape.node(*id).op.name());
        }
        seen.insert(net.tape.node(net.loss).op.name());
        for seed in 0..3 {
            let checked = Checked::new(&net, seed);
            let wanted = net.tape.order().iter().filter(|&&id| {
                let op = net.tape.node(id).op;
                matches!(op, Op::Input { grad: true } | Op::Param { grad: true })
            });
            assert_eq!(checked.grads.len(), wanted.count(), "{text}");
            let (made, kinks) = checked.check(seed);
            assert!(
                kinks * 10 <= made,
                "{text}\n{kinks} of {made} checks met a kink"
            );
        }
    }
    let missing: Vec<_> = DIFFERENTIABLE
        .iter()
        .filter(|op| !seen.contains(*op))
        .collect();
    assert!(missing.is_empty(), "no tape differentiates {missing:?}");
}

proptest! {
    #![proptest_config(config(500))]

    #[test]
    fn random_networks_have_the_gradients_of_their_differences(spec in net_specs()) {
        let net = build(&spec, DType::F64, true);
        let (made, kinks) = Checked::new(&net, spec.seed).check(spec.seed);
        prop_assert!(kinks * 2 <= made, "{} of {} checks met a kink", kinks, made);
    }
}
