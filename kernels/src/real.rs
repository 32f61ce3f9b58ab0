//! The element types kernels are written for.

use sstep_autodiff::DType;

/// `f32` or `f64`, with the arithmetic the kernels use.
pub trait Real:
    Copy
    + Default
    + Send
    + Sync
    + PartialOrd
    + std::fmt::Debug
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::Div<Output = Self>
    + std::ops::Neg<Output = Self>
    + std::ops::AddAssign
    + 'static
{
    /// The type's name on the tape.
    const DTYPE: DType;
    /// 0.
    const ZERO: Self;
    /// 1.
    const ONE: Self;
    /// Nearest value.
    fn from_f64(x: f64) -> Self;
    /// Exact.
    fn to_f64(self) -> f64;
    /// `self · a + b` with one rounding.
    fn fma(self, a: Self, b: Self) -> Self;
    /// `eˣ`.
    fn exp(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// The slice as `f32`, if it is one: the entry to hand-written kernels.
    fn as_f32(xs: &[Self]) -> Option<&[f32]>;
}

macro_rules! real {
    ($t:ty, $dtype:expr, $as_f32:expr) => {
        impl Real for $t {
            const DTYPE: DType = $dtype;
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            fn from_f64(x: f64) -> Self {
                x as $t
            }
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn fma(self, a: Self, b: Self) -> Self {
                self.mul_add(a, b)
            }
            fn exp(self) -> Self {
                <$t>::exp(self)
            }
            fn tanh(self) -> Self {
                <$t>::tanh(self)
            }
            fn sqrt(self) -> Self {
                <$t>::sqrt(self)
            }
            fn as_f32(xs: &[Self]) -> Option<&[f32]> {
                $as_f32(xs)
            }
        }
    };
}

real!(f32, DType::F32, Some);
real!(f64, DType::F64, |_| None);
