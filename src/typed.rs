//! The typed layer: keyspaces whose keys and values are Rust types.
//!
//! It encodes, calls the keyspace, and decodes; of the engine it knows what every user knows. `key` and `value` are the encodings:
//! their tables there are a promise, as what is stored by them must stay readable.

use std::fmt;
use std::marker::PhantomData;
use std::ops::{Bound, RangeBounds};

use crate::error::Undecodable;
use crate::keyspace::Keyspace;
use crate::options::WriteOptions;
use crate::slice::Slice;
use crate::{Error, Result};

mod key;
mod range;
mod snapshot;
mod transaction;
mod value;

pub use self::key::{BeginsWith, TypedKey};
pub use self::range::TypedRange;
pub use self::snapshot::TypedSnapshot;
#[cfg(feature = "serde")]
pub use self::value::Serde;
pub use self::value::TypedValue;

/// Why a value can't be encoded, or bytes are the encoding of no value.
///
/// ```
/// use stillframe::{CodecError, TypedKey};
///
/// assert_eq!(u32::decode(&[0, 0, 7]), Err(CodecError::new("the bytes end too early")));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CodecError(&'static str);

impl CodecError {
    const TOO_SHORT: Self = Self("the bytes end too early");
    const TOO_LONG: Self = Self("bytes are left over");
    const TEXT: Self = Self("text is not UTF-8");
    const BOOL: Self = Self("a bool is neither 00 nor 01");

    /// `why`: lower case, no period.
    pub const fn new(why: &'static str) -> Self {
        Self(why)
    }
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl std::error::Error for CodecError {}

/// A [`Keyspace`] with keys of one type and values of another: what [`Keyspace::typed`] returns.
///
/// The types are a way to look at a keyspace, not a part of it: nothing is stored about them, several may be used on the same
/// keyspace, and it is for its users to agree. How keys and values are stored is said at [`TypedKey`] and [`TypedValue`].
///
/// ```
/// # let db = stillframe::Database::in_memory();
/// let visits = db.keyspace("visits")?.typed::<(String, u64), u32>();
/// let key = |page: &str, day| (page.to_owned(), day);
/// visits.insert(&key("home", 9), &70)?;
/// visits.insert(&key("home", 10), &30)?;
/// visits.insert(&key("about", 10), &2)?;
///
/// let home = visits.prefix(&"home".to_owned());
/// let days: Vec<u64> = home.map(|entry| Ok(entry?.0.1)).collect::<stillframe::Result<_>>()?;
/// assert_eq!(days, [9, 10]);
///
/// visits.update(&key("home", 10), |count| Some(count.unwrap_or(0) + 1))?;
/// assert_eq!(visits.range(key("home", 10)..).next().unwrap()?.1, 31);
/// # Ok::<(), stillframe::Error>(())
/// ```
///
/// Cheap to clone, to be used by any thread. Cost: that of the keyspace's method of the same name, an allocation to encode a key,
/// one to encode a value, and what decoding allocates. A large [`Slice`] is copied here, where [`Keyspace::get`] shares it.
///
/// # Errors
/// Every method fails as the keyspace's of the same name, its limits counted in encoded bytes. Whatever decodes also fails with
/// [`Error::Undecodable`], if something is stored that is no `K` or no `V`; whatever encodes a value with [`Error::Unencodable`].
pub struct Typed<K, V> {
    keyspace: Keyspace,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K, V> Clone for Typed<K, V> {
    fn clone(&self) -> Self {
        Self { keyspace: self.keyspace.clone(), types: PhantomData }
    }
}

impl<K, V> fmt::Debug for Typed<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, value) = (std::any::type_name::<K>(), std::any::type_name::<V>());
        write!(f, "Typed<{key}, {value}>({})", self.keyspace.name())
    }
}

impl<K: TypedKey, V: TypedValue> Typed<K, V> {
    pub(crate) fn new(keyspace: Keyspace) -> Self {
        Self { keyspace, types: PhantomData }
    }

    /// The same keyspace in bytes, for all that isn't here.
    pub fn keyspace(&self) -> &Keyspace {
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

    /// Puts `value` under `key`, whatever was there.
    pub fn insert(&self, key: &K, value: &V) -> Result<()> {
        self.keyspace.insert(encode_key(key), encode_value(value)?)
    }

    /// As [`insert`](Typed::insert), with an expiry.
    pub fn insert_with(&self, key: &K, value: &V, options: WriteOptions) -> Result<()> {
        self.keyspace.insert_with(encode_key(key), encode_value(value)?, options)
    }

    /// Puts `value` under `key` if it has none; whether it was put.
    pub fn insert_new(&self, key: &K, value: &V) -> Result<bool> {
        self.keyspace.insert_new(encode_key(key), encode_value(value)?)
    }

    /// As [`insert`](Typed::insert); returns the value that was there.
    ///
    /// If that doesn't decode it is replaced all the same: the error has its bytes.
    pub fn replace(&self, key: &K, value: &V) -> Result<Option<V>> {
        let key = encode_key(key);
        let old = self.keyspace.replace(&key, encode_value(value)?)?;
        old.map(|old| decode_value(&key, &old)).transpose()
    }

    /// Removes `key`; whether it had a value, which is not decoded.
    pub fn remove(&self, key: &K) -> Result<bool> {
        self.keyspace.remove(encode_key(key))
    }

    /// Removes `key` and returns its value.
    ///
    /// If that doesn't decode it is removed all the same: the error has its bytes.
    pub fn take(&self, key: &K) -> Result<Option<V>> {
        let key = encode_key(key);
        self.keyspace.take(&key)?.map(|old| decode_value(&key, &old)).transpose()
    }

    /// Replaces the value of `key` by what `change` makes of it (`None`: no value) and returns the new one.
    ///
    /// `change` is run again whenever another writer came in between. An expiry stays as it was. If the value that is there
    /// doesn't decode, or the new one doesn't encode, the old one stays, though it is written again.
    pub fn update(
        &self,
        key: &K,
        mut change: impl FnMut(Option<V>) -> Option<V>,
    ) -> Result<Option<V>> {
        let key = encode_key(key);
        let mut changed = Ok(None);
        self.keyspace.update(&key, |old| {
            let mut encoded = None;
            changed = old.map(|old| decode_value(&key, old)).transpose().and_then(|old| {
                let new = change(old);
                encoded = new.as_ref().map(encode_value).transpose()?.map(Slice::from);
                Ok(new)
            });
            if changed.is_ok() { encoded } else { old.map(Slice::new) }
        })?;
        changed
    }

    /// Puts `new` under `key` (`None` removes it) if it has the value `expected` (`None`: no value), whatever its expiry. The
    /// new value has none. If it has another, nothing changes, and the inner error is what it has.
    ///
    /// Values are compared as encoded: those of a type that encodes equal values in several ways, such as a `HashMap` within a
    /// `Serde`, may differ though they are equal.
    ///
    /// ```
    /// # let db = stillframe::Database::in_memory();
    /// let doors = db.keyspace("doors")?.typed::<u8, bool>();
    /// assert_eq!(doors.compare_and_swap(&1, None, Some(&true))?, Ok(()));
    /// assert_eq!(doors.compare_and_swap(&1, Some(&false), None)?, Err(Some(true)));
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    pub fn compare_and_swap(
        &self,
        key: &K,
        expected: Option<&V>,
        new: Option<&V>,
    ) -> Result<std::result::Result<(), Option<V>>> {
        let key = encode_key(key);
        let expected = expected.map(encode_value).transpose()?;
        let new = new.map(encode_value).transpose()?;
        match self.keyspace.compare_and_swap(&key, expected.as_deref(), new.as_deref())? {
            Ok(()) => Ok(Ok(())),
            Err(failed) => {
                let current = failed.current.map(|value| decode_value(&key, &value));
                Ok(Err(current.transpose()?))
            }
        }
    }

    /// The entries in `range`, in order, of one moment, from both ends.
    pub fn range(&self, range: impl RangeBounds<K>) -> TypedRange<K, V> {
        TypedRange::new(self.keyspace.range(encode_range(&range)))
    }

    /// The entries whose keys are tuples that begin with `parts`, one part or a tuple of several, in order, of one moment, from both ends.
    ///
    /// ```
    /// # let db = stillframe::Database::in_memory();
    /// let moves = db.keyspace("moves")?.typed::<(u32, u8, char), ()>();
    /// for key in [(7, 1, 'e'), (7, 2, 'd'), (7, 2, 'f'), (8, 2, 'a')] {
    ///     moves.insert(&key, &())?;
    /// }
    /// assert_eq!(moves.prefix(&7).count(), 3);
    /// assert_eq!(moves.prefix(&(7, 2)).next_back().unwrap()?.0, (7, 2, 'f'));
    /// # Ok::<(), stillframe::Error>(())
    /// ```
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

    /// Removes and returns the first entry.
    ///
    /// If it doesn't decode it is removed all the same: the error has its bytes.
    pub fn pop_first(&self) -> Result<Option<(K, V)>> {
        self.keyspace.pop_first()?.map(decode_entry).transpose()
    }

    /// Removes and returns the last entry, as [`pop_first`](Typed::pop_first).
    pub fn pop_last(&self) -> Result<Option<(K, V)>> {
        self.keyspace.pop_last()?.map(decode_entry).transpose()
    }

    /// Removes every key in `range` as one batch; how many entries were stored there.
    pub fn delete_range(&self, range: impl RangeBounds<K>) -> Result<u64> {
        self.keyspace.delete_range(encode_range(&range))
    }

    /// Removes every key of the keyspace, whatever its type, as one batch; how many entries were stored.
    pub fn clear(&self) -> Result<u64> {
        self.keyspace.clear()
    }

    /// Entries stored, of whatever types, past their time or not. O(1).
    pub fn len(&self) -> Result<u64> {
        self.keyspace.len()
    }

    /// Whether no entry is stored.
    pub fn is_empty(&self) -> Result<bool> {
        self.keyspace.is_empty()
    }

    /// The bytes of `key`, for what takes bytes: a [`WriteBatch`](crate::WriteBatch), or [`keyspace`](Typed::keyspace).
    ///
    /// ```
    /// # let db = stillframe::Database::in_memory();
    /// let ages = db.keyspace("ages")?.typed::<String, u16>();
    /// let mut batch = db.batch();
    /// for (name, age) in [("ann", 44), ("ben", 2)] {
    ///     let (key, value) = (ages.encode_key(&name.to_owned()), ages.encode_value(&age)?);
    ///     batch.insert(ages.keyspace(), key, value);
    /// }
    /// batch.commit()?;
    /// assert_eq!(ages.last()?, Some(("ben".to_owned(), 2)));
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    pub fn encode_key(&self, key: &K) -> Vec<u8> {
        encode_key(key)
    }

    /// The bytes of `value`.
    pub fn encode_value(&self, value: &V) -> Result<Vec<u8>> {
        encode_value(value)
    }

    /// The key in bytes that came from elsewhere, such as a [`Subscription`](crate::Subscription).
    pub fn decode_key(&self, key: &[u8]) -> Result<K> {
        decode_key(key, None)
    }

    /// The value in bytes that came from elsewhere; an error names `key`.
    pub fn decode_value(&self, key: &[u8], value: &[u8]) -> Result<V> {
        decode_value(key, value)
    }
}

/// Room that most keys and values fit in, so that they are allocated once.
const USUAL_LEN: usize = 32;

fn encode_key<K: TypedKey>(key: &K) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(USUAL_LEN);
    key.encode(&mut bytes);
    bytes
}

fn encode_prefix<P: TypedKey>(parts: &P) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(USUAL_LEN);
    parts.encode_part(&mut bytes);
    bytes
}

fn encode_value<V: TypedValue>(value: &V) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(USUAL_LEN);
    match value.encode(&mut bytes) {
        Ok(()) => Ok(bytes),
        Err(CodecError(why)) => {
            Err(Error::Unencodable { type_name: std::any::type_name::<V>(), why })
        }
    }
}

fn encode_range<K: TypedKey>(range: &impl RangeBounds<K>) -> (Bound<Vec<u8>>, Bound<Vec<u8>>) {
    (range.start_bound().map(encode_key), range.end_bound().map(encode_key))
}

fn decode_key<K: TypedKey>(key: &[u8], value: Option<&Slice>) -> Result<K> {
    K::decode(key).map_err(|CodecError(why)| {
        let (key, value) = (Slice::new(key), value.cloned());
        let type_name = std::any::type_name::<K>();
        Error::Undecodable(Box::new(Undecodable { what: "key", type_name, why, key, value }))
    })
}

fn decode_value<V: TypedValue>(key: &[u8], value: &[u8]) -> Result<V> {
    V::decode(value).map_err(|CodecError(why)| {
        let (key, value) = (Slice::new(key), Some(Slice::new(value)));
        let type_name = std::any::type_name::<V>();
        Error::Undecodable(Box::new(Undecodable { what: "value", type_name, why, key, value }))
    })
}

fn decode_entry<K: TypedKey, V: TypedValue>((key, value): (Slice, Slice)) -> Result<(K, V)> {
    Ok((decode_key(&key, Some(&value))?, decode_value(&key, &value)?))
}
