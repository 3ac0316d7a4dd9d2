//! The log as those read it who follow: records in order, each proven, from any batch that is still there.
//!
//! What is in the files up to [`Log::written`] is whole: a feed reads that far and no further, from the system's memory while it
//! keeps up and from the disk when it doesn't, and costs writers nothing either way. The file it reads stays open: that the
//! log lets go of its name does not matter.

use std::path::PathBuf;
use std::sync::Arc;

use super::log::Log;
use super::segment::{Begun, Found};
use super::{DiskFile, read_exact_at};
use crate::error::{Error, Fault, Result};
use crate::format::log::SEGMENT_HEADER_LEN;
use crate::format::log::{Base, Beginning, END_LEN, FRAME_LEN, Frame, Framed, RECORD_FRAME_LEN};
use crate::format::record::{HistoryBody, RecordHeader, RecordKind};
use crate::planted::{Bug, planted};
use crate::position::{Position, Seq};

/// So much is read at a time at the least, and the most, unless one record is longer. In between it follows what there was to read.
const LEAST: usize = 4 << 10;
const PIECE: usize = 256 << 10;

/// See the file's head.
pub(crate) struct Feed {
    log: Arc<Log>,
    /// How often the log had begun anew: after that nothing here goes on.
    restarts: u64,
    segment: Option<Reading>,
    /// What the last record leaves.
    base: Base,
}

/// The segment that is read.
struct Reading {
    ordinal: u64,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    salt: u64,
    len: u64,
    /// Where the next frame begins.
    offset: u64,
    /// Bytes from there on, as they were when they were read.
    piece: Vec<u8>,
    /// So much is read next.
    wanted: usize,
}

/// What a feed shows.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shown<'a> {
    Record {
        header: &'a RecordHeader,
        body: &'a [u8],
    },
    /// All up to here sums up to this.
    Mark {
        fingerprint: u64,
    },
}

/// How reading went on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fed {
    /// All that is in the files was shown.
    All,
    /// There is more.
    More,
    /// What would come next is not in the log any more.
    Gone,
}

impl Feed {
    /// Of the batches after `after`; `None` if the log does not go back so far.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corrupt`].
    pub(crate) fn open(log: &Arc<Log>, after: Seq) -> Result<Option<Self>> {
        let (_, restarts) = log.ordinals();
        let position = Position { seq: after, ..Position::default() };
        let base = Base { position, ..Base::default() };
        let mut feed = Self { log: Arc::clone(log), restarts, segment: None, base };
        if !feed.find()? {
            feed.base = log.base();
            return Ok((feed.base.position.seq == after).then_some(feed));
        }
        let after = if planted(Bug::FeedOneTooFar) { Seq(after.0 + 1) } else { after };
        while feed.base.position.seq < after {
            match feed.next(after, PIECE, &mut |_| ())? {
                Fed::Gone => return Ok(None),
                // It ends before.
                Fed::All if feed.base.position.seq < after => return Ok(None),
                _ => {}
            }
        }
        Ok(Some(feed))
    }

    /// As [`open`](Self::open), for who wants what is yet to come, mostly: then what was is not read, nor proven once more.
    ///
    /// # Errors
    /// Those of [`open`](Self::open).
    pub(crate) fn open_near_end(log: &Arc<Log>, after: Seq) -> Result<Option<Self>> {
        let (_, restarts) = log.ordinals();
        if let Some((ordinal, offset, base)) = log.end()
            && base.position.seq == after
            && let Some(found) = Self::hold(log, ordinal)?
        {
            let segment = Some(Reading { offset, ..Reading::of(found) });
            return Ok(Some(Self { log: Arc::clone(log), restarts, segment, base }));
        }
        Self::open(log, after)
    }

    /// The last batch that was shown.
    pub(crate) fn position(&self) -> Position {
        self.base.position
    }

    /// The file that is read.
    pub(crate) fn path(&self) -> PathBuf {
        let reading = self.segment.as_ref().map(|segment| &segment.path);
        reading.unwrap_or(&self.log.directory.path).clone()
    }

    /// The first batch that a feed can show.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corrupt`].
    pub(crate) fn oldest(log: &Log) -> Result<Seq> {
        let (ordinals, _) = log.ordinals();
        let mut after = log.base().position.seq;
        let mut next = None;
        for ordinal in ordinals.into_iter().rev() {
            // Between the two the log began anew.
            if next.is_some_and(|previous| previous != Some(ordinal)) {
                break;
            }
            let Some(found) = Self::hold(log, ordinal)? else { break };
            let Begun::Yes(beginning) = &found.beginning else { break };
            after = beginning.base.position.seq;
            next = Some(beginning.previous.map(|(ordinal, _)| ordinal));
        }
        Ok(Seq(after.0.saturating_add(1)))
    }

    /// Bytes of the log that come next, about.
    pub(crate) fn bytes_ahead(&self) -> u64 {
        let at = self.segment.as_ref().map_or((0, 0), |reading| (reading.ordinal, reading.offset));
        self.log.bytes_behind(at.0, at.1)
    }

    /// The chain up to it.
    pub(crate) fn chain(&self) -> u32 {
        self.base.chain
    }

    /// Shows the records that follow, up to some `most` bytes of them, none behind `last`; and what lies between them.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corrupt`]: nothing that is not proven is shown.
    pub(crate) fn next(
        &mut self,
        last: Seq,
        most: usize,
        show: &mut dyn FnMut(Shown<'_>),
    ) -> Result<Fed> {
        let mut shown = 0;
        loop {
            let end = self.log.to_be_shown().min(last);
            // On another line the same numbers mean something else.
            if self.log.restarts() != self.restarts {
                return Ok(Fed::Gone);
            }
            if self.base.position.seq >= end {
                return Ok(Fed::All);
            }
            if shown >= most {
                return Ok(Fed::More);
            }
            if self.segment.is_none() && !self.find()? {
                return Ok(Fed::Gone);
            }
            match self.read(end, most - shown, show)? {
                Some(bytes) => shown += bytes,
                None if self.follow()? => {}
                None => return Ok(Fed::Gone),
            }
        }
    }

    /// Opens the segment in which the next record lies.
    fn find(&mut self) -> Result<bool> {
        let (ordinals, restarts) = self.log.ordinals();
        if restarts != self.restarts {
            return Ok(false);
        }
        for ordinal in ordinals.into_iter().rev() {
            // So are all that are older.
            let Some(found) = Self::hold(&self.log, ordinal)? else { return Ok(false) };
            if let Begun::Yes(beginning) = &found.beginning
                && beginning.base.position.seq <= self.base.position.seq
            {
                self.base = beginning.base;
                self.segment = Some(Reading::of(found));
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A segment, unless it has gone.
    fn hold(log: &Log, ordinal: u64) -> Result<Option<Found>> {
        match Found::hold(&log.directory, ordinal) {
            Err(Error::Io { op: "open", source, .. })
                if source.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(None)
            }
            found => found.map(Some),
        }
    }

    /// Whether the log goes on behind `offset` of this segment, in the next: what lies there means nothing then, be it the end of the segment
    /// that a power cut has left in part.
    fn is_left_at(log: &Log, ordinal: u64, offset: u64) -> Result<bool> {
        let (ordinals, _) = log.ordinals();
        let Some(next) = ordinals.into_iter().find(|next| *next > ordinal) else {
            return Ok(false);
        };
        let found = Self::hold(log, next)?;
        Ok(found.is_some_and(|found| match &found.beginning {
            Begun::Yes(beginning) => beginning.previous == Some((ordinal, offset)),
            _ => false,
        }))
    }

    /// Goes on in the segment behind the present one, which has been read to its end.
    fn follow(&mut self) -> Result<bool> {
        let Some(before) = self.segment.take() else { return Ok(false) };
        let (ordinals, restarts) = self.log.ordinals();
        let next = ordinals.into_iter().find(|ordinal| *ordinal > before.ordinal);
        let Some(next) = next.filter(|_| restarts == self.restarts) else { return Ok(false) };
        let Some(found) = Self::hold(&self.log, next)? else { return Ok(false) };
        match &found.beginning {
            Begun::Yes(beginning)
                if beginning.base == self.base
                    && beginning.previous == Some((before.ordinal, before.offset)) =>
            {
                self.segment = Some(Reading::of(found));
                Ok(true)
            }
            // There the log began anew, or what lies between has gone.
            Begun::Yes(Beginning { previous, .. })
                if previous.is_none_or(|(ordinal, _)| ordinal != before.ordinal) =>
            {
                Ok(false)
            }
            _ => {
                let fault = Fault::Foreign { field: "the segment that should follow" };
                Err(Error::corrupt(&found.path, 0, fault))
            }
        }
    }

    /// Shows records of the present segment up to `end`, some `most` bytes of them; how many. `None` at its end.
    fn read(
        &mut self,
        end: Seq,
        most: usize,
        show: &mut dyn FnMut(Shown<'_>),
    ) -> Result<Option<usize>> {
        let segment = self.segment.as_mut().expect("it was found");
        let damaged = |path: &std::path::Path, offset, fault| Error::corrupt(path, offset, fault);
        segment.fill(segment.wanted)?;
        let (mut at, mut shown) = (0, 0);
        let mut is_over = false;
        while self.base.position.seq < end && shown < most {
            let rest = &segment.piece[at..];
            let here = segment.offset + at as u64;
            let is_last_piece = here + rest.len() as u64 >= segment.len;
            if rest.len() < RECORD_FRAME_LEN && !is_last_piece {
                break;
            }
            if is_last_piece && (rest.len() < END_LEN || rest[..FRAME_LEN].iter().all(|b| *b == 0))
            {
                is_over = true;
                break;
            }
            let frame = match Frame::decode(rest, segment.salt, here) {
                Err(_) if Self::is_left_at(&self.log, segment.ordinal, here)? => None,
                frame => frame.map_err(|damage| damaged(&segment.path, here, damage.fault))?,
            };
            let Some(frame) = frame else {
                is_over = true;
                break;
            };
            let header = match frame.framed {
                Framed::Record(header) => header,
                Framed::End { .. } => {
                    is_over = true;
                    break;
                }
                Framed::Mark { seq, fingerprint } => {
                    // Behind the record that it speaks of, or, after a sync, of none that follows it.
                    if seq == self.base.position.seq {
                        show(Shown::Mark { fingerprint });
                    }
                    at += frame.len();
                    continue;
                }
            };
            let len = RECORD_FRAME_LEN + header.body_len as usize;
            let Some(body) = rest.get(RECORD_FRAME_LEN..len) else {
                if is_last_piece {
                    let (field, needed) = ("body of a record", len as u64);
                    let fault = Fault::Truncated { field, needed, available: rest.len() as u64 };
                    return Err(damaged(&segment.path, here, fault));
                }
                if at == 0 {
                    segment.fill(len)?;
                    continue;
                }
                break;
            };
            let proven = header
                .check_place(self.base.chain, self.base.position.seq)
                .and_then(|()| header.check_body(body));
            proven.map_err(|damage| damaged(&segment.path, here, damage.fault))?;
            if header.kind == RecordKind::History {
                let history = HistoryBody::decode(body)
                    .map_err(|damage| damaged(&segment.path, here, damage.fault))?;
                self.base.position.history = history.history;
            }
            show(Shown::Record { header: &header, body });
            self.base.position.seq = header.seq;
            (self.base.time_ms, self.base.chain) = (header.time_ms, header.chain);
            at += len;
            shown += len;
        }
        segment.offset += at as u64;
        segment.wanted = if at * 2 > segment.wanted { at * 4 } else { at * 2 }.clamp(LEAST, PIECE);
        Ok((!is_over || shown > 0).then_some(shown))
    }
}

impl Reading {
    fn of(found: Found) -> Self {
        let (ordinal, path, salt, len) =
            (found.ordinal, found.path.clone(), found.label.salt, found.len);
        let file = found.into_file().expect("it is held");
        let offset = SEGMENT_HEADER_LEN as u64;
        Self { ordinal, path, file, salt, len, offset, piece: Vec::new(), wanted: LEAST }
    }

    /// Reads `wanted` bytes from the offset on, or all there are. What was read before may not have been written then.
    fn fill(&mut self, wanted: usize) -> Result<()> {
        let told = |source| Error::io("read", &self.path, source);
        // At close it is cut where it ends.
        self.len = self.file.len().map_err(told)?;
        let rest = usize::try_from(self.len.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        self.piece.resize(wanted.min(rest), 0);
        read_exact_at(&*self.file, &mut self.piece, self.offset).map_err(told)
    }
}
