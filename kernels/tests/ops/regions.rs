//! The invariant: a map op's bits do not depend on how it is cut, a reduction's
//! value does not beyond rounding, and threads show nowhere.

use proptest::prelude::*;
use sstep_autodiff::{Op, ReductionState, Region, Span};
use sstep_kernels::{Box4, In, Layout, Out, Real, State, cpu};

use crate::cases::{Case, flat_ops, map_ops, map_ops_of, reductions, reductions_of};
use crate::common::{
    Rng, Tensor, Window, close, job, out_ty, random, random_region, read, run, run_typed, types,
};

/// Bits that compare: a NaN equals itself.
fn bits<T: Real>(x: T) -> u64 {
    x.to_f64().to_bits()
}

/// Views of the inputs that hold no more than `op` reads for `region`.
fn windows<T: Real>(
    case: &Case,
    region: &Region,
    out: &sstep_autodiff::Ty,
    rng: &mut Rng,
) -> Vec<Window<T>> {
    let tys = types::<T>(&case.inputs);
    let view = |(i, x): (usize, &Tensor)| {
        if !x.ty.is_map() {
            let (ty, data) = x.typed();
            return Window {
                layout: Layout::whole(&ty),
                data,
            };
        }
        let present = read(&case.op, i, &tys, out, region);
        let mut window = Window::new(&tys[i], &present, rng);
        window.fill(x, &present);
        window
    };
    case.inputs.iter().enumerate().map(view).collect()
}

fn check_map<T: Real>(case: &Case, rng: &mut Rng) {
    let ty = out_ty::<T>(&case.op, &case.inputs);
    let want = Tensor {
        ty,
        data: run_typed::<T>(&case.op, &case.inputs)
            .iter()
            .map(|x| x.to_f64())
            .collect(),
    };
    for _ in 0..4 {
        let region = random_region(&ty, rng);
        let held = windows::<T>(case, &region, &ty, rng);
        let views: Vec<In<T>> = held.iter().map(|w| In::new(w.layout, &w.data)).collect();
        // The output holds more than is computed now.
        let mut present = region;
        for axis in 0..ty.n_axes() {
            let s = region.span(axis);
            let wider = Span::new(s.lo.saturating_sub(1), (s.hi + 1).min(ty.axis_extent(axis)));
            present.set(axis, wider);
        }
        let mut target = Window::<T>::new(&ty, &present, rng);
        let layout = target.layout;
        let mut out = Out::new(layout, &mut target.data);
        cpu::run(
            &job(&case.op, Box4::lift(&region), &views),
            &mut out,
            &mut [],
        );
        let inside = Box4::lift(&region);
        for place in target.places(&present) {
            let [n, _, d, h, w] = place;
            let asked = inside.n().contains(&n)
                && inside.s(0).contains(&d)
                && inside.s(1).contains(&h)
                && inside.s(2).contains(&w);
            let got = target.get(place);
            if asked {
                let want = T::from_f64(want.at(place));
                assert_eq!(
                    bits(got),
                    bits(want),
                    "{:?} {ty} {region:?} {place:?}",
                    case.op
                );
            } else {
                assert!(
                    got.is_nan(),
                    "{:?} wrote {place:?} beyond {region:?}",
                    case.op
                );
            }
        }
    }
}

/// Cuts `0..extent` into random spans.
fn cuts(extent: usize, rng: &mut Rng) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut lo = 0;
    while lo < extent {
        let hi = (lo + rng.int(1, extent)).min(extent);
        spans.push(Span::new(lo, hi));
        lo = hi;
    }
    spans
}

fn check_reduction(case: &Case, rng: &mut Rng) {
    let op = &case.op;
    let ty = out_ty::<f64>(op, &case.inputs);
    let tys = types::<f64>(&case.inputs);
    let domain = tys[op.domain(&tys, &ty).expect("a reduction over maps")];
    let mut tiles = vec![Region::whole(&domain)];
    for axis in 0..domain.n_axes() {
        let spans = cuts(domain.axis_extent(axis), rng);
        let cut = |tile: &Region, span: &Span| {
            let mut tile = *tile;
            tile.set(axis, *span);
            tile
        };
        tiles = tiles
            .iter()
            .flat_map(|t| spans.iter().map(move |s| cut(t, s)))
            .collect();
    }
    for i in (1..tiles.len()).rev() {
        tiles.swap(i, rng.int(0, i));
    }
    let ReductionState::F64(len) = op.reduction_state(&ty) else {
        panic!("not in place")
    };
    let mut doubles = vec![f64::NAN; len];
    let mut state = State::F64(&mut doubles);
    cpu::begin::<f64>(op, &mut state, &ty);
    for tile in &tiles {
        let held = windows::<f64>(case, tile, &ty, rng);
        let views: Vec<In<f64>> = held.iter().map(|w| In::new(w.layout, &w.data)).collect();
        cpu::accumulate(&job(op, Box4::lift(tile), &views), &mut state, &ty, &mut []);
    }
    let mut data = vec![f64::NAN; ty.shape.elems()];
    cpu::finish(
        op,
        &tys,
        &mut state,
        &mut Out::new(Layout::whole(&ty), &mut data),
    );
    let want = run(op, &case.inputs).data;
    let tolerance = if matches!(op, Op::GlobalMax) {
        0.0
    } else {
        1e-12
    };
    close(
        &data,
        &want,
        tolerance,
        &format!("{op:?} of {domain} in {} tiles", tiles.len()),
    );
}

/// A single-precision run is the double-precision one, rounded a few times.
fn check_single(case: &Case) {
    let inputs: Vec<Tensor> = case
        .inputs
        .iter()
        .map(|x| Tensor {
            data: x.data.iter().map(|&x| f64::from(x as f32)).collect(),
            ..x.clone()
        })
        .collect();
    let got: Vec<f64> = run_typed::<f32>(&case.op, &inputs)
        .into_iter()
        .map(f64::from)
        .collect();
    let want = run(&case.op, &inputs).data;
    // The gradient of a norm over a single element is a difference of equals,
    // each divided by the root of eps.
    let tolerance = if matches!(case.op, Op::NormGrad(_)) {
        1e-4
    } else {
        4e-6
    };
    close(
        &got,
        &want,
        tolerance,
        &format!("{:?} in single precision", case.op),
    );
}

proptest! {
    #![proptest_config(random(150))]

    #[test]
    fn a_map_op_repeats_its_bits_in_any_region(seed: u64) {
        let mut rng = Rng::new(seed);
        for case in map_ops(&mut rng) {
            check_map::<f64>(&case, &mut rng);
            check_map::<f32>(&case, &mut rng);
        }
    }

    #[test]
    fn a_reduction_does_not_mind_its_tiles(seed: u64) {
        let mut rng = Rng::new(seed);
        for case in reductions(&mut rng) {
            check_reduction(&case, &mut rng);
        }
    }

    #[test]
    fn single_precision_is_close_to_double(seed: u64) {
        let mut rng = Rng::new(seed);
        map_ops(&mut rng).iter().for_each(check_single);
        reductions(&mut rng).iter().for_each(check_single);
        let with_inputs = |case: &&Case| !case.inputs.is_empty();
        flat_ops(&mut rng).iter().filter(with_inputs).for_each(check_single);
    }
}

/// Rows are worked on in pieces of a few hundred elements; these have several.
#[test]
fn wide_rows_are_no_different() {
    let mut rng = Rng::new(2);
    for dims in [[1, 2, 2300], [1, 2, 2301]] {
        for case in map_ops_of(&dims, &mut rng) {
            check_map::<f32>(&case, &mut rng);
            crate::textbook::check(&case);
        }
        for case in reductions_of(&dims, &mut rng) {
            check_reduction(&case, &mut rng);
            crate::textbook::check(&case);
        }
    }
}

/// Maps large enough to be divided among threads.
fn large_cases(rng: &mut Rng) -> Vec<Case> {
    use sstep_autodiff::{NormAttrs, NormKind, Num, PoolAttrs, UpsampleAttrs, UpsampleMode};
    let dims = [1, 3, 301, 263];
    let x = Tensor::random_map(&dims, rng);
    let y = Tensor::random_map(&dims, rng);
    let case = |op, inputs: &[&Tensor]| Case {
        op,
        inputs: inputs.iter().copied().cloned().collect(),
    };
    let pool = PoolAttrs {
        kernel: [3, 3, 1],
        stride: [2, 2, 1],
        pad_lo: [1, 1, 0],
        pad_hi: [1, 1, 0],
        count_pad: true,
    };
    let pooled = Tensor::random_map(&[1, 3, 151, 132], rng);
    let up = UpsampleAttrs {
        mode: UpsampleMode::Linear,
        factor: [2, 3, 1],
    };
    let moments = run(&Op::Moments(NormKind::Group(1)), std::slice::from_ref(&x));
    let norm = NormAttrs {
        kind: NormKind::Group(1),
        eps: Num::new(1e-5),
        frozen: false,
    };
    let labels = crate::cases::labels(sstep_autodiff::Form::Map, &dims, 3, rng);
    vec![
        case(Op::MaxPool(pool), &[&x]),
        case(Op::MaxPoolGrad(pool), &[&x, &pooled]),
        case(Op::Upsample(up), &[&x]),
        case(Op::Softmax, &[&x]),
        case(Op::Add, &[&x, &y]),
        case(Op::SumMap { keep_batch: true }, &[&x]),
        case(Op::GlobalMax, &[&x]),
        case(Op::SpatialLse, &[&x]),
        case(Op::Moments(NormKind::Batch), &[&x]),
        case(Op::NormSums(norm), &[&x, &moments, &y]),
        case(Op::CrossEntropy, &[&x, &labels]),
        case(Op::Bce, &[&x, &y]),
        case(Op::DiceSums, &[&x, &y]),
    ]
}

#[test]
fn the_number_of_threads_does_not_show() {
    let pool = |n| {
        rayon::ThreadPoolBuilder::new()
            .num_threads(n)
            .build()
            .expect("threads")
    };
    let cases = large_cases(&mut Rng::new(4));
    let of = |n: usize| -> Vec<Vec<u64>> {
        let results = |case: &Case| {
            let out: Vec<f32> = run_typed(&case.op, &case.inputs);
            out.into_iter().map(bits).collect()
        };
        pool(n).install(|| cases.iter().map(results).collect())
    };
    let one = of(1);
    for n in [2, 3, 8] {
        assert!(of(n) == one, "{n} threads");
    }
}
