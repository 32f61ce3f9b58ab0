//! The kernels as PTX: compiled once by NVRTC, then found in a cache on disk.
//!
//! PTX is for one compute capability and runs on later ones. A file of the cache
//! is named by a hash of everything that it depends on, and is written aside and
//! renamed, so that two processes may do so at once. A cache that cannot be
//! written costs seconds at the next start and nothing else.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::PathBuf;

use cudarc::nvrtc::{CompileError, CompileOptions, Ptx, compile_ptx_with_opts, sys};
use sstep_kernels::cuda::Module;

use crate::device::DeviceError;

/// Compiled kernels, as the driver loads them.
pub struct Image(pub(super) Ptx);

impl Image {
    /// Kernels as PTX text.
    pub fn from_ptx(ptx: &str) -> Self {
        Image(Ptx::from_src(ptx))
    }

    /// The PTX text.
    pub fn to_ptx(&self) -> String {
        self.0.to_src()
    }
}

/// Compiles the kernels of a module for compute capability `arch`, 90 for 9.0; for the latest before it that NVRTC knows, if it is older
/// than the device.
///
/// The result is kept under `$SSTEP_CACHE_DIR`, else `$XDG_CACHE_HOME/sstep`, else
/// `~/.cache/sstep`.
///
/// # Errors
/// [`DeviceError::NoNvrtc`] without the library, [`DeviceError::Compile`] if it
/// refuses.
pub fn compile(module: Module, arch: i32) -> Result<Image, DeviceError> {
    let source = sstep_kernels::cuda::source(module);
    // SAFETY: loads NVRTC's library, which is made to be loaded.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoNvrtc);
    }
    let known = supported().into_iter().filter(|&a| a <= arch).max();
    let arch = known.unwrap_or(arch);
    let file = cache_dir().map(|dir| dir.join(cache_name(&source, arch)));
    if let Some(text) = file.as_ref().and_then(|f| std::fs::read_to_string(f).ok()) {
        return Ok(Image::from_ptx(&text));
    }
    let options = CompileOptions {
        name: Some("sstep.cu".to_owned()),
        options: vec![
            format!("--gpu-architecture=compute_{arch}"),
            "--std=c++17".to_owned(),
        ],
        ..CompileOptions::default()
    };
    let ptx = compile_ptx_with_opts(source, options).map_err(|e| DeviceError::Compile {
        arch,
        log: match e {
            CompileError::CompileError { log, .. } => log.to_string_lossy().into_owned(),
            other => format!("{other:?}"),
        },
    })?;
    let text = ptx.to_src();
    if let Some(file) = file {
        keep(&file, &text);
    }
    Ok(Image::from_ptx(&text))
}

/// Compute capabilities that NVRTC compiles for; empty if it does not say.
fn supported() -> Vec<i32> {
    let mut n = 0;
    // SAFETY: writes one number.
    if unsafe { sys::nvrtcGetNumSupportedArchs(&mut n) } != sys::nvrtcResult::NVRTC_SUCCESS {
        return Vec::new();
    }
    let mut archs = vec![0; usize::try_from(n).unwrap_or(0)];
    // SAFETY: writes as many numbers as it said there are.
    let got = unsafe { sys::nvrtcGetSupportedArchs(archs.as_mut_ptr()) };
    if got == sys::nvrtcResult::NVRTC_SUCCESS {
        archs
    } else {
        Vec::new()
    }
}

fn cache_name(source: &str, arch: i32) -> String {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two numbers; which stay zero if it fails.
    let _ = unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
    let mut hasher = DefaultHasher::new();
    (source, arch, major, minor).hash(&mut hasher);
    format!("kernels-{arch}-{:016x}.ptx", hasher.finish())
}

fn cache_dir() -> Option<PathBuf> {
    let var = |name| std::env::var_os(name).map(PathBuf::from);
    var("SSTEP_CACHE_DIR")
        .or_else(|| Some(var("XDG_CACHE_HOME")?.join("sstep")))
        .or_else(|| Some(var("HOME")?.join(".cache/sstep")))
}

/// Writes a file of the cache; a failure to is no failure.
fn keep(file: &std::path::Path, text: &str) {
    let aside = file.with_extension(format!("{}.tmp", std::process::id()));
    let _ = file.parent().map(std::fs::create_dir_all);
    if std::fs::write(&aside, text).is_err() || std::fs::rename(&aside, file).is_err() {
        let _ = std::fs::remove_file(&aside);
    }
}
