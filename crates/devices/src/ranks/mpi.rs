//! Processes that the system's MPI connects.
//!
//! Threads: `MPI_THREAD_SERIALIZED` is asked for. A process has one thread at a time that exchanges (the one
//! that runs its first device), and a lock holds every call.
//!
//! Waiting: collectives are started and then tested for, so that a process that waits can look at the clock.
//! When the time-out is over it calls the roll on a communicator of its own: whoever waits in an exchange
//! answers, and the ranks that do not are those that stall.

use std::ffi::c_int;
use std::fmt;
use std::io::Write;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mpi_sys as ffi;

use super::RanksError;
use super::launcher::Launched;
use super::link::Link;

/// How long others may take to answer a call of the roll.
const ROLL_CALL: Duration = Duration::from_secs(3);
/// How long others wait for the one that names who did not answer, which is the first that calls the roll.
const GRACE: Duration = Duration::from_secs(5);
/// From then on a process that waits sleeps between looks: nothing is on its way that it would slow down.
const PATIENCE: Duration = Duration::from_secs(2);
const NAP: Duration = Duration::from_millis(1);
/// Tests between looks at the clock and at calls of the roll.
const LOOK: u32 = 256;
/// Bytes of a broadcast: MPI counts in 32 bits.
const PIECE: usize = 256 << 20;

/// Asks who is waiting, and with which call of the roll.
const WHO: c_int = 1;
/// The answer.
const HERE: c_int = 2;

/// This process among those of its job.
pub(crate) struct Mpi {
    rank: usize,
    local: [usize; 2],
    names: Vec<String>,
    /// In milliseconds; 0 waits forever.
    time_out: AtomicU64,
    calls: Mutex<Calls>,
}

/// What is used under the lock.
struct Calls {
    world: ffi::MPI_Comm,
    /// Of the roll call, so that it meets nothing else.
    control: ffi::MPI_Comm,
    exchanges: u64,
    roll_calls: u64,
    /// Messages that may still be on their way.
    sent: Vec<(ffi::MPI_Request, Box<[u64; 2]>)>,
    finished: bool,
}

// SAFETY: handles of MPI may be used from any thread where MPI was initialised with `MPI_THREAD_SERIALIZED`,
// as `join` sees to, and calls do not overlap, as the lock does.
unsafe impl Send for Calls {}

impl Mpi {
    /// Initialises MPI, once in the life of a process.
    pub fn join(launched: Launched) -> Result<Self, RanksError> {
        let refuse = |reason: String| Err(RanksError { reason });
        let (mut provided, mut rank, mut size) = (0, 0, 0);
        // SAFETY: MPI allows null for the arguments, and is initialised here alone; all other pointers are to
        // values that outlive the calls. Errors end the program, which is MPI's default.
        let (world, wanted) = unsafe {
            let wanted = ffi::RSMPI_THREAD_SERIALIZED;
            ffi::MPI_Init_thread(ptr::null_mut(), ptr::null_mut(), wanted, &mut provided);
            let world = ffi::RSMPI_COMM_WORLD;
            ffi::MPI_Comm_rank(world, &mut rank);
            ffi::MPI_Comm_size(world, &mut size);
            (world, wanted)
        };
        let (rank, size) = (rank as usize, size as usize);
        if provided < wanted {
            return refuse(format!(
                "expected an MPI library that takes calls from several threads in turn \
                 (MPI_THREAD_SERIALIZED, {wanted}), found level {provided}"
            ));
        }
        if size != launched.size {
            return refuse(format!(
                "{} started {} processes, of which MPI joins {size}: the launcher and the MPI library \
                 that this program was built with do not fit each other (under Slurm: `srun --mpi=pmix` \
                 or `--mpi=pmi2`, as `srun --mpi=list` has them)",
                launched.launcher, launched.size
            ));
        }
        // SAFETY: as above; both communicators are new.
        let (control, local) = unsafe {
            let (mut control, mut node) = (world, world);
            ffi::MPI_Comm_dup(world, &mut control);
            let kind = ffi::RSMPI_COMM_TYPE_SHARED;
            ffi::MPI_Comm_split_type(world, kind, rank as c_int, ffi::RSMPI_INFO_NULL, &mut node);
            let mut local = [0, 0];
            ffi::MPI_Comm_rank(node, &mut local[0]);
            ffi::MPI_Comm_size(node, &mut local[1]);
            ffi::MPI_Comm_free(&mut node);
            (control, local.map(|number| number as usize))
        };
        let mut this = Self {
            rank,
            local,
            names: vec![String::new(); size],
            time_out: AtomicU64::new(0),
            calls: Mutex::new(Calls {
                world,
                control,
                exchanges: 0,
                roll_calls: 0,
                sent: Vec::new(),
                finished: false,
            }),
        };
        this.exchange_names();
        Ok(this)
    }

    fn exchange_names(&mut self) {
        const LENGTH: usize = 80;
        let name = format!("{}, process {}", processor_name(), std::process::id());
        let mut own = [0; LENGTH];
        let length = name.len().min(LENGTH);
        own[..length].copy_from_slice(&name.as_bytes()[..length]);
        let mut all = vec![0; LENGTH * self.names.len()];
        self.all_gather(&own, &mut all);
        let name = |(rank, bytes): (usize, &[u8])| {
            let text = String::from_utf8_lossy(bytes);
            format!("rank {rank} ({})", text.trim_end_matches('\0'))
        };
        self.names = all.chunks_exact(LENGTH).enumerate().map(name).collect();
    }

    fn lock(&self) -> MutexGuard<'_, Calls> {
        // Nothing panics between two calls that belong together.
        self.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts an exchange on the communicator of all, and waits for it.
    ///
    /// # Safety
    /// `start` starts a collective operation whose memory is valid until this returns.
    unsafe fn exchange(&self, start: impl FnOnce(ffi::MPI_Comm, &mut ffi::MPI_Request)) {
        let mut calls = self.lock();
        // SAFETY: a constant of the library.
        let mut request = unsafe { ffi::RSMPI_REQUEST_NULL };
        start(calls.world, &mut request);
        calls.exchanges += 1;
        let begun = Instant::now();
        let mut tests = 0;
        while !test(&mut request) {
            tests += 1;
            if tests % LOOK == 0 {
                calls.answer();
                let time_out = self.time_out.load(Ordering::Relaxed);
                if time_out > 0 && begun.elapsed() > Duration::from_millis(time_out) {
                    self.call_roll(&mut calls, &mut request);
                    return;
                }
                if begun.elapsed() > PATIENCE {
                    std::thread::sleep(NAP);
                    // A test is short against the nap.
                    tests = LOOK - 16;
                }
            }
            // Several processes, or loaders of data, may share a processor.
            std::thread::yield_now();
        }
    }

    /// Finds out who is not in this exchange, and ends all processes with that, or returns when the exchange is
    /// over after all.
    fn call_roll(&self, calls: &mut Calls, request: &mut ffi::MPI_Request) {
        calls.roll_calls += 1;
        let own = [calls.roll_calls, calls.exchanges];
        let others = (0..self.names.len()).filter(|rank| *rank != self.rank);
        for rank in others.clone() {
            calls.send(rank as c_int, WHO, own);
        }
        let mut here = vec![false; self.names.len()];
        here[self.rank] = true;
        let begun = Instant::now();
        while begun.elapsed() < ROLL_CALL && here.contains(&false) {
            if test(request) {
                return;
            }
            calls.answer();
            while let Some((rank, [roll_call, exchanges])) = calls.receive(HERE) {
                // An answer to an earlier call says nothing, nor does one from another exchange.
                if [roll_call, exchanges] == own {
                    here[rank] = true;
                }
            }
            std::thread::sleep(NAP);
        }
        let missing: Vec<&str> = others
            .filter(|rank| !here[*rank])
            .map(|rank| &*self.names[rank])
            .collect();
        let first = here.iter().position(|here| *here) == Some(self.rank);
        let begun = Instant::now();
        while !first && begun.elapsed() < GRACE {
            if test(request) {
                return;
            }
            calls.answer();
            std::thread::sleep(NAP);
        }
        let seconds = self.time_out.load(Ordering::Relaxed) as f64 / 1000.0;
        let own = &self.names[self.rank];
        // Not by a panic: the exchange still has memory that would be freed.
        calls.end(&match missing.is_empty() {
            true => format!(
                "{own}: all processes wait in the same exchange, which is not over after {seconds} s: look \
                 for a fault of the network"
            ),
            false => format!(
                "{own} waited {seconds} s (train.exchange_timeout) for {}, which stalled or is not reached",
                missing.join(", ")
            ),
        })
    }
}

/// Whether an operation is over; its request is null then.
fn test(request: &mut ffi::MPI_Request) -> bool {
    let mut done = 0;
    // SAFETY: the request is one that MPI has given, or null; both pointers are valid.
    unsafe { ffi::MPI_Test(request, &mut done, ffi::RSMPI_STATUS_IGNORE) };
    done != 0
}

fn processor_name() -> String {
    // SAFETY: a constant of the library.
    let longest = unsafe { ffi::RSMPI_MAX_PROCESSOR_NAME };
    let mut name = vec![0u8; usize::try_from(longest).unwrap_or(256) + 1];
    let mut length = 0;
    // SAFETY: there is room for the longest name.
    unsafe { ffi::MPI_Get_processor_name(name.as_mut_ptr().cast(), &mut length) };
    name.truncate(usize::try_from(length).unwrap_or(0));
    String::from_utf8_lossy(&name).into_owned()
}

fn count(bytes: usize) -> c_int {
    c_int::try_from(bytes).expect("exchanges are taken in pieces of fewer bytes")
}

impl Calls {
    fn send(&mut self, rank: c_int, tag: c_int, message: [u64; 2]) {
        let message = Box::new(message);
        // SAFETY: the message stays where it is until its request is over.
        let request = unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let (data, bytes) = (message.as_ptr().cast(), ffi::RSMPI_UINT8_T);
            ffi::MPI_Isend(data, 16, bytes, rank, tag, self.control, &mut request);
            request
        };
        self.sent.push((request, message));
    }

    /// A message with this tag, and whom it is from, if one has come.
    fn receive(&mut self, tag: c_int) -> Option<(usize, [u64; 2])> {
        let mut message = [0u64; 2];
        let mut come = 0;
        // SAFETY: a status is plain numbers; what is probed for is taken by the same thread, under the lock.
        let rank = unsafe {
            let mut status: ffi::MPI_Status = std::mem::zeroed();
            let any = ffi::RSMPI_ANY_SOURCE;
            ffi::MPI_Iprobe(any, tag, self.control, &mut come, &mut status);
            if come == 0 {
                return None;
            }
            let (data, from) = (message.as_mut_ptr().cast(), status.MPI_SOURCE);
            let (bytes, ignored) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_STATUS_IGNORE);
            ffi::MPI_Recv(data, 16, bytes, from, tag, self.control, ignored);
            from
        };
        Some((rank as usize, message))
    }

    /// Ends all processes, this one with a message.
    fn end(&self, message: &str) -> ! {
        let line = format!("error: {message}\n");
        let _ = std::io::stderr().write_all(line.as_bytes());
        self.abort(1)
    }

    fn abort(&self, code: c_int) -> ! {
        // What was printed is on its way through the launcher, which ends with the first process.
        std::thread::sleep(Duration::from_millis(200));
        // SAFETY: MPI was initialised, and the lock is held.
        unsafe { ffi::MPI_Abort(self.world, code) };
        std::process::exit(code)
    }

    /// Tells those who call the roll in which exchange this process is.
    fn answer(&mut self) {
        self.sent.retain_mut(|(request, _)| !test(request));
        while let Some((rank, [roll_call, _])) = self.receive(WHO) {
            self.send(rank as c_int, HERE, [roll_call, self.exchanges]);
        }
    }
}

impl Link for Mpi {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.names.len()
    }

    fn local(&self) -> [usize; 2] {
        self.local
    }

    fn name(&self, rank: usize) -> &str {
        &self.names[rank]
    }

    fn all_gather(&self, own: &[u8], all: &mut [u8]) {
        assert_eq!(all.len(), own.len() * self.size());
        let bytes = count(own.len());
        // SAFETY: both are as long as MPI is told, and borrowed until the exchange is over.
        unsafe {
            self.exchange(|world, request| {
                let (kind, from, to) = (ffi::RSMPI_UINT8_T, own.as_ptr(), all.as_mut_ptr());
                let (from, to) = (from.cast(), to.cast());
                ffi::MPI_Iallgather(from, bytes, kind, to, bytes, kind, world, request);
            });
        }
    }

    fn all_gather_of(&self, own: &[u8], lengths: &[usize], all: &mut [u8]) {
        assert_eq!(all.len(), lengths.iter().sum::<usize>());
        assert_eq!(
            (own.len(), self.size()),
            (lengths[self.rank], lengths.len())
        );
        let counts: Vec<c_int> = lengths.iter().map(|length| count(*length)).collect();
        let mut end = 0;
        let starts = lengths.iter().map(|length| {
            let start = count(end);
            end += length;
            start
        });
        let starts: Vec<c_int> = starts.collect();
        // SAFETY: as above.
        unsafe {
            self.exchange(|world, request| {
                let (kind, bytes) = (ffi::RSMPI_UINT8_T, counts[self.rank]);
                let (from, to) = (own.as_ptr().cast(), all.as_mut_ptr().cast());
                let (counts, starts) = (counts.as_ptr(), starts.as_ptr());
                ffi::MPI_Iallgatherv(from, bytes, kind, to, counts, starts, kind, world, request);
            });
        }
    }

    fn all_to_all(&self, own: &[u8], all: &mut [u8]) {
        assert_eq!(own.len(), all.len());
        assert!(own.len().is_multiple_of(self.size()));
        let bytes = count(own.len() / self.size());
        // SAFETY: as above.
        unsafe {
            self.exchange(|world, request| {
                let (kind, from, to) = (ffi::RSMPI_UINT8_T, own.as_ptr(), all.as_mut_ptr());
                let (from, to) = (from.cast(), to.cast());
                ffi::MPI_Ialltoall(from, bytes, kind, to, bytes, kind, world, request);
            });
        }
    }

    fn broadcast(&self, bytes: &mut [u8]) {
        for piece in bytes.chunks_mut(PIECE) {
            // SAFETY: as above.
            unsafe {
                self.exchange(|world, request| {
                    let (data, length) = (piece.as_mut_ptr().cast(), count(piece.len()));
                    ffi::MPI_Ibcast(data, length, ffi::RSMPI_UINT8_T, 0, world, request);
                });
            }
        }
    }

    fn all_reduce(&self, own: &[f32], sums: &mut [f32]) {
        assert_eq!(own.len(), sums.len());
        let calls = self.lock();
        let (data, length) = (sums.as_mut_ptr().cast(), count(own.len()));
        // SAFETY: both are as long as MPI is told, and valid during the call, which waits.
        unsafe {
            let (kind, sum) = (ffi::RSMPI_FLOAT, ffi::RSMPI_SUM);
            ffi::MPI_Allreduce(own.as_ptr().cast(), data, length, kind, sum, calls.world);
        }
    }

    fn set_time_out(&self, time_out: Option<Duration>) {
        let limit = time_out.map_or(0, |limit| limit.as_millis().max(1) as u64);
        self.time_out.store(limit, Ordering::Relaxed);
    }

    fn abort(&self, code: i32) -> ! {
        self.lock().abort(code)
    }

    fn finish(&self) {
        if std::mem::replace(&mut self.lock().finished, true) {
            return;
        }
        // Not within MPI, where nobody looks at the clock.
        // SAFETY: there is no memory.
        unsafe {
            self.exchange(|world, request| {
                ffi::MPI_Ibarrier(world, request);
            });
        }
        let mut calls = self.lock();
        // Whoever called the roll meanwhile.
        calls.answer();
        // SAFETY: all exchanges are over, and nothing is called afterwards.
        unsafe { ffi::MPI_Finalize() };
    }
}

impl fmt::Debug for Mpi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.names[self.rank])
    }
}
