//! Sums on the CPU, as an operation of Burn's Flex backend.

use burn::backend::flex::FlexTensor;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, Dispatch, Flex, backend_extension};
use burn::tensor::Tensor;
use rayon::prelude::*;

use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, dispatch};
use crate::cpu::tensor::{values, with_element};

/// Values of a task.
const CHUNK: usize = 1 << 15;
/// Values that are widened to f32 at a time, on the stack.
const BLOCK: usize = 512;

/// Whether `x` is a map that this operation takes.
pub fn handles(x: &Tensor<4>) -> bool {
    crate::cpu::tensor::handles(x) && !x.device().is_autodiff()
}

pub fn sum(a: Tensor<4>, b: Tensor<4>) -> Tensor<4> {
    Tensor::from_dispatch(Dispatch::halfseg_sum(a.into_dispatch(), b.into_dispatch()))
}

/// What this module adds to a backend.
#[backend_extension(Flex)]
pub trait Sum: Backend {
    /// See [`super::sum`].
    fn halfseg_sum(a: FloatTensor<Self>, b: FloatTensor<Self>) -> FloatTensor<Self>;
}

impl Sum for Flex {
    fn halfseg_sum(a: FlexTensor, b: FlexTensor) -> FlexTensor {
        with_element!(a.dtype(), E => add::<E>(a, &b))
    }
}

fn add<E: Element + burn::tensor::Element + bytemuck::Pod>(
    a: FlexTensor,
    b: &FlexTensor,
) -> FlexTensor {
    let mut target = {
        let contiguous = a.to_contiguous();
        // What the result alone owns is not copied.
        drop(a);
        contiguous
    };
    let b = b.to_contiguous();
    let (start, length) = (target.layout().start_offset(), values::<E>(&b).len());
    let isa = Isa::best();
    target.storage_mut::<E>()[start..][..length]
        .par_chunks_mut(CHUNK)
        .zip(values::<E>(&b).par_chunks(CHUNK))
        .for_each(|(values, others)| {
            dispatch(
                isa,
                #[inline(always)]
                |isa| add_run(isa, values, others),
            );
        });
    target
}

#[inline(always)]
fn add_run<E: Element>(isa: Isa, values: &mut [E], others: &[E]) {
    let (x_buffer, y_buffer) = (&mut [0f32; BLOCK], &mut [0f32; BLOCK]);
    let sums = &mut [0f32; BLOCK];
    for (values, others) in values.chunks_mut(BLOCK).zip(others.chunks(BLOCK)) {
        let x = E::widened(isa, values, x_buffer);
        let y = E::widened(isa, others, y_buffer);
        let sums = &mut sums[..x.len()];
        for ((sum, x), y) in sums.iter_mut().zip(x).zip(y) {
            *sum = x + y;
        }
        E::narrow_run(isa, sums, values);
    }
}
