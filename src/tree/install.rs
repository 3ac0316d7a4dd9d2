//! Another state in the place of the present: what a replica does with what its source has sent.
//!
//! Leaves are replaced range by range under a cut taken before, at which every read of the present looks meanwhile, as do stills
//! that are taken. One store at the end shows the new state to all. What was replaced stays until the cut is swept.
//!
//! Nobody else changes content meanwhile: a replica has one source. Splits and merges go on.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::Result;
use crate::commit::{Cut, Installed, Totals};
use crate::planted::{Bug, planted};
use crate::position::Seq;
use crate::sync::pin;
use crate::tree::bulk::{BuiltLeaf, Bulk};
use crate::tree::directory::LeafId;
use crate::tree::leaf::{Leaf, Whole};
use crate::tree::page::{Entry, Page};
use crate::tree::still::Bounds;
use crate::tree::write::Garbage;
use crate::tree::{LatchMode, Tree, WriteLatch};

/// See the file's head. If it is dropped before its end, nobody may read any more.
pub(crate) struct Install {
    tree: Arc<Tree>,
    /// What is shown meanwhile.
    shown: Arc<Cut>,
    /// The tick at which the new state begins.
    tick: u64,
    is_done: bool,
}

/// What the entries of a range add up to that begin with the same bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PrefixTotals {
    pub(crate) prefix: Vec<u8>,
    pub(crate) totals: Totals,
}

impl Tree {
    /// Begins to put another state in the place of the present. `rewinds`: what leaves say of their last change may go back.
    pub(crate) fn install(self: &Arc<Self>, rewinds: bool) -> Result<Install> {
        let (shown, tick) = self.commit.begin_install(self.config.clock.now_ms(), rewinds)?;
        Ok(Install { tree: Arc::clone(self), shown, tick, is_done: false })
    }

    /// Where leaves are built that this tree takes in.
    pub(crate) fn bulk(&self) -> Bulk {
        let (arena, account) = (Arc::clone(&self.arena), Arc::clone(&self.account));
        Bulk { arena, account, config: self.config.clone() }
    }

    /// What lies in `[low, high)` now, summed up by the first `prefix_len` bytes of the keys. Nobody may be writing there.
    pub(crate) fn sums(
        &self,
        prefix_len: usize,
        low: &[u8],
        high: Option<&[u8]>,
    ) -> Vec<PrefixTotals> {
        let mut sums: Vec<PrefixTotals> = Vec::new();
        let mut from = low.to_vec();
        loop {
            let latch = self.latch_read(&from);
            let page = latch.live();
            let start = page.seek(&from);
            let end = high.map_or(page.len(), |high| page.seek(high));
            page.sum_up(start..end, prefix_len, &mut |prefix, totals| match sums.last_mut() {
                Some(last) if last.prefix == prefix => last.totals.include(totals),
                _ => sums.push(PrefixTotals { prefix: prefix.to_vec(), totals: *totals }),
            });
            match page.high() {
                Some(next) if high.is_none_or(|high| next < high) => from = next.to_vec(),
                _ => return sums,
            }
        }
    }

    /// Shows the entries within `bounds`, one leaf latched at a time. Nobody may be writing there.
    pub(crate) fn each_present(&self, bounds: &Bounds, mut visit: impl FnMut(&[u8], Entry<'_>)) {
        let mut from = bounds.low.clone();
        let mut key = Vec::new();
        loop {
            let latch = self.latch_read(&from);
            let page = latch.live();
            let end = bounds.high.as_deref().map_or(page.len(), |high| page.seek(high));
            for at in page.seek(&from)..end {
                page.key_into(at, &mut key);
                visit(&key, page.entry(at));
            }
            match page.high() {
                Some(next) if bounds.high.as_deref().is_none_or(|high| next < high) => {
                    from = next.to_vec();
                }
                _ => return,
            }
        }
    }

    /// Shows each leaf's fences and the batch that changed it last, one latched at a time.
    pub(crate) fn stamps(&self, mut show: impl FnMut(&[u8], Option<&[u8]>, Seq)) {
        let mut from = Vec::new();
        loop {
            let latch = self.latch_read(&from);
            let page = latch.live();
            show(page.low(), page.high(), latch.stamp);
            match page.high() {
                Some(high) => from = high.to_vec(),
                None => return,
            }
        }
    }

    /// Shows where each leaf begins, the batch that changed it last, and what its fingerprints sum up to.
    pub(crate) fn leaf_sums(&self, mut show: impl FnMut(&[u8], Seq, u64)) {
        let mut from = Vec::new();
        loop {
            let latch = self.latch_read(&from);
            let page = latch.live();
            show(page.low(), latch.stamp, page.fingerprint());
            match page.high() {
                Some(high) => from = high.to_vec(),
                None => return,
            }
        }
    }

    /// Bytes of keys and values in the leaves that changed after `seq`.
    pub(crate) fn bytes_after(&self, seq: Seq) -> u64 {
        let (mut from, mut bytes) = (Vec::new(), 0);
        loop {
            let latch = self.latch_read(&from);
            let page = latch.live();
            if latch.stamp > seq {
                bytes += page.used() as u64;
            }
            match page.high() {
                Some(high) => from = high.to_vec(),
                None => return bytes,
            }
        }
    }

    /// Latches the leaf that begins at `low`; one that holds it in its middle is split there.
    fn latch_from(&self, low: &[u8]) -> WriteLatch<'_> {
        let mut latch = self.latch_write(low);
        if latch.live().low() != low {
            let right = self.split_at(&mut latch, low);
            return right;
        }
        latch
    }

    /// Puts new pages, each with its stamp, in the place of a leaf's own: the first there, the others in leaves born latched. What the outgoing page
    /// serves from the tick `outgoing_born` on, if anything, it goes on to serve up to `died`.
    pub(super) fn swap_pages<'a>(
        &'a self,
        latch: &mut WriteLatch<'a>,
        pages: Vec<(Page, Seq)>,
        outgoing_born: Option<u64>,
        died: u64,
        garbage: &mut Garbage,
    ) -> Vec<WriteLatch<'a>> {
        let low = latch.live().low().to_vec();
        // What is kept is divided from the right, each time for all that is left of the fence.
        let mut right_kept = Vec::new();
        for (page, _) in pages[1..].iter().rev() {
            right_kept.push(latch.split_kept(&low, page.low(), page.high()));
        }
        let mut pages = pages.into_iter();
        let (first, stamp) = pages.next().expect("a leaf with new pages");
        latch.stamp = stamp;
        let mut outgoing = latch.page.replace(first).expect("latched alive");
        let mut outgoing_whole = None;
        match outgoing_born {
            Some(born) => {
                outgoing.retain();
                outgoing.retain_orphans();
                outgoing_whole = Some(Whole { born, died, page: Arc::new(outgoing) });
                latch.keep_whole(outgoing_whole.clone().into_iter().collect());
            }
            None => garbage.pages.push(outgoing),
        }
        let mut next = latch.next;
        let mut rest: Vec<(Page, Seq)> = pages.collect();
        let mut latches = Vec::with_capacity(rest.len());
        let mut entered = Vec::with_capacity(rest.len());
        for mut kept in right_kept {
            if let Some(whole) = &outgoing_whole {
                kept.get_or_insert_default().push_whole(whole.clone());
            }
            let (page, stamp) = rest.pop().expect("as many as kept parts");
            let id = self.slab.alloc();
            // Born latched, and so until all is applied: nobody may see a part of it.
            let mut right = WriteLatch::latch(&self.slab, id);
            let (page, passed_by) = (Some(page), latch.passed_by);
            *right = Leaf { page, stamp, next, passed_by, kept, ..Leaf::default() };
            next = Some(id);
            entered.push((right.live().low().to_vec(), id));
            latches.push(right);
        }
        latch.next = next;
        for leaf in std::iter::once(&mut *latch).chain(&mut latches) {
            let first_expiry = leaf.live().first_expiry();
            self.due.note(leaf, first_expiry);
        }
        entered.reverse();
        self.directory.insert_all(entered);
        if planted(Bug::BornUnlatched) {
            let unlatched = |mut right: WriteLatch<'a>| {
                let built = right.page.take().expect("just set");
                right.page = Some(Page::new(&self.arena, built.low(), built.high(), 0));
                let id = self.directory.find(built.low(), &pin()).id;
                drop(right);
                let mut right = WriteLatch::latch(&self.slab, id);
                right.page = Some(built);
                right
            };
            latches = latches.into_iter().map(unlatched).collect();
        }
        latches
    }
}

impl Install {
    /// Puts `leaves`, which tile a range, in the place of what that holds.
    pub(crate) fn replace(&self, leaves: Vec<BuiltLeaf>) {
        let tree = &*self.tree;
        let mut built: VecDeque<BuiltLeaf> = leaves.into();
        let (Some(first), Some(last)) = (built.front(), built.back()) else { return };
        let mut low = first.page.low().to_vec();
        let end = last.page.high().map(<[u8]>::to_vec);
        loop {
            let mut garbage = Garbage::default();
            let mut latch = tree.latch_from(&low);
            let reaches_beyond = match (latch.live().high(), &end) {
                (_, None) => false,
                (None, Some(_)) => true,
                (Some(high), Some(end)) => high > &end[..],
            };
            if reaches_beyond {
                drop(tree.split_at(&mut latch, end.as_deref().expect("it is there")));
            }
            let high = latch.live().high().map(<[u8]>::to_vec);
            let part = match &high {
                Some(high) => BuiltLeaf::take_below(&mut built, high),
                None => std::mem::take(&mut built).into(),
            };
            let pages = part.into_iter().map(|leaf| (leaf.page, leaf.stamp)).collect();
            self.put(&mut latch, pages, &mut garbage);
            drop(latch);
            drop(garbage);
            match high {
                Some(high) if end.as_ref().is_none_or(|end| high < *end) => low = high,
                _ => break,
            }
        }
        tree.note_waste();
    }

    /// Replaces a leaf's content.
    fn put<'a>(
        &'a self,
        latch: &mut WriteLatch<'a>,
        pages: Vec<(Page, Seq)>,
        garbage: &mut Garbage,
    ) {
        let (tree, page) = (&*self.tree, latch.live());
        let is_same =
            |new: &Page| new.len() == page.len() && new.fingerprint() == page.fingerprint();
        if pages.len() == 1 && is_same(&pages[0].0) {
            // Nothing that would have to be kept.
            for (page, stamp) in pages {
                if !planted(Bug::SameKeepsStamp) {
                    latch.stamp = stamp;
                }
                garbage.pages.push(page);
            }
            return;
        }
        let mut outgoing_born = None;
        if !planted(Bug::InstallKeepsNothing) {
            let cuts = tree.commit.live_ticks(latch.passed_by);
            let (older, present_from) = latch.whole_pages(&cuts);
            garbage.pages.extend(latch.keep_whole(older));
            outgoing_born = present_from;
        }
        let old_stamp = latch.stamp;
        let mut born = tree.swap_pages(latch, pages, outgoing_born, self.tick, garbage);
        for latch in std::iter::once(latch).chain(&mut born) {
            tree.settle_kept(latch, Some(&self.shown), old_stamp, garbage);
            tree.note_shrunk(latch);
        }
    }

    /// No leaf changed after `seq`: what was beyond it is gone.
    pub(crate) fn clamp(&self, seq: Seq) {
        for id in 0..self.tree.slab.allocated() {
            let mut latch = WriteLatch::latch(&self.tree.slab, LeafId(id));
            latch.stamp = latch.stamp.min(seq);
        }
    }

    /// Shows the new state.
    pub(crate) fn finish(mut self, installed: Installed) {
        self.tree.commit.end_install(installed);
        self.is_done = true;
        self.tree.drop_cut(&self.shown);
        self.tree.note_waste();
    }
}

impl Drop for Install {
    fn drop(&mut self) {
        if !self.is_done {
            self.tree.commit.poison();
        }
    }
}
