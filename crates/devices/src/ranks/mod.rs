//! Several processes that work on one job together.

mod launcher;
pub(crate) mod link;
#[cfg(feature = "mpi")]
pub(crate) mod mpi;
mod wire;

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

pub use launcher::Launched;
pub use wire::{ExchangePrecision, ParseExchangePrecisionError};

use link::Link;

/// Several processes that cannot be joined.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct RanksError {
    /// Why, and what to do.
    pub reason: String,
}

/// What one of several processes failed with.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {message}")]
pub struct RankFailure {
    /// Which process.
    pub rank: usize,
    /// The same as people call it, with its machine.
    pub name: String,
    /// What it said.
    pub message: String,
}

/// The processes that work on one job together, as seen from one of them: its ranks, in the words of MPI.
///
/// Every method that exchanges something is called by all of them in the same order, by one thread of each,
/// and waits for the others. In a process that is alone all of them are trivial.
#[derive(Clone, Default)]
pub struct Ranks {
    link: Option<Arc<dyn Link>>,
}

#[cfg(all(test, feature = "flex"))]
pub(crate) use wire::tests as wire_tests;

#[cfg(all(test, feature = "flex"))]
impl Ranks {
    pub(crate) fn of(link: Arc<dyn Link>) -> Self {
        Self { link: Some(link) }
    }
}

static CURRENT: OnceLock<Ranks> = OnceLock::new();
/// The first process that failed, once all know that the job ends.
static SPEAKER: OnceLock<usize> = OnceLock::new();
/// Whether the job goes beyond what [`Ranks::agree`] exchanges.
static BEGUN: AtomicBool = AtomicBool::new(false);

impl Ranks {
    /// Joins the processes that a launcher (`mpirun`, `mpiexec`, `srun`) has started together with this one,
    /// over MPI; a process without such a launcher is alone. `HALFSEG_RANKS=alone` makes it so.
    ///
    /// # Errors
    /// A `HALFSEG_RANKS` that is neither empty nor `alone`, a build without the feature `mpi`, and launchers and MPI libraries that do not fit each other.
    pub fn start() -> Result<Self, RanksError> {
        if let Some(ranks) = CURRENT.get() {
            return Ok(ranks.clone());
        }
        Launched::check_switch(std::env::var_os(launcher::SWITCH))?;
        let link = Launched::find().map(join).transpose()?;
        Ok(CURRENT.get_or_init(|| Self { link }).clone())
    }

    /// The processes that [`start`](Self::start) has joined; alone without.
    pub fn current() -> Self {
        CURRENT.get().cloned().unwrap_or_default()
    }

    /// The place of this process, from 0.
    pub fn rank(&self) -> usize {
        self.link.as_ref().map_or(0, |link| link.rank())
    }

    /// The number of processes.
    pub fn size(&self) -> usize {
        self.link.as_ref().map_or(1, |link| link.size())
    }

    /// Whether this process speaks and writes for all.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// The place of this process among those of its machine, and their number.
    pub fn local(&self) -> [usize; 2] {
        self.link.as_ref().map_or([0, 1], |link| link.local())
    }

    /// What people call a process, such as `rank 3 (node2, process 4711)`.
    pub fn name(&self, rank: usize) -> String {
        let link = self.link.as_ref();
        link.map_or_else(|| "this process".into(), |link| link.name(rank).to_owned())
    }

    /// How long the others are waited for before one that does not come is named and the job ended; without,
    /// forever.
    pub fn set_time_out(&self, time_out: Option<Duration>) {
        if let Some(link) = &self.link {
            link.set_time_out(time_out);
        }
    }

    /// The threads that this process should compute with, where several of a machine share its processors.
    /// All processes call it.
    pub fn fair_threads(&self) -> Option<NonZeroUsize> {
        self.link.as_ref()?;
        let own = launcher::own_processors();
        let host = self.name(self.rank());
        let host = host.split_once('(').map_or("", |(_, rest)| rest);
        let host = host.split_once(',').map_or("", |(host, _)| host).to_owned();
        let all = self.gather(format!("{host}\n{own}").as_bytes());
        let here = all.iter().filter_map(|told| {
            let (of, list) = std::str::from_utf8(told).ok()?.split_once('\n')?;
            (of == host).then(|| list.to_owned())
        });
        launcher::fair_share(&own, &here.collect::<Vec<_>>())
    }

    /// The bytes that all gave, in their order.
    pub fn gather(&self, own: &[u8]) -> Vec<Vec<u8>> {
        self.gather_told(own, false).1
    }

    /// Whether each process said `told`, and its bytes.
    fn gather_told(&self, own: &[u8], told: bool) -> (Vec<bool>, Vec<Vec<u8>>) {
        let Some(link) = &self.link else {
            return (vec![told], vec![own.to_vec()]);
        };
        let head = own.len() as u64 * 2 + u64::from(told);
        let mut heads = vec![0; 8 * link.size()];
        link.all_gather(&head.to_le_bytes(), &mut heads);
        let (heads, _) = heads.as_chunks::<8>();
        let heads: Vec<u64> = heads.iter().map(|head| u64::from_le_bytes(*head)).collect();
        let lengths: Vec<usize> = heads.iter().map(|head| (head / 2) as usize).collect();
        let told = heads.iter().map(|head| head % 2 == 1).collect();
        let mut all = vec![0; lengths.iter().sum()];
        if !all.is_empty() {
            link.all_gather_of(own, &lengths, &mut all);
        }
        let mut rest = all.as_slice();
        let parts = lengths.iter().map(|length| {
            let part;
            (part, rest) = rest.split_at(*length);
            part.to_vec()
        });
        (told, parts.collect())
    }

    /// The bytes of all, if each gives some; else what the first that failed says, on all of them. From then
    /// on the job ends, and [`speaker`](Self::speaker) is that process.
    ///
    /// # Errors
    /// What the first process that failed says.
    pub fn agree(&self, own: Result<&[u8], &str>) -> Result<Vec<Vec<u8>>, RankFailure> {
        let (bytes, failed) = match own {
            Ok(bytes) => (bytes, false),
            Err(message) => (message.as_bytes(), true),
        };
        let (failed, mut all) = self.gather_told(bytes, failed);
        let Some(rank) = failed.iter().position(|failed| *failed) else {
            return Ok(all);
        };
        let rank = *SPEAKER.get_or_init(|| rank);
        Err(RankFailure {
            rank,
            name: self.name(rank),
            message: String::from_utf8_lossy(&all.swap_remove(rank)).into_owned(),
        })
    }

    /// Whether it is so for any of the processes.
    pub fn any(&self, own: bool) -> bool {
        self.gather_told(&[], own).0.contains(&true)
    }

    /// The process that speaks of a failure that all know of, if there was one.
    pub fn speaker(&self) -> Option<usize> {
        SPEAKER.get().copied()
    }

    /// From now on processes exchange more than what [`agree`](Self::agree) does, so that one that fails can
    /// only end the others.
    pub fn begin(&self) {
        BEGUN.store(true, Ordering::Relaxed);
    }

    /// Whether a process that fails can still tell the others by [`agree`](Self::agree), to which all come.
    pub fn can_agree(&self) -> bool {
        self.speaker().is_none() && !BEGUN.load(Ordering::Relaxed)
    }

    /// Refuses processes that do not say the same of `what`.
    ///
    /// # Errors
    /// The first that says something else than the first process, with both texts.
    pub fn check_same(&self, what: &str, own: &str) -> Result<(), RankFailure> {
        let all = self.gather(own.as_bytes());
        let Some(rank) = all.iter().position(|told| *told != all[0]) else {
            return Ok(());
        };
        let message = differing(what, &all[0], &all[rank], &self.name(0));
        let rank = *SPEAKER.get_or_init(|| rank);
        Err(RankFailure {
            rank,
            name: self.name(rank),
            message,
        })
    }

    /// The bytes of the first process.
    pub fn broadcast(&self, own: Vec<u8>) -> Vec<u8> {
        let Some(link) = &self.link else { return own };
        let mut length = (own.len() as u64).to_le_bytes();
        link.broadcast(&mut length);
        let mut bytes = own;
        bytes.resize(u64::from_le_bytes(length) as usize, 0);
        link.broadcast(&mut bytes);
        bytes
    }

    /// Overwrites the values with those of the first process.
    pub fn broadcast_values(&self, values: &mut [f32]) {
        if let Some(link) = &self.link {
            link.broadcast(wire::bytes_mut(values));
        }
    }

    /// The values that all gave, equally many, in their order.
    ///
    /// # Panics
    /// If one gave another number: they do not run the same operations.
    pub fn gather_values(&self, own: &[f32]) -> Vec<f32> {
        match &self.link {
            Some(link) => wire::gather(&**link, own),
            None => own.to_vec(),
        }
    }

    /// Adds up, in the order of the processes, the values that all gave, equally many: all get the same sums to
    /// the last bit. In half precision each value is rounded once on its way to who adds it up, in f32, and
    /// each sum once on its way back.
    pub fn sum(&self, values: &mut [f32], precision: ExchangePrecision) {
        if let Some(link) = &self.link {
            wire::sum(&**link, values, precision);
        }
    }

    /// Adds up the values of all as the MPI library does it, for comparison: in no order that it promises, and
    /// perhaps not the same on all processes.
    ///
    /// # Panics
    /// If there are not as many `sums` as own values.
    pub fn all_reduce(&self, own: &[f32], sums: &mut [f32]) {
        match &self.link {
            Some(link) => link.all_reduce(own, sums),
            None => sums.copy_from_slice(own),
        }
    }

    /// Ends all processes at once with this exit code. What they print meanwhile may be lost.
    pub fn abort(&self, code: u8) -> ! {
        match &self.link {
            Some(link) => link.abort(code.into()),
            None => std::process::exit(code.into()),
        }
    }

    /// Waits for all, and leaves them. Nothing can be exchanged afterwards.
    pub fn finish(&self) {
        if let Some(link) = &self.link {
            link.finish();
        }
    }
}

impl fmt::Debug for Ranks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "rank {} of {}", self.rank(), self.size())
    }
}

#[cfg(feature = "mpi")]
fn join(launched: Launched) -> Result<Arc<dyn Link>, RanksError> {
    Ok(Arc::new(mpi::Mpi::join(launched)?))
}

#[cfg(not(feature = "mpi"))]
fn join(launched: Launched) -> Result<Arc<dyn Link>, RanksError> {
    Err(RanksError {
        reason: format!(
            "{} started {} processes, which this program cannot join: it was built without MPI; build it \
             with `--features mpi`, which needs the system's MPI (Debian: openmpi-bin libopenmpi-dev \
             libclang-dev), or set HALFSEG_RANKS=alone if each is to work for itself",
            launched.launcher, launched.size
        ),
    })
}

/// How two texts differ: the lines that are in one of them only, at most a few.
fn differing(what: &str, first: &[u8], other: &[u8], name: &str) -> String {
    const MOST: usize = 4;
    let [first, other] = [first, other].map(String::from_utf8_lossy);
    let only = |a: &str, b: &str| {
        let lines: Vec<&str> = a
            .lines()
            .filter(|line| !b.lines().any(|other| other == *line))
            .collect();
        let more = match lines.len().saturating_sub(MOST) {
            0 => String::new(),
            more => format!(" and {more} more lines"),
        };
        let shown: Vec<_> = lines.iter().take(MOST).copied().collect();
        format!("`{}`{more}", shown.join("; "))
    };
    format!(
        "expected the same {what} as {name}, which has {}; found {}",
        only(&first, &other),
        only(&other, &first)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_without_a_launcher_is_alone() {
        let ranks = Ranks::default();
        assert_eq!((ranks.rank(), ranks.size(), ranks.local()), (0, 1, [0, 1]));
        assert_eq!(ranks.gather(b"own"), [b"own"]);
        assert_eq!(ranks.agree(Ok(b"own")).unwrap(), [b"own"]);
        assert!(ranks.any(true) && !ranks.any(false));
        assert_eq!(ranks.check_same("recipe", "any"), Ok(()));
        assert_eq!(ranks.gather_values(&[1.5, 2.0]), [1.5, 2.0]);
        assert_eq!(ranks.broadcast(vec![1, 2]), [1, 2]);
        let mut values = [0.1];
        ranks.sum(&mut values, ExchangePrecision::F16);
        assert_eq!(values, [0.1], "nothing is exchanged, so nothing is rounded");
    }

    #[test]
    fn differing_texts_are_told_by_their_lines() {
        let text = differing(
            "recipe",
            b"a = 1\nb = 2\n[c]\nd = 4",
            b"a = 1\nb = 3\n[c]\nd = 4",
            "rank 0",
        );
        assert_eq!(
            text,
            "expected the same recipe as rank 0, which has `b = 2`; found `b = 3`"
        );
    }
}
