//! `halfseg browse`.

use std::fs;
use std::io::Write;

use anyhow::{Context, Result, bail};
use halfseg_data::{
    Batch, Classes, IGNORE, LabelMap, Loader, LoaderConfig, PictureFormat, RgbImage, write_rgb,
};
use halfseg_files::write_atomically;
use halfseg_predict::{overlay, panel};
use halfseg_train::{Splits, check_channels, pipeline_for};

use super::doctor::escaped;
use crate::args::BrowseArgs;
use crate::failure::Interrupted;
use crate::progress::Progress;
use crate::{interrupt, settings};

/// White columns between a picture and its classes.
const GAP_PX: usize = 4;
/// How much of a picture its classes cover.
const OPACITY: f32 = 0.6;

/// Shows the batches that training would begin with: a sheet for each, and a page of all.
pub fn run(args: &BrowseArgs) -> Result<()> {
    settings::require_data(args.recipe.data.as_deref(), &args.recipe.sources)?;
    let recipe = settings::recipe(&args.recipe, None)?;
    let index = args.out.join("index.html");
    if index.exists() {
        bail!(
            "{}: expected no page, found one; choose another --out, or remove it",
            index.display()
        );
    }
    let splits = Splits::open(&recipe)?;
    let classes = splits.classes(recipe.model.num_classes);
    let config = LoaderConfig {
        batch: recipe.train.batch,
        seed: recipe.seed,
        workers: recipe.data.workers,
        queue: recipe.data.queue.max(1),
        start_at: args.start,
    };
    check_channels(&recipe, &*splits.train)?;
    let pipeline = pipeline_for(&recipe, &*splits.train);
    let format = pipeline.format.clone();
    let loader = Loader::new(splits.train.clone(), pipeline, config);
    fs::create_dir_all(&args.out).with_context(|| format!("cannot make {}", args.out.display()))?;
    let mut rows = String::new();
    let mut shown = Progress::new(args.batches as u64, "batches");
    for batch in loader.take(args.batches) {
        if interrupt::requested() {
            return Err(Interrupted("interrupted: no page".into()).into());
        }
        let batch = batch?;
        batch.check_labels(classes.len())?;
        let name = format!("iteration_{}.png", batch.iteration);
        write_rgb(&args.out.join(&name), &sheet(&batch, &format, &classes))?;
        rows += &row(&batch, &name, &classes);
        shown.inc(&name);
    }
    shown.finish();
    let page = page(&recipe.data.source.to_string(), &classes, &rows);
    write_atomically(&index, |out| out.write_all(page.as_bytes()))
        .with_context(|| format!("cannot write {}", index.display()))?;
    message!("wrote {}", index.display());
    Ok(())
}

/// A sample of a batch as pictures have it.
fn sample(batch: &Batch, format: &PictureFormat, index: usize) -> (RgbImage, LabelMap) {
    let [_, height, width] = batch.shape;
    let area = height * width;
    let values = format.channels() * area;
    let planes = &batch.images[index * values..(index + 1) * values];
    let image = format.shown_normalized(planes, width, height);
    let map = LabelMap {
        width,
        height,
        data: batch.labels[index * area..(index + 1) * area].to_vec(),
    };
    (image, map)
}

/// The samples of a batch below each other, each beside its classes.
fn sheet(batch: &Batch, format: &PictureFormat, classes: &Classes) -> RgbImage {
    let mut rows = (0..batch.shape[0]).map(|index| {
        let (image, map) = sample(batch, format, index);
        let colors = overlay(&image, &map, classes.colors(), OPACITY);
        panel(&[&image, &colors], GAP_PX)
    });
    let mut all = rows.next().expect("a batch has at least one sample");
    for row in rows {
        all.data.extend(row.data);
        all.height += row.height;
    }
    all
}

fn row(batch: &Batch, name: &str, classes: &Classes) -> String {
    let names = classes.names();
    let area = batch.shape[1] * batch.shape[2];
    let mut out = format!(
        "<h2>iteration {}</h2>\n<p><img src=\"{name}\" alt=\"\"></p>\n<ol>\n",
        batch.iteration
    );
    for (source, map) in batch.sources.iter().zip(batch.labels.chunks(area)) {
        let mut pixels = [0usize; 256];
        map.iter().for_each(|id| pixels[usize::from(*id)] += 1);
        let shares = names
            .iter()
            .enumerate()
            .filter(|(class, _)| pixels[*class] > 0);
        let share = |pixels: usize| 100.0 * pixels as f64 / area as f64;
        let mut shares: Vec<_> = shares
            .map(|(class, name)| format!("{} {:.1} %", escaped(name), share(pixels[class])))
            .collect();
        shares.push(format!(
            "ignored {:.1} %",
            share(pixels[usize::from(IGNORE)])
        ));
        out += &format!("<li>{}: {}\n", escaped(source), shares.join(", "));
    }
    out + "</ol>\n"
}

fn page(data: &str, classes: &Classes, rows: &str) -> String {
    let mut out = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title>\
         <style>body{{font:15px/1.5 sans-serif;margin:2em}}img{{max-width:100%;image-rendering:pixelated}}\
         i{{display:inline-block;width:1em;height:1em;margin:0 .4em 0 1.2em;border:1px solid #888}}</style>\n\
         <h1>{0}</h1>\n<p>What the network sees: pictures as they are augmented, and their classes; black is ignored.</p>\n<p>",
        escaped(data)
    );
    for (name, [r, g, b]) in classes.names().into_iter().zip(classes.colors()) {
        out += &format!(
            "<i style=\"background:rgb({r},{g},{b})\"></i>{}",
            escaped(name)
        );
    }
    out + "</p>\n" + rows + "</html>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_shown_as_they_were_before_they_were_normalised() {
        let image = RgbImage {
            width: 2,
            height: 1,
            data: vec![0, 128, 255, 7, 99, 200],
        };
        let batch = Batch {
            images: halfseg_data::normalize(&image),
            labels: vec![1, 255],
            shape: [1, 1, 2],
            iteration: 3,
            sources: vec!["<a>".into()],
            waited: std::time::Duration::ZERO,
        };
        let format = PictureFormat::default();
        assert_eq!(sample(&batch, &format, 0).0, image);
        let classes = Classes::numbered(2);
        assert_eq!(sheet(&batch, &format, &classes).width, 2 + GAP_PX + 2);
        let row = row(&batch, "x.png", &classes);
        assert!(
            row.contains("&lt;a&gt;: class_1 50.0 %, ignored 50.0 %"),
            "{row}"
        );
    }
}
