//! What may be written for a flag, so that `--help` and completions list it.

use std::ffi::OsStr;
use std::str::FromStr;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, Command, ValueEnum};
use halfseg_segmentor::Naming;

/// Networks.
pub const METHODS: &[&str] = &["fcn", "pspnet", "deeplabv3", "deeplabv3plus"];
/// Backbones.
pub const DEPTHS: &[&str] = &["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"];
/// Dtypes of the computation.
pub const PRECISIONS: &[&str] = &["f32", "f16", "bf16"];
/// Devices; a GPU's name may end with its number.
pub const DEVICES: &[&str] = &["cpu", "flex", "cuda", "wgpu"];
/// Loss scales that have a name.
pub const LOSS_SCALES: &[&str] = &[
    "auto",
    "torch",
    "dynamic",
    "megatron",
    "flax",
    "apex",
    "keras",
    "mmcv-static",
    "none",
];

/// How pictures pass through the network.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Mode {
    /// At once
    Whole,
    /// In overlapping windows whose logits are averaged
    Slide,
}

/// What `export` writes: safetensors under a program's names, or the network itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ExportFormat {
    /// MMSegmentation's
    Mmseg,
    /// MMSegmentation's of the backbone alone
    MmsegBackbone,
    /// Those of torchvision's fcn_resnet* and deeplabv3_resnet*
    Torchvision,
    /// Those of torchvision's resnet*, of the backbone alone
    TorchvisionBackbone,
    /// Those of timm's resnet*, resnet*c and resnet*d, of the backbone alone
    TimmBackbone,
    /// Those of MMPretrain's ResNets, of the backbone alone
    MmpretrainBackbone,
    /// The network as ONNX, for other runtimes (in programs built with the feature `onnx`)
    Onnx,
}

impl ExportFormat {
    /// Whose names the tensors have; `None` where a format is no checkpoint.
    pub fn naming(self) -> Option<Naming> {
        Some(match self {
            Self::Mmseg => Naming::Mmseg,
            Self::MmsegBackbone => Naming::MmsegBackbone,
            Self::Torchvision => Naming::Torchvision,
            Self::TorchvisionBackbone => Naming::TorchvisionBackbone,
            Self::TimmBackbone => Naming::TimmBackbone,
            Self::MmpretrainBackbone => Naming::MmpretrainBackbone,
            Self::Onnx => return None,
        })
    }
}

/// A parser of texts that `T` reads, of which `values` are listed. Whether others are taken, too, is up
/// to `T`.
pub fn listed<T>(values: &'static [&'static str]) -> impl TypedValueParser<Value = T>
where
    T: FromStr<Err: std::error::Error + Send + Sync> + Clone + Send + Sync + 'static,
{
    let parser = StringValueParser::new().try_map(|text| text.parse());
    Listed { parser, values }
}

#[derive(Clone)]
struct Listed<P> {
    parser: P,
    values: &'static [&'static str],
}

impl<P: TypedValueParser> TypedValueParser for Listed<P> {
    type Value = P::Value;

    fn parse_ref(
        &self,
        command: &Command,
        arg: Option<&Arg>,
        value: &OsStr,
    ) -> Result<Self::Value, clap::Error> {
        self.parser.parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.values.iter().map(PossibleValue::new)))
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Display;

    use halfseg_devices::DeviceChoice;
    use halfseg_segmentor::{Depth, Method};
    use halfseg_train::{LossScale, RunPrecision};

    use super::*;

    /// Everything that is listed is taken, and `all` is listed.
    fn check<T: FromStr + Display>(listed: &[&str], all: &[T]) {
        for text in listed {
            assert!(text.parse::<T>().is_ok(), "{text}");
        }
        for value in all {
            assert!(listed.contains(&&*value.to_string()), "{value}");
        }
    }

    #[test]
    fn what_is_listed_is_what_is_taken() {
        check(METHODS, &Method::ALL);
        check(DEPTHS, &Depth::ALL);
        check(
            PRECISIONS,
            &[RunPrecision::F32, RunPrecision::F16, RunPrecision::Bf16],
        );
        check(DEVICES, &[DeviceChoice::Flex]);
        check::<LossScale>(LOSS_SCALES, &[]);
    }
}
