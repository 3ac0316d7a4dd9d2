//! Typed ranges: those of bytes, decoded as they are read.

use std::fmt;
use std::marker::PhantomData;

use super::{TypedKey, TypedValue, decode_entry};
use crate::Result;
use crate::range::Range;
use crate::slice::Slice;

/// Entries of a range in order, decoded, of one moment, from both ends.
///
/// An entry that doesn't decode is an [`Error::Undecodable`](crate::Error::Undecodable) in its place, and what comes then is still read; after
/// any other error it ends. `R` is what it reads: a [`Range`], or within a transaction a [`TransactionRange`](crate::TransactionRange).
///
/// ```
/// # let db = stillframe::Database::in_memory();
/// let squares = db.keyspace("squares")?.typed::<i32, i64>();
/// for n in [-20_i32, 3, 100] {
///     squares.insert(&n, &i64::from(n).pow(2))?;
/// }
/// let mut all = squares.range(-100..100);
/// assert_eq!(all.next().unwrap()?, (-20, 400));
/// assert_eq!(all.next_back().unwrap()?, (3, 9));
/// assert!(all.next().is_none());
/// # Ok::<(), stillframe::Error>(())
/// ```
pub struct TypedRange<K, V, R = Range> {
    entries: R,
    types: PhantomData<fn() -> (K, V)>,
}

impl<K, V, R> TypedRange<K, V, R> {
    pub(super) fn new(entries: R) -> Self {
        Self { entries, types: PhantomData }
    }
}

impl<K: TypedKey, V: TypedValue, R> Iterator for TypedRange<K, V, R>
where
    R: Iterator<Item = Result<(Slice, Slice)>>,
{
    type Item = Result<(K, V)>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.entries.next()?.and_then(decode_entry))
    }
}

impl<K: TypedKey, V: TypedValue, R> DoubleEndedIterator for TypedRange<K, V, R>
where
    R: DoubleEndedIterator<Item = Result<(Slice, Slice)>>,
{
    fn next_back(&mut self) -> Option<Self::Item> {
        Some(self.entries.next_back()?.and_then(decode_entry))
    }
}

impl<K, V, R> fmt::Debug for TypedRange<K, V, R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (key, value) = (std::any::type_name::<K>(), std::any::type_name::<V>());
        write!(f, "TypedRange<{key}, {value}>")
    }
}
