//! The 64-bit sum that says whether two sets of entries are equal.
//!
//! Each entry has a fingerprint over its key, value and expiry; a set's is their wrapping sum, so it is
//! kept up to date with one addition a change and does not depend on order. XXH3 is frozen since xxHash
//! 0.8; FORMAT.md gives the function exactly. Two sets that differ by accident have equal sums with a
//! probability of about 2^-64; it proves nothing against somebody who wants them equal.

use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

/// XXH3 of a value.
pub(crate) fn value_hash(value: &[u8]) -> u64 {
    xxh3_64(value)
}

/// The fingerprint of the entry of internal key `key` whose value has `value_hash`.
pub(crate) fn entry(key: &[u8], value_hash: u64, expire_at: u64) -> u64 {
    // The seed carries value and expiry, so that nothing has to be put side by side to be hashed.
    xxh3_64_with_seed(key, value_hash ^ expire_at.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}
