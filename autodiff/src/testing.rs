//! Tapes for tests: written as text, or drawn at random.

use crate::error::TapeError;
use crate::grad::backward;
use crate::op::Op;
use crate::ops::{NormKind, UnaryKind, UpsampleMode};
use crate::region::Span;
use crate::tape::{NodeId, Tape};
use crate::ty::DType;
use crate::{Attention, ConvSpec, PoolSpec};

/// Parses lines below a header.
pub(crate) fn parse(lines: &str) -> Result<Tape, TapeError> {
    Tape::parse(&format!("tape v1 f32\n{lines}"))
}

/// Checks a table of lines and the type of what the last one defines, or part
/// of the error.
pub(crate) fn check(table: &[(&str, &str)]) {
    for (lines, expected) in table {
        match parse(lines) {
            Ok(tape) => {
                let last = *tape.order().last().expect("the lines define something");
                assert_eq!(tape.ty(last).to_string(), *expected, "{lines}");
                let form = if tape.ty(last).is_map() {
                    "map"
                } else {
                    "flat"
                };
                let rank = tape.ty(last).shape.rank();
                assert!(
                    form == "flat" || rank >= 3,
                    "{lines}: {form} of rank {rank}"
                );
                tape.check().unwrap();
            }
            Err(error) => {
                let error = error.to_string();
                assert!(
                    error.contains(expected),
                    "{lines}\nexpected {expected}\nfound {error}"
                );
            }
        }
    }
}

/// What the last node reads of input `input` for an interval of its output (or
/// domain) along `axis`.
pub(crate) fn reads(lines: &str, input: usize, axis: usize, out: std::ops::Range<usize>) -> Span {
    let tape = parse(lines).unwrap();
    let last = *tape.order().last().unwrap();
    let tys = tape.input_tys(last);
    tape.node(last)
        .op
        .read(input, axis, &tys, &tape.ty(last))
        .apply(out.into(), tys[input].axis_extent(axis))
}

/// Differentiates the last node and compares the lines that were appended.
/// Auto names are as the tape prints them.
pub(crate) fn check_grad(lines: &str, expected: &str) {
    let mut tape = parse(lines).unwrap();
    let n = tape.len();
    let loss = *tape.order().last().unwrap();
    backward(&mut tape, loss).unwrap();
    tape.check().unwrap();
    let text = tape.to_string();
    let appended: Vec<&str> = text
        .lines()
        .skip(2 + n)
        .take(tape.len() - n)
        .map(|line| line.split("  #").next().unwrap())
        .collect();
    let expected: Vec<&str> = expected
        .lines()
        .map(str::trim)
        .filter(|l| !l.is_empty())
        .collect();
    assert_eq!(appended, expected, "{lines}");
}

/// A source of small numbers.
pub(crate) struct Draw(u64);

impl Draw {
    pub(crate) fn new(seed: u64) -> Self {
        Draw(seed)
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: usize) -> usize {
        // Knuth's MMIX generator; the upper bits are the good ones.
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n
    }
}

/// A tape of random ops over one to three spatial axes, with its gradients.
pub(crate) fn random_tape(seed: u64, n_ops: usize) -> Tape {
    let mut draw = Draw::new(seed);
    let d = &mut draw;
    let mut tape = Tape::new(if d.below(2) == 0 {
        DType::F32
    } else {
        DType::F64
    });
    let n_spatial = 1 + d.below(3);
    let mut dims = vec![1 + d.below(2), 1 + d.below(4)];
    dims.extend((0..n_spatial).map(|_| 6 + d.below(5)));
    let x = tape.input_with_grad("x", &dims).unwrap();
    let mut maps = vec![x];
    for i in 0..n_ops {
        let x = maps[maps.len() - 1 - d.below(maps.len().min(3))];
        if let Ok(y) = grow(&mut tape, d, x, &maps, i) {
            maps.push(y);
        }
    }
    let top = *maps.last().unwrap();
    let loss = close(&mut tape, d, top);
    backward(&mut tape, loss).unwrap();
    tape
}

fn weight(tape: &mut Tape, name: &str, k: usize, c: usize, kernel: &[usize]) -> NodeId {
    let dims: Vec<usize> = [k, c].iter().chain(kernel).copied().collect();
    tape.param(name, &dims).unwrap()
}

/// Adds a map op, or fails where it does not fit.
fn grow(
    tape: &mut Tape,
    d: &mut Draw,
    x: NodeId,
    maps: &[NodeId],
    i: usize,
) -> Result<NodeId, TapeError> {
    let shape = tape.ty(x).shape;
    let (c, n_spatial) = (shape.channels(), shape.spatial().len());
    let vec = |tape: &mut Tape, what: &str, n| tape.param(&format!("{what}{i}"), &[n]);
    match d.below(20) {
        0..=2 => {
            let groups = if d.below(3) == 0 { c } else { 1 };
            let kernel: Vec<usize> = (0..n_spatial).map(|_| 1 + d.below(3)).collect();
            let w = weight(
                tape,
                &format!("w{i}"),
                groups * (1 + d.below(2)),
                c / groups,
                &kernel,
            );
            let b = vec(tape, "b", tape.ty(w).shape.dim(0))?;
            let spec = ConvSpec {
                stride: [1 + d.below(2), 1 + d.below(2), 1],
                dilation: [1, 1 + d.below(2), 1],
                pad_lo: [d.below(2), 1, 1],
                pad_hi: [1, d.below(3), 1],
                groups,
            };
            tape.conv(x, w, Some(b), spec)
        }
        3 => {
            let w = weight(tape, &format!("w{i}"), c, 2, &vec![2; n_spatial]);
            tape.conv_transpose(x, w, None, ConvSpec::default().strided(1 + d.below(2)))
        }
        4 => tape.max_pool(
            x,
            PoolSpec::new(2 + d.below(2))
                .strided(1 + d.below(2))
                .padded(1),
        ),
        5 => tape.avg_pool(
            x,
            PoolSpec {
                count_pad: d.below(2) == 0,
                ..PoolSpec::new(2)
            },
        ),
        6 => tape.upsample(
            x,
            1 + d.below(2),
            if d.below(2) == 0 {
                UpsampleMode::Nearest
            } else {
                UpsampleMode::Linear
            },
        ),
        7 => tape.leaky_relu(x, 0.1),
        8 => {
            let kinds = [
                UnaryKind::Relu,
                UnaryKind::Gelu,
                UnaryKind::Silu,
                UnaryKind::Sigmoid,
                UnaryKind::Tanh,
                UnaryKind::Exp,
            ];
            tape.unary(kinds[d.below(kinds.len())], x)
        }
        9 => {
            let like = maps.iter().filter(|&&m| tape.ty(m) == tape.ty(x)).copied();
            let like: Vec<NodeId> = like.collect();
            tape.add(x, like[d.below(like.len())])
        }
        10 => {
            let gate = tape.global_mean(x)?;
            let gate = tape.sigmoid(gate)?;
            tape.mul(x, gate)
        }
        11 => {
            let one = tape.slice_channels(x, 0, 1)?;
            if d.below(2) == 0 {
                tape.mul(x, one)
            } else {
                tape.add(x, one)
            }
        }
        12 => tape.dropout(x, 0.25),
        13 => tape.softmax(x),
        14 => tape.push(Op::ChannelSum, &[x]),
        15 => tape.concat(&[x, x]),
        16 => {
            let lo: Vec<usize> = (0..=n_spatial).map(|_| d.below(2)).collect();
            let hi: Vec<usize> = (0..=n_spatial).map(|_| d.below(3)).collect();
            tape.pad(x, &lo, &hi)
        }
        17 => {
            let gamma = vec(tape, "gamma", c)?;
            let beta = vec(tape, "beta", c)?;
            match d.below(4) {
                0 => tape.batch_norm(x, gamma, beta, 1e-5),
                1 => tape.instance_norm(x, gamma, beta, 1e-5),
                2 => tape.layer_norm(x, gamma, beta, 1e-5),
                _ => {
                    let mean = tape.frozen_param(&format!("mean{i}"), &[c])?;
                    let var = tape.frozen_param(&format!("var{i}"), &[c])?;
                    tape.frozen_norm(x, [mean, var], gamma, beta, 1e-3)
                }
            }
        }
        18 => {
            let moments = tape.global_max(x)?;
            let spread = tape.broadcast(moments, tape.ty(x).shape.spatial().to_vec().as_slice())?;
            tape.sub(x, spread)
        }
        _ => tape.scale(x, -0.5),
    }
}

/// Ends in one of the losses.
fn close(tape: &mut Tape, d: &mut Draw, x: NodeId) -> NodeId {
    let shape = tape.ty(x).shape;
    let (n, c, ones) = (
        shape.batch(),
        shape.channels(),
        vec![1; shape.spatial().len()],
    );
    match d.below(6) {
        0 => {
            let t = tape.input("target", shape.dims()).unwrap();
            let p = tape.sigmoid(x).unwrap();
            tape.soft_dice(p, t, 1.0).unwrap()
        }
        1 => {
            let labels = tape.input("labels", shape.with_channels(1).dims()).unwrap();
            tape.cross_entropy(x, labels).unwrap()
        }
        2 => {
            let t = tape.input("target", shape.dims()).unwrap();
            tape.bce(x, t).unwrap()
        }
        3 => {
            let attention = Attention {
                v: weight(tape, "v", 3, c, &ones),
                v_bias: None,
                u: weight(tape, "u", 3, c, &ones),
                u_bias: Some(tape.param("u_bias", &[3]).unwrap()),
                w: weight(tape, "attend", 1, 3, &ones),
            };
            let pooled = tape.attention_pool(x, attention).unwrap();
            let t = tape.input("target", &[n, c]).unwrap();
            tape.mse(pooled, t).unwrap()
        }
        4 => {
            let pooled = tape.lse_pool(x, 4.0).unwrap();
            let labels = tape.input("labels", &[n, 1]).unwrap();
            let w = tape.param("head", &[3, c]).unwrap();
            let b = tape.param("head_bias", &[3]).unwrap();
            let logits = tape.linear(pooled, w, Some(b)).unwrap();
            tape.cross_entropy(logits, labels).unwrap()
        }
        _ => {
            let moments = tape.push(Op::Moments(NormKind::Batch), &[x]).unwrap();
            tape.output(moments);
            let t = tape.input("target", shape.dims()).unwrap();
            tape.mse(x, t).unwrap()
        }
    }
}
