//! How many multiplications the machine can do: what kernels are measured by.

use std::time::Instant;

use rayon::prelude::*;

/// Floating-point operations per second of fused multiply-adds in registers, in
/// single precision, on all threads of the current rayon pool: the best of many
/// short runs, in one of which no other program takes a processor. A fused
/// multiply-add counts as two.
pub fn peak_flops_per_sec() -> f64 {
    const RUNS: usize = 200;
    const STEPS: usize = 1 << 18;
    let threads = rayon::current_num_threads();
    let best = (0..RUNS)
        .map(|_| {
            let started = Instant::now();
            let flops: f64 = (0..threads).into_par_iter().map(|_| multiply(STEPS)).sum();
            flops / started.elapsed().as_secs_f64()
        })
        .fold(0.0, f64::max);
    // The first runs wake threads and clocks up; the best is what counts.
    best
}

/// Multiplies for so many steps; returns the operations done.
fn multiply(steps: usize) -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has the instructions.
            return unsafe { multiply_512(steps) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the machine has the instructions.
            return unsafe { multiply_256(steps) };
        }
    }
    multiply_lanes::<8>(steps)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,fma")]
fn multiply_512(steps: usize) -> f64 {
    multiply_lanes::<16>(steps)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn multiply_256(steps: usize) -> f64 {
    multiply_lanes::<8>(steps)
}

/// Twelve independent chains of `L` lanes.
#[inline(always)]
fn multiply_lanes<const L: usize>(steps: usize) -> f64 {
    const CHAINS: usize = 12;
    let factor = std::hint::black_box([0.999_f32; L]);
    let mut acc = [[1.0_f32; L]; CHAINS];
    for _ in 0..steps {
        for acc in &mut acc {
            for (acc, &factor) in acc.iter_mut().zip(&factor) {
                *acc = acc.mul_add(factor, factor);
            }
        }
    }
    std::hint::black_box(acc);
    (2 * steps * CHAINS * L) as f64
}
