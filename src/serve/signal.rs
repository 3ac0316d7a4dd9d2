//! Wakes who sends to a replica, at next to no cost for those who write.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

/// Somebody who waits for something to do.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    is_set: Mutex<bool>,
    set: Condvar,
    /// Waits for a batch.
    wants_batches: AtomicBool,
}

impl Signal {
    fn state(&self) -> MutexGuard<'_, bool> {
        self.is_set.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a wait, or the next one if there is none.
    pub(crate) fn wake(&self) {
        *self.state() = true;
        self.set.notify_one();
    }

    /// Waits until somebody wakes it, or so long.
    pub(crate) fn wait(&self, at_most: Duration) {
        let state = self.state();
        let waited = self.set.wait_timeout_while(state, at_most, |is_set| !*is_set);
        *waited.unwrap_or_else(PoisonError::into_inner).0 = false;
        self.wants_batches.store(false, Ordering::Relaxed);
    }
}

/// All who want to be woken when a batch is committed.
#[derive(Debug, Default)]
pub(crate) struct Signals {
    /// Whether any does.
    ///
    /// SeqCst both ways, as `wants_batches`: who wants to be woken says so and then looks at the last batch; who commits makes that known and then
    /// looks here.
    are_wanted: AtomicBool,
    all: Mutex<Vec<Weak<Signal>>>,
}

impl Signals {
    fn all(&self) -> MutexGuard<'_, Vec<Weak<Signal>>> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One more that may want to be woken.
    pub(crate) fn add(&self, signal: &Arc<Signal>) {
        let mut all = self.all();
        all.retain(|signal| signal.strong_count() > 0);
        all.push(Arc::downgrade(signal));
    }

    /// The next batch is to wake `signal`. What was committed before this it sees.
    pub(crate) fn want(&self, signal: &Signal) {
        signal.wants_batches.store(true, Ordering::SeqCst);
        self.are_wanted.store(true, Ordering::SeqCst);
    }

    /// A batch was committed.
    #[inline]
    pub(crate) fn committed(&self) {
        if self.are_wanted.load(Ordering::SeqCst) {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        if !self.are_wanted.swap(false, Ordering::SeqCst) {
            return;
        }
        for signal in self.all().iter().filter_map(Weak::upgrade) {
            if signal.wants_batches.swap(false, Ordering::SeqCst) {
                signal.wake();
            }
        }
    }
}
