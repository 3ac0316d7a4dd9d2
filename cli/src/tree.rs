//! Directory trees as records: relative path -> content, and safely back.
//!
//! A key is the path below the root with `/` between its parts, byte for byte on Unix. Symbolic
//! links are neither followed nor stored.

use std::fs::File;
use std::io::Read;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context, bail};
use walkdir::{DirEntry, WalkDir};

use crate::text::key_in_message;

/// A regular file below a root.
pub(crate) struct Found {
    pub(crate) path: PathBuf,
    pub(crate) key: Vec<u8>,
    pub(crate) bytes: u64,
}

/// The regular files below `root` in the order of their names, without what `enter` refuses;
/// anything that is neither file nor directory is skipped.
pub(crate) fn files(
    root: &Path,
    enter: impl FnMut(&DirEntry) -> bool,
) -> impl Iterator<Item = anyhow::Result<Found>> {
    let entries = WalkDir::new(root).min_depth(1).sort_by_file_name().into_iter();
    entries.filter_entry(enter).filter_map(move |entry| {
        let found = entry.map_err(anyhow::Error::from).and_then(|entry| {
            if !entry.file_type().is_file() {
                return Ok(None);
            }
            let bytes = entry.metadata()?.len();
            let relative = entry.path().strip_prefix(root).expect("walked from the root");
            Ok(Some(Found { key: key(relative), bytes, path: entry.into_path() }))
        });
        found.transpose()
    })
}

fn key(relative: &Path) -> Vec<u8> {
    let parts: Vec<_> =
        relative.components().map(|part| part.as_os_str().as_encoded_bytes()).collect();
    parts.join(&b'/')
}

/// Reads the whole file into `content`, in place of what it held.
pub(crate) fn read(path: &Path, content: &mut Vec<u8>) -> anyhow::Result<()> {
    content.clear();
    let result = File::open(path).and_then(|mut file| file.read_to_end(content));
    result.with_context(|| format!("reading {}", path.display()))?;
    Ok(())
}

/// The relative path that `key` names, provided that it stays below wherever it is joined to.
///
/// Refuses empty parts, `.`, `..`, absolute paths, drive letters and NUL: whatever the platform
/// would not take as a plain sequence of names.
pub(crate) fn path_of(key: &[u8]) -> anyhow::Result<PathBuf> {
    let path = path_from_bytes(key)?;
    let parts = key.split(|&byte| byte == b'/').count();
    let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
    if key.contains(&0) || !plain || path.components().count() != parts {
        bail!("key {} is not a safe relative path", key_in_message(key));
    }
    Ok(path)
}

#[cfg(unix)]
#[expect(clippy::unnecessary_wraps, reason = "fails elsewhere")]
fn path_from_bytes(key: &[u8]) -> anyhow::Result<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    Ok(PathBuf::from(std::ffi::OsStr::from_bytes(key)))
}

#[cfg(not(unix))]
fn path_from_bytes(key: &[u8]) -> anyhow::Result<PathBuf> {
    let text = str::from_utf8(key);
    let text = text.with_context(|| format!("key {} as a path", key_in_message(key)))?;
    Ok(PathBuf::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_relative_paths_are_taken() {
        for key in ["a", "a/b.rs", ".hidden", "..a/b..", "größe/ä"] {
            assert_eq!(path_of(key.as_bytes()).unwrap(), Path::new(key));
        }
        for key in ["", ".", "..", "/a", "a/", "a//b", "./a", "a/./b", "a/../b", "../a", "a\0b"] {
            assert!(path_of(key.as_bytes()).is_err(), "{key:?}");
        }
    }

    #[test]
    fn a_path_comes_back_from_its_key() {
        let path = Path::new("src").join("tree").join("page.rs");
        assert_eq!(key(&path), b"src/tree/page.rs");
        assert_eq!(path_of(&key(&path)).unwrap(), path);
    }
}
