//! A register tile in memory.

use std::arch::x86_64::__m512;
use std::mem::MaybeUninit;

use super::Vector;

/// Vectors of a register tile in memory, each in the place of the widest.
///
/// Sums begin and end there. What handles them one by one would otherwise keep
/// the accumulators in memory all along; and of zeros that it sees through, the
/// compiler makes registers that it moves about in the innermost loop.
pub(in super::super) struct Held<const K: usize, const N: usize>(
    MaybeUninit<[[f32; MOST_LANES]; MOST_SUMS]>,
);

/// Lanes of the widest vector.
const MOST_LANES: usize = __m512::LANES;

/// Accumulators of the largest register tile.
const MOST_SUMS: usize = 24;

static ZEROS: [[f32; MOST_LANES]; MOST_SUMS] = [[0.0; MOST_LANES]; MOST_SUMS];

impl<const K: usize, const N: usize> Held<K, N> {
    /// Room for `K` by `N` vectors.
    #[inline(always)]
    pub(in super::super) fn new() -> Self {
        assert!(K * N <= MOST_SUMS, "a tile has few sums");
        Held(MaybeUninit::uninit())
    }

    /// The place of a vector.
    #[inline(always)]
    pub(in super::super) fn at(&mut self, k: usize, i: usize) -> *mut f32 {
        debug_assert!(k < K && i < N);
        let first = self.0.as_mut_ptr().cast::<f32>();
        first.wrapping_add((k * N + i) * MOST_LANES)
    }

    /// Zeros.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[inline(always)]
    pub(in super::super) unsafe fn zero<V: Vector>() -> [[V; N]; K] {
        let zeros = std::hint::black_box(ZEROS.as_ptr()).cast::<f32>();
        // SAFETY: as promised to this function; the zeros are as many.
        unsafe { load_tile(zeros) }
    }

    /// What was stored.
    ///
    /// # Safety
    /// The machine has the instructions; all vectors were stored.
    #[inline(always)]
    pub(in super::super) unsafe fn load<V: Vector>(&mut self) -> [[V; N]; K] {
        // SAFETY: as promised to this function.
        unsafe { load_tile(self.at(0, 0)) }
    }

    /// Stores all vectors.
    ///
    /// # Safety
    /// The machine has the instructions.
    #[inline(always)]
    pub(in super::super) unsafe fn store<V: Vector>(&mut self, acc: &[[V; N]; K]) {
        for (k, acc) in acc.iter().enumerate() {
            for (i, acc) in acc.iter().enumerate() {
                // SAFETY: as promised to this function.
                unsafe { acc.store(self.at(k, i)) };
            }
        }
    }
}

/// # Safety
/// The machine has the instructions; `from` is valid for reads of all places.
#[inline(always)]
unsafe fn load_tile<V: Vector, const K: usize, const N: usize>(from: *const f32) -> [[V; N]; K] {
    // SAFETY: as promised to this function.
    unsafe {
        let mut acc = [[V::zero(); N]; K];
        for (k, acc) in acc.iter_mut().enumerate() {
            for (i, acc) in acc.iter_mut().enumerate() {
                *acc = V::load(from.wrapping_add((k * N + i) * MOST_LANES));
            }
        }
        acc
    }
}
