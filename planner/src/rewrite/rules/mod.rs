//! The rules, one line each.
//!
//! A rule is a function from one form of a class to an equal form, with its
//! conditions beside it; it holds for every shape it matches. No rule is a general
//! law such as commutativity: each must be able to pay. They are grouped by what they
//! are about: [`pointwise`] functions, [`structure`] (values that are moved), [`sums`]
//! that share an operand, [`pooling`] and [`windows`] of convolutions.
//!
//! A form that is tagged as a root keeps its tag: a rule that makes another op of it
//! makes that the root; one that only names another class does not apply.
//!
//! Three rewrites are known and left out. A norm's gradient from its output divides by
//! γ, which may be zero, and what a network keeps is the ReLU of that output anyway. A
//! frozen norm folded into its convolution needs the unfolded result as well as soon as
//! γ is trained, as it is in every built-in network. Nearest upsampling before a
//! convolution as a sub-pixel convolution needs weights summed over taps and a shuffle
//! that the tape does not have, and no built-in network upsamples so.

mod pointwise;
mod pooling;
mod structure;
mod sums;
mod windows;

use egg::{Applier, EGraph, Id, PatternAst, Rewrite, SearchMatches, Searcher, Subst, Symbol, Var};
use sstep_autodiff::{Op, Ty, UnaryKind};

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

/// What a rule does: the equal form of one e-node, if the rule applies.
type Matcher = fn(&Graph, &Expr) -> Option<Term>;

/// A rule: its name, and what it does.
pub type Rule = (&'static str, Matcher);

/// All rules.
pub const RULES: &[Rule] = &[
    (
        "gradient of a function from its value",
        pointwise::grad_from_value,
    ),
    ("relu of relu", pointwise::relu_of_relu),
    ("mask of a mask", pointwise::mask_of_mask),
    ("scale of scale", pointwise::scale_of_scale),
    ("scale by one", pointwise::scale_by_one),
    ("sum of scaled", pointwise::sum_of_scaled),
    ("product with one value", pointwise::product_with_one_value),
    ("sum with zeros", pointwise::sum_with_zeros),
    ("slice of everything", structure::slice_of_everything),
    ("slice of slice", structure::slice_of_slice),
    ("slice of what was concatenated", structure::slice_of_concat),
    ("slice of what was padded", structure::slice_of_pad),
    ("padding of nothing", structure::pad_of_nothing),
    ("padding of padding", structure::pad_of_pad),
    (
        "concatenation of concatenations",
        structure::concat_of_concats,
    ),
    (
        "concatenation of neighbouring slices",
        structure::concat_of_slices,
    ),
    ("sum of paddings is a concatenation", structure::sum_of_pads),
    ("scale of a repeated vector", structure::scale_of_broadcast),
    (
        "sum over space of a repeated vector",
        structure::sum_of_broadcast,
    ),
    ("sum over space of a scaled map", structure::sum_of_scaled),
    (
        "sum over space of a concatenation",
        structure::sum_of_concat,
    ),
    (
        "sum of convolutions that share the map",
        sums::convolutions_of_one_map,
    ),
    (
        "sum of convolutions that share the weight",
        sums::convolutions_by_one_weight,
    ),
    (
        "sum of weight gradients that share an operand",
        sums::weight_gradients,
    ),
    (
        "sum of linear layers that share an operand",
        sums::linear_layers,
    ),
    ("max-pool of relu", pooling::pool_of_relu),
    (
        "gradient of a max-pool of relu",
        pooling::grad_of_pool_of_relu,
    ),
    (
        "sum over space of a 1x1 convolution",
        pooling::sum_of_one_by_one,
    ),
    (
        "1x1 convolution of a repeated vector",
        pooling::one_by_one_of_broadcast,
    ),
    (
        "1x1 weight gradient of a repeated vector",
        pooling::one_by_one_weight_of_broadcast,
    ),
    ("convolution of a concatenation", windows::conv_of_concat),
    ("slice of a data gradient", windows::slice_of_transpose),
    (
        "weight gradient of a concatenation",
        windows::weight_of_concat,
    ),
    ("scaled convolution", windows::scaled_conv),
    ("convolution of a scaled map", windows::conv_of_scaled),
    ("weight gradient of a scaled map", windows::weight_of_scaled),
];

/// Rules that keep every bit, also of results that are rounded to a narrow type: values
/// are only moved, chosen or masked. On narrow maps there are no others: one more
/// rounding to 8 bits would show.
const EXACT: &[&str] = &[
    "relu of relu",
    "mask of a mask",
    "scale by one",
    "sum with zeros",
    "slice of everything",
    "slice of slice",
    "slice of what was concatenated",
    "slice of what was padded",
    "padding of nothing",
    "padding of padding",
    "concatenation of concatenations",
    "concatenation of neighbouring slices",
    "sum of paddings is a concatenation",
    "sum over space of a concatenation",
    "max-pool of relu",
    "gradient of a max-pool of relu",
];

/// Whether a form reads narrow maps, itself or by way of what it reads: a rule looks no
/// deeper.
fn reads_narrow(g: &Graph, e: &Expr) -> bool {
    let is_narrow = |id: &Id| ty(g, *id).is_some_and(|ty| ty.dtype.is_narrow());
    let within = |id: &Id| {
        let mut forms = g[*id].nodes.iter();
        forms.any(|inner| inner.children.iter().any(is_narrow))
    };
    e.children.iter().any(|id| is_narrow(id) || within(id))
}

/// Whether the slope of a function is the same from its rounded value as from its
/// argument.
fn slope_survives_rounding(op: &Op) -> bool {
    matches!(
        op,
        Op::UnaryGrad {
            kind: UnaryKind::Relu | UnaryKind::LeakyRelu(_),
            saved: _,
        }
    )
}

/// Type of a class.
fn ty(g: &Graph, class: Id) -> Option<Ty> {
    g[class].data.ty
}

/// Whether two ids are one class.
fn same(g: &Graph, a: Id, b: Id) -> bool {
    g.find(a) == g.find(b)
}

/// A form of a class whose op is wanted.
fn inner(g: &Graph, class: Id, want: impl Fn(&Op) -> bool) -> Option<&Expr> {
    g[class].nodes.iter().find(|e| want(&e.head.op))
}

/// A class as a term.
fn class(id: Id) -> Term {
    Term::Class(id)
}

/// An op over classes as a term.
fn over(op: Op, inputs: &[Id]) -> Term {
    Term::Node(op, inputs.iter().map(|&i| Term::Class(i)).collect())
}

/// The rules as egg runs them; only that of the given name, if one is given.
pub fn rewrites(only: Option<&str>) -> Vec<Rewrite<Expr, Facts>> {
    let wanted = RULES
        .iter()
        .filter(|(name, _)| only.is_none_or(|o| o == *name));
    wanted
        .map(|&(name, rule)| {
            Rewrite::new(name, Forms(name, rule), Forms(name, rule))
                .expect("a rule without variables binds all of them")
        })
        .collect()
}

/// Finds classes with a form that a rule applies to, and adds its equal.
struct Forms(&'static str, Matcher);

impl Forms {
    /// Equal forms of a class, by this rule.
    fn terms(&self, g: &Graph, class: Id) -> Vec<(Head, Term)> {
        let forms = g[class].nodes.iter().filter(|e| !e.head.op.is_leaf());
        let Forms(name, rule) = self;
        let is_exact = EXACT.contains(name);
        let may =
            |e: &&Expr| is_exact || slope_survives_rounding(&e.head.op) || !reads_narrow(g, e);
        let terms = forms
            .filter(may)
            .filter_map(|e| Some((e.head, rule(g, e)?)));
        // A root that is another node's value still has to be a node of its own.
        terms
            .filter(|(head, term)| head.tag.is_none() || matches!(term, Term::Node(..)))
            .collect()
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
        for (head, term) in self.terms(egraph, eclass) {
            let id = match &term {
                Term::Node(op, inputs) => {
                    let children = inputs.iter().map(|t| add(egraph, t)).collect();
                    let head = Head { op: *op, ..head };
                    egraph.add(Expr { head, children })
                }
                Term::Class(id) => *id,
            };
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
