//! What can still be proven of damaged files, and what can't: block by block, record by record, each by its own checksum.
//!
//! Nothing is changed here but where files lie: [`set_aside`] moves them, none is removed.

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

/// Damaged files, and whatever lay beside them, are moved here.
const ASIDE: &str = "salvaged";

/// Moves files of the directory aside. Interrupted, it leaves some where they were.
pub(crate) fn set_aside(disk: &dyn Disk, dir: &Path, names: &[PathBuf]) -> Result<()> {
    let aside = dir.join(ASIDE);
    match disk.create_dir(&aside) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(Error::io("create", &aside, error));
        }
        _ => {}
    }
    for path in names {
        let to = aside.join(path.file_name().unwrap_or_default());
        disk.rename(path, &to).map_err(|source| Error::io("move aside", path, source))?;
    }
    let sync = |dir: &Path| disk.sync_dir(dir).map_err(|source| Error::io("sync", dir, source));
    // Where they go to first: no name may be in neither.
    sync(&aside)?;
    sync(dir)
}

/// The identity of a directory whose own is damaged or missing: the data set is told by any segment.
pub(crate) fn identity(disk: &dyn Disk, path: &Path) -> Result<Identity> {
    let dir = super::directory_of(path);
    let names = disk.list(dir).map_err(|source| Error::io("list", dir, source))?;
    let is_segment =
        |name: &&std::ffi::OsString| matches!(FileKind::of(name), FileKind::Segment(_));
    let label = |name: &std::ffi::OsString| {
        let file = disk.open(&dir.join(name)).ok()?;
        let mut head = [0; LABEL_LEN];
        read_exact_at(&*file, &mut head, 0).ok()?;
        Label::decode(&head).ok()
    };
    let label = names.iter().rev().filter(is_segment).find_map(label);
    let dataset = label.map_or_else(random_id, |label| Ok(label.dataset))?;
    if names.iter().any(|name| path.ends_with(name)) {
        set_aside(disk, dir, &[path.to_owned()])?;
    }
    let identity = Identity { dataset, node: random_id()? };
    create_whole(disk, path, &identity.encode())?;
    Ok(identity)
}

/// Fills `buf` from `offset`; what the disk can't read is zeros. Returns how many bytes are.
fn read_what_can_be(file: &dyn DiskFile, buf: &mut [u8], offset: u64) -> u64 {
    /// What a disk loses at a time, at the least.
    const SECTOR: usize = 4 << 10;
    if read_exact_at(file, buf, offset).is_ok() {
        return 0;
    }
    if buf.len() > SECTOR {
        let half = (buf.len() / 2).next_multiple_of(SECTOR).min(buf.len());
        let (first, second) = buf.split_at_mut(half);
        let unread = read_what_can_be(file, first, offset);
        return unread + read_what_can_be(file, second, offset.saturating_add(half as u64));
    }
    buf.fill(0);
    buf.len() as u64
}

/// All bytes of a file of the directory, as far as the disk can read them.
pub(crate) fn bytes_of(directory: &Directory, path: &Path, len: u64) -> Result<Vec<u8>> {
    let file = directory.disk.open(path).map_err(|source| Error::io("open", path, source))?;
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
    read_what_can_be(&*file, &mut bytes, 0);
    Ok(bytes)
}
