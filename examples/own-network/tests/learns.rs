//! What the example promises, on the CPU.

use burn::tensor::Device;
use halfseg_own_network::{precision, train};

fn learns(name: &str) {
    let (policy, scaler) = precision(name).unwrap();
    let trained = train(&policy, scaler, &Device::flex(), 120, |_, _| {});
    let (first, last) = (trained.losses[0], *trained.losses.last().unwrap());
    assert!(last < 0.5 * first, "{name}: loss {first} became {last}");
    assert!(trained.miou > 0.75, "{name}: mIoU {}", trained.miou);
}

#[test]
fn in_f32() {
    learns("f32");
}

#[test]
fn in_f16() {
    learns("f16");
}

#[test]
fn in_bf16() {
    learns("bf16");
}
