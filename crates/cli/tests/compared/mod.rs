//! Runs that were disturbed, against one that was left alone.

#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Child;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;

/// Values that do not depend on what happens, but on the time.
const TIMES: [&str; 6] = [
    "seconds",
    "step_s",
    "data_wait_s",
    "images_per_s",
    "rss_mib",
    "peak_rss_mib",
];

/// Waits for something to be true of a running program.
pub fn wait_for(child: &mut Child, what: &str, happened: impl Fn() -> bool) {
    let begun = Instant::now();
    while !happened() {
        let running = child
            .try_wait()
            .expect("the program can be waited for")
            .is_none();
        assert!(running, "ended before {what}");
        assert!(
            begun.elapsed() < Duration::from_secs(120),
            "no {what} in two minutes"
        );
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Tensors of a safetensors file, byte for byte; not its metadata.
pub fn tensors(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors = file.iter();
    tensors
        .map(|(name, tensor)| (name.to_owned(), tensor.data().to_vec()))
        .collect()
}

/// The log but for times, and for where runs were begun and continued.
pub fn log(out: &Path) -> Vec<String> {
    let text = fs::read_to_string(out.join("log.jsonl")).unwrap();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("a whole line"));
    let lines = lines.filter(|line| line["event"] != "start");
    let timeless = lines.map(|mut line| {
        let fields = line.as_object_mut().unwrap();
        fields.retain(|key, _| !TIMES.contains(&key.as_str()));
        line.to_string()
    });
    timeless.collect()
}

pub fn files(out: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for folder in [out.to_owned(), out.join("pictures")] {
        for entry in fs::read_dir(&folder).unwrap() {
            names.push(entry.unwrap().file_name().into_string().unwrap());
        }
    }
    names.sort();
    names
}

/// Whether the run in `out` left, bit for bit, what the one in `whole` did. Of the two checkpoints that
/// stay, the last is compared: the one before may have been written on Ctrl-C.
pub fn check_same(whole: &Path, out: &Path, last: u64, what: &str) {
    let before_last =
        |name: &String| name.starts_with("iter_") && !name.contains(&last.to_string());
    let [(kept, found), (expected_kept, expected)] =
        [out, whole].map(|out| files(out).into_iter().partition::<Vec<_>, _>(before_last));
    assert_eq!(found, expected, "{what}");
    assert_eq!(kept.len(), expected_kept.len(), "{what}: {kept:?}");
    let names = [
        format!("iter_{last}.safetensors"),
        format!("iter_{last}.state.safetensors"),
        "best.safetensors".into(),
        format!("iter_{last}.ema.safetensors"),
    ];
    // Not all runs have averages; the lists of files were compared.
    let names = names.into_iter().filter(|name| found.contains(name));
    for name in names {
        let (found, expected) = (tensors(&out.join(&name)), tensors(&whole.join(&name)));
        let names = |all: &BTreeMap<String, Vec<u8>>| all.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "{what}: {name}");
        for (tensor, bytes) in &found {
            assert!(
                bytes == &expected[tensor],
                "{what}: {tensor} of {name} differs"
            );
        }
    }
    for name in ["scores.json", "last_checkpoint", "config.toml"] {
        let read = |out: &Path| fs::read_to_string(out.join(name)).unwrap();
        assert_eq!(read(out), read(whole), "{what}: {name}");
    }
    assert_eq!(log(out), log(whole), "{what}");
}

/// Numbers that look drawn at random (SplitMix64).
pub struct Moments(u64);

impl Moments {
    pub fn new() -> Self {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap();
        let given = std::env::var("HALFSEG_SEED").ok();
        let seed = given.map_or(now.as_nanos() as u64, |seed| {
            seed.parse().expect("HALFSEG_SEED is a number")
        });
        println!("HALFSEG_SEED={seed}");
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A moment within `whole`.
    pub fn within(&mut self, whole: Duration) -> Duration {
        whole.mul_f64((self.next() >> 11) as f64 / (1u64 << 53) as f64)
    }
}
