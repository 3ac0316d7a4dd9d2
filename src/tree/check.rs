//! Checks of the tree's invariants as a whole, for tests: while nothing else runs.

use crate::fingerprint;
use crate::sync::pin;
use crate::tree::directory::LeafId;
use crate::tree::{LatchMode, ReadLatch, Tree};

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
        if self.commit.live_ticks().is_empty() && self.is_reclaimed() {
            let retained = self.account.retained.load(std::sync::atomic::Ordering::Relaxed);
            assert_eq!(retained, 0, "something is kept for no still");
        }
    }
}
