//! The view: what readers of the present are shown, and what names mean there. It changes when a state takes the place of another.

use std::sync::Arc;
use std::time::Instant;

use super::{Commit, Cut, Holder, KeyspaceSlot, Role, Span, Totals};
use crate::clock::uptime_ms;
use crate::planted::{Bug, planted};
use crate::position::{Position, Seq};
use crate::sync::Ordering;
use crate::{Error, Result};

/// A state that was put in the place of the present, to be shown.
#[derive(Debug)]
pub(crate) struct Installed {
    pub(crate) position: Position,
    pub(crate) time_ms: u64,
    pub(crate) lineage: Vec<Span>,
    /// That of the records up to there.
    pub(crate) chain: u32,
    pub(crate) totals: Totals,
    /// Those of each keyspace that there is.
    pub(crate) keyspaces: Vec<(KeyspaceSlot, Totals)>,
    /// Keyspaces that there are no more, or that are called something else.
    pub(crate) dropped: Vec<KeyspaceSlot>,
    /// Whether any name means something else than before.
    pub(crate) renames: bool,
}

/// What names mean, to those who read the present: moves on when a state is installed in which they mean something else.
///
/// Every read compares it under its latches, as a whole, with what it was when its keyspace's name was looked up: one comparison
/// tells that the leaves are the present, that it may be shown, and that the keyspace is still that one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct View(u64);

/// A moment, to be told later what has not changed since.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Since {
    pub(crate) seq: Seq,
    /// Seqs go back when a replica is rewound, and stamps with them.
    pub(crate) tick: u64,
}

impl View {
    /// The state can't be vouched for. Set once, never cleared.
    const POISONED: u64 = 1;
    /// Leaves hold what is not to be seen yet: the present is read at a tick before.
    const INSTALLING: u64 = 2;
    /// A replica lost touch with its source, and refuses reads some time after that.
    const OUT_OF_TOUCH: u64 = 4;
    const FLAGS: u64 = 7;
    const GENERATION: u64 = 8;

    pub(crate) fn bits(self) -> u64 {
        self.0
    }

    /// What [`bits`](Self::bits) told.
    pub(crate) fn from_bits(bits: u64) -> Self {
        View(bits)
    }
}

impl Commit {
    /// What names mean now.
    pub(crate) fn view(&self) -> View {
        View(self.view.load(Ordering::Acquire) & !View::FLAGS)
    }

    /// From now on a name, or a number, may mean something else.
    pub(crate) fn next_view(&self) {
        // Under the lock, as every change of these bits.
        let _state = self.state.lock();
        self.view.fetch_add(View::GENERATION, Ordering::AcqRel);
    }

    /// What a reader of `view` finds in the leaves whose latches it holds: the present (`None`), or, while another state is
    /// installed, that of the tick.
    ///
    /// # Errors
    /// [`Error::Poisoned`]; [`Error::NoKeyspace`] if names mean something else by now.
    #[inline]
    pub(crate) fn sight(&self, view: View) -> Result<Option<u64>> {
        match self.view.load(Ordering::Acquire) == view.0 {
            true => Ok(None),
            false => self.sight_aside(view),
        }
    }

    #[cold]
    fn sight_aside(&self, view: View) -> Result<Option<u64>> {
        loop {
            let now = self.view.load(Ordering::Acquire);
            if now & View::POISONED != 0 {
                return Err(Error::Poisoned);
            }
            if now & !View::FLAGS != view.0 {
                return Err(Error::NoKeyspace);
            }
            self.check_in_touch(now)?;
            if now & View::INSTALLING == 0 {
                return Ok(None);
            }
            let tick = self.shown_tick.load(Ordering::Acquire);
            // Else it may be that of another time.
            if self.view.load(Ordering::Acquire) == now {
                return Ok(Some(tick));
            }
        }
    }

    /// Refuses who wants to read what may be too old.
    ///
    /// # Errors
    /// [`Error::Stale`].
    pub(crate) fn check_fresh(&self) -> Result<()> {
        self.check_in_touch(self.view.load(Ordering::Acquire))
    }

    fn check_in_touch(&self, view: u64) -> Result<()> {
        // Relaxed: stored before the flag that was seen is set.
        let is_refused = view & View::OUT_OF_TOUCH != 0
            && uptime_ms() >= self.refuse_from_ms.load(Ordering::Relaxed);
        if is_refused { Err(Error::Stale) } else { Ok(()) }
    }

    /// Reads are refused from this time on; without, they aren't.
    pub(crate) fn refuse_reads_from(&self, uptime_ms: Option<u64>) {
        let _state = self.state.lock();
        match uptime_ms {
            Some(from) => {
                self.refuse_from_ms.store(from, Ordering::Relaxed);
                self.view.fetch_or(View::OUT_OF_TOUCH, Ordering::AcqRel);
            }
            None => {
                self.view.fetch_and(!View::OUT_OF_TOUCH, Ordering::AcqRel);
            }
        }
    }

    /// A keyspace's totals, as they are shown to a reader of `view`.
    ///
    /// # Errors
    /// As [`sight`](Self::sight).
    pub(crate) fn totals_seen(&self, view: View, slot: KeyspaceSlot) -> Result<Totals> {
        let state = self.state.lock();
        // While a state is installed the totals are those of the one before.
        self.sight(view)?;
        Ok(state.keyspaces[slot.0 as usize].now)
    }

    /// From now on reads and cuts of the present are of the state as it is, until [`end_install`](Self::end_install). Returns a cut of
    /// it, and the tick of the state to come.
    pub(crate) fn begin_install(&self, now_ms: u64, rewinds: bool) -> Result<(Arc<Cut>, u64)> {
        let taken = Instant::now();
        let mut state = self.state.lock();
        self.check()?;
        assert!(state.installing.is_none(), "one state is installed at a time");
        let shown = state.tick;
        state.installing = Some(shown);
        state.tick += 1;
        let tick = state.tick;
        if rewinds {
            self.rewound_tick.store(tick, Ordering::Release);
        }
        self.shown_tick.store(shown, Ordering::Release);
        if !planted(Bug::InstallShownEarly) {
            self.view.fetch_or(View::INSTALLING, Ordering::AcqRel);
        }
        Ok((self.take_cut(state, taken, now_ms, Holder::Install), tick))
    }

    /// Shows the state that was installed.
    pub(crate) fn end_install(&self, installed: Installed) {
        let Installed { position, time_ms, lineage, chain, totals, keyspaces, dropped, renames } =
            installed;
        let mut guard = self.state.lock();
        let state = &mut *guard;
        assert!(state.installing.take().is_some(), "nothing is being installed");
        state.position = position;
        state.last_time_ms = state.last_time_ms.max(time_ms);
        state.line = Arc::new(lineage);
        state.chain = chain;
        if let Some(tail) = &mut state.tail {
            tail.go_on_from(chain);
        }
        state.drawn = None;
        self.has_history.store(false, Ordering::Relaxed);
        state.totals = totals;
        let newest = state.cuts.last().map(|cut| cut.tick);
        for (slot, totals) in keyspaces {
            state.keep_totals(slot, newest);
            state.keyspaces[slot.0 as usize].now = totals;
        }
        for slot in dropped {
            state.keyspaces[slot.0 as usize].dropped = true;
        }
        let moves = if renames { View::GENERATION } else { 0 };
        let next = |view: u64| Some((view & !View::INSTALLING) + moves);
        let _ = self.view.fetch_update(Ordering::AcqRel, Ordering::Acquire, next);
    }

    /// Whether what leaves say of their last change means nothing to the cut of this tick. Asked under a leaf's latch.
    pub(crate) fn is_rewound(&self, tick: u64) -> bool {
        self.rewound_tick.load(Ordering::Acquire) > tick
    }

    /// The present, by which a leaf's stamp can tell later that it has not changed; `None` on a replica, whose present is replaced as a
    /// whole from time to time.
    pub(crate) fn since(&self) -> Option<Since> {
        let state = self.state.lock();
        let since = Since { seq: state.position.seq, tick: state.tick };
        (state.role == Role::Primary).then_some(since)
    }

    /// Whether a leaf of this stamp has had no change since. Asked under its latch.
    pub(crate) fn is_unchanged(&self, since: Since, stamp: Seq) -> bool {
        stamp <= since.seq && !self.is_rewound(since.tick)
    }

    /// Refuses everything from now on.
    pub(crate) fn poison(&self) {
        self.view.fetch_or(View::POISONED, Ordering::AcqRel);
    }

    /// Fails if the database is poisoned.
    #[inline]
    pub(crate) fn check(&self) -> Result<()> {
        let is_poisoned = self.view.load(Ordering::Acquire) & View::POISONED != 0;
        if is_poisoned { Err(Error::Poisoned) } else { Ok(()) }
    }
}
