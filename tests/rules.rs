//! Every rewrite rule on its own: both sides computed on random tensors of random
//! shapes, in double precision.
//!
//! The cases are a table from the name of a rule to tapes that it applies to. A rule
//! without a case fails, and so does a case that its rule does not apply to.

use std::collections::BTreeMap;

use proptest::prelude::*;
use sstep::{Program, StepSpec, Tape, reference};
use sstep_planner::rewrite::{RULES, apply};

mod common;

/// Extents that a case is written with.
#[derive(Clone, Copy, Debug)]
struct Size {
    n: usize,
    /// Channels of two maps.
    c: usize,
    d: usize,
    /// Output channels.
    k: usize,
    h: usize,
    w: usize,
}

fn sizes() -> impl Strategy<Value = Size> {
    (
        1usize..3,
        1usize..5,
        1usize..5,
        1usize..5,
        4usize..9,
        4usize..9,
    )
        .prop_map(|(n, c, d, k, h, w)| Size { n, c, d, k, h, w })
}

/// Tapes, without their header, of which the last line is what is wanted.
fn cases(rule: &str, s: Size) -> Vec<String> {
    let Size { n, c, d, k, h, w } = s;
    let cd = c + d;
    let hw = format!("{h}, {w}");
    // Maps of c and d channels, and gradients of k channels.
    let maps = format!(
        "x = input [{n}, {c}, {hw}]\ny = input [{n}, {d}, {hw}]\nz = input [{n}, {c}, {hw}]\n\
         g = input [{n}, {k}, {hw}]\ne = input [{n}, {k}, {hw}]\nv = input [{n}, {c}]\n\
         u = param [{k}, {c}, 3, 3]\nt = param [{k}, {c}, 3, 3]\nb = param [{k}]\n\
         o = param [{k}, {c}, 1, 1]\np = param [{k}, {cd}, 3, 3]\n"
    );
    let one = |lines: &str| vec![format!("{maps}{lines}")];
    let many = |all: &[&str]| all.iter().map(|lines| format!("{maps}{lines}")).collect();
    match rule {
        "gradient of a function from its value" => many(&[
            "r = relu_grad(x, z)",
            "r = leaky_relu_grad(x, z) slope=0.1",
            "r = sigmoid_grad(x, z)",
            "r = tanh_grad(x, z)",
            "r = exp_grad(x, z)",
        ]),
        "relu of relu" => one("a = relu(x)\nr = relu(a)"),
        "mask of a mask" => one("a = relu_grad(x, z)\nr = relu_grad(x, a)"),
        "scale of scale" => one("a = scale(x) factor=0.3\nr = scale(a) factor=-7"),
        "scale by one" => one("a = scale(x) factor=1\nr = add(a, z)"),
        "sum of scaled" => {
            one("a = scale(x) factor=0.3\nq = scale(z) factor=0.3\nr = add(a, q)")
        }
        "product with one value" => many(&[
            &format!("i = constant [{n}, {c}] value=3\nr = mul(x, i)"),
            &format!("i = constant [{n}, {c}] value=3\nj = broadcast(i) spatial=[{hw}]\nr = mul(j, x)"),
        ]),
        "sum with zeros" => many(&[
            &format!("i = constant [{n}, {c}] value=0\na = add(x, i)\nr = mul(a, z)"),
            &format!(
                "i = constant [{n}, {c}] value=0\nj = broadcast(i) spatial=[{hw}]\n\
                 a = add(j, x)\nr = mul(a, z)"
            ),
        ]),
        "slice of everything" => {
            one(&format!("a = slice(x) start=[0, 0, 0] len=[{c}, {hw}]\nr = relu(a)"))
        }
        "slice of slice" => one(&format!(
            "a = slice(p) start=[1, 0, 1] len=[{}, 3, 2]\nr = slice(a) start=[0, 1, 1] len=[1, 2, 1]",
            cd - 1
        )),
        "slice of what was concatenated" => many(&[
            &format!("a = concat(x, y)\nq = slice(a) start=[{c}, 0, 0] len=[{d}, {hw}]\nr = relu(q)"),
            "a = concat(y, x)\nq = slice(a) start=[0, 1, 1] len=[1, 2, 3]\nr = relu(q)",
        ]),
        "slice of what was padded" => many(&[
            &format!("a = pad(x) lo=[1, 2, 0] hi=[0, 1, 3]\nq = slice(a) start=[1, 2, 0] len=[{c}, {hw}]\nr = relu(q)"),
            "a = pad(x) lo=[1, 2, 0] hi=[0, 1, 3]\nq = slice(a) start=[1, 3, 1] len=[1, 2, 3]\nr = relu(q)",
        ]),
        "padding of nothing" => one("a = pad(x) lo=[0, 0, 0] hi=[0, 0, 0]\nr = relu(a)"),
        "padding of padding" => {
            one("a = pad(x) lo=[1, 0, 2] hi=[0, 3, 0]\nr = pad(a) lo=[0, 1, 1] hi=[2, 0, 0]")
        }
        "concatenation of concatenations" => many(&[
            "a = concat(x, y)\nq = concat(z, a)\nr = concat(q, g)",
            "a = concat(x)\nr = relu(a)",
        ]),
        "concatenation of neighbouring slices" => many(&[
            &format!(
                "m = concat(x, y)\nm2 = relu(m)\na = slice(m2) start=[0, 0, 0] len=[{c}, {hw}]\n\
                 q = slice(m2) start=[{c}, 0, 0] len=[{d}, {hw}]\nj = concat(a, q)\nr = exp(j)"
            ),
            &format!(
                "m = concat(x, y, z)\nm2 = relu(m)\na = slice(m2) start=[1, 1, 0] len=[{cd}, 3, {w}]\n\
                 q = slice(m2) start=[{}, 1, 0] len=[{}, 3, {w}]\nr = concat(a, q)",
                cd + 1,
                c.max(2) - 1
            ),
        ])
        .into_iter()
        .take(if c > 1 { 2 } else { 1 })
        .collect(),
        "sum of paddings is a concatenation" => many(&[
            &format!("a = pad(x) lo=[0, 0, 0] hi=[{d}, 0, 0]\nq = pad(y) lo=[{c}, 0, 0] hi=[0, 0, 0]\nr = add(a, q)"),
            &format!("a = pad(x) lo=[1, 1, 0] hi=[{}, 0, 2]\nq = pad(y) lo=[{}, 1, 0] hi=[2, 0, 2]\nr = add(q, a)", d + 2, c + 1),
        ]),
        "scale of a repeated vector" => {
            one(&format!("a = broadcast(v) spatial=[{hw}]\nr = scale(a) factor=0.7"))
        }
        "sum over space of a repeated vector" => {
            one(&format!("a = broadcast(v) spatial=[{hw}]\nr = sum_map(a)"))
        }
        "sum over space of a scaled map" => many(&[
            "a = scale(x) factor=0.7\nr = sum_map(a)",
            "a = scale(x) factor=0.7\nr = sum_map(a) keep_batch=false",
        ]),
        "sum over space of a concatenation" => one("a = concat(x, y)\nr = sum_map(a)"),
        "sum of convolutions that share the map" => many(&[
            "a = conv(x, u) pad=1\nq = conv(x, t) pad=1\nr = add(a, q)",
            &format!(
                "a = conv_transpose(g, u) pad=1 out=[{hw}]\n\
                 q = conv_transpose(g, t) pad=1 out=[{hw}]\nr = add(a, q)"
            ),
        ]),
        "sum of convolutions that share the weight" => many(&[
            "a = conv(x, u) pad=1 stride=2\nq = conv(z, u) pad=1 stride=2\nr = add(a, q)",
            &format!(
                "a = conv_transpose(g, u) pad=1 out=[{hw}]\n\
                 q = conv_transpose(e, u) pad=1 out=[{hw}]\nr = add(a, q)"
            ),
        ]),
        "sum of weight gradients that share an operand" => many(&[
            "a = conv_weight_grad(x, g) kernel=3 pad=1\nq = conv_weight_grad(x, e) kernel=3 pad=1\nr = add(a, q)",
            "a = conv_weight_grad(x, g) kernel=3 pad=1\nq = conv_weight_grad(z, g) kernel=3 pad=1\nr = add(a, q)",
        ]),
        "sum of linear layers that share an operand" => {
            let layers = format!("f = param [{k}, {c}]\ni = param [{k}, {c}]\nj = input [{n}, {c}]\ngv = input [{n}, {k}]\n");
            many(&[
                &format!("{layers}a = linear(v, f)\nq = linear(j, f)\nr = add(a, q)"),
                &format!("{layers}a = linear(v, f)\nq = linear(v, i)\nr = add(a, q)"),
                &format!("{layers}a = linear_input_grad(gv, f)\nq = linear_input_grad(gv, i)\nr = add(a, q)"),
                &format!("{layers}a = linear_weight_grad(v, gv)\nq = linear_weight_grad(j, gv)\nr = add(a, q)"),
            ])
        }
        "max-pool of relu" => many(&[
            "a = relu(x)\nr = max_pool(a) kernel=3 stride=2 pad=1",
            "a = leaky_relu(x) slope=0.2\nr = max_pool(a) kernel=2 stride=1",
        ]),
        "gradient of a max-pool of relu" => many(&[
            &format!(
                "a = relu(x)\nm = input [{n}, {c}, {}, {}]\nq = max_pool_grad(a, m) kernel=3 stride=2 pad=1\n\
                 r = relu_grad(x, q)",
                (h - 1) / 2 + 1,
                (w - 1) / 2 + 1
            ),
            &format!(
                "a = relu(x)\nm = input [{n}, {c}, {}, {}]\nq = max_pool_grad(a, m) kernel=2\n\
                 r = relu_grad(x, q)",
                h - 1,
                w - 1
            ),
        ]),
        "sum over space of a 1x1 convolution" => many(&[
            "a = conv(x, o)\nr = sum_map(a)",
            "a = conv(x, o, b)\nr = sum_map(a)",
            "a = conv(x, o, b)\nr = sum_map(a) keep_batch=false",
        ]),
        "1x1 convolution of a repeated vector" => many(&[
            &format!("a = broadcast(v) spatial=[{hw}]\nr = conv(a, o, b)"),
            &format!("gv = input [{n}, {k}]\na = broadcast(gv) spatial=[{hw}]\nr = conv_transpose(a, o) out=[{hw}]"),
        ]),
        "1x1 weight gradient of a repeated vector" => one(&format!(
            "gv = input [{n}, {k}]\na = broadcast(gv) spatial=[{hw}]\nr = conv_weight_grad(x, a) kernel=1"
        )),
        "convolution of a concatenation" => many(&[
            "a = concat(x, y)\nr = conv(a, p, b) pad=1",
            "a = concat(x, y)\nr = conv(a, p) stride=2",
        ]),
        "slice of a data gradient" => one(&format!(
            "a = conv_transpose(g, p) pad=1 out=[{hw}]\nr = slice(a) start=[{c}, 0, 0] len=[{d}, {hw}]"
        )),
        "weight gradient of a concatenation" => {
            one("a = concat(x, y)\nr = conv_weight_grad(a, g) kernel=3 pad=1")
        }
        "scaled convolution" => many(&[
            "a = conv(x, u, b) pad=1\nr = scale(a) factor=-1.5",
            &format!("a = conv_transpose(g, u) pad=1 out=[{hw}]\nr = scale(a) factor=0.1"),
        ]),
        "convolution of a scaled map" => many(&[
            "a = scale(x) factor=-1.5\nr = conv(a, u, b) pad=1",
            &format!("a = scale(g) factor=0.1\nr = conv_transpose(a, u) pad=1 out=[{hw}]"),
        ]),
        "weight gradient of a scaled map" => many(&[
            "a = scale(x) factor=-1.5\nr = conv_weight_grad(a, g) kernel=3 pad=1",
            "a = scale(g) factor=0.1\nr = conv_weight_grad(x, a) kernel=3 pad=1",
        ]),
        other => panic!("the rule `{other}` has no case"),
    }
}

fn program(text: &str) -> (Tape, Program) {
    let tape =
        Tape::parse(&format!("tape v1 f64\n{text}")).unwrap_or_else(|e| panic!("{e}\n{text}"));
    let spec = StepSpec {
        outputs: vec![*tape.order().last().expect("lines")],
        ..StepSpec::default()
    };
    let program = Program::new(&tape, &spec).expect("a program");
    (tape, program)
}

/// Ops of a program, to tell whether anything was rewritten.
fn ops(program: &Program) -> Vec<&'static str> {
    program.nodes.iter().map(|n| n.op.name()).collect()
}

fn check(rule: &str, text: &str, seed: u64) {
    let (tape, before) = program(text);
    let after = apply(&before, rule).expect("extraction works");
    let after = after.unwrap_or_else(|| panic!("`{rule}` does not apply to\n{text}"));
    let leaves = common::leaves::<f64>(&tape, seed);
    let run = |p: &Program| reference(p, &leaves, 0, 0).expect("a reference");
    let (want, got) = (run(&before), run(&after));
    let (worst, name) = common::worst(&got, &want);
    assert!(
        worst < 1e-12,
        "`{rule}`: {name} differs by {worst:e}\n{text}\n{:?}\n{:?}",
        ops(&before),
        ops(&after)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_rule_keeps_the_value(size in sizes(), seed in any::<u64>()) {
        for (rule, _) in RULES {
            for text in cases(rule, size) {
                check(rule, &text, seed);
            }
        }
    }
}

#[test]
fn rules_have_names_of_their_own() {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    for (rule, _) in RULES {
        *seen.entry(rule).or_default() += 1;
    }
    assert!(seen.values().all(|&n| n == 1), "{seen:?}");
}
