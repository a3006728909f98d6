//! How a run is shown: its report, event files, the dashboard.

use std::fs;

use crate::support::*;

#[cfg(feature = "report")]
#[test]
fn training_leaves_a_report_which_can_be_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(&folder, "fcn");
    let page = run.join("report.html");
    let first = fs::read_to_string(&page).unwrap();
    assert!(first.starts_with("<!DOCTYPE html>") && first.ends_with("</html>\n"));
    fs::remove_file(&page).unwrap();
    check(&["report", text(&run)], 0, &["wrote", "report.html"]);
    assert_eq!(fs::read_to_string(&page).unwrap(), first);

    // Elsewhere, and of several.
    let other = trained(&folder, "pspnet");
    let both = folder.path().join("both.html");
    check(
        &["report", "--out", text(&both), text(&run), text(&other)],
        0,
        &[],
    );
    let both_runs = fs::read_to_string(&both).unwrap();
    assert!(both_runs.contains("2 training runs") && both_runs.len() < 10_000_000);

    // Nothing else is replaced.
    let mine = folder.path().join("mine.html");
    fs::write(&mine, "<p>mine</p>").unwrap();
    let args = ["report", text(&run), "--out", text(&mine)];
    check(&args, 1, &["mine.html", "--overwrite"]);
    check(&[&args[..], &["--overwrite"]].concat(), 0, &[]);
    let log = run.join("log.jsonl");
    check(
        &["report", text(&run), "--out", text(&log)],
        1,
        &["cannot write"],
    );
    check(
        &["report", text(folder.path())],
        1,
        &["expected the folder of a run"],
    );
    check(&["report"], 2, &["RUN"]);
}

#[cfg(feature = "report")]
#[test]
fn a_report_is_written_while_a_run_goes_on_and_a_run_outlives_one_that_cannot_be() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let args = train_flags("fcn", "synthetic", &out);
    let flags = ["--eval-every", "1", "--report-every", "1"];
    // Somebody's page has the name.
    fs::create_dir(&out).unwrap();
    fs::write(out.join("report.html"), "<p>mine</p>").unwrap();
    let said = check(
        &[&args[..], &TINY, &flags].concat(),
        0,
        &[
            "the report was not written",
            "the run goes on without",
            "mIoU",
        ],
    );
    assert_eq!(said.matches("the run goes on without").count(), 1, "{said}");
    assert_eq!(
        fs::read_to_string(out.join("report.html")).unwrap(),
        "<p>mine</p>"
    );
    check(
        &[&args[..], &["--report-every", "0"]].concat(),
        2,
        &["--report-every"],
    );
}

#[test]
fn what_was_not_built_in_is_refused_before_anything_begins() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let events = folder.path().join("events");
    let args = train_flags("fcn", "synthetic", &out);
    for (flags, feature, built) in [
        (
            &["--tensorboard", text(&events)][..],
            "tensorboard",
            cfg!(feature = "tensorboard"),
        ),
        (&["--tui"], "tui", cfg!(feature = "tui")),
        (&["--report-every", "2"], "report", cfg!(feature = "report")),
    ] {
        if !built {
            let expected = format!("--features {feature}");
            check(&[&args[..], flags].concat(), 2, &[flags[0], &expected]);
        }
    }
    assert!(!out.exists() && !events.exists());
}

#[cfg(feature = "tensorboard")]
#[test]
fn events_go_on_with_the_run_and_belong_to_one() {
    let folder = tempfile::tempdir().unwrap();
    let (out, events) = (folder.path().join("run"), folder.path().join("events"));
    let args = train_flags("fcn", "synthetic", &out);
    let shown = ["--tensorboard", text(&events)];
    check(&[&args[..], &TINY, &shown].concat(), 0, &[]);
    let resume = [
        "train",
        "--resume",
        "--out",
        text(&out),
        "--iterations",
        "4",
    ];
    check(&[&resume[..], &shown].concat(), 0, &[]);
    let files = fs::read_dir(&events).unwrap().count();
    assert_eq!(files, 2);
    let scalars = halfseg_tensorboard::read_scalars(&events).unwrap();
    for (event, tag, key) in [
        ("train", "loss/total", "loss"),
        ("eval", "eval/mIoU", "miou"),
    ] {
        let factor = if event == "eval" { 100.0 } else { 1.0 };
        let lines = logged(&out, event).into_iter();
        let expected = lines.map(|line| {
            let value = factor * line[key].as_f64().unwrap();
            (line["iteration"].as_u64().unwrap(), value as f32)
        });
        let found = scalars.iter().filter(|scalar| scalar.tag == tag);
        let found: Vec<_> = found.map(|scalar| (scalar.step, scalar.value)).collect();
        assert_eq!(found, expected.collect::<Vec<_>>(), "{tag}");
    }
    assert!(scalars.iter().any(|scalar| scalar.tag == "iou/road"));

    let other = folder.path().join("other");
    let args = train_flags("fcn", "synthetic", &other);
    let args = [&args[..], &TINY, &shown].concat();
    check(&args, 1, &["event files", "choose another folder"]);
    assert!(!other.exists());
    check(&[&args[..], &["--overwrite"]].concat(), 0, &[]);
    let left = halfseg_tensorboard::read_scalars(&events).unwrap();
    assert_eq!(left.iter().map(|scalar| scalar.step).max(), Some(2));
}

#[cfg(feature = "tui")]
#[test]
fn without_a_terminal_the_dashboard_gives_way_to_lines() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let args = train_flags("fcn", "synthetic", &out);
    let said = check(
        &[&args[..], &TINY, &["--tui"]].concat(),
        0,
        &["--tui:", "mIoU"],
    );
    assert_eq!(said.matches("--tui:").count(), 1, "{said}");
    assert!(!said.contains('\u{1b}'), "{said}");
}
