//! Files of Unix sockets: made so that nobody else can ever connect, and so that nothing is replaced but what a dead process left.
//!
//! The only file beside storage/ that names `std::fs`: a socket's file is a name to connect to and holds nothing.

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::{self, Path, PathBuf};
use std::thread;
use std::time::Duration;

use crate::clock;

/// Who makes a socket's file in the same directory is waited for so long.
const LOCK_TRIES: usize = 200;
const LOCK_PAUSE: Duration = Duration::from_millis(10);
/// How often a name is tried for which others compete.
const NAME_TRIES: usize = 10;

/// The file of a bound socket; removed with this, if it is still that.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    /// Device and inode: no other file can have them while the socket is bound.
    id: (u64, u64),
}

impl SocketFile {
    /// From the root.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if id_of(&self.path).is_ok_and(|id| id == self.id) {
            // Then somebody else has removed it.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn id_of(path: &Path) -> io::Result<(u64, u64)> {
    let metadata = fs::symlink_metadata(path)?;
    Ok((metadata.dev(), metadata.ino()))
}

/// Binds a socket whose file nobody else can use.
///
/// The file is made where nobody else can reach it, and only then gets its name, by a link, which never replaces anything. What has the name
/// is moved to the same place first, and looked at once more there: it is removed if it is a dead socket, else it goes back.
pub(super) fn bind(path: &Path) -> io::Result<(UnixListener, SocketFile)> {
    // Nobody could connect to a longer name.
    SocketAddr::from_pathname(path)?;
    let whole = path::absolute(path)?;
    let dir = dir_of(path).ok_or(io::ErrorKind::InvalidInput)?;
    // Of two that find the same dead socket one moves it, and the other must not move what has come in its place, not even for a moment.
    let _locked = lock(dir)?;
    let room = Room::new(dir)?;
    let inside = room.file("s");
    let listener = UnixListener::bind(&inside)?;
    fs::set_permissions(&inside, Permissions::from_mode(0o600))?;
    let id = id_of(&inside)?;
    for _ in 0..NAME_TRIES {
        match fs::hard_link(&inside, path) {
            Ok(()) => return Ok((listener, SocketFile { path: whole, id })),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => room.take_dead(path)?,
            Err(error) => return Err(error),
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

fn dir_of(path: &Path) -> Option<&Path> {
    let dir = path.parent()?;
    Some(if dir.as_os_str().is_empty() { Path::new(".") } else { dir })
}

/// Locks a directory against others that make sockets in it; `None` where directories can't be locked.
fn lock(dir: &Path) -> io::Result<Option<File>> {
    let Ok(dir) = File::open(dir) else { return Ok(None) };
    for _ in 0..LOCK_TRIES {
        match dir.try_lock() {
            Ok(()) => return Ok(Some(dir)),
            Err(TryLockError::WouldBlock) => thread::sleep(LOCK_PAUSE),
            Err(TryLockError::Error(_)) => return Ok(None),
        }
    }
    Err(io::Error::new(io::ErrorKind::ResourceBusy, "somebody keeps the directory locked"))
}

/// A directory that only this user can enter. What is left in it when it goes stays: it is somebody else's.
struct Room(PathBuf);

impl Room {
    fn new(dir: &Path) -> io::Result<Self> {
        let name = u32::from_le_bytes(clock::os_random()?);
        let path = dir.join(format!(".s{name:08x}"));
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Room(path))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Removes the dead socket at `path`, and nothing else.
    fn take_dead(&self, path: &Path) -> io::Result<()> {
        let aside = self.file("d");
        let moved = is_dead(path).and_then(|()| fs::rename(path, &aside));
        match moved {
            // Somebody else has removed it.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        }
        remove_dead(&aside, path)
    }
}

/// Removes what was at `path` and is `aside` now, if it is a dead socket; else it gets its name back.
fn remove_dead(aside: &Path, path: &Path) -> io::Result<()> {
    let dead = is_dead(aside);
    if dead.is_err() {
        // It came in the place of what was looked at before.
        fs::hard_link(aside, path)?;
    }
    fs::remove_file(aside)?;
    dead
}

impl Drop for Room {
    fn drop(&mut self) {
        // Neither is there if something failed before; the name by which the socket is known stays.
        let _ = fs::remove_file(self.file("s"));
        let _ = fs::remove_dir(&self.0);
    }
}

/// Refuses what is no socket, and a socket that somebody has bound.
///
/// A connection would wait if too many are pending, and be counted. A datagram socket never waits: the system looks first whether the file is
/// that of a bound socket, and only then whether it is one of the same type.
fn is_dead(path: &Path) -> io::Result<()> {
    if !fs::symlink_metadata(path)?.file_type().is_socket() {
        let what = "a file that is no socket has the name";
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, what));
    }
    match UnixDatagram::unbound()?.connect(path) {
        Ok(()) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) if error.raw_os_error() == Some(libc::EPROTOTYPE) => {
            Err(io::ErrorKind::AddrInUse.into())
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::os::unix::net::UnixStream;
    use std::sync::Barrier;

    use super::*;

    /// A directory that is removed with all that is in it.
    pub(crate) struct TempDir(PathBuf);

    impl TempDir {
        pub(crate) fn new() -> Self {
            let name = u64::from_le_bytes(clock::os_random().unwrap());
            let path = std::env::temp_dir().join(format!("stillframe-link-{name:016x}"));
            fs::create_dir(&path).unwrap();
            TempDir(path)
        }

        pub(crate) fn file(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        pub(crate) fn names(&self) -> Vec<String> {
            let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name();
            let names = fs::read_dir(&self.0).unwrap().map(name);
            names.map(|name| name.into_string().unwrap()).collect()
        }
    }

    impl Drop for TempDir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn refused(path: &Path) -> io::ErrorKind {
        bind(path).expect_err("what is there stays").kind()
    }

    #[test]
    fn the_file_is_its_owners_and_goes_with_the_socket() {
        let dir = TempDir::new();
        let path = dir.file("socket");
        let (listener, file) = bind(&path).unwrap();
        let metadata = fs::symlink_metadata(&path).unwrap();
        assert!(metadata.file_type().is_socket());
        assert_eq!(metadata.permissions().mode() & 0o7777, 0o600);
        assert_eq!(dir.names(), ["socket"]);
        let _client = UnixStream::connect(&path).unwrap();
        listener.accept().unwrap();
        drop(file);
        assert_eq!(dir.names(), [""; 0]);
    }

    #[test]
    fn what_a_dead_process_left_is_replaced() {
        let dir = TempDir::new();
        let path = dir.file("socket");
        drop(UnixListener::bind(&path).unwrap());
        assert_eq!(
            UnixStream::connect(&path).unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        let (_listener, _file) = bind(&path).unwrap();
        UnixStream::connect(&path).unwrap();
        assert_eq!(dir.names(), ["socket"]);
    }

    #[test]
    fn what_somebody_has_bound_is_not() {
        let dir = TempDir::new();
        let path = dir.file("socket");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(refused(&path), io::ErrorKind::AddrInUse);
        // It was not even called.
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        UnixStream::connect(&path).unwrap();
        let datagrams = dir.file("datagrams");
        let _datagrams = UnixDatagram::bind(&datagrams).unwrap();
        assert_eq!(refused(&datagrams), io::ErrorKind::AddrInUse);
        assert_eq!(dir.names().len(), 2);
    }

    #[test]
    fn what_is_no_socket_is_not_either() {
        let dir = TempDir::new();
        let (file, link, folder) = (dir.file("file"), dir.file("link"), dir.file("folder"));
        fs::write(&file, "content").unwrap();
        std::os::unix::fs::symlink(&file, &link).unwrap();
        fs::create_dir(&folder).unwrap();
        for path in [&file, &link, &folder] {
            assert_eq!(refused(path), io::ErrorKind::AlreadyExists);
        }
        assert_eq!(fs::read_to_string(&link).unwrap(), "content");
        assert_eq!(dir.names().len(), 3);
    }

    /// As if it came between the first look and the move.
    #[test]
    fn what_was_moved_by_mistake_goes_back() {
        let dir = TempDir::new();
        let path = dir.file("socket");
        let _listener = UnixListener::bind(&path).unwrap();
        let room = Room::new(&dir.0).unwrap();
        let aside = room.file("d");
        fs::rename(&path, &aside).unwrap();
        assert_eq!(remove_dead(&aside, &path).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        drop(room);
        UnixStream::connect(&path).unwrap();
        assert_eq!(dir.names(), ["socket"]);
    }

    #[test]
    fn a_file_that_took_its_place_stays() {
        let dir = TempDir::new();
        let path = dir.file("socket");
        let (_listener, file) = bind(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "content").unwrap();
        drop(file);
        assert_eq!(fs::read_to_string(&path).unwrap(), "content");
    }

    #[test]
    fn of_many_who_find_a_dead_socket_one_gets_its_name() {
        let dir = TempDir::new();
        let path = dir.file("socket");
        for _ in 0..20 {
            drop(UnixListener::bind(&path).unwrap());
            let together = Barrier::new(6);
            let bind = || {
                together.wait();
                bind(&path)
            };
            let bound: Vec<_> = thread::scope(|scope| {
                let threads: Vec<_> = (0..6).map(|_| scope.spawn(bind)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).collect()
            });
            let (won, lost): (Vec<_>, Vec<_>) = bound.into_iter().partition(Result::is_ok);
            assert_eq!((won.len(), lost.len()), (1, 5));
            for error in lost.into_iter().filter_map(Result::err) {
                assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
            }
            UnixStream::connect(&path).unwrap();
            assert_eq!(dir.names(), ["socket"]);
            drop(won);
            assert_eq!(dir.names(), [""; 0]);
        }
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        let dir = TempDir::new();
        for path in [dir.file(&"x".repeat(100)), PathBuf::from("/"), PathBuf::new()] {
            assert_eq!(refused(&path), io::ErrorKind::InvalidInput, "{}", path.display());
        }
        assert_eq!(refused(&dir.file("none/socket")), io::ErrorKind::NotFound);
        assert_eq!(dir.names(), [""; 0]);
        for (path, expected) in [("a", "."), ("/a", "/"), ("a/b", "a")] {
            assert_eq!(dir_of(Path::new(path)), Some(Path::new(expected)));
        }
    }
}
