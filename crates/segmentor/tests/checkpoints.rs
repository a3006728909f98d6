//! Checkpoints: what goes in comes out, and what is wrong with a file is said.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Device, Tensor, TensorData};
use half::f16;
use halfseg_segmentor::{
    CheckpointError, ClassTable, Depth, Method, MmsegExport, Naming, Segmentor, SegmentorConfig,
    load, read_architecture, read_classes, read_metadata,
};
use safetensors::tensor::{Dtype, TensorView};

/// A network small enough to write many times.
fn tiny(method: Method) -> SegmentorConfig {
    let mut config = SegmentorConfig::new(method, Depth::R18);
    (config.base_channels, config.stem_channels) = (2, 4);
    (
        config.head_channels,
        config.aux_channels,
        config.c1_channels,
    ) = (4, 4, 4);
    config.num_classes = 4;
    config
}

fn recording(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/recordings")
        .join(file)
}

fn tensors(model: &Segmentor) -> BTreeMap<String, TensorData> {
    struct Visitor {
        names: BTreeMap<ParamId, String>,
        found: BTreeMap<String, TensorData>,
    }
    impl ModuleVisitor for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.found
                .insert(self.names[&param.id].clone(), param.val().into_data());
        }
    }
    let mut visitor = Visitor {
        names: model.names(),
        found: BTreeMap::new(),
    };
    model.visit(&mut visitor);
    visitor.found
}

/// Writes `tensors` as safetensors.
fn write(path: &Path, tensors: &BTreeMap<String, TensorData>, dtype: Dtype) {
    write_with(path, tensors, dtype, None);
}

fn write_with(
    path: &Path,
    tensors: &BTreeMap<String, TensorData>,
    dtype: Dtype,
    metadata: Option<HashMap<String, String>>,
) {
    let bytes: BTreeMap<&String, (Vec<usize>, Vec<u8>)> = tensors
        .iter()
        .map(|(name, data)| {
            let values = data.iter::<f32>();
            let bytes = match dtype {
                Dtype::F16 => values
                    .flat_map(|v| f16::from_f32(v).to_le_bytes())
                    .collect(),
                Dtype::I32 => values.flat_map(|v| (v as i32).to_le_bytes()).collect(),
                _ => values.flat_map(f32::to_le_bytes).collect(),
            };
            (name, (data.shape().to_vec(), bytes))
        })
        .collect();
    let views = bytes.iter().map(|(name, (shape, bytes))| {
        let view = TensorView::new(dtype, shape.clone(), bytes).expect("sizes fit");
        (name.as_str(), view)
    });
    let file = safetensors::serialize(views, metadata).expect("tensors can be written");
    fs::write(path, file).expect("a temporary file can be written");
}

/// Loads `path` into FCN and gives the error.
fn error(path: &Path) -> CheckpointError {
    match load(path, Some(&tiny(Method::Fcn)), &Device::flex()) {
        Ok(_) => panic!("{} was loaded", path.display()),
        Err(error) => {
            assert!(
                error.to_string().contains(&path.display().to_string()),
                "{error}"
            );
            error
        }
    }
}

#[test]
fn a_saved_network_comes_back_bit_for_bit_with_its_metadata() {
    let folder = tempfile::tempdir().expect("a folder");
    for method in Method::ALL {
        let path = folder.path().join(format!("{method}.safetensors"));
        let mut config = tiny(method);
        config.dilations = vec![1, 2, 3];
        let model = config.init(&Device::flex());
        let metadata = BTreeMap::from([("iteration".to_owned(), "7".to_owned())]);
        model
            .save_safetensors(&path, metadata)
            .expect("it can be written");
        let (back, report) = load(&path, None, &Device::flex()).expect("it can be read");
        assert!(
            report.is_complete() && report.unexpected.is_empty(),
            "{report}"
        );
        assert_eq!(tensors(&back), tensors(&model));
        assert_eq!(back.config(), &config);
        assert_eq!(
            read_metadata(&path).expect("it can be read")["iteration"],
            "7"
        );
    }
    assert_eq!(
        fs::read_dir(folder.path()).expect("a folder").count(),
        4,
        "something was left"
    );
}

#[test]
fn a_failed_save_leaves_the_previous_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("checkpoint");
    fs::create_dir(&path).expect("a folder");
    fs::write(path.join("previous"), "kept").expect("a file");
    let model = tiny(Method::Fcn).init(&Device::flex());
    let error = model
        .save_safetensors(&path, BTreeMap::new())
        .expect_err("it is a folder");
    assert!(matches!(error, CheckpointError::Write { .. }), "{error}");
    assert_eq!(
        fs::read(path.join("previous")).expect("still there"),
        b"kept"
    );
    assert_eq!(fs::read_dir(folder.path()).expect("a folder").count(), 1);
}

#[test]
fn half_precision_weights_become_f32_master_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("f16.safetensors");
    let config = tiny(Method::PspNet);
    let model = config.init(&Device::flex());
    write(&path, &tensors(&model), Dtype::F16);
    let (back, _) = load(&path, Some(&config), &Device::flex()).expect("it can be read");
    for (name, data) in tensors(&back) {
        assert_eq!(data.dtype(), burn::tensor::DType::F32, "{name}");
        let expected = tensors(&model)[&name].clone();
        for (found, exact) in data.iter::<f32>().zip(expected.iter::<f32>()) {
            assert_eq!(found, f16::from_f32(exact).to_f32(), "{name}");
        }
    }
}

#[test]
fn wrappers_and_prefixes_are_recognised() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = tiny(Method::DeepLabV3);
    let model = config.init(&Device::flex());
    for prefix in [
        "state_dict.",
        "module.",
        "state_dict.module.",
        "_orig_mod.",
        "module._orig_mod.",
        // Lightning's, of a module that is called `model`, and compiled.
        "state_dict.model.",
        "state_dict.model._orig_mod.",
    ] {
        let path = folder.path().join("wrapped.safetensors");
        let mut wrapped: BTreeMap<String, TensorData> = tensors(&model)
            .into_iter()
            .map(|(name, data)| (format!("{prefix}{name}"), data))
            .collect();
        if prefix.starts_with("state_dict") {
            let state = TensorData::from([1.0f32]);
            wrapped.insert("optimizer.state.0.momentum_buffer".to_owned(), state);
        }
        write(&path, &wrapped, Dtype::F32);
        let (back, report) = load(&path, None, &Device::flex()).expect("it can be read");
        assert!(
            report.is_complete() && report.unexpected.is_empty(),
            "{report}"
        );
        assert_eq!(tensors(&back), tensors(&model));
        assert!(!report.to_string().contains("below"), "{report}");
    }
}

#[test]
fn an_unknown_prefix_is_named_and_so_are_those_of_other_networks() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("prefixed.safetensors");
    let config = tiny(Method::Fcn);
    let model = config.init(&Device::flex());
    let named = |prefixes: &[&str]| -> BTreeMap<String, TensorData> {
        let names = |prefix: &&str| {
            let prefix = (*prefix).to_owned();
            let tensors = tensors(&model).into_iter();
            tensors.map(move |(name, data)| (format!("{prefix}{name}"), data))
        };
        prefixes.iter().flat_map(names).collect()
    };
    for (prefixes, remark) in [
        (&["segmenter."][..], "taken is what is below `segmenter.`"),
        (
            &["state_dict.", "ema_state_dict.module."],
            "other networks, not used: below `ema_state_dict.`",
        ),
    ] {
        write(&path, &named(prefixes), Dtype::F32);
        let (back, report) = load(&path, None, &Device::flex()).expect("it can be read");
        assert!(report.is_complete(), "{report}");
        assert!(report.to_string().contains(remark), "{report}");
        assert_eq!(tensors(&back), tensors(&model));
    }
    write(&path, &named(&["teacher.", "student."]), Dtype::F32);
    let error = error(&path).to_string();
    assert!(error.contains("below `student.`, `teacher.`"), "{error}");
    // The same name twice: nobody can tell which is meant.
    write(&path, &named(&["", "module."]), Dtype::F32);
    assert!(matches!(
        self::error(&path),
        CheckpointError::Damaged { .. }
    ));
}

#[test]
fn a_backbone_alone_starts_training_and_the_rest_is_reported() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("resnet18_v1c.safetensors");
    let device = Device::flex();
    let source = tensors(&tiny(Method::Fcn).init(&device));
    let mut backbone: BTreeMap<String, TensorData> = source
        .iter()
        .filter_map(|(name, data)| Some((name.strip_prefix("backbone.")?.to_owned(), data.clone())))
        .collect();
    backbone.insert("fc.weight".to_owned(), TensorData::from([[1.0f32, 2.0]]));
    write(&path, &backbone, Dtype::F32);

    let model = tiny(Method::DeepLabV3Plus).init(&device);
    let before = tensors(&model);
    let (model, report) = model.load_pretrained(&path).expect("it can be read");
    let after = tensors(&model);
    for (name, data) in &after {
        let expected = if name.starts_with("backbone.") {
            &source[name]
        } else {
            &before[name]
        };
        assert_eq!(data, expected, "{name}");
    }
    assert_eq!(report.unexpected, ["fc.weight"]);
    assert_eq!(report.loaded.len(), backbone.len() - 1);
    assert_eq!(report.missing.len(), after.len() - report.loaded.len());
    // For inference a random head is an error.
    assert!(matches!(
        error(&path),
        CheckpointError::OtherArchitecture { .. }
    ));
    let reason = read_architecture(&path)
        .expect_err("it has no head")
        .to_string();
    assert!(reason.contains("a backbone without a head"), "{reason}");
}

/// `torch.save` of the backbone of the recording `fcn`, with a classifier as ImageNet checkpoints
/// have it, wrapped and with `module.` before its names: as an archive, and as before PyTorch 1.6.
/// The archive's name has 21 bytes, which zip 9.1 to 9.8 take for a sign of damage.
#[test]
fn backbones_that_pytorch_saved_start_training() {
    let device = Device::flex();
    let (source, _) = load(recording("fcn/model.pth"), None, &device).expect("it can be read");
    let source = tensors(&source);
    for file in ["resnet18_v1c_imagenet.pth", "resnet18_v1c_old.pth"] {
        let path = recording("../backbones").join(file);
        let model = tiny(Method::PspNet).init(&device);
        let (model, report) = model
            .load_pretrained(&path)
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(report.unexpected, ["fc.bias", "fc.weight"], "{file}");
        assert!(
            report
                .missing
                .iter()
                .all(|name| !name.starts_with("backbone."))
        );
        let loaded = tensors(&model);
        let backbone: Vec<_> = source
            .iter()
            .filter(|(name, _)| name.starts_with("backbone."))
            .collect();
        assert_eq!(report.loaded.len(), backbone.len(), "{file}");
        for (name, data) in backbone {
            assert_eq!(&loaded[name], data, "{file}: {name}");
        }
    }
}

/// The backbone of the recording `fcn` once more, saved by PyTorch after `.half()`.
#[test]
fn half_precision_that_pytorch_saved_becomes_f32() {
    let device = Device::flex();
    let (source, _) = load(recording("fcn/model.pth"), None, &device).expect("it can be read");
    let source = tensors(&source);
    for file in ["resnet18_v1c_f16.pth", "resnet18_v1c_f16_old.pth"] {
        let path = recording("../backbones").join(file);
        let model = tiny(Method::Fcn).init(&device);
        let (model, report) = model
            .load_pretrained(&path)
            .unwrap_or_else(|error| panic!("{error}"));
        let loaded = tensors(&model);
        assert!(report.loaded.len() > 50, "{file}: {report}");
        for name in &report.loaded {
            assert_eq!(loaded[name].dtype(), burn::tensor::DType::F32, "{name}");
            let pairs = loaded[name].iter::<f32>().zip(source[name].iter::<f32>());
            for (found, exact) in pairs {
                assert_eq!(found, f16::from_f32(exact).to_f32(), "{file}: {name}");
            }
        }
    }
}

/// The backbone and the heads that are the same are taken over, the others named.
#[test]
fn a_head_of_another_method_stays_as_drawn_and_is_named() {
    let device = Device::flex();
    let path = recording("fcn/model.pth");
    let (source, _) = load(&path, None, &device).expect("it can be read");
    let source = tensors(&source);
    for method in [Method::PspNet, Method::DeepLabV3, Method::DeepLabV3Plus] {
        let model = tiny(method).init(&device);
        let before = tensors(&model);
        let (model, report) = model
            .load_pretrained(&path)
            .unwrap_or_else(|error| panic!("{error}"));
        for (name, data) in tensors(&model) {
            let drawn = name.starts_with("decode_head.");
            let expected = if drawn {
                &before[&name]
            } else {
                &source[&name]
            };
            assert_eq!(data, *expected, "{method}: {name}");
            assert_eq!(report.missing.contains(&name), drawn, "{method}: {name}");
        }
        let heads = source
            .keys()
            .filter(|name| name.starts_with("decode_head."));
        assert_eq!(report.unexpected, heads.cloned().collect::<Vec<_>>());
        let text = report.to_string();
        assert!(
            text.contains("missing, left as drawn: decode_head."),
            "{text}"
        );
        assert!(text.contains("the file's decode_head is another"), "{text}");
    }
    // One of other widths, too; a head that lacks a tensor is none.
    let mut wide = tiny(Method::Fcn);
    wide.head_channels = 6;
    let (_, report) = wide
        .init(&device)
        .load_pretrained(&path)
        .expect("it can be read");
    assert!(
        report
            .missing
            .iter()
            .all(|name| name.starts_with("decode_head."))
    );
    let folder = tempfile::tempdir().expect("a folder");
    let damaged = folder.path().join("damaged.safetensors");
    let mut lacking = source.clone();
    lacking.remove("decode_head.convs.1.bn.weight");
    write(&damaged, &lacking, Dtype::F32);
    for method in [Method::Fcn, Method::PspNet] {
        let model = tiny(method).init(&device);
        assert!(model.load_pretrained(&damaged).is_err(), "{method}");
    }
}

#[test]
fn another_number_of_classes_draws_the_classifiers_anew_and_says_so() {
    let path = recording("fcn/model.pth");
    let config = tiny(Method::Fcn).with_num_classes(7);
    let model = config.init(&Device::flex());
    let before = tensors(&model);
    let (model, report) = model.load_pretrained(&path).expect("it can be read");
    let names: Vec<&str> = report
        .reinitialised
        .iter()
        .map(|r| r.name.as_str())
        .collect();
    assert_eq!(
        names,
        [
            "auxiliary_head.conv_seg.bias",
            "auxiliary_head.conv_seg.weight",
            "decode_head.conv_seg.bias",
            "decode_head.conv_seg.weight"
        ]
    );
    assert_eq!(report.reinitialised[3].expected, [7, 4, 1, 1]);
    assert_eq!(report.reinitialised[3].found, [4, 4, 1, 1]);
    assert!(
        report
            .to_string()
            .contains("re-initialised: decode_head.conv_seg.weight")
    );
    let after = tensors(&model);
    assert_eq!(
        after["decode_head.conv_seg.weight"],
        before["decode_head.conv_seg.weight"]
    );
    assert_ne!(
        after["backbone.stem.0.weight"],
        before["backbone.stem.0.weight"]
    );
    // Inference needs the classes that the file has.
    let error = load(&path, Some(&config), &Device::flex()).expect_err("it has other classes");
    assert!(
        matches!(error, CheckpointError::WrongShape { .. }),
        "{error}"
    );
}

#[test]
fn another_method_is_named_with_the_first_tensors_that_differ() {
    let error = error(&recording("deeplabv3/model.pth"));
    let CheckpointError::OtherArchitecture {
        expected,
        found,
        missing,
        unexpected,
        ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(
        (expected.as_str(), found.as_str()),
        ("fcn on resnet18", "deeplabv3 on resnet18")
    );
    assert_eq!(missing[0], "decode_head.conv_cat.bn.bias");
    assert_eq!(unexpected[0], "decode_head.aspp_modules.0.bn.bias");
}

#[test]
fn a_deeper_backbone_is_another_architecture_even_if_all_shapes_fit() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("r34.safetensors");
    let mut config = tiny(Method::Fcn);
    config.backbone = Depth::R34;
    let model = config.init(&Device::flex());
    model
        .save_safetensors(&path, BTreeMap::new())
        .expect("it can be written");
    let error = error(&path).to_string();
    assert!(
        error.contains("expected fcn on resnet18, found fcn on resnet34"),
        "{error}"
    );
    assert!(error.contains("backbone.layer1.2."), "{error}");
}

#[test]
fn a_wrong_shape_is_named_with_both_shapes() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("shape.safetensors");
    let mut values = tensors(&tiny(Method::Fcn).init(&Device::flex()));
    let name = "backbone.layer2.0.conv1.weight";
    values.insert(name.to_owned(), TensorData::zeros::<f32, _>([4, 2, 5, 5]));
    write(&path, &values, Dtype::F32);
    let error = error(&path);
    let CheckpointError::WrongShape {
        name: found_name,
        expected,
        found,
        ..
    } = &error
    else {
        panic!("{error}")
    };
    assert_eq!(found_name, name);
    assert_eq!(
        (expected.as_slice(), found.as_slice()),
        (&[4, 2, 3, 3][..], &[4, 2, 5, 5][..])
    );
    assert!(
        error
            .to_string()
            .contains("expected [4, 2, 3, 3], found [4, 2, 5, 5]"),
        "{error}"
    );
}

#[test]
fn a_tensor_that_is_missing_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("incomplete.safetensors");
    let mut values = tensors(&tiny(Method::Fcn).init(&Device::flex()));
    values.remove("backbone.layer2.0.bn1.weight");
    write(&path, &values, Dtype::F32);
    let error = error(&path).to_string();
    assert!(
        error.contains("of fcn on resnet18, but with other tensors"),
        "{error}"
    );
    assert!(
        error
            .contains("missing: backbone.layer2.0.bn1.weight; first tensors without a place: none"),
        "{error}"
    );
}

#[test]
fn integers_are_no_weights() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("integers.safetensors");
    write(
        &path,
        &tensors(&tiny(Method::Fcn).init(&Device::flex())),
        Dtype::I32,
    );
    let error = error(&path);
    assert!(
        matches!(error, CheckpointError::WrongType { .. }),
        "{error}"
    );
}

#[test]
fn truncated_files_of_all_formats_are_damaged() {
    let folder = tempfile::tempdir().expect("a folder");
    // The recordings hold both of PyTorch's formats: a zip, and what versions before 1.6 wrote.
    for file in [
        "fcn/model.pth",
        "deeplabv3/model.pth",
        "fcn/model.safetensors",
    ] {
        let bytes = fs::read(recording(file)).expect("the recording is there");
        for keep in [bytes.len() - 1, bytes.len() / 2, 600, 9] {
            let path = folder.path().join("truncated");
            fs::write(&path, &bytes[..keep]).expect("a file");
            let error = error(&path);
            assert!(
                matches!(error, CheckpointError::Damaged { .. }),
                "{file} cut to {keep} bytes: {error}"
            );
        }
    }
}

#[test]
fn other_files_are_no_checkpoints() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("file");
    for bytes in [
        &b""[..],
        b"PNG",
        b"not a checkpoint at all",
        b"{\"a\": 1, \"b\": [1, 2, 3]}",
    ] {
        fs::write(&path, bytes).expect("a file");
        let error = error(&path);
        let sorted = matches!(
            error,
            CheckpointError::NotACheckpoint { .. } | CheckpointError::Damaged { .. }
        );
        assert!(sorted, "{bytes:?}: {error}");
    }
    let missing = error(&folder.path().join("missing.pth"));
    assert!(matches!(missing, CheckpointError::Read { .. }), "{missing}");
}

/// A pickle in the archive that PyTorch has written since 1.6.
fn zipped(pickle: &str) -> Vec<u8> {
    let mut archive = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, text) in [
        ("data.pkl", pickle),
        ("byteorder", "little"),
        ("version", "3\n"),
    ] {
        archive
            .start_file(format!("model/{name}"), options)
            .and_then(|()| Ok(archive.write_all(text.as_bytes())?))
            .expect("memory can be written");
    }
    archive
        .finish()
        .expect("memory can be written")
        .into_inner()
}

/// A pickle between what PyTorch wrote around it before 1.6: magic number, protocol and sizes of
/// types before, the list of storages after.
fn old_style(pickle: &str) -> Vec<u8> {
    let mut file = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M\xe9\x03.".to_vec();
    file.extend(b"\x80\x02}(X\x10\0\0\0protocol_versionM\xe9\x03X\r\0\0\0little_endian\x88");
    file.extend(
        b"X\n\0\0\0type_sizes}(X\x05\0\0\0shortK\x02X\x03\0\0\0intK\x04X\x04\0\0\0longK\x04uu.",
    );
    file.extend(pickle.as_bytes());
    file.extend(b"\x80\x02].");
    file
}

#[test]
fn a_pickle_that_would_run_a_command_runs_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let trace = folder.path().join("trace");
    // What `pickle.dumps` writes for an object whose `__reduce__` gives
    // `(os.system, ("touch ...",))`, alone, as the value of `state_dict` and beside it.
    let call = format!("cposix\nsystem\n(Vtouch {}\ntR", trace.display());
    for pickle in [
        format!("{call}."),
        format!("(dVstate_dict\n{call}s."),
        format!("(dVmeta\n{call}sVstate_dict\n(ds."),
    ] {
        for file in [
            pickle.clone().into_bytes(),
            zipped(&pickle),
            old_style(&pickle),
        ] {
            let path = folder.path().join("model.pth");
            fs::write(&path, file).expect("a file");
            let error = error(&path);
            assert!(
                matches!(
                    error,
                    CheckpointError::Damaged { .. } | CheckpointError::NotACheckpoint { .. }
                ),
                "{error}"
            );
        }
    }
    assert!(!trace.exists(), "the pickle's command was run");
}

/// A copy of a recording, in which bytes of its pickle are others of the same number.
fn changed(file: &str, from: &str, to: &str) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let replace = |bytes: &mut [u8]| {
        let found = bytes
            .windows(from.len())
            .rposition(|window| window == from.as_bytes());
        let at = found.unwrap_or_else(|| panic!("{file} has no {from}"));
        bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
    };
    let mut bytes = fs::read(recording(file)).expect("the recording is there");
    if !bytes.starts_with(b"PK") {
        replace(&mut bytes);
        return bytes;
    }
    let mut archive = zip::ZipArchive::new(std::io::Cursor::new(bytes)).expect("an archive");
    let mut copy = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    let options =
        zip::write::SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for index in 0..archive.len() {
        let mut entry = archive.by_index(index).expect("an entry");
        let name = entry.name().expect("a name").into_owned();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("its content");
        if name.ends_with("data.pkl") {
            replace(&mut content);
        }
        copy.start_file(name, options)
            .expect("memory can be written");
        copy.write_all(&content).expect("memory can be written");
    }
    copy.finish().expect("memory can be written").into_inner()
}

/// Strides, dilations and grids change no tensor's shape, but the network.
#[test]
fn what_changes_no_shape_but_the_network_is_followed_or_refused_by_name() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("other.pth");
    let strides = "strides=(\n            1,\n            2,\n            1,";
    let dilations = "dilations=(\n            1,\n            1,\n            2,\n            4,";
    type Change = fn(SegmentorConfig) -> SegmentorConfig;
    let followed: [(&str, &str, &str, &str, Change); 5] = [
        (
            "deeplabv3/model.pth",
            strides,
            "strides=(\n            1,\n            2,\n            2,",
            "stage_strides",
            |config| config.with_stage_strides([1, 2, 2, 1]),
        ),
        (
            "deeplabv3plus/model.pth",
            dilations,
            "dilations=(\n            1,\n            1,\n            1,\n            2,",
            "stage_dilations",
            |config| config.with_stage_dilations([1, 1, 1, 2]),
        ),
        (
            "pspnet/model.pth",
            "contract_dilation=True",
            "contract_dilat_on=True",
            "contract_dilation",
            |config| config.with_contract_dilation(false),
        ),
        (
            "fcn/model.pth",
            "in_index=3,",
            "dilation=6,",
            "head_dilation",
            |config| config.with_head_dilation(6),
        ),
        (
            "pspnet/model.pth",
            "norm_eval=False,\n        num",
            "multi_grid=(3,2,1),\n     num",
            "multi_grid",
            |config| config.with_multi_grid(vec![3, 2, 1]),
        ),
    ];
    for (file, from, to, key, change) in followed {
        fs::write(&path, changed(file, from, to)).expect("a file");
        let config = read_architecture(recording(file)).expect("it is supported");
        let expected = change(config.clone());
        assert_eq!(read_architecture(&path).expect("it is supported"), expected);
        let (model, report) = load(&path, None, &Device::flex()).expect("it can be read");
        assert_eq!(model.config(), &expected);
        assert_eq!(report.remarks, [""; 0]);
        // Who asks for another network hears what the file's was.
        let (_, report) = load(&path, Some(&config), &Device::flex()).expect("its shapes fit");
        assert!(report.to_string().contains(key), "{report}");
        let (_, report) = config
            .init(&Device::flex())
            .load_pretrained(&path)
            .expect("its shapes fit");
        assert!(report.to_string().contains(key), "{report}");
    }
    for (file, from, to, key) in [
        (
            "pspnet/model.pth",
            "style='pytorch'",
            "style='caffeee'",
            "backbone.style",
        ),
        (
            "fcn/model.pth",
            "contract_dilation=True",
            "plugins=(1,2,3,4,5,66)",
            "backbone.plugins",
        ),
        (
            "fcn/model.pth",
            "in_index=2,",
            "dilation=6,",
            "auxiliary_head.in_index",
        ),
    ] {
        fs::write(&path, changed(file, from, to)).expect("a file");
        let config = read_architecture(recording(file)).expect("it is supported");
        for error in [
            read_architecture(&path).expect_err(key),
            load(&path, None, &Device::flex()).expect_err(key),
            load(&path, Some(&config), &Device::flex()).expect_err(key),
        ] {
            let CheckpointError::Unsupported { key: found, .. } = &error else {
                panic!("{key}: {error}")
            };
            assert_eq!(found, key, "{error}");
        }
        // Training can begin with its weights, and says what was different.
        let model = config.init(&Device::flex());
        let (_, report) = model.load_pretrained(&path).expect("its shapes fit");
        assert!(report.to_string().contains(key), "{report}");
    }
}

#[test]
fn networks_go_to_other_programs_names_and_come_back() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("named.safetensors");
    let device = Device::flex();
    let mut narrow = tiny(Method::DeepLabV3);
    narrow.backbone = Depth::R50;
    let v3 = narrow.clone().with_deep_stem(false).with_refine(true);
    let mut fcn = v3.clone().with_refine(false);
    fcn.method = Method::Fcn;
    let fcn = fcn.with_head_convs(1).with_head_concat_input(false);
    for config in [&v3, &fcn] {
        let model = config.init(&device);
        model
            .export(&path, BTreeMap::new(), Naming::Torchvision)
            .expect("torchvision has it");
        let names = safetensors_names(&path);
        assert!(names.contains(&"aux_classifier.4.bias".to_owned()));
        assert!(
            names.iter().all(|name| !name.contains("_head")),
            "{names:?}"
        );
        let (back, report) = load(&path, None, &device).expect("it can be read");
        assert!(
            report.is_complete() && report.unexpected.is_empty(),
            "{report}"
        );
        assert_eq!(tensors(&back), tensors(&model));
        assert_eq!(back.config(), config);
    }
    let deep = narrow.clone().with_avg_down(true);
    for (naming, config) in [
        (Naming::MmsegBackbone, &deep),
        (Naming::TimmBackbone, &deep),
        (Naming::MmpretrainBackbone, &narrow),
        (Naming::TorchvisionBackbone, &v3),
    ] {
        let model = config.init(&device);
        model
            .export(&path, BTreeMap::new(), naming)
            .expect("the program has it");
        assert!(read_architecture(&path).is_err(), "{naming}");
        let (back, report) = config
            .init(&device)
            .load_pretrained(&path)
            .expect("it can be read");
        assert!(report.unexpected.is_empty(), "{naming}: {report}");
        let (ours, theirs) = (tensors(&model), tensors(&back));
        for (name, data) in ours
            .iter()
            .filter(|(name, _)| name.starts_with("backbone."))
        {
            assert_eq!(data, &theirs[name], "{naming}: {name}");
        }
    }
    let error = deep
        .init(&device)
        .export(&path, BTreeMap::new(), Naming::Torchvision)
        .expect_err("another stem");
    assert!(error.to_string().contains("deep_stem"), "{error}");
}

/// Recordings of torchvision's own `fcn_resnet*` and `deeplabv3_resnet*` with random weights, below
/// `$HALFSEG_TORCHVISION` or the narrow ones committed here; `torchvision/record.py` makes them.
#[test]
fn torchvisions_segmentors_give_its_logits() {
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/torchvision");
    let root = std::env::var_os("HALFSEG_TORCHVISION").map_or(committed, PathBuf::from);
    let device = Device::flex();
    let folder = tempfile::tempdir().expect("a folder");
    for method in [Method::Fcn, Method::DeepLabV3] {
        let path = |file: &str| root.join(method.to_string()).join(file);
        let (model, report) = load(path("model.pth"), None, &device).expect("it can be read");
        assert!(
            report.is_complete() && report.unexpected.is_empty(),
            "{report}"
        );
        assert!(
            report.to_string().contains("torchvision's names"),
            "{report}"
        );
        let config = model.config();
        assert_eq!((config.method, config.output_stride()), (method, 8));
        assert!(!config.deep_stem && !config.align_corners);
        assert_eq!(config.refine, method == Method::DeepLabV3);

        let recorded = |name: &str| recorded_map(&path("logits.safetensors"), name, &device);
        let image = recorded("image");
        let [_, _, h, w] = image.dims();
        let auxiliary = model.auxiliary_head.as_ref().expect("it has one");
        let stages = model.backbone.forward(image.clone());
        let aux = halfseg_layers::resize_with(auxiliary.forward(stages.c4), [h, w], false);
        for (name, found) in [("out", model.forward(image)), ("aux", aux)] {
            let error: f32 = (found - recorded(name)).abs().max().into_scalar();
            println!("{method}, {name}: {error:.2e} from torchvision");
            // Logits have a standard deviation of 2; torchvision's own f32 is 5e-6 from its f64.
            assert!(error < 1e-3, "{method}, {name}: {error}");
        }

        // What goes back has torchvision's tensors, all of them and no others.
        let again = folder.path().join("again.safetensors");
        model
            .export(&again, BTreeMap::new(), Naming::Torchvision)
            .expect("torchvision has it");
        let reader = pytorch_reader::PytorchReader::new(path("model.pth")).expect("it can be read");
        let theirs: BTreeMap<String, Vec<usize>> = reader
            .into_tensors()
            .into_iter()
            .map(|(name, tensor)| (name, tensor.shape().to_vec()))
            .collect();
        let bytes = fs::read(&again).expect("it was written");
        let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
        let ours: BTreeMap<String, Vec<usize>> = file
            .tensors()
            .into_iter()
            .map(|(name, view)| (name, view.shape().to_vec()))
            .collect();
        assert_eq!(ours, theirs);
    }
}

/// A map of a recording.
fn recorded_map(path: &Path, name: &str, device: &Device) -> Tensor<4> {
    let bytes = fs::read(path).expect("the recording is there");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let view = file.tensor(name).expect("it was recorded");
    let (values, shape) = (view.data().to_vec(), view.shape().to_vec());
    let data = TensorData::from_bytes_vec(values, shape, burn::tensor::DType::F32);
    Tensor::from_data(data, device)
}

/// As the four published models are: files of MMSegmentation 0.5.0 with configurations of their time,
/// SyncBN in them, in PyTorch's format from before 1.6. `mmseg_0_5/record.py` makes them.
#[test]
fn files_of_mmsegmentation_0_5_give_its_logits() {
    let device = Device::flex();
    for method in Method::ALL {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/mmseg_0_5")
            .join(method.to_string());
        let weights = folder.join("model.pth");
        let bytes = fs::read(&weights).expect("the recording is there");
        assert!(bytes.starts_with(b"\x80\x02\x8a\nl\xfc\x9cF\xf9"));
        assert!(bytes.windows(6).any(|part| part == b"SyncBN"));
        let (model, report) = load(&weights, None, &device).expect("it can be read");
        assert!(
            report.is_complete() && report.unexpected.is_empty(),
            "{report}"
        );
        assert_eq!(report.remarks, [""; 0]);
        let mut expected = SegmentorConfig::new(method, Depth::R18);
        (expected.stem_channels, expected.base_channels) = (4, 2);
        (expected.head_channels, expected.aux_channels) = (4, 4);
        if method == Method::DeepLabV3Plus {
            expected.c1_channels = 4;
        }
        assert_eq!(model.config(), &expected);
        let recorded = |name| recorded_map(&folder.join("logits.safetensors"), name, &device);
        let error = (model.forward(recorded("image")) - recorded("out"))
            .abs()
            .max();
        let error: f32 = error.into_scalar();
        println!("{method}: {error:.2e} from MMSegmentation 0.5.0");
        assert!(error < 1e-3, "{method}: {error}");
        let classes = read_classes(&weights)
            .expect("it can be read")
            .expect("it has some");
        assert_eq!(
            (classes.names.len(), classes.names[18].as_str()),
            (19, "bicycle")
        );
        assert_eq!(classes.palette[0], [128, 64, 128]);
    }
}

fn safetensors_names(path: &Path) -> Vec<String> {
    let bytes = fs::read(path).expect("it was written");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    file.names()
        .into_iter()
        .map(|name| (*name).to_owned())
        .collect()
}

#[test]
fn pictures_of_other_channels_begin_with_averaged_colours_and_say_so() {
    let device = Device::flex();
    for deep_stem in [true, false] {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("rgb.safetensors");
        let rgb = tiny(Method::Fcn).with_deep_stem(deep_stem);
        let source = rgb.init(&device);
        source
            .export(&path, BTreeMap::new(), Naming::MmsegBackbone)
            .expect("it can be written");
        let model = rgb.clone().with_in_channels(4).init(&device);
        let (model, report) = model.load_pretrained(&path).expect("it fits");
        let name = match deep_stem {
            true => "backbone.stem.0.weight",
            false => "backbone.conv1.weight",
        };
        let said = format!("{name} is for 4 channels");
        assert!(report.to_string().contains(&said), "{report}");
        let (ours, theirs) = (&tensors(&model)[name], &tensors(&source)[name]);
        let sum = |data: &TensorData| data.iter::<f32>().map(f64::from).sum::<f64>();
        assert!((sum(ours) - sum(theirs)).abs() < 1e-4);
        // Not for inference, and not the other way around.
        model
            .save_safetensors(&path, BTreeMap::new())
            .expect("it can be written");
        assert_eq!(read_architecture(&path).expect("it is one").in_channels, 4);
        assert!(rgb.init(&device).load_pretrained(&path).is_err());
    }
}

#[test]
fn what_a_file_does_not_say_is_said_to_be_assumed() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("bare.safetensors");
    let config = tiny(Method::DeepLabV3);
    let model = config.init(&Device::flex());
    write(&path, &tensors(&model), Dtype::F32);
    let (_, report) = load(&path, None, &Device::flex()).expect("it can be read");
    let text = report.to_string();
    for said in [
        "no configuration",
        "output stride 8",
        "[1, 12, 24, 36]",
        "align_corners = false",
    ] {
        assert!(text.contains(said), "{text}");
    }
    // Recordings and this project's files say everything.
    for file in ["deeplabv3/model.pth", "pspnet/model.pth"] {
        let (_, report) = load(recording(file), None, &Device::flex()).expect("it can be read");
        assert_eq!(report.remarks, [""; 0], "{file}");
    }
    model
        .save_safetensors(&path, BTreeMap::new())
        .expect("it can be written");
    let (_, report) = load(&path, None, &Device::flex()).expect("it can be read");
    assert_eq!(report.remarks, [""; 0]);
    // What is asked for is another network than the file's.
    let mut other = config;
    (other.dilations, other.align_corners) = (vec![1, 2, 3, 4], true);
    let (_, report) = load(&path, Some(&other), &Device::flex()).expect("its shapes fit");
    let text = report.to_string();
    assert!(text.contains("the file's was [1, 12, 24, 36]"), "{text}");
    assert!(
        text.contains("align_corners is true, the file's was false"),
        "{text}"
    );
}

#[test]
fn metadata_that_tensors_contradict_is_refused_before_anything_is_allocated() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("metadata.safetensors");
    let config = tiny(Method::DeepLabV3Plus);
    let values = tensors(&config.init(&Device::flex()));
    let saved = serde_json::to_value(&config).expect("a configuration is valid JSON");
    let many: Vec<usize> = (1..1000).collect();
    for (key, value, said) in [
        ("num_classes", 0.into(), "num_classes = 0 is not possible"),
        ("num_classes", 1.into(), "num_classes = 1 is not possible"),
        (
            "num_classes",
            5.into(),
            "num_classes = 5, as its metadata says",
        ),
        ("num_classes", (-4).into(), "halfseg.model"),
        (
            "head_channels",
            100_000_000.into(),
            "head_channels = 100000000 is not possible",
        ),
        ("head_channels", u64::MAX.into(), "head_channels"),
        (
            "head_channels",
            65_536.into(),
            "head_channels = 65536, as its metadata says",
        ),
        (
            "base_channels",
            65_536.into(),
            "base_channels = 65536, as its metadata says",
        ),
        (
            "stem_channels",
            3.into(),
            "stem_channels = 3 is not possible",
        ),
        (
            "aux_channels",
            65_536.into(),
            "aux_channels = 65536, as its metadata says",
        ),
        (
            "c1_channels",
            65_536.into(),
            "c1_channels = 65536, as its metadata says",
        ),
        ("dilations", many.into(), "dilations"),
        (
            "dilations",
            vec![1, 2].into(),
            "the number of dilations = 2",
        ),
        ("dropout", 1.5.into(), "dropout = 1.5 is not possible"),
        ("backbone", "resnet152".into(), "backbone = resnet152"),
        (
            "method",
            "deeplabv3".into(),
            "method = deeplabv3, as its metadata says",
        ),
        ("colour", "red".into(), "unknown field"),
    ] {
        let mut metadata = saved.clone();
        metadata[key] = value;
        let metadata = HashMap::from([("halfseg.model".to_owned(), metadata.to_string())]);
        write_with(&path, &values, Dtype::F32, Some(metadata));
        for error in [
            read_architecture(&path).expect_err(key),
            load(&path, None, &Device::flex()).expect_err(key),
        ] {
            assert!(error.to_string().contains(said), "{error}");
        }
    }
}

#[test]
fn what_is_no_regular_file_is_told_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let error_of = |path: &Path| {
        let error = error(path);
        assert!(
            matches!(error, CheckpointError::NotACheckpoint { .. }),
            "{error}"
        );
        error.to_string()
    };
    assert!(error_of(folder.path()).contains("found a folder"));
    #[cfg(unix)]
    {
        let pipe = folder.path().join("pipe.pth");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        if made.is_ok_and(|status| status.success()) {
            assert!(error_of(&pipe).contains("a pipe or a device"));
        }
        assert!(error_of(Path::new("/dev/zero")).contains("a pipe or a device"));
    }
    // A header that no network needs.
    let path = folder.path().join("header.safetensors");
    let mut bytes = (32u64 << 20).to_le_bytes().to_vec();
    bytes.push(b'{');
    bytes.resize(8 + (32 << 20), b' ');
    fs::write(&path, bytes).expect("a file");
    let error = error(&path).to_string();
    assert!(error.contains("a header of at most"), "{error}");
}

#[test]
fn a_network_that_is_written_as_pth_comes_back_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("network.pth");
    let mut export = MmsegExport::default();
    let mut classes = ClassTable::default();
    classes.names = ["road", "it's", "ö", "<b>"].map(str::to_owned).to_vec();
    classes.palette = vec![[1, 2, 3], [0, 0, 0], [255, 255, 255], [7, 8, 9]];
    export.classes = Some(classes);
    for method in Method::ALL {
        let config = tiny(method)
            .with_stage_strides([1, 2, 2, 1])
            .with_stage_dilations([1, 1, 1, 2])
            .with_align_corners(true)
            .with_dropout(0.3);
        let model = config.init(&Device::flex());
        model.export_pytorch(&path, Naming::Mmseg, &export).unwrap();
        let mut found = read_architecture(&path).unwrap();
        if method != Method::DeepLabV3Plus {
            // Of a map that this network does not have.
            found.c1_channels = config.c1_channels;
        }
        assert_eq!(found, config, "{method}");
        assert_eq!(read_classes(&path).unwrap(), export.classes);
        let (loaded, report) = load(&path, None, &Device::flex()).unwrap();
        let (found, expected) = (tensors(&loaded), tensors(&model));
        assert_eq!(found.len(), expected.len());
        for (name, data) in &expected {
            assert_eq!(found[name].shape(), data.shape(), "{name}");
            assert_eq!(found[name].as_bytes(), data.as_bytes(), "{name}");
        }
        assert!(!report.to_string().contains("assumed"), "{report}");
    }
}

#[test]
fn the_archive_is_laid_out_as_pytorch_lays_it_out() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("backbone.pth");
    let model = tiny(Method::Fcn).init(&Device::flex());
    let export = MmsegExport::default();
    model
        .export_pytorch(&path, Naming::TimmBackbone, &export)
        .unwrap();
    let mut archive = zip::ZipArchive::new(fs::File::open(&path).unwrap()).unwrap();
    let mut sizes = Vec::new();
    for index in 0..archive.len() {
        let file = archive.by_index(index).unwrap();
        assert_eq!(file.compression(), zip::CompressionMethod::Stored);
        assert_eq!(file.data_start().unwrap() % 64, 0, "values can be mapped");
        sizes.push((file.name().unwrap().into_owned(), file.size()));
    }
    let names: Vec<_> = sizes.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names[..3],
        ["archive/data.pkl", "archive/byteorder", "archive/data/0"]
    );
    assert_eq!(names.last(), Some(&"archive/version"));
    let values: u64 = sizes[2..sizes.len() - 1]
        .iter()
        .map(|(_, bytes)| bytes)
        .sum();
    let of_backbone = |name: &String| name.starts_with("backbone.");
    let tensors = tensors(&model);
    let floats = tensors.iter().filter(|(name, _)| of_backbone(name));
    let floats: usize = floats.map(|(_, data)| data.num_elements()).sum();
    let norms = tensors
        .keys()
        .filter(|name| of_backbone(name) && name.ends_with("running_mean"));
    assert_eq!(values, 4 * floats as u64 + 8 * norms.count() as u64);
    // A name alone, nothing of a whole network beside it.
    assert!(read_architecture(&path).is_err());
    assert_eq!(read_classes(&path).unwrap(), None);
    let other = tiny(Method::Fcn).init(&Device::flex());
    let (other, _) = other.load_backbone(&path).unwrap();
    let (found, expected) = (self::tensors(&other), tensors);
    let name = "backbone.layer4.1.conv2.weight";
    assert_eq!(found[name].as_bytes(), expected[name].as_bytes());
}
