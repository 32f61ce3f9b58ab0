//! Sums of two linear things that share an operand are one of them, of a sum: half the
//! arithmetic. Gradients of weights that are used twice, and of maps that are read by
//! two layers, come as such sums.

use sstep_autodiff::Op;

use super::super::lang::Expr;
use super::{Graph, Term, class, over, same, ty};

/// `a ∗ v + a ∗ w = a ∗ (v + w)`: weights are added, not maps.
pub fn convolutions_of_one_map(g: &Graph, e: &Expr) -> Option<Term> {
    shared(g, e, is_conv, 0)
}

/// `a ∗ w + b ∗ w = (a + b) ∗ w`.
pub fn convolutions_by_one_weight(g: &Graph, e: &Expr) -> Option<Term> {
    shared(g, e, is_conv, 1)
}

/// The weight gradient is linear in the map and in the output gradient.
pub fn weight_gradients(g: &Graph, e: &Expr) -> Option<Term> {
    let of_weight = |op: &Op| matches!(op, Op::ConvWeightGrad(_));
    shared(g, e, of_weight, 0).or_else(|| shared(g, e, of_weight, 1))
}

/// Linear layers and their gradients.
pub fn linear_layers(g: &Graph, e: &Expr) -> Option<Term> {
    let of_layer = |op: &Op| matches!(op, Op::Linear | Op::LinearInputGrad | Op::LinearWeightGrad);
    shared(g, e, of_layer, 0).or_else(|| shared(g, e, of_layer, 1))
}

fn is_conv(op: &Op) -> bool {
    matches!(op, Op::Conv(_) | Op::ConvTranspose(_))
}

/// `f(.., s, a) + f(.., s, b) = f(.., s, a + b)` of an `f` with two operands, of which
/// number `at` is shared. Biases are a third operand, and then it is not linear.
fn shared(g: &Graph, e: &Expr, wanted: impl Fn(&Op) -> bool, at: usize) -> Option<Term> {
    let [a, b] = *e.children.as_slice() else {
        return None;
    };
    if e.head.op != Op::Add || ty(g, a)? != ty(g, b)? {
        return None;
    }
    let of = |id| {
        let forms = g[id].nodes.iter();
        forms.filter(|f: &&Expr| wanted(&f.head.op) && f.children.len() == 2)
    };
    for x in of(a) {
        for y in of(b) {
            let (own_x, own_y) = (x.children[1 - at], y.children[1 - at]);
            let fits = x.head.op == y.head.op
                && same(g, x.children[at], y.children[at])
                && ty(g, own_x)? == ty(g, own_y)?;
            if fits {
                let sum = over(Op::Add, &[own_x, own_y]);
                let mut operands = vec![sum, class(x.children[at])];
                if at == 0 {
                    operands.reverse();
                }
                return Some(Term::Node(x.head.op, operands));
            }
        }
    }
    None
}
