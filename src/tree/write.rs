//! One key's write: latch, make room, take a place in the order, keep, apply.
//!
//! Everything that can fail or wait happens before the commit lock; what a replaced entry owned is freed
//! after the latch is released.

use std::sync::Arc;

use crate::commit::{
    Body, Cut, Delta, Denied, Encoded, Forwarded, KeyspaceSlot, LoggedEffect, Prepared, Refused,
    View,
};
use crate::fingerprint;
use crate::planted::{Bug, planted};
use crate::position::{Position, Seq};
use crate::slice::{LargeBytes, Slice};
use crate::tree::leaf::{Whole, mark_retained};
use crate::tree::page::{
    AREA_MAX, Entry, INLINE_VALUE_MAX, Large, Page, Place, Trash, Value, common_prefix,
};
use crate::tree::{LatchMode, Tree, WriteLatch};
use crate::{Error, Result};

/// What a write leaves to be freed once no latch is held.
#[derive(Default)]
pub(crate) struct Garbage {
    pub(crate) larges: Vec<Arc<LargeBytes>>,
    pub(crate) pages: Vec<Page>,
}

impl Garbage {
    /// Takes whole pages that nothing needs.
    pub(crate) fn take_whole(&mut self, pages: Vec<Whole>) {
        self.pages.extend(pages.into_iter().filter_map(|whole| Arc::into_inner(whole.page)));
    }
}

/// A value on its way in, hashed before any latch is taken.
pub(crate) struct Put<'a> {
    pub(crate) value: NewValue<'a>,
    pub(crate) hash: u64,
    /// Unix milliseconds; 0 = never.
    pub(crate) expire_at: u64,
}

/// The bytes of a [`Put`].
pub(crate) enum NewValue<'a> {
    Bytes(&'a [u8]),
    Large(Arc<LargeBytes>),
}

impl Put<'_> {
    pub(crate) fn entry(&self) -> Entry<'_> {
        let value = match &self.value {
            NewValue::Bytes(bytes) => Value::Bytes(bytes),
            NewValue::Large(large) => Value::Large(Large::of(large)),
        };
        Entry { value, expire_at: self.expire_at, died: 0 }
    }

    /// What the log says of it.
    pub(crate) fn effect<'k>(&'k self, key: &'k [u8]) -> LoggedEffect<'k> {
        let value = match &self.value {
            NewValue::Bytes(bytes) => bytes,
            NewValue::Large(large) => large.bytes(),
        };
        LoggedEffect::Put { key, value, expire_at: self.expire_at }
    }
}

/// What must be true of the visible present for a write to take place.
pub(crate) enum Condition<'a> {
    Always,
    /// The key has no value.
    Vacant,
    /// The key has this value (`None`: no value), with any expiry or exactly this one.
    Is {
        value: Option<&'a [u8]>,
        verified: Option<&'a Arc<LargeBytes>>,
        expire_at: Option<u64>,
    },
}

/// A write of one key: `None` removes.
pub(crate) struct PointWrite<'a> {
    pub(crate) view: View,
    pub(crate) slot: KeyspaceSlot,
    /// The internal key, its keyspace's prefix in front.
    pub(crate) key: &'a [u8],
    /// Length of that prefix: not counted among the user's bytes.
    pub(crate) prefix_len: usize,
    pub(crate) put: Option<Put<'a>>,
    pub(crate) condition: &'a Condition<'a>,
    /// Whether the caller wants what the key had.
    pub(crate) want_old: bool,
}

/// What became of a write.
pub(crate) enum Written {
    /// Done; what the key visibly had, if asked for.
    Done { old: Option<Slice>, position: Position },
    /// The condition does not hold, or there was nothing to remove: nothing changed. What the key visibly has.
    Unmet { current: Option<Slice> },
    /// A large value of the right length must be compared first, which no latch is held for.
    Compare(Arc<LargeBytes>),
}

/// How a condition stands against what the key visibly has.
enum Verdict {
    Holds,
    Fails,
    Compare(Arc<LargeBytes>),
}

impl Condition<'_> {
    fn judge(&self, current: Option<&Entry<'_>>) -> Verdict {
        let holds = match (self, current) {
            (Condition::Always, _) | (Condition::Vacant, None) => true,
            (Condition::Vacant, Some(_)) => false,
            (Condition::Is { value, .. }, None) => value.is_none(),
            (Condition::Is { value: None, .. }, Some(_)) => false,
            (Condition::Is { value: Some(bytes), verified, expire_at }, Some(entry)) => {
                let same_expiry = expire_at.is_none_or(|at| at == entry.expire_at);
                match entry.value {
                    Value::Large(large)
                        if same_expiry && large.get().bytes().len() == bytes.len() =>
                    {
                        match verified {
                            Some(verified) if large.is(verified) => true,
                            _ => return Verdict::Compare(large.to_arc()),
                        }
                    }
                    Value::Large(_) => false,
                    value => same_expiry && value.bytes() == *bytes,
                }
            }
        };
        if holds { Verdict::Holds } else { Verdict::Fails }
    }
}

impl Tree {
    /// Writes one key.
    pub(crate) fn write(&self, write: &PointWrite<'_>) -> Result<Written> {
        self.begin_write()?;
        loop {
            let mut body = self.body(|put| {
                put(match &write.put {
                    Some(new) => new.effect(write.key),
                    None => LoggedEffect::Remove { key: write.key },
                });
            });
            if let Some(done) = self.commit.with_room(|| self.write_once(write, &mut body))? {
                return Ok(done);
            }
        }
    }

    /// Applies a record of another node's that puts one key and does nothing else, at less cost than [`forward`](Self::forward). The view, the
    /// condition and the old value of `write` are not looked at: the record has its place.
    pub(crate) fn forward_put(&self, write: &PointWrite<'_>, record: Forwarded) -> Result<()> {
        let mut body = Body::Forwarded(record);
        self.commit.with_room(|| {
            let latch = self.latch_write(write.key);
            latch.prefetch_kept();
            latch.live().prefetch_free();
            let at = latch.live().find(write.key);
            self.change_last(latch, at, write, &mut body)
        })?;
        Ok(())
    }

    /// What a batch does, encoded if there is a log for it.
    #[inline]
    pub(crate) fn body(&self, effects: impl FnOnce(&mut dyn FnMut(LoggedEffect<'_>))) -> Body {
        match self.commit.is_logged() {
            true => Body::Logged(Encoded::of(self.config.clock.now_ms(), effects)),
            false => Body::Unlogged,
        }
    }

    fn write_once(
        &self,
        write: &PointWrite<'_>,
        body: &mut Body,
    ) -> std::result::Result<Written, Denied> {
        let latch = self.latch_write(write.key);
        self.check_seen(write.view)?;
        latch.prefetch_kept();
        latch.live().prefetch_free();
        let at = latch.live().find(write.key);
        let (current, verdict) = {
            let page = latch.live();
            let entry = at.ok().map(|at| page.entry(at));
            let entry = entry.filter(|entry| self.is_visible(entry));
            let verdict = match write.condition.judge(entry.as_ref()) {
                // There is nothing to remove: no batch.
                Verdict::Holds if write.put.is_none() && entry.is_none() => Verdict::Fails,
                verdict => verdict,
            };
            let wanted = match verdict {
                Verdict::Holds => write.want_old,
                Verdict::Fails => !matches!(write.condition, Condition::Always),
                Verdict::Compare(_) => false,
            };
            (entry.filter(|_| wanted).map(|entry| entry.value.to_slice()), verdict)
        };
        match verdict {
            Verdict::Holds => {}
            Verdict::Fails => return Ok(Written::Unmet { current }),
            Verdict::Compare(large) => return Ok(Written::Compare(large)),
        }
        if let Some(put) = &write.put {
            self.check_growth(&latch, at, write.key, put)?;
        }
        let position = self.change_last(latch, at, write, body)?;
        Ok(Written::Done { old: current, position })
    }

    /// As [`change`](Self::change), and lets go of the leaf; what is garbage then goes with no latch held.
    fn change_last<'a>(
        &'a self,
        mut latch: WriteLatch<'a>,
        at: Place,
        write: &PointWrite<'_>,
        body: &mut Body,
    ) -> std::result::Result<Position, Denied> {
        let mut garbage = Garbage::default();
        let position = self.change(&mut latch, at, write, body, &mut garbage);
        drop(latch);
        drop(garbage);
        self.note_waste();
        position
    }

    /// Fails if putting `put` would grow memory beyond the limit. Sizes of entries stand for those of pages.
    fn check_growth(
        &self,
        latch: &WriteLatch<'_>,
        at: Place,
        key: &[u8],
        put: &Put<'_>,
    ) -> Result<()> {
        if self.config.memory_limit == u64::MAX {
            return Ok(());
        }
        let new_len = put.entry().value.len();
        let growth = match at {
            Err(_) => key.len() + new_len,
            Ok(at) => {
                let old_len = latch.live().entry(at).value.len();
                let kept = if self.commit.newest_hint(latch.passed_by).is_none() {
                    0
                } else {
                    key.len() + old_len
                };
                new_len.saturating_sub(old_len) + kept
            }
        };
        if growth == 0 { Ok(()) } else { self.check_memory(growth) }
    }

    /// Refuses a write of `view` whose latches are held, unless they hold the present.
    #[inline]
    pub(crate) fn check_seen(&self, view: View) -> Result<()> {
        match self.commit.sight(view)? {
            None => Ok(()),
            // Only what is a replica has another state installed.
            Some(_) => Err(Error::ReadOnly),
        }
    }

    /// What every write does first, with no latch held.
    pub(crate) fn begin_write(&self) -> Result<()> {
        self.commit.check_writable()?;
        if !self.commit.has_history() {
            self.commit.begin_history(crate::position::HistoryId::own()?);
        }
        Ok(())
    }

    /// Changes one key of a latched leaf, which is or belongs at `found`. The latch may move on to the leaf's
    /// right half.
    pub(crate) fn change<'a>(
        &'a self,
        latch: &mut WriteLatch<'a>,
        found: Place,
        write: &PointWrite<'_>,
        body: &mut Body,
        garbage: &mut Garbage,
    ) -> std::result::Result<Position, Denied> {
        let key = write.key;
        let new = write.put.as_ref().map(|put| put.entry());
        let mut at = self.make_room(latch, found, key, new.as_ref());
        let delta = delta_of(latch.live(), at, write);
        // Prepared for the newest cut there seems to be; if another is taken meanwhile, for any.
        let mut newest = self.commit.newest_hint(latch.passed_by);
        if planted(Bug::NewestAfterLock) {
            newest = Some(u64::MAX - 1);
        }
        let (mut ticket, keeps) = loop {
            let keeps =
                newest.is_some_and(|newest| self.prepare_keep(latch, key, at, newest, garbage));
            let prepared = Prepared {
                serves: match newest {
                    _ if planted(Bug::NewestBeforeLock) => u64::MAX,
                    newest => newest.map_or(0, |newest| newest + 1),
                },
                passed_by: latch.passed_by,
                listed: if keeps { latch.newest_listed() } else { u64::MAX },
                drops: None,
            };
            let denied = match self.commit.take(&[(write.slot, delta)], prepared, body) {
                Ok(ticket) => break (ticket, keeps),
                Err(Refused::NewCut) => {
                    newest = Some(u64::MAX - 1);
                    // Making room to keep moves no entry of the page.
                    at = latch.live().find(key);
                    continue;
                }
                Err(Refused::NoRoom(len)) => Denied::NoRoom(len),
                Err(Refused::Unencoded) => Denied::Unencoded,
                Err(Refused::Gated) => Denied::Gated,
                Err(Refused::Error(error)) => Denied::Error(error),
            };
            let stamp = latch.stamp;
            self.settle_kept(latch, None, stamp, garbage);
            return Err(denied);
        };
        if planted(Bug::NewestAfterLock) {
            ticket.look_again();
        }
        if planted(Bug::SeqBeforeLatch) {
            drop(std::mem::replace(latch, self.stand_in()));
            *latch = self.latch_write(key);
            let found = latch.live().find(key);
            at = self.make_room(latch, found, key, new.as_ref());
        }
        // Nothing from here to `done` may fail.
        let leaf = &mut **latch;
        let must_keep = ticket.newest.is_some_and(|newest| leaf.must_keep(key, newest));
        let must_keep = keeps && must_keep && !self.forgets(leaf.live(), at, &new);
        if must_keep && !planted(Bug::KeepAfterApply) {
            leaf.keep_entry(key, at, ticket.tick);
        }
        let page = leaf.live_mut();
        let old_used = page.used();
        let trash: Trash = match (at, &new) {
            (Ok(at), Some(new)) => page.replace(at, key, new),
            (Ok(at), None) => page.remove(at),
            (Err(at), Some(new)) => {
                page.insert(at, key, new);
                None
            }
            (Err(_), None) => None,
        };
        page.add_fingerprint(delta.fingerprint);
        if let Some(new) = &new {
            self.due.note(leaf, new.expire_at);
        }
        if must_keep && planted(Bug::KeepAfterApply) {
            leaf.keep_entry(key, leaf.live().find(key), ticket.tick);
        }
        let old_stamp = std::mem::replace(&mut leaf.stamp, ticket.position.seq);
        mark_retained(&trash, leaf);
        garbage.larges.extend(trash);
        if keeps {
            self.settle_kept(latch, ticket.cut.as_deref(), old_stamp, garbage);
        }
        let position = ticket.done();
        // Of what is put, only that which makes the leaf small: else small ones would be noted for ever. That it
        // takes less room than before does not show in its length: long values lie outside.
        if new.is_none() || old_used > self.config.leaf_bytes / 4 {
            self.note_shrunk(latch);
        }
        Ok(position)
    }

    /// Whether a planted bug keeps nothing of the entry at `at`.
    fn forgets(&self, page: &Page, at: Place, new: &Option<Entry<'_>>) -> bool {
        let is_past = || at.is_ok_and(|at| !self.is_visible(&page.entry(at)));
        (planted(Bug::RemoveKeepsNothing) && new.is_none())
            || (planted(Bug::ExpiredKeepsNothing) && is_past())
    }

    /// The latch of a leaf nobody knows, for planted bugs that let one go too early.
    pub(crate) fn stand_in(&self) -> WriteLatch<'_> {
        WriteLatch::latch(&self.slab, self.slab.alloc())
    }

    /// Makes the leaf able to keep one more entry, if the cut of tick `newest` needs it to.
    fn prepare_keep(
        &self,
        latch: &mut WriteLatch<'_>,
        key: &[u8],
        at: Place,
        newest: u64,
        garbage: &mut Garbage,
    ) -> bool {
        if !latch.must_keep(key, newest) {
            return false;
        }
        let bytes = cost_to_keep(latch.live(), key, at);
        if latch.would_outweigh(bytes) {
            let cuts = self.commit.live_ticks(latch.passed_by);
            garbage.pages.extend(latch.keep_whole_copies(&cuts));
            if !latch.must_keep(key, newest) {
                return true;
            }
        }
        latch.make_room_to_keep(bytes);
        true
    }

    /// After something was kept, or room was made for it: puts the leaf's range on the list of `cut`, the
    /// newest live one, if it is not listed there yet. What no list will ever lead to is freed on the spot.
    pub(crate) fn settle_kept(
        &self,
        latch: &mut WriteLatch<'_>,
        cut: Option<&Cut>,
        old_stamp: Seq,
        garbage: &mut Garbage,
    ) {
        let range = {
            let page = latch.live();
            (Slice::new(page.low()), page.high().map(Slice::new))
        };
        let Some(kept) = &mut latch.kept else { return };
        let is_listed = match cut {
            Some(cut) if kept.listed.contains(&cut.id) => true,
            Some(cut) => {
                kept.note_stamp(cut.tick, old_stamp);
                kept.listed.push(cut.id);
                cut.list(range)
            }
            // Listed before: then that list's sweep, which needs this latch, is still to come.
            None => !kept.listed.is_empty(),
        };
        if !is_listed {
            garbage.pages.extend(self.sweep_leaf(latch, None));
        }
    }

    /// Makes the leaf able to take `new` under `key` (`None`: nothing is needed), by other memory or by a
    /// split, after which the latch is that of the half the key lies in. `found` says where the key is or
    /// belongs; returns where it does afterwards.
    fn make_room<'a>(
        &'a self,
        latch: &mut WriteLatch<'a>,
        found: Place,
        key: &[u8],
        new: Option<&Entry<'_>>,
    ) -> Place {
        let mut at = found;
        loop {
            let page = latch.live();
            let (need, more) = match (new, at) {
                (None, _) => (0, 0),
                (Some(new), Ok(at)) => (page.replace_cost(at, key, new), 0),
                (Some(new), Err(_)) => (page.cost(key, new), 1),
            };
            if self.give_room(latch, need, more) {
                return at;
            }
            self.split(latch, key, at);
            at = latch.live().find(key);
        }
    }

    /// Gives the leaf's page room for `need` bytes and `more` entries, or tells that only a split can.
    pub(crate) fn give_room(&self, latch: &mut WriteLatch<'_>, need: usize, more: usize) -> bool {
        let page = latch.live_mut();
        let has_place = more == 0 || page.len() + more <= self.config.leaf_entries;
        let used = page.used() + need;
        let room = page.free() + page.garbage();
        // What blocks and fences take besides is less than the quarter: a new page is never sparse again.
        let is_sparse = room > need + used / 2 + page.cap() / 4 + 512;
        if need <= page.free() && has_place && !is_sparse {
            return true;
        }
        // A leaf always has room for two entries of the largest size.
        let fits = has_place && used <= self.config.leaf_bytes;
        if !fits && (page.len() >= 2 || more >= 2) {
            return false;
        }
        if !is_sparse && room >= need + slack(used) / 2 {
            page.compact();
        } else {
            let page = latch.page.take().expect("latched alive");
            latch.page = Some(page.resized((used + slack(used)).min(AREA_MAX)));
        }
        true
    }

    /// Splits the leaf, content unchanged, and goes on with the half that `key` lies in.
    fn split<'a>(&'a self, latch: &mut WriteLatch<'a>, key: &[u8], at: Place) {
        let page = latch.live();
        // An ascending load leaves full leaves behind.
        let first_right = match at {
            Err(at) if page.is_ascending(at) => at,
            _ => page.middle(),
        };
        let mut left_last = Vec::new();
        page.key_into(first_right - 1, &mut left_last);
        let mut right_first = key.to_vec();
        if first_right < page.len() {
            page.key_into(first_right, &mut right_first);
        }
        let mut middle = &right_first[..common_prefix(&left_last, &right_first) + 1];
        if planted(Bug::FenceTooLow) {
            middle = &left_last;
        }
        if planted(Bug::SplitEnteredLater) || planted(Bug::NextLeafLookedUp) {
            let middle = middle.to_vec();
            let right = self.divide(latch, first_right, &middle);
            let id = latch.next.expect("it was just divided");
            drop(right);
            drop(std::mem::replace(latch, self.stand_in()));
            self.directory.insert(&middle, id);
            *latch = self.latch_write(key);
            return;
        }
        let right = self.divide(latch, first_right, middle);
        // Entered while latched: who finds the leaf dead later knows that the directory has forgotten it.
        self.directory.insert(middle, latch.next.expect("it was just divided"));
        if key >= middle {
            *latch = right;
        }
    }

    /// Splits the leaf at `middle`, content unchanged. Returns the right half, latched as the left one is.
    pub(super) fn split_at<'a>(
        &'a self,
        latch: &mut WriteLatch<'a>,
        middle: &[u8],
    ) -> WriteLatch<'a> {
        let first_right = latch.live().seek(middle);
        let right = self.divide(latch, first_right, middle);
        self.directory.insert(middle, latch.next.expect("it was just divided"));
        right
    }

    /// Gives what lies from the entry at `first_right` on, and from `middle`, to a new leaf, which is latched and which the directory does not know yet.
    fn divide<'a>(
        &'a self,
        latch: &mut WriteLatch<'a>,
        first_right: usize,
        middle: &[u8],
    ) -> WriteLatch<'a> {
        let page = latch.live();
        let (low, high) = (page.low().to_vec(), page.high().map(<[u8]>::to_vec));
        let left = page.copied(0..first_right, &low, Some(middle), slack(0));
        let right = page.copied(first_right..page.len(), middle, high.as_deref(), slack(0));
        let id = self.slab.alloc();
        // Nobody knows the number yet, but for readers who try it and go away again.
        let mut right_latch = WriteLatch::latch(&self.slab, id);
        right_latch.page = Some(right);
        right_latch.stamp = latch.stamp;
        if planted(Bug::SplitDropsStamp) {
            right_latch.stamp = Seq(0);
        }
        right_latch.next = latch.next;
        right_latch.passed_by = latch.passed_by;
        right_latch.is_candidate = false;
        right_latch.due = 0;
        if !planted(Bug::DueLostAtSplit) {
            let first_expiry = right_latch.live().first_expiry();
            self.due.note(&mut right_latch, first_expiry);
        }
        right_latch.kept = latch.split_kept(&low, middle, high.as_deref());
        if planted(Bug::SplitDropsKept) {
            right_latch.kept = None;
        }
        latch.page = Some(left);
        latch.next = Some(id);
        right_latch
    }
}

/// Free room that a growing page gets beyond what it needs: little, since it is never used on average.
pub(crate) fn slack(used: usize) -> usize {
    used / 16 + 32
}

/// What keeping the entry at `at` takes, or that there is none under `key`.
pub(crate) fn cost_to_keep(page: &Page, key: &[u8], at: Place) -> usize {
    let old = match at {
        Ok(at) => Entry { died: 1, ..page.entry(at) },
        Err(_) => Entry { value: Value::Absent, expire_at: 0, died: 1 },
    };
    page.cost(key, &old)
}

/// What the write changes in its keyspace's totals.
fn delta_of(page: &Page, at: Place, write: &PointWrite<'_>) -> Delta {
    let mut delta = Delta::default();
    let key_len = write.key.len() - write.prefix_len;
    let len = |entry: &Entry<'_>| (key_len + entry.value.len()).cast_signed() as i64;
    if let Ok(at) = at {
        let old = page.entry(at);
        let old_fingerprint = fingerprint::entry(write.key, old.value.hash(), old.expire_at);
        delta.fingerprint = 0u64.wrapping_sub(old_fingerprint);
        delta.records -= 1;
        delta.bytes -= len(&old);
    }
    if let Some(put) = &write.put {
        let new_fingerprint = fingerprint::entry(write.key, put.hash, put.expire_at);
        delta.fingerprint = delta.fingerprint.wrapping_add(new_fingerprint);
        delta.records += 1;
        delta.bytes += len(&put.entry());
    }
    delta
}

/// Hashes and, if large, shares a value on its way in; called with no latch held.
pub(crate) fn new_value<'a>(tree: &Tree, bytes: &'a [u8], expire_at: u64) -> Result<Put<'a>> {
    if bytes.len() > INLINE_VALUE_MAX && bytes.len() <= crate::MAX_VALUE_LEN {
        // Before the bytes are copied: old and new are both there for a moment.
        tree.check_memory(bytes.len())?;
    }
    given_value(tree, bytes, expire_at)
}

/// A value that its owner keeps for a while before it is put: a large one is copied once and for all.
pub(crate) fn owned_value(tree: &Tree, bytes: &[u8]) -> Result<Slice> {
    Ok(match new_value(tree, bytes, 0)?.value {
        NewValue::Bytes(bytes) => Slice::new(bytes),
        NewValue::Large(large) => Slice::large(large),
    })
}

/// As [`new_value`], of an [`owned_value`].
pub(crate) fn shared_value(value: &Slice, expire_at: u64) -> Put<'_> {
    match value.as_large() {
        Some(large) => {
            Put { value: NewValue::Large(Arc::clone(large)), hash: large.hash(), expire_at }
        }
        None => {
            Put { value: NewValue::Bytes(value), hash: fingerprint::value_hash(value), expire_at }
        }
    }
}

/// As [`new_value`], whatever memory it takes: another node has taken it already.
pub(crate) fn given_value<'a>(tree: &Tree, bytes: &'a [u8], expire_at: u64) -> Result<Put<'a>> {
    if bytes.len() > crate::MAX_VALUE_LEN {
        return Err(Error::ValueTooLarge { len: bytes.len() });
    }
    let hash = fingerprint::value_hash(bytes);
    let value = match bytes.len() > INLINE_VALUE_MAX {
        true => NewValue::Large(LargeBytes::new(bytes.into(), hash, tree.account())),
        false => NewValue::Bytes(bytes),
    };
    Ok(Put { value, hash, expire_at })
}
