//! Libraries of the vendor that compute some calls faster than our kernels.
//!
//! What may go to one is decided where ops are lowered
//! ([`sstep_kernels::cuda::Offer`]); here an offer finds a library that takes it, or
//! falls back on the kernels that it names. A library that is not there is said once
//! ([`Missing`]) and is no error.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::CudaStream;
use sstep_autodiff::DType;
use sstep_kernels::cuda::{LibraryCall, Scratch};

use crate::device::{DeviceError, Missing};

use super::cublaslt::CublasLt;
use super::cudnn::Cudnn;

/// A library on one stream. Its calls allocate nothing, use no more scratch than they
/// are given, and give the same bits every time.
pub(super) trait Library: Send {
    /// Whether it computes `call` within `scratch`.
    fn accepts(&mut self, call: &LibraryCall, scratch: Scratch) -> bool;

    /// Gives an accepted `call` to the stream. `false` if the library only now finds
    /// that it cannot; then nothing was begun.
    fn run(&mut self, call: &LibraryCall, scratch: Scratch) -> Result<bool, DeviceError>;
}

/// A library that takes a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Taker(usize);

/// The libraries there are.
#[derive(Default)]
pub(super) struct Libraries {
    open: Vec<Box<dyn Library>>,
    missing: Vec<Missing>,
}

impl Libraries {
    /// Opens all that are there for calls on `stream`.
    pub(super) fn open(stream: &Arc<CudaStream>, dtype: DType) -> Self {
        let mut this = Libraries::default();
        this.add(Cudnn::open(stream));
        this.add(CublasLt::open(stream, dtype));
        this
    }

    fn add<L: Library + 'static>(&mut self, opened: Result<L, Missing>) {
        match opened {
            Ok(library) => self.open.push(Box::new(library)),
            Err(missing) => self.missing.push(missing),
        }
    }

    /// Those that are not there.
    pub(super) fn missing(&self) -> &[Missing] {
        &self.missing
    }

    /// Which library computes `call` within `scratch`.
    pub(super) fn taker(&mut self, call: &LibraryCall, scratch: Scratch) -> Option<Taker> {
        let takes = |library: &mut Box<dyn Library>| library.accepts(call, scratch);
        self.open.iter_mut().position(takes).map(Taker)
    }

    /// Has `taker` compute the call that it takes; see [`Library::run`].
    pub(super) fn run(
        &mut self,
        taker: Taker,
        call: &LibraryCall,
        scratch: Scratch,
    ) -> Result<bool, DeviceError> {
        self.open[taker.0].run(call, scratch)
    }
}

/// A library's error as ours.
pub(super) fn call_failed(doing: &'static str, error: &dyn fmt::Debug) -> DeviceError {
    DeviceError::Failed {
        doing,
        reason: format!("{error:?}"),
    }
}
