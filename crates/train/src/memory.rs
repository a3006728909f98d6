//! How much memory there is.

use std::fmt;
use std::fs;
use std::path::Path;

/// A number of bytes, printed in GiB or MiB.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = self.0 as f64 / f64::from(1 << 20);
        if mib < 1024.0 {
            write!(f, "{mib:.0} MiB")
        } else {
            write!(f, "{:.1} GiB", mib / 1024.0)
        }
    }
}

/// Memory that a process may still take on the host, in bytes: what the system has available,
/// limited by the control group that it runs in. `None` where neither can be read (not Linux).
pub fn available_memory() -> Option<Bytes> {
    let system = fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| mem_available(&text));
    let group = control_group(Path::new("/sys/fs/cgroup"));
    match (system, group) {
        (Some(a), Some(b)) => Some(Bytes(a.min(b))),
        (a, b) => a.or(b).map(Bytes),
    }
}

/// The line `MemAvailable:   123 kB` of `/proc/meminfo`.
fn mem_available(text: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim()
        .strip_suffix("kB")?
        .trim()
        .parse::<u64>()
        .ok()
        .map(|kib| kib * 1024)
}

/// What a memory limit of version 2 or 1 of control groups leaves; file pages that the kernel can
/// drop count as free.
fn control_group(root: &Path) -> Option<u64> {
    let number = |path: &str| -> Option<u64> {
        fs::read_to_string(root.join(path))
            .ok()?
            .trim()
            .parse()
            .ok()
    };
    let stat = |path: &str, key: &str| -> u64 {
        let text = fs::read_to_string(root.join(path)).unwrap_or_default();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse().ok())
            .unwrap_or(0)
    };
    if let Some(limit) = number("memory.max") {
        let used = number("memory.current")?.saturating_sub(stat("memory.stat", "inactive_file"));
        return Some(limit.saturating_sub(used));
    }
    let limit = number("memory/memory.limit_in_bytes")?;
    let used = number("memory/memory.usage_in_bytes")?
        .saturating_sub(stat("memory/memory.stat", "total_inactive_file"));
    Some(limit.saturating_sub(used))
}

/// Resident memory of this process in bytes, now and at its highest; `None` where the system does
/// not tell.
pub fn resident_memory() -> Option<(Bytes, Bytes)> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| -> Option<Bytes> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(Bytes(kib * 1024))
    };
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_available_line() {
        let text = "MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:     42 kB\n";
        assert_eq!(mem_available(text), Some(42 * 1024));
        assert_eq!(mem_available("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn a_control_group_limits_what_is_available() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(control_group(root.path()), None);
        fs::write(root.path().join("memory.max"), "1000\n").unwrap();
        fs::write(root.path().join("memory.current"), "700\n").unwrap();
        fs::write(
            root.path().join("memory.stat"),
            "anon 1\ninactive_file 200\n",
        )
        .unwrap();
        assert_eq!(control_group(root.path()), Some(500));
        fs::write(root.path().join("memory.max"), "max\n").unwrap();
        assert_eq!(control_group(root.path()), None);
    }

    #[test]
    fn bytes_read_like_a_person_writes_them() {
        assert_eq!(Bytes(3 << 20).to_string(), "3 MiB");
        assert_eq!(Bytes(3 << 29).to_string(), "1.5 GiB");
    }
}
