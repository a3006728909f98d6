//! Networks so narrow that a step takes milliseconds, and what they train on.

#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::BTreeMap;

use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use halfseg_segmentor::{Depth, Method, Segmentor};
use halfseg_train::{Recipe, RunPrecision};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// The published recipe at a few channels, with `settings` on top.
pub fn recipe(method: Method, depth: Depth, precision: RunPrecision, settings: &[&str]) -> Recipe {
    let mut recipe = Recipe::published(method, depth);
    recipe.precision.dtype = precision;
    let narrow = [
        "model.stem_channels=8",
        "model.base_channels=4",
        "model.head_channels=8",
        "model.aux_channels=8",
        "model.c1_channels=4",
        "schedule.iterations=10",
    ];
    for value in narrow.iter().chain(settings) {
        recipe.set(value).unwrap();
    }
    recipe
}

/// Images and their labels, where one pixel in so many of the first few images is ignored.
pub struct Batch {
    pub images: usize,
    pub first: usize,
    pub one_in: u32,
}

impl Batch {
    /// Two images, a tenth of them ignored.
    pub const PAIR: Self = Self {
        images: 2,
        first: 2,
        one_in: 10,
    };

    pub fn draw(&self, classes: usize, device: &Device) -> (Tensor<4>, Tensor<3, Int>) {
        const SIZE: [usize; 2] = [33, 49];
        let mut rng = ChaCha8Rng::seed_from_u64(2);
        let [h, w] = SIZE;
        let mut draw = |bound: u32| rng.next_u32() % bound;
        let values: Vec<f32> = (0..self.images * 3 * h * w)
            .map(|_| draw(1000) as f32 / 250.0 - 2.0)
            .collect();
        let labels: Vec<i32> = (0..self.images * h * w)
            .map(|pixel| match draw(self.one_in) {
                0 if pixel < self.first * h * w => 255,
                _ => draw(classes as u32) as i32,
            })
            .collect();
        (
            Tensor::from_data(TensorData::new(values, [self.images, 3, h, w]), device),
            Tensor::from_data(TensorData::new(labels, [self.images, h, w]), device),
        )
    }
}

/// Values by module path.
pub type Values = BTreeMap<String, Vec<f32>>;

/// Parameters and running statistics by module path.
pub fn values(model: &Segmentor) -> Values {
    #[derive(Default)]
    struct Visitor {
        path: Vec<String>,
        found: Values,
    }
    impl ModuleVisitor for Visitor {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.path.push(name.to_owned());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.path.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let data = param.val().into_data().try_into_vec().unwrap();
            self.found.insert(self.path.join("."), data);
        }
    }
    let mut visitor = Visitor::default();
    model.visit(&mut visitor);
    visitor.found
}
