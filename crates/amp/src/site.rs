//! Where in a model an operation is.

use burn::module::{Param, ParamId};
use burn::tensor::Tensor;

/// Where in a model an operation is: at the module that owns a parameter, or under a name.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Site<'a> {
    /// The operation owns this parameter, whose path names it.
    Param(ParamId),
    /// The operation has no parameter.
    Name(&'a str),
}

impl<const D: usize> From<&Param<Tensor<D>>> for Site<'_> {
    fn from(param: &Param<Tensor<D>>) -> Self {
        Site::Param(param.id)
    }
}

impl From<ParamId> for Site<'_> {
    fn from(id: ParamId) -> Self {
        Site::Param(id)
    }
}

impl<'a> From<&'a str> for Site<'a> {
    fn from(name: &'a str) -> Self {
        Site::Name(name)
    }
}
