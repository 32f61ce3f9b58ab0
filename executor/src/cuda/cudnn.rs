//! Convolutions by cuDNN.
//!
//! Its descriptions of a convolution are made once per shape and kept with the
//! algorithms that count for it (`algorithms`). Which of them runs depends on the scratch
//! that the plan gives, and nothing else is allocated.

use std::collections::BTreeMap;
use std::ffi::{c_int, c_void};
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::cudnn::sys::{self, cudnnStatus_t as Status};
use cudarc::cudnn::{CudnnError, result};
use cudarc::driver::CudaStream;
use sstep_autodiff::DType;
use sstep_kernels::cuda::{Convolution, Extents, LibraryCall, Scratch, Shapes};

use crate::device::{DeviceError, Missing};

use super::algorithms::{Algorithm, Choice, choices, fitting, permitted};
use super::library::{Library, call_failed};

/// cuDNN's descriptions of one convolution.
pub(super) struct Described {
    pub image: sys::cudnnTensorDescriptor_t,
    pub map: sys::cudnnTensorDescriptor_t,
    pub filter: sys::cudnnFilterDescriptor_t,
    pub conv: sys::cudnnConvolutionDescriptor_t,
    /// Fastest first.
    pub choices: Vec<Choice>,
}

impl Drop for Described {
    fn drop(&mut self) {
        // SAFETY: made by `describe`, destroyed once; null where that failed, which
        // cuDNN is not given.
        unsafe {
            if !self.image.is_null() {
                let _ = result::destroy_tensor_descriptor(self.image);
            }
            if !self.map.is_null() {
                let _ = result::destroy_tensor_descriptor(self.map);
            }
            if !self.filter.is_null() {
                let _ = result::destroy_filter_descriptor(self.filter);
            }
            if !self.conv.is_null() {
                let _ = result::destroy_convolution_descriptor(self.conv);
            }
        }
    }
}

/// cuDNN on one stream.
pub(super) struct Cudnn {
    handle: sys::cudnnHandle_t,
    /// Kept as long as the handle uses it.
    _stream: Arc<CudaStream>,
    /// What is known of a shape; `None` if cuDNN has nothing for it.
    known: BTreeMap<Shapes, Option<Described>>,
}

// SAFETY: a handle and descriptions may be used by any thread, one at a time.
unsafe impl Send for Cudnn {}

impl Drop for Cudnn {
    fn drop(&mut self) {
        self.known.clear();
        // SAFETY: made by `open`, destroyed once.
        let _ = unsafe { result::destroy_handle(self.handle) };
    }
}

impl Cudnn {
    /// Opens the library for calls on `stream`.
    ///
    /// # Errors
    /// [`Missing`] if it is not there or does not start.
    pub(super) fn open(stream: &Arc<CudaStream>) -> Result<Self, Missing> {
        let missing = |reason: String| Missing {
            name: "cuDNN",
            what: "convolutions",
            file: "libcudnn.so.9",
            package: "nvidia-cudnn-cu13",
            reason,
        };
        // SAFETY: loads the library, which is made to be loaded.
        if !unsafe { sys::is_culib_present() } {
            return Err(missing("not found".to_owned()));
        }
        let version = result::get_version();
        if version / 10_000 != 9 {
            return Err(missing(format!("version number {version}")));
        }
        let broken = |e: CudnnError| missing(format!("it says {e}"));
        let handle = result::create_handle().map_err(broken)?;
        let this = Cudnn {
            handle,
            _stream: Arc::clone(stream),
            known: BTreeMap::new(),
        };
        // SAFETY: both were just made, and the stream lives as long as the handle.
        unsafe { result::set_stream(handle, stream.cu_stream().cast()) }.map_err(broken)?;
        Ok(this)
    }

    fn describe(&self, shapes: &Shapes) -> Result<Described, CudnnError> {
        let n = shapes.n_spatial;
        let mut this = Described {
            image: null_mut(),
            map: null_mut(),
            filter: null_mut(),
            conv: null_mut(),
            choices: Vec::new(),
        };
        let elements = data_type(shapes.dtype);
        this.image = tensor(&shapes.image, n, elements)?;
        this.map = tensor(&shapes.map, n, elements)?;
        this.filter = result::create_filter_descriptor()?;
        this.conv = result::create_convolution_descriptor()?;
        let dims = spatial(&shapes.filter, n);
        let order = if shapes.channels_last {
            sys::cudnnTensorFormat_t::CUDNN_TENSOR_NHWC
        } else {
            sys::cudnnTensorFormat_t::CUDNN_TENSOR_NCHW
        };
        let axes = |of: &[i32; 3]| of[3 - n..].to_vec();
        let (pad, stride) = (axes(&shapes.pad), axes(&shapes.stride));
        let dilation = axes(&shapes.dilation);
        // SAFETY: all were just made; the arrays are as long as said.
        unsafe {
            result::set_filternd_descriptor(
                this.filter,
                elements,
                order,
                dims.len() as c_int,
                dims.as_ptr(),
            )?;
            result::set_convolutionnd_descriptor(
                this.conv,
                n as c_int,
                pad.as_ptr(),
                stride.as_ptr(),
                dilation.as_ptr(),
                sys::cudnnConvolutionMode_t::CUDNN_CROSS_CORRELATION,
                data_type(shapes.dtype.wide()),
            )?;
            result::set_convolution_group_count(this.conv, shapes.groups)?;
            result::set_convolution_math_type(this.conv, permitted(shapes))?;
        }
        this.choices = choices(self.handle, &this, shapes)?;
        Ok(this)
    }

    /// Starts `call` as chosen, with the scratch that was asked for.
    fn start(
        &self,
        call: &Convolution,
        of: &Described,
        chosen: Choice,
        scratch: Scratch,
    ) -> Result<(), CudnnError> {
        let single = [1f32, f32::from(u8::from(call.shapes.adds))];
        let double = single.map(f64::from);
        let (one, keep): (*const c_void, *const c_void) = match call.shapes.dtype.wide() {
            DType::F32 | DType::Bf16 | DType::F16 => {
                ((&raw const single[0]).cast(), (&raw const single[1]).cast())
            }
            DType::F64 => ((&raw const double[0]).cast(), (&raw const double[1]).cast()),
        };
        let space = if chosen.bytes == 0 {
            null_mut()
        } else {
            scratch.address as *mut c_void
        };
        let (handle, bytes) = (self.handle, chosen.bytes as usize);
        let (image, map) = (call.image as *mut c_void, call.map as *mut c_void);
        let filter = call.filter as *mut c_void;
        let (x, y, w, conv) = (of.image, of.map, of.filter, of.conv);
        // SAFETY: tensors and scratch lie within the arena, as the lowering took them
        // from views and the plan; the factors are read before the calls return.
        unsafe {
            result::set_convolution_math_type(conv, chosen.math)?;
            match chosen.algorithm {
                Algorithm::Forward(algo) => result::convolution_forward(
                    handle, one, x, image, w, filter, conv, algo, space, bytes, keep, y, map,
                ),
                Algorithm::Data(algo) => result::convolution_backward_data(
                    handle, one, w, filter, y, map, conv, algo, space, bytes, keep, x, image,
                ),
                Algorithm::Filter(algo) => result::convolution_backward_filter(
                    handle, one, x, image, y, map, conv, algo, space, bytes, keep, w, filter,
                ),
            }
        }
    }
}

impl Library for Cudnn {
    fn accepts(&mut self, call: &LibraryCall, scratch: Scratch) -> bool {
        let LibraryCall::Convolution(call) = call else {
            return false;
        };
        if !self.known.contains_key(&call.shapes) {
            // What it cannot describe is done without it.
            let made = self.describe(&call.shapes).ok();
            self.known.insert(call.shapes, made);
        }
        let known = self.known.get(&call.shapes);
        known
            .and_then(Option::as_ref)
            .is_some_and(|of| fitting(of, scratch).is_some())
    }

    fn run(&mut self, call: &LibraryCall, scratch: Scratch) -> Result<bool, DeviceError> {
        let LibraryCall::Convolution(call) = call else {
            return Ok(false);
        };
        let of = self.known.get(&call.shapes).and_then(Option::as_ref);
        let Some((of, chosen)) = of.and_then(|of| Some((of, fitting(of, scratch)?))) else {
            return Ok(false);
        };
        match self.start(call, of, chosen, scratch) {
            Ok(()) => Ok(true),
            // It found out late that it cannot: from now on it is not asked.
            Err(CudnnError(status)) if is_refusal(status) => {
                self.known.insert(call.shapes, None);
                Ok(false)
            }
            Err(e) => Err(call_failed("a convolution by cuDNN", &e)),
        }
    }
}

fn data_type(of: DType) -> sys::cudnnDataType_t {
    match of {
        DType::F32 => sys::cudnnDataType_t::CUDNN_DATA_FLOAT,
        DType::F64 => sys::cudnnDataType_t::CUDNN_DATA_DOUBLE,
        DType::Bf16 => sys::cudnnDataType_t::CUDNN_DATA_BFLOAT16,
        DType::F16 => sys::cudnnDataType_t::CUDNN_DATA_HALF,
    }
}

fn tensor(
    of: &Extents,
    n: usize,
    elements: sys::cudnnDataType_t,
) -> Result<sys::cudnnTensorDescriptor_t, CudnnError> {
    let made = result::create_tensor_descriptor()?;
    let (dims, strides) = (spatial(&of.dims, n), spatial(&of.strides, n));
    let count = dims.len() as c_int;
    // SAFETY: just made; the arrays are as long as said.
    let set = unsafe {
        let (dims, strides) = (dims.as_ptr(), strides.as_ptr());
        result::set_tensornd_descriptor(made, elements, count, dims, strides)
    };
    if set.is_err() {
        // SAFETY: made above, and given to nobody.
        let _ = unsafe { result::destroy_tensor_descriptor(made) };
    }
    set.map(|()| made)
}

/// Numbers of the axes that there are: of a tensor without depth, not of that.
fn spatial(all: &[i32; 5], n_spatial: usize) -> Vec<i32> {
    [&all[..2], &all[5 - n_spatial..]].concat()
}

/// Whether a status says that nothing was begun, for the call is not one of those
/// that it supports.
fn is_refusal(status: Status) -> bool {
    (2000..4000).contains(&(status as u32))
}
