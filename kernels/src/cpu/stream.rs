//! Stores that bypass the cache.
//!
//! An ordinary store first fetches the line that it overwrites. Of a map that is
//! larger than the last-level cache nothing is left there for the next kernel
//! anyway, so fetching is a third of a pointwise kernel's traffic for nothing.

use crate::real::Real;

/// Bytes of one call's output from which on it bypasses the cache: as much as a
/// usual last-level cache holds; little in tests, whose maps are small.
const LARGE_BYTES: usize = if cfg!(test) { 2 << 10 } else { 32 << 20 };

/// Whether so many elements should bypass the cache.
pub(super) fn worthwhile<T: Real>(elems: usize) -> bool {
    cfg!(target_arch = "x86_64") && elems * size_of::<T>() >= LARGE_BYTES
}

/// Copies past the cache. Other threads may rely on it only after [`fence`].
///
/// # Panics
/// If the lengths differ.
pub(super) fn copy<T: Real>(from: &[T], to: &mut [T]) {
    assert_eq!(from.len(), to.len(), "a copy has one length");
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_loadu_ps, _mm_stream_ps};
        const LINE: usize = 64;
        let per_line = LINE / size_of::<T>();
        // Part of a line would be written to memory on its own.
        let head = to.as_ptr().align_offset(LINE).min(to.len());
        let (first, to) = to.split_at_mut(head);
        let (from_first, from) = from.split_at(head);
        first.copy_from_slice(from_first);
        let mut lines = to.chunks_exact_mut(per_line);
        let mut from_lines = from.chunks_exact(per_line);
        for (to, from) in (&mut lines).zip(&mut from_lines) {
            let (to, from) = (to.as_mut_ptr().cast::<f32>(), from.as_ptr().cast::<f32>());
            for at in (0..LINE / 4).step_by(4) {
                // SAFETY: both are whole lines, of numbers of which any bits are
                // valid, and `to` is aligned to one; SSE is part of x86-64.
                unsafe { _mm_stream_ps(to.add(at), _mm_loadu_ps(from.add(at))) };
            }
        }
        lines
            .into_remainder()
            .copy_from_slice(from_lines.remainder());
    }
    #[cfg(not(target_arch = "x86_64"))]
    to.copy_from_slice(from);
}

/// Fills past the cache. Other threads may rely on it only after [`fence`].
pub(super) fn fill<T: Real>(to: &mut [T], value: T) {
    const CHUNK: usize = 64;
    let from = [value; CHUNK];
    let head = to.as_ptr().align_offset(64).min(to.len());
    let (first, to) = to.split_at_mut(head);
    first.fill(value);
    for to in to.chunks_mut(CHUNK) {
        copy(&from[..to.len()], to);
    }
}

/// Makes this thread's copies and fillings visible in order with what it stores later.
pub(super) fn fence() {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a fence has no precondition; SSE is part of x86-64.
    #[allow(unused_unsafe)]
    unsafe {
        std::arch::x86_64::_mm_sfence();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_copied_wherever_it_lies() {
        let from: Vec<f64> = (0..100).map(f64::from).collect();
        for start in 0..9 {
            for len in 0..40 {
                let mut to = vec![-1.0; 100];
                copy(&from[start + 1..][..len], &mut to[start..][..len]);
                fence();
                for (i, &x) in to.iter().enumerate() {
                    let inside = (start..start + len).contains(&i);
                    assert_eq!(x, if inside { (i + 1) as f64 } else { -1.0 });
                }
            }
        }
    }
}
