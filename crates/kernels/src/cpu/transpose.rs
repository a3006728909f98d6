//! From `[n, c, h, w]` to `[n, h, w, c]` in memory, and back.

use burn::backend::flex::FlexTensor;
use burn::tensor::DType;

#[cfg(target_arch = "x86_64")]
use super::isa::{Isa, Level};
use super::tensor::shape;

/// The values of a map as `[n, h, w, c]`: where they lie so, no copy.
pub fn channels_last(map: &FlexTensor) -> FlexTensor {
    let [n, c, h, w] = shape(map);
    let turned = map.permute(&[0, 2, 3, 1]);
    if map.is_contiguous() && !turned.is_contiguous() {
        #[cfg(target_arch = "x86_64")]
        if let Some(turned) = two_bytes::turned(map, [n, c, h * w], [n, h, w, c]) {
            return turned;
        }
    }
    turned.to_contiguous()
}

/// The values of a map as `[n, c, h, w]`: where they lie so, no copy.
pub fn planar(map: &FlexTensor) -> FlexTensor {
    let [n, c, h, w] = shape(map);
    if lies_channels_last(map) {
        #[cfg(target_arch = "x86_64")]
        if let Some(turned) = two_bytes::turned(map, [n, h * w, c], [n, c, h, w]) {
            return turned;
        }
    }
    map.to_contiguous()
}

/// Whether the values lie as `[n, h, w, c]` and not as `[n, c, h, w]`.
pub fn lies_channels_last(map: &FlexTensor) -> bool {
    !map.is_contiguous() && map.permute(&[0, 2, 3, 1]).is_contiguous()
}

/// Whether values of this type take two bytes and are floats.
fn is_half(dtype: DType) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
}

#[cfg(target_arch = "x86_64")]
mod two_bytes {
    use std::arch::x86_64::*;

    use half::{bf16, f16};

    use super::*;
    use crate::cpu::element::Element;
    use crate::cpu::isa::{Registers, Work, compiled};
    use crate::cpu::scratch::Shared;
    use crate::cpu::tasks;
    use crate::cpu::tensor::tensor;

    /// Rows and columns of a block.
    const SIDE: usize = 32;

    /// `[n, rows, columns]` as `[n, columns, rows]`, of that shape; nothing where values have not two bytes, or the
    /// processor no AVX-512.
    pub fn turned(map: &FlexTensor, sizes: [usize; 3], shape: [usize; 4]) -> Option<FlexTensor> {
        if !Isa::best().has(Level::Avx512) || !is_half(map.dtype()) {
            return None;
        }
        let of = map.layout().start_offset();
        Some(match map.dtype() {
            DType::F16 => tensor(turn(&map.storage::<f16>()[of..], sizes), shape),
            _ => tensor(turn(&map.storage::<bf16>()[of..], sizes), shape),
        })
    }

    fn turn<E: Element>(source: &[E], [n, rows, columns]: [usize; 3]) -> Vec<E> {
        const { assert!(size_of::<E>() <= size_of::<f32>()) };
        assert_eq!(size_of::<E>(), size_of::<u16>());
        let length = n * rows * columns;
        assert!(source.len() >= length);
        let mut target = Vec::with_capacity(length);
        let to = Shared::<E>(target.as_mut_ptr());
        let bands = columns.div_ceil(SIDE);
        tasks::each(n * bands, |task| {
            let (image, band) = (task / bands, task % bands);
            let first = band * SIDE;
            let work = Band {
                source: source[image * rows * columns + first..].as_ptr().cast(),
                target: to.at((image * columns + first) * rows).cast(),
                rows,
                columns,
                count: SIDE.min(columns - first),
            };
            // SAFETY: who calls has found AVX-512; each band is one task's own.
            unsafe { compiled(Isa::assume(Level::Avx512), work) };
        });
        // SAFETY: all bands were written.
        unsafe { target.set_len(length) };
        target
    }

    /// Neighbouring columns of one image.
    struct Band {
        source: *const u16,
        target: *mut u16,
        rows: usize,
        columns: usize,
        count: usize,
    }

    impl Work for Band {
        #[inline(always)]
        unsafe fn run(self, _: &Registers) {
            for row in (0..self.rows).step_by(SIDE) {
                let size = [SIDE.min(self.rows - row), self.count];
                let source = self.source.wrapping_add(row * self.columns);
                let target = self.target.wrapping_add(row);
                // SAFETY: the block is part of the band.
                unsafe { turn_block(source, self.columns, size, target, self.rows) };
            }
        }
    }

    /// Values `lane ^ step` of two rows change places; the first or the second row of what results.
    const fn order(step: u16, second: bool) -> [u16; SIDE] {
        let mut order = [0; SIDE];
        let mut lane = 0;
        while lane < SIDE as u16 {
            // From 32 on: of the other row.
            order[lane as usize] = match (lane & step == 0, second) {
                (true, false) => lane,
                (true, true) => lane + step,
                (false, false) => SIDE as u16 + lane - step,
                (false, true) => SIDE as u16 + lane,
            };
            lane += 1;
        }
        order
    }

    /// Turns a block of at most 32 rows and columns; rows are `from` values apart, and columns `to` where they go.
    ///
    /// # Safety
    /// The block is readable, and writable where it goes; the processor has AVX-512 F and BW.
    #[target_feature(enable = "avx512f,avx512bw")]
    #[inline]
    unsafe fn turn_block(
        source: *const u16,
        from: usize,
        [rows, columns]: [usize; 2],
        target: *mut u16,
        to: usize,
    ) {
        const ORDERS: [[[u16; SIDE]; 2]; 5] = [
            [order(16, false), order(16, true)],
            [order(8, false), order(8, true)],
            [order(4, false), order(4, true)],
            [order(2, false), order(2, true)],
            [order(1, false), order(1, true)],
        ];
        let mask = |count: usize| u32::MAX >> (SIDE - count);
        let (of_row, of_column) = (mask(columns), mask(rows));
        let mut lines = [_mm512_setzero_si512(); SIDE];
        for (row, line) in lines.iter_mut().enumerate().take(rows) {
            // SAFETY: the mask keeps to the block.
            *line = unsafe { _mm512_maskz_loadu_epi16(of_row, source.add(row * from).cast()) };
        }
        let mut step = SIDE / 2;
        for orders in &ORDERS {
            // SAFETY: an order has the size of a register.
            let [first, second] = unsafe {
                [
                    _mm512_loadu_si512(orders[0].as_ptr().cast()),
                    _mm512_loadu_si512(orders[1].as_ptr().cast()),
                ]
            };
            for row in (0..SIDE).filter(|row| row & step == 0) {
                let (a, b) = (lines[row], lines[row + step]);
                lines[row] = _mm512_permutex2var_epi16(a, first, b);
                lines[row + step] = _mm512_permutex2var_epi16(a, second, b);
            }
            step /= 2;
        }
        for (column, line) in lines.iter().enumerate().take(columns) {
            // SAFETY: as above.
            unsafe { _mm512_mask_storeu_epi16(target.add(column * to).cast(), of_column, *line) };
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::flex::FlexTensor;
    use burn::tensor::{DType, TensorData};
    use half::{bf16, f16};

    use super::*;

    #[test]
    fn maps_are_turned_and_turned_back_as_burn_does_it() {
        for (n, c, h, w) in [
            (1, 3, 5, 7),
            (2, 33, 4, 19),
            (1, 64, 1, 31),
            (3, 1, 6, 6),
            (2, 70, 9, 1),
        ] {
            let count = n * c * h * w;
            let halves = (0..count)
                .map(|i| f16::from_bits(i as u16))
                .collect::<Vec<_>>();
            let brains = (0..count)
                .map(|i| bf16::from_bits(i as u16))
                .collect::<Vec<_>>();
            let singles = (0..count).map(|i| i as f32).collect::<Vec<_>>();
            let shape = [n, c, h, w];
            for data in [
                TensorData::new(halves, shape),
                TensorData::new(brains, shape),
                TensorData::new(singles, shape),
            ] {
                let map = FlexTensor::from_data(data);
                let last = channels_last(&map);
                let expected = map.permute(&[0, 2, 3, 1]).to_contiguous();
                assert!(
                    last.is_contiguous() && last.bytes() == expected.bytes(),
                    "{shape:?}"
                );
                let back = last.permute(&[0, 3, 1, 2]);
                assert_eq!(lies_channels_last(&back), c > 1 && h * w > 1, "{shape:?}");
                assert!(planar(&back).bytes() == map.bytes(), "{shape:?}");
            }
        }
        assert!(!is_half(DType::F32));
    }
}
