//! The speed that this machine's multiply-add units reach.

#![allow(
    unsafe_code,
    reason = "vector instructions are called behind a check for them"
)]

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Independent sums: two units of four cycles' latency need eight; a few more hide the rest, and all
/// fit into sixteen registers beside the two operands.
const SUMS: usize = 12;
/// Multiply-adds of each sum between two looks at the clock.
const ROUNDS: usize = 100_000;

/// f32 multiply-add operations a second over `threads` threads, in GFLOP/s, two for each
/// multiply-add: the best of three tries of a tenth of a second, in the widest vectors that the
/// machine has.
pub fn measure_gflops(threads: usize) -> f64 {
    let try_for = Duration::from_millis(100);
    let one_try = || -> f64 {
        std::thread::scope(|scope| {
            let started: Vec<_> = (0..threads)
                .map(|_| scope.spawn(move || flops_per_second(try_for)))
                .collect();
            started
                .into_iter()
                .map(|thread| thread.join().unwrap_or(0.0))
                .sum()
        })
    };
    (0..3).map(|_| one_try()).fold(0.0, f64::max) / 1e9
}

fn flops_per_second(time: Duration) -> f64 {
    let (start, mut lanes) = (Instant::now(), 0);
    loop {
        lanes += multiply_adds();
        let passed = start.elapsed();
        if passed >= time {
            return (2 * ROUNDS * SUMS * lanes) as f64 / passed.as_secs_f64();
        }
    }
}

/// `ROUNDS` multiply-adds to each of `SUMS` vectors; gives the number of lanes of a vector.
fn multiply_adds() -> usize {
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has the one feature that the function is compiled for.
            unsafe { x86::avx512() };
            return 16;
        }
        if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("fma")
        {
            // SAFETY: the machine has the two features that the function is compiled for.
            unsafe { x86::avx2() };
            return 8;
        }
    }
    portable();
    4
}

/// Vectors of four lanes as the compiler's base instruction set has them; where that has no fused
/// multiply-add, a product and a sum.
fn portable() {
    let (factor, addend) = (black_box(0.5f32), black_box(0.5f32));
    let mut sums = [[addend; 4]; SUMS];
    for _ in 0..ROUNDS {
        for sum in &mut sums {
            *sum = sum.map(|lane| lane * factor + addend);
        }
    }
    black_box(sums);
}

/// Values settle at 1: no denormals, no infinities.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::{_mm256_fmadd_ps, _mm256_set1_ps, _mm512_fmadd_ps, _mm512_set1_ps};
    use std::hint::black_box;

    use super::{ROUNDS, SUMS};

    #[target_feature(enable = "avx2,fma")]
    pub fn avx2() {
        let (factor, addend) = (
            _mm256_set1_ps(black_box(0.5)),
            _mm256_set1_ps(black_box(0.5)),
        );
        let mut sums = [addend; SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, factor, addend);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f")]
    pub fn avx512() {
        let (factor, addend) = (
            _mm512_set1_ps(black_box(0.5)),
            _mm512_set1_ps(black_box(0.5)),
        );
        let mut sums = [addend; SUMS];
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, factor, addend);
            }
        }
        black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn multiply_adds_take_the_time_of_vector_units() {
        let gflops = measure_gflops(1);
        // One lane at a time would stay below 1 on most machines; no core reaches 2000.
        assert!((1.0..2000.0).contains(&gflops), "{gflops}");
    }
}
