//! Saving: a cut becomes a file that is whole and durable before it has its name, or a stream.
//!
//! Temporary file in the same directory, sync, rename, sync of the directory. Whatever fails before the
//! rename leaves the old file as it was and the temporary one removed.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::source::{Cut, LeafSource};
use super::writer::{Progress, WriterOptions, write_snapshot};
use super::{Disk, DiskFile, STREAM, directory_of, temporary_path, write_all_at};
use crate::clock::random_id;
use crate::error::{Error, Result};
use crate::format::snapshot::{Codec, FileId, Footer};
use crate::planted::{Bug, planted};
use crate::position::Position;

/// How the blocks of a snapshot file are stored.
///
/// ```
/// use stillframe::{Compression, Database, SaveOptions};
///
/// let db = Database::in_memory();
/// db.keyspace("films")?.insert("Metropolis", vec![b'm'; 100_000])?;
/// let still = db.snapshot()?;
/// let length = |compression| {
///     let options = SaveOptions::default().compression(compression);
///     still.write_to(std::io::sink(), &options).map(|report| report.file_bytes)
/// };
/// assert!(length(Compression::Lz4)? < length(Compression::Raw)?);
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Compression {
    /// LZ4, and raw where that does not help.
    #[default]
    Lz4,
    /// As they are.
    Raw,
}

impl Compression {
    pub(crate) fn of(codec: Codec) -> Self {
        match codec {
            Codec::Raw => Compression::Raw,
            Codec::Lz4 => Compression::Lz4,
        }
    }

    fn codec(self) -> Codec {
        match self {
            Compression::Raw => Codec::Raw,
            Compression::Lz4 => Codec::Lz4,
        }
    }
}

/// How to save.
///
/// ```
/// use stillframe::Database;
///
/// let db = Database::in_memory();
/// let films = db.keyspace("films")?;
/// use stillframe::SaveOptions;
///
/// films.insert("Metropolis", "1927")?;
/// let path = std::env::temp_dir().join(format!("stillframe-doc-options-{}", std::process::id()));
/// db.save(&path, SaveOptions::default().threads(1))?.wait()?;
/// assert_eq!(Database::load(&path)?.seq(), db.seq());
/// # std::fs::remove_file(path).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct SaveOptions {
    compression: Compression,
    threads: usize,
    rate_limit: Option<u64>,
    block_bytes: Option<usize>,
}

impl SaveOptions {
    /// How blocks are stored; LZ4 by default. Raw saves processor time and costs about twice the space.
    #[must_use]
    pub fn compression(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// How many threads encode. 0, the default, means all processors but one, and at least one: the
    /// writers keep a core. One writes the file as well; beside several, a thread more writes it and mostly waits.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// At most so many bytes of file per second; none by default. A limit of 0 counts as 1.
    #[must_use]
    pub fn rate_limit(mut self, bytes_per_second: Option<u64>) -> Self {
        self.rate_limit = bytes_per_second;
        self
    }

    /// Blocks of about so many bytes of keys and values, so that few entries fill many. Outside semver.
    #[cfg(feature = "simulation")]
    #[must_use]
    pub fn block_bytes(mut self, bytes: usize) -> Self {
        self.block_bytes = Some(bytes);
        self
    }

    fn for_writer(self) -> WriterOptions {
        let processors = || thread::available_parallelism().map_or(1, usize::from);
        let threads = match self.threads {
            0 => processors().saturating_sub(1).max(1),
            threads => threads,
        };
        let Self { compression, rate_limit, block_bytes: run_bytes, .. } = self;
        WriterOptions { codec: compression.codec(), threads, rate_limit, run_bytes }
    }
}

/// How far a save is.
///
/// ```
/// use stillframe::{Database, SaveOptions};
///
/// # let path = std::env::temp_dir().join(format!("stillframe-doc-saveprogress-{}", std::process::id()));
/// let db = Database::in_memory();
/// db.keyspace("films")?.insert("Metropolis", "1927")?;
/// let save = db.save(&path, SaveOptions::default())?;
/// let progress = save.progress();
/// println!("{} of {} entries", progress.entries, progress.total_entries);
/// save.wait()?;
/// # std::fs::remove_file(path).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SaveProgress {
    /// Entries written.
    pub entries: u64,
    /// Entries there are.
    pub total_entries: u64,
    /// Bytes of keys and values written, before compression.
    pub raw_bytes: u64,
    /// Bytes of file written.
    pub file_bytes: u64,
}

/// What a save wrote.
///
/// ```
/// use stillframe::Database;
///
/// let db = Database::in_memory();
/// let films = db.keyspace("films")?;
/// films.insert("Metropolis", "1927")?;
/// let mut file = Vec::new();
/// let report = db.snapshot()?.write_to(&mut file, &stillframe::SaveOptions::default())?;
/// assert_eq!((report.file_bytes, report.position), (file.len() as u64, db.position()));
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SaveReport {
    /// The last batch that the file holds.
    pub position: Position,
    /// The time of the cut, in unix milliseconds.
    pub time_ms: u64,
    /// Entries of all keyspaces, the catalogue included.
    pub entries: u64,
    /// Bytes of keys and values.
    pub raw_bytes: u64,
    /// Bytes of file.
    pub file_bytes: u64,
    /// Blocks of every kind.
    pub blocks: u64,
    /// The fingerprint of the content, recomputed from what was written and equal to the cut's.
    pub fingerprint: u64,
    /// From the start to the last sync.
    pub elapsed: Duration,
}

impl SaveReport {
    fn new(footer: &Footer, start: Instant) -> Self {
        SaveReport {
            position: footer.position,
            time_ms: footer.time_ms,
            entries: footer.totals.entries,
            raw_bytes: footer.totals.raw_bytes,
            file_bytes: footer.file_len,
            blocks: footer.blocks,
            fingerprint: footer.totals.fingerprint,
            elapsed: start.elapsed(),
        }
    }
}

/// A save that is running on a thread of its own. Dropping the handle lets it run on.
///
/// ```
/// use stillframe::{Database, Error, SaveOptions};
///
/// # let path = std::env::temp_dir().join(format!("stillframe-doc-savehandle-{}", std::process::id()));
/// let db = Database::in_memory();
/// db.keyspace("films")?.insert("Metropolis", "1927")?;
/// let save = db.save(&path, SaveOptions::default())?;
/// save.cancel();
/// match save.wait() {
///     Ok(report) => println!("it was whole already: {} bytes", report.file_bytes),
///     Err(Error::Cancelled) => println!("nothing is there"),
///     Err(error) => return Err(error),
/// }
/// # let _ = std::fs::remove_file(path);
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug)]
pub struct SaveHandle {
    progress: Arc<Progress>,
    thread: JoinHandle<Result<SaveReport>>,
}

impl SaveHandle {
    /// Starts saving `source` at `cut` to `path`.
    ///
    /// # Errors
    /// [`Error::SaveInProgress`]; [`Error::Io`] if there is no file at `path` but something else, or no thread to be had.
    pub(crate) fn start<S: LeafSource + 'static>(
        disk: Arc<dyn Disk>,
        path: &Path,
        source: S,
        cut: Cut,
        options: &SaveOptions,
    ) -> Result<Self> {
        let target = Target::claim(disk, path)?;
        let progress = Arc::new(Progress::default());
        progress.total_entries.store(cut.entries, Ordering::Relaxed);
        let options = options.for_writer();
        let watched = Arc::clone(&progress);
        let thread = thread::Builder::new()
            .name("stillframe-save".into())
            .spawn(move || target.save(&source, &cut, random_id()?, options, &watched))
            .map_err(|source| Error::io("start a thread for", path, source))?;
        Ok(SaveHandle { progress, thread })
    }

    /// How far it is.
    pub fn progress(&self) -> SaveProgress {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        SaveProgress {
            entries: get(&self.progress.entries),
            total_entries: get(&self.progress.total_entries),
            raw_bytes: get(&self.progress.raw_bytes),
            file_bytes: get(&self.progress.file_bytes),
        }
    }

    /// Asks it to stop. [`SaveHandle::wait`] then returns [`Error::Cancelled`], unless the file was whole already.
    pub fn cancel(&self) {
        self.progress.cancelled.store(true, Ordering::Relaxed);
    }

    /// What cancels it, for somebody else than who waits.
    pub(crate) fn canceller(&self) -> impl Fn() + Send + 'static {
        let progress = Arc::clone(&self.progress);
        move || progress.cancelled.store(true, Ordering::Relaxed)
    }

    /// Whether [`SaveHandle::wait`] would return at once.
    pub fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Waits until the file is durable under its name, or the save has failed.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Cancelled`], [`Error::SelfCheck`]. Unless it was the sync of the directory that failed,
    /// the old file, if there was one, is untouched, and nothing else is left.
    ///
    /// # Panics
    /// If the saving thread did: our bug.
    pub fn wait(self) -> Result<SaveReport> {
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Writes the snapshot of `source` at `cut` to `out`, front to back; returns when all was handed over.
///
/// # Errors
/// [`Error::Io`] of `<stream>`, [`Error::SelfCheck`].
pub(crate) fn save_to_stream<S: LeafSource>(
    source: &S,
    cut: &Cut,
    options: &SaveOptions,
    mut out: impl io::Write,
) -> Result<SaveReport> {
    let start = Instant::now();
    let told = |source| Error::io("write", Path::new(STREAM), source);
    let mut sink = |bytes: &[u8]| out.write_all(bytes).map_err(told);
    let (options, progress) = (options.for_writer(), Progress::default());
    let footer = write_snapshot(source, cut, random_id()?, options, &progress, &mut sink)?;
    out.flush().map_err(told)?;
    Ok(SaveReport::new(&footer, start))
}

/// Paths that saves of this process are writing to, each in the one spelling of its directory.
static SAVING: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn saving() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    // Insertion and removal leave the set whole even if something panics in between.
    SAVING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A path that one save has for itself.
struct Target {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    name: PathBuf,
}

impl Target {
    fn claim(disk: Arc<dyn Disk>, path: &Path) -> Result<Self> {
        match disk.open(path) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            // A file that may not be read may still be replaced.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(error) => return Err(Error::io("save to", path, error)),
        }
        let name = disk
            .identify(directory_of(path))
            .map(|directory| directory.join(path.file_name().unwrap_or_default()))
            .map_err(|error| Error::io("save to", path, error))?;
        if !saving().insert(name.clone()) {
            return Err(Error::SaveInProgress { path: path.to_owned() });
        }
        Ok(Target { disk, path: path.to_owned(), name })
    }

    fn save<S: LeafSource>(
        &self,
        source: &S,
        cut: &Cut,
        file_id: FileId,
        options: WriterOptions,
        progress: &Progress,
    ) -> Result<SaveReport> {
        let start = Instant::now();
        let mut temporary = Temporary::create(&*self.disk, &self.path)?;
        let mut sink = FileSink::new(&*temporary.file, &temporary.path);
        let footer = sink
            .with_early_sync(|put| write_snapshot(source, cut, file_id, options, progress, put))?;
        progress.check()?;
        if !planted(Bug::SavedUnsynced) {
            temporary
                .file
                .sync_all()
                .map_err(|source| Error::io("sync", &temporary.path, source))?;
        }
        progress.check()?;
        self.disk
            .rename(&temporary.path, &self.path)
            .map_err(|source| Error::io("rename to", &self.path, source))?;
        temporary.kept = true;
        let directory = directory_of(&self.path);
        if !planted(Bug::SavedNameUnsynced) {
            self.disk.sync_dir(directory).map_err(|source| Error::io("sync", directory, source))?;
        }
        source.saved(start.elapsed());
        Ok(SaveReport::new(&footer, start))
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        saving().remove(&self.name);
    }
}

/// The temporary file; removed when dropped, unless it has been renamed.
struct Temporary<'a> {
    disk: &'a dyn Disk,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    kept: bool,
}

impl<'a> Temporary<'a> {
    fn create(disk: &'a dyn Disk, target: &Path) -> Result<Self> {
        let path = temporary_path(target).map_err(|error| Error::io("save to", target, error))?;
        let file = disk.create_new(&path).map_err(|error| Error::io("create", &path, error))?;
        Ok(Temporary { disk, path, file, kept: false })
    }
}

impl Drop for Temporary<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // The save failed for another reason, which is the one that is told.
            let _ = self.disk.remove(&self.path);
        }
    }
}

/// Appends to a file, and lets the disk begin early so that the last sync is short.
struct FileSink<'a> {
    file: &'a dyn DiskFile,
    path: &'a Path,
    buffer: Vec<u8>,
    offset: u64,
}

/// Blocks are gathered into writes of this size.
const WRITE_BYTES: usize = 256 << 10;
/// After so many bytes someone asks for them to be brought to the disk.
const EARLY_SYNC_BYTES: u64 = 32 << 20;

impl<'a> FileSink<'a> {
    fn new(file: &'a dyn DiskFile, path: &'a Path) -> Self {
        FileSink { file, path, buffer: Vec::with_capacity(WRITE_BYTES), offset: 0 }
    }

    /// Runs `write` with a place to put bytes; on return all of them are in the file.
    fn with_early_sync<T>(
        &mut self,
        write: impl FnOnce(&mut dyn FnMut(&[u8]) -> Result<()>) -> Result<T>,
    ) -> Result<T> {
        let (file, path) = (self.file, self.path);
        let (ask, asked) = bounded::<()>(1);
        thread::scope(|scope| {
            let syncer = scope.spawn(move || {
                asked.iter().try_for_each(|()| {
                    file.sync_data().map_err(|source| Error::io("sync", path, source))
                })
            });
            let mut next_sync = EARLY_SYNC_BYTES;
            let written = write(&mut |bytes| {
                self.append(bytes)?;
                if self.offset >= next_sync {
                    next_sync = self.offset + EARLY_SYNC_BYTES;
                    // Full: a sync is running and another is asked for, which will cover this as well.
                    let _ = ask.try_send(());
                }
                Ok(())
            });
            let written = written.and_then(|result| self.flush().map(|()| result));
            drop(ask);
            // A sync that failed may have lost bytes that a later one will not miss: it decides.
            let synced = syncer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            written.and_then(|result| synced.map(|()| result))
        })
    }

    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        if self.buffer.len() + bytes.len() > WRITE_BYTES {
            self.flush()?;
        }
        if bytes.len() >= WRITE_BYTES {
            return self.write(bytes.len(), |sink| write_all_at(sink.file, bytes, sink.offset));
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let len = self.buffer.len();
        self.write(len, |sink| write_all_at(sink.file, &sink.buffer, sink.offset))?;
        self.buffer.clear();
        Ok(())
    }

    fn write(&mut self, len: usize, write: impl Fn(&Self) -> io::Result<()>) -> Result<()> {
        write(self).map_err(|source| Error::io("write", self.path, source))?;
        self.offset += len as u64;
        Ok(())
    }
}
