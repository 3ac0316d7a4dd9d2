//! Checks of the tree's invariants as a whole, for tests: while nothing else runs.

use crate::commit::Totals;
use crate::fingerprint;
use crate::sync::pin;
use crate::tree::directory::LeafId;
use crate::tree::page::Page;
use crate::tree::still::{LeafCopy, Still};
use crate::tree::{LatchMode, ReadLatch, Tree};

/// Adds up what the entries of `page` really are.
fn recount(page: &Page, prefix_len: usize) -> Totals {
    let (mut key, mut totals) = (Vec::new(), Totals::default());
    for at in 0..page.len() {
        page.key_into(at, &mut key);
        let entry = page.entry(at);
        let hash = fingerprint::value_hash(entry.value.bytes());
        assert_eq!(hash, entry.value.hash(), "the hash of a value");
        let own = fingerprint::entry(&key, hash, entry.expire_at);
        totals.fingerprint = totals.fingerprint.wrapping_add(own);
        totals.records += 1;
        totals.bytes += (key.len() - prefix_len + entry.value.len()) as u64;
    }
    totals
}

impl Still {
    /// The entries add up to the totals of the cut; copies tile the key space; no leaf changed after the cut.
    ///
    /// # Panics
    /// If any of it is not so.
    pub(crate) fn check(&self, prefix_len: usize) -> crate::Result<()> {
        let (mut from, mut copy, mut sum) = (Vec::new(), LeafCopy::default(), Totals::default());
        loop {
            self.copy_leaf(&from, &mut copy)?;
            let page = copy.page();
            assert_eq!(page.low(), from, "copies tile");
            let own = recount(page, prefix_len);
            assert!(copy.stamp() <= self.cut().position.seq, "a stamp from after the cut");
            sum.records += own.records;
            sum.bytes += own.bytes;
            sum.fingerprint = sum.fingerprint.wrapping_add(own.fingerprint);
            match page.high() {
                Some(high) => from = high.to_vec(),
                None => break,
            }
        }
        assert_eq!(sum, self.cut().totals, "the totals of a cut");
        Ok(())
    }
}

impl Tree {
    /// Fences tile the key space; entries lie within them, ascending; sums are what the entries say; the
    /// directory knows every leaf; nothing is kept when no still lives and all is reclaimed.
    ///
    /// # Panics
    /// If any of it is not so.
    pub(crate) fn check(&self) {
        let guard = pin();
        let mut id = self.directory.find(&[], &guard).id;
        let (mut low, mut records, mut sum, mut leaves) = (Vec::new(), 0u64, 0u64, 0u64);
        loop {
            let leaf = ReadLatch::latch(&self.slab, id);
            let page = leaf.live();
            assert_eq!(page.low(), low, "fences tile");
            assert_eq!(self.directory.find(&low, &guard).id, id, "the directory knows each leaf");
            let (mut key, mut last, mut own) = (Vec::new(), None, 0u64);
            for at in 0..page.len() {
                page.key_into(at, &mut key);
                assert!(*key >= *low && page.below_high(&key), "an entry within its fences");
                assert!(last.as_ref().is_none_or(|last| *last < key), "entries ascend");
                assert_eq!(page.find(&key), Ok(at), "an entry is found");
                let entry = page.entry(at);
                let hash = fingerprint::value_hash(entry.value.bytes());
                assert_eq!(hash, entry.value.hash());
                own = own.wrapping_add(fingerprint::entry(&key, hash, entry.expire_at));
                last = Some(key.clone());
            }
            assert_eq!(own, page.fingerprint(), "a leaf's sum of fingerprints");
            records += page.len() as u64;
            sum = sum.wrapping_add(own);
            leaves += 1;
            let next: Option<LeafId> = leaf.next;
            match (page.high(), next) {
                (Some(high), Some(next)) => (low, id) = (high.to_vec(), next),
                (None, None) => break,
                _ => panic!("the last leaf, and only that, has no next one"),
            }
        }
        let totals = self.commit.all_totals();
        assert_eq!((records, sum), (totals.records, totals.fingerprint), "the running totals");
        assert!(self.slab.len() >= leaves);
        if self.commit.live_ticks(0).is_empty() && self.is_reclaimed() {
            let retained = self.account.retained.load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!(retained, 0, "something is kept for no still");
            assert!(self.nothing_waits(), "a leaf waits to be merged, for no still");
        }
    }
}
