use std::collections::BTreeSet;

use proptest::prelude::*;

use super::names::OPS;
use crate::grad::backward;
use crate::narrow::narrow;
use crate::op::Op;
use crate::tape::{Node, Tape};
use crate::testing::{parse, random_tape};
use crate::ty::DType;

/// Everything a tape is, with ids as positions.
fn contents(tape: &Tape) -> impl PartialEq + std::fmt::Debug + use<> {
    let at = |id| tape.order().iter().position(|&o| o == id);
    let nodes: Vec<_> = tape
        .order()
        .iter()
        .map(|&id| {
            let Node {
                op,
                inputs,
                ty,
                name,
            } = tape.node(id).clone();
            (op, inputs.into_iter().map(at).collect::<Vec<_>>(), ty, name)
        })
        .collect();
    (
        tape.dtype(),
        nodes,
        tape.outputs().iter().map(|&o| at(o)).collect::<Vec<_>>(),
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn text_is_lossless(seed in any::<u64>(), n_ops in 0usize..14) {
        let tape = random_tape(seed, n_ops);
        tape.check().unwrap();
        let text = tape.to_string();
        let back = Tape::parse(&text).unwrap();
        prop_assert_eq!(contents(&back), contents(&tape), "{}", text);
        prop_assert_eq!(back.to_string(), text);
    }

    #[test]
    fn damaged_text_is_an_error_not_a_panic(
        seed in any::<u64>(),
        at in any::<prop::sample::Index>(),
        with in "[ -~]{0,3}",
    ) {
        let mut text = random_tape(seed, 4).to_string();
        let at = at.index(text.len());
        if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
            text.replace_range(at..at + 1, &with);
        }
        if let Ok(tape) = Tape::parse(&text) {
            tape.check().unwrap();
        }
    }
}

#[test]
fn the_names_for_messages_are_those_of_the_ops() {
    let mut seen = BTreeSet::new();
    for seed in 0..500 {
        let tape = random_tape(seed, 6);
        let narrowed = narrow(&tape, DType::Bf16).unwrap_or_else(|_| tape.clone());
        for op in narrowed.order().iter().map(|&id| narrowed.node(id).op) {
            if !op.is_leaf() {
                assert!(OPS.contains(&op.name()), "{op:?}");
                seen.insert(op.name());
            }
        }
    }
    let unseen: Vec<_> = OPS.iter().filter(|name| !seen.contains(*name)).collect();
    assert!(unseen.is_empty(), "random tapes never contain {unseen:?}");
}

#[test]
fn a_tape_prints_as_it_is_written() {
    let text = "\
tape v1 f64

x = input [1, 4, 9, 9] grad
w = param [4, 1, 3, 3]
mean = param [4] frozen
var = param [4] frozen
gamma = param [4]
beta = param [4]
c = constant [1, 4] value=-0.25
y = conv(x, w) stride=[2, 1] pad=[1, 1] groups=4  # f64[1, 4, 5, 9]
p = avg_pool(y) kernel=[3, 3] stride=[2, 2] pad_hi=[0, 1] count_pad  # f64[1, 4, 2, 4]
m = pack_moments(mean, var)  # f64[1, 4, 2]
z = normalise(p, m, gamma, beta) batch eps=1e-5 frozen  # f64[1, 4, 2, 4]
a = add(z, c)  # f64[1, 4, 2, 4]
l = leaky_relu(a) slope=0.01  # f64[1, 4, 2, 4]
u = upsample(l) factor=[2, 1] mode=linear  # f64[1, 4, 4, 4]
s = slice(u) start=[1, 0, 1] len=[2, 4, 3]  # f64[1, 2, 4, 3]
n = sum_map(s) keep_batch=false  # f64[2]

output n
output z
";
    assert_eq!(Tape::parse(text).unwrap().to_string(), text);
}

#[test]
fn short_and_spaced_writing_is_read() {
    let tape = parse(
        "x=input[1,2,8,8] # a comment = with [signs]\n\
         y = max_pool ( x ) kernel = 2 stride=2\r\n\
         \n\
         output y",
    )
    .unwrap();
    let y = tape.by_name("y").unwrap();
    assert_eq!(tape.ty(y).to_string(), "f32[1, 2, 4, 4]");
    assert_eq!(tape.outputs(), [y]);
}

#[test]
fn errors_name_the_line_and_what_is_allowed() {
    let x = "x = input [1, 2, 8, 8]\n";
    for (text, expected) in [
        ("x = rely(x)", "there is no op `rely`; did you mean `relu`?"),
        ("y = relu(z)", "`z` is not defined above"),
        (
            "xx = input [2]\ny = relu(xy)",
            "`xy` is not defined above; did you mean `x` or `xx`?",
        ),
        (
            "y = qqqqqqqq(x)",
            "there is no op `qqqqqqqq`; there are: conv, conv_transpose, ",
        ),
        (
            "y = max_pool(x) kernle=2",
            "`max_pool` needs `kernel=…`, for example `kernel=[1, 1]`",
        ),
        (
            "y = max_pool(x) kernel=2 strid=2",
            "`max_pool` has no attribute `strid`; it has kernel, stride, pad, pad_lo, pad_hi, count_pad",
        ),
        (
            "y = relu(x) slope=1",
            "`relu` has no attributes, so no `slope`",
        ),
        (
            "y = max_pool(x) kernel=[2, 2, 2]",
            "one number for each of 2 axes; found [2, 2, 2]",
        ),
        (
            "y = max_pool(x) kernel=2 kernel=3",
            "`kernel` is given twice",
        ),
        ("y = max_pool(x) kernel=two", "`two` is not a whole number"),
        ("y = max_pool(x) kernel=-1", "`-1` is not a whole number"),
        (
            "y = max_pool(x) kernel=2 pad=1 pad_lo=1",
            "`pad` is for both sides",
        ),
        (
            "y = scale(x) factor=half",
            "`factor` is a number; found `half`",
        ),
        ("y = scale(x)", "`scale` needs `factor=…`"),
        (
            "y = scale(x) factor=inf",
            "the factor must be a finite number, not inf",
        ),
        (
            "y = upsample(x) factor=2 mode=cubic",
            "`mode` is one of nearest, linear; found `cubic`",
        ),
        ("y = moments(x)", "needs either `batch`"),
        ("y = moments(x) batch groups=2", "needs either `batch`"),
        (
            "y = relu(x",
            "expected `,` after an input, found the end of the line",
        ),
        ("y = relu x", "expected `(` after `relu`, found `x`"),
        (
            "y = relu(x) )",
            "expected an attribute such as `stride=2`, found `)`",
        ),
        (
            "y = relu(x, x)",
            "`y` = relu(f32[1, 2, 8, 8], f32[1, 2, 8, 8]): its inputs are (x), but 2",
        ),
        (
            "y = relu()",
            "`y` = relu(): its inputs are (x), but 0 are given",
        ),
        ("y", "expected `y = op(inputs)` or `output y`"),
        ("output y", "`y` is not defined above"),
        ("output x x", "one output per line"),
        ("x = relu(x)", "the name `x` is already taken"),
        (
            "? = relu(x)",
            "expected a line `name = op(inputs)`, found `? = relu(x)`",
        ),
        ("y = input", "expected `[` after `input`"),
        ("y = input [1, 2", "expected `,` after a number in a list"),
        (
            "y = input [0, 2]",
            "every extent of [0, 2] must be at least 1",
        ),
        (
            "y = input [1, 1, 1, 1, 1, 1]",
            "at most 5 dimensions, not 6",
        ),
        ("y = input []", "at least one dimension"),
        (
            "y = input [99999999999999999999]",
            "`99999999999999999999` is not a whole number",
        ),
        ("y = input [18446744073709551615, 2]", "above the limit"),
        (
            "y = input [2000000000, 2000000000, 9]",
            "more than the limit",
        ),
        (
            "y = param [2] grad",
            "`param` has no attribute `grad`; it has frozen",
        ),
        ("y = input [2] grad=yes", "`grad` stands alone"),
        ("c = constant [1]", "`constant` needs `value=…`"),
    ] {
        let error = parse(&format!("{x}{text}")).expect_err(text).to_string();
        let line = 2 + text.lines().count();
        assert!(
            error.starts_with(&format!("line {line}: ")),
            "{text}: {error}"
        );
        assert!(
            error.contains(expected),
            "{text}\nexpected {expected}\nfound {error}"
        );
    }
}

#[test]
fn the_header_is_required() {
    for (text, expected) in [
        (
            "",
            "line 1: the text is empty; a tape begins with `tape v1 f32`",
        ),
        (
            "x = input [1]",
            "line 1: a tape begins with `tape v1 f32` or `tape v1 f64`",
        ),
        (
            "\ntape v2 f32",
            "line 2: this is version `v2` of the text form; only `v1` can be read",
        ),
        (
            "tape v1 f16",
            "line 1: a tape begins with `tape v1 f32` or `tape v1 f64`",
        ),
        ("tape v1 f32 f32", "line 1: a tape begins with"),
    ] {
        let error = Tape::parse(text).expect_err(text).to_string();
        assert!(error.starts_with(expected), "{text}: {error}");
    }
}

/// A file of the repository.
fn file(path: &str) -> String {
    let path = format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(&path).expect(&path)
}

#[test]
fn the_example_tapes_train_and_stand_in_the_docs() {
    let docs = file("docs/tape.md");
    for name in ["classifier", "attention", "unet"] {
        let text = file(&format!("examples/tapes/{name}.tape"));
        assert!(
            docs.contains(&format!("```text\n{text}```\n")),
            "docs/tape.md lacks {name}.tape"
        );
        let mut tape = Tape::parse(&text).unwrap_or_else(|e| panic!("{name}.tape: {e}"));
        // Types are given in comments, which must not mislead.
        for line in text.lines() {
            if let (Some((name, _)), Some((_, ty))) =
                (line.split_once(" ="), line.split_once("# f32"))
            {
                let id = tape.by_name(name).unwrap();
                assert_eq!(tape.ty(id).shape.to_string(), ty, "{line}");
            }
        }
        let loss = tape.outputs()[0];
        let gradients = backward(&mut tape, loss).unwrap();
        let trained = tape
            .order()
            .iter()
            .filter(|&&id| tape.node(id).op == Op::Param { grad: true });
        assert_eq!(gradients.len(), trained.count(), "{name}.tape");
        assert_eq!(
            contents(&Tape::parse(&tape.to_string()).unwrap()),
            contents(&tape)
        );
    }
}

#[test]
fn the_docs_name_every_op() {
    let docs = file("docs/tape.md");
    for op in OPS {
        let kin = op
            .strip_suffix("_grad")
            .is_some_and(|f| ["gelu", "silu", "sigmoid", "tanh", "exp", "leaky_relu"].contains(&f));
        assert!(
            kin || docs.contains(&format!("`{op}")),
            "docs/tape.md lacks {op}"
        );
    }
}
