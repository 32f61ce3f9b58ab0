//! What a library of the vendor may compute in place of our kernels: which calls
//! are offered, and how cuDNN and cuBLASLt would be told of them.
//!
//! An offer names the kernels that do the same, so that a library may be missing or
//! decline. The rule, applied here and nowhere else:
//!
//! - **Convolutions**, their data and weight gradients go to cuDNN where its
//!   description of them exists. It knows one number of zeros per axis, the same
//!   before and after; a tile at a border of the image has zeros on one side. So the
//!   largest box of the output with equal zeros goes to cuDNN, and the strips left
//!   over, a few rows at the image's border, to our kernels. Less than half a region
//!   is not worth the call: then our kernels do it all. The same holds where extents
//!   or strides pass 2³¹.
//! - The **gradients** want `ȳ` packed: rows and channels without gaps. A window with
//!   gaps is packed into scratch first; without that much scratch our kernels do it.
//! - **Dense layers** of [`LEAST_MATMUL`] multiply-adds or more go to cuBLASLt.

use sstep_autodiff::{ConvAttrs, Span};

use super::args::{Args, Placed, View};
use super::lower::{Call, Step, Task, Work, copy};
use super::sliding::{Sliding, strips};
use crate::view::{Box4, Layout};

/// Multiply-adds below which a library's call costs more than it saves.
pub const LEAST_MATMUL: u64 = 1 << 16;

/// Alignment of what a library is given of the scratch, in bytes.
const ALIGN: u64 = 256;

/// Bytes of the device that a call may use for itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scratch {
    /// Address of the first.
    pub address: u64,
    /// How many.
    pub bytes: u64,
}

/// A call that a library may take.
#[derive(Clone, Debug, PartialEq)]
pub struct Offer {
    /// To be run first if it takes the call.
    pub before: Option<Call>,
    /// What it is to compute.
    pub call: LibraryCall,
    /// What it may use meanwhile.
    pub scratch: Scratch,
    /// To be run afterwards.
    pub after: Option<Call>,
    /// What does all of the above if it does not take it.
    pub instead: Call,
}

/// What a library computes.
#[derive(Clone, Debug, PartialEq)]
pub enum LibraryCall {
    /// For cuDNN.
    Convolution(Convolution),
    /// For cuBLASLt.
    Matmul(Matmul),
}

/// Which of the three products of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pass {
    /// `y` from `x` and the filter.
    Forward,
    /// `x̄` from `ȳ` and the filter.
    Data,
    /// The filter's gradient from `x` and `ȳ`.
    Filter,
}

/// Extents and strides of a tensor as `[N, C, D, H, W]`, in elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extents {
    /// How many along each axis.
    pub dims: [i32; 5],
    /// Elements between neighbours.
    pub strides: [i32; 5],
}

/// A convolution but for where its tensors are: what an algorithm is chosen by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Shapes {
    /// Which product.
    pub pass: Pass,
    /// Axes that slide: 2, of a tensor without depth, or 3.
    pub n_spatial: usize,
    /// `x` or `x̄`.
    pub image: Extents,
    /// `y` or `ȳ`.
    pub map: Extents,
    /// `[K, C / groups, D, H, W]` of the filter, dense.
    pub filter: [i32; 5],
    /// Zeros before the first element and after the last, along D, H, W.
    pub pad: [i32; 3],
    /// Step between outputs.
    pub stride: [i32; 3],
    /// Step between taps.
    pub dilation: [i32; 3],
    /// Channel groups.
    pub groups: i32,
    /// Whether the result is added to what is there.
    pub adds: bool,
}

/// A convolution, or one of its gradients.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Convolution {
    /// What of.
    pub shapes: Shapes,
    /// Address of the image's first element.
    pub image: u64,
    /// Address of the map's.
    pub map: u64,
    /// Address of the filter's.
    pub filter: u64,
}

/// Extents of a product of matrices: `c = op(a) · op(b)`, columns dense.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MatmulShapes {
    /// Rows of `c`.
    pub m: u64,
    /// Columns of `c`.
    pub n: u64,
    /// Columns of `op(a)`, rows of `op(b)`.
    pub k: u64,
    /// Whether `a` is held transposed: `k` rows of it then, else `m`.
    pub transpose_a: bool,
    /// Whether `b` is: `n` rows of it then, else `k`.
    pub transpose_b: bool,
}

/// A product of matrices.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Matmul {
    /// What of.
    pub shapes: MatmulShapes,
    /// Address of `a`.
    pub a: u64,
    /// Address of `b`.
    pub b: u64,
    /// Address of `c`.
    pub c: u64,
}

/// Address of the first element of a box of a view.
fn first(placed: &Placed, at: &Box4, element_bytes: u64) -> u64 {
    let Layout {
        present, strides, ..
    } = placed.layout;
    let [sample, _, depth, row] = strides;
    let along = |axis: usize| at.0[axis].lo - present.0[axis].lo;
    let elements = along(0) * sample + along(1) * depth + along(2) * row + along(3);
    placed.address + elements as u64 * element_bytes
}

/// Extents of a box of a view; `None` if they pass what a library counts to.
fn extents(layout: &Layout, at: &Box4) -> Option<Extents> {
    let [n, d, h, w] = at.0.map(|s| s.len());
    let [sample, channel, depth, row] = layout.strides;
    let fit = |numbers: [usize; 5]| {
        let mut out = [0; 5];
        for (to, from) in out.iter_mut().zip(numbers) {
            *to = i32::try_from(from).ok()?;
        }
        Some(out)
    };
    Some(Extents {
        dims: fit([n, layout.dims[1], d, h, w])?,
        strides: fit([sample, channel, depth, row, 1])?,
    })
}

/// A dense layout of a box of a view.
fn packed(layout: &Layout, at: &Box4) -> Layout {
    let [n, d, h, w] = at.0.map(|s| s.len());
    let (row, depth, channel) = (w, h * w, d * h * w);
    let sample = channel * layout.dims[1];
    Layout {
        present: *at,
        strides: [sample, channel, depth, row],
        len: sample * n,
        ..*layout
    }
}

/// Whether a box of a view has no gaps within a sample.
fn is_packed(layout: &Layout, at: &Box4) -> bool {
    let [_, d, h, w] = at.0.map(|s| s.len());
    let [_, channel, depth, row] = layout.strides;
    // The stride of an axis of one is never walked.
    (h == 1 || row == w) && (d == 1 || depth == h * w) && channel == d * h * w
}

/// A flat `[C]` to be repeated over positions, as `[1, C]`.
pub(super) fn per_channel(flat: &Placed) -> Placed {
    let channels = flat.layout.shape.elems();
    let one = Span::new(0, 1);
    Placed {
        address: flat.address,
        layout: Layout {
            dims: [1, channels, 1, 1, 1],
            present: Box4([one; 4]),
            strides: [channels, 1, 1, 1],
            ..flat.layout
        },
    }
}

/// Adds one number per channel to a box of a view.
pub(super) fn add_per_channel(out: &Placed, at: &Box4, flat: &Placed) -> Call {
    let mut args = Args::over(at, out.layout.dims[1]);
    args.out = View::from(out);
    args.inputs[0] = args.out;
    args.inputs[1] = View::from(&per_channel(flat));
    args.flag = 1;
    let work = Work::Items(args.elements());
    Call {
        kernel: "add",
        args,
        work,
    }
}

/// A convolution to be offered.
pub(super) struct Conv<'a> {
    pub pass: Pass,
    pub attrs: &'a ConvAttrs,
    pub n_spatial: usize,
    pub image: &'a Placed,
    pub map: &'a Placed,
    /// Extents of the filter's tensor, and where it is.
    pub filter: (&'a Layout, u64),
    /// What is computed: positions of the image for the data gradient, of the map else.
    pub region: Box4,
    /// Whether the result is added to what is there.
    pub adds: bool,
}

impl Conv<'_> {
    /// The steps of `region`: an offer and what it leaves over, or `kernel` for all.
    /// `after` follows the library's part of the region.
    pub(super) fn steps(
        &self,
        task: &Task<'_>,
        kernel: &dyn Fn(&Box4) -> Call,
        after: &dyn Fn(&Box4) -> Option<Call>,
    ) -> Vec<Step> {
        // Libraries are told of one element type for all operands.
        let is_narrow = |layout: &Layout| layout.dtype.is_narrow();
        if is_narrow(&self.image.layout) || is_narrow(&self.map.layout) {
            return vec![Step::Kernel(kernel(&self.region))];
        }
        let Some((inner, offer)) = self.offer(task, kernel, after) else {
            return vec![Step::Kernel(kernel(&self.region))];
        };
        let left = strips(&self.region, &inner);
        let left = left.iter().map(|strip| Step::Kernel(kernel(strip)));
        [Step::Offer(Box::new(offer))]
            .into_iter()
            .chain(left)
            .collect()
    }

    fn offer(
        &self,
        task: &Task<'_>,
        kernel: &dyn Fn(&Box4) -> Call,
        after: &dyn Fn(&Box4) -> Option<Call>,
    ) -> Option<(Box4, Offer)> {
        let lifted = |attr: &[usize], neutral: usize| {
            let mut out = [neutral; 3];
            out[3 - self.n_spatial..].copy_from_slice(&attr[..self.n_spatial]);
            out
        };
        let a = self.attrs;
        let taps = lifted(&a.kernel, 1);
        let (stride, dilation) = (lifted(&a.stride, 1), lifted(&a.dilation, 1));
        let pad = lifted(&a.pad_lo, 0);
        let (mut inner, mut image, mut map) = (self.region, self.region, self.region);
        let mut zeros = [0; 3];
        for s in 0..3 {
            let sliding = Sliding {
                reach: ((taps[s] - 1) * dilation[s] + 1) as i64,
                stride: stride[s] as i64,
                pad: pad[s] as i64,
                image: self.image.layout.dims[2 + s] as i64,
                map: self.map.layout.dims[2 + s] as i64,
            };
            let (part, axis) = sliding.longest(self.region.0[1 + s], self.pass)?;
            inner.0[1 + s] = part;
            (image.0[1 + s], map.0[1 + s]) = (axis.image, axis.map);
            zeros[s] = i32::try_from(axis.pad).ok()?;
        }
        if 2 * inner.points() < self.region.points() {
            return None;
        }
        let mut scratch = task.scratch.unwrap_or_default();
        let mut before = None;
        let mut map_at = (self.map.layout, first(self.map, &map, task.element_bytes));
        if self.pass != Pass::Forward && !is_packed(&self.map.layout, &map) {
            let layout = packed(&self.map.layout, &map);
            let bytes = (layout.len as u64 * task.element_bytes).next_multiple_of(ALIGN);
            let address = scratch.address.next_multiple_of(ALIGN);
            let end = scratch.address + scratch.bytes;
            if scratch.bytes == 0 || address + bytes > end {
                return None;
            }
            before = Some(copy(self.map, &map, &Placed { address, layout }));
            map_at = (layout, address);
            scratch = Scratch {
                address: address + bytes,
                bytes: end - address - bytes,
            };
        }
        let int = |numbers: [usize; 3]| numbers.map(|n| n as i32);
        let shapes = Shapes {
            pass: self.pass,
            n_spatial: self.n_spatial.max(2),
            image: extents(&self.image.layout, &image)?,
            map: extents(&map_at.0, &map)?,
            filter: extents(self.filter.0, &self.filter.0.everything())?.dims,
            pad: zeros,
            stride: int(stride),
            dilation: int(dilation),
            groups: i32::try_from(a.groups).ok()?,
            adds: self.adds,
        };
        let call = LibraryCall::Convolution(Convolution {
            shapes,
            image: first(self.image, &image, task.element_bytes),
            map: map_at.1,
            filter: self.filter.1,
        });
        let offer = Offer {
            before,
            call,
            scratch,
            after: after(&inner),
            instead: kernel(&inner),
        };
        Some((inner, offer))
    }
}

/// Offers a product of row-major matrices, if it is worth it: `rows × columns` from
/// `inner` terms each. Row-major here is column-major there with factors exchanged.
pub(super) fn matmul(
    task: &Task<'_>,
    shapes: MatmulShapes,
    [a, b, c]: [u64; 3],
    after: Option<Call>,
    instead: Call,
) -> Step {
    if shapes.m * shapes.n * shapes.k < LEAST_MATMUL {
        return Step::Kernel(instead);
    }
    Step::Offer(Box::new(Offer {
        before: None,
        call: LibraryCall::Matmul(Matmul { shapes, a, b, c }),
        scratch: task.scratch.unwrap_or_default(),
        after,
        instead,
    }))
}
