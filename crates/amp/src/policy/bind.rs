//! The module overrides of a policy, resolved to the parameters of a model.

use std::collections::HashMap;
use std::sync::Arc;

use burn::module::{Module, ParamId};

use super::{Bound, Policy};
use crate::Precision;
use crate::paths::parameter_paths;

/// An override of a [`Policy`] whose path names no module of the model, from [`Policy::bind`].
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct UnmatchedModule {
    /// The path that matches nothing.
    pub path: String,
    /// The module of the model whose path looks most like it; empty for a model without any.
    pub nearest: String,
}

impl std::fmt::Display for UnmatchedModule {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { path, nearest } = self;
        write!(
            f,
            "the model has no module `{path}`; the nearest is `{nearest}`"
        )
    }
}

/// Characters of a name that are compared with those of others.
const LONGEST_NAME: usize = 200;

/// The candidate that looks most like `name`.
pub(super) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> String {
    // The time for a comparison grows with both lengths.
    let name: String = name.chars().take(LONGEST_NAME).collect();
    let likeness = |candidate: &str| strsim::normalized_damerau_levenshtein(&name, candidate);
    candidates
        .into_iter()
        .max_by(|a, b| likeness(a).total_cmp(&likeness(b)))
        .unwrap_or_default()
        .to_owned()
}

impl Policy {
    /// Resolves the module overrides to the parameters of `model`, and returns those that match
    /// nothing in it: a caller that reads policy files should report them.
    ///
    /// A policy with module overrides must be bound to every model that runs under it; binding it to
    /// a further model keeps the earlier ones. Parameters keep their identity through optimizer steps
    /// and moves between devices. Bind again after loading a checkpoint, which may bring identities of
    /// its own: an operation whose parameter the policy was not bound to panics.
    #[must_use = "overrides that match nothing have no effect: report them"]
    pub fn bind<M: Module>(&mut self, model: &M) -> Vec<UnmatchedModule> {
        let parameters = parameter_paths(model);
        let mut unmatched = Vec::new();
        let mut bound = match &self.bound.0 {
            Some(bound) => HashMap::clone(bound),
            None => HashMap::new(),
        };
        bound.extend(parameters.iter().map(|parameter| (parameter.id, None)));
        // Shorter paths first, so that longer ones overwrite them.
        let mut modules: Vec<_> = self.modules.iter().collect();
        modules.sort_by_key(|(path, _)| path.len());
        for (path, precision) in modules {
            let mut found = false;
            for parameter in &parameters {
                let rest = parameter.path.strip_prefix(path.as_str());
                if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('.')) {
                    bound.insert(parameter.id, Some(*precision));
                    found = true;
                }
            }
            if !found {
                // Every module on the way from the root to a parameter.
                let above = parameters.iter().flat_map(|parameter| {
                    let path = parameter.path.as_str();
                    path.match_indices('.').map(|(end, _)| &path[..end])
                });
                unmatched.push(UnmatchedModule {
                    path: path.clone(),
                    nearest: nearest(path, above),
                });
            }
        }
        self.bound = Bound(Some(Arc::new(bound)));
        unmatched.sort_by(|a, b| a.path.cmp(&b.path));
        unmatched
    }

    /// The override for operations that own the parameter `id`.
    ///
    /// # Panics
    ///
    /// If there are overrides and the policy was not bound to the model of the parameter.
    pub(crate) fn module_precision(&self, id: ParamId) -> Option<Precision> {
        if self.modules.is_empty() {
            return None;
        }
        let Some(bound) = &self.bound.0 else {
            panic!(
                "the policy has precisions for the modules {:?}, which nothing connects to a \
                 model: call `policy.bind(&model)` before `autocast`",
                self.modules.keys().collect::<Vec<_>>()
            );
        };
        let precision = bound.get(&id).unwrap_or_else(|| {
            panic!(
                "the policy has precisions for the modules {:?}, and this operation's parameter is \
                 of no model that it was bound to: call `policy.bind(&model)` for each model, and \
                 after a checkpoint was loaded into it",
                self.modules.keys().collect::<Vec<_>>()
            )
        });
        *precision
    }
}
