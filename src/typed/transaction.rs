//! Typed keyspaces within transactions: each method is the transaction's of that name, encoded and decoded.

use std::ops::RangeBounds;

use super::{
    BeginsWith, Typed, TypedKey, TypedRange, TypedValue, decode_entry, decode_value, encode_key,
    encode_prefix, encode_range, encode_value,
};
use crate::Result;
use crate::options::WriteOptions;
use crate::transaction::{Transaction, TransactionRange};

/// Within a transaction, each as the [`Transaction`]'s method of that name.
///
/// ```
/// # let db = stillframe::Database::in_memory();
/// let accounts = db.keyspace("accounts")?.typed::<String, u64>();
/// let (ann, ben) = ("ann".to_owned(), "ben".to_owned());
/// accounts.insert(&ann, &7)?;
/// db.transact(|tx| {
///     let has = accounts.get_in(tx, &ann)?.unwrap_or(0);
///     let moved = has.min(5);
///     accounts.insert_in(tx, &ann, &(has - moved))?;
///     accounts.insert_in(tx, &ben, &moved)
/// })?;
/// assert_eq!((accounts.get(&ann)?, accounts.get(&ben)?), (Some(2), Some(5)));
/// # Ok::<(), stillframe::Error>(())
/// ```
///
/// What fails with [`Error::Undecodable`](crate::Error::Undecodable) has changed nothing, if the closure hands the error on.
impl<K: TypedKey, V: TypedValue> Typed<K, V> {
    /// The value of `key`, for `tx`.
    pub fn get_in(&self, tx: &mut Transaction, key: &K) -> Result<Option<V>> {
        let key = encode_key(key);
        tx.get(self.keyspace(), &key)?.map(|value| decode_value(&key, &value)).transpose()
    }

    /// Whether `key` has a value, for `tx`.
    pub fn contains_key_in(&self, tx: &mut Transaction, key: &K) -> Result<bool> {
        tx.contains_key(self.keyspace(), encode_key(key))
    }

    /// Has `tx` put `value` under `key`, whatever is there: that is not read.
    pub fn insert_in(&self, tx: &mut Transaction, key: &K, value: &V) -> Result<()> {
        tx.insert(self.keyspace(), encode_key(key), encode_value(value)?)
    }

    /// As [`insert_in`](Typed::insert_in), with an expiry.
    pub fn insert_with_in(
        &self,
        tx: &mut Transaction,
        key: &K,
        value: &V,
        options: WriteOptions,
    ) -> Result<()> {
        tx.insert_with(self.keyspace(), encode_key(key), encode_value(value)?, options)
    }

    /// Has `tx` put `value` under `key` if it has none; whether it was put.
    pub fn insert_new_in(&self, tx: &mut Transaction, key: &K, value: &V) -> Result<bool> {
        tx.insert_new(self.keyspace(), encode_key(key), encode_value(value)?)
    }

    /// Has `tx` remove `key`; whether it had a value.
    pub fn remove_in(&self, tx: &mut Transaction, key: &K) -> Result<bool> {
        tx.remove(self.keyspace(), encode_key(key))
    }

    /// Has `tx` remove `key`; the value it had.
    pub fn take_in(&self, tx: &mut Transaction, key: &K) -> Result<Option<V>> {
        let key = encode_key(key);
        tx.take(self.keyspace(), &key)?.map(|value| decode_value(&key, &value)).transpose()
    }

    /// Has `tx` remove every key in `range`, whatever is there: that is not read.
    pub fn delete_range_in(&self, tx: &mut Transaction, range: impl RangeBounds<K>) -> Result<()> {
        tx.delete_range(self.keyspace(), encode_range(&range))
    }

    /// The entries in `range` for `tx`, in order, from both ends.
    pub fn range_in(
        &self,
        tx: &mut Transaction,
        range: impl RangeBounds<K>,
    ) -> TypedRange<K, V, TransactionRange> {
        TypedRange::new(tx.range(self.keyspace(), encode_range(&range)))
    }

    /// The entries whose keys are tuples that begin with `parts`, as [`prefix`](Typed::prefix), for `tx`.
    pub fn prefix_in<P: TypedKey>(
        &self,
        tx: &mut Transaction,
        parts: &P,
    ) -> TypedRange<K, V, TransactionRange>
    where
        K: BeginsWith<P>,
    {
        TypedRange::new(tx.prefix(self.keyspace(), encode_prefix(parts)))
    }

    /// The first entry for `tx`.
    pub fn first_in(&self, tx: &mut Transaction) -> Result<Option<(K, V)>> {
        tx.first(self.keyspace())?.map(decode_entry).transpose()
    }

    /// The last entry for `tx`.
    pub fn last_in(&self, tx: &mut Transaction) -> Result<Option<(K, V)>> {
        tx.last(self.keyspace())?.map(decode_entry).transpose()
    }
}
