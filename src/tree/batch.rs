//! Many keys at once: all leaves are latched from left to right, their new pages built aside, one place in
//! the order taken, and everything put in place before the first latch is released.

use std::sync::Arc;

use crate::Result;
use crate::commit::{Delta, KeyspaceSlot, Prepared, Refused, Ticket};
use crate::fingerprint;
use crate::planted::{Bug, planted};
use crate::position::Position;
use crate::tree::leaf::{Keep, Leaf, Whole, keep_in};
use crate::tree::page::{DIED_PENDING, Entry, Page, Value, common_prefix};
use crate::tree::write::{Garbage, Put, slack};
use crate::tree::{LatchMode, Tree, WriteLatch};

/// What a batch makes of one key: `None` removes.
pub(crate) struct BatchOp<'a> {
    pub(crate) slot: KeyspaceSlot,
    pub(crate) key: Vec<u8>,
    pub(crate) prefix_len: usize,
    pub(crate) put: Option<Put<'a>>,
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
}

/// One leaf of a batch and what is to become of it.
struct Planned<'a> {
    latch: WriteLatch<'a>,
    pages: Vec<Page>,
    /// Keys whose content changes: those of entries here, or of operations. Numbers, since a range may remove
    /// millions.
    changed: Vec<Source>,
    keep: Keep,
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
        if changes.ops.iter().any(|op| op.put.is_some()) {
            let len = |op: &BatchOp<'_>| {
                op.key.len() + op.put.as_ref().map_or(0, |put| put.entry().value.len())
            };
            self.check_memory(changes.ops.iter().map(len).sum())?;
        }
        let mut garbage = Garbage::default();
        let result = self.commit_batch(changes, &mut garbage);
        drop(garbage);
        self.note_waste();
        result
    }

    fn commit_batch(
        &self,
        changes: &Changes<'_>,
        garbage: &mut Garbage,
    ) -> Result<(Option<Position>, u64)> {
        let latches = self.latch_all(changes);
        let mut deltas = Deltas::default();
        let mut planned: Vec<Planned<'_>> =
            latches.into_iter().map(|latch| self.plan_leaf(latch, changes, &mut deltas)).collect();
        let removed = deltas.removed_by_ranges;
        if changes.ops.is_empty() && changes.drops.is_none() && removed == 0 {
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
            for leaf in planned.iter_mut().filter(|_| !forgets) {
                // Each leaf by its own mark.
                let passed_by = match planted(Bug::BatchMarkOfFirst) {
                    true => first_mark,
                    false => leaf.latch.passed_by,
                };
                let cuts = live.iter().filter(|cut| cut.id != passed_by);
                let cuts: Vec<u64> = cuts.map(|cut| cut.tick).collect();
                match cuts.last() {
                    _ if any => leaf.plan_keep(u64::MAX - 1, &cuts, &changes.ops),
                    Some(&newest) => leaf.plan_keep(newest, &cuts, &changes.ops),
                    None => {}
                }
            }
            let serves = if any { u64::MAX } else { live.last().map_or(0, |cut| cut.code()) };
            let prepared = Prepared { serves, passed_by: 0, listed: 0, drops: changes.drops };
            match self.commit.take(&deltas.by_slot, prepared) {
                Ok(ticket) => break ticket,
                Err(Refused::Error(error)) => return Err(error),
                // All leaves are latched: what is prepared for any cut serves whatever is taken meanwhile.
                Err(Refused::NewCut) => any = true,
            }
        };
        // Nothing from here to `done` may fail.
        let mut born = Vec::new();
        if planted(Bug::BatchLetsGoEarly)
            && let [_, .., last] = &mut planned[..]
        {
            let low = last.latch.live().low().to_vec();
            drop(std::mem::replace(&mut last.latch, self.stand_in()));
            last.latch = self.latch_write(&low);
        }
        for leaf in &mut planned {
            if !leaf.changed.is_empty() {
                self.apply_leaf(leaf, &ticket, garbage, &mut born);
            }
        }
        let position = ticket.done();
        for leaf in &mut planned {
            self.note_shrunk(&mut leaf.latch);
        }
        // All latches are released only now, when everything is applied.
        drop(born);
        drop(planned);
        Ok((Some(position), removed))
    }

    /// Latches every leaf that holds a key of the batch or a part of its ranges, ascending.
    fn latch_all(&self, changes: &Changes<'_>) -> Vec<WriteLatch<'_>> {
        let mut latches = Vec::new();
        let mut ranges = changes.ranges.iter().peekable();
        for op in &changes.ops {
            while let Some(range) = ranges.next_if(|range| *range.low <= *op.key) {
                self.reach_through(&mut latches, range);
            }
            self.reach(&mut latches, &op.key);
        }
        ranges.for_each(|range| self.reach_through(&mut latches, range));
        latches
    }

    /// Latches the leaf that covers `key`, unless the last latched one does.
    fn reach<'a>(&'a self, latches: &mut Vec<WriteLatch<'a>>, key: &[u8]) {
        match latches.last() {
            None => latches.push(self.latch_write(key)),
            Some(last) if last.live().below_high(key) => {}
            Some(last) => {
                let next = self.latch_right_of(last, key);
                latches.push(next);
            }
        }
    }

    /// Latches all leaves of `range`. What an earlier key latched further right covers its start as well.
    fn reach_through<'a>(&'a self, latches: &mut Vec<WriteLatch<'a>>, range: &RangeDelete) {
        self.reach(latches, &range.low);
        while let Some(high) = latches.last().and_then(|last| last.live().high())
            && *high < *range.high
        {
            let high = high.to_vec();
            self.reach(latches, &high);
        }
    }

    /// Builds what the leaf's entries will be.
    fn plan_leaf<'a>(
        &self,
        latch: WriteLatch<'a>,
        changes: &Changes<'_>,
        deltas: &mut Deltas,
    ) -> Planned<'a> {
        let page = latch.live();
        let first = changes.ops.partition_point(|op| *op.key < *page.low());
        let own = changes.ops[first..].iter().take_while(|op| page.below_high(&op.key));
        let ops = &changes.ops[first..first + own.count()];
        let before = |range: &RangeDelete| *range.high <= *page.low();
        let ranges = &changes.ranges[changes.ranges.partition_point(before)..];
        let is_untouched = ranges.first().is_none_or(|range| !page.below_high(&range.low));
        if is_untouched && ops.len() * 4 <= page.len() {
            let old_sum = deltas.fingerprint();
            if let Some((page, changed)) = self.patch(page, ops, first, deltas, old_sum) {
                let pages = if changed.is_empty() { Vec::new() } else { vec![page] };
                return Planned { latch, pages, changed, keep: Keep::Nothing };
            }
        }
        let mut ranges = ranges.iter().peekable();
        let mut sources = Vec::with_capacity(page.len() + ops.len());
        let mut changed = Vec::new();
        let (mut at, mut op) = (0, 0);
        let mut key = Vec::new();
        let old_sum = deltas.fingerprint();
        while at < page.len() || op < ops.len() {
            let order = match (at < page.len(), ops.get(op)) {
                (true, Some(new)) => page.compare_key(at, &new.key),
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
                    changed.push(Source::Old(at));
                } else {
                    sources.push(Source::Old(at));
                }
            }
            if let Some(new) = new {
                // Removing what is not there changes nothing.
                if new.put.is_some() || order.is_eq() {
                    changed.push(Source::New(first + op));
                }
                if let Some(put) = &new.put {
                    deltas.put(new.slot, &new.key, new.prefix_len, put);
                    sources.push(Source::New(op));
                }
            }
            at += usize::from(order.is_le());
            op += usize::from(order.is_ge());
        }
        let change = deltas.fingerprint().wrapping_sub(old_sum);
        let pages =
            if changed.is_empty() { Vec::new() } else { self.build(page, ops, &sources, change) };
        Planned { latch, pages, changed, keep: Keep::Nothing }
    }

    /// For few operations in a leaf: its page copied whole and changed in place. `None`, and nothing done, if
    /// the result would be too large for one leaf.
    fn patch(
        &self,
        page: &Page,
        ops: &[BatchOp<'_>],
        first: usize,
        deltas: &mut Deltas,
        old_sum: u64,
    ) -> Option<(Page, Vec<Source>)> {
        let entry_of = |op: &BatchOp<'_>| match &op.put {
            Some(put) => page.cost(&op.key, &put.entry()),
            None => 0,
        };
        let extra: usize = ops.iter().map(entry_of).sum();
        let fits = page.used() + extra <= self.config.leaf_bytes
            && page.len() + ops.len() <= self.config.leaf_entries;
        if !fits {
            return None;
        }
        let mut copy = page.duplicate(extra);
        let mut changed = Vec::with_capacity(ops.len());
        for (number, op) in ops.iter().enumerate() {
            let at = copy.find(&op.key);
            if let Ok(at) = at {
                deltas.remove(op.slot, &op.key, op.prefix_len, &copy.entry(at));
            }
            // What is replaced or removed lives on in the page that was copied.
            match (at, &op.put) {
                (Ok(at), Some(put)) => drop(copy.replace(at, &op.key, &put.entry())),
                (Ok(at), None) => drop(copy.remove(at)),
                (Err(at), Some(put)) => copy.insert(at, &op.key, &put.entry()),
                // Removing what is not there changes nothing.
                (Err(_), None) => continue,
            }
            if let Some(put) = &op.put {
                deltas.put(op.slot, &op.key, op.prefix_len, put);
            }
            changed.push(Source::New(first + number));
        }
        copy.add_fingerprint(deltas.fingerprint().wrapping_sub(old_sum));
        Some((copy, changed))
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
                page.cost(&ops[op].key, &ops[op].put.as_ref().expect("a new entry").entry())
            }
        };
        let key_of = |source: &Source, key: &mut Vec<u8>| match *source {
            Source::Old(at) => page.key_into(at, key),
            Source::New(op) => key.clone_from(&ops[op].key),
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

    /// Puts a planned leaf's pages in place and keeps what they replace.
    fn apply_leaf<'a>(
        &'a self,
        leaf: &mut Planned<'a>,
        ticket: &Ticket<'_>,
        garbage: &mut Garbage,
        born: &mut Vec<WriteLatch<'a>>,
    ) {
        let latch = &mut leaf.latch;
        let mut keep = std::mem::replace(&mut leaf.keep, Keep::Nothing);
        if ticket.newest.is_none() {
            garbage.pages.extend(keep.into_pages());
            keep = Keep::Nothing;
        }
        let keeps = !matches!(keep, Keep::Nothing);
        let mut outgoing_born = None;
        match keep {
            Keep::Nothing => {}
            Keep::Entries(mut entries) => {
                entries.settle_died(ticket.tick);
                garbage.pages.extend(latch.keep_entries(entries));
            }
            Keep::Whole { older, born } => {
                garbage.pages.extend(latch.keep_whole(older));
                outgoing_born = born;
            }
        }
        let pages = std::mem::take(&mut leaf.pages);
        let low = latch.live().low().to_vec();
        // What is kept is divided from the right, each time for all that is left of the fence.
        let mut right_kept = Vec::new();
        for page in pages[1..].iter().rev() {
            right_kept.push(latch.split_kept(&low, page.low(), page.high()));
        }
        let mut pages = pages.into_iter();
        let first = pages.next().expect("a changed leaf has a page at least");
        let mut outgoing = latch.page.replace(first).expect("latched alive");
        let mut outgoing_whole = None;
        match outgoing_born {
            Some(born) => {
                outgoing.retain();
                outgoing.retain_orphans();
                let page = Arc::new(outgoing);
                outgoing_whole = Some(Whole { born, died: ticket.tick, page });
                latch.keep_whole(outgoing_whole.clone().into_iter().collect());
            }
            None => garbage.pages.push(outgoing),
        }
        let old_stamp = std::mem::replace(&mut latch.stamp, ticket.position.seq);
        let mut next = latch.next;
        let mut rest: Vec<Page> = pages.collect();
        let mut latches = Vec::with_capacity(rest.len());
        for mut kept in right_kept {
            if let Some(whole) = &outgoing_whole {
                kept.get_or_insert_default().push_whole(whole.clone());
            }
            let page = rest.pop().expect("as many as kept parts");
            let id = self.slab.alloc();
            // Born latched, and so until all is applied: nobody may see a part of the batch.
            let mut right = WriteLatch::latch(&self.slab, id);
            *right = Leaf {
                page: Some(page),
                stamp: ticket.position.seq,
                next,
                is_candidate: false,
                passed_by: latch.passed_by,
                kept,
            };
            next = Some(id);
            self.directory.insert(right.live().low(), id);
            if planted(Bug::BornUnlatched) {
                let built = right.page.take().expect("just set");
                let empty = Page::new(&self.arena, built.low(), built.high(), 0);
                right.page = Some(empty);
                drop(right);
                right = WriteLatch::latch(&self.slab, id);
                right.page = Some(built);
            }
            latches.push(right);
        }
        latch.next = next;
        if keeps {
            let cut = ticket.cut.as_deref();
            for latch in std::iter::once(&mut *latch).chain(&mut latches) {
                self.settle_kept(latch, cut, old_stamp, garbage);
            }
        }
        born.extend(latches);
    }
}

impl Planned<'_> {
    /// Plans what to keep, `newest` being the newest live cut's tick and `cuts` all live ones'.
    fn plan_keep(&mut self, newest: u64, cuts: &[u64], ops: &[BatchOp<'_>]) {
        let Self { latch, changed, keep, .. } = self;
        *keep = Keep::Nothing;
        let page = latch.live();
        let key_of = |source: &Source| match *source {
            Source::New(op) => ops[op].key.clone(),
            Source::Old(at) => {
                let mut key = Vec::new();
                page.key_into(at, &mut key);
                key
            }
        };
        let keys = changed.iter().map(key_of);
        let needed: Vec<Vec<u8>> = keys.filter(|key| latch.must_keep(key, newest)).collect();
        if needed.is_empty() {
            return;
        }
        let old_entry = |key: &[u8]| match page.find(key) {
            Ok(at) => Entry { died: DIED_PENDING, ..page.entry(at) },
            Err(_) => Entry { value: Value::Absent, expire_at: 0, died: DIED_PENDING },
        };
        let bytes: usize = needed.iter().map(|key| page.cost(key, &old_entry(key))).sum();
        if latch.would_outweigh(bytes) {
            let (older, present_from) = latch.whole_pages(cuts);
            // A cut taken from now on is served by the outgoing page too.
            let later = || Some(cuts.last().map_or(0, |tick| tick + 1));
            *keep = Keep::Whole { older, born: present_from.or_else(later) };
            return;
        }
        let kept = latch.kept.as_ref().and_then(|kept| kept.entries.as_ref());
        let room = bytes + kept.map_or(0, Page::used);
        let mut entries = Page::new(&page.arena(), page.low(), page.high(), room);
        entries.retain();
        if let Some(kept) = kept {
            entries.append(kept);
        }
        for key in needed {
            keep_in(&mut entries, page, &key, page.find(&key), DIED_PENDING);
        }
        *keep = Keep::Entries(entries);
    }
}

impl Keep {
    /// The pages of a plan that is not carried out.
    fn into_pages(self) -> Vec<Page> {
        match self {
            Keep::Nothing => Vec::new(),
            Keep::Entries(page) => vec![page],
            Keep::Whole { older, .. } => {
                older.into_iter().filter_map(|whole| Arc::into_inner(whole.page)).collect()
            }
        }
    }
}

/// What a batch changes in the totals of the keyspaces it touches.
#[derive(Default)]
struct Deltas {
    by_slot: Vec<(KeyspaceSlot, Delta)>,
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
        let delta = self.of(slot);
        delta.records -= 1;
        delta.bytes -= (key.len() - prefix_len + old.value.len()).cast_signed() as i64;
        delta.fingerprint = delta.fingerprint.wrapping_sub(own);
    }

    fn put(&mut self, slot: KeyspaceSlot, key: &[u8], prefix_len: usize, put: &Put<'_>) {
        let own = fingerprint::entry(key, put.hash, put.expire_at);
        let delta = self.of(slot);
        delta.records += 1;
        delta.bytes += (key.len() - prefix_len + put.entry().value.len()).cast_signed() as i64;
        delta.fingerprint = delta.fingerprint.wrapping_add(own);
    }

    /// Of all keyspaces together.
    fn fingerprint(&self) -> u64 {
        self.by_slot.iter().fold(0, |sum, (_, delta)| sum.wrapping_add(delta.fingerprint))
    }
}
