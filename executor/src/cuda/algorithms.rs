//! Which of cuDNN's algorithms count for a convolution, and which runs.
//!
//! Those that give the same bits every time and multiply as the call says ([`Products`]),
//! in the order that cuDNN thinks fastest.

use std::ffi::c_int;

use cudarc::cudnn::sys::{self, cudnnStatus_t as Status};
use cudarc::cudnn::{CudnnError, result};
use sstep_kernels::cuda::{Pass, Products, Scratch, Shapes};

use super::cudnn::Described;

/// Most algorithms of a pass that cuDNN knows.
const MOST_ALGORITHMS: usize = 10;

/// An algorithm for one shape.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice {
    pub algorithm: Algorithm,
    /// How it multiplies. cuDNN knows kernels of one algorithm apart by this.
    pub math: sys::cudnnMathType_t,
    /// Scratch that it needs.
    pub bytes: u64,
}

/// Which of cuDNN's.
#[derive(Clone, Copy, Debug)]
pub(super) enum Algorithm {
    /// Of the forward pass.
    Forward(sys::cudnnConvolutionFwdAlgo_t),
    /// Of the data gradient.
    Data(sys::cudnnConvolutionBwdDataAlgo_t),
    /// Of the filter's gradient.
    Filter(sys::cudnnConvolutionBwdFilterAlgo_t),
}

/// The algorithms that count, with the scratch that each asks for.
pub(super) fn choices(
    handle: sys::cudnnHandle_t,
    of: &Described,
    shapes: &Shapes,
) -> Result<Vec<Choice>, CudnnError> {
    let (x, y) = (of.image, of.map);
    let (w, conv) = (of.filter, of.conv);
    let mut count: c_int = 0;
    /// Asks for what cuDNN thinks fastest, and what each needs.
    macro_rules! ask {
        ($kind:path, $perf:ty, $find:path, $bytes:path, $($tensor:expr),*) => {{
            // SAFETY: plain numbers, of which zero is one.
            let mut found: [$perf; MOST_ALGORITHMS] = unsafe { std::mem::zeroed() };
            let most = MOST_ALGORITHMS as c_int;
            // SAFETY: what is described exists; as many answers as there is room for.
            unsafe { $find(handle, $($tensor),*, most, &mut count, found.as_mut_ptr())? };
            let counts = |p: &&$perf| {
                p.status == Status::CUDNN_STATUS_SUCCESS
                    && p.determinism == sys::cudnnDeterminism_t::CUDNN_DETERMINISTIC
                    && is_permitted(p.mathType, shapes.products)
                    && (shapes.products == Products::Full || $kind(p.algo).is_direct())
            };
            let found = &found[..usize::try_from(count).unwrap_or(0).min(MOST_ALGORITHMS)];
            let needs = |p: &$perf| {
                let math = math_of(p.mathType, shapes);
                let mut bytes = None;
                // SAFETY: as above.
                if unsafe { result::set_convolution_math_type(conv, math) }.is_ok() {
                    // SAFETY: as above. What it has no bytes for, it does not support.
                    bytes = unsafe { $bytes(handle, $($tensor),*, p.algo) }.ok();
                }
                let (algorithm, bytes) = ($kind(p.algo), bytes? as u64);
                Some(Choice { algorithm, math, bytes })
            };
            found.iter().filter(counts).filter_map(needs).collect()
        }};
    }
    Ok(match shapes.pass {
        Pass::Forward => ask!(
            Algorithm::Forward,
            sys::cudnnConvolutionFwdAlgoPerf_t,
            result::get_convolution_forward_algorithm,
            result::get_convolution_forward_workspace_size,
            x,
            w,
            conv,
            y
        ),
        Pass::Data => ask!(
            Algorithm::Data,
            sys::cudnnConvolutionBwdDataAlgoPerf_t,
            result::get_convolution_backward_data_algorithm,
            result::get_convolution_backward_data_workspace_size,
            w,
            y,
            conv,
            x
        ),
        Pass::Filter => ask!(
            Algorithm::Filter,
            sys::cudnnConvolutionBwdFilterAlgoPerf_t,
            result::get_convolution_backward_filter_algorithm,
            result::get_convolution_backward_filter_workspace_size,
            x,
            y,
            conv,
            w
        ),
    })
}

/// The fastest algorithm that the scratch is enough for.
pub(super) fn fitting(of: &Described, scratch: Scratch) -> Option<Choice> {
    let fits = |c: &Choice| c.bytes <= scratch.bytes;
    of.choices.iter().copied().find(fits)
}

impl Algorithm {
    /// Whether it multiplies the elements themselves. Others transform them first, and
    /// tensor cores would round what comes of that.
    fn is_direct(self) -> bool {
        use sys::cudnnConvolutionBwdDataAlgo_t as Data;
        use sys::cudnnConvolutionBwdFilterAlgo_t as Filter;
        use sys::cudnnConvolutionFwdAlgo_t as Forward;
        match self {
            Algorithm::Forward(algo) => matches!(
                algo,
                Forward::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_GEMM
                    | Forward::CUDNN_CONVOLUTION_FWD_ALGO_IMPLICIT_PRECOMP_GEMM
                    | Forward::CUDNN_CONVOLUTION_FWD_ALGO_GEMM
                    | Forward::CUDNN_CONVOLUTION_FWD_ALGO_DIRECT
            ),
            Algorithm::Data(algo) => matches!(
                algo,
                Data::CUDNN_CONVOLUTION_BWD_DATA_ALGO_0 | Data::CUDNN_CONVOLUTION_BWD_DATA_ALGO_1
            ),
            Algorithm::Filter(algo) => matches!(
                algo,
                Filter::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_0
                    | Filter::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1
                    | Filter::CUDNN_CONVOLUTION_BWD_FILTER_ALGO_3
            ),
        }
    }
}

/// What cuDNN may do when it is asked for algorithms.
pub(super) fn permitted(shapes: &Shapes) -> sys::cudnnMathType_t {
    use sys::cudnnMathType_t as Math;
    match shapes.products {
        // No rounding to TF32: gradients are to equal the untiled run's.
        Products::Full => Math::CUDNN_FMA_MATH,
        Products::TensorCores if shapes.dtype.is_narrow() => Math::CUDNN_TENSOR_OP_MATH,
        // TF32.
        Products::TensorCores => Math::CUDNN_DEFAULT_MATH,
    }
}

/// What it is told when an algorithm runs that was found with `math`.
fn math_of(math: sys::cudnnMathType_t, shapes: &Shapes) -> sys::cudnnMathType_t {
    match shapes.products {
        Products::Full => permitted(shapes),
        Products::TensorCores => math,
    }
}

/// Whether an algorithm multiplies as it is to.
fn is_permitted(math: sys::cudnnMathType_t, products: Products) -> bool {
    use sys::cudnnMathType_t as Math;
    match math {
        Math::CUDNN_DEFAULT_MATH | Math::CUDNN_FMA_MATH => true,
        Math::CUDNN_TENSOR_OP_MATH => products == Products::TensorCores,
        // Rounds single precision to half.
        Math::CUDNN_TENSOR_OP_MATH_ALLOW_CONVERSION => false,
    }
}
