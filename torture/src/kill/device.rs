//! A disk in memory that remembers what was not flushed: one file, served to the kernel by the FUSE protocol over
//! `/dev/fuse`, for a loop device and a file system to lie upon.
//!
//! What the kernel writes is *pending* until it asks for a flush, which reaches us as a sync of the file: a loop device passes flushes
//! on and does nothing by itself. A power cut may leave any part of what is pending, in its order, since a disk with a cache
//! writes that when it likes. All that was answered before the flush was asked for is there for good.
//!
//! The protocol: `include/uapi/linux/fuse.h` in the kernel's sources, version 7.31. The root is the file itself,
//! mounted on a file, so that no name is ever looked up.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::{self, JoinHandle};

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// What the disk has.
struct Store {
    /// As it is read.
    present: Vec<u8>,
    /// As it was when the last flush was asked for.
    flushed: Vec<u8>,
    pending: Vec<Piece>,
    flushes: u64,
    /// Whoever wants the power cut at a flush to come.
    armed: Option<Armed>,
}

/// A power cut that is to come.
struct Armed {
    /// At the first flush that finds so many writes pending.
    least: usize,
    /// What is done before it.
    before: Box<dyn FnOnce() + Send>,
    reply: mpsc::Sender<Cut>,
}

/// One write: offset and bytes.
pub(super) type Piece = (usize, Vec<u8>);

/// What the disk had at one moment.
pub(super) struct Cut {
    pub(super) flushed: Vec<u8>,
    pub(super) pending: Vec<Piece>,
    pub(super) flushes: u64,
}

/// A disk that the kernel has. Taken from it when dropped.
pub(super) struct Device {
    store: Arc<Mutex<Store>>,
    /// Where it can be found, as a file.
    pub(super) path: PathBuf,
    server: Option<JoinHandle<()>>,
}

impl Device {
    /// A disk that holds `bytes`, found at `path`.
    pub(super) fn attach(bytes: Vec<u8>, path: &Path) -> Result<Self> {
        let flushed = bytes.clone();
        let store = Store { present: bytes, flushed, pending: Vec::new(), flushes: 0, armed: None };
        let store = Arc::new(Mutex::new(store));
        File::create(path)?;
        let fuse = OpenOptions::new().read(true).write(true).open("/dev/fuse");
        let fuse = fuse.context("opening /dev/fuse")?;
        let options = format!("fd={},rootmode=100600,user_id=0,group_id=0", fuse.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("stillframe"), path, Some("fuse"), flags, Some(options.as_str()))
            .context("mounting a file of our own (fuse)")?;
        let serving = Arc::clone(&store);
        let server = thread::Builder::new().name("disk".into());
        let server = server.spawn(move || Server { fuse, store: serving }.run())?;
        Ok(Self { store, path: path.to_owned(), server: Some(server) })
    }

    /// What a power cut now would find.
    pub(super) fn cut(&self) -> Cut {
        lock(&self.store).cut()
    }

    /// What a power cut finds as a flush is asked for and nothing of it done, the first that finds `least` writes pending;
    /// `before` is called just before. Never told if there is no such flush.
    pub(super) fn cut_at_flush(
        &self,
        least: usize,
        before: impl FnOnce() + Send + 'static,
    ) -> mpsc::Receiver<Cut> {
        let (reply, told) = mpsc::channel();
        lock(&self.store).armed = Some(Armed { least, before: Box::new(before), reply });
        told
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // What still lies upon it goes first: that is its owner's business. Detached in any case.
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Store {
    fn write(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let end = offset.checked_add(bytes.len()).filter(|end| *end <= self.present.len());
        let Some(end) = end else { return false };
        self.present[offset..end].copy_from_slice(bytes);
        self.pending.push((offset, bytes.to_vec()));
        true
    }

    fn cut(&self) -> Cut {
        Cut { flushed: self.flushed.clone(), pending: self.pending.clone(), flushes: self.flushes }
    }

    fn flush(&mut self) {
        match self.armed.take() {
            Some(Armed { least, before, reply }) if self.pending.len() >= least => {
                before();
                // Nobody waits for it any more.
                let _ = reply.send(self.cut());
            }
            other => self.armed = other,
        }
        for (offset, bytes) in self.pending.drain(..) {
            self.flushed[offset..offset + bytes.len()].copy_from_slice(&bytes);
        }
        self.flushes += 1;
    }
}

/// The longest write, in bytes.
const MAX_WRITE: usize = 1 << 20;
const IN_HEADER: usize = 40;
/// `FUSE_BIG_WRITES` and `FUSE_MAX_PAGES`.
const FLAGS: u32 = 1 << 5 | 1 << 22;
/// `FOPEN_DIRECT_IO`: the kernel keeps no copy of its own.
const DIRECT: u32 = 1;

struct Server {
    fuse: File,
    store: Arc<Mutex<Store>>,
}

/// What is answered.
enum Answer {
    Bytes(Vec<u8>),
    Errno(i32),
    Nothing,
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |four| u32::from_le_bytes(*four))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..)
        .and_then(|rest| rest.first_chunk())
        .map_or(0, |eight| u64::from_le_bytes(*eight))
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

impl Server {
    fn run(mut self) {
        let mut request = vec![0; MAX_WRITE + 4096];
        loop {
            let len = match self.fuse.read(&mut request) {
                Ok(len) if len >= IN_HEADER => len,
                Ok(_) => return,
                // A request that was taken back before it was read.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => continue,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                // Unmounted.
                Err(_) => return,
            };
            let request = &request[..len];
            let (error, body) = match self.answer(u32_at(request, 4), &request[IN_HEADER..]) {
                Answer::Nothing => continue,
                Answer::Bytes(body) => (0, body),
                Answer::Errno(errno) => (-errno, Vec::new()),
            };
            let mut reply = words(&[16 + body.len() as u32, error as u32]);
            reply.extend(u64_at(request, 8).to_le_bytes());
            reply.extend(body);
            // A request that was taken back meanwhile wants no answer.
            let _ = self.fuse.write(&reply);
        }
    }

    fn answer(&self, opcode: u32, body: &[u8]) -> Answer {
        let mut store = lock(&self.store);
        match opcode {
            // INIT: protocol, read-ahead, flags, requests at a time, longest write, its pages.
            26 => {
                let pages = (MAX_WRITE >> 12) as u32;
                let mut reply = vec![7, 31, u32_at(body, 8), u32_at(body, 12) & FLAGS];
                reply.extend([64 | 48 << 16, MAX_WRITE as u32, 1, pages]);
                reply.resize(16, 0);
                Answer::Bytes(words(&reply))
            }
            // GETATTR, SETATTR: valid for no time at all.
            3 | 4 => {
                let len = store.present.len() as u64;
                let mut reply = vec![0; 16];
                for word in [1, len, len / 512, 0, 0, 0] {
                    reply.extend(word.to_le_bytes());
                }
                reply.extend(words(&[0, 0, 0, 0o100_600, 1, 0, 0, 0, 4096, 0]));
                Answer::Bytes(reply)
            }
            // OPEN
            14 => Answer::Bytes(words(&[0, 0, DIRECT, 0])),
            // READ
            15 => {
                let (offset, len) = (u64_at(body, 8) as usize, u32_at(body, 16) as usize);
                let end = offset.saturating_add(len).min(store.present.len());
                Answer::Bytes(store.present.get(offset..end).unwrap_or_default().to_vec())
            }
            // WRITE
            16 => {
                let (offset, len) = (u64_at(body, 8) as usize, u32_at(body, 16));
                match body.get(40..40 + len as usize) {
                    Some(bytes) if store.write(offset, bytes) => Answer::Bytes(words(&[len, 0])),
                    _ => Answer::Errno(libc::EIO),
                }
            }
            // FSYNC
            20 => {
                store.flush();
                Answer::Bytes(Vec::new())
            }
            // STATFS
            17 => Answer::Bytes(vec![0; 80]),
            // RELEASE, FLUSH (of a file handle: no sync), ACCESS, DESTROY
            18 | 25 | 34 | 38 => Answer::Bytes(Vec::new()),
            // FORGET, BATCH_FORGET, INTERRUPT
            2 | 42 | 36 => Answer::Nothing,
            _ => Answer::Errno(libc::ENOSYS),
        }
    }
}
