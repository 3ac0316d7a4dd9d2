//! What can still be proven of damaged files, and what can't: block by block, record by record, each by its own checksum.
//!
//! Nothing is changed here but where files lie: [`set_aside`] moves them, none is removed.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use super::directory::{Directory, FileKind, create_whole};
use super::{Disk, DiskFile, read_exact_at};
use crate::clock::random_id;
use crate::error::{Error, Fault, Result};
use crate::format::log::{Identity, LABEL_LEN, Label};
use crate::position::Seq;

pub(crate) mod log;
pub(crate) mod snapshot;

/// Something that [`RecoveryMode::Salvage`](crate::RecoveryMode::Salvage) could not recover.
///
/// ```
/// use stillframe::{Database, RecoveryMode};
///
/// # fn main() {}
/// fn salvage(dir: &std::path::Path) -> stillframe::Result<Database> {
///     let db = Database::builder().recovery(RecoveryMode::Salvage).open(dir)?;
///     for lost in &db.open_report().expect("it was opened").lost {
///         eprintln!("{}: {} bytes from {}: {}", lost.path.display(), lost.bytes, lost.offset, lost.fault);
///     }
///     Ok(db)
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LostRange {
    /// The file that is damaged, by the name that it had.
    pub path: PathBuf,
    /// Where in it the damage begins.
    pub offset: u64,
    /// How many bytes of it can't be used.
    pub bytes: u64,
    /// What is wrong there.
    pub fault: Fault,
    /// What was lost by it.
    pub what: Lost,
}

/// What is lost.
///
/// ```
/// use stillframe::{Database, Lost, RecoveryMode};
///
/// # fn main() {}
/// fn salvage(dir: &std::path::Path) -> stillframe::Result<Database> {
///     let db = Database::builder().recovery(RecoveryMode::Salvage).open(dir)?;
///     for lost in &db.open_report().expect("it was opened").lost {
///         match &lost.what {
///             Lost::Batches { after, before } => eprintln!("batches after {after:?}, before {before:?}"),
///             Lost::Entries { low, high } => eprintln!("what an old snapshot had from {low:?} to {high:?}"),
///             other => eprintln!("{}: {other:?}", lost.path.display()),
///         }
///     }
///     Ok(db)
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Lost {
    /// The batches behind `after` and before `before`; with `None`, nobody knows how many came.
    Batches {
        /// The last batch before them that was recovered.
        after: Seq,
        /// The first batch behind them that is known of.
        before: Option<Seq>,
    },
    /// The entries of the snapshot from `low` on and before `high`, unless the log behind it put them anew.
    Entries {
        /// The first key that may be lost.
        low: LostKey,
        /// The first key behind them; `None`: all to the end.
        high: Option<LostKey>,
    },
    /// A file of which nothing could be told: for a segment or a snapshot, what it held is listed beside
    /// it as far as other files tell.
    File,
}

/// An end of a range of lost entries.
///
/// ```
/// use stillframe::{Database, Lost, RecoveryMode};
///
/// # fn main() {}
/// fn salvage(dir: &std::path::Path) -> stillframe::Result<Database> {
///     let db = Database::builder().recovery(RecoveryMode::Salvage).open(dir)?;
///     for lost in &db.open_report().expect("it was opened").lost {
///         if let Lost::Entries { low, .. } = &lost.what {
///             let keyspace = low.keyspace.as_deref().unwrap_or("?");
///             eprintln!("{keyspace}: from {} on", low.key.escape_ascii());
///         }
///     }
///     Ok(db)
/// }
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct LostKey {
    /// The name of the keyspace, where there still is one.
    pub keyspace: Option<String>,
    /// Its number in the file; 0 holds the names of the others.
    pub id: u32,
    /// The key in it, or what keys begin with.
    pub key: Vec<u8>,
}

impl LostKey {
    fn new(fence: &[u8]) -> Self {
        let (id, key) = fence.split_first_chunk().unwrap_or((&[0; 4], &[]));
        LostKey { keyspace: None, id: u32::from_be_bytes(*id), key: key.to_vec() }
    }
}

/// Whether an error says that a file is damaged, as far as salvage goes: not that it is of a newer version, that it may not
/// be opened, or that something ran short.
pub(crate) fn is_damage(error: &Error) -> bool {
    match error {
        // Of a newer release, as far as anybody can tell.
        Error::Corrupt { what: Fault::Version { got, .. }, .. } => !(2..=255).contains(got),
        Error::Corrupt { .. } => true,
        Error::Io { op: "open" | "read", source, .. } => {
            let is_own = matches!(
                source.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::OutOfMemory
                    | io::ErrorKind::NotFound
            );
            !is_own && !matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
        }
        _ => false,
    }
}

/// What an error says of a file that is damaged, and where.
pub(crate) fn fault_of(error: &Error) -> (u64, Fault) {
    match error {
        Error::Corrupt { offset, what, .. } => (*offset, what.clone()),
        _ => (0, Fault::Unreadable),
    }
}

/// Damaged files, and whatever lay beside them, are moved here.
const ASIDE: &str = "salvaged";

/// Moves files of the directory aside, beside a page that says what of them is `lost`. Interrupted, it leaves some where they were.
pub(crate) fn set_aside(
    disk: &dyn Disk,
    dir: &Path,
    files: &[PathBuf],
    lost: &[LostRange],
) -> Result<()> {
    let aside = dir.join(ASIDE);
    match disk.create_dir(&aside) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::io("create", &aside, error));
        }
        _ => {}
    }
    let sync = |dir: &Path| disk.sync_dir(dir).map_err(|source| Error::io("sync", dir, source));
    // Its own name first, or what lies in it may be nowhere.
    sync(dir)?;
    let listed = |dir: &Path| disk.list(dir).map_err(|source| Error::io("list", dir, source));
    let there = listed(&aside)?;
    let free = |name: &str| {
        let names = std::iter::once(name.to_owned()).chain((1..).map(|n| format!("{name}.{n}")));
        let mut names = names.filter(|name| there.iter().all(|taken| taken != name.as_str()));
        aside.join(names.next().expect("one of infinitely many"))
    };
    if !lost.is_empty() {
        let page: String = lost.iter().map(|range| format!("{range}\n")).collect();
        create_whole(disk, &free("lost.txt"), page.as_bytes())?;
    }
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match disk.rename(path, &free(&name)) {
            // Somebody else had no need of it either.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            moved => moved.map_err(|source| Error::io("move aside", path, source))?,
        }
    }
    // Where they go to first: no name may be in neither.
    sync(&aside)?;
    sync(dir)
}

impl fmt::Display for LostRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LostRange { path, offset, bytes, fault, what } = self;
        let path = path.display();
        write!(f, "{what}: {path} at byte {offset}, {bytes} bytes: {fault}")
    }
}

impl fmt::Display for Lost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lost::Batches { after, before: Some(before) } => {
                let (first, last) = (after.0.saturating_add(1), before.0.saturating_sub(1));
                write!(f, "batches {first} to {last}")
            }
            Lost::Batches { after, before: None } => {
                write!(f, "batches from {} on", after.0.saturating_add(1))
            }
            Lost::Entries { low, high: Some(high) } => write!(f, "entries from {low} to {high}"),
            Lost::Entries { low, high: None } => write!(f, "entries from {low} to the end"),
            Lost::File => f.write_str("all of the file"),
        }
    }
}

impl fmt::Display for LostKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.escape_ascii();
        match &self.keyspace {
            Some(name) => write!(f, "\"{key}\" in {}", name.escape_debug()),
            None if self.id == 0 => write!(f, "\"{key}\" among the names of keyspaces"),
            None => write!(f, "\"{key}\" in keyspace {}", self.id),
        }
    }
}

/// The identity of a directory whose own is damaged or missing: the data set is told by any segment, the node is new. `None` if a
/// segment can't be read that might tell.
pub(crate) fn identity(disk: &dyn Disk, dir: &Path) -> Result<Option<Identity>> {
    let names = disk.list(dir).map_err(|source| Error::io("list", dir, source))?;
    let is_segment = |name: &&OsString| matches!(FileKind::of(name), FileKind::Segment(_));
    let mut dataset = None;
    for name in names.iter().rev().filter(is_segment) {
        let mut head = [0; LABEL_LEN];
        let read = disk.open(&dir.join(name)).and_then(|file| Ok((file.len()?, file))).and_then(
            |(len, file)| {
                let len = usize::try_from(len).unwrap_or(LABEL_LEN).min(LABEL_LEN);
                read_exact_at(&*file, &mut head[..len], 0)
            },
        );
        // It may be readable another time.
        if read.is_err() {
            return Ok(None);
        }
        if let Ok(label) = Label::decode(&head) {
            dataset = Some(label.dataset);
            break;
        }
    }
    let dataset = dataset.map_or_else(random_id, Ok)?;
    let node = random_id()?;
    Ok(Some(Identity { dataset, node, is_copy: true }))
}

/// Fills `buf` from `offset`; what the disk can't read is zeros.
fn read_what_can_be(file: &dyn DiskFile, buf: &mut [u8], offset: u64) {
    /// What a disk loses at a time, at the least.
    const SECTOR: usize = 4 << 10;
    if read_exact_at(file, buf, offset).is_ok() {
        return;
    }
    if buf.len() > SECTOR {
        let half = (buf.len() / 2).next_multiple_of(SECTOR).min(buf.len());
        let (first, second) = buf.split_at_mut(half);
        read_what_can_be(file, first, offset);
        return read_what_can_be(file, second, offset.saturating_add(half as u64));
    }
    buf.fill(0);
}

/// All bytes of a file of the directory, as far as the disk can read them.
pub(crate) fn bytes_of(directory: &Directory, path: &Path, len: u64) -> Result<Vec<u8>> {
    let file = directory.disk.open(path).map_err(|source| Error::io("open", path, source))?;
    let (mut bytes, len) = (Vec::new(), usize::try_from(len).unwrap_or(usize::MAX));
    let short = |_| Error::io("read", path, io::ErrorKind::OutOfMemory.into());
    bytes.try_reserve_exact(len).map_err(short)?;
    bytes.resize(len, 0);
    read_what_can_be(&*file, &mut bytes, 0);
    Ok(bytes)
}
