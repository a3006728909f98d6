//! What people write for a device.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Ranks;
use crate::open::{visible_cuda, visible_wgpu};

/// Where to compute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// The CPU, through Burn's Flex backend.
    #[default]
    Flex,
    /// The NVIDIA GPU of this number.
    Cuda(usize),
    /// The GPU of this number, through Burn's wgpu backend.
    Wgpu(usize),
}

/// A text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected cpu (or flex), cuda, cuda:N, wgpu or wgpu:N, found `{found}`")]
pub struct ParseDeviceError {
    /// The text.
    pub found: String,
}

impl FromStr for DeviceChoice {
    type Err = ParseDeviceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbered = || {
            let (backend, number) = text.split_once(':')?;
            let number = number.parse().ok()?;
            match backend {
                "cuda" => Some(Self::Cuda(number)),
                "wgpu" => Some(Self::Wgpu(number)),
                _ => None,
            }
        };
        match text {
            "flex" | "cpu" => Ok(Self::Flex),
            "cuda" => Ok(Self::Cuda(0)),
            "wgpu" => Ok(Self::Wgpu(0)),
            _ => numbered().ok_or_else(|| ParseDeviceError {
                found: text.to_owned(),
            }),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flex => f.write_str("flex"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            Self::Wgpu(index) => write!(f, "wgpu:{index}"),
        }
    }
}

impl DeviceChoice {
    /// The device that this means in a process with so many `devices` of this kind: where several processes
    /// run on one machine, the GPUs of each are counted from its own first. A launcher that shows each process
    /// its own GPUs alone has done so.
    pub fn of_rank(self, ranks: &Ranks, devices: usize) -> Self {
        let [place, _] = ranks.local();
        match self {
            Self::Cuda(index) => Self::Cuda(counted(index, place, devices, visible_cuda())),
            Self::Wgpu(index) => Self::Wgpu(counted(index, place, devices, visible_wgpu())),
            Self::Flex => Self::Flex,
        }
    }
}

fn counted(index: usize, place: usize, devices: usize, visible: usize) -> usize {
    match visible == devices {
        true => index,
        false => place * devices + index,
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = ParseDeviceError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> String {
        choice.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_read_what_they_print() {
        for (text, choice) in [
            ("flex", DeviceChoice::Flex),
            ("cuda:3", DeviceChoice::Cuda(3)),
            ("wgpu:1", DeviceChoice::Wgpu(1)),
        ] {
            assert_eq!(text.parse(), Ok(choice));
            assert_eq!(choice.to_string(), text);
            let json = serde_json::to_string(&choice).unwrap();
            assert_eq!(json, format!("\"{text}\""));
            assert_eq!(serde_json::from_str::<DeviceChoice>(&json).unwrap(), choice);
        }
        assert_eq!("cpu".parse(), Ok(DeviceChoice::Flex));
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
    }

    #[test]
    fn processes_of_a_machine_take_gpus_one_after_the_other() {
        // Eight GPUs, two for each process.
        assert_eq!(counted(0, 0, 2, 8), 0);
        assert_eq!(counted(1, 3, 2, 8), 7);
        // A launcher that shows each process its own two.
        assert_eq!(counted(1, 3, 2, 2), 1);
        let alone = Ranks::default();
        assert_eq!(
            DeviceChoice::Cuda(3).of_rank(&alone, 1),
            DeviceChoice::Cuda(3)
        );
    }

    #[test]
    fn nonsense_is_named_with_what_was_expected() {
        for text in ["", "gpu", "cuda:", "cuda:-1", "flex:0", "CUDA"] {
            let error = text.parse::<DeviceChoice>().unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")) && error.contains("cuda:N"));
        }
    }
}
