//! Damaged checkpoints: whatever is changed in a file, reading it ends with a network or an error.
//!
//! Alone in its program: it counts all memory that the process has allocated. `HALFSEG_MUTANTS` is the
//! number of mutants, 2,000 without it; `HALFSEG_SEED` another seed.

#[path = "../../devices/tests/counted/mod.rs"]
mod counted;

use std::collections::BTreeMap;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use burn::tensor::Device;
use halfseg_segmentor::{
    Depth, Method, Segmentor, SegmentorConfig, load, read_architecture, read_backbone,
    read_metadata,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The mutant that is being read, from 1 on.
static MUTANT: AtomicU64 = AtomicU64::new(0);

/// Numbers that sizes and offsets go wrong at.
const NUMBERS: [u64; 12] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x1_0000_0000,
    0x3fff_ffff_ffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    0xffff_ffff_ffff_ffff,
];

/// Texts that mean something in a header, a pickle or a configuration.
const TEXTS: [&[u8]; 12] = [
    b"100000000",
    b"0",
    b"-1",
    b"1e999",
    b"[[[[[[[[",
    b"(((((((((((",
    b"]]]}}}",
    b"\"",
    b"num_classes",
    b"backbone.",
    b"decode_head.",
    b"\x80\x02}q\x00(",
];

/// `bytes` with some places changed, most of them where names and shapes are.
fn mutate(bytes: &[u8], other: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..rng.random_range(1..=4u32) {
        if bytes.is_empty() {
            break;
        }
        let near = rng.random_bool(0.3);
        let limit = if near {
            bytes.len().min(4096)
        } else {
            bytes.len()
        };
        let at = rng.random_range(0..limit);
        let length = rng.random_range(1..=64usize).min(bytes.len() - at);
        match rng.random_range(0..9u32) {
            0 => bytes[at] ^= 1 << rng.random_range(0..8u32),
            1 => bytes[at] = rng.random(),
            2 => bytes.truncate(at),
            3 => drop(bytes.drain(at..at + length)),
            4 => {
                let copy = bytes[at..at + length].to_vec();
                bytes.splice(at..at, copy);
            }
            5 => {
                let number = NUMBERS[rng.random_range(0..NUMBERS.len())].to_le_bytes();
                let width = [1, 2, 4, 8][rng.random_range(0..4usize)];
                let width = width.min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            6 => {
                let text = TEXTS[rng.random_range(0..TEXTS.len())];
                bytes.splice(at..at + length, text.iter().copied());
            }
            7 => {
                // A digit of a shape, an offset or a setting.
                let digit = bytes[at..].iter().position(u8::is_ascii_digit);
                if let Some(digit) = digit {
                    bytes[at + digit] = b'0' + rng.random_range(0..10u8);
                }
            }
            _ => {
                let from = rng.random_range(0..other.len());
                let end = (from + length).min(other.len());
                bytes.splice(at..at + length, other[from..end].iter().copied());
            }
        }
    }
    bytes
}

fn recording(file: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(file)
}

/// What is mutated: both formats of PyTorch, MMSegmentation's and this project's safetensors.
fn originals(folder: &Path, device: &Device) -> Vec<Vec<u8>> {
    let mut originals: Vec<Vec<u8>> = [
        "recordings/fcn/model.pth",
        "recordings/deeplabv3/model.pth",
        "recordings/pspnet/model.safetensors",
        "backbones/resnet18_v1c_f16.pth",
        "backbones/resnet18_v1c_f16_old.pth",
    ]
    .iter()
    .map(|file| fs::read(recording(file)).expect("the recording is there"))
    .collect();
    let path = folder.join("own.safetensors");
    let metadata = BTreeMap::from([("halfseg.recipe".to_owned(), "seed = 1".to_owned())]);
    small(Method::DeepLabV3Plus)
        .init(device)
        .save_safetensors(&path, metadata)
        .expect("it can be written");
    originals.push(fs::read(path).expect("it was written"));
    originals
}

fn small(method: Method) -> SegmentorConfig {
    let mut config = SegmentorConfig::new(method, Depth::R18).with_num_classes(4);
    (config.base_channels, config.stem_channels) = (2, 4);
    (config.head_channels, config.aux_channels) = (4, 4);
    config.c1_channels = 4;
    config
}

/// Everything that reads a checkpoint.
fn read(path: &Path, config: &SegmentorConfig, pretrained: Segmentor, device: &Device) {
    let errors = [
        read_metadata(path).err(),
        read_backbone(path).err(),
        read_architecture(path).err(),
        load(path, None, device).err(),
        load(path, Some(config), device).err(),
        pretrained.load_pretrained(path).err(),
    ];
    for error in errors.into_iter().flatten() {
        let text = error.to_string();
        assert!(text.contains("mutant"), "it names no file: {text}");
    }
}

/// A number from the environment.
fn number(name: &str, default: u64) -> u64 {
    let text = std::env::var(name).ok();
    text.map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn a_damaged_checkpoint_is_a_network_or_an_error() {
    let (count, seed) = (number("HALFSEG_MUTANTS", 2000), number("HALFSEG_SEED", 1));
    let folder = tempfile::tempdir().expect("a folder");
    let device = Device::flex();
    let originals = originals(folder.path(), &device);
    let path = folder.path().join("mutant");
    let config = small(Method::Fcn);
    let pretrained = config.init(&device);

    // A read that does not end cannot be stopped, only told.
    thread::spawn(|| {
        let mut last = 0;
        loop {
            thread::sleep(Duration::from_secs(10));
            let now = MUTANT.load(Relaxed);
            if now == last && now != 0 {
                eprintln!("mutant {now} took 10 s");
                std::process::exit(1);
            }
            last = now;
        }
    });
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut faults = Vec::new();
    let (mut loaded, mut most) = (0u64, 0);
    for mutant in 1..=count {
        MUTANT.store(mutant, Relaxed);
        let mut rng = ChaCha8Rng::seed_from_u64(seed.wrapping_shl(32) + mutant);
        let original = &originals[rng.random_range(0..originals.len())];
        let other = &originals[rng.random_range(0..originals.len())];
        let bytes = mutate(original, other, &mut rng);
        fs::write(&path, &bytes).expect("a temporary file can be written");
        loaded += u64::from(read_architecture(&path).is_ok());
        let before = counted::forget_peak();
        let result = catch_unwind(AssertUnwindSafe(|| {
            read(&path, &config, pretrained.clone(), &device);
        }));
        let took = counted::peak() - before;
        most = most.max(took);
        if let Err(panic) = result {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            faults.push(format!("mutant {mutant}: panic: {}", text.unwrap_or("?")));
        }
        if took > 2 * bytes.len() as u64 + (256 << 20) {
            faults.push(format!("mutant {mutant}: {took} bytes for {}", bytes.len()));
        }
    }
    std::panic::set_hook(hook);
    println!(
        "{count} mutants, {loaded} with an architecture, at most {} KiB",
        most >> 10
    );
    assert!(
        faults.is_empty(),
        "{} faults:\n{}",
        faults.len(),
        faults.join("\n")
    );
    // Enough of them get beyond the first check.
    assert!(
        loaded * 20 > count,
        "only {loaded} of {count} had an architecture"
    );
}
