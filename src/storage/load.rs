//! Loading: a snapshot file, or the same bytes from a stream, becomes leaves.
//!
//! Nothing is returned before all of it was proven, sums included. Memory beyond the leaves that are
//! built: a block per thread, and from a stream the chunks of one leaf block as they came.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::Path;

use super::STREAM;
use super::reader::{Reader, at, at_body, check_chunk};
use super::source::{Built, LeafBuild, LeafSink, Payload};
use super::walk::{Content, walk};
use crate::error::{Error, Fault, Result};
use crate::fingerprint;
use crate::format::block::{FRAME_LEN, Frame, Kind};
use crate::format::codec::{Damage, equal};
use crate::format::index::{Index, Place, Root};
use crate::format::leaves::{KeyspaceSums, Large, Leaves, Stored, chunk_count};
use crate::format::snapshot::{FOOTER_LEN, FileId, Footer, HEADER_LEN, Header, Span, Totals};
use crate::planted::{Bug, planted};
use crate::position::Seq;

/// What was loaded: the leaves, in key order, and what the file says of itself.
#[derive(Debug)]
pub(crate) struct Loaded<T> {
    pub(crate) leaves: Vec<T>,
    pub(crate) footer: Footer,
    pub(crate) lineage: Vec<Span>,
    /// What each keyspace that has entries sums up to, by id; 0 is the catalogue.
    pub(crate) keyspaces: BTreeMap<u32, KeyspaceSums>,
}

/// Builds the leaves of an open file, on `threads` threads.
pub(crate) fn load_file<'s, S: LeafSink>(
    reader: &Reader,
    sink: &'s S,
    threads: usize,
) -> Result<Loaded<Built<'s, S>>> {
    let (built, content) = walk(reader, threads, |place, leaves| {
        build(sink, leaves, |large| reader.large_owned(place, large))
    })?;
    let leaves = built.into_iter().flatten().collect();
    let lineage = reader.root.lineage.clone();
    Ok(Loaded { leaves, footer: reader.footer.clone(), lineage, keyspaces: content.keyspaces })
}

/// Builds the leaves of one block; `large` fetches and proves its large values, in order.
fn build<'s, S: LeafSink>(
    sink: &'s S,
    leaves: &Leaves,
    mut large: impl FnMut(&Large) -> Result<Box<[u8]>>,
) -> Result<Vec<Built<'s, S>>> {
    let mut built = Vec::new();
    let mut key = Vec::new();
    for leaf in leaves.leaves() {
        let mut builder = sink.begin(leaf.low, leaf.high, leaf.stamp);
        for entry in leaves.entries_of(&leaf) {
            entry.assemble(&mut key);
            let value = match &entry.value {
                Stored::Inline(bytes) => Payload::Bytes(bytes),
                Stored::Large(stored) => {
                    Payload::Large { bytes: large(stored)?, hash: stored.hash }
                }
            };
            builder.push(&key, value, entry.expire_at)?;
        }
        built.extend(builder.finish()?);
    }
    Ok(built)
}

/// Builds the leaves of a snapshot that comes front to back, up to the end of `input`.
pub(crate) fn load_stream<'s, S: LeafSink>(
    input: impl Read,
    sink: &'s S,
) -> Result<Loaded<Built<'s, S>>> {
    let mut input = Input { input: io::BufReader::with_capacity(256 << 10, input), offset: 0 };
    let head: [u8; HEADER_LEN] = input.array("header")?;
    let (header, header_crc) = Header::decode(&head).map_err(|damage| damaged(0, damage))?;
    let mut stream = Stream {
        sink,
        built: Vec::new(),
        totals: Totals::default(),
        content: Content::default(),
        seen: Vec::new(),
        indexes: Vec::new(),
        chunks: Chunks::default(),
        next_low: Some(Vec::new()),
    };
    let mut ordinal = 0;
    loop {
        let start = input.offset;
        let bytes: [u8; FRAME_LEN] = input.array("frame")?;
        let frame = Frame::decode(&bytes, &header.file_id)
            .and_then(|frame| frame.expect(frame.kind, ordinal).map(|()| frame))
            .map_err(|damage| damaged(start, damage))?;
        let stored = input.bytes("body of a block", frame.stored_len.into())?;
        let len = u32::try_from(frame.block_len()).unwrap_or(u32::MAX);
        let place = Place { offset: start, ordinal, len, crc: frame.crc };
        ordinal += 1;
        if frame.kind == Kind::Root {
            let tail: [u8; FOOTER_LEN] = input.array("footer")?;
            let (footer, lineage) =
                stream.finish((&header, header_crc), place, frame, &stored, &tail)?;
            input.end()?;
            let keyspaces = stream.content.keyspaces;
            return Ok(Loaded { leaves: stream.built, footer, lineage, keyspaces });
        }
        stream.block(place, frame, stored)?;
    }
}

/// Blocks that come one by one, without a file around them.
#[derive(Default)]
pub(crate) struct Blocks {
    chunks: Chunks,
}

/// A leaf block and the chunk blocks before it, as they came.
pub(crate) struct Group {
    chunks: Chunks,
    frame: Frame,
    block: Vec<u8>,
}

/// What became of a group.
pub(crate) struct Arrived<T> {
    pub(crate) low: Vec<u8>,
    pub(crate) high: Option<Vec<u8>>,
    /// They tile the block's range.
    pub(crate) leaves: Vec<T>,
}

impl Blocks {
    /// Proves the frame of the block of this ordinal; `None` of a chunk, which waits for its leaf block.
    pub(crate) fn take(
        &mut self,
        block: &[u8],
        file_id: &FileId,
        ordinal: u64,
    ) -> Result<Option<Group>> {
        let damaged = |damage| damaged(0, damage);
        let short = |available| {
            let (field, needed) = ("frame of a block", FRAME_LEN as u64);
            damaged(Damage::new(0, Fault::Truncated { field, needed, available }))
        };
        let (head, _) =
            block.split_first_chunk::<FRAME_LEN>().ok_or_else(|| short(block.len() as u64))?;
        let frame = Frame::decode(head, file_id)
            .and_then(|frame| frame.expect(frame.kind, ordinal).map(|()| frame))
            .map_err(damaged)?;
        match frame.kind {
            Kind::Chunk => {
                // Its length is proven with it.
                let (bytes, body_at) = (block.to_vec(), FRAME_LEN);
                self.chunks.waiting.push(Chunk { offset: 0, frame, bytes, body_at });
                Ok(None)
            }
            Kind::Leaves => {
                let chunks = std::mem::take(&mut self.chunks);
                Ok(Some(Group { chunks, frame, block: block.to_vec() }))
            }
            _ => {
                let fault = Fault::Order { field: "kinds of blocks" };
                Err(damaged(Damage::new(0, fault)))
            }
        }
    }

    /// Whether chunks wait for a leaf block.
    pub(crate) fn are_incomplete(&self) -> bool {
        !self.chunks.waiting.is_empty()
    }
}

impl Group {
    /// Its blocks, in order.
    pub(crate) fn blocks(&self) -> impl Iterator<Item = &[u8]> {
        let chunks = self.chunks.waiting.iter().map(|chunk| &chunk.bytes[..]);
        chunks.chain([&self.block[..]])
    }

    /// Proves what its blocks hold, and builds its leaves.
    pub(crate) fn build<'s, S: LeafSink>(&self, sink: &'s S) -> Result<Arrived<Built<'s, S>>> {
        let damaged = |damage| damaged(0, damage);
        let mut raw = Vec::new();
        self.frame.unpack(&self.block[FRAME_LEN..], &mut raw).map_err(damaged)?;
        let leaves = Leaves::decode(raw, self.frame.items).map_err(damaged)?;
        let told = |fault| Error::corrupt(Path::new(STREAM), 0, fault);
        Content::default().add(&leaves).map_err(told)?;
        let (low, high) = (leaves.low().to_vec(), leaves.high().map(<[u8]>::to_vec));
        Ok(Arrived { low, high, leaves: self.chunks.build(sink, 0, &leaves)? })
    }
}

/// Chunk blocks whose leaf block has not come yet, as they came.
#[derive(Default)]
struct Chunks {
    waiting: Vec<Chunk>,
}

struct Chunk {
    /// Where it came from, for who is told of damage.
    offset: u64,
    frame: Frame,
    bytes: Vec<u8>,
    /// Where its body starts in them.
    body_at: usize,
}

impl Chunks {
    /// Builds the leaves of a block at `offset`, of which all that waits is a part.
    fn build<'s, S: LeafSink>(
        &self,
        sink: &'s S,
        offset: u64,
        leaves: &Leaves,
    ) -> Result<Vec<Built<'s, S>>> {
        let count = self.waiting.len() as u64;
        equal(0, "chunk blocks of a leaf block", count, leaves.chunks().1)
            .map_err(|damage| damaged(offset, damage))?;
        let mut chunks = self.waiting.iter();
        build(sink, leaves, |large| {
            let count = chunk_count(large.len);
            unpack_large(large, offset, chunks.by_ref().take(count))
        })
    }
}

/// What has been seen of a stream.
struct Stream<'s, S: LeafSink> {
    sink: &'s S,
    built: Vec<Built<'s, S>>,
    totals: Totals,
    content: Content,
    seen: Vec<Seen>,
    indexes: Vec<(Place, Index)>,
    chunks: Chunks,
    /// Where the next leaf block must start; `None` once the key space is covered.
    next_low: Option<Vec<u8>>,
}

/// A leaf block as it came, to be compared with what the index says of it.
struct Seen {
    place: Place,
    entries: u64,
    raw_bytes: u64,
    stamp: Seq,
    low_hash: u64,
}

impl<'s, S: LeafSink> Stream<'s, S> {
    fn block(&mut self, place: Place, frame: Frame, stored: Vec<u8>) -> Result<()> {
        let out_of_order = || {
            Err(damaged(place.offset, Damage::new(0, Fault::Order { field: "kinds of blocks" })))
        };
        let damaged_here = |damage| damaged(place.offset, damage);
        match frame.kind {
            Kind::Chunk if self.next_low.is_some() => {
                let (offset, bytes) = (place.offset, stored);
                self.chunks.waiting.push(Chunk { offset, frame, bytes, body_at: 0 });
                Ok(())
            }
            Kind::Leaves if self.next_low.is_some() => {
                let mut raw = Vec::new();
                frame.unpack(&stored, &mut raw).map_err(damaged_here)?;
                drop(stored);
                let leaves = Leaves::decode(raw, frame.items).map_err(damaged_here)?;
                self.leaves(place, &leaves)
            }
            Kind::Index if self.next_low.is_none() && self.chunks.waiting.is_empty() => {
                let mut raw = Vec::new();
                frame.unpack(&stored, &mut raw).map_err(damaged_here)?;
                let index = Index::decode(raw, frame.items).map_err(damaged_here)?;
                self.indexes.push((place, index));
                Ok(())
            }
            _ => out_of_order(),
        }
    }

    fn leaves(&mut self, place: Place, leaves: &Leaves) -> Result<()> {
        let told = |fault| Error::corrupt(Path::new(STREAM), place.offset, fault);
        if self.next_low.as_deref() != Some(leaves.low()) {
            return Err(told(Fault::Order { field: "fences of leaf blocks" }));
        }
        self.content.add(leaves).map_err(told)?;
        let chunks = std::mem::take(&mut self.chunks);
        self.built.extend(chunks.build(self.sink, place.offset, leaves)?);
        let totals = leaves.totals();
        self.totals.add(&totals);
        self.seen.push(Seen {
            place,
            entries: totals.entries,
            raw_bytes: totals.raw_bytes,
            stamp: leaves.stamp(),
            low_hash: fingerprint::value_hash(leaves.low()),
        });
        self.next_low = leaves.high().map(<[u8]>::to_vec);
        Ok(())
    }
}

impl<S: LeafSink> Stream<'_, S> {
    /// Proves root and footer, and that both speak of what was seen.
    fn finish(
        &mut self,
        (header, header_crc): (&Header, u32),
        place: Place,
        frame: Frame,
        stored: &[u8],
        tail: &[u8; FOOTER_LEN],
    ) -> Result<(Footer, Vec<Span>)> {
        if self.next_low.is_some() || !self.chunks.waiting.is_empty() {
            let early = Fault::Order { field: "kinds of blocks" };
            return Err(damaged(place.offset, Damage::new(0, early)));
        }
        let footer_at = place.end();
        let footer = Footer::decode(tail).and_then(|footer| {
            let end = footer_at.saturating_add(FOOTER_LEN as u64);
            footer.check(header, header_crc, end)?;
            equal(96, "offset of the root", place.offset, footer.root_offset)?;
            equal(116, "checksum of the root", place.crc.into(), footer.root_crc.into())?;
            self.totals.check(0, &footer.totals)?;
            Ok(footer)
        });
        let footer = footer.map_err(|damage| damaged(footer_at, damage))?;
        let mut raw = Vec::new();
        frame.unpack(stored, &mut raw).map_err(|damage| damaged(place.offset, damage))?;
        let root = Root::decode(raw, frame.items, place.ordinal, &footer)
            .map_err(|damage| at_body(Path::new(STREAM), place, damage))?;
        let doubled = |fault| damaged(HEADER_LEN as u64, Damage::new(0, fault));
        self.content.check().map_err(doubled)?;
        self.check_index(&root).map_err(|(place, damage)| damaged(place.offset, damage))?;
        Ok((footer, root.lineage))
    }

    /// Compares what the index says with what was seen.
    fn check_index(&self, root: &Root) -> std::result::Result<(), (Place, Damage)> {
        let mut seen = self.seen.iter();
        let count = root.index.len() as u64;
        let place = Place::default();
        equal(0, "index blocks", self.indexes.len() as u64, count).map_err(|d| (place, d))?;
        for (i, (place, index)) in self.indexes.iter().enumerate() {
            let told = |damage| (*place, damage);
            let foreign = || told(Damage::new(0, Fault::Foreign { field: "index block" }));
            let stated = root.index.get(i).filter(|stated| stated.place == *place);
            let (low, high) = (root.index.low(i).unwrap_or_default(), root.index.low(i + 1));
            index
                .check(stated.ok_or_else(foreign)?, low, high, root.leaf_blocks_end())
                .map_err(told)?;
            for j in 0..index.len() {
                let matches = index.get(j).zip(index.low(j)).zip(seen.next()).is_some_and(
                    |((named, low), seen)| {
                        named.place == seen.place
                            && named.entries == seen.entries
                            && named.raw_bytes == seen.raw_bytes
                            && named.stamp == seen.stamp
                            && fingerprint::value_hash(low) == seen.low_hash
                    },
                );
                if !matches {
                    return Err(foreign());
                }
            }
        }
        // The root's count of leaf blocks is the footer's, which is that of the blocks seen.
        Ok(())
    }
}

/// Puts the chunks of a large value together and proves the whole.
fn unpack_large<'a>(
    large: &Large,
    block_offset: u64,
    chunks: impl Iterator<Item = &'a Chunk>,
) -> Result<Box<[u8]>> {
    // Bounded by what the chunks, which are here, can unpack to: the leaf block's decoder saw to that.
    let mut value = vec![0; large.len].into_boxed_slice();
    let mut rest = &mut *value;
    let mut bytes = 0;
    let mut raw = Vec::new();
    for (i, Chunk { offset, frame, bytes: stored, body_at }) in chunks.enumerate() {
        check_chunk(frame, large, i)
            .and_then(|()| frame.unpack(&stored[*body_at..], &mut raw))
            .map_err(|damage| damaged(*offset, damage))?;
        let (to, after) = std::mem::take(&mut rest).split_at_mut(raw.len());
        to.copy_from_slice(&raw);
        rest = after;
        bytes += frame.block_len();
    }
    equal(0, "bytes of the chunks", bytes, large.chunk_bytes)
        .and_then(|()| {
            equal(0, "hash of a large value", fingerprint::value_hash(&value), large.hash)
        })
        .map_err(|damage| damaged(block_offset, damage))?;
    Ok(value)
}

/// Bytes from a reader of the caller's, counted.
struct Input<R> {
    input: io::BufReader<R>,
    offset: u64,
}

impl<R: Read> Input<R> {
    fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N]> {
        let bytes = self.bytes(field, N as u64)?;
        Ok(bytes.try_into().expect("as many as were asked for"))
    }

    /// Memory grows with what arrives, not with what was announced.
    fn bytes(&mut self, field: &'static str, len: u64) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.input.by_ref().take(len).read_to_end(&mut bytes).map_err(told)?;
        let available = bytes.len() as u64;
        if available < len {
            let short = Fault::Truncated { field, needed: len, available };
            return Err(damaged(self.offset, Damage::new(0, short)));
        }
        self.offset += len;
        Ok(bytes)
    }

    fn end(&mut self) -> Result<()> {
        if planted(Bug::TakesMore) {
            return Ok(());
        }
        let mut more = Vec::new();
        self.input.by_ref().take(1).read_to_end(&mut more).map_err(told)?;
        match more.len() as u64 {
            0 => Ok(()),
            count => {
                let fault = Fault::TrailingBytes { field: "snapshot file", count };
                Err(damaged(self.offset, Damage::new(0, fault)))
            }
        }
    }
}

fn told(source: io::Error) -> Error {
    Error::io("read", Path::new(STREAM), source)
}

fn damaged(offset: u64, damage: Damage) -> Error {
    at(Path::new(STREAM), offset, damage)
}
