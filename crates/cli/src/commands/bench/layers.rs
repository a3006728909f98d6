//! How long each convolution of a pass takes.

use serde_json::{Value, json};

use crate::args::BenchArgs;

/// Convolutions of one shape, in one pass through the network.
#[cfg_attr(not(feature = "flex"), allow(dead_code))]
struct Layer {
    pass: &'static str,
    input: [usize; 4],
    weight: [usize; 4],
    output: [usize; 2],
    stride: [usize; 2],
    dilation: [usize; 2],
    groups: usize,
    dtype: String,
    count: usize,
    /// Multiply-adds of all of them.
    macs: u64,
    /// Of all of them; the median of the measured passes.
    seconds: f64,
    /// Of these, in which one thread alone worked; of the last pass.
    serial: f64,
    /// Into how many tasks the work of one is cut.
    tasks: usize,
}

/// All convolutions of a pass.
pub struct Layers {
    /// In the order in which each shape comes first.
    layers: Vec<Layer>,
    /// Of a whole pass, as it is with clocks read; the median.
    seconds: f64,
}

impl Layers {
    /// Of as many passes as are measured; nothing without the backend that they are timed on.
    #[cfg(not(feature = "flex"))]
    pub fn of(_: &BenchArgs, _: impl FnMut()) -> Option<Self> {
        None
    }

    /// Of as many passes as are measured.
    #[cfg(feature = "flex")]
    pub fn of(args: &BenchArgs, mut pass: impl FnMut()) -> Option<Self> {
        use halfseg_kernels::{ConvolutionPass, time_convolutions};

        let mut passes = Vec::new();
        let mut seconds = Vec::new();
        for _ in 0..args.iterations.get() {
            let start = std::time::Instant::now();
            let (_, times) = time_convolutions(&mut pass);
            seconds.push(start.elapsed().as_secs_f64());
            let mut layers: Vec<Layer> = Vec::new();
            for timed in times {
                let layer = Layer {
                    pass: match timed.pass {
                        ConvolutionPass::Forward => "forward",
                        ConvolutionPass::InputGradient => "input gradient",
                        ConvolutionPass::WeightGradient => "weight gradient",
                    },
                    input: timed.input,
                    weight: timed.weight,
                    output: timed.output,
                    stride: timed.options.stride,
                    dilation: timed.options.dilation,
                    groups: timed.options.groups,
                    dtype: timed.dtype.name().to_string(),
                    count: 1,
                    macs: timed.macs(),
                    seconds: timed.seconds,
                    serial: timed.serial,
                    tasks: timed.tasks,
                };
                match layers.iter_mut().find(|known| known.is_like(&layer)) {
                    Some(known) => {
                        known.count += 1;
                        known.macs += layer.macs;
                        known.seconds += layer.seconds;
                        known.serial += layer.serial;
                    }
                    None => layers.push(layer),
                }
            }
            passes.push(layers);
        }
        let mut layers = passes.pop()?;
        for (index, layer) in layers.iter_mut().enumerate() {
            // Each pass does the same.
            let others = passes.iter().filter_map(|others| others.get(index));
            let all = others.map(|other| other.seconds).chain([layer.seconds]);
            layer.seconds = super::Times::of(all.collect()).median;
        }
        Some(Self {
            layers,
            seconds: super::Times::of(seconds).median,
        })
    }

    /// Seconds outside convolutions.
    fn rest(&self) -> f64 {
        self.seconds - self.layers.iter().map(|layer| layer.seconds).sum::<f64>()
    }

    /// A line for each shape; shares of `peak`, in GFLOP/s of f32, where it is known.
    pub fn table(&self, peak: Option<f64>) -> String {
        let mut table = format!(
            "\n{:<44}{:>6}{:>11}{:>8}{:>10}{:>12}{:>7}{:>11}\n",
            "convolution", "times", "ms", "share", "GFLOP/s", "of f32 peak", "tasks", "serial ms"
        );
        let share = |seconds: f64| 100.0 * seconds / self.seconds;
        for layer in &self.layers {
            let rate = layer.gflops();
            let of_peak = peak.map_or("".into(), |peak| format!("{:.0}%", 100.0 * rate / peak));
            table += &format!(
                "{:<44}{:>6}{:>11.2}{:>7.1}%{rate:>10.0}{of_peak:>12}{:>7}{:>11.2}\n",
                layer.name(),
                layer.count,
                1e3 * layer.seconds,
                share(layer.seconds),
                layer.tasks,
                1e3 * layer.serial,
            );
        }
        let rest = self.rest();
        table += &format!(
            "{:<44}{:>6}{:>11.2}{:>7.1}%\n",
            "everything else",
            "",
            1e3 * rest,
            share(rest)
        );
        table
    }

    pub fn json(&self) -> Value {
        let layers = self.layers.iter().map(|layer| {
            json!({
                "pass": layer.pass,
                "input": layer.input,
                "weight": layer.weight,
                "output": layer.output,
                "stride": layer.stride,
                "dilation": layer.dilation,
                "groups": layer.groups,
                "dtype": layer.dtype,
                "count": layer.count,
                "gmacs": layer.macs as f64 / 1e9,
                "seconds": layer.seconds,
                "gflops": layer.gflops(),
                "serial_s": layer.serial,
                "tasks": layer.tasks,
            })
        });
        json!({
            "convolutions": layers.collect::<Vec<_>>(),
            "pass_s": self.seconds,
            "everything_else_s": self.rest(),
        })
    }
}

impl Layer {
    #[cfg(feature = "flex")]
    fn is_like(&self, other: &Self) -> bool {
        let shape = |layer: &Self| {
            (
                (layer.pass, layer.input, layer.weight),
                (layer.stride, layer.dilation, layer.groups, layer.output),
            )
        };
        shape(self) == shape(other) && self.dtype == other.dtype
    }

    fn gflops(&self) -> f64 {
        2.0 * self.macs as f64 / self.seconds / 1e9
    }

    /// Channels, size of the output, kernel, and what is not usual.
    fn name(&self) -> String {
        let [_, c_in, ..] = self.input;
        let [c_out, _, kernel_height, kernel_width] = self.weight;
        let [height, width] = self.output;
        let mut name =
            format!("{c_in} -> {c_out}, {kernel_height}x{kernel_width}, {height}x{width}");
        for (what, [vertical, horizontal]) in [("stride", self.stride), ("dilation", self.dilation)]
        {
            if vertical != horizontal {
                name += &format!(", {what} {vertical}x{horizontal}");
            } else if vertical > 1 {
                name += &format!(", {what} {vertical}");
            }
        }
        if self.groups > 1 {
            name += &format!(", {} groups", self.groups);
        }
        match self.pass {
            "forward" => name,
            pass => format!("{name}, {pass}"),
        }
    }
}
