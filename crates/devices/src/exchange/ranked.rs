//! Between processes, of which each may have several devices.

use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};

use super::Exchange;
use crate::{ExchangePrecision, Ranks, Worker};

/// One of the devices of several processes. Values go between the devices of a process as its own exchange
/// sends them, and between processes through the memory of the host: the first device of each speaks for its
/// process, in the thread that runs it.
#[derive(Debug)]
pub struct RankedExchange {
    local: Arc<dyn Exchange>,
    ranks: Ranks,
    gradients: ExchangePrecision,
}

impl RankedExchange {
    /// The member for `local`, one of the devices of this process, of which all of `ranks` have equally many.
    /// Gradients travel between processes in the precision `gradients`, all else in f32.
    pub fn new(local: Arc<dyn Exchange>, ranks: Ranks, gradients: ExchangePrecision) -> Self {
        Self {
            local,
            ranks,
            gradients,
        }
    }

    /// Does `between` with the values of the first device, and gives what comes of it, `length` values, to all
    /// devices of this process.
    fn by_first(
        &self,
        own: Tensor<1>,
        length: usize,
        between: impl FnOnce(Vec<f32>) -> Vec<f32>,
    ) -> Tensor<1> {
        let device = own.device();
        let found = (self.local.rank() == 0).then(|| values(between(host(own)), &device));
        if self.local.size() == 1 {
            return found.expect("the only device is the first");
        }
        // Nothing is rounded by adding zeros.
        self.local
            .sum(found.unwrap_or_else(|| Tensor::zeros([length], &device)))
    }
}

fn host(own: Tensor<1>) -> Vec<f32> {
    let data = own.into_data();
    data.try_into_vec().expect("what is exchanged is f32")
}

fn values(found: Vec<f32>, device: &Device) -> Tensor<1> {
    let length = found.len();
    Tensor::from_data(TensorData::new(found, [length]), device)
}

impl Exchange for RankedExchange {
    fn rank(&self) -> usize {
        self.ranks.rank() * self.local.size() + self.local.rank()
    }

    fn size(&self) -> usize {
        self.ranks.size() * self.local.size()
    }

    fn gather(&self, own: Tensor<1>) -> Vec<Tensor<1>> {
        let [length] = own.dims();
        let here = match self.local.size() {
            1 => own.inner(),
            _ => Tensor::cat(self.local.gather(own), 0),
        };
        let ranks = &self.ranks;
        let all = self.by_first(here, length * self.size(), |here| {
            ranks.gather_values(&here)
        });
        let part = |rank| all.clone().narrow(0, rank * length, length);
        (0..self.size()).map(part).collect()
    }

    fn sum(&self, own: Tensor<1>) -> Tensor<1> {
        let [length] = own.dims();
        let here = match self.local.size() {
            1 => own.inner(),
            _ => self.local.sum(own),
        };
        self.by_first(here, length, |mut here| {
            self.ranks.sum(&mut here, ExchangePrecision::F32);
            here
        })
    }

    /// Over one flat buffer: a network has hundreds of gradients, most of them small.
    fn sum_gradients(&self, own: Vec<Tensor<1>>) -> Vec<Tensor<1>> {
        let lengths: Vec<usize> = own.iter().map(|row| row.dims()[0]).collect();
        let Some(device) = own.first().map(Tensor::device) else {
            return own;
        };
        let device = device.inner();
        let here = match self.local.size() {
            1 => own,
            _ => self.local.sum_gradients(own),
        };
        let found = (self.local.rank() == 0).then(|| {
            let mut flat = Vec::with_capacity(lengths.iter().sum());
            for row in here {
                flat.extend_from_slice(&host(row.inner()));
            }
            self.ranks.sum(&mut flat, self.gradients);
            let mut rest = flat.as_slice();
            let rows = lengths.iter().map(|length| {
                let row;
                (row, rest) = rest.split_at(*length);
                values(row.to_vec(), &device)
            });
            rows.collect::<Vec<_>>()
        });
        if self.local.size() == 1 {
            return found.expect("the only device is the first");
        }
        let nothing = || {
            let zeros = |length: &usize| Tensor::zeros([*length], &device);
            lengths.iter().map(zeros).collect()
        };
        self.local.sum_gradients(found.unwrap_or_else(nothing))
    }

    fn give_up(&self) {
        self.local.give_up();
    }
}

impl Worker {
    /// These workers of one process as some of those of all processes of `ranks`, each of which has equally
    /// many; alone they stay what they are. Gradients travel between processes in the precision `gradients`.
    ///
    /// The first of them has to run in a thread of which the process has one at a time.
    pub fn of_ranks(workers: Vec<Self>, ranks: &Ranks, gradients: ExchangePrecision) -> Vec<Self> {
        if ranks.size() == 1 {
            return workers;
        }
        let ranked = workers.into_iter().map(|worker| {
            let local = worker.exchange();
            Self::new(RankedExchange::new(local, ranks.clone(), gradients))
        });
        ranked.collect()
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::HostExchange;
    use crate::ranks::wire_tests::Threads;

    /// Two processes of two devices each, all of them threads here.
    #[test]
    fn devices_of_several_processes_exchange_as_those_of_one() {
        let flex = Device::flex();
        let row = |rank: usize| {
            Tensor::<1>::from_floats(
                [0.11 * (rank + 1) as f32, -3.0, rank as f32],
                &Device::flex(),
            )
        };
        std::thread::scope(|threads| {
            for link in Threads::group(2) {
                let ranks = Ranks::of(Arc::new(link));
                let workers = Worker::group(&[flex.clone(), flex.clone()]);
                let workers = Worker::of_ranks(workers, &ranks, ExchangePrecision::Bf16);
                for worker in workers {
                    threads.spawn(move || {
                        assert_eq!(worker.size(), 4);
                        let own = row(worker.rank());
                        let all: Vec<_> =
                            worker.gather(own.clone()).into_iter().map(host).collect();
                        let expected: Vec<_> = (0..4).map(|rank| host(row(rank))).collect();
                        assert_eq!(all, expected);
                        let sum = host(worker.sum(own.clone()));
                        let halves = [row(0) + row(1), row(2) + row(3)];
                        let [first, second] = halves.map(host);
                        let expected: Vec<_> =
                            first.iter().zip(&second).map(|(a, b)| a + b).collect();
                        assert_eq!(sum, expected);
                        let gradients = worker.sum_gradients(vec![own.clone(), own * 2.0]);
                        let [once, twice] = gradients.try_into().unwrap();
                        let (once, twice) = (host(once), host(twice));
                        assert_eq!((once[1], twice[1]), (-12.0, -24.0));
                        assert_ne!(once[0], expected[0], "rounded to bf16");
                        assert!((once[0] - 1.1).abs() < 0.01);
                    });
                }
            }
        });
    }

    #[test]
    fn workers_of_one_process_stay_what_they_are() {
        let workers = HostExchange::group(2).into_iter().map(Worker::new);
        let workers =
            Worker::of_ranks(workers.collect(), &Ranks::default(), ExchangePrecision::F16);
        assert_eq!(workers.iter().map(Worker::size).collect::<Vec<_>>(), [2, 2]);
    }
}
