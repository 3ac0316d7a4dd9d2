//! Files read and written through memory: the only file that names memmap2's file maps.
//!
//! Reads copy out of the map into the caller's buffer, so that what is checked is what is used, whatever
//! happens to the file meanwhile. Invariants:
//!
//! 1. `raw` is a read-only, shared map of the first `raw.len()` bytes of a regular file, for as long as
//!    the [`Map`] lives.
//! 2. No reference into the map exists, ever: others may change the file, and bytes behind a `&[u8]` must
//!    not change. Only raw pointers read it.
//! 3. Nobody shortens the file while it is mapped: a duty of whoever called [`Map::open`], and of the log for
//!    its own segments, in a directory that it has locked.
//! 4. `raw` of a [`WriteMap`] is a writable, shared map of the file's first `raw.len()` bytes for as long as that lives; its
//!    `&mut` is the only way to write to it, and nothing reads it but the system.
#![expect(unsafe_code, reason = "copies from mapped memory, which no safe reference may name")]

use std::io;
use std::path::Path;

use memmap2::{Advice, MmapOptions, MmapRaw, UncheckedAdvice};

use super::DiskMap;
use super::snapshot_file::SnapshotFile;
use crate::error::{Error, Result};
use crate::sync::assert_no_latch;

/// A regular file, mapped for reading.
#[derive(Debug)]
pub(crate) struct Map {
    raw: MmapRaw,
}

impl Map {
    /// Maps the regular file at `path`, as long as it is now; the file itself need not stay open, nor keep its name.
    ///
    /// # Errors
    /// As [`Disk::open`](super::Disk::open), and what the system says to the mapping.
    ///
    /// # Safety
    /// While the result lives, nobody shortens the file, in this process or another: to read a page that
    /// the file no longer has kills the process (SIGBUS). Who changes bytes only changes what is read.
    pub(crate) unsafe fn open(path: &Path) -> io::Result<Map> {
        assert_no_latch(super::DISK);
        let file = super::open_regular(path, false)?;
        Ok(Map { raw: MmapOptions::new().map_raw_read_only(&file)? })
    }

    /// The length of the file when it was mapped, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.raw.len() as u64
    }

    /// Fills `buf` with the bytes at `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` if they do not all lie in the map; `buf` is then unchanged.
    pub(crate) fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        // A page that is not in memory yet is a read from disk all the same.
        assert_no_latch(super::DISK);
        let start = usize::try_from(offset).ok();
        let end = start.and_then(|start| start.checked_add(buf.len()));
        let (Some(start), Some(end)) = (start, end) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        if end > self.raw.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        // SAFETY: `start..end` lies within the map (checked above), which is mapped and readable
        // (invariant 1) and backed by the file to its end (invariant 3); `buf` is exclusively ours and
        // can't overlap a map that no reference names (invariant 2).
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.raw.as_ptr().add(start),
                buf.as_mut_ptr(),
                buf.len(),
            );
        }
        Ok(())
    }
}

/// A regular file, mapped for writing.
#[derive(Debug)]
pub(crate) struct WriteMap {
    raw: MmapRaw,
    /// Up to here pages are present and may be written to without the file system being asked.
    ready: usize,
    /// Up to here they were let go of again.
    left: usize,
}

/// Pages are made ready so many bytes at a time: a fault for each would cost more.
const READY_BYTES: usize = 256 << 10;

impl WriteMap {
    /// Maps the regular file at `path`, as long as it is now.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        assert_no_latch(super::DISK);
        let file = super::open_regular(path, true)?;
        Ok(Self { raw: MmapOptions::new().map_raw(&file)?, ready: 0, left: 0 })
    }
}

impl WriteMap {
    /// Makes the pages of `start..end` present, and lets go of those that lie well before.
    fn make_ready(&mut self, start: usize, end: usize) -> io::Result<()> {
        let from = self.ready.max(start - start % READY_BYTES);
        let to = end.next_multiple_of(READY_BYTES).min(self.raw.len());
        // A page that can't be had is an error here and would be the end of the process later. A system
        // that does not know the advice makes them ready one by one.
        match self.raw.advise_range(Advice::PopulateWrite, from, to - from) {
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => return Err(error),
            _ => self.ready = to,
        }
        // A sync makes every page that is mapped write-protected, and for each interrupts all processors that
        // may have it in their tables: 16,000 times for a segment, while writers run.
        let passed = start - start % READY_BYTES;
        if passed > self.left {
            // SAFETY: in a shared map of a file this takes the pages out of the tables of this process and
            // changes no byte of the file; a later access brings them back. Nobody refers into them (invariant 4).
            let left = unsafe {
                let advice = UncheckedAdvice::DontNeed;
                self.raw.unchecked_advise_range(advice, self.left, passed - self.left)
            };
            // Advice that is not taken costs time, nothing else.
            if left.is_ok() {
                self.left = passed;
            }
        }
        Ok(())
    }
}

impl DiskMap for WriteMap {
    fn store(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        // The page may have to be read or given room first.
        assert_no_latch(super::DISK);
        let start = usize::try_from(offset).ok();
        let end = start.and_then(|start| start.checked_add(bytes.len()));
        let (Some(start), Some(end)) = (start, end) else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        if end > self.raw.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if end > self.ready {
            self.make_ready(start, end)?;
        }
        // SAFETY: `start..end` lies within the map (checked above), which is mapped and writable and which only
        // `&mut self` writes to (invariant 4), backed by the file to its end (invariant 3); `bytes` can't
        // overlap a map that no reference names (invariant 2).
        unsafe {
            std::ptr::copy_nonoverlapping(
                bytes.as_ptr(),
                self.raw.as_mut_ptr().add(start),
                bytes.len(),
            );
        }
        Ok(())
    }
}

impl SnapshotFile {
    /// Opens the file at `path` and reads its blocks from a memory map.
    ///
    /// Blocks are copied out of the map, then checked, then used: who changes bytes of the file meanwhile
    /// causes errors, not wrong reads.
    ///
    /// # Errors
    /// As [`SnapshotFile::open`].
    ///
    /// # Safety
    /// While the result or anything made from it lives, nobody shortens the file, in this process or
    /// another: to read a page that the file no longer has kills the process (SIGBUS).
    pub unsafe fn open_mapped(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        // SAFETY: our caller took on the duty of invariant 3.
        let map = unsafe { Map::open(path) };
        Self::open_map(map.map_err(|source| Error::io("open", path, source))?, path)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::storage::tests::TestDir;

    /// # Panics
    /// If the file can't be made or mapped. Nobody shortens it: only this test knows its name.
    fn map_of(dir: &TestDir, bytes: &[u8]) -> Map {
        let path = dir.write("mapped", bytes);
        // SAFETY: the file has a name no one else knows and is not touched again.
        unsafe { Map::open(&path) }.unwrap()
    }

    /// # Panics
    /// If the file can't be opened. Nobody shortens it: the tests that call this write it once.
    pub(crate) fn open_mapped(path: &Path) -> SnapshotFile {
        // SAFETY: as said above.
        unsafe { SnapshotFile::open_mapped(path) }.unwrap()
    }

    #[test]
    fn what_is_stored_is_in_the_file_and_nothing_beside_it() {
        let dir = TestDir::new();
        let path = dir.write("stored", &[b'.'; 10_000]);
        let mut map = WriteMap::open(&path).unwrap();
        map.store(b"one", 0).unwrap();
        map.store(b"two", 4_095).unwrap();
        map.store(b"end", 9_997).unwrap();
        map.store(b"", 10_000).unwrap();
        for (bytes, offset) in [(&b"x"[..], 10_000), (b"xy", 9_999), (b"x", u64::MAX)] {
            let error = map.store(bytes, offset).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "{offset}");
        }
        let mut expected = vec![b'.'; 10_000];
        expected[..3].copy_from_slice(b"one");
        expected[4_095..4_098].copy_from_slice(b"two");
        expected[9_997..].copy_from_slice(b"end");
        let read = map_of(&dir, b"other");
        assert_eq!(read.len(), 5);
        let mut buf = vec![0; 10_000];
        // SAFETY: the file is this test's own and keeps its length.
        unsafe { Map::open(&path) }.unwrap().read_at(&mut buf, 0).unwrap();
        assert_eq!(buf, expected);
    }

    #[test]
    fn pages_that_were_let_go_of_keep_what_was_stored() {
        let dir = TestDir::new();
        let len = 5 * READY_BYTES + 777;
        let path = dir.write("stored", &vec![0; len]);
        let mut map = WriteMap::open(&path).unwrap();
        let expected: Vec<u8> = (0..len).map(|at| (at % 251).to_le_bytes()[0]).collect();
        for (number, piece) in expected.chunks(1_000).enumerate() {
            map.store(piece, number as u64 * 1_000).unwrap();
        }
        assert!(map.left >= 3 * READY_BYTES, "{}", map.left);
        // Also those may be stored to again.
        map.store(&expected[..10], 0).unwrap();
        drop(map);
        assert_eq!(std::fs::read(&path).unwrap(), expected);
    }

    #[test]
    fn reads_what_lies_in_the_map_and_nothing_else() {
        let dir = TestDir::new();
        let map = map_of(&dir, b"0123456789");
        assert_eq!(map.len(), 10);
        let mut buf = [0; 4];
        map.read_at(&mut buf, 6).unwrap();
        assert_eq!(&buf, b"6789");
        for offset in [7, 10, 11, u64::MAX - 3, u64::MAX] {
            let error = map.read_at(&mut buf, offset).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "offset {offset}");
        }
        assert_eq!(&buf, b"6789");
        map.read_at(&mut [], 10).unwrap();
        assert!(map.read_at(&mut [], 11).is_err());
    }

    #[test]
    fn an_empty_file_maps_to_nothing() {
        let dir = TestDir::new();
        let map = map_of(&dir, b"");
        assert_eq!(map.len(), 0);
        map.read_at(&mut [], 0).unwrap();
        assert!(map.read_at(&mut [0], 0).is_err());
    }

    #[test]
    fn the_map_outlives_the_name() {
        let dir = TestDir::new();
        let map = map_of(&dir, &[7; 10_000]);
        drop(dir);
        let mut buf = [0; 10_000];
        map.read_at(&mut buf, 0).unwrap();
        assert_eq!(buf, [7; 10_000]);
    }

    #[test]
    fn refuses_a_directory() {
        // SAFETY: nothing is mapped.
        let error = unsafe { Map::open(&std::env::temp_dir()) }.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::IsADirectory);
    }
}
