//! Numbers as they travel between processes.

use std::fmt;
use std::str::FromStr;

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use serde::{Deserialize, Serialize};

use super::link::Link;

/// Values of a bucket: enough to fill any network, few enough that what is kept beside it is small.
const BUCKET: usize = 4 << 20;
/// Up to so many values, all of them go to everybody, which takes one exchange instead of two.
const SMALL: usize = 4 << 10;

/// How gradients travel between processes; they are added up in f32.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum ExchangePrecision {
    /// As they are.
    #[default]
    F32,
    /// In half of the bytes, with 11 bits of precision, exponents down to 2^-24 and up to 65504.
    F16,
    /// In half of the bytes, with 8 bits of precision and the exponents of f32.
    Bf16,
}

/// A text that names no such precision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected f32, f16 or bf16, found `{found}`")]
pub struct ParseExchangePrecisionError {
    /// The text.
    pub found: String,
}

impl FromStr for ExchangePrecision {
    type Err = ParseExchangePrecisionError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::Bf16),
            _ => Err(ParseExchangePrecisionError {
                found: text.to_owned(),
            }),
        }
    }
}

impl fmt::Display for ExchangePrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

impl TryFrom<String> for ExchangePrecision {
    type Error = ParseExchangePrecisionError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ExchangePrecision> for String {
    fn from(precision: ExchangePrecision) -> String {
        precision.to_string()
    }
}

impl ExchangePrecision {
    /// Bytes of a value on its way.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// A number as it travels.
trait Wire: bytemuck::Pod + Default {
    fn pack(values: &[f32], into: &mut [Self]);
    fn unpack(values: &[Self], into: &mut [f32]);
    /// Adds the values to sums in f32.
    fn add(values: &[Self], sums: &mut [f32]);
    /// The values themselves, if they travel as they are.
    fn as_they_are(values: &mut [f32]) -> Option<&mut [u8]> {
        let _ = values;
        None
    }
}

impl Wire for f32 {
    fn pack(values: &[f32], into: &mut [Self]) {
        into.copy_from_slice(values);
    }

    fn unpack(values: &[Self], into: &mut [f32]) {
        into.copy_from_slice(values);
    }

    fn add(values: &[Self], sums: &mut [f32]) {
        for (sum, value) in sums.iter_mut().zip(values) {
            *sum += value;
        }
    }

    fn as_they_are(values: &mut [f32]) -> Option<&mut [u8]> {
        Some(bytes_mut(values))
    }
}

/// For types of the `half` crate.
macro_rules! wire {
    ($type:ty) => {
        impl Wire for $type {
            fn pack(values: &[f32], into: &mut [Self]) {
                into.convert_from_f32_slice(values);
            }

            fn unpack(values: &[Self], into: &mut [f32]) {
                values.convert_to_f32_slice(into);
            }

            fn add(values: &[Self], sums: &mut [f32]) {
                let mut wide = [0.0; 1024];
                let rows = values.chunks(wide.len()).zip(sums.chunks_mut(1024));
                for (values, sums) in rows {
                    let wide = &mut wide[..values.len()];
                    values.convert_to_f32_slice(wide);
                    f32::add(wide, sums);
                }
            }
        }
    };
}
wire!(f16);
wire!(bf16);

pub(super) fn bytes_mut<T: bytemuck::Pod>(values: &mut [T]) -> &mut [u8] {
    bytemuck::cast_slice_mut(values)
}

/// [`Ranks::gather_values`](super::Ranks::gather_values): each part goes with its length, since processes that do
/// not run the same operations would otherwise take what was meant for others.
pub(super) fn gather(link: &dyn Link, own: &[f32]) -> Vec<f32> {
    let length = own.len();
    let mark = f32::from_bits(u32::try_from(length).expect("such gathers are of a few values"));
    let marked = [own, &[mark]].concat();
    let mut all = vec![0.0f32; marked.len() * link.size()];
    link.all_gather(bytemuck::cast_slice(&marked), bytes_mut(&mut all));
    let parts = all.chunks_exact(length + 1).enumerate();
    let parts = parts.flat_map(|(rank, part)| {
        assert_eq!(
            part[length].to_bits(),
            mark.to_bits(),
            "{} and {} exchanged different numbers of values",
            link.name(link.rank()),
            link.name(rank)
        );
        part[..length].iter().copied()
    });
    parts.collect()
}

/// [`Ranks::sum`](super::Ranks::sum).
pub(super) fn sum(link: &dyn Link, values: &mut [f32], precision: ExchangePrecision) {
    match precision {
        ExchangePrecision::F32 => sum_of::<f32>(link, values),
        ExchangePrecision::F16 => sum_of::<f16>(link, values),
        ExchangePrecision::Bf16 => sum_of::<bf16>(link, values),
    }
}

/// Each process adds up one part of a bucket, in the order of the processes, and all get the sums: what MPI adds
/// up is in no order that it promises, nor the same on all. As many bytes cross the network as in a ring.
fn sum_of<T: Wire>(link: &dyn Link, values: &mut [f32]) {
    let size = link.size();
    let mut scratch = Scratch::<T>::default();
    for bucket in values.chunks_mut(BUCKET) {
        let split = match bucket.len() > SMALL {
            true => bucket.len() - bucket.len() % size,
            false => 0,
        };
        let (equal, rest) = bucket.split_at_mut(split);
        if !equal.is_empty() {
            scratch.sum_parts(link, equal);
        }
        if !rest.is_empty() {
            sum_small::<T>(link, rest);
        }
    }
}

/// What is kept from bucket to bucket.
struct Scratch<T> {
    sent: Vec<T>,
    received: Vec<T>,
    sums: Vec<f32>,
}

impl<T> Default for Scratch<T> {
    fn default() -> Self {
        Self {
            sent: Vec::new(),
            received: Vec::new(),
            sums: Vec::new(),
        }
    }
}

impl<T: Wire> Scratch<T> {
    /// Of a number of values that the processes divide.
    fn sum_parts(&mut self, link: &dyn Link, values: &mut [f32]) {
        let part = values.len() / link.size();
        self.received.resize(values.len(), T::default());
        self.sums.resize(part, 0.0);
        match T::as_they_are(values) {
            Some(own) => link.all_to_all(own, bytes_mut(&mut self.received)),
            None => {
                self.sent.resize(values.len(), T::default());
                T::pack(values, &mut self.sent);
                let sent = bytemuck::cast_slice(&self.sent);
                link.all_to_all(sent, bytes_mut(&mut self.received));
            }
        }
        let mut parts = self.received.chunks_exact(part);
        let first = parts.next().expect("there is at least one process");
        T::unpack(first, &mut self.sums);
        for other in parts {
            T::add(other, &mut self.sums);
        }
        match T::as_they_are(values) {
            Some(all) => link.all_gather(bytemuck::cast_slice(&self.sums), all),
            None => {
                let own = &mut self.sent[..part];
                T::pack(&self.sums, own);
                let own = bytemuck::cast_slice(own);
                link.all_gather(own, bytes_mut(&mut self.received));
                T::unpack(&self.received, values);
            }
        }
    }
}

/// All values go to all.
fn sum_small<T: Wire>(link: &dyn Link, values: &mut [f32]) {
    let mut sent = vec![T::default(); values.len()];
    T::pack(values, &mut sent);
    let mut all = vec![T::default(); values.len() * link.size()];
    link.all_gather(bytemuck::cast_slice(&sent), bytes_mut(&mut all));
    let mut parts = all.chunks_exact(values.len());
    T::unpack(parts.next().expect("there is at least one process"), values);
    for other in parts {
        T::add(other, values);
    }
    // As sums of larger buckets are, so that none depends on the bucket that it is in.
    T::pack(values, &mut sent);
    T::unpack(&sent, values);
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use burn::tensor::TensorData;

    use super::*;
    use crate::HostExchange;

    /// Threads of this process in place of processes.
    #[derive(Debug)]
    pub struct Threads(HostExchange);

    impl Threads {
        pub fn group(size: usize) -> Vec<Self> {
            HostExchange::group(size).into_iter().map(Self).collect()
        }

        fn exchange(&self, own: &[u8]) -> Vec<Vec<u8>> {
            let own = TensorData::new(own.to_vec(), [own.len()]);
            let all = self.0.exchange(own).into_iter();
            all.map(|bytes| bytes.try_into_vec().unwrap()).collect()
        }
    }

    impl Link for Threads {
        fn rank(&self) -> usize {
            crate::Exchange::rank(&self.0)
        }
        fn size(&self) -> usize {
            crate::Exchange::size(&self.0)
        }
        fn local(&self) -> [usize; 2] {
            [self.rank(), self.size()]
        }
        fn name(&self, _: usize) -> &str {
            "a thread"
        }
        fn all_gather(&self, own: &[u8], all: &mut [u8]) {
            all.copy_from_slice(&self.exchange(own).concat());
        }
        fn all_gather_of(&self, own: &[u8], _: &[usize], all: &mut [u8]) {
            self.all_gather(own, all);
        }
        fn all_to_all(&self, own: &[u8], all: &mut [u8]) {
            let part = own.len() / self.size();
            let mine = |from: Vec<u8>| from[self.rank() * part..][..part].to_vec();
            let parts: Vec<_> = self.exchange(own).into_iter().map(mine).collect();
            all.copy_from_slice(&parts.concat());
        }
        fn broadcast(&self, bytes: &mut [u8]) {
            bytes.copy_from_slice(&self.exchange(bytes)[0]);
        }
        fn all_reduce(&self, own: &[f32], sums: &mut [f32]) {
            sums.copy_from_slice(own);
            sum(self, sums, ExchangePrecision::F32);
        }
        fn set_time_out(&self, _: Option<Duration>) {}
        fn abort(&self, _: i32) -> ! {
            panic!("aborted")
        }
        fn finish(&self) {}
    }

    /// The sums of `size` rows of `length` values, as each process gets them.
    fn sums(size: usize, length: usize, precision: ExchangePrecision) -> Vec<Vec<f32>> {
        let links = Threads::group(size);
        std::thread::scope(|threads| {
            let started: Vec<_> = links
                .into_iter()
                .map(|link| {
                    threads.spawn(move || {
                        let mut values = row(link.rank(), length);
                        sum(&link, &mut values, precision);
                        values
                    })
                })
                .collect();
            let joined = started.into_iter().map(|thread| thread.join().unwrap());
            joined.collect()
        })
    }

    /// Values whose sums depend on their order.
    fn row(rank: usize, length: usize) -> Vec<f32> {
        let value = |place: usize| {
            let scattered = (place * 2_654_435_761 + rank * 40_503) % 65_536;
            (scattered as f32 / 65_536.0 - 0.5) * (1 << (place % 7)) as f32 / 3.0
        };
        (0..length).map(value).collect()
    }

    #[test]
    fn sums_are_those_in_the_order_of_the_processes_for_any_number_of_values() {
        for size in [1, 2, 3, 5] {
            for length in [1, 7, SMALL, SMALL + 1, SMALL + size, BUCKET + 5] {
                let rows: Vec<_> = (0..size).map(|rank| row(rank, length)).collect();
                let expected = |round: &dyn Fn(f32) -> f32| -> Vec<f32> {
                    let sum = |place: usize| {
                        let values = rows.iter().map(|row| round(row[place]));
                        round(values.reduce(|a, b| a + b).unwrap())
                    };
                    (0..length).map(sum).collect()
                };
                for (precision, round) in [
                    (ExchangePrecision::F32, &(|x| x) as &dyn Fn(f32) -> f32),
                    (ExchangePrecision::F16, &|x| f16::from_f32(x).to_f32()),
                    (ExchangePrecision::Bf16, &|x| bf16::from_f32(x).to_f32()),
                ] {
                    let expected = expected(round);
                    for found in sums(size, length, precision) {
                        assert!(found == expected, "{size}, {length}, {precision}");
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let links = Threads::group(2);
        std::thread::scope(|threads| {
            for link in links {
                threads.spawn(move || {
                    let mut values = vec![1.0; SMALL + 2];
                    if link.rank() == 1 {
                        (values[0], values[1]) = (f32::INFINITY, f32::NAN);
                        // Finite in f32, beyond f16.
                        values[2] = 1e6;
                    }
                    sum(&link, &mut values, ExchangePrecision::F16);
                    assert_eq!(values[0], f32::INFINITY);
                    assert!(values[1].is_nan());
                    assert_eq!(values[2], f32::INFINITY, "the step is skipped then");
                    assert_eq!(values[3], 2.0);
                });
            }
        });
    }

    #[test]
    fn precisions_read_what_they_print() {
        for text in ["f32", "f16", "bf16"] {
            let precision: ExchangePrecision = text.parse().unwrap();
            assert_eq!(precision.to_string(), text);
        }
        let error = "f64".parse::<ExchangePrecision>().unwrap_err();
        assert_eq!(error.to_string(), "expected f32, f16 or bf16, found `f64`");
    }
}
