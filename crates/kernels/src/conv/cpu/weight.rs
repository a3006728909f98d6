//! The weight of a convolution on the CPU.

use super::kept::Owner;
use crate::cpu::element::{Element, convert};

/// A weight, `[c_out, c_in / groups, kh, kw]`, and what each output channel's is multiplied by. What
/// results is rounded to what the maps hold, as a cast would do.
#[derive(Clone, Copy)]
pub struct Weight<'a, W> {
    /// Contiguous.
    pub values: &'a [W],
    /// One value per output channel.
    pub scale: Option<&'a [f32]>,
    /// What it is known by, if it may be kept as it is packed.
    pub owner: Option<&'a Owner>,
}

impl<'a, W> Weight<'a, W> {
    /// As it is.
    pub fn plain(values: &'a [W]) -> Self {
        Self {
            values,
            scale: None,
            owner: None,
        }
    }

    /// The part that one of `groups` has.
    pub fn group(self, group: usize, groups: usize) -> Self {
        fn part<T>(values: &[T], group: usize, groups: usize) -> &[T] {
            let length = values.len() / groups;
            &values[group * length..][..length]
        }
        Self {
            values: part(self.values, group, groups),
            scale: self.scale.map(|scale| part(scale, group, groups)),
            owner: self.owner,
        }
    }
}

/// A value of a weight as maps of `E` hold it.
#[inline(always)]
pub fn rounded<E: Element, W: Element>(value: W, scale: Option<f32>) -> E {
    match scale {
        Some(scale) => E::narrow(value.widen() * scale),
        None => convert(value),
    }
}
