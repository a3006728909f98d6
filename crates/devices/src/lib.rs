#![doc = include_str!("../README.md")]

mod choice;
#[cfg(feature = "cuda")]
mod driver;
mod exchange;
mod memory;
mod open;
mod ranks;
mod worker;

pub use choice::{DeviceChoice, ParseDeviceError};
pub use exchange::{Exchange, HostExchange, NcclExchange, RankedExchange, Route};
pub use memory::{Bytes, available_memory, keep_freed_memory, resident_memory};
pub use open::{DeviceError, is_host};
pub use ranks::{
    ExchangePrecision, Launched, ParseExchangePrecisionError, RankFailure, Ranks, RanksError,
};
pub use worker::Worker;
