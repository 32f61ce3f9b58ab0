//! Dense layers by cuBLASLt.
//!
//! A product's descriptions are made for the call: there are few calls, and what is
//! kept is the algorithm. The library is told how much scratch there is when it
//! chooses; it allocates none itself.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;
use cudarc::driver::CudaStream;
use sstep_autodiff::DType;
use sstep_kernels::cuda::{LibraryCall, Matmul, MatmulShapes, Scratch};

use crate::device::{DeviceError, Missing};

use super::library::{Library, call_failed};

/// cuBLASLt on one stream.
pub(super) struct CublasLt {
    handle: sys::cublasLtHandle_t,
    stream: Arc<CudaStream>,
    dtype: DType,
    /// Algorithms by extents and bytes of scratch; `None` where there is none.
    known: BTreeMap<(MatmulShapes, u64), Option<sys::cublasLtMatmulHeuristicResult_t>>,
}

// SAFETY: a handle may be used by any thread.
unsafe impl Send for CublasLt {}

impl Drop for CublasLt {
    fn drop(&mut self) {
        // SAFETY: made by `open`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

/// Descriptions of one product.
struct Described {
    product: sys::cublasLtMatmulDesc_t,
    layouts: Vec<sys::cublasLtMatrixLayout_t>,
}

impl Drop for Described {
    fn drop(&mut self) {
        // SAFETY: made by `describe`, destroyed once.
        unsafe {
            let _ = result::destroy_matmul_desc(self.product);
            for layout in &self.layouts {
                let _ = result::destroy_matrix_layout(*layout);
            }
        }
    }
}

impl CublasLt {
    /// Opens the library for calls on `stream`.
    ///
    /// # Errors
    /// [`Missing`] if it is not there or does not start.
    pub(super) fn open(stream: &Arc<CudaStream>, dtype: DType) -> Result<Self, Missing> {
        let missing = |reason: String| Missing {
            name: "cuBLASLt",
            what: "dense layers",
            file: "libcublasLt.so.13",
            package: "nvidia-cublas",
            reason,
        };
        // SAFETY: loads the library, which is made to be loaded.
        if !unsafe { sys::is_culib_present() } {
            return Err(missing("not found".to_owned()));
        }
        let handle = result::create_handle().map_err(|e| missing(format!("it says {e}")))?;
        Ok(CublasLt {
            handle,
            stream: Arc::clone(stream),
            dtype,
            known: BTreeMap::new(),
        })
    }

    fn describe(&self, of: &MatmulShapes) -> Result<Described, CublasError> {
        let (real, scale, precision) = match self.dtype {
            DType::F32 => (
                sys::cudaDataType_t::CUDA_R_32F,
                sys::cudaDataType_t::CUDA_R_32F,
                // Not the one that rounds to TF32.
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            ),
            DType::F64 => (
                sys::cudaDataType_t::CUDA_R_64F,
                sys::cudaDataType_t::CUDA_R_64F,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_64F,
            ),
            DType::Bf16 => (
                sys::cudaDataType_t::CUDA_R_16BF,
                sys::cudaDataType_t::CUDA_R_32F,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            ),
            DType::F16 => (
                sys::cudaDataType_t::CUDA_R_16F,
                sys::cudaDataType_t::CUDA_R_32F,
                sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            ),
        };
        let mut this = Described {
            product: result::create_matmul_desc(precision, scale)?,
            layouts: Vec::new(),
        };
        use sys::cublasLtMatmulDescAttributes_t as Attribute;
        let transposes = [
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSA, of.transpose_a),
            (Attribute::CUBLASLT_MATMUL_DESC_TRANSB, of.transpose_b),
        ];
        for (attribute, transposed) in transposes {
            let value = i32::from(transposed);
            let at = (&raw const value).cast::<c_void>();
            // SAFETY: just made; the attribute is one number of that size.
            unsafe { result::set_matmul_desc_attribute(this.product, attribute, at, 4) }?;
        }
        let held = |rows, columns, transposed| {
            if transposed {
                (columns, rows)
            } else {
                (rows, columns)
            }
        };
        let (a, b) = (
            held(of.m, of.k, of.transpose_a),
            held(of.k, of.n, of.transpose_b),
        );
        for (rows, columns) in [a, b, (of.m, of.n)] {
            let layout = result::create_matrix_layout(real, rows, columns, rows as i64)?;
            this.layouts.push(layout);
        }
        Ok(this)
    }

    /// The algorithm for a product with so much scratch.
    fn find(
        &self,
        of: &MatmulShapes,
        scratch_bytes: u64,
    ) -> Result<sys::cublasLtMatmulHeuristicResult_t, CublasError> {
        let described = self.describe(of)?;
        let [a, b, c] = described.layouts[..] else {
            return Err(CublasError(
                sys::cublasStatus_t::CUBLAS_STATUS_INTERNAL_ERROR,
            ));
        };
        let preference = result::create_matmul_pref()?;
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let scratch_bytes = scratch_bytes as usize;
        // SAFETY: what is described exists; the attribute is one number of that size.
        let found = unsafe {
            let at = (&raw const scratch_bytes).cast::<c_void>();
            let attribute = Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES;
            result::set_matmul_pref_attribute(preference, attribute, at, size_of::<usize>())
                .and_then(|()| {
                    let product = described.product;
                    result::get_matmul_algo_heuristic(self.handle, product, a, b, c, c, preference)
                })
        };
        // SAFETY: made above, destroyed once.
        let _ = unsafe { result::destroy_matmul_pref(preference) };
        found
    }

    fn start(
        &self,
        call: &Matmul,
        chosen: &sys::cublasLtMatmulHeuristicResult_t,
        scratch: Scratch,
    ) -> Result<(), CublasError> {
        let described = self.describe(&call.shapes)?;
        let [a, b, c] = described.layouts[..] else {
            return Err(CublasError(
                sys::cublasStatus_t::CUBLAS_STATUS_INTERNAL_ERROR,
            ));
        };
        let (single, double) = ([1f32, 0.0], [1f64, 0.0]);
        let (one, zero): (*const c_void, *const c_void) = match self.dtype.wide() {
            DType::F32 | DType::Bf16 | DType::F16 => {
                ((&raw const single[0]).cast(), (&raw const single[1]).cast())
            }
            DType::F64 => ((&raw const double[0]).cast(), (&raw const double[1]).cast()),
        };
        let out = call.c as *mut c_void;
        // SAFETY: tensors and scratch lie within the arena, as the lowering took them
        // from views and the plan; the factors are read before the call returns.
        unsafe {
            result::matmul(
                self.handle,
                described.product,
                one,
                zero,
                call.a as *const c_void,
                a,
                call.b as *const c_void,
                b,
                out,
                c,
                out,
                c,
                &raw const chosen.algo,
                scratch.address as *mut c_void,
                chosen.workspaceSize,
                self.stream.cu_stream().cast(),
            )
        }
    }
}

impl Library for CublasLt {
    fn accepts(&mut self, call: &LibraryCall, scratch: Scratch) -> bool {
        let LibraryCall::Matmul(call) = call else {
            return false;
        };
        let key = (call.shapes, scratch.bytes);
        if !self.known.contains_key(&key) {
            let found = self.find(&call.shapes, scratch.bytes).ok();
            let found = found.filter(|f| f.workspaceSize as u64 <= scratch.bytes);
            self.known.insert(key, found);
        }
        matches!(self.known.get(&key), Some(Some(_)))
    }

    fn run(&mut self, call: &LibraryCall, scratch: Scratch) -> Result<bool, DeviceError> {
        let LibraryCall::Matmul(call) = call else {
            return Ok(false);
        };
        let key = (call.shapes, scratch.bytes);
        let Some(chosen) = self.known.get(&key).copied().flatten() else {
            return Ok(false);
        };
        match self.start(call, &chosen, scratch) {
            Ok(()) => Ok(true),
            // It found out late that it cannot: from now on it is not asked.
            Err(CublasError(status)) if is_refusal(status) => {
                self.known.insert(key, None);
                Ok(false)
            }
            Err(e) => Err(call_failed("a product by cuBLASLt", &e)),
        }
    }
}

/// Whether a status says that nothing was begun, for the call is not one of those
/// that it supports.
fn is_refusal(status: sys::cublasStatus_t) -> bool {
    use sys::cublasStatus_t as Status;
    matches!(
        status,
        Status::CUBLAS_STATUS_INVALID_VALUE
            | Status::CUBLAS_STATUS_ARCH_MISMATCH
            | Status::CUBLAS_STATUS_NOT_SUPPORTED
    )
}
