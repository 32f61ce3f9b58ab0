//! Which part of a convolution's region a library can be told of, axis by axis.
//!
//! cuDNN knows an extent of the image, one of the map, and one number of zeros that
//! stand on both sides of the image. A region's windows read part of the image; at the
//! image's border some taps fall on zeros, on that side alone. What is left over when
//! the longest part with equal zeros is taken are strips.

use sstep_autodiff::Span;

use super::library::Pass;
use crate::view::Box4;

/// A window along one axis, with the whole extents of both sides.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sliding {
    /// Positions from a window's first tap to its last.
    pub(super) reach: i64,
    /// Step between windows.
    pub(super) stride: i64,
    /// Zeros before the image.
    pub(super) pad: i64,
    /// Extent of the image.
    pub(super) image: i64,
    /// Extent of the map.
    pub(super) map: i64,
}

/// An axis as cuDNN would be told of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    /// Positions of the image.
    pub(super) image: Span,
    /// Positions of the map.
    pub(super) map: Span,
    /// Zeros on either side of the image's.
    pub(super) pad: i64,
}

impl Sliding {
    /// Outputs that cuDNN computes of so many inputs.
    fn outputs(&self, inputs: i64, pad: i64) -> i64 {
        let room = inputs + 2 * pad - self.reach;
        if room < 0 { 0 } else { room / self.stride + 1 }
    }

    /// What is read for `asked`, positions of the map (forward, filter) or of the
    /// image (data); `None` if the zeros on both sides differ.
    fn axis(&self, asked: Span, pass: Pass) -> Option<Axis> {
        let (lo, hi) = (asked.lo as i64, asked.hi as i64);
        let (from, to, pad) = match pass {
            Pass::Forward | Pass::Filter => {
                let first = lo * self.stride - self.pad;
                let end = (hi - 1) * self.stride - self.pad + self.reach;
                (first.max(0), end.min(self.image), (-first).max(0))
            }
            Pass::Data => {
                let reach = lo + self.pad - (self.reach - 1);
                let first = reach.max(0).div_euclid(self.stride)
                    + i64::from(reach.max(0) % self.stride != 0);
                let end = (hi - 1 + self.pad).div_euclid(self.stride) + 1;
                (
                    first,
                    end.min(self.map),
                    self.pad + lo - first * self.stride,
                )
            }
        };
        if from >= to || pad < 0 {
            return None;
        }
        let read = Span::new(from as usize, to as usize);
        let (image, map) = match pass {
            Pass::Forward | Pass::Filter => (read, asked),
            Pass::Data => (asked, read),
        };
        let exact = self.outputs(image.len() as i64, pad) == map.len() as i64;
        exact.then_some(Axis { image, map, pad })
    }

    /// The longest part of `asked` that cuDNN can be told of.
    pub(super) fn longest(&self, asked: Span, pass: Pass) -> Option<(Span, Axis)> {
        // Beyond a window's reach from either end nothing changes any more.
        let most = (self.reach + self.stride) as usize;
        for less in 0..=(2 * most).min(asked.len().saturating_sub(1)) {
            for before in less.saturating_sub(most)..=less.min(most) {
                let part = Span::new(asked.lo + before, asked.hi - (less - before));
                if let Some(axis) = self.axis(part, pass) {
                    return Some((part, axis));
                }
            }
        }
        None
    }
}

/// `region` without `inner`, a box of it, as boxes.
pub(super) fn strips(region: &Box4, inner: &Box4) -> Vec<Box4> {
    let (mut left, mut out) = (*region, Vec::new());
    for axis in 0..4 {
        let (whole, part) = (left.0[axis], inner.0[axis]);
        for span in [Span::new(whole.lo, part.lo), Span::new(part.hi, whole.hi)] {
            if !span.is_empty() {
                let mut strip = left;
                strip.0[axis] = span;
                out.push(strip);
            }
        }
        left.0[axis] = part;
    }
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// Products of an axis: image position, map position and tap.
    type Terms = BTreeSet<(i64, i64, i64)>;

    /// What the definition multiplies for `asked`.
    fn defined(s: &Sliding, taps: i64, dilation: i64, asked: Span, pass: Pass) -> Terms {
        let inside = |at: i64, span: Span| at >= span.lo as i64 && at < span.hi as i64;
        let mut terms = Terms::new();
        for y in 0..s.map {
            for t in 0..taps {
                let x = y * s.stride - s.pad + t * dilation;
                let of = if pass == Pass::Data { x } else { y };
                if x >= 0 && x < s.image && inside(of, asked) {
                    terms.insert((x, y, t));
                }
            }
        }
        terms
    }

    /// What cuDNN multiplies, told of `axis`.
    fn told(s: &Sliding, taps: i64, dilation: i64, axis: &Axis) -> Terms {
        let (image, map) = (axis.image, axis.map);
        let mut terms = Terms::new();
        for y in 0..map.len() as i64 {
            for t in 0..taps {
                let x = y * s.stride - axis.pad + t * dilation;
                if x >= 0 && x < image.len() as i64 {
                    terms.insert((x + image.lo as i64, y + map.lo as i64, t));
                }
            }
        }
        terms
    }

    proptest! {
        #[test]
        fn what_cudnn_is_told_multiplies_what_the_definition_does(
            (taps, stride, dilation) in (1i64..6, 1i64..4, 1i64..4),
            (image, pad_lo, pad_hi) in (1i64..40, 0i64..6, 0i64..6),
            (at, len) in (0.0..1.0f64, 0.0..1.0f64),
            pass in prop::sample::select(vec![Pass::Forward, Pass::Data, Pass::Filter]),
        ) {
            let reach = (taps - 1) * dilation + 1;
            prop_assume!(image + pad_lo + pad_hi >= reach);
            let map = (image + pad_lo + pad_hi - reach) / stride + 1;
            let s = Sliding { reach, stride, pad: pad_lo, image, map };
            let extent = if pass == Pass::Data { image } else { map } as usize;
            let lo = ((extent as f64 * at) as usize).min(extent - 1);
            let hi = lo + 1 + ((extent - lo - 1) as f64 * len) as usize;
            let asked = Span::new(lo, hi);
            if let Some(axis) = s.axis(asked, pass) {
                prop_assert_eq!(
                    told(&s, taps, dilation, &axis),
                    defined(&s, taps, dilation, asked, pass)
                );
                prop_assert!(axis.image.hi as i64 <= image && axis.map.hi as i64 <= map);
            }
            let found = s.longest(asked, pass);
            if let Some((part, axis)) = found {
                prop_assert!(part.lo >= lo && part.hi <= hi);
                prop_assert_eq!(s.axis(part, pass), Some(axis));
            }
            // Far from the borders nothing is left over but what a stride skips.
            let far = reach + pad_lo + stride;
            if pass != Pass::Data && lo as i64 * stride > far && hi as i64 * stride + far < image {
                prop_assert_eq!(found.map(|f| f.0), Some(asked));
            }
        }

        #[test]
        fn strips_and_the_inner_box_cover_a_region_once(
            spans in prop::array::uniform4((0usize..3, 1usize..4, 0usize..3, 0usize..3)),
        ) {
            let region = Box4(spans.map(|(lo, len, a, b)| Span::new(lo, lo + a + len + b)));
            let inner = Box4(spans.map(|(lo, len, a, _)| Span::new(lo + a, lo + a + len)));
            let mut parts = strips(&region, &inner);
            parts.push(inner);
            let total: usize = parts.iter().map(Box4::points).sum();
            prop_assert_eq!(total, region.points());
            let apart = |a: &Box4, b: &Box4| {
                (0..4).any(|i| a.0[i].hi <= b.0[i].lo || b.0[i].hi <= a.0[i].lo)
            };
            for (i, a) in parts.iter().enumerate() {
                prop_assert!(parts[..i].iter().all(|b| apart(a, b)));
            }
        }
    }
}
