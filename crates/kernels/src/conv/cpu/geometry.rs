//! The sizes of a convolution on the CPU.

use std::ops::Range;

use super::super::Conv2dOptions;

/// The sizes of one convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Images.
    pub batch: usize,
    /// Channels of the input, all groups.
    pub c_in: usize,
    /// Channels of the output, all groups.
    pub c_out: usize,
    /// Height and width of the input.
    pub input: [usize; 2],
    /// Height and width of the output.
    pub output: [usize; 2],
    /// Height and width of the kernel.
    pub kernel: [usize; 2],
    /// How the window moves.
    pub options: Conv2dOptions,
}

impl Geometry {
    /// Of `x` `[n, c_in, h, w]` and `weight` `[c_out, c_in / groups, kh, kw]`.
    ///
    /// # Panics
    /// If these do not fit each other, or the window is larger than the padded input.
    pub fn new(x: [usize; 4], weight: [usize; 4], options: Conv2dOptions) -> Self {
        let [batch, c_in, height, width] = x;
        let [c_out, _, kernel_height, kernel_width] = weight;
        Self {
            batch,
            c_in,
            c_out,
            input: [height, width],
            output: options.output_size(x, weight),
            kernel: [kernel_height, kernel_width],
            options,
        }
    }

    /// The output's shape.
    pub fn output_shape(&self) -> [usize; 4] {
        [self.batch, self.c_out, self.output[0], self.output[1]]
    }

    /// The input's shape.
    pub fn input_shape(&self) -> [usize; 4] {
        [self.batch, self.c_in, self.input[0], self.input[1]]
    }

    /// The weight's shape.
    pub fn weight_shape(&self) -> [usize; 4] {
        let per_group = self.c_in / self.options.groups;
        [self.c_out, per_group, self.kernel[0], self.kernel[1]]
    }

    /// Whether each channel has a kernel of its own.
    pub fn is_depthwise(&self) -> bool {
        self.options.groups == self.c_in && self.c_in == self.c_out && self.c_in > 1
    }

    /// The distance in pixels of each tap from the window's first pixel, less the padding.
    pub fn offset(&self, axis: usize, tap: usize) -> isize {
        (tap * self.options.dilation[axis]) as isize - self.options.padding[axis] as isize
    }

    /// The taps along an axis from which some of these neighbouring outputs see the map, and those between.
    pub fn reaching(&self, axis: usize, outputs: Range<usize>) -> Range<usize> {
        let sees = |tap: &usize| {
            let (step, offset) = (self.options.stride[axis], self.offset(axis, *tap));
            let seen = inside(self.output[axis], step, offset, self.input[axis]);
            seen.start < outputs.end && outputs.start < seen.end
        };
        let mut taps = (0..self.kernel[axis]).filter(sees);
        match taps.next() {
            Some(first) => first..taps.next_back().unwrap_or(first) + 1,
            None => 0..0,
        }
    }

    /// A 1x1 convolution without stride or padding sees one long row: strips need not end with rows.
    pub fn flattened(mut self) -> Self {
        let plain = self.kernel == [1, 1]
            && self.options.stride == [1, 1]
            && self.options.padding == [0, 0];
        if plain {
            self.input = [1, self.input[0] * self.input[1]];
            self.output = self.input;
        }
        self
    }

    /// Values of the input, the weight and the output.
    pub fn sizes(&self) -> [usize; 3] {
        [self.input_shape(), self.weight_shape(), self.output_shape()]
            .map(|shape| shape.iter().product())
    }

    /// # Panics
    /// If the operands have other sizes.
    pub fn check<E, W>(&self, x: &[E], weight: &[W], output: &[E]) {
        assert_eq!(
            [x.len(), weight.len(), output.len()],
            self.sizes(),
            "operands of a convolution differ from {self:?}"
        );
    }
}

/// The positions `p` in `0..count` whose `p * step + offset` lies in `0..size`.
pub fn inside(count: usize, step: usize, offset: isize, size: usize) -> Range<usize> {
    let first = if offset >= 0 {
        0
    } else {
        offset.unsigned_abs().div_ceil(step)
    };
    let room = size as isize - offset;
    let last = if room <= 0 {
        0
    } else {
        (room as usize).div_ceil(step)
    };
    let last = last.min(count);
    first.min(last)..last
}
