//! Whether what a forward pass computed is finite.

use burn::tensor::{Device, Tensor};
#[cfg(feature = "cube")]
use halfseg_kernels::measure_list;

use super::slot::Slot;

/// Flags on a device that say whether what the forward pass computed is finite.
#[derive(Clone)]
pub(crate) struct ForwardFlags {
    pub names: Vec<String>,
    /// f32 `[names]`: 1 where all values are finite, else 0.
    pub finite: Tensor<1>,
}

impl ForwardFlags {
    /// Of named values, at least one, on `device`: in some kernels for all those that are there, if it has
    /// kernels for lists of tensors, with one operation for each of the others.
    pub fn of(values: Vec<(String, Box<dyn Slot>)>, device: &Device) -> Self {
        let (mut names, mut flags) = (Vec::new(), Vec::new());
        #[cfg(feature = "cube")]
        let values = Self::of_listed(values, device, &mut names, &mut flags);
        for (name, value) in values {
            names.push(name);
            flags.push(value.finite(device));
        }
        Self {
            names,
            finite: Tensor::cat(flags, 0),
        }
    }

    /// Leaves the values that are no part of the list.
    #[cfg(feature = "cube")]
    fn of_listed(
        values: Vec<(String, Box<dyn Slot>)>,
        device: &Device,
        names: &mut Vec<String>,
        flags: &mut Vec<Tensor<1>>,
    ) -> Vec<(String, Box<dyn Slot>)> {
        let (mut listed, mut others) = (Vec::new(), Vec::new());
        for (name, mut value) in values {
            match value.take_listed(device) {
                Some(value) => {
                    names.push(name);
                    listed.push(value);
                }
                None => others.push((name, value)),
            }
        }
        if !listed.is_empty() {
            let count = listed.len();
            flags.push(measure_list(listed).narrow(1, 0, 1).reshape([count]));
        }
        others
    }
}
