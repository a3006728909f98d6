//! Products of f32 by tiles of bf16, beside those by vectors of f32.

use super::*;
use crate::cpu::isa::multiplies_f32_with_tiles;

/// Tiles and vectors; nothing where f32 is not multiplied by tiles.
fn both_ways() -> Option<[Isa; 2]> {
    let tiles = Isa::best();
    if !(tiles.has(Level::Amx) && multiplies_f32_with_tiles()) {
        eprintln!("not tested: f32 is not multiplied by tiles here");
        return None;
    }
    Some([tiles, tiles.at_most(Level::Avx512)])
}

fn shapes_of_networks() -> Vec<Geometry> {
    let plain = Conv2dOptions::default();
    let strided = Conv2dOptions {
        stride: [2, 2],
        ..padded(1, 1)
    };
    vec![
        Geometry::new([1, 600, 9, 70], [40, 600, 1, 1], plain),
        Geometry::new([2, 64, 11, 13], [256, 64, 1, 1], plain),
        Geometry::new([1, 3, 40, 50], [32, 3, 3, 3], strided),
        Geometry::new([1, 130, 20, 30], [70, 130, 3, 3], strided),
        Geometry::new([1, 90, 16, 20], [33, 90, 3, 3], padded(12, 1)),
        Geometry::new([1, 96, 10, 12], [66, 32, 3, 3], padded(2, 3)),
    ]
}

#[test]
fn is_as_exact_as_by_vectors() {
    let Some(ways) = both_ways() else { return };
    let mut random = Random(77);
    let drawn: Vec<Geometry> = (0..60).map(|_| random_geometry(&mut random)).collect();
    let all = shapes_of_networks().into_iter().chain(drawn);
    for geometry in all.filter(|geometry| !geometry.is_depthwise()) {
        let count = |shape: [usize; 4]| shape.iter().product::<usize>();
        let x: Vec<f32> = random.values(count(geometry.input_shape()));
        let weight: Vec<f32> = random.values(count(geometry.weight_shape()));
        let gradient: Vec<f32> = random.values(count(geometry.output_shape()));
        let (mut y, mut dx) = (vec![0f64; gradient.len()], vec![0f64; x.len()]);
        each_product(&geometry, |i, w, o| {
            y[o] += f64::from(x[i]) * f64::from(weight[w]);
            dx[i] += f64::from(gradient[o]) * f64::from(weight[w]);
        });
        let [tiles, vectors] = ways.map(|isa| {
            let plain = Weight::plain(&weight[..]);
            let found = forward_with(isa, &geometry, &x, plain, Tail::none(), Exactness::Summed);
            let gradient = input_gradient_with(isa, &geometry, &weight, &gradient);
            [distance(&found, &y), distance(&gradient, &dx)]
        });
        for (tiles, vectors) in tiles.into_iter().zip(vectors) {
            // What rounding a result to f32 alone does.
            let least = 2f64.powi(-25);
            assert!(
                tiles <= vectors.max(least),
                "{tiles:e} by tiles, {vectors:e} by vectors, {geometry:?}"
            );
        }
    }
}

/// Values of which one in `share` is one that has no parts, and the others are small whole numbers, whose sums are
/// exact.
fn strange(random: &mut Random, count: usize, share: usize) -> Vec<f32> {
    let of = [
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        f32::MAX,
        f32::MIN,
    ];
    let drawn = (0..count).map(|_| match random.below(share) {
        0 => of[random.below(of.len())],
        _ => random.below(17) as f32 - 8.0,
    });
    drawn.collect()
}

#[test]
fn gives_the_same_for_what_is_not_finite_and_what_rounds_to_infinity() {
    let Some(ways) = both_ways() else { return };
    let mut random = Random(78);
    let drawn: Vec<Geometry> = (0..40).map(|_| random_geometry(&mut random)).collect();
    let all = shapes_of_networks().into_iter().chain(drawn);
    for geometry in all.filter(|geometry| !geometry.is_depthwise()) {
        let count = |shape: [usize; 4]| shape.iter().product::<usize>();
        let never = 1 << 40;
        for [of_x, of_weight] in [[50, never], [never, 50], [never, never]] {
            let x = strange(&mut random, count(geometry.input_shape()), of_x);
            let weight = strange(&mut random, count(geometry.weight_shape()), of_weight);
            let gradient = strange(&mut random, count(geometry.output_shape()), of_x);
            let [tiles, vectors] = ways.map(|isa| {
                let plain = Weight::plain(&weight[..]);
                [
                    forward_with(isa, &geometry, &x, plain, Tail::none(), Exactness::Summed),
                    input_gradient_with(isa, &geometry, &weight, &gradient),
                ]
            });
            for (tiles, vectors) in tiles.iter().zip(&vectors) {
                let same = |(a, b): (&f32, &f32)| a == b || a.is_nan() && b.is_nan();
                assert!(tiles.iter().zip(vectors).all(same), "{geometry:?}");
            }
        }
    }
}

#[test]
fn loses_of_tiny_numbers_less_than_the_least_normal_one() {
    let Some([tiles, _]) = both_ways() else {
        return;
    };
    let mut random = Random(79);
    for geometry in shapes_of_networks() {
        let count = |shape: [usize; 4]| shape.iter().product::<usize>();
        let weight: Vec<f32> = random.values(count(geometry.weight_shape()));
        let x: Vec<f32> = random.values(count(geometry.input_shape()));
        let x: Vec<f32> = x.iter().map(|x| x * 2f32.powi(-116)).collect();
        let mut y = vec![0f64; count(geometry.output_shape())];
        // What is lost of each part of a number, and of each sum.
        let mut bound = vec![0f64; y.len()];
        let least = f64::from(f32::MIN_POSITIVE);
        each_product(&geometry, |i, w, o| {
            let product = f64::from(x[i]) * f64::from(weight[w]);
            y[o] += product;
            bound[o] += product.abs() * 1e-6 + 8.0 * least;
        });
        let plain = Weight::plain(&weight[..]);
        let found = forward_with(tiles, &geometry, &x, plain, Tail::none(), Exactness::Summed);
        let within =
            |((found, y), bound): ((&f32, &f64), &f64)| (f64::from(*found) - y).abs() <= *bound;
        assert!(found.iter().zip(&y).zip(&bound).all(within), "{geometry:?}");
    }
}
