//! The most likely classes on Burn's Flex backend.

use burn::backend::flex::FlexTensor;
use burn::tensor::{Element as Value, Int, Tensor};
use rayon::prelude::*;

use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, dispatch};
use crate::cpu::lines::{Columns, between};
use crate::cpu::tensor::{integers, primitive, shape, tensor, values, with_element};
use crate::cpu::transpose;
use crate::maps::Between;

/// See [`super::most_likely_classes`].
pub fn most_likely_classes(
    logits: &Tensor<4>,
    rows: &[Between],
    columns: &[Between],
) -> Option<Tensor<3, Int>> {
    let logits = primitive(logits)?;
    let [_, classes, ..] = shape(&logits);
    let columns = Columns::new(columns);
    let map = with_element!(logits.dtype(), E => match classes {
        ..=256 => decided::<E, u8>(logits, rows, &columns, |class| class as u8),
        _ => decided::<E, i32>(logits, rows, &columns, |class| class),
    });
    Some(integers(map))
}

/// `[n, rows, columns]`.
fn decided<E: Element + Value + bytemuck::Pod, T: Value>(
    logits: FlexTensor,
    rows: &[Between],
    columns: &Columns,
    stored: impl Fn(i32) -> T + Sync,
) -> FlexTensor {
    let [n, classes, h, w] = shape(&logits);
    let last = transpose::lies_channels_last(&logits);
    let logits = match last {
        true => transpose::channels_last(&logits),
        false => logits.to_contiguous(),
    };
    let (logits, width) = (values::<E>(&logits), columns.count());
    let mut map = vec![stored(0); n * rows.len() * width];
    map.par_chunks_mut(width).enumerate().for_each_init(
        || Row::new(classes * w, width),
        |buffers, (index, output)| {
            let image = &logits[index / rows.len() * classes * h * w..][..classes * h * w];
            let row = rows[index % rows.len()];
            dispatch(
                Isa::best(),
                #[inline(always)]
                |isa| {
                    match last {
                        true => buffers.read_pixels(isa, image, row, [classes, w]),
                        false => buffers.read_planes(isa, image, row, [classes, h, w]),
                    }
                    buffers.decide(columns, w);
                },
            );
            for (output, class) in output.iter_mut().zip(&buffers.class) {
                *output = stored(*class);
            }
        },
    );
    tensor(map, [n, rows.len(), width])
}

/// What a row of the result takes.
struct Row {
    /// Logits of a row of the result at each column of the map, class by class.
    logits: Vec<f32>,
    /// For what is read from the map.
    line: Vec<f32>,
    other: Vec<f32>,
    /// Of each column of the result: a class' logit, the largest so far, and its class.
    logit: Vec<f32>,
    largest: Vec<f32>,
    class: Vec<i32>,
}

impl Row {
    fn new(logits: usize, width: usize) -> Self {
        Self {
            logits: vec![0.0; logits],
            line: vec![0.0; logits],
            other: vec![0.0; logits],
            logit: vec![0.0; width],
            largest: vec![0.0; width],
            class: vec![0; width],
        }
    }

    #[inline(always)]
    fn read_planes<E: Element>(
        &mut self,
        isa: Isa,
        image: &[E],
        row: Between,
        [classes, h, w]: [usize; 3],
    ) {
        for class in 0..classes {
            let rows = [row.low, row.high].map(|y| &image[(class * h + y) * w..][..w]);
            let line = &mut self.logits[class * w..][..w];
            between(isa, rows, row.share, line, &mut self.other[..w]);
        }
    }

    #[inline(always)]
    fn read_pixels<E: Element>(
        &mut self,
        isa: Isa,
        image: &[E],
        row: Between,
        [classes, w]: [usize; 2],
    ) {
        let rows = [row.low, row.high].map(|y| &image[y * w * classes..][..w * classes]);
        between(isa, rows, row.share, &mut self.line, &mut self.other);
        for (x, pixel) in self.line.chunks_exact(classes).enumerate() {
            for (class, logit) in pixel.iter().enumerate() {
                self.logits[class * w + x] = *logit;
            }
        }
    }

    /// The class of each column: of a NaN none is larger.
    #[inline(always)]
    fn decide(&mut self, columns: &Columns, w: usize) {
        self.class.fill(0);
        for (class, line) in self.logits.chunks_exact(w).enumerate() {
            if class == 0 {
                columns.resize(line, &mut self.largest);
                continue;
            }
            columns.resize(line, &mut self.logit);
            let best = self.largest.iter_mut().zip(&mut self.class);
            for ((largest, found), logit) in best.zip(&self.logit) {
                let is_larger = *logit > *largest;
                *largest = if is_larger { *logit } else { *largest };
                *found = if is_larger { class as i32 } else { *found };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, FloatDType, TensorData};
    use rand::rngs::StdRng;
    use rand::{RngExt as _, SeedableRng as _};

    use super::super::most_likely_classes;
    use super::*;

    fn drawn(generator: &mut StdRng, shape: [usize; 4], dtype: FloatDType) -> Tensor<4> {
        let count = shape.iter().product();
        let values: Vec<f32> = (0..count)
            .map(|_| generator.random_range(-4.0..4.0))
            .collect();
        Tensor::<4>::from_data(TensorData::new(values, shape), &Device::flex()).cast(dtype)
    }

    fn classes_of(map: Tensor<3, Int>) -> Vec<usize> {
        let map = map.into_data();
        map.iter::<i64>().map(|class| class as usize).collect()
    }

    /// The logits of a pixel, resized in f64.
    fn logits_at(
        logits: &[f32],
        [classes, h, w]: [usize; 3],
        row: Between,
        column: Between,
    ) -> Vec<f64> {
        let [down, right] = [row, column].map(|line| f64::from(line.share));
        let at = |class: usize, y: usize, x: usize| f64::from(logits[(class * h + y) * w + x]);
        let along = |class: usize, y: usize| {
            at(class, y, column.low) * (1.0 - right) + at(class, y, column.high) * right
        };
        (0..classes)
            .map(|k| along(k, row.low) * (1.0 - down) + along(k, row.high) * down)
            .collect()
    }

    #[test]
    fn each_pixel_has_a_class_whose_resized_logit_is_the_largest() {
        let mut generator = StdRng::seed_from_u64(3);
        let sizes = [1usize, 2, 5, 8, 19, 33];
        for case in 0..120 {
            let mut one = |of: &[usize]| of[generator.random_range(0..of.len())];
            let [n, h, w] = [one(&[1, 1, 2]), one(&sizes), one(&sizes)];
            let classes = one(&[1, 2, 19, 32, 300]);
            let size = [one(&[1, 3, 8, 40]), one(&[1, 7, 64, 100])];
            let align_corners = case % 3 == 0;
            let dtype = [FloatDType::F32, FloatDType::F16, FloatDType::BF16][case % 3];
            let logits = match case % 2 {
                0 => drawn(&mut generator, [n, classes, h, w], dtype),
                _ => drawn(&mut generator, [n, h, w, classes], dtype).permute([0, 3, 1, 2]),
            };
            let found = most_likely_classes(&logits, size, align_corners).expect("on the CPU");
            assert_eq!(found.dims(), [n, size[0], size[1]]);
            let found = classes_of(found);
            let values = logits.clone().into_data().convert::<f32>();
            let values = values.as_slice::<f32>().unwrap();
            let lines = |from, to| Between::bilinear(from, to, align_corners);
            let (rows, columns) = (lines(h, size[0]), lines(w, size[1]));
            for (pixel, class) in found.iter().enumerate() {
                let (line, x) = (pixel / size[1], pixel % size[1]);
                let image = &values[line / size[0] * classes * h * w..];
                let at = (rows[line % size[0]], columns[x]);
                let scores = logits_at(image, [classes, h, w], at.0, at.1);
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                assert!(
                    largest - scores[*class] < 1e-5,
                    "case {case}, pixel {pixel}: class {class} has {}, the largest is {largest}",
                    scores[*class]
                );
            }
        }
    }

    #[test]
    fn the_first_of_equal_classes_is_taken_on_any_number_of_threads() {
        let equal = Tensor::<4>::ones([1, 5, 3, 4], &Device::flex());
        let found = most_likely_classes(&equal, [6, 8], false).unwrap();
        assert_eq!(classes_of(found), vec![0; 48]);
        let mut generator = StdRng::seed_from_u64(4);
        let logits = drawn(&mut generator, [2, 19, 17, 23], FloatDType::BF16);
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.unwrap()
                .install(|| classes_of(most_likely_classes(&logits, [131, 177], false).unwrap()))
        };
        let one = run(1);
        assert_eq!([2, 61].map(run), [one.clone(), one]);
    }
}
