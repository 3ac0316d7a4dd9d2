//! The engine and what it is compared with, behind one face.
//!
//! The peers hold 16-byte keys inline and each value in an allocation of its own: the quickest form
//! that their types offer for this data. The engine takes keys and values of any length.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::RwLock;

use crossbeam_skiplist::SkipMap;
use dashmap::DashMap;
use stillframe::{Database, Keyspace};

use super::{Key, Keys, shuffled, value};

/// Point operations. What a read returns is made of the value's bytes, so that no read is left out.
pub(crate) trait Contender: Sync + Sized {
    const NAME: &'static str;

    fn empty() -> Self;
    fn put(&self, key: &Key, value: &[u8]);
    /// The value as an owned copy or reference.
    fn get(&self, key: &Key) -> usize;
    /// The value seen in place.
    fn get_borrowed(&self, key: &Key) -> usize;

    /// As [`get`](Contender::get), for all of `keys`.
    fn get_many(&self, keys: &[Key]) -> usize {
        keys.iter().map(|key| self.get(key)).sum()
    }

    /// All of `keys` in one step that readers see whole, where there is such a thing.
    fn put_batch(&self, keys: &[Key], value: &[u8]) {
        for key in keys {
            self.put(key, value);
        }
    }

    /// Holds all records, put in random order.
    fn loaded(keys: Keys, records: usize) -> Self {
        let contender = Self::empty();
        for number in shuffled(records) {
            contender.put(&keys.key(number), &value(number));
        }
        contender
    }
}

/// Ordered reads: `count` records from `from` upward.
pub(crate) trait Scan: Contender {
    fn scan(&self, from: &Key, count: usize) -> usize;
    fn scan_borrowed(&self, from: &Key, count: usize) -> usize;
}

/// Uses a value: a reader wants its bytes, not its address.
fn used(value: &[u8]) -> usize {
    match value {
        [first, .., last] => value.len() + usize::from(*first) + usize::from(*last),
        _ => value.len(),
    }
}

/// This engine; one keyspace of an in-memory database.
pub(crate) struct Engine {
    pub(crate) database: Database,
    pub(crate) keyspace: Keyspace,
}

const REFUSED: &str = "the engine in memory refuses nothing here";

impl Contender for Engine {
    const NAME: &'static str = "stillframe";

    fn empty() -> Self {
        let database = Database::in_memory();
        let keyspace = database.keyspace("bench").expect(REFUSED);
        Engine { database, keyspace }
    }

    fn put(&self, key: &Key, value: &[u8]) {
        self.keyspace.insert(key, value).expect(REFUSED);
    }

    fn get(&self, key: &Key) -> usize {
        self.keyspace.get(key).expect(REFUSED).map_or(0, |value| used(&value))
    }

    fn get_borrowed(&self, key: &Key) -> usize {
        self.keyspace.get_with(key, used).expect(REFUSED).unwrap_or(0)
    }

    fn get_many(&self, keys: &[Key]) -> usize {
        let values = self.keyspace.get_many(keys).expect(REFUSED);
        values.iter().flatten().map(|value| used(value)).sum()
    }

    fn put_batch(&self, keys: &[Key], value: &[u8]) {
        let mut batch = self.database.batch();
        for key in keys {
            batch.insert(&self.keyspace, key, value);
        }
        batch.commit().expect(REFUSED);
    }
}

impl Scan for Engine {
    fn scan(&self, from: &Key, count: usize) -> usize {
        let range = self.keyspace.range(*from..).take(count);
        range.map(|record| used(&record.expect(REFUSED).1)).sum()
    }

    fn scan_borrowed(&self, from: &Key, count: usize) -> usize {
        let (mut sum, mut left) = (0, count);
        let visit = |_: &[u8], value: &[u8]| {
            sum += used(value);
            left -= 1;
            if left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        self.keyspace.scan_with(*from.., visit).expect(REFUSED);
        sum
    }
}

const POISONED: &str = "no bench thread panicked";

/// The standard library's ordered map under its reader-writer lock.
pub(crate) struct LockedTree(pub(crate) RwLock<BTreeMap<Key, Vec<u8>>>);

impl Contender for LockedTree {
    const NAME: &'static str = "RwLock<BTreeMap>";

    fn empty() -> Self {
        LockedTree(RwLock::default())
    }

    fn put(&self, key: &Key, value: &[u8]) {
        // The new value is made outside of the lock, as a careful user would.
        let value = value.to_vec();
        let old = self.0.write().expect(POISONED).insert(*key, value);
        drop(old);
    }

    fn get(&self, key: &Key) -> usize {
        let value = self.0.read().expect(POISONED).get(key).cloned();
        value.map_or(0, |value| used(&value))
    }

    fn get_borrowed(&self, key: &Key) -> usize {
        self.0.read().expect(POISONED).get(key).map_or(0, |value| used(value))
    }

    fn put_batch(&self, keys: &[Key], value: &[u8]) {
        let mut map = self.0.write().expect(POISONED);
        for key in keys {
            map.insert(*key, value.to_vec());
        }
    }
}

impl Scan for LockedTree {
    fn scan(&self, from: &Key, count: usize) -> usize {
        let map = self.0.read().expect(POISONED);
        let records = map.range(*from..).take(count).map(|(key, value)| (*key, value.clone()));
        records.map(|(_, value)| used(&value)).sum()
    }

    fn scan_borrowed(&self, from: &Key, count: usize) -> usize {
        let map = self.0.read().expect(POISONED);
        map.range(*from..).take(count).map(|(_, value)| used(value)).sum()
    }
}

/// The same map with keys of any length, each in an allocation of its own, as the engine takes them.
pub(crate) struct BoxedTree(RwLock<BTreeMap<Bytes, Bytes>>);

type Bytes = Box<[u8]>;

impl Contender for BoxedTree {
    const NAME: &'static str = "RwLock<BTreeMap>, boxed keys";

    fn empty() -> Self {
        BoxedTree(RwLock::default())
    }

    fn put(&self, key: &Key, value: &[u8]) {
        let value = value.into();
        // A key that is there keeps its allocation.
        let mut map = self.0.write().expect(POISONED);
        match map.get_mut(key.as_slice()) {
            Some(old) => *old = value,
            None => drop(map.insert(key.as_slice().into(), value)),
        }
    }

    fn get(&self, key: &Key) -> usize {
        let value = self.0.read().expect(POISONED).get(key.as_slice()).cloned();
        value.map_or(0, |value| used(&value))
    }

    fn get_borrowed(&self, key: &Key) -> usize {
        self.0.read().expect(POISONED).get(key.as_slice()).map_or(0, |value| used(value))
    }
}

impl Scan for BoxedTree {
    fn scan(&self, from: &Key, count: usize) -> usize {
        let map = self.0.read().expect(POISONED);
        let from: Bytes = from.as_slice().into();
        let records =
            map.range(from..).take(count).map(|(key, value)| (key.clone(), value.clone()));
        records.map(|(_, value)| used(&value)).sum()
    }

    fn scan_borrowed(&self, from: &Key, count: usize) -> usize {
        let map = self.0.read().expect(POISONED);
        let from: Bytes = from.as_slice().into();
        map.range(from..).take(count).map(|(_, value)| used(value)).sum()
    }
}

/// A hash map in shards, each under a lock: no order, no moment common to two keys.
pub(crate) struct Shards(DashMap<Key, Vec<u8>>);

impl Contender for Shards {
    const NAME: &'static str = "dashmap";

    fn empty() -> Self {
        Shards(DashMap::new())
    }

    fn put(&self, key: &Key, value: &[u8]) {
        let old = self.0.insert(*key, value.to_vec());
        drop(old);
    }

    fn get(&self, key: &Key) -> usize {
        let value = self.0.get(key).map(|value| value.clone());
        value.map_or(0, |value| used(&value))
    }

    fn get_borrowed(&self, key: &Key) -> usize {
        self.0.get(key).map_or(0, |value| used(&value))
    }
}

/// A lock-free skip list.
pub(crate) struct SkipList(SkipMap<Key, Vec<u8>>);

impl Contender for SkipList {
    const NAME: &'static str = "crossbeam-skiplist";

    fn empty() -> Self {
        SkipList(SkipMap::new())
    }

    fn put(&self, key: &Key, value: &[u8]) {
        self.0.insert(*key, value.to_vec());
    }

    fn get(&self, key: &Key) -> usize {
        let value = self.0.get(key).map(|entry| entry.value().clone());
        value.map_or(0, |value| used(&value))
    }

    fn get_borrowed(&self, key: &Key) -> usize {
        self.0.get(key).map_or(0, |entry| used(entry.value()))
    }
}

impl Scan for SkipList {
    fn scan(&self, from: &Key, count: usize) -> usize {
        let records = self.0.range(*from..).take(count);
        records.map(|entry| (*entry.key(), entry.value().clone())).map(|(_, v)| used(&v)).sum()
    }

    fn scan_borrowed(&self, from: &Key, count: usize) -> usize {
        self.0.range(*from..).take(count).map(|entry| used(entry.value())).sum()
    }
}
