//! Locks, atomics, epochs and the count of held latches: the only file that names a lock's crate.
//!
//! Under `--cfg shuttle` the same names come from a model checker, which then sees every place where
//! threads can interleave. crossbeam-epoch is replaced there by a count of pinned guards that frees
//! at the earliest legal moment.
//!
//! Invariant: a thread that holds a latch enters no file, no link, no wait and no user code. Debug
//! builds count held latches per thread and [`assert_no_latch`] panics where that is broken.

#[cfg(not(shuttle))]
mod imp {
    pub(crate) use crossbeam_epoch::{Guard, pin};
    pub(crate) use parking_lot::{
        Condvar, Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard,
    };
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

    /// Runs `job` once no guard pinned before now is left.
    pub(crate) fn defer(guard: &Guard, job: impl FnOnce() + Send + 'static) {
        guard.defer(job);
    }
}

#[cfg(shuttle)]
mod imp;

pub(crate) use imp::*;

#[cfg(debug_assertions)]
std::thread_local! {
    static HELD: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

/// One latch held by this thread, counted in debug builds for [`assert_no_latch`].
#[derive(Debug)]
pub(crate) struct HeldLatch(());

impl HeldLatch {
    pub(crate) fn new() -> Self {
        #[cfg(debug_assertions)]
        HELD.with(|held| held.set(held.get() + 1));
        HeldLatch(())
    }
}

impl Drop for HeldLatch {
    fn drop(&mut self) {
        #[cfg(debug_assertions)]
        HELD.with(|held| held.set(held.get() - 1));
    }
}

/// Panics in debug builds if this thread holds a latch; `place` is where it must not.
#[inline]
#[track_caller]
pub(crate) fn assert_no_latch(place: &str) {
    #[cfg(debug_assertions)]
    HELD.with(|held| assert_eq!(held.get(), 0, "{place} entered with a latch held"));
    #[cfg(not(debug_assertions))]
    let _ = place;
}
