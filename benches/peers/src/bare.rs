//! What a disk gives a loop that writes a few bytes to a file and calls `fdatasync`: no store, no record, no order.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Result;

use crate::Store;
use crate::records::Key;

/// Bytes of a bare commit, about those of an update.
const BYTES: u64 = 160;

/// A file to which `BYTES` are appended each time, or in which they go over zeros.
pub(crate) struct Bare {
    file: File,
    /// Bytes that are there already; 0 to append.
    zeros: u64,
    written: AtomicU64,
}

impl Bare {
    pub(crate) fn append(path: &Path) -> Result<Self> {
        Self::new(path, 0)
    }

    pub(crate) fn overwrite(path: &Path) -> Result<Self> {
        Self::new(path, 64 << 20)
    }

    fn new(path: &Path, zeros: u64) -> Result<Self> {
        let file = OpenOptions::new().create_new(true).write(true).open(path)?;
        let piece = vec![0; 1 << 20];
        for offset in (0..zeros).step_by(piece.len()) {
            file.write_all_at(&piece, offset)?;
        }
        file.sync_all()?;
        Ok(Self { file, zeros, written: AtomicU64::new(0) })
    }
}

impl Store for Bare {
    fn commit(&self, _: &Key, _: &[u8]) -> Result<()> {
        // Relaxed: one thread writes here.
        let mut at = self.written.fetch_add(BYTES, Ordering::Relaxed);
        if self.zeros > 0 {
            at %= self.zeros - BYTES;
        }
        self.file.write_all_at(&[7; BYTES as usize], at)?;
        Ok(self.file.sync_data()?)
    }
}
