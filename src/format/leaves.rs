//! The body of a leaf block: whole neighbouring leaves, their entries in columns.
//!
//! Columns, not rows: lengths beside lengths, keys beside keys, values beside values compressed to 1 to
//! 4 % less than delta-encoded rows with restart points, and faster (JSON values, LZ4). Keys drop
//! the prefix that all keys of their leaf share, so every key can be reached without its predecessors
//! and a lookup is a binary search.
//!
//! [`Leaves::decode`] proves all of it before anything can be read: fences tile, keys ascend between
//! them, columns end where they must. What it can't prove is the content of large values (their chunks
//! and hashes do) and the fingerprints ([`Leaves::check_sums`] does, for inline values).

use std::cmp::Ordering;

use super::block::{FRAME_LEN, MAX_RATIO};
use super::codec::{Damage, Decoded, Decoder, check_fingerprint, equal};
use super::snapshot::Totals;
use super::{
    CHUNK_LEN, KEYSPACE_ID_LEN, MAX_INLINE_VALUE_LEN, MAX_INTERNAL_KEY_LEN, MAX_VALUE_LEN,
};
use crate::error::Fault;
use crate::fingerprint;
use crate::planted::{Bug, planted};
use crate::position::Seq;

mod build;

pub(crate) use build::{LeavesBuilder, Summary};

const HEAD_LEN: usize = 32;
const LEAF_LEN: usize = 32;
const LARGE_LEN: usize = 16;
/// A key length and a value length take a byte each at least.
const ENTRY_MIN_LEN: usize = 2;

const HAS_EXPIRY: u32 = 1;
const IS_LARGE: u32 = 2;
const FLAG_BITS: u32 = 2;

/// Where a value is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stored<'a> {
    Inline(&'a [u8]),
    Large(Large),
}

impl Stored<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Stored::Inline(bytes) => bytes.len(),
            Stored::Large(large) => large.len,
        }
    }
}

/// A value in chunk blocks directly before the leaf block that refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Large {
    /// Length of the value.
    pub(crate) len: usize,
    /// XXH3 of the value.
    pub(crate) hash: u64,
    /// Bytes that its chunk blocks take in the file, frames included.
    pub(crate) chunk_bytes: u64,
    /// From the start of its first chunk block to that of the leaf block: bytes and blocks. Not stored.
    pub(crate) back_bytes: u64,
    pub(crate) back_blocks: u64,
}

/// How many chunk blocks a large value takes.
pub(crate) fn chunk_count(value_len: usize) -> usize {
    value_len.div_ceil(CHUNK_LEN)
}

#[derive(Debug, Clone)]
struct LeafAt {
    stamp: Seq,
    fingerprint: u64,
    low: (usize, usize),
    prefix: (usize, usize),
    /// Its entries among those of the block.
    first: usize,
    end: usize,
}

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// Where the key's rest starts in the key column, the value in the value column.
    key_at: u32,
    value_at: u32,
    /// One more than the index in the expiry column, 0 for none; the same for large values.
    expiry: u32,
    large: u32,
}

/// The decoded, proven body of a leaf block.
#[derive(Debug)]
pub(crate) struct Leaves {
    raw: Vec<u8>,
    leaves: Vec<LeafAt>,
    high: Option<(usize, usize)>,
    /// One per entry and one that ends the last.
    slots: Vec<Slot>,
    larges: Vec<Large>,
    expiries_at: usize,
    keys_at: usize,
    values_at: usize,
    raw_bytes: u64,
}

/// One leaf of a block.
#[derive(Debug, Clone)]
pub(crate) struct Leaf<'a> {
    pub(crate) low: &'a [u8],
    /// Where the next leaf starts; `None` at the end of the key space.
    pub(crate) high: Option<&'a [u8]>,
    pub(crate) stamp: Seq,
    /// As stated in the file.
    pub(crate) fingerprint: u64,
    /// Its entries among those of the block.
    pub(crate) entries: std::ops::Range<usize>,
}

/// One entry of a block.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry<'a> {
    /// The key is `prefix` and then `rest`.
    pub(crate) prefix: &'a [u8],
    pub(crate) rest: &'a [u8],
    pub(crate) value: Stored<'a>,
    /// Unix milliseconds, 0 for never.
    pub(crate) expire_at: u64,
}

impl<'a> Entry<'a> {
    /// The value, if it is not a large one.
    pub(crate) fn inline(&self) -> Option<&'a [u8]> {
        match self.value {
            Stored::Inline(bytes) => Some(bytes),
            Stored::Large(_) => None,
        }
    }

    /// Puts the whole key into `key`, whatever that held.
    pub(crate) fn assemble(&self, key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(self.prefix);
        key.extend_from_slice(self.rest);
    }
}

impl Leaves {
    /// Decodes and proves a body of which its frame says that it holds `items` entries.
    pub(crate) fn decode(raw: Vec<u8>, items: u32) -> Decoded<Self> {
        let mut d = Decoder::new(&raw);
        let leaf_count = d.count("leaf count", LEAF_LEN)?;
        if leaf_count == 0 {
            let range = Fault::Range { field: "leaf count", got: 0, min: 1, max: u32::MAX.into() };
            return Err(Damage::new(0, range));
        }
        let entry_count = d.count("entry count", ENTRY_MIN_LEN)?;
        equal(4, "entry count", entry_count as u64, items.into())?;
        let key_bytes = d.count("key bytes", 1)?;
        let value_bytes = d.count("value bytes", 1)?;
        let expiry_count = d.count("expiry count", 8)?;
        let large_count = d.count("large value count", LARGE_LEN)?;
        let high_len = d.u32_in("high fence length", 0, MAX_INTERNAL_KEY_LEN)? as usize;
        d.zeros("reserved bytes of a leaf block", 4)?;

        let (leaves, high) = decode_fences(&mut d, leaf_count, high_len)?;
        let covered = leaves.last().map_or(0, |leaf| leaf.end);
        equal(4, "entry count", entry_count as u64, covered as u64)?;

        let expiries_at = d.at();
        let expiries = d.bytes("expiries", expiry_count.saturating_mul(8))?;
        if let Some(i) = expiries.chunks_exact(8).position(|expiry| expiry == [0; 8]) {
            let range = Fault::Range { field: "expiry", got: 0, min: 1, max: u64::MAX };
            return Err(Damage::new(expiries_at.saturating_add(i.saturating_mul(8)), range));
        }
        let larges_at = d.at();
        let mut larges = Vec::with_capacity(large_count);
        for _ in 0..large_count {
            let hash = d.u64("value hash")?;
            let chunk_bytes = d.u64("chunk bytes")?;
            larges.push(Large { len: 0, hash, chunk_bytes, back_bytes: 0, back_blocks: 0 });
        }

        let mut slots =
            decode_key_lengths(&mut d, entry_count, expiry_count, large_count, key_bytes)?;
        decode_value_lengths(&mut d, &mut slots, &mut larges, value_bytes)?;
        place_larges(&mut larges, larges_at)?;
        let keys_at = d.at();
        d.bytes("keys", key_bytes)?;
        let values_at = d.at();
        d.bytes("values", value_bytes)?;
        d.finish("leaf block")?;

        let mut leaves = Leaves {
            raw_bytes: 0,
            raw,
            leaves,
            high,
            slots,
            larges,
            expiries_at,
            keys_at,
            values_at,
        };
        leaves.raw_bytes = leaves.sum_raw_bytes();
        leaves.check_order()?;
        Ok(leaves)
    }

    /// Where the first leaf starts.
    pub(crate) fn low(&self) -> &[u8] {
        self.leaves.first().map_or(&[], |leaf| self.part(leaf.low))
    }

    /// Where the last leaf ends; `None` at the end of the key space.
    pub(crate) fn high(&self) -> Option<&[u8]> {
        self.high.map(|high| self.part(high))
    }

    /// Entries in all its leaves.
    pub(crate) fn len(&self) -> usize {
        self.slots.len().saturating_sub(1)
    }

    /// Bytes of memory it takes, for whoever keeps it.
    pub(crate) fn memory(&self) -> usize {
        let tables = size_of_val(&*self.slots)
            .saturating_add(size_of_val(&*self.leaves))
            .saturating_add(size_of_val(&*self.larges));
        self.raw.capacity().saturating_add(tables)
    }

    /// Bytes and number of the chunk blocks that lie directly before the block.
    pub(crate) fn chunks(&self) -> (u64, u64) {
        self.larges.first().map_or((0, 0), |first| (first.back_bytes, first.back_blocks))
    }

    /// Its large values, in order.
    pub(crate) fn larges(&self) -> &[Large] {
        &self.larges
    }

    /// What the block adds to the totals of its file, by its own word.
    pub(crate) fn totals(&self) -> Totals {
        Totals {
            entries: self.len() as u64,
            raw_bytes: self.raw_bytes,
            fingerprint: self
                .leaves
                .iter()
                .fold(0, |sum, leaf| u64::wrapping_add(sum, leaf.fingerprint)),
            leaves: self.leaves.len() as u64,
            leaf_blocks: 1,
        }
    }

    /// The newest stamp among the leaves.
    pub(crate) fn stamp(&self) -> Seq {
        self.leaves.iter().map(|leaf| leaf.stamp).max().unwrap_or_default()
    }

    pub(crate) fn leaves(&self) -> impl Iterator<Item = Leaf<'_>> {
        self.leaves.iter().enumerate().map(|(i, leaf)| Leaf {
            low: self.part(leaf.low),
            high: self.leaf_high(i),
            stamp: leaf.stamp,
            fingerprint: leaf.fingerprint,
            entries: leaf.first..leaf.end,
        })
    }

    /// The entries of a leaf, in order.
    pub(crate) fn entries_of(&self, leaf: &Leaf<'_>) -> impl Iterator<Item = Entry<'_>> {
        let prefix = self.leaf_of(leaf.entries.start).map_or(&[][..], |at| self.part(at.prefix));
        leaf.entries.clone().filter_map(move |i| self.entry_in(prefix, i))
    }

    /// The `i`th entry of the block.
    pub(crate) fn entry(&self, i: usize) -> Option<Entry<'_>> {
        self.entry_in(self.part(self.leaf_of(i)?.prefix), i)
    }

    /// The index of the first entry whose key is not below `key`, and whether it is `key`.
    pub(crate) fn seek(&self, key: &[u8]) -> (usize, bool) {
        let next = self.leaves.partition_point(|leaf| self.part(leaf.low) <= key);
        let Some(leaf) = next.checked_sub(1).and_then(|i| self.leaves.get(i)) else {
            return (0, false);
        };
        let prefix = self.part(leaf.prefix);
        match prefix.cmp(key.get(..prefix.len()).unwrap_or(key)) {
            Ordering::Less => return (leaf.end, false),
            Ordering::Greater => return (leaf.first, false),
            Ordering::Equal => {}
        }
        let rest = key.get(prefix.len()..).unwrap_or_default();
        let (mut low, mut high) = (leaf.first, leaf.end);
        while low < high {
            let middle = low.midpoint(high);
            match self.rest(middle).cmp(rest) {
                Ordering::Less => low = middle.saturating_add(1),
                Ordering::Greater => high = middle,
                Ordering::Equal => return (middle, true),
            }
        }
        (low, false)
    }

    /// Refuses leaves whose entries do not sum up to the fingerprints they state; returns the sums of each
    /// keyspace that has entries here, in order.
    ///
    /// Takes the hashes of large values on their word; who reads their chunks proves those.
    pub(crate) fn check_sums(&self) -> Decoded<Vec<KeyspaceSums>> {
        let mut sums: Vec<KeyspaceSums> = Vec::new();
        let mut key = Vec::new();
        for (i, leaf) in self.leaves().enumerate() {
            let mut got = 0_u64;
            for entry in self.entries_of(&leaf) {
                entry.assemble(&mut key);
                let hash = match entry.value {
                    Stored::Inline(bytes) => fingerprint::value_hash(bytes),
                    Stored::Large(large) => large.hash,
                };
                let fingerprint = fingerprint::entry(&key, hash, entry.expire_at);
                got = got.wrapping_add(fingerprint);
                let id = key.first_chunk().map_or(0, |id| u32::from_be_bytes(*id));
                let user_key_len = key.len().saturating_sub(KEYSPACE_ID_LEN);
                let raw_bytes = user_key_len.saturating_add(entry.value.len()) as u64;
                let one = KeyspaceSums { id, entries: 1, raw_bytes, fingerprint };
                match sums.last_mut() {
                    Some(last) if last.id == id => last.add(&one),
                    _ => sums.push(one),
                }
            }
            let at = HEAD_LEN.saturating_add(i.saturating_mul(LEAF_LEN)).saturating_add(8);
            check_fingerprint(at, "fingerprint of a leaf", got, leaf.fingerprint)?;
        }
        Ok(sums)
    }

    fn part(&self, (at, len): (usize, usize)) -> &[u8] {
        self.raw.get(at..at.saturating_add(len)).unwrap_or_default()
    }

    fn leaf_high(&self, i: usize) -> Option<&[u8]> {
        match self.leaves.get(i.saturating_add(1)) {
            Some(next) => Some(self.part(next.low)),
            None => self.high(),
        }
    }

    /// The leaf that holds the `i`th entry.
    fn leaf_of(&self, i: usize) -> Option<&LeafAt> {
        self.leaves.get(self.leaves.partition_point(|leaf| leaf.end <= i))
    }

    fn slot_pair(&self, i: usize) -> Option<(Slot, Slot)> {
        Some((*self.slots.get(i)?, *self.slots.get(i.saturating_add(1))?))
    }

    /// The key of the `i`th entry without the prefix of its leaf.
    fn rest(&self, i: usize) -> &[u8] {
        let Some((slot, next)) = self.slot_pair(i) else { return &[] };
        let at = self.keys_at.saturating_add(slot.key_at as usize);
        self.part((at, next.key_at.saturating_sub(slot.key_at) as usize))
    }

    fn entry_in<'a>(&'a self, prefix: &'a [u8], i: usize) -> Option<Entry<'a>> {
        let (slot, next) = self.slot_pair(i)?;
        let value = match slot.large.checked_sub(1) {
            Some(large) => Stored::Large(*self.larges.get(large as usize)?),
            None => {
                let at = self.values_at.saturating_add(slot.value_at as usize);
                let len = next.value_at.saturating_sub(slot.value_at) as usize;
                Stored::Inline(self.part((at, len)))
            }
        };
        let expire_at = match slot.expiry.checked_sub(1) {
            Some(expiry) => {
                let at = self.expiries_at.saturating_add((expiry as usize).saturating_mul(8));
                u64::from_le_bytes(*self.raw.get(at..)?.first_chunk()?)
            }
            None => 0,
        };
        Some(Entry { prefix, rest: self.rest(i), value, expire_at })
    }

    fn sum_raw_bytes(&self) -> u64 {
        let last = self.slots.last().copied().unwrap_or_default();
        let prefixes = self.leaves.iter().fold(0_u64, |sum, leaf| {
            let entries = leaf.end.saturating_sub(leaf.first) as u64;
            sum.saturating_add(entries.saturating_mul(leaf.prefix.1 as u64))
        });
        let larges =
            self.larges.iter().fold(0_u64, |sum, large| sum.saturating_add(large.len as u64));
        prefixes
            .saturating_add(larges)
            .saturating_add(last.key_at.into())
            .saturating_add(last.value_at.into())
            .saturating_sub((self.len() as u64).saturating_mul(KEYSPACE_ID_LEN as u64))
    }

    /// Proves that keys have a length that keys can have, ascend strictly and lie between their fences.
    fn check_order(&self) -> Decoded<()> {
        for (i, leaf) in self.leaves.iter().enumerate() {
            let prefix = self.part(leaf.prefix);
            let mut before: Option<&[u8]> = None;
            for entry in leaf.first..leaf.end {
                let rest = self.rest(entry);
                let at = || {
                    let slot = self.slots.get(entry).copied().unwrap_or_default();
                    self.keys_at.saturating_add(slot.key_at as usize)
                };
                let len = prefix.len().saturating_add(rest.len());
                if !(KEYSPACE_ID_LEN..=MAX_INTERNAL_KEY_LEN).contains(&len) {
                    let fault = Fault::Range {
                        field: "key length",
                        got: len as u64,
                        min: KEYSPACE_ID_LEN as u64,
                        max: MAX_INTERNAL_KEY_LEN as u64,
                    };
                    return Err(Damage::new(at(), fault));
                }
                let ascends = match before {
                    Some(_) if planted(Bug::KeysUnsorted) => true,
                    Some(before) if planted(Bug::KeysTwice) => before <= rest,
                    Some(before) => before < rest,
                    None => compare(prefix, rest, self.part(leaf.low)).is_ge(),
                };
                if !ascends {
                    return Err(Damage::new(at(), Fault::Order { field: "keys" }));
                }
                before = Some(rest);
            }
            if let (Some(last), Some(high)) = (before, self.leaf_high(i))
                && compare(prefix, last, high).is_ge()
            {
                return Err(Damage::new(self.keys_at, Fault::Order { field: "keys" }));
            }
        }
        Ok(())
    }
}

/// Orders the key made of `prefix` and `rest` against `other`.
fn compare(prefix: &[u8], rest: &[u8], other: &[u8]) -> Ordering {
    match other.split_at_checked(prefix.len()) {
        Some((head, tail)) => prefix.cmp(head).then_with(|| rest.cmp(tail)),
        // `other` is shorter than the prefix, so it can't equal the key.
        None => prefix.cmp(other),
    }
}

type Fences = (Vec<LeafAt>, Option<(usize, usize)>);

/// Decodes the table of leaves, their fences and prefixes, and the high fence of the last.
fn decode_fences(d: &mut Decoder<'_>, leaf_count: usize, high_len: usize) -> Decoded<Fences> {
    let max = MAX_INTERNAL_KEY_LEN;
    let mut leaves = Vec::with_capacity(leaf_count);
    let mut end = 0_usize;
    for _ in 0..leaf_count {
        let stamp = Seq(d.u64("stamp")?);
        let fingerprint = d.u64("fingerprint of a leaf")?;
        let first = end;
        end = end.saturating_add(d.u32("entries of a leaf")? as usize);
        let low = (0, d.u32_in("fence length", 0, max)? as usize);
        let prefix = (0, d.u32_in("prefix length", 0, max)? as usize);
        d.zeros("reserved bytes of a leaf", 4)?;
        leaves.push(LeafAt { stamp, fingerprint, low, prefix, first, end });
    }
    let mut before: Option<&[u8]> = None;
    let mut ascends = |at: usize, fence| match before.replace(fence) {
        Some(before) if before >= fence => {
            Err(Damage::new(at, Fault::Order { field: "fences of leaves" }))
        }
        _ => Ok(()),
    };
    for leaf in &mut leaves {
        leaf.low.0 = d.at();
        ascends(leaf.low.0, d.bytes("fence", leaf.low.1)?)?;
        leaf.prefix.0 = d.at();
        d.bytes("prefix", leaf.prefix.1)?;
    }
    let high_at = d.at();
    let high = d.bytes("high fence", high_len)?;
    if high.is_empty() {
        return Ok((leaves, None));
    }
    ascends(high_at, high)?;
    Ok((leaves, Some((high_at, high_len))))
}

/// Decodes the column of key lengths and flags into slots, one more than there are entries.
fn decode_key_lengths(
    d: &mut Decoder<'_>,
    entry_count: usize,
    expiry_count: usize,
    large_count: usize,
    key_bytes: usize,
) -> Decoded<Vec<Slot>> {
    let start = d.at();
    let max = (MAX_INTERNAL_KEY_LEN << FLAG_BITS) | ((1 << FLAG_BITS) - 1);
    let mut slots = Vec::with_capacity(entry_count.saturating_add(1));
    let (mut key_at, mut expiries, mut larges) = (0_u32, 0_u32, 0_u32);
    for _ in 0..entry_count {
        let field = d.varint("key length", max)?;
        let mut slot = Slot { key_at, ..Slot::default() };
        if field & HAS_EXPIRY != 0 {
            expiries = expiries.saturating_add(1);
            slot.expiry = expiries;
        }
        if field & IS_LARGE != 0 {
            larges = larges.saturating_add(1);
            slot.large = larges;
        }
        key_at = key_at.saturating_add(field >> FLAG_BITS);
        slots.push(slot);
    }
    slots.push(Slot { key_at, ..Slot::default() });
    equal(start, "key bytes", key_at.into(), key_bytes as u64)?;
    equal(start, "expiry count", expiries.into(), expiry_count as u64)?;
    equal(start, "large value count", larges.into(), large_count as u64)?;
    Ok(slots)
}

/// Decodes the column of value lengths into `slots` and `larges`.
fn decode_value_lengths(
    d: &mut Decoder<'_>,
    slots: &mut [Slot],
    larges: &mut [Large],
    value_bytes: usize,
) -> Decoded<()> {
    let start = d.at();
    let Some((last, slots)) = slots.split_last_mut() else { return Ok(()) };
    let mut larges = larges.iter_mut();
    let mut value_at = 0_u32;
    for slot in slots {
        slot.value_at = value_at;
        let at = d.at();
        let len = d.varint("value length", MAX_VALUE_LEN)?;
        let is_long = len as usize > MAX_INLINE_VALUE_LEN;
        if is_long != (slot.large != 0) {
            let inline = MAX_INLINE_VALUE_LEN as u64;
            let (min, max) = if is_long {
                (0, inline)
            } else {
                (inline.saturating_add(1), MAX_VALUE_LEN as u64)
            };
            let range = Fault::Range { field: "value length", got: len.into(), min, max };
            return Err(Damage::new(at, range));
        }
        if !is_long {
            value_at = value_at.saturating_add(len);
        } else if let Some(large) = larges.next() {
            large.len = len as usize;
        }
    }
    last.value_at = value_at;
    equal(start, "value bytes", value_at.into(), value_bytes as u64)
}

/// Works out how far back each large value lies, from the last to the first.
fn place_larges(larges: &mut [Large], larges_at: usize) -> Decoded<()> {
    let (mut back_bytes, mut back_blocks) = (0_u64, 0_u64);
    for (i, large) in larges.iter_mut().enumerate().rev() {
        let chunks = chunk_count(large.len) as u64;
        let frames = chunks.saturating_mul(FRAME_LEN as u64);
        let least = (large.len as u64).div_ceil(MAX_RATIO);
        let (min, max) = (frames.saturating_add(least), frames.saturating_add(large.len as u64));
        if !(min..=max).contains(&large.chunk_bytes) {
            let at = larges_at.saturating_add(i.saturating_mul(LARGE_LEN)).saturating_add(8);
            let got = large.chunk_bytes;
            return Err(Damage::new(at, Fault::Range { field: "chunk bytes", got, min, max }));
        }
        back_bytes = back_bytes.saturating_add(large.chunk_bytes);
        back_blocks = back_blocks.saturating_add(chunks);
        (large.back_bytes, large.back_blocks) = (back_bytes, back_blocks);
    }
    Ok(())
}

/// What a part of a file holds of one keyspace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct KeyspaceSums {
    pub(crate) id: u32,
    pub(crate) entries: u64,
    /// Keys without the id, plus values.
    pub(crate) raw_bytes: u64,
    pub(crate) fingerprint: u64,
}

impl KeyspaceSums {
    /// Adds what another part holds of the same keyspace.
    pub(crate) fn add(&mut self, other: &KeyspaceSums) {
        self.entries = self.entries.saturating_add(other.entries);
        self.raw_bytes = self.raw_bytes.saturating_add(other.raw_bytes);
        self.fingerprint = self.fingerprint.wrapping_add(other.fingerprint);
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::arithmetic_side_effects,
        clippy::cast_possible_truncation,
        reason = "a test that overflows fails"
    )]
    use super::*;

    fn key(text: &str) -> Vec<u8> {
        [&[0, 0, 0, 1], text.as_bytes()].concat()
    }

    const LARGE: Large =
        Large { len: 70_000, hash: 5, chunk_bytes: 400, back_bytes: 400, back_blocks: 2 };

    /// Three leaves: `[, b)` with three entries, `[b, c)` with none, `[c, high)` with two.
    fn sample(high: Option<&[u8]>) -> (Vec<u8>, Summary) {
        let mut builder = LeavesBuilder::default();
        builder.begin_leaf(&[], Seq(3));
        builder.push(&key("a"), Stored::Inline(b"1"), 0);
        builder.push(&key("aab"), Stored::Inline(b""), 99);
        builder.push(&key("aac"), Stored::Large(LARGE), 77);
        builder.end_leaf();
        builder.begin_leaf(&key("b"), Seq(9));
        builder.end_leaf();
        builder.begin_leaf(&key("c"), Seq(4));
        builder.push(&key("c"), Stored::Inline(b"22"), 0);
        builder.push(&key("cz"), Stored::Large(LARGE), 0);
        builder.end_leaf();
        let mut raw = Vec::new();
        let summary = builder.finish(high, &mut raw);
        assert!(builder.is_empty());
        (raw, summary)
    }

    #[test]
    fn leaves_round_trip() {
        for high in [None, Some(&key("d")[..])] {
            let (raw, summary) = sample(high);
            let leaves = Leaves::decode(raw, 5).unwrap();
            assert_eq!(leaves.totals(), summary.totals);
            assert_eq!(summary.totals.raw_bytes, (1 + 3 + 3 + 1 + 2) + (1 + 2) + 140_000);
            assert_eq!((leaves.low(), leaves.high(), leaves.stamp()), (&[][..], high, Seq(9)));
            assert_eq!(leaves.chunks(), (800, 4));
            let sums = leaves.check_sums().unwrap();
            let Totals { entries, raw_bytes, fingerprint, .. } = summary.totals;
            assert_eq!(sums, [KeyspaceSums { id: 1, entries, raw_bytes, fingerprint }]);
            let mut seen = Vec::new();
            for leaf in leaves.leaves() {
                for entry in leaves.entries_of(&leaf) {
                    let mut key = Vec::new();
                    entry.assemble(&mut key);
                    seen.push((key, entry.value, entry.expire_at));
                }
            }
            let first = Large { back_bytes: 800, back_blocks: 4, ..LARGE };
            let expected = vec![
                (key("a"), Stored::Inline(b"1"), 0),
                (key("aab"), Stored::Inline(b""), 99),
                (key("aac"), Stored::Large(first), 77),
                (key("c"), Stored::Inline(b"22"), 0),
                (key("cz"), Stored::Large(LARGE), 0),
            ];
            assert_eq!(seen, expected);
            let ends: Vec<_> = leaves.leaves().map(|leaf| (leaf.stamp, leaf.entries)).collect();
            assert_eq!(ends, [(Seq(3), 0..3), (Seq(9), 3..3), (Seq(4), 3..5)]);
        }
    }

    #[test]
    fn seek_finds_the_first_entry_not_below() {
        let (raw, _) = sample(None);
        let leaves = Leaves::decode(raw, 5).unwrap();
        for (text, expected) in [
            ("", (0, false)),
            ("a", (0, true)),
            ("aa", (1, false)),
            ("aab", (1, true)),
            ("aaba", (2, false)),
            ("aac", (2, true)),
            ("ab", (3, false)),
            ("bb", (3, false)),
            ("c", (3, true)),
            ("ca", (4, false)),
            ("cz", (4, true)),
            ("d", (5, false)),
        ] {
            assert_eq!(leaves.seek(&key(text)), expected, "{text}");
        }
        assert_eq!(leaves.seek(&[]), (0, false));
        assert_eq!(leaves.seek(&[0, 0, 0, 2]), (5, false));
    }

    #[test]
    fn no_changed_byte_and_no_truncation_panics_or_breaks_the_order() {
        let (raw, _) = sample(Some(&key("d")));
        for i in 0..raw.len() {
            assert!(Leaves::decode(raw[..i].to_vec(), 5).is_err(), "cut at {i}");
            for byte in 0..=255 {
                let mut raw = raw.clone();
                raw[i] = byte;
                let Ok(leaves) = Leaves::decode(raw, 5) else { continue };
                // Checksums are not checked here, so other content may pass; a wrong order may not.
                let mut before = None;
                for entry in (0..leaves.len()).map(|i| leaves.entry(i).unwrap()) {
                    let mut key = Vec::new();
                    entry.assemble(&mut key);
                    assert!(before < Some(key.clone()));
                    assert!(leaves.seek(&key).1);
                    before = Some(key);
                }
            }
        }
        assert!(Leaves::decode(raw, 4).is_err());
    }

    #[test]
    fn duplicates_disorder_and_strangers_to_the_fences_are_refused() {
        let build = |low: &str, keys: &[&str], high: &str| {
            let mut builder = LeavesBuilder::default();
            builder.begin_leaf(&key(low), Seq(1));
            keys.iter().for_each(|k| builder.push(&key(k), Stored::Inline(b"v"), 0));
            builder.end_leaf();
            let mut raw = Vec::new();
            builder.finish(Some(&key(high)), &mut raw);
            Leaves::decode(raw, keys.len() as u32).map(|_| ())
        };
        assert_eq!(build("b", &["b", "ba", "c"], "d"), Ok(()));
        for (low, keys, high) in [
            ("b", &["ba", "ba"][..], "d"),
            ("b", &["bb", "ba"], "d"),
            ("b", &["a"], "d"),
            ("b", &["b", "d"], "d"),
            ("b", &["b", "da"], "d"),
            ("b", &["b", "e"], "d"),
            ("b", &[], "b"),
            ("b", &[], "a"),
        ] {
            let damage = build(low, keys, high).unwrap_err();
            assert!(matches!(damage.fault, Fault::Order { .. }), "{keys:?} in [{low}, {high})");
        }
    }

    #[test]
    fn stated_fingerprints_are_checked_against_the_entries() {
        let (mut raw, _) = sample(None);
        raw[HEAD_LEN + 8] ^= 1;
        let damage = Leaves::decode(raw, 5).unwrap().check_sums().unwrap_err();
        assert_eq!(damage.at, HEAD_LEN as u64 + 8);
    }
}
