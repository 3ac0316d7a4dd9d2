//! Which leaves hold entries whose time will come, by when the first of each does: what is due is found without a look at any other leaf.
//!
//! A leaf is entered, by its low fence, when it gets an entry that expires before all it was entered for; so mostly once,
//! however many such entries it gets. What is entered may be out of date: who comes looks what there is. Times are counted in
//! grains, at whose end entries are removed, so that those of a leaf go together.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use crossbeam_channel::Sender;

use crate::Result;
use crate::commit::{Denied, KeyspaceSlot, View};
use crate::planted::{Bug, planted};
use crate::slice::Slice;
use crate::sync::{AtomicBool, Mutex, Ordering};
use crate::tree::batch::{BatchOp, Changes};
use crate::tree::leaf::Leaf;
use crate::tree::write::Garbage;
use crate::tree::{Tree, WriteLatch};

/// A grain is 2 to this many milliseconds.
const GRAIN_BITS: u32 = 8;

/// See the file's head.
#[derive(Default)]
pub(crate) struct Due {
    /// Low fences by grain.
    leaves: Mutex<BTreeMap<u64, Vec<Slice>>>,
    waker: OnceLock<Sender<()>>,
    /// Whether anything was ever entered.
    ///
    /// Relaxed: who has entered something looks here after that.
    is_used: AtomicBool,
}

/// Whose keys are whose.
pub(crate) struct Owners<'a> {
    pub(crate) view: View,
    /// Of what counts, how many bytes of a key come before the user's.
    pub(crate) prefix_len: usize,
    /// By key.
    pub(crate) slot_of: &'a dyn Fn(&[u8]) -> Option<KeyspaceSlot>,
}

/// The first grain that ends with the entry's time past. `expire_at` is not 0, so neither is this.
fn grain_of(expire_at: u64) -> u64 {
    ((expire_at - 1) >> GRAIN_BITS) + 1
}

impl Due {
    /// A latched leaf has an entry that expires at `expire_at`, which is 0 if it has none.
    pub(crate) fn note(&self, leaf: &mut Leaf, expire_at: u64) {
        if expire_at == 0 {
            return;
        }
        let grain = grain_of(expire_at);
        if leaf.due == 0 || grain < leaf.due {
            leaf.due = grain;
            self.enter(grain, Slice::new(leaf.live().low()));
        }
    }

    fn enter(&self, grain: u64, low: Slice) {
        if !self.is_used.load(Ordering::Relaxed) {
            self.is_used.store(true, Ordering::Relaxed);
        }
        let mut leaves = self.leaves.lock();
        let is_first = leaves.first_key_value().is_none_or(|(first, _)| grain < *first);
        leaves.entry(grain).or_default().push(low);
        drop(leaves);
        if let Some(waker) = self.waker.get().filter(|_| is_first) {
            // Full means that it is awake or about to be.
            let _ = waker.try_send(());
        }
    }
}

impl Tree {
    /// Where to say that something is due before all else that is.
    pub(crate) fn set_due_waker(&self, waker: Sender<()>) {
        // Set once, by whoever starts the thread.
        let _ = self.due.waker.set(waker);
    }

    /// Whether anything expires, or did.
    #[inline]
    pub(crate) fn has_expiries(&self) -> bool {
        self.due.is_used.load(Ordering::Relaxed)
    }

    /// When there is something to remove, in unix milliseconds, `u64::MAX` for some very late time; `None`: nothing expires.
    pub(crate) fn next_due_ms(&self) -> Option<u64> {
        let leaves = self.due.leaves.lock();
        leaves.first_key_value().map(|(grain, _)| grain.saturating_mul(1 << GRAIN_BITS))
    }

    /// A leaf, by a key in it, in which something is past its time.
    pub(crate) fn take_due(&self, now_ms: u64) -> Option<Slice> {
        let mut leaves = self.due.leaves.lock();
        let mut first =
            leaves.first_entry().filter(|first| *first.key() <= now_ms >> GRAIN_BITS)?;
        let low = first.get_mut().pop();
        if first.get().is_empty() {
            first.remove();
        }
        low
    }

    /// Enters again a leaf that was [taken](Self::take_due): to be looked at from `at_ms` on.
    pub(crate) fn put_back_due(&self, low: Slice, at_ms: u64) {
        self.due.enter(grain_of(at_ms.max(1)), low);
    }

    /// Removes what is past its time in the leaf that covers `low`, as one batch. Returns how many entries that were, if any. What nobody owns
    /// stays, for later.
    pub(crate) fn expire_leaf(
        &self,
        owners: &Owners<'_>,
        low: &[u8],
        now_ms: u64,
    ) -> Result<Option<u64>> {
        self.begin_write()?;
        let expired = loop {
            let once = || self.expire_once(owners, low, now_ms);
            if let Some(expired) = self.commit.with_room(once)? {
                break expired;
            }
        };
        self.note_waste();
        Ok(expired)
    }

    fn expire_once(
        &self,
        owners: &Owners<'_>,
        low: &[u8],
        now_ms: u64,
    ) -> std::result::Result<Option<u64>, Denied> {
        let mut garbage = Garbage::default();
        let mut latch: WriteLatch<'_> = self.latch(low);
        self.check_seen(owners.view)?;
        let page = latch.live();
        // Keys lie one behind the other.
        let (mut keys, mut ends) = (Vec::new(), Vec::new());
        let (mut key, mut later) = (Vec::new(), u64::MAX);
        for at in 0..page.len() {
            let expire_at = page.expire_at(at);
            if expire_at == 0 {
                continue;
            }
            let is_past = expire_at <= now_ms || planted(Bug::ExpiresEarly);
            page.key_into(at, &mut key);
            match (owners.slot_of)(&key).filter(|_| is_past) {
                Some(slot) => {
                    keys.extend_from_slice(&key);
                    ends.push((keys.len(), slot));
                }
                // Of what is past and stays, not before the next grain.
                None => later = later.min(expire_at.max(now_ms + 1)),
            }
        }
        latch.due = 0;
        if later < u64::MAX {
            self.due.note(&mut latch, later);
        }
        if ends.is_empty() {
            return Ok(None);
        }
        let mut start = 0;
        let mut changes = Changes { is_expiry: true, ..Changes::default() };
        for &(end, slot) in &ends {
            let prefix_len = owners.prefix_len;
            changes.ops.push(BatchOp { slot, key: &keys[start..end], prefix_len, put: None });
            start = end;
        }
        // Only now is it known which keys: a leaf holds so much that this takes some microseconds.
        let mut body = self.body(|put| changes.for_each_effect(put));
        let latches = (vec![latch], Vec::new());
        let (position, _) = self.commit_latched(latches, &changes, &mut body, &mut garbage)?;
        drop(garbage);
        Ok(position.map(|_| ends.len() as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grain_ends_when_its_entries_are_past() {
        for expire_at in [1, 2, 255, 256, 257, 512, 1_700_000_000_123, u64::MAX - 300, u64::MAX] {
            let grain = grain_of(expire_at);
            let is_due = |now_ms: u64| grain <= now_ms >> GRAIN_BITS;
            assert!(!is_due(expire_at - 1), "{expire_at}");
            let latest = expire_at.saturating_add(1 << GRAIN_BITS);
            assert!(is_due(latest) || latest == u64::MAX, "{expire_at}");
        }
    }
}
