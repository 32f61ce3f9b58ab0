//! Loops over contiguous rows, compiled twice.
//!
//! The workspace is built for any x86-64; on a machine with AVX2 each loop
//! here runs in a second copy compiled for it. Neither copy contracts a
//! product and a sum, and sums are spread over the same eight lanes, so both
//! give the same bits.

use crate::real::Real;

/// Defines a function whose body is also compiled for AVX2, chosen at run time.
macro_rules! wide {
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident[$($generics:tt)*]($($arg:ident: $ty:ty),* $(,)?)
        $(-> $ret:ty)? $body:block
    ) => {
        $(#[$meta])*
        $vis fn $name<$($generics)*>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body<$($generics)*>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2")]
                fn avx2<$($generics)*>($($arg: $ty),*) $(-> $ret)? {
                    body($($arg),*)
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the processor has AVX2.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(super) use wide;

/// Partial sums of a row, so that additions do not wait for each other.
const LANES: usize = 8;

wide! {
    /// `y[i] = f(a[i])`.
    pub(super) fn map1[T: Real, F: Fn(T) -> T](a: &[T], y: &mut [T], f: F) {
        for (y, &a) in y.iter_mut().zip(a) {
            *y = f(a);
        }
    }
}

wide! {
    /// `y[i] = f(a[i], b[i])`.
    pub(super) fn map2[T: Real, F: Fn(T, T) -> T](a: &[T], b: &[T], y: &mut [T], f: F) {
        for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
            *y = f(a, b);
        }
    }
}

wide! {
    /// `y[i] = f(y[i], a[i])`.
    pub(super) fn update1[T: Real, U: Real, F: Fn(U, T) -> U](y: &mut [U], a: &[T], f: F) {
        for (y, &a) in y.iter_mut().zip(a) {
            *y = f(*y, a);
        }
    }
}

wide! {
    /// `y[i] = f(y[i], a[i], b[i])`.
    pub(super) fn update2[T: Real, U: Real, F: Fn(U, T, T) -> U](
        y: &mut [U], a: &[T], b: &[T], f: F,
    ) {
        for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
            *y = f(*y, a, b);
        }
    }
}

wide! {
    /// `Σ f(a[i])` in double precision.
    pub(super) fn sum1[T: Real, F: Fn(T) -> f64](a: &[T], f: F) -> f64 {
        let mut lanes = [0.0; LANES];
        let mut blocks = a.chunks_exact(LANES);
        for block in &mut blocks {
            for (lane, &a) in lanes.iter_mut().zip(block) {
                *lane += f(a);
            }
        }
        for (lane, &a) in lanes.iter_mut().zip(blocks.remainder()) {
            *lane += f(a);
        }
        fold(lanes)
    }
}

wide! {
    /// `Σ f(a[i], b[i])` in double precision.
    pub(super) fn sum2[T: Real, F: Fn(T, T) -> f64](a: &[T], b: &[T], f: F) -> f64 {
        let mut lanes = [0.0; LANES];
        let (mut xs, mut ys) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        for (x, y) in (&mut xs).zip(&mut ys) {
            for ((lane, &a), &b) in lanes.iter_mut().zip(x).zip(y) {
                *lane += f(a, b);
            }
        }
        for ((lane, &a), &b) in lanes.iter_mut().zip(xs.remainder()).zip(ys.remainder()) {
            *lane += f(a, b);
        }
        fold(lanes)
    }
}

wide! {
    /// The largest element, NaN if there is one, −∞ if there is none.
    pub(super) fn max[T: Real](a: &[T]) -> T {
        let mut lanes = [T::NEG_INFINITY; LANES];
        let mut blocks = a.chunks_exact(LANES);
        for block in &mut blocks {
            for (lane, &a) in lanes.iter_mut().zip(block) {
                *lane = larger(*lane, a);
            }
        }
        for (lane, &a) in lanes.iter_mut().zip(blocks.remainder()) {
            *lane = larger(*lane, a);
        }
        lanes.into_iter().fold(T::NEG_INFINITY, larger)
    }
}

/// The larger of two, the first if they are equal, NaN if either is.
#[inline(always)]
pub(super) fn larger<T: Real>(a: T, b: T) -> T {
    // A NaN in `a` fails the comparison and stays.
    if b > a || b.is_nan() { b } else { a }
}

fn fold(lanes: [f64; LANES]) -> f64 {
    let [a, b, c, d, e, f, g, h] = lanes;
    ((a + e) + (c + g)) + ((b + f) + (d + h))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_take_every_element() {
        for n in 0..40 {
            let a: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let b: Vec<f32> = (0..n).map(|i| (i * i) as f32).collect();
            let one: usize = (0..n).sum();
            let two: usize = (0..n).map(|i| i * i * i).sum();
            assert_eq!(sum1(&a, f64::from), one as f64);
            assert_eq!(sum2(&a, &b, |a, b| f64::from(a * b)), two as f64);
        }
    }

    #[test]
    fn a_maximum_sees_infinities_and_nan() {
        assert_eq!(max::<f32>(&[]), f32::NEG_INFINITY);
        let mut a: Vec<f64> = (0..21).map(|i| -(i as f64)).collect();
        assert_eq!(max(&a), 0.0);
        a[20] = 3.0;
        assert_eq!(max(&a), 3.0);
        a[7] = f64::NAN;
        assert!(max(&a).is_nan());
    }
}
