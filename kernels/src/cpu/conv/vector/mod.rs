//! Vectors of `f32` as a type, so that a kernel is written once and compiled
//! for AVX-512 and for AVX2.
//!
//! A [`Kernel`] is a body that is generic over the vector. [`Vector::call`]
//! compiles it with the instructions of one of them; everything on the way is
//! inlined into that call.

mod held;
mod x86;

use std::arch::x86_64::{__m256, __m512};

pub(super) use held::Held;

/// The vectors that a call computes with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Width {
    /// Eight lanes, AVX2 and FMA.
    Eight,
    /// Sixteen lanes, AVX-512F and AVX-512VL.
    Sixteen,
}

impl Width {
    /// The best for rows of `columns`, on a machine with AVX2 and FMA: half of
    /// a wide vector would idle on the narrowest maps.
    pub(super) fn best(columns: usize) -> Self {
        #[cfg(test)]
        if NARROW.get() {
            return Width::Eight;
        }
        if columns > 8 && has_sixteen() {
            Width::Sixteen
        } else {
            Width::Eight
        }
    }

    /// Lanes of a vector.
    pub(super) fn lanes(self) -> usize {
        match self {
            Width::Eight => __m256::LANES,
            Width::Sixteen => __m512::LANES,
        }
    }

    /// Whether stores of a register tile past the cache are worth while: each vector is a
    /// cache line. Parts of one wait for the rest, and where several channels are stored
    /// in turn they are written to memory without it, which is slow.
    pub(super) fn fills_lines(self) -> bool {
        self == Width::Sixteen
    }

    /// Output channels of a full register tile.
    pub(super) fn outs(self) -> usize {
        match self {
            Width::Eight => __m256::OUTS,
            Width::Sixteen => __m512::OUTS,
        }
    }

    /// Runs a kernel with such vectors.
    ///
    /// # Safety
    /// The machine has their instructions; and as the kernel demands.
    pub(super) unsafe fn run<K: Kernel>(self, kernel: K) {
        // SAFETY: as promised to this function.
        unsafe {
            match self {
                Width::Eight => __m256::call(kernel),
                Width::Sixteen => __m512::call(kernel),
            }
        }
    }
}

/// Whether the machine has the instructions for sixteen lanes.
fn has_sixteen() -> bool {
    is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl")
}

/// A body that is compiled for each kind of vector.
pub(super) trait Kernel {
    /// The body; `#[inline(always)]`, lest it be compiled without the
    /// instructions.
    ///
    /// # Safety
    /// The machine has the instructions; and as the kernel demands.
    unsafe fn run<V: Vector>(self);
}

/// A vector register of `f32`.
///
/// All functions require its instructions; those that load or store touch only
/// the lanes that they are told exist.
pub(super) trait Vector: Copy {
    /// Floats of a vector.
    const LANES: usize;

    /// Output channels of a full register tile, which has three vectors of each.
    const OUTS: usize;

    /// Most vectors of a register tile of so many output channels, a power of
    /// two: with the accumulators, as many inputs and one weight fit the registers.
    const VECTORS: [usize; 9];

    /// Runs a kernel, compiled with these instructions.
    unsafe fn call<K: Kernel>(kernel: K);

    /// All lanes zero.
    unsafe fn zero() -> Self;
    /// All lanes `value`.
    unsafe fn splat(value: f32) -> Self;
    /// The floats from an address on.
    unsafe fn load(from: *const f32) -> Self;
    /// As many as exist of them, then zeros.
    unsafe fn load_some(from: *const f32, lanes: usize) -> Self;
    /// Stores all lanes.
    unsafe fn store(self, to: *mut f32);
    /// Stores all lanes past the cache, at an address aligned for the vector; see
    /// [`crate::cpu::stream::fence`].
    unsafe fn store_past(self, to: *mut f32);
    /// Stores the lanes that exist.
    unsafe fn store_some(self, to: *mut f32, lanes: usize);
    /// Lane by lane.
    unsafe fn add(self, other: Self) -> Self;
    /// Adds the lanes to as many doubles.
    unsafe fn add_to(self, sums: *mut f64);
    /// As many vectors as lanes, `step` floats apart, as columns of a matrix whose rows are
    /// stored `to_step` apart.
    unsafe fn transpose(from: *const f32, step: usize, to: *mut f32, to_step: usize);
    /// The sums of the lanes of each of eight vectors.
    unsafe fn lane_sums(eight: [Self; 8]) -> [f32; 8];
    /// The even and the odd floats of two vectors that follow one another.
    unsafe fn split(first: Self, second: Self) -> (Self, Self);
    /// The inverse of [`Vector::split`].
    unsafe fn weave(even: Self, odd: Self) -> (Self, Self);

    /// `acc[k][i] += x[i][at…] · w[k·w_step]`: a step of a convolution.
    unsafe fn broadcast_step<const K: usize, const N: usize>(
        acc: &mut [[Self; N]; K],
        x: &[*const f32; N],
        at: usize,
        w: *const f32,
        w_step: usize,
    );

    /// `acc[m][v] += lanes[v][0…] · columns[m][at]`: a step of a weight gradient whose lanes
    /// are channels.
    unsafe fn outer_step<const M: usize, const N: usize>(
        acc: &mut [[Self; N]; M],
        lanes: &[*const f32; N],
        columns: &[*const f32; M],
        at: usize,
    );

    /// `acc[k][i] += x[i][at…] · y[k·y_step…]`: a step of a weight gradient.
    unsafe fn correlate_step<const K: usize, const N: usize>(
        acc: &mut [[Self; N]; K],
        x: &[*const f32; N],
        at: usize,
        y: *const f32,
        y_step: usize,
    );
}

/// Largest part of `left` outputs that register tiles come in.
pub(super) fn piece<V: Vector>(left: usize) -> usize {
    let most = left.min(V::OUTS);
    // The largest power of two, for which tiles are compiled.
    1 << most.ilog2()
}

#[cfg(test)]
thread_local! {
    /// Whether this thread is to do without AVX-512.
    static NARROW: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// Runs `f` as on a machine without AVX-512.
#[cfg(test)]
pub(super) fn narrowly<R>(f: impl FnOnce() -> R) -> R {
    NARROW.set(true);
    let result = f();
    NARROW.set(false);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Splits, weaves, sums and masks numbers whose places are known.
    struct Shuffle;

    impl Kernel for Shuffle {
        #[inline(always)]
        unsafe fn run<V: Vector>(self) {
            let n = V::LANES;
            let from: Vec<f32> = (0..2 * n).map(|i| i as f32).collect();
            let mut to = vec![-1.0; 2 * n];
            // SAFETY: loads and stores stay within the vectors; who runs this
            // has asked for the instructions.
            unsafe {
                let (a, b) = (V::load(from.as_ptr()), V::load(from.as_ptr().add(n)));
                let (even, odd) = V::split(a, b);
                even.store(to.as_mut_ptr());
                odd.store(to.as_mut_ptr().add(n));
                for i in 0..n {
                    assert_eq!([to[i], to[n + i]], [2.0 * i as f32, 2.0 * i as f32 + 1.0]);
                }
                let (a, b) = V::weave(even, odd);
                a.store(to.as_mut_ptr());
                b.store(to.as_mut_ptr().add(n));
                assert_eq!(to, from);
                let sum: f32 = from[..n].iter().sum();
                let (zero, two, twice) = (V::zero(), V::splat(2.0), a.add(a));
                let sums = V::lane_sums([a, zero, two, twice, b, a, two, zero]);
                let twos = 2.0 * n as f32;
                let next = sum + (n * n) as f32;
                assert_eq!(sums, [sum, 0.0, twos, 2.0 * sum, next, sum, twos, 0.0]);
                let square: Vec<f32> = (0..n * (n + 1)).map(|i| i as f32).collect();
                let mut turned = vec![-1.0; n * (n + 2)];
                V::transpose(square.as_ptr(), n + 1, turned.as_mut_ptr(), n + 2);
                for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
                    assert_eq!(turned[j * (n + 2) + i], square[i * (n + 1) + j]);
                }
                let mut doubles = vec![0.5; n];
                b.add_to(doubles.as_mut_ptr());
                b.add_to(doubles.as_mut_ptr());
                for (i, &double) in doubles.iter().enumerate() {
                    assert_eq!(double, 0.5 + 2.0 * (n + i) as f64);
                }
                for lanes in 0..=n {
                    to.fill(-1.0);
                    V::load_some(from.as_ptr().add(1), lanes).store(to.as_mut_ptr());
                    V::splat(9.0).store_some(to.as_mut_ptr().add(n), lanes);
                    for i in 0..n {
                        let inside = i < lanes;
                        let expected = if inside {
                            [from[i + 1], 9.0]
                        } else {
                            [0.0, -1.0]
                        };
                        assert_eq!([to[i], to[n + i]], expected);
                    }
                }
            }
        }
    }

    #[test]
    fn lanes_go_where_they_should() {
        if has_sixteen() {
            // SAFETY: the machine has the instructions.
            unsafe { Width::Sixteen.run(Shuffle) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the machine has the instructions.
            unsafe { Width::Eight.run(Shuffle) };
        }
    }
}
