//! The products of transformed maps and kernels.

use std::marker::PhantomData;
use std::ops::Range;

use super::super::micro::{Core, Walk};
use crate::cpu::isa::{Registers, Work};
use crate::cpu::scratch::Shared;

/// Adds the products of one point to its sums, `[panel of rows][panel of columns][MR][NR]`.
pub struct Multiply<C> {
    /// `[panel][product][MR]`.
    pub left: Shared<f32>,
    /// `[panel][product][NR]`.
    pub right: Shared<f32>,
    pub sums: Shared<f32>,
    /// Panels of rows, and of columns.
    pub rows: Range<usize>,
    pub panels: Range<usize>,
    /// Panels of columns that the sums hold.
    pub all_panels: usize,
    pub depth: usize,
    /// Products that are summed at a time: their columns stay in a cache while rows pass by.
    pub slice: usize,
    /// Whether there are sums already.
    pub add: bool,
    pub core: PhantomData<C>,
}

impl<C: Core<Value = f32>> Work for Multiply<C> {
    /// # Safety
    /// Both operands hold these panels; the sums have room for all blocks, and no other thread touches
    /// these.
    #[inline(always)]
    unsafe fn run(self, registers: &Registers) {
        let slices = self.depth.div_ceil(self.slice);
        for panel in self.panels.clone() {
            for slice in 0..slices {
                let [first, last] = [slice, slice + 1].map(|cut| self.depth * cut / slices);
                let walk = Walk::packed::<C>(last - first);
                let add = self.add || slice > 0;
                for row in self.rows.clone() {
                    let left = self.left.at((row * self.depth + first) * C::MR);
                    let right = self.right.at((panel * self.depth + first) * C::NR);
                    let block = self.sums.at((row * self.all_panels + panel) * C::BLOCK);
                    // SAFETY: the caller's promise.
                    unsafe { C::multiply(registers, walk, left, right, block, add) };
                }
            }
        }
    }
}
