//! The ways to compute a convolution, and what each reads.

use serde::{Deserialize, Serialize};

use crate::region::{AxisRead, Window};

use super::window::ConvAttrs;

/// How a convolution, its adjoint or its weight gradient is computed.
///
/// A property of the node, not of a call: a map's value at a position must not
/// depend on the tile it is computed in, and the two ways round differently.
/// Tapes are written with [`ConvAlgo::Direct`]; a planner may choose the other.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
pub enum ConvAlgo {
    /// Sums of products, tap by tap.
    #[default]
    Direct,
    /// Winograd's minimal filtering F(4×4, 3×3) over the last two axes, where
    /// [`ConvAttrs::can_winograd`]: a quarter of the multiplications.
    ///
    /// Outputs come in tiles of 4 × 4 on a grid that starts at the map's first
    /// element. A tile is computed from its full 6 × 6 patch even where only a
    /// part of it is wanted, so regions read the patches of every tile they
    /// touch. In `f32`, outputs differ from exact ones by a few 10⁻⁶ of their
    /// magnitude (measured and tested: `kernels/src/cpu/conv/winograd`).
    ///
    /// Source: Lavin and Gray, arXiv:1509.09308.
    Winograd,
}

/// Outputs of a Winograd tile along each of its two axes.
pub const WINOGRAD_TILE: usize = 4;

impl ConvAttrs {
    /// Whether [`ConvAlgo::Winograd`] is defined over maps of `n_spatial` axes:
    /// 3 × 3 taps on the last two, stride and dilation 1, one group, and a
    /// padding that the adjoint has too.
    pub fn can_winograd(&self, n_spatial: usize) -> bool {
        let last = n_spatial.saturating_sub(2)..n_spatial;
        let plain = |s: usize| self.stride[s] == 1 && self.dilation[s] == 1;
        n_spatial >= 2
            && self.groups == 1
            && (0..n_spatial).all(|s| plain(s) && self.pad_lo[s] < self.kernel[s])
            && last.into_iter().all(|s| self.kernel[s] == 3)
    }

    /// Whether axis `s` of `n_spatial` is one along which tiles are aligned.
    fn aligned(&self, s: usize, n_spatial: usize) -> bool {
        match self.algo {
            ConvAlgo::Direct => false,
            ConvAlgo::Winograd => s + 2 >= n_spatial,
        }
    }

    /// What outputs read along spatial axis `s` of `n_spatial`.
    pub(super) fn reads(&self, s: usize, n_spatial: usize) -> AxisRead {
        let window = self.window(s);
        if self.aligned(s, n_spatial) {
            let tile = WINOGRAD_TILE;
            return AxisRead::Aligned { window, tile };
        }
        AxisRead::Window(window)
    }

    /// What outputs of the adjoint read along spatial axis `s` of `n_spatial`.
    pub(super) fn adjoint_reads(&self, s: usize, n_spatial: usize) -> AxisRead {
        let window = self.window(s);
        if self.aligned(s, n_spatial) {
            // With stride 1 the adjoint is a convolution by the mirrored taps.
            let pad = window.reach() - window.pad;
            let window = Window { pad, ..window };
            let tile = WINOGRAD_TILE;
            return AxisRead::Aligned { window, tile };
        }
        AxisRead::Adjoint(window)
    }
}
