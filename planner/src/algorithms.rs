//! How each convolution is computed: the pass after the rewrites.
//!
//! Winograd's algorithm needs a quarter of the multiplications of a 3 × 3
//! convolution and pays for it with transforms of its inputs and outputs, so
//! that it wins from some number of channels on: the machine profile tells. It
//! rounds differently and reads whole tiles, so it is chosen here, once per node,
//! for every tile of the plan: the tape stays as it was written, and the executor
//! decides nothing.

use std::collections::BTreeSet;

use sstep_autodiff::{ConvAlgo, DType, Op, Ty};

use crate::machine::{Kernel, Machine};
use crate::program::{NodeIx, Program};

/// Programs equal to this one in which ever fewer convolutions use another
/// algorithm than the direct one: all that win by it; those whose maps are small,
/// where reading a little more is cheap, and all weight gradients, which nothing
/// reads tile by tile; those gradients alone. Programs without any are left out.
pub fn with_algorithms(program: &Program, machine: &Machine) -> Vec<Program> {
    let points = |n: NodeIx| {
        let maps = program.node(n).inputs.iter().map(|i| program.node(*i).ty);
        let points = maps
            .filter(|ty| ty.is_map())
            .map(|ty| ty.shape.spatial().iter().product());
        points.max().unwrap_or(0)
    };
    let largest: usize = program.indices().map(points).max().unwrap_or(0);
    let is_sum = |n: NodeIx| matches!(program.node(n).op, Op::ConvWeightGrad(_));
    let is_small = |n: NodeIx| points(n) * SMALL <= largest;
    let choices: [&dyn Fn(NodeIx) -> bool; 3] = [&|_| true, &|n| is_sum(n) || is_small(n), &is_sum];
    let mut seen = BTreeSet::new();
    let mut out = Vec::new();
    for may in choices {
        let mut chosen = program.clone();
        let changed = choose_algorithms(&mut chosen, machine, may);
        if !changed.is_empty() && seen.insert(changed) {
            out.push(chosen);
        }
    }
    out
}

/// Positions of the calls that the ways to compute are compared on: about a tile.
const TILE_POINTS: u64 = 1 << 14;

/// A map with this many times fewer positions than the largest is small.
const SMALL: usize = 200;

/// Chooses the algorithm of every convolution that `may` have another than the
/// direct one. Tells which have.
fn choose_algorithms(
    program: &mut Program,
    machine: &Machine,
    may: &dyn Fn(NodeIx) -> bool,
) -> Vec<NodeIx> {
    let mut changed = Vec::new();
    if !machine.winograd || program.dtype != DType::F32 {
        return changed;
    }
    for n in program.indices().filter(|n| may(*n)) {
        let node = program.node(n);
        let inputs = program.input_tys(n);
        let op = node.op;
        if let Some(other) = by_winograd(&op, &inputs, &node.ty)
            && secs(machine, &other, &inputs, &node.ty) < secs(machine, &op, &inputs, &node.ty)
        {
            program.nodes[n.ix()].op = other;
            changed.push(n);
        }
    }
    changed
}

/// The same convolution by Winograd's algorithm, if that is defined and there are
/// kernels for it: they work on sixteen channels at a time.
pub(crate) fn by_winograd(op: &Op, inputs: &[Ty], out: &Ty) -> Option<Op> {
    let mut op = *op;
    let (attrs, sides) = match &mut op {
        Op::Conv(a) => (a, [inputs.first()?, out]),
        Op::ConvTranspose(a) => (&mut a.conv, [inputs.first()?, out]),
        Op::ConvWeightGrad(a) => (a, [inputs.first()?, inputs.get(1)?]),
        _ => return None,
    };
    let n_spatial = sides[0].shape.spatial().len();
    let fits = |ty: &Ty| ty.shape.channels().is_multiple_of(16);
    if !attrs.can_winograd(n_spatial) || !sides.into_iter().all(fits) {
        return None;
    }
    attrs.algo = ConvAlgo::Winograd;
    Some(op)
}

/// Seconds of an op over its whole map, tile by tile.
fn secs(machine: &Machine, op: &Op, inputs: &[Ty], out: &Ty) -> f64 {
    let kernel = Kernel { op, inputs, out };
    let points = kernel.whole_points();
    machine.kernel_secs(&kernel, points, points.div_ceil(TILE_POINTS))
}

#[cfg(test)]
mod tests {
    use sstep_autodiff::Tape;

    use super::*;
    use crate::program::StepSpec;

    const NET: &str = "tape v1 f32\nx = input [1, 32, 40, 40]\nw = param [64, 32, 3, 3]\n\
                       a = conv(x, w) pad=1\nv = param [64, 64, 3, 3]\n\
                       b = conv(a, v) stride=2 pad=1\nu = param [8, 64, 3, 3]\n\
                       y = conv(b, u) pad=1";

    fn algos(text: &str, machine: &Machine) -> Vec<ConvAlgo> {
        let tape = Tape::parse(text).expect("a tape");
        let spec = StepSpec {
            outputs: vec![*tape.order().last().expect("a node")],
            ..StepSpec::default()
        };
        let mut program = Program::new(&tape, &spec).expect("a program");
        let any = !choose_algorithms(&mut program, machine, &|_| true).is_empty();
        let of = |n: NodeIx| match program.node(n).op {
            Op::Conv(a) => Some(a.algo),
            _ => None,
        };
        let algos: Vec<_> = program.indices().filter_map(of).collect();
        assert_eq!(any, algos.contains(&ConvAlgo::Winograd));
        algos
    }

    #[test]
    fn wide_unit_stride_convolutions_take_winograd() {
        use ConvAlgo::{Direct, Winograd};
        let mut machine = Machine::cpu_default();
        assert_eq!(algos(NET, &machine), [Winograd, Direct, Direct]);
        let doubles = NET.replace("f32", "f64");
        assert_eq!(algos(&doubles, &machine), [Direct; 3]);
        machine.winograd = false;
        assert_eq!(algos(NET, &machine), [Direct; 3]);
    }
}
