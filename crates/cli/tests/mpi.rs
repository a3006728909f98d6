//! The program in several processes under `mpirun`, over TCP on this machine. `HALFSEG_KILLS` sets the number
//! of kills (4 unless given), `HALFSEG_SEED` their moments; `HALFSEG_REQUIRE_MPI` makes it an error that there is
//! no `mpirun`.

#![cfg(target_os = "linux")]

mod compared;
#[allow(dead_code, reason = "shared with the tests of the program's commands")]
#[path = "program/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use compared::{Moments, check_same, tensors, wait_for};
use halfseg_data::{SyntheticStreets, write_cityscapes_layout};
use serde_json::Value;
use support::{changed, halfseg, text};
use tempfile::TempDir;

/// Networks so narrow that an iteration takes milliseconds, and batches for two, three and four processes.
const NARROW: [&str; 18] = [
    "--method",
    "fcn",
    "--backbone",
    "resnet18",
    "--set",
    "model.stem_channels=8",
    "--set",
    "model.base_channels=4",
    "--set",
    "model.head_channels=8",
    "--set",
    "model.aux_channels=8",
    "--set",
    "train.pictures=1",
    "--scale",
    "64x32",
    "--crop",
    "32x32",
];
/// Evaluations, checkpoints and lines of the log out of step.
const RUN: [&str; 24] = [
    "--data",
    "synthetic",
    "--set",
    "data.synthetic_train=15",
    "--set",
    "data.synthetic_val=7",
    "--batch",
    "12",
    "--set",
    "train.log_every=4",
    "--set",
    "data.workers=1",
    "--loss-scale",
    "torch",
    "--ema",
    "0.9",
    "--eval-every",
    "6",
    "--checkpoint-every",
    "5",
    "--keep",
    "2",
    "--iterations",
    "21",
];
const LAST: u64 = 21;
/// No failure may take longer to end all.
const SOON: Duration = Duration::from_secs(30);

/// Whether there is an `mpirun`; says so if not.
fn has_mpirun() -> bool {
    let found = Command::new("mpirun").arg("--version").output();
    let required = std::env::var_os("HALFSEG_REQUIRE_MPI").is_some();
    if let Err(error) = &found {
        assert!(!required, "mpirun: {error}");
        eprintln!("skipped: mpirun: {error}");
    }
    found.is_ok()
}

/// The program in processes with these arguments each.
fn under_mpirun(processes: &[&[&str]], further: &[&str]) -> Command {
    let mut command = Command::new("mpirun");
    let usual = "--allow-run-as-root --oversubscribe --bind-to none --mca btl tcp,self \
                 --mca btl_tcp_if_include lo";
    command.args(usual.split(' ')).args(further);
    for (place, arguments) in processes.iter().enumerate() {
        if place > 0 {
            command.arg(":");
        }
        let (count, arguments) = arguments.split_first().expect("a number of processes");
        command.args(["-np", count, env!("CARGO_BIN_EXE_halfseg")]);
        command.args(arguments);
    }
    command
        .env_remove("RUST_BACKTRACE")
        .env("RAYON_NUM_THREADS", "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

fn training<'a>(processes: &'a str, out: &'a Path, how: &[&'a str]) -> Vec<&'a str> {
    [&[processes, "train", "--out", text(out)][..], how].concat()
}

fn new_run() -> Vec<&'static str> {
    [&NARROW[..], &RUN].concat()
}

fn ended(child: Child) -> (Option<i32>, String) {
    let output = child.wait_with_output().expect("the program ends");
    said(output)
}

fn said(output: Output) -> (Option<i32>, String) {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), said)
}

/// Runs to the end, which must come with `code` and these texts, and with one line of an error if it is one.
fn check(mut command: Command, code: i32, expected: &[&str]) -> String {
    let begun = Instant::now();
    let (found, said) = said(command.output().expect("mpirun starts"));
    assert_eq!(found, Some(code), "{said}");
    for text in expected {
        assert!(said.contains(text), "expected `{text}` in:\n{said}");
    }
    if code != 0 {
        let errors = said.lines().filter(|line| line.starts_with("error: "));
        assert_eq!(errors.count(), 1, "{said}");
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    }
    said
}

/// The processes that train into `out`, by rank.
fn ranks(out: &Path) -> BTreeMap<usize, u32> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(id) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        let read = |name: &str| fs::read(entry.path().join(name)).unwrap_or_default();
        let arguments = String::from_utf8_lossy(&read("cmdline")).into_owned();
        let is_ours = arguments.starts_with(env!("CARGO_BIN_EXE_halfseg"));
        if !is_ours || !arguments.contains(text(out)) {
            continue;
        }
        let variables = read("environ");
        let variables = String::from_utf8_lossy(&variables);
        let rank = variables
            .split('\0')
            .find_map(|variable| variable.strip_prefix("OMPI_COMM_WORLD_RANK="));
        found.extend(rank.and_then(|rank| Some((rank.parse().ok()?, id))));
    }
    found
}

fn signal(id: u32, name: &str) {
    // It may have ended by itself.
    let _ = Command::new("kill")
        .args([format!("-{name}"), id.to_string()])
        .stderr(Stdio::null())
        .status();
}

fn has_checkpoint(out: &Path) -> bool {
    out.join("last_checkpoint").exists()
}

/// Waits until `out` is trained into, beyond its first checkpoint and what `lines` of the log are there.
fn wait_until_training(child: &mut Child, out: &Path, lines: usize) {
    let log = out.join("log.jsonl");
    let count = || fs::read_to_string(&log).map_or(0, |log| log.lines().count());
    wait_for(child, "training", || has_checkpoint(out) && count() > lines);
}

fn lines(out: &Path) -> usize {
    fs::read_to_string(out.join("log.jsonl")).map_or(0, |log| log.lines().count())
}

#[test]
fn two_processes_leave_what_two_devices_of_one_do() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let [one, two, other] = ["one", "two", "other"].map(|name| folder.path().join(name));
    let how = new_run();
    let devices = [&how[..], &["--devices", "cpu,cpu"]].concat();
    let mut single = halfseg(&[]);
    single.args(&training("", &one, &devices)[1..]);
    check(single, 0, &["mIoU"]);
    // The second of them is told another folder, which it must not touch.
    let [first, second] = [&two, &other].map(|out| training("1", out, &how));
    let said = check(under_mpirun(&[&first, &second], &[]), 0, &["2 processes"]);
    assert!(!other.exists(), "the second process wrote");
    assert_eq!(said.matches("(best so far)").count(), {
        let log = fs::read_to_string(two.join("log.jsonl")).unwrap();
        log.matches("\"best\":true").count()
    });
    for name in [
        "iter_21.safetensors",
        "iter_21.state.safetensors",
        "best.safetensors",
    ] {
        let [a, b] = [&one, &two].map(|out| tensors(&out.join(name)));
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        for (tensor, bytes) in &a {
            assert!(bytes == &b[tensor], "{tensor} of {name} differs");
        }
    }
    let scores = |out: &Path| fs::read_to_string(out.join("scores.json")).unwrap();
    assert_eq!(scores(&one), scores(&two));
}

/// A Cityscapes tree with so many pictures in both splits.
fn cityscapes(folder: &Path, pictures: usize) -> PathBuf {
    let root = folder.join("cityscapes");
    for (split, seed) in [("train", 1), ("val", 2)] {
        let streets = SyntheticStreets::new(64, 32, pictures, seed);
        write_cityscapes_layout(&streets, &root, split, "town").unwrap();
    }
    root
}

/// A network after two iterations, trained by one process.
fn trained(folder: &TempDir) -> PathBuf {
    let out = folder.path().join("trained");
    let how = [
        &NARROW[..],
        &["--data", "synthetic", "--batch", "2", "--iterations", "2"],
    ]
    .concat();
    let mut single = halfseg(&[]);
    single.args(&training("", &out, &how)[1..]).args([
        "--set",
        "data.synthetic_val=2",
        "--set",
        "data.synthetic_train=4",
    ]);
    check(single, 0, &[]);
    out
}

/// All files below a folder.
fn contents(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let failed = |path: &Path, error| format!("{}: {error}", path.display());
    let files = halfseg_files::walk(folder, failed).unwrap();
    let named = |path: PathBuf| {
        let name = path.strip_prefix(folder).unwrap().to_owned();
        (name, fs::read(path).unwrap())
    };
    files.into_iter().map(named).collect()
}

/// Whether two results are the same but for the last digits of numbers.
fn nearly(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len()
                && a.iter()
                    .all(|(key, a)| b.get(key).is_some_and(|b| nearly(a, b)))
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| nearly(a, b))
        }
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            (a - b).abs() <= 1e-12 * a.abs()
        }
        _ => a == b,
    }
}

#[test]
fn evaluation_and_prediction_are_shared_and_the_same() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (weights, data) = (trained(&folder), cityscapes(folder.path(), 5));
    let at = |name: &str| text(&folder.path().join(name)).to_owned();
    let run = |processes: &str, arguments: &[&str]| match processes {
        "1" => {
            let mut single = halfseg(arguments);
            single.stdout(Stdio::null());
            check(single, 0, &[])
        }
        _ => check(
            under_mpirun(&[&[&[processes][..], arguments].concat()], &[]),
            0,
            &[],
        ),
    };
    for processes in ["1", "2", "3", "4"] {
        let [json, zip, kept, out] =
            ["json", "zip", "kept", "out"].map(|name| at(&format!("{name}-{processes}")));
        let evaluation = [
            "eval",
            "--checkpoint",
            text(&weights),
            "--data",
            text(&data),
        ];
        let keeping = ["--json", &json, "--zip", &zip, "--save-predictions", &kept];
        run(processes, &[&evaluation[..], &keeping].concat());
        let pictures = data.join("leftImg8bit");
        let predict = ["predict", "--checkpoint", text(&weights), "--out", &out];
        let said = run(processes, &[&predict[..], &[text(&pictures)]].concat());
        assert_eq!(said.matches("10 images segmented").count(), 1, "{said}");

        let read = |name: &str| fs::read(at(&format!("{name}-{processes}"))).unwrap();
        let one = |name: &str| fs::read(at(&format!("{name}-1"))).unwrap();
        assert!(read("zip") == one("zip"), "{processes}");
        for name in ["kept", "out"] {
            let [ours, one] = [processes, "1"]
                .map(|processes| contents(Path::new(&at(&format!("{name}-{processes}")))));
            assert_eq!(ours.len(), if name == "kept" { 5 } else { 30 });
            assert!(ours == one, "{name} of {processes}");
        }
        let [mut ours, mut alone] =
            [read("json"), one("json")].map(|json| serde_json::from_slice::<Value>(&json).unwrap());
        for json in [&mut ours, &mut alone] {
            json.as_object_mut().unwrap().remove("peak_bytes");
        }
        let official = ["cityscapes"].map(|key| [ours[key].take(), alone[key].take()]);
        assert!(official[0][0].is_object() && nearly(&official[0][0], &official[0][1]));
        assert_eq!(ours, alone, "{processes}");
    }
}

#[test]
fn all_stop_after_the_same_iteration_and_any_number_goes_on() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let endless = [("--iterations", "1000000"), ("--eval-every", "0")];
    let how = changed(&new_run(), &endless);
    let mut child = under_mpirun(&[&training("2", &out, &how)], &[])
        .spawn()
        .unwrap();
    wait_until_training(&mut child, &out, 3);
    signal(ranks(&out)[&1], "TERM");
    let (code, said) = ended(child);
    assert_eq!(code, Some(130), "{said}");
    assert_eq!(
        said.matches("interrupted after iteration").count(),
        1,
        "{said}"
    );

    // SIGUSR1 is what launchers hand on.
    let before = lines(&out);
    let resumed = training("3", &out, &["--resume"]);
    let mut child = under_mpirun(&[&resumed], &[]).spawn().unwrap();
    wait_until_training(&mut child, &out, before + 3);
    signal(child.id(), "USR1");
    let (code, said) = ended(child);
    assert_eq!(code, Some(130), "{said}");
    assert_eq!(
        said.matches("interrupted after iteration").count(),
        1,
        "{said}"
    );

    // Open MPI hands these on after a while, and ends all after another.
    for name in ["TERM", "INT"] {
        let before = lines(&out);
        let resumed = training("4", &out, &["--resume"]);
        let slow = ["--mca", "odls_base_sigkill_timeout", "3"];
        let mut child = under_mpirun(&[&resumed], &slow).spawn().unwrap();
        wait_until_training(&mut child, &out, before + 3);
        signal(child.id(), name);
        let (code, said) = ended(child);
        assert_ne!(code, Some(0), "{said}");
        let log = fs::read_to_string(out.join("log.jsonl")).unwrap();
        let last: Value = serde_json::from_str(log.lines().last().unwrap()).unwrap();
        let saved = fs::read_to_string(out.join("last_checkpoint")).unwrap();
        let saved: u64 = saved["iter_".len()..saved.find('.').unwrap()]
            .parse()
            .unwrap();
        let logged = last["iteration"].as_u64().unwrap();
        assert!(
            logged <= saved && saved < logged + 4,
            "{name}: {last} {saved}"
        );
    }
    let last = fs::read_to_string(out.join("last_checkpoint")).unwrap();
    let iterations = last["iter_".len()..last.find('.').unwrap()].to_owned();
    let mut single = halfseg(&[]);
    single.args([
        "train",
        "--resume",
        "--out",
        text(&out),
        "--iterations",
        &iterations,
    ]);
    check(single, 0, &["mIoU"]);

    // Five do not divide twelve.
    let refused = under_mpirun(&[&training("5", &out, &["--resume"])], &[]);
    check(refused, 2, &["train.batch", "a multiple of 5"]);
}

#[test]
fn an_error_of_one_process_ends_all_with_its_words() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let data = cityscapes(folder.path(), 4);
    let spoilt = data.join("leftImg8bit/train/town/town_000002_000000_leftImg8bit.png");
    let sound = fs::read(&spoilt).unwrap();
    fs::write(&spoilt, &sound[..sound.len() / 2]).unwrap();
    let out = folder.path().join("run");
    let how = [
        &NARROW[..],
        &["--data", text(&data), "--batch", "2", "--iterations", "9"],
    ]
    .concat();
    let train = under_mpirun(&[&training("2", &out, &how)], &[]);
    let said = check(
        train,
        1,
        &["town_000002_000000_leftImg8bit.png", "error: rank "],
    );
    assert!(!said.contains("panicked"), "{said}");

    // Before anything is exchanged: one line for all.
    let nothing = folder.path().join("nothing");
    let how = ["--data", text(&nothing), "--method", "fcn"];
    let train = under_mpirun(
        &[&training("3", &out, &[&how[..], &["--overwrite"]].concat())],
        &[],
    );
    check(train, 1, &["nothing", "error: rank 0"]);
    let wrong = under_mpirun(
        &[&training("2", &out, &["--data", "synthetic", "--lr", "0"])],
        &[],
    );
    check(wrong, 2, &["optimizer.lr"]);
}

#[test]
fn processes_that_differ_are_refused() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let (how, lower) = (new_run(), [&new_run()[..], &["--lr", "0.002"]].concat());
    let [first, second] = [&how, &lower].map(|how| training("1", &out, how));
    let said = check(
        under_mpirun(&[&first, &second], &[]),
        1,
        &["error: rank 1", "lr = 0.002", "lr = 0.01"],
    );
    assert!(!out.exists(), "nothing was begun: {said}");

    // The same path, with other pictures in it.
    let [here, there] = ["here", "there"].map(|name| folder.path().join(name));
    for (folder, pictures) in [(&here, 4), (&there, 5)] {
        fs::create_dir(folder).unwrap();
        cityscapes(folder, pictures);
    }
    let how = [&NARROW[..], &["--data", "cityscapes", "--batch", "2"]].concat();
    let run = training("1", &out, &how);
    let mut command = Command::new("mpirun");
    command.args("--allow-run-as-root --oversubscribe --mca btl tcp,self".split(' '));
    for (place, folder) in [here, there].iter().enumerate() {
        let join = if place > 0 { &[":"][..] } else { &[] };
        command
            .args(join)
            .args(["--wdir", text(folder), "-np", "1"]);
        command.arg(env!("CARGO_BIN_EXE_halfseg")).args(&run[1..]);
    }
    command.env("RAYON_NUM_THREADS", "1");
    check(
        command,
        1,
        &["4 pictures, fingerprint", "5 pictures, fingerprint"],
    );
    assert!(!out.exists());
}

#[test]
fn a_stalled_process_is_named_and_a_killed_one_ends_all() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let endless = [("--iterations", "1000000"), ("--eval-every", "0")];
    let how = changed(&new_run(), &endless);
    let how = [&how[..], &["--exchange-timeout", "2"]].concat();
    let mut child = under_mpirun(&[&training("3", &out, &how)], &[])
        .spawn()
        .unwrap();
    wait_until_training(&mut child, &out, 3);
    let stalled = ranks(&out)[&1];
    let begun = Instant::now();
    signal(stalled, "STOP");
    let (code, said) = ended(child);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_eq!(code, Some(1), "{said}");
    let named = format!("process {stalled}), which stalled");
    assert!(
        said.contains(&named) && said.contains("for rank 1 ("),
        "{said}"
    );
    let errors = said.lines().filter(|line| line.starts_with("error: "));
    assert_eq!(errors.count(), 1, "{said}");

    let before = lines(&out);
    let resumed = training("3", &out, &["--resume"]);
    let mut child = under_mpirun(&[&resumed], &[]).spawn().unwrap();
    wait_until_training(&mut child, &out, before + 3);
    let begun = Instant::now();
    signal(ranks(&out)[&2], "KILL");
    let (code, said) = ended(child);
    assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
    assert_ne!(code, Some(0), "{said}");
    assert!(ranks(&out).is_empty(), "{:?}", ranks(&out));
}

#[test]
fn a_run_whose_processes_are_killed_is_the_run_that_was_left_alone() {
    if !has_mpirun() {
        return;
    }
    let kills = std::env::var("HALFSEG_KILLS").map_or(4, |kills| kills.parse().unwrap());
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("whole");
    let how = new_run();
    let begun = Instant::now();
    check(
        under_mpirun(&[&training("2", &whole, &how)], &[]),
        0,
        &["mIoU"],
    );
    let time = begun.elapsed();
    let mut moments = Moments::new();
    let (mut killed, mut runs) = (0, 0);
    while killed < kills {
        runs += 1;
        let out = folder.path().join(format!("run-{runs}"));
        // So many in one run, and it may end.
        let mut left = 2 + moments.next() % 6;
        loop {
            let arguments = match has_checkpoint(&out) {
                true => training("2", &out, &["--resume"]),
                false => training("2", &out, &[&how[..], &["--overwrite"]].concat()),
            };
            let mut child = under_mpirun(&[&arguments], &[]).spawn().unwrap();
            if left > 0 && killed < kills {
                std::thread::sleep(moments.within(time));
            } else {
                wait_for(&mut child, "the end", || out.join("scores.json").exists());
            }
            let begun = Instant::now();
            let running = child.try_wait().unwrap().is_none();
            let victims = ranks(&out);
            let victim = victims.values().nth((moments.next() % 2) as usize);
            match victim.filter(|_| running && left > 0 && killed < kills) {
                Some(victim) => signal(*victim, "KILL"),
                None => {
                    let (code, said) = ended(child);
                    assert_eq!(code, Some(0), "{said}");
                    break;
                }
            }
            let (code, said) = ended(child);
            assert!(begun.elapsed() < SOON, "{:?}:\n{said}", begun.elapsed());
            // It may have been at its end.
            if code == Some(0) {
                break;
            }
            killed += 1;
            left -= 1;
        }
        check_same(
            &whole,
            &out,
            LAST,
            &format!("run {runs}, after {killed} kills"),
        );
        fs::remove_dir_all(&out).unwrap();
    }
    println!("{killed} kills in {runs} runs");
}

#[test]
fn the_exchange_is_measured() {
    if !has_mpirun() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let json = folder.path().join("json");
    let flags = [
        "bench",
        "--exchange",
        "--backbone",
        "resnet18",
        "--json",
        text(&json),
    ];
    check(under_mpirun(&[&[&["2"][..], &flags].concat()], &[]), 0, &[]);
    let json: Value = serde_json::from_slice(&fs::read(json).unwrap()).unwrap();
    assert_eq!(
        (
            json["processes"].as_u64(),
            json["seconds"].as_array().unwrap().len()
        ),
        (Some(2), 5)
    );
    assert!(json["ratio"].as_f64().unwrap() > 0.0 && json["bytes"].as_u64().unwrap() > 40_000_000);

    let mut single = halfseg(&[]);
    single.args(["bench", "--exchange"]);
    check(single, 2, &["expected several processes"]);
}
