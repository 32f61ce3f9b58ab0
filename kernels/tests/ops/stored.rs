//! Ops on narrow tensors: the `f32` kernel on what they hold, rounded once, bit for bit,
//! in any region and with any scratch.

use proptest::prelude::*;
use sstep_autodiff::{
    ConvAlgo, ConvAttrs, ConvTransposeAttrs, DType, Form, Op, ReductionState, Region, Ty, infer,
};
use sstep_kernels::{AnyIn, AnyOut, Layout, Out, State, StoredJob, bf16, cpu, f16};

use crate::cases::{Case, map_ops, random_dims, reductions};
use crate::common::{Rng, SEED, STEP, Tensor, Window, random, random_region, read, run_typed};

/// A tensor as elements of its type, told in bytes.
fn stored(dtype: DType, values: &[f32]) -> Vec<u8> {
    let bytes = |x: &f32| match dtype {
        DType::Bf16 => bf16::from_f32(*x).to_bits().to_ne_bytes().to_vec(),
        DType::F16 => f16::from_f32(*x).to_bits().to_ne_bytes().to_vec(),
        DType::F32 => x.to_ne_bytes().to_vec(),
        DType::F64 => panic!("not a type of these tests"),
    };
    values.iter().flat_map(bytes).collect()
}

/// Its values again.
fn loaded(dtype: DType, bytes: &[u8]) -> Vec<f32> {
    let half = |b: &[u8]| u16::from_ne_bytes([b[0], b[1]]);
    match dtype {
        DType::Bf16 => bytes
            .chunks(2)
            .map(|b| bf16::from_bits(half(b)).to_f32())
            .collect(),
        DType::F16 => bytes
            .chunks(2)
            .map(|b| f16::from_bits(half(b)).to_f32())
            .collect(),
        DType::F32 | DType::F64 => bytes
            .chunks(4)
            .map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
    }
}

/// Types of a case's inputs: maps are narrow, and so is a convolution's weight.
fn types_of(case: &Case, narrow: DType) -> Vec<Ty> {
    let is_weight = |i: usize| i == 1 && matches!(case.op, Op::Conv(_) | Op::ConvTranspose(_));
    let of = |(i, x): (usize, &Tensor)| {
        let is_narrow = x.ty.is_map() || is_weight(i);
        x.ty.with_dtype(if is_narrow { narrow } else { DType::F32 })
    };
    case.inputs.iter().enumerate().map(of).collect()
}

/// The case with values that its types can hold.
fn rounded(case: &Case, tys: &[Ty]) -> Case {
    let one = |(x, ty): (&Tensor, &Ty)| {
        let mut data: Vec<f32> = x.data.iter().map(|&v| v as f32).collect();
        cpu::round_to(ty.dtype, &mut data);
        Tensor {
            ty: x.ty,
            data: data.into_iter().map(f64::from).collect(),
        }
    };
    Case {
        op: case.op,
        inputs: case.inputs.iter().zip(tys).map(one).collect(),
    }
}

/// Views of what `op` reads for `region`, as layouts and bytes.
fn windows(
    case: &Case,
    tys: &[Ty],
    out: &Ty,
    region: &Region,
    rng: &mut Rng,
) -> Vec<(Layout, Vec<u64>)> {
    let view = |(i, x): (usize, &Tensor)| {
        let mut window = if x.ty.is_map() {
            let present = read(&case.op, i, tys, out, region);
            let mut window = Window::<f32>::new(&tys[i], &present, rng);
            window.fill(x, &present);
            window
        } else {
            Window {
                layout: Layout::whole(&tys[i]),
                data: x.data.iter().map(|&v| v as f32).collect(),
            }
        };
        window.layout.dtype = tys[i].dtype;
        (window.layout, aligned(&stored(tys[i].dtype, &window.data)))
    };
    case.inputs.iter().enumerate().map(view).collect()
}

/// Bytes in memory that any element is aligned in.
fn aligned(bytes: &[u8]) -> Vec<u64> {
    let mut words = vec![0u64; bytes.len().div_ceil(8)];
    bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
    words
}

/// Scratch between the least and more than enough.
fn scratch(case: &Case, tys: &[Ty], out: &Ty, region: &Region, rng: &mut Rng) -> Vec<[u64; 8]> {
    let least = case.op.least_decoded_bytes(tys, out);
    let whole = case.op.decoded_bytes(tys, out, region).max(least);
    let bytes = least + (whole - least) * rng.int(0, 4) as u64 / 3;
    vec![[0x7ff8_7ff8_7ff8_7ff8; 8]; (bytes as usize).div_ceil(64)]
}

fn check(case: &Case, narrow: DType, rng: &mut Rng) -> bool {
    let tys = types_of(case, narrow);
    // Losses are computed on f32.
    let Ok(ty) = infer(&case.op, &tys) else {
        return false;
    };
    let case = rounded(case, &tys);
    let mut want: Vec<f32> = run_typed(&case.op, &case.inputs);
    if ty.is_map() {
        cpu::round_to(ty.dtype, &mut want);
        check_map(&case, &tys, &ty, &want, rng);
    } else if case.op.domain(&tys, &ty).is_some() {
        check_reduction(&case, &tys, &ty, &want, rng);
    }
    true
}

fn check_map(case: &Case, tys: &[Ty], ty: &Ty, want: &[f32], rng: &mut Rng) {
    let want = Tensor {
        ty: *ty,
        data: want.iter().map(|&x| f64::from(x)).collect(),
    };
    let region = random_region(ty, rng);
    let held = windows(case, tys, ty, &region, rng);
    let views: Vec<AnyIn> = (held.iter())
        .map(|(layout, words)| AnyIn::new(*layout, bytemuck::cast_slice(words)))
        .collect();
    let mut target = Window::<f32>::new(ty, &region, rng);
    let mut words = aligned(&stored(ty.dtype, &target.data));
    let out = AnyOut::new(target.layout, bytemuck::cast_slice_mut(&mut words));
    let job = StoredJob {
        op: &case.op,
        region,
        inputs: &views,
        step: STEP,
        seed: SEED,
    };
    let mut room = scratch(case, tys, ty, &region, rng);
    cpu::run_stored(&job, out, bytemuck::cast_slice_mut(&mut room));
    let bytes: &[u8] = bytemuck::cast_slice(&words);
    target.data = loaded(ty.dtype, &bytes[..target.data.len() * ty.dtype.bytes()]);
    for place in target.places(&region) {
        let (got, want) = (target.get(place), want.at(place) as f32);
        let same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        assert!(
            same,
            "{:?} {ty} {region:?} {place:?}: {got:e}, not {want:e}",
            case.op
        );
    }
}

fn check_reduction(case: &Case, tys: &[Ty], ty: &Ty, want: &[f32], rng: &mut Rng) {
    let op = &case.op;
    let domain = Region::whole(&tys[op.domain(tys, ty).expect("a reduction")]);
    let held = windows(case, tys, ty, &domain, rng);
    let views: Vec<AnyIn> = (held.iter())
        .map(|(layout, words)| AnyIn::new(*layout, bytemuck::cast_slice(words)))
        .collect();
    let mut data = vec![0f32; ty.shape.elems()];
    let mut doubles = match op.reduction_state(ty) {
        ReductionState::F64(n) => vec![f64::NAN; n],
        ReductionState::InPlace => panic!("these weights are few"),
    };
    let mut state = State::F64(&mut doubles);
    cpu::begin::<f32>(op, &mut state, ty);
    let job = StoredJob {
        op,
        region: domain,
        inputs: &views,
        step: STEP,
        seed: SEED,
    };
    let mut room = scratch(case, tys, ty, &domain, rng);
    cpu::accumulate_stored(&job, &mut state, ty, bytemuck::cast_slice_mut(&mut room));
    cpu::finish(
        op,
        tys,
        &mut state,
        &mut Out::new(Layout::whole(ty), &mut data),
    );
    // Pieces add up in another order; weights in single precision within a piece.
    let scale = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    for (i, (got, want)) in data.iter().zip(want).enumerate() {
        let close = (got - want).abs() <= 4e-6 * (1.0 + scale);
        assert!(close || got == want, "{op:?} {i}: {got:e}, not {want:e}");
    }
}

/// The three sums of a convolution.
fn convolutions(rng: &mut Rng) -> Vec<Case> {
    let dims = random_dims(rng);
    let n = dims.len() - 2;
    let mut a = ConvAttrs {
        kernel: [1; 3],
        stride: [1; 3],
        dilation: [1; 3],
        pad_lo: [0; 3],
        pad_hi: [0; 3],
        groups: 1,
        algo: ConvAlgo::Direct,
    };
    for s in 0..n {
        a.kernel[s] = rng.int(1, 3.min(dims[2 + s]));
        a.stride[s] = rng.int(1, 2);
        a.pad_lo[s] = rng.int(0, 1);
        a.pad_hi[s] = rng.int(0, 1);
    }
    let k = rng.int(1, 4);
    let mut w_dims = vec![k, dims[1]];
    w_dims.extend(&a.kernel[..n]);
    let mut y_dims = vec![dims[0], k];
    let extents = (0..n).map(|s| a.out_extent(s, dims[2 + s]).expect("it fits"));
    y_dims.extend(extents);
    let x = Tensor::random(Form::Map, &dims, rng);
    let y = Tensor::random(Form::Map, &y_dims, rng);
    let w = Tensor::random(Form::Flat, &w_dims, rng);
    let b = Tensor::random(Form::Flat, &[k], rng);
    let mut out_spatial = [1; 3];
    out_spatial[..n].copy_from_slice(&dims[2..]);
    let transpose = ConvTransposeAttrs {
        conv: a,
        out_spatial,
    };
    let case = |op, inputs: &[&Tensor]| Case {
        op,
        inputs: inputs.iter().copied().cloned().collect(),
    };
    vec![
        case(Op::Conv(a), &[&x, &w, &b]),
        case(Op::ConvTranspose(transpose), &[&y, &w]),
        case(Op::ConvWeightGrad(a), &[&x, &y]),
    ]
}

proptest! {
    #![proptest_config(random(150))]

    #[test]
    fn narrow_operands_give_the_rounded_result_of_wide_ones(seed: u64) {
        let mut rng = Rng::new(seed);
        let narrow = if rng.chance(50) { DType::Bf16 } else { DType::F16 };
        let cases = [map_ops(&mut rng), reductions(&mut rng), convolutions(&mut rng)];
        let n = cases.iter().flatten().filter(|case| check(case, narrow, &mut rng)).count();
        prop_assert!(n > 20, "{n} cases took narrow maps");
    }
}

/// A cast is a rounding, of maps in any region and of flat tensors.
#[test]
fn casts_round_and_decode() {
    let mut rng = Rng::new(5);
    for form in [Form::Map, Form::Flat] {
        let x = Tensor::random(form, &[2, 3, 5, 7], &mut rng);
        for to in [DType::Bf16, DType::F16] {
            let op = Op::Cast { to };
            let values: Vec<f32> = x.data.iter().map(|&v| v as f32).collect();
            let wide = x.ty.with_dtype(DType::F32);
            let narrow = infer(&op, &[wide]).expect("a cast");
            let mut words = vec![0u64; values.len()];
            let bytes = aligned(bytemuck::cast_slice(&values));
            let any = AnyIn::new(Layout::whole(&wide), bytemuck::cast_slice(&bytes));
            let region = Region::whole(&wide);
            let run = |op: &Op, inputs: &[AnyIn], out: AnyOut| {
                let job = StoredJob {
                    op,
                    region,
                    inputs,
                    step: STEP,
                    seed: SEED,
                };
                cpu::run_stored(&job, out, &mut []);
            };
            let out = AnyOut::new(Layout::whole(&narrow), bytemuck::cast_slice_mut(&mut words));
            run(&op, &[any], out);
            let mut want = values.clone();
            cpu::round_to(to, &mut want);
            let bytes: &[u8] = bytemuck::cast_slice(&words);
            assert_eq!(loaded(to, &bytes[..2 * values.len()]), want);
            // And back, exactly.
            let mut back = vec![0u64; values.len()];
            let any = AnyIn::new(Layout::whole(&narrow), bytemuck::cast_slice(&words));
            let out = AnyOut::new(Layout::whole(&wide), bytemuck::cast_slice_mut(&mut back));
            run(&Op::Cast { to: DType::F32 }, &[any], out);
            let bytes: &[u8] = bytemuck::cast_slice(&back);
            assert_eq!(loaded(DType::F32, &bytes[..4 * values.len()]), want);
        }
    }
}
