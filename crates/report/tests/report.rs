//! Reports of real runs of tiny networks: numbers as in the files, what is missing in words, and names that are no
//! markup.

mod markup;

use std::fs;
use std::path::{Path, PathBuf};

use halfseg_report::{Report, ReportError};
use halfseg_train::{DataSource, Existing, Observer, Recipe, RunRecord, Splits, Trainer};
use serde_json::{Value, json};

fn recipe(iterations: u64) -> Recipe {
    let mut recipe = Recipe::published(
        "deeplabv3plus".parse().unwrap(),
        "resnet18".parse().unwrap(),
    );
    for value in [
        "model.stem_channels=8",
        "model.base_channels=4",
        "model.head_channels=8",
        "model.aux_channels=8",
        "model.c1_channels=4",
        "data.scale=64x32",
        "data.crop=32x32",
        "data.synthetic_train=5",
        "data.synthetic_val=6",
        "train.batch=2",
        "train.pictures=2",
        "train.eval_every=2",
        &format!("schedule.iterations={iterations}"),
    ] {
        recipe.set(value).unwrap();
    }
    assert_eq!(recipe.data.source, DataSource::Synthetic);
    recipe
}

fn train(recipe: &Recipe, out: &Path, observer: &mut dyn Observer) {
    let device = recipe.device.open().unwrap();
    let data = Splits::open(recipe).unwrap();
    let mut trainer =
        Trainer::with_data(recipe.clone(), data, &device, out, Existing::Replaced).unwrap();
    trainer.run(observer).unwrap();
}

fn page(runs: &[&Path]) -> (String, String) {
    let html = Report::read(runs).unwrap().html();
    let text = markup::check(&html);
    assert!(html.len() < 10_000_000, "{} bytes", html.len());
    (html, text)
}

fn read_json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

fn percent(value: &Value) -> String {
    value
        .as_f64()
        .map_or("–".into(), |value| format!("{:.2}", 100.0 * value))
}

/// The cells of the row that begins with `head`, of the first table after `section` that has one.
fn row(html: &str, section: &str, head: &str) -> Vec<String> {
    let (_, after) = html
        .split_once(section)
        .unwrap_or_else(|| panic!("no {section}"));
    let row = after.split("<tr>").find(|row| {
        let first = row.split("</th>").next().unwrap();
        first.ends_with(&format!(">{head}"))
    });
    let row = row.unwrap_or_else(|| panic!("no row of {head} in {section}"));
    let cells = row.split("</tr>").next().unwrap().split("<td").skip(1);
    let text = |cell: &str| {
        let inside = cell.split_once('>').unwrap().1;
        inside.split("</td>").next().unwrap().to_owned()
    };
    cells.map(text).collect()
}

fn edit(path: &Path, change: impl FnOnce(&mut Value)) {
    let mut value = read_json(path);
    change(&mut value);
    fs::write(path, value.to_string()).unwrap();
}

#[test]
fn a_report_has_the_numbers_of_the_files_and_says_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("street");
    train(&recipe(6), &run, &mut ());
    the_numbers_are_those_of_the_files(&run);
    names_from_files_are_no_markup(&run, folder.path());
    what_is_missing_is_said(&run, folder.path());
    runs_are_shown_side_by_side(&run, folder.path());
    only_reports_are_replaced(&run);
}

fn the_numbers_are_those_of_the_files(run: &Path) {
    let (html, text) = page(&[run]);
    let scores = read_json(&run.join("scores.json"));
    let evaluation = read_json(&run.join("evaluation.json"));
    let record = RunRecord::read(run).unwrap();
    let counted = record.evaluation.as_ref().unwrap();
    assert_eq!(counted.iteration, 6);
    // The same counts lead to the same scores.
    assert_eq!(json!(counted.scores().mean_iou), scores["miou"]);

    // Overview.
    let overview = "id=\"overview\"";
    assert_eq!(
        row(&html, overview, "network"),
        ["deeplabv3plus on resnet18"]
    );
    assert_eq!(row(&html, overview, "state"), ["finished"]);
    assert_eq!(row(&html, overview, "iterations"), ["6 of 6"]);
    assert_eq!(row(&html, overview, "data"), ["synthetic"]);
    assert_eq!(
        row(&html, overview, "last mIoU, %"),
        [percent(&scores["miou"])]
    );
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(row(&html, overview, "version of halfseg"), [version]);
    let best = format!(
        "{} after iteration {}",
        percent(&scores["best"]["miou"]),
        scores["best"]["iteration"]
    );
    assert_eq!(row(&html, overview, "best mIoU, %"), [best]);
    let constant = "mIoU of the best constant prediction, %";
    assert_eq!(
        row(&html, overview, constant),
        [percent(&scores["constant_miou"])]
    );

    // Curves: one for each quantity, with as many evaluations as there were.
    for chart in [
        "Loss, running mean",
        "Scores",
        "Learning rate",
        "Loss scale and skipped steps",
    ] {
        let (_, after) = html
            .split_once(&format!("<figcaption>{chart}</figcaption>"))
            .unwrap();
        let chart = after.split("</figure>").next().unwrap();
        let points = chart
            .split("points=\"")
            .nth(1)
            .unwrap()
            .split('"')
            .next()
            .unwrap();
        let expected = match chart.contains("mAcc") {
            true => 3,
            // A scale that never changes has two ends.
            false if chart.contains("class=\"mark") => 2,
            false => 6,
        };
        assert_eq!(points.split(' ').count(), expected, "{chart}");
    }
    let mut skipped = 0;
    record
        .for_each_line(|line| skipped += u64::from(line["event"] == "skip"))
        .unwrap();
    assert_eq!(row(&html, overview, "skipped steps"), [skipped.to_string()]);
    assert_eq!(text.contains("No step was skipped"), skipped == 0);

    // Classes.
    let classes = scores["classes"].as_object().unwrap();
    assert_eq!(classes.len(), 19);
    for (name, class) in classes {
        let cells = row(&html, "id=\"classes\"", name);
        let found = [&cells[0], &cells[3], &cells[4], &cells[5]];
        let keys = ["iou", "accuracy", "precision", "dice"];
        assert_eq!(
            found,
            keys.map(|key| percent(&class[key])).each_ref(),
            "{name}"
        );
        let pixels = cells[6].replace('\u{202f}', "");
        assert_eq!(pixels, class["pixels"].to_string(), "{name}");
    }
    let mean = row(&html, "id=\"classes\"", "mean");
    assert_eq!(mean[0], percent(&scores["miou"]));
    assert_eq!(mean[2], percent(&scores["constant_miou"]));

    // Confusion: the counts of the file.
    let names = counted.classes.as_ref().unwrap().names();
    for truth in 0..19 {
        for predicted in 0..19 {
            let count = evaluation["matrix"]["counts"][truth * 19 + predicted]
                .as_u64()
                .unwrap();
            if count > 0 && count < 1000 {
                let title = format!("{} taken for {}", names[truth], names[predicted]);
                let (_, after) = html.split_once(&format!("<title>{title}: ")).unwrap();
                let title = after.split("</title>").next().unwrap();
                assert!(title.ends_with(&format!("({count} pixels)")), "{title}");
            }
        }
    }

    // Calibration, directly from the bins.
    let bins = evaluation["calibration"]["bins"].as_array().unwrap();
    assert_eq!(bins.len(), 15);
    let number = |bin: &Value, key: &str| bin[key].as_f64().unwrap();
    let pixels: f64 = bins.iter().map(|bin| number(bin, "pixels")).sum();
    let labelled: f64 = classes.values().map(|class| number(class, "pixels")).sum();
    assert_eq!(pixels, labelled);
    let gap = |bin: &Value| (number(bin, "right") - number(bin, "confidence")).abs();
    let error = bins.iter().map(gap).sum::<f64>() / pixels;
    assert_eq!(
        row(&html, overview, "expected calibration error, %"),
        [format!("{:.2}", 100.0 * error)]
    );
    let right: f64 = bins.iter().map(|bin| number(bin, "right")).sum();
    assert_eq!(json!(right / pixels), scores["aacc"]);

    // Pictures: the worst is the one with the lowest mIoU.
    let pictures = evaluation["pictures"].as_array().unwrap();
    assert_eq!(pictures.len(), 6);
    let of = |picture: &Value| picture["miou"].as_f64().unwrap();
    let worst = pictures
        .iter()
        .min_by(|a, b| of(a).total_cmp(&of(b)))
        .unwrap();
    let (_, after) = html
        .split_once("<h3>Lowest mIoU of a picture</h3>")
        .unwrap();
    let heading = format!(
        "<h4>{}: mIoU {} %, {} % of the pixels right</h4>",
        worst["name"].as_str().unwrap(),
        percent(&worst["miou"]),
        percent(&worst["aacc"])
    );
    assert!(after.trim_start().starts_with(&heading), "{heading}");
    let shots = after.split("</div>").next().unwrap();
    for kind in [
        "picture",
        "prediction over the picture",
        "truth",
        "wrong pixels in red",
    ] {
        assert!(
            shots.contains(&format!("<figcaption>{kind}</figcaption>")),
            "{kind}"
        );
    }
    assert_eq!(
        shots.matches("<img src=\"data:image/png;base64,").count(),
        4
    );
    assert!(html.contains("<h3>Highest mIoU of a picture</h3>"));

    // Slices: the lowest IoU of a class is that of a picture.
    let road = row(&html, "id=\"slices-1\"", "road");
    let ious = pictures
        .iter()
        .filter_map(|picture| picture["iou"][0].as_f64());
    let lowest = ious.fold(f64::INFINITY, f64::min);
    assert_eq!(road[2], percent(&json!(lowest)));

    // Configuration: what differs from the published recipe, and all of it.
    assert_eq!(
        row(&html, "id=\"configuration\"", "data.scale"),
        ["2048x1024", "64x32"]
    );
    assert!(text.contains("base_channels = 4"));
    assert!(
        text.contains("There is none: halfseg audit")
            || text.contains("There is none:  halfseg audit")
    );
}

fn names_from_files_are_no_markup(run: &Path, folder: &Path) {
    let strange = folder.join("a<b>&\"c'");
    copy(run, &strange);
    let evil = "<script>alert(1)</script>";
    edit(&strange.join("evaluation.json"), |evaluation| {
        evaluation["classes"]["names"][0] = evil.into();
        evaluation["classes"]["names"][1] = "\u{1b}[2J\"onload=\"x".into();
        evaluation["pictures"][0]["name"] = "../../<img src=x>".into();
        evaluation["pictures"][1]["name"] = format!("\"{evil}").into();
    });
    let toml = fs::read_to_string(strange.join("config.toml")).unwrap();
    let toml = toml.replace(
        "device = \"flex\"",
        "device = \"flex\"\ncheckpoint = \"<b>&.pth\"",
    );
    let toml = toml.replacen("checkpoint = \"\"\n", "", 1);
    fs::write(strange.join("config.toml"), toml).unwrap();
    fs::write(
        strange.join("audit.json"),
        json!({"operations": [{"site": evil, "op": "<i>", "policy": "f16", "relative_error": 0.5}], "precision": evil})
            .to_string(),
    )
    .unwrap();
    let log = strange.join("log.jsonl");
    let skip = json!({"event": "skip", "iteration": 6, "outcome": evil});
    fs::write(
        &log,
        fs::read_to_string(&log).unwrap() + &skip.to_string() + "\n",
    )
    .unwrap();
    let (html, text) = page(&[&strange]);
    for part in [evil, "a<b>&amp;\"c", "<b>&amp;.pth", "../../<img src=x>"] {
        assert!(text.contains(part), "{part}");
    }
    assert!(!html.contains("<script") && !html.contains("<img src=x") && !html.contains('\u{1b}'));
    assert!(text.contains("5.00e-1"));
}

fn what_is_missing_is_said(run: &Path, folder: &Path) {
    let changed = |name: &str, change: &dyn Fn(&Path)| {
        let copied = folder.join(name);
        copy(run, &copied);
        change(&copied);
        page(&[&copied]).1
    };
    let remove = |path: PathBuf| fs::remove_file(path).unwrap();
    let log = |run: &Path| run.join("log.jsonl");
    for (name, change, expected) in [
        (
            "no-log",
            (&|run: &Path| remove(log(run))) as &dyn Fn(&Path),
            &["no log.jsonl", "No iteration was logged"][..],
        ),
        (
            "cut",
            &|run: &Path| {
                let text = fs::read_to_string(log(run)).unwrap();
                fs::write(log(run), &text[..text.len() - 40]).unwrap();
            },
            &["A line of log.jsonl is not whole", "not finished"],
        ),
        (
            "damaged",
            &|run: &Path| {
                let bytes = [&b"\xff\xfe\n[1]\n"[..], &fs::read(log(run)).unwrap()].concat();
                fs::write(log(run), bytes).unwrap();
            },
            &["2 lines of log.jsonl are damaged"],
        ),
        (
            "no-config",
            &|run: &Path| fs::write(run.join("config.toml"), "data = 3").unwrap(),
            &["config.toml is not there or cannot be read"],
        ),
        // As earlier versions left it.
        (
            "earlier",
            &|run: &Path| remove(run.join("evaluation.json")),
            &[
                "did not count how probable predicted classes were",
                "kept no scores of single pictures",
                "taken for",
            ],
        ),
        (
            "scores-only",
            &|run: &Path| {
                remove(run.join("evaluation.json"));
                remove(run.join("run.json"));
            },
            &[
                "has no counts of the last evaluation",
                "% of the pixels are right",
            ],
        ),
        (
            "damaged-evaluation",
            &|run: &Path| fs::write(run.join("evaluation.json"), "{\"format\":").unwrap(),
            &["evaluation.json", "EOF"],
        ),
        (
            "no-pictures",
            &|run: &Path| fs::remove_dir_all(run.join("pictures")).unwrap(),
            &["drew no pictures"],
        ),
        (
            "no-difference",
            &|run: &Path| {
                for file in fs::read_dir(run.join("pictures")).unwrap() {
                    let file = file.unwrap().path();
                    if file.to_string_lossy().ends_with("_difference.png") {
                        fs::write(file, "no PNG").unwrap();
                    }
                }
            },
            &["wrong pixels in red:"],
        ),
        (
            "empty-log",
            &|run: &Path| {
                for name in [
                    "evaluation.json",
                    "run.json",
                    "scores.json",
                    "best.safetensors",
                ] {
                    remove(run.join(name));
                }
                remove(run.join("last_checkpoint"));
                fs::write(log(run), "").unwrap();
            },
            &[
                "was not evaluated so far",
                "No iteration was logged",
                "not known yet",
            ],
        ),
    ] {
        let text = changed(name, change);
        for expected in expected {
            assert!(
                text.contains(expected),
                "{name}: expected `{expected}` in {text}"
            );
        }
    }
    let error = Report::read(&[folder.join("nowhere")])
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("nowhere") && error.contains("log.jsonl"),
        "{error}"
    );
    assert!(matches!(
        Report::read::<PathBuf>(&[]),
        Err(ReportError::NoRuns)
    ));
}

fn runs_are_shown_side_by_side(run: &Path, folder: &Path) {
    let other = folder.join("other");
    let mut changed = recipe(4);
    changed.set("precision.dtype=bf16").unwrap();
    train(&changed, &other, &mut ());
    let (html, text) = page(&[run, &other]);
    let configuration = "id=\"configuration\"";
    assert_eq!(
        row(&html, configuration, "precision.dtype"),
        ["f16", "bf16"]
    );
    assert_eq!(row(&html, configuration, "schedule.iterations"), ["6", "4"]);
    assert!(
        !html
            .split_once(configuration)
            .unwrap()
            .1
            .contains(">data.scale</th>")
    );
    assert_eq!(
        row(&html, "id=\"overview\"", "iterations"),
        ["6 of 6", "4 of 4"]
    );
    let miou = [run, &other].map(|run| percent(&read_json(&run.join("scores.json"))["miou"]));
    let cells = row(&html, "id=\"classes\"", "mean");
    assert_eq!([&cells[0], &cells[1]], miou.each_ref());
    assert!(html.contains("id=\"calibration-2\"") && text.contains("Calibration: other"));
    // Runs of one name are told apart by their paths.
    let (_, text) = page(&[run, run]);
    assert!(text.contains(run.to_str().unwrap()));
}

fn only_reports_are_replaced(run: &Path) {
    let path = run.join("report.html");
    let report = Report::read(&[run]).unwrap();
    report.write(&path, false).unwrap();
    report.write(&path, false).unwrap();
    fs::write(&path, "<p>mine</p>").unwrap();
    let error = report.write(&path, false).unwrap_err().to_string();
    assert!(
        error.contains("report.html") && error.contains("--overwrite"),
        "{error}"
    );
    assert_eq!(fs::read_to_string(&path).unwrap(), "<p>mine</p>");
    report.write(&path, true).unwrap();
    markup::check(&fs::read_to_string(&path).unwrap());
    let nowhere = report.write(&run.join("no/where.html"), false).unwrap_err();
    assert!(matches!(nowhere, ReportError::Write { .. }));
}

/// Looks at a run while it goes on.
struct Looker {
    run: PathBuf,
    looks: Vec<String>,
}

impl Observer for Looker {
    fn evaluated(&mut self, _: u64, _: &halfseg_train::Scores, _: bool) {
        self.looks.push(page(&[&self.run]).1);
    }
}

#[test]
fn a_run_that_goes_on_has_a_report() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    let mut looker = Looker {
        run: run.clone(),
        looks: Vec::new(),
    };
    train(&recipe(4), &run, &mut looker);
    assert_eq!(looker.looks.len(), 2);
    for (look, iteration) in looker.looks.iter().zip([2, 4]) {
        assert!(
            look.contains(&format!("Of the evaluation after iteration {iteration}.")),
            "{look}"
        );
        assert!(look.contains("not finished") && look.contains("when the run has finished"));
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let there = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &there),
            false => {
                fs::copy(&path, there).unwrap();
            }
        }
    }
}
