#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

#[cfg(feature = "check")]
mod check;
mod error;
mod graph;
mod network;
mod options;
mod pooling;
mod proto;

use burn::module::Module;
use halfseg_segmentor::Segmentor;
use prost::Message;

#[cfg(feature = "check")]
pub use check::{Agreement, check};
pub use error::OnnxError;
pub use halfseg_segmentor;
pub use options::{OnnxInput, OnnxOptions, OnnxOutput, WeightFormat};

use graph::{Graph, Map, value_info};
use proto::{AttributeProto, DataType, ModelProto, OperatorSetIdProto, StringStringEntryProto};

/// The operators' version: what runtimes since 2022 read, with everything that the networks need.
const OPSET: i64 = 17;
/// The version of the format that came with it.
const IR_VERSION: i64 = 8;
/// What a protobuf message has less than.
const LIMIT: usize = 1 << 31;

/// `model` for inference as the bytes of an ONNX file: input `input`, output `logits` or `classes` at the image's
/// size. The auxiliary head is left out, normalisations are folded into convolutions, and pooling to bins is made
/// of plain operators, so that no runtime needs more than opset 17.
///
/// # Errors
/// Options that do not fit the network, weights that are not finite or not in their format, and a file of more
/// than 2 GB.
pub fn export(model: &Segmentor, options: &OnnxOptions) -> Result<Vec<u8>, OnnxError> {
    validate(model, options)?;
    let model = model.valid();
    let config = model.config();
    let mut graph = Graph::new(options.weights);
    let dimensions = |channels: Option<usize>| {
        let size = options.size;
        let mut all = vec![("batch", options.batch)];
        all.extend(channels.map(|channels| ("channels", Some(channels))));
        all.push(("height", size.map(|[h, _]| h)));
        all.push(("width", size.map(|[_, w]| w)));
        all
    };

    let channels = config.in_channels;
    let mut image = Map {
        name: "input".to_owned(),
        channels,
        size: options.size,
    };
    let whole = image.clone();
    let mut input_type = DataType::Float;
    if let OnnxInput::Bytes { mean, std } = &options.input {
        input_type = DataType::Uint8;
        let mean = graph.floats("mean", &[1, channels, 1, 1], mean);
        let std = graph.floats("std", &[1, channels, 1, 1], std);
        let x = graph.cast("normalise", &image.name, DataType::Float);
        let x = graph.node("normalise", "Sub", &[&x, &mean], vec![]);
        image.name = graph.node("normalise", "Div", &[&x, &std], vec![]);
    }
    let logits = network::head_logits(&mut graph, &model, image)?;
    let logits = graph.resize("logits", logits, &whole, config.align_corners);

    let output = match options.output {
        OnnxOutput::Logits => {
            graph.last("logits", "Identity", &[&logits.name], vec![]);
            value_info(
                "logits",
                DataType::Float,
                &dimensions(Some(config.outputs())),
            )
        }
        OnnxOutput::Classes => {
            let classes = match config.binary {
                true => graph.above(&logits, config.logit_threshold()),
                false => graph.greatest(&logits),
            };
            let to = AttributeProto::int("to", DataType::Uint8 as i64);
            graph.last("classes", "Cast", &[&classes], vec![to]);
            value_info("classes", DataType::Uint8, &dimensions(None))
        }
    };
    let input = value_info("input", input_type, &dimensions(Some(channels)));
    let metadata = options
        .metadata
        .iter()
        .map(|(key, value)| StringStringEntryProto {
            key: key.clone(),
            value: value.clone(),
        });
    let file = ModelProto {
        ir_version: IR_VERSION,
        producer_name: "halfseg".to_owned(),
        producer_version: env!("CARGO_PKG_VERSION").to_owned(),
        graph: Some(graph.into_proto(&config.method.to_string(), input, output)),
        opset_import: vec![OperatorSetIdProto {
            domain: String::new(),
            version: OPSET,
        }],
        metadata_props: metadata.collect(),
    };
    match file.encoded_len() {
        bytes if bytes < LIMIT => Ok(file.encode_to_vec()),
        bytes => Err(OnnxError::TooLarge { bytes }),
    }
}

fn validate(model: &Segmentor, options: &OnnxOptions) -> Result<(), OnnxError> {
    let channels = model.config().in_channels;
    if options.batch == Some(0) {
        return Err(OnnxError::option("batch", "at least 1", 0));
    }
    if let Some([h, w]) = options.size.filter(|size| size.contains(&0)) {
        let found = format!("{h}x{w}");
        return Err(OnnxError::option("size", "sides of at least 1", found));
    }
    if let OnnxInput::Bytes { mean, std } = &options.input {
        for (option, values) in [("mean", mean), ("std", std)] {
            let expected = format!("a finite number for each of {channels} channels");
            let finite = values.iter().all(|value| value.is_finite());
            if values.len() != channels || !finite {
                return Err(OnnxError::option(option, expected, format!("{values:?}")));
            }
        }
        if std.contains(&0.0) {
            let found = format!("{std:?}");
            return Err(OnnxError::option("std", "numbers that are not 0", found));
        }
    }
    Ok(())
}
