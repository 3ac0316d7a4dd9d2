//! Cuts: the moments at which stills are read, and which of them live.

use std::sync::Arc;
use std::time::Instant;

use super::{Commit, Span, State, Totals, View, lineage};
use crate::Result;
use crate::planted::{Bug, planted};
use crate::position::Position;
use crate::slice::Slice;
use crate::sync::{Mutex, MutexGuard, Ordering};

/// What a still is held for.
///
/// ```
/// use stillframe::{Database, Holder};
///
/// let db = Database::in_memory();
/// let still = db.snapshot()?;
/// let held = db.stats().stills;
/// assert_eq!((held[0].holder, held[0].position), (Holder::Snapshot, still.position()));
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Holder {
    /// A [`Snapshot`](crate::Snapshot) of the caller's.
    Snapshot,
    /// A running save.
    Save,
    /// A range that is being read.
    Range,
    /// A transaction that reads ranges, or what others change meanwhile.
    Transaction,
    /// A replica that is sent leaves.
    Replica,
    /// What a replica goes on to show while the state that its source has sent is put in its place.
    Install,
}

/// A moment at which stills may be read.
#[derive(Debug)]
pub(crate) struct Cut {
    /// Counts the cuts of this process, from 1.
    pub(crate) id: u64,
    /// The tick of the last batch that the cut holds.
    pub(crate) tick: u64,
    pub(crate) position: Position,
    /// That of the records up to there.
    pub(crate) chain: u32,
    /// The histories that led there; the last ends at `position`, whatever it says.
    line: Arc<Vec<Span>>,
    /// What names mean in it.
    pub(crate) view: View,
    /// Unix milliseconds; expiry is judged by it.
    pub(crate) time_ms: u64,
    pub(crate) totals: Totals,
    /// When it was taken, and for what: for reports.
    pub(crate) taken: Instant,
    pub(crate) holder: Holder,
    /// Key ranges in which something is kept for this cut.
    ranges: Mutex<Ranges>,
}

/// A range of keys, by its fences.
pub(crate) type KeyRange = (Slice, Option<Slice>);

#[derive(Debug, Default)]
struct Ranges {
    listed: Vec<KeyRange>,
    /// Drained: who comes now must free what he keeps himself.
    closed: bool,
}

impl Cut {
    /// One more than the tick, so that 0 can mean "no cut".
    pub(crate) fn code(&self) -> u64 {
        self.tick + 1
    }

    /// The histories that led to it, oldest first.
    pub(crate) fn lineage(&self) -> Vec<Span> {
        lineage(&self.line, self.position.seq)
    }

    /// Lists `range`; `false` if the list was drained for good.
    #[must_use]
    pub(crate) fn list(&self, range: KeyRange) -> bool {
        let mut ranges = self.ranges.lock();
        let is_open = !ranges.closed || planted(Bug::ListNeverCloses);
        if is_open {
            ranges.listed.push(range);
        }
        is_open
    }

    /// Takes one listed range; after `None` the list is closed.
    pub(crate) fn take_range(&self) -> Option<KeyRange> {
        let mut ranges = self.ranges.lock();
        ranges.closed = ranges.listed.is_empty();
        ranges.listed.pop()
    }

    fn has_ranges(&self) -> bool {
        !self.ranges.lock().listed.is_empty()
    }
}

impl Commit {
    /// Takes a cut: one short lock, whatever the size of the data.
    pub(crate) fn cut(&self, now_ms: u64, holder: Holder) -> Result<Arc<Cut>> {
        let taken = Instant::now();
        let state = self.state.lock();
        self.check()?;
        Ok(self.take_cut(state, taken, now_ms, holder))
    }

    pub(super) fn take_cut<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        taken: Instant,
        now_ms: u64,
        holder: Holder,
    ) -> Arc<Cut> {
        let time_ms = now_ms.max(state.last_time_ms);
        state.last_time_ms = time_ms;
        state.cuts_taken += 1;
        let tick = state.installing.unwrap_or(state.tick);
        if planted(Bug::CutReadsTwice) {
            drop(state);
            state = self.state.lock();
        }
        let cut = Arc::new(Cut {
            id: state.cuts_taken,
            tick,
            position: state.position,
            chain: state.chain(),
            line: Arc::clone(&state.line),
            // Changed under the lock that is held.
            view: self.view(),
            time_ms,
            totals: state.totals,
            taken,
            holder,
            ranges: Mutex::default(),
        });
        if planted(Bug::CutCountedLate) {
            drop(state);
            state = self.state.lock();
        }
        state.cuts.push(Arc::clone(&cut));
        self.set_hints(&state);
        drop(state);
        self.meters.cut.record(taken.elapsed());
        cut
    }

    /// The cut leaves the live set. `true` if something may be kept that only it needed.
    #[must_use]
    pub(crate) fn drop_cut(&self, cut: &Arc<Cut>) -> bool {
        let mut state = self.state.lock();
        if planted(Bug::SameTickIsOneCut) {
            state.cuts.retain(|live| live.tick != cut.tick);
        } else {
            let at = state.cuts.iter().rposition(|live| Arc::ptr_eq(live, cut));
            state.cuts.remove(at.expect("a cut is dropped once"));
        }
        self.set_hints(&state);
        let keeping = !state.keeping.is_empty();
        drop(state);
        keeping || cut.has_ranges()
    }

    /// Ticks of the live cuts but that of id `passed_by`, ascending.
    pub(crate) fn live_ticks(&self, passed_by: u64) -> Vec<u64> {
        let state = self.state.lock();
        state.cuts.iter().filter(|cut| cut.id != passed_by).map(|cut| cut.tick).collect()
    }

    /// The live cuts, ascending by tick.
    pub(crate) fn live_cuts(&self) -> Vec<Arc<Cut>> {
        self.state.lock().cuts.clone()
    }

    /// The tick of the newest live cut other than that of id `passed_by`; may be out of date at once.
    pub(crate) fn newest_hint(&self, passed_by: u64) -> Option<u64> {
        let is_passed = passed_by != 0 && self.newest_id.load(Ordering::Relaxed) == passed_by;
        let code = if is_passed { &self.second_code } else { &self.newest_code };
        code.load(Ordering::Relaxed).checked_sub(1)
    }

    fn set_hints(&self, state: &State) {
        let mut newest = state.cuts.iter().rev();
        let (first, second) = (newest.next(), newest.next());
        let code = |cut: Option<&Arc<Cut>>| cut.map_or(0, |cut| cut.code());
        self.newest_code.store(code(first), Ordering::Relaxed);
        self.newest_id.store(first.map_or(0, |cut| cut.id), Ordering::Relaxed);
        self.second_code.store(code(second), Ordering::Relaxed);
    }
}
