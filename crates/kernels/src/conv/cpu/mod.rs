//! Convolution on the CPU: products of small blocks, read straight from `[n, c, h, w]` maps.
//!
//! No column buffer is made. Forward and input gradient gather a strip of pixels, tap by tap, into a
//! buffer that fits a core's cache ([`direct`]); taps that lie in the padding of a whole strip are
//! skipped. The weight gradient takes pixels as the inner dimension. Depthwise
//! convolutions move along rows ([`depthwise`]). 3x3 kernels take fewer products where that pays
//! ([`winograd`]). All sums are f32, whatever the maps hold. The code is
//! generic over how blocks are multiplied ([`micro::Core`]) and compiled for each instruction set
//! ([`isa`](crate::cpu::isa)); processors with tiles multiply bf16 without widening it. Inference in half precision
//! on those has maps that lie channels last ([`channels_last`]).

#[cfg(target_arch = "x86_64")]
mod channels_last;
mod depthwise;
mod direct;
mod geometry;
mod kept;
mod micro;
mod tail;
mod weight;
mod winograd;

pub use geometry::Geometry;
pub use kept::{Owner, PackedWeights, keeps};
pub use tail::Tail;
pub use weight::Weight;

use crate::cpu::element::{Element, uninitialised};
use crate::cpu::isa::{self, Isa, Level, dispatch};
use crate::cpu::scratch::Shared;

/// How exact a forward pass has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exactness {
    /// f32 sums, within 1e-5 (2-norm): gradients follow.
    Summed,
    /// Within 1e-4: nothing but the output is wanted.
    Output,
}

/// Runs `$body` with `$core` bound to the best way to multiply `$E`.
macro_rules! with_core {
    ($isa:expr, $E:ident, $core:ident => $body:expr) => {
        match $isa.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Amx | Level::AmxFp16 if is::<$E, half::bf16>() => {
                let $core = micro::Amx::<half::bf16>::on($isa);
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Level::AmxFp16 if is::<$E, half::f16>() => {
                let $core = micro::Amx::<half::f16>::on($isa);
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Level::Amx if is::<$E, half::f16>() => {
                let $core = micro::AmxParts::<half::f16>::on($isa);
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Level::Amx | Level::AmxFp16 if is::<$E, f32>() && isa::multiplies_f32_with_tiles() => {
                let $core = micro::AmxParts::<f32>::on($isa);
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 if is::<$E, half::bf16>() => {
                let $core = micro::Avx512Bf16::on($isa);
                $body
            }
            _ => with_wide_core!($isa, $core => $body),
        }
    };
}

/// As [`with_wide_core`], for weight gradients.
macro_rules! with_weight_core {
    ($isa:expr, $core:ident => $body:expr) => {
        match $isa.level() {
            // 32 columns divide the usual numbers of channels.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 | Level::Amx | Level::AmxFp16 => {
                let $core = micro::Avx512::<12, 2>::on($isa);
                $body
            }
            _ => with_wide_core!($isa, $core => $body),
        }
    };
}

/// Runs `$body` with `$core` bound to the best way to sum products of pixels of `$E`, two of two bytes at a time; false if there
/// is none.
#[cfg(target_arch = "x86_64")]
macro_rules! with_pixel_core {
    ($isa:expr, $E:ident, $core:ident => $body:expr) => {
        match $isa.level() {
            Level::AmxFp16 if is::<$E, half::f16>() => {
                let $core = micro::Amx::<half::f16>::on($isa);
                $body
            }
            Level::Amx | Level::AmxFp16 if !is::<$E, f32>() => {
                let $core = micro::Amx::<half::bf16>::on($isa);
                $body
            }
            Level::Avx512Bf16 if is::<$E, half::bf16>() => {
                let $core = micro::Avx512Bf16::on($isa);
                $body
            }
            _ => false,
        }
    };
}

/// Runs `$body` with `$core` bound to the best way to multiply f32.
macro_rules! with_wide_core {
    ($isa:expr, $core:ident => $body:expr) => {
        match $isa.level() {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 | Level::Amx | Level::AmxFp16 => {
                let $core = micro::Avx512::<8, 3>::on($isa);
                $body
            }
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                let $core = micro::Avx2::on($isa);
                $body
            }
            _ => {
                let $core = micro::Portable;
                $body
            }
        }
    };
}

/// Whether [`forward_channels_last`] is the way to compute this on this processor.
pub fn takes_channels_last<E: Element>(geometry: &Geometry) -> bool {
    #[cfg(target_arch = "x86_64")]
    return channels_last::takes::<E>(Isa::best(), geometry);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = geometry;
        false
    }
}

/// As [`forward`], within [`Exactness::Output`], of maps that are `[n, h, w, c]`, and so is the result.
///
/// # Panics
/// If this is none that [`takes_channels_last`] is true of.
pub fn forward_channels_last<E: Element, W: Element>(
    geometry: &Geometry,
    x: &[E],
    weight: Weight<'_, W>,
    tail: Tail<'_, E>,
) -> Vec<E> {
    #[cfg(target_arch = "x86_64")]
    return channels_last::forward(Isa::best(), geometry, x, weight, tail);
    #[cfg(not(target_arch = "x86_64"))]
    {
        let _ = (x, weight.values, tail.relu);
        unreachable!("{geometry:?} is none for which maps lie channels last")
    }
}

/// `act(x * weight + bias + skip)`, all contiguous; the result is `[n, c_out, h_out, w_out]`.
pub fn forward<E: Element, W: Element>(
    geometry: &Geometry,
    x: &[E],
    weight: Weight<'_, W>,
    tail: Tail<'_, E>,
    exactness: Exactness,
) -> Vec<E> {
    forward_with(Isa::best(), geometry, x, weight, tail, exactness)
}

fn forward_with<E: Element, W: Element>(
    isa: Isa,
    geometry: &Geometry,
    x: &[E],
    weight: Weight<'_, W>,
    tail: Tail<'_, E>,
    exactness: Exactness,
) -> Vec<E> {
    let geometry = geometry.flattened();
    check_forward(&geometry, x, weight, tail);
    let [_, weight_size, length] = geometry.sizes();
    if weight_size == 0 || length == 0 {
        return without_products(isa, &geometry, tail);
    }
    if geometry.is_depthwise() {
        let mut output = vec![E::default(); length];
        depthwise::forward(isa, &geometry, x, weight, tail, &mut output);
        return output;
    }
    // Not cleared first: that would be a pass over the memory.
    let mut output = Vec::with_capacity(length);
    let target = Shared(output.as_mut_ptr());
    let kernels = winograd::Kernels::forward(&geometry, weight);
    // SAFETY: the target has room for the output.
    unsafe {
        match algorithm::<E>(isa, &geometry, exactness) {
            Algorithm::Direct => {
                let direct = |isa: Isa| with_core!(isa, E, core => direct::forward(core, &geometry, x, weight, tail, target));
                if !direct(isa) {
                    direct(without_tiles(isa));
                }
            }
            Algorithm::Winograd2 => {
                with_wide_core!(isa, core => winograd::forward::<_, E, W, 2, 4>(core, &geometry, x, kernels, tail, target))
            }
            Algorithm::Winograd4 => {
                with_wide_core!(isa, core => winograd::forward::<_, E, W, 4, 6>(core, &geometry, x, kernels, tail, target))
            }
        }
    }
    // SAFETY: both ways write every output.
    unsafe { output.set_len(length) };
    output
}

/// # Panics
/// If the operands of a forward pass have other sizes.
fn check_forward<E, W>(geometry: &Geometry, x: &[E], weight: Weight<'_, W>, tail: Tail<'_, E>) {
    let [x_size, weight_size, length] = geometry.sizes();
    assert_eq!(
        [x.len(), weight.values.len()],
        [x_size, weight_size],
        "operands of a convolution differ from {geometry:?}"
    );
    let per_channel = [tail.bias, weight.scale];
    assert!(
        per_channel
            .iter()
            .flatten()
            .all(|values| values.len() == geometry.c_out),
        "a bias and a scale have one value per output channel"
    );
    assert!(
        tail.skip.is_none_or(|skip| skip.len() == length),
        "a skip connection has the output's shape"
    );
}

/// What follows sums of nothing: there is no channel to sum over, or no output.
fn without_products<E: Element>(isa: Isa, geometry: &Geometry, tail: Tail<'_, E>) -> Vec<E> {
    let mut output = vec![E::default(); geometry.sizes()[2]];
    let plane = geometry.output[0] * geometry.output[1];
    for (index, output) in output.chunks_mut(plane).enumerate() {
        let (channel, mut sums) = (index % geometry.c_out, vec![0f32; plane]);
        dispatch(
            isa,
            #[inline(always)]
            |isa| {
                // SAFETY: what is stored are values.
                let output = unsafe { uninitialised(output) };
                tail.store(isa, channel, index * plane, &mut sums, output);
            },
        );
    }
    output
}

/// How the products of a convolution of maps are made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Algorithm {
    /// One for each tap.
    Direct,
    /// F(2x2, 3x3).
    Winograd2,
    /// F(4x4, 3x3).
    Winograd4,
}

fn algorithm<E: Element>(isa: Isa, geometry: &Geometry, exactness: Exactness) -> Algorithm {
    if has_tiles_for_halves::<E>(isa) {
        return Algorithm::Direct;
    }
    let tiles = isa.has(Level::Amx) && is::<E, f32>() && isa::multiplies_f32_with_tiles();
    let dots = isa.has(Level::Avx512Bf16) && is::<E, half::bf16>();
    let fast = tiles || dots;
    if exactness == Exactness::Output && winograd::pays_with_kernels::<4>(geometry, fast) {
        Algorithm::Winograd4
    } else if !fast && winograd::pays_with_kernels::<2>(geometry, fast) {
        // Tiles and dot products were faster wherever that was measured, and are as exact.
        Algorithm::Winograd2
    } else {
        Algorithm::Direct
    }
}

/// Tiles of bf16, also three products for one of f16, are faster than any way to save products of f32.
fn has_tiles_for_halves<E: Element>(isa: Isa) -> bool {
    isa.has(Level::Amx) && !is::<E, f32>()
}

/// Without tiles, if the operands are such that tiles cannot hold them: an f16 or f32 that is not finite is not
/// the sum of a few bf16.
fn without_tiles(isa: Isa) -> Isa {
    isa.at_most(Level::Avx512)
}

fn is<E: 'static, F: 'static>() -> bool {
    std::any::TypeId::of::<E>() == std::any::TypeId::of::<F>()
}

/// The gradient of `x`, given that of the output.
pub fn input_gradient<E: Element, W: Element>(
    geometry: &Geometry,
    weight: &[W],
    gradient: &[E],
) -> Vec<E> {
    input_gradient_with(Isa::best(), geometry, weight, gradient)
}

fn input_gradient_with<E: Element, W: Element>(
    isa: Isa,
    geometry: &Geometry,
    weight: &[W],
    gradient: &[E],
) -> Vec<E> {
    let geometry = geometry.flattened();
    let [length, weight_size, gradient_size] = geometry.sizes();
    assert_eq!(
        [weight.len(), gradient.len()],
        [weight_size, gradient_size],
        "operands of a convolution differ from {geometry:?}"
    );
    if weight_size == 0 || length == 0 {
        return vec![E::default(); length];
    }
    if geometry.is_depthwise() {
        let mut result = vec![E::default(); length];
        depthwise::input_gradient(isa, &geometry, weight, gradient, &mut result);
        return result;
    }
    let mut result = Vec::with_capacity(length);
    // With a stride some pixels may have been seen by no tap.
    if geometry.options.stride != [1, 1] {
        result.resize(length, E::default());
    }
    let target = Shared(result.as_mut_ptr());
    // SAFETY: the target has room for the result; without a stride all of it is written.
    unsafe {
        match winograd::Kernels::input_gradient(&geometry, weight) {
            Some((turned, kernels))
                if algorithm::<E>(isa, &turned, Exactness::Summed) == Algorithm::Winograd2 =>
            {
                let tail = Tail::none();
                with_wide_core!(isa, core => winograd::forward::<_, E, W, 2, 4>(core, &turned, gradient, kernels, tail, target));
            }
            _ => {
                let direct = |isa: Isa| with_core!(isa, E, core => direct::input_gradient(core, &geometry, weight, gradient, target));
                if !direct(isa) {
                    direct(without_tiles(isa));
                }
            }
        }
        result.set_len(length);
    }
    result
}

/// The gradient of `weight`, given that of the output: rounded to what the maps hold, as that of a cast
/// weight would be.
pub fn weight_gradient<E: Element, W: Element>(
    geometry: &Geometry,
    x: &[E],
    gradient: &[E],
) -> Vec<W> {
    weight_gradient_with(Isa::best(), geometry, x, gradient)
}

fn weight_gradient_with<E: Element, W: Element>(
    isa: Isa,
    geometry: &Geometry,
    x: &[E],
    gradient: &[E],
) -> Vec<W> {
    let geometry = geometry.flattened();
    let mut result = vec![W::default(); geometry.weight_shape().iter().product()];
    geometry.check(x, &result, gradient);
    if x.is_empty() || gradient.is_empty() {
        return result;
    }
    if geometry.is_depthwise() {
        depthwise::weight_gradient(isa, &geometry, x, gradient, &mut result);
    } else {
        #[cfg(target_arch = "x86_64")]
        if with_pixel_core!(isa, E, core => direct::weight_gradient_pairs(core, &geometry, x, gradient, &mut result))
        {
            return result;
        }
        if !has_tiles_for_halves::<E>(isa) && winograd::pays::<2>(&geometry) {
            with_weight_core!(isa, core => winograd::weight_gradient(core, &geometry, x, gradient, &mut result))
        } else {
            with_weight_core!(isa, core => direct::weight_gradient(core, &geometry, x, gradient, &mut result))
        }
    }
    result
}

#[cfg(test)]
mod tests;
