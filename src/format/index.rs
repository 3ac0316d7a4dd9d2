//! The two levels that lead to a block: index blocks name leaf blocks, the root names index blocks.
//!
//! An entry holds the low fence, the place and the frame checksum of what it names, so a chain of
//! checksums leads from the footer to every block. Where a block ends is where the next one starts:
//! fences are stated once and tile by construction; that they ascend is checked here.

use super::MAX_INTERNAL_KEY_LEN;
use super::block::{FRAME_LEN, MAX_INDEX_LEN, MAX_LEAVES_LEN};
use super::codec::{Damage, Decoded, Decoder, equal};
use super::leaves::{Leaves, Summary};
use super::snapshot::{Footer, HEADER_LEN, SPAN_LEN, Span, Totals};
use crate::error::Fault;
use crate::position::Seq;

const HEAD_LEN: usize = 8;
const ENTRY_LEN: usize = 56;

/// An index block is closed when it is this long and has this many entries: the root stays small even
/// when every fence is as long as a key can be.
const INDEX_TARGET_LEN: usize = 16 << 10;
const INDEX_MIN_ENTRIES: u32 = 16;

const _: () = assert!(
    MAX_INDEX_LEN
        > INDEX_TARGET_LEN + INDEX_MIN_ENTRIES as usize * (ENTRY_LEN + MAX_INTERNAL_KEY_LEN)
);

/// A block that has been written: where, and the checksum of its frame.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) offset: u64,
    pub(crate) ordinal: u64,
    /// Length with the frame.
    pub(crate) len: u32,
    pub(crate) crc: u32,
}

impl Place {
    /// Where the next block starts.
    pub(crate) fn end(&self) -> u64 {
        self.offset.saturating_add(self.len.into())
    }
}

/// What an index says of one leaf block, or the root of one index block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) place: Place,
    /// Of all that lies below.
    pub(crate) entries: u64,
    pub(crate) raw_bytes: u64,
    pub(crate) stamp: Seq,
    /// Leaf blocks below: 1 in an index block.
    pub(crate) blocks: u32,
    low: (usize, usize),
}

/// A decoded, proven index block or root: what it names, in order.
#[derive(Debug)]
pub(crate) struct Index {
    raw: Vec<u8>,
    named: Vec<Named>,
}

impl Index {
    /// Decodes an index block; what the root says of it is left to [`Index::check`].
    pub(crate) fn decode(raw: Vec<u8>, items: u32) -> Decoded<Self> {
        let mut d = Decoder::new(&raw);
        let count = d.count("index entry count", ENTRY_LEN)?;
        equal(0, "index entry count", count as u64, items.into())?;
        not_empty("index entry count", count)?;
        d.zeros("reserved bytes of an index block", 4)?;
        let mut named = Vec::with_capacity(count);
        for _ in 0..count {
            let at = d.at();
            let leaf_block = take_named(&mut d, MAX_LEAVES_LEN)?;
            equal(at, "leaf blocks of a leaf block", leaf_block.blocks.into(), 1)?;
            named.push(leaf_block);
        }
        take_fences(&mut d, &mut named)?;
        d.finish("index block")?;
        let mut end = Place { offset: HEADER_LEN as u64, ..Place::default() };
        for (i, named) in named.iter().enumerate() {
            let follows = i == 0 || named.place.ordinal > end.ordinal;
            if named.place.offset < end.end() || !follows {
                let at = HEAD_LEN.saturating_add(i.saturating_mul(ENTRY_LEN));
                return Err(Damage::new(at, Fault::Order { field: "places of leaf blocks" }));
            }
            end = named.place;
        }
        Ok(Index { raw, named })
    }

    /// Refuses an index block that is not what the root `stated`: one that covers `low..high` and names
    /// leaf blocks that end at or before `limit`.
    pub(crate) fn check(
        &self,
        stated: &Named,
        low: &[u8],
        high: Option<&[u8]>,
        limit: u64,
    ) -> Decoded<()> {
        equal(0, "index entry count", self.len() as u64, stated.blocks.into())?;
        let last = self.len().saturating_sub(1);
        let last_low = self.low(last);
        let below_high = high.is_none_or(|high| last_low.is_some_and(|low| low < high));
        if self.low(0) != Some(low) || !below_high {
            return Err(Damage::new(0, Fault::Order { field: "fences of an index block" }));
        }
        if self.get(last).is_none_or(|named| named.place.end() > limit) {
            return Err(Damage::new(0, Fault::Order { field: "places of leaf blocks" }));
        }
        let sum = self.sum();
        equal(0, "entry count below an index block", sum.entries, stated.entries)?;
        equal(0, "raw byte count below an index block", sum.raw_bytes, stated.raw_bytes)?;
        equal(0, "newest stamp below an index block", sum.stamp.0, stated.stamp.0)
    }

    pub(crate) fn len(&self) -> usize {
        self.named.len()
    }

    pub(crate) fn get(&self, i: usize) -> Option<&Named> {
        self.named.get(i)
    }

    /// Where the range of the `i`th starts.
    pub(crate) fn low(&self, i: usize) -> Option<&[u8]> {
        self.named.get(i).map(|named| fence(&self.raw, named.low))
    }

    /// The one whose range holds `key`, which must not lie below the first.
    pub(crate) fn find(&self, key: &[u8]) -> usize {
        let above = self.named.partition_point(|named| fence(&self.raw, named.low) <= key);
        above.saturating_sub(1)
    }

    fn sum(&self) -> Named {
        let mut sum = Named {
            place: Place::default(),
            entries: 0,
            raw_bytes: 0,
            stamp: Seq(0),
            blocks: 0,
            low: (0, 0),
        };
        for named in &self.named {
            sum.entries = sum.entries.saturating_add(named.entries);
            sum.raw_bytes = sum.raw_bytes.saturating_add(named.raw_bytes);
            sum.stamp = sum.stamp.max(named.stamp);
            sum.blocks = sum.blocks.saturating_add(named.blocks);
        }
        sum
    }
}

/// Refuses a leaf block that is not what its index entry states.
pub(crate) fn check_leaves(
    stated: &Named,
    low: Option<&[u8]>,
    high: Option<&[u8]>,
    leaves: &Leaves,
) -> Decoded<()> {
    if Some(leaves.low()) != low || leaves.high() != high {
        return Err(Damage::new(0, Fault::Order { field: "fences of a leaf block" }));
    }
    let totals = leaves.totals();
    equal(0, "entry count of a leaf block", totals.entries, stated.entries)?;
    equal(0, "raw bytes of a leaf block", totals.raw_bytes, stated.raw_bytes)?;
    equal(0, "newest stamp of a leaf block", leaves.stamp().0, stated.stamp.0)
}

/// The decoded, proven root: index blocks and lineage.
#[derive(Debug)]
pub(crate) struct Root {
    pub(crate) index: Index,
    /// The histories of the line, oldest first; empty for the empty state.
    pub(crate) lineage: Vec<Span>,
}

impl Root {
    /// Decodes the root block that `footer` names.
    pub(crate) fn decode(raw: Vec<u8>, items: u32, ordinal: u64, footer: &Footer) -> Decoded<Self> {
        let mut d = Decoder::new(&raw);
        let count = d.count("root entry count", ENTRY_LEN)?;
        equal(0, "root entry count", count as u64, items.into())?;
        not_empty("root entry count", count)?;
        let spans = d.count("lineage length", SPAN_LEN)?;
        let mut named = Vec::with_capacity(count);
        for _ in 0..count {
            named.push(take_named(&mut d, MAX_INDEX_LEN)?);
        }
        let lineage = take_lineage(&mut d, spans, footer)?;
        take_fences(&mut d, &mut named)?;
        d.finish("root")?;
        let root = Root { index: Index { raw, named }, lineage };
        if root.index.low(0) != Some(&[]) {
            return Err(Damage::new(0, Fault::Order { field: "first fence of the root" }));
        }
        let mut next: Option<(u64, u64)> = None;
        for (i, named) in root.index.named.iter().enumerate() {
            let at = HEAD_LEN.saturating_add(i.saturating_mul(ENTRY_LEN));
            if let Some((offset, ordinal)) = next {
                equal(at, "offset of an index block", named.place.offset, offset)?;
                let at = at.saturating_add(8);
                equal(at, "ordinal of an index block", named.place.ordinal, ordinal)?;
            }
            next = Some((named.place.end(), named.place.ordinal.saturating_add(1)));
        }
        let (end, next_ordinal) = next.unwrap_or_default();
        equal(0, "end of the index blocks", end, footer.root_offset)?;
        equal(0, "ordinal of the root", ordinal, next_ordinal)?;
        equal(0, "block count", ordinal.saturating_add(1), footer.blocks)?;
        let sum = root.index.sum();
        equal(0, "entry count below the root", sum.entries, footer.totals.entries)?;
        equal(0, "raw byte count below the root", sum.raw_bytes, footer.totals.raw_bytes)?;
        equal(0, "leaf blocks below the root", sum.blocks.into(), footer.totals.leaf_blocks)?;
        Ok(root)
    }

    /// Where the last leaf block ends and the first index block starts.
    pub(crate) fn leaf_blocks_end(&self) -> u64 {
        self.index.get(0).map_or(0, |first| first.place.offset)
    }
}

fn not_empty(field: &'static str, count: usize) -> Decoded<()> {
    if count > 0 {
        return Ok(());
    }
    Err(Damage::new(0, Fault::Range { field, got: 0, min: 1, max: u32::MAX.into() }))
}

fn fence(raw: &[u8], (at, len): (usize, usize)) -> &[u8] {
    raw.get(at..at.saturating_add(len)).unwrap_or_default()
}

/// Takes one entry, its fence still without a place; `max_body` bounds the length of what it names.
fn take_named(d: &mut Decoder<'_>, max_body: usize) -> Decoded<Named> {
    let offset = d.u64("offset of a block")?;
    let ordinal = d.u64("ordinal of a block")?;
    let entries = d.u64("entry count of a block")?;
    let raw_bytes = d.u64("raw bytes of a block")?;
    let stamp = Seq(d.u64("newest stamp of a block")?);
    let (min, max) = (FRAME_LEN.saturating_add(1), FRAME_LEN.saturating_add(max_body));
    let len = d.u32_in("length of a block", min, max)?;
    let crc = d.u32("checksum of a block")?;
    let blocks = d.u32("leaf blocks of a block")?;
    let low_len = d.u32_in("fence length", 0, MAX_INTERNAL_KEY_LEN)? as usize;
    let place = Place { offset, ordinal, len, crc };
    Ok(Named { place, entries, raw_bytes, stamp, blocks, low: (0, low_len) })
}

/// Takes the fences that end an index block or root; they must ascend.
fn take_fences(d: &mut Decoder<'_>, named: &mut [Named]) -> Decoded<()> {
    let mut before: Option<&[u8]> = None;
    for named in named {
        named.low.0 = d.at();
        let fence = d.bytes("fence", named.low.1)?;
        if before.is_some_and(|before| before >= fence) {
            return Err(Damage::new(named.low.0, Fault::Order { field: "fences of blocks" }));
        }
        before = Some(fence);
    }
    Ok(())
}

/// Takes a lineage whose spans follow one another, though some between them may have been dropped, and end at the cut.
fn take_lineage(d: &mut Decoder<'_>, spans: usize, footer: &Footer) -> Decoded<Vec<Span>> {
    let start_at = d.at();
    let mut lineage: Vec<Span> = Vec::with_capacity(spans);
    for _ in 0..spans {
        let at = d.at();
        let span = Span::take(d)?;
        let follows = lineage.last().is_none_or(|last| last.end < span.start);
        if span.start > span.end || !follows {
            return Err(Damage::new(at, Fault::Order { field: "lineage" }));
        }
        lineage.push(span);
    }
    if let Some(last) = lineage.last() {
        equal(start_at, "end of the lineage", last.end.0, footer.position.seq.0)?;
        if last.history != footer.position.history {
            return Err(Damage::new(start_at, Fault::Foreign { field: "lineage" }));
        }
    }
    Ok(lineage)
}

/// Builds index blocks and the root from the summaries of the blocks that have been written.
#[derive(Debug, Default)]
pub(crate) struct IndexBuilder {
    table: Vec<u8>,
    fences: Vec<u8>,
    count: u32,
    low: Vec<u8>,
    entries: u64,
    raw_bytes: u64,
    stamp: Seq,
    root_table: Vec<u8>,
    root_fences: Vec<u8>,
    root_count: u32,
    totals: Totals,
}

/// The body of an index block, waiting for its place.
#[derive(Debug)]
pub(crate) struct IndexBody {
    pub(crate) raw: Vec<u8>,
    pub(crate) items: u32,
    low: Vec<u8>,
    entries: u64,
    raw_bytes: u64,
    stamp: Seq,
}

impl IndexBuilder {
    /// Adds a leaf block; blocks come in key order. Returns an index block once one is full.
    pub(crate) fn push(&mut self, block: &Summary, place: Place) -> Option<IndexBody> {
        if self.count == 0 {
            self.low.clone_from(&block.low);
            self.stamp = block.stamp;
        }
        let Totals { entries, raw_bytes, .. } = block.totals;
        put_named(&mut self.table, place, [entries, raw_bytes, block.stamp.0], 1, &block.low);
        self.fences.extend_from_slice(&block.low);
        self.count = self.count.saturating_add(1);
        self.entries = self.entries.saturating_add(block.totals.entries);
        self.raw_bytes = self.raw_bytes.saturating_add(block.totals.raw_bytes);
        self.stamp = self.stamp.max(block.stamp);
        self.totals.add(&block.totals);
        let len = self.table.len().saturating_add(self.fences.len());
        (len >= INDEX_TARGET_LEN && self.count >= INDEX_MIN_ENTRIES).then(|| self.take_body())
    }

    /// The last index block, unless the one before it was just full.
    pub(crate) fn finish(&mut self) -> Option<IndexBody> {
        (self.count > 0).then(|| self.take_body())
    }

    /// Tells the root where an index block was put.
    pub(crate) fn placed(&mut self, body: &IndexBody, place: Place) {
        let sums = [body.entries, body.raw_bytes, body.stamp.0];
        put_named(&mut self.root_table, place, sums, body.items, &body.low);
        self.root_fences.extend_from_slice(&body.low);
        self.root_count = self.root_count.saturating_add(1);
    }

    /// The body of the root and the number of its entries, once all index blocks are placed.
    pub(crate) fn root(&mut self, lineage: &[Span]) -> (Vec<u8>, u32) {
        let mut raw = Vec::new();
        raw.extend_from_slice(&self.root_count.to_le_bytes());
        raw.extend_from_slice(&saturate(lineage.len()).to_le_bytes());
        raw.append(&mut self.root_table);
        lineage.iter().for_each(|span| span.put(&mut raw));
        raw.append(&mut self.root_fences);
        (raw, std::mem::take(&mut self.root_count))
    }

    /// Sums over all blocks pushed.
    pub(crate) fn totals(&self) -> &Totals {
        &self.totals
    }

    fn take_body(&mut self) -> IndexBody {
        let mut raw = Vec::new();
        raw.extend_from_slice(&self.count.to_le_bytes());
        raw.extend_from_slice(&[0; 4]);
        raw.append(&mut self.table);
        raw.append(&mut self.fences);
        IndexBody {
            raw,
            items: std::mem::take(&mut self.count),
            low: std::mem::take(&mut self.low),
            entries: std::mem::take(&mut self.entries),
            raw_bytes: std::mem::take(&mut self.raw_bytes),
            stamp: self.stamp,
        }
    }
}

fn put_named(out: &mut Vec<u8>, place: Place, sums: [u64; 3], blocks: u32, low: &[u8]) {
    let [entries, raw_bytes, stamp] = sums;
    for field in [place.offset, place.ordinal, entries, raw_bytes, stamp] {
        out.extend_from_slice(&field.to_le_bytes());
    }
    for field in [place.len, place.crc, blocks, saturate(low.len())] {
        out.extend_from_slice(&field.to_le_bytes());
    }
}

/// Counts that do not fit are larger than any block may hold; packing refuses the body.
fn saturate(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        reason = "a test that overflows fails"
    )]
    use super::*;
    use crate::position::{HistoryId, Position};

    fn summary(i: u64) -> Summary {
        let low = if i == 0 { Vec::new() } else { format!("fence {i:06}").into_bytes() };
        let totals =
            Totals { entries: i + 1, raw_bytes: 100, fingerprint: 1, leaves: 3, leaf_blocks: 1 };
        Summary { low, stamp: Seq(10_000 - i), totals }
    }

    fn place(i: u64) -> Place {
        Place { offset: 96 + i * 500, ordinal: i * 2, len: 400, crc: 7 }
    }

    /// The index blocks, the root and the footer of a file with `count` leaf blocks.
    fn sample(count: u64, lineage: &[Span]) -> (Vec<IndexBody>, Vec<u8>, u32, Footer) {
        let mut builder = IndexBuilder::default();
        let mut bodies: Vec<_> =
            (0..count).filter_map(|i| builder.push(&summary(i), place(i))).collect();
        bodies.extend(builder.finish());
        let (mut offset, mut ordinal) = (96 + count * 500, count * 2);
        for body in &bodies {
            let len = 32 + body.raw.len() as u32;
            builder.placed(body, Place { offset, ordinal, len, crc: 8 });
            offset += u64::from(len);
            ordinal += 1;
        }
        let (raw, items) = builder.root(lineage);
        let root_len = 32 + raw.len() as u32;
        let footer = Footer {
            file_id: [0; 16],
            position: Position { history: HistoryId([5; 16]), seq: Seq(12) },
            time_ms: 0,
            totals: *builder.totals(),
            blocks: ordinal + 1,
            root_offset: offset,
            file_len: offset + u64::from(root_len) + 160,
            root_len,
            root_crc: 0,
            header_crc: 0,
        };
        (bodies, raw, items, footer)
    }

    fn spans() -> Vec<Span> {
        let span = |history, start, end| Span {
            history: HistoryId([history; 16]),
            start: Seq(start),
            end: Seq(end),
            ..Span::default()
        };
        vec![span(4, 1, 7), span(5, 8, 12)]
    }

    #[test]
    fn two_levels_lead_to_every_block() {
        for count in [1, 15, 300, 2_000] {
            let (bodies, raw, items, footer) = sample(count, &spans());
            let root = Root::decode(raw, items, footer.blocks - 1, &footer).unwrap();
            assert_eq!(root.lineage, spans());
            assert_eq!(root.index.len(), bodies.len());
            let mut seen = 0;
            for (i, body) in bodies.into_iter().enumerate() {
                let stated = root.index.get(i).unwrap();
                let (low, high) = (root.index.low(i).unwrap(), root.index.low(i + 1));
                let limit = root.leaf_blocks_end();
                let index = Index::decode(body.raw, body.items).unwrap();
                index.check(stated, low, high, limit).unwrap();
                assert!(index.check(stated, b"!", high, limit).is_err());
                assert!(index.check(stated, low, Some(low), limit).is_err());
                let end = index.get(index.len() - 1).unwrap().place.end();
                assert!(index.check(stated, low, high, end - 1).is_err());
                for j in 0..index.len() {
                    let named = index.get(j).unwrap();
                    assert_eq!(named.place, place(seen));
                    let expected = summary(seen);
                    assert_eq!(index.low(j), Some(&expected.low[..]));
                    assert_eq!(named.stamp, expected.stamp);
                    let key = [&expected.low[..], b"!"].concat();
                    assert_eq!((root.index.find(&key), index.find(&key)), (i, j));
                    seen += 1;
                }
            }
            assert_eq!(seen, count);
        }
    }

    #[test]
    fn fences_as_long_as_keys_leave_the_index_within_its_limit() {
        let mut builder = IndexBuilder::default();
        for i in 0..40_u64 {
            let mut block = summary(i);
            block.low.resize(MAX_INTERNAL_KEY_LEN, b'x');
            if let Some(body) = builder.push(&block, place(i)) {
                assert!(body.raw.len() <= MAX_INDEX_LEN);
                assert_eq!(body.items, INDEX_MIN_ENTRIES);
            }
        }
    }

    #[test]
    fn no_changed_byte_and_no_truncation_panics() {
        let (bodies, raw, items, footer) = sample(20, &spans());
        let ordinal = footer.blocks - 1;
        let root = Root::decode(raw.clone(), items, ordinal, &footer).unwrap();
        for i in 0..raw.len() {
            assert!(Root::decode(raw[..i].to_vec(), items, ordinal, &footer).is_err());
            for byte in [0, 1, 0x7F, 0x80, 0xFF, raw[i].wrapping_add(1)] {
                let mut raw = raw.clone();
                raw[i] = byte;
                let _ = Root::decode(raw, items, ordinal, &footer);
            }
        }
        let (stated, low) = (root.index.get(0).unwrap(), root.index.low(0).unwrap());
        let decode = |raw| Index::decode(raw, 20)?.check(stated, low, None, root.leaf_blocks_end());
        let raw = &bodies[0].raw;
        decode(raw.clone()).unwrap();
        for i in 0..raw.len() {
            assert!(decode(raw[..i].to_vec()).is_err());
            for byte in [0, 1, 0x7F, 0x80, 0xFF, raw[i].wrapping_add(1)] {
                let mut raw = raw.clone();
                raw[i] = byte;
                let _ = decode(raw);
            }
        }
    }

    #[test]
    fn places_sums_and_lineages_that_do_not_fit_are_refused() {
        let check = |at: usize, change: u8| {
            let (_, mut raw, items, footer) = sample(300, &spans());
            raw[at] ^= change;
            Root::decode(raw, items, footer.blocks - 1, &footer).map(|_| ())
        };
        assert_eq!(check(0, 0), Ok(()));
        let second = HEAD_LEN + ENTRY_LEN;
        for at in [second, second + 8, second + 16, second + 24, second + 40, second + 48] {
            assert!(check(at, 1).is_err(), "entry field at {at}");
        }
        let (bodies, _, _, footer) = sample(300, &[]);
        let lineage = HEAD_LEN + bodies.len() * ENTRY_LEN;
        // Spans that overlap; another history, another end than the cut's.
        let fields = [(lineage + 48, 8), (lineage + 56, 3), (lineage + 96, 8), (lineage + 104, 3)];
        for (at, change) in fields {
            assert!(check(at, change).is_err(), "lineage field at {at}");
        }
        // Histories between them may have been left out.
        assert_eq!(check(lineage + 48, 3), Ok(()));
        let (_, raw, items, _) = sample(300, &[]);
        assert!(Root::decode(raw, items, footer.blocks, &footer).is_err());
    }
}
