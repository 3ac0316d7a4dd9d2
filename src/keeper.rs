//! The threads that look after an open directory's log: what nobody waits for is written out and synced in
//! time, segments are made ahead.
//!
//! Both sleep while nobody writes. Errors are not theirs to tell: a log that fails tells the next writer, and room that
//! can't be made the next who needs it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};

use crate::planted::{Bug, planted};
use crate::storage::log::Log;
use crate::tree::Tree;

/// How long what nobody waits for stays in the process.
const TICK: Duration = Duration::from_millis(10);
/// How long a segment in the making, of which there is more than is needed yet, is left alone.
const PAUSE: Duration = Duration::from_millis(1);
/// No sync is due.
const NEVER: u64 = u64::MAX;

/// See the file's head. Ends its threads when dropped.
pub(crate) struct Keeper {
    waker: Waker,
    /// Dropped to end the threads.
    stop: Option<Sender<()>>,
    threads: Vec<JoinHandle<()>>,
}

/// Tells the thread that writes and syncs, also when its keeper has gone.
#[derive(Clone)]
pub(crate) struct Waker {
    watch: Arc<Watch>,
    wake: Sender<()>,
}

/// What writers tell the thread that writes and syncs.
struct Watch {
    start: Instant,
    /// False while the thread sleeps until it is woken.
    ///
    /// SeqCst: a writer appends a record and then reads this, the thread clears it and then looks for records;
    /// one of the two must see the other's.
    awake: AtomicBool,
    /// When the next sync is due, in milliseconds since `start`.
    ///
    /// Relaxed: who has committed and finds a sync due early enough is covered by it. The thread takes it away before
    /// it looks, under the commit lock, which batch is the last; had that batch been another's before ours, we
    /// would have come after it under the same lock, and found it taken away.
    due: AtomicU64,
    /// What time it was at the last tick, likewise: so that a write need not ask the clock. A sync is due so much too early.
    ///
    /// Relaxed: a figure.
    tick: AtomicU64,
}

impl Watch {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(NEVER - 1)
    }
}

impl Keeper {
    /// `save` is told when something was written: a save may be due some time.
    pub(crate) fn start(tree: &Arc<Tree>, log: &Arc<Log>, save: Option<Sender<()>>) -> Self {
        let (wake, woken) = bounded(1);
        let (stop, stopped) = bounded::<()>(0);
        let watch = Arc::new(Watch {
            start: Instant::now(),
            awake: AtomicBool::new(false),
            due: AtomicU64::new(NEVER),
            tick: AtomicU64::new(0),
        });
        let spawn = |name: &str, run: Box<dyn FnOnce() + Send>| {
            let thread = thread::Builder::new().name(name.into());
            thread.spawn(run).expect("the system starts a thread")
        };
        let keeping = (Arc::clone(tree), Arc::clone(log), Arc::clone(&watch), stopped.clone());
        let making = (Arc::clone(tree), Arc::clone(log), stopped);
        let keep = move || {
            let (tree, log, watch, stopped) = keeping;
            watch.keep(&tree, &log, save.as_ref(), &woken, &stopped);
        };
        let make = move || {
            let (tree, log, stopped) = making;
            loop {
                select! {
                    recv(log.spare_wanted) -> _ => {}
                    recv(stopped) -> _ => return,
                }
                // Whoever needs room and has none tries again, and is told why there is none.
                let pause = || stopped.recv_timeout(PAUSE) == Err(RecvTimeoutError::Timeout);
                let _ = log.make_spare_ahead(&tree.commit, &pause);
                let _ = log.sync_left(&tree.commit);
            }
        };
        let threads = vec![
            spawn("stillframe-log", Box::new(keep)),
            spawn("stillframe-segment", Box::new(make)),
        ];
        Self { waker: Waker { watch, wake }, stop: Some(stop), threads }
    }

    /// A way to tell that a batch was committed.
    pub(crate) fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// As [`Waker::committed`].
    #[inline]
    pub(crate) fn committed(&self) {
        self.waker.committed();
    }

    /// What is committed now is to be synced so much later.
    #[inline]
    pub(crate) fn sync_within(&self, period: Duration) {
        let watch = &self.waker.watch;
        let period_ms = u64::try_from(period.as_millis()).unwrap_or(NEVER);
        let wanted = watch.tick.load(Ordering::Relaxed).saturating_add(period_ms);
        if watch.due.load(Ordering::Relaxed) > wanted {
            watch.due.fetch_min(wanted, Ordering::Relaxed);
        }
    }
}

impl Waker {
    /// A batch was committed that nobody has written out yet, or synced.
    #[inline]
    pub(crate) fn committed(&self) {
        if !self.watch.awake.load(Ordering::SeqCst)
            && !self.watch.awake.swap(true, Ordering::SeqCst)
        {
            // Full: it was told.
            let _ = self.wake.try_send(());
        }
    }
}

impl Watch {
    fn keep(
        &self,
        tree: &Tree,
        log: &Log,
        save: Option<&Sender<()>>,
        woken: &Receiver<()>,
        stopped: &Receiver<()>,
    ) {
        let commit = &tree.commit;
        let tell = || {
            // Full: it was told.
            let _ = save.map(|save| save.try_send(()));
        };
        loop {
            select! {
                recv(woken) -> _ => {}
                recv(stopped) -> _ => return,
            }
            tell();
            let mut last = log.written();
            loop {
                select! {
                    recv(stopped) -> _ => return,
                    default(TICK) => {}
                }
                let now = self.now();
                self.tick.store(now, Ordering::Relaxed);
                let is_due = self.due.load(Ordering::Relaxed) <= now;
                if is_due {
                    self.due.store(NEVER, Ordering::Relaxed);
                }
                let seq = commit.position().seq;
                // A failure is told to whoever writes.
                let _ = match is_due {
                    true => log.sync(commit, seq),
                    false => log.write_out(commit, seq),
                };
                if seq != last {
                    tell();
                }
                let is_due =
                    self.due.load(Ordering::Relaxed) != NEVER && !planted(Bug::IdleUnsynced);
                let is_idle = seq == last && !is_due;
                last = seq;
                if !is_idle {
                    continue;
                }
                let _ = log.mark(commit);
                self.awake.store(false, Ordering::SeqCst);
                // Somebody may have seen it awake just before.
                if commit.position().seq == seq || self.awake.swap(true, Ordering::SeqCst) {
                    break;
                }
            }
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.stop = None;
        for thread in self.threads.drain(..) {
            // A panic there is our bug; the log it left behind tells.
            let _ = thread.join();
        }
    }
}
