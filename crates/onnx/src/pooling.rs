//! Adaptive average pooling in plain operators: ONNX has none, and runtimes differ in what they make of
//! PyTorch's. Bins are constant matrices where the size is known, else the graph computes them.

use halfseg_layers::averaging_weights;

use crate::graph::{Graph, Map};
use crate::proto::{AttributeProto, DataType};

impl Graph {
    /// `map` averaged over `bins x bins` rectangles that cover it: bin `i` of `b` spans rows
    /// `floor(i h / b)` to `ceil((i + 1) h / b)`, as PyTorch's `adaptive_avg_pool2d`.
    pub fn adaptive_average(&mut self, path: &str, map: &Map, bins: usize) -> Map {
        let name = match bins {
            1 => self.node(path, "GlobalAveragePool", &[&map.name], vec![]),
            _ => {
                let [rows, columns] = self.averaging(path, map, bins);
                let swap = AttributeProto::ints("perm", &[1, 0]);
                let columns = self.node(path, "Transpose", &[&columns], vec![swap]);
                let along = self.node(path, "MatMul", &[&map.name, &columns], vec![]);
                self.node(path, "MatMul", &[&rows, &along], vec![])
            }
        };
        Map {
            name,
            channels: map.channels,
            size: Some([bins; 2]),
        }
    }

    /// The matrices `[bins, h]` and `[bins, w]` that average rows and columns of `map`.
    fn averaging(&mut self, path: &str, map: &Map, bins: usize) -> [String; 2] {
        if let Some(size) = map.size {
            return size.map(|side| {
                let matrix = averaging_weights(side, bins);
                self.floats(&format!("{path}/bins"), &[bins, side], &matrix)
            });
        }
        let size = self.size_of(map);
        [0, 1].map(|side| {
            let index = self.integers(&[], &[side]);
            let side = self.node(path, "Gather", &[&size, &index], vec![]);
            self.computed_averaging(path, &side, bins)
        })
    }

    /// The matrix `[bins, side]` for a side that the graph computes.
    fn computed_averaging(&mut self, path: &str, side: &str, bins: usize) -> String {
        let count = bins as i64;
        let column = |first: i64| (first..first + count).collect::<Vec<_>>();
        let (here, next) = (column(0), column(1));
        let here = self.integers(&[bins, 1], &here);
        let next = self.integers(&[bins, 1], &next);
        let bins = self.integers(&[], &[count]);
        let (zero, one) = (self.integers(&[], &[0]), self.integers(&[], &[1]));
        let round_up = self.integers(&[], &[count - 1]);

        let start = self.node(path, "Mul", &[&here, side], vec![]);
        let start = self.node(path, "Div", &[&start, &bins], vec![]);
        let end = self.node(path, "Mul", &[&next, side], vec![]);
        let end = self.node(path, "Add", &[&end, &round_up], vec![]);
        let end = self.node(path, "Div", &[&end, &bins], vec![]);
        let place = self.node(path, "Range", &[&zero, side, &one], vec![]);
        let behind = self.node(path, "Less", &[&place, &start], vec![]);
        let behind = self.node(path, "Not", &[&behind], vec![]);
        let before = self.node(path, "Less", &[&place, &end], vec![]);
        let inside = self.node(path, "And", &[&behind, &before], vec![]);
        let inside = self.cast(path, &inside, DataType::Float);
        let length = self.node(path, "Sub", &[&end, &start], vec![]);
        let length = self.cast(path, &length, DataType::Float);
        self.node(path, "Div", &[&inside, &length], vec![])
    }
}
