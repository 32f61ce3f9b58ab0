//! Winograd's algorithm: regions, scratch and instruction sets give the same
//! bits; values are those of direct sums, up to its error.

use super::*;

fn winograd_case() -> impl Strategy<Value = Case> {
    let axes = (1..5usize, prop::array::uniform3((0..3usize, 0..4usize)));
    let extents = prop::array::uniform3(1..24usize);
    let channels = (1..3usize, 1..40usize, 1..40usize, any::<bool>());
    let cut = prop::array::uniform4((0..6usize, 3..9usize));
    let ws = (
        prop::sample::select(vec![0, 100_000, 400_000, 1 << 20, 4 << 20]),
        0..9usize,
    );
    let rest = (any::<bool>(), cut, 0..3usize, ws, any::<u64>());
    (axes, extents, any::<bool>(), channels, rest).prop_filter_map(
        "the padded input holds the kernel",
        |(
            (depth, pads),
            extents,
            wide,
            (batch, ins, outs, bias),
            (volume, cut, slack, ws, seed),
        )| {
            let n = if volume { 3 } else { 2 };
            let mut attrs = ConvAttrs {
                kernel: [1; 3],
                stride: [1; 3],
                dilation: [1; 3],
                pad_lo: [0; 3],
                pad_hi: [0; 3],
                groups: 1,
                algo: ConvAlgo::Winograd,
            };
            let mut extents = extents[..n].to_vec();
            if wide {
                // Runs of sixteen tiles and more.
                extents[n - 1] = extents[n - 1] * 5 + 40;
                extents[n - 2] = extents[n - 2].min(9);
            }
            if volume {
                extents[0] = extents[0].min(4);
                attrs.kernel[0] = depth.min(3);
                attrs.pad_lo[0] = pads[0].0.min(attrs.kernel[0] - 1);
                attrs.pad_hi[0] = pads[0].1;
            }
            for (s, &(lo, hi)) in pads.iter().enumerate().take(n).skip(n - 2) {
                attrs.kernel[s] = 3;
                attrs.pad_lo[s] = lo;
                attrs.pad_hi[s] = hi;
            }
            let out: Option<Vec<usize>> = (0..n).map(|s| attrs.out_extent(s, extents[s])).collect();
            let mut w = vec![outs, ins];
            w.extend(&attrs.kernel[..n]);
            Some(Case {
                attrs,
                x: Shape::map(batch, ins, &extents),
                y: Shape::map(batch, outs, &out?),
                w: Shape::new(&w),
                bias,
                cut,
                slack,
                ws,
                seed,
            })
        },
    )
}

/// Operands in doubles.
fn exact(ops: &Operands<f32>) -> Operands<f64> {
    let widen = |v: &[f32]| v.iter().map(|&v| f64::from(v)).collect();
    Operands {
        x: widen(&ops.x),
        y: widen(&ops.y),
        w: widen(&ops.w),
        bias: widen(&ops.bias),
    }
}

const KINDS: [Kind; 2] = [Kind::Forward, Kind::Transposed];

fn out_shape(case: &Case, kind: Kind) -> Shape {
    match kind {
        Kind::Forward => case.y,
        Kind::Transposed => case.x,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(120) })]

    #[test]
    fn a_tile_is_a_direct_sum_up_to_rounding(case in winograd_case()) {
        prop_assert!(case.attrs.can_winograd(case.x.spatial().len()));
        let ops = operands::<f32>(&case);
        for kind in KINDS {
            let region = whole(out_shape(&case, kind));
            let expected = run(&case, kind, &exact(&ops), &region, true);
            let in_doubles = run(&case, kind, &exact(&ops), &region, false);
            let found = run(&case, kind, &ops, &region, false);
            let size = norm(expected.iter().copied());
            let error = norm(in_doubles.iter().zip(&expected).map(|(f, e)| f - e));
            prop_assert!(error <= 1e-13 * size, "{kind:?} in doubles: {error} of {size}");
            let error = norm(found.iter().zip(&expected).map(|(&f, e)| f64::from(f) - e));
            prop_assert!(error <= 1e-5 * size, "{kind:?}: {error} of {size}");
        }
    }

    #[test]
    fn regions_and_scratch_do_not_show(mut case in winograd_case()) {
        let ops = operands::<f32>(&case);
        for kind in KINDS {
            let out = ty::<f32>(out_shape(&case, kind), Form::Map);
            let all = run(&case, kind, &ops, &Region::whole(&out), false);
            let part = case.part(&out);
            let (layout, expected) = window(&out, &all, &part, 0);
            let view = In::new(layout, &expected);
            let expected: Vec<f32> = rows(&layout, &part)
                .into_iter()
                .flat_map(|(n, c, d, h, w)| view.row(n, c, d, h, w))
                .copied()
                .collect();
            let had = case.ws;
            for ws in [had.0, 0, 8 << 20] {
                case.ws.0 = ws;
                let found = run(&case, kind, &ops, &part, false);
                prop_assert_eq!(bits(&found), bits(&expected), "{:?} with {} bytes", kind, ws);
            }
            case.ws = had;
        }
    }

    #[test]
    fn weight_gradients_are_direct_sums_up_to_rounding(case in winograd_case()) {
        let ops = operands::<f32>(&case);
        let part = case.part(&ty::<f32>(case.y, Form::Map));
        let expected = weights(&case, &exact(&ops), &part, true);
        let found = weights(&case, &ops, &part, false);
        let size = norm(expected.iter().copied()) + (expected.len() as f64).sqrt();
        let error = norm(found.iter().zip(&expected).map(|(&f, e)| f64::from(f) - e));
        prop_assert!(error <= 1e-5 * size, "{error} of {size}");
    }
}

/// The documented error, for as many channels as networks have.
#[test]
fn errors_stay_small() {
    for channels in [16, 512] {
        let ones = [1; 3];
        let attrs = ConvAttrs {
            kernel: [3, 3, 1],
            stride: ones,
            dilation: ones,
            pad_lo: [1, 1, 0],
            pad_hi: [1, 1, 0],
            groups: 1,
            algo: ConvAlgo::Winograd,
        };
        let case = Case {
            attrs,
            x: Shape::map(1, channels, &[24, 24]),
            y: Shape::map(1, 16, &[24, 24]),
            w: Shape::new(&[16, channels, 3, 3]),
            bias: false,
            cut: [(0, 8); 4],
            slack: 0,
            ws: (8 << 20, 0),
            seed: 3,
        };
        let ops = operands::<f32>(&case);
        let error = |found: &[f32], expected: &[f64]| {
            let error = norm(found.iter().zip(expected).map(|(&f, e)| f64::from(f) - e));
            error / norm(expected.iter().copied())
        };
        for kind in KINDS {
            let region = whole(out_shape(&case, kind));
            let expected = run(&case, kind, &exact(&ops), &region, true);
            let error = error(&run(&case, kind, &ops, &region, false), &expected);
            assert!(error < 6e-6, "{kind:?}, {channels} channels: {error:e}");
        }
        let expected = weights(&case, &exact(&ops), &whole(case.y), true);
        let error = error(&weights(&case, &ops, &whole(case.y), false), &expected);
        assert!(error < 6e-6, "weights, {channels} channels: {error:e}");
    }
}
