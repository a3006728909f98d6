//! Rows of a map to lanes and back, with AVX-512.

use std::arch::x86_64::{
    __m512, _mm512_add_ps, _mm512_loadu_epi32, _mm512_loadu_ps, _mm512_mask_blend_ps,
    _mm512_max_ps, _mm512_or_ps, _mm512_permutex2var_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_storeu_ps,
};

use super::super::micro::LANES;
use super::scheme::Lanes;
use crate::cpu::element::Element;

/// The largest distance between lanes.
pub const FARTHEST: usize = 8;

/// Whether lanes may be `step` values apart.
pub fn handles(step: usize) -> bool {
    step <= FARTHEST && step.is_power_of_two()
}

/// For each vector of a row, which of its values are wanted.
pub type Masks = [u16; FARTHEST];

/// Of the vectors that hold value `l * step` for each lane `l`: those values for which `wanted`.
pub fn masks(step: usize, wanted: impl Fn(usize) -> bool) -> Masks {
    let mut masks = [0; FARTHEST];
    for lane in (0..LANES).filter(|&lane| wanted(lane)) {
        let at = lane * step;
        masks[at / LANES] |= 1 << (at % LANES);
    }
    masks
}

/// Adds value `l * STEP` of `source` to each lane `l` that `masks` have; the others stay. Lanes were 0.
///
/// # Safety
/// Values of the masks are readable. The processor has AVX-512.
#[inline(always)]
pub unsafe fn gather<E: Element, const STEP: usize>(
    source: *const E,
    masks: &Masks,
    lanes: &mut Lanes,
) {
    const { assert!(STEP <= FARTHEST && STEP.is_power_of_two()) };
    /// The even ones of 32 values.
    const EVEN: [i32; LANES] = {
        let mut even = [0; LANES];
        let mut i = 0;
        while i < LANES {
            even[i] = 2 * i as i32;
            i += 1;
        }
        even
    };
    // SAFETY: the caller's promises; masks keep other values from being read.
    unsafe {
        let even = _mm512_loadu_epi32(EVEN.as_ptr());
        let mut vectors = [_mm512_setzero_ps(); STEP];
        for (i, vector) in vectors.iter_mut().enumerate() {
            *vector = E::load_lanes(source.wrapping_add(i * LANES), masks[i]);
        }
        // Half of the vectors hold every other value, and so on.
        let mut count = STEP;
        while count > 1 {
            count /= 2;
            for i in 0..count {
                vectors[i] = _mm512_permutex2var_ps(vectors[2 * i], even, vectors[2 * i + 1]);
            }
        }
        let sum = _mm512_or_ps(_mm512_loadu_ps(lanes.as_ptr()), vectors[0]);
        _mm512_storeu_ps(lanes.as_mut_ptr(), sum);
    }
}

/// How the outputs of a row of tiles lie in a row of the map, `STEP` pixels a tile.
pub struct Scatter {
    /// For each vector of the row and each pair of output columns, which value goes where.
    order: [[[i32; LANES]; 2]; FARTHEST],
    /// Which values are of the second pair.
    second: [u16; FARTHEST],
    /// Which tile each value of the row belongs to, or none.
    lanes: [[u8; LANES]; FARTHEST],
}

impl Scatter {
    /// Of tiles of `tile` outputs, `dilation` pixels apart.
    pub fn new(tile: usize, dilation: usize) -> Self {
        let mut scatter = Self {
            order: [[[0; LANES]; 2]; FARTHEST],
            second: [0; FARTHEST],
            lanes: [[u8::MAX; LANES]; FARTHEST],
        };
        let step = tile * dilation;
        for at in (0..LANES * step).filter(|at| at % dilation == 0) {
            let (vector, value) = (at / LANES, at % LANES);
            let (lane, column) = (at / step, at % step / dilation);
            scatter.order[vector][column / 2][value] = (column % 2 * LANES + lane) as i32;
            scatter.second[vector] |= ((column / 2) as u16) << value;
            scatter.lanes[vector][value] = lane as u8;
        }
        scatter
    }

    /// The masks of lanes `first..last`, of which `count` pixels lie in the row.
    pub fn masks(&self, step: usize, first: usize, last: usize, count: usize) -> Masks {
        let mut masks = [0; FARTHEST];
        for (vector, lanes) in self.lanes.iter().enumerate() {
            for (value, &lane) in lanes.iter().enumerate() {
                let lane = usize::from(lane);
                let inside = vector * LANES + value < first * step + count;
                if lane >= first && lane < last && inside {
                    masks[vector] |= 1 << value;
                }
            }
        }
        masks
    }

    /// Stores `relu(values + bias + skip)` of a row of tiles; `target` and `skip` are where lane 0's
    /// first output would lie.
    ///
    /// # Safety
    /// Values of the masks are writable, and readable in `skip`. The processor has AVX-512.
    #[inline(always)]
    pub unsafe fn store<E: Element, const TILE: usize, const STEP: usize>(
        &self,
        values: &[Lanes; TILE],
        masks: &Masks,
        bias: f32,
        skip: Option<*const E>,
        relu: bool,
        target: *mut E,
    ) {
        const { assert!(STEP <= FARTHEST && (TILE == 2 || TILE == 4)) };
        // SAFETY: the caller's promises; masks keep other values from being touched.
        unsafe {
            let load = |i: usize| _mm512_loadu_ps(values[i].as_ptr());
            let bias = _mm512_set1_ps(bias);
            for (vector, &mask) in masks.iter().enumerate().take(STEP) {
                let pick = |pair: usize| -> __m512 {
                    let order = _mm512_loadu_epi32(self.order[vector][pair].as_ptr());
                    _mm512_permutex2var_ps(load(2 * pair), order, load(2 * pair + 1))
                };
                let mut value = pick(0);
                if TILE == 4 {
                    value = _mm512_mask_blend_ps(self.second[vector], value, pick(1));
                }
                value = _mm512_add_ps(value, bias);
                if let Some(skip) = skip {
                    let skip = E::load_lanes(skip.wrapping_add(vector * LANES), mask);
                    value = _mm512_add_ps(value, skip);
                }
                if relu {
                    // In this order, NaN stays.
                    value = _mm512_max_ps(_mm512_setzero_ps(), value);
                }
                E::store_lanes(value, mask, target.wrapping_add(vector * LANES));
            }
        }
    }
}
