//! The files and directories of a simulated disk, and the steps by which they change.
//!
//! A [`Tree`] is plain data: it knows neither what is durable nor what fails. Invariant: a step applied to the
//! tree it was logged for, or to any tree made from the log before it, finds the file or directory it names.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// No file grows past this, so that a wild offset is an error and not all of memory.
pub(super) const MAX_FILE_LEN: u64 = 1 << 32;

/// A file on a [`SimDisk`](super::SimDisk), whatever its names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FileId(pub(super) usize);

/// A directory on a [`SimDisk`](super::SimDisk).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DirId(pub(super) usize);

pub(super) const ROOT: DirId = DirId(0);

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they say it")]
pub enum Node {
    File(FileId),
    Dir(DirId),
}

/// One entry of the log: a single step of a change, or of making changes durable.
#[derive(Debug, Clone)]
pub struct Change {
    /// The path by which it was done, for people.
    pub path: Arc<Path>,
    /// What was done.
    pub step: Step,
}

/// What a [`Change`] did. A rename is two: the new name, then the old one.
#[derive(Debug, Clone)]
pub enum Step {
    /// Bytes were written; these are the ones that were taken.
    Write {
        /// To which file.
        file: FileId,
        /// From which offset.
        offset: u64,
        /// The bytes.
        data: Arc<[u8]>,
    },
    /// A file was cut or extended.
    SetLen {
        /// Which file.
        file: FileId,
        /// Its new length.
        len: u64,
    },
    /// A name was given to something, taken from it, or both.
    Name {
        /// In which directory.
        dir: DirId,
        /// Which name.
        name: Arc<OsStr>,
        /// What it now stands for; `None` if it is gone.
        node: Option<Node>,
    },
    /// The bytes and length of a file were synced.
    Sync {
        /// Which file.
        file: FileId,
        /// False if the sync failed.
        done: bool,
    },
    /// The names in a directory were synced.
    SyncDir {
        /// Which directory.
        dir: DirId,
        /// False if the sync failed.
        done: bool,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        let failed = |done: bool| if done { "" } else { ", failed" };
        match &self.step {
            Step::Write { offset, data, .. } => {
                write!(f, "write {path} at {offset}, {} bytes", data.len())
            }
            Step::SetLen { len, .. } => write!(f, "set length {path} to {len}"),
            Step::Name { node: Some(_), .. } => write!(f, "name {path}"),
            Step::Name { node: None, .. } => write!(f, "unname {path}"),
            Step::Sync { done, .. } => write!(f, "sync {path}{}", failed(*done)),
            Step::SyncDir { done, .. } => write!(f, "sync directory {path}{}", failed(*done)),
        }
    }
}

/// Files and directories at one moment; a clone shares all contents until they are changed.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    pub(super) files: Vec<Arc<Vec<u8>>>,
    pub(super) dirs: Vec<Arc<BTreeMap<Arc<OsStr>, Node>>>,
}

/// Lengths and offsets have passed [`MAX_FILE_LEN`] when they come to be used as an index.
pub(super) fn to_usize(offset: u64) -> usize {
    usize::try_from(offset).expect("bounded by MAX_FILE_LEN")
}

/// Writes `data` at `start`; a gap becomes zeros.
pub(super) fn put(bytes: &mut Vec<u8>, start: usize, data: &[u8]) {
    let end = start + data.len();
    if bytes.len() < end && !data.is_empty() {
        bytes.resize(end, 0);
    }
    if !data.is_empty() {
        bytes[start..end].copy_from_slice(data);
    }
}

pub(super) fn os_error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

impl Tree {
    pub(super) fn empty() -> Self {
        Tree { files: Vec::new(), dirs: vec![Arc::default()] }
    }

    pub(super) fn file_mut(&mut self, file: FileId) -> &mut Arc<Vec<u8>> {
        &mut self.files[file.0]
    }

    /// Makes sure that the file or directory a step names is there, empty.
    pub(super) fn make_room(&mut self, step: &Step) {
        match step {
            Step::Name { node: Some(Node::File(file)), .. } if file.0 >= self.files.len() => {
                self.files.resize_with(file.0 + 1, Arc::default);
            }
            Step::Name { node: Some(Node::Dir(dir)), .. } if dir.0 >= self.dirs.len() => {
                self.dirs.resize_with(dir.0 + 1, Arc::default);
            }
            _ => {}
        }
    }

    pub(super) fn apply(&mut self, step: &Step) {
        self.make_room(step);
        match step {
            Step::Write { file, offset, data } => {
                put(Arc::make_mut(self.file_mut(*file)), to_usize(*offset), data);
            }
            Step::SetLen { file, len } => {
                Arc::make_mut(self.file_mut(*file)).resize(to_usize(*len), 0);
            }
            Step::Name { dir, name, node } => {
                let names = Arc::make_mut(&mut self.dirs[dir.0]);
                match node {
                    Some(node) => names.insert(Arc::clone(name), *node),
                    None => names.remove(name),
                };
            }
            Step::Sync { .. } | Step::SyncDir { .. } => {}
        }
    }

    /// What `path` stands for; relative paths begin at the root, `..` is not known here.
    fn lookup(&self, path: &Path) -> io::Result<Node> {
        let mut node = Node::Dir(ROOT);
        for component in path.components() {
            let name = match component {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => name,
                Component::ParentDir | Component::Prefix(_) => return Err(os_error(libc::EINVAL)),
            };
            let Node::Dir(dir) = node else { return Err(os_error(libc::ENOTDIR)) };
            node = *self.dirs[dir.0].get(name).ok_or_else(|| os_error(libc::ENOENT))?;
        }
        Ok(node)
    }

    pub(super) fn lookup_dir(&self, path: &Path) -> io::Result<DirId> {
        match self.lookup(path)? {
            Node::Dir(dir) => Ok(dir),
            Node::File(_) => Err(os_error(libc::ENOTDIR)),
        }
    }

    pub(super) fn lookup_file(&self, path: &Path) -> io::Result<FileId> {
        match self.lookup(path)? {
            Node::File(file) => Ok(file),
            Node::Dir(_) => Err(os_error(libc::EISDIR)),
        }
    }

    /// The directory that holds the last name of `path`, that name, and what it stands for.
    pub(super) fn slot(&self, path: &Path) -> io::Result<(DirId, Arc<OsStr>, Option<Node>)> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(os_error(libc::EINVAL));
        };
        let dir = self.lookup_dir(parent)?;
        Ok((dir, name.into(), self.dirs[dir.0].get(name).copied()))
    }

    /// Calls `visit` with the path and id of every file that has a name, in the order of their names.
    pub(super) fn for_each_file(
        &self,
        dir: DirId,
        path: &Path,
        visit: &mut impl FnMut(PathBuf, FileId),
    ) {
        for (name, node) in &*self.dirs[dir.0] {
            let path = path.join(&**name);
            match node {
                Node::File(file) => visit(path, *file),
                Node::Dir(dir) => self.for_each_file(*dir, &path, visit),
            }
        }
    }

    /// The bytes of all files that have a name.
    pub(super) fn used(&self) -> u64 {
        let mut used = 0;
        self.for_each_file(ROOT, Path::new(""), &mut |_, file| {
            used += self.files[file.0].len() as u64;
        });
        used
    }
}
