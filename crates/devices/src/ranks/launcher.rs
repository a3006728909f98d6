//! What launchers of several processes tell each of them.

use std::ffi::OsString;
use std::num::NonZeroUsize;

use super::RanksError;

/// Set to [`ALONE`], it has processes of one launcher know nothing of each other.
pub(super) const SWITCH: &str = "HALFSEG_RANKS";
const ALONE: &str = "alone";

/// Each launcher, with the variables that hold a process's place and the number of processes.
const LAUNCHERS: [(&str, &str, &str); 4] = [
    (
        "mpirun (Open MPI)",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
    ),
    ("mpiexec (MPICH)", "PMI_RANK", "PMI_SIZE"),
    (
        "mpirun (MVAPICH2)",
        "MV2_COMM_WORLD_RANK",
        "MV2_COMM_WORLD_SIZE",
    ),
    // `SLURM_NTASKS` is set in a batch script, too, which is one process.
    ("srun (Slurm)", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
];

/// A process that was started together with others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Launched {
    /// By what.
    pub launcher: &'static str,
    /// Its place among them, from 0.
    pub rank: usize,
    /// How many there are, itself included: two or more.
    pub size: usize,
}

impl Launched {
    /// This process, if a launcher started it with others and `HALFSEG_RANKS` is not `alone`.
    pub fn find() -> Option<Self> {
        Self::find_in(|name| std::env::var(name).ok())
    }

    /// Refuses a `HALFSEG_RANKS` that says nothing known.
    pub(crate) fn check_switch(found: Option<OsString>) -> Result<(), RanksError> {
        match found {
            Some(found) if found != ALONE && !found.is_empty() => Err(RanksError {
                reason: format!(
                    "{SWITCH}: expected `{ALONE}`, or nothing, found `{}`",
                    found.display()
                ),
            }),
            _ => Ok(()),
        }
    }

    fn find_in(variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        if variable(SWITCH).as_deref() == Some(ALONE) {
            return None;
        }
        let number = |name: &str| variable(name)?.trim().parse::<usize>().ok();
        LAUNCHERS.iter().find_map(|&(launcher, rank, size)| {
            let (rank, size) = (number(rank)?, number(size)?);
            let launched = Self {
                launcher,
                rank,
                size,
            };
            (size > 1 && rank < size).then_some(launched)
        })
    }
}

/// The numbers in a list such as `0-3,8`, as `/proc/self/status` has those of the processors that a process
/// may run on.
fn count_listed(list: &str) -> Option<usize> {
    let ranges = list.trim().split(',').map(|range| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(last.checked_sub(first)? + 1)
    });
    ranges.sum()
}

/// The processors that this process may run on, as the system lists them; empty where it does not.
pub(crate) fn own_processors() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    list.unwrap_or_default().trim().to_owned()
}

/// The threads with which each of the processes of one machine should compute that may run on the
/// processors `own`: those are shared with all that list the same.
pub(crate) fn fair_share(own: &str, all: &[String]) -> Option<NonZeroUsize> {
    let sharing = all.iter().filter(|list| *list == own).count().max(1);
    NonZeroUsize::new((count_listed(own)? / sharing).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_launchers_are_told_from_single_ones() {
        let check = |variables: &[(&str, &str)], expected: Option<(usize, usize)>| {
            let found = Launched::find_in(|name| {
                let found = variables.iter().find(|(key, _)| *key == name);
                found.map(|(_, value)| (*value).to_owned())
            });
            let found = found.map(|found| (found.rank, found.size));
            assert_eq!(found, expected, "{variables:?}");
        };
        let ompi = [("OMPI_COMM_WORLD_RANK", "1"), ("OMPI_COMM_WORLD_SIZE", "4")];
        check(&ompi, Some((1, 4)));
        check(&[&ompi[..], &[("HALFSEG_RANKS", "alone")]].concat(), None);
        check(&[("PMI_RANK", "0"), ("PMI_SIZE", "2")], Some((0, 2)));
        check(&[("PMI_RANK", "0"), ("PMI_SIZE", "1")], None);
        check(&[("PMI_RANK", "2"), ("PMI_SIZE", "2")], None);
        check(
            &[("SLURM_PROCID", "3"), ("SLURM_STEP_NUM_TASKS", "8")],
            Some((3, 8)),
        );
        // A batch script's own process.
        check(&[("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8")], None);
        check(&[], None);
    }

    #[test]
    fn a_switch_that_says_nothing_known_is_refused() {
        for known in [None, Some(""), Some("alone")] {
            assert!(Launched::check_switch(known.map(OsString::from)).is_ok());
        }
        let error = Launched::check_switch(Some("Alone".into())).unwrap_err();
        let expected = "HALFSEG_RANKS: expected `alone`, or nothing, found `Alone`";
        assert!(error.to_string().contains(expected), "{error}");
    }

    #[test]
    fn processors_are_shared_with_those_that_may_use_the_same() {
        let check = |own: &str, all: &[&str], expected: Option<usize>| {
            let all: Vec<String> = all.iter().map(|list| (*list).to_owned()).collect();
            let found = fair_share(own, &all).map(NonZeroUsize::get);
            assert_eq!(found, expected, "{own}");
        };
        check("0-15", &["0-15", "0-15", "0-15", "0-15"], Some(4));
        check("0-7,16-23", &["0-7,16-23", "8-15,24-31"], Some(16));
        check("3", &["2", "3"], Some(1));
        check("0-1", &["0-1", "0-1", "0-1"], Some(1));
        check("", &["", ""], None);
        check("7-3", &["7-3"], None);
    }
}
