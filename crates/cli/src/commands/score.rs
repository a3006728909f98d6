//! `halfseg score`.

use anyhow::Result;
use halfseg_eval::CityscapesScorer;

use super::eval::{official_table, percent};
use crate::args::ScoreArgs;
use crate::output::{check_writable, print_table, write_json};

/// Scores predictions from anywhere, without a network.
pub fn run(args: &ScoreArgs) -> Result<()> {
    check_writable(&[&args.json], &[])?;
    let scores = CityscapesScorer::score_folders(&args.predictions, &args.truth)?;
    let mut table = format!("{:<16}{:>8}{:>8}\n", "class", "IoU", "iIoU");
    for class in &scores.classes {
        let (iou, instance_iou) = (percent(class.iou), percent(class.instance_iou));
        table += &format!("{:<16}{iou:>8}{instance_iou:>8}\n", class.name);
    }
    table += &official_table(&scores);
    let (images, miou) = (scores.images, percent(scores.mean_iou));
    table += &format!("{images} images: mIoU {miou}\n");
    print_table(&table, args.json.as_deref())?;
    match &args.json {
        Some(path) => write_json(path, &serde_json::to_value(&scores)?),
        None => Ok(()),
    }
}
