//! First and last: reads and pops at the ends of a range.
//!
//! The latches of the whole run are held, ascending, until the end is found: whoever let go of an empty leaf
//! before looking into the next could miss a key that was there all the time.

use std::sync::Arc;

use crate::Result;
use crate::commit::{Denied, KeyspaceSlot, LoggedEffect, View};
use crate::position::Position;
use crate::slice::Slice;
use crate::tree::still::{Bounds, Scan};
use crate::tree::write::{Condition, Garbage, PointWrite};
use crate::tree::{LatchMode, ReadLatch, Tree, WriteLatch};

/// Which end of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    First,
    Last,
}

/// A key and its value, with the internal key.
type Pair = (Vec<u8>, Slice);

impl Tree {
    /// The first or last visible entry within `bounds`.
    pub(crate) fn peek(
        self: &Arc<Self>,
        view: View,
        bounds: &Bounds,
        end: End,
    ) -> Result<Option<Pair>> {
        let (passed, found) = self.latch_end::<ReadLatch<'_>>(bounds, end);
        // With all latches held, as in a scan.
        if self.commit.sight(view)?.is_some() {
            drop((passed, found));
            return self.peek_at_cut(view, bounds, end);
        }
        let Some((latch, at)) = found else { return Ok(None) };
        let mut key = Vec::new();
        latch.live().key_into(at, &mut key);
        let value = latch.live().entry(at).value.to_slice();
        Ok(Some((key, value)))
    }

    fn peek_at_cut(
        self: &Arc<Self>,
        view: View,
        bounds: &Bounds,
        end: End,
    ) -> Result<Option<Pair>> {
        let mut scan = Scan::of_cut(self, view, bounds.clone())?;
        let found = match end {
            End::First => scan.next(),
            End::Last => scan.next_back(),
        };
        Ok(found?.map(|(key, entry)| (key.to_vec(), entry.value.to_slice())))
    }

    /// Removes and returns the first or last visible entry within `bounds`.
    pub(crate) fn pop(
        &self,
        (view, slot): (View, KeyspaceSlot),
        prefix_len: usize,
        bounds: &Bounds,
        end: End,
    ) -> Result<Option<(Pair, Position)>> {
        self.begin_write()?;
        loop {
            let popped =
                self.commit.with_room(|| self.pop_once((view, slot), prefix_len, bounds, end))?;
            if let Some(done) = popped {
                return Ok(done);
            }
        }
    }

    fn pop_once(
        &self,
        (view, slot): (View, KeyspaceSlot),
        prefix_len: usize,
        bounds: &Bounds,
        end: End,
    ) -> std::result::Result<Option<(Pair, Position)>, Denied> {
        let mut garbage = Garbage::default();
        let (others, found) = self.latch_end::<WriteLatch<'_>>(bounds, end);
        self.check_seen(view)?;
        let Some((mut latch, at)) = found else { return Ok(None) };
        let mut key = Vec::new();
        latch.live().key_into(at, &mut key);
        let value = latch.live().entry(at).value.to_slice();
        let condition = &Condition::Always;
        let write =
            PointWrite { view, slot, key: &key, prefix_len, put: None, condition, want_old: false };
        // Only now is it known which key: at most some microseconds of a long one, under its latch.
        let mut body = self.body(|put| put(LoggedEffect::Remove { key: &key }));
        let position = self.change(&mut latch, Ok(at), &write, &mut body, &mut garbage);
        drop(latch);
        drop(others);
        drop(garbage);
        Ok(Some(((key, value), position?)))
    }

    /// Latches from one end of `bounds` to the first leaf with a visible entry. Returns the latches of the
    /// leaves passed, which must stay held while the found one is used, and that one.
    fn latch_end<'a, L: LatchMode<'a>>(
        &'a self,
        bounds: &Bounds,
        end: End,
    ) -> (Vec<L>, Option<(L, usize)>) {
        match end {
            End::First => self.latch_run(self.latch(&bounds.low), bounds, true),
            End::Last => {
                // The way left is not along links: begin further and further left, and walk right to the end.
                let mut fence = bounds.high.clone();
                let mut back = 1u32;
                loop {
                    let mut latch: L = self.latch_before(fence.as_deref());
                    for _ in 1..back {
                        if latch.live().low() <= &bounds.low[..] {
                            break;
                        }
                        let low = latch.live().low().to_vec();
                        drop(latch);
                        latch = self.latch_before(Some(&low));
                    }
                    let low = latch.live().low().to_vec();
                    let is_leftmost = low <= bounds.low;
                    let (passed, found) = self.latch_run(latch, bounds, false);
                    if found.is_some() || is_leftmost {
                        return (passed, found);
                    }
                    drop(passed);
                    fence = Some(low);
                    back = back.saturating_mul(2);
                }
            }
        }
    }

    /// Walks right from `latch` to the end of `bounds`, all latches held; stops at the first visible entry if
    /// `first`, else finds the last one.
    fn latch_run<'a, L: LatchMode<'a>>(
        &'a self,
        latch: L,
        bounds: &Bounds,
        first: bool,
    ) -> (Vec<L>, Option<(L, usize)>) {
        let mut held = vec![latch];
        let mut found = None;
        loop {
            let last = held.len() - 1;
            let page = held[last].live();
            let start = page.seek(&bounds.low);
            let stop = bounds.high.as_deref().map_or(page.len(), |high| page.seek(high));
            let mut places = start..stop;
            let visible = |at: &usize| self.is_visible(&page.entry(*at));
            let place = if first { places.find(visible) } else { places.rfind(visible) };
            found = place.map(|at| (last, at)).or(found);
            let next =
                page.high().filter(|high| bounds.high.as_deref().is_none_or(|end| *high < end));
            match next.map(<[u8]>::to_vec) {
                Some(next) if !(first && found.is_some()) => {
                    let latch = self.latch_right_of(&held[last], &next);
                    held.push(latch);
                }
                _ => break,
            }
        }
        let found = found.map(|(leaf, at)| (held.swap_remove(leaf), at));
        (held, found)
    }
}
