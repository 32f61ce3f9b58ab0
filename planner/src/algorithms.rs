//! How each convolution is computed: the pass after the rewrites.
//!
//! Winograd's algorithm needs a quarter of the multiplications of a 3 × 3
//! convolution and pays for it with transforms of its inputs and outputs, so
//! that it wins from some number of channels on: the machine profile tells. It
//! rounds differently and reads whole tiles, so it is chosen here, once per node,
//! for every tile of the plan: the tape stays as it was written, and the executor
//! decides nothing.

use sstep_autodiff::{ConvAlgo, DType, Op, Ty};

use crate::machine::{Kernel, Machine};
use crate::program::Program;

/// Positions of the calls that the ways to compute are compared on: about a tile.
const TILE_POINTS: u64 = 1 << 14;

/// Chooses the algorithm of every convolution. Tells whether any is not direct.
pub fn choose_algorithms(program: &mut Program, machine: &Machine) -> bool {
    if !machine.winograd || program.dtype != DType::F32 {
        return false;
    }
    let mut any = false;
    for n in program.indices() {
        let node = program.node(n);
        let inputs = program.input_tys(n);
        let op = node.op;
        if let Some(other) = by_winograd(&op, &inputs, &node.ty)
            && secs(machine, &other, &inputs, &node.ty) < secs(machine, &op, &inputs, &node.ty)
        {
            program.nodes[n.ix()].op = other;
            any = true;
        }
    }
    any
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
    use crate::program::{NodeIx, StepSpec};

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
        let any = choose_algorithms(&mut program, machine);
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
