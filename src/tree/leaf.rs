//! A leaf: a page under a latch, the way to the next leaf, and what is kept of its past for stills.
//!
//! Old content serves every cut in an interval `[born, died)` of ticks; died is the tick of the write that
//! replaced it. Kept entries lie in a page of their own, several per key, ascending by died. A whole page
//! is kept where a page is replaced anyway, and when kept entries outweigh the page: then one whole page
//! per live cut in need replaces them, or an endless stream of new keys would leave "absent" entries
//! without bound.
//!
//! Reading at S: the whole page with born <= S < died if there is one, else the present content with, per
//! key, the kept entry of smallest died > S put back; always clipped by the leaf's present fences.
//!
//! Knows nothing of the directory, of other leaves, of the commit lock. All of it is called under the latch.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::commit::Cut;
use crate::planted::{Bug, planted};
use crate::position::Seq;
use crate::sync::RwLock;
use crate::tree::directory::LeafId;
use crate::tree::page::{Entry, Page, Place, Trash, Value};

/// A leaf's latch, alone in its cache line with what every reader needs.
#[repr(align(64))]
pub(crate) struct Latch(pub(crate) RwLock<Leaf>);

/// See the file's head.
#[derive(Default)]
pub(crate) struct Leaf {
    /// `None`: dead. Who reaches it looks again in the directory.
    pub(crate) page: Option<Page>,
    /// Seq of the last change.
    pub(crate) stamp: Seq,
    pub(crate) next: Option<LeafId>,
    /// On the list of leaves that may be merged.
    pub(crate) is_candidate: bool,
    /// Id of the cut whose pass has copied all of the leaf last, 0 for none: nothing is kept here for it.
    pub(crate) passed_by: u64,
    pub(crate) kept: Option<Box<Kept>>,
    /// The earliest grain of time for which the leaf is entered among those with something to expire, 0 for none.
    pub(crate) due: u64,
}

const _: () = assert!(size_of::<Leaf>() <= 56);

/// What a leaf keeps for stills.
#[derive(Default)]
pub(crate) struct Kept {
    /// Old entries; the page has the leaf's fences.
    pub(crate) entries: Option<Page>,
    whole: Vec<Whole>,
    /// Ticks of cuts, ascending, each with the stamp the leaf had at it.
    stamps: Vec<(u64, Seq)>,
    /// Ids of the cuts on whose lists the leaf's range is; some may have been dropped since.
    pub(crate) listed: Vec<u64>,
}

/// A whole page that serves the cuts in `[born, died)`. Its fences may be wider than the leaf's.
#[derive(Clone)]
pub(crate) struct Whole {
    pub(crate) born: u64,
    pub(crate) died: u64,
    pub(crate) page: Arc<Page>,
}

impl Kept {
    /// The leaf had this stamp at the cut of `tick`.
    pub(crate) fn note_stamp(&mut self, tick: u64, stamp: Seq) {
        if self.stamps.last().is_none_or(|(last, _)| *last < tick) {
            self.stamps.push((tick, stamp));
        }
    }

    /// Adds a whole page.
    pub(crate) fn push_whole(&mut self, whole: Whole) {
        self.whole.push(whole);
    }
}

impl Leaf {
    /// The page of a living leaf.
    pub(crate) fn live(&self) -> &Page {
        self.page.as_ref().expect("our bug: a dead leaf is used")
    }

    /// As `live`, to be changed.
    pub(crate) fn live_mut(&mut self) -> &mut Page {
        self.page.as_mut().expect("our bug: a dead leaf is used")
    }

    /// Brings what a write under a still looks at next towards the cache, while the page is under way.
    pub(crate) fn prefetch_kept(&self) {
        if let Some(entries) = self.kept.as_ref().and_then(|kept| kept.entries.as_ref()) {
            entries.prefetch();
        }
    }

    /// Whether a write to `key` must keep what it replaces, `newest` being the newest live cut's tick.
    pub(crate) fn must_keep(&self, key: &[u8], newest: u64) -> bool {
        let Some(kept) = &self.kept else { return true };
        if kept.whole.iter().any(|whole| whole.died > newest) {
            return false;
        }
        let Some(entries) = &kept.entries else { return true };
        let Ok(first) = entries.find(key) else { return true };
        // Ascending by died: the key's last entry decides.
        let last = last_of(entries, first, key);
        entries.entry(last).died <= newest
    }

    /// The newest cut the leaf's range is listed with, 0 for none.
    pub(crate) fn newest_listed(&self) -> u64 {
        self.kept.as_ref().and_then(|kept| kept.listed.iter().max()).copied().unwrap_or(0)
    }

    /// Makes room to keep one more entry of `bytes`, so that keeping it can't fail.
    pub(crate) fn make_room_to_keep(&mut self, bytes: usize) {
        let page = self.page.as_ref().expect("our bug: a dead leaf is used");
        let kept = self.kept.get_or_insert_default();
        let entries = match kept.entries.take() {
            Some(entries) if entries.free() >= bytes => entries,
            Some(entries) => {
                let room = entries.used() + bytes;
                let mut resized = entries.resized(kept_room(room));
                resized.retain();
                resized
            }
            None => {
                let room = kept_room(bytes);
                let arena = page.arena();
                let mut entries = Page::new(arena.for_kept(), page.low(), page.high(), room);
                entries.retain();
                entries
            }
        };
        kept.entries = Some(entries);
    }

    /// Whether the kept entries and `bytes` more would outweigh the page.
    pub(crate) fn would_outweigh(&self, bytes: usize) -> bool {
        let kept = self.kept.as_ref().and_then(|kept| kept.entries.as_ref());
        kept.map_or(0, Page::used) + bytes > self.live().used().max(1024)
    }

    /// Keeps what the key has now (or that it has nothing) as having died at `died`; there is room. The caller
    /// replaces or removes it next, so that a large value is from now on there for stills alone.
    pub(crate) fn keep_entry(&mut self, key: &[u8], at: Place, died: u64) {
        let Self { page, kept, .. } = self;
        let page = page.as_ref().expect("our bug: a dead leaf is used");
        let kept = kept.as_mut().and_then(|kept| kept.entries.as_mut());
        if let Ok(at) = at
            && let Value::Large(large) = page.entry(at).value
        {
            large.get().retain();
        }
        keep_in(kept.expect("our bug: no room was made"), page, key, at, died);
    }

    /// Whole pages that replace the kept entries: one for each content that a live cut in `cuts`
    /// (ticks, ascending) is in need of, apart from the cuts that the present page serves, whose first is returned.
    pub(crate) fn whole_pages(&self, cuts: &[u64]) -> (Vec<Whole>, Option<u64>) {
        let page = self.live();
        let mut older: Vec<Whole> = Vec::new();
        let served = |tick: u64| {
            let whole = self.kept.iter().flat_map(|kept| &kept.whole);
            whole.clone().any(|whole| whole.born <= tick && tick < whole.died)
        };
        let deaths: Vec<u64> = match self.kept.as_ref().and_then(|kept| kept.entries.as_ref()) {
            Some(entries) => (0..entries.len()).map(|at| entries.entry(at).died).collect(),
            None => Vec::new(),
        };
        let mut present_from = None;
        for &tick in cuts {
            if served(tick) {
                continue;
            }
            if !deaths.iter().any(|&died| died > tick) {
                present_from = present_from.or(Some(tick));
                continue;
            }
            match older.last_mut() {
                // Nothing died between the two cuts: one page serves both.
                Some(last) if !deaths.iter().any(|&died| last.born < died && died <= tick) => {
                    last.died = tick + 1;
                }
                _ => {
                    let mut copy = None;
                    self.copy_at(tick, page.low(), &mut copy);
                    let mut copy = copy.expect("just written").shrunk();
                    copy.retain();
                    older.push(Whole { born: tick, died: tick + 1, page: Arc::new(copy) });
                }
            }
        }
        (older, present_from)
    }

    /// Puts whole pages in the place of the kept entries, which are handed back to be dropped.
    pub(crate) fn keep_whole(&mut self, pages: Vec<Whole>) -> Option<Page> {
        let kept = self.kept.get_or_insert_default();
        kept.whole.extend(pages);
        kept.entries.take()
    }

    /// Puts whole pages in the place of the kept entries: one for each content that a cut in `cuts` (ticks,
    /// ascending) is in need of, the present one among them. The kept entries are handed back to be dropped.
    pub(crate) fn keep_whole_copies(&mut self, cuts: &[u64]) -> Option<Page> {
        let (mut pages, present_from) = self.whole_pages(cuts);
        if let (Some(born), Some(&last)) = (present_from, cuts.last()) {
            let mut page = self.live().duplicate(0);
            page.retain();
            pages.push(Whole { born, died: last + 1, page: Arc::new(page) });
        }
        self.keep_whole(pages)
    }

    /// Copies the content at the cut of `tick` from `from` on into `out`.
    ///
    /// `out` gets the fences `[max(low, from), high)`, and no sum of fingerprints.
    pub(crate) fn copy_at(&self, tick: u64, from: &[u8], out: &mut Option<Page>) {
        let page = self.live();
        let low = if from > page.low() { from } else { page.low() };
        let kept = self.kept.as_deref();
        let whole = kept.iter().flat_map(|kept| &kept.whole);
        let whole = whole.clone().find(|whole| whole.born <= tick && tick < whole.died);
        let entries = match whole {
            Some(_) => None,
            None => kept.and_then(|kept| kept.entries.as_ref()),
        };
        let source = whole.map_or(page, |whole| &whole.page);
        let has_kept = entries
            .is_some_and(|kept| (0..kept.len()).any(|at| outlives(kept.entry(at).died, tick)));
        let same_fences = low == source.low() && page.high() == source.high();
        if !has_kept && same_fences {
            return source.copy_to(0, out);
        }
        if let Some(kept) = entries
            && same_fences
            && source.used() + source.garbage() + kept.used() <= super::page::AREA_MAX
        {
            source.copy_to(kept.used(), out);
            return put_back(kept, tick, out.as_mut().expect("just set"));
        }
        let none = Page::new(&page.arena(), page.low(), page.high(), 0);
        let entries = if has_kept { entries.unwrap_or(&none) } else { &none };
        // The key's prefix may be longer within the present fences, never shorter: no entry grows.
        let room = (source.used() + entries.used()).min(super::page::AREA_MAX);
        Page::reset(out, &page.arena(), low, page.high(), room);
        let out = out.as_mut().expect("just set");
        merge_at(source, entries, tick, out);
    }

    /// Whether a key in `[low, high)` may have something else now than at the cut of `tick`, which lives: also if it was changed and
    /// changed back.
    pub(crate) fn has_changed(&self, tick: u64, low: &[u8], high: Option<&[u8]>) -> bool {
        let Some(kept) = &self.kept else { return false };
        let range_of = |page: &Page| {
            let end = high.map_or(page.len(), |high| page.seek(high));
            page.seek(low).min(end)..end
        };
        let serves = |whole: &&Whole| whole.born <= tick && tick < whole.died;
        if let Some(whole) = kept.whole.iter().find(serves) {
            let (page, present) = (&whole.page, self.live());
            // The page's fences may be wider.
            let own_end = present.high().map_or(page.len(), |high| page.seek(high));
            let range = range_of(page);
            let old = range.start.max(page.seek(present.low()))..range.end.min(own_end);
            return !page.has_same(old, present, range_of(present));
        }
        let Some(entries) = &kept.entries else { return false };
        range_of(entries).any(|at| outlives(entries.entry(at).died, tick))
    }

    /// The Seq of the last change that the cut at `tick` holds; when that is no longer known exactly, a later
    /// one, which is safe: it never hides a change.
    pub(crate) fn stamp_at(&self, tick: u64) -> Seq {
        let kept = self.kept.iter().flat_map(|kept| &kept.stamps);
        kept.clone().find(|(at, _)| *at >= tick).map_or(self.stamp, |(_, stamp)| *stamp)
    }

    /// What the key had at the cut of `tick`.
    pub(crate) fn entry_at(&self, tick: u64, key: &[u8]) -> Option<Entry<'_>> {
        let present = |page: &'_ Page| page.find(key).ok();
        if let Some(kept) = &self.kept {
            let serves = |whole: &&Whole| whole.born <= tick && tick < whole.died;
            if let Some(whole) = kept.whole.iter().find(serves) {
                return present(&whole.page).map(|at| whole.page.entry(at));
            }
            if let Some(entries) = &kept.entries
                && let Ok(first) = entries.find(key)
            {
                let mut own = first..=last_of(entries, first, key);
                let serves = |at: &usize| outlives(entries.entry(*at).died, tick);
                let newest = planted(Bug::NewestVersion);
                if let Some(at) = if newest { own.rfind(serves) } else { own.find(serves) } {
                    return Some(entries.entry(at)).filter(|entry| !entry.is_absent());
                }
            }
        }
        present(self.live()).map(|at| self.live().entry(at))
    }

    /// Divides what is kept for `[low, high)`: this leaf keeps what lies below `middle`.
    pub(crate) fn split_kept(
        &mut self,
        low: &[u8],
        middle: &[u8],
        high: Option<&[u8]>,
    ) -> Option<Box<Kept>> {
        let kept = self.kept.as_mut()?;
        let (whole, stamps) = (kept.whole.clone(), kept.stamps.clone());
        let mut right = Kept { entries: None, whole, stamps, listed: kept.listed.clone() };
        if let Some(entries) = kept.entries.take() {
            let at = entries.seek(middle);
            kept.entries = part(&entries, 0..at, low, Some(middle));
            right.entries = part(&entries, at..entries.len(), middle, high);
        }
        Some(Box::new(right))
    }

    /// Frees what no cut in `live` (ascending by tick) needs. Returns the places in `live` of cuts on whose
    /// lists the range now belongs and is not yet: for each thing kept, the newest that needs it.
    pub(crate) fn sweep(&mut self, live: &[Arc<Cut>]) -> (Vec<usize>, Vec<Page>) {
        let Some(kept) = &mut self.kept else { return (Vec::new(), Vec::new()) };
        if planted(Bug::SweepFreesNothing) {
            return (Vec::new(), Vec::new());
        }
        let live = if planted(Bug::FreedWithItsLabel) { &[] } else { live };
        let is_freed = |died: u64| {
            live.last().is_some_and(|newest| {
                (planted(Bug::FreesAboveNewest) && died > newest.tick)
                    || (planted(Bug::FreesBelowNewest) && died <= newest.tick)
            })
        };
        let stays = |died: u64| {
            planted(Bug::FreesOnlyBelowOldest)
                && live.first().is_some_and(|oldest| died > oldest.tick)
        };
        let newest_in =
            |born: u64, died: u64| live.iter().rposition(|cut| born <= cut.tick && cut.tick < died);
        let mut heirs: Vec<usize> = Vec::new();
        let mut freed = Vec::new();
        let gone = kept.whole.extract_if(.., |whole| {
            let heir = newest_in(whole.born, whole.died);
            heirs.extend(heir);
            heir.is_none() && !stays(whole.died)
        });
        freed.extend(gone.filter_map(|whole| Arc::into_inner(whole.page)));
        // Of kept entries only the cuts without a whole page have need.
        let newest_in = |born: u64, died: u64| {
            let served =
                |tick: u64| kept.whole.iter().any(|whole| whole.born <= tick && tick < whole.died);
            live.iter().rposition(|cut| born <= cut.tick && cut.tick < died && !served(cut.tick))
        };
        if let Some(entries) = &kept.entries {
            let mut needed = Vec::with_capacity(entries.len());
            let mut key = Vec::new();
            let mut born = 0;
            for at in 0..entries.len() {
                if at == 0 || entries.compare_key(at, &key).is_ne() {
                    born = 0;
                    entries.key_into(at, &mut key);
                }
                let died = entries.entry(at).died;
                let heir = newest_in(born, died).filter(|_| !is_freed(died));
                born = died;
                heirs.extend(heir);
                if heir.is_some() || stays(died) {
                    needed.push(at);
                }
            }
            if needed.is_empty() {
                freed.extend(kept.entries.take());
            } else if needed.len() < entries.len() {
                let room = entries.used();
                let mut left = Page::new(&entries.arena(), entries.low(), entries.high(), room);
                for &at in &needed {
                    entries.key_into(at, &mut key);
                    left.insert(left.len(), &key, &entries.entry(at));
                }
                let mut left = left.shrunk();
                left.retain();
                freed.extend(kept.entries.replace(left));
            }
        }
        kept.stamps.retain(|(tick, _)| live.iter().any(|cut| cut.tick <= *tick));
        heirs.sort_unstable();
        heirs.dedup();
        let listed = heirs.iter().map(|&heir| live[heir].id).collect();
        let listed = std::mem::replace(&mut kept.listed, listed);
        heirs.retain(|&heir| !listed.contains(&live[heir].id));
        if kept.entries.is_none() && kept.whole.is_empty() {
            self.kept = None;
        }
        (heirs, freed)
    }
}

/// Room for kept entries that need `bytes`: few sizes, since while a save runs all leaves grow through them
/// and leave memory of each behind.
fn kept_room(bytes: usize) -> usize {
    let room = match bytes {
        ..=2048 => bytes.next_power_of_two().max(448),
        _ => bytes.next_multiple_of(1024),
    };
    room.min(super::page::AREA_MAX)
}

/// Copies the entries in `range` into a page of its own.
fn part(
    from: &Page,
    range: std::ops::Range<usize>,
    low: &[u8],
    high: Option<&[u8]>,
) -> Option<Page> {
    if range.is_empty() {
        return None;
    }
    let mut page = Page::new(&from.arena(), low, high, from.used());
    let mut key = Vec::new();
    for at in range {
        from.key_into(at, &mut key);
        page.insert(page.len(), &key, &from.entry(at));
    }
    let mut page = page.shrunk();
    page.retain();
    Some(page)
}

/// Whether what died at `died` is still there for the cut of `tick`.
fn outlives(died: u64, tick: u64) -> bool {
    died > tick || (planted(Bug::DiedAtCut) && died == tick)
}

/// The last of the entries of `key`, whose first is at `first`.
fn last_of(entries: &Page, first: usize, key: &[u8]) -> usize {
    let mut last = first;
    while last + 1 < entries.len() && entries.compare_key(last + 1, key).is_eq() {
        last += 1;
    }
    last
}

/// Adds to `kept` what `page` has at `key`, as having died at `died`.
pub(crate) fn keep_in(kept: &mut Page, page: &Page, key: &[u8], at: Place, died: u64) {
    let old = match at {
        Ok(at) => Entry { died, ..page.entry(at) },
        Err(_) => Entry { value: Value::Absent, expire_at: 0, died },
    };
    let place = match kept.find(key) {
        Ok(first) => last_of(kept, first, key) + 1,
        Err(place) => place,
    };
    kept.insert(place, key, &old);
}

/// Of the kept entries of one key, at `first..=last`, the first that died after the cut of `tick`, if any.
fn serving(kept: &Page, first: usize, last: usize, tick: u64) -> Option<Entry<'_>> {
    let mut own = (first..=last).map(|at| kept.entry(at));
    let serves = |entry: &Entry<'_>| outlives(entry.died, tick);
    if planted(Bug::NewestVersion) { own.rfind(serves) } else { own.find(serves) }
}

/// Puts back into `copy`, which has room for it, what the `kept` entries say of the cut at `tick`.
fn put_back(kept: &Page, tick: u64, copy: &mut Page) {
    let (mut old, mut key) = (0, kept.prefix().to_vec());
    while old < kept.len() {
        kept.show(old, &mut key);
        let last = last_of(kept, old, &key);
        if let Some(entry) = serving(kept, old, last, tick) {
            let entry = Entry { died: 0, ..entry };
            // What the copy gives up, the leaf still has.
            match (copy.find(&key), entry.is_absent()) {
                (Ok(at), true) => drop(copy.remove(at)),
                (Ok(at), false) => drop(copy.replace(at, &key, &entry)),
                (Err(at), false) => copy.insert(at, &key, &entry),
                (Err(_), true) => {}
            }
        }
        old = last + 1;
    }
}

/// Appends to `out` what `present` and the `kept` entries say of the cut at `tick`, within `out`'s fences.
fn merge_at(present: &Page, kept: &Page, tick: u64, out: &mut Page) {
    let low = out.low().to_vec();
    let high = out.high().map(<[u8]>::to_vec);
    let (mut at, mut old) = (present.seek(&low), kept.seek(&low));
    let end_of = |page: &Page| high.as_deref().map_or(page.len(), |high| page.seek(high));
    let (end, old_end) = (end_of(present), end_of(kept));
    let (mut key, mut old_key) = (Vec::new(), Vec::new());
    while at < end || old < old_end {
        if at < end {
            present.key_into(at, &mut key);
        }
        if old < old_end {
            kept.key_into(old, &mut old_key);
        }
        let order = match (at < end, old < old_end) {
            (true, true) => key.cmp(&old_key),
            (true, false) => Ordering::Less,
            _ => Ordering::Greater,
        };
        if order.is_lt() {
            out.insert(out.len(), &key, &present.entry(at));
            at += 1;
            continue;
        }
        // Of the key's kept entries the first that died after the cut, if any.
        let last = last_of(kept, old, &old_key);
        match serving(kept, old, last, tick) {
            Some(entry) if entry.is_absent() => {}
            Some(entry) => out.insert(out.len(), &old_key, &Entry { died: 0, ..entry }),
            None if order.is_eq() => out.insert(out.len(), &key, &present.entry(at)),
            None => {}
        }
        at += usize::from(order.is_eq());
        old = last + 1;
    }
}

/// The trash of a write in a leaf that keeps something: large values that only stills need now are counted so.
pub(crate) fn mark_retained(trash: &Trash, leaf: &Leaf) {
    if let Some(large) = trash
        && leaf.kept.is_some()
    {
        large.retain();
    }
}
