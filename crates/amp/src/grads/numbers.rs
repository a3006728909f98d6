//! Numbers of a step that a program wants to know, read together with what the step has to know.

use burn::tensor::{Device, FloatDType, Tensor};

use super::measure::read_back;

/// What was given to [`ScaledGrads::with_numbers`](crate::ScaledGrads::with_numbers), from
/// [`UnscaledGrads::take_numbers`](crate::UnscaledGrads::take_numbers).
#[must_use = "read the numbers"]
pub struct Numbers(State);

enum State {
    Read(Vec<f32>),
    Waiting(Vec<Tensor<1>>),
}

impl Numbers {
    pub(super) fn new(numbers: Vec<Tensor<1>>) -> Self {
        Self(State::Waiting(numbers))
    }

    /// The numbers on `device` that have not been read yet, for a transfer that is made anyway; those that
    /// it brings are for [`take_from`](Self::take_from).
    pub(super) fn waiting(&self, device: &Device) -> Vec<Tensor<1>> {
        match &self.0 {
            State::Read(_) => Vec::new(),
            State::Waiting(numbers) => {
                let there = numbers.iter().map(|row| row.clone().to_device(device));
                there.collect()
            }
        }
    }

    /// Takes the first of the numbers that a transfer brought, those of [`waiting`](Self::waiting), and
    /// gives back the others.
    pub(super) fn take_from<'a>(&mut self, brought: &'a [f32]) -> &'a [f32] {
        let State::Waiting(numbers) = &self.0 else {
            return brought;
        };
        let count = numbers.iter().map(|row| row.dims()[0]).sum();
        let (own, others) = brought.split_at(count);
        self.0 = State::Read(own.to_vec());
        others
    }

    /// The numbers, those of one call of `with_numbers` after those of the other. Waits for the device only
    /// if nothing of the step did: with a disabled scaler and without clipping.
    pub fn read(self) -> Vec<f32> {
        match self.0 {
            State::Read(numbers) => numbers,
            State::Waiting(numbers) => read_back(numbers),
        }
    }
}

/// Numbers as they travel: in f32, without gradients.
pub(super) fn plain(numbers: Tensor<1>) -> Tensor<1> {
    let numbers = numbers.detach().without_autodiff();
    numbers.cast(FloatDType::F32)
}
