//! Loads and stores of outputs: whole vectors, the end of a row, outputs a
//! stride apart, and two phases side by side.

use std::arch::x86_64::*;

use super::vector::Vector;

/// Asks for the lines of a vector of outputs while its sums are computed, lest
/// stores wait for them.
#[inline(always)]
pub(super) fn prefetch_to_write<V: Vector>(to: *mut f32, step: usize) {
    // SAFETY: prefetching has no effect on memory, wherever it points. (Some
    // compilers know that and find nothing unsafe.)
    #[allow(unused_unsafe)]
    unsafe {
        _mm_prefetch::<_MM_HINT_ET0>(to.cast());
        if step > 1 {
            _mm_prefetch::<_MM_HINT_ET0>(to.wrapping_add(2 * V::LANES - 1).cast());
        }
    }
}

/// # Safety
/// The machine has the instructions; `from` is valid for reads of `lanes`
/// floats, `step` apart.
#[inline(always)]
pub(super) unsafe fn load<V: Vector>(from: *const f32, step: usize, lanes: usize) -> V {
    // SAFETY: as promised; other lanes are not touched.
    unsafe {
        if step == 1 {
            if lanes == V::LANES {
                V::load(from)
            } else {
                V::load_some(from, lanes)
            }
        } else {
            let mut held = [0.0; 16];
            for (i, held) in held.iter_mut().enumerate().take(lanes) {
                *held = *from.add(i * step);
            }
            V::load(held.as_ptr())
        }
    }
}

/// # Safety
/// The machine has the instructions; `to` is valid for writes of `lanes`
/// floats, `step` apart. What was stored `past` the cache is fenced before
/// others rely on it.
#[inline(always)]
pub(super) unsafe fn store<V: Vector>(
    to: *mut f32,
    step: usize,
    lanes: usize,
    value: V,
    past: bool,
) {
    // SAFETY: as promised; other lanes are not touched.
    unsafe {
        if step == 1 {
            if lanes == V::LANES {
                if past && to.cast::<V>().is_aligned() {
                    value.store_past(to);
                } else {
                    value.store(to);
                }
            } else {
                value.store_some(to, lanes);
            }
        } else {
            let mut held = [0.0; 16];
            value.store(held.as_mut_ptr());
            for (i, &held) in held.iter().enumerate().take(lanes) {
                *to.add(i * step) = held;
            }
        }
    }
}

/// Two vectors of floats as the even and the odd ones, of which `lanes` exist.
///
/// # Safety
/// The machine has the instructions; `from` is valid for reads of `lanes` floats.
#[inline(always)]
pub(super) unsafe fn load_two<V: Vector>(from: *const f32, lanes: usize) -> (V, V) {
    let rest = lanes.saturating_sub(V::LANES);
    // SAFETY: as promised; other lanes are not touched.
    unsafe {
        let first = load(from, 1, lanes.min(V::LANES));
        V::split(first, load(from.wrapping_add(V::LANES), 1, rest))
    }
}

/// Stores even and odd floats alternately, of which `lanes` exist.
///
/// # Safety
/// As [`store`], with a step of one.
#[inline(always)]
pub(super) unsafe fn store_two<V: Vector>(to: *mut f32, lanes: usize, even: V, odd: V, past: bool) {
    let rest = lanes.saturating_sub(V::LANES);
    // SAFETY: as promised; other lanes are not touched.
    unsafe {
        let (first, second) = V::weave(even, odd);
        store(to, 1, lanes.min(V::LANES), first, past);
        store(to.wrapping_add(V::LANES), 1, rest, second, past);
    }
}
