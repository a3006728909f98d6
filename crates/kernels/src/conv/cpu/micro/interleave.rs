//! Rows side by side: the transpose that packs operands.

use crate::cpu::element::Element;
use crate::cpu::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::cpu::isa::Level;

/// Writes the transpose of `count` runs of `length` values, `WIDTH` values a step:
/// `target[step * WIDTH + lane] = rows[lane][step]`; lanes from `count` on are zero.
///
/// # Safety
/// `length` values at each of the first `count` rows are readable, aligned or not, and
/// `length * WIDTH + 8` values at `target` writable.
#[inline(always)]
pub unsafe fn interleave<E: Element>(
    isa: Isa,
    width: usize,
    rows: &[*const E; 32],
    count: usize,
    length: usize,
    target: *mut f32,
) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if isa.has(Level::Avx2) {
        while done + 8 <= length {
            // Backwards: the last eight lanes may reach into the next step's first ones.
            for first in (0..width).step_by(8).rev() {
                let mut tile = [[0f32; 8]; 8];
                for (lane, tile) in tile.iter_mut().enumerate() {
                    let lane = first + lane;
                    if lane < count && lane < width {
                        // SAFETY: eight values follow `done` in a row.
                        let source =
                            unsafe { rows[lane].add(done).cast::<[E; 8]>().read_unaligned() };
                        E::widen_run(isa, &source, tile);
                    }
                }
                // SAFETY: the store of a step reaches at most eight values past its lanes, into
                // values that a later store overwrites or the slack that the caller promises.
                unsafe { transpose8(&tile, target.add(done * width + first), width) };
            }
            done += 8;
        }
    }
    let _ = isa;
    for step in done..length {
        for (lane, row) in rows.iter().enumerate().take(width) {
            let value = if lane < count {
                // SAFETY: the caller promises `length` values in each row.
                unsafe { row.add(step).read_unaligned().widen() }
            } else {
                0.0
            };
            // SAFETY: the caller promises `length * width` values.
            unsafe { *target.add(step * width + lane) = value };
        }
    }
}

/// Stores the eight columns of `tile`, eight values each, `stride` values apart.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
#[inline]
unsafe fn transpose8(tile: &[[f32; 8]; 8], target: *mut f32, stride: usize) {
    use std::arch::x86_64::{
        _mm256_loadu_ps, _mm256_permute2f128_ps, _mm256_shuffle_ps, _mm256_storeu_ps,
        _mm256_unpackhi_ps, _mm256_unpacklo_ps,
    };
    // SAFETY: the tile's rows are eight values each; the caller promises the stores.
    unsafe {
        let r = tile.map(|row| _mm256_loadu_ps(row.as_ptr()));
        let pair = |i: usize| {
            (
                _mm256_unpacklo_ps(r[i], r[i + 1]),
                _mm256_unpackhi_ps(r[i], r[i + 1]),
            )
        };
        let (p0, p2, p4, p6) = (pair(0), pair(2), pair(4), pair(6));
        let low = [
            _mm256_shuffle_ps::<0x44>(p0.0, p2.0),
            _mm256_shuffle_ps::<0xee>(p0.0, p2.0),
            _mm256_shuffle_ps::<0x44>(p0.1, p2.1),
            _mm256_shuffle_ps::<0xee>(p0.1, p2.1),
        ];
        let high = [
            _mm256_shuffle_ps::<0x44>(p4.0, p6.0),
            _mm256_shuffle_ps::<0xee>(p4.0, p6.0),
            _mm256_shuffle_ps::<0x44>(p4.1, p6.1),
            _mm256_shuffle_ps::<0xee>(p4.1, p6.1),
        ];
        for i in 0..4 {
            _mm256_storeu_ps(
                target.add(i * stride),
                _mm256_permute2f128_ps::<0x20>(low[i], high[i]),
            );
        }
        for i in 0..4 {
            _mm256_storeu_ps(
                target.add((4 + i) * stride),
                _mm256_permute2f128_ps::<0x31>(low[i], high[i]),
            );
        }
    }
}
