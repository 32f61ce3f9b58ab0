//! Random convolutions and how they are cut.

use proptest::prelude::*;
use sstep_autodiff::{ConvAlgo, ConvAttrs, ConvTransposeAttrs, Region, Shape, Span, Ty};

/// One convolution and how it is cut.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) attrs: ConvAttrs,
    pub(super) x: Shape,
    pub(super) y: Shape,
    pub(super) w: Shape,
    pub(super) bias: bool,
    /// Where regions are cut, in 1/8 of each axis.
    pub(super) cut: [(usize, usize); 4],
    /// Unused capacity per axis of windowed views.
    pub(super) slack: usize,
    /// Bytes of workspace, and how many of them are skipped to misalign it.
    pub(super) ws: (usize, usize),
    pub(super) seed: u64,
}

impl Case {
    pub(super) fn transposed(&self) -> ConvTransposeAttrs {
        let mut out_spatial = [1; 3];
        out_spatial[..self.x.spatial().len()].copy_from_slice(self.x.spatial());
        ConvTransposeAttrs {
            conv: self.attrs,
            out_spatial,
        }
    }

    /// A part of a map: `cut` of every axis.
    pub(super) fn part(&self, ty: &Ty) -> Region {
        let spans: Vec<Span> = (0..ty.n_axes())
            .map(|a| {
                let extent = ty.axis_extent(a);
                let (lo, hi) = self.cut[a];
                let lo = (lo * extent / 8).min(extent - 1);
                Span::new(lo, (hi * extent).div_ceil(8).clamp(lo + 1, extent))
            })
            .collect();
        Region::new(&spans)
    }
}

fn axis() -> impl Strategy<Value = ([usize; 5], usize)> {
    let geometry = (1..6usize, 1..4usize, 1..4usize, 0..4usize, 0..4usize);
    (geometry, 1..30usize, 0..8usize).prop_filter_map(
        "the padded input holds the kernel",
        |((kernel, stride, dilation, lo, hi), extent, shape)| {
            // Half of the axes are ordinary: stride 1, no dilation.
            let (stride, dilation) = if shape < 4 {
                (1, 1)
            } else {
                (stride, dilation)
            };
            let reach = (kernel - 1) * dilation + 1;
            let extent = if shape == 7 { extent * 5 } else { extent };
            (extent + lo + hi >= reach).then_some(([kernel, stride, dilation, lo, hi], extent))
        },
    )
}

pub(super) fn case() -> impl Strategy<Value = Case> {
    case_of((1..3usize, 1..4usize, 1..20usize, 1..20usize, any::<bool>()))
}

/// Every channel on its own.
pub(super) fn depthwise() -> impl Strategy<Value = Case> {
    case_of((1..3usize, 1..9usize, Just(1), Just(1), any::<bool>()))
}

/// `channels` are samples, groups, channels of `x` and of `y` in a group, and
/// whether there is a bias.
fn case_of(
    channels: impl Strategy<Value = (usize, usize, usize, usize, bool)>,
) -> impl Strategy<Value = Case> {
    let axes = prop::collection::vec(axis(), 1..=3);
    let cut = prop::array::uniform4((0..6usize, 3..9usize));
    let ws = (
        prop::sample::select(vec![0, 3000, 20_000, 100_000, 2 << 20]),
        0..9usize,
    );
    (axes, channels, cut, 0..3usize, ws, any::<u64>()).prop_map(
        |(axes, (batch, groups, in_group, out_group, bias), cut, slack, ws, seed)| {
            let mut attrs = ConvAttrs {
                kernel: [1; 3],
                stride: [1; 3],
                dilation: [1; 3],
                pad_lo: [0; 3],
                pad_hi: [0; 3],
                groups,
                algo: ConvAlgo::Direct,
            };
            let mut extents = vec![];
            for (s, ([kernel, stride, dilation, lo, hi], extent)) in axes.into_iter().enumerate() {
                // Three long axes would take too long.
                let extent = if s == 0 { extent } else { extent.min(60) };
                attrs.kernel[s] = kernel;
                attrs.stride[s] = stride;
                attrs.dilation[s] = dilation;
                attrs.pad_lo[s] = lo;
                attrs.pad_hi[s] = hi;
                extents.push(extent);
            }
            if extents.len() == 3 {
                extents.iter_mut().zip(0..).for_each(|(e, s)| {
                    let reach = (attrs.kernel[s] - 1) * attrs.dilation[s] + 1;
                    *e = (*e).min(reach + 7);
                });
            }
            let out: Vec<usize> = extents
                .iter()
                .enumerate()
                .map(|(s, &e)| attrs.out_extent(s, e).expect("filtered"))
                .collect();
            let mut w = vec![out_group * groups, in_group];
            w.extend(&attrs.kernel[..extents.len()]);
            Case {
                attrs,
                x: Shape::map(batch, in_group * groups, &extents),
                y: Shape::map(batch, out_group * groups, &out),
                w: Shape::new(&w),
                bias,
                cut,
                slack,
                ws,
                seed,
            }
        },
    )
}

/// A convolution of some channels over rows of some length, as it is lowered to a
/// matrix product: small kernels, strides of all relations to them.
pub(super) fn lowered() -> impl Strategy<Value = Case> {
    let channels = || prop_oneof![3 => 1..40usize, 1 => 60..72usize];
    plain_taps(channels(), channels())
}

/// A convolution of few channels to many, as networks begin with.
pub(super) fn first_layer() -> impl Strategy<Value = Case> {
    plain_taps(1..10usize, 12..80usize)
}

/// A convolution of so many channels to so many, without groups or dilation.
fn plain_taps(
    ins: impl Strategy<Value = usize>,
    outs: impl Strategy<Value = usize>,
) -> impl Strategy<Value = Case> {
    let axis =
        (1..4usize, 1..4usize, 0..2usize, 0..3usize).prop_map(|(kernel, stride, pad, shape)| {
            // A third of the axes have one tap, a third taps that do not overlap.
            let kernel = match shape {
                0 => 1,
                1 => kernel.min(stride),
                _ => kernel,
            };
            [kernel, stride, pad]
        });
    let shape = (1..3usize, ins, outs, any::<bool>());
    let spatial = (1..5usize, 4..24usize, 8..150usize, 1..=3usize);
    let axes = prop::array::uniform3(axis);
    let cut = prop::array::uniform4((0..2usize, 6..9usize));
    let ws = (prop::sample::select(vec![3000, 60_000, 2 << 20]), 0..9usize);
    (shape, spatial, axes, cut, 0..3usize, ws, any::<u64>()).prop_map(
        |((batch, ins, outs, bias), (d, h, w, n), axes, cut, slack, ws, seed)| {
            let mut attrs = ConvAttrs {
                kernel: [1; 3],
                stride: [1; 3],
                dilation: [1; 3],
                pad_lo: [0; 3],
                pad_hi: [0; 3],
                groups: 1,
                algo: ConvAlgo::Direct,
            };
            let mut extents = [d, h, w][3 - n..].to_vec();
            let mut out = vec![];
            if n == 1 {
                extents[0] *= 8;
            }
            for (s, [kernel, stride, pad]) in axes.into_iter().take(n).enumerate() {
                attrs.kernel[s] = kernel;
                attrs.stride[s] = stride;
                attrs.pad_lo[s] = pad;
                attrs.pad_hi[s] = pad;
                extents[s] = extents[s].max(kernel);
                out.push(
                    attrs
                        .out_extent(s, extents[s])
                        .expect("the input holds the kernel"),
                );
            }
            let mut w = vec![outs, ins];
            w.extend(&attrs.kernel[..n]);
            Case {
                attrs,
                x: Shape::map(batch, ins, &extents),
                y: Shape::map(batch, outs, &out),
                w: Shape::new(&w),
                bias,
                cut,
                slack,
                ws,
                seed,
            }
        },
    )
}
