//! What an entry of a page is, and the shape it takes there: slots, flags, lengths.

use std::sync::Arc;

use super::Large;
use crate::fingerprint;
use crate::slice::{LargeBytes, Slice};

/// Values longer than this lie outside the page: about a quarter of a full leaf.
pub(crate) const INLINE_VALUE_MAX: usize = 2048;
/// Keys longer than this lie outside the page. The whole key decides, not its rest behind the fences' prefix:
/// that grows shorter when a leaf is split, and no entry may take more room for it.
pub(super) const INLINE_KEY_MAX: usize = 1024;

pub(super) const HAS_EXPIRY: u8 = 1;
pub(super) const LARGE_VALUE: u8 = 1 << 1;
pub(super) const LARGE_KEY: u8 = 1 << 2;
pub(super) const HAS_DIED: u8 = 1 << 3;
pub(super) const ABSENT: u8 = 1 << 4;
pub(super) const WIDE_VALUE: u8 = 1 << 5;
/// The length of the key does not fit the slot.
pub(super) const LONG_KEY: u8 = u8::MAX;

/// A value as a page holds it.
#[derive(Clone, Copy)]
pub(crate) enum Value<'a> {
    /// No entry: what a kept entry says of a key that was not there.
    Absent,
    Bytes(&'a [u8]),
    Large(Large<'a>),
}

impl<'a> Value<'a> {
    pub(crate) fn len(self) -> usize {
        self.bytes().len()
    }

    pub(crate) fn bytes(self) -> &'a [u8] {
        match self {
            Value::Absent => &[],
            Value::Bytes(bytes) => bytes,
            Value::Large(large) => large.get().bytes(),
        }
    }

    /// XXH3 of the value; of a large one it is known.
    pub(crate) fn hash(self) -> u64 {
        match self {
            Value::Large(large) => large.get().hash(),
            _ => fingerprint::value_hash(self.bytes()),
        }
    }

    /// Owned: copied when small, shared when large.
    pub(crate) fn to_slice(self) -> Slice {
        match self {
            Value::Large(large) => Slice::large(large.to_arc()),
            _ => Slice::new(self.bytes()),
        }
    }
}

/// An entry without its key.
#[derive(Clone, Copy)]
pub(crate) struct Entry<'a> {
    pub(crate) value: Value<'a>,
    /// Unix milliseconds; 0 = never.
    pub(crate) expire_at: u64,
    /// Kept entries: the tick of the write that replaced them; 0 = alive.
    pub(crate) died: u64,
}

impl Entry<'_> {
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self.value, Value::Absent)
    }
}

/// Where a key's entry is (`Ok`), or would belong if there were one.
pub(crate) type Place = std::result::Result<usize, usize>;

/// What a removed or replaced entry owned: to be dropped once no latch is held.
pub(crate) type Trash = Option<Arc<LargeBytes>>;

/// The parts of an entry's place in a page.
pub(super) struct Parts {
    pub(super) value: usize,
    pub(super) value_len: usize,
    pub(super) expiry: usize,
    pub(super) died: usize,
    /// Of the rest of the key, or of the address of a large key.
    pub(super) rest: usize,
    pub(super) rest_len: usize,
    /// Length of the key behind the prefix.
    pub(super) suffix_len: usize,
    pub(super) end: usize,
}

pub(super) fn head_of(suffix: &[u8]) -> u32 {
    match suffix.first_chunk::<4>() {
        Some(head) => u32::from_be_bytes(*head),
        None => {
            let mut head = [0; 4];
            head[..suffix.len()].copy_from_slice(suffix);
            u32::from_be_bytes(head)
        }
    }
}

pub(super) fn flags_of(slot: u64) -> u8 {
    (slot & 0xff) as u8
}

/// Length of the longest common prefix.
pub(crate) fn common_prefix(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// What an entry of `len` bytes takes up: at most a sixteenth more, so that a value that varies a little in length is
/// mostly replaced in place.
pub(super) fn rounded(len: usize) -> usize {
    len.next_multiple_of(1 << (len.max(16).ilog2() - 4))
}

/// Flags and bytes that an entry of this shape takes, slot not counted.
pub(super) fn shape(key_len: usize, prefix_len: usize, entry: &Entry<'_>) -> (u8, usize) {
    let suffix_len = key_len - prefix_len;
    let mut flags = 0;
    let mut len = 0;
    match entry.value {
        Value::Absent => flags |= ABSENT,
        Value::Large(_) => {
            flags |= LARGE_VALUE;
            len += 8;
        }
        Value::Bytes(bytes) if bytes.len() > 255 => {
            flags |= WIDE_VALUE;
            len += 2 + bytes.len();
        }
        Value::Bytes(bytes) => len += 1 + bytes.len(),
    }
    if entry.expire_at != 0 {
        flags |= HAS_EXPIRY;
        len += 8;
    }
    if entry.died != 0 {
        flags |= HAS_DIED;
        len += 8;
    }
    if key_len > INLINE_KEY_MAX {
        flags |= LARGE_KEY;
        len += 8;
    } else {
        len += suffix_len.saturating_sub(4);
    }
    if suffix_len >= usize::from(LONG_KEY) {
        len += 4;
    }
    (flags, rounded(len))
}
