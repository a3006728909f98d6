//! What a training step exchanges between processes.

use std::time::Instant;

use anyhow::Result;
use halfseg_devices::{ExchangePrecision, Ranks};
use halfseg_segmentor::count_parameters;
use halfseg_train::Recipe;
use serde_json::json;

use super::Times;
use crate::args::BenchArgs;
use crate::failure::Usage;
use crate::output::{print_table, write_json};
use crate::ranks;

/// Values of an exchange of batch-norm statistics: means and sums of squares of 512 channels.
const STATISTICS: usize = 1024;
/// Such exchanges that are timed together.
const SERIES: usize = 100;

/// Measures the sum of a network's gradients over all processes beside a bare `MPI_Allreduce` of as many f32
/// values, in turn, and an exchange of batch-norm statistics.
pub fn run(args: &BenchArgs, recipe: &Recipe) -> Result<()> {
    let ranks = Ranks::current();
    if ranks.size() == 1 {
        let why = "--exchange: expected several processes, as `mpirun -np 2 halfseg bench --exchange` \
                   starts them with a build with the feature `mpi`; found one";
        return Err(Usage(why.into()).into());
    }
    ranks.begin();
    let device = args.device.open()?;
    let values = count_parameters(&recipe.model.init(&device)) as usize;
    let mut gradients: Vec<f32> = (0..values)
        .map(|place| (place % 1000) as f32 / 1e3)
        .collect();
    let mut sums = vec![0.0; values];
    let statistics = vec![0.5; STATISTICS];
    let (mut ours, mut theirs, mut small) = (Vec::new(), Vec::new(), Vec::new());
    for turn in 0..args.warmup + args.iterations.get() {
        let exchange = timed(&ranks, || {
            ranks.sum(&mut gradients, args.exchange_precision)
        });
        // What was added up would grow with each turn.
        let share = 1.0 / ranks.size() as f32;
        gradients.iter_mut().for_each(|value| *value *= share);
        let all_reduce = timed(&ranks, || ranks.all_reduce(&gradients, &mut sums));
        let series = timed(&ranks, || {
            for _ in 0..SERIES {
                ranks.gather_values(&statistics);
            }
        });
        if turn >= args.warmup {
            ours.push(exchange);
            theirs.push(all_reduce);
            small.push(series / SERIES as f64);
        }
        ranks::check_interrupted(|| format!("interrupted after {} passes", turn + 1))?;
    }
    let [ours, theirs, small] = [ours, theirs, small].map(Times::of);
    let ratio = ours.median / theirs.median;
    let bytes = values * args.exchange_precision.bytes();
    let per_s = |seconds: f64, bytes: usize| bytes as f64 / seconds / 1e9;
    let [_, here] = ranks.local();
    let mut table = String::new();
    let mut row = |name: &str, value: String| table += &format!("{name:<30}{value:>14}\n");
    row("processes", ranks.size().to_string());
    row("on the first's machine", here.to_string());
    row("gradients", format!("{:.1} MB", bytes as f64 / 1e6));
    row("exchange, median", format!("{:.4} s", ours.median));
    row("exchange, fastest", format!("{:.4} s", ours.min));
    row("exchange", format!("{:.2} GB/s", per_s(ours.median, bytes)));
    row(
        "MPI_Allreduce in f32, median",
        format!("{:.4} s", theirs.median),
    );
    row(
        "MPI_Allreduce in f32, fastest",
        format!("{:.4} s", theirs.min),
    );
    row("exchange / MPI_Allreduce", format!("{ratio:.2}"));
    row(
        "statistics of 512 channels",
        format!("{:.1} us", small.median * 1e6),
    );
    if !ranks.is_first() {
        return Ok(());
    }
    let model = &recipe.model;
    let what = format!(
        "{} on {}, exchange of gradients in {}\n",
        model.method, model.backbone, args.exchange_precision
    );
    print_table(&(what + &table), args.json.as_deref())?;
    if let Some(path) = &args.json {
        let json = json!({
            "program": "halfseg",
            "version": env!("CARGO_PKG_VERSION"),
            "mode": "exchange",
            "method": model.method.to_string(),
            "backbone": model.backbone.to_string(),
            "processes": ranks.size(),
            "on_this_machine": here,
            "exchange_precision": args.exchange_precision.to_string(),
            "bytes": bytes,
            "warmup": args.warmup,
            "seconds": ours.all,
            "median_s": ours.median,
            "all_reduce_bytes": values * ExchangePrecision::F32.bytes(),
            "all_reduce_seconds": theirs.all,
            "all_reduce_median_s": theirs.median,
            "ratio": ratio,
            "statistics_s": small.median,
        });
        write_json(path, &json)?;
    }
    Ok(())
}

/// Seconds from when all processes are ready until all are done.
fn timed(ranks: &Ranks, exchange: impl FnOnce()) -> f64 {
    ranks.any(false);
    let begun = Instant::now();
    exchange();
    ranks.any(false);
    begun.elapsed().as_secs_f64()
}
