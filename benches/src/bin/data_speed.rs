//! Times the training pipeline and the confusion matrix for `vs_peers.sh`, whose peer does the same
//! work on the same files. Prints one JSON line.

use std::io::BufReader;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use halfseg_benches::Times;
use halfseg_data::{
    CLASSES, Cityscapes, Dataset, Definition, IGNORE, LabelMap, Loader, LoaderConfig, Pipeline,
    SurveyOptions, SyntheticStreets, write_cityscapes_layout, write_label,
};
use halfseg_eval::ConfusionMatrix;
use serde_json::{Value, json};

/// Times the training pipeline and the confusion matrix.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
    /// Passes that are measured
    #[arg(long, global = true, default_value_t = 40)]
    iterations: usize,
    /// Passes before them that are not
    #[arg(long, global = true, default_value_t = 4)]
    warmup: usize,
}

#[derive(Subcommand)]
enum Command {
    /// Write generated scenes of 2048x1024 in the Cityscapes layout, with both kinds of label maps
    Write {
        /// The root of the layout
        #[arg(long)]
        data: PathBuf,
        /// Number of scenes
        #[arg(long, default_value_t = 8)]
        count: usize,
    },
    /// The published training pipeline, from PNG files to normalised crops, with one worker
    Pipeline {
        /// The root of a Cityscapes layout
        #[arg(long)]
        data: PathBuf,
    },
    /// What `halfseg doctor` does with all pictures and masks, in turns with the `png` crate alone decoding the same
    /// files, both on all cores
    Doctor {
        /// The root of a Cityscapes layout
        #[arg(long)]
        data: PathBuf,
    },
    /// The confusion matrix of one pair of class maps, on one thread
    Confusion {
        /// Height of the maps
        #[arg(long, default_value_t = 1024)]
        height: usize,
        /// Width of the maps
        #[arg(long, default_value_t = 2048)]
        width: usize,
    },
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    anyhow::ensure!(
        cli.iterations > 0,
        "--iterations: expected at least 1, found 0"
    );
    let row = match &cli.command {
        Command::Write { data, count } => write(data, *count)?,
        Command::Pipeline { data } => pipeline(&cli, data)?,
        Command::Doctor { data } => doctor(&cli, data)?,
        Command::Confusion { height, width } => confusion(&cli, *height, *width)?,
    };
    println!("{row}");
    Ok(())
}

fn write(root: &Path, count: usize) -> Result<Value> {
    let streets = SyntheticStreets::new(2048, 1024, count, 0);
    write_cityscapes_layout(&streets, root, "train", "town")?;
    // The peer reads trainIds, which its users convert to once.
    let labels = root.join("gtFine/train/town");
    for index in 0..count {
        let label = streets
            .get(index)?
            .label
            .context("generated scenes have labels")?;
        let name = format!("town_{index:06}_000000_gtFine_labelTrainIds.png");
        write_label(&labels.join(name), &label)?;
    }
    let images = root.join("leftImg8bit/train/town");
    let bytes = std::fs::read_dir(&images)
        .and_then(|files| {
            files
                .map(|file| Ok(file?.metadata()?.len()))
                .sum::<std::io::Result<u64>>()
        })
        .with_context(|| format!("cannot read {}", images.display()))?;
    Ok(json!({"pictures": count, "mean_png_bytes": bytes / count.max(1) as u64}))
}

fn pipeline(cli: &Cli, root: &Path) -> Result<Value> {
    let dataset = Arc::new(Cityscapes::open(root, "train")?);
    let pictures = dataset.len();
    // The loader of a training run, with one worker: the time between two batches of one picture.
    // Nothing else computes meanwhile.
    let config = LoaderConfig {
        batch: 1,
        seed: 0,
        workers: 1,
        queue: 1,
        start_at: 0,
    };
    let mut loader = Loader::new(dataset, Pipeline::default(), config);
    let times = Times::measure(cli.warmup, cli.iterations, || {
        loader.next().context("a loader never ends")??;
        anyhow::Ok(())
    })?;
    Ok(json!({
        "program": "halfseg",
        "mode": "pipeline",
        "threads": 1,
        "pictures": pictures,
        "median_s": times.median(),
        "images_per_s": times.rate(),
        "seconds": times.seconds,
    }))
}

fn doctor(cli: &Cli, root: &Path) -> Result<Value> {
    let definition = Definition::of_cityscapes(root, &["train"], CLASSES)?;
    let files = |folder: &str, ending: &str| -> Result<Vec<PathBuf>> {
        let folder = root.join(folder).join("train/town");
        let all = std::fs::read_dir(&folder)
            .with_context(|| format!("cannot read {}", folder.display()))?;
        let all = all
            .map(|file| Ok(file?.path()))
            .collect::<Result<Vec<_>>>()?;
        Ok(all
            .into_iter()
            .filter(|path| path.to_string_lossy().ends_with(ending))
            .collect())
    };
    let pictures = files("leftImg8bit", ".png")?;
    let masks = files("gtFine", "_labelIds.png")?;
    let both = [&pictures[..], &masks[..]].concat();
    let mut seconds: [Vec<f64>; 3] = Default::default();
    for pass in 0..cli.warmup + cli.iterations {
        let measured = [
            timed(|| decode(&pictures))?,
            timed(|| decode(&both))?,
            timed(|| {
                let report = definition.survey(&["train"], &SurveyOptions::default());
                let read = report.splits[0].read;
                anyhow::ensure!(read == pictures.len(), "read {read} of {}", pictures.len());
                Ok(())
            })?,
        ];
        if pass >= cli.warmup {
            seconds
                .iter_mut()
                .zip(measured)
                .for_each(|(all, one)| all.push(one));
        }
    }
    let [of_pictures, of_both, doctor] = seconds.map(|mut all| {
        all.sort_by(f64::total_cmp);
        all[all.len() / 2]
    });
    Ok(json!({
        "program": "halfseg",
        "mode": "doctor",
        "threads": std::thread::available_parallelism()?.get(),
        "pictures": pictures.len(),
        "png_pictures_s": of_pictures,
        "png_pictures_and_masks_s": of_both,
        "doctor_s": doctor,
        "share_of_png": of_both / doctor,
        "share_of_png_without_masks": of_pictures / doctor,
    }))
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64())
}

/// Decodes PNG files with the `png` crate, on all cores.
fn decode(files: &[PathBuf]) -> Result<()> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<()> {
        let mut data = Vec::new();
        while let Some(path) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
            let file = BufReader::with_capacity(1 << 16, std::fs::File::open(path)?);
            let mut reader = png::Decoder::new(file).read_info()?;
            data.resize(
                reader.output_buffer_size().context("a picture that fits")?,
                0,
            );
            reader.next_frame(&mut data)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism()?.get();
        let all: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        all.into_iter()
            .try_for_each(|thread| thread.join().expect("it returns errors"))
    })
}

fn confusion(cli: &Cli, height: usize, width: usize) -> Result<Value> {
    let (prediction, label) = maps(height, width);
    let mut matrix = ConfusionMatrix::new(CLASSES);
    let times = Times::measure(cli.warmup, cli.iterations, || {
        matrix.update(&prediction.data, &label.data, IGNORE)
    })?;
    Ok(json!({
        "program": "halfseg",
        "mode": "confusion",
        "size": format!("{height}x{width}"),
        "threads": 1,
        "median_s": times.median(),
        "seconds": times.seconds,
    }))
}

/// A label map in patches of 32 pixels with a tenth ignored, and a prediction that is wrong in a
/// tenth of its pixels: as the peer's maps are.
fn maps(height: usize, width: usize) -> (LabelMap, LabelMap) {
    let hash = |x: usize, y: usize, salt: u32| {
        let mut h = (x as u32).wrapping_mul(0x85EB_CA6B) ^ (y as u32).wrapping_mul(0xC2B2_AE35);
        h = (h ^ salt ^ (h >> 15)).wrapping_mul(0x2C1B_3C6D);
        h = (h ^ (h >> 12)).wrapping_mul(0x297A_2D39);
        h ^ (h >> 15)
    };
    let class = |h: u32| (h % CLASSES as u32) as u8;
    let mut label = LabelMap::filled(width, height, [0]);
    let mut prediction = label.clone();
    let pixels = label.data.iter_mut().zip(&mut prediction.data);
    for (i, (truth, guess)) in pixels.enumerate() {
        let (x, y) = (i % width, i / width);
        *truth = class(hash(x / 32, y / 32, 1));
        *guess = match hash(x, y, 2) % 10 {
            0 => class(hash(x, y, 3)),
            _ => *truth,
        };
        if hash(x, y, 4).is_multiple_of(10) {
            *truth = IGNORE;
        }
    }
    (prediction, label)
}
