//! One batch in bytes: the same in memory, in the log and on a link.
//!
//! A record says what a batch did, never under which condition, so that applying it is certain. Its body is
//! encoded and summed before the batch has its place; the header is made when it gets it. The *chain* is a
//! number over all records of the line so far: two records that do not belong behind one another don't fit.

use super::codec::{
    Damage, Decoded, Decoder, check_crc, check_fingerprint, crc, equal, put_varint,
};
use super::{KEYSPACE_ID_LEN, MAX_INTERNAL_KEY_LEN, MAX_VALUE_LEN};
use crate::error::Fault;
use crate::planted::{Bug, planted};
use crate::position::{HistoryId, Seq};
use xxhash_rust::xxh3::xxh3_64;

pub(crate) const RECORD_HEADER_LEN: usize = 32;
/// The longest body.
pub(crate) const MAX_BODY_LEN: usize = MAX_BODY_LEN_U32 as usize;
pub(crate) const MAX_BODY_LEN_U32: u32 = 0x7FFF_FFFF;

const CHAIN_AT: usize = 28;

/// What a record stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RecordKind {
    /// Effects on entries.
    Batch,
    /// The first record of a history.
    History,
}

impl RecordKind {
    /// Persistent: numbered by hand, never reused.
    fn id(self) -> u8 {
        match self {
            RecordKind::Batch => 1,
            RecordKind::History => 2,
        }
    }
}

/// The head of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    pub(crate) body_len: u32,
    pub(crate) body_crc: u32,
    pub(crate) seq: Seq,
    pub(crate) time_ms: u64,
    pub(crate) kind: RecordKind,
    /// The chain up to this record, itself included.
    pub(crate) chain: u32,
}

impl RecordHeader {
    /// The header of the record that follows one whose chain is `previous`.
    pub(crate) fn following(
        previous: u32,
        kind: RecordKind,
        (body_len, body_crc): (u32, u32),
        seq: Seq,
        time_ms: u64,
    ) -> Self {
        let header = RecordHeader { body_len, body_crc, seq, time_ms, kind, chain: 0 };
        RecordHeader { chain: header.chain_after(previous), ..header }
    }

    /// The chain of this record if that of its predecessor is `previous`.
    pub(crate) fn chain_after(&self, previous: u32) -> u32 {
        let mut input = [0; 4 + CHAIN_AT];
        let (before, own) = input.split_at_mut(4);
        before.copy_from_slice(&previous.to_le_bytes());
        let header = self.encode();
        if let Some(head) = header.get(..CHAIN_AT) {
            own.copy_from_slice(head);
        }
        #[expect(clippy::cast_possible_truncation, reason = "the low half is the chain")]
        let chain = xxh3_64(&input) as u32;
        chain
    }

    #[inline]
    pub(crate) fn encode(&self) -> [u8; RECORD_HEADER_LEN] {
        let mut out = [0; RECORD_HEADER_LEN];
        let mut rest = &mut out[..];
        let mut put = |bytes: &[u8]| {
            let (to, after) = std::mem::take(&mut rest).split_at_mut(bytes.len());
            to.copy_from_slice(bytes);
            rest = after;
        };
        put(&self.body_len.to_le_bytes());
        put(&self.body_crc.to_le_bytes());
        put(&self.seq.0.to_le_bytes());
        put(&self.time_ms.to_le_bytes());
        put(&[self.kind.id(), 0, 0, 0]);
        put(&self.chain.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8; RECORD_HEADER_LEN]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        let body_len = d.u32_in("body length", 1, MAX_BODY_LEN)?;
        let body_crc = d.u32("body checksum")?;
        let seq = d.seq("seq")?;
        let time_ms = d.u64("time")?;
        let at = d.at();
        let kind = match d.u8("kind of record")? {
            1 => RecordKind::Batch,
            2 => RecordKind::History,
            got => {
                let fault =
                    Fault::Range { field: "kind of record", got: got.into(), min: 1, max: 2 };
                return Err(Damage::new(at, fault));
            }
        };
        d.zeros("reserved bytes of a record", 3)?;
        let chain = d.u32("chain")?;
        Ok(RecordHeader { body_len, body_crc, seq, time_ms, kind, chain })
    }

    /// Refuses a body that is not this record's; places count from the record's start.
    pub(crate) fn check_body(&self, body: &[u8]) -> Decoded<()> {
        check_crc(RECORD_HEADER_LEN, "body of a record", crc(&[body]), self.body_crc)
    }

    /// Refuses a record that does not follow one of chain `previous` and number `after`.
    pub(crate) fn check_place(&self, previous: u32, after: Seq) -> Decoded<()> {
        equal(8, "seq of a record", self.seq.0, after.0.saturating_add(1))?;
        if planted(Bug::ChainUnchecked) {
            return Ok(());
        }
        let chain = self.chain_after(previous);
        check_fingerprint(CHAIN_AT, "chain of a record", self.chain.into(), chain.into())
    }
}

/// The body of a history's first record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HistoryBody {
    pub(crate) history: HistoryId,
    pub(crate) term: u64,
    /// The node that writes it.
    pub(crate) writer: [u8; 16],
}

pub(crate) const HISTORY_BODY_LEN: usize = 40;

impl HistoryBody {
    pub(crate) fn encode(&self) -> [u8; HISTORY_BODY_LEN] {
        let mut out = [0; HISTORY_BODY_LEN];
        let (history, rest) = out.split_at_mut(16);
        history.copy_from_slice(&self.history.0);
        let (term, writer) = rest.split_at_mut(8);
        term.copy_from_slice(&self.term.to_le_bytes());
        writer.copy_from_slice(&self.writer);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        let history = HistoryId(d.array("history")?);
        let (term, writer) = (d.u64("term")?, d.array("writer")?);
        d.finish("history record")?;
        Ok(HistoryBody { history, term, writer })
    }
}

/// One effect of a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect<'a> {
    /// `key` has `value` from now on; `expire_at` is 0 for never.
    Put { key: &'a [u8], value: &'a [u8], expire_at: u64 },
    /// `key` has no value from now on.
    Remove { key: &'a [u8] },
    /// As [`Remove`](Effect::Remove), since the entry's time was past.
    Expire { key: &'a [u8] },
    /// No key in `[low, high)` has a value from now on, but for those the same batch puts.
    RemoveRange { low: &'a [u8], high: &'a [u8] },
}

/// Persistent: numbered by hand, never reused.
const PUT: u8 = 1;
const PUT_EXPIRING: u8 = 2;
const REMOVE: u8 = 3;
const REMOVE_RANGE: u8 = 4;
const EXPIRE: u8 = 5;

/// Ends of removed ranges may lie one byte beyond the longest key.
const MAX_END_LEN: usize = MAX_INTERNAL_KEY_LEN + 1;

impl Effect<'_> {
    /// Appends the effect to a body.
    #[inline]
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        // All lengths were checked against limits that fit.
        let len = |bytes: &[u8]| u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        match *self {
            Effect::Put { key, value, expire_at } => {
                out.reserve(key.len().saturating_add(value.len()).saturating_add(20));
                out.push(if expire_at == 0 { PUT } else { PUT_EXPIRING });
                put_varint(out, len(key));
                put_varint(out, len(value));
                if expire_at != 0 {
                    out.extend_from_slice(&expire_at.to_le_bytes());
                }
                out.extend_from_slice(key);
                out.extend_from_slice(value);
            }
            Effect::Remove { key } | Effect::Expire { key } => {
                out.push(if matches!(self, Effect::Remove { .. }) { REMOVE } else { EXPIRE });
                put_varint(out, len(key));
                out.extend_from_slice(key);
            }
            Effect::RemoveRange { low, high } => {
                out.push(REMOVE_RANGE);
                put_varint(out, len(low));
                put_varint(out, len(high));
                out.extend_from_slice(low);
                out.extend_from_slice(high);
            }
        }
    }
}

/// The effects in a batch's body, in its order: ranges first, ascending and apart, then keys, ascending.
#[derive(Debug, Clone)]
pub(crate) struct Effects<'a> {
    d: Decoder<'a>,
    len: usize,
    last_high: Option<&'a [u8]>,
    last_key: Option<&'a [u8]>,
    failed: bool,
}

impl<'a> Effects<'a> {
    pub(crate) fn new(body: &'a [u8]) -> Self {
        let d = Decoder::new(body);
        Effects { d, len: body.len(), last_high: None, last_key: None, failed: false }
    }

    fn decode(&mut self) -> Decoded<Effect<'a>> {
        let at = self.d.at();
        let out_of_order = |field| Err(Damage::new(at, Fault::Order { field }));
        let tag = self.d.u8("kind of effect")?;
        let effect = match tag {
            PUT | PUT_EXPIRING => {
                let key_len = self.d.varint("key length", MAX_INTERNAL_KEY_LEN)? as usize;
                let value_len = self.d.varint("value length", MAX_VALUE_LEN)? as usize;
                let expire_at = if tag == PUT { 0 } else { self.d.u64("expiry")? };
                if tag == PUT_EXPIRING && expire_at == 0 {
                    let min = Fault::Range { field: "expiry", got: 0, min: 1, max: u64::MAX };
                    return Err(Damage::new(at, min));
                }
                let key = self.key(key_len)?;
                Effect::Put { key, value: self.d.bytes("value", value_len)?, expire_at }
            }
            REMOVE | EXPIRE => {
                let key_len = self.d.varint("key length", MAX_INTERNAL_KEY_LEN)? as usize;
                let key = self.key(key_len)?;
                if tag == REMOVE { Effect::Remove { key } } else { Effect::Expire { key } }
            }
            REMOVE_RANGE => {
                let low_len = self.d.varint("length of a range's start", MAX_END_LEN)? as usize;
                let high_len = self.d.varint("length of a range's end", MAX_END_LEN)? as usize;
                let low = self.d.bytes("start of a range", low_len)?;
                let high = self.d.bytes("end of a range", high_len)?;
                let is_apart = self.last_high.is_none_or(|last| last <= low);
                let is_one = low.first_chunk().is_some_and(|id| within_keyspace(*id, high));
                if low >= high || !is_apart || !is_one || self.last_key.is_some() {
                    return out_of_order("ranges of a batch");
                }
                self.last_high = Some(high);
                return Ok(Effect::RemoveRange { low, high });
            }
            got => {
                let got = got.into();
                let fault = Fault::Range { field: "kind of effect", got, min: 1, max: 5 };
                return Err(Damage::new(at, fault));
            }
        };
        if let Effect::Put { key, .. } | Effect::Remove { key } | Effect::Expire { key } = effect {
            if self.last_key.is_some_and(|last| last >= key) {
                return out_of_order("keys of a batch");
            }
            self.last_key = Some(key);
        }
        Ok(effect)
    }

    fn key(&mut self, len: usize) -> Decoded<&'a [u8]> {
        let at = self.d.at();
        let key = self.d.bytes("key", len)?;
        if len < KEYSPACE_ID_LEN {
            let (min, max) = (KEYSPACE_ID_LEN as u64, MAX_INTERNAL_KEY_LEN as u64);
            let fault = Fault::Range { field: "key length", got: len as u64, min, max };
            return Err(Damage::new(at, fault));
        }
        Ok(key)
    }
}

/// Whether a range that begins in keyspace `id` and ends at `high` leaves it nowhere.
fn within_keyspace(id: [u8; KEYSPACE_ID_LEN], high: &[u8]) -> bool {
    let next = u32::from_be_bytes(id).checked_add(1).map(u32::to_be_bytes);
    high.starts_with(&id) || next.is_some_and(|next| high == next)
}

impl<'a> Iterator for Effects<'a> {
    /// Places count from the body's start. Nothing comes after an error.
    type Item = Decoded<Effect<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed || self.d.at() >= self.len {
            return None;
        }
        let effect = self.decode();
        self.failed = effect.is_err();
        Some(effect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8] = b"\0\0\0\x01key";

    fn body(effects: &[Effect<'_>]) -> Vec<u8> {
        let mut body = Vec::new();
        effects.iter().for_each(|effect| effect.encode(&mut body));
        body
    }

    fn all() -> [Effect<'static>; 5] {
        [
            Effect::RemoveRange { low: b"\0\0\0\x01", high: b"\0\0\0\x01a" },
            Effect::RemoveRange { low: b"\0\0\0\x01a", high: b"\0\0\0\x02" },
            Effect::Put { key: KEY, value: &[7; 300], expire_at: 0 },
            Effect::Remove { key: b"\0\0\0\x01kez" },
            Effect::Put { key: b"\0\0\0\x02", value: b"", expire_at: 9 },
        ]
    }

    #[test]
    fn effects_round_trip_and_every_cut_is_refused_or_shorter() {
        let body = body(&all());
        let decoded: Decoded<Vec<_>> = Effects::new(&body).collect();
        assert_eq!(decoded.unwrap(), all());
        for len in 0..body.len() {
            if let Ok(some) = Effects::new(&body[..len]).collect::<Decoded<Vec<_>>>() {
                assert!(some.len() < all().len());
            }
        }
    }

    #[test]
    fn effects_out_of_order_are_refused() {
        let put = |key| Effect::Put { key, value: b"v", expire_at: 0 };
        let range = |low, high| Effect::RemoveRange { low, high };
        let cases: [&[Effect<'_>]; 8] = [
            &[put(KEY), put(KEY)],
            &[put(KEY), Effect::Remove { key: b"\0\0\0\x01ke" }],
            &[put(KEY), range(b"\0\0\0\x02a", b"\0\0\0\x02b")],
            &[range(b"\0\0\0\x01b", b"\0\0\0\x01b")],
            &[range(b"\0\0\0\x01a", b"\0\0\0\x01c"), range(KEY, b"\0\0\0\x01d")],
            &[range(b"\0\0\0\x01a", b"\0\0\0\x01m"), range(KEY, b"\0\0\0\x02")],
            &[range(b"\0\0\0\x01a", b"\0\0\0\x02\0")],
            &[put(b"\0\0\0")],
        ];
        for case in cases {
            let body = body(case);
            let last = Effects::new(&body).last().unwrap();
            assert!(last.is_err(), "{case:?}");
        }
    }

    #[test]
    fn a_record_fits_behind_its_predecessor_only() {
        let body = body(&all());
        let sums = (u32::try_from(body.len()).unwrap(), crc(&[&body]));
        let header = RecordHeader::following(77, RecordKind::Batch, sums, Seq(9), 123);
        let decoded = RecordHeader::decode(&header.encode()).unwrap();
        assert_eq!(decoded, header);
        assert_eq!(decoded.check_body(&body), Ok(()));
        assert_eq!(decoded.check_place(77, Seq(8)), Ok(()));
        assert!(decoded.check_place(78, Seq(8)).is_err());
        assert!(decoded.check_place(77, Seq(7)).is_err());
        for at in 0..RECORD_HEADER_LEN {
            let mut bytes = header.encode();
            bytes[at] ^= 1;
            let refused = RecordHeader::decode(&bytes).and_then(|header| {
                header.check_place(77, Seq(8)).and_then(|()| header.check_body(&body))
            });
            assert!(refused.is_err(), "byte {at}");
        }
    }

    #[test]
    fn the_first_record_of_a_history_names_it() {
        let history = HistoryId(*b"0123456789abcdef");
        let body = HistoryBody { history, term: 3, writer: [9; 16] };
        assert_eq!(HistoryBody::decode(&body.encode()), Ok(body));
        assert!(HistoryBody::decode(&body.encode()[1..]).is_err());
    }
}
