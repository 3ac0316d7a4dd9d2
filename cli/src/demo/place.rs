//! Where the demo's files go: a temporary directory with room, not on a disk that is memory.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use tempfile::TempDir;

use crate::ui;

/// A temporary directory below `given`, or wherever two files of `raw_bytes` fit.
pub(crate) fn directory(given: Option<PathBuf>, raw_bytes: u64) -> anyhow::Result<TempDir> {
    let needed = raw_bytes.saturating_mul(5) / 2; // two files at worst, and something to spare
    let place = match given {
        Some(given) => given,
        None => choose(needed)?,
    };
    let directory = tempfile::Builder::new().prefix("stillframe-demo-").tempdir_in(&place);
    directory.with_context(|| format!("creating a directory in {}", place.display()))
}

/// The first place with room on a real disk, else the first with room.
fn choose(needed: u64) -> anyhow::Result<PathBuf> {
    let mut places = vec![env::temp_dir()];
    places.extend(env::current_dir());
    places.retain(|place| free_bytes(place).is_none_or(|free| free >= needed));
    let on_disk = places.iter().position(|place| !is_memory(place));
    match on_disk {
        Some(index) => Ok(places.swap_remove(index)),
        None if places.is_empty() => {
            bail!("no room for {} of temporary files: use --dir", ui::bytes(needed))
        }
        None => Ok(places.swap_remove(0)),
    }
}

#[cfg(unix)]
fn free_bytes(place: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(place).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_place: &Path) -> Option<u64> {
    None
}

/// Whether files in `place` live in memory, where a sync costs nothing and a file is not free.
#[cfg(target_os = "linux")]
fn is_memory(place: &Path) -> bool {
    const TMPFS: rustix::fs::FsWord = 0x0102_1994; // TMPFS_MAGIC of linux/magic.h
    rustix::fs::statfs(place).is_ok_and(|stat| stat.f_type == TMPFS)
}

#[cfg(not(target_os = "linux"))]
fn is_memory(_place: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directory_goes_when_it_is_dropped() {
        let base = TempDir::new().unwrap();
        let made = directory(Some(base.path().to_owned()), 1_000).unwrap();
        std::fs::write(made.path().join("file"), "content").unwrap();
        drop(made);
        assert_eq!(base.path().read_dir().unwrap().count(), 0);
    }

    #[cfg(unix)]
    #[test]
    fn what_fits_nowhere_is_refused() {
        assert!(directory(None, u64::MAX / 3).is_err());
    }
}
