//! Records that can be proven, whatever lies between them.
//!
//! A frame is recognised by its own checksum, which covers its place and its segment's salt; a record by its body's. What is lost
//! between two of them their Seqs tell.

use super::{Lost, LostRange, bytes_of};
use crate::error::{Fault, Result};
use crate::format::log::{
    END_LEN, Frame, Framed, LABEL_LEN, MARK_LEN, RECORD_FRAME_LEN, SEGMENT_HEADER_LEN,
};
use crate::format::record::{Effect, Effects, HistoryBody, RecordHeader, RecordKind};
use crate::position::{HistoryId, Position, Seq};
use crate::storage::directory::Directory;
use crate::storage::recovery::{Apply, FOREIGN, NEXT_IS_MISSING, RecordAt};
use crate::storage::segment::{Begun, Found};
use crate::storage::walk::catalogue_entry;

/// Walks the segments of a log, oldest first.
pub(crate) struct LogSalvage<'a> {
    directory: &'a Directory,
    /// The last batch that is in the snapshot.
    from: Seq,
    /// The last batch that was recovered, when it was, and the chain up to it if that is known.
    last: Seq,
    pub(crate) time_ms: u64,
    chain: Option<u32>,
    /// The history of the snapshot, and that of the records that are read, where that is known.
    from_history: HistoryId,
    history: Option<HistoryId>,
    /// The last batch that was read, whether it counts or not; its history, where that is known, is `history`.
    read: Seq,
    /// The log is not that of the snapshot: nothing more of it counts.
    is_foreign: bool,
    /// There were batches up to this one.
    known: Seq,
    /// Bytes that could not be used since the last record that could.
    gap: Option<Gap>,
    /// And a segment is missing there.
    is_cut_short: bool,
    pub(crate) lost: Vec<LostRange>,
    /// Batches that were recovered.
    pub(crate) batches: u64,
}

/// Where reading went astray.
struct Gap {
    found: usize,
    offset: u64,
    bytes: u64,
    fault: Fault,
}

/// What a place in a segment holds.
enum Here<'a> {
    Record(RecordHeader, &'a [u8]),
    Mark,
    /// The log goes on in the segment of this ordinal.
    End(u64),
    /// A record whose body is damaged: its length is known.
    BadBody(usize, Fault),
    Nothing(Fault),
}

impl<'a> LogSalvage<'a> {
    pub(crate) fn new(directory: &'a Directory, from: Position, time_ms: u64) -> Self {
        let Position { history, seq } = from;
        Self {
            directory,
            from: seq,
            last: seq,
            time_ms,
            chain: None,
            from_history: history,
            history: None,
            read: Seq(0),
            is_foreign: false,
            known: seq,
            gap: None,
            is_cut_short: false,
            lost: Vec::new(),
            batches: 0,
        }
    }

    /// Bytes behind the last record, which may be what a writer left that died.
    pub(crate) fn torn_bytes(&self) -> u64 {
        self.gap.as_ref().map_or(0, |gap| gap.bytes)
    }

    /// The last batch that there is known to have been.
    pub(crate) fn end(&self) -> Seq {
        self.known.max(self.last)
    }

    /// Recovers what it can from `segments`, which ascend.
    pub(crate) fn run(
        &mut self,
        segments: &[Found],
        apply: &mut impl Apply,
        mut done: impl FnMut(),
    ) -> Result<()> {
        for at in 0..segments.len() {
            self.segment(segments, at, apply)?;
            done();
        }
        if self.known > self.last || self.is_cut_short || self.is_foreign {
            let before = Seq(self.known.0.saturating_add(1));
            // Behind bytes that can't be read, or a segment that is missing, nobody knows what came.
            let is_open = self.is_cut_short || self.gap.is_some();
            let before = (!is_open).then_some(before);
            let nowhere = |found: &Found| Gap {
                found: segments.len() - 1,
                offset: found.len,
                bytes: 0,
                fault: Fault::Missing,
            };
            let gap = self.gap.take().or_else(|| segments.last().map(nowhere));
            self.lose(segments, gap, before);
        }
        Ok(())
    }

    fn segment(&mut self, segments: &[Found], at: usize, apply: &mut impl Apply) -> Result<()> {
        let found = &segments[at];
        match &found.beginning {
            Begun::Yes(beginning) => {
                let position = beginning.base.position;
                self.known = self.known.max(beginning.durable).max(position.seq);
                self.history = Some(position.history);
                self.read = position.seq;
            }
            Begun::No => {}
            Begun::Unclear { fault } => self.astray(at, LABEL_LEN, 1, fault.clone()),
        }
        let bytes = bytes_of(self.directory, &found.path, found.len)?;
        let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
        let mut offset = SEGMENT_HEADER_LEN;
        while offset < end {
            let (durable, here) = read(&bytes, found.label.salt, offset);
            self.known = self.known.max(durable);
            match here {
                Here::Record(header, body) => {
                    let place = (at, offset);
                    self.record(segments, place, header, body, apply)?;
                    offset += RECORD_FRAME_LEN + body.len();
                }
                Here::Mark => offset += MARK_LEN,
                Here::End(next) => {
                    offset += END_LEN;
                    if segments.iter().all(|found| found.ordinal != next) {
                        self.astray(at, offset, 0, NEXT_IS_MISSING);
                        self.is_cut_short = true;
                    }
                }
                Here::BadBody(len, fault) => {
                    self.astray(at, offset, len as u64, fault);
                    offset += len;
                }
                Here::Nothing(fault) => {
                    self.astray(at, offset, 1, fault);
                    offset += 1;
                }
            }
        }
        Ok(())
    }

    /// Bytes at `offset` can't be used.
    fn astray(&mut self, found: usize, offset: usize, bytes: u64, fault: Fault) {
        let first = Gap { found, offset: offset as u64, bytes: 0, fault };
        let gap = self.gap.get_or_insert(first);
        // In the segments behind as well: as if it were one.
        gap.bytes += bytes;
    }

    /// The batch at the snapshot's Seq must be of the snapshot's history.
    fn check_history(&mut self, at: usize, offset: usize, history: Option<HistoryId>) {
        let is_other = history.is_some_and(|history| history != self.from_history);
        if is_other && !self.is_foreign {
            self.is_foreign = true;
            self.astray(at, offset, 0, FOREIGN);
        }
    }

    fn lose(&mut self, segments: &[Found], gap: Option<Gap>, before: Option<Seq>) {
        let Some(Gap { found, offset, bytes, fault }) = gap else { return };
        let path = segments[found].path.clone();
        let what = Lost::Batches { after: self.last, before };
        self.lost.push(LostRange { path, offset, bytes, fault, what });
    }

    fn record(
        &mut self,
        segments: &[Found],
        (at, offset): (usize, usize),
        header: RecordHeader,
        body: &[u8],
        apply: &mut impl Apply,
    ) -> Result<()> {
        let found = &segments[at];
        let RecordHeader { seq, time_ms, .. } = header;
        let first = match header.kind {
            RecordKind::History => HistoryBody::decode(body).ok(),
            RecordKind::Batch => None,
        };
        // Behind a gap nobody knows, before another history begins.
        let own = self.history.filter(|_| seq.0 == self.read.0 + 1);
        let own = first.as_ref().map(|first| first.history).or(own);
        match self.from {
            Seq(0) => {}
            from if from == seq => self.check_history(at, offset, own),
            from if from == self.read => self.check_history(at, offset, self.history),
            _ => {}
        }
        (self.read, self.history) = (seq, own);
        if seq <= self.from {
            // In the snapshot; and so is whatever lies damaged before it.
            if !self.is_foreign {
                (self.gap, self.is_cut_short) = (None, false);
            }
            self.chain = (seq == self.from).then_some(header.chain);
            return Ok(());
        }
        let is_next = seq.0 == self.last.0 + 1;
        let follows = |chain| header.check_place(chain, self.last).is_ok();
        if self.is_foreign || seq <= self.last || (is_next && !self.chain.is_none_or(follows)) {
            // Of another history, left by somebody who should not have.
            let fault = Fault::Foreign { field: "record that does not follow the one before" };
            self.astray(at, offset, (RECORD_FRAME_LEN + body.len()) as u64, fault);
            return Ok(());
        }
        if !is_next {
            let nothing = Gap { found: at, offset: offset as u64, bytes: 0, fault: Fault::Missing };
            let gap = self.gap.take().unwrap_or(nothing);
            self.lose(segments, Some(gap), Some(seq));
        }
        (self.gap, self.is_cut_short) = (None, false);
        (self.last, self.chain) = (seq, Some(header.chain));
        self.time_ms = self.time_ms.max(time_ms);
        self.batches += 1;
        let position = Position { history: self.history.unwrap_or_default(), seq };
        let record = RecordAt { position, time_ms, segment: found.ordinal, offset: offset as u64 };
        if header.kind == RecordKind::History {
            return Ok(());
        }
        let applied = apply.batch(&record, body);
        applied.map_err(|error| error.at(&found.path, offset as u64))
    }
}

/// What lies at `offset`, and how far the frame there says that the log was durable.
fn read(bytes: &[u8], salt: u64, offset: usize) -> (Seq, Here<'_>) {
    let rest = &bytes[offset..];
    // A frame has a kind from 1 to 3: most places need no checksum to be told that they hold none.
    if !rest.get(4).is_some_and(|kind| (1..=3).contains(kind)) {
        return (Seq(0), Here::Nothing(Fault::Missing));
    }
    let frame = match Frame::decode(rest, salt, offset as u64) {
        Ok(Some(frame)) => frame,
        Ok(None) => return (Seq(0), Here::Nothing(Fault::Missing)),
        Err(damage) => return (Seq(0), Here::Nothing(damage.fault)),
    };
    let here = match frame.framed {
        Framed::Mark { .. } => Here::Mark,
        Framed::End { next } => Here::End(next),
        Framed::Record(header) => {
            let len = RECORD_FRAME_LEN.saturating_add(header.body_len as usize);
            match rest.get(RECORD_FRAME_LEN..len) {
                None => Here::BadBody(rest.len(), Fault::Missing),
                Some(body) => match check(&header, body) {
                    Ok(()) => Here::Record(header, body),
                    Err(fault) => Here::BadBody(len, fault),
                },
            }
        }
    };
    (frame.durable, here)
}

fn check(header: &RecordHeader, body: &[u8]) -> std::result::Result<(), Fault> {
    header.check_body(body).map_err(|damage| damage.fault)?;
    if header.kind == RecordKind::History {
        return HistoryBody::decode(body).map(drop).map_err(|damage| damage.fault);
    }
    // All of a batch or nothing.
    Effects::new(body).try_for_each(|effect| match effect.map_err(|damage| damage.fault)? {
        Effect::Put { key, value, expire_at } => {
            catalogue_entry(key, Some(value), expire_at).map(drop)
        }
        _ => Ok(()),
    })
}
