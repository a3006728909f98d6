//! A 3x3 convolution over maps of which some are resized from a few pixels.

use burn::tensor::{Device, FloatDType, Tensor, TensorData};
use halfseg_amp::promote_all;
use halfseg_devices::is_host;
use halfseg_kernels::{Conv2dOptions, conv2d};

use crate::ConvBnAct;
use crate::resize::{bilinear_weights, resize_with};

/// Joins the channels of maps of one size, in the widest dtype among them.
///
/// # Panics
/// If their sizes differ.
pub fn cat_channels(maps: Vec<Tensor<4>>) -> Tensor<4> {
    halfseg_kernels::cat_channels(promote_all(maps))
}

impl ConvBnAct {
    /// As [`forward`](Self::forward) of one map that joins the channels of `before`, `maps` and `after`,
    /// where `before` and `after` are resized to the size of `maps` first.
    ///
    /// At inference on the CPU the small maps are not resized: a convolution is linear, and so is a
    /// resize, so that each tap is applied to the small map, and what results is resized, moved by the
    /// tap and added. In f32, whatever the maps hold.
    ///
    /// # Shapes
    /// - `maps`: `[n, c_i, h, w]`, at least one
    /// - `before`, `after`: `[n, c_j, h_j, w_j]`
    /// - output: `[n, c_out, h, w]`
    ///
    /// # Panics
    /// If the channels are not as many as the convolution's, or in training one value per channel.
    pub fn forward_joined(
        &self,
        before: Vec<Tensor<4>>,
        maps: Vec<Tensor<4>>,
        after: Vec<Tensor<4>>,
        align_corners: bool,
    ) -> Tensor<4> {
        let [_, _, h, w] = maps[0].dims();
        let device = maps[0].device();
        let plain = Conv2dOptions {
            padding: [1, 1],
            ..Conv2dOptions::default()
        };
        let [_, _, kernel_height, kernel_width] = self.conv.weight.dims();
        let linear = [kernel_height, kernel_width] == [3, 3]
            && self.conv.options() == plain
            && is_host(&device)
            && !self.bn.trains_on(&device);
        if !linear || before.len() + after.len() == 0 {
            let resized = |map| resize_with(map, [h, w], align_corners);
            let before = before.into_iter().map(resized);
            let after = after.into_iter().map(resized);
            return self.forward(cat_channels(before.chain(maps).chain(after).collect()));
        }

        let count = |maps: &[Tensor<4>]| maps.iter().map(|map| map.dims()[1]).sum::<usize>();
        let first = count(&before);
        let last = first + count(&maps);
        let [_, expected, ..] = self.conv.weight.dims();
        assert_eq!(
            last + count(&after),
            expected,
            "the maps that are joined have another number of channels than the convolution"
        );
        let (scale, shift) = self.bn.affine();
        // Small maps, and the channels of the weight from which on theirs are.
        let mut small = Vec::with_capacity(before.len() + after.len());
        for (start, maps) in [(0, before), (last, after)] {
            let mut channel = start;
            for map in maps {
                let next = channel + map.dims()[1];
                small.push((map, channel..next));
                channel = next;
            }
        }
        let weight = self.conv.weight.val();
        let [c_out, ..] = weight.dims();
        let factor = scale
            .clone()
            .cast(FloatDType::F32)
            .reshape([1, c_out, 1, 1]);
        let (mut rows, mut lines) = (Vec::new(), Vec::new());
        for (map, channels) in small {
            let [n, _, k_h, k_w] = map.dims();
            // All taps of all pixels side by side: block (i, j) is the map under tap (2 - i, 2 - j).
            let options = Conv2dOptions {
                padding: [2 * k_h, 2 * k_w],
                dilation: [k_h, k_w],
                ..Conv2dOptions::default()
            };
            let weight = weight.clone().slice([0..c_out, channels]);
            let weight = weight.cast(FloatDType::F32);
            let taps = conv2d(map.cast(FloatDType::F32), weight, None, options) * factor.clone();
            let columns = moved_weights(k_w, w, align_corners, &device);
            let taps = taps.reshape([n * c_out * 3 * k_h, 3 * k_w]);
            lines.push(
                taps.matmul(columns.transpose())
                    .reshape([n, c_out, 3 * k_h, w]),
            );
            rows.push(moved_weights(k_h, h, align_corners, &device));
        }
        // One product for all small maps, so that no sums of whole maps are left to Burn.
        let lines = Tensor::cat(lines, 2);
        let [n, _, depth, _] = lines.dims();
        let lines = lines.reshape([n * c_out, depth, w]);
        let sums = Tensor::cat(rows, 1).unsqueeze::<3>().matmul(lines);
        let sums = sums.reshape([n, c_out, h, w]);

        let x = cat_channels(maps);
        let sums = sums.cast(FloatDType::from(x.dtype()));
        self.conv.forward_affine_of(
            x,
            first..last,
            [scale, shift],
            Some(sums),
            self.activation(),
        )
    }
}

/// `[out, 3 * size]`: what each output takes from each value if the resized line is moved by the last,
/// the middle and the first of three taps, with zeros around it.
fn moved_weights(size: usize, out: usize, align_corners: bool, device: &Device) -> Tensor<2> {
    let weights = bilinear_weights(size, out, align_corners);
    let mut moved = vec![0f32; out * 3 * size];
    for (o, row) in moved.chunks_exact_mut(3 * size).enumerate() {
        for (block, row) in row.chunks_exact_mut(size).enumerate() {
            // Of tap `2 - block`, less the padding.
            let source = (o + 2 - block)
                .checked_sub(1)
                .filter(|source| *source < out);
            if let Some(source) = source {
                row.copy_from_slice(&weights[source * size..][..size]);
            }
        }
    }
    Tensor::from_data(TensorData::new(moved, [out, 3 * size]), device)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Distribution, FloatDType, Tensor};
    use halfseg_amp::cat;

    use super::cat_channels;
    use crate::resize::resize_with;
    use crate::{ConvBnAct, ConvBnActConfig};

    fn values(tensor: Tensor<4>) -> Vec<f32> {
        let tensor = tensor.cast(FloatDType::F32);
        tensor.into_data().try_to_vec().unwrap()
    }

    fn distance(found: &[f32], expected: &[f32]) -> f32 {
        assert_eq!(found.len(), expected.len());
        let norm =
            |values: &mut dyn Iterator<Item = f32>| values.map(|v| v * v).sum::<f32>().sqrt();
        let mut errors = found.iter().zip(expected).map(|(f, e)| f - e);
        norm(&mut errors) / norm(&mut expected.iter().copied())
    }

    fn joined(
        layer: &ConvBnAct,
        [before, maps, after]: &[Vec<Tensor<4>>; 3],
        align_corners: bool,
        dtype: FloatDType,
    ) -> [Vec<f32>; 2] {
        let of = |maps: &Vec<Tensor<4>>| -> Vec<Tensor<4>> {
            maps.iter().map(|map| map.clone().cast(dtype)).collect()
        };
        let [_, _, h, w] = maps[0].dims();
        let resized = |maps: &Vec<Tensor<4>>| -> Vec<Tensor<4>> {
            let maps = of(maps).into_iter();
            maps.map(|map| resize_with(map, [h, w], align_corners))
                .collect()
        };
        let all = [resized(before), of(maps), resized(after)].concat();
        [
            values(layer.forward_joined(of(before), of(maps), of(after), align_corners)),
            values(layer.forward(cat(all, 1))),
        ]
    }

    #[test]
    fn small_maps_are_convolved_as_if_they_had_been_resized() {
        let device = Device::flex();
        let draw = |c, h, w| Tensor::random([2, c, h, w], Distribution::Normal(0.3, 1.0), &device);
        let cases = [
            [
                vec![],
                vec![draw(9, 13, 21)],
                vec![draw(4, 1, 1), draw(5, 6, 6), draw(3, 2, 3)],
            ],
            [
                vec![draw(6, 1, 1)],
                vec![draw(7, 5, 4), draw(2, 5, 4)],
                vec![],
            ],
            [
                vec![draw(3, 3, 3)],
                vec![draw(2, 1, 1)],
                vec![draw(2, 1, 2)],
            ],
            [vec![draw(3, 9, 9)], vec![draw(8, 4, 5)], vec![]],
            [vec![], vec![draw(11, 6, 7)], vec![]],
        ];
        for maps in &cases {
            let channels = maps.iter().flatten().map(|map| map.dims()[1]).sum();
            let layer = ConvBnActConfig::new([channels, 10], 3).init(&device);
            for align_corners in [false, true] {
                let [found, expected] = joined(&layer, maps, align_corners, FloatDType::F32);
                let error = distance(&found, &expected);
                assert!(error < 1e-5, "{error} of the joined map");
                // In half precision their share is rounded once before the sum is, each time by at
                // most 2^-9 of a value, of which the share may be several times the sum.
                let [found, joined] = joined(&layer, maps, align_corners, FloatDType::BF16);
                let errors = [found, joined].map(|values| distance(&values, &expected));
                assert!(errors[0] < 2f32.powi(-6), "{errors:?}");
            }
        }
    }

    #[test]
    fn joined_maps_are_those_whose_channels_follow_each_other_however_they_lie() {
        let device = Device::flex();
        let draw = |shape| Tensor::<4>::random(shape, Distribution::Normal(0.0, 1.0), &device);
        let planar = [draw([2, 3, 5, 4]), draw([2, 40, 5, 4])];
        let last = draw([2, 5, 4, 35]).permute([0, 3, 1, 2]);
        let [a, b] = planar;
        for maps in [
            vec![a.clone(), b.clone()],
            vec![a, last.clone(), b],
            vec![last],
        ] {
            let expected = Tensor::cat(maps.clone(), 1).into_data();
            assert_eq!(cat_channels(maps).into_data(), expected);
        }
    }

    #[test]
    #[should_panic(expected = "another number of channels")]
    fn other_channels_are_refused() {
        let device = Device::flex();
        let layer = ConvBnActConfig::new([5, 4], 3).init(&device);
        let map = |h| Tensor::zeros([1, 3, h, h], &device);
        layer.forward_joined(vec![map(1)], vec![map(4)], vec![], false);
    }
}
