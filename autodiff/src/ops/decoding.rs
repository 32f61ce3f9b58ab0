//! Scratch of an op on narrow tensors: what it holds in `f32` while it computes.
//!
//! A narrow operand is decoded to `f32`, a narrow result is made in `f32` and rounded.
//! A call may go over its region piece by piece, so that it needs room for one position
//! at least and for the whole region at most.

use crate::op::Op;
use crate::region::Region;
use crate::ty::Ty;

/// What each decoded tensor is aligned to in scratch, in bytes: kernels load whole
/// vectors.
const ALIGN: u64 = 64;

impl Op {
    /// Bytes of `f32` scratch to compute `region` of the result in one piece; of the
    /// domain, for a reduction. 0 if nothing is narrow.
    pub fn decoded_bytes(&self, inputs: &[Ty], out: &Ty, region: &Region) -> u64 {
        self.decoded(
            inputs,
            out,
            |i| {
                let ty = &inputs[i];
                let along = |axis| {
                    let read = self.read(i, axis, inputs, out);
                    read.apply(region.span(axis), ty.axis_extent(axis)).len() as u64
                };
                (0..ty.n_axes()).map(along).product()
            },
            region.points(),
        )
    }

    /// Bytes of `f32` scratch without which no position can be computed.
    pub fn least_decoded_bytes(&self, inputs: &[Ty], out: &Ty) -> u64 {
        self.decoded(
            inputs,
            out,
            |i| {
                let ty = &inputs[i];
                let along = |axis| {
                    let read = self.read(i, axis, inputs, out);
                    read.most(ty.axis_extent(axis)) as u64
                };
                (0..ty.n_axes()).map(along).product()
            },
            1,
        )
    }

    /// The same for so many positions of each input, and of the result.
    fn decoded(
        &self,
        inputs: &[Ty],
        out: &Ty,
        points_of: impl Fn(usize) -> u64,
        out_points: u64,
    ) -> u64 {
        if self.is_leaf() || matches!(self, Op::Cast { .. }) {
            // A cast goes from row to row.
            return 0;
        }
        let bytes = |ty: &Ty, points: u64| {
            let elems = if ty.is_map() {
                points.saturating_mul(ty.shape.channels() as u64)
            } else {
                ty.shape.elems() as u64
            };
            let size = ty.dtype.wide().bytes() as u64;
            elems.saturating_mul(size).saturating_add(ALIGN - 1) / ALIGN * ALIGN
        };
        let narrow = |ty: &Ty| ty.dtype.is_narrow();
        let reads = (inputs.iter().enumerate())
            .filter(|(_, ty)| narrow(ty))
            .map(|(i, ty)| bytes(ty, if ty.is_map() { points_of(i) } else { 1 }));
        let writes = narrow(out).then(|| bytes(out, out_points));
        reads.chain(writes).fold(0, u64::saturating_add)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::narrow::narrow;
    use crate::region::Span;
    use crate::testing::random_tape;
    use crate::ty::DType;

    #[test]
    fn one_position_never_needs_more_than_is_said() {
        let mut n = 0;
        for seed in 0..200 {
            let Ok(tape) = narrow(&random_tape(seed, 8), DType::Bf16) else {
                continue;
            };
            for &id in tape.order() {
                let node = tape.node(id);
                let tys = tape.input_tys(id);
                let domain = match node.op.domain(&tys, &node.ty) {
                    Some(input) => tys[input],
                    None => node.ty,
                };
                let least = node.op.least_decoded_bytes(&tys, &node.ty);
                let whole = Region::whole(&domain);
                assert!(least <= node.op.decoded_bytes(&tys, &node.ty, &whole) || least < 4096);
                let is_narrow = tys.iter().chain([&node.ty]).any(|t| t.dtype.is_narrow());
                let is_cast = matches!(node.op, Op::Cast { .. });
                assert_eq!(least > 0, is_narrow && !is_cast);
                // Along the diagonal, all positions of every axis.
                let longest = (whole.spans().iter()).map(|s| s.len()).max();
                for i in 0..longest.unwrap_or(0) {
                    let mut point = whole;
                    for (axis, s) in whole.spans().iter().enumerate() {
                        let at = i % s.len();
                        point.set(axis, Span::new(at, at + 1));
                    }
                    let bytes = node.op.decoded_bytes(&tys, &node.ty, &point);
                    assert!(bytes <= least, "seed {seed}: {bytes} of {least}: {node:?}");
                    n += 1;
                }
            }
        }
        assert!(n > 1000);
    }
}
