//! Copies of a whole database: made while it is open, and made into a database again, as of any batch that was kept.

use std::io::Read as Input;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::clock::random_id;
use crate::commit::Holder;
use crate::database::Database;
use crate::open::{Content, Read};
use crate::options::Builder;
use crate::position::{Position, Seq};
use crate::storage::backup::{BLANK_BYTES, copy, refuse_in_use};
use crate::storage::directory::Directory;
use crate::storage::load::load_stream;
use crate::storage::recovery::Until;
use crate::storage::save::SaveHandle;
use crate::storage::segment::Spare;
use crate::storage::source;
use crate::tree::{Bulk, Pass};
use crate::{Error, Fault, Result};

/// What a [backup](Builder::backup) holds.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-backed-{}", std::process::id()));
/// # std::fs::create_dir(&dir).unwrap();
/// use stillframe::{Database, DirectoryInfo};
///
/// let db = Database::open(dir.join("live"))?;
/// db.keyspace("notes")?.insert("1", "first")?;
/// let report = db.backup(dir.join("copy"))?;
/// println!("{} bytes in {} files, in {:?}", report.bytes, report.files, report.elapsed);
/// assert_eq!(DirectoryInfo::read(dir.join("copy"))?.position, report.position);
/// # db.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct BackupReport {
    /// The last batch in it.
    pub position: Position,
    /// Files copied: segments of the log, and a snapshot.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// What a directory was [restored](Builder::restore) to.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-restored-{}", std::process::id()));
/// # std::fs::create_dir(&dir).unwrap();
/// use stillframe::{Database, SaveOptions};
///
/// let db = Database::in_memory();
/// db.keyspace("notes")?.insert("1", "first")?;
/// let mut file = Vec::new();
/// db.snapshot()?.write_to(&mut file, &SaveOptions::default())?;
/// let report = Database::restore(&file[..], dir.join("copy"))?;
/// assert_eq!((report.position, report.records), (db.position(), db.stats().records));
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct RestoreReport {
    /// The last batch in it.
    pub position: Position,
    /// When that was, in unix milliseconds.
    pub time_ms: u64,
    /// Entries of all keyspaces, past their time or not.
    pub records: u64,
    /// Length of the snapshot that holds them, in bytes.
    pub bytes: u64,
    /// How long it took.
    pub elapsed: Duration,
}

/// Which state of a database is wanted.
///
/// ```
/// # let dir = std::env::temp_dir().join(format!("stillframe-doc-point-{}", std::process::id()));
/// # std::fs::create_dir(&dir).unwrap();
/// use stillframe::{Database, Error, PointInTime, Seq};
///
/// let db = Database::open(dir.join("live"))?;
/// let notes = db.keyspace("notes")?;
/// notes.insert("1", "first")?;
/// db.backup(dir.join("copy"))?;
/// for (name, point) in [("now", PointInTime::Latest), ("then", PointInTime::Seq(Seq(1)))] {
///     let report = Database::builder().restore(dir.join("copy"), dir.join(name), point)?;
///     println!("{name}: batch {}", report.position.seq);
/// }
/// let wanted = PointInTime::Seq(Seq(1000));
/// let refused = Database::builder().restore(dir.join("copy"), dir.join("tomorrow"), wanted);
/// assert!(matches!(refused, Err(Error::OutOfReach { .. })));
/// # db.close()?;
/// # std::fs::remove_dir_all(&dir).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum PointInTime {
    /// The newest.
    #[default]
    Latest,
    /// That after this batch, which must have been kept.
    Seq(Seq),
    /// That at this time, in unix milliseconds: with all batches up to it, the whole last millisecond included. Out of reach is
    /// what lies before the oldest snapshot was taken, though the last batch in that may be older, unless the log goes back further.
    Time(u64),
}

impl PointInTime {
    fn until(self) -> Until {
        let all = Until::default();
        match self {
            PointInTime::Latest => all,
            PointInTime::Seq(seq) => Until { seq, ..all },
            PointInTime::Time(time_ms) => Until { time_ms, ..all },
        }
    }
}

impl Builder {
    /// Copies the database in the directory `source`, which may be open, here or in another process, to the new directory `target`: its
    /// newest snapshot and the log behind it, so that the copy can be [opened](Builder::open) as it is, or
    /// [restored](Builder::restore) to any batch in that log.
    ///
    /// Nobody waits for it and nothing in `source` is changed. The copy holds all that had left its writer's process
    /// (see [`Durability::Os`](crate::Durability::Os)) when this was called, and is proven before it counts: it gets its identity last, and
    /// files without one are not opened. Memory: a segment of the log.
    ///
    /// # Errors
    /// [`Error::Io`], with `AlreadyExists` if `target` is there and not empty; [`Error::Locked`] if somebody else is making it;
    /// [`Error::Corrupt`] if `source` is damaged, of the copy where it was found there. Nothing of a
    /// copy that failed stays.
    pub fn backup(
        &self,
        source: impl AsRef<Path>,
        target: impl AsRef<Path>,
    ) -> Result<BackupReport> {
        let began = Instant::now();
        let source = Directory::look(Arc::clone(&self.disk), source.as_ref())?;
        let dataset = source.identity().dataset;
        let target = Directory::make(Arc::clone(&self.disk), target.as_ref(), dataset)?;
        let copied = copy(&source, &target).and_then(|copied| target.found().map(|()| copied));
        let copied = copied.inspect_err(|_| target.unmake())?;
        let (position, files, bytes) = (copied.position, copied.files, copied.bytes);
        Ok(BackupReport { position, files, bytes, elapsed: began.elapsed() })
    }

    /// Makes the new directory `target` from `source`, a [backup](Builder::backup) or the directory of a database that is not open, as it was at
    /// `point`: a snapshot of that, and an empty log.
    ///
    /// A database can be restored to any batch from its oldest snapshot on. Batches stay until a snapshot holds them;
    /// [`keep_log`](Builder::keep_log) and [`keep_snapshots`](Builder::keep_snapshots) keep more.
    ///
    /// Nothing in `source` is changed. Memory: the database, which is loaded. The first write in `target` begins a history of its own, as
    /// every run of a database does.
    ///
    /// # Errors
    /// [`Error::OutOfReach`], [`Error::Locked`] for a source that is open; and those of [`Builder::open`] and [`Database::save`].
    pub fn restore(
        &self,
        source: impl AsRef<Path>,
        target: impl AsRef<Path>,
        point: PointInTime,
    ) -> Result<RestoreReport> {
        let began = Instant::now();
        let source = Directory::look(Arc::clone(&self.disk), source.as_ref())?;
        let _lock = refuse_in_use(&source)?;
        let read = Read::new(self, &source, point.until()).map_err(|error| match error {
            Error::Corrupt { what: Fault::NoBase { .. }, .. } if point != PointInTime::Latest => {
                Error::OutOfReach { newest: None }
            }
            error => error,
        })?;
        let newest = read.recovered.base.position.seq;
        if matches!(point, PointInTime::Seq(seq) if seq > newest) {
            return Err(Error::OutOfReach { newest: Some(newest) });
        }
        self.found(read.content, source.identity().dataset, target.as_ref(), began)
    }

    /// Makes the new directory `target` from a snapshot as it comes from `input`: a saved file, or what
    /// [`Snapshot::write_to`](crate::Snapshot::write_to) wrote.
    ///
    /// # Errors
    /// Those of [`Database::load`] and [`Database::save`].
    pub fn restore_from(
        &self,
        input: impl Input,
        target: impl AsRef<Path>,
    ) -> Result<RestoreReport> {
        let began = Instant::now();
        let bulk = Bulk::new(self.config.clone());
        let loaded = load_stream(input, &bulk)?;
        let content = Content::loaded(bulk, loaded)?;
        self.found(content, random_id()?, target.as_ref(), began)
    }

    /// Makes a directory that holds `content`.
    fn found(
        &self,
        content: Content,
        dataset: [u8; 16],
        target: &Path,
        began: Instant,
    ) -> Result<RestoreReport> {
        let target = Directory::make(Arc::clone(&self.disk), target, dataset)?;
        content.tree.commit.set_line(content.lineage.clone(), [0; 16]);
        let save = || {
            let pass = Pass::take(&content.tree, Holder::Save)?;
            let cut = source::Cut::of(pass.cut());
            let (disk, path) = (Arc::clone(&self.disk), target.snapshot(1));
            let report = SaveHandle::start(disk, &path, pass, cut, &self.saves.options)?.wait()?;
            Spare::make(&target, 2, BLANK_BYTES)?;
            target.found()?;
            Ok(report)
        };
        let report = save().inspect_err(|_| target.unmake())?;
        Ok(RestoreReport {
            position: report.position,
            time_ms: content.tree.commit.time_ms(),
            records: content.records(),
            bytes: report.file_bytes,
            elapsed: began.elapsed(),
        })
    }
}

impl Database {
    /// Makes the new directory `target` from a snapshot as it comes from `input`. See [`Builder::restore_from`].
    ///
    /// # Errors
    /// Those of [`Builder::restore_from`].
    pub fn restore(input: impl Input, target: impl AsRef<Path>) -> Result<RestoreReport> {
        Self::builder().restore_from(input, target)
    }

    /// Copies the database to the new directory `target`, with all that is committed now. Writers go on. See [`Builder::backup`].
    ///
    /// ```
    /// # let dir = std::env::temp_dir().join(format!("stillframe-doc-backup-{}", std::process::id()));
    /// # std::fs::create_dir(&dir).unwrap();
    /// use stillframe::{Database, PointInTime};
    ///
    /// let db = Database::open(dir.join("live"))?;
    /// let notes = db.keyspace("notes")?;
    /// notes.insert("1", "first")?;
    /// let first = db.seq();
    /// notes.insert("1", "second")?;
    /// db.backup(dir.join("copy"))?;
    ///
    /// Database::builder().restore(dir.join("copy"), dir.join("earlier"), PointInTime::Seq(first))?;
    /// let earlier = Database::open(dir.join("earlier"))?;
    /// assert_eq!(earlier.keyspace("notes")?.get("1")?.unwrap(), "first");
    /// # drop((db, notes, earlier));
    /// # std::fs::remove_dir_all(&dir).unwrap();
    /// # Ok::<(), stillframe::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::NoLog`], [`Error::LogFailed`], those of [`Builder::backup`].
    pub fn backup(&self, target: impl AsRef<Path>) -> Result<BackupReport> {
        let saver = self.saver()?;
        self.persist(crate::Durability::Os)?;
        saver.with_files_kept(|directory| {
            Builder { disk: Arc::clone(&directory.disk), ..Builder::new() }
                .backup(&directory.path, target)
        })
    }
}
