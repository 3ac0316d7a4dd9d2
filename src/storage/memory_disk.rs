//! A disk that is memory: where a database without a directory keeps what its replicas have not read yet.

use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::group::lock;
use super::{Disk, DiskFile, DiskMap};

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct MemoryDisk {
    files: Mutex<BTreeMap<PathBuf, Arc<MemoryFile>>>,
}

/// A file takes memory in pieces of so many bytes, as it is written: none is moved when it grows, and the allocator gives
/// those of a file that is gone to the next.
const PIECE: usize = 64 << 10;

type MemoryFile = RwLock<Content>;

#[derive(Debug, Default)]
struct Content {
    /// Each as far as it was written; zeros follow, up to the next.
    pieces: Vec<Vec<u8>>,
    len: usize,
}

#[derive(Debug)]
struct Handle(Arc<MemoryFile>);

impl Content {
    fn read(&self, mut buf: &mut [u8], mut offset: usize) -> usize {
        let count = self.len.saturating_sub(offset).min(buf.len());
        buf = &mut buf[..count];
        while !buf.is_empty() {
            let (piece, at) = (self.pieces.get(offset / PIECE), offset % PIECE);
            let len = buf.len().min(PIECE - at);
            let written = piece.and_then(|piece| piece.get(at..)).unwrap_or_default();
            let written = &written[..written.len().min(len)];
            let part = buf.split_off_mut(..len).expect("not longer");
            part[..written.len()].copy_from_slice(written);
            part[written.len()..].fill(0);
            offset += len;
        }
        count
    }

    fn write(&mut self, mut bytes: &[u8], mut offset: usize) {
        if !bytes.is_empty() {
            self.len = self.len.max(offset + bytes.len());
        }
        while !bytes.is_empty() {
            let (number, at) = (offset / PIECE, offset % PIECE);
            if self.pieces.len() <= number {
                self.pieces.resize_with(number + 1, Vec::new);
            }
            let piece = &mut self.pieces[number];
            let part = bytes.split_off(..bytes.len().min(PIECE - at)).expect("not longer");
            if piece.capacity() == 0 {
                piece.reserve_exact(PIECE);
            }
            if piece.len() < at {
                piece.resize(at, 0);
            }
            let (over, behind) = part.split_at(part.len().min(piece.len() - at));
            piece[at..at + over.len()].copy_from_slice(over);
            piece.extend_from_slice(behind);
            offset += part.len();
        }
    }

    fn set_len(&mut self, len: usize) {
        self.pieces.truncate(len.div_ceil(PIECE));
        if let Some(last) = self.pieces.get_mut(len / PIECE) {
            last.truncate(len % PIECE);
        }
        self.len = len;
    }
}

fn missing() -> io::Error {
    io::ErrorKind::NotFound.into()
}

impl Disk for MemoryDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let mut files = lock(&self.files);
        if files.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let file = Arc::new(MemoryFile::default());
        files.insert(path.to_owned(), Arc::clone(&file));
        Ok(Box::new(Handle(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        let file = lock(&self.files).get(path).cloned();
        Ok(Box::new(Handle(file.ok_or_else(missing)?)))
    }

    fn open_write(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        self.open(path)
    }

    fn map(&self, _path: &Path) -> io::Result<Box<dyn DiskMap>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = lock(&self.files);
        let file = files.remove(from).ok_or_else(missing)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        lock(&self.files).remove(path).map(drop).ok_or_else(missing)
    }

    fn create_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn remove_dir(&self, _path: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        let files = lock(&self.files);
        let within = files.keys().filter(|path| path.parent() == Some(dir));
        Ok(within.filter_map(|path| path.file_name().map(ToOwned::to_owned)).collect())
    }

    fn identify(&self, dir: &Path) -> io::Result<PathBuf> {
        Ok(dir.to_owned())
    }

    fn lock(&self, _path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        // It has one owner, who made it.
        Ok(Some(Box::new(())))
    }

    fn sync_dir(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn is_memory(&self) -> bool {
        true
    }
}

impl Handle {
    fn read(&self) -> RwLockReadGuard<'_, Content> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Content> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place in memory.
fn place(offset: u64) -> io::Result<usize> {
    usize::try_from(offset).map_err(|_| io::ErrorKind::FileTooLarge.into())
}

impl DiskFile for Handle {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        Ok(place(offset).map_or(0, |offset| self.read().read(buf, offset)))
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let offset = place(offset)?;
        offset.checked_add(buf.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        self.write().write(buf, offset);
        Ok(buf.len())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.read().len as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = place(len)?;
        self.write().set_len(len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{read_exact_at, write_all_at};

    #[test]
    fn files_keep_what_was_written_and_go_when_the_last_has_let_go() {
        let disk = MemoryDisk::default();
        let path = Path::new("/a");
        let file = disk.create_new(path).unwrap();
        assert_eq!(disk.create_new(path).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        write_all_at(&*file, b"film", 3).unwrap();
        disk.rename(path, Path::new("/b")).unwrap();
        assert_eq!(disk.open(path).unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(disk.list(Path::new("/")).unwrap(), ["b"]);
        let reader = disk.open(Path::new("/b")).unwrap();
        disk.remove(Path::new("/b")).unwrap();
        let mut bytes = [1; 7];
        read_exact_at(&*reader, &mut bytes, 0).unwrap();
        assert_eq!(&bytes, b"\0\0\0film");
        assert_eq!(reader.read_at(&mut bytes, 7).unwrap(), 0);
    }

    /// Against a plain vector, around the ends of pieces.
    #[test]
    fn a_file_in_pieces_reads_as_one() {
        let file = MemoryDisk::default().create_new(Path::new("/a")).unwrap();
        let mut model: Vec<u8> = Vec::new();
        let mut random = 22_u64;
        let mut below = |limit: usize| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (random >> 33) as usize % limit
        };
        let near_an_end = |below: &mut dyn FnMut(usize) -> usize| below(4) * PIECE + below(9);
        for step in 0..3_000_u32 {
            let (at, len) = (near_an_end(&mut below), near_an_end(&mut below));
            match below(8) {
                0 => {
                    file.set_len(at as u64).unwrap();
                    model.resize(at, 0);
                }
                1..=3 => {
                    let len = len % (2 * PIECE);
                    file.write_at(&vec![step.to_le_bytes()[0] | 1; len], at as u64).unwrap();
                    if len > 0 {
                        model.resize(model.len().max(at + len), 0);
                        model[at..at + len].fill(step.to_le_bytes()[0] | 1);
                    }
                }
                _ => {
                    let mut bytes = vec![7; len];
                    let count = file.read_at(&mut bytes, at as u64).unwrap();
                    let expected = model.get(at..).unwrap_or_default();
                    assert_eq!(&bytes[..count], &expected[..expected.len().min(len)], "{step}");
                }
            }
            assert_eq!(file.len().unwrap(), model.len() as u64, "{step}");
        }
    }
}
