//! Work that is done after pooling instead of before it.

use egg::Id;
use sstep_autodiff::{ConvAttrs, ConvTransposeAttrs, MAX_SPATIAL, Num, Op, Saved, UnaryKind};

use super::super::lang::Expr;
use super::{Graph, Term, class, inner, over, same, ty};

/// `max-pool(f(x)) = f(max-pool(x))` of an `f` that does not fall: on fewer elements.
pub fn pool_of_relu(g: &Graph, e: &Expr) -> Option<Term> {
    let Op::MaxPool(_) = e.head.op else {
        return None;
    };
    let rises = |op: &Op| matches!(op, Op::Unary(UnaryKind::Relu | UnaryKind::LeakyRelu(_)));
    let relu = inner(g, e.children[0], rises)?;
    Some(Term::Node(
        relu.head.op,
        vec![over(e.head.op, &relu.children)],
    ))
}

/// The ReLU's mask of what a max-pool hands back can be taken before: a window's
/// maximum passes the ReLU exactly if the element that it is does. Windows without a
/// positive element hand back nothing either way, and among positive ones the first
/// maximum is the same. (Functions that are only nearly monotone after rounding could
/// move a maximum, so this holds for ReLU alone.)
pub fn grad_of_pool_of_relu(g: &Graph, e: &Expr) -> Option<Term> {
    let mask = Op::UnaryGrad {
        kind: UnaryKind::Relu,
        saved: Saved::Input,
    };
    if e.head.op != mask {
        return None;
    }
    let x = e.children[0];
    let pool = inner(g, e.children[1], |op| matches!(op, Op::MaxPoolGrad(_)))?;
    let Op::MaxPoolGrad(attrs) = pool.head.op else {
        return None;
    };
    let mut relus = g[pool.children[0]].nodes.iter();
    relus.find(|r| r.head.op == Op::Unary(UnaryKind::Relu) && same(g, r.children[0], x))?;
    let pooled = over(Op::MaxPool(attrs), &[x]);
    let masked = Term::Node(mask, vec![pooled, class(pool.children[1])]);
    Some(Term::Node(pool.head.op, vec![class(x), masked]))
}

/// Whether every output is one position of the input.
fn is_one_by_one(a: &ConvAttrs) -> bool {
    let ones = [1; MAX_SPATIAL];
    let none = [0; MAX_SPATIAL];
    a.kernel == ones && a.stride == ones && a.pad_lo == none && a.pad_hi == none
}

/// A vector as a map of one position, like the map `like` in the number of its axes.
fn point(g: &Graph, like: Id, vector: Term) -> Option<Term> {
    let n_spatial = ty(g, like)?.shape.spatial().len() as u8;
    let spatial = [1; MAX_SPATIAL];
    Some(Term::Node(
        Op::Broadcast { spatial, n_spatial },
        vec![vector],
    ))
}

const SUM: Op = Op::SumMap { keep_batch: true };

/// Positions of a map, if there are several.
fn many(g: &Graph, map: Id) -> Option<usize> {
    let points: usize = ty(g, map)?.shape.spatial().iter().product();
    (points > 1).then_some(points)
}

/// `Σ (w x + b) = w Σ x + n b`: the 1×1 convolution of a single position.
pub fn sum_of_one_by_one(g: &Graph, e: &Expr) -> Option<Term> {
    let Op::SumMap { .. } = e.head.op else {
        return None;
    };
    let points = many(g, e.children[0])?;
    let wanted = |op: &Op| matches!(op, Op::Conv(a) if is_one_by_one(a));
    let conv = inner(g, e.children[0], wanted)?;
    let x = conv.children[0];
    let mut operands = vec![point(g, x, over(SUM, &[x]))?, class(conv.children[1])];
    let factor = Num::new(points as f64);
    let bias = conv.children.get(2).copied();
    operands.extend(bias.map(|b| over(Op::Scale { factor }, &[b])));
    let summed = Term::Node(conv.head.op, operands);
    Some(Term::Node(e.head.op, vec![summed]))
}

/// What is the same at every position is computed at one: the data gradient of a mean
/// behind a 1×1 convolution.
pub fn one_by_one_of_broadcast(g: &Graph, e: &Expr) -> Option<Term> {
    let op = match e.head.op {
        Op::Conv(a) if is_one_by_one(&a) => e.head.op,
        Op::ConvTranspose(a) if is_one_by_one(&a.conv) => Op::ConvTranspose(ConvTransposeAttrs {
            out_spatial: [1; MAX_SPATIAL],
            ..a
        }),
        _ => return None,
    };
    many(g, e.children[0])?;
    let map = inner(g, e.children[0], |op| matches!(op, Op::Broadcast { .. }))?;
    let mut operands = vec![point(g, e.children[0], class(map.children[0]))?];
    operands.extend(e.children[1..].iter().map(|&i| class(i)));
    let vector = Term::Node(SUM, vec![Term::Node(op, operands)]);
    Some(Term::Node(map.head.op, vec![vector]))
}

/// `Σ x ȳ = (Σ x) ȳ` where `ȳ` is the same at every position.
pub fn one_by_one_weight_of_broadcast(g: &Graph, e: &Expr) -> Option<Term> {
    let Op::ConvWeightGrad(a) = e.head.op else {
        return None;
    };
    let [x, y] = *e.children.as_slice() else {
        return None;
    };
    if !is_one_by_one(&a) {
        return None;
    }
    many(g, y)?;
    let map = inner(g, y, |op| matches!(op, Op::Broadcast { .. }))?;
    let sums = point(g, x, over(SUM, &[x]))?;
    let vector = point(g, y, class(map.children[0]))?;
    Some(Term::Node(e.head.op, vec![sums, vector]))
}
