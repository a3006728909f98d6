//! Memory limits of the control groups that a process is in (cgroups(7), versions 1 and 2).

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

/// What each limit leaves that lies on the path from the process's own control group to the topmost one
/// that can be seen, in bytes, in all mounted hierarchies that limit memory. `root` holds `proc` and the
/// mounted folders. File pages that the kernel can drop count as free.
pub fn left(root: &Path) -> Vec<u64> {
    let read = |path: &str| fs::read(root.join(path)).unwrap_or_default();
    let groups = read("proc/self/cgroup");
    let groups = String::from_utf8_lossy(&groups);
    let mut mounts: Vec<Mount> = read("proc/self/mountinfo")
        .split(|&byte| byte == b'\n')
        .filter_map(Mount::parse)
        .collect();
    if mounts.is_empty() {
        let usual = |version, point: &str| Mount {
            version,
            root: "/".into(),
            point: point.into(),
        };
        mounts = vec![
            usual(Version::Two, "sys/fs/cgroup"),
            usual(Version::One, "sys/fs/cgroup/memory"),
        ];
    }
    let left = mounts.iter().flat_map(|mount| {
        let group = groups.lines().find_map(|line| mount.version.group(line));
        let point = root.join(&mount.point);
        let inner = group.and_then(|group| mount.below(group));
        // Where the group lies outside of what is mounted, what is mounted is the container's own.
        let inner = inner.unwrap_or_default();
        let folders: Vec<PathBuf> = inner.ancestors().map(|path| point.join(path)).collect();
        folders
            .into_iter()
            .filter_map(|folder| mount.version.left(&folder))
    });
    left.collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Version {
    /// The path of the process's group, if `line` of `/proc/self/cgroup` tells it:
    /// `NUMBER:CONTROLLERS:PATH`.
    fn group(self, line: &str) -> Option<&str> {
        let mut fields = line.splitn(3, ':');
        let (number, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let is_it = match self {
            Self::One => controllers.split(',').any(|name| name == "memory"),
            Self::Two => number == "0" && controllers.is_empty(),
        };
        is_it.then_some(path)
    }

    /// What the limit of the group in `folder` leaves; `None` without a limit.
    fn left(self, folder: &Path) -> Option<u64> {
        let [limit, used, droppable] = match self {
            Self::One => [
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
                "total_inactive_file",
            ],
            Self::Two => ["memory.max", "memory.current", "inactive_file"],
        };
        let text = |name: &str| fs::read_to_string(folder.join(name)).unwrap_or_default();
        let number = |name: &str| text(name).trim().parse::<u64>().ok();
        let limit = number(limit)?;
        let stat = text("memory.stat");
        let droppable = stat
            .lines()
            .find_map(|line| line.strip_prefix(droppable)?.strip_prefix(' '))
            .and_then(|value| value.trim().parse().ok())
            .unwrap_or(0);
        // A limit that nothing else is known of still is the most that there is.
        let used = number(used).unwrap_or(0).saturating_sub(droppable);
        Some(limit.saturating_sub(used))
    }
}

/// Where a hierarchy of control groups is mounted.
#[derive(Debug)]
struct Mount {
    version: Version,
    /// The group that is mounted.
    root: PathBuf,
    /// Where, without the leading `/`.
    point: PathBuf,
}

impl Mount {
    /// A line of `/proc/self/mountinfo` (proc_pid_mountinfo(5)), if it is of a hierarchy that may limit
    /// memory.
    fn parse(line: &[u8]) -> Option<Self> {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let end = fields.iter().position(|field| field == b"-")?;
        let options = fields.get(end + 3).copied().unwrap_or_default();
        let version = match *fields.get(end + 1)? {
            b"cgroup2" => Version::Two,
            b"cgroup" if options.split(|&byte| byte == b',').any(|o| o == b"memory") => {
                Version::One
            }
            _ => return None,
        };
        let point = unescaped(fields.get(4)?);
        Some(Self {
            version,
            root: unescaped(fields.get(3)?),
            point: point.strip_prefix("/").unwrap_or(&point).to_owned(),
        })
    }

    /// The path of `group` below what is mounted; `None` if it is elsewhere.
    fn below(&self, group: &str) -> Option<PathBuf> {
        let inner = Path::new(group).strip_prefix(&self.root).ok()?;
        let plain = |part: Component<'_>| matches!(part, Component::Normal(_));
        inner.components().all(plain).then(|| inner.to_owned())
    }
}

/// A path in which blanks and the like are written as a backslash and three octal digits.
fn unescaped(text: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(text.len());
    let mut rest = text;
    while let [first, after @ ..] = rest {
        let digits = after
            .get(..3)
            .and_then(|text| std::str::from_utf8(text).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match (first, byte) {
            (b'\\', Some(byte)) => {
                path.push(byte);
                rest = &after[3..];
            }
            _ => {
                path.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(path).into()
}
