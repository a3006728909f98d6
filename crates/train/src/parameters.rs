//! Counting parameters.

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::Tensor;

/// The number of trainable values of a module: everything but the running statistics of
/// normalisations, which Burn's own count includes.
pub fn parameters<M: Module>(module: &M) -> u64 {
    #[derive(Default)]
    struct Visitor {
        path: Vec<String>,
        count: u64,
    }
    impl ModuleVisitor for Visitor {
        fn enter_module(&mut self, name: &str, _container_type: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _name: &str, _container_type: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let name = self.path.last().map_or("", String::as_str);
            if !matches!(name, "running_mean" | "running_var") {
                self.count += param.lazy_shape().num_elements() as u64;
            }
        }
    }
    let mut visitor = Visitor::default();
    module.visit(&mut visitor);
    visitor.count
}
