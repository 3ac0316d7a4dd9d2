//! A segment of the log: its header, and the frame around each record.
//!
//! A record is the same everywhere; what is true of this one log alone stands in the frame: where it lies, and how
//! far the log was durable when it was written. A frame can be recognised by itself, without those before
//! it, so that damage in the middle is told from an end that was torn.

use super::VERSION;
use super::codec::{Damage, Decoded, Decoder, check_crc, crc, equal};
use super::record::{RECORD_HEADER_LEN, RecordHeader};
use crate::error::Fault;
use crate::planted::{Bug, planted};
use crate::position::{HistoryId, Position, Seq};
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// The label, written when the file is made, and behind it the beginning, written when the log goes on in it.
pub(crate) const SEGMENT_HEADER_LEN: usize = LABEL_LEN + BEGINNING_LEN;
pub(crate) const LABEL_LEN: usize = 64;
pub(crate) const BEGINNING_LEN: usize = 96;
const LABEL_CRC_AT: usize = 60;
const BEGINNING_CRC_AT: usize = 92;
pub(crate) const SEGMENT_MAGIC: [u8; 8] = *b"\x89STL\r\n\x1a\n";

/// The longest segment: room for the longest record, and more. Nobody need believe a longer one.
pub(crate) const MAX_SEGMENT_LEN: u64 = 1 << 32;

/// What stands before a record.
pub(crate) const FRAME_LEN: usize = 16;
/// Frame and header of a record: what the frame's checksum covers lies in here.
pub(crate) const RECORD_FRAME_LEN: usize = FRAME_LEN + RECORD_HEADER_LEN;
/// A frame with its mark.
pub(crate) const MARK_LEN: usize = FRAME_LEN + 16;
/// A frame that ends a segment.
pub(crate) const END_LEN: usize = FRAME_LEN + 8;

/// What a segment is told by, whether anything was written to it or not. Durable before it has its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label {
    /// The database it belongs to.
    pub(crate) dataset: [u8; 16],
    /// The number in the segment's name.
    pub(crate) ordinal: u64,
    /// Random, mixed into the checksum of every frame: what an older file left in this one is never valid.
    pub(crate) salt: u64,
}

/// What a segment goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Beginning {
    pub(crate) base: Base,
    /// The segment that this one goes on from, and where that one ends; `None` if it goes on from a snapshot.
    pub(crate) previous: Option<(u64, u64)>,
    /// How far the log was durable then.
    pub(crate) durable: Seq,
}

/// The last batch before some place in the log.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Base {
    pub(crate) position: Position,
    pub(crate) time_ms: u64,
    /// The chain up to that batch.
    pub(crate) chain: u32,
}

impl Label {
    pub(crate) fn encode(&self) -> [u8; LABEL_LEN] {
        let mut out = Vec::with_capacity(LABEL_LEN);
        out.extend_from_slice(&SEGMENT_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.dataset);
        out.extend_from_slice(&self.ordinal.to_le_bytes());
        out.extend_from_slice(&self.salt.to_le_bytes());
        seal(out, LABEL_CRC_AT)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        check_head(&mut d, SEGMENT_MAGIC)?;
        let dataset = d.array("data set")?;
        let (ordinal, salt) = (d.u64("ordinal")?, d.u64("salt")?);
        check_seal(&mut d, bytes, LABEL_CRC_AT, "label of a segment")?;
        Ok(Label { dataset, ordinal, salt })
    }
}

impl Beginning {
    pub(crate) fn encode(&self) -> [u8; BEGINNING_LEN] {
        let mut out = Vec::with_capacity(BEGINNING_LEN);
        out.extend_from_slice(&self.base.position.history.0);
        let (previous, end) = self.previous.unwrap_or_default();
        let Base { position, time_ms, chain } = self.base;
        for field in [position.seq.0, time_ms, previous, end, self.durable.0] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        out.extend_from_slice(&chain.to_le_bytes());
        seal(out, BEGINNING_CRC_AT)
    }

    /// `None` if the segment was made ahead and never begun. Places count from the file's start.
    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Option<Self>> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        Self::decode_begun(bytes).map(Some).map_err(|damage| damage.offset_by(LABEL_LEN))
    }

    fn decode_begun(bytes: &[u8]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        let history = HistoryId(d.array("history")?);
        let (seq, time_ms) = (d.seq("seq")?, d.u64("time")?);
        let previous = d.u64("predecessor")?;
        let at = d.at();
        let end = d.u64("end of the predecessor")?;
        if previous == 0 {
            equal(at, "end of no predecessor", end, 0)?;
        }
        let durable = d.seq("durable seq")?;
        let chain = d.u32("chain")?;
        check_seal(&mut d, bytes, BEGINNING_CRC_AT, "beginning of a segment")?;
        let base = Base { position: Position { history, seq }, time_ms, chain };
        Ok(Beginning { base, previous: (previous != 0).then_some((previous, end)), durable })
    }
}

/// Fills up to `crc_at` with zeros and adds the checksum.
pub(super) fn seal<const N: usize>(mut out: Vec<u8>, crc_at: usize) -> [u8; N] {
    out.resize(crc_at, 0);
    let sum = crc(&[&out]);
    out.extend_from_slice(&sum.to_le_bytes());
    let mut sealed = [0; N];
    if let Some(to) = sealed.get_mut(..out.len()) {
        to.copy_from_slice(&out);
    }
    sealed
}

/// Refuses all but zeros up to the checksum, and a checksum that isn't right; nothing may follow.
pub(super) fn check_seal(
    d: &mut Decoder<'_>,
    bytes: &[u8],
    crc_at: usize,
    field: &'static str,
) -> Decoded<()> {
    d.zeros("reserved bytes", crc_at.saturating_sub(d.at()))?;
    let stored = d.u32("checksum")?;
    d.finish(field)?;
    check_crc(crc_at, field, crc(&[bytes.get(..crc_at).unwrap_or_default()]), stored)
}

/// Magic, version, and no features.
pub(super) fn check_head(d: &mut Decoder<'_>, magic: [u8; 8]) -> Decoded<()> {
    if d.array("magic")? != magic {
        return Err(Damage::new(0, Fault::Magic));
    }
    let version = d.u32("version")?;
    if version != VERSION {
        return Err(Damage::new(8, Fault::Version { got: version, supported: VERSION }));
    }
    equal(12, "features", d.u32("features")?.into(), 0)
}

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framed {
    /// A record, whose body follows.
    Record(RecordHeader),
    /// Nothing but how far the log was durable, and what the entries summed up to after the record before.
    Mark { seq: Seq, fingerprint: u64 },
    /// The log goes on in the segment of this ordinal.
    End { next: u64 },
}

/// One frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    /// How far the log was durable when this was written.
    pub(crate) durable: Seq,
    pub(crate) framed: Framed,
}

/// Persistent: numbered by hand, never reused. 0 is what was never written.
const RECORD: u8 = 1;
const MARK: u8 = 2;
const END: u8 = 3;

impl Frame {
    /// Length of the frame with all that it covers, but without a record's body.
    pub(crate) fn len(&self) -> usize {
        match self.framed {
            Framed::Record(_) => RECORD_FRAME_LEN,
            Framed::Mark { .. } => MARK_LEN,
            Framed::End { .. } => END_LEN,
        }
    }

    /// Appends the frame as it lies at `offset` of the segment with this salt.
    pub(crate) fn encode(&self, salt: u64, offset: u64, out: &mut Vec<u8>) {
        let mut bytes = [0; RECORD_FRAME_LEN];
        let (frame, rest) = bytes.split_at_mut(FRAME_LEN);
        let (head, durable) = frame.split_at_mut(8);
        let mut put = |field: &[u8]| {
            if let Some(to) = rest.get_mut(..field.len()) {
                to.copy_from_slice(field);
            }
        };
        let kind = match self.framed {
            Framed::Record(header) => {
                put(&header.encode());
                RECORD
            }
            Framed::Mark { seq, fingerprint } => {
                put(&[seq.0.to_le_bytes(), fingerprint.to_le_bytes()].concat());
                MARK
            }
            Framed::End { next } => {
                put(&next.to_le_bytes());
                END
            }
        };
        durable.copy_from_slice(&self.durable.0.to_le_bytes());
        if let Some(at) = head.get_mut(4) {
            *at = kind;
        }
        Self::seal(&mut bytes, self.len(), salt, offset);
        out.extend(bytes.iter().take(self.len()));
    }

    /// Writes a record's frame in front of its header: `bytes` begin with room for the frame, then the header.
    pub(crate) fn fill(bytes: &mut [u8; RECORD_FRAME_LEN], durable: Seq, salt: u64, offset: u64) {
        let (head, rest) = bytes.split_at_mut(8);
        head.copy_from_slice(&[0, 0, 0, 0, RECORD, 0, 0, 0]);
        if let Some(to) = rest.get_mut(..8) {
            to.copy_from_slice(&durable.0.to_le_bytes());
        }
        Self::seal(bytes, RECORD_FRAME_LEN, salt, offset);
    }

    fn seal(bytes: &mut [u8; RECORD_FRAME_LEN], len: usize, salt: u64, offset: u64) {
        let sum = bytes.get(4..len).map_or(0, |covered| checksum(covered, salt, offset));
        if let Some(to) = bytes.get_mut(..4) {
            to.copy_from_slice(&sum.to_le_bytes());
        }
    }

    /// The frame at the start of `bytes`, which lie at `offset`; `None` if nothing was ever written here.
    pub(crate) fn decode(bytes: &[u8], salt: u64, offset: u64) -> Decoded<Option<Self>> {
        let mut d = Decoder::new(bytes);
        let stored = d.u32("frame checksum")?;
        let kind = d.u8("kind of frame")?;
        if stored == 0 && kind == 0 {
            return Ok(None);
        }
        let len = match kind {
            RECORD => RECORD_FRAME_LEN,
            MARK => MARK_LEN,
            END => END_LEN,
            got => {
                let fault =
                    Fault::Range { field: "kind of frame", got: got.into(), min: 1, max: 3 };
                return Err(Damage::new(4, fault));
            }
        };
        let covered = Decoder::new(bytes).bytes("frame", len)?;
        let covered = covered.get(4..).unwrap_or_default();
        if !planted(Bug::FrameUnchecked) {
            check_crc(0, "frame", checksum(covered, salt, offset), stored)?;
        }
        d.zeros("reserved bytes of a frame", 3)?;
        let durable = d.seq("durable seq")?;
        let framed = match kind {
            RECORD => Framed::Record(
                RecordHeader::decode(&d.array("header of a record")?)
                    .map_err(|damage| damage.offset_by(FRAME_LEN))?,
            ),
            MARK => Framed::Mark { seq: Seq(d.u64("seq")?), fingerprint: d.u64("fingerprint")? },
            _ => Framed::End { next: d.u64("next segment")? },
        };
        Ok(Some(Frame { durable, framed }))
    }
}

/// Over what a frame covers, the segment it is in and the place it is at.
fn checksum(covered: &[u8], salt: u64, offset: u64) -> u32 {
    let seed = if planted(Bug::PlaceUnchecked) { 0 } else { salt.wrapping_add(offset) };
    #[expect(clippy::cast_possible_truncation, reason = "the low half is the checksum")]
    let sum = xxh3_64_with_seed(covered, seed) as u32;
    // What was never written is zero.
    sum.max(1)
}

/// The file that says which database a directory holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Random, the same for all copies and replicas of the database.
    pub(crate) dataset: [u8; 16],
    /// Random, of this directory.
    pub(crate) node: [u8; 16],
    /// Made of what another directory held: it may be written on, though its last history is not its own.
    pub(crate) is_copy: bool,
}

pub(crate) const IDENTITY_LEN: usize = 64;
const IDENTITY_CRC_AT: usize = 60;
const IDENTITY_MAGIC: [u8; 8] = *b"\x89STI\r\n\x1a\n";

/// The file that says where a directory began anew, with a state that came from elsewhere.
///
/// It counts from the moment on at which that snapshot has its name, and no sooner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Anew {
    /// The ordinal of the snapshot: no file of a lower one means anything.
    pub(crate) snapshot: u64,
    /// The data set from there on.
    pub(crate) dataset: [u8; 16],
}

pub(crate) const ANEW_LEN: usize = 48;
const ANEW_CRC_AT: usize = 44;
const ANEW_MAGIC: [u8; 8] = *b"\x89STA\r\n\x1a\n";

impl Anew {
    pub(crate) fn encode(&self) -> [u8; ANEW_LEN] {
        let mut out = Vec::with_capacity(ANEW_LEN);
        out.extend_from_slice(&ANEW_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.snapshot.to_le_bytes());
        out.extend_from_slice(&self.dataset);
        seal(out, ANEW_CRC_AT)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        check_head(&mut d, ANEW_MAGIC)?;
        let (snapshot, dataset) = (d.u64("ordinal of a snapshot")?, d.array("data set")?);
        check_seal(&mut d, bytes, ANEW_CRC_AT, "where it began anew")?;
        Ok(Anew { snapshot, dataset })
    }
}

impl Identity {
    pub(crate) fn encode(&self) -> [u8; IDENTITY_LEN] {
        let mut out = Vec::with_capacity(IDENTITY_LEN);
        out.extend_from_slice(&IDENTITY_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.dataset);
        out.extend_from_slice(&self.node);
        out.push(self.is_copy.into());
        seal(out, IDENTITY_CRC_AT)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        check_head(&mut d, IDENTITY_MAGIC)?;
        let (dataset, node) = (d.array("data set")?, d.array("node")?);
        let is_copy = d.u8("copy")?;
        check_seal(&mut d, bytes, IDENTITY_CRC_AT, "identity")?;
        if is_copy > 1 {
            let fault = Fault::Range { field: "copy", got: is_copy.into(), min: 0, max: 1 };
            return Err(Damage::new(48, fault));
        }
        Ok(Identity { dataset, node, is_copy: is_copy == 1 })
    }
}

/// The file that says of which promotion a directory has heard, that may write no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fence {
    pub(crate) term: u64,
    /// The history that began the term; zeros if that is not known.
    pub(crate) history: HistoryId,
}

pub(crate) const FENCE_LEN: usize = 48;
const FENCE_CRC_AT: usize = 44;
const FENCE_MAGIC: [u8; 8] = *b"\x89STF\r\n\x1a\n";

impl Fence {
    pub(crate) fn encode(&self) -> [u8; FENCE_LEN] {
        let mut out = Vec::with_capacity(FENCE_LEN);
        out.extend_from_slice(&FENCE_MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.term.to_le_bytes());
        out.extend_from_slice(&self.history.0);
        seal(out, FENCE_CRC_AT)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        check_head(&mut d, FENCE_MAGIC)?;
        let (term, history) = (d.u64("term")?, HistoryId(d.array("history")?));
        check_seal(&mut d, bytes, FENCE_CRC_AT, "fence")?;
        Ok(Fence { term, history })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::MAX_SEQ;
    use crate::format::record::RecordKind;

    fn beginning() -> Beginning {
        let position = Position { history: HistoryId([3; 16]), seq: Seq(40) };
        let base = Base { position, time_ms: 99, chain: 5 };
        Beginning { base, previous: Some((6, 4_096)), durable: Seq(39) }
    }

    fn frames() -> [Frame; 3] {
        let record = RecordHeader::following(5, RecordKind::Batch, (4, 9), Seq(41), 100);
        [
            Frame { durable: Seq(39), framed: Framed::Record(record) },
            Frame { durable: Seq(41), framed: Framed::Mark { seq: Seq(41), fingerprint: 12 } },
            Frame { durable: Seq(41), framed: Framed::End { next: 8 } },
        ]
    }

    #[test]
    fn heads_round_trip_and_no_byte_may_change() {
        fn check(bytes: &[u8], decode: impl Fn(&[u8]) -> bool) {
            assert!(decode(bytes));
            for at in 0..bytes.len() {
                let mut bytes = bytes.to_vec();
                bytes[at] ^= 0x10;
                assert!(!decode(&bytes), "byte {at}");
                assert!(!decode(&bytes[..at]), "the first {at} bytes");
            }
        }
        let label = Label { dataset: [1; 16], ordinal: 7, salt: 0x1234_5678_9ABC_DEF0 };
        check(&label.encode(), |bytes| Label::decode(bytes) == Ok(label));
        let identity = Identity { dataset: [1; 16], node: [2; 16], is_copy: true };
        check(&identity.encode(), |bytes| Identity::decode(bytes) == Ok(identity));
        let first = Beginning { previous: None, ..beginning() };
        for beginning in [beginning(), first] {
            check(&beginning.encode(), |bytes| Beginning::decode(bytes) == Ok(Some(beginning)));
        }
        assert_eq!(Beginning::decode(&[0; BEGINNING_LEN]), Ok(None));
    }

    #[test]
    fn a_beginning_says_one_thing_in_one_way_and_leaves_a_next_seq() {
        let first = Beginning { previous: None, ..beginning() };
        let last = MAX_SEQ.to_le_bytes();
        let beyond = (MAX_SEQ + 1).to_le_bytes();
        // Where the predecessor ends, though there is none; and the Seq.
        for (at, field, is_taken) in [
            (40, [0; 8], true),
            (40, [9; 8], false),
            (16, last, true),
            (16, beyond, false),
            (48, last, true),
            (48, beyond, false),
        ] {
            let mut bytes = first.encode();
            bytes[at..at + 8].copy_from_slice(&field);
            let sum = crc(&[&bytes[..BEGINNING_CRC_AT]]);
            bytes[BEGINNING_CRC_AT..].copy_from_slice(&sum.to_le_bytes());
            assert_eq!(Beginning::decode(&bytes).is_ok(), is_taken, "{field:?} at {at}");
        }
    }

    #[test]
    fn a_frame_is_valid_in_its_segment_and_place_only() {
        for frame in frames() {
            let mut bytes = Vec::new();
            frame.encode(11, 4_096, &mut bytes);
            assert_eq!(bytes.len(), frame.len());
            assert_eq!(Frame::decode(&bytes, 11, 4_096), Ok(Some(frame)));
            assert!(Frame::decode(&bytes, 12, 4_096).is_err());
            assert!(Frame::decode(&bytes, 11, 4_097).is_err());
            for at in 0..bytes.len() {
                let mut bytes = bytes.clone();
                bytes[at] ^= 0x08;
                assert!(Frame::decode(&bytes, 11, 4_096).is_err(), "byte {at} of {frame:?}");
            }
            for len in 0..bytes.len() {
                assert!(Frame::decode(&bytes[..len], 11, 4_096).is_err());
            }
        }
        assert_eq!(Frame::decode(&[0; 64], 11, 4_096), Ok(None));
    }

    #[test]
    fn a_frame_filled_in_place_is_the_one_encoded() {
        let frame = frames()[0];
        let mut expected = Vec::new();
        frame.encode(11, 512, &mut expected);
        let Framed::Record(header) = frame.framed else { unreachable!("the first is a record") };
        let mut bytes = [0xEE; RECORD_FRAME_LEN];
        bytes[FRAME_LEN..].copy_from_slice(&header.encode());
        Frame::fill(&mut bytes, frame.durable, 11, 512);
        assert_eq!(bytes, *expected);
    }
}
