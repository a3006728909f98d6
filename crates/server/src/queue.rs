//! What waits for the network.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard};

/// A queue that takes so many things and no more.
pub(crate) struct Queue<T> {
    waiting: Mutex<Waiting<T>>,
    changed: Condvar,
    limit: usize,
}

struct Waiting<T> {
    things: VecDeque<T>,
    closed: bool,
}

/// Why a thing was not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    Full,
    Closed,
}

impl<T> Queue<T> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            waiting: Mutex::new(Waiting {
                things: VecDeque::new(),
                closed: false,
            }),
            changed: Condvar::new(),
            limit,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting<T>> {
        // Nothing that runs under the lock leaves it half done.
        self.waiting
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().things.len()
    }

    /// Takes a thing, or says why not.
    pub(crate) fn push(&self, thing: T) -> Result<(), Refused> {
        let mut waiting = self.lock();
        if waiting.closed {
            return Err(Refused::Closed);
        }
        if waiting.things.len() >= self.limit {
            return Err(Refused::Full);
        }
        waiting.things.push_back(thing);
        drop(waiting);
        self.changed.notify_one();
        Ok(())
    }

    /// Waits for a thing and gives it with those behind it, `most` together, that are `alike`. Nothing where the queue
    /// is closed and empty.
    ///
    /// Who is first is never passed over, so that nobody waits for ever.
    pub(crate) fn take(&self, most: usize, alike: impl Fn(&T, &T) -> bool) -> Option<Vec<T>> {
        let mut waiting = self.lock();
        loop {
            if let Some(first) = waiting.things.pop_front() {
                let mut taken = vec![first];
                let mut place = 0;
                while taken.len() < most && place < waiting.things.len() {
                    match alike(&taken[0], &waiting.things[place]) {
                        true => taken.extend(waiting.things.remove(place)),
                        false => place += 1,
                    }
                }
                return Some(taken);
            }
            if waiting.closed {
                return None;
            }
            waiting = self
                .changed
                .wait(waiting)
                .unwrap_or_else(|poisoned| poisoned.into_inner());
        }
    }

    /// Takes nothing from now on; what is there can still be taken out.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_alike_goes_together_and_who_is_first_goes_first() {
        let queue = Queue::new(6);
        for thing in [1, 12, 3, 14, 5, 7] {
            queue.push(thing).unwrap();
        }
        assert_eq!(queue.push(9), Err(Refused::Full));
        let alike = |a: &i32, b: &i32| a % 2 == b % 2;
        assert_eq!(queue.take(3, alike), Some(vec![1, 3, 5]));
        assert_eq!(queue.take(3, alike), Some(vec![12, 14]));
        queue.push(8).unwrap();
        queue.close();
        assert_eq!(queue.push(9), Err(Refused::Closed));
        assert_eq!(queue.take(3, alike), Some(vec![7]));
        assert_eq!(queue.take(3, alike), Some(vec![8]));
        assert_eq!(queue.take(3, alike), None);
    }

    #[test]
    fn who_waits_is_woken_by_a_thing_and_by_the_end() {
        let queue = Queue::new(1);
        std::thread::scope(|scope| {
            let waiting = || scope.spawn(|| queue.take(1, |_, _| true));
            let (one, other) = (waiting(), waiting());
            queue.push(5).unwrap();
            queue.close();
            let mut found = [one.join().unwrap(), other.join().unwrap()];
            found.sort();
            assert_eq!(found, [None, Some(vec![5])]);
        });
    }
}
