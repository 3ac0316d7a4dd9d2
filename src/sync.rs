//! Locks, atomics, epochs and the count of held latches: the only file that names a lock's crate.
//!
//! Under `--cfg shuttle` the same names come from a model checker, which then sees every place where
//! threads can interleave. crossbeam-epoch is replaced there by a list of pinned guards that frees
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
    use std::collections::BTreeSet;
    use std::mem::take;
    use std::sync::Arc;
    use std::sync::PoisonError;
    pub(crate) use std::sync::atomic::Ordering;

    // A thread of the model that panics ends the execution; what it poisoned is only dropped after that.
    #[derive(Debug, Default)]
    pub(crate) struct Mutex<T>(shuttle::sync::Mutex<T>);
    pub(crate) type MutexGuard<'a, T> = shuttle::sync::MutexGuard<'a, T>;

    impl<T> Mutex<T> {
        pub(crate) fn new(value: T) -> Self {
            Mutex(shuttle::sync::Mutex::new(value))
        }
        pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner)
        }
        pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
            self.0.try_lock().ok()
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
            self.0.read().unwrap_or_else(PoisonError::into_inner)
        }
        pub(crate) fn try_read(&self) -> Option<RwLockReadGuard<'_, T>> {
            self.0.try_read().ok()
        }
        pub(crate) fn write(&self) -> RwLockWriteGuard<'_, T> {
            self.0.write().unwrap_or_else(PoisonError::into_inner)
        }
    }

    /// A pointer that is loaded and stored as one: one place to switch threads at.
    pub(crate) struct Shared<T> {
        stores: AtomicU64,
        value: std::sync::Mutex<Arc<T>>,
    }

    impl<T> Shared<T> {
        pub(crate) fn new(value: Arc<T>) -> Self {
            Shared { stores: AtomicU64::new(0), value: std::sync::Mutex::new(value) }
        }
        pub(crate) fn load(&self) -> Arc<T> {
            self.stores.load(Ordering::Acquire);
            Arc::clone(&self.value.lock().unwrap_or_else(PoisonError::into_inner))
        }
        pub(crate) fn store(&self, value: Arc<T>) {
            self.stores.fetch_add(1, Ordering::AcqRel);
            *self.value.lock().unwrap_or_else(PoisonError::into_inner) = value;
        }
    }

    std::thread_local! {
        /// The model checker runs all threads of one execution on one thread of the system, one at a time,
        /// and switches between them only at the locks and atomics above: this needs no lock.
        static EPOCH: RefCell<Epoch> = RefCell::default();
    }

    #[derive(Default)]
    struct Epoch {
        /// Numbers the guards as they are pinned.
        next: u64,
        pinned: BTreeSet<u64>,
        /// Each waits until all guards with a lower number are gone.
        jobs: Vec<(u64, Box<dyn FnOnce()>)>,
    }

    /// A pinned guard: keeps whatever was loaded under it.
    pub(crate) struct Guard {
        number: u64,
        kept: RefCell<Vec<Arc<dyn Any>>>,
    }

    pub(crate) fn pin() -> Guard {
        EPOCH.with_borrow_mut(|epoch| {
            let number = epoch.next;
            epoch.next += 1;
            epoch.pinned.insert(number);
            Guard { number, kept: RefCell::default() }
        })
    }

    impl Guard {
        /// Holds `value` for as long as the guard lives.
        pub(crate) fn keep(&self, value: Arc<dyn Any>) {
            self.kept.borrow_mut().push(value);
        }
    }

    impl Drop for Guard {
        fn drop(&mut self) {
            let due = EPOCH.with_borrow_mut(|epoch| {
                epoch.pinned.remove(&self.number);
                let oldest = epoch.pinned.first().copied().unwrap_or(epoch.next);
                let (due, waiting) =
                    take(&mut epoch.jobs).into_iter().partition(|job| job.0 <= oldest);
                epoch.jobs = waiting;
                let due: Vec<_> = due;
                due
            });
            due.into_iter().for_each(|(_, job)| job());
        }
    }

    /// Runs `job` once no guard pinned before now is left, and at that very moment.
    pub(crate) fn defer(_: &Guard, job: impl FnOnce() + Send + 'static) {
        EPOCH.with_borrow_mut(|epoch| epoch.jobs.push((epoch.next, Box::new(job))));
    }
}

pub(crate) use imp::*;

#[cfg(all(debug_assertions, not(shuttle)))]
std::thread_local! {
    static HELD: std::cell::Cell<u32> = const { std::cell::Cell::new(0) };
}

#[cfg(all(debug_assertions, shuttle))]
shuttle::thread_local! {
    static HELD: std::cell::Cell<u32> = std::cell::Cell::new(0);
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
