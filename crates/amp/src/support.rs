//! Whether a device computes in a dtype.

use std::cell::RefCell;

use burn::tensor::{Device, FloatDType};

use crate::{AmpError, Precision};

thread_local! {
    /// The devices and dtypes that were found to work.
    static SUPPORTED: RefCell<Vec<(Device, FloatDType)>> = const { RefCell::new(Vec::new()) };
}

/// The error that names `device`, `precision` and what would work; `None` if `precision` does.
pub(crate) fn unsupported(device: &Device, precision: Precision) -> Option<AmpError> {
    let works = |precision: &Precision| {
        let dtype = precision.dtype();
        dtype.is_none_or(|dtype| device.supports_dtype(dtype) && !is_emulated(device, dtype))
    };
    if works(&precision) {
        return None;
    }
    let floats = [Precision::F16, Precision::Bf16, Precision::F32];
    // The hardware, whether or not it records a graph.
    let hardware = match device.is_autodiff() {
        true => device.clone().inner(),
        false => device.clone(),
    };
    Some(AmpError::Unsupported {
        device: format!("{hardware:?}"),
        precision,
        supported: floats.into_iter().filter(works).collect(),
    })
}

/// Whether a GPU multiplies matrices of the other half precision in units made for it and those of `dtype` value by
/// value, as CUDA does bf16 before compute capability 8.0: it works, too slowly to be of use.
fn is_emulated(device: &Device, dtype: FloatDType) -> bool {
    #[cfg(feature = "cube")]
    {
        use burn::tensor::DType;
        use halfseg_kernels::multiplies;

        let other = match dtype {
            FloatDType::F16 => DType::BF16,
            FloatDType::BF16 => DType::F16,
            _ => return false,
        };
        multiplies(device, other) && !multiplies(device, dtype.into())
    }
    #[cfg(not(feature = "cube"))]
    {
        let _ = (device, dtype);
        false
    }
}

/// Refuses a half precision that `device` does not compute in: the backend would panic in the middle
/// of an operation, or compute garbage. Asks each device once per thread and dtype.
///
/// # Panics
///
/// If the device does not compute in `dtype`.
pub(crate) fn require(device: &Device, dtype: FloatDType) {
    let precision = match dtype {
        FloatDType::F16 => Precision::F16,
        FloatDType::BF16 => Precision::Bf16,
        _ => return,
    };
    let is_known = |known: &(Device, FloatDType)| known.1 == dtype && known.0 == *device;
    if SUPPORTED.with_borrow(|supported| supported.iter().any(is_known)) {
        return;
    }
    if let Some(error) = unsupported(device, precision) {
        panic!("{error}");
    }
    SUPPORTED.with_borrow_mut(|supported| supported.push((device.clone(), dtype)));
}
