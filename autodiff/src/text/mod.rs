//! The text form of a tape: one node per line, readable and lossless.
//!
//! ```text
//! tape v1 f32                                   # header: version, element type
//!
//! x = input [1, 3, 64, 64]                      # `grad` after it asks for its gradient
//! w = param [16, 3, 3, 3]                       # `frozen` after it: not trained
//! y = conv(x, w) stride=[2, 2] pad=[1, 1]       # name = op(inputs) attributes
//! output y
//! ```
//!
//! Inputs of rank 3 and more are maps, all other leaves are flat. Whatever
//! follows a `#` is ignored; [`Tape`]'s `Display` writes each type there. Names
//! are defined before they are used, so the order of lines is the order of the
//! tape. An attribute at its neutral value (stride 1, dilation 1, padding 0, one
//! group) is left out, and one number may stand for the same on all axes.
//! Printing and parsing give back an equal tape, gradients included.

mod near;
mod parse;
mod print;
mod scan;
#[cfg(test)]
mod tests;

#[cfg(doc)]
use crate::tape::Tape;

/// Every op's name, for messages; the parser's match decides.
const OPS: &[&str] = &[
    "conv",
    "conv_transpose",
    "conv_weight_grad",
    "max_pool",
    "max_pool_grad",
    "avg_pool",
    "avg_pool_grad",
    "upsample",
    "upsample_grad",
    "relu",
    "leaky_relu",
    "gelu",
    "silu",
    "sigmoid",
    "tanh",
    "exp",
    "relu_grad",
    "leaky_relu_grad",
    "gelu_grad",
    "silu_grad",
    "sigmoid_grad",
    "tanh_grad",
    "exp_grad",
    "add",
    "mul",
    "scale",
    "dropout",
    "softmax",
    "softmax_grad",
    "channel_sum",
    "concat",
    "slice",
    "pad",
    "broadcast",
    "sum_map",
    "global_max",
    "global_max_grad",
    "spatial_lse",
    "moments",
    "pack_moments",
    "normalise",
    "norm_sums",
    "norm_grad",
    "norm_param_grad",
    "linear",
    "linear_input_grad",
    "linear_weight_grad",
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
];
