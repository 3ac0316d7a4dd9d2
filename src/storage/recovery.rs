//! Recovery: which snapshot, which segments, how far; then their batches, in order.
//!
//! Two halves. [`plan`] is pure: what was found in, what to do out. [`replay`] does it: every frame is proven and
//! follows the one before, and what it carries is handed to whoever applies it. Where the frames end,
//! one of two things happened: *the writer died here*, which is no error, or *the bytes are wrong*. What was
//! durable decides: if any frame behind, or the beginning of any later segment, says that the log was durable
//! further than what could be read, bytes are missing that were there.

use std::path::PathBuf;
use std::thread;

use crossbeam_channel::bounded;

use super::directory::{Directory, FileKind};
use super::log::{Closed, Start};
use super::segment::{Begun, Found, Frames, Item, durable_behind};
use super::{read_exact_at, write_all_at};
use crate::error::{Error, Fault, Result};
use crate::format::log::{Base, LABEL_LEN, SEGMENT_HEADER_LEN};
use crate::format::record::{HistoryBody, RecordKind};
use crate::planted::{Bug, planted};
use crate::position::{HistoryId, Position, Seq};

/// How much damage to the log a database is opened with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum RecoveryMode {
    /// None: also what a crash leaves behind the last whole batch is an error.
    Strict,
    /// What a crash leaves: the log ends with its last whole batch. Damage to anything that was durable is an
    /// error.
    #[default]
    TolerateTail,
}

/// A segment, as far as a plan goes by it.
#[derive(Debug, Clone)]
pub(crate) struct SegmentFact {
    pub(crate) ordinal: u64,
    pub(crate) begun: Begun,
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

/// Decides what to recover from; both slices ascend.
pub(crate) fn plan(
    mode: RecoveryMode,
    segments: &[SegmentFact],
    snapshots: &[SnapshotFact],
) -> std::result::Result<Plan, Refusal> {
    let is_begun = |fact: &SegmentFact| !matches!(fact.begun, Begun::No);
    // Behind the last one that was begun. One before it was begun as well; it is told as if it were torn.
    let end = segments.iter().rposition(is_begun).map_or(0, |last| last + 1);
    let (begun, blank) = segments.split_at(end);
    // The newest run of segments each of which names one before it that is there.
    let is_there = |ordinal| segments.iter().any(|fact| fact.ordinal == ordinal);
    let first = begun.iter().rposition(|fact| match &fact.begun {
        Begun::Yes(beginning) => {
            !beginning.previous.is_some_and(|(previous, _)| is_there(previous))
        }
        _ => false,
    });
    let chain = &begun[first.unwrap_or(0)..];
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
    match damaged {
        // It may have been the only one to hold something.
        Some(damaged)
            if snapshot.is_none() || (is_newest_damaged && mode == RecoveryMode::Strict) =>
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
    fn batch(&mut self, position: Position, time_ms: u64, body: &[u8]) -> Applied;
    /// A history begins with the record at `position`; the snapshot does not know of it.
    fn history(&mut self, position: Position, time_ms: u64, body: &HistoryBody);
    /// All batches up to here sum up to `fingerprint`.
    fn check(&mut self, fingerprint: u64) -> Applied;
}

/// Why something read from the log was not applied.
#[derive(Debug)]
pub(crate) enum ApplyError {
    Fault(Fault),
    Error(Error),
}

impl From<Error> for ApplyError {
    fn from(error: Error) -> Self {
        ApplyError::Error(error)
    }
}

/// Where the log was found to end.
#[derive(Debug)]
pub(crate) struct Recovered {
    pub(crate) base: Base,
    pub(crate) closed: Vec<Closed>,
    pub(crate) previous: Option<(u64, u64)>,
    /// A segment in which nothing was begun that could be read: to be removed once there is another one, since a directory
    /// with a snapshot always has a segment.
    pub(crate) useless: Option<PathBuf>,
    /// Places on the way, each with its segment and the last batch before it.
    places: Vec<(Seq, u64, u64)>,
    /// The last batch that is known to have been durable.
    durable: Seq,
}

impl Recovered {
    pub(crate) fn start(self, next_ordinal: u64) -> Start {
        let Recovered { base, closed, previous, .. } = self;
        Start { base, previous, closed, next_ordinal }
    }
}

/// Replays `segments` over a state that ends at `from`, and cuts off what a crash left behind.
///
/// # Errors
/// [`Error::Corrupt`] where something that was durable can't be read; nothing is changed then.
pub(crate) fn replay(
    directory: &Directory,
    mode: RecoveryMode,
    segments: &[Found],
    from: Base,
    is_on_line: impl Fn(Position) -> bool,
    apply: &mut impl Apply,
    reads_ahead: bool,
) -> Result<Recovered> {
    if !reads_ahead {
        let read = |at: usize, _| segments[at].bytes(directory);
        return replay_read(directory, mode, segments, from, is_on_line, apply, read);
    }
    thread::scope(|scope| {
        let (give_back, spent) = bounded::<Vec<u8>>(2);
        let (hand_over, filled) = bounded(1);
        scope.spawn(move || {
            for found in segments {
                // Memory that was used is quicker than new memory. Nobody to give it back, or to take it: it is over.
                let mut bytes = spent.try_recv().unwrap_or_default();
                let read = found.read_into(directory, &mut bytes);
                if hand_over.send(read.map(|()| bytes)).is_err() {
                    return;
                }
            }
        });
        let read = |_, spent| {
            // Full: it has enough.
            let _ = give_back.try_send(spent);
            filled.recv().expect("one for each segment, in order")
        };
        replay_read(directory, mode, segments, from, is_on_line, apply, read)
    })
}

/// As [`replay`]; `read` gives the bytes of each segment in turn, for those of the one before.
fn replay_read(
    directory: &Directory,
    mode: RecoveryMode,
    segments: &[Found],
    from: Base,
    is_on_line: impl Fn(Position) -> bool,
    apply: &mut impl Apply,
    mut read: impl FnMut(usize, Vec<u8>) -> Result<Vec<u8>>,
) -> Result<Recovered> {
    let mut recovered = Recovered {
        base: from,
        closed: Vec::new(),
        previous: None,
        useless: None,
        places: Vec::new(),
        durable: Seq(0),
    };
    let mut base = None;
    let mut bytes = Vec::new();
    for (at, found) in segments.iter().enumerate() {
        bytes = read(at, std::mem::take(&mut bytes))?;
        let later = &segments[at + 1..];
        let corrupt = |offset: usize, fault| Error::corrupt(&found.path, offset as u64, fault);
        let beginning = match &found.beginning {
            Begun::Yes(beginning) => beginning,
            // Made ahead, and left for a longer one or not needed yet.
            Begun::No if !later.iter().any(|later| later.goes_on_from() == Some(found.ordinal)) => {
                continue;
            }
            unclear => {
                let fault = match unclear {
                    Begun::Unclear { fault } => fault.clone(),
                    _ => Fault::Missing,
                };
                let torn = Tear { at, offset: LABEL_LEN, fault: Some(fault), is_end: false };
                torn.cut(directory, mode, segments, &bytes, &mut recovered)?;
                break;
            }
        };
        let is_ours = match base {
            Some(base) => base == beginning.base,
            // What lies before it is in the snapshot.
            None => is_on_line(beginning.base.position),
        };
        if !is_ours {
            let fault = Fault::Foreign { field: "segment that does not go on from the one before" };
            return Err(corrupt(LABEL_LEN, fault));
        }
        let next_end = later.iter().find_map(|next| match &next.beginning {
            Begun::Yes(beginning) => {
                beginning.previous.filter(|(ordinal, _)| *ordinal == found.ordinal)
            }
            _ => None,
        });
        let mut frames = Frames::new(&bytes, found.label.salt, beginning.base);
        let mut tear = None;
        recovered.places.push((beginning.base.position.seq, found.ordinal, LABEL_LEN as u64));
        recovered.durable = recovered.durable.max(beginning.durable);
        let mut next_place = PLACE_EVERY;
        loop {
            if next_end == Some((found.ordinal, frames.offset as u64)) {
                break;
            }
            let (offset, salvaged) = (frames.offset, frames.base);
            let item = match frames.next() {
                Ok(Some(item)) => item,
                ended => {
                    tear = Some(Tear { at, offset, fault: ended.err(), is_end: false });
                    break;
                }
            };
            recovered.durable = recovered.durable.max(frames.durable);
            if offset >= next_place {
                recovered.places.push((salvaged.position.seq, found.ordinal, offset as u64));
                next_place = offset + PLACE_EVERY;
            }
            let told = |error: ApplyError| match error {
                ApplyError::Fault(fault) => corrupt(offset, fault),
                ApplyError::Error(error) => error,
            };
            match item {
                Item::Record { header, body } => {
                    let mut history = salvaged.position.history;
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
                    if header.seq <= from.position.seq {
                        if header.seq == from.position.seq && position != from.position {
                            return Err(corrupt(offset, FOREIGN));
                        }
                        continue;
                    }
                    match first {
                        Some(first) => apply.history(position, header.time_ms, &first),
                        None => apply.batch(position, header.time_ms, body).map_err(told)?,
                    }
                }
                Item::Mark { seq, fingerprint } => {
                    if seq != frames.base.position.seq {
                        return Err(corrupt(offset, Fault::Order { field: "mark" }));
                    }
                    if seq >= from.position.seq {
                        apply.check(fingerprint).map_err(told)?;
                    }
                }
                Item::End { next } => {
                    if !segments.iter().any(|found| found.ordinal == next) {
                        let fault = Fault::Foreign { field: "the next segment is missing, or it" };
                        return Err(corrupt(offset, fault));
                    }
                    frames.offset = offset;
                    tear = Some(Tear { at, offset, fault: None, is_end: true });
                    break;
                }
            }
        }
        if frames.base.position.seq >= recovered.base.position.seq {
            recovered.base = frames.base;
        } else if !is_on_line(frames.base.position) {
            return Err(corrupt(frames.offset, FOREIGN));
        }
        recovered.previous = Some((found.ordinal, frames.offset as u64));
        recovered.closed.push(Closed {
            ordinal: found.ordinal,
            bytes: frames.offset as u64,
            last: frames.base.position.seq,
            time_ms: frames.base.time_ms,
        });
        base = Some(frames.base);
        if let Some(tear) = tear {
            // All of it is proven before anything is changed.
            apply.flush().map_err(|error| match error {
                ApplyError::Fault(fault) => corrupt(tear.offset, fault),
                ApplyError::Error(error) => error,
            })?;
            tear.cut(directory, mode, segments, &bytes, &mut recovered)?;
            break;
        }
    }
    if recovered.previous.is_some()
        && recovered.closed.last().is_some_and(|last| last.last < from.position.seq)
    {
        // The snapshot goes further than the log: what comes next goes on from it.
        recovered.previous = None;
    }
    Ok(recovered)
}

const FOREIGN: Fault = Fault::Foreign { field: "log of another history than the snapshot" };

fn has_begun(found: &Found) -> bool {
    !matches!(found.beginning, Begun::No)
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

impl Tear {
    /// Cuts off what lies behind, unless it was durable once.
    fn cut(
        self,
        directory: &Directory,
        mode: RecoveryMode,
        segments: &[Found],
        bytes: &[u8],
        recovered: &mut Recovered,
    ) -> Result<()> {
        let Tear { at, offset, fault, is_end } = self;
        let found = &segments[at];
        let mut durable = durable_behind(bytes, found.label.salt, offset);
        for later in &segments[at + 1..] {
            if let Begun::Yes(beginning) = &later.beginning {
                durable = durable.max(beginning.durable);
            }
            let bytes = later.bytes(directory)?;
            durable = durable.max(durable_behind(&bytes, later.label.salt, SEGMENT_HEADER_LEN));
        }
        let last = recovered.base.position.seq;
        let rest = bytes.get(offset..).unwrap_or_default();
        let is_torn =
            segments[at + 1..].iter().any(has_begun) || rest.iter().any(|byte| *byte != 0);
        if durable > last || (mode == RecoveryMode::Strict && is_torn && !is_end) {
            let cause = fault.unwrap_or(Fault::Missing);
            let fault = Fault::LogEnds { last, durable, cause: Box::new(cause) };
            return Err(Error::corrupt(&found.path, offset as u64, fault));
        }
        if planted(Bug::RemovedBeforeCut) {
            for later in segments[at + 1..].iter().rev().filter(|later| has_begun(later)) {
                directory.remove(&later.path)?;
            }
        }
        // First here, since what ends in good order names the next segment as one that is there; then from the last
        // on. Whoever is interrupted finds the same end again.
        if offset == LABEL_LEN {
            recovered.useless = Some(found.path.clone());
        } else if offset as u64 != found.len && !planted(Bug::NeverCut) {
            let offset = if planted(Bug::CutTooLate) { offset + 1 } else { offset };
            let told = |op, source| Error::io(op, &found.path, source);
            let file = directory.disk.open_write(&found.path).map_err(|s| told("open", s))?;
            file.set_len(offset as u64).map_err(|source| told("cut", source))?;
            file.sync_all().map_err(|source| told("sync", source))?;
        }
        for later in segments[at + 1..].iter().rev().filter(|later| has_begun(later)) {
            directory.remove(&later.path)?;
            // One after the other: of names that go together a power cut may bring back any.
            directory.sync()?;
        }
        Ok(())
    }
}

/// A place is kept so often, in bytes.
const PLACE_EVERY: usize = 64 << 10;

/// Makes durable what was replayed and is not known to be.
///
/// It may have been in the system's memory only, and a sync that failed before, in the process that wrote it, may have made the
/// system believe that it is on the disk: so it is written again, the same bytes to the same place, and then synced
/// (Rebello et al., "Can Applications Recover from fsync Failures?", ATC 2020).
pub(crate) fn sync_replayed(directory: &Directory, recovered: &Recovered) -> Result<()> {
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
        for (name, kind) in directory.list()? {
            match kind {
                FileKind::Segment(ordinal) => listed.segments.push(ordinal),
                FileKind::Snapshot(ordinal) => listed.snapshots.push(ordinal),
                FileKind::Temporary => listed.temporary.push(name),
                FileKind::Identity | FileKind::Lock | FileKind::Other => {}
            }
        }
        listed.segments.sort_unstable();
        listed.snapshots.sort_unstable();
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
    use crate::format::log::Beginning;

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
