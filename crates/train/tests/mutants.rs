//! Damaged run folders and configurations: whatever is changed in a file, it is used or refused.
//!
//! `HALFSEG_MUTANTS` is the number of mutants of each file (500 unless given), `HALFSEG_SEED` draws them.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::{Duration, Instant};

use halfseg_amp::{Op, Policy, Precision};
use halfseg_devices::DeviceChoice;
use halfseg_segmentor::{Depth, Method};
use halfseg_train::{Observer, Recipe, Step, Timing, Trainer};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// What means something in a manifest, a state, a log or a configuration.
const TEXTS: [&str; 24] = [
    "9223372036854775807",
    "18446744073709551615",
    "99999999999999999999",
    "-1",
    "0",
    "1e999",
    "1e-300",
    "nan",
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "[[[[[[[[[[[[[[[[",
    "\\",
    "\n",
    "../",
    "/dev/zero",
    "iter_9.safetensors",
    "iteration",
    "3",
    "inf",
    "1000000x1",
    "\u{1f469}",
];

/// The longest that a mutant may take, on a machine that does other things, too.
const LONGEST: Duration = Duration::from_secs(10);

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"))
}

fn mutants() -> u64 {
    number("HALFSEG_MUTANTS", 500)
}

/// `bytes` with one to three changes.
fn mutant(bytes: &[u8], rng: &mut ChaCha8Rng) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for _ in 0..rng.random_range(1..=3) {
        // Headers are where most is decided.
        let most = if rng.random_bool(0.5) {
            bytes.len()
        } else {
            bytes.len().min(2000)
        };
        let at = rng.random_range(0..=most);
        let some = rng.random_range(1..=40).min(bytes.len() - at);
        let text = TEXTS[rng.random_range(0..TEXTS.len())].as_bytes();
        match rng.random_range(0..7) {
            0 if some > 0 => bytes[at] ^= 1 << rng.random_range(0..8),
            1 => bytes.truncate(at),
            2 => drop(bytes.drain(at..at + some)),
            3 => drop(bytes.splice(at..at, text.iter().copied())),
            4 => drop(bytes.splice(at..at + some, text.iter().copied())),
            5 => {
                let again = bytes[at..at + some].to_vec();
                bytes.splice(at..at, again);
            }
            // A number, if there is one.
            _ => {
                let first = bytes[at..]
                    .iter()
                    .position(u8::is_ascii_digit)
                    .map(|i| at + i);
                if let Some(first) = first {
                    let digits = bytes[first..]
                        .iter()
                        .take_while(|byte| byte.is_ascii_digit());
                    let end = first + digits.count();
                    bytes.splice(first..end, text.iter().copied());
                }
            }
        }
    }
    bytes
}

/// A network and pictures so small that a step takes milliseconds.
fn tiny() -> Recipe {
    let mut recipe = Recipe::published(Method::Fcn, Depth::R18);
    let settings = [
        "model.stem_channels=2",
        "model.base_channels=1",
        "model.head_channels=1",
        "model.aux_channels=1",
        "model.num_classes=19",
        "data.scale=16x16",
        "data.crop=16x16",
        "data.synthetic_train=2",
        "data.synthetic_val=1",
        "data.workers=1",
        "data.queue=1",
        "train.batch=2",
        "train.pictures=0",
        "train.log_every=2",
        "schedule.iterations=4",
    ];
    recipe.set_all(settings).unwrap();
    recipe
}

/// Stops after three iterations, and later ones soon: a mutant may ask for many.
struct Soon(u64);

impl Observer for Soon {
    fn stepped(&mut self, _: &Step, _: &Timing) {
        self.0 += 1;
    }
    fn stop(&mut self) -> bool {
        self.0 >= 3
    }
}

fn copy(from: &Path, to: &Path) {
    let _ = fs::remove_dir_all(to);
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn a_run_folder_with_a_damaged_file_is_used_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, out) = (folder.path().join("whole"), folder.path().join("run"));
    let device = DeviceChoice::Flex.open().unwrap();
    Trainer::new(tiny(), &device, &whole)
        .unwrap()
        .run(&mut Soon(0))
        .unwrap();
    let seed = number("HALFSEG_SEED", 1);
    for (stream, name) in [
        "run.json",
        "last_checkpoint",
        "log.jsonl",
        "iter_3.state.safetensors",
        "config.toml",
    ]
    .into_iter()
    .enumerate()
    {
        let bytes = fs::read(whole.join(name)).unwrap();
        let (mut used, mut refused) = (0, 0);
        for number in 0..mutants() {
            let mut rng = ChaCha8Rng::seed_from_u64(seed);
            rng.set_stream(stream as u64 * mutants() + number);
            let damaged = mutant(&bytes, &mut rng);
            copy(&whole, &out);
            fs::write(out.join(name), &damaged).unwrap();
            let begun = Instant::now();
            let ended = catch_unwind(AssertUnwindSafe(|| {
                let mut trainer = Trainer::resume(&out, Ok)?;
                match number % 4 {
                    0 => trainer.run(&mut Soon(0)).map(drop),
                    _ => Ok(()),
                }
            }));
            let what = format!("mutant {number} of {name}, HALFSEG_SEED={seed}");
            match ended.unwrap_or_else(|_| panic!("{what} panics")) {
                Ok(()) => used += 1,
                Err(error) => {
                    refused += 1;
                    assert!(!error.to_string().is_empty(), "{what}");
                }
            }
            assert!(
                begun.elapsed() < LONGEST,
                "{what} takes {:?}",
                begun.elapsed()
            );
        }
        println!("{name}: {used} used, {refused} refused");
    }
}

/// Reads `4 * mutants()` damaged versions of `text` as `read` does, which must end in a value that
/// `check` is content with or in a message that names the file.
fn check_texts<T>(
    text: &str,
    name: &str,
    read: impl Fn(&[u8]) -> Result<T, String> + std::panic::RefUnwindSafe,
    check: impl Fn(T, &str),
) {
    let seed = number("HALFSEG_SEED", 1);
    let (mut used, mut refused) = (0, 0);
    for number in 0..4 * mutants() {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(number);
        let damaged = mutant(text.as_bytes(), &mut rng);
        let what = format!("mutant {number} of {name}, HALFSEG_SEED={seed}");
        let begun = Instant::now();
        match catch_unwind(|| read(&damaged)) {
            Ok(Ok(value)) => {
                used += 1;
                check(value, &what);
            }
            Ok(Err(said)) => {
                refused += 1;
                assert!(said.contains(name), "{what}: {said}");
            }
            Err(_) => panic!("{what} panics"),
        }
        assert!(begun.elapsed() < LONGEST, "{what}");
    }
    println!("{name}: {used} used, {refused} refused");
    assert!(used > 0 && refused > 0);
}

#[test]
fn a_damaged_configuration_is_used_or_refused() {
    let read = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes);
        Recipe::parse(&text, "damaged.toml").map_err(|error| error.to_string())
    };
    check_texts(&tiny().to_toml(), "damaged.toml", read, |recipe, what| {
        let again = Recipe::parse(&recipe.to_toml(), "copy").unwrap();
        assert_eq!(again, recipe, "{what}");
    });
}

#[test]
fn a_damaged_policy_is_used_or_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.json");
    let policy = Policy::f16()
        .with_op(Op::Interpolate, Precision::F16)
        .with_module("decode_head.conv_seg", Precision::F32);
    policy.save(&path).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let mut recipe = tiny();
        let policy = recipe.read_policy(&path).map(|()| recipe);
        policy.map_err(|error| error.to_string())
    };
    check_texts(&text, "damaged.json", read, |recipe, what| {
        let again = Recipe::parse(&recipe.to_toml(), "copy").unwrap();
        assert_eq!(again, recipe, "{what}");
    });
}
