//! What processes need of the library that connects them.

use std::fmt;
use std::time::Duration;

/// The connection of one process to the others of its job. All run the same calls in the same order, and
/// each waits for the others in each call.
///
/// Where a process does not come to a call within the time-out, another names it on stderr and ends all with
/// exit code 1.
pub(crate) trait Link: fmt::Debug + Send + Sync {
    /// The place of this process among all, from 0.
    fn rank(&self) -> usize;
    /// The number of processes.
    fn size(&self) -> usize;
    /// The place of this process among those of its machine, and their number.
    fn local(&self) -> [usize; 2];
    /// What people call a process: its rank, its machine and its number there.
    fn name(&self, rank: usize) -> &str;
    /// The bytes of all processes, which give equally many, in their order.
    fn all_gather(&self, own: &[u8], all: &mut [u8]);
    /// The same of `lengths` bytes each.
    fn all_gather_of(&self, own: &[u8], lengths: &[usize], all: &mut [u8]);
    /// Gives each process its part of `own`, in equal parts, and takes the parts that are this one's.
    fn all_to_all(&self, own: &[u8], all: &mut [u8]);
    /// Overwrites the bytes with those of the first process.
    fn broadcast(&self, bytes: &mut [u8]);
    /// Adds up the values of all as the library does it, to be compared with.
    fn all_reduce(&self, own: &[f32], sums: &mut [f32]);
    /// How long the others are waited for; without, forever.
    fn set_time_out(&self, time_out: Option<Duration>);
    /// Ends all processes with this exit code.
    fn abort(&self, code: i32) -> !;
    /// Waits for all, and leaves them.
    fn finish(&self);
}
