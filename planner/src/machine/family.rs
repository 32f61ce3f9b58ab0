//! Kernel families: ops that run at one speed.
//!
//! A profile cannot hold a number for every op and shape. Ops whose inner loops are
//! alike share a family; within one, speed depends on how wide a call is (channels)
//! and how large. What a call does is counted in the family's [`Unit`]: arithmetic
//! for sums of products, bytes touched for everything that is bound by memory.

use sstep_autodiff::{ConvAlgo, ConvAttrs, Op, Region, Saved, Ty, UnaryKind};

/// How a convolution is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConvClass {
    /// Tap by tap, stride 1.
    Direct,
    /// By Winograd's algorithm.
    Winograd,
    /// Tap by tap, with a stride.
    Strided,
    /// A single tap.
    OneByOne,
    /// Fewer than four channels in a group.
    Depthwise,
    /// Fewer than eight channels in or out: the layers next to the image and the loss.
    FewChannels,
}

/// Which of the three sums a convolution is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConvRole {
    /// The convolution.
    Forward,
    /// Its adjoint: transposed convolutions and data gradients.
    Adjoint,
    /// Its weight gradient.
    Weight,
}

/// Kernels that run at one speed, depending on width and size of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// Convolutions.
    Conv(ConvClass, ConvRole),
    /// Linear layers and their gradients.
    Dense,
    /// Sums, products, ReLU: an operation or two per element.
    Pointwise,
    /// Elementwise functions that cost an exponential or a hash.
    Function,
    /// Normalising, and the gradient of a frozen norm.
    Norm,
    /// The gradient of a norm through its statistics.
    NormGrad,
    /// Windowed maximum and mean.
    Pool,
    /// Their gradients.
    PoolGrad,
    /// Upsampling.
    Upsample,
    /// Its gradient.
    UpsampleGrad,
    /// Sums and maxima over space or channels.
    Reduction,
    /// Means and variances, and the two sums of a norm's gradient.
    Statistics,
    /// Losses and their gradients.
    Loss,
    /// Updates of parameters.
    Optimiser,
    /// Moving values: concatenation, slices, windows that slide.
    Copy,
}

/// What a family's work is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// FLOPs; the size of a call is in positions.
    Flops,
    /// Bytes touched; the size of a call is in bytes.
    Bytes,
}

const CLASSES: [(ConvClass, &str); 6] = [
    (ConvClass::Direct, "direct"),
    (ConvClass::Winograd, "winograd"),
    (ConvClass::Strided, "strided"),
    (ConvClass::OneByOne, "one-by-one"),
    (ConvClass::Depthwise, "depthwise"),
    (ConvClass::FewChannels, "few-channels"),
];

const ROLES: [(ConvRole, &str); 3] = [
    (ConvRole::Forward, "forward"),
    (ConvRole::Adjoint, "adjoint"),
    (ConvRole::Weight, "weight"),
];

const OTHERS: [(Family, &str); 14] = [
    (Family::Dense, "dense"),
    (Family::Pointwise, "pointwise"),
    (Family::Function, "function"),
    (Family::Norm, "norm"),
    (Family::NormGrad, "norm-grad"),
    (Family::Pool, "pool"),
    (Family::PoolGrad, "pool-grad"),
    (Family::Upsample, "upsample"),
    (Family::UpsampleGrad, "upsample-grad"),
    (Family::Reduction, "reduction"),
    (Family::Statistics, "statistics"),
    (Family::Loss, "loss"),
    (Family::Optimiser, "optimiser"),
    (Family::Copy, "copy"),
];

impl Family {
    /// Number of families.
    pub const COUNT: usize = CLASSES.len() * ROLES.len() + OTHERS.len();

    /// All families, in the order of [`Family::ix`].
    pub fn all() -> impl Iterator<Item = Family> {
        let convs = CLASSES.iter().flat_map(|&(class, _)| {
            ROLES
                .iter()
                .map(move |&(role, _)| Family::Conv(class, role))
        });
        convs.chain(OTHERS.iter().map(|&(family, _)| family))
    }

    /// As an index into per-family tables.
    pub fn ix(self) -> usize {
        match self {
            Family::Conv(class, role) => class as usize * ROLES.len() + role as usize,
            other => {
                let at = OTHERS.iter().position(|(f, _)| *f == other);
                CLASSES.len() * ROLES.len() + at.expect("every other family is in the list")
            }
        }
    }

    /// Name in profiles and tables.
    pub fn name(self) -> String {
        match self {
            Family::Conv(class, role) => {
                format!(
                    "conv-{}-{}",
                    CLASSES[class as usize].1, ROLES[role as usize].1
                )
            }
            other => OTHERS[other.ix() - CLASSES.len() * ROLES.len()]
                .1
                .to_owned(),
        }
    }

    /// The family of that name.
    pub fn by_name(name: &str) -> Option<Family> {
        Family::all().find(|f| f.name() == name)
    }

    /// What its work is counted in.
    pub fn unit(self) -> Unit {
        match self {
            Family::Conv(..) => Unit::Flops,
            Family::Dense
            | Family::Pointwise
            | Family::Function
            | Family::Norm
            | Family::NormGrad
            | Family::Pool
            | Family::PoolGrad
            | Family::Upsample
            | Family::UpsampleGrad
            | Family::Reduction
            | Family::Statistics
            | Family::Loss
            | Family::Optimiser
            | Family::Copy => Unit::Bytes,
        }
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.name())
    }
}

/// An op and the types that it is applied to.
#[derive(Clone, Copy, Debug)]
pub struct Kernel<'a> {
    /// What it does.
    pub op: &'a Op,
    /// Types of its inputs.
    pub inputs: &'a [Ty],
    /// Type of its result.
    pub out: &'a Ty,
}

impl Kernel<'_> {
    /// The family that it runs with.
    pub fn family(&self) -> Family {
        let [c_in, c_out] = self.channels();
        match self.op {
            Op::Conv(a) => conv_family(a, ConvRole::Forward, c_in, c_out),
            Op::ConvTranspose(a) => conv_family(&a.conv, ConvRole::Adjoint, c_in, c_out),
            Op::ConvWeightGrad(a) => conv_family(a, ConvRole::Weight, c_in, c_out),
            Op::MaxPool(_) | Op::AvgPool(_) => Family::Pool,
            Op::MaxPoolGrad(_) | Op::AvgPoolGrad { .. } => Family::PoolGrad,
            Op::Upsample(_) => Family::Upsample,
            Op::UpsampleGrad(_) => Family::UpsampleGrad,
            Op::Unary(UnaryKind::Relu | UnaryKind::LeakyRelu(_))
            | Op::UnaryGrad {
                kind: UnaryKind::Relu | UnaryKind::LeakyRelu(_),
                saved: _,
            }
            | Op::UnaryGrad {
                kind: _,
                saved: Saved::Output,
            }
            | Op::Add
            | Op::Mul
            | Op::Scale { .. }
            | Op::DiceSumsGrad => Family::Pointwise,
            Op::Unary(_)
            | Op::UnaryGrad { .. }
            | Op::Dropout { .. }
            | Op::Softmax
            | Op::SoftmaxGrad => Family::Function,
            Op::ChannelSum | Op::SumMap { .. } | Op::GlobalMax | Op::DiceSums => Family::Reduction,
            Op::Moments(_) | Op::NormSums(_) => Family::Statistics,
            Op::NormGrad(a) if !a.frozen => Family::NormGrad,
            Op::Normalise(_) | Op::NormGrad(_) => Family::Norm,
            Op::Linear | Op::LinearInputGrad | Op::LinearWeightGrad => Family::Dense,
            Op::SpatialLse
            | Op::CrossEntropy
            | Op::CrossEntropyGrad
            | Op::Bce
            | Op::BceGrad
            | Op::Mse
            | Op::MseGrad
            | Op::DiceLoss { .. }
            | Op::DiceLossGrad { .. } => Family::Loss,
            Op::Input { .. }
            | Op::Param { .. }
            | Op::Constant { .. }
            | Op::Cast { .. }
            | Op::Concat
            | Op::Slice(_)
            | Op::Pad(_)
            | Op::Broadcast { .. }
            | Op::GlobalMaxGrad { .. }
            | Op::PackMoments
            | Op::NormParamGrad(_) => Family::Copy,
        }
    }

    /// Channels on either side of a convolution; the geometric mean of the two is
    /// the width of a call.
    fn channels(&self) -> [usize; 2] {
        let of = |ty: Option<&Ty>| ty.map_or(1, |ty| ty.shape.channels());
        match self.op {
            Op::ConvWeightGrad(_) => [of(self.inputs.first()), of(self.inputs.get(1))],
            _ if self.out.is_map() => [of(self.inputs.first()), of(Some(self.out))],
            _ => [1, 1],
        }
    }

    /// How wide a call is, in channels.
    pub fn width(&self) -> f64 {
        let [c_in, c_out] = self.channels();
        ((c_in * c_out) as f64).sqrt()
    }

    /// Positions that it is computed over when run whole: of its domain for a
    /// reduction, of its result for a map, one otherwise.
    pub fn whole_points(&self) -> u64 {
        match self.op.domain(self.inputs, self.out) {
            Some(d) if !self.out.is_map() => Region::whole(&self.inputs[d]).points(),
            _ => Region::whole(self.out).points(),
        }
    }

    /// FLOPs over `points` positions.
    pub fn flops(&self, points: u64) -> f64 {
        self.op.flops_per_point(self.inputs, self.out) * points as f64
    }

    /// Device bytes touched over `points` positions: maps in proportion, flat tensors
    /// only where there is nothing else.
    pub fn bytes(&self, points: u64) -> f64 {
        let all = || self.inputs.iter().chain([self.out]);
        let maps: f64 = all().filter(|t| t.is_map()).map(|t| t.bytes() as f64).sum();
        if maps == 0.0 {
            return all().map(|t| t.bytes() as f64).sum();
        }
        maps * points as f64 / self.whole_points().max(1) as f64
    }
}

fn conv_family(a: &ConvAttrs, role: ConvRole, c_in: usize, c_out: usize) -> Family {
    let class = if a.algo == ConvAlgo::Winograd {
        ConvClass::Winograd
    } else if a.groups > 1 && c_in.max(c_out) / a.groups < 4 {
        ConvClass::Depthwise
    } else if c_in.min(c_out) < 8 {
        ConvClass::FewChannels
    } else if a.stride.iter().any(|&s| s > 1) {
        ConvClass::Strided
    } else if a.kernel.iter().all(|&k| k == 1) {
        ConvClass::OneByOne
    } else {
        ConvClass::Direct
    };
    Family::Conv(class, role)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_have_names_and_places_of_their_own() {
        let all: Vec<Family> = Family::all().collect();
        assert_eq!(all.len(), Family::COUNT);
        for (i, f) in all.iter().enumerate() {
            assert_eq!(f.ix(), i);
            assert_eq!(Family::by_name(&f.name()), Some(*f));
        }
    }
}
