//! Opening a directory: its snapshot and its log become a database, which goes on in a new segment.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::panic::resume_unwind;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crate::commit::{CATALOGUE, KeyspaceSlot, LoggedEffect, Totals};
use crate::database::Database;
use crate::format::leaves::KeyspaceSums;
use crate::format::log::Base;
use crate::format::record::{Effects, HistoryBody};
use crate::format::snapshot::{Footer, Span};
use crate::keys::{self, CATALOGUE_ID, PREFIX_LEN};
use crate::options::Builder;
use crate::position::{Position, Seq};
use crate::saver::LastSave;
use crate::storage::directory::Directory;
use crate::storage::load::{Loaded, load_file};
use crate::storage::log::{Closed, FIRST_SEGMENT_BYTES, Log};
use crate::storage::recovery::{
    Applied, Apply, ApplyError, Listed, Refusal, SegmentFact, SnapshotFact, is_on, plan, replay,
    sync_replayed,
};
use crate::storage::segment::{Begun, Found, Spare};
use crate::storage::snapshot_file::SnapshotFile;
use crate::tree::{BatchOp, BuiltLeaf, Bulk, Changes, RangeDelete, Scan, Tree, new_value};
use crate::{Error, Fault, Result};

/// The keyspaces that there are, by name and by id.
#[derive(Default)]
pub(crate) struct Catalogue {
    pub(crate) names: HashMap<String, (u32, KeyspaceSlot)>,
    /// Also of keyspaces that are being dropped.
    pub(crate) slots: HashMap<u32, KeyspaceSlot>,
    pub(crate) next_id: u32,
}

/// All that a database is made of, before it is one.
pub(crate) struct Content {
    pub(crate) tree: Arc<Tree>,
    pub(crate) catalogue: Catalogue,
    /// The histories of its line so far.
    pub(crate) lineage: Vec<Span>,
}

/// What an open directory has beside its content.
pub(crate) struct OnDisk {
    pub(crate) log: Arc<Log>,
    /// Ordinal and last batch of each snapshot, oldest first.
    pub(crate) snapshots: Vec<(u64, Seq)>,
    pub(crate) last_save: LastSave,
}

impl Catalogue {
    pub(crate) fn new() -> Self {
        Self { next_id: CATALOGUE_ID + 1, ..Self::default() }
    }

    /// The counters of keyspace `id`.
    fn slot(&mut self, tree: &Tree, id: u32) -> KeyspaceSlot {
        if id == CATALOGUE_ID {
            return CATALOGUE;
        }
        self.next_id = self.next_id.max(id.saturating_add(1));
        *self.slots.entry(id).or_insert_with(|| tree.commit.add_keyspace())
    }
}

impl Content {
    /// Nothing yet.
    pub(crate) fn empty(builder: &Builder) -> Self {
        let tree = Arc::new(Tree::new(builder.config.clone()));
        Self { tree, catalogue: Catalogue::new(), lineage: Vec::new() }
    }

    /// What was loaded into `bulk`.
    pub(crate) fn loaded(bulk: Bulk, loaded: Loaded<BuiltLeaf>) -> Result<Self> {
        let Loaded { leaves, footer, lineage, mut keyspaces } = loaded;
        let of = |sums: KeyspaceSums| Totals {
            records: sums.entries,
            bytes: sums.raw_bytes,
            fingerprint: sums.fingerprint,
        };
        let mut totals = vec![keyspaces.remove(&CATALOGUE_ID).map_or(Totals::default(), of)];
        let mut catalogue = Catalogue::new();
        for (id, sums) in keyspaces {
            #[expect(clippy::cast_possible_truncation, reason = "no more keyspaces than ids")]
            catalogue.slots.insert(id, KeyspaceSlot(totals.len() as u32));
            totals.push(of(sums));
        }
        let Footer { position, time_ms, .. } = footer;
        let tree = Arc::new(bulk.finish(leaves, position, time_ms, totals));
        let mut named = Vec::new();
        Scan::of_present(&tree, keys::all(CATALOGUE_ID))?.each(|key, entry| {
            // Both were proven by the loader: a name, and four bytes of id.
            let id = entry.value.bytes().first_chunk().map(|id| u32::from_le_bytes(*id));
            let name = String::from_utf8_lossy(&key[PREFIX_LEN..]).into_owned();
            named.extend(id.map(|id| (name, id)));
            ControlFlow::Continue(())
        })?;
        for (name, id) in named {
            let slot = catalogue.slot(&tree, id);
            catalogue.names.insert(name, (id, slot));
        }
        Ok(Self { tree, catalogue, lineage })
    }
}

impl Database {
    /// See [`Builder::open`].
    pub(crate) fn open_with(builder: Builder, path: &Path) -> Result<Self> {
        let directory = Directory::claim(Arc::clone(&builder.disk), path)?;
        let listed = Listed::read(&directory)?;
        let mode = builder.recovery;
        let found = listed.segments.iter().map(|ordinal| Found::read(&directory, *ordinal));
        let found: Vec<Found> = found.collect::<Result<_>>()?;
        let mut snapshots = BTreeMap::new();
        let mut snapshot_facts = Vec::new();
        for &ordinal in &listed.snapshots {
            let file = SnapshotFile::open_on(&*builder.disk, &directory.snapshot(ordinal));
            let seq = file.as_ref().ok().map(|file| file.info().position.seq);
            snapshots.insert(ordinal, file);
            snapshot_facts.push(SnapshotFact { ordinal, seq });
        }
        let fact =
            |found: &Found| SegmentFact { ordinal: found.ordinal, begun: found.beginning.clone() };
        let facts: Vec<_> = found.iter().map(fact).collect();
        let plan = match plan(mode, &facts, &snapshot_facts) {
            Ok(plan) => plan,
            Err(refusal) => return Err(refused(&directory, refusal, &mut snapshots)),
        };

        let mut last = LastSave { seq: Seq(0), bytes: 0, log_bytes: 0, when: Instant::now() };
        let mut content = match plan.snapshot {
            None => Content::empty(&builder),
            Some(ordinal) => {
                let file = snapshots.remove(&ordinal).expect("it was listed")?;
                last.seq = file.info().position.seq;
                last.bytes = file.info().file_bytes;
                let bulk = Bulk::new(builder.config.clone());
                // A thread for a megabyte at the least: fewer are quicker with less.
                let most = usize::try_from(last.bytes >> 20).unwrap_or(usize::MAX).max(1);
                let threads = thread::available_parallelism().map_or(1, usize::from).min(most);
                let loaded = load_file(file.reader(), &bulk, threads)?;
                Content::loaded(bulk, loaded)?
            }
        };
        drop(snapshots);
        let position = content.tree.commit.position();
        let from = Base { position, time_ms: content.tree.commit.time_ms(), chain: 0 };
        let spans: Vec<_> =
            content.lineage.iter().map(|span| (span.history, span.start, span.end)).collect();
        let needed = |found: &Found| {
            plan.segments.contains(&found.ordinal) || plan.blank.contains(&found.ordinal)
        };
        let (chain, outdated): (Vec<Found>, Vec<Found>) = found.into_iter().partition(needed);
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let mut replayer = Replayer::new(&mut content, threads);
        let on_line = |position| is_on(spans.iter().copied(), position);
        let ahead = builder.keeps_log_by_itself;
        let mut recovered = replay(&directory, mode, &chain, from, on_line, &mut replayer, ahead)?;
        let end = recovered.closed.last().map(|last| (directory.segment(last.ordinal), last.bytes));
        replayer.finish(&recovered.base).map_err(|error| match (error, end) {
            (ApplyError::Error(error), _) => error,
            (ApplyError::Fault(fault), Some((path, end))) => Error::corrupt(&path, end, fault),
            (ApplyError::Fault(fault), None) => Error::corrupt(&directory.path, 0, fault),
        })?;
        sync_replayed(&directory, &recovered)?;
        for name in &listed.temporary {
            directory.remove(&directory.path.join(name))?;
        }
        let mut next_ordinal = listed.next_ordinal();
        let is_blank = |found: &&Found| matches!(found.beginning, Begun::No);
        let newest = plan.blank.last();
        let (kept, spent): (Vec<&Found>, Vec<&Found>) =
            chain.iter().filter(is_blank).partition(|found| Some(&found.ordinal) == newest);
        let kept = kept.first().map(|found| Spare::reopen(&directory, found));
        let mut spare = kept.transpose()?;
        // A directory with a snapshot always has a segment: first another one, then those go that are of no use.
        if spare.is_none() && (recovered.useless.is_some() || !spent.is_empty()) {
            spare = Some(Spare::make(&directory, next_ordinal, FIRST_SEGMENT_BYTES)?);
            next_ordinal += 1;
        }
        for path in spent.iter().map(|found| &found.path).chain(&recovered.useless) {
            directory.remove(path)?;
        }
        let older = outdated.iter().map(|found| Closed {
            ordinal: found.ordinal,
            bytes: found.len,
            last: Seq(0),
            time_ms: 0,
        });
        recovered.closed.splice(0..0, older);

        let node = directory.identity.node;
        let chain = recovered.base.chain;
        let start = recovered.start(next_ordinal);
        let log = Arc::new(Log::new(directory, builder.segment_bytes, start, spare));
        let room: Arc<Log> = Arc::clone(&log);
        content.tree.commit.attach_log(chain, node, room);
        let of = |fact: &SnapshotFact| (fact.ordinal, fact.seq.unwrap_or_default());
        let snapshots = snapshot_facts.iter().map(of).collect();
        let on_disk = OnDisk { log, snapshots, last_save: last };
        Self::over(content, Some(on_disk), node, builder)
    }
}

/// What a refusal looks like from outside.
fn refused(
    directory: &Directory,
    refusal: Refusal,
    snapshots: &mut BTreeMap<u64, Result<SnapshotFile>>,
) -> Error {
    match refusal {
        Refusal::Damaged { snapshot } => {
            let damaged = snapshots.values_mut().rev().find(|file| file.is_err());
            let opened = damaged.map(|file| std::mem::replace(file, Err(Error::Closed)));
            let path = directory.snapshot(snapshot);
            let unknown = || Error::corrupt(&path, 0, Fault::Missing);
            opened.and_then(Result::err).unwrap_or_else(unknown)
        }
        Refusal::Gap { segment, base } => {
            Error::corrupt(&directory.segment(segment), 0, Fault::NoBase { base })
        }
        Refusal::NoLog { snapshot } => {
            Error::corrupt(&directory.snapshot(snapshot), 0, Fault::NoLog)
        }
    }
}

/// From so many operations on they are applied, by several threads.
const WINDOW: usize = 8_192;
/// So many are one batch of the tree: their cache misses overlap.
const BATCH: usize = 1_024;

/// Applies what the log holds. Batches that only put and remove are joined, the last of each key counting: nobody
/// looks in between, and a leaf's stamp may be newer than its last change.
struct Replayer<'a> {
    content: &'a mut Content,
    /// In the order of the log.
    ops: Vec<ReplayedOp>,
    /// Keys and values.
    bytes: Vec<u8>,
    /// Of the last batch among the operations.
    position: Position,
    time_ms: u64,
    /// What a mark said directly behind that batch.
    marked: Option<u64>,
    threads: usize,
}

struct ReplayedOp {
    slot: KeyspaceSlot,
    /// Where its key begins among the bytes, and its value behind it.
    key: usize,
    value: usize,
    end: usize,
    /// `None` removes.
    expire_at: Option<u64>,
}

impl<'a> Replayer<'a> {
    fn new(content: &'a mut Content, threads: usize) -> Self {
        let position = content.tree.commit.position();
        let (ops, bytes) = (Vec::new(), Vec::new());
        Self { content, ops, bytes, position, time_ms: 0, marked: None, threads }
    }

    fn add(&mut self, key: &[u8], put: Option<(&[u8], u64)>) -> std::result::Result<(), Fault> {
        let id = id_of(key);
        if id == CATALOGUE_ID {
            self.rename(&key[PREFIX_LEN..], put)?;
        }
        let slot = self.content.catalogue.slot(&self.content.tree, id);
        let start = self.bytes.len();
        self.bytes.extend_from_slice(key);
        let value = self.bytes.len();
        let (new, expire_at) = put.unzip();
        self.bytes.extend_from_slice(new.unwrap_or_default());
        let end = self.bytes.len();
        self.ops.push(ReplayedOp { slot, key: start, value, end, expire_at });
        Ok(())
    }

    /// A keyspace gets its name, or loses it.
    fn rename(&mut self, name: &[u8], put: Option<(&[u8], u64)>) -> std::result::Result<(), Fault> {
        let name = std::str::from_utf8(name).map_err(|_| Fault::Text)?.to_owned();
        let Some((value, _)) = put else {
            self.content.catalogue.names.remove(&name);
            return Ok(());
        };
        let id = value.try_into().map(u32::from_le_bytes).unwrap_or(CATALOGUE_ID);
        if id == CATALOGUE_ID {
            let (got, min, max) = (id.into(), 1, u32::MAX.into());
            return Err(Fault::Range { field: "id of a keyspace", got, min, max });
        }
        let slot = self.content.catalogue.slot(&self.content.tree, id);
        self.content.catalogue.names.insert(name, (id, slot));
        Ok(())
    }

    /// The log ends at `base`.
    fn finish(mut self, base: &Base) -> Applied {
        self.flush()?;
        if let Some(last) = self.content.lineage.last_mut() {
            last.end = base.position.seq;
        }
        Ok(())
    }
}

/// The keyspace's id in front of an internal key, which the decoder has seen to.
fn id_of(key: &[u8]) -> u32 {
    key.first_chunk().map_or(CATALOGUE_ID, |id| u32::from_be_bytes(*id))
}

impl Apply for Replayer<'_> {
    fn batch(&mut self, position: Position, time_ms: u64, body: &[u8]) -> Applied {
        let mut ranges = Vec::new();
        for effect in Effects::new(body) {
            match effect.map_err(|damage| ApplyError::Fault(damage.fault))? {
                LoggedEffect::Put { key, value, expire_at } => {
                    self.add(key, Some((value, expire_at))).map_err(ApplyError::Fault)?;
                }
                LoggedEffect::Remove { key } => self.add(key, None).map_err(ApplyError::Fault)?,
                LoggedEffect::RemoveRange { low, high } => {
                    // What came before is removed by it, what the same batch puts is not.
                    if ranges.is_empty() {
                        self.flush()?;
                    }
                    let slot = self.content.catalogue.slot(&self.content.tree, id_of(low));
                    let (low, high) = (low.to_vec(), high.to_vec());
                    ranges.push(RangeDelete { slot, low, high, prefix_len: PREFIX_LEN });
                }
            }
        }
        (self.position, self.time_ms, self.marked) = (position, time_ms, None);
        if !ranges.is_empty() {
            return self.apply(ranges);
        }
        // Mostly there is a mark before long, at which the sum can be compared.
        if self.ops.len() >= 2 * WINDOW { self.flush() } else { Ok(()) }
    }

    fn history(&mut self, position: Position, time_ms: u64, body: &HistoryBody) {
        let last = Seq(position.seq.0 - 1);
        if let Some(before) = self.content.lineage.last_mut() {
            before.end = last;
        }
        self.content.lineage.push(Span {
            history: body.history,
            term: body.term,
            writer: body.writer,
            start: position.seq,
            end: position.seq,
        });
        (self.position, self.time_ms) = (position, time_ms);
    }

    fn check(&mut self, fingerprint: u64) -> Applied {
        self.marked = Some(fingerprint);
        if self.ops.len() >= WINDOW { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Applied {
        self.apply(Vec::new())?;
        let got = self.content.tree.commit.all_totals().fingerprint;
        match self.marked {
            Some(expected) if got != expected => {
                let fault = Fault::Mismatch { field: "fingerprint", got, expected };
                Err(ApplyError::Fault(fault))
            }
            _ => Ok(()),
        }
    }
}

impl Replayer<'_> {
    /// Applies the operations collected, and `ranges` before them.
    fn apply(&mut self, ranges: Vec<RangeDelete>) -> Applied {
        let tree = &*self.content.tree;
        if self.ops.is_empty() && ranges.is_empty() {
            tree.commit.skip_to(self.position, self.time_ms);
            return Ok(());
        }
        let bytes = &self.bytes;
        let key = |op: &ReplayedOp| &bytes[op.key..op.value];
        // Stable: of operations on one key the last stays last.
        self.ops.sort_by(|a, b| key(a).cmp(key(b)));
        let ops = &self.ops;
        let is_last = |at: &usize| ops.get(at + 1).is_none_or(|next| key(next) != key(&ops[*at]));
        let last: Vec<&ReplayedOp> = (0..ops.len()).filter(is_last).map(|at| &ops[at]).collect();
        let (position, time_ms) = (self.position, self.time_ms);
        let apply = |ops: &[&ReplayedOp], ranges| -> Result<()> {
            let mut changes = Changes { ranges, ..Changes::default() };
            for op in ops {
                let value = &bytes[op.value..op.end];
                let put = op.expire_at.map(|expire_at| new_value(tree, value, expire_at));
                let (slot, prefix_len, put) = (op.slot, PREFIX_LEN, put.transpose()?);
                changes.ops.push(BatchOp { slot, key: key(op), prefix_len, put });
            }
            tree.replay(&changes, position, time_ms)
        };
        if !ranges.is_empty() {
            apply(&last, ranges)?;
        } else {
            // No two of them have a key in common: their order means nothing, there are no stills yet.
            let share = last.len().div_ceil(self.threads).max(BATCH);
            let in_batches = |share: &[&ReplayedOp]| {
                share.chunks(BATCH).try_for_each(|batch| apply(batch, Vec::new()))
            };
            let mut shares = last.chunks(share);
            let own = shares.next().unwrap_or_default();
            thread::scope(|scope| {
                let others: Vec<_> =
                    shares.map(|share| scope.spawn(move || in_batches(share))).collect();
                let mut done = in_batches(own);
                for other in others {
                    let other = other.join();
                    done = done.and(other.unwrap_or_else(|panic| resume_unwind(panic)));
                }
                done
            })?;
        }
        self.ops.clear();
        self.bytes.clear();
        Ok(())
    }
}
