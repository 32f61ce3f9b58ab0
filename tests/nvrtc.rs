//! Every CUDA kernel compiles to PTX, for every generation of devices, on a
//! machine without one.
//!
//! NVRTC is the library of its PyPI wheel, which `tools/nvrtc.sh` puts under the
//! target folder. Without it these tests say that they were skipped, and pass.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::io::Write;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use sstep_autodiff::DType;
use sstep_executor::cuda::compile;
use sstep_kernels::cuda::{Module, kernel_names};

/// Where the wheel's libraries are.
fn wheel() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent()?;
    let dir = target.join("nvrtc/nvidia/cu13/lib");
    dir.join("libnvrtc.so.13").exists().then_some(dir)
}

/// Loads NVRTC, so that it is found by its name; says so if it is not there.
fn load() -> bool {
    let Some(dir) = wheel() else {
        // Not `eprintln`, which a passing test swallows.
        let _ = writeln!(
            std::io::stderr(),
            "skipped: NVRTC is not under target/nvrtc; run tools/nvrtc.sh"
        );
        return false;
    };
    for name in ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"] {
        // SAFETY: NVIDIA's libraries are made to be loaded.
        let library = unsafe { Library::open(Some(dir.join(name)), RTLD_NOW | RTLD_GLOBAL) };
        std::mem::forget(library.unwrap());
    }
    true
}

#[test]
fn every_kernel_compiles_for_every_generation() {
    if !load() {
        return;
    }
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("nvrtc-cache");
    let _ = std::fs::remove_dir_all(&cache);
    // SAFETY: the only test of this process.
    unsafe { std::env::set_var("SSTEP_CACHE_DIR", &cache) };
    for (dtype, narrow) in [(DType::F32, false), (DType::F64, false), (DType::F32, true)] {
        let module = Module { dtype, narrow };
        for arch in [75, 80, 90, 100] {
            let ptx = compile(module, arch).unwrap().to_ptx();
            assert!(
                ptx.contains(&format!(".target sm_{arch}")),
                "{dtype} {arch}"
            );
            for name in kernel_names() {
                assert!(ptx.contains(&format!(".entry {name}(")), "{name}");
            }
            // No atomics: sums have one order.
            let atomic =
                |l: &str| l.trim_start().starts_with("atom.") || l.trim_start().starts_with("red.");
            assert!(!ptx.lines().any(atomic), "{dtype} {arch}");
        }
    }
    let made = std::fs::read_dir(&cache).unwrap().count();
    assert_eq!(made, 12, "each is kept once");
    let single = Module {
        dtype: DType::F32,
        narrow: false,
    };
    // A device that NVRTC does not know yet takes the latest that it does.
    let later = compile(single, 999).unwrap().to_ptx();
    assert!(later.contains(".target sm_1"));
    // Found again, not compiled again: a file of the cache is taken at its word.
    for file in std::fs::read_dir(&cache).unwrap() {
        std::fs::write(file.unwrap().path(), "kept").unwrap();
    }
    assert_eq!(compile(single, 80).unwrap().to_ptx(), "kept");
}
