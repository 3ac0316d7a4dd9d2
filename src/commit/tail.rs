//! The log's tail: records that have their place and are not in a file yet.
//!
//! What a batch does is encoded and summed before it asks for its place ([`Body`]); under the commit lock a header is
//! made and both are appended here, in the order of the Seqs, which is how the log comes to be in the order of
//! effect. Whoever brings the tail to the file takes all of it at once ([`Drained`]) and puts the
//! frames into the room that was left for them.

use std::cell::Cell;

use crate::format::codec::crc;
use crate::format::log::{Base, FRAME_LEN, RECORD_FRAME_LEN};
use crate::format::record::{Effect, HistoryBody, RECORD_HEADER_LEN, RecordHeader, RecordKind};
use crate::position::{Position, Seq};

/// Bodies longer than this are handed over, not copied under the lock.
const LINKED_MIN: usize = 4 << 10;

/// What a batch does, on its way to its place in the order.
#[derive(Debug)]
pub(crate) enum Body {
    /// There is no log: nothing needs encoding.
    Unlogged,
    Logged(Encoded),
    /// Read from the log: the place is known already.
    Replayed {
        position: Position,
        time_ms: u64,
    },
    /// A record of another node's, which goes into this one's log as it is.
    Forwarded(Forwarded),
}

impl Body {
    /// Whether it is somebody else's: it takes place whatever it comes to here.
    pub(crate) fn is_given(&self) -> bool {
        matches!(self, Body::Replayed { .. } | Body::Forwarded(_))
    }
}

/// A record as it came.
#[derive(Debug)]
pub(crate) struct Forwarded {
    pub(crate) header: RecordHeader,
    pub(crate) body: Vec<u8>,
}

impl Forwarded {
    fn record_len(&self) -> u64 {
        (RECORD_FRAME_LEN + self.body.len()) as u64
    }
}

/// The bytes of a batch's body, their sum, and the time by the wall clock.
#[derive(Debug)]
pub(crate) struct Encoded {
    bytes: Vec<u8>,
    crc: u32,
    now_ms: u64,
}

thread_local! {
    /// The last small body's memory, for the next.
    static BODY: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl Encoded {
    /// Encodes what `effects` hands to its argument, at `now_ms`.
    pub(crate) fn of(now_ms: u64, effects: impl FnOnce(&mut dyn FnMut(Effect<'_>))) -> Self {
        let mut bytes = BODY.take();
        bytes.clear();
        effects(&mut |effect| effect.encode(&mut bytes));
        let crc = crc(&[&bytes]);
        Self { bytes, crc, now_ms }
    }

    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// What the record takes in the log.
    fn record_len(&self) -> u64 {
        (RECORD_FRAME_LEN + self.bytes.len()) as u64
    }
}

impl Drop for Encoded {
    fn drop(&mut self) {
        if self.bytes.capacity() <= LINKED_MIN {
            BODY.set(std::mem::take(&mut self.bytes));
        }
    }
}

/// See the file's head; part of what the commit lock protects.
#[derive(Debug)]
pub(crate) struct Tail {
    /// For each record room for a frame, its header, and its body if that is not linked.
    bytes: Vec<u8>,
    linked: Vec<Linked>,
    /// What all of it takes in the log.
    len: u64,
    /// What it may take: so much is sure to have a place.
    limit: u64,
    /// The chain up to the last record.
    chain: u32,
}

/// A long body, and where among the bytes it belongs.
#[derive(Debug)]
pub(crate) struct Linked {
    pub(crate) at: usize,
    pub(crate) body: Vec<u8>,
}

/// A tail that was taken away to be written.
#[derive(Debug)]
pub(crate) struct Drained {
    pub(crate) bytes: Vec<u8>,
    pub(crate) linked: Vec<Linked>,
    /// What holds after the last of the records.
    pub(crate) base: Base,
    /// The sum over all entries then.
    pub(crate) fingerprint: u64,
}

impl Tail {
    /// An empty tail behind a log that ends at the chain `chain`; nothing may be appended before there is a
    /// [limit](Self::set_limit).
    pub(crate) fn new(chain: u32) -> Self {
        Self { bytes: Vec::new(), linked: Vec::new(), len: 0, limit: 0, chain }
    }

    /// How much there must be room for, so that what `body` adds has a place for certain, if it has none now; `begins_history`: that
    /// of a new history comes before it.
    pub(crate) fn wants(&self, body: &Body, begins_history: bool) -> Option<u64> {
        let (record, history) = match body {
            Body::Unlogged | Body::Replayed { .. } => return None,
            Body::Logged(encoded) => (encoded.record_len(), HISTORY_LEN),
            // No history of one's own begins with it.
            Body::Forwarded(forwarded) => (forwarded.record_len(), 0),
        };
        let now = if begins_history { record + history } else { record };
        (self.len + now > self.limit).then_some(record + history)
    }

    /// Whether a record that begins a history has a place.
    pub(crate) fn has_room_for_history(&self) -> bool {
        self.len + HISTORY_LEN <= self.limit
    }

    /// From now on so many bytes may wait here.
    pub(crate) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Appends the record that begins a history.
    pub(crate) fn append_history(&mut self, body: &HistoryBody, seq: Seq, time_ms: u64) {
        let body = body.encode();
        let crc = crc(&[&body]);
        self.append_small(RecordKind::History, &body, crc, seq, time_ms);
    }

    /// Appends the record of a batch. A long body moves out of `body`.
    pub(crate) fn append(&mut self, body: &mut Encoded, seq: Seq, time_ms: u64) {
        if body.bytes.len() < LINKED_MIN {
            return self.append_small(RecordKind::Batch, &body.bytes, body.crc, seq, time_ms);
        }
        let body_bytes = std::mem::take(&mut body.bytes);
        self.append_header(RecordKind::Batch, body_bytes.len(), body.crc, seq, time_ms);
        self.linked.push(Linked { at: self.bytes.len(), body: body_bytes });
    }

    /// Appends a record of another node's. A long body moves out of it.
    pub(crate) fn forward(&mut self, record: &mut Forwarded) {
        let Forwarded { header, body } = record;
        self.append_head(header, body.len());
        match body.len() < LINKED_MIN {
            true => self.bytes.extend_from_slice(body),
            false => {
                self.linked.push(Linked { at: self.bytes.len(), body: std::mem::take(body) });
            }
        }
    }

    fn append_small(&mut self, kind: RecordKind, body: &[u8], crc: u32, seq: Seq, time_ms: u64) {
        self.append_header(kind, body.len(), crc, seq, time_ms);
        self.bytes.extend_from_slice(body);
    }

    fn append_header(
        &mut self,
        kind: RecordKind,
        body_len: usize,
        crc: u32,
        seq: Seq,
        time_ms: u64,
    ) {
        #[expect(clippy::cast_possible_truncation, reason = "batches are limited to less")]
        let sums = (body_len as u32, crc);
        self.append_head(&RecordHeader::following(self.chain, kind, sums, seq, time_ms), body_len);
    }

    fn append_head(&mut self, header: &RecordHeader, body_len: usize) {
        self.chain = header.chain;
        self.len += (RECORD_FRAME_LEN + body_len) as u64;
        let mut head = [0; FRAME_LEN + RECORD_HEADER_LEN];
        head[FRAME_LEN..].copy_from_slice(&header.encode());
        self.bytes.extend_from_slice(&head);
    }

    /// Takes everything away; `empty` takes its place.
    pub(crate) fn drain(&mut self, empty: Vec<u8>) -> (Vec<u8>, Vec<Linked>) {
        // What is taken needs its place still.
        self.limit = self.limit.saturating_sub(self.len);
        self.len = 0;
        (std::mem::replace(&mut self.bytes, empty), std::mem::take(&mut self.linked))
    }

    /// What follows goes behind other records.
    pub(crate) fn go_on_from(&mut self, chain: u32) {
        self.chain = chain;
    }

    /// The chain up to the last record.
    pub(crate) fn chain(&self) -> u32 {
        self.chain
    }

    /// What all of it takes in the log.
    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Whether nothing waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// What a history's record takes in the log.
pub(crate) const HISTORY_LEN: u64 =
    (RECORD_FRAME_LEN + crate::format::record::HISTORY_BODY_LEN) as u64;

#[cfg(test)]
mod tests {
    use super::*;

    /// A primary that takes back its own before it has written anything has drawn the history that begins with its first write, and not with what it takes
    /// back. It asked for room for both, and was given what it said that it wants, without end.
    #[test]
    fn what_is_wanted_is_enough() {
        let kind = RecordKind::Batch;
        let body = vec![7; 100];
        let header = RecordHeader::following(0, kind, (100, crc(&[&body])), Seq(1), 0);
        let forwarded = Body::Forwarded(Forwarded { header, body });
        let logged = Body::Logged(Encoded::of(0, |put| put(Effect::Remove { key: b"key" })));
        for (body, begins_history) in [(&forwarded, true), (&forwarded, false), (&logged, true)] {
            let mut tail = Tail::new(0);
            while let Some(wanted) = tail.wants(body, begins_history) {
                assert!(tail.limit < wanted, "it has been given that");
                tail.set_limit(wanted);
            }
        }
    }
}
