//! Whether this machine could run a recipe.

use halfseg_data::{Finding, Kind};
use halfseg_devices::Bytes;
use halfseg_segmentor::Cost;

use crate::start::{check_loader, check_memory};
use crate::{OptimizerKind, Recipe};

/// Bytes of a weight or of a momentum.
const VALUE: u64 = 4;

/// What would keep `recipe` from running here, in the words of training: its device, the memory of a step, and
/// the disk for its checkpoints, of which `free` bytes are left where the run's folder is to be (`None`: unknown).
pub fn machine_findings(recipe: &Recipe, free: Option<Bytes>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for device in std::iter::once(&recipe.device).chain(&recipe.further_devices) {
        if let Err(error) = device.open() {
            findings.push(Finding::new(Kind::Device, device, error));
        }
    }
    let memory = check_memory(recipe).and_then(|step| check_loader(recipe, step));
    if let Err(error) = memory {
        findings.push(Finding::new(Kind::Memory, recipe.data.crop, error));
    }
    let parameters = Cost::of(&recipe.model, [64, 64]).total(true).parameters;
    // Each checkpoint has weights, momentum and averages; one more is there while it takes the place of the last,
    // and the best has weights alone.
    let values = match recipe.optimizer.kind {
        OptimizerKind::Sgd => 2,
        OptimizerKind::AdamW => 3,
    } + u64::from(recipe.train.ema > 0.0);
    let checkpoints = values * (recipe.train.keep as u64).saturating_add(1) + 1;
    let needed = Bytes(checkpoints.saturating_mul(VALUE * parameters));
    if let Some(free) = free.filter(|free| needed > *free) {
        let message = format!(
            "the disk: expected {needed} for {} checkpoint(s), one that is being written and the best, found {free} free; \
             keep fewer (train.keep), or choose another disk",
            recipe.train.keep
        );
        findings.push(Finding::new(Kind::Disk, needed, message));
    }
    findings
}
