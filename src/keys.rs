//! Internal keys: a keyspace's prefix, then the key as the user gave it.

use std::ops::{Bound, Deref, RangeBounds};

use crate::tree::Bounds;
use crate::{Error, Result};

/// Length of a keyspace's prefix: its id, big-endian. Id 0 is the catalogue's.
pub(crate) const PREFIX_LEN: usize = 4;
/// The catalogue's id: its keys are names of keyspaces, its values their ids.
pub(crate) const CATALOGUE_ID: u32 = 0;

/// An internal key; short ones need no allocation.
pub(crate) struct InternalKey {
    short: [u8; 64],
    len: usize,
    long: Vec<u8>,
}

impl InternalKey {
    /// # Errors
    /// [`Error::KeyTooLarge`].
    #[inline]
    pub(crate) fn new(id: u32, key: &[u8]) -> Result<Self> {
        if key.len() > crate::MAX_KEY_LEN {
            return Err(Error::KeyTooLarge { len: key.len() });
        }
        let len = PREFIX_LEN + key.len();
        let mut short = [0; 64];
        let mut long = Vec::new();
        if len <= short.len() {
            short[..PREFIX_LEN].copy_from_slice(&id.to_be_bytes());
            short[PREFIX_LEN..len].copy_from_slice(key);
        } else {
            long = internal(id, key);
        }
        Ok(Self { short, len, long })
    }
}

impl Deref for InternalKey {
    type Target = [u8];
    #[inline]
    fn deref(&self) -> &[u8] {
        if self.long.is_empty() { &self.short[..self.len] } else { &self.long }
    }
}

/// An internal key, allocated.
pub(crate) fn internal(id: u32, key: &[u8]) -> Vec<u8> {
    let mut internal = Vec::with_capacity(PREFIX_LEN + key.len());
    append_internal(id, key, &mut internal);
    internal
}

/// Appends an internal key to `bytes`.
pub(crate) fn append_internal(id: u32, key: &[u8], bytes: &mut Vec<u8>) {
    bytes.extend_from_slice(&id.to_be_bytes());
    bytes.extend_from_slice(key);
}

/// All keys of a keyspace.
pub(crate) fn all(id: u32) -> Bounds {
    let high = id.checked_add(1).map(|next| internal(next, &[]));
    Bounds { low: internal(id, &[]), high, has_end: false }
}

/// The keys of a keyspace that lie in `range`.
pub(crate) fn within<K: AsRef<[u8]>>(id: u32, range: &impl RangeBounds<K>) -> Bounds {
    let after = |key: &K| {
        let mut key = internal(id, key.as_ref());
        key.push(0);
        key
    };
    let Bounds { low, high, .. } = all(id);
    Bounds {
        has_end: !matches!(range.end_bound(), Bound::Unbounded),
        low: match range.start_bound() {
            Bound::Included(key) => internal(id, key.as_ref()),
            Bound::Excluded(key) => after(key),
            Bound::Unbounded => low,
        },
        high: match range.end_bound() {
            Bound::Included(key) => Some(after(key)),
            Bound::Excluded(key) => Some(internal(id, key.as_ref())),
            Bound::Unbounded => high,
        },
    }
}

/// The keys of a keyspace that begin with `prefix`.
pub(crate) fn prefixed(id: u32, prefix: &[u8]) -> Bounds {
    let low = internal(id, prefix);
    let mut high = low.clone();
    // The least key above all that begin so: the last byte that can grow, grown. The keyspace's own
    // prefix ends it at the latest, unless it is the last one there can be.
    while let Some(last) = high.pop() {
        if last < u8::MAX {
            high.push(last + 1);
            break;
        }
    }
    Bounds { low, high: Some(high).filter(|high| !high.is_empty()), has_end: true }
}

/// The keyspace's id in front of an internal key, which its decoder has seen to.
pub(crate) fn id_of(key: &[u8]) -> u32 {
    key.first_chunk().map_or(CATALOGUE_ID, |id| u32::from_be_bytes(*id))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_at_the_next_key_that_does_not_begin_with_it() {
        let high = |id, prefix: &[u8]| prefixed(id, prefix).high;
        assert_eq!(high(1, b"ab"), Some(internal(1, b"ac")));
        assert_eq!(high(1, b"a\xff\xff"), Some(internal(1, b"b")));
        assert_eq!(high(1, b"\xff"), Some(internal(2, b"")));
        assert_eq!(high(1, b""), Some(internal(2, b"")));
        assert_eq!(high(u32::MAX, b"\xff"), None);
    }

    #[test]
    fn long_keys_and_short_ones_look_alike() {
        for len in [0, 1, 59, 60, 61, 200] {
            let key = vec![7; len];
            assert_eq!(&*InternalKey::new(9, &key).unwrap(), &*internal(9, &key));
        }
        let too_long = vec![0; crate::MAX_KEY_LEN + 1];
        assert!(matches!(InternalKey::new(1, &too_long), Err(Error::KeyTooLarge { .. })));
    }
}
