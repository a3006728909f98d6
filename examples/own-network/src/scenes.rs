//! Pictures that are drawn as they are needed.

use burn::tensor::{Device, Int, Tensor, TensorData};

/// What a pixel may show.
pub const CLASSES: [&str; 3] = ["ground", "disc", "square"];

const SIZE: usize = 32;

/// Discs, which are reddish, and squares, which are bluish, on grey ground, all of them noisy.
pub struct Scenes(u64);

impl Scenes {
    /// The same pictures for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// From 0 to 1.
    fn next(&mut self) -> f32 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 40) as f32 / (1 << 24) as f32
    }

    /// Pictures `[count, 3, 32, 32]`, about 0 and 1 wide, and the classes of their pixels `[count, 32, 32]`.
    pub fn batch(&mut self, count: usize, device: &Device) -> (Tensor<4>, Tensor<3, Int>) {
        let mut labels = vec![0; count * SIZE * SIZE];
        for picture in labels.chunks_exact_mut(SIZE * SIZE) {
            for class in [1, 2] {
                self.draw(picture, class);
            }
        }
        let mut pictures = vec![0.0; count * 3 * SIZE * SIZE];
        let planes = pictures.chunks_exact_mut(SIZE * SIZE);
        for (index, plane) in planes.enumerate() {
            let (picture, colour) = (index / 3, index % 3);
            let seen = &labels[picture * SIZE * SIZE..][..SIZE * SIZE];
            for (value, class) in plane.iter_mut().zip(seen) {
                let tint = match (*class, colour) {
                    (1, 0) | (2, 2) => 0.5,
                    (1, 2) | (2, 0) => -0.5,
                    _ => 0.0,
                };
                *value = tint + 2.0 * (self.next() - 0.5);
            }
        }
        (
            Tensor::from_data(TensorData::new(pictures, [count, 3, SIZE, SIZE]), device),
            Tensor::from_data(TensorData::new(labels, [count, SIZE, SIZE]), device),
        )
    }

    fn draw(&mut self, picture: &mut [i32], class: i32) {
        let radius = 4.0 + 4.0 * self.next();
        let centre = [(); 2].map(|()| radius + self.next() * (SIZE as f32 - 2.0 * radius));
        for (index, pixel) in picture.iter_mut().enumerate() {
            let [down, right] = [index / SIZE, index % SIZE].map(|at| at as f32 + 0.5);
            let (down, right) = (down - centre[0], right - centre[1]);
            let inside = match class {
                1 => down.hypot(right) < radius,
                _ => down.abs().max(right.abs()) < radius,
            };
            if inside {
                *pixel = class;
            }
        }
    }
}
