//! What was trained on what, and how it went.

use halfseg_train::Recipe;
use serde_json::Value;

use crate::html::{Cell, class_name, duration, escaped, grouped, note, number, percent, words};
use crate::run::{Run, State};

/// A row of the table.
type Row = (&'static str, fn(&Run) -> String);

/// `text` of what the configuration says, or a dash.
fn of_recipe(run: &Run, text: impl Fn(&Recipe) -> String) -> String {
    run.record.recipe.as_ref().map_or("–".into(), text)
}

fn started(run: &Run, key: &str) -> Option<u64> {
    run.start.as_ref()?[key].as_u64()
}

fn count(value: Option<u64>) -> String {
    value.map_or("–".into(), grouped)
}

const ROWS: [Row; 29] = [
    ("folder", |run| run.record.path.display().to_string()),
    ("state", |run| match run.state() {
        State::Finished => "finished".into(),
        State::Early => "ended early: no better score for long (train.patience)".into(),
        State::Unfinished => "not finished: it goes on, or was interrupted".into(),
    }),
    ("network", |run| {
        of_recipe(run, |recipe| {
            format!("{} on {}", recipe.model.method, recipe.model.backbone)
        })
    }),
    ("parameters", |run| count(started(run, "parameters"))),
    ("weights at the beginning", |run| {
        of_recipe(run, |recipe| {
            match (&*recipe.checkpoint, &*recipe.backbone_weights) {
                ("", "") => "random".into(),
                ("", backbone) => format!("{backbone}, the backbone"),
                (whole, _) => whole.into(),
            }
        })
    }),
    ("data", |run| {
        of_recipe(run, |recipe| recipe.data.source.to_string())
    }),
    ("pictures to train on", |run| {
        count(started(run, "train_images"))
    }),
    ("pictures for evaluation", |run| {
        count(started(run, "val_images"))
    }),
    ("classes", |run| {
        of_recipe(run, |recipe| recipe.model.num_classes.to_string())
    }),
    ("crop", |run| {
        of_recipe(run, |recipe| recipe.data.crop.to_string())
    }),
    ("batch", |run| {
        of_recipe(run, |recipe| recipe.train.batch.to_string())
    }),
    ("iterations", |run| {
        let of = of_recipe(run, |recipe| grouped(recipe.schedule.iterations));
        format!("{} of {of}", grouped(run.iteration))
    }),
    ("precision", |run| {
        of_recipe(run, |recipe| recipe.precision.summary())
    }),
    ("loss scale", |run| {
        let said = run
            .start
            .as_ref()
            .and_then(|start| start["loss_scaling"].as_str());
        said.map_or("–".into(), ToOwned::to_owned)
    }),
    ("skipped steps", |run| match run.totals.iterations {
        0 => "–".into(),
        _ => run.skips.len().to_string(),
    }),
    ("device", |run| {
        of_recipe(run, |recipe| {
            let further = recipe.further_devices.iter().map(ToString::to_string);
            let all = std::iter::once(recipe.device.to_string()).chain(further);
            all.collect::<Vec<_>>().join(", ")
        })
    }),
    ("processes", |run| count(started(run, "processes"))),
    ("seed", |run| {
        of_recipe(run, |recipe| recipe.seed.to_string())
    }),
    ("version of halfseg", |run| match run.versions.as_slice() {
        [] => "–".into(),
        all => all.join(", then "),
    }),
    ("last mIoU, %", |run| {
        percent(run.evaluations.last().map(|one| one.miou))
    }),
    ("best mIoU, %", |run| {
        run.best().map_or("–".into(), |best| {
            format!(
                "{} after iteration {}",
                percent(Some(best.miou)),
                grouped(best.iteration)
            )
        })
    }),
    ("mIoU of the best constant prediction, %", |run| {
        let constant = run.evaluations.last().and_then(|one| one.constant_miou);
        let counted = || Some(run.evaluation()?.scores().constant_mean_iou);
        percent(constant.or_else(counted))
    }),
    ("last mAcc, %", |run| {
        percent(run.evaluations.last().and_then(|one| one.macc))
    }),
    ("last aAcc, %", |run| {
        percent(run.evaluations.last().and_then(|one| one.aacc))
    }),
    ("expected calibration error, %", |run| {
        let calibration = run.evaluation().and_then(|one| one.calibration.as_ref());
        percent(calibration.and_then(|calibration| calibration.expected_error()))
    }),
    ("training, without evaluation", |run| {
        match run.totals.iterations {
            0 => "–".into(),
            _ => duration(run.totals.seconds),
        }
    }),
    ("an iteration", |run| match run.totals.iterations {
        0 => "–".into(),
        iterations => {
            let totals = &run.totals;
            let waited = number(Some(100.0 * totals.waited / totals.seconds.max(1e-9)), 1);
            format!(
                "{}, of which {waited} % wait for data; {} pictures a second",
                duration(totals.seconds / iterations as f64),
                number(Some(totals.images / totals.seconds.max(1e-9)), 2)
            )
        }
    }),
    ("last evaluation", |run| {
        let seconds = run.evaluations.last().and_then(|one| one.seconds);
        seconds.map_or("–".into(), duration)
    }),
    ("most memory of the process", |run| {
        run.peak_mib
            .map_or("–".into(), |mib| format!("{} MiB", grouped(mib)))
    }),
];

pub fn html(runs: &[Run]) -> String {
    let mut out = String::new();
    for run in runs {
        for missing in &run.missing {
            out += &match runs.len() {
                1 => note(missing),
                _ => note(format!("{}: {missing}", run.name)),
            };
        }
    }
    let mut heads = vec!["what".to_owned()];
    match runs {
        [_] => heads.push("value".into()),
        all => heads.extend(all.iter().map(|run| run.name.clone())),
    }
    let row = |(name, of): &Row| {
        let values = runs.iter().map(|run| Cell::Text(of(run)));
        std::iter::once(Cell::Text((*name).to_owned()))
            .chain(values)
            .collect()
    };
    let rows: Vec<Vec<Cell>> = ROWS.iter().map(row).collect();
    out += &words("Overview", &heads, &rows);
    for run in runs {
        out += &classes(run, runs.len() > 1);
    }
    out
}

/// Names and colours.
fn classes(run: &Run, named: bool) -> String {
    let Some(classes) = &run.record.classes else {
        let count = run
            .record
            .recipe
            .as_ref()
            .map(|recipe| recipe.model.num_classes);
        return count.map_or(String::new(), |count| {
            note(format!(
                "{}Names and colours of the {count} classes are not known yet: a checkpoint or an evaluation adds them.",
                if named { format!("{}: ", run.name) } else { String::new() }
            ))
        });
    };
    let of = if named {
        format!(" of {}", escaped(&run.name))
    } else {
        String::new()
    };
    let entries = classes.names().into_iter().zip(classes.colors());
    let entries: String = entries
        .map(|(name, color)| format!("<li>{}</li>", class_name(*color, name)))
        .collect();
    format!("<h3>Classes{of}</h3>\n<ul class=\"classes\">{entries}</ul>\n")
}

/// A text or number of JSON as it is read.
pub fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}
