//! Through the host's memory, between the threads of a process.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use burn::tensor::{Tensor, TensorData};

use super::Exchange;

/// A thread of a process whose group exchanges values through the host's memory. They are added in the
/// order of the members.
#[derive(Debug)]
pub struct HostExchange {
    rank: usize,
    group: Arc<Group>,
}

#[derive(Debug)]
struct Group {
    size: usize,
    state: Mutex<State>,
    changed: Condvar,
}

/// What the members of a group have given for the exchange that is under way.
#[derive(Debug)]
struct State {
    given: Vec<Option<TensorData>>,
    /// Members that have taken what all gave.
    taken: usize,
    /// Whether a member gave up, for which the others would wait forever.
    failed: bool,
}

impl HostExchange {
    /// The members of a new group of `size`, in their order.
    ///
    /// # Panics
    /// If `size` is 0.
    pub fn group(size: usize) -> Vec<Self> {
        assert!(size > 0, "a group has at least one worker");
        let group = Arc::new(Group {
            size,
            state: Mutex::new(State {
                given: vec![None; size],
                taken: 0,
                failed: false,
            }),
            changed: Condvar::new(),
        });
        let member = |rank| Self {
            rank,
            group: group.clone(),
        };
        (0..size).map(member).collect()
    }

    /// What all members gave, in their order. Waits for the others.
    ///
    /// # Panics
    /// If another member gave up.
    pub fn exchange(&self, own: TensorData) -> Vec<TensorData> {
        let mut state = self.wait(self.lock(), |state| state.given[self.rank].is_none());
        state.given[self.rank] = Some(own);
        self.group.changed.notify_all();
        let mut state = self.wait(state, |state| state.given.iter().all(Option::is_some));
        let all = state.given.iter().flatten().cloned().collect();
        state.taken += 1;
        if state.taken == self.group.size {
            state.taken = 0;
            state.given.fill(None);
            self.group.changed.notify_all();
        }
        all
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in another thread is found out by the flag.
        let state = self.group.state.lock();
        state.unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(
        &self,
        mut state: MutexGuard<'a, State>,
        ready: impl Fn(&State) -> bool,
    ) -> MutexGuard<'a, State> {
        loop {
            assert!(!state.failed, "another worker of this step panicked");
            if ready(&state) {
                return state;
            }
            let woken = self.group.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Exchange for HostExchange {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.group.size
    }

    fn gather(&self, own: Tensor<1>) -> Vec<Tensor<1>> {
        let device = own.device().inner();
        // Burn's fused backends keep a queue for each thread; a tensor in two of them can be freed by
        // one before the other has read it.
        let own = own.inner().into_data();
        let length = own.num_elements();
        let all = self.exchange(own).into_iter().map(|values| {
            assert_eq!(
                values.num_elements(),
                length,
                "workers exchanged different numbers of values"
            );
            Tensor::from_data(values, &device)
        });
        all.collect()
    }

    fn give_up(&self) {
        self.lock().failed = true;
        self.group.changed.notify_all();
    }
}
