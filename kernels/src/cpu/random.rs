//! Dropout without a stored mask.
//!
//! Whether an element is kept is a hash of where it stands, so that a tile
//! recomputed in the backward half, or in another plan, or on another device,
//! drops the same elements. Each row has a key, mixed from (seed, step, key of
//! the op, sample, channel, depth, row), and its columns are the outputs of a
//! SplitMix64 generator that starts there: Steele, Lea and Flood, "Fast
//! splittable pseudorandom number generators", OOPSLA 2014.

use super::lanes::wide;
use super::parts::{each_row, region};
use crate::Job;
use crate::real::Real;
use crate::view::Out;

/// 2⁶⁴ divided by the golden ratio, odd: the step of SplitMix64.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// SplitMix64's finaliser: every bit of the result depends on every bit of `z`.
#[inline(always)]
fn mix(z: u64) -> u64 {
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Key of one row, from the numbers that name it.
fn row_key(names: [u64; 7]) -> u64 {
    names
        .iter()
        .fold(0, |key, &name| mix(key.wrapping_add(GOLDEN) ^ mix(name)))
}

/// An element is kept if the upper 53 bits of its hash reach this.
pub(crate) fn threshold(p: f64) -> u64 {
    (p * (1u64 << 53) as f64).ceil() as u64
}

wide! {
    /// Columns `first…` of a row: `x · factor` where kept, 0 where dropped.
    fn drop_row[T: Real](
        x: &[T], y: &mut [T], key: u64, first: usize, threshold: u64, factor: T,
    ) {
        for (i, (y, &x)) in y.iter_mut().zip(x).enumerate() {
            let column = (first + i) as u64 + 1;
            let hash = mix(key.wrapping_add(column.wrapping_mul(GOLDEN)));
            *y = if hash >> 11 >= threshold { x * factor } else { T::ZERO };
        }
    }
}

/// `(x)` → `x / (1 − p)` where kept, 0 where dropped.
pub(super) fn dropout<T: Real>(p: f64, key: u64, job: &Job<'_, T>, out: &mut Out<'_, T>) {
    let x = &job.inputs[0];
    let region = region(&job.region, out.layout());
    let factor = T::from_f64(1.0 / (1.0 - p));
    let threshold = threshold(p);
    each_row(out, &region, |n, c, d, h, y| {
        let w = region.s(2);
        let place = [n, c, d, h].map(|i| i as u64);
        let key = row_key([
            job.seed, job.step, key, place[0], place[1], place[2], place[3],
        ]);
        drop_row(
            x.row(n, c, d, h, w.clone()),
            y,
            key,
            w.start,
            threshold,
            factor,
        );
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_gives_its_published_numbers() {
        // The generator's first outputs from state 0.
        let out: Vec<u64> = (1..=3).map(|i: u64| mix(i.wrapping_mul(GOLDEN))).collect();
        assert_eq!(
            out,
            [
                0xe220_a839_7b1d_cdaf,
                0x6e78_9e6a_a1b9_65f4,
                0x06c4_5d18_8009_454f
            ]
        );
    }

    #[test]
    fn as_many_are_dropped_as_asked() {
        for p in [0.0, 0.1, 0.5, 0.9] {
            let x = vec![1.0f64; 100_000];
            let mut y = vec![0.0; x.len()];
            drop_row(
                &x,
                &mut y,
                row_key([7, 1, 2, 0, 3, 0, 5]),
                0,
                threshold(p),
                1.0,
            );
            let dropped = y.iter().filter(|&&y| y == 0.0).count() as f64 / x.len() as f64;
            let deviation = (p * (1.0 - p) / x.len() as f64).sqrt();
            assert!((dropped - p).abs() <= 4.0 * deviation, "p {p}: {dropped}");
        }
    }

    #[test]
    fn rows_and_steps_differ() {
        let base = [7, 1, 2, 0, 3, 0, 5];
        for i in 0..base.len() {
            let mut other = base;
            other[i] += 1;
            assert_ne!(row_key(base), row_key(other));
        }
        assert_ne!(
            row_key([1, 2, 0, 0, 0, 0, 0]),
            row_key([2, 1, 0, 0, 0, 0, 0])
        );
    }
}
