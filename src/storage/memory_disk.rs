//! A disk that is memory: where a database without a directory keeps what its replicas have not read yet.

use std::any::Any;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, RwLock};

use super::group::lock;
use super::{Disk, DiskFile, DiskMap};

/// See the file's head.
#[derive(Debug, Default)]
pub(crate) struct MemoryDisk {
    files: Mutex<BTreeMap<PathBuf, Arc<MemoryFile>>>,
}

#[derive(Debug, Default)]
struct MemoryFile(RwLock<Vec<u8>>);

#[derive(Debug)]
struct Handle(Arc<MemoryFile>);

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
}

impl Handle {
    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<u8>> {
        self.0.0.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Vec<u8>> {
        self.0.0.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl DiskFile for Handle {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let bytes = self.read();
        let rest = usize::try_from(offset).ok().and_then(|offset| bytes.get(offset..));
        let rest = rest.unwrap_or_default();
        let count = rest.len().min(buf.len());
        buf[..count].copy_from_slice(&rest[..count]);
        Ok(count)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        let too_far = || io::Error::from(io::ErrorKind::FileTooLarge);
        let start = usize::try_from(offset).map_err(|_| too_far())?;
        let end = start.checked_add(buf.len()).ok_or_else(too_far)?;
        let mut bytes = self.write();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(buf);
        Ok(buf.len())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.read().len() as u64)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let len = usize::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut bytes = self.write();
        bytes.resize(len, 0);
        bytes.shrink_to_fit();
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
}
