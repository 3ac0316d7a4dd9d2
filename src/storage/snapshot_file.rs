//! A saved file, queried in place: no load, blocks read and proven as they are asked for.

use std::fmt;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::file_keyspace::{Cursor, Fences, FileKeyspace, Found};
use super::map::Map;
use super::reader::{BlockAt, Bytes, Reader};
use super::save::Compression;
use super::walk::{catalogue_entry, walk};
use super::{Disk, DiskFile, OsDisk};
use crate::error::{Error, Result};
use crate::format::leaves::Entry;
use crate::format::{KEYSPACE_ID_LEN, VERSION};
use crate::position::Position;

/// A snapshot file, open for reading in place.
///
/// Opening proves the two ends of the file and its root, in milliseconds at any size; each read then
/// proves the one index block and the one block it needs, on the way from the root. A few decoded
/// blocks are cached. Cheap to clone; any number of threads may read.
///
/// Expiry is judged by the time of the cut, so a file always shows the same.
///
/// ```
/// use stillframe::SnapshotFile;
/// # use stillframe::{Database, SaveOptions};
///
/// # let path = std::env::temp_dir().join(format!("stillframe-doc-snapfile-{}", std::process::id()));
/// # let db = Database::in_memory();
/// # let films = db.keyspace("films")?;
/// # films.insert("Metropolis", "1927")?;
/// # films.insert("Nosferatu", "1922")?;
/// # db.save(&path, SaveOptions::default())?.wait()?;
/// let file = SnapshotFile::open(&path)?;
/// assert_eq!(file.keyspaces()?, ["films"]);
/// assert_eq!(file.keyspace("films")?.get("Nosferatu")?.unwrap(), "1922");
/// # std::fs::remove_file(path).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Clone)]
pub struct SnapshotFile {
    reader: Arc<Reader>,
    info: Arc<SnapshotInfo>,
}

/// What a snapshot file says of itself; proven when it was opened.
///
/// ```
/// use stillframe::SnapshotFile;
/// # use stillframe::{Database, SaveOptions};
///
/// # let path = std::env::temp_dir().join(format!("stillframe-doc-snapinfo-{}", std::process::id()));
/// # let db = Database::in_memory();
/// # let films = db.keyspace("films")?;
/// # films.insert("Metropolis", "1927")?;
/// # films.insert("Nosferatu", "1922")?;
/// # db.save(&path, SaveOptions::default())?.wait()?;
/// let file = SnapshotFile::open(&path)?;
/// let info = file.info();
/// // Two entries, and the name of the keyspace.
/// assert_eq!((info.position, info.entries), (db.position(), 3));
/// assert_eq!(info.fingerprint, db.snapshot()?.fingerprint());
/// # std::fs::remove_file(path).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SnapshotInfo {
    /// Version of the format.
    pub version: u32,
    /// Drawn at random for each file.
    pub file_id: [u8; 16],
    /// The last batch that the file holds.
    pub position: Position,
    /// The time of the cut, in unix milliseconds.
    pub time_ms: u64,
    /// Entries of all keyspaces, the catalogue included, expired ones too.
    pub entries: u64,
    /// Bytes of keys and values.
    pub raw_bytes: u64,
    /// Length of the file.
    pub file_bytes: u64,
    /// Blocks of every kind.
    pub blocks: u64,
    /// The fingerprint of the content; equal content has an equal one.
    pub fingerprint: u64,
    /// How the writer was asked to store blocks.
    pub compression: Compression,
}

/// What [`SnapshotFile::verify`] read and found right.
///
/// ```
/// use stillframe::SnapshotFile;
/// # use stillframe::{Database, SaveOptions};
///
/// # let path = std::env::temp_dir().join(format!("stillframe-doc-verified-{}", std::process::id()));
/// # let db = Database::in_memory();
/// # let films = db.keyspace("films")?;
/// # films.insert("Metropolis", "1927")?;
/// # films.insert("Nosferatu", "1922")?;
/// # db.save(&path, SaveOptions::default())?.wait()?;
/// let file = SnapshotFile::open(&path)?;
/// let report = file.verify()?;
/// println!("{} entries are right, in {:?}", report.entries, report.elapsed);
/// assert_eq!(report.fingerprint, file.info().fingerprint);
/// # std::fs::remove_file(path).unwrap();
/// # Ok::<(), stillframe::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct VerifyReport {
    /// Keyspaces in the catalogue.
    pub keyspaces: u64,
    /// Entries of all keyspaces, the catalogue included.
    pub entries: u64,
    /// Bytes of keys and values.
    pub raw_bytes: u64,
    /// Length of the file, all of it read.
    pub file_bytes: u64,
    /// Blocks of every kind.
    pub blocks: u64,
    /// Recomputed from every entry, and what the file states.
    pub fingerprint: u64,
    /// How long it took.
    pub elapsed: Duration,
}

impl SnapshotFile {
    /// Opens the file at `path`; blocks are read by position.
    ///
    /// # Errors
    /// [`Error::Io`], for a directory or a FIFO too; [`Error::Corrupt`] if its ends or its root are damaged.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_on(&OsDisk, path.as_ref())
    }

    pub(crate) fn open_on(disk: &dyn Disk, path: &Path) -> Result<Self> {
        Self::open_file(disk.open(path).map_err(|source| Error::io("open", path, source))?, path)
    }

    pub(super) fn open_file(file: Box<dyn DiskFile>, path: &Path) -> Result<Self> {
        Ok(Self::of(Reader::open(Bytes::File(file), path)?))
    }

    /// Opens a file that has been mapped; [`SnapshotFile::open_mapped`] lives where maps do.
    pub(super) fn open_map(map: Map, path: &Path) -> Result<Self> {
        Ok(Self::of(Reader::open(Bytes::Map(map), path)?))
    }

    fn of(reader: Reader) -> Self {
        let (header, footer) = (&reader.header, &reader.footer);
        let info = SnapshotInfo {
            version: VERSION,
            file_id: header.file_id,
            position: header.position,
            time_ms: header.time_ms,
            entries: footer.totals.entries,
            raw_bytes: footer.totals.raw_bytes,
            file_bytes: footer.file_len,
            blocks: footer.blocks,
            fingerprint: footer.totals.fingerprint,
            compression: Compression::of(header.codec),
        };
        SnapshotFile { reader: Arc::new(reader), info: Arc::new(info) }
    }

    /// What the file says of itself.
    pub fn info(&self) -> &SnapshotInfo {
        &self.info
    }

    /// The open file, for whoever loads it.
    pub(crate) fn reader(&self) -> &Arc<Reader> {
        &self.reader
    }

    /// Reads everything and proves everything: every checksum, that blocks fill the file without a gap, order,
    /// fences, the hash of every large value, fingerprints, counts, the catalogue.
    ///
    /// Uses all processors; memory: a block for each.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Corrupt`] for the first damage in the file, or one of the first if there are several.
    pub fn verify(&self) -> Result<VerifyReport> {
        let start = Instant::now();
        let threads = thread::available_parallelism().map_or(1, usize::from);
        walk(&self.reader, threads, |place, leaves| {
            leaves.larges().iter().try_for_each(|large| self.reader.chunks(place, large, |_| ()))
        })?;
        let mut keyspaces = 0;
        self.each_keyspace(|_| keyspaces += 1)?;
        let SnapshotInfo { entries, raw_bytes, file_bytes, blocks, fingerprint, .. } = *self.info;
        let elapsed = start.elapsed();
        Ok(VerifyReport { keyspaces, entries, raw_bytes, file_bytes, blocks, fingerprint, elapsed })
    }

    /// The names of all keyspaces, in order.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corrupt`].
    pub fn keyspaces(&self) -> Result<Vec<String>> {
        let mut names = Vec::new();
        self.each_keyspace(|name| {
            names.push(name.to_owned());
        })?;
        Ok(names)
    }

    /// The keyspace `name`.
    ///
    /// # Errors
    /// [`Error::NoKeyspace`], [`Error::Io`], [`Error::Corrupt`].
    pub fn keyspace(&self, name: &str) -> Result<FileKeyspace> {
        let key = [&[0; KEYSPACE_ID_LEN], name.as_bytes()].concat();
        let found = self.lookup(&key, |at, entry| {
            catalogue_entry(&key, entry.inline(), entry.expire_at)
                .map_err(|fault| self.reader.corrupt_block(at, fault))
        })?;
        match found.flatten() {
            Some((name, id)) => Ok(FileKeyspace::new(self.clone(), name, id)),
            None => Err(Error::NoKeyspace),
        }
    }

    /// Shows the name of every keyspace.
    fn each_keyspace(&self, mut show: impl FnMut(&str)) -> Result<()> {
        let catalogue = Fences::of([0; KEYSPACE_ID_LEN], Bound::Unbounded, Bound::Unbounded);
        let mut cursor = Cursor::new(Arc::clone(&self.reader), catalogue);
        let mut key = Vec::new();
        while let Some(Found { at, entry }) = cursor.next()? {
            entry.assemble(&mut key);
            let told = |fault| self.reader.corrupt_block(at, fault);
            if let Some((name, _)) =
                catalogue_entry(&key, entry.inline(), entry.expire_at).map_err(told)?
            {
                show(name);
            }
        }
        Ok(())
    }

    /// Shows the entry of an internal key, expired or not, to `show`.
    pub(super) fn lookup<R>(
        &self,
        key: &[u8],
        show: impl FnOnce(BlockAt, &Entry<'_>) -> Result<R>,
    ) -> Result<Option<R>> {
        let at = self.reader.find(key)?;
        let leaves = self.reader.leaves(at)?;
        match leaves.seek(key) {
            (i, true) => leaves.entry(i).map(|entry| show(at, &entry)).transpose(),
            _ => Ok(None),
        }
    }

    pub(super) fn is_expired(&self, expire_at: u64) -> bool {
        expire_at != 0 && expire_at <= self.info.time_ms
    }
}

/// Outside semver.
#[cfg(feature = "simulation")]
impl SnapshotFile {
    /// As [`SnapshotFile::open`], on a disk of the caller's.
    ///
    /// # Errors
    /// As [`SnapshotFile::open`].
    pub fn open_on_disk(disk: &dyn Disk, path: impl AsRef<Path>) -> Result<Self> {
        Self::open_on(disk, path.as_ref())
    }
}

impl fmt::Debug for SnapshotFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SnapshotFile")
            .field("path", &self.reader.path())
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}
