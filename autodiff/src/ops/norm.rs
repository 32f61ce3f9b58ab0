//! Normalisation, split into a reduction and a pointwise op.

use serde::{Deserialize, Serialize};

use crate::error::TapeError;
use crate::grad::Vjp;
use crate::op::{Num, Op};
use crate::tape::{NodeId, Tape};
use crate::ty::Ty;

use super::check::{self, Checked, ensure, unit};

/// Over what a norm takes its statistics.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NormKind {
    /// Batch and space, per channel.
    Batch,
    /// Space and the channels of a group, per sample. One group per channel is
    /// instance norm, one group in all is layer norm.
    Group(usize),
}

/// A normalisation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct NormAttrs {
    /// Over what statistics are taken.
    pub kind: NormKind,
    /// Added to the variance.
    pub eps: Num,
    /// Whether the statistics are given (running averages) and carry no
    /// gradient, instead of being the moments of the very input.
    pub frozen: bool,
}

/// Which parameter of a norm a gradient belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum NormParam {
    /// The factor.
    Gamma,
    /// The offset.
    Beta,
}

/// Shape of the moments of `x`.
fn moments_dims(kind: NormKind, x: &Ty) -> Checked<[usize; 3]> {
    let (n, c) = (x.shape.batch(), x.shape.channels());
    match kind {
        NormKind::Batch => Ok([1, c, 2]),
        NormKind::Group(groups) => {
            ensure!(
                groups >= 1 && c.is_multiple_of(groups),
                "the {c} channels cannot be normalised in {groups} groups: use a divisor of {c}, \
                 at least 1"
            );
            Ok([n, groups, 2])
        }
    }
}

pub(super) fn infer_moments(kind: NormKind, x: &Ty) -> Checked<Ty> {
    check::expect_map("the input", x)?;
    check::flat(x.dtype, &moments_dims(kind, x)?)
}

pub(super) fn infer_pack(mean: &Ty, var: &Ty) -> Checked<Ty> {
    check::expect_flat("the mean", mean)?;
    ensure!(
        mean.shape.rank() == 1,
        "the mean must have shape [C], not {}",
        mean.shape
    );
    check::expect_same("the variance", var, "the mean", mean)?;
    check::flat(mean.dtype, &[1, mean.shape.dim(0), 2])
}

fn check_attrs(a: &NormAttrs) -> Checked {
    check::expect_num("eps", a.eps, |v| v >= 0.0, "a number not below 0")?;
    ensure!(
        !a.frozen || a.kind == NormKind::Batch,
        "frozen statistics are given per channel, so the kind must be batch, not {:?}",
        a.kind
    );
    Ok(())
}

fn check_stats(a: &NormAttrs, x: &Ty, moments: &Ty) -> Checked {
    check_attrs(a)?;
    check::expect_map("the input", x)?;
    check::expect_dims("the moments", moments, &moments_dims(a.kind, x)?)
}

pub(super) fn infer_normalise(a: &NormAttrs, inputs: &[Ty]) -> Checked<Ty> {
    let x = &inputs[0];
    check_stats(a, x, &inputs[1])?;
    check::expect_dims("gamma", &inputs[2], &[x.shape.channels()])?;
    check::expect_dims("beta", &inputs[3], &[x.shape.channels()])?;
    Ok(*x)
}

fn sums_dims(x: &Ty) -> [usize; 3] {
    [x.shape.batch(), x.shape.channels(), 2]
}

pub(super) fn infer_sums(a: &NormAttrs, inputs: &[Ty]) -> Checked<Ty> {
    let x = &inputs[0];
    check_stats(a, x, &inputs[1])?;
    check::expect_same("the output gradient", &inputs[2], "the input", x)?;
    check::flat(x.dtype, &sums_dims(x))
}

pub(super) fn infer_grad(a: &NormAttrs, inputs: &[Ty]) -> Checked<Ty> {
    if a.frozen {
        let g = &inputs[1];
        check_stats(a, g, &inputs[0])?;
        check::expect_dims("gamma", &inputs[2], &[g.shape.channels()])?;
        return Ok(*g);
    }
    let x = &inputs[0];
    check_stats(a, x, &inputs[1])?;
    check::expect_same("the output gradient", &inputs[2], "the input", x)?;
    check::expect_dims("gamma", &inputs[3], &[x.shape.channels()])?;
    check::expect_dims("the sums", &inputs[4], &sums_dims(x))?;
    Ok(*x)
}

pub(super) fn infer_param_grad(sums: &Ty) -> Checked<Ty> {
    check::expect_flat("the sums", sums)?;
    ensure!(
        sums.shape.rank() == 3 && sums.shape.dim(2) == 2,
        "the sums must have shape [N, C, 2], not {}",
        sums.shape
    );
    check::flat(sums.dtype, &[sums.shape.channels()])
}

/// The gradient goes through the statistics as those of the very input, so
/// nothing else may take their place.
pub(super) fn check_moments(tape: &Tape, a: &NormAttrs, x: NodeId, moments: NodeId) -> Checked {
    let (node, x_name) = (tape.node(moments), &tape.node(x).name);
    ensure!(
        node.op == Op::Moments(a.kind) && node.inputs == [x],
        "the moments of a norm that is not frozen must be those of its own input: expected the \
         {:?} moments of `{x_name}`, but `{}` is {} of {:?}",
        a.kind,
        node.name,
        node.op.name(),
        node.inputs
            .iter()
            .map(|&i| tape.node(i).name.as_str())
            .collect::<Vec<_>>()
    );
    Ok(())
}

pub(super) fn flops(t: &Ty, per_element: f64) -> f64 {
    per_element * unit(t)
}

/// With `x̂ = (x − mean)·rstd`: `γ̄ = Σ ȳ x̂`, `β̄ = Σ ȳ`, and
/// `x̄ = rstd·(γ ȳ − (S₁ + x̂ S₂)/m)`, where `S₁ = Σ γ ȳ`, `S₂ = Σ γ ȳ x̂` over the
/// `m` elements that share statistics; without the second term if frozen. Saves
/// `x` and the moments, never the result; a frozen norm saves `x` only for `γ̄`.
pub(super) fn vjp_normalise(v: &mut Vjp, a: &NormAttrs) -> Result<(), TapeError> {
    let (x, moments, gamma, g) = (v.inputs[0], v.inputs[1], v.inputs[2], v.cotangent);
    let live = v.wants(0) && !a.frozen;
    if live || v.wants(2) {
        let sums = v.push(Op::NormSums(*a), &[x, moments, g])?;
        v.give_op(2, Op::NormParamGrad(NormParam::Gamma), &[sums])?;
        v.give_op(3, Op::NormParamGrad(NormParam::Beta), &[sums])?;
        if live {
            return v.give_op(0, Op::NormGrad(*a), &[x, moments, g, gamma, sums]);
        }
    } else {
        v.give_op(3, Op::SumMap { keep_batch: false }, &[g])?;
    }
    v.give_op(0, Op::NormGrad(*a), &[moments, g, gamma])
}

#[cfg(test)]
mod tests {
    use crate::testing::{check, check_grad};

    const LEAVES: &str = "x = input [2, 6, 4, 4] grad\nz = input [2, 6, 4, 4]\nc = param [6]\n\
                          d = param [6]\nt = input [2, 6, 4, 4]\n";

    #[test]
    fn shapes() {
        let y = |ops: &str| format!("{LEAVES}{ops}");
        check(&[
            (&y("m = moments(x) batch"), "f32[1, 6, 2]"),
            (&y("m = moments(x) groups=3"), "f32[2, 3, 2]"),
            (
                &y("m = moments(x) groups=4"),
                "the 6 channels cannot be normalised in 4 groups",
            ),
            (
                &y("m = moments(x) groups=0"),
                "the 6 channels cannot be normalised in 0 groups",
            ),
            (&y("m = pack_moments(c, d)"), "f32[1, 6, 2]"),
            (
                &y("m = moments(x) groups=3\ny = normalise(x, m, c, d) groups=3 eps=1e-5"),
                "f32[2, 6, 4, 4]",
            ),
            (
                &y("m = moments(x) groups=3\ny = normalise(x, m, c, d) groups=2 eps=1e-5"),
                "the moments must have shape [2, 2, 2], not [2, 3, 2]",
            ),
            (
                &y("m = moments(z) batch\ny = normalise(x, m, c, d) batch eps=1e-5"),
                "must be those of its own input: expected the Batch moments of `x`, but `m` is moments of [\"z\"]",
            ),
            (
                &y("m = pack_moments(c, d)\ny = normalise(x, m, c, d) batch eps=1e-5"),
                "but `m` is pack_moments of [\"c\", \"d\"]",
            ),
            (
                &y("m = pack_moments(c, d)\ny = normalise(x, m, c, d) batch eps=1e-5 frozen"),
                "f32[2, 6, 4, 4]",
            ),
            (
                &y("m = moments(x) groups=2\ny = normalise(x, m, c, d) groups=2 eps=1e-5 frozen"),
                "frozen statistics are given per channel, so the kind must be batch",
            ),
            (
                &y("m = moments(x) batch\ny = normalise(x, m, c, d) batch eps=-1"),
                "eps must be a number not below 0",
            ),
            (
                &y("m = moments(x) batch\ny = norm_sums(x, m, z) batch eps=0"),
                "f32[2, 6, 2]",
            ),
            (
                &y(
                    "m = moments(x) batch\ns = norm_sums(x, m, z) batch eps=0\ng = norm_param_grad(s) of=beta",
                ),
                "f32[6]",
            ),
        ]);
    }

    #[test]
    fn a_live_norm_goes_through_its_statistics() {
        check_grad(
            &format!(
                "{LEAVES}m = moments(x) groups=2\ny = normalise(x, m, c, d) groups=2 eps=1e-5\nl = mse(y, t)"
            ),
            "seed8 = constant [1] value=1
             t9 = mse_grad(y, t, seed8)
             t10 = norm_sums(x, m, t9) groups=2 eps=1e-5
             grad/c = norm_param_grad(t10) of=gamma
             grad/d = norm_param_grad(t10) of=beta
             grad/x = norm_grad(x, m, t9, c, t10) groups=2 eps=1e-5",
        );
    }

    #[test]
    fn a_frozen_norm_saves_as_little_as_its_parameters_need() {
        let net = |gamma: &str, beta: &str| {
            format!(
                "x = input [2, 6, 4] grad\nmean = param [6]\nvar = param [6]\ng = param [6] {gamma}\n\
                 b = param [6] {beta}\nt = input [2, 6, 4]\nm = pack_moments(mean, var)\n\
                 y = normalise(x, m, g, b) batch eps=1e-5 frozen\nl = mse(y, t)"
            )
        };
        let seed = "seed9 = constant [1] value=1\nt10 = mse_grad(y, t, seed9)\n";
        check_grad(
            &net("", ""),
            &format!(
                "{seed}t11 = norm_sums(x, m, t10) batch eps=1e-5 frozen
                 grad/g = norm_param_grad(t11) of=gamma
                 grad/b = norm_param_grad(t11) of=beta
                 grad/x = norm_grad(m, t10, g) batch eps=1e-5 frozen"
            ),
        );
        check_grad(
            &net("frozen", ""),
            &format!(
                "{seed}grad/b = sum_map(t10) keep_batch=false
                 grad/x = norm_grad(m, t10, g) batch eps=1e-5 frozen"
            ),
        );
        check_grad(
            &net("frozen", "frozen"),
            &format!("{seed}grad/x = norm_grad(m, t10, g) batch eps=1e-5 frozen"),
        );
    }
}
