//! What cuDNN and cuBLASLt are told, without either.
//!
//! Stand-ins (`tests/cuda/cudnn.cpp`, `cublaslt.cpp`) record every call, compute it
//! from nothing but what they were told, and end the program at a call that breaks
//! their rules. What whole plans compute with them stands in `cuda_parity`.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
mod cuda;

use std::ffi::{CStr, c_char};
use std::sync::Mutex;

use common::{differences, leaves, oracle};
use cuda::{TURNED_TOO_SOON, alone, counted, driver, execute, image, libraries};
use sstep_autodiff::Tape;
use sstep_executor::cuda::Cuda;
use sstep_planner::{Budget, Plan, Strategy};

/// The record is one for the process.
static RECORDED: Mutex<()> = Mutex::new(());

/// Convolutions called since last asked.
fn record() -> Vec<String> {
    let [cudnn, _] = libraries();
    // SAFETY: a function without arguments; the text lives until the next call.
    let text = unsafe {
        let f = cudnn.get::<extern "C" fn() -> *const c_char>(b"standin_record");
        CStr::from_ptr(f.unwrap()()).to_string_lossy().into_owned()
    };
    text.lines().map(str::to_owned).collect()
}

/// A plan of a net that keeps everything, in so many bytes more than that takes.
fn plan(net: &common::Net, more: u64) -> Plan {
    let budget = Budget {
        device_bytes: net.all_bytes() + more,
        host_bytes: 0,
        disk_bytes: 0,
    };
    net.plan(budget, Strategy::StoreAll).unwrap()
}

/// Runs a net with ample scratch and holds it against the untiled run; the convolutions
/// called.
fn calls(dtype: &str, text: &str) -> Vec<String> {
    let _one = RECORDED.lock().unwrap_or_else(|e| e.into_inner());
    let net = common::Net::parse(dtype, text);
    let plan = plan(&net, 64 << 20);
    assert!(plan.workspace.is_some());
    record();
    let accuracy = if dtype == "f32" { 1e-5 } else { 1e-12 };
    match dtype {
        "f32" => {
            let values = leaves::<f32>(&net.tape, 3);
            let apart = differences(&execute(plan, &values, true), &oracle(&net, &values));
            assert!(apart.values().all(|&e| e <= accuracy), "{apart:?}");
        }
        _ => {
            let values = leaves::<f64>(&net.tape, 3);
            let apart = differences(&execute(plan, &values, true), &oracle(&net, &values));
            assert!(apart.values().all(|&e| e <= accuracy), "{apart:?}");
        }
    }
    record()
}

#[test]
fn whole_maps_are_told_as_they_are() {
    let text = "x = input [2, 4, 10, 12]\nw1 = param [6, 4, 3, 3]\n\
                y1 = conv(x, w1) pad=1\nw2 = param [8, 3, 3, 3]\n\
                y2 = conv(y1, w2) pad=2 dilation=2 stride=1 groups=2";
    let said = calls("f32", text);
    let has = |part: &str| {
        assert!(
            said.iter().any(|s| s.starts_with(part)),
            "{part}: {said:#?}"
        )
    };
    has(
        "forward x=2,4,10,12 by=480,120,12,1 y=2,6,10,12 by=720,120,12,1 w=6,4,3,3 \
         pad=1,1 stride=1,1 dilation=1,1 groups=1 f32 scratch=",
    );
    has(
        "forward x=2,6,10,12 by=720,120,12,1 y=2,8,10,12 by=960,120,12,1 w=8,3,3,3 \
         pad=2,2 stride=1,1 dilation=2,2 groups=2 f32 scratch=",
    );
    has(
        "data x=2,6,10,12 by=720,120,12,1 y=2,8,10,12 by=960,120,12,1 w=8,3,3,3 \
         pad=2,2 stride=1,1 dilation=2,2 groups=2 f32 scratch=0",
    );
    has(
        "filter x=2,4,10,12 by=480,120,12,1 y=2,6,10,12 by=720,120,12,1 w=6,4,3,3 \
         pad=1,1 stride=1,1 dilation=1,1 groups=1 f32 scratch=",
    );
}

#[test]
fn three_axes_and_one_are_told_too() {
    let said = calls(
        "f64",
        "x = input [1, 2, 4, 5, 6]\nw = param [3, 2, 1, 3, 2]\ny = conv(x, w) stride=[1,2,1]",
    );
    let whole = "x=1,2,4,5,6 by=240,120,30,6,1 y=1,3,4,2,5 by=120,40,10,5,1 w=3,2,1,3,2 \
                 pad=0,0,0 stride=1,2,1 dilation=1,1,1 groups=1 f64";
    assert!(
        said.iter()
            .any(|s| s.starts_with(&format!("forward {whole}"))),
        "{said:#?}"
    );
    // In place: doubles add to doubles.
    assert!(
        said.iter()
            .any(|s| s.starts_with(&format!("filter {whole} adds"))),
        "{said:#?}"
    );
    let said = calls(
        "f64",
        "x = input [1, 2, 9]\nw = param [3, 2, 3]\ny = conv(x, w) pad=1",
    );
    let line = "forward x=1,2,1,9 by=18,9,9,1 y=1,3,1,9 by=27,9,9,1 w=3,2,1,3 pad=0,1";
    assert!(said.iter().any(|s| s.starts_with(line)), "{said:#?}");
}

/// A dense layer large enough for a library, forward and both gradients.
#[test]
fn dense_layers_are_products() {
    let _one = RECORDED.lock().unwrap_or_else(|e| e.into_inner());
    let [_, cublaslt] = libraries();
    let net = common::Net::parse(
        "f32",
        "x = input [4, 3, 8, 8]\nlabels = input [4, 1]\nw = param [256, 3, 8, 8]\ny = conv(x, w)\n\
         g = sum_map(y)\nf = param [128, 256]\nb = param [128]\nz = linear(g, f, b)\n\
         r = relu(z)\nh = param [128, 128]\nu = linear(r, h)\nl = cross_entropy(u, labels)",
    );
    let values = leaves::<f32>(&net.tape, 3);
    let before = counted(cublaslt, "standin_products");
    for more in [0, 64 << 20] {
        let apart = differences(
            &execute(plan(&net, more), &values, true),
            &oracle(&net, &values),
        );
        assert!(apart.values().all(|&e| e <= 1e-5), "{apart:?}");
    }
    // Two layers, each forward and by its weight and its input, twice.
    assert_eq!(counted(cublaslt, "standin_products") - before, 12);
}

/// What a library finds only late that it cannot do, our kernels do.
#[test]
fn a_late_refusal_falls_back_on_our_kernels() {
    if std::env::var_os("SSTEP_FAULT").is_none() {
        let name = "a_late_refusal_falls_back_on_our_kernels";
        let (passed, said) = alone(name, &[("SSTEP_FAULT", "cuDNN refuses late")]);
        assert!(passed, "{said}");
        return;
    }
    let said = calls(
        "f64",
        "x = input [1, 2, 9, 9]\nw = param [3, 2, 3, 3]\ny = conv(x, w) pad=1",
    );
    assert!(said.is_empty(), "{said:#?}");
}

/// A library that is not there is said in a line, and is no error.
#[test]
fn missing_libraries_are_said() {
    if std::env::var_os("SSTEP_ALONE").is_none() {
        // In a process where no other test has loaded the stand-ins.
        let (passed, said) = alone("missing_libraries_are_said", &[("SSTEP_ALONE", "1")]);
        assert!(passed, "{said}");
        return;
    }
    driver();
    let cuda = Cuda::<f32>::from_image(0, 1 << 20, image::<f32>(false), false).unwrap();
    let lines: Vec<String> = cuda.missing().iter().map(ToString::to_string).collect();
    // A machine that has them is not one that this can be seen on.
    for (line, name) in lines.iter().zip(["cuDNN", "cuBLASLt"]) {
        assert!(
            line.starts_with(name) && line.contains("sstep's own kernels"),
            "{line}"
        );
    }
    libraries();
    let cuda = Cuda::<f32>::from_image(0, 1 << 20, image::<f32>(false), false).unwrap();
    assert!(cuda.missing().is_empty());
}

/// A convolution of maps in 16 bits and both its gradients, of whole numbers so small
/// that no sum of their products is rounded.
struct Narrow {
    to: &'static str,
    image: &'static [usize],
    filter: &'static [usize],
    attrs: &'static str,
    /// Extents of the map that `attrs` make of it.
    map: &'static [usize],
}

impl Narrow {
    /// Runs it with so much scratch: the convolutions called.
    /// Results equal the untiled run's, bit for bit.
    fn calls(&self, scratch_bytes: u64) -> Vec<String> {
        let _one = RECORDED.lock().unwrap_or_else(|e| e.into_inner());
        let (to, attrs) = (self.to, self.attrs);
        let (image, filter, kernel) = (self.image, self.filter, &self.filter[2..]);
        let map = [&[image[0], filter[0]], self.map].concat();
        let tape = Tape::parse(&format!(
            "tape v1 f32\nx = input {image:?}\nd = input {map:?}\nw = param {filter:?}\n\
             b = param [{}]\nxh = cast(x) to={to}\ndh = cast(d) to={to}\nwh = cast(w) to={to}\n\
             y = conv(xh, wh, b) {attrs}\ng = conv_transpose(dh, wh) {attrs} out={:?}\n\
             gw = conv_weight_grad(xh, dh) {attrs} kernel={kernel:?}\nyf = cast(y) to=f32\n\
             gf = cast(g) to=f32\noutput yf\noutput gf\noutput gw",
            filter[0],
            &image[2..],
        ))
        .unwrap();
        let spec = sstep_planner::StepSpec {
            outputs: tape.outputs().to_vec(),
            ..sstep_planner::StepSpec::default()
        };
        let net = common::Net {
            loss: tape.outputs()[0],
            tape,
            spec,
            machine: sstep_planner::Machine::cpu_default(),
        };
        let mut plan = plan(&net, 64 << 20);
        // The CPU's kernels would need more.
        let scratch = plan.workspace.unwrap().0 as usize;
        plan.buffers[scratch].bytes = scratch_bytes;
        let mut values = leaves::<f32>(&net.tape, 5);
        for (name, tensor) in &mut values {
            let most = if name == "w" { 1.4 } else { 2.4 };
            let largest = tensor.data.iter().fold(0.0f32, |m, x| m.max(x.abs()));
            tensor
                .data
                .iter_mut()
                .for_each(|x| *x = (*x / largest * most).round());
        }
        record();
        let got = execute(plan, &values, true);
        assert!(
            got == oracle(&net, &values),
            "{to} {image:?} {filter:?} {attrs}"
        );
        record()
    }
}

fn narrow_cases(to: &'static str) -> Vec<Narrow> {
    let of = |image, filter, attrs, map| Narrow {
        to,
        image,
        filter,
        attrs,
        map,
    };
    vec![
        of(&[1, 4, 40, 36], &[6, 4, 3, 3], "pad=1", &[40, 36]),
        of(
            &[1, 3, 23, 19],
            &[5, 3, 3, 3],
            "stride=2 pad=3 dilation=2",
            &[13, 11],
        ),
        of(&[1, 3, 23, 70], &[34, 3, 1, 1], "stride=3", &[8, 24]),
        of(&[1, 16, 9, 10], &[16, 8, 3, 3], "groups=2", &[7, 8]),
        of(&[2, 3, 40], &[4, 3, 5], "stride=3 pad=2", &[14]),
        of(&[1, 2, 5, 6, 7], &[3, 2, 3, 3, 3], "pad=1", &[5, 6, 7]),
        of(&[1, 4, 33, 20], &[4, 1, 3, 3], "pad=1 groups=4", &[33, 20]),
    ]
}

/// Maps in 16 bits go to tensor cores channels last, and gradients of filters are not
/// rounded; groups of single channels stay as they lie.
#[test]
fn maps_in_16_bits_are_laid_out_for_tensor_cores() {
    for to in ["bf16", "f16"] {
        let cases = narrow_cases(to);
        for case in &cases {
            let said = case.calls(1 << 20);
            let is_depthwise = case.attrs.contains("groups=4");
            assert_eq!(said.len(), if is_depthwise { 2 } else { 3 }, "{said:#?}");
            assert!(
                said.iter().all(|s| s.contains(" last") != is_depthwise),
                "{said:#?}"
            );
        }
        let said = cases[0].calls(1 << 20);
        for line in [
            "forward x=1,4,42,38 by=6384,1,152,4 y=1,6,40,36 by=8640,1,216,6 w=6,4,3,3 pad=0,0 \
             stride=1,1 dilation=1,1 groups=1 TO last scratch=640",
            "data x=1,4,40,36 by=5760,1,144,4 y=1,6,42,38 by=9576,1,228,6 w=6,4,3,3 pad=2,2 \
             stride=1,1 dilation=1,1 groups=1 TO last scratch=640",
            "filter x=1,4,42,38 by=6384,1,152,4 y=1,6,40,36 by=8640,1,216,6 w=6,4,3,3 pad=0,0 \
             stride=1,1 dilation=1,1 groups=1 tf32 last scratch=640",
        ] {
            assert!(said.contains(&line.replace("TO", to)), "{line}: {said:#?}");
        }
    }
}

/// These tests can fail: where a map is read before it is turned, they do.
#[test]
fn a_map_that_is_turned_too_soon_is_found() {
    if std::env::var_os("SSTEP_FAULT").is_some() {
        narrow_cases("bf16")[1].calls(1 << 20);
        return;
    }
    for (fault, is_sound) in [("none", true), (TURNED_TOO_SOON, false)] {
        let name = "a_map_that_is_turned_too_soon_is_found";
        let (passed, said) = alone(name, &[("SSTEP_FAULT", fault)]);
        assert_eq!(passed, is_sound, "{said}");
    }
}

/// What the scratch does not hold at once goes in pieces; without any, maps go as they
/// lie, and gradients of filters are ours.
#[test]
fn maps_in_16_bits_go_in_pieces_where_scratch_is_little() {
    for to in ["bf16", "f16"] {
        for case in narrow_cases(to) {
            let is_large = case.map.iter().product::<usize>() > 1024;
            let passes = |said: &[String]| {
                ["forward", "data", "filter"]
                    .map(|pass| said.iter().filter(|s| s.starts_with(pass)).count())
            };
            let said = case.calls(24 << 10);
            if is_large {
                let [forward, data, filter] = passes(&said);
                assert!(forward > 1 && data > 1 && filter > 1, "{said:#?}");
            }
            let said = case.calls(0);
            assert!(said.iter().all(|s| !s.contains(" last")), "{said:#?}");
            assert_eq!(passes(&said)[2], 0, "{said:#?}");
        }
    }
}
