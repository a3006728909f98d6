//! Several threads that train one network together, each with a part of the batch.

use std::cell::RefCell;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use burn::tensor::distributed::{ReduceOperation, all_reduce};
use burn::tensor::{Device, Tensor, TensorData};

thread_local! {
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };
}

/// One of several threads that train copies of one network, each on its own device with an equal part
/// of the batch.
///
/// Inside [`scope`](Self::scope) the layers of this crate compute as if the batch were whole:
/// normalisations take their statistics over all parts, and dropout draws for all images and takes
/// the choices for its own. All workers must run the same operations in the same order; each waits for
/// the others where they exchange sums. All get the same sums to the last bit.
///
/// Values pass through the host's memory, or with [`group_on`](Self::group_on) from GPU to GPU.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use halfseg_layers::Worker;
///
/// let workers = Worker::group(2);
/// std::thread::scope(|threads| {
///     for (number, worker) in workers.into_iter().enumerate() {
///         threads.spawn(move || {
///             let own = Tensor::<1>::from_floats([number as f32], &Device::flex());
///             assert_eq!(worker.sum(own).into_scalar::<f32>(), 1.0);
///         });
///     }
/// });
/// ```
#[derive(Clone, Debug)]
pub struct Worker {
    rank: usize,
    group: Arc<Group>,
}

#[derive(Debug)]
struct Group {
    size: usize,
    /// Where the workers compute, if values go from device to device.
    devices: Option<Vec<Device>>,
    state: Mutex<State>,
    changed: Condvar,
}

/// What the workers of a group have given for the exchange that is under way.
#[derive(Debug)]
struct State {
    given: Vec<Option<TensorData>>,
    /// Workers that have taken what all gave.
    taken: usize,
    /// Whether a worker panicked, for which the others would wait forever.
    failed: bool,
}

impl Worker {
    /// The workers of a new group of `size`, in their order.
    ///
    /// # Panics
    /// If `size` is 0.
    pub fn group(size: usize) -> Vec<Self> {
        Self::new_group(size, None)
    }

    /// The workers of a new group, one for each of `devices`, in their order. They exchange values by
    /// Burn's `all_reduce`, which Burn 0.22 has for NVIDIA GPUs, over NCCL: `libnccl.so` has to be where
    /// the loader looks for libraries.
    ///
    /// # Panics
    /// If `devices` is empty or names one twice. Exchanges panic on devices without `all_reduce`.
    pub fn group_on(devices: &[Device]) -> Vec<Self> {
        let devices: Vec<_> = devices
            .iter()
            .map(|device| device.clone().inner())
            .collect();
        for (place, device) in devices.iter().enumerate() {
            assert!(
                !devices[..place].contains(device),
                "{device:?} has more than one worker of a group"
            );
        }
        Self::new_group(devices.len(), Some(devices))
    }

    fn new_group(size: usize, devices: Option<Vec<Device>>) -> Vec<Self> {
        assert!(size > 0, "a group has at least one worker");
        let group = Arc::new(Group {
            size,
            devices,
            state: Mutex::new(State {
                given: vec![None; size],
                taken: 0,
                failed: false,
            }),
            changed: Condvar::new(),
        });
        let worker = |rank| Self {
            rank,
            group: group.clone(),
        };
        (0..size).map(worker).collect()
    }

    /// The worker of the scope that this thread is in.
    pub fn current() -> Option<Self> {
        WORKER.with_borrow(Clone::clone)
    }

    /// The place of this worker in its group, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of workers.
    pub fn size(&self) -> usize {
        self.group.size
    }

    /// Runs `body` as this worker's part of a step. If it panics, so do the other workers where they
    /// wait for this one.
    pub fn scope<R>(&self, body: impl FnOnce() -> R) -> R {
        struct Leave(Option<Worker>, Worker);
        impl Drop for Leave {
            fn drop(&mut self) {
                WORKER.set(self.0.take());
                if std::thread::panicking() {
                    self.1.lock().failed = true;
                    self.1.group.changed.notify_all();
                }
            }
        }
        let _leave = Leave(WORKER.replace(Some(self.clone())), self.clone());
        body()
    }

    /// The values that all workers gave, in their order, on the device of `own`, without autodiff.
    /// Waits for the others.
    ///
    /// # Shapes
    /// f32 `[values]`, to one of the same for each worker
    ///
    /// # Panics
    /// If another worker panicked, or gave another number of values: they do not run the same
    /// operations.
    pub fn gather(&self, own: Tensor<1>) -> Vec<Tensor<1>> {
        match &self.group.devices {
            None => self.gather_on_host(own),
            Some(devices) => {
                let [length] = own.dims();
                self.meet(length);
                // Burn has no all-gather: the sum of rows that are 0 but for a worker's own part, which
                // is exact.
                let row = self.placed(own.inner());
                let all = all_reduce(row, ReduceOperation::Sum, devices.clone()).resolve();
                let part = |rank| all.clone().narrow(0, rank * length, length);
                (0..self.size()).map(part).collect()
            }
        }
    }

    /// The sum of the values that all workers gave, on the device of `own`, without autodiff. Waits for
    /// the others.
    ///
    /// # Shapes
    /// f32 `[values]`, to the same
    ///
    /// # Panics
    /// As [`gather`](Self::gather) does.
    pub fn sum(&self, own: Tensor<1>) -> Tensor<1> {
        match &self.group.devices {
            None => {
                let sum = self.gather_on_host(own).into_iter().reduce(|a, b| a + b);
                sum.expect("a group has at least one worker")
            }
            Some(devices) => {
                self.meet(own.dims()[0]);
                all_reduce(own.inner(), ReduceOperation::Sum, devices.clone()).resolve()
            }
        }
    }

    /// `own` in the place of this worker in a row of zeros that has room for all.
    fn placed(&self, own: Tensor<1>) -> Tensor<1> {
        let ([length], device) = (own.dims(), own.device());
        let mut row = vec![Tensor::zeros([length], &device); self.size()];
        row[self.rank] = own;
        Tensor::cat(row, 0)
    }

    /// Waits until all workers have come to the same exchange. In one between devices a worker that
    /// panicked would be waited for on the GPU, forever.
    fn meet(&self, length: usize) {
        let lengths = self.exchange(TensorData::from([length as i64]));
        let same = lengths.windows(2).all(|pair| pair[0] == pair[1]);
        assert!(same, "workers exchanged different numbers of values");
    }

    fn gather_on_host(&self, own: Tensor<1>) -> Vec<Tensor<1>> {
        let device = own.device().inner();
        // Burn's fused backends keep a queue for each thread; a tensor in two of them can be freed by
        // one before the other has read it.
        let own = own.inner().into_data();
        let length = own.num_elements();
        let all = self.exchange(own).into_iter().map(|values| {
            assert_eq!(
                values.num_elements(),
                length,
                "workers exchanged different numbers of values"
            );
            Tensor::from_data(values, &device)
        });
        all.collect()
    }

    fn exchange(&self, own: TensorData) -> Vec<TensorData> {
        let mut state = self.wait(self.lock(), |state| state.given[self.rank].is_none());
        state.given[self.rank] = Some(own);
        self.group.changed.notify_all();
        let mut state = self.wait(state, |state| state.given.iter().all(Option::is_some));
        let all = state.given.iter().flatten().cloned().collect();
        state.taken += 1;
        if state.taken == self.group.size {
            state.taken = 0;
            state.given.fill(None);
            self.group.changed.notify_all();
        }
        all
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in another worker is found out by its flag.
        let state = self.group.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        ready: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        loop {
            assert!(!state.failed, "another worker of this step panicked");
            if ready(&state) {
                return state;
            }
            let woken = self.group.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Device;

    #[test]
    fn exchanges_follow_each_other_without_mixing() {
        let workers = Worker::group(3);
        std::thread::scope(|threads| {
            for worker in workers {
                threads.spawn(move || {
                    for round in 0..200 {
                        let own = [(10 * round + worker.rank()) as f32];
                        let own = Tensor::<1>::from_floats(own, &Device::flex());
                        let all: Vec<f32> = worker
                            .gather(own)
                            .into_iter()
                            .map(|value| value.into_scalar::<f32>())
                            .collect();
                        let expected = [0, 1, 2].map(|rank| (10 * round + rank) as f32);
                        assert_eq!(all, expected);
                    }
                });
            }
        });
    }

    /// Between devices a sum of rows stands in for a gather.
    #[test]
    fn the_sum_of_placed_parts_has_each_worker_s_part_in_its_place() {
        let rows = Worker::group(3).into_iter().map(|worker| {
            let own = [1.5, -2.0].map(|value| value * (1 + worker.rank()) as f32);
            worker.placed(Tensor::from_floats(own, &Device::flex()))
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
        Worker::group_on(&[Device::flex(), Device::flex()]);
    }

    #[test]
    fn nobody_waits_for_a_worker_that_panicked() {
        let [first, second]: [Worker; 2] = Worker::group(2).try_into().unwrap();
        let threads = [
            std::thread::spawn(move || {
                first.scope(|| {
                    let own = Tensor::<1>::zeros([1], &Device::flex());
                    first.gather(own);
                })
            }),
            std::thread::spawn(move || second.scope(|| panic!("out of memory"))),
        ];
        for thread in threads {
            assert!(thread.join().is_err());
        }
        assert!(Worker::current().is_none());
    }
}
