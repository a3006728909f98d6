//! The transforms.

use super::super::micro::LANES;

/// Some values side by side.
pub type Lanes = [f32; LANES];

/// The transforms of F(TILE x TILE, 3x3) along one axis.
pub trait Scheme<const TILE: usize, const WINDOW: usize> {
    /// `G g` of the paper.
    fn kernel(g: &[Lanes; 3]) -> [Lanes; WINDOW];

    /// `B^T d` of the paper.
    fn input(d: &[Lanes; WINDOW]) -> [Lanes; WINDOW];

    /// `A^T m` of the paper.
    fn output(m: &[Lanes; WINDOW]) -> [Lanes; TILE];
}

/// The minimal filters.
pub struct Minimal;

impl Scheme<2, 4> for Minimal {
    #[inline(always)]
    fn kernel(g: &[Lanes; 3]) -> [Lanes; 4] {
        let mut result = [[0.0; LANES]; 4];
        for lane in 0..LANES {
            let [a, b, c] = [g[0][lane], g[1][lane], g[2][lane]];
            let (even, odd) = ((a + c) * 0.5, b * 0.5);
            result[0][lane] = a;
            result[1][lane] = even + odd;
            result[2][lane] = even - odd;
            result[3][lane] = c;
        }
        result
    }

    #[inline(always)]
    fn input(d: &[Lanes; 4]) -> [Lanes; 4] {
        let mut result = [[0.0; LANES]; 4];
        for lane in 0..LANES {
            let [a, b, c, d] = [d[0][lane], d[1][lane], d[2][lane], d[3][lane]];
            result[0][lane] = a - c;
            result[1][lane] = b + c;
            result[2][lane] = c - b;
            result[3][lane] = b - d;
        }
        result
    }

    #[inline(always)]
    fn output(m: &[Lanes; 4]) -> [Lanes; 2] {
        let mut result = [[0.0; LANES]; 2];
        for lane in 0..LANES {
            let [a, b, c, d] = [m[0][lane], m[1][lane], m[2][lane], m[3][lane]];
            result[0][lane] = a + (b + c);
            result[1][lane] = (b - c) - d;
        }
        result
    }
}

impl Scheme<4, 6> for Minimal {
    #[inline(always)]
    fn kernel(g: &[Lanes; 3]) -> [Lanes; 6] {
        let mut result = [[0.0; LANES]; 6];
        for lane in 0..LANES {
            let [a, b, c] = [g[0][lane], g[1][lane], g[2][lane]];
            let (even, odd) = ((a + c) * (-1.0 / 6.0), b * (-1.0 / 6.0));
            let (wide_even, wide_odd) = (a * (1.0 / 24.0) + c * (1.0 / 6.0), b * (1.0 / 12.0));
            result[0][lane] = a * 0.25;
            result[1][lane] = even + odd;
            result[2][lane] = even - odd;
            result[3][lane] = wide_even + wide_odd;
            result[4][lane] = wide_even - wide_odd;
            result[5][lane] = c;
        }
        result
    }

    #[inline(always)]
    fn input(d: &[Lanes; 6]) -> [Lanes; 6] {
        let mut result = [[0.0; LANES]; 6];
        for lane in 0..LANES {
            let d: [f32; 6] = std::array::from_fn(|i| d[i][lane]);
            let (near_even, near_odd) = (d[4] - 4.0 * d[2], d[3] - 4.0 * d[1]);
            let (far_even, far_odd) = (d[4] - d[2], 2.0 * (d[3] - d[1]));
            result[0][lane] = 4.0 * d[0] - 5.0 * d[2] + d[4];
            result[1][lane] = near_even + near_odd;
            result[2][lane] = near_even - near_odd;
            result[3][lane] = far_even + far_odd;
            result[4][lane] = far_even - far_odd;
            result[5][lane] = 4.0 * d[1] - 5.0 * d[3] + d[5];
        }
        result
    }

    #[inline(always)]
    fn output(m: &[Lanes; 6]) -> [Lanes; 4] {
        let mut result = [[0.0; LANES]; 4];
        for lane in 0..LANES {
            let m: [f32; 6] = std::array::from_fn(|i| m[i][lane]);
            let (near_even, near_odd) = (m[1] + m[2], m[1] - m[2]);
            let (far_even, far_odd) = (m[3] + m[4], m[3] - m[4]);
            result[0][lane] = m[0] + near_even + far_even;
            result[1][lane] = near_odd + 2.0 * far_odd;
            result[2][lane] = near_even + 4.0 * far_even;
            result[3][lane] = near_odd + 8.0 * far_odd + m[5];
        }
        result
    }
}

/// Expands to the transform of a matrix: down its columns, then along its rows. Not a function that
/// takes one: calls of function values are not compiled with their caller's instructions.
macro_rules! both_axes {
    ($line:path, $values:expr, $from:expr, $to:expr) => {{
        let values: &[[Lanes; $from]; $from] = $values;
        let mut half = [[[0.0; LANES]; $from]; $to];
        for column in 0..$from {
            let mut line = [[0.0; LANES]; $from];
            for row in 0..$from {
                line[row] = values[row][column];
            }
            let line = $line(&line);
            for row in 0..$to {
                half[row][column] = line[row];
            }
        }
        let mut result = [[[0.0; LANES]; $to]; $to];
        for row in 0..$to {
            result[row] = $line(&half[row]);
        }
        result
    }};
}
pub(super) use both_axes;
