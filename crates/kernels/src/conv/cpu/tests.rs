//! All three passes against sums in f64, over random shapes.

#[cfg(target_arch = "x86_64")]
mod channels_last;
#[cfg(target_arch = "x86_64")]
mod f32_by_tiles;

use half::{bf16, f16};

use super::super::Conv2dOptions;
use super::{
    Exactness, Geometry, Tail, Weight, forward_with, has_tiles_for_halves, input_gradient_with,
    micro, weight_gradient_with, winograd,
};
use crate::cpu::element::Element;
use crate::cpu::isa::{Isa, Level};
use crate::cpu::scratch::Shared;

/// A small generator: no two tests share state, and a failure prints its seed.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.next() % count as u64) as usize
    }

    fn values<E: Element>(&mut self, count: usize) -> Vec<E> {
        (0..count)
            .map(|_| E::narrow((self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0))
            .collect()
    }
}

fn each_product(geometry: &Geometry, mut body: impl FnMut(usize, usize, usize)) {
    let options = geometry.options;
    let groups = options.groups;
    let [c, m] = [geometry.c_in / groups, geometry.c_out / groups];
    let ([ih, iw], [oh, ow], [kh, kw]) = (geometry.input, geometry.output, geometry.kernel);
    for image in 0..geometry.batch {
        for out in 0..geometry.c_out {
            for channel in 0..c {
                for tap in 0..kh * kw {
                    for pixel in 0..oh * ow {
                        let y = (pixel / ow * options.stride[0] + tap / kw * options.dilation[0])
                            .wrapping_sub(options.padding[0]);
                        let x = (pixel % ow * options.stride[1] + tap % kw * options.dilation[1])
                            .wrapping_sub(options.padding[1]);
                        if y < ih && x < iw {
                            let plane = image * geometry.c_in + out / m * c + channel;
                            body(
                                (plane * ih + y) * iw + x,
                                (out * c + channel) * kh * kw + tap,
                                (image * geometry.c_out + out) * oh * ow + pixel,
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Relative distance in the 2-norm, and the largest one that rounding to `E` alone explains.
fn distance<E: Element>(found: &[E], expected: &[f64]) -> f64 {
    let norm: f64 = expected.iter().map(|e| e * e).sum::<f64>().sqrt();
    let error = found
        .iter()
        .zip(expected)
        .map(|(f, e)| (f64::from(f.widen()) - e).powi(2))
        .sum::<f64>()
        .sqrt();
    assert!(error.is_finite());
    error / norm.max(1e-30)
}

fn compare<E: Element>(geometry: &Geometry, bound: f64, random: &mut Random) -> [f64; 3] {
    let count = |shape: [usize; 4]| shape.iter().product::<usize>();
    let x: Vec<E> = random.values(count(geometry.input_shape()));
    let weight: Vec<E> = random.values(count(geometry.weight_shape()));
    let bias: Vec<f32> = random.values(geometry.c_out);
    let gradient: Vec<E> = random.values(count(geometry.output_shape()));
    let plane = geometry.output[0] * geometry.output[1];
    let wide = |value: &E| f64::from(value.widen());
    let mut y: Vec<f64> = (0..gradient.len())
        .map(|i| f64::from(bias[i / plane % geometry.c_out]))
        .collect();
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
    each_product(geometry, |i, w, o| {
        y[o] += wide(&x[i]) * wide(&weight[w]);
        dx[i] += wide(&gradient[o]) * wide(&weight[w]);
        dw[w] += wide(&gradient[o]) * wide(&x[i]);
    });
    let tail = Tail {
        bias: Some(&bias),
        ..Tail::none()
    };
    let plain = Weight::plain(&weight[..]);
    let mut worst = [0f64; 3];
    for isa in Isa::available() {
        let errors = [
            distance(
                &forward_with(isa, geometry, &x, plain, tail, Exactness::Summed),
                &y,
            ),
            distance(&input_gradient_with(isa, geometry, &weight, &gradient), &dx),
            distance(
                &weight_gradient_with::<E, E>(isa, geometry, &x, &gradient),
                &dw,
            ),
        ];
        assert!(
            errors.iter().all(|&error| error <= bound),
            "{errors:?} of output, input and weight gradient exceed {bound:e} for {isa:?}, {geometry:?}"
        );
        worst = std::array::from_fn(|i| worst[i].max(errors[i]));
    }
    worst
}

fn random_geometry(random: &mut Random) -> Geometry {
    loop {
        let groups = [1, 1, 1, 2, 3][random.below(5)];
        let depthwise = random.below(4) == 0;
        let (c, m) = (1 + random.below(at_most(20)), 1 + random.below(at_most(20)));
        let channels = if depthwise {
            [c, c]
        } else {
            [c * groups, m * groups]
        };
        let groups = if depthwise { c } else { groups };
        let kernel = [1, 1, 3, 3, 2, 5][random.below(6)];
        let square = random.below(4) != 0;
        let options = Conv2dOptions {
            stride: [1 + random.below(3), 1 + random.below(3)],
            padding: [random.below(8), random.below(8)],
            dilation: [1 + random.below(6), 1 + random.below(6)],
            groups,
        };
        let options = if square {
            Conv2dOptions {
                stride: [options.stride[0]; 2],
                padding: [options.dilation[0] * (kernel / 2); 2],
                dilation: [options.dilation[0]; 2],
                ..options
            }
        } else {
            options
        };
        let size = [1 + random.below(at_most(40)), 1 + random.below(at_most(40))];
        let fits = (0..2).all(|axis| {
            size[axis] + 2 * options.padding[axis] > options.dilation[axis] * (kernel - 1)
        });
        if fits {
            let x = [1 + random.below(3), channels[0], size[0], size[1]];
            let weight = [channels[1], channels[0] / groups, kernel, kernel];
            return Geometry::new(x, weight, options);
        }
    }
}

/// How many random shapes are tried, of so many. Miri, which takes the portable path and looks for
/// undefined behaviour, would need days for all.
const fn shapes(all: u64) -> u64 {
    if cfg!(miri) { all.div_ceil(100) } else { all }
}

/// An extent that matters to no path, and a smaller one for Miri.
const fn extent(all: usize, few: usize) -> usize {
    if cfg!(miri) { few } else { all }
}

/// How large they are at most, for Miri less than for others.
const fn at_most(size: usize) -> usize {
    if cfg!(miri) { size.div_ceil(10) } else { size }
}

#[test]
fn every_pass_equals_f64_sums_over_random_shapes() {
    for seed in 0..shapes(200) {
        let mut random = Random(seed);
        let geometry = random_geometry(&mut random);
        compare::<f32>(&geometry, 1e-6, &mut random);
        // Inputs are exact; only the result is rounded, by at most half a unit in the last place.
        compare::<f16>(&geometry, 2f64.powi(-11), &mut random);
        compare::<bf16>(&geometry, 2f64.powi(-8), &mut random);
    }
}

#[test]
fn long_sums_stay_within_their_bound() {
    let options = Conv2dOptions {
        padding: [2, 2],
        dilation: [2, 2],
        ..Conv2dOptions::default()
    };
    let mut random = Random(7);
    for (x, weight) in [
        (
            [1, extent(700, 9), 6, extent(40, 7)],
            [extent(20, 2), extent(700, 9), 3, 3],
        ),
        (
            [extent(2, 1), extent(33, 3), extent(50, 6), extent(70, 7)],
            [extent(14, 3), extent(33, 3), 3, 3],
        ),
    ] {
        let geometry = Geometry::new(x, weight, options);
        let errors = compare::<f32>(&geometry, 1e-5, &mut random);
        println!("{x:?} {weight:?}: {errors:?}");
    }
    let (c, m) = (extent(600, 9), extent(40, 5));
    let x = [1, c, extent(9, 4), extent(130, 7)];
    let geometry = Geometry::new(x, [m, c, 1, 1], Conv2dOptions::default());
    println!("1x1: {:?}", compare::<f32>(&geometry, 1e-5, &mut random));
}

fn winograd_with<E: Element, const TILE: usize, const WINDOW: usize>(
    isa: Isa,
    geometry: &Geometry,
    x: &[E],
    kernels: winograd::Kernels<'_, E>,
    tail: Tail<'_, E>,
) -> Vec<E>
where
    winograd::Minimal: winograd::Scheme<TILE, WINDOW>,
{
    let mut found = vec![E::default(); geometry.output_shape().iter().product()];
    let target = Shared(found.as_mut_ptr());
    // SAFETY: what was found has the output's size; the instruction set is available.
    unsafe {
        with_wide_core!(isa, core => {
            winograd::forward::<_, E, E, TILE, WINDOW>(core, geometry, x, kernels, tail, target)
        });
    }
    found
}

#[test]
fn fewer_products_give_the_same_maps_within_their_bounds() {
    for seed in 0..shapes(80) {
        // The first one is the longest.
        let seed = seed + u64::from(cfg!(miri));
        let mut random = Random(1000 + seed);
        let dilations = [1, 1, 2, 3, 4, 5];
        let dilation: [usize; 2] = std::array::from_fn(|_| dilations[random.below(6)]);
        let options = Conv2dOptions {
            padding: std::array::from_fn(|axis| random.below(2 * dilation[axis] + 1)),
            dilation,
            ..Conv2dOptions::default()
        };
        let size = [
            11 + random.below(at_most(30)),
            11 + random.below(at_most(40)),
        ];
        let (c, m) = (1 + random.below(at_most(40)), 1 + random.below(at_most(40)));
        let (c, size) = if seed == 0 {
            (1100, [9, 60])
        } else {
            (c, size)
        };
        let x = [1 + random.below(3), c, size[0], size[1]];
        let geometry = Geometry::new(x, [m, c, 3, 3], options);
        let x: Vec<f32> = random.values(geometry.input_shape().iter().product());
        let weight: Vec<f32> = random.values(geometry.weight_shape().iter().product());
        let bias: Vec<f32> = random.values(m);
        let gradient: Vec<f32> = random.values(geometry.output_shape().iter().product());
        let mut expected = vec![0f64; gradient.len()];
        let mut expected_gradient = vec![0f64; x.len()];
        let mut expected_weight = vec![0f64; weight.len()];
        let plane = geometry.output[0] * geometry.output[1];
        for (i, value) in expected.iter_mut().enumerate() {
            *value = f64::from(bias[i / plane % m]);
        }
        each_product(&geometry, |i, w, o| {
            expected[o] += f64::from(x[i]) * f64::from(weight[w]);
            expected_gradient[i] += f64::from(gradient[o]) * f64::from(weight[w]);
            expected_weight[w] += f64::from(gradient[o]) * f64::from(x[i]);
        });
        let tail = Tail {
            bias: Some(&bias),
            ..Tail::none()
        };
        let kernels = winograd::Kernels::forward(&geometry, Weight::plain(&weight[..]));
        let (turned, turned_kernels) = winograd::Kernels::input_gradient(&geometry, &weight)
            .expect("the padding is less than the window");
        for isa in Isa::available() {
            let mut found = vec![0f32; weight.len()];
            with_weight_core!(isa, core => {
                winograd::weight_gradient(core, &geometry, &x, &gradient, &mut found)
            });
            let errors = [
                distance(&found, &expected_weight),
                distance(
                    &winograd_with::<f32, 2, 4>(isa, &geometry, &x, kernels, tail),
                    &expected,
                ),
                distance(
                    &winograd_with::<f32, 2, 4>(
                        isa,
                        &turned,
                        &gradient,
                        turned_kernels,
                        Tail::none(),
                    ),
                    &expected_gradient,
                ),
                distance(
                    &winograd_with::<f32, 4, 6>(isa, &geometry, &x, kernels, tail),
                    &expected,
                ),
            ];
            assert!(
                errors[..3].iter().all(|&error| error <= 1e-6) && errors[3] <= 1e-5,
                "{errors:?} for {isa:?}, {geometry:?}"
            );
        }
    }
}

#[test]
fn what_follows_the_sums_is_added_before_they_are_rounded() {
    let mut random = Random(5);
    let (c, m, h, w) = (extent(40, 6), extent(36, 5), extent(13, 9), extent(21, 8));
    let geometries = [
        Geometry::new([2, c, h, w], [m, c, 3, 3], padded(2, 1)),
        Geometry::new([2, c, h, w], [m, c, 1, 1], Conv2dOptions::default()),
        Geometry::new([2, m, h, w], [m, 1, 3, 3], padded(1, m)),
        Geometry::new([1, 8, h, w], [6, 4, 3, 3], padded(1, 2)),
    ];
    for geometry in geometries {
        let x: Vec<f16> = random.values(geometry.input_shape().iter().product());
        let weight: Vec<f16> = random.values(geometry.weight_shape().iter().product());
        let bias: Vec<f32> = random.values(geometry.c_out);
        let skip: Vec<f16> = random.values(geometry.output_shape().iter().product());
        let plane = geometry.output[0] * geometry.output[1];
        let wide = |value: f16| f64::from(value.to_f32());
        let mut expected: Vec<f64> = skip
            .iter()
            .enumerate()
            .map(|(i, &skip)| wide(skip) + f64::from(bias[i / plane % geometry.c_out]))
            .collect();
        each_product(&geometry, |i, w, o| {
            expected[o] += wide(x[i]) * wide(weight[w])
        });
        let expected: Vec<f64> = expected.into_iter().map(|value| value.max(0.0)).collect();
        let tail = Tail {
            bias: Some(&bias),
            skip: Some(&skip),
            relu: true,
        };
        let plain = Weight::plain(&weight[..]);
        for isa in Isa::available() {
            for exactness in [Exactness::Summed, Exactness::Output] {
                let found = forward_with(isa, &geometry, &x, plain, tail, exactness);
                let error = distance(&found, &expected);
                assert!(
                    error <= 2f64.powi(-11),
                    "{error:e} for {isa:?}, {exactness:?}, {geometry:?}"
                );
            }
            if geometry.options.groups == 1 && geometry.kernel == [3, 3] {
                let kernels = winograd::Kernels::forward(&geometry, plain);
                for found in [
                    winograd_with::<f16, 2, 4>(isa, &geometry, &x, kernels, tail),
                    winograd_with::<f16, 4, 6>(isa, &geometry, &x, kernels, tail),
                ] {
                    assert!(distance(&found, &expected) <= 2f64.powi(-11));
                }
            }
        }
    }
}

fn padded(dilation: usize, groups: usize) -> Conv2dOptions {
    Conv2dOptions {
        padding: [dilation; 2],
        dilation: [dilation; 2],
        groups,
        ..Conv2dOptions::default()
    }
}

#[test]
fn fewer_products_are_chosen_where_they_pay() {
    let options = |dilation: usize| Conv2dOptions {
        padding: [dilation; 2],
        dilation: [dilation; 2],
        ..Conv2dOptions::default()
    };
    let geometry = |channels: usize, kernel: usize, dilation: usize| {
        let weight = [channels, channels, kernel, kernel];
        Geometry::new([1, channels, 64, 128], weight, options(dilation))
    };
    for pays in [winograd::pays::<2>, winograd::pays::<4>] {
        assert!(pays(&geometry(256, 3, 1)) && pays(&geometry(512, 3, 4)));
        // A 1x1 kernel, too few channels, and a dilation whose taps mostly lie in the padding.
        assert!(!pays(&geometry(256, 1, 1)) && !pays(&geometry(8, 3, 1)));
        assert!(!pays(&geometry(512, 3, 36)));
    }
    // A kernel is transformed once for all pixels of a batch: too much for a few of them.
    let of_size = |batch: usize, height: usize, width: usize| {
        Geometry::new([batch, 512, height, width], [512, 512, 3, 3], options(1))
    };
    for (tiles, few, many) in [(false, [8, 16], [16, 32]), (true, [16, 32], [64, 128])] {
        let pays = |batch, [height, width]: [usize; 2]| {
            winograd::pays_with_kernels::<4>(&of_size(batch, height, width), tiles)
        };
        assert!(!pays(1, few) && pays(1, many) && pays(100, few), "{tiles}");
    }
}

#[test]
fn taps_in_the_padding_of_a_whole_map_add_nothing() {
    let options = Conv2dOptions {
        padding: [36, 36],
        dilation: [36, 36],
        ..Conv2dOptions::default()
    };
    let c = extent(300, 10);
    let geometry = Geometry::new([2, c, 12, extent(20, 9)], [8, c, 3, 3], options);
    compare::<f32>(&geometry, 1e-6, &mut Random(3));
}

#[test]
fn rounding_to_bf16_is_to_nearest_even() {
    for bits in (0..u32::MAX - 4096).step_by(extent(4093, 4_194_301)) {
        let value = f32::from_bits(bits);
        let (ours, theirs) = (<bf16 as Element>::narrow(value), bf16::from_f32(value));
        assert!(
            ours.to_bits() == theirs.to_bits() || (ours.is_nan() && theirs.is_nan()),
            "{value:e}: {ours} and {theirs}"
        );
    }
}

/// Values of which one in `share` is infinite, no number, the least there is, or zero, and others are powers
/// of two; or, where that is 0, none of which is normal.
fn strange(random: &mut Random, count: usize, share: usize) -> Vec<f16> {
    if share == 0 {
        return (0..count)
            .map(|_| f16::from_bits(random.below(1 << 10) as u16))
            .collect();
    }
    let of_bits = [0x7c00, 0xfc00, 0x7e00, 0x0001, 0x83ff, 0x0000, 0x8000];
    let drawn = (0..count).map(|_| match random.below(share) {
        0 => f16::from_bits(of_bits[random.below(of_bits.len())]),
        _ => f16::from_f32([0.5, 1.0, 2.0, -0.5, -1.0][random.below(5)]),
    });
    drawn.collect()
}

/// Sums as IEEE has them, whatever the parts are that numbers are split into.
#[test]
fn what_is_not_finite_or_tiny_means_what_it_does_in_f32() {
    let same = |found: &[f16], expected: &[f64], least: f32, what: &str| {
        for (i, (found, expected)) in found.iter().zip(expected).enumerate() {
            let expected = f16::from_f64(*expected);
            let (a, b) = (found.to_f32(), expected.to_f32());
            // Two roundings, of which the first one is that of sums in f32.
            let close = (a - b).abs() <= b.abs() * 2f32.powi(-10) + least;
            assert!(
                a == b || close || a.is_nan() && b.is_nan(),
                "{found} where {expected} was expected, value {i} of {what}"
            );
        }
    };
    for seed in 0..shapes(60) {
        let mut random = Random(500 + seed);
        let geometry = random_geometry(&mut random);
        if geometry.is_depthwise() {
            continue;
        }
        // Operands that are all finite, and such that hold a few or many that are not.
        let share = [0, 1 << 40, 2000, 20][random.below(4)];
        let least = if share == 0 { 2f32.powi(-24) } else { 1e-4 };
        let count = |shape: [usize; 4]| shape.iter().product::<usize>();
        let x = strange(&mut random, count(geometry.input_shape()), share);
        // A zero beside the map times infinity is no number, where the sums below have no product.
        let plain = geometry.kernel == [1, 1] && geometry.options.padding == [0, 0];
        let share_of_weight = if plain && share > 0 { share } else { 1 << 40 };
        let weight = strange(&mut random, count(geometry.weight_shape()), share_of_weight);
        let gradient = strange(
            &mut random,
            count(geometry.output_shape()),
            if share == 0 { 1 << 40 } else { share },
        );
        let mut y = vec![0f64; gradient.len()];
        let (mut dx, mut dw) = (vec![0f64; x.len()], vec![0f64; weight.len()]);
        each_product(&geometry, |i, w, o| {
            let [x, weight, gradient] = [x[i], weight[w], gradient[o]].map(f64::from);
            y[o] += x * weight;
            dx[i] += gradient * weight;
            dw[w] += gradient * x;
        });
        for isa in [Isa::PORTABLE, Isa::best()] {
            let what = |pass| format!("{pass} for {isa:?}, {geometry:?}");
            let plain = Weight::plain(&weight[..]);
            let found = forward_with(isa, &geometry, &x, plain, Tail::none(), Exactness::Summed);
            // Transforms of Winograd's spread what is not finite over the tile.
            if !has_tiles_for_halves::<f16>(isa) && winograd::pays::<2>(&geometry) {
                continue;
            }
            same(&found, &y, least, &what("output"));
            let found = input_gradient_with(isa, &geometry, &weight, &gradient);
            same(&found, &dx, 1e-4, &what("input gradient"));
            let found = weight_gradient_with::<f16, f16>(isa, &geometry, &x, &gradient);
            same(&found, &dw, least, &what("weight gradient"));
        }
    }
}

/// Winograd's transforms spread what is not finite over a tile, and lose none of it.
#[test]
#[cfg_attr(miri, ignore = "transforms pay for maps alone that take Miri days")]
fn what_is_not_finite_stays_so_in_transforms() {
    let geometry = Geometry::new([1, 256, 32, 32], [256, 256, 3, 3], padded(1, 1));
    assert!(winograd::pays::<2>(&geometry));
    assert!(winograd::pays_with_kernels::<2>(&geometry, false));
    assert!(winograd::pays_with_kernels::<4>(&geometry, false));
    let count = |shape: [usize; 4]| shape.iter().product::<usize>();
    let lengths = [
        count(geometry.input_shape()),
        count(geometry.weight_shape()),
        count(geometry.output_shape()),
    ];
    for strange in 0..3 {
        let mut random = Random(900 + strange as u64);
        let mut operands = lengths.map(|length| random.values::<f32>(length));
        let operand = &mut operands[strange];
        for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let place = random.below(operand.len());
            operand[place] = bad;
        }
        let [x, weight, gradient] = operands;
        let mut expected = lengths.map(|length| vec![0f64; length]);
        each_product(&geometry, |i, w, o| {
            let [x, weight, gradient] = [x[i], weight[w], gradient[o]].map(f64::from);
            expected[0][i] += gradient * weight;
            expected[1][w] += gradient * x;
            expected[2][o] += x * weight;
        });
        for isa in Isa::available() {
            let plain = Weight::plain(&weight[..]);
            let forward = |how| forward_with(isa, &geometry, &x, plain, Tail::none(), how);
            let passes = [
                (input_gradient_with(isa, &geometry, &weight, &gradient), 0),
                (weight_gradient_with(isa, &geometry, &x, &gradient), 1),
                (forward(Exactness::Summed), 2),
                (forward(Exactness::Output), 2),
            ];
            for (found, pass) in passes {
                let lost = found.iter().zip(&expected[pass]);
                let lost = lost.filter(|(found, sum)| found.is_finite() && !sum.is_finite());
                assert_eq!(lost.count(), 0, "{isa:?}, operand {strange}, pass {pass}");
            }
        }
    }
}

/// Memory that was not written would hold what the tests before left there.
#[test]
fn operands_without_values_leave_what_sums_of_nothing_are() {
    for (x, weight) in [
        ([1, 0, 4, 4], [8, 0, 3, 3]),
        ([2, 0, 5, 3], [6, 0, 1, 1]),
        ([2, 8, 4, 4], [0, 8, 3, 3]),
        ([0, 3, 9, 8], [5, 3, 3, 3]),
        // Where there were images, Winograd's way and that of single channels.
        ([0, 64, 24, 40], [64, 64, 3, 3]),
        ([0, 8, 9, 8], [8, 1, 3, 3]),
    ] {
        let groups = if weight[1] == 1 { x[1] } else { 1 };
        let geometry = Geometry::new(x, weight, padded(1, groups));
        for isa in Isa::available() {
            let count = |shape: [usize; 4]| shape.iter().product::<usize>();
            let dirty = || drop(vec![f32::NAN; count([8, 8, 40, extent(64, 1)])]);
            let x = vec![1f32; count(x)];
            let values = vec![1f32; count(weight)];
            let bias: Vec<f32> = (0..geometry.c_out).map(|c| c as f32 - 2.5).collect();
            let tail = Tail {
                bias: Some(&bias),
                skip: None,
                relu: true,
            };
            let plane = geometry.output[0] * geometry.output[1];
            let length = count(geometry.output_shape());
            let expected: Vec<f32> = (0..length)
                .map(|i| bias[i / plane % geometry.c_out].max(0.0))
                .collect();
            dirty();
            for exactness in [Exactness::Summed, Exactness::Output] {
                let plain = Weight::plain(&values[..]);
                let found = forward_with(isa, &geometry, &x, plain, tail, exactness);
                assert_eq!(found, expected, "{isa:?} {geometry:?}");
            }
            let gradient = vec![1f32; length];
            dirty();
            let found = input_gradient_with(isa, &geometry, &values, &gradient);
            assert_eq!(found, vec![0f32; x.len()], "{isa:?} {geometry:?}");
            dirty();
            let found = weight_gradient_with::<f32, f32>(isa, &geometry, &x, &gradient);
            assert_eq!(found, vec![0f32; values.len()], "{isa:?} {geometry:?}");
        }
    }
}

#[test]
#[should_panic(expected = "stride and dilation of a convolution are at least 1")]
fn a_dilation_of_nothing_is_refused() {
    Geometry::new([1, 32, 9, 9], [32, 32, 3, 3], padded(0, 1));
}

#[test]
#[should_panic(expected = "does not fit")]
fn a_window_larger_than_its_map_is_refused() {
    Geometry::new([1, 1, 2, 2], [1, 1, 5, 5], Conv2dOptions::default());
}
