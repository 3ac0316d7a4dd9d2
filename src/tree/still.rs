//! A still: the content at one cut, readable for as long as it is held, whatever is written meanwhile.
//!
//! Leaves are copied out one at a time under their latch and read without it; ranges go on at the high
//! fence of the leaf just read, so that splits and merges in between neither lose nor repeat anything.

use std::ops::ControlFlow;
use std::sync::Arc;

use crate::commit::{Cut, Holder, View};
use crate::planted::{Bug, planted};
use crate::position::Seq;
use crate::slice::Slice;
use crate::tree::directory::LeafId;
use crate::tree::leaf::Leaf;
use crate::tree::page::{Entry, Page};
use crate::tree::{ReadLatch, Tree};
use crate::{Error, Result};

/// See the file's head.
pub(crate) struct Still {
    tree: Arc<Tree>,
    cut: Arc<Cut>,
}

/// A leaf's content at a cut, held by nobody else; its memory is used again for the next.
#[derive(Default)]
pub(crate) struct LeafCopy {
    page: Option<Page>,
    stamp: Seq,
    /// The leaf's right neighbour when it was copied: where to look first for what comes next.
    next: Option<LeafId>,
}

/// Keys `[low, high)`, internal ones; no `high`: to the end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Bounds {
    pub(crate) low: Vec<u8>,
    pub(crate) high: Option<Vec<u8>>,
    /// The caller named an end: there may be few keys up to it.
    pub(crate) has_end: bool,
}

impl Bounds {
    fn is_empty(&self) -> bool {
        self.high.as_ref().is_some_and(|high| *high <= self.low)
    }
}

impl Still {
    /// A still of the present.
    pub(crate) fn take(tree: &Arc<Tree>, holder: Holder) -> Result<Self> {
        Ok(Self { tree: Arc::clone(tree), cut: tree.cut(holder)? })
    }

    pub(crate) fn cut(&self) -> &Cut {
        &self.cut
    }

    pub(crate) fn tree(&self) -> &Arc<Tree> {
        &self.tree
    }

    /// A still judges expiry by the time of its cut, so that it never changes.
    fn is_visible(&self, entry: &Entry<'_>) -> bool {
        entry.expire_at == 0 || self.cut.time_ms < entry.expire_at
    }

    /// Hands what the key had to `read`, which runs under a latch and so must do next to nothing.
    pub(crate) fn read<R>(
        &self,
        key: &[u8],
        read: impl FnOnce(Entry<'_>) -> R,
    ) -> Result<Option<R>> {
        let leaf = self.tree.latch_read(key);
        self.tree.commit.check()?;
        let entry = leaf.entry_at(self.cut.tick, key);
        Ok(entry.filter(|entry| self.is_visible(entry)).map(read))
    }

    /// The value of `key`.
    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Slice>> {
        self.read(key, |entry| entry.value.to_slice())
    }

    /// Copies the content of the leaf that covers `from` into `out`, from that key on.
    pub(crate) fn copy_leaf(&self, from: &[u8], out: &mut LeafCopy) -> Result<()> {
        out.clear();
        if planted(Bug::StillMarks) {
            self.tree.latch_write(from).passed_by = self.cut.id;
        }
        let leaf = self.tree.latch_read(from);
        self.tree.commit.check()?;
        self.copy(&leaf, from, out);
        Ok(())
    }

    /// Copies all of the leaf that covers `key` into `out`.
    fn copy_leaf_around(&self, key: &[u8], out: &mut LeafCopy) -> Result<()> {
        out.clear();
        let leaf = self.tree.latch_read_near(out.next, key);
        self.tree.commit.check()?;
        self.copy(&leaf, &[], out);
        out.next = leaf.next;
        if let Some(next) = out.next {
            self.tree.prefetch_latch(next);
        }
        Ok(())
    }

    /// Copies the content of the leaf that ends at `fence` or covers it (`None`: of the last leaf).
    fn copy_leaf_before(&self, fence: Option<&[u8]>, out: &mut LeafCopy) -> Result<()> {
        out.clear();
        let leaf: ReadLatch<'_> = self.tree.latch_before(fence);
        self.tree.commit.check()?;
        self.copy(&leaf, &[], out);
        Ok(())
    }

    /// The last change of a leaf that the cut holds, or a later one, which hides nothing.
    pub(crate) fn stamp_of(&self, leaf: &Leaf) -> Seq {
        match self.tree.commit.is_rewound(self.cut.tick) {
            true => self.cut.position.seq,
            false => leaf.stamp_at(self.cut.tick).min(self.cut.position.seq),
        }
    }

    pub(crate) fn copy(&self, leaf: &Leaf, from: &[u8], out: &mut LeafCopy) {
        leaf.copy_at(self.cut.tick, from, &mut out.page);
        out.stamp = self.stamp_of(leaf);
    }
}

impl Drop for Still {
    fn drop(&mut self) {
        if planted(Bug::RangeLeaksStill) && self.cut.holder == Holder::Range {
            return;
        }
        self.tree.drop_cut(&self.cut);
    }
}

impl LeafCopy {
    /// Lets go of what it holds, with no latch held: it may be the last to hold a large value.
    pub(crate) fn clear(&mut self) {
        crate::sync::assert_no_latch("freeing large values");
        if let Some(page) = &mut self.page {
            page.clear();
        }
    }

    /// Fences of `page`, from `low` on, and no entries.
    pub(crate) fn set_fences(&mut self, low: &[u8], page: &Page) {
        Page::reset(&mut self.page, &page.arena(), low, page.high(), 0);
    }

    pub(crate) fn page(&self) -> &Page {
        self.page.as_ref().expect("our bug: an empty copy is read")
    }

    /// Seq of the last change at the cut, or a later one.
    pub(crate) fn stamp(&self) -> Seq {
        self.stamp
    }

    /// Keys and values, in bytes.
    pub(crate) fn raw_bytes(&self) -> usize {
        self.page.as_ref().map_or(0, Page::raw_bytes)
    }
}

/// Where entries come from: copies made at once, or a still's leaves as they are needed.
enum Source {
    Still(Arc<Still>),
    /// The whole range, copied under latches held together; judged by the clock at that time.
    Copies {
        copies: Vec<LeafCopy>,
        now_ms: u64,
    },
}

/// A walk over a range from both ends. Owned: holds no latch and no borrow between steps.
pub(crate) struct Scan {
    source: Source,
    /// What is not yet returned lies in these bounds.
    bounds: Bounds,
    front: Side,
    back: Side,
    failed: bool,
}

/// One end of a scan: a leaf's copy and the places in it that are still to come.
#[derive(Default)]
struct Side {
    copy: LeafCopy,
    at: usize,
    end: usize,
    /// The place at which the next leaf is fetched.
    fetch_at: usize,
    key: Vec<u8>,
    is_open: bool,
}

/// So many entries before the end of a leaf the next one is fetched: about as long as that takes.
const AHEAD: usize = 16;

/// An entry as a scan shows it.
pub(crate) type Shown<'a> = (&'a [u8], Entry<'a>);

impl Scan {
    /// Over `still`.
    pub(crate) fn of_still(still: Arc<Still>, bounds: Bounds) -> Self {
        Self::new(Source::Still(still), bounds)
    }

    /// Over the present: of one moment, for a short range without a cut.
    pub(crate) fn of_present(tree: &Arc<Tree>, view: View, bounds: Bounds) -> Result<Self> {
        if let Some(copies) = tree.copy_short(view, &bounds)? {
            let now_ms = tree.clock().now_ms();
            return Ok(Self::new(Source::Copies { copies, now_ms }, bounds));
        }
        Self::of_cut(tree, view, bounds)
    }

    /// Over a cut of the present.
    pub(crate) fn of_cut(tree: &Arc<Tree>, view: View, bounds: Bounds) -> Result<Self> {
        let still = Still::take(tree, Holder::Range)?;
        if still.cut.view != view {
            return Err(Error::NoKeyspace);
        }
        Ok(Self::of_still(Arc::new(still), bounds))
    }

    fn new(source: Source, bounds: Bounds) -> Self {
        let failed = bounds.is_empty();
        Self { source, bounds, front: Side::default(), back: Side::default(), failed }
    }

    fn is_visible(&self, expire_at: u64) -> bool {
        expire_at == 0
            || expire_at
                > match &self.source {
                    Source::Still(still) => still.cut.time_ms,
                    Source::Copies { now_ms, .. } => *now_ms,
                }
    }

    /// Brings the front to the next visible entry. After an error or the end there is nothing more.
    fn advance(&mut self) -> Result<bool> {
        while !self.failed {
            if self.front.at < self.front.end {
                let page = self.front.copy.page();
                let at = self.front.at;
                self.front.at += 1;
                if at == self.front.fetch_at
                    && let (Source::Still(still), Some(next)) = (&self.source, self.front.copy.next)
                {
                    still.tree.prefetch_leaf(next);
                }
                if !self.is_visible(page.expire_at(at)) {
                    continue;
                }
                // Only if the other end was used may it have come to this key.
                if self.back.is_open {
                    page.key_into(at, &mut self.front.key);
                    if self.bounds.high.as_ref().is_some_and(|high| self.front.key >= *high) {
                        self.failed = true;
                        break;
                    }
                    self.bounds.low.clone_from(&self.front.key);
                    self.bounds.low.push(0);
                }
                return Ok(true);
            }
            if self.front.is_open {
                match self.front.copy.page().high() {
                    Some(high) if self.bounds.high.as_deref().is_none_or(|end| high < end) => {
                        self.bounds.low.clear();
                        self.bounds.low.extend_from_slice(high);
                    }
                    _ => {
                        self.failed = true;
                        break;
                    }
                }
            }
            self.load_front().inspect_err(|_| self.failed = true)?;
        }
        Ok(false)
    }

    fn load_front(&mut self) -> Result<()> {
        let side = &mut self.front;
        match &mut self.source {
            Source::Still(still) => still.copy_leaf_around(&self.bounds.low, &mut side.copy)?,
            Source::Copies { copies, .. } => {
                let covers = |copy: &LeafCopy| copy.page().below_high(&self.bounds.low);
                let at = copies.iter().position(covers).expect("the copies cover the range");
                copies[at].page().copy_to(0, &mut side.copy.page);
            }
        }
        let page = side.copy.page();
        side.at = page.seek(&self.bounds.low);
        side.end = self.bounds.high.as_deref().map_or(page.len(), |high| page.seek(high));
        side.fetch_at = side.end.saturating_sub(AHEAD).max(side.at);
        side.is_open = true;
        side.key.clear();
        side.key.extend_from_slice(page.prefix());
        Ok(())
    }

    /// Brings the back to the previous visible entry.
    fn retreat(&mut self) -> Result<bool> {
        while !self.failed {
            if self.back.at < self.back.end {
                self.back.end -= 1;
                let (at, page) = (self.back.end, self.back.copy.page());
                page.key_into(at, &mut self.back.key);
                if self.back.key < self.bounds.low {
                    break;
                }
                if self.front.is_open && self.is_returned_by_front() {
                    break;
                }
                self.bounds.high = Some(self.back.key.clone());
                if self.is_visible(self.back.copy.page().expire_at(at)) {
                    return Ok(true);
                }
                continue;
            }
            if self.back.is_open {
                let low = self.back.copy.page().low();
                if low <= &self.bounds.low[..] {
                    break;
                }
                self.bounds.high = Some(low.to_vec());
            }
            self.load_back().inspect_err(|_| self.failed = true)?;
        }
        self.failed = true;
        Ok(false)
    }

    /// Whether the front has passed the key at the back.
    fn is_returned_by_front(&self) -> bool {
        let page = self.front.copy.page();
        let Some(last) = self.front.at.checked_sub(1) else { return false };
        let mut key = Vec::new();
        page.key_into(last, &mut key);
        self.back.key <= key
    }

    fn load_back(&mut self) -> Result<()> {
        let side = &mut self.back;
        match &mut self.source {
            Source::Still(still) => {
                still.copy_leaf_before(self.bounds.high.as_deref(), &mut side.copy)?;
            }
            Source::Copies { copies, .. } => {
                let reaches = |copy: &&LeafCopy| match (copy.page().high(), &self.bounds.high) {
                    (Some(high), Some(end)) => high >= &end[..],
                    (high, _) => high.is_none(),
                };
                let found = copies.iter().find(reaches).expect("the copies cover the range");
                found.page().copy_to(0, &mut side.copy.page);
            }
        }
        let page = side.copy.page();
        side.at = page.seek(&self.bounds.low);
        side.end = self.bounds.high.as_deref().map_or(page.len(), |high| page.seek(high));
        side.is_open = true;
        Ok(())
    }

    /// The next entry from the front.
    pub(crate) fn next(&mut self) -> Result<Option<Shown<'_>>> {
        if !self.advance()? {
            return Ok(None);
        }
        let Side { copy, at, key, .. } = &mut self.front;
        let entry = copy.page().show(*at - 1, key);
        Ok(Some((key, entry)))
    }

    /// The next entry from the back.
    pub(crate) fn next_back(&mut self) -> Result<Option<Shown<'_>>> {
        if !self.retreat()? {
            return Ok(None);
        }
        let page = self.back.copy.page();
        Ok(Some((&self.back.key, page.entry(self.back.end))))
    }

    /// Shows every entry that is left to `visit`, with no latch held.
    pub(crate) fn each(
        &mut self,
        mut visit: impl FnMut(&[u8], Entry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        while let Some((key, entry)) = self.next()? {
            if visit(key, entry).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Tree {
    /// Copies a range that lies in few leaves, their latches held together from left to right to the end.
    fn copy_short(&self, view: View, bounds: &Bounds) -> Result<Option<Vec<LeafCopy>>> {
        let most = if bounds.has_end { 4 } else { 1 };
        let Some(end) = bounds.high.as_deref().filter(|_| !bounds.is_empty()) else {
            return Ok(None);
        };
        let copy = |latch: &ReadLatch<'_>| {
            let mut copy = LeafCopy::default();
            latch.live().copy_to(0, &mut copy.page);
            copy
        };
        let mut copies = Vec::new();
        let mut latches = vec![self.latch_read(&bounds.low)];
        while let Some(high) = latches[latches.len() - 1].live().high()
            && high < end
        {
            if latches.len() == most {
                return Ok(None);
            }
            let high = high.to_vec();
            if planted(Bug::ScanHandOverHand) {
                copies.extend(latches.drain(..).map(|latch| copy(&latch)));
                latches.push(self.latch_read(&high));
                continue;
            }
            let next = self.latch_right_of(&latches[latches.len() - 1], &high);
            latches.push(next);
        }
        // With all of them held: of what is installed meanwhile none has anything, or all have all.
        if self.commit.sight(view)?.is_some() {
            return Ok(None);
        }
        copies.extend(latches.iter().map(copy));
        Ok(Some(copies))
    }
}
