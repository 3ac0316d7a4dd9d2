//! Recovery: which snapshot, which segments, how far; then their batches, in order.
//!
//! Three parts. [`plan`] is pure: what was found in, what to do out. [`Replay::run`] only reads: every frame is proven
//! and follows the one before, and what it carries is handed to whoever applies it. Where the frames end,
//! one of two things happened: *the writer died here*, which is no error, or *the bytes are wrong*. What was
//! durable decides: if any frame behind, or the beginning of any later segment, says that the log was durable
//! further than what could be read, bytes are missing that were there. [`settle`] then cuts off what a dead
//! writer left, for whoever goes on in the directory.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::thread;

use crossbeam_channel::bounded;

use super::directory::{Directory, FileKind};
use super::log::{Closed, Start};
use super::segment::{Begun, Found, Frames, Item, durable_behind};
use super::{read_exact_at, write_all_at};
use crate::error::{Error, Fault, Result};
use crate::format::log::{Base, Beginning, LABEL_LEN, SEGMENT_HEADER_LEN};
use crate::format::record::{HistoryBody, RecordKind};
use crate::planted::{Bug, planted};
use crate::position::{HistoryId, Position, Seq};

/// How much damage to the log a database is opened with.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-mode-{}", std::process::id()));
/// use stillframe::{Database, Error, RecoveryMode};
///
/// let db = match Database::open(&dir) {
///     // There is no backup, so what can be proven is better than nothing.
///     Err(Error::Corrupt { file, offset, what }) => {
///         eprintln!("{} at {offset}: {what}", file.display());
///         Database::builder().recovery(RecoveryMode::Salvage).open(&dir)?
///     }
///     opened => opened?,
/// };
/// for lost in &db.open_report().unwrap().lost {
///     eprintln!("{}: {:?}", lost.path.display(), lost.what);
/// }
/// # db.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecoveryMode {
    /// None: also what a crash leaves behind the last whole batch is an error.
    Strict,
    /// What a crash leaves: the log ends with its last whole batch. Damage to anything that was durable is an
    /// error.
    #[default]
    TolerateTail,
    /// As `TolerateTail`; and from files that this refuses, whatever can still be proven. What is lost is listed in the
    /// [report](crate::OpenReport::lost). All files move to the folder `salvaged`, beside a page `lost.txt` with that list; what could
    /// be read is saved anew at once, under a history of its own: a replica can't take it for what it knew.
    ///
    /// What is missing may have belonged together with what is there. For when there is no backup. Files that may be of a
    /// newer release are left alone.
    Salvage,
}

/// A segment, as far as a plan goes by it.
#[derive(Debug, Clone)]
pub(crate) struct SegmentFact {
    pub(crate) ordinal: u64,
    pub(crate) begun: Begun,
}

/// What the oldest of these segments that was begun goes on from.
pub(crate) fn first_base(segments: &[Found]) -> Option<Base> {
    segments.iter().find_map(|found| match &found.beginning {
        Begun::Yes(beginning) => Some(beginning.base),
        _ => None,
    })
}

impl Found {
    /// Reads the heads of all segments that were listed.
    pub(crate) fn all(directory: &Directory, listed: &Listed) -> Result<Vec<Self>> {
        listed.segments.iter().map(|ordinal| Found::read(directory, *ordinal)).collect()
    }

    pub(crate) fn fact(&self) -> SegmentFact {
        SegmentFact { ordinal: self.ordinal, begun: self.beginning.clone() }
    }
}

/// A snapshot, as far as a plan goes by it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct SnapshotFact {
    pub(crate) ordinal: u64,
    /// The last batch in it; `None` if the file is damaged.
    pub(crate) seq: Option<Seq>,
}

/// What is to be done with the files of a directory.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Plan {
    /// To be loaded first.
    pub(crate) snapshot: Option<u64>,
    /// To be replayed, one behind the other.
    pub(crate) segments: Vec<u64>,
    /// Made ahead and never begun: the newest may be used, the others are in nobody's way.
    pub(crate) blank: Vec<u64>,
}

/// Why there is no plan.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// Every snapshot that would do is damaged, this one the newest.
    Damaged { snapshot: u64 },
    /// The log goes on from a batch that no snapshot holds: an older segment or a snapshot is missing.
    Gap { segment: u64, base: Seq },
    /// There is a snapshot and no log at all.
    NoLog { snapshot: u64 },
}

/// The newest run of segments each of which names one before it that is there; behind it lie those that were never begun.
pub(crate) fn newest_run(segments: &[SegmentFact]) -> Range<usize> {
    let is_begun = |fact: &SegmentFact| !matches!(fact.begun, Begun::No);
    // Behind the last one that was begun. One before it was begun as well; it is told as if it were torn.
    let end = segments.iter().rposition(is_begun).map_or(0, |last| last + 1);
    let is_there = |ordinal| segments.iter().any(|fact| fact.ordinal == ordinal);
    let first = segments[..end].iter().rposition(|fact| match &fact.begun {
        Begun::Yes(beginning) => {
            !beginning.previous.is_some_and(|(previous, _)| is_there(previous))
        }
        _ => false,
    });
    first.unwrap_or(0)..end
}

impl Refusal {
    /// What it looks like from outside.
    pub(crate) fn told(&self, directory: &Directory) -> Error {
        match *self {
            Refusal::Damaged { snapshot } => {
                Error::corrupt(&directory.snapshot(snapshot), 0, Fault::Missing)
            }
            Refusal::Gap { segment, base } => {
                Error::corrupt(&directory.segment(segment), 0, Fault::NoBase { base })
            }
            Refusal::NoLog { snapshot } => {
                Error::corrupt(&directory.snapshot(snapshot), 0, Fault::NoLog)
            }
        }
    }
}

/// Decides what to recover from; both slices ascend.
pub(crate) fn plan(
    mode: RecoveryMode,
    segments: &[SegmentFact],
    snapshots: &[SnapshotFact],
) -> std::result::Result<Plan, Refusal> {
    let run = newest_run(segments);
    let (chain, blank) = (&segments[run.clone()], &segments[run.end..]);
    let base = chain.first().map(|fact| match &fact.begun {
        Begun::Yes(beginning) => beginning.base.position.seq,
        _ => Seq(0),
    });
    let newest = snapshots.last().map(|snapshot| snapshot.ordinal);
    if let (Some(snapshot), true) = (newest, segments.is_empty()) {
        return Err(Refusal::NoLog { snapshot });
    }
    let reaches = |seq: Seq| base.is_none_or(|base| seq >= base);
    let snapshot = snapshots.iter().rev().find(|fact| fact.seq.is_some_and(reaches));
    let damaged = snapshots.iter().rev().find(|fact| fact.seq.is_none());
    let is_newest_damaged = snapshots.last().is_some_and(|newest| newest.seq.is_none());
    // A log from the first batch on holds all by itself.
    let is_complete = chain.first().is_some_and(|fact| {
        matches!(&fact.begun, Begun::Yes(beginning)
            if beginning.base.position.seq == Seq(0) && beginning.previous.is_none())
    });
    match damaged {
        // It may have been the only one to hold something.
        Some(damaged)
            if (snapshot.is_none() && !is_complete)
                || (is_newest_damaged && mode == RecoveryMode::Strict) =>
        {
            return Err(Refusal::Damaged { snapshot: damaged.ordinal });
        }
        _ => {}
    }
    if let (None, Some(base), Some(oldest)) = (snapshot, base, chain.first())
        && base > Seq(0)
    {
        return Err(Refusal::Gap { segment: oldest.ordinal, base });
    }
    let ordinals = |facts: &[SegmentFact]| facts.iter().map(|fact| fact.ordinal).collect();
    Ok(Plan {
        snapshot: snapshot.map(|snapshot| snapshot.ordinal),
        segments: ordinals(chain),
        blank: ordinals(blank),
    })
}

pub(crate) type Applied = std::result::Result<(), ApplyError>;

/// Takes what recovery reads, in order.
pub(crate) trait Apply {
    /// All that was handed over takes effect, before its bytes go.
    fn flush(&mut self) -> Applied;
    /// A batch that is not in the snapshot.
    fn batch(&mut self, record: &RecordAt, body: &[u8]) -> Applied;
    /// A history begins with `record`; the snapshot does not know of it.
    fn history(&mut self, record: &RecordAt, body: &HistoryBody) -> Applied;
    /// All batches up to here sum up to `fingerprint`.
    fn check(&mut self, fingerprint: u64) -> Applied;
}

/// A record, and where it lies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RecordAt {
    pub(crate) position: Position,
    pub(crate) time_ms: u64,
    pub(crate) segment: u64,
    /// Of its frame.
    pub(crate) offset: u64,
}

/// Why something read from the log was not applied.
#[derive(Debug)]
pub(crate) enum ApplyError {
    Fault(Fault),
    Error(Error),
}

impl ApplyError {
    /// What it is for who opens: what is wrong is at `offset` of the file at `path`.
    pub(crate) fn at(self, path: &Path, offset: u64) -> Error {
        match self {
            ApplyError::Fault(fault) => Error::corrupt(path, offset, fault),
            ApplyError::Error(error) => error,
        }
    }
}

impl From<Error> for ApplyError {
    fn from(error: Error) -> Self {
        ApplyError::Error(error)
    }
}

/// The last batch that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Until {
    pub(crate) seq: Seq,
    pub(crate) time_ms: u64,
}

impl Default for Until {
    /// All there are.
    fn default() -> Self {
        Until { seq: Seq(u64::MAX), time_ms: u64::MAX }
    }
}

impl Until {
    pub(crate) fn has_passed(&self, seq: Seq, time_ms: u64) -> bool {
        seq > self.seq || time_ms > self.time_ms
    }
}

/// A log to be replayed.
pub(crate) struct Replay<'a> {
    pub(crate) directory: &'a Directory,
    pub(crate) mode: RecoveryMode,
    /// Those of the plan, and those that were never begun.
    pub(crate) segments: &'a [Found],
    /// The state that it is applied to.
    pub(crate) from: Base,
    /// Whether a batch is one of those that led there.
    pub(crate) is_on_line: &'a (dyn Fn(Position) -> bool + Sync),
    pub(crate) until: Until,
    pub(crate) reads: Reads,
}

/// How segments are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reads {
    Once,
    /// Another thread reads the next one meanwhile.
    Ahead,
    /// As of one moment, though somebody may be writing.
    Settled,
}

/// Where the log was found to end.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) base: Base,
    pub(crate) closed: Vec<Closed>,
    pub(crate) previous: Option<(u64, u64)>,
    /// What a dead writer left behind the last batch.
    pub(crate) torn: Option<Torn>,
    /// There is more, which was not wanted.
    pub(crate) is_enough: bool,
    /// Places on the way, each with its segment and the last batch before it.
    places: Vec<(Seq, u64, u64)>,
    /// The last batch that is known to have been durable.
    durable: Seq,
}

/// What is to be cut off.
#[derive(Debug)]
pub(crate) struct Torn {
    /// Which of the segments, and where in it. Those behind go.
    at: usize,
    offset: usize,
    /// So many bytes of it were written.
    pub(crate) bytes: u64,
}

impl Recovered {
    pub(crate) fn start(self, next_ordinal: u64) -> Start {
        let Recovered { base, closed, previous, .. } = self;
        Start { base, previous, closed, next_ordinal }
    }
}

impl Replay<'_> {
    /// Reads and proves the log, and has it applied. Changes nothing on the disk.
    ///
    /// # Errors
    /// [`Error::Corrupt`] where something that was durable can't be read.
    pub(crate) fn run(&self, apply: &mut impl Apply) -> Result<Recovered> {
        match self.reads {
            Reads::Once => {
                return self.run_with(apply, |at, _| self.segments[at].bytes(self.directory));
            }
            Reads::Settled => {
                let read = |at: usize, _| self.segments[at].settled_bytes(self.directory);
                return self.run_with(apply, read);
            }
            Reads::Ahead => {}
        }
        thread::scope(|scope| {
            let (give_back, spent) = bounded::<Vec<u8>>(2);
            let (hand_over, filled) = bounded(1);
            scope.spawn(move || {
                for found in self.segments {
                    // Memory that was used is quicker than new memory. Nobody to give it back, or to take it: it is over.
                    let mut bytes = spent.try_recv().unwrap_or_default();
                    let read = found.read_into(self.directory, &mut bytes);
                    if hand_over.send(read.map(|()| bytes)).is_err() {
                        return;
                    }
                }
            });
            self.run_with(apply, |_, spent| {
                // Full: it has enough.
                let _ = give_back.try_send(spent);
                filled.recv().expect("one for each segment, in order")
            })
        })
    }

    /// As [`run`](Self::run); `read` gives the bytes of each segment in turn, for those of the one before.
    fn run_with(
        &self,
        apply: &mut impl Apply,
        mut read: impl FnMut(usize, Vec<u8>) -> Result<Vec<u8>>,
    ) -> Result<Recovered> {
        let mut recovered = Recovered {
            base: self.from,
            closed: Vec::new(),
            previous: None,
            torn: None,
            is_enough: false,
            places: Vec::new(),
            durable: Seq(0),
        };
        let mut base = None;
        let mut bytes = Vec::new();
        for (at, found) in self.segments.iter().enumerate() {
            bytes = read(at, std::mem::take(&mut bytes))?;
            let beginning = match &found.beginning {
                Begun::Yes(beginning) => beginning,
                // Made ahead, and left for a longer one or not needed yet.
                Begun::No if !self.is_gone_on_from(at) => continue,
                unclear => {
                    let fault = match unclear {
                        Begun::Unclear { fault } => fault.clone(),
                        _ => Fault::Missing,
                    };
                    let torn = Tear { at, offset: LABEL_LEN, fault: Some(fault), is_end: false };
                    recovered.torn = Some(self.judge(torn, &bytes, &recovered)?);
                    break;
                }
            };
            let is_ours = match base {
                Some(base) => base == beginning.base,
                // What lies before it is in the snapshot.
                None => (self.is_on_line)(beginning.base.position),
            };
            if !is_ours {
                let fault =
                    Fault::Foreign { field: "segment that does not go on from the one before" };
                return Err(Error::corrupt(&found.path, LABEL_LEN as u64, fault));
            }
            recovered.places.push((beginning.base.position.seq, found.ordinal, LABEL_LEN as u64));
            recovered.durable = recovered.durable.max(beginning.durable);
            let (frames, ended) = self.segment(at, &bytes, beginning, &mut recovered, apply)?;
            if frames.base.position.seq >= recovered.base.position.seq {
                recovered.base = frames.base;
            } else if !(self.is_on_line)(frames.base.position) {
                return Err(Error::corrupt(&found.path, frames.offset as u64, FOREIGN));
            }
            recovered.previous = Some((found.ordinal, frames.offset as u64));
            recovered.closed.push(Closed {
                ordinal: found.ordinal,
                bytes: frames.offset as u64,
                last: frames.base.position.seq,
                time_ms: frames.base.time_ms,
            });
            base = Some(frames.base);
            match ended {
                Ended::Next => {}
                Ended::Until => {
                    recovered.is_enough = true;
                    break;
                }
                Ended::Torn(tear) => {
                    // All of it is proven before anything is changed.
                    let offset = tear.offset as u64;
                    apply.flush().map_err(|error| error.at(&found.path, offset))?;
                    recovered.torn = Some(self.judge(tear, &bytes, &recovered)?);
                    break;
                }
            }
        }
        let ends_before = |last: &Closed| last.last < self.from.position.seq;
        if recovered.previous.is_some() && recovered.closed.last().is_some_and(ends_before) {
            // The snapshot goes further than the log: what comes next goes on from it.
            recovered.previous = None;
        }
        Ok(recovered)
    }

    /// Whether a later segment names this one as the one that it goes on from.
    fn is_gone_on_from(&self, at: usize) -> bool {
        let ordinal = Some(self.segments[at].ordinal);
        self.segments[at + 1..].iter().any(|later| later.goes_on_from() == ordinal)
    }

    /// Reads one segment to where it ends.
    fn segment<'b>(
        &self,
        at: usize,
        bytes: &'b [u8],
        beginning: &Beginning,
        recovered: &mut Recovered,
        apply: &mut impl Apply,
    ) -> Result<(Frames<'b>, Ended)> {
        let found = &self.segments[at];
        let corrupt = |offset: usize, fault| Error::corrupt(&found.path, offset as u64, fault);
        let next_end = self.segments[at + 1..].iter().find_map(|next| match &next.beginning {
            Begun::Yes(beginning) => {
                beginning.previous.filter(|(ordinal, _)| *ordinal == found.ordinal)
            }
            _ => None,
        });
        let mut frames = Frames::new(bytes, found.label.salt, beginning.base);
        let mut next_place = PLACE_EVERY;
        loop {
            if next_end == Some((found.ordinal, frames.offset as u64)) {
                return Ok((frames, Ended::Next));
            }
            let (offset, before) = (frames.offset, frames.base);
            let item = match frames.next() {
                Ok(Some(item)) => item,
                ended => {
                    let tear = Tear { at, offset, fault: ended.err(), is_end: false };
                    return Ok((frames, Ended::Torn(tear)));
                }
            };
            recovered.durable = recovered.durable.max(frames.durable);
            if offset >= next_place {
                recovered.places.push((before.position.seq, found.ordinal, offset as u64));
                next_place = offset + PLACE_EVERY;
            }
            match item {
                Item::Record { header, .. }
                    if self.until.has_passed(header.seq, header.time_ms) =>
                {
                    (frames.offset, frames.base) = (offset, before);
                    return Ok((frames, Ended::Until));
                }
                Item::Record { header, body } => {
                    let mut history = before.position.history;
                    let first = match header.kind {
                        RecordKind::History => {
                            let first = HistoryBody::decode(body)
                                .map_err(|damage| corrupt(offset, damage.fault))?;
                            history = first.history;
                            Some(first)
                        }
                        RecordKind::Batch => None,
                    };
                    frames.base.position.history = history;
                    let position = Position { history, seq: header.seq };
                    if header.seq <= self.from.position.seq {
                        if header.seq == self.from.position.seq && position != self.from.position {
                            return Err(corrupt(offset, FOREIGN));
                        }
                        continue;
                    }
                    let (time_ms, segment) = (header.time_ms, found.ordinal);
                    let record = RecordAt { position, time_ms, segment, offset: offset as u64 };
                    let applied = match first {
                        Some(first) => apply.history(&record, &first),
                        None => apply.batch(&record, body),
                    };
                    applied.map_err(|error| error.at(&found.path, offset as u64))?;
                }
                Item::Mark { seq, fingerprint } => {
                    if seq != frames.base.position.seq {
                        return Err(corrupt(offset, Fault::Order { field: "mark" }));
                    }
                    if seq >= self.from.position.seq {
                        let checked = apply.check(fingerprint);
                        checked.map_err(|error| error.at(&found.path, offset as u64))?;
                    }
                }
                Item::End { next } => {
                    if !self.segments.iter().any(|found| found.ordinal == next) {
                        return Err(corrupt(offset, NEXT_IS_MISSING));
                    }
                    frames.offset = offset;
                    let tear = Tear { at, offset, fault: None, is_end: true };
                    return Ok((frames, Ended::Torn(tear)));
                }
            }
        }
    }

    /// Whether the writer died at `tear`, or something that was durable is gone.
    fn judge(&self, tear: Tear, bytes: &[u8], recovered: &Recovered) -> Result<Torn> {
        let Tear { at, offset, fault, is_end } = tear;
        let (found, behind) = (&self.segments[at], &self.segments[at + 1..]);
        let mut durable = durable_behind(bytes, found.label.salt, offset);
        // Up to the last byte that is not zero.
        let written_from = |bytes: &[u8], from: usize| {
            let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
            end.saturating_sub(from) as u64
        };
        let mut written_later = 0;
        for later in behind {
            if let Begun::Yes(beginning) = &later.beginning {
                durable = durable.max(beginning.durable);
            }
            let bytes = later.bytes(self.directory)?;
            durable = durable.max(durable_behind(&bytes, later.label.salt, SEGMENT_HEADER_LEN));
            written_later += written_from(&bytes, LABEL_LEN);
        }
        let last = recovered.base.position.seq;
        let written = written_from(bytes, offset);
        let is_torn = behind.iter().any(has_begun) || written > 0;
        if durable > last || (self.mode == RecoveryMode::Strict && is_torn && !is_end) {
            let cause = fault.unwrap_or(Fault::Missing);
            let fault = Fault::LogEnds { last, durable, cause: Box::new(cause) };
            return Err(Error::corrupt(&found.path, offset as u64, fault));
        }
        // What ends in good order has its end here.
        let written = if is_end { 0 } else { written };
        Ok(Torn { at, offset, bytes: written + written_later })
    }
}

/// A segment names another as the one in which the log goes on, and it is not there.
pub(crate) const NEXT_IS_MISSING: Fault =
    Fault::Foreign { field: "the next segment is missing, or it" };
pub(crate) const FOREIGN: Fault =
    Fault::Foreign { field: "log of another history than the snapshot" };

/// Why reading a segment ended.
enum Ended {
    /// The next one goes on from here.
    Next,
    Torn(Tear),
    /// What comes is not wanted.
    Until,
}

/// Where the frames of a log end.
struct Tear {
    /// Which of the segments.
    at: usize,
    offset: usize,
    /// What is wrong there; `None`: nothing was written.
    fault: Option<Fault>,
    /// The segment was left here in good order; the next one was not begun, or torn.
    is_end: bool,
}

fn has_begun(found: &Found) -> bool {
    !matches!(found.beginning, Begun::No)
}

/// Makes the directory end where the log was found to: cuts off what was torn, and makes the rest durable.
///
/// Returns a segment in which nothing was begun that could be read. It is to be removed once there is another one, since a
/// directory with a snapshot always has a segment.
pub(crate) fn settle(
    directory: &Directory,
    segments: &[Found],
    recovered: &Recovered,
) -> Result<Option<PathBuf>> {
    let useless = match &recovered.torn {
        Some(torn) => cut(directory, segments, torn)?,
        None => None,
    };
    sync_replayed(directory, recovered)?;
    Ok(useless)
}

fn cut(directory: &Directory, segments: &[Found], torn: &Torn) -> Result<Option<PathBuf>> {
    let (found, offset) = (&segments[torn.at], torn.offset);
    let behind = || segments[torn.at + 1..].iter().rev().filter(|later| has_begun(later));
    let mut useless = None;
    if planted(Bug::RemovedBeforeCut) {
        for later in behind() {
            directory.remove(&later.path)?;
        }
    }
    // First here, since what ends in good order names the next segment as one that is there; then from the last
    // on. Whoever is interrupted finds the same end again.
    if offset == LABEL_LEN {
        useless = Some(found.path.clone());
    } else if offset as u64 != found.len && !planted(Bug::NeverCut) {
        let offset = if planted(Bug::CutTooLate) { offset + 1 } else { offset };
        let offset = if planted(Bug::CutTooEarly) { offset - 1 } else { offset };
        let told = |op, source| Error::io(op, &found.path, source);
        let file = directory.disk.open_write(&found.path).map_err(|s| told("open", s))?;
        file.set_len(offset as u64).map_err(|source| told("cut", source))?;
        file.sync_all().map_err(|source| told("sync", source))?;
    }
    for later in behind() {
        directory.remove(&later.path)?;
        // One after the other: of names that go together a power cut may bring back any.
        directory.sync()?;
    }
    Ok(useless)
}

/// A place is kept so often, in bytes.
const PLACE_EVERY: usize = 64 << 10;

/// Makes durable what was replayed and is not known to be.
///
/// It may have been in the system's memory only, and a sync that failed before, in the process that wrote it, may have made the
/// system believe that it is on the disk: so it is written again, the same bytes to the same place, and then synced
/// (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020).
fn sync_replayed(directory: &Directory, recovered: &Recovered) -> Result<()> {
    if planted(Bug::ReplayedUnsynced) {
        return Ok(());
    }
    let sure = recovered.places.iter().rposition(|(before, ..)| *before <= recovered.durable);
    let first = sure.map_or((0, 0), |at| (recovered.places[at].1, recovered.places[at].2));
    for closed in recovered.closed.iter().filter(|closed| closed.ordinal >= first.0) {
        let from = if closed.ordinal == first.0 { first.1 } else { LABEL_LEN as u64 };
        let path = directory.segment(closed.ordinal);
        let told = |op, source| Error::io(op, &path, source);
        let file = directory.disk.open_write(&path).map_err(|source| told("open", source))?;
        let len = closed.bytes.saturating_sub(from);
        let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
        read_exact_at(&*file, &mut bytes, from).map_err(|source| told("read", source))?;
        if !planted(Bug::DoubtNotRewritten) {
            write_all_at(&*file, &bytes, from).map_err(|source| told("write", source))?;
        }
        file.sync_all().map_err(|source| told("sync", source))?;
    }
    // Names that were given shortly before the end.
    directory.sync()
}

/// What lies in a directory, by kind, ascending.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    pub(crate) segments: Vec<u64>,
    pub(crate) snapshots: Vec<u64>,
    pub(crate) temporary: Vec<std::ffi::OsString>,
}

impl Listed {
    pub(crate) fn read(directory: &Directory) -> Result<Self> {
        let mut listed = Listed::default();
        let began_anew = directory.anew()?.map_or(0, |anew| anew.snapshot);
        for (name, kind) in directory.list()? {
            match kind {
                FileKind::Segment(ordinal) | FileKind::Snapshot(ordinal)
                    if ordinal < began_anew => {}
                FileKind::Segment(ordinal) => listed.segments.push(ordinal),
                FileKind::Snapshot(ordinal) => listed.snapshots.push(ordinal),
                FileKind::Temporary => listed.temporary.push(name),
                FileKind::Identity
                | FileKind::Anew
                | FileKind::Fence
                | FileKind::Spool
                | FileKind::Lock
                | FileKind::Other => {}
            }
        }
        listed.segments.sort_unstable();
        listed.snapshots.sort_unstable();
        if planted(Bug::SortedAsText) {
            listed.segments.sort_unstable_by_key(u64::to_string);
        }
        Ok(listed)
    }

    /// A number that no file has.
    pub(crate) fn next_ordinal(&self) -> u64 {
        let newest = self.segments.last().max(self.snapshots.last());
        newest.map_or(1, |newest| newest + 1)
    }
}

/// Whether a history is on a line of spans up to some Seq.
pub(crate) fn is_on(
    spans: impl IntoIterator<Item = (HistoryId, Seq, Seq)>,
    position: Position,
) -> bool {
    position.seq == Seq(0)
        || spans.into_iter().any(|(history, start, end)| {
            history == position.history && start <= position.seq && position.seq <= end
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(ordinal: u64, base: u64, previous: Option<u64>) -> SegmentFact {
        let position = Position { seq: Seq(base), ..Position::default() };
        let base = Base { position, ..Base::default() };
        let previous = previous.map(|ordinal| (ordinal, 999));
        SegmentFact { ordinal, begun: Begun::Yes(Beginning { base, previous, durable: Seq(0) }) }
    }

    fn blank(ordinal: u64) -> SegmentFact {
        SegmentFact { ordinal, begun: Begun::No }
    }

    fn torn(ordinal: u64) -> SegmentFact {
        SegmentFact { ordinal, begun: Begun::Unclear { fault: Fault::Missing } }
    }

    fn whole(ordinal: u64, seq: u64) -> SnapshotFact {
        SnapshotFact { ordinal, seq: Some(Seq(seq)) }
    }

    #[test]
    fn plans() {
        use RecoveryMode::{Strict, TolerateTail};
        type Expected<'a> = std::result::Result<(Option<u64>, &'a [u64]), Refusal>;
        fn check(
            segments: &[SegmentFact],
            snapshots: &[SnapshotFact],
            mode: RecoveryMode,
            expected: Expected<'_>,
        ) {
            let got = plan(mode, segments, snapshots);
            let got = got.as_ref().map(|plan| (plan.snapshot, &plan.segments[..]));
            assert_eq!(got, expected.as_ref().copied(), "{segments:?} {snapshots:?} {mode:?}");
        }
        let damaged = SnapshotFact { ordinal: 4, seq: None };
        let log = [begun(1, 0, None), begun(3, 10, Some(1)), begun(5, 20, Some(3))];
        for mode in [Strict, TolerateTail] {
            check(&[], &[], mode, Ok((None, &[])));
            check(&[blank(1)], &[], mode, Ok((None, &[])));
            check(&log, &[], mode, Ok((None, &[1, 3, 5])));
            check(&log, &[whole(4, 15)], mode, Ok((Some(4), &[1, 3, 5])));
            check(&log[1..], &[whole(4, 15)], mode, Ok((Some(4), &[3, 5])));
            check(&log[1..], &[whole(2, 10), whole(4, 15)], mode, Ok((Some(4), &[3, 5])));
            // The snapshot may have gone further than the log.
            check(&log[1..], &[whole(6, 50)], mode, Ok((Some(6), &[3, 5])));
            let gap = Refusal::Gap { segment: 5, base: Seq(20) };
            check(&log[2..], &[whole(4, 15)], mode, Err(gap));
            let gap = Refusal::Gap { segment: 3, base: Seq(10) };
            check(&log[1..], &[], mode, Err(gap));
            check(&[], &[whole(4, 15)], mode, Err(Refusal::NoLog { snapshot: 4 }));
            check(&[blank(5)], &[whole(4, 15)], mode, Ok((Some(4), &[])));
            check(&log[1..], &[damaged], mode, Err(Refusal::Damaged { snapshot: 4 }));
            // A log that was begun anew, after one that failed.
            let anew = [begun(1, 0, None), begun(3, 10, Some(1)), begun(6, 30, None)];
            check(&anew, &[whole(5, 30)], mode, Ok((Some(5), &[6])));
            // What was begun last may be torn; its predecessor may not even say that it was begun.
            let ends = [log[0].clone(), torn(3)];
            check(&ends, &[], mode, Ok((None, &[1, 3])));
            let lost = [log[0].clone(), blank(3), log[2].clone(), blank(7)];
            check(&lost, &[], mode, Ok((None, &[1, 3, 5])));
        }
        let older = [whole(2, 12), damaged];
        check(&log[1..], &older, TolerateTail, Ok((Some(2), &[3, 5])));
        check(&log[1..], &older, Strict, Err(Refusal::Damaged { snapshot: 4 }));
    }
}
