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
    pub(crate) use parking_lot::{Mutex, MutexGuard, RwLock, RwLockReadGuard, RwLockWriteGuard};
    pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    /// Runs `job` once no guard pinned before now is left.
    pub(crate) fn defer(guard: &Guard, job: impl FnOnce() + Send + 'static) {
        guard.defer(job);
    }
}

#[cfg(shuttle)]
mod imp {
    pub(crate) use shuttle::sync::atomic::{AtomicBool, AtomicU64};
    use std::any::Any;
    use std::cell::RefCell;
    use std::ops::{Deref, DerefMut};
    use std::sync::Arc;
    pub(crate) use std::sync::atomic::Ordering;

    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);
    pub(crate) type MutexGuard<'a, T> = shuttle::sync::MutexGuard<'a, T>;

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(shuttle::sync::Mutex::new(value))
        }
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().expect("a thread of the model panicked")
        }
    }

    #[derive(Debug, Default)]
    pub(crate) struct RwLock<T>(shuttle::sync::RwLock<T>);
    pub(crate) type RwLockReadGuard<'a, T> = shuttle::sync::RwLockReadGuard<'a, T>;
    pub(crate) type RwLockWriteGuard<'a, T> = shuttle::sync::RwLockWriteGuard<'a, T>;

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            RwLock(shuttle::sync::RwLock::new(value))
        }
        pub(crate) fn read(&self) -> RwLockReadGuard<'_, T> {
            self.0.read().expect("a thread of the model panicked")
        }
        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().expect("a thread of the model panicked")
        }
    }

    shuttle::lazy_static! {
        static ref EPOCH: shuttle::sync::Mutex<Epoch> = shuttle::sync::Mutex::new(Epoch::default());
    }

    /// Guards pinned now, and the jobs that wait until there is none.
    #[derive(Default)]
    struct Epoch {
        pinned: usize,
        jobs: Vec<Box<dyn FnOnce() + Send>>,
    }

    /// A pinned guard: keeps whatever was loaded under it.
    pub(crate) struct Guard(RefCell<Vec<Arc<dyn Any + Send + Sync>>>);

    pub(crate) fn pin() -> Guard {
        EPOCH.lock().expect("a thread of the model panicked").pinned += 1;
        Guard(RefCell::default())
    }

    impl Guard {
        /// Holds `value` for as long as the guard lives.
        pub(crate) fn keep<T: Any + Send + Sync>(&self, value: Arc<T>) -> Arc<T> {
            self.0.borrow_mut().push(Arc::clone(&value) as Arc<dyn Any + Send + Sync>);
            value
        }
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            let mut epoch = EPOCH.lock().expect("a thread of the model panicked");
            epoch.pinned -= 1;
            let jobs = if epoch.pinned == 0 { std::mem::take(&mut epoch.jobs) } else { Vec::new() };
            drop(epoch);
            jobs.into_iter().for_each(|job| job());
        }
    }

    /// Runs `job` once no guard pinned before now is left.
    pub(crate) fn defer(_: &Guard, job: impl FnOnce() + Send + 'static) {
        EPOCH.lock().expect("a thread of the model panicked").jobs.push(Box::new(job));
    }
}

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
