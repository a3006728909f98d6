//! Learning rates and weight decays of single modules.

use std::collections::{BTreeMap, HashMap};

use burn::module::{Module, ParamId};
use halfseg_amp::parameter_paths;

/// Whether `path` is that of `module`, or of something in it.
pub(crate) fn within(module: &str, path: &str) -> bool {
    let rest = path.strip_prefix(module);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

/// By what learning rate and weight decay of some parameters are multiplied.
#[derive(Clone, Debug, Default)]
pub struct Factors {
    /// Of the learning rate, and of the weight decay.
    of: HashMap<ParamId, [f64; 2]>,
}

impl Factors {
    /// Those of the parameters of `model` that are in modules of these paths: the longest path counts. Returns the
    /// paths that are none of its modules, too.
    pub fn new<M: Module>(
        model: &M,
        lr: &BTreeMap<String, f64>,
        decay: &BTreeMap<String, f64>,
    ) -> (Self, Vec<String>) {
        let parameters: Vec<_> = parameter_paths(model);
        let factor = |factors: &BTreeMap<String, f64>, path: &str| {
            let fitting = factors.iter().filter(|(module, _)| within(module, path));
            let longest = fitting.max_by_key(|(module, _)| module.len());
            longest.map_or(1.0, |(_, factor)| *factor)
        };
        let mut of = HashMap::new();
        for parameter in &parameters {
            let found = [factor(lr, &parameter.path), factor(decay, &parameter.path)];
            if found != [1.0; 2] {
                of.entry(parameter.id).or_insert(found);
            }
        }
        let known = |module: &&String| parameters.iter().any(|p| within(module, &p.path));
        let unknown = lr
            .keys()
            .chain(decay.keys())
            .filter(|module| !known(module));
        let unknown = unknown.cloned().collect();
        (Self { of }, unknown)
    }

    /// Of the learning rate and of the weight decay of a parameter.
    pub(super) fn of(&self, id: ParamId) -> [f64; 2] {
        self.of.get(&id).copied().unwrap_or([1.0; 2])
    }
}
