//! The parameter block of a kernel, as `cuda/common.cuh` declares it.

use sstep_autodiff::DType;

use crate::view::{Box4, Layout};

/// A tensor, or a box of one, at an address of the device.
#[derive(Clone, Copy, Debug)]
pub struct Placed {
    /// Address of its first element.
    pub address: u64,
    /// How it lies there.
    pub layout: Layout,
}

/// A box of a tensor lifted to `[N, C, D, H, W]`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct View {
    address: u64,
    /// How elements are stored: 0 as what is computed with, 1 as `bf16`, 2 as `f16`.
    stored: i64,
    dims: [i64; 5],
    lo: [i64; 4],
    hi: [i64; 4],
    stride: [i64; 4],
}

impl From<&Placed> for View {
    fn from(placed: &Placed) -> Self {
        let Layout {
            dtype,
            dims,
            present,
            strides,
            ..
        } = placed.layout;
        View {
            address: placed.address,
            stored: match dtype {
                DType::F32 | DType::F64 => 0,
                DType::Bf16 => 1,
                DType::F16 => 2,
            },
            dims: dims.map(signed),
            lo: present.0.map(|s| signed(s.lo)),
            hi: present.0.map(|s| signed(s.hi)),
            stride: strides.map(signed),
        }
    }
}

/// An extent as the kernels count: extents are below 2³¹ and their products fit.
pub(super) fn signed(n: usize) -> i64 {
    i64::try_from(n).expect("an extent fits 63 bits")
}

/// What a kernel is told. Which fields it reads stands beside it in the sources.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[repr(C)]
pub struct Args {
    pub(super) out: View,
    pub(super) inputs: [View; 5],
    pub(super) state: u64,
    pub(super) lo: [i64; 4],
    pub(super) len: [i64; 4],
    pub(super) channels: i64,
    pub(super) kernel: [i64; 3],
    pub(super) stride: [i64; 3],
    pub(super) dilation: [i64; 3],
    pub(super) pad: [i64; 3],
    pub(super) pad_hi: [i64; 3],
    pub(super) offset: [i64; 4],
    pub(super) groups: i64,
    pub(super) code: i64,
    pub(super) flag: i64,
    pub(super) count: i64,
    pub(super) key: [u64; 4],
    pub(super) num: [f64; 8],
}

impl Args {
    /// For `region`, all channels of `of`.
    pub(super) fn over(region: &Box4, channels: usize) -> Self {
        Args {
            lo: region.0.map(|s| signed(s.lo)),
            len: region.0.map(|s| signed(s.len())),
            channels: signed(channels),
            ..Args::default()
        }
    }

    /// Elements of the region.
    pub(super) fn elements(&self) -> u64 {
        self.points() * self.channels as u64
    }

    /// Positions of the region, channels not counted.
    pub(super) fn points(&self) -> u64 {
        self.len.iter().map(|&l| l as u64).product()
    }
}
