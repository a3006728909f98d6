//! Records for `--version` from which commit the program is built, and with which backends.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let version = env::var("CARGO_PKG_VERSION").unwrap_or_default();
    let commit = packaged().or_else(checked_out).unwrap_or("unknown".into());
    let built_in = |name: &&str| {
        let feature = format!("CARGO_FEATURE_{}", name.to_uppercase());
        env::var_os(feature).is_some()
    };
    let backends: Vec<_> = ["flex", "cuda", "wgpu"]
        .into_iter()
        .filter(built_in)
        .collect();
    let backends = match &backends[..] {
        [] => "none".into(),
        some => some.join(", "),
    };
    println!("cargo::rustc-env=HALFSEG_VERSION={version} (commit {commit}; backends {backends})");
}

/// The commit that `cargo package` wrote into the package.
fn packaged() -> Option<String> {
    const FILE: &str = ".cargo_vcs_info.json";
    let text = fs::read_to_string(FILE).ok()?;
    println!("cargo::rerun-if-changed={FILE}");
    let (_, value) = text.split_once("\"sha1\"")?;
    let commit = value.split('"').nth(1)?;
    let is_hash = commit.len() >= 12 && commit.bytes().all(|byte| byte.is_ascii_hexdigit());
    let dirty = text.contains("\"dirty\": true");
    is_hash.then(|| format!("{}{}", &commit[..12], if dirty { "-dirty" } else { "" }))
}

/// The commit that is checked out, if this package is part of a checkout and not only copied into one.
fn checked_out() -> Option<String> {
    git(&["ls-files", "--error-unmatch", "build.rs"])?;
    // The log of `HEAD` grows with each commit and checkout.
    for name in ["HEAD", "logs/HEAD"] {
        let path = PathBuf::from(git(&["rev-parse", "--git-path", name])?);
        if Path::new(&path).exists() {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    git(&["rev-parse", "--short=12", "HEAD"])
}

fn git(args: &[&str]) -> Option<String> {
    let output = Command::new("git").args(args).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
