//! Interval and halo arithmetic: which part of an input a part of an output needs.
//!
//! A map is cut along its batch and spatial axes, never along channels. Every
//! op reads, per axis, an interval that depends on the output's interval of the
//! same axis alone ([`AxisRead`]); a region is a product of intervals. That
//! separability is what makes exact costs of a tiling cheap: axes are swept one
//! at a time and multiplied.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ty::{MAX_SPATIAL, Ty};

/// Half-open interval `[lo, hi)` of indices along one axis. Empty when `lo >= hi`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct Span {
    /// First index inside.
    pub lo: usize,
    /// First index beyond.
    pub hi: usize,
}

impl Span {
    /// `[lo, hi)`.
    #[inline]
    pub const fn new(lo: usize, hi: usize) -> Self {
        Span { lo, hi }
    }

    /// `[0, extent)`.
    #[inline]
    pub const fn full(extent: usize) -> Self {
        Span { lo: 0, hi: extent }
    }

    /// Number of indices inside.
    #[inline]
    pub const fn len(self) -> usize {
        self.hi.saturating_sub(self.lo)
    }

    /// Whether nothing is inside.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.lo >= self.hi
    }

    /// Smallest span that holds both; an empty span adds nothing.
    #[inline]
    pub fn hull(self, other: Span) -> Span {
        if self.is_empty() {
            other
        } else if other.is_empty() {
            self
        } else {
            Span::new(self.lo.min(other.lo), self.hi.max(other.hi))
        }
    }

    /// What is inside both.
    #[inline]
    pub fn intersect(self, other: Span) -> Span {
        Span::new(self.lo.max(other.lo), self.hi.min(other.hi))
    }

    /// Whether every index of `other` is inside.
    #[inline]
    pub fn contains(self, other: Span) -> bool {
        other.is_empty() || (self.lo <= other.lo && other.hi <= self.hi)
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{}", self.lo, self.hi)
    }
}

impl From<std::ops::Range<usize>> for Span {
    fn from(r: std::ops::Range<usize>) -> Self {
        Span::new(r.start, r.end)
    }
}

/// Most cuttable axes of a map: the batch and [`MAX_SPATIAL`] spatial ones.
pub const MAX_AXES: usize = 1 + MAX_SPATIAL;

/// A box of a map over its batch axis (0) and spatial axes (1…), with all
/// channels. The region of a flat tensor has no axes and one point.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Region {
    n_axes: u8,
    spans: [Span; MAX_AXES],
}

impl Region {
    /// A region of the given spans, batch first.
    ///
    /// # Panics
    /// Above [`MAX_AXES`] spans.
    pub fn new(spans: &[Span]) -> Self {
        let mut all = [Span::new(0, 1); MAX_AXES];
        all[..spans.len()].copy_from_slice(spans);
        Region {
            n_axes: spans.len() as u8,
            spans: all,
        }
    }

    /// The whole of a tensor.
    pub fn whole(ty: &Ty) -> Self {
        let mut region = Region::new(&[]);
        region.n_axes = ty.n_axes() as u8;
        for axis in 0..ty.n_axes() {
            region.spans[axis] = Span::full(ty.axis_extent(axis));
        }
        region
    }

    /// Number of axes.
    pub fn n_axes(&self) -> usize {
        self.n_axes as usize
    }

    /// Spans of the batch and spatial axes.
    pub fn spans(&self) -> &[Span] {
        &self.spans[..self.n_axes()]
    }

    /// Span of one axis; `0..1` beyond the last.
    pub fn span(&self, axis: usize) -> Span {
        self.spans[axis]
    }

    /// Replaces the span of one axis.
    pub fn set(&mut self, axis: usize, span: Span) {
        self.spans[axis] = span;
    }

    /// Number of positions (batch × spatial), channels not counted.
    pub fn points(&self) -> u64 {
        self.spans().iter().map(|s| s.len() as u64).product()
    }

    /// Whether no position is inside.
    pub fn is_empty(&self) -> bool {
        self.spans().iter().any(|s| s.is_empty())
    }

    /// Whether every position of `other` is inside.
    pub fn contains(&self, other: &Region) -> bool {
        other.is_empty() || self.zip(other).all(|(a, b)| a.contains(b))
    }

    /// What is inside both.
    pub fn intersect(&self, other: &Region) -> Region {
        let mut out = *self;
        for (i, (a, b)) in self.zip(other).enumerate() {
            out.spans[i] = a.intersect(b);
        }
        out
    }

    /// Smallest region that holds both; an empty region adds nothing.
    pub fn hull(&self, other: &Region) -> Region {
        if self.is_empty() {
            return *other;
        }
        if other.is_empty() {
            return *self;
        }
        let mut out = *self;
        for (i, (a, b)) in self.zip(other).enumerate() {
            out.spans[i] = a.hull(b);
        }
        out
    }

    fn zip<'a>(&'a self, other: &'a Region) -> impl Iterator<Item = (Span, Span)> + 'a {
        self.spans()
            .iter()
            .copied()
            .zip(other.spans().iter().copied())
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.spans()).finish()
    }
}

/// Geometry of a sliding window along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Window {
    /// Taps.
    pub kernel: usize,
    /// Step between outputs.
    pub stride: usize,
    /// Step between taps.
    pub dilation: usize,
    /// Zeros before the first element.
    pub pad: usize,
}

impl Window {
    /// Distance from the first to the last tap.
    pub fn reach(&self) -> usize {
        (self.kernel - 1) * self.dilation
    }

    /// Inputs of extent `extent` that outputs `out` read.
    #[inline]
    pub fn reads(&self, out: Span, extent: usize) -> Span {
        if out.is_empty() {
            return Span::default();
        }
        let lo = (out.lo * self.stride).saturating_sub(self.pad);
        let hi = ((out.hi - 1) * self.stride + self.reach() + 1).saturating_sub(self.pad);
        Span::new(lo, hi.min(extent))
    }

    /// Outputs of extent `extent` that read any of the inputs `input`.
    #[inline]
    pub fn readers(&self, input: Span, extent: usize) -> Span {
        if input.is_empty() {
            return Span::default();
        }
        // Output `j` reads inputs `j·s − p … j·s − p + reach` (in steps of the
        // dilation; the hull ignores the gaps).
        let lo = (input.lo + self.pad)
            .saturating_sub(self.reach())
            .div_ceil(self.stride);
        let hi = (input.hi - 1 + self.pad) / self.stride + 1;
        Span::new(lo, hi.min(extent))
    }
}

/// What an output interval reads of one input along one axis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AxisRead {
    /// The same indices.
    Point,
    /// The indices shifted by a constant: slicing and padding.
    Shift(isize),
    /// A sliding window: convolution and pooling.
    Window(Window),
    /// A sliding window over outputs that come in whole tiles: those of every
    /// tile, on a grid from 0, that the interval touches.
    Aligned {
        /// The window.
        window: Window,
        /// Outputs per tile.
        tile: usize,
    },
    /// The outputs of a sliding window: the adjoint of [`AxisRead::Window`].
    Adjoint(Window),
    /// The inputs of every window that covers the interval: what max-pool's
    /// gradient needs to find each window's maximum again.
    AdjointWindow {
        /// The window.
        window: Window,
        /// Number of windows along the axis.
        n_windows: usize,
    },
    /// Each input repeated `factor` times.
    Nearest(usize),
    /// Adjoint of [`AxisRead::Nearest`].
    NearestAdjoint(usize),
    /// Linear interpolation by an integer factor, corners not aligned.
    Linear(usize),
    /// Adjoint of [`AxisRead::Linear`].
    LinearAdjoint(usize),
    /// The whole axis.
    Whole,
}

impl AxisRead {
    /// The indices, within `0..extent`, of the input that `out` reads. The map
    /// from `out` is monotone: later outputs never read earlier inputs.
    #[inline]
    pub fn apply(&self, out: Span, extent: usize) -> Span {
        if out.is_empty() {
            return Span::default();
        }
        let clip = |lo: isize, hi: isize| {
            let hi = hi.clamp(0, extent as isize) as usize;
            Span::new((lo.max(0) as usize).min(extent), hi)
        };
        let (lo, hi) = (out.lo as isize, out.hi as isize);
        match *self {
            AxisRead::Point => clip(lo, hi),
            AxisRead::Shift(by) => clip(lo + by, hi + by),
            AxisRead::Window(w) => w.reads(out, extent),
            AxisRead::Aligned { window, tile } => {
                let lo = out.lo / tile * tile;
                let hi = out.hi.next_multiple_of(tile);
                window.reads(Span::new(lo, hi), extent)
            }
            AxisRead::Adjoint(w) => w.readers(out, extent),
            AxisRead::AdjointWindow { window, n_windows } => {
                window.reads(window.readers(out, n_windows), extent)
            }
            AxisRead::Nearest(f) => clip(lo / f as isize, (hi - 1) / f as isize + 1),
            AxisRead::NearestAdjoint(f) => clip(lo * f as isize, hi * f as isize),
            AxisRead::Linear(f) => {
                // Output i samples (i + ½)/f − ½, between ⌊·⌋ and ⌊·⌋ + 1.
                let f = f as isize;
                let floor = |i: isize| (2 * i + 1 - f).div_euclid(2 * f);
                let last = extent as isize - 1;
                clip(
                    floor(lo).clamp(0, last),
                    (floor(hi - 1) + 2).clamp(1, last + 1),
                )
            }
            AxisRead::LinearAdjoint(f) => {
                // Input j is sampled by the outputs i with |(i + ½)/f − ½ − j| < 1.
                let f = f as isize;
                clip(
                    (2 * lo - 1) * f / 2 - 1,
                    ((2 * (hi - 1) + 3) * f).div_euclid(2) + 1,
                )
            }
            AxisRead::Whole => Span::full(extent),
        }
    }
}

impl AxisRead {
    /// Most indices that one position of the output reads.
    pub fn most(&self, extent: usize) -> usize {
        let adjoint = |w: &Window| w.reach() / w.stride + 1;
        let most = match self {
            AxisRead::Point | AxisRead::Shift(_) | AxisRead::Nearest(_) => 1,
            AxisRead::Window(w) => w.reach() + 1,
            AxisRead::Aligned { window, tile } => (tile - 1) * window.stride + window.reach() + 1,
            AxisRead::Adjoint(w) => adjoint(w),
            AxisRead::AdjointWindow { window, .. } => {
                (adjoint(window) - 1) * window.stride + window.reach() + 1
            }
            AxisRead::NearestAdjoint(f) => *f,
            AxisRead::Linear(_) => 2,
            AxisRead::LinearAdjoint(f) => 2 * f + 2,
            AxisRead::Whole => extent,
        };
        most.min(extent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_strided_window_reads_its_halo() {
        let w = Window {
            kernel: 3,
            stride: 2,
            dilation: 1,
            pad: 1,
        };
        assert_eq!(w.reads(Span::new(1, 3), 8), Span::new(1, 6));
        assert_eq!(w.reads(Span::new(0, 1), 8), Span::new(0, 2));
        assert_eq!(w.reads(Span::new(3, 4), 8), Span::new(5, 8));
    }

    #[test]
    fn an_aligned_window_reads_for_whole_tiles() {
        let window = Window {
            kernel: 3,
            stride: 1,
            dilation: 1,
            pad: 1,
        };
        let read = AxisRead::Aligned { window, tile: 4 };
        assert_eq!(read.apply(Span::new(5, 6), 30), Span::new(3, 9));
        assert_eq!(read.apply(Span::new(4, 9), 30), Span::new(3, 13));
        assert_eq!(read.apply(Span::new(0, 2), 30), Span::new(0, 5));
        assert_eq!(read.apply(Span::new(28, 30), 30), Span::new(27, 30));
        assert_eq!(read.apply(Span::new(3, 3), 30), Span::default());
    }

    #[test]
    fn readers_inverts_reads() {
        for kernel in 1..5 {
            for stride in 1..4 {
                for dilation in 1..4 {
                    for pad in 0..3 {
                        let w = Window {
                            kernel,
                            stride,
                            dilation,
                            pad,
                        };
                        let extent = 23;
                        if extent + 2 * pad < w.reach() + 1 {
                            continue;
                        }
                        let n = (extent + 2 * pad - w.reach() - 1) / stride + 1;
                        for lo in 0..extent {
                            for hi in lo + 1..=extent {
                                let readers = w.readers(Span::new(lo, hi), n);
                                for j in 0..n {
                                    let hits = (0..kernel)
                                        .filter_map(|t| {
                                            (j * stride + t * dilation).checked_sub(pad)
                                        })
                                        .any(|i| i >= lo && i < hi);
                                    assert!(!hits || readers.contains(Span::new(j, j + 1)));
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn linear_reads_cover_their_samples() {
        for f in 1..5usize {
            let extent = 7;
            for i in 0..extent * f {
                let src = (i as f64 + 0.5) / f as f64 - 0.5;
                let lo = src.floor().clamp(0.0, extent as f64 - 1.0) as usize;
                let hi = (src.floor() + 1.0).clamp(0.0, extent as f64 - 1.0) as usize;
                let read = AxisRead::Linear(f).apply(Span::new(i, i + 1), extent);
                assert!(
                    read.contains(Span::new(lo, hi + 1)),
                    "f {f} i {i}: {read:?}"
                );
                for j in [lo, hi] {
                    let back = AxisRead::LinearAdjoint(f).apply(Span::new(j, j + 1), extent * f);
                    assert!(
                        back.contains(Span::new(i, i + 1)),
                        "f {f} j {j} i {i}: {back:?}"
                    );
                }
            }
        }
    }
}
