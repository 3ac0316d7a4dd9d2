//! Saves into an open directory: a snapshot beside the log, then whatever it makes unnecessary goes.
//!
//! Order is what makes it safe to be interrupted: the log is synced up to the cut, the snapshot is whole and durable
//! before it has its name, and only then older snapshots go, and after them segments, the oldest first. At every moment the
//! newest snapshot and the log behind it are there.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, select};

use crate::commit::Holder;
use crate::notices;
use crate::planted::{Bug, planted};
use crate::position::Seq;
use crate::storage::directory::Directory;
use crate::storage::log::{FIRST_SEGMENT_BYTES, Log};
use crate::storage::save::{SaveHandle, SaveOptions, SaveReport};
use crate::storage::segment::Spare;
use crate::storage::source;
use crate::sync::{Mutex, assert_no_latch};
use crate::tree::{Pass, Tree};
use crate::{Error, Result};

/// When a database saves by itself, and what it keeps: [`Builder::save_after`](crate::Builder::save_after) and those
/// beside it.
#[derive(Clone)]
pub(crate) struct SavePolicy {
    /// Saves after so many batches, if so much time has passed since the last save.
    pub(crate) after: Vec<(u64, Duration)>,
    /// Saves when the log behind the last snapshot is longer than that, and than this.
    pub(crate) log_bytes: Option<u64>,
    pub(crate) options: SaveOptions,
    /// Writes are refused while saves fail.
    pub(crate) stops_writes: bool,
    /// So much of the log stays, whatever a snapshot makes unnecessary.
    pub(crate) keep_bytes: u64,
    pub(crate) keep_age: Duration,
    pub(crate) keep_snapshots: usize,
    /// What replicas have not read yet stays as well, up to so much of the log.
    pub(crate) keep_for_replicas: u64,
    pub(crate) tell: Option<Arc<Tell>>,
}

type Tell = dyn Fn(&Result<SaveReport>) + Send + Sync;

impl Default for SavePolicy {
    fn default() -> Self {
        Self {
            after: Vec::new(),
            log_bytes: Some(64 << 20),
            options: SaveOptions::default(),
            stops_writes: false,
            keep_bytes: 0,
            keep_age: Duration::ZERO,
            keep_snapshots: 1,
            keep_for_replicas: 1 << 30,
            tell: None,
        }
    }
}

impl fmt::Debug for SavePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SavePolicy").field("after", &self.after).finish_non_exhaustive()
    }
}

/// See the file's head.
pub(crate) struct Saver {
    tree: Arc<Tree>,
    log: Arc<Log>,
    policy: SavePolicy,
    /// Held while a save runs: there is one at a time.
    state: Mutex<State>,
    /// The last batch in the newest snapshot, for those who don't wait for a save.
    ///
    /// Relaxed: a figure.
    saved: AtomicU64,
    /// How many copy the directory's files just now.
    ///
    /// Relaxed: who copies copes with a file that goes.
    keeping: AtomicUsize,
    /// Ends the save that runs; once closed there is none any more.
    ending: Mutex<Ending>,
}

/// What the saves of this run came to.
#[derive(Debug)]
struct State {
    /// The snapshots in the directory, oldest first: ordinal and last batch, `None` for a damaged one.
    snapshots: Vec<(u64, Option<Seq>)>,
    last: LastSave,
    /// A state was installed that the directory does not have yet, of this data set.
    anew: Option<[u8; 16]>,
}

#[derive(Default)]
struct Ending {
    closed: bool,
    cancel: Option<Box<dyn Fn() + Send>>,
}

/// The newest snapshot in the directory.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LastSave {
    pub(crate) seq: Seq,
    /// Its length, in bytes.
    pub(crate) bytes: u64,
    /// What was in the log then.
    pub(crate) log_bytes: u64,
    pub(crate) when: Instant,
}

impl Default for LastSave {
    /// There is none.
    fn default() -> Self {
        LastSave { seq: Seq(0), bytes: 0, log_bytes: 0, when: Instant::now() }
    }
}

impl Saver {
    pub(crate) fn new(
        (tree, log): (&Arc<Tree>, &Arc<Log>),
        policy: SavePolicy,
        snapshots: Vec<(u64, Option<Seq>)>,
        last: LastSave,
    ) -> Self {
        let (tree, log) = (Arc::clone(tree), Arc::clone(log));
        let saved = AtomicU64::new(last.seq.0);
        let state = Mutex::new(State { snapshots, last, anew: None });
        Self {
            tree,
            log,
            policy,
            state,
            saved,
            keeping: AtomicUsize::new(0),
            ending: Mutex::default(),
        }
    }

    /// The last batch in the newest snapshot.
    pub(crate) fn saved(&self) -> Seq {
        Seq(self.saved.load(Ordering::Relaxed))
    }

    /// Removes no file while `work` is done; the next save does.
    pub(crate) fn with_files_kept<T>(&self, work: impl FnOnce(&Directory) -> T) -> T {
        self.keeping.fetch_add(1, Ordering::Relaxed);
        let done = work(&self.log.directory);
        self.keeping.fetch_sub(1, Ordering::Relaxed);
        done
    }

    /// Ends the save that runs, waits for it, and lets no other begin.
    pub(crate) fn close(&self) {
        let cancel = {
            let mut ending = self.ending.lock();
            ending.closed = true;
            ending.cancel.take()
        };
        if let Some(cancel) = cancel {
            cancel();
        }
        drop(self.state.lock());
    }

    /// Saves the present into the directory and removes what that makes unnecessary.
    pub(crate) fn save(&self, options: &SaveOptions) -> Result<SaveReport> {
        assert_no_latch("a save");
        // One at a time: who waits here wants a later cut than the one that is being saved.
        let mut state = self.state.lock();
        if let Some(dataset) = state.anew {
            return self.begin_installed(&mut state, dataset);
        }
        let log_bytes = self.log.bytes();
        let (pass, cut) = self.cut()?;
        // A snapshot must not hold what the log might still lose.
        self.log.sync(&self.tree.commit, cut.position.seq).map_err(Error::LogFailed)?;
        if planted(Bug::PrunedEarly) {
            self.log.prune(u64::MAX)?;
        }
        let ordinal = self.ordinal()?;
        let report = self.write(&mut state, (pass, cut), ordinal, options, log_bytes)?;
        self.prune(&mut state)?;
        Ok(report)
    }

    /// A number for a snapshot beside a log, which is there.
    fn ordinal(&self) -> Result<u64> {
        if !planted(Bug::SnapshotAlone) {
            self.log.ensure_segment()?;
        }
        Ok(self.log.take_ordinal())
    }

    /// The present, to be saved.
    fn cut(&self) -> Result<(Pass, source::Cut)> {
        let pass = Pass::take(&self.tree, Holder::Save)?;
        let cut = source::Cut::of(pass.cut());
        Ok((pass, cut))
    }

    /// Writes the snapshot at the cut.
    fn write(
        &self,
        state: &mut State,
        (pass, cut): (Pass, source::Cut),
        ordinal: u64,
        options: &SaveOptions,
        log_bytes: u64,
    ) -> Result<SaveReport> {
        let directory = &self.log.directory;
        let path = directory.snapshot(ordinal);
        let disk = Arc::clone(&directory.disk);
        let handle = {
            let mut ending = self.ending.lock();
            if ending.closed {
                return Err(Error::Closed);
            }
            let handle = SaveHandle::start(disk, &path, pass, cut, options)?;
            ending.cancel = Some(Box::new(handle.canceller()));
            handle
        };
        let report = handle.wait();
        self.ending.lock().cancel = None;
        let report = report.inspect_err(|error| {
            notices::warn(|| format!("saving {}: {error}", path.display()));
            // If it has its name, then that could not be synced and is in doubt for good.
            let _ = directory.remove(&path);
        })?;
        let (seq, bytes) = (report.position.seq, report.file_bytes);
        notices::info(|| format!("saved batch {seq} to {}, {bytes} bytes", path.display()));
        state.snapshots.push((ordinal, Some(seq)));
        self.saved.store(seq.0, Ordering::Relaxed);
        state.last = LastSave { seq, bytes, log_bytes, when: Instant::now() };
        // Whoever saved: there is nothing to refuse writes for any more, and may be nothing to save before they are taken.
        self.tree.commit.set_saves_fail(false);
        Ok(report)
    }

    /// Removes snapshots and segments that nothing needs any more.
    fn prune(&self, state: &mut State) -> Result<()> {
        if self.keeping.load(Ordering::Relaxed) > 0 {
            return Ok(());
        }
        let directory = &self.log.directory;
        while let Some(at) = needless(&state.snapshots, self.policy.keep_snapshots) {
            directory.remove(&directory.snapshot(state.snapshots[at].0))?;
            state.snapshots.remove(at);
        }
        // Before the segments that the older ones would need.
        directory.sync()?;
        let oldest = state.snapshots.first().and_then(|(_, seq)| *seq).unwrap_or_default();
        let keep_age = u64::try_from(self.policy.keep_age.as_millis()).unwrap_or(u64::MAX);
        let now_ms = self.tree.clock().now_ms();
        let leased = self.log.leased_after();
        let closed = self.log.closed();
        let mut left: u64 = closed.iter().map(|segment| segment.bytes).sum();
        for segment in closed {
            left = left.saturating_sub(segment.bytes);
            let is_young = keep_age > 0 && segment.time_ms.saturating_add(keep_age) > now_ms;
            let is_leased = leased.is_some_and(|leased| segment.last > leased)
                && left < self.policy.keep_for_replicas;
            if segment.last > oldest || left < self.policy.keep_bytes || is_young || is_leased {
                break;
            }
            self.log.prune(segment.ordinal)?;
        }
        Ok(())
    }

    /// Bytes of the log that are kept for replicas that have not read them.
    pub(crate) fn kept_for_replicas(&self) -> u64 {
        self.policy.keep_for_replicas
    }

    /// Batches since the last save.
    fn changes(&self) -> u64 {
        self.tree.commit.position().seq.0.saturating_sub(self.saved().0)
    }

    /// Whether the policy asks for a save now.
    fn is_due(&self) -> bool {
        let last = self.state.lock().last;
        let changes = self.changes();
        if changes == 0 {
            return false;
        }
        let since = last.when.elapsed();
        let by_time = |(count, within): &(u64, Duration)| changes >= *count && since >= *within;
        let grown = self.log.bytes().saturating_sub(last.log_bytes);
        let by_size = self.policy.log_bytes.is_some_and(|least| grown > last.bytes.max(least));
        by_size || self.policy.after.iter().any(by_time)
    }

    /// Begins a new log behind a new snapshot, after the log failed.
    pub(crate) fn restart(&self, options: &SaveOptions) -> Result<SaveReport> {
        assert_no_latch("a save");
        let mut state = self.state.lock();
        if self.log.failure().is_none() || state.anew.is_some() {
            drop(state);
            return self.save(options);
        }
        // No batch gets a Seq while the log has failed: the cut holds all there are.
        let cut = self.cut()?;
        let (log_bytes, ordinal) = (self.log.bytes(), self.ordinal()?);
        let report = self.write(&mut state, cut, ordinal, options, log_bytes)?;
        // From here on the directory is good without what is left of the old log.
        self.log.restart(&self.tree.commit, None)?;
        // What can't be removed now the next save removes.
        let _ = self.prune(&mut state);
        Ok(report)
    }

    /// As [`restart`](Self::restart), if the log takes no more: it has failed, or what was installed is not on the disk.
    pub(crate) fn heal(&self) -> Result<()> {
        match self.log.failure() {
            // Not looked at under the lock of saves: one that runs is not waited for.
            None => Ok(()),
            Some(_) => self.restart(&self.policy.options).map(drop),
        }
    }

    /// Does `install`, which puts another state in the place of the present, and begins the directory anew with it, as one of the data set
    /// `dataset`. Up to one moment the directory is that of the state before, from then on that of the new one, whole and durable.
    ///
    /// If that fails once the state is installed, the log takes no more, until this is done again, with another state or the same, or
    /// [`restart`](Self::restart).
    pub(crate) fn begin_anew(
        &self,
        dataset: [u8; 16],
        install: impl FnOnce() -> Result<()>,
    ) -> Result<SaveReport> {
        assert_no_latch("a save");
        // A save that runs is of the state that goes.
        if let Some(cancel) = &self.ending.lock().cancel {
            cancel();
        }
        let mut state = self.state.lock();
        if self.ending.lock().closed {
            return Err(Error::Closed);
        }
        let commit = &self.tree.commit;
        if let Some(before) = state.anew {
            self.begin_installed(&mut state, before)?;
        }
        self.log.sync(commit, commit.position().seq).map_err(Error::LogFailed)?;
        self.log.suspend(commit);
        if let Err(error) = install() {
            // Nothing has changed.
            self.log.resume(commit);
            return Err(error);
        }
        state.anew = Some(dataset);
        self.begin_installed(&mut state, dataset)
    }

    /// Returns when no save runs, and no state is on its way into the directory.
    pub(crate) fn settle(&self) {
        drop(self.state.lock());
    }

    /// Makes the directory that of a state that was installed.
    fn begin_installed(&self, state: &mut State, dataset: [u8; 16]) -> Result<SaveReport> {
        let directory = &self.log.directory;
        let (pass, cut) = self.cut()?;
        let ordinal = self.log.take_ordinal();
        directory.begin_anew(ordinal, dataset)?;
        directory.go_on_anew(dataset);
        // The log first: a snapshot without one would seem to have lost it.
        let spare = Spare::make(directory, self.log.take_ordinal(), FIRST_SEGMENT_BYTES)?;
        let report = self.write(state, (pass, cut), ordinal, &self.policy.options, 0)?;
        state.snapshots.retain(|(other, _)| *other == ordinal);
        state.anew = None;
        self.log.restart(&self.tree.commit, Some(spare))?;
        // A segment says which chain leads there, a snapshot doesn't. Where that fails, the next record begins it.
        let _ = self.log.begin(&self.tree.commit);
        state.last.log_bytes = self.log.bytes();
        // What can't be removed now means nothing, and goes when it is opened.
        let _ = directory.settle_anew();
        Ok(report)
    }

    /// Saves all there is and begins a log behind it, in a directory whose files mean nothing any more from then on.
    pub(crate) fn found(&self) -> Result<SaveReport> {
        let mut state = self.state.lock();
        let cut = self.cut()?;
        // The log first: without a snapshot that it goes on from nobody opens the directory, and who salvages it again
        // finds the same.
        self.log.begin(&self.tree.commit)?;
        let ordinal = self.ordinal()?;
        self.write(&mut state, cut, ordinal, &self.policy.options, 0)
    }
}

/// The first of these snapshots that goes after one that succeeded: one that is damaged, or the oldest of too many.
fn needless(snapshots: &[(u64, Option<Seq>)], keep: usize) -> Option<usize> {
    let damaged = snapshots.iter().position(|(_, seq)| seq.is_none());
    damaged.or((snapshots.len() > keep.max(1)).then_some(0))
}

/// The thread that saves by the policy; it sleeps while all is saved. Ends it when dropped.
pub(crate) struct SaveThread {
    saver: Arc<Saver>,
    /// To be told when something was written.
    pub(crate) wake: Sender<()>,
    /// Dropped to end the thread.
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How often it is looked whether a save is due.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// After a save that failed so long passes before the next, twice as long after each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(60);

impl SaveThread {
    /// `None` if the policy never asks for a save.
    pub(crate) fn start(saver: &Arc<Saver>) -> Option<Self> {
        if saver.policy.after.is_empty() && saver.policy.log_bytes.is_none() {
            return None;
        }
        let (stop, stopped) = bounded::<()>(0);
        let (wake, woken) = bounded(1);
        let (saver, saving) = (Arc::clone(saver), Arc::clone(saver));
        let thread = thread::Builder::new().name("stillframe-saver".into());
        let thread = thread.spawn(move || saving.run(&woken, &stopped));
        let thread = Some(thread.expect("the system starts a thread"));
        Some(Self { saver, wake, stop: Some(stop), thread })
    }
}

impl Saver {
    fn run(&self, woken: &Receiver<()>, stopped: &Receiver<()>) {
        let mut retry = FIRST_RETRY;
        let mut wait = LOOK_EVERY;
        loop {
            // What was replayed when it was opened may be due as well.
            if self.changes() == 0 {
                select! {
                    recv(woken) -> _ => {}
                    recv(stopped) -> _ => return,
                }
            }
            match stopped.recv_timeout(wait) {
                Err(RecvTimeoutError::Timeout) => {}
                _ => return,
            }
            wait = LOOK_EVERY;
            if self.log.failure().is_some() || !self.is_due() {
                continue;
            }
            let saved = self.save(&self.policy.options);
            if self.ending.lock().closed {
                // Cancelled: that is no failure to tell of.
                return;
            }
            if saved.is_err() {
                wait = retry;
                retry = (retry * 2).min(LAST_RETRY);
                self.tree.commit.set_saves_fail(self.policy.stops_writes);
            } else {
                retry = FIRST_RETRY;
            }
            if let Some(tell) = &self.policy.tell {
                tell(&saved);
            }
        }
    }
}

impl Drop for SaveThread {
    fn drop(&mut self) {
        self.stop = None;
        self.saver.close();
        if let Some(thread) = self.thread.take()
            && thread.thread().id() != thread::current().id()
        {
            // A panic there is our bug; what it left behind is an older snapshot and its log.
            let _ = thread.join();
        }
    }
}
