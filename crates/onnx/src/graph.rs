//! A graph under construction.

use std::collections::BTreeMap;

use half::{bf16, f16};

use crate::proto::{
    AttributeProto, DataType, Dimension, GraphProto, NodeProto, TensorProto, TensorShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto,
};
use crate::{OnnxError, WeightFormat};

/// A map `[n, channels, h, w]` of the graph.
#[derive(Clone, Debug)]
pub(crate) struct Map {
    /// The value's name.
    pub name: String,
    /// How many.
    pub channels: usize,
    /// Height and width, where they are known.
    pub size: Option<[usize; 2]>,
}

/// Nodes and constants, in the order in which they are computed.
#[derive(Debug)]
pub(crate) struct Graph {
    nodes: Vec<NodeProto>,
    constants: Vec<TensorProto>,
    format: WeightFormat,
    /// How often a name was asked for.
    names: BTreeMap<String, usize>,
    /// Constants of whole numbers by value, so that each is there once.
    integers: BTreeMap<(Vec<usize>, Vec<i64>), String>,
}

impl Graph {
    pub fn new(format: WeightFormat) -> Self {
        Self {
            nodes: Vec::new(),
            constants: Vec::new(),
            format,
            names: BTreeMap::new(),
            integers: BTreeMap::new(),
        }
    }

    /// `name`, with a number behind it if it is taken.
    fn unique(&mut self, name: String) -> String {
        let count = self.names.entry(name.clone()).or_default();
        *count += 1;
        match *count {
            1 => name,
            count => format!("{name}_{count}"),
        }
    }

    /// The output of a new node, which is called after `path` and `operator`.
    pub fn node(
        &mut self,
        path: &str,
        operator: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> String {
        let name = self.unique(format!("{path}/{operator}"));
        self.push(name.clone(), operator, inputs, attributes, name.clone());
        name
    }

    /// As [`node`](Self::node), with an output of this name.
    pub fn last(
        &mut self,
        output: &str,
        operator: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) {
        self.push(
            format!("{output}/{operator}"),
            operator,
            inputs,
            attributes,
            output.to_owned(),
        );
    }

    fn push(
        &mut self,
        name: String,
        operator: &str,
        inputs: &[&str],
        attribute: Vec<AttributeProto>,
        output: String,
    ) {
        self.nodes.push(NodeProto {
            input: inputs.iter().map(|name| (*name).to_owned()).collect(),
            output: vec![output],
            name,
            op_type: operator.to_owned(),
            attribute,
        });
    }

    fn constant(
        &mut self,
        name: &str,
        data_type: DataType,
        dims: &[usize],
        raw_data: Vec<u8>,
    ) -> String {
        let name = self.unique(name.to_owned());
        self.constants.push(TensorProto {
            dims: dims.iter().map(|dim| *dim as i64).collect(),
            data_type: data_type as i32,
            name: name.clone(),
            raw_data,
        });
        name
    }

    /// A constant of whole numbers.
    pub fn integers(&mut self, dims: &[usize], values: &[i64]) -> String {
        let key = (dims.to_vec(), values.to_vec());
        if let Some(name) = self.integers.get(&key) {
            return name.clone();
        }
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        let name = self.constant("integers", DataType::Int64, dims, bytes.collect());
        self.integers.insert(key, name.clone());
        name
    }

    /// A constant in f32, whatever the format of weights.
    pub fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> String {
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        self.constant(name, DataType::Float, dims, bytes.collect())
    }

    /// A weight in the format of the file, as an f32 value of the graph.
    ///
    /// # Errors
    /// Values that are not finite, or not in that format.
    pub fn weight(
        &mut self,
        name: &str,
        dims: &[usize],
        values: Vec<f32>,
    ) -> Result<String, OnnxError> {
        let count = |bad: &dyn Fn(f32) -> bool| values.iter().filter(|value| bad(**value)).count();
        let wrong = |count, what, advice| OnnxError::Weight {
            parameter: name.to_owned(),
            count,
            what,
            advice,
        };
        match count(&|value| !value.is_finite()) {
            0 => {}
            some => {
                let advice = "the checkpoint is damaged, or its training diverged";
                return Err(wrong(some, "are not finite", advice));
            }
        }
        Ok(match self.format {
            WeightFormat::F32 => self.floats(name, dims, &values),
            WeightFormat::Bf16 => {
                let rounded = values.iter().map(|value| bf16::from_f32(*value).to_f32());
                self.floats(name, dims, &rounded.collect::<Vec<_>>())
            }
            WeightFormat::F16 => {
                match count(&|value| f16::from_f32(value).is_infinite()) {
                    0 => {}
                    some => return Err(wrong(some, "are beyond 65504", "store weights in f32")),
                }
                let bytes = values
                    .iter()
                    .flat_map(|value| f16::from_f32(*value).to_le_bytes());
                let stored = self.constant(name, DataType::Float16, dims, bytes.collect());
                self.cast(name, &stored, DataType::Float)
            }
        })
    }

    pub fn cast(&mut self, path: &str, value: &str, to: DataType) -> String {
        let to = AttributeProto::int("to", to as i64);
        self.node(path, "Cast", &[value], vec![to])
    }

    /// Height and width of `map` as two whole numbers, known or computed.
    pub fn size_of(&mut self, map: &Map) -> String {
        match map.size {
            Some([h, w]) => self.integers(&[2], &[h as i64, w as i64]),
            None => self.shape_part(map, [2, 4]),
        }
    }

    /// Entries `from..to` of the shape of `map`.
    fn shape_part(&mut self, map: &Map, [from, to]: [i64; 2]) -> String {
        let shape = self.node(&map.name, "Shape", &[&map.name], vec![]);
        let (from, to) = (self.integers(&[1], &[from]), self.integers(&[1], &[to]));
        self.node(&map.name, "Slice", &[&shape, &from, &to], vec![])
    }

    /// `map` resized bilinearly to the height and width of `like`.
    pub fn resize(&mut self, path: &str, map: Map, like: &Map, align_corners: bool) -> Map {
        if map.size.is_some() && map.size == like.size {
            return map;
        }
        let size = self.size_of(like);
        let first = self.shape_part(&map, [0, 2]);
        let sizes = self.concat(path, &[&first, &size], 0);
        let attributes = resize_attributes(align_corners);
        let name = self.node(path, "Resize", &[&map.name, "", "", &sizes], attributes);
        Map {
            name,
            channels: map.channels,
            size: like.size,
        }
    }

    /// The channel of the greatest value of each pixel, the first of equals.
    pub fn greatest(&mut self, map: &Map) -> String {
        let attributes = vec![
            AttributeProto::int("axis", 1),
            AttributeProto::int("keepdims", 0),
        ];
        self.node("classes", "ArgMax", &[&map.name], attributes)
    }

    /// Where the one logit of each pixel is above this one.
    pub fn above(&mut self, map: &Map, logit: f64) -> String {
        let logit = self.floats("threshold", &[], &[logit as f32]);
        let above = self.node("classes", "Greater", &[&map.name, &logit], vec![]);
        let axis = self.integers(&[1], &[1]);
        self.node("classes", "Squeeze", &[&above, &axis], vec![])
    }

    pub fn concat(&mut self, path: &str, values: &[&str], axis: i64) -> String {
        let axis = AttributeProto::int("axis", axis);
        self.node(path, "Concat", values, vec![axis])
    }

    pub fn into_proto(
        self,
        name: &str,
        input: ValueInfoProto,
        output: ValueInfoProto,
    ) -> GraphProto {
        GraphProto {
            node: self.nodes,
            name: name.to_owned(),
            initializer: self.constants,
            input: vec![input],
            output: vec![output],
        }
    }
}

/// Bilinear, as PyTorch's `interpolate`.
fn resize_attributes(align_corners: bool) -> Vec<AttributeProto> {
    let positions = match align_corners {
        true => "align_corners",
        false => "half_pixel",
    };
    vec![
        AttributeProto::text("mode", "linear"),
        AttributeProto::text("coordinate_transformation_mode", positions),
    ]
}

/// An input or output: each dimension has a size, or a name where any will do.
pub(crate) fn value_info(
    name: &str,
    data_type: DataType,
    dimensions: &[(&str, Option<usize>)],
) -> ValueInfoProto {
    let dim = dimensions.iter().map(|(name, size)| match size {
        Some(size) => Dimension {
            dim_value: Some(*size as i64),
            dim_param: None,
        },
        None => Dimension {
            dim_value: None,
            dim_param: Some((*name).to_owned()),
        },
    });
    let shape = TensorShapeProto { dim: dim.collect() };
    ValueInfoProto {
        name: name.to_owned(),
        r#type: Some(TypeProto {
            tensor_type: Some(TensorTypeProto {
                elem_type: data_type as i32,
                shape: Some(shape),
            }),
        }),
    }
}
