//! Numbers that look random and are a function of their place.
//!
//! Everything a composed slide is made of is drawn by key, not in sequence: the
//! same seed gives the same slide whatever band or thread comes first.

/// A mixing function of 64 bits (the finaliser of SplitMix64, Steele et al.,
/// OOPSLA 2014).
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A sequence of numbers that a seed and a purpose determine.
pub(super) struct Draws(u64);

impl Draws {
    /// The sequence for `purpose`, independent of other purposes.
    pub(super) fn new(seed: u64, purpose: u64) -> Self {
        Draws(mix(seed ^ mix(purpose.wrapping_add(0x9e37_79b9_7f4a_7c15))))
    }

    /// The next 64 bits.
    pub(super) fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// Uniform in `[0, 1)`.
    pub(super) fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `[lo, hi)`.
    pub(super) fn between(&mut self, lo: f64, hi: f64) -> f64 {
        lo + (hi - lo) * self.unit()
    }
}

/// Smooth noise in `[0, 1)`, of wavelength 1, without period.
pub(super) fn smooth(seed: u64, x: f64, y: f64) -> f64 {
    let (x0, y0) = (x.floor(), y.floor());
    let at = |i: f64, j: f64| {
        let key = ((i as i64 as u64) << 32) ^ (j as i64 as u64 & 0xffff_ffff);
        Draws::new(seed, key).unit()
    };
    let ease = |t: f64| t * t * (3.0 - 2.0 * t);
    let (u, v) = (ease(x - x0), ease(y - y0));
    let top = at(x0, y0) * (1.0 - u) + at(x0 + 1.0, y0) * u;
    let bottom = at(x0, y0 + 1.0) * (1.0 - u) + at(x0 + 1.0, y0 + 1.0) * u;
    top * (1.0 - v) + bottom * v
}

/// Noise of wavelength 1 with three finer ones on top, in `[0, 1)`.
pub(super) fn rough(seed: u64, x: f64, y: f64) -> f64 {
    let mut sum = 0.0;
    let mut weight = 8.0 / 15.0;
    let mut scale = 1.0;
    for octave in 0..4 {
        sum += weight * smooth(seed.wrapping_add(octave), x * scale, y * scale);
        weight /= 2.0;
        scale *= 2.0;
    }
    sum
}

/// A square of noise in `[-1, 1]`, looked up per pixel where computing it
/// would take longer than all the rest. It repeats, so it only serves to
/// roughen edges.
pub(super) struct Grain {
    values: Vec<f32>,
}

impl Grain {
    const SIDE: usize = 512;

    /// Grain of two wavelengths, `wavelength` pixels and a quarter of it.
    pub(super) fn new(seed: u64, wavelength: f64) -> Self {
        let side = Self::SIDE;
        let value = |i: usize| {
            let (x, y) = (
                (i % side) as f64 / wavelength,
                (i / side) as f64 / wavelength,
            );
            let coarse = smooth(seed, x, y);
            let fine = smooth(seed ^ 1, 4.0 * x, 4.0 * y);
            ((coarse * 0.7 + fine * 0.3) * 2.0 - 1.0) as f32
        };
        Grain {
            values: (0..side * side).map(value).collect(),
        }
    }

    /// The value at a pixel.
    #[inline]
    pub(super) fn at(&self, x: usize, y: usize) -> f32 {
        let side = Self::SIDE;
        // Mirrored, so that it is continuous where it repeats.
        let fold = |i: usize| {
            let i = i % (2 * side);
            if i < side { i } else { 2 * side - 1 - i }
        };
        self.values[fold(y) * side + fold(x)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_are_even_and_repeat() {
        let mean = |seed| {
            let mut draws = Draws::new(seed, 7);
            (0..10_000).map(|_| draws.unit()).sum::<f64>() / 10_000.0
        };
        assert!((mean(1) - 0.5).abs() < 0.02);
        assert_eq!(mean(1), mean(1));
        assert_ne!(mean(1), mean(2));
    }

    #[test]
    fn noise_is_continuous_and_bounded() {
        for i in 0..1000 {
            let x = f64::from(i) * 0.037 - 9.0;
            let (a, b) = (rough(3, x, 1.5), rough(3, x + 1e-6, 1.5));
            assert!((0.0..1.0).contains(&a) && (a - b).abs() < 1e-4);
        }
    }
}
