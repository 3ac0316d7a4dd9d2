//! The two ends of a snapshot file: the header before its blocks and the footer after them.
//!
//! Both name the file, the cut and each other (the footer holds the header's checksum), so that
//! neither can come from elsewhere. The footer is last and of fixed size: its end mark in the right
//! place is what tells a whole file from the beginning of one.

use super::VERSION;
use super::codec::{Damage, Decoded, Decoder, check_crc, check_fingerprint, crc, equal};
use crate::error::Fault;
use crate::planted::{Bug, planted};
use crate::position::{HistoryId, Position, Seq};

pub(crate) const HEADER_LEN: usize = 96;
pub(crate) const FOOTER_LEN: usize = 160;

/// No ASCII, no text file: survives neither newline conversion nor a stripped eighth bit unnoticed.
pub(crate) const MAGIC: [u8; 8] = *b"\x89STF\r\n\x1a\n";
pub(crate) const END_MARK: [u8; 8] = *b"\x89END\r\n\x1a\n";

const HEADER_CRC_AT: usize = 92;
const FOOTER_CRC_AT: usize = 148;

/// Names one file: drawn at random for each save, mixed into every checksum of the file.
pub(crate) type FileId = [u8; 16];

/// Which codec the writer tried for blocks; what each block really uses stands in the block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    Raw,
    Lz4,
}

impl Codec {
    /// Persistent: numbered by hand, never reused.
    pub(crate) fn id(self) -> u8 {
        match self {
            Codec::Raw => 0,
            Codec::Lz4 => 1,
        }
    }

    pub(crate) fn from_id(at: usize, field: &'static str, id: u8) -> Decoded<Self> {
        match id {
            0 => Ok(Codec::Raw),
            1 => Ok(Codec::Lz4),
            got => Err(Damage::new(at, Fault::Range { field, got: got.into(), min: 0, max: 1 })),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) file_id: FileId,
    pub(crate) position: Position,
    pub(crate) time_ms: u64,
    pub(crate) codec: Codec,
}

impl Header {
    pub(crate) fn encode(&self) -> [u8; HEADER_LEN] {
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        put_cut(&mut out, self.file_id, self.position, self.time_ms);
        out.push(self.codec.id());
        seal(out, HEADER_CRC_AT, &[])
    }

    /// Decodes the first [`HEADER_LEN`] bytes of a file and returns them with their checksum.
    pub(crate) fn decode(bytes: &[u8; HEADER_LEN]) -> Decoded<(Self, u32)> {
        let mut d = Decoder::new(bytes);
        if d.array("magic")? != MAGIC {
            return Err(Damage::new(0, Fault::Magic));
        }
        // Before the checksum: another version may keep it elsewhere.
        let version = d.u32("version")?;
        if version != VERSION {
            return Err(Damage::new(8, Fault::Version { got: version, supported: VERSION }));
        }
        let stored = check_seal(bytes, HEADER_CRC_AT, "header")?;
        equal(12, "features", d.u32("features")?.into(), 0)?;
        let (file_id, position, time_ms) = take_cut(&mut d)?;
        let codec = Codec::from_id(d.at(), "codec", d.u8("codec")?)?;
        d.zeros("reserved bytes of the header", HEADER_CRC_AT.saturating_sub(d.at()))?;
        Ok((Header { file_id, position, time_ms, codec }, stored))
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Footer {
    pub(crate) file_id: FileId,
    pub(crate) position: Position,
    pub(crate) time_ms: u64,
    pub(crate) totals: Totals,
    /// Blocks of every kind, the root included.
    pub(crate) blocks: u64,
    pub(crate) root_offset: u64,
    pub(crate) file_len: u64,
    /// Length of the root block with its frame.
    pub(crate) root_len: u32,
    pub(crate) root_crc: u32,
    pub(crate) header_crc: u32,
}

/// Sums over the content of a file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) entries: u64,
    /// Keys without their keyspace id, plus values.
    pub(crate) raw_bytes: u64,
    pub(crate) fingerprint: u64,
    pub(crate) leaves: u64,
    /// Blocks that hold leaves.
    pub(crate) leaf_blocks: u64,
}

impl Totals {
    /// Adds what another part of the same file holds.
    pub(crate) fn add(&mut self, other: &Totals) {
        self.entries = self.entries.saturating_add(other.entries);
        self.raw_bytes = self.raw_bytes.saturating_add(other.raw_bytes);
        self.fingerprint = self.fingerprint.wrapping_add(other.fingerprint);
        self.leaves = self.leaves.saturating_add(other.leaves);
        self.leaf_blocks = self.leaf_blocks.saturating_add(other.leaf_blocks);
    }

    /// Refuses content that does not sum up to what the footer states; `at` is the footer's offset.
    pub(crate) fn check(&self, at: usize, stated: &Totals) -> Decoded<()> {
        if planted(Bug::CountsUnchecked) {
            return check_fingerprint(at, "fingerprint", self.fingerprint, stated.fingerprint);
        }
        equal(at, "entry count", self.entries, stated.entries)?;
        equal(at, "raw byte count", self.raw_bytes, stated.raw_bytes)?;
        check_fingerprint(at, "fingerprint", self.fingerprint, stated.fingerprint)?;
        equal(at, "leaf count", self.leaves, stated.leaves)?;
        equal(at, "leaf block count", self.leaf_blocks, stated.leaf_blocks)
    }
}

impl Footer {
    pub(crate) fn encode(&self) -> [u8; FOOTER_LEN] {
        let mut out = Vec::with_capacity(FOOTER_LEN);
        put_cut(&mut out, self.file_id, self.position, self.time_ms);
        for field in [
            self.totals.entries,
            self.totals.raw_bytes,
            self.totals.fingerprint,
            self.totals.leaves,
            self.totals.leaf_blocks,
            self.blocks,
            self.root_offset,
            self.file_len,
        ] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        for field in [self.root_len, self.root_crc, self.header_crc] {
            out.extend_from_slice(&field.to_le_bytes());
        }
        seal(out, FOOTER_CRC_AT, &END_MARK)
    }

    pub(crate) fn decode(bytes: &[u8; FOOTER_LEN]) -> Decoded<Self> {
        if !bytes.ends_with(&END_MARK) {
            let at = FOOTER_LEN.saturating_sub(END_MARK.len());
            return Err(Damage::new(at, Fault::NoEnd));
        }
        check_seal(bytes, FOOTER_CRC_AT, "footer")?;
        let mut d = Decoder::new(bytes);
        let (file_id, position, time_ms) = take_cut(&mut d)?;
        let totals = Totals {
            entries: d.u64("entry count")?,
            raw_bytes: d.u64("raw byte count")?,
            fingerprint: d.u64("fingerprint")?,
            leaves: d.u64("leaf count")?,
            leaf_blocks: d.u64("leaf block count")?,
        };
        let blocks = d.u64("block count")?;
        let root_offset = d.u64("root offset")?;
        let file_len = d.u64("file length")?;
        let root_len = d.u32("root length")?;
        let root_crc = d.u32("root checksum")?;
        let header_crc = d.u32("header checksum")?;
        d.zeros("reserved bytes of the footer", FOOTER_CRC_AT.saturating_sub(d.at()))?;
        Ok(Footer {
            file_id,
            position,
            time_ms,
            totals,
            blocks,
            root_offset,
            file_len,
            root_len,
            root_crc,
            header_crc,
        })
    }

    /// Refuses a footer that is not the one of this header, or not at the end of the root or of the file.
    ///
    /// `file_len` is the length found, of which the last [`FOOTER_LEN`] bytes are this footer.
    pub(crate) fn check(&self, header: &Header, header_crc: u32, file_len: u64) -> Decoded<()> {
        equal(104, "file length", self.file_len, file_len)?;
        equal(120, "header checksum", self.header_crc.into(), header_crc.into())?;
        if self.file_id != header.file_id
            || self.position != header.position
            || self.time_ms != header.time_ms
        {
            return Err(Damage::new(0, Fault::Foreign { field: "footer" }));
        }
        let root_end = self.root_offset.checked_add(self.root_len.into());
        let end = root_end.and_then(|end| end.checked_add(FOOTER_LEN as u64));
        equal(96, "end of the root", end.unwrap_or(u64::MAX), file_len)
    }
}

/// One history of the line whose batches the file holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) history: HistoryId,
    pub(crate) term: u64,
    pub(crate) writer: [u8; 16],
    pub(crate) start: Seq,
    pub(crate) end: Seq,
}

pub(crate) const SPAN_LEN: usize = 56;

/// What decides between two lines whose nodes both take writes: the highest term, and of equal ones the history that began it.
pub(crate) fn rank(line: &[Span]) -> (u64, HistoryId) {
    let term = line.iter().map(|span| span.term).max().unwrap_or(0);
    let began = line.iter().find(|span| span.term == term);
    (term, began.map(|span| span.history).unwrap_or_default())
}

impl Span {
    pub(crate) fn put(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.history.0);
        out.extend_from_slice(&self.term.to_le_bytes());
        out.extend_from_slice(&self.writer);
        out.extend_from_slice(&self.start.0.to_le_bytes());
        out.extend_from_slice(&self.end.0.to_le_bytes());
    }

    pub(crate) fn take(d: &mut Decoder<'_>) -> Decoded<Self> {
        Ok(Span {
            history: HistoryId(d.array("lineage history")?),
            term: d.u64("lineage term")?,
            writer: d.array("lineage writer")?,
            start: Seq(d.u64("lineage start")?),
            end: Seq(d.u64("lineage end")?),
        })
    }
}

fn put_cut(out: &mut Vec<u8>, file_id: FileId, position: Position, time_ms: u64) {
    out.extend_from_slice(&file_id);
    out.extend_from_slice(&position.history.0);
    out.extend_from_slice(&position.seq.0.to_le_bytes());
    out.extend_from_slice(&time_ms.to_le_bytes());
}

fn take_cut(d: &mut Decoder<'_>) -> Decoded<(FileId, Position, u64)> {
    let file_id = d.array("file id")?;
    let history = HistoryId(d.array("history")?);
    let seq = d.seq("cut seq")?;
    Ok((file_id, Position { history, seq }, d.u64("cut time")?))
}

/// Fills `out` with zeros up to `crc_at`, then appends the checksum of all that and `tail`.
fn seal<const N: usize>(mut out: Vec<u8>, crc_at: usize, tail: &[u8]) -> [u8; N] {
    out.resize(crc_at, 0);
    out.extend_from_slice(&crc(&[&out]).to_le_bytes());
    out.extend_from_slice(tail);
    let mut sealed = [0; N];
    sealed.iter_mut().zip(out).for_each(|(to, from)| *to = from);
    sealed
}

/// Returns the stored checksum at `crc_at` if it is that of the bytes before it.
fn check_seal(bytes: &[u8], crc_at: usize, field: &'static str) -> Decoded<u32> {
    let mut d = Decoder::new(bytes);
    let covered = d.bytes(field, crc_at)?;
    let stored = d.u32(field)?;
    check_crc(crc_at, field, crc(&[covered]), stored)?;
    Ok(stored)
}

const _: () = assert!(HEADER_LEN == HEADER_CRC_AT + 4);
const _: () = assert!(FOOTER_LEN == FOOTER_CRC_AT + 4 + END_MARK.len());

#[cfg(test)]
mod tests {
    #![allow(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        reason = "a test that overflows fails"
    )]
    use super::*;

    fn header() -> Header {
        let position = Position { history: HistoryId([7; 16]), seq: Seq(42) };
        Header { file_id: [9; 16], position, time_ms: 1_700_000_000_000, codec: Codec::Lz4 }
    }

    fn footer(header_crc: u32) -> Footer {
        let Header { file_id, position, time_ms, .. } = header();
        let totals =
            Totals { entries: 3, raw_bytes: 90, fingerprint: 5, leaves: 2, leaf_blocks: 1 };
        Footer {
            file_id,
            position,
            time_ms,
            totals,
            blocks: 3,
            root_offset: 500,
            file_len: 500 + 64 + 160,
            root_len: 64,
            root_crc: 0x1234_5678,
            header_crc,
        }
    }

    #[test]
    fn both_ends_round_trip_and_match() {
        let bytes = header().encode();
        let (decoded, header_crc) = Header::decode(&bytes).unwrap();
        assert_eq!(decoded, header());
        let decoded = Footer::decode(&footer(header_crc).encode()).unwrap();
        assert_eq!(decoded, footer(header_crc));
        decoded.check(&header(), header_crc, 724).unwrap();
        for (header, crc, len) in [
            (Header { file_id: [8; 16], ..header() }, header_crc, 724),
            (Header { time_ms: 0, ..header() }, header_crc, 724),
            (header(), header_crc ^ 1, 724),
            (header(), header_crc, 725),
        ] {
            assert!(decoded.check(&header, crc, len).is_err());
        }
    }

    #[test]
    fn every_changed_byte_is_refused() {
        let bytes = header().encode();
        for i in 0..HEADER_LEN {
            for change in 1..=255 {
                let mut bytes = bytes;
                bytes[i] ^= change;
                assert!(Header::decode(&bytes).is_err(), "header byte {i} ^ {change}");
            }
        }
        let bytes = footer(1).encode();
        for i in 0..FOOTER_LEN {
            for change in 1..=255 {
                let mut bytes = bytes;
                bytes[i] ^= change;
                assert!(Footer::decode(&bytes).is_err(), "footer byte {i} ^ {change}");
            }
        }
    }

    #[test]
    fn reserved_bytes_and_versions_are_refused_behind_a_right_checksum() {
        for (at, byte) in [(8, 2), (12, 1), (64, 2), (65, 1), (91, 1)] {
            let mut bytes = header().encode();
            bytes[at] = byte;
            let sealed: [u8; HEADER_LEN] = seal(bytes[..HEADER_CRC_AT].into(), HEADER_CRC_AT, &[]);
            let damage = Header::decode(&sealed).unwrap_err();
            assert_eq!(damage.at, at as u64);
        }
    }
}
