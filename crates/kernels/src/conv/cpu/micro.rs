//! The innermost loops: blocks of products, one way for each instruction set.

use crate::cpu::element::Element;
use crate::cpu::isa::Isa;

/// One way to multiply blocks.
///
/// A block has `MR` rows (channels that result) and `NR` columns (pixels). The left operand is packed
/// as [`left_at`](Self::left_at) says; the right one has, for each `PAIR` of products, `PAIR` values a
/// column.
pub trait Core: Send + Sync + 'static {
    /// What packed operands hold.
    type Value: bytemuck::Pod + Default + Send + Sync;
    /// The instructions that it needs.
    const ISA: Isa;
    /// Rows of a block.
    const MR: usize;
    /// Columns of a block; a multiple of [`LANES`].
    const NR: usize;
    /// Values of a block.
    const BLOCK: usize = Self::MR * Self::NR;
    /// Products that lie side by side in a packed operand.
    const PAIR: usize;
    /// Products are summed in steps of this many; the rest of the last step is zero.
    const STEP: usize;
    /// Products that are summed before a block is stored: the right operand's `DEPTH x NR` values
    /// stay in or near the first-level cache. A multiple of `STEP`.
    const DEPTH: usize;
    /// Values of right operands that fill about half of a second-level cache.
    const STRIP: usize;

    /// Where product `step` of row `lane` lies.
    fn left_at(step: usize, lane: usize) -> usize;

    /// An element as a packed value.
    fn value<E: Element>(element: E) -> Self::Value;

    /// Packs neighbouring pixels of `PAIR` channels, of which the second may be missing, side by
    /// side. `target` has `PAIR` values per pixel.
    ///
    /// # Safety
    /// The processor has [`ISA`](Self::ISA).
    unsafe fn gather<E: Element>(channels: [Option<&[E]>; 2], target: &mut [Self::Value]);

    /// Sets `block[i][j]` to `sum over steps of left[step][i] * right[step][j]`, or adds that to it:
    /// the sum starts from zero and is added at the end, since short sums lose fewer bits than one
    /// long one.
    ///
    /// # Safety
    /// For each run and step of `walk`, `MR` values at `left` and `NR` at `right` are readable;
    /// `BLOCK` values at `block` are readable and writable. The processor has [`ISA`](Self::ISA),
    /// and this runs inside [`compiled`](crate::cpu::isa::compiled) for it.
    unsafe fn multiply(
        walk: Walk,
        left: *const Self::Value,
        right: *const Self::Value,
        block: *mut f32,
        add: bool,
    );
}

/// Columns that transforms of f32 take at a time, and of which every [`Core::NR`] is a multiple.
pub const LANES: usize = 16;

/// Where a block's operands lie: `rows` runs of `depth` products each.
#[derive(Clone, Copy)]
pub struct Walk {
    /// Runs.
    pub rows: usize,
    /// Products of a run; `left` moves by `MR` values a product.
    pub depth: usize,
    /// Values of `left` from one run to the next.
    pub left_row: usize,
    /// Values of `right` from one run to the next.
    pub right_row: usize,
    /// Values of `right` from one product to the next.
    pub right_step: usize,
}

impl Walk {
    /// One run of operands packed side by side.
    pub fn packed<C: Core>(depth: usize) -> Self {
        Self {
            rows: 1,
            depth,
            left_row: 0,
            right_row: 0,
            right_step: C::NR,
        }
    }
}

/// A core whose operands are f32, packed product by product.
pub trait Wide: Send + Sync + 'static {
    /// As [`Core::ISA`].
    const ISA: Isa;
    /// As [`Core::MR`].
    const ROWS: usize;
    /// As [`Core::NR`].
    const COLUMNS: usize;
    /// As [`Core::DEPTH`].
    const DEPTH: usize;
    /// As [`Core::STRIP`].
    const STRIP: usize;

    /// As [`Core::multiply`].
    ///
    /// # Safety
    /// As [`Core::multiply`].
    unsafe fn multiply(walk: Walk, left: *const f32, right: *const f32, block: *mut f32, add: bool);
}

impl<C: Wide> Core for C {
    type Value = f32;
    const ISA: Isa = <C as Wide>::ISA;
    const MR: usize = C::ROWS;
    const NR: usize = C::COLUMNS;
    const PAIR: usize = 1;
    const STEP: usize = 1;
    const DEPTH: usize = <C as Wide>::DEPTH;
    const STRIP: usize = <C as Wide>::STRIP;

    fn left_at(step: usize, lane: usize) -> usize {
        step * C::ROWS + lane
    }

    #[inline(always)]
    fn value<E: Element>(element: E) -> f32 {
        element.widen()
    }

    #[inline(always)]
    unsafe fn gather<E: Element>(channels: [Option<&[E]>; 2], target: &mut [f32]) {
        match channels[0] {
            Some(source) => E::widen_run(<C as Wide>::ISA, source, target),
            None => target.fill(0.0),
        }
    }

    #[inline(always)]
    unsafe fn multiply(
        walk: Walk,
        left: *const f32,
        right: *const f32,
        block: *mut f32,
        add: bool,
    ) {
        // SAFETY: the caller's promises are the same.
        unsafe { <C as Wide>::multiply(walk, left, right, block, add) }
    }
}

/// Six rows of two AVX registers, without their instructions.
pub struct Portable;

impl Wide for Portable {
    const ISA: Isa = Isa::Portable;
    const ROWS: usize = 6;
    const COLUMNS: usize = 16;
    const DEPTH: usize = 256;
    const STRIP: usize = 48 << 10;

    #[inline(always)]
    unsafe fn multiply(
        walk: Walk,
        left: *const f32,
        right: *const f32,
        block: *mut f32,
        add: bool,
    ) {
        let mut sums = [[0f32; Self::COLUMNS]; Self::ROWS];
        for row in 0..walk.rows {
            for step in 0..walk.depth {
                // SAFETY: the caller promises these values.
                let (left, right) = unsafe {
                    (
                        &*left
                            .add(row * walk.left_row + step * Self::ROWS)
                            .cast::<[f32; Self::ROWS]>(),
                        &*right
                            .add(row * walk.right_row + step * walk.right_step)
                            .cast::<[f32; Self::COLUMNS]>(),
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
        let block = unsafe { &mut *block.cast::<[[f32; Self::COLUMNS]; Self::ROWS]>() };
        for (block, sums) in block.iter_mut().zip(&sums) {
            for (block, sum) in block.iter_mut().zip(sums) {
                *block = if add { *block + sum } else { *sum };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub use x86::{Amx, Avx2, Avx512, multiply_rows};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::*;

    use crate::cpu::element::Element;
    use crate::cpu::isa::Isa;

    use super::{Core, Walk, Wide};

    /// Six rows of two registers leave room for the operands.
    pub struct Avx2;

    impl Wide for Avx2 {
        const ISA: Isa = Isa::Avx2;
        const ROWS: usize = 6;
        const COLUMNS: usize = 16;
        const DEPTH: usize = 256;
        const STRIP: usize = 80 << 10;

        #[inline(always)]
        unsafe fn multiply(
            walk: Walk,
            left: *const f32,
            right: *const f32,
            block: *mut f32,
            add: bool,
        ) {
            // SAFETY: the caller's promises are the same.
            unsafe { multiply_avx2(walk, left, right, block, add) }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    #[inline]
    unsafe fn multiply_avx2(
        walk: Walk,
        left: *const f32,
        right: *const f32,
        block: *mut f32,
        add: bool,
    ) {
        // SAFETY: every address is one that the caller promises.
        unsafe {
            let mut sums = [[_mm256_setzero_ps(); 2]; Avx2::ROWS];
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
                    a = a.wrapping_add(Avx2::ROWS);
                    b = b.wrapping_add(walk.right_step);
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                for (j, &sum) in sums.iter().enumerate() {
                    let target = block.add(i * Avx2::COLUMNS + j * 8);
                    let sum = if add {
                        _mm256_add_ps(_mm256_loadu_ps(target), sum)
                    } else {
                        sum
                    };
                    _mm256_storeu_ps(target, sum);
                }
            }
        }
    }

    /// Values of the left operand that are fetched ahead of those that are multiplied.
    const FETCHED: usize = 256;

    /// `MR` rows of `VECTORS` registers; 24 sums leave room for the operands and hide the latency of
    /// their additions.
    pub struct Avx512<const MR: usize, const VECTORS: usize>;

    impl<const MR: usize, const VECTORS: usize> Wide for Avx512<MR, VECTORS> {
        const ISA: Isa = Isa::Avx512;
        const ROWS: usize = MR;
        const COLUMNS: usize = VECTORS * 16;
        const DEPTH: usize = 192;
        const STRIP: usize = 160 << 10;

        #[inline(always)]
        unsafe fn multiply(
            walk: Walk,
            left: *const f32,
            right: *const f32,
            block: *mut f32,
            add: bool,
        ) {
            // SAFETY: the caller's promises are the same.
            unsafe { multiply_avx512::<MR, VECTORS>(walk, left, right, block, add) }
        }
    }

    #[target_feature(enable = "avx512f")]
    #[inline]
    unsafe fn multiply_avx512<const MR: usize, const VECTORS: usize>(
        walk: Walk,
        left: *const f32,
        right: *const f32,
        block: *mut f32,
        add: bool,
    ) {
        // SAFETY: every address is one that the caller promises.
        unsafe {
            for line in (0..MR * VECTORS * 16).step_by(16) {
                _mm_prefetch::<_MM_HINT_T0>(block.wrapping_add(line).cast());
            }
            let mut sums = [[_mm512_setzero_ps(); VECTORS]; MR];
            for row in 0..walk.rows {
                let mut a = left.add(row * walk.left_row);
                let mut b = right.add(row * walk.right_row);
                for _ in 0..walk.depth {
                    let mut columns = [_mm512_setzero_ps(); VECTORS];
                    for (j, column) in columns.iter_mut().enumerate() {
                        *column = _mm512_loadu_ps(b.add(j * 16));
                    }
                    for (i, sums) in sums.iter_mut().enumerate() {
                        let value = _mm512_set1_ps(*a.add(i));
                        for (sum, &column) in sums.iter_mut().zip(&columns) {
                            *sum = _mm512_fmadd_ps(value, column, *sum);
                        }
                    }
                    _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add(FETCHED).cast());
                    a = a.wrapping_add(MR);
                    b = b.wrapping_add(walk.right_step);
                }
            }
            for (i, sums) in sums.iter().enumerate() {
                for (j, &sum) in sums.iter().enumerate() {
                    let target = block.add((i * VECTORS + j) * 16);
                    let sum = if add {
                        _mm512_add_ps(_mm512_loadu_ps(target), sum)
                    } else {
                        sum
                    };
                    _mm512_storeu_ps(target, sum);
                }
            }
        }
    }

    /// Two by two tiles of 16 x 16 sums; products of bf16 are exact and are added in f32. Values
    /// below 2^-126 count as zero.
    pub struct Amx;

    impl Core for Amx {
        type Value = u16;
        const ISA: Isa = Isa::Amx;
        const MR: usize = 32;
        const NR: usize = 32;
        const PAIR: usize = 2;
        const STEP: usize = 32;
        const DEPTH: usize = 512;
        const STRIP: usize = 320 << 10;

        // Two tiles of 16 rows, each with 32 products side by side.
        fn left_at(step: usize, lane: usize) -> usize {
            step / Self::STEP * (Self::STEP * Self::MR) + lane * Self::STEP + step % Self::STEP
        }

        #[inline(always)]
        fn value<E: Element>(element: E) -> u16 {
            element.bf16_bits()
        }

        #[inline(always)]
        unsafe fn gather<E: Element>(channels: [Option<&[E]>; 2], target: &mut [u16]) {
            let [Some(first), second] = channels else {
                return target.fill(0);
            };
            let bf16 = std::any::TypeId::of::<E>() == std::any::TypeId::of::<half::bf16>();
            if !bf16 {
                for (i, target) in target.chunks_exact_mut(2).enumerate() {
                    target[0] = first[i].bf16_bits();
                    target[1] = second.map_or(0, |second| second[i].bf16_bits());
                }
                return;
            }
            assert!(second.is_none_or(|second| second.len() == first.len()));
            assert_eq!(target.len(), first.len() * 2);
            // SAFETY: elements are bf16; both runs and the target have the lengths that were checked,
            // and the caller promises the instructions.
            unsafe {
                pair_up(
                    first.as_ptr().cast(),
                    second.map(|second| second.as_ptr().cast()),
                    first.len(),
                    target.as_mut_ptr(),
                );
            }
        }

        #[inline(always)]
        unsafe fn multiply(
            walk: Walk,
            left: *const u16,
            right: *const u16,
            block: *mut f32,
            add: bool,
        ) {
            // SAFETY: the caller's promises are the same.
            unsafe { multiply_rows(walk, left, right, 64, block, add) }
        }
    }

    /// Writes `length` pairs of neighbouring values, one of each run; zeros for a missing one.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    unsafe fn pair_up(
        first: *const u16,
        second: Option<*const u16>,
        length: usize,
        target: *mut u16,
    ) {
        // Value `i` of a register: from the first run where even, from the second where odd.
        const fn order(from: u16) -> [u16; 32] {
            let mut order = [0; 32];
            let mut i = 0;
            while i < 32 {
                order[i] = from + (i / 2) as u16 + 32 * (i % 2) as u16;
                i += 1;
            }
            order
        }
        const LOW: [u16; 32] = order(0);
        const HIGH: [u16; 32] = order(16);
        // SAFETY: masks keep every access inside the runs and the target.
        unsafe {
            let low = _mm512_loadu_si512(LOW.as_ptr().cast());
            let high = _mm512_loadu_si512(HIGH.as_ptr().cast());
            let mut done = 0;
            while done < length {
                let left = (length - done).min(32);
                let mask = u32::MAX >> (32 - left);
                let a = _mm512_maskz_loadu_epi16(mask, first.add(done).cast());
                let b = match second {
                    Some(second) => _mm512_maskz_loadu_epi16(mask, second.add(done).cast()),
                    None => _mm512_setzero_si512(),
                };
                let target = target.add(done * 2).cast();
                let near = _mm512_permutex2var_epi16(a, low, b);
                _mm512_mask_storeu_epi32(target, mask as u16, near);
                if left > 16 {
                    let far = _mm512_permutex2var_epi16(a, high, b);
                    _mm512_mask_storeu_epi32(target.add(16), (mask >> 16) as u16, far);
                }
                done += left;
            }
        }
    }

    /// As [`Core::multiply`]; neighbouring rows of a left tile are `left_stride` bytes apart, and its
    /// second tile 16 rows on.
    #[inline(always)]
    pub unsafe fn multiply_rows(
        walk: Walk,
        left: *const u16,
        right: *const u16,
        left_stride: usize,
        block: *mut f32,
        add: bool,
    ) {
        debug_assert!(walk.depth.is_multiple_of(Amx::STEP));
        let block_stride = Amx::NR * size_of::<f32>();
        let right_stride = walk.right_step * 2 * size_of::<u16>();
        // SAFETY: `compiled` configured eight tiles of 16 rows of 64 bytes; every address is one that
        // the caller promises. No other code of this program uses tile registers.
        unsafe {
            if add {
                asm!(
                    "tileloadd tmm0, [{low} + {stride}]",
                    "tileloadd tmm1, [{low} + {stride} + 64]",
                    "tileloadd tmm2, [{high} + {stride}]",
                    "tileloadd tmm3, [{high} + {stride} + 64]",
                    low = in(reg) block,
                    high = in(reg) block.add(16 * Amx::NR),
                    stride = in(reg) block_stride,
                    options(nostack, readonly, preserves_flags),
                );
            } else {
                asm!(
                    "tilezero tmm0",
                    "tilezero tmm1",
                    "tilezero tmm2",
                    "tilezero tmm3",
                    options(nostack, nomem, preserves_flags),
                );
            }
            for row in 0..walk.rows {
                let left = left.wrapping_add(row * walk.left_row);
                // Packed tiles follow each other; rows of a map go on where they are.
                let left_step = if left_stride == 64 { 64 * Amx::MR } else { 64 };
                asm!(
                    "2:",
                    "tileloadd tmm6, [{right} + {right_stride}]",
                    "tileloadd tmm4, [{low} + {left_stride}]",
                    "tdpbf16ps tmm0, tmm4, tmm6",
                    "tileloadd tmm7, [{right} + {right_stride} + 64]",
                    "tdpbf16ps tmm1, tmm4, tmm7",
                    "tileloadd tmm5, [{high} + {left_stride}]",
                    "tdpbf16ps tmm2, tmm5, tmm6",
                    "tdpbf16ps tmm3, tmm5, tmm7",
                    "add {low}, {left_step}",
                    "add {high}, {left_step}",
                    "add {right}, {right_move}",
                    "dec {count}",
                    "jnz 2b",
                    low = inout(reg) left => _,
                    high = inout(reg) left.byte_add(16 * left_stride) => _,
                    right = inout(reg) right.wrapping_add(row * walk.right_row) => _,
                    count = inout(reg) walk.depth / Amx::STEP => _,
                    left_stride = in(reg) left_stride,
                    right_stride = in(reg) right_stride,
                    left_step = in(reg) left_step,
                    right_move = in(reg) right_stride * 16,
                    options(nostack, readonly),
                );
            }
            asm!(
                "tilestored [{low} + {stride}], tmm0",
                "tilestored [{low} + {stride} + 64], tmm1",
                "tilestored [{high} + {stride}], tmm2",
                "tilestored [{high} + {stride} + 64], tmm3",
                low = in(reg) block,
                high = in(reg) block.add(16 * Amx::NR),
                stride = in(reg) block_stride,
                options(nostack, preserves_flags),
            );
        }
    }
}

/// Writes the transpose of `count` runs of `length` values, `WIDTH` values a step:
/// `target[step * WIDTH + lane] = rows[lane][step]`; lanes from `count` on are zero.
///
/// # Safety
/// `length` values at each of the first `count` rows are readable, aligned or not, and
/// `length * WIDTH + 8` values at `target` writable. The processor has `isa`.
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
    if isa >= Isa::Avx2 {
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
