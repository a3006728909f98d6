//! The innermost loop: a 6 x 16 block of products, and the instruction sets that it is compiled for.

use std::sync::LazyLock;

/// Rows of a block: six accumulator rows of two registers leave room for the operands.
pub const MR: usize = 6;
/// Columns of a block: two AVX registers of f32.
pub const NR: usize = 16;
/// Values of a block.
pub const BLOCK: usize = MR * NR;

/// Whether the processor has AVX2, FMA and F16C. `HALFSEG_PORTABLE=1` hides them, for tests.
pub fn has_avx2() -> bool {
    static FOUND: LazyLock<bool> = LazyLock::new(|| {
        if std::env::var_os("HALFSEG_PORTABLE").is_some_and(|value| value == "1") {
            return false;
        }
        #[cfg(target_arch = "x86_64")]
        {
            is_x86_feature_detected!("avx2")
                && is_x86_feature_detected!("fma")
                && is_x86_feature_detected!("f16c")
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            false
        }
    });
    *FOUND
}

/// Where a block's operands lie: `rows` runs of `depth` steps each.
#[derive(Clone, Copy)]
pub struct Walk {
    /// Runs.
    pub rows: usize,
    /// Steps of a run; `left` moves by [`MR`] values a step.
    pub depth: usize,
    /// Values of `left` from one run to the next.
    pub left_row: usize,
    /// Values of `right` from one run to the next.
    pub right_row: usize,
    /// Values of `right` from one step to the next.
    pub right_step: usize,
}

/// Adds `sum over steps of left[step][i] * right[step][j]` to `block[i][j]`. The sum starts from
/// zero and is added at the end: short sums lose fewer bits than one long one.
///
/// # Safety
/// For each run and step of `walk`, [`MR`] values at `left` and [`NR`] at `right` are readable;
/// [`BLOCK`] values at `block` are readable and writable. With `AVX2` the processor has AVX2 and FMA.
#[inline(always)]
pub unsafe fn multiply<const AVX2: bool>(
    walk: Walk,
    left: *const f32,
    right: *const f32,
    block: *mut f32,
) {
    #[cfg(target_arch = "x86_64")]
    if AVX2 {
        // SAFETY: the caller's promises are the same.
        return unsafe { multiply_avx2(walk, left, right, block) };
    }
    // SAFETY: the caller's promises are the same.
    unsafe { multiply_portable(walk, left, right, block) }
}

#[inline(always)]
unsafe fn multiply_portable(walk: Walk, left: *const f32, right: *const f32, block: *mut f32) {
    let mut sums = [[0f32; NR]; MR];
    for row in 0..walk.rows {
        for step in 0..walk.depth {
            // SAFETY: the caller promises these values.
            let (left, right) = unsafe {
                (
                    &*left
                        .add(row * walk.left_row + step * MR)
                        .cast::<[f32; MR]>(),
                    &*right
                        .add(row * walk.right_row + step * walk.right_step)
                        .cast::<[f32; NR]>(),
                )
            };
            for (sums, left) in sums.iter_mut().zip(left) {
                for (sum, right) in sums.iter_mut().zip(right) {
                    *sum += left * right;
                }
            }
        }
    }
    // SAFETY: the caller promises a whole block.
    let block = unsafe { &mut *block.cast::<[[f32; NR]; MR]>() };
    for (block, sums) in block.iter_mut().zip(&sums) {
        for (block, sum) in block.iter_mut().zip(sums) {
            *block += sum;
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
#[inline]
unsafe fn multiply_avx2(walk: Walk, left: *const f32, right: *const f32, block: *mut f32) {
    use std::arch::x86_64::{
        _mm256_add_ps, _mm256_broadcast_ss, _mm256_fmadd_ps, _mm256_loadu_ps, _mm256_setzero_ps,
        _mm256_storeu_ps,
    };
    // SAFETY: every address is one that the caller promises.
    unsafe {
        let mut sums = [[_mm256_setzero_ps(); 2]; MR];
        for row in 0..walk.rows {
            let mut a = left.add(row * walk.left_row);
            let mut b = right.add(row * walk.right_row);
            for _ in 0..walk.depth {
                let columns = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(8))];
                for (i, sums) in sums.iter_mut().enumerate() {
                    let value = _mm256_broadcast_ss(&*a.add(i));
                    sums[0] = _mm256_fmadd_ps(value, columns[0], sums[0]);
                    sums[1] = _mm256_fmadd_ps(value, columns[1], sums[1]);
                }
                a = a.wrapping_add(MR);
                b = b.wrapping_add(walk.right_step);
            }
        }
        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                let target = block.add(i * NR + j * 8);
                _mm256_storeu_ps(target, _mm256_add_ps(_mm256_loadu_ps(target), sum));
            }
        }
    }
}

/// Writes the transpose of `count` runs of `length` values, `LANES` values a step:
/// `target[step * LANES + lane] = rows[lane][step]`; lanes from `count` on are zero.
///
/// # Safety
/// `length` values at each of the first `count` rows are readable, and `length * LANES + 8` values at
/// `target` writable. With `AVX2` the processor has AVX2, FMA and F16C.
#[inline(always)]
pub unsafe fn interleave<E: super::Element, const LANES: usize, const AVX2: bool>(
    rows: &[*const E; 16],
    count: usize,
    length: usize,
    target: *mut f32,
) {
    let mut done = 0;
    #[cfg(target_arch = "x86_64")]
    if AVX2 {
        let zeros = [E::default(); 8];
        while done + 8 <= length {
            for first in (0..LANES).step_by(8) {
                let mut tile = [[0f32; 8]; 8];
                for (lane, tile) in tile.iter_mut().enumerate() {
                    let lane = first + lane;
                    // SAFETY: eight values follow `done` in a row, and eight zeros elsewhere.
                    let source = unsafe {
                        if lane < count && lane < LANES {
                            &*rows[lane].add(done).cast::<[E; 8]>()
                        } else {
                            &zeros
                        }
                    };
                    E::widen_run::<AVX2>(source, tile);
                }
                // SAFETY: the store of a step reaches at most eight values past its lanes, into
                // values that a later step overwrites or the slack that the caller promises.
                unsafe { transpose8(&tile, target.add(done * LANES + first), LANES) };
            }
            done += 8;
        }
    }
    for step in done..length {
        for (lane, row) in rows.iter().enumerate().take(LANES) {
            let value = if lane < count {
                // SAFETY: the caller promises `length` values in each row.
                unsafe { (*row.add(step)).widen() }
            } else {
                0.0
            };
            // SAFETY: the caller promises `length * LANES` values.
            unsafe { *target.add(step * LANES + lane) = value };
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
