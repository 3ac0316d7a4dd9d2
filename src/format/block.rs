//! The frame around every block: what it is, how long, which place in which file, and the checksum over all that.
//!
//! The frame's checksum covers the file id, the ordinal and the checksum of the body, so it stands for
//! the whole block: an index entry that holds it proves content, place and file at once. A reader trusts
//! no length before that checksum is right, and no body before its own is.

use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use super::CHUNK_LEN;
use super::codec::{Damage, Decoded, Decoder, check_crc, crc, equal};
use super::snapshot::{Codec, FileId};
use crate::error::Fault;
use crate::planted::{Bug, planted};

pub(crate) const FRAME_LEN: usize = 32;
/// The largest body of leaves, before compression.
pub(crate) const MAX_LEAVES_LEN: usize = 1 << 20;
/// The largest body of an index block.
pub(crate) const MAX_INDEX_LEN: usize = 4 << 20;

const ORDINAL_AT: usize = 16;
const CRC_AT: usize = 28;
/// The compressor's small table reaches content shorter than this.
const SMALL_TABLE_LEN: usize = u16::MAX as usize;
/// LZ4 turns one byte into at most this many.
pub(crate) const MAX_RATIO: u64 = 255;

/// What a block holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Leaves,
    Chunk,
    Index,
    Root,
}

impl Kind {
    /// Persistent: numbered by hand, never reused.
    fn id(self) -> u8 {
        match self {
            Kind::Leaves => 1,
            Kind::Chunk => 2,
            Kind::Index => 3,
            Kind::Root => 4,
        }
    }

    fn max_len(self) -> usize {
        match self {
            Kind::Leaves => MAX_LEAVES_LEN,
            Kind::Chunk => CHUNK_LEN,
            Kind::Index => MAX_INDEX_LEN,
            Kind::Root => u32::MAX as usize,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Kind::Leaves => "leaf block",
            Kind::Chunk => "chunk block",
            Kind::Index => "index block",
            Kind::Root => "root block",
        }
    }
}

/// A frame whose checksum was right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    pub(crate) kind: Kind,
    pub(crate) codec: Codec,
    pub(crate) raw_len: u32,
    pub(crate) stored_len: u32,
    pub(crate) body_crc: u32,
    pub(crate) ordinal: u64,
    /// Entries in the body; 0 for a chunk.
    pub(crate) items: u32,
    /// The frame's own checksum, which stands for the whole block.
    pub(crate) crc: u32,
}

impl Frame {
    pub(crate) fn decode(bytes: &[u8; FRAME_LEN], file_id: &FileId) -> Decoded<Self> {
        let mut d = Decoder::new(bytes);
        let covered = d.bytes("frame", CRC_AT)?;
        let stored_crc = d.u32("frame checksum")?;
        check_crc(CRC_AT, "frame", crc(&[file_id, covered]), stored_crc)?;
        let mut d = Decoder::new(bytes);
        let kind = match d.u8("block kind")? {
            1 => Kind::Leaves,
            2 => Kind::Chunk,
            3 => Kind::Index,
            4 => Kind::Root,
            got => {
                let range = Fault::Range { field: "block kind", got: got.into(), min: 1, max: 4 };
                return Err(Damage::new(0, range));
            }
        };
        let codec = Codec::from_id(1, "codec", d.u8("codec")?)?;
        d.zeros("reserved bytes of the frame", 2)?;
        let raw_len = d.u32_in("raw length", 1, kind.max_len())?;
        let stored_len = d.u32_in("stored length", 1, raw_len as usize)?;
        match codec {
            Codec::Raw => equal(8, "stored length", stored_len.into(), raw_len.into())?,
            Codec::Lz4 => {
                if matches!(kind, Kind::Index | Kind::Root) {
                    equal(1, "codec of an index block", codec.id().into(), 0)?;
                }
                let most = u64::from(stored_len).saturating_mul(MAX_RATIO);
                if u64::from(raw_len) > most && !planted(Bug::NoRatioCap) {
                    return Err(Damage::new(4, Fault::Compression));
                }
            }
        }
        let body_crc = d.u32("body checksum")?;
        let ordinal = d.u64("ordinal")?;
        let items = d.u32("item count")?;
        Ok(Frame { kind, codec, raw_len, stored_len, body_crc, ordinal, items, crc: stored_crc })
    }

    /// Refuses a frame of another kind or place than expected.
    pub(crate) fn expect(&self, kind: Kind, ordinal: u64) -> Decoded<()> {
        equal(0, "block kind", self.kind.id().into(), kind.id().into())?;
        equal(16, "ordinal", self.ordinal, ordinal)
    }

    /// Bytes of the block in the file.
    pub(crate) fn block_len(&self) -> u64 {
        (FRAME_LEN as u64).saturating_add(self.stored_len.into())
    }

    /// Checks the stored body and puts what it stands for into `raw`, whatever that held.
    ///
    /// Allocates the stated raw length, which the frame's decoder bounds by kind and by ratio.
    pub(crate) fn unpack(&self, stored: &[u8], raw: &mut Vec<u8>) -> Decoded<()> {
        let len = stored.len() as u64;
        equal(FRAME_LEN, "length of the body", len, self.stored_len.into())?;
        if !planted(Bug::BodyUnchecked) {
            check_crc(FRAME_LEN, self.kind.name(), crc(&[stored]), self.body_crc)?;
        }
        // Zeroed anew each time: nothing of an earlier block may show through, whatever the codec does.
        raw.clear();
        match self.codec {
            Codec::Raw => raw.extend_from_slice(stored),
            Codec::Lz4 => {
                raw.resize(self.raw_len as usize, 0);
                match lz4_flex::block::decompress_into(stored, raw) {
                    Ok(len) if len == raw.len() => {}
                    Ok(_) if planted(Bug::ReusesBuffer) => {}
                    _ => return Err(Damage::new(FRAME_LEN, Fault::Compression)),
                }
            }
        }
        Ok(())
    }
}

/// Makes blocks. The same content gives the same bytes, whichever blocks were made before.
pub(crate) struct Packer {
    codec: Codec,
    is_in_haste: bool,
    /// The compressor clears its table before each use, but never goes back from a large to a small one, which
    /// finds other matches: so there are two, and the length of the content alone decides.
    small: CompressTable,
    large: Option<CompressTable>,
    /// What the compressor writes to: longer than what it leaves there.
    scratch: Vec<u8>,
}

impl Packer {
    pub(crate) fn new(codec: Codec) -> Self {
        Packer {
            codec,
            is_in_haste: false,
            small: CompressTable::small(),
            large: None,
            scratch: Vec::new(),
        }
    }

    /// In haste nothing is compressed from now on.
    pub(crate) fn haste(&mut self, is_in_haste: bool) {
        self.is_in_haste = is_in_haste;
    }

    /// Appends `raw` to `out` as a block that has no ordinal and no checksum of its frame yet: [`number`] adds both.
    ///
    /// Stored raw when the codec saves less than a thirty-second, and always when it is an index or root.
    /// `None`, and nothing appended, when `raw` is empty or longer than its kind allows.
    pub(crate) fn pack(
        &mut self,
        kind: Kind,
        raw: &[u8],
        items: u32,
        out: &mut Vec<u8>,
    ) -> Option<()> {
        let raw_len = u32::try_from(raw.len()).ok().filter(|_| raw.len() <= kind.max_len())?;
        if raw_len == 0 {
            return None;
        }
        let tries = self.codec == Codec::Lz4
            && !self.is_in_haste
            && matches!(kind, Kind::Leaves | Kind::Chunk);
        let (codec, body) = match tries.then(|| self.compress(raw)).flatten() {
            Some(packed) => (Codec::Lz4, packed),
            None => (Codec::Raw, raw),
        };
        let stored_len = u32::try_from(body.len()).ok()?;
        out.extend_from_slice(&[kind.id(), codec.id(), 0, 0]);
        out.extend_from_slice(&raw_len.to_le_bytes());
        out.extend_from_slice(&stored_len.to_le_bytes());
        out.extend_from_slice(&crc(&[body]).to_le_bytes());
        out.extend_from_slice(&[0; 8]);
        out.extend_from_slice(&items.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(body);
        Some(())
    }

    /// `None` if that saves too little.
    fn compress(&mut self, raw: &[u8]) -> Option<&[u8]> {
        let table = if raw.len() < SMALL_TABLE_LEN {
            &mut self.small
        } else {
            self.large.get_or_insert_with(CompressTable::large)
        };
        let most = get_maximum_output_size(raw.len());
        if self.scratch.len() < most {
            self.scratch.resize(most, 0);
        }
        let packed = compress_into_with_table(raw, &mut self.scratch, table).ok()?;
        let is_worth_it = packed < raw.len().saturating_sub(raw.len() >> 5);
        self.scratch.get(..packed).filter(|_| is_worth_it)
    }
}

/// Gives a packed block its place in a file and returns the frame's checksum.
pub(crate) fn number(block: &mut [u8], file_id: &FileId, ordinal: u64) -> u32 {
    let Some((frame, _)) = block.split_first_chunk_mut::<FRAME_LEN>() else { return 0 };
    if let Some(place) = frame.get_mut(ORDINAL_AT..ORDINAL_AT.saturating_add(8)) {
        place.copy_from_slice(&ordinal.to_le_bytes());
    }
    let Some((covered, stored)) = frame.split_last_chunk_mut::<4>() else { return 0 };
    let crc = crc(&[file_id, covered]);
    *stored = crc.to_le_bytes();
    crc
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        reason = "a test that overflows fails"
    )]
    use super::*;

    const ID: FileId = [3; 16];

    fn packed(codec: Codec, kind: Kind, raw: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Packer::new(codec).pack(kind, raw, 7, &mut out).unwrap();
        number(&mut out, &ID, 5);
        out
    }

    fn unpacked(block: &[u8]) -> Decoded<(Frame, Vec<u8>)> {
        let (frame, body) = block.split_first_chunk().unwrap();
        let frame = Frame::decode(frame, &ID)?;
        let mut raw = vec![1; 9];
        frame.unpack(body, &mut raw)?;
        Ok((frame, raw))
    }

    #[test]
    fn blocks_round_trip_and_only_shrink() {
        let dull = vec![b'a'; 50_000];
        let noise: Vec<u8> =
            (0..9_000_u32).flat_map(|i| crc(&[&i.to_le_bytes()]).to_le_bytes()).collect();
        for (codec, raw, used) in [
            (Codec::Lz4, &dull, Codec::Lz4),
            (Codec::Raw, &dull, Codec::Raw),
            (Codec::Lz4, &noise, Codec::Raw),
        ] {
            let block = packed(codec, Kind::Chunk, raw);
            let (frame, out) = unpacked(&block).unwrap();
            assert_eq!(&out, raw);
            assert_eq!((frame.codec, frame.items, frame.ordinal), (used, 7, 5));
            assert_eq!(frame.block_len(), block.len() as u64);
            assert!(block.len() <= raw.len() + FRAME_LEN);
            assert!(frame.expect(Kind::Chunk, 5).is_ok());
            assert!(frame.expect(Kind::Chunk, 6).is_err());
            assert!(frame.expect(Kind::Leaves, 5).is_err());
        }
        assert_eq!(unpacked(&packed(Codec::Lz4, Kind::Index, &dull)).unwrap().0.codec, Codec::Raw);
    }

    #[test]
    fn what_was_packed_before_does_not_show() {
        let json: Vec<u8> = (0..9_000_u32)
            .flat_map(|i| format!("{{\"id\":{i},\"n\":{}}}", i % 97).into_bytes())
            .collect();
        let lens = [16_000, SMALL_TABLE_LEN, SMALL_TABLE_LEN - 1, 100, CHUNK_LEN, 16_000];
        let mut packer = Packer::new(Codec::Lz4);
        for (i, len) in lens.into_iter().enumerate() {
            let raw = &json[i * 100..][..len];
            let mut out = b"before".to_vec();
            packer.pack(Kind::Chunk, raw, 7, &mut out).unwrap();
            number(&mut out[6..], &ID, 5);
            assert_eq!(out[..6], *b"before");
            assert!(out[6..] == packed(Codec::Lz4, Kind::Chunk, raw), "block {i}");
        }
    }

    #[test]
    fn every_changed_bit_is_refused() {
        let raw: Vec<u8> = (0..40_u32).flat_map(|i| (i / 3).to_le_bytes()).collect();
        for codec in [Codec::Raw, Codec::Lz4] {
            let good = packed(codec, Kind::Leaves, &raw);
            for bit in 0..good.len() * 8 {
                let mut block = good.clone();
                block[bit / 8] ^= 1 << (bit % 8);
                assert!(unpacked(&block).is_err(), "{codec:?} bit {bit}");
            }
            let (frame, _) = good.split_first_chunk().unwrap();
            assert!(Frame::decode(frame, &[4; 16]).is_err(), "a frame of another file");
        }
    }

    #[test]
    fn lengths_no_input_accounts_for_are_refused_behind_a_right_checksum() {
        let good = packed(Codec::Lz4, Kind::Leaves, &[0; 4_000]);
        let refit = |at: usize, field: u32| {
            let mut block = good.clone();
            block[at..at + 4].copy_from_slice(&field.to_le_bytes());
            number(&mut block, &ID, 5);
            unpacked(&block).map(|_| ())
        };
        assert_eq!(refit(4, 4_000), Ok(()));
        for (at, field) in [
            (4, 0),
            (4, 3_999),
            (4, 4_001),
            (4, MAX_LEAVES_LEN as u32),
            (4, u32::MAX),
            (8, 0),
            (8, 4_001),
            (8, u32::MAX),
            (0, 0x0000_0201), // codec
            (0, 0x0000_0105), // kind
            (0, 0x0001_0101), // reserved
            (0, 0x0000_0103), // a compressed index block
        ] {
            assert!(refit(at, field).is_err(), "{field:#x} at {at}");
        }
        assert!(Packer::new(Codec::Raw).pack(Kind::Chunk, &[], 0, &mut Vec::new()).is_none());
        let long = vec![0; CHUNK_LEN + 1];
        assert!(Packer::new(Codec::Raw).pack(Kind::Chunk, &long, 0, &mut Vec::new()).is_none());
    }
}
