//! What a transaction has read must be as it was when it commits: all leaves it read and all it changes are latched
//! together, from left to right, each once, and looked at before anything is changed.
//!
//! That is optimistic concurrency control (Kung and Robinson, "On Optimistic Methods for Concurrency Control",
//! 1981) with the latches of a batch in the place of a critical section: whoever commits later finds what this one
//! did, whoever changes what this one read needs a latch that is held. *Contents* are compared, not versions: a
//! leaf's stamp only spares the comparison where nothing in the leaf has changed at all.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;

use crate::commit::{Since, View};
use crate::planted::{Bug, planted};
use crate::slice::Slice;
use crate::tree::batch::Changes;
use crate::tree::leaf::Leaf;
use crate::tree::page::{Entry, Value};
use crate::tree::still::Still;
use crate::tree::{LatchMode, ReadLatch, Tree, WriteLatch};
use crate::{Error, Result};

/// What a key visibly had.
#[derive(Clone)]
pub(crate) struct Seen {
    pub(crate) value: Slice,
    pub(crate) expire_at: u64,
}

impl Seen {
    pub(crate) fn of(entry: &Entry<'_>) -> Self {
        Self { value: entry.value.to_slice(), expire_at: entry.expire_at }
    }

    /// Whether `other` is the same. Of large values only one that is there once is the same: nobody compares them under a latch.
    pub(crate) fn is(&self, other: &Entry<'_>) -> bool {
        self.expire_at == other.expire_at
            && match other.value {
                Value::Large(large) => self.value.as_large().is_some_and(|own| large.is(own)),
                value => self.value.as_large().is_none() && *self.value == *value.bytes(),
            }
    }
}

/// A range of keys of which every entry was seen, and the gaps between them.
pub(crate) struct SeenRange {
    pub(crate) low: Vec<u8>,
    pub(crate) high: Option<Vec<u8>>,
    /// When the first of the entries seen expires; `u64::MAX` if none does.
    pub(crate) first_expiry: u64,
}

/// What a transaction has read, all of one moment.
pub(crate) struct ReadSet {
    pub(crate) view: View,
    /// The moment; nothing was read if there is none.
    pub(crate) since: Option<Since>,
    /// A still of that moment; there is one if ranges were read.
    pub(crate) still: Option<Arc<Still>>,
    pub(crate) keys: BTreeMap<Vec<u8>, Option<Seen>>,
    pub(crate) ranges: Vec<SeenRange>,
}

/// What a key had at a moment.
pub(crate) enum Sighted {
    Seen(Option<Seen>),
    /// Its leaf has changed since, or may have: a still would have to tell.
    Moved,
}

/// A leaf latched to be read or to be changed.
pub(super) enum Held<'a> {
    Read(ReadLatch<'a>),
    Write(WriteLatch<'a>),
}

impl Deref for Held<'_> {
    type Target = Leaf;
    fn deref(&self) -> &Leaf {
        match self {
            Held::Read(latch) => latch,
            Held::Write(latch) => latch,
        }
    }
}

/// Keys that are needed: one, or those from `low` up to an end.
struct Need<'a> {
    low: &'a [u8],
    /// `None`: `low` alone.
    end: Option<End<'a>>,
    is_write: bool,
}

/// Where a range ends: before a key, or (`None`) with everything.
type End<'a> = Option<&'a [u8]>;

/// How far the ranges reach that have begun so far.
#[derive(Default)]
struct Reach<'a>(Option<End<'a>>);

impl<'a> Reach<'a> {
    fn extend(&mut self, end: Option<End<'a>>) {
        self.0 = match (self.0, end) {
            (reach, None) => reach,
            (None, end) => end,
            (Some(None), _) | (_, Some(None)) => Some(None),
            (Some(Some(a)), Some(Some(b))) => Some(Some(a.max(b))),
        };
    }

    fn is_beyond(&self, key: &[u8]) -> bool {
        match self.0 {
            None => false,
            Some(end) => end.is_none_or(|end| end > key),
        }
    }
}

impl ReadSet {
    fn needs<'a>(&'a self, changes: &'a Changes<'_>) -> Vec<Need<'a>> {
        let range =
            |low: &'a [u8], high: End<'a>, is_write| Need { low, end: Some(high), is_write };
        let key = |low, is_write| Need { low, end: None, is_write };
        let mut needs: Vec<Need<'a>> = Vec::with_capacity(self.keys.len() + changes.ops.len());
        needs.extend(self.keys.keys().map(|low| key(low, false)));
        needs.extend(self.ranges.iter().map(|seen| range(&seen.low, seen.high.as_deref(), false)));
        needs.extend(changes.ops.iter().map(|op| key(op.key, true)));
        needs.extend(changes.ranges.iter().map(|gone| range(&gone.low, Some(&gone.high), true)));
        needs.sort_by(|a, b| a.low.cmp(b.low));
        needs
    }
}

impl Tree {
    /// What the key visibly has, judged by `now_ms`, if its leaf is as it was at `since`.
    pub(crate) fn read_since(
        &self,
        view: View,
        key: &[u8],
        since: Since,
        now_ms: u64,
    ) -> Result<Sighted> {
        let leaf = self.latch_read(key);
        if self.commit.sight(view)?.is_some() || !self.commit.is_unchanged(since, leaf.stamp) {
            return Ok(Sighted::Moved);
        }
        let page = leaf.live();
        let entry = page.find(key).ok().map(|at| page.entry(at));
        let entry = entry.filter(|entry| is_visible_at(entry, now_ms));
        Ok(Sighted::Seen(entry.as_ref().map(Seen::of)))
    }

    /// Latches all leaves that `changes` and `reads` need, ascending, each once: those in which nothing is to be
    /// changed to be read.
    pub(super) fn latch_needed(&self, changes: &Changes<'_>, reads: &ReadSet) -> Vec<Held<'_>> {
        let needs = reads.needs(changes);
        let mut held: Vec<Held<'_>> = Vec::new();
        // Needs before this begin left of where the last leaf ends.
        let mut next = 0;
        let (mut all, mut writes) = (Reach::default(), Reach::default());
        let Some(first) = needs.first() else { return held };
        let mut key = first.low.to_vec();
        loop {
            // Whether something in `[key, high)` is to be changed.
            let is_written = |high: End<'_>| {
                let begins = |need: &&Need<'_>| high.is_none_or(|high| need.low < high);
                let mut coming = needs[next..].iter().take_while(begins);
                writes.is_beyond(&key) || coming.any(|need| need.is_write)
            };
            // A guess, for most leaves right: what begins here.
            let mut exclusive = writes.is_beyond(&key)
                || needs[next..]
                    .iter()
                    .take_while(|need| *need.low <= *key)
                    .any(|need| need.is_write);
            let leaf = loop {
                let leaf = match exclusive {
                    true => Held::Write(self.latch_behind(held.last(), &key)),
                    false => Held::Read(self.latch_behind(held.last(), &key)),
                };
                if exclusive || !is_written(leaf.live().high()) {
                    break leaf;
                }
                // Let go of, and looked for again: nothing has been looked at in it yet.
                drop(leaf);
                exclusive = true;
            };
            let high = leaf.live().high().map(<[u8]>::to_vec);
            held.push(leaf);
            let Some(high) = high else { return held };
            while let Some(need) = needs.get(next).filter(|need| *need.low < *high) {
                all.extend(need.end);
                if need.is_write {
                    writes.extend(need.end);
                }
                next += 1;
            }
            key = match needs.get(next) {
                _ if all.is_beyond(&high) => high,
                Some(need) => need.low.to_vec(),
                None => return held,
            };
        }
    }

    /// Latches the leaf that covers `key`, which lies right of the one that is held.
    fn latch_behind<'a, L: LatchMode<'a>>(&'a self, held: Option<&Held<'a>>, key: &[u8]) -> L {
        match held {
            Some(held) => self.latch_right_of(held, key),
            None => self.latch(key),
        }
    }

    /// Whether the leaves held, which are all that `reads` needs, show what it saw.
    ///
    /// # Errors
    /// [`Error::ReadOnly`], [`Error::Poisoned`], [`Error::NoKeyspace`] if names mean something else by now.
    pub(super) fn is_as_read(&self, held: &[Held<'_>], reads: &ReadSet) -> Result<bool> {
        self.check_seen(reads.view)?;
        let Some(since) = reads.since else { return Ok(true) };
        let now_ms = self.clock().now_ms();
        let is_unchanged = |leaf: &Leaf| self.commit.is_unchanged(since, leaf.stamp);
        let mut leaves = held.iter();
        let mut leaf = leaves.next();
        for (key, seen) in &reads.keys {
            while leaf.is_some_and(|leaf| !leaf.live().below_high(key)) {
                leaf = leaves.next();
            }
            let leaf = leaf.expect("our bug: a leaf that was read is not held");
            if seen.as_ref().is_some_and(|seen| has_passed(seen.expire_at, now_ms)) {
                return Ok(false);
            }
            if is_unchanged(leaf) || planted(Bug::ReadsUnvalidated) {
                continue;
            }
            let page = leaf.live();
            let entry = page.find(key).ok().map(|at| page.entry(at));
            let entry = entry.filter(|entry| is_visible_at(entry, now_ms));
            let is_same = match (seen, &entry) {
                (None, None) => true,
                (Some(seen), Some(entry)) => seen.is(entry),
                _ => false,
            };
            if !is_same {
                return Ok(false);
            }
        }
        let still = reads.still.as_ref();
        for range in reads.ranges.iter().filter(|_| !planted(Bug::RangesUnvalidated)) {
            if has_passed(range.first_expiry, now_ms) {
                return Ok(false);
            }
            let tick = still.expect("our bug: a range was read without a still").cut().tick;
            let ends_before =
                |leaf: &Held<'_>| leaf.live().high().is_some_and(|high| *high <= *range.low);
            for leaf in &held[held.partition_point(ends_before)..] {
                let page = leaf.live();
                if range.high.as_deref().is_some_and(|high| high <= page.low()) {
                    break;
                }
                if !is_unchanged(leaf) && leaf.has_changed(tick, &range.low, range.high.as_deref())
                {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

/// Whether it is past `expire_at`, which may be 0 for never.
fn has_passed(expire_at: u64, now_ms: u64) -> bool {
    expire_at != 0 && expire_at <= now_ms
}

fn is_visible_at(entry: &Entry<'_>, now_ms: u64) -> bool {
    !has_passed(entry.expire_at, now_ms)
}

/// A transaction's reads do not hold any more.
pub(super) fn conflict() -> Error {
    Error::Conflict { attempts: 1 }
}
