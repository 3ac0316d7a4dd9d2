//! Many keys at once: all leaves are latched from left to right, made ready, one place in the order taken, and
//! everything applied before the first latch is released.
//!
//! A leaf whose page can take its part of the batch is changed in place. Where it can't, or a range removes
//! entries, pages built aside take the place of its page; what they replace is kept whole if entries
//! of it would outweigh it.

use std::ops::Range;

use crate::Result;
use crate::commit::{
    Body, Delta, Denied, Forwarded, KeyspaceSlot, LoggedEffect, Prepared, Refused, Ticket,
};
use crate::fingerprint;
use crate::planted::{Bug, planted};
use crate::position::Position;
use crate::sync::pin;
use crate::tree::directory::Found;
use crate::tree::leaf::{Leaf, Whole, mark_retained};
use crate::tree::page::{Entry, Page, Place, common_prefix};
use crate::tree::validate::{Held, ReadSet, conflict};
use crate::tree::write::{Garbage, Put, cost_to_keep, slack};
use crate::tree::{GROUP, ReadLatch, Tree, WriteLatch};

/// What a batch makes of one key: `None` removes.
pub(crate) struct BatchOp<'a> {
    pub(crate) slot: KeyspaceSlot,
    pub(crate) key: &'a [u8],
    pub(crate) prefix_len: usize,
    pub(crate) put: Option<Put<'a>>,
}

impl BatchOp<'_> {
    /// Whether it changes anything, its key being at or belonging to `place`: removing what is not there doesn't.
    fn changes_at(&self, place: Place) -> bool {
        self.put.is_some() || place.is_ok()
    }
}

/// Keys in `[low, high)` that a batch removes, apart from those it also puts.
pub(crate) struct RangeDelete {
    pub(crate) slot: KeyspaceSlot,
    pub(crate) low: Vec<u8>,
    pub(crate) high: Vec<u8>,
    pub(crate) prefix_len: usize,
}

/// What a batch does: keys ascending and unique, ranges ascending and apart.
#[derive(Default)]
pub(crate) struct Changes<'a> {
    pub(crate) ops: Vec<BatchOp<'a>>,
    pub(crate) ranges: Vec<RangeDelete>,
    /// The keyspace that ends with this batch.
    pub(crate) drops: Option<KeyspaceSlot>,
    /// What goes goes because its time is past.
    pub(crate) is_expiry: bool,
    /// What must be as it was read, or nothing is changed.
    pub(crate) reads: Option<&'a ReadSet>,
}

impl Changes<'_> {
    /// Hands on what the log says of it: ranges first, since they spare what the same batch puts.
    pub(crate) fn for_each_effect(&self, put: &mut dyn FnMut(LoggedEffect<'_>)) {
        for RangeDelete { low, high, .. } in &self.ranges {
            put(LoggedEffect::RemoveRange { low, high });
        }
        for op in &self.ops {
            put(match &op.put {
                Some(new) => new.effect(op.key),
                None if self.is_expiry => LoggedEffect::Expire { key: op.key },
                None => LoggedEffect::Remove { key: op.key },
            });
        }
    }
}

/// One leaf of a batch and what is to become of it.
struct Planned<'a> {
    latch: WriteLatch<'a>,
    /// Its part of the batch's operations.
    ops: Range<usize>,
    /// Entries of its page that ranges remove.
    removed: Vec<usize>,
    /// The pages that take the place of its own; none: that is changed in place.
    pages: Vec<Page>,
    has_changes: bool,
    fingerprint_change: u64,
    /// It may be small afterwards and was not before, or has fewer entries: small leaves are noted once.
    may_shrink: bool,
    /// The newest cut's tick that something is kept for here, as planned; `None`: nothing is.
    keeps_for: Option<u64>,
    /// Whole pages that are kept instead of entries, and the first tick that the outgoing page serves.
    keeps_whole: Option<(Vec<Whole>, u64)>,
}

/// Where an entry of a new page comes from.
#[derive(Clone, Copy)]
enum Source {
    Old(usize),
    New(usize),
}

impl Tree {
    /// Commits a batch. Returns its position, unless there was nothing to change, and how many entries the
    /// ranges removed.
    ///
    /// A batch of ranges alone that meet no entry gets no Seq.
    pub(crate) fn write_batch(&self, changes: &Changes<'_>) -> Result<(Option<Position>, u64)> {
        self.begin_write()?;
        loop {
            let mut body = self.body(|put| changes.for_each_effect(put));
            if let Some(done) = self.write_changes(changes, &mut body)? {
                return Ok(done);
            }
        }
    }

    /// Applies a batch that was read from the log.
    pub(crate) fn replay(
        &self,
        changes: &Changes<'_>,
        position: Position,
        time_ms: u64,
    ) -> Result<()> {
        self.write_changes(changes, &mut Body::Replayed { position, time_ms })?;
        Ok(())
    }

    /// Applies a batch of another node's, with its record. What it replaces is kept, as by any write.
    pub(crate) fn forward(&self, changes: &Changes<'_>, record: Forwarded) -> Result<()> {
        self.write_changes(changes, &mut Body::Forwarded(record))?;
        Ok(())
    }

    fn write_changes(
        &self,
        changes: &Changes<'_>,
        body: &mut Body,
    ) -> Result<Option<(Option<Position>, u64)>> {
        // A replica has what its primary has: the limit is that one's to keep.
        if !body.is_given() && changes.ops.iter().any(|op| op.put.is_some()) {
            let len = |op: &BatchOp<'_>| {
                op.key.len() + op.put.as_ref().map_or(0, |put| put.entry().value.len())
            };
            self.check_memory(changes.ops.iter().map(len).sum())?;
        }
        self.commit.with_room(|| {
            let mut garbage = Garbage::default();
            let result = self.commit_batch(changes, body, &mut garbage);
            drop(garbage);
            self.note_waste();
            result
        })
    }

    fn commit_batch(
        &self,
        changes: &Changes<'_>,
        body: &mut Body,
        garbage: &mut Garbage,
    ) -> std::result::Result<(Option<Position>, u64), Denied> {
        let latches = self.latch_and_check(changes)?;
        self.commit_latched(latches, changes, body, garbage)
    }

    /// Commits `changes` with the latches of all leaves that they change, ascending; the other ones are held to the end.
    pub(super) fn commit_latched<'a>(
        &'a self,
        (latches, read): (Vec<WriteLatch<'a>>, Vec<ReadLatch<'a>>),
        changes: &Changes<'_>,
        body: &mut Body,
        garbage: &mut Garbage,
    ) -> std::result::Result<(Option<Position>, u64), Denied> {
        let mut deltas = Deltas::default();
        // Also of keyspaces in which nothing changes: none of them may be gone.
        for op in &changes.ops {
            deltas.of(op.slot);
        }
        // Where the key of each operation is or belongs in its leaf's page.
        let mut places = vec![Err(0); changes.ops.len()];
        let mut planned = self.plan(latches, changes, &mut places, &mut deltas);
        let removed = deltas.removed_by_ranges;
        // What was logged is replayed, even if it came to nothing then.
        let is_given = body.is_given();
        if changes.ops.is_empty() && changes.drops.is_none() && removed == 0 && !is_given {
            return Ok((None, 0));
        }
        // What serves any cut is prepared only when one was taken meanwhile.
        let mut any = false;
        let ticket = loop {
            let forgets = planted(Bug::RangeKeepsNothing) && !changes.ranges.is_empty();
            // Mostly there is none; one that comes meanwhile is met under the commit lock.
            let is_quiet = !any && self.commit.newest_hint(0).is_none();
            let live = if is_quiet { Vec::new() } else { self.commit.live_cuts() };
            let first_mark = planned.first().map_or(0, |leaf| leaf.latch.passed_by);
            for leaf in planned.iter_mut().filter(|_| !forgets && !is_quiet) {
                // Each leaf by its own mark.
                let passed_by = match planted(Bug::BatchMarkOfFirst) {
                    true => first_mark,
                    false => leaf.latch.passed_by,
                };
                let cuts = live.iter().filter(|cut| cut.id != passed_by);
                let cuts: Vec<u64> = cuts.map(|cut| cut.tick).collect();
                let newest = if any { Some(u64::MAX - 1) } else { cuts.last().copied() };
                if let Some(newest) = newest {
                    leaf.plan_keep(newest, &cuts, &changes.ops, &places, garbage);
                }
            }
            let serves = if any { u64::MAX } else { live.last().map_or(0, |cut| cut.code()) };
            let prepared = Prepared { serves, passed_by: 0, listed: 0, drops: changes.drops };
            let denied = match self.commit.take(&deltas.by_slot, prepared, body) {
                Ok(ticket) => break ticket,
                // All leaves are latched: what is prepared for any cut serves whatever is taken meanwhile.
                Err(Refused::NewCut) => {
                    any = true;
                    continue;
                }
                Err(Refused::NoRoom(len)) => Denied::NoRoom(len),
                Err(Refused::Unencoded) => Denied::Unencoded,
                Err(Refused::Gated) => Denied::Gated,
                Err(Refused::Error(error)) => Denied::Error(error),
            };
            for leaf in planned.iter_mut().filter(|leaf| leaf.keeps_for.is_some()) {
                let stamp = leaf.latch.stamp;
                self.settle_kept(&mut leaf.latch, None, stamp, garbage);
            }
            return Err(denied);
        };
        // Nothing from here to `done` may fail.
        let mut born = Vec::new();
        if planted(Bug::BatchLetsGoEarly)
            && let [_, .., last] = &mut planned[..]
        {
            let low = last.latch.live().low().to_vec();
            drop(std::mem::replace(&mut last.latch, self.stand_in()));
            last.latch = self.latch_write(&low);
            let ops = last.ops.clone();
            self.find_room(&mut last.latch, &changes.ops[ops.clone()], &mut places[ops]);
        }
        for leaf in planned.iter_mut().filter(|leaf| leaf.has_changes) {
            self.apply_leaf(leaf, &changes.ops, &places, &ticket, garbage, &mut born);
        }
        let position = ticket.done();
        if matches!(body, Body::Replayed { .. }) && !planted(Bug::ReplayUnstamped) {
            // Several batches may have become one: a key that is to go and is not there came and went in them.
            let meant = planned.iter_mut().filter(|leaf| !leaf.ops.is_empty());
            meant.for_each(|leaf| leaf.latch.stamp = position.seq);
        }
        for leaf in planned.iter_mut().filter(|leaf| leaf.may_shrink) {
            self.note_shrunk(&mut leaf.latch);
        }
        // All latches are released only now, when everything is applied.
        drop(born);
        drop(planned);
        drop(read);
        Ok((Some(position), removed))
    }

    /// Latches the batch's leaves; those apart, to be read, that it has read from and does not change.
    ///
    /// # Errors
    /// [`Error::Conflict`](crate::Error::Conflict) if what was read is not so any more.
    fn latch_and_check(
        &self,
        changes: &Changes<'_>,
    ) -> std::result::Result<(Vec<WriteLatch<'_>>, Vec<ReadLatch<'_>>), Denied> {
        let Some(reads) = changes.reads else { return Ok((self.latch_all(changes), Vec::new())) };
        let held = self.latch_needed(changes, reads);
        if !self.is_as_read(&held, reads)? {
            return Err(Denied::Error(conflict()));
        }
        let (mut written, mut read) = (Vec::new(), Vec::new());
        for latch in held {
            match latch {
                Held::Read(latch) => read.push(latch),
                Held::Write(latch) => written.push(latch),
            }
        }
        if planted(Bug::ReadLatchesDropped) {
            read.clear();
        }
        Ok((written, read))
    }

    /// Plans what is to become of each of the batch's leaves.
    fn plan<'a>(
        &'a self,
        latches: Vec<WriteLatch<'a>>,
        changes: &Changes<'_>,
        places: &mut [Place],
        deltas: &mut Deltas,
    ) -> Vec<Planned<'a>> {
        let mut planned = Vec::new();
        let mut next = 0;
        for latch in latches {
            let page = latch.live();
            let own = changes.ops[next..].iter().take_while(|op| page.below_high(op.key)).count();
            planned.push(Planned::new(latch, next..next + own));
            next += own;
        }
        for group in planned.chunks_mut(GROUP) {
            group.iter().for_each(|leaf| leaf.prefetch(&changes.ops));
            for leaf in group {
                self.plan_leaf(leaf, changes, places, deltas);
            }
        }
        planned
    }

    /// Latches every leaf that holds a key of the batch or a part of its ranges, ascending.
    fn latch_all(&self, changes: &Changes<'_>) -> Vec<WriteLatch<'_>> {
        let mut latches = Vec::new();
        let mut ranges = changes.ranges.iter().peekable();
        for group in changes.ops.chunks(GROUP) {
            // Anew for each group: a large batch must not hold up what others want freed.
            let guard = pin();
            let keys = group.iter().map(|op| op.key);
            let covers = |last: &WriteLatch<'_>| last.live().below_high(group[group.len() - 1].key);
            let found = match latches.last().is_some_and(covers) {
                true => Vec::new(),
                false => self.directory.find_many(keys, &guard),
            };
            self.prefetch_leaves(&found);
            for (number, op) in group.iter().enumerate() {
                while let Some(range) = ranges.next_if(|range| *range.low <= *op.key) {
                    self.reach_through(&mut latches, range);
                }
                self.reach(&mut latches, op.key, found.get(number));
            }
        }
        ranges.for_each(|range| self.reach_through(&mut latches, range));
        latches
    }

    /// Latches the leaf that covers `key`, unless the last latched one does. `found` is what the directory said
    /// of it since the caller was pinned.
    fn reach<'a>(
        &'a self,
        latches: &mut Vec<WriteLatch<'a>>,
        key: &[u8],
        found: Option<&Found<'_>>,
    ) {
        let latch = match (latches.last(), found) {
            (Some(last), _) if last.live().below_high(key) => return,
            (Some(last), Some(found)) => self.latch_right_at(last, key, *found),
            (Some(last), None) => self.latch_right_of(last, key),
            (None, Some(found)) => {
                self.walk(found.id, key).unwrap_or_else(|| self.latch_write(key))
            }
            (None, None) => self.latch_write(key),
        };
        latches.push(latch);
    }

    /// Latches all leaves of `range`. What an earlier key latched further right covers its start as well.
    fn reach_through<'a>(&'a self, latches: &mut Vec<WriteLatch<'a>>, range: &RangeDelete) {
        self.reach(latches, &range.low, None);
        while let Some(high) = latches.last().and_then(|last| last.live().high())
            && *high < *range.high
        {
            let high = high.to_vec();
            self.reach(latches, &high, None);
        }
    }

    /// Finds the places of `ops` in the latched leaf's page and makes room for them there. `false`: it can't.
    fn find_room(
        &self,
        latch: &mut WriteLatch<'_>,
        ops: &[BatchOp<'_>],
        places: &mut [Place],
    ) -> bool {
        let page = latch.live();
        let (mut need, mut more) = (0, 0);
        for (op, place) in ops.iter().zip(places) {
            *place = page.find(op.key);
            match (&op.put, *place) {
                (Some(put), Ok(at)) => need += page.replace_cost(at, op.key, &put.entry()),
                (Some(put), Err(_)) => {
                    need += page.cost(op.key, &put.entry());
                    more += 1;
                }
                (None, _) => {}
            }
        }
        self.give_room(latch, need, more)
    }

    /// Plans what becomes of a leaf: its places, what that changes in the totals, its new pages if it needs any.
    fn plan_leaf(
        &self,
        leaf: &mut Planned<'_>,
        changes: &Changes<'_>,
        places: &mut [Place],
        deltas: &mut Deltas,
    ) {
        let ops = &changes.ops[leaf.ops.clone()];
        let places = &mut places[leaf.ops.clone()];
        let page = leaf.latch.live();
        let before = |range: &RangeDelete| *range.high <= *page.low();
        let ranges = &changes.ranges[changes.ranges.partition_point(before)..];
        let in_range = ranges.first().is_some_and(|range| page.below_high(&range.low));
        let old_used = page.used();
        let old_sum = deltas.fingerprint;
        let in_place = !in_range && self.find_room(&mut leaf.latch, ops, places);
        let page = leaf.latch.live();
        let mut sources = Vec::new();
        if in_place {
            for (op, &place) in ops.iter().zip(&*places) {
                if let Ok(at) = place {
                    deltas.remove(op.slot, op.key, op.prefix_len, &page.entry(at));
                }
                if let Some(put) = &op.put {
                    deltas.put(op.slot, op.key, op.prefix_len, put);
                }
            }
        } else {
            sources = merge(page, ops, ranges, places, &mut leaf.removed, deltas);
        }
        let changing = || ops.iter().zip(&*places).filter(|(op, place)| op.changes_at(**place));
        leaf.has_changes = !leaf.removed.is_empty() || changing().next().is_some();
        let removes = !leaf.removed.is_empty() || changing().any(|(op, _)| op.put.is_none());
        leaf.fingerprint_change = deltas.fingerprint.wrapping_sub(old_sum);
        if leaf.has_changes && !in_place {
            leaf.pages = self.build(page, ops, &sources, leaf.fingerprint_change);
        }
        // As after a single write.
        let was_small = old_used <= self.config.leaf_bytes / 4;
        leaf.may_shrink = leaf.has_changes && (removes || !was_small);
    }

    /// The pages that hold `sources`, within the fences of `page`: one, or as many as a leaf's size asks for.
    fn build(
        &self,
        page: &Page,
        ops: &[BatchOp<'_>],
        sources: &[Source],
        fingerprint_change: u64,
    ) -> Vec<Page> {
        let cost = |source: &Source| match *source {
            Source::Old(at) => page.cost_at(at),
            Source::New(op) => {
                page.cost(ops[op].key, &ops[op].put.as_ref().expect("a new entry").entry())
            }
        };
        let key_of = |source: &Source, key: &mut Vec<u8>| match *source {
            Source::Old(at) => page.key_into(at, key),
            Source::New(op) => {
                key.clear();
                key.extend_from_slice(ops[op].key);
            }
        };
        let costs: Vec<usize> = sources.iter().map(cost).collect();
        let total: usize = costs.iter().sum();
        let max_len = self.config.leaf_entries;
        let is_one = total <= self.config.leaf_bytes && sources.len() <= max_len;
        let count = if is_one { 1 } else { total.div_ceil(self.config.leaf_bytes * 3 / 4).max(2) };
        let target = total.div_ceil(count);
        let mut ends = Vec::new();
        let (mut sum, mut len) = (0, 0);
        for (at, cost) in costs.iter().enumerate() {
            if !is_one && len > 0 && (sum + cost > target.max(cost + 1) || len == max_len) {
                ends.push(at);
                (sum, len) = (0, 0);
            }
            sum += cost;
            len += 1;
        }
        ends.push(sources.len());
        let mut pages: Vec<Page> = Vec::with_capacity(ends.len());
        let (mut start, mut low) = (0, page.low().to_vec());
        let (mut key, mut last) = (Vec::new(), Vec::new());
        for &end in &ends {
            let high = sources.get(end).map(|first_right| {
                key_of(first_right, &mut key);
                key_of(&sources[end - 1], &mut last);
                key[..common_prefix(&last, &key) + 1].to_vec()
            });
            let high = high.or_else(|| page.high().map(<[u8]>::to_vec));
            let room: usize = costs[start..end].iter().sum();
            let extra = if is_one { slack(room) } else { slack(0) };
            let mut built = Page::new(&page.arena(), &low, high.as_deref(), room + extra);
            for source in &sources[start..end] {
                key_of(source, &mut key);
                let (entry, hash) = match *source {
                    Source::Old(at) => (page.entry(at), None),
                    Source::New(op) => {
                        let put = ops[op].put.as_ref().expect("a new entry");
                        (put.entry(), Some(put.hash))
                    }
                };
                built.insert(built.len(), &key, &entry);
                if !is_one {
                    let hash = hash.unwrap_or_else(|| entry.value.hash());
                    built.add_fingerprint(fingerprint::entry(&key, hash, entry.expire_at));
                }
            }
            if is_one {
                built.add_fingerprint(page.fingerprint().wrapping_add(fingerprint_change));
            }
            pages.push(built);
            (start, low) = (end, high.unwrap_or_default());
        }
        pages
    }

    /// Keeps what the changes of a planned leaf replace, and makes them.
    fn apply_leaf<'a>(
        &'a self,
        leaf: &mut Planned<'a>,
        ops: &[BatchOp<'_>],
        places: &[Place],
        ticket: &Ticket<'_>,
        garbage: &mut Garbage,
        born: &mut Vec<WriteLatch<'a>>,
    ) {
        // Nobody needs anything kept for cuts that were dropped meanwhile.
        let newest = ticket.newest.and_then(|newest| Some(leaf.keeps_for?.min(newest)));
        if let Some(newest) = newest
            && leaf.keeps_whole.is_none()
        {
            leaf.each_change(ops, places, |latch, key, place| {
                if latch.must_keep(key, newest) {
                    latch.keep_entry(key, place, ticket.tick);
                }
            });
        }
        let old_stamp = std::mem::replace(&mut leaf.latch.stamp, ticket.position.seq);
        let born_before = born.len();
        if leaf.pages.is_empty() {
            leaf.change_page(ops, places, garbage);
            let puts = ops[leaf.ops.clone()].iter().filter_map(|op| op.put.as_ref());
            let expiries = puts.map(|put| put.expire_at).filter(|expire_at| *expire_at != 0);
            self.due.note(&mut leaf.latch, expiries.min().unwrap_or(0));
        } else {
            self.replace_page(leaf, newest.is_some(), ticket, garbage, born);
        }
        if leaf.keeps_for.is_some() {
            let cut = ticket.cut.as_deref();
            for latch in std::iter::once(&mut leaf.latch).chain(&mut born[born_before..]) {
                self.settle_kept(latch, cut, old_stamp, garbage);
            }
        }
    }

    /// Puts a leaf's new pages in the place of its own: the first there, the others in leaves born latched.
    fn replace_page<'a>(
        &'a self,
        leaf: &mut Planned<'a>,
        keeps: bool,
        ticket: &Ticket<'_>,
        garbage: &mut Garbage,
        born: &mut Vec<WriteLatch<'a>>,
    ) {
        let pages = std::mem::take(&mut leaf.pages);
        let mut outgoing_born = None;
        if let Some((older, from)) = leaf.keeps_whole.take() {
            if keeps {
                garbage.pages.extend(leaf.latch.keep_whole(older));
                outgoing_born = Some(from);
            } else {
                garbage.take_whole(older);
            }
        }
        let seq = ticket.position.seq;
        let pages = pages.into_iter().map(|page| (page, seq)).collect();
        born.extend(self.swap_pages(&mut leaf.latch, pages, outgoing_born, ticket.tick, garbage));
    }
}

impl<'a> Planned<'a> {
    fn new(latch: WriteLatch<'a>, ops: Range<usize>) -> Self {
        Self {
            latch,
            ops,
            removed: Vec::new(),
            pages: Vec::new(),
            has_changes: false,
            fingerprint_change: 0,
            may_shrink: false,
            keeps_for: None,
            keeps_whole: None,
        }
    }

    /// Brings what planning will look at next towards the cache.
    fn prefetch(&self, ops: &[BatchOp<'_>]) {
        let page = self.latch.live();
        ops[self.ops.clone()].iter().for_each(|op| page.prefetch_key(op.key));
        page.prefetch_free();
        self.latch.prefetch_kept();
    }

    /// Shows each key whose content changes, and where it is or belongs in the leaf's page.
    fn each_change(
        &mut self,
        ops: &[BatchOp<'_>],
        places: &[Place],
        mut show: impl FnMut(&mut Leaf, &[u8], Place),
    ) {
        for number in self.ops.clone() {
            let (op, place) = (&ops[number], places[number]);
            if op.changes_at(place) {
                show(&mut self.latch, op.key, place);
            }
        }
        let mut key = Vec::new();
        for &at in &self.removed {
            self.latch.live().key_into(at, &mut key);
            show(&mut self.latch, &key, Ok(at));
        }
    }

    /// Plans what to keep, `newest` being the newest cut's tick that is to be served, `cuts` the live ones'.
    fn plan_keep(
        &mut self,
        newest: u64,
        cuts: &[u64],
        ops: &[BatchOp<'_>],
        places: &[Place],
        garbage: &mut Garbage,
    ) {
        let count = |leaf: &mut Self| {
            let mut bytes = 0;
            leaf.each_change(ops, places, |latch, key, place| {
                if latch.must_keep(key, newest) {
                    bytes += cost_to_keep(latch.live(), key, place);
                }
            });
            bytes
        };
        let mut bytes = count(self);
        if bytes == 0 {
            return;
        }
        self.keeps_for = Some(newest);
        if let Some((pages, _)) = self.keeps_whole.take() {
            // Planned before another cut came.
            garbage.take_whole(pages);
        }
        if self.latch.would_outweigh(bytes) {
            if !self.pages.is_empty() {
                let (older, present_from) = self.latch.whole_pages(cuts);
                // A cut taken from now on is served by the outgoing page too.
                let later = || cuts.last().map_or(0, |tick| tick + 1);
                self.keeps_whole = Some((older, present_from.unwrap_or_else(later)));
                return;
            }
            garbage.pages.extend(self.latch.keep_whole_copies(cuts));
            bytes = count(self);
        }
        if bytes > 0 {
            self.latch.make_room_to_keep(bytes);
        }
    }

    /// Changes the leaf's own page, which has room for it.
    fn change_page(&mut self, ops: &[BatchOp<'_>], places: &[Place], garbage: &mut Garbage) {
        let leaf = &mut *self.latch;
        // From the right, so that the places further left stay right.
        for number in self.ops.clone().rev() {
            let op = &ops[number];
            let page = leaf.live_mut();
            let trash = match (places[number], &op.put) {
                (Ok(at), Some(put)) => page.replace(at, op.key, &put.entry()),
                (Ok(at), None) => page.remove(at),
                (Err(at), Some(put)) => {
                    page.insert(at, op.key, &put.entry());
                    None
                }
                (Err(_), None) => None,
            };
            mark_retained(&trash, leaf);
            garbage.larges.extend(trash);
        }
        leaf.live_mut().add_fingerprint(self.fingerprint_change);
    }
}

/// What a leaf's entries will be, by where they come from: those of `page` and of `ops`, without what the
/// `ranges` remove, whose numbers `removed` gets. `places` get those of the operations' keys.
fn merge(
    page: &Page,
    ops: &[BatchOp<'_>],
    ranges: &[RangeDelete],
    places: &mut [Place],
    removed: &mut Vec<usize>,
    deltas: &mut Deltas,
) -> Vec<Source> {
    let mut ranges = ranges.iter().peekable();
    let mut sources = Vec::with_capacity(page.len() + ops.len());
    let (mut at, mut op) = (0, 0);
    let mut key = Vec::new();
    while at < page.len() || op < ops.len() {
        let order = match (at < page.len(), ops.get(op)) {
            (true, Some(new)) => page.compare_key(at, new.key),
            (true, None) => std::cmp::Ordering::Less,
            _ => std::cmp::Ordering::Greater,
        };
        let new = if order.is_ge() { ops.get(op) } else { None };
        if order.is_le() {
            page.key_into(at, &mut key);
            while ranges.next_if(|range| *range.high <= *key).is_some() {}
            let range = ranges.peek().filter(|range| *range.low <= *key);
            let old = page.entry(at);
            if let Some(new) = new {
                deltas.remove(new.slot, &key, new.prefix_len, &old);
            } else if let Some(range) = range {
                deltas.remove(range.slot, &key, range.prefix_len, &old);
                deltas.removed_by_ranges += 1;
                removed.push(at);
            } else {
                sources.push(Source::Old(at));
            }
        }
        if let Some(new) = new {
            places[op] = if order.is_eq() { Ok(at) } else { Err(at) };
            if let Some(put) = &new.put {
                deltas.put(new.slot, new.key, new.prefix_len, put);
                sources.push(Source::New(op));
            }
        }
        at += usize::from(order.is_le());
        op += usize::from(order.is_ge());
    }
    sources
}

/// What a batch changes in the totals of the keyspaces it touches.
#[derive(Default)]
struct Deltas {
    by_slot: Vec<(KeyspaceSlot, Delta)>,
    /// Of all keyspaces together.
    fingerprint: u64,
    removed_by_ranges: u64,
}

impl Deltas {
    fn of(&mut self, slot: KeyspaceSlot) -> &mut Delta {
        // Keys come in order and so keyspace after keyspace.
        if self.by_slot.last().is_none_or(|(last, _)| *last != slot) {
            match self.by_slot.iter().position(|(known, _)| *known == slot) {
                Some(at) => return &mut self.by_slot[at].1,
                None => self.by_slot.push((slot, Delta::default())),
            }
        }
        &mut self.by_slot.last_mut().expect("just pushed or found").1
    }

    fn remove(&mut self, slot: KeyspaceSlot, key: &[u8], prefix_len: usize, old: &Entry<'_>) {
        let own = fingerprint::entry(key, old.value.hash(), old.expire_at);
        self.add(slot, -1, key.len() - prefix_len + old.value.len(), 0u64.wrapping_sub(own));
    }

    fn put(&mut self, slot: KeyspaceSlot, key: &[u8], prefix_len: usize, put: &Put<'_>) {
        let own = fingerprint::entry(key, put.hash, put.expire_at);
        self.add(slot, 1, key.len() - prefix_len + put.entry().value.len(), own);
    }

    /// Counts `records` entries of `len` bytes each.
    fn add(&mut self, slot: KeyspaceSlot, records: i64, len: usize, fingerprint: u64) {
        let delta = self.of(slot);
        delta.records += records;
        delta.bytes += records * len.cast_signed() as i64;
        delta.fingerprint = delta.fingerprint.wrapping_add(fingerprint);
        self.fingerprint = self.fingerprint.wrapping_add(fingerprint);
    }
}
