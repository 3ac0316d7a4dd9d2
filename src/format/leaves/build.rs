//! Builds the bodies of leaf blocks, from entries pushed in order.

use super::super::KEYSPACE_ID_LEN;
use super::super::codec::put_varint;
use super::super::snapshot::Totals;
use super::{FLAG_BITS, HAS_EXPIRY, HEAD_LEN, IS_LARGE, LARGE_LEN, Stored};
use crate::fingerprint;

use crate::position::Seq;

/// Builds the body of a leaf block; its buffers are used again for the next.
#[derive(Debug, Default)]
pub(crate) struct LeavesBuilder {
    table: Vec<u8>,
    fences: Vec<u8>,
    expiries: Vec<u8>,
    larges: Vec<u8>,
    key_lens: Vec<u8>,
    value_lens: Vec<u8>,
    keys: Vec<u8>,
    values: Vec<u8>,
    low: Vec<u8>,
    stamp: Seq,
    totals: Totals,
    open: OpenLeaf,
}

/// The leaf that entries are being pushed to; its keys are whole until its prefix is known.
#[derive(Debug, Default)]
struct OpenLeaf {
    low: Vec<u8>,
    stamp: Seq,
    fingerprint: u64,
    keys: Vec<u8>,
    /// End of each key, and its flags.
    ends: Vec<(usize, u32)>,
}

/// What an index must know of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) low: Vec<u8>,
    /// The newest of its leaves.
    pub(crate) stamp: Seq,
    pub(crate) totals: Totals,
}

impl LeavesBuilder {
    /// Starts a leaf; entries follow in ascending order, all at or above `low`.
    pub(crate) fn begin_leaf(&mut self, low: &[u8], stamp: Seq) {
        self.open.low.clear();
        self.open.low.extend_from_slice(low);
        self.open.stamp = stamp;
        self.open.fingerprint = 0;
    }

    /// Adds an entry to the open leaf.
    #[inline]
    pub(crate) fn push(&mut self, key: &[u8], value: Stored<'_>, expire_at: u64) {
        let mut flags = 0;
        if expire_at != 0 {
            flags |= HAS_EXPIRY;
            self.expiries.extend_from_slice(&expire_at.to_le_bytes());
        }
        let len = value.len();
        let hash = match value {
            Stored::Inline(bytes) => {
                self.values.extend_from_slice(bytes);
                fingerprint::value_hash(bytes)
            }
            Stored::Large(large) => {
                flags |= IS_LARGE;
                self.larges.extend_from_slice(&large.hash.to_le_bytes());
                self.larges.extend_from_slice(&large.chunk_bytes.to_le_bytes());
                large.hash
            }
        };
        put_varint(&mut self.value_lens, saturate(len));
        self.open.keys.extend_from_slice(key);
        self.open.ends.push((self.open.keys.len(), flags));
        let fingerprint = fingerprint::entry(key, hash, expire_at);
        self.open.fingerprint = self.open.fingerprint.wrapping_add(fingerprint);
        let raw = key.len().saturating_sub(KEYSPACE_ID_LEN).saturating_add(len) as u64;
        self.totals.raw_bytes = self.totals.raw_bytes.saturating_add(raw);
    }

    /// Ends the open leaf.
    pub(crate) fn end_leaf(&mut self) {
        let open = &mut self.open;
        // Sorted keys: what the first and the last share, all share.
        let first = open.ends.first().and_then(|(end, _)| open.keys.get(..*end)).unwrap_or(&[]);
        let last_start = open.ends.iter().rev().nth(1).map_or(0, |(end, _)| *end);
        let last = open.keys.get(last_start..).unwrap_or(&[]);
        let prefix_len = first.iter().zip(last).take_while(|(a, b)| a == b).count();

        self.fences.extend_from_slice(&open.low);
        self.fences.extend_from_slice(first.get(..prefix_len).unwrap_or(&[]));
        let mut start = 0_usize;
        for (end, flags) in &open.ends {
            let rest = open.keys.get(start.saturating_add(prefix_len)..*end).unwrap_or(&[]);
            put_varint(&mut self.key_lens, saturate(rest.len()) << FLAG_BITS | flags);
            self.keys.extend_from_slice(rest);
            start = *end;
        }
        for field in [open.stamp.0, open.fingerprint] {
            self.table.extend_from_slice(&field.to_le_bytes());
        }
        for field in [open.ends.len(), open.low.len(), prefix_len, 0] {
            self.table.extend_from_slice(&saturate(field).to_le_bytes());
        }
        if self.totals.leaves == 0 {
            self.low.clone_from(&open.low);
            self.stamp = open.stamp;
        }
        self.stamp = self.stamp.max(open.stamp);
        self.totals.leaves = self.totals.leaves.saturating_add(1);
        self.totals.entries = self.totals.entries.saturating_add(open.ends.len() as u64);
        self.totals.fingerprint = self.totals.fingerprint.wrapping_add(open.fingerprint);
        open.keys.clear();
        open.ends.clear();
    }

    /// Whether it holds no leaf, ended or open.
    pub(crate) fn is_empty(&self) -> bool {
        self.totals.leaves == 0 && self.open.ends.is_empty()
    }

    /// Entries of the open leaf.
    pub(crate) fn open_entries(&self) -> usize {
        self.open.ends.len()
    }

    /// The last key pushed to the open leaf.
    pub(crate) fn last_key(&self) -> &[u8] {
        let start = self.open.ends.iter().rev().nth(1).map_or(0, |(end, _)| *end);
        self.open.keys.get(start..).unwrap_or_default()
    }

    /// Bytes of the body so far, its keys taken whole.
    #[inline]
    pub(crate) fn raw_len(&self) -> usize {
        [
            self.table.len(),
            self.fences.len(),
            self.expiries.len(),
            self.larges.len(),
            self.key_lens.len(),
            self.value_lens.len(),
            self.keys.len(),
            self.values.len(),
            self.open.keys.len(),
            self.open.low.len(),
        ]
        .into_iter()
        // Lengths of what lies in memory together: their sum fits.
        .fold(HEAD_LEN, usize::wrapping_add)
    }

    /// Puts the body into `raw`, whatever that held, and starts anew. Every leaf must have been ended.
    pub(crate) fn finish(&mut self, high: Option<&[u8]>, raw: &mut Vec<u8>) -> Summary {
        let high = high.unwrap_or(&[]);
        raw.clear();
        #[expect(clippy::cast_possible_truncation, reason = "counts of what lies in memory here")]
        for field in [
            self.totals.leaves as usize,
            self.totals.entries as usize,
            self.keys.len(),
            self.values.len(),
            self.expiries.len() / 8,
            self.larges.len() / LARGE_LEN,
            high.len(),
            0,
        ] {
            raw.extend_from_slice(&saturate(field).to_le_bytes());
        }
        raw.append(&mut self.table);
        raw.append(&mut self.fences);
        raw.extend_from_slice(high);
        raw.append(&mut self.expiries);
        raw.append(&mut self.larges);
        raw.append(&mut self.key_lens);
        raw.append(&mut self.value_lens);
        raw.append(&mut self.keys);
        raw.append(&mut self.values);
        let mut totals = std::mem::take(&mut self.totals);
        totals.leaf_blocks = 1;
        Summary { low: std::mem::take(&mut self.low), stamp: self.stamp, totals }
    }
}

/// Lengths that do not fit are longer than any body may be; packing refuses them.
fn saturate(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}
