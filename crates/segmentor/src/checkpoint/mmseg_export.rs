//! A network as MMSegmentation's configuration: what [`super::mmseg_config`] reads, written.

use std::fmt::Write;

use halfseg_backbone::Style;
use halfseg_files::python_text;

use super::{CheckpointError, ClassTable, Naming};
use crate::{Method, SegmentorConfig};

/// How pictures reach a network that MMSegmentation is to run: what its configuration says besides the network.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct MmsegExport {
    /// Names and colours of the classes, if they are known.
    pub classes: Option<ClassTable>,
    /// What is taken off each channel, in the values of the pictures.
    pub mean: Vec<f32>,
    /// What it is divided by.
    pub std: Vec<f32>,
    /// Height and width of windows, and of the distance between them, if pictures pass through in windows.
    pub slide: Option<[[usize; 2]; 2]>,
    /// Width and height that pictures are resized to fit, if they are.
    pub scale: Option<[usize; 2]>,
}

impl Default for MmsegExport {
    /// Whole RGB pictures at their own size, normalised by ImageNet's values.
    fn default() -> Self {
        Self {
            classes: None,
            mean: vec![123.675, 116.28, 103.53],
            std: vec![58.395, 57.12, 57.375],
            slide: None,
            scale: None,
        }
    }
}

/// Every normalisation. On several devices MMSegmentation synchronises it if it is `SyncBN`.
const NORM: &str = "dict(type='BN', requires_grad=True)";

/// What the first line of a configuration begins with that this crate wrote.
pub const MMSEG_CONFIG_HEAD: &str = "# Written by halfseg";

impl SegmentorConfig {
    /// The configuration with which MMSegmentation 1.x builds this network: a file in Python, for `init_model` and for
    /// training on.
    ///
    /// # Errors
    /// [`CheckpointError::CannotName`] if MMSegmentation has no such network.
    pub fn to_mmseg(&self, export: &MmsegExport) -> Result<String, CheckpointError> {
        let refused = |key: &str, expected: &str, found: String| CheckpointError::CannotName {
            naming: Naming::Mmseg,
            key: key.to_owned(),
            expected: expected.to_owned(),
            found,
        };
        if self.refine {
            return Err(refused(
                "refine",
                "false (it is torchvision's)",
                "true".into(),
            ));
        }
        for (key, values) in [("mean", &export.mean), ("std", &export.std)] {
            if values.len() != self.in_channels {
                let expected = format!("a value for each of {} channels", self.in_channels);
                return Err(refused(key, &expected, values.len().to_string()));
            }
        }
        let mut out = format!(
            "{MMSEG_CONFIG_HEAD} {}, for MMSegmentation 1.x: {} on {}.\n\
             # With the .pth beside it: mmseg.apis.init_model(this file, that one).\n\
             default_scope = 'mmseg'\n",
            env!("CARGO_PKG_VERSION"),
            self.method,
            self.backbone
        );
        if let Some(classes) = &export.classes {
            let names: Vec<_> = classes.names.iter().map(|name| python_text(name)).collect();
            let names = joined(&names);
            let colors: Vec<_> = classes
                .palette
                .iter()
                .map(|color| format!("{color:?}"))
                .collect();
            write!(
                out,
                "metainfo = dict(\n    classes={names},\n    palette=[{}])\n",
                colors.join(", ")
            )
            .expect("a text can be written to");
        }
        let rgb = if self.in_channels == 3 {
            "True"
        } else {
            "False"
        };
        let numbers = |values: &[f32]| {
            let values: Vec<_> = values.iter().map(|value| format!("{value:?}")).collect();
            joined(&values)
        };
        let pictures = [
            ("type", "'SegDataPreProcessor'".to_owned()),
            ("mean", numbers(&export.mean)),
            ("std", numbers(&export.std)),
            ("bgr_to_rgb", rgb.to_owned()),
            ("pad_val", "0".to_owned()),
            ("seg_pad_val", "255".to_owned()),
        ];
        let test = match export.slide {
            None => "dict(mode='whole')".to_owned(),
            Some([crop, stride]) => format!(
                "dict(mode='slide', crop_size={}, stride={})",
                tuple(&crop),
                tuple(&stride)
            ),
        };
        let mut parts = vec![
            ("type", "'EncoderDecoder'".to_owned()),
            ("data_preprocessor", dict(&pictures, 2)),
            ("pretrained", "None".to_owned()),
            ("backbone", self.mmseg_backbone()),
            ("decode_head", self.mmseg_head()),
        ];
        if self.aux_head {
            parts.push(("auxiliary_head", self.mmseg_auxiliary()));
        }
        parts.extend([("train_cfg", "dict()".to_owned()), ("test_cfg", test)]);
        out += &format!("model = {}\n", dict(&parts, 1));
        let resize = export.scale.map_or(String::new(), |[width, height]| {
            format!("    dict(type='Resize', scale=({width}, {height}), keep_ratio=True),\n")
        });
        Ok(out
            + &format!(
                "test_pipeline = [\n    dict(type='LoadImageFromFile'),\n{resize}    dict(type='PackSegInputs')]\n"
            ))
    }

    fn mmseg_backbone(&self) -> String {
        let class = match (self.deep_stem, self.avg_down) {
            (true, false) => "'ResNetV1c'",
            (true, true) => "'ResNetV1d'",
            (false, _) => "'ResNet'",
        };
        let depth = self.backbone.to_string();
        let style = match self.style {
            Style::Pytorch => "'pytorch'",
            Style::Caffe => "'caffe'",
        };
        let mut parts = vec![
            ("type", class.to_owned()),
            ("depth", depth.trim_start_matches("resnet").to_owned()),
            ("in_channels", self.in_channels.to_string()),
            ("stem_channels", self.stem_channels.to_string()),
            ("base_channels", self.base_channels.to_string()),
            ("num_stages", "4".to_owned()),
            ("out_indices", "(0, 1, 2, 3)".to_owned()),
            ("strides", tuple(&self.stage_strides)),
            ("dilations", tuple(&self.stage_dilations)),
            ("norm_cfg", NORM.to_owned()),
            ("norm_eval", "False".to_owned()),
            ("style", style.to_owned()),
            ("contract_dilation", word(self.contract_dilation)),
        ];
        if !self.multi_grid.is_empty() {
            parts.push(("multi_grid", tuple(&self.multi_grid)));
        }
        if !self.deep_stem && self.avg_down {
            parts.push(("avg_down", word(true)));
        }
        dict(&parts, 2)
    }

    fn mmseg_head(&self) -> String {
        let class = match self.method {
            Method::Fcn => "'FCNHead'",
            Method::PspNet => "'PSPHead'",
            Method::DeepLabV3 => "'ASPPHead'",
            Method::DeepLabV3Plus => "'DepthwiseSeparableASPPHead'",
        };
        let mut parts = vec![("type", class.to_owned())];
        parts.extend(self.mmseg_any_head(self.head_index, self.head_channels, 1.0));
        match self.method {
            Method::Fcn => parts.extend([
                ("num_convs", self.head_convs.to_string()),
                ("concat_input", word(self.head_concat_input)),
                ("dilation", self.head_dilation.to_string()),
            ]),
            Method::PspNet => parts.push(("pool_scales", tuple(&self.pool_scales))),
            Method::DeepLabV3 => parts.push(("dilations", tuple(&self.dilations))),
            Method::DeepLabV3Plus => {
                let low = self.backbone_config().stage_channels()[0];
                parts.extend([
                    ("dilations", tuple(&self.dilations)),
                    ("c1_in_channels", low.to_string()),
                    ("c1_channels", self.c1_channels.to_string()),
                ]);
            }
        }
        dict(&parts, 2)
    }

    fn mmseg_auxiliary(&self) -> String {
        let mut parts = vec![("type", "'FCNHead'".to_owned())];
        parts.extend(self.mmseg_any_head(self.aux_index, self.aux_channels, self.aux_weight));
        parts.extend([
            ("num_convs", self.aux_convs.to_string()),
            ("concat_input", word(self.aux_concat_input)),
            ("dilation", self.aux_dilation.to_string()),
        ]);
        dict(&parts, 2)
    }

    /// What all heads have in common.
    fn mmseg_any_head(
        &self,
        stage: usize,
        channels: usize,
        weight: f64,
    ) -> Vec<(&'static str, String)> {
        let loss = [
            ("type", "'CrossEntropyLoss'".to_owned()),
            ("use_sigmoid", word(self.binary)),
            ("loss_weight", format!("{weight:?}")),
        ];
        let mut parts = vec![
            (
                "in_channels",
                self.backbone_config().stage_channels()[stage.min(3)].to_string(),
            ),
            ("in_index", stage.to_string()),
            ("channels", channels.to_string()),
            ("dropout_ratio", format!("{:?}", self.dropout)),
            ("num_classes", self.num_classes.to_string()),
            ("norm_cfg", NORM.to_owned()),
            ("align_corners", word(self.align_corners)),
            ("loss_decode", dict(&loss, 3)),
        ];
        if self.binary {
            parts.extend([
                ("out_channels", "1".to_owned()),
                ("threshold", format!("{:?}", self.threshold)),
            ]);
        }
        parts
    }
}

/// A dictionary, one entry a line, `depth` levels in.
fn dict(parts: &[(&str, String)], depth: usize) -> String {
    let indent = "    ".repeat(depth);
    let lines = parts
        .iter()
        .map(|(key, value)| format!("\n{indent}{key}={value}"));
    format!("dict({})", lines.collect::<Vec<_>>().join(","))
}

fn tuple(values: &[usize]) -> String {
    let values: Vec<_> = values.iter().map(usize::to_string).collect();
    joined(&values)
}

fn joined(values: &[String]) -> String {
    match values {
        [one] => format!("({one}, )"),
        several => format!("({})", several.join(", ")),
    }
}

fn word(value: bool) -> String {
    if value { "True" } else { "False" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Depth;
    use crate::checkpoint::mmseg_config::{Configuration, other_ways, settings};

    #[test]
    fn what_is_written_is_read_as_the_same_network() {
        let v3 = SegmentorConfig::new(Method::DeepLabV3, Depth::R50)
            .with_stage_strides([1, 2, 2, 1])
            .with_stage_dilations([1, 1, 1, 2])
            .with_multi_grid(vec![1, 2, 4])
            .with_align_corners(true)
            .with_dropout(0.25)
            .with_aux_weight(0.3);
        let mut binary = SegmentorConfig::new(Method::Fcn, Depth::R18)
            .with_num_classes(2)
            .with_binary(true)
            .with_threshold(0.7)
            .with_head_dilation(6)
            .with_head_concat_input(false)
            .with_deep_stem(false)
            .with_avg_down(true)
            .with_style(Style::Caffe)
            .with_contract_dilation(false)
            .with_in_channels(5);
        binary.aux_head = false;
        let psp = SegmentorConfig::new(Method::PspNet, Depth::R34)
            .with_pool_scales(vec![1, 4])
            .with_avg_down(true)
            .with_head_index(2);
        for config in [
            v3,
            binary,
            psp,
            SegmentorConfig::deeplabv3plus_r101_d8(),
            SegmentorConfig::fcn_r101_d8(),
        ] {
            let mut export = MmsegExport::default();
            if config.in_channels != 3 {
                export.mean = vec![1.5; config.in_channels];
                export.std = vec![0.5; config.in_channels];
            }
            let text = config.to_mmseg(&export).unwrap();
            let Configuration::Model(model) = Configuration::of_text(&text) else {
                panic!("unreadable: {text}");
            };
            // What tensors show.
            let mut shown = SegmentorConfig {
                stage_strides: [9; 4],
                stage_dilations: [9; 4],
                multi_grid: vec![9],
                contract_dilation: !config.contract_dilation,
                style: Style::Pytorch,
                align_corners: !config.align_corners,
                dropout: 0.9,
                threshold: if config.binary { 0.9 } else { 0.3 },
                head_dilation: match config.method {
                    Method::Fcn => 9,
                    _ => 1,
                },
                ..config.clone()
            };
            if config.aux_head {
                shown.aux_weight = 9.0;
            }
            assert_eq!(settings(&model, &shown).unwrap(), config, "{text}");
            let other = if config.in_channels == 3 { 0 } else { 1 };
            assert_eq!(other_ways(&model).len(), other, "{:?}", other_ways(&model));
        }
    }

    #[test]
    fn how_pictures_pass_is_said_and_names_are_no_code() {
        let export = MmsegExport {
            slide: Some([[512, 512], [341, 341]]),
            scale: Some([2049, 1025]),
            classes: Some(ClassTable {
                names: vec!["it's\\a\n".into(), "ö".into()],
                palette: vec![[1, 2, 3], [4, 5, 6]],
            }),
            ..MmsegExport::default()
        };
        let config = SegmentorConfig::new(Method::Fcn, Depth::R18).with_num_classes(2);
        let text = config.to_mmseg(&export).unwrap();
        for part in [
            "mode='slide', crop_size=(512, 512), stride=(341, 341)",
            "scale=(2049, 1025), keep_ratio=True",
            "classes=('it\\'s\\\\a\\n', 'ö')",
            "palette=[[1, 2, 3], [4, 5, 6]]",
            "mean=(123.675, 116.28, 103.53)",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        let refined = SegmentorConfig::new(Method::DeepLabV3, Depth::R50).with_refine(true);
        let error = refined.to_mmseg(&export).unwrap_err().to_string();
        assert!(error.contains("refine"), "{error}");
    }
}
