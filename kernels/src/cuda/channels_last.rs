//! Convolutions of maps in 16 bits, laid out for tensor cores.
//!
//! Tensor cores want the channels of a position side by side; windows are planar. A call
//! therefore goes over its region in pieces that fit the plan's scratch: what is read of
//! each piece is turned there, cuDNN computes there, and the result is turned back. The
//! zeros around an image are written out where they are turned, so that every piece is
//! the same to cuDNN, at a border of the image or not, and nothing is left over.
//!
//! **Forward and data gradient** run on 16-bit operands, sums in single precision,
//! rounded once; a bias is added to what was rounded. A filter that is not stored as the
//! maps are would be rounded: then our kernels do it.
//!
//! **The filter's gradient** is a sum over all positions and stays in single precision,
//! which cuDNN's calls for 16-bit maps do not give: their result is of their operands'
//! type. So the operands are widened where they are turned, and the call is one for
//! single precision on tensor cores. These round its factors to TF32, which has as many
//! digits as `f16` and the range of `bf16`, and more of each than the other has: no
//! factor changes. A kernel adds the part of every piece.
//!
//! Groups of few channels leave tensor cores idle; they are not turned.

use super::args::{Args, Placed, View, signed};
use super::convolution::{Conv, Room, filter_dims, fit};
use super::library::{Convolution, Extents, LibraryCall, Offer, Pass, Products, Shapes};
use super::lower::{Call, Step, Task, Work};
use crate::view::Box4;
use sstep_autodiff::{DType, Span};

/// Channels of a group from which on it is worth turning.
const LEAST_CHANNELS: usize = 8;

/// Positions below which a piece is not worth its calls, if the region has more.
const LEAST_POSITIONS: usize = 256;

/// Part of the scratch that is left to cuDNN: one of so many.
const FOR_CUDNN: u64 = 4;

/// Side of the squares that the kernels `turn` and `turn_back` work on, one block each.
const SQUARE: u64 = 32;

/// A box of a map laid out densely, channels last. It may reach beyond the map, into
/// zeros.
#[derive(Clone, Copy)]
struct Laid {
    channels: usize,
    /// First position along N, D, H, W.
    lo: [i64; 4],
    len: [usize; 4],
    /// Positions at the front that are zeros whatever the map has there.
    skip: [i64; 4],
}

impl Laid {
    fn elements(&self) -> usize {
        self.len.iter().product::<usize>() * self.channels
    }

    fn bytes(&self, dtype: DType) -> u64 {
        (self.elements() * dtype.bytes()) as u64
    }

    fn extents(&self) -> Option<Extents> {
        let ([n, d, h, w], c) = (self.len, self.channels);
        Some(Extents {
            dims: fit([n, c, d, h, w])?,
            strides: fit([d * h * w * c, 1, h * w * c, w * c, c])?,
        })
    }

    /// Squares of channels and columns.
    fn squares(&self) -> Work {
        let [n, d, h, w] = self.len.map(|n| n as u64);
        let squares = w.div_ceil(SQUARE) * (self.channels as u64).div_ceil(SQUARE);
        Work::Blocks(n * d * h * squares)
    }

    /// It at an address. Kernels know its elements' type and number from the view, and
    /// its order from what they are.
    fn at(&self, address: u64, like: &Placed, dtype: DType) -> Placed {
        let ([n, d, h, w], c) = (self.len, self.channels);
        let mut layout = like.layout;
        layout.dtype = dtype;
        layout.present = Box4([n, d, h, w].map(Span::full));
        layout.strides = [c * d * h * w, d * h * w, h * w, w];
        layout.len = self.elements();
        Placed { address, layout }
    }
}

/// A piece of the region, and what of image and map belongs to it.
struct Piece {
    image: Laid,
    map: Laid,
    /// Zeros that cuDNN is told of.
    pad: [usize; 3],
}

/// Offers for all of a region; `None` if they do not pay or there is no room.
pub(super) fn offers(
    conv: &Conv<'_>,
    task: &Task<'_>,
    kernel: &dyn Fn(&Box4) -> Call,
) -> Option<Vec<Step>> {
    let stored = conv.image.layout.dtype;
    if !stored.is_narrow() || conv.map.layout.dtype != stored {
        return None;
    }
    if conv.pass != Pass::Filter && conv.filter.layout.dtype != stored {
        return None;
    }
    let groups = conv.attrs.groups;
    let channels = [conv.image, conv.map].map(|m| m.layout.dims[1] / groups);
    if groups > 1 && channels.iter().any(|&c| c < LEAST_CHANNELS) {
        return None;
    }
    let scratch = task.scratch?;
    let most = scratch.bytes - scratch.bytes / FOR_CUDNN;
    let fits = |piece: &Piece| {
        let mut room = Room::of(task);
        places(conv, piece, &mut room).is_some() && scratch.bytes - room.rest().bytes <= most
    };
    let least = LEAST_POSITIONS.min(conv.region.points());
    let (mut left, mut steps) = (vec![conv.region], Vec::new());
    while let Some(region) = left.pop() {
        let piece = piece(conv, &region);
        if !fits(&piece) {
            if region.points() < 2 * least {
                return None;
            }
            let (head, tail) = halves(&region)?;
            left.extend([tail, head]);
            continue;
        }
        let offer = offer(conv, task, &region, &piece, kernel(&region))?;
        steps.push(Step::Offer(Box::new(offer)));
    }
    Some(steps)
}

/// A region in two: samples first, columns last.
fn halves(region: &Box4) -> Option<(Box4, Box4)> {
    let axis = (0..4).find(|&axis| region.0[axis].len() > 1)?;
    let span = region.0[axis];
    let middle = span.lo + span.len() / 2;
    let (mut head, mut tail) = (*region, *region);
    head.0[axis] = Span::new(span.lo, middle);
    tail.0[axis] = Span::new(middle, span.hi);
    Some((head, tail))
}

/// What of image and map a region's windows touch, with the zeros around them.
fn piece(conv: &Conv<'_>, region: &Box4) -> Piece {
    let [taps, stride, dilation, before] = conv.lifted();
    let all = |placed: &Placed| Laid {
        channels: placed.layout.dims[1],
        lo: region.0.map(|s| signed(s.lo)),
        len: region.0.map(|s| s.len()),
        skip: [0; 4],
    };
    let (mut image, mut map) = (all(conv.image), all(conv.map));
    let mut pad = [0; 3];
    for s in 0..3 {
        let axis = 1 + s;
        let span = region.0[axis];
        let (reach, step) = ((taps[s] - 1) * dilation[s] + 1, stride[s]);
        let (lo, zeros) = (signed(span.lo), signed(before[s]));
        match conv.pass {
            Pass::Forward | Pass::Filter => {
                image.lo[axis] = lo * signed(step) - zeros;
                image.len[axis] = (span.len() - 1) * step + reach;
            }
            // cuDNN's first window begins `reach - 1` before the image that it is told
            // of. That is one of the map's where the image begins up to a stride earlier;
            // no position that is asked for is in it then.
            Pass::Data => {
                pad[s] = reach - 1;
                let first = lo + zeros - signed(pad[s]);
                let earlier = first.rem_euclid(signed(step));
                image.lo[axis] = lo - earlier;
                image.len[axis] = span.len() + earlier as usize;
                map.lo[axis] = (first - earlier) / signed(step);
                map.skip[axis] = i64::from(earlier > 0);
                map.len[axis] = (image.len[axis] + reach - 2) / step + 1;
            }
        }
    }
    Piece { image, map, pad }
}

/// Element type of what is laid out.
fn laid_type(conv: &Conv<'_>) -> DType {
    match conv.pass {
        Pass::Forward | Pass::Data => conv.image.layout.dtype,
        Pass::Filter => conv.image.layout.dtype.wide(),
    }
}

/// Addresses of image, map and filter in scratch.
fn places(conv: &Conv<'_>, piece: &Piece, room: &mut Room) -> Option<[u64; 3]> {
    let dtype = laid_type(conv);
    let filter = (conv.filter.layout.shape.elems() * dtype.bytes()) as u64;
    let bytes = [piece.image.bytes(dtype), piece.map.bytes(dtype), filter];
    let [image, map, filter] = bytes.map(|bytes| room.take(bytes));
    Some([image?, map?, filter?])
}

fn offer(
    conv: &Conv<'_>,
    task: &Task<'_>,
    region: &Box4,
    piece: &Piece,
    instead: Call,
) -> Option<Offer> {
    let dtype = laid_type(conv);
    let mut room = Room::of(task);
    let [image, map, filter] = places(conv, piece, &mut room)?;
    let turned_image = turn(conv.image, &piece.image, image, dtype);
    let turned_map = turn(conv.map, &piece.map, map, dtype);
    let (before, after) = match conv.pass {
        Pass::Forward => (
            vec![turned_image, turn_filter(conv, filter)],
            turn_back(conv, region, conv.map, &piece.map, map),
        ),
        Pass::Data => (
            vec![turned_map, turn_filter(conv, filter)],
            turn_back(conv, region, conv.image, &piece.image, image),
        ),
        Pass::Filter => (vec![turned_image, turned_map], conv.add_part(filter, true)),
    };
    let [_, stride, dilation, _] = conv.lifted();
    let int = |numbers: [usize; 3]| numbers.map(|n| n as i32);
    let shapes = Shapes {
        pass: conv.pass,
        dtype,
        products: Products::TensorCores,
        channels_last: true,
        n_spatial: conv.told_spatial(),
        image: piece.image.extents()?,
        map: piece.map.extents()?,
        filter: filter_dims(&conv.filter.layout)?,
        pad: int(piece.pad),
        stride: int(stride),
        dilation: int(dilation),
        groups: i32::try_from(conv.attrs.groups).ok()?,
        adds: false,
    };
    Some(Offer {
        before,
        call: LibraryCall::Convolution(Convolution {
            shapes,
            image,
            map,
            filter,
        }),
        scratch: room.rest(),
        after: Some(after),
        instead,
    })
}

/// Lays out a box of a map at `address`.
fn turn(from: &Placed, laid: &Laid, address: u64, dtype: DType) -> Call {
    let mut args = Args {
        out: View::from(&laid.at(address, from, dtype)),
        lo: laid.lo,
        len: laid.len.map(signed),
        offset: laid.skip,
        channels: signed(laid.channels),
        ..Args::default()
    };
    args.inputs[0] = View::from(from);
    Call {
        kernel: "turn",
        args,
        work: laid.squares(),
    }
}

/// Puts a region of what lies at `address` where it belongs, with the bias.
fn turn_back(conv: &Conv<'_>, region: &Box4, to: &Placed, laid: &Laid, address: u64) -> Call {
    let mut args = Args::over(region, laid.channels);
    args.out = View::from(to);
    args.inputs[0] = View::from(&laid.at(address, to, to.layout.dtype));
    for axis in 1..4 {
        args.kernel[axis - 1] = signed(laid.len[axis]);
        args.offset[axis] = args.lo[axis] - laid.lo[axis];
    }
    if let Some(bias) = conv.bias {
        args.inputs[1] = View::from(bias);
        args.flag = 1;
    }
    let [n, d, h, w] = region.0.map(|s| s.len());
    let of_region = Laid {
        len: [n, d, h, w],
        ..*laid
    };
    Call {
        kernel: "turn_back",
        args,
        work: of_region.squares(),
    }
}

/// Lays out the filter at `address`.
fn turn_filter(conv: &Conv<'_>, address: u64) -> Call {
    let layout = conv.filter.layout;
    let n = layout.shape.elems();
    let mut args = Args {
        out: View::from(&Placed { address, layout }),
        count: signed(n),
        channels: signed(layout.dims[1]),
        kernel: conv.lifted()[0].map(signed),
        ..Args::default()
    };
    args.inputs[0] = View::from(conv.filter);
    Call {
        kernel: "turn_filter",
        args,
        work: Work::Items(n as u64),
    }
}
