//! Images as the bytes that were decoded.
//!
//! Eight bits of a channel are a quarter of a single-precision element. What they stand
//! for is said once, here: the CPU looks it up in a table, a device computes the same
//! table and fills in the elements by itself.

use crate::real::Real;

/// What the bytes of a channel stand for: `v` for `(v / 255 − mean) / std`, in double
/// precision, then rounded to the element type.
///
/// ```
/// use sstep_kernels::ByteScale;
///
/// let scale = ByteScale { mean: 0.5, std: 0.25 };
/// assert_eq!(scale.value::<f32>(255), 2.0);
/// assert_eq!(scale.table::<f32>()[0], -2.0);
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ByteScale {
    /// Subtracted from the byte as a number from 0 to 1.
    pub mean: f64,
    /// What the difference is divided by.
    pub std: f64,
}

impl ByteScale {
    /// The element that a byte stands for.
    pub fn value<T: Real>(&self, v: u8) -> T {
        T::from_f64((f64::from(v) / 255.0 - self.mean) / self.std)
    }

    /// The elements that all bytes stand for.
    pub fn table<T: Real>(&self) -> [T; 256] {
        std::array::from_fn(|v| self.value(v as u8))
    }
}
