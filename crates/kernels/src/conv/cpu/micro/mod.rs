//! The innermost loops: blocks of products, one way for each instruction set.

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod amx_parts;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512_bf16;
mod interleave;
mod portable;

#[cfg(target_arch = "x86_64")]
pub use amx::{Amx, Rows, Tiled, are_taken, copy_bits};
#[cfg(target_arch = "x86_64")]
pub use amx_parts::{AmxParts, split_run};
#[cfg(target_arch = "x86_64")]
pub use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub use avx512::Avx512;
#[cfg(target_arch = "x86_64")]
pub use avx512_bf16::Avx512Bf16;
pub use interleave::interleave;
pub use portable::Portable;

use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, Registers};

/// One way to multiply blocks. Whoever has a value of it has found that the processor has the instructions.
///
/// A block has `MR` rows (channels that result) and `NR` columns (pixels). The left operand is packed
/// as [`left_at`](Self::left_at) says; the right one has, for each `PAIR` of products, `PAIR` values a
/// column. Where a value has several parts, all second ones of a step of the left operand, and of a
/// `PAIR` of the right one, follow its first ones, and so on.
pub trait Core: Send + Sync + 'static {
    /// What packed operands hold.
    type Value: bytemuck::Pod + Default + Send + Sync;
    /// The instructions that it needs. For code that was given a core.
    const ISA: Isa;
    /// Rows of a block.
    const MR: usize;
    /// Columns of a block; a multiple of [`LANES`].
    const NR: usize;
    /// Values of a block.
    const BLOCK: usize = Self::MR * Self::NR;
    /// Packed values that an element becomes, at most [`MOST_PARTS`]: their sum is the element.
    const PARTS: usize = 1;
    /// Packed values of a row of blocks for each product.
    const LEFT: usize = Self::MR * Self::PARTS;
    /// Packed values of a column of blocks for each product.
    const RIGHT: usize = Self::NR * Self::PARTS;
    /// Products that lie side by side in a packed operand.
    const PAIR: usize;
    /// Products are summed in steps of this many; the rest of the last step is zero.
    const STEP: usize;
    /// Products that are summed before a block is stored: the right operand's `DEPTH x NR` values
    /// stay in or near the first-level cache. A multiple of `STEP`.
    const DEPTH: usize;
    /// Values of right operands that fill about half of a second-level cache.
    const STRIP: usize;

    /// Where product `step` of row `lane` lies; its next part follows `MR * STEP` values on.
    fn left_at(step: usize, lane: usize) -> usize;

    /// Elements as packed values, part by part. Whether the parts mean what the elements do: those
    /// of a number that is not finite do not.
    ///
    /// # Safety
    /// The processor has [`ISA`](Self::ISA) but for tiles.
    unsafe fn values<E: Element>(elements: &[E], parts: [&mut [Self::Value]; MOST_PARTS]) -> bool;

    /// Packs neighbouring pixels of `PAIR` channels, of which the second may be missing, side by
    /// side, from column `lane` of the `NR` that `target` has. Returns what [`values`](Self::values) does.
    ///
    /// # Safety
    /// The processor has [`ISA`](Self::ISA).
    unsafe fn gather<E: Element>(
        channels: [Option<&[E]>; 2],
        target: &mut [Self::Value],
        lane: usize,
    ) -> bool;

    /// Sets `block[i][j]` to `sum over steps of left[step][i] * right[step][j]`, or adds that to it:
    /// the sum starts from zero and is added at the end, since short sums lose fewer bits than one
    /// long one.
    ///
    /// # Safety
    /// For each run and step of `walk`, `LEFT` values at `left` and `RIGHT` at `right` are readable;
    /// `BLOCK` values at `block` are readable and writable. The processor has [`ISA`](Self::ISA).
    ///
    /// # Panics
    /// If `registers` are not those of code for [`ISA`](Self::ISA), and it needs any.
    unsafe fn multiply(
        registers: &Registers,
        walk: Walk,
        left: *const Self::Value,
        right: *const Self::Value,
        block: *mut f32,
        add: bool,
    );
}

/// Channels of either map in a block of [`PixelCore`].
#[cfg(target_arch = "x86_64")]
pub const CHANNELS: usize = 32;

/// One way to multiply the rows of a map, where they lie, by those of another, whose pixels are packed in pairs: products
/// of pixels are summed. Whoever has a value of it has found that the processor has the instructions.
#[cfg(target_arch = "x86_64")]
pub trait PixelCore: Send + Sync + 'static {
    /// What is multiplied, of two bytes.
    type Held: Tiled;
    /// The instructions that it needs.
    const ISA: Isa;
    /// Pixels are summed in steps of this many; the rest of a run's last step is zero.
    const SPAN: usize;

    /// Sets `block[i][j]` to `sum over pixels of left[i][pixel] * right[pixel][j]`, or adds that to it. Rows of `left` are
    /// `left_stride` values apart, and runs of it as `walk` says; `right` has pair after pair `[CHANNELS][2]`.
    ///
    /// # Safety
    /// For each run and pixel of `walk`, the value of each of [`CHANNELS`] rows at `left`, and `CHANNELS` values at `right`
    /// are readable; `CHANNELS x CHANNELS` values at `block` are readable and writable. The processor has
    /// [`ISA`](Self::ISA).
    ///
    /// # Panics
    /// If `registers` are not those of code for [`ISA`](Self::ISA), and it needs any; if a run is no whole number of steps.
    unsafe fn multiply_pixels(
        registers: &Registers,
        walk: Walk,
        left: *const u16,
        right: *const u16,
        left_stride: usize,
        block: *mut f32,
        add: bool,
    );
}

/// The most [`Core::PARTS`].
pub const MOST_PARTS: usize = 3;

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
            right_step: C::RIGHT,
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
    unsafe fn values<E: Element>(elements: &[E], [target, ..]: [&mut [f32]; MOST_PARTS]) -> bool {
        E::widen_run(<C as Wide>::ISA, elements, &mut target[..elements.len()]);
        true
    }

    #[inline(always)]
    unsafe fn gather<E: Element>(
        channels: [Option<&[E]>; 2],
        target: &mut [f32],
        lane: usize,
    ) -> bool {
        let source = channels[0].unwrap_or_default();
        E::widen_run(
            <C as Wide>::ISA,
            source,
            &mut target[lane..][..source.len()],
        );
        true
    }

    #[inline(always)]
    unsafe fn multiply(
        _: &Registers,
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
