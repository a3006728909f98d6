//! What MMSegmentation's configuration, which its checkpoints carry as text, says of a network.
//!
//! Strides, dilations and the like change no tensor's shape but what a network computes. Defaults are
//! those of MMSegmentation 1.2 (`models/backbones/resnet.py`, `models/decode_heads/`).

use std::path::Path;

use halfseg_backbone::Style;
use pytorch_reader::{PickleValue, PytorchReader};

use super::part::{Part, Unsupported};
use crate::{Method, SegmentorConfig};
use halfseg_files::PythonValue as Value;

/// The configuration in a checkpoint.
#[derive(Debug)]
pub(crate) enum Configuration {
    /// The file has none.
    Absent,
    /// There is one, but not as MMSegmentation prints it.
    Unreadable,
    /// What it assigns to `model`, with `test_cfg` in it.
    Model(Value),
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

    pub(super) fn of_text(text: &str) -> Self {
        match Value::assigned(text, "model") {
            Some(Value::Dict(mut model)) if model.iter().any(|(key, _)| key == "decode_head") => {
                // MMSegmentation 0.x had it beside the model at first.
                let inside = model.iter().any(|(key, _)| key == "test_cfg");
                let test = Value::assigned(text, "test_cfg").filter(|_| !inside);
                model.extend(test.map(|test| ("test_cfg".to_owned(), test)));
                Self::Model(Value::Dict(model))
            }
            _ => Self::Unreadable,
        }
    }
}

/// `shown`, which tensors show, with what `model` says and tensors do not.
///
/// # Errors
/// The first setting that this crate's networks do not have, or that tensors contradict.
pub(crate) fn settings(
    model: &Value,
    shown: &SegmentorConfig,
) -> Result<SegmentorConfig, Unsupported> {
    let mut config = shown.clone();
    let whole = Part::new("model", model);
    whole.is("type", "'EncoderDecoder'", "EncoderDecoder")?;
    whole.is("neck", "None", "None")?;
    let nothing = Value::Dict(Vec::new());
    let backbone = Part::new("backbone", model.get("backbone").unwrap_or(&nothing));
    let stages = read_backbone(&backbone, &mut config)?;
    // Several auxiliary heads are told by their tensors.
    if let Some(head @ Value::Dict(_)) = model.get("auxiliary_head") {
        let head = Part::new("auxiliary_head", head);
        read_auxiliary(&head, &stages, &mut config)?;
    }
    let head = Part::new("decode_head", model.get("decode_head").unwrap_or(&nothing));
    read_head(&head, &stages, &mut config)?;
    config.validate().map_err(|error| Unsupported {
        key: error.key.to_owned(),
        expected: error.expected,
        found: error.found,
    })?;
    Ok(config)
}

/// Fills in the backbone, and gives the stages that heads may choose from.
fn read_backbone(
    backbone: &Part<'_>,
    config: &mut SegmentorConfig,
) -> Result<Vec<usize>, Unsupported> {
    let class = backbone.class().unwrap_or_else(|| "ResNetV1c".to_owned());
    let [deep_stem, avg_down] = match class.as_str() {
        "ResNetV1c" => [true, false],
        "ResNetV1d" => [true, true],
        "ResNet" => [
            backbone.flag("deep_stem", false)?,
            backbone.flag("avg_down", false)?,
        ],
        _ => return Err(backbone.unsupported("type", "ResNet, ResNetV1c or ResNetV1d", &class)),
    };
    backbone.agrees("deep_stem", deep_stem, config.deep_stem)?;
    backbone.agrees("avg_down", avg_down, config.avg_down)?;
    if let Some(depth) = backbone.value.get("depth") {
        let shown = config.backbone.to_string();
        backbone.agrees("depth", format!("resnet{depth}"), shown)?;
    }
    for key in ["dcn", "plugins", "conv_cfg"] {
        backbone.is(key, "None", "None")?;
    }
    backbone.is("num_stages", "4", "4")?;
    backbone.norm()?;
    let four = |key, default| -> Result<[usize; 4], Unsupported> {
        let numbers = backbone.numbers(key, default)?;
        let found = format!("{numbers:?}");
        let four = numbers.try_into();
        four.map_err(|_| backbone.unsupported(key, "four numbers, one a stage", &found))
    };
    config.stage_strides = four("strides", &[1, 2, 2, 2])?;
    config.stage_dilations = four("dilations", &[1; 4])?;
    config.contract_dilation = backbone.flag("contract_dilation", false)?;
    let is_given = |key| backbone.value.get(key).is_some_and(|grid| !grid.is_none());
    config.multi_grid.clear();
    if is_given("multi_grid") {
        config.multi_grid = backbone.numbers("multi_grid", &[])?;
    }
    config.style = match backbone.text("style", "'pytorch'").as_str() {
        "'pytorch'" => Style::Pytorch,
        "'caffe'" => Style::Caffe,
        found => return Err(backbone.unsupported("style", "'pytorch' or 'caffe'", found)),
    };
    backbone.stages("out_indices", &[0, 1, 2, 3])
}

fn read_auxiliary(
    head: &Part<'_>,
    stages: &[usize],
    config: &mut SegmentorConfig,
) -> Result<(), Unsupported> {
    head.is("type", "'FCNHead'", "FCNHead")?;
    if !config.aux_head {
        // The file lacks its tensors.
        return Ok(());
    }
    check_convolutions(head)?;
    head.agrees("in_index", head.stage(stages)?, config.aux_index)?;
    head.is("kernel_size", "3", "3")?;
    head.agrees("num_convs", head.number("num_convs", 2)?, config.aux_convs)?;
    let joins = head.flag("concat_input", true)?;
    head.agrees("concat_input", joins, config.aux_concat_input)?;
    config.aux_dilation = head.number("dilation", 1)?;
    if let Some(Value::Number(weight)) = head
        .value
        .get("loss_decode")
        .and_then(|loss| loss.get("loss_weight"))
    {
        config.aux_weight = *weight;
    }
    Ok(())
}

fn read_head(
    head: &Part<'_>,
    stages: &[usize],
    config: &mut SegmentorConfig,
) -> Result<(), Unsupported> {
    let class = match config.method {
        Method::Fcn => "FCNHead",
        Method::PspNet => "PSPHead",
        Method::DeepLabV3 => "ASPPHead",
        Method::DeepLabV3Plus => "DepthwiseSeparableASPPHead",
    };
    head.is("type", &format!("'{class}'"), class)?;
    check_convolutions(head)?;
    if head.text("out_channels", "None") == "1" {
        head.agrees("out_channels", 1, config.outputs())?;
    }
    head.agrees("in_index", head.stage(stages)?, config.head_index)?;
    config.align_corners = head.flag("align_corners", false)?;
    if let Some(Value::Number(ratio)) = head.value.get("dropout_ratio") {
        config.dropout = *ratio;
    }
    if let (true, Some(Value::Number(threshold))) = (config.binary, head.value.get("threshold")) {
        config.threshold = *threshold;
    }
    match config.method {
        Method::Fcn => {
            head.is("kernel_size", "3", "3")?;
            head.agrees("num_convs", head.number("num_convs", 2)?, config.head_convs)?;
            let joins = head.flag("concat_input", true)?;
            head.agrees("concat_input", joins, config.head_concat_input)?;
            config.head_dilation = head.number("dilation", 1)?;
        }
        Method::PspNet => {
            let scales = head.numbers("pool_scales", &[1, 2, 3, 6])?;
            head.as_many("pool_scales", &scales, config.pool_scales.len())?;
            config.pool_scales = scales;
        }
        Method::DeepLabV3 | Method::DeepLabV3Plus => {
            // The default of mmseg's class, which the published models do not use.
            let dilations = head.numbers("dilations", &[1, 6, 12, 18])?;
            head.as_many("dilations", &dilations, config.dilations.len())?;
            config.dilations = dilations;
        }
    }
    Ok(())
}

/// What all heads have in common.
fn check_convolutions(head: &Part<'_>) -> Result<(), Unsupported> {
    head.is("conv_cfg", "None", "None")?;
    head.is("input_transform", "None", "None")?;
    let out = head.text("out_channels", "None");
    if !["None", "1"].contains(&out.as_str()) && out != head.text("num_classes", "None") {
        return Err(head.unsupported("out_channels", "1, or as many as classes", &out));
    }
    if let Some(activation) = head.value.get("act_cfg") {
        Part::new("act_cfg", activation).is("type", "'ReLU'", "'ReLU'")?;
    }
    head.norm()
}

/// How a network was trained or tested otherwise than this project does.
pub(crate) fn other_ways(model: &Value) -> Vec<String> {
    let mut ways: Vec<String> = other_colors(model).into_iter().collect();
    let head = |name: &'static str| {
        let value = model
            .get(name)
            .filter(|head| matches!(head, Value::Dict(_)));
        value.map(|value| Part::new(name, value))
    };
    let [decode, auxiliary] = ["decode_head", "auxiliary_head"].map(head);
    if let (Some(decode), Some(auxiliary)) = (&decode, &auxiliary) {
        for (key, default) in [("dropout_ratio", "0.1"), ("align_corners", "False")] {
            let [ours, theirs] = [decode, auxiliary].map(|head| head.text(key, default));
            if ours != theirs {
                ways.push(format!(
                    "trained with auxiliary_head.{key} = {theirs}, here {ours} as in the decode head"
                ));
            }
        }
    }
    for head in [decode, auxiliary].into_iter().flatten() {
        let loss = head.value.get("loss_decode");
        let cross_entropy = Part::new("loss_decode", loss.unwrap_or(&Value::Dict(Vec::new())))
            .class()
            .is_none_or(|class| class == "CrossEntropyLoss");
        let several = matches!(loss, Some(Value::List(_)));
        let sigmoid = loss
            .and_then(|loss| loss.get("use_sigmoid"))
            .map(Value::to_string);
        // The cross-entropy of one output is that of a sigmoid.
        let one = head.text("out_channels", "None") == "1";
        if several || !cross_entropy || (sigmoid.as_deref() == Some("True")) != one {
            let found = head.text("loss_decode", "None");
            let name = head.name;
            ways.push(format!(
                "trained with {name}.loss_decode = {found}, here cross-entropy"
            ));
        }
        if head.text("sampler", "None") != "None" {
            let (name, found) = (head.name, head.text("sampler", "None"));
            ways.push(format!(
                "trained with {name}.sampler = {found}, here on all pixels"
            ));
        }
    }
    let test = model
        .get("test_cfg")
        .map(|test| Part::new("test_cfg", test));
    if let Some(test) = test.filter(|test| test.text("mode", "'whole'") == "'slide'") {
        ways.push(format!(
            "tested there in windows of {}, a stride of {} apart (`--mode slide`)",
            test.text("crop_size", "None"),
            test.text("stride", "None")
        ));
    }
    ways
}

/// How a network was trained to see colours, if not as this project's pictures are normalised.
fn other_colors(model: &Value) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Depth;

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

    /// What tensors of the published network show.
    fn shown(method: Method) -> SegmentorConfig {
        SegmentorConfig::new(method, Depth::R101)
    }

    fn read(text: &str, shown: &SegmentorConfig) -> Result<SegmentorConfig, Unsupported> {
        match Configuration::of_text(text) {
            Configuration::Model(model) => settings(&model, shown),
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
            let expected = shown(method);
            assert_eq!(read(&published(&head), &expected), Ok(expected.clone()), "{method}");
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
            let expected = shown(method);
            assert_eq!(read(&text, &expected), Ok(expected.clone()), "{method}");
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
        let mut shown = shown(Method::DeepLabV3);
        shown.dilations = vec![1, 12];
        let mut expected = shown.clone();
        (expected.align_corners, expected.dilations) = (true, vec![1, 6]);
        assert_eq!(read(&text, &shown), Ok(expected));
    }

    #[test]
    fn what_changes_no_shape_is_followed() {
        type Change = fn(SegmentorConfig) -> SegmentorConfig;
        let text = published(FCN);
        let changes: [(&str, &str, Change); 9] = [
            (
                "            2,\n            1,\n            1,\n        )",
                "            2,\n            2,\n            1,\n        )",
                |fcn| fcn.with_stage_strides([1, 2, 2, 1]),
            ),
            ("            4,\n", "            2,\n", |fcn| {
                fcn.with_stage_dilations([1, 1, 2, 2])
            }),
            (
                "contract_dilation=True",
                "contract_dilation=True, multi_grid=(1, 2, 4)",
                |fcn| fcn.with_multi_grid(vec![1, 2, 4]),
            ),
            ("contract_dilation=True", "x=1", |fcn| {
                fcn.with_contract_dilation(false)
            }),
            ("style='pytorch'", "style='caffe'", |fcn| {
                fcn.with_style(Style::Caffe)
            }),
            ("num_convs=2", "num_convs=2, dilation=6", |fcn| {
                fcn.with_head_dilation(6)
            }),
            ("num_convs=1", "num_convs=1, dilation=2", |fcn| {
                fcn.with_aux_dilation(2)
            }),
            ("loss_weight=0.4", "loss_weight=0.25", |fcn| {
                fcn.with_aux_weight(0.25)
            }),
            ("in_index=3", "in_index=-1", |fcn| fcn),
        ];
        for (from, to, change) in changes {
            let changed = text.replace(from, to);
            assert_ne!(changed, text, "{to}");
            let shown = shown(Method::Fcn);
            assert_eq!(read(&changed, &shown), Ok(change(shown.clone())), "{to}");
        }
        // The kind of stem is another class, or a flag.
        let v1d = shown(Method::Fcn).with_avg_down(true);
        let v1b = shown(Method::Fcn).with_deep_stem(false);
        for (class, shown) in [
            ("'ResNetV1d'", &v1d),
            ("'ResNet', deep_stem=True, avg_down=True", &v1d),
            ("'ResNet'", &v1b),
        ] {
            let changed = text.replace("'ResNetV1c'", class);
            assert_eq!(read(&changed, shown), Ok(shown.clone()), "{class}");
        }
    }

    #[test]
    fn what_these_networks_do_not_have_is_refused_by_name() {
        let text = published(FCN);
        for (from, to, key, found) in [
            (
                "contract_dilation=True",
                "dcn=dict(type='DCN', deform_groups=1)",
                "backbone.dcn",
                "dict(type='DCN', deform_groups=1)",
            ),
            (
                "style='pytorch'",
                "style='other'",
                "backbone.style",
                "'other'",
            ),
            (
                "type='ResNetV1c'",
                "type='ResNeSt'",
                "backbone.type",
                "ResNeSt",
            ),
            (
                "type='ResNetV1c'",
                "type='ResNetV1d'",
                "backbone.avg_down",
                "true",
            ),
            ("depth=101", "depth=50", "backbone.depth", "resnet50"),
            (
                "contract_dilation=True",
                "contract_dilation=True, multi_grid=(1, 2)",
                "multi_grid",
                "[1, 2] for 3 blocks",
            ),
            (
                "concat_input=True, num_convs=2",
                "kernel_size=1",
                "decode_head.kernel_size",
                "1",
            ),
            ("num_convs=2", "num_convs=3", "decode_head.num_convs", "3"),
            (
                "num_convs=1",
                "num_convs=2",
                "auxiliary_head.num_convs",
                "2",
            ),
            ("in_index=3", "in_index=1", "decode_head.in_index", "1"),
            ("in_index=3", "in_index=7", "decode_head.in_index", "7"),
            (
                "in_index=3",
                "in_index=(2, 3), input_transform='resize_concat'",
                "decode_head.input_transform",
                "'resize_concat'",
            ),
            (
                "type='EncoderDecoder'",
                "type='CascadeEncoderDecoder'",
                "model.type",
                "'CascadeEncoderDecoder'",
            ),
            (
                "type='EncoderDecoder'",
                "type='EncoderDecoder', neck=dict(type='JPU')",
                "model.neck",
                "dict(type='JPU')",
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
            let error = read(&changed, &shown(Method::Fcn)).unwrap_err();
            assert_eq!((error.key.as_str(), error.found.as_str()), (key, found));
        }
        let scales = published("pool_scales=(1, 3, 5), type='PSPHead'");
        let error = read(&scales, &shown(Method::PspNet)).unwrap_err();
        assert_eq!(error.key, "decode_head.pool_scales");
    }

    /// They are another network than the published ones.
    #[test]
    fn what_is_left_out_has_mmsegmentations_defaults() {
        let bare =
            "model = dict(backbone=dict(type='ResNetV1c'), decode_head=dict(type='FCNHead'))";
        let shown = shown(Method::Fcn).with_aux_head(false);
        let found = read(bare, &shown).unwrap();
        assert_eq!(found.output_stride(), 32);
        assert_eq!(found.stage_dilations, [1; 4]);
        assert!(!found.contract_dilation);
    }

    #[test]
    fn other_ways_of_training_and_testing_are_told() {
        let text = published(FCN);
        let told = |from: &str, to: &str| {
            let changed = text.replace(from, to);
            assert_ne!(changed, text);
            let Configuration::Model(model) = Configuration::of_text(&changed) else {
                panic!("{changed}")
            };
            other_ways(&model).join("\n")
        };
        for (from, to, said) in [
            (
                "test_cfg=dict(mode='whole')",
                "test_cfg=dict(crop_size=(769, 769), mode='slide', stride=(513, 513))",
                "windows of (769, 769), a stride of (513, 513)",
            ),
            (
                "test_cfg=dict(mode='whole')",
                "train_cfg=dict(sampler=1), data_preprocessor=dict(mean=(0, 0, 0))",
                "data_preprocessor.mean = (0, 0, 0)",
            ),
            (
                "in_index=2",
                "in_index=2, sampler=dict(type='OHEMPixelSampler')",
                "auxiliary_head.sampler = dict(type='OHEMPixelSampler')",
            ),
            (
                "loss_weight=1.0, type='CrossEntropyLoss'",
                "type='DiceLoss'",
                "DiceLoss",
            ),
            (
                "dropout_ratio=0.1,\n        in_channels=1024",
                "dropout_ratio=0.3,\n        in_channels=1024",
                "auxiliary_head.dropout_ratio = 0.3",
            ),
        ] {
            assert!(told(from, to).contains(said), "{to}: {}", told(from, to));
        }
        // As MMSegmentation 0.5 prints it, beside the model.
        let beside = text.replace("    test_cfg=dict(mode='whole'),\n", "")
            + "test_cfg = dict(mode='slide', crop_size=(769, 769), stride=(513, 513))\n";
        let Configuration::Model(model) = Configuration::of_text(&beside) else {
            panic!("{beside}")
        };
        assert_eq!(other_ways(&model).len(), 1);
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
