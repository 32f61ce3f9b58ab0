//! An op's attributes as fields of the parameter block.

use sstep_autodiff::{
    ConvAttrs, Form, NormAttrs, NormKind, PerAxis, PoolAttrs, UnaryKind, UpsampleAttrs,
    UpsampleMode,
};

use super::args::{Args, Placed, View, signed};
use crate::view::{Box4, Layout};

/// Per-axis attributes of a tensor, right-aligned to the three lifted axes.
pub(super) fn lift(attr: &PerAxis, n_spatial: usize, neutral: usize) -> [i64; 3] {
    let mut lifted = [signed(neutral); 3];
    for (to, &from) in lifted[3 - n_spatial..].iter_mut().zip(attr) {
        *to = signed(from);
    }
    lifted
}

/// Offsets of channels and of the three lifted axes.
pub(super) fn offsets(attr: &[usize; 4], n_spatial: usize) -> [i64; 4] {
    let [channel, a, b, c] = *attr;
    let [d, h, w] = lift(&[a, b, c], n_spatial, 0);
    [signed(channel), d, h, w]
}

pub(super) fn n_spatial(layout: &Layout) -> usize {
    layout.shape.spatial().len()
}

/// Positions a call computes: those asked for of a map, all of a flat tensor.
pub(super) fn region(asked: &Box4, layout: &Layout) -> Box4 {
    match layout.form {
        Form::Map => *asked,
        Form::Flat => layout.everything(),
    }
}

/// The inputs as the block holds them; `Op::Concat` alone has more than fit,
/// and is called once per input.
pub(super) fn views(inputs: &[Placed]) -> [View; 5] {
    let mut views = [View::default(); 5];
    for (view, input) in views.iter_mut().zip(inputs) {
        *view = View::from(input);
    }
    views
}

pub(super) fn with_conv(args: &mut Args, a: &ConvAttrs, n_spatial: usize) {
    args.kernel = lift(&a.kernel, n_spatial, 1);
    args.stride = lift(&a.stride, n_spatial, 1);
    args.dilation = lift(&a.dilation, n_spatial, 1);
    args.pad = lift(&a.pad_lo, n_spatial, 0);
    args.groups = signed(a.groups);
}

pub(super) fn with_pool(args: &mut Args, a: &PoolAttrs, n_spatial: usize) {
    args.kernel = lift(&a.kernel, n_spatial, 1);
    args.stride = lift(&a.stride, n_spatial, 1);
    args.pad = lift(&a.pad_lo, n_spatial, 0);
    args.pad_hi = lift(&a.pad_hi, n_spatial, 0);
    args.flag = i64::from(a.count_pad);
}

pub(super) fn with_upsample(args: &mut Args, a: &UpsampleAttrs, n_spatial: usize) {
    args.stride = lift(&a.factor, n_spatial, 1);
    args.code = match a.mode {
        UpsampleMode::Nearest => 0,
        UpsampleMode::Linear => 1,
    };
}

pub(super) fn with_unary(args: &mut Args, kind: &UnaryKind) {
    args.code = match kind {
        UnaryKind::Relu => 0,
        UnaryKind::LeakyRelu(slope) => {
            args.num[0] = slope.get();
            1
        }
        UnaryKind::Gelu => 2,
        UnaryKind::Silu => 3,
        UnaryKind::Sigmoid => 4,
        UnaryKind::Tanh => 5,
        UnaryKind::Exp => 6,
    };
}

/// Groups of a sample; 0 for statistics that run over the batch.
pub(super) fn groups(kind: &NormKind) -> i64 {
    match kind {
        NormKind::Batch => 0,
        NormKind::Group(groups) => signed(*groups),
    }
}

pub(super) fn with_norm(args: &mut Args, a: &NormAttrs) {
    args.num[0] = a.eps.get();
    args.groups = groups(&a.kind);
}
