//! How much memory there is.

mod allocator;
#[cfg(unix)]
mod control_groups;

use std::fmt;
use std::fs;
use std::path::Path;

pub use allocator::keep_freed_memory;

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

/// Memory that this process may still take on the host, in bytes: what the system has available, limited
/// by every control group that the process is in, from its own to the topmost one (containers, SLURM,
/// `systemd-run`), and by its limits of address space and data (`ulimit`). What the process has freed and
/// keeps for itself (see [`keep_freed_memory`]) counts as available. `None` where none of it can be read
/// (not Linux).
pub fn available_memory() -> Option<Bytes> {
    let Bytes(left) = available_below(Path::new("/"))?;
    // Of what it keeps, it may never have touched some.
    let resident = resident_memory().map_or(0, |(now, _)| now.0);
    Some(Bytes(left + allocator::kept().min(resident)))
}

/// The same of the system whose `proc` and control groups are below `root`.
fn available_below(root: &Path) -> Option<Bytes> {
    let read = |path: &str| fs::read_to_string(root.join(path)).unwrap_or_default();
    let mut left: Vec<u64> = kib(&read("proc/meminfo"), "MemAvailable:")
        .into_iter()
        .collect();
    #[cfg(unix)]
    left.extend(control_groups::left(root));
    let (limits, status) = (read("proc/self/limits"), read("proc/self/status"));
    for (name, used) in [
        ("Max address space", "VmSize:"),
        ("Max data size", "VmData:"),
    ] {
        let limit = limits.lines().find_map(|line| line.strip_prefix(name));
        let soft = limit.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        left.extend(soft.map(|limit| limit.saturating_sub(kib(&status, used).unwrap_or(0))));
    }
    left.into_iter().min().map(Bytes)
}

/// The bytes of a line such as `MemAvailable:   123 kB`.
fn kib(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let number: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    number.checked_mul(1024)
}

/// Resident memory of this process in bytes, now and at its highest; `None` where the system does
/// not tell.
pub fn resident_memory() -> Option<(Bytes, Bytes)> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let field = |name: &str| kib(&text, name).map(Bytes);
    Some((field("VmRSS:")?, field("VmHWM:")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A system made of `files`, each a path and its text.
    fn system(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        root
    }

    #[track_caller]
    fn check(files: &[(&str, &str)], expected: Option<u64>) {
        assert_eq!(
            available_below(system(files).path()),
            expected.map(Bytes),
            "{files:?}"
        );
    }

    const MEMINFO: (&str, &str) = (
        "proc/meminfo",
        "MemTotal:  100 kB\nMemFree: 1 kB\nMemAvailable:     42 kB\n",
    );

    #[test]
    fn the_system_tells_what_is_available() {
        check(&[], None);
        check(&[MEMINFO], Some(42 * 1024));
        check(&[("proc/meminfo", "MemFree: 1 kB\n")], None);
    }

    #[test]
    fn every_group_on_the_path_limits_in_version_2() {
        let own = "sys/fs/cgroup/user.slice/job 1.scope";
        let base = [
            MEMINFO,
            ("proc/self/cgroup", "0::/user.slice/job 1.scope\n"),
            (
                "proc/self/mountinfo",
                "22 1 0:20 / /proc rw - proc proc rw\n\
                 30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
            ),
        ];
        let with = |more: &[(&str, &str)]| {
            let more = more.iter().map(|(name, text)| (name.to_string(), *text));
            let files: Vec<(String, &str)> = base
                .iter()
                .map(|(name, text)| (name.to_string(), *text))
                .chain(more)
                .collect();
            let files: Vec<(&str, &str)> =
                files.iter().map(|(name, text)| (&**name, *text)).collect();
            available_below(system(&files).path()).unwrap().0
        };
        let (max, current, stat) = (
            format!("{own}/memory.max"),
            format!("{own}/memory.current"),
            format!("{own}/memory.stat"),
        );
        // `systemd-run -p MemoryMax=1000`.
        let scope = [
            (&*max, "1000\n"),
            (&*current, "700\n"),
            (&*stat, "anon 1\ninactive_file 200\n"),
        ];
        assert_eq!(with(&scope), 500);
        assert_eq!(with(&[(&max, "max\n"), (&current, "700\n")]), 42 * 1024);
        // The slice above has less left than the scope.
        let mut both = scope.to_vec();
        both.push(("sys/fs/cgroup/user.slice/memory.max", "2000\n"));
        both.push(("sys/fs/cgroup/user.slice/memory.current", "1900\n"));
        assert_eq!(with(&both), 100);
        // Another job's limit is not this one's.
        let other = ("sys/fs/cgroup/user.slice/other.scope/memory.max", "1\n");
        assert_eq!(with(&[other]), 42 * 1024);
        // Use beyond the limit leaves nothing, and a limit alone is the most that there is.
        assert_eq!(with(&[(&max, "1000"), (&current, "3000")]), 0);
        assert_eq!(with(&[(&max, "1000")]), 1000);
    }

    #[test]
    fn every_group_on_the_path_limits_in_version_1() {
        // As SLURM nests them, with the hierarchies of a hybrid system.
        let base = [
            MEMINFO,
            (
                "proc/self/cgroup",
                "5:cpu,cpuacct:/\n4:memory:/slurm/uid_7/job_8/step_0\n0::/\n",
            ),
            (
                "proc/self/mountinfo",
                "34 31 0:32 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                 35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                 41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
            ),
        ];
        let unlimited = "9223372036854771712\n";
        let job = "sys/fs/cgroup/memory/slurm/uid_7/job_8";
        let (limit, used, stat, step) = (
            format!("{job}/memory.limit_in_bytes"),
            format!("{job}/memory.usage_in_bytes"),
            format!("{job}/memory.stat"),
            format!("{job}/step_0/memory.limit_in_bytes"),
        );
        let mut files = base.to_vec();
        files.push(("sys/fs/cgroup/memory/memory.limit_in_bytes", unlimited));
        files.push((&step, unlimited));
        check(&files, Some(42 * 1024));
        files.push((&limit, "8000\n"));
        files.push((&used, "6000\n"));
        files.push((&stat, "inactive_file 1\ntotal_inactive_file 500\n"));
        check(&files, Some(2500));
    }

    #[test]
    fn a_container_sees_its_own_group_where_the_hierarchy_is_mounted() {
        // Without a namespace of groups: the path begins with what is mounted.
        let limit = ("sys/fs/cgroup/memory/memory.limit_in_bytes", "3000");
        let inside = ("sys/fs/cgroup/memory/inner/memory.limit_in_bytes", "2000");
        let mount = (
            "proc/self/mountinfo",
            "9 8 0:32 /docker/abc /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n",
        );
        let own = ("proc/self/cgroup", "4:memory:/docker/abc\n");
        let inner = ("proc/self/cgroup", "4:memory:/docker/abc/inner\n");
        check(&[MEMINFO, mount, own, limit, inside], Some(3000));
        check(&[MEMINFO, mount, inner, limit, inside], Some(2000));
        // A group outside of the namespace, and one of another container.
        for path in ["4:memory:/../other\n", "4:memory:/docker/xyz\n"] {
            let outside = ("proc/self/cgroup", path);
            check(&[MEMINFO, mount, outside, limit, inside], Some(3000));
        }
        // Nothing is known of mounts.
        check(&[MEMINFO, ("sys/fs/cgroup/memory.max", "11")], Some(11));
        check(&[MEMINFO, limit], Some(3000));
    }

    #[test]
    fn mount_points_may_have_blanks_and_any_place() {
        let files = [
            ("proc/self/cgroup", "0::/a\n"),
            (
                "proc/self/mountinfo",
                "30 23 0:26 / /my\\040groups rw - cgroup2 none rw\n",
            ),
            ("my groups/a/memory.max", "77\n"),
        ];
        check(&files, Some(77));
    }

    #[test]
    fn limits_of_the_process_count() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units\n\
                      Max data size             unlimited            unlimited            bytes\n\
                      Max address space         40000                90000                bytes\n";
        let status = ("proc/self/status", "VmSize:\t      10 kB\nVmData:\t 3 kB\n");
        let space = ("proc/self/limits", limits);
        check(&[MEMINFO, space, status], Some(40_000 - 10 * 1024));
        let limits = limits.replacen("unlimited", "10000    ", 1);
        let data = ("proc/self/limits", &*limits);
        check(&[MEMINFO, data, status], Some(10_000 - 3 * 1024));
    }

    #[test]
    fn bytes_read_like_a_person_writes_them() {
        assert_eq!(Bytes(3 << 20).to_string(), "3 MiB");
        assert_eq!(Bytes(3 << 29).to_string(), "1.5 GiB");
    }
}
