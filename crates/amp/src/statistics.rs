//! What a forward pass changes inside a model: its running statistics.
//!
//! Burn keeps batch-norm statistics in [`RunningState`](burn::module::RunningState), which clones
//! of a module share, which a forward pass updates, and whose newest value waits in a per-thread
//! map until the next update. Modules show them to visitors as ordinary parameters. This module
//! finds, reads and restores them through [`Module`] alone, so that it works for every model.

use std::any::Any;
use std::collections::{HashMap, HashSet};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::Tensor;

/// The ids of the running statistics of `model`.
///
/// A parameter shows the same value cell on every visit; a running statistic wraps its value anew.
/// The first visit keeps what it saw alive, so that no address can be given out twice.
pub(crate) fn statistics_ids<M: Module>(model: &M) -> HashSet<ParamId> {
    fn cell<const D: usize>(param: &Param<Tensor<D>>) -> usize {
        std::ptr::from_ref::<Tensor<D>>(param).addr()
    }
    #[derive(Default)]
    struct First {
        cells: HashMap<ParamId, (usize, Box<dyn Any>)>,
    }
    impl ModuleVisitor for First {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.cells
                .insert(param.id, (cell(param), Box::new(param.clone())));
        }
    }
    struct Second {
        first: First,
        found: HashSet<ParamId>,
    }
    impl ModuleVisitor for Second {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            if self
                .first
                .cells
                .get(&param.id)
                .is_some_and(|(first, _)| *first != cell(param))
            {
                self.found.insert(param.id);
            }
        }
    }
    let mut first = First::default();
    model.visit(&mut first);
    let mut second = Second {
        first,
        found: HashSet::new(),
    };
    model.visit(&mut second);
    second.found
}

/// Moves the updates that wait per thread into the values that visitors see.
pub(crate) fn flush<M: Module>(model: &M) {
    // Only the side effect is wanted: going to validation mode synchronises running statistics.
    // The copy it makes shares all tensors.
    drop(model.valid());
}

/// The running statistics of one or several models at one moment.
///
/// Tensors are shared, not copied: a forward pass replaces statistics, it never writes into them.
#[derive(Default)]
pub(crate) struct Snapshot {
    values: HashMap<ParamId, Box<dyn Any + Send + Sync>>,
}

impl Snapshot {
    /// Adds the statistics of `model` that are not yet part of the snapshot.
    pub fn add<M: Module>(&mut self, model: &M) {
        struct Visitor<'a> {
            ids: HashSet<ParamId>,
            values: &'a mut HashMap<ParamId, Box<dyn Any + Send + Sync>>,
        }
        impl ModuleVisitor for Visitor<'_> {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if self.ids.contains(&param.id) {
                    self.values
                        .entry(param.id)
                        .or_insert_with(|| Box::new(param.base()));
                }
            }
        }
        flush(model);
        let ids = statistics_ids(model);
        if !ids.is_empty() {
            model.visit(&mut Visitor {
                ids,
                values: &mut self.values,
            });
        }
    }

    /// The statistics of `model`.
    pub fn of<M: Module>(model: &M) -> Self {
        let mut snapshot = Self::default();
        snapshot.add(model);
        snapshot
    }

    /// A statistic as it was.
    pub fn get<const D: usize>(&self, id: ParamId) -> Option<Tensor<D>> {
        self.values.get(&id)?.downcast_ref::<Tensor<D>>().cloned()
    }

    /// The ids of the statistics in the snapshot.
    pub fn ids(&self) -> HashSet<ParamId> {
        self.values.keys().copied().collect()
    }

    /// Gives `model` back the statistics that it had, for those in the snapshot.
    pub fn restore<M: Module>(&self, model: &M) {
        struct Mapper<'a>(&'a HashMap<ParamId, Box<dyn Any + Send + Sync>>);
        impl ModuleMapper for Mapper<'_> {
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                match self
                    .0
                    .get(&param.id)
                    .and_then(|value| value.downcast_ref::<Tensor<D>>())
                {
                    Some(value) => Param::initialized(param.id, value.clone()),
                    None => param,
                }
            }
        }
        if self.values.is_empty() {
            return;
        }
        // What waits per thread would overwrite the restored values at the next update.
        flush(model);
        // Mapping a clone writes through to the statistics, which it shares with `model`; its
        // other parameters are untouched and go with it.
        drop(model.clone().map(&mut Mapper(&self.values)));
    }
}
