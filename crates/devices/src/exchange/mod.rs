//! How values get from one member of a group to the others.

mod host;
mod nccl;
mod ranked;

use std::fmt;

use burn::tensor::{Device, Tensor};

pub use host::HostExchange;
pub use nccl::NcclExchange;
pub use ranked::RankedExchange;

use crate::open::reaches_over_nccl;

/// One member of a group that exchanges values.
///
/// All members run the same operations in the same order, and each waits for the others in each. All get
/// the same values, to the last bit. Results are on the device of what was given, without autodiff.
pub trait Exchange: fmt::Debug + Send + Sync {
    /// The place of this member in its group, from 0.
    fn rank(&self) -> usize;

    /// The number of members.
    fn size(&self) -> usize;

    /// The values that all members gave, in their order.
    ///
    /// # Shapes
    /// f32 `[values]`, to one of the same for each member
    ///
    /// # Panics
    /// If another member gave up, or gave another number of values: they do not run the same
    /// operations.
    fn gather(&self, own: Tensor<1>) -> Vec<Tensor<1>>;

    /// The sum of the values that all members gave.
    ///
    /// # Shapes
    /// f32 `[values]`, to the same
    ///
    /// # Panics
    /// As [`gather`](Self::gather) does.
    fn sum(&self, own: Tensor<1>) -> Tensor<1> {
        let sum = self.gather(own).into_iter().reduce(|a, b| a + b);
        sum.expect("a group has at least one member")
    }

    /// The sums of several rows, each as [`sum`](Self::sum) has it or, where exchanges are told to, with values
    /// rounded on their way: of gradients, which need less precision than statistics.
    ///
    /// # Shapes
    /// f32 `[values]` each, to the same
    ///
    /// # Panics
    /// As [`gather`](Self::gather) does.
    fn sum_gradients(&self, own: Vec<Tensor<1>>) -> Vec<Tensor<1>> {
        own.into_iter().map(|row| self.sum(row)).collect()
    }

    /// Tells the others that this member gives nothing any more; they panic where they wait for it.
    fn give_up(&self);
}

/// The way that values take between the devices of one process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Route {
    /// Through the host's memory.
    Host,
    /// From GPU to GPU, by Burn's `all_reduce` over NCCL.
    Nccl,
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "through the host's memory",
            Self::Nccl => "over NCCL",
        })
    }
}

impl Route {
    /// NCCL between different GPUs of NVIDIA, if its library is there; Burn offers it for nothing else.
    pub fn between(devices: &[Device]) -> Self {
        let twice = |place: usize| devices[..place].contains(&devices[place]);
        match devices.len() > 1 && !(0..devices.len()).any(twice) && reaches_over_nccl(devices) {
            true => Self::Nccl,
            false => Self::Host,
        }
    }
}
