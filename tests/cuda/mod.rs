//! Stand-ins for the driver and its libraries, and plans run on them.
//!
//! The backend's own code runs unchanged against libraries of C++ (`driver.cpp`,
//! `cudnn.cpp`, `cublaslt.cpp`), and the kernels' own text, compiled as C++ between
//! `before.h` and `after.h`, runs on them.
#![allow(dead_code, reason = "every test uses its part")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
use sstep_autodiff::DType;
use sstep_executor::Executor;
use sstep_executor::cuda::{Cuda, Image};
use sstep_kernels::Real;
use sstep_kernels::cuda::{Module, source};
use sstep_planner::{Budget, Plan, Strategy as Planning};

use crate::common::{AMPLE, HOW, Net, Tensors, ready_on};

/// Compiles C++ to a shared library in the folder of the tests' temporary files.
fn library(name: &str, text: &str, soname: Option<&str>) -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cuda");
    std::fs::create_dir_all(&dir).unwrap();
    let aside = std::process::id();
    let (source, made) = (
        dir.join(format!("{name}.{aside}.cpp")),
        dir.join(format!("{name}.{aside}.so")),
    );
    std::fs::write(&source, text).unwrap();
    let mut compiler = Command::new(std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned()));
    compiler.args(["-std=c++17", "-O1", "-ffp-contract=off", "-shared", "-fPIC"]);
    if std::env::var_os("SSTEP_SANITIZE").is_some() {
        compiler.args(["-fsanitize=address", "-g"]);
    }
    if let Some(soname) = soname {
        compiler.arg(format!("-Wl,-soname,{soname}"));
    }
    let done = compiler
        .arg(&source)
        .arg("-o")
        .arg(&made)
        .arg("-ldl")
        .output();
    let done = done.expect("a C++ compiler, as the build needs one");
    let errors = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{}: {errors}", source.display());
    made
}

/// A stand-in where the backend looks for a library: one of that name is in the
/// process already.
fn stand_in(name: &str, text: &str, soname: &str) -> Library {
    let made = library(name, text, Some(soname));
    // SAFETY: the library's start does nothing.
    unsafe { Library::open(Some(made), RTLD_NOW | RTLD_GLOBAL) }.unwrap()
}

/// The driver's stand-in.
pub fn driver() -> &'static Library {
    static DRIVER: OnceLock<Library> = OnceLock::new();
    // Not libcuda.so.1: NVRTC loads that by itself.
    DRIVER.get_or_init(|| {
        let text = concat!(include_str!("streams.h"), include_str!("driver.cpp"));
        stand_in("driver", text, "libcuda64_13.so")
    })
}

/// Those of cuDNN and cuBLASLt.
pub fn libraries() -> &'static [Library; 2] {
    static LIBRARIES: OnceLock<[Library; 2]> = OnceLock::new();
    LIBRARIES.get_or_init(|| {
        driver();
        [
            stand_in("cudnn", include_str!("cudnn.cpp"), "libcudnn.so"),
            stand_in("cublaslt", include_str!("cublaslt.cpp"), "libcublasLt.so"),
        ]
    })
}

/// A number that a stand-in counts.
pub fn counted(of: &Library, name: &str) -> usize {
    // SAFETY: all counters are functions without arguments.
    unsafe { of.get::<extern "C" fn() -> usize>(name.as_bytes()).unwrap()() }
}

/// Bytes that were copied to the device region by region, so far.
pub fn bytes_to_device() -> u64 {
    counted(driver(), "standin_bytes_to_device") as u64
}

/// From now on stream `slow` does nothing while another can go on, and the wait of this
/// number, from 1, is not made; 0 for none, 3 for no stream. Streams are numbered as the
/// backend makes them: kernels, copies to the device, copies to the host.
pub fn drop_wait(number: usize, slow: usize) {
    // SAFETY: a function of the stand-in with these arguments.
    unsafe {
        let drop = driver().get::<extern "C" fn(usize, usize)>(b"standin_drop_wait");
        drop.unwrap()(number, slow);
    }
}

/// Which stream is given the wait of this number, counted since [`drop_wait`], and which
/// it waits for.
pub fn wait_of(number: usize) -> (usize, usize) {
    // SAFETY: a function of the stand-in with this argument.
    let lanes = unsafe {
        let of = driver().get::<extern "C" fn(usize) -> usize>(b"standin_wait");
        of.unwrap()(number)
    };
    (lanes / 3, lanes % 3)
}

/// Runs test `name` of this program in a process of its own, with `set` in its
/// environment: whether it passed, and what it said.
pub fn alone(name: &str, set: &[(&str, &str)]) -> (bool, String) {
    let done = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name])
        .envs(set.iter().copied())
        .output()
        .unwrap();
    let said = [done.stdout, done.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (done.status.success(), said)
}

/// The kernels for `T`, perhaps stored in 16 bits, as a library for the CPU, named by an
/// image.
pub fn image<T: Real>(narrow: bool) -> Image {
    static IMAGES: [OnceLock<PathBuf>; 3] = [const { OnceLock::new() }; 3];
    let (which, name) = match (T::DTYPE, narrow) {
        (DType::F32, false) => (0, "f32"),
        (DType::F64, false) => (1, "f64"),
        (DType::F32, true) => (2, "f32-narrow"),
        (dtype, _) => panic!("{dtype} is not computed with, or not stored in 16 bits"),
    };
    let module = Module {
        dtype: T::DTYPE,
        narrow,
    };
    let made = IMAGES[which].get_or_init(|| {
        let kernels = with_fault(source(module));
        let (before, after) = (include_str!("before.h"), include_str!("after.h"));
        let made = library(name, &format!("{before}\n{kernels}\n{after}"), None);
        // SAFETY: a function without arguments of a library whose start does nothing.
        let bytes = unsafe {
            let library = libloading::Library::new(&made).unwrap();
            let f = library.get::<extern "C" fn() -> usize>(b"sstep_args_bytes");
            f.unwrap()()
        };
        assert_eq!(bytes, size_of::<sstep_kernels::cuda::Args>());
        made
    });
    Image::from_ptx(&format!("// host module {}", made.display()))
}

/// The fault of a kernel that reads one element too many.
pub const OUT_OF_BOUNDS: &str = "a read beyond a weight";

/// The fault of a kernel that overwrites bytes before it has read all of them.
pub const BYTES_OUT_OF_ORDER: &str = "the barrier between bytes and elements";

/// The fault of a kernel that reads what other threads have yet to write.
pub const TURNED_TOO_SOON: &str = "the barrier of a turn";

/// Faults to put into the kernels: what is replaced, and by what.
pub const FAULTS: [(&str, &str, &str); 7] = [
    (
        TURNED_TOO_SOON,
        "col) : (real)0;\n        }\n        __syncthreads();",
        "col) : (real)0;\n        }",
    ),
    (
        BYTES_OUT_OF_ORDER,
        "v[k] = i < n ? bytes[i] : 0;\n            }\n            __syncthreads();",
        "v[k] = i < n ? bytes[i] : 0;\n            }",
    ),
    (
        "a barrier of a sum",
        "sums[threadIdx.x + half];\n        __syncthreads();",
        "sums[threadIdx.x + half];",
    ),
    (
        "the barrier of a slide",
        "c, p.d, p.h, p.w);\n            __syncthreads();",
        "c, p.d, p.h, p.w);",
    ),
    ("a border of a convolution", "row && col >= 0 &&", "row &&"),
    (
        "a barrier that some threads miss",
        "if (threadIdx.x == 0) {\n            if (a.state) a.state[e] += sum;",
        "if (threadIdx.x == 0) {\n            __syncthreads();\n            if (a.state) a.state[e] += sum;",
    ),
    (
        // Only the address sanitizer sees it: the sum is right.
        OUT_OF_BOUNDS,
        "for (i64 f = 0; f < features; ++f) sum += (double)x[f] * (double)w[f];",
        "for (i64 f = 0; f <= features; ++f) sum += f < features ? (double)x[f] * (double)w[f] : 0 * (double)((volatile const real *)w)[f];",
    ),
];

/// Puts the fault in that this process is asked to have.
fn with_fault(kernels: String) -> String {
    let Ok(asked) = std::env::var("SSTEP_FAULT") else {
        return kernels;
    };
    let Some((_, sound, faulty)) = FAULTS.iter().find(|f| f.0 == asked) else {
        return kernels;
    };
    assert!(
        kernels.contains(sound),
        "`{asked}` is not in the kernels any more"
    );
    kernels.replace(sound, faulty)
}

/// A plan's executor on the stand-in, with its libraries or without.
pub fn on_cuda<T: Real>(plan: Plan, with_libraries: bool) -> Executor<T> {
    driver();
    if with_libraries {
        libraries();
    }
    let bytes = plan.budget.device_bytes;
    let narrow = plan.program.narrow().is_some();
    let mut cuda =
        Cuda::<T>::from_image(0, bytes, image::<T>(narrow), narrow).expect("the stand-in");
    if !with_libraries {
        cuda = cuda.without_libraries();
    }
    Executor::with_backend(plan, Box::new(cuda)).expect("an executor")
}

/// Carries a plan out and holds what it took against what was promised.
pub fn execute<T: Real>(plan: Plan, leaves: &Tensors<T>, with_libraries: bool) -> Tensors<T> {
    let promised = plan.predicted;
    let (mut executor, feeds) = ready_on(on_cuda::<T>(plan, with_libraries), leaves);
    let report = executor.step(&feeds, &HOW, &mut |_| {}).expect("a step");
    assert!(report.measured.peak_bytes <= promised.peak_bytes);
    assert_eq!(report.measured.h2d_bytes, promised.h2d_bytes);
    assert_eq!(report.measured.d2h_bytes, promised.d2h_bytes);
    assert_eq!(report.measured.disk_read_bytes, promised.disk_read_bytes);
    assert_eq!(report.measured.disk_write_bytes, promised.disk_write_bytes);
    report.outputs
}

/// A net's plan with ample host memory or none; see [`Net::plan_beyond`].
pub fn plan_of(net: &Net, strategy: Planning, squeeze: f64, host: bool) -> Option<Plan> {
    let host_bytes = if host { AMPLE } else { 0 };
    plan_beyond(net, strategy, squeeze, [host_bytes, 0])
}

/// The same with so many bytes of host memory and of disk.
pub fn plan_beyond(net: &Net, strategy: Planning, squeeze: f64, beyond: [u64; 2]) -> Option<Plan> {
    let [host_bytes, disk_bytes] = beyond;
    let beyond = Budget {
        device_bytes: 0,
        host_bytes,
        disk_bytes,
    };
    net.plan_beyond(beyond, strategy, squeeze)
}
