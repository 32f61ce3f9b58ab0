//! The kernels on CUDA: their source, and which of them an op runs.
//!
//! Nothing here needs CUDA. The sources in `kernels/cuda/` are one module per
//! element type ([`source()`]); every kernel takes one parameter block,
//! [`Args`], by value. [`compute`], [`accumulate`] and their like spell an op
//! out as [`Step`]s: [`Call`]s, which are a kernel's name, its block and how much work
//! there is, and [`Offer`]s, which a library of the vendor may compute instead. A
//! backend compiles, places and launches them, and decides nothing.

mod args;
mod attrs;
mod bytes;
mod channels_last;
mod convolution;
mod library;
mod lower;
mod reductions;
mod sliding;

pub use args::{Args, Placed, View};
pub use bytes::from_bytes;
pub use library::{
    Convolution, Extents, LEAST_MATMUL, LibraryCall, Matmul, MatmulShapes, Offer, Pass, Products,
    Scratch, Shapes,
};
pub use lower::{Call, Step, Task, Work, compute, copy, slide, update};
pub use reductions::{FINITE_SLOTS, accumulate, begin, finish, not_finite};

use sstep_autodiff::DType;

/// Threads of a block; a constant of the sources too.
pub const BLOCK_THREADS: u32 = 256;

/// What every kernel shares.
const COMMON: &str = include_str!("../../cuda/common.cuh");

/// Families of kernels, in an order in which each uses only what came before.
const FAMILIES: [&str; 9] = [
    include_str!("../../cuda/pointwise.cu"),
    include_str!("../../cuda/structure.cu"),
    include_str!("../../cuda/turn.cu"),
    include_str!("../../cuda/conv.cu"),
    include_str!("../../cuda/pool.cu"),
    include_str!("../../cuda/upsample.cu"),
    include_str!("../../cuda/reduce.cu"),
    include_str!("../../cuda/norm.cu"),
    include_str!("../../cuda/loss.cu"),
];

/// Layers on flat tensors, and optimisers.
const DENSE: &str = include_str!("../../cuda/dense.cu");

/// A module: all kernels that compute in one element type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Module {
    /// What is computed with: of a narrow type that is `f32`.
    pub dtype: DType,
    /// Whether maps may be stored in 16 bits. Every access then asks how.
    pub narrow: bool,
}

/// Text of a module.
pub fn source(module: Module) -> String {
    let real = match module.dtype {
        DType::F32 | DType::Bf16 | DType::F16 => "float",
        DType::F64 => "double",
    };
    let mut text = format!("#define REAL {real}\n");
    if module.narrow {
        text.push_str("#define NARROW\n");
    }
    for part in [COMMON].into_iter().chain(FAMILIES).chain([DENSE]) {
        text.push_str(part);
        text.push('\n');
    }
    text
}

/// Every kernel that is ever called.
pub fn kernel_names() -> &'static [&'static str] {
    &[
        "unary",
        "unary_grad",
        "add",
        "mul",
        "scale",
        "softmax",
        "softmax_grad",
        "channel_sum",
        "dropout",
        "concat",
        "slice",
        "pad",
        "broadcast",
        "constant",
        "copy",
        "slide",
        "from_bytes",
        "fill_state",
        "turn",
        "turn_back",
        "turn_filter",
        "add_part",
        "conv",
        "conv_transpose",
        "conv_weight_grad",
        "max_pool",
        "max_pool_grad",
        "avg_pool",
        "avg_pool_grad",
        "upsample",
        "upsample_grad",
        "sum_map",
        "not_finite",
        "global_max",
        "global_max_grad",
        "spatial_lse",
        "finish",
        "moments",
        "pack_moments",
        "normalise",
        "norm_sums",
        "norm_grad_frozen",
        "norm_grad",
        "norm_param_grad",
        "cross_entropy",
        "cross_entropy_grad",
        "bce",
        "bce_grad",
        "mse",
        "mse_grad",
        "dice_sums",
        "dice_sums_grad",
        "dice_loss",
        "dice_loss_grad",
        "linear",
        "linear_input_grad",
        "linear_weight_grad",
        "sgd",
        "adam",
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_source_has_every_kernel_that_is_called_and_no_other() {
        let text = source(Module {
            dtype: DType::F32,
            narrow: false,
        });
        let mut defined: Vec<&str> = (text.split("\nKERNEL ").skip(1))
            .filter_map(|rest| rest.split('(').next())
            .collect();
        let mut called = kernel_names().to_vec();
        defined.sort_unstable();
        called.sort_unstable();
        assert_eq!(defined, called);
        assert!(text.contains(&format!("#define THREADS {BLOCK_THREADS}\n")));
    }
}
