//! Where bytes come to rest: the [`Disk`] that everything on this side is written against.
//!
//! [`OsDisk`] is the operating system's; `sim` holds a twin that forgets, reorders and tears what was
//! not synced. The traits are the system calls and no more: counts may be short, a call may be
//! interrupted, and nothing survives a power cut that was not synced, neither the bytes of a file
//! ([`DiskFile::sync_data`]) nor its name ([`Disk::sync_dir`]). [`read_exact_at`] and
//! [`write_all_at`] are the loops every caller needs.
//!
//! This is the only file that names `std::fs`. It knows no format and no tree.

use std::any::Any;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::clock;
use crate::planted::{Bug, planted};
use crate::sync::assert_no_latch;

pub(crate) mod backup;
pub(crate) mod directory;
pub(crate) mod directory_info;
#[cfg(test)]
mod example_tests;
pub(crate) mod feed;
pub(crate) mod file_keyspace;
pub(crate) mod group;
pub(crate) mod load;
pub(crate) mod log;
pub(crate) mod log_reader;
pub(crate) mod map;
pub(crate) mod memory_disk;
#[cfg(feature = "simulation")]
pub(crate) mod probe;
pub(crate) mod reader;
pub(crate) mod recovery;
pub(crate) mod salvage;
pub(crate) mod save;
pub(crate) mod segment;
#[cfg(any(test, feature = "simulation"))]
pub(crate) mod sim;
pub(crate) mod snapshot_file;
#[cfg(test)]
mod snapshot_tests;
pub(crate) mod source;
pub(crate) mod spool_file;
pub(crate) mod walk;
pub(crate) mod writer;

/// Stands in errors for the path of a stream.
pub(crate) const STREAM: &str = "<stream>";

/// The file system, as far as the engine uses it.
///
/// Paths are taken as they are given. Every error is the operating system's own, without the path:
/// the caller knows it and says it.
#[cfg_attr(
    not(feature = "simulation"),
    allow(unreachable_pub, reason = "public with `simulation`")
)]
pub trait Disk: Send + Sync + fmt::Debug + 'static {
    /// Creates a file that must not exist yet and opens it for reading and writing, for its owner only.
    ///
    /// # Errors
    /// `AlreadyExists` if anything has that name, a dangling link included.
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens an existing file for reading.
    ///
    /// # Errors
    /// `IsADirectory` for a directory, `InvalidInput` for whatever else is not a regular file. Never
    /// waits for the other end of a FIFO.
    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Opens an existing file for reading and writing; refuses what [`Disk::open`] refuses.
    fn open_write(&self, path: &Path) -> io::Result<Box<dyn DiskFile>>;

    /// Maps an existing file for writing, as long as it is: for whoever is the only one to change it meanwhile.
    ///
    /// # Errors
    /// As [`Disk::open`]; `Unsupported` where files can't be mapped.
    fn map(&self, path: &Path) -> io::Result<Box<dyn DiskMap>>;

    /// Gives the file at `from` the name `to`, in the place of whatever file had it, in one step for
    /// all who look. After a power cut either name may hold either file until both directories are synced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes the name of a file; open handles stay good.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Creates a directory that must not exist yet, for its owner only.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in `dir`, sorted, without `.` and `..`.
    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>>;

    /// A path that stands for `dir` in this process: the same for every spelling of it, another for every
    /// other directory and every other disk.
    fn identify(&self, dir: &Path) -> io::Result<PathBuf>;

    /// Locks the file at `path`, which is made if there is none, until what is returned is dropped or the process ends.
    /// `None` if somebody has it locked, in this process or another.
    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>>;

    /// Makes the names in `dir` durable: files created in it, renamed into or out of it, removed from it.
    ///
    /// After an error nobody knows which of them are, and a later success does not tell either.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Whether it is memory, which ends with this process: no sync makes anything more durable, and a write finds room
    /// whether that was made before or not.
    fn is_memory(&self) -> bool {
        false
    }
}

/// An open file. Reads and writes name their place, so any number of threads share one handle.
#[cfg_attr(
    not(feature = "simulation"),
    allow(unreachable_pub, reason = "public with `simulation`")
)]
#[allow(clippy::len_without_is_empty, reason = "a system call that may fail, not a container")]
pub trait DiskFile: Send + Sync + fmt::Debug {
    /// Reads up to `buf.len()` bytes from `offset`; 0 only at or past the end, or for an empty `buf`.
    ///
    /// May read fewer, may be interrupted: `read_exact_at` goes on.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Writes up to `buf.len()` bytes at `offset`, growing the file if need be; a gap reads as zeros.
    ///
    /// May write fewer, may be interrupted: `write_all_at` goes on.
    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize>;

    /// The length now, in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Cuts the file, or extends it with zeros, to `len` bytes.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes the bytes and the length durable.
    ///
    /// After an error nobody knows which bytes are, and a later success does not tell either: the
    /// kernel may have marked them clean (Rebello et al., "Can Applications Recover from fsync
    /// Failures?", ATC 2020). Write them anew, to another file.
    fn sync_data(&self) -> io::Result<()>;

    /// As [`DiskFile::sync_data`], with the times and permissions of the file.
    fn sync_all(&self) -> io::Result<()>;
}

/// A file mapped for writing. [`DiskFile::sync_data`] of a handle to the file makes durable what was stored.
#[cfg_attr(
    not(feature = "simulation"),
    allow(unreachable_pub, reason = "public with `simulation`")
)]
pub trait DiskMap: Send + Sync + fmt::Debug {
    /// Stores `bytes` at `offset`. What was stored outlives this process, as what was written does: no system call
    /// need follow. An interruption at any instruction leaves a beginning of it.
    ///
    /// # Errors
    /// `UnexpectedEof` if they do not all lie in the file, which stays as it was; what the system says if a page can't be
    /// had.
    fn store(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
}

/// Who is interrupted this often in a row, without one byte of progress, gives up rather than hang.
const MAX_INTERRUPTS: u32 = 1_000;

/// Fills `buf` from `offset`, through short reads and interruptions.
///
/// # Errors
/// `UnexpectedEof` if the file ends first; `buf` then holds what there was.
pub(crate) fn read_exact_at(
    file: &dyn DiskFile,
    mut buf: &mut [u8],
    mut offset: u64,
) -> io::Result<()> {
    let mut interrupts = 0;
    while !buf.is_empty() {
        match file.read_at(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Err(error) if planted(Bug::InterruptedIsEnd) && is_interrupted(&error) => return Ok(()),
            Ok(count) => {
                buf = &mut buf[count..];
                offset += count as u64;
                interrupts = 0;
            }
            Err(error) => retry_if_interrupted(error, &mut interrupts)?,
        }
    }
    Ok(())
}

/// Writes all of `buf` at `offset`, through short writes and interruptions.
///
/// # Errors
/// `WriteZero` if the file takes nothing more and does not say why. Some of `buf` may be written then.
pub(crate) fn write_all_at(file: &dyn DiskFile, mut buf: &[u8], mut offset: u64) -> io::Result<()> {
    let mut interrupts = 0;
    while !buf.is_empty() {
        match file.write_at(buf, offset) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(_) if planted(Bug::ShortWriteTaken) => return Ok(()),
            Ok(count) => {
                buf = &buf[count..];
                offset += count as u64;
                interrupts = 0;
            }
            Err(error) => retry_if_interrupted(error, &mut interrupts)?,
        }
    }
    Ok(())
}

fn retry_if_interrupted(error: io::Error, interrupts: &mut u32) -> io::Result<()> {
    *interrupts += 1;
    if !is_interrupted(&error) || *interrupts == MAX_INTERRUPTS {
        return Err(error);
    }
    Ok(())
}

fn is_interrupted(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::Interrupted
}

/// A name for a file that will be renamed to `target` once it is whole: in the same directory, so that the
/// rename stays inside one file system, and not to be guessed, so that nobody can wait there with a link.
///
/// `.<name>.<16 hex digits>.tmp`; a name too long to be extended so is left out.
///
/// # Errors
/// `InvalidInput` if `target` ends in no name; whatever the system's random source says.
pub(crate) fn temporary_path(target: &Path) -> io::Result<PathBuf> {
    const NAME_MAX: usize = 255;
    let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let suffix = format!(".{:016x}.tmp", u64::from_le_bytes(clock::os_random()?));
    let mut temporary = OsString::new();
    if 1 + name.len() + suffix.len() <= NAME_MAX {
        temporary.push(".");
        temporary.push(name);
    }
    temporary.push(suffix);
    Ok(target.with_file_name(temporary))
}

/// The directory that holds the name `path`: what to give to [`Disk::sync_dir`].
pub(crate) fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str() != OsStr::new("") => parent,
        // The root holds itself.
        None => path,
        Some(_) => Path::new("."),
    }
}

/// The operating system's file system.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct OsDisk;

#[derive(Debug)]
struct OsFile(File);

/// The place that no one enters with a latch held; every call here and in the twin checks it.
const DISK: &str = "the disk";

/// Opens a regular file and nothing else, without ever waiting.
fn open_regular(path: &Path, write: bool) -> io::Result<File> {
    // Asked before opening, since to open a device can have effects; asked again after, since the name
    // may have changed hands. O_NONBLOCK: a FIFO that slips in between must not hold us up. It means
    // nothing to regular files.
    refuse_irregular(&std::fs::metadata(path)?.file_type())?;
    let file =
        OpenOptions::new().read(true).write(write).custom_flags(libc::O_NONBLOCK).open(path)?;
    refuse_irregular(&file.metadata()?.file_type())?;
    Ok(file)
}

fn refuse_irregular(kind: &std::fs::FileType) -> io::Result<()> {
    if kind.is_file() {
        Ok(())
    } else if kind.is_dir() {
        Err(io::ErrorKind::IsADirectory.into())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
    }
}

impl Disk for OsDisk {
    fn create_new(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        assert_no_latch(DISK);
        let file =
            OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Box::new(OsFile(file)))
    }

    fn open(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        assert_no_latch(DISK);
        Ok(Box::new(OsFile(open_regular(path, false)?)))
    }

    fn open_write(&self, path: &Path) -> io::Result<Box<dyn DiskFile>> {
        assert_no_latch(DISK);
        Ok(Box::new(OsFile(open_regular(path, true)?)))
    }

    fn map(&self, path: &Path) -> io::Result<Box<dyn DiskMap>> {
        Ok(Box::new(map::WriteMap::open(path)?))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        assert_no_latch(DISK);
        std::fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        assert_no_latch(DISK);
        std::fs::remove_file(path)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        assert_no_latch(DISK);
        DirBuilder::new().mode(0o700).create(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        assert_no_latch(DISK);
        std::fs::remove_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<OsString>> {
        assert_no_latch(DISK);
        let mut names = std::fs::read_dir(dir)?
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<io::Result<Vec<_>>>()?;
        names.sort_unstable();
        Ok(names)
    }

    fn identify(&self, dir: &Path) -> io::Result<PathBuf> {
        std::fs::canonicalize(dir)
    }

    fn lock(&self, path: &Path) -> io::Result<Option<Box<dyn Any + Send + Sync>>> {
        assert_no_latch(DISK);
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(libc::O_NONBLOCK).open(path)?;
        refuse_irregular(&file.metadata()?.file_type())?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        assert_no_latch(DISK);
        // O_DIRECTORY: nothing else is opened, so nothing else can hold us up.
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(dir)?.sync_all()
    }
}

impl OsFile {
    fn file(&self) -> &File {
        assert_no_latch(DISK);
        &self.0
    }
}

impl DiskFile for OsFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.file().read_at(buf, offset)
    }

    fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        self.file().write_at(buf, offset)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file().metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file().set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file().sync_data()
    }

    fn sync_all(&self) -> io::Result<()> {
        self.file().sync_all()
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::{MetadataExt, symlink};
    use std::os::unix::net::UnixListener;
    use std::process::Command;
    use std::sync::Mutex;

    use super::*;

    /// A directory of the real file system, for one test; it goes when this is dropped.
    pub(crate) struct TestDir(PathBuf);

    impl TestDir {
        pub(crate) fn new() -> Self {
            let name = u64::from_le_bytes(clock::os_random().unwrap());
            let path = std::env::temp_dir().join(format!("stillframe-test-{name:016x}"));
            OsDisk.create_dir(&path).unwrap();
            TestDir(path)
        }

        pub(crate) fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        /// Makes the file `name` with these bytes and returns its path.
        pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
            let path = self.path(name);
            std::fs::write(&path, bytes).unwrap();
            path
        }
    }

    impl Drop for TestDir {
        fn drop(&mut self) {
            // A directory that stays behind in /tmp is no reason to fail a test twice.
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    /// Answers each call with the next of `answers`: so many bytes, or an error of that kind; then is
    /// interrupted for ever.
    #[derive(Debug)]
    struct Scripted {
        answers: Mutex<Vec<Result<usize, io::ErrorKind>>>,
        bytes: Mutex<Vec<u8>>,
    }

    impl Scripted {
        fn new(bytes: &[u8], answers: &[Result<usize, io::ErrorKind>]) -> Self {
            let answers = answers.iter().copied().rev().collect();
            Scripted { answers: Mutex::new(answers), bytes: Mutex::new(bytes.to_vec()) }
        }

        fn next(&self) -> io::Result<usize> {
            let answer = self.answers.lock().unwrap().pop();
            Ok(answer.unwrap_or(Err(io::ErrorKind::Interrupted))?)
        }
    }

    impl DiskFile for Scripted {
        fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
            let count = self.next()?;
            let start = usize::try_from(offset).unwrap();
            buf[..count].copy_from_slice(&self.bytes.lock().unwrap()[start..start + count]);
            Ok(count)
        }

        fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
            let count = self.next()?;
            let mut bytes = self.bytes.lock().unwrap();
            assert_eq!(bytes.len() as u64, offset);
            bytes.extend_from_slice(&buf[..count]);
            Ok(count)
        }

        fn len(&self) -> io::Result<u64> {
            Ok(self.bytes.lock().unwrap().len() as u64)
        }

        fn set_len(&self, _: u64) -> io::Result<()> {
            Err(io::ErrorKind::Unsupported.into())
        }

        fn sync_data(&self) -> io::Result<()> {
            Ok(())
        }

        fn sync_all(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_loops_go_on_through_short_counts_and_interruptions() {
        use io::ErrorKind::{Interrupted, StorageFull, UnexpectedEof, WriteZero};
        fn check(
            answers: &[Result<usize, io::ErrorKind>],
            read_ends: Result<(), io::ErrorKind>,
            write_ends: Result<(), io::ErrorKind>,
        ) {
            let file = Scripted::new(b"abcdef", answers);
            let mut buf = [0; 6];
            let got = read_exact_at(&file, &mut buf, 0).map_err(|error| error.kind());
            assert_eq!(got, read_ends, "reading through {answers:?}");
            assert!(got.is_err() || &buf == b"abcdef");

            let file = Scripted::new(b"", answers);
            let got = write_all_at(&file, b"abcdef", 0).map_err(|error| error.kind());
            assert_eq!(got, write_ends, "writing through {answers:?}");
            assert!(got.is_err() || *file.bytes.lock().unwrap() == b"abcdef");
        }
        check(&[Ok(6)], Ok(()), Ok(()));
        check(&[Ok(1), Ok(3), Ok(2)], Ok(()), Ok(()));
        check(&[Err(Interrupted), Ok(4), Err(Interrupted), Ok(2)], Ok(()), Ok(()));
        check(&[Ok(4), Ok(0)], Err(UnexpectedEof), Err(WriteZero));
        check(&[Ok(4), Err(StorageFull)], Err(StorageFull), Err(StorageFull));
        // The script has ended: interrupted for ever. An error, not a hang.
        check(&[Ok(4)], Err(Interrupted), Err(Interrupted));
    }

    #[test]
    fn no_call_is_made_with_a_latch_held() {
        fn check(what: &str, call: impl FnOnce()) {
            let _latch = crate::sync::HeldLatch::new();
            let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(call)).is_err();
            assert_eq!(panicked, cfg!(debug_assertions), "{what}");
        }
        let dir = TestDir::new();
        let path = dir.write("file", b"1");
        let file = OsDisk.open_write(&path).unwrap();
        check("open", || drop(OsDisk.open(&path).unwrap()));
        check("list", || drop(OsDisk.list(&dir.0).unwrap()));
        check("read", || assert_eq!(file.read_at(&mut [0], 0).unwrap(), 1));
        check("sync", || file.sync_data().unwrap());
        let sim = sim::SimDisk::new();
        let file = sim.create_new(Path::new("/file")).unwrap();
        check("simulated list", || drop(sim.list(Path::new("/")).unwrap()));
        check("simulated write", || assert_eq!(file.write_at(&[0], 0).unwrap(), 1));
    }

    #[test]
    fn files_and_directories_are_for_their_owner_only() {
        let dir = TestDir::new();
        let path = dir.path("file");
        let file = OsDisk.create_new(&path).unwrap();
        write_all_at(&*file, b"later", 3).unwrap();
        file.sync_all().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(std::fs::metadata(&dir.0).unwrap().mode() & 0o777, 0o700);
        assert_eq!(std::fs::read(&path).unwrap(), b"\0\0\0later");

        let error = OsDisk.create_new(&path).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        symlink(dir.path("nowhere"), dir.path("dangling")).unwrap();
        let error = OsDisk.create_new(&dir.path("dangling")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn an_existing_file_is_read_changed_and_cut() {
        let dir = TestDir::new();
        let path = dir.write("file", b"0123456789");
        assert!(OsDisk.open(&path).unwrap().write_at(b"x", 0).is_err());
        let file = OsDisk.open_write(&path).unwrap();
        write_all_at(&*file, b"xy", 4).unwrap();
        file.set_len(7).unwrap();
        file.sync_data().unwrap();
        assert_eq!(file.len().unwrap(), 7);
        let mut buf = [0; 7];
        read_exact_at(&*OsDisk.open(&path).unwrap(), &mut buf, 0).unwrap();
        assert_eq!(&buf, b"0123xy6");
        let error = read_exact_at(&*file, &mut buf, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn names_are_listed_renamed_and_removed() {
        let dir = TestDir::new();
        for name in ["b", "c", "a"] {
            dir.write(name, name.as_bytes());
        }
        OsDisk.rename(&dir.path("c"), &dir.path("a")).unwrap();
        OsDisk.sync_dir(&dir.0).unwrap();
        assert_eq!(OsDisk.list(&dir.0).unwrap(), ["a", "b"]);
        assert_eq!(std::fs::read(dir.path("a")).unwrap(), b"c");
        OsDisk.remove(&dir.path("a")).unwrap();
        assert_eq!(OsDisk.list(&dir.0).unwrap(), ["b"]);
    }

    #[test]
    fn what_is_not_a_regular_file_is_refused_and_never_waited_for() {
        let dir = TestDir::new();
        let fifo = dir.path("fifo");
        assert!(Command::new("mkfifo").arg(&fifo).status().unwrap().success());
        let _listener = UnixListener::bind(dir.path("socket")).unwrap();
        symlink(&fifo, dir.path("link")).unwrap();
        let cases = [
            (dir.0.clone(), io::ErrorKind::IsADirectory),
            (fifo, io::ErrorKind::InvalidInput),
            (dir.path("link"), io::ErrorKind::InvalidInput),
            (dir.path("socket"), io::ErrorKind::InvalidInput),
            (PathBuf::from("/dev/null"), io::ErrorKind::InvalidInput),
            (dir.path("absent"), io::ErrorKind::NotFound),
        ];
        for (path, expected) in cases {
            let kind = OsDisk.open(&path).unwrap_err().kind();
            assert_eq!(kind, expected, "open {}", path.display());
            let kind = OsDisk.open_write(&path).unwrap_err().kind();
            assert_eq!(kind, expected, "open_write {}", path.display());
        }
        let error = OsDisk.sync_dir(&dir.path("fifo")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotADirectory);

        let regular = dir.write("regular", b"1");
        symlink(&regular, dir.path("good link")).unwrap();
        assert_eq!(OsDisk.open(&dir.path("good link")).unwrap().len().unwrap(), 1);
    }

    #[test]
    fn temporary_files_lie_beside_their_target_under_names_of_their_own() {
        let first = temporary_path(Path::new("/data/still.sf")).unwrap();
        let second = temporary_path(Path::new("/data/still.sf")).unwrap();
        assert_ne!(first, second);
        assert_eq!(first.parent(), Some(Path::new("/data")));
        let name = first.file_name().unwrap().to_str().unwrap();
        let hex = name.strip_prefix(".still.sf.").unwrap().strip_suffix(".tmp").unwrap();
        assert_eq!(hex.len(), 16);
        assert!(hex.bytes().all(|digit| digit.is_ascii_hexdigit()));

        let bare = temporary_path(Path::new("still.sf")).unwrap();
        assert_eq!(directory_of(&bare), Path::new("."));
        for len in [233, 234, 255] {
            let name = temporary_path(&Path::new("/data").join("x".repeat(len))).unwrap();
            assert!(name.file_name().unwrap().len() <= 255, "a name of {len} bytes");
        }
        for nameless in ["/", "..", ""] {
            let error = temporary_path(Path::new(nameless)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{nameless:?}");
        }
    }

    #[test]
    fn the_directory_of_a_path() {
        for (path, dir) in [("/a/b", "/a"), ("/a", "/"), ("a/b", "a"), ("a", "."), ("/", "/")] {
            assert_eq!(directory_of(Path::new(path)), Path::new(dir), "{path}");
        }
    }
}
