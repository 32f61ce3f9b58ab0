//! What a library of the vendor may compute in place of our kernels, and how cuDNN and
//! cuBLASLt are told of it.
//!
//! An offer names the kernels that do the same, so that a library may be missing or
//! decline. The rule:
//!
//! - **Convolutions**, their data and weight gradients go to cuDNN: maps in 32 and 64
//!   bits as they lie (`convolution`), maps in 16 bits laid out for tensor cores in the
//!   plan's scratch (`channels_last`).
//! - **Dense layers** of [`LEAST_MATMUL`] multiply-adds or more go to cuBLASLt. They are
//!   never stored in 16 bits.

use sstep_autodiff::DType;

use super::lower::{Call, Step, Task};

/// Multiply-adds below which a library's call costs more than it saves.
pub const LEAST_MATMUL: u64 = 1 << 16;

/// Bytes of the device that a call may use for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scratch {
    /// Address of the first.
    pub address: u64,
    /// How many.
    pub bytes: u64,
}

/// A call that a library may take.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    /// To be run first if it takes the call.
    pub before: Vec<Call>,
    /// What it is to compute.
    pub call: LibraryCall,
    /// What it may use meanwhile.
    pub scratch: Scratch,
    /// To be run afterwards.
    pub after: Option<Call>,
    /// What does all of the above if it does not take it.
    pub instead: Call,
}

/// What a library computes.
#[derive(Clone, Debug, PartialEq)]
pub enum LibraryCall {
    /// For cuDNN.
    Convolution(Convolution),
    /// For cuBLASLt.
    Matmul(Matmul),
}

/// Which of the three products of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pass {
    /// `y` from `x` and the filter.
    Forward,
    /// `x̄` from `ȳ` and the filter.
    Data,
    /// The filter's gradient from `x` and `ȳ`.
    Filter,
}

/// How factors are multiplied. Sums are at least in single precision either way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Products {
    /// In the precision of the elements.
    Full,
    /// On tensor cores, which round what they multiply: to 16 bits what is stored so, and
    /// single precision to TF32. All factors hold values of 16 bits, of which either
    /// keeps every bit.
    TensorCores,
}

/// Extents and strides of a tensor as `[N, C, D, H, W]`, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extents {
    /// How many along each axis.
    pub dims: [i32; 5],
    /// Elements between neighbours.
    pub strides: [i32; 5],
}

/// A convolution but for where its tensors are: what an algorithm is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shapes {
    /// Which product.
    pub pass: Pass,
    /// Elements of image, map and filter.
    pub dtype: DType,
    /// How factors may be multiplied.
    pub products: Products,
    /// Whether the channels of a position lie side by side, in the filter too; of the
    /// image and the map the strides say so as well.
    pub channels_last: bool,
    /// Axes that slide: 2, of a tensor without depth, or 3.
    pub n_spatial: usize,
    /// `x` or `x̄`.
    pub image: Extents,
    /// `y` or `ȳ`.
    pub map: Extents,
    /// `[K, C / groups, D, H, W]` of the filter, dense, in whichever order.
    pub filter: [i32; 5],
    /// Zeros before the first element and after the last, along D, H, W.
    pub pad: [i32; 3],
    /// Step between outputs.
    pub stride: [i32; 3],
    /// Step between taps.
    pub dilation: [i32; 3],
    /// Channel groups.
    pub groups: i32,
    /// Whether the result is added to what is there.
    pub adds: bool,
}

/// A convolution, or one of its gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Convolution {
    /// What of.
    pub shapes: Shapes,
    /// Address of the image's first element.
    pub image: u64,
    /// Address of the map's.
    pub map: u64,
    /// Address of the filter's.
    pub filter: u64,
}

/// Extents of a product of matrices: `c = op(a) · op(b)`, columns dense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MatmulShapes {
    /// Rows of `c`.
    pub m: u64,
    /// Columns of `c`.
    pub n: u64,
    /// Columns of `op(a)`, rows of `op(b)`.
    pub k: u64,
    /// Whether `a` is held transposed: `k` rows of it then, else `m`.
    pub transpose_a: bool,
    /// Whether `b` is: `n` rows of it then, else `k`.
    pub transpose_b: bool,
}

/// A product of matrices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matmul {
    /// What of.
    pub shapes: MatmulShapes,
    /// Address of `a`.
    pub a: u64,
    /// Address of `b`.
    pub b: u64,
    /// Address of `c`.
    pub c: u64,
}

/// Offers a product of row-major matrices, if it is worth it: `rows × columns` from
/// `inner` terms each. Row-major here is column-major there with factors exchanged.
pub(super) fn matmul(
    task: &Task<'_>,
    shapes: MatmulShapes,
    [a, b, c]: [u64; 3],
    after: Option<Call>,
    instead: Call,
) -> Step {
    if shapes.m * shapes.n * shapes.k < LEAST_MATMUL {
        return Step::Kernel(instead);
    }
    Step::Offer(Box::new(Offer {
        before: Vec::new(),
        call: LibraryCall::Matmul(Matmul { shapes, a, b, c }),
        scratch: task.scratch.unwrap_or_default(),
        after,
        instead,
    }))
}
