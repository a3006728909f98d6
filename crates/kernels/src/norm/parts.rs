//! Parts of a batch on several devices, and what they know together.

use burn::tensor::Tensor;

/// How the parts of a batch, each on a device of its own, exchange what they know.
pub trait BatchParts: Send + Sync {
    /// The values that all parts gave, in one order for all, on the device of `own`, without autodiff.
    ///
    /// # Shapes
    /// f32 `[values]`, to one of the same for each part
    fn gather(&self, own: Tensor<1>) -> Vec<Tensor<1>>;

    /// The sum of the values that all parts gave, likewise.
    fn sum(&self, own: Tensor<1>) -> Tensor<1>;
}

/// The mean and the biased variance of a map whose parts are on several devices, and how many values of a
/// channel it has, from the `mean` of this part and its sum of `squares` of deviations from that. All parts
/// have `count` values of a channel. Costs one [`BatchParts::gather`].
///
/// # Shapes
/// `mean`, `squares`, results: f32 `[c]`
pub fn shared_statistics(
    parts: &dyn BatchParts,
    mean: Tensor<1>,
    squares: Tensor<1>,
    count: f64,
) -> ([Tensor<1>; 2], f64) {
    let [c] = mean.dims();
    let all = parts.gather(Tensor::cat(vec![mean, squares], 0));
    let rows = |start: usize| all.iter().map(move |part| part.clone().narrow(0, start, c));
    // In the order of the parts, which is that of all devices.
    let added = |rows: &mut dyn Iterator<Item = Tensor<1>>| {
        let sum = rows.reduce(|a, b| a + b);
        sum.expect("there is at least one part")
    };
    let total = count * all.len() as f64;
    let mean = added(&mut rows(0)) / all.len() as f64;
    let mut squares = rows(0)
        .zip(rows(c))
        .map(|(part, squares)| squares + (part - mean.clone()).square() * count);
    let variance = added(&mut squares) / total;
    ([mean.clone(), variance], total)
}
