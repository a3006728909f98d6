//! Reading what the reference programs write.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use halfseg_segmentor::{Depth, Method, SegmentorConfig, read_architecture};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

/// All folders at or below `root` that hold a recording, sorted.
pub fn folders_below(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(folder) = pending.pop() {
        if folder.join("reference.json").is_file() {
            found.push(folder.clone());
        }
        let Ok(entries) = fs::read_dir(&folder) else {
            continue;
        };
        let entries = entries.filter_map(|entry| Some(entry.ok()?.path()));
        pending.extend(entries.filter(|path| path.is_dir()));
    }
    found.sort();
    found
}

/// A folder that `make_reference.py` wrote.
pub struct Recording {
    folder: PathBuf,
    report: Value,
}

impl Recording {
    pub fn open(folder: PathBuf) -> Self {
        let report = read_json(&folder.join("reference.json"));
        Self { folder, report }
    }

    pub fn path(&self, file: &str) -> PathBuf {
        self.folder.join(file)
    }

    pub fn json(&self, file: &str) -> Value {
        read_json(&self.path(file))
    }

    /// The number at the end of a path of keys in `reference.json`.
    pub fn number(&self, keys: &[&str]) -> Option<f64> {
        keys.iter()
            .try_fold(&self.report, |value, key| value.get(key))?
            .as_f64()
    }

    /// The tensors in a file, if the recording has it.
    pub fn tensors(&self, file: &str) -> Option<Values> {
        let path = self.path(file);
        path.is_file().then(|| Values::open(&path))
    }

    /// The architecture that was recorded: as the arguments say, and in what they do not say (strides,
    /// dilations, stems) as the configuration in `model.pth` does.
    pub fn config(&self) -> SegmentorConfig {
        let args = &self.report["args"];
        let number = |key: &str| args[key].as_u64().unwrap_or_else(|| panic!("no {key}")) as usize;
        let method: Method = args["method"]
            .as_str()
            .expect("a method")
            .parse()
            .expect("a method");
        let depth: Depth = format!("resnet{}", number("depth"))
            .parse()
            .expect("a depth");
        let weights = self.path("model.pth");
        let mut config = read_architecture(weights).unwrap_or_else(|error| panic!("{error}"));
        (config.method, config.backbone) = (method, depth);
        config.base_channels = number("base_channels");
        config.stem_channels = number("stem_channels");
        config.head_channels = number("channels");
        config.aux_channels = number("aux_channels");
        if method == Method::DeepLabV3Plus {
            config.c1_channels = number("c1_channels");
        }
        config.num_classes = number("num_classes");
        config.dropout = args["dropout"].as_f64().expect("a dropout ratio");
        // An official configuration may say so itself.
        config.align_corners |= args["align_corners"].as_bool().unwrap_or(false);
        if let Some(dilations) = args["dilations"].as_array() {
            let number = |value: &Value| value.as_u64().expect("a dilation") as usize;
            config.dilations = dilations.iter().map(number).collect();
        }
        config
    }
}

fn read_json(path: &Path) -> Value {
    let text = fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Tensors of a recording.
pub struct Values(BTreeMap<String, (Vec<usize>, Dtype, Vec<u8>)>);

impl Values {
    fn open(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let file =
            SafeTensors::deserialize(&bytes).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let tensors = file.iter().map(|(name, view)| {
            let tensor = (view.shape().to_vec(), view.dtype(), view.data().to_vec());
            (name.to_owned(), tensor)
        });
        Self(tensors.collect())
    }

    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// What follows `prefix` in the names that start with it.
    pub fn names_after(&self, prefix: &str) -> Vec<String> {
        self.0
            .keys()
            .filter_map(|name| Some(name.strip_prefix(prefix)?.to_owned()))
            .collect()
    }

    fn get(&self, name: &str) -> &(Vec<usize>, Dtype, Vec<u8>) {
        self.0
            .get(name)
            .unwrap_or_else(|| panic!("the recording has no {name}"))
    }

    pub fn float<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D> {
        let (shape, dtype, bytes) = self.get(name);
        assert_eq!(*dtype, Dtype::F32, "{name} is not f32");
        let data = TensorData::from_bytes_vec(bytes.clone(), shape.clone(), DType::F32);
        Tensor::from_data(data, (device, DType::F32))
    }

    /// All values in one row.
    pub fn row(&self, name: &str, device: &Device) -> Tensor<1> {
        let (shape, dtype, bytes) = self.get(name);
        assert_eq!(*dtype, Dtype::F32, "{name} is not f32");
        let count: usize = shape.iter().product();
        let data = TensorData::from_bytes_vec(bytes.clone(), vec![count], DType::F32);
        Tensor::from_data(data, (device, DType::F32))
    }

    pub fn int<const D: usize>(&self, name: &str, device: &Device) -> Tensor<D, Int> {
        let (shape, dtype, bytes) = self.get(name);
        assert_eq!(*dtype, Dtype::U8, "{name} is not u8");
        let values: Vec<i64> = bytes.iter().map(|&value| i64::from(value)).collect();
        Tensor::from_data(TensorData::new(values, shape.clone()), device)
    }

    /// Width, height and values of an 8-bit map or interleaved image.
    pub fn bytes(&self, name: &str) -> (usize, usize, Vec<u8>) {
        let (shape, dtype, bytes) = self.get(name);
        assert_eq!(*dtype, Dtype::U8, "{name} is not u8");
        (shape[1], shape[0], bytes.clone())
    }
}
