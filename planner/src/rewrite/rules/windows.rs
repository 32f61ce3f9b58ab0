//! Convolutions of joined and of scaled maps: the weights are cut or scaled instead.

use sstep_autodiff::Op;

use super::super::lang::Expr;
use super::structure::channels;
use super::{Graph, Term, class, inner, over, ty};

/// `[a, b] ∗ w = a ∗ w₁ + b ∗ w₂`: the joined map is never made.
pub fn conv_of_concat(g: &Graph, e: &Expr) -> Option<Term> {
    let Op::Conv(a) = e.head.op else {
        return None;
    };
    let parts = inner(g, e.children[0], |op| matches!(op, Op::Concat))?;
    if a.groups != 1 || parts.children.len() < 2 {
        return None;
    }
    let w = e.children[1];
    let weight = ty(g, w)?;
    let mut first = 0;
    let mut sum: Option<Term> = None;
    for &part in &parts.children {
        let n = ty(g, part)?.shape.channels();
        let own = over(Op::Slice(channels(&weight, first, n)), &[w]);
        let mut operands = vec![class(part), own];
        // The bias is added once.
        let bias = e.children.get(2).filter(|_| first == 0);
        operands.extend(bias.map(|&b| class(b)));
        let term = Term::Node(e.head.op, operands);
        sum = Some(match sum {
            Some(before) => Term::Node(Op::Add, vec![before, term]),
            None => term,
        });
        first += n;
    }
    sum
}

/// Channels of a data gradient need only the weights of these channels: the other half
/// of [`conv_of_concat`].
pub fn slice_of_transpose(g: &Graph, e: &Expr) -> Option<Term> {
    let Op::Slice(s) = e.head.op else {
        return None;
    };
    let y = ty(g, e.children[0])?;
    let only_channels = s == channels(&y, s.start[0], s.len[0]);
    let whole = |op: &Op| matches!(op, Op::ConvTranspose(a) if a.conv.groups == 1);
    let transposed = inner(g, e.children[0], whole)?;
    let [grad, w] = *transposed.children.as_slice() else {
        return None;
    };
    let own = over(Op::Slice(channels(&ty(g, w)?, s.start[0], s.len[0])), &[w]);
    only_channels.then(|| Term::Node(transposed.head.op, vec![class(grad), own]))
}

/// The weights of each part have a gradient of their own.
pub fn weight_of_concat(g: &Graph, e: &Expr) -> Option<Term> {
    let Op::ConvWeightGrad(a) = e.head.op else {
        return None;
    };
    let [x, y] = *e.children.as_slice() else {
        return None;
    };
    let parts = inner(g, x, |op| matches!(op, Op::Concat))?;
    if a.groups != 1 || parts.children.len() < 2 {
        return None;
    }
    let grads = parts
        .children
        .iter()
        .map(|&part| over(e.head.op, &[part, y]));
    Some(Term::Node(Op::Concat, grads.collect()))
}

fn is_conv(op: &Op) -> bool {
    matches!(op, Op::Conv(_) | Op::ConvTranspose(_))
}

/// `f (x ∗ w + b) = x ∗ (f w) + f b`: the map is not gone through again.
pub fn scaled_conv(g: &Graph, e: &Expr) -> Option<Term> {
    let Op::Scale { .. } = e.head.op else {
        return None;
    };
    let conv = inner(g, e.children[0], is_conv)?;
    let mut operands = vec![class(conv.children[0])];
    operands.extend(conv.children[1..].iter().map(|&i| over(e.head.op, &[i])));
    Some(Term::Node(conv.head.op, operands))
}

/// `(f x) ∗ w = x ∗ (f w)`.
pub fn conv_of_scaled(g: &Graph, e: &Expr) -> Option<Term> {
    if !is_conv(&e.head.op) {
        return None;
    }
    let scaled = inner(g, e.children[0], |op| matches!(op, Op::Scale { .. }))?;
    let mut operands = vec![class(scaled.children[0])];
    operands.push(over(scaled.head.op, &e.children[1..2]));
    operands.extend(e.children[2..].iter().map(|&i| class(i)));
    Some(Term::Node(e.head.op, operands))
}

/// A weight gradient is scaled, not the maps that it is the product of.
pub fn weight_of_scaled(g: &Graph, e: &Expr) -> Option<Term> {
    let Op::ConvWeightGrad(_) = e.head.op else {
        return None;
    };
    let at =
        (0..2).find(|&i| inner(g, e.children[i], |op| matches!(op, Op::Scale { .. })).is_some())?;
    let scaled = inner(g, e.children[at], |op| matches!(op, Op::Scale { .. }))?;
    let mut operands = e.children.clone();
    operands[at] = scaled.children[0];
    Some(Term::Node(scaled.head.op, vec![over(e.head.op, &operands)]))
}
