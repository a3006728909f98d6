//! From the paths of fields to the names in MMSegmentation's checkpoints.
//!
//! Fields have the names that MMSegmentation gives its modules, so that most paths are names
//! already. Every deviation is in this table; `i` is an index:
//!
//! | path here | name there | because there |
//! |---|---|---|
//! | `stem.i.conv`, `stem.i.bn` | `stem.3i`, `stem.3i+1` | the stem is one sequence with ReLUs in it |
//! | `conv1.conv`, `conv1.bn` (also 2, 3) | `conv1`, `bn1` | blocks and the 7x7 stem hold convolutions and norms side by side |
//! | `downsample.conv`, `downsample.bn` | `downsample.0`, `downsample.1` | it is a sequence, which in V1d begins with an average |
//! | `psp_modules.i`, `image_pool` | `psp_modules.i.1`, `image_pool.1` | the pooling is part 0 of a sequence |
//! | `aspp.` | nothing | the pyramid is no module of its own |

use std::collections::BTreeMap;

use burn::module::{Module, ParamId};
use halfseg_amp::parameter_paths;

/// The names of all float tensors of `module`. `avg_down`: whether its skip connections are averaged
/// (V1d).
pub(crate) fn by_id(module: &impl Module, avg_down: bool) -> BTreeMap<ParamId, String> {
    let parameters = parameter_paths(module).into_iter();
    parameters
        .map(|parameter| (parameter.id, mmseg_name(&parameter.path, avg_down)))
        .collect()
}

/// The name in MMSegmentation's checkpoints of the tensor at `path`.
fn mmseg_name(path: &str, avg_down: bool) -> String {
    let downsample = match avg_down {
        false => ["downsample.0", "downsample.1"],
        true => ["downsample.1", "downsample.2"],
    };
    let parts: Vec<&str> = path.split('.').collect();
    let mut name: Vec<String> = Vec::with_capacity(parts.len() + 1);
    let mut rest = parts.as_slice();
    while let Some(&first) = rest.first() {
        let (taken, translated) = match rest {
            ["stem", index, kind @ ("conv" | "bn"), ..] => {
                let index: usize = index.parse().expect("a list's parts are numbered");
                (
                    3,
                    vec![
                        "stem".to_owned(),
                        (3 * index + usize::from(*kind == "bn")).to_string(),
                    ],
                )
            }
            ["conv1" | "conv2" | "conv3", "conv", ..] => (2, vec![first.to_owned()]),
            ["conv1" | "conv2" | "conv3", "bn", ..] => (2, vec![first.replace("conv", "bn")]),
            ["downsample", "conv", ..] => (2, vec![downsample[0].to_owned()]),
            ["downsample", "bn", ..] => (2, vec![downsample[1].to_owned()]),
            ["psp_modules", index, ..] => (2, vec![format!("psp_modules.{index}.1")]),
            ["image_pool", ..] => (1, vec!["image_pool.1".to_owned()]),
            ["aspp", ..] => (1, vec![]),
            _ => (1, vec![first.to_owned()]),
        };
        name.extend(translated);
        rest = &rest[taken..];
    }
    name.join(".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_mmsegmentations_names() {
        for (path, name) in [
            ("backbone.stem.0.conv.weight", "backbone.stem.0.weight"),
            (
                "backbone.stem.2.bn.running_var",
                "backbone.stem.7.running_var",
            ),
            (
                "backbone.layer1.0.conv3.conv.weight",
                "backbone.layer1.0.conv3.weight",
            ),
            (
                "backbone.layer4.2.conv2.bn.bias",
                "backbone.layer4.2.bn2.bias",
            ),
            (
                "backbone.layer2.0.downsample.conv.weight",
                "backbone.layer2.0.downsample.0.weight",
            ),
            (
                "backbone.layer2.0.downsample.bn.bias",
                "backbone.layer2.0.downsample.1.bias",
            ),
            (
                "decode_head.convs.1.bn.weight",
                "decode_head.convs.1.bn.weight",
            ),
            (
                "decode_head.conv_cat.conv.weight",
                "decode_head.conv_cat.conv.weight",
            ),
            (
                "decode_head.psp_modules.3.conv.weight",
                "decode_head.psp_modules.3.1.conv.weight",
            ),
            (
                "decode_head.aspp.image_pool.bn.running_mean",
                "decode_head.image_pool.1.bn.running_mean",
            ),
            (
                "decode_head.aspp.aspp_modules.1.depthwise_conv.bn.weight",
                "decode_head.aspp_modules.1.depthwise_conv.bn.weight",
            ),
            (
                "decode_head.sep_bottleneck.0.pointwise_conv.conv.weight",
                "decode_head.sep_bottleneck.0.pointwise_conv.conv.weight",
            ),
            (
                "auxiliary_head.conv_seg.bias",
                "auxiliary_head.conv_seg.bias",
            ),
        ] {
            assert_eq!(mmseg_name(path, false), name);
        }
        for (path, name) in [
            ("backbone.conv1.bn.bias", "backbone.bn1.bias"),
            (
                "backbone.layer3.0.downsample.conv.weight",
                "backbone.layer3.0.downsample.1.weight",
            ),
            (
                "backbone.layer3.0.downsample.bn.running_mean",
                "backbone.layer3.0.downsample.2.running_mean",
            ),
        ] {
            assert_eq!(mmseg_name(path, true), name);
        }
    }
}
