//! What dropped stills leave behind, freed leaf by leaf; and merging.
//!
//! One thread at a time reclaims. It takes a range off a dropped cut's list, lets go of the list, and visits
//! whatever leaves cover the range now, since leaves split; the live cuts are read after each leaf's latch
//! is taken. What another live cut still needs is handed to that cut's list.
//!
//! A merge is a separate act that begins with nothing held: latches left, then right; the left leaf takes
//! over; neither may keep anything.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

use crossbeam_channel::Sender;

use crate::commit::{Cut, KeyRange};
use crate::planted::{Bug, planted};
use crate::slice::Slice;
use crate::sync::{Mutex, defer, pin};
use crate::tree::directory::LeafId;
use crate::tree::page::Page;
use crate::tree::{LatchMode, Tree, WriteLatch};

/// Work for the reclaimer.
#[derive(Default)]
pub(crate) struct Reclaim {
    queue: Mutex<Queue>,
    /// Held by whoever reclaims.
    running: Mutex<()>,
    waker: OnceLock<Sender<()>>,
}

#[derive(Default)]
struct Queue {
    dropped: VecDeque<Arc<Cut>>,
    /// Low fences of leaves that may be merged.
    candidates: Vec<Slice>,
    /// Candidates that kept something for a still: tried again when one is dropped.
    waiting: Vec<Slice>,
}

impl Tree {
    /// Where to say that there is something to reclaim.
    pub(crate) fn set_waker(&self, waker: Sender<()>) {
        // Set once, by whoever starts the reclaimer's thread.
        let _ = self.reclaim.waker.set(waker);
    }

    fn wake_reclaimer(&self) {
        if let Some(waker) = self.reclaim.waker.get() {
            // Full means that it is awake or about to be.
            let _ = waker.try_send(());
        }
    }

    /// A still is dropped: its cut leaves the live set now, what it needed is freed by the reclaimer.
    pub(crate) fn drop_cut(&self, cut: &Arc<Cut>) {
        if self.commit.drop_cut(cut) {
            self.reclaim.queue.lock().dropped.push_back(Arc::clone(cut));
            self.wake_reclaimer();
        }
    }

    /// Notes a latched leaf that has become so small that it may be merged.
    pub(crate) fn note_shrunk(&self, latch: &mut WriteLatch<'_>) {
        let page = latch.live();
        let is_small = page.used() <= self.config.leaf_bytes / 4
            && page.len() <= self.config.leaf_entries.div_ceil(4);
        if is_small && !latch.is_candidate {
            let low = Slice::new(page.low());
            latch.is_candidate = true;
            self.reclaim.queue.lock().candidates.push(low);
            self.wake_reclaimer();
        }
    }

    /// Does all that there is to reclaim now. Any thread may call it; one at a time works.
    pub(crate) fn reclaim(&self) {
        crate::sync::assert_no_latch("reclaim");
        let _running = self.reclaim.running.lock();
        let mut swept = false;
        loop {
            let Some(cut) = self.reclaim.queue.lock().dropped.pop_front() else { break };
            while let Some(range) = cut.take_range() {
                self.sweep(&range);
            }
            swept = true;
        }
        if swept {
            self.commit.sweep_totals();
        }
        let candidates = {
            let mut queue = self.reclaim.queue.lock();
            let mut candidates = std::mem::take(&mut queue.candidates);
            // Only here, after the sweeps: whoever waits for a still that goes while leaves are merged is
            // found by the next round, which sweeps for that still.
            if swept && !planted(Bug::MergeNotRetried) {
                candidates.append(&mut queue.waiting);
            }
            candidates
        };
        for low in candidates {
            self.try_merge(&low);
        }
        if self.arena.is_wasteful() {
            self.compact();
        }
        if self.arena.is_untidy() {
            self.arena.tidy();
        }
    }

    /// Moves pages out of memory that few of them use, one leaf at a time.
    fn compact(&self) {
        self.arena.begin_compaction();
        for id in 0..self.slab.allocated() {
            let mut latch = WriteLatch::latch(&self.slab, LeafId(id));
            if let Some(page) = latch.page.take_if(|page| page.is_draining()) {
                latch.page = Some(page.moved());
            }
        }
        self.arena.end_compaction();
    }

    /// Wakes the reclaimer if it has something to do for the arena.
    #[inline]
    pub(crate) fn note_waste(&self) {
        if self.arena.is_wasteful() || self.arena.is_untidy() {
            self.wake_reclaimer();
        }
    }

    /// Whether there is nothing to reclaim.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn is_reclaimed(&self) -> bool {
        let queue = self.reclaim.queue.lock();
        queue.dropped.is_empty() && queue.candidates.is_empty()
    }

    /// Whether no leaf waits for a still to go before it may be merged.
    #[cfg(any(test, feature = "simulation"))]
    pub(crate) fn nothing_waits(&self) -> bool {
        self.reclaim.queue.lock().waiting.is_empty()
    }

    fn sweep(&self, range: &KeyRange) {
        let (low, end) = range;
        let mut from = low.to_vec();
        loop {
            let early = planted(Bug::LiveReadBeforeLatch).then(|| self.commit.live_cuts());
            let mut latch = self.latch_write(&from);
            let freed = self.sweep_leaf(&mut latch, early);
            let high = latch.live().high().map(<[u8]>::to_vec);
            drop(latch);
            drop(freed);
            match (high, end) {
                _ if planted(Bug::ListOfLeaves) => return,
                (Some(high), Some(end)) if *high < **end => from = high,
                (Some(high), None) => from = high,
                _ => return,
            }
        }
    }

    /// Frees what the latched leaf keeps for no live cut, and lists it with those that it still keeps for.
    ///
    /// `early` are live cuts that a planted bug read before the latch was taken.
    pub(crate) fn sweep_leaf(
        &self,
        latch: &mut WriteLatch<'_>,
        mut early: Option<Vec<Arc<Cut>>>,
    ) -> Vec<Page> {
        let mut freed = Vec::new();
        loop {
            let mut live = early.take().unwrap_or_else(|| self.commit.live_cuts());
            live.retain(|cut| cut.id != latch.passed_by);
            let (heirs, pages) = latch.sweep(&live);
            freed.extend(pages);
            let page = latch.live();
            let range = (Slice::new(page.low()), page.high().map(Slice::new));
            // An heir that was dropped and drained since the live cuts were read: look again. All are asked first,
            // since the leaf counts itself as listed with each of them from now on.
            let mut all_listed = true;
            for heir in heirs {
                all_listed &= planted(Bug::NoHandOver) || live[heir].list(range.clone());
            }
            if all_listed {
                return freed;
            }
        }
    }

    /// Merges the leaf that begins at `low` with a neighbour, if their entries fit one leaf.
    fn try_merge(&self, low: &[u8]) {
        if !low.is_empty() && self.merge_into_left(low) {
            return;
        }
        // Not with the left one: then the next one into it.
        let high = {
            let mut latch: WriteLatch<'_> = self.latch(low);
            if latch.live().low() != low {
                return;
            }
            latch.is_candidate = false;
            latch.live().high().map(<[u8]>::to_vec)
        };
        if let Some(high) = high {
            self.merge_into_left(&high);
        }
    }

    /// Merges the leaf that begins at `low` into the one before. `true` if nothing is left to try.
    fn merge_into_left(&self, low: &[u8]) -> bool {
        let early: Option<WriteLatch<'_>> =
            planted(Bug::MergeRightFirst).then(|| self.latch_write(low));
        let mut left: WriteLatch<'_> = self.latch_before(Some(low));
        drop(early);
        if left.live().high() != Some(low) {
            return true;
        }
        let guard = pin();
        let right_id = left.next.expect("a leaf with a high fence has a next one");
        let mut right = WriteLatch::latch(&self.slab, right_id);
        let keeps = left.kept.is_some() || right.kept.is_some();
        if keeps && !planted(Bug::MergesKept) {
            // A change under a live cut keeps something, unless that cut has passed here: who keeps nothing has
            // not changed since any cut that may still read it.
            right.is_candidate = true;
            self.reclaim.queue.lock().waiting.push(Slice::new(low));
            return true;
        }
        let (a, b) = (left.live(), right.live());
        let end = b.high().map(<[u8]>::to_vec);
        let bytes = a.cost_within(a.low(), end.as_deref()) + b.cost_within(a.low(), end.as_deref());
        if bytes > self.config.leaf_bytes * 3 / 4
            || a.len() + b.len() > self.config.leaf_entries * 3 / 4
        {
            return false;
        }
        let mut merged = Page::new(&a.arena(), a.low(), end.as_deref(), bytes);
        merged.append(a);
        merged.append(b);
        let first_expiry = merged.first_expiry();
        left.page = Some(merged);
        self.due.note(&mut left, first_expiry);
        left.next = right.next;
        left.stamp = match planted(Bug::MergedStampLower) {
            true => left.stamp.min(right.stamp),
            false => left.stamp.max(right.stamp),
        };
        if left.passed_by != right.passed_by && !planted(Bug::MergeKeepsMark) {
            left.passed_by = 0;
        }
        // Out of the directory while latched, then dead: who finds a dead leaf never finds it there again.
        if !planted(Bug::DeadNeverRemoved) {
            self.directory.remove(low);
        }
        if !planted(Bug::DeadNotMarked) {
            right.page = None;
        }
        if !(planted(Bug::DeadWalkedPast) || planted(Bug::NextLeafThroughDead)) {
            right.next = None;
        }
        right.is_candidate = false;
        drop(right);
        let slab = Arc::clone(&self.slab);
        if planted(Bug::LeafFreedEarly) {
            slab.free(right_id);
            return true;
        }
        defer(&guard, move || slab.free(right_id));
        // What is small still may go on merging.
        left.is_candidate = false;
        self.note_shrunk(&mut left);
        true
    }
}
