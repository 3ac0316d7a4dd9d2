//! Building a tree from sorted entries: leaves are filled on any thread, then joined.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::commit::{Commit, Totals};
use crate::fingerprint;
use crate::planted::{Bug, planted};
use crate::position::{Position, Seq};
use crate::slice::{Account, LargeBytes};
use crate::tree::arena::Arena;
use crate::tree::directory::Directory;
use crate::tree::due::Due;
use crate::tree::leaf::Leaf;
use crate::tree::page::{self, Entry, INLINE_VALUE_MAX, Large, Page, Value, common_prefix};
use crate::tree::reclaim::Reclaim;
use crate::tree::slab::Slab;
use crate::tree::{Config, Tree};

/// Where leaves are built before there is a tree.
pub(crate) struct Bulk {
    pub(super) arena: Arc<Arena>,
    pub(super) account: Arc<Account>,
    pub(super) config: Config,
}

/// A leaf filled, to be joined with its neighbours.
pub(crate) struct BuiltLeaf {
    pub(super) page: Page,
    pub(super) stamp: Seq,
    /// Bytes of its keys and values.
    raw_bytes: usize,
}

/// Fills the leaves of one range.
pub(crate) struct LeafBuilder<'a> {
    bulk: &'a Bulk,
    low: Vec<u8>,
    high: Option<Vec<u8>>,
    stamp: Seq,
    /// Grows as entries come; copied to its exact size at the end.
    page: Page,
    raw_bytes: usize,
    last_key: Vec<u8>,
    built: Vec<BuiltLeaf>,
}

impl BuiltLeaf {
    /// Where its range starts.
    pub(crate) fn low(&self) -> &[u8] {
        self.page.low()
    }

    /// Shows what its entries add up to, as [`Page::sum_up`].
    pub(crate) fn sum_up(&self, prefix_len: usize, show: &mut dyn FnMut(&[u8], &Totals)) {
        let page = &self.page;
        if page.len() == 0 || page.prefix_len() < prefix_len {
            return page.sum_up(0..page.len(), prefix_len, show);
        }
        let (records, fingerprint) = (page.len() as u64, page.fingerprint());
        let bytes = (self.raw_bytes - prefix_len * page.len()) as u64;
        show(&page.prefix()[..prefix_len], &Totals { records, bytes, fingerprint });
    }

    /// Where it ends; `None` at the end of the key space.
    pub(crate) fn high(&self) -> Option<&[u8]> {
        self.page.high()
    }

    /// Shows its entries.
    pub(crate) fn each(&self, mut visit: impl FnMut(&[u8], Entry<'_>)) {
        let mut key = self.page.prefix().to_vec();
        for at in 0..self.page.len() {
            let entry = self.page.show(at, &mut key);
            visit(&key, entry);
        }
    }

    /// Divides leaves that tile a range at `key`: what lies below it is taken away. A leaf that reaches beyond is divided.
    pub(crate) fn take_below(leaves: &mut VecDeque<BuiltLeaf>, key: &[u8]) -> Vec<BuiltLeaf> {
        let mut below = Vec::new();
        while let Some(leaf) = leaves.pop_front() {
            if leaf.low() >= key {
                leaves.push_front(leaf);
                break;
            }
            if leaf.high().is_some_and(|high| high <= key) {
                below.push(leaf);
                continue;
            }
            let BuiltLeaf { page, stamp, .. } = leaf;
            let at = page.seek(key);
            let left = page.copied(0..at, page.low(), Some(key), 0);
            below.push(BuiltLeaf { raw_bytes: left.raw_bytes(), page: left, stamp });
            let right = page.copied(at..page.len(), key, page.high(), 0);
            leaves.push_front(BuiltLeaf { raw_bytes: right.raw_bytes(), page: right, stamp });
            break;
        }
        below
    }
}

impl Bulk {
    pub(crate) fn new(config: Config) -> Self {
        let account = Arc::new(Account::default());
        let arena = Arc::new(Arena::new(Arc::clone(&account), page::release));
        Self { arena, account, config }
    }

    /// Begins the leaf of `[low, high)`.
    pub(crate) fn begin(&self, low: &[u8], high: Option<&[u8]>, stamp: Seq) -> LeafBuilder<'_> {
        LeafBuilder {
            bulk: self,
            low: low.to_vec(),
            high: high.map(<[u8]>::to_vec),
            stamp,
            page: Page::new(&self.arena, low, high, self.config.leaf_bytes),
            raw_bytes: 0,
            last_key: Vec::new(),
            built: Vec::new(),
        }
    }

    /// Joins leaves that tile the keyspace in order; `totals` are those of each keyspace, the catalogue first.
    pub(crate) fn finish(
        self,
        leaves: Vec<BuiltLeaf>,
        position: Position,
        time_ms: u64,
        totals: Vec<Totals>,
    ) -> Tree {
        assert!(leaves.first().is_some_and(|first| first.page.low().is_empty()), "no first leaf");
        assert!(leaves.windows(2).all(|w| w[0].page.high() == Some(w[1].page.low())), "a gap");
        assert!(leaves.last().is_some_and(|last| last.page.high().is_none()), "no last leaf");
        let slab = Arc::new(Slab::new());
        let due = Due::default();
        let ids: Vec<_> = leaves.iter().map(|_| slab.alloc()).collect();
        let mut entries = Vec::with_capacity(ids.len());
        for (at, BuiltLeaf { page, stamp, .. }) in leaves.into_iter().enumerate() {
            entries.push((page.low().to_vec(), ids[at]));
            let next = ids.get(at + 1).copied();
            let first_expiry = page.first_expiry();
            let mut leaf = Leaf { page: Some(page), stamp, next, ..Leaf::default() };
            if !planted(Bug::DueLostAtLoad) {
                due.note(&mut leaf, first_expiry);
            }
            *slab.get(ids[at]).0.write() = leaf;
        }
        let directory = Directory::new(entries, Arc::clone(&self.account));
        let commit = Commit::new(position, time_ms, totals);
        let Self { arena, account, config } = self;
        let reclaim = Reclaim::default();
        Tree { slab, directory, arena, account, commit, config, reclaim, due }
    }
}

impl LeafBuilder<'_> {
    /// Adds an entry; keys ascend and lie within the fences.
    pub(crate) fn push(&mut self, key: &[u8], value: &[u8], expire_at: u64) {
        let hash = fingerprint::value_hash(value);
        if value.len() > INLINE_VALUE_MAX {
            return self.push_large(
                key,
                LargeBytes::new(value.into(), hash, &self.bulk.account),
                expire_at,
            );
        }
        self.push_entry(key, &Entry { value: Value::Bytes(value), expire_at, died: 0 }, hash);
    }

    /// Adds an entry whose value is large already.
    pub(crate) fn push_owned(&mut self, key: &[u8], value: Box<[u8]>, hash: u64, expire_at: u64) {
        if value.len() <= INLINE_VALUE_MAX {
            return self.push(key, &value, expire_at);
        }
        self.push_large(key, LargeBytes::new(value, hash, &self.bulk.account), expire_at);
    }

    fn push_large(&mut self, key: &[u8], large: Arc<LargeBytes>, expire_at: u64) {
        let hash = large.hash();
        let value = Value::Large(Large::of(&large));
        self.push_entry(key, &Entry { value, expire_at, died: 0 }, hash);
    }

    fn push_entry(&mut self, key: &[u8], entry: &Entry<'_>, hash: u64) {
        let cost = self.page.cost(key, entry);
        let is_full = self.page.used() + cost > self.bulk.config.leaf_bytes
            || self.page.len() >= self.bulk.config.leaf_entries;
        if is_full && self.page.len() > 1 {
            let middle = key[..common_prefix(&self.last_key, key) + 1].to_vec();
            self.close(Some(&middle));
        }
        let cost = self.page.cost(key, entry);
        if cost > self.page.free() {
            let room = self.page.used() + cost;
            let empty = Page::new(&self.page.arena(), &self.low, self.high.as_deref(), 0);
            self.page = std::mem::replace(&mut self.page, empty).resized(room);
        }
        self.page.insert(self.page.len(), key, entry);
        self.page.add_fingerprint(fingerprint::entry(key, hash, entry.expire_at));
        self.raw_bytes += key.len() + entry.value.len();
        self.last_key.clear();
        self.last_key.extend_from_slice(key);
    }

    /// Ends the current leaf at `middle` and begins the next there; without, ends the range.
    fn close(&mut self, middle: Option<&[u8]>) {
        let page = match middle {
            // The fence moved left: the prefix may be longer now.
            Some(middle) => self.page.copied(0..self.page.len(), &self.low, Some(middle), 0),
            None => {
                let empty = Page::new(&self.page.arena(), &[], None, 0);
                std::mem::replace(&mut self.page, empty).shrunk()
            }
        };
        let raw_bytes = std::mem::take(&mut self.raw_bytes);
        self.built.push(BuiltLeaf { page, stamp: self.stamp, raw_bytes });
        if let Some(middle) = middle {
            self.low = middle.to_vec();
            let room = self.bulk.config.leaf_bytes;
            self.page = Page::new(&self.bulk.arena, middle, self.high.as_deref(), room);
        }
    }

    /// The leaf, or several that tile its range.
    pub(crate) fn finish(mut self) -> Vec<BuiltLeaf> {
        self.close(None);
        self.built
    }
}
