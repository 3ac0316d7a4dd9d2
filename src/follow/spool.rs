//! What a source has sent of a state, block by block, until it is whole.
//!
//! Leaves are built as they come and wait here; the database stays what it is until all of them are there and add up. If the link is lost on the
//! way, what came is kept: each *pass*, a walk of some source over the state at a cut of its own, brings the keys below where it ended, the *zone*, to its cut. The next
//! pass, of whatever source that has this cut on its line, sends there only what changed since. At the end of a pass
//! everything stands at one batch.
//!
//! It rests on the database's own state as that was when it was begun: once that has moved, it is worth nothing.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

use crate::database::Engine;
use crate::follow::build::{Builders, Built};
use crate::format::snapshot::{FileId, Span};
use crate::format::spool::{SectionKind, SpoolHeader};
use crate::format::wire::CutMessage;
use crate::install::{Arrival, sums_of};
use crate::planted::{Bug, planted};
use crate::position::{Position, Seq};
use crate::replication::line::{end, has};
use crate::replication::needs::{Need, Needs};
use crate::storage::STREAM;
use crate::storage::load::{Arrived, Blocks};
use crate::storage::spool_file::SpoolFile;
use crate::tree::BuiltLeaf;
use crate::{Error, Fault, Result};

/// See the file's head.
pub(crate) struct Spool {
    builders: Builders,
    /// Mixed into the checksums of its blocks.
    file_id: FileId,
    /// The next block to come, and the first of those that are not part of it yet.
    next_block: u64,
    open_block: u64,
    /// The state that it rests on.
    base: Position,
    /// Up to where, and to which cut, passes came: the one that reaches farthest first, which is the oldest.
    zones: Vec<Zone>,
    /// The pass that runs.
    pass: Option<Pass>,
    /// What came, by where it starts: ranges that do not overlap, each with the leaves that tile it.
    runs: BTreeMap<Vec<u8>, Run>,
    /// Bytes of blocks that came.
    bytes: u64,
    /// Keeps it beyond this process, where there is a directory, for as long as that has room.
    file: Option<SpoolFile>,
    /// So many bytes may wait to be written there.
    flush_bytes: usize,
}

/// With each write the system call costs as much as the copying of so many pages.
const FLUSH_BYTES: usize = 256 << 10;

struct Zone {
    /// Where it ends; `None` at the end of the key space.
    end: Option<Vec<u8>>,
    cut: Position,
}

struct Pass {
    cut: CutMessage,
    blocks: Blocks,
    /// Where the last leaf block ended; `None` once that is the end of the key space.
    at: Option<Vec<u8>>,
    count: u64,
}

struct Run {
    high: Option<Vec<u8>>,
    leaves: Vec<BuiltLeaf>,
}

impl Spool {
    /// Rests on the present of `engine`.
    pub(crate) fn new(engine: &Engine, file_id: FileId, threads: usize) -> Self {
        let header = SpoolHeader { file_id, base: engine.tree().commit.position() };
        let file = engine.log().map(|log| SpoolFile::create(&log.directory, &header));
        // It is quicker the next time with it, and right without.
        let file = file.and_then(Result::ok);
        let mut spool = Self::empty(engine, &header, threads);
        spool.file = file;
        spool
    }

    fn empty(engine: &Engine, header: &SpoolHeader, threads: usize) -> Self {
        Self {
            builders: Builders::new(engine.tree().bulk(), threads),
            file_id: header.file_id,
            next_block: 0,
            open_block: 0,
            base: header.base,
            zones: Vec::new(),
            pass: None,
            runs: BTreeMap::new(),
            bytes: 0,
            file: None,
            // Who builds in turn is in no haste.
            flush_bytes: if threads > 0 { FLUSH_BYTES } else { 0 },
        }
    }

    /// What an earlier run has left, if it rests on the present.
    pub(crate) fn reopen(engine: &Engine, threads: usize) -> Option<Self> {
        let own = engine.tree().commit.position();
        let spool: RefCell<Option<Self>> = RefCell::new(None);
        let begin = |header: &SpoolHeader| {
            *spool.borrow_mut() =
                (header.base == own).then(|| Self::empty(engine, header, threads));
            header.base == own
        };
        let show = |kind, payload: &[u8]| {
            let mut spool = spool.borrow_mut();
            let Some(spool) = spool.as_mut() else { return false };
            match kind {
                SectionKind::Pass => {
                    CutMessage::decode(payload).is_ok_and(|cut| spool.begin_pass(cut).is_ok())
                }
                // One after the other: what is behind a block that makes no sense is cut off with it.
                SectionKind::Block => {
                    spool.add(payload).is_ok() && spool.settle_with(true, false).is_ok()
                }
            }
        };
        let file = SpoolFile::reopen(&engine.log()?.directory, begin, show)?;
        let mut spool = spool.into_inner()?;
        // A block that came without what it belongs to comes again, with another number.
        spool.open_block = spool.next_block;
        (spool.file, spool.pass) = (Some(file), None);
        Some(spool)
    }

    fn keep(&mut self, kind: SectionKind, payload: &[u8]) {
        let bytes = self.flush_bytes;
        self.write(|file| file.append(kind, payload, bytes));
    }

    fn write(&mut self, write: impl FnOnce(&mut SpoolFile) -> Result<()>) {
        if let Some(mut file) = self.file.take() {
            match write(&mut file) {
                Ok(()) => self.file = Some(file),
                // No room: it lives in memory alone.
                Err(_) => file.remove(),
            }
        }
    }

    /// It has come to what it was for, or is of no use.
    pub(crate) fn remove(mut self) {
        if let Some(file) = self.file.take() {
            file.remove();
        }
    }

    /// The pass goes no further, if one runs: what came of it whole counts.
    ///
    /// # Errors
    /// [`Error::Corrupt`] of a block that came and makes no sense.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let settled = self.wait();
        self.write(SpoolFile::flush);
        (self.next_block, self.pass) = (self.open_block, None);
        settled
    }

    /// Waits until all blocks that came are a part of it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] of one that makes no sense.
    pub(crate) fn wait(&mut self) -> Result<()> {
        self.settle_with(true, true)
    }

    /// What its blocks are to be numbered with, once it is settled.
    pub(crate) fn place(&self) -> (FileId, u64) {
        (self.file_id, self.next_block)
    }

    /// Bytes of blocks that came.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether anything is in it.
    pub(crate) fn is_begun(&self) -> bool {
        !self.zones.is_empty()
    }

    /// Whether it goes on with a source of this line, on the database as it is.
    pub(crate) fn is_usable(&self, own: Position, line: &[Span]) -> bool {
        self.base == own && self.zones.iter().all(|zone| has(line, zone.cut))
    }

    /// What it needs, where without it `base` would be needed.
    pub(crate) fn needs(&self, base: &Needs) -> Needs {
        let at = |zone: &Zone| if planted(Bug::ZoneOfBase) { Seq(u64::MAX) } else { zone.cut.seq };
        let zones = self.zones.iter().map(|zone| (zone.end.as_deref(), at(zone)));
        let mut needs = base.within_zones(zones);
        // Own leaves were merged since, or loaded anew, and the needs of one have come to be those of its neighbour too: a zone says
        // nothing of what was not needed then.
        for (low, high) in base.ranges_of(Need::Anything) {
            if !self.has_all(low, high) {
                needs.put(low, high, Need::Anything);
            }
        }
        needs
    }

    /// A pass begins.
    ///
    /// # Errors
    /// If it is on another line than those before.
    pub(crate) fn begin(&mut self, cut: CutMessage) -> std::result::Result<(), Fault> {
        let mut payload = Vec::new();
        cut.encode(&mut payload);
        self.begin_pass(cut)?;
        self.keep(SectionKind::Pass, &payload);
        Ok(())
    }

    fn begin_pass(&mut self, cut: CutMessage) -> std::result::Result<(), Fault> {
        if !self.zones.iter().all(|zone| has(&cut.lineage, zone.cut)) {
            return Err(Fault::Foreign { field: "line of a cut" });
        }
        let (blocks, at) = (Blocks::default(), Some(Vec::new()));
        self.pass = Some(Pass { cut, blocks, at, count: 0 });
        Ok(())
    }

    /// Takes the next block of the pass.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if it is not what should come.
    pub(crate) fn block(&mut self, block: &[u8]) -> Result<()> {
        self.add(block)?;
        self.settle_with(false, true)
    }

    fn add(&mut self, block: &[u8]) -> Result<()> {
        let early = Fault::Order { field: "messages of a pass" };
        let early = || Error::corrupt(Path::new(STREAM), 0, early);
        let pass = self.pass.as_mut().ok_or_else(early)?;
        let group = pass.blocks.take(block, &self.file_id, self.next_block)?;
        self.next_block += 1;
        self.bytes += block.len() as u64;
        pass.count += 1;
        if let Some(group) = group {
            self.builders.add(group, self.next_block);
        }
        Ok(())
    }

    /// Makes what has been built a part of it, and waits for `all` that is being built; `keeps` it in the file.
    fn settle_with(&mut self, all: bool, keeps: bool) -> Result<()> {
        while let Some(Built { group, leaves, end }) = self.builders.next(all) {
            if let Err(error) = leaves.and_then(|leaves| self.take(leaves)) {
                // Nor does what came behind it count.
                self.builders.clear();
                return Err(error);
            }
            self.open_block = end;
            if keeps {
                group.blocks().for_each(|block| self.keep(SectionKind::Block, block));
            }
        }
        Ok(())
    }

    fn take(&mut self, arrived: Arrived<BuiltLeaf>) -> Result<()> {
        let told = |fault| Error::corrupt(Path::new(STREAM), 0, fault);
        let early = || told(Fault::Order { field: "messages of a pass" });
        let pass = self.pass.as_mut().ok_or_else(early)?;
        let Arrived { low, high, leaves } = arrived;
        if pass.at.as_ref().is_none_or(|at| low < *at) {
            return Err(told(Fault::Order { field: "fences of leaf blocks" }));
        }
        pass.at.clone_from(&high);
        let cut = end(&pass.cut.lineage);
        self.put(low, high.clone(), leaves);
        self.reach(high, cut);
        Ok(())
    }

    /// The zone of the pass that runs reaches to `end`.
    fn reach(&mut self, end: Option<Vec<u8>>, cut: Position) {
        if self.zones.last().is_some_and(|last| last.cut == cut) {
            self.zones.pop();
        }
        let reaches_beyond = |zone: &Zone| match (&zone.end, &end) {
            (None, Some(_)) => true,
            (Some(other), Some(end)) => other > end,
            (_, None) => false,
        };
        self.zones.retain(reaches_beyond);
        self.zones.push(Zone { end, cut });
    }

    /// Puts leaves that tile `[low, high)` in the place of what is there.
    fn put(&mut self, low: Vec<u8>, high: Option<Vec<u8>>, leaves: Vec<BuiltLeaf>) {
        // The usual way: they go behind all there is.
        if let Some(mut last) = self.runs.last_entry()
            && last.get().high.as_ref() == Some(&low)
        {
            let run = last.get_mut();
            run.leaves.extend(leaves);
            run.high = high;
            return;
        }
        let below = self.runs.range(..low.clone()).next_back().map(|(start, _)| start.clone());
        let within = self.runs.range(low.clone()..).map(|(start, _)| start.clone());
        let within = within.take_while(|start| high.as_ref().is_none_or(|high| start < high));
        let touched: Vec<_> = below.into_iter().chain(within).collect();
        for start in touched {
            let Some(run) = self.runs.remove(&start) else { continue };
            let mut leaves = run.leaves.into();
            if start < low {
                let left = BuiltLeaf::take_below(&mut leaves, &low);
                let ends_before = run.high.as_ref().is_some_and(|end| *end <= low);
                let end = if ends_before { run.high.clone() } else { Some(low.clone()) };
                self.runs.insert(start, Run { high: end, leaves: left });
                if ends_before {
                    continue;
                }
            }
            let Some(high) = &high else { continue };
            if run.high.as_ref().is_none_or(|end| end > high) {
                drop(BuiltLeaf::take_below(&mut leaves, high));
                self.runs.insert(high.clone(), Run { high: run.high, leaves: leaves.into() });
            }
        }
        self.runs.insert(low, Run { high, leaves });
    }

    /// The pass has ended, with so many blocks, for all of which was waited: what came is the state at its cut, or what is to be put in the place of what is there for it, if in all ranges
    /// that `base` needs something came. `own` is the line of what is there.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if that is not so.
    pub(crate) fn end(&mut self, blocks: u64, base: &Needs, own: &[Span]) -> Result<Arrival> {
        let told = |fault| Error::corrupt(Path::new(STREAM), 0, fault);
        let early = || told(Fault::Order { field: "messages of a pass" });
        let pass = self.pass.take().ok_or_else(early)?;
        if pass.blocks.are_incomplete() {
            return Err(early());
        }
        if pass.count != blocks {
            let (field, got, expected) = ("blocks of a cut", pass.count, blocks);
            return Err(told(Fault::Mismatch { field, got, expected }));
        }
        if !self.covers(base) && !planted(Bug::CoverUnchecked) {
            return Err(told(Fault::Foreign { field: "range without a block" }));
        }
        let CutMessage { time_ms, records, fingerprint, chain, lineage, .. } = pass.cut;
        let runs = std::mem::take(&mut self.runs).into_values();
        let ranges: Vec<_> = runs.map(|run| run.leaves).collect();
        Ok(Arrival {
            sums: sums_of(ranges.iter().flatten()),
            ranges,
            position: end(&lineage),
            time_ms,
            chain,
            records,
            fingerprint,
            rewinds: !has(&lineage, end(own)),
            lineage,
        })
    }

    /// Whether something came for all that `base` needs whatever it is.
    fn covers(&self, base: &Needs) -> bool {
        base.ranges_of(Need::Anything).all(|(low, high)| self.has_all(low, high))
    }

    /// Whether all of `[low, high)` came.
    fn has_all(&self, low: &[u8], high: Option<&[u8]>) -> bool {
        let mut at = low.to_vec();
        loop {
            let run = self.runs.range(..=at.clone()).next_back();
            match run.map(|(_, run)| &run.high) {
                None => return false,
                Some(None) => return true,
                Some(Some(end)) if *end <= at => return false,
                Some(Some(end)) if high.is_some_and(|high| &end[..] >= high) => return true,
                Some(Some(end)) => at.clone_from(end),
            }
        }
    }
}

/// What a database with these own leaves needs of a source with which it has everything up to `fork`, beyond which its own count for nothing; of one
/// with which it has nothing, everything.
///
/// If what is here is `in_doubt`, what it sums up to decides as well.
pub(crate) fn needs_of(engine: &Engine, own: Position, fork: Option<Seq>, in_doubt: bool) -> Needs {
    let Some(fork) = fork else { return Needs::everywhere(Need::Anything) };
    if in_doubt {
        let mut ranges = Vec::new();
        engine.tree().leaf_sums(|low, stamp, sum| {
            let need = if stamp > fork { Need::Anything } else { Need::Unless(fork, sum) };
            ranges.push((low.to_vec(), need));
        });
        return Needs::of_ranges(ranges);
    }
    let mut needs = Needs::everywhere(Need::NewerThan(fork));
    if fork < own.seq {
        engine.tree().stamps(|low, high, stamp| {
            if stamp > fork {
                needs.set(low, high, Need::Anything);
            }
        });
    }
    needs
}
