//! Convolutions with tiles of maps that lie channels last, against sums in f64.

use super::super::channels_last::{forward, takes};
use super::*;

/// Shapes of all kinds that are computed so: kernels, strides, dilations, padding, channels that fill no step, rows
/// that fill no tile, columns of several tasks, depthwise ones.
fn drawn(random: &mut Random) -> Geometry {
    loop {
        let depthwise = random.below(5) == 0;
        let c = 32 + random.below(120);
        // Steps that are full, as a map that is not copied has, and many channels.
        let c = if random.below(2) == 0 { c / 32 * 32 } else { c };
        let c = if random.below(6) == 0 { c + 512 } else { c };
        let m = if depthwise { c } else { 16 + random.below(120) };
        let kernel = [1, 1, 3, 5][random.below(4)];
        let options = Conv2dOptions {
            stride: [1 + random.below(5) / 4, 1 + random.below(5) / 4],
            padding: match random.below(2) {
                0 => [0, 0],
                _ => [random.below(9), random.below(9)],
            },
            dilation: [1 + random.below(5), 1 + random.below(5)],
            groups: if depthwise { c } else { 1 },
        };
        let size = [3 + random.below(14), 12 + random.below(60)];
        let size = match random.below(8) {
            0 => [2, 530 + random.below(60)],
            _ => size,
        };
        let window = options.dilation.map(|step| step * (kernel - 1) + 1);
        let fits = [0, 1].map(|axis| window[axis] <= size[axis] + 2 * options.padding[axis]);
        if fits == [true; 2] {
            let batch = 1 + random.below(2);
            let weight = [m, if depthwise { 1 } else { c }, kernel, kernel];
            return Geometry::new([batch, c, size[0], size[1]], weight, options);
        }
    }
}

/// From `[n, c, h, w]` to `[n, h, w, c]`, or the other way round.
fn turned<E: Element>(values: &[E], [n, c, h, w]: [usize; 4], back: bool) -> Vec<E> {
    let mut turned = vec![E::default(); values.len()];
    for image in 0..n {
        for channel in 0..c {
            for pixel in 0..h * w {
                let planar = (image * c + channel) * h * w + pixel;
                let last = (image * h * w + pixel) * c + channel;
                match back {
                    false => turned[last] = values[planar],
                    true => turned[planar] = values[last],
                }
            }
        }
    }
    turned
}

struct Case<E> {
    geometry: Geometry,
    x: Vec<E>,
    weight: Vec<f32>,
    scale: Vec<f32>,
    bias: Vec<f32>,
    skip: Option<Vec<E>>,
    relu: bool,
}

impl<E: Element> Case<E> {
    fn of(geometry: Geometry, random: &mut Random) -> Self {
        let count = |shape: [usize; 4]| shape.iter().product::<usize>();
        Self {
            geometry,
            x: random.values(count(geometry.input_shape())),
            weight: random.values(count(geometry.weight_shape())),
            scale: random.values(geometry.c_out),
            bias: random.values(geometry.c_out),
            skip: (random.below(2) == 0).then(|| random.values(count(geometry.output_shape()))),
            relu: random.below(2) == 0,
        }
    }

    fn found(&self, isa: Isa) -> Vec<E> {
        let geometry = &self.geometry;
        let x = turned(&self.x, geometry.input_shape(), false);
        let of = |skip: &Vec<E>| turned(skip, geometry.output_shape(), false);
        let skip = self.skip.as_ref().map(of);
        let weight = Weight {
            values: &self.weight[..],
            scale: Some(&self.scale),
            owner: None,
        };
        let tail = Tail {
            bias: Some(&self.bias),
            skip: skip.as_deref(),
            relu: self.relu,
        };
        let found = forward(isa, geometry, &x, weight, tail);
        turned(&found, geometry.output_shape(), true)
    }

    fn expected(&self) -> Vec<f64> {
        let geometry = &self.geometry;
        let plane = geometry.output[0] * geometry.output[1];
        let per_filter = self.weight.len() / geometry.c_out;
        let wide = |value: &E| f64::from(value.widen());
        let mut sums: Vec<f64> = (0..geometry.output_shape().iter().product())
            .map(|i: usize| {
                let skip = self.skip.as_ref().map_or(0.0, |skip| wide(&skip[i]));
                f64::from(self.bias[i / plane % geometry.c_out]) + skip
            })
            .collect();
        let weights = self.weight.iter().enumerate();
        let weights: Vec<f64> = weights
            .map(|(i, weight)| wide(&E::narrow(weight * self.scale[i / per_filter])))
            .collect();
        each_product(geometry, |i, w, o| sums[o] += wide(&self.x[i]) * weights[w]);
        if self.relu {
            let negative = |sum: &&mut f64| **sum < 0.0;
            sums.iter_mut().filter(negative).for_each(|sum| *sum = 0.0);
        }
        sums
    }
}

/// Of the first `count` shapes drawn, those that this processor computes so; says where there are none.
fn cases<E: Element>(count: u64, seed: u64) -> Vec<Case<E>> {
    let isa = Isa::best();
    let mut random = Random(seed);
    let drawn = (0..count).map(|_| drawn(&mut random));
    let drawn: Vec<Geometry> = drawn.filter(|geometry| takes::<E>(isa, geometry)).collect();
    if drawn.is_empty() {
        eprintln!(
            "not tested: no tiles of {} here",
            std::any::type_name::<E>()
        );
    }
    let cases = drawn.into_iter();
    cases
        .map(|geometry| Case::of(geometry, &mut random))
        .collect()
}

#[test]
fn agrees_with_sums_in_f64_over_shapes_of_all_kinds() {
    fn check<E: Element>(bound: f64) {
        for case in cases::<E>(90, 90) {
            let error = distance(&case.found(Isa::best()), &case.expected());
            assert!(error <= bound, "{error:e} of {:?}", case.geometry);
        }
    }
    check::<bf16>(2f64.powi(-8));
    check::<f16>(2f64.powi(-11));
}

#[test]
fn does_not_depend_on_the_number_of_threads() {
    let pools = [1, 2, 61].map(|threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
        pool.build().unwrap()
    });
    for case in cases::<bf16>(30, 91) {
        let [one, others @ ..] = pools.each_ref().map(|pool| {
            let found = pool.install(|| case.found(Isa::best()));
            found
                .iter()
                .map(|value| value.to_bits())
                .collect::<Vec<_>>()
        });
        assert!(
            others.iter().all(|other| *other == one),
            "{:?}",
            case.geometry
        );
    }
}

#[test]
fn what_is_not_finite_spreads_no_further_than_its_products() {
    fn check<E: Element>() {
        let mut random = Random(92);
        for mut case in cases::<E>(40, 92) {
            case.relu = false;
            for value in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
                let at = random.below(case.x.len());
                case.x[at] = E::narrow(value);
            }
            let found = case.found(Isa::best());
            for (found, expected) in found.iter().zip(case.expected()) {
                let same = match expected.is_finite() {
                    true => found.widen().is_finite(),
                    false => found.widen().is_nan() == expected.is_nan(),
                };
                assert!(
                    same,
                    "{} for {expected}, {:?}",
                    found.widen(),
                    case.geometry
                );
            }
        }
    }
    check::<bf16>();
    check::<f16>();
}
