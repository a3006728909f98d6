//! Numbers that training cannot go on from.

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::{Tensor, TensorData};
use halfseg_segmentor::Segmentor;

/// What is left to do where a checkpoint holds such numbers.
pub(crate) const REMEDY: &str = "go on from an earlier checkpoint, whose name last_checkpoint is then to hold, or \
                                 begin a new run";

/// The first weight or running statistic of `model` that is no finite number, and its tensor by MMSegmentation's
/// name.
pub(crate) fn unfit_weight(model: &Segmentor) -> Option<String> {
    struct Visitor {
        names: BTreeMap<ParamId, String>,
        found: Option<String>,
    }
    impl ModuleVisitor for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self.found.is_some() {
                return;
            }
            let name = self.names.get(&param.id).map_or("a tensor", String::as_str);
            self.found = unfit_value(name, &param.val().into_data(), |value| value.is_finite());
        }
    }
    let mut visitor = Visitor {
        names: model.names(),
        found: None,
    };
    model.visit(&mut visitor);
    visitor.found
}

/// The first value of the tensor `name` that is not `fit`.
pub(crate) fn unfit_value(
    name: &str,
    data: &TensorData,
    fit: impl Fn(&f32) -> bool,
) -> Option<String> {
    let value = data.iter::<f32>().find(|value| !fit(value))?;
    Some(format!("{value} in `{name}`"))
}
