//! `replay` on the committed recordings: on the CPU, and with the feature `cuda` or `wgpu` on a GPU,
//! a software one will do.

#[cfg(any(feature = "cuda", feature = "wgpu"))]
#[path = "../../crates/kernels/tests/gpu_device/mod.rs"]
mod gpu_device;

use std::path::Path;
use std::process::Command;

fn replay(device: &str, precisions: &str) {
    let recordings =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../crates/segmentor/tests/recordings");
    let output = Command::new(env!("CARGO_BIN_EXE_replay"))
        .arg("--recordings")
        .arg(&recordings)
        .args(["--device", device, "--precisions", precisions])
        .output()
        .expect("the program starts");
    let table = String::from_utf8_lossy(&output.stdout);
    println!("{table}");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let recorded = std::fs::read_dir(&recordings).expect("recordings are committed");
    let recorded = recorded
        .filter(|entry| {
            entry
                .as_ref()
                .unwrap()
                .path()
                .join("reference.json")
                .is_file()
        })
        .count();
    let lines = recorded * precisions.split(',').count();
    assert!(table.contains(&format!("\n0 of {lines} lines are beyond a limit")));
}

#[test]
fn recordings_stay_within_their_limits_on_the_cpu() {
    replay("flex", "f32,bf16");
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
#[test]
fn recordings_stay_within_their_limits_on_a_gpu() {
    if gpu_device::gpu().is_none() {
        return;
    }
    let device = match cfg!(feature = "cuda") {
        true => "cuda",
        false => "wgpu",
    };
    replay(device, "f32,f16");
}
