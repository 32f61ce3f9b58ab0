//! Random geometries against the definition, against each other, and against
//! the adjoint identities that make them gradients of one another.

mod cases;
mod winograd;

use proptest::prelude::*;
use sstep_autodiff::{AxisRead, ConvAlgo, ConvAttrs, DType, Form, Op, Region, Shape, Ty};

use super::narrowly;
use super::{conv, transpose, weight_grad};
use crate::Job;
use crate::real::Real;
use crate::view::{Box4, In, Layout, Out};
use cases::{Case, case, depthwise, first_layer, lowered};

fn ty<T: Real>(shape: Shape, form: Form) -> Ty {
    Ty {
        dtype: T::DTYPE,
        shape,
        form,
    }
}

/// Reproducible numbers in (−1, 1).
fn numbers<T: Real>(n: usize, seed: u64) -> Vec<T> {
    let mut state = seed | 1;
    (0..n)
        .map(|_| {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            T::from_f64((state >> 40) as f64 / (1u64 << 23) as f64 - 1.0)
        })
        .collect()
}

/// Visits every row of a region: `(n, c, d, h, columns)`.
fn rows(
    layout: &Layout,
    part: &Region,
) -> Vec<(usize, usize, usize, usize, std::ops::Range<usize>)> {
    let b = Box4::lift(part);
    let mut all = vec![];
    if part.is_empty() {
        return all;
    }
    for n in b.n() {
        for c in 0..layout.dims[1] {
            for d in b.s(0) {
                for h in b.s(1) {
                    all.push((n, c, d, h, b.s(2)));
                }
            }
        }
    }
    all
}

/// A window that holds `part` of a dense tensor and NaN elsewhere, so that a
/// read beyond what a region needs is seen.
fn window<T: Real>(ty: &Ty, data: &[T], part: &Region, slack: usize) -> (Layout, Vec<T>) {
    let capacity: Vec<usize> = part.spans().iter().map(|s| s.len() + slack).collect();
    let layout = Layout::window(ty, &capacity, part);
    let mut held = vec![T::from_f64(f64::NAN); layout.len];
    let whole = In::new(Layout::whole(ty), data);
    let view = Out::new(layout, &mut held);
    for (n, c, d, h, w) in rows(&layout, part) {
        // SAFETY: one slice at a time.
        unsafe { view.row_mut(n, c, d, h, w.clone()) }.copy_from_slice(whole.row(n, c, d, h, w));
    }
    (layout, held)
}

/// Which kernel, and its operands: `a` is the map it reads first.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Forward,
    Transposed,
}

struct Operands<T> {
    x: Vec<T>,
    y: Vec<T>,
    w: Vec<T>,
    /// One per channel of `x` or `y`, whichever is more.
    bias: Vec<T>,
}

fn operands<T: Real>(case: &Case) -> Operands<T> {
    Operands {
        x: numbers(case.x.elems(), case.seed),
        y: numbers(case.y.elems(), case.seed.wrapping_add(77)),
        w: numbers(case.w.elems(), case.seed.wrapping_add(99)),
        bias: numbers(
            case.x.channels().max(case.y.channels()),
            case.seed.wrapping_add(11),
        ),
    }
}

/// Runs a map kernel on a part of its output; returns that part, dense.
fn run<T: Real>(case: &Case, kind: Kind, ops: &Operands<T>, part: &Region, plain: bool) -> Vec<T> {
    let (x_ty, y_ty) = (ty::<T>(case.x, Form::Map), ty::<T>(case.y, Form::Map));
    let (in_ty, out_ty, data, op) = match kind {
        Kind::Forward => (x_ty, y_ty, &ops.x, Op::Conv(case.attrs)),
        Kind::Transposed => (y_ty, x_ty, &ops.y, Op::ConvTranspose(case.transposed())),
    };
    let mut read = Region::whole(&in_ty);
    for axis in 1..in_ty.n_axes() {
        let reads = if plain {
            // What a direct sum needs, whatever the attributes say.
            let window = case.attrs.window(axis - 1);
            match kind {
                Kind::Forward => AxisRead::Window(window),
                Kind::Transposed => AxisRead::Adjoint(window),
            }
        } else {
            op.read(0, axis, &[in_ty], &out_ty)
        };
        read.set(axis, reads.apply(part.span(axis), in_ty.axis_extent(axis)));
    }
    read.set(0, part.span(0));
    let (in_layout, held) = window(&in_ty, data, &read, case.slack);
    let capacity: Vec<usize> = part.spans().iter().map(|s| s.len() + case.slack).collect();
    let out_layout = Layout::window(&out_ty, &capacity, part);
    let mut result = vec![T::ZERO; out_layout.len];
    let w_ty = ty::<T>(case.w, Form::Flat);
    let bias = &ops.bias[..out_ty.shape.channels()];
    let bias_ty = ty::<T>(Shape::new(&[bias.len()]), Form::Flat);
    let mut inputs = vec![
        In::new(in_layout, &held),
        In::new(Layout::whole(&w_ty), &ops.w),
    ];
    if case.bias {
        inputs.push(In::new(Layout::whole(&bias_ty), bias));
    }
    let region = Box4::lift(part);
    let job = Job {
        op: &op,
        region,
        inputs: &inputs,
        step: 0,
        seed: 0,
        plain,
    };
    let mut ws = vec![0xffu8; case.ws.0 + case.ws.1];
    let ws = &mut ws[case.ws.1..];
    let mut out = Out::new(out_layout, &mut result);
    match kind {
        Kind::Forward => conv(&case.attrs, &job, &mut out, ws),
        Kind::Transposed => transpose(&case.transposed(), &job, &mut out, ws),
    }
    let view = In::new(out_layout, &result);
    rows(&out_layout, part)
        .into_iter()
        .flat_map(|(n, c, d, h, w)| view.row(n, c, d, h, w))
        .copied()
        .collect()
}

fn weights<T: Real>(case: &Case, ops: &Operands<T>, part: &Region, plain: bool) -> Vec<T> {
    let (x_ty, y_ty) = (ty::<T>(case.x, Form::Map), ty::<T>(case.y, Form::Map));
    let mut read = Region::whole(&x_ty);
    for axis in 1..x_ty.n_axes() {
        let reads = AxisRead::Window(case.attrs.window(axis - 1));
        read.set(axis, reads.apply(part.span(axis), x_ty.axis_extent(axis)));
    }
    read.set(0, part.span(0));
    let (x_layout, x) = window(&x_ty, &ops.x, &read, case.slack);
    let (y_layout, y) = window(&y_ty, &ops.y, part, case.slack);
    let inputs = [In::new(x_layout, &x), In::new(y_layout, &y)];
    let op = Op::ConvWeightGrad(case.attrs);
    let region = Box4::lift(part);
    let job = Job {
        op: &op,
        region,
        inputs: &inputs,
        step: 0,
        seed: 0,
        plain,
    };
    let mut ws = vec![0xffu8; case.ws.0 + case.ws.1];
    let mut into = vec![T::ONE; case.w.elems()];
    weight_grad(&case.attrs, &job, &mut into, &mut ws[case.ws.1..]);
    // It adds: what was there stays.
    into.iter().map(|&w| w - T::ONE).collect()
}

/// Error of a weight gradient over `part`, relative to what doubles give.
fn weight_error(case: &Case, ops: &Operands<f32>, part: &Region, found: &[f32]) -> f64 {
    let double = Operands {
        x: ops.x.iter().map(|&v| f64::from(v)).collect(),
        y: ops.y.iter().map(|&v| f64::from(v)).collect(),
        w: vec![],
        bias: vec![],
    };
    let exact = weights(case, &double, part, true);
    let error = norm(found.iter().zip(&exact).map(|(&f, e)| f64::from(f) - e));
    // Adding to the one that was there costs half a unit of its own.
    error / (norm(exact.iter().copied()) + (exact.len() as f64).sqrt())
}

/// The definition, element by element, in doubles; a bias of zero.
fn definition(case: &Case, x: &[f64], w: &[f64]) -> Vec<f64> {
    let a = &case.attrs;
    let lift = |s: &Shape| Layout::whole(&ty::<f64>(*s, Form::Map)).dims;
    let (xd, yd) = (lift(&case.x), lift(&case.y));
    let first = 3 - case.x.spatial().len();
    let of = |v: &[usize; 3], s: usize, none: usize| if s < first { none } else { v[s - first] };
    let kernel: Vec<usize> = (0..3).map(|s| of(&a.kernel, s, 1)).collect();
    let (in_group, out_group) = (xd[1] / a.groups, yd[1] / a.groups);
    let source = |s: usize, j: usize, t: usize| {
        (j * of(&a.stride, s, 1) + t * of(&a.dilation, s, 1))
            .checked_sub(of(&a.pad_lo, s, 0))
            .filter(|&i| i < xd[2 + s])
    };
    let mut y = vec![];
    for n in 0..yd[0] {
        for k in 0..yd[1] {
            for j in 0..yd[2] * yd[3] * yd[4] {
                let j = [j / (yd[3] * yd[4]), j / yd[4] % yd[3], j % yd[4]];
                let mut sum = 0.0;
                for c in 0..in_group {
                    for td in 0..kernel[0] {
                        for th in 0..kernel[1] {
                            for tw in 0..kernel[2] {
                                let at = (
                                    source(0, j[0], td),
                                    source(1, j[1], th),
                                    source(2, j[2], tw),
                                );
                                let (Some(d), Some(h), Some(v)) = at else {
                                    continue;
                                };
                                let plane = n * xd[1] + k / out_group * in_group + c;
                                let tap = (td * kernel[1] + th) * kernel[2] + tw;
                                let taps = kernel.iter().product::<usize>();
                                sum += x[((plane * xd[2] + d) * xd[3] + h) * xd[4] + v]
                                    * w[(k * in_group + c) * taps + tap];
                            }
                        }
                    }
                }
                y.push(sum);
            }
        }
    }
    y
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: impl Iterator<Item = f64>) -> f64 {
    a.map(|v| v * v).sum::<f64>().sqrt()
}

fn bits(a: &[f32]) -> Vec<u32> {
    a.iter().map(|v| v.to_bits()).collect()
}

fn whole(shape: Shape) -> Region {
    Region::whole(&Ty {
        dtype: DType::F32,
        shape,
        form: Form::Map,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]

    #[test]
    fn convolution_is_its_definition(mut case in case()) {
        case.bias = false;
        let ops = operands::<f64>(&case);
        let y = run(&case, Kind::Forward, &ops, &whole(case.y), false);
        let expected = definition(&case, &ops.x, &ops.w);
        for (y, e) in y.iter().zip(&expected) {
            prop_assert!((y - e).abs() < 1e-11, "{y} is not {e}");
        }
    }

    #[test]
    fn gradients_are_adjoint(mut case in case()) {
        case.bias = false;
        let ops = operands::<f64>(&case);
        let y = run(&case, Kind::Forward, &ops, &whole(case.y), false);
        let x = run(&case, Kind::Transposed, &ops, &whole(case.x), false);
        let w = weights(&case, &ops, &whole(case.y), false);
        let terms = norm(y.iter().copied()) * norm(ops.y.iter().copied()) + 1.0;
        let expected = dot(&y, &ops.y);
        prop_assert!((dot(&ops.x, &x) - expected).abs() < 1e-12 * terms);
        prop_assert!((dot(&ops.w, &w) - expected).abs() < 1e-11 * terms);
    }

    #[test]
    fn fast_is_plain_bit_for_bit(case in case()) {
        let ops = operands::<f32>(&case);
        for (kind, shape) in [(Kind::Forward, case.y), (Kind::Transposed, case.x)] {
            let fast = run(&case, kind, &ops, &whole(shape), false);
            let plain = run(&case, kind, &ops, &whole(shape), true);
            prop_assert_eq!(bits(&fast), bits(&plain), "{:?}", kind);
        }
    }

    #[test]
    fn narrow_vectors_are_plain_bit_for_bit(case in prop_oneof![case(), depthwise(), lowered(), first_layer()]) {
        let ops = operands::<f32>(&case);
        for (kind, shape) in [(Kind::Forward, case.y), (Kind::Transposed, case.x)] {
            let narrow = narrowly(|| run(&case, kind, &ops, &whole(shape), false));
            let plain = run(&case, kind, &ops, &whole(shape), true);
            prop_assert_eq!(bits(&narrow), bits(&plain), "{:?}", kind);
        }
        let narrow = narrowly(|| weights(&case, &ops, &whole(case.y), false));
        let error = weight_error(&case, &ops, &whole(case.y), &narrow);
        prop_assert!(error < 1e-6, "{error}");
    }

    #[test]
    fn depthwise_is_plain_bit_for_bit(case in depthwise()) {
        let ops = operands::<f32>(&case);
        for (kind, shape) in [(Kind::Forward, case.y), (Kind::Transposed, case.x)] {
            let part = case.part(&ty::<f32>(shape, Form::Map));
            let fast = run(&case, kind, &ops, &part, false);
            let plain = run(&case, kind, &ops, &part, true);
            prop_assert_eq!(bits(&fast), bits(&plain), "{:?}", kind);
        }
        let part = case.part(&ty::<f32>(case.y, Form::Map));
        let error = weight_error(&case, &ops, &part, &weights(&case, &ops, &part, false));
        prop_assert!(error < 1e-6, "{error}");
    }

    #[test]
    fn matrix_products_are_plain_bit_for_bit(case in lowered()) {
        let ops = operands::<f32>(&case);
        for (kind, shape) in [(Kind::Forward, case.y), (Kind::Transposed, case.x)] {
            let part = case.part(&ty::<f32>(shape, Form::Map));
            let fast = run(&case, kind, &ops, &part, false);
            let plain = run(&case, kind, &ops, &part, true);
            prop_assert_eq!(bits(&fast), bits(&plain), "{:?}", kind);
        }
    }

    #[test]
    fn a_region_repeats_the_bits_of_the_whole(case in case()) {
        let ops = operands::<f32>(&case);
        for (kind, shape) in [(Kind::Forward, case.y), (Kind::Transposed, case.x)] {
            let out = ty::<f32>(shape, Form::Map);
            let part = case.part(&out);
            let all = run(&case, kind, &ops, &Region::whole(&out), false);
            let (layout, expected) = window(&out, &all, &part, 0);
            let view = In::new(layout, &expected);
            let expected: Vec<f32> = rows(&layout, &part)
                .into_iter()
                .flat_map(|(n, c, d, h, w)| view.row(n, c, d, h, w))
                .copied()
                .collect();
            for plain in [false, true] {
                let found = run(&case, kind, &ops, &part, plain);
                prop_assert_eq!(bits(&found), bits(&expected), "{:?} plain {}", kind, plain);
            }
        }
    }

    #[test]
    fn threads_do_not_change_bits(case in prop_oneof![case(), lowered(), first_layer()]) {
        let ops = operands::<f32>(&case);
        let all = || {
            (
                bits(&run(&case, Kind::Forward, &ops, &whole(case.y), false)),
                bits(&run(&case, Kind::Transposed, &ops, &whole(case.x), false)),
                bits(&weights(&case, &ops, &whole(case.y), false)),
            )
        };
        let one = rayon::ThreadPoolBuilder::new().num_threads(1).build().expect("a pool");
        let three = rayon::ThreadPoolBuilder::new().num_threads(3).build().expect("a pool");
        let (forward, transposed, weights) = one.install(all);
        let (forward3, transposed3, weights3) = three.install(all);
        prop_assert_eq!(forward, forward3);
        prop_assert_eq!(transposed, transposed3);
        prop_assert_eq!(weights, weights3);
    }

    #[test]
    fn weight_gradients_are_accurate(case in prop_oneof![case(), lowered(), first_layer()]) {
        let ops = operands::<f32>(&case);
        let part = case.part(&ty::<f32>(case.y, Form::Map));
        for plain in [false, true] {
            let found = weights(&case, &ops, &part, plain);
            let error = weight_error(&case, &ops, &part, &found);
            prop_assert!(error < 1e-6, "plain {plain}: {error}");
        }
    }
}

/// The layers that see the most pixels: errors grow with the number of terms.
#[test]
fn long_sums_stay_accurate() {
    let ones = [1; 3];
    let attrs = ConvAttrs {
        kernel: [3, 3, 1],
        stride: ones,
        dilation: ones,
        pad_lo: [1, 1, 0],
        pad_hi: [1, 1, 0],
        groups: 1,
        algo: ConvAlgo::Direct,
    };
    for ws in [0, 20_000, 2 << 20] {
        let case = Case {
            attrs,
            x: Shape::map(1, 3, &[300, 1000]),
            y: Shape::map(1, 4, &[300, 1000]),
            w: Shape::new(&[4, 3, 3, 3]),
            bias: false,
            cut: [(0, 8); 4],
            slack: 0,
            ws: (ws, 0),
            seed: 7,
        };
        let mut ops = operands::<f32>(&case);
        // Like what follows a ReLU and a loss: neither has mean zero.
        ops.x.iter_mut().for_each(|v| *v = v.max(0.0));
        ops.y.iter_mut().for_each(|v| *v += 0.1);
        let double = Operands {
            x: ops.x.iter().map(|&v| f64::from(v)).collect(),
            y: ops.y.iter().map(|&v| f64::from(v)).collect(),
            w: vec![],
            bias: vec![],
        };
        let exact = weights(&case, &double, &whole(case.y), true);
        let found = weights(&case, &ops, &whole(case.y), false);
        let error = norm(found.iter().zip(&exact).map(|(&f, e)| f64::from(f) - e));
        let size = norm(exact.iter().copied());
        assert!(error < 1e-6 * size, "{ws} bytes: {error} of {size}");
    }
}
