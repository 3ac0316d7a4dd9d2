//! Group commit: one sync of the disk serves all who wait for one, and one of those who wait does it.
//!
//! The last of those who are expected syncs for all: he runs already, so that nobody is woken to begin. Each of the others
//! sleeps on a flag of his own and is called once: when what he waits for is on the disk, and then he goes his way
//! and takes no lock; or when it is his turn to see to those who are left.
//!
//! Knows neither files nor failures: a sync that fails makes nothing durable, and who waits is called in turn to fail himself.
//!
//! Invariant: while somebody waits, another syncs, or one of those who wait has limited patience, or one was
//! called whose turn it is and has not looked yet.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::position::Seq;

/// Nobody waits longer than this for others to come.
const PATIENCE: Duration = Duration::from_millis(5);

/// See the file's head.
pub(crate) struct Group {
    /// Release when set, acquire when read: what is up to a Seq that is seen here is on the disk.
    durable: AtomicU64,
    waiting: Mutex<Waiting>,
}

struct Waiting {
    stage: Stage,
    /// Who waits, and for what, in the order in which they came.
    queue: Vec<(Seq, Arc<Call>)>,
    /// How many there are to expect: all who were served by the last sync or came while it ran.
    expected: usize,
    /// How long that took.
    took: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Nobody syncs, and nobody was told to wait only so long.
    Idle,
    /// Not all are there who are expected; one of those who wait begins when his patience is over.
    Gathering,
    Syncing,
}

/// How one who waits is called.
#[derive(Default)]
struct Call {
    told: Mutex<Option<Told>>,
    rings: Condvar,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// What was waited for is on the disk.
    Durable,
    /// Look again: nobody else sees to those who wait.
    Turn,
}

/// Who has this syncs for all who wait. They are called when it is dropped, whatever became of the sync.
#[must_use = "all wait for its end"]
pub(crate) struct Lead<'a> {
    group: &'a Group,
    began: Instant,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic with one of these held is our bug and ends in a log that failed; what they protect is whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Group {
    /// Nobody waits, and all up to `durable` is on the disk.
    pub(crate) fn new(durable: Seq) -> Self {
        let took = Duration::ZERO;
        let waiting = Waiting { stage: Stage::Idle, queue: Vec::new(), expected: 0, took };
        Self { durable: AtomicU64::new(durable.0), waiting: Mutex::new(waiting) }
    }

    /// The last Seq that is on the disk.
    pub(crate) fn durable(&self) -> Seq {
        Seq(self.durable.load(Ordering::Acquire))
    }

    /// All up to `seq` is on the disk.
    pub(crate) fn made_durable(&self, seq: Seq) {
        self.durable.fetch_max(seq.0, Ordering::AcqRel);
    }

    /// `seq` and no more is on the disk, of a log that begins anew.
    pub(crate) fn restart(&self, seq: Seq) {
        self.durable.store(seq.0, Ordering::Release);
    }

    /// Waits until `seq` is on the disk, `None`, or until the caller is to sync for all who wait.
    pub(crate) fn join(&self, seq: Seq) -> Option<Lead<'_>> {
        if self.durable() >= seq {
            return None;
        }
        loop {
            let mut waiting = lock(&self.waiting);
            if self.durable() >= seq {
                // It may have been our turn to see to the others.
                if waiting.stage == Stage::Idle {
                    self.pass_on(waiting);
                }
                return None;
            }
            let are_all_here = waiting.queue.len() + 1 >= waiting.expected;
            let patience = match waiting.stage {
                Stage::Syncing => None,
                _ if are_all_here => return Some(self.lead(waiting)),
                Stage::Gathering => None,
                Stage::Idle => {
                    waiting.stage = Stage::Gathering;
                    // Those who were in the last sync are just being told and mostly come again at once: without a
                    // moment's patience they would miss this one, and each sync would serve half of them.
                    Some((waiting.took / 4).min(PATIENCE))
                }
            };
            let call = Arc::new(Call::default());
            waiting.queue.push((seq, Arc::clone(&call)));
            drop(waiting);
            let told = match call.wait_for(patience) {
                Some(told) => told,
                None => {
                    let mut waiting = lock(&self.waiting);
                    let is_us = |(_, other): &(Seq, Arc<Call>)| Arc::ptr_eq(other, &call);
                    let at = waiting.queue.iter().position(is_us);
                    if let (Stage::Gathering, Some(at)) = (waiting.stage, at) {
                        waiting.queue.remove(at);
                        if self.durable() >= seq {
                            self.pass_on(waiting);
                            return None;
                        }
                        return Some(self.lead(waiting));
                    }
                    // Somebody else has begun, and will call us or has.
                    drop(waiting);
                    call.wait()
                }
            };
            if told == Told::Durable {
                return None;
            }
        }
    }

    fn lead(&self, mut waiting: MutexGuard<'_, Waiting>) -> Lead<'_> {
        waiting.stage = Stage::Syncing;
        Lead { group: self, began: Instant::now() }
    }

    /// Calls all whose records are on the disk, and of the others the first, to see to the rest.
    fn pass_on(&self, mut waiting: MutexGuard<'_, Waiting>) {
        waiting.stage = Stage::Idle;
        let durable = self.durable();
        let served = waiting.queue.extract_if(.., |(seq, _)| *seq <= durable);
        let served: Vec<_> = served.map(|(_, call)| call).collect();
        let next = (!waiting.queue.is_empty()).then(|| waiting.queue.remove(0));
        drop(waiting);
        if let Some((_, call)) = next {
            call.tell(Told::Turn);
        }
        served.iter().for_each(|call| call.tell(Told::Durable));
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut waiting = lock(&self.group.waiting);
        waiting.took = self.began.elapsed();
        waiting.expected = waiting.queue.len() + 1;
        self.group.pass_on(waiting);
    }
}

impl Call {
    fn tell(&self, told: Told) {
        *lock(&self.told) = Some(told);
        self.rings.notify_one();
    }

    fn wait(&self) -> Told {
        let is_silent = |told: &mut Option<Told>| told.is_none();
        let told = self.rings.wait_while(lock(&self.told), is_silent);
        told.unwrap_or_else(PoisonError::into_inner).expect("that is what was waited for")
    }

    /// `None` if nobody called for so long.
    fn wait_for(&self, patience: Option<Duration>) -> Option<Told> {
        let Some(patience) = patience else { return Some(self.wait()) };
        let is_silent = |told: &mut Option<Told>| told.is_none();
        let waited = self.rings.wait_timeout_while(lock(&self.told), patience, is_silent);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Barrier;
    use std::sync::atomic::AtomicUsize;
    use std::thread;

    use super::*;

    /// A log of which a sync takes a moment: `made` batches, of which `synced` are on the disk.
    struct Fake {
        group: Group,
        made: AtomicU64,
        synced: AtomicU64,
        leads: AtomicUsize,
    }

    impl Fake {
        fn new() -> Self {
            Fake {
                group: Group::new(Seq(0)),
                made: AtomicU64::new(0),
                synced: AtomicU64::new(0),
                leads: AtomicUsize::new(0),
            }
        }

        fn sync(&self) {
            let target = self.made.load(Ordering::SeqCst);
            // A while, in which others come.
            thread::yield_now();
            self.synced.fetch_max(target, Ordering::SeqCst);
            self.group.made_durable(Seq(target));
        }

        fn commit(&self) {
            let seq = self.made.fetch_add(1, Ordering::SeqCst) + 1;
            while let Some(lead) = self.group.join(Seq(seq)) {
                assert_eq!(self.leads.fetch_add(1, Ordering::SeqCst), 0, "one at a time");
                self.sync();
                self.leads.fetch_sub(1, Ordering::SeqCst);
                drop(lead);
            }
            assert!(self.synced.load(Ordering::SeqCst) >= seq, "{seq} was not on the disk");
        }
    }

    #[test]
    fn nobody_returns_before_a_sync_that_began_after_he_came() {
        let fake = Fake::new();
        for threads in [1, 2, 8] {
            // Beside those who wait somebody syncs for himself, as the thread that makes segments does.
            for with_another in [false, true] {
                let left = AtomicUsize::new(threads);
                thread::scope(|scope| {
                    for _ in 0..threads {
                        scope.spawn(|| {
                            (0..200).for_each(|_| fake.commit());
                            left.fetch_sub(1, Ordering::SeqCst);
                        });
                    }
                    while with_another && left.load(Ordering::SeqCst) > 0 {
                        fake.sync();
                    }
                });
            }
        }
        let commits = fake.made.load(Ordering::SeqCst);
        assert_eq!(fake.group.durable(), Seq(commits));
        let waiting = lock(&fake.group.waiting);
        assert!(waiting.queue.is_empty() && waiting.stage == Stage::Idle);
    }

    #[test]
    fn a_sync_that_fails_is_followed_by_the_next_of_those_who_wait() {
        let (group, barrier) = (Group::new(Seq(0)), Barrier::new(8));
        let failed = AtomicUsize::new(0);
        thread::scope(|scope| {
            for seq in 1..=8 {
                let (group, barrier, failed) = (&group, &barrier, &failed);
                scope.spawn(move || {
                    barrier.wait();
                    // The sync of the fifth panics, which only it sees.
                    let lead = catch_unwind(AssertUnwindSafe(|| {
                        let lead = group.join(Seq(seq));
                        assert!(lead.is_some() && seq != 5);
                    }));
                    assert_eq!(lead.is_err(), seq == 5);
                    failed.fetch_add(1, Ordering::SeqCst);
                });
            }
        });
        assert_eq!(failed.load(Ordering::SeqCst), 8);
        assert!(lock(&group.waiting).queue.is_empty());
    }

    #[test]
    fn a_log_that_begins_anew_tells_all_who_wait() {
        let group = Group::new(Seq(0));
        thread::scope(|scope| {
            let lead = group.join(Seq(1)).expect("nobody else is here");
            for seq in 2..=8 {
                let group = &group;
                scope.spawn(move || assert!(group.join(Seq(seq)).is_none()));
            }
            while lock(&group.waiting).queue.len() < 7 {
                thread::yield_now();
            }
            // All is in a snapshot meanwhile.
            group.restart(Seq(8));
            drop(lead);
        });
    }
}
