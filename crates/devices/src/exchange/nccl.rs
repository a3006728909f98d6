//! From GPU to GPU of NVIDIA.

use std::sync::Arc;

use burn::tensor::distributed::{ReduceOperation, all_reduce};
use burn::tensor::{Device, Tensor, TensorData};

use super::{Exchange, HostExchange};

/// A thread of a process whose group exchanges values by Burn's `all_reduce`, which Burn 0.22 has for
/// NVIDIA GPUs, over NCCL: `libnccl.so` has to be where the loader looks for libraries.
///
/// Members meet on the host first, since one that gave up would be waited for on the GPU, forever.
#[derive(Debug)]
pub struct NcclExchange {
    host: HostExchange,
    devices: Arc<[Device]>,
}

impl NcclExchange {
    /// The members of a new group, one for each of `devices`, in their order.
    ///
    /// # Panics
    /// If `devices` is empty or names one twice. Exchanges panic on devices without `all_reduce`.
    pub fn group(devices: &[Device]) -> Vec<Self> {
        let devices: Arc<[Device]> = devices
            .iter()
            .map(|device| device.clone().inner())
            .collect();
        for (place, device) in devices.iter().enumerate() {
            assert!(
                !devices[..place].contains(device),
                "{device:?} has more than one worker of a group"
            );
        }
        let members = HostExchange::group(devices.len()).into_iter();
        let member = |host| Self {
            host,
            devices: devices.clone(),
        };
        members.map(member).collect()
    }

    /// Waits until all members have come to the same exchange.
    fn meet(&self, length: usize) {
        let lengths = self.host.exchange(TensorData::from([length as i64]));
        let same = lengths.windows(2).all(|pair| pair[0] == pair[1]);
        assert!(same, "workers exchanged different numbers of values");
    }

    fn all_reduce(&self, own: Tensor<1>) -> Tensor<1> {
        all_reduce(own, ReduceOperation::Sum, self.devices.to_vec()).resolve()
    }
}

impl Exchange for NcclExchange {
    fn rank(&self) -> usize {
        self.host.rank()
    }

    fn size(&self) -> usize {
        self.host.size()
    }

    /// Burn has no all-gather: the sum of rows that are 0 but for a member's own part, which is exact.
    fn gather(&self, own: Tensor<1>) -> Vec<Tensor<1>> {
        let [length] = own.dims();
        self.meet(length);
        let all = self.all_reduce(placed(own.inner(), self.rank(), self.size()));
        let part = |rank| all.clone().narrow(0, rank * length, length);
        (0..self.size()).map(part).collect()
    }

    fn sum(&self, own: Tensor<1>) -> Tensor<1> {
        self.meet(own.dims()[0]);
        self.all_reduce(own.inner())
    }

    fn give_up(&self) {
        self.host.give_up();
    }
}

/// `own` in the place of member `rank` in a row of zeros that has room for all.
fn placed(own: Tensor<1>, rank: usize, size: usize) -> Tensor<1> {
    let ([length], device) = (own.dims(), own.device());
    let mut row = vec![Tensor::zeros([length], &device); size];
    row[rank] = own;
    Tensor::cat(row, 0)
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn the_sum_of_placed_parts_has_each_worker_s_part_in_its_place() {
        let rows = (0..3).map(|rank| {
            let own = [1.5, -2.0].map(|value| value * (1 + rank) as f32);
            placed(Tensor::from_floats(own, &Device::flex()), rank, 3)
        });
        let sum = rows.reduce(|a, b| a + b).unwrap().into_data();
        assert_eq!(
            sum.try_into_vec::<f32>().unwrap(),
            [1.5, -2.0, 3.0, -4.0, 4.5, -6.0]
        );
    }

    #[test]
    #[should_panic(expected = "more than one worker")]
    fn a_device_has_one_worker_where_values_go_between_devices() {
        NcclExchange::group(&[Device::flex(), Device::flex()]);
    }
}
