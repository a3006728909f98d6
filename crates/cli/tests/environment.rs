//! What the program does where the system gives it little: each time it ends as it should, with a
//! message that names what was missing and never with a panic.
//!
//! Linux only. What needs rights that the user lacks says that it is skipped.

#![cfg(target_os = "linux")]

#[allow(dead_code, reason = "shared with the tests of the program's commands")]
#[path = "program/support.rs"]
mod support;

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use support::*;
use tempfile::TempDir;

/// The longest that a command here may take, on a machine that does other things, too.
const LONGEST: Duration = Duration::from_secs(120);

/// How a command ended, and what it said on stderr.
struct Ended {
    what: String,
    status: ExitStatus,
    said: String,
}

impl Ended {
    fn check(&self, code: i32, expect: &[&str]) -> &Self {
        self.check_one_of(&[code]);
        for text in expect {
            assert!(
                self.said.contains(text),
                "{}: expected `{text}` in:\n{}",
                self.what,
                self.said
            );
        }
        self
    }

    /// Ended by itself, with one of `codes`, and without a panic.
    fn check_one_of(&self, codes: &[i32]) -> i32 {
        let Self { what, status, said } = self;
        let code = status.code().unwrap_or_else(|| {
            panic!("{what}: ended by signal {:?}:\n{said}", status.signal());
        });
        assert!(codes.contains(&code), "{what}: {code}:\n{said}");
        let panicked = said.contains("panicked") || said.contains("the program cannot go on");
        assert!(!panicked, "{what} panicked:\n{said}");
        assert!(
            code == 0 || !said.trim().is_empty(),
            "{what}: {code} without a word"
        );
        code
    }
}

/// Runs `command` to its end, which must come in time.
fn ended(mut command: Command) -> Ended {
    let what = format!("{command:?}");
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let child = child.unwrap_or_else(|error| panic!("{what}: {error}"));
    wait(child, what)
}

fn wait(mut child: Child, what: String) -> Ended {
    let mut stderr = child.stderr.take().expect("a pipe");
    // Read at the same time: a full pipe would stop the program.
    let reader = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = stderr.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    });
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begun.elapsed() > LONGEST {
            child.kill().unwrap();
            child.wait().unwrap();
            panic!(
                "{what}: not over after {LONGEST:?}:\n{}",
                reader.join().unwrap()
            );
        }
        std::thread::sleep(Duration::from_millis(3));
    };
    let said = reader.join().unwrap();
    Ended { what, status, said }
}

/// Sets a limit of the process that `command` starts.
fn limit(command: &mut Command, resource: libc::__rlimit_resource_t, value: u64) {
    let limit = libc::rlimit {
        rlim_cur: value,
        rlim_max: value,
    };
    let set = move || match unsafe { libc::setrlimit(resource, &limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    };
    // SAFETY: between fork and exec, this makes one system call and allocates nothing.
    unsafe { command.pre_exec(set) };
}

fn is_root() -> bool {
    // SAFETY: a system call that cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Nobody's id: limits and permissions do not hold for root.
const NOBODY: u32 = 65_534;

/// A folder that anyone may use, with a copy of the program in it that anyone may run, and a trained
/// network, a tree of pictures and a picture in it.
struct Place {
    folder: TempDir,
    program: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("halfseg");
        fs::copy(env!("CARGO_BIN_EXE_halfseg"), &program).unwrap();
        trained(&folder, "fcn");
        cityscapes(&folder);
        let all = Command::new("chmod")
            .arg("-R")
            .arg("a+rX")
            .arg(folder.path())
            .status();
        assert!(all.unwrap().success());
        let place = Self { folder, program };
        fs::set_permissions(place.at(""), fs::Permissions::from_mode(0o777)).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// The program, run by a user whom limits and permissions hold for.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(args)
            .env_remove("RUST_BACKTRACE")
            .current_dir(self.folder.path());
        if is_root() {
            command.uid(NOBODY).gid(NOBODY);
        }
        command
    }

    /// The same through a shell, whose script has the program and its arguments as `"$@"`.
    fn shell(&self, script: &str, args: &[&str]) -> Command {
        let mut command = Command::new("sh");
        command
            .args(["-c", script, "sh"])
            .arg(&self.program)
            .args(args);
        command
            .env_remove("RUST_BACKTRACE")
            .current_dir(self.folder.path());
        command
    }
}

const TRAIN: [&str; 7] = [
    "train",
    "--method",
    "fcn",
    "--data",
    "synthetic",
    "--out",
    "run",
];
const PREDICT: [&str; 6] = ["predict", "--checkpoint", "fcn", "--out", "pictures", IMAGE];
const EVAL: [&str; 9] = [
    "eval",
    "--checkpoint",
    "fcn",
    "--data",
    "cityscapes",
    "--zip",
    "a.zip",
    "--json",
    "a.json",
];
const IMAGE: &str = "cityscapes/leftImg8bit/val/town/town_000000_000000_leftImg8bit.png";

/// Each command that works for long, with what it must have left when it says that it is done.
fn jobs() -> [(Vec<&'static str>, &'static str); 3] {
    [
        ([&TRAIN[..], &TINY].concat(), "run/scores.json"),
        (
            PREDICT.to_vec(),
            "pictures/town_000000_000000_leftImg8bit_trainIds.png",
        ),
        (EVAL.to_vec(), "a.json"),
    ]
}

/// Removes what jobs leave.
fn clear(place: &Place) {
    for name in ["run", "pictures"] {
        let _ = fs::remove_dir_all(place.at(name));
    }
    for name in ["a.zip", "a.json"] {
        let _ = fs::remove_file(place.at(name));
    }
}

/// Neither temporary files nor halves of results.
fn check_no_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        assert!(!name.contains(".tmp"), "{} was left", path.display());
        if path.is_dir() && !path.is_symlink() {
            check_no_leftovers(&path);
        }
    }
}

#[test]
fn closed_streams_and_an_empty_environment_change_nothing() {
    let place = Place::new();
    for closed in ["<&- >&- 2>&-", "<&-", ">&-", "2>&-"] {
        for (args, result) in jobs() {
            clear(&place);
            let command = place.shell(&format!("exec \"$@\" {closed}"), &args);
            ended(command).check(0, &[]);
            assert!(place.at(result).is_file(), "{closed}: no {result}");
        }
    }
    for (args, result) in jobs() {
        clear(&place);
        let mut command = place.command(&args);
        // Neither HOME nor PATH.
        command.env_clear();
        ended(command).check(0, &[]);
        assert!(place.at(result).is_file(), "no {result}");
    }
}

#[test]
fn variables_that_nothing_understands_are_named_once() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("run");
    let train = [&train_flags("fcn", "synthetic", &out)[..], &TINY].concat();
    let zoo = ["zoo", "cityscapes"];
    for (name, value, args, expected, code) in [
        (
            "HALFSEG_ISA",
            "foo",
            &train[..],
            "portable, avx2, avx512, avx512bf16, amx or amxfp16",
            2,
        ),
        ("HALFSEG_F32", "foo", &train[..], "tiles or vector", 2),
        ("HALFSEG_RANKS", "foo", &train[..], "`alone`", 1),
        ("HALFSEG_OFFLINE", "foo", &zoo[..], "1 or 0", 1),
        ("HALFSEG_MIRROR", "foo", &zoo[..], "an address", 1),
    ] {
        let mut command = halfseg(args);
        command.env(name, value);
        let ended = ended(command);
        ended.check(code, &[name, expected, "found `foo`"]);
        let said = &ended.said;
        assert_eq!(said.matches(name).count(), 1, "{said}");
        assert!(!out.exists(), "{name}");
    }
    let mut command = halfseg(&train);
    command
        .env("HALFSEG_ISA", "portable")
        .env("HALFSEG_RANKS", "alone");
    ended(command).check(0, &[]);
}

#[test]
fn what_stdout_does_not_take_is_an_error_and_what_stderr_does_not_take_is_none() {
    let place = Place::new();
    let commands: [&[&str]; 7] = [
        &["info"],
        &["info", "--json", "-"],
        &["config"],
        &["completions", "bash"],
        &["man"],
        &["--help"],
        &["eval", "--checkpoint", "fcn", "--data", "cityscapes"],
    ];
    for args in commands {
        let full = || {
            fs::OpenOptions::new()
                .write(true)
                .open("/dev/full")
                .unwrap()
        };
        let mut command = place.command(args);
        command
            .stdin(Stdio::null())
            .stdout(full())
            .stderr(Stdio::piped());
        let found = wait(command.spawn().unwrap(), format!("{args:?} > /dev/full"));
        // clap prints its help itself, and fails without a word.
        if args != ["--help"] {
            found.check(1, &["cannot write to stdout", "No space left"]);
        }
        let mut command = place.command(args);
        let status = command.stdout(Stdio::null()).stderr(full()).status();
        assert_eq!(status.unwrap().code(), Some(0), "{args:?} 2> /dev/full");
    }
}

#[test]
fn few_file_handles_are_said() {
    let place = Place::new();
    let mut refused = 0;
    for handles in [4, 5, 6, 7, 8, 9, 10, 12, 16, 32] {
        for (args, result) in jobs() {
            clear(&place);
            let mut command = place.command(&args);
            limit(&mut command, libc::RLIMIT_NOFILE, handles);
            let found = ended(command);
            match found.check_one_of(&[0, 1]) {
                0 => assert!(place.at(result).is_file(), "{handles} handles: no {result}"),
                _ => {
                    refused += 1;
                    found.check(1, &["Too many open files"]);
                }
            }
            check_no_leftovers(place.folder.path());
        }
    }
    assert!((1..30).contains(&refused), "{refused} of 30 were refused");
}

#[test]
fn few_threads_are_said() {
    let place = Place::new();
    let mut refused = 0;
    for threads in 1..=6 {
        for (args, result) in jobs() {
            clear(&place);
            let mut command = place.command(&args);
            command.env("RAYON_NUM_THREADS", "4");
            limit(&mut command, libc::RLIMIT_NPROC, threads);
            let found = ended(command);
            match found.check_one_of(&[0, 1]) {
                0 => assert!(place.at(result).is_file(), "{threads} threads: no {result}"),
                _ => {
                    refused += 1;
                    found.check(1, &["thread"]);
                }
            }
        }
    }
    assert!(refused > 0, "no limit was felt");
}

#[test]
fn a_limit_of_file_sizes_is_said_and_leaves_no_halves() {
    let place = Place::new();
    let mut refused = 0;
    for bytes in [0, 100, 1000, 10_000, 100_000] {
        for (args, result) in jobs() {
            clear(&place);
            let mut command = place.command(&args);
            limit(&mut command, libc::RLIMIT_FSIZE, bytes);
            let found = ended(command);
            if found.check_one_of(&[0, 1]) == 1 {
                refused += 1;
                found.check(1, &["File too large"]);
                assert!(
                    !place.at(result).exists(),
                    "{bytes} bytes: {result} is there"
                );
            }
            check_no_leftovers(place.folder.path());
        }
    }
    assert!(refused >= 6, "{refused} of 15 were refused");
}

/// A disk of 256 KiB, in a name space of its own: its files are seen by the script alone.
#[test]
fn a_full_disk_is_said_and_leaves_no_halves() {
    let place = Place::new();
    let script = "mkdir -p disk && mount -t tmpfs -o size=256k tmpfs disk || exit 99
        \"$@\"; code=$?
        find disk -name '*.tmp*' >&2
        exit $code";
    let on_disk = |args: &[&'static str]| -> Vec<String> {
        let moved = ["run", "pictures", "a.zip", "a.json"];
        let place = |arg: &&str| match moved.contains(arg) {
            true => format!("disk/{arg}"),
            false => (*arg).to_owned(),
        };
        args.iter().map(place).collect()
    };
    for (args, _) in jobs() {
        let mut args = on_disk(&args);
        // More than the disk holds.
        match args[0].as_str() {
            "train" => args.extend(["--set", "model.head_channels=256"].map(str::to_owned)),
            "predict" => args.push("large.png".into()),
            _ => {}
        }
        // No filter of PNG makes it shorter.
        let hash = |i: u32| i.wrapping_mul(2_654_435_761).rotate_left(i % 29);
        let noise: Vec<u8> = (0..600 * 400 * 3)
            .map(|i| (hash(hash(i) ^ i) >> 9) as u8)
            .collect();
        write_png(
            &place.at("large.png"),
            (600, 400),
            png::ColorType::Rgb,
            &noise,
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--map-root-user", "sh", "-c", script, "sh"]);
        command
            .arg(&place.program)
            .args(&args)
            .current_dir(place.folder.path());
        let found = match command.stderr(Stdio::piped()).spawn() {
            Ok(child) => wait(child, format!("{args:?}")),
            Err(error) => {
                eprintln!("skipped: unshare: {error}");
                return;
            }
        };
        if found.said.contains("unshare:") || found.status.code() == Some(99) {
            eprintln!(
                "skipped: no disk can be mounted here: {}",
                found.said.trim()
            );
            return;
        }
        if args[0] == "eval" {
            // Small enough.
            found.check(0, &[]);
            continue;
        }
        found.check(1, &["disk/", "No space left on device"]);
        assert!(!found.said.contains(".tmp"), "{}", found.said);
    }
}

#[test]
fn folders_that_may_not_be_written_to_are_named() {
    let place = Place::new();
    for name in ["run", "pictures"] {
        fs::create_dir(place.at(name)).unwrap();
        fs::set_permissions(place.at(name), fs::Permissions::from_mode(0o555)).unwrap();
    }
    fs::set_permissions(place.at(""), fs::Permissions::from_mode(0o555)).unwrap();
    for (args, result) in jobs() {
        let name = Path::new(result).components().next().unwrap();
        let name = name.as_os_str().to_str().unwrap();
        let name = if name == "a.json" { "a.zip" } else { name };
        ended(place.command(&args)).check(1, &[name, "Permission denied"]);
    }
    fs::set_permissions(place.at(""), fs::Permissions::from_mode(0o777)).unwrap();
    // And files that may not be read.
    for name in ["fcn/best.safetensors", IMAGE] {
        fs::set_permissions(place.at(name), fs::Permissions::from_mode(0o000)).unwrap();
        let pictures = ["predict", "--checkpoint", "fcn", "--out", "others", IMAGE];
        ended(place.command(&pictures)).check(1, &[name, "Permission denied"]);
        fs::set_permissions(place.at(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
}

/// A run that would go on for a long time.
fn long_run(place: &Place, data: &str) -> (Child, String) {
    let args = train_flags("fcn", data, Path::new("run"));
    let more = ["--checkpoint-every", "1", "--eval-every", "0"];
    let tiny = changed(&TINY, &[("--iterations", "1000000")]);
    let mut command = place.command(&[&args[..], &tiny, &more].concat());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let what = format!("{command:?}");
    let child = command.spawn().unwrap();
    wait_until("a checkpoint", || place.at("run/last_checkpoint").exists());
    (child, what)
}

fn wait_until(what: &str, happened: impl Fn() -> bool) {
    let begun = Instant::now();
    while !happened() {
        assert!(begun.elapsed() < LONGEST, "no {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: a system call; the child is not waited for yet, so that the id is its own.
    unsafe { libc::kill(child.id() as i32, signal) };
}

#[test]
#[allow(
    clippy::disallowed_methods,
    reason = "folders are taken away, as somebody else would"
)]
fn folders_that_vanish_are_named() {
    let place = Place::new();
    // Of the run.
    let (child, what) = long_run(&place, "synthetic");
    fs::rename(place.at("run"), place.at("gone")).unwrap();
    wait(child, what).check(1, &["run/", "No such file or directory"]);
    // Of the data, which costs nothing that was learned.
    let (child, what) = long_run(&place, "cityscapes");
    fs::rename(place.at("cityscapes/leftImg8bit"), place.at("elsewhere")).unwrap();
    wait(child, what).check(
        1,
        &["leftImg8bit/train", "No such file or directory", "saved"],
    );
    fs::rename(place.at("elsewhere"), place.at("cityscapes/leftImg8bit")).unwrap();
    let mut again = place.command(&["train", "--resume", "--out", "run"]);
    let child = again
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let name = || fs::read_to_string(place.at("run/last_checkpoint")).unwrap();
    let before = name();
    wait_until("another checkpoint", || name() != before);
    signal(&child, libc::SIGTERM);
    wait(child, "the resumed run".into()).check(130, &["--resume"]);
    // The working folder.
    fs::create_dir(place.at("here")).unwrap();
    let script = "cd here && rmdir ../here && exec \"$@\"";
    let found = ended(place.shell(script, &[&TRAIN[..], &TINY].concat()));
    found.check(1, &["run", "No such file or directory"]);
}

#[test]
fn pipes_in_place_of_files_are_never_waited_for() {
    let place = Place::new();
    let pipe = |name: &str| {
        let _ = fs::remove_file(place.at(name));
        let path = std::ffi::CString::new(text(&place.at(name))).unwrap();
        // SAFETY: the path ends with a zero.
        assert_eq!(unsafe { libc::mkfifo(path.as_ptr(), 0o666) }, 0);
    };
    let kind = "expected a regular file";
    pipe("pipe");
    for args in [
        &[
            "predict",
            "--checkpoint",
            "pipe",
            "--out",
            "pictures",
            IMAGE,
        ][..],
        &["eval", "--checkpoint", "pipe", "--data", "cityscapes"],
        &["info", "--checkpoint", "pipe"],
        &["export", "--checkpoint", "pipe", "--out", "x.safetensors"],
        &[
            "train",
            "--checkpoint",
            "pipe",
            "--data",
            "synthetic",
            "--out",
            "run",
        ],
        &["train", "--data", "pipe", "--out", "run"],
        &[
            "score",
            "--predictions",
            "pipe",
            "--truth",
            "cityscapes/gtFine/val",
        ],
        &["predict", "--checkpoint", "fcn", "--out", "pipe", IMAGE],
        &[
            "predict",
            "--checkpoint",
            "fcn",
            "--out",
            "pictures",
            "pipe",
        ],
    ] {
        let found = ended(place.command(args));
        assert!([1, 2].contains(&found.check_one_of(&[1, 2])));
        assert!(
            found.said.contains("pipe"),
            "{}: {}",
            found.what,
            found.said
        );
    }
    // In the folder of a run.
    for name in [
        "last_checkpoint",
        "run.json",
        "log.jsonl",
        "config.toml",
        "run.lock",
    ] {
        let _ = fs::remove_dir_all(place.at("run"));
        let copied = Command::new("cp")
            .args(["-r", "fcn", "run"])
            .current_dir(place.at(""))
            .status();
        assert!(copied.unwrap().success());
        pipe(&format!("run/{name}"));
        fs::set_permissions(place.at("run"), fs::Permissions::from_mode(0o777)).unwrap();
        for how in [
            &["--resume"][..],
            &["--data", "synthetic", "--method", "fcn"],
        ] {
            let args = [&["train", "--out", "run"], how].concat();
            ended(place.command(&args)).check_one_of(&[0, 1]);
        }
    }
    // In the data.
    for name in [
        IMAGE,
        "cityscapes/gtFine/val/town/town_000000_000000_gtFine_labelIds.png",
    ] {
        let kept = fs::read(place.at(name)).unwrap();
        pipe(name);
        let found = ended(place.command(&["eval", "--checkpoint", "fcn", "--data", "cityscapes"]));
        found.check(1, &["town_000000_000000"]);
        assert!(
            found.said.contains(kind) || found.said.contains("label not found"),
            "{}",
            found.said
        );
        fs::remove_file(place.at(name)).unwrap();
        fs::write(place.at(name), kept).unwrap();
    }
}

#[test]
fn links_that_lead_to_themselves_are_named() {
    let place = Place::new();
    symlink("loop", place.at("loop")).unwrap();
    symlink("..", place.at("cityscapes/leftImg8bit/val/above")).unwrap();
    for args in [
        &[
            "predict",
            "--checkpoint",
            "loop",
            "--out",
            "pictures",
            IMAGE,
        ][..],
        &["predict", "--checkpoint", "fcn", "--out", "loop", IMAGE],
        &[
            "predict",
            "--checkpoint",
            "fcn",
            "--out",
            "pictures",
            "loop",
        ],
        &["eval", "--checkpoint", "fcn", "--data", "loop"],
        &[
            "eval",
            "--checkpoint",
            "fcn",
            "--data",
            "cityscapes",
            "--json",
            "loop",
        ],
        &[
            "train",
            "--method",
            "fcn",
            "--data",
            "synthetic",
            "--out",
            "loop",
        ],
        &["config", "--config", "loop"],
        &[
            "score",
            "--predictions",
            "loop",
            "--truth",
            "cityscapes/gtFine/val",
        ],
    ] {
        ended(place.command(args)).check(1, &["loop"]);
    }
    let all = [
        "predict",
        "--checkpoint",
        "fcn",
        "--out",
        "pictures",
        "cityscapes",
    ];
    ended(place.command(&all)).check(0, &["images segmented"]);
}

#[test]
fn a_run_that_is_stopped_for_a_while_goes_on() {
    let place = Place::new();
    let (child, what) = long_run(&place, "synthetic");
    signal(&child, libc::SIGSTOP);
    let state = || fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
    wait_until("stop", || state().contains(") T "));
    let before = fs::read_to_string(place.at("run/last_checkpoint")).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(
        fs::read_to_string(place.at("run/last_checkpoint")).unwrap(),
        before
    );
    signal(&child, libc::SIGCONT);
    wait_until("another checkpoint", || {
        fs::read_to_string(place.at("run/last_checkpoint")).unwrap() != before
    });
    signal(&child, libc::SIGTERM);
    wait(child, what).check(130, &["--resume"]);
}

#[test]
fn whoever_asks_for_the_end_gets_it() {
    let place = Place::new();
    for name in [libc::SIGINT, libc::SIGTERM, libc::SIGHUP] {
        let _ = fs::remove_dir_all(place.at("run"));
        let (child, what) = long_run(&place, "synthetic");
        signal(&child, name);
        wait(child, format!("{what}, signal {name}"))
            .check(130, &["saving what was learned", "--resume"]);
    }
    // A second time, while the first is being obeyed: a stopped process gets both at once.
    let _ = fs::remove_dir_all(place.at("run"));
    let (child, what) = long_run(&place, "synthetic");
    signal(&child, libc::SIGINT);
    std::thread::sleep(Duration::from_millis(1));
    signal(&child, libc::SIGINT);
    wait(child, what).check_one_of(&[130]);
    // And a job on many pictures.
    let pictures = place.at("many");
    fs::create_dir(&pictures).unwrap();
    for i in 0..2000 {
        fs::hard_link(place.at(IMAGE), pictures.join(format!("{i}.png"))).unwrap();
    }
    let args = [
        "predict",
        "--checkpoint",
        "fcn",
        "--out",
        "pictures",
        "many",
    ];
    let mut command = place.command(&args);
    let child = command
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("a picture", || {
        fs::read_dir(place.at("pictures")).is_ok_and(|all| all.count() > 3)
    });
    signal(&child, libc::SIGINT);
    wait(child, "predict".into()).check(130, &["interrupted after"]);
    check_no_leftovers(&place.at("pictures"));
}

#[test]
fn an_evaluation_that_is_killed_leaves_nothing_beside_its_archive() {
    let place = Place::new();
    fs::create_dir(place.at("archives")).unwrap();
    fs::set_permissions(place.at("archives"), fs::Permissions::from_mode(0o777)).unwrap();
    let many = [
        "--set",
        "data.synthetic_val=100000",
        "--zip",
        "archives/a.zip",
    ];
    let args = ["eval", "--checkpoint", "fcn", "--data", "synthetic", "-v"];
    for name in [libc::SIGKILL, libc::SIGTERM] {
        let mut command = place.command(&[&args[..], &many].concat());
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Until it has segmented a picture.
        let mut said = Vec::new();
        let mut stderr = child.stderr.take().unwrap();
        while !String::from_utf8_lossy(&said).contains("street_00000") {
            let mut some = [0; 256];
            let count = stderr.read(&mut some).unwrap();
            assert!(count > 0, "{}", String::from_utf8_lossy(&said));
            said.extend(&some[..count]);
        }
        signal(&child, name);
        drop(stderr);
        let status = child.wait().unwrap();
        assert!(
            status.signal() == Some(libc::SIGKILL) || status.code() == Some(130),
            "{status}"
        );
        assert_eq!(fs::read_dir(place.at("archives")).unwrap().count(), 0);
    }
}

#[test]
fn two_jobs_may_write_into_one_folder() {
    let place = Place::new();
    let args = [
        "eval",
        "--checkpoint",
        "fcn",
        "--data",
        "cityscapes",
        "--save-predictions",
        "kept",
    ];
    let more = ["--zip", "a.zip", "--json", "a.json"];
    let both = [(); 2].map(|()| {
        let mut command = place.command(&[&args[..], &more].concat());
        command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    });
    for child in both {
        wait(child, "one of two".into()).check(0, &[]);
    }
    assert_eq!(fs::read_dir(place.at("kept")).unwrap().count(), 2);
    assert_eq!(archived(&place.at("a.zip")).len(), 2);
    check_no_leftovers(place.folder.path());
}
