//! What is past its time is removed: by the primary alone, as batches like any other, some leaves at a time.
//!
//! Readers hide it already; this gives memory back, and tells replicas, the log and feeds. The thread sleeps until the first entry of all
//! comes due, at most a second, since the clock may be set meanwhile. There is none before anything is to expire.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, after, bounded, never, select};

use crate::Error;
use crate::commit::Role;
use crate::keeper::Waker;
use crate::keys::{PREFIX_LEN, id_of};
use crate::open::Catalogue;
use crate::serve::signal::Signals;
use crate::sync::{AtomicU64, Mutex, Ordering};
use crate::tree::{Owners, Tree};

/// How long it works before it lets others go first: with more, a writer waits for its turn for milliseconds where processors are few.
const SLICE: Duration = Duration::from_micros(250);
/// How long it then waits.
const PAUSE: Duration = Duration::from_millis(1);
/// A run that has written nothing yet is left alone for so long: a primary that lost its unsynced end takes that back from a replica only as long as it has written
/// nothing itself.
const GRACE: Duration = Duration::from_secs(60);
/// So far behind it hurries.
const FAR_BEHIND_MS: u64 = 5_000;
/// The clock is looked at so often while anything is to expire; and what failed is tried again.
const LOOK: Duration = Duration::from_secs(1);

/// What it takes to remove what is past its time.
pub(crate) struct Expiry {
    pub(crate) tree: Arc<Tree>,
    pub(crate) catalogue: Arc<Mutex<Catalogue>>,
    pub(crate) signals: Arc<Signals>,
    /// Who brings the log along.
    pub(crate) log: Option<Waker>,
    /// Entries that were removed.
    pub(crate) expired: AtomicU64,
}

/// The thread that does it. Ends when this is dropped.
pub(crate) struct Sweeper {
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// When there is something to do again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    In(Duration),
    /// Nothing expires.
    WhenWoken,
    /// Nothing will be written any more.
    Never,
}

impl Sweeper {
    pub(crate) fn start(expiry: Arc<Expiry>) -> Self {
        let (waker, wake) = bounded(1);
        let (stop, stopped) = bounded::<()>(0);
        expiry.tree.set_due_waker(waker);
        let run = move || Self::run(&expiry, &wake, &stopped);
        let thread = thread::Builder::new().name("stillframe-expire".into());
        let thread = thread.spawn(run).expect("the system starts a thread");
        Self { stop: Some(stop), thread: Some(thread) }
    }

    fn run(expiry: &Expiry, wake: &Receiver<()>, stopped: &Receiver<()>) {
        let began = Instant::now();
        loop {
            let commit = &expiry.tree.commit;
            // A panic here is our bug, and may leave a leaf half changed: nothing may be read any more.
            let sweep = || match commit.has_written() || began.elapsed() >= GRACE {
                true => expiry.sweep(SLICE),
                false => Next::In(LOOK),
            };
            let next = catch_unwind(AssertUnwindSafe(sweep)).unwrap_or_else(|_| {
                commit.poison();
                Next::Never
            });
            let due = match next {
                Next::In(wait) => after(wait),
                Next::WhenWoken => never(),
                Next::Never => return,
            };
            select! {
                recv(wake) -> woken => if woken.is_err() { return },
                recv(stopped) -> _ => return,
                recv(due) -> _ => {}
            }
        }
    }
}

impl Drop for Sweeper {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has poisoned the database.
            let _ = thread.join();
        }
    }
}

impl Expiry {
    /// Removes what is past its time, for so long at most.
    pub(crate) fn sweep(&self, most: Duration) -> Next {
        let tree = &*self.tree;
        let Some(next_ms) = tree.next_due_ms() else { return Next::WhenWoken };
        let now_ms = tree.clock().now_ms();
        let wait = Duration::from_millis(next_ms.saturating_sub(now_ms));
        if !wait.is_zero() {
            return Next::In(wait.min(LOOK));
        }
        if tree.commit.role() != Role::Primary {
            return Next::In(LOOK);
        }
        let (view, slots) = {
            let catalogue = self.catalogue.lock();
            (tree.commit.view(), catalogue.slots.clone())
        };
        let slot_of = |key: &[u8]| slots.get(&id_of(key)).copied();
        let owners = Owners { view, prefix_len: PREFIX_LEN, slot_of: &slot_of };
        let began = Instant::now();
        while let Some(low) = tree.take_due(now_ms) {
            match tree.expire_leaf(&owners, &low, now_ms) {
                Ok(None) => {}
                Ok(Some(count)) => {
                    // Relaxed: a figure.
                    self.expired.fetch_add(count, Ordering::Relaxed);
                    self.log.iter().for_each(Waker::committed);
                    self.signals.committed();
                }
                Err(Error::Closed | Error::Poisoned) => return Next::Never,
                // A keyspace has gone, the log has failed, replicas are missing.
                Err(_) => {
                    tree.put_back_due(low, now_ms);
                    return Next::In(LOOK);
                }
            }
            if began.elapsed() >= most {
                let is_far_behind = now_ms.saturating_sub(next_ms) > FAR_BEHIND_MS;
                return Next::In(if is_far_behind { PAUSE / 8 } else { PAUSE });
            }
        }
        match tree.next_due_ms() {
            Some(next_ms) => {
                Next::In(Duration::from_millis(next_ms.saturating_sub(now_ms)).min(LOOK))
            }
            None => Next::WhenWoken,
        }
    }
}
