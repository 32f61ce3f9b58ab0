//! Exponentials in single precision that a compiler can vectorise.
//!
//! The system's `expf` and `tanhf` are calls, one element each, and would be
//! the slowest part of a softmax or an attention gate by far. These are a few
//! multiplications without a branch; the error is below two units in the last
//! place, below ten for `Φ`. They follow Moshier's Cephes
//! library (`expf.c`, `tanhf.c`, `ndtrf.c`).

/// `eˣ`, with infinity above, zero below, and subnormals between.
#[inline(always)]
pub(crate) fn exp_f32(x: f32) -> f32 {
    // Adding 1.5 · 2²³ rounds to an integer and leaves it in the low bits.
    const ROUND: f32 = 12_582_912.0;
    // A NaN fails both comparisons and stays.
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -104.0 { -104.0 } else { x };
    let rounded = x * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    // ln 2 in two parts, the first short enough for an exact product.
    let r = x - n * 0.693_359_4;
    let r = r + n * 2.121_944_4e-4;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_6e-1;
    p = p * r + 0.5;
    let y = p * (r * r) + r + 1.0;
    let n = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    // In two steps, for 2ⁿ itself may be beyond the range of normal numbers.
    let half = n >> 1;
    y * power_of_two(half) * power_of_two(n.wrapping_sub(half))
}

#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// Hyperbolic tangent.
#[inline(always)]
pub(crate) fn tanh_f32(x: f32) -> f32 {
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    p = p * z + 2.063_909e-2;
    p = p * z - 5.373_971_6e-2;
    p = p * z + 1.333_144_2e-1;
    p = p * z - 3.333_328e-1;
    let near = p * z * x + x;
    let far = (1.0 - 2.0 / (exp_f32(2.0 * x.abs()) + 1.0)).copysign(x);
    if x.abs() > 0.625 { far } else { near }
}

/// `Φ(x) = ½ erfc(−x / √2)`, the normal distribution below `x`.
///
/// Near zero from a series of the error function, else from one of its
/// complement, so that the tail keeps its relative precision (`ndtrf.c`).
#[inline(always)]
pub(crate) fn normal_below_f32(x: f32) -> f32 {
    let a = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let z = a * a;
    let mut p = 7.853_861_4e-5;
    p = p * z - 8.010_194e-4;
    p = p * z + 5.188_328e-3;
    p = p * z - 2.685_381_2e-2;
    p = p * z + 1.128_358_5e-1;
    p = p * z - 3.761_262_7e-1;
    p = p * z + std::f32::consts::FRAC_2_SQRT_PI;
    let near = 0.5 * a * p;
    // From here on `a` is at least 1; below that, only overflow must not occur.
    let q = 1.0 / if a > 1.0 { a } else { 1.0 };
    let y = q * q;
    let mut one = 2.326_82e-2;
    one = one * y - 1.387_039e-1;
    one = one * y + 3.687_424_7e-1;
    one = one * y - 5.824_733e-1;
    one = one * y + 6.210_005e-1;
    one = one * y - 4.944_515_3e-1;
    one = one * y + 3.404_88e-1;
    one = one * y - 2.741_127e-1;
    one = one * y + 5.638_259_4e-1;
    let mut two = -1.047_766_4e1;
    two = two * y + 1.297_72e1;
    two = two * y - 7.495_518_7;
    two = two * y + 2.921_019;
    two = two * y - 1.015_265_3;
    two = two * y + 4.218_463_5e-1;
    two = two * y - 2.820_767_4e-1;
    two = two * y + 5.641_895e-1;
    // x² itself, not (x / √2)², keeps the exponent exact to the last bit of x.
    let tail = 0.5 * exp_f32(-0.5 * (x * x)) * q * if a < 2.0 { one } else { two };
    let (below, above) = if a > 1.0 {
        (tail, 1.0 - tail)
    } else {
        (0.5 - near, 0.5 + near)
    };
    if x < 0.0 { below } else { above }
}

/// `Φ(x)` in double precision.
pub(crate) fn normal_below_f64(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

/// `ln(1 + x)` for `x` from 0 to 1: the series of `2 artanh(x / (2 + x))`, whose
/// argument is at most a third.
#[inline(always)]
pub(crate) fn ln_1p_f32(x: f32) -> f32 {
    let s = x / (2.0 + x);
    let z = s * s;
    let mut p = 1.0 / 15.0;
    for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0] {
        p = p * z + 1.0 / odd;
    }
    2.0 * (p * z * s + s)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(ours: fn(f32) -> f32, exact: fn(f64) -> f64, range: f32, accuracy: f64) {
        for i in -200_000..=200_000 {
            let x = i as f32 / 200_000.0 * range;
            let (got, want) = (f64::from(ours(x)), exact(f64::from(x)));
            let tolerance = want.abs() * accuracy + 1.5e-45;
            assert!((got - want).abs() <= tolerance, "at {x}: {got}, not {want}");
        }
    }

    #[test]
    fn they_are_close_to_the_exact_functions() {
        check(exp_f32, f64::exp, 88.0, 2.5e-7);
        check(exp_f32, f64::exp, 1.0, 2.5e-7);
        check(tanh_f32, f64::tanh, 12.0, 2.5e-7);
        check(tanh_f32, f64::tanh, 1.0, 2.5e-7);
        check(normal_below_f32, normal_below_f64, 1.0, 1e-6);
        check(normal_below_f32, normal_below_f64, 3.0, 1e-6);
        check(normal_below_f32, normal_below_f64, 12.0, 1e-5);
        check(|x| ln_1p_f32(x.abs()), |x| x.abs().ln_1p(), 1.0, 2.5e-7);
    }

    #[test]
    fn they_know_their_limits() {
        assert_eq!(exp_f32(0.0), 1.0);
        assert_eq!(exp_f32(f32::INFINITY), f32::INFINITY);
        assert_eq!(exp_f32(100.0), f32::INFINITY);
        assert_eq!(exp_f32(f32::NEG_INFINITY), 0.0);
        assert!(exp_f32(-95.0) > 0.0);
        assert!(exp_f32(f32::NAN).is_nan());
        assert_eq!(normal_below_f32(f32::INFINITY), 1.0);
        assert_eq!(normal_below_f32(f32::NEG_INFINITY), 0.0);
        assert!(normal_below_f32(f32::NAN).is_nan());
        assert_eq!(tanh_f32(f32::INFINITY), 1.0);
        assert_eq!(tanh_f32(f32::NEG_INFINITY), -1.0);
        assert!(tanh_f32(f32::NAN).is_nan());
    }
}
