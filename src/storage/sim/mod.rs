//! A disk in memory that knows what was synced: it forgets, reorders and tears the rest, and fails on demand.
//!
//! [`SimDisk`] keeps the tree of files as the process sees it, and a log of every change since the tree it
//! began with. From a prefix of that log follows what is durable at that moment and what is not
//! ([`CrashPoint`]), and from a choice among the latter the disk that the next process finds. Nothing here
//! depends on time, addresses or hash order: the same calls give the same log, the same seed the same loss.
//!
//! `tree` holds the files, `crash` says what a power cut may leave, `fault` what may fail. Nothing here
//! knows what the bytes mean.

use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

pub use self::crash::{CrashPoint, Fate};
use self::fault::FaultPlan;
pub use self::fault::{Call, CallKind, DiskFault, Effect};
pub use self::tree::{Change, DirId, FileId, Node, Step};
use self::tree::{MAX_FILE_LEN, ROOT, Tree, os_error, to_usize};
use super::{Disk, DiskFile, DiskMap};
use crate::clock::Random;
use crate::sync::{Mutex, MutexGuard};

mod crash;
mod fault;
mod tree;

struct State {
    /// The tree the log begins with, all of it durable.
    start: Tree,
    log: Vec<Change>,
    /// As the process sees it: `start` with the whole log applied.
    now: Tree,
    plan: FaultPlan,
    capacity: Option<u64>,
    /// Files that somebody has locked; each for as long as the lock lives.
    locked: Vec<(FileId, Weak<()>)>,
}

impl State {
    fn change(&mut self, path: &Arc<Path>, step: Step) {
        self.now.apply(&step);
        self.log.push(Change { path: Arc::clone(path), step });
    }

    /// How long a file that is `len` bytes long, and should have `wanted`, may become.
    fn longest(&self, len: u64, wanted: u64) -> io::Result<u64> {
        if wanted > MAX_FILE_LEN {
            return Err(os_error(libc::EFBIG));
        }
        Ok(match self.capacity {
            Some(capacity) if wanted > len => {
                wanted.min(len + capacity.saturating_sub(self.now.used()))
            }
            _ => wanted,
        })
    }
}

/// A simulated disk. Clones are the same disk; a [fork](Self::fork) is another.
///
/// Paths are absolute, or mean the same from the root. A new disk holds the root and nothing else.
///
/// ```
/// # #[cfg(feature = "simulation")] {
/// use stillframe::simulation::{Disk, SimDisk};
/// use std::path::Path;
///
/// let disk = SimDisk::new();
/// let file = disk.create_new(Path::new("/note")).unwrap();
/// file.write_at(b"kept", 0).unwrap();
/// file.sync_all().unwrap();
/// disk.sync_dir(Path::new("/")).unwrap();
/// file.write_at(b", or not", 4).unwrap();
///
/// let after = disk.crash(1);
/// assert!(after.contents(Path::new("/note")).unwrap().starts_with(b"kept"));
/// # }
/// ```
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<State>>);

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").finish_non_exhaustive()
    }
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::from_tree(Tree::empty())
    }

    fn from_tree(tree: Tree) -> Self {
        SimDisk(Arc::new(Mutex::new(State {
            start: tree.clone(),
            log: Vec::new(),
            now: tree,
            plan: FaultPlan::default(),
            capacity: None,
            locked: Vec::new(),
        })))
    }

    /// Another disk that is just like this one, log, planted faults and all, but without its locks. File contents are shared until changed.
    pub fn fork(&self) -> Self {
        let state = self.0.lock();
        SimDisk(Arc::new(Mutex::new(State {
            start: state.start.clone(),
            log: state.log.clone(),
            now: state.now.clone(),
            plan: state.plan.clone(),
            capacity: state.capacity,
            locked: Vec::new(),
        })))
    }

    /// The disk that is found after the power went now, one of many, chosen by `seed`. This one goes on unharmed.
    pub fn crash(&self, seed: u64) -> Self {
        let point = self.crash_point(self.change_count());
        point.image(&point.draw(&mut Random::new(seed)))
    }

    /// What is durable and what is pending after the first `count` changes of the log.
    ///
    /// # Panics
    /// If the log is shorter.
    pub fn crash_point(&self, count: usize) -> CrashPoint {
        let state = self.0.lock();
        CrashPoint::new(&state.start, &state.log[..count])
    }

    /// How many changes the log holds. A workload that notes it when something is acknowledged knows from
    /// which crash point on that must be found.
    pub fn change_count(&self) -> usize {
        self.0.lock().log.len()
    }

    /// The log of changes since the disk was made or [settled](Self::settle).
    pub fn changes(&self) -> Vec<Change> {
        self.0.lock().log.clone()
    }

    /// Makes all there is durable and starts the log anew.
    pub fn settle(&self) {
        let mut state = self.0.lock();
        state.start = state.now.clone();
        state.log.clear();
    }

    /// Changes the bytes of a file behind everyone's back, as a decaying medium does, and [settles](Self::settle).
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub fn edit(&self, path: &Path, edit: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut state = self.0.lock();
        let file = state.now.lookup_file(path)?;
        edit(Arc::make_mut(state.now.file_mut(file)));
        state.start = state.now.clone();
        state.log.clear();
        Ok(())
    }

    /// The bytes of a file now, without a call that counts.
    ///
    /// # Errors
    /// As [`Disk::open`].
    pub fn contents(&self, path: &Path) -> io::Result<Vec<u8>> {
        let state = self.0.lock();
        let file = state.now.lookup_file(path)?;
        Ok(state.now.files[file.0].to_vec())
    }

    /// The paths of all files now, without a call that counts.
    pub fn files(&self) -> Vec<PathBuf> {
        let mut files = Vec::new();
        self.0.lock().now.for_each_file(ROOT, Path::new("/"), &mut |path, _| files.push(path));
        files
    }

    /// Plants a fault. Of several that match a call, the one planted first strikes.
    pub fn inject(&self, fault: DiskFault) {
        self.0.lock().plan.inject(fault);
    }

    /// Takes all planted faults away. What they did stays done.
    pub fn clear_faults(&self) {
        self.0.lock().plan.clear();
    }

    /// Every call made to this disk and its files, in order, those that failed too.
    pub fn calls(&self) -> Vec<Call> {
        self.0.lock().plan.calls().to_vec()
    }

    /// How many calls were made, by kind; a kind that was never reached is not there.
    pub fn call_counts(&self) -> BTreeMap<CallKind, u64> {
        self.0.lock().plan.counts()
    }

    /// Limits the bytes of all named files together: a write takes what fits, then fails with ENOSPC.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.0.lock().capacity = bytes;
    }

    fn call(&self, kind: CallKind, path: &Path) -> io::Result<(MutexGuard<'_, State>, Arc<Path>)> {
        let path = path.into();
        let mut state = self.0.lock();
        state.plan.admit(kind, &path)?;
        Ok((state, path))
    }

    fn handle(&self, file: FileId, path: Arc<Path>, writable: bool) -> Box<dyn DiskFile> {
        Box::new(SimFile { disk: self.clone(), file, path, writable })
    }
}

impl Disk for SimDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let (mut state, path) = self.call(CallKind::CreateNew, path)?;
        let (dir, name, taken) = state.now.slot(&path)?;
        if taken.is_some() {
            return Err(os_error(libc::EEXIST));
        }
        let file = FileId(state.now.files.len());
        state.change(&path, Step::Name { dir, name, node: Some(Node::File(file)) });
        Ok(self.handle(file, path, true))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let (state, path) = self.call(CallKind::Open, path)?;
        Ok(self.handle(state.now.lookup_file(&path)?, path, false))
    }

    fn open_write(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let (state, path) = self.call(CallKind::OpenWrite, path)?;
        Ok(self.handle(state.now.lookup_file(&path)?, path, true))
    }

    fn map(&self, path: &Path) -> io::Result<Box<dyn DiskMap>> {
        let (state, path) = self.call(CallKind::Map, path)?;
        let file = state.now.lookup_file(&path)?;
        Ok(Box::new(SimMap(SimFile { disk: self.clone(), file, path, writable: true })))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let (mut state, from) = self.call(CallKind::Rename, from)?;
        let (from_dir, from_name, node) = state.now.slot(&from)?;
        let (to_dir, to_name, taken) = state.now.slot(to)?;
        match (node, taken) {
            (None, _) => Err(os_error(libc::ENOENT)),
            // Directories are not renamed on any disk of ours.
            (Some(Node::Dir(_)), _) | (_, Some(Node::Dir(_))) => Err(os_error(libc::EISDIR)),
            (same, taken) if same == taken => Ok(()),
            (file, _) => {
                state.change(&to.into(), Step::Name { dir: to_dir, name: to_name, node: file });
                state.change(&from, Step::Name { dir: from_dir, name: from_name, node: None });
                Ok(())
            }
        }
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let (mut state, path) = self.call(CallKind::Remove, path)?;
        let (dir, name, node) = state.now.slot(&path)?;
        match node {
            None => Err(os_error(libc::ENOENT)),
            Some(Node::Dir(_)) => Err(os_error(libc::EISDIR)),
            Some(Node::File(_)) => {
                state.change(&path, Step::Name { dir, name, node: None });
                Ok(())
            }
        }
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        let (mut state, path) = self.call(CallKind::CreateDir, path)?;
        let (dir, name, taken) = state.now.slot(&path)?;
        if taken.is_some() {
            return Err(os_error(libc::EEXIST));
        }
        let node = Some(Node::Dir(DirId(state.now.dirs.len())));
        state.change(&path, Step::Name { dir, name, node });
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let (mut state, path) = self.call(CallKind::RemoveDir, path)?;
        let (dir, name, node) = state.now.slot(&path)?;
        match node {
            None => Err(os_error(libc::ENOENT)),
            Some(Node::File(_)) => Err(os_error(libc::ENOTDIR)),
            Some(Node::Dir(own)) if !state.now.dirs[own.0].is_empty() => {
                Err(os_error(libc::ENOTEMPTY))
            }
            Some(Node::Dir(_)) => {
                state.change(&path, Step::Name { dir, name, node: None });
                Ok(())
            }
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let (state, path) = self.call(CallKind::List, dir)?;
        let dir = state.now.lookup_dir(&path)?;
        Ok(state.now.dirs[dir.0].keys().map(|name| name.to_os_string()).collect())
    }

    fn identify(&self, dir: &Path) -> io::Result<PathBuf> {
        // Relative, which no path of the operating system's is.
        let disk = format!("simulated disk {:x}", Arc::as_ptr(&self.0).addr());
        Ok(Path::new(&disk).join(dir.strip_prefix("/").unwrap_or(dir)))
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        let (mut state, path) = self.call(CallKind::Lock, path)?;
        let (dir, name, taken) = state.now.slot(&path)?;
        let file = match taken {
            Some(Node::File(file)) => file,
            Some(Node::Dir(_)) => return Err(os_error(libc::EISDIR)),
            None => {
                let file = FileId(state.now.files.len());
                state.change(&path, Step::Name { dir, name, node: Some(Node::File(file)) });
                file
            }
        };
        state.locked.retain(|(_, lock)| lock.strong_count() > 0);
        if state.locked.iter().any(|(locked, _)| *locked == file) {
            return Ok(None);
        }
        let lock = Arc::new(());
        state.locked.push((file, Arc::downgrade(&lock)));
        Ok(Some(Box::new(lock)))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let path = dir.into();
        let mut state = self.0.lock();
        let admitted = state.plan.admit(CallKind::SyncDir, &path);
        let dir = state.now.lookup_dir(&path)?;
        state.change(&path, Step::SyncDir { dir, done: admitted.is_ok() });
        admitted.map(drop)
    }
}

struct SimFile {
    disk: SimDisk,
    file: FileId,
    path: Arc<Path>,
    writable: bool,
}

impl fmt::Debug for SimFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimFile").field("path", &self.path).finish_non_exhaustive()
    }
}

impl SimFile {
    fn state(&self) -> MutexGuard<'_, State> {
        self.disk.0.lock()
    }

    fn sync(&self, kind: CallKind) -> io::Result<()> {
        let mut state = self.state();
        let admitted = state.plan.admit(kind, &self.path);
        state.change(&self.path, Step::Sync { file: self.file, done: admitted.is_ok() });
        admitted.map(drop)
    }
}

/// Stores are writes that are always whole, as far as the process sees.
#[derive(Debug)]
struct SimMap(SimFile);

impl DiskMap for SimMap {
    fn store(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let mut state = self.0.state();
        state.plan.admit(CallKind::Store, &self.0.path)?;
        let len = state.now.files[self.0.file.0].len() as u64;
        if offset.checked_add(bytes.len() as u64).is_none_or(|end| end > len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if !bytes.is_empty() {
            let step = Step::Write { file: self.0.file, offset, data: bytes.into() };
            state.change(&self.0.path, step);
        }
        Ok(())
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state();
        let most = state.plan.admit(CallKind::Read, &self.path)?;
        let bytes = &state.now.files[self.file.0];
        let rest = usize::try_from(offset).ok().and_then(|start| bytes.get(start..)).unwrap_or(&[]);
        let count = most.min(buf.len()).min(rest.len());
        buf[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let mut state = self.state();
        let most = state.plan.admit(CallKind::Write, &self.path)?;
        if !self.writable {
            return Err(os_error(libc::EBADF));
        }
        let buf = &buf[..most.min(buf.len())];
        if buf.is_empty() {
            return Ok(0);
        }
        let len = state.now.files[self.file.0].len() as u64;
        let end = offset.checked_add(buf.len() as u64).ok_or_else(|| os_error(libc::EFBIG))?;
        let fits = state.longest(len, end)?.saturating_sub(offset);
        if fits == 0 {
            return Err(os_error(libc::ENOSPC));
        }
        let data: Arc<[u8]> = buf[..to_usize(fits)].into();
        let count = data.len();
        state.change(&self.path, Step::Write { file: self.file, offset, data });
        Ok(count)
    }

    fn len(&self) -> io::Result<u64> {
        let mut state = self.state();
        state.plan.admit(CallKind::Len, &self.path)?;
        Ok(state.now.files[self.file.0].len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut state = self.state();
        state.plan.admit(CallKind::SetLen, &self.path)?;
        if !self.writable {
            return Err(os_error(libc::EINVAL));
        }
        let old_len = state.now.files[self.file.0].len() as u64;
        if state.longest(old_len, len)? < len {
            return Err(os_error(libc::ENOSPC));
        }
        state.change(&self.path, Step::SetLen { file: self.file, len });
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.sync(CallKind::SyncData)
    }

    fn sync_all(&self) -> io::Result<()> {
        self.sync(CallKind::SyncAll)
    }
}

#[cfg(test)]
mod tests;
