//! What follows the sums of a convolution on the CPU.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{
    __m512, _CMP_LT_OQ, _mm512_add_ps, _mm512_cmp_ps_mask, _mm512_mask_mov_ps,
    _mm512_maskz_loadu_ps, _mm512_set1_ps, _mm512_setzero_ps,
};
use std::mem::MaybeUninit;

use crate::cpu::element::Element;
use crate::cpu::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::cpu::isa::Level;

/// What follows the sums before they are rounded: `act(sums + bias + skip)`.
#[derive(Clone, Copy)]
pub struct Tail<'a, E> {
    /// One value per output channel.
    pub bias: Option<&'a [f32]>,
    /// A map of the output's shape.
    pub skip: Option<&'a [E]>,
    /// Whether negative values become 0. NaN stays.
    pub relu: bool,
}

impl<E> Tail<'_, E> {
    /// Nothing follows.
    pub fn none() -> Self {
        Self {
            bias: None,
            skip: None,
            relu: false,
        }
    }
}

impl<E: Element> Tail<'_, E> {
    /// Finishes neighbouring pixels of one output channel, the first of which is value `at` of the
    /// output, and rounds them into all of `target`, which is as long. `values` may change.
    #[inline(always)]
    pub fn store(
        &self,
        isa: Isa,
        channel: usize,
        at: usize,
        values: &mut [f32],
        target: &mut [MaybeUninit<E>],
    ) {
        assert_eq!(values.len(), target.len());
        #[cfg(target_arch = "x86_64")]
        if isa.has(Level::Avx512) {
            // SAFETY: the processor has them.
            unsafe { self.store_avx512(isa, channel, at, values, target) };
            return;
        }
        self.apply(isa, channel, at, values);
        E::write_run(isa, values, target);
    }

    /// As [`Self::store`], in one pass.
    ///
    /// # Safety
    /// The processor has `isa`, which is at least AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn store_avx512(
        &self,
        isa: Isa,
        channel: usize,
        at: usize,
        values: &[f32],
        target: &mut [MaybeUninit<E>],
    ) {
        const LANES: usize = 16;
        let skip = self.skip.map(|skip| &skip[at..at + values.len()]);
        let bias = self.bias.map(|bias| bias[channel]);
        for first in (0..values.len()).step_by(2 * LANES) {
            let mask = u32::MAX >> (2 * LANES - (2 * LANES).min(values.len() - first));
            // SAFETY: the masks keep to the slices, which are as long as each other; the caller
            // promises the instructions.
            unsafe {
                let (low, high) = (mask as u16, (mask >> LANES) as u16);
                let sums = [
                    self.finish(bias, skip, values, first, low),
                    self.finish(bias, skip, values, first + LANES, high),
                ];
                let target = target.as_mut_ptr().add(first).cast();
                E::store_two(isa, sums, mask, target);
            }
        }
    }

    /// Finishes those of sixteen `values` from `first` on that `mask` has.
    ///
    /// # Safety
    /// They are there, also in `skip`; the processor has AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn finish(
        &self,
        bias: Option<f32>,
        skip: Option<&[E]>,
        values: &[f32],
        first: usize,
        mask: u16,
    ) -> __m512 {
        // SAFETY: the caller's promises.
        unsafe {
            let mut sums = _mm512_maskz_loadu_ps(mask, values.as_ptr().wrapping_add(first));
            if let Some(bias) = bias {
                sums = _mm512_add_ps(sums, _mm512_set1_ps(bias));
            }
            self.finish_lanes(
                sums,
                skip.map(|skip| skip.as_ptr().wrapping_add(first)),
                mask,
            )
        }
    }

    /// What follows the bias.
    ///
    /// # Safety
    /// As [`Self::finish`].
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    unsafe fn finish_lanes(&self, mut sums: __m512, skip: Option<*const E>, mask: u16) -> __m512 {
        // SAFETY: the caller's promises.
        unsafe {
            if let Some(skip) = skip {
                sums = _mm512_add_ps(sums, E::load_lanes(skip, mask));
            }
            if self.relu {
                let zero = _mm512_setzero_ps();
                let negative = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(sums, zero);
                sums = _mm512_mask_mov_ps(sums, negative, zero);
            }
            sums
        }
    }

    /// As [`Self::store`], of those of 32 neighbouring channels of one pixel from `channel` on that `mask` has, of a
    /// map that lies channels last. The first is value `at` of the output.
    ///
    /// # Safety
    /// They are there, also in `skip` and at `target`; the processor has `isa`, which is at least AVX-512.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub unsafe fn store_channels(
        &self,
        isa: Isa,
        [channel, at]: [usize; 2],
        [low, high]: [__m512; 2],
        mask: u32,
        target: *mut E,
    ) {
        const LANES: usize = 16;
        // SAFETY: the caller's promises.
        unsafe {
            let (mut sums, masks) = ([low, high], [mask as u16, (mask >> LANES) as u16]);
            if let Some(bias) = self.bias {
                let bias = bias.as_ptr().wrapping_add(channel);
                sums[0] = _mm512_add_ps(sums[0], _mm512_maskz_loadu_ps(masks[0], bias));
                let bias = bias.wrapping_add(LANES);
                sums[1] = _mm512_add_ps(sums[1], _mm512_maskz_loadu_ps(masks[1], bias));
            }
            let skip = self.skip.map(|skip| skip.as_ptr().wrapping_add(at));
            sums[0] = self.finish_lanes(sums[0], skip, masks[0]);
            let skip = skip.map(|skip| skip.wrapping_add(LANES));
            sums[1] = self.finish_lanes(sums[1], skip, masks[1]);
            E::store_two(isa, sums, mask, target);
        }
    }

    /// As [`Self::store`], but does not round.
    #[inline(always)]
    pub fn apply(&self, isa: Isa, channel: usize, at: usize, values: &mut [f32]) {
        if let Some(bias) = self.bias {
            let bias = bias[channel];
            values.iter_mut().for_each(|value| *value += bias);
        }
        if let Some(skip) = self.skip {
            const LENGTH: usize = 16;
            let skip = &skip[at..at + values.len()];
            for (values, skip) in values.chunks_mut(LENGTH).zip(skip.chunks(LENGTH)) {
                let mut wide = [0f32; LENGTH];
                E::widen_run(isa, skip, &mut wide[..skip.len()]);
                for (value, skip) in values.iter_mut().zip(&wide) {
                    *value += skip;
                }
            }
        }
        if self.relu {
            for value in values {
                *value = if *value < 0.0 { 0.0 } else { *value };
            }
        }
    }
}
