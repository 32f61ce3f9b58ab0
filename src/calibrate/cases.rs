//! What stands for each family: one op, at a width and a number of positions.
//!
//! Maps are four times as wide as they are high, like the tiles of most plans.

use sstep_autodiff::{
    ConvAlgo, ConvAttrs, ConvTransposeAttrs, DType, Form, NormAttrs, NormKind, Num, Op, PoolAttrs,
    Shape, Ty, UnaryKind, UpsampleAttrs, UpsampleMode, infer,
};
use sstep_planner::machine::{ConvClass, ConvRole, Family, Kernel};

/// Positions of a call, of each column.
pub const POSITIONS: [usize; 5] = [64, 1024, 16_384, 262_144, 1_048_576];

/// Channels of maps where only bytes count.
const CHANNELS: usize = 64;

/// A call to be measured.
#[derive(Clone, Debug)]
pub enum Case {
    /// A kernel on whole maps.
    Kernel {
        /// The op.
        op: Box<Op>,
        /// Types of its inputs.
        inputs: Vec<Ty>,
        /// Type of its result.
        out: Ty,
    },
    /// An update of a parameter of this many elements, by AdamW.
    Update(usize),
    /// A copy of this many elements within the arena.
    Copy(usize),
}

impl Case {
    fn kernel(&self) -> Option<Kernel<'_>> {
        match self {
            Case::Kernel { op, inputs, out } => Some(Kernel { op, inputs, out }),
            Case::Update(_) | Case::Copy(_) => None,
        }
    }

    /// Positions of the call.
    pub fn positions(&self) -> f64 {
        self.kernel().map_or(1, |k| k.whole_points()) as f64
    }

    /// FLOPs of the call.
    pub fn flops(&self) -> f64 {
        self.kernel().map_or(0.0, |k| k.flops(k.whole_points()))
    }

    /// Bytes that the call touches, counted as the planner does.
    pub fn bytes(&self) -> f64 {
        match self {
            Case::Kernel { .. } => self.kernel().map_or(0.0, |k| k.bytes(k.whole_points())),
            // Parameter, gradient and two tensors of state; all but one are written.
            Case::Update(n) => (n * 4 * 7) as f64,
            Case::Copy(n) => (n * 4 * 2) as f64,
        }
    }

    /// Width of the call in channels.
    pub fn width(&self) -> f64 {
        self.kernel().map_or(1.0, |k| k.width())
    }
}

/// Channels of the rows of a family's table.
pub fn widths(family: Family) -> &'static [usize] {
    let Family::Conv(class, _) = family else {
        return &[CHANNELS];
    };
    match class {
        ConvClass::Direct | ConvClass::Winograd | ConvClass::Strided => {
            &[16, 32, 64, 128, 256, 512]
        }
        ConvClass::OneByOne => &[8, 16, 64, 256],
        ConvClass::FewChannels => &[16, 64],
        ConvClass::Depthwise => &[CHANNELS],
    }
}

fn map(channels: usize, [h, w]: [usize; 2]) -> Ty {
    Ty {
        dtype: DType::F32,
        shape: Shape::map(1, channels, &[h, w]),
        form: Form::Map,
    }
}

fn flat(dims: &[usize]) -> Ty {
    Ty {
        dtype: DType::F32,
        shape: Shape::new(dims),
        form: Form::Flat,
    }
}

fn kernel(op: Op, inputs: Vec<Ty>) -> Case {
    let out = infer(&op, &inputs).expect("the stand-in of a family is well-formed");
    Case::Kernel {
        op: Box::new(op),
        inputs,
        out,
    }
}

/// The call of a family at a width in channels and a number of positions.
pub fn case(family: Family, width: usize, positions: usize) -> Case {
    let h = (positions / 4).isqrt();
    let space = [h, 4 * h];
    let half = space.map(|s| s / 2);
    let x = map(width, space);
    let small = map(width, half);
    let norm = NormAttrs {
        kind: NormKind::Group(8),
        eps: Num::new(1e-5),
        frozen: false,
    };
    let (moments, gamma) = (flat(&[1, 8, 2]), flat(&[width]));
    let pool = PoolAttrs {
        kernel: [3, 3, 1],
        stride: [2, 2, 1],
        pad_lo: [1, 1, 0],
        pad_hi: [1, 1, 0],
        count_pad: true,
    };
    let twice = UpsampleAttrs {
        factor: [2, 2, 1],
        mode: UpsampleMode::Linear,
    };
    match family {
        Family::Conv(class, role) => convolution(class, role, width, space),
        Family::Dense => kernel(
            Op::Linear,
            vec![
                flat(&[1, positions.isqrt()]),
                flat(&[positions.isqrt() * 4, positions.isqrt()]),
            ],
        ),
        Family::Pointwise => kernel(Op::Add, vec![x, x]),
        Family::Function => kernel(Op::Unary(UnaryKind::Silu), vec![x]),
        Family::Norm => kernel(Op::Normalise(norm), vec![x, moments, gamma, gamma]),
        Family::NormGrad => {
            let sums = flat(&[1, width, 2]);
            kernel(Op::NormGrad(norm), vec![x, moments, x, gamma, sums])
        }
        Family::Pool => kernel(Op::MaxPool(pool), vec![x]),
        Family::PoolGrad => kernel(Op::MaxPoolGrad(pool), vec![x, small]),
        Family::Upsample => kernel(Op::Upsample(twice), vec![small]),
        Family::UpsampleGrad => kernel(Op::UpsampleGrad(twice), vec![x]),
        Family::Reduction => kernel(Op::SumMap { keep_batch: true }, vec![x]),
        Family::Statistics => kernel(Op::Moments(norm.kind), vec![x]),
        Family::Loss => kernel(
            Op::CrossEntropyGrad,
            vec![map(4, space), map(1, space), flat(&[1])],
        ),
        Family::Optimiser => Case::Update(positions * 16),
        Family::Copy => Case::Copy(positions * width),
    }
}

/// A convolution of which `space` are the positions that it is computed over.
fn convolution(class: ConvClass, role: ConvRole, width: usize, space: [usize; 2]) -> Case {
    let (taps, stride, groups, ins) = match class {
        ConvClass::Direct | ConvClass::Winograd => (3, 1, 1, width),
        ConvClass::Strided => (3, 2, 1, width),
        ConvClass::OneByOne => (1, 1, 1, width),
        ConvClass::Depthwise => (3, 1, width, width),
        // The first layer of a network: an image of three colours.
        ConvClass::FewChannels => (7, 2, 1, 3),
    };
    let attrs = ConvAttrs {
        kernel: [taps, taps, 1],
        stride: [stride, stride, 1],
        dilation: [1; 3],
        pad_lo: [taps / 2, taps / 2, 0],
        pad_hi: [taps / 2, taps / 2, 0],
        groups,
        algo: if class == ConvClass::Winograd {
            ConvAlgo::Winograd
        } else {
            ConvAlgo::Direct
        },
    };
    let w = flat(&[width, ins / groups, taps, taps]);
    let x = map(ins, space.map(|s| s * stride));
    let y = map(width, space);
    match role {
        ConvRole::Forward => kernel(Op::Conv(attrs), vec![x, w]),
        ConvRole::Weight => kernel(Op::ConvWeightGrad(attrs), vec![x, y]),
        ConvRole::Adjoint => {
            let [h, w_extent] = space;
            let op = Op::ConvTranspose(ConvTransposeAttrs {
                conv: attrs,
                out_spatial: [h, w_extent, 1],
            });
            kernel(op, vec![map(width, space.map(|s| s / stride)), w])
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_case_is_of_its_family() {
        for family in Family::all() {
            for &width in widths(family) {
                for positions in POSITIONS {
                    let case = case(family, width, positions);
                    if let Some(kernel) = case.kernel() {
                        assert_eq!(kernel.family(), family, "{case:?}");
                    }
                    assert!(case.bytes() > 0.0);
                }
            }
        }
    }
}
