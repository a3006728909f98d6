//! The saved state of a scaler: its versions, what is refused, and PyTorch's.

mod common;

use common::trajectory;
use halfseg_amp::{DynamicScale, GradScaler, Scaling, TorchState};
use serde_json::{Value, json};

fn saved(scaler: &GradScaler) -> Value {
    serde_json::to_value(scaler).unwrap()
}

fn load(state: Value) -> Result<GradScaler, String> {
    serde_json::from_value(state).map_err(|error| error.to_string())
}

#[test]
fn states_from_before_they_had_a_version_are_read() {
    // What version 0.1 wrote.
    let state = json!({
        "scaling": { "dynamic": {
            "init": 65536.0, "growth": 2.0, "backoff": 0.5, "interval": 2000,
            "min": 1.1754943508222875e-38, "max": 8.507059173023462e37, "hysteresis": 1,
        }},
        "scale": 16384.0, "clean": 1999, "hysteresis_left": 1, "steps": 5, "skips": 2,
    });
    let mut scaler = load(state).unwrap();
    assert_eq!((scaler.steps(), scaler.skips()), (5, 2));
    assert_eq!(trajectory(&mut scaler, ".").0, [32768.0]);
}

#[test]
fn states_that_no_run_leads_to_are_refused() {
    let mut scaler = GradScaler::dynamic(DynamicScale::megatron().with_interval(3));
    trajectory(&mut scaler, "..");
    let state = saved(&scaler);
    assert_eq!(load(state.clone()).unwrap(), scaler);
    let fixed = saved(&GradScaler::mmcv_static());
    for (state, key, value, expected) in [
        (
            &state,
            "clean",
            json!(3),
            "saved number of clean steps is 3",
        ),
        (
            &state,
            "clean",
            json!(u32::MAX),
            "saved number of clean steps",
        ),
        (&state, "clean", json!(-1), "invalid value"),
        (&state, "hysteresis_left", json!(3), "saved hysteresis is 3"),
        (&state, "scale", json!(0.5), "saved scale is 0.5"),
        (&state, "scale", json!(null), "f32"),
        (
            &state,
            "version",
            json!(2),
            "version 2, this program reads up to 1",
        ),
        (&state, "version", json!(0), "version 0"),
        (&state, "later", json!(1), "unknown field `later`"),
        (&fixed, "clean", json!(1), "saved number of clean steps"),
        (&fixed, "hysteresis_left", json!(0), "saved hysteresis"),
        (&fixed, "scale", json!(1024.0), "saved scale"),
    ] {
        let mut broken = state.clone();
        broken[key] = value.clone();
        let error = load(broken).expect_err(&format!("{key}: {value}"));
        assert!(error.contains(expected), "{key} {value}: {error}");
    }
    for key in ["scale", "clean", "hysteresis_left", "scaling"] {
        let mut broken = state.clone();
        broken.as_object_mut().unwrap().remove(key);
        assert!(load(broken).unwrap_err().contains("missing field"), "{key}");
    }
}

/// Whatever text takes the place of a state, reading it gives a scaler or an error.
#[test]
fn mutated_states_do_not_panic() {
    let text = saved(&GradScaler::dynamic(DynamicScale::torch())).to_string();
    let mut seed = 7u32;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(1664525).wrapping_add(1013904223);
        (seed >> 8) as usize % below
    };
    let mut read = 0;
    for _ in 0..3000 {
        let mut bytes = text.clone().into_bytes();
        for _ in 0..=random(3) {
            let place = random(bytes.len());
            match random(3) {
                0 => bytes[place] = b"0123456789-+.eE{}[]\",:x"[random(23)],
                1 => drop(bytes.remove(place)),
                _ => bytes.insert(place, b"0123456789"[random(10)]),
            }
        }
        let text = String::from_utf8_lossy(&bytes).into_owned();
        if let Ok(scaler) = serde_json::from_str::<GradScaler>(&text) {
            // Then it is one that saves as it was read.
            assert_eq!(load(saved(&scaler)).unwrap(), scaler);
            assert!(scaler.current_scale().is_finite());
            read += 1;
        }
    }
    assert!(read > 100, "{read}");
}

#[test]
fn pytorch_state_is_read_and_written() {
    let text = r#"{"scale": 4096.0, "growth_factor": 3.0, "backoff_factor": 0.25,
                   "growth_interval": 5, "_growth_tracker": 3}"#;
    let state: TorchState = serde_json::from_str(text).unwrap();
    let mut scaler = GradScaler::from_torch(&state).unwrap();
    assert_eq!(scaler.to_torch().unwrap(), state);
    // It goes on in mid-interval.
    assert_eq!(trajectory(&mut scaler, "..x").0, [4096.0, 12288.0, 3072.0]);
    let state = scaler.to_torch().unwrap();
    assert_eq!((state.scale, state.growth_tracker), (3072.0, 0));
    let written: Value = serde_json::to_value(&state).unwrap();
    assert_eq!(written["_growth_tracker"], json!(0));
    assert_eq!(written.as_object().unwrap().len(), 5);

    let refused = |change: &dyn Fn(&mut TorchState), expected: &str| {
        let mut broken: TorchState = serde_json::from_str(text).unwrap();
        change(&mut broken);
        let error = GradScaler::from_torch(&broken).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(&|state| state.scale = 0.0, "saved scale is 0");
    refused(&|state| state.scale = f64::NAN, "saved scale is NaN");
    refused(&|state| state.scale = 2f64.powi(127), "saved scale");
    refused(&|state| state.growth_factor = 1.0, "growth is 1");
    refused(&|state| state.backoff_factor = 1.5, "backoff is 1.5");
    refused(&|state| state.growth_interval = 0, "interval is 0");
    refused(&|state| state.growth_tracker = 5, "clean steps is 5");
    // A disabled scaler of PyTorch saves nothing.
    assert!(serde_json::from_str::<TorchState>("{}").is_err());

    for (scaler, what) in [
        (GradScaler::disabled(), "the state of a disabled scaler"),
        (GradScaler::mmcv_static(), "a fixed scale"),
        (
            GradScaler::dynamic(DynamicScale::megatron().with_min(f32::MIN_POSITIVE)),
            "a hysteresis",
        ),
        (
            GradScaler::dynamic(DynamicScale::apex()),
            "bounds of the scale",
        ),
    ] {
        let error = scaler.to_torch().unwrap_err().to_string();
        assert!(error.ends_with(what), "{error}");
    }
    assert!(matches!(scaler.scaling(), Scaling::Dynamic(_)));
}
