//! `halfseg plot`.

use std::fs;

use crate::support::*;

#[test]
fn runs_are_laid_over_published_logs() {
    let folder = tempfile::tempdir().unwrap();
    let run = trained(&folder, "fcn");
    let old = folder.path().join("20200717_230921.log.json");
    fs::write(
        &old,
        "{\"env_info\": \"x\"}\n{\"mode\": \"train\", \"epoch\": 1, \"iter\": 50, \"lr\": 0.01, \
         \"decode.loss_seg\": 1.5, \"decode.acc_seg\": 60.0, \"aux.loss_seg\": 0.5, \"loss\": 2.0, \
         \"time\": 0.5}\n{\"mode\": \"val\", \"epoch\": 1, \"iter\": 8, \"lr\": 0.01, \"mIoU\": 0.768}\n",
    )
    .unwrap();
    let new = folder.path().join("vis_data");
    fs::create_dir(&new).unwrap();
    fs::write(
        new.join("scalars.json"),
        "{\"lr\": 0.01, \"loss\": 2.5, \"decode.loss_ce\": 2.0, \"time\": 0.4, \"iter\": 50, \"step\": 50}\n\
         {\"mIoU\": 70.0, \"aAcc\": 90.0, \"step\": 50}\nnot a line\n",
    )
    .unwrap();
    let svg = folder.path().join("curves.svg");
    let args = [
        "plot",
        "--out",
        text(&svg),
        text(&run),
        text(&old),
        text(&new),
    ];
    let output = run_plot(&args);
    for line in [
        "fcn (halfseg): 2 iterations",
        "mIoU 76.80",
        "MMSegmentation 1.x",
        "mIoU 70.00",
    ] {
        assert!(output.contains(line), "{line}: {output}");
    }
    assert!(output.contains("1 line(s) left out"), "{output}");
    let drawn = fs::read_to_string(&svg).unwrap();
    for text in [
        "learning rate",
        "mIoU",
        "step time",
        "auxiliary loss",
        "accuracy",
        "20200717_230921",
    ] {
        assert!(drawn.contains(text), "{text}");
    }
    let csv = fs::read_to_string(folder.path().join("curves.csv")).unwrap();
    let mut lines = csv.lines();
    let head =
        "run,iteration,loss,decode_loss,auxiliary_loss,accuracy,learning_rate,mIoU,step_time";
    assert_eq!(lines.next(), Some(head));
    assert!(
        csv.contains("20200717_230921.log.json,50,2,1.5,0.5,60,0.01,76.8"),
        "{csv}"
    );
    assert_eq!(lines.count(), 4);
    check(
        &["plot", "--names", "a,b", text(&run)],
        2,
        &["expected 1 of them"],
    );
    check(&["plot", "--out", "a.csv", text(&run)], 2, &["one file"]);
    check(&["plot", text(&svg)], 1, &["is no log"]);
    check(
        &["plot", text(folder.path())],
        1,
        &["logs: name one of them"],
    );
}

fn run_plot(args: &[&str]) -> String {
    let output = run(args);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(0), "{said}");
    String::from_utf8(output.stdout).unwrap() + &said
}
