//! Typed snapshots: the reads of a typed keyspace, of one moment.

use std::fmt;
use std::marker::PhantomData;
use std::ops::RangeBounds;

use super::{
    BeginsWith, TypedKey, TypedRange, TypedValue, decode_entry, decode_value, encode_key,
    encode_prefix, encode_range,
};
use crate::Result;
use crate::snapshot::SnapshotKeyspace;

impl SnapshotKeyspace {
    /// Its entries with keys of type `K` and values of type `V`, as [`Keyspace::typed`](crate::Keyspace::typed).
    pub fn typed<K: TypedKey, V: TypedValue>(&self) -> TypedSnapshot<K, V> {
        TypedSnapshot { keyspace: self.clone(), types: PhantomData }
    }
}

/// A keyspace of a [`Snapshot`](crate::Snapshot) with keys of one type and values of another: the reads of a [`Typed`](crate::Typed), of
/// one moment.
///
/// ```
/// # let db = stillframe::Database::in_memory();
/// let stock = db.keyspace("stock")?.typed::<String, u32>();
/// stock.insert(&"apples".to_owned(), &7)?;
/// let then = db.snapshot()?.keyspace("stock")?.typed::<String, u32>();
/// stock.clear()?;
/// assert_eq!(then.get(&"apples".to_owned())?, Some(7));
/// # Ok::<(), stillframe::Error>(())
/// ```
///
/// # Errors
/// As [`SnapshotKeyspace`]'s; and [`Error::Undecodable`](crate::Error::Undecodable).
pub struct TypedSnapshot<K, V> {
    keyspace: SnapshotKeyspace,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K, V> Clone for TypedSnapshot<K, V> {
    fn clone(&self) -> Self {
        Self { keyspace: self.keyspace.clone(), types: PhantomData }
    }
}

impl<K, V> fmt::Debug for TypedSnapshot<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, value) = (std::any::type_name::<K>(), std::any::type_name::<V>());
        write!(f, "TypedSnapshot<{key}, {value}>")
    }
}

impl<K: TypedKey, V: TypedValue> TypedSnapshot<K, V> {
    /// The same keyspace in bytes.
    pub fn keyspace(&self) -> &SnapshotKeyspace {
        &self.keyspace
    }

    /// The value of `key`.
    pub fn get(&self, key: &K) -> Result<Option<V>> {
        let key = encode_key(key);
        self.keyspace.get_with(&key, |value| decode_value(&key, value))?.transpose()
    }

    /// Whether `key` has a value, which is not decoded.
    pub fn contains_key(&self, key: &K) -> Result<bool> {
        self.keyspace.contains_key(encode_key(key))
    }

    /// The entries in `range`, in order, from both ends.
    pub fn range(&self, range: impl RangeBounds<K>) -> TypedRange<K, V> {
        TypedRange::new(self.keyspace.range(encode_range(&range)))
    }

    /// The entries whose keys are tuples that begin with `parts`, as [`Typed::prefix`](crate::Typed::prefix).
    pub fn prefix<P: TypedKey>(&self, parts: &P) -> TypedRange<K, V>
    where
        K: BeginsWith<P>,
    {
        TypedRange::new(self.keyspace.prefix(encode_prefix(parts)))
    }

    /// The first entry.
    pub fn first(&self) -> Result<Option<(K, V)>> {
        self.keyspace.first()?.map(decode_entry).transpose()
    }

    /// The last entry.
    pub fn last(&self) -> Result<Option<(K, V)>> {
        self.keyspace.last()?.map(decode_entry).transpose()
    }

    /// Entries stored, of whatever types, past their time or not. O(1).
    pub fn len(&self) -> Result<u64> {
        self.keyspace.len()
    }

    /// Whether no entry is stored.
    pub fn is_empty(&self) -> Result<bool> {
        self.keyspace.is_empty()
    }
}
