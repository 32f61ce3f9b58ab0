//! Functions of one element, scalings, masks and neutral operands.

use sstep_autodiff::{Num, Op, Saved, UnaryKind};

use super::super::lang::Expr;
use super::{Graph, Term, class, inner, over, same, ty};

/// `f̄(x, ȳ) = f̄(f(x), ȳ)` where the value determines the slope: the argument
/// need not be kept.
pub fn grad_from_value(_: &Graph, e: &Expr) -> Option<Term> {
    let Op::UnaryGrad {
        kind,
        saved: Saved::Input,
    } = e.head.op
    else {
        return None;
    };
    let value = over(Op::Unary(kind), &e.children[..1]);
    kind.grad_from_output().then(|| {
        let op = Op::UnaryGrad {
            kind,
            saved: Saved::Output,
        };
        Term::Node(op, vec![value, class(e.children[1])])
    })
}

/// `relu(relu(x)) = relu(x)`.
pub fn relu_of_relu(g: &Graph, e: &Expr) -> Option<Term> {
    let relu = Op::Unary(UnaryKind::Relu);
    let inner = (e.head.op == relu).then(|| inner(g, e.children[0], |op| *op == relu))??;
    Some(over(relu, &inner.children))
}

/// A gradient masked twice by one ReLU is masked once.
pub fn mask_of_mask(g: &Graph, e: &Expr) -> Option<Term> {
    let is_mask = |op: &Op| {
        matches!(
            op,
            Op::UnaryGrad {
                kind: UnaryKind::Relu,
                saved: _
            }
        )
    };
    let op = e.head.op;
    let inner = is_mask(&op).then(|| inner(g, e.children[1], |o| *o == op))??;
    same(g, inner.children[0], e.children[0]).then(|| over(op, &inner.children))
}

/// `a (b x) = (a b) x`.
pub fn scale_of_scale(g: &Graph, e: &Expr) -> Option<Term> {
    let Op::Scale { factor: a } = e.head.op else {
        return None;
    };
    let inner = inner(g, e.children[0], |op| matches!(op, Op::Scale { .. }))?;
    let Op::Scale { factor: b } = inner.head.op else {
        return None;
    };
    let product = a.get() * b.get();
    let factor = Num::new(product);
    // Beyond the largest number two scalings may still be finite.
    product
        .is_finite()
        .then(|| over(Op::Scale { factor }, &inner.children))
}

/// `1 x = x`.
pub fn scale_by_one(_: &Graph, e: &Expr) -> Option<Term> {
    match e.head.op {
        Op::Scale { factor } if factor.get() == 1.0 => Some(class(e.children[0])),
        _ => None,
    }
}

/// `f a + f b = f (a + b)`.
pub fn sum_of_scaled(g: &Graph, e: &Expr) -> Option<Term> {
    let [a, b] = *e.children.as_slice() else {
        return None;
    };
    if e.head.op != Op::Add || ty(g, a)? != ty(g, b)? {
        return None;
    }
    let scales = |op: &Op| matches!(op, Op::Scale { .. });
    let mut of_a = g[a].nodes.iter().filter(|x| scales(&x.head.op));
    of_a.find_map(|x| {
        let y = inner(g, b, |op| *op == x.head.op)?;
        let sum = over(Op::Add, &[x.children[0], y.children[0]]);
        Some(Term::Node(x.head.op, vec![sum]))
    })
}

/// `x · v` is a scaling where `v` holds one value everywhere: that need not be read.
pub fn product_with_one_value(g: &Graph, e: &Expr) -> Option<Term> {
    if e.head.op != Op::Mul {
        return None;
    }
    let [a, b] = *e.children.as_slice() else {
        return None;
    };
    let scaled = |x, factor| Some(over(Op::Scale { factor }, &[x]));
    match (g[a].data.uniform, g[b].data.uniform) {
        (_, Some(factor)) => scaled(a, factor),
        // The first operand has the shape of the product; the second may be repeated.
        (Some(factor), None) if ty(g, a)? == ty(g, b)? => scaled(b, factor),
        _ => None,
    }
}

/// `x + 0 = x`.
pub fn sum_with_zeros(g: &Graph, e: &Expr) -> Option<Term> {
    if e.head.op != Op::Add {
        return None;
    }
    let [a, b] = *e.children.as_slice() else {
        return None;
    };
    let is_zero = |id| g[id].data.uniform.is_some_and(|v| v.get() == 0.0);
    if is_zero(b) {
        return Some(class(a));
    }
    (is_zero(a) && ty(g, a)? == ty(g, b)?).then(|| class(b))
}
