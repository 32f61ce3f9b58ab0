//! The element types kernels are written for.
//!
//! An [`Element`] can be stored and moved; a [`Real`] can be computed with.

use half::{bf16, f16};
use sstep_autodiff::DType;

use crate::math;

/// What tensors are stored as.
pub trait Element: bytemuck::Pod + Default + Send + Sync + PartialOrd + std::fmt::Debug {
    /// The type's name on the tape.
    const DTYPE: DType;
    /// The number that it stands for, exactly.
    fn value(self) -> f64;
}

macro_rules! element {
    ($($t:ty = $dtype:expr),*) => {
        $(impl Element for $t {
            const DTYPE: DType = $dtype;
            #[inline(always)]
            fn value(self) -> f64 {
                f64::from(self)
            }
        })*
    };
}

element!(
    f32 = DType::F32,
    f64 = DType::F64,
    bf16 = DType::Bf16,
    f16 = DType::F16
);

/// Runs an expression with `$element` the [`Element`] that a [`DType`] names.
#[macro_export]
macro_rules! with_element {
    ($dtype:expr, $element:ident => $body:expr) => {
        match $dtype {
            $crate::DType::F32 => {
                type $element = f32;
                $body
            }
            $crate::DType::F64 => {
                type $element = f64;
                $body
            }
            $crate::DType::Bf16 => {
                type $element = $crate::bf16;
                $body
            }
            $crate::DType::F16 => {
                type $element = $crate::f16;
                $body
            }
        }
    };
}

/// `f32` or `f64`, with the arithmetic the kernels use.
pub trait Real:
    Element
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + crate::cpu::Compiled
    + 'static
{
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// −∞.
    const NEG_INFINITY: Self;
    /// Nearest value.
    fn from_f64(x: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
    /// `self · a + b` with one rounding.
    fn fma(self, a: Self, b: Self) -> Self;
    /// Whether it is not a number.
    fn is_nan(self) -> bool;
    /// `eˣ`.
    fn exp(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// `Φ`, the normal distribution below it: `½ erfc(−x / √2)`.
    fn normal_below(self) -> Self;
    /// `ln(1 + self)` of a number from 0 to 1.
    fn ln_1p(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// The slice as `f32`, if it is one: the entry to hand-written kernels.
    fn as_f32(xs: &[Self]) -> Option<&[f32]>;
}

macro_rules! real {
    ($t:ty, $exp:expr, $tanh:expr, $normal_below:expr, $ln_1p:expr, $as_f32:expr) => {
        impl Real for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = <$t>::NEG_INFINITY;
            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn fma(self, a: Self, b: Self) -> Self {
                self.mul_add(a, b)
            }
            #[inline(always)]
            fn is_nan(self) -> bool {
                <$t>::is_nan(self)
            }
            #[inline(always)]
            fn exp(self) -> Self {
                $exp(self)
            }
            #[inline(always)]
            fn tanh(self) -> Self {
                $tanh(self)
            }
            #[inline(always)]
            fn normal_below(self) -> Self {
                $normal_below(self)
            }
            #[inline(always)]
            fn ln_1p(self) -> Self {
                $ln_1p(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                <$t>::sqrt(self)
            }
            fn as_f32(xs: &[Self]) -> Option<&[f32]> {
                $as_f32(xs)
            }
        }
    };
}

real!(
    f32,
    math::exp_f32,
    math::tanh_f32,
    math::normal_below_f32,
    math::ln_1p_f32,
    Some
);
real!(
    f64,
    f64::exp,
    f64::tanh,
    math::normal_below_f64,
    f64::ln_1p,
    |_| None
);
