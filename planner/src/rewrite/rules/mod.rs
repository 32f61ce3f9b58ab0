//! The rules, one line each.
//!
//! A rule is a function from one form of a class to an equal form, with its
//! conditions beside it; it holds for every shape it matches. Tagged forms are
//! roots and stay as they are. No rule is a general law such as commutativity:
//! each must be able to pay.

use egg::{Applier, EGraph, Id, PatternAst, Rewrite, SearchMatches, Searcher, Subst, Symbol, Var};
use sstep_autodiff::{Num, Op, Saved, UnaryKind};

use super::lang::{Expr, Facts, Head};

/// A form to add: an op over classes and further forms.
pub enum Term {
    /// A class that is there.
    Class(Id),
    /// An op over terms.
    Node(Op, Vec<Term>),
}

/// The e-graph of a program.
type Graph = EGraph<Expr, Facts>;

/// A rule: name, and the equal form of one e-node if the rule applies.
pub type Rule = (&'static str, fn(&Graph, &Expr) -> Option<Term>);

/// All rules.
pub const RULES: &[Rule] = &[
    ("gradient of a function from its value", grad_from_value),
    ("relu of relu", relu_of_relu),
    ("scale of scale", scale_of_scale),
    ("scale by one", scale_by_one),
    ("slice of what was concatenated", slice_of_concat),
    ("slice of what was padded", slice_of_pad),
];

/// `f̄(x, ȳ) = f̄(f(x), ȳ)` where the value determines the slope: the argument
/// need not be kept.
fn grad_from_value(_: &Graph, e: &Expr) -> Option<Term> {
    let Op::UnaryGrad {
        kind,
        saved: Saved::Input,
    } = e.head.op
    else {
        return None;
    };
    let value = Term::Node(Op::Unary(kind), vec![Term::Class(e.children[0])]);
    kind.grad_from_output().then(|| {
        let op = Op::UnaryGrad {
            kind,
            saved: Saved::Output,
        };
        Term::Node(op, vec![value, Term::Class(e.children[1])])
    })
}

/// `relu(relu(x)) = relu(x)`.
fn relu_of_relu(g: &Graph, e: &Expr) -> Option<Term> {
    let relu = Op::Unary(UnaryKind::Relu);
    let inner = (e.head.op == relu).then(|| inner(g, e.children[0], |op| *op == relu))?;
    inner.map(|_| Term::Class(e.children[0]))
}

/// `a (b x) = (a b) x`.
fn scale_of_scale(g: &Graph, e: &Expr) -> Option<Term> {
    let Op::Scale { factor: a } = e.head.op else {
        return None;
    };
    let inner = inner(g, e.children[0], |op| matches!(op, Op::Scale { .. }))?;
    let Op::Scale { factor: b } = inner.head.op else {
        return None;
    };
    let op = Op::Scale {
        factor: Num::new(a.get() * b.get()),
    };
    Some(Term::Node(op, vec![Term::Class(inner.children[0])]))
}

/// `1 x = x`.
fn scale_by_one(_: &Graph, e: &Expr) -> Option<Term> {
    match e.head.op {
        Op::Scale { factor } if factor.get() == 1.0 => Some(Term::Class(e.children[0])),
        _ => None,
    }
}

/// A slice of exactly one part of a concatenation is that part.
fn slice_of_concat(g: &Graph, e: &Expr) -> Option<Term> {
    let Op::Slice(slice) = e.head.op else {
        return None;
    };
    let inner = inner(g, e.children[0], |op| matches!(op, Op::Concat))?;
    let mut first = 0;
    for &part in &inner.children {
        let shape = g[part].data.ty?.shape;
        let whole_space = shape
            .spatial()
            .iter()
            .enumerate()
            .all(|(s, &extent)| slice.start[1 + s] == 0 && slice.len[1 + s] == extent);
        let same = slice.start[0] == first && slice.len[0] == shape.channels();
        if whole_space && same {
            return Some(Term::Class(part));
        }
        first += shape.channels();
    }
    None
}

/// A slice that takes off exactly what was padded on.
fn slice_of_pad(g: &Graph, e: &Expr) -> Option<Term> {
    let Op::Slice(slice) = e.head.op else {
        return None;
    };
    let inner = inner(g, e.children[0], |op| matches!(op, Op::Pad(_)))?;
    let Op::Pad(pad) = inner.head.op else {
        return None;
    };
    let shape = g[inner.children[0]].data.ty?.shape;
    let exact = shape
        .dims()
        .iter()
        .skip(1)
        .enumerate()
        .all(|(axis, &extent)| slice.start[axis] == pad.lo[axis] && slice.len[axis] == extent);
    exact.then(|| Term::Class(inner.children[0]))
}

/// A form of a class whose op is wanted.
fn inner(g: &Graph, class: Id, want: impl Fn(&Op) -> bool) -> Option<&Expr> {
    g[class].nodes.iter().find(|e| want(&e.head.op))
}

/// All rules as egg runs them.
pub fn rewrites() -> Vec<Rewrite<Expr, Facts>> {
    RULES
        .iter()
        .map(|&(name, rule)| {
            Rewrite::new(name, Forms(rule), Forms(rule))
                .expect("a rule without variables binds all of them")
        })
        .collect()
}

/// Finds classes with a form that a rule applies to, and adds its equal.
struct Forms(fn(&Graph, &Expr) -> Option<Term>);

impl Forms {
    fn terms(&self, g: &Graph, class: Id) -> Vec<Term> {
        let untagged = g[class].nodes.iter().filter(|e| e.head.tag.is_none());
        untagged.filter_map(|e| (self.0)(g, e)).collect()
    }
}

impl Searcher<Expr, Facts> for Forms {
    fn search_eclass_with_limit(
        &self,
        egraph: &Graph,
        eclass: Id,
        limit: usize,
    ) -> Option<SearchMatches<'_, Expr>> {
        if limit == 0 || self.terms(egraph, eclass).is_empty() {
            return None;
        }
        Some(SearchMatches {
            eclass,
            substs: vec![Subst::default()],
            ast: None,
        })
    }

    fn vars(&self) -> Vec<Var> {
        Vec::new()
    }
}

impl Applier<Expr, Facts> for Forms {
    fn apply_one(
        &self,
        egraph: &mut Graph,
        eclass: Id,
        _subst: &Subst,
        _ast: Option<&PatternAst<Expr>>,
        rule: Symbol,
    ) -> Vec<Id> {
        let mut changed = Vec::new();
        for term in self.terms(egraph, eclass) {
            let id = add(egraph, &term);
            if egraph.union_trusted(eclass, id, rule) {
                changed.push(id);
            }
        }
        changed
    }
}

fn add(egraph: &mut Graph, term: &Term) -> Id {
    match term {
        Term::Class(id) => *id,
        Term::Node(op, inputs) => {
            let children = inputs.iter().map(|t| add(egraph, t)).collect();
            egraph.add(Expr {
                head: Head { op: *op, tag: None },
                children,
            })
        }
    }
}
