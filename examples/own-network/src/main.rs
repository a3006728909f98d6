//! ```text
//! cargo run --release -p halfseg-own-network -- f16                              on the CPU
//! cargo run --release -p halfseg-own-network --features cuda -- f16 gpu          on an NVIDIA GPU
//! cargo run --release -p halfseg-own-network --features wgpu -- f16 gpu          on another one
//! ```
//!
//! A third argument says how many steps are taken, 200 without. The last line is the score on new pictures.

use std::process::ExitCode;

use burn::tensor::Device;
use halfseg_amp::StepOutcome;
use halfseg_own_network::{precision, train};

/// The CPU, or the first GPU that Burn finds.
fn device(name: &str) -> Option<Device> {
    match name {
        "cpu" => Some(Device::flex()),
        #[cfg(feature = "cuda")]
        "gpu" => first(burn::tensor::DeviceType::Cuda),
        #[cfg(all(feature = "wgpu", not(feature = "cuda")))]
        "gpu" => first(burn::tensor::DeviceType::Wgpu),
        _ => None,
    }
}

#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn first(kind: burn::tensor::DeviceType) -> Option<Device> {
    Device::enumerate(kind).into_iter().next()
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |index: usize, otherwise| arguments.get(index).map_or(otherwise, String::as_str);
    let (policy, device) = (precision(argument(0, "f16")), device(argument(1, "cpu")));
    let steps = argument(2, "200").parse().ok();
    let (Some((policy, scaler)), Some(device), Some(steps)) = (policy, device, steps) else {
        eprintln!(
            "usage: halfseg-own-network [f32|f16|bf16] [cpu|gpu] [STEPS]; gpu needs one, and the feature \
             `cuda` or `wgpu`"
        );
        return ExitCode::from(2);
    };
    if let Err(error) = policy.check(&device) {
        eprintln!("{error}");
        return ExitCode::from(2);
    }
    let said = |step: u64, outcome: &StepOutcome| match outcome {
        StepOutcome::Stepped { loss, .. } if step.is_multiple_of(20) || steps <= 20 => {
            println!("step {step}: loss {:.6}", loss.unwrap_or(f32::NAN));
        }
        StepOutcome::Stepped { .. } => {}
        skipped => println!("{skipped}"),
    };
    let trained = train(&policy, scaler, &device, steps, said);
    println!("mIoU {:.2} on new pictures", 100.0 * trained.miou);
    ExitCode::SUCCESS
}
