//! A spool: what has come of a state that is not whole yet, as it came (FORMAT.md, section 15c).

use super::codec::{Damage, Decoded, Decoder, check_crc, crc};
use super::log::{check_head, check_seal, seal};
use super::snapshot::FileId;
use super::{VERSION, wire};
use crate::error::Fault;
use crate::position::{HistoryId, Position};

pub(crate) const SPOOL_HEADER_LEN: usize = 64;
const HEADER_CRC_AT: usize = 60;
const MAGIC: [u8; 8] = *b"\x89STP\r\n\x1a\n";

/// What a spool begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpoolHeader {
    /// Mixed into the checksums of its blocks and sections.
    pub(crate) file_id: FileId,
    /// The state that it rests on.
    pub(crate) base: Position,
}

impl SpoolHeader {
    pub(crate) fn encode(&self) -> [u8; SPOOL_HEADER_LEN] {
        let mut out = Vec::with_capacity(SPOOL_HEADER_LEN);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.file_id);
        out.extend_from_slice(&self.base.history.0);
        out.extend_from_slice(&self.base.seq.0.to_le_bytes());
        seal(out, HEADER_CRC_AT)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        check_head(&mut d, MAGIC)?;
        let file_id = d.array("file id")?;
        let base = Position { history: HistoryId(d.array("history")?), seq: d.seq("seq")? };
        check_seal(&mut d, bytes, HEADER_CRC_AT, "spool")?;
        Ok(SpoolHeader { file_id, base })
    }
}

/// What a section of a spool holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SectionKind {
    /// A pass begins: a cut, as on a link.
    Pass,
    /// A block of it.
    Block,
}

pub(crate) const SECTION_HEAD_LEN: usize = 12;
/// The longest payload of a section.
const MAX_SECTION_LEN: usize = super::block::MAX_LEAVES_LEN + super::block::FRAME_LEN;

/// The head of a section: the `index`th of its spool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SectionHead {
    pub(crate) kind: SectionKind,
    pub(crate) len: u32,
    crc: u32,
}

impl SectionHead {
    /// That of a section with this payload; `None` if it is too long.
    pub(crate) fn encode(
        kind: SectionKind,
        payload: &[u8],
        file_id: &FileId,
        index: u64,
    ) -> Option<[u8; SECTION_HEAD_LEN]> {
        let len =
            u32::try_from(payload.len()).ok().filter(|len| *len as usize <= MAX_SECTION_LEN)?;
        let kind: u32 = match kind {
            SectionKind::Pass => 1,
            SectionKind::Block => 2,
        };
        let ([a, b, c, d], [e, f, g, h]) = (kind.to_le_bytes(), len.to_le_bytes());
        let covered = [a, b, c, d, e, f, g, h];
        let [i, j, k, l] = crc(&[file_id, &index.to_le_bytes(), &covered, payload]).to_le_bytes();
        Some([a, b, c, d, e, f, g, h, i, j, k, l])
    }

    pub(crate) fn decode(bytes: &[u8; SECTION_HEAD_LEN]) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        let kind = match d.u32_in("kind of section", 1, 2)? {
            1 => SectionKind::Pass,
            _ => SectionKind::Block,
        };
        let len = d.u32_in("length of a section", 1, MAX_SECTION_LEN)?;
        Ok(SectionHead { kind, len, crc: d.u32("section checksum")? })
    }

    /// Refuses a payload that is not this section's.
    pub(crate) fn check(
        &self,
        head: &[u8; SECTION_HEAD_LEN],
        payload: &[u8],
        file_id: &FileId,
        index: u64,
    ) -> Decoded<()> {
        let covered = head.first_chunk::<8>().ok_or(Damage::new(0, Fault::Magic))?;
        let got = crc(&[file_id, &index.to_le_bytes(), covered, payload]);
        check_crc(8, "section", got, self.crc)
    }
}

const _: () = assert!(wire::MAX_PAYLOAD_LEN < MAX_SECTION_LEN);
