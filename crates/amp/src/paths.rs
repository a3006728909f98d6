//! The paths of a model's parameters: the one place that makes them.

use std::collections::HashMap;

use burn::module::{Module, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;

/// A float parameter, or running statistic, of a model and its place in it; from
/// [`parameter_paths`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ParameterPath {
    /// The identity that gradients, optimizers and clones of the model know the parameter by.
    pub id: ParamId,
    /// The names of the fields on the way from the root, joined by dots: `layer1.0.conv1.weight`.
    pub path: String,
}

/// Every float parameter and running statistic of `model`, in its order.
///
/// A path is made of the names of fields and the numbers of elements, without the names of enum
/// variants, so that it does not depend on which variant a model happens to use. A parameter that
/// two modules share is listed at each of its places.
///
/// ```
/// use burn::nn::{Linear, LinearConfig};
/// use burn::tensor::Device;
/// use halfseg_amp::parameter_paths;
///
/// let device = Device::flex();
/// let model: Vec<Linear> = (0..2).map(|_| LinearConfig::new(2, 2).init(&device)).collect();
/// let paths: Vec<_> = parameter_paths(&model).into_iter().map(|p| p.path).collect();
/// assert_eq!(paths, ["0.weight", "0.bias", "1.weight", "1.bias"]);
/// ```
pub fn parameter_paths<M: Module>(model: &M) -> Vec<ParameterPath> {
    #[derive(Default)]
    struct Visitor {
        place: Place,
        found: Vec<ParameterPath>,
    }
    impl ModuleVisitor for Visitor {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.place.enter(name, container);
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.place.leave();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let (id, path) = (param.id, self.place.path().to_owned());
            self.found.push(ParameterPath { id, path });
        }
    }
    let mut visitor = Visitor::default();
    model.visit(&mut visitor);
    visitor.found
}

/// Where in a model a visitor is.
#[derive(Default)]
pub(crate) struct Place {
    path: String,
    /// How long the path was before each name on it.
    lengths: Vec<usize>,
}

impl Place {
    /// To be called by [`ModuleVisitor::enter_module`].
    pub fn enter(&mut self, name: &str, container: &str) {
        self.lengths.push(self.path.len());
        if !container.starts_with("Enum:") {
            if !self.path.is_empty() {
                self.path.push('.');
            }
            self.path.push_str(name);
        }
    }

    /// To be called by [`ModuleVisitor::exit_module`].
    pub fn leave(&mut self) {
        self.path.truncate(self.lengths.pop().unwrap_or(0));
    }

    /// The path of a parameter that is visited here.
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// What tells models apart that hold different parameters: the first, and their number.
pub(crate) fn fingerprint<M: Module>(model: &M) -> (Option<ParamId>, usize) {
    struct Visitor(Option<ParamId>, usize);
    impl ModuleVisitor for Visitor {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.get_or_insert(param.id);
            self.1 += 1;
        }
    }
    let mut visitor = Visitor(None, 0);
    model.visit(&mut visitor);
    (visitor.0, visitor.1)
}

/// The path of each parameter, the first of those that are shared.
pub(crate) fn paths_by_id<M: Module>(model: &M) -> HashMap<ParamId, String> {
    let mut paths = HashMap::new();
    for ParameterPath { id, path } in parameter_paths(model) {
        paths.entry(id).or_insert(path);
    }
    paths
}
