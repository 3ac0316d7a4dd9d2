//! Opening a snapshot file, and the keyspace in it that a command is about.

use std::ops::Bound;
use std::path::Path;

use anyhow::{Context, bail};
use stillframe::{Error, FileKeyspace, SnapshotFile};

/// A range of keys as [`FileKeyspace::range`] takes it.
pub(crate) type KeyRange = (Bound<Vec<u8>>, Bound<Vec<u8>>);

/// Every key.
pub(crate) const ALL: KeyRange = (Bound::Unbounded, Bound::Unbounded);

/// The keyspace `name` of the file at `path`; without a name, its only one.
pub(crate) fn open_keyspace(path: &Path, name: Option<&str>) -> anyhow::Result<FileKeyspace> {
    let file = SnapshotFile::open(path)?;
    let names = file.keyspaces()?;
    let name = match (name, names.as_slice()) {
        (Some(name), _) => name,
        (None, [only]) => only,
        (None, []) => bail!("{} has no keyspace", path.display()),
        (None, _) => bail!(
            "{} has the keyspaces {}: pick one with --keyspace",
            path.display(),
            names.join(", ")
        ),
    };
    match file.keyspace(name) {
        Err(Error::NoKeyspace) => {
            bail!("{} has no keyspace {name:?}, it has: {}", path.display(), names.join(", "))
        }
        keyspace => keyspace.with_context(|| format!("opening keyspace {name:?}")),
    }
}
