//! Several threads or processes that train one network together, each with a part of the batch.

use std::cell::RefCell;
use std::sync::Arc;

use burn::tensor::{Device, Tensor};

use crate::{Exchange, HostExchange, NcclExchange, Route};

thread_local! {
    static WORKER: RefCell<Option<Worker>> = const { RefCell::new(None) };
}

/// One of several that train copies of one network, each on its own device with an equal part of the
/// batch.
///
/// Inside [`scope`](Self::scope) the layers of a network can compute as if the batch were whole, as
/// those of `halfseg-layers` do: normalisations take their statistics over all parts, and dropout draws
/// for all images and takes the choices for its own. All workers must run the same operations in the
/// same order; each waits for the others where they exchange sums. All get the same sums to the last
/// bit.
///
/// ```
/// use burn::tensor::{Device, Tensor};
/// use halfseg_devices::Worker;
///
/// let workers = Worker::group(&[Device::flex(), Device::flex()]);
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
    exchange: Arc<dyn Exchange>,
}

impl Route {
    /// The workers of a new group, one for each of `devices`, in their order.
    ///
    /// # Panics
    /// If `devices` is empty; with [`Route::Nccl`] if a device is named twice.
    pub fn group(self, devices: &[Device]) -> Vec<Worker> {
        match self {
            Self::Host => workers(HostExchange::group(devices.len())),
            Self::Nccl => workers(NcclExchange::group(devices)),
        }
    }
}

fn workers(members: Vec<impl Exchange + 'static>) -> Vec<Worker> {
    members.into_iter().map(Worker::new).collect()
}

impl Worker {
    /// The workers of a new group in this process, one for each of `devices`, in their order. Values
    /// take the way that [`Route::between`] finds. A device may be named several times.
    ///
    /// # Panics
    /// If `devices` is empty.
    pub fn group(devices: &[Device]) -> Vec<Self> {
        Route::between(devices).group(devices)
    }

    /// The worker that exchanges values by `exchange`.
    pub fn new(exchange: impl Exchange + 'static) -> Self {
        Self {
            exchange: Arc::new(exchange),
        }
    }

    /// The worker of the scope that this thread is in.
    pub fn current() -> Option<Self> {
        WORKER.with_borrow(Clone::clone)
    }

    /// The place of this worker in its group, from 0.
    pub fn rank(&self) -> usize {
        self.exchange.rank()
    }

    /// The number of workers.
    pub fn size(&self) -> usize {
        self.exchange.size()
    }

    /// Runs `body` as this worker's part of a step. If it panics, so do the other workers where they
    /// wait for this one.
    pub fn scope<R>(&self, body: impl FnOnce() -> R) -> R {
        struct Leave(Option<Worker>, Worker);
        impl Drop for Leave {
            fn drop(&mut self) {
                WORKER.set(self.0.take());
                if std::thread::panicking() {
                    self.1.exchange.give_up();
                }
            }
        }
        let _leave = Leave(WORKER.replace(Some(self.clone())), self.clone());
        body()
    }

    /// The values that all workers gave, in their order; see [`Exchange::gather`].
    ///
    /// # Shapes
    /// f32 `[values]`, to one of the same for each worker
    ///
    /// # Panics
    /// If another worker panicked, or gave another number of values: they do not run the same
    /// operations.
    pub fn gather(&self, own: Tensor<1>) -> Vec<Tensor<1>> {
        self.exchange.gather(own)
    }

    /// The sum of the values that all workers gave; see [`Exchange::sum`].
    ///
    /// # Shapes
    /// f32 `[values]`, to the same
    ///
    /// # Panics
    /// As [`gather`](Self::gather) does.
    pub fn sum(&self, own: Tensor<1>) -> Tensor<1> {
        self.exchange.sum(own)
    }

    /// The sums of several gradients; see [`Exchange::sum_gradients`].
    ///
    /// # Shapes
    /// f32 `[values]` each, to the same
    ///
    /// # Panics
    /// As [`gather`](Self::gather) does.
    pub fn sum_gradients(&self, own: Vec<Tensor<1>>) -> Vec<Tensor<1>> {
        self.exchange.sum_gradients(own)
    }

    pub(crate) fn exchange(&self) -> Arc<dyn Exchange> {
        self.exchange.clone()
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn exchanges_follow_each_other_without_mixing() {
        let workers = Worker::group(&vec![Device::flex(); 3]);
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

    #[test]
    fn values_between_devices_that_are_not_different_gpus_go_through_the_host() {
        for devices in [vec![], vec![Device::flex()], vec![Device::flex(); 2]] {
            assert_eq!(Route::between(&devices), Route::Host);
        }
    }

    #[test]
    #[should_panic(expected = "at least one worker")]
    fn a_group_without_workers_is_refused() {
        Worker::group(&[]);
    }

    #[test]
    fn nobody_waits_for_a_worker_that_panicked() {
        let workers = Worker::group(&[Device::flex(), Device::flex()]);
        let [first, second]: [Worker; 2] = workers.try_into().unwrap();
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
