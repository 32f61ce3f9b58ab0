//! Convolutions offered to cuDNN on maps as they lie.
//!
//! It knows one number of zeros per axis, the same before and after; a tile at a border
//! of the image has zeros on one side. So the largest box of the output with equal zeros
//! goes to cuDNN, and the strips left over, a few rows at the image's border, to our
//! kernels. Less than half a region is not worth the call: then our kernels do it all.
//! The same holds where extents or strides pass 2³¹.
//!
//! The gradients want `ȳ` packed: rows and channels without gaps. A window with gaps is
//! packed into scratch first; without that much scratch our kernels do it.
//!
//! Of maps in 16 bits this is what is left where there is no room to lay them out for
//! tensor cores (`channels_last`), and only where the filter is stored as they are and
//! the result as well: never a filter's gradient, which cuDNN would round.

use sstep_autodiff::{ConvAttrs, Span};

use super::args::{Args, Placed, View, signed};
use super::attrs::{n_spatial, region};
use super::channels_last;
use super::library::{Convolution, Extents, LibraryCall, Offer, Pass, Products, Scratch, Shapes};
use super::lower::{Call, Step, Task, Work, copy};
use super::sliding::{Sliding, strips};
use crate::view::{Box4, Layout};

/// Alignment of what a library is given of the scratch, in bytes.
const ALIGN: u64 = 256;

/// Scratch, given out from the front.
#[derive(Clone, Copy)]
pub(super) struct Room(Scratch);

impl Room {
    pub(super) fn of(task: &Task<'_>) -> Self {
        Room(task.scratch.unwrap_or_default())
    }

    /// Address of so many bytes, aligned; `None` if there are fewer.
    pub(super) fn take(&mut self, bytes: u64) -> Option<u64> {
        let Scratch {
            address,
            bytes: left,
        } = self.0;
        let at = address.next_multiple_of(ALIGN);
        let end = at + bytes.next_multiple_of(ALIGN);
        if left == 0 || end > address + left {
            return None;
        }
        self.0 = Scratch {
            address: end,
            bytes: address + left - end,
        };
        Some(at)
    }

    /// What is left.
    pub(super) fn rest(&self) -> Scratch {
        self.0
    }
}

/// A convolution or one of its gradients, to be offered.
pub(super) struct Conv<'a> {
    pub pass: Pass,
    pub attrs: &'a ConvAttrs,
    pub image: &'a Placed,
    pub map: &'a Placed,
    /// The filter, or where its gradient goes.
    pub filter: &'a Placed,
    /// What is computed: positions of the image for the data gradient, of the map else.
    pub region: Box4,
    /// One number per channel to be added.
    pub bias: Option<&'a Placed>,
    /// Doubles that a filter's gradient is added to, instead of `filter`.
    pub state: Option<u64>,
}

impl Conv<'_> {
    /// The steps of the region: offers and what they leave over, or `kernel` for all.
    pub(super) fn steps(&self, task: &Task<'_>, kernel: &dyn Fn(&Box4) -> Call) -> Vec<Step> {
        if let Some(offers) = channels_last::offers(self, task, kernel) {
            return offers;
        }
        let Some((inner, offer)) = self.offer(task, kernel) else {
            return vec![Step::Kernel(kernel(&self.region))];
        };
        let left = strips(&self.region, &inner);
        let left = left.iter().map(|strip| Step::Kernel(kernel(strip)));
        [Step::Offer(Box::new(offer))]
            .into_iter()
            .chain(left)
            .collect()
    }

    /// Taps, stride, dilation and zeros before, along D, H, W.
    pub(super) fn lifted(&self) -> [[usize; 3]; 4] {
        let a = self.attrs;
        let n = n_spatial(&self.image.layout);
        let lift = |attr: &[usize], neutral: usize| {
            let mut out = [neutral; 3];
            out[3 - n..].copy_from_slice(&attr[..n]);
            out
        };
        [
            lift(&a.kernel, 1),
            lift(&a.stride, 1),
            lift(&a.dilation, 1),
            lift(&a.pad_lo, 0),
        ]
    }

    /// Axes that slide, as cuDNN is told of them.
    pub(super) fn told_spatial(&self) -> usize {
        n_spatial(&self.image.layout).max(2)
    }

    /// Adds what a library has made of the filter's gradient to the sums: `part`, in the
    /// filter's order or, channels last, in cuDNN's.
    pub(super) fn add_part(&self, part: u64, channels_last: bool) -> Call {
        let n = self.filter.layout.shape.elems();
        let mut args = Args {
            state: self.state.unwrap_or(0),
            count: signed(n),
            out: View::from(self.filter),
            flag: i64::from(channels_last),
            channels: signed(self.filter.layout.dims[1]),
            kernel: self.lifted()[0].map(signed),
            ..Args::default()
        };
        args.inputs[0] = View::from(&Placed {
            address: part,
            layout: self.filter.layout,
        });
        Call {
            kernel: "add_part",
            args,
            work: Work::Items(n as u64),
        }
    }

    fn offer(&self, task: &Task<'_>, kernel: &dyn Fn(&Box4) -> Call) -> Option<(Box4, Offer)> {
        let stored = self.image.layout.dtype;
        if self.filter.layout.dtype != stored || self.map.layout.dtype != stored {
            return None;
        }
        let [taps, stride, dilation, pad] = self.lifted();
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
        let mut room = Room::of(task);
        let mut before = Vec::new();
        let mut map_at = (self.map.layout, first(self.map, &map));
        if self.pass != Pass::Forward && !is_packed(&self.map.layout, &map) {
            let layout = packed(&self.map.layout, &map);
            let address = room.take((layout.len * layout.dtype.bytes()) as u64)?;
            before.push(copy(self.map, &map, &Placed { address, layout }));
            map_at = (layout, address);
        }
        // A library adds to the gradient in place; for a state of doubles it leaves the
        // region's part, in the tape's precision, behind them, where
        // `Op::reduction_state` keeps room for it.
        let n = self.filter.layout.shape.elems() as u64;
        let part = self.state.map(|state| state + 8 * n);
        let int = |numbers: [usize; 3]| numbers.map(|n| n as i32);
        let shapes = Shapes {
            pass: self.pass,
            dtype: stored,
            products: if stored.is_narrow() {
                Products::TensorCores
            } else {
                Products::Full
            },
            channels_last: false,
            n_spatial: self.told_spatial(),
            image: extents(&self.image.layout, &image)?,
            map: extents(&map_at.0, &map)?,
            filter: filter_dims(&self.filter.layout)?,
            pad: zeros,
            stride: int(stride),
            dilation: int(dilation),
            groups: i32::try_from(self.attrs.groups).ok()?,
            adds: self.pass == Pass::Filter && self.state.is_none(),
        };
        let call = LibraryCall::Convolution(Convolution {
            shapes,
            image: first(self.image, &image),
            map: map_at.1,
            filter: part.unwrap_or(self.filter.address),
        });
        let after = match self.pass {
            Pass::Filter => part.map(|part| self.add_part(part, false)),
            Pass::Forward => self.bias.map(|b| add_per_channel(self.map, &inner, b)),
            Pass::Data => self.bias.map(|b| add_per_channel(self.image, &inner, b)),
        };
        let offer = Offer {
            before,
            call,
            scratch: room.rest(),
            after,
            instead: kernel(&inner),
        };
        Some((inner, offer))
    }
}

/// Positions that a convolution computes of `out`, or takes of `ȳ`.
pub(super) fn asked(task: &Task<'_>, of: &Placed) -> Box4 {
    region(&task.region, &of.layout)
}

/// Address of the first element of a box of a view.
fn first(placed: &Placed, at: &Box4) -> u64 {
    let Layout {
        dtype,
        present,
        strides,
        ..
    } = placed.layout;
    let [sample, _, depth, row] = strides;
    let along = |axis: usize| at.0[axis].lo - present.0[axis].lo;
    let elements = along(0) * sample + along(1) * depth + along(2) * row + along(3);
    placed.address + (elements * dtype.bytes()) as u64
}

/// Extents of a box of a view; `None` if they pass what a library counts to.
fn extents(layout: &Layout, at: &Box4) -> Option<Extents> {
    let [n, d, h, w] = at.0.map(|s| s.len());
    let [sample, channel, depth, row] = layout.strides;
    Some(Extents {
        dims: fit([n, layout.dims[1], d, h, w])?,
        strides: fit([sample, channel, depth, row, 1])?,
    })
}

/// Extents of a filter.
pub(super) fn filter_dims(layout: &Layout) -> Option<[i32; 5]> {
    fit(layout.dims)
}

/// As numbers of a library; `None` if they pass what it counts to.
pub(super) fn fit(numbers: [usize; 5]) -> Option<[i32; 5]> {
    let mut out = [0; 5];
    for (to, from) in out.iter_mut().zip(numbers) {
        *to = i32::try_from(from).ok()?;
    }
    Some(out)
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
