//! The keyspace in memory: latched leaves in key order, a directory that is only a hint, and stills.
//!
//! Reads latch one leaf; a write latches what it changes, takes its place in the order under the commit
//! lock, and applies. **All changes of content go through [`Tree::write`] and [`Tree::write_batch`]**, and those of records through what lies below
//! them, which keep for the live cuts what they replace; and through [`install`], which does the same under a cut of its own while
//! nobody else may write. Splits and merges change no content.
//!
//! Order of locks: latches from left to right, then the commit lock, then one of: the directory's writer, a
//! cut's list, the arena, the slab, the reclaimer's queue.
//!
//! Knows nothing of files and formats.

pub(crate) mod arena;
mod batch;
pub(crate) mod bulk;
#[cfg(any(test, feature = "simulation"))]
mod check;
mod directory;
mod due;
mod ends;
mod install;
mod leaf;
mod page;
mod pass;
mod reclaim;
mod slab;
pub(crate) mod still;
mod validate;
mod write;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use crate::clock::Clock;
use crate::commit::{Commit, Cut, Holder, Totals, View};
use crate::planted::{Bug, planted};
use crate::position::Position;
use crate::slice::{Account, Slice};
use crate::sync::{HeldLatch, RwLockReadGuard, RwLockWriteGuard, pin};
use crate::{Error, Result};

pub(crate) use batch::{BatchOp, Changes, RangeDelete};
pub(crate) use bulk::{BuiltLeaf, Bulk, LeafBuilder};
pub(crate) use due::Owners;
pub(crate) use ends::End;
pub(crate) use page::{Entry, Value};
pub(crate) use pass::Pass;
pub(crate) use still::{Bounds, LeafCopy, Scan, Still};
pub(crate) use validate::{ReadSet, Seen, SeenRange, Sighted};
pub(crate) use write::{
    Condition, PointWrite, Written, given_value, new_value, owned_value, shared_value,
};

use arena::Arena;
use directory::{Directory, Found, LeafId};
use due::Due;
use leaf::Leaf;
use page::Page;
use reclaim::Reclaim;
use slab::Slab;

/// What a tree is told at its birth.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    /// Bytes of slots and entries at which a leaf is split.
    pub(crate) leaf_bytes: usize,
    /// Entries at which a leaf is split; small in tests.
    pub(crate) leaf_entries: usize,
    /// Live, retained and directory bytes beyond which nothing may grow.
    pub(crate) memory_limit: u64,
    pub(crate) clock: Arc<dyn Clock>,
}

/// Leaves, or keys, whose memory is brought towards the cache together.
const GROUP: usize = 16;

impl Config {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { leaf_bytes: 8 << 10, leaf_entries: 4096, memory_limit: u64::MAX, clock }
    }
}

/// See the file's head.
pub(crate) struct Tree {
    slab: Arc<Slab>,
    directory: Directory,
    arena: Arc<Arena>,
    account: Arc<Account>,
    pub(crate) commit: Commit,
    config: Config,
    reclaim: Reclaim,
    due: Due,
}

/// A leaf latched to be read.
pub(crate) struct ReadLatch<'a> {
    leaf: RwLockReadGuard<'a, Leaf>,
    _held: HeldLatch,
}

/// A leaf latched to be changed.
pub(crate) struct WriteLatch<'a> {
    leaf: RwLockWriteGuard<'a, Leaf>,
    _held: HeldLatch,
}

impl Deref for ReadLatch<'_> {
    type Target = Leaf;
    fn deref(&self) -> &Leaf {
        &self.leaf
    }
}

impl Deref for WriteLatch<'_> {
    type Target = Leaf;
    fn deref(&self) -> &Leaf {
        &self.leaf
    }
}

impl DerefMut for WriteLatch<'_> {
    fn deref_mut(&mut self) -> &mut Leaf {
        &mut self.leaf
    }
}

/// The two ways to latch, so that walking is written once.
trait LatchMode<'a>: Deref<Target = Leaf> {
    fn latch(slab: &'a Slab, id: LeafId) -> Self;
}

impl<'a> LatchMode<'a> for ReadLatch<'a> {
    #[inline]
    fn latch(slab: &'a Slab, id: LeafId) -> Self {
        ReadLatch { leaf: slab.get(id).0.read(), _held: HeldLatch::new() }
    }
}

impl<'a> ReadLatch<'a> {
    /// `None` if somebody has it latched for a change.
    fn try_latch(slab: &'a Slab, id: LeafId) -> Option<Self> {
        Some(ReadLatch { leaf: slab.get(id).0.try_read()?, _held: HeldLatch::new() })
    }
}

impl<'a> LatchMode<'a> for WriteLatch<'a> {
    #[inline]
    fn latch(slab: &'a Slab, id: LeafId) -> Self {
        WriteLatch { leaf: slab.get(id).0.write(), _held: HeldLatch::new() }
    }
}

impl Tree {
    /// An empty tree: one leaf that covers everything, no keyspace but the catalogue.
    pub(crate) fn new(config: Config) -> Self {
        let account = Arc::new(Account::default());
        let arena = Arc::new(Arena::new(Arc::clone(&account), page::release));
        let slab = Arc::new(Slab::new());
        let first = slab.alloc();
        slab.get(first).0.write().page = Some(Page::new(&arena, &[], None, 0));
        let directory = Directory::new(vec![(Vec::new(), first)], Arc::clone(&account));
        let time_ms = config.clock.now_ms();
        let commit = Commit::new(Position::default(), time_ms, vec![Totals::default()]);
        let (reclaim, due) = (Reclaim::default(), Due::default());
        Self { slab, directory, arena, account, commit, config, reclaim, due }
    }

    /// Latches the leaf that covers `key`.
    #[inline]
    fn latch<'a, L: LatchMode<'a>>(&'a self, key: &[u8]) -> L {
        let guard = pin();
        loop {
            let found = self.directory.find(key, &guard).id;
            if planted(Bug::DeadWalkedPast)
                && let Some(latch) = self.walk_past_dead(found, key)
            {
                return latch;
            }
            if let Some(latch) = self.walk(found, key) {
                return latch;
            }
        }
    }

    /// For planted bugs: as `walk`, but along the links of dead leaves too.
    fn walk_past_dead<'a, L: LatchMode<'a>>(&'a self, id: LeafId, key: &[u8]) -> Option<L> {
        let mut latch = L::latch(&self.slab, id);
        while !latch.page.as_ref().is_some_and(|page| page.below_high(key)) {
            let next = latch.next?;
            drop(latch);
            latch = L::latch(&self.slab, next);
        }
        Some(latch)
    }

    /// Latches `id` and walks right from there to the leaf that covers `key`; `None` if it met a dead leaf,
    /// whose links lead nowhere. The caller is pinned, or holds a latch left of `id` that it took `id` from.
    #[inline]
    fn walk<'a, L: LatchMode<'a>>(&'a self, id: LeafId, key: &[u8]) -> Option<L> {
        let mut latch = L::latch(&self.slab, id);
        loop {
            let page = latch.page.as_ref()?;
            // The fences and then the search touch these lines one after the other: now they come together.
            page.prefetch();
            if page.below_high(key) {
                return Some(latch);
            }
            let next = latch.next.expect("the leaf without a high fence is the last");
            drop(latch);
            latch = L::latch(&self.slab, next);
        }
    }

    /// With `held` latched, latches the leaf further right that covers `key`, which lies beyond it.
    ///
    /// The directory may be stale and must not lead left: what it says is used only if it lies right of what
    /// is held; else, and after a dead leaf, the way goes on from the leaf that is held.
    fn latch_right_of<'a, L: LatchMode<'a>>(&'a self, held: &Leaf, key: &[u8]) -> L {
        let guard = pin();
        self.latch_right_at(held, key, self.directory.find(key, &guard))
    }

    /// As `latch_right_of`, with what the directory said of the key since the caller was pinned.
    fn latch_right_at<'a, L: LatchMode<'a>>(
        &'a self,
        held: &Leaf,
        key: &[u8],
        found: Found<'_>,
    ) -> L {
        if planted(Bug::NextLeafLookedUp) {
            return self.latch(key);
        }
        let high = held.live().high().expect("something lies right of the held leaf");
        if planted(Bug::NextLeafThroughDead)
            && found.low_is_at_least(high)
            && let Some(latch) = self.walk_past_dead(found.id, key)
        {
            return latch;
        }
        if found.low_is_at_least(high)
            && let Some(latch) = self.walk(found.id, key)
        {
            return latch;
        }
        loop {
            let next = held.next.expect("a leaf with a high fence has a next one");
            if let Some(latch) = self.walk(next, key) {
                return latch;
            }
        }
    }

    fn latch_read(&self, key: &[u8]) -> ReadLatch<'_> {
        self.latch(key)
    }

    /// Brings a leaf's latch towards the cache.
    fn prefetch_latch(&self, id: LeafId) {
        page::prefetch(std::ptr::from_ref(self.slab.get(id)).cast());
    }

    /// Brings what latching this leaf and reading it will touch first towards the cache.
    fn prefetch_leaf(&self, id: LeafId) {
        if let Some(latch) = ReadLatch::try_latch(&self.slab, id)
            && let Some(page) = &latch.page
        {
            page.prefetch();
        }
    }

    /// As `prefetch_leaf`, of all these leaves, which the caller is about to latch.
    fn prefetch_leaves(&self, found: &[Found<'_>]) {
        let leaves = || found.chunk_by(|a, b| a.id == b.id).map(|same| same[0].id);
        leaves().for_each(|id| self.prefetch_latch(id));
        // The page's address needs the latch for a moment.
        leaves().for_each(|id| self.prefetch_leaf(id));
    }

    /// Brings what writing each of `keys` will touch towards the cache. Many cache misses are in flight at once, where the writes, one after the
    /// other, would wait for each.
    pub(crate) fn prefetch_keys(&self, keys: &[&[u8]]) {
        let guard = pin();
        for group in keys.chunks(GROUP) {
            let found = self.directory.find_many(group.iter().copied(), &guard);
            self.prefetch_leaves(&found);
            for (found, key) in found.iter().zip(group) {
                if let Some(latch) = ReadLatch::try_latch(&self.slab, found.id)
                    && let Some(page) = &latch.page
                    && page.low() <= *key
                    && page.below_high(key)
                {
                    page.prefetch_key(key);
                    page.prefetch_free();
                }
            }
        }
    }

    /// As `latch_read`, with a leaf to try first. Whichever it is by now, its fences tell whether it is the one;
    /// if it is latched for a change, somebody else's leaf may be behind the number: nobody waits for that.
    fn latch_read_near(&self, near: Option<LeafId>, key: &[u8]) -> ReadLatch<'_> {
        let covers = |page: &Page| page.low() <= key && page.below_high(key);
        match near.and_then(|id| ReadLatch::try_latch(&self.slab, id)) {
            Some(latch) if latch.page.as_ref().is_some_and(covers) => latch,
            other => {
                drop(other);
                self.latch_read(key)
            }
        }
    }

    fn latch_write(&self, key: &[u8]) -> WriteLatch<'_> {
        self.latch(key)
    }

    /// Latches the leaf that ends at `fence`, or the one that covers it from the left.
    fn latch_before<'a, L: LatchMode<'a>>(&'a self, fence: Option<&[u8]>) -> L {
        // The greatest key below the fence has no name; walk while the next leaf still begins below it.
        let guard = pin();
        loop {
            let found = match fence {
                Some(fence) => self.directory.find_before(fence, &guard).id,
                None => self.directory.find(&[0xff; 8], &guard).id,
            };
            let mut latch = L::latch(&self.slab, found);
            while let Some(page) = &latch.page {
                let is_left = match (page.high(), fence) {
                    (Some(high), Some(fence)) => high < fence,
                    (Some(_), None) => true,
                    (None, _) => false,
                };
                if !is_left {
                    return latch;
                }
                let next = latch.next.expect("a leaf with a high fence has a next one");
                drop(latch);
                latch = L::latch(&self.slab, next);
            }
        }
    }

    /// Whether a reader that judges by the clock may see `entry`. The clock is read only if it has an expiry.
    #[inline]
    fn is_visible(&self, entry: &Entry<'_>) -> bool {
        entry.expire_at == 0 || self.config.clock.now_ms() < entry.expire_at
    }

    /// Hands what the key has to `read`, which runs under the latch and so must do next to nothing.
    #[inline]
    pub(crate) fn read<R>(
        &self,
        view: View,
        key: &[u8],
        read: impl FnOnce(Entry<'_>) -> R,
    ) -> Result<Option<R>> {
        let leaf = self.latch_read(key);
        let entry = match self.commit.sight(view)? {
            None => {
                let page = leaf.live();
                let Ok(at) = page.find(key) else { return Ok(None) };
                page.entry(at)
            }
            Some(tick) => {
                let Some(entry) = leaf.entry_at(tick, key) else { return Ok(None) };
                entry
            }
        };
        Ok(if self.is_visible(&entry) { Some(read(entry)) } else { None })
    }

    /// The value of `key`.
    pub(crate) fn get(&self, view: View, key: &[u8]) -> Result<Option<Slice>> {
        self.read(view, key, |entry| entry.value.to_slice())
    }

    /// What each of `keys` has, one latch at a time, many cache misses in flight.
    pub(crate) fn get_many<K: Deref<Target = [u8]>>(
        &self,
        view: View,
        keys: &[K],
    ) -> Result<Vec<Option<Slice>>> {
        let mut values = Vec::with_capacity(keys.len());
        let guard = pin();
        for group in keys.chunks(GROUP) {
            let found = self.directory.find_many(group.iter().map(|key| &**key), &guard);
            self.prefetch_leaves(&found);
            for (found, key) in found.iter().zip(group) {
                let leaf = match self.walk::<ReadLatch<'_>>(found.id, key) {
                    Some(leaf) => leaf,
                    None => self.latch_read(key),
                };
                let page = leaf.live();
                let found = match self.commit.sight(view)? {
                    None => page.find(key).ok().map(|at| page.entry(at)),
                    Some(tick) => leaf.entry_at(tick, key),
                };
                let found = found.filter(|entry| self.is_visible(entry));
                values.push(found.map(|entry| entry.value.to_slice()));
            }
        }
        Ok(values)
    }

    /// Takes a cut of the present.
    pub(crate) fn cut(&self, holder: Holder) -> Result<Arc<Cut>> {
        self.commit.cut(self.config.clock.now_ms(), holder)
    }

    /// What memory adds up to.
    pub(crate) fn account(&self) -> &Arc<Account> {
        &self.account
    }

    /// Live, retained and directory bytes; leaf headers count as live.
    pub(crate) fn memory_bytes(&self) -> u64 {
        self.account.total() + self.slab.bytes()
    }

    /// Leaves, and the bytes of their headers.
    pub(crate) fn leaves(&self) -> (u64, u64) {
        (self.slab.len(), self.slab.bytes())
    }

    /// Fails if `bytes` more would exceed the limit.
    fn check_memory(&self, bytes: usize) -> Result<()> {
        let limit = self.config.memory_limit;
        if limit == u64::MAX || planted(Bug::LimitNotChecked) {
            return Ok(());
        }
        let used = self.memory_bytes();
        if used + bytes as u64 > limit { Err(Error::MemoryLimit { limit, used }) } else { Ok(()) }
    }

    /// The clock that live reads judge expiry by.
    pub(crate) fn clock(&self) -> &dyn Clock {
        &*self.config.clock
    }
}

impl Drop for Tree {
    fn drop(&mut self) {
        // Pages hold the arena and free themselves with the slab, which deferred jobs may still hold for a
        // moment: what is large must not wait for them.
        for id in 0..self.slab.allocated() {
            *self.slab.get(LeafId(id)).0.write() = Leaf::default();
        }
    }
}
