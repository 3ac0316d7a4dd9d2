//! The log as it is written: the tail brought to its segment, synced for all who wait at once, segments made ahead.
//!
//! Four locks, none held while another of them is waited for but in this order: `making` (one segment is made at
//! a time), `syncing` (one syncs at a time), `writer` (who holds it brings the tail to the file, for all: flat
//! combining), and the commit lock. A sync holds `syncing`, and at close `making`, which nobody who writes waits for
//! unless there is no room. What was written is told by Seq: [`written`](Log::written) has left the process,
//! [`durable`](Log::durable) has reached the disk.
//!
//! **Any failed write or sync ends the log** until [`Log::restart`]: nobody knows which bytes the disk has
//! (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020). That there is no room for the next
//! segment ends nothing: a writer is told before anything changed, and the next one tries again.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::DiskFile;
use super::directory::Directory;
use super::group::{Group, lock};
use super::segment::{Found, OVERHEAD, Segment, Spare, Way};
use crate::commit::{Commit, Drained, Room};
use crate::error::{Error, LogFailure, Result};
use crate::format::log::{
    Base, Beginning, Frame, Framed, MARK_LEN, MAX_SEGMENT_LEN, RECORD_FRAME_LEN,
};
use crate::format::record::{HistoryBody, RECORD_HEADER_LEN, RecordHeader, RecordKind};
use crate::planted::{Bug, planted};
use crate::position::Seq;
use crate::sync::assert_no_latch;

/// The length of the first segment of a run; each further one is four times as long as the one before.
pub(crate) const FIRST_SEGMENT_BYTES: u64 = 1 << 20;
/// Records may wait in memory up to this many bytes, unless a longer one must.
const TAIL_BYTES: u64 = 16 << 20;
/// The same where the log is in memory itself: whoever finds the tail full empties it, which should not take long, and what waits
/// should be in a cache still.
const MEMORY_TAIL_BYTES: u64 = 128 << 10;
/// A mark with the fingerprint follows at least so many bytes of records.
const MARK_EVERY: u64 = 64 << 10;
/// Room for the marks that may come between two promises of room.
const MARKS: u64 = 4 << 10;

/// What a log does not do while another state takes the place of the one that it leads to: this passes.
pub(crate) const SUSPENDED: &str = "go on in";

#[cfg(test)]
mod tests;

type Outcome<T> = std::result::Result<T, LogFailure>;

/// See the file's head.
pub(crate) struct Log {
    pub(crate) directory: Directory,
    /// The longest segments, but for single records that are longer.
    segment_bytes: u64,
    /// The next number for a file.
    next_ordinal: AtomicU64,
    making: Mutex<()>,
    /// Who wait for `making`: then it goes as fast as it can.
    hurried: AtomicUsize,
    /// Held by who syncs: of two who sync one file at once the system tells one alone that bytes were lost.
    syncing: Mutex<()>,
    writer: Mutex<Writer>,
    /// Release when set, acquire when read: who sees a Seq here finds its record in the file.
    written: AtomicU64,
    /// Counts how often the log began anew: what was learned of it before says nothing of it. Changed under the writer's lock, before
    /// `written`: release when set, acquire when read.
    restarts: AtomicU64,
    /// What was synced, and who waits for more.
    group: Group,
    /// Nothing behind this batch is shown to feeds yet.
    ///
    /// Release when set, acquire when read: who reads a lower limit must not show what was written behind it.
    shown_up_to: AtomicU64,
    /// What readers have come to, who are to find the rest still there.
    leases: Mutex<BTreeMap<u64, Seq>>,
    /// Asks for a segment to be made ahead.
    want_spare: Sender<()>,
    pub(crate) spare_wanted: Receiver<()>,
}

/// Where the log stands.
struct Writer {
    current: Option<Segment>,
    spare: Option<Spare>,
    /// The disk is memory: see [`Disk::is_memory`](super::Disk::is_memory).
    is_memory: bool,
    /// Segments that were left and not synced since, oldest first, each with its last batch.
    unsynced: Vec<(Segment, Seq)>,
    /// Segments that were left, oldest first.
    closed: VecDeque<Closed>,
    /// Bytes of segments that are gone.
    pruned: u64,
    /// What the last record written leaves.
    base: Base,
    /// The segment that the first one of this run goes on from, and where it ends.
    previous: Option<(u64, u64)>,
    /// Memory for the tail.
    empty: Vec<u8>,
    unmarked: u64,
    next_len: u64,
    failure: Option<LogFailure>,
    finished: bool,
}

/// A segment that nothing more is written to.
#[derive(Debug, Clone)]
pub(crate) struct Closed {
    pub(crate) ordinal: u64,
    pub(crate) bytes: u64,
    /// The last batch in it, and when that was.
    pub(crate) last: Seq,
    pub(crate) time_ms: u64,
}

impl Closed {
    /// One whose batches all are in the snapshot.
    pub(crate) fn outdated(found: &Found) -> Self {
        Closed { ordinal: found.ordinal, bytes: found.len, last: Seq(0), time_ms: 0 }
    }
}

/// Where a log goes on: what recovery found.
pub(crate) struct Start {
    pub(crate) base: Base,
    pub(crate) previous: Option<(u64, u64)>,
    pub(crate) closed: Vec<Closed>,
    pub(crate) next_ordinal: u64,
}

impl Log {
    /// A log that goes on from `start`, in `spare` if there is one.
    pub(crate) fn new(
        directory: Directory,
        segment_bytes: u64,
        start: Start,
        spare: Option<Spare>,
    ) -> Self {
        let (want_spare, spare_wanted) = bounded(1);
        let (seq, is_memory) = (start.base.position.seq.0, directory.disk.is_memory());
        Self {
            directory,
            segment_bytes: segment_bytes.clamp(OVERHEAD + MARKS, MAX_SEGMENT_LEN),
            next_ordinal: AtomicU64::new(start.next_ordinal),
            making: Mutex::new(()),
            hurried: AtomicUsize::new(0),
            syncing: Mutex::new(()),
            writer: Mutex::new(Writer {
                current: None,
                spare,
                is_memory,
                unsynced: Vec::new(),
                closed: start.closed.into(),
                pruned: 0,
                base: start.base,
                previous: start.previous,
                empty: Vec::new(),
                unmarked: 0,
                next_len: FIRST_SEGMENT_BYTES,
                failure: None,
                finished: false,
            }),
            written: AtomicU64::new(seq),
            restarts: AtomicU64::new(0),
            group: Group::new(start.base.position.seq),
            shown_up_to: AtomicU64::new(u64::MAX),
            leases: Mutex::default(),
            want_spare,
            spare_wanted,
        }
    }

    /// A number for a new file.
    pub(crate) fn take_ordinal(&self) -> u64 {
        // Relaxed: a counter that orders nothing.
        self.next_ordinal.fetch_add(1, Ordering::Relaxed)
    }

    /// The chain after the last record.
    pub(crate) fn chain(&self) -> u32 {
        lock(&self.writer).base.chain
    }

    /// The last Seq that has left the process.
    pub(crate) fn written(&self) -> Seq {
        Seq(self.written.load(Ordering::Acquire))
    }

    /// How often the log began anew.
    pub(crate) fn restarts(&self) -> u64 {
        self.restarts.load(Ordering::Acquire)
    }

    /// The last Seq that is on the disk.
    pub(crate) fn durable(&self) -> Seq {
        self.group.durable()
    }

    /// Why the log takes no more, if it doesn't.
    pub(crate) fn failure(&self) -> Option<LogFailure> {
        lock(&self.writer).failure.clone()
    }

    /// Brings the record of `seq` to the file, and with it all others that wait.
    ///
    /// # Errors
    /// Why the log has failed, now or before.
    #[inline]
    pub(crate) fn write_out(&self, commit: &Commit, seq: Seq) -> Outcome<()> {
        if self.written() >= seq {
            return Ok(());
        }
        assert_no_latch("the log");
        if planted(Bug::WriterTrusted) && self.writer.try_lock().is_err() {
            return Ok(());
        }
        let mut writer = lock(&self.writer);
        // Whoever held the lock may have brought ours along.
        if self.written() >= seq {
            return Ok(());
        }
        self.write_tail(&mut writer, commit, Way::Store, false)
    }

    fn write_tail(
        &self,
        writer: &mut Writer,
        commit: &Commit,
        way: Way,
        with_mark: bool,
    ) -> Outcome<()> {
        if let Some(failure) = &writer.failure {
            return Err(failure.clone());
        }
        let drained = commit.drain(std::mem::take(&mut writer.empty));
        let (last, durable) = (drained.base.position.seq, self.durable());
        let spare_taken = writer.spare.is_some();
        if let Err(failure) = writer.place(drained, durable, way, with_mark) {
            self.fail(writer, commit, &failure);
            return Err(failure);
        }
        self.written.store(last.0, Ordering::Release);
        if planted(Bug::WrittenIsDurable) {
            self.group.made_durable(last);
        }
        commit.set_tail_limit(writer.limit(0));
        if spare_taken && writer.spare.is_none() {
            self.ask_for_spare();
        }
        Ok(())
    }

    /// Wakes whoever makes segments ahead; does nothing if nobody does.
    pub(crate) fn ask_for_spare(&self) {
        // Full: it is asked for already.
        let _ = self.want_spare.try_send(());
    }

    fn fail(&self, writer: &mut Writer, commit: &Commit, failure: &LogFailure) {
        if !planted(Bug::FailureForgotten) {
            writer.failure.get_or_insert_with(|| failure.clone());
            commit.fail_log(failure);
        }
    }

    /// Waits until the record of `seq` is on the disk. One sync serves all who wait for it.
    ///
    /// # Errors
    /// As [`Log::write_out`].
    pub(crate) fn sync(&self, commit: &Commit, seq: Seq) -> Outcome<()> {
        assert_no_latch("a sync");
        if planted(Bug::AckBeforeSync) {
            return self.write_out(commit, seq);
        }
        while let Some(lead) = self.group.join(seq) {
            let done = self.sync_all(commit);
            drop(lead);
            done?;
        }
        Ok(())
    }

    /// Writes out the tail and syncs all that was written.
    fn sync_all(&self, commit: &Commit) -> Outcome<()> {
        let alone = lock(&self.syncing);
        let (target, current, restarts) = {
            let mut writer = lock(&self.writer);
            let file_of =
                |segment: &Segment| (Arc::clone(&segment.path), Arc::clone(&segment.file));
            let before = writer.current.as_ref().filter(|_| planted(Bug::WrongSegmentSynced));
            let before = before.map(file_of);
            self.write_tail(&mut writer, commit, Way::Call, false)?;
            let current = before.or_else(|| writer.current.as_ref().map(file_of));
            (writer.base.position.seq, current, self.restarts())
        };
        // Whatever was left before must be on the disk before what follows counts.
        if !planted(Bug::LeftUnsynced) {
            self.sync_left_alone(commit, &alone)?;
        }
        if planted(Bug::DurableAsSyncBegins) {
            self.made_durable(target)?;
        }
        if let Some((path, file)) = current {
            self.sync_file(commit, restarts, &path, &*file)?;
        }
        self.made_durable(target)
    }

    /// Syncs the segments that were left.
    pub(crate) fn sync_left(&self, commit: &Commit) -> Outcome<()> {
        self.sync_left_alone(commit, &lock(&self.syncing))
    }

    fn sync_left_alone(&self, commit: &Commit, _alone: &MutexGuard<'_, ()>) -> Outcome<()> {
        let file_of = |(left, last): &(Segment, Seq)| {
            (left.label.ordinal, Arc::clone(&left.path), Arc::clone(&left.file), *last)
        };
        let (left, restarts): (Vec<_>, u64) = {
            let writer = lock(&self.writer);
            (writer.unsynced.iter().map(file_of).collect(), self.restarts())
        };
        for (ordinal, path, file, last) in left {
            self.sync_file(commit, restarts, &path, &*file)?;
            self.made_durable(last)?;
            let mut writer = lock(&self.writer);
            // A log that began anew meanwhile has forgotten it.
            let at = writer.unsynced.iter().position(|(left, _)| left.label.ordinal == ordinal);
            let synced = at.map(|at| writer.unsynced.remove(at));
            drop(writer);
            drop(synced);
        }
        Ok(())
    }

    fn sync_file(
        &self,
        commit: &Commit,
        restarts: u64,
        path: &Path,
        file: &dyn DiskFile,
    ) -> Outcome<()> {
        let began = Instant::now();
        let synced = file.sync_data();
        commit.meters.sync.record(began.elapsed());
        if planted(Bug::FailedSyncIgnored) {
            return Ok(());
        }
        let Err(source) = synced else { return Ok(()) };
        let mut writer = lock(&self.writer);
        if self.restarts() != restarts {
            // The log began anew behind a snapshot meanwhile, which holds all that was in the file.
            return Ok(());
        }
        let failure = LogFailure::new("sync", path, source);
        self.fail(&mut writer, commit, &failure);
        Err(failure)
    }

    /// All up to `seq` is on the disk, and what lies before it was before.
    fn made_durable(&self, seq: Seq) -> Outcome<()> {
        // A failure meanwhile is told to who waits, whatever this sync has achieved.
        if let Some(failure) = &lock(&self.writer).failure {
            return Err(failure.clone());
        }
        self.group.made_durable(seq);
        Ok(())
    }

    /// Appends a mark that says how far the log is durable, if that is all of it. Not synced: the next one will do.
    pub(crate) fn mark(&self, commit: &Commit) -> Outcome<()> {
        let mut writer = lock(&self.writer);
        if writer.unmarked == 0 || writer.base.position.seq > self.durable() {
            return Ok(());
        }
        self.write_tail(&mut writer, commit, Way::Store, true)
    }

    /// Makes a segment ahead, if there is none, long enough for a record of `len` bytes.
    ///
    /// # Errors
    /// Why it can't be made; the log has not failed by that.
    pub(crate) fn make_spare(&self, commit: &Commit, len: u64) -> Result<()> {
        let _making = self.making();
        self.make(commit, len, None)
    }

    /// As [`make_spare`](Self::make_spare) where nobody waits for it. What it takes of the processors it takes in small pieces, calling `pause`
    /// in between: on a machine with few of them who writes, and who follows, would wait milliseconds for a turn otherwise. `pause` says whether to
    /// go on; if not, nothing stays.
    pub(crate) fn make_spare_ahead(&self, commit: &Commit, pause: &dyn Fn() -> bool) -> Result<()> {
        let _making = lock(&self.making);
        let pause = |made, capacity| {
            let is_early = || {
                let waiting = commit.tail_len();
                let writer = lock(&self.writer);
                let current = writer.current.as_ref();
                current.is_some_and(|current| current.is_well_before(made, capacity, waiting))
            };
            // Relaxed: whoever it is waits for one more pause at most.
            self.hurried.load(Ordering::Relaxed) > 0 || !is_early() || pause()
        };
        self.make(commit, 0, Some(&pause))
    }

    /// Waits until nobody makes a segment, who is to hurry.
    fn making(&self) -> MutexGuard<'_, ()> {
        self.hurried.fetch_add(1, Ordering::Relaxed);
        let making = lock(&self.making);
        self.hurried.fetch_sub(1, Ordering::Relaxed);
        making
    }

    fn make(
        &self,
        commit: &Commit,
        len: u64,
        pause: Option<&dyn Fn(u64, u64) -> bool>,
    ) -> Result<()> {
        let needed = len + OVERHEAD + MARKS;
        let capacity = {
            let mut writer = lock(&self.writer);
            if let Some(failure) = &writer.failure {
                return Err(Error::LogFailed(failure.clone()));
            }
            if writer.finished {
                return Err(Error::Closed);
            }
            let limit = writer.limit(len);
            commit.set_tail_limit(limit);
            let is_enough = if len == 0 { writer.spare.is_some() } else { limit >= len };
            if is_enough {
                return Ok(());
            }
            let usual = writer.next_len.min(self.segment_bytes);
            writer.next_len = (usual * 4).min(self.segment_bytes);
            usual.max(needed)
        };
        let ordinal = self.take_ordinal();
        let spare = Spare::make_with(&self.directory, ordinal, capacity, pause)?;
        let mut writer = lock(&self.writer);
        let replaced = writer.spare.replace(spare);
        commit.set_tail_limit(writer.limit(len));
        drop(writer);
        match replaced {
            Some(Spare { path, .. }) => self.directory.remove(&path),
            None => Ok(()),
        }
    }

    /// The segments that were begun, oldest first, and how often the log began anew.
    pub(crate) fn ordinals(&self) -> (Vec<u64>, u64) {
        let writer = lock(&self.writer);
        let current = writer.current.as_ref().map(|current| current.label.ordinal);
        let closed = writer.closed.iter().map(|closed| closed.ordinal);
        (closed.chain(current).collect(), self.restarts())
    }

    /// The last batch that feeds may show.
    pub(crate) fn to_be_shown(&self) -> Seq {
        if planted(Bug::FeedReadsAhead) {
            return Seq(u64::MAX);
        }
        self.written().min(Seq(self.shown_up_to.load(Ordering::Acquire)))
    }

    /// Feeds show nothing behind this batch; without one, everything.
    pub(crate) fn show_up_to(&self, seq: Option<Seq>) {
        if planted(Bug::HandShownEarly) {
            return;
        }
        self.shown_up_to.store(seq.map_or(u64::MAX, |seq| seq.0), Ordering::Release);
    }

    /// The present segment, where the next frame goes in it, and what that follows.
    pub(crate) fn end(&self) -> Option<(u64, u64, Base)> {
        let writer = lock(&self.writer);
        let current = writer.current.as_ref()?;
        Some((current.label.ordinal, current.offset, writer.base))
    }

    /// What the last record that is in a file leaves.
    pub(crate) fn base(&self) -> Base {
        lock(&self.writer).base
    }

    /// Bytes of the log behind `offset` of this segment.
    pub(crate) fn bytes_behind(&self, ordinal: u64, offset: u64) -> u64 {
        let writer = lock(&self.writer);
        let closed = writer.closed.iter().map(|closed| (closed.ordinal, closed.bytes));
        let current = writer.current.iter().map(|current| (current.label.ordinal, current.offset));
        closed
            .chain(current)
            .map(|(other, bytes)| match other.cmp(&ordinal) {
                std::cmp::Ordering::Less => 0,
                std::cmp::Ordering::Equal => bytes.saturating_sub(offset),
                std::cmp::Ordering::Greater => bytes,
            })
            .sum()
    }

    /// What follows `after` is to stay until the lease is dropped, or its holder is too far behind.
    pub(crate) fn lease(self: &Arc<Self>, after: Seq) -> Lease {
        let mut leases = lock(&self.leases);
        let id = leases.last_key_value().map_or(0, |(id, _)| id + 1);
        leases.insert(id, after);
        Lease { log: Arc::clone(self), id }
    }

    /// The batch behind which all is to stay.
    pub(crate) fn leased_after(&self) -> Option<Seq> {
        lock(&self.leases).values().min().copied()
    }

    /// Segments that hold something, and their bytes.
    pub(crate) fn size(&self) -> (u64, u64) {
        let writer = lock(&self.writer);
        let current = writer.current.as_ref().map(|current| current.offset);
        let closed: u64 = writer.closed.iter().map(|closed| closed.bytes).sum();
        let segments = writer.closed.len() as u64 + u64::from(current.is_some());
        (segments, closed + current.unwrap_or(0))
    }

    /// Bytes that were ever in the log, as far as this run knows.
    pub(crate) fn bytes(&self) -> u64 {
        let (_, bytes) = self.size();
        bytes + lock(&self.writer).pruned
    }

    /// Sees to it that there is a segment, before a snapshot is: without one the snapshot would seem to have lost its log.
    pub(crate) fn ensure_segment(&self) -> Result<()> {
        let _making = self.making();
        {
            let writer = lock(&self.writer);
            if writer.finished {
                return Err(Error::Closed);
            }
            if writer.has_segment() || writer.spare.is_some() {
                return Ok(());
            }
        }
        let spare = Spare::make(&self.directory, self.take_ordinal(), FIRST_SEGMENT_BYTES)?;
        lock(&self.writer).spare = Some(spare);
        Ok(())
    }

    /// Takes nothing more until [`restart`](Self::restart): another state is about to take the place of the one that it leads to.
    pub(crate) fn suspend(&self, commit: &Commit) {
        let mut writer = lock(&self.writer);
        let cause = std::io::Error::other("another state takes the place of the present");
        let failure = LogFailure::new(SUSPENDED, &self.directory.path, cause);
        self.fail(&mut writer, commit, &failure);
    }

    /// Nothing came of it.
    pub(crate) fn resume(&self, commit: &Commit) {
        let mut writer = lock(&self.writer);
        writer.failure = None;
        commit.restart_log();
        commit.set_tail_limit(writer.limit(0));
    }

    /// Begins anew behind a snapshot of all there is, in `spare` if there is one: what failed is left behind, what waited is in the snapshot.
    pub(crate) fn restart(&self, commit: &Commit, next: Option<Spare>) -> Result<()> {
        let _making = self.making();
        let mut writer = lock(&self.writer);
        // What was to be durable first is so now.
        self.show_up_to(None);
        let drained = commit.drain(std::mem::take(&mut writer.empty));
        // The next record begins a segment, which goes on from the snapshot.
        if let Some(mut left) = writer.current.take() {
            left.leave();
            let (ordinal, bytes) = (left.label.ordinal, left.offset);
            let (last, time_ms) = (drained.base.position.seq, drained.base.time_ms);
            writer.closed.push_back(Closed { ordinal, bytes, last, time_ms });
        }
        // What was made ahead for the log that failed; nobody knows what the disk has of that.
        let spare = match next {
            Some(next) => {
                writer.closed.clear();
                writer.spare.replace(next)
            }
            None if writer.closed.is_empty() => None,
            None => writer.spare.take(),
        };
        writer.unsynced.clear();
        writer.base = drained.base;
        writer.previous = None;
        writer.unmarked = 0;
        let seq = drained.base.position.seq;
        self.restarts.fetch_add(1, Ordering::AcqRel);
        self.written.store(seq.0, Ordering::Release);
        self.group.restart(seq);
        writer.failure = None;
        commit.restart_log();
        commit.set_tail_limit(writer.limit(0));
        drop(writer);
        match spare {
            Some(spare) => self.directory.remove(&spare.path),
            None => Ok(()),
        }
    }

    /// Begins a segment that goes on from what was recovered, and from no other segment: those that are there mean nothing then.
    pub(crate) fn begin(&self, commit: &Commit) -> Result<()> {
        self.make_spare(commit, 0)?;
        let mut writer = lock(&self.writer);
        let durable = self.durable();
        writer.go_on(durable).map_err(Error::LogFailed)?;
        let current = writer.current.as_ref().expect("it was just begun");
        let synced = current.file.sync_all();
        synced.map_err(|source| Error::io("sync", &current.path, source))?;
        commit.set_tail_limit(writer.limit(0));
        Ok(())
    }

    /// Segments that were left, oldest first.
    pub(crate) fn closed(&self) -> Vec<Closed> {
        lock(&self.writer).closed.iter().cloned().collect()
    }

    /// Removes the oldest segments, up to and including that of `ordinal`. Their batches are in a snapshot.
    pub(crate) fn prune(&self, ordinal: u64) -> Result<()> {
        loop {
            let oldest = {
                let writer = lock(&self.writer);
                // A directory with a snapshot always has a segment: that none is there must mean that it is missing.
                let is_last = writer.closed.len() == 1 && writer.current.is_none();
                writer.closed.front().map(|closed| closed.ordinal).filter(|_| !is_last)
            };
            let Some(oldest) = oldest.filter(|oldest| *oldest <= ordinal) else { return Ok(()) };
            self.directory.remove(&self.directory.segment(oldest))?;
            // One after the other: of names that go together a power cut may bring back any, and a segment must
            // not outlive the one it names as the next.
            if !planted(Bug::PrunedTogether) {
                self.directory.sync()?;
            }
            let mut writer = lock(&self.writer);
            let gone = writer.closed.pop_front();
            writer.pruned += gone.map_or(0, |gone| gone.bytes);
        }
    }

    /// Brings all to the disk, marks it, gives back the room that was not used, and lets go of the directory, also when something of that
    /// failed. The database is closed: nothing comes any more. Done again it says the same of what was lost.
    pub(crate) fn finish(&self, commit: &Commit) -> Result<()> {
        // Nobody makes a segment meanwhile.
        let _making = self.making();
        {
            let writer = lock(&self.writer);
            if writer.finished {
                return writer
                    .failure
                    .clone()
                    .map_or(Ok(()), |failure| Err(Error::LogFailed(failure)));
            }
        }
        let synced = match planted(Bug::CloseUnsynced) {
            true => self.write_out(commit, commit.position().seq),
            false => self.sync_all(commit),
        };
        let marked = synced.and_then(|()| self.mark(commit)).map_err(Error::LogFailed);
        let mut writer = lock(&self.writer);
        let given = marked.and_then(|()| writer.give_back(&self.directory));
        writer.finished = true;
        // Somebody else may have the files from now on.
        if let Some(last) = writer.current.take() {
            let (ordinal, bytes) = (last.label.ordinal, last.offset);
            let Base { position, time_ms, .. } = writer.base;
            writer.closed.push_back(Closed { ordinal, bytes, last: position.seq, time_ms });
        }
        writer.spare = None;
        writer.unsynced.clear();
        drop(writer);
        self.directory.release();
        given
    }
}

/// Keeps what a reader of the log has not read yet.
pub(crate) struct Lease {
    log: Arc<Log>,
    id: u64,
}

impl Lease {
    /// All up to `seq` was read.
    pub(crate) fn move_to(&self, seq: Seq) {
        lock(&self.log.leases).insert(self.id, seq);
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        lock(&self.log.leases).remove(&self.id);
    }
}

impl Room for Log {
    fn make_room(&self, commit: &Commit, len: u64) -> Result<()> {
        assert_no_latch("a wait for room in the log");
        {
            let mut writer = lock(&self.writer);
            self.write_tail(&mut writer, commit, Way::Store, false).map_err(Error::LogFailed)?;
            let limit = writer.limit(len);
            if limit >= len {
                commit.set_tail_limit(limit);
                return Ok(());
            }
        }
        self.make_spare(commit, len)
    }
}

impl Writer {
    /// So many bytes of records are sure to have a place; `wanted` at the least, if there is one for them.
    fn limit(&self, wanted: u64) -> u64 {
        // Records go one behind the other, into the spare once one does not fit. All of them
        // fit for certain if all would fit into either.
        let here = self.current.as_ref().map_or(0, Segment::room);
        let spare = self.spare.as_ref().map_or(0, |spare| spare.capacity.saturating_sub(OVERHEAD));
        let sure = here.max(spare).saturating_sub(MARKS);
        let most = if self.is_memory { MEMORY_TAIL_BYTES } else { TAIL_BYTES };
        sure.min(most.max(wanted))
    }

    /// Writes what was drained behind all there is, and a mark if one is asked for or due.
    fn place(&mut self, drained: Drained, durable: Seq, way: Way, with_mark: bool) -> Outcome<()> {
        let is_due = self.unmarked + drained.bytes.len() as u64 >= MARK_EVERY;
        let with_mark = with_mark || is_due;
        let Drained { mut bytes, linked, base, fingerprint } = drained;
        let mut linked = linked.into_iter().peekable();
        // Not written yet: from `start` on, which goes to `to` of the current segment.
        let (mut at, mut start) = (0, 0);
        let mut to = self.current.as_ref().map_or(0, |current| current.offset);
        while at < bytes.len() {
            let body_at = at + RECORD_FRAME_LEN;
            let body_len = body_len(&bytes[at..]);
            let len = (RECORD_FRAME_LEN + body_len) as u64;
            if self.current.as_ref().is_none_or(|current| current.room() < len) {
                self.write(&bytes[start..at], to, way)?;
                self.go_on(durable)?;
                start = at;
                to = self.current.as_ref().map_or(0, |current| current.offset);
            }
            let current = self.current.as_mut().expect("room was promised");
            let frame = bytes[at..].first_chunk_mut().expect("a frame's room and a header");
            Frame::fill(frame, durable, current.label.salt, current.offset);
            current.offset += len;
            self.unmarked += len;
            let header = &bytes[at + RECORD_FRAME_LEN - RECORD_HEADER_LEN..body_at];
            let header = RecordHeader::decode(header.try_into().expect("its length"))
                .expect("made under the commit lock");
            self.base.position.seq = header.seq;
            self.base.time_ms = header.time_ms;
            self.base.chain = header.chain;
            at = body_at;
            if let Some(long) = linked.next_if(|long| long.at == body_at) {
                self.write(&bytes[start..at], to, way)?;
                to += (at - start) as u64;
                self.write(&long.body, to, way)?;
                to += long.body.len() as u64;
                start = at;
                continue;
            }
            at += body_len;
            if header.kind == RecordKind::History {
                let body = HistoryBody::decode(&bytes[body_at..at]).expect("as it was made");
                self.base.position.history = body.history;
            }
        }
        if with_mark && let Some(current) = &mut self.current {
            let framed = Framed::Mark { seq: base.position.seq, fingerprint };
            if current.room() >= MARK_LEN as u64 {
                Frame { durable, framed }.encode(current.label.salt, current.offset, &mut bytes);
                current.offset += MARK_LEN as u64;
                self.unmarked = 0;
            }
        }
        self.write(&bytes[start..], to, way)?;
        bytes.clear();
        self.empty = bytes;
        Ok(())
    }

    /// Whether a segment was ever begun that is there.
    fn has_segment(&self) -> bool {
        self.current.is_some() || !self.closed.is_empty()
    }

    fn write(&mut self, bytes: &[u8], to: u64, way: Way) -> Outcome<()> {
        match &mut self.current {
            Some(current) if !bytes.is_empty() => current.write(bytes, to, way),
            _ => Ok(()),
        }
    }

    /// Gives back the room that was not used.
    fn give_back(&mut self, directory: &Directory) -> Result<()> {
        if let Some(current) = &mut self.current {
            current.give_back()?;
        }
        // As in `prune`.
        if self.has_segment()
            && let Some(spare) = self.spare.take()
        {
            directory.remove(&spare.path)?;
            directory.sync()?;
        }
        Ok(())
    }

    /// Leaves the current segment and begins the spare.
    fn go_on(&mut self, durable: Seq) -> Outcome<()> {
        let spare = self.spare.take().expect("room was promised");
        if let Some(mut left) = self.current.take() {
            let next = spare.label.ordinal;
            let mut end = Vec::new();
            Frame { durable, framed: Framed::End { next } }.encode(
                left.label.salt,
                left.offset,
                &mut end,
            );
            self.previous = Some((left.label.ordinal, left.offset));
            self.closed.push_back(Closed {
                ordinal: left.label.ordinal,
                bytes: left.offset + end.len() as u64,
                last: self.base.position.seq,
                time_ms: self.base.time_ms,
            });
            left.write(&end, left.offset, Way::Call)?;
            left.leave();
            // What is never synced would stay with its handle.
            if !self.is_memory {
                self.unsynced.push((left, self.base.position.seq));
            }
        }
        let beginning = Beginning { base: self.base, previous: self.previous, durable };
        self.current = Some(Segment::begin(spare, &beginning)?);
        Ok(())
    }
}

/// The length of the body of the record whose frame's room `bytes` begin with.
fn body_len(bytes: &[u8]) -> usize {
    let at = RECORD_FRAME_LEN - RECORD_HEADER_LEN;
    let len = bytes[at..].first_chunk().expect("a frame's room and a header");
    u32::from_le_bytes(*len) as usize
}
