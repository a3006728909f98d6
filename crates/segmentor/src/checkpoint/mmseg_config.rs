//! What MMSegmentation's configuration, which its checkpoints carry as text, says of a network.
//!
//! Strides, dilations and the like change no tensor's shape but what a network computes. Defaults are
//! those of MMSegmentation 1.2 (`models/backbones/resnet.py`, `models/decode_heads/`).

use std::path::Path;

use pytorch_reader::{PickleValue, PytorchReader};

use super::python::Value;
use crate::Method;

/// The configuration in a checkpoint.
#[derive(Debug)]
pub(crate) enum Configuration {
    /// The file has none.
    Absent,
    /// There is one, but not as MMSegmentation prints it.
    Unreadable,
    /// What it assigns to `model`.
    Model(Value),
}

/// What is chosen freely in the networks that this crate has.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct HeadSettings {
    pub(crate) align_corners: bool,
    /// Of the atrous pyramid.
    pub(crate) dilations: Option<Vec<usize>>,
}

/// A setting that this crate's networks do not have.
#[derive(Debug, PartialEq)]
pub(crate) struct Unsupported {
    pub(crate) key: String,
    pub(crate) expected: String,
    pub(crate) found: String,
}

impl Configuration {
    /// Reads `meta` of a `.pth`: `cfg` since MMSegmentation 1.0, `config` before.
    pub(crate) fn of_checkpoint(path: &Path) -> Self {
        let Ok(PickleValue::Dict(meta)) = PytorchReader::read_pickle_data(path, Some("meta"))
        else {
            return Self::Absent;
        };
        let text = ["cfg", "config"]
            .iter()
            .find_map(|key| match meta.get(*key) {
                Some(PickleValue::String(text)) => Some(text),
                _ => None,
            });
        text.map_or(Self::Absent, |text| Self::of_text(text))
    }

    fn of_text(text: &str) -> Self {
        match Value::assigned(text, "model") {
            Some(model @ Value::Dict(_)) if model.get("decode_head").is_some() => {
                Self::Model(model)
            }
            _ => Self::Unreadable,
        }
    }
}

/// Checks that `model` is a network of `method` as this crate builds it, and gives what it may choose.
///
/// # Errors
/// The first setting that such a network does not have.
pub(crate) fn settings(model: &Value, method: Method) -> Result<HeadSettings, Unsupported> {
    if let Some(backbone) = model.get("backbone") {
        check_backbone(&Part::new("backbone", backbone))?;
    }
    // Several auxiliary heads are told by their tensors.
    if let Some(head @ Value::Dict(_)) = model.get("auxiliary_head") {
        let head = Part::new("auxiliary_head", head);
        head.is("type", "'FCNHead'", "FCNHead")?;
        head.is("dilation", "1", "1")?;
        check_convolutions(&head)?;
    }
    let nothing = Value::Dict(Vec::new());
    let head = Part::new("decode_head", model.get("decode_head").unwrap_or(&nothing));
    let class = match method {
        Method::Fcn => "FCNHead",
        Method::PspNet => "PSPHead",
        Method::DeepLabV3 => "ASPPHead",
        Method::DeepLabV3Plus => "DepthwiseSeparableASPPHead",
    };
    head.is("type", &format!("'{class}'"), class)?;
    check_convolutions(&head)?;
    match method {
        Method::Fcn => head.is("dilation", "1", "1")?,
        Method::PspNet => head.is("pool_scales", "(1, 2, 3, 6)", "(1, 2, 3, 6)")?,
        Method::DeepLabV3 | Method::DeepLabV3Plus => {}
    }
    let align_corners = match head.text("align_corners", "False").as_str() {
        "True" => true,
        "False" => false,
        found => return Err(head.unsupported("align_corners", "True or False", found)),
    };
    let dilations = match method {
        Method::Fcn | Method::PspNet => None,
        // The default of mmseg's class, which the published models do not use.
        Method::DeepLabV3 | Method::DeepLabV3Plus => {
            Some(head.numbers("dilations", &[1, 6, 12, 18])?)
        }
    };
    Ok(HeadSettings {
        align_corners,
        dilations,
    })
}

/// How a network was trained to see colours, if not as this project's pictures are normalised.
pub(crate) fn other_colors(model: &Value) -> Option<String> {
    let colors = Part::new("data_preprocessor", model.get("data_preprocessor")?);
    let expected = [
        ("mean", "(123.675, 116.28, 103.53)"),
        ("std", "(58.395, 57.12, 57.375)"),
        ("bgr_to_rgb", "True"),
    ];
    expected.into_iter().find_map(|(key, expected)| {
        let found = colors.text(key, "None");
        let differs = found != expected;
        differs.then(|| format!("trained with data_preprocessor.{key} = {found}, here {expected}"))
    })
}

/// ResNetV1c-D8: see `halfseg_backbone::ResNet`.
fn check_backbone(backbone: &Part<'_>) -> Result<(), Unsupported> {
    let class = backbone.class();
    let v1c = match class.as_deref() {
        None | Some("ResNetV1c") => true,
        Some("ResNet") => backbone.text("deep_stem", "False") == "True",
        Some(_) => false,
    };
    if !v1c {
        let found = class.unwrap_or_default();
        return Err(backbone.unsupported("type", "ResNetV1c", &found));
    }
    let strides = backbone.numbers("strides", &[1, 2, 2, 2])?;
    if strides != [1, 2, 1, 1] {
        // The stem and its pooling halve the size twice.
        let stride = strides
            .iter()
            .fold(4, |product: usize, s| product.saturating_mul(*s));
        let found = format!(
            "{} (output stride {stride})",
            backbone.text("strides", "(1, 2, 2, 2)")
        );
        return Err(backbone.unsupported("strides", "(1, 2, 1, 1) (output stride 8)", &found));
    }
    backbone.is("dilations", "(1, 1, 2, 4)", "(1, 1, 1, 1)")?;
    backbone.is("contract_dilation", "True", "False")?;
    for key in ["multi_grid", "dcn", "plugins", "conv_cfg"] {
        backbone.is(key, "None", "None")?;
    }
    backbone.is("style", "'pytorch'", "'pytorch'")?;
    backbone.is("avg_down", "False", "False")?;
    backbone.is("num_stages", "4", "4")?;
    check_norm(backbone)
}

/// What all heads have in common.
fn check_convolutions(head: &Part<'_>) -> Result<(), Unsupported> {
    head.is("conv_cfg", "None", "None")?;
    head.is("input_transform", "None", "None")?;
    if let Some(activation) = head.value.get("act_cfg") {
        Part::new("act_cfg", activation).is("type", "'ReLU'", "'ReLU'")?;
    }
    check_norm(head)
}

fn check_norm(part: &Part<'_>) -> Result<(), Unsupported> {
    let Some(norm) = part.value.get("norm_cfg").filter(|norm| !norm.is_none()) else {
        return Ok(());
    };
    let key = format!("{}.norm_cfg", part.name);
    let norm = Part::new(&key, norm);
    let class = norm.class().unwrap_or_else(|| "BN".to_owned());
    if !["BN", "BN2d", "SyncBN", "MMSyncBN"].contains(&class.as_str()) {
        return Err(norm.unsupported("type", "BN or SyncBN", &class));
    }
    match norm.value.get("eps") {
        None | Some(Value::Number(1e-5)) => Ok(()),
        Some(found) => Err(norm.unsupported("eps", "1e-05", &found.to_string())),
    }
}

/// A part of a configuration, with its name.
struct Part<'a> {
    name: &'a str,
    value: &'a Value,
}

impl<'a> Part<'a> {
    fn new(name: &'a str, value: &'a Value) -> Self {
        Self { name, value }
    }

    fn unsupported(&self, key: &str, expected: &str, found: &str) -> Unsupported {
        Unsupported {
            key: format!("{}.{key}", self.name),
            expected: expected.to_owned(),
            found: found.to_owned(),
        }
    }

    /// A setting as Python writes it.
    fn text(&self, key: &str, default: &str) -> String {
        let value = self.value.get(key).map(Value::to_string);
        value.unwrap_or_else(|| default.to_owned())
    }

    /// The name of the class, without the registry that it is from.
    fn class(&self) -> Option<String> {
        match self.value.get("type") {
            Some(Value::Text(class) | Value::Word(class)) => {
                class.rsplit('.').next().map(str::to_owned)
            }
            _ => None,
        }
    }

    /// Whether a setting, or its default, is what is expected.
    fn is(&self, key: &str, expected: &str, default: &str) -> Result<(), Unsupported> {
        let found = match (key, self.class()) {
            ("type", Some(class)) => format!("'{class}'"),
            ("type", None) => expected.to_owned(),
            _ => self.text(key, default),
        };
        match found == expected {
            true => Ok(()),
            false => Err(self.unsupported(key, expected, &found)),
        }
    }

    fn numbers(&self, key: &str, default: &[usize]) -> Result<Vec<usize>, Unsupported> {
        let whole = |value: &Value| match *value {
            Value::Number(n) if (1.0..=65_536.0).contains(&n) && n.fract() == 0.0 => {
                Some(n as usize)
            }
            _ => None,
        };
        let numbers = match self.value.get(key) {
            None => return Ok(default.to_owned()),
            Some(Value::List(values)) => values.iter().map(whole).collect(),
            Some(one) => whole(one).map(|n| vec![n]),
        };
        numbers.ok_or_else(|| self.unsupported(key, "numbers from 1 to 65536", &self.text(key, "")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As MMSegmentation 1.2.2 prints `configs/*/*_r101-d8_*.py`, shortened.
    fn published(head: &str) -> String {
        format!(
            "crop_size = (\n    512,\n    1024,\n)\nmodel = dict(\n    auxiliary_head=dict(\n        \
             align_corners=False,\n        channels=256,\n        concat_input=False,\n        \
             dropout_ratio=0.1,\n        in_channels=1024,\n        in_index=2,\n        \
             loss_decode=dict(\n            loss_weight=0.4, type='CrossEntropyLoss', \
             use_sigmoid=False),\n        norm_cfg=dict(requires_grad=True, type='SyncBN'),\n        \
             num_classes=19,\n        num_convs=1,\n        type='FCNHead'),\n    backbone=dict(\n        \
             contract_dilation=True,\n        depth=101,\n        dilations=(\n            1,\n            \
             1,\n            2,\n            4,\n        ),\n        norm_cfg=dict(requires_grad=True, \
             type='SyncBN'),\n        norm_eval=False,\n        num_stages=4,\n        \
             out_indices=(\n            0,\n            1,\n            2,\n            3,\n        \
             ),\n        strides=(\n            1,\n            2,\n            1,\n            1,\n        \
             ),\n        style='pytorch',\n        type='ResNetV1c'),\n    decode_head=dict(\n        \
             align_corners=False,\n        channels=512,\n        dropout_ratio=0.1,\n        \
             in_channels=2048,\n        in_index=3,\n        loss_decode=dict(\n            \
             loss_weight=1.0, type='CrossEntropyLoss', use_sigmoid=False),\n        \
             norm_cfg=dict(requires_grad=True, type='SyncBN'),\n        num_classes=19,\n        \
             {head}),\n    pretrained='open-mmlab://resnet101_v1c',\n    test_cfg=dict(mode='whole'),\n    \
             train_cfg=dict(),\n    type='EncoderDecoder')\nnorm_cfg = dict(requires_grad=True, \
             type='SyncBN')\n"
        )
    }

    const FCN: &str = "concat_input=True, num_convs=2, type='FCNHead'";

    fn read(text: &str, method: Method) -> Result<HeadSettings, Unsupported> {
        match Configuration::of_text(text) {
            Configuration::Model(model) => settings(&model, method),
            other => panic!("{other:?} in {text}"),
        }
    }

    #[test]
    fn published_configurations_are_supported() {
        let aspp = "dilations=(\n            1,\n            12,\n            24,\n            36,\n        )";
        for (method, head) in [
            (Method::Fcn, FCN.to_owned()),
            (
                Method::PspNet,
                "pool_scales=(\n            1,\n            2,\n            3,\n            6,\n        ),\n        \
                 type='PSPHead'"
                    .to_owned(),
            ),
            (Method::DeepLabV3, format!("{aspp}, type='ASPPHead'")),
            (
                Method::DeepLabV3Plus,
                format!("c1_channels=48, c1_in_channels=256, {aspp}, type='DepthwiseSeparableASPPHead'"),
            ),
        ] {
            let expected = HeadSettings {
                align_corners: false,
                dilations: head.contains("dilations").then(|| vec![1, 12, 24, 36]),
            };
            assert_eq!(read(&published(&head), method), Ok(expected), "{method}");
        }
    }

    /// As MMSegmentation 0.x printed `configs/fp16/*_r101-d8_512x1024_80k_fp16_cityscapes.py`.
    #[test]
    fn configurations_of_the_published_fp16_models_are_supported() {
        for (method, head) in [
            (
                Method::Fcn,
                "type='FCNHead', num_convs=2, concat_input=True",
            ),
            (Method::PspNet, "type='PSPHead', pool_scales=(1, 2, 3, 6)"),
            (
                Method::DeepLabV3,
                "type='ASPPHead', dilations=(1, 12, 24, 36)",
            ),
            (
                Method::DeepLabV3Plus,
                "type='DepthwiseSeparableASPPHead', dilations=(1, 12, 24, 36), c1_in_channels=256, \
                 c1_channels=48",
            ),
        ] {
            let text = format!(
                "norm_cfg = dict(type='SyncBN', requires_grad=True)\nmodel = dict(\n    \
                 type='EncoderDecoder',\n    pretrained='open-mmlab://resnet101_v1c',\n    \
                 backbone=dict(\n        type='ResNetV1c',\n        depth=101,\n        num_stages=4,\n        \
                 out_indices=(0, 1, 2, 3),\n        dilations=(1, 1, 2, 4),\n        \
                 strides=(1, 2, 1, 1),\n        norm_cfg=dict(type='SyncBN', requires_grad=True),\n        \
                 norm_eval=False,\n        style='pytorch',\n        contract_dilation=True),\n    \
                 decode_head=dict(\n        {head},\n        in_channels=2048,\n        in_index=3,\n        \
                 channels=512,\n        dropout_ratio=0.1,\n        num_classes=19,\n        \
                 norm_cfg=dict(type='SyncBN', requires_grad=True),\n        align_corners=False,\n        \
                 loss_decode=dict(\n            type='CrossEntropyLoss', use_sigmoid=False, \
                 loss_weight=1.0)),\n    auxiliary_head=dict(\n        type='FCNHead',\n        \
                 in_channels=1024,\n        in_index=2,\n        channels=256,\n        num_convs=1,\n        \
                 concat_input=False,\n        dropout_ratio=0.1,\n        num_classes=19,\n        \
                 norm_cfg=dict(type='SyncBN', requires_grad=True),\n        align_corners=False,\n        \
                 loss_decode=dict(\n            type='CrossEntropyLoss', use_sigmoid=False, \
                 loss_weight=0.4)))\ntrain_cfg = dict()\ntest_cfg = dict(mode='whole')\n\
                 optimizer_config = dict(type='Fp16OptimizerHook', loss_scale=512.0)\n"
            );
            let expected = HeadSettings {
                align_corners: false,
                dilations: head.contains("dilations").then(|| vec![1, 12, 24, 36]),
            };
            assert_eq!(read(&text, method), Ok(expected), "{method}");
        }
    }

    #[test]
    fn what_a_network_may_choose_is_read() {
        let text = published("dilations=(1, 6), type='mmseg.ASPPHead'");
        let (before, after) = text.split_once("decode_head").unwrap();
        let text = format!(
            "{before}decode_head{}",
            after.replace("corners=False", "corners=True")
        );
        let expected = HeadSettings {
            align_corners: true,
            dilations: Some(vec![1, 6]),
        };
        assert_eq!(read(&text, Method::DeepLabV3), Ok(expected));
    }

    #[test]
    fn what_changes_no_shape_is_refused_by_name() {
        let text = published(FCN);
        for (from, to, key, found) in [
            (
                "            2,\n            1,\n            1,\n        )",
                "            2,\n            2,\n            1,\n        )",
                "backbone.strides",
                "(1, 2, 2, 1) (output stride 16)",
            ),
            (
                "            4,\n",
                "            2,\n",
                "backbone.dilations",
                "(1, 1, 2, 2)",
            ),
            (
                "contract_dilation=True",
                "contract_dilation=True, multi_grid=(1, 2, 4)",
                "backbone.multi_grid",
                "(1, 2, 4)",
            ),
            (
                "contract_dilation=True",
                "x=1",
                "backbone.contract_dilation",
                "False",
            ),
            (
                "style='pytorch'",
                "style='caffe'",
                "backbone.style",
                "'caffe'",
            ),
            (
                "type='ResNetV1c'",
                "type='ResNetV1d'",
                "backbone.type",
                "ResNetV1d",
            ),
            (
                "num_convs=2",
                "num_convs=2, dilation=6",
                "decode_head.dilation",
                "6",
            ),
            (
                "num_convs=1",
                "num_convs=1, dilation=2",
                "auxiliary_head.dilation",
                "2",
            ),
            (
                "depth=101",
                "depth=101, norm_cfg=dict(type='GN')",
                "backbone.norm_cfg.type",
                "GN",
            ),
            (
                "num_convs=2, type='FCNHead'",
                "type='MyHead'",
                "decode_head.type",
                "'MyHead'",
            ),
        ] {
            let mut changed = text.replace(from, to);
            if key.contains("norm_cfg") {
                changed = changed.replace(
                    "norm_cfg=dict(requires_grad=True, type='SyncBN'),\n        norm_eval",
                    "norm_eval",
                );
            }
            assert_ne!(changed, text, "{key}");
            let error = read(&changed, Method::Fcn).unwrap_err();
            assert_eq!((error.key.as_str(), error.found.as_str()), (key, found));
        }
        // MMSegmentation's defaults are another network.
        let bare =
            "model = dict(backbone=dict(type='ResNetV1c'), decode_head=dict(type='FCNHead'))";
        assert_eq!(read(bare, Method::Fcn).unwrap_err().key, "backbone.strides");
        let scales = published("pool_scales=(1, 3, 5, 7), type='PSPHead'");
        let error = read(&scales, Method::PspNet).unwrap_err();
        assert_eq!(error.key, "decode_head.pool_scales");
    }

    #[test]
    fn what_is_not_as_expected_is_unreadable() {
        for text in [
            "",
            "decode_head",
            "model = None",
            "model = dict(decode_head=dict(align_corners=True",
            "model = dict(backbone=dict())",
        ] {
            let found = Configuration::of_text(text);
            assert!(
                matches!(found, Configuration::Unreadable),
                "{text}: {found:?}"
            );
        }
    }
}
