//! The fingerprint of a set of entries: one 64-bit hash per entry, summed, so that it can be kept
//! up to date one change at a time and compared between nodes and files.
//!
//! Constants and order are part of the format (FORMAT.md, "Fingerprint") and the same on every node.
//! It finds damage and our own mistakes; it does not resist someone who makes collisions on purpose.

use xxhash_rust::xxh3::{Xxh3Default, xxh3_64, xxh3_64_with_seed};

/// Spreads the expiry over the seed: 2^64 divided by the golden ratio.
const EXPIRY_FACTOR: u64 = 0x9E37_79B9_7F4A_7C15;

/// The hash of a value, kept beside large ones so that they are never hashed twice.
pub(crate) fn value_hash(value: &[u8]) -> u64 {
    xxh3_64(value)
}

/// [`value_hash`] of a value that comes in pieces.
#[derive(Default)]
pub(crate) struct ValueHasher(Xxh3Default);

impl ValueHasher {
    pub(crate) fn update(&mut self, piece: &[u8]) {
        self.0.update(piece);
    }

    pub(crate) fn finish(&self) -> u64 {
        self.0.digest()
    }
}

/// The fingerprint of one entry; `key` is the internal key, `expire_at` 0 for none.
///
/// The fingerprint of a set is the wrapping sum of those of its entries.
pub(crate) fn entry(key: &[u8], value_hash: u64, expire_at: u64) -> u64 {
    xxh3_64_with_seed(key, value_hash ^ expire_at.wrapping_mul(EXPIRY_FACTOR))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_in_pieces_has_the_hash_of_the_whole() {
        let value: Vec<u8> = (0..5_000_u32).flat_map(u32::to_le_bytes).collect();
        for piece_len in [1, 63, 64, 1_024, 19_999, 20_000] {
            let mut hasher = ValueHasher::default();
            value.chunks(piece_len).for_each(|piece| hasher.update(piece));
            assert_eq!(hasher.finish(), value_hash(&value), "pieces of {piece_len}");
        }
    }

    /// Values computed once; a change of any means that old files no longer verify.
    #[test]
    fn known_fingerprints_never_change() {
        assert_eq!(value_hash(b""), 0x2d06_8005_38d3_94c2);
        let key = [0, 0, 0, 1, b'k'];
        let plain = entry(&key, value_hash(b"v"), 0);
        assert_ne!(plain, entry(&key, value_hash(b"v"), 1));
        assert_ne!(plain, entry(&key, value_hash(b"w"), 0));
        assert_ne!(plain, entry(b"\0\0\0\x02k", value_hash(b"v"), 0));
    }
}
