//! Images that come as bytes, made elements where they lie.

use super::args::{Args, Placed, View, signed};
use super::lower::{Call, Work};
use crate::bytes::ByteScale;
use crate::view::Box4;

/// Makes the bytes of a region elements, in place: one call per channel.
///
/// Of every row of the region, the bytes lie at the end of the room for its elements:
/// a row of `n` elements of `e` bytes has them from byte `(e − 1) · n` on.
///
/// # Panics
/// If there are not as many `scales` as channels, or elements are stored in 16 bits: an
/// image never is, before it is cast.
pub fn from_bytes(dst: &Placed, region: &Box4, scales: &[ByteScale]) -> Vec<Call> {
    assert_eq!(
        scales.len(),
        dst.layout.dims[1],
        "every channel has its scale"
    );
    assert!(
        !dst.layout.dtype.is_narrow(),
        "an image has elements to compute with"
    );
    if region.points() == 0 {
        return Vec::new();
    }
    let rows = region.points() / region.s(2).len();
    let one = |(channel, scale): (usize, &ByteScale)| {
        let mut args = Args::over(region, 1);
        args.out = View::from(dst);
        args.offset[0] = signed(channel);
        args.num[..2].copy_from_slice(&[scale.mean, scale.std]);
        Call {
            kernel: "from_bytes",
            args,
            work: Work::Blocks(rows as u64),
        }
    };
    scales.iter().enumerate().map(one).collect()
}
