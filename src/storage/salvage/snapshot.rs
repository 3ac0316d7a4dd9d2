//! Leaf blocks that can be proven, wherever they lie in a snapshot file.
//!
//! A block is recognised by its frame's checksum, which covers the file's id, and by its body's; what lies between two of
//! them their fences tell. Neither index nor root is needed.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Lost, LostKey, LostRange, read_what_can_be};
use crate::error::{Error, Fault, Result};
use crate::fingerprint;
use crate::format::block::{FRAME_LEN, Frame, Kind};
use crate::format::codec::{Damage, Decoded, equal};
use crate::format::leaves::{Large, Leaves, Stored, chunk_count};
use crate::format::snapshot::{FOOTER_LEN, FileId, Footer, HEADER_LEN, Header};
use crate::position::{Position, Seq};
use crate::storage::reader::check_chunk;
use crate::storage::{Disk, DiskFile};

/// What a damaged snapshot says of itself, and what of it is lost.
pub(crate) struct SalvagedSnapshot {
    /// The last batch in it, and its time.
    pub(crate) cut: (Position, u64),
    pub(crate) lost: Vec<LostRange>,
}

/// An entry that was proven.
pub(crate) struct SalvagedEntry<'a> {
    /// The last batch in the snapshot, and its time.
    pub(crate) cut: (Position, u64),
    pub(crate) key: &'a [u8],
    pub(crate) value: &'a [u8],
    pub(crate) expire_at: u64,
}

/// Shows the entries that can be proven, in no order; `None` if the file does not even say which blocks are its own.
pub(crate) fn salvage_snapshot(
    disk: &dyn Disk,
    path: &Path,
    mut visit: impl FnMut(&SalvagedEntry<'_>) -> Result<()>,
) -> Result<Option<SalvagedSnapshot>> {
    let file = disk.open(path).map_err(|source| Error::io("open", path, source))?;
    let len = file.len().map_err(|source| Error::io("read", path, source))?;
    let mut bytes = Window { file, len, start: 0, bytes: Vec::new() };
    let Some((file_id, cut)) = bytes.ends() else { return Ok(None) };

    let mut tiles: BTreeMap<Vec<u8>, Tile> = BTreeMap::new();
    let mut lost = Vec::new();
    let mut offset = HEADER_LEN as u64;
    while offset < len {
        let Ok((frame, raw)) = bytes.block(offset, &file_id) else {
            offset += 1;
            continue;
        };
        let start = offset;
        offset += frame.block_len();
        if frame.kind != Kind::Leaves {
            continue;
        }
        let Ok(leaves) = Leaves::decode(raw, frame.items) else { continue };
        if tiles.contains_key(leaves.low()) || leaves.check_sums().is_err() {
            continue;
        }
        let mut key = Vec::new();
        for entry in (0..leaves.len()).map_while(|at| leaves.entry(at)) {
            entry.assemble(&mut key);
            let large;
            let value = match &entry.value {
                Stored::Inline(bytes) => *bytes,
                Stored::Large(stored) => {
                    match bytes.large(start, frame.ordinal, &file_id, stored) {
                        Ok(value) => {
                            large = value;
                            &large
                        }
                        Err((at, fault)) => {
                            let bytes = stored.chunk_bytes;
                            let high = [&key[..], &[0]].concat();
                            let what = entries(&key, Some(&high));
                            lost.push(LostRange {
                                path: path.into(),
                                offset: at,
                                bytes,
                                fault,
                                what,
                            });
                            continue;
                        }
                    }
                }
            };
            let expire_at = entry.expire_at;
            visit(&SalvagedEntry { cut, key: &key, value, expire_at })?;
        }
        let start = start.saturating_sub(leaves.chunks().0);
        let high = leaves.high().map(<[u8]>::to_vec);
        tiles.insert(leaves.low().to_vec(), Tile { high, start, end: offset });
    }
    lost.extend(gaps(&mut bytes, path, &file_id, tiles));
    Ok(Some(SalvagedSnapshot { cut, lost }))
}

/// The last batch in a snapshot that may be damaged, if either end of the file tells.
pub(crate) fn stated_seq(disk: &dyn Disk, path: &Path) -> Option<Seq> {
    let file = disk.open(path).ok()?;
    let len = file.len().ok()?;
    let mut bytes = Window { file, len, start: 0, bytes: Vec::new() };
    bytes.ends().map(|(_, (position, _))| position.seq)
}

/// A leaf block that was found, with the chunks before it.
struct Tile {
    high: Option<Vec<u8>>,
    start: u64,
    end: u64,
}

fn entries(low: &[u8], high: Option<&[u8]>) -> Lost {
    Lost::Entries { low: LostKey::new(low), high: high.map(LostKey::new) }
}

/// What lies between the blocks that were found.
fn gaps(
    bytes: &mut Window,
    path: &Path,
    file_id: &FileId,
    tiles: BTreeMap<Vec<u8>, Tile>,
) -> Vec<LostRange> {
    let mut gaps = Vec::new();
    let mut gap = |low: &[u8], high: Option<&[u8]>, offset: u64, end: u64| {
        let fault = bytes.block(offset, file_id).err().unwrap_or(Fault::Missing);
        let (path, bytes) = (path.to_owned(), end.saturating_sub(offset));
        gaps.push(LostRange { path, offset, bytes, fault, what: entries(low, high) });
    };
    let mut next = Some((Vec::new(), HEADER_LEN as u64));
    for (start, tile) in tiles {
        if let Some((low, end)) = &next
            && *low < start
        {
            gap(low, Some(&start), *end, tile.start);
        }
        next = tile.high.map(|high| (high, tile.end));
    }
    if let Some((low, end)) = next {
        gap(&low, None, end, end);
    }
    gaps
}

/// A file read through a window; what can't be read is zeros.
struct Window {
    file: Box<dyn DiskFile>,
    len: u64,
    start: u64,
    bytes: Vec<u8>,
}

const WINDOW: u64 = 4 << 20;

impl Window {
    /// `len` bytes at `offset`, if the file has them.
    fn at(&mut self, offset: u64, len: usize) -> Option<&[u8]> {
        let end = offset.checked_add(len as u64).filter(|end| *end <= self.len)?;
        if offset < self.start || end > self.start + self.bytes.len() as u64 {
            let room = (self.len - offset).min(WINDOW.max(len as u64));
            self.bytes.resize(usize::try_from(room).ok()?, 0);
            read_what_can_be(&*self.file, &mut self.bytes, offset);
            self.start = offset;
        }
        let at = usize::try_from(offset - self.start).ok()?;
        self.bytes.get(at..at + len)
    }

    /// Id, position and time, from whichever end of the file tells them.
    fn ends(&mut self) -> Option<(FileId, (Position, u64))> {
        let header = self.at(0, HEADER_LEN).and_then(|head| {
            let (header, _) = Header::decode(head.first_chunk()?).ok()?;
            Some((header.file_id, (header.position, header.time_ms)))
        });
        let footer_at = self.len.checked_sub(FOOTER_LEN as u64)?;
        header.or_else(|| {
            let footer = Footer::decode(self.at(footer_at, FOOTER_LEN)?.first_chunk()?).ok()?;
            Some((footer.file_id, (footer.position, footer.time_ms)))
        })
    }

    /// The block at `offset`, unpacked.
    fn block(
        &mut self,
        offset: u64,
        file_id: &FileId,
    ) -> std::result::Result<(Frame, Vec<u8>), Fault> {
        let head = self.at(offset, FRAME_LEN).ok_or(Fault::Missing)?;
        // Most places need no checksum to be told that they hold no frame.
        if !(1..=4).contains(&head[0]) || head[1] > 1 || head[2..4] != [0, 0] {
            return Err(Fault::Foreign { field: "frame" });
        }
        let head = head.first_chunk().ok_or(Fault::Missing)?;
        let frame = Frame::decode(head, file_id).map_err(|damage| damage.fault)?;
        let body = self.at(offset + FRAME_LEN as u64, frame.stored_len as usize);
        let mut raw = Vec::new();
        frame.unpack(body.ok_or(Fault::Missing)?, &mut raw).map_err(|damage| damage.fault)?;
        Ok((frame, raw))
    }

    /// A large value of the leaf block at `block`, whose chunks lie before it.
    fn large(
        &mut self,
        block: u64,
        ordinal: u64,
        file_id: &FileId,
        large: &Large,
    ) -> std::result::Result<Vec<u8>, (u64, Fault)> {
        let foreign = || (block, Fault::Foreign { field: "place of a large value" });
        let mut offset = block.checked_sub(large.back_bytes).ok_or_else(foreign)?;
        let first = ordinal.checked_sub(large.back_blocks).ok_or_else(foreign)?;
        let mut value = Vec::new();
        for i in 0..chunk_count(large.len) {
            let (frame, raw) = self.block(offset, file_id).map_err(|fault| (offset, fault))?;
            let expected: Decoded<()> = frame
                .expect(Kind::Chunk, first.saturating_add(i as u64))
                .and_then(|()| check_chunk(&frame, large, i));
            expected.map_err(|Damage { fault, .. }| (offset, fault))?;
            value.extend_from_slice(&raw);
            offset += frame.block_len();
        }
        equal(0, "hash of a large value", fingerprint::value_hash(&value), large.hash)
            .map_err(|damage| (block, damage.fault))?;
        Ok(value)
    }
}
