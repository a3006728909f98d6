//! The worst and the best pictures.

use halfseg_data::{RgbImage, read_image};
use halfseg_predict::{GAP_PX, panel_parts};

use super::not_evaluated;
use crate::html::{escaped, note, percent};
use crate::pictures::data_uri;
use crate::run::{Run, State};

/// Pictures of each end that are shown of one run; of several together, fewer each.
const SHOWN: usize = 4;

pub fn html(run: &Run, runs: usize) -> String {
    let most = (SHOWN / runs.max(1)).max(1);
    let Some(evaluation) = run.evaluation() else {
        return not_evaluated(run);
    };
    let drawn = |name: &str| {
        run.record
            .picture(name, "")
            .is_some_and(|file| file.is_file())
    };
    if evaluation.pictures.is_empty() {
        return note(
            "This folder is of an earlier version, which kept no scores of single pictures: the next evaluation of the \
             run adds them.",
        );
    }
    if !evaluation
        .pictures
        .iter()
        .any(|picture| drawn(&picture.name))
    {
        return note(match run.state() {
            State::Unfinished => "Pictures are drawn when the run has finished.",
            _ => "The run drew no pictures (train.pictures = 0).",
        });
    }
    // Of a few, the worst are not the best, too.
    let count = evaluation
        .pictures
        .iter()
        .filter(|picture| drawn(&picture.name))
        .count();
    let most = most.min(count.div_ceil(2));
    let mut out = String::new();
    let mut shown = Vec::new();
    for (title, ordered) in [
        ("Lowest", evaluation.worst()),
        ("Highest", evaluation.best()),
    ] {
        let mut part = String::new();
        let drawn = ordered.into_iter().filter(|picture| drawn(&picture.name));
        let chosen: Vec<_> = drawn
            .filter(|picture| !shown.contains(&picture.index))
            .take(most)
            .collect();
        for picture in chosen {
            shown.push(picture.index);
            part += &format!(
                "<h4>{}: mIoU {} %, {} % of the pixels right</h4>\n",
                escaped(&picture.name),
                percent(Some(picture.miou)),
                percent(Some(picture.aacc))
            );
            part += &shots(run, &picture.name);
        }
        if !part.is_empty() {
            out += &format!("<h3>{title} mIoU of a picture</h3>\n{part}");
        }
    }
    out
}

/// A picture with what was made of it.
fn shots(run: &Run, name: &str) -> String {
    let read = |kind: &str| {
        let file = run
            .record
            .picture(name, kind)
            .ok_or("its name leads elsewhere")?;
        read_image(&file).map_err(|error| error.to_string())
    };
    let mut parts: Vec<(&str, Result<RgbImage, String>)> = Vec::new();
    match read("") {
        Ok(panel) => match panel_parts(&panel, 3, GAP_PX) {
            Some(all) => {
                let [picture, _, truth] = <[RgbImage; 3]>::try_from(all).expect("three of three");
                parts.push(("picture", Ok(picture)));
                parts.push(("truth", Ok(truth)));
            }
            None => parts.push(("picture and prediction", Ok(panel))),
        },
        Err(error) => parts.push(("picture", Err(error))),
    }
    parts.insert(
        1.min(parts.len()),
        ("prediction over the picture", read("overlay")),
    );
    parts.push(("wrong pixels in red", read("difference")));
    let mut out = String::from("<div class=\"shots\">\n");
    let mut faults = String::new();
    for (kind, image) in parts {
        match image {
            Ok(image) => {
                out += &format!(
                    "<figure><img src=\"{}\" alt=\"{}\"><figcaption>{kind}</figcaption></figure>\n",
                    data_uri(&image),
                    escaped(format!("{name}: {kind}"))
                );
            }
            Err(error) => faults += &note(format!("{name}, {kind}: {error}")),
        }
    }
    out + "</div>\n" + &faults
}
