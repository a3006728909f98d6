//! Blocks of products of bf16, and of f16, with the tile registers of AMX.

use std::any::TypeId;
use std::arch::asm;
use std::arch::x86_64::*;
use std::marker::PhantomData;

use half::{bf16, f16};

use super::{CHANNELS, Core, MOST_PARTS, PixelCore, Walk};
use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, Level, Registers};
use crate::cpu::tile_registers::TileRegisters;

/// Assembly: takes up a block's sums in tiles 0 to 3, or clears those, and goes on at label 3.
macro_rules! take_up {
    () => {
        concat!(
            "test {add}, {add}\n",
            "jz 2f\n",
            "tileloadd tmm0, [{block} + {stride}]\n",
            "tileloadd tmm1, [{block} + {stride} + 64]\n",
            "tileloadd tmm2, [{block} + {stride} + 2048]\n",
            "tileloadd tmm3, [{block} + {stride} + 2112]\n",
            "jmp 3f\n",
            "2:\n",
            "tilezero tmm0\n",
            "tilezero tmm1\n",
            "tilezero tmm2\n",
            "tilezero tmm3\n",
        )
    };
}

/// Assembly: lays down what [`take_up`] took.
macro_rules! lay_down {
    () => {
        concat!(
            "tilestored [{block} + {stride}], tmm0\n",
            "tilestored [{block} + {stride} + 64], tmm1\n",
            "tilestored [{block} + {stride} + 2048], tmm2\n",
            "tilestored [{block} + {stride} + 2112], tmm3\n",
        )
    };
}

pub(super) use {lay_down, take_up};

/// What tiles multiply as it is.
pub trait Tiled: Element {
    /// The instructions for it.
    const ISA: Isa;
    /// The exponent of what is not finite, if weights, and both operands of a weight's gradient, that are so are left to
    /// others: a zero that fills up or pads would make NaN of an infinity.
    const REFUSED: Option<u16>;

    /// Runs of products, into a block of sums, or added to it. Runs of the right operand follow each other.
    ///
    /// # Safety
    /// The operands are readable as `rows` says, 16 rows of a left tile, and a block at `block` is writable,
    /// and readable if that is added to.
    unsafe fn multiply_rows(
        _: &TileRegisters,
        rows: Rows,
        right: *const u16,
        block: *mut f32,
        add: bool,
    );
}

/// Two by two tiles of 16 x 16 sums; products are exact and are added in f32. Values and sums
/// below 2^-126 count as zero, which is no f16.
pub struct Amx<F>(PhantomData<F>);

impl<F: Tiled> Amx<F> {
    /// # Panics
    /// If `isa` has not the instructions.
    pub fn on(isa: Isa) -> Self {
        assert!(isa.has(F::ISA.level()));
        Self(PhantomData)
    }

    /// Bytes of a row of a block, and of one of a packed right operand.
    pub const BLOCK_STRIDE: usize = Self::NR * size_of::<f32>();
}

impl<F: Tiled> Core for Amx<F> {
    type Value = u16;
    const ISA: Isa = F::ISA;
    const MR: usize = 32;
    const NR: usize = 32;
    const PAIR: usize = 2;
    const STEP: usize = 32;
    const DEPTH: usize = 256;
    const STRIP: usize = 320 << 10;

    // Two tiles of 16 rows, each with 32 products side by side.
    fn left_at(step: usize, lane: usize) -> usize {
        step / Self::STEP * (Self::STEP * Self::MR) + lane * Self::STEP + step % Self::STEP
    }

    #[inline(always)]
    unsafe fn values<E: Element>(elements: &[E], [target, ..]: [&mut [u16]; MOST_PARTS]) -> bool {
        copy_bits::<F, E>(elements, target)
    }

    #[inline(always)]
    unsafe fn gather<E: Element>(
        channels: [Option<&[E]>; 2],
        target: &mut [u16],
        lane: usize,
    ) -> bool {
        // SAFETY: the caller's promises are the same.
        unsafe { pair_up(channels, target, lane) }
        true
    }

    #[inline(always)]
    unsafe fn multiply(
        registers: &Registers,
        walk: Walk,
        left: *const u16,
        right: *const u16,
        block: *mut f32,
        add: bool,
    ) {
        // SAFETY: the caller's promises are the same.
        unsafe { multiply_rows::<F>(registers.tiles(), walk, left, right, 64, block, add) }
    }
}

impl<F: Tiled> PixelCore for Amx<F> {
    type Held = F;
    const ISA: Isa = F::ISA;
    const SPAN: usize = Self::STEP;

    #[inline(always)]
    unsafe fn multiply_pixels(
        registers: &Registers,
        walk: Walk,
        left: *const u16,
        right: *const u16,
        left_stride: usize,
        block: *mut f32,
        add: bool,
    ) {
        const { assert!(Self::MR == CHANNELS && Self::NR == CHANNELS) };
        let stride = left_stride * size_of::<u16>();
        // SAFETY: the caller's promises are the same.
        unsafe { multiply_rows::<F>(registers.tiles(), walk, left, right, stride, block, add) }
    }
}

/// Elements, which are `F`s, as they are, into a target that is no shorter. Returns what [`are_taken`] does.
#[inline(always)]
pub fn copy_bits<F: Tiled, E: Element>(elements: &[E], target: &mut [u16]) -> bool {
    assert!(TypeId::of::<E>() == TypeId::of::<F>());
    const { assert!(size_of::<F>() == size_of::<u16>()) };
    let target = &mut target[..elements.len()];
    // SAFETY: as many values of two bytes, of which every one is bits.
    unsafe {
        target
            .as_mut_ptr()
            .copy_from_nonoverlapping(elements.as_ptr().cast(), target.len())
    };
    are_taken::<F, E>(elements)
}

/// Whether tiles of `F` take elements, which are `F`s, as [`Tiled::REFUSED`] says.
#[inline(always)]
pub fn are_taken<F: Tiled, E: Element>(elements: &[E]) -> bool {
    assert!(size_of::<E>() == size_of::<u16>());
    // SAFETY: as many values of two bytes.
    let bits =
        unsafe { std::slice::from_raw_parts(elements.as_ptr().cast::<u16>(), elements.len()) };
    F::REFUSED.is_none_or(|exponent| {
        // No branch between, so that the compiler takes them side by side.
        let taken = |all: bool, bits: &u16| all & (bits & exponent != exponent);
        bits.iter().fold(true, taken)
    })
}

/// As [`Core::gather`] of values of two bytes, in pairs.
///
/// # Safety
/// The processor has AVX-512 F and BW.
#[inline(always)]
pub unsafe fn pair_up<E: Element>(
    [first, second]: [Option<&[E]>; 2],
    target: &mut [u16],
    lane: usize,
) {
    assert_eq!(size_of::<E>(), size_of::<u16>());
    let first = first.unwrap_or_default();
    let target = &mut target[lane * 2..][..first.len() * 2];
    assert!(second.is_none_or(|second| second.len() == first.len()));
    // SAFETY: elements have two bytes; both runs and the target have the lengths that were checked,
    // and the caller promises the instructions.
    unsafe {
        write_pairs(
            first.as_ptr().cast(),
            second.map(|second| second.as_ptr().cast()),
            first.len(),
            target.as_mut_ptr(),
        );
    }
}

/// Writes `length` pairs of neighbouring values, one of each run; zeros for a missing one.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
unsafe fn write_pairs(
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
/// second tile 16 rows on. Runs of the right operand follow each other.
///
/// # Safety
/// As [`Core::multiply`].
#[inline(always)]
unsafe fn multiply_rows<F: Tiled>(
    registers: &TileRegisters,
    walk: Walk,
    left: *const u16,
    right: *const u16,
    left_stride: usize,
    block: *mut f32,
    add: bool,
) {
    let steps = walk.depth / Amx::<F>::STEP;
    assert!(walk.depth.is_multiple_of(Amx::<F>::STEP));
    assert!(walk.right_step == Amx::<F>::RIGHT);
    assert!(walk.rows == 1 || walk.right_row == walk.depth * Amx::<F>::RIGHT);
    // Packed tiles follow each other; rows of a map go on where they are.
    let left_step = if left_stride == 64 {
        64 * Amx::<F>::MR
    } else {
        64
    };
    let left_row = (walk.left_row * size_of::<u16>()).wrapping_sub(steps * left_step);
    let rows = Rows {
        count: walk.rows,
        steps,
        left: [left, left.wrapping_byte_add(16 * left_stride)],
        left_stride,
        left_step,
        left_row,
    };
    // SAFETY: the caller's promises.
    unsafe { F::multiply_rows(registers, rows, right, block, add) }
}

/// Runs of products; steps are of 32 products, distances in bytes.
#[derive(Clone, Copy)]
pub struct Rows {
    pub count: usize,
    pub steps: usize,
    /// The two left tiles.
    pub left: [*const u16; 2],
    /// Between neighbouring rows of a left tile.
    pub left_stride: usize,
    /// From one step to the next.
    pub left_step: usize,
    /// From the end of a run to the next.
    pub left_row: usize,
}

/// The products of one type, by its instruction. One block of assembly: nothing stays in a tile that another one would
/// have to find there.
macro_rules! tiled {
    ($F:ty, $level:expr, $refused:expr, $product:literal) => {
        impl Tiled for $F {
            // SAFETY: who has a core has found the instructions.
            const ISA: Isa = unsafe { Isa::assume($level) };
            const REFUSED: Option<u16> = $refused;

            #[inline(always)]
            unsafe fn multiply_rows(
                _: &TileRegisters,
                rows: Rows,
                right: *const u16,
                block: *mut f32,
                add: bool,
            ) {
                assert!(rows.count > 0 && rows.steps > 0);
                // SAFETY: tiles have 16 rows of 64 bytes, as the token says; every address is one that the
                // caller promises.
                unsafe {
                    asm!(
                        take_up!(),
                        // A run.
                        "3:",
                        "mov {count}, {steps}",
                        "4:",
                        "tileloadd tmm6, [{right} + {stride}]",
                        "tileloadd tmm4, [{low} + {left_stride}]",
                        concat!($product, " tmm0, tmm4, tmm6"),
                        "tileloadd tmm7, [{right} + {stride} + 64]",
                        concat!($product, " tmm1, tmm4, tmm7"),
                        "tileloadd tmm5, [{high} + {left_stride}]",
                        concat!($product, " tmm2, tmm5, tmm6"),
                        concat!($product, " tmm3, tmm5, tmm7"),
                        "add {low}, {left_step}",
                        "add {high}, {left_step}",
                        "add {right}, 2048",
                        "dec {count}",
                        "jnz 4b",
                        "add {low}, {left_row}",
                        "add {high}, {left_row}",
                        "dec {rows}",
                        "jnz 3b",
                        lay_down!(),
                        add = in(reg) usize::from(add),
                        block = in(reg) block,
                        stride = in(reg) Amx::<$F>::BLOCK_STRIDE,
                        low = inout(reg) rows.left[0] => _,
                        high = inout(reg) rows.left[1] => _,
                        right = inout(reg) right => _,
                        rows = inout(reg) rows.count => _,
                        count = out(reg) _,
                        steps = in(reg) rows.steps,
                        left_stride = in(reg) rows.left_stride,
                        left_step = in(reg) rows.left_step,
                        left_row = in(reg) rows.left_row,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    );
                }
            }
        }
    };
}

tiled!(bf16, Level::Amx, None, "tdpbf16ps");
tiled!(f16, Level::AmxFp16, Some(0x7c00), "tdpfp16ps");
