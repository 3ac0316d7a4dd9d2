//! The directory of a database: what its files are called, who it belongs to, and that one process has it.
//!
//! Segments of the log and snapshots are named by *ordinals*, which only grow: `0000000007.log`,
//! `0000000008.snap`. A file has its name only once it is whole and durable, so that one under such a name
//! that is not whole was damaged; what is left of one in the making ends in `.tmp` and means nothing.

use std::any::Any;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use super::group::lock;
use super::salvage::set_aside;
use super::{Disk, DiskFile, directory_of, read_exact_at, temporary_path, write_all_at};
use crate::clock::random_id;
use crate::error::{Error, Result};
use crate::format::log::{ANEW_LEN, Anew, FENCE_LEN, Fence, IDENTITY_LEN, Identity};
use crate::format::snapshot::{Span, rank};
use crate::planted::{Bug, planted};

pub(crate) const LOCK: &str = "lock";
const IDENTITY: &str = "identity";
const ANEW: &str = "anew";
const FENCE: &str = "fence";
const SPOOL: &str = "spool";
/// The folder of states that were given up.
const ASIDE: &str = "aside";

/// What a name in the directory stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum FileKind {
    Segment(u64),
    Snapshot(u64),
    Identity,
    /// Where it began anew.
    Anew,
    /// The promotion that it heard of.
    Fence,
    /// What has come of a state that is not whole yet.
    Spool,
    Lock,
    /// Left by someone who was interrupted.
    Temporary,
    /// Not ours.
    Other,
}

impl FileKind {
    pub(crate) fn of(name: &OsStr) -> Self {
        let Some(name) = name.to_str() else { return FileKind::Other };
        let ordinal = |suffix: &str, kind: fn(u64) -> FileKind| {
            let ordinal: u64 = name.strip_suffix(suffix)?.parse().ok()?;
            // One spelling only: `7.log` is not segment 7 a second time. And there must be a next one.
            (ordinal < u64::MAX / 2 && kind(ordinal).name()? == name).then_some(kind(ordinal))
        };
        match name {
            LOCK => FileKind::Lock,
            IDENTITY => FileKind::Identity,
            ANEW => FileKind::Anew,
            FENCE => FileKind::Fence,
            SPOOL => FileKind::Spool,
            _ if planted(Bug::TemporaryTaken) && name.ends_with(".tmp") => {
                let whole = name.get(1..).and_then(|name| name.split('.').next());
                let ordinal = whole.and_then(|ordinal| ordinal.parse().ok());
                ordinal.map_or(FileKind::Temporary, FileKind::Segment)
            }
            _ => ordinal(".log", FileKind::Segment)
                .or_else(|| ordinal(".snap", FileKind::Snapshot))
                .unwrap_or(match name.starts_with('.') && name.ends_with(".tmp") {
                    true => FileKind::Temporary,
                    false => FileKind::Other,
                }),
        }
    }

    /// The name of a segment or snapshot.
    fn name(self) -> Option<String> {
        match self {
            FileKind::Segment(ordinal) => Some(format!("{ordinal:010}.log")),
            FileKind::Snapshot(ordinal) => Some(format!("{ordinal:010}.snap")),
            _ => None,
        }
    }
}

/// A database's directory, held by this process for as long as this lives.
pub(crate) struct Directory {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) path: PathBuf,
    identity: Mutex<Identity>,
    lock: Mutex<Option<Box<dyn Any + Send + Sync>>>,
    /// Whether it was not there before [`make`](Self::make).
    is_made: bool,
}

impl Directory {
    /// Makes the directory if there is none, locks it, and learns or draws its identity.
    ///
    /// # Errors
    /// [`Error::Locked`], [`Error::Io`], [`Error::Corrupt`] for a damaged identity.
    pub(crate) fn claim(disk: Arc<dyn Disk>, path: &Path) -> Result<Self> {
        Self::claim_or(disk, path, |_, _, error| Err(error))
    }

    /// As [`claim`](Self::claim); where a directory that holds something has no identity that can be read,
    /// `repair` may know it.
    pub(crate) fn claim_or(
        disk: Arc<dyn Disk>,
        path: &Path,
        repair: impl FnOnce(&dyn Disk, &Path, Error) -> Result<Identity>,
    ) -> Result<Self> {
        let is_new = match disk.create_dir(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(source) => return Err(Error::io("create", path, source)),
        };
        // Its own name must be durable as well, also if somebody made it who did not see to that.
        let parent = directory_of(path);
        match disk.sync_dir(parent) {
            // Whoever made it there answers for its name.
            Err(error) if !is_new && error.kind() == io::ErrorKind::PermissionDenied => {}
            Err(source) => {
                if is_new {
                    // A name whose sync failed is in doubt for good: the next one to try makes it anew.
                    let _ = disk.remove_dir(path);
                }
                return Err(Error::io("sync", parent, source));
            }
            Ok(()) => {}
        }
        let lock_path = path.join(LOCK);
        // Before anything is read: what another process is changing means nothing.
        let lock = disk.lock(&lock_path).map_err(|source| Error::io("lock", &lock_path, source))?;
        let lock = lock.or_else(|| planted(Bug::ReadBeforeLock).then(|| Box::new(()) as Box<_>));
        let Some(lock) = lock else { return Err(Error::Locked { path: lock_path }) };
        let identity = match identity(&*disk, path) {
            Err(error @ (Error::Corrupt { .. } | Error::Io { op: "open" | "read", .. })) => {
                repair(&*disk, &path.join(IDENTITY), error)?
            }
            identity => identity?,
        };
        let directory = Self {
            disk,
            path: path.to_owned(),
            identity: Mutex::new(identity),
            lock: Mutex::new(Some(lock)),
            is_made: false,
        };
        directory.take_over_anew()?;
        Ok(directory)
    }

    /// The directory to be looked into: it is not locked, may belong to another process, and nothing in it is changed.
    ///
    /// # Errors
    /// As [`claim`](Self::claim); one without an identity is no database.
    pub(crate) fn look(disk: Arc<dyn Disk>, path: &Path) -> Result<Self> {
        let own = path.join(IDENTITY);
        let file = disk.open(&own).map_err(|source| Error::io("open", &own, source))?;
        let (identity, path) = (Mutex::new(read_identity(&*file, &own)?), path.to_owned());
        let directory = Self { disk, path, identity, lock: Mutex::new(None), is_made: false };
        directory.take_over_anew()?;
        Ok(directory)
    }

    /// Makes a new directory, which becomes a database by [`found`](Self::found) and is nobody else's until then.
    ///
    /// # Errors
    /// [`Error::Io`] with `AlreadyExists` for one that holds anything, [`Error::Locked`] for one that somebody else is making.
    pub(crate) fn make(disk: Arc<dyn Disk>, path: &Path, dataset: [u8; 16]) -> Result<Self> {
        let told = |source| Error::io("create", path, source);
        let refuse_used = || {
            let names = disk.list(path).map_err(|source| Error::io("list", path, source))?;
            match names.iter().all(|name| name == LOCK) {
                true => Ok(()),
                false => Err(told(io::ErrorKind::AlreadyExists.into())),
            }
        };
        let is_made = match disk.create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                refuse_used()?;
                false
            }
            made => made.map(|()| true).map_err(told)?,
        };
        let lock_path = path.join(LOCK);
        let lock = disk.lock(&lock_path).map_err(|source| Error::io("lock", &lock_path, source));
        let made = lock.and_then(|lock| {
            let lock = Mutex::new(Some(lock.ok_or(Error::Locked { path: lock_path })?));
            let identity = Mutex::new(Identity { dataset, node: random_id()?, is_copy: true });
            let (disk, path) = (Arc::clone(&disk), path.to_owned());
            Ok(Self { disk, path, identity, lock, is_made })
        });
        let made = made.inspect_err(|_| {
            if is_made {
                let _ = disk.remove_dir(path);
            }
        })?;
        // Somebody may have made it his own before it was locked.
        if let Err(error) = refuse_used() {
            if is_made {
                let _ = disk.remove(&path.join(LOCK));
                let _ = disk.remove_dir(path);
            }
            return Err(error);
        }
        Ok(made)
    }

    /// Writes the identity that was found for it; what has its name moves aside.
    pub(crate) fn replace_identity(&self) -> Result<()> {
        set_aside(&*self.disk, &self.path, &[self.path.join(IDENTITY)], &[])?;
        self.write_identity()
    }

    fn write_identity(&self) -> Result<()> {
        create_whole(&*self.disk, &self.path.join(IDENTITY), &self.identity().encode())
    }

    /// Whose directory it is.
    pub(crate) fn identity(&self) -> Identity {
        *lock(&self.identity)
    }

    /// From now on it follows another: nothing of its own is to be written behind what it was copied from.
    pub(crate) fn follows(&self) -> Result<()> {
        if !self.identity().is_copy {
            return Ok(());
        }
        lock(&self.identity).is_copy = false;
        self.rewrite_identity()
    }

    fn rewrite_identity(&self) -> Result<()> {
        replace_whole(&*self.disk, &self.path.join(IDENTITY), &self.identity().encode())
    }

    /// Where it began anew, if the snapshot is there with which it did.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corrupt`].
    pub(crate) fn anew(&self) -> Result<Option<Anew>> {
        let Some(anew) = self.read_anew()? else { return Ok(None) };
        let snapshot = FileKind::Snapshot(anew.snapshot);
        Ok(self.list()?.iter().any(|(_, kind)| *kind == snapshot).then_some(anew))
    }

    fn read_anew(&self) -> Result<Option<Anew>> {
        let path = self.path.join(ANEW);
        let file = match self.disk.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|source| Error::io("open", &path, source))?,
        };
        let bytes = read_small(&*file, &path, ANEW_LEN)?;
        Anew::decode(&bytes).map(Some).map_err(|d| Error::corrupt(&path, d.at, d.fault))
    }

    fn take_over_anew(&self) -> Result<()> {
        if let Some(anew) = self.anew()? {
            let mut identity = lock(&self.identity);
            (identity.dataset, identity.is_copy) = (anew.dataset, false);
        }
        Ok(())
    }

    /// As soon as there is a snapshot of this ordinal, no file before it means anything, and the data set is `dataset`.
    pub(crate) fn begin_anew(&self, snapshot: u64, dataset: [u8; 16]) -> Result<()> {
        // Of two times that it began anew one alone is told of.
        self.settle_anew()?;
        replace_whole(&*self.disk, &self.path.join(ANEW), &Anew { snapshot, dataset }.encode())
    }

    /// Takes up what is to count from the snapshot on, which is there.
    pub(crate) fn go_on_anew(&self, dataset: [u8; 16]) {
        let mut identity = lock(&self.identity);
        (identity.dataset, identity.is_copy) = (dataset, false);
    }

    /// If it began anew: removes what was before, and then what says so. Interrupted at any point it is as it was.
    pub(crate) fn settle_anew(&self) -> Result<()> {
        if self.read_anew()?.is_none() {
            return Ok(());
        }
        if let Some(anew) = self.anew()? {
            for (name, kind) in self.list()? {
                let (FileKind::Segment(ordinal) | FileKind::Snapshot(ordinal)) = kind else {
                    continue;
                };
                if ordinal < anew.snapshot {
                    self.remove(&self.path.join(name))?;
                }
            }
            self.sync()?;
            self.rewrite_identity()?;
        }
        self.remove(&self.path.join(ANEW))?;
        self.sync()
    }

    /// Makes durable what was put there, and then the identity, without which it can't be opened.
    pub(crate) fn found(&self) -> Result<()> {
        self.sync()?;
        self.write_identity()?;
        let parent = directory_of(&self.path);
        self.disk.sync_dir(parent).map_err(|source| Error::io("sync", parent, source))?;
        self.release();
        Ok(())
    }

    /// Removes what was put there: making it has failed, for a reason that is told elsewhere.
    pub(crate) fn unmake(&self) {
        for name in self.disk.list(&self.path).unwrap_or_default() {
            if FileKind::of(&name) != FileKind::Other {
                let _ = self.disk.remove(&self.path.join(name));
            }
        }
        if self.is_made {
            let _ = self.disk.remove_dir(&self.path);
        }
        self.release();
    }

    /// Whether who opens it may write on from a line of these histories.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corrupt`].
    pub(crate) fn may_write(&self, lineage: &[Span]) -> Result<bool> {
        let Identity { node, is_copy, .. } = self.identity();
        let own = lineage.last().is_none_or(|last| last.writer == node || is_copy);
        Ok(own && self.fence()?.is_none_or(|fence| rank(lineage) >= (fence.term, fence.history)))
    }

    /// A place for what was given up, under this name. Older ones than the newest few go.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(crate) fn aside(&self, name: &str) -> Result<PathBuf> {
        const KEPT: usize = 3;
        let folder = self.path.join(ASIDE);
        match self.disk.create_dir(&folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Error::io("create", &folder, error));
            }
            _ => self.sync()?,
        }
        let listed = self.disk.list(&folder);
        let listed = listed.map_err(|source| Error::io("list", &folder, source))?;
        let mut others: Vec<_> = listed.into_iter().filter(|other| other != name).collect();
        // By the Seq behind the history.
        others.sort_by_key(|name| name.to_str().and_then(|name| name.get(33..)).map(str::to_owned));
        while others.len() >= KEPT {
            self.remove(&folder.join(others.remove(0)))?;
        }
        Ok(folder.join(name))
    }

    /// The promotion that it heard of, if that was of another line.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Corrupt`].
    pub(crate) fn fence(&self) -> Result<Option<Fence>> {
        let path = self.path.join(FENCE);
        let file = match self.disk.open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(|source| Error::io("open", &path, source))?,
        };
        let bytes = read_small(&*file, &path, FENCE_LEN)?;
        Fence::decode(&bytes).map(Some).map_err(|d| Error::corrupt(&path, d.at, d.fault))
    }

    /// Whatever line is here, it is written no more below this rank.
    pub(crate) fn set_fence(&self, fence: Fence) -> Result<()> {
        replace_whole(&*self.disk, &self.path.join(FENCE), &fence.encode())
    }

    /// Lets another process have it: nothing is done here any more.
    pub(crate) fn release(&self) {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    pub(crate) fn segment(&self, ordinal: u64) -> PathBuf {
        self.file(FileKind::Segment(ordinal))
    }

    pub(crate) fn spool(&self) -> PathBuf {
        self.path.join(SPOOL)
    }

    /// A file that is gone when it is closed.
    pub(crate) fn create_nameless(&self) -> Result<Box<dyn DiskFile>> {
        let (path, file) = create_temporary(&*self.disk, &self.spool())?;
        self.disk.remove(&path).map_err(|source| Error::io("remove", &path, source))?;
        Ok(file)
    }

    pub(crate) fn snapshot(&self, ordinal: u64) -> PathBuf {
        self.file(FileKind::Snapshot(ordinal))
    }

    fn file(&self, kind: FileKind) -> PathBuf {
        self.path.join(kind.name().expect("a segment or a snapshot"))
    }

    /// The names in the directory and what they stand for.
    pub(crate) fn list(&self) -> Result<Vec<(OsString, FileKind)>> {
        let names = self.disk.list(&self.path);
        let names = names.map_err(|source| Error::io("list", &self.path, source))?;
        Ok(names.into_iter().map(|name| (name.clone(), FileKind::of(&name))).collect())
    }

    /// Makes changes of names durable.
    pub(crate) fn sync(&self) -> Result<()> {
        self.disk.sync_dir(&self.path).map_err(|source| Error::io("sync", &self.path, source))
    }

    /// Removes a file, if it is there.
    pub(crate) fn remove(&self, path: &Path) -> Result<()> {
        match self.disk.remove(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io("remove", path, error))
            }
            _ => Ok(()),
        }
    }
}

/// Reads the directory's identity; a directory without one, that holds no file of ours, gets one.
fn identity(disk: &dyn Disk, dir: &Path) -> Result<Identity> {
    let path = dir.join(IDENTITY);
    match disk.open(&path) {
        Ok(file) => read_identity(&*file, &path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let names = disk.list(dir).map_err(|source| Error::io("list", dir, source))?;
            let ours = |name: &&OsString| {
                matches!(FileKind::of(name), FileKind::Segment(_) | FileKind::Snapshot(_))
            };
            if names.iter().any(|name| ours(&name)) {
                return Err(Error::io("open", &path, error));
            }
            let identity = Identity { dataset: random_id()?, node: random_id()?, is_copy: false };
            create_whole(disk, &path, &identity.encode())?;
            Ok(identity)
        }
        Err(source) => Err(Error::io("open", &path, source)),
    }
}

fn read_identity(file: &dyn DiskFile, path: &Path) -> Result<Identity> {
    let bytes = read_small(file, path, IDENTITY_LEN)?;
    Identity::decode(&bytes).map_err(|d| Error::corrupt(path, d.at, d.fault))
}

/// Reads a file that should be of `len` bytes, or one more of them.
fn read_small(file: &dyn DiskFile, path: &Path, len: usize) -> Result<Vec<u8>> {
    let told = |source| Error::io("read", path, source);
    let len = file.len().map_err(told)?.min(len as u64 + 1);
    #[expect(clippy::cast_possible_truncation, reason = "little more than was asked for")]
    let mut bytes = vec![0; len as usize];
    read_exact_at(file, &mut bytes, 0).map_err(told)?;
    Ok(bytes)
}

/// Makes a small file that is whole and durable before it has its name.
pub(crate) fn create_whole(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    replace_whole(disk, path, bytes).inspect_err(|error| {
        if matches!(error, Error::Io { op: "sync", path: synced, .. } if synced == directory_of(path)) {
            // In doubt for good, as every name whose sync failed: the next one to try makes it anew.
            let _ = disk.remove(path);
        }
    })
}

/// As [`create_whole`], in the place of a file that there may be: whatever fails, that or the new one is there.
fn replace_whole(disk: &dyn Disk, path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = directory_of(path);
    let (temporary, file) = create_temporary(disk, path)?;
    write_all_at(&*file, bytes, 0)
        .map_err(|source| Error::io("write", &temporary, source))
        .and_then(|()| file.sync_all().map_err(|source| Error::io("sync", &temporary, source)))
        .and_then(|()| {
            disk.rename(&temporary, path).map_err(|source| Error::io("rename to", path, source))
        })
        .inspect_err(|_| {
            // It failed for another reason, which is the one that is told.
            let _ = disk.remove(&temporary);
        })?;
    disk.sync_dir(dir).map_err(|source| Error::io("sync", dir, source))
}

/// A new file beside `path`, under a name that says it is not whole.
pub(crate) fn create_temporary(
    disk: &dyn Disk,
    path: &Path,
) -> Result<(PathBuf, Box<dyn DiskFile>)> {
    let temporary = temporary_path(path).map_err(|source| Error::io("create", path, source))?;
    let file =
        disk.create_new(&temporary).map_err(|source| Error::io("create", &temporary, source))?;
    Ok((temporary, file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::sim::SimDisk;

    #[test]
    fn a_name_has_one_spelling() {
        let cases = [
            ("0000000007.log", FileKind::Segment(7)),
            ("0000000007.snap", FileKind::Snapshot(7)),
            ("12345678901.log", FileKind::Segment(12_345_678_901)),
            ("18446744073709551615.snap", FileKind::Other),
            ("7.log", FileKind::Other),
            ("00000000007.log", FileKind::Other),
            ("+000000007.log", FileKind::Other),
            ("0000000007.LOG", FileKind::Other),
            ("0000000007.log~", FileKind::Other),
            (".0000000007.log.0123456789abcdef.tmp", FileKind::Temporary),
            ("lock", FileKind::Lock),
            ("identity", FileKind::Identity),
            ("", FileKind::Other),
        ];
        for (name, kind) in cases {
            assert_eq!(FileKind::of(OsStr::new(name)), kind, "{name:?}");
        }
    }

    #[test]
    fn a_directory_has_one_holder_and_keeps_its_identity() {
        let disk = SimDisk::new();
        let dir = Path::new("/db");
        let claim = || Directory::claim(Arc::new(disk.clone()), dir);
        let first = claim().unwrap();
        assert!(matches!(claim(), Err(Error::Locked { .. })));
        let identity = first.identity();
        drop(first);
        assert_eq!(claim().unwrap().identity(), identity);

        disk.edit(&dir.join("identity"), |bytes| bytes[20] ^= 1).unwrap();
        assert!(matches!(claim(), Err(Error::Corrupt { offset: 60, .. })));
        disk.remove(&dir.join("identity")).unwrap();
        disk.create_new(&dir.join("0000000001.log")).unwrap();
        // Whose log it is nobody can say.
        assert!(matches!(claim(), Err(Error::Io { op: "open", .. })));
    }
}
