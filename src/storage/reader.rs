//! A snapshot file that is open: its blocks by place, each copied out, checked, then decoded.
//!
//! Nothing is handed on that was not proven on the way from the footer: root, index block, leaf block,
//! chunks. Decoded blocks are cached; what is in a cache was proven before.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::map::Map;
use super::{DiskFile, read_exact_at};
use crate::error::{Error, Fault, Result};
use crate::fingerprint;
use crate::format::CHUNK_LEN;
use crate::format::block::{FRAME_LEN, Frame, Kind};
use crate::format::codec::{Damage, Decoded, equal};
use crate::format::index::{Index, Named, Place, Root, check_leaves};
use crate::format::leaves::{Large, Leaves, chunk_count};
use crate::format::snapshot::{FOOTER_LEN, Footer, HEADER_LEN, Header};
use crate::sync::Mutex;

/// Where the bytes come from.
#[derive(Debug)]
pub(crate) enum Bytes {
    File(Box<dyn DiskFile>),
    Map(Map),
}

impl Bytes {
    fn read_at(&self, path: &Path, buf: &mut [u8], offset: u64) -> Result<()> {
        match self {
            Bytes::File(file) => read_exact_at(&**file, buf, offset),
            Bytes::Map(map) => map.read_at(buf, offset),
        }
        .map_err(|source| Error::io("read", path, source))
    }

    fn len(&self, path: &Path) -> Result<u64> {
        match self {
            Bytes::File(file) => file.len().map_err(|source| Error::io("read", path, source)),
            Bytes::Map(map) => Ok(map.len()),
        }
    }
}

/// An open file; any number of threads share it.
#[derive(Debug)]
pub(crate) struct Reader {
    path: PathBuf,
    bytes: Bytes,
    pub(crate) header: Header,
    pub(crate) footer: Footer,
    pub(crate) root: Root,
    indexes: Cache<Index>,
    leaves: Cache<Leaves>,
}

/// The place of a leaf block: which index block names it, and as which of its entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct BlockAt {
    pub(crate) index: usize,
    pub(crate) block: usize,
}

impl Reader {
    /// Proves header, footer and root. Cost: three reads, whatever the file holds.
    pub(crate) fn open(bytes: Bytes, path: &Path) -> Result<Self> {
        let len = bytes.len(path)?;
        let needed = (HEADER_LEN + FRAME_LEN + FOOTER_LEN) as u64;
        let mut head = [0; HEADER_LEN];
        // A short file may still say that it is none of ours, or of another version.
        let head_len = usize::try_from(len).unwrap_or(HEADER_LEN).min(HEADER_LEN);
        bytes.read_at(path, &mut head[..head_len], 0)?;
        let header = Header::decode(&head);
        let other =
            matches!(&header, Err(Damage { fault: Fault::Magic | Fault::Version { .. }, .. }));
        if len < needed && !(other && head_len >= 12) {
            let short = Fault::Truncated { field: "snapshot file", needed, available: len };
            return Err(Error::corrupt(path, len, short));
        }
        let (header, header_crc) = header.map_err(|damage| at(path, 0, damage))?;

        let footer_at = len - FOOTER_LEN as u64;
        let mut tail = [0; FOOTER_LEN];
        bytes.read_at(path, &mut tail, footer_at)?;
        let footer = Footer::decode(&tail)
            .and_then(|footer| footer.check(&header, header_crc, len).map(|()| footer))
            .map_err(|damage| at(path, footer_at, damage))?;

        let place = Place {
            offset: footer.root_offset,
            ordinal: footer.blocks.saturating_sub(1),
            len: footer.root_len,
            crc: footer.root_crc,
        };
        let (frame, raw) = read_block(&bytes, path, &header, Kind::Root, place)?;
        let root = Root::decode(raw, frame.items, frame.ordinal, &footer)
            .map_err(|damage| at_body(path, place, damage))?;
        let (indexes, leaves) = (Cache::new(INDEX_CACHE), Cache::new(LEAVES_CACHE));
        Ok(Reader { path: path.to_owned(), bytes, header, footer, root, indexes, leaves })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The leaf block whose range holds `key`.
    pub(crate) fn find(&self, key: &[u8]) -> Result<BlockAt> {
        let index = self.root.index.find(key);
        let block = self.index(index)?.find(key);
        Ok(BlockAt { index, block })
    }

    /// The next leaf block, if there is one.
    pub(crate) fn after(&self, at: BlockAt) -> Result<Option<BlockAt>> {
        if at.block + 1 < self.index(at.index)?.len() {
            return Ok(Some(BlockAt { block: at.block + 1, ..at }));
        }
        let next = BlockAt { index: at.index + 1, block: 0 };
        Ok((next.index < self.root.index.len()).then_some(next))
    }

    /// The leaf block before, if there is one.
    pub(crate) fn before(&self, at: BlockAt) -> Result<Option<BlockAt>> {
        if let Some(block) = at.block.checked_sub(1) {
            return Ok(Some(BlockAt { block, ..at }));
        }
        let Some(index) = at.index.checked_sub(1) else { return Ok(None) };
        Ok(self.index(index)?.len().checked_sub(1).map(|block| BlockAt { index, block }))
    }

    /// The `i`th index block, proven; cached.
    pub(crate) fn index(&self, i: usize) -> Result<Arc<Index>> {
        let stated = self.root.index.get(i).ok_or_else(|| self.astray())?;
        let place = stated.place;
        if let Some(index) = self.indexes.get(place.ordinal) {
            return Ok(index);
        }
        let (frame, raw) = self.read(Kind::Index, place)?;
        let low = self.root.index.low(i).unwrap_or_default();
        let high = self.root.index.low(i + 1);
        let bytes = raw.len() * 3;
        let index = Index::decode(raw, frame.items)
            .and_then(|index| {
                index.check(stated, low, high, self.root.leaf_blocks_end())?;
                Ok(index)
            })
            .map_err(|damage| at_body(&self.path, place, damage))?;
        Ok(self.indexes.insert(place.ordinal, index, bytes))
    }

    /// A leaf block, proven; cached.
    pub(crate) fn leaves(&self, at: BlockAt) -> Result<Arc<Leaves>> {
        let index = self.index(at.index)?;
        let named = index.get(at.block).ok_or_else(|| self.astray())?;
        if let Some(leaves) = self.leaves.get(named.place.ordinal) {
            return Ok(leaves);
        }
        let leaves = self.read_leaves(&index, at)?;
        let bytes = leaves.memory();
        Ok(self.leaves.insert(named.place.ordinal, leaves, bytes))
    }

    /// What an index says of a leaf block.
    pub(crate) fn named<'a>(&self, index: &'a Index, at: BlockAt) -> Result<&'a Named> {
        index.get(at.block).ok_or_else(|| self.astray())
    }

    /// A leaf block, read and proven anew; `index` is the one that names it.
    pub(crate) fn read_leaves(&self, index: &Index, at: BlockAt) -> Result<Leaves> {
        let named = self.named(index, at)?;
        let (frame, raw) = self.read(Kind::Leaves, named.place)?;
        let low = index.low(at.block);
        let high = index.low(at.block + 1).or_else(|| self.root.index.low(at.index + 1));
        // Damage in a body has no place of its own in the file when the body is compressed: the block has.
        Leaves::decode(raw, frame.items)
            .and_then(|leaves| check_leaves(named, low, high, &leaves).map(|()| leaves))
            .map_err(|Damage { fault, .. }| Error::corrupt(&self.path, named.place.offset, fault))
    }

    /// Shows the chunks of a large value of the leaf block at `block`, in order, each proven; then proves the whole.
    pub(crate) fn chunks(
        &self,
        block: Place,
        large: &Large,
        mut show: impl FnMut(&[u8]),
    ) -> Result<()> {
        let (mut offset, first) = self.start_of(block, large)?;
        let end = offset.saturating_add(large.chunk_bytes);
        let mut hash = fingerprint::ValueHasher::default();
        let mut stored = Vec::new();
        let mut raw = Vec::new();
        for i in 0..chunk_count(large.len) {
            let ordinal = first.saturating_add(i as u64);
            let mut frame = [0; FRAME_LEN];
            let left = end.saturating_sub(offset);
            let fits = |len: u64| {
                if len <= left { Ok(()) } else { Err(short_chunks(left, len)) }
            };
            fits(FRAME_LEN as u64).map_err(|damage| at(&self.path, offset, damage))?;
            self.bytes.read_at(&self.path, &mut frame, offset)?;
            let frame = Frame::decode(&frame, &self.header.file_id)
                .and_then(|frame| {
                    frame.expect(Kind::Chunk, ordinal)?;
                    check_chunk(&frame, large, i)?;
                    fits(frame.block_len()).map(|()| frame)
                })
                .map_err(|damage| at(&self.path, offset, damage))?;
            stored.resize(frame.stored_len as usize, 0);
            self.bytes.read_at(&self.path, &mut stored, offset + FRAME_LEN as u64)?;
            frame.unpack(&stored, &mut raw).map_err(|damage| at(&self.path, offset, damage))?;
            hash.update(&raw);
            show(&raw);
            offset += frame.block_len();
        }
        equal(0, "bytes of the chunks", offset, end)
            .and_then(|()| equal(0, "hash of a large value", hash.finish(), large.hash))
            .map_err(|damage| at(&self.path, block.offset, damage))
    }

    /// A large value of the leaf block at `block`, proven, to be shared.
    pub(crate) fn large_shared(&self, block: Place, large: &Large) -> Result<Arc<[u8]>> {
        // Bounded by what the chunks can unpack to, which the leaf block's decoder saw to, and they lie in the file.
        self.start_of(block, large)?;
        let mut value: Arc<[u8]> = std::iter::repeat_n(0, large.len).collect();
        self.fill(block, large, Arc::get_mut(&mut value).expect("nobody else has it yet"))?;
        Ok(value)
    }

    /// As [`Reader::large_shared`], to be kept.
    pub(crate) fn large_owned(&self, block: Place, large: &Large) -> Result<Box<[u8]>> {
        self.start_of(block, large)?;
        let mut value = vec![0; large.len].into_boxed_slice();
        self.fill(block, large, &mut value)?;
        Ok(value)
    }

    fn fill(&self, block: Place, large: &Large, mut rest: &mut [u8]) -> Result<()> {
        self.chunks(block, large, |chunk| {
            let (to, after) = std::mem::take(&mut rest).split_at_mut(chunk.len());
            to.copy_from_slice(chunk);
            rest = after;
        })
    }

    /// Offset and ordinal of the first chunk of a large value of the leaf block at `block`.
    fn start_of(&self, block: Place, large: &Large) -> Result<(u64, u64)> {
        let offset = block.offset.checked_sub(large.back_bytes);
        let offset = offset.filter(|offset| *offset >= HEADER_LEN as u64);
        offset.zip(block.ordinal.checked_sub(large.back_blocks)).ok_or_else(|| {
            let fault = Fault::Foreign { field: "place of a large value" };
            Error::corrupt(&self.path, block.offset, fault)
        })
    }

    fn read(&self, kind: Kind, place: Place) -> Result<(Frame, Vec<u8>)> {
        read_block(&self.bytes, &self.path, &self.header, kind, place)
    }

    /// Something wrong in a leaf block, found after it was decoded.
    pub(crate) fn corrupt_block(&self, at: BlockAt, fault: Fault) -> Error {
        match self.place(at) {
            Ok(place) => Error::corrupt(&self.path, place.offset, fault),
            Err(error) => error,
        }
    }

    /// Where a leaf block lies.
    pub(crate) fn place(&self, at: BlockAt) -> Result<Place> {
        Ok(self.named(&*self.index(at.index)?, at)?.place)
    }

    /// Someone asked for a block that no index names: a place that was not ours to begin with.
    fn astray(&self) -> Error {
        let fault = Fault::Foreign { field: "place of a block" };
        Error::corrupt(&self.path, self.footer.root_offset, fault)
    }
}

/// The `i`th chunk of a large value has no more and no less than its share of it.
pub(crate) fn check_chunk(frame: &Frame, large: &Large, i: usize) -> Decoded<()> {
    let share = large.len.saturating_sub(i * CHUNK_LEN).min(CHUNK_LEN);
    equal(4, "raw length of a chunk", frame.raw_len.into(), share as u64)?;
    equal(24, "item count of a chunk", frame.items.into(), 0)
}

fn short_chunks(available: u64, needed: u64) -> Damage {
    Damage::new(0, Fault::Truncated { field: "chunks of a large value", needed, available })
}

/// Reads the block at `place` and proves it to be the one that is named so.
fn read_block(
    bytes: &Bytes,
    path: &Path,
    header: &Header,
    kind: Kind,
    place: Place,
) -> Result<(Frame, Vec<u8>)> {
    let damaged = |damage| at(path, place.offset, damage);
    // Bounded by the file: places were checked against its length by whoever named them.
    let mut block = vec![0; place.len as usize];
    bytes.read_at(path, &mut block, place.offset)?;
    let Some((head, body)) = block.split_first_chunk::<FRAME_LEN>() else {
        let available = block.len() as u64;
        let short = Fault::Truncated { field: "frame", needed: FRAME_LEN as u64, available };
        return Err(damaged(Damage::new(0, short)));
    };
    let frame = Frame::decode(head, &header.file_id).map_err(damaged)?;
    frame.expect(kind, place.ordinal).map_err(damaged)?;
    equal(8, "stored length", frame.block_len(), place.len.into()).map_err(damaged)?;
    if frame.crc != place.crc {
        return Err(damaged(Damage::new(28, Fault::Foreign { field: "block" })));
    }
    let mut raw = Vec::new();
    frame.unpack(body, &mut raw).map_err(damaged)?;
    Ok((frame, raw))
}

/// Damage in a structure that starts at `offset` of the file.
pub(crate) fn at(path: &Path, offset: u64, damage: Damage) -> Error {
    Error::corrupt(path, offset.saturating_add(damage.at), damage.fault)
}

/// Damage in the uncompressed body of the block at `place`.
pub(crate) fn at_body(path: &Path, place: Place, damage: Damage) -> Error {
    at(path, place.offset, damage.offset_by(FRAME_LEN))
}

const SHARDS: usize = 8;

/// How much a cache may hold, in each of its shards.
#[derive(Debug, Clone, Copy)]
struct CacheLimit {
    items: usize,
    bytes: usize,
}

/// A thousand index blocks lead to some 30 million records of 126 bytes.
const INDEX_CACHE: CacheLimit = CacheLimit { items: 128, bytes: 4 << 20 };
const LEAVES_CACHE: CacheLimit = CacheLimit { items: 8, bytes: 2 << 20 };

/// Decoded blocks by ordinal, those used last.
#[derive(Debug)]
struct Cache<T> {
    limit: CacheLimit,
    shards: [Mutex<Shard<T>>; SHARDS],
}

#[derive(Debug)]
struct Shard<T> {
    /// Ordinal, size, block; what was used last is last.
    items: Vec<(u64, usize, Arc<T>)>,
    bytes: usize,
}

impl<T> Cache<T> {
    fn new(limit: CacheLimit) -> Self {
        let shard = |_| Mutex::new(Shard { items: Vec::new(), bytes: 0 });
        Cache { limit, shards: std::array::from_fn(shard) }
    }

    fn shard(&self, ordinal: u64) -> &Mutex<Shard<T>> {
        &self.shards[usize::try_from(ordinal % SHARDS as u64).unwrap_or(0)]
    }

    fn get(&self, ordinal: u64) -> Option<Arc<T>> {
        let mut shard = self.shard(ordinal).lock();
        let i = shard.items.iter().rposition(|(held, ..)| *held == ordinal)?;
        shard.items[i..].rotate_left(1);
        shard.items.last().map(|(.., block)| Arc::clone(block))
    }

    fn insert(&self, ordinal: u64, block: T, bytes: usize) -> Arc<T> {
        let block = Arc::new(block);
        let mut shard = self.shard(ordinal).lock();
        if shard.items.iter().any(|(held, ..)| *held == ordinal) {
            return block;
        }
        while shard.items.len() == self.limit.items
            || (!shard.items.is_empty() && shard.bytes + bytes > self.limit.bytes)
        {
            let (_, freed, _) = shard.items.remove(0);
            shard.bytes -= freed;
        }
        shard.bytes += bytes;
        shard.items.push((ordinal, bytes, Arc::clone(&block)));
        block
    }
}
