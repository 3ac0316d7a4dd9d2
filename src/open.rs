//! Opening a directory: its snapshot and its log become a database, which goes on in a new segment.

use std::collections::{BTreeMap, HashMap};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use crate::commit::{CATALOGUE, KeyspaceSlot, Role, Totals, View};
use crate::database::Database;
use crate::format::leaves::KeyspaceSums;
use crate::format::log::Base;
use crate::format::snapshot::{Footer, Span};
use crate::keys::{self, CATALOGUE_ID, PREFIX_LEN};
use crate::options::Builder;
use crate::planted::{Bug, planted};
use crate::position::Seq;
use crate::progress::{OpenPhase, OpenReport, Progress};
use crate::replayer::Replayer;
use crate::salvage;
use crate::saver::LastSave;
use crate::storage::directory::Directory;
use crate::storage::load::{Loaded, load_file};
use crate::storage::log::{Closed, FIRST_SEGMENT_BYTES, Log};
use crate::storage::recovery::{
    Listed, Plan, Reads, Recovered, RecoveryMode, Refusal, Replay, SnapshotFact, Until, is_on,
    plan, settle,
};
use crate::storage::salvage::fault_of;
use crate::storage::salvage::snapshot::stated_seq;
use crate::storage::segment::{Begun, Found, Spare};
use crate::storage::snapshot_file::SnapshotFile;
use crate::storage::source::LeafSink;
use crate::tree::{BuiltLeaf, Bulk, LeafBuilder, Scan, Tree};
use crate::{Error, Fault, Result};

/// The keyspaces that there are, by name and by id.
#[derive(Default)]
pub(crate) struct Catalogue {
    pub(crate) names: HashMap<String, (u32, KeyspaceSlot)>,
    /// Also of keyspaces that are being dropped.
    pub(crate) slots: HashMap<u32, KeyspaceSlot>,
    /// What numbers stood for in views that are over: for stills of that time.
    pub(crate) earlier: Vec<(View, HashMap<u32, KeyspaceSlot>)>,
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
    /// Ordinal and last batch of each snapshot, oldest first; without a batch, of one that is damaged.
    pub(crate) snapshots: Vec<(u64, Option<Seq>)>,
    pub(crate) last_save: LastSave,
    pub(crate) report: OpenReport,
}

impl Catalogue {
    pub(crate) fn new() -> Self {
        Self { next_id: CATALOGUE_ID + 1, ..Self::default() }
    }

    /// A name is given to keyspace `id`. If another had that number, which a primary may give again when it was opened anew, it gets counters of its own:
    /// those of the other are for stills that have it.
    pub(crate) fn renew(&mut self, tree: &Tree, id: u32) {
        let is_named = self.names.values().any(|(other, _)| *other == id);
        if !is_named && self.slots.contains_key(&id) {
            self.earlier.push((tree.commit.view(), self.slots.clone()));
            self.slots.insert(id, tree.commit.add_keyspace());
            tree.commit.next_view();
        }
    }

    /// The counters of keyspace `id` in `view`, the present one being `now`.
    pub(crate) fn slot_in(&self, view: View, id: u32) -> Option<KeyspaceSlot> {
        let earlier = self.earlier.iter().find(|(earlier, _)| *earlier == view);
        earlier.map_or(&self.slots, |(_, slots)| slots).get(&id).copied()
    }

    /// The counters of keyspace `id`.
    pub(crate) fn slot(&mut self, tree: &Tree, id: u32) -> KeyspaceSlot {
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

    /// Entries of all keyspaces.
    pub(crate) fn records(&self) -> u64 {
        let commit = &self.tree.commit;
        commit.all_totals().records - commit.totals(CATALOGUE).records
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
        Scan::of_present(&tree, tree.commit.view(), keys::all(CATALOGUE_ID))?.each(
            |key, entry| {
                // Both were proven by the loader: a name, and four bytes of id.
                let id = entry.value.bytes().first_chunk().map(|id| u32::from_le_bytes(*id));
                let name = String::from_utf8_lossy(&key[PREFIX_LEN..]).into_owned();
                named.extend(id.map(|id| (name, id)));
                ControlFlow::Continue(())
            },
        )?;
        for (name, id) in named {
            let slot = catalogue.slot(&tree, id);
            catalogue.names.insert(name, (id, slot));
        }
        Ok(Self { tree, catalogue, lineage })
    }
}

/// A directory's content, read and proven. Nothing on the disk was changed for it.
pub(crate) struct Read {
    pub(crate) content: Content,
    listed: Listed,
    plan: Plan,
    /// The segments that were read, and those never begun; then those that nobody needs.
    segments: Vec<Found>,
    outdated: Vec<Found>,
    snapshots: Vec<SnapshotFact>,
    pub(crate) recovered: Recovered,
    last_save: LastSave,
    pub(crate) report: OpenReport,
}

impl Read {
    /// Reads what `directory` holds, as far as is wanted.
    pub(crate) fn new(builder: &Builder, directory: &Directory, until: Until) -> Result<Self> {
        let (began, mode) = (Instant::now(), builder.recovery);
        let listed = Listed::read(directory)?;
        let found = Found::all(directory, &listed)?;
        let facts: Vec<_> = found.iter().map(Found::fact).collect();
        let mut snapshots = Snapshots::open(directory, &listed.snapshots, until);
        let (plan, loaded) = loop {
            let plan = plan(mode, &facts, &snapshots.facts);
            let plan = plan.map_err(|refusal| snapshots.refused(directory, refusal))?;
            let Some(ordinal) = plan.snapshot else {
                if snapshots.is_any_beyond && plan.segments.is_empty() {
                    return Err(Error::OutOfReach { newest: None });
                }
                break (plan, None);
            };
            match snapshots.load(builder, ordinal) {
                Ok(loaded) => break (plan, Some(loaded)),
                // An older one may do.
                Err(error @ Error::Corrupt { .. }) => snapshots.set_damaged(ordinal, error),
                Err(error) => return Err(error),
            }
        };
        let (mut content, last_save) =
            loaded.unwrap_or_else(|| (Content::empty(builder), LastSave::default()));
        let position = content.tree.commit.position();
        let from = Base { position, time_ms: content.tree.commit.time_ms(), chain: 0 };
        let spans: Vec<_> =
            content.lineage.iter().map(|span| (span.history, span.start, span.end)).collect();
        let is_needed = |found: &Found| {
            plan.segments.contains(&found.ordinal) || plan.blank.contains(&found.ordinal)
        };
        let (segments, outdated): (Vec<_>, Vec<_>) = found.into_iter().partition(is_needed);

        let progress = builder.progress(OpenPhase::Replaying, bytes_of(&plan, &segments));
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let mut replayer = Replayer::new(&mut content, threads, &progress);
        let replay = Replay {
            directory,
            mode,
            segments: &segments,
            from,
            is_on_line: &|position| is_on(spans.iter().copied(), position),
            until,
            reads: if builder.keeps_log_by_itself { Reads::Ahead } else { Reads::Once },
        };
        let recovered = replay.run(&mut replayer)?;
        let batches = replayer.batches;
        replayer.finish(&recovered.base).map_err(|error| {
            let last = recovered.closed.last();
            let end = last.map(|last| (directory.segment(last.ordinal), last.bytes));
            let (path, offset) = end.unwrap_or_else(|| (directory.path.clone(), 0));
            error.at(&path, offset)
        })?;
        progress.end();
        let reached = recovered.base.position.seq;
        let is_enough = recovered.is_enough || reached >= until.seq;
        if !is_enough && let Some(error) = snapshots.more_than(plan.snapshot, reached) {
            return Err(error);
        }
        let report = OpenReport {
            position: recovered.base.position,
            snapshot: plan.snapshot.map(|_| position),
            damaged_snapshots: snapshots.damaged(directory),
            segments: recovered.closed.len() as u64,
            log_bytes: recovered.closed.iter().map(|closed| closed.bytes).sum(),
            batches,
            torn_bytes: recovered.torn.as_ref().map_or(0, |torn| torn.bytes),
            lost: Vec::new(),
            elapsed: began.elapsed(),
        };
        let snapshots = snapshots.facts;
        Ok(Self {
            content,
            listed,
            plan,
            segments,
            outdated,
            snapshots,
            recovered,
            last_save,
            report,
        })
    }

    /// Makes the directory end where it was read to, and goes on in it.
    pub(crate) fn go_on(self, directory: Directory, builder: Builder) -> Result<Database> {
        let Read { content, listed, plan, segments, mut recovered, .. } = self;
        directory.settle_anew()?;
        let useless = settle(&directory, &segments, &recovered)?;
        for name in &listed.temporary {
            directory.remove(&directory.path.join(name))?;
        }
        let mut next_ordinal = listed.next_ordinal();
        let is_blank = |found: &&Found| matches!(found.beginning, Begun::No);
        let newest = plan.blank.last();
        let (kept, spent): (Vec<&Found>, Vec<&Found>) =
            segments.iter().filter(is_blank).partition(|found| Some(&found.ordinal) == newest);
        let kept = kept.first().map(|found| Spare::reopen(&directory, found));
        let mut spare = kept.transpose()?;
        if planted(Bug::RemovedBeforeMade) {
            spent.iter().try_for_each(|found| directory.remove(&found.path))?;
        }
        // A directory with a snapshot always has a segment: first another one, then those go that are of no use.
        if spare.is_none() && (useless.is_some() || !spent.is_empty()) {
            spare = Some(Spare::make(&directory, next_ordinal, FIRST_SEGMENT_BYTES)?);
            next_ordinal += 1;
        }
        for path in spent.iter().map(|found| &found.path).chain(&useless) {
            directory.remove(path)?;
        }
        recovered.closed.splice(0..0, self.outdated.iter().map(Closed::outdated));
        let start = recovered.start(next_ordinal);
        let log = Log::new(directory, builder.segment_bytes, start, spare);
        let snapshots = self.snapshots.iter().map(|fact| (fact.ordinal, fact.seq)).collect();
        let (last_save, report) = (self.last_save, self.report);
        OnDisk { log: Arc::new(log), snapshots, last_save, report }.open(content, builder)
    }
}

/// Bytes of the segments that are to be replayed.
fn bytes_of(plan: &Plan, segments: &[Found]) -> u64 {
    let is_replayed = |found: &&Found| plan.segments.contains(&found.ordinal);
    segments.iter().filter(is_replayed).map(|found| found.len).sum()
}

impl OnDisk {
    /// `content` becomes a database that goes on in its log.
    pub(crate) fn open(self, content: Content, builder: Builder) -> Result<Database> {
        let node = self.log.directory.identity().node;
        let room: Arc<Log> = Arc::clone(&self.log);
        content.tree.commit.attach_log(self.log.chain(), room);
        if !self.log.directory.may_write(&content.lineage)? && !planted(Bug::AnyoneWrites) {
            content.tree.commit.set_role(Role::Replica);
        }
        Database::over(content, Some(self), node, builder)
    }
}

/// The snapshots of a directory.
pub(crate) struct Snapshots {
    pub(crate) facts: Vec<SnapshotFact>,
    files: BTreeMap<u64, Result<SnapshotFile>>,
    /// What was said to be in those that are damaged, where that could be read.
    said: BTreeMap<u64, Seq>,
    /// Whether there are others, beyond what is wanted.
    is_any_beyond: bool,
}

impl Snapshots {
    /// Opens those that hold nothing beyond `until`.
    pub(crate) fn open(directory: &Directory, ordinals: &[u64], until: Until) -> Self {
        let mut snapshots = Self {
            facts: Vec::new(),
            files: BTreeMap::new(),
            said: BTreeMap::new(),
            is_any_beyond: false,
        };
        for &ordinal in ordinals {
            let path = directory.snapshot(ordinal);
            let file = SnapshotFile::open_on(&*directory.disk, &path);
            if file.is_err()
                && let Some(seq) = stated_seq(&*directory.disk, &path)
            {
                snapshots.said.insert(ordinal, seq);
            }
            let info = file.as_ref().ok().map(SnapshotFile::info);
            if info.is_some_and(|info| until.has_passed(info.position.seq, info.time_ms)) {
                snapshots.is_any_beyond = true;
                continue;
            }
            let seq = info.map(|info| info.position.seq);
            snapshots.facts.push(SnapshotFact { ordinal, seq });
            snapshots.files.insert(ordinal, file);
        }
        snapshots
    }

    /// Loads one of them.
    pub(crate) fn load(&self, builder: &Builder, ordinal: u64) -> Result<(Content, LastSave)> {
        let Some(Ok(file)) = self.files.get(&ordinal) else { return Err(Error::Closed) };
        let (seq, bytes) = (file.info().position.seq, file.info().file_bytes);
        let bulk = Bulk::new(builder.config.clone());
        // A thread for a megabyte at the least: fewer are quicker with less.
        let most = usize::try_from(bytes >> 20).unwrap_or(usize::MAX).max(1);
        let threads = thread::available_parallelism().map_or(1, usize::from).min(most);
        let progress = builder.progress(OpenPhase::Loading, file.reader().footer.totals.leaves);
        let loaded =
            load_file(file.reader(), &Counted { sink: &bulk, progress: &progress }, threads)?;
        progress.end();
        let content = Content::loaded(bulk, loaded)?;
        Ok((content, LastSave { seq, bytes, ..LastSave::default() }))
    }

    /// One of them was found to be damaged.
    pub(crate) fn set_damaged(&mut self, ordinal: u64, error: Error) {
        let fact = self.facts.iter_mut().find(|fact| fact.ordinal == ordinal);
        let said = fact.expect("one of these").seq.take();
        self.said.extend(said.map(|seq| (ordinal, seq)));
        self.files.insert(ordinal, Err(error));
    }

    /// What is wrong with one that was passed over and may have held batches behind `last`.
    fn more_than(&mut self, chosen: Option<u64>, last: Seq) -> Option<Error> {
        let holds_more = |ordinal: &u64| self.said.get(ordinal).is_none_or(|seq| *seq > last);
        let damaged = self.files.iter().filter(|(_, file)| file.is_err());
        let mut newer =
            damaged.map(|(ordinal, _)| *ordinal).filter(|ordinal| Some(*ordinal) > chosen);
        let more = newer.rfind(holds_more)?;
        self.files.remove(&more)?.err()
    }

    /// What is wrong with those that are damaged, or can't be read.
    pub(crate) fn damaged(&self, directory: &Directory) -> Vec<(PathBuf, Fault)> {
        let damage = self.files.iter().filter_map(|(ordinal, file)| {
            let (_, fault) = fault_of(file.as_ref().err()?);
            Some((directory.snapshot(*ordinal), fault))
        });
        damage.collect()
    }

    /// What a refusal looks like from outside.
    fn refused(&mut self, directory: &Directory, refusal: Refusal) -> Error {
        let damage = match refusal {
            Refusal::Damaged { snapshot } => self.files.remove(&snapshot).and_then(Result::err),
            _ => None,
        };
        damage.unwrap_or_else(|| refusal.told(directory))
    }
}

/// Counts leaves that are built.
struct Counted<'a> {
    sink: &'a Bulk,
    progress: &'a Progress,
}

impl LeafSink for Counted<'_> {
    type Builder<'b>
        = LeafBuilder<'b>
    where
        Self: 'b;

    fn begin(&self, low: &[u8], high: Option<&[u8]>, stamp: Seq) -> LeafBuilder<'_> {
        self.progress.add(1);
        self.sink.begin(low, high, stamp)
    }
}

impl Database {
    /// See [`Builder::open`].
    pub(crate) fn open_with(builder: Builder, path: &Path) -> Result<Self> {
        if builder.recovery == RecoveryMode::Salvage {
            return salvage::open(builder, path);
        }
        let directory = Directory::claim(Arc::clone(&builder.disk), path)?;
        Read::new(&builder, &directory, Until::default())?.go_on(directory, builder)
    }
}
