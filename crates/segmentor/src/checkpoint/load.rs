//! Putting a file's tensors into a network.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::tensor::{DType, Tensor};

use super::CheckpointError;
use super::file::CheckpointFile;
use super::names::mmseg_name;
use crate::{Segmentor, SegmentorConfig};

/// How many tensors an error names at most, of each kind.
const NAMED: usize = 4;

/// What became of a checkpoint's tensors, by MMSegmentation's names.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoadReport {
    /// Tensors that the network now has from the file.
    pub loaded: Vec<String>,
    /// Tensors of the network that the file lacks; they stay as drawn.
    pub missing: Vec<String>,
    /// Tensors of the file that the network has no place for.
    pub unexpected: Vec<String>,
    /// Classifiers that stay as drawn because the file's have another number of classes.
    pub reinitialised: Vec<Reinitialised>,
}

/// A tensor that was not loaded because its number of classes differs.
#[derive(Clone, Debug, PartialEq)]
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

pub(crate) fn load_into(
    model: Segmentor,
    file: &CheckpointFile,
    mode: Mode,
) -> Result<(Segmentor, LoadReport), CheckpointError> {
    let shapes = shapes(&model);
    let report = compare(&shapes, model.config(), file, mode)?;
    let mut values = BTreeMap::new();
    for name in &report.loaded {
        values.insert(name.clone(), file.read_f32(name)?);
    }
    let mut path = Vec::new();
    let model = model.map(&mut Loader {
        path: &mut path,
        values,
    });
    Ok((model, report))
}

/// Decides what is loaded, before anything is.
fn compare(
    shapes: &BTreeMap<String, Vec<usize>>,
    config: &SegmentorConfig,
    file: &CheckpointFile,
    mode: Mode,
) -> Result<LoadReport, CheckpointError> {
    let mut report = LoadReport::default();
    let mut wrong = Vec::new();
    for (name, expected) in shapes {
        let Some(stored) = file.tensors.get(name) else {
            report.missing.push(name.clone());
            continue;
        };
        let found = &stored.shape;
        if found == expected {
            report.loaded.push(name.clone());
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
        .filter(|name| !shapes.contains_key(*name));
    report.unexpected = unexpected.cloned().collect();

    // Parts that the file has must be there in full; a segmentor needs those that infer.
    let parts: BTreeSet<&str> = file.tensors.keys().map(|name| part(name)).collect();
    let required = |name: &str| match (part(name), mode) {
        ("backbone", _) | ("decode_head", Mode::Whole) => true,
        (part, _) => parts.contains(part),
    };
    let in_model = |name: &str| matches!(part(name), "backbone" | "decode_head");
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
    match wrong.first() {
        Some((name, expected, found)) => Err(CheckpointError::WrongShape {
            path: file.path.clone(),
            name: (*name).clone(),
            expected: (*expected).clone(),
            found: (*found).clone(),
        }),
        None => Ok(report),
    }
}

/// The part of the network that a tensor belongs to.
fn part(name: &str) -> &str {
    name.split('.').next().unwrap_or(name)
}

fn classes_differ(name: &str, expected: &[usize], found: &[usize]) -> bool {
    name.contains(".conv_seg.") && expected[1..] == *found.get(1..).unwrap_or_default()
}

fn first<'a>(names: impl Iterator<Item = &'a String>) -> Vec<String> {
    names.take(NAMED).cloned().collect()
}

fn summary(config: &SegmentorConfig) -> String {
    format!("{} on {}", config.method, config.backbone)
}

fn shapes(model: &Segmentor) -> BTreeMap<String, Vec<usize>> {
    #[derive(Default)]
    struct Shapes {
        path: Vec<String>,
        shapes: BTreeMap<String, Vec<usize>>,
    }
    impl ModuleVisitor for Shapes {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.shapes
                .insert(mmseg_name(&self.path), param.dims().to_vec());
        }
    }
    let mut visitor = Shapes::default();
    model.visit(&mut visitor);
    visitor.shapes
}

struct Loader<'a> {
    path: &'a mut Vec<String>,
    values: BTreeMap<String, burn::tensor::TensorData>,
}

impl ModuleMapper for Loader<'_> {
    fn enter_module(&mut self, name: &str, _: &str) {
        self.path.push(name.to_owned());
    }
    fn exit_module(&mut self, _: &str, _: &str) {
        self.path.pop();
    }
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let Some(data) = self.values.remove(&mmseg_name(self.path)) else {
            return param;
        };
        let tracked = param.is_require_grad();
        let device = param.val().device();
        let value = Tensor::from_data(data, (&device, DType::F32)).set_require_grad(tracked);
        param.map(|_| value)
    }
}
