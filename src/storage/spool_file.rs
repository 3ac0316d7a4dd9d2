//! The file of a spool: written as what is in it comes, synced never, read once after a restart as far as it is whole.

use std::path::PathBuf;
use std::sync::Arc;

use super::directory::Directory;
use super::{Disk, DiskFile, read_exact_at, write_all_at};
use crate::error::{Error, Result};
use crate::format::snapshot::FileId;
use crate::format::spool::{
    SECTION_HEAD_LEN, SPOOL_HEADER_LEN, SectionHead, SectionKind, SpoolHeader,
};

/// See the file's head.
pub(crate) struct SpoolFile {
    disk: Arc<dyn Disk>,
    path: PathBuf,
    file: Box<dyn DiskFile>,
    file_id: FileId,
    /// Where what is written ends.
    offset: u64,
    index: u64,
    /// What is to be written next.
    buffer: Vec<u8>,
}

impl SpoolFile {
    /// An empty one, in the place of whatever there was.
    pub(crate) fn create(directory: &Directory, header: &SpoolHeader) -> Result<Self> {
        let path = directory.spool();
        directory.remove(&path)?;
        let disk = Arc::clone(&directory.disk);
        let file = disk.create_new(&path).map_err(|source| Error::io("create", &path, source))?;
        let written = write_all_at(&*file, &header.encode(), 0);
        written.map_err(|source| Error::io("write", &path, source))?;
        let (file_id, offset) = (header.file_id, SPOOL_HEADER_LEN as u64);
        Ok(Self { disk, path, file, file_id, offset, index: 0, buffer: Vec::new() })
    }

    /// Appends a section, which is written with those after it once there are so many bytes of them.
    pub(crate) fn append(&mut self, kind: SectionKind, payload: &[u8], bytes: usize) -> Result<()> {
        let told = |source| Error::io("write", &self.path, source);
        let head = SectionHead::encode(kind, payload, &self.file_id, self.index)
            .ok_or_else(|| told(std::io::ErrorKind::FileTooLarge.into()))?;
        self.buffer.extend_from_slice(&head);
        self.buffer.extend_from_slice(payload);
        self.index += 1;
        if self.buffer.len() >= bytes { self.flush() } else { Ok(()) }
    }

    /// Writes what is not written yet.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let written = write_all_at(&*self.file, &self.buffer, self.offset);
        written.map_err(|source| Error::io("write", &self.path, source))?;
        self.offset += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Opens what an earlier run has left, and shows its sections as far as they are whole and `show` takes them; `None` if there is none, or
    /// it is not one.
    pub(crate) fn reopen(
        directory: &Directory,
        begin: impl FnOnce(&SpoolHeader) -> bool,
        mut show: impl FnMut(SectionKind, &[u8]) -> bool,
    ) -> Option<Self> {
        let (path, disk) = (directory.spool(), Arc::clone(&directory.disk));
        let file = disk.open_write(&path).ok()?;
        let len = file.len().ok()?;
        let mut header = [0; SPOOL_HEADER_LEN];
        read_exact_at(&*file, &mut header, 0).ok()?;
        let header = SpoolHeader::decode(&header).ok()?;
        if !begin(&header) {
            return None;
        }
        let (file_id, offset) = (header.file_id, SPOOL_HEADER_LEN as u64);
        let buffer = Vec::new();
        let mut spool = Self { disk, path, file, file_id, offset, index: 0, buffer };
        while spool.section(len, &mut show).is_some() {}
        // What is behind was on its way.
        spool.file.set_len(spool.offset).ok()?;
        Some(spool)
    }

    fn section(
        &mut self,
        len: u64,
        show: &mut impl FnMut(SectionKind, &[u8]) -> bool,
    ) -> Option<()> {
        let mut bytes = [0; SECTION_HEAD_LEN];
        read_exact_at(&*self.file, &mut bytes, self.offset).ok()?;
        let head = SectionHead::decode(&bytes).ok()?;
        let start = self.offset + SECTION_HEAD_LEN as u64;
        let end = start + u64::from(head.len);
        if end > len {
            return None;
        }
        let mut payload = vec![0; head.len as usize];
        read_exact_at(&*self.file, &mut payload, start).ok()?;
        head.check(&bytes, &payload, &self.file_id, self.index).ok()?;
        show(head.kind, &payload).then_some(())?;
        (self.offset, self.index) = (end, self.index + 1);
        Some(())
    }

    /// It is of no use any more.
    pub(crate) fn remove(self) {
        // What stays is written over by the next, or means nothing.
        let _ = self.disk.remove(&self.path);
    }
}
