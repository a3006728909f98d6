//! Networks with the same random weights each time, for the tests of several crates.
//!
//! Of a few channels that are drawn at random all may be zero behind a ReLU, once in thousands of times: whatever is
//! compared is equal then.

use std::sync::{Mutex, PoisonError};

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};

/// What `draw` makes with random numbers that begin at `seed`. They belong to the whole process, so that
/// one network is drawn at a time.
pub fn drawn<M: Module>(seed: u64, draw: impl FnOnce(&Device) -> M) -> M {
    struct Read;
    impl ModuleVisitor for Read {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            drop(param.val());
        }
    }
    static DRAWING: Mutex<()> = Mutex::new(());
    let _alone = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
    let device = Device::flex();
    device.seed(seed);
    let module = draw(&device);
    // Weights are drawn when they are first read.
    module.visit(&mut Read);
    module
}
