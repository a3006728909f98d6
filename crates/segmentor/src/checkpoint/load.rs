//! Putting a file's tensors into a network.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use burn::module::{Module, ModuleMapper, Param, ParamId};
use burn::tensor::{DType, Tensor, TensorData};

use super::CheckpointError;
use super::file::CheckpointFile;
use crate::cost::tensor_shapes;
use crate::{Segmentor, SegmentorConfig};

/// How many tensors an error names at most, of each kind.
const NAMED: usize = 4;

/// Channels of the pictures that published backbones were trained on.
const RGB: usize = 3;

/// By how much a network in f32 may be larger than twice its file, in bytes.
const SLACK_BYTES: u64 = 64 << 20;

/// What became of a checkpoint's tensors, by MMSegmentation's names.
#[derive(Clone, Debug, Default, PartialEq)]
#[non_exhaustive]
pub struct LoadReport {
    /// Tensors that the network now has from the file.
    pub loaded: Vec<String>,
    /// Tensors of the network that the file lacks; they stay as drawn.
    pub missing: Vec<String>,
    /// Tensors of the file that the network has no place for.
    pub unexpected: Vec<String>,
    /// Classifiers that stay as drawn because the file's have another number of classes.
    pub reinitialised: Vec<Reinitialised>,
    /// What was assumed because the file does not say it, and what it says otherwise than the network is.
    pub remarks: Vec<String>,
}

/// A tensor that was not loaded because its number of classes differs.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Reinitialised {
    /// The tensor.
    pub name: String,
    /// The network's shape.
    pub expected: Vec<usize>,
    /// The file's shape.
    pub found: Vec<usize>,
}

impl LoadReport {
    /// Whether every tensor of the network came from the file.
    pub fn is_complete(&self) -> bool {
        self.missing.is_empty() && self.reinitialised.is_empty()
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} tensors loaded, {} missing, {} unexpected, {} re-initialised",
            self.loaded.len(),
            self.missing.len(),
            self.unexpected.len(),
            self.reinitialised.len()
        )?;
        let some = |names: &[String]| match names.len() {
            0..=NAMED => names.join(", "),
            more => format!("{}, and {} more", names[..NAMED].join(", "), more - NAMED),
        };
        if !self.missing.is_empty() {
            write!(f, "\n  missing, left as drawn: {}", some(&self.missing))?;
        }
        if !self.unexpected.is_empty() {
            write!(f, "\n  unexpected, ignored: {}", some(&self.unexpected))?;
        }
        for Reinitialised {
            name,
            expected,
            found,
        } in &self.reinitialised
        {
            write!(
                f,
                "\n  re-initialised: {name} is {expected:?}, the file's is {found:?}"
            )?;
        }
        for remark in &self.remarks {
            write!(f, "\n  {remark}")?;
        }
        Ok(())
    }
}

/// What a checkpoint may lack.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Mode {
    /// The auxiliary head.
    Whole,
    /// Both heads; classifiers may differ.
    Pretrained,
}

/// Puts the tensors that `report` says are loaded into `model`, one at a time.
pub(crate) fn fill(
    model: Segmentor,
    file: &CheckpointFile,
    report: LoadReport,
) -> Result<(Segmentor, LoadReport), CheckpointError> {
    let mut loader = Loader {
        names: model.names(),
        file,
        left: report.loaded.iter().map(String::as_str).collect(),
        error: None,
    };
    let model = model.map(&mut loader);
    match loader.error {
        Some(error) => Err(error),
        None => {
            assert!(
                loader.left.is_empty(),
                "not in the network: {:?}",
                loader.left
            );
            Ok((model, report))
        }
    }
}

/// Decides what of a file is loaded into a network of `config`, before there is one.
pub(crate) fn compare(
    file: &CheckpointFile,
    config: &SegmentorConfig,
    mode: Mode,
) -> Result<LoadReport, CheckpointError> {
    let shapes = tensor_shapes(config);
    let others = match mode {
        Mode::Whole => Vec::new(),
        Mode::Pretrained => other_heads(file, &shapes),
    };
    let left_out = |name: &str| others.contains(&part(name));
    let mut report = LoadReport::default();
    let mut adapted = None;
    let mut wrong = Vec::new();
    for (name, expected) in &shapes {
        let Some(stored) = file.tensors.get(name).filter(|_| !left_out(name)) else {
            report.missing.push(name.clone());
            continue;
        };
        let found = &stored.shape;
        if found == expected {
            report.loaded.push(name.clone());
        } else if mode == Mode::Pretrained && reads_other_channels(name, expected, found) {
            report.loaded.push(name.clone());
            adapted = Some(format!(
                "{name} is for {count} channels, the file's for {RGB}: each of them begins with the mean of \
                 the file's, times {RGB}/{count}",
                count = expected[1]
            ));
        } else if mode == Mode::Pretrained && classes_differ(name, expected, found) {
            report.reinitialised.push(Reinitialised {
                name: name.clone(),
                expected: expected.clone(),
                found: found.clone(),
            });
        } else {
            wrong.push((name, expected, found));
        }
    }
    let unexpected = file
        .tensors
        .keys()
        .filter(|name| !shapes.contains_key(*name) || left_out(name));
    report.unexpected = unexpected.cloned().collect();

    // Parts that the file has must be there in full; a segmentor needs those that infer.
    let parts: BTreeSet<&str> = file.tensors.keys().map(|name| part(name)).collect();
    let required = |name: &str| match (part(name), mode) {
        ("backbone", _) | ("decode_head", Mode::Whole) => true,
        (part, _) => parts.contains(part) && !left_out(name),
    };
    // A neck changes what heads read.
    let in_model =
        |name: &str| matches!(part(name), "backbone" | "neck" | "decode_head") && !left_out(name);
    let missing = first(report.missing.iter().filter(|name| required(name)));
    let unexpected = first(report.unexpected.iter().filter(|name| in_model(name)));
    if !missing.is_empty() || !unexpected.is_empty() {
        return Err(CheckpointError::OtherArchitecture {
            path: file.path.clone(),
            expected: summary(config),
            found: file.architecture().map_or_else(
                |error| match error {
                    CheckpointError::NotASegmentor { found, .. } => found,
                    error => error.to_string(),
                },
                |config| summary(&config),
            ),
            missing,
            unexpected,
        });
    }
    if let Some((name, expected, found)) = wrong.first() {
        return Err(CheckpointError::WrongShape {
            path: file.path.clone(),
            name: (*name).clone(),
            expected: (*expected).clone(),
            found: (*found).clone(),
        });
    }
    if mode == Mode::Whole {
        check_size(file, &shapes)?;
    }
    report.remarks = file.remarks(config, mode)?;
    report.remarks.extend(adapted);
    report.remarks.extend(others.iter().map(|head| {
        format!("the file's {head} is another than this network's, which begins as drawn")
    }));
    Ok(report)
}

/// The heads of a file that are whole, but those of another network than one of these shapes: of another method, or
/// of other widths.
fn other_heads(file: &CheckpointFile, shapes: &BTreeMap<String, Vec<usize>>) -> Vec<&'static str> {
    let Ok(shown) = file.architecture_from_shapes() else {
        return Vec::new();
    };
    let theirs = tensor_shapes(&shown);
    let is_other = |head: &&str| {
        let of_head = |name: &&String| part(name) == *head;
        let has = |expected: &BTreeMap<String, Vec<usize>>, classes: bool| {
            let fits = |name: &String| match (expected.get(name), file.tensors.get(name)) {
                (Some(expected), Some(found)) => {
                    *expected == found.shape
                        || classes && classes_differ(name, expected, &found.shape)
                }
                _ => false,
            };
            let names = expected.keys().chain(file.tensors.keys());
            names.filter(of_head).all(fits)
        };
        file.tensors.keys().any(|name| of_head(&name)) && !has(shapes, true) && has(&theirs, false)
    };
    let heads = ["decode_head", "auxiliary_head"];
    heads.into_iter().filter(is_other).collect()
}

/// Whether a network of these shapes can come from a file of this size: tensors may repeat values, and
/// an auxiliary head may be missing.
fn check_size(
    file: &CheckpointFile,
    shapes: &BTreeMap<String, Vec<usize>>,
) -> Result<(), CheckpointError> {
    let values: u64 = shapes
        .values()
        .map(|shape| shape.iter().map(|extent| *extent as u64).product::<u64>())
        .sum();
    let bytes = 4 * values;
    match bytes <= file.bytes.saturating_mul(2).saturating_add(SLACK_BYTES) {
        true => Ok(()),
        false => Err(CheckpointError::Damaged {
            path: file.path.clone(),
            expected: format!("the values of a network that takes {bytes} bytes in f32"),
            found: format!("a file of {} bytes", file.bytes),
        }),
    }
}

/// The part of the network that a tensor belongs to.
fn part(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

fn classes_differ(name: &str, expected: &[usize], found: &[usize]) -> bool {
    name.contains(".conv_seg.") && expected[1..] == *found.get(1..).unwrap_or_default()
}

/// Whether it is the convolution that reads the image, of a file that was trained on colours.
fn reads_other_channels(name: &str, expected: &[usize], found: &[usize]) -> bool {
    ["backbone.stem.0.weight", "backbone.conv1.weight"].contains(&name)
        && found.len() == 4
        && found[1] == RGB
        && expected[0] == found[0]
        && expected[2..] == found[2..]
}

/// A weight `[c_out, 3, h, w]` for other channels: each gets the mean over the colours, times
/// `3 / channels`, so that a grey picture in all of them gives what it gave in three.
fn averaged_colors(data: &TensorData, channels: usize) -> TensorData {
    let [c_out, colors, height, width] = data.shape()[..] else {
        unreachable!("`reads_other_channels` looked at the shape");
    };
    let taps = height * width;
    let values: Vec<f32> = data.iter::<f32>().collect();
    let mut averaged: Vec<f32> = Vec::with_capacity(c_out * channels * taps);
    for row in values.chunks_exact(colors * taps) {
        let sum = |tap: usize| {
            (0..colors)
                .map(|color| row[color * taps + tap])
                .sum::<f32>()
        };
        let mean: Vec<f32> = (0..taps).map(|tap| sum(tap) / channels as f32).collect();
        (0..channels).for_each(|_| averaged.extend(&mean));
    }
    TensorData::new(averaged, [c_out, channels, height, width])
}

fn first<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    names.take(NAMED).cloned().collect()
}

fn summary(config: &SegmentorConfig) -> String {
    format!("{} on {}", config.method, config.backbone)
}

struct Loader<'a> {
    names: BTreeMap<ParamId, String>,
    file: &'a CheckpointFile,
    /// What is still to be loaded.
    left: BTreeSet<&'a str>,
    error: Option<CheckpointError>,
}

impl ModuleMapper for Loader<'_> {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let name = self.names[&param.id].as_str();
        if self.error.is_some() || !self.left.remove(name) {
            return param;
        }
        let data = match self.file.read_f32(name) {
            Ok(data) => data,
            Err(error) => {
                self.error = Some(error);
                return param;
            }
        };
        let tracked = param.is_require_grad();
        let device = param.val().device();
        let dims = param.val().dims();
        let data = match data.shape()[..] == dims {
            true => data,
            false => averaged_colors(&data, dims[1]),
        };
        let value = Tensor::from_data(data, (&device, DType::F32)).set_require_grad(tracked);
        param.map(|_| value)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;

    use burn::tensor::Device;

    use super::*;

    #[test]
    fn averaged_colors_answer_to_grey_as_the_colors_did() {
        let values: Vec<f32> = (0..2 * 3 * 4).map(|i| i as f32).collect();
        let colors = TensorData::new(values.clone(), [2, 3, 2, 2]);
        for channels in [1, 2, 4, 7] {
            let found = averaged_colors(&colors, channels);
            assert_eq!(found.shape()[..], [2, channels, 2, 2]);
            let found: Vec<f32> = found.iter::<f32>().collect();
            for (out, row) in values.chunks(12).enumerate() {
                for tap in 0..4 {
                    let there: f32 = (0..3).map(|color| row[4 * color + tap]).sum();
                    let at = |channel| found[(out * channels + channel) * 4 + tap];
                    let here: f32 = (0..channels).map(at).sum();
                    assert!((here - there).abs() < 1e-4, "{channels}: {here}, {there}");
                    assert_eq!(at(0), at(channels - 1));
                }
            }
        }
    }

    /// A tensor of any shape can be one value that is repeated: of a small file, a network of any size.
    #[test]
    fn a_network_much_larger_than_its_file_is_refused() {
        let config = SegmentorConfig::deeplabv3_r101_d8();
        let mut pickle = String::from("(d");
        for (name, shape) in tensor_shapes(&config) {
            let shape: String = shape.iter().map(|extent| format!("I{extent}\n")).collect();
            let strides = "I0\n".repeat(shape.lines().count());
            pickle += &format!(
                "V{name}\nctorch._utils\n_rebuild_tensor_v2\n((Vstorage\nctorch\nFloatStorage\nV0\n\
                 Vcpu\nI1\ntQI0\n({shape}t({strides}tI00\n(dtRs"
            );
        }
        pickle += ".";
        let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored);
        for (name, bytes) in [
            ("data.pkl", pickle.as_bytes()),
            ("byteorder", b"little"),
            ("data/0", &1f32.to_le_bytes()),
            ("version", b"3\n"),
        ] {
            archive
                .start_file(format!("model/{name}"), options)
                .unwrap();
            archive.write_all(bytes).unwrap();
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("repeated.pth");
        fs::write(&path, archive.finish().unwrap().into_inner()).unwrap();
        assert_eq!(crate::read_architecture(&path).unwrap().num_classes, 19);
        let error = crate::load(&path, None, &Device::flex())
            .unwrap_err()
            .to_string();
        assert!(error.contains("found a file of"), "{error}");
    }
}
